"""Token files

Keeps a tokenised corpus on disk as 16-bit integers, made in parallel and
resumable, and reads it back as full rows without loading it.

The page: https://bertbook.github.io/bertbook/book/token_files.html
"""

# Tangled from book/token_files.md (fefa76ac): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "PackedRows",
    "TokenFiles",
    "count_packed",
    "encode_documents",
    "write_token_files",
]


# %% book/token_files.md#a-document-as-integers 77505703
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from bertbook.corpora import split_sentences
from bertbook.reproducibility import write_atomically
from bertbook.tokenizer_files import read_object, tokenizer_json


# %% book/token_files.md#a-document-as-integers b5921f70
def encode_documents(documents: list[str], tokenizer) -> dict:
    """The arrays of one shard.

    `ids` are the pieces of all documents, each ending in [SEP];
    `sentences` says where in `ids` each sentence starts, and `documents`
    which sentence starts each document; both end with the total. What has
    no pieces leaves no trace.
    """
    wide = max(tokenizer.get_vocab().values()) >= 2**16
    ids, sentences, first = [], [], []
    for document in documents:
        texts = split_sentences(document)
        rows = [row["ids"] for row in tokenizer.encoder.encode_batch(texts)]
        if any(rows):
            first.append(len(sentences))
        for row in filter(None, rows):
            sentences.append(len(ids))
            ids += row
        if any(rows):
            ids.append(tokenizer.sep_token_id)
    return {
        "ids": np.array(ids, np.uint32 if wide else np.uint16),
        "sentences": np.array([*sentences, len(ids)], np.int64),
        "documents": np.array([*first, len(sentences)], np.int64),
    }


# %% book/token_files.md#a-shard-is-whole-or-absent 1766a3a6
_ARRAYS = ("ids", "sentences", "documents")
_COUNTS = ("tokens", "documents", "characters")


def _write_shard(path, documents, tokenizer=None):
    """Make the folder `path`, which is there only when it is whole."""
    arrays = encode_documents(documents, tokenizer or _tokenizer)
    facts = {
        "tokens": len(arrays["ids"]),
        "documents": len(arrays["documents"]) - 1,
        "characters": sum(map(len, documents)),
        "files": {},
    }
    new = path.with_name(f".{path.name}")
    try:
        new.mkdir()
        for name, array in arrays.items():
            np.save(form := io.BytesIO(), array)
            data = form.getvalue()
            write_atomically(new / f"{name}.npy", data)
            facts["files"][f"{name}.npy"] = [len(data), zlib.crc32(data)]
        write_atomically(new / "shard.json", json.dumps(facts))
        os.rename(new, path)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        message = (
            f"{path} could not be written ({error.strerror}); the shards "
            "before it are whole: make room, and make the same call again"
        )
        raise OSError(error.errno, message) from error


# %% book/token_files.md#the-shards-of-a-stream b192a31e
_SHARD_CHARACTERS = 2**24  # a shard of so many is not filled further


def _in_parts(documents: Iterable[str], size: int) -> Iterator[list[str]]:
    part, room = [], _SHARD_CHARACTERS
    for document in documents:
        part.append(document)
        room -= len(document)
        if len(part) == size or room <= 0:
            yield part
            part, room = [], _SHARD_CHARACTERS
    if part:
        yield part


