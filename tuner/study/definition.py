"""The study file, validated strictly: all problems are reported at once, each with its line and remedy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml.comments import CommentedMap

from models.config import SCHEMA, Budget, Corpus, flat, resolve_path
from models.errors import ConfigError
from models.reader import Problem, dump, parse, read_text, require_schema, validate
from models.shorthand import advice, meant, write_out
from tuner.artifacts.layout import name_problem
from tuner.errors import StudyError
from tuner.study import samplers
from tuner.study.limits import Limits
from tuner.study.shorthand import write_out_ranges, write_out_values
from tuner.study.space import Space, chosen_problem, place_of, problems_of

MOVED = {("corpus", "tokenizer"): ("parameters", "tokenizer"), ("pruner", "rungs"): ("trial", "rungs")}
"""Keys that may also be written where they are often looked for: there -> where they belong."""

RENAMED = {"start": "points_to_evaluate"}
"""Keys under their former name; a file that has one is read with a warning, until 0.3."""

OBJECTIVES = ("bits_per_byte", "text_divergence")

PLACES = {("corpus", "path"), ("corpus", "validation"), ("corpus", "test")}
"""Where a text is; which text it is, its fingerprint tells."""

FREE = ("budget", "points_to_evaluate", "threads", "retries", "timeout")
"""Sections that may change while a study goes on: its results stay comparable. Not `threads` of trials in seconds."""


class StudyBudget(BaseModel):
    """What a study may spend, over all workers on all machines."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    example: ClassVar[str] = "{trials: 100, hours: 2}"

    trials: int | None = Field(None, ge=1, le=10**7, description="Finished trials, complete or pruned.")
    hours: float | None = Field(None, gt=0, le=277_777, description="Hours in which at least one worker is at work.")

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        if self.trials is None and self.hours is None:
            raise ValueError("give trials, hours or both")
        return self


class Decoding(BaseModel):
    """How the searched decoding parameters, such as temperature, are chosen on a trained model."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    example: ClassVar[str] = "{share: 0.1}"

    objective: Literal["text_divergence", "bits_per_byte"] = Field(
        "text_divergence", description="What is minimised: how far generated text is from human text, or the loss."
    )
    share: float = Field(
        0.1,
        ge=0,
        le=10,
        description="Largest cost, as a fraction of the trial's training; at 0 the temperature is calibrated.",
    )


class Study(BaseModel):
    """A study as its file describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: str = Field(min_length=1, description="Name of the study in the database, and of its folders.")
    corpus: Corpus = Field(description="Where the text comes from, and how it is split.")
    objective: str | list[str] = Field(
        "bits_per_byte",
        description="Score that trials are compared by: bits_per_byte, or [bits_per_byte, text_divergence].",
    )
    trial: Budget = Field(description="What one full trial may spend on training, and how often it is evaluated.")
    budget: StudyBudget = Field(StudyBudget(trials=100), description="What the study may spend, over all workers.")
    sampler: dict[str, Any] = Field({"type": "tpe"}, description="How the next trial is proposed.")
    pruner: dict[str, Any] = Field({"type": "successive_halving"}, description="Which trials are stopped early.")
    parameters: dict[str, Any] = Field({}, description="Hyperparameters, each a plain value or a range.")
    points_to_evaluate: list[dict[str, Any]] = Field([], description="Values to try first, one mapping per trial.")
    threads: int | None = Field(
        None, ge=1, le=4096, description="CPU threads of each trial; by default the worker's share."
    )
    decoding: Decoding = Field(Decoding(), description="How temperature and related parameters are chosen.")
    limits: Limits = Field(Limits(), description="The most that a configuration may need.")
    retries: int = Field(
        2, ge=0, le=10**6, description="How often a trial that crashes is tried again, from its last checkpoint."
    )
    timeout: float = Field(
        600.0, gt=0, le=1e9, description="Seconds after which a training step that has not ended counts as a crash."
    )
    provenance: dict[str, Any] | None = Field(None, description="Written by export; read by people.")

    confirms: str | None = Field(None, description="Written by confirm: the study whose best trials these repeat.")

    @field_validator("sampler", "pruner", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, value: str | list[str]) -> str | list[str]:
        if value not in (OBJECTIVES[0], [OBJECTIVES[0]], list(OBJECTIVES)):
            raise ValueError(f"should be {OBJECTIVES[0]} or [{', '.join(OBJECTIVES)}]")
        return value

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        problem = name_problem(value)
        if problem is not None:
            raise ValueError(problem)
        return value

    @property
    def objectives(self) -> list[str]:
        """What trials are compared by; pruning looks at the first."""
        return [self.objective] if isinstance(self.objective, str) else self.objective

    @property
    def space(self) -> Space:
        """The parameters as fixed values and ranges."""
        return Space.of(self.parameters)

    @property
    def trials(self) -> int | None:
        """How many trials are to be finished; a grid has no more than it has points, a fixed configuration has one."""
        if self.confirms is not None:
            return self.budget.trials
        listed = self.sampler["type"] == "grid" or not self.space.training_parameters
        points = samplers.grid_points(self.space) if listed else None
        return min((count for count in (self.budget.trials, points) if count is not None), default=None)

    def stored(self) -> dict[str, Any]:
        """The study as it is kept in the database."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"provenance"}) | {"parameters": self.parameters}


def read_study(path: Path, rehearsed: bool = True) -> Study:
    """Returns the study in a file; relative corpus paths count from its folder. Raises ConfigError."""
    study = parse_study(read_text(path), str(path), default_name=path.stem, rehearsed=rehearsed)
    return study.model_copy(update={"corpus": resolve_path(study.corpus, path.parent)})


def study_of(values: Mapping[str, Any]) -> Study:
    """Returns the study that a mapping describes as a file would; relative corpus paths count from the current folder.

    Raises ConfigError.
    """
    if "name" not in values:
        raise ConfigError("the study: name: missing; give the study a name")
    study = parse_study(dump(dict(values)), "the study", "", rehearsed=True)
    return study.model_copy(update={"corpus": resolve_path(study.corpus, Path.cwd())})


def parse_study(text: str, name: str, default_name: str, rehearsed: bool = False) -> Study:
    """Returns the study that YAML or JSON text describes; `name` stands before each problem.

    Where it is `rehearsed`, sampler and pruner have chosen a few trials that train nothing, which takes a moment. A key
    under its former name is a FutureWarning.
    """
    document = parse(text, name)
    require_schema(document, name, SCHEMA)
    document.setdefault("name", default_name)
    doubled = [*_rename(document, name), *_move(document)]
    _write_out(document)
    return validate(document, name, Study, lambda values: [*doubled, *_all_problems(values, rehearsed)], advice)


def changed(
    study: Study, corpus_path: Path | None = None, trials: int | None = None, hours: float | None = None
) -> Study:
    """Returns a study on another text or with another budget; another text is part of its name. Raises StudyError."""
    changes: dict[str, Any] = {}
    if corpus_path is not None:
        kept = {"split": study.corpus.split, "field": study.corpus.field}
        changes["corpus"] = Corpus(path=str(corpus_path), **kept)  # type: ignore[arg-type]
        changes["name"] = _named_after(study.name, corpus_path)
    if trials is not None or hours is not None:
        changes["budget"] = StudyBudget(trials=trials, hours=hours)
    return study.model_copy(update=changes)


def _named_after(name: str, corpus_path: Path) -> str:
    """What a study is called on another text than its file's."""
    both = f"{name}-{corpus_path.stem}"
    problem = name_problem(both)
    if problem is not None:
        raise StudyError(f"--corpus {corpus_path}: names the study, too, as {both!r}, and {problem}; rename the text")
    return both


