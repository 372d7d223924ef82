"""Vocabularies that several processes share out."""

import socket

import pytest
from test_integration import program


@pytest.mark.parametrize("world", [2, 4])
def test_processes_that_share_the_vocabulary_agree_with_one(world):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = program("sharded_case.py", port, world)
    assert done.returncode == 0 and "shared vocabularies agree" in done.stdout, done.stderr
