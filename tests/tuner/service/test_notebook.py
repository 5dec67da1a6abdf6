"""The notebook of the documents, executed in a real kernel."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import make_notebook
import nbformat


def outputs(book: Any) -> list[Any]:
    return [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]


def test_the_notebook_runs_in_a_kernel(data_folder: Path, tmp_path: Path) -> None:
    book = make_notebook.notebook()
    make_notebook.execute(
        book, tmp_path, {"TUNER_DATA": str(data_folder), "TUNER_ARTIFACTS": str(tmp_path / "artifacts")}
    )
    shown = [output.data for output in outputs(book) if "data" in output]
    tables = [data["text/html"] for data in shown if "text/html" in data]
    assert len(tables) == 1  # one display, however often it was redrawn
    assert "finished" in tables[0]
    assert any("application/vnd.plotly.v1+json" in data for data in shown)
    assert (tmp_path / "best.yaml").is_file()


def test_the_written_notebook_is_that_of_its_script_and_knows_no_machine() -> None:
    written = nbformat.read(make_notebook.PATH, as_version=4)
    nbformat.validate(written)
    assert [cell.source for cell in written.cells] == make_notebook.CELLS
    text = json.dumps(outputs(written))
    assert not re.search(r"/(tmp|home|root|work|dev)/", text)
    assert not [output for output in outputs(written) if output.output_type == "error"]
