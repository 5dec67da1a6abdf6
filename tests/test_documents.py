"""The documents: made from the code where they can be, links lead somewhere, commands and studies are real."""

import ast
import doctest
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import click
import make_reference
import optuna
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from models.__main__ import commands as single_commands
from models.reader import parse, plain
from tuner.cli import commands as tuner_commands
from tuner.study.definition import Study, parse_study

ROOT = Path(__file__).parents[1]
ROOT_DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
DOCUMENTS = [*ROOT_DOCUMENTS, *sorted((ROOT / "docs").glob("*.md"))]
OWN_BASE = {"corpus": "{builtin: markov}", "trial": "{tokens: 10_000_000}"}
"""What a part of a study file in a document needs besides to be a study."""


every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])


@cache
def tokens(path: Path) -> list[Token]:
    """All tokens of a document, those inside of paragraphs too."""
    read = MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
    return [inner for outer in read for inner in [outer, *(outer.children or [])]]


def fenced(path: Path, *kinds: str) -> list[str]:
    return [token.content for token in tokens(path) if token.type == "fence" and token.info.strip() in kinds]


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    read = tokens(path)
    headings = [read[index + 1].content for index, token in enumerate(read) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_options(text: str) -> list[str]:
    """The lines but for the tables of Optuna's options, which differ between its versions."""
    return [line for line in text.splitlines() if "optuna.readthedocs.io" not in line and "in Optuna" not in line]


@pytest.mark.parametrize("path", make_reference.DOCUMENTS, ids=lambda path: path.name)
def test_generated_parts_are_what_the_code_says(path: Path) -> None:
    """Made by: python docs/make_reference.py"""
    text, made = path.read_text(encoding="utf-8"), make_reference.generated(path)
    assert without_options(text) == without_options(made)
    if f"in Optuna {optuna.__version__} " in text:  # another version may have other options
        assert text == made


def test_the_check_of_generated_parts_names_what_is_out_of_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "docs" / "commands.md"
    path.parent.mkdir()
    path.write_text("<!-- [[[cog print(contents()) ]]] -->\n<!-- [[[end]]] -->\n", encoding="utf-8")
    assert make_reference.main(["--check"], [path]) == 1
    assert "docs/commands.md" in capsys.readouterr().out
    assert make_reference.main([], [path]) == 0
    assert make_reference.main(["--check"], [path]) == 0


def test_every_key_knob_sampler_and_pruner_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "study-file.md").read_text(encoding="utf-8")
    schema = Study.model_json_schema()
    names = {name for one in [schema, *schema["$defs"].values()] for name in one["properties"]}
    for name in names | set(make_reference.Config.model_fields):  # type: ignore[attr-defined]
        assert f"`{name}`" in text
    for name in [*make_reference.SAMPLERS, *make_reference.PRUNERS]:  # type: ignore[attr-defined]
        assert f"- **`{name}`**: " in text
        assert f"| [`{name}`](https://optuna.readthedocs.io/" in text


def test_every_command_and_option_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for name, command in make_reference._walk("tuner", tuner_commands):
        section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for option in make_reference._options_in(command):
            assert f"`{max(option.opts, key=len)}`" in section, (name, option.opts)
    for name, command in single_commands.commands.items():
        assert tuner_commands.commands[name] is command


@every_document
def test_every_link_leads_somewhere(path: Path) -> None:
    for token in tokens(path):
        place = token.attrGet("href") or token.attrGet("src")
        if place is None or re.match("https?://", str(place)):
            continue
        file, _, anchor = str(place).partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{path.name}: {place}"
        assert not anchor or anchor in anchors(target), f"{path.name}: {place}"


@every_document
def test_every_study_in_the_documents_can_be_read(path: Path) -> None:
    for text in fenced(path, "yaml"):
        values = plain(parse(text, path.name))
        if values.keys() <= Study.model_fields.keys():
            more = [f"{name}: {value}\n" for name, value in OWN_BASE.items() if name not in values]
            assert parse_study("".join([text, *more]), path.name, "example").space


@every_document
def test_every_program_in_the_documents_is_python(path: Path) -> None:
    for text in fenced(path, "python"):
        compile(text, path.name, "exec")


def test_the_check_of_a_generator_of_ones_own_comes_out_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "docs" / "own-generator.md"
    module = ModuleType("neighbours")
    exec(fenced(path, "python")[0], module.__dict__)
    monkeypatch.setitem(sys.modules, "neighbours", module)
    (session,) = fenced(path, "pycon")
    example = doctest.DocTestParser().get_doctest(session, {}, path.name, str(path), 0)
    assert doctest.DocTestRunner().run(example) == (0, 9)


