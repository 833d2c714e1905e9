"""A run that is killed and resumed is the run that was not.

Real processes: one server has imported everything, and a process forked from
it trains, dies and is resumed in a fraction of a second. What is compared:
every parameter, the memory of the optimizers, the log, the rows that each
step read, and the files of the model. Only `seconds` may differ.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import resume_driver
from resume_driver import SAVE_EVERY, STEPS

from bertbook.corpora import load_corpus
from bertbook.kernels import FORKS
from bertbook.token_files import write_token_files
from bertbook.tokenizer import BertTokenizer
from bertbook.training_loop import load_tensors, read_log
from bertbook.vocabulary import train_wordpiece

DRIVER = Path(resume_driver.__file__)
LIMIT = 120  # seconds, in which any run here must end


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The bits depend on the number of threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Some hundred sentences of news, and a small vocabulary of them."""
    folder = tmp_path_factory.mktemp("text")
    articles = load_corpus("bbc_news", "train")["text"][:24]
    vocab = train_wordpiece(articles, 400, show_progress=False)
    tokenizer = BertTokenizer(vocab)
    tokenizer.save_pretrained(folder)
    write_token_files(articles[:6], tokenizer, folder / "train")
    held_out = [article[:700] for article in articles[20:]]
    write_token_files(held_out, tokenizer, folder / "held_out")
    return folder


def start(out, text, target=resume_driver.train_aside, **options):
    """A process that trains in `out` on what is in `text`."""
    process = FORKS.Process(
        target=target, args=(str(out), str(text), options)
    )
    process.start()
    return process


def attempt(out, text, **options):
    """The status of a run, and what it said."""
    process = start(out, text, **options)
    process.join(LIMIT)
    return process.exitcode, Path(f"{out}.said").read_text()


def finish(out, text, **options):
    """Run to its own end; returns what it said."""
    status, said = attempt(out, text, **options)
    assert status == 0, said
    return said


def resume_to_the_end(out, text, **options):
    there = (Path(out) / "run.json").exists()
    return finish(out, text, resume=there, **options)


def script(out, text, **options):
    """The same in a new interpreter, whose streams are real."""
    command = [sys.executable, DRIVER, out, text, json.dumps(options)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT
    )


def newest(out):
    return sorted(Path(out, "checkpoints").glob("step-*"))[-1]


def state_of(out):
    """All bytes of the newest state; its facts without the clock."""
    tensors, about = load_tensors(newest(out))
    facts = json.loads(about["facts"])
    assert facts.pop("seconds") >= 0
    bits = {
        name: (str(each.dtype), tuple(each.shape), each.numpy().tobytes())
        for name, each in tensors.items()
    }
    return bits, facts


def log_of(out):
    return [
        {k: v for k, v in record.items() if k != "seconds"}
        for record in read_log(Path(out, "log.jsonl"))
    ]


def order_of(out):
    """The rows that each step read; made again, it read the same ones."""
    order = {}
    for line in Path(f"{out}.order").read_text().splitlines():
        step, rows = line.split(" ", 1)
        assert order.setdefault(int(step), rows) == rows
    return order


