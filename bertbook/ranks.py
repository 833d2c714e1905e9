"""Many processes

Divides each batch among processes that train one model together, and sums
what they count; with one process nothing happens.

The page: https://bertbook.github.io/bertbook/book/ranks.html
"""

# Tangled from book/ranks.md (136f4474): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "Rank",
    "first_says",
    "replicate",
    "share_of",
    "sum_over_ranks",
    "this_rank",
    "together",
    "unsynchronised",
]


# %% book/ranks.md#who-am-i 5f62ca93
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn


class Rank(NamedTuple):
    """The number of this process and how many there are."""

    number: int = 0
    size: int = 1


def this_rank() -> Rank:
    """The place of this process; (0, 1) where it is alone."""
    if dist.is_available() and dist.is_initialized():
        return Rank(dist.get_rank(), dist.get_world_size())
    return Rank()


# %% book/ranks.md#meeting 75e55786
@contextmanager
def together() -> Iterator[Rank]:
    """Join the processes that `torchrun` started, for a block.

    Processes meet by NCCL on GPUs and by gloo elsewhere. Without
    `torchrun` this does nothing.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield this_rank()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield this_rank()
    finally:
        dist.destroy_process_group()


# %% book/ranks.md#shares-and-sums de131d42
def share_of(examples, rank: Rank):
    """The rows of `examples` that this process computes."""
    return examples[rank.number :: rank.size]


def sum_over_ranks(
    counts: dict[str, float], device: str | torch.device = "cpu"
) -> dict[str, float]:
    """Each number, summed over all processes."""
    if this_rank().size == 1:
        return counts
    values = list(counts.values())
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(counts, total.tolist()))


# %% book/ranks.md#shares-and-sums 9d580b4a
def first_says(values: list[float]) -> list[float]:
    """What the first process says, so that all stop at one step."""
    rank = this_rank()
    if rank.size == 1:
        return values
    mine = values if rank.number == 0 else [0.0] * len(values)
    named = {str(place): value for place, value in enumerate(mine)}
    return list(sum_over_ranks(named).values())


# %% book/ranks.md#one-gradient f267bc46
def replicate(module: nn.Module) -> nn.Module:
    """A module whose backward pass averages gradients over processes."""
    if this_rank().size == 1:
        return module
    return nn.parallel.DistributedDataParallel(module)


def unsynchronised(module: nn.Module, wait: bool):
    """A block whose gradients stay here, if `wait`: a later one sums."""
    if wait and isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return nullcontext()
