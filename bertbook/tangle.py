"""Tangling: from chapters to a package

Writes the package from the marked cells of the chapters, folds edits of the
package back into the chapters, and refuses to guess when both have changed.

The page: https://bertbook.github.io/bertbook/book/tangle.html
"""

# Tangled from book/tangle.md (d3bd3ff7): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Piece",
    "apply_edits",
    "check",
    "find_root",
    "fold_back",
    "main",
    "read_pieces",
    "replace_cell",
    "run_command",
    "show_differences",
    "sync",
    "where",
    "write_files",
]


# %% book/tangle.md#back-again 98441bfa
import re
from dataclasses import dataclass, replace
from pathlib import Path

from bertbook.chapters import (
    Cell,
    TangleError,
    base_url,
    digest,
    parse_chapter,
    parser_config,
    read_book,
    read_source,
    strip_blank_lines,
)
from bertbook.modules import (
    SEAL,
    SPLIT,
    Book,
    find_problems,
    load_book,
    seal,
    tangle_module,
)
from bertbook.reproducibility import write_atomically

# %% book/tangle.md#back-again 0318de52
_MARKER = re.compile(r"# %% (\S+\.md)#(\S*) ([0-9a-f]{8})")


# %% book/tangle.md#back-again f1896086
@dataclass(frozen=True)
class Piece:
    """The text under one marker of a module."""

    chapter: str
    section: str
    base: str  # the digest of the text as it was tangled
    line: int  # of the module where the text begins, from 1
    text: str

    @property
    def edited(self) -> bool:
        """Whether the text was changed since it was tangled."""
        return digest(self.text) != self.base


# %% book/tangle.md#back-again 0a1366fc
def read_pieces(path: str, text: str) -> list[Piece]:
    """The pieces of a module, if its header and markers are intact."""
    pieces = []
    starts = [found.start() for found in re.finditer("^# %%", text, re.M)]
    for start, end in zip(starts, starts[1:] + [len(text)]):
        head, _, body = text[start:end].partition("\n")
        line = text[:start].count("\n") + 2
        marker = _MARKER.fullmatch(head.rstrip())
        if not marker:
            raise TangleError(
                f"{path}:{line - 1}: '{head}' is no marker; "
                "restore it, or delete the module to "
                "tangle it anew"
            )
        if body.startswith(SPLIT):
            line, body = line + 1, body.removeprefix(SPLIT)
        blank = len(body) - len(body.lstrip("\n"))
        pieces.append(
            Piece(*marker.groups(), line + blank, strip_blank_lines(body))
        )
    if seal(text) != text or not SEAL.search(text.split("\n# %% ")[0]):
        raise TangleError(
            f"{path}:1: its header or its markers were "
            "edited; undo that and change the chapter, or "
            "delete the module to tangle it anew"
        )
    return pieces


# %% book/tangle.md#back-again a4e8e3d2
def fold_back(
    path: str, cells: list[Cell], pieces: list[Piece]
) -> list[tuple[Cell, Piece]]:
    """The (cell, piece) pairs whose text flows back into the chapter.

    Raises TangleError that names both places of every conflict.
    """
    if [piece.text for piece in pieces] == [cell.text for cell in cells]:
        return []
    current = {digest(cell.text): cell for cell in cells}
    bases = {piece.base for piece in pieces}
    edits, problems = [], []
    for piece in pieces:
        if not piece.edited:
            continue
        if piece.base in current:
            edits.append((current[piece.base], piece))
            continue
        if digest(piece.text) in current.keys() - bases:
            continue
        changed = [
            cell.line
            for key, cell in current.items()
            if (cell.chapter, cell.section)
            == (piece.chapter, piece.section)
            and key not in bases
        ]
        place = f"{piece.chapter}:{changed[0] if changed else 1}"
        problems.append(
            f"{place}: the cell changed here and at {path}:"
            f"{piece.line}; make the two agree by hand"
        )
    if problems:
        raise TangleError(*problems)
    return edits


