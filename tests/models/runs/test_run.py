"""Run folders: what a run leaves, what is loaded from it, and what is never overwritten by accident."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.config import Budget, Config, Corpus, Recipe
from models.errors import ConfigError, CorpusError, DeviceError, RunError, UserError
from models.files import draft_of
from models.runs import run
from models.runs.run import load, read_recipe, score_test, train_run
from models.text.corpus import load_corpus
from models.text.tokenizers import learn
from models.training.checkpoint import load_weights, read_checkpoint, weights, write_checkpoint, write_tensors
from models.training.loop import Evaluation, Trained, Training
from models.training.observer import RunObserver
from models.training.stopping import Stopped
from tests.models.conftest import RHYME

FILES = [
    "README.md",
    "config.yaml",
    "loss.svg",
    "metrics.jsonl",
    "model.safetensors",
    "result.json",
    "samples.md",
    "tokenizer.json",
]


class Stop(Exception):
    pass


@pytest.fixture
def recipe(rhyme_file: Path) -> Recipe:
    """Eight steps, four rungs."""
    return Recipe(
        corpus=Corpus(path=str(rhyme_file)),
        trial=Budget(tokens=256, rungs=4),
        parameters=Config(hidden_size=8, heads=2, sequence_length=8, batch_size=4, temperature=0.5),
        threads=1,
    )


def varied(recipe: Recipe, **parameters: Any) -> Recipe:
    return recipe.model_copy(update={"parameters": Config(**recipe.parameters.model_dump() | parameters)})


def stop_after(recipe: Recipe, folder: Path, steps: int, save: bool = True, **options: Any) -> None:
    """Trains so many steps and leaves, with a checkpoint or as a killed process does."""

    class Stopping(RunObserver):
        step = 0

        def on_step(self, training: Training) -> None:
            self.step = training.step
            if self.step == steps and not save:
                raise Stop

        def stop_requested(self) -> bool:
            return self.step == steps

    with pytest.raises(Stopped if save else Stop):
        train_run(recipe, folder, observer=Stopping(), **options)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.fixture
def folder(recipe: Recipe, tmp_path: Path) -> Path:
    """A finished run."""
    train_run(recipe, tmp_path / "run")
    return tmp_path / "run"


# What is left.


def test_a_run_leaves_its_configuration_vocabulary_weights_and_metrics(recipe: Recipe, tmp_path: Path) -> None:
    told: list[Evaluation] = []
    observer = RunObserver()
    observer.on_evaluation = told.append  # type: ignore[method-assign, assignment]
    trained = train_run(recipe, tmp_path / "deep" / "run", observer=observer)
    folder = tmp_path / "deep" / "run"
    assert sorted(content(folder)) == FILES
    assert told == trained.evaluations
    lines = [Evaluation(**json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == told
    assert [line.tokens for line in lines] == [64, 128, 192, 256]


def test_the_configuration_in_a_run_trains_the_same_run(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    kept = read_recipe(folder / "config.yaml")
    assert kept.parameters == recipe.parameters
    assert kept.corpus.fingerprint is not None
    assert kept.threads == 1
    train_run(kept, tmp_path / "again")
    for name in ("config.yaml", "tokenizer.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert metrics(tmp_path / "again") == metrics(folder)


def test_every_knob_is_written_down_whatever_its_default_will_be(folder: Path) -> None:
    text = (folder / "config.yaml").read_text()
    assert text.startswith("# Train it again: tuner train config.yaml")
    assert all(f"\n  {name}: " in text for name in Config.model_fields if name != "own")


def test_another_text_than_the_run_was_trained_on_is_refused(folder: Path, rhyme_file: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(rhyme_file.read_text() + "!", encoding="utf-8")
    kept = read_recipe(folder / "config.yaml")
    other = kept.corpus.model_copy(update={"path": str(tmp_path / "other.txt")})
    with pytest.raises(CorpusError, match="fingerprint"):
        train_run(kept.model_copy(update={"corpus": other}), tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_another_text_is_taken_where_that_is_allowed(folder: Path, rhyme_file: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(rhyme_file.read_text() + "!", encoding="utf-8")
    kept = read_recipe(folder / "config.yaml")
    changed = kept.corpus.model_copy(update={"path": str(tmp_path / "other.txt")})
    with pytest.raises(CorpusError, match=r"fingerprint, or go on with it by --allow-changed-corpus"):
        train_run(kept.model_copy(update={"corpus": changed}), tmp_path / "again")
    with pytest.warns(UserWarning, match=f"not {kept.corpus.fingerprint} that .* its scores do not compare"):
        train_run(kept.model_copy(update={"corpus": changed}), tmp_path / "again", allow_changed_corpus=True)
    written = read_recipe(tmp_path / "again" / "config.yaml").corpus
    assert written.fingerprint not in (None, kept.corpus.fingerprint)


def test_a_relative_corpus_counts_from_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.json").write_text('{"corpus": {"path": "texts/a.txt"}, "trial": {"tokens": 5}}')
    assert read_recipe(tmp_path / "recipe.json").corpus.path == str(tmp_path / "texts" / "a.txt")
    monkeypatch.chdir(tmp_path)
    assert read_recipe(Path("recipe.json")).corpus.path == str(tmp_path / "texts" / "a.txt")


# What can be loaded.


def test_a_loaded_run_is_the_trained_model(recipe: Recipe, tmp_path: Path) -> None:
    for parameters in (
        {"architecture": "lstm", "layers": 2, "tied_embeddings": True, "embedding_size": 4},
        {"architecture": "transformer", "positions": "sinusoidal"},
        {"architecture": "gru", "patience": 1, "learning_rate": 1.0, "tokenizer": "byte-pair"},
    ):
        trained = train_run(varied(recipe, **parameters), tmp_path / "run", force=True)
        loaded = load(str(tmp_path / "run"))
        assert not loaded.model.training
        tokens = torch.arange(20).view(2, 10)
        assert torch.equal(loaded.model(tokens, None)[0], trained.model(tokens, None)[0])


def test_a_loaded_run_writes_as_configured_by_default(folder: Path) -> None:
    loaded = load(folder)
    text = loaded.generate("on the wall ", 30, seed=1)
    assert (
        text == "".join(loaded.stream("on the wall ", 30, seed=1)) == load(folder).generate("on the wall ", 30, seed=1)
    )
    assert text == loaded.generate("on the wall ", 30, seed=1, temperature=0.5)
    assert text != loaded.generate("on the wall ", 30, seed=1, temperature=1.5)
    assert loaded.generate("on", 30, temperature=0) == loaded.generate("on", 30, top_k=1)
    with pytest.raises(ValueError, match="top_k"):
        loaded.generate(top_k=0)
    with pytest.raises(ConfigError, match="length 0"):
        loaded.generate(length=0)


def test_without_a_prompt_a_text_begins_where_the_model_knows_one(folder: Path) -> None:
    """The corpus is one file, which holds no end of text; in the other two each document ends with one."""
    loaded = load(folder)
    expected = loaded.generate("\n", 20, seed=1)
    assert loaded.generate("", 20, seed=1) == loaded.generate_batch([""], 20, seed=1)[0] == expected
    assert loaded.beam_search("", 20) == loaded.beam_search("\n", 20)
    for corpus in (Corpus(path="texts"), Corpus(path="texts.jsonl", field="text")):
        many = replace(loaded, recipe=loaded.recipe.model_copy(update={"corpus": corpus}))
        assert many.opening == ""
    letters = replace(loaded, tokenizer=learn("character", "ab", 300))
    assert letters.opening == "a"


def test_a_run_that_is_not_there_or_not_finished_names_its_remedy(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere: no such run folder; make one with .*train best\.yaml"):
        load(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"no complete run, config\.yaml, tokenizer\.json, model\.safetensors missing"):
        load(tmp_path)
    stop_after(recipe, tmp_path / "run", 3)
    with pytest.raises(
        RunError, match=r"run: no complete run, model\.safetensors missing; finish it with `train --res"
    ):
        load(tmp_path / "run")


@pytest.mark.parametrize("name", ["config.yaml", "tokenizer.json"])
def test_a_trained_run_that_lost_a_file_is_not_advised_to_go_on(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(RunError, match=f"run: {name} missing; restore it, or train into another folder"):
        load(folder)


def test_the_package_loads_a_run_and_its_weights_load_alone(folder: Path) -> None:
    import models

    assert models.load(folder).generate("Once", 5, seed=1) == load(folder).generate("Once", 5, seed=1)
    assert load_file(folder / "model.safetensors").keys() == dict(load(folder).model.named_parameters()).keys()
    with pytest.raises(AttributeError, match="no attribute 'store'"):
        models.store  # noqa: B018


FORMER = {
    "embedding_proj": "widen",
    "attention.qkv_proj": "attention.widen",
    "attention.out_proj": "attention.narrow",
    "feed_forward.up_proj": "feed_forward.widen",
    "feed_forward.down_proj": "feed_forward.narrow",
}


def as_0_1_wrote_it(path: Path) -> None:
    """Gives the weights in a file the names that they had."""
    tensors, facts = (load_file(path), None) if path.name == "model.safetensors" else read_checkpoint(path)
    former = {reduce(lambda name, pair: name.replace(*pair), FORMER.items(), name): tensors[name] for name in tensors}
    assert former.keys() != tensors.keys()
    write_tensors(path, former) if facts is None else write_checkpoint(path, former, facts)


def test_a_run_folder_of_0_1_is_loaded_with_every_weight_in_its_place() -> None:
    folder = Path(__file__).parents[2] / "written_by_0_1" / "run"
    written, model = load_file(folder / "model.safetensors"), load(folder).model
    assert "blocks.0.attention.widen.weight" in written
    for name, parameter in model.named_parameters():
        former = reduce(lambda name, pair: name.replace(*pair), FORMER.items(), name)
        assert torch.equal(parameter, written[former])


@pytest.mark.parametrize("patience", [0, 3])
def test_files_of_0_1_are_gone_on_with_and_loaded(patience: int, recipe: Recipe, tmp_path: Path) -> None:
    recipe = varied(recipe, architecture="transformer", embedding_size=4, patience=patience)
    train_run(recipe, tmp_path / "whole")
    stop_after(recipe, tmp_path / "run", 5)
    as_0_1_wrote_it(tmp_path / "run" / "checkpoint.safetensors")
    train_run(recipe, tmp_path / "run", resume=True)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    text = load(tmp_path / "run").generate("Once", 20, seed=1)
    as_0_1_wrote_it(tmp_path / "run" / "model.safetensors")
    assert load(tmp_path / "run").generate("Once", 20, seed=1) == text


class Named(nn.Module):
    """Has a weight of a name that another model's had, and one whose name would be taken for it."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.register_module(name, nn.Linear(2, 2, bias=False))


