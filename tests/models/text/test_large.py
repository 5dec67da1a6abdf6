"""Texts that are not kept in memory: encoded as others are, in parts from which an interrupted encoding goes on."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import config
from models.errors import ChangedCorpusError, CorpusError
from models.text import compression, documents, large, streams
from models.text import corpus as corpora
from models.text.corpus import SPLITS, EncodedCorpus, load_corpus

KINDS = ("byte", "character", "word", "byte-pair")
TEXT = "".join(f"Line {number} of a naïve 世界 text 👩‍🚀.\n" for number in range(200))
TEXTS = [f"\ufeff Document {number}:\n\n\u2028 naïve\r\n{'word ' * (number % 9)}\n" for number in range(150)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a text of a few kilobytes large."""
    for module, name, value in (
        (streams, "LARGE", 1000),
        (streams, "STRETCH", 300),
        (large, "BLOCK", 100),
        (large, "PART", 700),
        (documents, "WHOLE", 200),
        (documents, "CHUNK", 64),
        (compression, "CHUNK", 64),
    ):
        monkeypatch.setattr(module, name, value)


def load(folder: Path, kind: str, cache: str, **settings: Any) -> EncodedCorpus:
    return load_corpus(config.Corpus(**settings), kind, 350, folder / cache)


def plain(folder: Path) -> dict[str, Any]:
    (folder / "a.txt").write_bytes(TEXT.encode())
    return {"path": str(folder / "a.txt")}


def crlf(folder: Path) -> dict[str, Any]:
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    return {"path": str(folder / "a.txt"), "split": (0.5, 0.5, 0.0)}


def records(folder: Path) -> dict[str, Any]:
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in [*TEXTS, ""])
    (folder / "a.jsonl").write_bytes("\r\n\n".join(lines).encode())
    return {"path": str(folder / "a.jsonl"), "field": "text"}


def table(folder: Path) -> dict[str, Any]:
    rows = (f'{number},"{text}"' for number, text in enumerate(TEXTS))
    (folder / "a.csv").write_bytes("\r\n".join(["id,text", *rows]).encode())
    return {"path": str(folder / "a.csv"), "field": "text"}


