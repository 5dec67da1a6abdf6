"""Commands that hand studies on to other programs: trials as a table, and the address of the database."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from models import __main__ as single
from models.wording import counted
from tuner.cli import options
from tuner.cli.shared import find
from tuner.storage.locations import StorageOptions

if TYPE_CHECKING:
    from tuner.results.records import TrialRecord


@click.command()
@click.argument("study_name", metavar="STUDY")
@options.database
@click.option(
    "--format",
    "notation",
    type=click.Choice(["csv", "json"]),
    default="csv",
    show_default=True,
    help="csv has a row for each trial; json also has each one's configuration and rungs.",
)
@click.option("-o", "--output", type=single.FILE, help="File to write. [default: print it]")
@options.force
def trials(study_name: str, places: StorageOptions, notation: str, output: Path | None, force: bool) -> None:
    """Write all trials of a study as a table, for spreadsheets, pandas and scripts."""
    from models.files import is_stdout
    from tuner.results.export import require_free, write_new
    from tuner.results.records import TrialRecord

    if output is not None and (str(output) == "-" or is_stdout(output)):
        output = None
    if output is not None:
        require_free(output, force)
    with places.opened() as opened:
        records = [TrialRecord.of(trial) for trial in find(opened, study_name).trials()]
    text = _csv(records) if notation == "csv" else json.dumps(list(map(asdict, records)), indent=1, default=str) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        write_new(output, text, force)
        click.echo(f"{output}: {counted(len(records), 'trial')}")


def _csv(records: list[TrialRecord]) -> str:
    from tuner.results.records import rows

    table = rows(records)
    text = io.StringIO()
    if table:
        writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return text.getvalue()


@click.command()
@options.database
def url(places: StorageOptions) -> None:
    """Print the database's address for Optuna, SQLAlchemy and psql; the embedded one stays up until Ctrl-C.

    A password is not printed; programs take it from PGPASSWORD or ~/.pgpass.
    """
    from models.training.stopping import stop_requests

    with places.opened() as opened:
        address = opened.engine.url
        click.echo(address.render_as_string(hide_password=True).replace(":***@", "@"))
        if places.storage is not None:
            return
        plain = address.set(drivername="postgresql").render_as_string()
        click.echo(f"psql {plain!r} opens it; it stays up until Ctrl-C", err=True)
        with stop_requests() as requested:
            requested.wait()
