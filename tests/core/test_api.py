"""``DAPO``: what is given reaches the stages, results are bound to it, and who listens hears. Stages are doubles."""

import json
import subprocess
import sys

import pytest

from dapo_fast import DAPO, Config, load_config
from dapo_fast.cli import main
from dapo_fast.data.problems import Problem
from dapo_fast.data.store import seal
from dapo_fast.errors import InputError
from dapo_fast.parts import Parts
from dapo_fast.rewards import verifier_for
from dapo_fast.rundir import RunDirectory, write_json
from dapo_fast.train.torchrun import torchrun

ROWS = [{"prompt": f"{i}+{i}=", "target": i} for i in range(20)]


def right(problem, response):
    return response == str(2 * problem.extra["target"])


def half(problem, response):
    return 0.5


def steps_only(pack, steps):
    return None


class Sampler:
    """An engine, of which the test sees only that it is opened and closed."""

    log: list = []  # noqa: RUF012 - the class is what a run is given

    def __init__(self, policy):
        self.tokenizer, self.context = None, 64
        Sampler.log.append(("opened", policy.name))

    def generate(self, prompts, params, progress=None):
        return []

    def close(self):
        Sampler.log.append("closed")


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The stages' doubles: each notes what it was called with and leaves what the next one looks for."""
    calls = {}

    def double(name, place, summary):
        def stage(*arguments, **options):
            calls.setdefault(name, []).append((arguments, options))
            out = next(a for a in reversed(arguments[: place + 1]) if hasattr(a, "joinpath"))
            (out / "model").mkdir(parents=True, exist_ok=True)
            seal(out, {"digest": options.get("digest", ""), **summary})
            return dict(summary)

        return stage

    def measured(problems, engine, settings, out, **options):
        calls.setdefault("evaluate", []).append(((problems, engine), options))
        write_json(out / "summary.json", summary := {"greedy": {"accuracy": 0.5, "low": 0.4, "high": 0.6}})
        return summary

    counts = {"states": 3, "kept": 2, "all_wrong": 0, "all_right": 0, "single": 0}
    for name, place, summary in [
        ("collect", 3, {"problems": 20}),
        ("train_critic", 6, {"k": 2.0}),
        ("compute_advantages", 1, counts),
        ("train_actor", 5, {"steps": 1}),
    ]:
        monkeypatch.setattr(f"dapo_fast.stages.{name}", double(name, place, summary))
    monkeypatch.setattr("dapo_fast.stages.evaluate", measured)
    monkeypatch.setattr("dapo_fast.stages.ValueFiller", lambda *arguments: None)
    for check in ("check_model_directory", "check_prompts", "check_training"):
        monkeypatch.setattr(f"dapo_fast.inputs.{check}", lambda *arguments: None)
    monkeypatch.setattr("dapo_fast.pipeline.warn_of_memory", lambda config: None)
    monkeypatch.setattr(Parts, "tokenizer", lambda self: None)
    Sampler.log = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    return calls


def settings(**more):
    return Config(model={"path": "base"}, data={"template": "none"}, **more)


def given(**more):
    return {"problems": ROWS, "reward": right, "engine": Sampler} | more


def test_iterations_one_by_one(calls, tmp_path):
    heard = []
    run = DAPO(settings(iterations=2), tmp_path / "run", **given(heldout=ROWS[:3], callbacks=[heard.append]))
    assert not (tmp_path / "run").exists() and run.iteration == 1
    row = run.iterate()
    assert (row["iteration"], row["accepted"], row["collect"], run.iteration) == (1, True, {"problems": 20}, 2)
    assert [(e.stage, e.iteration) for e in heard] == [
        ("evaluate", 0), ("collect", 1), ("critic", 1), ("advantages", 1), ("actor", 1), ("evaluate", 1),
    ]  # fmt: skip
    # Measuring the base and sampling from it need one engine, which is gone before the critic is trained.
    assert Sampler.log == [("opened", "base"), "closed", ("opened", "model"), "closed"]
    assert run.policy == tmp_path / "run" / "iter1" / "actor" / "model"
    run.iterate()
    assert [row["iteration"] for row in json.loads((tmp_path / "run" / "results.json").read_text())] == [0, 1, 2]
    with pytest.raises(InputError, match="iterations 2: all of them are done"):
        run.iterate()


