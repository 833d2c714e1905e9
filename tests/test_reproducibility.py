"""Atomic writes, recorded runs, budgets."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bertbook import reproducibility
from bertbook.reproducibility import (
    budget,
    kept,
    read_run,
    record_run,
    write_atomically,
)

KILLER = """
import os, signal, sys
from bertbook.reproducibility import write_atomically
step, count = sys.argv[2], 0
real = getattr(os, step)
def killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, step, killed)
write_atomically(sys.argv[1], "new " * 100_000)
"""


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_killed_writer_leaves_the_old_file(tmp_path, step):
    path = tmp_path / "file.txt"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLER, path, step])
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_atomically(path, "new")  # what the dead process left is no hurdle
    assert path.read_text() == "new"


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_failed_writer_leaves_nothing_else(tmp_path, step, monkeypatch):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_keeps_bytes_and_mode(tmp_path):
    path = tmp_path / "script"
    write_atomically(path, "a\r\nb\u2028c\n")
    assert path.read_bytes() == "a\r\nb\u2028c\n".encode()
    path.chmod(0o755)
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_write_needs_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no" / "file", "x")


def test_record_names_command_commit_and_machine(tmp_path):
    run = ["git", "-C", str(tmp_path)]
    subprocess.run([*run, "init", "-q"], check=True)
    named = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    commit = [*run, *named, "commit", "-q", "--allow-empty", "-m", "x"]
    subprocess.run(commit, check=True)
    script = tmp_path / "bench.py"
    script.write_text(
        "from bertbook.reproducibility import record_run\n"
        "record_run('run.json', {'ratio': 3.5})\n"
    )
    subprocess.run([*run, "add", "bench.py"], check=True)
    subprocess.run([*run, *named, "commit", "-q", "-m", "y"], check=True)
    for expected in ("", "-dirty"):
        code = [sys.executable, str(script), "--fast"]
        subprocess.run(code, cwd=tmp_path, check=True)
        record = read_run(tmp_path / "run.json")
        head = subprocess.run(
            [*run, "rev-parse", "HEAD"], capture_output=True, text=True
        ).stdout[:12]
        assert record["commit"] == head + expected
        assert record["command"] == "python bench.py --fast"
        assert record["metrics"] == {"ratio": 3.5}
        assert record["machine"]["cores"] == len(os.sched_getaffinity(0))
        script.write_text(script.read_text() + "\n# changed\n")


def test_record_refuses_nan(tmp_path):
    with pytest.raises(ValueError):
        record_run(tmp_path / "run.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "No such file"),
        ("{", "is not a recorded run"),
        ("[]", "is not a recorded run"),
        (json.dumps({"metrics": {}}), "lacks command, commit, machine"),
    ],
)
def test_reading_what_is_no_record(tmp_path, text, words):
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        read_run(path)
    assert str(path) in str(error.value)


def test_every_recorded_run_of_the_book_is_whole():
    results = Path(reproducibility.__file__).parents[1] / "book" / "results"
    for path in results.glob("*.json"):
        command = read_run(path)["command"]
        assert command.startswith(
            ("python benchmarks/", "python bertbook/")
        )


def test_budget(monkeypatch):
    monkeypatch.delenv("BERTBOOK_BUDGET", raising=False)
    assert budget() == "book"
    monkeypatch.setenv("BERTBOOK_BUDGET", "smoke")
    assert budget() == "smoke"
    monkeypatch.setenv("BERTBOOK_BUDGET", "")
    with pytest.raises(ValueError, match="'smoke' or 'book'"):
        budget()


def test_kept_lives_in_the_checkout_or_the_cache(tmp_path, monkeypatch):
    root = Path(reproducibility.__file__).parents[1]
    assert kept("a/b.txt") == root / "_build" / "kept" / "a" / "b.txt"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    elsewhere = tmp_path / "site" / "bertbook" / "reproducibility.py"
    monkeypatch.setattr(reproducibility, "__file__", str(elsewhere))
    assert kept("a/b.txt") == tmp_path / "bertbook" / "a" / "b.txt"
    assert (tmp_path / "bertbook" / "a").is_dir()
