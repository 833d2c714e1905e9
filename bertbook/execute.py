"""Running every chapter once

Runs each stale chapter once by pytest, keeps its outputs, and names the
chapter and the line where one fails. Exercises that come solved are
failures too.

The page: https://bertbook.github.io/bertbook/book/execute.html
"""

# Tangled from book/execute.md (72932274): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "STORE",
    "code_cells",
    "describe_failure",
    "execute",
    "executed_path",
    "figure_problems",
    "load_executed",
    "run_notebooks",
    "store_executed",
    "with_outputs",
]


# %% book/execute.md#by-hand 6fa8d091
import os
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

from bertbook.chapters import Chapter, TangleError
from bertbook.freshness import chapter_key
from bertbook.modules import Book
from bertbook.reproducibility import describe_machine, write_atomically

STORE = ".executed"


def executed_path(root: Path, chapter: Chapter) -> Path:
    """Where the executed notebook of `chapter` is kept."""
    return root / STORE / (Path(chapter.path).stem + ".ipynb")


def code_cells(notebook) -> list:
    """The code cells of a notebook."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# %% book/execute.md#by-hand f9398cf1
def _merge_streams(outputs: list) -> list:
    merged = []
    for output in deepcopy(outputs):
        last = merged[-1] if merged else {}
        if (
            output.output_type == "stream" == last.get("output_type")
            and output.name == last["name"]
        ):
            last["text"] += output.text
        else:
            merged.append(output)
    return merged


# %% book/execute.md#what-ran-is-kept 709db288
def with_outputs(chapter: Chapter, executed):
    """The notebook of `chapter` with the outputs of `executed`.

    Only outputs, their numbers and the language come from `executed`.
    """
    notebook = deepcopy(chapter.notebook)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    for cell, ran in zip(
        code_cells(notebook), code_cells(executed), strict=True
    ):
        cell.outputs = _merge_streams(ran.outputs)
        cell.execution_count = ran.execution_count
    if language := executed.metadata.get("language_info"):
        notebook.metadata["language_info"] = language
    notebook.nbformat_minor = 5
    return notebook


# %% book/execute.md#what-ran-is-kept 028982ce
def load_executed(root: Path, chapter: Chapter, key: str):
    """The notebook that ran under `key` with its outputs, or None."""
    import nbformat

    path = executed_path(root, chapter)
    try:
        executed = nbformat.read(path, nbformat.NO_CONVERT)
    except (OSError, ValueError):
        return None
    if executed.metadata.get("bertbook", {}).get("key") != key:
        return None
    return with_outputs(chapter, executed)


def store_executed(root: Path, chapter: Chapter, notebook, key: str):
    """Keep `notebook`, which ran under `key`."""
    import nbformat

    notebook.metadata["bertbook"] = {"key": key}
    text = nbformat.writes(notebook)
    write_atomically(executed_path(root, chapter), text)


# %% book/execute.md#one-run-by-pytest a7f17640
def _pytest(root: Path, arguments: list[str], settings: dict) -> str:
    """Run pytest on notebooks, say what is done; returns its words."""
    search = [str(root), os.environ.get("PYTHONPATH", "")]
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTEST_")
    }
    environment = settings | {
        "PYTHONPATH": os.pathsep.join(filter(None, search)),
        "PYTHONHASHSEED": "0",
        "IPYTHONDIR": str(root / STORE / "ipython"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        # Without widgets tqdm warns, and names a path of this machine.
        "PYTHONWARNINGS": "ignore:IProgress not found",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        os.devnull,
        "-v",
        "--nbmake",
        "--overwrite",
        "-p",
        "no:cacheprovider",
    ]
    words = ""
    with (
        TemporaryDirectory(ignore_cleanup_errors=True) as temporary,
        subprocess.Popen(
            [*command, *arguments],
            env=inherited | environment | {"TMPDIR": temporary},
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout:
            words += line
            if done := re.search(r"\] (PASSED|FAILED) \S*?(\w+)\.ip", line):
                print(f"  {done[2]}: {done[1].lower()}", flush=True)
    return words


# %% book/execute.md#one-run-by-pytest 94bb99bd
from bertbook.kernels import fork_settings


def run_notebooks(
    root: Path, paths: list[Path], timeout: int, threads: str = "1"
) -> dict:
    """Execute notebooks in place; those that failed, to pytest's words."""
    from xml.etree import ElementTree

    report = root / STORE / "report.xml"
    report.unlink(missing_ok=True)
    processes = min(2, len(paths))
    forked = fork_settings(root) if len(paths) > processes else {}
    words = _pytest(
        root,
        [
            f"--rootdir={root / STORE}",
            f"--nbmake-timeout={timeout}",
            f"--numprocesses={processes}",
            "--maxschedchunk=1",
            f"--junitxml={report}",
            *map(str, paths),
        ],
        {"OMP_NUM_THREADS": threads} | forked,
    )
    if not report.exists():
        raise TangleError(f"{STORE}:1: pytest did not run\n{words}")
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return {
        root / STORE / Path(case.get("name")).name: part.text or ""
        for case in cases
        for part in case
        if part.tag in ("failure", "error")
    }


