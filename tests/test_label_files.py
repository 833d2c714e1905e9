"""Tables of labelled text: every format against another reader, and faults."""

import csv
import json
import os
import pickle
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbook.corpora import load_corpus
from bertbook.label_files import FORMATS, Table, dataset_table, read_table

CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.text(CHARACTERS, max_size=20)
LABELS = st.sampled_from(["pos", "neg", "0", "NA", "null", "a, b"])
ROWS = st.lists(st.tuples(TEXTS, LABELS), max_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def one_sentence(error):
    message = str(error.value)
    assert "\n" not in message and message.count(". ") == 0, message
    return message


def write_csv(path, rows, header=("text", "label"), **options):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows([header, *rows])
    return path


def columns_of(table):
    return {name: table.values(name) for name in table.columns}


# Tables of text


@settings(deadline=None)
@given(rows=ROWS, end=st.sampled_from(["\n", "\r\n"]), quote=st.booleans())
def test_a_csv_comes_back(folder, rows, end, quote):
    # Before Python 3.13 the writer leaves a lone "\r" without quotes.
    quote = quote or any("\r" in text for text, _ in rows)
    quoting = csv.QUOTE_ALL if quote else csv.QUOTE_MINIMAL
    path = folder / "rows.csv"
    write_csv(path, rows, lineterminator=end, quoting=quoting)
    table = read_table(path)
    assert table.size == len(rows) == len(table.lines)
    assert columns_of(table) == {
        "text": [text for text, _ in rows],
        "label": [label for _, label in rows],
    }


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.text('ab",\n é#', min_size=1, max_size=9), LABELS),
        min_size=1,
        max_size=6,
    )
)
def test_a_csv_is_what_pandas_reads(folder, rows):
    import pandas

    path = write_csv(folder / "pandas.csv", rows)
    other = pandas.read_csv(path, dtype=str, keep_default_na=False)
    assert columns_of(read_table(path)) == other.to_dict("list")


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.text('ab",\n', max_size=9), LABELS), max_size=6
    )
)
def test_the_line_is_where_a_row_begins(folder, rows):
    path = write_csv(folder / "lines.csv", rows, lineterminator="\n")
    expected, line = [], 2
    for text, _ in rows:
        expected.append(line)
        line += 1 + text.count("\n")
    table = read_table(path)
    assert table.lines == expected
    for row, line in enumerate(expected):
        assert table.place(row) == f"{path}:{line}"


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.text(
                st.characters(
                    exclude_categories=["Cs"], exclude_characters="\t\n\r"
                )
            ),
            LABELS,
        ),
        max_size=6,
    )
)
def test_a_tsv_has_no_quotes(folder, rows):
    path = folder / "rows.tsv"
    lines = ["text\tlabel", *("\t".join(row) for row in rows)]
    path.write_bytes("\n".join(lines).encode())
    table = read_table(path)
    assert table.values("text") == [text for text, _ in rows]
    assert table.lines == list(range(2, len(rows) + 2))


def test_a_header_is_trimmed_and_empty_lines_are_left_out(folder):
    path = folder / "blank.csv"
    path.write_bytes(
        b"\xef\xbb\xbf text ,label,,\r\n\r\na,b,,\r\n,,,\r\nc,d,,"
    )
    table = read_table(path)
    assert table.columns == ["text", "label", "", ""]
    assert table.values("text") == ["a", "", "c"], "commas are a row"
    assert table.lines == [3, 4, 5]


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_a_long_text_comes_back(folder, ending):
    limit = csv.field_size_limit()
    path, long = folder / f"long{ending}", "x" * (limit + 1)
    between = "," if ending == ".csv" else "\t"
    path.write_text(f"text{between}label\n{long}{between}a\n")
    assert read_table(path).values("text") == [long]
    path.write_text(f'text,label\n"{long}\n')
    with suppress(ValueError):
        read_table(path)
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n \n", b"a,b\n"])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_a_table_without_rows_has_none(folder, data, ending):
    path = folder / f"empty{ending}"
    path.write_bytes(data)
    assert read_table(path).size == 0


