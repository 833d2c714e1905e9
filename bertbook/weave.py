"""Weaving: one command

Checks, executes and renders the book, and keeps doing so while you write.

The page: https://bertbook.github.io/bertbook/book/weave.html
"""

# Tangled from book/weave.md (e84615): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "FRAME",
    "INPUTS",
    "INSTALL",
    "SEEN",
    "fill_cache",
    "main",
    "plain_markdown",
    "publish",
    "publishable",
    "rebuild",
    "render",
    "report",
    "serve",
    "weave",
]


# %% book/weave.md#weaving-one-command 9980d9
import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from copy import deepcopy
from functools import partial
from pathlib import Path

from bertbook.chapters import Chapter, TangleError, base_url
from bertbook.execute import execute
from bertbook.modules import Book, load_book
from bertbook.reproducibility import write_atomically
from bertbook.tangle import check, find_root, sync, write_files


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


# %% book/weave.md#weaving-one-command 524959
SEEN = "_build/rendered.json"
INPUTS = (
    "_config.yml",
    "_toc.yml",
    "requirements.txt",
    "book/**/*",
    "bertbook/*.py",
    ".executed/*.ipynb",
)
FRAME = (
    "_config.yml",
    "_toc.yml",
    "requirements.txt",
    "book/_static/*",
    "bertbook/pages.py",
)


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


def _state(root: Path) -> dict:
    """What pages rendered now are made from."""
    return {"inputs": _digest(root, INPUTS), "frame": _digest(root, FRAME)}


# %% book/weave.md#weaving-one-command 96b6c3
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


def render(root: Path) -> list[str]:
    """Run Jupyter Book; every warning is a problem.

    Pages that did not change are left alone, unless the frame of all pages
    did, or the last run failed: Sphinx tells the warnings of a page only
    when it reads it.
    """
    build = root / "_build"
    if _seen(root).get("frame") != _digest(root, FRAME):
        shutil.rmtree(build / "html", ignore_errors=True)
        shutil.rmtree(build / ".doctrees", ignore_errors=True)
    if problems := _run_jupyter_book(root):
        (root / SEEN).unlink(missing_ok=True)
    return problems


# %% book/weave.md#a-notebook-for-every-page ff8b5f
INSTALL = """\
try:
    import bertbook
except ImportError:
    %pip install -q "bertbook[book] @ git+{repository}"
"""
_FENCE = re.compile(
    r"^(`{3,}|:{3,})([^\n]*)\n(.*?)^\1[`:]*[ ]*$", re.M | re.S
)


def _link(match, titles: dict[str, str], site: str) -> str:
    text, target = match[1], match[2]
    page, _, anchor = target.partition("#")
    if not page.endswith(".md"):
        return match[0]
    name = Path(page).stem
    address = f"{site}/book/{name}.html" + (f"#{anchor}" if anchor else "")
    return f"[{text or titles.get(name, name)}]({address})"


def _role(match, titles: dict[str, str], site: str, glued: dict) -> str:
    role, text = match[1], match[2]
    if explicit := re.fullmatch(r"(.*?)\s*<([^>]*)>", text):
        text, target = explicit.groups()
    else:
        target = text
    if role.startswith("glue"):
        return glued.get(target.partition(":")[0], text)
    if role == "doc":
        name = Path(target).stem
        shown = text if explicit else titles.get(name, name)
        return f"[{shown}]({site}/book/{name}.html)"
    if role.startswith("cite"):
        return f"[{text}]({site}/book/references.html)"
    return text


# %% book/weave.md#a-notebook-for-every-page 406cc4
def _directive(match, convert) -> str:
    name = re.match(r"\{([\w:-]+)\}\s*(.*)", match[2])
    if name is None:  # a block of code
        return match[0]
    if name[1] in ("bibliography", "tableofcontents", "eval-rst"):
        return ""
    body = re.sub(r"\A(?::[\w-]+:.*\n)+", "", match[3]).strip()
    if name[1] in ("math", "code", "code-block"):
        return (
            f"$$\n{body}\n$$"
            if name[1] == "math"
            else f"```{name[2]}\n{body}\n```"
        )
    title = f"**{name[2]}**\n\n" if name[2] else ""
    return re.sub("(?m)^", "> ", convert(title + body)).rstrip()


