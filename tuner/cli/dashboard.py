"""The dashboard's commands: serving it, and a line for its file of users."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from tuner.cli import options
from tuner.cli.shared import find
from tuner.storage.locations import StorageOptions

_secret = partial(click.option, type=options.Folder(path_type=Path))


@click.command()
@click.argument("study_name", metavar="[STUDY]", required=False)
@options.places
@click.option("--host", default="127.0.0.1", show_default=True, help="Any other address needs users.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535))
@_secret(
    "--users",
    "users_file",
    envvar="TUNER_USERS",
    help="Users who may log in, one line each, as `tuner password` prints them. [env: TUNER_USERS]",
)
@_secret(
    "--operator-password-file",
    envvar="TUNER_OPERATOR_PASSWORD_FILE",
    help="File with the password of one user, `operator`: a container's secret. [env: TUNER_OPERATOR_PASSWORD_FILE]",
)
@_secret(
    "--session-key",
    "session_key_file",
    envvar="TUNER_SESSION_KEY",
    help="File of random text: sessions then survive a restart of the dashboard. [env: TUNER_SESSION_KEY]",
)
@_secret("--certificate", help="TLS: the certificate with its intermediate certificates (PEM).")
@_secret("--key", help="TLS: the certificate's key (PEM).")
@click.option("--behind-proxy", is_flag=True, help="Trust X-Forwarded-For and -Proto from one proxy in front.")
def dashboard(study_name: str | None, places: StorageOptions, **door: Any) -> None:
    """Serve the Optuna dashboard, a page to steer studies (/tuner/), and /metrics for Prometheus.

    Users may also be given in the environment: TUNER_LOGIN, with the lines of a file of users.
    """
    from tuner.dashboard.app import ServerConfig, serve

    found_door = ServerConfig(**door, login=os.environ.get("TUNER_LOGIN"))
    found_door.require_safe()
    with places.opened() as opened:
        page = "/dashboard" if study_name is None else f"/dashboard/studies/{find(opened, study_name).id}"
        attachments = places.attachments()

        def tell() -> None:
            click.echo(f"Dashboard: {found_door.address}{page}   (Ctrl-C ends it)")
            click.echo(f"To steer:  {found_door.address}/tuner/")

        serve(opened, attachments, found_door, tell, places.artifacts_of)


@click.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["reader", "operator"]), default="reader", show_default=True)
def password(name: str, role: str) -> None:
    """Ask for a password and print the line that lets NAME into the dashboard.

    A reader looks, an operator may change everything. Without a terminal the password is the first line of the input.
    """
    from tuner.dashboard.users import line

    if sys.stdin.isatty():
        given = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        given = sys.stdin.readline().rstrip("\r\n")
    click.echo(line(name, role, given))
