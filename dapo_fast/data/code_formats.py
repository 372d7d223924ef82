"""Code problems as published: HumanEval, MBPP, APPS, TACO, LiveCodeBench and our own form.

Each function is given a row and where it stands, and returns the prompt, no answer, and the tests in a form of
``dapo_fast.rewards.code.verify``. Tests that no program can pass are refused here, not found out in training.
"""

from __future__ import annotations

import ast
import base64
import io
import keyword
import pickle
import warnings
import zlib
from typing import Any

from dapo_fast.data.messages import Messages, prompt_of
from dapo_fast.data.rows import Row, as_object, kind, read_json, text, texts
from dapo_fast.errors import InputError

Converted = tuple[str | Messages, str | None, dict[str, Any] | None]


def own_tests(row: Row, where: str) -> Converted:
    """{"id", "prompt", "tests"}."""
    tests = row["tests"]
    if not isinstance(tests, dict):
        raise InputError(f"{where}: 'tests' must be an object, not {kind(tests)}")
    inside = f"{where}: tests"
    if "test_list" in tests:
        tests = _check_asserts(tests, inside)
    elif "entry_point" in tests and "test" in tests:
        tests = _check_function(tests, inside)
    elif "inputs" in tests and "outputs" in tests:
        tests = _check_io(tests, inside)
    else:
        raise InputError(
            f"{where}: 'tests' holds {sorted(tests)}; it needs entry_point and test, test_list, or inputs and outputs"
        )
    return prompt_of(row, where), None, tests


def humaneval(row: Row, where: str) -> Converted:
    """OpenAI's HumanEval: a function to complete, and ``check(candidate)``."""
    text(row, "prompt", where)
    return row["prompt"], None, _check_function(row, where)


def mbpp(row: Row, where: str) -> Converted:
    """Google's MBPP and its sanitized form: assert statements."""
    question = text(row, "text" if "text" in row else "prompt", where)
    setup = [text(row, "test_setup_code", where)] if row.get("test_setup_code") else []
    setup += texts(row, "test_imports", where) if row.get("test_imports") else []
    tests = _check_asserts({"test_list": row["test_list"], "test_setup_code": "\n".join(setup)}, where)
    # The tests belong to the question: nothing else tells the function's name (MBPP, section 3).
    shown = "\n".join(tests["test_list"])
    return f"{question}\nYour code should pass these tests:\n{shown}", None, tests


def input_output(row: Row, where: str) -> Converted | None:
    """APPS and TACO: ``input_output`` is JSON in a string, of some problems an empty one.

    With ``fn_name``, arguments and results; else what is read and printed.
    """
    tests, inside = row["input_output"], f"{where}: input_output"
    if isinstance(tests, str):
        tests = read_json(tests.encode("utf-8", "surrogatepass"), inside) if tests.strip() else {}
    tests = as_object(tests, inside, "the field")
    if not tests.get("inputs") and not tests.get("outputs"):
        return None
    tests = _check_io(tests, inside)
    return _with_starter(text(row, "question", where), row), None, tests


def livecodebench(row: Row, where: str) -> Converted:
    """LiveCodeBench: public and private cases, the latter compressed; functional ones are arguments, one a line."""
    cases = []
    for field in ("public_test_cases", "private_test_cases"):
        if row.get(field):
            cases += _livecodebench_cases(text(row, field, where), f"{where}: {field}")
    tests: dict[str, Any] = {"inputs": [c["input"] for c in cases], "outputs": [c["output"] for c in cases]}
    kinds = {case.get("testtype", "stdin") for case in cases}
    if len(kinds) > 1:
        raise InputError(f"{where}: test cases of several types, {', '.join(sorted(map(str, kinds)))}")
    if kinds == {"functional"}:
        inside = f"{where}: metadata"
        metadata = as_object(read_json(text(row, "metadata", where).encode(), inside), inside, "the field")
        tests["fn_name"] = text(metadata, "func_name", inside)
        # Of newlines alone: splitlines would cut at a dozen characters that JSON's strings may hold.
        lines = [[line for line in str(given).split("\n") if line.strip()] for given in tests["inputs"]]
        tests["inputs"] = [[read_json(line.encode(), f"{where}: input") for line in case] for case in lines]
        tests["outputs"] = [read_json(str(wanted).encode(), f"{where}: output") for wanted in tests["outputs"]]
    return _with_starter(text(row, "question_content", where), row), None, _check_io(tests, where)


