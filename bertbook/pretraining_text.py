"""Text for pretraining

Takes a corpus by name, file, folder or hub name; holds some documents out,
trains a vocabulary, and writes both parts as token files.

The page: https://bertbook.github.io/bertbook/book/pretraining_text.html
"""

# Tangled from book/pretraining_text.md (25f408f2): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "HELD_OUT",
    "HELD_OUT_LIMIT",
    "LONGEST",
    "TRAIN",
    "Text",
    "corpus_documents",
    "learn_tokenizer",
    "part_of",
    "prepare_text",
    "read_documents",
]


# %% book/pretraining_text.md#documents-in-a-file 8d5fc741
from collections.abc import Iterable, Iterator
from pathlib import Path

LONGEST = 2**20  # bytes; a longer document becomes several


def _stretches(file):
    """Lines with their numbers; one that is too long comes in parts."""
    number, rest = 1, b""
    while data := file.readline(2 * LONGEST):
        cut = len(data) == 2 * LONGEST and not data.endswith(b"\n")
        data, rest = rest + data, b""
        if cut:
            end = data.rfind(b" ") + 1 or _last_character(data)
            data, rest = data[:end], data[end:]
        yield number, data
        number += data.endswith(b"\n")
    if rest:
        yield number, rest


def _last_character(data):
    """Where the last character begins, which may not be whole."""
    starts = (n for n in range(1, 5) if data[-n] & 0b11000000 != 0b10000000)
    return len(data) - next(starts, 0)


