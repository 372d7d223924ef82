"""The README says what the committed results files say, and its commands exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


# What `python benchmarks/readme.py --check` does, then what it does without --check.
CHECK_AND_WRITE = """
import sys
import readme
sys.argv = ["readme.py", "--check"]
code = readme.main()
sys.argv.pop()
readme.main()
sys.exit(code)
"""


def test_tables_are_those_of_the_results_files_and_a_changed_number_is_noticed(tmp_path):
    for name in ("benchmarks", "docs", "tests", "README.md"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(tmp_path / name)], check=True)
    readme = tmp_path / "README.md"
    text = readme.read_text()
    readme.write_text(text.replace("<!-- generated:study -->\n", "<!-- generated:study -->\n99.9% "))
    command = [sys.executable, "-c", CHECK_AND_WRITE]
    done = subprocess.run(command, cwd=tmp_path / "benchmarks", capture_output=True, text=True, check=False)
    stale = [line.split()[0] for line in done.stderr.splitlines() if " is not what it is made of" in line]
    assert done.returncode == 1 and stale == ["README.md"], done.stderr  # and so every other page is as it should be
    assert readme.read_text() == text


def test_files_and_commands_of_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    from dapo_fast.arguments import build_parser

    commands = set(re.findall(r"dapo-fast (\w+)", text))
    known = build_parser()._subparsers._group_actions[0].choices
    assert commands <= set(known), commands - set(known)


@pytest.mark.parametrize(
    ("suite", "peer", "measure", "better"),
    [
        ("fused_loss", "dapo-fast", "ratio_to_floor", "less"),
        ("step_tree", "tree", "ratio", "more"),
        ("rollout_options", "no option", "token_share", "less"),
        ("train_step", "fsdp2", "step_s", "less"),
    ],
)
def test_comparing_results_files_marks_what_got_slower(suite, peer, measure, better, tmp_path):
    def file(value):
        row = {"suite": suite, "case": "c", "peer": peer, measure: value}
        path = tmp_path / f"{value}.json"
        path.write_text(json.dumps({"suites": {suite: {"machine": {}, "commit": "abc", "rows": [row]}}}))
        return str(path)

    good, bad = (1.1, 1.4) if better == "less" else (1.4, 1.1)
    for before, after, code in ((good, bad, 1), (bad, good, 0)):
        command = [sys.executable, "benchmarks/compare.py", file(before), file(after)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == code and ("slower" in done.stdout) == bool(code)
