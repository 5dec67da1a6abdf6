"""The search space: fixed or searched values <-> Optuna distributions; suggest(trial) -> Config."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice, product
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from models.config import ARCHITECTURES, DECODING, OWN, Config, flat, heads_problem, nested, own_problems
from models.reader import Problem, in_words, nearest
from models.shorthand import INSTEAD
from tuner.optuna_internals import contains
from tuner.study.shorthand import instead

if TYPE_CHECKING:
    import optuna

Value = bool | int | float | str | None

MOST_STEPS = 1_000_000
"""Values of a range with a step; more of them are as good as a range without."""


class _Searched(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    when: dict[str, Value | list[Value]] = Field(
        {}, description="Other parameters, each with the value or list of values under which this one counts."
    )


class _Range(_Searched):
    low: float = Field(description="The smallest value.")
    high: float = Field(description="The largest value; it can be proposed, too.")
    log: bool = Field(False, description="Whether to search the order of magnitude; low must then be above 0.")
    step: float | None = Field(None, gt=0, description="Distance between values, counted from low; excludes log.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}; swap them")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, not {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other; leave one out")
        if self.step is not None and (self.high - self.low) / self.step > MOST_STEPS and isinstance(self.step, float):
            raise ValueError(f"more than {MOST_STEPS:,} steps of {self.step:g}; leave step out")
        if self.step is not None and (rest := (_exact(self.high) - _exact(self.low)) % _exact(self.step)):
            raise ValueError(f"no step of {self.step:g} ends at high {self.high:g}; write {_exact(self.high) - rest}")
        return self


class Float(_Range):
    """Any number between low and high, both included."""

    type: Literal["float"]

    def distribution(self) -> optuna.distributions.BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def described(self) -> str:
        """The range in words."""
        return f"{self.low:g} to {self.high:g}" + (f" in steps of {self.step:g}" if self.step else "")

    def values(self) -> Sequence[Value]:
        """All values, or the two ends of what has no end of values."""
        if self.step is None:
            return [self.low, self.high]
        count = int((_exact(self.high) - _exact(self.low)) / _exact(self.step)) + 1
        return [float(_exact(self.low) + index * _exact(self.step)) for index in range(count)]


class Int(_Range):
    """A whole number between low and high, both included."""

    type: Literal["int"]
    low: int = Field(ge=-(2**53), le=2**53, description="The smallest value.")
    high: int = Field(ge=-(2**53), le=2**53, description="The largest value; it can be proposed, too.")
    step: int | None = Field(None, gt=0, description="Distance between values, counted from low; excludes log.")

    def distribution(self) -> optuna.distributions.BaseDistribution:
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log, step=self.step or 1)

    def described(self) -> str:
        """The range in words."""
        return f"{self.low} to {self.high}" + (f" in steps of {self.step}" if self.step else "")

    def values(self) -> Sequence[Value]:
        """All values; there may be very many."""
        return range(self.low, self.high + 1, self.step or 1)


class Categorical(_Searched):
    """One of the choices."""

    type: Literal["categorical"]
    choices: list[Value] = Field(min_length=1, description="The values: numbers, text, true, false or null.")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({(type(choice), choice) for choice in self.choices}) < len(self.choices):
            raise ValueError("a choice is given twice")
        return self

    def distribution(self) -> optuna.distributions.BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.choices)

    def described(self) -> str:
        """The choices in words."""
        return _joined(self.choices)

    def values(self) -> Sequence[Value]:
        """All values."""
        return self.choices


Searched = Float | Int | Categorical
KINDS: dict[str, type[BaseModel]] = {"float": Float, "int": Int, "categorical": Categorical}
_SEARCHED: TypeAdapter[Searched] = TypeAdapter(Annotated[Searched, Field(discriminator="type")])


@dataclass(frozen=True)
class Space:
    """The parameters of a study: those with a value and those with a range, each after what it depends on.

    Those of a custom class are named `own.NAME`, and count only when the architecture is custom.
    """

    fixed: dict[str, Value]
    searched: dict[str, Searched]

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Space:
        """Returns the space that a study file's `parameters` describe; they must be without problems."""
        parameters = flat(parameters)
        searched = {name: _SEARCHED.validate_python(value) for name, value in parameters.items() if is_searched(value)}
        fixed = {name: value for name, value in parameters.items() if name not in searched}
        return cls(fixed, {name: searched[name] for name in _ordered(searched)})

    @property
    def training_parameters(self) -> dict[str, Searched]:
        """The ranges that need a training for each value tried."""
        return {name: one for name, one in self.searched.items() if name not in DECODING}

    @property
    def decoding_parameters(self) -> dict[str, Searched]:
        """The ranges that are tried on a trained model."""
        return {name: one for name, one in self.searched.items() if name in DECODING}

    def largest(self, name: str) -> int:
        """Returns the largest value that a whole-numbered parameter can have."""
        searched = self.searched.get(name)
        return max(searched.values()) if searched else self.fixed.get(name, _default(name))  # type: ignore[type-var, return-value]

    def suggest(self, trial: optuna.Trial) -> Config:
        """Returns the configuration of a trial, its searched values proposed by the study's sampler."""
        values = dict(self.fixed)
        for name, searched in self.training_parameters.items():
            if _is_reached(name, values) and self.is_active(searched, values):
                values[name] = _suggest(trial, name, searched)
        return self.config(values)

    def is_active(self, searched: Searched, values: Mapping[str, Value]) -> bool:
        """Whether every condition of a parameter holds."""
        return all(_has(values, name, _listed(wanted)) for name, wanted in searched.when.items())

    def config(self, values: Mapping[str, Value]) -> Config:
        """Returns the configuration of these values; those of a custom class are left out of other architectures."""
        return Config.model_validate(
            nested({name: value for name, value in values.items() if _is_reached(name, values)})
        )

    @property
    def own_architectures(self) -> list[str]:
        """The custom classes that a trial may have as its architecture."""
        searched = self.searched.get("architecture")
        listed = searched.values() if searched else [self.fixed.get("architecture", _default("architecture"))]
        return [str(name) for name in listed if name not in ARCHITECTURES]

    def examples(self, architecture: str) -> list[Config]:
        """Returns small configurations of a custom class, in which each of its parameters has each end of its range.

        Each other parameter has the first value of its range.
        """
        wanted: list[dict[str, Value]] = [{}]
        for name, searched in self.training_parameters.items():
            ends = _ends(searched) if name.startswith(OWN) else []
            wanted += [self._conditions(name) | {name: value} for value in ends]
        chosen = self._conditions("architecture") | {"architecture": architecture}
        found: list[Config] = []
        for one in (each | chosen for each in wanted):
            values = self._example(one)
            if all(_has(values, name, [value]) for name, value in one.items()):
                config = self.config(values)
                found += [config] if config not in found else []
        return found

    def _example(self, wanted: Mapping[str, Value]) -> dict[str, Value]:
        values = dict(self.fixed)
        for name, searched in self.training_parameters.items():
            if _is_reached(name, values) and self.is_active(searched, values):
                values[name] = wanted.get(name, _ends(searched)[0])
        return values

    def _conditions(self, name: str) -> dict[str, Value]:
        """Values of other searched parameters beside which one counts."""
        found: dict[str, Value] = {}
        for other, wanted in self.searched[name].when.items() if name in self.searched else ():
            if other in self.training_parameters:
                found |= self._conditions(other) | {other: _listed(wanted)[0]}
        return found


