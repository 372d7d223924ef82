"""Settings that are wrong: every setting with values of the wrong kind, and YAML that is none."""

from typing import get_args

import pytest
from malformed_cases import PRESET, refused, replace, rotated

from dapo_fast.config import Config, Section

HTTP = [*PRESET, "engine.kind=http", "by_iteration={}", "iterations=1"]


def leaves(section, prefix=""):
    """(dotted name, the plain types it takes) of every setting."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, kinds(field.annotation)


def kinds(annotation):
    return {annotation} | {kind for part in get_args(annotation) for kind in kinds(part)}


def wrong_values(name, of):
    """What a setting of these types does not take, none of it null."""
    if of & {int, float}:
        small = ["true", "words", "[x]", "{a: 1}", ".nan", "-1", "-.inf", '"-3"', "no", "-0.5", "''", "-1e300"]
        return small + ([".inf", "1e400"] if name.rpartition(".")[2] != "clip_norm" else [])
    if bool in of:
        return ["words", "3", "[true]", "1.5", "''", "{a: 1}"]
    if list[str] in of:
        return ["3", "words", "{a: 1}", "[1]", "[true]", "[[a]]"]
    if str in of:
        return ["3", "true", "[a]", "{a: 1}", "1.5", '"a\\0b"', '"\\ud800"', ".inf"]
    return ["words", "3", "[]", "true", "''", "{a: 1}"]


LEAVES = sorted(leaves(Config), key=lambda leaf: leaf[0])


def wrong_overrides():
    """One for each setting, the kinds of wrong values taking turns."""
    for index, (name, of) in enumerate(LEAVES):
        values = wrong_values(name, of)
        yield f"{name}={values[index % len(values)]}"


@pytest.mark.parametrize("override", wrong_overrides())
def test_values_of_the_wrong_kind(override, here, capsys):
    refused(capsys, ["run", "r", *PRESET, override], override.partition("=")[0])
    assert not list(here.iterdir())


@pytest.mark.parametrize("name", [name for name, of in LEAVES if int in of and name != "seed"][::9])
def test_numbers_that_nobody_counts_to(name, here, capsys):
    refused(capsys, ["run", "r", *PRESET, f"{name}=2147483648"], f"{name}=2147483648")
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("actor.lrr=1", "did you mean actor.lr?"),
        ("lr=1", "did you mean"),
        ("colect.samples=2", "colect"),
        ("by_iteration.1.actor.lrr=1", "did you mean actor.lr?"),
        ("actor.lr.x=1", "actor.lr"),
        ("a.b.c.d.e=1", "that deep"),
        ("=3", "section.key=value"),
        ("actor.=3", "section.key=value"),
        ("seed", "unrecognized arguments: seed"),
        ("seed=[", "not YAML"),
        ("seed={a: 1, a: 2}", "twice"),
        ("seed=" + "[" * 5000, "nested too deeply"),
        ("seed=18446744073709551616", "seed="),
        ("seed=0o18", "seed=0o18"),
        ("seed=1:30", "seed=1:30"),
        ("seed=2026-01-01", "seed="),
        ("seed=!!int x", "seed="),
        ("seed=*x", "seed="),
        ("iterations=1000000000", "iterations"),
        ("by_iteration.9.actor.lr=1", "by_iteration.9"),
        ("by_iteration.0.actor.lr=1", "by_iteration.0"),
        ("by_iteration.-1.actor.lr=1", "by_iteration.-1"),
        ("by_iteration.one.actor.lr=1", "by_iteration.one"),
        (f"by_iteration.{'9' * 5000}.actor.lr=1", "by_iteration.9"),
        ("by_iteration.1.seed=1", "by_iteration.1"),
        ("by_iteration.1.data.task=arithmetic", "data.task"),
        ("by_iteration={1: {}, '1': {}}", "is there once"),
        ("by_iteration={true: {}}", "by_iteration"),
        ("collect.splitter=words", "collect.splitter=words"),
        ("collect.splitter='regex:('", "collect.splitter"),
        ("data.template=words", "data.template=words"),
        ("data.task=chess", "data.task=chess"),
        ("collect.kept=5", "collect.kept"),
        ("actor.beta=std/0", "actor.beta=std/0"),
        ("actor.beta=std/words", "actor.beta"),
        ("actor.beta=.nan", "actor.beta"),
        ("evaluate.temperature=1e-320", "evaluate.temperature"),
        ("collect.top_p=1.0001", "collect.top_p"),
        ("sft.lr=-0.0", "sft.lr=-0.0"),
        ("sft.adam_betas=[0.9, 1]", "sft.adam_betas"),
        ("sft.adam_betas=[0.9]", "sft.adam_betas"),
        ("data.problems=none.jsonl", "exclude each other"),
        ("data={task: null, problems: p.jsonl}", "model.path"),
        ("data.task=null", "data"),
        ("reward={math: 1e308, code: 1e308}", "reward={math"),
        ("data.heldout=[{path: a, weight: 1e-300}, {path: b, weight: 1e300}]", ".0.weight: Input should be"),
    ],
)
def test_overrides(override, words, here, capsys):
    refused(capsys, ["run", "r", *PRESET, override], words)
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "url",
    [
        *("http://h:x", "http://h:99999999", "http://h:0", "http://", "http://:80", "ftp://h", "h:80", "//h", ""),
        *("http://[::1", "http://a b", "http://h\\tx", "http://h:-1", "file:///etc/passwd", "HTTP//h"),
        *(f"http://{'h' * 64}", "http://a..b"),
    ],
)
def test_urls(url, here, capsys):
    refused(capsys, ["run", "r", *HTTP, f'engine.urls=["{url}"]'], "engine.urls")


@pytest.mark.parametrize("command", ['vllm "{model}', "vllm '{model}", "vllm {model} \\", "vllm model", "", " "])
def test_commands_of_engines(command, here, capsys):
    quoted = "'" + command.replace("'", "''") + "'"
    refused(capsys, ["run", "r", *HTTP, "engine.urls=[http://h]", f"engine.command={quoted}"], "command")


YAML = {
    "unclosed": "a: [",
    "a list": "- 1",
    "a number": "3",
    "nothing": "",
    "a comment": "# seed: 1\n",
    "a key twice": "seed: 1\nseed: 2",
    "a key twice within": "actor: {lr: 1, lr: 2}",
    "deep": "[" * 5000,
    "a tab": "actor:\n\tlr: 1",
    "two documents": "seed: 1\n---\nseed: 2",
    "an open quote": 'seed: "3',
    "python": "seed: !!python/object:os.system x",
    "an alias of nothing": "seed: *x",
    "an alias of itself": "actor: &a {lr: *a}",
    "a list as key": "? [1]\n: 2",
    "a number as key": "1: 2",
    "null as key": "null: 2",
    "unknown": "colour: 1",
    "unknown within": "actor: {learning: 1}",
    "a section as number": "actor: 3",
    "a section as list": "actor: [1]",
    "true as number": "seed: true",
    "infinity": "actor: {lr: .inf}",
    "not a number": "collect: {temperature: .nan}",
    "a fraction": "seed: 1.5",
    "text": "seed: three",
    "octal": "seed: 0o18",
    "sexagesimal": "seed: 1:30",
    "a date": "seed: 2026-01-01",
    "huge": "seed: 18446744073709551616",
    "huge in hex": "seed: 0xffffffffffffffffffff",
    "negative zero": "actor: {lr: -0.0}",
    "a quoted word": "iterations: '1x'",
    "NUL": 'data: {template: "{prompt}\\0"}',
    "iteration of no run": "by_iteration: {9: {}}",
    "iteration by name": "by_iteration: {one: {}}",
    "iteration twice": "by_iteration: {1: {}, '1': {}}",
    "iteration's wrong setting": "by_iteration: {1: {actor: {lr: -1}}}",
}
NOT_TEXT = ["loop", "latin", "utf16", "binary", "nul", "gzip", "directory", "pipe"]


@pytest.mark.parametrize("kind", [*YAML, *NOT_TEXT])
def test_files_of_settings(kind, here, capsys):
    replace(here / "settings.yaml", YAML.get(kind, kind))
    refused(capsys, ["run", "r", *PRESET, "--config", "settings.yaml"], "settings.yaml", keeps=[here])
    assert not (here / "r").exists()


@pytest.mark.parametrize(("kind", "command"), rotated([*list(YAML)[::3], *NOT_TEXT[1:]], ["run", "report", "critic"]))
def test_saved_settings(kind, command, here, capsys):
    replace(here / "r" / "config.yaml", YAML.get(kind, kind))
    refused(capsys, [command, "r"], "r/config.yaml", keeps=[here])
