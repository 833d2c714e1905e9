"""Label files

Reads tables of labelled text from .csv, .tsv, .jsonl, .json, .parquet and
.conll files and from datasets, keeps the line of each row for messages, and
lets no file run anything.

The page: https://bertbook.github.io/bertbook/book/label_files.html
"""

# Tangled from book/label_files.md (7574a6f5): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "FORMATS",
    "Table",
    "dataset_table",
    "read_table",
]


# %% book/label_files.md#from-bytes-to-rows 38711d60
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import NamedTuple


def _read_text(path):
    """The text of a file; ValueError with the line if not UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        kind = "utf-16" if wide else "windows-1252"
        raise ValueError(
            f"{path}:{line} is not UTF-8; convert the file, for example "
            f"by iconv -f {kind} -t utf-8"
        ) from None


# %% book/label_files.md#from-bytes-to-rows 24354346
class Table(NamedTuple):
    """What a source holds, before any of it is believed."""

    name: str
    columns: list[str]
    values: Callable[[str], list]  # of a column, by its name
    size: int  # how many rows
    lines: list[int] | None = None  # where the rows begin in a file
    classes: dict[str, list[str] | None] | None = None  # by column

    def place(self, row: int) -> str:
        """Where a row stands, for a message: `file:line`, or its number."""
        if self.lines is None:
            return f"{self.name}, row {row + 1},"
        return f"{self.name}:{self.lines[row]}"


# %% book/label_files.md#commas-and-tabs 1a9a7547
def _read_csv(path):
    tabs = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    how = tabs if path.suffix.lower() == ".tsv" else {}
    text = _read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **how)
    rows, lines, start = [], [], 1
    limit = csv.field_size_limit(len(text))  # one for all readers
    try:
        for row in reader:
            if row:  # not an empty line
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}:{start} begins a row that cannot be read ({error}); "
            "close each quote, and double a quote inside quotes"
        ) from None
    finally:
        csv.field_size_limit(limit)
    return _table_of(path, rows, lines)


# %% book/label_files.md#commas-and-tabs 2b5d46cc
def _refuse_twins(place, names):
    """ValueError where two columns have one name, other than none."""
    for name, times in Counter(filter(None, names)).items():
        if times > 1:
            raise ValueError(
                f"{place} names the column {name!r:.42} twice; rename one "
                "of them"
            )


def _table_of(path, rows, lines):
    """The table of rows of fields, of which the first names the columns."""
    header = [name.strip() for name in rows[0]] if rows else []
    if rows:
        _refuse_twins(f"{path}:{lines[0]}", header)
    for row, line in zip(rows, lines):
        if len(row) != len(header):
            raise ValueError(
                f"{path}:{line} has {len(row)} fields, and the header has "
                f"{len(header)}; put a field with a comma in quotes, and "
                "replace a tab in a .tsv file"
            )

    def values(name):
        at = header.index(name)
        return [row[at] for row in rows[1:]]

    size = max(len(rows) - 1, 0)
    return Table(str(path), header, values, size, lines[1:])


# %% book/label_files.md#lines-of-json 73a0493a
def _as_dict(pairs):
    row = dict(pairs)
    if len(row) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {name!r:.42} stands twice in an object")
    return row


def _parse_json(text, place):
    try:
        value = json.loads(text, object_pairs_hook=_as_dict)
        if "\\ud" in text.lower():  # perhaps half of a character
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        reason = str(error).replace("line 1 ", "")  # `place` has the line
        raise ValueError(
            f"{place} is not JSON as it should be ({reason}); write one "
            'object a line, such as {"text": "Funny.", "label": "pos"}'
        ) from None


def _read_json(path):
    text = _read_text(path)
    if text.lstrip().startswith("["):
        return _from_rows(path, _parse_json(text, path), None)
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            rows.append(_parse_json(line, f"{path}:{number}"))
            lines.append(number)
    return _from_rows(path, rows, lines)


# %% book/label_files.md#lines-of-json f3298e90
def _from_rows(path, rows, lines):
    """The table of rows that are dicts."""

    def values(name):
        return [row.get(name) for row in rows]

    table = Table(str(path), [], values, len(rows), lines)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(
                f"{table.place(number)} holds {json.dumps(row):.20}, and "
                'an object is expected, such as {"text": "Funny."}'
            )
    names = dict.fromkeys(name for row in rows for name in row)
    return table._replace(columns=list(names))


# %% book/label_files.md#a-token-a-line 5160c416
def _in_sentence(numbered):
    _, line = numbered
    return line.strip() != "" and not line.startswith("-DOCSTART-")


def _token_and_tag(path, number, line):
    line = line.strip(" \r")
    parts = re.split("\t" if "\t" in line else " +", line)
    token, tag = parts[0].strip(" "), parts[-1].strip(" ")
    if len(parts) < 2 or not token or not tag:
        raise ValueError(
            f"{path}:{number} is not a token and its tag; write both on a "
            "line, with a blank or a tab between, and an empty line after "
            "each sentence"
        )
    return token, tag


def _read_conll(path):
    numbered = enumerate(_read_text(path).split("\n"), 1)
    rows, lines = [], []
    for inside, group in groupby(numbered, _in_sentence):
        if inside:
            group = list(group)
            pairs = [_token_and_tag(path, *each) for each in group]
            tokens, tags = map(list, zip(*pairs))
            rows.append({"tokens": tokens, "tags": tags})
            lines.append(group[0][0])
    return _from_rows(path, rows, lines)


# %% book/label_files.md#parquet-and-what-the-hub-sends 54913650
def _class_names(feature):
    """Names in the description of a ClassLabel or a list of them; or None.

    A description is what `datasets.Features.to_dict` makes of a feature.
    """
    while isinstance(feature, dict):
        names = feature.get("names")
        if isinstance(names, list) and all(type(n) is str for n in names):
            return names
        feature = feature.get("feature")
    return None


def _named(values, names):
    """Numbers of classes as names; None for what has none, such as -1."""
    if names is None:
        return values
    if isinstance(values, list):
        return [_named(value, names) for value in values]
    inside = type(values) is int and 0 <= values < len(names)
    return names[values] if inside else None


# %% book/label_files.md#parquet-and-what-the-hub-sends 04d9e34d
def _noted_features(schema):
    """What `datasets` noted in a Parquet file, as a dict; or nothing."""
    try:
        note = json.loads(schema.metadata[b"huggingface"])
        return dict(note["info"]["features"])
    except (TypeError, KeyError, ValueError, RecursionError):
        return {}


def _read_parquet(path):
    import pyarrow
    from pyarrow import parquet

    data = path.read_bytes()
    try:
        table = parquet.ParquetFile(pyarrow.BufferReader(data)).read()
        names = table.column_names
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
        raise ValueError(
            f"{path} is not a Parquet file, or is damaged; write it anew"
        ) from None
    _refuse_twins(path, names)
    noted = _noted_features(table.schema).items()
    classes = {column: _class_names(each) for column, each in noted}

    def values(column):
        try:
            found = table.column(names.index(column)).to_pylist()
        except (ValueError, OverflowError) as error:
            raise ValueError(
                f"{path} has a column {column!r:.42} that cannot be read "
                f"({error}); write it anew, and text as UTF-8"
            ) from None
        return _named(found, classes.get(column))

    return Table(str(path), names, values, len(table), None, classes)


# %% book/label_files.md#parquet-and-what-the-hub-sends 31084f46
def dataset_table(name: str, data) -> Table:
    """The table of a `datasets.Dataset`, with names for its classes."""
    described = data.features.to_dict().items()
    classes = {column: _class_names(each) for column, each in described}

    def values(column):
        return _named(data[column][:], classes.get(column))

    columns = data.column_names
    return Table(name, columns, values, len(data), None, classes)


# %% book/label_files.md#by-its-ending b64a589b
FORMATS = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".conll": _read_conll,
    ".txt": _read_conll,
}


def read_table(path: str | Path) -> Table:
    """The table of a file, whose ending is one of `FORMATS`.

    The values are what stands in the file: text in a table of text, and in
    the other formats numbers, lists and dicts too. Classes that `datasets`
    wrote as numbers come as names. Raises ValueError in one sentence, with
    the line where there is one, for what cannot be read, and
    FileNotFoundError.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there, or is not a file; correct the path"
        )
    if ending not in FORMATS:
        raise ValueError(
            f"{path} is of a kind that is not read here; give a file that "
            f"ends in {', '.join(FORMATS)}"
        )
    return FORMATS[ending](path)
