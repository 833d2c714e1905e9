"""The speed ladder

Climbs from a textbook's training step to the one that this book trains
with, one technique a rung, and shows for each what it changes and what it
is worth.

The page: https://bertbook.github.io/bertbook/book/performance.html
"""

# Tangled from book/performance.md (e3dfebb8): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "ASIDES",
    "Climber",
    "Ground",
    "Rung",
    "STEPS",
    "Work",
    "asides",
    "count_work",
    "ladder",
    "rung_objective",
    "rung_optimizers",
    "rung_rows",
]


# %% book/performance.md#the-rungs 28fd1a6e
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rung:
    """How a training step is made; the defaults are the textbook's."""

    files: bool = False  # ids from token files, whole batches masked
    masked_only: bool = False  # scores only where a label stands
    stacked: bool = False  # one product for all projections
    attention: str = "loop"  # over heads; "eager": all at once; "sdpa"
    dropout: float = 0.1
    unpadded: bool = False  # the layers see no padding
    packed: bool = False  # rows that have none
    dtype: str = "float32"
    optimizer: str = "looped"  # over parameters; "fused"; "muon"
    small_vocabulary: bool = False
    threads: int = 1  # 0: one for each core
    positions: str = "drawn"  # or "sinusoidal"
    compiled: bool = False


# %% book/performance.md#the-rungs 12d8b81c
STEPS = {
    "textbook": {},
    "token files": {"files": True},
    "masked positions": {"masked_only": True},
    "stacked projections": {"stacked": True},
    "heads at once": {"attention": "eager"},
    "no dropout": {"dropout": 0.0},
    "no padding": {"unpadded": True},
    "packed rows": {"packed": True},
    "bfloat16": {"dtype": "bfloat16"},
    "fused optimizer": {"optimizer": "fused"},
    "small vocabulary": {"small_vocabulary": True},
    "all cores": {"threads": 0},
    "recipe": {"optimizer": "muon", "positions": "sinusoidal"},
}
ASIDES = {
    "attention kernel": {"attention": "sdpa"},
    "compiled": {"compiled": True},
}


def ladder() -> dict[str, Rung]:
    """The rungs of `STEPS`, each with the changes of those below."""
    rung, rungs = Rung(), {}
    for name, change in STEPS.items():
        rungs[name] = rung = replace(rung, **change)
    return rungs


def asides() -> dict[str, Rung]:
    """The changes of `ASIDES`, each alone, from the rung "all cores"."""
    start = ladder()["all cores"]
    return {name: replace(start, **new) for name, new in ASIDES.items()}


# %% book/performance.md#the-rungs 70a58258
from typing import NamedTuple

from bertbook.config import BertConfig
from bertbook.pretraining_text import Text


class Ground(NamedTuple):
    """What all rungs of a ladder stand on."""

    base: BertConfig
    documents: list[str]  # of the training part
    texts: dict[bool, Text]  # by whether the vocabulary is small
    seq_length: int = 64
    batch_size: int = 32


# %% book/performance.md#a-climber fd562986
import torch

from bertbook.heads import BertForMaskedLM
from bertbook.objectives import Objective
from bertbook.optimization import Optimization, make_optimizers
from bertbook.run_folder import sinusoidal_positions
from bertbook.textbook_step import Everywhere, HeadByHead


def rung_objective(rung: Rung, base: BertConfig, size: int) -> Objective:
    """Fresh weights, the same on all rungs of one vocabulary `size`."""
    config = replace(
        base,
        vocab_size=size,
        hidden_dropout_prob=rung.dropout,
        attention_probs_dropout_prob=rung.dropout,
        attn_implementation="sdpa" if rung.attention == "sdpa" else "eager",
        remove_padding=rung.unpadded,
    )
    torch.manual_seed(0)
    model = BertForMaskedLM(config)
    if rung.positions == "sinusoidal":
        sinusoidal_positions(model.bert.embeddings.positions.weight)
    if rung.attention == "loop":
        for layer in model.bert.encoder.layers:
            layer.attention = HeadByHead(layer.attention, rung.stacked)
    return Objective(model) if rung.masked_only else Everywhere(model)