# %% book/tangle.md#back-again 60a9fc8e
def replace_cell(lines: list[str], cell: Cell, text: str) -> None:
    """Put `text` in the place of `cell`'s code in the `lines`."""
    start, close = cell.fence
    sign = re.match("`+|~+", lines[start])[0]
    runs = re.findall(rf"^ {{0,3}}({sign[0]}+)", text, re.M)
    longest = max(map(len, runs), default=0)
    if longest >= len(sign):
        longer = sign[0] * (longest + 1)
        lines[start] = longer + lines[start][len(sign) :]
        lines[close] = longer
    lines[cell.line - 1 : close] = text.split("\n")


def apply_edits(book: Book, edits: list[tuple[Cell, Piece]]) -> Book:
    """The book with every edit in its chapter, read anew."""
    config, chapters = parser_config(book.root), []
    for chapter in book.chapters:
        lines = chapter.text.split("\n")
        own = [edit for edit in edits if edit[0].chapter == chapter.path]
        for cell, piece in sorted(own, key=lambda edit: -edit[0].line):
            replace_cell(lines, cell, piece.text)
        text = "\n".join(lines)
        chapters.append(
            parse_chapter(chapter.path, text, config) if own else chapter
        )
    return replace(book, chapters=tuple(chapters))


# %% book/tangle.md#the-commands ec8a6de6
def _read_module(root: Path, name: str) -> str | None:
    path = f"bertbook/{name}"
    return read_source(root, path) if (root / path).is_file() else None


def _orphans(book: Book) -> list[str]:
    found = (book.root / "bertbook").glob("*.py")
    return [
        f"bertbook/{path.name}:1: no chapter makes this module; delete "
        "it, or move its code to a chapter"
        for path in sorted(found)
        if path.name not in book.modules
    ]


# %% book/tangle.md#the-commands 0bb31b49
def sync(root: Path, fold: bool = True) -> dict[str, str]:
    """What to write, path to text, so that chapters and package agree.

    With `fold`, edits of the package flow back into the chapters; without,
    they are problems. Raises TangleError, and nothing is to be written.
    """
    book = load_book(root)
    edits, problems = [], _orphans(book)
    for name, cells in book.modules.items():
        path, text = f"bertbook/{name}", _read_module(root, name)
        try:
            pieces = read_pieces(path, text) if text is not None else []
            edits += (folded := fold_back(path, cells, pieces))
        except TangleError as error:
            problems += error.problems
            continue
        if not fold:
            problems += [
                f"{path}:{piece.line}: edited by hand; run `make "
                "sync` to fold it back"
                for _, piece in folded
            ]
    if problems:
        raise TangleError(*problems)
    fresh = apply_edits(book, edits)
    if problems := find_problems(fresh):
        raise TangleError(*problems)
    files = {page.path: page.text for page in fresh.chapters}
    files |= {
        f"bertbook/{name}": tangle_module(fresh, name)
        for name in fresh.modules
    }
    return {
        path: text
        for path, text in files.items()
        if not (root / path).exists() or read_source(root, path) != text
    }


# %% book/tangle.md#the-commands 11996aa3
def write_files(root: Path, files: dict[str, str]) -> None:
    """Write `files` one by one, each whole, with the old line ends."""
    for path, text in files.items():
        old = (root / path).read_bytes() if (root / path).exists() else b""
        if b"\r\n" in old:
            text = text.replace("\n", "\r\n")
        (root / path).parent.mkdir(exist_ok=True)
        write_atomically(root / path, text)


def check(root: Path) -> list[str]:
    """Where the package is not what the chapters say, one line each."""
    try:
        files = sync(root, fold=False)
    except TangleError as error:
        return error.problems
    problems = []
    for path, text in files.items():
        old = (_read_module(root, Path(path).name) or "").split("\n")
        pairs = enumerate(zip(old, text.split("\n")), 1)
        line = next((i for i, (a, b) in pairs if a != b), len(old))
        problems.append(
            f"{path}:{line}: is not what the chapters say; run "
            "`make tangle`"
        )
    return problems


