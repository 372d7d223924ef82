"""Settings: the paper's values, presets that load, and errors that name every wrong key."""

import pytest

from dapo_fast.config import Config, load_config, preset_names
from dapo_fast.errors import InputError
from dapo_fast.rundir import RunDirectory, write_json

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
        (["=1"], ["section.key=value"]),
        (["a" + ".a" * 5000 + "=1"], ["that deep"]),
        (["seed=" + "[" * 5000], ["nested too deeply"]),
        (["iterations=2", "by_iteration.9.actor.beta=1"], ["by_iteration.9: the run has iterations 1 to 2"]),
        (["by_iteration={1: {by_iteration: {}}}"], ["by_iteration: the same"]),
        (["by_iteration.one.actor.beta=1"], ["by_iteration.one"]),
        (["by_iteration.²={}"], ["by_iteration.²"]),
        (["by_iteration={1: {}, '1': {}}"], ["by_iteration.1", "once"]),
        (["by_iteration.1.actor.bta=1", "by_iteration.1.critic.lr=0"], ["actor.bta", "critic.lr"]),
        (["collect.splitter=words"], ["collect.splitter", "blank_line"]),
        (["collect.splitter=regex:("], ["collect.splitter", "regular expression"]),
        (["data.template=jinja"], ["data.template", "{prompt}"]),
        (["data.problems=null", "data.task=chess"], ["data.task", "arithmetic"]),
        (["engine.urls=[http://h:99999]"], ["engine.urls", "h:99999"]),
        (["engine.urls=[http://h:abc]"], ["engine.urls", "h:abc"]),
        (["engine.urls=['http://']"], ["engine.urls", "host"]),
        (["engine.urls=['http://h:0']"], ["engine.urls", "port"]),
        (["engine.urls=['http://[h']"], ["engine.urls", "[h"]),
        (['engine.command=vllm serve "{model}'], ["engine.command", "No closing quotation"]),
        (["seed=18446744073709551616"], ["seed"]),
        (['model.path="a\\0b"'], ["model.path", "not text"]),
        (['model.path="\\ud800"'], ["model.path", "not text"]),
        (["engine.model_name=0613"], ["engine.model_name", "613; quote it"]),
        (["iterations=.inf"], ["iterations"]),
        (["reward=no_such_module:f"], ["reward", "no_such_module:f: cannot be imported"]),
        (["reward=chess"], ["reward", "'chess' is none of math, code"]),
        (["reward=5"], ["reward: a name, or names with their weights"]),
        (["reward={}"], ["reward: a name, or names with their weights"]),
        (["reward={math: true}"], ["reward: math: a weight is a number from 1e-06 to 1e+06, not True"]),
        (["reward={math: 0}"], ["reward: math: a weight"]),
        (["reward={math: 1, json:nothing: 1}"], ["reward", "json:nothing"]),
        (["by_iteration.1.reward=math"], ["reward: the same in every iteration"]),
        (["objective=json:nothing"], ["objective", "json:nothing"]),
        (["engine.kind=vllm"], ["engine.kind", "in_process, http"]),
        (["engine.kind=json:decoder"], ["engine.kind", "json:decoder", "cannot be called"]),
        (["data.problems=null", "data.task=json:loads"], ["data.task", "no tokenizer"]),
    ],
)
def test_errors_name_every_key(overrides, words):
    with pytest.raises(InputError) as error:
        load_config(overrides=[*NEEDED, *overrides])
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and len(message) < 1000


NUMBERS = ["actor.lr", "actor.beta", "advantages.gap", "advantages.shrink", "collect.temperature", "evaluate.top_p"]


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "inf", "1e999", "true", "false"])
@pytest.mark.parametrize("key", NUMBERS)
def test_no_number_is_infinite_or_true(key, value):
    with pytest.raises(InputError, match=key):
        load_config(overrides=[*NEEDED, f"{key}={value}"])


@pytest.mark.parametrize("key", ["seed", "actor.epochs", "data.limit", "collect.samples", "parallel.processes"])
def test_true_is_not_one(key):
    with pytest.raises(InputError, match=f"{key}: a number, not true"):
        load_config(overrides=[*NEEDED, f"{key}=true"])
    with pytest.raises(InputError, match="adam_betas: a number"):
        load_config(overrides=[*NEEDED, "actor.adam_betas=[0.9, false]"])


def test_switches_stay_switches_and_clipping_can_be_off():
    config = load_config(overrides=[*NEEDED, "keep_best=no", "engine.seed=true", "actor.clip_norm=.inf"])
    assert (config.keep_best, config.engine.seed, config.actor.clip_norm) == (False, True, float("inf"))
    with pytest.raises(InputError, match="clip_norm"):
        load_config(overrides=[*NEEDED, "actor.clip_norm=.nan"])


