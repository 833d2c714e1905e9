"""The size of a model

Holds every number that fixes a BERT: its sizes, its dropout, its labels,
and the options of this book, checked against each other when they are
given.

The page: https://bertbook.github.io/bertbook/book/config.html
"""

# Tangled from book/config.md (9d10ea95): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "BertConfig",
]


# %% book/config.md#the-configuration 9e63ee62
from dataclasses import dataclass


# %% book/config.md#the-configuration 7a954653
@dataclass(frozen=True)
class BertConfig:
    """Everything that fixes a BERT but its weights (BERT, section 3)."""

    vocab_size: int = 30522
    hidden_size: int = 768  # H
    num_hidden_layers: int = 12  # L
    num_attention_heads: int = 12  # A
    intermediate_size: int = 3072  # 4H in the paper
    hidden_act: str = "gelu"  # gelu, gelu_new, gelu_pytorch_tanh or relu
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    classifier_dropout: float | None = None  # None: hidden_dropout_prob
    num_labels: int = 2
    labels: tuple[str, ...] | None = None  # None: LABEL_0, LABEL_1, ...
    problem_type: str | None = None  # None: guessed from the labels
    # This book's options, which the published format does not hold:
    layer_norm: str = "post"  # or "pre"
    attn_implementation: str = "sdpa"  # or "eager", the explicit formula
    remove_padding: bool = False
    gradient_checkpointing: bool = False
