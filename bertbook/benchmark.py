"""A fair race

Times the model of this book beside transformers, in one process, with the
same weights and the same batches, and says how much of the machine's own
matrix-product rate each of them uses.

The page: https://bertbook.github.io/bertbook/book/benchmark.html
"""

# Tangled from book/benchmark.md (b5df4f89): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "DTYPES",
    "HEADER",
    "LENGTHS",
    "Ratio",
    "compare",
    "format_row",
    "inference_run",
    "interleave",
    "main",
    "make_batch",
    "matmul_rate",
    "operations_needed",
    "race",
    "run_benchmark",
    "same_models",
    "training_run",
]


# %% book/benchmark.md#a-machine-that-drifts 1b0594fb
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple


def interleave(
    runs: dict[Hashable, Callable[[], object]],
    rounds: int = 7,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Hashable, list[float]]:
    """Seconds that each run took in each round.

    All runs are called in turn, `rounds` times, the order reversed every
    second round, after `warmup` calls of each that do not count.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; give 1 or more")
    for run in runs.values():
        for _ in range(warmup):
            run()
    seconds = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            start = clock()
            runs[name]()
            seconds[name].append(clock() - start)
    return seconds


# %% book/benchmark.md#a-machine-that-drifts c6c68ee2
import statistics


class Ratio(NamedTuple):
    """How many times faster: the median over rounds, and the quartiles."""

    median: float
    low: float
    high: float


def compare(theirs: list[float], ours: list[float]) -> Ratio:
    """The ratio of seconds, formed inside each round."""
    if len(theirs) != len(ours) or len(ours) < 2:
        raise ValueError(
            f"{len(theirs)} and {len(ours)} timings; give two or more "
            "rounds of both"
        )
    ratios = [a / b for a, b in zip(theirs, ours)]
    low, middle, high = statistics.quantiles(
        ratios, n=4, method="inclusive"
    )
    return Ratio(middle, low, high)


# %% book/benchmark.md#what-the-machine-could-do 3aaeb34d
import torch
from torch import Tensor


def matmul_rate(
    dtype: torch.dtype, device: str = "cpu", size: int = 2048
) -> float:
    """Operations a second of a `size` × `size` matrix product, the best
    of ten."""
    left = torch.randn(size, size, device=device).to(dtype)
    run = _finished(lambda: left @ left, device)
    seconds = interleave({"product": run}, rounds=10)
    return 2 * size**3 / min(seconds["product"])


def _finished(run: Callable[[], object], device: str) -> Callable:
    """The same run, but it ends when a GPU has really finished."""
    if not device.startswith("cuda"):
        return run
    return lambda: (run(), torch.cuda.synchronize(device))


# %% book/benchmark.md#the-batches aa3c39a6
def make_batch(
    vocab_size: int, tokens: int, length: int, ragged: bool, seed: int = 0
) -> dict[str, Tensor]:
    """A batch of `tokens // length` rows, about 15 % of its tokens masked.

    Returns `input_ids`, `attention_mask` and `labels`, each (rows, length);
    a ragged batch has rows from `length // 8` to `length` tokens.
    """
    draw = torch.Generator().manual_seed(seed)
    shape = (max(1, tokens // length), length)
    lengths = torch.full(shape[:1], length)
    if ragged:
        lengths = torch.randint(
            length // 8, length + 1, shape[:1], generator=draw
        )
        lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = torch.randint(1, vocab_size, shape, generator=draw) * mask
    chosen = (torch.rand(shape, generator=draw) < 0.15) & mask.bool()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.where(chosen, ids, -100),
    }


# %% book/benchmark.md#the-batches 7cd665a0
from dataclasses import replace

from bertbook.config import PRESETS, BertConfig
from bertbook.model import operation_counts
from bertbook.training_loop import count_parameters


def operations_needed(
    config: BertConfig, batch: dict[str, Tensor], training: bool
) -> int:
    """Matrix-product operations that a batch needs, padding excluded.

    Inference ends at the last hidden states; a training step adds the
    predictions at the labels, and counts three forward passes.
    """
    parts = ("projections", "attention", "feed_forward")
    rows = [
        operation_counts(config, 1, seq)
        for seq in batch["attention_mask"].sum(1).tolist()
    ]
    needed = sum(row[part] for row in rows for part in parts)
    if not training:
        return needed
    labels = int((batch["labels"] != -100).sum())
    head = operation_counts(config, 1, 1, labels)["mlm_head"]
    return 3 * (needed + head)


# %% book/benchmark.md#the-two-racers fcb5e504
import tempfile

from bertbook.heads import BertForMaskedLM


def same_models(config: BertConfig) -> tuple[BertForMaskedLM, object]:
    """Our masked language model and that of `transformers`, same weights.

    Raises AssertionError if their losses on one batch differ.
    """
    import transformers

    torch.manual_seed(0)
    ours = BertForMaskedLM(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        transformers.utils.logging.disable_progress_bar()
        theirs = transformers.BertForMaskedLM.from_pretrained(folder)
    batch = make_batch(config.vocab_size, 256, 64, ragged=True)
    with torch.inference_mode():
        losses = ours(**batch).loss, theirs.eval()(**batch).loss
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    return ours, theirs


# %% book/benchmark.md#the-two-racers 975a92f5
import copy


def inference_run(
    model, batch: dict[str, Tensor], dtype: torch.dtype, device: str
) -> Callable[[], object]:
    """A call that computes the last hidden states of a batch."""
    encoder = copy.deepcopy(model.bert).eval().to(device, dtype)
    inputs = {
        name: batch[name].to(device)
        for name in ("input_ids", "attention_mask")
    }

    def run():
        with torch.inference_mode():
            return encoder(**inputs).last_hidden_state

    return _finished(run, device)


# %% book/benchmark.md#the-two-racers d81f5e56
def training_run(
    model, batch: dict[str, Tensor], dtype: torch.dtype, device: str
) -> Callable[[], object]:
    """A call that makes one step of masked language modelling."""
    model = copy.deepcopy(model).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    batch = {name: values.to(device) for name, values in batch.items()}
    kind = torch.device(device).type
    cast = torch.autocast(kind, dtype, enabled=dtype != torch.float32)

    def run():
        with cast:
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return _finished(run, device)


# %% book/benchmark.md#the-race 6da5c2b0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_PAIRS = {
    "inference": [("float32", "float32"), ("bfloat16", "bfloat16")],
    "training": [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float32"),
    ],
}


def race(
    models: tuple,
    task: str,
    batch: dict[str, Tensor],
    rates: dict[str, float],
    rounds: int = 7,
    device: str = "cpu",
) -> list[dict]:
    """Time both models on one batch: one result for each pair of formats.

    `models` are those of `same_models`, `task` is "inference" or
    "training", `rates` the machine's matrix-product rate for each format.
    """
    make = {"inference": inference_run, "training": training_run}[task]
    runs = {
        (name, dtype): make(model, batch, DTYPES[dtype], device)
        for name, model in zip(("ours", "theirs"), models)
        for dtype in DTYPES
    }
    seconds = interleave(runs, rounds)
    needed = operations_needed(models[0].config, batch, task == "training")
    return [_result(seconds, rates, needed, *pair) for pair in _PAIRS[task]]


def _result(seconds, rates, needed, ours, theirs):
    mine, reference = seconds["ours", ours], seconds["theirs", theirs]
    return {
        "ours": ours,
        "theirs": theirs,
        **compare(reference, mine)._asdict(),
        "seconds_ours": statistics.median(mine),
        "seconds_theirs": statistics.median(reference),
        "share_ours": needed / statistics.median(mine) / rates[ours],
        "share_theirs": needed
        / statistics.median(reference)
        / rates[theirs],
    }


# %% book/benchmark.md#the-race 4d299b9a
LENGTHS = (64, 128, 512)


def run_benchmark(
    config: BertConfig,
    tokens: int = 4096,
    rounds: int = 7,
    lengths: tuple[int, ...] = LENGTHS,
    device: str = "cpu",
    report: Callable[[dict], None] = lambda row: None,
) -> dict:
    """Race over tasks, lengths, full and ragged batches and formats.

    A batch holds about `tokens` tokens, padding included. `report` gets
    each row as soon as it is there. Returns what a recorded run holds.
    """
    models = same_models(config)
    rates = {name: matmul_rate(DTYPES[name], device) for name in DTYPES}
    batch = make_batch(config.vocab_size, tokens, min(lengths), False)
    race(models, "inference", batch, rates, 2, device)  # a false start
    rows = []
    for task in _PAIRS:
        for length in lengths:
            for ragged in (False, True):
                batch = make_batch(
                    config.vocab_size, tokens, length, ragged
                )
                for result in race(
                    models, task, batch, rates, rounds, device
                ):
                    kind = {
                        "task": task,
                        "length": length,
                        "ragged": ragged,
                    }
                    rows.append(kind | result)
                    report(rows[-1])
    return {
        "rows": rows,
        "rates": rates,
        "parameters": count_parameters(models[0]),
        "config": config.to_dict(),
        "tokens": tokens,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "device": device,
    }


# %% book/benchmark.md#the-race a3274112
def format_row(row: dict) -> str:
    """One line of the table, aligned."""
    batch = "ragged" if row["ragged"] else "full"
    formats = f"{row['ours']}/{row['theirs']}"
    return (
        f"{row['task']:9}  {row['length']:>4} {batch:6}  {formats:17}  "
        f"{row['median']:5.2f} ({row['low']:.2f}-{row['high']:.2f})  "
        f"{row['share_ours']:4.0%} {row['share_theirs']:4.0%}"
    )


HEADER = (
    "task       length batch ours/theirs        times faster       "
    "shares: ours, theirs"
)


# %% book/benchmark.md#the-race a54a59da
import argparse

from bertbook.reproducibility import record_run


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its table; `--help` says the options."""
    parser = argparse.ArgumentParser(
        prog="python -m bertbook.benchmark",
        description="Time BERT of this book beside transformers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--preset", default="mini", choices=PRESETS, help="model size")
    add("--tokens", type=int, default=4096, help="tokens in a batch")
    add("--rounds", type=int, default=7, help="rounds that count")
    add("--device", default="cpu", help="cpu or cuda")
    add("--record", help="JSON file that gets the numbers")
    options = parser.parse_args(arguments)
    config = replace(PRESETS[options.preset], remove_padding=True)
    print(HEADER)
    metrics = run_benchmark(
        config,
        options.tokens,
        options.rounds,
        device=options.device,
        report=lambda row: print(format_row(row), flush=True),
    )
    if options.record:
        record_run(options.record, metrics)


if __name__ == "__main__" and "__file__" in globals():
    main()
