"""Reads the documents of a file or folder, each by its kind of file, or refuses them by name."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from models.errors import CorpusError
from models.text.compression import CHUNK, contents_of, ending_of
from models.text.tables import COLUMNAR, SEPARATED, columnar, is_saved_dataset, saved_dataset, separated
from models.wording import counted, listed

LINES, RECORDS = (".jsonl", ".ndjson"), (".json",)
"""Kinds of files whose documents stand under a key: an object on each line, or a list of them."""

KEYED = LINES + RECORDS + SEPARATED + COLUMNAR
"""Kinds of files whose text is chosen by `field`."""

REMEDIES = {
    "an archive; unpack it": ".tgz .lz4 .br .zip .tar .7z .rar",
    "a table; write its column of text as .csv or .jsonl": (
        ".feather .orc .avro .xls .xlsx .ods .db .sqlite .sqlite3 .h5 .hdf5 .npy .npz"
    ),
    "a formatted document; save its text as .txt": ".pdf .doc .docx .odt .rtf .epub .mobi .ppt .pptx .odp .pages",
    "markup; save its text as .txt, or rename it to .txt to learn the markup too": (
        ".html .htm .xhtml .mhtml .svg .ipynb"
    ),
    "a picture, sound or program; leave it out": (
        ".png .jpg .jpeg .gif .bmp .webp .tif .tiff .ico .heic .psd .mp3 .wav .flac .ogg .m4a .mp4 .mkv .avi .mov .webm"
        " .ttf .otf .woff .woff2 .exe .dll .so .dylib .a .o .obj .lib .class .jar .whl .egg .bin "
        " .iso .wasm .pkl .pickle"
    ),
}
"""What to do with files that are not read, by the ends of their names."""

_REFUSED = {ending: remedy for remedy, endings in REMEDIES.items() for ending in endings.split()}

_BEGINNINGS = {
    codecs.BOM_UTF32_LE: "UTF-32; save it as UTF-8 text",
    codecs.BOM_UTF32_BE: "UTF-32; save it as UTF-8 text",
    codecs.BOM_UTF16_LE: "UTF-16; save it as UTF-8 text",
    codecs.BOM_UTF16_BE: "UTF-16; save it as UTF-8 text",
    b"\x1f\x8b": "compressed; give its name the ending .gz",
    b"BZh": "compressed; give its name the ending .bz2",
    b"\xfd7zXZ": "compressed; give its name the ending .xz",
    b"\x28\xb5\x2f\xfd": "compressed; give its name the ending .zst",
    b"PK\x03\x04": _REFUSED[".zip"],
    b"PAR1": "a table; give its name the ending .parquet",
    b"SQLite format 3": _REFUSED[".sqlite"],
    b"%PDF-": _REFUSED[".pdf"],
    b"\x89PNG": _REFUSED[".png"],
    b"\xff\xd8\xff": _REFUSED[".jpg"],
}
"""What a file is whose bytes are no UTF-8 text and begin like this."""

PASSED_OVER = (".lock", ".safetensors", ".pt", ".pth", ".ckpt", ".onnx", ".gguf", ".pyc", ".swp", ".part", ".tmp", "~")
"""Ends of the names of files that lie beside text and never hold any: locks, checkpoints, drafts, backups."""

NEVER_TEXT = {"__pycache__", "Thumbs.db", "desktop.ini", "package-lock.json"}

WHOLE = 2**26
"""Bytes of a text up to which it is read in one piece."""

Document: TypeAlias = Iterable[str]
"""The pieces of a document's text."""

NAMED = 5
"""Most names in a message's list."""


@dataclass
class Found:
    """How many documents with text a path has, and what is to be said about its files."""

    count: int = 0
    read: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        files = counted(len(self.read), "file")
        documents = f", {self.count:,} documents" if self.count != len(self.read) else ""
        passed_over = (
            f", {len(self.passed_over):,} passed over ({listed(self.passed_over, NAMED)})" if self.passed_over else ""
        )
        copies = f"; held twice: {listed(self.copies, NAMED)}; remove one of each" if self.copies else ""
        return files + documents + passed_over + copies


