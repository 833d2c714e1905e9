"""States, whatever optimizer they are of and whatever happens to the files."""

import json
import logging
import multiprocessing
import os
import signal
import threading
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bertbook.optimization import BertAdam, Optimization, make_optimizers
from bertbook.training_loop import read_log
from bertbook.training_state import (
    cut_log,
    deferred_interrupt,
    differences,
    load_state,
    naming_what_is_left,
    only_process,
    restore_tensors,
    save_state,
    state_tensors,
)

OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adamw fused": lambda p: torch.optim.AdamW(p, fused=True, amsgrad=True),
    "adam of BERT": BertAdam,
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "no memory": lambda p: torch.optim.SGD(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
}


def make_net(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2)
    )


def go_on(model, optimizers, start, stop):
    for step in range(start, stop):
        draw = torch.Generator().manual_seed(step)
        inputs = torch.randn(8, 3, generator=draw)
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(inputs).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_continues_exactly(name, tmp_path):
    """Through a file; buffers such as running means are in it."""
    model = make_net()
    optimizers = [OPTIMIZERS[name](model.parameters())]
    go_on(model, optimizers, 0, 5)
    save_state(tmp_path, 5, state_tensors(model, optimizers), {})
    go_on(model, optimizers, 5, 9)

    twin = make_net(seed=1)
    others = [OPTIMIZERS[name](twin.parameters())]
    restore_tensors(load_state(tmp_path)[0], twin, others)
    go_on(twin, others, 5, 9)
    for key, value in state_tensors(model, optimizers).items():
        assert torch.equal(state_tensors(twin, others)[key], value), key


def test_several_optimizers_keep_apart(tmp_path):
    chosen = Optimization(optimizer="muon")
    model = make_net()
    optimizers = make_optimizers(model, chosen)
    go_on(model, optimizers, 0, 3)
    tensors = state_tensors(model, optimizers)
    twin = make_net(seed=1)
    others = make_optimizers(twin, chosen)
    restore_tensors(tensors, twin, others)
    go_on(model, optimizers, 3, 6)
    go_on(twin, others, 3, 6)
    for value, other in zip(model.parameters(), twin.parameters()):
        assert torch.equal(value, other)


def test_settings_of_the_optimizer_are_not_restored():
    model = make_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    go_on(model, [optimizer], 0, 2)
    other = torch.optim.AdamW(model.parameters(), lr=0.7, weight_decay=0.3)
    restore_tensors(state_tensors(model, [optimizer]), model, [other])
    group = other.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.7, 0.3)


def test_the_restored_memory_is_a_copy():
    model = make_net()
    optimizer = torch.optim.AdamW(model.parameters())
    go_on(model, [optimizer], 0, 2)
    tensors = state_tensors(model, [optimizer])
    twin = make_net()
    other = torch.optim.AdamW(twin.parameters())
    restore_tensors(tensors, twin, [other])
    before = {name: value.clone() for name, value in tensors.items()}
    go_on(twin, [other], 2, 4)
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_a_state_without_memory_restores_weights_alone():
    model, twin = make_net(), make_net(seed=1)
    restore_tensors(state_tensors(model, []), twin, [])
    assert torch.equal(model[0].weight, twin[0].weight)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model.0.weight": torch.zeros(5, 3)}, "0.weight of shape (5, 3)"),
        ({"model.new": torch.zeros(2)}, "new of shape (2,)"),
        ({"model.0.bias": None}, "0.bias of shape None"),
        ({"optimizer.1.0.step": torch.ones(())}, "optimizer.1.0.step"),
        ({"optimizer.0.6.step": torch.ones(())}, "optimizer.0.6.step"),
    ],
)
def test_another_models_state_changes_nothing(change, named):
    model = make_net()
    optimizer = torch.optim.AdamW(model.parameters())
    go_on(model, [optimizer], 0, 2)
    tensors = state_tensors(model, [optimizer]) | change
    tensors = {k: v for k, v in tensors.items() if v is not None}
    twin = make_net(seed=1)
    before = twin[0].weight.clone()
    fresh = torch.optim.AdamW(twin.parameters())
    with pytest.raises(ValueError) as caught:
        restore_tensors(tensors, twin, [fresh])
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert torch.equal(twin[0].weight, before) and not fresh.state


def numbers(folder):
    return [int(path.name[5:13]) for path in sorted(folder.glob("step-*"))]


