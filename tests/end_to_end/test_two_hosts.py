"""Two hosts, each a network namespace with an address of its own, on one PostgreSQL; one is cut off for a while."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import optuna
import psutil
import pytest
import sqlalchemy as sql
from optuna.trial import TrialState

from tests.end_to_end.conftest import TUNER
from tests.end_to_end.test_interruptions import Paced, worth
from tuner.storage import embedded
from tuner.storage.connection import open_storage
from tuner.storage.leases import leases

BRIDGE, NETWORK = "tunertest", "10.213.77"


def ip(*words: object) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True)


class Hosts:
    """Namespaces `tunertest-a` and `tunertest-b` behind a bridge of ours."""

    def __init__(self) -> None:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, name in enumerate("ab", start=2):
            ip("netns", "add", f"{BRIDGE}-{name}")
            ip("link", "add", f"{BRIDGE}-{name}", "type", "veth", "peer", "name", "eth0", "netns", f"{BRIDGE}-{name}")
            ip("link", "set", f"{BRIDGE}-{name}", "master", BRIDGE, "up")
            ip("-n", f"{BRIDGE}-{name}", "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            ip("-n", f"{BRIDGE}-{name}", "link", "set", "eth0", "up")
            ip("-n", f"{BRIDGE}-{name}", "link", "set", "lo", "up")

    def cut(self, name: str) -> None:
        ip("link", "set", f"{BRIDGE}-{name}", "down")

    def heal(self, name: str) -> None:
        ip("link", "set", f"{BRIDGE}-{name}", "up")

    @staticmethod
    def remove() -> None:
        for words in (("netns", "del", f"{BRIDGE}-a"), ("netns", "del", f"{BRIDGE}-b"), ("link", "del", BRIDGE)):
            with suppress(subprocess.CalledProcessError):
                ip(*words)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2, to make network namespaces")
    Hosts.remove()
    try:
        made = Hosts()
    except subprocess.CalledProcessError as error:
        Hosts.remove()
        pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")
    yield made
    Hosts.remove()


@pytest.fixture
def url(place: Any, hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a PostgreSQL that both hosts reach."""
    folder = place.folder / "server"
    with embedded.attached(folder):
        rules = folder / "cluster" / "pg_hba.conf"
        rules.write_text(f"host all all {NETWORK}.0/24 trust\nlocal all all trust\n")
    monkeypatch.setitem(embedded.SETTINGS, "listen_addresses", f"{NETWORK}.1")
    with embedded.attached(folder) as address:
        yield f"postgresql://{address['username']}@{NETWORK}.1:{embedded.PORT}/{address['database']}"


def test_a_host_that_is_cut_off_in_the_middle_of_a_trial_loses_nothing_and_doubles_nothing(
    place: Any, hosts: Hosts, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.home)
    study = Paced(place, 4)

    def start(name: str, *words: object) -> Any:
        inside = ("ip", "netns", "exec", f"{BRIDGE}-{name}", TUNER)
        return place.start(*words, "-n", 1, command=inside, TUNER_STORAGE=url)

    study.hold()
    first = start("a", "run", "paced.yaml")
    first.until(lambda: study.held(1))
    second = start("b", "work", "paced")
    both = second.until(lambda: study.held(2))
    (cut_off,) = (pid for pid in both if psutil.Process(pid).ppid() != first.process.pid)
    hosts.cut("b")
    with open_storage(url) as storage:
        found = optuna.load_study(study_name="paced", storage=storage)
        (orphan,) = (trial for trial in found.trials if trial.params["learning_rate"] == both[cut_off])
        with storage.engine.begin() as connection:  # as if LEASE_SECONDS had passed
            mine = leases.c.trial_id == orphan._trial_id
            connection.execute(sql.update(leases).where(mine).values(expires_at=sql.func.now()))
        study.go_on()
        assert first.end() == 0, first.said
        hosts.heal("b")
        assert second.end() == 0, second.said
        trials = found.get_trials()
    log = "".join(path.read_text() for path in (place.artifacts / "paced" / "logs").glob("*.log"))
    assert "was taken over" in log
    assert [trial.number for trial in trials] == list(range(4))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert all(sorted(trial.intermediate_values) == [1, 2, 3, 4] for trial in trials)
    assert trials[orphan.number].user_attrs["attempts"] == 2
    assert all(trial.value == worth(study, trial) for trial in trials)
