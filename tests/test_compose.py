"""The container files keep what the documents promise: the compose file by the specification's own schema.

compose_spec.json is that of docker-compose 1.29.2 (Copyright Docker Inc, Apache License 2.0), unchanged.
"""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from tuner import cli

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads((ROOT / "tests" / "compose_spec.json").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PASSWORDS = {"owner", "worker", "dashboard", "operator"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text()))


def ours(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The services that run our image."""
    return {name: service for name, service in compose["services"].items() if name != "postgres"}


def test_the_compose_file_is_one_by_the_specification(compose: dict[str, Any]) -> None:
    jsonschema.Draft7Validator(SCHEMA).validate(compose)
    broken = compose | {"services": {"postgres": {"imgae": "postgres"}}}
    with pytest.raises(jsonschema.ValidationError, match="imgae"):
        jsonschema.Draft7Validator(SCHEMA).validate(broken)


def test_nothing_but_the_dashboard_is_published_and_that_on_this_machine_only(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"dashboard": ["127.0.0.1:${TUNER_PORT:-8080}:8080"]}


def test_passwords_come_from_files_alone(compose: dict[str, Any]) -> None:
    assert compose["secrets"] == {name: {"file": f"./secrets/{name}"} for name in PASSWORDS}
    for service in compose["services"].values():
        text = json.dumps({**service, "secrets": None})
        assert not re.search(r"PASSWORD(?!_FILE)", text)
        assert set(re.findall(r"/run/secrets/(\w+)", text)) <= set(service.get("secrets", []))
    for ignored in (".gitignore", ".dockerignore"):
        lines = (ROOT / ignored).read_text().splitlines()
        assert "*" in lines or {"/secrets/", "/.env"} <= set(lines)


def test_each_service_knows_only_the_secrets_of_its_own_role(compose: dict[str, Any]) -> None:
    known = {name: sorted(service["secrets"]) for name, service in compose["services"].items()}
    assert known == {
        "postgres": ["owner"],
        "roles": ["dashboard", "owner", "worker"],
        "worker": ["worker"],
        "gpu-worker": ["worker"],
        "dashboard": ["dashboard", "operator"],
        "tuner": ["worker"],
    }


def test_every_container_is_closed_in(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_workers_have_time_to_save_their_trials(compose: dict[str, Any]) -> None:
    for name in ("worker", "gpu-worker"):
        service = compose["services"][name]
        (grace,) = (part for part in service["command"] if part.startswith("--grace="))
        assert int(service["stop_grace_period"].removesuffix("s")) > int(grace.removeprefix("--grace="))
        assert "tuner:/var/lib/tuner" in service["volumes"]
    devices = compose["services"]["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    assert [name for name, service in compose["services"].items() if "gpu" in service.get("profiles", [])] == [
        "gpu-worker"
    ]


def test_every_command_and_option_exists(compose: dict[str, Any]) -> None:
    for name, service in ours(compose).items():
        command, *options = service.get("command", ["status"])
        known = {option for parameter in cli.commands.commands[command].params for option in parameter.opts}
        given = {part.partition("=")[0] for part in options}
        assert given <= known, name
        assert CliRunner().invoke(cli.commands, [command, "--help"]).exit_code == 0


def test_every_variable_is_explained(compose: dict[str, Any]) -> None:
    used = set(re.findall(r"\$\{(\w+)", json.dumps(compose)))
    assert set(re.findall(r"^#?(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)) == used


def test_the_image_is_pinned_small_and_without_root() -> None:
    last = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert re.search(r"^ARG PYTHON=python:\d+\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    assert "pip install" not in last
    assert "apt-get" not in DOCKERFILE
    for word in ("USER tuner", "HEALTHCHECK", "STOPSIGNAL SIGTERM", "org.opencontainers.image.licenses"):
        assert word in last
    assert "://" not in DOCKERFILE


def test_the_pinned_torch_is_one_that_the_package_takes() -> None:
    from packaging.requirements import Requirement

    version = re.search(r"^ARG TORCH_VERSION=(.*)$", DOCKERFILE, re.MULTILINE)
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (torch,) = (one for one in map(Requirement, dependencies) if one.name == "torch")
    assert version is not None
    assert torch.specifier.contains(version[1])


def test_what_the_image_is_made_of_is_let_in() -> None:
    copies = re.findall(r"^COPY (?!--from).*$", DOCKERFILE, re.MULTILINE)
    copied = [name for line in copies for name in shlex.split(line)[1:-1]]
    let_in = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(let_in)
    assert all((ROOT / name).exists() for name in let_in)
