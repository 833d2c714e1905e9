"""Sentence pairs

Cuts documents into pairs of segments for BERT's second task, is this the
next sentence, and for ALBERT's, which of the two came first.

The page: https://bertbook.github.io/bertbook/book/sentence_pairs.html
"""

# Tangled from book/sentence_pairs.md (f964654f): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Documents",
    "OBJECTIVES",
    "PairRows",
    "Span",
    "chunk_end",
    "document_generator",
    "next_sentence_pairs",
    "pair_table",
    "random_next",
    "sentence_order_pairs",
    "target_length",
    "truncate_pair",
]


# %% book/sentence_pairs.md#three-documents 7957f67a
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from bertbook.token_files import TokenFiles


class Span(NamedTuple):
    """Pieces that follow each other in one shard."""

    shard: int
    start: int
    stop: int


# %% book/sentence_pairs.md#three-documents 389c6adf
class Documents:
    """Where the documents of token files are, and their sentences."""

    def __init__(self, files: TokenFiles):
        self.folder, self.sentences, places = files.folder, [], []
        for number, shard in enumerate(files.shards):
            self.sentences.append(shard["sentences"].astype(np.int32))
            first = np.array(shard["documents"])
            shards = np.full(len(first) - 1, number)
            places.append(np.stack([shards, first[:-1], first[1:]], 1))
        self.places = np.concatenate(places)

    def __len__(self):
        return len(self.places)

    def bounds(self, number: int) -> tuple[int, list[int]]:
        """The shard of a document, and where its sentences start in it.

        Ends with where the last one stops.
        """
        shard, first, last = self.places[number].tolist()
        bounds = self.sentences[shard][first : last + 1].tolist()
        bounds[-1] -= 1  # its [SEP]
        return shard, bounds


# %% book/sentence_pairs.md#a-pair-by-hand deb60beb
from bisect import bisect_left


def chunk_end(
    bounds: list[int], first: int, target: int, least: int = 1
) -> int:
    """The sentence after a chunk of at least `target` pieces.

    The chunk starts with the sentence `first` of the document that
    `bounds` describe, and has `least` sentences or more, as far as there
    are any.
    """
    end = bisect_left(bounds, bounds[first] + target, first + least)
    return min(end, len(bounds) - 1)


# %% book/sentence_pairs.md#a-pair-by-hand a340ed09
def document_generator(
    seed: int, epoch: int, document: int
) -> np.random.Generator:
    """The random numbers of one document in one epoch, and of no other.

    As `example_generator` of masking, in another lane of the counter, so
    that no document draws what a row draws.
    """
    counter = [0, 1, document, epoch]
    bits = np.random.Philox(key=seed, counter=counter)
    return np.random.Generator(bits)


def target_length(
    room: int, short: float, draw: np.random.Generator
) -> int:
    """`room`, or, in a share `short` of the documents, 2 to `room`."""
    if draw.random() < short:
        return int(draw.integers(2, room + 1))
    return room


# %% book/sentence_pairs.md#a-pair-by-hand 001ff703
from collections.abc import Iterator


def next_sentence_pairs(
    documents: Documents,
    number: int,
    target: int,
    draw: np.random.Generator,
) -> Iterator[tuple[Span, Span, int]]:
    """A, B and the label of each pair that one document gives.

    Label 0: B follows A. Label 1: B is from another document, and the
    sentences whose place it took begin the next pair. BERT, section 3.1,
    task 2, as its published generator does it.
    """
    shard, bounds = documents.bounds(number)
    first, last = 0, len(bounds) - 1
    while first < last:
        end = chunk_end(bounds, first, target)
        split = int(draw.integers(first + 1, max(end, first + 2)))
        a = Span(shard, bounds[first], bounds[split])
        if split == end or draw.random() < 0.5:
            rest = target - (a.stop - a.start)
            yield a, random_next(documents, number, rest, draw), 1
            first = split
        else:
            yield a, Span(shard, a.stop, bounds[end]), 0
            first = end


# %% book/sentence_pairs.md#a-pair-by-hand c2edda3f
def random_next(
    documents: Documents,
    number: int,
    target: int,
    draw: np.random.Generator,
) -> Span:
    """Sentences of any document but `number`, from a random one on.

    As many as reach `target` pieces or the document's end.
    """
    other = int(draw.integers(len(documents) - 1))
    shard, bounds = documents.bounds(other + (other >= number))
    first = int(draw.integers(len(bounds) - 1))
    end = chunk_end(bounds, first, target)
    return Span(shard, bounds[first], bounds[end])


