"""The command `tuner`: all commands in one group; nothing heavy is imported before a command needs it."""

from __future__ import annotations

import signal
from itertools import chain

import click

from models import __main__ as single
from tuner.cli import admin, control, corpora, dashboard, data, doctor, removal, results, search, worker_processes

SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Search": (search.run, search.work, search.check, search.confirm, corpora.corpus),
    "Watch": (results.status, dashboard.dashboard, results.write_report, data.trials, data.url),
    "Export and train": (results.export, single.train, single.generate, results.sample),
    "Steer a study": (control.pause, control.resume, control.stop, control.retry, control.enqueue),
    "Look after studies": (
        admin.backup,
        admin.restore,
        removal.rename,
        removal.delete,
        removal.du,
        admin.upgrade,
        admin.grant,
        dashboard.password,
        doctor.doctor,
    ),
    "For programs": (results.json_schema, worker_processes.worker, worker_processes.pace),
}
"""The commands as `tuner --help` lists them: the three things that users do first."""


class Sections(click.Group):
    """A group whose help has a section for each of SECTIONS, with whole sentences."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                rows = [(str(one.name), (one.help or "").partition("\n")[0]) for one in commands if not one.hidden]
                formatter.write_dl(rows)


@click.group(cls=Sections, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="textgen-tuner", prog_name="tuner")
@single.logging_options
def commands(verbose: bool, quiet: bool, log_format: str) -> None:
    """Tune text generators: search with parallel workers, watch, export the best configuration."""
    single.configure_logging(verbose, quiet, log_format)


for command in chain.from_iterable(SECTIONS.values()):
    commands.add_command(command)


def main() -> None:
    """Runs the command line; SIGTERM ends it as Ctrl-C does, so that the embedded PostgreSQL is not left behind."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as `nohup` has it
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    single.main(commands)
