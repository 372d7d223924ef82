"""How often the maths verifier is wrong on published gold answers.

Run it as ``python -m benchmarks.verifier FILE... [--sample N] [--cases N]``. For each file of problems:

- ``refused``: the gold answer itself, dressed as responses dress it, that is judged wrong;
- ``accepted``: a gold with one digit or one sign changed, or the next problem's gold, that is judged right.

Files whose rows hold ``responses`` with ``correct`` are labelled: the verdicts that differ are counted instead.
"""

import argparse
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dapo_fast.rewards.cores import usable_cores
from dapo_fast.rewards.extract import last_boxed
from dapo_fast.rewards.math import verify


def gold_of(row: dict) -> str | None:
    """The gold answer of a row, whichever of the usual fields holds it; None where there is none."""
    if isinstance(row.get("final_answer"), list):
        return ", ".join(row["final_answer"])
    answer = row.get("answer", row.get("Answer", row.get("target")))
    if answer is None:
        return last_boxed(row.get("solution", ""))
    return str(answer).rpartition("####")[2].strip()


def dressings(gold: str) -> dict[str, str]:
    """The gold as responses state it."""
    inline = gold if "$" in gold.replace(r"\$", "") else f"${gold}$"
    return {
        "boxed": f"So it is $\\boxed{{{gold}}}$.",
        "hashes": f"So.\n#### {gold}",
        "phrase": f"So we are done. The answer is {inline}.",
        "last line": f"So we are done.\n\n{inline}",
    }


def perturbed(gold: str) -> list[str]:
    """The gold with its last digit changed, with its first one changed, and with one sign changed."""
    found = []
    digits = [match.start() for match in re.finditer(r"\d", gold)]
    for place in dict.fromkeys(digits[-1:] + digits[:1]):
        other = str((int(gold[place]) + 1) % 10)
        found.append(gold[:place] + other + gold[place + 1 :])
    if sign := re.search(r"(?<![\\^{(_])\s*[-+]\s*(?=[\w\\])", gold):
        other = "+" if "-" in sign.group() else "-"
        found.append(gold[: sign.start()] + other + gold[sign.end() :])
    return found


def _cases(golds: list[str]) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    right, wrong = [], []
    for index, gold in enumerate(golds):
        right += [(name, gold, response) for name, response in dressings(gold).items()]
        wrong += [("perturbed", gold, f"\\boxed{{{other}}}") for other in perturbed(gold)]
        if (other := golds[(index + 1) % len(golds)]) != gold:
            wrong.append(("neighbour", gold, f"\\boxed{{{other}}}"))
    return right, wrong


def _judge(cases: list[tuple[str, str, str]]) -> list[bool]:
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(lambda case: verify(case[2], case[1]), cases))


def _report(what: str, cases: list[tuple[str, str, str]], bad: list[bool], shown: int) -> None:
    for name in dict.fromkeys(case[0] for case in cases):
        flags = [flag for case, flag in zip(cases, bad) if case[0] == name]
        print(f"  {name:10} {what} {sum(flags):5} of {len(flags):5}  {100 * sum(flags) / len(flags):.2f}%")
    found = [case for case, flag in zip(cases, bad) if flag]
    for name, gold, response in found[:shown]:
        print(f"    {name}: gold {gold!r}, response {response!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--sample", type=int, help="golds of a file, evenly spread; default: all")
    parser.add_argument("--cases", type=int, default=1_000, help="wrong verdicts shown of each kind")
    arguments = parser.parse_args()
    for path in arguments.files:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        print(path.name, flush=True)
        if "responses" in rows[0]:
            cases = [("labelled", gold_of(row), response) for row in rows for response in row["responses"]]
            labels = [label for row in rows for label in row["correct"]]
            verdicts = _judge(cases)
            _report("differ", cases, [a != b for a, b in zip(verdicts, labels)], 0)
            continue
        golds = [gold for gold in map(gold_of, rows) if gold]
        golds = golds[:: max(1, len(golds) // arguments.sample)] if arguments.sample else golds
        right, wrong = _cases(golds)
        _report("refused", right, [not verdict for verdict in _judge(right)], arguments.cases)
        _report("accepted", wrong, _judge(wrong), arguments.cases)


if __name__ == "__main__":
    main()
