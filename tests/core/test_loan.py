"""Engines that are lent to stages, and the servers behind them."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from dapo_fast import Config, loan


def test_a_server_ends_where_no_engine_can_be_made_of_it(tmp_path, monkeypatch):
    running = []

    @contextmanager
    def serving(*_):
        running.append("server")
        try:
            yield None
        finally:
            running.pop()

    def refuses(*_):
        raise RuntimeError("another tokenizer")

    monkeypatch.setattr(loan, "serving", serving)
    engines = loan.EngineLoan(SimpleNamespace(engine=refuses), tmp_path / "server.log")
    with engines.lending():
        with pytest.raises(RuntimeError, match="another tokenizer"), engines.open(tmp_path, Config()):
            pass
        assert not running
