"""Executing and weaving: what runs again, what is said when it fails, and
what the pages hold. A small book is built once; tests change copies of it."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml

from bertbook import execute as execute_module
from bertbook.exercises import must_fail
from bertbook.freshness import chapter_key, modules_used
from bertbook.modules import Book, load_book
from bertbook.reproducibility import describe_machine

ROOT = Path(__file__).resolve().parent.parent
FRONT = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n\n"
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGA"
    "WjR9awAAAABJRU5ErkJggg=="
)
INDEX = """\
(index)=
# Toys

A book of toys.

```{code-cell} python
:tangle: __init__.py

from pkgutil import extend_path

if "__path__" in globals():  # the tools come from the real package
    __path__ = extend_path(__path__, __name__)
```
"""
FIRST = """\
(first)=
# First

Makes one thing.

$$ f(x) = 2 x $$ (eq-double)

You call `double_it` in {doc}`second`.

```{code-cell} python
:tangle: first.py
:implements: eq-double

def double_it(x: int) -> int:
    \"\"\"Twice `x`.\"\"\"
    return 2 * x
```

```{code-cell} python
assert double_it(2) == 4
print("one")
print("two")
```
"""
SECOND = """\
(second)=
# Second

Uses the first.

```{code-cell} python
:tangle: second.py

from bertbook.first import double_it


def four_times(x: int) -> int:
    \"\"\"Four times `x`.\"\"\"
    return double_it(double_it(x))
```

```{code-cell} python
from myst_nb import glue

glue("eight", four_times(2), display=False)
```

Eight is {glue:text}`eight`. The reader of [](first.md) knows.
"""
THIRD = f"""\
(third)=
# Third

Shows a picture.

