"""Study files as people first write them: what is clear is taken as it is meant, the rest is told what to write."""

from pathlib import Path
from typing import Any

import pytest

from models.errors import ConfigError
from models.runs.run import read_recipe
from tuner.study.definition import parse_study

SECTIONS = {
    "corpus": "corpus: {builtin: markov}",
    "trial": "trial: {tokens: 1_000_000}",
    "budget": "budget: {trials: 4}",
    "parameters": "parameters: {learning_rate: {type: float, low: 1e-4, high: 1e-1, log: true}}",
}


def text_with(section: str) -> str:
    """A good study file but for one line, which takes the place of its section's."""
    return "\n".join({**SECTIONS, section.partition(":")[0]: section}.values())


def stored(section: str) -> dict[str, Any]:
    return parse_study(text_with(section), "s.yaml", "s").stored()


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("corpus: grimm.txt", "corpus: {path: grimm.txt}"),
        ("corpus: python-docs", "corpus: {builtin: python-docs}"),
        ("trial: 100_000", "trial: {tokens: 100000}"),
        ("trial: 1e6", "trial: {tokens: 1000000}"),
        ("trial: '1,000,000'", "trial: {tokens: 1000000}"),
        ("trial: 2M", "trial: {tokens: 2000000}"),
        ("trial: {tokens: 1e6, rungs: 4.0}", "trial: {tokens: 1000000, rungs: 4}"),
        ("budget: 4", "budget: {trials: 4}"),
        ("threads: '2'", "threads: 2"),
        ("sampler: TPE", "sampler: {type: tpe}"),
        ("sampler: {type: Random, seed: 1}", "sampler: {type: random, seed: 1}"),
        ("parameters: {architecture: LSTM}", "parameters: {architecture: lstm}"),
        ("parameters: {layers: '2'}", "parameters: {layers: 2}"),
        (
            "parameters: {tokenizer: byte_pair, optimizer: AdamW}",
            "parameters: {tokenizer: byte-pair, optimizer: adamw}",
        ),
        (
            "parameters: {architecture: [LSTM, gru]}",
            "parameters: {architecture: {type: categorical, choices: [lstm, gru]}}",
        ),
        ("parameters: {batch_size: [8, 16]}", "parameters: {batch_size: {type: categorical, choices: [8, 16]}}"),
        (
            "parameters: {embedding_size: [64, 128]}",
            "parameters: {embedding_size: {type: categorical, choices: [64, 128]}}",
        ),
        (
            "parameters: {learning_rate: [0.001, 0.01, 0.1]}",
            "parameters: {learning_rate: {type: categorical, choices: [0.001, 0.01, 0.1]}}",
        ),
        (
            "parameters: {hidden_size: {low: 64, high: 1e2}}",
            "parameters: {hidden_size: {type: int, low: 64, high: 100}}",
        ),
        (
            "parameters: {learning_rate: {type: Float, low: 1e-4, high: 1e-1, log: yes}}",
            "parameters: {learning_rate: {type: float, low: 0.0001, high: 0.1, log: true}}",
        ),
        (
            "parameters: {architecture: [lstm, gru], layers: {low: 1, high: 2, when: {architecture: GRU}}}",
            "parameters: {architecture: {type: categorical, choices: [lstm, gru]}, "
            "layers: {type: int, low: 1, high: 2, when: {architecture: gru}}}",
        ),
        (
            "points_to_evaluate: [{learning_rate: 1e-2}]",
            "points_to_evaluate: [{learning_rate: 0.01}]",
        ),
    ],
)
def test_what_is_clear_is_the_same_study_as_when_it_is_written_out(short: str, full: str) -> None:
    assert stored(short) == stored(full)


