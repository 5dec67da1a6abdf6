"""Reads a column of text out of tables: .csv, .tsv, .parquet, .arrow, and data sets that `datasets` saved."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from models.errors import CorpusError
from models.text.compression import content_of, ending_of

SEPARATED, COLUMNAR = (".csv", ".tsv"), (".parquet", ".arrow")

STATE, SPLITS = "state.json", "dataset_dict.json"
"""Files by which a folder is known as a saved data set, and as one with several splits."""


def is_saved_dataset(folder: Path) -> bool:
    """Whether Hugging Face's `datasets` library wrote a folder."""
    return (folder / SPLITS).is_file() or (folder / STATE).is_file()


def separated(path: Path, lines: Iterator[str], key: str | None) -> Iterator[str]:
    """Yields column `key` of a .csv or .tsv file with a header, row by row; `lines` are those of the file."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # of this process; by default 128 KiB
    head = next(lines, "")
    separator = "\t" if ending_of(path) == ".tsv" else max(",;\t|", key=head.count)
    rows = csv.reader(chain([head], lines), delimiter=separator, strict=True)
    try:
        columns = next(rows, [])
        index = columns.index(_column(path, key, columns))
        for row in rows:
            if row and len(row) != len(columns):
                raise CorpusError(
                    f"corpus {path}, line {rows.line_num}: {len(row)} columns, and the header has {len(columns)}; put "
                    "quotes around text that contains separators or line ends"
                )
            if row:
                yield row[index]
    except csv.Error as error:
        raise CorpusError(f"corpus {path}, line {rows.line_num}: {error}; write it again as CSV") from error


def columnar(path: Path, key: str | None) -> Iterator[str]:
    """Yields column `key` of a .parquet or .arrow file, row by row; a missing value is no document."""
    pyarrow = _pyarrow(path)
    try:
        if ending_of(path) == ".parquet":
            from pyarrow.parquet import ParquetFile

            source = path if path.suffix.lower() == ".parquet" else pyarrow.BufferReader(content_of(path))
            file = ParquetFile(source)
            name = _column(path, key, file.schema_arrow.names)
            batches = file.iter_batches(columns=[name])
        else:
            batches, name = _arrow(path, key)
        for batch in batches:
            column = batch.column(name)
            if not _is_text(column.type):
                raise CorpusError(f"corpus {path}: column {name!r} holds {column.type}, not text; set field to another")
            yield from (value for value in column.to_pylist() if value is not None)
    except pyarrow.ArrowException as error:
        said = str(error).splitlines()[0]
        raise CorpusError(f"corpus {path}: a damaged {ending_of(path)} file ({said}); write it again") from error


def saved_dataset(folder: Path, key: str | None) -> Iterator[str]:
    """Yields column `key` of a data set that `datasets` saved with `save_to_disk`, row by row."""
    if (folder / SPLITS).is_file():
        splits = sorted(part.name for part in folder.iterdir() if (part / STATE).is_file())
        raise CorpusError(f"corpus {folder}: holds the splits {', '.join(splits)}; give one: {folder / splits[0]}")
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        files = [folder / str(one["filename"]) for one in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"corpus {folder / STATE}: not as `datasets` writes it; save the data set again") from error
    if state.get("_indices_data_files"):
        raise CorpusError(f"corpus {folder}: its rows were chosen by indices; save its flatten_indices() instead")
    for file in files:
        if file.parent != folder:
            raise CorpusError(f"corpus {folder / STATE}: names {file}, which is not in the folder")
        yield from columnar(file, key)


def _arrow(path: Path, key: str | None) -> tuple[Iterator[Any], str]:
    """The batches of either of Arrow's forms, the stream that `datasets` writes, and the file."""
    pyarrow = _pyarrow(path)
    source = pyarrow.memory_map(str(path))
    try:
        stream = pyarrow.ipc.open_stream(source)
        return iter(stream), _column(path, key, stream.schema.names)
    except pyarrow.ArrowInvalid:
        source.seek(0)
        file = pyarrow.ipc.open_file(source)
        batches = (file.get_batch(number) for number in range(file.num_record_batches))
        return batches, _column(path, key, file.schema.names)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    inner = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner))


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise CorpusError(f"corpus {path}: such files need pyarrow: pip install 'textgen-tuner[parquet]'") from error
    return pyarrow


def _column(path: Path, key: str | None, columns: list[str]) -> str:
    named = ", ".join(map(repr, columns[:20])) + (", ..." if len(columns) > 20 else "")
    if key is None:
        raise CorpusError(f"corpus {path}: a table needs field; set it to the column that holds the text: {named}")
    if key not in columns:
        raise CorpusError(f"corpus {path}: no column {key!r}; set field to one of these: {named}")
    return key
