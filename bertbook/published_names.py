"""The published names

Translates between the parameter names of published checkpoints and the
names of this book, in both directions.

The page: https://bertbook.github.io/bertbook/book/published_names.html
"""

# Tangled from book/published_names.md (5a3e576a): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "MODULES",
]


# %% book/published_names.md#the-table 66ec0182
import re

# %% book/published_names.md#the-table c150d292
MODULES = {
    "embeddings.word_embeddings": "embeddings.tokens",
    "embeddings.position_embeddings": "embeddings.positions",
    "embeddings.token_type_embeddings": "embeddings.segments",
    "embeddings.LayerNorm": "embeddings.norm",
    "encoder.layer.N.attention.output.dense": "encoder.layers.N.attention.output",
    "encoder.layer.N.attention.output.LayerNorm": "encoder.layers.N.attention_norm",
    "encoder.layer.N.intermediate.dense": "encoder.layers.N.feed_forward.expand",
    "encoder.layer.N.output.dense": "encoder.layers.N.feed_forward.contract",
    "encoder.layer.N.output.LayerNorm": "encoder.layers.N.feed_forward_norm",
    "pooler.dense": "pooler.dense",
    "cls.predictions.transform.dense": "mlm_head.dense",
    "cls.predictions.transform.LayerNorm": "mlm_head.norm",
    "cls.predictions": "mlm_head",
    "cls.seq_relationship": "nsp_head",
    "classifier": "classifier",
    "qa_outputs": "span_head",
}
