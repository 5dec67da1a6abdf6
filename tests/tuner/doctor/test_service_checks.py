"""Checks of database, artifacts and disks: what each says, and that none leaves anything behind."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models.device_checks import Check
from tuner.doctor import service_checks
from tuner.storage.locations import StorageOptions


def checked(places: StorageOptions) -> dict[str, Check]:
    return {each.name: each for each in service_checks.check_service(places)}


@pytest.fixture
def places(tmp_path: Path) -> StorageOptions:
    return StorageOptions(None, tmp_path / "postgres", str(tmp_path / "artifacts"))


def test_a_machine_without_studies_is_fine_and_stays_so(places: StorageOptions, tmp_path: Path) -> None:
    found = checked(places)
    assert {each.result for each in found.values()} == {"ok"}, found
    assert "PostgreSQL" in found["database"].text
    assert not (tmp_path / "postgres").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_database_that_is_away_and_its_password(places: StorageOptions) -> None:
    url = "postgresql://worker:secret@localhost:1/nowhere"
    found = checked(StorageOptions(url, None, places.artifacts))["database"]
    assert found.result == "failed"
    assert found.remedy
    assert "secret" not in found.text + found.remedy


def test_artifacts_where_no_folder_can_be(
    places: StorageOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_checks, "_database", lambda places: Check("database", "ok", ""))
    (tmp_path / "file").write_text("")
    found = checked(StorageOptions(None, tmp_path, str(tmp_path / "file" / "artifacts")))["artifacts"]
    assert found.result == "failed"
    assert "--artifacts" in found.text + found.remedy


@pytest.mark.parametrize(("free", "result"), [(2**20, "failed"), (2**29, "warning"), (2**33, "ok")])
def test_a_disk_with_little_room(free: int, result: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 2**40 - free, free))
    assert service_checks._disk(tmp_path, "artifacts").result == result


def test_the_command_says_it_as_json(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "tuner", "doctor", "--device", "cuda:99", "--json"]
    command += ["--data-folder", str(tmp_path / "postgres"), "--artifacts", str(tmp_path / "artifacts")]
    child = subprocess.run(command, capture_output=True, text=True)
    told = json.loads(child.stdout)
    assert (child.returncode, told["failed"]) == (1, True)
    results = {each["name"]: each["result"] for each in told["checks"]}
    assert results["device"] == "failed"
    assert results["database"] == "ok"
