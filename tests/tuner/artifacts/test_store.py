"""Artifacts in a folder and in an S3 bucket (a real HTTP server of the S3 protocol); two machines with one bucket."""

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import optuna
import pytest
from optuna.trial import TrialState

from tests.tuner.conftest import Following, Heard
from tuner.artifacts import layout
from tuner.artifacts.store import Artifacts, Owner, artifacts_of
from tuner.errors import WorkerError
from tuner.results.confirmation import companion_name
from tuner.storage.locations import StorageOptions, require_writable
from tuner.study.definition import Study
from tuner.trials.checkpoints import Checkpoints
from tuner.trials.objective import Objective
from tuner.workers.worker import sweep_artifacts

Small = Callable[..., Study]
Enter = Callable[[Study], optuna.Study]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket called `studies`."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ada")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="studies")
    yield client
    client.close()
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()  # the next server remembers
    server.stop()


def keys(client: Any) -> list[str]:
    return [one["Key"] for one in client.list_objects_v2(Bucket="studies").get("Contents", [])]


def test_a_bucket_keeps_nothing_of_a_study_that_is_deleted(bucket: Any, tmp_path: Path) -> None:
    mine, other = (artifacts_of("s3://studies/team", name, tmp_path) for name in ("mine", "mine too"))
    for kept in (mine, other):
        kept.claim("1" * 32)
        kept.put("trial-0/model.safetensors", io.BytesIO(b"weights"))
    attachment = mine.attach(b"texts")
    assert mine.sizes()["trial-0/model.safetensors"] == 7
    assert mine.attachment_sizes() == {attachment: 5}
    mine.remove_all()
    assert not mine.folder.exists()
    assert {key.split("/")[1] for key in keys(bucket)} == {"mine too", ".attachments"}


def test_a_file_that_one_machine_shares_another_fetches(bucket: Any, tmp_path: Path) -> None:
    here, there = (artifacts_of("s3://studies/team", "my study", tmp_path / name) for name in ("here", "there"))
    here.folder.mkdir(parents=True)
    (here.folder / "notes").write_bytes(b"x" * 100_000)
    here.share("notes")
    assert keys(bucket) == ["team/my study/notes"]
    there.fetch("notes")
    assert (there.folder / "notes").read_bytes() == b"x" * 100_000
    there.fetch("what nobody shared")
    assert [path.name for path in there.folder.iterdir()] == ["notes"]
    there.remove("notes")
    assert keys(bucket) == []
    there.remove("notes")


def test_a_trial_goes_on_on_another_machine_from_a_checkpoint_in_the_bucket(
    crew: Any, small: Small, enter: Enter, bucket: Any, tmp_path: Path
) -> None:
    study = small(2, pruner="none")
    found = enter(study)
    machines = []
    for name in ("here", "there"):
        artifacts = artifacts_of("s3://studies", study.name, tmp_path / name)
        machines.append(Objective(study, found.user_attrs["fingerprint"], "cpu", artifacts, checkpoint_seconds=0.0))

    class Leaving:
        """An objective that asks its worker to stop in the middle of a trial."""

        def __getattr__(self, name: str) -> Any:
            return getattr(machines[0], name)

        def __call__(self, number: int, attempt: int, config: Any, observer: Any) -> Any:
            def leave(training: Any) -> None:
                if training.step == 20:
                    crew.requested.set()

            return machines[0](number, attempt, config, Following(observer, leave))

    crew.work(study, Leaving())
    assert [trial.state for trial in found.trials] == [TrialState.WAITING]
    assert keys(bucket) == [f"{study.name}/checkpoints/trial-0.1.safetensors"]
    crew.requested.clear()
    crew.work(study, machines[1])
    assert [trial.state for trial in found.trials] == [TrialState.COMPLETE] * 2
    assert found.trials[0].user_attrs["tokens"] == 4_096
    assert not [key for key in keys(bucket) if "checkpoints" in key]
    assert len([key for key in keys(bucket) if "trial-0/" in key]) == 5
    assert len([key for key in keys(bucket) if key.startswith(".attachments/")]) == 2
    run = machines[0].artifacts.fetch_run(0)
    assert run is not None
    assert (run / "model.safetensors").stat().st_size > 0
    assert machines[0].artifacts.fetch_run(7) is None
    assert crew.said == []


