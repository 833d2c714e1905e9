"""Record what it is worth to keep the memory of freed tensors.

    python benchmarks/kept_memory.py

Each round times a few steps of this book's training and of the Trainer of
transformers (our rows, our batch, bfloat16), each in a fresh process, with
`keep_freed_memory` and without. Writes book/results/kept_memory.json.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from itertools import product
from pathlib import Path

import torch

from bertbook.reproducibility import kept, record_run
from bertbook.run_folder import keep_freed_memory
from bertbook.side_by_side import contestants
from bertbook.textbook_step import take_text, tokenizers

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "results" / "kept_memory.json"
RACERS = {"ours": "ours", "Trainer": "bfloat16"}  # in `contestants`
WAYS = "returned", "kept"


def text_of_the_race():
    return take_text(tokenizers()[True], kept("side_by_side/True"), 1000)


def time_one(racer, way, repeats):
    """Tokens a second, page faults a second, and the largest size."""
    if way == "kept" and not keep_freed_memory():
        sys.exit("the C library is not glibc: nothing to measure")
    run = contestants(text_of_the_race(), "mini")[RACERS[racer]]
    run()
    before = resource.getrusage(resource.RUSAGE_SELF)
    seconds = [run() for _ in range(repeats)]
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = (after.ru_utime - before.ru_utime) + (
        after.ru_stime - before.ru_stime
    )
    return {
        "tokens_per_second": 1 / statistics.median(seconds),
        "faults": (after.ru_minflt - before.ru_minflt) / repeats,
        "system_share": (after.ru_stime - before.ru_stime) / spent,
        "largest_bytes": after.ru_maxrss * 1024,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--rounds", type=int, default=3)
    add("--repeats", type=int, default=10, help="calls in each process")
    add("--record", default=RECORD)
    add("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(time_one(*options.one, options.repeats)))
        return
    text_of_the_race()
    rows = []
    for _ in range(options.rounds):
        for racer, way in product(RACERS, WAYS):
            run = [sys.executable, __file__, "--one", racer, way]
            run += ["--repeats", str(options.repeats)]
            done = subprocess.run(run, stdout=subprocess.PIPE, check=True)
            last = done.stdout.splitlines()[-1]
            rows.append({"racer": racer, "way": way} | json.loads(last))
            print(rows[-1], flush=True)
    facts = {"threads": torch.get_num_threads(), "rows": rows}
    record_run(options.record, facts)


if __name__ == "__main__":
    main()
