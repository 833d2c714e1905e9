"""Pretraining

Trains a BERT on text, from random weights to a folder that from_pretrained
loads: one loop, a log, evaluations, and states to continue from.

The page: https://bertbook.github.io/bertbook/book/pretraining.html
"""

# Tangled from book/pretraining.md (fe3c2a9a): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "EXAM_ROWS",
    "Reporter",
    "cast_of",
    "examine",
    "guess_masked",
    "make_exam",
    "make_parts",
    "pretrain",
    "pretrained",
    "train_step",
]


# %% book/pretraining.md#what-a-step-reads b25e45a8
import math
from collections.abc import Sequence
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
from bertbook.run_folder import Run, describe_data, open_run, save_run


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


# %% book/pretraining.md#the-examination 42537e4e
from bertbook.training_loop import RunLog, evaluating


def guess_masked(
    model: nn.Module, tokenizer, texts: Sequence[str], count: int = 3
) -> list[list[str]]:
    """The `count` best pieces for each [MASK] of each text, in order.

    One list for each [MASK], whichever text it stands in.
    """
    inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
    inputs = _to(inputs, next(model.parameters()).device)
    at = inputs["input_ids"] == tokenizer.mask_token_id
    with evaluating(model):
        hidden = model.bert(**inputs).last_hidden_state[at]
        table = model.bert.embeddings.tokens.weight
        best = model.mlm_head(hidden, table).topk(count).indices
    return [tokenizer.convert_ids_to_tokens(ids) for ids in best.tolist()]


# %% book/pretraining.md#the-examination bba9fe7a
from bertbook.objectives import evaluate_masked


def examine(
    run: Run, exam: list[dict], tokenizer, out: Path, samples: Sequence[str]
) -> dict:
    """Evaluate; the best model so far goes into `out`, ready to load."""
    cast, model = cast_of(run.settings, run.device), run.objective.model
    found = evaluate_masked(run.objective, exam, cast)
    now = run.progress
    now.examined, now.waited = now.step, now.waited + 1
    if found["loss"] < now.best:
        now.best, now.waited = found["loss"], 0
        post = run.settings.model.layer_norm == "post"
        if this_rank().number == 0:
            model.save_pretrained(
                out,
                tokenizer=tokenizer,
                format="published" if post else "bertbook",
            )
    record = {f"held_out_{name}": value for name, value in found.items()}
    if samples:
        record["samples"] = guess_masked(model, tokenizer, samples)
    return record


# %% book/pretraining.md#one-step 12a92b34
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
        "rate_factor": factor,
        "gradient_norm": norm,
        "seconds": round(now.seconds, 3),
    }


# %% book/pretraining.md#one-step fa489419
def _refuse_no_number(losses, step):
    for name, value in losses.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {name} loss is {value} in step {step + 1}; begin "
                "again in another folder with a lower learning rate"
            )


# %% book/pretraining.md#what-is-told 4496b963
import sys

from tqdm import tqdm


class Reporter:
    """Writes records to the log, and shows them; one process does."""

    def __init__(self, out: Path, show: bool):
        first = this_rank().number == 0
        self.log = RunLog(out / "log.jsonl") if first else None
        form = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        seen, shows = sys.stderr.isatty(), first and show
        self.bar = tqdm(
            total=1, disable=not (shows and seen), bar_format=form
        )
        self.lines = shows and not seen
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
        if self.lines and "held_out_loss" in record:
            shown = (f"{k} {round(v, 2)}" for k, v in self.shown.items())
            print(*shown, sep="  ", file=sys.stderr, flush=True)


# %% book/pretraining.md#the-loop fcd99560
from bertbook.objectives import Place, batches_from
from bertbook.ranks import any_says, check_shares, first_says
from bertbook.training_state import deferred_interrupt


def _compiled(objective, settings):
    return torch.compile(objective) if settings.compiled else objective


def _with_data(settings, rows, held_out, tokenizer):
    """The settings of a run that can be shared, and what it reads."""
    check_shares(settings.batch_size, settings.accumulation)
    data = describe_data(rows, held_out, tokenizer)
    return replace(settings, data=data)


