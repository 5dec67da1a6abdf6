"""Rules of the code: what packages offer each other, what loads at once, and that each module says what it is for."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from make_package_graph import imported

from tuner.study.definition import parse_study, read_study

ROOT = Path(__file__).parents[1]
MODULES = [path for folder in ("models", "tuner") for path in sorted((ROOT / folder).glob("**/*.py"))]
SOURCES = MODULES + [path for folder in ("benchmarks", "tests") for path in sorted((ROOT / folder).glob("**/*.py"))]
STUDIES = sorted((ROOT / "studies").glob("**/*.yaml"))


def named(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def offered(path: Path) -> list[str]:
    """What `__all__` of a package lists."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise AssertionError(f"{path} has no __all__")


PACKAGES = {
    path.relative_to(ROOT).parts[:2]: offered(path)
    for path in MODULES
    if path.match("*/*/__init__.py") and path.parents[2] == ROOT
}


def loaded_by(statement: str) -> set[str]:
    """The packages that a fresh Python has loaded after a statement."""
    program = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.mark.parametrize("path", MODULES, ids=named(MODULES))
def test_packages_import_only_what_others_offer(path: Path) -> None:
    own = path.relative_to(ROOT).parts[:2]
    for name in imported(path):
        package = tuple(name.split(".")[:2])
        if package in PACKAGES and package != own:
            module = name.split(".")[2]
            assert module in PACKAGES[package], f"{name} is not in __all__ of {'.'.join(package)}"


@pytest.mark.parametrize("package", PACKAGES, ids=".".join)
def test_what_a_package_offers_exists(package: tuple[str, ...]) -> None:
    modules = {path.stem for path in ROOT.joinpath(*package).iterdir()}
    assert set(PACKAGES[package]) <= modules | vars(importlib.import_module(".".join(package))).keys()


def test_configurations_and_corpora_need_no_torch() -> None:
    assert "torch" not in loaded_by("import models.config, models.reader, models.text.corpus, models.text.tokenizers")


def test_the_command_line_imports_nothing_heavy() -> None:
    assert not loaded_by("import tuner.cli") & {"torch", "optuna", "sqlalchemy", "psycopg2", "numpy", "pydantic"}


@pytest.mark.parametrize("path", SOURCES, ids=named(SOURCES))
def test_the_first_line_says_what_a_module_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith('"""')
    first = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
    assert len(first.split()) > 2
    assert first.endswith((".", ":"))


@pytest.mark.parametrize("path", MODULES, ids=named(MODULES))
def test_no_pickles(path: Path) -> None:
    assert not {"pickle", "shelve", "joblib", "dill"} & {name.split(".")[0] for name in imported(path)}
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    assert not {"torch.load", "torch.save"} & calls


@pytest.mark.parametrize("path", MODULES, ids=named(MODULES))
def test_one_module_knows_the_insides_of_optuna_and_its_dashboard(path: Path) -> None:
    if path == ROOT / "tuner" / "optuna_internals.py":
        return
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert not names & {"_study_id", "_trial_id", "_storage", "_backend", "_contains"}
    modules = [name for name in imported(path) if name.partition(".")[0] in ("optuna", "optuna_dashboard")]
    from_imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module in modules]
    private = [part for name in modules for part in name.split(".") if part.startswith("_")]
    private += [alias.name for node in from_imports for alias in node.names if alias.name.startswith("_")]
    assert not private


def test_no_module_is_for_odds_and_ends() -> None:
    assert not {"utils.py", "common.py", "helpers.py", "misc.py"} & {path.name for path in MODULES}


@pytest.mark.parametrize("path", STUDIES, ids=named(STUDIES))
def test_every_study_that_is_shipped_can_be_read(path: Path) -> None:
    assert read_study(path).name == path.stem
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_the_study_in_the_documents_can_be_read() -> None:
    text = (ROOT / "docs" / "own-generator.md").read_text(encoding="utf-8")
    study = re.findall(r"^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[1]
    assert parse_study(study, "own-generator.md", "own").space