def test_a_bucket_that_goes_away_costs_checkpoints_and_weights_and_not_the_trial(
    crew: Any, small: Small, enter: Enter, bucket: Any, tmp_path: Path
) -> None:
    study = small(1)
    found = enter(study)
    artifacts = artifacts_of("s3://studies", study.name, tmp_path)
    bucket.delete_bucket(Bucket="studies")
    crew.work(study, Objective(study, found.user_attrs["fingerprint"], "cpu", artifacts, checkpoint_seconds=0.0))
    assert found.trials[0].state == TrialState.COMPLETE
    assert crew.said[0].startswith("no checkpoint of trial 0: ")
    assert "NoSuchBucket" in crew.said[0]
    assert crew.said[-2].startswith("the weights of trial 0 are not kept: ")
    assert crew.said[-1].startswith("the samples of trial 0 are not kept for the dashboard: ")


def test_a_bucket_that_is_not_there_is_refused_at_the_start(bucket: Any, tmp_path: Path) -> None:
    with pytest.raises(
        WorkerError, match=r"^s3://elsewhere/x: cannot be reached \(.*404.*\); check the bucket and the AWS_"
    ):
        artifacts_of("s3://elsewhere/x", "study", tmp_path)


def test_names_in_a_folder_stay_in_it(tmp_path: Path) -> None:
    artifacts = artifacts_of(str(tmp_path / "shared"), "study", tmp_path / "default")
    assert type(artifacts) is Artifacts
    assert artifacts.folder == tmp_path / "shared" / "study"


def test_the_longest_name_of_a_study_leaves_room_for_its_confirmation_and_for_a_namesake(tmp_path: Path) -> None:
    longest = "a" * layout.NAME_BYTES
    assert layout.name_problem(longest) is None
    assert layout.name_problem(longest + "a") is not None
    for name in (companion_name(longest), f"{companion_name(longest)}-12345678"):
        assert artifacts_of(str(tmp_path), name, tmp_path).folder.name == name


def test_names_of_files_are_read_as_they_are_written() -> None:
    assert layout.CHECKPOINT.fullmatch(layout.checkpoint_name(12, 3))
    assert all(layout.RUN_FILE.fullmatch(layout.run_file(12, name)) for name in layout.RUN)


@pytest.mark.parametrize(
    "name", ["..", "../elsewhere", "/etc", "a/../../b", ".hidden", "", "two\nlines", "a\0b", "-x", " ", "a" * 256]
)
def test_a_study_whose_name_leads_out_of_the_folder_has_no_artifacts(tmp_path: Path, name: str) -> None:
    with pytest.raises(WorkerError, match="no folder can have this name"):
        artifacts_of(str(tmp_path), name, tmp_path)


@pytest.mark.parametrize(
    "name", ["../secret", "..%2Fsecret", "%2e%2e/secret", "....//secret", "0/../../secret", "/etc/passwd"]
)
def test_the_dashboard_serves_no_file_outside_its_attachments(storage: Any, tmp_path: Path, name: str) -> None:
    from optuna_dashboard import wsgi
    from werkzeug.test import Client

    artifacts = artifacts_of(str(tmp_path), "study", tmp_path)
    (tmp_path / "secret").write_text("what nobody may see")
    kept = artifacts.attach(b"a sample")
    found = optuna.create_study(storage=storage)
    trial = found.ask()
    for one in (name, kept):  # whoever can write to the database can write this
        meta = json.dumps({"artifact_id": one, "filename": "../../x", "mimetype": "text/plain", "encoding": None})
        storage.set_trial_system_attr(trial._trial_id, f"artifacts:{one}", meta)
    client = Client(wsgi(storage, artifact_store=artifacts.attachments()))
    page = f"/artifacts/{found._study_id}/{trial._trial_id}"
    with client.get(f"{page}/{kept}") as answer:
        assert answer.data == b"a sample"
    with client.get(f"{page}/{name}") as answer:
        assert answer.status_code == 404
        assert b"nobody" not in answer.data
    optuna.delete_study(study_name=found.study_name, storage=storage)