# %% book/sentence_pairs.md#what-does-not-fit b414fa45
def truncate_pair(
    a: Span, b: Span, room: int, draw: np.random.Generator
) -> tuple[Span, Span]:
    """Take pieces from the longer of two until `room` holds both.

    Each piece is taken from the front or from the back by a coin.
    """
    first, second = a.stop - a.start, b.stop - b.start
    if first + second <= room:
        return a, b
    kept = min(first, max(room - second, room - room // 2))
    return _shorten(a, kept, draw), _shorten(b, room - kept, draw)


def _shorten(span, length, draw):
    """`length` pieces of `span`; so many coins are one binomial draw."""
    start = span.start
    if too_many := span.stop - start - length:
        start += int(draw.binomial(too_many, 0.5))
    return Span(span.shard, start, start + length)


# %% book/sentence_pairs.md#which-came-first eae6fbb7
def sentence_order_pairs(
    documents: Documents,
    number: int,
    target: int,
    draw: np.random.Generator,
) -> Iterator[tuple[Span, Span, int]]:
    """A, B and the label of each pair that one document gives.

    Label 0: B follows A. Label 1: A follows B. A document of one sentence
    gives none. ALBERT, section 3.1.
    """
    shard, bounds = documents.bounds(number)
    first, last = 0, len(bounds) - 1
    while first < last and last > 1:
        end = chunk_end(bounds, first, target, least=2)
        first = min(first, end - 2)  # a lone last one takes one before it
        split = int(draw.integers(first + 1, end))
        a = Span(shard, bounds[first], bounds[split])
        b = Span(shard, bounds[split], bounds[end])
        label = int(draw.random() < 0.5)
        yield (b, a, 1) if label else (a, b, 0)
        first = end


# %% book/sentence_pairs.md#the-pairs-of-an-epoch ecef1273
from array import array

OBJECTIVES = {"nsp": next_sentence_pairs, "sop": sentence_order_pairs}


def pair_table(
    files: TokenFiles,
    seq_length: int,
    seed: int,
    epoch: int,
    objective: str = "nsp",
    short: float = 0.1,
) -> Int[np.ndarray, "pairs 7"]:
    """All pairs of an epoch, seven 32-bit integers each.

    The shard, start and stop of A, those of B, and the label. The same for
    the same seed and epoch. Raises as `PairRows` does.
    """
    documents, room = Documents(files), seq_length - 3
    _check_pairs(documents, room, objective, short)
    table = array("i")
    for number in range(len(documents)):
        draw = document_generator(seed, epoch, number)
        target = target_length(room, short, draw)
        pairs = OBJECTIVES[objective](documents, number, target, draw)
        for a, b, label in pairs:
            a, b = truncate_pair(a, b, room, draw)
            table.extend((*a, *b, label))
    return np.frombuffer(table, np.int32).reshape(-1, 7)


# %% book/sentence_pairs.md#the-pairs-of-an-epoch b86d7320
def _check_pairs(documents, room, objective, short):
    """Refuse, in one sentence, what gives no pairs."""
    if objective not in OBJECTIVES:
        raise ValueError(
            f"objective={objective!r} makes no pairs; give one of "
            f"{', '.join(OBJECTIVES)}"
        )
    if room < 2 or not 0 <= short <= 1:
        raise ValueError(
            f"seq_length={room + 3} and short={short} are given, and 5 or "
            "more and a share of 0 to 1 are expected; change them"
        )
    count, where = len(documents), documents.folder
    if objective == "nsp" and count < 2:
        raise ValueError(
            f"{where} holds {count} document(s), and a random "
            "next sentence is from another one; give two or more (a blank "
            "line ends a document), or objective='sop'"
        )
    sentences = documents.places[:, 2] - documents.places[:, 1]
    if not (sentences > 1).any():
        raise ValueError(
            f"{where} holds no document of two sentences, so none has a "
            "next one; leave no blank line between the sentences of a "
            "document"
        )


# %% book/sentence_pairs.md#rows 7a326318
def _write_pair(row, a, b, tokenizer):
    """Put [CLS] A [SEP] B [SEP] into `row`; where B starts and ends."""
    split = len(a) + 2
    end = split + len(b) + 1
    row[0] = tokenizer.cls_token_id
    row[[split - 1, end - 1]] = tokenizer.sep_token_id
    row[1 : split - 1], row[split : end - 1] = a, b
    return split, end


def _empty_rows(count, seq_length, pad):
    names = "input_ids", "token_type_ids", "attention_mask"
    rows = {name: np.zeros((count, seq_length), int) for name in names}
    rows["input_ids"][:] = pad
    return rows


# %% book/sentence_pairs.md#rows ec044a21
class PairRows:
    """Rows of two segments: [CLS] A [SEP] B [SEP] [PAD] …

    `objective` is "nsp" (label 1: B is from another document) or "sop"
    (label 1: A follows B); `short` is the share of documents whose pairs
    are shorter than a row. Raises ValueError where the files give no such
    pairs.
    """

    def __init__(
        self,
        files: TokenFiles,
        seq_length: int,
        tokenizer,
        seed: int = 0,
        objective: str = "nsp",
        short: float = 0.1,
    ):
        _check_pairs(Documents(files), seq_length - 3, objective, short)
        self.files, self.tokenizer = files, tokenizer
        self.seq_length, self.seed = seq_length, seed
        self.kind = objective, short
        self.latest = None, None  # an epoch and its table

    def table(self, epoch: int) -> Int[np.ndarray, "pairs 7"]:
        """The `pair_table` of an epoch."""
        if self.latest[0] != epoch:
            plan = self.files, self.seq_length, self.seed, epoch
            self.latest = epoch, pair_table(*plan, *self.kind)
        return self.latest[1]

    def count(self, epoch: int) -> int:
        """How many pairs there are, which differs between epochs."""
        return len(self.table(epoch))

    def rows(self, epoch: int, examples: np.ndarray) -> dict:
        """The model's inputs, and labels, of the pairs with these numbers.

        `input_ids`, `token_type_ids` and `attention_mask` are (rows, seq),
        and `next_sentence_label` is (rows,).
        """
        return _rows_of(self, self.table(epoch)[examples])


# %% book/sentence_pairs.md#rows 46dbee44
def _rows_of(source, pairs):
    files, tokenizer = source.files, source.tokenizer
    pad = tokenizer.pad_token_id
    rows = _empty_rows(len(pairs), source.seq_length, pad)
    for number, pair in enumerate(pairs.tolist()):
        a, b = (
            files.shards[shard]["ids"][start:stop]
            for shard, start, stop in (pair[:3], pair[3:6])
        )
        row = rows["input_ids"][number]
        split, end = _write_pair(row, a, b, tokenizer)
        rows["token_type_ids"][number, split:end] = 1
        rows["attention_mask"][number, :end] = 1
    rows["next_sentence_label"] = pairs[:, 6].astype(int)
    return rows
