"""Reading a classifier

Says where a trained classifier is wrong, how far its probabilities can be
believed, and which words drove a decision.

The page: https://bertbook.github.io/bertbook/book/explanations.html
"""

# Tangled from book/explanations.md (25f00153): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Explanation",
    "Reliability",
    "confident_mistakes",
    "confusion",
    "explain",
    "fit_temperature",
    "highlight",
    "integrated_gradients",
    "log_odds",
    "logits_of",
    "merge_pieces",
    "reliability",
    "removal_curve",
]


# %% book/explanations.md#reading-a-classifier 0926b584
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bertbook.classification import class_logits
from bertbook.tokenizer import BertTokenizer


def logits_of(
    model: nn.Module,
    tokenizer: BertTokenizer,
    texts: Sequence[str],
    batch_size: int = 64,
    max_length: int = 128,
) -> Float[Tensor, "texts classes"]:
    """The scores of `texts`, in their order, by `class_logits`.

    Longer ones than `max_length` pieces are cut. Raises ValueError where
    there is no text.
    """
    if not texts:
        raise ValueError("there is no text to read; give at least one")
    found = tokenizer(list(texts), truncation=True, max_length=max_length)
    features = [dict(zip(found, row)) for row in zip(*found.values())]
    return class_logits(model, features, batch_size)


# %% book/explanations.md#errors-counted fee1e87c
def confusion(
    labels: Int[Tensor, " texts"],
    said: Int[Tensor, " texts"],
    classes: int,
) -> Int[Tensor, "classes classes"]:
    """How many texts of each class (row) were called what (column).

    `labels` and `said` are numbers from 0 to `classes` - 1.
    """
    pairs = labels * classes + said
    return pairs.bincount(minlength=classes**2).view(classes, classes)


# %% book/explanations.md#errors-read 997f7ba1
def confident_mistakes(
    logits: Float[Tensor, "texts classes"],
    labels: Int[Tensor, " texts"],
) -> Int[Tensor, " mistakes"]:
    """Which rows are wrong: those of which the model is surest first."""
    confidence, said = logits.softmax(-1).max(-1)
    rows = (said != labels).nonzero()[:, 0]
    return rows[confidence[rows].argsort(descending=True, stable=True)]


# %% book/explanations.md#how-sure-and-how-right 86d92c47
from typing import NamedTuple


class Reliability(NamedTuple):
    """What a reliability diagram shows; NaN where a bin is empty."""

    confidence: Float[Tensor, " bins"]  # the mean in each bin
    accuracy: Float[Tensor, " bins"]  # the share that is right
    count: Int[Tensor, " bins"]

    @property
    def error(self) -> float:
        """The expected calibration error (Naeini et al., 2015)."""
        gaps = (self.accuracy - self.confidence).abs() * self.count
        return (gaps.nansum() / self.count.sum()).item()


def reliability(
    logits: Float[Tensor, "texts classes"],
    labels: Int[Tensor, " texts"],
    bins: int = 15,
) -> Reliability:
    """Confidence and accuracy in `bins` bins of equal width over [0, 1].

    A confidence on a border belongs to the bin below it.
    """
    confidence, said = logits.double().softmax(-1).max(-1)
    number = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = number.bincount(minlength=bins)
    right = (said == labels).double()
    return Reliability(
        number.bincount(confidence, bins) / count,
        number.bincount(right, bins) / count,
        count,
    )


# %% book/explanations.md#one-number-that-repairs-it 0dbc24cc
def fit_temperature(
    logits: Float[Tensor, "texts classes"], labels: Int[Tensor, " texts"]
) -> float:
    """The temperature of least cross-entropy, between 0.01 and 100.

    Divide scores by it (Guo et al., 2017, section 4.2). It is at the lower
    end where no text is wrong, and at the upper where the scores are worse
    than equal scores for all classes.
    """
    scores = logits.double()
    wanted = scores.gather(1, labels[:, None]).mean()
    low, high = 0.01, 100.0  # of 1 / T
    for _ in range(60):
        middle = (low * high) ** 0.5
        chances = (middle * scores).softmax(-1)
        expected = (chances * scores).sum(-1).mean()
        low, high = (middle, high) if expected <= wanted else (low, middle)
    return 2 / (low + high)


