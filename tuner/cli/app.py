"""The command `tuner`: all commands in one group; nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import signal

import click

from models import __main__ as single
from models import logs
from tuner.cli import admin, control, dashboard, results, search, worker_processes


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="textgen-tuner", prog_name="tuner")
@click.option("-v", "--verbose", is_flag=True, help="Log details, too.")
@click.option("-q", "--quiet", is_flag=True, help="Log errors only.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    envvar=logs.FORMAT,
    default="text",
    show_default=True,
    help=f"How what is logged looks; workers follow. [env: {logs.FORMAT}]",
)
def commands(verbose: bool, quiet: bool, log_format: str) -> None:
    """Tune text generators: search with parallel workers, watch, export the best configuration."""
    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet exclude each other")
    level = "DEBUG" if verbose else "ERROR" if quiet else os.environ.get(logs.LEVEL, "INFO")
    logs.configure(level, log_format)


for command in (
    *(search.run, search.work, search.confirm, search.check),
    *(results.status, results.export, results.json_schema, results.sample, results.write_report),
    *(control.pause, control.resume, control.stop, control.retry, control.enqueue),
    *(admin.backup, admin.restore, admin.grant, admin.upgrade),
    *(dashboard.dashboard, dashboard.password),
    *(worker_processes.worker, worker_processes.pace),
    *(single.train, single.generate),
):
    commands.add_command(command)


def main() -> None:
    """Runs the command line; SIGTERM ends it as Ctrl-C does, so that the embedded PostgreSQL is not left behind."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as `nohup` has it
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    single.main(commands)
