"""Corpora: reads, splits and encodes text into token arrays, with a cache keyed by content."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import tempfile
import time
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import platformdirs

from models import config
from models.errors import ChangedCorpusError, CorpusError, RunError
from models.files import ABANDONED_SECONDS
from models.text import known_texts, large, streams, tokenizers
from models.text.documents import refuse_key
from models.text.known_texts import Known
from models.text.mixture import mixed, sampled
from models.text.reading import Noted, matching, may_have_keys, pieces_of, sections_of
from models.text.shared_work import Meter, Report, alone
from models.text.streams import BREAK, SPLITS, Stream, gathered
from models.text.tokenizers import Tokenizer
from models.wording import listed

logger = logging.getLogger(__name__)

FORMAT = 1
BLOCK = 2_000_000
"""Characters that are encoded at a time, so that it can be told how far that is."""

Tokens: TypeAlias = npt.NDArray[np.integer[Any]]
Arrays: TypeAlias = dict[str, Tokens]


@dataclass(frozen=True, eq=False)
class EncodedCorpus:
    """A corpus ready for training; every dictionary has the names of SPLITS as keys.

    `train`, `validation` and `test` are read-only, one-dimensional and of the smallest of uint8, uint16 and int32;
    `test` may be empty. `end_of_text` separates the documents of a folder or .jsonl file, and counts neither in
    `bytes` (of UTF-8) nor in `characters`.

    Both entropies, in bits per byte, are None unless the source is known. `entropy` is the source's own, over
    endless text. `split_entropy` is what a model that knows the source would score on each split that has text: no
    honest model scores below it by more than luck.
    """

    name: str
    fingerprint: str
    tokenizer: Tokenizer
    train: Tokens
    validation: Tokens
    test: Tokens
    bytes: dict[str, int]
    characters: dict[str, int]
    entropy: float | None
    split_entropy: dict[str, float] | None
    files: str = ""
    """Which files of a folder were read and which were not, as a message."""


@dataclass(frozen=True, eq=False)
class Source:
    """A text, its documents joined by BREAK; if its source is known, also that one's bits for each character."""

    name: str
    text: str
    entropy: float | None = None
    surprisal: npt.NDArray[np.float64] | None = None
    files: str = ""
    places: dict[str, slice] | None = None
    """Where each split lies, if they are files of their own."""


def load_corpus(
    source: config.Corpus,
    tokenizer_kind: str,
    vocabulary_size: int,
    cache: Path | None = None,
    on_progress: Report = lambda text: None,
) -> EncodedCorpus:
    """Reads, splits and encodes a corpus, or maps what an earlier call left in the folder `cache`.

    The tokenizer is learned from the train split alone. Without `cache` the user's own cache folder is used; if it
    cannot be written, the arrays stay in memory. Of several processes that want the same, one encodes while the
    others wait; `on_progress` gets a line about the waiting and about how far a long encoding is, as the log does.

    CorpusError if the text is missing, unreadable, not the one that `source.fingerprint` asks for
    (ChangedCorpusError), or too short to split.
    """
    read = _read_or_measure(source, cache or _users_cache())
    report = _reporter(read.name, on_progress)
    if isinstance(read, Stream):
        _check_fingerprint(source, read.name, read.fingerprint)
        return _load_large(read, source, tokenizer_kind, vocabulary_size, cache or _users_cache(), report)
    parts = _parts(read, source.split)
    fingerprint = _fingerprint(read.text)
    _check_fingerprint(source, read.name, fingerprint)
    facts = _facts(fingerprint, _named(read.places, source.split), tokenizer_kind, vocabulary_size)
    tokenizer, arrays = _encode_cached(parts, facts, cache or _users_cache(), report)
    logger.debug("corpus %s: %d %s tokens to train on", read.name, len(arrays["train"]), tokenizer_kind)
    return EncodedCorpus(
        name=read.name,
        fingerprint=fingerprint,
        tokenizer=tokenizer,
        **arrays,
        bytes={split: bytes_of(part) for split, part in parts.items()},
        characters={split: characters_of(part) for split, part in parts.items()},
        entropy=read.entropy,
        split_entropy=_split_entropy(read, source.split),
        files=read.files,
    )


