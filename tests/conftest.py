"""Fixtures that several files of tests use."""

import io
import shlex
import socket
import subprocess
import sys

import pytest


@pytest.fixture
def call_line(capfd, monkeypatch):
    """Call a line as `python -m bertbook` does, without a new process."""
    from bertbook.command_line import main
    from bertbook.commands import COMMANDS

    monkeypatch.delenv("BERTBOOK_TRACEBACK", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(line, folder, typed=b""):
        monkeypatch.chdir(folder)
        file = io.TextIOWrapper(io.BytesIO(typed))
        monkeypatch.setattr(sys, "stdin", file)
        status = main(shlex.split(line), COMMANDS)
        said = capfd.readouterr()
        return subprocess.CompletedProcess(line, status, said.out, said.err)

    return call


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to resolve or connect fails."""

    def refuse(*arguments, **named):
        raise OSError("no network in this test")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
