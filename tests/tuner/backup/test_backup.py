"""Backups: what is restored equals what was there, in any state; what is damaged or hostile does nothing at all."""

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import plotly.graph_objects as go
import pytest
import sqlalchemy as sql
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as some
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import save_note, save_plotly_graph_object
from optuna_dashboard._note import get_note_from_system_attrs, save_note_with_version

from models.config import Config
from models.errors import RunError, UserError
from tuner.artifacts.layout import OWNER, RUN
from tuner.artifacts.store import Artifacts, artifacts_of
from tuner.backup import archive
from tuner.backup.dump import backup, restore
from tuner.control import create
from tuner.errors import StudyError, WorkerError
from tuner.results.confirmation import CONFIRMS, companion_name, companion_of
from tuner.results.confirmation import enter as enter_companion
from tuner.results.export import chosen_trial, exported
from tuner.storage.connection import open_storage
from tuner.storage.handle import StudyHandle
from tuner.storage.leases import Leases
from tuner.storage.ownership import KEY, owner_of
from tuner.study.definition import Study, parse_study, stored_study

Small = Callable[..., Study]
Enter = Callable[[Study], optuna.Study]


def places(folder: Path) -> Callable[[Any], Artifacts]:
    return lambda name: artifacts_of(str(folder), name, folder)


def known(storage: RDBStorage, name: str) -> dict[str, Any]:
    """All that a person can see of a study, but for its name and ids."""
    found = optuna.load_study(study_name=name, storage=storage)
    leases, ids = Leases(storage, found._study_id), {trial._trial_id: trial.number for trial in found.trials}
    attributes = storage.get_study_system_attrs(found._study_id)
    return {
        "directions": found.directions,
        "user": {key: found.user_attrs[key] for key in found.user_attrs.keys() - {"study", KEY, CONFIRMS}},
        "definition": {key: found.user_attrs["study"][key] for key in found.user_attrs["study"].keys() - {"name"}},
        "system": {
            key: value
            for key, value in attributes.items()
            if not key.startswith(tuple(f"dashboard:{one}:" for one in ids))
        },
        "notes": {number: get_note_from_system_attrs(attributes, one) for one, number in ids.items()},
        "trials": [vars_of(trial) for trial in found.trials],
        "leases": (leases.state(), leases.active_seconds()),
        "attempts": {ids[one]: attempt for one, attempt in leases.attempts().items()},
    }


def vars_of(trial: FrozenTrial) -> str:
    """What a trial is, in words: nan is equal to nan there."""
    shown = (trial.state, trial.values, trial.datetime_start, trial.datetime_complete, list(trial.params.items()))
    more = (trial.distributions, trial.intermediate_values, trial.user_attrs, trial.system_attrs)
    return repr((trial.number, *shown, *(sorted(one.items(), key=lambda item: item[0]) for one in more)))


def files(folder: Path) -> dict[str, bytes]:
    """All files but those that say whose they are."""
    found = [path for path in folder.glob("**/*") if path.is_file() and path.name != OWNER]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


numbers = some.floats(allow_nan=False)
texts = some.text(some.characters(codec="utf-8"), max_size=20)
values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | texts,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
names = some.text(some.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
moments = some.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1))


CHOICES = [None, True, 7, 0.1, "groß ✓\n"]
DISTRIBUTIONS = {
    "rate": FloatDistribution(1e-9, 1e3, log=True),
    "size": IntDistribution(0, 64, step=8),
    "kind": CategoricalDistribution(CHOICES),
}


@some.composite
def trials(draw: Any) -> FrozenTrial:
    state = draw(some.sampled_from([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.WAITING]))
    drawn = {
        "rate": draw(some.floats(1e-9, 1e3)),
        "size": 8 * draw(some.integers(0, 8)),
        "kind": draw(some.sampled_from(CHOICES)),
    }
    taken = draw(some.permutations(sorted(drawn)).map(lambda order: order[: len(order) - 1]))
    made = optuna.trial.create_trial(
        state=state,
        values=[draw(numbers)] if state == TrialState.COMPLETE else None,
        params={name: drawn[name] for name in taken},
        distributions={name: DISTRIBUTIONS[name] for name in taken},
        intermediate_values=draw(some.dictionaries(some.integers(0, 100), some.floats(), max_size=4)),
        user_attrs=draw(some.dictionaries(names, values, max_size=3)),
        system_attrs=draw(some.dictionaries(names, values, max_size=3)),
    )
    if state != TrialState.WAITING:
        made.datetime_start = draw(moments)
        if state.is_finished():
            made.datetime_complete = made.datetime_start + timedelta(seconds=draw(some.floats(0, 1e6)))
    return made


@settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # each example is a study in the database: shrinking takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(some.lists(trials(), max_size=6), some.dictionaries(names, values, max_size=3), some.floats(0, 1e7), texts)
def test_what_is_restored_equals_what_was_there(
    storage: RDBStorage, small: Small, enter: Enter, tmp_path_factory: pytest.TempPathFactory,
    made: list[FrozenTrial], facts: dict[str, Any], seconds: float, note: str,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("backup")
    study = small(9)
    found = enter(study)
    for trial in made:
        found.add_trial(trial)
    for name, value in facts.items():
        found.set_user_attr(name, value)
    save_note(found, note)
    for trial in found.trials[:2]:
        save_note_with_version(storage, found._study_id, trial._trial_id, 1, note)
    with storage.engine.begin() as connection:
        own = sql.text("update tuner_studies set active_seconds = :seconds, state = 'paused' where study_id = :id")
        connection.execute(own, {"seconds": seconds, "id": found._study_id})
    backup(storage, study, folder / "study.tar", places(folder / "old"))
    told = restore(storage, folder / "study.tar", places(folder / "new"), study.name + " again")
    assert known(storage, study.name + " again") == known(storage, study.name)
    assert told.trials == len(made)


def furnish(storage: RDBStorage, found: optuna.Study, kept: Artifacts, complete: list[int]) -> None:
    """Gives completed trials what their workers leave: a run, samples that the dashboard shows, a note."""
    for number in complete:
        for name in RUN:
            kept.put(f"trial-{number}/{name}", io.BytesIO(f"{name} of {number}".encode()))
        trial, attachment = found.trials[number], kept.attach(f"samples of {number}".encode())
        save_note_with_version(storage, found._study_id, trial._trial_id, 1, f"what trial {number} writes")
        meta = {"artifact_id": attachment, "filename": "samples.jsonl", "mimetype": "text/plain"}
        row = {"id": trial._trial_id, "key": f"artifacts:{attachment}", "meta": json.dumps(json.dumps(meta))}
        with storage.engine.begin() as connection:  # Optuna refuses attributes of a finished trial
            insert = "insert into trial_system_attributes (trial_id, key, value_json) values (:id, :key, :meta)"
            connection.execute(sql.text(insert), row)


def score(number: int, config: Config, rung: int) -> float:
    return config.learning_rate / rung


@pytest.fixture
def searched(crew: Any, small: Small, enter: Enter, storage: RDBStorage, tmp_path: Path) -> tuple[Study, optuna.Study]:
    """A study of three completed trials, one that a worker has in hand, and a confirmation of the best two."""
    study = small(3, pruner="none")
    found = enter(study)
    crew.work(study, score)
    furnish(storage, found, places(tmp_path / "old")(study.name), [0, 2])
    chosen = sorted(found.trials, key=lambda trial: trial.value or 0)[:2]
    companion = enter_companion(StudyHandle(storage, found, study), chosen, 2).optuna_study
    furnish(storage, companion, places(tmp_path / "old")(companion_name(study.name)), [])
    running = found.ask()
    with storage.engine.begin() as connection:
        Leases(storage, found._study_id)._lease(connection, running._trial_id, "one")
    running.suggest_float("learning_rate", 1e-3, 1e-1, log=True)
    running.suggest_categorical("architecture", ["rnn", "gru"])
    running.set_user_attr("configuration", found.trials[0].user_attrs["configuration"])
    running.report(0.5, 1)
    places(tmp_path / "old")(study.name).put("checkpoints/trial-3.1.safetensors", io.BytesIO(b"half trained"))
    places(tmp_path / "old")(study.name).put("checkpoints/trial-2.1.safetensors", io.BytesIO(b"left over"))
    save_plotly_graph_object(found, go.Figure(go.Scatter(y=[1, 2])), graph_object_id="curve")
    return study, found


def test_a_study_moves_to_another_database_with_its_confirmation_runs_and_samples(
    searched: tuple[Study, optuna.Study], storage: RDBStorage, fresh_url: str, tmp_path: Path
) -> None:
    study, found = searched
    told = backup(storage, study, tmp_path / "study.tar", places(tmp_path / "old"))
    assert str(told) == f"study {study.name}: 4 trials (1 unfinished), 2 kept runs, 2 attachments"
    with open_storage(fresh_url) as other:
        assert str(restore(other, tmp_path / "study.tar", places(tmp_path / "new"))) == str(told)
        for name in (study.name, companion_name(study.name)):
            assert waiting(known(storage, name)) == known(other, name)
        again = optuna.load_study(study_name=study.name, storage=other)
        for trial in (0, 1, 2):
            before, after = (
                exported(StudyHandle(storage, one, study), chosen_trial(one, trial), Path("best.yaml"))
                for one in (found, again)
            )
            assert before == after
    assert files(tmp_path / "new") == {
        name: content for name, content in files(tmp_path / "old").items() if not name.endswith("trial-2.1.safetensors")
    }


def waiting(seen: dict[str, Any]) -> dict[str, Any]:
    """What is seen of a study when its running trials wait."""
    running, waits = f"{TrialState.RUNNING!r}", f"{TrialState.WAITING!r}"
    return seen | {"trials": [trial.replace(running, waits) for trial in seen["trials"]]}


def test_a_worker_goes_on_with_a_trial_that_was_running(
    searched: tuple[Study, optuna.Study], crew: Any, storage: RDBStorage, tmp_path: Path
) -> None:
    study, found = searched
    backup(storage, study, tmp_path / "study.tar", places(tmp_path / "old"))
    restore(storage, tmp_path / "study.tar", places(tmp_path / "new"), "again")
    again = optuna.load_study(study_name="again", storage=storage)
    more = stored_study(again.user_attrs["study"]).model_copy(
        update={"budget": study.budget.model_copy(update={"trials": 4})}
    )
    assert more.name == "again"
    crew.work(more, score)
    (trial,) = again.trials[3:]
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs["attempts"] == 2
    assert trial.params == found.trials[3].params
    assert trial.intermediate_values[1] == 0.5  # what the first worker reported stays
    optuna.delete_study(study_name="again", storage=storage)
    optuna.delete_study(study_name=companion_name("again"), storage=storage)


def test_a_backup_shows_one_moment_of_a_study_that_goes_on(
    small: Small, enter: Enter, storage: RDBStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small(9)
    found = enter(study)
    found.add_trial(optuna.trial.create_trial(value=1.0))
    add_lines = archive.Writer.add_lines

    def meanwhile(self: archive.Writer, name: str, lines: Any) -> None:
        found.add_trial(optuna.trial.create_trial(value=2.0))
        found.set_user_attr("note", name)
        add_lines(self, name, lines)

    with monkeypatch.context() as patch:
        patch.setattr(archive.Writer, "add_lines", meanwhile)
        told = backup(storage, study, tmp_path / "study.tar", places(tmp_path / "old"))
    assert len(found.trials) == 4
    assert told.trials == 1
    restore(storage, tmp_path / "study.tar", places(tmp_path / "new"), study.name + " again")
    again = optuna.load_study(study_name=study.name + " again", storage=storage)
    assert [trial.value for trial in again.trials] == [1.0]
    assert "note" not in again.user_attrs


def test_samples_that_are_there_already_are_kept_twice(
    searched: tuple[Study, optuna.Study], storage: RDBStorage, tmp_path: Path
) -> None:
    study, found = searched
    place = places(tmp_path / "old")
    backup(storage, study, tmp_path / "study.tar", place)
    restore(storage, tmp_path / "study.tar", place, "twice")
    again = optuna.load_study(study_name="twice", storage=storage)
    old, new = ([key for key in one.trials[0].system_attrs if key.startswith("artifacts:")] for one in (found, again))
    assert old != new
    (attachment,) = (key.removeprefix("artifacts:") for key in new)
    assert json.loads(again.trials[0].system_attrs[new[0]])["artifact_id"] == attachment
    with place("twice").attachments().open_reader(attachment) as file:
        assert file.read() == b"samples of 0"
    optuna.delete_study(study_name="twice", storage=storage)
    optuna.delete_study(study_name=companion_name("twice"), storage=storage)


def test_a_study_of_the_same_name_is_left_alone(
    searched: tuple[Study, optuna.Study], storage: RDBStorage, fresh_url: str, tmp_path: Path
) -> None:
    study, _ = searched
    backup(storage, study, tmp_path / "study.tar", places(tmp_path / "old"))
    before, stored = known(storage, study.name), files(tmp_path / "old")
    with pytest.raises(StudyError, match=f"study {study.name} exists in this database; restore .* --name"):
        restore(storage, tmp_path / "study.tar", places(tmp_path / "new"))
    with pytest.raises(StudyError, match="no / in it"):
        restore(storage, tmp_path / "study.tar", places(tmp_path / "new"), "../elsewhere")
    assert known(storage, study.name) == before
    assert files(tmp_path / "old") == stored
    assert files(tmp_path / "new") == {}
    assert not list((tmp_path / "new").glob("*/*"))


def test_a_study_that_is_restored_beside_its_first_self_has_files_of_its_own(
    searched: tuple[Study, optuna.Study], storage: RDBStorage, fresh_url: str, tmp_path: Path
) -> None:
    study, found = searched
    backup(storage, study, tmp_path / "study.tar", places(tmp_path / "old"))
    stored = files(tmp_path / "old")
    with open_storage(fresh_url) as other:
        restore(other, tmp_path / "study.tar", places(tmp_path / "old"))
        again = optuna.load_study(study_name=study.name, storage=other)
        kept = artifacts_of(str(tmp_path / "old"), owner_of(again), tmp_path)
        companion = companion_of(again)
        assert owner_of(again) != owner_of(found)
        assert companion is not None
        assert companion.user_attrs[CONFIRMS] == owner_of(again).identity
    assert kept.folder != tmp_path / "old" / study.name
    assert kept.fetch_run(0) is not None
    assert {name: files(tmp_path / "old")[name] for name in stored} == stored


def test_a_confirmation_is_backed_up_with_its_study(
    searched: tuple[Study, optuna.Study], storage: RDBStorage, tmp_path: Path
) -> None:
    study, _ = searched
    companion = optuna.load_study(study_name=companion_name(study.name), storage=storage)
    with pytest.raises(StudyError, match=f"is itself a confirmation; back up study {study.name}"):
        backup(storage, stored_study(companion.user_attrs["study"]), tmp_path / "x.tar", places(tmp_path / "old"))


def test_a_confirmation_that_never_began_is_left_out(
    storage: RDBStorage, small: Callable[..., Study], enter: Callable[[Study], optuna.Study], tmp_path: Path
) -> None:
    """An older version was killed between Optuna's line of it and ours."""
    enter(study := small())
    optuna.create_study(study_name=companion_name(study.name), storage=storage)
    backup(storage, study, tmp_path / "half.tar", places(tmp_path / "old"))
    restore(storage, tmp_path / "half.tar", places(tmp_path / "new"), "restored")
    assert companion_name("restored") not in optuna.get_all_study_names(storage)


@pytest.mark.parametrize("when", ["a file cannot be written", "the database goes away"])
def test_a_failure_in_the_middle_leaves_nothing_behind(
    searched: tuple[Study, optuna.Study],
    storage: RDBStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    study, _ = searched
    backup(storage, study, tmp_path / "study.tar", places(tmp_path / "old"))
    done: list[str] = []
    put = Artifacts.put

    def failing(self: Artifacts, name: str, content: Any) -> None:
        put(self, name, content)
        done.append(name)
        if len(done) == 3 and when == "a file cannot be written":
            raise OSError(28, "No space left on device")
        if len(done) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Artifacts, "put", failing)
    with pytest.raises((WorkerError, KeyboardInterrupt)):
        restore(storage, tmp_path / "study.tar", places(tmp_path / "new"), "half")
    assert files(tmp_path / "new") == {}
    assert "half" not in optuna.get_all_study_names(storage)


def test_a_backup_that_cannot_be_finished_leaves_the_one_before(
    searched: tuple[Study, optuna.Study], storage: RDBStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, _ = searched
    (tmp_path / "study.tar").write_text("the one before")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive.Writer, "finish", full)
    with pytest.raises(RunError, match=r"study.tar: cannot be written \(No space left on device\)"):
        backup(storage, study, tmp_path / "study.tar", places(tmp_path / "old"))
    assert (tmp_path / "study.tar").read_text() == "the one before"
    assert [path.name for path in tmp_path.glob("*tar*")] == ["study.tar"]


Members = list[tuple[tarfile.TarInfo, bytes]]


def plain(name: str, content: bytes = b"x", **facts: Any) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for fact, value in facts.items():
        setattr(member, fact, value)
    return member, content


def special(kind: bytes, **facts: Any) -> Callable[[Members], Members]:
    member = plain("study/artifacts/trial-0/config.yaml", b"", type=kind, **facts)
    return lambda members: [one for one in members if one[0].name != member[0].name] + [member]


def added(name: str) -> Callable[[Members], Members]:
    return lambda members: [*members, plain(name)]


def without(name: str) -> Callable[[Members], Members]:
    return lambda members: [one for one in members if one[0].name != name]


def rewritten(name: str, change: Callable[[Any], Any], line: int = 0) -> Callable[[Members], Members]:
    """Changes one line of JSON, and all checksums with it, as somebody who means harm would."""

    def change_members(members: Members) -> Members:
        lines = next(content for member, content in members if member.name == name).splitlines(keepends=True)
        lines[line] = json.dumps(change(json.loads(lines[line]))).encode() + b"\n"
        return summed([plain(name, b"".join(lines)) if one[0].name == name else one for one in members])

    return change_members


def replaced(name: str, content: bytes) -> Callable[[Members], Members]:
    return lambda members: summed([plain(name, content) if one[0].name == name else one for one in members])


def summed(members: Members) -> Members:
    manifest = json.loads(members.pop()[1])
    manifest["files"] = {
        member.name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for member, content in members
    }
    return [*members, plain(archive.MANIFEST, json.dumps(manifest).encode())]


def attribute(change: dict[str, Any]) -> Callable[[Members], Members]:
    return rewritten("study/attributes.jsonl", lambda line: line | change)


def trial(change: dict[str, Any], number: int = 0) -> Callable[[Members], Members]:
    return rewritten("study/trials.jsonl", lambda line: line | change, number)


def manifest(change: dict[str, Any]) -> Callable[[Members], Members]:
    return lambda members: [
        *members[:-1],
        plain(archive.MANIFEST, json.dumps(json.loads(members[-1][1]) | change).encode()),
    ]


OBJECT = {
    "name": "x",
    "value": 9.0,
    "distribution": json.loads(optuna.distributions.distribution_to_json(FloatDistribution(0, 1))),
}

HOSTILE: dict[str, tuple[Callable[[Members], Members], str]] = {
    "an absolute path": (added("/etc/cron.d/tuner"), "'/etc/cron.d/tuner' has no place in it"),
    "a path that leads out": (added("study/artifacts/trial-0/../../../../x"), "has no place"),
    "a folder's parent": (added("../study.json"), "has no place"),
    "a name for a terminal": (added("\x1b]0;x\x07"), r"'\\x1b\]0;x\\x07' has no place"),
    "another suffix": (added("study/artifacts/trial-0/model.pickle"), "has no place"),
    "an attachment elsewhere": (added("study/attachments/../x"), "has no place"),
    "a symbolic link": (special(tarfile.SYMTYPE, linkname="/etc/passwd"), "is no plain file"),
    "a hard link": (special(tarfile.LNKTYPE, linkname="study/study.json"), "is no plain file"),
    "a character device": (special(tarfile.CHRTYPE, devmajor=1, devminor=5), "is no plain file"),
    "a block device": (special(tarfile.BLKTYPE, devmajor=8), "is no plain file"),
    "a pipe": (special(tarfile.FIFOTYPE), "is no plain file"),
    "a folder": (special(tarfile.DIRTYPE), "is no plain file"),
    "a file of holes": (special(tarfile.GNUTYPE_SPARSE), "is no plain file|no backup at all"),
    "a file twice": (added("study/study.json"), "twice"),
    "a file that is not in the list": (added("study/artifacts/trial-1/config.yaml"), "its list of files"),
    "a file that is missing": (without("study/trials.jsonl"), "its list of files"),
    "no manifest": (without("manifest.json"), "manifest.json is missing"),
    "a newer format": (manifest({"format": 2}), "of format 2, and this tuner knows 1: install a newer one"),
    "no format": (manifest({"format": "1"}), "its format is '1'"),
    "nested without end": (replaced("study/study.json", b"[" * 100_000 + b"]" * 100_000), "damaged"),
    "an endless line": (replaced("study/study.json", b'"' + b"x" * 3000 + b'"'), "a line of more than"),
    "no text": (replaced("study/study.json", b"\xff\xfe"), "codec can't decode"),
    "an empty file": (replaced("study/study.json", b""), "damaged"),
    "a pickle": (trial({"system": {"cma:optimizer:0": "80049e"}}), "cma:optimizer:0, which no backup holds"),
    "a trial out of order": (trial({"number": 7}), "trial 7 stands in the place of 0"),
    "a state of its own": (trial({"state": "WON"}), "state: Input should be"),
    "a number too large": (trial({"attempt": 2**40}), "attempt"),
    "an unknown key": (trial({"shell": "rm"}), "shell: Extra inputs"),
    "no date": (trial({"started": "yesterday"}), "yesterday"),
    "a value out of range": (trial({"parameters": [OBJECT]}), "x is outside its range"),
    "a distribution of its own": (
        trial({"parameters": [OBJECT | {"distribution": {"name": "Shell", "attributes": {}}}]}),
        "the distribution of x",
    ),
    "a value twice": (trial({"parameters": [OBJECT | {"value": 0.5}] * 2}), "cannot be right: duplicate key"),
    "a name that leads out": (attribute({"of": "user", "key": "study", "value": {"name": "x"}}), "damaged"),
    "no definition": (attribute({"of": "user", "key": "study", "value": 7}), "damaged"),
    "a note of no trial": (attribute({"of": "system", "trial": 99, "key": "note_ver"}), "no note of a trial: 99"),
    "an attribute in another's place": (attribute({"of": "system", "trial": 0, "key": "x"}), "no note of a trial: 0"),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(storage: RDBStorage, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The backup of a small study."""
    folder = tmp_path_factory.mktemp("good")
    study = parse_study(f"corpus: {{path: {text_file}}}\ntrial: {{tokens: 4096, rungs: 3}}", "x", "victim")
    found = create.enter(storage, study).optuna_study
    for value in (1.0, 2.0):
        found.add_trial(optuna.trial.create_trial(value=value))
    furnish(storage, found, places(folder / "old")(study.name), [0])
    backup(storage, study, folder / "study.tar", places(folder / "old"))
    optuna.delete_study(study_name="victim", storage=storage)
    return folder / "study.tar"


def refused(storage: RDBStorage, path: Path, folder: Path) -> str:
    """What is said of a backup that is refused, and that nothing is left of it."""
    with pytest.raises(UserError) as caught:
        restore(storage, path, places(folder / "place"))
    assert not {"victim", companion_name("victim")} & set(optuna.get_all_study_names(storage))
    assert list(files(folder)) in ([], [path.name])
    return str(caught.value)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_backup_is_refused_and_does_nothing(
    storage: RDBStorage, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    change, words = HOSTILE[name]
    if name == "an endless line":
        monkeypatch.setattr(archive, "LONGEST_LINE", 2000)
    with tarfile.open(good) as tar:
        members = [(one, tar.extractfile(one).read()) for one in tar]  # type: ignore[union-attr]
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        for member, content in change(members):
            tar.addfile(member, io.BytesIO(content))
    said = refused(storage, tmp_path / "bad.tar", tmp_path)
    assert re.search(words, said), said
    assert said.isprintable() or "\n" in said


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.98])
def test_a_backup_of_which_the_end_is_missing_is_refused(
    storage: RDBStorage, good: Path, tmp_path: Path, share: float
) -> None:
    whole = good.read_bytes().rstrip(b"\0")
    (tmp_path / "short.tar").write_bytes(whole[: int(len(whole) * share)])
    assert "nothing was restored" in refused(storage, tmp_path / "short.tar", tmp_path)


def test_a_single_wrong_byte_is_found_wherever_it_is(storage: RDBStorage, good: Path, tmp_path: Path) -> None:
    with tarfile.open(good) as tar:
        spots = [(member.offset_data + member.size // 2) for member in tar if member.size > 0]
    for spot in spots:
        whole = bytearray(good.read_bytes())
        whole[spot] ^= 1
        (tmp_path / "bad.tar").write_bytes(whole)
        refused(storage, tmp_path / "bad.tar", tmp_path)


def test_a_file_that_claims_to_be_huge_is_refused(storage: RDBStorage, good: Path, tmp_path: Path) -> None:
    member, _ = plain("study/artifacts/trial-1/model.safetensors", b"", size=2**50)
    content = good.read_bytes()
    (tmp_path / "bad.tar").write_bytes(member.tobuf() + content)
    assert "nothing was restored" in refused(storage, tmp_path / "bad.tar", tmp_path)


def test_a_compressed_file_is_no_backup(storage: RDBStorage, good: Path, tmp_path: Path) -> None:
    (tmp_path / "bomb.tar").write_bytes(gzip.compress(bytes(1_000_000)))
    assert "no backup at all" in refused(storage, tmp_path / "bomb.tar", tmp_path)
    assert "cannot be read (Is a directory)" in refused(storage, tmp_path, tmp_path / "place")
