"""Labelled data: round trips, every refusal a sentence, nothing that runs."""

import csv
import json
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbook import labelled_data
from bertbook.corpora import SPLITS, TAGS, TOPICS, load_corpus
from bertbook.label_files import FORMATS
from bertbook.labelled_data import (
    ALIASES,
    COLUMNS,
    MADE,
    Labelled,
    read_labelled,
)
from bertbook.sources import SOURCES

pytestmark = pytest.mark.usefixtures("no_network")
CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.text(CHARACTERS, max_size=20).filter(str.strip)
NAMES = st.text(CHARACTERS, max_size=9).map(str.strip).filter(bool)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("labelled")


def one_sentence(error):
    message = str(error.value)
    assert "\n" not in message and message.count(". ") == 0, message
    return message


def write_csv(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([header, *rows])
    return path


def write_lines(path, rows):
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_bytes("".join(lines).encode())
    return path


def names_of(labelled, column):
    """The names behind the numbers of a column."""

    def name(value):
        if isinstance(value, list):
            return [name(each) for each in value]
        return labelled.labels[value]

    return name(labelled.rows[column][:])


# Round trips


@settings(deadline=None)
@given(
    texts=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6),
    names=st.lists(NAMES, min_size=2, max_size=4, unique=True),
    task=st.sampled_from(["classify", "pairs"]),
    data=st.data(),
)
def test_texts_and_pairs_come_back(folder, texts, names, task, data):
    chosen = st.sampled_from(names)
    labels = data.draw(
        st.lists(chosen, min_size=len(texts), max_size=len(texts))
    )
    columns = COLUMNS[task]
    rows = [
        (*pair[: len(columns) - 1], label)
        for pair, label in zip(texts, labels)
    ]
    dicts = [dict(zip(columns, row)) for row in rows]
    for path in (
        write_csv(folder / "rows.csv", columns, rows),
        write_lines(folder / "rows.jsonl", dicts),
    ):
        found = read_labelled(path, task, labels=names)
        assert isinstance(found, Labelled) and found.labels == tuple(names)
        assert found.rows.column_names == list(columns)
        assert found.rows.features["label"].dtype == "int64"
        assert found.rows.features["label"].names == names
        assert names_of(found, "label") == labels
        for place, column in enumerate(columns[:-1]):
            assert found.rows[column][:] == [row[place] for row in rows]
        if len(set(labels)) > 1:
            own = read_labelled(path, task)
            assert set(own.labels) == set(labels)
            assert names_of(own, "label") == labels
        else:
            with pytest.raises(ValueError, match="has no label but"):
                read_labelled(path, task)


