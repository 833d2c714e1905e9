"""Many processes

Divides each batch among processes that train one model together, and sums
what they count; with one process nothing happens.

The page: https://bertbook.github.io/bertbook/book/ranks.html
"""

# Tangled from book/ranks.md (cde85148): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "PATIENCE",
    "Rank",
    "any_says",
    "check_shares",
    "first_does",
    "first_says",
    "replicate",
    "share_of",
    "sum_over_ranks",
    "this_rank",
    "together",
    "unsynchronised",
]


# %% book/ranks.md#who-am-i d147a78f
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
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


# %% book/ranks.md#meeting 6627ff4f
PATIENCE = timedelta(minutes=10)


@contextmanager
def together() -> Iterator[Rank]:
    """Join the processes that `torchrun` started, for a block.

    GPU tensors go by NCCL, others by gloo; each process takes the GPU of
    its local number. Without `torchrun` this does nothing. A process that
    leaves by an error tells the others by ending.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield this_rank()
        return
    backend, gpus = "gloo", torch.cuda.device_count()
    if gpus:
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
    dist.init_process_group(backend, timeout=PATIENCE)
    yield this_rank()
    dist.destroy_process_group()


# %% book/ranks.md#shares f31c1a3b
def share_of(examples, rank: Rank):
    """The rows of `examples` that this process computes."""
    return examples[rank.number :: rank.size]


def check_shares(batch_size: int, parts: int = 1) -> None:
    """Refuse batches that leave a process without a row.

    A batch of `batch_size` rows is divided into `parts`, and each part
    among the processes. Raises ValueError.
    """
    size = this_rank().size
    if batch_size // parts < size:
        raise ValueError(
            f"batch_size={batch_size} in {parts} parts for {size} "
            "processes leaves one without a row; give batch_size="
            f"{parts * size} or more, fewer parts (accumulation), or fewer "
            "processes"
        )


# %% book/ranks.md#sums-and-decisions 32d8c845
def sum_over_ranks(counts: dict[str, float]) -> dict[str, float]:
    """Each number, summed over all processes, who give the same names."""
    if this_rank().size == 1:
        return counts
    total = torch.tensor(list(counts.values()), dtype=torch.float64)
    dist.all_reduce(total)
    return dict(zip(counts, total.tolist()))


# %% book/ranks.md#sums-and-decisions 5fb0c4dc
def first_says(values: list[float]) -> list[float]:
    """What the first process says, so that all stop at one step."""
    rank = this_rank()
    if rank.size == 1:
        return values
    mine = values if rank.number == 0 else [0.0] * len(values)
    named = {str(place): value for place, value in enumerate(mine)}
    return list(sum_over_ranks(named).values())


def any_says(wish: bool) -> bool:
    """Whether any process has this wish: the same answer for all."""
    return sum_over_ranks({"wishes": float(wish)})["wishes"] > 0


# %% book/ranks.md#sums-and-decisions 5fb091e7
def first_does(work: Callable[[], object]) -> None:
    """Let the first process do `work` while the others wait for its end.

    It begins when all have come, so that nothing they looked at before is
    changed by it. They may wait for days, not for a process that failed.
    """
    rank = this_rank()
    if rank.size == 1:
        work()
        return
    waiting = dist.new_group(timeout=timedelta(days=7), backend="gloo")
    if rank.number == 0:
        work()
    dist.barrier(group=waiting)
    dist.destroy_process_group(waiting)


# %% book/ranks.md#one-gradient c5a8e990
def replicate(module: nn.Module) -> nn.Module:
    """A module whose backward pass averages gradients over processes.

    All begin with the first one's parameters, and every parameter must
    take part in every step. Raises ValueError where processes would share
    a GPU.
    """
    if this_rank().size == 1:
        return module
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = torch.cuda.device_count()
    if next(module.parameters()).is_cuda and here > gpus:
        raise ValueError(
            f"there are {here} processes on a machine with {gpus} GPUs, "
            f"and each needs its own; give --nproc_per_node {gpus}"
        )
    return nn.parallel.DistributedDataParallel(
        module, gradient_as_bucket_view=True
    )


def unsynchronised(module: nn.Module, wait: bool):
    """A block whose gradients stay here, if `wait`: a later one sums."""
    if wait and isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return nullcontext()
