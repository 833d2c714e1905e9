"""A training loop

PyTorch from zero: tensors, gradients, a small network on real reviews, and
the loop that trains it. The small tools that every later experiment uses
are made here: shape checks, batches, a run log, and files of tensors.

The page: https://bertbook.github.io/bertbook/book/training_loop.html
"""

# Tangled from book/training_loop.md (0fd7ed15): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "RunLog",
    "accuracy",
    "check_shapes",
    "count_parameters",
    "evaluating",
    "load_tensors",
    "minibatches",
    "read_log",
    "save_tensors",
    "train",
]


# %% book/training_loop.md#shapes-in-signatures 72568e30
import torch
from jaxtyping import Float, Int, install_import_hook
from torch import Tensor, nn


def accuracy(
    logits: Float[Tensor, "*batch classes"], labels: Int[Tensor, "*batch"]
) -> float:
    """The share of rows whose highest logit stands at their label."""
    return (logits.argmax(dim=-1) == labels).float().mean().item()


# %% book/training_loop.md#shapes-in-signatures 07079f85
from importlib.util import find_spec
from pathlib import Path


def _modules_with_shapes(name):
    spec = find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(
            f"check_shapes found no module {name!r}; check its spelling"
        )
    if spec.submodule_search_locations is None:
        return [name]
    return [
        f"{name}.{path.stem}"
        for folder in spec.submodule_search_locations
        for path in sorted(Path(folder).glob("*.py"))
        if "jaxtyping" in path.read_text("utf-8")
    ]


# %% book/training_loop.md#shapes-in-signatures 799c4005
import sys


def check_shapes(*modules: str) -> None:
    """Check the shapes in signatures at run time, from now on.

    `modules` are modules or packages, by default `bertbook`. Those of them
    that state shapes by jaxtyping are checked if they are imported later;
    what is imported already stays unchecked. In IPython, cells that run
    later are checked too. A wrong shape, and any argument that is not what
    its annotation says, raises jaxtyping.TypeCheckError. Raises
    ModuleNotFoundError for an unknown module or without beartype.
    """
    if find_spec("beartype") is None:
        raise ModuleNotFoundError(
            "check_shapes needs beartype; run: pip install beartype"
        )
    wanted = [
        _modules_with_shapes(name) for name in modules or ["bertbook"]
    ]
    install_import_hook(sum(wanted, []), "beartype.beartype")
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell:
        shell.extension_manager.load_extension("jaxtyping")
        magic = "jaxtyping.typechecker"
        shell.run_line_magic(magic, "beartype.beartype")


# %% book/training_loop.md#a-task-is-this-review-kind ab0acd6b
def count_parameters(module: nn.Module) -> int:
    """How many numbers `module` trains or holds fixed; shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


# %% book/training_loop.md#the-loop 54435430
from collections.abc import Callable, Iterable, Iterator


def minibatches(
    count: int, batch_size: int, generator: torch.Generator | None = None
) -> Iterator[Tensor]:
    """The numbers 0 to `count` - 1, in tensors of `batch_size` each.

    In order, or shuffled by `generator`. The last batch may be shorter.
    Raises ValueError for a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give 1 or more")
    if generator is None:
        rows = torch.arange(count)
    else:
        rows = torch.randperm(count, generator=generator)
    return iter(rows.split(batch_size) if count else ())