def save(folder, step, **options):
    tensors = {"model.w": torch.full((40,), float(step))}
    return save_state(folder, step, tensors, {"step": step}, **options)


@given(
    steps=st.lists(st.integers(0, 30), min_size=1, max_size=12),
    keep=st.integers(1, 4),
)
@settings(deadline=None, max_examples=40)
def test_rotation_keeps_the_newest(tmp_path_factory, steps, keep):
    """Also where a run goes back and saves earlier steps again."""
    folder = tmp_path_factory.mktemp("states")
    there = set()
    for step in steps:
        save(folder, step, keep=keep)
        there = {each for each in there if each < step}
        there = set(sorted(there | {step})[-keep:])
        assert numbers(folder) == sorted(there)
        assert load_state(folder)[1] == {"step": step}


def test_one_whole_state_is_there_at_every_moment(tmp_path):
    """Wherever the save is cut off, also where only one is kept."""
    save(tmp_path, 1, keep=1)
    for name in ("os.fsync", "os.replace", "pathlib.Path.unlink"):
        with mock.patch(name, side_effect=KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                save(tmp_path, 2, keep=1)
        assert load_state(tmp_path)[1]["step"] in (1, 2)
    save(tmp_path, 3, keep=1)
    assert numbers(tmp_path) == [3]


def test_a_damaged_later_state_does_not_crowd_out_whole_ones(tmp_path):
    for step in (10, 20):
        save(tmp_path, step)
    (tmp_path / "step-00000020.safetensors").write_bytes(b"gone")
    assert load_state(tmp_path)[1]["step"] == 10
    save(tmp_path, 15, keep=1)  # another interval between saves
    assert numbers(tmp_path) == [15]
    assert load_state(tmp_path)[1]["step"] == 15


@given(st.integers(0, 10**6), st.integers(0, 7))
@settings(deadline=None, max_examples=60)
def test_no_flipped_bit_passes(tmp_path_factory, place, bit):
    """Somewhere in the file: in the header, in a number, in the checksum."""
    folder = tmp_path_factory.mktemp("states")
    save(folder, 1)
    path = save(folder, 2)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    tensors, facts = load_state(folder)
    assert torch.equal(
        tensors["model.w"], torch.full((40,), float(facts["step"]))
    )
    # The only bits that may turn are those that mean the same to JSON.
    assert facts["step"] == 1 or set(tensors) == {"model.w"}


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_no_cut_file_passes(tmp_path_factory, size):
    folder = tmp_path_factory.mktemp("states")
    save(folder, 1)
    path = save(folder, 2)
    os.truncate(path, size % path.stat().st_size)
    assert load_state(folder)[1]["step"] == 1


def test_a_warning_names_the_damage_and_what_is_used(tmp_path, caplog):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    for step in (2, 3):
        (tmp_path / f"step-{step:08}.safetensors").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert load_state(tmp_path)[1]["step"] == 1
    assert len(caplog.messages) == 2
    for step, message in zip((3, 2), caplog.messages):
        assert f"step-{step:08}.safetensors is" in message
        assert message.endswith("step-00000001.safetensors is used instead")


def test_a_foreign_file_with_a_states_name_is_passed_over(tmp_path, caplog):
    from safetensors.torch import save_file

    save(tmp_path, 1)
    foreign = tmp_path / "step-00000002.safetensors"
    save_file({"w": torch.zeros(3)}, foreign)
    assert load_state(tmp_path)[1]["step"] == 1
    assert "says that it holds step None" in caplog.text


def test_what_cannot_be_read_is_no_damage(tmp_path):
    """An older state would be used behind the back of who mends it."""
    for step in (1, 2):
        save(tmp_path, step)
    denied = PermissionError(13, "Permission denied")
    with mock.patch("bertbook.training_loop.safe_open", side_effect=denied):
        with mock.patch("builtins.open", side_effect=denied):
            with pytest.raises(PermissionError):
                load_state(tmp_path)


def write_log(path, count):
    lines = (json.dumps({"step": step}) + "\n" for step in range(count))
    path.write_text("".join(lines))


@given(st.integers(0, 8), st.integers(0, 8), st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_log_is_cut_after_its_records(
    tmp_path_factory, count, kept, torn
):
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    write_log(path, count)
    if torn:
        with open(path, "a") as file:
            file.write('{"step": 9')
    cut_log(path, kept)
    wanted = [{"step": step} for step in range(min(count, kept))]
    assert read_log(path) == wanted
    if kept <= count:
        assert path.read_bytes().count(b"\n") == kept
        assert path.read_bytes()[-1:] in (b"", b"\n")


def test_a_missing_log(tmp_path, caplog):
    cut_log(tmp_path / "log.jsonl", 0)
    assert not caplog.messages
    cut_log(tmp_path / "log.jsonl", 3)
    assert "0 of the 3 records" in caplog.text
    assert not (tmp_path / "log.jsonl").exists()


def test_what_is_no_log_is_not_cut(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("my notes\nmore\n")
    with pytest.raises(ValueError, match="log.jsonl:1"):
        cut_log(path, 0)
    assert path.read_text() == "my notes\nmore\n"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.text("abc", max_size=2), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc", max_size=2), VALUES))
def test_equal_settings_do_not_differ(value):
    assert differences(value, json.loads(json.dumps(value))) == []


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=2), st.integers()),
    st.dictionaries(st.text("abc", min_size=1, max_size=2), st.integers()),
)
def test_exactly_what_differs_is_named(before, now):
    named = {line.split(" is ")[0] for line in differences(before, now)}
    absent = object()
    assert named == {
        name
        for name in before.keys() | now.keys()
        if before.get(name, absent) != now.get(name, absent)
    }


