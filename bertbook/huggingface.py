"""The same with transformers

Scores any masked language model, of this book or of transformers, and gives
a Trainer the settings with which it takes the steps of this book's loop.

The page: https://bertbook.github.io/bertbook/book/huggingface.html
"""

# Tangled from book/huggingface.md (eaba3cad): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "MaskedScores",
    "MeanPooled",
    "PseudoScore",
    "evaluate_masked_lm",
    "make_finetuner",
    "pseudo_perplexity",
    "pseudo_scores",
    "save_start",
    "scores_at",
    "trainer_arguments",
]


# %% book/huggingface.md#the-same-question-asked-of-both 10d1d12d
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def scores_at(
    model: nn.Module,
    input_ids: Int[Tensor, "rows seq"],
    chosen: Bool[Tensor, "rows seq"],
) -> Float[Tensor, "cases vocab"]:
    """Scores of the vocabulary at the `chosen` positions, row by row.

    `model` is a masked LM of this book, whose head is computed there only,
    or another whose output has `logits`, such as one of `transformers`.
    The rows have no padding.
    """
    if not hasattr(model, "mlm_head"):
        return model(input_ids=input_ids).logits[chosen]
    hidden = model.bert(input_ids).last_hidden_state
    table = model.bert.embeddings.tokens.weight
    return model.mlm_head(hidden[chosen], table)


# %% book/huggingface.md#the-same-question-asked-of-both 0406cc76
from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np

from bertbook.masking import Masking, Pieces, mask_rows, spread_labels


def _ids_of(tokenizer, texts, max_length):
    """The ids of each text, by a tokenizer of either world."""
    texts = list(texts)
    cut = dict(truncation=True, max_length=max_length)
    return tokenizer(texts, **cut)["input_ids"] if texts else []


def _hide(rows, tokenizer, masking, seed):
    """Hide pieces of each row alone, so that no other row matters."""
    pieces = Pieces.of(tokenizer)
    for number, ids in enumerate(rows):
        address = seed, 0, np.array([number])
        masked = mask_rows(torch.tensor([ids]), pieces, masking, *address)
        yield masked.input_ids[0], spread_labels(masked)[0]