def stored_study(values: dict[str, Any]) -> Study:
    """Returns the study that `Study.stored` gave, in an earlier version too. Raises ConfigError for anything else."""
    if not isinstance(values, dict):
        raise ConfigError("the stored study: is no mapping")
    former = {old: new for old, new in RENAMED.items() if new not in values}
    current = {former.get(name, name): value for name, value in values.items()}
    return parse_study(dump(current), "the stored study", "")


def renamed(study: Study, name: str) -> Study:
    """Returns a study under another name, even one that no file could give it."""
    return study if study.name == name else study.model_copy(update={"name": name})


def is_ours(attributes: Mapping[str, Any]) -> bool:
    """Whether a study with these attributes was made by the tuner; others may use the same words."""
    return isinstance(attributes.get("study"), dict) and isinstance(attributes.get("fingerprint"), str)


def differences(before: Study, after: Study) -> list[str]:
    """Says, a line each, what changed between two readings of a study and must not."""
    old, new = (_leaves(study.stored()) for study in (before, after))
    free = set(FREE) - ({"threads"} if before.trial.seconds else set())  # what seconds buy depends on them
    return [
        f"{'.'.join(place)}: was {old.get(place, 'not given')}, is {new.get(place, 'not given')}"
        for place in sorted(old.keys() | new.keys())
        if old.get(place) != new.get(place) and place[0] not in free and place not in PLACES
    ]


def _write_out(document: CommentedMap) -> None:
    """Writes out, in place, what a file says in short."""
    write_out(document, Study)
    parameters, points = document.get("parameters"), document.get("points_to_evaluate")
    if isinstance(parameters, dict):
        write_out_ranges(parameters)
    for point in points if isinstance(points, list) else []:
        if isinstance(point, dict):
            write_out_values(point)
    for section, names in (("sampler", samplers.SAMPLERS), ("pruner", samplers.PRUNERS)):
        chosen = document.get(section)
        if isinstance(chosen, dict) and "type" in chosen:
            chosen["type"] = meant(chosen["type"], str, names)
        elif chosen is not None:
            document[section] = meant(chosen, str, names)