def stream_of(path: Path, key: str | None, found: Found) -> Iterator[Document]:
    """Yields the documents of a file, or of all files of a folder at any depth in the order of their paths.

    Some may have no text. `key` is for records. Hidden files, checkpoints, locks and links to folders are passed over;
    `found` notes them. Each document comes in pieces, to be read before the next one is asked for: no file of text
    needs to fit in memory. Raises CorpusError for a file that is no text, and OSError for one that cannot be read.
    """
    if path.is_dir() and not is_saved_dataset(path):
        files = _files(path, found)
        if key is not None and not any(ending_of(file) in KEYED for file in files):
            refuse_key(f"corpus {path}")
        yield from _read_all(path, files, key, found)
        return
    documents = ([row] for row in saved_dataset(path, key)) if path.is_dir() else _documents(path, key)
    tally = _Tally()
    yield from map(tally.passing, documents)
    found.count, found.read = tally.documents, [path.name]


def refuse_key(place: str) -> NoReturn:
    """Raises CorpusError, because there are no records here for `field` to choose from."""
    raise CorpusError(f"{place}: field is for files of records ({', '.join(KEYED)}); remove it")


def _files(folder: Path, found: Found) -> list[Path]:
    files: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        out = [name for name in folders + names if _is_beside_text(name) or name in links]
        found.passed_over += [str(Path(parent, name).relative_to(folder)) for name in out]
        folders[:] = [name for name in folders if name not in out]
        files += [Path(parent, name) for name in names if name not in out]
    found.passed_over.sort()
    return sorted(files, key=lambda file: file.relative_to(folder).parts)


def _is_beside_text(name: str) -> bool:
    return name.startswith((".", "~$")) or name in NEVER_TEXT or name.lower().endswith(PASSED_OVER)


def _raise(error: OSError) -> NoReturn:
    raise error


class _Tally:
    """Counts the documents of a file that have text, and keeps a digest of them."""

    def __init__(self) -> None:
        self.documents, self.digest = 0, hashlib.blake2b(digest_size=16)

    def passing(self, document: Document) -> Iterator[str]:
        """Passes the pieces of a document on."""
        has_text = False
        for piece in document:
            has_text = has_text or bool(piece)
            self.digest.update(piece.encode())
            yield piece
        if has_text:
            self.documents += 1
            self.digest.update(b"\xff")  # no byte of UTF-8


def _read_all(folder: Path, files: list[Path], key: str | None, found: Found) -> Iterator[Document]:
    """Yields documents, and notes files that hold the same as another one of their name with another ending."""
    seen: dict[tuple[Path, str, bytes], str] = {}
    for file in files:
        name = str(file.relative_to(folder))
        if file.is_symlink() and not file.exists():
            raise CorpusError(f"corpus {file}: a link that leads nowhere; remove it")
        tally = _Tally()
        yield from map(tally.passing, _documents(file, key))
        found.count += tally.documents
        found.read.append(name)
        same = seen.setdefault((file.parent, file.name.partition(".")[0], tally.digest.digest()), name)
        if same != name and tally.documents:
            found.copies.append(f"{same} in {name}")


def _documents(path: Path, key: str | None) -> Iterator[Document]:
    ending = ending_of(path)
    refused = path.suffix.lower() if path.suffix.lower() in _REFUSED else ending
    if refused in _REFUSED:
        path.stat()  # one that is not there is not refused for its name
        raise CorpusError(f"corpus {path}: {_REFUSED[refused]}")
    if ending in SEPARATED:
        yield from ([row] for row in separated(path, _lines(path, ""), key))
    elif ending in COLUMNAR:
        path.stat()
        yield from ([row] for row in columnar(path, key))
    elif ending in LINES:
        yield from ([text] for text in _of_lines(path, key))
    elif ending in RECORDS:
        yield from ([text] for text in _of_records(path, key))
    else:
        yield _text(path)


