"""Accuracy of a policy on a benchmark: greedy and sampled, item by item, resumable."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dapo_fast.checked import json_line, without_sum
from dapo_fast.config import EvaluateSettings
from dapo_fast.data.problems import Problem, content_digest
from dapo_fast.errors import InputError, blaming
from dapo_fast.hashing import digest as digest_of
from dapo_fast.rewards import Reward, verify_many
from dapo_fast.rollout.engine import Engine, Sample, SamplingParams
from dapo_fast.rollout.loading import fitting, warn_of_truncation
from dapo_fast.rundir import add_seconds, read_state, write_json
from dapo_fast.state import EvaluationClaim, MeasuredProblem
from dapo_fast.statistics import reward_of, summarise

log = logging.getLogger("dapo_fast.evaluate")


@dataclass(frozen=True)
class _Mode:
    name: str  # "greedy" or "sampled"; names the file too
    samples: int
    temperature: float
    top_p: float

    def params(self, settings: EvaluateSettings, seed: int) -> SamplingParams:
        return SamplingParams(self.samples, settings.max_tokens, self.temperature, self.top_p, seed)


def evaluate(
    problems: Sequence[Problem],
    engine: Engine,
    settings: EvaluateSettings,
    out_dir: str | Path,
    *,
    encode: Callable[[Problem], Sequence[int]],
    verify: Reward | None = None,
    seed: int = 0,
    digest: str = "",
) -> dict[str, Any]:
    """Measure the engine's policy on ``problems``.

    Writes ``greedy.jsonl`` and, with ``settings.samples``, ``sampled.jsonl`` (one line a problem: id, answer, and each
    response with its verdict, length in tokens and whether it finished), then ``summary.json``. A killed evaluation
    continues at the batch it was in, and its results are those of an uninterrupted one.

    Args:
        problems: What to solve; at least one.
        engine: Samples responses.
        settings: Lengths, number of samples and batch size.
        out_dir: Where results are kept.
        encode: Prompt token ids of a problem (see ``format_prompt``).
        verify: None: the verifier of each problem's kind. An unfinished response is wrong, unseen; so are those of a
            prompt that fills the engine's context, which is not sampled, named in a warning and counted. Where rewards
            are fractions, accuracy is their mean and there is no pass@k.
        seed: Of the samples.
        digest: Hash of whatever else the results depend on: model, template.

    Returns:
        ``{"greedy": {...}, "sampled": {...}}``. Each has ``accuracy`` with its 95 % interval ``low`` and ``high``
        (Wilson; for samples with the effective number of independent ones, since those of one problem are alike),
        ``n`` problems, ``truncated`` (responses that did not finish, as a fraction), ``tokens`` (mean length) and,
        where there were any, ``too_long`` (problems whose prompts fill the context);
        "sampled" has ``samples`` and unbiased ``pass@k`` for k = 1, 2, 4, … and ``samples`` too.

    Raises:
        InputError: no problems, an id that occurs twice, or ``out_dir`` holds results of other settings.
    """
    if not problems:
        raise InputError("evaluate: no problems")
    prompts = {problem.id: encode(problem) for problem in problems}
    if len(prompts) < len(problems):
        raise InputError("evaluate: a problem id occurs more than once")
    out = Path(out_dir)
    _claim(out, problems, settings, seed, digest)
    fit = fitting(prompts, engine.context)
    summary: dict[str, Any] = {}
    for mode in _modes(settings):
        rows = _run(mode, problems, engine, settings, out, fit, verify, seed)
        summary[mode.name] = summarise(rows) | (
            {"too_long": len(prompts) - len(fit)} if len(fit) < len(prompts) else {}
        )
        warn_of_truncation(summary[mode.name]["truncated"], "evaluate.max_tokens")
        log.info("%s: %s", mode.name, ", ".join(f"{k} {v:.4g}" for k, v in summary[mode.name].items()))
    write_json(out / "summary.json", summary)
    return summary


def measure(
    problems: Sequence[Problem],
    engine: Engine,
    settings: EvaluateSettings,
    encode: Callable[[Problem], Sequence[int]],
    verify: Reward | None,
    seed: int,
) -> list[dict[str, Any]]:
    """Responses to ``problems``, sampled where ``settings`` ask for samples and else greedy; nothing is written.

    Returns:
        A row a problem, as in the files of ``evaluate``, for ``statistics.summarise``.
    """
    mode = _modes(settings)[-1]
    prompts = fitting({problem.id: encode(problem) for problem in problems}, engine.context)
    params = mode.params(settings, _batch_seed(seed, mode.name, 0))
    return _measure(problems, engine, params, prompts, verify, lambda ended: None)


def _modes(settings: EvaluateSettings) -> list[_Mode]:
    """Greedy, and sampled where that is asked for."""
    modes = [_Mode("greedy", 1, 0.0, 1.0)]
    if settings.samples:
        modes.append(_Mode("sampled", settings.samples, settings.temperature, settings.top_p))
    return modes


def _claim(out: Path, problems: Sequence[Problem], settings: EvaluateSettings, seed: int, digest: str) -> None:
    key = digest_of([digest, settings.model_dump(mode="json"), seed, content_digest(problems)])
    path = out / "claim.json"
    if path.exists():
        if read_state(path, EvaluationClaim)["digest"] != key:
            raise InputError(
                f"{out}: holds an evaluation with other settings, problems or model; use another directory"
            )
        return
    stray = [name for name in ("greedy.jsonl", "sampled.jsonl", "summary.json") if (out / name).exists()]
    if stray:
        raise InputError(f"{out / stray[0]}: already there, and nothing says which settings it belongs to")
    write_json(path, {"digest": key})


def _run(
    mode: _Mode,
    problems: Sequence[Problem],
    engine: Engine,
    settings: EvaluateSettings,
    out: Path,
    prompts: Mapping[str, Sequence[int]],
    verify: Reward | None,
    seed: int,
) -> list[dict[str, Any]]:
    path = out / f"{mode.name}.jsonl"
    size = settings.batch_problems
    rows = _resume(path, problems, size, mode.samples)
    if rows:
        log.info("%s: %d of %d problems already measured in %s", mode.name, len(rows), len(problems), path)
    with (
        open(path, "a", encoding="ascii") as file,
        tqdm(total=len(problems), initial=len(rows), desc=f"evaluate {mode.name}", unit="problem") as bar,
    ):
        for start in range(len(rows), len(problems), size):
            began = time.monotonic()
            batch = problems[start : start + size]
            params = mode.params(settings, _batch_seed(seed, mode.name, start))
            new = _measure(batch, engine, params, prompts, verify, _Advance(bar, mode.samples))
            # ASCII JSON: a lone surrogate in a response is written as its escape, and read back as it was.
            file.write("".join(map(json_line, new)))
            file.flush()
            os.fsync(file.fileno())
            add_seconds(out, time.monotonic() - began)
            rows += new
            right = sum(reward_of(r) for row in rows for r in row["responses"])
            bar.set_postfix(accuracy=f"{right / (len(rows) * mode.samples):.3f}", refresh=False)
            bar.update(len(rows) - bar.n)
    return rows


class _Advance:
    """Moves a bar over problems as their samples end: a batch may take minutes."""

    def __init__(self, bar: tqdm, samples: int) -> None:
        self._bar = bar
        self._from = bar.n
        self._samples = samples
        self._ended = 0

    def __call__(self, ended: int) -> None:
        self._ended += ended
        self._bar.update(round(self._from + self._ended / self._samples, 1) - self._bar.n)


def _measure(
    batch: Sequence[Problem],
    engine: Engine,
    params: SamplingParams,
    prompts: Mapping[str, Sequence[int]],
    verify: Reward | None,
    progress: Callable[[int], None],
) -> list[dict[str, Any]]:
    fit = [problem for problem in batch if problem.id in prompts]
    samples = engine.generate([list(prompts[problem.id]) for problem in fit], params, progress) if fit else []
    sampled = {problem.id: found for problem, found in zip(fit, samples, strict=True)}
    unread = [
        Sample([], "", False)
    ] * params.n  # a prompt that the policy cannot read is a problem that it cannot solve
    generated = [sampled.get(problem.id, unread) for problem in batch]
    finished = [(p, s.text) for p, samples in zip(batch, generated, strict=True) for s in samples if s.finished]
    verdicts = iter(verify_many(finished, verify))
    return [
        {
            "id": problem.id,
            "answer": problem.answer,
            "responses": [_judged(sample, next(verdicts) if sample.finished else 0.0) for sample in samples],
        }
        for problem, samples in zip(batch, generated, strict=True)
    ]


def _judged(sample: Sample, reward: float) -> dict[str, Any]:
    row = {
        "text": sample.text,
        "correct": reward == 1,
        "finished": sample.finished,
        "tokens": len(sample.ids),
    }
    return row | ({"reward": reward} if 0 < reward < 1 else {})


def _batch_seed(seed: int, mode: str, start: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{mode}/{start}".encode()).digest()[:4], "little")


def _resume(path: Path, problems: Sequence[Problem], batch: int, samples: int) -> list[dict[str, Any]]:
    """The rows of whole batches; what a kill left of another is cut off the file.

    Raises:
        InputError: a whole line that is not what ``evaluate`` writes there, which no kill leaves; nothing is cut.
    """
    if not path.exists():
        return []
    if not path.is_file():
        raise InputError(f"{path}: not a regular file")
    rows: list[dict[str, Any]] = []
    offsets = [0]
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            if len(rows) == len(problems):
                raise InputError(f"{path}:{len(rows) + 1}: more lines than there are problems")
            with blaming(f"{path}:{len(rows) + 1}", "not a line that an evaluation writes"):
                row = without_sum(json.loads(line), path)
                MeasuredProblem.model_validate(row)
            if row["id"] != problems[len(rows)].id or len(row["responses"]) != samples:
                raise InputError(f"{path}:{len(rows) + 1}: of another problem, or another number of samples")
            rows.append(row)
            offsets.append(offsets[-1] + len(line))
    kept = len(rows) if len(rows) == len(problems) else len(rows) // batch * batch
    if offsets[kept] < path.stat().st_size:
        os.truncate(path, offsets[kept])
    return rows[:kept]
