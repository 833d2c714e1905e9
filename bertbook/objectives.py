"""Objectives

Says what a pretraining run minimises, on which rows in which order, and
adds up gradients so that neither parts nor processes change them.

The page: https://bertbook.github.io/bertbook/book/objectives.html
"""

# Tangled from book/objectives.md (49d96046): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "MaskedPieces",
    "NextSentence",
    "OBJECTIVES",
    "Objective",
    "Place",
    "Pretraining",
    "TASKS",
    "accumulate",
    "batches_from",
    "count_labels",
    "encode",
    "evaluate_masked",
    "fast_dtype",
    "make_batch",
    "masked_scores",
    "rows_of",
    "summed_loss",
    "tasks_of",
]


# %% book/objectives.md#one-loss-object-a-task 09f90c25
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bertbook.heads import BertForMaskedLM, BertForPreTraining
from bertbook.losses import IGNORED
from bertbook.model import BertModelOutput


# %% book/objectives.md#one-loss-object-a-task 9ab50c77
def masked_scores(
    model: nn.Module,
    hidden: Float[Tensor, "rows seq hidden"],
    positions: Int[Tensor, "rows width"],
) -> Float[Tensor, "rows*width vocab"]:
    """Scores of the vocabulary at `positions`, row by row."""
    places = positions[..., None].expand(-1, -1, hidden.shape[-1])
    chosen = hidden.gather(1, places).flatten(0, 1)
    return model.mlm_head(chosen, model.bert.embeddings.tokens.weight)


class MaskedPieces:
    """Task 1: which piece stood at each hidden position?"""

    name, key = "mlm", "labels"

    def scores(
        self, model: nn.Module, outputs: BertModelOutput, batch: dict
    ) -> Float[Tensor, "cases vocab"]:
        """Scores for every entry of `labels`, flattened."""
        hidden = outputs.last_hidden_state
        return masked_scores(model, hidden, batch["positions"])


# %% book/objectives.md#one-loss-object-a-task 77ae3c19
class NextSentence:
    """Task 2: does the second segment follow, or do they stand in order?"""

    name, key = "nsp", "next_sentence_label"

    def scores(
        self, model: nn.Module, outputs: BertModelOutput, batch: dict
    ) -> Float[Tensor, "rows 2"]:
        """Scores of yes (0) and no (1) for each row."""
        return model.nsp_head(outputs.pooler_output)


TASKS = (MaskedPieces(), NextSentence())


def tasks_of(batch: dict[str, Tensor]) -> list[MaskedPieces | NextSentence]:
    """The tasks for which `batch` has labels."""
    return [task for task in TASKS if task.key in batch]


# %% book/objectives.md#one-loss-object-a-task acc35f0a
def summed_loss(
    scores: Float[Tensor, "cases classes"], labels: Int[Tensor, " cases"]
) -> Float[Tensor, ""]:
    """The sum of -log softmax at the labels that are not -100.

    In float32 at least.
    """
    exact = torch.promote_types(scores.dtype, torch.float32)
    loss = nn.CrossEntropyLoss(ignore_index=IGNORED, reduction="sum")
    blocks = zip(scores.chunk(8), labels.chunk(8), strict=True)
    return sum(loss(some.to(exact), those) for some, those in blocks)


def encode(model: nn.Module, batch: dict[str, Tensor]) -> BertModelOutput:
    """The states of a batch; rows without a mask are full."""
    return model.bert(
        batch["input_ids"],
        batch.get("attention_mask"),
        batch.get("token_type_ids"),
    )


# %% book/objectives.md#one-loss-object-a-task 73936365
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
        outputs = encode(self.model, batch)
        sums = {}
        for task in tasks_of(batch):
            scores = task.scores(self.model, outputs, batch)
            labels = batch[task.key].flatten()
            sums[task.name] = summed_loss(scores, labels)
        return sums


