"""Probes and their controls

Fits a linear classifier to the states of each layer, to ask what can be
read from them, and a second one to labels drawn by lot, to ask how much of
the answer is the classifier's own memory.

The page: https://bertbook.github.io/bertbook/book/probing.html
"""

# Tangled from book/probing.md (f6b7368c): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "LabelledWords",
    "Probe",
    "ProbeScores",
    "balanced",
    "capital_labels",
    "control_labels",
    "fit_probe",
    "labelled_words",
    "probe_layer",
    "probe_loss",
    "type_baseline",
]


# %% book/probing.md#words-with-a-label 197238fc
import re

from bertbook.losses import IGNORED

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]")


def capital_labels(sentence: str) -> tuple[list[str], list[int]]:
    """The words of a sentence, and whether each begins with a capital.

    1 yes, 0 no, `IGNORED` where that says nothing: for the first word,
    after punctuation other than a comma, and without a letter.
    """
    words = _WORD.findall(sentence)
    labels = []
    for before, word in zip(["."] + words, words):
        inside = before[-1].isalnum() or before == ","
        asked = inside and word[0].isalpha()
        labels.append(int(word[0].isupper()) if asked else IGNORED)
    return words, labels


# %% book/probing.md#words-with-a-label 6e1cae74
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bertbook.representations import layer_states
from bertbook.tokenizer import BertTokenizer


class LabelledWords(NamedTuple):
    """Words in context: their states, their labels and themselves."""

    states: Tensor  # (layers, words, hidden)
    labels: Tensor  # (words,)
    types: list[str]  # each word in lower case

    def take(self, indices: Tensor) -> "LabelledWords":
        """The words at `indices`."""
        types = [self.types[index] for index in indices.tolist()]
        return LabelledWords(
            self.states[:, indices], self.labels[indices], types
        )


# %% book/probing.md#words-with-a-label fa11dc48
def labelled_words(
    model: nn.Module,
    tokenizer: BertTokenizer,
    sentences: list[tuple[list[str], list[int]]],
) -> LabelledWords:
    """The states of the first piece of every word that has a label.

    Each sentence is its words and their labels.
    """
    texts = [words for words, _ in sentences]
    rows = tokenizer(
        texts, is_split_into_words=True, truncation=True, max_length=128
    )
    states, labels, types = [], [], []
    for number, states_here in enumerate(
        layer_states(model, tokenizer, texts)
    ):
        words, tags = sentences[number]
        owners = rows.word_ids(number)
        for place, word in enumerate(owners):
            first = word is not None and word != owners[place - 1]
            if first and tags[word] != IGNORED:
                states.append(states_here[:, place])
                labels.append(tags[word])
                types.append(words[word].lower())
    return LabelledWords(
        torch.stack(states, dim=1), torch.tensor(labels), types
    )


# %% book/probing.md#words-with-a-label 2b949e9d
def balanced(
    labels: Int[Tensor, " n"], generator: torch.Generator
) -> Int[Tensor, " kept"]:
    """Indices, in order, that keep equally many of each label.

    All of the rarest label; of the others as many, drawn at random.
    """
    groups = [
        (labels == label).nonzero()[:, 0] for label in labels.unique()
    ]
    fewest = min(map(len, groups))
    kept = [
        group[torch.randperm(len(group), generator=generator)[:fewest]]
        for group in groups
    ]
    return torch.cat(kept).sort().values


