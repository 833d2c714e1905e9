"""Faults on purpose: files, logs, shapes, and what seeds promise."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from bertbook.training_loop import (
    RunLog,
    accuracy,
    check_shapes,
    count_parameters,
    evaluating,
    load_tensors,
    minibatches,
    read_log,
    save_tensors,
    train,
)

ROOT = Path(__file__).resolve().parent.parent
TENSORS = {
    "word": torch.arange(6.0).view(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "step": torch.tensor(7),
    "mask": torch.tensor([True, False, True]),
    "none": torch.zeros(0, 4),
}


def equal(a, b):
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name])
        for name in a
    )


def run(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        **options,
    )


# Files of tensors


def test_what_is_saved_is_loaded_by_us_and_by_the_library(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, {"format": "pt", "who": "é"})
    tensors, metadata = load_tensors(path)
    assert equal(tensors, TENSORS)
    assert metadata == {"format": "pt", "who": "é"}
    assert equal(load_file(path), TENSORS)
    save_file(TENSORS, path, {"format": "pt"})
    assert equal(load_tensors(path)[0], TENSORS)
    save_file(TENSORS, path)
    assert load_tensors(path)[1] == {}


def test_equal_content_gives_equal_bytes(tmp_path):
    code = (
        "import sys, torch; from bertbook.training_loop import save_tensors; "
        "save_tensors(sys.argv[1], {n: torch.ones(3) for n in sys.argv[2]}, "
        "{n: n for n in sys.argv[2]})"
    )
    paths = tmp_path / "a", tmp_path / "b"
    for path, names in zip(paths, ("abcdefgh", "hgfedcba")):
        assert run(code, path, names).returncode == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_loaded_metadata_can_be_saved_again(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    save_tensors(first, TENSORS, {"a": "b"})
    tensors, metadata = load_tensors(first)
    save_tensors(second, tensors, metadata | {"crc32": "stale"})
    assert first.read_bytes() == second.read_bytes()
    assert "stale" not in load_tensors(second)[1].values()


def test_views_and_shared_tensors_keep_their_numbers(tmp_path):
    path = tmp_path / "a"
    whole = torch.arange(12.0).view(3, 4)
    tied = nn.Parameter(whole.clone())
    views = {
        "whole": whole,
        "same": whole,
        "turned": whole.T,
        "middle": whole[1:, 1:3],
        "overlap": whole.flatten()[2:7],
        "wide": torch.ones(1).expand(5),
        "tied": tied,
        "tied too": tied,
    }
    save_tensors(path, views)
    tensors, _ = load_tensors(path)
    assert equal(tensors, {n: t.detach() for n, t in views.items()})
    tensors["same"][0, 0] = 99.0  # each has memory of its own
    assert (
        tensors["whole"][0, 0] == 0 == load_tensors(path)[0]["same"][0, 0]
    )


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": [1.0]},
        {"a": torch.ones(2).to_sparse()},
        {"a": torch.ones(2, device="meta")},
        {"__metadata__": torch.ones(2)},
    ],
)
def test_what_a_file_cannot_hold_is_refused(tmp_path, tensors):
    old = tmp_path / "a"
    save_tensors(old, TENSORS)
    with pytest.raises(Exception) as caught:
        save_tensors(old, tensors)
    # The shape checks of the tests may be faster than the function's own.
    assert type(caught.value).__name__ in ("TypeError", "TypeCheckError")
    assert equal(load_tensors(old)[0], TENSORS)


def save_by_library(path, tensors):
    save_file(tensors, path)


def test_what_was_loaded_outlives_its_file(tmp_path):
    path = tmp_path / "a"
    save_tensors(path, {"w": torch.arange(50_000)})
    tensors, _ = load_tensors(path)
    save_tensors(path, {"w": torch.zeros(1)})  # loaded tensors are mapped
    path.unlink()
    assert torch.equal(tensors["w"], torch.arange(50_000))


def refusal(path):
    with pytest.raises(ValueError) as caught:
        load_tensors(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text
    return text


@pytest.mark.parametrize("write", [save_tensors, save_by_library])
def test_every_truncation_is_refused(tmp_path, write):
    path = tmp_path / "a"
    write(path, TENSORS)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        text = refusal(path)
        assert "cut short" in text, length
        assert f"{length:,} of" in text
    path.write_bytes(whole + b"\0")
    assert "damaged" in refusal(path)


def test_every_flipped_bit_is_refused_or_changes_no_number(tmp_path):
    path = tmp_path / "a"
    save_tensors(path, TENSORS, {"a": "b"})
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            tensors, _ = load_tensors(path)
        except ValueError as error:
            assert str(path) in str(error)
            continue
        assert place < header, "a number changed unseen"
        assert equal(tensors, TENSORS)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_a_sentence(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(content)
    refusal(path)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["w", "data_offsets", "dtype", "shape"]),
                inner,
            )
        ),
        max_leaves=8,
    )
)
def test_any_header_is_refused_by_a_sentence(tmp_path_factory, header):
    path = tmp_path_factory.getbasetemp() / "header"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 3)
    refusal(path)


class Trap:
    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("writer", ["new", "old", "plain"])
def test_a_pickle_is_named_and_not_opened(tmp_path, writer):
    trap, path = Trap(), tmp_path / "model.bin"
    trap.folder = str(tmp_path / "opened")
    if writer == "plain":
        path.write_bytes(pickle.dumps(trap))
    else:
        zipped = writer == "new"
        torch.save(trap, path, _use_new_zipfile_serialization=zipped)
    assert "pickle" in refusal(path)
    assert not (tmp_path / "opened").exists()


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    path = tmp_path / "a"
    for pad in range(64):  # some length is 0x80
        save_tensors(path, {"w": torch.ones(1)}, {"p": "x" * pad})
        assert load_tensors(path)[0]["w"] == 1


def test_missing_files_folders_and_pointers(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match="is no file"):
            load_tensors(path)
    pointer = tmp_path / "model.safetensors"
    pointer.write_text(
        "version https://git-lfs.github.com/spec/v1\nsize 90868376\n"
    )
    assert "git lfs pull" in refusal(pointer)


KILLED = """
import os, signal, sys, torch
from bertbook import reproducibility
from bertbook.training_loop import save_tensors

