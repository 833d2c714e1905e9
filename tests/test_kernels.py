"""Kernels that are forked: as good as those that Jupyter starts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from bertbook.execute import _merge_streams, code_cells, run_notebooks
from bertbook.kernels import fork_settings

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 60  # seconds, in which a process ends that must

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="kernels are forked on Linux"
)

HANGS = """\
import os, subprocess, time
child = subprocess.Popen(["sleep", "600"])
open("pids.part", "w").write(f"{os.getpid()} {child.pid}")
os.rename("pids.part", "pids")
while True:
    time.sleep(0.1)"""
PAGES = {
    "good": """\
import sys
had = "torch" in sys.modules
import multiprocessing, os, tempfile
import matplotlib.pyplot as plt, torch
open("where", "w").write(tempfile.mkdtemp())
plt.plot([1, 2])
print(had, torch.cuda._is_in_bad_fork(), torch.get_num_threads())
print(os.environ["PYTHONHASHSEED"], multiprocessing.current_process().name)
print(multiprocessing.get_start_method(allow_none=True))""",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "hung": HANGS,
}


def write_pages(root, pages):
    """The notebooks of `pages`, in a book whose package is this one."""
    (root / "bertbook").symlink_to(ROOT / "bertbook")
    folder = root / ".executed"
    folder.mkdir()
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python"}}
    for name, code in pages.items():
        cells = [nbformat.v4.new_code_cell(code)]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return [folder / f"{name}.ipynb" for name in pages]


def lives(pid):
    """Whether a process runs: neither gone nor waiting for its parent."""
    state = Path(f"/proc/{pid}/stat")
    try:
        return ") Z " not in state.read_text()
    except FileNotFoundError:
        return False


def test_pages_that_run_die_and_hang(tmp_path):
    paths = write_pages(tmp_path, PAGES)
    assert fork_settings(tmp_path), "kernels are not registered; run `make`"
    found = run_notebooks(tmp_path, paths, timeout=20)
    failed = {path.stem: words for path, words in found.items()}
    assert set(failed) == {"killed", "hung"}, failed
    assert "DeadKernelError" in failed["killed"]
    assert "timed out" in failed["hung"]
    folder = paths[0].parent
    # It is stopped with what it started.
    for pid in (folder / "pids").read_text().split():
        assert not lives(pid)
    # The temporary folder is the run's, and goes with it.
    assert not Path((folder / "where").read_text()).exists()
    (cell,) = code_cells(nbformat.read(paths[0], nbformat.NO_CONVERT))
    outputs = _merge_streams(cell.outputs)
    assert any("image/png" in each.get("data", {}) for each in outputs)
    (said,) = (each.text for each in outputs if "text" in each)
    assert said.split("\n")[:-1] == [
        "True False 1",
        "0 MainProcess",
        "None",
    ]


RUNNER = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], nbformat.NO_CONVERT)
NotebookClient(notebook).execute(cwd=sys.argv[2])
"""


def test_kernel_ends_with_the_process_that_asked_for_it(tmp_path):
    (path,) = write_pages(tmp_path, {"hung": HANGS})
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, path, tmp_path],
        env=os.environ | fork_settings(tmp_path),
    )
    pids = tmp_path / "pids"
    try:
        while not pids.exists():
            assert runner.poll() is None
            time.sleep(0.1)
        kernel, child = pids.read_text().split()
        assert lives(kernel) and lives(child)
    finally:
        runner.send_signal(signal.SIGKILL)
        runner.wait()
    end = time.monotonic() + LIMIT
    while (lives(kernel) or lives(child)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not lives(kernel) and not lives(child)


def test_others_are_started_by_jupyter(tmp_path, monkeypatch):
    assert fork_settings(tmp_path) == {}
    assert fork_settings(ROOT)
    monkeypatch.setattr("bertbook.kernels.entry_points", lambda **_: ())
    assert fork_settings(ROOT) == {}
    monkeypatch.undo()
    monkeypatch.setattr("sys.platform", "darwin")
    assert fork_settings(ROOT) == {}