# %% book/pretraining_text.md#documents-in-a-file 5d1e2cc7
def read_documents(path: str | Path) -> Iterator[str]:
    """The documents of a text file, one at a time; a blank line ends one.

    A folder is read file by file, those that end in .txt, sorted. Raises
    ValueError for what is not UTF-8, with file and line, and for a folder
    without text.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
        if not files:
            raise ValueError(
                f"{path} holds no .txt file; give one that does"
            )
        for file in files:
            yield from read_documents(file)
        return
    lines, size = [], 0
    with open(path, "rb") as file:
        for number, data in _stretches(file):
            line = _decoded(data, path, number).strip()
            if line:
                lines.append(line)
                size += len(data)
            if lines and (not line or size >= LONGEST):
                yield "\n".join(lines)
                lines, size = [], 0
    if lines:
        yield "\n".join(lines)


# %% book/pretraining_text.md#documents-in-a-file 90252cfc
def _decoded(data, path, number):
    try:
        return data.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        marks = b"\xff\xfe", b"\xfe\xff"
        kind = "utf-16" if data.startswith(marks) else "windows-1252"
        raise ValueError(
            f"{path}:{number} is not UTF-8; convert the file, for example "
            f"by iconv -f {kind} -t utf-8"
        ) from None


# %% book/pretraining_text.md#a-part-that-is-never-trained-on 293ea5a3
from bertbook.corpora import load_corpus, split_of, text_id
from bertbook.sources import SOURCES

TRAIN, HELD_OUT = "train", "validation"


def part_of(documents: Iterable[str], split: str) -> Iterator[str]:
    """Those documents that belong to "train" or to "validation".

    The hash of a text decides; a tenth is held out for validation.
    """
    for document in documents:
        held_out = split_of(text_id(document)) == HELD_OUT
        if held_out == (split == HELD_OUT):
            yield document


# %% book/pretraining_text.md#documents-by-name 78f38944
import re

_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
_ROWS = {".csv", ".json", ".jsonl", ".parquet"}


def _is_text(corpus):
    """Whether a corpus is read here; ValueError for what cannot be read.

    Raises FileNotFoundError where a name is meant as a path.
    """
    path = Path(corpus)
    if path.is_dir():
        kinds = {file.suffix for file in path.rglob("*")}
        return ".txt" in kinds or not kinds & _ROWS
    odd = path.suffix in {".txt", *_ROWS} or not _NAME.fullmatch(corpus)
    if odd and not path.exists():
        raise FileNotFoundError(
            f"there is no file or folder {corpus}; correct the path, or "
            f"give one of {', '.join(SOURCES)}, or a name on the hub"
        )
    if path.exists() and path.suffix in _ROWS:
        raise ValueError(
            f"{path} holds rows, not plain text; put it into a folder of "
            'its own, with the text in the column "text", and give that'
        )
    return path.exists()


# %% book/pretraining_text.md#documents-by-name 9bc6837d
def _texts(rows, corpus):
    for row in rows:
        if "text" not in row:
            raise ValueError(
                f'{corpus} has no column "text", but {", ".join(row)}; '
                'rename the one with the text to "text"'
            )
        if row["text"] and row["text"].strip():
            yield row["text"]


def _stream(corpus, split):
    """The documents of a data set that `datasets` reads."""
    whole = Path(corpus).exists()
    name, _, config = (corpus, "", "") if whole else corpus.partition(":")
    parts = load_corpus(name, None, config or None, streaming=True)
    if TRAIN not in parts:
        raise ValueError(
            f"{corpus} has no split train, but {', '.join(parts)}; give a "
            "corpus with one"
        )
    if HELD_OUT in parts:
        yield from _texts(parts[split], corpus)
    else:
        yield from part_of(_texts(parts[TRAIN], corpus), split)


# %% book/pretraining_text.md#documents-by-name d77743a9
def corpus_documents(corpus: str, split: str) -> Iterable[str]:
    """The documents of one split, "train" or "validation", as a stream.

    `corpus` is an embedded name, a text file, a folder of .txt files or of
    files that `datasets` reads, or `name` or `name:config` on the hub,
    which is streamed. What has no validation split is divided by `part_of`.
    Raises as `load_corpus` and `read_documents` do, and FileNotFoundError.
    """
    if split not in (TRAIN, HELD_OUT):
        raise ValueError(f"split={split!r}; give {TRAIN!r} or {HELD_OUT!r}")
    if corpus in SOURCES:
        return load_corpus(corpus, split)["text"][:]
    if _is_text(corpus):
        return part_of(read_documents(corpus), split)
    return _stream(corpus, split)


# %% book/pretraining_text.md#a-vocabulary-of-its-own 90d5fdcd
from bertbook.tokenizer import BertTokenizer
from bertbook.vocabulary import (
    count_words,
    train_wordpiece,
    trained_vocabulary,
)


def _first(documents, characters):
    for document in documents:
        if characters <= 0:
            return
        yield document
        characters -= len(document)


def learn_tokenizer(
    corpus: str,
    vocab_size: int = 8192,
    *,
    characters: int = 200_000_000,
    show_progress: bool = False,
) -> BertTokenizer:
    """A tokenizer with a vocabulary of the corpus's training part.

    Words are counted in the first `characters` of it; an embedded corpus is
    counted whole, once, and its vocabulary kept. A small corpus gives fewer
    pieces than `vocab_size`: the length of the vocabulary counts. Raises
    ValueError where there are no words, and as `corpus_documents` does.
    """
    options = {"show_progress": show_progress}
    if corpus in SOURCES:
        found = trained_vocabulary(corpus, vocab_size, **options)
        return BertTokenizer(found)
    documents = corpus_documents(corpus, TRAIN)
    words = count_words(_first(documents, characters))
    if not words:
        raise ValueError(_too_few(corpus))
    options["limit_alphabet"] = vocab_size // 4
    return BertTokenizer(train_wordpiece(words, vocab_size, **options))


# %% book/pretraining_text.md#a-vocabulary-of-its-own a375ceba
def _too_few(corpus):
    counts = {
        split: sum(1 for _ in corpus_documents(corpus, split))
        for split in (TRAIN, HELD_OUT)
    }
    return (
        f"{corpus} gives {counts[TRAIN]} training and {counts[HELD_OUT]} "
        "held-out documents (a tenth is held out, by the hash of the "
        "text), and both are needed; give a corpus of a hundred documents "
        "or more, with a blank line after each where it is a text file"
    )


# %% book/pretraining_text.md#ready-to-train-on 5131efb4
from itertools import islice
from typing import NamedTuple

from bertbook.token_files import TokenFiles, write_token_files

HELD_OUT_LIMIT = 10_000  # documents


class Text(NamedTuple):
    """A corpus, tokenised, in two parts."""

    tokenizer: BertTokenizer
    train: TokenFiles
    held_out: TokenFiles


# %% book/pretraining_text.md#ready-to-train-on 3be9e855
def prepare_text(
    corpus: str,
    folder: str | Path,
    tokenizer: BertTokenizer,
    *,
    workers: int = 1,
    show_progress: bool = False,
) -> Text:
    """Write the token files of both parts below `folder`, or find them.

    Of the held-out part at most HELD_OUT_LIMIT documents are taken. An
    interrupted call is continued by the same call. Raises ValueError where
    a part is empty, and as `corpus_documents` and `write_token_files` do.
    """
    here = corpus in SOURCES or Path(corpus).exists()
    limits = {HELD_OUT: HELD_OUT_LIMIT, TRAIN: None}
    parts = {}
    for split, limit in limits.items():
        parts[split] = write_token_files(
            islice(corpus_documents(corpus, split), limit),
            tokenizer,
            Path(folder) / split,
            workers=workers,
            source=None if here else corpus,
            show_progress=show_progress,
        )
        if not parts[split].pieces:
            raise ValueError(_too_few(corpus))
    return Text(tokenizer, parts[TRAIN], parts[HELD_OUT])