TOKENS = st.text("abé#-'\U0001f600", min_size=1, max_size=4)
TAGGED = st.lists(
    st.lists(
        st.tuples(TOKENS, st.sampled_from(["O", "B-b", "I-b", "B-a"])),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None)
@given(sentences=TAGGED)
def test_tags_come_back(folder, sentences):
    rows = [
        {"tokens": [t for t, _ in each], "tags": [tag for _, tag in each]}
        for each in sentences
    ]
    text = "\n".join(
        "".join(f"{token}\t{tag}\n" for token, tag in each)
        for each in sentences
    )
    lines, conll = folder / "tags.jsonl", folder / "tags.conll"
    write_lines(lines, rows)
    conll.write_bytes(text.encode())
    kinds = sorted({tag[2:] for row in rows for tag in row["tags"]} - {""})
    expected = ["O", *(f"{p}-{k}" for k in kinds for p in "BI")]
    for path in (lines, conll):
        if len(expected) == 1:
            with pytest.raises(ValueError, match="no label but 'O'"):
                read_labelled(path, "tag")
            continue
        found = read_labelled(path, "tag")
        assert list(found.labels) == expected
        assert found.rows["tokens"][:] == [row["tokens"] for row in rows]
        assert names_of(found, "tags") == [row["tags"] for row in rows]


@st.composite
def questions(draw):
    context = draw(st.text(CHARACTERS, min_size=1, max_size=30))
    context += "x"
    spans = draw(
        st.lists(
            st.tuples(
                st.integers(0, len(context) - 1),
                st.integers(1, len(context)),
            ).filter(lambda s: context[s[0] : s[0] + s[1]].strip()),
            max_size=3,
        )
    )
    return {
        "context": context,
        "question": draw(TEXTS),
        "answers": {
            "text": [context[at : at + size] for at, size in spans],
            "answer_start": [at for at, _ in spans],
        },
    }


@settings(deadline=None)
@given(rows=st.lists(questions(), min_size=1, max_size=4))
def test_answers_come_back_to_the_character(folder, rows):
    rows = [{"id": str(n), **row} for n, row in enumerate(rows)]
    path = write_lines(folder / "answers.jsonl", rows)
    found = read_labelled(path, "answer")
    assert found.labels == () and list(found.rows) == rows


@settings(deadline=None)
@given(rows=st.lists(questions(), min_size=1, max_size=3), data=st.data())
def test_an_answer_that_is_moved_is_refused(folder, rows, data):
    rows = [{"id": str(n), **row} for n, row in enumerate(rows)]
    number = data.draw(st.integers(0, len(rows) - 1))
    answers, context = rows[number]["answers"], rows[number]["context"]
    answers["text"].append("x")
    answers["answer_start"].append(data.draw(st.integers(-40, 40)))
    path = write_lines(folder / "moved.jsonl", rows)
    start = answers["answer_start"][-1]
    if 0 <= start < len(context) and context[start] == "x":
        assert (
            read_labelled(path, "answer").rows[number]["answers"] == answers
        )
        return
    with pytest.raises(ValueError) as error:
        read_labelled(path, "answer")
    message = str(error.value)
    assert message.startswith(f"{path}:{number + 1} has the answer 'x'")
    assert f"but at {context.index('x')};" in message


# Labels


def test_the_order_of_labels(folder):
    def labels_of(*names):
        rows = [("a", name) for name in names]
        path = write_csv(folder / "order.csv", ("text", "label"), rows)
        return read_labelled(path, "classify").labels

    assert labels_of("pos", "neg") == ("neg", "pos")
    assert labels_of("10", "9", "1") == ("1", "9", "10")
    assert labels_of("10", "9", "a") == ("10", "9", "a")
    assert labels_of("01", "1") == ("01", "1")
    assert labels_of(" pos", "pos ", "neg") == ("neg", "pos")


def test_numbers_are_names_in_json_too(folder):
    rows = [{"text": "a", "label": label} for label in (2, 10, True, "x")]
    path = write_lines(folder / "numbers.jsonl", rows)
    assert read_labelled(path, "classify").labels == (
        "10",
        "2",
        "True",
        "x",
    )


def test_labels_of_a_model_are_kept(folder):
    rows = [("a", "fair"), ("b", "good")]
    path = write_csv(folder / "model.csv", ("text", "label"), rows)
    found = read_labelled(path, "classify", labels=("good", "bad", "fair"))
    assert found.labels == ("good", "bad", "fair")
    assert found.rows["label"][:] == [2, 0]
    found = read_labelled(
        "rotten_tomatoes", "classify", "test", labels=("pos", "neg")
    )
    source = load_corpus("rotten_tomatoes", "test")["label"]
    assert found.rows["label"][:] == [1 - label for label in source]


def test_one_class_is_enough_for_a_model_with_two(folder):
    path = write_csv(folder / "one.csv", ("text", "label"), [("a", "pos")])
    found = read_labelled(path, "classify", labels=("neg", "pos"))
    assert found.rows["label"][:] == [1]


def test_tags_of_another_scheme_are_named(folder):
    rows = [{"tokens": ["Ann", "left"], "tags": ["NOUN", "VERB"]}]
    path = write_lines(folder / "nouns.jsonl", rows)
    with pytest.raises(ValueError, match="name all tags by labels="):
        read_labelled(path, "tag")
    found = read_labelled(path, "tag", labels=("NOUN", "VERB"))
    assert found.rows["tags"][:] == [[0, 1]]


# Columns


def test_columns_are_named_or_known(folder):
    header = ("stars", "review", "n")
    rows = [("5", "Fun.", "1"), ("1", "Dull.", "2")]
    path = write_csv(folder / "named.csv", header, rows)
    names = {"text": "review", "label": "stars"}
    found = read_labelled(path, "classify", columns=names)
    assert found.rows["text"][:] == ["Fun.", "Dull."]
    assert found.labels == ("1", "5")
    with pytest.raises(ValueError) as error:
        read_labelled(path, "classify", columns={"text": "review"})
    assert "has no column label, but stars, review, n;" in one_sentence(
        error
    )
    with pytest.raises(ValueError) as error:
        read_labelled(path, "classify", columns={"text": "opinion"})
    assert "has no column opinion, label," in one_sentence(error)
    with pytest.raises(ValueError) as error:
        read_labelled(path, "classify", columns={"texts": "review"})
    assert "names 'texts'" in one_sentence(error)


def test_a_given_name_goes_before_the_task_s(folder):
    header, rows = (
        ("text", "title", "label"),
        [("a", "b", "x"), ("c", "d", "y")],
    )
    path = write_csv(folder / "given.csv", header, rows)
    found = read_labelled(path, "classify", columns={"text": "title"})
    assert found.rows["text"][:] == ["b", "d"]


@pytest.mark.parametrize(
    "header, task, taken",
    [
        ("sentence label idx", "classify", "sentence"),
        ("sentence1 sentence2 label idx", "pairs", "sentence1 sentence2"),
        ("premise hypothesis label idx", "pairs", "premise hypothesis"),
        ("question1 question2 label idx", "pairs", "question1 question2"),
        ("question sentence label idx", "pairs", "question sentence"),
    ],
)
def test_the_columns_of_glue(folder, header, task, taken):
    header = header.split()
    rows = [[f"{name} {n}" for name in header] for n in range(2)]
    path = write_csv(folder / "glue.csv", header, rows)
    found = read_labelled(path, task)
    for column, name in zip(COLUMNS[task], taken.split()):
        assert found.rows[column][:] == [f"{name} {n}" for n in range(2)]


def test_half_of_a_pair_is_no_text(folder):
    header, rows = ("sentence1", "sentence2", "label"), [("a", "b", "x")]
    path = write_csv(folder / "half.csv", header, rows)
    with pytest.raises(ValueError, match="has no column text,"):
        read_labelled(path, "classify")
    assert {task for task, _ in ALIASES} <= set(COLUMNS)


# Refusals


def question(**changes):
    row = {
        "id": "q",
        "context": "Ann left at two.",
        "question": "Who?",
        "answers": {"text": ["Ann"], "answer_start": [0]},
    }
    return json.dumps(row | changes)


SPAN = {"text": ["two"], "answer_start": [11]}
WRONG = [
    ("a.csv", "", "classify", "is empty"),
    ("a.csv", "text,label\n", "classify", "is empty"),
    ("a.jsonl", "\n", "answer", "is empty"),
    ("a.json", "[]", "tag", "is empty"),
    ("a.conll", "\n\n", "tag", "is empty"),
    ("a.csv", "text,label\na,x\n ,y\n", "classify", ":3 has an empty text"),
    ("a.csv", "text,label\na,x\nb,\n", "classify", ":3 has an empty label"),
    ("a.csv", "text,label\na,x\n,\n", "classify", ":3 has an empty text"),
    ("a.csv", "text,label\na,x\nb,x\n", "classify", "no label but 'x'"),
    ("a.csv", "tokens,tags\na,O\n", "tag", ":2 has no list of tokens"),
    ("a.csv", "review,stars\na,x\n", "classify", "column text, label, but"),
    (
        "a.csv",
        "text,text_pair,label\na,b,x\na,,y\n",
        "pairs",
        ":3 has an empty text_pair",
    ),
    ("a.jsonl", "{}\n", "classify", "no column text, label, but none"),
    ("a.jsonl", '{"text": 5, "label": "x"}', "classify", "of type int"),
    ("a.jsonl", '{"text": ["a"], "label": 1}', "classify", "of type list"),
    (
        "a.jsonl",
        '{"text": "a", "label": 0.5}',
        "classify",
        "label of type float, and a name or an integer is expected;",
    ),
    (
        "a.jsonl",
        '{"text": "a", "label": 1}\n{"label": 2}',
        "classify",
        ":2 has an empty text",
    ),
    (
        "a.jsonl",
        '{"tokens": ["a", "b"], "tags": ["O"]}',
        "tag",
        ":1 has 2 tokens and 1 tags",
    ),
    ("a.jsonl", '{"tokens": [], "tags": []}', "tag", ":1 has 0 tokens"),
    ("a.jsonl", '{"tokens": [""], "tags": ["O"]}', "tag", "empty token"),
    ("a.jsonl", '{"tokens": [1], "tags": ["O"]}', "tag", "of type int"),
    ("a.jsonl", '{"tokens": ["a"], "tags": [null]}', "tag", "empty tag"),
    ("a.jsonl", '{"tokens": ["a"], "tags": "O"}', "tag", "list of tags"),
    ("a.conll", "a O\n\nb B-\n", "tag", ":3 has the tag 'B-'"),
    ("a.conll", "a E-person\n", "tag", ":1 has the tag 'E-person'"),
    ("a.jsonl", question(id=None), "answer", ":1 has an empty id"),
    ("a.jsonl", question(context=" "), "answer", "empty context"),
    ("a.jsonl", question(question=""), "answer", "empty question"),
    ("a.jsonl", question(answers=None), "answer", "SQuAD's form"),
    ("a.jsonl", question(answers="Ann"), "answer", "SQuAD's form"),
    ("a.jsonl", question(answers=[SPAN]), "answer", "SQuAD's form"),
    ("a.jsonl", question(answers={"text": "A"}), "answer", "SQuAD's form"),
    (
        "a.jsonl",
        question(answers={"text": "A", "answer_start": [0]}),
        "answer",
        "SQuAD's form",
    ),
    (
        "a.jsonl",
        question(answers={"text": ["Ann"], "answer_start": []}),
        "answer",
        "SQuAD's form",
    ),
    (
        "a.jsonl",
        question(answers=SPAN),
        "answer",
        "not at character 11 of its context, but at 12;",
    ),
    (
        "a.jsonl",
        question(answers={"text": ["Bob"], "answer_start": [0]}),
        "answer",
        "nor anywhere else",
    ),
    (
        "a.jsonl",
        question(answers={"text": ["two."], "answer_start": [-4]}),
        "answer",
        "at character -4",
    ),
    (
        "a.jsonl",
        question(answers={"text": ["Ann"], "answer_start": [False]}),
        "answer",
        "at character False",
    ),
    (
        "a.jsonl",
        question(answers={"text": [""], "answer_start": [0]}),
        "answer",
        "empty answer",
    ),
    (
        "a.jsonl",
        question() + "\n" + question(),
        "answer",
        "a.jsonl:2 has the id 'q', as ",
    ),
]


@pytest.mark.parametrize("name, text, task, part", WRONG)
def test_a_wrong_input_is_one_sentence(folder, name, text, task, part):
    path = folder / name
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_labelled(path, task)
    message = one_sentence(error)
    assert str(path) in message and part in message


def test_an_unknown_label_is_refused_with_those_known(folder):
    rows = [("a", "neg"), ("b", "postive")]
    path = write_csv(folder / "unknown.csv", ("text", "label"), rows)
    with pytest.raises(ValueError) as error:
        read_labelled(path, "classify", labels=("neg", "pos"))
    message = one_sentence(error)
    assert f"{path}:3 has the label 'postive'" in message
    assert "neg, pos are expected" in message
    rows = [{"tokens": ["a"], "tags": ["B-boat"]}]
    path = write_lines(folder / "unknown.jsonl", rows)
    with pytest.raises(ValueError) as error:
        read_labelled(path, "tag", labels=TAGS)
    assert f"{path}:1 has the tag 'B-boat'" in one_sentence(error)


def test_a_label_is_a_number_of_any_length(folder):
    long = "9" * 5000
    rows = [("a", long), ("b", "10"), ("c", "9")]
    path = write_csv(folder / "digits.csv", ("text", "label"), rows)
    assert read_labelled(path, "classify").labels == ("9", "10", long)


def noted_classes(path, names):
    """A Parquet file of two rows, with these names for 0 and 1."""
    import pyarrow
    from pyarrow import parquet

    label = {"names": names, "_type": "ClassLabel"}
    note = json.dumps({"info": {"features": {"label": label}}})
    table = pyarrow.table({"text": ["a", "b"], "label": [0, 1]})
    table = table.replace_schema_metadata({b"huggingface": note.encode()})
    parquet.write_table(table, path)
    return path


def test_blanks_around_a_label_do_not_count(folder):
    path = noted_classes(folder / "blanks.parquet", [" neg", "pos\n"])
    found = read_labelled(path, "classify")
    assert found.labels == ("neg", "pos")
    assert found.rows["label"][:] == [0, 1]
    rows = [("a", "neg "), ("b", " pos")]
    path = write_csv(folder / "blanks.csv", ("text", "label"), rows)
    found = read_labelled(path, "classify", labels=("pos ", "neg"))
    assert found.labels == ("pos", "neg")
    assert found.rows["label"][:] == [1, 0]


@pytest.mark.parametrize("names", [["a", "a"], ["b", "a", " b"]])
def test_two_labels_of_one_name_are_refused(folder, names):
    path = noted_classes(folder / "same.parquet", names)
    tags = folder / "same.jsonl"
    tags.write_text('{"tokens": ["x"], "tags": ["a"]}')
    for source, task in ((path, "classify"), (tags, "tag")):
        with pytest.raises(ValueError) as error:
            read_labelled(source, task, labels=names)
        message = one_sentence(error)
        assert str(source) in message and f"{names[0]!r} twice" in message
    with pytest.raises(ValueError, match="twice; give each class"):
        read_labelled(path, "classify")


def test_a_message_stays_short(folder):
    rows = [("a", "x" * 9999), ("b", "y" * 9999)]
    path = write_csv(folder / "swapped.csv", ("text", "label"), rows)
    with pytest.raises(ValueError) as error:
        read_labelled(path, "classify", labels=[f"{n}" for n in range(999)])
    assert len(one_sentence(error)) < 500 + len(str(path))
    header = [f"column{n}" + "x" * 99 for n in range(999)]
    path = write_csv(folder / "wide.csv", header, [header])
    with pytest.raises(ValueError) as error:
        read_labelled(path, "classify")
    assert len(one_sentence(error)) < 1000 + len(str(path))


def test_an_unknown_task_lists_the_known():
    with pytest.raises(ValueError) as error:
        read_labelled("imdb", "sentiment")
    assert all(task in one_sentence(error) for task in COLUMNS)


def test_a_file_has_no_splits(folder):
    rows = [("a", "x"), ("b", "y")]
    path = write_csv(folder / "whole.csv", ("text", "label"), rows)
    assert len(read_labelled(str(path), "classify", "train").rows) == 2
    for split in ("validation", "test", "train[:1]"):
        with pytest.raises(ValueError) as error:
            read_labelled(path, "classify", split)
        assert repr(split) in one_sentence(error)


@pytest.mark.parametrize(
    "name",
    [
        "reviews.csv",
        "data/reviews.csv",
        "./reviews",
        "../reviews",
        "/nowhere/reviews",
        "a/b/c",
        "my reviews",
        "C:\\reviews",
    ],
)
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(name):
    with pytest.raises(FileNotFoundError) as error:
        read_labelled(name, "classify")
    message = one_sentence(error)
    assert f"there is no file {Path(name)};" in message
    assert all(source in message for source in [*SOURCES, *MADE])


@pytest.mark.parametrize(
    "name", ["reviews", "some/reviews", "glue:nothing"]
)
def test_a_name_without_a_hub_is_one_sentence(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError) as error:
        read_labelled(name, "classify")
    message = one_sentence(error)
    assert repr(name) in message and "hub does not answer" in message
    assert all(source in message for source in [*SOURCES, *MADE])
    assert not message.endswith(".")


class Trap:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("ending", [*FORMATS, ".pkl", ".pt", ".npy"])
@pytest.mark.parametrize("task", COLUMNS)
def test_a_pickle_is_refused_and_never_runs(
    tmp_path, protocol, ending, task
):
    path, sprung = tmp_path / f"trap{ending}", tmp_path / "sprung"
    path.write_bytes(pickle.dumps(Trap(str(sprung)), protocol))
    with pytest.raises(ValueError):
        read_labelled(path, task)
    assert not sprung.exists()


def test_reading_writes_nothing(tmp_path, monkeypatch):
    import datasets

    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    read_labelled(path, "classify")
    load_corpus("rotten_tomatoes", "test").to_parquet(
        str(tmp_path / "rows.parquet")
    )
    read_labelled(tmp_path / "rows.parquet", "classify")
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["rows.jsonl", "rows.parquet"]


# Embedded names


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "name, task, column, labels",
    [
        ("imdb", "classify", "label", ["neg", "pos"]),
        ("rotten_tomatoes", "classify", "label", ["neg", "pos"]),
        ("bbc_news", "classify", "label", TOPICS),
        ("wnut", "tag", "ner_tags", TAGS),
    ],
)
def test_an_embedded_corpus_is_what_it_was(
    name, task, column, labels, split
):
    found, source = (
        read_labelled(name, task, split),
        load_corpus(name, split),
    )
    assert list(found.labels) == labels
    text, label = COLUMNS[task]
    assert found.rows[text][:] == source[text][:]
    assert found.rows[label][:] == source[column][:]


