"""Labelled data

Reads labelled texts, sentence pairs, tagged tokens and questions with their
answers, from an embedded corpus, a file or a hub name, and refuses in one
sentence what is not as it should be.

The page: https://bertbook.github.io/bertbook/book/labelled_data.html
"""

# Tangled from book/labelled_data.md (35423f0a): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "ALIASES",
    "COLUMNS",
    "Labelled",
    "MADE",
    "read_labelled",
]


# %% book/labelled_data.md#four-tasks-four-shapes 712dd178
from typing import Any, NamedTuple

COLUMNS = {
    "classify": ("text", "label"),
    "pairs": ("text", "text_pair", "label"),
    "tag": ("tokens", "tags"),
    "answer": ("id", "context", "question", "answers"),
}


class Labelled(NamedTuple):
    """A data set of a task: its rows, and the names of its labels.

    `rows` is a `datasets.Dataset` with the task's `COLUMNS`. A label or a
    tag in it is an integer, the place of its name in `labels`; a task
    without classes ("answer") has no labels.
    """

    rows: Any
    labels: tuple[str, ...]


# %% book/labelled_data.md#which-column-is-which 652d8fdf
from bertbook.label_files import FORMATS, dataset_table, read_table

ALIASES = {
    ("classify", "text"): ("sentence",),
    ("pairs", "text"): ("sentence1", "premise", "question1", "question"),
    ("pairs", "text_pair"): (
        "sentence2",
        "hypothesis",
        "question2",
        "sentence",
    ),
    ("tag", "tags"): ("ner_tags",),
}


# %% book/labelled_data.md#which-column-is-which f54a55e4
def _find_columns(table, task, given):
    """A dict from each column of the task to its name in the table."""
    wanted = COLUMNS[task]
    for column in given:
        if column not in wanted:
            raise ValueError(
                f"columns= names {column!r}, which the task {task!r} does "
                f"not have; its columns are {', '.join(wanted)}"
            )
    found = {}
    for column in wanted:
        names = column, *ALIASES.get((task, column), ())
        names = [given[column]] if column in given else names
        found[column] = next((n for n in names if n in table.columns), None)
    missing = [column for column in wanted if found[column] is None]
    if missing:
        called = [given.get(column, column) for column in missing]
        there = ", ".join(f"{name:.30}" for name in table.columns[:20])
        raise ValueError(
            f"{table.name} has no column {', '.join(called)}, but "
            f"{there or 'none'}; rename one, or say what it is called, as "
            f"in columns={{{missing[0]!r}: NAME}}, in a shell --column "
            f"{missing[0]}=NAME"
        )
    return found


# %% book/labelled_data.md#no-row-is-believed e2a69b83
_TEXT = "text is expected; write it as a string"
_NAME = "a name or an integer is expected; write one of these"


def _check_text(table, row, column, value, wanted=_TEXT):
    """`value`, which must be text; ValueError with the place if not."""
    if value is None or isinstance(value, str) and not value.strip():
        raise ValueError(
            f"{table.place(row)} has an empty {column}; fill it in, or "
            "leave the row out"
        )
    if not isinstance(value, str):
        raise ValueError(
            f"{table.place(row)} has a {column} of type "
            f"{type(value).__name__}, and {wanted}"
        )
    return value


def _name_of(table, row, column, value):
    """The text of a label, without blanks around it."""
    value = str(value) if isinstance(value, int) else value
    return _check_text(table, row, column, value, _NAME).strip()


# %% book/labelled_data.md#no-row-is-believed 831f06b5
from collections import Counter
from decimal import Decimal  # as `int` orders, however many digits


def _in_order(names):
    """Names sorted, as numbers where all of them are."""
    names = sorted(names)
    numbers = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=Decimal) if numbers else names)


def _numbers_of(table, labels):
    numbers = {name: number for number, name in enumerate(labels)}
    if len(numbers) < len(labels):
        ((name, _),) = Counter(labels).most_common(1)
        raise ValueError(
            f"{table.name} is to be read with the label {name!r:.42} "
            "twice; give each class a name of its own"
        )
    return numbers


def _number(table, row, column, name, labels):
    if name not in labels:
        known = ", ".join(f"{label:.30}" for label in list(labels)[:20])
        raise ValueError(
            f"{table.place(row)} has the {column} {name!r:.42}, and "
            f"{known} are expected; correct it, or leave the row out"
        )
    return labels[name]