def configuration_problem(space: Space, config: Config, free: Iterable[str] = ()) -> str | None:
    """Says in what a configuration is not of this space, or None; what is `free` may be anything.

    So may decoding parameters that are not fixed: they are chosen on the trained model.
    """
    given, values = flat(config.model_dump()), dict(space.fixed)
    for name, searched in space.training_parameters.items():
        if _is_reached(name, values) and space.is_active(searched, values):
            problem = chosen_problem(space, name, _as_searched(given.get(name), searched))
            if problem is not None:
                return f"{name} {problem}"
            values[name] = given[name]
    wanted = flat(space.config(values).model_dump())
    unbound = {*free, *(name for name in DECODING if name not in space.fixed)}
    for name in sorted({*given, *wanted} - unbound):
        if given.get(name) != wanted.get(name):
            return f"{name} is {given.get(name)!r}, and the study has it at {wanted.get(name)!r}"
    return None


def _as_searched(value: Value, searched: Searched) -> Value:
    """A value as its range has it: a whole number stands in the configuration as 1.0 where a float belongs."""
    whole = searched.type == "int" and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value  # type: ignore[arg-type]


def chosen_problem(space: Space, name: str, value: Any) -> str | None:
    """Says why a trial cannot be given this value of a parameter, or None."""
    if name in space.decoding_parameters:
        return "is chosen on the trained model; no trial can be given one"
    if name in space.fixed:
        return f"is fixed at {space.fixed[name]!r}"
    if name not in space.training_parameters:
        return f"is not searched{nearest(name, space.training_parameters)}"
    searched = space.training_parameters[name]
    distribution = searched.distribution()
    kinds = {"float": (int, float), "int": (int,)}.get(searched.type)
    try:
        fits = (kinds is None or type(value) in kinds) and contains(distribution, distribution.to_internal_repr(value))
    except (ValueError, TypeError):
        fits = False
    return None if fits else f"{value!r} is not among what is searched: {searched.described()}"


