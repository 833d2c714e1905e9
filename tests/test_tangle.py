"""The tangler: round trips, conflicts, faults and bad input."""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbook import tangle
from bertbook.chapters import (
    TangleError,
    read_book,
    read_source,
    strip_blank_lines,
)
from bertbook.modules import load_book, tangle_module
from bertbook.tangle import check, main, sync, where, write_files

ROOT = Path(__file__).resolve().parent.parent
FRONT = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n"


def cell(code, target="toy.py", fence="```"):
    option = f":tangle: {target}\n" if target else ""
    return f"{fence}{{code-cell}} python\n{option}\n{code}\n{fence}\n"


def make_book(root, **chapters):
    """A book of the given chapters, `name=body`, in this order."""
    (root / "book").mkdir(parents=True, exist_ok=True)
    (root / "bertbook").mkdir(exist_ok=True)
    (root / "_config.yml").write_text(
        "html: {baseurl: https://toy.example}\n"
        "parse: {myst_enable_extensions: [colon_fence, dollarmath]}\n"
    )
    names = "".join(f"  - file: book/{name}\n" for name in chapters)
    (root / "_toc.yml").write_text(f"root: book/index\nchapters:\n{names}")
    index = FRONT + "# Index\n\nThe first page.\n"
    (root / "book/index.md").write_text(index)
    for name, body in chapters.items():
        path = root / f"book/{name}.md"
        path.write_bytes((FRONT + body).encode("utf-8"))
    return root


TWO_CELLS = (
    "# Toy\n\nSays two things.\n\n"
    + cell("import os\n\n\ndef first():\n    return os.sep")
    + "\nProse between.\n\n"
    + cell("second = 2")
    + "\nThe end.\n"
)


@pytest.fixture
def book(tmp_path):
    root = make_book(tmp_path, toy=TWO_CELLS)
    write_files(root, sync(root))
    return root


def problems(root, command=check):
    try:
        return command(root)
    except TangleError as error:
        return error.problems


# The book itself


def test_package_is_what_the_chapters_say():
    assert check(ROOT) == []


def test_tangler_tangled_by_its_chapters_is_itself():
    """The code in the chapters, run, writes the modules that we import."""
    source = load_book(ROOT)
    space = {"__name__": "chapters"}
    for name in ("chapters.py", "modules.py"):
        for each in source.modules[name]:
            code = each.text.replace("from bertbook.chapters", "from here")
            if "from here" in code:  # the names are in `space` already
                code = code[: code.index("from here")]
            exec(compile(code, name, "exec"), space)
    fresh = space["load_book"](ROOT)
    for name in fresh.modules:
        text = (ROOT / "bertbook" / name).read_text("utf-8")
        assert space["tangle_module"](fresh, name) == text


def test_tangling_twice_changes_nothing(book):
    assert sync(book) == {}
    module = (book / "bertbook/toy.py").read_bytes()
    write_files(book, sync(book, fold=False))
    assert (book / "bertbook/toy.py").read_bytes() == module


def test_what_did_not_change_is_not_parsed_again(book):
    index, toy = read_book(book)
    page = book / "book/toy.md"
    page.write_text(page.read_text() + "\nMore.\n")
    again = read_book(book)
    assert again[0] is index
    assert again[1].text == toy.text + "\nMore.\n"
    config = book / "_config.yml"
    config.write_text(config.read_text().replace("dollarmath", "deflist"))
    assert read_book(book)[0] is not index


def test_check_needs_no_torch():
    code = (
        "import sys; from pathlib import Path; from bertbook.tangle import "
        f"check; check(Path({str(ROOT)!r})); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Round trips

line = st.one_of(
    st.sampled_from(
        [
            "x = 1",
            "def f():\n    return 1",
            'doc = """\n```\n````{code-cell} python\n"""',
            'doc = """\n~~~~~\n:tangle: no.py\n---\n"""',
            "s = '\\u2028 naïve 中文 🤖'",
            "if True:\n\ty = '\t'",
            "# a comment\n\n\n# and another",
            "-1",
            "---1",
            "import sys\nimport os",
            "'''a\n\n\n\nb'''",
        ]
    ),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]))
    .map(ascii)
    .map("text = {}".format),
    st.text(st.characters(min_codepoint=160, exclude_categories=["Cs"]))
    .filter(lambda text: text.splitlines() in ([text], []))
    .map("# {}.".format),
)
code = st.lists(line, min_size=1, max_size=4).map("\n".join)


