"""Published formats: what tells each of them, and how its rows become prompt, answer and tests."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from dapo_fast.data.code_formats import Converted, humaneval, input_output, livecodebench, mbpp, own_tests
from dapo_fast.data.messages import prompt_of
from dapo_fast.data.rows import Row, answer, text, texts
from dapo_fast.errors import InputError
from dapo_fast.rewards.extract import last_boxed

# What a row of question and answer may hold beside them that the question needs.
_PART_OF_QUESTION = ("choices", "options", "body", "Body", "context", "passage", "premise", "table", "image")


@dataclass(frozen=True)
class Format:
    """One published format."""

    name: str
    needs: tuple[str, ...]  # the fields that tell the format
    convert: Callable[[Row, str], Converted | None]  # row, where → prompt, answer, tests; None: it has no tests
    id_field: str | None = None  # None, or not in a row: the number of the line is the id
    ours: bool = False  # further fields belong to the problem, for a reward to read


def recognise(row: Row, where: str) -> Format:
    """The format of a file by its first row; InputError if it is none of them."""
    for candidate in FORMATS:
        if all(field in row for field in candidate.needs):
            gsm8k = candidate.name == "GSM8K"
            if not gsm8k or (isinstance(row["answer"], str) and "####" in row["answer"]):
                return candidate
    known = "; ".join(f"{f.name}: {', '.join(f.needs)}" for f in FORMATS)
    raise InputError(f"{where}: fields {sorted(row)} are those of no known format ({known})")


def _own_answer(row: Row, where: str) -> Converted:
    return prompt_of(row, where), answer(row, "answer", where), None


def _own_prompt(row: Row, where: str) -> Converted:
    return prompt_of(row, where), None, None


def _gsm8k(row: Row, where: str) -> Converted:
    _, mark, last = text(row, "answer", where).rpartition("####")
    if not mark:
        raise InputError(f"{where}: 'answer' has no '####' (format GSM8K)")
    return text(row, "question", where), last.strip().replace(",", ""), None


def _math(row: Row, where: str) -> Converted:
    boxed = last_boxed(text(row, "solution", where))
    if boxed is None:
        raise InputError(f"{where}: 'solution' has no complete \\boxed{{}} (format MATH)")
    return text(row, "problem", where), boxed, None


def _problem_answer(row: Row, where: str) -> Converted:
    _check_whole(row, where)
    return text(row, "problem", where), answer(row, "answer", where), None


def _capital_problem_answer(row: Row, where: str) -> Converted:
    return text(row, "Problem", where), answer(row, "Answer", where), None


def _question_answer(row: Row, where: str) -> Converted:
    _check_whole(row, where)
    return text(row, "question", where), answer(row, "answer", where), None


def _check_whole(row: Row, where: str) -> None:
    for field in _PART_OF_QUESTION:
        if row.get(field):
            raise InputError(f"{where}: field {field!r} belongs to the question, and no known format has it")


def _choices_in_columns(row: Row, where: str) -> Converted:
    letters = [letter for letter in "ABCDEFGHIJ" if letter in row]
    return _mmlu(row | {"choices": [answer(row, letter, where) for letter in letters]}, where)


def _mmlu(row: Row, where: str) -> Converted:
    choices, right = texts(row, "choices", where), row["answer"]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]
    if isinstance(right, str) and right in tuple(letters):
        right = letters.index(right)
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(choices):
        raise InputError(f"{where}: 'answer' must be the number or letter of one of {len(choices)} choices")
    lines = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
    return "\n".join([text(row, "question", where), *lines]), letters[right], None


def _aqua(row: Row, where: str) -> Converted:
    options = texts(row, "options", where)  # "A)21"
    right = text(row, "correct", where)
    if right not in {option[:1] for option in options}:
        raise InputError(f"{where}: 'correct' {right!r} is the letter of no option")
    return "\n".join([text(row, "question", where), *options]), right, None


def _asdiv(row: Row, where: str) -> Converted:
    # "9 (apples)": the unit is no part of the number.
    number = re.sub(r"\s*\([^()]*\)", "", answer(row, "answer", where))
    return _sentences(text(row, "body", where), text(row, "question", where)), number, None


def _svamp(row: Row, where: str) -> Converted:
    return _sentences(text(row, "Body", where), text(row, "Question", where)), answer(row, "Answer", where), None


def _sentences(body: str, question: str) -> str:
    body = body.strip()
    separator = " " if body.endswith((".", "?", "!", ",")) else ". "
    return body + separator + question.strip() if body else question.strip()


def _olympiadbench(row: Row, where: str) -> Converted:
    question = text(row, "question", where)
    if row.get("context"):
        question = f"{text(row, 'context', where)}\n{question}"
    return question, ", ".join(texts(row, "final_answer", where)), None


FORMATS = (
    Format("HumanEval", ("task_id", "prompt", "entry_point", "test"), humaneval, "task_id"),
    Format("MBPP", ("task_id", "text", "test_list"), mbpp, "task_id"),
    Format("sanitized MBPP", ("task_id", "prompt", "test_list"), mbpp, "task_id"),
    Format("dapo-fast, maths", ("prompt", "answer"), _own_answer, "id", ours=True),
    Format("dapo-fast, code", ("prompt", "tests"), own_tests, "id", ours=True),
    Format("APPS and TACO", ("question", "input_output"), input_output),
    Format("LiveCodeBench", ("question_content", "public_test_cases"), livecodebench, "question_id"),
    Format("OlympiadBench", ("question", "final_answer"), _olympiadbench, "id"),
    Format("MMLU", ("question", "choices", "answer"), _mmlu),
    Format("C-Eval, MMLU by columns", ("question", "A", "B", "answer"), _choices_in_columns),
    Format("AQuA", ("question", "options", "correct"), _aqua),
    Format("ASDiv", ("body", "question", "answer"), _asdiv),
    Format("GSM8K", ("question", "answer"), _gsm8k),
    Format("College Math, AMC", ("question", "answer"), _question_answer),
    Format("AIME, MATH-500", ("problem", "answer"), _problem_answer, "id"),
    Format("MATH, Minerva Math", ("problem", "solution"), _math, "id"),
    Format("AIME 2024", ("Problem", "Answer"), _capital_problem_answer, "ID"),
    Format("SVAMP", ("Body", "Question", "Answer"), _svamp, "ID"),
    Format("dapo-fast, for a reward of one's own", ("prompt",), _own_prompt, "id", ours=True),
)