# %% book/execute.md#where-it-failed 913c5f0d
_COLOUR = re.compile(r"(?:\x1b|#x1B)\[[0-9;]*m")
_FRAME = re.compile(r"Cell In\[(\d+)\], line (\d+)(.*?)(?=\n\n|\Z)", re.S)


def _translated(text: str, chapter: Chapter, notebook) -> str:
    """`text` with the places in cells told as places in the chapter."""
    counts = {
        cell.get("execution_count"): own
        for cell, own in zip(code_cells(notebook), chapter.cells)
    }

    def place(frame):
        if (cell := counts.get(int(frame[1]))) is None:
            return frame[0]
        shift = cell.line - 1
        code = re.sub(
            r"(?m)^([ >-]*)(\d+)(?= |$)",
            lambda m: f"{m[1]}{int(m[2]) + shift}",
            frame[3],
        )
        return f"{chapter.path}:{int(frame[2]) + shift}{code}"

    return _FRAME.sub(place, _COLOUR.sub("", text))


# %% book/execute.md#where-it-failed 901a8d08
def describe_failure(
    chapter: Chapter, notebook, words: str, timeout: int
) -> str:
    """The located problem of a notebook that failed, with its traceback."""
    hung = "A cell timed out while it was being executed" in words
    for number, cell in enumerate(code_cells(notebook)):
        errors = [
            each for each in cell.outputs if each.output_type == "error"
        ]
        times = cell.metadata.get("execution", {})
        if not errors and not (hung and "shell.execute_reply" not in times):
            continue
        text = "\n".join(errors[0].traceback) if errors else ""
        text = _translated(text, chapter, notebook)
        places = re.findall(rf"{re.escape(chapter.path)}:(\d+)", text)
        line = places[0] if places else chapter.cells[number].line
        place = f"{chapter.path}:{line}: cell {number + 1}"
        if hung:
            return (
                f"{place} ran longer than {timeout} s, the limit; make "
                "it shorter, or give a longer --timeout"
            )
        said = f"{errors[0].ename}: {_COLOUR.sub('', errors[0].evalue)}"
        shown = "\n".join(f"    {each}" for each in text.split("\n"))
        return f"{place}: {said}\n{shown}"
    return _without_cell(chapter, words)


# %% book/execute.md#where-it-failed 68b764e4
def _without_cell(chapter: Chapter, words: str) -> str:
    """The problem of a notebook whose kernel did not start or live."""
    plain, place = _COLOUR.sub("", words), f"{chapter.path}:1"
    if missing := re.search(r"No such kernel: '?([\w.-]+)", plain):
        return (
            f"{place}: the kernel {missing[1]!r} is not installed; use "
            "python3 in the front matter, and install requirements.txt"
        )
    if "DeadKernelError" in plain:
        return (
            f"{place}: its kernel died, as it does when memory runs "
            "out; run its cells one by one to find which"
        )
    return f"{place}: nbmake failed\n{plain}"


