"""Text for pretraining: any file, folder or name, or a sentence."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertbook import pretraining_text
from bertbook.corpora import load_corpus, split_of, text_id
from bertbook.pretraining_text import (
    corpus_documents,
    learn_tokenizer,
    part_of,
    prepare_text,
    read_documents,
)
from bertbook.sources import SOURCES
from bertbook.token_files import PackedRows
from bertbook.tokenizer import BertTokenizer
from bertbook.vocabulary import trained_vocabulary

pytestmark = pytest.mark.usefixtures("no_network")
TEXTS = [
    f"Film number {n} is good. It takes {n * 7 % 90} minutes."
    for n in range(120)
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("\n\n".join(TEXTS))
    return learn_tokenizer(str(path), 200)


def write(path, documents=TEXTS):
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return str(path)


def one_sentence(error):
    message = str(error.value)
    assert "\n" not in message and message.count(". ") == 0, message
    return message


# Files


@pytest.mark.parametrize(
    "data, wanted",
    [
        (b"", []),
        (b"\n \n\t\r\n", []),
        (b"one", ["one"]),
        (b"one\ntwo\n\nthree", ["one\ntwo", "three"]),
        (b"\n\none\n\n\n\ntwo\n\n", ["one", "two"]),
        (b"one\r\ntwo\r\n\r\nthree\r\n", ["one\ntwo", "three"]),
        (b"\xef\xbb\xbfone\n\ntwo", ["one", "two"]),
        (b"\xef\xbb\xbf\r\none", ["one"]),
        (b" one \n\xc2\xa0\ntwo", ["one", "two"]),
        ("é\n\n話".encode(), ["é", "話"]),
    ],
)
def test_a_blank_line_ends_a_document(tmp_path, data, wanted):
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    assert list(read_documents(path)) == wanted
    assert list(read_documents(str(path))) == wanted


LINES = st.text(alphabet="ab é話\t.", max_size=12)


@given(st.lists(st.lists(LINES)), st.sampled_from(["\n", "\r\n"]))
def test_documents_come_back(tmp_path_factory, documents, end):
    path = tmp_path_factory.mktemp("files") / "text.txt"
    documents = [[line.strip() for line in lines] for lines in documents]
    documents = [[line for line in lines if line] for lines in documents]
    blank = end + end
    text = blank.join(end.join(lines) for lines in documents)
    path.write_bytes(text.encode())
    wanted = ["\n".join(lines) for lines in documents if lines]
    assert list(read_documents(path)) == wanted


@given(
    st.text(alphabet="ab é話𝄞\n", max_size=80),
    st.integers(8, 20),
)
def test_long_lines_lose_nothing(tmp_path_factory, text, longest):
    path = tmp_path_factory.mktemp("long") / "text.txt"
    path.write_bytes(text.encode())
    before = pretraining_text.LONGEST
    pretraining_text.LONGEST = longest
    try:
        documents = list(read_documents(path))
    finally:
        pretraining_text.LONGEST = before
    assert "".join("".join(documents).split()) == "".join(text.split())
    assert all(len(each.encode()) < 5 * longest + 4 for each in documents)


def test_a_line_that_is_longer_than_a_document_may_be(tmp_path):
    path = tmp_path / "one_line.txt"
    words = [f"word{n}" for n in range(400_000)]  # 4 MB, no newline
    path.write_text(" ".join(words))
    documents = list(read_documents(path))
    assert len(documents) == 3, "two megabytes each"
    assert " ".join(documents).split() == words, "no word is cut"


def test_a_folder_is_read_file_by_file(tmp_path):
    write(tmp_path / "b.txt", ["three"])
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text(
        "one\n\ntwo"
    )  # no blank at the end
    (tmp_path / "a" / "notes.md").write_text("not read")
    assert list(read_documents(tmp_path)) == ["one", "two", "three"]


@pytest.mark.parametrize(
    "data, line, kind",
    [
        ("caf\xe9".encode("latin-1"), 1, "windows-1252"),
        ("one\n\n\u201cquoted\u201d\n".encode("cp1252"), 3, "windows-1252"),
        ("one\ntwo".encode("utf-16"), 1, "utf-16"),
        (b"\xfe\xff" + "one".encode("utf-16-be"), 1, "utf-16"),
        (b"\xef\xbb\xbfone\n\xff", 2, "windows-1252"),
    ],
)
def test_what_is_not_utf_8_is_refused_by_line(tmp_path, data, line, kind):
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    for corpus in (path, tmp_path):
        with pytest.raises(ValueError) as error:
            list(read_documents(corpus))
        message = one_sentence(error)
        assert f"{path}:{line} is not UTF-8" in message
        assert f"iconv -f {kind} -t utf-8" in message


# Names


@pytest.mark.parametrize(
    "name",
    [
        "reviews.txt",
        "data/reviews.txt",
        "./reviews",
        "../reviews",
        "/nowhere/reviews",
        "a/b/c",
        "reviews/",
        "my reviews",
        "rows.jsonl",
        "C:\\reviews",
    ],
)
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(name):
    for call in (
        lambda: corpus_documents(name, "train"),
        lambda: learn_tokenizer(name),
    ):
        with pytest.raises(FileNotFoundError) as error:
            call()
        message = one_sentence(error)
        assert f"no file or folder {name}" in message
        assert all(embedded in message for embedded in SOURCES)


@pytest.mark.parametrize("name", ["reviews", "some/reviews", "s/v1.0:en"])
def test_a_name_without_a_hub_is_one_sentence(name):
    documents = corpus_documents(name, "train")
    with pytest.raises(ConnectionError) as error:
        list(documents)
    assert "no such file or folder" in one_sentence(error)


def test_rows_in_a_file_are_no_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n')
    with pytest.raises(ValueError, match="put it into a folder"):
        corpus_documents(str(path), "train")


def test_a_folder_without_text_is_told(tmp_path):
    (tmp_path / "notes.md").write_text("one")
    with pytest.raises(ValueError, match="holds no .txt file"):
        list(corpus_documents(str(tmp_path), "train"))


def test_other_splits_are_refused():
    with pytest.raises(ValueError, match="split='test'; give 'train' or"):
        corpus_documents("imdb", "test")


def test_an_embedded_corpus_keeps_its_splits():
    for split in ("train", "validation"):
        found = corpus_documents("bbc_news", split)
        assert found == list(load_corpus("bbc_news", split)["text"])


# Data sets


def write_rows(folder, **splits):
    folder.mkdir(parents=True)
    for split, texts in splits.items():
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return str(folder)


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    import datasets

    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    yield
    assert not list(tmp_path.rglob("*.arrow")), "streaming keeps nothing"


def test_a_folder_of_rows_is_streamed(tmp_path, no_cache):
    texts = [*TEXTS, "", None, " \n "]
    corpus = write_rows(tmp_path / "rows", train=texts)
    train = list(corpus_documents(corpus, "train"))
    held_out = list(corpus_documents(corpus, "validation"))
    assert train == list(part_of(TEXTS, "train"))
    assert held_out == list(part_of(TEXTS, "validation"))
    assert sorted(train + held_out) == sorted(TEXTS)


def test_rows_streamed_or_not_are_the_same(tmp_path, monkeypatch):
    import datasets

    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    corpus = write_rows(tmp_path / "rows", train=TEXTS)
    stream = load_corpus(corpus, "train", streaming=True)
    kept = load_corpus(corpus, "train")
    assert [row["text"] for row in stream] == kept["text"][:] == TEXTS


def test_a_validation_split_is_used_as_it_is(tmp_path, no_cache):
    corpus = write_rows(
        tmp_path / "rows", train=TEXTS[:50], validation=TEXTS[50:60]
    )
    assert list(corpus_documents(corpus, "train")) == TEXTS[:50]
    assert list(corpus_documents(corpus, "validation")) == TEXTS[50:60]


def test_rows_that_do_not_fit_are_refused(tmp_path, no_cache):
    test = write_rows(tmp_path / "test", test=TEXTS)
    with pytest.raises(ValueError, match="no split train, but test; give"):
        list(corpus_documents(test, "train"))
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"id": 1, "content": "one"}\n')
    with pytest.raises(ValueError) as error:
        list(corpus_documents(str(folder), "train"))
    assert 'no column "text", but id, content' in one_sentence(error)


def test_a_hub_name_is_streamed_with_its_config(monkeypatch):
    calls = []

    def load(name, split, config, streaming):
        calls.append((name, split, config, streaming))
        return {"train": [{"text": text} for text in TEXTS]}

    monkeypatch.setattr(pretraining_text, "load_corpus", load)
    name = "wikimedia/wikipedia:20231101.en"
    documents = corpus_documents(name, "validation")
    assert calls == [], "nothing is asked before a document is"
    assert list(documents) == list(part_of(TEXTS, "validation"))
    list(corpus_documents("wikitext-2", "train"))
    assert calls == [
        ("wikimedia/wikipedia", None, "20231101.en", True),
        ("wikitext-2", None, None, True),
    ]


def test_a_finished_hub_corpus_is_not_read_again(
    monkeypatch, tmp_path, tokenizer
):
    rows = {"train": [{"text": text} for text in TEXTS]}
    monkeypatch.setattr(
        pretraining_text, "load_corpus", lambda *a, **k: rows
    )
    made = prepare_text("some/text", tmp_path / "text", tokenizer)
    monkeypatch.setattr(pretraining_text, "load_corpus", None)
    found = prepare_text("some/text", tmp_path / "text", tokenizer)
    assert found.train.digest == made.train.digest
    with pytest.raises(
        ValueError, match="source some/text, and other/text"
    ):
        prepare_text("other/text", tmp_path / "text", tokenizer)


# Held out


@given(st.lists(st.text(max_size=8)))
def test_every_document_is_in_one_part(documents):
    train = list(part_of(documents, "train"))
    held_out = list(part_of(documents, "validation"))
    assert sorted(train + held_out) == sorted(documents)
    ids = [{text_id(text) for text in part} for part in (train, held_out)]
    assert not ids[0] & ids[1], "a copy of a document is where it is"
    assert {split_of(each) for each in ids[1]} <= {"validation"}


def test_copies_are_never_on_both_sides(tmp_path, tokenizer):
    copies = [text.upper() + " !" for text in TEXTS]
    corpus = write(tmp_path / "text.txt", [*TEXTS, *copies, *TEXTS])
    text = prepare_text(corpus, tmp_path / "out", tokenizer)
    assert text.train.documents + text.held_out.documents == 360
    assert text.held_out.documents % 3 == 0 < text.held_out.documents

    def documents(files):
        found = set()
        for shard in files.shards:
            starts = shard["sentences"][shard["documents"]]
            for start, end in zip(starts, starts[1:]):
                decoded = tokenizer.decode(shard["ids"][start : end - 1])
                found.add(text_id(decoded))
        return found

    assert not documents(text.train) & documents(text.held_out)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_too_few_documents_are_counted(tmp_path, tokenizer, count):
    train = list(part_of(TEXTS, "train"))[:count]
    corpus = write(tmp_path / "few.txt", train)
    with pytest.raises(ValueError) as error:
        prepare_text(corpus, tmp_path / "out", tokenizer)
    message = one_sentence(error)
    assert f"gives {count} training and 0 held-out documents" in message
    assert "a blank line" in message and "a hundred documents" in message
    assert not (tmp_path / "out" / "train").exists(), "the short one first"


def test_nothing_to_train_on_is_told(tmp_path, tokenizer):
    held_out = list(part_of(TEXTS, "validation"))[:2]
    corpus = write(tmp_path / "few.txt", held_out)
    for call in (
        lambda: prepare_text(corpus, tmp_path / "out", tokenizer),
        lambda: learn_tokenizer(corpus),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert "gives 0 training and 2 held-out" in one_sentence(error)


def test_the_held_out_part_is_bounded(tmp_path, tokenizer, monkeypatch):
    corpus = write(tmp_path / "text.txt")
    held_out = list(part_of(TEXTS, "validation"))
    assert len(held_out) > 5
    monkeypatch.setattr(pretraining_text, "HELD_OUT_LIMIT", 5)
    text = prepare_text(corpus, tmp_path / "out", tokenizer)
    assert text.held_out.documents == 5
    assert text.held_out.characters == sum(map(len, held_out[:5]))
    assert text.train.documents == len(TEXTS) - len(held_out)


# Vocabulary


def test_the_vocabulary_is_of_the_training_part(tmp_path):
    marked = [f"Zyzzyva {n}" for n in range(60)]
    held_out = list(part_of(marked, "validation"))
    assert held_out
    train = list(part_of(TEXTS, "train"))
    corpus = write(tmp_path / "text.txt", train + held_out * 9)
    vocab = learn_tokenizer(corpus, 200).get_vocab()
    assert not any("z" in piece for piece in vocab)


def test_a_small_corpus_gives_a_smaller_vocabulary(tmp_path):
    corpus = write(tmp_path / "text.txt")
    tokenizer = learn_tokenizer(corpus)
    size = len(tokenizer.get_vocab())
    assert 30 < size < 300
    text = prepare_text(corpus, tmp_path / "out", tokenizer)
    rows = PackedRows(text.train, 16, tokenizer)
    assert max(shard["ids"].max() for shard in text.train.shards) < size
    assert rows.count(0) > 10


def test_words_are_counted_in_the_beginning_only(tmp_path, monkeypatch):
    read = []
    documents = pretraining_text.corpus_documents

    def watched(corpus, split):
        for document in documents(corpus, split):
            read.append(document)
            yield document

    monkeypatch.setattr(pretraining_text, "corpus_documents", watched)
    corpus = write(tmp_path / "text.txt")
    beginning = learn_tokenizer(corpus, 200, characters=500)
    assert 500 <= sum(map(len, read)) < 600 + len(read[-1])
    whole = learn_tokenizer(corpus, 200)
    assert beginning.get_vocab() != whole.get_vocab()


def test_a_web_of_characters_leaves_room_for_pieces(tmp_path):
    ideographs = [chr(0x4E00 + n) for n in range(3000)]
    corpus = write(
        tmp_path / "text.txt", [*TEXTS, " ".join(ideographs)] * 3
    )
    pieces = [*learn_tokenizer(corpus, 300).get_vocab()][5:]
    characters = [p for p in pieces if len(p.removeprefix("##")) == 1]
    assert len({p[-1] for p in characters}) == 300 // 4
    assert len(characters) <= 150 and "film" in pieces


def test_learning_is_quiet(tmp_path, capfd):
    learn_tokenizer(write(tmp_path / "text.txt"), 200)
    assert capfd.readouterr() == ("", "")
    corpus = str(tmp_path / "text.txt")
    tokenizer = learn_tokenizer(corpus, 200, show_progress=True)
    assert "200" in capfd.readouterr().err
    prepare_text(corpus, tmp_path / "out", tokenizer)
    assert capfd.readouterr() == ("", "")
    prepare_text(corpus, tmp_path / "2", tokenizer, show_progress=True)
    assert "shards" in capfd.readouterr().err


def test_an_embedded_corpus_has_its_kept_vocabulary(monkeypatch):
    calls = []

    def trained(corpus, vocab_size, **options):
        calls.append((corpus, vocab_size))
        return trained_vocabulary("bbc_news", 600)

    monkeypatch.setattr(pretraining_text, "trained_vocabulary", trained)
    assert len(learn_tokenizer("imdb", 600).get_vocab()) == 600
    assert calls == [("imdb", 600)]


# Both together


def test_preparing_is_continued_and_counted(tmp_path, tokenizer):
    corpus = write(tmp_path / "text.txt")
    text = prepare_text(corpus, tmp_path / "out", tokenizer)
    assert text.tokenizer is tokenizer
    train = list(part_of(TEXTS, "train"))
    assert text.train.characters == sum(map(len, train))
    rows = tokenizer(train, add_special_tokens=False)["input_ids"]
    assert text.train.pieces == sum(map(len, rows))
    again = prepare_text(corpus, tmp_path / "out", tokenizer, workers=2)
    assert again.train.digest == text.train.digest
    assert again.held_out.digest == text.held_out.digest
    write(tmp_path / "text.txt", [*TEXTS, "One more film, and a long one."])
    changed = prepare_text(corpus, tmp_path / "out", tokenizer)
    digests = {changed.train.digest, changed.held_out.digest}
    assert digests != {text.train.digest, text.held_out.digest}


def test_another_vocabulary_is_refused(tmp_path, tokenizer):
    corpus = write(tmp_path / "text.txt")
    prepare_text(corpus, tmp_path / "out", tokenizer)
    other = BertTokenizer(
        dict(tokenizer.get_vocab(), extra=len(tokenizer.get_vocab()))
    )
    with pytest.raises(ValueError, match="holds shards with vocabulary"):
        prepare_text(corpus, tmp_path / "out", other)
