"""Kernels that are forked: as good as those that Jupyter starts."""

import sys
from pathlib import Path

import nbformat
import pytest

from bertbook.execute import code_cells, run_notebooks
from bertbook.kernels import fork_settings

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="kernels are forked on Linux"
)

PAGES = {
    "good": """\
import sys
had = "torch" in sys.modules
import os, tempfile
import matplotlib.pyplot as plt, torch
open("where", "w").write(tempfile.mkdtemp())
plt.plot([1, 2])
print(had, torch.get_num_threads(), os.environ["PYTHONHASHSEED"])""",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "hung": """\
import os, subprocess, time
child = subprocess.Popen(["sleep", "600"])
open("pids", "w").write(f"{os.getpid()} {child.pid}")
while True:
    time.sleep(0.1)""",
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What a run of the pages left: its folder, and what failed."""
    root = tmp_path_factory.mktemp("root")
    (root / "bertbook").symlink_to(ROOT / "bertbook")
    assert fork_settings(root)
    folder = root / ".executed"
    folder.mkdir()
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python"}}
    for name, code in PAGES.items():
        cells = [nbformat.v4.new_code_cell(code)]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
        nbformat.write(notebook, folder / f"{name}.ipynb")
    paths = [folder / f"{name}.ipynb" for name in PAGES]
    failed = run_notebooks(root, paths, timeout=20)
    return folder, {path.stem: words for path, words in failed.items()}


def test_what_is_imported_and_shown(ran):
    folder, failed = ran
    assert set(failed) == {"killed", "hung"}
    notebook = nbformat.read(folder / "good.ipynb", nbformat.NO_CONVERT)
    (cell,) = code_cells(notebook)
    kinds = [set(each.get("data", {})) for each in cell.outputs]
    assert any("image/png" in kind for kind in kinds)
    (said,) = (
        each for each in cell.outputs if each.get("name") == "stdout"
    )
    assert said.text == "True 1 0\n"


def test_its_temporary_folder_is_the_runs_and_goes(ran):
    folder, _ = ran
    assert not Path((folder / "where").read_text()).exists()


def test_one_that_is_killed_is_named(ran):
    assert "DeadKernelError" in ran[1]["killed"]


def test_one_that_hangs_is_stopped_with_what_it_started(ran):
    folder, failed = ran
    assert "timed out" in failed["hung"]
    for pid in (folder / "pids").read_text().split():
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or ") Z " in state.read_text()


def test_others_are_started_by_jupyter(tmp_path, monkeypatch):
    assert fork_settings(tmp_path) == {}
    assert fork_settings(ROOT)
    monkeypatch.setattr("bertbook.kernels.entry_points", lambda **_: ())
    assert fork_settings(ROOT) == {}
    monkeypatch.undo()
    monkeypatch.setattr("sys.platform", "darwin")
    assert fork_settings(ROOT) == {}
