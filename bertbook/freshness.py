"""When to run a page again

Finds everything that the outputs of a chapter depend on, in its own cells
and in the modules that it imports, and makes one key of it.

The page: https://bertbook.github.io/bertbook/book/freshness.html
"""

# Tangled from book/freshness.md (43164713): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "chapter_key",
    "mentioned",
    "modules_used",
]


# %% book/freshness.md#what-a-cell-imports b9beaf96
import ast
import hashlib
import re
import sys
from functools import cache
from pathlib import Path

from bertbook.chapters import Chapter
from bertbook.modules import Book
from bertbook.reproducibility import budget


# %% book/freshness.md#what-a-cell-imports 1cbca443
@cache
def mentioned(code: str) -> frozenset[str]:
    """The names of the package, modules or others, that `code` mentions."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        words = re.findall(r"\w+", code)
        return frozenset(words if "bertbook" in words else ())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            text = " ".join(alias.name for alias in node.names)
            names |= {
                "__init__"
                for alias in node.names
                if alias.name == "bertbook"
            }
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
    return frozenset(names)


# %% book/freshness.md#what-a-cell-imports f3f5c615
def _code(cells) -> str:
    return "\0".join(cell.text for cell in cells)


@cache
def _defined(code: str) -> list[str]:
    """The functions and classes that `code` defines."""
    nodes = ast.parse(code).body
    return [node.name for node in nodes if hasattr(node, "name")]


def _defining(book: Book) -> dict[str, set[str]]:
    """For each name that `mentioned` may return, the modules it means."""
    meaning: dict[str, set[str]] = {}
    for file, cells in book.modules.items():
        module = file.removesuffix(".py")
        meaning.setdefault(module, set()).add(module)
        for cell in cells:
            for name in _defined(cell.text):
                meaning.setdefault(name, set()).add(module)
    return meaning


# %% book/freshness.md#what-a-cell-imports 80c3463c
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


# %% book/freshness.md#the-key c22376e8
def _surroundings(root: Path) -> str:
    """What every chapter depends on: Python, the budget, the pins."""
    pins = root / "requirements.txt"
    text = pins.read_text("utf-8") if pins.exists() else ""
    return "\0".join([sys.version, budget(), text])


def _files_named(root: Path, code: str) -> list[str]:
    """Name and digest of what `code` names: recorded runs, `_toc.yml`."""
    files = [root / "_toc.yml", *(root / "book" / "results").glob("*.json")]
    return [
        f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        for file in sorted(files)
        if file.name in code and file.exists()
    ]


def chapter_key(book: Book, chapter: Chapter) -> str:
    """A digest of everything that the outputs of `chapter` depend on."""
    names = sorted(modules_used(book, chapter))
    codes = [_code(book.modules.get(f"{name}.py", [])) for name in names]
    own = _code(chapter.cells)
    files = _files_named(book.root, own)
    kernel = str(
        getattr(chapter.notebook, "metadata", {}).get("kernelspec")
    )
    parts = [_surroundings(book.root), kernel, own, *names, *codes, *files]
    return hashlib.sha256("\1".join(parts).encode()).hexdigest()[:16]