def _batches(rows, batch_tokens):
    """Rows of one length, so that none is padded."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    for size, group in groupby(rows, key=lambda row: len(row[0])):
        same, step = list(group), max(1, batch_tokens // size)
        for start in range(0, len(same), step):
            columns = zip(*same[start : start + step])
            yield [torch.stack(column) for column in columns]


# %% book/huggingface.md#the-same-question-asked-of-both 850c4e92
from typing import NamedTuple

from bertbook.losses import IGNORED
from bertbook.objectives import summed_loss


class MaskedScores(NamedTuple):
    """How well a model guesses hidden pieces."""

    loss: float  # nats a hidden piece
    top1: float  # the share that is the first guess,
    top5: float  # or among the first five
    pieces: int  # how many were hidden


def _tally(scores, labels):
    """The summed loss, the hits among one and five guesses, the count."""
    best = scores.topk(min(5, scores.shape[1])).indices
    hits = best == labels[:, None]
    found = hits[:, 0].sum(), hits.any(1).sum(), len(labels)
    return torch.tensor([summed_loss(scores, labels), *found]).double()


# %% book/huggingface.md#the-same-question-asked-of-both 97d94db9
from bertbook.training_loop import evaluating


def evaluate_masked_lm(
    model: nn.Module,
    tokenizer,
    texts: Iterable[str],
    *,
    masking: Masking | None = None,
    seed: int = 0,
    max_length: int = 128,
    batch_tokens: int = 4096,
) -> MaskedScores:
    """Loss and accuracy of a masked LM, of this book or of `transformers`.

    What `masking` (None: BERT's) hides depends on the text, its number and
    `seed` only. What is longer than `max_length` pieces is cut; a batch has
    at most `batch_tokens`, or one row. Raises ValueError where nothing can
    be hidden.
    """
    rows = _ids_of(tokenizer, texts, max_length)
    rows = _hide(rows, tokenizer, masking or Masking(), seed)
    total, device = torch.zeros(4).double(), next(model.parameters()).device
    with evaluating(model):
        for ids, labels in _batches(rows, batch_tokens):
            chosen = labels != IGNORED
            scores = scores_at(model, ids.to(device), chosen.to(device))
            total += _tally(scores.cpu(), labels[chosen])
    loss, first, five, count = total.tolist()
    if not count:
        raise ValueError(
            "no piece of the texts can be hidden; give texts with words of "
            "the vocabulary"
        )
    return MaskedScores(
        loss / count, first / count, five / count, int(count)
    )


# %% book/huggingface.md#one-piece-at-a-time a7cbdd93
class PseudoScore(NamedTuple):
    """The pseudo-log-likelihood of a text."""

    log_likelihood: float  # nats, 0 at best
    pieces: int  # of which it is the sum


def pseudo_scores(
    model: nn.Module,
    tokenizer,
    texts: Iterable[str],
    *,
    max_length: int = 128,
    batch_tokens: int = 4096,
) -> Iterator[PseudoScore]:
    """The score of each text, its pieces hidden one at a time.

    After Salazar et al. (2020). Special tokens, [UNK] too, are not asked
    for. What is longer than `max_length` pieces is cut.
    """
    special, mask_id = tokenizer.all_special_ids, tokenizer.mask_token_id
    for ids in _ids_of(tokenizer, texts, max_length):
        row = torch.tensor(ids)
        at = (~torch.isin(row, torch.tensor(special))).nonzero()[:, 0]
        parts = at.split(max(1, batch_tokens // len(row)))
        with evaluating(model):
            found = [
                _one_at_a_time(model, row, places, mask_id)
                for places in parts
                if len(places)
            ]
        yield PseudoScore(sum(found, 0.0), len(at))


# %% book/huggingface.md#one-piece-at-a-time 0f35df43
def _one_at_a_time(model, row, places, mask_id):
    """The sum of log P of the piece at each place given all others."""
    device = next(model.parameters()).device
    chosen = places[:, None] == torch.arange(len(row))
    copies = row.expand(len(places), -1).masked_fill(chosen, mask_id)
    scores = scores_at(model, copies.to(device), chosen.to(device))
    return -summed_loss(scores.cpu(), row[places]).item()


# %% book/huggingface.md#one-piece-at-a-time d55887ab
import math


def pseudo_perplexity(scores: Iterable[PseudoScore]) -> float:
    """exp of the mean surprise at a piece (Salazar et al., 2020).

    Raises ValueError without a piece.
    """
    scores = list(scores)
    count = sum(score.pieces for score in scores)
    if not count:
        raise ValueError(
            f"none of {len(scores)} texts has a piece to ask for; give "
            "texts with words of the vocabulary"
        )
    return math.exp(-sum(score.log_likelihood for score in scores) / count)


# %% book/huggingface.md#their-trainer-our-loop dcc9aac0
from pathlib import Path

from bertbook.checkpoints import draw
from bertbook.heads import BertForSequenceClassification
from bertbook.tokenizer import BertTokenizer


def save_start(
    source: str | Path,
    folder: str | Path,
    labels: tuple[str, ...],
    seed: int = 0,
    **changes,
) -> None:
    """Give the encoder of `source` a classifier, and save both.

    The classifier is the one that `finetune` draws by `seed`; `changes`
    are fields of the configuration. Both worlds begin with one model.
    """
    torch.manual_seed(seed)
    changes |= {"num_labels": len(labels), "labels": tuple(labels)}
    changes["dtype"] = torch.float32
    model = BertForSequenceClassification.from_pretrained(source, **changes)
    torch.manual_seed(seed)
    draw(model.classifier, "weight", model.config.initializer_range)
    tokenizer = BertTokenizer.from_pretrained(source)
    model.save_pretrained(folder, tokenizer=tokenizer)


# %% book/huggingface.md#their-trainer-our-loop 7d1d18ed
from bertbook.finetuning import Finetuning


def _refuse(wanted):
    """Raise for a value that no argument of a Trainer means."""
    for name, (value, only) in wanted.items():
        if value != only:
            raise ValueError(
                f"{name}={value!r} means something else to a Trainer, or "
                f"nothing; give {only!r}"
            )


# %% book/huggingface.md#their-trainer-our-loop 9e7c49fc
def _refuse_what_differs(settings):
    chosen, length = settings.optimization, settings.length
    wanted = {
        "optimizer": (chosen.optimizer, "adamw"),
        "weight_decay": (chosen.weight_decay, 0.0),  # tables decay there
        "dropout": (settings.dropout, None),  # the folder's configuration
        "reinitialised": (settings.reinitialised, 0),
        "fresh": (settings.fresh, False),
        "dtype": (settings.dtype, "float32"),
        "patience": (settings.patience, None),
    }
    if length is not None:
        wanted["length"] = length, type(length)(steps=length.steps or 1)
    _refuse(wanted)


# %% book/huggingface.md#their-trainer-our-loop 04324883
def trainer_arguments(settings: Finetuning, rows: int) -> dict:
    """The `TrainingArguments` that take the steps of `settings`.

    `rows` is the size of the training set. The warm-up is rounded to whole
    steps. Raises ValueError for a setting that a Trainer lacks.
    """
    _refuse_what_differs(settings)
    chosen, length = settings.optimization, settings.length
    epoch = math.ceil(rows / settings.batch_size)
    usual = math.ceil(round(settings.epochs * epoch, 6))
    steps = length.steps if length else usual
    return {
        "max_steps": steps,
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": chosen.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": round(chosen.warmup * steps),
        "adam_beta1": chosen.betas[0],
        "adam_beta2": chosen.betas[1],
        "adam_epsilon": chosen.eps,
        "weight_decay": 0.0,
        "max_grad_norm": chosen.clip_norm or 0.0,  # 0: no clipping
        "seed": settings.seed,
    }


# %% book/huggingface.md#their-trainer-our-loop 5bf131a3
import torch.nn.functional as F


class MeanPooled(nn.Module):
    """A classifier of `transformers` that reads the mean of the states.

    `model` is its `BertForSequenceClassification`, which reads [CLS].
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.bert, self.dropout = model.bert, model.dropout
        self.classifier = model.classifier

    def forward(
        self, input_ids, attention_mask, token_type_ids=None, labels=None
    ) -> dict:
        """`logits`, (batch, classes); with `labels`, the `loss` too."""
        hidden = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
        ).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        logits = self.classifier(self.dropout(mean))
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


