"""Writes a study to one file, and restores it into any database: as of one moment, completely or not at all."""

from __future__ import annotations

import json
import re
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
import sqlalchemy as sql
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages import RDBStorage
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection
from sqlalchemy.exc import DataError, IntegrityError

from models.errors import ConfigError
from models.safe_text import terminal
from models.wording import counted
from tuner.artifacts.layout import CHECKPOINT, RUN_FILE, name_problem
from tuner.artifacts.store import Artifacts, Owner
from tuner.backup.archive import PARTS, Reader, Writer, reading, writing
from tuner.errors import StudyError, WorkerError
from tuner.optuna_internals import contains, tables
from tuner.results.confirmation import CONFIRMS, companion_name, companion_of
from tuner.storage import leases
from tuner.storage.migrations.migrate import make_tables
from tuner.storage.ownership import KEY, new_owner, write_owner
from tuner.study.definition import Study, stored_study
from tuner.study.facts import study_problem, system_problem, trial_problem
from tuner.trials.attachments import ID, attachments_of

BATCH = 500
"""Trials that are in memory at once."""

_NOTE = re.compile(r"dashboard:([0-9]+):(note_ver|note_str:[0-9]+)")
_UNKEPT = re.compile(r"(cma|sepcma|cmawm):optimizer(:[0-9]+)?|[A-Za-z]+:parent:[0-9]+")
"""System attributes that stay behind. The state of CMA-ES is a pickle, which could run code of the file's author:
the sampler begins anew. The parents of a genetic sampler are ids in the old database, and are found again."""

UNFINISHED = ("RUNNING", "WAITING")

models = tables()
_studies, _directions, _trials, _values, _rungs, _parameters = (
    model.__table__
    for model in (
        models.StudyModel,
        models.StudyDirectionModel,
        models.TrialModel,
        models.TrialValueModel,
        models.TrialIntermediateValueModel,
        models.TrialParamModel,
    )
)
_study_attributes = {
    "user": models.StudyUserAttributeModel.__table__,
    "system": models.StudySystemAttributeModel.__table__,
}
_trial_attributes = {
    "user": models.TrialUserAttributeModel.__table__,
    "system": models.TrialSystemAttributeModel.__table__,
}

_OURS = (KEY, CONFIRMS)
"""Attributes that say which study this is: a restored one is another."""

Place = Callable[[str], Artifacts]
NewPlace = Callable[[Owner], Artifacts]
Float = float | Literal["inf", "-inf", "nan"]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


LONGEST_WORDS = 500
"""Characters of what is said of a damaged backup: parts of it may be in there."""

MOST_ATTEMPTS = 10_000
"""Workers that can have had a trial: each may have left a checkpoint, which is looked for."""

_SMALL = Field(ge=0, lt=2**31)
_KEY = Field(max_length=models.MAX_INDEXED_STRING_LENGTH, pattern=r"^[^\x00]*\z")
_Key = Annotated[str, _KEY]


class StudyLine(_Line):
    """study.json."""

    name: str
    directions: list[Literal["MINIMIZE", "MAXIMIZE"]] = Field(min_length=1)
    trials: int = _SMALL
    state: Literal["running", "paused", "stopped"]
    forgiven: int = _SMALL
    active_seconds: float = Field(ge=0, le=1e10)


class AttributeLine(_Line):
    """A line of attributes.jsonl; a note that belongs to a trial tells its number."""

    of: Literal["user", "system"]
    trial: int | None = None
    key: str = _KEY
    value: Any


class Parameter(_Line):
    """A value as Optuna stores it, and the distribution it is from."""

    name: str = _KEY
    value: float
    distribution: dict[str, Any]


class Rung(_Line):
    """What was reported at a rung."""

    step: int = Field(ge=-(2**31), lt=2**31)
    value: Float


