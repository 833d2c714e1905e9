"""Real processes under torchrun against one process."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertbook.config import BertConfig
from bertbook.objectives import Pretraining
from bertbook.optimization import Length, Optimization
from bertbook.pretraining import pretrain
from bertbook.ranks import (
    Rank,
    any_says,
    check_shares,
    first_does,
    first_says,
    share_of,
    sum_over_ranks,
    together,
)
from bertbook.token_files import PackedRows, write_token_files
from bertbook.tokenizer import BertTokenizer
from bertbook.training_loop import read_log
from bertbook.training_state import load_state

ROOT = Path(__file__).resolve().parent.parent
STEPS, STOPPED = 24, 9

# BERT's epsilon: with 1e-8, what AdamW makes of a gradient that is nothing
# but rounding (that of the keys' bias) is as long as any other step.
SETTINGS = Pretraining(
    BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ),
    Length(steps=STEPS),
    seq_length=16,
    batch_size=7,  # in two parts of 4 and 3: unequal shares
    accumulation=2,
    optimization=Optimization(
        optimizer="adamw", learning_rate=1e-3, eps=1e-6
    ),
    dtype="float32",
    evaluate_every=8,
)


class Watched(PackedRows):
    """Rows that remember who was asked for, and act at one of the steps."""

    def __init__(self, files, tokenizer):
        super().__init__(files, SETTINGS.seq_length, tokenizer)
        self.asked, self.act, self.at = [], None, None

    def rows(self, epoch, examples):
        if len(examples) > SETTINGS.batch_size:
            return super().rows(epoch, examples)  # of an examination
        self.asked.append([epoch, *map(int, examples)])
        if self.at and len(self.asked) == SETTINGS.accumulation * self.at:
            self.act()
        return super().rows(epoch, examples)


def tokenizer():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [f"w{number}" for number in range(59)]
    return BertTokenizer({w: i for i, w in enumerate(special + words)})


def write_text(folder):
    draw = np.random.default_rng(0)
    for name, count in (("train", 60), ("held_out", 8)):
        texts = [
            " ".join(f"w{n}" for n in draw.integers(59, size=20))
            for _ in range(count)
        ]
        write_token_files(texts, tokenizer(), folder / name, shard_size=25)


def train(folder, name, stop=False, resume=False, settings=SETTINGS):
    """One run; a stopped one gets a signal in the last of its processes."""
    from bertbook.ranks import this_rank
    from bertbook.token_files import TokenFiles

    rows = Watched(TokenFiles(folder / "train"), tokenizer())
    rank = this_rank()
    if stop and rank.number == rank.size - 1:
        rows.at = STOPPED
        rows.act = lambda: os.kill(os.getpid(), signal.SIGINT)
    held_out = Watched(TokenFiles(folder / "held_out"), tokenizer())
    run = pretrain(
        settings,
        rows,
        held_out,
        tokenizer(),
        folder / name,
        resume=resume,
        save_every=6,
        samples=[],
    )
    (folder / f"{name}-{rank.number}.json").write_text(
        json.dumps(rows.asked)
    )
    torch.save(
        run.objective.model.state_dict(),
        folder / f"{name}-{rank.number}.pt",
    )
    return run


def launch(folder, what, processes=2, **options):
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += ["--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    program = folder / f"run_{what}.py"
    program.write_text(f"import test_ranks as t\nt.{what}()\n")
    return subprocess.Popen(
        [*command, str(program)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process):
    """The exit status and what was said; three minutes would be a hang."""
    try:
        out, err = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


# What the processes run, in the folder of the text.


def both_kinds():
    folder = Path.cwd()
    with together():
        train(folder, "two")
        train(folder, "stopped_by_two", stop=True)
        train(folder, "stopped_alone", resume=True)


def numbers():
    with together() as rank:
        told = {
            "rank": rank,
            "sum": sum_over_ranks({"a": rank.number + 1, "b": 0.5}),
            "first": first_says([rank.number + 3.0, float("inf")]),
            "any": [any_says(rank.number == 1), any_says(False)],
        }
        path = Path("prepared")
        first_does(lambda: (time.sleep(0.5), path.write_text("text")))
        told["found"] = path.read_text()
        Path(f"told-{rank.number}.json").write_text(json.dumps(told))


def one_fails():
    folder = Path.cwd()
    with together() as rank:

        def fail():
            raise RuntimeError("the second process lost its disk")

        from bertbook.token_files import TokenFiles

        rows = Watched(TokenFiles(folder / "train"), tokenizer())
        if rank.number == 1:
            rows.at, rows.act = 3, fail
        held_out = Watched(TokenFiles(folder / "held_out"), tokenizer())
        pretrain(
            SETTINGS,
            rows,
            held_out,
            tokenizer(),
            folder / "failed",
            samples=[],
        )


def first_fails():
    with together():
        first_does(lambda: 1 / 0)
        Path("went_on").touch()


def too_few_rows():
    with together():
        small = replace(SETTINGS, batch_size=3)
        train(Path.cwd(), "small", settings=small)


def endless():
    with together():
        long = replace(SETTINGS, length=Length(steps=10**6))
        train(Path.cwd(), "endless", settings=long)


def slow_second():
    """The second process looks late whether the folder is free."""
    with together() as rank:
        if rank.number == 1:
            end = time.monotonic() + 1
            while time.monotonic() < end and not Path("late").exists():
                time.sleep(0.01)
        few = replace(SETTINGS, length=Length(steps=1))
        train(Path.cwd(), "late", settings=few)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One run alone, one stopped and continued by two, and the reverse."""
    folder = tmp_path_factory.mktemp("ranks")
    write_text(folder)
    train(folder, "alone")
    train(folder, "stopped_alone", stop=True)
    assert load_state(folder / "stopped_alone/checkpoints")[1]["step"] == 9
    status, _, err = finish(launch(folder, "both_kinds"))
    assert status == 0, err
    state = load_state(folder / "stopped_by_two/checkpoints")
    assert state[1]["step"] == STOPPED  # the second one's wish was heard
    train(folder, "stopped_by_two", resume=True)
    return folder


