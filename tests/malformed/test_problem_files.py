"""Files of problems and of supervised pairs that are wrong, through every setting that names one."""

import gzip
import json

import pytest
from malformed_cases import PRESET, SMALL, refused, replace, rotated

GOOD = '{"id": "a", "prompt": "=1+1", "answer": "2"}\n'


def second(**fields):
    """A second line of other fields; ``...`` leaves one out."""
    row = {"id": "b", "prompt": "=1+2", "answer": "3"} | fields
    return GOOD + json.dumps({key: value for key, value in row.items() if value is not ...}) + "\n"


LINES = {  # of which the second is wrong
    "cut": GOOD + '{"id": "b", "prompt"\n',
    "cut at the end": GOOD + '{"id": "b"',
    "text": GOOD + "=1+2\n",
    "list": GOOD + '["b", "=1+2", "3"]\n',
    "number": GOOD + "3\n",
    "null": GOOD + "null\n",
    "string": GOOD + '"b"\n',
    "deep": GOOD + "[" * 5000 + "\n",
    "deep and closed": GOOD + '{"id": "b", "prompt": ' + "[" * 9000 + "]" * 9000 + "}\n",
    "two on a line": GOOD + GOOD.strip() + GOOD,
    "comma": GOOD + GOOD.strip() + ",\n",
    "single quotes": GOOD + GOOD.replace('"', "'"),
    "NaN": second(answer=float("nan")),
    "infinity": second(answer=float("-inf")),
    "beyond floats": GOOD + '{"id": "b", "prompt": "=1+2", "answer": 1e999}\n',
    "latin": GOOD.encode() + '{"id": "b", "prompt": "é", "answer": "3"}\n'.encode("latin-1"),
    "NUL": GOOD + "\0\n",
    "no prompt": second(prompt=...),
    "no answer": second(answer=...),
    "prompt a number": second(prompt=3),
    "prompt null": second(prompt=None),
    "prompt a list": second(prompt=["=1+2"]),
    "prompt empty": second(prompt=""),
    "prompt blank": second(prompt=" \n"),
    "prompt a surrogate": second(prompt="\ud800"),
    "answer null": second(answer=None),
    "answer true": second(answer=True),
    "answer a list": second(answer=["3"]),
    "answer an object": second(answer={"value": 3}),
    "answer empty": second(answer=""),
    "id twice": second(id="a"),
    "id a fraction": second(id=1.5),
    "id true": second(id=True),
    "id empty": second(id=""),
    "id a list": second(id=[1]),
    "carriage returns": GOOD.replace("\n", "\r\n") + "{\r\n",
}
FILES = {  # that are wrong as a whole, with the name they have
    "empty": ("p.jsonl", ""),
    "blank": ("p.jsonl", "\n \r\n\n"),
    "unknown fields": ("p.jsonl", '{"frage": "1+1", "antwort": "2"}\n'),
    "two byte order marks": ("p.jsonl", "\ufeff\ufeff" + GOOD),
    "utf-16": ("p.jsonl", GOOD.encode("utf-16")),
    "binary": ("p.jsonl", bytes(range(256)) * 9),
    "csv": ("p.jsonl", "id,prompt,answer\na,=1+1,2\n"),
    "an array": ("p.jsonl", f"[{GOOD}]"),
    "a pipe": ("p.jsonl", "pipe"),
    "a link to itself": ("p.jsonl", "loop"),
    "an empty directory": ("p.jsonl", "directory"),
    "missing": ("p.jsonl", None),
    "no gzip": ("p.jsonl.gz", GOOD),
    "a cut gzip": ("p.jsonl.gz", gzip.compress(GOOD.encode() * 50)[:-9]),
    "a damaged gzip": ("p.jsonl.gz", gzip.compress(GOOD.encode())[:20] + b"\xff" * 20),
    "an object": ("p.json", GOOD),
    "an array of numbers": ("p.json", "[1, 2]"),
    "a cut array": ("p.json", f"[{GOOD}, "),
    "an empty array": ("p.json", "[]"),
    "a number": ("p.json", "3"),
    "a deep array": ("p.json", "[" * 5000),
}
PLACES = ["evaluate", "data.problems", "data.heldout", "by_iteration.1.data.problems"]


def commands(place, name, inputs):
    if place == "evaluate":
        return ["evaluate", "--model", inputs / "model", "--benchmark", name, "--out", "r", "data.template=none"]
    settings = {"data.problems": inputs / "problems.jsonl", "data.heldout": inputs / "problems.jsonl", place: name}
    words = [f"{key}={value}" for key, value in settings.items()]
    return ["run", "r", f"model.path={inputs / 'model'}", "data.template=none", *words]


@pytest.mark.parametrize(("kind", "place"), rotated(LINES, PLACES))
def test_second_lines(kind, place, here, inputs, capsys):
    replace(here / "p.jsonl", LINES[kind])
    refused(capsys, commands(place, "p.jsonl", inputs), "p.jsonl:2", keeps=[here])


@pytest.mark.parametrize(("kind", "place"), rotated(FILES, PLACES))
def test_files_of_problems(kind, place, here, inputs, capsys):
    name, text = FILES[kind]
    if text is not None:
        replace(here / name, text)
    refused(capsys, commands(place, name, inputs), name, keeps=[here])


NAMES = ["''", "' '", "/dev/null", "/dev/zero", "gsm9k", "a/b/c", "./none.jsonl", "~/p.jsonl"]


@pytest.mark.parametrize(("name", "place"), rotated(NAMES, PLACES))
def test_names_of_problems(name, place, here, inputs, capsys):
    given = name.strip("'") if place == "evaluate" else name
    refused(capsys, commands(place, given, inputs), name.strip("'"), keeps=[here])


PAIRS = {
    "cut": '{"prompt": "a"',
    "list": "[]",
    "number": "3",
    "no response": '{"prompt": "a"}',
    "response a number": '{"prompt": "a", "response": 3}',
    "prompt null": '{"prompt": null, "response": "b"}',
    "deep": "[" * 5000,
    "NUL": "\0",
}


@pytest.mark.parametrize(("kind", "command"), rotated(PAIRS, ["run", "sft"]))
def test_pairs(kind, command, here, capsys):
    replace(here / "pairs.jsonl", '{"prompt": "=1+1", "response": "2"}\n' + PAIRS[kind])
    refused(capsys, [command, "r", *PRESET, *SMALL, "sft.data=pairs.jsonl"], "pairs.jsonl:2", keeps=[here])


@pytest.mark.parametrize("junk", ["empty", "blank", "latin", "utf16", "binary", "directory", "pipe", "loop"])
def test_files_of_pairs(junk, here, capsys):
    replace(here / "pairs.jsonl", junk)
    refused(capsys, ["sft", "r", *PRESET, "sft.data=pairs.jsonl"], "pairs.jsonl", keeps=[here])
