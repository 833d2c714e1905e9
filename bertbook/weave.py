"""Weaving in one command

Checks, executes, renders and publishes the book with one command, and keeps
doing so while you write.

The page: https://bertbook.github.io/bertbook/book/weave.html
"""

# Tangled from book/weave.md (7fbb0e1b): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "FRAME",
    "INPUTS",
    "SEEN",
    "fill_cache",
    "main",
    "rebuild",
    "render",
    "report",
    "serve",
    "weave",
]


# %% book/weave.md#from-the-run-to-the-renderer 8f14bf4d
import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from bertbook.chapters import TangleError
from bertbook.execute import execute
from bertbook.modules import load_book
from bertbook.notebooks import publish
from bertbook.reproducibility import write_atomically
from bertbook.tangle import check, find_root, sync, write_files


# %% book/weave.md#from-the-run-to-the-renderer 1a3a8755
def fill_cache(root: Path, notebooks: dict) -> None:
    """Put the executed notebooks where MyST-NB looks for outputs."""
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn

    cache = get_cache(root / "_build" / ".jupyter_cache")
    for path, notebook in notebooks.items():
        cache.cache_notebook_bundle(
            CacheBundleIn(notebook, str(root / path)),
            check_validity=False,
            overwrite=True,
        )


# %% book/weave.md#what-pages-are-made-from 8eed270e
SEEN = "_build/rendered.json"
FRAME = (
    "_config.yml",
    "_toc.yml",
    "requirements.txt",
    "book/_static/*",
    "bertbook/links.py",
    "bertbook/pages.py",
)
INPUTS = (*FRAME, "book/**/*", "bertbook/*.py", ".executed/*.ipynb")


def _digest(root: Path, patterns) -> str:
    found = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            if path.is_file():
                found.update(f"{path.relative_to(root)}\0".encode())
                found.update(path.read_bytes())
    return found.hexdigest()


def _seen(root: Path) -> dict:
    path = root / SEEN
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


# %% book/weave.md#what-pages-are-made-from 38d81c81
def _state(root: Path) -> dict:
    """What pages rendered now are made from."""
    return {"inputs": _digest(root, INPUTS), "frame": _digest(root, FRAME)}


# %% book/weave.md#rendering 7018e993
def _run_jupyter_book(root: Path) -> list[str]:
    program = Path(sys.executable).with_name("jupyter-book")
    command = [program, "build", ".", "-n", "-W", "--keep-going", "-q"]
    search = [str(root), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, search)),
        "PYTHONHASHSEED": "0",
    }
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, env=environment
    )
    if done.returncode == 0:
        return []
    said = re.sub("\x1b\\[[0-9;]*m", "", done.stdout + done.stderr)
    lines = said.replace(f"{root}/", "").split("\n")
    return [
        line for line in lines if re.search(r"\b(WARNING|ERROR): ", line)
    ] or lines


# %% book/weave.md#rendering 4aff94cf
def render(root: Path) -> list[str]:
    """Run Jupyter Book; every warning is a problem.

    Pages that did not change are left alone, unless the frame of all pages
    did, or the last run failed: Sphinx tells the warnings of a page only
    when it reads it.
    """
    html = root / "_build" / "html"
    if _seen(root).get("frame") != _digest(root, FRAME):
        shutil.rmtree(html, ignore_errors=True)
        shutil.rmtree(html.with_name(".doctrees"), ignore_errors=True)
    # Addresses of style sheets hold a digest if the file is there already,
    # and the first build of all would differ from the next.
    shutil.rmtree(html / "_static", ignore_errors=True)
    if problems := _run_jupyter_book(root):
        (root / SEEN).unlink(missing_ok=True)
    return problems


# %% book/weave.md#rendering 9fc95474
def _repository(root: Path) -> str:
    import yaml

    config = yaml.safe_load((root / "_config.yml").read_text("utf-8"))
    return (config.get("repository") or {}).get("url", "")


