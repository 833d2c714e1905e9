"""Running every chapter once

Runs each chapter once, again only when its code or what its code imports
has changed, and names the chapter and the line where one fails.

The page: https://bertbook.github.io/bertbook/book/execute.html
"""

# Tangled from book/execute.md (a6fd3c): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "STORE",
    "chapter_key",
    "code_cells",
    "describe_failure",
    "execute",
    "executed_path",
    "figure_problems",
    "load_executed",
    "mentioned",
    "modules_used",
    "run_notebooks",
    "store_executed",
    "with_outputs",
]


# %% book/execute.md#what-a-cell-imports c290f8
import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from bertbook.chapters import Chapter, TangleError
from bertbook.modules import Book
from bertbook.reproducibility import budget, write_atomically


def mentioned(code: str) -> set[str]:
    """The names of the package, modules or others, that `code` mentions."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return (
            set(re.findall(r"\w+", code)) if "bertbook" in code else set()
        )
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            text = " ".join(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            text = " ".join(
                f"{node.module}.{alias.name}" for alias in node.names
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        elif isinstance(node, ast.Attribute):
            text = ast.unparse(node)
        else:
            continue
        names.update(re.findall(r"\bbertbook\.(\w+)", text))
    return names


# %% book/execute.md#what-a-cell-imports 6b39d2
def _code(cells) -> str:
    return "\0".join(cell.text for cell in cells)


def _defining(book: Book) -> dict[str, set[str]]:
    """For each name that `mentioned` may return, the modules it means."""
    meaning: dict[str, set[str]] = {}
    for file, cells in book.modules.items():
        module = file.removesuffix(".py")
        meaning.setdefault(module, set()).add(module)
        for cell in cells:
            for node in ast.parse(cell.text).body:
                if name := getattr(node, "name", None):
                    meaning.setdefault(name, set()).add(module)
    return meaning


def modules_used(book: Book, chapter: Chapter) -> set[str]:
    """The modules that the cells of `chapter` import, directly or not."""
    meaning, reached = _defining(book), set()
    waiting = [cell.text for cell in chapter.cells]
    while waiting:
        names = mentioned(waiting.pop())
        found = set().union(*(meaning.get(name, set()) for name in names))
        found |= {"__init__"} if found else set()
        for module in found - reached:
            cells = book.modules.get(f"{module}.py", [])
            waiting += [cell.text for cell in cells]
        reached |= found
    return reached


# %% book/execute.md#the-key-of-a-chapter 557cc4
def _surroundings(root: Path) -> str:
    """What every chapter depends on: Python, the budget, the pins."""
    pins = root / "requirements.txt"
    text = pins.read_text("utf-8") if pins.exists() else ""
    return "\0".join([sys.version, budget(), text])


def _runs_named(root: Path, code: str) -> list[str]:
    """Name and digest of each recorded run whose name stands in `code`."""
    runs = sorted((root / "book" / "results").glob("*.json"))
    return [
        f"{run.name} {hashlib.sha256(run.read_bytes()).hexdigest()}"
        for run in runs
        if run.stem in code
    ]


def chapter_key(book: Book, chapter: Chapter) -> str:
    """A digest of everything that the outputs of `chapter` depend on."""
    names = sorted(modules_used(book, chapter))
    codes = [_code(book.modules.get(f"{name}.py", [])) for name in names]
    own = _code(chapter.cells)
    runs = _runs_named(book.root, "\0".join([own, *codes]))
    parts = [_surroundings(book.root), own, *names, *codes, *runs]
    return hashlib.sha256("\1".join(parts).encode()).hexdigest()[:16]


# %% book/execute.md#what-ran-is-kept 59e769
STORE = ".executed"


def executed_path(root: Path, chapter: Chapter) -> Path:
    """Where the executed notebook of `chapter` is kept."""
    return root / STORE / (Path(chapter.path).stem + ".ipynb")


def code_cells(notebook) -> list:
    """The code cells of a notebook."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _merge_streams(outputs: list) -> list:
    merged = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output.output_type == "stream" == last.get("output_type") and (
            output.name == last["name"]
        ):
            last["text"] += output.text
        else:
            merged.append(output)
    return merged


# %% book/execute.md#what-ran-is-kept 6a3e22
def with_outputs(chapter: Chapter, executed):
    """The notebook of `chapter` with the outputs of the notebook `executed`.

    Only outputs, their numbers and the language come from `executed`;
    cells and metadata are the chapter's, so a later edit of its prose shows.
    """
    from copy import deepcopy

    notebook = deepcopy(chapter.notebook)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    notebook.nbformat_minor = 5
    for cell, ran in zip(
        code_cells(notebook), code_cells(executed), strict=True
    ):
        cell.outputs = _merge_streams(deepcopy(ran.outputs))
        cell.execution_count = ran.execution_count
    if language := executed.metadata.get("language_info"):
        notebook.metadata["language_info"] = language
    return notebook