```{{code-cell}} python
---
mystnb:
  image:
    alt: "A grey dot, alone."
---
import base64

from IPython.display import Image

Image(base64.b64decode("{PIXEL}"))
```
"""
# With a sixth page, Sphinx reads in several processes.
FOURTH = "(fourth)=\n# Fourth\n\nNo code at all.\n"
API = "(api)=\n# The package\n\nAll of it.\n"


def make_book(root: Path) -> Path:
    chapters = {"index": INDEX, "first": FIRST, "second": SECOND}
    chapters |= {"third": THIRD}
    (root / "book").mkdir(parents=True)
    for name, text in chapters.items():
        (root / f"book/{name}.md").write_text(FRONT + text)
    (root / "book/fourth.md").write_text(FOURTH)
    (root / "book/api.md").write_text(API)
    shutil.copytree(ROOT / "book/_static", root / "book/_static")
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    del config["bibtex_bibfiles"]
    config["sphinx"]["config"]["extensions"].remove("sphinxcontrib.bibtex")
    (root / "_config.yml").write_text(yaml.safe_dump(config))
    names = ["first", "second", "third", "fourth", "api"]
    toc = {"format": "jb-book", "root": "book/index"}
    toc["chapters"] = [{"file": f"book/{name}"} for name in names]
    (root / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False))
    return root


def command(root: Path, module: str, *arguments: str):
    """Run a tool of this checkout on the small book at `root`."""
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, "-P", "-m", f"bertbook.{module}", *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )


def build(root: Path, *arguments: str):
    tangled = command(root, "tangle")
    assert tangled.returncode == 0, tangled.stderr
    return command(root, "weave", *arguments)


def executed(done) -> list[str]:
    found = re.search("^executing (.*)$", done.stdout, re.M)
    return found[1].split(", ") if found else []


def page(root: Path, name: str) -> str:
    return (root / f"_build/html/book/{name}.html").read_text("utf-8")


@pytest.fixture(scope="module")
def first_build(tmp_path_factory):
    root = make_book(tmp_path_factory.mktemp("toys") / "book")
    done = build(root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert executed(done) == ["index", "first", "second", "third"]
    return root


@pytest.fixture
def toys(first_build, tmp_path):
    shutil.copytree(first_build, tmp_path / "book")
    return tmp_path / "book"


def edit(root: Path, name: str, old: str, new: str) -> int:
    """Replace `old` in a chapter; the line, from 1, where it stood."""
    path = root / f"book/{name}.md"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


def test_nothing_changed_renders_nothing(toys):
    made = {p: p.stat().st_mtime_ns for p in toys.rglob("_build/html/**/*")}
    done = build(toys)
    assert done.returncode == 0 and executed(done) == []
    assert made == {
        p: p.stat().st_mtime_ns for p in toys.rglob("_build/html/**/*")
    }


def test_prose_edit_executes_nothing_and_shows(toys):
    edit(toys, "first", "Makes one thing.", "Makes another thing.")
    done = build(toys)
    assert done.returncode == 0, done.stderr
    assert executed(done) == []
    assert "Makes another thing." in page(toys, "first")
    notebook = (toys / "_build/html/notebooks/first.ipynb").read_text()
    assert "Makes another thing." in notebook
    # the links of a page that was not read again are still there
    assert "api.html#bertbook.first.double_it" in page(toys, "second")
    assert "second.html" in page(toys, "api")


def test_code_edit_executes_importers_only(toys):
    edit(toys, "first", "return 2 * x", "return x + x")
    edit(toys, "first", 'print("two")', 'print("three")')
    done = build(toys)
    assert done.returncode == 0, done.stderr
    assert executed(done) == ["first", "second"]
    assert "three" in page(toys, "first")


def test_output_of_an_importer_is_published(toys):
    """The Markdown of `second` did not change, its output did."""
    edit(toys, "first", "return 2 * x", "return 3 * x")
    edit(toys, "first", "assert double_it(2) == 4", "")
    done = build(toys)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Eight is <[^>]*>18<", page(toys, "second"))


def test_failures_are_located_and_publish_nothing(toys):
    before = page(toys, "first")
    bad = edit(
        toys, "first", "assert double_it(2) == 4", "double_it(1 / 0)"
    )
    hangs = edit(
        toys, "second", "from myst_nb import glue", "while True: 0"
    )
    edit(toys, "third", "name: python3", "name: cobol")
    text = (toys / "book/index.md").read_text()
    (toys / "book/index.md").write_text(
        text + "\n```{code-cell} python\nprint('still runs')\n```\n"
    )
    done = build(toys, "--timeout", "4")
    assert done.returncode == 1
    problems = done.stderr
    assert f"book/first.md:{bad}: cell 2: ZeroDivisionError: " in problems
    assert f"--> {bad}" in problems  # the traceback, in the chapter's lines
    assert f"book/second.md:{hangs}: cell 2 ran longer than 4 s" in problems
    assert (
        "book/third.md:1: the kernel 'cobol' is not installed" in problems
    )
    assert page(toys, "first") == before
    assert "index: passed" in done.stdout
    edit(toys, "third", "name: cobol", "name: python3")
    again = build(toys, "--timeout", "4")
    assert executed(again) == ["first", "second", "third"]  # not index


HALF = (
    FRONT
    + """\
(fourth)=
# Fourth

```{code-cell} python
def check_half(answer):
    assert answer(8) == 4
```

```{code-cell} python
:exercise: stub

def half(x):
    return x - 1
```

