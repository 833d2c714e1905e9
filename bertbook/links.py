"""Names that lead to the package

Knows which public names the package has and which of them a page means, so
that each of them can be a link, in code and in prose.

The page: https://bertbook.github.io/bertbook/book/links.html
"""

# Tangled from book/links.md (dc11deac): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "definitions",
    "documented",
    "full_name",
    "hidden_imports",
    "link_names",
    "linked_body",
    "near",
    "own_names",
    "recall_links",
    "sort_links",
]


# %% book/links.md#which-names-there-are 3cd4ac15
import ast
import json
import re
from bisect import bisect
from pathlib import Path
from tempfile import TemporaryDirectory

from bertbook.freshness import mentioned
from bertbook.modules import Book


def definitions(code: str) -> list[str]:
    """The public functions and classes that `code` defines."""
    return [
        node.name
        for node in ast.parse(code).body
        if isinstance(
            node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        )
        and not node.name.startswith("_")
    ]


def _with_docstring(node, prefix=""):
    if not isinstance(
        node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    ) or node.name.startswith("_"):
        return
    if ast.get_docstring(node):
        yield prefix + node.name
    if isinstance(node, ast.ClassDef):
        for child in node.body:
            yield from _with_docstring(child, f"{node.name}.")


def documented(book: Book) -> dict[str, str]:
    """The full name of all that the API page shows, to its module."""
    names = {}
    for file, cells in book.modules.items():
        module = file.removesuffix(".py")
        for cell in cells:
            for node in ast.parse(cell.text).body:
                for name in _with_docstring(node):
                    names[f"bertbook.{module}.{name}"] = module
    return names


# %% book/links.md#which-one-is-meant da3c4456
def full_name(text: str, names: dict[str, str], near: set[str]) -> str:
    """Which of `names` is meant by `text` in prose, or "" if none is clear.

    `near` holds the modules that the chapter makes or imports. A name from
    elsewhere counts only if it is no plain word.
    """
    text = text.removesuffix("()").removeprefix("bertbook.")
    found = [
        name
        for name in names
        if name == f"bertbook.{text}" or name.split(".", 2)[2] == text
    ]
    close = [name for name in found if names[name] in near]
    if len(close) == 1:
        return close[0]
    plain = re.fullmatch("[a-z]+", text)
    return found[0] if len(found) == 1 and not plain else ""


# %% book/links.md#which-one-is-meant d5a3f13e
def near(book: Book, docname: str) -> set[str]:
    """The modules that the chapter `docname` makes or imports by name."""
    modules = set()
    for chapter in book.chapters:
        if chapter.path == f"{docname}.md":
            for cell in chapter.cells:
                target = str(cell.options.get("tangle", ""))
                modules |= mentioned(cell.text)
                modules |= {target.removesuffix(".py")} - {""}
    return modules


# %% book/links.md#imports-that-nobody-sees bf331b97
def hidden_imports(book: Book) -> dict[str, str]:
    """From the code of each exported cell to a line with its imports."""
    names, lines = documented(book), {}
    for file, cells in book.modules.items():
        module = file.removesuffix(".py")
        own = sorted(
            name.split(".")[2]
            for name, home in names.items()
            if home == module and name.count(".") == 2
        )
        line = f"from bertbook.{module} import {', '.join(own)}"
        lines |= {cell.text: line if own else "pass" for cell in cells}
    return lines


# %% book/links.md#imports-that-nobody-sees 4b4aec0c
def own_names(source: str, hidden: dict[str, str]) -> tuple[str, str]:
    """`source`, and what sphinx-codeautolink is to read in its place."""
    from sphinx_codeautolink import clean_ipython

    if line := hidden.get(source.strip()):
        return source, f"{line}\n{source}\n{line}"
    return clean_ipython(source)


# %% book/links.md#imports-that-nobody-sees 6128e26b
def link_names(findings: list, hidden: dict[str, str]) -> None:
    """Give each block of a page the names of this package that it uses.

    `findings` are what sphinx-codeautolink found in each block alone. What
    is found in the imports that `own_names` adds is dropped: the block has
    no such line.
    """
    from sphinx_codeautolink.parse import parse_names

    starts, program = [], []
    for found in findings:
        _, seen = own_names(found.source, hidden)
        seen = seen if _parses(seen) else ""
        seen += "\n" * (found.source.count("\n") - seen.count("\n"))
        starts.append(len(program) + (found.source.strip() in hidden))
        program += seen.split("\n")
        found.names = []
    for name in parse_names("\n".join(program), None):
        place = bisect(starts, name.lineno - 1) - 1
        name.lineno -= starts[place]
        name.end_lineno -= starts[place]
        last = findings[place].source.count("\n") + 1
        ours = name.import_components[0] == "bertbook"
        if ours and 1 <= name.lineno <= name.end_lineno <= last:
            findings[place].names.append(name)


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False  # of which sphinx-codeautolink has warned
    return True


# %% book/links.md#imports-that-nobody-sees 789f7c62
def recall_links(cache) -> None:
    """Read what was found before on pages that are not read again."""
    from sphinx_codeautolink.extension import block

    path = cache.cache_dir / cache.cache_filename
    pages = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for docname, found in pages.items():
        for each in found:
            each["names"] = [block.Name(**name) for name in each["names"]]
            each["example"] = block.CodeExample(**each["example"])
        cache.transforms[docname] = [
            block.SourceTransform(**each) for each in found
        ]


# %% book/links.md#links-in-many-processes d743512f
def linked_body(linker, docname: str, body: str) -> str:
    """The body of a page, its names linked by sphinx-codeautolink."""
    from sphinx_codeautolink.extension.block import link_html

    with TemporaryDirectory() as folder:
        file = Path(folder, f"{docname}.html")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(body, "utf-8")
        link_html(
            docname,
            folder,
            linker.cache.transforms[docname],
            linker.inventory,
            linker.custom_blocks,
            linker.search_css_classes,
            disable_link_titles=linker.disable_link_titles,
        )
        return file.read_text("utf-8")


# %% book/links.md#links-in-many-processes d0553525
def sort_links(app, env) -> None:
    """Event env-updated, before sphinx-codeautolink: pages in order."""
    found = env.sphinx_codeautolink_transforms
    for docname in sorted(found):
        found[docname] = found.pop(docname)