# %% book/weave.md#rendering 09a1405d
def weave(root: Path, force: bool = False, timeout: int = 600) -> list[str]:
    """Check, execute, render and publish the book at `root`.

    With `force` every chapter runs; a cell may run `timeout` seconds.
    Returns the problems, none if all went well.
    """
    if problems := check(root):
        return problems
    book = load_book(root)
    notebooks, problems = execute(book, force, timeout)
    state = _state(root)  # before rendering: an edit meanwhile must show
    if problems or _seen(root) == state:
        return problems
    fill_cache(root, notebooks)
    if problems := render(root):
        return problems
    publish(
        book,
        notebooks,
        root / "_build" / "html" / "notebooks",
        _repository(root),
    )
    write_atomically(root / SEEN, json.dumps(state))
    return []


# %% book/weave.md#while-you-write 8e28e6f4
def report(root: Path, problems: list[str], began: float) -> int:
    """Print what was done or what is wrong; returns the exit status."""
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return 1
    print(
        f"the book: {root / '_build/html/index.html'} "
        f"({time.perf_counter() - began:.1f} s)",
        flush=True,
    )
    return 0


def rebuild(root: Path, timeout: int = 600, changed_paths=()) -> None:
    """Fold, tangle and weave after a save, and print what is wrong."""
    began = time.perf_counter()
    try:
        write_files(root, sync(root))
        problems = weave(root, timeout=timeout)
    except TangleError as error:
        problems = error.problems
    report(root, problems, began)


# %% book/weave.md#while-you-write 788ec81e
def serve(root: Path, port: int, timeout: int = 600) -> None:
    """Serve the pages, and weave again whenever a chapter is saved."""
    import uvicorn
    from sphinx_autobuild.__main__ import _create_app
    from sphinx_autobuild.filter import IgnoreFilter

    rebuild(root, timeout)
    pages = root / "_build" / "html"
    pages.mkdir(parents=True, exist_ok=True)
    watched = [
        root / "book",
        root / "bertbook",
        root / "_config.yml",
        root / "_toc.yml",
    ]
    app = _create_app(
        watched,
        IgnoreFilter([], ["__pycache__", r"\.tmp$"]),
        partial(rebuild, root, timeout),
        pages,
        f"127.0.0.1:{port}",
    )
    print(f"serving http://127.0.0.1:{port}", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


# %% book/weave.md#the-command 6e52d07a
def _options(arguments: list[str] | None):
    parser = argparse.ArgumentParser(
        prog="python -m bertbook.weave",
        description="Execute the chapters and render them to _build/html.",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="execute every chapter, changed or not",
    )
    parser.add_argument(
        "--timeout",
        type=int,
        default=600,
        metavar="S",
        help="seconds that a cell may run (default 600)",
    )
    parser.add_argument(
        "--execute",
        nargs="*",
        metavar="CHAPTER",
        help="only execute, these chapters or all",
    )
    parser.add_argument(
        "--serve",
        nargs="?",
        type=int,
        const=8000,
        metavar="PORT",
        help="watch and serve (port 8000)",
    )
    return parser.parse_args(arguments)


# %% book/weave.md#the-command 11956324
def main(arguments: list[str] | None = None) -> int:
    """The command `python -m bertbook.weave`; returns its exit status."""
    options, began = _options(arguments), time.perf_counter()
    try:
        root = find_root(Path.cwd())
        if options.serve:
            serve(root, options.serve, options.timeout)
            return 0
        if options.execute is None:
            problems = weave(root, options.force, options.timeout)
        else:
            _, problems = execute(
                load_book(root),
                options.force,
                options.timeout,
                options.execute,
            )
    except TangleError as error:
        problems = error.problems
    return report(root, problems, began)


# A notebook is __main__ too, but no file: there it only defines.
if __name__ == "__main__" and "__file__" in globals():
    raise SystemExit(main())