def test_what_is_given_reaches_the_stages_and_binds_their_results(calls, tmp_path):
    run = DAPO(settings(), tmp_path / "run", **given(objective=steps_only))
    run.collect(), run.critic(), run.advantages(), run.actor()
    (problems, _, _, _), options = calls["collect"][0]
    assert [p.extra["target"] for p in problems] == list(range(20)) and options["verify"] is right
    assert calls["train_actor"][0][1]["objective"] is steps_only
    assert run.evaluate() is None  # nothing is held out
    assert run.critic_model == tmp_path / "run" / "iter1" / "critic" / "model"
    claimed = json.loads((tmp_path / "run" / "iter1" / "collect" / "stage.json").read_text())["settings"]
    assert claimed["reward"] == f"{__name__}:right" and claimed["engine"] == f"{__name__}:Sampler"
    assert claimed["data"]["problems"].startswith("<20 problems ")
    for change, words in [
        ({"problems": ROWS[1:]}, "data.problems"),
        ({"problems": [ROWS[0] | {"target": 7}, *ROWS[1:]]}, "data.problems"),
        ({"reward": half}, "reward"),
        ({"reward": {right: 0.5, half: 0.5}}, "reward"),
    ]:
        with pytest.raises(InputError, match=f"iter1/collect: holds results of other settings: {words} "):
            DAPO(settings(), tmp_path / "run", **given(**change)).collect()
    with pytest.raises(InputError, match=r"iter1/actor: holds results of other settings: objective "):
        DAPO(None, tmp_path / "run", **given(objective=lambda pack, steps: None)).actor()
    # What can be imported need not be given again; rows must be.
    DAPO(None, tmp_path / "run", problems=list(ROWS)).iterate()
    with pytest.raises(InputError, match=r"data\.problems <20 problems .*>: was given by a program"):
        DAPO(None, tmp_path / "run").run()


@pytest.mark.parametrize("change", [{"reward": half}, {"problems": ROWS[1:]}])
@pytest.mark.parametrize("stage", ["critic", "advantages", "actor"])
def test_no_stage_builds_on_trees_of_another_reward_or_of_other_problems(stage, change, calls, tmp_path):
    run = DAPO(settings(), tmp_path / "run", **given())
    run.collect(), run.critic(), run.advantages()
    done = {name: len(made) for name, made in calls.items()}
    words = r"data\.problems" if "problems" in change else "reward"
    with pytest.raises(InputError, match=f"iter1/collect: holds results of other settings: {words} "):
        getattr(DAPO(None, tmp_path / "run", **change), stage)()
    assert {name: len(made) for name, made in calls.items()} == done
    getattr(DAPO(None, tmp_path / "run"), stage)()


def test_a_measurement_with_other_settings_stops_no_stage(calls, tmp_path):
    DAPO(settings(), tmp_path / "run", **given(heldout=ROWS[:3])).evaluate()
    DAPO(settings(evaluate={"max_tokens": 7}), tmp_path / "run", **given(heldout=ROWS[:2])).collect()


def test_different_things_under_one_name_are_refused(tmp_path):
    def fixed(value):
        return lambda problem, response: value

    with pytest.raises(InputError, match=r"lambda .*>: two things that are given go by this name"):
        DAPO(settings(), tmp_path / "run", **given(reward={fixed(1): 1, fixed(1): 2}))
    with pytest.raises(InputError, match="test_api:right: is given more than once"):
        DAPO(settings(), tmp_path / "run", **given(reward={right: 1, f"{__name__}:right": 2}))
    assert len(DAPO(settings(), tmp_path / "run", **given(reward={fixed(1): 1, fixed(0): 2})).config.reward) == 2


def test_several_rewards_are_named_with_their_weights(calls, tmp_path):
    weights = {right: 3, half: 1}
    run = DAPO(settings(reward={"math": 1.0}), tmp_path / "run", problems=ROWS, reward=weights, engine=Sampler)
    assert run.config.reward == {f"{__name__}:right": 3, f"{__name__}:half": 1}
    run.collect()
    (problems, *_), options = calls["collect"][0]
    assert options["verify"](problems[1], "2") == 0.875 and options["verify"](problems[1], "3") == 0.125


