"""Problems to solve: from a file or the hub, in whatever format it is published, to ``Problem``."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dapo_fast.data.formats import Format, recognise
from dapo_fast.data.messages import Messages, question, texts
from dapo_fast.data.rows import Row, as_object, identity, kind, read_json
from dapo_fast.errors import InputError, first_line

log = logging.getLogger("dapo_fast.data")

KINDS = ("math", "code", "open")  # of problems that no built-in task made
MAX_LINE_BYTES = 64 * 2**20  # the longest published line, a LiveCodeBench problem with its tests, is below this


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        id: Unique in its source.
        prompt: The bare question; ``format_prompt`` puts it into a template. Of messages, what the user said last.
        answer: The reference answer of a maths problem, or of a built-in task.
        tests: What decides a code problem (see ``dapo_fast.rewards.code.verify``).
        kind: "math", "code", "open" (a reward has to be named) or the name of a built-in task.
        extra: Further fields of its row, where that is in our own format: for a reward to read.
        messages: The prompt, where it is given as messages.
    """

    id: str
    prompt: str
    answer: str | None = None
    tests: dict[str, Any] | None = None
    kind: str = "math"
    extra: dict[str, Any] | None = None
    messages: Messages | None = None


SOLUTION = "solution"  # the field of a row, hence of ``extra``, that holds a whole right response


def gold_solution(problem: Problem) -> str | None:
    """A whole response that is right; None where none is known."""
    found = (problem.extra or {}).get(SOLUTION)
    return found if isinstance(found, str) and found else None


def content_digest(problems: Iterable[Problem]) -> str:
    """A hash of all that ``problems`` say, of 64 hexadecimal digits."""
    content = hashlib.sha256()
    for problem in problems:
        # Left out where there is none, as in names from before there were any.
        said = {key: value for key, value in asdict(problem).items() if key not in ("extra", "messages") or value}
        content.update(json.dumps(said, sort_keys=True, default=str).encode())
    return content.hexdigest()


def asked(problem: Problem) -> str:
    """All that ``problem`` asks, as text: two of the same question are one problem, whatever their ids."""
    return problem.prompt if problem.messages is None else json.dumps(problem.messages, sort_keys=True, default=str)


def refuse_common(validation: Iterable[Problem], others: Iterable[Problem], where: str) -> None:
    """InputError where a problem of ``data.validation`` is one of ``others`` too, which are in ``where``."""
    known = {asked(problem) for problem in others}
    for problem in validation:
        if asked(problem) in known:
            raise InputError(f"data.validation: problem {problem.id!r} is in {where}")


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


