"""A stub is wrong

A section of the chapter: Running every chapter once

The page: https://bertbook.github.io/bertbook/book/execute.html
"""

# Tangled from book/execute.md (9ffb260e): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "EASY",
    "checked_name",
    "with_stub_checks",
]


# %% book/execute.md#a-stub-is-wrong 7fcb6090
import re
from copy import deepcopy

from bertbook.chapters import Cell, Chapter, TangleError

EASY = "the stub passes its checker; make one of them stricter"
_CHECK = """\
try:
    check_{name}({name})
except Exception:
    get_ipython().execution_count -= 1
else:
    raise AssertionError("{place}: {easy}")
"""


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
            check = _CHECK.format(name=name, place=cell.place(), easy=EASY)
            code.metadata["nbmake"] = {"post_cell_execute": [check]}
        above += cell.text + "\n"
    return notebook