class TrialLine(_Line):
    """A line of trials.jsonl; times are in UTC. `attempt` counts the workers that have had the trial."""

    number: int = _SMALL
    state: Literal["RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING"]
    started: str | None
    ended: str | None
    attempt: int | None = Field(None, ge=0, le=MOST_ATTEMPTS)
    values: list[Float]
    rungs: list[Rung]
    parameters: list[Parameter]
    user: dict[_Key, Any]
    system: dict[_Key, Any]


@dataclass
class Totals:
    """What was backed up or restored, as the command reports it."""

    name: str
    trials: int = 0
    unfinished: int = 0
    runs: set[tuple[str, str]] = field(default_factory=set)
    attachments: int = 0

    def __str__(self) -> str:
        unfinished = f" ({self.unfinished} unfinished)" if self.unfinished else ""
        runs, attachments = counted(len(self.runs), "kept run"), counted(self.attachments, "attachment")
        return f"study {self.name}: {counted(self.trials, 'trial')}{unfinished}, {runs}, {attachments}"


def backup(storage: RDBStorage, study: Study, path: Path, place: Place) -> Totals:
    """Writes a study, and the one that confirms its best, into a file; workers go on meanwhile.

    `place` returns the artifacts of a study. Raises RunError when the file cannot be written.
    """
    if study.confirms is not None:
        raise StudyError(f"{study.name} is itself a confirmation; back up study {study.confirms}, which takes it along")
    name = study.name
    totals = Totals(name)
    found = optuna.load_study(study_name=name, storage=storage)
    companion = companion_of(found)
    names = [name] if companion is None else [name, companion.study_name]
    with writing(path) as file:
        wanted = [(part, one, place(one)) for part, one in zip(PARTS, names, strict=False)]
        for part, _, kept in wanted:  # before the trials: a checkpoint may be older than what is known, never newer
            _add_artifacts(file, f"{part}/artifacts", kept, lambda found: CHECKPOINT.fullmatch(found) is not None)
        with _moment(storage) as connection:
            for part, one, kept in wanted:
                study_id = connection.scalar(sql.select(_studies.c.study_id).where(_studies.c.study_name == one))
                if study_id is not None and (part == PARTS[0] or _is_begun(connection, study_id)):
                    _add_study(file, part, connection, study_id, kept, totals)
        file.finish({"versions": {package: version(package) for package in ("textgen-tuner", "optuna")}})
    return totals


@contextmanager
def _moment(storage: RDBStorage) -> Iterator[Connection]:
    """A connection that sees the database as it was at one moment."""
    with storage.engine.connect() as connection:
        frozen = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with frozen.begin():
            _take_time(frozen)
            yield frozen


def _take_time(connection: Connection) -> None:
    """Lets a transaction stand still while files are read or written: it has locked nothing that others wait for."""
    connection.execute(sql.text("SET LOCAL idle_in_transaction_session_timeout = 0"))


def _add_study(file: Writer, part: str, connection: Connection, study_id: int, kept: Artifacts, totals: Totals) -> None:
    file.add_lines(f"{part}/study.json", [_study_line(connection, study_id)])
    finished: set[int] = set()
    attached: list[str] = []

    def lines() -> Iterator[dict[str, Any]]:
        for line in _trial_lines(connection, study_id):
            totals.trials += part == PARTS[0]
            totals.unfinished += part == PARTS[0] and line["state"] in UNFINISHED
            finished.update([line["number"]] if line["state"] == "COMPLETE" else [])
            attached.extend(attachments_of(line["system"]))
            yield line

    def attributes() -> Iterator[dict[str, Any]]:
        for line in _attribute_lines(connection, study_id):
            attached.extend(attachments_of({line["key"]: line["value"]}))
            yield line

    file.add_lines(f"{part}/trials.jsonl", lines())
    file.add_lines(f"{part}/attributes.jsonl", attributes())

    def is_wanted(name: str) -> bool:
        run = RUN_FILE.fullmatch(name)
        return run is not None and int(run[1]) in finished

    totals.runs |= {(part, name.split("/")[0]) for name in _add_artifacts(file, f"{part}/artifacts", kept, is_wanted)}
    totals.attachments += _add_attachments(file, f"{part}/attachments", kept, attached)


