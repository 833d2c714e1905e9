"""Beside the Trainer

Races the whole training step of this book against the Trainer of
transformers, and trains with both for the same minutes on the same text.

The page: https://bertbook.github.io/bertbook/book/side_by_side.html
"""

# Tangled from book/side_by_side.md (6fe2adb5): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "CONTESTS",
    "FORM",
    "HEADER",
    "beside",
    "main",
    "make_trainer",
    "our_run",
    "rows_for_trainer",
    "trainer_run",
]


# %% book/side_by_side.md#their-trainer eb957582
from pathlib import Path

from bertbook.config import BertConfig


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
    import transformers

    theirs = type("Callback", (transformers.TrainerCallback,), callback)
    shape = transformers.BertConfig(**config.to_dict())
    words = transformers.BertTokenizerFast(vocab=tokenizer.get_vocab())
    quiet = dict(save_strategy="no", logging_strategy="no")
    quiet |= dict(report_to="none", disable_tqdm=True, use_cpu=True)
    trainer = transformers.Trainer(
        transformers.BertForMaskedLM(shape),
        transformers.TrainingArguments(str(folder), **quiet, **arguments),
        transformers.DataCollatorForLanguageModeling(words),
        rows,
        callbacks=[theirs()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


# %% book/side_by_side.md#their-trainer 3e236d9a
import tempfile
import time
from collections.abc import Callable

from bertbook.textbook_step import real_tokens


def trainer_run(
    config: BertConfig, rows: list[dict], tokenizer, **arguments
) -> Callable[[], float]:
    """A call that makes three steps of a `Trainer`.

    It returns the seconds a real token of the last two, from the end of
    one step to the end of the next, so that the data loader counts.
    """
    ends, tokens = [], []
    callback = {
        "on_step_end": lambda *a, **k: ends.append(time.perf_counter())
    }
    folder = tempfile.mkdtemp()
    trainer = make_trainer(
        config, rows, tokenizer, folder, callback, max_steps=3, **arguments
    )
    collate = trainer.data_collator

    def counting(examples):
        batch = collate(examples)
        tokens.append(real_tokens(batch))
        return batch

    trainer.data_collator = counting

    def run():
        ends.clear()
        tokens.clear()
        trainer.train()
        return (ends[2] - ends[0]) / sum(tokens[1:3])

    return run


# %% book/side_by_side.md#their-trainer 34b821a1
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
        Pretraining(small_budget(preset, size), Length(steps=1000))
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


# %% book/side_by_side.md#their-trainer aa32e67a
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


# %% book/side_by_side.md#their-trainer f8cfa314
import statistics
from dataclasses import replace

from bertbook.benchmark import compare, interleave
from bertbook.config import PRESETS

CONTESTS = {
    "as it comes": ("sentences", 8, False),
    "packed rows": ("packed", 8, False),
    "batch of 64": ("packed", 64, False),
    "bfloat16": ("packed", 64, True),
}


def beside(text: Text, rounds: int = 5, preset: str = "mini") -> list[dict]:
    """Race our whole step against the `Trainer` in each way of `CONTESTS`.

    Returns a row for each: how many times the tokens a second, with
    quartiles over the rounds, and both rates.
    """
    size = len(text.tokenizer.get_vocab())
    config = replace(PRESETS[preset], vocab_size=size)
    runs, spent = {"ours": our_run(text, preset)}, [0.0]
    for name, (kind, batch, bf16) in CONTESTS.items():
        rows = rows_for_trainer(text, kind, Pretraining.seq_length, 1000)
        options = dict(per_device_train_batch_size=batch, bf16=bf16)
        runs[name] = trainer_run(config, rows, text.tokenizer, **options)

    def metered(run):
        def advance():
            spent[0] += run()

        return advance

    metered_runs = {name: metered(run) for name, run in runs.items()}
    seconds = interleave(metered_runs, rounds, 1, lambda: spent[0])
    ours = seconds.pop("ours")
    return [
        {
            "theirs": name,
            "vocabulary": size,
            **compare(theirs, ours)._asdict(),
            "tokens_ours": 1 / statistics.median(ours),
            "tokens_theirs": 1 / statistics.median(theirs),
        }
        for name, theirs in seconds.items()
    ]


# %% book/side_by_side.md#their-trainer 96b40dec
import argparse

import torch

from bertbook.reproducibility import kept, record_run
from bertbook.textbook_step import take_text, tokenizers

FORM = "{theirs:12} {vocabulary:7,} {tokens_theirs:7,.0f} "
FORM += "{tokens_ours:7,.0f}  {median:5.2f} ({low:.2f}-{high:.2f})"
HEADER = "theirs      pieces  tokens a second  times faster"


def main(arguments: list[str] | None = None) -> None:
    """Time both trainers and print a table; `--help` says the options."""
    parser = argparse.ArgumentParser(
        prog="python -m bertbook.side_by_side",
        description="Time this book's training step beside the Trainer of "
        "transformers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--preset", default="mini", choices=PRESETS, help="model size")
    add("--rounds", type=int, default=5, help="rounds that count")
    add("--record", help="JSON file that gets the numbers")
    options = parser.parse_args(arguments)
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
