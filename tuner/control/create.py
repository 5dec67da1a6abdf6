"""Enters a study into the database, after checking its generators, its text, and that it has not changed."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection

from models.config import Config, flat
from models.text.corpus import load_corpus, require_room
from tuner.control.steering import queue
from tuner.errors import StudyError
from tuner.storage.handle import StudyHandle, defined
from tuner.storage.leases import RUNNING, forget_deleted, transaction
from tuner.storage.migrations.migrate import make_tables
from tuner.storage.ownership import owner_of
from tuner.study.definition import Study, differences, is_ours

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.text.corpus import EncodedCorpus

logger = logging.getLogger(__name__)


def enter(storage: RDBStorage, study: Study) -> StudyHandle:
    """Creates the study, or finds it and requires that neither its file nor its corpus has changed.

    Raises StudyError, ConfigError or CorpusError.
    """
    corpus = require_sound(study)
    make_tables(storage.engine)
    forget_deleted(storage.engine)  # without workers no other process does
    with transaction(storage):  # a study that is half there could never be entered again
        return _entered(storage, study, corpus.fingerprint)


def _entered(storage: RDBStorage, study: Study, fingerprint: str) -> StudyHandle:
    directions = [StudyDirection.MINIMIZE] * len(study.objectives)
    found = optuna.create_study(study_name=study.name, storage=storage, directions=directions, load_if_exists=True)
    _require_same(found, study, fingerprint)
    owner_of(found)
    entered = StudyHandle(storage, found, study)
    if entered.leases.open():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            found.set_metric_names(study.objectives)  # what the dashboard writes at its axes
        for values in study.points_to_evaluate:
            queue(found, flat(values), {"points_to_evaluate": True})
    entered.leases.set_state(RUNNING)
    found.set_user_attr("fingerprint", fingerprint)
    found.set_user_attr("study", study.stored())
    return entered


def require_unchanged(storage: RDBStorage, study: Study, fingerprint: str) -> None:
    """Raises StudyError when another study of that name is in the database, as `enter` would; writes nothing."""
    if study.name in optuna.get_all_study_names(storage):
        _require_same(optuna.load_study(study_name=study.name, storage=storage), study, fingerprint)


def _require_same(found: optuna.Study, study: Study, fingerprint: str) -> None:
    before, directions = found.user_attrs.get("study"), [StudyDirection.MINIMIZE] * len(study.objectives)
    fresh = before is None and found.directions == directions and not found.get_trials(deepcopy=False)
    if not fresh and not is_ours(found.user_attrs):
        raise StudyError(f"study {study.name} in this database was not made by the tuner; give yours another name")
    changes = differences(defined(found), study) if before else []
    if found.user_attrs.get("fingerprint", fingerprint) != fingerprint:
        changes.append(f"the text of the corpus: was {found.user_attrs['fingerprint']}, is {fingerprint}")
    if changes:
        raise StudyError(
            f"study {study.name} exists in the database and has changed since:\n  "
            + "\n  ".join(changes)
            + "\nGive the changed study another name, or change it back; only its budget may change."
        )


def require_sound(study: Study) -> EncodedCorpus:
    """Returns the study's text; raises ConfigError or CorpusError when it or a generator is not as it should be."""
    own = {name: study.space.examples(name) for name in study.space.own_architectures}
    for name, examples in own.items():
        _require_classes(name, examples)
    corpus = _corpus(study)
    if corpus.files:
        logger.info("corpus %s: %s", corpus.name, corpus.files)
    if own:
        from models.runs.rehearsal import rehearse_apart

        rehearse_apart([one for examples in own.values() for one in examples], corpus.tokenizer.vocabulary_size)
    return corpus


def _require_classes(name: str, examples: Sequence[Config]) -> None:
    """Raises ConfigError when a class of the user's own is not there or takes other parameters; imports torch."""
    from models.nn.custom import own_class, require_takes

    found = own_class(name)
    for config in examples:
        require_takes(found, name, config.own)


def _corpus(study: Study) -> EncodedCorpus:
    """Reads the study's corpus in every tokenizer of the search, and requires room in it for the largest batch."""
    space = study.space
    searched = space.searched.get("tokenizer")
    for tokenizer in searched.values() if searched else [space.fixed.get("tokenizer", Config().tokenizer)]:
        corpus = load_corpus(study.corpus, str(tokenizer), space.largest("vocabulary_size"))
        require_room(corpus, space.largest("batch_size"), space.largest("sequence_length"))
    return corpus
