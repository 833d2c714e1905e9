"""Looking inside

Records what a model computes on a text, every attention weight and every
hidden state, and leaves the model as it was. Shows the weights of each head
on a page.

The page: https://bertbook.github.io/bertbook/book/inspection.html
"""

# Tangled from book/inspection.md (35f5b3a7): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "Captured",
    "capture",
    "evaluating",
]


# %% book/inspection.md#looking-changes-what-you-see 18590aad
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """`model` without dropout and gradients, for the length of a block.

    Afterwards every module is in training or evaluation mode as before,
    also where the block raises an error.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in modes:
            module.training = training


# %% book/inspection.md#looking-changes-what-you-see 4bda2251
from collections.abc import Mapping
from typing import NamedTuple

from bertbook.tokenizer import BertTokenizer


class Captured(NamedTuple):
    """What a model computed on a batch of texts, padding included."""

    tokens: list[list[str]]  # for each text, one string a position
    input_ids: Tensor  # (batch, seq)
    mask: Tensor  # (batch, seq), true at tokens, false at padding
    attentions: Tensor  # (layers, batch, heads, queries, keys)
    hidden_states: Tensor  # (layers + 1, batch, seq, hidden)


# %% book/inspection.md#looking-changes-what-you-see 574e4d7a
def _inputs(tokenizer, text, text_pair, device):
    if not isinstance(text, Mapping):
        single = isinstance(text, str)
        texts = [text] if single else list(text)
        pairs = [text_pair] if isinstance(text_pair, str) else text_pair
        text = tokenizer(texts, pairs, padding=True, return_tensors="pt")
    names = ("input_ids", "attention_mask", "token_type_ids")
    found = {name: text[name] for name in names if name in text}
    if not isinstance(found.get("input_ids"), Tensor):
        raise TypeError(
            "the batch holds no tensor of input_ids; call the tokenizer "
            'with return_tensors="pt", or hand over the texts themselves'
        )
    return {name: column.to(device) for name, column in found.items()}


# %% book/inspection.md#looking-changes-what-you-see eba5b19f
def capture(
    model: nn.Module,
    tokenizer: BertTokenizer,
    text: str | list[str] | Mapping,
    text_pair: str | list[str] | None = None,
) -> Captured:
    """All attention weights and hidden states of `model` on `text`.

    `model` is a `BertModel` or has one as `model.bert`; it is in the end
    what it was. `text` is a text, a list of texts, or a batch of tensors
    that `tokenizer` returned. Raises TypeError where such a batch holds
    lists, and ValueError where a text is longer than the positions.
    """
    bert = getattr(model, "bert", model)
    device = next(bert.parameters()).device
    inputs = _inputs(tokenizer, text, text_pair, device)
    with evaluating(bert):
        seen = bert(
            **inputs, output_attentions=True, output_hidden_states=True
        )
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    return Captured(
        [tokenizer.convert_ids_to_tokens(row) for row in ids],
        ids,
        mask,
        torch.stack(seen.attentions),
        torch.stack(seen.hidden_states),
    )
