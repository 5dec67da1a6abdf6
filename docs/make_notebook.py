"""Executes the notebook of the documents in a kernel, and writes it with what came out: docs/notebook.ipynb."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

PATH = Path(__file__).parent / "notebook.ipynb"


class Text(str):
    """A cell in Markdown."""


CELLS = [
    Text(
        "# A study in a notebook\n\n"
        "Needs `pip install 'textgen-tuner[notebook]'`. What is used here is described in "
        "[From Python](python.md)."
    ),
    """\
import tuner

study = tuner.run(
    {
        "name": "notebook",
        "corpus": {"builtin": "markov"},
        "trial": {"tokens": 20_000, "rungs": 3},
        "budget": {"trials": 4},
        "sampler": {"type": "random", "seed": 1},
        "parameters": {
            "architecture": {"type": "categorical", "choices": ["gru", "lstm"]},
            "learning_rate": {"type": "float", "low": 1e-3, "high": 3e-2, "log": True},
            "hidden_size": 32,
            "batch_size": 8,
        },
    },
    workers=1,
    confirm=0,
    wait=False,
)""",
    Text(
        "The worker trains in the background. `watch` redraws one table until the study has ended; the stop button "
        "ends the watching, and the search goes on."
    ),
    "study.watch()",
    "study.wait()",
    Text("The best trials, as records:"),
    "[(trial.number, trial.bits_per_byte, trial.parameters) for trial in study.leaderboard(3)]",
    Text("The figures of the report:"),
    "list(study.figures())",
    'study.plot("learning-curves")',
    Text("The best one, exported for `tuner train`, and its model:"),
    'study.best.number, study.best.configuration["architecture"]',
    'study.export("best.yaml")',
    """\
run = study.load_run()
print(run)
print(run.generate("a", 40, seed=1))""",
    'round(run.score("a b c").bits_per_byte, 2)',
    "study.close()",
]
"""The cells in their order; what is not Text is code."""


def notebook() -> Any:
    """Returns the notebook, not executed."""
    return nbformat.v4.new_notebook(
        cells=[_cell(f"cell-{number}", source) for number, source in enumerate(CELLS)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )


def execute(book: Any, folder: Path, environment: dict[str, str]) -> None:
    """Executes the notebook in a kernel of its own. Raises CellExecutionError when a cell raises."""
    client = NotebookClient(
        book, kernel_name="python3", timeout=60, record_timing=False, resources={"metadata": {"path": str(folder)}}
    )
    quiet = {"PYTHONWARNINGS": "ignore:IProgress not found"}  # tqdm, which Optuna imports, would like ipywidgets
    client.execute(env=os.environ | {"PLOTLY_RENDERER": "plotly_mimetype"} | quiet | environment)
    book.metadata.pop("language_info", None)


def main() -> None:
    book = notebook()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # for the embedded server's user
        places = {"TUNER_DATA": f"{folder}/data", "TUNER_ARTIFACTS": f"{folder}/artifacts"}
        execute(book, Path(folder), places)
    PATH.write_text(nbformat.writes(book) + "\n", encoding="utf-8")


def _cell(name: str, source: str) -> Any:
    make: Any = nbformat.v4.new_markdown_cell if isinstance(source, Text) else nbformat.v4.new_code_cell
    return make(str(source), id=name)


if __name__ == "__main__":
    main()