moment = sys.argv[2]
original = getattr(os, moment)


def killer(*arguments):
    if moment == "fsync":
        os.truncate(arguments[0], 100)  # half of it is on the disk
    os.kill(os.getpid(), signal.SIGKILL)


setattr(os, moment, killer)
save_tensors(sys.argv[1], {"w": torch.zeros(1000)})
"""


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_in_the_middle_of_a_save_leaves_the_old_file(
    tmp_path, moment
):
    path = tmp_path / "a"
    save_tensors(path, TENSORS)
    assert run(KILLED, path, moment).returncode == -signal.SIGKILL
    assert equal(load_tensors(path)[0], TENSORS)


# The log


def test_a_killed_run_leaves_whole_lines_and_can_go_on(tmp_path):
    path = tmp_path / "log"
    code = (
        "import sys; from bertbook.training_loop import RunLog\n"
        "log, step = RunLog(sys.argv[1]), 0\n"
        "while True:\n"
        "    log.write({'step': step, 'text': 'x' * 5000})\n"
        "    step += 1\n"
        "    if step == 20: print('go', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout.readline() == b"go\n"
        process.kill()
    records = read_log(path)
    assert len(records) >= 20
    assert [r["step"] for r in records] == list(range(len(records)))
    with RunLog(path) as log:
        log.write({"step": "next"})
    assert read_log(path) == [*records, {"step": "next"}]


records = st.lists(
    st.dictionaries(
        st.text(max_size=4),
        st.none() | st.integers() | st.floats(allow_nan=False) | st.text(),
        max_size=3,
    ),
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(records, records, st.data())
def test_a_log_cut_anywhere_keeps_its_whole_lines(
    tmp_path_factory, before, after, data
):
    path = tmp_path_factory.getbasetemp() / "cut"
    path.unlink(missing_ok=True)
    with RunLog(path) as log:
        for record in before:
            log.write(record)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = before[: whole[:cut].count(b"\n")]
    assert read_log(path) == kept
    with RunLog(path) as log:
        for record in after:
            log.write(record)
    assert read_log(path) == kept + after


@pytest.mark.parametrize(
    "text, line",
    [
        ('{"a": 1}\n{"a": \n{"a": 3}\n', 2),
        ('{"a": 1}\n{"a": \n', 2),
        ('{"a": 1}\n\n{"a": 3}\n', 2),
        ("3\n", 1),
        ('{"a": 1}\n[2]', 2),
        ("some notes", 1),
    ],
)
def test_other_bad_lines_get_a_sentence(tmp_path, text, line):
    path = tmp_path / "log"
    path.write_text(text)
    for reader in (read_log, RunLog):
        with pytest.raises(ValueError, match=f"log:{line}: .*JSON object"):
            reader(path)
    assert path.read_text() == text


def test_a_log_takes_tensors_and_what_is_no_number(tmp_path):
    path = tmp_path / "log"
    with RunLog(path) as log:
        log.write({"loss": torch.tensor(0.5), "worst": float("inf")})
    assert read_log(path) == [{"loss": 0.5, "worst": float("inf")}]


# Shapes

LAYER = """
from jaxtyping import Float
from torch import Tensor


