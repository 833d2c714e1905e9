"""Objectives

Says what a pretraining run minimises, on which rows in which order, and
adds up gradients so that neither parts nor processes change them.

The page: https://bertbook.github.io/bertbook/book/objectives.html
"""

# Tangled from book/objectives.md (38649d12): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "Objective",
    "Place",
    "Pretraining",
    "accumulate",
    "batches_from",
    "count_labels",
    "evaluate_masked",
    "make_batch",
    "masked_scores",
    "summed_loss",
]


# %% book/objectives.md#the-settings-of-a-run 65c74e83
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from bertbook.config import BertConfig
from bertbook.masking import Masking, Pieces, mask_rows
from bertbook.optimization import Length, Optimization


@dataclass(frozen=True)
class Pretraining:
    """Everything that decides what a run computes."""

    model: BertConfig
    length: Length
    seq_length: int = 64
    batch_size: int = 64  # rows in a step, over all parts and processes
    accumulation: int = 1  # parts in which a step's batch is computed
    objective: str = "mlm"  # or "mlm+nsp", "mlm+sop"
    masking: Masking = field(default_factory=lambda: Masking(rate=0.4))
    last_rate: float = 0.2  # the masking rate falls to this
    optimization: Optimization = field(default_factory=Optimization)
    dtype: str = "bfloat16"  # of matrix products; or "float32"
    compiled: bool = False  # by torch.compile
    positions: str = "sinusoidal"  # how they begin; or "drawn"
    evaluate_every: int = 100  # steps
    patience: int | None = None  # evaluations without progress
    seed: int = 0
    data: str = ""  # digest of the text; filled in by the trainer


# %% book/objectives.md#one-loss-object-a-task 0c4dfc72
from bertbook.heads import BertForMaskedLM, BertForPreTraining
from bertbook.losses import IGNORED


class Objective(nn.Module):
    """The model with the losses of pretraining (BERT, section 3.1).

    Called with a batch, returns for each task the sum of its losses; the
    means follow where all counts are known.
    """

    def __init__(self, model: BertForMaskedLM | BertForPreTraining):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sum of losses for each task."""
        outputs = self.model.bert(
            batch["input_ids"],
            batch.get("attention_mask"),
            batch.get("token_type_ids"),
        )
        scores = masked_scores(
            self.model, outputs.last_hidden_state, batch["positions"]
        )
        sums = {"mlm": summed_loss(scores, batch["labels"].flatten())}
        if "next_sentence_label" in batch:
            relation = self.model.nsp_head(outputs.pooler_output)
            label = batch["next_sentence_label"]
            sums["nsp"] = summed_loss(relation, label)
        return sums


# %% book/objectives.md#one-loss-object-a-task 71e65697
def masked_scores(
    model: nn.Module, hidden: Tensor, positions: Int[Tensor, "rows width"]
) -> Tensor:
    """Scores of the vocabulary at `positions`, (rows · width, vocab)."""
    places = positions[..., None].expand(-1, -1, hidden.shape[-1])
    chosen = hidden.gather(1, places).flatten(0, 1)
    return model.mlm_head(chosen, model.bert.embeddings.tokens.weight)


def summed_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """The sum of -log softmax at the labels that are not -100."""
    return F.cross_entropy(
        scores.float(), labels, ignore_index=IGNORED, reduction="sum"
    )


# %% book/objectives.md#the-order-of-the-rows 40dbe748
from collections.abc import Iterator
from typing import NamedTuple


class Place(NamedTuple):
    """Which batch of which epoch."""

    epoch: int
    batch: int


def batches_from(
    rows, batch_size: int, seed: int, place: Place
) -> Iterator[tuple[Place, np.ndarray]]:
    """The numbers of the rows of each batch, from `place` on, for ever.

    Each epoch is shuffled by the seed and its number alone; rows that do
    not fill a batch wait for another epoch. Gives with each batch the
    place after it.
    """
    epoch, start = place
    while True:
        count = rows.count(epoch)
        if count < batch_size:
            raise ValueError(
                f"there are {count} rows, fewer than the batch of "
                f"{batch_size}; give more text or a smaller batch_size"
            )
        order = np.random.default_rng([seed, epoch]).permutation(count)
        for number in range(start, count // batch_size):
            first = number * batch_size
            after = Place(epoch, number + 1)
            yield after, order[first : first + batch_size]
        epoch, start = epoch + 1, 0


# %% book/objectives.md#a-batch cf7f2efd
def make_batch(
    rows,
    pieces: Pieces,
    masking: Masking,
    seed: int,
    epoch: int,
    examples: np.ndarray,
) -> dict[str, Tensor]:
    """The tensors of some rows, masked; the same for the same address."""
    arrays = rows.rows(epoch, examples)
    batch = {name: torch.from_numpy(each) for name, each in arrays.items()}
    masked = mask_rows(
        batch["input_ids"], pieces, masking, seed, epoch, examples
    )
    return batch | masked._asdict()


def count_labels(batch: dict[str, Tensor]) -> dict[str, int]:
    """How many losses each task sums in a batch."""
    counts = {"mlm": int((batch["labels"] != IGNORED).sum())}
    if "next_sentence_label" in batch:
        counts["nsp"] = len(batch["next_sentence_label"])
    return counts


# %% book/objectives.md#evaluation 0675a2e6
from bertbook.training_loop import evaluating


def evaluate_masked(
    objective: Objective, batches: list[dict[str, Tensor]], cast
) -> dict[str, float]:
    """Mean loss in nats, and accuracy, over batches masked once for all."""
    total, right, count = 0.0, 0, 0
    model = objective.model
    with evaluating(model), cast():
        for batch in batches:
            hidden = model.bert(
                batch["input_ids"],
                batch.get("attention_mask"),
                batch.get("token_type_ids"),
            ).last_hidden_state
            scores = masked_scores(model, hidden, batch["positions"])
            labels = batch["labels"].flatten()
            total += summed_loss(scores, labels).item()
            right += int((scores.argmax(-1) == labels).sum())
            count += int((labels != IGNORED).sum())
    return {"loss": total / count, "accuracy": right / count}


# %% book/objectives.md#one-step 5c98e2f1
from bertbook.ranks import sum_over_ranks, this_rank, unsynchronised


def accumulate(
    objective: nn.Module, parts: list[dict[str, Tensor]], cast
) -> dict[str, float]:
    """Add the gradient of a batch that comes in parts.

    Each loss is divided by the count of the whole batch, over all parts
    and processes, so that the parts do not matter. Returns the mean loss
    of each task.
    """
    counts = [count_labels(part) for part in parts]
    whole = {name: sum(each[name] for each in counts) for name in counts[0]}
    whole = sum_over_ranks(whole)
    totals = dict.fromkeys(whole, 0.0)
    ranks = this_rank().size
    for number, part in enumerate(parts, 1):
        with unsynchronised(objective, wait=number < len(parts)):
            with cast():
                sums = objective(part)
            means = {k: v / max(1, whole[k]) for k, v in sums.items()}
            (sum(means.values()) * ranks).backward()
        for name, mean in means.items():
            totals[name] += mean.item()
    return sum_over_ranks(totals)