# %% book/token_files.md#the-shards-of-a-stream 01d7e2ed
def _digest(texts) -> str:
    data = "\0".join(texts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()[:12]


def _facts(path):
    """What `shard.json` says of a shard; None where a file is not whole."""
    try:
        facts = read_object(path / "shard.json")
        whole = all(type(facts[n]) is int for n in _COUNTS)
        for name in _ARRAYS:
            size, _ = facts["files"][f"{name}.npy"]
            whole &= (path / f"{name}.npy").stat().st_size == size
    except (LookupError, OSError, TypeError, ValueError):
        return None
    return facts if whole else None


def _tasks(documents, folder, shard_size, names):
    """What is still to do; `names` receives every shard's name."""
    for number, part in enumerate(_in_parts(documents, shard_size)):
        path = folder / f"{number:06}-{_digest(part)}"
        names[path.name] = number
        if _facts(path) is None:
            if path.exists():
                shutil.rmtree(path)  # damaged
            yield path, part


# %% book/token_files.md#in-parallel 689741d1
def _begin_worker(tokenizer):
    global _tokenizer
    _tokenizer = tokenizer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _in_processes(tasks, tokenizer, workers):
    """Make shards in `workers` processes; few tasks wait in memory."""
    start = multiprocessing.get_context("spawn")
    begin = workers, start, _begin_worker, (tokenizer,)
    pending = deque()
    try:
        with ProcessPoolExecutor(*begin) as pool:
            for task in tasks:
                pending.append(pool.submit(_write_shard, *task))
                if len(pending) >= 2 * workers:
                    pending.popleft().result()
            for future in pending:
                future.result()
    except BrokenProcessPool:
        raise RuntimeError(f"a worker process ended; {_GUARD}") from None


_GUARD = (
    "a script that asks for workers must call under if __name__ == "
    "'__main__':, because each worker imports it; ask for fewer workers "
    "if memory was short"
)


def _check_request(documents, workers):
    if isinstance(documents, str):
        raise ValueError("documents is one string; write [documents]")
    name = multiprocessing.current_process().name
    if workers > 1 and name != "MainProcess":
        raise RuntimeError(f"{name} is a worker process itself; {_GUARD}")


# %% book/token_files.md#what-a-folder-holds 2b43775e
_FORMAT = 1  # of the folder; changes with the arrays


def _check_plan(folder, tokenizer, shard_size, source):
    """Refuse a folder whose shards another plan made."""
    form = tokenizer_json(tokenizer.get_vocab(), tokenizer.settings)
    plan = {
        "format": _FORMAT,
        "vocabulary": _digest([form]),
        "shard_size": shard_size,
        "source": source,
    }
    path = folder / "plan.json"
    if not path.exists():
        write_atomically(path, json.dumps(plan))
    try:
        there = read_object(path)
    except ValueError:
        raise ValueError(_damaged(path)) from None
    for name, wanted in plan.items():
        if there.get(name) != wanted:
            raise ValueError(
                f"{folder} holds shards with {name} {there.get(name)}, and "
                f"{wanted} is asked for; delete it, or give another folder"
            )


# %% book/token_files.md#what-a-folder-holds 34cb75b7
def _write_index(folder, names):
    shards = [{"name": name} | _facts(folder / name) for name in names]
    text = json.dumps({"shards": shards}, indent=1)
    write_atomically(folder / "index.json", text)


# %% book/token_files.md#what-a-folder-holds d84557fa
def _read_index(folder):
    path = folder / "index.json"
    try:
        shards = read_object(path)["shards"]
        paths = [folder / Path(shard["name"]).name for shard in shards]
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{folder} has no index.json, so it is no finished folder of "
            "token files; call write_token_files again"
        ) from None
    except (LookupError, TypeError, ValueError):
        raise ValueError(_damaged(path)) from None
    for shard, path in zip(shards, paths):
        if {"name": path.name} | (_facts(path) or {}) != shard:
            raise ValueError(_damaged(path))
    return shards


def _damaged(path):
    return f"{path} is damaged; delete {path.parent} and make it again"