def _load_large(
    stream: Stream, source: config.Corpus, kind: str, vocabulary_size: int, cache: Path, report: Report
) -> EncodedCorpus:
    own = stream.places if _held_out(source) else None
    facts = _facts(stream.fingerprint, _named(own, source.split), kind, vocabulary_size)
    if sample := large.sample_of(kind, stream):
        facts["sample"] = sample
    tokenizer, arrays, sizes = _encode_large(stream, facts, cache, report)
    return EncodedCorpus(
        name=stream.name,
        fingerprint=stream.fingerprint,
        tokenizer=tokenizer,
        **arrays,
        bytes=sizes["bytes"],
        characters=sizes["characters"],
        entropy=None,
        split_entropy=None,
        files=stream.files,
    )


def _named(own: dict[str, slice] | None, split: tuple[float, float, float]) -> Sequence[Any]:
    """How a split is told from others: by its places, if some are files of their own."""
    return [[place.start, place.stop] for place in own.values()] if own else split


def _reporter(name: str, on_progress: Report) -> Report:
    def report(text: str) -> None:
        line = f"corpus {name}: {text}"
        logger.info("%s", line)
        on_progress(line)

    return report


def parts_of(source: config.Corpus) -> tuple[Source, dict[str, str]]:
    """Returns a text and its splits, documents joined by BREAK. Raises CorpusError as `load_corpus` does."""
    read = _read(source)
    return read, _parts(read, source.split)


def _parts(read: Source, split: tuple[float, float, float]) -> dict[str, str]:
    places = read.places or _places(read, split)
    return {name: read.text[place] for name, place in places.items()}


def _users_cache() -> Path:
    """The user's own cache folder; of a user without a home, a place where nothing can be kept."""
    try:
        return platformdirs.user_cache_path("textgen-tuner") / "corpora"
    except RuntimeError:
        return Path(os.devnull) / "corpora"


def cached_bytes() -> int:
    """Returns what the encoded texts of this user take on disk."""
    files = (path for path in _users_cache().glob("**/*") if path.is_file())
    return sum(path.stat().st_size for path in files)


def require_room(corpus: EncodedCorpus, batch_size: int, sequence_length: int) -> None:
    """Raises CorpusError unless `batch_size` streams of `sequence_length` tokens, and their targets, fit in."""
    tokens, needed = len(corpus.train), batch_size * (sequence_length + 1)
    if tokens < needed:
        raise CorpusError(
            f"corpus {corpus.name}: its train split has {tokens} tokens, and batch_size {batch_size} times "
            f"(sequence_length {sequence_length} + 1) needs {needed}; lower one of them or add text"
        )
    shortest = {"validation": max(2, sequence_length), "test": 2 if len(corpus.test) else 0}
    for split, needed in shortest.items():
        if len(getattr(corpus, split)) < needed:
            raise CorpusError(
                f"corpus {corpus.name}: its {split} split has {len(getattr(corpus, split))} tokens, and "
                f"sequence_length {sequence_length} needs {needed}; lower it, enlarge that part in corpus.split, "
                "or add text"
            )


# Reading: a config.Corpus to a text.


def _read(source: config.Corpus) -> Source:
    if source.weights is not None:
        return _mixed(source, source.weights)
    if source.path is not None:
        read = _read_paths(source.path, source.field)
        own = {name: _read_paths(paths, source.field) for name, paths in _held_out(source).items()}
        return _joined(read, own, source.split) if own else read
    if source.field is not None:
        refuse_key(f"corpus {source.builtin}")
    return _markov() if source.builtin == "markov" else _python_docs()


