"""The user's own generator: finds its class, even if an installed package has its name, and its parameters."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from models.config import OWN
from models.errors import ConfigError
from models.reader import nearest

ALIAS = "_own_"
"""Begins the name of a module of the user's whose real name is an installed package's."""

LONGEST = 300
"""Characters of an error of the user's code that are told."""


def own_class(name: str) -> type[nn.Module]:
    """Returns the class `package.module:Class`, from the working folder before all else. Raises ConfigError."""
    module_name, _, attribute = name.partition(":")
    module = _module(name, module_name)
    if not hasattr(module, attribute):
        raise ConfigError(
            f"architecture {name}: {_where(module)} has no attribute {attribute!r}{_instead(module_name)}"
        )
    found = getattr(module, attribute)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(f"architecture {name}: not a class derived from torch.nn.Module, in {_where(module)}")
    return found


def require_takes(kind: type[nn.Module], name: str, own: Mapping[str, Any]) -> None:
    """Raises ConfigError unless a class is made of (config, vocabulary_size) and these keyword arguments."""
    try:
        parameters = list(inspect.signature(kind).parameters.values())
    except (TypeError, ValueError):  # written in another language
        return
    first = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)][:2]
    many = any(one.kind == one.VAR_POSITIONAL for one in parameters)
    if len(first) < 2 and not many:
        raise ConfigError(
            f"architecture {name}: is made as {kind.__name__}(config, vocabulary_size), and takes "
            f"{', '.join(one.name for one in parameters) or 'nothing'}"
        )
    known = {
        one.name: one
        for one in parameters
        if one not in first and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    }
    if not any(one.kind == one.VAR_KEYWORD for one in parameters):
        for unknown in [one for one in own if one not in known]:
            raise ConfigError(f"{OWN}{unknown}: architecture {name} takes no such parameter{_nearest(unknown, known)}")
    missing = [one for one in known if known[one].default is inspect.Parameter.empty and one not in own]
    if missing:
        raise ConfigError(
            f"architecture {name}: {kind.__name__} needs {', '.join(missing)}; give it among the parameters as "
            f"own: {{{missing[0]}: ...}}"
        )


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Turns what the user's code raises into a ConfigError of one line with the code's place; it prints to stderr."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except ConfigError:
        raise
    except SystemExit as error:
        raise ConfigError(f"{what} ends Python{_place(error)}, with sys.exit({error.code!r})") from error
    except Exception as error:
        said = " ".join(str(error).split())[:LONGEST]
        told = f": {said}" if said else ""
        raise ConfigError(f"{what} raises {type(error).__name__}{_place(error)}{told}") from error


def _module(name: str, module: str) -> ModuleType:
    here = Path.cwd()
    top, _, rest = module.partition(".")
    file = _in_folder(here, top, rest)
    with _first(here), blamed(f"architecture {name}: importing it"):
        if file is not None and _is_anothers(top, file, here):
            _load(ALIAS + top, file)
            module = ALIAS + module
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # a module that the user's own imports
            missing = error.name.removeprefix(ALIAS)
            raise ConfigError(
                f"architecture {name}: No module named {missing!r}; looked in {here} and the installed packages"
            ) from error


def _in_folder(here: Path, top: str, rest: str) -> Path | None:
    """The file or folder of a module in the working folder; a folder without __init__.py only for what lies in it."""
    package, file = here / top, here / f"{top}.py"
    if (package / "__init__.py").is_file():
        return package
    if file.is_file():
        return file
    inner = package.joinpath(*rest.split("."))
    return package if rest and (inner.is_dir() or inner.with_suffix(".py").is_file()) else None


def _is_anothers(top: str, file: Path, here: Path) -> bool:
    """Whether Python finds, or has found, another module of that name elsewhere."""
    if top in sys.modules:
        return not any(place.resolve() == file.resolve() for place in _places(sys.modules[top]))
    path = [folder for folder in sys.path if Path(folder).resolve() != here.resolve()]
    spec = importlib.machinery.PathFinder.find_spec(top, path)
    return top in sys.builtin_module_names or (spec is not None and spec.loader is not None)


def _places(module: ModuleType) -> list[Path]:
    if hasattr(module, "__path__"):
        return [Path(folder) for folder in module.__path__]
    return [Path(file)] if (file := getattr(module, "__file__", None)) else []


def _load(name: str, file: Path) -> None:
    """Imports a file or folder under a name of its own."""
    if name in sys.modules:
        return
    init, inside = file / "__init__.py", [str(file)]
    if file.is_dir() and not init.is_file():
        spec: importlib.machinery.ModuleSpec | None = importlib.machinery.ModuleSpec(name, None, is_package=True)
        assert spec is not None
        spec.submodule_search_locations = inside
    elif file.is_dir():
        spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=inside)
    else:
        spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # the file is there, and its name ends with .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    if spec.loader is not None:
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise


@contextmanager
def _first(folder: Path) -> Iterator[None]:
    """Lets modules be found in a folder: in this block first of all, and afterwards last, so that it hides nothing."""
    place = str(folder)
    sys.path.insert(0, place)
    importlib.invalidate_caches()  # it may have been written a moment ago
    try:
        yield
    finally:
        sys.path.remove(place)
        if place not in sys.path:
            sys.path.append(place)


def _where(module: ModuleType) -> str:
    places = _places(module)
    return str(places[0]) if places else f"the module {module.__name__}, which is part of Python,"


def _instead(module: str) -> str:
    """Says where a module of the user's would have been found."""
    file = Path.cwd() / f"{module.replace('.', '/')}.py"
    return "" if file.is_file() else f"; there is no {file}"


def _nearest(word: str, known: Mapping[str, Any]) -> str:
    return nearest(word, known) if known else "; it takes none"


def _place(error: BaseException) -> str:
    """Where the user's code raised an error, as ` at file:line`."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    libraries = [str(Path(part.__file__).parent) for part in (sys.modules["models"], torch) if part.__file__]
    installed = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    for excluded in ([*libraries, *installed, "<"], [*libraries, "<"]):
        own = [frame for frame in frames if not frame.filename.startswith(tuple(excluded))]
        if own:
            return f" at {own[-1].filename}:{own[-1].lineno}"
    return ""