@pytest.mark.parametrize("name", ["two", "stopped_alone", "stopped_by_two"])
def test_any_number_of_processes_trains_one_model(folder, name):
    expected = torch.load(folder / "alone-0.pt")
    found = torch.load(folder / f"{name}-0.pt")
    assert found.keys() == expected.keys()
    moved = 0.0
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-6)
        moved = max(moved, tensor.abs().max().item())
    assert moved > 0.1

    logs = [
        read_log(folder / each / "log.jsonl") for each in ("alone", name)
    ]
    assert [each["step"] for each in logs[1]] == list(range(STEPS + 1))
    losses = [each["loss"] for each in logs[0][1:]]
    assert losses[-1] < losses[0] - 0.01  # it has learned something
    for alone, many in zip(*logs):
        assert alone.keys() == many.keys()
        for key in alone.keys() - {"seconds"}:
            assert many[key] == pytest.approx(alone[key], abs=1e-6), key


def test_processes_hold_the_same_bits(folder):
    for name in ("two", "stopped_alone"):
        first, second = (
            torch.load(folder / f"{name}-{number}.pt") for number in (0, 1)
        )
        for key in first:
            assert torch.equal(first[key], second[key]), key


def test_rows_are_shared_in_one_order(folder):
    alone = json.loads((folder / "alone-0.json").read_text())
    shares = [
        json.loads((folder / f"two-{number}.json").read_text())
        for number in (0, 1)
    ]
    assert len(alone) == len(shares[0]) == len(shares[1]) == 2 * STEPS
    for whole, first, second in zip(alone, *shares):
        assert whole[0] == first[0] == second[0]  # the epoch
        assert whole[1:][0::2] == first[1:]
        assert whole[1:][1::2] == second[1:]
    assert {len(share) - 1 for share in shares[1]} == {2, 1}  # unequal
    assert alone[-1][0] > 0  # over the end of an epoch

    resumed = json.loads((folder / "stopped_by_two-0.json").read_text())
    assert resumed == alone[2 * STOPPED :]


def test_sums_decisions_and_turns(tmp_path):
    status, _, err = finish(launch(tmp_path, "numbers", processes=3))
    assert status == 0, err
    for number in range(3):
        path = tmp_path / f"told-{number}.json"
        assert json.loads(path.read_text()) == {
            "rank": [number, 3],
            "sum": {"a": 6.0, "b": 1.5},
            "first": [3.0, float("inf")],
            "any": [True, False],
            "found": "text",
        }


def test_a_folder_is_not_taken_by_its_own_run(tmp_path):
    write_text(tmp_path)
    status, _, err = finish(launch(tmp_path, "slow_second"))
    assert status == 0, err


@pytest.mark.parametrize(
    "what, said",
    [
        ("one_fails", "the second process lost its disk"),
        ("first_fails", "ZeroDivisionError"),
        ("too_few_rows", "batch_size=3 in 2 parts for 2 processes"),
    ],
)
def test_no_process_waits_for_one_that_failed(tmp_path, what, said):
    write_text(tmp_path)
    status, _, err = finish(launch(tmp_path, what))
    assert status != 0 and said in err
    assert not (tmp_path / "went_on").exists()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_of_torchrun_saves(tmp_path, kind):
    write_text(tmp_path)
    process = launch(tmp_path, "endless")
    log = tmp_path / "endless" / "log.jsonl"
    while process.poll() is None:
        if log.exists() and len(read_log(log)) > 8:
            break
        time.sleep(0.05)
    process.send_signal(kind)
    finish(process)
    assert (tmp_path / "endless-1.json").exists()  # the other ended too
    step = load_state(tmp_path / "endless/checkpoints")[1]["step"]
    assert step == read_log(log)[-1]["step"] >= 8
    assert (
        step
        == len(json.loads((tmp_path / "endless-1.json").read_text()))
        / SETTINGS.accumulation
    )


@given(st.lists(st.integers()), st.integers(1, 9))
def test_shares_are_a_partition(rows, size):
    shares = [share_of(rows, Rank(number, size)) for number in range(size)]
    assert sorted(sum(shares, [])) == sorted(rows)
    lengths = [len(share) for share in shares]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] - lengths[-1] <= 1


@given(st.integers(1, 40), st.integers(1, 40))
def test_shares_are_refused_where_one_is_empty(rows, parts):
    empty = any(len(p) == 0 for p in np.array_split(np.arange(rows), parts))
    if empty:
        with pytest.raises(
            ValueError, match=f"batch_size={rows} in {parts}"
        ):
            check_shares(rows, parts)
    else:
        check_shares(rows, parts)