# %% book/probing.md#the-probe 5cca8b3d
def probe_loss(
    weight: Float[Tensor, "classes hidden"],
    bias: Float[Tensor, " classes"],
    vectors: Float[Tensor, "n hidden"],
    labels: Int[Tensor, " n"],
    weight_decay: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of softmax regression, and the penalty on weights."""
    logits = vectors @ weight.T + bias
    penalty = weight_decay / 2 * weight.square().sum()
    return F.cross_entropy(logits, labels) + penalty


# %% book/probing.md#the-probe 230897fe
class Probe(NamedTuple):
    """A linear classifier of states."""

    weight: Tensor  # (classes, hidden)
    bias: Tensor  # (classes,)

    def logits(self, vectors: Tensor) -> Tensor:
        """One number a class for each vector, in the last axis."""
        return vectors.double() @ self.weight.T + self.bias


# %% book/probing.md#the-probe dac1372a
def fit_probe(
    vectors: Float[Tensor, "n hidden"],
    labels: Int[Tensor, " n"],
    weight_decay: float = 0.03,
) -> Probe:
    """The softmax regression of `labels` on `vectors` with the least loss.

    The labels are 0, 1, 2, ... The penalty acts on standardised vectors.
    """
    mean, scale = vectors.mean(dim=0).double(), vectors.std(dim=0).double()
    scale = scale.clamp(min=1e-6)
    inputs, classes = (vectors - mean) / scale, labels.max().item() + 1
    weight = inputs.new_zeros(classes, inputs.shape[1], requires_grad=True)
    bias = inputs.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=500,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = probe_loss(weight, bias, inputs, labels, weight_decay)
        loss.backward()
        return loss

    optimizer.step(closure)
    weight = weight.detach() / scale
    return Probe(weight, bias.detach() - weight @ mean)


# %% book/probing.md#the-first-answer 16cc4ca7
from collections import Counter


def type_baseline(
    train: LabelledWords, test: LabelledWords
) -> Int[Tensor, " n"]:
    """For each word of `test` its most frequent label in `train`.

    Words that `train` lacks get the most frequent label of all; ties go to
    the smaller label.
    """
    labels = train.labels.tolist()
    counts = Counter(zip(train.types, labels))
    overall = Counter(labels)
    known = set(train.types)

    def rank(label, word):
        count = counts[word, label] if word in known else overall[label]
        return count, -label

    return torch.tensor(
        [
            max(overall, key=lambda label: rank(label, word))
            for word in test.types
        ]
    )


# %% book/probing.md#the-control-task 8575581b
import hashlib
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate


def control_labels(
    types: Sequence[str], shares: Sequence[float], seed: int = 0
) -> Int[Tensor, " n"]:
    """A label for each word, by lot for each word type (Hewitt and Liang).

    `shares` are the probabilities of the labels 0, 1, 2, ... The same type
    has the same label everywhere, for one `seed`.
    """
    edges = list(accumulate(shares))[:-1]
    labels = []
    for word in types:
        digits = hashlib.sha256(f"{seed} {word}".encode()).hexdigest()[:8]
        labels.append(bisect(edges, int(digits, 16) / 2**32))
    return torch.tensor(labels, dtype=torch.long)


# %% book/probing.md#the-control-task e553673d
class ProbeScores(NamedTuple):
    """Accuracies of a probe on a task and on its control task."""

    task: float
    control: float

    @property
    def selectivity(self) -> float:
        """What the probe knows beyond its memory of words."""
        return self.task - self.control


# %% book/probing.md#the-control-task 87faa8d6
from bertbook.training_loop import accuracy


def probe_layer(
    train: LabelledWords,
    tests: Sequence[LabelledWords],
    layer: int,
    seed: int = 0,
    weight_decay: float = 0.03,
) -> list[ProbeScores]:
    """Accuracy on each test set of probes of `layer`: labels, and lots.

    `seed` draws the labels of the control task.
    """
    shares = (train.labels.bincount() / len(train.labels)).tolist()

    def lots(words):
        return control_labels(words.types, shares, seed)

    states = train.states[layer]
    task = fit_probe(states, train.labels, weight_decay)
    control = fit_probe(states, lots(train), weight_decay)
    return [
        ProbeScores(
            accuracy(task.logits(test.states[layer]), test.labels),
            accuracy(control.logits(test.states[layer]), lots(test)),
        )
        for test in tests
    ]
