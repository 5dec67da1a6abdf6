"""Checks of the device that trainings will run on: what works here, what does not, and what to do about it.

Each check runs in a process of its own, so that one that crashes or hangs is only that check's result. It needs torch
and no database: `python -P -m models.device_checks cuda:0` also runs where only the folder `models/` was copied.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from models import config as configs
from models.config import Budget, Config
from models.nn.network import build
from models.nn.precision import autocast, set_precision
from models.text.corpus import EncodedCorpus, load_corpus
from models.training.cuda_graphs import SWITCH
from models.training.failures import lost_device, ran_out_of_memory
from models.training.loop import Trained, Training, train, usable_device

MOST_SECONDS = 180
"""What one check may take; a GPU's first call, and compiling kernels, may take half a minute."""

PRECISIONS = ("float32", "auto", "bfloat16")

TOLERANCES = {"float32": 1e-4, "auto": 0.03, "bfloat16": 0.03}
"""Relative error of all gradients of one step. Measured on an H200: 3e-6, 5e-3 and 5e-3 at most."""

DONE = "done"

SHORT = Budget(tokens=8 * 32 * 16, rungs=1)
"""The short training of several checks: 16 steps."""


@dataclass(frozen=True)
class Check:
    """The result of one check, in one line; `remedy` says what to do when it is not ok."""

    name: str
    result: Literal["ok", "warning", "failed"]
    text: str
    remedy: str = ""


def check_device(device: str, seconds: float = MOST_SECONDS) -> Iterator[Check]:
    """Yields the results for a device, `auto`, `cpu`, `cuda` or `cuda:0`; only the first if torch cannot use it."""
    for name in CHECKS:
        results = list(_apart(name, device, seconds))
        yield from results
        if name == "device" and any(each.result == "failed" for each in results):
            return


def _apart(name: str, device: str, seconds: float) -> Iterator[Check]:
    """The results of one check, from a process of its own."""
    try:
        command = _command(name, device)
        child = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        yield Check(name, "failed", f"did not finish in {seconds:g} s", "look at what else uses the device")
        return
    for line in child.stdout.splitlines():
        if line.startswith('{"name"'):
            yield Check(**json.loads(line))
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["it said nothing"])[-1]
        how = signal.Signals(-child.returncode).name if child.returncode < 0 else f"exit code {child.returncode}"
        yield Check(name, "failed", f"ended Python with {how}: {last}", "check the driver and the torch build")


def _command(*arguments: str) -> list[str]:
    """A Python that finds this package where this one does; -P: not in the folder the user stands in."""
    program = f"import sys; sys.path[:] = {sys.path!r}; from models.device_checks import answer; answer(*sys.argv[1:])"
    return [sys.executable, "-P", "-c", program, *arguments]


def _environment() -> dict[str, str]:
    """Threads that wait sleep, as a worker's do: where others use the cores, those that spin delay them."""
    return {"OMP_WAIT_POLICY": "passive"} | os.environ


def answer(name: str, *arguments: str) -> None:
    """Prints the results of one check as lines of JSON; the process ends without the device's own farewells."""
    try:
        if name in PARTS:
            PARTS[name](*arguments)
        else:
            for each in CHECKS[name](usable_device(arguments[0])):
                print(json.dumps(asdict(each)), flush=True)
    except Exception as error:
        print(json.dumps(asdict(Check(name, "failed", _said(error), "report it"))), flush=True)
    sys.stdout.flush()
    os._exit(0)  # a device that is lost would end the process with an abort


