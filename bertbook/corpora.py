"""Real text

Four well-known collections of English text that are there without a
download: film reviews, one-sentence verdicts, news articles and tweets.
load_corpus checks them, repairs them, splits them and hands them over as
datasets.Dataset.

The page: https://bertbook.github.io/bertbook/book/corpora.html
"""

# Tangled from book/corpora.md (d88f5cc4): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "SPLITS",
    "TAGS",
    "TOPICS",
    "canonical",
    "corpus_features",
    "decode",
    "divide",
    "hub_answers",
    "load_corpus",
    "parse_corpus",
    "repair",
    "split_of",
    "split_sentences",
    "text_id",
]


# %% book/corpora.md#damage-and-repair b2d74900
import csv
import hashlib
import html
import io
import os
import re
import threading
import warnings
from functools import cache
from itertools import groupby
from pathlib import Path
from unicodedata import normalize

from bertbook.sources import SOURCES, read_files

_ENTITY = re.compile(r"&#?\w+;")
_BREAK = re.compile(r"<[bh]r\s*/?>")
_TAG = re.compile(r"</?(?:i|em)>")
_CHARACTERS = {
    # Controls mean nothing here; a tab and a newline are blanks.
    **dict.fromkeys(set(range(32)) - {9, 10} | {127}),
    # Windows-1252 that was read as Latin-1.
    **{n: bytes([n]).decode("cp1252", "ignore") for n in range(128, 160)},
    0xF0B7: "\N{BULLET}",  # a word processor's private bullet
}


def repair(text):
    """The text without markup, encoding damage and stray blanks.

    A blank line ends a paragraph; no other run of blanks survives.
    """
    text = _ENTITY.sub(lambda match: html.unescape(match.group()), text)
    text = _TAG.sub("", _BREAK.sub("\n", text)).translate(_CHARACTERS)
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).strip()


# %% book/corpora.md#the-news-was-stored-in-two-encodings 781cb359
def decode(data):
    """Bytes as text: UTF-8, or Windows-1252 where that is impossible."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252")


# %% book/corpora.md#paragraphs-and-sentences b97e02a9
_SENTENCE_END = re.compile(
    r"""(?<!\b[A-Z])[.!?]["')\]]*\s+(?=["'(\[£$]*[A-Z0-9])"""
)


def split_sentences(paragraph):
    """The sentences of a paragraph, by rule; nothing but blanks is lost."""
    sentences = []
    for line in paragraph.split("\n"):
        start = 0
        for end in _SENTENCE_END.finditer(line):
            sentences.append(line[start : end.end()].strip())
            start = end.end()
        sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


# %% book/corpora.md#one-text-one-place bf4dd99b
def canonical(text):
    """What identifies a text: its letters and digits in lower case."""
    letters = normalize("NFKC", text).casefold()
    return re.sub(r"[\W_]+", "", letters) or text


def text_id(text):
    """Sixteen hexadecimal digits that depend on `canonical(text)` only."""
    return hashlib.sha256(canonical(text).encode()).hexdigest()[:16]


# %% book/corpora.md#one-text-one-place d28a3d70
SPLITS = ("train", "validation", "test")


def split_of(identifier):
    """The split that owns a text, from its `text_id` alone."""
    position = int(identifier[:8], 16) / 2**32
    if position < 0.1:
        return "test"
    return "validation" if position < 0.2 else "train"


# %% book/corpora.md#one-text-one-place ddff1e3f
def divide(rows):
    """Rows without copies as a dict from split to list, sorted by id.

    A row is a dict with a `text`; the rows that come back have an `id`.
    """
    kept = {}
    for row in rows:
        row = {"id": text_id(row["text"]), **row}
        copy = kept.get(row["id"])
        if copy is None or tuple(row.values()) < tuple(copy.values()):
            kept[row["id"]] = row
    splits = {split: [] for split in SPLITS}
    for identifier in sorted(kept):
        splits[split_of(identifier)].append(kept[identifier])
    return splits


