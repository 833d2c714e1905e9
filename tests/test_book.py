"""The gates of the book: what every chapter and module must keep to."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bertbook
from bertbook.exercises import checked_name
from bertbook.modules import load_book

ROOT = Path(__file__).resolve().parent.parent
BOOK = load_book(ROOT)
MODULES = sorted(name.removesuffix(".py") for name in BOOK.modules)
WITH_CELLS = [
    chapter
    for chapter in BOOK.chapters
    if chapter.cells and chapter.path != "book/index.md"
]
WITH_CODE = [
    chapter
    for chapter in WITH_CELLS
    if any("tangle" in cell.options for cell in chapter.cells)
]


@pytest.mark.parametrize("chapter", WITH_CELLS, ids=lambda page: page.path)
def test_chapter_has_three_exercises(chapter):
    """That stubs fail and solutions pass is seen when the page runs."""
    kinds = [each.options.get("exercise") for each in chapter.cells]
    assert [kind for kind in kinds if kind] == ["stub", "solution"] * 3
    above = name = ""
    for cell, kind in zip(chapter.cells, kinds):
        if kind == "stub":
            name = checked_name(cell, above)
        elif kind == "solution":
            assert f"check_{name}({name})" in cell.text, cell.place()
        above += cell.text + "\n"


@pytest.mark.parametrize("chapter", WITH_CELLS, ids=lambda page: page.path)
def test_chapter_has_its_parts(chapter):
    headings = re.findall("^## (.*)$", chapter.text, re.M)
    assert headings[-2:] == ["Exercises", "Summary"]
    levels = re.findall(
        r"^### Exercise (\d) \((\w+)\): ", chapter.text, re.M
    )
    assert levels == [("1", "easy"), ("2", "medium"), ("3", "hard")]


@pytest.mark.parametrize("chapter", WITH_CELLS, ids=lambda page: page.path)
def test_cells_are_narrow(chapter):
    """No line that scrolls sideways."""
    for cell in chapter.cells:
        for number, line in enumerate(cell.text.split("\n"), 1):
            assert len(line) <= 76, f"{cell.place(number)}: over 76 columns"


@pytest.mark.parametrize("chapter", WITH_CODE, ids=lambda page: page.path)
def test_cells_are_small(chapter):
    """One idea a cell."""
    exported = [cell for cell in chapter.cells if "tangle" in cell.options]
    lengths = sorted(len(cell.text.split("\n")) for cell in exported)
    assert lengths[-1] <= 50
    assert lengths[len(lengths) // 2] <= 25


@pytest.mark.parametrize("chapter", WITH_CODE, ids=lambda page: page.path)
def test_checks_stand_below_the_code(chapter):
    """At least every third exported cell is followed by an assertion."""
    kinds = [
        "code"
        if "tangle" in cell.options
        else "check"
        if re.search(r"^\s*assert |\bcheck_\w+\(", cell.text, re.M)
        else ""
        for cell in chapter.cells
        if "exercise" not in cell.options
    ]
    assert kinds.count("check") * 3 >= kinds.count("code")
    last = max(i for i, kind in enumerate(kinds) if kind == "code")
    assert "check" in kinds[last:]


@pytest.mark.parametrize("name", MODULES)
def test_module_is_short(name):
    text = (ROOT / "bertbook" / f"{name}.py").read_text("utf-8")
    assert text.count("\n") <= 400


@pytest.mark.parametrize("name", MODULES[1:])
def test_public_names_are_documented(name):
    module = importlib.import_module(f"bertbook.{name}")
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if not inspect.isfunction(value) and not inspect.isclass(value):
            continue
        assert inspect.getdoc(value), f"{name}.{public} has no docstring"
        if not inspect.isclass(value):
            continue
        for attribute, member in vars(value).items():
            if not attribute.startswith("_") and inspect.isfunction(member):
                where = f"{name}.{public}.{attribute}"
                assert inspect.getdoc(member), f"{where} has no docstring"


def test_modules_import_only_earlier_chapters():
    """Within a chapter the tangler checks it, cell by cell."""
    pages = [chapter.path for chapter in BOOK.chapters]
    order = {
        name.removesuffix(".py"): pages.index(cells[0].chapter)
        for name, cells in BOOK.modules.items()
    }
    for path in (ROOT / "bertbook").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                package, _, name = node.module.partition(".")
                if package == "bertbook":
                    assert order[name] <= order[path.stem], path.name


@pytest.mark.parametrize("name", bertbook.__all__)
def test_public_name_resolves(name):
    value = getattr(bertbook, name)
    assert value.__module__.startswith("bertbook.")
    assert name in dir(bertbook)


def test_import_is_lazy():
    code = (
        "import sys, bertbook; dir(bertbook); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'datasets', "
        "'tokenizers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = bertbook.Nothing


def test_the_readme_snippets_run():
    text = (ROOT / "README.md").read_text("utf-8")
    snippets = re.findall(r"```python\n(.*?)```", text, re.S)
    assert snippets
    for snippet in snippets:
        done = subprocess.run(
            [sys.executable, "-c", snippet], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        expected = re.findall(r"# -> (.*)", snippet)
        assert done.stdout.splitlines() == expected


def test_requirements_are_pinned_and_known_to_the_package():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    names = {pin.partition("==")[0] for pin in pins}
    text = (ROOT / "pyproject.toml").read_text()
    needs = re.findall(r'"([\w.-]+)(?:>=|==|<)', text)
    assert set(needs) - {"setuptools"} <= names