# %% book/objectives.md#the-settings-of-a-run 5a4ee8ac
def fast_dtype(device: str = "cpu") -> str:
    """The type in which products on `device` are known to be fast."""
    has_it = torch.cpu.get_capabilities().get("avx512_bf16")
    return "bfloat16" if has_it or device != "cpu" else "float32"


# %% book/objectives.md#the-settings-of-a-run 4ff2bc1e
from bertbook.config import BertConfig
from bertbook.masking import Masking
from bertbook.optimization import Length, Optimization, check_fields


@dataclass(frozen=True)
class Pretraining:
    """Everything that decides what a run computes.

    Raises ValueError for a field that does not fit, alone or to another.
    """

    model: BertConfig
    length: Length
    seq_length: int = 64
    batch_size: int = 64  # rows in a step, over all parts and processes
    accumulation: int = 1  # parts in which a step's batch is computed
    objective: str = "mlm"  # or "mlm+nsp", "mlm+sop"
    masking: Masking = field(default_factory=lambda: Masking(rate=0.4))
    last_rate: float = 0.2  # the masking rate falls to this
    optimization: Optimization = field(default_factory=Optimization)
    dtype: str = field(default_factory=fast_dtype)  # of matrix products
    compiled: bool = False  # by torch.compile
    positions: str = "sinusoidal"  # how they begin; or "drawn"
    initial: str = ""  # folder of a model to go on from; "": fresh weights
    evaluate_every: int = 250  # steps
    patience: int | None = None  # evaluations without progress
    seed: int = 0
    data: str = ""  # digest of the text; filled in by the trainer

    def __post_init__(self):
        check_fields(self, _WANTED)
        _check_together(self)


# %% book/objectives.md#the-settings-of-a-run b8011ea7
OBJECTIVES = ("mlm", "mlm+nsp", "mlm+sop")


def _one_of(*names):
    return lambda v: v in names, " or ".join(map(str, names))


def _whole(least):
    number = f"a whole number, {least} or more"
    return lambda v: type(v) is int and v >= least, number


_WANTED = {
    "seq_length": _whole(3),  # [CLS], a piece, [SEP]
    "batch_size": _whole(1),
    "accumulation": _whole(1),
    "objective": _one_of(*OBJECTIVES),
    "last_rate": (lambda v: 0 < v <= 1, "a share above 0, such as 0.15"),
    "dtype": _one_of("bfloat16", "float32"),
    "compiled": _one_of(False, True),
    "positions": _one_of("sinusoidal", "drawn"),
    "evaluate_every": _whole(1),
    "patience": (
        lambda v: v is None or type(v) is int and v >= 1,
        "a whole number, 1 or more, or None for no early end",
    ),
    "seed": _whole(0),
}


# %% book/objectives.md#the-settings-of-a-run 22db0690
def _check_together(settings):
    """Fields that fit alone must fit each other."""
    length, limit = settings.seq_length, settings.model
    if length > limit.max_position_embeddings:
        raise ValueError(
            f"seq_length={length} is longer than the model's "
            f"max_position_embeddings={limit.max_position_embeddings}; "
            "give shorter rows or a model with more positions"
        )
    if settings.accumulation > settings.batch_size:
        raise ValueError(
            f"accumulation={settings.accumulation} parts are more than the "
            f"batch_size={settings.batch_size} rows; give at most one part "
            "for each row"
        )
    if settings.objective != "mlm" and limit.type_vocab_size < 2:
        raise ValueError(
            f"objective={settings.objective!r} has two segments, and the "
            f"model's type_vocab_size={limit.type_vocab_size}; give a "
            "model with 2"
        )


# %% book/objectives.md#rows a0259767
from bertbook.sentence_pairs import PairRows
from bertbook.token_files import PackedRows, TokenFiles


def rows_of(
    settings: Pretraining,
    files: TokenFiles,
    tokenizer,
    held_out: bool = False,
) -> PackedRows | PairRows:
    """The rows of `files` that the objective of `settings` learns from.

    With `held_out` they do not depend on the seed of the run. Raises
    ValueError where the text does not give such rows.
    """
    seed = 0 if held_out else settings.seed
    if settings.objective == "mlm":
        return PackedRows(files, settings.seq_length, tokenizer, seed)
    question = settings.objective.removeprefix("mlm+")
    return PairRows(files, settings.seq_length, tokenizer, seed, question)