def test_a_field_that_became_none_is_named():
    assert differences({"a": None}, {}) == [
        "a is None there and absent here"
    ]
    assert differences({}, {"a": 1}) == ["a is absent there and 1 here"]


def test_a_thread_may_train_without_signals():
    found = []

    def work():
        with deferred_interrupt() as end:
            found.append(end())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_handlers_are_given_back(kind):
    def usual(kind, frame):
        heard.append(kind)

    heard = []
    before = signal.signal(kind, usual)
    try:
        with deferred_interrupt() as end:
            signal.raise_signal(kind)
            signal.raise_signal(kind)  # the same wish, passed on
            assert end() and not heard
        with deferred_interrupt(apart=0) as end:
            signal.raise_signal(kind)
            assert end() and not heard
            signal.raise_signal(kind)
            assert heard == [kind]
        with pytest.raises(ZeroDivisionError):
            with deferred_interrupt():
                _ = 1 / 0
        assert signal.getsignal(kind) is usual
    finally:
        signal.signal(kind, before)


def test_sentences_pass_and_system_errors_get_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="^one sentence$"):
        with naming_what_is_left(tmp_path):
            raise FileNotFoundError("one sentence")
    with pytest.raises(OSError, match="no state was saved; mend that"):
        with naming_what_is_left(tmp_path):
            (tmp_path / "none" / "file").write_text("")
    save(tmp_path, 7)
    with pytest.raises(OSError) as caught:
        with naming_what_is_left(tmp_path):
            (tmp_path / "none" / "file").write_text("")
    said = str(caught.value)
    assert "none/file: No such file or directory" in said
    assert "step-00000007.safetensors is as it was" in said
    with pytest.raises(ValueError, match="^no system error$"):
        with naming_what_is_left(tmp_path):
            raise ValueError("no system error")


def enter(folder, answer):
    try:
        with only_process(folder):
            answer.put("in")
    except BlockingIOError as error:
        answer.put(str(error))


def test_one_process_at_a_time(tmp_path):
    start = multiprocessing.get_context("fork")
    answer = start.Queue()
    said = []
    for _ in range(2):
        with only_process(tmp_path):
            other = start.Process(target=enter, args=(tmp_path, answer))
            other.start()
            said.append(answer.get(timeout=60))
            other.join()
    assert all("another process is training in" in each for each in said)
    enter(tmp_path, answer)
    assert answer.get(timeout=60) == "in"


def hold_and_die(folder, answer):
    with only_process(folder):
        answer.put("in")
        answer.close()
        answer.join_thread()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_leaves_no_lock(tmp_path):
    start = multiprocessing.get_context("fork")
    answer = start.Queue()
    other = start.Process(target=hold_and_die, args=(tmp_path, answer))
    other.start()
    assert answer.get(timeout=60) == "in"
    other.join()
    enter(tmp_path, answer)
    assert answer.get(timeout=60) == "in"


def test_file_systems_without_locks_are_used_without(tmp_path):
    refused = OSError(37, "No locks available")
    with mock.patch("fcntl.flock", side_effect=refused):
        with only_process(tmp_path):
            pass
    with mock.patch("bertbook.training_state.fcntl", None):
        with only_process(tmp_path):
            pass
