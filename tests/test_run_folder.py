"""Opening, saving and refusing runs in folders of every condition."""

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from bertbook import run_folder
from bertbook.config import BertConfig
from bertbook.heads import BertForMaskedLM, BertForPreTraining
from bertbook.objectives import Pretraining
from bertbook.optimization import Length, Optimization
from bertbook.ranks import Rank
from bertbook.run_folder import (
    Progress,
    describe_data,
    new_objective,
    open_run,
    save_run,
    settings_of,
    sinusoidal_positions,
    small_budget,
    start_run,
)

TINY = BertConfig(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=24,
)
SETTINGS = Pretraining(TINY, Length(steps=10), seq_length=16, batch_size=4)


def train_a_little(run, steps):
    for _ in range(steps):
        torch.manual_seed(run.progress.step)
        for weight in run.objective.parameters():
            weight.grad = torch.randn_like(weight)
        for optimizer in run.optimizers:
            optimizer.step()
        run.progress.step += 1


def begin(out, settings=SETTINGS, steps=3):
    """A run in `out` with a state after `steps`, and its log."""
    with open_run(start_run(settings), out) as run:
        records = [json.dumps({"step": step}) for step in range(steps + 1)]
        (out / "log.jsonl").write_text("\n".join(records) + "\n")
        train_a_little(run, steps)
        save_run(run, out)
    return run


def refused(error, settings, out, **options):
    """The sentence of the refusal; nothing in the folder has changed."""
    before = contents(out)
    with pytest.raises(error) as caught:
        with open_run(start_run(settings), out, **options):
            pass
    assert contents(out) == before
    said = str(caught.value)
    assert "\n" not in said and len(said) < 600
    return said


def contents(out):
    if not out.is_dir():
        return out.exists()
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in out.rglob("*")
    }


