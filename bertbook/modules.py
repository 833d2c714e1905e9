"""From cells to modules

Makes the text of each module from its cells, byte for byte the same
everywhere, and names every cell that a module could not hold.

The page: https://bertbook.github.io/bertbook/book/modules.html
"""

# Tangled from book/modules.md (947d475c): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Book",
    "OPTIONS",
    "SEAL",
    "SPLIT",
    "find_problems",
    "load_book",
    "seal",
    "tangle_module",
]


# %% book/modules.md#the-cells-of-a-module a31b46f3
import ast
import re
import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bertbook.chapters import (
    Cell,
    Chapter,
    TangleError,
    base_url,
    digest,
    read_book,
)


# %% book/modules.md#the-cells-of-a-module 43fe4aca
@dataclass(frozen=True)
class Book:
    """The chapters in reading order, and the cells of each module."""

    root: Path
    chapters: tuple[Chapter, ...]

    @cached_property
    def modules(self) -> dict[str, list[Cell]]:
        """The exported cells by target, `attention.py`, in order."""
        modules: dict[str, list[Cell]] = {}
        for chapter in self.chapters:
            for cell in chapter.cells:
                if "tangle" in cell.options:
                    modules.setdefault(
                        str(cell.options["tangle"]), []
                    ).append(cell)
        return modules

    def finished_before(self, cell: Cell) -> set[str]:
        """The modules whose cells all stand before `cell`."""
        order = {each.path: i for i, each in enumerate(self.chapters)}

        def place(each):
            return order[each.chapter], each.line

        return {
            "bertbook." + name.removesuffix(".py")
            for name, cells in self.modules.items()
            if place(cells[-1]) < place(cell)
        }


# %% book/modules.md#what-a-cell-may-hold 19f26acc
OPTIONS = {"tangle", "implements", "exercise", "tags", "mystnb"}


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _defined(statement: ast.stmt):
    """The names that a top-level statement defines."""
    if isinstance(statement, _DEFINITIONS):
        yield statement.name
    elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = getattr(statement, "targets", None) or [statement.target]
        for target in targets:
            for node in ast.walk(target):
                if isinstance(node, ast.Name) and isinstance(
                    node.ctx, ast.Store
                ):
                    yield node.id


