"""A run in a folder

Begins a pretraining run with fresh weights, keeps it in a folder, and opens
it again where it stopped, unless something was changed.

The page: https://bertbook.github.io/bertbook/book/run_folder.html
"""

# Tangled from book/run_folder.md (5d3333b5): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "Progress",
    "Run",
    "new_objective",
    "open_run",
    "save_run",
    "settings_of",
    "sinusoidal_positions",
    "small_budget",
    "start_run",
]


# %% book/run_folder.md#a-model-to-begin-with 007cb5d3
import math
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from bertbook.heads import BertForMaskedLM, BertForPreTraining
from bertbook.objectives import Objective, Pretraining


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


def new_objective(settings: Pretraining) -> Objective:
    """The model of `settings` with fresh weights, drawn from its seed."""
    torch.manual_seed(settings.seed)
    kind = BertForMaskedLM
    if settings.objective != "mlm":
        kind = BertForPreTraining
    model = kind(settings.model)
    if settings.positions == "sinusoidal":
        sinusoidal_positions(model.bert.embeddings.positions.weight)
    return Objective(model)


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


# %% book/run_folder.md#a-run-in-memory 0f29c639
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


# %% book/run_folder.md#a-run-in-memory 41fb7cc2
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

    def done(self) -> float:
        """The share of the run that is done; looks at the clock."""
        now, settings = self.progress, self.settings
        now.seconds = time.perf_counter() - self.began
        if settings.patience and now.waited >= settings.patience:
            return 1.0
        return settings.length.progress(now.step, now.tokens, now.seconds)


# %% book/run_folder.md#a-run-in-memory 1610da02
def start_run(settings: Pretraining, device: str = "cpu") -> Run:
    """Fresh weights, fresh optimizers, step 0."""
    objective = new_objective(settings).to(device)
    return Run(
        settings,
        objective,
        make_optimizers(objective.model, settings.optimization),
        Progress(),
        torch.device(device),
        time.perf_counter(),
    )


# %% book/run_folder.md#a-run-on-disk 9650879a
import json

from bertbook.reproducibility import write_atomically
from bertbook.training_state import (
    cut_log,
    differences,
    load_state,
    restore_tensors,
    save_state,
    state_tensors,
)


def save_run(run: Run, out: Path) -> None:
    """Write the state into `out`/checkpoints; the first process does."""
    if this_rank().number == 0:
        save_state(
            out / "checkpoints",
            run.progress.step,
            state_tensors(run.objective.model, run.optimizers),
            asdict(run.progress),
        )


def settings_of(settings: Pretraining) -> dict:
    """The settings as JSON holds them."""
    return json.loads(json.dumps(asdict(settings)))


# %% book/run_folder.md#a-run-on-disk 4f336d29
def open_run(
    settings: Pretraining, out: Path, resume: bool, device: str = "cpu"
) -> Run:
    """A new run in the folder `out`, or the one that is there.

    Raises FileExistsError where a run is in the way, ValueError where
    `resume` finds other settings, naming the fields, and FileNotFoundError
    where it finds no run.
    """
    path = out / "run.json"
    run = start_run(settings, device)
    if resume:
        _check_settings(path, settings)
        saved = load_state(out / "checkpoints")
        if saved:
            restore_tensors(saved[0], run.objective.model, run.optimizers)
            run.progress = Progress(**saved[1])
            run.began -= run.progress.seconds
    elif path.exists():
        raise FileExistsError(
            f"{out} holds a run; continue it with --resume, or give "
            "another folder with --out"
        )
    if this_rank().number == 0:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(settings_of(settings), indent=2))
        kept = run.progress.step if run.progress.examined >= 0 else -1
        cut_log(out / "log.jsonl", kept)
    return run


# %% book/run_folder.md#a-run-on-disk 7d48be9e
def _check_settings(path, settings):
    if not path.exists():
        raise FileNotFoundError(
            f"{path.parent} holds no run (no run.json); leave out --resume"
        )
    before, now = json.loads(path.read_bytes()), settings_of(settings)
    if found := differences(before, now):
        raise ValueError(
            f"{path.parent} holds a run with other settings: "
            f"{'; '.join(found)}; give the same, or begin in another folder"
        )
