"""BERT

Puts embeddings and encoder together, pools the first token, drops padding
if asked to, and checks what it is given before it computes.

The page: https://bertbook.github.io/bertbook/book/model.html
"""

# Tangled from book/model.md (6e1ed4b5): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "BertModel",
    "BertModelOutput",
    "MeanPooler",
    "POOLERS",
    "Pooler",
    "check_inputs",
    "find_tokens",
    "operation_counts",
    "put_back",
]


# %% book/model.md#by-hand 01802262
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bertbook.checkpoints import PreTrainedModel
from bertbook.config import BertConfig
from bertbook.embeddings import Embeddings
from bertbook.encoder import Encoder


# %% book/model.md#by-hand e7f050c3
class Pooler(nn.Module):
    """tanh of a linear map of the first position, [CLS].

    Devlin et al. (2019) use it for next sentence prediction and for
    classification; the map is in their code, not in their paper.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden: Float[Tensor, "batch seq hidden"],
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch hidden"]:
        """One vector a sequence; no mask hides [CLS]."""
        return self.dense(hidden[:, 0]).tanh()


# %% book/model.md#by-hand 8b12f2c5
class MeanPooler(nn.Module):
    """The mean of the states of all tokens (Reimers and Gurevych, 2019)."""

    def forward(
        self,
        hidden: Float[Tensor, "batch seq hidden"],
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch hidden"]:
        """One vector a sequence; the mask as `BertModel` takes it."""
        if attention_mask is None:
            return hidden.mean(1)
        if attention_mask.ndim == 3:  # (batch, queries, keys)
            attention_mask = attention_mask.amax(1)
        weights = attention_mask.to(hidden.dtype)[..., None]
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


POOLERS = {"pooler": Pooler, "mean": lambda config: MeanPooler()}


# %% book/model.md#what-is-refused cec3a725
_RANGES = {
    "input_ids": (
        "the ids of this vocabulary",
        "encode the text with the model's own tokenizer",
    ),
    "attention_mask": (
        "its values",
        "mark what may be read by 1 and padding by 0",
    ),
    "token_type_ids": (
        "the segments of this model",
        "number the segments from 0, or leave token_type_ids out",
    ),
    "position_ids": (
        "the positions of this model",
        "shorten the text, or leave position_ids out",
    ),
}


# %% book/model.md#what-is-refused c9ce4000
def _outside(values, stop):
    return (values < 0) | (values >= stop)


def _refuse_value(name, values, stop):
    """Raise the sentence that names the first value outside the range."""
    place = _outside(values, stop).nonzero()[0].tolist()
    what, remedy = _RANGES[name]
    raise ValueError(
        f"{name}{place} is {values[tuple(place)].item()}, and {what} run "
        f"from 0 to {stop - 1}; {remedy}"
    )


# %% book/model.md#what-is-refused 07835a63
def _check_tensor(name, given, kinds, shapes):
    """Refuse what is no tensor, of a wrong type or of a wrong shape."""
    if not isinstance(given, Tensor):
        raise TypeError(
            f"{name} is a {type(given).__name__}, not a tensor; pass the "
            "tokenizer's tensors by name, as in model(**batch)"
        )
    if given.dtype not in kinds:
        expected = "integers" if name != "attention_mask" else "0 and 1"
        raise TypeError(
            f"{name} holds {given.dtype}, and {expected} are expected; "
            f"convert it by {name}.long()"
        )
    if given.shape not in shapes:
        expected = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(
            f"{name} has shape {tuple(given.shape)}, and {expected} goes "
            "with these input_ids; take both from one call of the tokenizer"
        )


# %% book/model.md#what-is-refused dd7c4d72
_IDS = (torch.int64, torch.int32)
_MASKS = (*_IDS, torch.bool, torch.uint8, torch.int8, torch.int16)


def _check_ids(config, input_ids):
    """Refuse ids that are no batch of rows that fit the positions."""
    shape = tuple(getattr(input_ids, "shape", ()))
    _check_tensor("input_ids", input_ids, _IDS, [shape])
    if len(shape) != 2:
        raise ValueError(
            f"input_ids has shape {shape}, and (batch, seq) is expected; "
            "for a single row pass input_ids[None]"
        )
    if 0 in shape:
        raise ValueError(
            f"input_ids has shape {shape}, which holds nothing to read; "
            "pass at least one row of at least one id"
        )
    if shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"the rows are {shape[1]} ids long, and this model has "
            f"{config.max_position_embeddings} positions; cut them by "
            "truncation=True, max_length="
            f"{config.max_position_embeddings} in the tokenizer"
        )
    return shape


# %% book/model.md#what-is-refused b384abe8
def check_inputs(
    config: BertConfig,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> bool:
    """Refuse inputs that a model of `config` cannot read.

    Returns whether the mask hides anything. The values of all tensors are
    looked at together, so that an accelerator is waited for once; under
    torch.compile and on the meta device they are not looked at. Raises
    TypeError or ValueError with the name, the place and what to do.
    """
    batch, seq = _check_ids(config, input_ids)
    rows = [(batch, seq), (1, seq)]
    squares = [(batch, seq), (batch, seq, seq)]
    segments, stop = config.type_vocab_size, config.max_position_embeddings
    limits = {"input_ids": (input_ids, config.vocab_size)}
    for name, given, kinds, shapes, limit in (
        ("attention_mask", attention_mask, _MASKS, squares, 2),
        ("token_type_ids", token_type_ids, _IDS, rows, segments),
        ("position_ids", position_ids, _IDS, rows, stop),
    ):
        if given is not None:
            _check_tensor(name, given, kinds, shapes)
            limits[name] = given, limit
    if torch.compiler.is_compiling() or input_ids.is_meta:
        return attention_mask is not None
    found = [_outside(*limit).any() for limit in limits.values()]
    if attention_mask is not None:
        found.append((attention_mask == 0).any())
    found = torch.stack(found).tolist()  # the one wait
    for name, wrong in zip(limits, found):
        if wrong:
            _refuse_value(name, *limits[name])
    return attention_mask is not None and found[-1]


# %% book/model.md#without-padding 0a581fbb
def find_tokens(
    real: Bool[Tensor, "batch seq"],
) -> tuple[Int[Tensor, " tokens"], list[int]]:
    """Where in the flattened batch a token stands, and each row's count."""
    return real.flatten().nonzero()[:, 0], real.sum(1).tolist()


