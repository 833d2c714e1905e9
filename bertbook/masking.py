"""Masking

Chooses which pieces of a row to hide, and what to put in their place: a
pure function of the seed, the epoch and the number of the row.

The page: https://bertbook.github.io/bertbook/book/masking.html
"""

# Tangled from book/masking.md (68382faf): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "MaskedRows",
    "Masking",
    "Owners",
    "Pieces",
    "SPAN_LIMIT",
    "SPAN_P",
    "choose_positions",
    "draw_numbers",
    "example_generator",
    "find_owners",
    "mask_rows",
    "rate_at",
    "spread_labels",
]


# %% book/masking.md#one-random-number-for-each-piece 029811f1
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def example_generator(
    seed: int, epoch: int, example: int
) -> np.random.Generator:
    """The random numbers of one row in one epoch, and of no other.

    Philox is a counter put through a cipher (Salmon et al., 2011): the key
    is the seed, and the upper half of the counter is the row's address.
    None of the three may be negative.
    """
    counter = [0, 0, example, epoch]
    bits = np.random.Philox(key=seed, counter=counter)
    return np.random.Generator(bits)


# %% book/masking.md#one-random-number-for-each-piece 93d08f73
def draw_numbers(
    seed: int, epoch: int, examples: Int[np.ndarray, " rows"], seq: int
) -> Float[Tensor, "4 rows seq"]:
    """Four numbers in [0, 1) for each position of each row."""
    numbers = np.empty((len(examples), 4, seq), np.float32)
    for row, example in zip(numbers, examples):
        generator = example_generator(seed, epoch, int(example))
        generator.random(out=row, dtype=np.float32)
    return torch.from_numpy(numbers).transpose(0, 1)


# %% book/masking.md#what-may-be-hidden fcf7ea37
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Pieces:
    """What masking must know of a vocabulary."""

    mask_id: int
    special: Bool[Tensor, " vocab"]  # never hidden, never put in
    continues: Bool[Tensor, " vocab"]  # ##pieces: inside a word
    ordinary: Int[Tensor, " ordinary"]  # the ids that may be put in

    @classmethod
    def of(cls, tokenizer) -> "Pieces":
        """Those of a `BertTokenizer`. ValueError without [MASK]."""
        vocab = tokenizer.get_vocab()
        if tokenizer.mask_token not in vocab:
            raise ValueError(
                f"the vocabulary has no {tokenizer.mask_token}; train it "
                "with the special tokens of BERT"
            )
        special = torch.zeros(max(vocab.values()) + 1, dtype=torch.bool)
        special[tokenizer.all_special_ids] = True
        continues, ordinary = torch.zeros(2, len(special)).bool()
        for piece, number in vocab.items():
            unused = re.fullmatch(r"\[unused\d+\]", piece)
            continues[number] = piece.startswith("##")
            ordinary[number] = not (unused or special[number])
        mask_id = vocab[tokenizer.mask_token]
        return cls(mask_id, special, continues, ordinary.nonzero()[:, 0])


