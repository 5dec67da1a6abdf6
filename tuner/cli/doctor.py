"""The command that checks the machine it runs on."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from tuner.cli import options
from tuner.storage.locations import StorageOptions


@click.command()
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:0.")
@options.places
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON, for a report of a bug.")
def doctor(device: str, places: StorageOptions, as_json: bool) -> None:
    """Try what the service needs on this machine, and say what works, what does not, and what to do."""
    from importlib.metadata import version

    from models.device_checks import check_device, line
    from tuner.doctor.service_checks import check_service

    results = []
    for checks in (check_device(device), check_service(places)):
        for check in checks:
            results.append(check)
            if not as_json:
                click.echo(line(check))
    failed = any(check.result == "failed" for check in results)
    if as_json:
        document = {
            "version": version("textgen-tuner"),
            "failed": failed,
            "checks": [asdict(check) for check in results],
        }
        click.echo(json.dumps(document, indent=2))
    sys.exit(1 if failed else 0)