@settings(max_examples=60, deadline=None)
@given(
    first=code, second=code, fence=st.sampled_from(["```", "~~~", "`````"])
)
def test_any_edit_of_the_module_flows_back(
    tmp_path_factory, first, second, fence
):
    def valid(text):
        compile(text, "edit", "exec")
        return strip_blank_lines(text)

    first, second = valid(first), valid(second)
    body = (
        "# Toy\n\nPröse, `code` and ```` ``` ````.\n\n"
        + cell("a = 1", fence=fence)
        + "\n```\nverbatim, a = 1\n```\n\n"
        + cell("b = 2", fence=fence)
        + "\nThe end.\n"
    )
    root = make_book(tmp_path_factory.mktemp("trip"), toy=body)
    write_files(root, sync(root))
    path = root / "bertbook/toy.py"
    module = path.read_text("utf-8")
    edited = module.replace("\na = 1\n", f"\n{first}\n")
    edited = edited.replace("\nb = 2\n", f"\n{second}\n")
    path.write_bytes(edited.encode("utf-8"))
    before = (root / "book/toy.md").read_bytes()
    found = problems(root, sync)
    if isinstance(
        found, list
    ):  # refused: a name twice, the same cell twice
        assert all("defined already" in x or "repeats" in x for x in found)
        assert (root / "book/toy.md").read_bytes() == before
        return
    write_files(root, found)
    assert check(root) == []
    chapter = load_book(root).chapters[1]
    assert [each.text for each in chapter.cells] == [first, second]
    # the prose is untouched: put the old code back and compare
    old = chapter.text.split("\n")
    for each, text in zip(reversed(chapter.cells), ("b = 2", "a = 1")):
        start, close = each.fence
        old[start] = f"{fence}{{code-cell}} python"
        old[close] = fence
        old[each.line - 1 : close] = [text]
    assert "\n".join(old) == FRONT + body


def test_swapped_bodies_are_not_discarded(book):
    path = book / "bertbook/toy.py"
    first = "import os\n\n\ndef first():\n    return os.sep"
    text = path.read_text().replace(first, "@").replace("second = 2", first)
    path.write_text(text.replace("@", "second = 2"))
    write_files(book, sync(book))
    assert check(book) == []
    texts = [each.text for each in load_book(book).chapters[1].cells]
    assert texts == ["second = 2", first]


def test_a_cell_made_equal_to_another_is_refused(book):
    path = book / "bertbook/toy.py"
    text = path.read_text()
    path.write_text(text + "\n\nthird = 3\n")
    write_files(book, sync(book))
    body = "second = 2\n\n\nthird = 3"
    first = "import os\n\n\ndef first():\n    return os.sep"
    copied = path.read_text().replace(first, body)
    path.write_text(copied)
    found = problems(book, sync)
    assert any("repeats that at" in problem for problem in found)
    assert path.read_text() == copied


def test_rename_by_a_tool_survives(book):
    """As an editor does it: the definition, and the string in __all__."""
    path = book / "bertbook/toy.py"
    path.write_text(path.read_text().replace("second", "other"))
    write_files(book, sync(book))
    assert check(book) == []
    assert "other = 2" in (book / "book/toy.md").read_text()
    assert '    "other",' in path.read_text()


def test_new_code_at_the_end_joins_the_last_cell(book):
    path = book / "bertbook/toy.py"
    path.write_text(path.read_text() + "\n\nthird = 3\n")
    write_files(book, sync(book))
    assert check(book) == []
    text = (book / "book/toy.md").read_text()
    assert text == FRONT + TWO_CELLS.replace(
        "second = 2", "second = 2\n\n\nthird = 3"
    )


def test_text_moved_between_cells_is_not_lost(tmp_path):
    root = make_book(
        tmp_path, toy="# T\n\n" + cell("a = 1") + cell("b = 2")
    )
    write_files(root, sync(root))
    path = root / "bertbook/toy.py"
    text = path.read_text().replace("\nb = 2", "\nc = 3")
    path.write_text(text.replace("\na = 1", "\nb = 2"))
    write_files(root, sync(root))
    texts = [each.text for each in load_book(root).chapters[1].cells]
    assert texts == ["b = 2", "c = 3"] and check(root) == []