```{code-cell} python
:exercise: solution

def half(x):
    return x / 2


check_half(half)
```
"""
)


def test_a_stub_that_is_right_is_located(toys):
    (toys / "book/fourth.md").write_text(HALF)
    done = build(toys)
    assert done.returncode == 0, done.stderr
    assert executed(done) == ["fourth"]
    notebook = (toys / "_build/html/notebooks/fourth.ipynb").read_text()
    assert "return x - 1" in notebook and "must_fail" not in notebook
    edit(toys, "fourth", "return x - 1", "while True: x")
    done = build(toys, "--timeout", "4")
    assert "cell 2 ran longer than 4 s" in done.stderr
    stub = edit(toys, "fourth", "while True: x", "return x - x / 2")
    done = build(toys)
    assert done.returncode == 1
    problem = done.stderr.split("\n")[0]  # at the end of the cell
    assert problem.startswith(f"book/fourth.md:{stub + 1}: cell 2: ")
    assert "the stub half passes its checker" in problem
    edit(toys, "fourth", "def check_half", "def check_double")
    done = build(toys)
    assert done.returncode == 1
    place = f"book/fourth.md:{stub - 1}: "
    assert f"{place}a stub needs one function" in done.stderr


@pytest.mark.parametrize(
    "ends", [AssertionError, SystemExit, pytest.fail.Exception]
)
def test_a_stub_may_fail_in_any_way(ends, capsys):
    def check(stub):
        print("never seen")
        raise ends("wrong")

    must_fail(check, len)
    assert capsys.readouterr().out == ""


def test_a_stub_can_be_interrupted():
    def check(stub):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        must_fail(check, len)


def test_what_a_page_leaves_in_the_temporary_folder_goes(toys):
    left = "import base64, tempfile\nprint(tempfile.mkdtemp())"
    edit(toys, "third", "import base64", left)
    done = build(toys)
    assert done.returncode == 0, done.stderr
    notebook = (toys / "_build/html/notebooks/third.ipynb").read_text()
    folder = re.search(r"/\S+/tmp\w{8}", notebook)[0]
    assert not Path(folder).exists()
    assert not Path(folder).parent.exists()  # that of the run itself


def test_figure_needs_alt_text(toys):
    edit(toys, "third", '"A grey dot, alone."', '" "')
    done = build(toys)
    assert done.returncode == 1
    place = (toys / "book/third.md").read_text().split("\n")
    line = place.index("import base64") + 1
    assert f"book/third.md:{line}: the cell shows a figure" in done.stderr
    assert executed(done) == []  # the option is not code


def test_code_and_equation_name_each_other(first_build):
    html = page(first_build, "first")
    caption = re.search(r'<p class="cell-caption">(.*?)</p>', html, re.S)[1]
    assert "_modules/bertbook/first.html#double_it" in caption
    target = re.search(r'implements <a[^>]*href="(#[^"]*)"', caption)[1]
    assert f'id="{target[1:]}"' in html
    below = re.search(r'<p class="implemented-by">(.*?)</p>', html, re.S)[1]
    assert 'href="#code-double_it"' in below
    assert 'id="code-double_it"' in html
    source = first_build / "_build/html/_modules/bertbook/first.html"
    assert 'id="double_it"' in source.read_text()


def test_unknown_equation_is_located_every_time(toys):
    edit(toys, "first", ":implements: eq-double", ":implements: eq-triple")
    for _ in range(2):
        done = build(toys)
        assert done.returncode == 1
        assert ":implements: eq-triple names no equation" in done.stderr
        for problem in done.stderr.strip().split("\n"):
            assert re.match(r"book/first\.md:\d+: ", problem)


def test_names_lead_to_the_api_and_back(first_build):
    target = "api.html#bertbook.first.double_it"
    assert target in page(first_build, "second")
    html = page(first_build, "first")
    assert re.search(
        rf'<a class="sphinx-codeautolink-a"[^>]*{target}', html
    )
    prose = html[html.index("You call") : html.index("You call") + 300]
    assert target in prose
    api = page(first_build, "api")
    for name in ("first", "second"):
        assert f'id="module-bertbook.{name}"' in api
        assert f'href="{name}.html#{name}"' in api


def test_cells_are_highlighted_and_options_hidden(first_build):
    html = page(first_build, "first")
    assert '<span class="k">def</span>' in html
    for option in ("tangle", "implements:", "exercise"):
        assert f":{option}" not in html
    assert "<code" in html and "A grey dot, alone." in page(
        first_build, "third"
    )


def test_published_notebooks_stand_alone(first_build):
    folder = first_build / "_build/html/notebooks"
    for name in ("index", "first", "second", "third"):
        notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
        nbformat.validate(notebook)
        assert "pip install" in notebook.cells[1].source
        assert not any("tangle" in cell.metadata for cell in notebook.cells)
    text = nbformat.read(folder / "second.ipynb", as_version=4)
    prose = "\n".join(
        cell.source for cell in text.cells if cell.cell_type == "markdown"
    )
    assert "Eight is 8." in prose and "{glue" not in prose
    assert "/book/first.html)" in prose
    html = page(first_build, "second")
    assert "/blob/notebooks/second.ipynb" in html
    assert "notebooks?labpath=second.ipynb" in html
    assert 'href="../notebooks/second.ipynb"' in html


def test_two_builds_are_the_same_bytes(first_build, tmp_path):
    """From nothing, in another folder, by another process."""
    root = make_book(tmp_path / "elsewhere" / "deeper")
    shutil.copytree(first_build / "bertbook", root / "bertbook")
    done = build(root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tree(first_build / "_build/html") == tree(root / "_build/html")


def test_edited_book_is_what_a_clean_build_makes(toys, tmp_path):
    """Pages that an edit does not touch are as if they had been made anew."""
    edit(toys, "first", "Makes one thing.", "Makes another thing.")
    edit(toys, "second", "# Second", "# The second")
    edit(toys, "first", 'print("two")', "double_it(3)")
    assert build(toys).returncode == 0
    fresh = make_book(tmp_path / "fresh")
    for name in ("first", "second"):
        shutil.copy(toys / f"book/{name}.md", fresh / "book")
    assert build(fresh).returncode == 0
    ours, theirs = tree(toys / "_build/html"), tree(fresh / "_build/html")
    # Sphinx keeps a word that has gone from all pages, with no page.
    assert words(ours.pop("searchindex.js")) == words(
        theirs.pop("searchindex.js")
    )
    assert ours == theirs


def words(index: bytes) -> dict:
    found = json.loads(index[len("Search.setIndex(") : -1])
    for key in ("terms", "titleterms"):
        kept = {word: at for word, at in found[key].items() if at != []}
        found[key] = kept
    return found


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_renderer_never_executes(toys):
    """Called without the outputs, it refuses to make its own."""
    shutil.rmtree(toys / "_build/.jupyter_cache")
    shutil.rmtree(toys / "_build/.doctrees")
    program = Path(sys.executable).with_name("jupyter-book")
    environment = os.environ | {"PYTHONPATH": f"{toys}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [program, "build", ".", "-q"],
        cwd=toys,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "has not been executed" in done.stdout + done.stderr


# The real book: its keys, without running it.


IMPORTED_AT_ONCE = """
import importlib, json, sys