def _read_classes(table, values, labels):
    """Put numbers for the labels; returns the names."""
    for column in values:
        if column != "label":
            for row, value in enumerate(values[column]):
                _check_text(table, row, column, value)
    names = [
        _name_of(table, row, "label", value)
        for row, value in enumerate(values["label"])
    ]
    labels = labels or _in_order(set(names))
    numbers = _numbers_of(table, labels)
    values["label"] = [
        _number(table, row, "label", name, numbers)
        for row, name in enumerate(names)
    ]
    return labels


# %% book/labelled_data.md#no-row-is-believed 7a1af61c
import re

_BIO = re.compile(r"O|[BI]-.+")


def _bio_labels(table, rows):
    for row, tags in enumerate(rows):
        for tag in tags:
            if not _BIO.fullmatch(tag):
                raise ValueError(
                    f"{table.place(row)} has the tag {tag!r:.42}, and O, "
                    "B-kind or I-kind is expected; correct it, or name all "
                    "tags by labels="
                )
    kinds = sorted({tag[2:] for tags in rows for tag in tags} - {""})
    return "O", *(f"{place}-{kind}" for kind in kinds for place in "BI")


def _check_lists(table, row, tokens, tags):
    for column, value in (("tokens", tokens), ("tags", tags)):
        if not isinstance(value, list):
            raise ValueError(
                f"{table.place(row)} has no list of {column}; give a "
                ".conll, .jsonl or .parquet file, which can hold lists"
            )
    if len(tokens) != len(tags) or not tokens:
        raise ValueError(
            f"{table.place(row)} has {len(tokens)} tokens and {len(tags)} "
            "tags; give each token one tag, and a row a token"
        )


# %% book/labelled_data.md#no-row-is-believed 11bf76b2
def _read_tags(table, values, labels):
    """Put numbers for the tags; returns the names."""
    names = []
    for row, lists in enumerate(zip(values["tokens"], values["tags"])):
        _check_lists(table, row, *lists)
        for token in lists[0]:
            _check_text(table, row, "token", token)
        names.append([_name_of(table, row, "tag", tag) for tag in lists[1]])
    labels = labels or _bio_labels(table, names)
    numbers = _numbers_of(table, labels)
    values["tags"] = [
        [_number(table, row, "tag", name, numbers) for name in tags]
        for row, tags in enumerate(names)
    ]
    return labels


# %% book/labelled_data.md#no-row-is-believed d1677c65
def _check_span(table, row, context, text, start):
    _check_text(table, row, "answer", text)
    right = type(start) is int and start >= 0
    if not (right and context.startswith(text, start)):
        at = context.find(text)
        where = f"but at {at}" if at >= 0 else "nor anywhere else in it"
        raise ValueError(
            f"{table.place(row)} has the answer {text!r:.42}, which is not "
            f"at character {start!r:.20} of its context, {where}; correct "
            "answer_start"
        )


def _check_answers(table, row, context, answers):
    """The answers as SQuAD has them: lists of texts and of their places."""
    form = isinstance(answers, dict)
    texts = answers.get("text") if form else None
    starts = answers.get("answer_start") if form else None
    lists = isinstance(texts, list) and isinstance(starts, list)
    if not (lists and len(texts) == len(starts)):
        raise ValueError(
            f"{table.place(row)} has no answers in SQuAD's form; write "
            '{"text": [], "answer_start": []}, with as many places as texts'
        )
    for text, start in zip(texts, starts):
        _check_span(table, row, context, text, start)
    return {"text": texts, "answer_start": starts}


# %% book/labelled_data.md#no-row-is-believed 665de712
def _read_answers(table, values, labels):
    """Check ids, texts and spans; there are no labels."""
    rows = {}
    values["id"] = [
        _name_of(table, row, "id", value)
        for row, value in enumerate(values["id"])
    ]
    for row, name in enumerate(values["id"]):
        if rows.setdefault(name, row) != row:
            raise ValueError(
                f"{table.place(row)} has the id {name!r:.42}, as "
                f"{table.place(rows[name])} has; give each row its own"
            )
        for column in ("context", "question"):
            _check_text(table, row, column, values[column][row])
    values["answers"] = [
        _check_answers(table, row, values["context"][row], answers)
        for row, answers in enumerate(values["answers"])
    ]
    return ()


