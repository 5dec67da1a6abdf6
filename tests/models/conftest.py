"""What the tests of models share: one thread, and texts that are learned in a second."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from models.config import Corpus
from models.text.corpus import EncodedCorpus, load_corpus

RHYME = "".join(
    f"{number} green bottles hanging on the wall, and if {'one' if number % 2 else 'two'} green bottle should fall,\n"
    for number in range(60, 0, -1)
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def corpus_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., EncodedCorpus]:
    """Encodes a text: corpus_of(text, kind="character", split=(0.8, 0.1, 0.1))."""

    def encode(
        text: str, kind: str = "character", split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    ) -> EncodedCorpus:
        path = tmp_path_factory.mktemp("text") / "text.txt"
        path.write_text(text, encoding="utf-8")
        return load_corpus(Corpus(path=str(path), split=split), kind, 400)

    return encode


@pytest.fixture(scope="session")
def rhyme(corpus_of: Callable[..., EncodedCorpus]) -> EncodedCorpus:
    """3,600 characters for training and 450 for validation; a very small model soon knows them."""
    return corpus_of(RHYME)


@pytest.fixture(scope="session")
def rhyme_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same text as a file."""
    path = tmp_path_factory.mktemp("rhyme") / "rhyme.txt"
    path.write_text(RHYME, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def markov() -> EncodedCorpus:
    """A source whose entropy is known."""
    return load_corpus(Corpus(builtin="markov"), "character", 400)
