"""Every tokenizer: text comes back as it was, whatever the tokenizer was learned from."""

import codecs
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import ConfigError, RunError
from models.text.tokenizers import BytePair, learn, load, save

KINDS = ("byte", "character", "word", "byte-pair")
FOX = "The quick brown fox jumps over the lazy dog.\nThe dog, the naïve dog, sleeps.\n" * 3
STRANGE = "\ufeff\x00\r\n\u2028 naïve 世界 👩‍🚀 \U0010ffff  \t x"

every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@settings(max_examples=60, deadline=None)
@given(learned=st.text(max_size=60), text=st.text(max_size=60))
def test_any_text_comes_back(kind: str, learned: str, text: str) -> None:
    tokenizer = learn(kind, learned, 300)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert np.all((ids >= 0) & (ids < tokenizer.end_of_text))


@every_kind
@pytest.mark.parametrize("learned", ["", "a", FOX])
def test_strange_text_comes_back(kind: str, learned: str) -> None:
    tokenizer = learn(kind, learned, 300)
    assert tokenizer.decode(tokenizer.encode(STRANGE)) == STRANGE


@every_kind
def test_end_of_text_is_the_last_id_and_no_text(kind: str) -> None:
    tokenizer = learn(kind, FOX, 300)
    ids = tokenizer.encode(FOX)
    assert tokenizer.end_of_text == tokenizer.vocabulary_size - 1
    assert tokenizer.decode([*ids, tokenizer.end_of_text, *ids]) == FOX + FOX


@every_kind
@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.integers(0, 10_000), max_size=30))
def test_any_ids_can_be_streamed(kind: str, ids: list[int]) -> None:
    """What a model draws need not be text; shown bit by bit it still is what it is as a whole."""
    tokenizer = learn(kind, FOX, 300)
    drawn = [token % tokenizer.vocabulary_size for token in ids]
    prefixes = [tokenizer.decode_bytes(drawn[:end]) for end in range(len(drawn) + 1)]
    assert all(later.startswith(earlier) for earlier, later in pairwise(prefixes))
    incremental = codecs.getincrementaldecoder("utf-8")("replace")
    assert incremental.decode(prefixes[-1], final=True) == tokenizer.decode(drawn)


@every_kind
def test_bytes_that_are_no_text_show_as_replacement(kind: str) -> None:
    tokenizer = learn(kind, "abc", 300)
    accented = tokenizer.encode("é")
    assert tokenizer.decode(accented[: len(accented) // 2]) == "\ufffd"


@every_kind
def test_lone_surrogate_is_refused(kind: str) -> None:
    with pytest.raises(UnicodeError):
        learn(kind, "abc", 300).encode("a\ud800b")


@every_kind
def test_a_saved_tokenizer_comes_back(kind: str, tmp_path: Path) -> None:
    tokenizer = learn(kind, FOX + STRANGE, 300)
    save(tokenizer, tmp_path / "tokenizer.json")
    loaded = load(tmp_path / "tokenizer.json")
    assert loaded == tokenizer
    assert loaded.encode(FOX + STRANGE).tolist() == tokenizer.encode(FOX + STRANGE).tolist()
    facts = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert (facts["kind"], facts["format"]) == (kind, 1)


@every_kind
@pytest.mark.parametrize(
    "change",
    [{"kind": "syllable"}, {"format": 2}, {"characters": 5}, {"words": [1]}, {"tokenizer": {}}, {"extra": 1}],
    ids=str,
)
def test_a_damaged_file_is_refused(kind: str, change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    save(learn(kind, FOX, 300), path)
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(RunError, match=r"tokenizer\.json.*train again"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"kind": "byte-pair", "format": 1}'])
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_bytes(content)
    with pytest.raises(RunError, match=r"other\.json.*train again"):
        load(tmp_path / "other.json")


def test_a_byte_pair_file_that_cannot_spell_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    save(learn("byte-pair", "", 300), path)
    path.write_text(path.read_text(encoding="utf-8").replace('"A": ', '"AA": '), encoding="utf-8")
    with pytest.raises(RunError, match="every byte"):
        load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="No such file"):
        load(tmp_path / "tokenizer.json")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="'syllable' is none of byte"):
        learn("syllable", FOX, 300)


def test_a_character_tokenizer_has_the_characters_and_half_bytes() -> None:
    tokenizer = learn("character", "banana", 300)
    assert tokenizer.vocabulary_size == len("abn") + 16 + 1
    assert tokenizer.encode("ban").tolist() == [1, 0, 2]
    assert tokenizer.encode("A").tolist() == [3 + 4, 3 + 1]


def test_a_dangling_half_byte_is_nothing() -> None:
    tokenizer = learn("character", "banana", 300)
    assert tokenizer.decode([0, 7, 1]) == "ab"
    assert tokenizer.decode([0, 7, tokenizer.end_of_text, 4]) == "a"


def test_words_are_the_most_frequent_and_a_tie_goes_to_the_earlier() -> None:
    text = "a dog dog dog cat cat ant ant bee"
    spelling = len(set(text)) + 16 + 1
    tokenizer = learn("word", text, spelling + 2)
    assert tokenizer.vocabulary_size == spelling + 2
    assert [len(tokenizer.encode(word)) for word in (" dog", " ant", " cat")] == [1, 1, 4]


def test_a_word_seen_once_is_spelled() -> None:
    """Otherwise a vocabulary with room for all words would never be taught to spell the next text's."""
    tokenizer = learn("word", "a bee a bee a cat", 300)
    assert [len(tokenizer.encode(word)) for word in (" bee", " cat")] == [1, 4]


@pytest.mark.parametrize("kind", ["word", "byte-pair"])
def test_a_larger_vocabulary_takes_fewer_tokens(kind: str) -> None:
    text = " ".join(f"word{number % 600}" for number in range(2000))
    small, large = learn(kind, text, 300), learn(kind, text, 500)
    assert (small.vocabulary_size, large.vocabulary_size) == (300, 500)
    assert len(large.encode(text)) < len(small.encode(text))


@pytest.mark.parametrize("kind", ["word", "byte-pair"])
def test_nothing_is_learned_across_documents(kind: str) -> None:
    tokenizer = learn(kind, ["ab", "cd"] * 5, 300)
    assert [len(tokenizer.encode(text)) for text in ("ab", "cd", "bc")] == [1, 1, 2]


def test_long_texts_have_no_seams() -> None:
    """Byte pairs are encoded in blocks; the library, given the whole text, gives the same."""
    gaps = ["\n", "\n\n", "\n  ", " \n", "  ", "\r\n", "\n\t\n"]
    text = "".join(f"word{number % 17}!{gaps[number % 11 % len(gaps)]}" for number in range(20_000))
    tokenizer = learn("byte-pair", text, 400)
    assert isinstance(tokenizer, BytePair)
    whole = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.tokenizer))
    assert tokenizer.encode(text).tolist() == whole.encode(text).ids


