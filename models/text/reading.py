"""Reads the text of files, folders and patterns of them piece by piece, with breaks between documents."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from models import config
from models.errors import CorpusError
from models.text.compression import ending_of
from models.text.documents import KEYED, Found, refuse_key, stream_of
from models.text.streams import BREAK, Section, joined
from models.wording import listed


@dataclass
class Noted:
    """What is known of a text when it has been read: its name, and for people which files."""

    name: str = ""
    files: str = ""


def sections_of(source: config.Corpus, noted: Noted) -> Iterator[Section]:
    """Yields the pieces of a corpus of files after `path`, `validation` or `test`, and breaks between these after ``.

    Raises CorpusError if something is missing or is no text.
    """
    for name in ("path", "validation", "test"):
        paths: str | list[str] | None = getattr(source, name)
        if paths:
            if name != "path":
                yield "", BREAK
            note = noted if name == "path" else Noted()
            yield from ((name, piece) for piece in pieces_of(paths, source.field, note))


def pieces_of(paths: str | list[str], key: str | None, noted: Noted) -> Iterator[str]:
    """Yields the text of files, folders and patterns of them, in this order."""
    written = [paths] if isinstance(paths, str) else paths
    found = [one for path in written for one in matching(path)]
    keyed = [path for path in found if may_have_keys(path)]
    if key is not None and not keyed:
        refuse_key(f"corpus {written[0]}")
    read = [_Path(path, key if path in keyed else None) for path in found]
    yield from joined(one.pieces() for one in read)
    name = Path(written[0]).name if len(found) > 1 else found[0].resolve().name
    noted.name = listed([name, *written[1:]], 1)
    noted.files = "; ".join(one.files for one in read if one.files) or (f"{len(found)} files" if len(found) > 1 else "")


def may_have_keys(path: Path) -> bool:
    """Whether a path may hold records, of which `field` names the text."""
    return path.is_dir() or ending_of(path) in KEYED


def matching(path: str) -> list[Path]:
    """Returns the path, or those that match it where it is a pattern, in the order of their names."""
    if not glob.has_magic(path) or Path(path).exists():
        return [Path(path)]
    found = sorted(glob.glob(path, recursive=True))
    if not found:
        raise CorpusError(f"corpus {path}: no file matches this pattern; look at the names with ls")
    return list(map(Path, found))


@dataclass
class _Path:
    path: Path
    key: str | None
    found: Found = field(default_factory=Found)

    @property
    def files(self) -> str:
        return str(self.found) if self.path.is_dir() else ""

    def pieces(self) -> Iterator[str]:
        try:
            yield from joined(stream_of(self.path, self.key, self.found))
        except OSError as error:
            raise CorpusError(
                f"corpus {error.filename or self.path}: {error.strerror}; give a UTF-8 text file, a folder of them, or "
                "a .jsonl file that you may read"
            ) from error
        if not self.found.count:
            of = f" ({self.files})" if self.files else ""
            raise CorpusError(f"corpus {self.path}: contains no text{of}; give one that does")
