"""Diagnosis

Says what loss to expect of a text and a vocabulary, what is wrong with a
text before training, and what went wrong in a run after it.

The page: https://bertbook.github.io/bertbook/book/diagnosis.html
"""

# Tangled from book/diagnosis.md (d2b6b811): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Curves",
    "ExpectedLosses",
    "count_pieces",
    "diagnose_run",
    "diagnose_text",
    "expected_losses",
    "fingerprints",
    "read_curves",
]


# %% book/diagnosis.md#what-to-expect 88bae3a8
import math
from typing import NamedTuple

import numpy as np

from bertbook.masking import Pieces
from bertbook.token_files import TokenFiles


def count_pieces(files: TokenFiles, size: int) -> np.ndarray:
    """How often each of `size` pieces occurs, counted shard by shard."""
    counts = np.zeros(size, np.int64)
    for shard in files.shards:
        counts += np.bincount(shard["ids"], minlength=size)
    return counts


# %% book/diagnosis.md#what-to-expect 41835bcf
class ExpectedLosses(NamedTuple):
    """Levels at which a masked loss rests, in nats."""

    uniform: float  # all pieces equally likely: ln of their number
    unigram: float  # by frequency alone: the plateau


def expected_losses(files: TokenFiles, tokenizer) -> ExpectedLosses:
    """What a model loses that knows nothing, or only the frequencies.

    `unigram` is the entropy of the pieces that may be hidden. Raises
    ValueError where `files` hold none of them.
    """
    special = Pieces.of(tokenizer).special.numpy()
    counts = count_pieces(files, len(special))[~special]
    if not counts.any():
        raise ValueError(
            f"{files.folder} holds no ordinary piece; give text that the "
            "vocabulary can spell"
        )
    shares = counts[counts > 0] / counts.sum()
    entropy = -(shares * np.log(shares)).sum()
    return ExpectedLosses(math.log(len(special)), float(entropy))