def test_names_of_ones_own_are_left_alone() -> None:
    for names in (["widen"], ["widen", "embedding_proj"]):
        model, other = Named(*names), Named(*names)
        load_weights(other, weights(model))
        assert all(torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match="weights of another model: widen"):
        load_weights(Named("embedding_proj"), weights(Named("widen", "embedding_proj")))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def rename(path: Path) -> None:
    save_file({f"other.{name}": tensor for name, tensor in load_file(path).items()}, path)


def shrink(path: Path) -> None:
    """To shapes that could be stretched to the real ones."""
    save_file({name: tensor.flatten()[:1].clone() for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize("damage", [cut, empty, rename, shrink])
def test_damaged_weights_are_refused(damage: Callable[[Path], None], folder: Path) -> None:
    damage(folder / "model.safetensors")
    with pytest.raises(RunError, match=r"model\.safetensors: does not hold the weights of config\.yaml"):
        load(folder)


@pytest.mark.parametrize("name", ["config.yaml", "tokenizer.json"])
@pytest.mark.parametrize("damaged", [b"", b"{", b"\0\0\0", b"\xff", b"kind: 3"])
def test_damaged_text_is_refused(name: str, damaged: bytes, folder: Path) -> None:
    (folder / name).write_bytes(damaged)
    with pytest.raises(UserError, match=name):
        load(folder)


# What is in the way.


def test_what_is_there_is_not_touched_without_being_asked(recipe: Recipe, folder: Path) -> None:
    before = content(folder)
    with pytest.raises(RunError, match="run: exists already and is trained; write with it, or replace it with --force"):
        train_run(varied(recipe, seed=1), folder)
    assert content(folder) == before
    train_run(varied(recipe, seed=1), folder, force=True)
    assert sorted(content(folder)) == FILES
    assert content(folder)["model.safetensors"] != before["model.safetensors"]


def test_an_empty_folder_is_as_good_as_none(recipe: Recipe, tmp_path: Path) -> None:
    train_run(recipe, tmp_path)
    assert sorted(content(tmp_path)) == FILES


def test_force_replaces_what_a_killed_run_left(recipe: Recipe, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / ".model.safetensors")
    (folder / ".checkpoint.safetensors.12345").write_bytes(b"half of one")
    train_run(recipe, folder, force=True)
    assert sorted(content(folder)) == FILES


@pytest.mark.parametrize("others", [[], ["tokenizer.json", "model.safetensors"], ["config.yaml"], ["thesis.txt"]])
def test_force_does_not_delete_a_folder_that_is_no_run(recipe: Recipe, others: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    for name in others:
        (folder / name).write_text("name: my other project\n")
    if others:
        (folder / "src").rmdir()
    with pytest.raises(RunError, match=r"project: is not just a run folder.*choose another -o"):
        train_run(recipe, folder, force=True)
    assert sorted(os.listdir(folder)) == sorted(others or ["src"])
    assert all((folder / name).read_text() == "name: my other project\n" for name in others)


def test_force_does_not_delete_a_run_that_somebody_keeps_other_things_in(recipe: Recipe, folder: Path) -> None:
    (folder / "thesis").mkdir()
    (folder / "notes.txt").write_text("years of work")
    before = sorted(os.listdir(folder))
    with pytest.raises(RunError, match=r"not just a run folder \(notes\.txt, thesis\)"):
        train_run(recipe, folder, force=True)
    assert sorted(os.listdir(folder)) == before


def test_a_file_is_no_folder(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for options in ({}, {"force": True}, {"resume": True}):
        with pytest.raises(RunError, match="file: is not a folder; choose another -o"):
            train_run(recipe, tmp_path / "file", **options)  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"file/run: cannot be written \(Not a directory\)"):
        train_run(recipe, tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize(
    ("parameters", "options", "error"),
    [
        ({"architecture": "nowhere_at_all:Own"}, {}, ConfigError),
        ({"batch_size": 4000}, {}, CorpusError),
        ({"sequence_length": 4000}, {}, CorpusError),
        ({}, {"device": "cuda:99"}, DeviceError),
        ({}, {"device": "mps"}, DeviceError),
    ],
)
def test_a_mistake_is_found_before_anything_is_made_or_replaced(
    parameters: dict[str, Any], options: dict[str, Any], error: type[UserError], recipe: Recipe, folder: Path
) -> None:
    before = content(folder)
    with pytest.raises(error):
        train_run(varied(recipe, **parameters), folder, force=True, **options)
    assert content(folder) == before
    with pytest.raises(error):
        train_run(varied(recipe, **parameters), folder.parent / "new", **options)
    assert not (folder.parent / "new").exists()


def test_a_run_that_diverges_says_what_helps(recipe: Recipe, tmp_path: Path) -> None:
    wild = {"architecture": "transformer", "optimizer": "sgd", "learning_rate": 100.0, "gradient_clip": 0.0}
    with pytest.raises(RunError, match=r"run: the .* after \d+ steps; a smaller learning_rate or gradient_clip helps"):
        train_run(varied(recipe, **wild), tmp_path / "run")


# Going on.


def test_a_resumed_run_is_the_run(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    for steps in (1, 4, 8):
        resumed = tmp_path / f"resumed-{steps}"
        stop_after(recipe, resumed, steps)
        assert (resumed / "checkpoint.safetensors").exists()
        trained = train_run(recipe, resumed, resume=True)
        assert sorted(content(resumed)) == FILES
        assert content(resumed)["model.safetensors"] == content(folder)["model.safetensors"]
        assert metrics(resumed) == metrics(folder)
        assert len(trained.evaluations) == 4


def test_a_run_killed_after_its_last_checkpoint_repeats_what_came_since(
    recipe: Recipe, folder: Path, tmp_path: Path
) -> None:
    class Killing(RunObserver):
        def on_step(self, training: Training) -> None:
            if training.step == 3:
                training.save(tmp_path / "killed" / "checkpoint.safetensors")
            if training.step == 7:
                raise Stop

    with pytest.raises(Stop):
        train_run(recipe, tmp_path / "killed", observer=Killing())
    assert len(metrics(tmp_path / "killed")) == 3
    train_run(recipe, tmp_path / "killed", resume=True)
    assert metrics(tmp_path / "killed") == metrics(folder)
    assert content(tmp_path / "killed")["model.safetensors"] == content(folder)["model.safetensors"]


def test_a_run_killed_before_its_first_checkpoint_starts_over(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    stop_after(recipe, tmp_path / "killed", 5, save=False)
    assert not (tmp_path / "killed" / "checkpoint.safetensors").exists()
    train_run(recipe, tmp_path / "killed", resume=True)
    assert content(tmp_path / "killed")["model.safetensors"] == content(folder)["model.safetensors"]
    assert metrics(tmp_path / "killed") == metrics(folder)


def test_resume_may_be_given_from_the_start(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    train_run(recipe, tmp_path / "new", resume=True)
    assert content(tmp_path / "new")["model.safetensors"] == content(folder)["model.safetensors"]


def test_what_was_killed_before_it_began_is_not_in_the_way(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / ".config.yaml").write_text("corpus: {pa")
    train_run(recipe, tmp_path)
    assert sorted(content(tmp_path)) == FILES


def test_a_folder_that_is_no_run_can_be_neither_resumed_nor_begun(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    for resume in (True, False):
        with pytest.raises(RunError, match="exists already and is no run folder; choose another -o"):
            train_run(recipe, tmp_path, resume=resume)


def test_a_damaged_checkpoint_costs_time_alone(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    stop_after(recipe, tmp_path / "stopped", 3)
    cut(tmp_path / "stopped" / "checkpoint.safetensors")
    with pytest.warns(UserWarning, match="checkpoint ignored"):
        train_run(recipe, tmp_path / "stopped", resume=True)
    assert content(tmp_path / "stopped")["model.safetensors"] == content(folder)["model.safetensors"]


def test_only_the_same_run_is_resumed(recipe: Recipe, rhyme_file: Path, tmp_path: Path) -> None:
    stop_after(recipe, tmp_path / "run", 3)
    before = content(tmp_path / "run")
    (tmp_path / "other.txt").write_text(rhyme_file.read_text() + "!", encoding="utf-8")
    others = {
        "learning_rate, seed": varied(recipe, learning_rate=0.1, seed=1),
        r"budget \(--tokens 256 --rungs 4\)": recipe.model_copy(update={"trial": Budget(tokens=512, rungs=4)}),
        "split": recipe.model_copy(update={"corpus": Corpus(path=str(rhyme_file), split=(0.8, 0.1, 0.1))}),
        "corpus": recipe.model_copy(update={"corpus": Corpus(path=str(tmp_path / "other.txt"))}),
    }
    for differing, other in others.items():
        with pytest.raises(RunError, match=f"run: was begun with another {differing}; give the same, or replace it"):
            train_run(other, tmp_path / "run", resume=True)
        assert content(tmp_path / "run") == before


def test_a_text_may_be_moved_between_stop_and_resume(
    recipe: Recipe, rhyme_file: Path, folder: Path, tmp_path: Path
) -> None:
    stop_after(recipe, tmp_path / "stopped", 3)
    shutil.copy(rhyme_file, tmp_path / "moved.txt")
    moved = recipe.model_copy(update={"corpus": Corpus(path=str(tmp_path / "moved.txt"))})
    train_run(moved, tmp_path / "stopped", resume=True)
    assert content(tmp_path / "stopped")["model.safetensors"] == content(folder)["model.safetensors"]
    assert read_recipe(tmp_path / "stopped" / "config.yaml").corpus.path == str(tmp_path / "moved.txt")


def test_a_finished_run_is_not_resumed(recipe: Recipe, folder: Path) -> None:
    before = content(folder)
    with pytest.raises(RunError, match="run: is trained already; write with it, or replace it with --force alone"):
        train_run(recipe, folder, resume=True)
    assert content(folder) == before


def test_a_checkpoint_is_saved_when_the_last_one_is_old(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(Training, "save", lambda training, path: saved.append(training.step))
    train_run(recipe, tmp_path / "rarely")
    assert saved == []
    train_run(recipe, tmp_path / "often", checkpoint_seconds=-1.0)
    assert saved == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_run_is_scored_again_without_a_training(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train_run(recipe, tmp_path / "run", device="cpu")
    monkeypatch.setattr("models.training.loop.build_optimizers", None)
    assert trained.test is not None
    assert score_test(tmp_path / "run", "cpu") == trained.test


@pytest.mark.parametrize("architecture", ["gru", "transformer"])
def test_a_text_is_scored_as_held_out_text_is(architecture: str, recipe: Recipe, tmp_path: Path) -> None:
    trained = train_run(varied(recipe, architecture=architecture), tmp_path / "run", device="cpu")
    loaded = load(tmp_path / "run", "cpu")
    corpus = load_corpus(loaded.recipe.corpus, "character", 0)
    validation, test = (loaded.tokenizer.decode(part) for part in (corpus.validation, corpus.test))
    assert loaded.score(test, context=validation) == trained.test
    alone = loaded.score(test)
    assert 0.5 < alone.bits_per_byte / loaded.score(test, context=validation).bits_per_byte < 2
    assert loaded.score(test[:1]).nats_per_token == pytest.approx(first_nats(loaded, test[0]), abs=1e-4)


def first_nats(loaded: run.Run, character: str) -> float:
    """What a text that begins with that character costs, in nats."""
    start = torch.from_numpy(loaded.tokenizer.encode(loaded.opening)).long()[None]
    with torch.no_grad():
        logits, _ = loaded.model(start, None)
    return -float(logits[0, -1].log_softmax(-1)[loaded.tokenizer.encode(character)[0]])


def test_each_character_of_a_text_is_scored_once_and_after_all_before_it(recipe: Recipe, tmp_path: Path) -> None:
    train_run(varied(recipe, architecture="gru"), tmp_path / "run", device="cpu")
    loaded, text = load(tmp_path / "run", "cpu"), RHYME[:700]
    ids = torch.from_numpy(loaded.tokenizer.encode(loaded.opening + text)).long()[None]
    with torch.no_grad():
        logits, _ = loaded.model(ids[:, :-1], None)
    nats = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]).item()
    assert loaded.score(text).nats_per_token == pytest.approx(nats, abs=0.01)
    assert loaded.score(text).bits_per_byte == pytest.approx(nats / math.log(2), abs=0.01)


def test_what_cannot_be_scored_is_said_and_what_was_never_seen_costs_more(recipe: Recipe, tmp_path: Path) -> None:
    train_run(recipe, tmp_path / "run", device="cpu")
    loaded = load(tmp_path / "run", "cpu")
    with pytest.raises(ConfigError, match="an empty text has no score"):
        loaded.score("")
    with pytest.raises(ConfigError, match=r"half a character \(position 2\) cannot be scored"):
        loaded.score("ab\ud800")
    assert loaded.score("\u4e2d").nats_per_token > 0  # spelled in its bytes
    assert repr(loaded).startswith("<Run: ")
    assert len(repr(loaded)) < 300


def test_patience_says_which_rung_was_kept(recipe: Recipe, tmp_path: Path) -> None:
    trained: Trained = train_run(varied(recipe, patience=1, learning_rate=50.0), tmp_path / "run")
    assert trained.best.bits_per_byte == min(line["bits_per_byte"] for line in metrics(tmp_path / "run"))


# What comes after training costs neither weights nor scores.


def broken(*arguments: Any, **named: Any) -> Any:
    raise RuntimeError("broken\nin two lines")


@pytest.mark.parametrize(
    ("place", "missing"),
    [
        ("models.runs.report._draw", "loss.svg"),
        ("models.runs.report._samples", "samples.md"),
        ("models.runs.report._card", "README.md"),
        ("models.runs.report._result", "result.json"),
        ("models.training.loop.Training.test_score", None),
    ],
)
def test_whatever_fails_after_training_is_one_line_and_the_run_is_complete(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, missing: str | None
) -> None:
    monkeypatch.setattr(place, broken)
    with pytest.warns(UserWarning, match="broken") as caught:
        trained = train_run(recipe, tmp_path / "run")
    assert {str(warning.message).rpartition(": ")[2] for warning in caught} == {"broken"}
    assert sorted(content(tmp_path / "run")) == [name for name in FILES if name != missing]
    assert len(metrics(tmp_path / "run")) == len(trained.evaluations)
    assert load(tmp_path / "run").generate("a", 3, seed=1)
    assert (trained.test is None) == (missing is None)


def test_a_view_that_breaks_on_the_way_does_not_end_the_training(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "require_tensorboard", lambda: None)
    monkeypatch.setattr(run, "board", lambda folder: broken)
    with pytest.warns(UserWarning, match=r"rung [1-4] is not in TensorBoard: broken$"):
        train_run(recipe, tmp_path / "run", tensorboard=True)
    assert sorted(content(tmp_path / "run")) == FILES


def full(*arguments: Any, **named: Any) -> Any:
    raise OSError(28, "No space left on device")


def test_a_full_disk_on_the_way_costs_nothing_once_there_is_room_again(
    recipe: Recipe, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "append_metrics", full)
    monkeypatch.setattr(Training, "save", full)
    with pytest.warns(UserWarning, match=r"No space left on device"):
        train_run(recipe, tmp_path / "another", checkpoint_seconds=0.0)
    assert metrics(tmp_path / "another") == metrics(folder)
    assert (tmp_path / "another" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_model_that_cannot_be_written_is_one_line_and_its_checkpoint_stays(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run, "write_model", full)
        with pytest.raises(RunError, match=r"cannot be written \(No space left on device\).*go on with --resume$"):
            train_run(recipe, tmp_path / "run", checkpoint_seconds=0.0)
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    train_run(recipe, tmp_path / "run", resume=True, checkpoint_seconds=0.0)
    assert sorted(content(tmp_path / "run")) == FILES


def test_lines_of_metrics_that_are_damaged_are_dropped(recipe: Recipe, tmp_path: Path) -> None:
    stop_after(recipe, tmp_path / "run", 5)
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n[1]\n{"rung": "x"}\n' + b"[" * 100_000 + b'\n{"rung": 2')
    train_run(recipe, tmp_path / "run", resume=True)
    assert len(metrics(tmp_path / "run")) == 4


def test_files_get_the_mode_that_the_user_wants(recipe: Recipe, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        train_run(recipe, tmp_path / "run")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()} == {0o640}


def test_drafts_of_killed_writers_are_swept_and_those_of_living_ones_stay(recipe: Recipe, tmp_path: Path) -> None:
    stop_after(recipe, tmp_path / "run", 5)
    living = draft_of(tmp_path / "run" / "checkpoint.safetensors")
    process = subprocess.Popen(["true"])
    process.wait()
    dead = living.with_name(living.name.replace(f"-{os.getpid()}", f"-{process.pid}"))
    elsewhere = living.with_name(".checkpoint.safetensors.another_host-7")
    abandoned = living.with_name(".model.safetensors.another_host-8")
    for path in (living, dead, elsewhere, abandoned):
        path.write_bytes(b"half of it")
    os.utime(abandoned, (0, 0))
    train_run(recipe, tmp_path / "run", resume=True)
    assert sorted(content(tmp_path / "run")) == sorted([*FILES, living.name, elsewhere.name])


def test_a_notebooks_backend_that_is_not_installed_costs_nothing(recipe: Recipe, tmp_path: Path) -> None:
    """In a process of its own: matplotlib reads the variable when it is imported."""
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    command = [sys.executable, "-m", "models", "train", "recipe.json", "-o", "run", "--device", "cpu"]
    environment = os.environ | {"MPLBACKEND": "module://no_such_package.backend"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "Warning" not in done.stderr
    assert sorted(content(tmp_path / "run")) == FILES


# Files from elsewhere.


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**33)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def integers(path: Path) -> None:
    save_file({name: tensor.int() for name, tensor in load_file(path).items()}, path)


def not_finite(path: Path) -> None:
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)


def overlapping(path: Path) -> None:
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])
    first = next(iter(header.values()))["data_offsets"]
    text = json.dumps({name: one | {"data_offsets": first} for name, one in header.items()}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + path.read_bytes()[8 + size :])


def enormous(path: Path) -> None:
    path.write_text(
        path.read_text().replace("hidden_size: 8", "hidden_size: 65536").replace("layers: 1", "layers: 128")
    )


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("model.safetensors", lambda path: path.write_bytes((2**40).to_bytes(8, "little") + b"{}")),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-10])),
        ("model.safetensors", overlapping),
        ("model.safetensors", integers),
        ("model.safetensors", not_finite),
        ("model.safetensors", pipe),
        ("tokenizer.json", sparse),
        ("tokenizer.json", pipe),
        ("tokenizer.json", lambda path: path.write_text("[" * 1_000_000)),
        ("tokenizer.json", lambda path: path.write_text('{"kind": "byte-pair", "tokenizer": {"pre_tokenizer": {}}}')),
        ("config.yaml", sparse),
        ("config.yaml", pipe),
        ("config.yaml", enormous),
    ],
)
def test_a_run_folder_from_elsewhere_gets_its_line_and_takes_no_memory(
    folder: Path, name: str, spoil: Callable[[Path], Any]
) -> None:
    spoil(folder / name)
    with pytest.raises(RunError) as caught:
        load(folder, "cpu")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