found = {}
for name in sys.argv[1:]:
    for loaded in [m for m in sys.modules if m.split(".")[0] == "bertbook"]:
        del sys.modules[loaded]
    importlib.import_module(f"bertbook.{name}")
    found[name] = [m[9:] for m in sys.modules if m.startswith("bertbook.")]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def book():
    return load_book(ROOT)


@pytest.fixture(scope="module")
def loads(book):
    """What of the package each module imports when it is imported."""
    names = {name.removesuffix(".py") for name in book.modules}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED_AT_ONCE, *names - {"__init__"}],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        name: set(loaded)
        for name, loaded in json.loads(done.stdout).items()
    }


@pytest.mark.parametrize("module", ["wordpiece", "reproducibility"])
def test_edit_of_a_module_makes_its_importers_stale(book, loads, module):
    expected = set()
    for chapter in book.chapters:
        code = "\n".join(cell.text for cell in chapter.cells)
        named = set(
            re.findall(
                r"\bbertbook\.(\w+) import|import bertbook\.(\w+)", code
            )
        )
        direct = {name for pair in named for name in pair if name in loads}
        if any(module in loads[name] | {name} for name in direct):
            expected.add(chapter.path)
        if f"{module}.py" in {
            c.options.get("tangle") for c in chapter.cells
        }:
            expected.add(chapter.path)
    stale = changed_keys(book, module)
    assert expected <= stale
    for path in stale - expected:  # by a lazy import or a public name
        (chapter,) = [each for each in book.chapters if each.path == path]
        assert module in modules_used(book, chapter)
        code = "\n".join(cell.text for cell in chapter.cells)
        assert "bertbook" in code
    assert stale != {chapter.path for chapter in book.chapters}


