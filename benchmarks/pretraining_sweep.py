"""Record a small sweep: one change at a time, equal tokens, on IMDb.

    python benchmarks/pretraining_sweep.py --record \
        book/results/pretraining_sweep.json

Each run gets the same number of tokens, and its own schedule over them.
"""

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from bertbook.masking import Masking
from bertbook.objectives import Pretraining
from bertbook.optimization import Length, Optimization
from bertbook.pretraining import pretrain
from bertbook.pretraining_text import learn_tokenizer, prepare_text
from bertbook.reproducibility import record_run
from bertbook.run_folder import small_budget
from bertbook.token_files import PackedRows
from bertbook.training_loop import read_log

CHANGES = {
    "the recipe": {},
    "AdamW, 2e-3": dict(optimization=Optimization("adamw")),
    "AdamW, 5e-4": dict(
        optimization=Optimization("adamw", learning_rate=5e-4)
    ),
    "Muon at half the rate": dict(
        optimization=Optimization(muon_learning_rate=0.01)
    ),
    "Muon at twice the rate": dict(
        optimization=Optimization(muon_learning_rate=0.04)
    ),
    "warm-up 20 %": dict(optimization=Optimization(warmup=0.2)),
    "pre-LayerNorm": dict(layer_norm="pre"),
    "positions drawn": dict(positions="drawn"),
    "masks 15 %": dict(masking=Masking(), last_rate=0.15),
    "rows of 128": dict(seq_length=128, batch_size=32),
    "half the batch": dict(batch_size=32),
    "six layers": dict(num_hidden_layers=6),
    "vocabulary 4,096": dict(vocab_size=4096),
}
OF_THE_MODEL = ("layer_norm", "num_hidden_layers")


def run_one(changes, tokens, folder):
    """The last held-out loss, accuracy and the seconds of one run."""
    changes = dict(changes)
    tokenizer = learn_tokenizer("imdb", changes.pop("vocab_size", 8192))
    size = len(tokenizer.get_vocab())
    text = prepare_text("imdb", folder / f"data-{size}", tokenizer)
    model = {k: changes.pop(k) for k in OF_THE_MODEL if k in changes}
    settings = Pretraining(
        small_budget("mini", size, **model),
        Length(tokens=tokens),
        evaluate_every=1000,
    )
    settings = replace(settings, **changes)
    rows = [
        PackedRows(files, settings.seq_length, tokenizer)
        for files in (text.train, text.held_out)
    ]
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    run = pretrain(settings, *rows, tokenizer, out, save_every=10**9)
    last = read_log(out / "log.jsonl")[-1]
    per_character = text.held_out.pieces / text.held_out.characters
    return {
        "loss": last["held_out_loss"],
        "accuracy": last["held_out_accuracy"],
        "nats_per_character": last["held_out_loss"] * per_character,
        "tokens_per_second": run.progress.tokens / run.progress.seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--record", help="JSON file that gets the numbers")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in CHANGES.items():
            found = run_one(changes, options.tokens, Path(folder))
            rows.append({"change": name} | found)
            print(
                f"{name:24} {found['loss']:.3f} nats  "
                f"{found['tokens_per_second']:,.0f} tokens/s",
                flush=True,
            )
    if options.record:
        metrics = {"tokens": options.tokens, "rows": rows}
        record_run(options.record, metrics)


if __name__ == "__main__":
    main()
