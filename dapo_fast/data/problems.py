"""Problems to solve: each published benchmark format becomes a ``Problem``, and a ``Problem`` becomes prompt tokens."""

from __future__ import annotations

import base64
import gzip
import io
import json
import pickle
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_fast.errors import InputError, blaming
from dapo_fast.rewards.extract import last_boxed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_LINE_BYTES = 64 * 2**20  # the longest published line, a LiveCodeBench problem with its tests, is below this

Row = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        id: Unique in its source.
        prompt: The bare question; ``format_prompt`` puts it into a template.
        answer: The reference answer of a maths problem, or of a built-in task.
        tests: What decides a code problem (see ``dapo_fast.rewards.code.verify``).
        kind: "math", "code" or the name of a built-in task: names the verifier.
    """

    id: str
    prompt: str
    answer: str | None = None
    tests: dict[str, Any] | None = None
    kind: str = "math"


# Benchmarks by name -------------------------------------------------------------------------------------------------

BENCHMARKS: dict[str, tuple[str, str | None, str]] = {  # name: hub id, configuration, split
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "gsm8k-train": ("openai/gsm8k", "main", "train"),
    "math": ("DigitalLearningGmbH/MATH-lighteval", None, "test"),
    "math-train": ("DigitalLearningGmbH/MATH-lighteval", None, "train"),
    "math500": ("HuggingFaceH4/MATH-500", None, "test"),
    "minerva_math": ("math-ai/minervamath", None, "test"),
    "olympiadbench": ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"),
    "college_math": ("di-zhang-fdu/College_Math_Test", None, "test"),
    "aime24": ("HuggingFaceH4/aime_2024", None, "train"),
    "aime25": ("math-ai/aime25", None, "test"),
    "amc23": ("math-ai/amc23", None, "test"),
    "svamp": ("ChilleD/SVAMP", None, "test"),
    "humaneval": ("openai/openai_humaneval", None, "test"),
    "mbpp": ("google-research-datasets/mbpp", "full", "test"),
}


def load_problems(source: str, limit: int | None = None) -> list[Problem]:
    """Read problems from a file, a benchmark name or a Hugging Face dataset id.

    Args:
        source: A ``.jsonl``, ``.jsonl.gz`` or ``.json`` file in the format its benchmark is published in, or in our
            own (``{"id", "prompt", "answer"}`` or ``{"id", "prompt", "tests"}``); a directory of one-problem ``.json``
            files (how MATH is published); a name in ``BENCHMARKS``; or ``org/name``, ``org/name:split`` or
            ``org/name:configuration:split`` on the Hugging Face hub (split "test" unless named).
        limit: Keep the first ``limit`` problems. The whole source is checked all the same.

    Raises:
        InputError: one error that names the file and the line.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: must be at least 1")
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    published: _Format | None = None
    for where, number, row in _rows(source):
        published = published or _recognise(row, where)
        problem = _convert(published, row, where, number)
        if problem.id in seen:
            raise InputError(f"{where}: duplicate id {problem.id!r}, first used at {seen[problem.id]}")
        seen[problem.id] = where
        problems.append(problem)
    if not problems:
        raise InputError(f"{source}: holds no problems")
    return problems[:limit]


# Sources: each yields (where, number, row) -------------------------------------------------------------------------


def _rows(source: str) -> Iterator[tuple[str, int, Row]]:
    path = Path(source)
    if path.is_dir():
        return _directory_rows(path)
    if path.exists():
        if not path.is_file():
            raise InputError(
                f"{source}: not a regular file; it is read more than once, which a pipe or device cannot be"
            )
        return _array_rows(path) if path.suffix == ".json" else _line_rows(path)
    if source.lower() in BENCHMARKS:
        return _hub_rows(*BENCHMARKS[source.lower()])
    dataset, _, rest = source.partition(":")
    if (
        dataset.count("/") == 1
        and not source.startswith((".", "/", "~"))
        and not path.suffix.startswith((".js", ".gz"))
    ):
        configuration, _, split = rest.rpartition(":")
        return _hub_rows(dataset, configuration or None, split or "test")
    raise InputError(f"{source}: no such file, and not a benchmark name ({', '.join(sorted(BENCHMARKS))})")


