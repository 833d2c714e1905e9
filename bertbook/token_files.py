"""Token files

Keeps a tokenised corpus on disk as 16-bit integers, made in parallel and
resumable, and reads it back as full rows without loading it.

The page: https://bertbook.github.io/bertbook/book/token_files.html
"""

# Tangled from book/token_files.md (ae856a44): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "ARRAYS",
    "PackedRows",
    "TokenFiles",
    "encode_documents",
    "write_token_files",
]


# %% book/token_files.md#a-document-as-integers 3c8f2bbe
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from bertbook.corpora import split_sentences


def encode_documents(documents: list[str], tokenizer) -> dict:
    """The arrays of one shard.

    `ids` are the pieces of all documents, each ending in [SEP];
    `sentences` says where in `ids` each sentence starts, and `documents`
    which sentence starts each document; both end with the total.
    """
    kind = np.uint16 if len(tokenizer.get_vocab()) <= 2**16 else np.uint32
    ids, sentences, first = [], [], []
    for document in documents:
        first.append(len(sentences))
        texts = split_sentences(document)
        rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
        for row in filter(None, rows):
            sentences.append(len(ids))
            ids.extend(row)
        ids.append(tokenizer.sep_token_id)
    return {
        "ids": np.array(ids, kind),
        "sentences": np.array([*sentences, len(ids)], np.int64),
        "documents": np.array([*first, len(sentences)], np.int64),
    }


# %% book/token_files.md#a-shard-is-whole-or-absent d75f2067
import os
import tempfile

ARRAYS = ("ids", "sentences", "documents")


def _write_shard(path, documents, tokenizer):
    """Write the folder `path`, which is there only when it is whole."""
    arrays = encode_documents(documents, tokenizer)
    new = Path(tempfile.mkdtemp(dir=path.parent, prefix=".shard-"))
    for name, array in arrays.items():
        np.save(new / f"{name}.npy", array)
    os.rename(new, path)


# %% book/token_files.md#in-parallel 7d241907
from collections import deque
from itertools import islice


def _bounded_map(pool, function, tasks, waiting):
    """Run tasks in other processes, with few of them in memory."""
    pending = deque()
    for task in tasks:
        pending.append(pool.submit(function, *task))
        if len(pending) >= waiting:
            pending.popleft().result()
    for future in pending:
        future.result()


def _in_parts(documents: Iterable[str], size: int) -> Iterator[list[str]]:
    documents = iter(documents)
    while part := list(islice(documents, size)):
        yield part


# %% book/token_files.md#in-parallel 467d5af1
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor

from bertbook.reproducibility import write_atomically


def write_token_files(
    documents: Iterable[str],
    tokenizer,
    folder: str | Path,
    *,
    workers: int = 1,
    shard_size: int = 1000,
) -> "TokenFiles":
    """Tokenise `documents`, which may stream, into shards in `folder`.

    Shards that are there already are not made again, so an interrupted
    call is continued by the same call. `shard_size` counts documents.
    Raises ValueError where the folder holds another plan's shards.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_plan(folder, tokenizer, shard_size)
    for torn in folder.glob(".shard-*"):
        shutil.rmtree(torn)
    names = []
    tasks = _tasks(documents, tokenizer, folder, shard_size, names)
    if workers == 1:
        for task in tasks:
            _write_shard(*task)
    else:
        start = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, start) as pool:
            _bounded_map(pool, _write_shard, tasks, 2 * workers)
    for extra in set(_shards_in(folder)) - set(names):
        shutil.rmtree(folder / extra)  # of a longer corpus
    _write_index(folder, names)
    return TokenFiles(folder)


# %% book/token_files.md#in-parallel a5f767a2
def _tasks(documents, tokenizer, folder, shard_size, names):
    """What is still to do; `names` receives every shard's name."""
    for number, part in enumerate(_in_parts(documents, shard_size)):
        name = f"{number:06}-{_digest(part)}"
        names.append(name)
        if not (folder / name).exists():
            yield folder / name, part, tokenizer


