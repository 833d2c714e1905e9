"""Checkpoints

Reads and writes published checkpoints: a folder or a hub name in, a model
and a report out, and never a pickle.

The page: https://bertbook.github.io/bertbook/book/checkpoints.html
"""

# Tangled from book/checkpoints.md (b4e44ecc): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "PreTrainedModel",
]


# %% book/checkpoints.md#the-base-class e10ac34f
import torch
from torch import nn

from bertbook.config import BertConfig


# %% book/checkpoints.md#the-base-class b4fb2d28
class PreTrainedModel(nn.Module):
    """(prototype)"""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config

    def initialise(self) -> None:
        """Draw all weights."""