def test_a_corpus_through_a_file_is_the_corpus(folder):
    source = load_corpus("rotten_tomatoes", "validation")
    path = folder / "corpus.parquet"
    source.to_parquet(str(path))
    rows = [(row["text"], ["neg", "pos"][row["label"]]) for row in source]
    table = write_csv(folder / "corpus.csv", ("text", "label"), rows)
    expected = read_labelled("rotten_tomatoes", "classify", "validation")
    for file in (path, table):
        found = read_labelled(file, "classify")
        assert found.labels == expected.labels
        assert found.rows[:] == expected.rows[:]


def test_the_pairs_of_articles_by_name():
    found = read_labelled("bbc_pairs", "pairs", "test")
    from bertbook.article_pairs import same_article_pairs

    made = same_article_pairs("test")
    assert found.labels == ("different", "same")
    for column in COLUMNS["pairs"]:
        assert found.rows[column][:] == made[column][:]


@pytest.mark.parametrize("name", ["imdb", "bbc_pairs"])
def test_an_embedded_name_has_its_own_splits(name):
    with pytest.raises(ValueError, match="no split 'dev'"):
        read_labelled(name, "pairs", "dev")


def test_a_corpus_for_another_task_is_refused():
    with pytest.raises(ValueError) as error:
        read_labelled("imdb", "tag")
    assert "imdb has no column tokens, tags, but id," in one_sentence(error)