def _held_out(source: config.Corpus) -> dict[str, str | list[str]]:
    """The texts of splits that have files of their own."""
    return {name: paths for name, paths in (("validation", source.validation), ("test", source.test)) if paths}


def _joined(read: Source, own: dict[str, Source], split: tuple[float, float, float]) -> Source:
    """One text of what is trained on and held-out texts, and where each of them lies."""
    if "validation" not in own:
        _places(read, _without_test(split))  # raises CorpusError if there is too little
    places = _own_places(len(read.text), {name: len(one.text) for name, one in own.items()}, split)
    return replace(read, text=BREAK.join([read.text, *(one.text for one in own.values())]), places=places)


def _mixed(source: config.Corpus, weights: list[float]) -> Source:
    """A mixture: each split is one of the same splits of its texts, so nothing that is held out is trained on."""
    paths = list(source.path or [])
    keyed = {path for path in paths if any(map(may_have_keys, matching(path)))}
    if source.field is not None and not keyed:
        refuse_key(f"corpus {paths[0]}")
    read = [_read_paths(path, source.field if path in keyed else None) for path in paths]
    own = {name: _read_paths(given, source.field).text for name, given in _held_out(source).items()}
    split = source.split if not own else (1.0, 0.0, 0.0) if "validation" in own else _without_test(source.split)
    places = [_places(one, split) for one in read]
    parts = {name: [one.text[place[name]] for one, place in zip(read, places, strict=True)] for name in SPLITS}
    texts = {name: mixed(of, weights) if name == "train" else sampled(of, weights) for name, of in parts.items()} | own
    name, files = listed([one.name for one in read], 3), f"a mixture of {len(read)} texts"
    train, *held_out = (Source(name, texts[split], files=files) for split in SPLITS)
    return _joined(train, dict(zip(SPLITS[1:], held_out, strict=True)), source.split)


def _own_places(length: int, own: dict[str, int], split: tuple[float, float, float]) -> dict[str, slice]:
    """Returns where the splits lie in a text with a break and a held-out text after it, or two of these."""
    places = {"train": slice(0, length)} if "validation" in own else _cut(length, _without_test(split))
    for name, more in own.items():
        places[name] = slice(length + 1, length + 1 + more)
        length += 1 + more
    return {name: places.get(name, slice(length, length)) for name in SPLITS}


def _without_test(split: tuple[float, float, float]) -> tuple[float, float, float]:
    both = split[0] + split[1]
    return split[0] / both, split[1] / both, 0.0


def _read_or_measure(source: config.Corpus, cache: Path) -> Source | Stream:
    """Reads a text once and keeps it if it is not LARGE; one that is, and was read before, is not read at all."""
    if source.path is None or source.weights is not None:
        return _read(source)
    key = known_texts.signature(source)
    known = known_texts.recall(cache, key)
    if known is not None:
        return _stream(source, known)
    kept: dict[str, list[str]] = {}
    lengths: Counter[str] = Counter()
    noted, digest = Noted(), None
    for name, piece in gathered(sections_of(source, noted)):
        lengths[name] += len(piece)
        if digest is None:
            kept.setdefault(name, []).append(piece)
            if lengths.total() > streams.LARGE:
                digest = hashlib.sha256()
                for earlier in chain.from_iterable(kept.values()):
                    digest.update(streams.encoded(earlier))
                kept.clear()
        else:
            digest.update(streams.encoded(piece))
    if digest is None:
        texts = {name: Source(noted.name, "".join(pieces), files=noted.files) for name, pieces in kept.items()}
        own = {name: texts[name] for name in _held_out(source)}
        return _joined(texts["path"], own, source.split) if own else texts["path"]
    known = Known(noted.name, noted.files, f"sha256:{digest.hexdigest()}", dict(lengths))
    if known_texts.signature(source) == key:  # else it changed while it was read
        known_texts.remember(cache, key, known)
    return _stream(source, known)