def _line_rows(path: Path) -> Iterator[tuple[str, int, Row]]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{path}:{number}"
                if len(line) > MAX_LINE_BYTES:
                    raise InputError(f"{where}: line longer than {MAX_LINE_BYTES} bytes")
                if line.strip():
                    yield where, number, _object(_json(line, where), where)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _array_rows(path: Path) -> Iterator[tuple[str, int, Row]]:
    value = _json(_read(path), str(path))
    if isinstance(value, dict):
        raise InputError(f"{path}: holds one object; a .json file is an array of problems, a .jsonl file one on a line")
    if not isinstance(value, list):
        raise InputError(f"{path}: holds {_kind(value)}, not an array of problems")
    for number, row in enumerate(value, 1):
        where = f"{path}: item {number}"
        yield where, number, _object(row, where)


def _directory_rows(path: Path) -> Iterator[tuple[str, int, Row]]:
    for number, file in enumerate(sorted(path.rglob("*.json")), 1):
        row = _object(_json(_read(file), str(file)), str(file))
        yield str(file), number, {"id": str(file.relative_to(path).with_suffix(""))} | row


def _hub_rows(dataset: str, configuration: str | None, split: str) -> Iterator[tuple[str, int, Row]]:
    from datasets import load_dataset

    try:
        table = load_dataset(dataset, configuration, split=split)
    except Exception as error:
        # datasets raises a dozen unrelated types: unknown id, no such split, no network, broken file.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{dataset} (split {split}): cannot be loaded from the hub: {reason}") from error
    for number, row in enumerate(table, 1):
        yield f"{dataset}: row {number}", number, dict(row)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: invalid UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise InputError(f"{where}: JSON nested too deeply") from error
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error})") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{where}: a problem is a JSON object, this is {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


# Published formats ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Format:
    name: str
    needs: tuple[str, ...]  # the fields that tell the format
    convert: Callable[[Row, str], tuple[str, str | None, dict | None]]  # row, where → prompt, answer, tests
    id_field: str | None = None  # None: the number of the line is the id


def _recognise(row: Row, where: str) -> _Format:
    for candidate in _FORMATS:
        if all(field in row for field in candidate.needs):
            gsm8k = candidate.name == "GSM8K"
            if not gsm8k or (isinstance(row["answer"], str) and "####" in row["answer"]):
                return candidate
    known = "; ".join(f"{f.name}: {', '.join(f.needs)}" for f in _FORMATS)
    raise InputError(f"{where}: fields {sorted(row)} are those of no known format ({known})")


def _convert(published: _Format, row: Row, where: str, number: int) -> Problem:
    for field in published.needs:
        if field not in row:
            raise InputError(f"{where}: field {field!r} is missing (format {published.name})")
    prompt, answer, tests = published.convert(row, where)
    identity = _id(row, published.id_field, where) if published.id_field in row else str(number)
    if not prompt.strip():
        raise InputError(f"{where}: the question is empty")
    if answer is not None and not answer.strip():
        raise InputError(f"{where}: the answer is empty")
    for text in (identity, prompt, answer or ""):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where}: a lone surrogate, \\u{ord(text[error.start]):04x}, is not text") from error
    return Problem(identity, prompt, answer, tests, "math" if tests is None else "code")


def _id(row: Row, field: str, where: str) -> str:
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError(f"{where}: {field!r} must be text or a whole number, not {_kind(value)}")
    return str(value)


def _text(row: Row, field: str, where: str) -> str:
    if not isinstance(row.get(field), str):
        raise InputError(f"{where}: {field!r} must be text, not {_kind(row.get(field))}")
    return row[field]


def _answer(row: Row, field: str, where: str) -> str:
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{where}: {field!r} must be text or a number, not {_kind(value)}")
    # AMC and SVAMP publish whole numbers as 27.0.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _texts(row: Row, field: str, where: str) -> list[str]:
    value = row[field]
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise InputError(f"{where}: {field!r} must be a non-empty array of text")
    return value


def _own_answer(row: Row, where: str) -> tuple[str, str | None, dict | None]:
    return _text(row, "prompt", where), _answer(row, "answer", where), None


def _own_tests(row: Row, where: str) -> tuple[str, str | None, dict | None]:
    tests = row["tests"]
    if not isinstance(tests, dict):
        raise InputError(f"{where}: 'tests' must be an object, not {_kind(tests)}")
    if "test_list" in tests:
        _texts(tests, "test_list", f"{where}: tests")
    elif "entry_point" in tests and "test" in tests:
        _text(tests, "entry_point", f"{where}: tests")
        _text(tests, "test", f"{where}: tests")
    elif "inputs" in tests and "outputs" in tests:
        tests = _check_io(tests, f"{where}: tests")
    else:
        raise InputError(
            f"{where}: 'tests' holds {sorted(tests)}; it needs entry_point and test, test_list, or inputs and outputs"
        )
    return _text(row, "prompt", where), None, tests


