"""Command lines, launchers and places that are wrong."""

import io
import os
import resource
import subprocess
import sys

import pytest
from malformed_cases import PRESET, SMALL, content, refused, replace, rotated

from dapo_fast.cli import main

STAGES = ["run", "sft", "collect", "critic", "advantages", "actor", "evaluate", "report"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["walk"], "walk"),
        (["--colour"], "COMMAND"),
        (["env", "more"], "more"),
        (["env", "a=1"], "a=1"),
        (["report", "r", "a=1"], "a=1"),
        (["report", "r", "--preset", "arithmetic"], "--preset"),
        (["run", "r", "--colour"], "--colour"),
        (["run", "r", "--config"], "--config"),
        (["run", "r", "--iteration", "1"], "--iteration"),
        (["run", "r", "--preset", "ar\nith"], "--preset ar ith"),
        (["run", "r", "--preset", "../arithmetic"], "--preset ../arithmetic"),
        (["run", "r", "--preset", ""], "--preset"),
        (["run", "r", "--config", "none.yaml"], "none.yaml"),
        (["run", "r", "--config", ""], "not a readable YAML file"),
        (["run", "r", "--config", "a\0b"], "null byte"),
        (["run", "r", "--config", "a\udcff"], r"a\udcff"),
        (["run", "r", "--config", "n" * 300], "nnn"),
        (["run", "r"], "r: no config.yaml"),
        (["sft", "r", *PRESET, "--iteration", "1"], "--iteration 1"),
        (["critic", "r", *PRESET, "--iteration", "0"], "--iteration 0"),
        (["critic", "r", *PRESET, "--iteration", "-1"], "iteration -1"),
        (["critic", "r", *PRESET, "--iteration", "one"], "--iteration"),
        (["critic", "r", *PRESET, "--iteration", "1.5"], "--iteration"),
        (["critic", "r", *PRESET, "--iteration", "²"], "--iteration"),
        (["critic", "r", *PRESET, "--iteration", "9" * 5000], "--iteration"),
        (["critic", "r", *PRESET, "--iteration", "4"], "iteration 4"),
        (["evaluate", "r", *PRESET, "--iteration", "-1"], "iteration -1"),
        (["evaluate"], "--model"),
        (["evaluate", "--model", "m", "--out", "o"], "--benchmark"),
        (["evaluate", "r", "--model", "m"], "--model"),
        (["evaluate", "r", "--limit", "1"], "--limit"),
        (["evaluate", "--model", "m", "--benchmark", "p", "--out", "o", "--limit", "few"], "--limit"),
        (["evaluate", "--model", "m", "--benchmark", "p", "--out", "o", "--limit", "0"], "limit 0"),
        (["evaluate", "--model", "m", "--benchmark", "p", "--out", "o", "--limit", "-3"], "limit -3"),
        (["estimate"], "MODEL"),
        (["estimate", "none"], "model none"),
        (["estimate", "."], "model .: not a Hugging Face model directory"),
        (["estimate", ""], "model.path"),
        (["estimate", "a\0b"], "model.path"),
        (["estimate", "m", "--processes", "0"], "--processes 0"),
        (["estimate", "m", "--problems", "-1"], "--problems -1"),
        (["estimate", "m", "--problems", "9" * 400], "--problems 9"),
        (["estimate", "m", "--response-tokens", "9" * 20], "--response-tokens 9"),
        (["estimate", "m", "--prompt-tokens", "1e3"], "--prompt-tokens"),
        (["estimate", "m", "--response-steps", "nan"], "--response-steps"),
        (["estimate", "m", "actor.lr=high"], "actor.lr=high"),
    ],
)
def test_arguments(arguments, words, here, capsys):
    refused(capsys, arguments, words)
    assert {path.name for path in here.rglob("*")} <= {"r", ".lock", "run.log", "config.yaml"}


def test_a_terminal_of_another_encoding(inputs, here, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["estimate", str(inputs / "model")]) == 0
    terminal.flush()
    assert terminal.buffer.getvalue().isascii()


# Paths of runs ---------------------------------------------------------------------------------------------------

NO_DIRECTORIES = {
    "empty": ("", "run directory ''"),
    "blank": (" \t", "run directory"),
    "NUL": ("a\0b", r"'a\x00b'"),
    "not UTF-8": ("a\udcff", r"'a\udcff'"),
    "too long": ("n" * 300, "nnn"),
    "a device": ("/dev/null", "/dev/null"),
    "within a device": ("/dev/null/r", "/dev/null/r"),
    "within a file": ("file/r", "file/r"),
    "a file": ("file", "file"),
    "a pipe": ("pipe", "pipe"),
    "a link to itself": ("loop", "loop"),
    "a link to nowhere": ("nowhere", "nowhere"),
    "the kernel's": ("/proc/none", "/proc/none"),
}


