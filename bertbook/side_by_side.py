"""Beside the Trainer

Races the whole training step of this book against the Trainer of
transformers, and trains with both for the same minutes on the same text.

The page: https://bertbook.github.io/bertbook/book/side_by_side.html
"""

# Tangled from book/side_by_side.md (336f25f8): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "CONTESTS",
    "FORM",
    "HEADER",
    "QUIET",
    "beside",
    "contestants",
    "count_tokens",
    "main",
    "make_trainer",
    "our_run",
    "rows_for_trainer",
    "trainer_run",
]


# %% book/side_by_side.md#their-trainer 92614ef0
from pathlib import Path

from bertbook.config import BertConfig

QUIET = {
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}


def make_trainer(
    config: BertConfig,
    rows: list[dict],
    tokenizer,
    folder: str | Path,
    callback: dict,
    **arguments,
):
    """A `transformers.Trainer` with its defaults, and fresh weights.

    `rows` hold `input_ids`; `callback` holds methods of a
    `TrainerCallback`, such as `on_step_end`; `arguments` are those of
    `TrainingArguments`. Needs the packages transformers and accelerate.
    """
    import transformers as hub

    theirs = type("Callback", (hub.TrainerCallback,), callback)
    words = hub.BertTokenizerFast(vocab=tokenizer.get_vocab())
    trainer = hub.Trainer(
        hub.BertForMaskedLM(hub.BertConfig(**config.to_dict())),
        hub.TrainingArguments(str(folder), **QUIET, **arguments),
        hub.DataCollatorForLanguageModeling(words),
        rows,
        callbacks=[theirs()],
    )
    trainer.remove_callback(hub.PrinterCallback)
    return trainer


# %% book/side_by_side.md#their-trainer 52784e94
from bertbook.textbook_step import real_tokens


def count_tokens(trainer) -> list[int]:
    """A list that receives the real tokens of each batch it collates."""
    collate, tokens = trainer.data_collator, []

    def collate_and_count(examples):
        batch = collate(examples)
        tokens.append(real_tokens(batch))
        return batch

    trainer.data_collator = collate_and_count
    return tokens


# %% book/side_by_side.md#their-trainer 31290752
import tempfile
import time
from collections.abc import Callable


def trainer_run(
    config: BertConfig, rows: list[dict], tokenizer, **arguments
) -> Callable[[], float]:
    """A call that makes three steps of a `Trainer`.

    It returns the seconds a real token of the last two, from the end of
    one step to the end of the next, so that the data loader counts.
    """
    ends = []
    clock = {
        "on_step_end": lambda *a, **k: ends.append(time.perf_counter())
    }
    arguments = {"max_steps": 3, **arguments}
    trainer = make_trainer(
        config, rows, tokenizer, tempfile.mkdtemp(), clock, **arguments
    )
    tokens = count_tokens(trainer)

    def run():
        ends.clear()
        tokens.clear()
        trainer.train()
        return (ends[2] - ends[0]) / sum(tokens[1:3])

    return run


# %% book/side_by_side.md#ours 94bd3f94
from itertools import islice

from bertbook.masking import Pieces
from bertbook.objectives import Place, Pretraining, batches_from
from bertbook.optimization import Length
from bertbook.pretraining import make_parts, train_step
from bertbook.pretraining_text import Text
from bertbook.run_folder import small_budget, start_run
from bertbook.token_files import PackedRows


def our_run(text: Text, preset: str = "mini") -> Callable[[], float]:
    """A call that makes two steps of this book's trainer.

    It returns the seconds a token. The run is at its middle, where the
    masking rate is.
    """
    size = len(text.tokenizer.get_vocab())
    run = start_run(
        Pretraining(
            small_budget(preset, size), Length(steps=1000), dtype="bfloat16"
        )
    )
    settings, pieces = run.settings, Pieces.of(text.tokenizer)
    rows = PackedRows(text.train, settings.seq_length, text.tokenizer)
    batches = batches_from(rows, settings.batch_size, 0, Place(0, 0))

    def make_steps():
        start = time.perf_counter()
        for place, examples in islice(batches, 2):
            parts = make_parts(
                run, rows, pieces, place.epoch, examples, 0.5
            )
            train_step(run, run.objective, parts, 0.5)
        tokens = 2 * settings.batch_size * settings.seq_length
        return (time.perf_counter() - start) / tokens

    return make_steps


# %% book/side_by_side.md#ours aa32e67a
import numpy as np

