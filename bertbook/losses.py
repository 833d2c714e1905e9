"""Losses

Turns scores and labels into one number, checks the labels first, and counts
only where a label stands.

The page: https://bertbook.github.io/bertbook/book/losses.html
"""

# Tangled from book/losses.md (b6423b71): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "IGNORED",
    "check_labels",
    "classification_loss",
    "cross_entropy",
    "guess_problem",
    "sequence_loss",
]


# %% book/losses.md#only-where-a-label-stands f73deaa3
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# %% book/losses.md#only-where-a-label-stands 34125586
IGNORED = -100


# %% book/losses.md#only-where-a-label-stands fa660e7b
def _full(logits):
    """At least float32: a sum over 30,522 bfloat16 exponentials drifts."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy(
    logits: Float[Tensor, "cases classes"], labels: Int[Tensor, " cases"]
) -> Float[Tensor, ""]:
    """Mean of -log softmax at the labels that are not -100.

    0, and not NaN, where every label is -100. At least float32.
    """
    labels = labels.long()
    total = F.cross_entropy(_full(logits), labels, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


# %% book/losses.md#labels-that-cannot-be 36706e0d
_INTEGERS = (torch.int64, torch.int32)


def _check_tensor(name, labels):
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"{name} is a {type(labels).__name__}, not a tensor; convert "
            f"it by torch.tensor({name})"
        )


def _check_shape(name, labels, shapes):
    _check_tensor(name, labels)
    if labels.shape not in shapes:
        expected = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(
            f"{name} has shape {tuple(labels.shape)}, and {expected} is "
            "expected; pass one label for each thing that is classified"
        )


def _refuse_first(name, labels, wrong, expected):
    """Raise the sentence for the first label that is `wrong`, if any is."""
    if torch.compiler.is_compiling() or labels.is_meta or not wrong.any():
        return
    place = wrong.nonzero()[0].tolist()
    value = labels[tuple(place)].item()
    raise ValueError(f"{name}{place} is {value}, and {expected}")


# %% book/losses.md#labels-that-cannot-be a1cdaced
def check_labels(
    labels: Tensor,
    shapes: list[tuple[int, ...]],
    classes: int,
    name: str = "labels",
) -> None:
    """Refuse labels that are not one of `shapes`, integers, and each -100
    or a class.

    Raises TypeError or ValueError with the place, what was expected and
    what to do.
    """
    _check_shape(name, labels, shapes)
    if labels.dtype not in _INTEGERS:
        raise TypeError(
            f"{name} holds {labels.dtype}, and integers are expected; "
            f"convert it by {name}.long()"
        )
    wrong = (labels < 0) & (labels != IGNORED) | (labels >= classes)
    expected = (
        f"0 to {classes - 1} are expected; use {IGNORED} for what has no "
        "label"
    )
    _refuse_first(name, labels, wrong, expected)


# %% book/losses.md#labels-that-cannot-be f1c375fd
def classification_loss(
    logits: Float[Tensor, "*cases classes"],
    labels: Tensor | None,
    name: str = "labels",
) -> Float[Tensor, ""] | None:
    """The cross-entropy of labels that `check_labels` accepts.

    None without labels. One label a row may be (batch,) or (batch, 1).
    """
    if labels is None:
        return None
    shapes = [logits.shape[:-1]]
    if logits.ndim == 2:
        shapes.append((len(logits), 1))
    check_labels(labels, shapes, logits.shape[-1], name)
    return cross_entropy(logits.flatten(0, -2), labels.flatten())


# %% book/losses.md#three-kinds-of-answer c9da539e
def guess_problem(labels: Tensor, num_labels: int) -> str:
    """One output is a regression, integers are classes, and other numbers
    one probability for each class."""
    if num_labels == 1:
        return "regression"
    if labels.dtype in _INTEGERS:
        return "single_label_classification"
    return "multi_label_classification"


# %% book/losses.md#three-kinds-of-answer 0d7f214a
def sequence_loss(
    logits: Float[Tensor, "batch classes"],
    labels: Tensor | None,
    problem_type: str | None = None,
) -> Float[Tensor, ""] | None:
    """Squared error, cross-entropy or binary cross-entropies.

    `problem_type` is one of those that `guess_problem` returns, and None
    asks it. Raises ValueError for labels that do not fit; None without any.
    """
    if labels is None:
        return None
    _check_tensor("labels", labels)
    problem = problem_type or guess_problem(labels, logits.shape[1])
    if problem == "single_label_classification":
        return classification_loss(logits, labels)
    shapes = [logits.shape]
    if logits.shape[1] == 1:
        shapes.append(logits.shape[:1])
    _check_shape("labels", labels, shapes)
    logits = _full(logits)
    target = labels.to(logits.dtype).reshape(logits.shape)
    if problem == "regression":
        expected = "a finite number is expected; leave out what has none"
        _refuse_first("labels", labels, ~labels.isfinite(), expected)
        return F.mse_loss(logits, target)
    expected = (
        "probabilities from 0 to 1 are expected; give 1 for each class"
    )
    _refuse_first(
        "labels", labels, ~((0 <= labels) & (labels <= 1)), expected
    )
    return F.binary_cross_entropy_with_logits(logits, target)