@every_document
def test_every_command_in_the_documents_exists(path: Path) -> None:
    for words in called(path):
        require_exists(words, path)


def called(path: Path) -> Iterator[list[str]]:
    """The calls of `tuner` and `python -m models` in a document's blocks and in its text."""
    lines = [
        line for text in fenced(path, "", "sh", "bash", "console") for line in text.replace("\\\n", " ").splitlines()
    ]
    lines += [token.content for token in tokens(path) if token.type == "code_inline"]
    for line in lines:
        for part in re.split(r"&&|\|\||[;|()]|\$ ", line):
            yield from _called_in(part)


def _called_in(part: str) -> Iterator[list[str]]:
    try:
        words = shlex.split(part, comments=True)
    except ValueError:  # output, with a quotation mark
        return
    starts = [index for index, word in enumerate(words) if word == "tuner" or word.endswith("bin/tuner")]
    modules = [index + 1 for index, pair in enumerate(pairwise(words)) if pair == ("-m", "models")]
    for start in [*starts, *modules][:1]:
        before = words[: start - (start in modules)]
        if all(re.fullmatch(r"[A-Z_]+=.*|exec|srun|time|torchrun|python3?|-.*|\d+", word) for word in before):
            yield [("models" if start in modules else "tuner"), *words[start + 1 :]]


def require_exists(words: list[str], path: Path) -> None:
    """Asserts that a command and the options it is given exist; placeholders may stand for values."""
    command: click.Command = {"tuner": tuner_commands, "models": single_commands}[words[0]]
    context, rest = click.Context(command, info_name=words[0]), words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        if found is None and (rest[0].isupper() or not rest[0].isidentifier()):
            return  # `tuner COMMAND --help`
        assert found is not None, f"{path.name}: tuner {rest[0]}"
        command, rest = found, rest[1:]
    known = {
        name for one in command.params if isinstance(one, click.Option) for name in [*one.opts, *one.secondary_opts]
    }
    for word in rest:
        if re.match("-[a-zA-Z-]", word):
            name = word.partition("=")[0]
            assert name in known | {"--help", "-h", "--version"}, f"{path.name}: {' '.join(words)}: {name}"


def test_a_command_that_does_not_exist_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "document.md"
    wrong = [
        "tuner runn quickstart",
        "tuner run quickstart --trails 3",
        "python -m models train a.yaml --ouput b",
    ]
    for line in wrong:
        path.write_text(f"```sh\n{line}\n```\n", encoding="utf-8")
        with pytest.raises(AssertionError):
            test_every_command_in_the_documents_exists(path)


@cache
def said() -> list[str]:
    """All texts in the sources, each value that is put into one shown as `...`."""
    paths = [path for folder in ("tuner", "models") for path in sorted((ROOT / folder).glob("**/*.py"))]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return [_text(node) for node in nodes if isinstance(node, ast.JoinedStr | ast.Constant)]


def _text(node: ast.expr) -> str:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in parts)


@every_document
def test_every_message_in_the_documents_is_one_of_ours(path: Path) -> None:
    sources = said()
    for message in (line for text in fenced(path, "text") for line in text.splitlines()):
        pieces = [piece.strip() for piece in message.split("...")]
        longest = max(pieces, key=len)
        assert len(longest) > 8, f"{path.name}: {message} says too little to be found"
        for piece in pieces:
            assert any(piece in text for text in sources), f"{path.name}: {message}: {piece}"


def test_the_documents_for_symptoms_quote_enough_of_them() -> None:
    text = "".join(fenced(ROOT / "docs" / "troubleshooting.md", "text"))
    assert len(text.splitlines()) > 30


def test_the_version_is_the_same_wherever_it_stands() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    released = re.findall(r"^## \[?(\d[^\]\s]*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released[:1] in ([], [version])


def test_the_diffs_of_first_changes_fit_the_code() -> None:
    for diff in fenced(ROOT / "docs" / "first-changes.md", "diff"):
        for change in diff.split("--- a/")[1:]:
            name, *hunks = re.split(r"^@@\n", change, flags=re.MULTILINE)
            text = (ROOT / name.splitlines()[0]).read_text(encoding="utf-8")
            for hunk in hunks:
                before = "".join(f"{line[1:]}\n" for line in hunk.splitlines() if not line.startswith("+"))
                assert before.strip("\n") in text, f"{name}{before}"