@pytest.mark.parametrize(("kind", "command"), rotated(NO_DIRECTORIES, [*STAGES, "model"], 2))
def test_runs_that_are_no_directory(kind, command, inputs, here, capsys):
    (here / "file").write_text("mine")
    (here / "nowhere").symlink_to(here / "none" / "none")
    for name in ("pipe", "loop"):
        replace(here / name, name)
    path, words = NO_DIRECTORIES[kind]
    if command == "model":
        places = ["--model", inputs / "model", "--benchmark", inputs / "problems.jsonl", "--out", path]
        refused(capsys, ["evaluate", *places, "data.template=none"], words, keeps=[here])
    else:
        settings = [*PRESET, *SMALL] if command in ("run", "sft") else PRESET if command != "report" else []
        refused(capsys, [command, path, *settings], words, keeps=[here])


# Modules of one's own --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["engine.kind", "reward", "objective", "data.task"])
def test_modules_that_are_programs(setting, here, capsys, monkeypatch):
    (here / "script_of_mine.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(here)
    refused(capsys, ["run", "r", *PRESET, f"{setting}=script_of_mine:f"], "script_of_mine:f: cannot be imported", "3")


def test_functions_that_give_no_engine(here, capsys):
    words = ["collect", "r", *PRESET, *SMALL, "engine.kind=pathlib:Path"]
    refused(capsys, words, "engine.kind pathlib:Path: gave a PosixPath, which has no tokenizer, context, generate")


# Launchers -------------------------------------------------------------------------------------------------------


NO_NUMBERS = ["abc", "", "-1", "1.5", "²", " 1", "1e3", "9" * 5000, "0x1"]


@pytest.mark.parametrize(("value", "name"), rotated(NO_NUMBERS, ["RANK", "WORLD_SIZE", "LOCAL_RANK"]))
def test_launchers_that_give_no_numbers(value, name, run, capsys, monkeypatch):
    monkeypatch.setenv(name, value)
    refused(capsys, ["sft", run], f"environment variable {name}: '{value[:5]}", keeps=[run])


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK 2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE 0"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "MASTER_ADDR"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}, "MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "abc"}, "'abc'"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "99999"}, "'99999'"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "", "MASTER_PORT": "29500"}, "MASTER_ADDR"),
    ],
)
def test_launchers_that_leave_ranks_alone(variables, words, run, capsys, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused(capsys, ["sft", run], words, keeps=[run])


@pytest.mark.parametrize("command", ["collect", "evaluate"])
def test_stages_of_one_process(command, run, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(capsys, [command, run], f"{command}: runs in one process", keeps=[run])


# Disks -----------------------------------------------------------------------------------------------------------


class FullDisk:
    """No file grows beyond ``size`` bytes, which fails in every library as a full disk does."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.mark.parametrize(
    ("command", "size"),
    [
        *rotated(["sft", "critic", "actor"], [0, 100, 5000], 2),
        *rotated(["collect", "advantages", "evaluate"], [0, 100]),
    ],
)
def test_full_disks(command, size, run, capsys):
    """What a stage could not write is named, and the same command does it once there is room."""
    place = run / "sft" if command == "sft" else run / "iter1" / command
    for path in [*place.rglob("*.json*"), *place.rglob("*.parquet")]:
        path.unlink()
    arguments = [command, str(run), *([] if command == "sft" else ["--iteration", "1"])]
    with FullDisk(size):
        refused(capsys, arguments, "File too large", keeps=[run / "iter2"])
    assert main(arguments) == 0


def test_a_report_on_a_disk_that_takes_nothing(run, capsys):
    with FullDisk(0):
        refused(capsys, ["report", run], run, "File too large", keeps=[run])


@pytest.fixture
def mounted(here):
    """A directory on a disk of its own, of 256 KiB; skipped where this process may not mount."""
    path = here / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a disk takes root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_disk_that_can_only_be_read(mounted, run, capsys):
    (mounted / "config.yaml").write_text((run / "config.yaml").read_text())
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    for command in STAGES:
        refused(capsys, [command, mounted], mounted, "Read-only file system", keeps=[mounted])


def test_a_disk_that_is_full(mounted, run, capsys):
    (mounted / "config.yaml").write_text((run / "config.yaml").read_text())
    (mounted / "filling").write_bytes(b"\0" * 240_000)
    refused(capsys, ["run", mounted], mounted, "No space left", keeps=[mounted])


# The program itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "run"], b"run/results.json"),
        (["run", "new", "--preset", "arithmetic", "actor.lr=.inf"], b"actor.lr=.inf"),
        ([b"run", b"a\xff", b"--preset", b"arithmetic"], rb"'a\udcff'"),
    ],
)
def test_as_a_program(arguments, words, run, here):
    replace(run / "results.json", "cut")
    before = content([here])
    done = subprocess.run([sys.executable, "-m", "dapo_fast", *arguments], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1 and words in done.stderr
    assert content([here]) == before
