"""Choosing among sampled responses: by a critic, by majority, or by both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from dapo_fast.beam import BeamSearch
from dapo_fast.config import Config
from dapo_fast.data.problems import Problem
from dapo_fast.errors import InputError
from dapo_fast.rewards import Reward
from dapo_fast.rewards.extract import extract_answer
from dapo_fast.rewards.normal import normalise
from dapo_fast.rewards.plain import as_number
from dapo_fast.rollout.engine import Engine
from dapo_fast.rundir import read_lines, write_json
from dapo_fast.state import MeasuredProblem
from dapo_fast.statistics import mean_of_problems, reward_of
from dapo_fast.step_values import StepValues
from dapo_fast.tasks import TASKS

EXAMPLES = 4  # right responses, and as many wrong ones, whose steps the report shows


def choose(
    problems: Sequence[Problem],
    measured: Path,
    critic: str | Path,
    engine: Engine,
    config: Config,
    verify: Reward | None,
) -> dict[str, Any]:
    """``choose_by_critic`` of the critic in a directory, which also leads a search with the policy of ``engine``."""
    values = StepValues.of(critic, config)
    searched = BeamSearch(engine, values, config).accuracy(problems, verify)
    return choose_by_critic(problems, measured, values, str(critic), searched)


def choose_by_critic(
    problems: Sequence[Problem], measured: Path, critic: StepValues, name: str, searched: Mapping[str, Any]
) -> dict[str, Any]:
    """Accuracy of the response, or answer, that is chosen among the sampled ones of each problem.

    Writes ``measured/critic.json``, and a few responses with the values of their steps to ``measured/steps.json``.

    Args:
        problems: Those of the evaluation.
        measured: Directory that ``evaluate`` wrote, with samples.
        critic: Scores responses; those that did not finish are not chosen.
        name: What the file calls the critic.
        searched: What ``BeamSearch.accuracy`` says of the same policy and critic.

    Returns:
        ``best_of``: the response that the critic values most. Where responses have an answer (mathematics, built-in
        tasks) ``majority``: the one given most often, and ``weighted``: the one with the largest sum of values. Each
        is an accuracy with its 95 % interval ``low`` and ``high``; ties are shared. ``beam``: what was ``searched``.
        ``samples`` and ``critic`` too.

    Raises:
        InputError: nothing was sampled there, or not to these problems.
    """
    path = measured / "sampled.jsonl"
    if not path.exists():
        raise InputError(f"{path}: missing; to choose among responses, set evaluate.samples")
    rows = read_lines(path, MeasuredProblem)
    if [row["id"] for row in rows] != [problem.id for problem in problems]:
        raise InputError(f"{path}: its lines are not those of the {len(problems)} problems that were measured")
    chosen: dict[str, list[float]] = {}
    finished = [[response for response in row["responses"] if response["finished"]] for row in rows]
    texts = [[response["text"] for response in responses] for responses in finished]
    scores = critic.scores(list(zip(problems, texts, strict=True)))
    for problem, responses, values in zip(problems, finished, scores, strict=True):
        for rule, accuracy in _choices(problem, responses, values).items():
            chosen.setdefault(rule, []).append(accuracy)
    result: dict[str, Any] = {"critic": name, "samples": len(rows[0]["responses"])}
    result |= {rule: mean_of_problems(accuracies) for rule, accuracies in chosen.items()} | {"beam": dict(searched)}
    write_json(measured / "steps.json", {"critic": name, "responses": _examples(problems, finished, critic)})
    write_json(measured / "critic.json", result)
    return result


def _examples(
    problems: Sequence[Problem], finished: Sequence[Sequence[dict[str, Any]]], critic: StepValues
) -> list[dict[str, Any]]:
    """The first right responses and the first wrong ones, of different problems, with the values of their steps."""
    found: list[dict[str, Any]] = []
    for right in (True, False):
        fitting = [[r for r in responses if (reward_of(r) > 0.5) == right] for responses in finished]
        chosen = [(problem, responses[0]) for problem, responses in zip(problems, fitting, strict=True) if responses]
        for problem, response in chosen[:EXAMPLES]:
            steps = [asdict(step) for step in critic(problem, response["text"])]
            said = {"id": problem.id, "prompt": problem.prompt, "answer": problem.answer}
            found.append(said | {"reward": reward_of(response), "steps": steps})
    return found


def _choices(problem: Problem, responses: Sequence[dict[str, Any]], values: Sequence[float]) -> dict[str, float]:
    """The reward of what each rule chooses among the finished responses to one problem."""
    rewards = [reward_of(response) for response in responses]
    found = {"best_of": _elected(dict(enumerate(values)), list(enumerate(rewards)))}
    if problem.kind != "math" and problem.kind not in TASKS:
        return found
    answers = [given_answer(problem.kind, response["text"]) for response in responses]
    votes: dict[str, float] = {}
    weights: dict[str, float] = {}
    for answer, value in zip(answers, values, strict=True):
        if answer is not None:
            votes[answer] = votes.get(answer, 0) + 1
            weights[answer] = weights.get(answer, 0) + value
    outcomes = [(answer, reward) for answer, reward in zip(answers, rewards, strict=True) if answer is not None]
    return found | {"majority": _elected(votes, outcomes), "weighted": _elected(weights, outcomes)}


def _elected(votes: Mapping[Any, float], outcomes: Sequence[tuple[Any, float]]) -> float:
    """Mean reward of what has most votes; 0 where nobody votes."""
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [one for one, votes_of in votes.items() if votes_of == most]
    return fmean(fmean(reward for one, reward in outcomes if one == winner) for winner in winners)


def given_answer(kind: str, response: str) -> str | None:
    """What a response to a problem of ``kind`` answers, in one spelling; None where it does not."""
    if kind in TASKS:
        return TASKS[kind].answer(response)
    answer = extract_answer(response.encode("utf-8", "replace").decode())
    if answer is None:
        return None
    spelt = normalise(answer)
    number = as_number(spelt)
    return spelt if number is None else str(number)
