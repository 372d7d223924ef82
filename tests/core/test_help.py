"""What the command line tells of itself: every setting, its version, the machine, and the policy it measures."""

import pytest
import torch

from dapo_fast import __version__
from dapo_fast.arguments import build_parser
from dapo_fast.cli import main
from dapo_fast.config import Config, load_config
from dapo_fast.pipeline import Pipeline
from dapo_fast.rundir import RunDirectory, write_json
from dapo_fast.settings_help import meanings, section_of, settings_help

SECTIONS = [name for name in Config.model_fields if section_of(name)]


def test_help_lists_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert settings_help() in text
    for name in SECTIONS:
        for key in section_of(name).model_fields:
            assert f"  {name}.{key}=" in text
    for line in ("seed=0", "actor.beta=auto", "critic.lr=5e-06", "sft.lr=1e-05", "data.limit=null", "keep_best=true"):
        assert f"  {line} " in text


@pytest.mark.parametrize("kind", [Config, *map(section_of, SECTIONS)])
def test_every_setting_says_what_it_means(kind):
    said = meanings(kind)
    silent = [key for key in kind.model_fields if not said.get(key) and (kind is not Config or not section_of(key))]
    assert silent == []


def test_version_and_environment(capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args(["--version"])
    assert stop.value.code == 0 and __version__ in capsys.readouterr().out
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert __version__ in text and torch.__version__.split("+")[0] in text and "transformers" in text


def test_evaluate_measures_the_newest_policy_unless_told_which(tmp_path, monkeypatch, capsys):
    directory = RunDirectory(tmp_path, load_config(preset="arithmetic", overrides=["iterations=3"]))
    directory.save_config()
    measured = []
    monkeypatch.setattr(Pipeline, "evaluate", lambda self, iteration: measured.append(iteration))
    assert main(["evaluate", str(tmp_path)]) == 0
    for iteration in (1, 2):
        write_json(directory.stage(iteration, "actor") / "done.json", {})
    assert main(["evaluate", str(tmp_path)]) == 0
    assert main(["evaluate", str(tmp_path), "--iteration", "1"]) == 0
    assert measured == [0, 2, 1]