def _device(device: torch.device) -> Iterator[Check]:
    """What torch and the driver are, and whether the device can be used at all."""
    build = f"torch {torch.__version__}, Python {sys.version.split()[0]}"
    if device.type == "cpu":
        yield Check("device", "ok", f"{build}, CPU with {torch.get_num_threads()} threads")
        if Path("/dev/nvidiactl").exists() and not torch.cuda.is_available():
            remedy = "install a torch build for CUDA, and a driver that is new enough for it"
            yield Check("device", "warning", "there is a GPU that this torch cannot use", remedy)
        return
    torch.ones(1, device=device).item()
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    facts = f"{build}, CUDA {torch.version.cuda}, cuDNN {cudnn}, driver {_driver()}"
    card = f"{properties.name}, compute capability {properties.major}.{properties.minor}"
    yield Check("device", "ok", f"{facts}; {card}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    if free < total / 10:
        yield Check("device", "warning", "little memory of the GPU is free", "end what else uses it (nvidia-smi)")
    with torch.cuda.device(device):
        emulated = not torch.cuda.is_bf16_supported(including_emulation=False)
    if emulated:
        text = "the GPU has no instructions for bfloat16: `precision: auto` means float32 here"
        yield Check("device", "warning", text, "do not ask for `precision: bfloat16`, which would be emulated")
    yield _named(device)


def _driver() -> str:
    try:
        version = Path("/proc/driver/nvidia/version").read_text().split("Module")[1].split()
        return next(word for word in version if word[0].isdigit())
    except (OSError, IndexError, StopIteration):
        return "unknown"


def _named(device: torch.device) -> Check:
    """Whether a worker that is given this device alone, by its number, UUID or MIG name, finds it."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    index = device.index or 0
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    names = [visible[index]] if visible else [str(index), uuid]
    if names[0].startswith("MIG-"):
        names = names[:1]
    for name in names:
        program = "import torch; torch.ones(1, device='cuda:0').item(); print(torch.cuda.device_count())"
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": name}
        child = subprocess.run([sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True)
        if child.stdout.strip() != "1":
            remedy = "name devices in CUDA_VISIBLE_DEVICES as `nvidia-smi -L` does"
            return Check("device", "warning", f"a worker given {name} alone does not find one device", remedy)
    return Check("device", "ok", f"a worker finds it as {' and as '.join(names)}")


def _arithmetic(device: torch.device) -> Iterator[Check]:
    """Each architecture, forward and backward, in each precision, against float32 on the CPU."""
    for architecture in configs.ARCHITECTURES:
        errors = {}
        reference = _gradients(_config(architecture, precision="float32"), torch.device("cpu"))
        for precision in PRECISIONS:
            gradients = _gradients(_config(architecture, precision=precision), device)
            errors[precision] = ((gradients - reference).norm() / reference.norm()).item()
        wrong = [name for name, error in errors.items() if not error <= TOLERANCES[name]]
        text = ", ".join(f"{name} {error:.1g}" for name, error in errors.items())
        text = f"{architecture}: gradients differ from the CPU's in float32 by {text}"
        remedy = (
            f"set `precision: {next((name for name in PRECISIONS if name not in wrong), 'float32')}`, and report it"
        )
        yield Check("arithmetic", "failed" if wrong else "ok", text, remedy if wrong else "")


def _recurrences(device: torch.device) -> Iterator[Check]:
    """Whether recurrences are in the precision that is claimed when bfloat16 is asked for; cuDNN takes float16."""
    for architecture in ("rnn", "gru", "lstm"):
        used: set[torch.dtype] = set()

        def note(tensor: Tensor, used: set[torch.dtype] = used) -> Tensor:
            used.add(tensor.dtype)
            return tensor

        config = _config(architecture, precision="bfloat16")
        with saved_tensors_hooks(note, lambda tensor: tensor):
            _gradients(config, device)
        _, claimed = set_precision(build(config, 8).to(device), config, device)
        if torch.float16 in used:
            text, remedy = f"{architecture}: computes in float16, but {claimed} is claimed", "set `precision: float32`"
            yield Check("recurrences", "failed", text, remedy)
        else:
            yield Check("recurrences", "ok", f"{architecture}: {claimed}, nothing in float16")


def _repetition(device: torch.device) -> Iterator[Check]:
    """Whether the same training comes to the same value."""
    for architecture in ("lstm", "transformer"):
        values = [_train(_config(architecture, dropout=0.1), device).best.bits_per_byte for _ in range(2)]
        same = values[0] == values[1]
        text = f"{architecture}: trained twice to {'the same value, to the last bit' if same else values}"
        remedy = "" if same else "expect `tuner train` to come near the search's value, not to the last digit"
        yield Check("repetition", "ok" if same else "warning", text, remedy)


def _captured(device: torch.device) -> Iterator[Check]:
    """Steps captured as CUDA graphs against steps that are not: the same values, and faster."""
    if device.type != "cuda":
        return
    for architecture in configs.ARCHITECTURES:
        config = _config(architecture, layers=2, dropout=0.1)
        with _switched("0"):
            plain = _train(config, device)
        with _switched("1"), _warnings("models.training.cuda_graphs") as said:
            graph = _train(config, device)
        values = plain.best.bits_per_byte, graph.best.bits_per_byte
        times = graph.tokens_per_second / plain.tokens_per_second
        if said:
            yield Check("captured steps", "warning", f"{architecture}: {said[0]}", "nothing: training is only slower")
        elif values[0] != values[1]:
            text = f"{architecture}: captured steps train to {values[1]}, others to {values[0]}"
            yield Check("captured steps", "failed", text, f"set {SWITCH}=0, and report it")
        else:
            yield Check("captured steps", "ok", f"{architecture}: the same value, {times:.1f} times the tokens/s")


def _memory(device: torch.device) -> Iterator[Check]:
    """Whether running out of memory is recognised, gives the memory back, and lets the process train on."""
    _train(_config("lstm"), device)  # cuBLAS takes its workspaces once, and keeps them
    before = _reserved(device)
    try:
        _run_out_of_memory(device)
        yield Check("memory", "failed", "an allocation larger than the memory was granted", "limit the memory (cgroup)")
        return
    except Exception as error:
        recognised, said = ran_out_of_memory(error), _said(error)
    if not recognised:
        yield Check("memory", "failed", f"running out of memory is not recognised: {said}", "report it")
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    kept = _reserved(device) - before
    _train(_config("lstm"), device)
    if kept > 2**26:
        text = f"{kept / 2**20:.0f} MiB stay taken after running out of memory"
        yield Check("memory", "warning", text, "start fewer workers on a device")
    elif recognised:
        yield Check("memory", "ok", "running out of memory is recognised, and the process trains on")


def _run_out_of_memory(device: torch.device) -> None:
    """Trains, and then asks for more than there is: the request fails at once and takes nothing from others."""
    training = Training(_config("lstm"), _corpus(), SHORT, device)
    training.take_step()
    asked = 4 * torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 2**60
    torch.empty(asked, dtype=torch.uint8, device=device)


def _reserved(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def _lost(device: torch.device) -> Iterator[Check]:
    """Whether an error that makes the GPU unusable for its process is recognised: it must end it, not ten trials."""
    if device.type != "cuda":
        return
    try:
        torch.zeros(3, device=device)[torch.tensor([5], device=device)]
        torch.cuda.synchronize(device)
        yield Check("lost device", "failed", "an index out of range went unnoticed", "report it")
    except Exception as error:
        if lost_device(error) is None:
            yield Check("lost device", "failed", f"is not recognised: {_said(error)}", "report it")
        else:
            yield Check("lost device", "ok", "an error that makes the device unusable is recognised; its process ends")


def _workers(device: torch.device) -> Iterator[Check]:
    """Two processes that train at the same time on the device."""
    start = time.perf_counter()
    children = [_started("train", str(device)) for _ in range(2)]
    failed = [text for text in map(_failure, children) if text is not None]
    if failed:
        remedy = "set the GPU's compute mode to default (nvidia-smi -c 0), or start one worker per device"
        yield Check("two workers", "failed", failed[0], remedy)
    else:
        yield Check("two workers", "ok", f"two processes trained at once, in {time.perf_counter() - start:.1f} s")


def _collective(device: torch.device) -> Iterator[Check]:
    """Two processes that add up a tensor, as torchrun's do: with NCCL where there are two GPUs, else with Gloo."""
    backend = "nccl" if device.type == "cuda" and torch.cuda.device_count() > 1 else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        children = [_started("join", str(rank), f"{folder}/store", backend) for rank in range(2)]
        failed = [text for text in map(_failure, children) if text is not None]
    if failed:
        remedy = "searches do not need it; for torchrun, check network interfaces and shared memory"
        yield Check("several processes", "warning", f"{backend}: {failed[0]}", remedy)
    else:
        few = "; NCCL was not tried: there is one GPU" if device.type == "cuda" and backend == "gloo" else ""
        yield Check("several processes", "ok", f"{backend}: two processes added up a tensor{few}")


def _join(rank: str, store: str, backend: str) -> None:
    limit = timedelta(seconds=60)
    distributed.init_process_group(backend, init_method=f"file://{store}", rank=int(rank), world_size=2, timeout=limit)
    total = torch.tensor([float(rank) + 1], device=f"cuda:{rank}" if backend == "nccl" else "cpu")
    distributed.all_reduce(total)
    if total.item() != 3:
        raise ValueError(f"1 + 2 came to {total.item()}")
    distributed.barrier()  # the first to leave would take the connection along
    print(DONE, flush=True)


def _train_alone(device: str) -> None:
    _train(_config("lstm"), usable_device(device))
    print(DONE, flush=True)


CHECKS: dict[str, Callable[[torch.device], Iterator[Check]]] = {
    "device": _device,
    "arithmetic": _arithmetic,
    "recurrences": _recurrences,
    "repetition": _repetition,
    "captured steps": _captured,
    "memory": _memory,
    "lost device": _lost,
    "two workers": _workers,
    "several processes": _collective,
}

PARTS: dict[str, Callable[..., None]] = {"train": _train_alone, "join": _join}
"""What one of several processes of a check does."""


def _config(architecture: str, **more: Any) -> Config:
    values: dict[str, Any] = {"hidden_size": 64, "heads": 4, "batch_size": 8, "sequence_length": 32}
    return Config(architecture=architecture, **values | more)


@cache
def _corpus() -> EncodedCorpus:
    """A text of which little is held out: values are compared with each other alone."""
    whole = load_corpus(configs.Corpus(builtin="markov"), "character", 400)
    return replace(whole, validation=whole.validation[:2048])


def _train(config: Config, device: torch.device) -> Trained:
    return train(config, _corpus(), SHORT, device=str(device))


def _gradients(config: Config, device: torch.device) -> Tensor:
    return first_step(config, _corpus(), device)[1]


def first_step(config: Config, corpus: EncodedCorpus, device: torch.device) -> tuple[float, Tensor]:
    """Returns the loss of one step, from the same weights on the same text, and all its gradients as one CPU vector."""
    torch.manual_seed(0)
    model = build(config, corpus.tokenizer.vocabulary_size).to(device)
    half, _ = set_precision(model, config, device)
    rows, length = config.batch_size, config.sequence_length + 1
    text = torch.from_numpy(corpus.train[: rows * length].astype("int64")).view(rows, length).to(device)
    with autocast(device, half):
        logits, _ = model(text[:, :-1], None)
        loss = functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
    torch.autograd.backward(loss)
    gradients = [each.grad.flatten().float().cpu() for each in model.parameters() if each.grad is not None]
    return loss.item(), torch.cat(gradients)


def _started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        _command(*arguments), env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _failure(child: subprocess.Popen[str]) -> str | None:
    """Waits for a process of a check; returns what it said if it did not come to its end."""
    try:
        printed, _ = child.communicate(timeout=MOST_SECONDS / 2)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return f"a process did not finish in {MOST_SECONDS / 2:g} s"
    lines = printed.strip().splitlines() or [f"a process ended with exit code {child.returncode}"]
    if DONE in lines:
        return None
    return str(json.loads(lines[-1])["text"]) if lines[-1].startswith('{"name"') else lines[-1]


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@contextmanager
def _switched(value: str) -> Iterator[None]:
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = value
    try:
        yield
    finally:
        os.environ.pop(SWITCH)
        if before is not None:
            os.environ[SWITCH] = before


@contextmanager
def _warnings(name: str) -> Iterator[list[str]]:
    """What a logger says while the block runs."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Handler(logging.WARNING)
    logging.getLogger(name).addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger(name).removeHandler(handler)


def line(check: Check) -> str:
    """Returns a result as people read it; the remedy is on a line of its own."""
    remedy = f"\n{'':29}{check.remedy}" if check.remedy else ""
    return f"{check.result:8} {check.name:19} {check.text}{remedy}"


def main() -> None:
    """Checks the device that is named on the command line."""
    results = []
    for each in check_device(sys.argv[1] if len(sys.argv) > 1 else "auto"):
        results.append(each)
        print(line(each), flush=True)
    sys.exit(any(each.result == "failed" for each in results))


if __name__ == "__main__":
    main()
