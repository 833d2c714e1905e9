"""Fine-tuning

Trains a pretrained model on a task, from its folder to a folder that
from_pretrained loads: a new head, batches of like length, the loop of
pretraining, and the best model kept.

The page: https://bertbook.github.io/bertbook/book/finetuning.html
"""

# Tangled from book/finetuning.md (ab1e275c): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Finetuning",
    "TaskObjective",
    "bucketed",
    "finetune",
    "finetuned",
    "finetuning_step",
    "new_model",
    "start_finetuning",
]


# %% book/finetuning.md#batches-of-like-length 3f6e4002
from collections.abc import Sequence

import numpy as np


def bucketed(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """The rows of each batch of an epoch, of like length.

    A function of `seed` and `epoch` alone, so that a run can go on
    anywhere. One batch, not always the last, may have fewer rows.
    """
    draw = np.random.default_rng([seed, epoch])
    size, batches = np.asarray(lengths), []
    order, pool = draw.permutation(len(size)), 50 * batch_size
    for start in range(0, len(order), pool):
        some = order[start : start + pool]
        some = some[np.argsort(size[some], kind="stable")]
        cuts = range(batch_size, len(some), batch_size)
        batches += np.split(some, cuts)
    return [batches[number] for number in draw.permutation(len(batches))]


# %% book/finetuning.md#the-settings-of-a-run 5fb3ec4a
import math
from dataclasses import dataclass, field, replace

from bertbook.objectives import fast_dtype
from bertbook.optimization import Length, Optimization, check_fields


def _whole(least):
    number = f"a whole number, {least} or more"
    return lambda v: type(v) is int and v >= least, number


def _or_none(check):
    fits, words = check
    return lambda v: v is None or fits(v), f"{words}, or None"


# %% book/finetuning.md#the-settings-of-a-run c210036c
_TYPES = "bfloat16", "float32"
_WANTED = {
    "initial": (lambda v: type(v) is str and v, "a folder or a name"),
    "epochs": (lambda v: 0 < v < math.inf, "a number above 0, such as 3"),
    "batch_size": _whole(1),
    "max_length": _whole(3),
    "dropout": _or_none((lambda v: 0 <= v < 1, "a share such as 0.1")),
    "reinitialised": _whole(0),
    "fresh": (lambda v: type(v) is bool, "True or False"),
    "dtype": (lambda v: v in _TYPES, "bfloat16 or float32"),
    "evaluate_every": _or_none(_whole(1)),
    "patience": _or_none(_whole(1)),
    "seed": _whole(0),
}


def _usual():
    return Optimization("adamw", 1e-4, 2e-3, betas=(0.9, 0.999), warmup=0.1)


# %% book/finetuning.md#the-settings-of-a-run 1d2e13ca
@dataclass(frozen=True)
class Finetuning:
    """Everything that decides what a fine-tuning computes.

    `task` is a key of `labelled_data.COLUMNS`. Raises ValueError for a
    field that does not fit.
    """

    task: str  # "classify", "pairs", "tag" or "answer"
    initial: str  # folder or name of a pretrained model
    length: Length | None = None  # None: `epochs`
    epochs: float = 3
    batch_size: int = 32
    max_length: int = 128  # pieces
    optimization: Optimization = field(default_factory=_usual)
    dropout: float | None = None  # None: as in `initial`
    reinitialised: int = 0  # top layers that are drawn anew
    fresh: bool = False  # draw everything anew: a control
    dtype: str = field(default_factory=fast_dtype)  # of matrix products
    evaluate_every: int | None = None  # steps; None: once an epoch
    patience: int | None = None  # evaluations without progress
    seed: int = 0
    data: str = ""  # digest of texts and task; filled in by `finetune`

    def __post_init__(self):
        check_fields(self, _WANTED)


# %% book/finetuning.md#the-model-to-begin-with f6b14f81
import logging

import torch
from torch import nn

from bertbook.checkpoints import draw


def _load(settings, task):
    """The model of `initial` with a head; warns of a missing encoder.

    In float32, whatever the file holds: smaller types round updates away.
    """
    changes = dict(task.config, dtype=torch.float32)
    logger = logging.getLogger(__name__)
    if settings.dropout is not None:
        names = "hidden_dropout_prob", "attention_probs_dropout_prob"
        changes |= dict.fromkeys(names, settings.dropout)
    usual = logging.getLogger("bertbook.checkpoints")
    usual.disabled, before = True, usual.disabled
    try:
        model = task.head.from_pretrained(settings.initial, **changes)
    finally:
        usual.disabled = before
    encoder = "bert.embeddings.", "bert.encoder."
    if any(n.startswith(encoder) for n in model.loading_report.missing):
        logger.warning(model.loading_report)
    return model


# %% book/finetuning.md#the-model-to-begin-with f7d7fa34
def new_model(settings: Finetuning, task) -> nn.Module:
    """The model of `initial` with a new head for `task`.

    What is drawn depends on the seed. Raises ValueError where there are
    fewer layers than `reinitialised` or fewer positions than `max_length`,
    and what `from_pretrained` raises.
    """
    torch.manual_seed(settings.seed)
    model = _load(settings, task)
    most = model.config.max_position_embeddings
    if settings.max_length > most:
        raise ValueError(
            f"max_length={settings.max_length}, and the model has {most} "
            f"positions; give at most {most}"
        )
    layers, count = model.bert.encoder.layers, settings.reinitialised
    if count > len(layers):
        raise ValueError(
            f"reinitialised={count}, and the model has {len(layers)} "
            f"layers; give at most {len(layers)}"
        )
    if settings.fresh:
        model.initialise()
    parts = [
        each for name, each in model.named_children() if name != "bert"
    ]
    parts += layers[len(layers) - count :]
    if count and model.bert.pooler:
        parts.append(model.bert.pooler)
    for module in (each for part in parts for each in part.modules()):
        for name, _ in module.named_parameters(recurse=False):
            draw(module, name, model.config.initializer_range)
    return model


# %% book/finetuning.md#a-run 72ddcccf
from functools import partial

from torch import Tensor

from bertbook.run_folder import Run, begin, open_run


class TaskObjective(nn.Module):
    """A model with the loss of its task."""

    def __init__(self, model: nn.Module, task):
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The mean loss of a batch."""
        return self.task.loss(self.model, batch)


# %% book/finetuning.md#a-run c35ba1a2
def start_finetuning(
    settings: Finetuning, task, device: str = "cpu"
) -> Run:
    """The model to begin with, fresh optimizers, step 0."""
    objective = TaskObjective(new_model(settings, task), task)
    return begin(settings, objective, device)


# %% book/finetuning.md#a-run b3ec8641
import hashlib
import json
import os

from bertbook.classification import collate
from bertbook.objectives import Place
from bertbook.ranks import this_rank
from bertbook.run_loop import cast_of, keep_best, update


def _filled_in(settings, task, tokenizer, learned, held_out):
    """The settings with a length in steps, and what the run reads."""
    rows = held_out.rows
    told = [
        learned,
        {name: rows[name][:] for name in rows.column_names},
        sorted(tokenizer.get_vocab().items()),
        repr(task),
    ]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    epoch = math.ceil(len(learned) / settings.batch_size)
    steps = math.ceil(round(settings.epochs * epoch, 6))
    return replace(
        settings,
        length=settings.length or Length(steps=steps),
        evaluate_every=settings.evaluate_every or epoch,
        data=digest,
    )


# %% book/finetuning.md#a-run 94baa408
def _refuse_ranks():
    began = int(os.environ.get("WORLD_SIZE", this_rank().size))
    if began > 1:
        raise ValueError(
            f"fine-tuning runs in one process, and torchrun began {began}; "
            "start it by python -m"
        )


def _batches_left(run, lengths):
    """Places and batches of rows, from where the run stopped on."""
    settings, now = run.settings, run.progress
    epoch, start = now.epoch, now.batch
    while True:
        rows = settings.batch_size, settings.seed, epoch
        batches = bucketed(lengths, *rows)
        for number in range(start, len(batches)):
            yield Place(epoch, number + 1), batches[number]
        epoch, start = epoch + 1, 0


# %% book/finetuning.md#a-run 901e66d5
def finetuning_step(
    run: Run, features: Sequence[dict], pad_id: int, done: float
) -> dict:
    """One step by a batch of features; returns what the log says."""
    batch = collate(features, pad_id)
    batch = {name: each.to(run.device) for name, each in batch.items()}

    def backward():
        run.objective.train()
        with cast_of(run.settings, run.device)():
            loss = run.objective(batch)
        loss.backward()
        return {run.objective.task.name: loss.item()}

    return update(run, backward, batch["input_ids"].numel(), done)


def _look(run, asked, held_out, tokenizer, out):
    """Evaluate, and keep the best model in `out`."""
    task = run.objective.task
    found = task.evaluate(run.objective.model, asked, held_out)
    keep_best(run, 1 - found[task.metric], found, tokenizer, out)
    return {f"held_out_{name}": value for name, value in found.items()}


# %% book/finetuning.md#a-run bdd4f793
from pathlib import Path

from bertbook.run_loop import Reporter, train


def finetune(
    settings: Finetuning,
    task,
    train_data,
    held_out,
    tokenizer,
    out: str | Path,
    *,
    resume: bool = False,
    save_every: int = 200,
    device: str = "cpu",
    show_progress: bool = False,
) -> Run:
    """Train on `train_data`, a `Labelled`, and fill the folder `out`.

    It holds the model that was best on `held_out` by `task.metric`, and
    its vocabulary, `log.jsonl`, `run.json` and `checkpoints/`. Ctrl-C saves
    and returns; with `resume` the run goes on. Raises ValueError under
    torchrun with several processes, and as `open_run`, `update` and the
    task do.
    """
    _refuse_ranks()
    out, size = Path(out), settings.max_length
    learned = task.features(train_data, tokenizer, size, training=True)
    asked = task.features(held_out, tokenizer, size)
    settings = _filled_in(settings, task, tokenizer, learned, held_out)
    with (
        open_run(
            start_finetuning(settings, task, device), out, resume
        ) as run,
        Reporter(out, show_progress) as report,
    ):

        def step(place, rows, done):
            features = [learned[row] for row in rows]
            return finetuning_step(
                run, features, tokenizer.pad_token_id, done
            )

        look = partial(_look, run, asked, held_out, tokenizer, out)
        batches = _batches_left(run, [len(f["input_ids"]) for f in learned])
        train(run, out, report, batches, step, look, save_every)
    return run


# %% book/finetuning.md#trained-once 87c16c87
from bertbook.classification import Classification
from bertbook.labelled_data import read_labelled
from bertbook.run_loop import kept_run
from bertbook.tokenizer import BertTokenizer


def finetuned(settings: Finetuning, source: str) -> Path:
    """The folder of a finished classifier, which is made on first use.

    `source` is what `read_labelled` reads. Raises KeyboardInterrupt if the
    run was stopped; another call goes on.
    """

    def make(out, resume):
        splits = "train", "validation"
        data = [read_labelled(source, settings.task, s) for s in splits]
        tokenizer = BertTokenizer.from_pretrained(settings.initial)
        task = Classification(data[0].labels)
        return finetune(
            settings, task, *data, tokenizer, out, resume=resume
        )

    return kept_run("finetuning", [settings, source], make)
