"""A kernel that has imported

A section of the chapter: Running every chapter once

The page: https://bertbook.github.io/bertbook/book/execute.html
"""

# Tangled from book/execute.md (b1d76e4b): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "FORKS",
    "ForkProvisioner",
    "fork_settings",
]


# %% book/execute.md#a-kernel-that-has-imported 2f7476db
import multiprocessing
import os
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path

from jupyter_client.provisioning import LocalProvisioner

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "bertbook.kernels",
        "datasets",
        "ipykernel.kernelapp",
        "matplotlib.pyplot",
        "myst_nb",
        "sklearn.linear_model",
        "torch._dynamo",  # the first optimizer imports it
        "transformers.models.bert.modeling_bert",
    ]
)


def _run_kernel(command: list[str], environment: dict, folder: str):
    """Be the kernel that `command` would start, in a forked process."""
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()
    os.environ.clear()
    # It ends with the server, as any kernel with its parent.
    os.environ.update(environment, JPY_PARENT_PID=str(os.getppid()))
    os.chdir(folder)
    tempfile.tempdir = None  # read TMPDIR again
    IPKernelApp.launch_instance(command[command.index("-f") :])


# %% book/execute.md#a-kernel-that-has-imported 7a6dc396
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
        """As `LocalProvisioner`, which starts a process by `cmd`."""
        self.cwd = kwargs["cwd"]
        process = FORKS.Process(
            target=_run_kernel, args=(cmd, kwargs["env"], self.cwd)
        )
        process.start()
        self.process = _Forked(process)
        self.pid = self.pgid = process.pid
        return self.connection_info


# %% book/execute.md#a-kernel-that-has-imported 403ed5ef
def fork_settings(root: Path) -> dict[str, str]:
    """The environment in which kernels are forked, where they can be."""
    name = "bertbook-fork"
    known = entry_points(
        group="jupyter_client.kernel_provisioners", name=name
    )
    own = root / "bertbook" / "kernels.py"
    if sys.platform != "linux" or not known or not own.exists():
        return {}
    return {
        "JUPYTER_DEFAULT_PROVISIONER_NAME": name,
        # Matplotlib reads it as it is imported, before there is a kernel.
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