class _TextUnpickler(pickle.Unpickler):
    """LiveCodeBench pickles a string; anything that names a class is not one."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"names {module}.{name}")


def _livecodebench_cases(packed: str, where: str) -> list[Row]:
    if not packed.lstrip().startswith("["):
        try:
            packed = _TextUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load()
        except (ValueError, zlib.error, pickle.UnpicklingError, EOFError) as error:
            raise InputError(f"{where}: neither JSON nor LiveCodeBench's compressed form ({error})") from error
    cases = read_json(str(packed).encode(), where)
    if not isinstance(cases, list) or not all(isinstance(c, dict) and {"input", "output"} <= set(c) for c in cases):
        raise InputError(f"{where}: must be an array of objects with input and output")
    return cases


def _with_starter(question: str, row: Row) -> str:
    starter = row.get("starter_code")
    return f"{question}\n\n{starter}" if isinstance(starter, str) and starter.strip() else question


# Tests that can be passed -------------------------------------------------------------------------------------------


def _check_function(tests: Row, where: str) -> dict[str, Any]:
    kept = {field: text(tests, field, where) for field in ("prompt", "entry_point", "test") if field in tests}
    _check_name(kept["entry_point"], "entry_point", where)
    if "check" not in _bound(_parsed(kept["test"], "test", where)):
        raise InputError(f"{where}: 'test' defines no check")
    prompt = kept.get("prompt", "")
    if _syntax_error(prompt) is not None:
        # What is to be completed may end behind the line that opens a body.
        _parsed(f"{prompt}\n    pass\n", "prompt", where)
    return kept


def _check_asserts(tests: Row, where: str) -> dict[str, Any]:
    kept: dict[str, Any] = {"test_list": texts(tests, "test_list", where)}
    for number, line in enumerate(kept["test_list"], 1):
        _parsed(line, f"test_list, number {number}", where)
    if tests.get("test_setup_code") is not None:
        kept["test_setup_code"] = text(tests, "test_setup_code", where)
        _parsed(kept["test_setup_code"], "test_setup_code", where)
    return kept


def _check_io(tests: Row, where: str) -> dict[str, Any]:
    for field in ("inputs", "outputs"):
        if not isinstance(tests.get(field), list):
            raise InputError(f"{where}: {field!r} must be an array")
    if not tests["inputs"] or len(tests["inputs"]) != len(tests["outputs"]):
        raise InputError(f"{where}: {len(tests['inputs'])} inputs and {len(tests['outputs'])} outputs")
    kept = {field: tests[field] for field in ("inputs", "outputs")}
    if tests.get("fn_name"):
        kept["fn_name"] = text(tests, "fn_name", where)
        _check_name(kept["fn_name"], "fn_name", where)
    elif any(isinstance(value, dict) for values in kept.values() for value in values):
        raise InputError(f"{where}: an object is no standard input or output, and there is no fn_name")
    return kept


def _check_name(name: str, field: str, where: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise InputError(f"{where}: {field!r} {name!r} is no name of a function")


def _parsed(source: str, field: str, where: str) -> ast.Module:
    error = _syntax_error(source)
    if error is not None:
        raise InputError(f"{where}: {field} is not Python ({error})")
    return ast.parse(source)


def _syntax_error(source: str) -> str | None:
    """None if it compiles: a ``return`` outside of a function only parses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes, say
            compile(source, "tests", "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"{error.msg}, line {error.lineno}"
    except (ValueError, RecursionError, MemoryError) as error:
        return str(error) or type(error).__name__
    return None


def _bound(tree: ast.Module) -> set[str]:
    """Names that the module's own statements bind, wherever in them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
    return names
