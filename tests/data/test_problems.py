"""Problems: every published format loads, and a broken file gives one error that names file and line."""

import base64
import gzip
import json
import pickle
import zlib

import pytest

from dapo_fast.data import problems as module
from dapo_fast.data.problems import content_digest, load_problems
from dapo_fast.errors import InputError

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "def f():\n",
    "entry_point": "f",
    "canonical_solution": "    return 1\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}
LCB_PRIVATE = base64.b64encode(zlib.compress(pickle.dumps(json.dumps([{"input": "2", "output": "3"}])))).decode()

# name: (row as published, prompt, answer, tests)
FORMATS = {
    "own": ({"id": "a", "prompt": "1+1?", "answer": 2}, "1+1?", "2", None),
    "own code": (
        {"id": 7, "prompt": "f", "tests": {"test_list": ["assert f()"]}},
        "f",
        None,
        {"test_list": ["assert f()"]},
    ),
    "gsm8k": (
        {"question": "How many?", "answer": "7 * 200 = <<7*200=1400>>1400\n#### 1,400"},
        "How many?",
        "1400",
        None,
    ),
    "math": (
        {"problem": "Halve 1.", "level": "Level 1", "type": "A", "solution": r"It is \boxed{\frac{1}{2}}."},
        "Halve 1.",
        r"\frac{1}{2}",
        None,
    ),
    "minerva": (
        {"problem": "Focus?", "solution": r"\[s=\boxed{1.6} \mathrm{~cm}\]", "type": "8.282J", "idx": 0},
        "Focus?",
        "1.6",
        None,
    ),
    "olympiadbench": (
        {"id": 1606, "context": "Given.", "question": "Find all.", "final_answer": ["$1$", "$2$"], "unit": None},
        "Given.\nFind all.",
        "$1$, $2$",
        None,
    ),
    "college": (
        {"data_source": "c", "question_number": "1.1", "question": "Simplify", "answer": "$10-4 n$"},
        "Simplify",
        "$10-4 n$",
        None,
    ),
    "amc": ({"id": 0, "question": "How far?", "answer": 27.0, "url": "u"}, "How far?", "27", None),
    "aime": (
        {"id": 60, "problem": "Find m+n.", "solution": "s", "answer": "204", "url": "u", "year": "2024"},
        "Find m+n.",
        "204",
        None,
    ),
    "aime capital": ({"ID": "2024-I-1", "Problem": "Find.", "Solution": "s", "Answer": 33}, "Find.", "33", None),
    "math500": ({"problem": "P", "solution": r"\boxed{1}", "answer": "1", "unique_id": "t"}, "P", "1", None),
    "svamp": (
        {
            "ID": "chal-1",
            "Body": "There are 87 oranges",
            "Question": "How many?",
            "Equation": "( 8.0 - 3.0 )",
            "Answer": 5.0,
        },
        "There are 87 oranges. How many?",
        "5",
        None,
    ),
    "humaneval": (HUMANEVAL, "def f():\n", None, {k: HUMANEVAL[k] for k in ("prompt", "entry_point", "test")}),
    "mbpp": (
        {"task_id": 2, "text": "Write f.", "code": "c", "test_setup_code": "", "test_list": ["assert f() == 1"]},
        "Write f.\nYour code should pass these tests:\nassert f() == 1",
        None,
        {"test_list": ["assert f() == 1"], "test_setup_code": ""},
    ),
    "mbpp sanitized": (
        {
            "task_id": 2,
            "prompt": "Write f.",
            "code": "c",
            "test_imports": ["import math"],
            "test_list": ["assert f() == 1"],
        },
        "Write f.\nYour code should pass these tests:\nassert f() == 1",
        None,
        {"test_list": ["assert f() == 1"], "test_setup_code": "import math"},
    ),
    "taco": (
        {"question": "Add one.", "input_output": json.dumps({"inputs": ["1"], "outputs": ["2"]}), "starter_code": ""},
        "Add one.",
        None,
        {"inputs": ["1"], "outputs": ["2"]},
    ),
    "apps by call": (
        {
            "question": "Q",
            "input_output": {"inputs": [[1]], "outputs": [2], "fn_name": "f"},
            "starter_code": "class Solution:",
        },
        "Q\n\nclass Solution:",
        None,
        {"inputs": [[1]], "outputs": [2], "fn_name": "f"},
    ),
    "livecodebench": (
        {
            "question_id": "q1",
            "question_content": "Add one.",
            "public_test_cases": json.dumps([{"input": "1", "output": "2", "testtype": "stdin"}]),
            "private_test_cases": LCB_PRIVATE,
            "metadata": "{}",
        },
        "Add one.",
        None,
        {"inputs": ["1", "2"], "outputs": ["2", "3"]},
    ),
    "livecodebench by call": (
        {
            "question_id": "q1",
            "question_content": "Add.",
            "public_test_cases": json.dumps([{"input": "1\n[2]", "output": "3", "testtype": "functional"}]),
            "metadata": json.dumps({"func_name": "add"}),
        },
        "Add.",
        None,
        {"inputs": [[1, [2]]], "outputs": [3], "fn_name": "add"},
    ),
    "livecodebench by call, on LeetCode": (
        {
            "question_title": "t",
            "question_content": "Join.",
            "platform": "leetcode",
            "question_id": "2828",
            "starter_code": "class Solution:\n    def join(self, words: List[str], s: str) -> bool:\n        ",
            "public_test_cases": json.dumps(
                [{"input": '["a\u2028b", "c"]\n"ac"', "output": "true", "testtype": "functional"}], ensure_ascii=False
            ),
            "private_test_cases": "",
            "metadata": '{"func_name": "join"}',
        },
        "Join.\n\nclass Solution:\n    def join(self, words: List[str], s: str) -> bool:\n        ",
        None,
        {"inputs": [[["a\u2028b", "c"], "ac"]], "outputs": [True], "fn_name": "join"},
    ),
    "taco, large numbers": (
        {
            "question": "Q",
            "solutions": "[]",
            "starter_code": "",
            "input_output": '{"fn_name": "f", "inputs": [[' + "9" * 5000 + ']], "outputs": [[1]]}',
            "difficulty": "EASY",
            "time_limit": None,
        },
        "Q",
        None,
        {"inputs": [[10**5000 - 1]], "outputs": [[1]], "fn_name": "f"},
    ),
    "mmlu": (
        {"question": "Which?", "subject": "s", "choices": ["one", "two"], "answer": 1},
        "Which?\nA. one\nB. two",
        "B",
        None,
    ),
    "choices in columns": (
        {"id": 0, "question": "Which?", "A": "one", "B": 2, "C": "three", "D": "", "answer": "B"},
        "Which?\nA. one\nB. 2\nC. three\nD. ",
        "B",
        None,
    ),
    "aqua": (
        {"question": "How much?", "options": ["A)21", "B)22"], "rationale": "r", "correct": "B"},
        "How much?\nA)21\nB)22",
        "B",
        None,
    ),
    "asdiv": (
        {"body": "Two pears.", "question": "How many?", "answer": "2 (pears)", "formula": "2", "solution_type": "t"},
        "Two pears. How many?",
        "2",
        None,
    ),
}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("name", FORMATS)
def test_published_format(name, tmp_path):
    row, prompt, answer, tests = FORMATS[name]
    (problem,) = load_problems(write(tmp_path / "p.jsonl", row))
    assert (problem.prompt, problem.answer, problem.tests) == (prompt, answer, tests)
    assert problem.kind == ("math" if tests is None else "code")


