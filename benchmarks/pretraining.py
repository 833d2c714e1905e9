"""Record a pretraining run on IMDb: its losses over time.

    python benchmarks/pretraining.py --minutes 10
    python benchmarks/pretraining.py --tokens 42000000 --seq-length 128 \
        --batch-size 32 --evaluate-every 500 \
        --record book/results/pretraining_long.json

The folder of the run, with the model, stays in `--out`; `--resume` goes on
with it.
"""

import argparse
from pathlib import Path

from bertbook.objectives import Pretraining
from bertbook.optimization import Length
from bertbook.pretraining import pretrain
from bertbook.pretraining_text import learn_tokenizer, prepare_text
from bertbook.reproducibility import record_run
from bertbook.run_folder import settings_of, small_budget
from bertbook.token_files import PackedRows
from bertbook.training_loop import read_log


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--minutes", type=float)
    add("--tokens", type=int)
    add("--steps", type=int)
    add("--seq-length", type=int, default=Pretraining.seq_length)
    add("--batch-size", type=int, default=Pretraining.batch_size)
    add("--evaluate-every", type=int, default=Pretraining.evaluate_every)
    add("--preset", default="mini")
    add("--out", default="runs/imdb")
    add("--resume", action="store_true")
    add("--record", help="JSON file that gets the losses")
    options = parser.parse_args()
    out = Path(options.out)
    tokenizer = learn_tokenizer("imdb")
    text = prepare_text("imdb", out / "data", tokenizer)
    vocab_size = len(tokenizer.get_vocab())
    settings = Pretraining(
        small_budget(options.preset, vocab_size),
        Length(options.steps, options.tokens, options.minutes),
        seq_length=options.seq_length,
        batch_size=options.batch_size,
        evaluate_every=options.evaluate_every,
    )
    run = pretrain(
        settings,
        PackedRows(text.train, settings.seq_length, tokenizer),
        PackedRows(text.held_out, settings.seq_length, tokenizer),
        tokenizer,
        out,
        resume=options.resume,
        show_progress=True,
    )
    records = read_log(out / "log.jsonl")
    if options.record:
        metrics = {
            "settings": settings_of(run.settings),
            "held_out": [r for r in records if "held_out_loss" in r],
            "steps": run.progress.step,
            "tokens": run.progress.tokens,
            "seconds": round(run.progress.seconds),
        }
        record_run(options.record, metrics)


if __name__ == "__main__":
    main()