# The hub, without it


def hub(monkeypatch, columns, features=None):
    """A hub with one data set; the calls that reach it."""
    import datasets

    calls = []
    data = datasets.Dataset.from_dict(columns, features=features)

    def load(name, split="train", config=None, streaming=False):
        calls.append((name, split, config))
        return data

    monkeypatch.setattr(labelled_data, "load_corpus", load)
    return calls


def test_a_pair_task_of_the_hub(monkeypatch):
    import datasets

    text = datasets.Value("string")
    label = datasets.ClassLabel(names=["not_equivalent", "equivalent"])
    features = datasets.Features(
        {"sentence1": text, "sentence2": text, "label": label, "idx": text}
    )
    columns = {
        "sentence1": ["a", "b"],
        "sentence2": ["c", "d"],
        "label": [1, 0],
        "idx": ["0", "1"],
    }
    calls = hub(monkeypatch, columns, features)
    found = read_labelled("glue:mrpc", "pairs", "validation")
    assert calls == [("glue", "validation", "mrpc")]
    assert found.labels == ("not_equivalent", "equivalent")
    assert found.rows[:] == {
        "text": ["a", "b"],
        "text_pair": ["c", "d"],
        "label": [1, 0],
    }
    columns["label"] = [1, -1]
    hub(monkeypatch, columns, features)
    with pytest.raises(ValueError) as error:
        read_labelled("glue:mrpc", "pairs", "test")
    assert "glue:mrpc, row 2, has an empty label" in one_sentence(error)


