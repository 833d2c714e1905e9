"""How the book builds itself

Reads the chapters as MyST-NB reads them: their title, sections and code
cells, each with its options and its line, and refuses what would not run.

The page: https://bertbook.github.io/bertbook/book/chapters.html
"""

# Tangled from book/chapters.md (cb919ac2): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Cell",
    "Chapter",
    "TangleError",
    "base_url",
    "digest",
    "parse_chapter",
    "parser_config",
    "plain_text",
    "read_book",
    "read_source",
    "read_toc",
    "read_yaml",
    "strip_blank_lines",
]


# %% book/chapters.md#problems-have-a-place f9b563de
import hashlib
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path


class TangleError(Exception):
    """Located problems, one `file:line: sentence` each, in `problems`."""

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = list(problems)


# %% book/chapters.md#reading-a-chapter 97b84955
def strip_blank_lines(text: str) -> str:
    """`text` without the blank lines before and after it."""
    lines = text.split("\n")
    filled = [i for i, line in enumerate(lines) if line.strip()]
    return "\n".join(lines[filled[0] : filled[-1] + 1]) if filled else ""


def digest(text: str) -> str:
    """Eight hexadecimal digits that stand for `text`."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:8]


# %% book/chapters.md#reading-a-chapter 5d5d7dea
@dataclass(frozen=True)
class Cell:
    """A code cell of a chapter."""

    chapter: str  # path of the chapter: "book/attention.md"
    section: str  # slug of the section that holds it
    line: int  # of the chapter where its code begins, from 1
    text: str  # its code, without blank lines around it
    options: dict = field(default_factory=dict, compare=False)
    fence: tuple[int, int] = (0, 0)  # lines of its fence, from 0

    @property
    def marker(self) -> str:
        """The line that stands above this cell in its module."""
        return f"# %% {self.chapter}#{self.section} {digest(self.text)}"

    def place(self, line: int = 1) -> str:
        """`book/attention.md:57` for a line of the cell, from 1."""
        return f"{self.chapter}:{self.line + line - 1}"


# %% book/chapters.md#reading-a-chapter 927222e2
_SPLITTERS = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


# %% book/chapters.md#reading-a-chapter cd80fc07
def read_source(root: Path, path: str) -> str:
    """The text of a file, its line ends as `\\n`.

    Raises TangleError if it is no UTF-8 or holds a character at which the
    reader of the cells would split a line.
    """
    try:
        text = (root / path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise TangleError(
            f"{path}:{line}: byte {error.start} is not "
            "UTF-8; save the file as UTF-8"
        ) from None
    except OSError as error:
        raise TangleError(
            f"{path}:1: {error.strerror}; create the file, or take it "
            "out of _toc.yml"
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if split := _SPLITTERS.search(text):
        line = text[: split.start()].count("\n") + 1
        raise TangleError(
            f"{path}:{line}: holds {split[0]!r}, at which "
            "the reader splits lines; write it as an escape"
        )
    return text


# %% book/chapters.md#reading-a-chapter b7d4229f
_VERBATIM = {
    "code",
    "code-block",
    "eval-rst",
    "literalinclude",
    "math",
    "mermaid",
    "parsed-literal",
    "raw",
    "sourcecode",
}


def _directive(token) -> str:
    match = re.match(r"\s*\{([\w:-]+)\}", token.info)
    return match[1] if match else ""


# %% book/chapters.md#reading-a-chapter 48cfae5d
def _buried_cells(tokens, parser, offset=0, inside=""):
    """(line, holder) of each cell that the reader would not run."""
    for token in tokens:
        if token.type not in ("fence", "colon_fence"):
            continue
        name, line = _directive(token), offset + token.map[0] + 1
        if name == "code-cell":
            if token.type == "colon_fence":
                yield line, "a fence of colons"
            elif inside or token.level:
                yield line, inside or "a list or a quotation"
            elif not token.info.startswith("{"):
                yield line, "a fence with a blank after its signs"
        elif name and name not in _VERBATIM:
            inner = parser.parse(token.content)
            yield from _buried_cells(inner, parser, line, f"{{{name}}}")


# %% book/chapters.md#reading-a-chapter 41dd6671
def plain_text(markup: str) -> str:
    """A line of MyST without its roles, links, emphasis and math signs."""
    text = re.sub(r"\{[\w:-]+\}`([^`<]*?)(?:\s*<[^`]*>)?`", r"\1", markup)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"[`*$]", "", text)


def _headings(tokens):
    """(line, slug, plain title) of each heading, lines from 0."""
    from docutils.nodes import make_id

    for token, inline in pairwise(tokens):
        if token.type == "heading_open" and token.level == 0:
            title = plain_text(inline.content)
            yield token.map[0], make_id(title), title


def _first_paragraph(tokens) -> str:
    """The text of the first paragraph after the first heading."""
    after_heading = False
    for token, inline in pairwise(tokens):
        after_heading |= token.type == "heading_open"
        if after_heading and token.type == "paragraph_open":
            return plain_text(" ".join(inline.content.split()))
    return ""


# %% book/chapters.md#reading-a-chapter d57828ca
@dataclass(frozen=True)
class Chapter:
    """A chapter as MyST-NB reads it."""

    path: str  # "book/attention.md"
    text: str  # its line ends as "\n"
    title: str
    summary: str  # its first paragraph, plain
    cells: tuple[Cell, ...]
    notebook: object = field(compare=False, repr=False)


# %% book/chapters.md#reading-a-chapter f51a0757
def _read_cells(path, lines, notebook, fences, headings):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for token, cell in zip(fences, code, strict=True):
        start, close = token.map[0], token.map[1] - 1
        body = cell.source.split("\n") if cell.source else []
        if not re.fullmatch(r" {0,3}(`{3,}|~{3,})\s*", lines[close]):
            raise TangleError(
                f"{path}:{start + 1}: the fence is never closed; close it"
            )
        if lines[close - len(body) : close] != body:
            raise TangleError(
                f"{path}:{start + 1}: the fence is indented; "
                "start it in the first column"
            )
        text = strip_blank_lines(cell.source)
        blank = next((i for i, line in enumerate(body) if line.strip()), 0)
        before = [slug for line, slug, _ in headings if line < start]
        yield Cell(
            path,
            before[-1] if before else "",
            close - len(body) + blank + 1,
            text,
            dict(cell.metadata),
            (start, close),
        )


# %% book/chapters.md#reading-a-chapter c1f2583f
def read_yaml(root: Path, name: str) -> dict:
    """A file of settings; raises TangleError if it is no mapping."""
    import yaml

    try:
        settings = yaml.safe_load(read_source(root, name))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise TangleError(
            f"{name}:{line}: is not YAML ({error.problem}); mend it"
        ) from None
    if not isinstance(settings, dict):
        raise TangleError(
            f"{name}:1: holds no settings; write 'key: value'"
        )
    return settings


def base_url(root: Path) -> str:
    """The address of the site, without a slash at its end."""
    html = read_yaml(root, "_config.yml").get("html") or {}
    return (html.get("baseurl") or "").rstrip("/")


def parser_config(root: Path):
    """The settings of the Markdown parser for the book at `root`."""
    from myst_parser.config.main import MdParserConfig

    parse = read_yaml(root, "_config.yml").get("parse") or {}
    names = set(parse.get("myst_enable_extensions") or []) - {"linkify"}
    try:
        return MdParserConfig(
            enable_extensions=names, disable_syntax=["inline"]
        )
    except ValueError as error:
        raise TangleError(f"_config.yml:1: {error}; mend it") from None


# %% book/chapters.md#reading-a-chapter 2d2c4777
def parse_chapter(path: str, text: str, config) -> Chapter:
    """The chapter in `text`. Raises TangleError if a cell would not run."""
    from markdown_it.renderer import RendererHTML
    from myst_nb.core import read
    from myst_parser.parsers.mdit import create_md_parser

    parser = create_md_parser(config, RendererHTML)
    tokens = parser.parse(text + "\n")
    headings = list(_headings(tokens))
    if not headings:
        raise TangleError(
            f"{path}:1: the chapter has no title; begin it with '# Title'"
        )
    fences = [
        token
        for token in tokens
        if token.type == "fence"
        and not token.level
        and token.info.startswith("{code-cell}")
    ]
    if buried := [
        f"{path}:{line}: a cell inside {holder} is never run; move it to "
        "the top level"
        for line, holder in _buried_cells(tokens, parser)
    ]:
        raise TangleError(*buried)
    if fences and not read.is_myst_markdown_notebook(text):
        raise TangleError(
            f"{path}:1: its cells would not run; begin it "
            "with 'file_format: mystnb' between '---' lines"
        )
    notebook = _read_notebook(path, text, config)
    cells = _read_cells(path, text.split("\n"), notebook, fences, headings)
    return Chapter(
        path,
        text,
        headings[0][2],
        _first_paragraph(tokens),
        tuple(cells),
        notebook,
    )


# %% book/chapters.md#reading-a-chapter c1264927
def _read_notebook(path: str, text: str, config):
    from myst_nb.core import read

    try:
        return read.read_myst_markdown_notebook(
            text, config, add_source_map=True, path=path
        )
    except Exception as error:  # whatever the reader stumbles over
        message = " ".join(str(error).split())
        place = re.search(r"at line (\d+)", message)
        reason = re.search(r"msg='(.*?)'", message)
        raise TangleError(
            f"{path}:{place[1] if place else 1}: "
            f"{reason[1] if reason else message}; mend the options"
        ) from None


# %% book/chapters.md#reading-the-book 51a64c6e
def read_toc(root: Path) -> list[str]:
    """The paths of the chapters in reading order, `book/x.md` each."""

    def files(node):
        for key, value in node.items():
            if key in ("root", "file"):
                yield value if value.endswith(".md") else value + ".md"
            elif key in ("parts", "chapters", "sections"):
                for child in value:
                    yield from files(child)

    try:
        return list(files(read_yaml(root, "_toc.yml")))
    except (AttributeError, TypeError):
        raise TangleError(
            "_toc.yml:1: is no table of contents; write 'root: book/index' "
            "and 'chapters:' with '- file: book/x' lines"
        ) from None


# %% book/chapters.md#reading-the-book b064cc92
_read: dict[str, tuple] = {}  # path to text, settings and chapter


def _parse_once(path, text, config) -> Chapter:
    if _read.get(path, ())[:2] != (text, config):
        _read[path] = text, config, parse_chapter(path, text, config)
    return _read[path][2]


# %% book/chapters.md#reading-the-book 74d36844
def read_book(root: Path) -> list[Chapter]:
    """All chapters of the book at `root`, in reading order.

    Raises TangleError with every problem of every chapter.
    """
    paths, config = read_toc(root), parser_config(root)
    chapters, problems = [], []
    for stray in sorted((root / "book").glob("**/*.md")):
        if (path := stray.relative_to(root).as_posix()) not in paths:
            problems.append(
                f"{path}:1: the chapter is not in _toc.yml; "
                "name it there or delete it"
            )
    for path in paths:
        try:
            text = read_source(root, path)
            chapters.append(_parse_once(path, text, config))
        except TangleError as error:
            problems += error.problems
    if problems:
        raise TangleError(*problems)
    return chapters