# %% book/performance.md#a-climber 486a2d46
from bertbook.textbook_step import SentenceRows, TextRows
from bertbook.token_files import PackedRows


def rung_optimizers(rung: Rung, model) -> list[torch.optim.Optimizer]:
    """AdamW, parameter by parameter or in one kernel; or Muon with it."""
    kind = "muon" if rung.optimizer == "muon" else "adamw"
    settings = Optimization(kind, learning_rate=1e-3)
    optimizers = make_optimizers(model, settings)
    if rung.optimizer == "looped":
        for group in optimizers[0].param_groups:
            group |= {"fused": False, "foreach": False}
    return optimizers


def rung_rows(rung: Rung, ground: Ground, part: str = "train"):
    """The source of rows that a rung reads."""
    text = ground.texts[rung.small_vocabulary]
    tokenizer, length = text.tokenizer, ground.seq_length
    if rung.packed or part != "train":
        return PackedRows(getattr(text, part), length, tokenizer)
    if rung.files:
        return SentenceRows(text.train, length, tokenizer)
    return TextRows(ground.documents, tokenizer, length)


# %% book/performance.md#a-climber 8b5737bc
import time
from contextlib import nullcontext
from functools import partial

from bertbook.masking import Masking, Pieces
from bertbook.objectives import Place, accumulate, batches_from, make_batch
from bertbook.optimization import set_rates, take_step, warmup_linear
from bertbook.textbook_step import make_batch_by_rows, real_tokens


class Climber:
    """A training run whose steps are made as a rung says."""

    def __init__(self, rung: Rung, ground: Ground):
        tokenizer = ground.texts[rung.small_vocabulary].tokenizer
        self.rung, self.pieces = rung, Pieces.of(tokenizer)
        size = len(tokenizer.get_vocab())
        self.objective = rung_objective(rung, ground.base, size)
        self.trained = self.objective
        if rung.compiled:
            self.trained = torch.compile(self.objective)
        self.optimizers = rung_optimizers(rung, self.objective.model)
        self.rows = rung_rows(rung, ground)
        count = ground.batch_size
        self.batches = batches_from(self.rows, count, 0, Place(0, 0))
        self.cast = nullcontext
        if rung.dtype != "float32":
            kind = getattr(torch, rung.dtype)
            self.cast = partial(torch.autocast, "cpu", kind)

    def step(self, done: float) -> dict[str, float]:
        """One step after the share `done` of the run, and its costs."""
        start = time.perf_counter()
        place, examples = next(self.batches)
        make = make_batch if self.rung.files else make_batch_by_rows
        batch = make(
            self.rows, self.pieces, Masking(), 0, place.epoch, examples
        )
        made = time.perf_counter()
        set_rates(self.optimizers, warmup_linear(done, 0.1))
        loss = accumulate(self.trained, [batch], self.cast)["mlm"]
        take_step(self.objective, self.optimizers, 1.0)
        return {
            "loss": loss,
            "tokens": real_tokens(batch),
            "data_seconds": made - start,
            "seconds": time.perf_counter() - start,
        }


# %% book/performance.md#the-same-loss-on-every-rung 2ef1dac7
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


class Work(NamedTuple):
    """What one step does, whatever the machine."""

    tokens: int  # that are not padding
    operations: int  # of matrix products
    kept: int  # bytes that the backward pass needs of the forward pass
    calls: int  # of PyTorch's operators


class _Calls(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


# %% book/performance.md#the-same-loss-on-every-rung 2b0b4b8c
def count_work(climber: Climber) -> Work:
    """Count what one step of a climber does."""
    fixed = {
        each.untyped_storage().data_ptr()
        for each in climber.objective.parameters()
    }
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    flops = FlopCounterMode(display=False)
    with _Calls() as calls, flops:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            step = climber.step(0.5)
    return Work(
        step["tokens"],
        flops.get_total_flops(),
        sum(kept.values()),
        calls.count,
    )