def test_an_error_names_the_override_or_the_file_that_made_it(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("actor: {bta: 1}\ncritic: {epochs: 0}")
    with pytest.raises(InputError) as error:
        load_config(file, overrides=[*NEEDED, "critic.epochs=2", "sft.lr=-1", "collect.samples=2", "collect.kept=3"])
    message = str(error.value)
    assert f"{file}: actor.bta: there is no such setting" in message
    assert "sft.lr=-1: sft.lr: " in message and "collect.samples=2, collect.kept=3: collect: kept" in message
    assert "epochs" not in message and "model.path" not in message


NUMERALS = [("010", 10), ("1e3", 1000), ("1_000", 1000), ("0x10", 16), ("+7", 7)]


@pytest.mark.parametrize(("text", "value"), NUMERALS)
def test_numbers_are_the_same_in_a_file_and_on_the_command_line(tmp_path, text, value):
    (tmp_path / "c.yaml").write_text(f"collect: {{samples: {text}}}\nactor: {{lr: {text}}}")
    for config in (
        load_config(tmp_path / "c.yaml", overrides=NEEDED),
        load_config(overrides=[*NEEDED, f"collect.samples={text}", f"actor.lr={text}"]),
    ):
        assert config.collect.samples == config.actor.lr == value


def test_quoted_digits_are_a_name(tmp_path):
    (tmp_path / "c.yaml").write_text('engine: {model_name: "0613"}')
    assert load_config(tmp_path / "c.yaml", overrides=NEEDED).engine.model_name == "0613"
    assert load_config(overrides=[*NEEDED, 'engine.model_name="0613"']).engine.model_name == "0613"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nactor: {lr: 1}\nseed: 2", "line 3, column 1: 'seed' is there twice"),
        ("actor:\n  lr: 1\n  lr: 2", "line 3, column 3: 'lr' is there twice"),
        ("[" * 5000, "nested too deeply"),
        ("a: " * 5000, "line 1"),
        ("seed: !!int x", "invalid literal"),
        ("seed: !!python/object:os.system x", "line 1"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: \0", "special characters"),
        ("\udcff", "not UTF-8 text: byte 0"),
        ("by_iteration: {true: {}}", "by_iteration.True"),
    ],
)
def test_yaml_that_is_wrong_is_one_line_that_says_where(tmp_path, text, words):
    file = tmp_path / "wrong.yaml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError) as error:
        load_config(file)
    message = str(error.value)
    assert words in message and message.startswith(f"{file}: ") and "\n" not in message


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
    assert [config.at(i).actor.beta for i in (1, 2, 3)] == ["std/6", 0.5, 0.5]
    assert [config.at(i).collect.kept for i in (1, 2, 3)] == [6, 6, 1]
    assert config.at(2).actor.lr == 1e-4


def test_beta_by_rule_is_small_in_the_first_iteration_only():
    config = load_config(overrides=[*NEEDED, "iterations=3"])
    assert config.actor.beta == "auto"
    assert [config.at(i).actor.beta for i in (1, 2, 3)] == ["std/6", "std/2", "std/2"]
    given = load_config(overrides=[*NEEDED, "iterations=3", "by_iteration.3.actor.beta=auto", "actor.beta=std/4"])
    assert [given.at(i).actor.beta for i in (1, 2, 3)] == ["std/4", "std/4", "std/2"]


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
    write_json(tmp_path / "iter1" / "actor" / "checkpoints" / "meta.json", {})
    with pytest.raises(InputError, match=r"actor\.beta \(0\.1, now 0\.2\)"):
        directory.claim(tmp_path / "iter1" / "actor", {"actor": {"beta": 0.2, "pack_tokens": 100}})


@pytest.mark.parametrize("left", [(), ("stage.json.tmp",), ("claim.json", "start/config.json"), ("server.log",)])
def test_a_claim_without_results_binds_nobody(tmp_path, left):
    directory = RunDirectory(tmp_path, load_config(overrides=NEEDED))
    stage = tmp_path / "iter1" / "collect"
    directory.claim(stage, {"template": "chat"})
    (stage / "greedy.jsonl").touch()
    for name in left:
        (stage / name).parent.mkdir(exist_ok=True)
        (stage / name).write_text("left by what failed")
    directory.check(stage, {"template": "none"})
    assert directory.changed(stage, {"template": "chat"}) == []  # looking has changed nothing
    directory.claim(stage, {"template": "none"})
    assert directory.changed(stage, {"template": "none"}) == []
    assert not (stage / "start").exists() and not (stage / "claim.json").exists()
    assert (stage / "server.log").exists() == ("server.log" in left)


@pytest.mark.parametrize("name", ["shard-00000.parquet", "done.json", "metrics.jsonl", "model/x.safetensors"])
def test_results_bind_their_directory(tmp_path, name):
    directory = RunDirectory(tmp_path, load_config(overrides=NEEDED))
    stage = tmp_path / "iter1" / "collect"
    directory.claim(stage, {"template": "chat"})
    (stage / name).parent.mkdir(exist_ok=True)
    (stage / name).write_text("measured")
    for attempt in (directory.check, directory.claim):
        with pytest.raises(InputError, match=r"template \('chat', now 'none'\)"):
            attempt(stage, {"template": "none"})
    assert directory.claim(stage, {"template": "chat"}) and (stage / name).read_text() == "measured"


def test_two_processes_do_not_share_a_run(tmp_path):
    first, second = (RunDirectory(tmp_path, load_config(overrides=NEEDED)) for _ in range(2))
    first.lock()
    with pytest.raises(InputError, match="another process"):
        second.lock()
