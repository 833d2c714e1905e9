"""Numbers you can trust

Three small tools that every later chapter leans on: a write that either
happens or does not, a record that says where a number came from, and a
budget that scales what a page trains.

The page: https://bertbook.github.io/bertbook/book/reproducibility.html
"""

# Tangled from book/reproducibility.md (1a24c409): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "budget",
    "describe_machine",
    "kept",
    "read_run",
    "record_run",
    "write_atomically",
]


# %% book/reproducibility.md#a-write-that-happens-or-does-not 8838e693
import os
import tempfile
from pathlib import Path


def write_atomically(path: str | Path, data: str | bytes) -> None:
    """Replace the file `path` by `data`: all of it, or nothing.

    Text is written as UTF-8 with its line ends untouched. The folder must
    exist. If anything fails, the old file stays as it was, no temporary
    file is left, and the error is raised.
    """
    path = Path(path)
    data = data.encode("utf-8") if isinstance(data, str) else data
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, path.stat().st_mode if path.exists() else 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


# %% book/reproducibility.md#a-record-of-a-run 431ec287
import platform
from importlib import metadata


# %% book/reproducibility.md#a-record-of-a-run 453a9115
def describe_machine() -> dict:
    """Processor, cores and versions: what a measured number depends on."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    versions = {"python": platform.python_version()}
    for package in ("torch", "tokenizers", "transformers"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            pass  # not every run needs every package
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    )
    return {
        "processor": processor,
        "cores": cores,
        "system": platform.system(),
        "versions": versions,
    }


# %% book/reproducibility.md#a-record-of-a-run 451d06b6
import json
import shlex
import subprocess
import sys


def _current_commit(folder: Path) -> str:
    run = [
        "git",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty",
        "--exclude=*",
        "--abbrev=12",
    ]
    try:
        done = subprocess.run(run, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


# %% book/reproducibility.md#a-record-of-a-run 8760384f
def _command() -> str:
    script = Path(sys.argv[0])
    if script.is_absolute() and script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    return shlex.join(["python", str(script), *sys.argv[1:]])


def record_run(path: str | Path, metrics: dict) -> dict:
    """Write `metrics` with this run's command, commit and machine.

    `path` is a JSON file, replaced whole; `metrics` is anything JSON holds.
    Returns the record as written.
    """
    record = {
        "command": _command(),
        "machine": describe_machine(),
        "commit": _current_commit(Path(path).resolve().parent),
        "metrics": metrics,
    }
    text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False)
    write_atomically(path, text + "\n")
    return record


# %% book/reproducibility.md#a-record-of-a-run d7196422
def read_run(path: str | Path) -> dict:
    """The record that `record_run` wrote to `path`.

    Raises ValueError, naming the file, if it is missing or no record.
    """
    wanted = {"command", "commit", "machine", "metrics"}
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        missing = wanted - record.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a recorded run ({error}); make it "
            "again with record_run"
        ) from error
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(sorted(missing))}; make "
            "it again with record_run"
        )
    return record


# %% book/reproducibility.md#a-budget 72c4c633
def budget() -> str:
    """`"book"` or `"smoke"`: how much a chapter may compute.

    Read from the environment variable BERTBOOK_BUDGET; `"book"` if unset.
    Raises ValueError for any other value.
    """
    value = os.environ.get("BERTBOOK_BUDGET", "book")
    if value not in ("smoke", "book"):
        raise ValueError(
            f"BERTBOOK_BUDGET is {value!r}, but it must be "
            "'smoke' or 'book'; unset it to get 'book'"
        )
    return value


# %% book/reproducibility.md#a-budget 6b207c53
def kept(name: str) -> Path:
    """The path under which the artifact `name` is kept between runs.

    `name` must tell apart everything the artifact depends on, for example
    by a digest. The folder is created, the file is not.
    """
    root = Path(__file__).parent.parent if "__file__" in globals() else None
    if root and (root / "_toc.yml").exists():
        folder = root / "_build" / "kept"
    else:
        home = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
        folder = Path(home) / "bertbook"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