# %% book/explanations.md#two-choices 610a78f4
def log_odds(
    logits: Float[Tensor, "*cases classes"], label: int
) -> Float[Tensor, "*cases"]:
    """log p/(1 - p) of the class `label`."""
    others = torch.cat([logits[..., :label], logits[..., label + 1 :]], -1)
    return logits[..., label] - others.logsumexp(-1)


# %% book/explanations.md#two-choices 9ba1bd56
from collections.abc import Callable


def integrated_gradients(
    score: Callable[[Tensor], Tensor],
    layer: nn.Module,
    input_ids: Int[Tensor, "1 seq"],
    baseline_ids: Int[Tensor, "1 seq"],
    steps: int = 32,
) -> Float[Tensor, "seq size"]:
    """The share of each output of `layer` in a score, from a baseline.

    `score` takes ids, (steps, seq), and gives a number for each row.
    `layer` is the layer of embeddings that `score` calls once. The
    integral is a mean over the middles of `steps` equal steps
    (Sundararajan et al., 2017, equations 1 and 3).
    """
    with torch.no_grad():
        start, end = layer(baseline_ids), layer(input_ids)
    middles = (torch.arange(steps).to(end) + 0.5) / steps
    points = start + middles[:, None, None] * (end - start)
    points.requires_grad_()
    hook = layer.register_forward_hook(lambda *_: points)
    try:
        with torch.enable_grad():
            total = score(input_ids.expand(steps, -1)).sum()
        (gradients,) = torch.autograd.grad(total, points)
    finally:
        hook.remove()
    return ((end - start) * gradients.mean(0))[0]


# %% book/explanations.md#from-pieces-to-words e3536a46
import re
from bisect import bisect


def merge_pieces(
    text: str, offsets: Sequence[tuple[int, int]], values: Sequence[float]
) -> tuple[list[str], list[float]]:
    """The words of `text` that have pieces, and the sums of their values.

    `offsets` say where each piece stands in `text`; an empty span is a
    special token and is left out. Words end at blanks and line ends.
    """
    found = re.finditer(r"[^ \t\n\r]+", text)
    spans = [match.span() for match in found]
    starts = [start for start, _ in spans]
    totals = {}
    for (start, end), value in zip(offsets, values):
        if start < end:
            word = bisect(starts, start) - 1
            totals[word] = totals.get(word, 0.0) + value
    words = [text[slice(*spans[word])] for word in totals]
    return words, list(totals.values())


# %% book/explanations.md#from-pieces-to-words 75cbf65a
class Explanation(NamedTuple):
    """Which words of a text speak for a label, in log-odds."""

    words: list[str]
    attributions: list[float]  # above 0: for the label
    label: str
    score: float  # the label's log-odds for the text
    baseline: float  # and for the baseline

    @property
    def gap(self) -> float:
        """How far the attributions are from summing to the difference."""
        return sum(self.attributions) - (self.score - self.baseline)