# %% book/execute.md#pictures-have-words ce98b153
def figure_problems(chapter: Chapter, notebook) -> list[str]:
    """The cells of a notebook that show a figure without a text."""
    problems = []
    for cell, ran in zip(chapter.cells, code_cells(notebook)):
        shown = any(
            kind.startswith("image/")
            for output in ran.outputs
            for kind in output.get("data", {})
        )
        image = cell.options.get("mystnb", {}).get("image", {})
        if shown and not str(image.get("alt") or "").strip():
            problems.append(
                f"{chapter.path}:{cell.line}: the cell shows a "
                "figure without alt text; say its point in the "
                "option mystnb: {image: {alt: …}}"
            )
    return problems


# %% book/execute.md#all-together 8d17800d
_UNBORN = re.compile("Kernel (died before replying|didn't respond)")


def _run_twice(
    root: Path, paths: list[Path], timeout: int, threads: str = "1"
) -> dict:
    """As `run_notebooks`, with another try for kernels never started."""
    failed = run_notebooks(root, paths, timeout, threads)
    unborn = [
        path for path, words in failed.items() if _UNBORN.search(words)
    ]
    if unborn:
        print(f"starting {len(unborn)} kernels again", flush=True)
        again = run_notebooks(root, unborn, timeout, threads)
        failed = {
            p: w for p, w in failed.items() if p not in unborn
        } | again
    return failed


# %% book/execute.md#all-together 4451a5b5
def _run_all(root: Path, paths: dict[Path, Chapter], timeout: int) -> dict:
    """One by one those that ask for all cores, then two at a time."""
    wide = [
        path
        for path, chapter in paths.items()
        if chapter.notebook.metadata.get("threads") == "all"
    ]
    failed = {}
    for path in wide:
        threads = str(describe_machine()["cores"])
        failed |= _run_twice(root, [path], 5 * timeout, threads)
    if narrow := [path for path in paths if path not in wide]:
        threads = os.environ.get("OMP_NUM_THREADS", "1")
        failed |= _run_twice(root, narrow, timeout, threads)
    return failed


# %% book/execute.md#all-together 9bda4a00
from bertbook.exercises import with_stub_checks


def _run_stale(root: Path, stale: dict[Chapter, str], timeout: int):
    import nbformat

    longest = sorted(stale, key=lambda chapter: -len(chapter.text))
    paths = {executed_path(root, chapter): chapter for chapter in longest}
    notebooks = [with_stub_checks(chapter) for chapter in longest]
    names = ", ".join(Path(chapter.path).stem for chapter in stale)
    print(f"executing {names}", flush=True)
    (root / STORE).mkdir(exist_ok=True)
    for notebook, path in zip(notebooks, paths):
        nbformat.write(notebook, path)
    failed = _run_all(root, paths, timeout)
    done, problems = {}, []
    for path, chapter in paths.items():
        notebook = nbformat.read(path, nbformat.NO_CONVERT)
        if path in failed:
            problems.append(
                describe_failure(chapter, notebook, failed[path], timeout)
            )
            continue
        done[chapter.path] = with_outputs(chapter, notebook)
        store_executed(root, chapter, done[chapter.path], stale[chapter])
    return done, problems


# %% book/execute.md#all-together 70909d87
def execute(
    book: Book,
    force: bool = False,
    timeout: int = 600,
    only: list[str] = (),
) -> tuple[dict, list[str]]:
    """Run the stale chapters of `book`; returns (notebooks, problems).

    `notebooks` maps the path of each chapter with cells to its notebook
    with outputs, `problems` says where the others failed. With `force`
    every chapter is stale. A cell may run `timeout` seconds. `only` picks
    chapters by path; without it all are meant.
    """
    done, stale = {}, {}
    for chapter in book.chapters:
        if not chapter.cells or only and chapter.path not in only:
            continue
        key = chapter_key(book, chapter)
        notebook = None if force else load_executed(book.root, chapter, key)
        if notebook is None:
            stale[chapter] = key
        else:
            done[chapter.path] = notebook
    problems = []
    if stale:
        fresh, problems = _run_stale(book.root, stale, timeout)
        done |= fresh
    for chapter in book.chapters:
        if chapter.path in done:
            problems += figure_problems(chapter, done[chapter.path])
    return done, problems