def test_the_directory_is_held_while_something_is_done_and_not_longer(calls, tmp_path):
    found = []

    def try_to_lock(event):
        with pytest.raises(InputError, match="another process is working"):
            RunDirectory(tmp_path / "run", settings()).lock()
        found.append(event.stage)

    run = DAPO(settings(), tmp_path / "run", **given(callbacks=[try_to_lock]))
    run.collect()
    assert found == ["collect"]
    RunDirectory(tmp_path / "run", settings()).lock()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"problems": None}, "data: name a task"),
        ({"problems": []}, "problems: holds no problems"),
        ({"problems": {"train": ROWS}}, "problems: a mapping of train"),
        ({"problems": [1]}, "problems: row 1: a problem is a JSON object"),
        ({"problems": [{"question": "?"}]}, "row 1: fields"),
        ({"problems": [{"prompt": ["?"], "target": 1}]}, "row 1: prompt, message 1: must be an object"),
        ({"heldout": [ROWS[0] | {"id": 1}, ROWS[1] | {"id": 1}]}, "row 2: duplicate id '1'"),
        ({"reward": "no_such_module:f"}, "reward: no_such_module:f: cannot be imported"),
        ({"reward": "json:decoder"}, "reward: json:decoder: a module, which cannot be called"),
        ({"reward": 5}, "reward: 5 is neither"),
        ({"reward": {half: -1}}, "a weight is a number from"),
        ({"engine": Sampler.__new__(Sampler)}, "engine: give a function"),
        ({"objective": "json:nothing"}, "objective: json:nothing"),
        ({"objective": "json:decoder"}, "objective: json:decoder: a module, which cannot be called"),
        ({"task": object()}, "data: task and problems exclude each other"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_done(arguments, words, tmp_path):
    with pytest.raises(InputError) as error:
        DAPO(settings(), tmp_path / "run", **given(**arguments))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_problems_without_an_answer_need_a_reward(calls, tmp_path):
    run = DAPO(settings(), tmp_path / "run", problems=ROWS, engine=Sampler)
    with pytest.raises(InputError, match="problem '1': neither an answer nor tests"):
        run.run()
    assert "collect" not in calls


@pytest.mark.parametrize("problem", [Problem("1", "1+1="), Problem("1", "f", answer="2", kind="code")])
def test_problems_in_memory_need_one_as_well(problem, calls, tmp_path):
    run = DAPO(settings(), tmp_path / "run", problems=[problem], engine=Sampler)
    with pytest.raises(InputError, match="problem '1': neither an answer nor tests, so a reward has to be named"):
        run.run()
    assert "collect" not in calls
    with pytest.raises(InputError, match=r"problem '1': has no (answer|tests) to judge by"):
        verifier_for(problem.kind)(problem, "2")


@pytest.mark.parametrize("command", ["run", "collect"])
def test_a_failed_rank_ends_every_command_with_its_line_and_code(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dapo_fast.pipeline.torchrun", lambda words, processes, held: 7)
    assert main([command, str(tmp_path / "run"), "--preset", "arithmetic", "parallel.processes=2"]) == 7
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"dapo-fast {command}: sft: ended with exit code 7; its messages are above"


def test_a_critic_that_is_not_there_is_said_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    measured = []
    monkeypatch.setattr("dapo_fast.pipeline.Pipeline.do", lambda *arguments: measured.append(arguments))
    (tmp_path / "critic").mkdir()
    for critic in ("nowhere", str(tmp_path / "critic")):
        assert main(["evaluate", str(tmp_path / "run"), "--preset", "arithmetic", "--critic", critic]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "critic" in said and critic in said
    assert not measured


def test_with_a_critic_results_are_read_once(calls, tmp_path, monkeypatch):
    monkeypatch.setattr("dapo_fast.rollout.loading.check_critic", lambda *arguments, **options: None)
    monkeypatch.setattr("dapo_fast.pipeline.Pipeline.choose", lambda *arguments: {"samples": 4})
    run = DAPO(settings(evaluate={"samples": 4}), tmp_path / "run", **given(heldout=ROWS[:3]))
    assert run.evaluate(0, "critic")["chosen"] == run.best_of("critic", 0) == {"samples": 4}
    assert len(calls["evaluate"]) == 1
    with pytest.raises(InputError, match=r"data\.heldout: not set"):
        DAPO(settings(evaluate={"samples": 4}), tmp_path / "other", **given()).best_of("critic")


def test_settings_are_compared_before_the_supervised_start(calls, tmp_path, monkeypatch):
    monkeypatch.setattr("dapo_fast.pipeline.Pipeline.perform", lambda *arguments: calls.setdefault("sft", []).append(1))
    monkeypatch.setattr("dapo_fast.layout.Layout.policy", lambda self, iteration: tmp_path / "base")
    run = DAPO(load_config(preset="arithmetic"), tmp_path / "run", engine=Sampler)
    claimed = run._pipeline.layout.settings("sft", 0)
    run._directory.claim(tmp_path / "run" / "sft", claimed)
    write_json(tmp_path / "run" / "sft" / "done.json", {})
    other = load_config(preset="arithmetic", overrides=["sft.lr=0.5"])
    with pytest.raises(InputError, match=r"sft: holds results of other settings: sft\.lr "):
        DAPO(other, tmp_path / "run").collect()
    assert "sft" not in calls and not (tmp_path / "run" / "config.yaml").exists()
    run.collect()
    assert calls["sft"] == [1]


def test_the_settings_that_are_kept_are_those_of_the_last_stage(calls, tmp_path, monkeypatch):
    def seeds():
        return DAPO(None, tmp_path / "run", problems=ROWS).config.seed

    monkeypatch.setattr("dapo_fast.stages.collect", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        DAPO(settings(seed=1), tmp_path / "run", **given()).collect()
    assert seeds() == 1
    monkeypatch.setattr("dapo_fast.stages.collect", lambda *arguments, **options: {})
    DAPO(settings(seed=2), tmp_path / "run", **given()).collect()  # nothing was bound to the first: ranks read these
    assert seeds() == 2
    DAPO(settings(seed=2, evaluate={"max_tokens": 9}), tmp_path / "run", **given(heldout=ROWS)).evaluate(0)
    assert DAPO(None, tmp_path / "run", problems=ROWS).config.evaluate.max_tokens == 2048


def test_a_module_beside_the_program_is_imported_by_ranks_and_not_by_the_report(tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "beside.py").write_text("def reward(problem, response):\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path / "scripts")
    started = []
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("subprocess.Popen", lambda command, **how: started.append(how) or 1 / 0)
        torchrun(["critic", "run"], 2)
    done = [sys.executable, "-c", "import beside; print(beside.reward(0, 0))"]
    assert subprocess.run(done, env=started[0]["env"], cwd="/", capture_output=True, text=True).stdout == "1\n"
    config = load_config(preset="arithmetic", overrides=["reward=beside:reward", "objective=beside:reward"])
    RunDirectory(tmp_path / "run", config).save_config()
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "beside")
    with pytest.raises(InputError, match="beside:reward: cannot be imported"):
        DAPO(None, tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 0


def test_ranks_cannot_import_what_only_this_program_has(calls, tmp_path):
    config = settings(parallel={"processes": 2})
    run = DAPO(config, tmp_path / "run", **given(objective=lambda pack, steps: None))
    with pytest.raises(InputError, match=r"objective <.*>: the ranks of parallel\.processes cannot import it"):
        run.iterate()


def test_a_stage_that_is_not_there_yet_is_said(tmp_path):
    run = DAPO(load_config(preset="arithmetic"), tmp_path / "run")
    with pytest.raises(InputError, match="nothing here yet of critic"):
        _ = run.critic_model
    with pytest.raises(InputError, match="nothing here yet of collect"):
        next(run.trees)
    with pytest.raises(InputError, match="iteration 9: the run has iterations 1 to 3"):
        run.collect(9)


LIGHT = """
import sys
from dapo_fast import DAPO, load_config
DAPO(load_config(preset="single-gpu", overrides=["model.path=m", "data.problems=p"]), "x")
DAPO(load_config(preset="arithmetic"), "y")
print([name for name in ("torch", "transformers", "tokenizers") if name in sys.modules])
"""


def test_importing_it_is_light():
    """Settings too, a built-in task's among them: what is wrong with them is said at once."""
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
