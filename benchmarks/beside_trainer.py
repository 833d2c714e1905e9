"""Record two trainers on the same text for the same time.

    python benchmarks/beside_trainer.py --minutes 10
    python benchmarks/beside_trainer.py --minutes 10 --only "Trainer, tuned"

This book's pretraining, and the Trainer of transformers with its defaults
and tuned, train BERT-mini on IMDb by the same tokenizer. All are examined
about every half minute on the same held-out rows with the same masks, and
no examination counts on a clock. Ours and the tuned one keep freed memory.

Writes book/results/beside_trainer.json; with `--only` some runs are made,
and others of the same length stay as they are recorded.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from bertbook import pretraining
from bertbook.config import PRESETS
from bertbook.losses import IGNORED
from bertbook.masking import Pieces
from bertbook.objectives import Pretraining, summed_loss
from bertbook.optimization import Length, warmup_linear
from bertbook.pretraining_text import learn_tokenizer, prepare_text
from bertbook.reproducibility import kept, read_run, record_run
from bertbook.run_folder import (
    keep_freed_memory,
    settings_of,
    small_budget,
)
from bertbook.side_by_side import (
    count_tokens,
    make_trainer,
    rows_for_trainer,
)
from bertbook.token_files import PackedRows
from bertbook.training_loop import evaluating, read_log

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "results" / "beside_trainer.json"
HALF_A_MINUTE = 30.0
LENGTH = Pretraining.seq_length


def train_ours(text, preset, minutes, evaluate_every):
    """This book's pretraining; its examinations turn its clock back."""
    examine = pretraining.examine

    def examine_off_the_clock(run, *rest):
        start = time.perf_counter()
        found = examine(run, *rest)
        run.began += time.perf_counter() - start
        return found

    size = len(text.tokenizer.get_vocab())
    settings = Pretraining(
        small_budget(preset, size),
        Length(minutes=minutes),
        evaluate_every=evaluate_every,
    )
    packed = [
        PackedRows(files, LENGTH, text.tokenizer)
        for files in (text.train, text.held_out)
    ]
    pretraining.examine = examine_off_the_clock
    with tempfile.TemporaryDirectory() as out:
        run = pretraining.pretrain(
            settings, *packed, text.tokenizer, out, save_every=10**9
        )
        records = read_log(Path(out) / "log.jsonl")
    pretraining.examine = examine
    points = [
        {
            "seconds": record.get("seconds", run.progress.seconds),
            "tokens": record.get("tokens", run.progress.tokens),
            "loss": record["held_out_loss"],
        }
        for record in records
        if "held_out_loss" in record
    ]
    points[0] |= {"seconds": 0.0, "tokens": 0}
    return {"settings": settings_of(run.settings), "points": points}


def evaluate_theirs(model, exam):
    """The mean loss of `evaluate_masked`, of a model of transformers."""
    total, count = 0.0, 0
    with evaluating(model):
        for batch in exam:
            hidden = model.bert(batch["input_ids"]).last_hidden_state
            rows = torch.arange(len(hidden))[:, None]
            scores = model.cls(hidden[rows, batch["positions"]])
            labels = batch["labels"].flatten()
            total += summed_loss(scores.flatten(0, 1), labels).item()
            count += int((labels != IGNORED).sum())
    return total / count


class Course:
    """The clock of a Trainer: it examines, sets the rate, and ends it."""

    def __init__(self, minutes, warmup, exam):
        self.limit, self.warmup, self.exam = 60 * minutes, warmup, exam
        self.seconds, self.tokens, self.points = 0.0, [], []

    def callback(self):
        return {
            "on_train_begin": lambda _, *a, **k: self.begin(**k),
            "on_step_end": lambda _, *a, **k: self.end_step(*a, **k),
        }

    def begin(self, model, lr_scheduler, **rest):
        lambdas = lr_scheduler.lr_lambdas
        lr_scheduler.lr_lambdas = [self.rate for _ in lambdas]
        for group in lr_scheduler.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.rate(0)
        self.examine(model)
        self.last = time.perf_counter()

    def rate(self, step):
        return warmup_linear(self.seconds / self.limit, self.warmup)

    def end_step(self, args, state, control, model, **rest):
        now = time.perf_counter()
        self.seconds += now - self.last
        control.should_training_stop = self.seconds >= self.limit
        due = self.points[-1]["seconds"] + HALF_A_MINUTE
        if control.should_training_stop or self.seconds >= due:
            self.examine(model)
        self.last = time.perf_counter()

    def examine(self, model):
        point = {"seconds": self.seconds, "tokens": sum(self.tokens)}
        point["loss"] = evaluate_theirs(model, self.exam)
        self.points.append(point)


TRAINERS = {
    "Trainer": dict(warmup=0.0),
    "Trainer, tuned": dict(
        warmup=0.05,
        per_device_train_batch_size=64,
        learning_rate=1e-3,
        weight_decay=0.01,
        bf16=True,
    ),
}


def train_theirs(text, preset, minutes, warmup, **arguments):
    """`Trainer.train()` until its own steps have taken `minutes`."""
    held_out = PackedRows(text.held_out, LENGTH, text.tokenizer)
    exam = pretraining.make_exam(held_out, Pieces.of(text.tokenizer), "cpu")
    course = Course(minutes, warmup, exam)
    size = len(text.tokenizer.get_vocab())
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            replace(PRESETS[preset], vocab_size=size),
            rows_for_trainer(text, "packed", LENGTH),
            text.tokenizer,
            folder,
            course.callback(),
            max_steps=10**6,
            **arguments,
        )
        course.tokens = count_tokens(trainer)
        trainer.train()
    settings = arguments | {"warmup": warmup}
    return {"settings": settings, "points": course.points}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--minutes", type=float, default=10)
    add("--preset", default="mini")
    add("--evaluate-every", type=int, default=100, help="steps, for ours")
    add("--only", nargs="+", choices=["bertbook", *TRAINERS])
    add("--record", default=RECORD)
    options = parser.parse_args()
    text = prepare_text("imdb", kept("imdb-8192"), learn_tokenizer("imdb"))
    facts = {"minutes": options.minutes, "preset": options.preset}
    facts |= {"threads": torch.get_num_threads(), "curves": {}}
    if options.only:
        before = read_run(options.record)["metrics"]
        if all(facts[k] == before[k] for k in facts if k != "curves"):
            facts["curves"] = before["curves"]
    names = options.only or ["bertbook", *TRAINERS]
    for name in sorted(names, key=lambda name: name != "Trainer"):
        course = text, options.preset, options.minutes
        if name != "Trainer":  # which is first: it cannot be undone
            keep_freed_memory()
        if name == "bertbook":
            curve = train_ours(*course, options.evaluate_every)
        else:
            curve = train_theirs(*course, **TRAINERS[name])
        print(name, curve["points"][-1], flush=True)
        facts["curves"][name] = curve
        record_run(options.record, facts)


if __name__ == "__main__":
    main()
