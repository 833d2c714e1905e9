"""Captions, links and the API page

Renders the executed chapters to the pages of the book, and ties code,
equations and the package together by links in both directions.

The page: https://bertbook.github.io/bertbook/book/pages.html
"""

# Tangled from book/pages.md (8c2d65): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "API",
    "Weaver",
    "add_buttons",
    "annotate",
    "check_equations",
    "definitions",
    "documented",
    "finish_page",
    "full_name",
    "keep_own_links",
    "launch_addresses",
    "list_uses",
    "name_implementers",
    "purge",
    "setup",
    "write_api",
]


# %% book/pages.md#a-small-extension-of-sphinx 601d3c
import ast
import json
import re
from pathlib import Path

from bertbook.execute import mentioned
from bertbook.modules import Book, load_book


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


# %% book/pages.md#a-small-extension-of-sphinx da3c44
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


# %% book/pages.md#captions 05d129
def _reference(kind: str, target: str, docname: str, text: str):
    """A cross-reference that Sphinx resolves when it writes the page."""
    from docutils import nodes
    from sphinx import addnodes

    domain, role = kind.split(":")
    reference = addnodes.pending_xref(
        "",
        refdomain=domain,
        reftype=role,
        reftarget=target,
        refdoc=docname,
        refexplicit=domain != "math",
        refwarn=True,
    )
    reference += (
        nodes.literal(text, text)
        if domain == "py"
        else (nodes.inline(text, text))
    )
    return reference


def _labels(metadata: dict) -> list[str]:
    return re.split(r"[,\s]+", str(metadata.get("implements", "")).strip())


def _caption(cell, names: dict[str, str], docname: str):
    """The line over an exported cell: its module, names and equations."""
    from docutils import nodes

    metadata, code = cell["cell_metadata"], cell.children[0].astext()
    module = str(metadata["tangle"]).removesuffix(".py")
    own = [
        name
        for name in definitions(code)
        if f"bertbook.{module}.{name}" in names
    ]
    page = "../" * docname.count("/") + f"_modules/bertbook/{module}.html"
    source = f"bertbook/{module}.py"
    line = nodes.paragraph(classes=["cell-caption"])
    if module in names.values():
        anchor = f"#{own[0]}" if own else ""
        line += nodes.reference(
            source, source, refuri=page + anchor, internal=True
        )
    else:
        line += nodes.Text(source)
    for label in filter(None, _labels(metadata)):
        line += nodes.Text(" · implements ")
        line += _reference("math:eq", label, docname, label)
    return line, own


# %% book/pages.md#captions bebf20
class Weaver:
    """The extension: what each event of Sphinx adds to the pages."""

    def __init__(self, app):
        self.book = load_book(Path(app.srcdir))
        self.names = documented(self.book)
        self.linker, self.imports = None, {}
        for file, cells in self.book.modules.items():
            module = file.removesuffix(".py")
            own = sorted(
                name.split(".")[2]
                for name, home in self.names.items()
                if home == module and name.count(".") == 2
            )
            for cell in cells:
                self.imports[cell.text] = (
                    f"from bertbook.{module} import {', '.join(own)}"
                    if own
                    else "pass"
                )

    def near(self, docname: str) -> set[str]:
        """The modules that the chapter makes or imports by name."""
        for chapter in self.book.chapters:
            if chapter.path == f"{docname}.md":
                made = {
                    str(cell.options.get("tangle", ""))
                    for cell in chapter.cells
                }
                named = set().union(
                    *(mentioned(cell.text) for cell in chapter.cells)
                )
                return {file.removesuffix(".py") for file in made} | named
        return set()

    def own_names(self, source: str) -> tuple[str, str]:
        """For sphinx-codeautolink: `source`, and the same with imports."""
        from sphinx_codeautolink import clean_ipython

        if line := self.imports.get(source.strip()):
            return source, f"{line}\n{source}\n{line}"
        return clean_ipython(source)


# %% book/pages.md#captions 9c674a
def _is_cell(node) -> bool:
    return (
        node.get("nb_element") == "cell_code"
        if hasattr(node, "get")
        else False
    )


