"""Attention

Lets every token read every other: queries, keys and values, the softmax of
their scaled products, masks, and many heads at once.

The page: https://bertbook.github.io/bertbook/book/attention.html
"""

# Tangled from book/attention.md (ea96d502): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "SelfAttention",
    "additive_mask",
    "attend",
    "attend_fast",
    "attend_packed",
    "attention_weights",
]


# %% book/attention.md#attention 13f3a32b
import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bertbook.config import BertConfig
from bertbook.embeddings import dropout


# %% book/attention.md#masks 0454f47d
def additive_mask(
    mask: Bool[Tensor, "*shape"], dtype: torch.dtype
) -> Float[Tensor, "*shape"]:
    """0 where `mask` is true, the most negative finite number elsewhere.

    Finite, because the softmax of a row of minus infinities is NaN.
    """
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill_(~mask, torch.finfo(dtype).min)


# %% book/attention.md#the-formula-in-code 057c62ae
def attention_weights(
    query: Float[Tensor, "*batch queries d_k"],
    key: Float[Tensor, "*batch keys d_k"],
    mask: Bool[Tensor, "*#batch #queries keys"] | None = None,
) -> Float[Tensor, "*batch queries keys"]:
    """softmax(QKᵀ/√d_k), each row over the keys that `mask` allows.

    `mask` is true where a query may look. A row that may look nowhere gets
    even weights. Attention Is All You Need, equation 1.
    """
    query = query / math.sqrt(query.shape[-1])  # fewer than the scores
    scores = query @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


# %% book/attention.md#the-formula-in-code 220cf400
def attend(
    query: Float[Tensor, "*batch queries d_k"],
    key: Float[Tensor, "*batch keys d_k"],
    value: Float[Tensor, "*batch keys d_v"],
    mask: Bool[Tensor, "*#batch #queries keys"] | None = None,
    dropout_p: float = 0.0,
) -> tuple[
    Float[Tensor, "*batch queries d_v"],
    Float[Tensor, "*batch queries keys"],
]:
    """softmax(QKᵀ/√d_k)V by the formula, and the weights themselves.

    Dropout, with probability `dropout_p`, acts on the weights that are
    used, not on those returned.
    """
    weights = attention_weights(query, key, mask)
    used = dropout(weights, dropout_p) if dropout_p else weights
    return used @ value, weights


# %% book/attention.md#the-same-without-the-weights 65f3dc66
def attend_fast(
    query: Float[Tensor, "*batch queries d_k"],
    key: Float[Tensor, "*batch keys d_k"],
    value: Float[Tensor, "*batch keys d_v"],
    mask: Bool[Tensor, "*#batch #queries keys"] | None = None,
    dropout_p: float = 0.0,
) -> Float[Tensor, "*batch queries d_v"]:
    """What `attend` computes, by PyTorch's kernel, without the weights.

    On a CPU the kernel knows no dropout, and `attend` does it.
    """
    if dropout_p and query.is_cpu:
        return attend(query, key, value, mask, dropout_p)[0]
    if mask is not None:
        mask = additive_mask(mask, query.dtype)
    return F.scaled_dot_product_attention(
        query, key, value, mask, dropout_p
    )


# %% book/attention.md#batches-without-padding 09170c8c
def attend_packed(
    projected: Float[Tensor, "tokens 3 heads d_k"],
    lengths: list[int],
    dropout_p: float = 0.0,
    explicit: bool = False,
) -> Float[Tensor, "tokens heads d_k"]:
    """Attention inside each sequence of a batch without padding.

    `projected` holds the query, key and value of each token. The sequences
    lie one after another; their `lengths` sum to the number of tokens.
    `explicit` takes `attend`, not the fused kernel of `attend_fast`.
    """
    by_head = projected.permute(1, 2, 0, 3).unsqueeze(1)
    contexts = []
    for part in by_head.split(lengths, dim=3):
        if explicit:
            context, _ = attend(*part, dropout_p=dropout_p)
        else:
            context = attend_fast(*part, dropout_p=dropout_p)
        contexts.append(context[0].transpose(0, 1))
    return torch.cat(contexts)


# %% book/attention.md#the-layer 656cebf4
class SelfAttention(nn.Module):
    """Multi-head self-attention (Attention Is All You Need, section 3.2.2).

    The three projections of all heads are one matrix, `query_key_value`.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.dropout_prob = float(config.attention_probs_dropout_prob)
        self.explicit = config.attn_implementation == "eager"
        self.query_key_value = nn.Linear(size, 3 * size)
        self.output = nn.Linear(size, size)

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
        """What each position gathers, and the weights if asked for.

        `mask` is true where a query may look at a key. With `lengths`,
        `hidden` is a batch without padding, of shape (tokens, hidden), and
        there are neither mask nor weights.
        """
        dropout_p = self.dropout_prob if self.training else 0.0
        projected = self.query_key_value(hidden)
        projected = projected.unflatten(-1, (3, self.num_heads, -1))
        weights = None
        if lengths is not None:
            context = attend_packed(
                projected, lengths, dropout_p, self.explicit
            )
        else:
            query_key_value = projected.permute(2, 0, 3, 1, 4)
            if self.explicit or output_attentions:
                context, weights = attend(*query_key_value, mask, dropout_p)
            else:
                context = attend_fast(*query_key_value, mask, dropout_p)
            context = context.transpose(1, 2)
        weights = weights if output_attentions else None
        return self.output(context.flatten(-2)), weights