def _stream(source: config.Corpus, known: Known) -> Stream:
    own = {name: known.lengths[name] for name in _held_out(source)}
    length = known.lengths["path"]
    places = _own_places(length, own, source.split) if own else _cut(length, source.split)

    def pieces() -> Iterator[str]:
        return (piece for _, piece in gathered(sections_of(source, Noted())))

    return Stream(known.name, known.fingerprint, places, pieces, known.files)


def _read_paths(paths: str | list[str], field: str | None) -> Source:
    noted = Noted()
    text = "".join(pieces_of(paths, field, noted))
    return Source(noted.name, text, files=noted.files)


def _python_docs() -> Source:
    """Python's own help on its language, about 0.5 MB; it differs between versions of Python."""
    from pydoc_data.topics import topics

    return Source("python-docs", "\n".join(topics[topic] for topic in sorted(topics)))


def _markov(letters: int = 12, length: int = 400_000) -> Source:
    """A random source of letters, each drawn given the two before it, with an entropy of 2.1 bits.

    Given one letter it is 3.4 bits, given none 3.6: a model that does not look back twice is far from the best.
    """
    generator = random.Random(0)  # its random() is the same in every version of Python
    probabilities = _transitions(generator, letters)
    drawn = _walk(generator, probabilities, length)
    surprisal = -np.log2(probabilities[drawn[:-2], drawn[1:-1], drawn[2:]])
    return Source(
        name="markov",
        text=(drawn + ord("a")).astype(np.uint8).tobytes().decode(),
        entropy=_entropy_rate(probabilities),
        surprisal=np.concatenate([[0.0, 0.0], surprisal]),  # the first two letters are given
    )


def _transitions(generator: random.Random, letters: int) -> npt.NDArray[np.float64]:
    """Returns the probability of a letter given the two before it (letters, letters, letters), few of them large."""
    weights = np.array([generator.random() ** 6 + 0.002 for _ in range(letters**3)])
    rows = weights.reshape(letters, letters, letters)
    return np.asarray(rows / rows.sum(axis=-1, keepdims=True))


def _walk(generator: random.Random, probabilities: npt.NDArray[np.float64], length: int) -> npt.NDArray[np.int64]:
    limits = [[list(accumulate(row[:-1])) for row in rows] for rows in probabilities.tolist()]
    drawn = [0, 0]
    while len(drawn) < length:
        drawn.append(bisect(limits[drawn[-2]][drawn[-1]], generator.random()))
    return np.array(drawn)


def _entropy_rate(probabilities: npt.NDArray[np.float64]) -> float:
    """Returns the bits for each letter of an endless walk: those of every pair, weighed by how often it occurs."""
    pairs = np.full(probabilities.shape[:2], 1 / probabilities[..., 0].size)
    for _ in range(1000):  # far more steps than the walk needs to forget where it began
        pairs = np.einsum("ab,abc->bc", pairs, probabilities)
    return float(-np.einsum("ab,abc,abc->", pairs, probabilities, np.log2(probabilities)))


# Checking and splitting.


def _fingerprint(text: str) -> str:
    """Returns the SHA-256 of the text with its breaks; for one UTF-8 file without a mark, that of the file."""
    return "sha256:" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _check_fingerprint(source: config.Corpus, name: str, fingerprint: str) -> None:
    if source.fingerprint not in (None, fingerprint):
        remedy = "use the version of Python it came with" if source.builtin == "python-docs" else "restore that text"
        raise ChangedCorpusError(
            f"corpus {name}: the text is {fingerprint}, and fingerprint asks for {source.fingerprint}; {remedy}, "
            "or remove fingerprint"
        )