# %% book/corpora.md#four-parsers 4f02b3cb
def _parse_reviews(files, source):
    (table,) = files.values()
    table = io.StringIO(table.decode("utf-8"), newline="")
    for row in csv.DictReader(table):
        if row["source"] == source:
            yield {"text": repair(row["text"]), "label": int(row["label"])}


# %% book/corpora.md#four-parsers 9684655f
def _parse_news(files):
    for name, data in files.items():
        title, _, body = repair(decode(data)).partition("\n\n")
        paragraphs = body.split("\n\n")
        yield {
            "text": body,
            "title": title,
            "paragraphs": paragraphs,
            "sentences": [split_sentences(part) for part in paragraphs],
            "label": name.split("/")[-2],
        }


# %% book/corpora.md#four-parsers a3038e68
def _parse_tweets(files):
    (lines,) = files.values()
    lines = lines.decode("utf-8").split("\n")
    for filled, group in groupby(lines, lambda line: line.strip() != ""):
        if filled:
            tokens, tags = zip(*(line.split("\t") for line in group))
            tokens = [repair(token) for token in tokens]
            text = " ".join(tokens)
            yield {"text": text, "tokens": tokens, "ner_tags": list(tags)}


# %% book/corpora.md#four-parsers 4ab68fe3
def parse_corpus(name):
    """The repaired rows of an embedded corpus, in file order, as dicts.

    Copies are still there. Raises as `read_files` does.
    """
    files = read_files(SOURCES[name])
    if name == "bbc_news":
        return list(_parse_news(files))
    if name == "wnut":
        return list(_parse_tweets(files))
    return list(_parse_reviews(files, name))


# %% book/corpora.md#datasets-with-declared-features 99e691bc
def _import_datasets():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
    return datasets


# %% book/corpora.md#datasets-with-declared-features 077ee3f0
TOPICS = ["business", "entertainment", "politics", "sports", "tech"]
_ENTITIES = """company facility geo-loc movie musicartist
    other person product sportsteam tvshow""".split()
TAGS = ["O", *(f"{place}-{kind}" for kind in _ENTITIES for place in "BI")]


# %% book/corpora.md#datasets-with-declared-features 3160dc6d
def corpus_features(name):
    """The `datasets.Features` of an embedded corpus.

    All have `id` and `text`; all but `wnut` a `label`. `bbc_news` adds
    `title`, `paragraphs`, and `sentences` with a list for each paragraph.
    `wnut` adds `tokens` and `ner_tags`; its `text` is the tokens, joined.
    """
    hf = _import_datasets()
    text, texts = hf.Value("string"), hf.List(hf.Value("string"))
    columns = {"id": text, "text": text}
    if name == "wnut":
        tags = hf.ClassLabel(names=TAGS)
        columns |= {"tokens": texts, "ner_tags": hf.List(tags)}
    elif name == "bbc_news":
        columns |= {"title": text, "paragraphs": texts}
        columns["sentences"] = hf.List(texts)
        columns["label"] = hf.ClassLabel(names=TOPICS)
    else:
        columns["label"] = hf.ClassLabel(names=["neg", "pos"])
    return hf.Features(columns)


# %% book/corpora.md#datasets-with-declared-features 5ba0bb03
import sys
from importlib.util import find_spec

from bertbook.reproducibility import kept, write_atomically

_CODE = Path(find_spec("bertbook.corpora").origin).read_bytes()


def _split_file(name, split):
    """Where a parsed split is kept; OSError where nothing can be."""
    key = hashlib.sha256(sys.version.encode() + _CODE)
    key.update(SOURCES[name].sha256.encode())
    return kept(f"corpora/{name}-{split}-{key.hexdigest()[:16]}.arrow")


def _as_bytes(dataset):
    """A dataset as a stream of Arrow, and the digest of that."""
    import pyarrow

    table, sink = dataset.data.table, pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    data = sink.getvalue().to_pybytes()
    return data + hashlib.sha256(data).digest()


def _read_split(name, split):
    import pyarrow

    data = memoryview(_split_file(name, split).read_bytes())
    data, expected = data[:-32], data[-32:]
    if hashlib.sha256(data).digest() != expected:
        raise ValueError("damaged")
    hf, buffer = _import_datasets(), pyarrow.py_buffer(data)
    return hf.Dataset.from_buffer(buffer, split=hf.NamedSplit(split))


