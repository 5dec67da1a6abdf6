"""What a text is said to hold: counts, scripts, what is there twice, and what tokenizers make of it."""

import json
from pathlib import Path

import pytest

from models.config import Corpus
from models.text import inspection
from models.text.corpus import load_corpus
from models.text.inspection import inspect


def test_documents_scripts_and_lines_are_counted(tmp_path: Path) -> None:
    texts = [f"Number {number} of many.\nя" for number in range(40)]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    found = inspect(Corpus(path=str(tmp_path / "texts.json"), split=(0.5, 0.3, 0.2)), [])
    assert (found.documents, found.longest_line) == (40, len("Number 10 of many."))
    assert found.bytes == sum(len(text.encode()) for text in texts)
    assert sum(found.characters.values()) == sum(map(len, texts))
    assert found.scripts == pytest.approx({"Latin": 12 / 13, "Cyrillic": 1 / 13}, abs=0.01)
    assert (found.duplicates.units, found.duplicates.count) == ("documents", 0)


def test_documents_that_are_there_twice_are_counted_and_most_of_all_held_out_ones(tmp_path: Path) -> None:
    texts = [f"This is text {number:02}." for number in range(20)]
    texts[3], texts[19] = texts[1], texts[2]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    twice = inspect(Corpus(path=str(tmp_path / "texts.json"), split=(0.5, 0.3, 0.2)), []).duplicates
    assert (twice.count, twice.across_splits) == (2, 1)
    assert twice.share == pytest.approx(0.1, abs=0.01)


def test_paragraphs_of_a_single_text_that_are_there_twice_are_counted(tmp_path: Path) -> None:
    paragraphs = [f"{number} " + "long enough " * 10 for number in range(20)] + ["short"] * 5
    (tmp_path / "text.txt").write_text("\n\n".join([*paragraphs, paragraphs[0]]))
    twice = inspect(Corpus(path=str(tmp_path / "text.txt")), []).duplicates
    assert (twice.units, twice.count) == ("long paragraphs", 1)


@pytest.mark.parametrize("kind", ["byte", "character", "word", "byte-pair"])
def test_a_short_text_is_tokenized_as_for_training(kind: str, rhyme_file: Path, tmp_path: Path) -> None:
    source = Corpus(path=str(rhyme_file))
    found = inspect(source, [(kind, 300)])
    (one,) = found.tokenizers
    corpus = load_corpus(source, kind, 300, tmp_path / "cache")
    assert one.vocabulary_size == corpus.tokenizer.vocabulary_size
    assert one.train_tokens == pytest.approx(len(corpus.train), abs=1)
    assert not found.is_sampled


def test_a_long_text_is_estimated_from_pieces_of_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("ab cd ef\n" * 5_000 + "ghijklmno\n" * 5_000)
    source = Corpus(path=str(tmp_path / "text.txt"))
    whole = inspect(source, [("word", 300)])
    monkeypatch.setattr(inspection, "SAMPLE", 10_000)
    estimated = inspect(source, [("word", 300)])
    assert estimated.is_sampled
    assert estimated.tokenizers[0].train_tokens == pytest.approx(whole.tokenizers[0].train_tokens, rel=0.05)
