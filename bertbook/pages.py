"""What a page adds to the chapter

Adds to the rendered chapters what ties them together: the module of each
cell, the code of each equation, the uses of each name, and buttons that
work.

The page: https://bertbook.github.io/bertbook/book/pages.html
"""

# Tangled from book/pages.md (f01caef0): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "API",
    "add_buttons",
    "annotate",
    "check_equations",
    "finish_page",
    "list_uses",
    "merge",
    "name_implementers",
    "purge",
    "setup",
    "write_api",
]


# %% book/pages.md#a-caption-over-each-exported-cell c70f3dbf
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from bertbook.links import (
    definitions,
    documented,
    full_name,
    hidden_imports,
    link_names,
    linked_body,
    near,
    own_names,
    recall_links,
    sort_links,
)
from bertbook.modules import load_book
from bertbook.notebooks import launch_addresses
from bertbook.reproducibility import describe_machine


# %% book/pages.md#a-caption-over-each-exported-cell 1f72beaf
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
    return re.findall(r"[^,\s]+", str(metadata.get("implements", "")))


# %% book/pages.md#a-caption-over-each-exported-cell 94e6ac7a
def _caption(cell, names: dict[str, str], docname: str):
    """The line over an exported cell, and the names that it defines."""
    from docutils import nodes

    metadata = cell["cell_metadata"]
    (code,) = list(cell.children[0].findall(nodes.literal_block))[:1]
    source = f"bertbook/{metadata['tangle']}"
    module = str(metadata["tangle"]).removesuffix(".py")
    own = [
        name
        for name in definitions(code.astext())
        if f"bertbook.{module}.{name}" in names
    ]
    line = nodes.paragraph(classes=["cell-caption"])
    if module in names.values():
        page = (
            "../" * docname.count("/") + f"_modules/bertbook/{module}.html"
        )
        anchor = f"#{own[0]}" if own else ""
        line += nodes.reference(
            source, source, refuri=page + anchor, internal=True
        )
    else:
        line += nodes.Text(source)
    for label in _labels(metadata):
        line += nodes.Text(" · implements ")
        line += _reference("math:eq", label, docname, label)
    return line, own


# %% book/pages.md#a-caption-over-each-exported-cell 870520e1
def _is_cell(node) -> bool:
    return hasattr(node, "get") and node.get("nb_element") == "cell_code"


def _link_prose(doctree, names: dict, modules: set, docname: str) -> None:
    from docutils import nodes

    for literal in list(doctree.findall(nodes.literal)):
        text = literal.astext()
        name = full_name(text, names, modules)
        taken = isinstance(literal.parent, (nodes.title, nodes.reference))
        if name and not taken:
            link = _reference("py:obj", name, docname, text)
            literal.replace_self(link)


# %% book/pages.md#a-caption-over-each-exported-cell 5c05b970
def annotate(app, doctree) -> None:
    """Event doctree-read: captions, anchors and links in prose."""
    book, names = app.bertbook.book, app.bertbook.names
    docname, implements = app.env.docname, []
    if not (modules := near(book, docname)):
        return
    stem = Path(docname).name
    app.env.note_dependency(str(book.root / ".executed" / f"{stem}.ipynb"))
    for cell in list(doctree.findall(_is_cell)):
        if "tangle" not in cell["cell_metadata"]:
            continue
        line, own = _caption(cell, names, docname)
        cell.insert(0, line)
        anchor = f"code-{own[0] if own else cell['cell_index']}"
        cell["ids"].append(anchor)
        implements += [
            (label, anchor, own, cell.line)
            for label in _labels(cell["cell_metadata"])
        ]
    app.env.bertbook_implements[docname] = implements
    _link_prose(doctree, names, modules, docname)


# %% book/pages.md#equations-and-their-code 2550e917
def purge(app, env, docname) -> None:
    """Event env-purge-doc: forget what a page implemented."""
    env.bertbook_implements.pop(docname, None)


def merge(app, env, docnames, other) -> None:
    """Event env-merge-info: take over what another process has read."""
    for docname in other.bertbook_implements.keys() & docnames:
        found = other.bertbook_implements[docname]
        env.bertbook_implements[docname] = found


# %% book/pages.md#equations-and-their-code 2ae6720f
def check_equations(app, env) -> list[str]:
    """Event env-updated: refuse unknown labels; the pages to write again.

    These are the API page, which lists the uses of each name, and the pages
    whose equations have other implementers than before.
    """
    from sphinx.util import logging

    known = env.get_domain("math").equations
    before, now = app.bertbook.before, env.bertbook_implements
    for docname, entries in now.items():
        for label, _, _, line in entries:
            if label not in known:
                logging.getLogger(__name__).warning(
                    f":implements: {label} names no equation; label one "
                    f"with '$$ ... $$ ({label})', or mend the option",
                    location=(docname, line),
                    type="bertbook",
                )
    pages = {
        known[label][0]
        for docname in before.keys() | now.keys()
        if before.get(docname) != now.get(docname)
        for label, *_ in before.get(docname, []) + now.get(docname, [])
        if label in known
    }
    return sorted(pages | {API} & env.found_docs)


