"""Pretraining

Trains a BERT on text, from random weights to a folder that from_pretrained
loads: one loop, a log, evaluations, and states to continue from.

The page: https://bertbook.github.io/bertbook/book/pretraining.html
"""

# Tangled from book/pretraining.md (c80f9032): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "EXAM_ROWS",
    "Reporter",
    "cast_of",
    "examine",
    "make_exam",
    "make_parts",
    "pretrain",
    "train_step",
]


# %% book/pretraining.md#what-a-step-reads 0e6b7afc
import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bertbook.masking import Masking, Pieces, rate_at
from bertbook.objectives import Pretraining, make_batch
from bertbook.ranks import replicate, share_of, this_rank
from bertbook.run_folder import Run, open_run, save_run


def cast_of(settings: Pretraining, device: torch.device):
    """A function that opens a block of products in the settings' type."""
    if settings.dtype == "float32":
        return nullcontext
    kind = getattr(torch, settings.dtype)
    return partial(torch.autocast, device.type, kind)


# %% book/pretraining.md#what-a-step-reads 1208b4ca
def make_parts(
    run: Run, rows, pieces: Pieces, epoch: int, examples, done: float
) -> list[dict]:
    """This process's share of a batch, in the parts of accumulation."""
    settings = run.settings
    rate = rate_at(done, settings.masking.rate, settings.last_rate)
    masking = replace(settings.masking, rate=rate)
    parts = np.array_split(examples, settings.accumulation)
    return [
        _to(
            make_batch(
                rows,
                pieces,
                masking,
                settings.seed,
                epoch,
                share_of(part, this_rank()),
            ),
            run.device,
        )
        for part in parts
    ]


def _to(batch, device):
    return {name: each.to(device) for name, each in batch.items()}


# %% book/pretraining.md#the-examination f4a4154e
EXAM_ROWS = 2048


def make_exam(held_out, pieces: Pieces, device) -> list[dict]:
    """The first rows of the held-out text, masked once for all at 15 %."""
    count = min(EXAM_ROWS, held_out.count(0))
    return [
        _to(make_batch(held_out, pieces, Masking(), 0, 0, examples), device)
        for examples in np.split(np.arange(count), range(128, count, 128))
    ]


# %% book/pretraining.md#the-examination 8fc18f14
from bertbook.objectives import evaluate_masked


def examine(run: Run, exam: list[dict], tokenizer, out: Path) -> dict:
    """Evaluate; the best model so far goes into `out`, ready to load."""
    cast = cast_of(run.settings, run.device)
    found = evaluate_masked(run.objective, exam, cast)
    now = run.progress
    now.examined, now.waited = now.step, now.waited + 1
    if found["loss"] < now.best:
        now.best, now.waited = found["loss"], 0
        post = run.settings.model.layer_norm == "post"
        if this_rank().number == 0:
            run.objective.model.save_pretrained(
                out,
                tokenizer=tokenizer,
                format="published" if post else "bertbook",
            )
    return {f"held_out_{name}": value for name, value in found.items()}


# %% book/pretraining.md#one-step fe4a01ab
from bertbook.objectives import accumulate
from bertbook.optimization import set_rates, take_step, warmup_linear


def train_step(
    run: Run, trained: nn.Module, parts: list[dict], done: float
) -> dict:
    """One step of all optimizers; returns what the log says of it.

    What dropout draws depends on the seed, the step and the process only.
    """
    now, settings = run.progress, run.settings
    address = [settings.seed, now.step, this_rank().number]
    seed = np.random.SeedSequence(address).generate_state(1)
    torch.manual_seed(int(seed[0]))
    chosen = settings.optimization
    factor = warmup_linear(done, chosen.warmup)
    set_rates(run.optimizers, factor)
    losses = accumulate(trained, parts, cast_of(settings, run.device))
    _refuse_no_number(losses, now.step)
    norm = take_step(run.objective, run.optimizers, chosen.clip_norm)
    now.step += 1
    now.tokens += settings.batch_size * settings.seq_length
    return {
        "step": now.step,
        "tokens": now.tokens,
        "loss": sum(losses.values()),
        **{f"{name}_loss": value for name, value in losses.items()},
        "rate": factor,
        "gradient_norm": norm,
        "seconds": round(now.seconds, 3),
    }


# %% book/pretraining.md#one-step 1159401c
def _refuse_no_number(losses, step):
    for name, value in losses.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {name} loss is {value} in step {step + 1}; lower the "
                "learning rate, and continue with --resume from the state "
                "before or begin again"
            )


# %% book/pretraining.md#what-is-told 90c7d7fc
from tqdm import tqdm

from bertbook.training_loop import RunLog


class Reporter:
    """Writes records to the log and moves a bar; one process does."""

    def __init__(self, out: Path, show: bool):
        first = this_rank().number == 0
        self.log = RunLog(out / "log.jsonl") if first else None
        form = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        self.bar = tqdm(
            total=1, disable=not (first and show), bar_format=form
        )
        self.shown = {}

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()
        if self.log:
            self.log.close()

    def __call__(self, record: dict, done: float) -> None:
        """Tell of one step."""
        if self.log:
            self.log.write(record)
        names = "step", "loss", "held_out_loss"
        self.shown |= {k: record[k] for k in names if k in record}
        self.bar.set_postfix(self.shown, refresh=False)
        self.bar.update(done - self.bar.n)


# %% book/pretraining.md#the-loop 0588be73
from bertbook.objectives import Place, batches_from
from bertbook.ranks import first_says
from bertbook.training_state import deferred_interrupt


def pretrain(
    settings: Pretraining,
    rows,
    held_out,
    tokenizer,
    out: str | Path,
    *,
    resume: bool = False,
    save_every: int = 200,
    device: str = "cpu",
    show_progress: bool = False,
) -> Run:
    """Train until the end that `settings` name, and fill the folder `out`.

    It holds the best model and its vocabulary, `log.jsonl`, `run.json` and
    `checkpoints/`, one every `save_every` steps. Ctrl-C saves and returns.
    Raises as `open_run`, `save_state` and `train_step` do.
    """
    out, pieces = Path(out), Pieces.of(tokenizer)
    digests = rows.files.digest, held_out.files.digest
    settings = replace(settings, data="-".join(digests))
    run = open_run(settings, out, resume, device)
    exam = make_exam(held_out, pieces, run.device)
    trained = replicate(_compiled(run.objective, settings))
    now, seed = run.progress, settings.seed
    batches = batches_from(
        rows, settings.batch_size, seed, Place(now.epoch, now.batch)
    )
    with (
        Reporter(out, show_progress) as report,
        deferred_interrupt() as end,
    ):
        if now.examined < 0:
            report({"step": 0} | examine(run, exam, tokenizer, out), 0.0)
        for place, examples in batches:
            done, stop = first_says([run.done(), end()])
            if done >= 1 or stop:
                break
            parts = make_parts(
                run, rows, pieces, place.epoch, examples, done
            )
            record = train_step(run, trained, parts, done)
            now.epoch, now.batch = place
            if now.step % settings.evaluate_every == 0:
                record |= examine(run, exam, tokenizer, out)
            report(record, done)
            if now.step % save_every == 0:
                save_run(run, out)
        if done >= 1 and now.examined < now.step:
            last = examine(run, exam, tokenizer, out)
            report({"step": now.step} | last, done)
        save_run(run, out)
    return run


# %% book/pretraining.md#the-loop e6936e12
def _compiled(objective, settings):
    return torch.compile(objective) if settings.compiled else objective
