"""The files of a checkpoint

Finds, reads and writes the files that a checkpoint is made of: a
configuration, one safetensors file or several with an index, and a
vocabulary; replaced as a whole or not at all, and never a pickle.

The page: https://bertbook.github.io/bertbook/book/checkpoint_files.html
"""

# Tangled from book/checkpoint_files.md (3e8292d2): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "STEMS",
    "check_vocabulary",
    "find_checkpoint",
    "read_configuration",
    "read_weights",
    "saving",
    "shards",
    "write_weights",
]


# %% book/checkpoint_files.md#reading f22bbf01
import json
import re
from pathlib import Path

# The weights of a format lie in STEM.safetensors, or in several files that
# STEM.safetensors.index.json lists.
STEMS = {"bertbook": "bertbook", "published": "model"}


def _weights_file(folder):
    """The file to begin with, and its format; None where there is none."""
    for format, stem in STEMS.items():
        for name in f"{stem}.safetensors", f"{stem}.safetensors.index.json":
            if (folder / name).exists():
                return folder / name, format
    return None, None


# %% book/checkpoint_files.md#reading 512ae9b7
_PICKLES = "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle"


def _no_weights(folder):
    pickles = [p.name for ending in _PICKLES for p in folder.glob(ending)]
    if pickles:
        return ValueError(
            f"{folder} has its weights only in {sorted(pickles)[0]}, a "
            "pickle, which may run any program when it is read; ask for "
            "the model.safetensors of the same model"
        )
    return FileNotFoundError(
        f"{folder} holds neither model.safetensors nor "
        "model.safetensors.index.json; name a folder that save_pretrained "
        "wrote"
    )


# %% book/checkpoint_files.md#reading bf09f349
from bertbook.tokenizer_files import read_object


def _read_index(path):
    """Which file holds which tensor."""
    try:
        places = read_object(path)["weight_map"]
        files = set(places.values())
        good = files and all(Path(name).name == name for name in files)
    except (ValueError, LookupError, AttributeError, TypeError):
        good = False
    if not good:
        raise ValueError(
            f"{path} is no index, which maps each name to a file beside "
            "it; get the file again"
        )
    for name in sorted(files):
        if not (path.parent / name).is_file():
            raise FileNotFoundError(
                f"{path} lists {name}, which is not there; get all "
                f"{len(files)} files"
            )
    return places


# %% book/checkpoint_files.md#reading fff4c12c
from torch import Tensor

from bertbook.training_loop import load_tensors


def read_weights(folder: str | Path) -> tuple[dict[str, Tensor], str]:
    """All tensors of a checkpoint by their names there, and its format.

    Raises FileNotFoundError where a file is missing, and ValueError where
    one is damaged, cut short or a pickle; nothing is unpickled.
    """
    folder = Path(folder)
    path, format = _weights_file(folder)
    if path is None:
        raise _no_weights(folder)
    if path.suffix != ".json":
        return load_tensors(path)[0], format
    tensors, places = {}, _read_index(path)
    for name in sorted(set(places.values())):
        tensors |= load_tensors(folder / name)[0]
    lost = sorted(set(places) - set(tensors))
    if lost:
        raise ValueError(
            f"{folder / places[lost[0]]} should hold {lost[0]} and does "
            f"not ({len(lost)} such); get all files of one version again"
        )
    return tensors, format


# %% book/checkpoint_files.md#reading 046d1804
from bertbook.config import BertConfig, unused_keys


