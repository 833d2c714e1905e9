"""Runs the cells of one chapter in a process that is used for nothing else."""

import os
import tempfile


def run_exercises(chapter, errors):
    """Run the cells; each stub must fail its checker, and be solved.

    Works in the folder of the file `errors`, which gets what is printed.
    """
    output = os.open(errors, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["BERTBOOK_BUDGET"] = "smoke"
    os.environ["MPLBACKEND"] = "agg"
    os.environ["TMPDIR"] = str(errors.parent)
    tempfile.tempdir = None  # read TMPDIR again
    os.chdir(tempfile.mkdtemp())
    space = {"__name__": "__main__"}
    stubs = solutions = 0
    for cell in chapter.cells:
        kind = cell.options.get("exercise")
        exec(compile(cell.text, cell.place(), "exec"), space)
        if kind == "stub":
            stubs += 1
            name = find_checked(cell, space)
            try:
                space[f"check_{name}"](space[name])
            except Exception:
                continue
            raise SystemExit(f"{cell.place()}: the stub passes its checker")
        if kind == "solution":
            solutions += 1
            call = f"check_{name}({name})"
            assert call in cell.text, f"{cell.place()}: no {call}"
    assert stubs == solutions == 3, f"{stubs} stubs, {solutions} solutions"


def find_checked(cell, space):
    """The one function of a stub that has a checker."""
    names = [
        name
        for name in space
        if f"check_{name}" in space and f"def {name}(" in cell.text
    ]
    assert len(names) == 1, f"{cell.place()}: one checker, not {names}"
    return names[0]
