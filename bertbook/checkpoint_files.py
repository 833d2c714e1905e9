"""The files of a checkpoint

Finds, reads and writes the files that a checkpoint is made of: one
safetensors file or several with an index, replaced as a whole or not at
all, and never a pickle.

The page: https://bertbook.github.io/bertbook/book/checkpoint_files.html
"""

# Tangled from book/checkpoint_files.md (2a97c544): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "STEMS",
    "find_checkpoint",
    "read_weights",
    "saving",
    "shards",
    "write_weights",
]


# %% book/checkpoint_files.md#reading abc21a19
import json
import re
from pathlib import Path

from torch import Tensor

from bertbook.tokenizer import pretrained_folder
from bertbook.training_loop import load_tensors, save_tensors

# The weights of each format lie in STEM.safetensors, or in several files
# that STEM.safetensors.index.json lists.
STEMS = {"bertbook": "bertbook", "published": "model"}
_SAVED = ".saved"  # a complete save that is not yet in its place


def _weights_file(folder):
    """The file to begin with, and its format; None where there is none."""
    for format, stem in STEMS.items():
        for name in f"{stem}.safetensors", f"{stem}.safetensors.index.json":
            if (folder / name).exists():
                return folder / name, format
    return None, None


# %% book/checkpoint_files.md#reading 0509a873
_PICKLES = "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle"


def _no_weights(folder):
    pickles = [p.name for ending in _PICKLES for p in folder.glob(ending)]
    if pickles:
        return ValueError(
            f"{folder} has its weights in {sorted(pickles)[0]} only, a "
            "pickle, which may run any program when it is read; ask for "
            "the model.safetensors of the same model"
        )
    return FileNotFoundError(
        f"{folder} holds neither model.safetensors nor "
        "model.safetensors.index.json; name a folder that save_pretrained "
        "wrote"
    )


# %% book/checkpoint_files.md#reading 79a88ee1
def _read_index(path):
    """Which file holds which tensor."""
    try:
        places = json.loads(path.read_text("utf-8"))["weight_map"]
        files = set(places.values())
        plain = all(Path(name).name == name for name in files)
    except (ValueError, LookupError, AttributeError, TypeError):
        plain = False
    if not plain:
        raise ValueError(
            f"{path} is no index, which maps each name to a file beside "
            "it; get the file again"
        )
    for name in sorted(files):
        if not (path.parent / name).exists():
            raise FileNotFoundError(
                f"{path} lists {name}, which is not there; get all "
                f"{len(files)} files"
            )
    return places


# %% book/checkpoint_files.md#reading 15aa8509
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


# %% book/checkpoint_files.md#reading 7198fc55
_PATTERNS = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "vocab.txt",
    "tokenizer*.json",
)


def _is_complete(folder):
    path, _ = _weights_file(folder)
    try:
        return path is not None and (
            path.suffix != ".json" or bool(_read_index(path))
        )
    except FileNotFoundError:
        return False


def find_checkpoint(
    source: str | Path, revision: str | None = None
) -> Path:
    """The folder of a checkpoint by its path or its name.

    A save that was complete when it was interrupted is found as well. For
    names, and what they raise, see `pretrained_folder`.
    """
    folder = pretrained_folder(source, _PATTERNS, _is_complete, revision)
    saved = folder / _SAVED
    return saved if saved.is_dir() else folder


# %% book/checkpoint_files.md#writing a610e3fe
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def _bytes_in(size):
    if isinstance(size, int) and size > 0:
        return size
    found = re.fullmatch(r"([0-9]+) ?([KMG]B)", str(size))
    if not found or not int(found[1]):
        raise ValueError(
            f"max_shard_size={size!r} is no size; give a number of bytes, "
            "or a string such as '500MB' or '2GB'"
        )
    return int(found[1]) * _UNITS[found[2]]


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


# %% book/checkpoint_files.md#writing 6aa681e9
def write_weights(
    folder: str | Path,
    tensors: dict[str, Tensor],
    format: str = "published",
    max_shard_size: int | str | None = None,
) -> None:
    """Writes `tensors` into `folder`, in one file or in several.

    `max_shard_size` is in bytes or like "2GB"; None is one file.
    """
    stem = Path(folder) / STEMS[format]
    parts = [tensors]
    if max_shard_size is not None:
        parts = shards(tensors, _bytes_in(max_shard_size))
    names, places = [f"{stem}.safetensors"], {}
    if len(parts) > 1:
        count = f"{len(parts):05}.safetensors"
        names = [f"{stem}-{i + 1:05}-of-{count}" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        # Without this entry `transformers` refuses the file.
        save_tensors(name, part, {"format": "pt"})
        places |= dict.fromkeys(part, Path(name).name)
    if len(parts) > 1:
        size = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        text = json.dumps(index, indent=2) + "\n"
        write_atomically(f"{stem}.safetensors.index.json", text)


# %% book/checkpoint_files.md#writing c913ebfc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bertbook.reproducibility import write_atomically


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


_OURS = re.compile(
    rf"({'|'.join(STEMS.values())})"
    r"(-[0-9]{5}-of-[0-9]{5})?\.safetensors(\.index\.json)?"
)


def _finish(folder):
    """Puts the files of a complete save in their places."""
    saved = folder / _SAVED
    if not saved.is_dir():
        return
    new = sorted(saved.iterdir(), key=lambda p: p.name == "config.json")
    for path in new:
        _put(path, folder / path.name)
    for old in set(folder.iterdir()) - {folder / path.name for path in new}:
        if _OURS.fullmatch(old.name):  # of another format, or more shards
            old.unlink()
    _discard(saved)


# %% book/checkpoint_files.md#writing bbc71632
def _discard(folder):
    aside = folder.with_name(".saving")
    if folder.name == _SAVED:  # gone at once, then bit by bit
        _discard(aside)
        os.replace(folder, aside)
    if aside.exists():
        shutil.rmtree(aside)


@contextmanager
def saving(folder: str | Path) -> Iterator[Path]:
    """A folder to write the files of a checkpoint into.

    When the block ends they replace those in `folder`, all at once for
    `find_checkpoint`: a kill before leaves the old ones, a kill after the
    new ones. An error in the block leaves the old ones.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _finish(folder)  # a save that was interrupted
    new = folder / ".saving"
    _discard(new)
    new.mkdir()
    try:
        yield new
        os.replace(new, folder / _SAVED)
    except BaseException:
        _discard(new)
        raise
    _finish(folder)
