"""Classifying texts

Turns labelled texts into batches for a classifier, weighs its classes, and
says how good its answers are, and how sure that is.

The page: https://bertbook.github.io/bertbook/book/classification.html
"""

# Tangled from book/classification.md (f8065e5a): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Classification",
    "balanced_weights",
    "class_logits",
    "classification_scores",
    "collate",
    "mean_interval",
    "wilson_interval",
]


# %% book/classification.md#a-batch 921a0351
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bertbook.losses import IGNORED


def collate(features: Sequence[dict], pad_id: int) -> dict[str, Tensor]:
    """Rows of different lengths as one batch, padded to the longest.

    A feature is a dict of lists, one entry a position, and of numbers.
    `input_ids` are padded by `pad_id`, `labels` by -100, other lists by 0;
    numbers become a vector.
    """
    filling = {"input_ids": pad_id, "labels": IGNORED}
    longest = max(len(row["input_ids"]) for row in features)
    batch = {}
    for name, first in features[0].items():
        values = [row[name] for row in features]
        if isinstance(first, list):
            fill = [filling.get(name, 0)]
            values = [v + fill * (longest - len(v)) for v in values]
        batch[name] = torch.tensor(values)
    return batch


# %% book/classification.md#the-loss-and-classes-that-are-rare 3820f379
def balanced_weights(labels: Sequence[int], classes: int) -> list[float]:
    """A weight for each class, by which all have the same share.

    The class k of n texts gets n / (`classes` n_k). Raises ValueError
    where a class has no text.
    """
    counts = [0] * classes
    for label in labels:
        counts[label] += 1
    if 0 in counts:
        raise ValueError(
            f"class {counts.index(0)} of {classes} has no text, and no "
            "weight makes up for that; give texts of it, or no weights"
        )
    return [len(labels) / (classes * count) for count in counts]


# %% book/classification.md#the-task f655356b
from bertbook.training_loop import evaluating


@torch.no_grad()
def class_logits(
    model: nn.Module, features: Sequence[dict], batch_size: int = 64
) -> Tensor:
    """The scores of each text, (texts, classes), in the order given.

    Texts of like length are computed together.
    """
    order = sorted(
        range(len(features)), key=lambda i: len(features[i]["input_ids"])
    )
    device, found = next(model.parameters()).device, []
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            some = [features[i] for i in order[start : start + batch_size]]
            batch = collate(some, model.config.pad_token_id or 0)
            batch.pop("labels", None)
            batch = {name: each.to(device) for name, each in batch.items()}
            found.append(model(**batch).logits.float().cpu())
    return torch.cat(found)[torch.tensor(order).argsort()]


# %% book/classification.md#the-task f95a74ba
def classification_scores(logits: Tensor, labels: Tensor) -> dict:
    """`accuracy`, `macro_f1` and `loss` of scores, (texts, classes).

    F1 of a class is 2 right / (said + there); the macro mean takes all
    classes alike, and leaves out those that neither side knows.
    """
    said, values = logits.argmax(-1), []
    for number in range(logits.shape[-1]):
        right = ((said == number) & (labels == number)).sum().item()
        both = ((said == number).sum() + (labels == number).sum()).item()
        if both:
            values.append(2 * right / both)
    return {
        "accuracy": (said == labels).double().mean().item(),
        "macro_f1": sum(values) / len(values),
        "loss": nn.functional.cross_entropy(logits, labels).item(),
    }


# %% book/classification.md#the-task 9501905d
from dataclasses import dataclass

from bertbook.heads import BertForSequenceClassification


@dataclass(frozen=True)
class Classification:
    """Which of `labels` fits a text, or a pair? A task for `finetune`.

    `weights`, one for each label, are those of the loss; `pooling` is the
    `classifier_pooling` of the model.
    """

    labels: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    pooling: str = "mean"
    name, metric = "classify", "accuracy"
    head = BertForSequenceClassification

    @property
    def config(self) -> dict:
        """What the configuration of the model must hold."""
        return {
            "num_labels": len(self.labels),
            "labels": self.labels,
            "classifier_pooling": self.pooling,
        }

    def features(
        self, labelled, tokenizer, max_length: int, training: bool = False
    ) -> list[dict]:
        """The pieces of each text, cut to `max_length`, and its label."""
        return _features(self.labels, labelled, tokenizer, max_length)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The weighted mean of -log softmax at the labels."""
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        logits = model(**inputs).logits.float()
        weights = self.weights and logits.new_tensor(self.weights)
        return nn.functional.cross_entropy(logits, batch["labels"], weights)

    def evaluate(self, model: nn.Module, features, labelled) -> dict:
        """`classification_scores` of all texts."""
        labels = torch.tensor([row["labels"] for row in features])
        return classification_scores(class_logits(model, features), labels)


# %% book/classification.md#the-task 500e4e19
def _features(labels, labelled, tokenizer, max_length):
    if tuple(labelled.labels) != labels:
        raise ValueError(
            f"the data has the labels {', '.join(labelled.labels)}, and "
            f"the task {', '.join(labels)}; read the data with "
            "labels=task.labels"
        )
    rows = labelled.rows
    names = [n for n in ("text", "text_pair") if n in rows.column_names]
    found = tokenizer(
        *(rows[name][:] for name in names),
        truncation=True,
        max_length=max_length,
    )
    columns = dict(found) | {"labels": rows["label"][:]}
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


# %% book/classification.md#how-sure-is-a-score c2c2b945
import math


def wilson_interval(
    right: int, count: int, z: float = 1.96
) -> tuple[float, float]:
    """Where a rate lies that gave `right` of `count` (Wilson, 1927).

    With 95 % confidence for the usual `z`.
    """
    rate, share = right / count, z * z / count
    middle = rate + share / 2
    half = z * math.sqrt(rate * (1 - rate) / count + share / count / 4)
    return (middle - half) / (1 + share), (middle + half) / (1 + share)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of a few runs, and how far it may be off at 95 %.

    By Student's t; needs scipy. Infinitely far with a single run.
    """
    from scipy.stats import t

    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return mean, math.inf
    variance = sum((v - mean) ** 2 for v in values) / (count - 1)
    return mean, t.ppf(0.975, count - 1) * math.sqrt(variance / count)
