"""Masking

Chooses which pieces of a row to hide, and what to put in their place: a
pure function of the seed, the epoch and the number of the row.

The page: https://bertbook.github.io/bertbook/book/masking.html
"""

# Tangled from book/masking.md (949cb0b7): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "MaskedRows",
    "Masking",
    "Pieces",
    "SPAN_LIMIT",
    "SPAN_P",
    "choose_positions",
    "draw_numbers",
    "example_generator",
    "mask_rows",
    "rate_at",
    "spread_labels",
    "unit_scores",
]


# %% book/masking.md#one-random-number-for-each-piece b27c65e9
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
    """
    counter = [0, 0, example, epoch]
    return np.random.Generator(np.random.Philox(seed, counter=counter))


# %% book/masking.md#one-random-number-for-each-piece 45da7dda
def draw_numbers(
    seed: int, epoch: int, examples: Int[np.ndarray, " rows"], seq: int
) -> Float[Tensor, "3 rows seq"]:
    """Three numbers in [0, 1) for each position of each row."""
    drawn = [
        example_generator(seed, epoch, int(example)).random(
            (3, seq), np.float32
        )
        for example in examples
    ]
    return torch.from_numpy(np.stack(drawn, axis=1))


# %% book/masking.md#what-may-be-hidden 27a2f0dc
from dataclasses import dataclass


@dataclass(frozen=True)
class Pieces:
    """What masking must know of a vocabulary."""

    mask_id: int
    special: Bool[Tensor, " vocab"]  # never hidden, never put in
    continues: Bool[Tensor, " vocab"]  # ##pieces: inside a word
    ordinary: Int[Tensor, " ordinary"]  # the ids that are not special

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
        continues = torch.zeros_like(special)
        inner = [at for piece, at in vocab.items() if piece[:2] == "##"]
        continues[inner] = True
        ordinary = (~special).nonzero()[:, 0]
        return cls(
            vocab[tokenizer.mask_token], special, continues, ordinary
        )


# %% book/masking.md#the-recipe b1ca7415
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
        if min(self.mask, self.random) < 0 or self.mask + self.random > 1:
            raise ValueError(
                f"mask={self.mask} and random={self.random} are no shares "
                "of the chosen pieces; give two that sum to at most 1"
            )


# %% book/masking.md#units b53009a2
SPAN_P, SPAN_LIMIT = 0.2, 10  # Joshi et al. (2020), section 3.1


def _word_starts(input_ids, pieces):
    """Where a word begins; a special token is a word of its own."""
    special = pieces.special[input_ids]
    starts = ~pieces.continues[input_ids] | special
    starts[:, 1:] |= special[:, :-1]
    starts[:, 0] = True
    return starts


def _span_starts(starts, numbers):
    """Which words begin a span: lengths are geometric, cut at ten words."""
    lengths = (torch.log1p(-numbers) / np.log(1 - SPAN_P)).ceil()
    ends = lengths.clamp(1, SPAN_LIMIT).long().cumsum(1)
    first = torch.zeros_like(starts)
    seq = starts.shape[1]
    first.scatter_(1, ends.clamp(max=seq - 1), True)
    first[:, 0] = True
    words = starts.long().cumsum(1) - 1
    return starts & first.gather(1, words)


# %% book/masking.md#units 80d09113
def unit_scores(
    input_ids: Int[Tensor, "rows seq"],
    pieces: Pieces,
    masking: Masking,
    numbers: Float[Tensor, "3 rows seq"],
) -> tuple[Float[Tensor, "rows seq"], Int[Tensor, "rows seq"]]:
    """A random score for each position, and the number of its word.

    Pieces of one unit share a score. A special token scores 2, so that it
    comes last.
    """
    starts = _word_starts(input_ids, pieces)
    words = starts.long().cumsum(1)
    if masking.unit == "piece":
        starts = torch.ones_like(starts)
        words = starts.long().cumsum(1)
    elif masking.unit == "span":
        special = pieces.special[input_ids]
        starts = _span_starts(starts, numbers[2]) | special
        starts[:, 1:] |= special[:, :-1]
    places = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    owner = torch.where(starts, places, 0).cummax(1).values
    scores = numbers[0].gather(1, owner)
    return scores.masked_fill(pieces.special[input_ids], 2.0), words


# %% book/masking.md#choosing 12137c4a
def choose_positions(
    scores: Float[Tensor, "rows seq"],
    words: Int[Tensor, "rows seq"],
    masking: Masking,
) -> tuple[Int[Tensor, "rows width"], Bool[Tensor, "rows width"]]:
    """Which positions to hide, and which of these entries count.

    With exact counts, `width` depends on the rate and on `seq` only.
    """
    rows, seq = scores.shape
    ordinary = (scores < 2).sum(1, keepdim=True)
    order = scores.argsort(dim=1, stable=True)
    rank = torch.arange(seq).expand(rows, seq)
    if masking.count == "independent":
        chosen = scores.gather(1, order) < masking.rate
        width = max(1, int(chosen.sum(1).max()))
        return order[:, :width], chosen[:, :width]
    wanted = (ordinary * masking.rate).round().clamp(min=1)
    chosen = rank < torch.minimum(wanted, ordinary)
    word = words.gather(1, order)
    last = word.gather(1, (wanted.long() - 1).clamp(max=seq - 1))
    cut = (word == last) & ~chosen
    whole = chosen & ~((word == last) & cut.any(1, keepdim=True))
    chosen = torch.where(whole.any(1, keepdim=True), whole, chosen)
    width = max(1, round(seq * masking.rate))
    return order[:, :width], chosen[:, :width]


# %% book/masking.md#replacing b5f08910
from typing import NamedTuple

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
    `seed` and the `epoch` they decide everything. BERT, section 3.1, task 1.
    """
    numbers = draw_numbers(seed, epoch, examples, input_ids.shape[1])
    scores, words = unit_scores(input_ids, pieces, masking, numbers)
    positions, chosen = choose_positions(scores, words, masking)
    hidden = input_ids.gather(1, positions)
    kind = numbers[1].gather(1, positions)
    new = _replacements(hidden, kind, pieces, masking)
    new = torch.where(chosen, new, hidden)
    labels = torch.where(chosen, hidden, IGNORED)
    return MaskedRows(
        input_ids.scatter(1, positions, new), positions, labels
    )


# %% book/masking.md#replacing 71eeaf8c
def _replacements(hidden, kind, pieces, masking):
    """[MASK], a random piece or the piece itself, by the number `kind`."""
    stop = masking.mask + masking.random
    share = ((kind - masking.mask) / max(masking.random, 1e-9)).clamp(0, 1)
    place = (share * len(pieces.ordinary)).long()
    other = pieces.ordinary[place.clamp(max=len(pieces.ordinary) - 1)]
    new = torch.where(kind < stop, other, hidden)
    return torch.where(kind < masking.mask, pieces.mask_id, new)


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
