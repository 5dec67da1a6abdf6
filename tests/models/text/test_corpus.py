"""Corpora: what is read, how it is split and encoded, what is refused, and a cache that many processes share."""

import bz2
import csv
import gzip
import hashlib
import json
import lzma
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard

from models import config
from models.errors import CorpusError
from models.text import corpus as corpora
from models.text import shared_work, tokenizers
from models.text.corpus import SPLITS, EncodedCorpus, load_corpus, require_room

KINDS = ("byte", "character", "word", "byte-pair")
TEXT = "".join(f"Line {number} of a naïve 世界 text 👩‍🚀.\r\n" for number in range(200))
RACER = """
import sys
from hashlib import sha256
from pathlib import Path
from models import config
from models.text import corpus as corpora
from models.text.corpus import load_corpus
make, made = corpora._make, []
corpora._make = lambda *given: made.append(given) or make(*given)
print("ready", flush=True)
sys.stdin.readline()
corpus = load_corpus(config.Corpus(builtin="python-docs"), "byte-pair", 400, Path(sys.argv[1]))
print(type(corpus.train).__name__, sha256(corpus.train.tobytes()).hexdigest(), len(made))
"""
HOLDER = """
import sys
from pathlib import Path
from models.text.shared_work import alone
with alone(Path(sys.argv[1]), lambda text: print(text, flush=True), "encodes"):
    print("holds it", flush=True)
    sys.stdin.readline()
"""


def read(folder: Path, path: Path | None = None, kind: str = "character", **settings: Any) -> EncodedCorpus:
    """Loads the corpus at `path`, or a built-in one, with the cache in `folder`."""
    source = config.Corpus(path=None if path is None else str(path), **settings)
    return load_corpus(source, kind, 400, folder / "cache")


def text_of(corpus: EncodedCorpus) -> str:
    return "".join(corpus.tokenizer.decode(getattr(corpus, split)) for split in SPLITS)