@pytest.mark.parametrize(
    "data, line, part",
    [
        ('text,label\na,b\n"c,d\ne,f\n', 3, "cannot be read"),
        ('text,label\n"a" b,c\n', 2, "cannot be read"),
        ("text,label\na\n", 2, "has 1 fields, and the header has 2"),
        ("text,label\n\n\na,b,c\n", 4, "has 3 fields"),
        ("text,text\na,b\n", 1, "names the column 'text' twice"),
        ("text,label\n" + '"' + "x" * 131_073, 2, "cannot be read"),
    ],
)
def test_a_broken_csv_names_its_line(folder, data, line, part):
    path = folder / "broken.csv"
    path.write_text(data)
    with pytest.raises(ValueError) as error:
        read_table(path)
    message = one_sentence(error)
    assert message.startswith(f"{path}:{line} ") and part in message


@pytest.mark.parametrize(
    "ending", [".csv", ".tsv", ".jsonl", ".json", ".txt"]
)
@pytest.mark.parametrize(
    "data, line, kind",
    [
        ("caf\xe9".encode("latin-1"), 1, "windows-1252"),
        (b"a\r\nb\r\n\x93quoted\x94", 3, "windows-1252"),
        (b"\xef\xbb\xbfa\n\xff", 2, "windows-1252"),
        ("a\nb".encode("utf-16"), 1, "utf-16"),
    ],
)
def test_what_is_not_utf_8_is_refused_by_line(
    folder, ending, data, line, kind
):
    path = folder / f"bytes{ending}"
    path.write_bytes(data)
    with pytest.raises(ValueError) as error:
        read_table(path)
    message = one_sentence(error)
    assert f"{path}:{line} is not UTF-8" in message
    assert f"iconv -f {kind} -t utf-8" in message


# JSON


VALUES = st.one_of(TEXTS, st.integers(), st.none(), st.lists(TEXTS))
OBJECTS = st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), max_size=5)


@settings(deadline=None)
@given(rows=OBJECTS, ascii=st.booleans(), blank=st.integers(0, 2))
def test_json_comes_back(folder, rows, ascii, blank):
    text = [json.dumps(row, ensure_ascii=ascii) for row in rows]
    lines, whole = folder / "rows.jsonl", folder / "rows.json"
    lines.write_bytes(("\n" * (blank + 1)).join(text).encode())
    whole.write_bytes(
        json.dumps(rows, ensure_ascii=ascii, indent=blank).encode()
    )
    names = dict.fromkeys(name for row in rows for name in row)
    expected = {name: [row.get(name) for row in rows] for name in names}
    for path in (lines, whole):
        table = read_table(path)
        assert table.size == len(rows) and columns_of(table) == expected
    step = blank + 1
    assert read_table(lines).lines == [
        1 + step * n for n in range(len(rows))
    ]
    assert read_table(whole).lines is None


def test_lines_of_json_may_be_called_json(folder):
    path = folder / "lines.json"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert read_table(path).values("text") == ["a", "b"]


@pytest.mark.parametrize(
    "data, place",
    [
        ('{"a": 1}\n{"a": ', ":2 is not JSON"),
        ('{"a": 1}\n\n[1]\n', ":3 holds [1], and"),
        ("[1]\n", ", row 1, holds 1, and"),
        ('[{"a": 1}, null]', ", row 2, holds null, and"),
        ("[1]\n[2]\n", " is not JSON"),
        ('{"a": "\\ud83d"}', ":1 is not JSON"),
        ('{"\\uDE00": 1}', ":1 is not JSON"),
        ('{"a": ' + "[" * 100_000, ":1 is not JSON"),
        ("[" * 100_000, " is not JSON"),
        ('{"a": ' + "9" * 5000 + "}", ":1 is not JSON"),
        ("\0", ":1 is not JSON"),
        ('{"a": 1}\n{"a": 1, "b": 2, "a": 1}', ":2 is not JSON"),
        ('{"a": {"text": [], "text": []}}', ":1 is not JSON"),
        ('[{"a": 1, "a": 2}]', " is not JSON"),
    ],
)
def test_broken_json_names_its_place(folder, data, place):
    path = folder / "broken.jsonl"
    path.write_text(data)
    with pytest.raises(ValueError) as error:
        read_table(path)
    message = one_sentence(error)
    assert message.startswith(f"{path}{place}")


def test_both_halves_of_a_character_are_one(folder):
    path = folder / "emoji.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00"}')
    assert read_table(path).values("text") == ["\U0001f600"]


# A token a line


