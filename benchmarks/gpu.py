"""What a GPU really does: agreement with the CPU, captured steps, memory, errors; one JSON line for each check.

`agree` compares each architecture and precision with float32 on the CPU: same weights, same text, loss and gradients of
one step. `truth` says in which format cuDNN's recurrences are under bfloat16 autocast. `captured` compares a training
with captured steps (models/training/cuda_graphs.py) with the same training without, in value and speed; `repeat` says
whether two trainings are the same to the bit. `memory` compares the estimate with what was allocated. `full` runs out
of memory on purpose, and trains after it. `lost` breaks a process on purpose and reads the error.

python benchmarks/gpu.py [--device cuda] [--tokens 400000] [--only captured]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from models.config import Budget, Config, Corpus
from models.device_checks import first_step
from models.nn.memory import training_bytes
from models.text.corpus import EncodedCorpus, load_corpus
from models.training import cuda_graphs
from models.training.loop import Training, train

SHAPES = {
    "rnn": Config(architecture="rnn", hidden_size=256, batch_size=32),
    "gru": Config(architecture="gru", hidden_size=256, batch_size=32),
    "lstm": Config(architecture="lstm", hidden_size=256, batch_size=32),
    "lstm dropout": Config(architecture="lstm", hidden_size=256, layers=2, dropout=0.2, batch_size=32),
    "transformer": Config(architecture="transformer", hidden_size=256, layers=4, batch_size=32),
    "transformer dropout": Config(architecture="transformer", hidden_size=128, layers=2, dropout=0.2, batch_size=32),
}
WIDE = {
    "lstm 1024": Config(architecture="lstm", hidden_size=1024, layers=2, batch_size=64, sequence_length=256),
    "gru 1024": Config(architecture="gru", hidden_size=1024, layers=2, batch_size=64, sequence_length=256),
    "transformer 512": Config(
        architecture="transformer", hidden_size=512, heads=8, layers=8, batch_size=64, sequence_length=256
    ),
}
BREAK = """
import json, torch
from models.training.failures import lost_device
index = torch.tensor([5], device="cuda")
errors = []
def assertion():
    torch.zeros(3, device="cuda")[index]
    torch.cuda.synchronize()
for attempt in (assertion, lambda: torch.ones(1, device="cuda")):
    try:
        attempt()
        errors.append("worked")
    except Exception as error:
        errors.append(f"{type(error).__name__}: {str(error).splitlines()[0]}; lost: {lost_device(error) is not None}")
print(json.dumps(errors))
"""


def machine(device: torch.device, corpus: EncodedCorpus, tokens: int) -> Iterator[dict[str, Any]]:
    facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"name": properties.name, "memory": properties.total_memory, "capability": properties.major}
    yield facts


def agree(device: torch.device, corpus: EncodedCorpus, tokens: int) -> Iterator[dict[str, Any]]:
    """Loss and gradients of a step against float32 on the CPU, relative."""
    for name, config in SHAPES.items():
        if config.dropout:
            continue
        loss, gradient = first_step(config.model_copy(update={"precision": "float32"}), corpus, torch.device("cpu"))
        for precision in ("float32", "auto", "bfloat16"):
            other, theirs = first_step(config.model_copy(update={"precision": precision}), corpus, device)
            error = ((theirs - gradient).norm() / gradient.norm()).item()
            yield {"shape": name, "precision": precision, "loss": abs(other / loss - 1), "gradient": error}


def truth(device: torch.device, corpus: EncodedCorpus, tokens: int) -> Iterator[dict[str, Any]]:
    """The format of cuDNN's recurrences under bfloat16 autocast."""
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        with torch.autocast(device.type, torch.bfloat16):
            outputs, _ = kind(64, 64).to(device)(torch.randn(8, 4, 64, device=device))
        yield {"recurrence": kind.__name__, "under bfloat16 autocast": str(outputs.dtype)}


def captured(device: torch.device, corpus: EncodedCorpus, tokens: int) -> Iterator[dict[str, Any]]:
    for name, config in SHAPES.items():
        row: dict[str, Any] = {"shape": name}
        for way, switch in (("eager", "0"), ("captured", "1"), ("captured again", "1")):
            os.environ[cuda_graphs.SWITCH] = switch
            try:
                run = train(config, corpus, Budget(tokens=tokens, rungs=4), device=str(device))
                row[way] = [each.bits_per_byte for each in run.evaluations]
                row[f"{way} tokens/s"] = round(run.tokens_per_second)
            except Exception as error:
                row[way] = f"{type(error).__name__}: {error}"
        yield row
    os.environ[cuda_graphs.SWITCH] = "0"


def repeat(device: torch.device, corpus: EncodedCorpus, tokens: int) -> Iterator[dict[str, Any]]:
    os.environ[cuda_graphs.SWITCH] = "0"
    for name, config in SHAPES.items():
        runs = [train(config, corpus, Budget(tokens=tokens // 4, rungs=2), device=str(device)) for _ in range(2)]
        values = [run.best.bits_per_byte for run in runs]
        yield {"shape": name, "the same to the bit": values[0] == values[1], "values": values}


def memory(device: torch.device, corpus: EncodedCorpus, tokens: int) -> Iterator[dict[str, Any]]:
    for name, config in (SHAPES | WIDE).items():
        estimate = training_bytes(config, corpus.tokenizer.vocabulary_size, device.type)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        training = Training(config, corpus, Budget(tokens=10**8, rungs=1), device)
        for _ in range(3):
            training.take_step()
        torch.cuda.synchronize()
        text = corpus.train.nbytes
        taken = torch.cuda.max_memory_allocated() - before
        yield {"shape": name, "estimate": estimate, "taken": taken, "text": text, "estimate / taken": estimate / taken}
        del training


def full(device: torch.device, corpus: EncodedCorpus, tokens: int) -> Iterator[dict[str, Any]]:
    huge = Config(architecture="lstm", hidden_size=2048, layers=4, batch_size=16384, sequence_length=512)
    before = torch.cuda.memory_reserved()
    try:
        Training(huge, corpus, Budget(tokens=10**9, rungs=1), device).take_step()
        said = "it fitted"
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    torch.cuda.empty_cache()
    after = torch.cuda.memory_reserved()
    run = train(SHAPES["lstm"], corpus, Budget(tokens=tokens // 8, rungs=1), device=str(device))
    yield {"said": said, "reserved before": before, "after": after, "then trained to": run.best.bits_per_byte}


def lost(device: torch.device, corpus: EncodedCorpus, tokens: int) -> Iterator[dict[str, Any]]:
    done = subprocess.run([sys.executable, "-c", BREAK], capture_output=True, text=True, timeout=120)
    yield {"after a broken assertion": done.stdout.strip() or done.stderr[-500:], "exit code": done.returncode}


CHECKS: list[Callable[[torch.device, EncodedCorpus, int], Iterator[dict[str, Any]]]]
CHECKS = [machine, truth, agree, lost, full, memory, repeat, captured]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--only", nargs="+", default=[check.__name__ for check in CHECKS])
    options = parser.parse_args()
    corpus = load_corpus(Corpus(builtin="python-docs"), "character", 2048)
    for check in CHECKS:
        if check.__name__ in options.only:
            start = time.perf_counter()
            try:
                for row in check(torch.device(options.device), corpus, options.tokens):
                    print(json.dumps({"check": check.__name__} | row), flush=True)
            except Exception as error:  # the others are still worth knowing
                print(json.dumps({"check": check.__name__, "failed": f"{type(error).__name__}: {error}"}), flush=True)
            print(json.dumps({"check": check.__name__, "seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