def _places(source: Source, split: tuple[float, float, float]) -> dict[str, slice]:
    """Returns where each split lies in the text; a break counts as a character of the split it falls in."""
    places = _cut(len(source.text), split)
    for part, (name, place) in zip(split, places.items(), strict=True):
        if part > 0 and not characters_of(source.text[place]):
            raise CorpusError(
                f"corpus {source.name}: a {name} split of {part:g} leaves none of its {characters_of(source.text)} "
                "characters; add text or enlarge that part in corpus.split"
            )
    return places


def _cut(length: int, split: tuple[float, float, float]) -> dict[str, slice]:
    middle, last = round(length * split[0]), round(length * (split[0] + split[1]))
    return dict(zip(SPLITS, (slice(0, middle), slice(middle, last), slice(last, length)), strict=True))


def characters_of(part: str) -> int:
    """Returns the characters of a text without the breaks between its documents."""
    return len(part) - part.count(BREAK)


def bytes_of(part: str) -> int:
    """Returns the bytes of a text in UTF-8 without the breaks between its documents."""
    return len(part.replace(BREAK, "").encode())


def _split_entropy(source: Source, split: tuple[float, float, float]) -> dict[str, float] | None:
    if source.surprisal is None:
        return None
    bits = {name: source.surprisal[place] for name, place in _places(source, split).items()}
    return {split: float(each.mean()) for split, each in bits.items() if each.size}


# Encoding, and the cache: one folder for each text, split and tokenizer, complete or not there.


def _facts(fingerprint: str, split: Sequence[Any], kind: str, vocabulary_size: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "split": split,
        "tokenizer": kind,
        "vocabulary_size": vocabulary_size,
    }


def _key(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _encode_cached(
    parts: dict[str, str], facts: dict[str, Any], cache: Path, report: Report
) -> tuple[Tokenizer, Arrays]:
    folder = cache / _key(facts)
    return _opened(folder, report, lambda: _make(folder, parts, facts, report))


def _opened(folder: Path, report: Report, make: Callable[[], tuple[Tokenizer, Arrays]]) -> tuple[Tokenizer, Arrays]:
    """Opens an encoding, or makes it; of several processes at once, one does."""
    found = _open(folder)
    if found is None:
        with alone(folder.with_name(f"{folder.name}.lock"), report, "encodes the same text"):
            found = _open(folder) or make()
    return found


def _make(folder: Path, parts: dict[str, str], facts: dict[str, Any], report: Report) -> tuple[Tokenizer, Arrays]:
    _remove_drafts(folder)
    with Meter(report).running() as meter:
        made = _encode(parts, facts["tokenizer"], facts["vocabulary_size"], meter)
    _store(folder, facts, *made)
    return _open(folder) or made


def _encode_large(
    stream: Stream, facts: dict[str, Any], cache: Path, report: Report
) -> tuple[Tokenizer, Arrays, dict[str, dict[str, int]]]:
    """Does the same for a large text, whose sizes are kept with it."""
    folder = _writable(cache) / _key(facts)
    found = _opened(folder, report, lambda: _make_large(folder, stream, facts, report))
    sizes = json.loads((folder / "facts.json").read_text(encoding="utf-8"))["sizes"]
    if folder.parent != cache:
        shutil.rmtree(folder.parent)  # what is mapped stays until it is no longer needed
    return *found, sizes


def _writable(cache: Path) -> Path:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK):
            return cache
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="textgen-tuner-"))