def _exact(number: float) -> Decimal:
    """A number as it is written: three steps of 0.1 end at 0.3, which in binary they miss."""
    return Decimal(str(number))


def is_searched(value: Any) -> bool:
    """Whether a value in a study file is a range."""
    return isinstance(value, Mapping)


def problems_of(parameters: Mapping[str, Any]) -> Iterator[Problem]:
    """Yields what is wrong with the `parameters` of a study file."""
    for (name, *place), what in _problems(parameters):
        yield (*place_of(str(name)), *place), what


def place_of(name: str) -> tuple[str, ...]:
    """Returns where a parameter stands among those of a study file."""
    return ("own", name.removeprefix(OWN)) if name.startswith(OWN) else (name,)


def _problems(parameters: Mapping[str, Any]) -> Iterator[Problem]:
    """Yields what is wrong, each with a parameter's single name first."""
    given = parameters.get("own", {})
    if not isinstance(given, Mapping):
        yield from ((("own",), what) for _, what in own_problems(given))
        return
    written = next((name for name in parameters if name.startswith(OWN)), None)
    if written is not None:
        yield (written,), f"write it as own: {{{written.removeprefix(OWN)}: ...}}"
        return
    unnamed = [((f"{OWN}{name}",), what) for name, what in own_problems(dict.fromkeys(given))]
    yield from unnamed
    parameters = flat(parameters)
    sound: dict[str, Searched] = {}
    found = bool(unnamed)
    for name, value in parameters.items():
        problems = list(_parameter_problems(name, value))
        found = found or bool(problems)
        yield from problems
        if is_searched(value) and not problems:
            sound[name] = _SEARCHED.validate_python(value)
    for name, searched in sound.items():
        problems = list(_condition_problems(name, searched, parameters, sound))
        found = found or bool(problems)
        yield from problems
    if not found:
        space = Space.of(parameters)
        yield from _combination_problems(space)
        if given and not space.own_architectures:
            yield ("own",), "is for a class of your own as architecture, package.module:Class; there is none"