def test_no_attachment_leads_to_another_file(tmp_path: Path) -> None:
    from optuna.artifacts.exceptions import ArtifactNotFound

    store = artifacts_of(str(tmp_path / "artifacts"), "study", tmp_path).attachments()
    secret = tmp_path / "secret"
    secret.write_text("what nobody may see")
    link = tmp_path / "artifacts" / ".attachments" / "link"
    link.symlink_to(secret)
    for name in ("link", "../../secret", str(secret), "..", ""):
        with pytest.raises(ArtifactNotFound):
            store.open_reader(name)
        with pytest.raises((ArtifactNotFound, FileExistsError)):
            store.write(name, io.BytesIO(b"other words"))
    assert secret.read_text() == "what nobody may see"
    store.write("kept", io.BytesIO(b"a sample"))
    with store.open_reader("kept") as reader:
        assert reader.read() == b"a sample"
    store.remove("kept")
    with pytest.raises(ArtifactNotFound):
        store.remove("kept")


def test_a_dashboard_needs_to_write_nothing_but_attachments(tmp_path: Path) -> None:
    StorageOptions(None, None, str(tmp_path / "artifacts")).attachments()
    assert [path.name for path in tmp_path.glob("**/*")] == ["artifacts", ".attachments"]
    (tmp_path / "file").touch()
    with pytest.raises(WorkerError, match=r"file: cannot be made .*; choose other --artifacts"):
        StorageOptions(None, None, str(tmp_path / "file")).attachments()


def test_attachments_and_files_are_listed_by_the_names_that_others_know_them_by(bucket: Any, tmp_path: Path) -> None:
    for place in (str(tmp_path / "shared"), "s3://studies/team"):
        artifacts = artifacts_of(place, "study", tmp_path / "default")
        other = artifacts_of(place, "study 2", tmp_path / "default")
        for one in (artifacts, other):
            one.put("trial-1/config.yaml", io.BytesIO(b"x"))
        assert artifacts.names() == ["trial-1/config.yaml"]


def test_in_a_bucket_too_files_are_one_studys(bucket: Any, tmp_path: Path) -> None:
    ours, theirs = (Owner(letter * 32, "study") for letter in "ab")
    one, other, again = (artifacts_of("s3://studies/team", who, tmp_path) for who in (ours, theirs, ours))
    one.put("trial-1/config.yaml", io.BytesIO(b"x"))
    assert other.names() == ["owner.json"]
    assert again.folder == one.folder != other.folder
    assert sorted(keys(bucket)) == [
        "team/study-bbbbbbbb/owner.json",
        "team/study/owner.json",
        "team/study/trial-1/config.yaml",
    ]
    assert one.claim(theirs.identity) == ours.identity
    assert str(other.refused) == "s3://studies/team/study"


# What killed writers leave.


def leave(kept: Artifacts, *names: str) -> None:
    for name in names:
        path = kept.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_what_is_left_of_trials_that_ended_is_swept_and_nothing_else(tmp_path: Path) -> None:
    kept = Artifacts(tmp_path)
    needed = [
        "checkpoints/trial-1.2.safetensors",
        "checkpoints/.trial-1.3.safetensors.host-7",
        "logs/worker.log",
        "owner.json",
        "trial-0/config.yaml",
        "trial-1/.model.safetensors.host-7",
    ]
    leave(
        kept,
        *needed,
        "checkpoints/trial-0.1.safetensors",
        "checkpoints/.trial-0.2.safetensors.host-7",
        "checkpoints/.trial-2.1.safetensors.4711",  # as version 0.1 named them
        "trial-0/.model.safetensors.host-7",
        "trial-2/config.yaml",
        "trial-2/.model.safetensors.host-7",
    )
    kept.sweep(ended={0, 2}, complete={0})
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(needed)