def annotate(app, doctree) -> None:
    """Event doctree-read: captions, anchors and links in prose."""
    from docutils import nodes

    docname, weaver = app.env.docname, app.bertbook
    near = weaver.near(docname)
    if not near:
        return
    stored = Path(app.srcdir) / ".executed" / f"{Path(docname).stem}.ipynb"
    app.env.note_dependency(str(stored))
    implements = []
    for cell in list(doctree.findall(_is_cell)):
        if "tangle" not in cell["cell_metadata"]:
            continue
        line, own = _caption(cell, weaver.names, docname)
        cell.insert(0, line)
        anchor = f"code-{own[0] if own else cell['cell_index']}"
        cell["ids"].append(anchor)
        implements += [
            (label, anchor, own, cell.line)
            for label in filter(None, _labels(cell["cell_metadata"]))
        ]
    app.env.bertbook_implements[docname] = implements
    for literal in list(doctree.findall(nodes.literal)):
        linked = isinstance(literal.parent, (nodes.title, nodes.reference))
        name = full_name(literal.astext(), weaver.names, near)
        if name and not linked and "code" not in literal["classes"]:
            literal.replace_self(
                _reference("py:obj", name, docname, literal.astext())
            )


# %% book/pages.md#captions 934294
def keep_own_links(app, doctree) -> None:
    """Event doctree-read, after sphinx-codeautolink: mend its findings.

    Its lines are one too high where `own_names` put an import first, and
    names of other packages have no page here to link to.
    """
    docname = app.env.docname
    for found in app.env.sphinx_codeautolink_transforms.get(docname, ()):
        shift = found.source.strip() in app.bertbook.imports
        last = found.source.count("\n") + 1
        for name in found.names:
            name.lineno, name.end_lineno = (
                name.lineno - shift,
                name.end_lineno - shift,
            )
        found.names = [
            name
            for name in found.names
            if name.import_components[0] == "bertbook"
            and 1 <= name.lineno <= name.end_lineno <= last
        ]


# %% book/pages.md#equations e81b6e
def purge(app, env, docname) -> None:
    """Event env-purge-doc: forget what a page said."""
    env.bertbook_implements.pop(docname, None)


def check_equations(app, env) -> list[str]:
    """Event env-updated: refuse unknown labels; the pages to write again.

    These are the API page, which lists the uses of each name, and the pages
    of equations that other pages implement.
    """
    from sphinx.util import logging

    known = env.get_domain("math").equations
    pages = set()
    for docname, entries in env.bertbook_implements.items():
        for label, _, _, line in entries:
            if label in known:
                pages.add(known[label][0])
                continue
            logging.getLogger(__name__).warning(
                f":implements: {label} names no labelled equation; give the "
                f"equation that label, '$$ ... $$ ({label})', or mend it",
                location=(docname, line),
                type="bertbook",
            )
    return sorted(pages | {API} & env.found_docs)


# %% book/pages.md#equations 3994d6
def name_implementers(app, doctree, docname) -> None:
    """Event doctree-resolved: say below an equation what implements it."""
    from docutils import nodes

    for block in list(doctree.findall(nodes.math_block)):
        line = nodes.paragraph(classes=["implemented-by"])
        for page, entries in sorted(app.env.bertbook_implements.items()):
            for label, anchor, own, _ in entries:
                if label != block.get("label"):
                    continue
                line += nodes.Text(
                    ", " if line.children else "implemented by "
                )
                text = ", ".join(own) or "this cell"
                target = app.builder.get_relative_uri(docname, page)
                line += nodes.reference(
                    text, text, internal=True, refuri=f"{target}#{anchor}"
                )
        if line.children:
            block.parent.insert(block.parent.index(block) + 1, line)


# %% book/pages.md#the-api-page 5f5b16
API = "book/api"
_SECTION = """

## `bertbook.{module}`

```{{eval-rst}}
.. automodule:: bertbook.{module}
   :members:
   :member-order: bysource
```
"""


def write_api(app, docname, source) -> None:
    """Event source-read: add one section for each module to the API page."""
    if docname == API:
        app.env.note_dependency(str(Path(app.srcdir) / "_toc.yml"))
        for file in app.bertbook.book.modules:
            if file != "__init__.py":  # it only hands on what others hold
                module = file.removesuffix(".py")
                source[0] += _SECTION.format(module=module)


# %% book/pages.md#the-api-page 0f9ab3
def list_uses(app, doctree, docname) -> None:
    """Event doctree-resolved: the uses of a name as a list to unfold.

    sphinx-codeautolink makes a table with a link in its summary, which
    neither a keyboard nor a screen reader can tell from the summary.
    """
    from docutils import nodes
    from sphinx_codeautolink.extension.backref import (
        DetailsNode,
        SummaryNode,
    )

    for details in list(doctree.findall(DetailsNode)):
        links = list(details.children[1].findall(nodes.reference))
        places = "1 place" if len(links) == 1 else f"{len(links)} places"
        items = [
            nodes.list_item("", nodes.paragraph("", "", link))
            for link in links
        ]
        details.children = []
        details += SummaryNode("", f"used in {places} of the book")
        details += nodes.bullet_list("", *items)