# %% book/diagnosis.md#faults-of-a-text 472ff604
def fingerprints(ids: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """A number for each part of `ids`; equal parts have equal numbers.

    Part k goes from `bounds[k]` to `bounds[k + 1]`, and none is empty.
    """
    lengths = np.diff(bounds)
    if len(lengths) == 0:
        return np.zeros(0, np.uint64)
    generator = np.random.default_rng(0)
    factors = generator.integers(2**63, size=lengths.max(), dtype="uint64")
    places = np.arange(len(ids)) - np.repeat(bounds[:-1], lengths)
    values = np.asarray(ids).astype(np.uint64) + np.uint64(1)
    values *= (factors * np.uint64(2) + np.uint64(1))[places]
    return np.add.reduceat(values, bounds[:-1])


# %% book/diagnosis.md#faults-of-a-text 5cadd40a
_LOOK_AT = 20_000_000  # pieces; more would tell the same


class _Marks(NamedTuple):
    """Fingerprints of the documents and the longer sentences of a text."""

    documents: np.ndarray
    sentences: np.ndarray


def _marks_of(files):
    documents, sentences = ([np.zeros(0, np.uint64)] for _ in range(2))
    seen = 0
    for shard in files.shards:
        if seen > _LOOK_AT:
            break
        ids, bounds = shard["ids"], np.asarray(shard["sentences"])
        seen += len(ids)
        firsts = bounds[shard["documents"]]
        documents.append(fingerprints(ids, firsts))
        long = np.diff(bounds) >= 8
        sentences.append(fingerprints(ids, bounds)[long])
    return _Marks(np.concatenate(documents), np.concatenate(sentences))


def _share_repeated(marks):
    return 1 - len(np.unique(marks)) / max(1, len(marks))


# %% book/diagnosis.md#faults-of-a-text 9e78c95f
def _misfit(files, tokenizer):
    pieces = Pieces.of(tokenizer)
    counts = count_pieces(files, len(pieces.special))
    counts[tokenizer.sep_token_id] = 0  # stands after each document
    unknown = counts[tokenizer.unk_token_id] / max(1, counts.sum())
    words = counts[~pieces.continues.numpy()].sum()
    cure = "train a vocabulary on this text with learn_tokenizer"
    if unknown > 0.01:
        return (
            f"{unknown:.1%} of the pieces are {tokenizer.unk_token}, words "
            f"that the vocabulary cannot spell; {cure}"
        )
    if counts.sum() > 1.5 * words:
        return (
            f"a word takes {counts.sum() / words:.2f} pieces, and 1.1 to "
            f"1.3 is usual: the vocabulary does not fit this text; {cure}"
        )


# %% book/diagnosis.md#faults-of-a-text 65cff3b1
def _repeats(marks):
    documents = _share_repeated(marks.documents)
    sentences = _share_repeated(marks.sentences)
    if documents > 0.01:
        return (
            f"{documents:.1%} of the training documents are copies of "
            "others: the model will remember them, and its training loss "
            "will look better than it is; remove the copies"
        )
    if sentences > 0.05:
        return (
            f"{sentences:.1%} of the longer training sentences are copies "
            "of others, such as headers or licences that stand in many "
            "documents; remove them"
        )


def _leaks(train, held_out):
    shared = np.isin(held_out.documents, train.documents)
    shared = shared.sum() / max(1, len(shared))
    if shared > 0.001:
        return (
            f"{shared:.1%} of the held-out documents are in the training "
            "part too, so the held-out loss will measure memory; remove "
            "the copies, or split by the hash of each text"
        )


# %% book/diagnosis.md#faults-of-a-text b36c085b
def _too_little(train, held_out, seq_length):
    if train.pieces < 500_000:
        return (
            f"the training part has {train.pieces:,} pieces; even a tiny "
            "model reads so few many times and remembers them; give more "
            "text, or begin with a model that is pretrained"
        )
    asked = 0.15 * held_out.pieces // seq_length * seq_length
    if asked < 5000:
        return (
            f"the held-out part has {held_out.pieces:,} pieces, so its "
            f"loss is uncertain by {3 / max(1, asked) ** 0.5:.2f} nats; "
            "hold out more text"
        )


def diagnose_text(
    train: TokenFiles, held_out: TokenFiles, tokenizer, seq_length: int
) -> list[str]:
    """What is wrong with a text, before any training: sentences, or none.

    Each says what was found, what it means and what to do. Rows will have
    `seq_length` pieces.
    """
    marks, others = _marks_of(train), _marks_of(held_out)
    found = (
        _misfit(train, tokenizer),
        _repeats(marks),
        _leaks(marks, others),
        _too_little(train, held_out, seq_length),
    )
    return [sentence for sentence in found if sentence]


# %% book/diagnosis.md#from-a-log-to-curves 64027966
class Curves(NamedTuple):
    """What a log says, as arrays."""

    steps: np.ndarray  # of training
    losses: np.ndarray
    norms: np.ndarray
    asked: np.ndarray  # the steps after which held-out text was read
    held_out: np.ndarray

    def around(self, step: int) -> float:
        """The mean training loss of a twentieth of the run up to `step`."""
        width = max(5, len(self.steps) // 20)
        end = max(1, np.searchsorted(self.steps, step, side="right"))
        return float(self.losses[max(0, end - width) : end].mean())


def read_curves(records: list[dict]) -> Curves:
    """The curves of a log's records, in order."""
    trained = [each for each in records if "loss" in each]
    asked = [each for each in records if "held_out_loss" in each]
    return Curves(
        np.array([each["step"] for each in trained], int),
        np.array([each.get("mlm_loss", each["loss"]) for each in trained]),
        np.array([each.get("gradient_norm", 0.0) for each in trained]),
        np.array([each["step"] for each in asked], int),
        np.array([each["held_out_loss"] for each in asked]),
    )


# %% book/diagnosis.md#faults-of-a-run e4af5920
def _no_number(curves, expected):
    wrong = curves.steps[~np.isfinite(curves.losses + curves.norms)]
    if len(wrong):
        return (
            f"the loss or the gradient is no number in step {wrong[0]}; "
            "lower the learning rate, and look at the row of that step"
        )


def _begins(curves, expected):
    if not len(curves.asked) or curves.asked[0] > 0:
        return None
    first = curves.held_out[0]
    if first > expected.uniform + 0.7:
        return (
            f"the run begins at {first:.2f} nats, and knowing nothing "
            f"costs {expected.uniform:.2f}: the first weights are too "
            "large; check initializer_range"
        )
    if first < expected.unigram - 0.5:
        return (
            f"the run begins at {first:.2f} nats, below the "
            f"{expected.unigram:.2f} of frequencies alone: the weights "
            "were trained before, or the hidden pieces can be seen; check "
            "the masks"
        )


# %% book/diagnosis.md#faults-of-a-run 5b1918f8
def _diverges(curves, expected):
    if not len(curves.steps):
        return None
    smooth = np.array([curves.around(step) for step in curves.steps])
    best, last = smooth.argmin(), smooth[-1]
    if last > smooth[best] + 0.5:
        norm = curves.norms[best:].max()
        return (
            f"the training loss was {smooth[best]:.2f} nats at step "
            f"{curves.steps[best]} and ended at {last:.2f}, with gradients "
            f"of norm {norm:.1f}: the run diverges; divide the learning "
            "rate by three, warm up longer, and clip gradients at 1"
        )


# %% book/diagnosis.md#faults-of-a-run 11a26290
def _learns_nothing(curves, expected):
    if not len(curves.asked):
        return None
    best = curves.held_out.min()
    if best > (expected.uniform + expected.unigram) / 2:
        return (
            f"after {curves.asked[-1]} steps the held-out loss is "
            f"{best:.2f} nats, and knowing nothing costs "
            f"{expected.uniform:.2f}: the weights hardly move; raise the "
            "learning rate, which may be 0, or train longer"
        )


def _rests(curves, expected):
    third = curves.asked >= curves.asked[-1:] * 2 / 3
    late = curves.held_out[third]
    if len(late) < 2 or np.ptp(late) > 0.15:
        return None
    if late[-1] > curves.held_out.min() + 0.1:
        return None  # it has been better
    if abs(late[-1] - expected.unigram) < 0.35:
        return (
            f"the held-out loss has stood at {late[-1]:.2f} nats since "
            f"step {curves.asked[third][0]}, and the frequencies alone "
            f"give {expected.unigram:.2f}: the model does not use context "
            "yet; use Muon, layer_norm='pre', smaller batches or shorter "
            "rows, and train longer"
        )


# %% book/diagnosis.md#faults-of-a-run 22cdbcd0
def _overfits(curves, expected):
    if not len(curves.asked) or not len(curves.steps):
        return None
    best, last = curves.held_out.argmin(), curves.held_out[-1]
    turn, end = curves.asked[best], curves.asked[-1]
    before, after = curves.around(turn), curves.around(end)
    if last > curves.held_out[best] + 0.1 and after < before:
        return (
            f"since step {turn} the held-out loss rose from "
            f"{curves.held_out[best]:.2f} to {last:.2f} nats while the "
            f"training loss fell from {before:.2f} to {after:.2f}: the "
            "model remembers its text; give more text, remove copies, or "
            f"stop near step {turn}"
        )
    if after < expected.unigram and last > after + 0.7:
        return (
            f"the training loss ended at {after:.2f} nats and the held-out "
            f"loss at {last:.2f}: the model remembers its text, or the "
            "two parts differ in kind; give more text, remove copies, and "
            "hold out at random"
        )


# %% book/diagnosis.md#faults-of-a-run 69ed14b7
_GROUPS = (
    (_no_number, _begins),
    (_diverges, _learns_nothing, _rests),
    (_overfits,),
)


def diagnose_run(
    records: list[dict], expected: ExpectedLosses
) -> list[str]:
    """What went wrong in a run, by the records of its log: sentences.

    Each says what was seen, what it means and what to do. A healthy run
    gives none. Uses `step`, `loss` or `mlm_loss`, `gradient_norm` and
    `held_out_loss`; what is missing is passed over.
    """
    curves = read_curves(records)
    said = ((rule(curves, expected) for rule in group) for group in _GROUPS)
    firsts = (next(filter(None, group), None) for group in said)
    return [sentence for sentence in firsts if sentence]