def _rename(document: CommentedMap, file: str) -> Iterator[Problem]:
    """Gives keys their present names, with a warning each; yields those that stand under both names."""
    for old, new in RENAMED.items():
        if old in document and new in document:
            yield (old,), f"given here and as {new}; keep one"
        if old not in document:
            continue
        position, value = document.lc.key(old), document.pop(old)
        if new not in document:
            document[new] = value
            document.lc.add_kv_line_col(new, [*position, *position])
            warnings.warn(f"{file}:{position[0] + 1}: {old} is now {new}; rename it", FutureWarning, stacklevel=4)


def _move(document: CommentedMap) -> Iterator[Problem]:
    """Moves keys to where they belong; yields those that stand in both places."""
    for (section, key), (home, name) in MOVED.items():
        if not isinstance(document.get(section), dict) or key not in document[section]:
            continue
        position, value = document[section].lc.key(key), document[section].pop(key)
        if document.get(home) is None:
            document[home] = CommentedMap()
        if isinstance(document[home], dict) and name not in document[home]:
            document[home][name] = value
            document[home].lc.add_kv_line_col(name, [*position, *position])
        elif isinstance(document[home], dict):
            yield (section, key), f"given here and as {home}.{name}; keep one"


def _all_problems(values: dict[str, Any], rehearsed: bool) -> list[Problem]:
    problems = list(_problems(values))
    if rehearsed and not problems:
        with suppress(ValidationError):  # which `validate` tells
            checked = Study.model_validate(values)
            problems += _file_problems(checked)
            problems += samplers.rehearsal_problems(values, checked.space, checked.trial.rungs)
    return problems


def _file_problems(study: Study) -> Iterator[Problem]:
    """Yields what a person's file may not hold, and the database may."""
    if study.confirms is not None:
        yield ("confirms",), "is written by `tuner confirm`, never by hand; leave it out"
    if study.sampler["type"] == "grid":
        for index, values in enumerate(study.points_to_evaluate):
            if values in study.points_to_evaluate[:index]:
                yield ("points_to_evaluate", index), "is given before, and a grid tries each point once; leave it out"


def _problems(values: dict[str, Any]) -> Iterator[Problem]:
    parameters = values.get("parameters", {})
    sound = True
    if isinstance(parameters, dict):
        for place, what in problems_of(parameters):
            sound = False
            yield ("parameters", *place), what
    space = Space.of(parameters) if sound and isinstance(parameters, dict) else None
    trial: dict[str, Any] = values["trial"] if isinstance(values.get("trial"), dict) else {}
    rungs = trial.get("rungs", Budget.model_fields["rungs"].default)
    if space is not None:
        yield from _point_problems(space, values.get("points_to_evaluate"))
        yield from _budget_problems(space, trial.get("tokens"), rungs)
    if isinstance(values.get("objective"), list) and len(values["objective"]) > 1:
        yield from _two_objectives_problems(values)
    for section, problems in (("sampler", samplers.sampler_problems), ("pruner", samplers.pruner_problems)):
        chosen = values.get(section)
        for place, what in problems(chosen, space, rungs) if chosen is not None else ():
            yield (section, *place), what


def _two_objectives_problems(values: dict[str, Any]) -> Iterator[Problem]:
    for section, refused in (("sampler", "cmaes"), ("pruner", "wilcoxon")):
        chosen = values.get(section)
        if refused in (chosen, chosen.get("type") if isinstance(chosen, dict) else None):
            yield (section,), f"{refused} knows one objective only; choose another, or a single objective"


def _point_problems(space: Space, points: Any) -> Iterator[Problem]:
    for index, values in enumerate(points if isinstance(points, list) else []):
        for name, value in flat(values).items() if isinstance(values, dict) else ():
            problem = chosen_problem(space, name, value)
            if problem is not None:
                yield ("points_to_evaluate", index, *place_of(name)), problem


def _budget_problems(space: Space, tokens: Any, rungs: Any) -> Iterator[Problem]:
    batch, length = space.largest("batch_size"), space.largest("sequence_length")
    if isinstance(tokens, int) and isinstance(rungs, int) and tokens // (batch * length) < rungs:
        steps = f"{tokens // (batch * length)} steps of batch_size {batch} x sequence_length {length}"
        yield ("trial", "tokens"), f"{tokens} are {steps}, too few for {rungs} rungs; give more tokens or fewer rungs"


def _leaves(values: Any, place: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(values, dict) or not values:
        return {place: values}
    return {leaf: value for key, part in values.items() for leaf, value in _leaves(part, (*place, str(key))).items()}