def test_learning_is_the_same_in_another_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from models.text.tokenizers import learn, save\n"
        "text = Path(sys.argv[1]).read_text(encoding='utf-8')\n"
        "for kind in ('word', 'byte-pair'): save(learn(kind, text, 350), Path(sys.argv[2]) / kind)\n"
    )
    text = " ".join(f"{first}{second}" for first in "abcdefgh" for second in "stuvwxyz" for _ in range(2))
    (tmp_path / "text").write_text(text, encoding="utf-8")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        subprocess.run([sys.executable, "-c", program, tmp_path / "text", tmp_path / folder], check=True)
    for kind in ("word", "byte-pair"):
        assert (tmp_path / "one" / kind).read_bytes() == (tmp_path / "two" / kind).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_tokens_are_those_of_the_text(kind: str) -> None:
    tokenizer = learn(kind, FOX, 400)
    text = "The naïve 世界 fox 👩‍🚀\r\n"
    assert len(tokenizer.token_bytes) == tokenizer.vocabulary_size
    assert tokenizer.token_bytes[tokenizer.encode(text)].sum() == len(text.encode())
    assert tokenizer.token_bytes[tokenizer.end_of_text] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
        {"pre_tokenizer": None},
        {"added_tokens": [{"id": 9_999_999, "content": "<x>", "special": True}]},
        {"truncation": {"max_length": 1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_byte_pairs_from_elsewhere_do_nothing_but_pair_bytes(tmp_path: Path, change: dict[str, Any]) -> None:
    learned = learn("byte-pair", "hello world " * 50, 300).model_dump()
    learned["tokenizer"] |= change
    (tmp_path / "tokenizer.json").write_text(json.dumps(learned))
    with pytest.raises(RunError, match="does more than byte pairs"):
        load(tmp_path / "tokenizer.json")


def test_byte_pairs_whose_ids_have_gaps_are_refused(tmp_path: Path) -> None:
    learned = learn("byte-pair", "hello world " * 50, 300).model_dump()
    vocabulary = learned["tokenizer"]["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.__getitem__)] = 2**31
    (tmp_path / "tokenizer.json").write_text(json.dumps(learned))
    with pytest.raises(RunError, match="its ids are not 0, 1, 2"):
        load(tmp_path / "tokenizer.json")