def load_problems(source: str | Path | Iterable[Row | Problem], limit: int | None = None) -> list[Problem]:
    """Read problems from a file, a benchmark name, a Hugging Face dataset id, or rows in memory.

    Args:
        source: Rows (a list of dicts, a ``datasets.Dataset``, whatever gives one after another), or ``Problem``s; or a
            ``.jsonl``, ``.jsonl.gz`` or ``.json`` file of them, in the format their benchmark is published in or in our
            own (``{"prompt", "answer"}`` or ``{"prompt", "tests"}``, with or without an ``"id"``; without either, for a
            reward of one's own; the prompt is a text or messages); a directory of one-problem ``.json`` files (how MATH
            is published); a name in ``BENCHMARKS``; or ``org/name``, ``org/name:split`` or
            ``org/name:configuration:split`` on the Hugging Face hub (split "test" unless named).
        limit: Keep the first ``limit`` problems. The whole source is checked all the same.

    Raises:
        InputError: one error that names the file and the line.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: must be at least 1")
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    published: Format | None = None
    without_tests: list[str] = []
    for where, number, row in _given_rows(source) if _in_memory(source) else _rows(str(source)):
        if isinstance(row, Problem):
            _add(problems, seen, row, where)
            continue
        published = published or recognise(row, where)
        problem = _problem(published, row, where, number)
        if problem is None:
            without_tests.append(where)
            continue
        _add(problems, seen, problem, where)
    if not problems:
        raise InputError(f"{'problems' if _in_memory(source) else source}: holds no problems")
    if without_tests:
        log.warning("%d problems have no tests and are left out, the first at %s", len(without_tests), without_tests[0])
    return problems[:limit]


def _add(problems: list[Problem], seen: dict[str, str], problem: Problem, where: str) -> None:
    if problem.id in seen:
        raise InputError(f"{where}: duplicate id {problem.id!r}, first used at {seen[problem.id]}")
    seen[problem.id] = where
    problems.append(problem)


# Sources: each yields (where, number, row) -------------------------------------------------------------------------


def _in_memory(source: object) -> bool:
    return not isinstance(source, str | Path)


def _given_rows(rows: Iterable[Row | Problem]) -> Iterator[tuple[str, int, Row | Problem]]:
    if isinstance(rows, Mapping):
        raise InputError(f"problems: a mapping of {', '.join(map(str, rows))}; give the rows of one of them")
    if not isinstance(rows, Iterable):
        raise InputError(f"problems: {type(rows).__name__} gives no rows")
    for number, row in enumerate(rows, 1):
        where = f"problems: row {number}"
        yield where, number, row if isinstance(row, Problem) else as_object(row, where)


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
                    yield where, number, as_object(read_json(line, where), where)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _array_rows(path: Path) -> Iterator[tuple[str, int, Row]]:
    value = read_json(_read(path), str(path))
    if isinstance(value, dict):
        raise InputError(f"{path}: holds one object; a .json file is an array of problems, a .jsonl file one on a line")
    if not isinstance(value, list):
        raise InputError(f"{path}: holds {kind(value)}, not an array of problems")
    for number, row in enumerate(value, 1):
        where = f"{path}: item {number}"
        yield where, number, as_object(row, where)


def _directory_rows(path: Path) -> Iterator[tuple[str, int, Row]]:
    for number, file in enumerate(sorted(path.rglob("*.json")), 1):
        row = as_object(read_json(_read(file), str(file)), str(file))
        yield str(file), number, {"id": str(file.relative_to(path).with_suffix(""))} | row


def _hub_rows(dataset: str, configuration: str | None, split: str) -> Iterator[tuple[str, int, Row]]:
    from datasets import load_dataset

    try:
        table = load_dataset(dataset, configuration, split=split)
    except Exception as error:
        # datasets raises a dozen unrelated types: unknown id, no such split, no network, broken file.
        raise InputError(f"{dataset} (split {split}): cannot be loaded from the hub: {first_line(error)}") from error
    for number, row in enumerate(table, 1):
        yield f"{dataset}: row {number}", number, dict(row)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _problem(published: Format, row: Row, where: str, number: int) -> Problem | None:
    """None for a problem that is published without tests."""
    for field in published.needs:
        if field not in row:
            raise InputError(f"{where}: field {field!r} is missing (format {published.name})")
    converted = published.convert(row, where)
    if converted is None:
        return None
    prompt, answer, tests = converted
    messages = None if isinstance(prompt, str) else prompt
    if messages is not None:
        prompt = question(messages)
    name = identity(row, published.id_field, where) if published.id_field in row else str(number)
    if not prompt.strip():
        raise InputError(f"{where}: the question is empty")
    if answer is not None and not answer.strip():
        raise InputError(f"{where}: the answer is empty")
    for text in (name, prompt, answer or "", *texts(messages)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where}: a lone surrogate, \\u{ord(text[error.start]):04x}, is not text") from error
    of_kind = "code" if tests is not None else "open" if answer is None else "math"
    known = {*published.needs, published.id_field}
    extra = {key: value for key, value in row.items() if key not in known} if published.ours else None
    return Problem(name, prompt, answer, tests, of_kind, extra or None, messages)