# %% book/execute.md#what-ran-is-kept 32d651
def load_executed(root: Path, chapter: Chapter, key: str):
    """The notebook that ran under `key` with its outputs, or None."""
    import nbformat

    path = executed_path(root, chapter)
    try:
        executed = nbformat.from_dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return None
    if executed.metadata.get("bertbook", {}).get("key") != key:
        return None
    return with_outputs(chapter, executed)


def store_executed(
    root: Path, chapter: Chapter, notebook, key: str
) -> None:
    """Keep `notebook`, which ran under `key`."""
    import nbformat

    notebook.metadata["bertbook"] = {"key": key}
    text = nbformat.writes(notebook)
    write_atomically(executed_path(root, chapter), text)


# %% book/execute.md#one-run-by-pytest 176f4f
def _pytest(root: Path, arguments: list[str]) -> str:
    """Run pytest on the notebooks and say what is done; returns its words."""
    search = [str(root), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, search)),
        "PYTHONHASHSEED": "0",
        "IPYTHONDIR": str(root / STORE / "ipython"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
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
    with subprocess.Popen(
        [*command, *arguments],
        env=environment,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout:
            words += line
            if done := re.search(r"(PASSED|FAILED) \S*?(\w+)\.ipynb", line):
                print(f"  {done[2]}: {done[1].lower()}", flush=True)
    return words


def run_notebooks(root: Path, paths: list[Path], timeout: int) -> dict:
    """Execute the notebooks in place; what failed, path to pytest's words."""
    from xml.etree import ElementTree

    report = root / STORE / "report.xml"
    report.unlink(missing_ok=True)
    words = _pytest(
        root,
        [
            f"--rootdir={root / STORE}",
            f"--nbmake-timeout={timeout}",
            f"--numprocesses={min(2, len(paths))}",
            "--maxschedchunk=1",
            f"--junitxml={report}",
            *map(str, paths),
        ],
    )
    if not report.exists():
        raise TangleError([f"{STORE}:1: pytest did not run\n{words}"])
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return {
        root / STORE / Path(case.get("name")).name: part.text or ""
        for case in cases
        for part in case
        if part.tag in ("failure", "error")
    }


# %% book/execute.md#where-it-failed 6052bc
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


def describe_failure(
    chapter: Chapter, notebook, words: str, timeout: int
) -> str:
    """The located problem of a notebook that failed, with its traceback."""
    for number, cell in enumerate(code_cells(notebook)):
        line = chapter.cells[number].line
        for output in cell.outputs:
            if output.output_type != "error":
                continue
            text = _translated(
                "\n".join(output.traceback), chapter, notebook
            )
            places = re.findall(rf"{re.escape(chapter.path)}:(\d+)", text)
            line = places[0] if places else line
            return (
                f"{chapter.path}:{line}: cell {number + 1}: "
                f"{output.ename}: {_COLOUR.sub('', output.evalue)}\n"
                + "\n".join("    " + each for each in text.split("\n"))
            )
        times = cell.metadata.get("execution", {})
        if "timed out" in words and "shell.execute_reply" not in times:
            return (
                f"{chapter.path}:{line}: cell {number + 1} ran longer "
                f"than {timeout} s, the limit; make it shorter, or give "
                "a longer --timeout"
            )
    return _without_cell(chapter, words)


# %% book/execute.md#where-it-failed 3cf1a7
def _without_cell(chapter: Chapter, words: str) -> str:
    """The problem of a notebook whose kernel did not start or did not live."""
    plain = _COLOUR.sub("", words)
    if missing := re.search(r"No such kernel: '?([\w.-]+)", plain):
        return (
            f"{chapter.path}:1: the kernel {missing[1]!r} is not "
            "installed; use python3 in the front matter, and install "
            "requirements.txt"
        )
    if "DeadKernelError" in plain:
        return (
            f"{chapter.path}:1: its kernel died, as it does when memory "
            "runs out; run the cells one by one to find which"
        )
    return f"{chapter.path}:1: nbmake failed\n{plain}"


# %% book/execute.md#pictures-have-words a5b2fb
def figure_problems(chapter: Chapter, notebook) -> list[str]:
    """The cells of an executed notebook that show a figure without a text."""
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


# %% book/execute.md#all-together 70909d
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


# %% book/execute.md#all-together e9598b
def _run_stale(root: Path, stale: dict[Chapter, str], timeout: int):
    import nbformat

    names = ", ".join(Path(chapter.path).stem for chapter in stale)
    print(f"executing {names}", flush=True)
    (root / STORE).mkdir(exist_ok=True)
    paths = {executed_path(root, chapter): chapter for chapter in stale}
    for path, chapter in paths.items():
        nbformat.write(chapter.notebook, path)
    failed = run_notebooks(root, list(paths), timeout)
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
