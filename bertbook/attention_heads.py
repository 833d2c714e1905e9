"""What heads do

Measures the heads of a model on real sentences: how spread out and how far
they look, which patterns they follow, how much of what they read is used,
and what is lost when one is switched off.

The page: https://bertbook.github.io/bertbook/book/attention_heads.html
"""

# Tangled from book/attention_heads.md (5ac55390): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "ablate_heads",
    "attention_distance",
    "attention_entropy",
    "matching_losses",
    "mean_vectors",
    "measure",
    "measure_heads",
    "pattern_score",
    "pattern_targets",
    "uniform_attention",
    "value_norms",
]


# %% book/attention_heads.md#a-control-first 1c6eeb03
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


def uniform_attention(
    mask: Bool[Tensor, "batch seq"],
) -> Float[Tensor, "1 batch 1 queries keys"]:
    """The tables of a head without preferences: 1/n for each real token."""
    rows = mask / mask.sum(-1, keepdim=True)
    seq = mask.shape[-1]
    return rows[None, :, None, None].expand(1, -1, 1, seq, -1)


# %% book/attention_heads.md#how-spread-out-how-far 78f47f2a
def _mean_of_rows(rows, mask):
    """The mean of (layers, batch, heads, queries) over real queries."""
    kept = mask[:, None].to(rows.dtype)
    return (rows * kept).sum(-1) / kept.sum(-1)


def attention_entropy(
    attentions: Float[Tensor, "layers batch heads queries keys"],
    mask: Bool[Tensor, "batch keys"],
) -> Float[Tensor, "layers batch heads"]:
    """The entropy of the rows, from 0 (one token) to 1 (all alike).

    `mask` is false at padding. A text needs two tokens at least.
    """
    rows = -torch.xlogy(attentions, attentions).sum(-1)
    largest = mask.sum(-1).log()
    return _mean_of_rows(rows, mask) / largest[:, None]


# %% book/attention_heads.md#how-spread-out-how-far f1f2d223
def attention_distance(
    attentions: Float[Tensor, "layers batch heads queries keys"],
    mask: Bool[Tensor, "batch keys"],
) -> Float[Tensor, "layers batch heads"]:
    """How many tokens away the attention falls, on the average."""
    place = torch.arange(mask.shape[-1], device=mask.device)
    apart = (place[:, None] - place).abs().to(attentions.dtype)
    rows = torch.einsum("lbhqk,qk->lbhq", attentions, apart)
    return _mean_of_rows(rows, mask)


# %% book/attention_heads.md#five-patterns 88c9cd95
from bertbook.inspection import Captured, capture


def pattern_targets(
    captured: Captured,
) -> dict[str, Bool[Tensor, "batch queries keys"]]:
    """For each pattern, which keys it names for which query.

    The patterns are previous, next, same, [CLS] and [SEP]. Only word
    pieces are queries; the first three name word pieces only.
    """
    ids, special = captured.input_ids, {}
    for name in ("[CLS]", "[SEP]", "[PAD]"):
        found = [[t == name for t in row] for row in captured.tokens]
        special[name] = torch.tensor(found, device=ids.device)
    word = ~(special["[CLS]"] | special["[SEP]"] | special["[PAD]"])
    place = torch.arange(ids.shape[-1], device=ids.device)
    offset = place - place[:, None]  # of the key from the query
    pairs = word[:, :, None] & word[:, None]
    equal = ids[:, :, None] == ids[:, None]
    return {
        "previous": pairs & (offset == -1),
        "next": pairs & (offset == 1),
        "same": pairs & equal & (offset != 0),
        "[CLS]": word[:, :, None] & special["[CLS]"][:, None],
        "[SEP]": word[:, :, None] & special["[SEP]"][:, None],
    }


# %% book/attention_heads.md#five-patterns 93d335a0
def pattern_score(
    attentions: Float[Tensor, "layers batch heads queries keys"],
    target: Bool[Tensor, "batch queries keys"],
) -> Float[Tensor, "layers batch heads"]:
    """The attention that falls on `target`, from 0 to 1.

    A mean over the queries that have a target; NaN where a text has none.
    """
    inside = torch.einsum(
        "lbhqk,bqk->lbh", attentions, target.to(attentions.dtype)
    )
    return inside / target.any(-1).sum(-1)[:, None]


# %% book/attention_heads.md#a-few-hundred-sentences 3b506157
def measure(captured: Captured) -> dict[str, Tensor]:
    """Entropy, distance and pattern scores, each (layers, batch, heads)."""
    attentions, mask = captured.attentions, captured.mask
    found = {
        "entropy": attention_entropy(attentions, mask),
        "distance": attention_distance(attentions, mask),
    }
    for name, target in pattern_targets(captured).items():
        found[name] = pattern_score(attentions, target)
    return found