@pytest.mark.parametrize("width", [2, 7, 32, 33])
def test_positions_are_the_papers(width):
    """The formula by NumPy, column by column; odd widths lose a cosine."""
    table = nn.Parameter(torch.empty(50, width))
    sinusoidal_positions(table, size=math.sqrt(0.5))
    place = np.arange(50)[:, None]
    column = np.arange(width)[None, :]
    angle = place / 10000 ** (2 * (column // 2) / width)
    wanted = np.where(column % 2, np.cos(angle), np.sin(angle))
    np.testing.assert_allclose(table.detach(), wanted, atol=2e-5)
    assert table.requires_grad


def test_each_objective_has_its_model():
    assert type(new_objective(SETTINGS).model) is BertForMaskedLM
    pairs = replace(SETTINGS, objective="mlm+nsp")
    assert type(new_objective(pairs).model) is BertForPreTraining


def test_the_weights_do_not_depend_on_what_was_drawn_before():
    torch.manual_seed(5)
    first = new_objective(SETTINGS).state_dict()
    torch.rand(17)
    again = new_objective(SETTINGS).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_initial_weights_come_from_a_folder(tmp_path):
    model = new_objective(replace(SETTINGS, seed=3)).model
    model.save_pretrained(tmp_path / "first")
    settings = replace(SETTINGS, initial=str(tmp_path / "first"))
    objective = new_objective(settings)
    for name, value in model.state_dict().items():
        assert torch.equal(objective.model.state_dict()[name], value), name
    assert all(module.training for module in objective.modules())
    with pytest.raises(ValueError, match="hidden|shape"):
        larger = replace(TINY, hidden_size=32)
        new_objective(replace(settings, model=larger))


def test_a_small_budget_has_no_dropout_unless_asked():
    assert small_budget("tiny", 99).attention_probs_dropout_prob == 0
    assert small_budget("tiny", 99, hidden_dropout_prob=0.1) != (
        small_budget("tiny", 99)
    )


def test_a_run_is_opened_where_it_was_left(tmp_path):
    out = tmp_path / "a" / "b"
    run = begin(out)
    with open_run(start_run(SETTINGS), out, resume=True) as again:
        assert again.progress == run.progress
        assert again.progress.records == 4
        train_a_little(run, 2)
        train_a_little(again, 2)
        for one, other in zip(
            run.objective.parameters(), again.objective.parameters()
        ):
            assert torch.equal(one, other)


def test_the_clock_goes_on_from_where_it_was(tmp_path):
    settings = replace(SETTINGS, length=Length(minutes=10))
    with open_run(start_run(settings), tmp_path / "run") as run:
        run.began -= 120
        assert 0.2 <= run.done() < 0.25
        save_run(run, tmp_path / "run")
    with open_run(
        start_run(settings), tmp_path / "run", resume=True
    ) as run:
        assert 0.2 <= run.done() < 0.25


def test_settings_survive_json():
    """Tuples, infinities that are None, nested and frozen values."""
    settings = replace(
        SETTINGS,
        optimization=Optimization(betas=(0.8, 0.9), clip_norm=None),
    )
    kept = settings_of(settings)
    assert json.loads(json.dumps(kept)) == kept
    assert kept["optimization"]["betas"] == [0.8, 0.9]
    assert kept["model"]["vocab_size"] == 60
    assert set(kept) == set(asdict(settings))


@pytest.mark.parametrize(
    "name", ["log.jsonl", "model.safetensors", "config.json", "checkpoints"]
)
def test_a_new_run_overwrites_nothing(tmp_path, name):
    """Also where there was never a run: a model of somebody's."""
    (tmp_path / name).write_text("precious")
    said = refused(FileExistsError, SETTINGS, tmp_path)
    assert name in said and "--resume" in said and "--out" in said


def test_a_folder_with_other_things_is_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "data").mkdir()
    begin(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_killed_before_its_first_state_begins_again(tmp_path, resume):
    """After run.json there may be nothing, or half of another file."""
    with open_run(start_run(SETTINGS), tmp_path) as run:
        weights = run.objective.state_dict()
    (tmp_path / "run.json.abcd1234").write_text("{")
    (tmp_path / "log.jsonl.abcd_234").write_text("{")
    if resume:
        (tmp_path / "log.jsonl").write_text('{"step": 0}\n{"ste')
    with open_run(start_run(SETTINGS), tmp_path, resume=resume) as again:
        assert again.progress == Progress()
        for name, value in again.objective.state_dict().items():
            assert torch.equal(weights[name], value)
    left = {"run.json", "log.jsonl"} if resume else {"run.json"}
    assert {path.name for path in tmp_path.iterdir()} == left
    if resume:
        assert (tmp_path / "log.jsonl").read_bytes() == b""


def test_a_run_that_never_began_may_begin_with_other_settings(tmp_path):
    with open_run(start_run(SETTINGS), tmp_path):
        pass
    other = replace(SETTINGS, seed=9)
    with open_run(start_run(other), tmp_path):
        pass
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept == settings_of(other)


def test_resume_without_a_run(tmp_path):
    said = refused(FileNotFoundError, SETTINGS, tmp_path, resume=True)
    assert "no run.json" in said
    missing = tmp_path / "missing"
    refused(FileNotFoundError, SETTINGS, missing, resume=True)
    assert not missing.exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe\x00", b'"text"']
)
def test_a_damaged_description_is_one_sentence(tmp_path, content):
    begin(tmp_path)
    (tmp_path / "run.json").write_bytes(content)
    said = refused(ValueError, SETTINGS, tmp_path, resume=True)
    assert "run.json is damaged" in said


def test_every_field_that_differs_is_named(tmp_path):
    begin(tmp_path)
    other = replace(
        SETTINGS,
        seed=1,
        model=replace(TINY, hidden_size=32),
        data="text 1 and 2",
        patience=4,
    )
    said = refused(ValueError, other, tmp_path, resume=True)
    for name in ("seed", "model.hidden_size", "data", "patience"):
        assert f"{name} is " in said
    assert said.count(" there and ") == 4


def test_a_description_of_another_version_names_its_fields(tmp_path):
    """A field that was added, and one that was dropped since."""
    begin(tmp_path)
    path = tmp_path / "run.json"
    kept = json.loads(path.read_text())
    del kept["positions"]
    path.write_text(json.dumps(kept | {"old": 1}))
    said = refused(ValueError, SETTINGS, tmp_path, resume=True)
    assert "positions is absent there" in said
    assert "old is 1 there and absent here" in said


def test_a_state_of_another_version_is_one_sentence(tmp_path):
    run = begin(tmp_path)
    facts = asdict(run.progress) | {"phase": 2}
    with mock.patch.object(run_folder, "asdict", return_value=facts):
        run.progress.step += 1
        save_run(run, tmp_path)
    said = refused(ValueError, SETTINGS, tmp_path, resume=True)
    assert "another version of bertbook" in said


def test_a_state_of_another_model_is_one_sentence(tmp_path):
    begin(tmp_path / "here")
    larger = replace(SETTINGS, model=replace(TINY, hidden_size=32))
    begin(tmp_path / "there", larger, steps=5)
    foreign = next((tmp_path / "there" / "checkpoints").iterdir())
    os.replace(foreign, tmp_path / "here/checkpoints" / foreign.name)
    said = refused(ValueError, SETTINGS, tmp_path / "here", resume=True)
    assert "of shape (32,), and the model (16,)" in said


def test_the_output_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    said = refused(OSError, SETTINGS, path)
    assert "cannot be made a folder (File exists)" in said
    said = refused(OSError, SETTINGS, path / "below")
    assert "cannot be made a folder (Not a directory)" in said
    refused(FileNotFoundError, SETTINGS, path, resume=True)


@pytest.fixture
def read_only():
    """A folder with a run and an empty one, and a user who may only read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "empty").mkdir()
        begin(folder / "run")
        folders = [folder, folder / "run/checkpoints", *folder.iterdir()]
        for each in folders:
            each.chmod(0o555)
        if os.geteuid() == 0:  # who may write anywhere
            os.seteuid(65534)
            yield folder
            os.seteuid(0)
        else:
            yield folder
        for each in folders:
            each.chmod(0o755)


def test_no_right_to_write(read_only):
    said = refused(OSError, SETTINGS, read_only / "new")
    assert "cannot be made a folder (Permission denied)" in said
    said = refused(OSError, SETTINGS, read_only / "empty")
    assert "run.json" in said and "Permission denied" in said
    assert "no state was saved" in said
    with pytest.raises(OSError) as caught:
        with open_run(
            start_run(SETTINGS), read_only / "run", resume=True
        ) as run:
            run.progress.step += 1
            save_run(run, read_only / "run")
    assert "Permission denied" in str(caught.value)
    assert "step-00000003.safetensors is as it was" in str(caught.value)


def test_a_second_opening_is_refused_while_the_first_lasts(tmp_path):
    begin(tmp_path)
    with open_run(start_run(SETTINGS), tmp_path, resume=True):
        said = refused(BlockingIOError, SETTINGS, tmp_path, resume=True)
        assert "another process" in said
    with open_run(start_run(SETTINGS), tmp_path, resume=True):
        pass


def test_a_refusal_gives_the_lock_back(tmp_path):
    begin(tmp_path)
    other = replace(SETTINGS, model=replace(TINY, hidden_size=32))
    errors = []
    for settings, resume in ((SETTINGS, False), (other, True)):
        try:
            with open_run(start_run(settings), tmp_path, resume):
                pass
        except (OSError, ValueError) as error:
            errors.append(error)  # with its frames
    with open_run(start_run(SETTINGS), tmp_path, resume=True):
        assert len(errors) == 2


def test_errors_of_the_block_pass(tmp_path):
    with pytest.raises(FloatingPointError, match="^the loss$"):
        with open_run(start_run(SETTINGS), tmp_path):
            raise FloatingPointError("the loss")


@pytest.mark.parametrize("resume", [True, False])
def test_other_ranks_read_and_do_not_write(tmp_path, monkeypatch, resume):
    """Whether they come before the first process or after it."""
    if resume:
        begin(tmp_path)
    monkeypatch.setattr(run_folder, "this_rank", lambda: Rank(1, 2))
    before = contents(tmp_path)
    with open_run(start_run(SETTINGS), tmp_path, resume) as run:
        assert run.progress.step == (3 if resume else 0)
        save_run(run, tmp_path)
    assert contents(tmp_path) == before
    monkeypatch.undo()
    if not resume:
        with open_run(start_run(SETTINGS), tmp_path):
            monkeypatch.setattr(run_folder, "this_rank", lambda: Rank(1, 2))
            with open_run(start_run(SETTINGS), tmp_path):
                pass


class Rows:
    """A source of rows that are what `numbers` says."""

    def __init__(self, numbers, digest="1"):
        self.numbers = np.array(numbers)
        self.files = mock.Mock(digest=digest)

    def count(self, epoch):
        return len(self.numbers)

    def rows(self, epoch, examples):
        return {"input_ids": self.numbers[examples]}


def test_data_that_differ_are_described_differently():
    def describe(rows=(1, 2, 3), exam=(4, 5), digest="1", vocab=("a", "b")):
        tokenizer = mock.Mock()
        tokenizer.get_vocab.return_value = dict(zip(vocab, range(9)))
        return describe_data(Rows(rows, digest), Rows(exam), tokenizer)

    described = [
        describe(),
        describe(rows=(1, 2, 4)),
        describe(rows=(2, 1, 3)),
        describe(exam=(4, 6)),
        describe(digest="2"),
        describe(vocab=("b", "a")),
        describe(vocab=("a", "b", "c")),
    ]
    assert describe() == described[0]
    assert len(set(described)) == len(described)


def test_progress_stops_a_run_that_waited_long_enough():
    run = start_run(replace(SETTINGS, patience=3))
    run.progress.waited = 2
    assert run.done() == 0
    run.progress.waited = 3
    assert run.done() == 1


COUNTING = """
import resource, sys, tempfile
import torch
from bertbook.run_folder import keep_freed_memory, open_run, start_run
from tests.test_run_folder import SETTINGS

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    print(keep_freed_memory())
elif sys.argv[1] == "run":
    with open_run(start_run(SETTINGS), tempfile.mkdtemp()):
        pass
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_freed_memory_is_kept_from_the_first_run_on():
    """In fresh processes, because it cannot be taken back."""
    faults = {}
    for way in ("returned", "kept", "run"):
        done = subprocess.run(
            [sys.executable, "-c", COUNTING, way],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        *said, count = done.stdout.split()
        assert said == (["True"] if way == "kept" else [])
        faults[way] = int(count)
    assert (
        faults["returned"] >= 5 * 2**26 // 2**21
    )  # in huge pages at least
    assert 10 * max(faults["kept"], faults["run"]) < faults["returned"]


HOLDING = """
import resource, tempfile
from pathlib import Path
import torch
from bertbook.run_folder import open_run, start_run
from tests.test_run_folder import SETTINGS

def held():
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()

try:
    with open_run(start_run(SETTINGS), tempfile.mkdtemp()):
        kept = [torch.ones(2**22) for _ in range(20)]
        del kept[::2], kept[:-1]
        print(held())
        raise KeyError
except KeyError:
    print(held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_freed_memory_is_returned_when_the_run_ends():
    """Also from between tensors that live on, and when the run fails."""
    done = subprocess.run(
        [sys.executable, "-c", HOLDING],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    during, after = map(int, done.stdout.split())
    assert during - after > 15 * 2**24  # of nineteen, of 16 MiB each


def test_a_system_without_the_settings_says_so(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(run_folder.ctypes, "CDLL", missing)
    assert run_folder.keep_freed_memory() is False
    assert run_folder.return_freed_memory() is False
