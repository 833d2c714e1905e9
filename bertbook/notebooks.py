"""A notebook for every page

Writes each executed chapter as a notebook that runs anywhere, and knows the
addresses where readers can start it.

The page: https://bertbook.github.io/bertbook/book/notebooks.html
"""

# Tangled from book/notebooks.md (cf70144c): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "INSTALL",
    "launch_addresses",
    "plain_markdown",
    "publish",
    "publishable",
]


# %% book/notebooks.md#where-it-starts 91ef456c
import re
from copy import deepcopy
from pathlib import Path

from bertbook.chapters import Chapter, base_url
from bertbook.modules import Book
from bertbook.reproducibility import write_atomically


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


# %% book/notebooks.md#from-myst-to-plain-markdown 6754f33c
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


# %% book/notebooks.md#from-myst-to-plain-markdown 6fb11aa2
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


# %% book/notebooks.md#from-myst-to-plain-markdown 3e4f936a
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


# %% book/notebooks.md#from-myst-to-plain-markdown 1236572e
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


# %% book/notebooks.md#a-notebook-that-stands-alone fb277846
def _glued(notebook) -> dict[str, str]:
    """The text of every value that the chapter glues."""
    values = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            glue = output.get("metadata", {}).get("scrapbook", {})
            for kind, value in output.get("data", {}).items():
                if "name" in glue and kind.endswith("text/plain"):
                    values[glue["name"]] = value.strip("'")
    return values


# %% book/notebooks.md#a-notebook-that-stands-alone 482822f3
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
        tags = set(cell.metadata.get("tags", []))
        folded = (
            {"jupyter": {"source_hidden": True}}
            if tags & {"hide-cell", "hide-input"}
            else {}
        )
        cell.metadata = nbformat.from_dict(folded)
    address = f"{site}/{chapter.path[:-3]}.html"
    about = f"This is [a page of bertbook]({address}) as it ran."
    page.cells = [
        nbformat.v4.new_markdown_cell(about),
        nbformat.v4.new_code_cell(INSTALL.format(repository=repository)),
        *page.cells,
    ]
    for number, cell in enumerate(page.cells):
        cell["id"] = f"cell-{number}"
    language = page.metadata.get("language_info", {"name": "python"})
    kernel = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    page.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "language_info": language}
    )
    page.nbformat, page.nbformat_minor = 4, 5
    nbformat.validate(page)
    return page


# %% book/notebooks.md#a-notebook-that-stands-alone 2b2814b6
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
