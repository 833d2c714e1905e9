"""Sentence pairs

Cuts documents into pairs of segments for BERT's second task, is this the
next sentence, and for ALBERT's, which of the two came first.

The page: https://bertbook.github.io/bertbook/book/sentence_pairs.html
"""

# Tangled from book/sentence_pairs.md (cbc6b758): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "Documents",
    "OBJECTIVES",
    "PairRows",
    "Span",
    "chunk_end",
    "document_generator",
    "next_sentence_pairs",
    "pair_table",
    "sentence_order_pairs",
    "target_length",
    "truncate_pair",
]


# %% book/sentence_pairs.md#where-sentences-are d2a9a5b6
from typing import NamedTuple

import numpy as np

from bertbook.token_files import TokenFiles


class Span(NamedTuple):
    """Pieces that follow each other in one shard: whole sentences."""

    shard: int
    start: int
    stop: int


class Documents:
    """The documents that have text, and where their sentences are."""

    def __init__(self, files: TokenFiles):
        self.folder = files.folder
        self.sentences = [np.asarray(s["sentences"]) for s in files.shards]
        rows = [_places(n, shard) for n, shard in enumerate(files.shards)]
        self.places = np.concatenate(rows)

    def __len__(self):
        return len(self.places)

    def bounds(self, number: int) -> tuple[int, list[int]]:
        """The shard of a document, and where its sentences start in it.

        Ends with where the last one stops.
        """
        shard, first, last, stop = self.places[number].tolist()
        starts = self.sentences[shard][first:last].tolist()
        return shard, [*starts, stop]


# %% book/sentence_pairs.md#where-sentences-are 75c690c0
def _places(number, shard):
    """Shard, first sentence, the one after, and the end of each text."""
    first = np.asarray(shard["documents"])
    has_text = first[:-1] < first[1:]
    begin, end = first[:-1][has_text], first[1:][has_text]
    # Before the next sentence stands one [SEP] for each document that ends
    # there: this one, and those without text behind it.
    seps = np.searchsorted(first, end, "right")
    seps -= np.searchsorted(first, end, "left")
    stop = shard["sentences"][end] - seps
    return np.stack([np.full(len(end), number), begin, end, stop], axis=1)


# %% book/sentence_pairs.md#by-hand deb60beb
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


# %% book/sentence_pairs.md#by-hand 073eba50
def document_generator(
    seed: int, epoch: int, document: int
) -> np.random.Generator:
    """The random numbers of one document in one epoch, and of no other.

    As `example_generator` of masking, in another lane of the counter, so
    that no document draws what a row draws.
    """
    counter = [0, 1, document, epoch]
    return np.random.Generator(np.random.Philox(seed, counter=counter))


def target_length(
    room: int, short: float, draw: np.random.Generator
) -> int:
    """`room`, or, in a share `short` of the documents, 2 to `room`."""
    if draw.random() < short:
        return int(draw.integers(2, room + 1))
    return room


# %% book/sentence_pairs.md#by-hand bba8bb1d
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
            yield a, _random_next(documents, number, rest, draw), 1
            first = split
        else:
            yield a, Span(shard, a.stop, bounds[end]), 0
            first = end


# %% book/sentence_pairs.md#by-hand fb76bbf2
def _random_next(documents, number, target, draw):
    """Sentences from a random place of a random other document."""
    other = int(draw.integers(len(documents) - 1))
    shard, bounds = documents.bounds(other + (other >= number))
    first = int(draw.integers(len(bounds) - 1))
    end = chunk_end(bounds, first, target)
    return Span(shard, bounds[first], bounds[end])


# %% book/sentence_pairs.md#order e1875aec
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
        yield (b, a, label) if label else (a, b, label)
        first = end