# %% book/attention_heads.md#a-few-hundred-sentences 3c1b4b7f
from bertbook.tokenizer import BertTokenizer


def measure_heads(
    model: nn.Module,
    tokenizer: BertTokenizer,
    texts: list[str],
    batch_size: int = 32,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`measure` of a model on many texts, and of uniform attention.

    Each value of the first has shape (layers, texts, heads), of the second
    (1, texts, 1).
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts = []
    for start in range(0, len(order), batch_size):
        chosen = [texts[i] for i in order[start : start + batch_size]]
        seen = capture(model, tokenizer, chosen)
        even = seen._replace(attentions=uniform_attention(seen.mask))
        parts.append((measure(seen), measure(even)))
    back = torch.tensor(order).argsort()
    return tuple(
        {
            name: torch.cat([part[side][name] for part in parts], 1)[
                :, back
            ]
            for name in parts[0][side]
        }
        for side in (0, 1)
    )


# %% book/attention_heads.md#weight-is-half-of-it 437e66a2
from bertbook.training_loop import evaluating


def value_norms(
    model: nn.Module, captured: Captured
) -> Float[Tensor, "layers batch heads keys"]:
    """The length of what each head can read at each token, ‖f(x)‖."""
    bert, norms = getattr(model, "bert", model), []
    with evaluating(bert):
        for layer, hidden in zip(
            bert.encoder.layers, captured.hidden_states
        ):
            attention = layer.attention
            if layer.pre:
                hidden = layer.attention_norm(hidden)
            value = attention.query_key_value(hidden).chunk(3, -1)[2]
            value = value.unflatten(-1, (attention.num_heads, -1))
            output = attention.output.weight.unflatten(
                1, (attention.num_heads, -1)
            )
            read = torch.einsum("bshd,ohd->bhso", value, output)
            norms.append(read.norm(dim=-1))
    return torch.stack(norms)


# %% book/attention_heads.md#switching-heads-off 8a54c642
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager


def _gate(bert, layer, heads):
    """One number for each column of the contexts, 0 for those heads."""
    layers = bert.encoder.layers
    if layer not in range(len(layers)):
        raise ValueError(
            f"there is no layer {layer}; the model has {len(layers)}, "
            "counted from 0"
        )
    attention = layers[layer].attention
    gate = attention.output.weight.new_ones(attention.num_heads)
    for head in heads:
        if head not in range(attention.num_heads):
            raise ValueError(
                f"there is no head {head} in layer {layer}; it has "
                f"{attention.num_heads}, counted from 0"
            )
        gate[head] = 0
    size = attention.output.in_features // attention.num_heads
    return gate.repeat_interleave(size)


# %% book/attention_heads.md#switching-heads-off ecb58ede
@contextmanager
def ablate_heads(
    model: nn.Module, heads: Mapping[int, Iterable[int]]
) -> Iterator[nn.Module]:
    """`model` without some heads, for the length of a block.

    `heads` holds, for each layer, the heads to switch off, from 0. Weights
    stay as they are, and gradients flow through the other heads. Raises
    ValueError for a layer or head that does not exist.
    """
    bert = getattr(model, "bert", model)
    gates = {layer: _gate(bert, layer, heads[layer]) for layer in heads}
    hooks = [
        bert.encoder.layers[
            layer
        ].attention.output.register_forward_pre_hook(
            lambda module, inputs, gate=gate: (inputs[0] * gate,)
        )
        for layer, gate in gates.items()
    ]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


# %% book/attention_heads.md#what-one-head-is-worth 5dc5e9f9
import torch.nn.functional as F


def mean_vectors(
    model: nn.Module,
    tokenizer: BertTokenizer,
    texts: list[str],
    batch_size: int = 64,
) -> Float[Tensor, "texts hidden"]:
    """The mean of the last hidden states of each text, of length 1."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    bert, rows = getattr(model, "bert", model), []
    device = next(bert.parameters()).device
    with evaluating(bert):
        for start in range(0, len(order), batch_size):
            chosen = [texts[i] for i in order[start : start + batch_size]]
            batch = tokenizer(chosen, padding=True, return_tensors="pt")
            batch = {
                name: column.to(device) for name, column in batch.items()
            }
            states = bert(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            rows.append((states * mask).sum(1) / mask.sum(1))
    back = torch.tensor(order).argsort()
    return F.normalize(torch.cat(rows)[back], dim=-1)


# %% book/attention_heads.md#what-one-head-is-worth fa31499d
def matching_losses(
    first: Float[Tensor, "texts hidden"],
    second: Float[Tensor, "texts hidden"],
    scale: float = 20.0,
) -> Float[Tensor, " texts"]:
    """What it costs, in nats, to find each text's partner by its vector.

    Row i of `second` belongs to row i of `first`; all others compete.
    """
    return -(scale * first @ second.T).log_softmax(-1).diagonal()