def _parameter_problems(name: str, value: Any) -> Iterator[Problem]:
    if name not in Config.model_fields and not name.startswith(OWN):
        budget = INSTEAD.get(name.lower(), "")
        hint = f"; write {budget}" if budget.startswith("trial:") else nearest(name, Config.model_fields)
        yield (name,), f"unknown parameter{hint}"
    elif isinstance(value, list) and (written := instead(name, value)) is not None:
        yield (name,), f"could be two values or the ends of a range; write {written}"
    elif not is_searched(value):
        yield from (((name,), what) for what in _value_problems(name, value))
    else:
        try:
            searched = _SEARCHED.validate_python(value)
        except ValidationError as error:
            foreign, written = _foreign(value), instead(name, value)
            if foreign is not None and written is not None:
                yield (name,), f"unknown {foreign}; write {written}"
            else:
                yield from (_range_problem(name, value, one) for one in error.errors())
            return
        ends = searched.choices if isinstance(searched, Categorical) else [searched.low, searched.high]
        place = "choices" if isinstance(searched, Categorical) else ""
        for end in ends:
            yield from (((name, place) if place else (name,), f"{end}: {what}") for what in _value_problems(name, end))


def _foreign(value: Mapping[str, Any]) -> str | None:
    """The type or key of a range that other programs have, and that is no misspelt one of ours; None without one."""
    kind = value.get("type", "float")
    if not nearest(str(kind), KINDS).endswith("?"):
        return f"type {kind!r}"
    known = {*Float.model_fields, *Categorical.model_fields}
    return next((f"key {key}" for key in value if not nearest(str(key), known).endswith("?")), None)


def _range_problem(name: str, value: Mapping[str, Any], error: Any) -> Problem:
    place = tuple(part for part in error["loc"] if part not in ("float", "int", "categorical"))
    kind = KINDS.get(str(value.get("type")))
    if error["type"] == "union_tag_not_found":
        return (name,), "a range needs a type: float, int or categorical"
    if error["type"] == "union_tag_invalid":
        return (name, "type"), f"unknown type {value.get('type')!r}{nearest(str(value.get('type')), KINDS)}"
    if error["type"] == "extra_forbidden" and kind is not None:
        return (name, *place), f"unknown key{nearest(str(place[-1]), kind.model_fields)}"
    if error["type"] == "missing":
        return (name, *place), "missing"
    return (name, *place), in_words(str(error["msg"]))


def _value_problems(name: str, value: Value) -> Iterator[str]:
    if name.startswith(OWN):
        yield from (what for _, what in own_problems({name.removeprefix(OWN): value}))
        return
    try:
        Config.model_validate({name: value})
    except ValidationError as error:
        for one in error.errors():
            if one["loc"][:1] == (name,):
                yield in_words(one["msg"])


def _condition_problems(
    name: str, searched: Searched, parameters: Mapping[str, Any], sound: Mapping[str, Searched]
) -> Iterator[Problem]:
    if searched.when and name in DECODING:
        yield (name, "when"), "is chosen after training, for every trial; leave when out"
    for other, wanted in searched.when.items():
        place = (name, "when", other)
        if other not in parameters and (other == "own" or other not in Config.model_fields):
            own = [name for name in parameters if name.startswith(OWN)]
            yield place, f"unknown parameter{nearest(other, [*Config.model_fields, *own])}"
        elif other in DECODING:
            yield place, "is chosen after training, so nothing can depend on it"
        elif _depends(other, name, sound):
            yield place, f"{name} and {other} depend on each other"
        else:
            possible = _possible(other, parameters.get(other, _default(other)), sound)
            never = [value for value in _listed(wanted) if possible is not None and value not in possible]
            yield from ((place, f"{other} is never {value!r}; it can be {_joined(possible or [])}") for value in never)


def _combination_problems(space: Space) -> Iterator[Problem]:
    """Yields the sizes a search could propose that no transformer can have."""
    names = ("architecture", "heads", "hidden_size", "positions")
    possible = [_values_of(space, name) for name in names]
    if "transformer" not in possible[0]:
        return
    for chosen in product(["transformer"], *possible[1:]):
        values = dict(zip(names, chosen, strict=True))
        problem = heads_problem(*chosen[1:])  # type: ignore[arg-type]
        if problem and all(_comes_about(space, name, values) for name in names):
            yield ("heads",) if "heads" in space.searched or "heads" in space.fixed else ("hidden_size",), problem
            return