def documents_of(corpus: EncodedCorpus) -> list[str]:
    tokens = np.concatenate([getattr(corpus, split) for split in SPLITS])
    ends = np.flatnonzero(tokens == corpus.tokenizer.end_of_text)
    return [corpus.tokenizer.decode(document) for document in np.split(tokens, ends)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_splits_are_the_text(kind: str, file: Path, tmp_path: Path) -> None:
    corpus = read(tmp_path, file, kind)
    assert text_of(corpus) == TEXT
    assert corpus.characters == {"train": 6021, "validation": 335, "test": 334}  # of 6690
    assert sum(corpus.bytes.values()) == len(TEXT.encode())
    assert corpus.name == "text.txt"
    assert corpus.entropy is None


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_each_split(kind: str, file: Path, tmp_path: Path) -> None:
    corpus = read(tmp_path, file, kind, split=(0.5, 0.3, 0.2))
    decoded = {split: corpus.tokenizer.decode_bytes(getattr(corpus, split)) for split in SPLITS}
    assert corpus.bytes == {split: len(text) for split, text in decoded.items()}


def test_the_test_split_may_be_absent(file: Path, tmp_path: Path) -> None:
    for _ in ("made", "mapped"):
        corpus = read(tmp_path, file, split=(0.9, 0.1, 0.0))
        assert len(corpus.test) == corpus.bytes["test"] == 0
        assert text_of(corpus) == TEXT


def test_the_tokenizer_has_seen_the_train_split_only(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(90 * "a" + 10 * "b", encoding="utf-8")
    corpus = read(tmp_path, tmp_path / "text")
    assert corpus.tokenizer.vocabulary_size == 1 + 16 + 1
    assert len(corpus.validation) == 2 * corpus.characters["validation"]


@pytest.mark.parametrize(("kind", "dtype"), [("character", np.uint8), ("byte", np.uint16), ("byte-pair", np.uint16)])
def test_tokens_are_small_and_read_only(kind: str, dtype: type, file: Path, tmp_path: Path) -> None:
    corpus = read(tmp_path, file, kind)
    assert corpus.train.dtype == dtype
    assert isinstance(corpus.train, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        corpus.train[0] = 0


def test_large_vocabularies_fit(tmp_path: Path) -> None:
    characters = "".join(map(chr, range(0x10000, 0x10000 + 70_000)))
    (tmp_path / "text").write_text(characters, encoding="utf-8")
    corpus = read(tmp_path, tmp_path / "text", split=(0.98, 0.01, 0.01))
    assert corpus.train.dtype == np.int32
    assert text_of(corpus) == characters


def test_the_fingerprint_of_a_file_is_its_sha256(file: Path, tmp_path: Path) -> None:
    fingerprint = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    assert read(tmp_path, file).fingerprint == fingerprint
    assert read(tmp_path, file, fingerprint=fingerprint).fingerprint == fingerprint


def test_a_byte_order_mark_is_no_text(file: Path, tmp_path: Path) -> None:
    plain = read(tmp_path, file)
    file.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert read(tmp_path, file).fingerprint == plain.fingerprint


def test_another_text_than_the_fingerprint_asks_for_is_refused(file: Path, tmp_path: Path) -> None:
    actual = hashlib.sha256(TEXT.encode()).hexdigest()
    with pytest.raises(CorpusError, match=f"{actual}.*asks for sha256:0000.*restore"):
        read(tmp_path, file, fingerprint="sha256:0000")
    with pytest.raises(CorpusError, match="version of Python"):
        read(tmp_path, builtin="python-docs", fingerprint="sha256:0000")


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    for name in ("b.txt", "a/z.md", "a.txt", "no-ending", ".hidden", ".git/config", "a/empty.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("" if "empty" in name else f"This is {name}.", encoding="utf-8")
    corpus = read(tmp_path, folder, split=(0.4, 0.3, 0.3))
    assert documents_of(corpus) == [f"This is {name}." for name in ("a/z.md", "a.txt", "b.txt", "no-ending")]
    assert sum(corpus.characters.values()) == sum(map(len, documents_of(corpus)))
    assert sum(corpus.bytes.values()) == sum(map(len, documents_of(corpus)))


LINE = '{"text": "good"}\n'

PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


@pytest.mark.parametrize("ending", PACKED)
def test_a_compressed_text_is_that_text(ending: str, file: Path, tmp_path: Path) -> None:
    packed = tmp_path / f"text.txt{ending}"
    packed.write_bytes(PACKED[ending](file.read_bytes()))
    assert read(tmp_path, packed).fingerprint == read(tmp_path, file).fingerprint


ROWS = [f'Document {number}, with a "quotation",\nand a second line.' for number in range(40)]


def as_table(path: Path, *, separator: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter=separator)
        rows.writerows([("id", "text"), *enumerate(ROWS)])


def as_columns(path: Path) -> None:
    table = pyarrow.table({"id": range(42), "text": [ROWS[0], None, *ROWS[1:], ""]})
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=7)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as stream:  # as `datasets` does
            stream.write_table(table, max_chunksize=7)


def as_saved_dataset(folder: Path) -> None:
    folder.mkdir()
    as_columns(folder / "data-00000-of-00001.arrow")
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_data_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.csv", as_table),
        ("a.tsv", partial(as_table, separator="\t")),
        ("semicolons.csv", partial(as_table, separator=";")),
        ("a.parquet", as_columns),
        ("a.arrow", as_columns),
        ("saved", as_saved_dataset),
    ],
)
def test_each_row_of_a_table_is_a_document(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / name)
    corpus = read(tmp_path, tmp_path / name, field="text", split=(0.5, 0.3, 0.2))
    assert documents_of(corpus) == ROWS
    (tmp_path / "same.json").write_text(json.dumps(ROWS))
    assert read(tmp_path, tmp_path / "same.json", split=(0.5, 0.3, 0.2)).fingerprint == corpus.fingerprint


def test_a_column_of_numbers_and_a_data_set_of_several_splits_are_refused(tmp_path: Path) -> None:
    as_columns(tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="column 'id' holds int64, not text; set field to another"):
        read(tmp_path, tmp_path / "a.parquet", field="id")
    both = tmp_path / "both"
    both.mkdir()
    as_saved_dataset(both / "train")
    (both / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(CorpusError, match=r"holds the splits train; give one: .*both/train"):
        read(tmp_path, both, field="text")


def test_several_files_and_patterns_are_read_in_their_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a1.txt", "a2.txt"):
        (tmp_path / name).write_text(f"This is {name}, and its text.")
    (tmp_path / "c.jsonl").write_text(LINE)
    given = [str(tmp_path / name) for name in ("b.txt", "a?.txt", "c.jsonl")]
    source = config.Corpus(path=given, field="text", split=(0.5, 0.3, 0.2))
    corpus = load_corpus(source, "character", 300, tmp_path / "cache")
    texts = [f"This is {name}, and its text." for name in ("b.txt", "a1.txt", "a2.txt")]
    assert documents_of(corpus) == [*texts, "good"]
    assert corpus.name == "b.txt and 2 more"
    with pytest.raises(CorpusError, match=r"z\*: no file matches this pattern"):
        read(tmp_path, tmp_path / "z*")


@pytest.mark.parametrize("own", [("validation", "test"), ("validation",), ("test",)])
def test_held_out_text_may_have_files_of_its_own(own: tuple[str, ...], file: Path, tmp_path: Path) -> None:
    texts = {"validation": "Text to validate on.", "test": "Text to test on."}
    for name in own:
        (tmp_path / f"{name}.txt").write_text(texts[name])
    source = config.Corpus(path=str(file), **{name: str(tmp_path / f"{name}.txt") for name in own})  # type: ignore[arg-type]
    corpus = load_corpus(source, "byte", 300, tmp_path / "cache")
    found = {split: corpus.tokenizer.decode(getattr(corpus, split)) for split in SPLITS}
    if "validation" in own:
        assert found == {
            "train": TEXT,
            "validation": texts["validation"],
            "test": texts["test"] if "test" in own else "",
        }
    else:
        assert found["train"] + found["validation"] == TEXT
        assert len(found["validation"]) == pytest.approx(len(TEXT) / 19, abs=1)
        assert found["test"] == texts["test"]
    assert corpus.characters == {split: len(text) for split, text in found.items()}
    assert corpus.fingerprint != read(tmp_path, file, "byte").fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_each_line_of_jsonl_is_a_document(kind: str, tmp_path: Path) -> None:
    texts = [f"Document {number}:\n\u2028 \x00 naïve" for number in range(40)]
    lines = "\r\n".join(json.dumps({"id": 1, "text": text}, ensure_ascii=False) for text in texts)
    (tmp_path / "texts.jsonl").write_bytes(lines.encode() + b"\n\n")
    corpus = read(tmp_path, tmp_path / "texts.jsonl", kind, field="text", split=(0.5, 0.3, 0.2))
    assert documents_of(corpus) == texts


def test_borders_between_documents_are_part_of_the_text(tmp_path: Path) -> None:
    found = set()
    for number, texts in enumerate((["one", "two", "six"], ["onetwo", "six"], ["o", "netwosix"])):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
        found.add(read(tmp_path, path, field="text", split=(0.4, 0.3, 0.3)).fingerprint)
    assert len(found) == 3


def test_python_docs_need_no_file(tmp_path: Path) -> None:
    corpus = read(tmp_path, builtin="python-docs", kind="word")
    assert corpus.name == "python-docs"
    assert sum(corpus.bytes.values()) > 300_000
    assert "The" in text_of(corpus)


def test_the_random_source_is_the_same_everywhere(tmp_path: Path) -> None:
    corpus = read(tmp_path, builtin="markov")
    assert corpus.fingerprint == "sha256:fb462e7cc533f9348f8a75f26488b7e20224679e20c87d3731de545c9c426684"
    assert corpus.entropy == pytest.approx(2.1120, abs=1e-4)
    assert corpus.bytes == corpus.characters == {"train": 360_000, "validation": 20_000, "test": 20_000}


def test_the_stated_entropy_is_the_measured_one(tmp_path: Path) -> None:
    corpus = read(tmp_path, builtin="markov")
    tokens = np.concatenate([corpus.train, corpus.validation, corpus.test]).astype(int)
    counts = np.zeros((12, 12, 12))
    np.add.at(counts, (tokens[:-2], tokens[1:-1], tokens[2:]), 1)
    measured = counts / counts.sum(axis=-1, keepdims=True)
    bits = -np.log2(measured[tokens[:-2], tokens[1:-1], tokens[2:]])
    assert corpus.entropy is not None
    assert corpus.split_entropy is not None
    assert bits.mean() == pytest.approx(corpus.entropy, abs=0.01)
    assert bits[360_000 - 2 : 380_000 - 2].mean() == pytest.approx(corpus.split_entropy["validation"], abs=0.01)


def test_a_model_of_the_train_split_does_not_beat_the_source(tmp_path: Path) -> None:
    corpus = read(tmp_path, builtin="markov")
    assert corpus.split_entropy is not None
    counts = np.full((12, 12, 12), 0.1)
    train, held_out = corpus.train.astype(int), corpus.validation.astype(int)
    np.add.at(counts, (train[:-2], train[1:-1], train[2:]), 1)
    learned = counts / counts.sum(axis=-1, keepdims=True)
    score = -np.log2(learned[held_out[:-2], held_out[1:-1], held_out[2:]]).mean()
    assert 0 < score - corpus.split_entropy["validation"] < 0.01


def test_the_cache_is_used_for_equal_text_only(file: Path, tmp_path: Path) -> None:
    first, again = read(tmp_path, file), read(tmp_path, file)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    for split in SPLITS:
        assert isinstance(getattr(again, split), np.memmap)
        assert np.array_equal(getattr(first, split), getattr(again, split))
    assert (first.tokenizer, first.fingerprint, first.bytes) == (again.tokenizer, again.fingerprint, again.bytes)
    read(tmp_path, file, split=(0.8, 0.1, 0.1))
    read(tmp_path, file, "byte")
    file.write_text(TEXT + "more", encoding="utf-8", newline="")
    assert text_of(read(tmp_path, file)) == TEXT + "more"
    assert len(list((tmp_path / "cache").iterdir())) == 4


@pytest.mark.parametrize("name", ["train.npy", "test.npy", "tokenizer.json", "facts.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "changed", "zeros"])
def test_a_damaged_cache_is_made_anew(name: str, damage: str, file: Path, tmp_path: Path) -> None:
    read(tmp_path, file)
    (entry,) = (tmp_path / "cache").iterdir()
    content = (entry / name).read_bytes()
    (entry / name).unlink()
    if damage != "missing":
        changed = {
            "empty": b"",
            "cut": content[: len(content) // 2],
            "changed": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
            "zeros": bytes(len(content)),
        }
        (entry / name).write_bytes(changed[damage])
    corpus = read(tmp_path, file)
    assert text_of(corpus) == TEXT
    assert isinstance(corpus.train, np.memmap)
    assert (entry / name).read_bytes() == content


def test_no_cache_is_no_obstacle(file: Path) -> None:
    corpus = load_corpus(config.Corpus(path=str(file)), "word", 400, file / "cannot" / "be")
    assert text_of(corpus) == TEXT
    assert not corpus.train.flags.writeable
    assert list(file.parent.iterdir()) == [file]


def test_many_processes_may_race(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACER, str(tmp_path / "cache")]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [racer.stdout.readline() for racer in racers if racer.stdout] == ["ready\n"] * 4
    for racer in racers:
        print(file=racer.stdin, flush=True)
    answers = [racer.communicate()[0] for racer in racers]
    expected = hashlib.sha256(read(tmp_path, builtin="python-docs", kind="byte-pair").train.tobytes()).hexdigest()
    assert sorted(answers) == [f"memmap {expected} 0\n"] * 3 + [f"memmap {expected} 1\n"]
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("a.txt", b"", {}, r"a\.txt: contains no text"),
        ("a.txt", b"\xef\xbb\xbf", {}, "contains no text"),
        ("a.txt", b"text\0text", {}, "binary, with a zero at byte 4"),
        ("a.txt", "text".encode("utf-16"), {}, r"a\.txt: UTF-16; save it as UTF-8 text"),
        ("a.txt", "text".encode("utf-16-le"), {}, "binary, with a zero at byte 1"),
        ("a.txt", "text".encode("utf-32"), {}, "UTF-32; save it as UTF-8 text"),
        ("a.txt", gzip.compress(b"text", mtime=0), {}, "compressed; give its name the ending .gz"),
        ("noname", b"%PDF-1.7\xe2\xe3", {}, "noname: a formatted document; save its text as .txt"),
        ("a.txt.gz", b"text", {}, r"a\.txt\.gz: a damaged \.gz file"),
        ("a.txt.gz", gzip.compress(b"text" * 100, mtime=0)[:-9], {}, r"a damaged \.gz file"),
        ("a.txt.bz2", b"text", {}, r"a damaged \.bz2 file"),
        ("a.txt.xz", b"text", {}, r"a damaged \.xz file"),
        ("a.txt.zst", b"text", {}, r"a damaged \.zst file"),
        ("a.txt.gz", gzip.compress(b"a" * 2**25, mtime=0), {}, "unpacks to more than 250 times its size"),
        ("a.tar.gz", gzip.compress(b"text", mtime=0), {}, "an archive; unpack it"),
        ("a.jsonl.gz", gzip.compress(LINE.encode(), mtime=0), {}, r"a \.jsonl file needs field; .*'text'"),
        ("a.CSV", b"id,text\n1,good\n", {}, r"a\.CSV: a table needs field; .*: 'id', 'text'"),
        (
            "a.csv",
            b"id,text\n1,good\n",
            {"field": "body"},
            "no column 'body'; .* one of these: 'id'",
        ),
        ("a.csv", b"id,text\n1,good\n2,bad,worse\n", {"field": "text"}, "line 3: 3 columns, and the header has 2"),
        ("a.csv", b'id,text\n1,"good\n', {"field": "text"}, "line 2: .*write it again as CSV"),
        ("a.csv", b"", {"field": "text"}, "no column 'text'"),
        ("a.parquet", b"PAR1", {"field": "text"}, r"a damaged \.parquet file"),
        ("a.arrow", b"ARROW", {"field": "text"}, r"a damaged \.arrow file"),
        ("a.txt", b"PAR1\0", {}, "a table; give its name the ending .parquet"),
        ("a.html", b"<p>text", {}, "markup; save its text as .txt, or rename it"),
        ("a.docx", b"PK", {}, "a formatted document"),
        ("a.png", b"text", {}, "a picture, sound or program; leave it out"),
        ("a.ndjson", LINE, {}, "a .ndjson file needs field"),
        ("a.jsonl", '{"id": 1, "title": "b", "text": "c"}', {}, "needs field.*text is under 'title', 'text'"),
        ("a.json", "[" + LINE + "]", {}, "a .json file needs field; .*'text'"),
        ("a.json", '{"text": "good"}', {"field": "body"}, "item 1: no text under 'body'"),
        ("a.json", "[1]", {}, "item 1: neither a text nor an object"),
        ("a.json", "[", {}, "not JSON"),
        ("a.json", '["\\ud800"]', {}, "item 1 contains half of a surrogate pair"),
        ("a.txt", b"na\xefve", {}, "not UTF-8 at byte 2; save it as UTF-8"),
        ("a.txt", b"text", {"field": "text"}, "field is for files of records .*; remove it"),
        ("a.txt", b"a", {}, "a validation split of 0.05 leaves none of its 1 characters"),
        ("a.txt", b"abcdef", {"split": (0.5, 0.45, 0.05)}, "a test split of 0.05 leaves none of its 6 characters"),
        ("a.jsonl", LINE, {}, "needs field"),
        ("a.jsonl", LINE, {"field": "body"}, r"a\.jsonl, line 1: no text under 'body'; the keys there: 'text'"),
        ("a.jsonl", LINE + '{"text": 5}', {"field": "text"}, "line 2: no text under 'text'"),
        ("a.jsonl", LINE + "{}", {"field": "text"}, "line 2.*the keys there: none"),
        ("a.jsonl", LINE + "\n{", {"field": "text"}, "line 3: not JSON"),
        ("a.jsonl", LINE + "[" * 100_000, {"field": "text"}, "line 2: not JSON"),
        ("a.jsonl", LINE + "[1]", {"field": "text"}, "line 2: not an object"),
        ("a.jsonl", '{"text": "\\ud800"}', {"field": "text"}, "line 1: 'text' contains half of a surrogate pair"),
        ("a.jsonl", '{"text": ""}', {"field": "text"}, "contains no text"),
        ("a.jsonl", "\n\n", {"field": "text"}, "contains no text"),
    ],
)
def test_a_file_that_will_not_do_is_refused(
    name: str, content: bytes | str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CorpusError, match=message) as caught:
        read(tmp_path, tmp_path / name, **settings)
    assert "\n" not in str(caught.value)


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"nowhere\.txt: No such file.*give a UTF-8 text file"):
        read(tmp_path, tmp_path / "nowhere.txt")
    with pytest.raises(CorpusError, match=r"nowhere\.jsonl: No such file"):
        read(tmp_path, tmp_path / "nowhere.jsonl", field="text")


def test_a_folder_that_will_not_do_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    with pytest.raises(CorpusError, match="texts: contains no text"):
        read(tmp_path, folder)
    with pytest.raises(CorpusError, match="field is for"):
        read(tmp_path, folder, field="text")
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    with pytest.raises(CorpusError, match=r"picture\.png: a picture"):
        read(tmp_path, folder)


def test_a_process_waits_for_another_and_goes_on_when_that_one_dies(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "new" / "lock")]
    first, second = (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    said = [process.stdout.readline() if process.stdout else "" for process in (first, second)]
    if said[0] != "holds it\n":
        first, second, said = second, first, said[::-1]
    assert said == ["holds it\n", f"waits for process {first.pid}, which encodes\n"]
    first.kill()
    first.communicate()
    assert second.stdout is not None
    assert second.stdout.readline() == "holds it\n"
    second.communicate("\n")
    assert list((tmp_path / "new").iterdir()) == []


def test_drafts_of_a_process_that_was_killed_are_removed(file: Path, tmp_path: Path) -> None:
    read(tmp_path, file)
    (entry,) = (tmp_path / "cache").iterdir()
    entry.rename(entry.with_name(f"{entry.name}.{'0' * 32}"))
    entry.with_name(f"{entry.name}.lock").touch()
    read(tmp_path, file)
    assert list((tmp_path / "cache").iterdir()) == [entry]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [TEXT, " ".join(TEXT.split("\r\n")), TEXT.replace(" ", "").replace("\r\n", "")])
def test_a_text_is_encoded_in_blocks_as_it_is_in_one(
    kind: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text(text, encoding="utf-8", newline="")
    whole = load_corpus(config.Corpus(path=str(tmp_path / "text")), kind, 300, tmp_path / "whole")
    monkeypatch.setattr(corpora, "BLOCK", 100)
    monkeypatch.setattr(tokenizers, "LONG", 50)
    blocks = load_corpus(config.Corpus(path=str(tmp_path / "text")), kind, 300, tmp_path / "blocks")
    assert blocks.tokenizer == whole.tokenizer
    assert all(np.array_equal(getattr(blocks, split), getattr(whole, split)) for split in SPLITS)


def test_a_long_encoding_logs_how_far_it_is(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The clock is as fast as the work: each block waits until something has been said."""
    said: list[str] = []
    more = threading.Event()

    def hear(text: str) -> None:
        said.append(text)
        more.set()

    class Slow(shared_work.Meter):
        def __init__(self, report: shared_work.Report) -> None:
            super().__init__(report, seconds=0.001)

        def passing(self, blocks: Iterable[str]) -> Iterator[str]:
            for block in super().passing(blocks):
                yield block
                if self.done:
                    more.clear()
                    assert more.wait(30)

    file.write_text(TEXT.replace("\r", ""), encoding="utf-8")
    monkeypatch.setattr(corpora, "Meter", Slow)
    monkeypatch.setattr(corpora, "BLOCK", 2500)
    caplog.set_level("INFO", "models")
    load_corpus(config.Corpus(path=str(file)), "byte-pair", 300, tmp_path / "cache", hear)
    assert [record.getMessage() for record in caplog.records if record.name == "models.text.corpus"] == said
    patterns = [r"learning the byte-pair vocabulary: [1-9]\d%", r"encoding in byte-pair tokens: [1-9]\d%"]
    for pattern in patterns:
        assert any(re.fullmatch(rf"corpus text\.txt: {pattern}, [\d.e+-]+ MB/s", text) for text in said), said


ENTRIES = '{"text": "one"}\n{"text": "two"}\n'


@pytest.mark.parametrize(
    ("files", "field", "texts"),
    [
        ({"part-0.jsonl": ENTRIES, "part-1.jsonl": '{"text": "three"}'}, "text", ["one", "two", "three"]),
        ({"part-0.ndjson": ENTRIES, "deep/part-1.JSONL": '{"text": "three"}'}, "text", ["three", "one", "two"]),
        ({"a.txt": "plain", "b.jsonl": ENTRIES, "c.md": "# marked"}, "text", ["plain", "one", "two", "# marked"]),
        ({"a.json": '["one", "two"]', "b.py": "three = 3"}, None, ["one", "two", "three = 3"]),
        ({"a.json": '[{"text": "one"}, "two"]', "b.json": '{"text": "three"}'}, "text", ["one", "two", "three"]),
    ],
)
def test_each_file_of_a_folder_is_read_as_what_it_is(
    files: dict[str, str], field: str | None, texts: list[str], tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(content, encoding="utf-8")
    corpus = read(tmp_path, tmp_path / "texts", field=field, split=(0.4, 0.3, 0.3))
    assert documents_of(corpus) == texts


@pytest.mark.parametrize("name", ["a.csv", "deep/a.tsv", "a.txt.zst", "a.tar.gz", "a.pdf", "a.HTML", "a.webp", "a.so"])
def test_a_file_of_a_folder_that_is_no_text_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "texts" / name).parent.mkdir(parents=True)
    (tmp_path / "texts" / name).write_text("looks like text", encoding="utf-8")
    (tmp_path / "texts" / "b.txt").write_text("is text", encoding="utf-8")
    with pytest.raises(CorpusError, match=f"{re.escape(name)}: .*; (write|save|leave|set|unpack)"):
        read(tmp_path, tmp_path / "texts")


def test_lines_of_json_in_a_folder_need_a_field(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").write_text(ENTRIES, encoding="utf-8")
    with pytest.raises(CorpusError, match=r"part-0\.jsonl: a \.jsonl file needs field; .*'text'"):
        read(tmp_path, tmp_path)


def test_what_was_read_of_a_folder_and_what_was_not_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    for name in (
        "a.txt",
        "b.txt",
        "b.md",
        ".git/config",
        "uv.lock",
        "model.safetensors",
        "__pycache__/a.pyc",
        "~$a.txt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"This is {name[0]}.", encoding="utf-8")
    (folder / "elsewhere").symlink_to(tmp_path)
    (folder / "c.jsonl").write_text(ENTRIES, encoding="utf-8")
    assert read(tmp_path, folder, field="text").files == (
        "4 files, 5 documents, 6 passed over (.git, __pycache__, elsewhere, model.safetensors, uv.lock and 1 more)"
        "; held twice: b.md in b.txt; remove one of each"
    )
    assert read(tmp_path, folder / "a.txt", split=(0.4, 0.3, 0.3)).files == ""


def test_a_folder_with_what_is_no_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("text", encoding="utf-8")
    link = folder / "b.txt"
    for target in ("nowhere", "b.txt"):
        link.symlink_to(target)
        with pytest.raises(CorpusError, match=r"b\.txt: a link that leads nowhere; remove it"):
            read(tmp_path, folder)
        link.unlink()
    os.mkfifo(link)
    with pytest.raises(CorpusError, match=r"b\.txt: neither a file nor a folder"):
        read(tmp_path, folder)


def test_a_built_in_corpus_has_no_field(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="markov: field is for"):
        read(tmp_path, builtin="markov", field="text")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CorpusError, match="pipe: neither a file nor a folder"):
        read(tmp_path, tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(CorpusError, match="loop: Too many levels"):
        read(tmp_path, tmp_path / "loop")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_refused(file: Path, tmp_path: Path) -> None:
    file.chmod(0)
    with pytest.raises(CorpusError, match=r"text\.txt: Permission denied.*that you may read"):
        read(tmp_path, file)


def test_room_is_asked_for_in_numbers(file: Path, tmp_path: Path) -> None:
    corpus = read(tmp_path, file)
    require_room(corpus, batch_size=16, sequence_length=300)
    with pytest.raises(CorpusError, match=rf"has {len(corpus.train)} tokens, and batch_size 64.*needs 19264; lower"):
        require_room(corpus, batch_size=64, sequence_length=300)
    with pytest.raises(CorpusError, match=rf"validation split has {len(corpus.validation)} .*sequence_length 400"):
        require_room(corpus, batch_size=1, sequence_length=400)


def test_a_split_of_one_token_is_too_small(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("aaaa", encoding="utf-8")
    with pytest.raises(CorpusError, match="validation split has 1 tokens"):
        require_room(read(tmp_path, tmp_path / "text", split=(0.5, 0.25, 0.25)), batch_size=1, sequence_length=1)