def test_questions_of_the_hub(monkeypatch):
    answers = [
        {"text": ["Ann"], "answer_start": [0]},
        {"text": [], "answer_start": []},
    ]
    columns = {
        "id": ["1", "2"],
        "title": ["A", "A"],
        "context": ["Ann left."] * 2,
        "question": ["Who?", "Why?"],
        "answers": answers,
    }
    calls = hub(monkeypatch, columns)
    found = read_labelled("squad_v2", "answer", "validation")
    assert calls == [("squad_v2", "validation", None)]
    assert found.rows["answers"][:] == answers
    assert found.rows.column_names == list(COLUMNS["answer"])


@settings(max_examples=200, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=100),
        st.text('{}[]":,\n\ttextlabelstokens 01', max_size=100).map(
            str.encode
        ),
    ),
    ending=st.sampled_from([*FORMATS]),
    task=st.sampled_from([*COLUMNS]),
)
def test_any_bytes_are_rows_or_a_sentence(folder, data, ending, task):
    path = folder / f"any{ending}"
    path.write_bytes(data)
    try:
        found = read_labelled(path, task)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert len(found.rows) > 0


def test_the_questions_by_name():
    found = read_labelled("bbc_cloze", "answer", "test")
    assert found.labels == () and len(found.rows) > 100
