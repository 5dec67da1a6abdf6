"""The container files keep what the documents promise: the compose file by the specification's own schema.

compose_spec.json is that of docker-compose 1.29.2 (Copyright Docker Inc, Apache License 2.0), unchanged.
"""

import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
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


def writable(service: dict[str, Any]) -> dict[str, str]:
    """The volumes that a service may write to, by the folder that they are."""
    given = [place.split(":") for place in service.get("volumes", [])]
    return {parts[1]: parts[0] for parts in given if parts[2:] != ["ro"]}


def test_a_dashboard_cannot_reach_what_workers_run_or_read(compose: dict[str, Any]) -> None:
    mounts = {name: writable(service) for name, service in ours(compose).items()}
    assert mounts["dashboard"] == {"/var/lib/tuner/artifacts/.attachments": "attachments"}
    assert compose["services"]["dashboard"]["volumes"] == ["attachments:/var/lib/tuner/artifacts/.attachments"]
    for name in ("worker", "gpu-worker", "tuner"):
        service = compose["services"][name]
        assert service["environment"]["PYTHONPATH"] == "/studies"
        assert "./studies:/studies:ro" in service["volumes"]
        assert "working_dir" not in service
    workdir = re.findall(r"^WORKDIR (.*)$", DOCKERFILE, re.MULTILINE)[-1]
    users = {name for name, places in mounts.items() for folder in places if workdir.startswith(folder)}
    assert users == {"tuner"}
    assert "VOLUME" not in DOCKERFILE


def test_a_started_service_is_found_healthy_within_seconds(compose: dict[str, Any]) -> None:
    checks = {name: service["healthcheck"] for name, service in compose["services"].items() if "healthcheck" in service}
    assert set(checks) == {"postgres", "worker", "gpu-worker", "dashboard"}
    for check in checks.values():
        assert int(check["interval"].removesuffix("s")) <= 5
        assert int(check["interval"].removesuffix("s")) * check["retries"] >= 60
    for name in ("worker", "gpu-worker"):
        (heartbeat,) = (part for part in compose["services"][name]["command"] if part.startswith("--heartbeat="))
        assert heartbeat.removeprefix("--heartbeat=") in checks[name]["test"][1]


def test_the_check_of_a_worker_knows_a_fresh_heartbeat_from_an_old_one(compose: dict[str, Any], tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    _, check = compose["services"]["worker"]["healthcheck"]["test"]

    def is_healthy() -> bool:
        return (
            subprocess.run(["sh", "-c", check.replace("/tmp/alive", str(alive))], stderr=subprocess.DEVNULL).returncode
            == 0
        )

    assert not is_healthy()
    alive.touch()
    assert is_healthy()
    os.utime(alive, (0, 0))
    assert not is_healthy()


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
    for word in ("USER tuner", "STOPSIGNAL SIGTERM", "org.opencontainers.image.licenses"):
        assert word in last
    assert "://" not in DOCKERFILE


def locked(name: str) -> dict[str, list[tuple[Requirement, str]]]:
    """The packages of a lock, each with the text below it: hashes, and who wants it."""
    text = (ROOT / "locks" / name).read_text()
    found: dict[str, list[tuple[Requirement, str]]] = {}
    for line, below in re.findall(r"^(\S.*?) \\\n((?:^    .*\n)+)", text, re.MULTILINE):
        requirement = Requirement(line)
        found.setdefault(canonicalize_name(requirement.name), []).append((requirement, below))
    assert sum(map(len, found.values())) == len(re.findall(r"^[a-z0-9]", text, re.MULTILINE))
    return found


def asked() -> dict[str, Requirement]:
    """What the package asks for on Linux, with its extra `s3`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["s3"]])
    return {canonicalize_name(one.name): one for one in asked}


def holds(requirement: Requirement, python: str) -> bool:
    where = {"python_full_version": python, "python_version": python.rpartition(".")[0]}
    where |= {"sys_platform": "linux", "platform_machine": "x86_64", "implementation_name": "cpython"}
    return requirement.marker is None or requirement.marker.evaluate(where)


@pytest.mark.parametrize("lock", ["cpu.txt", "gpu.txt"])
@pytest.mark.parametrize("python", ["3.11.0", "3.13.0"])
def test_a_lock_has_what_the_package_asks_for(lock: str, python: str) -> None:
    packages = locked(lock)
    wanted = {name for name, pins in packages.items() if any("(pyproject.toml)" in below for _, below in pins)}
    assert wanted == set(asked()), "run: python docs/make_locks.py"
    for name, requirement in asked().items():
        (pin,) = (pin for pin, _ in packages[name] if holds(pin, python))
        ((operator, version),) = ((one.operator, one.version) for one in pin.specifier)
        assert operator == "=="
        assert requirement.specifier.contains(version), f"{name}: run python docs/make_locks.py"


@pytest.mark.parametrize("lock", ["cpu.txt", "gpu.txt", "build.txt"])
def test_a_lock_has_hashes_of_everything_and_names_no_index(lock: str) -> None:
    assert all("--hash=sha256:" in below for pins in locked(lock).values() for _, below in pins)
    assert not re.search(r"://|--(extra-)?index|--find-links|^-", (ROOT / "locks" / lock).read_text(), re.MULTILINE)


def test_the_locks_differ_in_what_a_gpu_needs_alone() -> None:
    cpu, gpu = locked("cpu.txt"), locked("gpu.txt")
    ((torch, _),) = cpu.pop("torch")
    ((torch_for_gpus, _),) = gpu.pop("torch")
    assert str(torch.specifier) == f"{torch_for_gpus.specifier}+cpu"
    assert all(name.startswith(("nvidia-", "cuda-", "triton")) for name in gpu.keys() - cpu.keys())
    assert {name: gpu[name] for name in cpu} == cpu


def test_nothing_that_is_not_locked_gets_into_the_image() -> None:
    installs = re.findall(r"pip install [^&]*", DOCKERFILE.replace("\\\n", " "))
    assert len(installs) == 3
    assert all("--require-hashes" in one or "--offline" in one for one in installs)
    assert "ARG VARIANT=cpu" in DOCKERFILE


def test_what_the_image_is_made_of_is_let_in() -> None:
    copies = re.findall(r"^COPY (?!--from).*$", DOCKERFILE, re.MULTILINE)
    copied = [name for line in copies for name in shlex.split(line)[1:-1]]
    let_in = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(let_in)
    assert all((ROOT / name).exists() for name in let_in)
