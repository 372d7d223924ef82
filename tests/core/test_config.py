"""Settings: the paper's values, presets that load, and errors that name every wrong key."""

import pytest

from dapo_fast.config import Config, load_config, preset_names
from dapo_fast.errors import InputError
from dapo_fast.rundir import RunDirectory

NEEDED = ["model.path=m", "data.problems=p"]


@pytest.mark.parametrize("name", preset_names())
def test_presets_load(name):
    load_config(preset=name, overrides=[] if name == "arithmetic" else NEEDED)


def test_paper_values():
    paper = load_config(preset="paper", overrides=NEEDED)
    collect, critic, actor = paper.collect, paper.critic, paper.actor
    assert (collect.samples, collect.kept, collect.completions) == (32, 6, 16)
    assert (critic.epochs, critic.lr, critic.batch_states, critic.loss) == (1, 5e-6, 512, "bce")
    assert (actor.beta, actor.lr, actor.batch_pairs, actor.epochs) == (0.01, 5e-7, 2048, 1)
    assert (paper.advantages.gap, paper.advantages.unique, actor.state_wise) == (0.1, True, True)
    assert paper.evaluate.max_tokens == 2048
    # What is ours and not the paper's is off.
    assert (paper.advantages.shrink, paper.advantages.trunk_steps, actor.log_partition) == (0, False, False)
    assert not collect.reuse_samples and not collect.first_steps and actor.kl_budget is None


def test_beta_is_a_number_or_a_rule():
    for text, beta in (("auto", "auto"), ("std/6", "std/6"), ("std/2.5", "std/2.5"), ("0.3", 0.3), ("1e-2", 0.01)):
        assert load_config(overrides=[*NEEDED, f"actor.beta={text}"]).actor.beta == beta
    for text in ("0", "-1", "std/0", "std/", "std/x", "std/-2", "std/inf", ".inf", ".nan", "true", "high", "[1]"):
        with pytest.raises(InputError, match=r"actor\.beta: .*auto.*std/C"):
            load_config(overrides=[*NEEDED, f"actor.beta={text}"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["actor.bta=1"], ["actor.bta"]),
        (["actor.beta=high", "critic.epochs=0"], ["actor.beta", "critic.epochs"]),
        (["collect.samples=2", "collect.kept=3"], ["kept", "3 of 2"]),
        (["engine.kind=http"], ["urls"]),
        (["data.task=arithmetic"], ["exclude each other"]),
        (["by_iteration.0.actor.beta=1"], ["by_iteration.0"]),
        (["by_iteration.1.actor.bta=1"], ["bta"]),
        (["by_iteration.2.seed=1", "by_iteration.2.data.heldout=h"], ["seed, data.heldout", "every iteration"]),
        (["seed=-1", "actor.adam_betas=[2, 3]"], ["seed", "actor.adam_betas"]),
        (["nothing"], ["section.key=value"]),
    ],
)
def test_errors_name_every_key(overrides, words):
    with pytest.raises(InputError) as error:
        load_config(overrides=[*NEEDED, *overrides])
    assert all(word in str(error.value) for word in words), error.value


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"bad\.yaml"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(InputError, match="mapping"):
        load_config(tmp_path / "list.yaml")
    with pytest.raises(InputError, match="unknown; there are"):
        load_config(preset="none")


def test_settings_of_an_iteration_are_those_before_it_and_its_own():
    config = load_config(
        overrides=[
            *NEEDED,
            "iterations=3",
            "actor.lr=1e-4",
            "by_iteration.2.actor.beta=0.5",
            "by_iteration.3.collect.kept=1",
        ]
    )
    assert [config.at(i).actor.beta for i in (1, 2, 3)] == ["auto", 0.5, 0.5]
    assert [config.at(i).collect.kept for i in (1, 2, 3)] == [6, 6, 1]
    assert config.at(2).actor.lr == 1e-4


def test_an_iterations_settings_merge_whoever_writes_its_number(tmp_path):
    (tmp_path / "quoted.yaml").write_text("by_iteration: {'2': {actor: {epochs: 3}}}")
    overrides = ["by_iteration.2.actor.lr=1e-5"]
    actor = load_config(tmp_path / "quoted.yaml", "arithmetic", overrides).at(2).actor
    assert (actor.epochs, actor.lr) == (3, 1e-5)


def test_a_run_with_a_broken_config_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("actor: {bta: 1}")
    with pytest.raises(InputError, match=r"config\.yaml: .*bta"):
        RunDirectory(tmp_path, None)


def test_a_stage_refuses_other_settings_and_names_them(tmp_path):
    directory = RunDirectory(tmp_path, Config.model_validate({"model": {"path": "m"}, "data": {"problems": "p"}}))
    first = directory.claim(tmp_path / "iter1" / "actor", {"actor": {"beta": 0.1, "pack_tokens": 100}})
    assert first == directory.claim(tmp_path / "iter1" / "actor", {"actor": {"beta": 0.1, "pack_tokens": 50}})
    with pytest.raises(InputError, match=r"actor\.beta \(0\.1, now 0\.2\)"):
        directory.claim(tmp_path / "iter1" / "actor", {"actor": {"beta": 0.2, "pack_tokens": 100}})


def test_two_processes_do_not_share_a_run(tmp_path):
    first, second = (RunDirectory(tmp_path, load_config(overrides=NEEDED)) for _ in range(2))
    first.lock()
    with pytest.raises(InputError, match="another process"):
        second.lock()
