"""Commands for those who look after the database: backup, restore, grant, upgrade."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from models import __main__ as single
from tuner.cli import options
from tuner.cli.shared import described, find
from tuner.storage.locations import StorageOptions

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from tuner.artifacts.store import Artifacts


@click.command()
@click.argument("study_name", metavar="STUDY")
@options.places
@click.option("-o", "--output", type=single.FILE, help="The file to write. [default: STUDY.tar]")
@options.force
def backup(
    study_name: str,
    places: StorageOptions,
    output: Path | None,
    force: bool,
) -> None:
    """Write a study and its confirmation to one file; workers continue meanwhile."""
    from models.files import is_stdout
    from tuner.backup import dump as backups
    from tuner.results.export import require_free

    output = output or Path(f"{study_name}.tar")
    require_free(output, force)
    with places.opened() as opened:
        study = find(opened, study_name).definition
        totals = backups.backup(opened, study, output, partial(_kept_of, places, opened))
    click.echo(f"{output}: {totals}", err=is_stdout(output))


def _kept_of(places: StorageOptions, storage: RDBStorage, study_name: str) -> Artifacts:
    """What is kept of a study of that name."""
    from tuner.storage.handle import open_study

    return places.artifacts_of(open_study(storage, study_name).optuna_study)


@click.command()
@click.argument("file", type=single.FILE)
@options.places
@click.option("--name", "new_name", help="Name for the restored study.")
def restore(file: Path, places: StorageOptions, new_name: str | None) -> None:
    """Restore a study from a backup into the database, completely or not at all."""
    from tuner.backup import dump as backups

    with places.opened() as opened:
        totals = backups.restore(opened, file, places.new_artifacts, new_name)
    click.echo(f"Restored {totals}")


@click.command()
@options.database
@click.option("--worker", help="Role of the workers.")
@click.option(
    "--worker-password-file",
    type=single.FILE,
    help="File with its password: creates the role, or changes its password.",
)
@click.option("--dashboard", help="Role of the dashboards.")
@click.option("--dashboard-password-file", type=single.FILE, help="The same for the role of the dashboards.")
def grant(
    places: StorageOptions,
    worker: str | None,
    worker_password_file: Path | None,
    dashboard: str | None,
    dashboard_password_file: Path | None,
) -> None:
    """Create the tables, and give roles of the database only the rights that they need.

    Only the owner of the tables can; roles without a password file must exist.
    """
    from tuner.storage import roles

    given = [("worker", worker, worker_password_file), ("dashboard", dashboard, dashboard_password_file)]
    wanted = [roles.Role(purpose, name, file) for purpose, name, file in given if name is not None]
    if not wanted:
        raise click.UsageError("name a role: --worker NAME, --dashboard NAME, or both")
    with places.opened() as opened:
        roles.grant(opened, wanted)
    for role in wanted:
        click.echo(f"{role.name}: may do what a {role.purpose} needs")


@click.command()
@options.database
def upgrade(places: StorageOptions) -> None:
    """Bring the tables of an older tuner or Optuna up to date. Make backups and end all workers before."""
    from tuner.storage.connection import upgrade as upgrade_tables

    upgraded = upgrade_tables(places.address, places.data_folder)
    click.echo(described(places))
    for whose, (before, after) in (("Optuna's", upgraded.optuna), ("the tuner's", upgraded.tuner)):
        done = f"were upgraded from {before} to {after}" if before else f"were made ({after})"
        done = f"are up to date ({after})" if before == after else done
        click.echo(f"  {whose} tables {done}")