TOKENS = st.lists(
    st.tuples(
        st.text("abé#-'\U0001f600", min_size=1, max_size=4),
        st.sampled_from(["O", "B-person", "I-person"]),
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None)
@given(
    sentences=st.lists(TOKENS, max_size=4),
    between=st.sampled_from(["\t", " ", "\tNN\t"]),
    end=st.sampled_from(["\n", "\r\n"]),
    blank=st.integers(1, 2),
)
def test_sentences_come_back(folder, sentences, between, end, blank):
    path = folder / "rows.conll"
    text = (end * blank).join(
        "".join(f"{token}{between}{tag}{end}" for token, tag in sentence)
        for sentence in sentences
    )
    path.write_bytes(text.encode())
    table = read_table(path)
    assert table.size == len(sentences)
    for column, place in (("tokens", 0), ("tags", 1)):
        expected = [[pair[place] for pair in each] for each in sentences]
        assert table.values(column) == expected
    lines, at = text.split(end), 1
    for sentence, line in zip(sentences, table.lines):
        assert line == at
        assert lines[line - 1].startswith(sentence[0][0])
        at += len(sentence) + blank


def test_the_tweets_are_what_the_corpus_has(folder):
    tweets = load_corpus("wnut", "test")
    names = tweets.features["ner_tags"].feature.names
    path = folder / "tweets.txt"
    path.write_text(
        "\n".join(
            "".join(
                f"{token}\t{names[tag]}\n"
                for token, tag in zip(row["tokens"], row["ner_tags"])
            )
            for row in tweets
        ),
        encoding="utf-8",
    )
    table = read_table(path)
    assert table.values("tokens") == tweets["tokens"][:]
    expected = dataset_table("wnut", tweets).values("ner_tags")
    assert table.values("tags") == expected


@pytest.mark.parametrize(
    "line", ["Ann", "Ann\t", "\tO", " \tO", "Ann\t \t"]
)
def test_a_line_without_a_tag_is_named(folder, line):
    path = folder / "broken.conll"
    path.write_text(f"left O\n\nAnn O\n{line}\n")
    with pytest.raises(ValueError) as error:
        read_table(path)
    message = one_sentence(error)
    assert f"{path}:4 is not a token and its tag" in message


@pytest.mark.parametrize("odd", [*"\x0b\x1c\x85\xa0\u2007\u2028\u3000"])
@pytest.mark.parametrize("between", [" ", "  ", "\t", " NN "])
def test_blanks_and_tabs_alone_part_the_columns(folder, odd, between):
    path = folder / "odd.conll"
    tokens = [f"10{odd}km", f"km{odd}", f"{odd}km"]
    lines = [f"{token}{between}O\r\n" for token in tokens]
    path.write_bytes("".join(lines).encode())
    assert read_table(path).values("tokens") == [tokens]


# Parquet and datasets


@pytest.mark.parametrize("name", ["bbc_news", "wnut", "rotten_tomatoes"])
def test_a_corpus_and_its_parquet_file_are_one_table(folder, name):
    data = load_corpus(name, "test")
    path = folder / f"{name}.parquet"
    data.to_parquet(str(path))
    table, other = read_table(path), dataset_table(name, data)
    assert columns_of(table) == columns_of(other)
    assert table.classes == other.classes
    assert table.place(1) == f"{path}, row 2,"
    for column in set(data.column_names) - {"label", "ner_tags"}:
        assert table.values(column) == data[column][:]
    for column in {"label", "ner_tags"} & set(data.column_names):
        feature = data.features[column]
        names = getattr(feature, "feature", feature).names
        assert table.classes[column] == names
        assert table.values(column)[0] == (
            names[data[column][0]]
            if column == "label"
            else [names[number] for number in data[column][0]]
        )


def test_another_programs_parquet_file(folder):
    import pandas

    path = folder / "pandas.parquet"
    frame = pandas.DataFrame(
        {"text": ["a", None], "label": ["x", "y"], "n": [1, 2]}
    )
    frame["label"] = frame["label"].astype("category")
    frame.to_parquet(path)
    table = read_table(path)
    assert table.values("text") == ["a", None]
    assert table.values("label") == ["x", "y"]
    assert table.values("n") == [1, 2]


def test_a_number_without_a_name_is_none():
    import datasets

    features = datasets.Features(
        {"label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    data = datasets.Dataset.from_dict(
        {"label": [1, -1, None, 0]}, features=features
    )
    table = dataset_table("hidden", data)
    assert table.values("label") == ["pos", None, None, "neg"]


NOTES = [
    b"",
    b"null",
    b"[]",
    b"\xff",
    b"[" * 100_000,
    b'{"info": null}',
    b'{"info": {"features": ["label"]}}',
    b'{"info": {"features": {"label": "ClassLabel"}}}',
    b'{"info": {"features": {"label": {"names": [1, 2]}}}}',
    b'{"info": {"features": {"label": {"names_file": "/etc/passwd",'
    b' "_type": "ClassLabel"}}}}',
    b'{"info": {"features": {"label": {"_type": "os.system"}}}}',
]


@pytest.mark.parametrize("note", NOTES)
def test_a_strangers_note_is_only_read(folder, note):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"label": [0, 1]})
    table = table.replace_schema_metadata({b"huggingface": note})
    path = folder / "note.parquet"
    parquet.write_table(table, path)
    assert read_table(path).values("label") == [0, 1], "no file of names"


