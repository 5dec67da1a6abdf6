"""A class of the user's own is found where its user stands, and every way in which it cannot be is said in a line."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from models.config import Config
from models.errors import ConfigError
from models.nn.custom import own_class, require_takes
from models.nn.network import build, generator_class

CLASS = """\
from torch import nn

class Mine(nn.Module):
    def __init__(self, config, vocabulary_size, width=3, **more):
        super().__init__()
        self.width, self.more = width, more
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, own_import_path: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, whose modules are forgotten."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def refused(here: Path) -> Callable[[str], str]:
    """Returns why a class is refused, which is always one line."""

    def refuse(name: str) -> str:
        with pytest.raises(ConfigError) as refusal:
            own_class(name)
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    return refuse


@pytest.mark.parametrize(
    "name", ["models", "tuner", "torch", "random", "math", "sys", "optuna", "statistics", "mine_only"]
)
def test_a_file_in_the_working_folder_is_found_whatever_is_installed_by_its_name(name: str, here: Path) -> None:
    before = sys.modules.get(name)
    (here / f"{name}.py").write_text(CLASS)
    found = own_class(f"{name}:Mine")
    assert issubclass(found, nn.Module)
    assert own_class(f"{name}:Mine") is found
    if before is not None:
        assert sys.modules[name] is before


def test_a_package_in_the_working_folder_is_found_with_what_it_imports(here: Path) -> None:
    for name in ("models", "torch"):
        (here / name / "deep").mkdir(parents=True)
        (here / name / "__init__.py").write_text("")
        (here / name / "deep" / "__init__.py").write_text("")
        (here / name / "deep" / "net.py").write_text(f"from ..wide import WIDTH\n{CLASS}")
        (here / name / "wide.py").write_text("WIDTH = 7\n")
        assert own_class(f"{name}.deep.net:Mine").__name__ == "Mine"


def test_a_folder_without_init_is_a_package_for_what_lies_in_it(here: Path) -> None:
    (here / "tests").mkdir()
    (here / "tests" / "net.py").write_text(CLASS)
    assert own_class("tests.net:Mine").__name__ == "Mine"


def test_what_lies_in_the_working_folder_hides_no_installed_package_afterwards(here: Path) -> None:
    (here / "helper_of_mine.py").write_text("VALUE = 1\n")
    (here / "fractions.py").write_text("raise RuntimeError('hidden')\n")
    (here / "with_helper.py").write_text(f"import helper_of_mine\n{CLASS}")
    own_class("with_helper:Mine")
    sys.modules.pop("fractions", None)
    import fractions

    assert fractions.Fraction(1, 2)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "import nowhere_at_all\n",
            r"importing it raises ModuleNotFoundError at {file}:1: No module named 'nowhere_at_all'",
        ),
        ("\nraise ValueError('two\\nlines')\n", r"importing it raises ValueError at {file}:2: two lines"),
        ("def broken(:\n", r"importing it raises SyntaxError at {file}:1: invalid syntax"),
        ("import sys\nsys.exit(3)\n", r"importing it ends Python at {file}:2, with sys.exit\(3\)"),
        ("import torch\n\ntorch.zeros(2) @ torch.zeros(3)\n", r"importing it raises RuntimeError at {file}:3: "),
        ("Mine = 3\n", r"not a class derived from torch.nn.Module, in {file}"),
        ("class Mine:\n    pass\n", r"not a class derived from torch.nn.Module, in {file}"),
        ("", r"{file} has no attribute 'Mine'$"),
    ],
)
def test_what_cannot_be_imported_is_reported_with_its_place(
    source: str, said: str, here: Path, refused: Callable[[str], str]
) -> None:
    for name in ("mine_broken", "models"):
        file = here / f"{name}.py"
        file.write_text(source)
        assert re.match(f"architecture {name}:Mine: {said.format(file=re.escape(str(file)))}", refused(f"{name}:Mine"))
        sys.modules.pop(name, None) if name != "models" else None


@pytest.mark.parametrize("name", ["models", "torch", "random", "torch.nn"])
def test_an_installed_package_without_the_class_is_named(name: str, here: Path, refused: Callable[[str], str]) -> None:
    said = refused(f"{name}:Mine")
    place = getattr(sys.modules[name], "__path__", [sys.modules[name].__file__])[0]
    assert said == (
        f"architecture {name}:Mine: {place} has no attribute 'Mine'; there is no {here / name.replace('.', '/')}.py"
    )


def test_what_a_module_prints_is_not_the_commands_output(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "talkative.py").write_text(f"print('hello')\n{CLASS}")
    own_class("talkative:Mine")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\n")


# What it takes.


def test_a_class_is_made_with_its_parameters(here: Path) -> None:
    (here / "takes.py").write_text(CLASS)
    made: Any = build(Config(architecture="takes:Mine", own={"width": 5, "depth": "two"}), 9)
    assert (made.width, made.more) == (5, {"depth": "two"})


class Exact(nn.Module):
    def __init__(self, config: Config, vocabulary_size: int, kernel_size: int, *, bias: bool = True) -> None:
        super().__init__()


class Other(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()


class Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("kind", "own", "said"),
    [
        (
            Exact,
            {"kernel_sise": 3},
            r"own.kernel_sise: architecture a:A takes no such parameter; did you mean kernel_size\?",
        ),
        (
            Exact,
            {"kernel_size": 3, "config": 3},
            "own.config: architecture a:A takes no such parameter; known: bias, k",
        ),
        (Exact, {}, r"architecture a:A: Exact needs kernel_size; give it among the parameters as own: {kernel_size: "),
        (Other, {}, r"architecture a:A: is made as Other\(config, vocabulary_size\), and takes width"),
        (Nothing, {}, r"architecture a:A: is made as Nothing\(config, vocabulary_size\), and takes nothing"),
    ],
)
def test_what_a_class_does_not_take_is_refused_by_name(kind: type[nn.Module], own: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        require_takes(kind, "a:A", own)


def test_what_a_class_takes_is_fine(here: Path) -> None:
    require_takes(Exact, "a:A", {"kernel_size": 3, "bias": False})
    (here / "fine.py").write_text(CLASS)
    assert generator_class(Config(architecture="fine:Mine", own={"anything": None})).__name__ == "Mine"
