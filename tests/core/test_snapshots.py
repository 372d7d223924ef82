"""Models of the hub, in a cache as ``huggingface_hub`` lays it, without a network."""

import json
import shutil

import pytest
from huggingface_hub import errors
from train_cases import write_model

from dapo_fast import DAPO, Config, snapshots
from dapo_fast.cli import main
from dapo_fast.config import ModelSettings
from dapo_fast.errors import InputError
from dapo_fast.models.loading import load_config_of, load_value_model
from dapo_fast.provenance import read_provenance
from dapo_fast.report.read import read_run
from dapo_fast.rollout.in_process import InProcessEngine
from dapo_fast.snapshots import model_directory, of_the_hub, origin, pinned
from dapo_fast.step_values import StepValues

FIRST, SECOND = "a" * 40, "b" * 40
ROWS = [{"id": str(i), "prompt": f"={i}+1", "answer": str(i + 1)} for i in range(3)]
SIZES = {
    "data": {"template": "none"},
    "collect": {"samples": 2, "kept": 2, "completions": 1, "max_tokens": 8},
    "critic": {"epochs": 1, "heldout_fraction": 0, "init": "org/small"},
    "evaluate": {"max_tokens": 4},
}


class Hub:
    """A cache with a model, of which two commits are there."""

    def __init__(self, path, model):
        self.path = path / "models--org--small"
        for commit in (FIRST, SECOND):
            shutil.copytree(model, self.path / "snapshots" / commit)
        (self.path / "refs").mkdir()
        self.move("main", FIRST)
        self.move("v1", FIRST)

    def move(self, name, commit):
        (self.path / "refs" / name).write_text(commit)

    def directory(self, commit):
        return self.path / "snapshots" / commit


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("small") / "model", family="llama")


@pytest.fixture
def hub(tmp_path, monkeypatch, small_model):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    snapshots._fetched.cache_clear()
    return Hub(tmp_path / "cache", small_model)


def test_names_and_directories(hub, tmp_path):
    assert model_directory("model.path", "org/small") == hub.directory(FIRST)
    assert model_directory("model.path", f"org/small@{SECOND}") == hub.directory(SECOND)
    assert pinned("model.path", "org/small@v1") == pinned("model.path", "org/small") == f"org/small@{FIRST}"
    assert origin(hub.directory(FIRST)) == ("org/small", FIRST) and origin(tmp_path / "x") == (f"{tmp_path}/x", None)
    hub.move("main", SECOND)
    assert pinned("model.path", "org/small") == f"org/small@{SECOND}"
    assert pinned("model.path", "org/small", f"org/small@{FIRST}") == f"org/small@{FIRST}"  # as the run began
    assert pinned("model.path", "org/small@main", f"org/small@{FIRST}") == f"org/small@{SECOND}"  # as it says
    for name in ("/org/small", "./org/small", "small", "a/b/c", "org/small@", "o" * 300 + "/x", "runs/mine\n"):
        assert not of_the_hub(name)
    (tmp_path / "org" / "small").mkdir(parents=True)
    assert not of_the_hub("org/small") and model_directory("model.path", "org/small").samefile(tmp_path / "org/small")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.GatedRepoError, "is gated: accept its terms on the hub, and set HF_TOKEN"),
        (errors.RepositoryNotFoundError, r"is not there \(or is private: set HF_TOKEN\)"),
        (errors.RevisionNotFoundError, "has no such revision"),
        (errors.RemoteEntryNotFoundError, r"has no config\.json"),
        (errors.LocalEntryNotFoundError, "is not in the cache, and the hub cannot be reached"),
        (ConnectionResetError, "cannot be had: first line second line"),
    ],
)
def test_what_the_hub_says_is_one_line(hub, error, words, monkeypatch):
    def failing(*arguments, **options):
        raise error.__new__(error, "first line\nsecond line")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", failing)
    with pytest.raises(InputError, match=f"^critic.init org/small@v2: no such directory, and as a model .* {words}$"):
        DAPO(Config(model={"path": "x"}, critic={"init": "org/small@v2"}, data={"task": "arithmetic"}), "run")


def test_a_run_goes_on_from_the_commit_that_it_began_with(hub, tmp_path):
    def run(directory, name="org/small"):
        return DAPO(Config(model={"path": name}, **SIZES), directory, problems=ROWS, reward=lambda p, r: len(r) % 2)

    first = run("run")
    first.collect(), first.critic()
    assert first.policy == hub.directory(FIRST)
    hub.move("main", SECOND)
    again = run("run")
    assert again.collect() == first.collect()
    assert (again.config.model.path, again.config.critic.init) == (f"org/small@{FIRST}",) * 2
    assert json.loads((again.directory / "iter1/collect/stage.json").read_text())["settings"]["policy"] == (
        f"model org/small@{FIRST}"
    )
    assert read_provenance(again.directory)[-1]["models"] == {
        "model.path": f"org/small@{FIRST}", "critic.init": f"org/small@{FIRST}",
    }  # fmt: skip
    assert read_run(again.directory).policy_directories(1) == [hub.directory(FIRST)]
    assert f"org/small@{FIRST}" in again.report().read_text()
    with pytest.raises(InputError, match=f"holds results of other settings: .*now 'model org/small@{SECOND}'"):
        run("run", "org/small@main").collect()
    assert run("other").policy == hub.directory(SECOND)


def test_commands_take_them(hub, tmp_path, capsys):
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = ["evaluate", "--model", "org/small", "--benchmark", "problems.jsonl", "--out", "out"]
    settings = ["data.template=none", "evaluate.max_tokens=4", "evaluate.samples=2"]
    assert main([*command, *settings]) == 0
    hub.move("main", SECOND)
    assert main([*command, *settings]) == 0  # the same, which is there
    assert main([*command[:2], "org/small@main", *command[3:], *settings]) == 2
    assert "holds results of other settings: model " in capsys.readouterr().err
    assert main(["estimate", "org/small@v1"]) == 0
    assert main(["estimate", "org/smaller"]) == 2
    assert "model org/smaller: no such directory" in capsys.readouterr().err


def test_what_loads_models_takes_them(hub):
    engine = InProcessEngine.load("org/small", ModelSettings())
    assert engine.tokenizer.eos_token_id in engine.end_ids and engine.model.num_parameters() > 0
    assert load_config_of(f"org/small@{SECOND}").vocab_size == engine.model.config.vocab_size


def test_a_critic_may_be_one(hub):
    with pytest.raises(InputError, match=f"{FIRST}: .*"):
        StepValues("org/small", template="none")  # a causal LM: it was looked at
    load_value_model(hub.directory(FIRST), init="causal_lm").save_pretrained(hub.directory(SECOND))
    values = StepValues(f"org/small@{SECOND}", template="none")
    assert [step.before for step in values("=1+1", "1+1=2")] == [0.5]
