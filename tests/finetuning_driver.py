"""Fine-tunes a tiny BERT in a process of its own, which tests put to death.

`make_start` writes the model to begin with; `train` is the run.
"""

import hashlib
import json
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from resume_driver import die, die_before_change, limit_files

from bertbook import finetuning
from bertbook.classification import Classification
from bertbook.config import BertConfig
from bertbook.heads import BertForPreTraining
from bertbook.labelled_data import Labelled
from bertbook.optimization import Optimization
from bertbook.tokenizer import BertTokenizer

LABELS = ("bad", "good")
GOOD, BAD = "fine fun good kind new warm".split(), "dull flat odd".split()
OTHER = "a and film is it no not of so the very was".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS, BATCH, STEPS, SAVE_EVERY, EVALUATE_EVERY = 50, 4, 33, 3, 7
EPOCHS = 2.5  # of 13 batches


class Rows(dict):
    """Columns of a data set, without the library that holds them."""

    column_names = property(list)


def make_data(count, seed):
    """Random texts of two to twelve words, good where one is."""
    draw, rows = np.random.default_rng(seed), {"text": [], "label": []}
    for number in range(count):
        words = list(draw.choice(OTHER, draw.integers(1, 11)))
        label = number % 2
        words.append(draw.choice(GOOD if label else BAD))
        rows["text"].append(" ".join(draw.permutation(words)))
        rows["label"].append(label)
    return Labelled(Rows(rows), LABELS)


def make_start(folder, **changes):
    """Write a model with dropout, drawn and not trained."""
    words = [*SPECIAL, *GOOD, *BAD, *OTHER]
    tokenizer = BertTokenizer({w: n for n, w in enumerate(words)})
    sizes = dict(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    torch.manual_seed(0)
    model = BertForPreTraining(BertConfig(**sizes | changes))
    form = "published" if model.config.is_published else "bertbook"
    model.save_pretrained(folder, tokenizer=tokenizer, format=form)
    return str(folder)


def make_settings(start, optimization=None, **changes):
    """Settings under which dropout, buckets and evaluations matter."""
    chosen = dict(
        optimizer="adamw",
        learning_rate=0.01,
        betas=(0.9, 0.999),
        warmup=0.1,
    )
    usual = dict(
        epochs=EPOCHS,
        batch_size=BATCH,
        max_length=12,
        evaluate_every=EVALUATE_EVERY,
    )
    return finetuning.Finetuning(
        "classify",
        str(start),
        optimization=Optimization(**chosen | (optimization or {})),
        **usual | changes,
    )


def watch_steps(out, at, act):
    """Write down what each step reads; `act` in the midst of step `at`."""
    usual = finetuning.finetuning_step

    def finetuning_step(run, features, *rest):
        step = run.progress.step + 1
        read = hashlib.sha256(json.dumps(features).encode()).hexdigest()
        with open(f"{out}.order", "a") as file:
            file.write(f"{step} {read[:16]}\n")
        if step == at:  # with a loss, before its gradient
            run.objective.register_forward_hook(lambda *_: act())
        return usual(run, features, *rest)

    finetuning.finetuning_step = finetuning_step


def fail():
    raise SystemError("a fault of the machine")


def train(
    out,
    start,
    resume=False,
    at=0,
    act=None,
    argument=None,
    die_at=0,
    save_every=SAVE_EVERY,
    data_seed=0,
    pooling="mean",
    **changes,
):
    """Fine-tune in `out`; `act`, by name, happens in the midst of `at`."""
    torch.set_num_threads(1)
    actions = {
        None: lambda: None,
        "die": die,
        "fail": fail,
        "limit": partial(limit_files, argument),
        "signal": partial(os.kill, os.getpid(), argument),
    }
    # A job in the background may have been told to ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    watch_steps(out, at, actions[act])
    made = die_before_change(out, die_at)
    finetuning.finetune(
        make_settings(start, **changes),
        Classification(LABELS, pooling=pooling),
        make_data(TEXTS, data_seed),
        make_data(20, 1),
        BertTokenizer.from_pretrained(start),
        out,
        resume=resume,
        save_every=save_every,
    )
    return made[0]


def train_aside(out, start, options):
    """`train` for a process without a terminal: it speaks in files."""
    sys.stderr = open(f"{out}.said", "w")
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    try:
        made = train(out, start, **options)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    Path(f"{out}.made").write_text(str(made))