from bertbook.textbook_step import SentenceRows


def rows_for_trainer(
    text: Text, kind: str, seq_length: int, count: int | None = None
) -> list[dict]:
    """The first rows as a `Trainer` reads them, "packed" or "sentences"."""
    source = {"packed": PackedRows, "sentences": SentenceRows}[kind](
        text.train, seq_length=seq_length, tokenizer=text.tokenizer
    )
    total = source.count(0)
    arrays = source.rows(0, np.arange(min(count or total, total)))
    ids = arrays["input_ids"]
    mask = arrays.get("attention_mask", np.ones_like(ids))
    return [
        {"input_ids": row[: kept.sum()].tolist()}
        for row, kept in zip(ids, mask)
    ]


# %% book/side_by_side.md#four-ways ae77c83b
CONTESTS = {
    "as it comes": ("sentences", 8, False),
    "packed rows": ("packed", 8, False),
    "batch of 64": ("packed", 64, False),
    "bfloat16": ("packed", 64, True),
}


# %% book/side_by_side.md#four-ways a189aa7f
from dataclasses import replace

from bertbook.config import PRESETS


def contestants(text: Text, preset: str) -> dict[str, Callable]:
    """Our step, and the `Trainer` in each way of `CONTESTS`."""
    size = len(text.tokenizer.get_vocab())
    config = replace(PRESETS[preset], vocab_size=size)
    runs = {"ours": our_run(text, preset)}
    for name, (kind, batch, bf16) in CONTESTS.items():
        rows = rows_for_trainer(text, kind, Pretraining.seq_length, 1000)
        options = {"per_device_train_batch_size": batch, "bf16": bf16}
        runs[name] = trainer_run(config, rows, text.tokenizer, **options)
    return runs


# %% book/side_by_side.md#four-ways 0b07832c
import statistics

from bertbook.benchmark import compare, interleave


def beside(text: Text, rounds: int = 5, preset: str = "mini") -> list[dict]:
    """Race our whole step against the `Trainer`, a row for each contest.

    How many times the tokens a second, with quartiles over the rounds,
    and both rates.
    """
    seconds = _timed(contestants(text, preset), rounds)
    ours = seconds.pop("ours")
    return [
        {
            "theirs": name,
            "vocabulary": len(text.tokenizer.get_vocab()),
            **compare(theirs, ours)._asdict(),
            "tokens_ours": 1 / statistics.median(ours),
            "tokens_theirs": 1 / statistics.median(theirs),
        }
        for name, theirs in seconds.items()
    ]


# %% book/side_by_side.md#four-ways 721d38af
def _timed(runs, rounds):
    """What each run says that it took, in rounds."""
    spent = 0.0

    def metered(run):
        def advance():
            nonlocal spent
            spent += run()

        return advance

    calls = {name: metered(run) for name, run in runs.items()}
    return interleave(calls, rounds, warmup=1, clock=lambda: spent)


# %% book/side_by_side.md#four-ways 5517219a
import argparse

FORM = "{theirs:12} {vocabulary:7,} {tokens_theirs:7,.0f} "
FORM += "{tokens_ours:7,.0f}  {median:5.2f} ({low:.2f}-{high:.2f})"
HEADER = "theirs       pieces  theirs    ours  times faster"


def _options(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m bertbook.side_by_side",
        description="Time this book's training step beside the Trainer of "
        "transformers: real tokens a second.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--preset", default="mini", choices=PRESETS, help="model size")
    add("--rounds", type=int, default=5, help="rounds that count")
    add("--record", help="JSON file that gets the numbers")
    return parser.parse_args(arguments)


# %% book/side_by_side.md#four-ways db9257a9
import torch

from bertbook.reproducibility import kept, record_run
from bertbook.textbook_step import take_text, tokenizers


def main(arguments: list[str] | None = None) -> None:
    """Time both trainers and print a table; `--help` says the options."""
    options = _options(arguments)
    print(HEADER)
    rows = []
    for name, tokenizer in tokenizers().items():
        text = take_text(tokenizer, kept(f"side_by_side/{name}"), 1000)
        for row in beside(text, options.rounds, options.preset):
            print(FORM.format(**row), flush=True)
            rows.append(row)
    if options.record:
        facts = {"rounds": options.rounds, "preset": options.preset}
        facts |= {"threads": torch.get_num_threads(), "rows": rows}
        record_run(options.record, facts)


if __name__ == "__main__" and "__file__" in globals():
    main()
