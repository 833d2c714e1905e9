"""Training state

Keeps everything that a run needs to go on, in checksummed files of which
the newest whole one counts, so that a killed run loses minutes, not days.

The page: https://bertbook.github.io/bertbook/book/training_state.html
"""

# Tangled from book/training_state.md (dd8167fc): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "cut_log",
    "deferred_interrupt",
    "differences",
    "load_state",
    "restore_tensors",
    "save_state",
    "state_tensors",
]


# %% book/training_state.md#what-a-run-consists-of 4ff93b3c
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from bertbook.reproducibility import write_atomically
from bertbook.training_loop import load_tensors, read_log, save_tensors


def state_tensors(
    model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """The parameters, and what the optimizers remember of each."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for place, memory in optimizer.state_dict()["state"].items():
            for name, value in memory.items():
                key = f"optimizer.{number}.{place}.{name}"
                tensors[key] = torch.as_tensor(value)
    return tensors


# %% book/training_state.md#what-a-run-consists-of 2c263378
def restore_tensors(
    tensors: dict[str, Tensor],
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
) -> None:
    """Put back what `state_tensors` took out."""
    parts = {"model": {}, "optimizer": {}}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        parts[kind][name] = tensor
    model.load_state_dict(parts["model"])
    for number, optimizer in enumerate(optimizers):
        memory = {}
        for key, tensor in parts["optimizer"].items():
            owner, place, name = key.split(".", 2)
            if int(owner) == number:
                memory.setdefault(int(place), {})[name] = tensor.clone()
        plan = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": memory, "param_groups": plan})


# %% book/training_state.md#files-in-rotation 5b79c183
def _state_files(folder):
    """The files of states, the newest last."""
    return sorted(Path(folder).glob("step-????????.safetensors"))


def save_state(
    folder: str | Path,
    step: int,
    tensors: dict[str, Tensor],
    facts: dict,
    keep: int = 2,
) -> Path:
    """Write the state after `step` steps, and delete all but `keep` files.

    `facts` is what JSON holds. The file appears whole or not at all, and
    no older one is deleted before. Raises OSError, which says which state
    is still there, if the disk does not take it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob("step-????????.safetensors.*"):
        torn.unlink()  # of a process that was killed while it wrote
    path = folder / f"step-{step:08}.safetensors"
    metadata = {"facts": json.dumps(facts, sort_keys=True)}
    try:
        save_tensors(path, tensors, metadata)
    except OSError as error:
        raise OSError(error.errno, _lost(path, error, folder)) from error
    for old in _state_files(folder)[:-keep]:
        old.unlink()
    return path


# %% book/training_state.md#files-in-rotation 1ed09f37
def _lost(path, error, folder):
    rest = _state_files(folder)
    left = f"that of {rest[-1].name} is whole" if rest else "there is none"
    return (
        f"{path.name} could not be written ({error.strerror}); {left}; "
        "make room and continue with --resume"
    )


# %% book/training_state.md#the-newest-whole-file 89f1c7b2
import logging


def load_state(
    folder: str | Path,
) -> tuple[dict[str, Tensor], dict] | None:
    """The newest state that is whole, with its facts; None without any.

    A damaged file is named in a warning, and the one before it is used.
    Raises ValueError if all are damaged.
    """
    problems = []
    for path in reversed(_state_files(folder)):
        try:
            tensors, metadata = load_tensors(path)
            facts = json.loads(metadata["facts"])
        except (ValueError, KeyError) as error:
            problems.append(str(error))
            continue
        for problem in problems:
            logging.getLogger(__name__).warning(
                "%s; %s is used instead", problem, path.name
            )
        return tensors, facts
    if problems:
        raise ValueError(
            f"no checkpoint in {folder} is whole: {'; '.join(problems)}; "
            "begin the run again in another folder"
        )
    return None


# %% book/training_state.md#a-log-that-matches 69e35d24
def cut_log(path: str | Path, step: int) -> None:
    """Drop the records after `step`: the steps will be made again."""
    path = Path(path)
    if not path.exists():
        return
    records = [each for each in read_log(path) if each["step"] <= step]
    lines = "".join(json.dumps(each) + "\n" for each in records)
    write_atomically(path, lines)


# %% book/training_state.md#a-settings-file-that-refuses 7be6b57d
def differences(before: dict, now: dict, prefix: str = "") -> list[str]:
    """The fields in which two nested settings differ, as sentences."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(
                f"{prefix}{name} is {old!r} there and {new!r} here"
            )
    return found


# %% book/training_state.md#an-end-that-can-wait 7f69dab5
import signal
from contextlib import contextmanager


@contextmanager
def deferred_interrupt():
    """Turn the first Ctrl-C or SIGTERM into a wish that can be asked for.

    Gives a function that says whether the wish was uttered. A second one
    interrupts at once, as usual. Outside the main thread nothing changes.
    """
    wishes = []
    kinds = (signal.SIGINT, signal.SIGTERM)

    def note(kind, frame):
        wishes.append(kind)
        for each, usual in before.items():
            signal.signal(each, usual)

    try:
        before = {each: signal.signal(each, note) for each in kinds}
    except ValueError:  # not the main thread
        before = {}
    try:
        yield lambda: bool(wishes)
    finally:
        for each, usual in before.items():
            signal.signal(each, usual)