def test_a_trial_that_goes_on_sweeps_what_its_earlier_attempts_left_half_written(tmp_path: Path) -> None:
    kept = Artifacts(tmp_path)
    own, earlier, other = (f"checkpoints/.trial-{name}.safetensors.host-7" for name in ("1.3", "1.2", "11.2"))
    leave(kept, own, earlier, other, "checkpoints/trial-1.1.safetensors")
    checkpoints = Checkpoints(kept, 1, 3)
    with Heard() as said:
        assert [path.name for path in checkpoints.newest_first()] == ["trial-1.1.safetensors"]
    assert kept.leftovers() == {f"checkpoints/trial-{name}.safetensors" for name in ("1.1", "1.3", "11.2")}
    checkpoints.delete()
    assert kept.leftovers() == {"checkpoints/trial-11.2.safetensors"}
    assert said == []


def test_uploads_that_were_not_finished_are_ended(bucket: Any, tmp_path: Path) -> None:
    kept = artifacts_of("s3://studies/team", "study", tmp_path)
    for number in (0, 1):
        bucket.create_multipart_upload(Bucket="studies", Key=f"team/study/checkpoints/trial-{number}.1.safetensors")
    kept.put("checkpoints/trial-0.2.safetensors", io.BytesIO(b"x"))
    kept.sweep(ended={0}, complete={0})
    (left,) = bucket.list_multipart_uploads(Bucket="studies")["Uploads"]
    assert left["Key"] == "team/study/checkpoints/trial-1.1.safetensors"
    assert keys(bucket) == []
    assert Artifacts(kept.folder).leftovers() == set()


def test_a_worker_sweeps_before_it_works(small: Small, enter: Enter, tmp_path: Path) -> None:
    found = enter(small(2))
    found.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
    kept = Artifacts(tmp_path)
    leave(kept, "checkpoints/trial-0.1.safetensors", "checkpoints/trial-1.1.safetensors", "trial-0/config.yaml")
    sweep_artifacts(found, kept)
    assert kept.leftovers() == {"checkpoints/trial-1.1.safetensors"}


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that all users can enter, as pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="shared-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes two users, which root alone can")
@pytest.mark.parametrize(("umask", "works"), [(0o002, True), (0o022, False)])
def test_two_users_share_a_folder_or_learn_what_it_takes(open_folder: Path, umask: int, works: bool) -> None:
    """Users 60001 and 60002 of group 60000, in a folder of that group that hands its group on."""
    shared = open_folder / "shared"
    shared.mkdir()
    os.chown(shared, 60001, 60000)
    shared.chmod(0o2775)
    owner = Owner("a" * 32, "study")

    def as_user(user: int, attempt: int) -> int:
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([60000])
                os.setgid(user)
                os.setuid(user)
                os.umask(umask)
                kept = artifacts_of(str(shared), owner, open_folder)
                require_writable(kept.folder)
                kept.put(f"checkpoints/trial-0.{attempt}.safetensors", io.BytesIO(b"x"))
                kept.put("trial-0/config.yaml", io.BytesIO(b"x"))
                Checkpoints(kept, 0, attempt).delete()
                kept.remove_run(0)
                os._exit(0 if kept.leftovers() == {"owner.json"} else 1)
            except WorkerError as error:
                os._exit(4 if "you may not write there; let its owner share it" in str(error) else 1)
            finally:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert [as_user(60001, 1), as_user(60002, 2)] == [0, 0 if works else 4]