def _values_of(space: Space, name: str) -> Sequence[Value]:
    """What a parameter can be, its default included where there are conditions."""
    searched = space.searched.get(name)
    if searched is None:
        return [space.fixed.get(name, _default(name))]
    return [*searched.values(), _default(name)] if searched.when else searched.values()


def _comes_about(space: Space, name: str, values: Mapping[str, Value]) -> bool:
    """Whether the conditions of a parameter, as far as these values tell, allow it the one it has among them."""
    searched = space.searched.get(name)
    if searched is None or not searched.when:
        return True
    told = [values[other] in _listed(wanted) for other, wanted in searched.when.items() if other in values]
    if not all(told):
        return values[name] == _default(name)
    return len(told) < len(searched.when) or values[name] in searched.values()


def _suggest(trial: optuna.Trial, name: str, searched: Searched) -> Value:
    if isinstance(searched, Categorical):
        return trial.suggest_categorical(name, searched.choices)
    if isinstance(searched, Int):
        return trial.suggest_int(name, searched.low, searched.high, step=searched.step or 1, log=searched.log)
    return trial.suggest_float(name, searched.low, searched.high, step=searched.step, log=searched.log)


def _ordered(searched: Mapping[str, Searched]) -> list[str]:
    """Names in the file's order, but each after the ones its conditions look at."""
    order: list[str] = []

    def visit(name: str) -> None:
        for other in _looked_at(name, searched):
            if other in searched and other not in order:
                visit(other)
        if name not in order:
            order.append(name)

    for name in searched:
        visit(name)
    return order


def _looked_at(name: str, searched: Mapping[str, Searched]) -> list[str]:
    """The parameters that decide whether one counts."""
    return [*searched[name].when, *(["architecture"] if name.startswith(OWN) else [])]


def _is_own(values: Mapping[str, Value]) -> bool:
    return values.get("architecture", _default("architecture")) not in ARCHITECTURES


def _is_reached(name: str, values: Mapping[str, Value]) -> bool:
    """Whether the architecture could take a parameter at all."""
    return _is_own(values) or not name.startswith(OWN)


def _has(values: Mapping[str, Value], name: str, wanted: list[Value]) -> bool:
    """Whether a parameter has one of these values; one of a custom class has none by default."""
    if name.startswith(OWN):
        return _is_own(values) and name in values and values[name] in wanted
    return values.get(name, _default(name)) in wanted


def _ends(searched: Searched) -> Sequence[Value]:
    """The values of a range that are tried: all choices, or both ends."""
    return searched.values() if isinstance(searched, Categorical) else [searched.low, searched.high]


def _depends(name: str, on: str, searched: Mapping[str, Searched], seen: frozenset[str] = frozenset()) -> bool:
    if name == on:
        return True
    others = _looked_at(name, searched) if name in searched and name not in seen else []
    return any(_depends(other, on, searched, seen | {name}) for other in others)


def _possible(name: str, value: Any, sound: Mapping[str, Searched]) -> Sequence[Value] | None:
    """Every value a parameter can have, or None when they cannot be listed."""
    if not is_searched(value):
        return [value]
    searched = sound.get(name)
    return None if searched is None or (isinstance(searched, Float) and searched.step is None) else searched.values()


def _default(name: str) -> Value:
    """The value that counts where none is given; the constructor of a custom class knows its own."""
    return None if name.startswith(OWN) else Config.model_fields[name].default


def _listed(wanted: Value | list[Value]) -> list[Value]:
    return wanted if isinstance(wanted, list) else [wanted]


def _joined(values: Iterable[Value]) -> str:
    shown = [str(value) for value in islice(values, 9)]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