# %% book/sentence_pairs.md#truncation 097887d6
def truncate_pair(
    a: Span, b: Span, room: int, draw: np.random.Generator
) -> tuple[Span, Span]:
    """Take pieces from the longer of two until `room` holds both.

    Each piece is taken from the front or from the back by a coin.
    """
    lengths = a.stop - a.start, b.stop - b.start
    if sum(lengths) <= room:
        return a, b
    kept = min(lengths[0], max(room - lengths[1], room - room // 2))
    return _shorten(a, kept, draw), _shorten(b, room - kept, draw)


def _shorten(span, length, draw):
    """`length` pieces of `span`; so many coins are one binomial draw."""
    start = span.start
    if too_many := span.stop - start - length:
        start += int(draw.binomial(too_many, 0.5))
    return Span(span.shard, start, start + length)


# %% book/sentence_pairs.md#a-table b23c0ff1
from array import array

OBJECTIVES = {"nsp": next_sentence_pairs, "sop": sentence_order_pairs}


def pair_table(
    files: TokenFiles,
    seq_length: int,
    seed: int,
    epoch: int,
    objective: str = "nsp",
    short: float = 0.1,
) -> np.ndarray:
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


# %% book/sentence_pairs.md#a-table 934e7242
def _check_pairs(documents, room, objective, short):
    """Refuse, in one sentence, what gives no pairs."""
    if objective not in OBJECTIVES:
        raise ValueError(
            f"objective={objective!r} makes no pairs; give one of "
            f"{', '.join(OBJECTIVES)}"
        )
    if room < 2 or not 0 <= short <= 1:
        raise ValueError(
            f"seq_length={room + 3} and short={short} are given, and at "
            "least 5 pieces and a share of 0 to 1 are expected"
        )
    count, where = len(documents), documents.folder
    if objective == "nsp" and count < 2:
        raise ValueError(
            f"{where} holds {count} document(s) with text, and a random "
            "next sentence is from another document; give two or more "
            "(a blank line ends a document)"
        )
    lengths = documents.places[:, 2] - documents.places[:, 1]
    if objective == "sop" and not (lengths > 1).any():
        raise ValueError(
            f"{where} holds no document of two sentences, which have an "
            "order; give longer documents"
        )


# %% book/sentence_pairs.md#rows 066a5c2c
class PairRows:
    """Rows of two segments: [CLS] A [SEP] B [SEP] [PAD] …

    `objective` is "nsp" (label 1: B is from another document) or "sop"
    (label 1: A follows B); `short` the share of documents whose pairs are
    shorter than a row. Only the table of the latest epoch is kept. Raises
    ValueError where the files cannot give such pairs.
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
        documents = Documents(files)
        _check_pairs(documents, seq_length - 3, objective, short)
        self.files, self.seq_length, self.seed = files, seq_length, seed
        self.kind = objective, short
        self.cls, self.sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.pad = tokenizer.pad_token_id
        self.latest = None, None

    def table(self, epoch: int) -> np.ndarray:
        """`pair_table` of the epoch."""
        if self.latest[0] != epoch:
            plan = self.seq_length, self.seed, epoch, *self.kind
            self.latest = epoch, pair_table(self.files, *plan)
        return self.latest[1]

    def count(self, epoch: int) -> int:
        """How many pairs there are, which differs between epochs."""
        return len(self.table(epoch))

    def rows(
        self, epoch: int, examples: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The model's inputs and labels of the pairs with these numbers."""
        pairs = self.table(epoch)[examples]
        shape = len(pairs), self.seq_length
        names = "input_ids", "token_type_ids", "attention_mask"
        rows = {name: np.zeros(shape, np.int64) for name in names}
        rows["input_ids"][:] = self.pad
        for number, pair in enumerate(pairs.tolist()):
            row = rows["input_ids"][number]
            split, end = self._fill(row, *pair[:6])
            rows["token_type_ids"][number, split:end] = 1
            rows["attention_mask"][number, :end] = 1
        rows["next_sentence_label"] = pairs[:, 6].astype(np.int64)
        return rows

    def _fill(self, row, *spans):
        """Write both segments; where the second starts and ends."""
        stops, row[0], at = [], self.cls, 1
        for shard, start, stop in (spans[:3], spans[3:]):
            end = at + stop - start
            row[at:end] = self.files.shards[shard]["ids"][start:stop]
            row[end] = self.sep
            at = end + 1
            stops.append(at)
        return stops