# %% book/corpora.md#datasets-with-declared-features 0e726364
from contextlib import suppress


def _parse_splits(name):
    hf, features, splits = _import_datasets(), corpus_features(name), {}
    for split, rows in divide(parse_corpus(name)).items():
        columns = {each: [row[each] for row in rows] for each in features}
        splits[split] = hf.Dataset.from_dict(
            columns, features, split=hf.NamedSplit(split)
        )
        with suppress(OSError):
            data = _as_bytes(splits[split])
            write_atomically(_split_file(name, split), data)
    return splits


@cache
def _load_embedded(name):
    read_files(SOURCES[name])  # refuses altered ones
    try:
        return {split: _read_split(name, split) for split in SPLITS}
    except (OSError, ValueError):
        return _parse_splits(name)


# %% book/corpora.md#the-hub-and-no-hub 2cf810c8
def _ask(answers):
    from urllib import error, request

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        request.urlopen(request.Request(endpoint, method="HEAD")).close()
    except (OSError, ValueError) as fault:
        if not isinstance(fault, error.HTTPError):  # which is an answer
            return
    answers.append(True)


# %% book/corpora.md#the-hub-and-no-hub fb1d2793
def hub_answers(seconds=0.8):
    """Whether the Hugging Face hub answers within some seconds.

    Says no unasked where HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set.
    """
    for flag in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        if os.environ.get(flag, "").upper() in {"1", "ON", "YES", "TRUE"}:
            return False
    answers = []
    thread = threading.Thread(target=_ask, args=(answers,), daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)


# %% book/corpora.md#the-hub-and-no-hub 251876d0
def _is_cached(repository):
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/huggingface"
    home = os.environ.get("HF_HOME", home)
    cached = os.environ.get("HF_DATASETS_CACHE", home + "/datasets")
    # `datasets` writes Some/DataSet as some___data_set.
    wanted = repository.replace("/", "").replace("_", "").lower()
    folders = Path(cached).expanduser().glob("*/")
    return wanted in {f.name.replace("_", "").lower() for f in folders}


# %% book/corpora.md#the-hub-and-no-hub 0027a077
def _load_from_hub(name, split, config, streaming):
    repository = name
    if name == "wikitext-2":
        repository, config = "Salesforce/wikitext", "wikitext-2-raw-v1"
    here = Path(repository).exists() or _is_cached(repository)
    if not (here or hub_answers()):
        raise ConnectionError(
            f"{name!r} is not an embedded corpus ({', '.join(SOURCES)}), "
            "and no such file or folder, and the Hugging Face hub does not "
            "answer; choose one of these, or come back with a network"
        )
    load = _import_datasets().load_dataset
    return load(repository, config, split=split, streaming=streaming)


# %% book/corpora.md#the-hub-and-no-hub 2ad71ade
def load_corpus(name, split="train", config=None, streaming=False):
    """One split of a corpus as a `datasets.Dataset`, or as a stream of it.

    `name`: `imdb`, `rotten_tomatoes`, `bbc_news` or `wnut`, whose columns
    `corpus_features` describes and whose splits are `SPLITS`; else
    `wikitext-2`, or what `datasets.load_dataset` takes, with its `config`.
    An embedded corpus is parsed once, and its splits are kept on disk.
    Raises ModuleNotFoundError (package missing), ValueError (files
    altered, no such split or config) or ConnectionError (not here, and no
    network).
    """
    if name not in SOURCES:
        return _load_from_hub(name, split, config, streaming)
    if config is not None:
        raise ValueError(
            f"{name!r} has no configuration {config!r}; leave it out"
        )
    if split not in SPLITS:
        raise ValueError(
            f"{name!r} has no split {split!r}; choose one of "
            f"{', '.join(SPLITS)}"
        )
    data = _load_embedded(name)[split].with_format(None)
    return data.to_iterable_dataset() if streaming else data