# %% book/pages.md#equations-and-their-code 3994d670
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


# %% book/pages.md#the-api-page 0a9e177b
API = "book/api"
_SECTION = """

## `bertbook.{module}`

~~~{{eval-rst}}
.. automodule:: bertbook.{module}
   :members:
   :member-order: bysource
~~~
"""


def write_api(app, docname, source) -> None:
    """Event source-read: add a section for each module to the API page."""
    if docname == API:
        app.env.note_dependency(str(Path(app.srcdir) / "_toc.yml"))
        for file in app.bertbook.book.modules:
            if not file.startswith("__"):  # those hand on what others hold
                module = file.removesuffix(".py")
                source[0] += _SECTION.format(module=module)


# %% book/pages.md#the-api-page 7467241e
def list_uses(app, doctree, docname) -> None:
    """Event doctree-resolved: the uses of a name as a list to unfold."""
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


# %% book/pages.md#buttons bbf1146e
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


# %% book/pages.md#all-events c4089a67
def _refuse_to_execute(*arguments, **options):
    from sphinx.errors import ExtensionError

    raise ExtensionError(
        "a chapter has not been executed; run `make`, "
        "which executes before it renders"
    )


# %% book/pages.md#all-events 24beb2ae
def finish_page(app, pagename, templatename, context, doctree) -> None:
    """Event html-page-context: link names, and mend the bibliography.

    docutils calls it a list whose entries are no list items, which a screen
    reader takes at its word.
    """
    linker = app.bertbook.linker
    if linker and linker.cache.transforms.get(pagename):
        context["body"] = linked_body(linker, pagename, context["body"])
    if "citation-list" in context.get("body", ""):
        context["body"] = re.sub(
            ' role="(list|doc-biblioentry)"', "", context["body"]
        )


# %% book/pages.md#all-events 5fa3af85
def _find_links(app, doctree) -> None:
    """Event doctree-read, after sphinx-codeautolink."""
    found = app.env.sphinx_codeautolink_transforms.get(app.env.docname, [])
    link_names(found, app.bertbook.hidden)


# %% book/pages.md#all-events d78eb8b1
_SAFE = """sphinx_jupyterbook_latex sphinx_multitoc_numbering
    sphinx-mathjax-offline""".split()


def _prepare(app) -> None:
    """Event builder-inited: read the book, turn to sphinx-codeautolink."""
    from jupyter_cache import get_cache
    from myst_nb.core.execute import cache

    cache.single_nb_execution = _refuse_to_execute
    kept = get_cache(app.env.mystnb_config.execution_cache_path)
    kept.list_cache_records()  # creates it
    app.parallel = describe_machine()["cores"] + 1  # one hands out
    for name in app.extensions.keys() & _SAFE:
        app.extensions[name].parallel_read_safe = True
    book = load_book(Path(app.srcdir))
    app.bertbook = SimpleNamespace(
        book=book,
        names=documented(book),
        hidden=hidden_imports(book),
        linker=None,
    )
    if not hasattr(app.env, "bertbook_implements"):
        app.env.bertbook_implements = {}
    app.bertbook.before = dict(app.env.bertbook_implements)
    if app.builder.name != "html":
        return
    owners = [
        getattr(each.handler, "__self__", None)
        for each in app.events.listeners["build-finished"]
    ]
    named = {type(each).__name__: each for each in owners}
    linker = named["SphinxCodeAutoLink"]
    linker.custom_blocks["ipython3"] = partial(
        own_names, hidden=app.bertbook.hidden
    )
    recall_links(linker.cache)
    linker.outdated_docs = set()  # `finish_page` links them all
    app.bertbook.linker = linker


# %% book/pages.md#all-events 1bdf4362
def setup(app) -> dict:
    """What Sphinx calls to load the extension."""
    app.setup_extension("sphinx.ext.viewcode")
    app.setup_extension("sphinx_codeautolink")
    app.connect("builder-inited", _prepare, priority=900)
    app.connect("source-read", write_api)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("env-updated", sort_links, priority=100)
    app.connect("doctree-read", annotate, priority=400)
    app.connect("doctree-read", _find_links, priority=495)
    app.connect("env-updated", check_equations)
    app.connect("doctree-resolved", name_implementers)
    app.connect("doctree-resolved", list_uses, priority=600)
    app.connect("html-page-context", add_buttons, priority=510)
    app.connect("html-page-context", finish_page, priority=520)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True}
