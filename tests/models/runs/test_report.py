"""What a finished run tells its reader: a card that is right, samples that stay in their fences, the same picture."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from models.config import Budget, Config, Corpus, Recipe
from models.runs.report import fenced, prompt_at
from models.runs.run import load, train_run
from models.text.tokenizers import Byte
from models.training.loop import Trained


@pytest.fixture(scope="module")
def run(rhyme_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trained]:
    """A finished run of an export, and what its training returned."""
    recipe = Recipe(
        corpus=Corpus(path=str(rhyme_file)),
        trial=Budget(tokens=256, rungs=4),
        parameters=Config(architecture="transformer", hidden_size=8, heads=2, sequence_length=8, batch_size=4),
        threads=1,
        provenance={"study": "rhymes", "trial": 7},
    )
    folder = tmp_path_factory.mktemp("runs") / "my-run"
    return folder, train_run(recipe, folder)


def test_the_card_says_what_the_model_is_and_how_good(run: tuple[Path, Trained]) -> None:
    folder, trained = run
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# `my-run`\n\nA text generator (transformer)")
    assert trained.test is not None
    for split, score in {"validation": trained.best, "test": trained.test}.items():
        assert f"| {split} | {score.bits_per_byte:.4f} | {score.nats_per_token:.4f} |" in card  # type: ignore[attr-defined]
    weights = sum(parameter.numel() for parameter in trained.model.parameters())
    fingerprint = load(folder).recipe.corpus.fingerprint
    for fact in (
        f"| {weights:,} (",
        f"`{fingerprint}`",
        "| 2 heads, rotary positions |",
        "trial 7 of the study `rhymes`",
    ):
        assert fact in card
    assert "at most the last 8 tokens" in card


def test_what_the_card_says_of_loading_works(run: tuple[Path, Trained], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = run
    programs = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(programs) == 2
    monkeypatch.chdir(folder.parent)
    for program in programs:
        exec(program, {})


def test_the_result_is_the_score(run: tuple[Path, Trained]) -> None:
    folder, trained = run
    result = json.loads((folder / "result.json").read_text())
    assert trained.test is not None
    assert result["validation"]["bits_per_byte"] == trained.best.bits_per_byte
    assert result["test"]["bits_per_byte"] == trained.test.bits_per_byte
    assert (result["rung"], result["tokens"]) == (4, 256)


def test_samples_go_on_from_three_pieces_of_the_validation_split(run: tuple[Path, Trained], rhyme_file: Path) -> None:
    blocks = re.findall(r"^```text\n(.*?)\n```$", (run[0] / "samples.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    text = rhyme_file.read_text()
    validation = text[int(len(text) * 0.9) : int(len(text) * 0.95)]
    assert all(prompt in validation for prompt in blocks[::2])
    assert len(set(blocks[::2])) == 3


def test_the_picture_is_an_image_and_the_same_again(run: tuple[Path, Trained], tmp_path: Path) -> None:
    folder, _ = run
    picture = (folder / "loss.svg").read_bytes()
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    train_run(load(folder).recipe, tmp_path / "again")
    assert (tmp_path / "again" / "loss.svg").read_bytes() == picture
    assert (tmp_path / "again" / "samples.md").read_bytes() == (folder / "samples.md").read_bytes()


@pytest.mark.parametrize("text", ["plain", "```\n# a heading", "~~~", "`````", "a\x1b[31mb\x00\x85c\r\u2028"])
def test_no_text_leaves_its_fence(text: str) -> None:
    opening, *lines, closing = fenced(text).split("\n")
    assert opening == f"{closing}text"
    assert set(closing) == {"`"}
    assert all(closing not in line for line in lines)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "".join(lines))


def test_a_prompt_starts_with_a_whole_character() -> None:
    tokens = Byte().encode("世界世界世界世界世界世界世界")
    assert prompt_at(Byte(), tokens, 1).startswith("界")
    assert "\ufffd" not in prompt_at(Byte(), tokens, 1)