def test_module_of_another_make_is_refused(book):
    path = book / "bertbook/toy.py"
    path.write_text("precious = 42\n")
    assert "its header or its markers" in problems(book, sync)[0]
    assert path.read_text() == "precious = 42\n"


@pytest.mark.parametrize(
    "start",
    ['# "Toy" is a toy\n\n', '# T\n\n"""Toy""" \\ `# %% x` "x"\n\n'],
)
def test_any_title_makes_a_docstring(tmp_path, start):
    root = make_book(tmp_path, toy=start + cell("a = 1"))
    write_files(root, sync(root))
    ruff = [sys.executable, "-m", "ruff", "format", "-q"]
    subprocess.run([*ruff, root / "bertbook"], check=True)
    assert check(root) == []


@pytest.mark.parametrize("name", ["_toc.yml", "_config.yml"])
@pytest.mark.parametrize("text", ["", "a: [", "- a", "\xff", "root: 1"])
def test_bad_settings_are_located(book, name, text):
    (book / name).write_bytes(text.encode("latin-1"))
    found = problems(book)
    if (name, text) != ("_config.yml", "root: 1"):
        assert re.match(rf"{name}:\d+: ", found[0]), found


def test_moved_cells_keep_their_edits(book):
    path = book / "bertbook/toy.py"
    path.write_text(path.read_text().replace("second = 2", "second = 22"))
    chapter = book / "book/toy.md"
    a, b = cell("second = 2"), "# Toy\n"
    moved = (
        chapter.read_text().replace(a, "").replace(b, f"{b}\nUp.\n\n{a}")
    )
    chapter.write_text(moved)
    write_files(book, sync(book))
    assert chapter.read_text() == moved.replace("second = 2", "second = 22")
    assert check(book) == []


@pytest.mark.parametrize("ends", ["\r\n", "\n"])
def test_line_ends_stay(book, ends):
    for path in (book / "book/toy.md", book / "bertbook/toy.py"):
        path.write_bytes(path.read_bytes().replace(b"\n", ends.encode()))
    assert check(book) == []
    path = book / "bertbook/toy.py"
    path.write_bytes(
        path.read_bytes().replace(b"second = 2", b"second = 3")
    )
    write_files(book, sync(book))
    assert check(book) == []
    for path in (book / "book/toy.md", book / "bertbook/toy.py"):
        text = path.read_bytes()
        assert b"second = 3" in text
        assert text.count(b"\r\n") == (text.count(b"\n") if ends[1:] else 0)


def test_formatter_and_import_order_survive(tmp_path):
    ugly = (
        "# Toy\n\nUgly.\n\n"
        + cell("import sys\nimport os")
        + "\nThen.\n\n"
        + cell("import json\nimport abc\nx = {  'a':os.sep,'b':abc }")
        + cell("def f( a,b ):\n  return (a,\n    b)")
        + cell("import re")
        + cell("y = 2")
        + cell("import io")
        + cell("def g(): return io")
    )
    root = make_book(tmp_path, toy=ugly)
    write_files(root, sync(root))
    ruff = [sys.executable, "-m", "ruff"]
    tools = (["check", "-q", "--select", "I", "--fix"], ["format", "-q"])
    for arguments in tools:
        done = subprocess.run([*ruff, *arguments, root / "bertbook"])
        assert done.returncode == 0
    write_files(root, sync(root))
    assert check(root) == []
    texts = [each.text for each in load_book(root).chapters[1].cells]
    assert texts == [
        "import os\nimport sys",
        'import abc\nimport json\n\nx = {"a": os.sep, "b": abc}',
        "def f(a, b):\n    return (a, b)",
        "import re",
        "y = 2",
        "import io",
        "def g():\n    return io",
    ]
    module = (root / "bertbook/toy.py").read_bytes()
    for arguments in tools:
        subprocess.run([*ruff, *arguments, root / "bertbook"], check=True)
    assert (root / "bertbook/toy.py").read_bytes() == module


# Nothing lost


def test_conflict_names_both_places_and_touches_nothing(book):
    chapter, module = book / "book/toy.md", book / "bertbook/toy.py"
    chapter.write_text(
        chapter.read_text().replace("second = 2", "second = 3")
    )
    module.write_text(
        module.read_text().replace("second = 2", "second = 4")
    )
    before = chapter.read_bytes(), module.read_bytes()
    line = chapter.read_text().split("\n").index("second = 3") + 1
    own = module.read_text().split("\n").index("second = 4") + 1
    [problem] = problems(book, sync)
    assert problem.startswith(f"book/toy.md:{line}: ")
    assert f"bertbook/toy.py:{own};" in problem
    assert (chapter.read_bytes(), module.read_bytes()) == before


