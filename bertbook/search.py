"""Search by meaning

Finds the texts that are nearest to a query by the cosine of their vectors,
keeps such an index in a folder, and says how often the right text is found.

The page: https://bertbook.github.io/bertbook/book/search.html
"""

# Tangled from book/search.md (4cc4623e): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Hit",
    "Index",
    "largest",
    "load_index",
    "mean_reciprocal_rank",
    "rank_of",
    "recall_at",
    "save_index",
    "unit_rows",
]


# %% book/search.md#an-index 65ad5aab
import numpy as np
from jaxtyping import Float, Int


def unit_rows(
    vectors: Float[np.ndarray, "n hidden"],
) -> Float[np.ndarray, "n hidden"]:
    """Rows of length 1 in float32; a row of zeros stays as it is."""
    vectors = np.asarray(vectors, dtype=np.float32)
    sizes = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(sizes == 0, 1, sizes)


# %% book/search.md#an-index 05c3af63
def largest(scores: Float[np.ndarray, " n"], k: int) -> list[int]:
    """The places of the `k` largest scores, largest first.

    Of equal scores the earlier place comes first.
    """
    k = min(k, len(scores))
    if k < 1:
        return []
    bound = np.partition(scores, -k)[-k]
    (places,) = np.nonzero(scores >= bound)
    order = np.argsort(-scores[places], kind="stable")
    return places[order][:k].tolist()


# %% book/search.md#an-index ef29282f
from typing import NamedTuple


class Hit(NamedTuple):
    """A text that was found."""

    score: float  # the cosine with the query
    number: int  # of the text in the index


# %% book/search.md#an-index 85aeb205
class Index:
    """Texts and their `vectors`, (texts, hidden), to be searched.

    `embedder` turns a list of texts into vectors, as `Embedder` does; with
    `vectors` the texts are not read again. Raises ValueError where there
    is no text.
    """

    def __init__(self, texts, embedder, vectors=None):
        self.texts, self.embedder = list(texts), embedder
        if not self.texts:
            raise ValueError(
                "an index of no texts finds nothing; give one or more"
            )
        found = embedder(self.texts) if vectors is None else vectors
        self.vectors = unit_rows(found)

    def scores(self, queries) -> Float[np.ndarray, "queries texts"]:
        """The cosine of each query with each text."""
        return unit_rows(self.embedder(list(queries))) @ self.vectors.T

    def search(self, query, k: int = 10) -> list:
        """The nearest `k` texts, each a `Hit`; one list for each query.

        A single query has a single list. Nearest first; of equal ones the
        earlier text.
        """
        one = isinstance(query, str)
        found = [
            [Hit(float(row[i]), i) for i in largest(row, k)]
            for row in self.scores([query] if one else query)
        ]
        return found[0] if one else found


# %% book/search.md#kept-in-a-folder 6eb21523
import json
from pathlib import Path

import torch

from bertbook.training_loop import load_tensors, save_tensors

_FILE = "index.safetensors"


def save_index(index: Index, folder: str | Path) -> None:
    """Write the texts and vectors of an index into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = bytearray(json.dumps(index.texts).encode())
    tensors = {
        "texts": torch.frombuffer(texts, dtype=torch.uint8),
        "vectors": torch.from_numpy(index.vectors),
    }
    save_tensors(folder / _FILE, tensors)


# %% book/search.md#kept-in-a-folder 7cdf8f16
def _read(path):
    """The texts in a file, and a row for each."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is no file; name a folder that save_index wrote"
        )
    tensors, _ = load_tensors(path)
    try:
        texts = json.loads(tensors["texts"].numpy().tobytes())
        vectors = tensors["vectors"].float().numpy()
        whole = isinstance(texts, list) and vectors.ndim == 2
        whole = whole and len(vectors) == len(texts)
        whole = whole and all(isinstance(text, str) for text in texts)
    except (KeyError, RecursionError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(
            f"{path} holds no texts with a vector each; build the index "
            "again"
        )
    return texts, vectors


# %% book/search.md#kept-in-a-folder 98a456e5
def load_index(folder: str | Path, embedder) -> Index:
    """The index in a folder, without reading its texts again.

    Raises FileNotFoundError, or ValueError for a damaged file and for an
    `embedder` that did not make its vectors.
    """
    texts, vectors = _read(Path(folder, _FILE))
    index = Index(texts, embedder, vectors)
    first = unit_rows(embedder(texts[:1]))
    if first.shape[1] != vectors.shape[1] or not np.allclose(
        first, index.vectors[:1], atol=1e-3
    ):
        raise ValueError(
            f"{folder} was built with another model, or another max_length "
            "or pooling; load it with the embedder that built it"
        )
    return index


# %% book/search.md#relevance-that-nobody-had-to-label ca4b3935
def rank_of(
    scores: Float[np.ndarray, "queries texts"],
    relevant: Int[np.ndarray, " queries"],
) -> Float[np.ndarray, " queries"]:
    """The rank, from 1, of each query's `relevant` text.

    Texts with equal scores share the mean of their places.
    """
    own = np.take_along_axis(scores, relevant[:, None], axis=1)
    above, equal = (scores > own).sum(1), (scores == own).sum(1)
    return above + (equal + 1) / 2


# %% book/search.md#relevance-that-nobody-had-to-label d0157aa2
def recall_at(ranks: Float[np.ndarray, " queries"], k: int) -> float:
    """The share of queries whose text is among the first `k`."""
    return float((ranks <= k).mean())


def mean_reciprocal_rank(ranks: Float[np.ndarray, " queries"]) -> float:
    """The mean of 1 / rank."""
    return float((1 / ranks).mean())
