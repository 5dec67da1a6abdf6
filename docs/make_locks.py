"""Writes the locks from pyproject.toml: every package of the image, at one version, with the hashes of its files.

python docs/make_locks.py             what is locked stays, what is new is added: needs `pip install uv`
python docs/make_locks.py --upgrade   the newest of everything
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Of torch the CPU lock takes PyTorch's own CPU build, `+cpu`; the other one takes what the package index has, for CUDA.
IMAGE = ["pyproject.toml", "--extra=s3"]
LOCKS = {
    "locks/cpu.txt": [*IMAGE, "--torch-backend=cpu"],
    "locks/gpu.txt": IMAGE,
    "locks/build.txt": ["locks/build.in"],
}


def arguments(lock: str) -> list[str]:
    """Returns what uv is asked for a lock; it holds for all Pythons from 3.11 on, and names no index."""
    written = [f"--output-file={lock}", "--generate-hashes", "--custom-compile-command=python docs/make_locks.py"]
    return ["pip", "compile", *LOCKS[lock], *written, "--universal", "--python-version=3.11", "--quiet"]


def main() -> None:
    """Makes all locks again."""
    for lock in LOCKS:
        subprocess.run([sys.executable, "-m", "uv", *arguments(lock), *sys.argv[1:]], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