def _batches_left(run, rows):
    """The batches of a run from where it stopped on."""
    now, settings = run.progress, run.settings
    place = Place(now.epoch, now.batch)
    return batches_from(rows, settings.batch_size, settings.seed, place)


# %% book/pretraining.md#the-loop 9c57197e
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
    samples: Sequence[str] = (),
) -> Run:
    """Train to the end that `settings` name, and fill the folder `out`.

    It holds the best model and its vocabulary, `log.jsonl`, `run.json` and
    `checkpoints/`, one every `save_every` steps; the log has guesses for
    the `samples`, texts with [MASK]. Ctrl-C saves and returns. Raises as
    `open_run`, `save_state` and `train_step` do.
    """
    out, pieces = Path(out), Pieces.of(tokenizer)
    settings = _with_data(settings, rows, held_out, tokenizer)
    with (
        open_run(settings, out, resume, device) as run,
        Reporter(out, show_progress) as report,
        deferred_interrupt() as end,
    ):
        now = run.progress
        exam = make_exam(held_out, pieces, run.device)
        look = partial(examine, run, exam, tokenizer, out, samples)
        trained = replicate(_compiled(run.objective, settings))
        if now.examined < 0:
            report({"step": 0} | look(), 0.0)
        run.start_clock()
        for place, examples in _batches_left(run, rows):
            (done,) = first_says([run.done()])
            if any_says(end()) or done >= 1:
                break
            read = rows, pieces, place.epoch, examples, done
            record = train_step(run, trained, make_parts(run, *read), done)
            now.epoch, now.batch = place
            if now.step % settings.evaluate_every == 0:
                record |= look()
            report(record, done)
            if now.step % save_every == 0:
                save_run(run, out)
        if done >= 1 and now.examined < now.step:
            report({"step": now.step} | look(), done)
        save_run(run, out)
    return run


# %% book/pretraining.md#trained-once 76e99bce
import hashlib
import json
import re
from importlib.util import find_spec

from bertbook.pretraining_text import learn_tokenizer, prepare_text
from bertbook.reproducibility import kept, write_atomically
from bertbook.run_folder import settings_of


def _sources(module: str, found: dict[str, str]) -> dict[str, str]:
    """The code of a module and of all that it imports from this book."""
    path = find_spec(f"bertbook.{module}").origin
    found[module] = Path(path).read_text("utf-8")
    for other in re.findall(r"from bertbook\.(\w+)", found[module]):
        if other not in found:
            _sources(other, found)
    return found


# %% book/pretraining.md#trained-once a38749f6
def pretrained(
    settings: Pretraining,
    corpus: str = "imdb",
    vocab_size: int = 8192,
    samples: Sequence[str] = (),
) -> Path:
    """The folder of a finished run, which is made on first use.

    Raises KeyboardInterrupt if the run was stopped; another call goes on.
    """
    told = [settings_of(settings), corpus, vocab_size, list(samples)]
    told += [_sources("pretraining", {}), torch.__version__]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    out = kept(f"runs/{corpus}-{digest.hexdigest()[:16]}")
    if not (out / "finished").exists():
        run = _train_kept(settings, corpus, vocab_size, samples, out)
        if run.done() < 1:
            raise KeyboardInterrupt(f"{out} was stopped; call again")
        write_atomically(out / "finished", "")
    return out


# %% book/pretraining.md#trained-once e45edbbe
from bertbook.objectives import rows_of


def _train_kept(settings, corpus, vocab_size, samples, out):
    tokenizer = learn_tokenizer(corpus, vocab_size)
    text = prepare_text(corpus, out / "data", tokenizer)
    return pretrain(
        settings,
        rows_of(settings, text.train, tokenizer),
        rows_of(settings, text.held_out, tokenizer, held_out=True),
        tokenizer,
        out,
        resume=(out / "run.json").exists(),
        samples=samples,
    )