def files_of(out):
    """All files, states and log aside, which are compared by content."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in Path(out).rglob("*")
        if path.is_file() and "checkpoints" not in path.parts
        if path.name not in ("log.jsonl", "ballast")
    }


def assert_same(out, reference):
    bits, facts = state_of(out)
    expected_bits, expected_facts = state_of(reference)
    assert bits.keys() == expected_bits.keys()
    for name, value in bits.items():
        assert value == expected_bits[name], name
    assert facts == expected_facts
    assert log_of(out) == log_of(reference)
    assert order_of(out) == order_of(reference)
    assert files_of(out) == files_of(reference)
    kept = sorted(path.name for path in Path(out, "checkpoints").iterdir())
    assert len(kept) <= 2 and newest(out).name == newest(reference).name


@pytest.fixture(scope="module")
def reference(text, tmp_path_factory):
    """The run that nobody interrupted."""
    out = tmp_path_factory.mktemp("reference") / "run"
    finish(out, text)
    assert state_of(out)[1]["step"] == STEPS
    assert len(order_of(out)) == STEPS
    return out


def test_the_reference_is_worth_comparing(reference):
    """It learns, it has dropout and two optimizers, and evaluates late."""
    log = log_of(reference)
    held_out = [r["held_out_loss"] for r in log if "held_out_loss" in r]
    assert held_out[-1] < held_out[0] - 0.1
    assert [record["step"] for record in log] == [*range(STEPS + 1), STEPS]
    bits = state_of(reference)[0]
    owners = {name.rpartition(".")[2] for name in bits if "optim" in name}
    assert owners >= {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}
    config = json.loads((reference / "run.json").read_text())["model"]
    assert config["hidden_dropout_prob"] == 0.1


def test_the_same_seed_is_the_same_run(text, reference, tmp_path):
    finish(tmp_path / "again", text)
    assert_same(tmp_path / "again", reference)
    finish(tmp_path / "other", text, seed=1)
    assert log_of(tmp_path / "other") != log_of(reference)
    assert order_of(tmp_path / "other") != order_of(reference)
    before, now = state_of(reference)[0], state_of(tmp_path / "other")[0]
    assert all(
        now[name] != before[name] for name in now if "weight" in name
    )


def test_a_finished_run_that_is_resumed_stays_as_it_is(
    text, reference, tmp_path
):
    out = copy_of(reference, tmp_path)
    before = (out / "log.jsonl").read_bytes()
    finish(out, text, resume=True)
    assert_same(out, reference)
    assert (out / "log.jsonl").read_bytes() == before


def copy_of(reference, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    shutil.copy(f"{reference}.order", f"{out}.order")
    return out


def lines_in(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed(out, text, rng):
    """Kill one process some steps, and some milliseconds, after its start."""
    order = Path(f"{out}.order")
    wanted = lines_in(order) + rng.randrange(6)
    process = start(out, text, resume=(out / "run.json").exists())
    while process.is_alive() and lines_in(order) < wanted:
        pass
    process.join(rng.uniform(0, 0.05))
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def killed_while_saving(out, text, pattern):
    """Kill as soon as a file that is being written is seen."""
    process = start(out, text, resume=(out / "run.json").exists())
    while process.is_alive() and not any(out.glob(pattern)):
        pass
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def random_kills(out, text, seed, kills):
    """How many of so many processes died before the run was at its end."""
    rng, deaths = random.Random(seed), 0
    for number in range(kills):
        if number % 3 == 2:
            pattern = rng.choice(["checkpoints/*.safetensors.*", ".sav*/*"])
            deaths += killed_while_saving(out, text, pattern)
        else:
            deaths += killed(out, text, rng)
    return deaths


def test_killed_at_random_moments(text, reference, tmp_path):
    out = tmp_path / "run"
    assert random_kills(out, text, seed=0, kills=12) >= 6
    resume_to_the_end(out, text)
    assert_same(out, reference)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_killed_at_many_random_moments(text, reference, tmp_path, seed):
    out = tmp_path / "run"
    random_kills(out, text, seed, kills=12)
    resume_to_the_end(out, text)
    assert_same(out, reference)


def changes_of_a_run(text, tmp_path):
    """How often a whole run changes a file in its folder."""
    done = script(tmp_path / "counted", text)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def die_before(out, text, change):
    there = (out / "run.json").exists()
    process = start(out, text, die_at=change, resume=there)
    process.join(LIMIT)
    return process.exitcode == -signal.SIGKILL


def test_killed_before_a_change_of_a_file(text, reference, tmp_path):
    """Each process dies a little later in its saves than the one before.

    A kill between any two changes: a temporary file opened and not moved, a
    state moved and the older one not deleted, half of a model in place.
    """
    out = tmp_path / "run"
    total = changes_of_a_run(text, tmp_path)
    assert total > 100
    torn = deaths = 0
    for change in (1, 2, 3, 5, 8, 13, 21, 34, 35, 36, 37, 38, 39, 40, 41):
        deaths += die_before(out, text, change)
        if out.exists():
            torn += any(out.rglob("*.safetensors.*"))
            torn += any(out.glob(".sav*"))
    assert deaths == 15 and torn >= 3
    resume_to_the_end(out, text)
    assert_same(out, reference)
    assert not any(out.glob(".sav*")) and not any(out.rglob("*.json.*"))


@pytest.mark.slow
def test_killed_before_every_change_of_a_file(text, reference, tmp_path):
    for change in range(1, changes_of_a_run(text, tmp_path) + 1):
        out = tmp_path / str(change)
        assert die_before(out, text, change), change
        resume_to_the_end(out, text)
        assert_same(out, reference)


@pytest.mark.parametrize("step", [1, 2, 17, STEPS])
def test_killed_in_the_middle_of_a_batch(text, reference, tmp_path, step):
    """Part 1 has added its gradient, part 2 has not."""
    out = tmp_path / "run"
    process = start(out, text, at=step, act="die")
    process.join(LIMIT)
    assert process.exitcode == -signal.SIGKILL
    assert len(order_of(out)) == step
    resume_to_the_end(out, text)
    assert_same(out, reference)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        {"optimization": {"optimizer": "adamw"}},
        {"optimization": {"optimizer": "bert_adam"}, "accumulation": 1},
        {"patience": 2, "optimization": {"learning_rate": 0.5}},
    ],
    ids=["bfloat16", "adamw", "bert_adam", "patience"],
)
def test_other_settings_resume_exactly(text, tmp_path, changes):
    finish(tmp_path / "whole", text, **changes)
    out = tmp_path / "run"
    finish(out, text, at=10, act="signal", argument=2, **changes)
    assert state_of(out)[1]["step"] < STEPS
    resume_to_the_end(out, text, **changes)
    bits, facts = state_of(out)
    assert (bits, facts) == state_of(tmp_path / "whole")
    assert log_of(out) == log_of(tmp_path / "whole")
    if "patience" in changes:
        assert facts["step"] < STEPS and facts["waited"] == 2


def interrupted(text, tmp_path, step=17):
    """A folder with the states of steps 15 and 17, and a log up to 17."""
    out = tmp_path / "run"
    finish(out, text, at=step, act="signal", argument=signal.SIGTERM)
    return out


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_ends_cleanly(
    text, reference, tmp_path, kind
):
    out = tmp_path / "run"
    done = script(out, text, at=17, act="signal", argument=int(kind))
    assert (done.returncode, done.stderr) == (0, "")
    assert newest(out).stem == "step-00000017"
    assert log_of(out)[-1]["step"] == 17
    assert not resume_to_the_end(out, text)
    assert_same(out, reference)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_ends_at_once(text, reference, tmp_path, kind):
    out = tmp_path / "run"
    status, said = attempt(
        out, text, at=17, act="signal twice", argument=int(kind)
    )
    assert status != 0
    assert ("KeyboardInterrupt" in said) == (kind == signal.SIGINT)
    assert newest(out).stem == "step-00000015"
    resume_to_the_end(out, text)
    assert_same(out, reference)


def cut_in_half(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[
        random.Random(0).randrange(len(content) // 2, len(content))
    ] ^= 4
    path.write_bytes(content)


def empty(path):
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [cut_in_half, flip_a_bit, empty])
def test_a_damaged_state_is_named_and_the_one_before_used(
    text, reference, tmp_path, damage
):
    out = interrupted(text, tmp_path)
    damage(newest(out))
    said = resume_to_the_end(out, text)
    assert "step-00000017.safetensors is" in said
    assert said.endswith("step-00000015.safetensors is used instead\n")
    assert said.count("\n") == 1
    assert_same(out, reference)


def test_where_all_states_are_damaged_the_run_is_refused(text, tmp_path):
    out = interrupted(text, tmp_path)
    before = log_of(out)
    for path in (out / "checkpoints").iterdir():
        flip_a_bit(path)
    status, said = attempt(out, text, resume=True)
    assert status == 1
    assert "no checkpoint in" in said and len(said) < 700
    assert said.count("\n") == 1
    assert log_of(out) == before


def test_a_torn_log_is_mended(text, reference, tmp_path):
    out = interrupted(text, tmp_path)
    with open(out / "log.jsonl", "a") as file:
        file.write('{"step": 18, "lo')
    resume_to_the_end(out, text)
    assert_same(out, reference)


def test_a_lost_record_is_named(text, tmp_path):
    out = interrupted(text, tmp_path)
    lines = (out / "log.jsonl").read_text().splitlines(True)
    (out / "log.jsonl").write_text("".join(lines[:-2]))
    said = resume_to_the_end(out, text)
    assert "has 16 of the 18 records" in said


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"model": {"hidden_size": 64}}, "model.hidden_size is 32 there"),
        ({"steps": 31}, "length.steps is 30 there and 31 here"),
        ({"accumulation": 1}, "accumulation is 2 there and 1 here"),
        (
            {"optimization": {"betas": [0.9, 0.95]}},
            "optimization.betas is [0.9, 0.98] there and [0.9, 0.95] here",
        ),
        ({"rows_seed": 1}, "data is 'text"),
    ],
    ids=["seed", "model", "length", "parts", "optimizer", "rows"],
)
def test_changed_settings_are_refused(text, out_17, changes, named):
    before = files_of(out_17), log_of(out_17)
    status, said = attempt(out_17, text, resume=True, **changes)
    assert status == 1 and said.count("\n") == 1
    assert f"other settings: {named}" in said
    assert said.count(" there and ") == 1
    assert (files_of(out_17), log_of(out_17)) == before


@pytest.fixture(scope="module")
def out_17(text, tmp_path_factory):
    return interrupted(text, tmp_path_factory.mktemp("interrupted"))


def test_changed_text_is_refused(text, out_17, tmp_path):
    other = tmp_path / "text"
    tokenizer = BertTokenizer(text / "vocab.txt")
    shutil.copytree(text, other)
    shutil.rmtree(other / "train")
    articles = load_corpus("bbc_news", "train")["text"][1:7]
    write_token_files(articles, tokenizer, other / "train")
    status, said = attempt(out_17, other, resume=True)
    assert status == 1 and "; data is 'text" not in said
    assert "other settings: data is 'text" in said


def test_a_new_run_does_not_touch_one_that_is_there(text, out_17):
    before = files_of(out_17), log_of(out_17), newest(out_17).read_bytes()
    status, said = attempt(out_17, text)
    assert status == 1
    assert "continue the run with --resume" in said
    now = files_of(out_17), log_of(out_17), newest(out_17).read_bytes()
    assert now == before


def test_a_second_process_in_the_folder_is_refused(
    text, reference, tmp_path
):
    """While the first is in the middle of a batch, waiting for us."""
    out = tmp_path / "run"
    first = start(out, text, at=17, act="signal", argument=signal.SIGSTOP)
    try:
        while not stopped(first.pid):
            assert first.is_alive()
        status, said = attempt(out, text, resume=True)
        assert status == 1
        assert "another process is training in" in said
        os.kill(first.pid, signal.SIGCONT)
        first.join(LIMIT)
        assert first.exitcode == 0
    finally:
        first.kill()  # a stopped one would never end
    assert_same(out, reference)


def stopped(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    return fields.split()[0] == "T"


def room_for_two_states(reference):
    """Bytes for all that a run writes, less half of a third state."""
    state = newest(reference).stat().st_size
    rest = sum(map(len, files_of(reference).values()))
    return int(2.5 * state) + rest


@pytest.fixture
def small_disk(tmp_path, reference):
    """A file system of memory that is too small for a third state."""
    out = tmp_path / "disk"
    out.mkdir()
    size = f"size={room_for_two_states(reference)}"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", out]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"may not mount: {done.stderr.strip()}")
    yield out
    subprocess.run(["umount", out], check=True)


def test_a_full_disk(text, reference, small_disk):
    out = small_disk
    done = script(out, text)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "step-00000006.safetensors is as it was" in done.stderr
    assert done.stderr.count("\n") == 1
    assert state_of(out)[1]["step"] == 6
    assert not any(out.rglob("*.safetensors.*"))
    again = script(out, text, resume=True)  # no room has been made
    assert again.returncode == 1
    assert "step-00000006.safetensors is as it was" in again.stderr
    remount = ["mount", "-o", "remount,size=64m", out]
    subprocess.run(remount, check=True)
    resume_to_the_end(out, text)
    assert_same(out, reference)


@pytest.mark.parametrize("step", [5, 13, 17])
def test_a_disk_that_fills_up_under_way(text, reference, small_disk, step):
    """What fails first is a state, the model, or a line of the log."""
    out = small_disk
    remount = ["mount", "-o", "remount,size=4m", out]
    subprocess.run(remount, check=True)
    status, said = attempt(out, text, at=step, act="fill")
    assert status == 1
    assert "No space left on device" in said
    assert "is as it was" in said
    (out / "ballast").unlink()
    resume_to_the_end(out, text)
    assert_same(out, reference)


@pytest.mark.parametrize(
    ("at", "size", "left"),
    [
        (10, 10_000, "step-00000009.safetensors is as it was"),  # a state
        (14, 10_000, "step-00000012.safetensors is as it was"),  # the model
        (17, 1_000, "step-00000015.safetensors is as it was"),  # the log
        (1, 10_000, "no state was saved; mend that"),
    ],
)
def test_a_file_that_may_not_grow(
    text, reference, tmp_path, at, size, left
):
    out = tmp_path / "run"
    status, said = attempt(out, text, at=at, act="limit", argument=size)
    assert status == 1
    assert "File too large" in said and left in said
    assert said.count("\n") == 1
    resume_to_the_end(out, text)
    assert_same(out, reference)


def test_the_interval_of_saves_may_change(text, reference, tmp_path):
    out = tmp_path / "run"
    finish(out, text, at=17, act="signal", argument=2, save_every=100)
    assert newest(out).stem == "step-00000017"
    resume_to_the_end(out, text, save_every=SAVE_EVERY)
    assert_same(out, reference)