# %% book/huggingface.md#their-trainer-our-loop c2feb3e0
from collections.abc import Sequence

from bertbook.classification import Classification
from bertbook.labelled_data import Labelled
from bertbook.side_by_side import QUIET


def _encoded(rows, tokenizer, max_length):
    """`rows` with the columns of the tokenizer beside their own."""

    def encode(batch):
        return tokenizer(
            batch["text"], truncation=True, max_length=max_length
        )

    return rows.map(encode, batched=True)


def _share_right(found):
    scores, labels = found
    return {"accuracy": float((scores.argmax(-1) == labels).mean())}


# %% book/huggingface.md#their-trainer-our-loop 09f737fd
def make_finetuner(
    settings: Finetuning,
    task: Classification,
    train: Labelled,
    held_out: Labelled,
    folder: str | Path,
    *,
    model: nn.Module | None = None,
    order: Sequence[int] | None = None,
    **arguments,
):
    """A `transformers.Trainer` that does, on a CPU, what `finetune` does.

    It begins with `settings.initial`, a folder that `save_start` wrote, or
    with `model`. `order` names the rows of all steps, one after another;
    without it they are shuffled. `arguments` change `trainer_arguments`,
    whose errors it raises. Needs transformers and accelerate.
    """
    import transformers as hub

    _refuse({"weights": (task.weights, None)})
    words = hub.AutoTokenizer.from_pretrained(settings.initial)
    if model is None:
        kind = hub.AutoModelForSequenceClassification
        model = kind.from_pretrained(settings.initial)
        model = MeanPooled(model) if task.pooling == "mean" else model
    options = QUIET | {"logging_strategy": "steps", "logging_steps": 1}
    options |= trainer_arguments(settings, len(train.rows))
    options["per_device_eval_batch_size"] = settings.batch_size
    rows = train.rows
    if order is not None:
        rows = rows.select(order)
        options["train_sampling_strategy"] = "sequential"
    trainer = hub.Trainer(
        model,
        hub.TrainingArguments(str(folder), **(options | arguments)),
        hub.DataCollatorWithPadding(words),
        _encoded(rows, words, settings.max_length),
        _encoded(held_out.rows, words, settings.max_length),
        compute_metrics=_share_right,
    )
    trainer.remove_callback(hub.PrinterCallback)
    return trainer