def _study_line(connection: Connection, study_id: int) -> dict[str, Any]:
    one = sql.select(_studies.c.study_name, leases.studies).where(_studies.c.study_id == study_id)
    lines = leases.studies.c.study_id == _studies.c.study_id
    row = connection.execute(one.join_from(_studies, leases.studies, lines, isouter=True)).one()
    ways = sql.select(_directions.c.direction).where(_directions.c.study_id == study_id)
    count = sql.select(sql.func.count()).where(_trials.c.study_id == study_id)
    return StudyLine(
        name=row.study_name,
        directions=[way.name for way in connection.scalars(ways.order_by(_directions.c.objective))],
        trials=connection.scalar(count) or 0,
        state=row.state or "running",  # a study that was copied by other means has no line yet
        forgiven=row.forgiven or 0,
        active_seconds=row.active_seconds or 0.0,
    ).model_dump()


def _is_begun(connection: Connection, study_id: int) -> bool:
    """Whether a companion is wholly there: an older version could be killed before it made its line."""
    line = sql.select(leases.studies.c.study_id).where(leases.studies.c.study_id == study_id)
    return connection.scalar(line) is not None


def _attribute_lines(connection: Connection, study_id: int) -> Iterator[dict[str, Any]]:
    """The attributes of a study, but for a few; ids of trials, in the names of their notes, become numbers."""
    ids = sql.select(_trials.c.trial_id, _trials.c.number).where(_trials.c.study_id == study_id)
    numbers = {str(row.trial_id): row.number for row in connection.execute(ids)}
    for of, table in _study_attributes.items():
        own = (
            sql.select(table.c.key, table.c.value_json).where(table.c.study_id == study_id).order_by(*table.primary_key)
        )
        for key, value in connection.execute(own):
            note = _NOTE.fullmatch(key)
            if _UNKEPT.fullmatch(key) or (note and note[1] not in numbers) or (of == "user" and key in _OURS):
                continue
            about = {"trial": numbers[note[1]], "key": note[2]} if note else {"key": key}
            yield {"of": of, **about, "value": json.loads(value)}


def _trial_lines(connection: Connection, study_id: int) -> Iterator[dict[str, Any]]:
    query = (
        sql.select(_trials, leases.leases.c.attempt).where(_trials.c.study_id == study_id).order_by(_trials.c.number)
    )
    query = query.outerjoin(leases.leases, leases.leases.c.trial_id == _trials.c.trial_id).limit(BATCH)
    last = -1
    while rows := connection.execute(query.where(_trials.c.number > last)).all():
        yield from _batch_lines(connection, rows)
        last = rows[-1].number


def _batch_lines(connection: Connection, rows: Any) -> Iterator[dict[str, Any]]:
    ids = [row.trial_id for row in rows]
    values, rungs, parameters = (_by_trial(connection, table, ids) for table in (_values, _rungs, _parameters))
    attributes = {of: _by_trial(connection, table, ids) for of, table in _trial_attributes.items()}
    for row in rows:
        own = row.trial_id
        yield {
            "number": row.number,
            "state": row.state.name,
            "started": row.datetime_start and row.datetime_start.isoformat(),
            "ended": row.datetime_complete and row.datetime_complete.isoformat(),
            "attempt": row.attempt,
            "values": [_told(one.value, one.value_type) for one in values.get(own, [])],
            "rungs": [
                {"step": one.step, "value": _told(one.intermediate_value, one.intermediate_value_type)}
                for one in rungs.get(own, [])
            ],
            "parameters": [
                {"name": one.param_name, "value": one.param_value, "distribution": json.loads(one.distribution_json)}
                for one in parameters.get(own, [])
            ],
            **{
                of: {
                    one.key: json.loads(one.value_json) for one in found.get(own, []) if not _UNKEPT.fullmatch(one.key)
                }
                for of, found in attributes.items()
            },
        }


