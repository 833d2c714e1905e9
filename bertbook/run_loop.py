"""The loop of a run

Takes steps, tells of them, keeps the best model, saves and ends: what
pretraining and fine-tuning have in common.

The page: https://bertbook.github.io/bertbook/book/run_loop.html
"""

# Tangled from book/run_loop.md (01fbec38): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Reporter",
    "SHOWN",
    "cast_of",
    "keep_best",
    "kept_run",
    "train",
    "update",
]


# %% book/run_loop.md#one-step 39e85199
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bertbook.ranks import this_rank
from bertbook.run_folder import Run, save_run, settings_of


def cast_of(settings, device: torch.device):
    """A function that opens a block of products in the settings' type."""
    if settings.dtype == "float32":
        return nullcontext
    kind = getattr(torch, settings.dtype)
    return partial(torch.autocast, device.type, kind)


# %% book/run_loop.md#one-step da084979
from bertbook.optimization import set_rates, take_step, warmup_linear


def update(
    run: Run, backward: Callable[[], dict], tokens: int, done: float
) -> dict:
    """One step of all optimizers; returns what the log says of it.

    `backward` computes the gradients, of `tokens` positions, and returns
    the losses by name. What dropout draws depends on the seed, the step
    and the process only.
    """
    now, settings = run.progress, run.settings
    address = [settings.seed, now.step, this_rank().number]
    seed = np.random.SeedSequence(address).generate_state(1)
    torch.manual_seed(int(seed[0]))
    chosen = settings.optimization
    factor = warmup_linear(done, chosen.warmup)
    set_rates(run.optimizers, factor)
    losses = backward()
    _refuse_no_number(losses, now.step)
    norm = take_step(run.objective, run.optimizers, chosen.clip_norm)
    now.step += 1
    now.tokens += tokens
    return {
        "step": now.step,
        "tokens": now.tokens,
        "loss": sum(losses.values()),
        **{f"{name}_loss": value for name, value in losses.items()},
        "rate_factor": factor,
        "gradient_norm": norm,
        "seconds": round(now.seconds, 3),
    }


# %% book/run_loop.md#one-step fa489419
def _refuse_no_number(losses, step):
    for name, value in losses.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {name} loss is {value} in step {step + 1}; begin "
                "again in another folder with a lower learning rate"
            )


# %% book/run_loop.md#what-is-told 92cd98a7
import sys

from tqdm import tqdm

from bertbook.training_loop import RunLog

SHOWN = "step loss held_out_loss held_out_accuracy held_out_f1".split()


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
        self.shown |= {k: record[k] for k in SHOWN if k in record}
        self.bar.set_postfix(self.shown, refresh=False)
        self.bar.update(done - self.bar.n)
        if self.lines and any(k.startswith("held_out") for k in record):
            shown = (f"{k} {round(v, 2)}" for k, v in self.shown.items())
            print(*shown, sep="  ", file=sys.stderr, flush=True)


# %% book/run_loop.md#the-best-model 91accc6a
import json

from bertbook.checkpoint_files import saving
from bertbook.reproducibility import kept, write_atomically


def keep_best(
    run: Run, loss: float, found: dict, tokenizer, out: Path
) -> None:
    """Note an evaluation; the best model so far goes into `out`.

    What was found of it stands beside it, in `held_out.json`.
    """
    now, model = run.progress, run.objective.model
    now.examined, now.waited = now.step, now.waited + 1
    if loss < now.best:
        now.best, now.waited = loss, 0
        format = "published" if model.config.is_published else "bertbook"
        if this_rank().number == 0:
            text = json.dumps(found, indent=2) + "\n"
            with saving(out) as new:
                model.save_pretrained(
                    new, tokenizer=tokenizer, format=format
                )
                write_atomically(new / "held_out.json", text)


# %% book/run_loop.md#the-loop 131bdf8e
from bertbook.ranks import any_says, first_says
from bertbook.training_state import deferred_interrupt


def train(
    run: Run,
    out: Path,
    report: Reporter,
    batches: Iterable,
    step: Callable[..., dict],
    look: Callable[[], dict],
    save_every: int,
) -> None:
    """Take steps until the run ends, or Ctrl-C; then save.

    `batches` gives pairs of the place after a batch and the batch, of
    which `step(place, batch, done)` learns; `look()` evaluates. Both
    return what the log says of it.
    """
    now, every = run.progress, run.settings.evaluate_every
    with deferred_interrupt() as end:
        if now.examined < 0:
            report({"step": 0} | look(), 0.0)
        run.start_clock()
        for place, batch in batches:
            (done,) = first_says([run.done()])
            if any_says(end()) or done >= 1:
                break
            record = step(place, batch, done)
            now.epoch, now.batch = place
            if now.step % every == 0:
                record |= look()
            report(record, done)
            if now.step % save_every == 0:
                save_run(run, out)
        if done >= 1 and now.examined < now.step:
            report({"step": now.step} | look(), done)
        save_run(run, out)


# %% book/run_loop.md#made-once 3616ebfd
import hashlib
import re
from importlib.util import find_spec


def _sources(module: str, found: dict[str, str]) -> dict[str, str]:
    """The code of a module and of all that it imports from this book."""
    path = find_spec(f"bertbook.{module}").origin
    found[module] = Path(path).read_text("utf-8")
    for other in re.findall(r"from bertbook\.(\w+)", found[module]):
        if other not in found:
            _sources(other, found)
    return found


# %% book/run_loop.md#made-once 10b5fa38
def kept_run(
    module: str, told: list, make: Callable[[Path, bool], Run]
) -> Path:
    """The folder of a finished run, which is made on first use.

    `told`, of which JSON can be made, and the code of `module` decide
    whether it was. `make(folder, resume)` trains, and goes on where it was
    stopped. Raises KeyboardInterrupt if it was stopped now.
    """
    told = [told, _sources(module, {}), torch.__version__]
    text = json.dumps(told, sort_keys=True, default=settings_of)
    digest = hashlib.sha256(text.encode()).hexdigest()
    out = kept(f"runs/{module}-{digest[:16]}")
    if not (out / "finished").exists():
        run = make(out, (out / "run.json").exists())
        if run.done() < 1:
            raise KeyboardInterrupt(f"{out} was stopped; call again")
        write_atomically(out / "finished", "")
    return out