# %% book/labelled_data.md#one-call 450dd4da
from pathlib import Path

from bertbook.article_pairs import same_article_pairs
from bertbook.cloze_questions import cloze_questions
from bertbook.corpora import SPLITS, _import_datasets, load_corpus
from bertbook.sources import SOURCES

MADE = {  # of BBC News, by a function of the split
    "bbc_pairs": same_article_pairs,
    "bbc_cloze": cloze_questions,
}
_HERE = ", ".join([*SOURCES, *MADE])
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?(:[\w.-]+)?")


def _open_file(path, split):
    if not path.exists():
        raise FileNotFoundError(
            f"there is no file {path}; correct the path, or give one of "
            f"{_HERE}, or a name on the hub"
        )
    table = read_table(path)
    if split != SPLITS[0]:
        raise ValueError(
            f"{path} is one file, without a split {split!r}; ask for "
            f"{SPLITS[0]!r}, and keep each split in a file of its own"
        )
    return table


# %% book/labelled_data.md#one-call c58605fc
def _open_source(source, split):
    """The table of a name or a path."""
    if source in MADE:
        return dataset_table(source, MADE[source](split))
    if source in SOURCES:
        return dataset_table(source, load_corpus(source, split))
    path = Path(source)
    named = _HUB_NAME.fullmatch(source)
    if path.exists() or path.suffix.lower() in FORMATS or not named:
        return _open_file(path, split)
    name, _, config = source.partition(":")
    try:
        data = load_corpus(name, split, config or None)
    except ConnectionError as error:  # which names the corpora alone
        raise ConnectionError(
            f"{source!r} is neither embedded nor a file, and the Hugging "
            f"Face hub does not answer; choose one of {_HERE}, or come "
            "back with a network"
        ) from error
    return dataset_table(source, data)


# %% book/labelled_data.md#one-call c897ecee
_CHECKS = {
    "classify": _read_classes,
    "pairs": _read_classes,
    "tag": _read_tags,
    "answer": _read_answers,
}


def _features(task, labels):
    hf = _import_datasets()
    text, number = hf.Value("string"), hf.Value("int64")
    places = {"text": hf.List(text), "answer_start": hf.List(number)}
    kinds = {"tokens": hf.List(text), "answers": places}
    if labels:
        kinds["label"] = hf.ClassLabel(names=list(labels))
        kinds["tags"] = hf.List(kinds["label"])
    return hf.Features({c: kinds.get(c, text) for c in COLUMNS[task]})


# %% book/labelled_data.md#one-call b018b164
def read_labelled(source, task, split="train", labels=None, columns=None):
    """One split of a labelled data set, checked, as `Labelled`.

    `source`: an embedded corpus, a name in `MADE`, a file with an ending in
    `FORMATS`, or `name` or `name:config` on the hub. A file is its own
    split "train". `task`: a key of `COLUMNS`. `labels`: the names and their
    order, such as those of a trained model, where the names are not to come
    from the data. `columns`: a dict from the task's columns to the names
    that they have in the source, where these are others.

    Raises ValueError, in one sentence with the place, for a missing column,
    an unknown label, a text that is empty or not UTF-8, and all else that
    the task cannot use; FileNotFoundError; and as `load_corpus` does.
    """
    if task not in COLUMNS:
        raise ValueError(
            f"task={task!r} is not known; give one of {', '.join(COLUMNS)}"
        )
    table = _open_source(str(source), split)
    if not table.size:
        raise ValueError(
            f"{table.name} is empty; give a source with one row or more"
        )
    found = _find_columns(table, task, columns or {})
    values = {column: table.values(found[column]) for column in found}
    classes = table.classes or {}
    known = classes.get(found.get("label") or found.get("tags"))
    labels = tuple(str(name).strip() for name in labels or known or ())
    labels = _CHECKS[task](table, values, labels)
    if len(labels) == 1:
        raise ValueError(
            f"{table.name} has no label but {labels[0]!r:.42}; a model "
            "needs two or more to choose from"
        )
    data = _import_datasets().Dataset
    features = _features(task, labels)
    return Labelled(data.from_dict(values, features=features), labels)
