"""Record one fine-tune by two programs: this book's loop and the Trainer.

    python benchmarks/beside_finetuner.py
    python benchmarks/beside_finetuner.py --poolings mean

Rotten Tomatoes from all-MiniLM-L6-v2, with dropout. For each seed both
begin with the same numbers, the classifier's included, and take as many
steps of AdamW with the same rates; each has its own order of the rows. The
accuracy is that after the last step, on the test split: nothing is chosen
by it.

Writes book/results/beside_finetuner.json after each run.
"""

import argparse
import logging
import tempfile
from pathlib import Path

import torch

from bertbook.classification import Classification
from bertbook.finetuning import Finetuning, finetune
from bertbook.huggingface import make_finetuner, save_start
from bertbook.labelled_data import read_labelled
from bertbook.optimization import Optimization
from bertbook.reproducibility import record_run
from bertbook.run_folder import keep_freed_memory
from bertbook.tokenizer import BertTokenizer
from bertbook.training_loop import read_log

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "results" / "beside_finetuner.json"


def settings_of(options, start, seed):
    """What both programs are told."""
    return Finetuning(
        task="classify",
        initial=str(start),
        epochs=options.epochs,
        batch_size=options.batch_size,
        optimization=Optimization(
            "adamw",
            learning_rate=options.rate,
            betas=(0.9, 0.999),
            weight_decay=0.0,
            warmup=0.1,
        ),
        dtype="float32",
        seed=seed,
    )


def run_ours(settings, task, train, test, out):
    """The accuracy after the last step of this book's loop."""
    tokenizer = BertTokenizer.from_pretrained(settings.initial)
    finetune(settings, task, train, test, tokenizer, out)
    name, records = "held_out_accuracy", read_log(Path(out) / "log.jsonl")
    return [each[name] for each in records if name in each][-1]


def run_theirs(settings, task, train, test, out):
    """The accuracy after the last step of the Trainer."""
    trainer = make_finetuner(settings, task, train, test, out)
    trainer.train()
    return trainer.evaluate()["eval_accuracy"]


WORLDS = {"bertbook": run_ours, "Trainer": run_theirs}


def main():
    """Run both worlds for each pooling and seed, and record them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--poolings", nargs="+", default=["mean", "pooler"])
    add("--epochs", type=float, default=3)
    add("--rate", type=float, default=1e-4)
    add("--batch-size", type=int, default=32)
    add("--record", default=RECORD)
    options = parser.parse_args()
    keep_freed_memory()
    train, test = (
        read_labelled("rotten_tomatoes", "classify", split)
        for split in ("train", "test")
    )
    facts = {
        "epochs": options.epochs,
        "learning_rate": options.rate,
        "batch_size": options.batch_size,
        "poolings": options.poolings,
        "seeds": options.seeds,
        "train_rows": len(train.rows),
        "test_rows": len(test.rows),
        "threads": torch.get_num_threads(),
        "rows": [],
    }
    logging.disable()  # of layers that a checkpoint has no place for
    for seed in options.seeds:
        for pooling in options.poolings:
            for world, run in WORLDS.items():
                with tempfile.TemporaryDirectory() as folder:
                    start, out = Path(folder, "start"), Path(folder, "out")
                    save_start(
                        "all-MiniLM-L6-v2", start, train.labels, seed
                    )
                    settings = settings_of(options, start, seed)
                    task = Classification(train.labels, pooling=pooling)
                    accuracy = run(settings, task, train, test, out)
                row = {"world": world, "pooling": pooling, "seed": seed}
                facts["rows"].append(row | {"accuracy": accuracy})
                print(facts["rows"][-1], flush=True)
                record_run(options.record, facts)


if __name__ == "__main__":
    main()
