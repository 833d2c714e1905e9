"""Time a training step with and without torch.compile, in one process.

Usage: python benchmarks/scaling.py --record book/results/compile.json
"""

import argparse
import time
from dataclasses import replace

import torch

from bertbook.benchmark import compare, interleave, make_batch
from bertbook.config import PRESETS
from bertbook.heads import BertForMaskedLM
from bertbook.losses import IGNORED
from bertbook.objectives import Objective, accumulate
from bertbook.optimization import Optimization, make_optimizers, take_step
from bertbook.reproducibility import record_run


def steps_of(config, batch, compiled):
    """A call that makes one whole step in bfloat16."""
    torch.manual_seed(0)
    objective = Objective(BertForMaskedLM(config))
    optimizers = make_optimizers(objective.model, Optimization())
    trained = torch.compile(objective) if compiled else objective

    def cast():
        return torch.autocast("cpu", torch.bfloat16)

    def run():
        accumulate(trained, [batch], cast)
        take_step(objective, optimizers, 1.0)

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="mini", choices=PRESETS)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--seq-length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--record", help="JSON file that gets the numbers")
    options = parser.parse_args()
    config = replace(
        PRESETS[options.preset],
        vocab_size=options.vocab_size,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    tokens = options.rows * options.seq_length
    drawn = make_batch(config.vocab_size, tokens, options.seq_length, False)
    width = round(options.seq_length * 0.15)
    torch.manual_seed(0)
    places = torch.rand(drawn["input_ids"].shape).argsort(1)[:, :width]
    batch = {
        "input_ids": drawn["input_ids"],
        "positions": places,
        "labels": drawn["input_ids"].gather(1, places),
    }
    assert (batch["labels"] != IGNORED).all()
    runs = {
        compiled: steps_of(config, batch, compiled)
        for compiled in (False, True)
    }
    runs[False]()  # what a first step of any kind costs is not compiling
    started = time.perf_counter()
    runs[True]()
    first = time.perf_counter() - started
    seconds = interleave(runs, options.rounds)
    usual, compiled = (
        sorted(each)[len(each) // 2]
        for each in (seconds[False], seconds[True])
    )
    metrics = {
        "preset": options.preset,
        "vocab_size": options.vocab_size,
        "tokens": tokens,
        "seq_length": options.seq_length,
        "threads": torch.get_num_threads(),
        "compile_seconds": first - compiled,
        "seconds": {"usual": usual, "compiled": compiled},
        "ratio": compare(seconds[False], seconds[True])._asdict(),
    }
    print(metrics)
    if options.record:
        record_run(options.record, metrics)


if __name__ == "__main__":
    main()