def _gsm8k(row: Row, where: str) -> tuple[str, str | None, dict | None]:
    _, mark, answer = _text(row, "answer", where).rpartition("####")
    if not mark:
        raise InputError(f"{where}: 'answer' has no '####' (format GSM8K)")
    return _text(row, "question", where), answer.strip().replace(",", ""), None


def _math(row: Row, where: str) -> tuple[str, str | None, dict | None]:
    answer = last_boxed(_text(row, "solution", where))
    if answer is None:
        raise InputError(f"{where}: 'solution' has no complete \\boxed{{}} (format MATH)")
    return _text(row, "problem", where), answer, None


def _problem_answer(row: Row, where: str) -> tuple[str, str | None, dict | None]:
    return _text(row, "problem", where), _answer(row, "answer", where), None


def _capital_problem_answer(row: Row, where: str) -> tuple[str, str | None, dict | None]:
    return _text(row, "Problem", where), _answer(row, "Answer", where), None


def _question_answer(row: Row, where: str) -> tuple[str, str | None, dict | None]:
    return _text(row, "question", where), _answer(row, "answer", where), None


def _olympiadbench(row: Row, where: str) -> tuple[str, str | None, dict | None]:
    question = _text(row, "question", where)
    if row.get("context"):
        question = f"{_text(row, 'context', where)}\n{question}"
    return question, ", ".join(_texts(row, "final_answer", where)), None


def _svamp(row: Row, where: str) -> tuple[str, str | None, dict | None]:
    body = _text(row, "Body", where).strip()
    separator = " " if body.endswith((".", "?", "!", ",")) else ". "
    return body + separator + _text(row, "Question", where).strip(), _answer(row, "Answer", where), None


def _humaneval(row: Row, where: str) -> tuple[str, str | None, dict | None]:
    tests = {field: _text(row, field, where) for field in ("prompt", "entry_point", "test")}
    return tests["prompt"], None, tests


def _mbpp(row: Row, where: str) -> tuple[str, str | None, dict | None]:
    question = _text(row, "text" if "text" in row else "prompt", where)
    tests: dict[str, Any] = {"test_list": _texts(row, "test_list", where)}
    setup = [_text(row, "test_setup_code", where)] if row.get("test_setup_code") else []
    setup += _texts(row, "test_imports", where) if row.get("test_imports") else []
    tests["test_setup_code"] = "\n".join(setup)
    # The tests belong to the question: nothing else tells the function's name (MBPP, section 3).
    shown = "\n".join(tests["test_list"])
    return f"{question}\nYour code should pass these tests:\n{shown}", None, tests


def _input_output(row: Row, where: str) -> tuple[str, str | None, dict | None]:
    tests = row["input_output"]
    if isinstance(tests, str):
        tests = _json(tests.encode("utf-8", "surrogatepass"), f"{where}: input_output")
    tests = _check_io(_object(tests, f"{where}: input_output"), f"{where}: input_output")
    return _with_starter(_text(row, "question", where), row), None, tests


def _livecodebench(row: Row, where: str) -> tuple[str, str | None, dict | None]:
    cases = []
    for field in ("public_test_cases", "private_test_cases"):
        if row.get(field):
            cases += _livecodebench_cases(_text(row, field, where), f"{where}: {field}")
    tests: dict[str, Any] = {"inputs": [c["input"] for c in cases], "outputs": [c["output"] for c in cases]}
    if cases and cases[0].get("testtype") == "functional":
        metadata = _object(_json(_text(row, "metadata", where).encode(), f"{where}: metadata"), f"{where}: metadata")
        tests["fn_name"] = _text(metadata, "func_name", f"{where}: metadata")
        lines = [[line for line in str(text).splitlines() if line.strip()] for text in tests["inputs"]]
        tests["inputs"] = [[_json(line.encode(), f"{where}: input") for line in case] for case in lines]
        tests["outputs"] = [_json(str(text).encode(), f"{where}: output") for text in tests["outputs"]]
    return _with_starter(_text(row, "question_content", where), row), None, _check_io(tests, where)


