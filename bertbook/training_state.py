"""Training state

Keeps everything that a run needs to go on, in checksummed files of which
the newest whole one counts, so that a killed run loses minutes, not days.

The page: https://bertbook.github.io/bertbook/book/training_state.html
"""

# Tangled from book/training_state.md (4eaed563): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "cut_log",
    "deferred_interrupt",
    "differences",
    "load_state",
    "naming_what_is_left",
    "only_process",
    "restore_tensors",
    "save_state",
    "state_tensors",
]


# %% book/training_state.md#what-a-run-consists-of cbf4aa6d
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from bertbook.training_loop import load_tensors, read_log, save_tensors


def state_tensors(
    model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """The parameters, and what the optimizers remember of each.

    Not copies: save them before the next step.
    """
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for place, memory in optimizer.state_dict()["state"].items():
            for name, value in memory.items():
                key = f"optimizer.{number}.{place}.{name}"
                tensors[key] = torch.as_tensor(value)
    return tensors


# %% book/training_state.md#what-a-run-consists-of 0672bc82
def restore_tensors(
    tensors: dict[str, Tensor],
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
) -> None:
    """Put back what `state_tensors` took out.

    Raises ValueError, naming a tensor, where the state is of another model
    or of other optimizers, and changes nothing then.
    """
    parts = {"model": {}, "optimizer": {}}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        parts[kind][name] = tensor
    memories = [{} for _ in optimizers]
    _refuse_misfit(parts, model, optimizers)
    for key, tensor in parts["optimizer"].items():
        number, place, name = key.split(".", 2)
        memory = memories[int(number)].setdefault(int(place), {})
        memory[name] = tensor.clone()
    model.load_state_dict(parts["model"])
    for optimizer, memory in zip(optimizers, memories):
        plan = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": memory, "param_groups": plan})


# %% book/training_state.md#what-a-run-consists-of 78cc2593
def _refuse_misfit(parts, model, optimizers):
    found = {k: tuple(v.shape) for k, v in parts["model"].items()}
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"the state has {name} of shape {found.get(name)}, and the "
                f"model {wanted.get(name)}; build the model that was saved"
            )
    places = {
        f"{number}.{place}"
        for number, optimizer in enumerate(optimizers)
        for place in range(
            sum(len(group["params"]) for group in optimizer.param_groups)
        )
    }
    for key in parts["optimizer"]:
        if key.rpartition(".")[0] not in places:
            raise ValueError(
                f"the state has optimizer.{key}, for which there is no "
                "parameter; make the optimizers that were saved"
            )


# %% book/training_state.md#files-in-rotation 37fe650f
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
    no other state is deleted before; states of later steps are. Raises
    OSError if the disk does not take it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob("step-????????.safetensors.*"):
        torn.unlink()  # of a process that was killed while it wrote
    path = folder / f"step-{step:08}.safetensors"
    about = {"step": str(step), "facts": json.dumps(facts, sort_keys=True)}
    save_tensors(path, tensors, about)
    files = _state_files(folder)
    newest = files.index(path) + 1
    for old in files[: max(0, newest - keep)] + files[newest:]:
        old.unlink()
    return path


# %% book/training_state.md#the-newest-whole-file 5f68e248
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
            found = _load(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            logging.getLogger(__name__).warning(
                "%s; %s is used instead", problem, path.name
            )
        return found
    if problems:
        raise ValueError(
            f"no checkpoint in {folder} is whole: {'; '.join(problems)}; "
            "begin the run again in another folder"
        )
    return None


# %% book/training_state.md#the-newest-whole-file 4ad3cc28
def _load(path):
    try:
        tensors, about = load_tensors(path)
    except ValueError as error:
        raise ValueError(str(error).rpartition("; ")[0]) from None
    if f"step-{int(about.get('step', -1)):08}" != path.stem:
        raise ValueError(
            f"{path} says that it holds step {about.get('step')}"
        )
    return tensors, json.loads(about["facts"])


# %% book/training_state.md#a-log-that-matches 0e9e4c18
import os


def cut_log(path: str | Path, records: int) -> None:
    """Leave the first `records` records: the others will be made again.

    Where there are fewer, a warning says so: they were lost. Raises
    ValueError if the file is no log.
    """
    path = Path(path)
    there = len(read_log(path)) if path.exists() else 0
    if there < records:
        logging.getLogger(__name__).warning(
            "%s has %d of the %d records that the state knows; the others "
            "are lost, and the run goes on without them",
            path,
            there,
            records,
        )
    elif path.exists():
        lines = path.read_bytes().split(b"\n")[:records]
        os.truncate(path, sum(len(line) + 1 for line in lines))


# %% book/training_state.md#settings-that-must-be-the-same b39ee578
def differences(before: dict, now: dict, prefix: str = "") -> list[str]:
    """The fields in which two nested settings differ, as sentences."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new or (name in before) != (name in now):
            then = repr(old) if name in before else "absent"
            here = repr(new) if name in now else "absent"
            found.append(f"{prefix}{name} is {then} there and {here} here")
    return found


# %% book/training_state.md#an-end-that-can-wait edfd7d40
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupt(apart: float = 1.0) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a wish that can be asked for.

    Gives a function that says whether the wish was uttered. One that
    follows `apart` seconds later or more interrupts at once, as usual.
    Outside the main thread nothing changes.
    """
    wishes, before = [], {}

    def note(kind, frame):
        wishes.append(time.monotonic())
        if len(wishes) > 1 and wishes[-1] - wishes[0] >= apart:
            signal.signal(kind, before[kind])
            signal.raise_signal(kind)

    try:
        for kind in (signal.SIGINT, signal.SIGTERM):
            before[kind] = signal.signal(kind, note)
    except ValueError:
        pass  # not the main thread
    try:
        yield lambda: bool(wishes)
    finally:
        for kind, usual in before.items():
            signal.signal(kind, usual)


# %% book/training_state.md#what-the-disk-refuses 5efde1f2
@contextmanager
def naming_what_is_left(folder: str | Path) -> Iterator[None]:
    """Say of a write that fails in the block what is still there.

    `folder` is that of the states. An error of the system becomes an
    OSError of one sentence; one that is a sentence already passes.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        files = _state_files(folder)
        left = "no state was saved; mend that and begin again"
        if files:
            left = (
                f"{files[-1]} is as it was; mend that, for example by "
                "making room, and continue with --resume"
            )
        name = f"{error.filename}: " if error.filename else ""
        raise OSError(
            f"a file failed ({name}{error.strerror}); {left}"
        ) from error


# %% book/training_state.md#one-process-at-a-time aeafa1bd
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def only_process(folder: str | Path) -> Iterator[None]:
    """Keep other processes out of `folder`, which exists, for a block.

    Raises BlockingIOError where one is in. Where the system has no such
    locks this does nothing.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle, folder):
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(
            f"another process is training in {folder}; wait for its end, "
            "or give another folder"
        ) from None
    except OSError:
        pass  # some network file systems have no locks
