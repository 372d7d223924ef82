"""The README says what the committed results files say, and its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_tables_are_those_of_the_results_files():
    done = subprocess.run(
        [sys.executable, "benchmarks/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_changed_number_is_noticed(tmp_path):
    for name in ("benchmarks", "docs", "README.md"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(tmp_path / name)], check=True)
    readme = tmp_path / "README.md"
    text = readme.read_text()
    readme.write_text(text.replace("<!-- generated:results -->\n", "<!-- generated:results -->\n99.9% "))
    check = [sys.executable, str(tmp_path / "benchmarks" / "readme.py"), "--check"]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 1
    subprocess.run([sys.executable, str(tmp_path / "benchmarks" / "readme.py")], check=True)
    assert readme.read_text() == text


def test_files_and_commands_of_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    from dapo_fast.cli import build_parser

    commands = set(re.findall(r"dapo-fast (\w+)", text))
    known = build_parser()._subparsers._group_actions[0].choices
    assert commands <= set(known), commands - set(known)


def test_comparing_results_files_marks_what_got_slower(tmp_path):
    import json

    def file(name, ratio):
        row = {"suite": "fused_loss", "case": "c", "peer": "dapo-fast", "ratio_to_floor": ratio}
        path = tmp_path / name
        path.write_text(json.dumps({"machine": {}, "suites": {"fused_loss": [row]}}))
        return str(path)

    command = [sys.executable, "benchmarks/compare.py", file("a.json", 1.1), file("b.json", 1.4)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "slower" in done.stdout
    command = [sys.executable, "benchmarks/compare.py", file("a.json", 1.4), file("b.json", 1.1)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