def changed_keys(book: Book, module: str) -> set[str]:
    chapters = []
    for chapter in book.chapters:
        cells = [
            replace(cell, text=cell.text + "\n# edited")
            if cell.options.get("tangle") == f"{module}.py"
            else cell
            for cell in chapter.cells
        ]
        chapters.append(replace(chapter, cells=tuple(cells)))
    edited = replace(book, chapters=tuple(chapters))
    return {
        old.path
        for old, new in zip(book.chapters, edited.chapters)
        if chapter_key(book, old) != chapter_key(edited, new)
    }


def test_prose_leaves_every_key_alone(book):
    for chapter in book.chapters:
        prose = replace(chapter, text=chapter.text + "\nMore.", title="New")
        others = tuple(
            prose if each is chapter else each for each in book.chapters
        )
        other = replace(book, chapters=others)
        assert chapter_key(book, chapter) == chapter_key(other, prose)


@pytest.mark.slow
def test_two_builds_of_the_book_are_the_same_bytes(tmp_path):
    trees = []
    for name in ("one", "two"):
        root = tmp_path / name
        root.mkdir()
        for part in ("book", "bertbook"):
            shutil.copytree(ROOT / part, root / part)
        for part in ("_config.yml", "_toc.yml", "requirements.txt"):
            shutil.copy(ROOT / part, root)
        environment = os.environ | {
            "PYTHONPATH": str(root),
            "BERTBOOK_BUDGET": "smoke",
        }
        done = subprocess.run(
            [sys.executable, "-m", "bertbook.weave"],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        trees.append(tree(root / "_build/html"))
    differ = {
        path
        for path in trees[0].keys() | trees[1].keys()
        if trees[0].get(path) != trees[1].get(path)
    }
    assert not differ


@pytest.mark.parametrize(
    "words",
    [
        "RuntimeError: Kernel died before replying to kernel_info",
        "RuntimeError: Kernel didn't respond in 60 seconds",
    ],
)
def test_kernel_that_did_not_start_is_started_again(
    monkeypatch, tmp_path, words
):
    died, broken = tmp_path / "died.ipynb", tmp_path / "broken.ipynb"
    calls = []

    def run(root, paths, timeout, threads):
        calls.append(list(paths))
        return (
            {died: words, broken: "ZeroDivisionError"}
            if (len(calls) == 1)
            else {}
        )

    monkeypatch.setattr(execute_module, "run_notebooks", run)
    failed = execute_module._run_twice(tmp_path, [died, broken], 60)
    assert calls == [[died, broken], [died]]
    assert failed == {broken: "ZeroDivisionError"}


def test_chapter_that_asks_for_all_threads_runs_alone_and_first(
    monkeypatch, tmp_path
):
    calls = []

    def run(root, paths, timeout, threads):
        calls.append((list(paths), timeout, threads))
        return {}

    def chapter(**front):
        return SimpleNamespace(notebook=SimpleNamespace(metadata=front))

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(execute_module, "run_notebooks", run)
    cores = describe_machine()["cores"]
    paths = {"a": chapter(), "wide": chapter(threads="all"), "b": chapter()}
    assert execute_module._run_all(tmp_path, paths, 60) == {}
    assert calls == [(["wide"], 300, str(cores)), (["a", "b"], 60, "1")]