# %% book/masking.md#the-recipe ece37029
@dataclass(frozen=True)
class Masking:
    """How pieces are hidden; the defaults are BERT's (section 3.1)."""

    rate: float = 0.15  # of the ordinary pieces of a row
    unit: str = "piece"  # "piece", "word" or "span"
    count: str = "exact"  # "exact", or "independent": a coin for each unit
    mask: float = 0.8  # of the chosen become [MASK],
    random: float = 0.1  # become a random piece; the rest stay

    def __post_init__(self):
        if not 0 < self.rate <= 1:
            raise ValueError(
                f"rate={self.rate!r} is no share; give more than 0 and at "
                "most 1, such as 0.15"
            )
        for name, known in (
            ("unit", ("piece", "word", "span")),
            ("count", ("exact", "independent")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not known; give "
                    f"one of {', '.join(known)}"
                )
        shares = self.mask >= 0 and self.random >= 0
        if not (shares and self.mask + self.random <= 1 + 1e-9):
            raise ValueError(
                f"mask={self.mask} and random={self.random} are no shares "
                "of the chosen pieces; give two that sum to at most 1"
            )


# %% book/masking.md#pieces-words-spans d8dff821
SPAN_P, SPAN_LIMIT = 0.2, 10  # Joshi et al. (2020), section 3.1


def _span_starts(starts, numbers):
    """Which words begin a span of geometric length, at most ten words."""
    inside = 1 - (1 - SPAN_P) ** SPAN_LIMIT  # the chance of a length <= 10
    lengths = torch.log1p(-numbers * inside) / np.log(1 - SPAN_P)
    ends = lengths.ceil().clamp(1, SPAN_LIMIT).long().cumsum(1)
    rows, seq = starts.shape
    first = torch.zeros(rows, seq + 1, dtype=torch.bool)
    first.scatter_(1, ends.clamp(max=seq), True)
    first[:, 0] = True
    words = starts.long().cumsum(1) - 1
    return starts & first.gather(1, words)


# %% book/masking.md#pieces-words-spans 7f767a5d
def _word_starts(input_ids, pieces):
    """Where a word begins; a special token is a word of its own."""
    special = pieces.special[input_ids]
    starts = ~pieces.continues[input_ids] | special
    return starts | _after(special)


def _after(special):
    """The first position and those that follow a special token."""
    return torch.nn.functional.pad(special[:, :-1], (1, 0), value=True)


# %% book/masking.md#pieces-words-spans 115078f8
from typing import NamedTuple


class Owners(NamedTuple):
    """Where the word, and the unit, of each position begin."""

    words: Int[Tensor, "rows seq"]
    units: Int[Tensor, "rows seq"]


def find_owners(
    input_ids: Int[Tensor, "rows seq"],
    pieces: Pieces,
    unit: str,
    numbers: Float[Tensor, "rows seq"],
) -> Owners:
    """The owners of all positions; `numbers` decide how long spans are.

    Where the unit is a piece, each piece counts as a word.
    """
    places = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    if unit == "piece":
        return Owners(places, places)
    starts = units = _word_starts(input_ids, pieces)
    if unit == "span":
        special = pieces.special[input_ids]
        units = _span_starts(starts, numbers) | special | _after(special)
    words, units = (
        torch.where(each, places, 0).cummax(1).values
        for each in (starts, units)
    )
    return Owners(words, units)


# %% book/masking.md#choosing 3e89e661
def choose_positions(
    scores: Float[Tensor, "rows seq"],
    words: Int[Tensor, "rows seq"],
    masking: Masking,
) -> tuple[Int[Tensor, "rows width"], Bool[Tensor, "rows width"]]:
    """Which positions to hide, and which of these entries count.

    The lowest scores are chosen, and none of 1 or more; `words` says where
    the word of each position begins. With exact counts, `width` depends on
    the rate and on `seq` only.
    """
    seq = scores.shape[1]
    order = scores.argsort(dim=1, stable=True)
    sorted_scores = scores.gather(1, order)
    if masking.count == "independent":
        chosen = sorted_scores < masking.rate
        width = int(chosen.any(0).sum())
    else:
        ordinary = sorted_scores < 1
        share = ordinary.sum(1, keepdim=True).double() * masking.rate
        wanted = share.round().clamp(min=1).long()
        chosen = (torch.arange(seq) < wanted) & ordinary
        width = round(seq * masking.rate)
    if masking.count == "exact" and masking.unit != "piece":
        chosen = _whole_words(words, order, ordinary, chosen, wanted)
        front = chosen.int().argsort(dim=1, descending=True, stable=True)
        order, chosen = order.gather(1, front), chosen.gather(1, front)
    width = max(1, width)
    return order[:, :width], chosen[:, :width]


# %% book/masking.md#choosing 8b41cccb
def _whole_words(words, order, ordinary, chosen, wanted):
    """`chosen` without the word that is cut; short words take its room."""
    word = words.gather(1, order)
    last = word.gather(1, (wanted - 1).clamp(max=words.shape[1] - 1))
    mine = word == last
    cut = mine & (mine & ~chosen & ordinary).any(1, keepdim=True)
    whole = chosen & ~cut
    sizes = torch.zeros_like(words)
    sizes = sizes.scatter_add(1, words, torch.ones_like(words))
    single = (sizes.gather(1, word) == 1) & ~chosen & ordinary
    room = wanted - whole.sum(1, keepdim=True)
    whole |= single & (single.cumsum(1) <= room)
    return torch.where(whole.any(1, keepdim=True), whole, chosen)


# %% book/masking.md#replacing 7fe178bc
def _replacements(hidden, kind, other, pieces, masking):
    """[MASK], a random piece or the piece itself, by the number `kind`."""
    place = (other.double() * len(pieces.ordinary)).long()
    drawn = pieces.ordinary[place]
    new = torch.where(kind < masking.mask + masking.random, drawn, hidden)
    return torch.where(kind < masking.mask, pieces.mask_id, new)


# %% book/masking.md#replacing 21166f44
from bertbook.losses import IGNORED


class MaskedRows(NamedTuple):
    """Rows with hidden pieces, and what was hidden where."""

    input_ids: Int[Tensor, "rows seq"]
    positions: Int[Tensor, "rows width"]
    labels: Int[Tensor, "rows width"]  # -100 where an entry does not count


def mask_rows(
    input_ids: Int[Tensor, "rows seq"],
    pieces: Pieces,
    masking: Masking,
    seed: int,
    epoch: int,
    examples: Int[np.ndarray, " rows"],
) -> MaskedRows:
    """Hide pieces of `input_ids`: the same for the same address.

    `examples` are the numbers of the rows in the data set, and with the
    `seed` and the `epoch` they decide everything. BERT, section 3.1.
    """
    seq = input_ids.shape[1]
    score, kind, other, length = draw_numbers(seed, epoch, examples, seq)
    words, units = find_owners(input_ids, pieces, masking.unit, length)
    score = score.gather(1, units)
    score = score.masked_fill(pieces.special[input_ids], 2.0)
    if masking.unit == "span":
        kind = kind.gather(1, units)
    positions, chosen = choose_positions(score, words, masking)
    hidden = input_ids.gather(1, positions)
    kind, other = kind.gather(1, positions), other.gather(1, positions)
    new = _replacements(hidden, kind, other, pieces, masking)
    new = torch.where(chosen, new, hidden)
    labels = torch.where(chosen, hidden, IGNORED)
    masked = input_ids.scatter(1, positions, new)
    return MaskedRows(masked, positions, labels)


# %% book/masking.md#a-rate-that-falls e7b16bfa
def rate_at(progress: float, first: float, last: float) -> float:
    """The masking rate after a share `progress` of the run: linear."""
    return first + (last - first) * min(max(progress, 0.0), 1.0)


# %% book/masking.md#for-other-models 5e930319
def spread_labels(rows: MaskedRows) -> Int[Tensor, "rows seq"]:
    """The labels as `BertForMaskedLM` takes them: -100 where none is."""
    spread = torch.full_like(rows.input_ids, IGNORED)
    kept = rows.labels != IGNORED
    at = kept.nonzero()[:, 0], rows.positions[kept]
    return spread.index_put(at, rows.labels[kept])
