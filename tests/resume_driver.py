"""Pretrains a tiny BERT in a process of its own, which tests put to death.

As a script: resume_driver.py OUT TEXT OPTIONS, the options of `train` in
JSON. It ends with status 1 and one sentence where the run is refused.
"""

import hashlib
import json
import logging
import os
import resource
import signal
import sys
from functools import partial
from pathlib import Path

import torch

from bertbook import pretraining, run_loop
from bertbook.config import BertConfig
from bertbook.masking import Masking
from bertbook.objectives import Pretraining
from bertbook.optimization import Length, Optimization
from bertbook.token_files import PackedRows, TokenFiles
from bertbook.tokenizer import BertTokenizer

SEQ, STEPS, SAVE_EVERY, EVALUATE_EVERY = 16, 30, 3, 7


def make_settings(vocab_size, model=None, optimization=None, **changes):
    """Dropout, falling rates of masks and steps, parts, two optimizers."""
    sizes = dict(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=SEQ,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    changes = dict(steps=STEPS, dtype="float32", seed=0) | changes
    return Pretraining(
        BertConfig(**sizes | (model or {})),
        Length(steps=changes.pop("steps")),
        seq_length=SEQ,
        batch_size=8,
        accumulation=changes.pop("accumulation", 2),
        masking=Masking(rate=0.3),
        optimization=Optimization(**optimization or {}),
        evaluate_every=EVALUATE_EVERY,
        **changes,
    )


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_before_change(out, number):
    """Kill this process before change `number` of the files in `out`.

    Counts what Python asks the system: files opened to be written, moved,
    linked, cut and deleted, folders made and deleted. Returns the count.
    """
    changes = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"}
    changes |= {"os.truncate", "shutil.copyfile"}
    made = [0]

    def watch(event, arguments):
        if event == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in changes:
            path = arguments[0]
        else:
            return
        if isinstance(path, (str, os.PathLike)) and str(path).startswith(
            str(out)
        ):
            made[0] += 1
            if made[0] == number:
                die()

    sys.addaudithook(watch)
    return made


def watch_steps(out, at, act):
    """Write down which rows each step reads; `act` in the midst of `at`."""
    usual = pretraining.make_parts

    def make_parts(run, rows, pieces, epoch, examples, done):
        step = run.progress.step + 1
        rows_read = hashlib.sha256(examples.tobytes()).hexdigest()[:16]
        with open(f"{out}.order", "a") as file:
            file.write(f"{step} {epoch} {rows_read}\n")
        if step == at:
            act_before_second_part(run.objective, act)
        return usual(run, rows, pieces, epoch, examples, done)

    pretraining.make_parts = make_parts


def act_before_second_part(objective, act):
    calls = []

    def hook(module, arguments):
        calls.append(module)
        if len(calls) == 2:
            act()

    objective.register_forward_pre_hook(hook)


def limit_files(size):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def fill_disk(out):
    with open(Path(out, "ballast"), "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def signal_twice(kind):
    os.kill(os.getpid(), kind)
    os.kill(os.getpid(), kind)


def train(
    out,
    text,
    resume=False,
    at=0,
    act=None,
    argument=None,
    die_at=0,
    save_every=SAVE_EVERY,
    rows_seed=0,
    **changes,
):
    """Train in `out`; `act`, by name, happens in the middle of step `at`."""
    torch.set_num_threads(1)
    actions = {
        None: lambda: None,
        "die": die,
        "limit": partial(limit_files, argument),
        "fill": partial(fill_disk, out),
        "signal": partial(os.kill, os.getpid(), argument),
        "signal twice": partial(signal_twice, argument),
    }
    # A job in the background may have been told to ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    watch_steps(out, at, actions[act])
    if act == "signal twice":
        usual = run_loop.deferred_interrupt
        run_loop.deferred_interrupt = partial(usual, apart=0.0)
    made = die_before_change(out, die_at)
    tokenizer = BertTokenizer(Path(text, "vocab.txt"))
    train_rows, held_out = (
        PackedRows(TokenFiles(Path(text, name)), SEQ, tokenizer, seed)
        for name, seed in (("train", rows_seed), ("held_out", 0))
    )
    settings = make_settings(tokenizer.vocab_size, **changes)
    pretraining.pretrain(
        settings,
        train_rows,
        held_out,
        tokenizer,
        out,
        resume=resume,
        save_every=save_every,
    )
    return made[0]


def train_aside(out, text, options):
    """`train` for a process without a terminal: it speaks in a file."""
    sys.stderr = open(f"{out}.said", "w")
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    main(out, text, options)


def main(out, text, options):
    try:
        print(train(out, text, **options))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    main(*sys.argv[1:3], json.loads(sys.argv[3]))