def _read(tokenizer, text, baseline, max_length, device):
    """The ids of a text and of its baseline, (1, seq), and the offsets."""
    found = tokenizer(
        text,
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    ids = torch.tensor([found["input_ids"]], device=device)
    special = torch.tensor([found["special_tokens_mask"]], device=device)
    filler = tokenizer.convert_tokens_to_ids(baseline)
    blank = torch.where(special.bool(), ids, filler)
    return ids, blank, found["offset_mapping"]


# %% book/explanations.md#from-pieces-to-words aeb86340
def _target(config, label, logits):
    """The number and the name of the label that is explained."""
    names = list(config.id2label.values())
    if len(names) < 2:
        raise ValueError(
            "the model has one output and no classes, and log-odds need "
            "two; explain a classifier"
        )
    if label is None:
        return logits.argmax().item(), names[logits.argmax().item()]
    if label not in names:
        raise ValueError(
            f"{label!r} is no label of this model; give one of "
            f"{', '.join(names)}, or None for what it predicts"
        )
    return names.index(label), label


# %% book/explanations.md#from-pieces-to-words 2da75a27
from bertbook.training_loop import evaluating


def explain(
    model: nn.Module,
    tokenizer: BertTokenizer,
    text: str,
    label: str | None = None,
    baseline: str = "[PAD]",
    steps: int = 32,
    max_length: int = 128,
) -> Explanation:
    """Which words of `text` make `model` say `label` rather than not.

    `model` is a sequence classifier, and `label` by default what it
    predicts. `baseline` is the token that stands for no word. Raises
    ValueError for a label that the model does not have, and for a model
    with one output.
    """
    device = next(model.parameters()).device
    read = _read(tokenizer, text, baseline, max_length, device)
    ids, blank, offsets = read
    with evaluating(model):
        logits = model(torch.cat([ids, blank])).logits
        target, label = _target(model.config, label, logits[0])
        ends = log_odds(logits, target).tolist()
        found = integrated_gradients(
            lambda rows: log_odds(model(rows).logits, target),
            model.bert.embeddings.tokens,
            ids,
            blank,
            steps,
        )
    shares = found.sum(-1).tolist()
    return Explanation(*merge_pieces(text, offsets, shares), label, *ends)


# %% book/explanations.md#a-picture bab157c2
from html import escape

_COLOURS = {True: "76, 134, 198", False: "214, 118, 40"}


def _marked(word, share, largest):
    strength = abs(share) / largest
    style = "padding:0 .15em;white-space:nowrap;border-bottom:"
    if strength < 0.1:
        style += "1px solid transparent"
    else:
        line = "solid" if share > 0 else "dashed"
        colour = _COLOURS[share > 0]
        style += (
            f"{1 + round(3 * strength)}px {line} currentColor;"
            f"background:rgba({colour}, {0.45 * strength:.2f})"
        )
    number = f"<sub>{share:+.1f}</sub>" if strength >= 0.3 else ""
    return f'<span style="{style}">{escape(word)}{number}</span>'


# %% book/explanations.md#a-picture 87761c87
def highlight(explanation: Explanation) -> str:
    """A piece of a web page: the text, underlined by its attributions."""
    shares = explanation.attributions
    largest = max(map(abs, shares), default=0.0) or 1.0
    words = " ".join(
        _marked(word, share, largest)
        for word, share in zip(explanation.words, shares)
    )
    label = escape(explanation.label)
    return (
        '<p style="line-height:2.2">'
        f"<strong>{label}</strong> {explanation.score:+.1f} (baseline "
        f"{explanation.baseline:+.1f}). Solid: for {label}; dashed: "
        f"against. <br>{words}</p>"
    )


# %% book/explanations.md#is-it-about-the-model 7e3e183f
def removal_curve(
    model: nn.Module,
    tokenizer: BertTokenizer,
    texts: Sequence[Sequence[str]],
    orders: Sequence[Sequence[int]],
    most: int = 8,
) -> list[float]:
    """The share of decisions that stand after 0, 1, ..., `most` words go.

    `texts` are lists of words, and `orders` the order in which each loses
    them, as places; the last word of an order stays.
    """
    kept, first = [], None
    for count in range(most + 1):
        shorter = []
        for words, order in zip(texts, orders):
            gone = set(order[: min(count, len(words) - 1)])
            left = [w for i, w in enumerate(words) if i not in gone]
            shorter.append(" ".join(left))
        said = logits_of(model, tokenizer, shorter).argmax(1)
        first = said if first is None else first
        kept.append((said == first).float().mean().item())
    return kept