def text_column(data):
    """A column of one text with these bytes, whatever they are."""
    import pyarrow

    ends = pyarrow.array([0, len(data)], pyarrow.int32()).buffers()[1]
    buffers = [None, ends, pyarrow.py_buffer(data)]
    return pyarrow.Array.from_buffers(pyarrow.string(), 1, buffers)


def test_a_parquet_text_that_is_not_utf_8_is_refused(folder):
    import pyarrow
    from pyarrow import parquet

    path = folder / "bytes.parquet"
    columns = {"text": text_column(b"caf\xe9"), "label": ["x"]}
    parquet.write_table(pyarrow.table(columns), path)
    table = read_table(path)
    assert table.values("label") == ["x"]
    with pytest.raises(ValueError) as error:
        table.values("text")
    message = one_sentence(error)
    assert message.startswith(f"{path} has a column 'text' that cannot be")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"label", b"lab\xe9l"))
    with pytest.raises(ValueError) as error:
        read_table(path)
    assert one_sentence(error).startswith(f"{path} ")


def test_two_parquet_columns_of_one_name_are_refused(folder):
    import pyarrow
    from pyarrow import parquet

    path, one = folder / "twins.parquet", pyarrow.array([["a"]])
    names = ["text", "text"]
    parquet.write_table(pyarrow.table([one, one], names=names), path)
    with pytest.raises(ValueError) as error:
        read_table(path)
    message = one_sentence(error)
    assert message.startswith(f"{path} names the column 'text' twice")
    inside = pyarrow.StructArray.from_arrays([one, one], names=names)
    parquet.write_table(pyarrow.table({"answers": inside}), path)
    with pytest.raises(ValueError) as error:
        read_table(path).values("answers")
    message = one_sentence(error)
    assert message.startswith(f"{path} has a column 'answers' that cannot")


@pytest.mark.parametrize("kept", [0, 3, 4, 50, -1, -8])
def test_a_cut_parquet_file_is_refused(folder, kept):
    path, cut = folder / "whole.parquet", folder / "cut.parquet"
    load_corpus("wnut", "test").to_parquet(str(path))
    cut.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError) as error:
        read_table(cut)
    assert f"{cut} is not a Parquet file, or is" in one_sentence(error)


# Anything


@given(data=st.binary(max_size=200), ending=st.sampled_from([*FORMATS]))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_table_or_a_sentence(folder, data, ending):
    path = folder / f"any{ending}"
    path.write_bytes(data)
    try:
        table = read_table(path)
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        assert isinstance(table, Table)
        for name in table.columns:
            assert len(table.values(name)) == table.size


class Trap:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("ending", [*FORMATS, ".pkl", ".pickle", ".pt", ""])
def test_a_pickle_never_runs(tmp_path, protocol, ending):
    path, sprung = tmp_path / f"trap{ending}", tmp_path / "sprung"
    path.write_bytes(pickle.dumps(Trap(str(sprung)), protocol))
    try:
        table = read_table(path)
    except ValueError:
        pass
    else:
        for name in table.columns:
            assert all(isinstance(each, str) for each in table.values(name))
    assert not sprung.exists()
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_file_that_is_not_one(folder, tmp_path):
    for path in (tmp_path, tmp_path / "missing.csv", "/dev/zero"):
        with pytest.raises(FileNotFoundError) as error:
            read_table(path)
        assert f"{path} is not there, or" in one_sentence(error)
    path = folder / "book.xlsx"
    path.write_bytes(b"PK")
    with pytest.raises(ValueError) as error:
        read_table(path)
    assert all(ending in one_sentence(error) for ending in FORMATS)