def add(x: Float[Tensor, "batch hidden"], bias: Float[Tensor, "hidden"]):
    return x + bias
"""
PLAIN = "def double(x: int): return 2 * x\n"
CHECK = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from jaxtyping import TypeCheckError
from bertbook.training_loop import check_shapes

if sys.argv[2] == "early":
    import toy.layer
check_shapes("toy")
check_shapes("toy")
from toy.layer import add
from toy.plain import double

assert double("no int") == "no intno int"  # states no shapes: unchecked
assert add(torch.zeros(2, 3), torch.zeros(3)).shape == (2, 3)
for wrong in (torch.zeros(2, 1), torch.zeros(3), torch.zeros(2, 3).long()):
    try:
        add(wrong, torch.zeros(3))
    except TypeCheckError:
        print("refused")
"""


@pytest.mark.parametrize("when, refused", [("late", 3), ("early", 0)])
def test_wrong_shapes_are_refused_from_then_on(tmp_path, when, refused):
    package = tmp_path / "toy"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "layer.py").write_text(LAYER)
    (package / "plain.py").write_text(PLAIN)
    done = run(CHECK, tmp_path, when)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"] * refused


def test_cells_of_ipython_are_checked():
    code = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in (
    "from bertbook.training_loop import check_shapes; check_shapes()",
    "check_shapes()",
    "import torch; from jaxtyping import Float; from torch import Tensor",
    "def f(x: Float[Tensor, 'a a']): return x",
    "f(torch.zeros(2, 2));",
):
    shell.run_cell(cell).raise_error()
result = shell.run_cell("f(torch.zeros(2, 3));")
print(type(result.error_in_exec).__name__)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "TypeCheckError"
    assert "loaded" not in done.stdout


