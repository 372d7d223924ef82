"""Where a run comes from: one line a process that differs, and no repository but our own is asked for the commit."""

import json

import pytest

from dapo_fast import Config, environment
from dapo_fast.errors import InputError
from dapo_fast.provenance import read_provenance, record


def test_a_line_a_process_that_says_something_new(tmp_path, monkeypatch):
    assert read_provenance(tmp_path) == []
    monkeypatch.setattr("sys.argv", ["/x/dapo_fast/__main__.py", "run", "a run", "--preset", "arithmetic"])
    record(tmp_path, Config()), record(tmp_path, Config())
    monkeypatch.setattr("sys.argv", ["/x/bin/dapo-fast", "evaluate", "r"])
    record(tmp_path, Config())
    lines = read_provenance(tmp_path)
    assert [line["command"] for line in lines] == [
        "dapo-fast run 'a run' --preset arithmetic", "dapo-fast evaluate r",
    ]  # fmt: skip
    assert lines[0]["versions"]["torch"].startswith("2.") and "cores" in lines[0]["machine"]
    (tmp_path / "provenance.jsonl").write_text(json.dumps(lines[0] | {"date": 5}) + "\n")
    with pytest.raises(InputError, match=r"provenance\.jsonl, line 1: .*date"):
        read_provenance(tmp_path)


def test_what_a_kill_left_of_a_line_is_no_part_of_the_next(tmp_path, monkeypatch):
    record(tmp_path, Config())
    with open(tmp_path / "provenance.jsonl", "a") as file:
        file.write('{"date": "2026-')
    monkeypatch.setattr("sys.argv", ["dapo-fast", "report"])
    record(tmp_path, Config())
    assert [line["command"] for line in read_provenance(tmp_path)][1:] == ["dapo-fast report"]


def test_the_commit_is_of_our_own_checkout(tmp_path, monkeypatch):
    said = {"ls-files": "__init__.py", "rev-parse": "abc1234", "status": ""}
    monkeypatch.setattr(environment, "said", lambda *command, at: said[command[1]])
    assert environment.commit() == "abc1234"
    said["status"] = " M dapo_fast/api.py"
    assert environment.commit() == "abc1234, changed"
    said["ls-files"] = ""  # installed into somebody's project
    assert environment.commit() == ""
