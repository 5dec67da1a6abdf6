"""Byte, character, word and byte-pair vocabularies, each lossless: decode(encode(text)) == text."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from heapq import nsmallest
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import tokenizers
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from models.errors import ConfigError, RunError
from models.files import require_plain

Ids: TypeAlias = npt.NDArray[np.int32]
CodePoints: TypeAlias = npt.NDArray[np.uint32]

HALVES = 16
"""Entries for half bytes. They spell what 256 entries would, and a small model is mostly its output layer."""

LONG = 1_000_000
"""Characters of a line above which it is cut."""


LARGEST = 2**28
"""Bytes of the largest file of a vocabulary; one of a million entries has a third of that."""

_PLAIN = ("normalizer", "post_processor", "truncation", "padding", "added_tokens")
"""What byte pairs of ours do not have. A file from elsewhere may hold patterns there that take for ever, or texts that
grow without end."""


class Tokenizer(BaseModel, ABC):
    """A vocabulary: text to ids and back. Its last id, `end_of_text`, separates documents and is no text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: str
    format: Literal[1] = 1

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """Number of ids, `end_of_text` included."""

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """Returns the ids of `text` (N,), never `end_of_text`; a lone surrogate is a UnicodeError."""

    def encode_documents(self, documents: list[str]) -> Ids:
        """Returns the ids of several documents (N,), with `end_of_text` between them."""
        end = np.array([self.end_of_text], np.int32)
        pieces = chain.from_iterable((end, self.encode(document)) for document in documents)
        return np.concatenate(list(pieces)[1:])

    @abstractmethod
    def decode_bytes(self, ids: npt.ArrayLike) -> bytes:
        """Returns the bytes that `ids` (N,) stand for; the first few ids give the first few bytes."""

    @property
    def end_of_text(self) -> int:
        """The id that separates documents."""
        return self.vocabulary_size - 1

    @property
    @abstractmethod
    def token_bytes(self) -> npt.NDArray[np.float64]:
        """The bytes that each id stands for (V,), so that those of a part of a text can be counted."""

    def decode(self, ids: npt.ArrayLike) -> str:
        """Returns the text of `ids`; what is not UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")


class Byte(Tokenizer):
    """One id for each byte of UTF-8."""

    kind: Literal["byte"] = "byte"

    @property
    def vocabulary_size(self) -> int:
        return 256 + 1

    def encode(self, text: str) -> Ids:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    @property
    def token_bytes(self) -> npt.NDArray[np.float64]:
        return np.append(np.ones(256), 0)

    def decode_bytes(self, ids: npt.ArrayLike) -> bytes:
        tokens = np.asarray(ids)
        return tokens[tokens < 256].astype(np.uint8).tobytes()


class Spelled(Tokenizer):
    """Learned characters; any other is spelled as its UTF-8 bytes, each byte in two half bytes."""

    characters: str

    @property
    def vocabulary_size(self) -> int:
        return len(self._bytes)

    def encode(self, text: str) -> Ids:
        codes = _code_points(text)
        ids = self._id_by_code_point[codes]
        return ids if np.all(ids >= 0) else self._spell(codes, ids)

    def decode_bytes(self, ids: npt.ArrayLike) -> bytes:
        first = self._first_half
        runs = groupby(np.asarray(ids).tolist(), lambda token: 0 <= token - first < HALVES)
        return b"".join(self._join_halves(run) if halves else self._join(run) for halves, run in runs)

    @property
    def token_bytes(self) -> npt.NDArray[np.float64]:
        lengths = np.array(list(map(len, self._bytes)), np.float64)
        lengths[self._first_half : -1] = 0.5
        return lengths

    @property
    def _entries(self) -> list[str]:
        return list(self.characters)

    @cached_property
    def _bytes(self) -> list[bytes]:
        return [entry.encode() for entry in self._entries] + (HALVES + 1) * [b""]

    @property
    def _first_half(self) -> int:
        return len(self._bytes) - HALVES - 1

    @cached_property
    def _id_by_code_point(self) -> Ids:
        ids = np.full(0x110000, -1, np.int32)
        ids[_code_points(self.characters)] = np.arange(len(self.characters))
        return ids

    def _spell(self, codes: CodePoints, ids: Ids) -> Ids:
        """Puts half bytes, the high one first, where a character has no id (-1)."""
        unknown = np.frombuffer(codes[ids < 0].tobytes().decode("utf-32-le").encode(), np.uint8)
        halves = np.column_stack([unknown >> 4, unknown & 15]).ravel()
        spelled = np.repeat(ids, np.where(ids < 0, 2 * _utf8_lengths(codes), 1))
        spelled[spelled < 0] = self._first_half + halves.astype(np.int32)
        return spelled

    def _join_halves(self, halves: Iterator[int]) -> bytes:
        """A half without its other half gives nothing, for a model may stop between the two."""
        first = self._first_half
        pairs = zip(halves, halves, strict=False)
        return bytes((high - first) << 4 | (low - first) for high, low in pairs)

    def _join(self, tokens: Iterable[int]) -> bytes:
        return b"".join(map(self._bytes.__getitem__, tokens))


class Character(Spelled):
    """One id for each distinct character of the text it was learned from."""

    kind: Literal["character"] = "character"


class Word(Spelled):
    """One id for each frequent piece of text; other pieces, any seen only once too, are spelled by characters."""

    kind: Literal["word"] = "word"
    words: tuple[str, ...]

    def encode(self, text: str) -> Ids:
        encode_piece = cache(self._encode_piece)  # text repeats itself, and a piece costs more than a look-up
        return np.fromiter(chain.from_iterable(map(encode_piece, _pieces(text))), np.int32)

    @property
    def _entries(self) -> list[str]:
        return [*self.characters, *self.words]

    @cached_property
    def _id_by_word(self) -> dict[str, int]:
        return {word: token for token, word in enumerate(self.words, len(self.characters))}

    def _encode_piece(self, piece: str) -> list[int]:
        token = self._id_by_word.get(piece)
        return super().encode(piece).tolist() if token is None else [token]


class BytePair(Tokenizer):
    """Byte-level byte pairs of the `tokenizers` library, whose own JSON is in `tokenizer`."""

    kind: Literal["byte-pair"] = "byte-pair"
    tokenizer: dict[str, Any]

    @property
    def vocabulary_size(self) -> int:
        return len(self._bytes)

    def encode(self, text: str) -> Ids:
        text.encode()  # refuses a lone surrogate as the others do
        encodings = map(self._library.encode, blocks(text))
        return np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32)

    def encode_documents(self, documents: list[str]) -> Ids:
        """Does the same on all cores that the process may use."""
        pieces = [list(blocks(document)) for document in documents]
        encodings = iter(self._library.encode_batch_fast(list(chain.from_iterable(pieces))))
        end = [self.end_of_text]
        ids = (chain([end], (found.ids for found in islice(encodings, len(one)))) for one in pieces)
        flat = chain.from_iterable(chain.from_iterable(ids))
        return np.fromiter(islice(flat, 1, None), np.int32)

    def decode_bytes(self, ids: npt.ArrayLike) -> bytes:
        return b"".join(map(self._bytes.__getitem__, np.asarray(ids).tolist()))

    @property
    def token_bytes(self) -> npt.NDArray[np.float64]:
        return np.array(list(map(len, self._bytes)), np.float64)

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(json.dumps(self.tokenizer))

    @cached_property
    def _bytes(self) -> list[bytes]:
        byte_by_symbol = _byte_by_symbol()
        id_by_entry = self._library.get_vocab()
        entries = sorted(id_by_entry, key=id_by_entry.__getitem__)
        return [bytes(map(byte_by_symbol.__getitem__, entry)) for entry in entries] + [b""]

    @model_validator(mode="after")
    def _spells_every_byte(self) -> Self:
        splitting = self.tokenizer.get("pre_tokenizer")
        if (
            any(map(self.tokenizer.get, _PLAIN))
            or not isinstance(splitting, dict)
            or splitting.get("type") != "ByteLevel"
        ):
            raise ValueError("does more than byte pairs")
        try:
            if sorted(self._library.get_vocab().values()) != list(range(self._library.get_vocab_size())):
                raise ValueError("its ids are not 0, 1, 2, ...")
            complete = {bytes([byte]) for byte in range(256)} <= set(self._bytes)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"is no byte-level tokenizer: {error}") from error
        if not complete:
            raise ValueError("does not spell every byte")
        return self


def learn(kind: str, text: str | Iterable[str], vocabulary_size: int) -> Tokenizer:
    """Returns a tokenizer learned from `text`, one document or several; equal texts give equal tokenizers.

    `vocabulary_size` limits word and byte-pair and counts every id, but never cuts what keeps them lossless:
    the characters of the text and 17 ids more for word, 257 ids for byte-pair. ConfigError for another `kind`.
    """
    documents = [text] if isinstance(text, str) else text
    match kind:
        case "byte":
            return Byte()
        case "character":
            return Character(characters="".join(sorted(_distinct(documents))))
        case "word":
            return _learn_words(documents, vocabulary_size)
        case "byte-pair":
            return _learn_pairs(documents, vocabulary_size)
    raise ConfigError(f"tokenizer: {kind!r} is none of byte, character, word, byte-pair")


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Writes `tokenizer` as JSON; OSError if it cannot."""
    path.write_text(tokenizer.model_dump_json(indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Tokenizer:
    """Reads what `save` wrote; RunError if `path` is missing, damaged or of another format."""
    kinds = Annotated[Byte | Character | Word | BytePair, Field(discriminator="kind")]
    try:
        require_plain(path, LARGEST)
        return TypeAdapter[Tokenizer](kinds).validate_json(path.read_bytes())
    except OSError as error:
        problem = error.strerror or str(error)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
    raise RunError(f"{path}: is no tokenizer ({problem}); restore the file or train again")


def _distinct(documents: Iterable[str]) -> set[str]:
    characters: set[str] = set()
    for document in documents:
        characters.update(document)
    return characters


def _learn_words(documents: Iterable[str], vocabulary_size: int) -> Word:
    counts = Counter(chain.from_iterable(map(_pieces, documents)))
    characters = "".join(sorted(set().union(*counts)))
    repeated = (piece for piece, count in counts.items() if count > 1 and len(piece) > 1)  # the others teach spelling
    room = max(0, vocabulary_size - len(characters) - HALVES - 1)
    words = nsmallest(room, repeated, key=lambda piece: (-counts[piece], piece))
    return Word(characters=characters, words=tuple(words))


def _learn_pairs(documents: Iterable[str], vocabulary_size: int) -> BytePair:
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = byte_level(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary_size - 1, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    library.train_from_iterator(chain.from_iterable(map(blocks, documents)), trainer)
    return BytePair(tokenizer=json.loads(library.to_str()))


def _pieces(text: str) -> Iterator[str]:
    """Words and marks, each with the space before it, and other white space; together they are the text."""
    return map(re.Match.group, re.finditer(r" ?\w+| ?[^\w\s]+|\s+", text))


def blocks(text: str, characters: int = 10_000) -> Iterator[str]:
    """Cuts `text` at lines, which no word or byte pair spans: small calls are faster and need less memory.

    Lines of more than LONG characters are cut between words, where none spans the border either.
    """
    start = 0
    for line in _lines(text):
        if line - start >= characters:
            yield text[start:line]
            start = line
    yield text[start:]


def _lines(text: str) -> Iterator[int]:
    """Yields where lines begin that follow another one directly, and in long ones the words that do."""
    start = 0
    for line in chain((found.start() for found in re.finditer(r"(?<=\S\n)(?=\S)", text)), [len(text)]):
        if line - start > LONG:
            yield from (word.start() for word in re.compile(r"(?<=\S)(?= \S)").finditer(text, start, line))
        yield line
        start = line


def _code_points(text: str) -> CodePoints:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def _utf8_lengths(codes: CodePoints) -> npt.NDArray[np.int64]:
    return np.searchsorted([0x80, 0x800, 0x10000], codes, side="right") + 1


def _byte_by_symbol() -> dict[str, int]:
    """How the library writes bytes: the printable as in Latin-1, the others as U+0100 and onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    symbols = dict(zip(map(chr, printable), printable, strict=True))
    return symbols | {chr(code): byte for code, byte in enumerate(others, 256)}
