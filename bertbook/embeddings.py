"""From ids to vectors

Turns ids into vectors: what a token is, where it stands and which of two
sentences it is in, added and normalised.

The page: https://bertbook.github.io/bertbook/book/embeddings.html
"""

# Tangled from book/embeddings.md (6c2882fc): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Dropout",
    "Embeddings",
    "dropout",
]


# %% book/embeddings.md#dropout-by-hand 08bf943a
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bertbook.config import BertConfig


# %% book/embeddings.md#dropout-by-hand a04d0c26
def dropout(values: Float[Tensor, "*shape"], p: float) -> Tensor:
    """Zero each value with probability `p`, and divide the rest by 1 - p.

    On a CPU it draws uniform numbers, which come faster than the coin
    flips of `torch.nn.functional.dropout`; elsewhere it calls that.
    """
    if not values.is_cpu:
        return F.dropout(values, p)
    mask = torch.rand(values.shape, dtype=torch.float, device="cpu") >= p
    return values * mask.to(values.dtype).div_(1 - p)


class Dropout(nn.Dropout):
    """`dropout` in training, nothing after `eval()` or where p is 0."""

    def forward(self, input: Float[Tensor, "*shape"]) -> Tensor:
        """The values, some of them zero."""
        return dropout(input, self.p) if self.training and self.p else input


# %% book/embeddings.md#the-layer 45dfdca8
def _filled_in(input_ids, token_type_ids, position_ids):
    """Segment 0 and positions 0, 1, 2, ... where none are given."""
    if token_type_ids is None:
        token_type_ids = torch.zeros_like(input_ids)
    if position_ids is None:
        length = input_ids.shape[-1]
        position_ids = torch.arange(length, device=input_ids.device)
    return token_type_ids, position_ids


# %% book/embeddings.md#the-layer 4b2d7666
class Embeddings(nn.Module):
    """Token, segment and position embeddings, added, normalised, dropped
    out (BERT, section 3 and figure 2)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        size = config.hidden_size
        self.tokens = nn.Embedding(
            config.vocab_size, size, padding_idx=config.pad_token_id
        )
        self.segments = nn.Embedding(config.type_vocab_size, size)
        self.positions = nn.Embedding(config.max_position_embeddings, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Int[Tensor, "*batch seq"],
        token_type_ids: Int[Tensor, "*#batch seq"] | None = None,
        position_ids: Int[Tensor, "*#batch seq"] | None = None,
    ) -> Float[Tensor, "*batch seq hidden"]:
        """The vectors of `input_ids`.

        `token_type_ids` (0: first sentence, 1: second) are 0 by default;
        `position_ids` are 0, 1, 2, ... by default.
        """
        sides, places = _filled_in(input_ids, token_type_ids, position_ids)
        summed = self.tokens(input_ids) + self.segments(sides)
        summed = summed + self.positions(places)
        return self.dropout(self.norm(summed))
