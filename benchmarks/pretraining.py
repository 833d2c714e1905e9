"""Record a pretraining run: its settings, and its losses over time.

    python benchmarks/pretraining.py book/results/pretraining_hour.json \
        --corpus imdb --minutes 60 --seq-length 128 --batch-size 32 \
        --evaluate-every 500 --out runs/hour

What follows the JSON file are the options of `python -m bertbook pretrain`.
The folder of the run stays; `--resume --out runs/hour` goes on with it.
"""

import argparse
import json
import sys
from pathlib import Path

from bertbook.command_line import main, open_text
from bertbook.reproducibility import record_run
from bertbook.training_loop import read_log


def record(path, out):
    """What the run in the folder `out` came to."""
    records, text = read_log(out / "log.jsonl"), open_text(out)
    steps = [each for each in records if "tokens" in each]
    last = {name: steps[-1][name] for name in ("step", "tokens", "seconds")}
    held_out = [each for each in records if "held_out_loss" in each]
    metrics = {
        "settings": json.loads((out / "run.json").read_bytes()),
        "pieces_per_character": text.held_out.pieces
        / text.held_out.characters,
        "held_out": held_out,
        "last": last,
    }
    record_run(path, metrics)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path", help="JSON file that gets the losses")
    parser.add_argument("--out", required=True, help="folder of the run")
    options, rest = parser.parse_known_args()
    status = main(["pretrain", "--out", options.out, *rest])
    if status == 0:
        record(options.path, Path(options.out))
    sys.exit(status)