def test_the_tokenizer_stays_unchecked_and_the_model_is_checked():
    code = """
from bertbook.training_loop import check_shapes
check_shapes()
import bertbook.tokenizer
assert not hasattr(bertbook.tokenizer.BertTokenizer.encode, "__wrapped__")
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_an_unknown_module_gets_a_sentence():
    with pytest.raises(ModuleNotFoundError, match="check its spelling"):
        check_shapes("bertbok")


# Batches, the loop and its seeds


@settings(deadline=None)
@given(
    st.integers(0, 50),
    st.integers(1, 12),
    st.none() | st.integers(0, 2**60),
)
def test_batches_are_a_partition(count, size, seed):
    generator = (
        None if seed is None else torch.Generator().manual_seed(seed)
    )
    batches = list(minibatches(count, size, generator))
    rows = [row for batch in batches for row in batch.tolist()]
    assert sorted(rows) == list(range(count))
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(1 <= len(batch) <= size for batch in batches)
    if seed is None:
        assert rows == sorted(rows)
    else:
        again = torch.Generator().manual_seed(seed)
        twin = torch.cat(
            [*minibatches(count, size, again)] or [torch.ones(0)]
        )
        assert rows == twin.tolist()


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one_is_refused_at_the_call(size):
    with pytest.raises(ValueError, match="give 1 or more"):
        minibatches(3, size)


def toy(seed, epochs=3, log=None, lr=0.05):
    """A network that learns whether two numbers have the same sign."""
    points = torch.randn(200, 2, generator=torch.Generator().manual_seed(9))
    labels = (points[:, 0] * points[:, 1] > 0).long()
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(2, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2)
    )
    history = train(
        model,
        lambda: minibatches(len(points), 32, order),
        lambda model, rows: F.cross_entropy(
            model(points[rows]), labels[rows]
        ),
        torch.optim.AdamW(model.parameters(), lr=lr),
        epochs,
        lambda model: accuracy(model(points), labels),
        log,
    )
    return model, history, lambda model: accuracy(model(points), labels)


def test_the_loop_learns_what_no_line_can_separate():
    model, history, score = toy(0, epochs=20)
    assert score(model) > 0.9


def test_the_weights_are_those_of_the_best_epoch(tmp_path):
    with RunLog(tmp_path / "log") as log:
        model, history, score = toy(0, epochs=4, log=log, lr=0.5)
    assert not model.training
    assert read_log(tmp_path / "log") == history
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    best = max(record["score"] for record in history)
    assert score(model) == best
    worse = [
        record["score"] for record in history if record["score"] < best
    ]
    assert worse, "choose a learning rate that makes epochs differ"


def test_one_seed_gives_one_run_bit_for_bit():
    (one, history, _), (two, again, _), (other, *_) = toy(3), toy(3), toy(4)
    assert history == again
    assert equal(one.state_dict(), two.state_dict())
    assert not equal(one.state_dict(), other.state_dict())


def test_a_loss_that_is_no_number_stops_the_run_before_the_weights():
    model = nn.Linear(1, 1)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="epoch 1, step 2"):
        train(
            model,
            lambda: iter([0.0, float("nan")]),
            lambda model, batch: model(torch.ones(1)).sum() * batch,
            torch.optim.SGD(model.parameters(), lr=1.0),
            1,
            lambda model: 0.0,
        )
    assert equal(model.state_dict(), before)


def test_scores_that_are_no_number_keep_the_first_weights():
    model = nn.Linear(1, 1)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    train(
        model,
        lambda: [None],
        lambda model, _: model(torch.ones(1)).sum(),
        torch.optim.SGD(model.parameters(), lr=1.0),
        2,
        lambda model: float("nan"),
    )
    assert equal(model.state_dict(), before)


def test_evaluation_restores_the_mode_even_after_an_error():
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
    for modes in ([True, True, False], [False, False, True]):
        for module, training in zip(model.modules(), modes):
            module.training = training
        with pytest.raises(ZeroDivisionError):
            with evaluating(model) as same:
                assert same is model
                assert not any(m.training for m in model.modules())
                assert not torch.is_grad_enabled()
                raise ZeroDivisionError
        assert [m.training for m in model.modules()] == modes
        assert torch.is_grad_enabled()


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(2, 5), st.integers(0, 999))
def test_accuracy_is_that_of_scikit_learn(count, classes, seed):
    from sklearn.metrics import accuracy_score

    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    wanted = accuracy_score(labels, logits.argmax(-1))
    assert accuracy(logits, labels) == pytest.approx(wanted, abs=1e-6)


def test_shared_and_frozen_parameters_count_once():
    model = nn.ModuleList([nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)])
    model[1].weight = model[0].weight
    assert count_parameters(model) == 21
    model[0].weight.requires_grad_(False)
    assert count_parameters(model) == 21