# %% book/token_files.md#what-a-folder-holds c34c8170
import hashlib
import zlib


def _digest(texts) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def _shards_in(folder):
    return sorted(path.name for path in folder.glob("*-*") if path.is_dir())


def _check_plan(folder, tokenizer, shard_size):
    """Refuse a folder whose shards another vocabulary made."""
    vocab = "\n".join(tokenizer.get_vocab())
    plan = {
        "vocabulary": _digest([vocab, str(tokenizer.settings)]),
        "shard_size": shard_size,
    }
    path = folder / "plan.json"
    if not path.exists():
        write_atomically(path, json.dumps(plan))
    for name, before in json.loads(path.read_bytes()).items():
        if plan.get(name) != before:
            raise ValueError(
                f"{folder} holds shards with {name} {before}, and "
                f"{plan.get(name)} is asked for; give another folder, or "
                "delete this one"
            )


def _write_index(folder, names):
    shards, total = [], 0
    for name in names:
        arrays = _open_shard(folder / name)
        total = zlib.crc32(arrays["ids"], total)
        shards.append({"name": name, "tokens": len(arrays["ids"])})
    index = {"shards": shards, "crc32": f"{total:08x}"}
    write_atomically(folder / "index.json", json.dumps(index, indent=1))


def _open_shard(path):
    return {
        name: np.load(path / f"{name}.npy", mmap_mode="r")
        for name in ARRAYS
    }


# %% book/token_files.md#reading 7cae9508
class TokenFiles:
    """A tokenised corpus on disk; nothing is read until it is asked for.

    `shards` holds the arrays of `encode_documents`, memory-mapped.
    Raises FileNotFoundError where `write_token_files` has not finished.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / "index.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{self.folder} has no index.json, so it is no finished "
                "folder of token files; run write_token_files again"
            )
        index = json.loads(path.read_bytes())
        self.digest: str = index["crc32"]
        self.tokens = sum(shard["tokens"] for shard in index["shards"])
        self.shards = [
            _open_shard(self.folder / shard["name"])
            for shard in index["shards"]
        ]
        self.documents = sum(
            len(shard["documents"]) - 1 for shard in self.shards
        )


# %% book/token_files.md#full-rows f16c6f3d
class PackedRows:
    """Rows of `seq_length` without padding: [CLS] 1 2 3 … [SEP].

    The pieces of the documents follow each other, and a row begins where
    the one before ended, whatever stands there (RoBERTa's full sentences).
    In each epoch the first cut falls elsewhere. No row crosses a shard.
    """

    def __init__(
        self, files: TokenFiles, seq_length: int, tokenizer, seed: int = 0
    ):
        self.files, self.inner = files, seq_length - 2
        self.ends = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.seed = seed
        counts = [
            max(0, (len(shard["ids"]) - self.inner + 1) // self.inner)
            for shard in files.shards
        ]
        self.stops = np.cumsum([0, *counts])
        if self.stops[-1] == 0:
            raise ValueError(
                f"{files.folder} holds {files.tokens} pieces, too few for "
                f"one row of {seq_length}; give more text or shorter rows"
            )

    def count(self, epoch: int) -> int:
        """How many rows there are: the same number in each epoch."""
        return int(self.stops[-1])

    def rows(
        self, epoch: int, examples: np.ndarray
    ) -> dict[str, np.ndarray]:
        """`input_ids`, (rows, seq), of the rows with these numbers."""
        draw = np.random.default_rng([self.seed, epoch])
        shift = int(draw.integers(self.inner))
        ids = np.empty((len(examples), self.inner + 2), np.int64)
        ids[:, 0], ids[:, -1] = self.ends
        shards = np.searchsorted(self.stops, examples, side="right") - 1
        for row, shard, example in zip(ids, shards, examples):
            first = shift + (example - self.stops[shard]) * self.inner
            source = self.files.shards[shard]["ids"]
            row[1:-1] = source[first : first + self.inner]
        return {"input_ids": ids}
