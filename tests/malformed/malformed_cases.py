"""What malformed inputs are malformed copies of, junk to put in their place, and how strictly it is read."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from dapo_fast.cli import main
from dapo_fast.tasks import get_task

PRESET = ["--preset", "arithmetic"]
SMALL = [
    *("iterations=2", "data.limit=4", "data.heldout_limit=2", "sft.steps=3", "sft.batch_sequences=2"),
    *("sft.warmup_steps=0", "collect.samples=2", "collect.kept=2", "collect.completions=1", "collect.max_tokens=8"),
    *("collect.shard_problems=2", "critic.epochs=1", "critic.heldout_fraction=0.5", "actor.steps=1"),
    *("advantages.gap=0", "advantages.keep_all_wrong=true", "evaluate.max_tokens=4", "evaluate.samples=2"),
]
_PROGRESS = re.compile(r"\s*$|\d\d:\d\d:\d\d |.*%\||.*\[\d\d:\d\d")  # the log, and bars of ours and of others
_TOLD = {"run.log", ".lock", "timing.json"}  # what is said of a run goes on, whatever comes of it


def rotated(kinds, places, times=1):
    """Pairs of a kind and a place: each kind in ``times`` places, and every place with its share of kinds."""
    shifted = [(kind, i + i // len(places)) for i, kind in enumerate(kinds)]
    return [(kind, places[(start + turn) % len(places)]) for kind, start in shifted for turn in range(times)]


def refused(capsys, arguments, *words, keeps=()):
    """Run the command line: exit code 2, one line of error with all ``words``, every file in ``keeps`` as it was."""
    before = content(keeps)
    try:
        code = main([str(word) for word in arguments])
    except SystemExit as stop:  # how argparse ends
        code = stop.code
    lines = [line for line in capsys.readouterr().err.splitlines() if not _PROGRESS.match(line)]
    assert code == 2, (code, lines)
    assert len(lines) == 1 and lines[0].startswith("dapo-fast"), lines
    assert [word for word in words if str(word) not in lines[0]] == [], lines[0]
    assert len(lines[0]) < 1000 and lines[0].isprintable(), lines[0]
    after = content(keeps)
    changed = [name for name in before if after.get(name) != before[name]]
    assert not changed, changed


def content(directories):
    """Every file with its bytes, and every link, pipe and empty directory by name."""
    paths = [path for directory in directories for path in Path(directory).rglob("*") if path.name not in _TOLD]
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in paths}


# What is no JSON of ours; each is a function of the path to put it at.
def _text(value):
    return lambda path: path.write_bytes(value if isinstance(value, bytes) else value.encode())


JUNK = {
    "empty": _text(""),
    "blank": _text(" \n\n"),
    "cut": _text('{"digest": "a", '),
    "list": _text("[]"),
    "number": _text("3"),
    "null": _text("null"),
    "text": _text('"text"'),
    "two": _text("{}{}"),
    "nan": _text('{"digest": NaN'),
    "bom": _text("\ufeff{}"),
    "deep": _text("[" * 100_000),
    "latin": _text(b'{"digest": "\xe9"}'),
    "utf16": _text('{"digest": "a"}'.encode("utf-16")),
    "binary": _text(bytes(range(256))),
    "nul": _text(b"\0" * 64),
    "gzip": _text(b"\x1f\x8b\x08\0\0\0\0\0"),
    "directory": Path.mkdir,
    "pipe": os.mkfifo,
    "loop": lambda path: path.symlink_to(path),
}


def replace(path, junk):
    """Put ``junk`` (a name in ``JUNK``, text, bytes or a JSON value) where ``path`` is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(junk, str) and junk in JUNK:
        JUNK[junk](path)
    else:
        _text(junk if isinstance(junk, str | bytes) else json.dumps(junk))(path)


def edited(path, **keys):
    """Other values for ``keys`` of the JSON object in ``path``; ``...`` leaves one out, and the sum is."""
    values = json.loads(path.read_text()) | {"crc32": ...} | keys
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def make_model(path):
    """A Llama of a few thousand weights with the built-in task's tokenizer."""
    tokenizer = get_task("arithmetic").tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_run(path, model):
    """A run of two iterations, done: a few tokens and steps of everything."""
    with pytest.MonkeyPatch.context() as patch:
        # What has no right response trains nobody, and random weights give none.
        patch.setattr("dapo_fast.rollout.shard.verify_many", lambda pairs, verify: [True] * len(pairs))
        patch.setattr("dapo_fast.report.figures.write_figures", lambda run, trees: [])  # which take longest
        assert main(["run", str(path), *PRESET, f"model.path={model}", *SMALL]) == 0
    for figure in path.rglob("events.out*"):  # large, and nobody reads them
        figure.unlink()
    return path