def _by_trial(connection: Connection, table: Any, ids: list[int]) -> dict[int, list[Any]]:
    query = sql.select(table).where(table.c.trial_id.in_(ids)).order_by(table.c.trial_id, *table.primary_key)
    return {trial: list(rows) for trial, rows in groupby(connection.execute(query), lambda row: int(row.trial_id))}


_WORDS = {"INF_POS": "inf", "INF_NEG": "-inf", "NAN": "nan"}


def _told(value: float | None, kind: Any) -> Any:
    """A number as it is written in a file: JSON has no word for what is infinite."""
    return _WORDS.get(kind.name, value)


def _add_artifacts(file: Writer, folder: str, kept: Artifacts, is_wanted: Callable[[str], bool]) -> list[str]:
    """Adds files that all workers share; one that a worker deletes meanwhile is not needed any more."""
    added = []
    for name in sorted(filter(is_wanted, kept.names())):
        with suppress(FileNotFoundError):
            kept.fetch(name)
            with (kept.folder / name).open("rb") as source:
                file.add(f"{folder}/{name}", source)
            added.append(name)
    return added


def _add_attachments(file: Writer, folder: str, kept: Artifacts, attached: list[str]) -> int:
    store, added = kept.attachments(), 0
    for name in dict.fromkeys(attached):
        with suppress(ArtifactNotFound), store.open_reader(name) as source:
            file.add(f"{folder}/{name}", source)
            added += 1
    return added


def restore(storage: RDBStorage, path: Path, place: NewPlace, new_name: str | None = None) -> Totals:
    """Puts a study from a file into the database and its artifacts where `place` says, or does nothing at all.

    It is a study of its own, with files of its own, even where the one that was backed up is still there. Running
    trials wait for a worker, which goes on from their checkpoints. Raises StudyError when the file is damaged or
    strange, or a study of that name is there.
    """
    problem = None if new_name is None else name_problem(new_name)
    if problem is not None:
        raise StudyError(f"--name {new_name!r}: {problem}")
    make_tables(storage.engine)
    with reading(path) as file:
        parts = [_Part(file, part) for part in PARTS if file.names(part)]
        if [part.part for part in parts][:1] != [PARTS[0]]:
            raise file.damaged("no study is in it")
        name = new_name or parts[0].study.name
        owners = dict(zip(PARTS, (new_owner(name), new_owner(companion_name(name))), strict=True))
        totals = Totals(name)
        with _all_or_nothing(storage, name) as (connection, written):
            for part in parts:
                part.restore(connection, owners, place, written, totals)
    return totals


@contextmanager
def _all_or_nothing(storage: RDBStorage, name: str) -> Iterator[tuple[Connection, list[Callable[[], None]]]]:
    """A transaction, and a list of what undoes the files that were written beside it."""
    undo: list[Callable[[], None]] = []
    try:
        with storage.engine.begin() as connection:
            _take_time(connection)
            yield connection, undo
    except BaseException as error:
        for step in reversed(undo):
            with suppress(OSError, ArtifactNotFound):
                step()
        if isinstance(error, IntegrityError) and "study_name" in str(error.orig):
            raise _exists(name) from error  # another process was quicker
        if isinstance(error, OSError):
            raise WorkerError(
                f"artifacts cannot be written ({error.strerror or error}); nothing was restored"
            ) from error
        if isinstance(error, (IntegrityError, DataError)):  # such as an attribute that it has twice
            raise StudyError(f"the backup cannot be right: {str(error.orig).splitlines()[0]}") from error
        raise


def _exists(name: str) -> StudyError:
    return StudyError(f"study {name} exists in this database; restore under another name with --name")