def several(folder: Path) -> dict[str, Any]:
    (folder / "texts").mkdir()
    for number, text in enumerate([*TEXTS[:60], "", TEXT]):
        (folder / "texts" / f"{number:03}.txt").write_bytes(text.encode())
    (folder / "more.txt").write_bytes(TEXT[:500].encode())
    (folder / "test.txt").write_bytes(TEXT[500:1200].encode())
    path = [str(folder / "texts"), str(folder / "more.txt")]
    return {"path": path, "test": str(folder / "test.txt")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("write", [plain, crlf, records, table, several])
def test_a_large_text_is_encoded_as_if_it_were_small(
    write: Callable[[Path], dict[str, Any]], kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings = write(tmp_path)
    whole = load(tmp_path, kind, "whole", **settings)
    request.getfixturevalue("small")
    for _ in ("made", "mapped"):
        parts = load(tmp_path, kind, "parts", **settings)
        for name in ("name", "fingerprint", "tokenizer", "bytes", "characters", "files", "entropy", "split_entropy"):
            assert getattr(parts, name) == getattr(whole, name)
        for split in SPLITS:
            assert getattr(parts, split).dtype == getattr(whole, split).dtype
            assert np.array_equal(getattr(parts, split), getattr(whole, split))
    (entry,), (other,) = (list((tmp_path / cache).iterdir()) for cache in ("parts", "whole"))
    for split in SPLITS:
        assert (entry / f"{split}.npy").read_bytes() == (other / f"{split}.npy").read_bytes()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("damaged", [None, "00001.tokens", "tokenizer.json"])
def test_an_interrupted_encoding_goes_on_after_its_last_part(
    damaged: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = records(tmp_path)
    expected = load(tmp_path, "byte-pair", "other", **settings)
    write, written = large._written, list[int]()

    def interrupted(folder: Path, split: str, number: int, made: Any) -> large.Part:
        written.append(number)
        if len(written) == 4:
            raise KeyboardInterrupt
        return write(folder, split, number, made)

    monkeypatch.setattr(large, "_written", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, "byte-pair", "cache", **settings)
    (left,) = (tmp_path / "cache").iterdir()
    if damaged:
        (left / damaged).write_bytes(b"{}")
    corpus = load(tmp_path, "byte-pair", "cache", **settings)
    assert written[4] == {None: 3, "00001.tokens": 1, "tokenizer.json": 0}[damaged]
    for split in SPLITS:
        assert np.array_equal(getattr(corpus, split), getattr(expected, split))
    (entry,) = (tmp_path / "cache").iterdir()
    assert not entry.name.endswith(".parts")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
def test_words_and_pairs_of_a_very_large_text_are_learned_from_a_sample(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = plain(tmp_path)
    whole = load(tmp_path, kind, "cache", **settings)
    monkeypatch.setattr(large, "SAMPLE", 2000)
    first, second = load(tmp_path, kind, "cache", **settings), load(tmp_path, kind, "again", **settings)
    assert first.tokenizer == second.tokenizer
    assert first.fingerprint == whole.fingerprint
    assert first.tokenizer.decode(first.train) == whole.tokenizer.decode(whole.train)
    is_sampled = kind in ("word", "byte-pair")
    assert len(list((tmp_path / "cache").iterdir())) == 1 + is_sampled
    assert (first.tokenizer == whole.tokenizer) is not is_sampled


@pytest.mark.usefixtures("small")
def test_a_sample_comes_from_all_of_the_train_split() -> None:
    text = "".join(chr(ord("a") + number) * 300 for number in range(20)) + "!" * 600

    def pieces() -> Iterator[str]:
        return iter([text])

    places = corpora._cut(len(text), (20 / 22, 1 / 22, 1 / 22))
    stream = streams.Stream("a", corpora._fingerprint(text), places, pieces)
    assert "".join(one[0] for one in stream.sample(1500)) == "dhlpt"


@pytest.mark.usefixtures("small")
def test_a_large_text_that_will_not_do_is_refused(tmp_path: Path) -> None:
    settings = plain(tmp_path)
    with pytest.raises(ChangedCorpusError, match=r"a\.txt: the text is sha256:.*asks for sha256:0"):
        load(tmp_path, "byte", "cache", **settings, fingerprint="sha256:0")
    content, place = TEXT.encode(), TEXT.encode().index(b"Line 100")
    for damaged, message in (
        (content[:place] + b"\xef" + content[place:], f"not UTF-8 at byte {place}"),
        (content[:place] + b"\0" + content[place:], f"binary, with a zero at byte {place}"),
        (content + "é".encode()[:1], f"not UTF-8 at byte {len(content)}"),
    ):
        (tmp_path / "a.txt").write_bytes(damaged)
        with pytest.raises(CorpusError, match=message):
            load(tmp_path, "byte", "cache", **settings)


@pytest.mark.usefixtures("small")
def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, encode = plain(tmp_path), large.encode

    def changed(*given: Any) -> Any:
        (tmp_path / "a.txt").write_text(TEXT.replace("7", "8"), encoding="utf-8")
        return encode(*given)

    monkeypatch.setattr(large, "encode", changed)
    with pytest.raises(CorpusError, match=r"a\.txt: the text changed while it was read; start again"):
        load(tmp_path, "byte", "cache", **settings)


@pytest.mark.usefixtures("small")
def test_a_large_text_needs_no_cache_that_can_be_written(tmp_path: Path) -> None:
    corpus = load_corpus(config.Corpus(**plain(tmp_path)), "byte", 300, Path("/dev/null/corpora"))
    assert "".join(corpus.tokenizer.decode(getattr(corpus, split)) for split in SPLITS) == TEXT


def settled(path: Path, text: str, seconds: int) -> None:
    """Writes a file that was last changed some time ago."""
    path.write_text(text, encoding="utf-8")
    os.utime(path, (seconds, seconds))


@pytest.mark.usefixtures("small")
def test_a_text_that_was_read_before_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = plain(tmp_path)
    settled(Path(settings["path"]), TEXT, 1_000_000)
    first = load(tmp_path, "byte", "cache", **settings)

    def read(*arguments: Any) -> Iterator[Any]:
        raise AssertionError("the text is read again")

    with monkeypatch.context() as patch:
        patch.setattr(corpora, "sections_of", read)
        again = load(tmp_path, "byte", "cache", **settings)
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.train, first.train)
    settled(Path(settings["path"]), TEXT.replace("naïve", "clever"), 2_000_000)
    assert load(tmp_path, "byte", "cache", **settings).fingerprint != first.fingerprint


@pytest.mark.usefixtures("small")
def test_a_text_that_has_just_been_written_is_read_anew(tmp_path: Path) -> None:
    path = Path(plain(tmp_path)["path"])
    first = load(tmp_path, "byte", "cache", path=str(path))
    status = path.stat()
    path.write_text(TEXT.replace("Line", "Lane"), encoding="utf-8")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # within one tick of the clock
    assert load(tmp_path, "byte", "cache", path=str(path)).fingerprint != first.fingerprint


@pytest.mark.usefixtures("small")
def test_a_damaged_note_of_a_text_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    settled(path, TEXT, 1_000_000)
    first = load(tmp_path, "byte", "cache", path=str(path))
    (note,) = (tmp_path / "cache" / "known").iterdir()
    note.write_text('{"name": 1}')
    assert load(tmp_path, "byte", "cache", path=str(path)).fingerprint == first.fingerprint
