"""Fixtures that several files of tests use."""

import socket

import pytest


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to resolve or connect fails."""

    def refuse(*arguments, **named):
        raise OSError("no network in this test")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