# %% book/objectives.md#an-order-that-is-looked-up dfacb7d9
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
    place after it. Raises ValueError if no batch can be filled.
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


# %% book/objectives.md#a-batch 79127730
from bertbook.masking import Pieces, mask_rows


def make_batch(
    rows,
    pieces: Pieces,
    masking: Masking,
    seed: int,
    epoch: int,
    examples: Int[np.ndarray, " rows"],
) -> dict[str, Tensor]:
    """The tensors of some rows, masked; the same for the same address.

    `rows` are `PackedRows` or `PairRows`. The batch holds what they give,
    with pieces hidden in `input_ids`, and `positions` and `labels` as
    `mask_rows` returns them.
    """
    arrays = rows.rows(epoch, examples)
    batch = {name: torch.from_numpy(each) for name, each in arrays.items()}
    masked = mask_rows(
        batch["input_ids"], pieces, masking, seed, epoch, examples
    )
    return batch | masked._asdict()


# %% book/objectives.md#a-batch-in-parts af853aa3
def count_labels(parts: list[dict[str, Tensor]]) -> dict[str, int]:
    """How many losses each task sums, over all parts of a batch."""
    return {
        task.name: int(sum((p[task.key] != IGNORED).sum() for p in parts))
        for task in tasks_of(parts[0])
    }


# %% book/objectives.md#a-batch-in-parts 4e8f141e
from bertbook.ranks import sum_over_ranks, this_rank, unsynchronised


def accumulate(
    objective: nn.Module,
    parts: list[dict[str, Tensor]],
    cast: Callable = nullcontext,
) -> dict[str, float]:
    """Add the gradient of a batch that comes in parts.

    Each loss is divided by the count of the whole batch, over all parts
    and processes, so that the parts do not matter. `cast` opens the block
    of the forward passes. Returns the mean loss of each task.
    """
    whole = sum_over_ranks(count_labels(parts))
    totals = dict.fromkeys(whole, 0.0)
    ranks = this_rank().size
    for number, part in enumerate(parts, 1):
        with unsynchronised(objective, wait=number < len(parts)):
            with cast():
                sums = objective(part)
            means = {k: v / max(1, whole[k]) for k, v in sums.items()}
            (sum(means.values()) * ranks).backward()
        for name, mean in means.items():
            totals[name] = totals[name] + mean.detach()
    return sum_over_ranks({k: float(v) for k, v in totals.items()})


# %% book/objectives.md#evaluation c554c5fd
from bertbook.training_loop import evaluating


def evaluate_masked(
    objective: Objective,
    batches: list[dict[str, Tensor]],
    cast: Callable = nullcontext,
) -> dict[str, float]:
    """Mean loss in nats, and accuracy, over batches masked once for all.

    `loss` and `accuracy` are those of the hidden pieces; batches of pairs
    add `nsp_loss` and `nsp_accuracy`. Raises ValueError without a batch.
    """
    if not batches:
        raise ValueError("no batch to evaluate on; give held-out rows")
    totals = {}
    with evaluating(objective.model) as model, cast():
        for batch in batches:
            outputs = encode(model, batch)
            for task in tasks_of(batch):
                scores = task.scores(model, outputs, batch)
                found = _tally(scores, batch[task.key].flatten())
                totals[task.name] = found + totals.get(task.name, 0)
    results = {}
    for name, total in totals.items():
        loss, right, count = total.tolist()
        prefix = "" if name == "mlm" else f"{name}_"
        results[f"{prefix}loss"] = loss / count
        results[f"{prefix}accuracy"] = right / count
    return results


def _tally(scores, labels):
    """The summed loss, the right answers and the questions."""
    right = (scores.argmax(-1) == labels).sum()
    count = (labels != IGNORED).sum()
    return torch.stack([summed_loss(scores, labels).double(), right, count])
