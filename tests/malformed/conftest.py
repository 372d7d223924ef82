"""One model, one file of problems and one finished run, of which every case breaks its own copy."""

import json
import shutil

import pytest
from malformed_cases import make_model, make_run


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """Read-only: ``model`` and ``problems.jsonl``."""
    path = tmp_path_factory.mktemp("inputs")
    rows = [{"id": "a", "prompt": "=1+1", "answer": "2"}, {"id": "b", "prompt": "=1+2", "answer": "3"}]
    (path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_model(path / "model")
    return path


@pytest.fixture(scope="session")
def finished(inputs, tmp_path_factory):
    """Read-only: a run of that model that is done."""
    return make_run(tmp_path_factory.mktemp("finished") / "run", inputs / "model")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, and no launcher."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def run(finished, here):
    """A copy of the finished run."""
    return shutil.copytree(finished, here / "run")


@pytest.fixture
def model(inputs, here):
    """A copy of the model."""
    return shutil.copytree(inputs / "model", here / "model")
