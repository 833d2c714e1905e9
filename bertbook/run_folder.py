"""A run in a folder

Begins a pretraining run with fresh weights, keeps it in a folder, and opens
it again where it stopped, unless something was changed.

The page: https://bertbook.github.io/bertbook/book/run_folder.html
"""

# Tangled from book/run_folder.md (e1236bb2): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Progress",
    "Run",
    "begin",
    "describe_data",
    "keep_freed_memory",
    "new_objective",
    "open_run",
    "refuse_full",
    "return_freed_memory",
    "save_run",
    "settings_of",
    "sinusoidal_positions",
    "small_budget",
    "start_run",
]


# %% book/run_folder.md#a-model-to-begin-with 010f98f6
from dataclasses import replace

from bertbook.config import PRESETS, BertConfig


def small_budget(preset: str, vocab_size: int, **changes) -> BertConfig:
    """A preset without dropout, which a short run does not need.

    On a CPU short rows attend faster by the formula than by the kernel.
    """
    options = dict(
        vocab_size=vocab_size,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    return replace(PRESETS[preset], **(options | changes))


# %% book/run_folder.md#a-model-to-begin-with c5585e73
import math
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from bertbook.heads import BertForMaskedLM, BertForPreTraining
from bertbook.objectives import Objective, Pretraining
from bertbook.training_state import restore_tensors, state_tensors


@torch.no_grad()
def sinusoidal_positions(table: nn.Parameter, size: float = 0.1) -> None:
    """Let position embeddings begin as waves (Vaswani et al., 2017, 3.5).

    `size` is the root mean square of their values.
    """
    count, width = table.shape
    waves = torch.exp(torch.arange(0, width, 2) / width * -math.log(1e4))
    angles = torch.arange(count)[:, None] * waves
    both = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    table.copy_(both[:, :width] * size * math.sqrt(2))


# %% book/run_folder.md#a-model-to-begin-with 2d118bda
def new_objective(settings: Pretraining) -> Objective:
    """The model of `settings`, with weights drawn from its seed.

    Or with those in the folder `initial`. Raises ValueError where they are
    of another size, and what `from_pretrained` raises.
    """
    torch.manual_seed(settings.seed)
    kind = BertForMaskedLM
    if settings.objective != "mlm":
        kind = BertForPreTraining
    model = kind(settings.model)
    if settings.initial:
        trained = kind.from_pretrained(settings.initial)
        restore_tensors(state_tensors(trained, []), model, [])
    elif settings.positions == "sinusoidal":
        sinusoidal_positions(model.bert.embeddings.positions.weight)
    return Objective(model)


# %% book/run_folder.md#a-run-in-memory dbf3eacf
import time
from dataclasses import dataclass


@dataclass
class Progress:
    """How far a run is: what a saved state says beside its tensors."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    epoch: int = 0
    batch: int = 0  # the next one of this epoch
    examined: int = -1  # the step of the last evaluation
    best: float = math.inf  # the lowest held-out loss
    waited: int = 0  # evaluations since it was found
    records: int = 0  # in the log when the state was saved


# %% book/run_folder.md#a-run-in-memory fc90c668
from bertbook.optimization import make_optimizers
from bertbook.ranks import this_rank


@dataclass
class Run:
    """The parts of a run, and how far it is."""

    settings: Pretraining
    objective: Objective
    optimizers: list[torch.optim.Optimizer]
    progress: Progress
    device: torch.device
    began: float  # by the clock, less the seconds of earlier processes

    def start_clock(self) -> None:
        """From here on the seconds of the run count."""
        self.began = time.perf_counter() - self.progress.seconds

    def done(self) -> float:
        """The share of the run that is done; looks at the clock."""
        now, settings = self.progress, self.settings
        now.seconds = time.perf_counter() - self.began
        if settings.patience and now.waited >= settings.patience:
            return 1.0
        return settings.length.progress(now.step, now.tokens, now.seconds)


# %% book/run_folder.md#a-run-in-memory 4161e84b
def begin(settings, objective: nn.Module, device: str = "cpu") -> Run:
    """Fresh optimizers for `objective.model`, step 0."""
    objective.to(device)
    return Run(
        settings,
        objective,
        make_optimizers(objective.model, settings.optimization),
        Progress(),
        torch.device(device),
        time.perf_counter(),
    )


def start_run(settings: Pretraining, device: str = "cpu") -> Run:
    """A pretraining run with fresh weights, at step 0."""
    return begin(settings, new_objective(settings), device)


# %% book/run_folder.md#memory-that-stays 445e4e05
import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of settings, in malloc.h


def _of_glibc(name):
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return lambda *_: 0  # another library: it could not


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for new ones.

    Returns whether it could: only glibc has the settings, mallopt(3).
    """
    mallopt = _of_glibc("mallopt")
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))


def return_freed_memory() -> bool:
    """Give the memory of freed tensors back to the system.

    Returns whether anything went back: only glibc can, malloc_trim(3).
    """
    return bool(_of_glibc("malloc_trim")(0))


