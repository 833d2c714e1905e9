"""BERT

Puts embeddings and encoder together, pools the first token, and checks what
it is given before it computes.

The page: https://bertbook.github.io/bertbook/book/model.html
"""

# Tangled from book/model.md (e2a31553): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "BertModel",
    "BertModelOutput",
    "Pooler",
]


# %% book/model.md#the-model 01802262
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bertbook.checkpoints import PreTrainedModel
from bertbook.config import BertConfig
from bertbook.embeddings import Embeddings
from bertbook.encoder import Encoder


# %% book/model.md#the-model 8897b0d2
class Pooler(nn.Module):
    """tanh of a linear map of the first position ([CLS])."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden: Float[Tensor, "batch seq hidden"]
    ) -> Float[Tensor, "batch hidden"]:
        """One vector a sequence."""
        return self.dense(hidden[:, 0]).tanh()


# %% book/model.md#the-model ea149c11
class BertModelOutput(NamedTuple):
    """What `BertModel` returns."""

    last_hidden_state: Tensor  # (batch, seq, hidden)
    pooler_output: Tensor | None  # (batch, hidden)
    hidden_states: tuple[Tensor, ...] | None  # embeddings, then each layer
    attentions: tuple[Tensor, ...] | None  # (batch, heads, seq, seq) a layer


# %% book/model.md#the-model 791572b6
class BertModel(PreTrainedModel):
    """Embeddings, encoder and pooler (BERT, section 3)."""

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config) if add_pooling_layer else None
        self.initialise()

    def forward(
        self,
        input_ids,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        output_attentions=False,
        output_hidden_states=False,
    ) -> BertModelOutput:
        """(prototype: no checks, no padding removal)"""
        mask = None
        if attention_mask is not None and not attention_mask.all():
            mask = attention_mask.bool()
            mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
        hidden = self.embeddings(input_ids, token_type_ids, position_ids)
        encoded = self.encoder(hidden, mask, None, output_attentions)
        last = encoded.last_hidden_state
        return BertModelOutput(
            last,
            None if self.pooler is None else self.pooler(last),
            encoded.hidden_states if output_hidden_states else None,
            encoded.attentions if output_attentions else None,
        )