def test_containers(tmp_path):
    rows = [{"id": i, "prompt": f"{i}?", "answer": str(i)} for i in range(3)]
    text = "".join(json.dumps(row) + "\n\n" for row in rows)
    (tmp_path / "a.jsonl").write_text("\ufeff" + text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    loaded = [load_problems(str(tmp_path / name)) for name in ("a.jsonl", "b.jsonl.gz", "c.json")]
    assert loaded[0] == loaded[1] == loaded[2] and [p.id for p in loaded[0]] == ["0", "1", "2"]
    assert load_problems(str(tmp_path / "a.jsonl"), limit=2) == loaded[0][:2]
    folder = tmp_path / "MATH" / "algebra"
    folder.mkdir(parents=True)
    for number in (1, 2):
        (folder / f"{number}.json").write_text(json.dumps({"problem": "P", "solution": rf"\boxed{{{number}}}"}))
    assert [(p.id, p.answer) for p in load_problems(str(tmp_path / "MATH"))] == [("algebra/1", "1"), ("algebra/2", "2")]


def test_problems_published_without_tests_are_left_out(tmp_path, caplog):
    with_tests = FORMATS["taco"][0]
    rows = [
        with_tests | {"input_output": ""},
        with_tests,
        with_tests | {"input_output": '{"inputs": [], "outputs": []}'},
    ]
    with caplog.at_level("WARNING", logger="dapo_fast.data"):
        (problem,) = load_problems(write(tmp_path / "p.jsonl", *rows))
    assert problem.id == "2" and "2 problems have no tests and are left out" in caplog.text


def test_only_the_tests_of_its_form_are_kept(tmp_path):
    tests = {"test_list": ["assert f()"], "entry_point": "f", "note": 1}
    (problem,) = load_problems(write(tmp_path / "p.jsonl", {"id": 1, "prompt": "p", "tests": tests}))
    assert problem.tests == {"test_list": ["assert f()"]}


GOOD = b'{"id": "a", "prompt": "p", "answer": "1"}\n'
BROKEN = {
    "bad JSON": (GOOD + b'{"id": "b", "prompt": ', ":2: not valid JSON"),
    "not an object": (GOOD + b"[1]\n", ":2: a problem is a JSON object, this is an array"),
    "missing field": (GOOD + b'{"id": "b", "prompt": "p"}\n', ":2: field 'answer' is missing"),
    "wrong type of prompt": (
        GOOD + b'{"id": "b", "prompt": 3, "answer": "1"}\n',
        ":2: 'prompt' must be text or messages, not a number",
    ),
    **{
        f"prompt of messages, {name}": (
            GOOD + b'{"id": "b", "answer": "1", "prompt": ' + prompt + b"}\n",
            f":2: {words}",
        )
        for name, prompt, words in (
            ("none", b"[]", "'prompt' holds no message"),
            ("not objects", b'["p"]', "prompt, message 1: must be an object with 'role' and 'content', not a string"),
            ("no role", b'[{"content": "p"}]', "prompt, message 1: 'role' must be one of system, developer, user"),
            (
                "other role",
                b'[{"role": "human", "content": "p"}]',
                "prompt, message 1: 'role' must be one of system, developer, user, assistant, tool, not 'human'",
            ),
            ("no content", b'[{"role": "user"}]', "prompt, message 1: 'content' must be text, or an array of objects"),
            (
                "picture",
                b'[{"role": "user", "content": [{"type": "image"}]}]',
                "prompt, message 1: 'content' must be text",
            ),
            ("no user", b'[{"role": "system", "content": "s"}]', "'prompt' has no message of the user"),
            ("no question", b'[{"role": "user", "content": " "}]', "the question is empty"),
            (
                "answered",
                b'[{"role": "user", "content": "p"}, {"role": "assistant", "content": "1"}]',
                "'prompt' ends with a message of 'assistant': nothing is left to answer",
            ),
            (
                "tools",
                b'[{"role": "user", "content": "p"}], "tools": "calculator"',
                "'tools' must be an array of objects",
            ),
            (
                "calls",
                b'[{"role": "user", "content": "p"}, {"role": "assistant", "tool_calls": "add"}]',
                "prompt, message 2: 'tool_calls' must be an array of objects, not a string",
            ),
            (
                "surrogate",
                b'[{"role": "system", "content": "\\ud800"}, {"role": "user", "content": "p"}]',
                "a lone surr",
            ),
        )
    },
    "wrong type of answer": (
        GOOD + b'{"id": "b", "prompt": "p", "answer": ["1"]}\n',
        ":2: 'answer' must be text or a number",
    ),
    "boolean answer": (GOOD + b'{"id": "b", "prompt": "p", "answer": true}\n', ":2: 'answer' must be text or a number"),
    "null id": (
        GOOD + b'{"id": null, "prompt": "p", "answer": "1"}\n',
        ":2: 'id' must be text or a whole number, not null",
    ),
    "NaN": (GOOD + b'{"id": "b", "prompt": "p", "answer": NaN}\n', ":2: not valid JSON (NaN is not JSON)"),
    "empty prompt": (GOOD + b'{"id": "b", "prompt": " ", "answer": "1"}\n', ":2: the question is empty"),
    "empty answer": (GOOD + b'{"id": "b", "prompt": "p", "answer": ""}\n', ":2: the answer is empty"),
    "duplicate id": (GOOD + b"\n" + GOOD, ":3: duplicate id 'a', first used at"),
    "invalid UTF-8": (GOOD + b'{"id": "b", "prompt": "\xff", "answer": "1"}\n', ":2: invalid UTF-8 at byte 23"),
    "lone surrogate": (GOOD + b'{"id": "b", "prompt": "\\ud800", "answer": "1"}\n', ":2: a lone surrogate, \\ud800"),
    "deep nesting": (GOOD + b"[" * 200_000 + b"\n", ":2: JSON nested too deeply"),
    "empty": (b"", ": holds no problems"),
    "blank lines": (b"\n \n", ": holds no problems"),
    "unknown fields": (b'{"foo": 1}\n', ":1: fields ['foo'] are those of no known format"),
    "no box": (b'{"problem": "p", "solution": "so \\\\boxed{1"}\n', ":1: 'solution' has no complete \\boxed{}"),
    "no hashes": (
        b'{"question": "q", "answer": "#### 1"}\n{"question": "q", "answer": "1"}\n',
        ":2: 'answer' has no '####'",
    ),
    "empty test list": (b'{"task_id": 1, "text": "t", "test_list": []}\n', ":1: 'test_list' must be a non-empty array"),
    "unknown tests": (b'{"id": 1, "prompt": "t", "tests": {"x": 1}}\n', ":1: 'tests' holds ['x']"),
    "error in a test": (
        b'{"task_id": 1, "text": "t", "test_list": ["assert f() == 1", "assert f( == 1"]}\n',
        ":1: test_list, number 2 is not Python (",
    ),
    "return outside of a function": (
        b'{"task_id": 1, "text": "t", "test_list": ["return f()"]}\n',
        ":1: test_list, number 1 is not Python ('return' outside function",
    ),
    "error in setup": (
        b'{"task_id": 1, "text": "t", "test_list": ["assert f()"], "test_setup_code": "import"}\n',
        ":1: test_setup_code is not Python (",
    ),
    "setup is no text": (
        b'{"id": 1, "prompt": "t", "tests": {"test_list": ["assert f()"], "test_setup_code": ["import re"]}}\n',
        ":1: tests: 'test_setup_code' must be text, not an array",
    ),
    "test without check": (
        b'{"task_id": "1", "prompt": "p", "entry_point": "f", "test": "assert f()"}\n',
        ":1: 'test' defines no check",
    ),
    "error in check": (
        b'{"task_id": "1", "prompt": "p", "entry_point": "f", "test": "def check(f): assert f("}\n',
        ":1: test is not Python (",
    ),
    "prompt that cannot be completed": (
        b'{"task_id": "1", "prompt": "def f(:", "entry_point": "f", "test": "def check(f): pass"}\n',
        ":1: prompt is not Python (",
    ),
    "entry point is no name": (
        b'{"task_id": "1", "prompt": "p", "entry_point": "f g", "test": "def check(f): pass"}\n',
        ":1: 'entry_point' 'f g' is no name of a function",
    ),
    "entry point is a keyword": (
        b'{"id": 1, "prompt": "t", "tests": {"entry_point": "def", "test": "def check(f): pass"}}\n',
        ":1: tests: 'entry_point' 'def' is no name of a function",
    ),
    "null byte in a test": (
        b'{"id": 1, "prompt": "t", "tests": {"test_list": ["assert f() #\\u0000"]}}\n',
        ":1: tests: test_list, number 1 is not Python (source code",
    ),
    "fn_name is no name": (
        b'{"question": "q", "input_output": {"fn_name": "a-b", "inputs": [[1]], "outputs": [1]}}\n',
        ":1: input_output: 'fn_name' 'a-b' is no name of a function",
    ),
    "object as standard input": (
        b'{"question": "q", "input_output": {"inputs": [{"a": 1}], "outputs": ["1"]}}\n',
        ":1: input_output: an object is no standard input",
    ),
    "no tests at all": (b'{"question": "q", "input_output": ""}\n', ": holds no problems"),
    "choices of no known format": (
        b'{"question": "q", "choices": {"text": ["a"]}, "answer": "A"}\n',
        ":1: 'choices' must be a non-empty array of text",
    ),
    "answer that is no choice": (
        b'{"question": "q", "choices": ["a", "b"], "answer": 2}\n',
        ":1: 'answer' must be the number or letter of one of 2 choices",
    ),
    "context of no known format": (
        b'{"question": "q", "context": "c", "answer": "A"}\n',
        ":1: field 'context' belongs to the question",
    ),
    "options beside a problem": (
        b'{"problem": "q", "options": ["a", "b"], "answer": "A"}\n',
        ":1: field 'options' belongs to the question",
    ),
    "unequal tests": (
        b'{"question": "q", "input_output": {"inputs": ["1"], "outputs": []}}\n',
        "1 inputs and 0 outputs",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file(case, tmp_path):
    content, message = BROKEN[case]
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_problems(str(path))
    assert str(error.value).startswith(str(path)) and message in str(error.value)


def test_huge_line(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "p.jsonl"
    path.write_bytes(GOOD + b'{"id": "b", "prompt": "' + b"x" * 2000 + b'", "answer": "1"}\n')
    with pytest.raises(InputError, match=r"p\.jsonl:2: line longer than 1000 bytes"):
        load_problems(str(path))


def test_broken_containers(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(GOOD * 100)[:-20])
    (tmp_path / "b.jsonl.gz").write_bytes(b"not gzip")
    (tmp_path / "c.json").write_text('{"id": 1}')
    for name in ("a.jsonl.gz", "b.jsonl.gz", "c.json"):
        with pytest.raises(InputError, match=name):
            load_problems(str(tmp_path / name))


def test_numbers_of_more_digits_than_python_writes(tmp_path):
    digits = "9" * 5000
    (tmp_path / "p.jsonl").write_text(f'{{"id": {digits}, "prompt": "Q", "answer": -{digits}}}\n')
    (problem,) = load_problems(tmp_path / "p.jsonl")
    assert (problem.id, problem.answer) == (digits, f"-{digits}")


def test_unknown_source():
    for source in ("no/such/file.jsonl", "./nothing", "nosuchbenchmark", "a/b.jsonl"):
        with pytest.raises(InputError, match="no such file, and not a benchmark name"):
            load_problems(source)
    with pytest.raises(InputError, match="limit 0"):
        load_problems("gsm8k", limit=0)


def test_hub(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, configuration, split):
        asked.append((name, configuration, split))
        if name == "x/offline":
            raise ConnectionError("no route\nto host")
        return [{"question": "q", "answer": "#### 3"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_problems("GSM8K")[0].answer == "3"
    load_problems("x/y")
    load_problems("x/y:train")
    load_problems("x/y:main:train")
    assert asked == [
        ("openai/gsm8k", "main", "test"),
        ("x/y", None, "test"),
        ("x/y", None, "train"),
        ("x/y", "main", "train"),
    ]
    with pytest.raises(InputError, match=r"x/offline \(split test\): cannot be loaded from the hub: no route"):
        load_problems("x/offline")


def test_livecodebench_pickle_cannot_run_code(tmp_path):
    evil = base64.b64encode(zlib.compress(b"cos\nsystem\n(S'true'\ntR.")).decode()
    row = FORMATS["livecodebench"][0] | {"private_test_cases": evil}
    with pytest.raises(InputError, match=r"names os\.system"):
        load_problems(write(tmp_path / "p.jsonl", row))


CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": None}}}]
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "tool_calls": CALL},
    {"role": "tool", "name": "add", "content": "2"},
    {"role": "user", "content": [{"type": "text", "text": "Is it "}, {"type": "text", "text": "two?"}]},
]


def test_prompts_as_messages(tmp_path):
    row = {"prompt": MESSAGES, "answer": "yes", "tools": [{"type": "function"}]}
    (problem,) = from_file = load_problems(write(tmp_path / "p.jsonl", row))
    assert problem.messages == MESSAGES and problem.prompt == "Is it two?" and problem.kind == "math"
    assert problem.extra == {"tools": [{"type": "function"}]}
    assert load_problems([row]) == from_file
    code = {"prompt": MESSAGES[:2], "tests": {"test_list": ["assert f()"]}}
    assert load_problems([code])[0].kind == "code" and load_problems([{"prompt": MESSAGES[:2]}])[0].kind == "open"
    other = [MESSAGES[0] | {"content": "Be long."}, *MESSAGES[1:]]
    digests = {content_digest(load_problems([row | {"prompt": prompt}])) for prompt in (MESSAGES, other, "Is it two?")}
    assert len(digests) == 3


def test_messages_of_a_dataset_have_no_fields_of_others():
    from datasets import Dataset

    # Arrow gives every message every field: what was not there is None.
    table = Dataset.from_list([{"prompt": MESSAGES[1:2], "answer": "2"}, {"prompt": MESSAGES[:2], "answer": "2"}])
    given = table.add_column("tools", [None, None])
    assert [problem.messages for problem in load_problems(given)] == [MESSAGES[1:2], MESSAGES[:2]]
    named = Dataset.from_list([{"prompt": [MESSAGES[3], MESSAGES[1]], "answer": "2"}])
    assert load_problems(named)[0].messages == [MESSAGES[3], MESSAGES[1]]
