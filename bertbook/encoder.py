"""The encoder

Stacks attention and feed-forward layers, each with a residual connection
and a LayerNorm, and returns what every layer saw.

The page: https://bertbook.github.io/bertbook/book/encoder.html
"""

# Tangled from book/encoder.md (b80c42ee): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "ACTIVATIONS",
    "Encoder",
    "EncoderLayer",
    "EncoderOutput",
    "FeedForward",
]


# %% book/encoder.md#the-encoder f931cf8e
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bertbook.attention import SelfAttention
from bertbook.config import BertConfig
from bertbook.embeddings import Dropout

# %% book/encoder.md#gelu c88b302c
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


# %% book/encoder.md#each-word-alone 7ee705e8
class FeedForward(nn.Module):
    """Two linear maps with an activation between.

    Attention Is All You Need, section 3.3; the activation is BERT's.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.expand = nn.Linear(
            config.hidden_size, config.intermediate_size
        )
        self.activation = ACTIVATIONS[config.hidden_act]
        self.contract = nn.Linear(
            config.intermediate_size, config.hidden_size
        )

    def forward(
        self, hidden: Float[Tensor, "*batch hidden"]
    ) -> Float[Tensor, "*batch hidden"]:
        """Each position on its own."""
        return self.contract(self.activation(self.expand(hidden)))


# %% book/encoder.md#residuals-and-norms 9ffaf191
class EncoderLayer(nn.Module):
    """Attention and feed-forward, each with its residual and LayerNorm.

    `layer_norm="pre"` in the configuration moves the norms to the front.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.pre = config.layer_norm == "pre"
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(size, eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(size, eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden: Float[Tensor, "*batch seq hidden"],
        mask: Bool[Tensor, "batch 1 #seq seq"] | None = None,
        lengths: list[int] | None = None,
        output_attentions: bool = False,
    ) -> tuple[
        Float[Tensor, "*batch seq hidden"],
        Float[Tensor, "batch heads seq seq"] | None,
    ]:
        """The new hidden states, and the attention weights if asked for.

        The arguments are those of `SelfAttention.forward`.
        """
        before = self.attention_norm(hidden) if self.pre else hidden
        gathered, weights = self.attention(
            before, mask, lengths, output_attentions
        )
        hidden = hidden + self.dropout(gathered)
        if self.pre:
            thought = self.feed_forward(self.feed_forward_norm(hidden))
            return hidden + self.dropout(thought), weights
        hidden = self.attention_norm(hidden)
        hidden = hidden + self.dropout(self.feed_forward(hidden))
        return self.feed_forward_norm(hidden), weights


# %% book/encoder.md#the-stack f52e7903
class EncoderOutput(NamedTuple):
    """What the encoder returns; `attentions` is empty unless asked for."""

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]  # embeddings first, then each layer
    attentions: tuple[Tensor, ...]


# %% book/encoder.md#the-stack c6658a15
class Encoder(nn.Module):
    """`num_hidden_layers` layers, one after another."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.gradient_checkpointing = config.gradient_checkpointing
        self.layers = nn.ModuleList(
            EncoderLayer(config) for _ in range(config.num_hidden_layers)
        )
        self.final_norm = (
            nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
            if config.layer_norm == "pre"
            else nn.Identity()
        )

    def forward(
        self,
        hidden: Float[Tensor, "*batch seq hidden"],
        mask: Bool[Tensor, "batch 1 #seq seq"] | None = None,
        lengths: list[int] | None = None,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """All hidden states and, if asked for, all attention weights.

        The arguments are those of `SelfAttention.forward`.
        """
        states, attentions = [hidden], []
        for layer in self.layers:
            arguments = (states[-1], mask, lengths, output_attentions)
            if self.gradient_checkpointing and self.training:
                new, weights = checkpoint(
                    layer, *arguments, use_reentrant=False
                )
            else:
                new, weights = layer(*arguments)
            states.append(new)
            attentions.append(weights)
        states[-1] = self.final_norm(states[-1])
        return EncoderOutput(
            states[-1],
            tuple(states),
            tuple(attentions) if output_attentions else (),
        )