def _make_large(folder: Path, stream: Stream, facts: dict[str, Any], report: Report) -> tuple[Tokenizer, Arrays]:
    parts, aside = folder.with_name(f"{folder.name}.parts"), folder.with_name(f"{folder.name}.{uuid4().hex}")
    _remove_drafts(folder)
    try:
        with Meter(report).running() as meter:
            tokenizer, made = large.encode(stream, facts["tokenizer"], facts["vocabulary_size"], parts, meter)
        aside.mkdir()
        large.join(parts, made, tokenizer, aside)
        tokenizers.save(tokenizer, aside / "tokenizer.json")
        _write_facts(aside, {**facts, "sizes": large.sizes_of(made)})
        aside.rename(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CorpusError(
            f"corpus {stream.name}: cannot be encoded in {folder.parent} ({error.strerror}); free four times the size "
            "of the text there, or set XDG_CACHE_HOME to a folder that has it"
        ) from error
    shutil.rmtree(parts, ignore_errors=True)
    _remove_abandoned(folder.parent)
    return _load(folder)


def _encode(parts: dict[str, str], kind: str, vocabulary_size: int, meter: Meter) -> tuple[Tokenizer, Arrays]:
    meter.begin(f"learning the {kind} vocabulary", len(parts["train"]))
    tokenizer = tokenizers.learn(kind, meter.passing(_blocks(parts["train"].split(BREAK))), vocabulary_size)
    meter.begin(f"encoding in {kind} tokens", sum(map(len, parts.values())))
    return tokenizer, {split: _encode_part(tokenizer, part, meter) for split, part in parts.items()}


def _blocks(documents: Iterable[str]) -> Iterator[str]:
    return chain.from_iterable(tokenizers.blocks(document, BLOCK) for document in documents)


def _encode_part(tokenizer: Tokenizer, part: str, meter: Meter) -> Tokens:
    small = large.dtype_of(tokenizer)
    end = np.array([tokenizer.end_of_text], small)
    pieces = []
    for document in part.split(BREAK):
        pieces.append(end)
        pieces += [tokenizer.encode(block).astype(small) for block in meter.passing(_blocks([document]))]
    tokens = np.concatenate(pieces)[1:]
    tokens.flags.writeable = False
    return tokens


def _open(folder: Path) -> tuple[Tokenizer, Arrays] | None:
    """Maps what `_store` left; None if it is not there, or damaged and therefore removed."""
    try:
        return _load(folder) if folder.is_dir() else None
    except (OSError, ValueError, KeyError, TypeError, RunError):
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _load(folder: Path) -> tuple[Tokenizer, Arrays]:
    checksums = json.loads((folder / "facts.json").read_text(encoding="utf-8"))["checksums"]
    if checksums != _checksums(folder):
        raise ValueError(f"{folder} is not as it was written")
    arrays = {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in SPLITS}
    return tokenizers.load(folder / "tokenizer.json"), arrays


def _store(folder: Path, facts: dict[str, Any], tokenizer: Tokenizer, arrays: Arrays) -> None:
    """Writes a folder aside and renames it, so that no other process sees half of one."""
    aside = folder.with_name(f"{folder.name}.{uuid4().hex}")
    try:
        aside.mkdir(parents=True)
        tokenizers.save(tokenizer, aside / "tokenizer.json")
        for split, tokens in arrays.items():
            np.save(aside / f"{split}.npy", tokens)
        _write_facts(aside, facts)
        aside.rename(folder)
    except OSError:  # another process was faster, or the disk is full or read-only: the caller has the arrays
        shutil.rmtree(aside, ignore_errors=True)
    _remove_abandoned(folder.parent)


def _remove_drafts(folder: Path) -> None:
    for draft in folder.parent.glob(f"{folder.name}.{'[0-9a-f]' * 32}"):  # of processes that were killed
        shutil.rmtree(draft, ignore_errors=True)


def _remove_abandoned(cache: Path) -> None:
    """Removes what killed processes left, and parts of encodings that nobody has gone on with."""
    name = "[0-9a-f]" * 32
    for left in chain(cache.glob(f"{name}.{name}"), cache.glob(f"{name}.parts")):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _write_facts(folder: Path, facts: dict[str, Any]) -> None:
    text = json.dumps({**facts, "checksums": _checksums(folder)}, indent=1)
    (folder / "facts.json").write_text(text + "\n", encoding="utf-8")


def _checksums(folder: Path) -> dict[str, str]:
    names = ["tokenizer.json", *(f"{split}.npy" for split in SPLITS)]
    return {name: large.checksum(folder / name) for name in names}