def test_cell_edited_here_and_deleted_there_is_a_conflict(book):
    chapter, module = book / "book/toy.md", book / "bertbook/toy.py"
    chapter.write_text(chapter.read_text().replace(cell("second = 2"), ""))
    module.write_text(
        module.read_text().replace("second = 2", "second = 4")
    )
    assert "changed here and at bertbook/toy.py" in problems(book, sync)[0]


def test_the_same_edit_on_both_sides_is_none(book):
    for path in (book / "book/toy.md", book / "bertbook/toy.py"):
        path.write_text(
            path.read_text().replace("second = 2", "second = 3")
        )
    write_files(book, sync(book))
    assert check(book) == []


def test_tangle_does_not_overwrite_a_hand_edit(book, monkeypatch, capsys):
    module = book / "bertbook/toy.py"
    module.write_text(
        module.read_text().replace("second = 2", "second = 3")
    )
    before = module.read_bytes()
    monkeypatch.chdir(book)
    assert main([]) == 1
    assert "bertbook/toy.py:26: edited by hand" in capsys.readouterr().err
    assert module.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    {
        "missing marker": lambda text: "\n".join(
            line
            for line in text.split("\n")
            if not line.startswith("# %%") or "1" not in line[-6:]
        ),
        "marker twice": lambda text: text + text[text.rindex("# %%") :],
        "garbled marker": lambda text: text.replace(
            "# %% book", "# %% boot"
        ),
        "no marker": lambda text: text.replace(
            "# %% book/toy.md#", "# %% "
        ),
        "docstring edited": lambda text: text.replace(
            "Says two", "Says no"
        ),
        "merge conflict": lambda text: "<<<<<<< ours\n" + text,
        "cells swapped": lambda text: (
            text[: text.index("# %%")]
            + text[text.rindex("# %%") :]
            + text[text.index("# %%") : text.rindex("# %%")]
        ),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_damaged_skeleton_is_refused(book, damage):
    module = book / "bertbook/toy.py"
    text = module.read_text()
    damaged = damage[1](text)
    if damaged == text:  # the digests decide which marker holds a 1
        damaged = text.replace(text[text.rindex("# %%") :][:40], "", 1)
    assert damaged != text
    module.write_text(damaged)
    found = problems(book, sync)
    assert isinstance(found, list) and "bertbook/toy.py:" in found[0]
    assert module.read_text() == damaged
    module.unlink()  # the way out that the sentence names
    write_files(book, sync(book))
    assert module.read_text() == text


@pytest.mark.parametrize("survived", range(4))
def test_killed_between_writes(book, survived):
    """SIGKILL after so many renames: every file is old or new, whole."""
    module, chapter = book / "bertbook/toy.py", book / "book/toy.md"
    module.write_text(
        module.read_text().replace("second = 2", "second = 3")
    )
    old = {path: path.read_text() for path in (module, chapter)}
    script = f"""
        import os, signal
        from pathlib import Path
        from bertbook.tangle import sync, write_files
        real, done = os.replace, []
        def replace(a, b):
            if len(done) == {survived}:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(real(a, b))
        os.replace = replace
        write_files(Path({str(book)!r}), sync(Path({str(book)!r})))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)])
    assert done.returncode == (-signal.SIGKILL if survived < 2 else 0)
    new = tangle_module(load_book(book), "toy.py")
    assert module.read_text() in (old[module], new)
    assert chapter.read_text() in (
        old[chapter],
        old[chapter].replace("second = 2", "second = 3"),
    )
    write_files(book, sync(book))  # and the next run finishes the work
    assert check(book) == []
    assert "second = 3" in chapter.read_text()
    assert "second = 3" in module.read_text()


def test_failed_write_leaves_no_file(book, monkeypatch):
    module = book / "bertbook/toy.py"
    module.write_text(
        module.read_text().replace("second = 2", "second = 3")
    )
    before = sorted(path.name for path in book.rglob("*"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_files(book, sync(book))
    assert sorted(path.name for path in book.rglob("*")) == before


# Bad input

BAD = {
    "leaves the package": (cell("a = 1", "../a.py"), 10, "no module of"),
    "no Python file": (cell("a = 1", "a.txt"), 10, "no module of"),
    "does not parse": (cell("a = 1\nb ="), 11, "does not parse"),
    "magic": (cell("a = 1\n%time a"), 11, "is a magic"),
    "shell": (cell("!ls"), 10, "is a magic"),
    "question": (cell("len?"), 10, "is a magic"),
    "name twice": (
        cell("a = 1") + cell("def a(): ..."),
        15,
        "defined already at book/bad.md:10",
    ),
    "cell twice": (cell("import os") * 2, 15, "repeats that at"),
    "later chapter": (cell("import bertbook.later"), 10, "earlier chapter"),
    "later, inside": (
        cell("def f():\n    from bertbook.later import g\n    return g"),
        11,
        "earlier chapter",
    ),
    "itself": (cell("import bertbook.toy"), 10, "earlier chapter"),
    "from the package": (
        cell("from bertbook import later"),
        10,
        "bertbook.later is not made",
    ),
    "relative": (cell("from .later import g"), 10, "relative import"),
    "future": (
        cell("from __future__ import annotations"),
        10,
        "__future__",
    ),
    "does not compile": (cell("await f()"), 10, "does not parse"),
    "return": (cell("return 1"), 10, "does not parse"),
    "split mark": (cell("# isort: split\nimport os"), 10, "for a marker"),
    "blank in the fence": (
        cell("a = 1").replace("```{code-cell}", "``` {code-cell}"),
        7,
        "a fence with a blank",
    ),
    "in a note": (
        "````{note}\n" + cell("a = 1", fence="```") + "````\n",
        8,
        "inside {note}",
    ),
    "in a colon note": (
        ":::{note}\n" + cell("a = 1") + ":::\n",
        8,
        "{note}",
    ),
    "two deep": (
        "`````{tab-set}\n````{tab-item} A\n"
        + cell("a = 1")
        + "````\n`````\n",
        9,
        "inside {tab-item}",
    ),
    "in a list": (
        "- item\n\n" + textwrap.indent(cell("a = 1"), "  "),
        9,
        "inside a list",
    ),
    "colon cell": (
        ":::{code-cell} python\na = 1\n:::\n",
        7,
        "a fence of colons",
    ),
    "indented": (
        textwrap.indent(cell("def f():\n    return 1"), "  "),
        7,
        "the fence is indented",
    ),
    "never closed": (cell("a = 1")[:-4], 7, "never closed"),
    "empty cell": (cell(""), 11, "is empty"),
    "marker inside": (cell("# %% a"), 10, "taken for a marker"),
    "unknown option": (
        cell("a = 1").replace(":tangle:", ":tangel:"),
        7,
        ":tangel: is unknown",
    ),
    "form feed": (cell("a = '\x0c'"), 10, "'\\x0c'"),
    "line separator": (cell("a = '\u2028'"), 10, "'\\u2028'"),
    "bad options": (
        cell("a = 1").replace(":tangle: toy.py", ":tangle: [toy.py"),
        7,
        "bad YAML); mend the options",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_cell_is_located(tmp_path, kind):
    body, line, words = BAD[kind]
    later = "# Later\n\nLast.\n\n" + cell("def g(): ...", "later.py")
    root = make_book(tmp_path, bad="# T\n" + body, later=later)
    before = sorted(root.rglob("*"))
    found = problems(root, sync)
    assert isinstance(found, list)
    located = [x for x in found if words in x]
    assert located and located[0].startswith(f"book/bad.md:{line}: "), found
    assert sorted(root.rglob("*")) == before


def test_a_chapter_may_make_a_second_module_from_its_first(tmp_path):
    """The way of `__main__`: a module is there once its cells are over."""
    body = "# T\n\nTwo.\n\n" + cell("def main(): ...", "toy.py")
    start = cell("from bertbook.toy import main\n\nmain()", "__main__.py")
    late = cell("def other(): ...", "toy.py")
    root = make_book(tmp_path, toy=body + "\n" + start)
    write_files(root, sync(root))
    assert check(root) == []
    assert "book/toy.html" in (root / "bertbook/__main__.py").read_text()
    for wrong in (start + "\n" + body, body + "\n" + start + "\n" + late):
        (root / "book/toy.md").write_text(FRONT + "# T\n\nTwo.\n\n" + wrong)
        assert any("bertbook.toy is not made" in x for x in problems(root))


def test_example_of_a_cell_in_a_verbatim_block_is_fine(tmp_path):
    body = (
        "# T\n\n````markdown\n"
        + cell("a = = 1")
        + "````\n\n"
        + cell("b = 1")
    )
    root = make_book(tmp_path, toy=body)
    write_files(root, sync(root))
    assert "b = 1" in (root / "bertbook/toy.py").read_text()
    assert "= =" not in (root / "bertbook/toy.py").read_text()


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "book/toy.md:1: the chapter has no title"),
        ("no heading\n", "book/toy.md:1: the chapter has no title"),
        (
            "# T\n\n" + cell("a = 1"),
            "book/toy.md:1: its cells would not run",
        ),
        (b"# T\n\n\xff", "book/toy.md:3: byte 5 is not UTF-8"),
        ("---\na: [\n---\n# T\n", "book/toy.md:1:"),
    ],
)
def test_bad_chapter_is_located(book, text, words):
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    (book / "book/toy.md").write_bytes(data)
    assert any(words in found for found in problems(book))


def test_strays_orphans_and_missing_chapters(book):
    (book / "book/stray.md").write_text(FRONT + TWO_CELLS)
    assert problems(book)[0].startswith(
        "book/stray.md:1: the chapter is not"
    )
    (book / "book/stray.md").unlink()
    (book / "bertbook/orphan.py").write_text("")
    assert problems(book)[0].startswith("bertbook/orphan.py:1: no chapter")
    (book / "bertbook/orphan.py").unlink()
    (book / "book/toy.md").unlink()
    assert problems(book)[0].startswith("book/toy.md:1: No such file")


def test_stale_module_is_named_with_its_line(book):
    chapter = book / "book/toy.md"
    chapter.write_text(
        chapter.read_text().replace("second = 2", "second = 5")
    )
    [problem] = check(book)
    assert problem.startswith("bertbook/toy.py:8: is not what the chapters")
    assert "second = 2" in (book / "bertbook/toy.py").read_text()


# The command


def test_where_follows_the_package(monkeypatch):
    book = load_book(ROOT)
    monkeypatch.setattr(tangle, "read_book", lambda root: book.chapters)
    for name, cells in book.modules.items():
        text = (ROOT / "bertbook" / name).read_text("utf-8").split("\n")
        lines = [i for i, x in enumerate(text, 1) if x.startswith("def ")]
        for number in lines[:3]:
            place, address = where(ROOT, f"bertbook/{name}:{number}")
            path, _, line = place.partition(":")
            source = read_source(ROOT, path).split("\n")
            assert source[int(line) - 1] == text[number - 1]
            slug = address.rpartition("#")[2]
            assert slug in {each.section for each in cells}


@pytest.mark.parametrize(
    "place", ["bertbook/no.py:1", "bertbook/toy.py", "toy.py:x"]
)
def test_where_refuses_what_is_no_place(book, place):
    with pytest.raises(TangleError, match="is no line of the package"):
        where(book, place)


def test_command_line(book, monkeypatch, capsys):
    monkeypatch.chdir(book / "book")
    assert main(["--check"]) == 0
    assert "tangle: took " in capsys.readouterr().out
    assert main(["--where", "bertbook/toy.py:26"]) == 0
    out = capsys.readouterr().out
    assert "book/toy.md:25\nhttps://toy.example/book/toy.html#toy" in out
    chapter = book / "book/toy.md"
    chapter.write_text(
        chapter.read_text().replace("second = 2", "second = 5")
    )
    assert main(["--diff"]) == 0
    assert "+second = 5" in capsys.readouterr().out
    assert main(["--check"]) == 1
    assert capsys.readouterr().err.startswith("bertbook/toy.py:")
    assert main([]) == 0
    assert main(["--check"]) == 0
    shutil.rmtree(book / "book")
    (book / "_toc.yml").unlink()
    monkeypatch.chdir(book)
    assert main(["--check"]) == 1
    assert "there is no _toc.yml" in capsys.readouterr().err


def test_order_of_the_directory_does_not_matter(book, monkeypatch):
    real = Path.glob
    monkeypatch.setattr(Path, "glob", lambda *a: reversed(sorted(real(*a))))
    assert check(book) == []
    assert tangle.sync(book) == {}