# %% book/token_files.md#what-a-folder-holds 24257e30
def write_token_files(
    documents: Iterable[str],
    tokenizer,
    folder: str | Path,
    *,
    workers: int = 1,
    shard_size: int = 1000,
    source: str | None = None,
    show_progress: bool = False,
) -> "TokenFiles":
    """Tokenise `documents`, which may stream, into shards in `folder`.

    Whole shards are not made again, so an interrupted call is continued by
    the same call; a second process waits for the first. `shard_size` counts
    documents. A `source` names documents that never change: a finished
    folder of it is opened without reading them. Raises ValueError where the
    folder is damaged or of another plan, OSError where the disk is full.
    """
    folder, names = Path(folder), {}
    _check_request(documents, workers)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        _check_plan(folder, tokenizer, shard_size, source)
        if source and (folder / "index.json").exists():
            return TokenFiles(folder)
        for torn in folder.glob(".??????-*"):
            shutil.rmtree(torn)  # a killed process left it
        tasks = _tasks(documents, folder, shard_size, names)
        tasks = tqdm(tasks, unit=" shards", disable=not show_progress)
        if workers == 1:
            for path, part in tasks:
                _write_shard(path, part, tokenizer)
        else:
            _in_processes(tasks, tokenizer, workers)
        _write_index(folder, names)
        for shard in folder.glob("??????-*"):
            if shard.name not in names:
                shutil.rmtree(shard)  # of other texts
    return TokenFiles(folder)


# %% book/token_files.md#reading b7754918
def _open_shard(path):
    return {n: np.load(path / f"{n}.npy", mmap_mode="r") for n in _ARRAYS}


class _Shards(Sequence):
    """The arrays of each shard, opened when it is asked for."""

    def __init__(self, paths: list[Path], opened: int = 128):
        self.paths = paths
        self.open = lru_cache(opened)(_open_shard)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        return self.open(self.paths[number])


# %% book/token_files.md#reading e1c07dfd
class TokenFiles:
    """A tokenised corpus on disk; nothing is read until it is asked for.

    `shards` holds the arrays of `encode_documents`, memory-mapped, and
    `index` the facts of each. `tokens` counts the pieces and a [SEP] for
    each of the `documents`, `pieces` those without, `characters` what the
    texts had. `digest` tells two contents apart. Raises FileNotFoundError
    where `write_token_files` has not finished, ValueError for damage.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.index: list[dict] = _read_index(self.folder)
        self.digest = _digest([json.dumps(self.index, sort_keys=True)])
        for name in _COUNTS:
            setattr(self, name, sum(shard[name] for shard in self.index))
        self.pieces = self.tokens - self.documents
        self.shards = _Shards([self.folder / s["name"] for s in self.index])

    def __reduce__(self):  # a copy in another process opens them again
        return TokenFiles, (self.folder,)

    def verify(self) -> None:
        """Read every byte; ValueError names the shard that has changed."""
        for shard in self.index:
            path = self.folder / shard["name"]
            for name, (_, checksum) in shard["files"].items():
                if zlib.crc32((path / name).read_bytes()) != checksum:
                    raise ValueError(_damaged(path))


# %% book/token_files.md#full-rows 9678677a
def count_packed(tokens: int, inner: int) -> int:
    """How many rows of `inner` pieces a shard gives, for every shift."""
    return max(0, (tokens - inner + 1) // inner)


# %% book/token_files.md#full-rows 818a1282
class PackedRows:
    """Rows of `seq_length` without padding: [CLS] 1 2 3 … [SEP].

    A row begins where the one before ended, whatever stands there. In each
    epoch the first cut falls elsewhere. No row crosses a shard. Liu et al.
    (2019), section 4.2, cut at pieces. ValueError where there is no row.
    """

    def __init__(
        self, files: TokenFiles, seq_length: int, tokenizer, seed: int = 0
    ):
        if seq_length < 3:
            raise ValueError(
                f"seq_length={seq_length} leaves no room for text between "
                "[CLS] and [SEP]; give 3 or more"
            )
        self.files, self.inner = files, seq_length - 2
        self.ends = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.seed = seed
        sizes = [count_packed(s["tokens"], self.inner) for s in files.index]
        self.stops = np.cumsum([0, *sizes])
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