# %% book/run_folder.md#what-a-run-reads ec796d8b
import hashlib
import json

import numpy as np


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:8]


def _sample(rows) -> bytes:
    """Some rows of epoch 0, as bytes."""
    count = rows.count(0)
    some = np.linspace(0, count - 1, min(count, 32)).astype(np.int64)
    arrays = rows.rows(0, some)
    return b"".join(arrays[name].tobytes() for name in sorted(arrays))


def describe_data(rows, held_out, tokenizer) -> str:
    """Text, rows and vocabulary, in digests that can be compared."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    return (
        f"text {rows.files.digest} and {held_out.files.digest}, "
        f"rows {_digest(_sample(rows), _sample(held_out))}, "
        f"vocabulary {_digest(vocabulary)}"
    )


# %% book/run_folder.md#a-run-on-disk a40b58c1
import os

from bertbook.training_state import (
    cut_log,
    differences,
    load_state,
    save_state,
)


def save_run(run: Run, out: Path) -> None:
    """Write the state into `out`/checkpoints; the first process does."""
    if this_rank().number != 0:
        return
    run.progress.records = _log_on_disk(out / "log.jsonl")
    save_state(
        out / "checkpoints",
        run.progress.step,
        state_tensors(run.objective.model, run.optimizers),
        asdict(run.progress),
    )


def _log_on_disk(path):
    """Wait until the log is on the disk, and count its records."""
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return file.read().count(b"\n")


# %% book/run_folder.md#a-run-on-disk 8a0c855d
def settings_of(settings: Pretraining) -> dict:
    """The settings as JSON holds them."""
    return json.loads(json.dumps(asdict(settings)))


# %% book/run_folder.md#opening-it 2c7a0a7d
from bertbook.reproducibility import write_atomically

_MADE = (
    "checkpoints",
    "log.jsonl",
    "held_out.json",
    "config.json",
    "model.safetensors",
    "bertbook.safetensors",
)


def _make_folder(out):
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{out} cannot be made a folder ({error.strerror}); give "
            "another with --out"
        ) from None


def refuse_full(out):
    """Refuse a folder with something that a new run would overwrite."""
    for name in _MADE:
        if (out / name).exists():
            raise FileExistsError(
                f"{out} holds a run or a model ({name}); continue the run "
                "with --resume, or give another folder with --out"
            )


# %% book/run_folder.md#opening-it 8e396b99
def _check_settings(out, settings):
    path = out / "run.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{out} holds no run (no run.json); leave out --resume"
        )
    try:
        before = json.loads(path.read_bytes())
        found = differences(before, settings_of(settings))
    except (AttributeError, RecursionError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); put a copy in its place, or "
            "begin in another folder"
        ) from None
    if found:
        raise ValueError(
            f"{out} holds a run with other settings: {'; '.join(found)}; "
            "give the same, or begin in another folder"
        )


# %% book/run_folder.md#opening-it 29e65a2e
def _restore(run, out):
    """Put the newest whole state into `run`, if there is one."""
    saved = load_state(out / "checkpoints")
    if saved is None:
        return
    tensors, facts = saved
    try:
        progress = Progress(**facts)
    except TypeError:
        raise ValueError(
            f"the states in {out} are of another version of bertbook; "
            "continue with that version, or begin in another folder"
        ) from None
    restore_tensors(tensors, run.objective.model, run.optimizers)
    run.progress = progress
    run.start_clock()


# %% book/run_folder.md#opening-it 9fa02b26
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from bertbook.training_state import naming_what_is_left, only_process


@contextmanager
def open_run(
    run: Run, out: str | Path, resume: bool = False
) -> Iterator[Run]:
    """Keep `run`, at step 0, in the folder `out` for a block.

    With `resume` it first becomes what it was there. From here on the
    process keeps freed memory; what is free at the end it returns. Raises
    FileExistsError where a run is in the way, ValueError where `resume`
    finds other settings, naming the fields, or no whole state,
    FileNotFoundError where it finds no run, and BlockingIOError where
    another process is at it. What the disk refuses in the block becomes an
    OSError that says what is left.
    """
    out, first = Path(out), this_rank().number == 0
    if resume:
        _check_settings(out, run.settings)
    elif first:
        _make_folder(out)
    with (
        only_process(out) if first else nullcontext(),
        naming_what_is_left(out / "checkpoints"),
    ):
        if first and not resume:
            refuse_full(out)
        keep_freed_memory()
        try:
            if resume:
                _restore(run, out)
            if first:
                _tidy(run, out)
            yield run
        finally:
            return_freed_memory()


# %% book/run_folder.md#opening-it 3fc96b14
def _tidy(run, out):
    """Leave in `out` what belongs to the run as it stands."""
    for name in ("run.json", "log.jsonl"):
        for torn in out.glob(f"{name}.????????"):
            torn.unlink()  # of a process that was killed while it wrote
    if run.progress.step == 0:
        text = json.dumps(settings_of(run.settings), indent=2) + "\n"
        write_atomically(out / "run.json", text)
    cut_log(out / "log.jsonl", run.progress.records)