class _TextUnpickler(pickle.Unpickler):
    """LiveCodeBench pickles a string; anything that names a class is not one."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"names {module}.{name}")


def _livecodebench_cases(text: str, where: str) -> list[Row]:
    if not text.lstrip().startswith("["):
        try:
            text = _TextUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load()
        except (ValueError, zlib.error, pickle.UnpicklingError, EOFError) as error:
            raise InputError(f"{where}: neither JSON nor LiveCodeBench's compressed form ({error})") from error
    cases = _json(str(text).encode(), where)
    if not isinstance(cases, list) or not all(isinstance(c, dict) and {"input", "output"} <= set(c) for c in cases):
        raise InputError(f"{where}: must be an array of objects with input and output")
    return cases


def _check_io(tests: Row, where: str) -> dict[str, Any]:
    for field in ("inputs", "outputs"):
        if not isinstance(tests.get(field), list):
            raise InputError(f"{where}: {field!r} must be an array")
    if not tests["inputs"] or len(tests["inputs"]) != len(tests["outputs"]):
        raise InputError(f"{where}: {len(tests['inputs'])} inputs and {len(tests['outputs'])} outputs")
    if tests.get("fn_name") is not None:
        _text(tests, "fn_name", where)
    return {key: tests[key] for key in ("inputs", "outputs", "fn_name") if tests.get(key) is not None}


def _with_starter(question: str, row: Row) -> str:
    starter = row.get("starter_code")
    return f"{question}\n\n{starter}" if isinstance(starter, str) and starter.strip() else question


_FORMATS = (
    _Format("HumanEval", ("task_id", "prompt", "entry_point", "test"), _humaneval, "task_id"),
    _Format("MBPP", ("task_id", "text", "test_list"), _mbpp, "task_id"),
    _Format("sanitized MBPP", ("task_id", "prompt", "test_list"), _mbpp, "task_id"),
    _Format("dapo-fast, maths", ("id", "prompt", "answer"), _own_answer, "id"),
    _Format("dapo-fast, code", ("id", "prompt", "tests"), _own_tests, "id"),
    _Format("APPS and TACO", ("question", "input_output"), _input_output),
    _Format("LiveCodeBench", ("question_content", "public_test_cases"), _livecodebench, "question_id"),
    _Format("OlympiadBench", ("question", "final_answer"), _olympiadbench, "id"),
    _Format("GSM8K", ("question", "answer"), _gsm8k),
    _Format("College Math, AMC", ("question", "answer"), _question_answer),
    _Format("AIME, MATH-500", ("problem", "answer"), _problem_answer, "id"),
    _Format("MATH, Minerva Math", ("problem", "solution"), _math, "id"),
    _Format("AIME 2024", ("Problem", "Answer"), _capital_problem_answer, "ID"),
    _Format("SVAMP", ("Body", "Question", "Answer"), _svamp, "ID"),
)


# Prompts ----------------------------------------------------------------------------------------------------------

_INSTRUCTIONS = {
    "math": "Please reason step by step, and put your final answer within \\boxed{}.",
    "code": "Please write a complete Python program in one ```python code block.",
}
_PLAIN = {"math": "Problem:\n{prompt}\n\nSolution:\n"}


def format_prompt(problem: Problem, tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """Token ids of ``problem`` in ``template``.

    Args:
        template: "chat": the tokenizer's chat template, with the instruction its kind of problem needs unless the
            template gives one itself; "plain": a heading and the question, for base models (code: the question alone,
            to be completed); "none": the prompt itself, without special tokens; or a text with ``{prompt}``.

    Raises:
        InputError: no such template, or "chat" and a tokenizer without one.
    """
    if template == "none":
        return list(tokenizer(problem.prompt, add_special_tokens=False)["input_ids"])
    if template == "chat":
        return list(tokenizer(_chat(problem, tokenizer), add_special_tokens=False)["input_ids"])
    if template == "plain":
        template = _PLAIN.get(problem.kind, "{prompt}")
    if "{prompt}" not in template:
        raise InputError(f"template {template!r}: is none of chat, plain, none, and has no {{prompt}}")
    return list(tokenizer(template.replace("{prompt}", problem.prompt))["input_ids"])


def _chat(problem: Problem, tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise InputError("template chat: this model's tokenizer has no chat template; use plain, none or a text")

    def render(content: str) -> str:
        message = [{"role": "user", "content": content}]
        with blaming(f"template chat: the chat template of {tokenizer.name_or_path}", "cannot be rendered"):
            return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    instruction = _INSTRUCTIONS.get(problem.kind)
    # Qwen2.5-Math's own system prompt asks for a box already.
    if instruction is None or (problem.kind == "math" and "\\boxed" in render("")):
        return render(problem.prompt)
    return render(f"{problem.prompt}\n{instruction}")