# %% book/tangle.md#the-commands 7377c43e
def where(root: Path, place: str) -> tuple[str, str]:
    """(`book/x.md:131`, address of the section) of `bertbook/x.py:57`."""
    file, _, number = place.rpartition(":")
    name = Path(file).name
    book = Book(root, tuple(read_book(root)))
    text = _read_module(root, name)
    if name not in book.modules or not text or not number.isdecimal():
        raise TangleError(
            f"{place}: is no line of the package; give one "
            "like bertbook/tangle.py:57"
        )
    pieces = read_pieces(file, text)
    cells = {digest(cell.text): cell for cell in book.modules[name]}
    found = [piece for piece in pieces if piece.line <= int(number)]
    piece = found[-1] if found else pieces[0]
    cell = cells.get(piece.base)
    if cell is None:
        raise TangleError(
            f"{place}: its cell changed in {piece.chapter}; "
            "run `make tangle`"
        )
    line = cell.line + max(0, int(number) - piece.line) if found else 1
    address = f"{base_url(root)}/{cell.chapter[:-3]}.html"
    return f"{cell.chapter}:{line}", f"{address}#{cell.section}"


# %% book/tangle.md#the-commands 8424663b
def find_root(start: Path) -> Path:
    """The nearest folder at or above `start` that holds `_toc.yml`."""
    for folder in (start, *start.parents):
        if (folder / "_toc.yml").exists():
            return folder
    raise TangleError(
        f"{start}:1: there is no _toc.yml here or above; "
        "change into a checkout of the book"
    )


def show_differences(root: Path, files: dict[str, str]) -> None:
    """Print what writing `files` would change, as unified diffs."""
    import difflib

    for path, text in files.items():
        old = read_source(root, path) if (root / path).exists() else ""
        lines = difflib.unified_diff(
            old.splitlines(True), text.splitlines(True), path, path
        )
        print("".join(lines), end="")


# %% book/tangle.md#the-commands 6270f09e
def main(arguments: list[str] | None = None) -> int:
    """The command `python -m bertbook.tangle`; returns its exit status."""
    import argparse
    import sys
    import time

    parser = argparse.ArgumentParser(
        prog="python -m bertbook.tangle",
        description="Write bertbook/ from the marked cells of book/.",
    )
    choice = parser.add_mutually_exclusive_group()
    for name, text in (
        ("--check", "write nothing; fail where the two disagree"),
        ("--sync", "fold edits of bertbook/ back into book/ too"),
        ("--diff", "show what would be written, write nothing"),
    ):
        choice.add_argument(name, action="store_true", help=text)
    choice.add_argument(
        "--where", metavar="FILE:LINE", help="the page behind a line"
    )
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    try:
        root = find_root(Path.cwd())
        done = run_command(root, options)
    except (TangleError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(done)
    if not options.where:
        print(f"tangle: took {time.perf_counter() - began:.2f} s")
    return 0


# %% book/tangle.md#the-commands 89ec14a8
def run_command(root: Path, options) -> str:
    """Do what the parsed `options` ask; returns a line on what was done."""
    if options.where:
        return "\n".join(where(root, options.where))
    if options.check:
        if problems := check(root):
            raise TangleError(*problems)
        return "tangle: the package is what the chapters say"
    files = sync(root, fold=options.sync or options.diff)
    if options.diff:
        show_differences(root, files)
        return f"tangle: {len(files)} files would change"
    write_files(root, files)
    return "\n".join(
        [f"wrote {path}" for path in files]
        + [f"tangle: {len(files)} files written"]
    )


# A notebook is __main__ too, but no file: there the cell only defines.
if __name__ == "__main__" and "__file__" in globals():
    raise SystemExit(main())
