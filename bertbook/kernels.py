"""A kernel that has imported

A section of the chapter: Running every chapter once

The page: https://bertbook.github.io/bertbook/book/execute.html
"""

# Tangled from book/execute.md (e94224ed): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "FORKS",
    "ForkProvisioner",
    "fork_settings",
]


# %% book/execute.md#a-kernel-that-has-imported 8c5e803b
import multiprocessing
import os
import signal
import sys
import threading
from importlib.metadata import entry_points
from pathlib import Path

from jupyter_client.provisioning import LocalProvisioner

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(  # what the chapters import slowly
    [
        "bertbook.kernels",
        "datasets",
        "ipykernel.kernelapp",
        "matplotlib.pyplot",
        "myst_nb",
        "sklearn.linear_model",
        "torch._dynamo",  # imported when an optimizer is made
        "transformers.models.bert.modeling_bert",
    ]
)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os.killpg(0, signal.SIGKILL)


def _run_kernel(command: list[str], environment: dict, folder: str):
    """Be the kernel that `command` would start, in a forked process."""
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()  # a group of processes
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # As in a process that nobody forked:
    multiprocessing.current_process().name = "MainProcess"
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    IPKernelApp.launch_instance(command[command.index("-f") :])


# %% book/execute.md#a-kernel-that-has-imported c9d25ec2
class _Forked:
    """A forked process, with the methods of `Popen` that Jupyter calls."""

    stdin = stdout = stderr = None

    def __init__(self, process):
        self.process, self.pid = process, process.pid
        self.kill, self.terminate = process.kill, process.terminate

    def poll(self):
        return self.process.exitcode

    def wait(self):
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)


class ForkProvisioner(LocalProvisioner):
    """Kernels of Jupyter as forks of a process that has imported."""

    async def launch_kernel(self, cmd, **kwargs):
        """Fork the kernel that the command `cmd` would start."""
        self.cwd = kwargs["cwd"]
        process = FORKS.Process(
            target=_run_kernel, args=(cmd, kwargs["env"], self.cwd)
        )
        process.start()
        self.process = _Forked(process)
        self.pid = self.pgid = process.pid  # by setsid
        return self.connection_info


# %% book/execute.md#a-kernel-that-has-imported b9cc9b9b
def fork_settings(root: Path) -> dict[str, str]:
    """The environment in which kernels are forked; {} where none can be."""
    name = "bertbook-fork"
    known = entry_points(
        group="jupyter_client.kernel_provisioners", name=name
    )
    own = root / "bertbook" / "kernels.py"
    if sys.platform != "linux" or not known or not own.exists():
        return {}
    return {
        "JUPYTER_DEFAULT_PROVISIONER_NAME": name,
        # Matplotlib reads it when it is imported, before there is a kernel.
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