def read_configuration(folder: str | Path) -> tuple[BertConfig, list[str]]:
    """The configuration of a checkpoint, and its keys without a meaning.

    Raises FileNotFoundError, and what `BertConfig.from_json_file` raises.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no config.json, and without it the sizes of "
            "the model are unknown; name a folder that save_pretrained "
            "wrote"
        )
    config = BertConfig.from_json_file(path)
    return config, unused_keys(read_object(path))


# %% book/checkpoint_files.md#reading b3157324
from bertbook.tokenizer_files import (
    check_vocab,
    read_tokenizer_json,
    read_vocab,
)


def check_vocabulary(folder: str | Path, rows: int) -> str | None:
    """What to know about the vocabulary beside weights of `rows` rows.

    None where it has as many pieces, or there is none. Raises ValueError
    where it has more, or cannot be read.
    """
    form, lines = (Path(folder, n) for n in ("tokenizer.json", "vocab.txt"))
    path = form if form.exists() else lines
    if not path.exists():
        return None
    read = (
        read_tokenizer_json if path is form else lambda p: (read_vocab(p),)
    )
    vocab = read(path)[0]
    check_vocab(vocab, (), rows, path)
    size = max(vocab.values()) + 1
    spare = (
        f"{path.name} has {size} pieces for {rows} rows, which is no harm"
    )
    return None if size == rows else spare


# %% book/checkpoint_files.md#reading 111fa5b6
from bertbook.tokenizer import SAVED, pretrained_folder

_PATTERNS = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "vocab.txt",
    "tokenizer*.json",
)


def _is_complete(folder):
    path, _ = _weights_file(folder)
    if path is None or path.suffix != ".json":
        return path is not None
    try:
        return bool(_read_index(path))
    except FileNotFoundError:  # the download stopped between two files
        return False


def find_checkpoint(
    source: str | Path, revision: str | None = None
) -> Path:
    """The folder of a checkpoint by its path or its name.

    A save that was complete when it was interrupted is found as well. For
    names, and for what they raise, see `pretrained_folder`.
    """
    return pretrained_folder(source, _PATTERNS, _is_complete, revision)


# %% book/checkpoint_files.md#writing 8a93ab73
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def _bytes_in(size):
    found = re.fullmatch(r"([1-9][0-9]*) ?([KMG]B)?", str(size))
    if not found:
        raise ValueError(
            f"max_shard_size={size!r} is no size; give a number of bytes, "
            "or a string such as '500MB' or '2GB'"
        )
    return int(found[1]) * _UNITS.get(found[2], 1)


# %% book/checkpoint_files.md#writing f5ef86b1
def shards(tensors: dict[str, Tensor], size: int) -> list[dict]:
    """`tensors` in their order, in parts of at most `size` bytes each.

    A tensor that is larger has a part of its own.
    """
    parts, used = [{}], 0
    for name, tensor in tensors.items():
        if parts[-1] and used + tensor.nbytes > size:
            parts.append({})
            used = 0
        parts[-1][name] = tensor
        used += tensor.nbytes
    return parts


# %% book/checkpoint_files.md#writing 49e6962f
from bertbook.reproducibility import write_atomically
from bertbook.training_loop import save_tensors


def write_weights(
    folder: str | Path,
    tensors: dict[str, Tensor],
    format: str = "published",
    max_shard_size: int | str | None = None,
) -> None:
    """Writes `tensors` into `folder`, in one file or in several.

    `max_shard_size` is in bytes or like "2GB"; None is one file. Raises
    ValueError where it is neither.
    """
    stem, parts = STEMS[format], [tensors]
    if max_shard_size is not None:
        parts = shards(tensors, _bytes_in(max_shard_size))
    names, places = [f"{stem}.safetensors"], {}
    if len(parts) > 1:
        end = f"-of-{len(parts):05}.safetensors"
        names = [f"{stem}-{i + 1:05}{end}" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        # Some versions of `transformers` refuse a file without this entry.
        save_tensors(Path(folder, name), part, {"format": "pt"})
        places |= dict.fromkeys(part, name)
    if len(parts) > 1:
        size = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        text = json.dumps(index, indent=2) + "\n"
        write_atomically(
            Path(folder, f"{stem}.safetensors.index.json"), text
        )


# %% book/checkpoint_files.md#all-or-nothing 3a73c9c5
import os
import shutil
from contextlib import suppress


def _put(path, place):
    """A second name for the file `path`: `place`, in one step."""
    with suppress(FileNotFoundError):
        if place.samefile(path):
            return
    link = place.with_name(f".{place.name}.new")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # not every file system has links
        shutil.copy(path, link)
    os.replace(link, place)


def _discard(folder):
    aside = folder.with_name(".saving")
    if folder.name == SAVED:  # gone at once, then bit by bit
        _discard(aside)
        os.replace(folder, aside)
    if aside.exists():
        shutil.rmtree(aside)


# %% book/checkpoint_files.md#all-or-nothing c99dcdd7
_OURS = re.compile(
    rf"({'|'.join(STEMS.values())})"
    r"(-[0-9]{5}-of-[0-9]{5})?\.safetensors(\.index\.json)?"
)


def _finish(folder):
    """Puts the files of a complete save in their places."""
    saved = folder / SAVED
    if not saved.is_dir():
        return
    new = sorted(saved.iterdir(), key=lambda p: p.name == "config.json")
    for path in new:
        _put(path, folder / path.name)
    for old in set(folder.iterdir()) - {folder / path.name for path in new}:
        if _OURS.fullmatch(old.name):  # of another format, or more shards
            old.unlink()
    _discard(saved)


# %% book/checkpoint_files.md#all-or-nothing 2a466bbb
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def saving(folder: str | Path) -> Iterator[Path]:
    """A folder to write the files of a checkpoint into.

    When the block ends they replace those in `folder`, for
    `find_checkpoint` all at once: a kill before that leaves the old ones,
    one after it the new ones. An error in the block leaves the old ones.
    Other files in `folder` stay.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _finish(folder)  # a save that was interrupted
    new = folder / ".saving"
    _discard(new)
    new.mkdir()
    try:
        yield new
        os.replace(new, folder / SAVED)
    except BaseException:
        _discard(new)
        raise
    _finish(folder)
