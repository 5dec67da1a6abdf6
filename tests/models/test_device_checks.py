"""Checks of the device: what each notices, and that a crash or a hang is a result and not the end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from models import device_checks
from models.device_checks import Check

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def results(name: str) -> list[str]:
    return [each.result for each in device_checks.CHECKS[name](CPU)]


def test_only_the_models_are_needed(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    program = "import sys, models.device_checks; print(*sys.modules)"
    child = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert not {"tuner", "optuna", "sqlalchemy", "psycopg2"} & set(child.stdout.split())


def test_a_device_that_is_not_there_is_the_only_result() -> None:
    device = f"cuda:{torch.cuda.device_count()}"
    (result,) = device_checks.check_device(device)
    assert (result.name, result.result) == ("device", "failed")
    assert device in result.text


def test_wrong_gradients_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(results("arithmetic")) == {"ok"}
    right = device_checks._gradients
    monkeypatch.setattr(
        device_checks,
        "_gradients",
        lambda config, device: right(config, device) * (1.1 if config.precision == "bfloat16" else 1),
    )
    found = list(device_checks.CHECKS["arithmetic"](CPU))
    assert {each.result for each in found} == {"failed"}
    assert all("precision: float32" in each.remedy for each in found)


def test_a_recurrence_in_float16_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(results("recurrences")) == {"ok"}
    monkeypatch.setattr(device_checks, "autocast", lambda device, half: torch.autocast("cpu", torch.float16))
    first = next(device_checks.CHECKS["recurrences"](CPU))  # on a CPU, torch has no LSTM in it
    assert first.result == "failed"
    assert "float16" in first.text


def test_trainings_that_differ_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = iter(range(4))
    train = device_checks._train
    monkeypatch.setattr(
        device_checks,
        "_train",
        lambda config, device: train(config.model_copy(update={"seed": next(seeds)}), device),
    )
    assert results("repetition") == ["warning", "warning"]


def test_running_out_of_memory_that_is_not_recognised_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert results("memory") == ["ok"]
    monkeypatch.setattr(device_checks, "ran_out_of_memory", lambda error: False)
    assert results("memory") == ["failed"]


def test_two_processes_train_and_add_up() -> None:
    assert results("two workers") == ["ok"]
    assert results("several processes") == ["ok"]


def test_a_process_that_cannot_train_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        device_checks, "_command", lambda *arguments: [sys.executable, "-c", "raise SystemExit('busy')"]
    )
    (result,) = device_checks.CHECKS["two workers"](CPU)
    assert (result.result, result.text) == ("failed", "busy")


def _ends(monkeypatch: pytest.MonkeyPatch, program: str, seconds: float) -> Check:
    monkeypatch.setattr(device_checks, "_command", lambda *arguments: [sys.executable, "-c", program])
    monkeypatch.setattr(device_checks, "CHECKS", {"arithmetic": _never})
    (result,) = device_checks.check_device("cpu", seconds)
    return result


def _never(device: torch.device) -> Iterator[Check]:
    raise AssertionError("the process was to do this")


def test_a_check_that_crashes_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _ends(monkeypatch, f"import os; os.kill(os.getpid(), {signal.SIGSEGV.value})", 60)
    assert result.result == "failed"
    assert "SIGSEGV" in result.text


def test_a_check_that_hangs_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _ends(monkeypatch, "import time; time.sleep(600)", 0.1)
    assert result.result == "failed"
    assert "did not finish" in result.text


def test_an_error_in_a_check_is_a_result(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(device: torch.device) -> NoReturn:
        raise RuntimeError("first line\nsecond line")

    def leave(code: int) -> None:
        assert code == 0

    monkeypatch.setattr(device_checks, "CHECKS", {"memory": broken})
    monkeypatch.setattr(os, "_exit", leave)
    device_checks.answer("memory", "cpu")
    printed = capsys.readouterr().out
    assert "RuntimeError: first line" in printed
    assert "second line" not in printed