# %% book/modules.md#what-a-cell-may-hold 38afc482
def _imported(tree: ast.Module):
    """(line, module) of each import, `.` leading the relative ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            if name == "bertbook":
                yield from (
                    (node.lineno, f"bertbook.{alias.name}")
                    for alias in node.names
                )
            else:
                yield node.lineno, name


# %% book/modules.md#what-a-cell-may-hold c83877c1
def _syntax_problem(cell: Cell, error: SyntaxError) -> str:
    line = (cell.text.split("\n") + [""])[(error.lineno or 1) - 1].lstrip()
    place = cell.place(error.lineno or 1)
    if line.startswith(("%", "!")) or line.endswith("?"):
        return (
            f"{place}: '{line}' is a magic, which a module cannot hold; "
            "move it to a cell without :tangle:"
        )
    return f"{place}: the cell does not parse: {error.msg}; mend it"


# %% book/modules.md#what-a-cell-may-hold fa855b9e
def _import_problems(cell: Cell, tree: ast.Module, before: set[str]):
    for line, name in _imported(tree):
        place = cell.place(line)
        if name == "__future__":
            yield (
                f"{place}: a __future__ import must stand first in a "
                "module, and a cell cannot; quote the annotation"
            )
        elif name.startswith("."):
            yield (
                f"{place}: a relative import does not run in a chapter; "
                "import from bertbook.<module>"
            )
        elif name.startswith("bertbook") and name not in before:
            yield (
                f"{place}: {name} is not made before this cell; "
                "import earlier chapters only, or reorder _toc.yml"
            )


# %% book/modules.md#what-a-cell-may-hold 651c8f40
def _cell_problems(cell: Cell, seen: dict[str, str], before: set[str]):
    """The problems of one exported cell; `seen` maps names to places."""
    place, target = cell.place(), cell.options["tangle"]
    if not re.fullmatch(r"[A-Za-z_]\w*\.py", str(target)):
        yield (
            f"{place}: the target {target!r} is no module of bertbook/; "
            "name it like attention.py"
        )
    if not cell.text:
        yield f"{place}: the exported cell is empty; fill or delete it"
    for line in cell.text.split("\n"):
        if line.startswith(("# %%", "# isort: split")):
            yield (
                f"{place}: the line '{line}' would be taken for a "
                "marker; indent or reword it"
            )
    try:
        tree = ast.parse(cell.text)
        compile(cell.text, str(target), "exec", dont_inherit=True)
    except SyntaxError as error:
        yield _syntax_problem(cell, error)
        return
    yield from _import_problems(cell, tree, before)
    for statement in tree.body:
        for name in _defined(statement):
            here = cell.place(statement.lineno)
            if name in seen:
                yield (
                    f"{here}: {name} is defined already at {seen[name]};"
                    " define it once"
                )
            seen[name] = here


# %% book/modules.md#what-a-cell-may-hold 997b005c
def find_problems(book: Book) -> list[str]:
    """What is wrong with the cells of `book`, one located line each."""
    problems = [
        f"{chapter.path}:{cell.fence[0] + 1}: the cell option :{name}: is "
        f"unknown; use one of {', '.join(sorted(OPTIONS))}"
        for chapter in book.chapters
        for cell in chapter.cells
        for name in sorted(cell.options.keys() - OPTIONS)
    ]
    for cells in book.modules.values():
        seen, twins = {}, {}
        for cell in cells:
            before = book.finished_before(cell)
            problems += _cell_problems(cell, seen, before)
            twin = twins.setdefault(digest(cell.text), cell)
            if twin is not cell:
                problems.append(
                    f"{cell.place()}: the cell repeats that at "
                    f"{twin.place()}; delete one"
                )
    return problems


# %% book/modules.md#a-module-byte-by-byte 7f26e8b2
def _public_names(cells: list[Cell]) -> list[str]:
    """What `__all__` lists; nothing if a cell sets `__all__` itself."""
    names = {
        name
        for cell in cells
        for statement in ast.parse(cell.text).body
        for name in _defined(statement)
    }
    if "__all__" in names:
        return []
    return sorted(name for name in names if not name.startswith("_"))


# %% book/modules.md#a-module-byte-by-byte d5a24227
def _header(book: Book, name: str, cells: list[Cell]) -> str:
    stem = name.removesuffix(".py")
    pages = {page.path: page for page in book.chapters}
    page = pages.get(f"book/{stem}.md") or pages[cells[0].chapter]
    title, summary = page.title, textwrap.fill(page.summary, 76)
    own = Path(page.path).stem
    if own != stem and f"{own}.py" in book.modules:
        title = cells[0].section.replace("-", " ").capitalize()
        summary = f"A section of the chapter: {page.title}"
    address = f"{base_url(book.root)}/{page.path[:-3]}.html"
    text = f"{title}\n\n{summary}\n\nThe page: {address}\n"
    text = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    text = re.sub('^"', '\\\\"', re.sub("(?m)^# %%", "\\\\x23 %%", text))
    public = "".join(f'    "{each}",\n' for each in _public_names(cells))
    exports = f"\n\n__all__ = [\n{public}]\n" if public else ""
    return (
        f'"""{text}"""\n\n'
        f"# Tangled from {page.path} (00000000): edit it there and run\n"
        "# `make tangle`, or edit it here and run `make sync`." + exports
    )


# %% book/modules.md#a-module-byte-by-byte 17ae20ce
SPLIT = "# isort: split\n"


SEAL = re.compile(r"\.md \([0-9a-f]{8}\):")


def seal(text: str) -> str:
    """The module `text` with the digest of its header and markers."""
    header = re.split(r"\n+(?:# %% |__all__ = )", text, maxsplit=1)[0]
    header = SEAL.sub(".md (00000000):", header, count=1)
    markers = re.findall(r"^# %%.*$", text, re.M)
    skeleton = digest("\n".join([header.strip(), *markers]))
    return SEAL.sub(f".md ({skeleton}):", text, count=1)


def _is_import(statement: ast.stmt) -> bool:
    return isinstance(statement, (ast.Import, ast.ImportFrom))


# %% book/modules.md#a-module-byte-by-byte 659fbba8
def tangle_module(book: Book, name: str) -> str:
    """The text of the module `name`, for example `attention.py`."""
    cells = book.modules[name]
    text, after_import = _header(book, name, cells), False
    for cell in cells:
        body = ast.parse(cell.text).body or [ast.Pass()]
        split = after_import and _is_import(body[0])
        close = after_import and not isinstance(body[0], _DEFINITIONS)
        text += "\n" if close else "\n\n"
        text += f"{cell.marker}\n{SPLIT if split else ''}{cell.text}\n"
        after_import = _is_import(body[-1])
    return seal(text)


# %% book/modules.md#a-module-byte-by-byte 8443f10a
def load_book(root: Path) -> Book:
    """The book at `root`. Raises TangleError with all its problems."""
    book = Book(root, tuple(read_book(root)))
    if problems := find_problems(book):
        raise TangleError(*problems)
    return book