def _text(path: Path) -> Iterator[str]:
    """Yields the text of a file: in one piece, or if it has more than WHOLE bytes in many."""
    if path.exists() and not path.is_file():
        raise CorpusError(f"corpus {path}: neither a file nor a folder; give one of these")
    contents, head = contents_of(path), b""
    while len(head) <= WHOLE and (content := b"".join(islice(contents, 1 + WHOLE // CHUNK))):
        head += content
    decoder, read, is_whole = codecs.getincrementaldecoder("utf-8")(), 0, len(head) <= WHOLE
    for content in chain([head], contents):
        text = _decoded(path, head, content, decoder, read, is_whole)
        yield text if read else text.removeprefix("\ufeff")  # the mark that some editors put before UTF-8
        read += len(content)
    if not is_whole:
        _decoded(path, head, b"", decoder, read, True)


def _decoded(
    path: Path, head: bytes, content: bytes, decoder: codecs.IncrementalDecoder, read: int, is_last: bool
) -> str:
    """Decodes what follows the first `read` bytes of a file, or says why it is no text; `head` is how it begins."""
    zero = content.find(b"\0")
    begins = read - len(decoder.getstate()[0])
    try:
        text = decoder.decode(content, is_last)
    except UnicodeDecodeError as error:
        _refuse_beginning(path, head)
        if zero < 0:
            place = begins + error.start
            raise CorpusError(f"corpus {path}: not UTF-8 at byte {place}; save it as UTF-8 text") from error
    if zero >= 0:
        _refuse_beginning(path, head)
        raise CorpusError(
            f"corpus {path}: binary, with a zero at byte {read + zero}; remove it or save it as UTF-8 text"
        )
    return text


def _lines(path: Path, newline: str) -> Iterator[str]:
    """Yields the lines of a file, each with its end; `newline` says what ends one, as for `open`."""
    rest = ""
    for text in _text(path):
        lines = io.StringIO(rest + text, newline=newline).readlines()
        rest = lines.pop() if lines else ""
        yield from lines
    if rest:
        yield rest


def _refuse_beginning(path: Path, content: bytes) -> None:
    for beginning, problem in _BEGINNINGS.items():
        if content.startswith(beginning):
            raise CorpusError(f"corpus {path}: {problem}")


def _of_lines(path: Path, key: str | None) -> Iterator[str]:
    for number, line in enumerate(_lines(path, "\n"), 1):
        if line.strip():
            place = f"corpus {path}, line {number}"
            record = _parsed(line.removesuffix("\n"), place, "write one object on each line")
            if not isinstance(record, dict):
                raise CorpusError(f"{place}: not an object; write one object on each line")
            yield _text_of(record, _required(key, path, record), place)


def _of_records(path: Path, key: str | None) -> Iterator[str]:
    """The documents of a JSON file: a list of texts or objects, or one object."""
    place = f"corpus {path}"
    content = _parsed("".join(_text(path)), place, "write a list of texts or of objects")
    for number, record in enumerate(content if isinstance(content, list) else [content], 1):
        one = f"{place}, item {number}"
        if isinstance(record, str):
            yield _whole(record, one)
        elif isinstance(record, dict):
            yield _text_of(record, _required(key, path, record), one)
        else:
            raise CorpusError(f"{one}: neither a text nor an object; write a list of texts or of objects")


def _parsed(text: str, place: str, remedy: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{place}: not JSON ({error}); {remedy}") from error


def _required(key: str | None, path: Path, record: dict[str, Any]) -> str:
    if key is not None:
        return key
    texts = [repr(name) for name, value in record.items() if isinstance(value, str)]
    keys = f"; of the first one's keys, text is under {listed(texts, NAMED)}" if texts else ""
    raise CorpusError(
        f"corpus {path}: a {ending_of(path)} file needs field; set it to the key that holds the text{keys}"
    )


def _text_of(record: dict[str, Any], key: str, place: str) -> str:
    text = record.get(key)
    if not isinstance(text, str):
        keys = ", ".join(map(repr, record)) or "none"
        raise CorpusError(f"{place}: no text under {key!r}; the keys there: {keys}; set field to one that holds text")
    return _whole(text, f"{place}: {key!r}")


def _whole(text: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(f"{place} contains half of a surrogate pair; remove it") from error
    return text