class _Part:
    """One of the studies in a backup."""

    def __init__(self, file: Reader, part: str) -> None:
        self.file, self.part = file, part
        self.ids: list[int] = []
        self.unfinished: set[int] = set()
        self.renamed: dict[str, str] = {}
        self.searched: dict[str, BaseDistribution] = {}
        lines = list(self._lines(StudyLine, "study.json"))
        if len(lines) != 1:
            raise self._damaged(f"study.json has {len(lines)} lines instead of one")
        self.study: StudyLine = lines[0]

    def restore(
        self,
        connection: Connection,
        owners: dict[str, Owner],
        place: NewPlace,
        undo: list[Callable[[], None]],
        totals: Totals,
    ) -> None:
        """Writes the study; files are written last, when everything else is known to be right."""
        names = {part: owner.folder for part, owner in owners.items()}
        name = names[self.part]
        problem = name_problem(name)
        if problem is not None:
            raise self._damaged(f"name: {problem}")
        self.searched = self._distributions()
        study_id = self._restore_study(connection, name)
        kept = place(owners[self.part])
        undo.append(kept.release)
        self._rename_attachments(kept)
        self._restore_trials(connection, study_id)
        self._restore_attributes(connection, study_id, names)
        write_owner(connection, study_id, owners[self.part])
        if self.part == PARTS[1]:
            row = {"study_id": study_id, "key": CONFIRMS, "value_json": json.dumps(owners[PARTS[0]].identity)}
            connection.execute(_study_attributes["user"].insert(), row)
        self._restore_files(kept, undo, totals)
        if self.part == PARTS[0]:
            totals.trials, totals.unfinished = len(self.ids), len(self.unfinished)

    def _rename_attachments(self, kept: Artifacts) -> None:
        """Gives a new id to what is there already: deleted in one study, it must stay in the other."""
        store = kept.attachments()
        for name in self.file.names(f"{self.part}/attachments"):
            with suppress(ArtifactNotFound), store.open_reader(name):
                self.renamed[name] = str(uuid.uuid4())

    def _distributions(self) -> dict[str, BaseDistribution]:
        """What the study searches: samplers compare all trials by it."""
        lines = self._lines(AttributeLine, "attributes.jsonl")
        definition = next((line.value for line in lines if _is_definition(line)), None)
        if definition is None:
            raise self._damaged("it has no definition")
        study = self._study(definition)
        if self.study.directions != ["MINIMIZE"] * len(study.objectives):
            raise self._damaged(f"directions: should be MINIMIZE for {' and '.join(study.objectives)}")
        return {name: searched.distribution() for name, searched in study.space.searched.items()}

    def _study(self, values: Any) -> Study:
        try:
            return stored_study(values)
        except (ConfigError, TypeError) as error:
            raise self._damaged(" ".join(str(error).split())) from error

    def _restore_study(self, connection: Connection, name: str) -> int:
        if connection.scalar(sql.select(_studies.c.study_id).where(_studies.c.study_name == name)) is not None:
            raise _exists(name)
        new = connection.execute(_studies.insert().values(study_name=name).returning(_studies.c.study_id))
        study_id = int(new.scalar_one())
        ways = [optuna.study.StudyDirection[way] for way in self.study.directions]
        rows = [{"study_id": study_id, "objective": index, "direction": way} for index, way in enumerate(ways)]
        connection.execute(_directions.insert(), rows)
        line = self.study.model_dump(include={"state", "forgiven", "active_seconds"})
        connection.execute(leases.studies.insert().values(study_id=study_id, **line))
        return study_id

    def _restore_trials(self, connection: Connection, study_id: int) -> None:
        batch: list[TrialLine] = []
        for line in self._lines(TrialLine, "trials.jsonl"):
            if line.number != len(self.ids) + len(batch):
                raise self._damaged(f"trial {line.number} stands in the place of {len(self.ids) + len(batch)}")
            self._require_sound(line)
            batch.append(line)
            if len(batch) == BATCH:
                self._restore_batch(connection, study_id, batch)
                batch.clear()
        self._restore_batch(connection, study_id, batch)
        if len(self.ids) != self.study.trials:
            raise self._damaged(f"{len(self.ids)} of {self.study.trials} trials are in it")

    def _require_sound(self, line: TrialLine) -> None:
        """Raises StudyError for what no worker and no Optuna writes, and what would break those who read it."""
        place = f"trial {line.number}"
        if len(line.values) not in (0, len(self.study.directions)):
            raise self._damaged(f"{place}: {len(line.values)} values instead of {len(self.study.directions)}")
        if (line.ended is None) != (line.state in UNFINISHED):
            raise self._damaged(f"{place}: ended: {line.ended} does not go with state {line.state}")
        problem = trial_problem(line.user, line.system)
        if problem is not None:
            raise self._damaged(f"{place}: {problem}")

    def _restore_batch(self, connection: Connection, study_id: int, batch: list[TrialLine]) -> None:
        ids = _new_ids(connection, len(batch))
        pairs = list(zip(ids, batch, strict=True))
        self.ids += ids
        self.unfinished |= {line.number for line in batch if line.state in UNFINISHED}
        rows: dict[Any, list[dict[str, Any]]] = {
            _trials: [{"trial_id": own, "study_id": study_id, **self._trial_row(line)} for own, line in pairs],
            _values: [
                {"trial_id": own, "objective": index, **_stored(value, models.TrialValueModel.TrialValueType, "value")}
                for own, line in pairs
                for index, value in enumerate(line.values)
            ],
            _rungs: [
                {"trial_id": own, "step": one.step, **_stored(one.value, _RungKind, "intermediate_value")}
                for own, line in pairs
                for one in line.rungs
            ],
            _parameters: [
                {"trial_id": own, **self._parameter_row(one)} for own, line in pairs for one in line.parameters
            ],
            leases.leases: [
                {"trial_id": own, "study_id": study_id, "worker_id": "", "attempt": line.attempt, "expires_at": _PAST}
                for own, line in pairs
                if line.attempt is not None
            ],
        }
        for of, table in _trial_attributes.items():
            rows[table] = [
                {"trial_id": own, "key": key, "value_json": json.dumps(value)}
                for own, line in pairs
                for key, value in getattr(line, of).items()
                if self._is_kept(key)
            ]
        for table, some in rows.items():
            if some:
                connection.execute(table.insert(), some)

    def _restore_attributes(self, connection: Connection, study_id: int, names: dict[str, str]) -> None:
        lines = self._lines(AttributeLine, "attributes.jsonl")
        while batch := list(islice(lines, BATCH)):
            rows: dict[str, list[dict[str, Any]]] = {"user": [], "system": []}
            for line in batch:
                if _is_definition(line):
                    line.value = self._definition(line.value, names)
                key = self._key(line)
                self._require_kind(line)
                if self._is_kept(line.key) and not (line.of == "user" and line.key in _OURS):
                    row = {"study_id": study_id, "key": key, "value_json": json.dumps(line.value)}
                    rows[line.of].append(row)
            for of, some in rows.items():
                if some:
                    connection.execute(_study_attributes[of].insert(), some)

    def _require_kind(self, line: AttributeLine) -> None:
        """Raises StudyError for an attribute of the study that is not of its kind."""
        user = line.of == "user"
        problem = study_problem({line.key: line.value}) if user else system_problem(line.key, line.value)
        if problem is not None:
            raise self._damaged(f"attributes: {problem if user else f'{line.key[:100]}: {problem}'}")

    def _definition(self, values: Any, names: dict[str, str]) -> Any:
        """The study as its file described it, under its new name."""
        confirms = {"confirms": names[PARTS[0]]} if self.part == PARTS[1] else {}
        return self._study({**self._study(values).stored(), "name": names[self.part], **confirms}).stored()

    def _restore_files(self, kept: Artifacts, undo: list[Callable[[], None]], totals: Totals) -> None:
        store = kept.attachments()
        for name in self.file.names(f"{self.part}/attachments"):
            new = self.renamed.get(name, name)
            undo.append(lambda new=new: store.remove(new))  # type: ignore[misc]
            with self.file.open(f"{self.part}/attachments/{name}") as source:
                store.write(new, source)
            totals.attachments += 1
        for name in self.file.names(f"{self.part}/artifacts"):
            checkpoint, run = CHECKPOINT.fullmatch(name), RUN_FILE.fullmatch(name)
            if run or (checkpoint and int(checkpoint[1]) in self.unfinished):
                undo.append(lambda name=name: kept.remove(name))  # type: ignore[misc]
                with self.file.open(f"{self.part}/artifacts/{name}") as source:
                    kept.put(name, source)
            if run:
                totals.runs.add((self.part, run[1]))

    def _trial_row(self, line: TrialLine) -> dict[str, Any]:
        # A worker of the old database may still have a running trial there; here it waits for one.
        state = "WAITING" if line.state == "RUNNING" else line.state
        try:
            start, end = (None if time is None else datetime.fromisoformat(time) for time in (line.started, line.ended))
        except ValueError as error:
            raise self._damaged(f"trial {line.number}: {error}") from error
        if not all(time is None or (time.tzinfo is None and 2000 <= time.year < 2200) for time in (start, end)):
            raise self._damaged(f"trial {line.number}: started {line.started}, ended {line.ended}: no times of a trial")
        return {
            "number": line.number,
            "state": optuna.trial.TrialState[state],
            "datetime_start": start,
            "datetime_complete": end,
        }

    def _parameter_row(self, one: Parameter) -> dict[str, Any]:
        try:
            distribution = _distribution(one)
            if one.name in self.searched:
                check_distribution_compatibility(self.searched[one.name], distribution)
            fits = contains(distribution, one.value)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, Warning) as error:
            raise self._damaged(f"the distribution of {one.name}: {error}") from error
        if not fits:
            raise self._damaged(f"{one.name} is outside its range")
        text = distribution_to_json(distribution)
        return {"param_name": one.name, "param_value": one.value, "distribution_json": text}

    def _is_kept(self, key: str) -> bool:
        if _UNKEPT.fullmatch(key):  # `tuner backup` leaves these out
            raise self._damaged(f"an attribute {key}, which no backup holds")
        return True

    def _key(self, line: AttributeLine) -> str:
        if line.trial is None:
            return line.key
        own = f"dashboard:{self.ids[line.trial]}:{line.key}" if 0 <= line.trial < len(self.ids) else ""
        if not _NOTE.fullmatch(own):
            raise self._damaged(f"no note of a trial: {line.trial}, {line.key[:100]!r}")
        return own

    def _lines(self, model: type[Any], name: str) -> Iterator[Any]:
        return (self._checked(model, line) for line in self.file.lines(f"{self.part}/{name}"))

    def _checked(self, model: type[Any], line: str) -> Any:
        if self.renamed:
            line = ID.sub(lambda found: self.renamed.get(found[0], found[0]), line)
        try:
            return model.model_validate(json.loads(line))
        except ValidationError as error:
            first = error.errors()[0]
            raise self._damaged(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        except (ValueError, RecursionError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, what: str) -> StudyError:
        return self.file.damaged(f"{self.part}: {terminal.line(' '.join(what.split()))[:LONGEST_WORDS]}")


_RungKind = models.TrialIntermediateValueModel.TrialIntermediateValueType
_PAST = datetime(1970, 1, 1, tzinfo=UTC)
_KINDS = {word: kind for kind, word in _WORDS.items()}


def _distribution(one: Parameter) -> BaseDistribution:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of choices that are no plain values
        return json_to_distribution(json.dumps(one.distribution))


def _is_definition(line: AttributeLine) -> bool:
    return line.of == "user" and line.key == "study"


def _stored(value: Any, kinds: Any, column: str) -> dict[str, Any]:
    kind = kinds[_KINDS.get(value, "FINITE")]
    return {column: value if kind.name == "FINITE" else None, f"{column}_type": kind}


def _new_ids(connection: Connection, count: int) -> list[int]:
    """Ids of new trials, ascending."""
    numbers = sql.func.generate_series(1, count).table_valued("one")
    new = sql.func.nextval(sql.func.pg_get_serial_sequence("trials", "trial_id"))
    return sorted(connection.scalars(sql.select(new).select_from(numbers))) if count else []
