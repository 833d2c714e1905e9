"""A stub is wrong

A section of the chapter: Running every chapter once

The page: https://bertbook.github.io/bertbook/book/execute.html
"""

# Tangled from book/execute.md (ef0bef6e): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "checked_name",
    "must_fail",
    "with_stub_checks",
]


# %% book/execute.md#a-stub-is-wrong 188c6827
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO


def must_fail(check, stub) -> None:
    """Raise AssertionError if `check(stub)` returns; nothing is printed."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        try:
            check(stub)
        except KeyboardInterrupt:
            raise
        except BaseException:  # SystemExit, and pytest's own, too
            return
    raise AssertionError(
        f"the stub {stub.__name__} passes its checker; make it wrong, or "
        "the checker stricter"
    )


# %% book/execute.md#a-stub-is-wrong ae0160ac
import re
from copy import deepcopy

from bertbook.chapters import Cell, Chapter, TangleError


def checked_name(cell: Cell, above: str) -> str:
    """The function of `cell` that has a checker in `above`, the code above.

    Raises TangleError unless there is one, and only one.
    """
    names = [
        name
        for name in re.findall(r"^def (\w+)", cell.text, re.M)
        if re.search(rf"^def check_{name}\(", above, re.M)
    ]
    if len(names) != 1:
        raise TangleError(
            f"{cell.place()}: a stub needs one function NAME with a "
            f"check_NAME above it, and has {len(names)}"
        )
    return names[0]


def with_stub_checks(chapter: Chapter):
    """The notebook of `chapter`, which fails where a stub passes."""
    notebook, above = deepcopy(chapter.notebook), ""
    codes = [each for each in notebook.cells if each.cell_type == "code"]
    for code, cell in zip(codes, chapter.cells, strict=True):
        if cell.options.get("exercise") == "stub":
            name = checked_name(cell, above)
            module = '__import__("bertbook.exercises").exercises'
            code.source += f"\n{module}.must_fail(check_{name}, {name})"
        above += cell.text + "\n"
    return notebook
