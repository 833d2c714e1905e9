"""What it costs

Predicts the memory and the time of pretraining from a configuration and the
figures of a machine, and says how far more machines, shorter rows and a
compiler take you.

The page: https://bertbook.github.io/bertbook/book/scaling.html
"""

# Tangled from book/scaling.md (f92bef84): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "ACCELERATORS",
    "Accelerator",
    "BERT_PHASES",
    "Phase",
    "activation_memory",
    "break_even",
    "exchange_seconds",
    "run_hours",
    "run_operations",
    "step_seconds",
    "training_memory",
    "training_operations",
    "training_seconds",
]


# %% book/scaling.md#by-hand-three-products bc1f8943
from bertbook.config import BertConfig, parameter_counts
from bertbook.model import operation_counts


def training_operations(
    config: BertConfig,
    tokens: int,
    seq_length: int,
    masked_share: float = 0.15,
    pairs: bool = False,
) -> dict[str, int]:
    """Matrix-product operations of training on `tokens`, by component.

    They come in rows of `seq_length`; `masked_share` of them are predicted.
    `pairs` adds the pooler, which sentence pairs need.
    """
    rows = -(-tokens // seq_length)  # whole ones
    predictions = round(tokens * masked_share)
    counts = operation_counts(config, rows, seq_length, predictions)
    counts["pooler"] *= pairs
    return {name: 3 * count for name, count in counts.items()}


# %% book/scaling.md#memory 8c46a1ca
def _layer_bytes(config, seq_length, number, gpu):
    """What a layer saves for each token: its maps, and its attention."""
    size, inner = config.hidden_size, config.intermediate_size
    dropped = config.hidden_dropout_prob > 0
    maps = number * (6 * size + 2 * inner) + 2 * (4 * size + 8)
    maps += dropped * 2 * size * (1 if gpu else number)
    weights = config.attention_probs_dropout_prob > 0
    explicit = weights or config.attn_implementation == "eager"
    heads = config.num_attention_heads
    if gpu or not explicit:
        return maps, 4 * heads  # one number a head and query
    return maps, (1 + 2 * weights) * number * heads * seq_length


# %% book/scaling.md#memory 54816347
_BYTES = {"float32": 4, "bfloat16": 2}


def activation_memory(
    config: BertConfig,
    rows: int,
    seq_length: int,
    predictions: int,
    dtype: str = "float32",
    gpu: bool = False,
) -> dict[str, int]:
    """Bytes that a forward pass saves for the backward pass, by component.

    `predictions` is the number of masked positions in all rows. On a GPU
    dropout keeps a byte a number and attention none of its weights. In
    bfloat16 autocast saves a copy of each matrix, `copies`.
    """
    size, tokens = config.hidden_size, rows * seq_length
    number = _BYTES[dtype]
    maps, attention = _layer_bytes(config, seq_length, number, gpu)
    norms = 1 + (config.layer_norm == "pre")  # that of embeddings, the last
    outside = norms * (4 * size + 8) + 4 * size + 3 * 8  # and three ids
    if config.hidden_dropout_prob > 0:
        outside += size * (1 if gpu else 4)
    score = 4 * size * number + 4 * config.vocab_size + 16
    matrices = _matrix_weights(config) + config.vocab_size * size
    return {
        "layers": config.num_hidden_layers * tokens * maps,
        "attention": config.num_hidden_layers * tokens * attention,
        "embeddings": tokens * outside,
        "mlm_head": predictions * score,
        "copies": 2 * matrices if dtype == "bfloat16" else 0,
    }


def _matrix_weights(config):
    """Weights of the linear maps of the layers and of the MLM head."""
    size = config.hidden_size
    layer = 4 * size * size + 2 * size * config.intermediate_size
    return config.num_hidden_layers * layer + size * size


# %% book/scaling.md#memory f3833952
def training_memory(
    config: BertConfig,
    rows: int,
    seq_length: int,
    predictions: int,
    dtype: str = "float32",
    optimizer: str = "adamw",
    gpu: bool = False,
    shards: int = 1,
) -> dict[str, int]:
    """Bytes of a training step of a `BertForMaskedLM`, by component.

    What `activation_memory` counts, and parameters, gradients and what the
    optimizer remembers, each divided by `shards`; with several shards two
    layers at a time are gathered whole.
    """
    counts = parameter_counts(config)
    held = sum(counts.values()) - counts["pooler"] - counts["nsp_head"]
    memory = 8 * held
    if optimizer == "muon":
        memory -= 4 * _matrix_weights(config)
    layer = counts["attention"] + counts["feed_forward"]
    gathered = 2 * 4 * layer // config.num_hidden_layers
    return {
        "parameters": 4 * held // shards,
        "gradients": 4 * held // shards,
        "optimizer": memory // shards,
        "gathered": gathered if shards > 1 else 0,
        **activation_memory(
            config, rows, seq_length, predictions, dtype, gpu
        ),
    }


# %% book/scaling.md#time f1477d79
def training_seconds(
    operations: float, rate: float, share: float = 1.0
) -> float:
    """Time for `operations` at a `share` of the peak `rate`, each second.

    Raises ValueError for a share that is none.
    """
    if not 0 < share <= 1:
        raise ValueError(
            f"share={share!r} of the peak rate is impossible; give more "
            "than 0 and at most 1, such as 0.4"
        )
    return operations / (rate * share)


# %% book/scaling.md#time f4245785
from typing import NamedTuple


class Phase(NamedTuple):
    """A part of a pretraining run with rows of one length."""

    seq_length: int
    tokens: int


# BERT, appendix A.2: 256 rows a step, 90 % of a million steps at 128.
BERT_PHASES = (
    Phase(128, 900_000 * 256 * 128),
    Phase(512, 100_000 * 256 * 512),
)


def run_operations(config: BertConfig, phases: tuple = BERT_PHASES) -> int:
    """Operations of a whole pretraining run with sentence pairs."""
    return sum(
        sum(training_operations(config, *phase[::-1], pairs=True).values())
        for phase in phases
    )


# %% book/scaling.md#a-compiler e9240acd
import math


def break_even(
    compile_seconds: float, usual_rate: float, compiled_rate: float
) -> float:
    """After how many tokens compiling has paid; infinity if it never does.

    Rates are in tokens a second.
    """
    gained = 1 / usual_rate - 1 / compiled_rate  # seconds a token
    return compile_seconds / gained if gained > 0 else math.inf


# %% book/scaling.md#many-accelerators 02e09510
class Accelerator(NamedTuple):
    """The figures of a chip and its machine, from data sheets."""

    rate: float  # operations a second, dense bfloat16 products
    memory: float  # bytes
    chips: int  # in a machine
    inside: float  # bytes a second between them, each way
    between: float  # bytes a second to another machine, for each chip


ACCELERATORS = {
    "TPU v2": Accelerator(46e12, 16e9, 4, 62e9, 62e9),
    "A100": Accelerator(312e12, 80e9, 8, 300e9, 25e9),
    "H100": Accelerator(989e12, 80e9, 8, 450e9, 50e9),
}


# %% book/scaling.md#many-accelerators c5b02ca3
def exchange_seconds(
    size: float, count: int, chip: Accelerator, latency: float = 5e-6
) -> float:
    """An all-reduce of `size` bytes among `count` chips, in two rings."""
    near = min(count, chip.chips)
    machines = math.ceil(count / near)
    inside = 2 * (near - 1) / near * size / chip.inside
    across = 2 * (machines - 1) / machines * size / near / chip.between
    return inside + across + 2 * (near + machines - 2) * latency


# %% book/scaling.md#many-accelerators aebc0bb0
def step_seconds(
    config: BertConfig,
    rows: int,
    seq_length: int,
    count: int,
    chip: Accelerator,
    share: float,
    fixed: float = 0.005,
) -> float:
    """A step on `rows`, divided among `count` chips, with its exchange.

    `fixed` is what a step costs whatever it computes: to launch its
    kernels. The exchange of float32 gradients hides behind two thirds of
    the computation. Raises ValueError where a chip has no row.
    """
    if rows < count:
        raise ValueError(
            f"{rows} rows cannot be shared by {count} chips; give a larger "
            "batch or fewer chips"
        )
    each = math.ceil(rows / count) * seq_length  # the busiest chip's
    parts = training_operations(config, each, seq_length)
    computing = training_seconds(sum(parts.values()), chip.rate, share)
    weights = 4 * sum(parameter_counts(config).values())
    exchange = exchange_seconds(weights, count, chip)
    hidden = 2 / 3 * computing
    return fixed + computing + max(0.0, exchange - hidden)


# %% book/scaling.md#many-accelerators a8d337de
def run_hours(
    config: BertConfig,
    count: int,
    chip: Accelerator,
    share: float,
    rows: int = 256,
    phases: tuple = BERT_PHASES,
) -> float:
    """Hours of a pretraining run with `rows` a step on `count` chips."""
    seconds = 0.0
    for seq_length, tokens in phases:
        steps = tokens / (rows * seq_length)
        seconds += steps * step_seconds(
            config, rows, seq_length, count, chip, share
        )
    return seconds / 3600
