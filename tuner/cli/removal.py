"""Commands that delete or rename a study, and say what studies take."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from tuner.cli import options
from tuner.cli.shared import described, find, show
from tuner.storage.locations import StorageOptions

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from tuner.control.removal import Usage


@click.command()
@click.argument("study_name", metavar="STUDY")
@options.places
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def delete(study_name: str, places: StorageOptions, yes: bool) -> None:
    """Delete a study, its confirmation and all their files, for good.

    No worker may be at work: `tuner stop` first. `tuner backup` keeps a copy.
    """
    from tuner.control import removal

    with places.opened() as opened:
        study = find(opened, study_name)
        if not yes:
            _ask(removal.usage(study, places.artifacts_of))
        click.echo(f"Deleted {removal.delete(study, places.artifacts_of)}")


def _ask(taken: Usage) -> None:
    if not sys.stdin.isatty():
        command = shlex.join(["tuner", "delete", taken.name, "--yes"])
        raise click.UsageError(f"this deletes {taken}, for good; to do so without being asked: {command}")
    click.confirm(f"Delete {taken}, for good?", abort=True)


@click.command()
@click.argument("study_name", metavar="STUDY")
@click.argument("new_name", metavar="NEW")
@options.database
def rename(study_name: str, new_name: str, places: StorageOptions) -> None:
    """Give a study another name; its workers continue, and its files stay where they are."""
    from tuner.control import removal

    with places.opened() as opened:
        click.echo(removal.rename(find(opened, study_name), new_name))


@click.command()
@click.argument("study_name", metavar="[STUDY]", required=False)
@options.places
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document, in bytes.")
def du(study_name: str | None, places: StorageOptions, as_json: bool) -> None:
    """Show what studies take: files of each, the database, and encoded texts."""
    from models.text.corpus import cached_bytes
    from tuner.control import removal

    with places.opened() as opened:
        studies = [find(opened, study_name)] if study_name else removal.all_studies(opened)
        taken = list(removal.usages(studies, places.artifacts_of))
        database, texts = _database_bytes(opened), cached_bytes()
    if as_json:
        document = {
            "studies": [asdict(one) | {"bytes": one.bytes} for one in taken],
            "database_bytes": database,
            "encoded_texts_bytes": texts,
        }
        click.echo(json.dumps(document, indent=2))
        return
    _show(taken, database, texts, described(places))


def _database_bytes(storage: RDBStorage) -> int:
    import sqlalchemy as sql

    with storage.engine.begin() as connection:
        return int(connection.execute(sql.text("SELECT pg_database_size(current_database())")).scalar_one())


def _show(taken: list[Usage], database: int, texts: int, place: str) -> None:
    from rich.table import Table

    from models.safe_text import terminal
    from models.wording import size

    parts = ("checkpoints", "runs", "logs", "attachments")
    table = Table("study", "trials", *parts, "together", box=None)
    for one in taken:
        values: list[Any] = [getattr(one, part) for part in parts]
        also = " and its confirmation" if one.with_confirmation else ""
        table.add_row(terminal.line(one.name) + also, str(one.trials), *map(size, [*values, one.bytes]))
    if taken:
        show(table)
    show(f"All studies in the database: {size(database)} ({place})", f"Encoded texts: {size(texts)}")
