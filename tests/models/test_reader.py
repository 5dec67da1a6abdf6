"""Files people write: numbers as YAML 1.2 has them, and every problem at once, with its line and its remedy."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.config import Config, Recipe
from models.errors import ConfigError
from models.reader import dump, nearest, parse, plain, read_text, validate

GOOD = "corpus: {builtin: markov}\ntrial: {tokens: 1_000}\n"


def values(text: str) -> Any:
    return plain(parse(text, "f.yaml"))


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(parse(text, "f.yaml"), "f.yaml", Recipe)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-4", 1e-4),
        ("1E4", 1e4),
        ("-2.5e+3", -2500.0),
        ("3.", 3.0),
        ("400_000", 400_000),
        ("0x1F", 31),
        ("010", 10),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1e-4'", "1e-4"),
        ("[1, 1.5, a]", [1, 1.5, "a"]),
        ('{"a": {"b": [true]}}', {"a": {"b": [True]}}),
        (">\n  two\n  lines", "two lines"),
    ],
)
def test_a_value_is_what_yaml_1_2_says(written: str, meant: Any) -> None:
    read = values(f"key: {written}")["key"]
    assert read == meant
    assert type(read) is type(meant)


@given(number=st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_a_number_as_python_writes_it_is_that_number(number: float) -> None:
    assert values(f"key: {number!r}") == {"key": number}


def test_json_is_yaml() -> None:
    text = '{"corpus": {"builtin": "markov"},\n "trial": {"tokens": 1000}, "parameters": {"learning_rate": 1e-4}}'
    assert validate(parse(text, "f.json"), "f.json", Recipe).parameters.learning_rate == 1e-4


def test_problems_stand_in_the_order_of_the_file_each_with_its_line() -> None:
    text = (
        "trial:\n"
        "  tokens: many\n"
        "  rungs: 0\n"
        "\n"
        "parameters:\n"
        "  # a comment\n"
        "  layers: yes\n"
        "  hiden_size: 4\n"
        "  dropout: .nan\n"
        "  learning_rate: '1e-4'\n"
        "corpse: 3\n"
    )
    assert problems(text) == [
        "f.yaml:1: corpus: missing; for example {path: my-text.txt}",
        'f.yaml:2: trial.tokens: should be a whole number, not "many"',
        "f.yaml:3: trial.rungs: should be greater than or equal to 1, not 0",
        'f.yaml:7: parameters.layers: should be a whole number, not "yes"',
        "f.yaml:8: parameters.hiden_size: unknown key; did you mean hidden_size?",
        "f.yaml:9: parameters.dropout: should be a finite number, not NaN",
        'f.yaml:10: parameters.learning_rate: should be a number, not "1e-4"',
        "f.yaml:11: corpse: unknown key; did you mean corpus?",
    ]


def test_a_problem_of_several_values_stands_where_they_are() -> None:
    assert problems(GOOD + "parameters:\n  architecture: transformer\n  heads: 3\n") == [
        "f.yaml:3: parameters: heads: 3 does not divide hidden_size: 256"
    ]
    assert problems("corpus: {builtin: markov}\ntrial: {}") == ["f.yaml:2: trial: give either tokens or seconds"]


def test_a_missing_key_stands_where_it_belongs() -> None:
    assert problems("# a comment\n\ncorpus:\n  builtin: markov\n  split: [0.9, 0.1]\n") == [
        "f.yaml:1: trial: missing; for example {tokens: 2_000_000} or {seconds: 600}",
        "f.yaml:5: corpus.split.2: missing",
    ]


def test_problems_another_check_finds_stand_among_the_rest() -> None:
    def more(found: dict[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
        return [(("list", 1), f"{found['list'][1]} is odd"), ((), "is late")]

    with pytest.raises(ConfigError) as caught:
        validate(parse("list:\n- 2\n- 3\nlayers: 0", "f.yaml"), "f.yaml", Config, more)
    assert str(caught.value).splitlines()[0] == "f.yaml:1: is late"
    assert str(caught.value).splitlines()[1].startswith("f.yaml:1: list: unknown key")
    assert str(caught.value).splitlines()[2:] == [
        "f.yaml:3: list.1: 3 is odd",
        "f.yaml:4: layers: should be greater than or equal to 1, not 0",
    ]


def test_an_unknown_key_gets_the_nearest_or_the_whole_choice() -> None:
    assert nearest("rug", ["trial", "rungs"]) == "; did you mean rungs?"
    assert nearest("xyz", ["trial", "rungs"]) == "; known: rungs, trial"
    assert problems("corpus: {builtin: markov, feld: x}\ntrial: {token: 5}") == [
        "f.yaml:1: corpus.feld: unknown key; did you mean field?",
        "f.yaml:2: trial.token: unknown key; did you mean tokens?",
    ]


def test_a_long_value_is_not_repeated_in_full() -> None:
    (problem,) = problems(GOOD + f"threads: {'long' * 100}")
    assert problem.startswith('f.yaml:3: threads: should be a whole number, not "longlong')
    assert problem.endswith("...")
    assert len(problem) < 130


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: [1\nc: 2\n", 3, "expected ',' or ']'"),
        ("a: 1\n\tb: 2", 2, "cannot start any token"),
        ("a: b: c", 1, "mapping values are not allowed here"),
        ("a: 1\nb: 'open\n", 3, "unexpected end"),
        ("a: 1\na: 2\n", 2, 'duplicate key "a"'),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", 4, 'duplicate key "b"'),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("a: *nowhere", 1, "undefined alias 'nowhere'"),
        ("a: \0", None, "#x0000"),
        ("a: !!int x", None, "invalid literal"),
        ("a: !!float x", None, ""),
        (f"a: {'9' * 5000}", None, "digits"),
        (f"a: {'[' * 500}", 1, "nested too deeply"),
        (f"a: {'{a: ' * 100_000}", 1, "nested too deeply"),
        ("[" * 100_000, 1, "nested too deeply"),
        ("a:\n " + "- " * 50_000, None, "nested too deeply"),
        ("".join(f"k{n}: &k{n} [{f'*k{n - 1}' if n else 1}]\n" for n in range(500)), None, "nested too deeply"),
        ("k0: &k0 [1]\n" + "".join(f"k{n + 1}: &k{n + 1} [*k{n}, *k{n}]\n" for n in range(40)), None, "aliases"),
        (
            "k0: &k0 {a: 1}\n" + "".join(f"k{n + 1}: &k{n + 1} {{a: *k{n}, b: *k{n}}}\n" for n in range(40)),
            None,
            "alias",
        ),
        (f"a: &a {'x' * 50_000}\nb: [{'*a, ' * 10_000}]\n", 2, "aliases"),
        (f"a: 0x{'F' * 40}", None, "more than 128 bits"),
        ("a: &a {<<: *a}", None, "a merge does not fit"),
        ("a: !!bool maybe", None, "a tag or a merge does not fit its value ('maybe')"),
        ('a: "x\\0y"', None, "\\u0000 in a text"),
        ('"\\ud800": 1', None, "\\ud800 in a text"),
    ],
)
def test_broken_yaml_is_one_line_that_says_where(text: str, line: int | None, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f.yaml")
    message = str(caught.value)
    assert message.startswith(f"f.yaml{'' if line is None else f':{line}'}: not valid YAML: ")
    assert problem in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "# nothing", "name", "- a\n- b", "3", "null", "[{a: 1}]"])
def test_a_file_holds_a_mapping(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^f\.yaml: holds no mapping"):
        parse(text, "f.yaml")


def test_a_key_that_is_no_text_is_an_unknown_key() -> None:
    found = problems(GOOD + "1: 2\nfalse: 3")
    assert [problem.split(";")[0].split(": ", 1)[1] for problem in found] == ["1: unknown key", "False: unknown key"]


def test_a_tag_runs_nothing() -> None:
    assert "f.yaml:3: threads: should be a whole number" in problems(GOOD + "threads: !!python/name:os.getcwd")[0]


def test_merged_keys_are_keys() -> None:
    text = "corpus: {builtin: markov}\ntrial: &trial {tokens: 5}\nprovenance: {<<: *trial}\n"
    assert validate(parse(text, "f.yaml"), "f.yaml", Recipe).provenance == {"tokens": 5}


def test_a_file_must_be_there_and_be_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        read_text(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_text(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: naïve".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml: cannot be read.*utf-8"):
        read_text(tmp_path / "latin.yaml")
    (tmp_path / "marked.yaml").write_bytes(b"\xef\xbb\xbfname: \xc3\xa9\r\n")
    assert values(read_text(tmp_path / "marked.yaml")) == {"name": "é"}


def test_a_dump_has_its_header_as_comments() -> None:
    text = dump({"a": None, "b": {"c": [1e-5, True, "1e-5", "null", ""]}}, "One.\n\nThree.")
    assert text.startswith("# One.\n#\n# Three.\na: null\n")
    assert values(text) == {"a": None, "b": {"c": [1e-5, True, "1e-5", "null", ""]}}


def test_a_file_that_no_person_wrote_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(200_000_000)
    for path in (tmp_path / "large.yaml", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="larger than 256 KiB"):
            read_text(path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: [" + "1," * 120_000 + "1]", "more than 40,000 words and signs"),
        ("".join(f"p{number}: {{type: int, low: 1}}\n" for number in range(8_000)), "more than 40,000 words"),
        ("a: &a {x: 1}\nb:\n" + "- {<<: *a, y: 2}\n" * 5_000, "more than 500 aliases"),
        (
            "a: &a {" + ", ".join(f"k{number}: 1" for number in range(3_000)) + "}\nb:\n" + "- {<<: *a}\n" * 400,
            "merges of more",
        ),
    ],
    ids=["values", "parameters", "aliases", "merges"],
)
def test_a_dense_file_is_refused_before_it_is_read_to_its_end(text: str, what: str) -> None:
    assert len(text) < 256 * 1024
    with pytest.raises(ConfigError, match=rf"^f\.yaml:\d+: not valid YAML: {what}"):
        values(text)


def test_a_thousand_trials_may_be_queued_in_a_study() -> None:
    entry = "- learning_rate: 0.001\n" + "".join(f"  parameter_{number}: {number}\n" for number in range(5))
    assert len(values("points_to_evaluate:\n" + entry * 1_000)["points_to_evaluate"]) == 1_000


def test_what_an_alias_stands_for_may_be_meant_several_times() -> None:
    assert values("a: &a [1, 2]\nb: [*a, *a]\nc: *a") == {"a": [1, 2], "b": [[1, 2], [1, 2]], "c": [1, 2]}
