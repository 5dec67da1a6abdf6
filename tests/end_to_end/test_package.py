"""The package as it is built: it holds both packages and the studies that come with the tuner, and nothing else."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="needs hatchling, which builds the wheel")
def test_the_wheel_holds_the_studies_that_come_with_the_tuner(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("tuner", "models", "studies"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--quiet", "-w", tmp_path, source], check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {path.name for path in (ROOT / "studies").glob("*.yaml")}
    assert {name.rpartition("/")[2] for name in names if name.startswith("tuner/studies/")} == shipped
    assert {name.split("/")[0].split("-")[0] for name in names} == {"tuner", "models", "textgen_tuner"}
    assert {"tuner/results/export.schema.json", "tuner/py.typed", "models/py.typed"} <= set(names)
    files = [path for kind in ("py", "html", "css") for path in (ROOT / "tuner").glob(f"**/*.{kind}")]
    assert {str(path.relative_to(ROOT)) for path in files} <= set(names)