def test_a_recipe_may_be_short_as_well(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text(
        "corpus: rhyme.txt\ntrial: 1e5\nparameters: {architecture: GRU, layers: 2.0}\n"
    )
    recipe = read_recipe(tmp_path / "short.yaml")
    assert (recipe.corpus.path, recipe.trial.tokens) == (str(tmp_path / "rhyme.txt"), 100_000)
    assert (recipe.parameters.architecture, recipe.parameters.layers) == ("gru", 2)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("trial: 1.5", "trial: should be a mapping, not 1.5; for example {tokens: 2_000_000} or {seconds: 600}"),
        ("trial: {tokens: 1.5}", "trial.tokens: should be a whole number, not 1.5"),
        ("trial: {epochs: 3}", "trial.epochs: unknown key; write trial: {tokens: ...}, those of all epochs together"),
        ("budget: 2h", 'budget: should be a mapping, not "2h"; for example {trials: 100, hours: 2}'),
        ("budget: {n_trials: 4}", "budget.n_trials: unknown key; did you mean trials?"),
        ("n_trials: 4", "n_trials: unknown key; write budget: {trials: ...}"),
        ("epochs: 3", "epochs: unknown key; write trial: {tokens: ...}, those of all epochs together"),
        ("data: grimm.txt", "data: unknown key; write corpus"),
        ("params: {}", "params: unknown key; write parameters"),
        ("metric: loss", "metric: unknown key; write objective"),
        ("learning_rate: 0.1", "learning_rate: unknown key; it belongs under parameters"),
        ("lr: 0.1", "lr: unknown key; it belongs under parameters; did you mean learning_rate?"),
        ("limits: 5M", 'limits: should be a mapping, not "5M"; for example {parameters: 5M, memory: 8GiB}'),
        ("timeout: 10m", 'timeout: should be a number, not "10m"'),
        ("sampler: bayes", "sampler: unknown sampler 'bayes'; did you mean tpe?"),
        ("pruner: asha", "pruner: unknown pruner 'asha'; did you mean successive_halving?"),
        (
            "sampler: grid",
            "sampler: for learning_rate, a grid needs choices such as [0.0001, 0.000562, 0.00316, 0.0178, 0.1]: "
            "a range with log has no step",
        ),
        ("parameters: {lr: 0.1}", "parameters.lr: unknown parameter; did you mean learning_rate?"),
        ("parameters: {n_embd: 64}", "parameters.n_embd: unknown parameter; did you mean hidden_size?"),
        ("parameters: {block_size: 64}", "parameters.block_size: unknown parameter; did you mean sequence_length?"),
        (
            "parameters: {epochs: 3}",
            "parameters.epochs: unknown parameter; write trial: {tokens: ...}, those of all epochs together",
        ),
        (
            "parameters: {architecture: transformers}",
            "parameters.architecture: is none of rnn, lstm, gru, transformer, nor of the form package.module:Class; "
            "did you mean transformer?",
        ),
        (
            "parameters: {learning_rate: [0.001, 0.1]}",
            "parameters.learning_rate: could be two values or the ends of a range; write {type: categorical, choices: "
            "[0.001, 0.1]} or {type: float, low: 0.001, high: 0.1, log: true}",
        ),
        (
            "parameters: {dropout: [0, 0.5]}",
            "parameters.dropout: could be two values or the ends of a range; write {type: categorical, choices: "
            "[0, 0.5]} or {type: float, low: 0, high: 0.5}",
        ),
        (
            "parameters: {learning_rate: {type: loguniform, low: 0.001, high: 0.1}}",
            "parameters.learning_rate: unknown type 'loguniform'; "
            "write {type: float, low: 0.001, high: 0.1, log: true}",
        ),
        (
            "parameters: {learning_rate: {distribution: log_uniform_values, min: 0.001, max: 0.1}}",
            "parameters.learning_rate: unknown key distribution; write {type: float, low: 0.001, high: 0.1, log: true}",
        ),
        (
            "parameters: {hidden_size: {type: int, min: 64, max: 512, q: 64}}",
            "parameters.hidden_size: unknown key min; write {type: int, low: 64, high: 512, step: 64}",
        ),
        (
            "parameters: {batch_size: {type: choice, values: [8, 16]}}",
            "parameters.batch_size: unknown type 'choice'; write {type: categorical, choices: [8, 16]}",
        ),
        (
            "parameters: {layers: {type: itn, low: 1, high: 2}}",
            "parameters.layers.type: unknown type 'itn'; did you mean int?",
        ),
    ],
)
def test_the_error_says_what_to_write(written: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_study(text_with(written), "s.yaml", "s", rehearsed=True)
    assert said in [line.partition(": ")[2] for line in str(caught.value).splitlines()], caught.value