# %% book/training_loop.md#the-loop 1f334b5a
from contextlib import contextmanager


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """`model` without dropout and gradients, for the length of a block.

    Afterwards every module is in training or evaluation mode as before,
    also where the block raises an error.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in modes:
            module.training = training


# %% book/training_loop.md#a-log-of-the-run 63c4b42d
import json


def _parse_line(line, place):
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise ValueError(
            f"{place}: {line[:40]!r} is not a JSON object, and each line "
            "of a run log must be one; delete the line or mend it"
        )
    return record


def _split_log(path):
    """The records of the whole lines, and the bytes of a torn last one."""
    *lines, torn = Path(path).read_bytes().split(b"\n")
    if torn and not torn.startswith(b"{"):
        _parse_line(torn, f"{path}:{len(lines) + 1}")
    records = [
        _parse_line(line, f"{path}:{number}")
        for number, line in enumerate(lines, 1)
    ]
    return records, torn


# %% book/training_loop.md#a-log-of-the-run ef957c8e
def read_log(path: str | Path) -> list[dict]:
    """The records of a run log, in order.

    A last line without its end is left out: the run was killed while it
    wrote it. Raises ValueError, with file and line, for any other line that
    is no JSON object, and FileNotFoundError.
    """
    return _split_log(path)[0]


# %% book/training_loop.md#a-log-of-the-run 785fbca7
import os


class RunLog:
    """A file of JSON lines that grows by one record at a time.

    An existing log is continued; a torn last line is cut off. Use it in a
    `with` statement, or close it. Raises ValueError if the file at `path`
    is no log.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.exists():
            torn = len(_split_log(self.path)[1])
            os.truncate(self.path, self.path.stat().st_size - torn)
        self._file = open(self.path, "ab")

    def write(self, record: dict) -> None:
        """Append `record`; tensors and arrays of one number are numbers."""
        line = json.dumps(record, default=lambda value: value.item())
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; nothing is waiting to be written."""
        self._file.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error) -> None:
        self.close()


# %% book/training_loop.md#the-whole-loop a49997ea
import copy
import math
from statistics import fmean


def train(
    model: nn.Module,
    batches: Callable[[], Iterable],
    loss_of: Callable,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    score: Callable[[nn.Module], float],
    log: RunLog | None = None,
) -> list[dict]:
    """Train `model`, and leave it with the weights that scored best.

    Each epoch goes through `batches()`, minimises `loss_of(model, batch)`,
    and ends with `score(model)`, where higher is better. Returns, and
    writes to `log`, a record of each epoch: its number, the mean loss of
    its batches, the score. Raises FloatingPointError if a loss is no
    number.
    """
    history, best = [], -math.inf
    picked = copy.deepcopy(model.state_dict())
    for epoch in range(1, epochs + 1):
        model.train()
        losses = []
        for batch in batches():
            loss = loss_of(model, batch)
            losses.append(_finite(loss.item(), epoch, len(losses) + 1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with evaluating(model):
            value = score(model)
        record = {"epoch": epoch, "loss": fmean(losses), "score": value}
        history.append(record)
        if log:
            log.write(record)
        if value > best:
            best, picked = value, copy.deepcopy(model.state_dict())
    model.load_state_dict(picked)
    model.eval()
    return history


# %% book/training_loop.md#the-whole-loop 51204818
def _finite(loss, epoch, step):
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} in epoch {epoch}, step {step}; lower the "
            "learning rate, or look for a division by zero in the model"
        )
    return loss


# %% book/training_loop.md#files-of-tensors f959d8f6
import zlib


def _checksum(tensors, metadata):
    total = zlib.crc32(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        label = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        total = zlib.crc32(label.encode(), total)
        numbers = tensor.reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(numbers, total)
    return f"{total:08x}"


# %% book/training_loop.md#files-of-tensors 45b1318b
def _plain(tensors):
    plain, seen = {}, set()
    for name, tensor in tensors.items():
        dense = isinstance(tensor, Tensor) and not tensor.is_sparse
        if not dense or tensor.is_meta or name == "__metadata__":
            raise TypeError(
                f"{name!r} is no name of a dense tensor with numbers, and "
                "a file holds only these; leave it out or convert it"
            )
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return plain


# %% book/training_loop.md#files-of-tensors 707579a6
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from bertbook.reproducibility import write_atomically


def save_tensors(
    path: str | Path,
    tensors: dict[str, Tensor],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a safetensors file: all of it, or nothing.

    Equal tensors and metadata give equal bytes. The entry `crc32` of the
    metadata is ours. Raises TypeError where something is not what a file
    can hold.
    """
    plain, metadata = _plain(tensors), dict(metadata or {})
    metadata.pop("crc32", None)
    metadata["crc32"] = _checksum(plain, metadata)
    data = save(plain, metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    size = len(text).to_bytes(8, "little")
    write_atomically(path, b"".join([size, text, memoryview(data)[end:]]))


# %% book/training_loop.md#files-of-tensors 2e15291d
def _size_announced(file):
    """How long a safetensors file says it is; 0 if it does not say."""
    length = int.from_bytes(file.read(8), "little")
    sane = length < 100_000_000  # the format's own limit
    try:
        entries = json.loads(file.read(length if sane else 0)).values()
        ends = [each.get("data_offsets", [0, 0])[1] for each in entries]
        return 8 + length + max(ends)
    except (ValueError, AttributeError, LookupError, TypeError):
        return 8 + length if sane else 0


# %% book/training_loop.md#files-of-tensors a042622d
def _explain(path, reason):
    """One sentence on why `path` cannot be read."""
    with open(path, "rb") as file:
        start = file.read(20)
        file.seek(0)
        announced = max(_size_announced(file), 8)
    size = path.stat().st_size
    if start[8:9] != b"{" and start.startswith((b"PK\3\4", b"\x80")):
        return (
            f"{path} holds a pickle, which may run any program when it is "
            "read; ask for the safetensors file of the same model"
        )
    if start.startswith(b"version https://git-"):
        return (
            f"{path} is only the pointer of git-lfs to a file; fetch the "
            "file with git lfs pull"
        )
    if size < announced:
        return (
            f"{path} is cut short, {size:,} of {announced:,} bytes; "
            "copy or download it again"
        )
    return f"{path} is damaged ({reason}); copy or download it again"


# %% book/training_loop.md#files-of-tensors 582275f2
def load_tensors(
    path: str | Path, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    On the CPU the file is mapped, not copied: overwrite it in place and
    the tensors change. `save_tensors` never does. Raises FileNotFoundError,
    and ValueError for what is cut short, damaged, or a pickle; nothing is
    unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is no file; name one that save_tensors wrote"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors, metadata = file.get_tensors(), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        reason = str(error).rpartition(": ")[2]
        raise ValueError(_explain(path, reason)) from None
    wanted = metadata.pop("crc32", None)
    if wanted and wanted != _checksum(tensors, metadata):
        reason = "its numbers do not match its checksum"
        raise ValueError(_explain(path, reason))
    moved = {name: each.to(device) for name, each in tensors.items()}
    return moved, metadata
