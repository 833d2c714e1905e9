"""Pretraining

Trains a BERT on text, from random weights to a folder that from_pretrained
loads: rows, masks, a step, an examination, and the loop of a run.

The page: https://bertbook.github.io/bertbook/book/pretraining.html
"""

# Tangled from book/pretraining.md (2db9301f): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "EXAM_ROWS",
    "examine",
    "guess_masked",
    "make_exam",
    "make_parts",
    "pretrain",
    "pretrained",
    "train_step",
]


# %% book/pretraining.md#what-a-step-reads cb90006a
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bertbook.masking import Masking, Pieces, rate_at
from bertbook.objectives import Pretraining, make_batch
from bertbook.ranks import replicate, share_of, this_rank
from bertbook.run_folder import Run, describe_data, open_run, start_run
from bertbook.run_loop import cast_of


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


# %% book/pretraining.md#the-examination 4bb93637
from bertbook.training_loop import evaluating


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


# %% book/pretraining.md#the-examination ca751947
from bertbook.objectives import evaluate_masked
from bertbook.run_loop import keep_best


def examine(
    run: Run, exam: list[dict], tokenizer, out: Path, samples: Sequence[str]
) -> dict:
    """Evaluate; the best model so far goes into `out`, ready to load."""
    cast, model = cast_of(run.settings, run.device), run.objective.model
    found = evaluate_masked(run.objective, exam, cast)
    keep_best(run, found["loss"], found, tokenizer, out)
    record = {f"held_out_{name}": value for name, value in found.items()}
    if samples:
        record["samples"] = guess_masked(model, tokenizer, samples)
    return record


# %% book/pretraining.md#one-step 47070caf
from bertbook.objectives import accumulate
from bertbook.run_loop import update


def train_step(
    run: Run, trained: nn.Module, parts: list[dict], done: float
) -> dict:
    """`update` by a batch in parts, as `make_parts` gives it."""
    cast = cast_of(run.settings, run.device)
    backward = partial(accumulate, trained, parts, cast)
    tokens = run.settings.batch_size * run.settings.seq_length
    return update(run, backward, tokens, done)


# %% book/pretraining.md#the-whole-of-it fddeea3f
from bertbook.objectives import Place, batches_from
from bertbook.ranks import check_shares
from bertbook.run_loop import Reporter, train


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


# %% book/pretraining.md#the-whole-of-it d2cfa732
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
    `open_run`, `save_state` and `update` do.
    """
    out, pieces = Path(out), Pieces.of(tokenizer)
    settings = _with_data(settings, rows, held_out, tokenizer)
    with (
        open_run(start_run(settings, device), out, resume) as run,
        Reporter(out, show_progress) as report,
    ):
        exam = make_exam(held_out, pieces, run.device)
        trained = replicate(_compiled(run.objective, settings))

        def step(place, examples, done):
            read = rows, pieces, place.epoch, examples, done
            return train_step(run, trained, make_parts(run, *read), done)

        look = partial(examine, run, exam, tokenizer, out, samples)
        batches = _batches_left(run, rows)
        train(run, out, report, batches, step, look, save_every)
    return run


# %% book/pretraining.md#trained-once 4716f28e
from bertbook.objectives import rows_of
from bertbook.pretraining_text import learn_tokenizer, prepare_text
from bertbook.run_loop import kept_run


def pretrained(
    settings: Pretraining,
    corpus: str = "imdb",
    vocab_size: int = 8192,
    samples: Sequence[str] = (),
) -> Path:
    """The folder of a finished run, which is made on first use.

    Raises KeyboardInterrupt if the run was stopped; another call goes on.
    """

    def make(out, resume):
        tokenizer = learn_tokenizer(corpus, vocab_size)
        text = prepare_text(corpus, out / "data", tokenizer)
        return pretrain(
            settings,
            rows_of(settings, text.train, tokenizer),
            rows_of(settings, text.held_out, tokenizer, held_out=True),
            tokenizer,
            out,
            resume=resume,
            samples=samples,
        )

    told = [settings, corpus, vocab_size, list(samples)]
    return kept_run("pretraining", told, make)