# %% book/model.md#without-padding 215cce92
def put_back(
    hidden: Float[Tensor, "tokens hidden"],
    places: Int[Tensor, " tokens"],
    batch: int,
    seq: int,
) -> Float[Tensor, "batch seq hidden"]:
    """The vectors at their `places` in the batch, zeros everywhere else."""
    rows = hidden.new_zeros(batch * seq, hidden.shape[-1])
    return rows.index_copy_(0, places, hidden).unflatten(0, (batch, seq))


# %% book/model.md#without-padding 94050e5f
def _for_heads(attention_mask):
    """The mask as attention takes it: (batch, 1, queries or 1, keys)."""
    batch, seq = attention_mask.shape[0], attention_mask.shape[-1]
    return attention_mask.bool().reshape(batch, 1, -1, seq)


def _tokens_only(mask, input_ids, token_type_ids, position_ids):
    """The ids of the tokens alone, where they stood, and how many a row."""
    batch, seq = input_ids.shape
    places, lengths = find_tokens(mask.bool())
    if position_ids is None:
        position_ids = torch.arange(seq, device=input_ids.device)[None]
    ids = tuple(
        None if each is None else each.expand(batch, seq).flatten()[places]
        for each in (input_ids, token_type_ids, position_ids)
    )
    return ids, places, lengths


# %% book/model.md#without-padding 5ab047f8
def _prepare(config, given, keep_padding):
    """The ids, the mask, and where and how long the packed rows are."""
    input_ids, attention_mask, token_type_ids, position_ids = given
    ids = input_ids, token_type_ids, position_ids
    if not check_inputs(config, *given):
        return ids, None, None, None
    packs = config.remove_padding and attention_mask.ndim == 2
    if keep_padding or not packs:
        return ids, _for_heads(attention_mask), None, None
    ids, places, lengths = _tokens_only(attention_mask, *ids)
    return ids, None, places, lengths


# %% book/model.md#the-model 71af242e
class BertModelOutput(NamedTuple):
    """What `BertModel` returns."""

    last_hidden_state: Tensor  # (batch, seq, hidden)
    pooler_output: Tensor | None  # (batch, hidden)
    hidden_states: tuple[Tensor, ...] | None  # embeddings, then layers
    attentions: tuple[Tensor, ...] | None  # (batch, heads, seq, seq)


# %% book/model.md#the-model 6a7c8a5a
class BertModel(PreTrainedModel):
    """Embeddings, encoder and pooler (Devlin et al., 2019, section 3)."""

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = None
        if add_pooling_layer:
            self.pooler = POOLERS[config.classifier_pooling](config)
        self.initialise()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> BertModelOutput:
        """Read rows of ids, (batch, seq).

        `attention_mask`, (batch, seq) or (batch, queries, keys), is 1 where
        something may be read; `token_type_ids` and `position_ids` are
        (batch, seq) or (1, seq). Raises what `check_inputs` raises.
        """
        given = input_ids, attention_mask, token_type_ids, position_ids
        ids, mask, places, lengths = _prepare(
            self.config, given, output_attentions
        )
        encoded = self.encoder(
            self.embeddings(*ids), mask, lengths, output_attentions
        )
        states = (encoded.last_hidden_state,)
        if output_hidden_states:
            states = encoded.hidden_states
        if places is not None:
            size = input_ids.shape
            states = tuple(put_back(x, places, *size) for x in states)
        pooled = None
        if self.pooler is not None:
            pooled = self.pooler(states[-1], attention_mask)
        return BertModelOutput(
            states[-1],
            pooled,
            states if output_hidden_states else None,
            encoded.attentions if output_attentions else None,
        )


# %% book/model.md#what-it-costs 2a2adb57
def operation_counts(
    config: BertConfig, batch: int, seq: int, predictions: int = 0
) -> dict[str, int]:
    """Multiplications and additions of one forward pass, by component.

    Those of matrix products alone. `predictions` is at how many positions
    the MLM head runs.
    """
    size, layers = config.hidden_size, config.num_hidden_layers
    tokens = batch * seq
    square = 2 * size * size  # one vector times one matrix
    return {
        "projections": layers * tokens * 4 * square,
        "attention": layers * tokens * seq * 4 * size,
        "feed_forward": layers
        * tokens
        * 4
        * size
        * config.intermediate_size,
        "pooler": batch * square,
        "mlm_head": predictions * (square + 2 * size * config.vocab_size),
    }
