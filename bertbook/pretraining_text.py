"""Text for pretraining

Takes a corpus by name, file, folder or hub name; holds some documents out,
trains a vocabulary, and writes both parts as token files.

The page: https://bertbook.github.io/bertbook/book/pretraining_text.html
"""

# Tangled from book/pretraining_text.md (920ccfe4): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "HELD_OUT",
    "Text",
    "corpus_documents",
    "learn_tokenizer",
    "prepare_text",
    "read_documents",
]


# %% book/pretraining_text.md#documents-from-anywhere 4ad3134b
from collections.abc import Iterable, Iterator
from pathlib import Path

from bertbook.corpora import SOURCES, load_corpus, split_of, text_id


def read_documents(path: str | Path) -> Iterator[str]:
    """The documents of a text file, one at a time; a blank line ends one.

    A folder is read file by file, those that end in .txt, sorted. Raises
    ValueError, with file and line, for what is not UTF-8.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
        if not files:
            raise ValueError(
                f"{path} holds no .txt file; give a folder with some"
            )
        for file in files:
            yield from read_documents(file)
        return
    lines = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            text = _decoded(line, path, number).strip()
            if text:
                lines.append(text)
            elif lines:
                yield "\n".join(lines)
                lines = []
    if lines:
        yield "\n".join(lines)


def _decoded(line, path, number):
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise ValueError(
            f"{path}:{number} is not UTF-8; convert the file, for example "
            "by iconv -f latin1 -t utf-8"
        ) from None


# %% book/pretraining_text.md#held-out 78edad26
HELD_OUT = "validation"


def corpus_documents(corpus: str, split: str) -> Iterable[str]:
    """The documents of one split, "train" or "validation", as a stream.

    `corpus` is an embedded name, a text file, a folder, or a name on the
    hub, which is streamed. Where a corpus has no splits of its own, a
    tenth is held out by the hash of each text. Raises as `load_corpus` and
    `read_documents` do.
    """
    if corpus in SOURCES:
        return list(load_corpus(corpus, split)["text"])
    if Path(corpus).exists():
        return (
            text
            for text in read_documents(corpus)
            if (split_of(text_id(text)) == HELD_OUT) == (split == HELD_OUT)
        )
    return (row["text"] for row in load_corpus(corpus, split))


# %% book/pretraining_text.md#ready-to-train-on 455a7b11
from typing import NamedTuple

from bertbook.token_files import TokenFiles, write_token_files
from bertbook.tokenizer import BertTokenizer
from bertbook.vocabulary import train_wordpiece, trained_vocabulary


class Text(NamedTuple):
    """A corpus, tokenised, in two parts."""

    tokenizer: BertTokenizer
    train: TokenFiles
    held_out: TokenFiles


def learn_tokenizer(corpus: str, vocab_size: int = 8192) -> BertTokenizer:
    """A tokenizer with a vocabulary of the corpus's training part."""
    if corpus in SOURCES:
        return BertTokenizer(trained_vocabulary(corpus, vocab_size))
    documents = corpus_documents(corpus, "train")
    return BertTokenizer(train_wordpiece(documents, vocab_size))


def prepare_text(
    corpus: str,
    folder: str | Path,
    tokenizer: BertTokenizer,
    *,
    workers: int = 1,
) -> Text:
    """Write the token files of both parts below `folder`, or find them."""
    parts = [
        write_token_files(
            corpus_documents(corpus, split),
            tokenizer,
            Path(folder) / split,
            workers=workers,
        )
        for split in ("train", HELD_OUT)
    ]
    return Text(tokenizer, *parts)