# %% book/pages.md#buttons e2fa14
def launch_addresses(repository: str, file: str) -> tuple[str, str]:
    """Where Colab and Binder start the published notebook `file`.

    They read the branch `notebooks` of the repository on GitHub.
    """
    place = "/".join(repository.rstrip("/").split("/")[-2:])
    return (
        f"https://colab.research.google.com/github/{place}/blob/"
        f"notebooks/{file}",
        f"https://mybinder.org/v2/gh/{place}/notebooks?labpath={file}",
    )


# %% book/pages.md#buttons bbf114
def add_buttons(app, pagename, templatename, context, doctree) -> None:
    """Event html-page-context: launch and download the real notebook."""
    buttons = context.get("header_buttons")
    pages = {
        chapter.path[:-3]: chapter
        for chapter in app.bertbook.book.chapters
        if chapter.cells
    }
    if buttons is None or pagename not in pages:
        return
    file = f"{Path(pagename).name}.ipynb"
    colab, binder = launch_addresses(
        app.config.html_theme_options.get("repository_url", ""), file
    )
    images = "_static/images/logo_"
    launch = [
        ("Colab", colab, images + "colab.png"),
        ("Binder", binder, images + "binder.svg"),
    ]
    pathto = context["pathto"]
    download = [
        (".ipynb", pathto(f"notebooks/{file}", 1), "fas fa-code"),
        (".md", pathto(f"_sources/{pagename}.md", 1), "fas fa-file"),
    ]
    for position, (name, icon, links) in enumerate(
        [
            ("Run this page", "fas fa-rocket", launch),
            ("Download this page", "fas fa-download", download),
        ]
    ):
        buttons.insert(
            position,
            {
                "type": "group",
                "tooltip": name,
                "icon": icon,
                "label": ("launch", "download")[position] + "-buttons",
                "buttons": [
                    {"type": "link", "text": text, "url": url, "icon": sign}
                    for text, url, sign in links
                ],
            },
        )


# %% book/pages.md#all-events 722310
def _refuse_to_execute(*arguments, **options):
    from sphinx.errors import ExtensionError

    raise ExtensionError(
        "a chapter has not been executed; run `make`, "
        "which executes before it renders"
    )


def _recall_links(cache) -> None:
    """Read what sphinx-codeautolink found on pages that are not read again.

    Its own reader only looks for pages written in reStructuredText.
    """
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


def _prepare(app) -> None:
    """Event builder-inited: read the book, turn to sphinx-codeautolink."""
    from myst_nb.core.execute import cache

    cache.single_nb_execution = _refuse_to_execute
    app.bertbook = Weaver(app)
    if not hasattr(app.env, "bertbook_implements"):
        app.env.bertbook_implements = {}
    if app.builder.name != "html":
        return
    app.bertbook.linker = next(
        owner
        for each in app.events.listeners["build-finished"]
        if type(owner := getattr(each.handler, "__self__", None)).__name__
        == "SphinxCodeAutoLink"
    )
    app.bertbook.linker.custom_blocks["ipython3"] = app.bertbook.own_names
    _recall_links(app.bertbook.linker.cache)


def finish_page(app, pagename, templatename, context, doctree) -> None:
    """Event html-page-context: link the names of every page written.

    sphinx-codeautolink would pass over pages that are written again though
    their source is old. And docutils calls the bibliography a list whose
    entries are no list items, which a screen reader takes at its word.
    """
    if app.bertbook.linker:
        app.bertbook.linker.outdated_docs.add(str(Path(pagename)))
    if "citation-list" in context.get("body", ""):
        context["body"] = re.sub(
            ' role="(list|doc-biblioentry)"', "", context["body"]
        )


# %% book/pages.md#all-events bb807a
def setup(app) -> dict:
    """What Sphinx calls to load the extension."""
    app.setup_extension("sphinx.ext.viewcode")
    app.setup_extension("sphinx_codeautolink")
    app.connect("builder-inited", _prepare, priority=900)
    app.connect("source-read", write_api)
    app.connect("env-purge-doc", purge)
    app.connect("doctree-read", annotate, priority=400)
    app.connect("doctree-read", keep_own_links, priority=495)
    app.connect("env-updated", check_equations)
    app.connect("doctree-resolved", name_implementers)
    app.connect("doctree-resolved", list_uses, priority=600)
    app.connect("html-page-context", add_buttons, priority=510)
    app.connect("html-page-context", finish_page, priority=520)
    return {"version": "1", "env_version": 1, "parallel_read_safe": False}