def plain_markdown(
    text: str, titles: dict[str, str], site: str, glued: dict[str, str]
) -> str:
    """MyST `text` as Markdown that any notebook viewer shows.

    Roles become words or links to `site`, whose pages have `titles`;
    directives become quotations; `glued` holds the values of glue.
    """

    def prose(part: str) -> str:
        part = re.sub(r"(?m)^\([\w-]+\)=\n", "", part)
        part = re.sub(
            r"\{([\w:-]+)\}`([^`]+)`",
            lambda m: _role(m, titles, site, glued),
            part,
        )
        part = re.sub(
            r"\[([^\]]*)\]\(([^)\s]+)\)",
            lambda m: _link(m, titles, site),
            part,
        )
        return re.sub(r"(?m)^(.*\$\$)\s*\([\w-]+\)[ ]*$", r"\1", part)

    def convert(whole: str) -> str:
        parts, end = [], 0
        for match in _FENCE.finditer(whole):
            parts += [
                prose(whole[end : match.start()]),
                _directive(match, convert),
            ]
            end = match.end()
        return "".join([*parts, prose(whole[end:])])

    return convert(text)


# %% book/weave.md#a-notebook-for-every-page a39c76
def _glued(notebook) -> dict[str, str]:
    """The text of every value that the chapter glues."""
    values = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            name = (
                output.get("metadata", {}).get("scrapbook", {}).get("name")
            )
            data = output.get("data", {})
            for kind, value in data.items():
                if name and kind.endswith("text/plain"):
                    values[name] = value.strip("'")
    return values


def publishable(
    chapter: Chapter,
    notebook,
    titles: dict[str, str],
    site: str,
    repository: str,
):
    """The executed `notebook` of `chapter`, made to stand alone."""
    import nbformat

    page, glued = deepcopy(notebook), _glued(notebook)
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = plain_markdown(cell.source, titles, site, glued)
        tags = cell.metadata.get("tags", [])
        folded = {"hide-cell", "hide-input"} & set(tags)
        cell.metadata = nbformat.from_dict(
            {"jupyter": {"source_hidden": True}} if folded else {}
        )
    address = f"{site}/{chapter.path[:-3]}.html"
    install = nbformat.v4.new_code_cell(
        INSTALL.format(repository=repository)
    )
    about = nbformat.v4.new_markdown_cell(
        f"This is [a page of bertbook]({address}) as it ran."
    )
    page.cells = [about, install, *page.cells]
    for number, cell in enumerate(page.cells):
        cell["id"] = f"cell-{number}"
    kept = {"kernelspec", "language_info"}
    page.metadata = nbformat.from_dict(
        {key: value for key, value in page.metadata.items() if key in kept}
    )
    page.metadata.kernelspec.setdefault("display_name", "Python 3")
    page.nbformat, page.nbformat_minor = 4, 5
    nbformat.validate(page)
    return page


# %% book/weave.md#a-notebook-for-every-page 2b2814
def publish(
    book: Book, notebooks: dict, folder: Path, repository: str
) -> None:
    """Write the published notebook of each chapter, and what Binder needs.

    `notebooks` maps paths of chapters to their executed notebooks.
    """
    import nbformat

    titles = {Path(each.path).stem: each.title for each in book.chapters}
    folder.mkdir(parents=True, exist_ok=True)
    for chapter in book.chapters:
        if chapter.path in notebooks:
            page = publishable(
                chapter,
                notebooks[chapter.path],
                titles,
                base_url(book.root),
                repository,
            )
            write_atomically(
                folder / f"{Path(chapter.path).stem}.ipynb",
                nbformat.writes(page) + "\n",
            )
    write_atomically(
        folder / "requirements.txt", f"bertbook[book] @ git+{repository}\n"
    )


# %% book/weave.md#the-command af6f3f
def _repository(root: Path) -> str:
    import yaml

    config = yaml.safe_load((root / "_config.yml").read_text("utf-8"))
    return (config.get("repository") or {}).get("url", "")


def weave(root: Path, force: bool = False, timeout: int = 600) -> list[str]:
    """Check, execute, render and publish; the problems, none if all went."""
    if problems := check(root):
        return problems
    book = load_book(root)
    notebooks, problems = execute(book, force=force, timeout=timeout)
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


# %% book/weave.md#the-command b60fe3
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


# %% book/weave.md#the-command 303940
def main(arguments: list[str] | None = None) -> int:
    """The command `python -m bertbook.weave`; returns its exit status."""
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
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    try:
        root = find_root(Path.cwd())
        if options.serve:
            return serve(root, options.serve, options.timeout) or 0
        if options.execute is not None:
            _, problems = execute(
                load_book(root),
                options.force,
                options.timeout,
                options.execute,
            )
        else:
            problems = weave(root, options.force, options.timeout)
    except TangleError as error:
        problems = error.problems
    return report(root, problems, began)


# A notebook is __main__ too, but it is no file: there the cell only defines.
if __name__ == "__main__" and "__file__" in globals():
    raise SystemExit(main())
