"""How often the code verifier is wrong on published reference solutions.

Run it as ``python -m benchmarks.programs FILE... [--sample N]`` with files of HumanEval or MBPP. For each file:

- ``refused``: references that do not pass their tests;
- ``accepted``: references whose functions were emptied (``pass``, or ``return None``) that pass.
"""

import argparse
import ast
import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dapo_fast.data.problems import Problem, load_problems
from dapo_fast.rewards import code
from dapo_fast.rewards.cores import usable_cores

EMPTY = {"pass": ast.Pass(), "return None": ast.Return(ast.Constant(None))}


def solution_of(row: dict) -> str:
    """The reference program of a row of HumanEval or MBPP."""
    return row["code"] if "code" in row else row["prompt"] + row["canonical_solution"]


def emptied(program: str, statement: ast.stmt) -> str:
    """``program`` with ``statement`` for the body of every function."""
    tree = ast.parse(program)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = [statement]
    return ast.unparse(ast.fix_missing_locations(tree))


def references(path: Path) -> list[tuple[Problem, str]]:
    """The problems of a file with their reference programs."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    return list(zip(load_problems(str(path)), map(solution_of, rows), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--sample", type=int, help="problems of a file, evenly spread; default: all")
    arguments = parser.parse_args()
    for path in arguments.files:
        pairs = references(path)
        pairs = pairs[:: max(1, len(pairs) // arguments.sample)] if arguments.sample else pairs
        print(path.name, flush=True)
        _report("reference", "refused", pairs, wanted=True)
        for label, statement in EMPTY.items():
            gutted = [(problem, emptied(program, statement)) for problem, program in pairs]
            _report(label, "accepted", gutted, wanted=False)


def _report(label: str, what: str, pairs: list[tuple[Problem, str]], wanted: bool) -> None:
    with ThreadPoolExecutor(usable_cores()) as pool:
        verdicts = pool.map(lambda pair: code.verify(pair[1], pair[0].tests), pairs)
        bad = [problem.id for (problem, _), verdict in zip(pairs, verdicts, strict=True) if verdict != wanted]
    print(f"  {label:12} {what} {len(bad):4} of {len(pairs):4}  {' '.join(bad)}", flush=True)


if __name__ == "__main__":
    main()
