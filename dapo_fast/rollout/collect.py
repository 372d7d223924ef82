"""A.1 and A.2: problems in, shards of step trees out (arXiv 2412.18279, Algorithm 1).

For each problem, responses are sampled and verified, some are kept as trunks, and from the states of the trunks
completions are sampled and verified (``completions``; of every ``every_state``-th state), or candidate steps alone
(``first_steps``), or nothing: then every response is a trunk and what it says is all that is known. With
``reuse_samples`` the responses are the prompt's completions. A response that did not finish is wrong.

With ``gold_starts`` the gold solution of a problem that no response solved is one more trunk, so that completions start
within it (Jump-Start RL, arXiv 2204.02372, from all of its prefixes at once instead of ever shorter ones).

The shard is the unit of work: it is a function of the settings, the seed and its problems alone, is written whole or
not at all, and is never done twice, so a killed collection resumes at its first missing shard and ends with the same
store.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from dapo_fast.config import CollectSettings
from dapo_fast.data.problems import Problem, content_digest
from dapo_fast.data.store import seal, shard_meta, write_shard
from dapo_fast.errors import InputError
from dapo_fast.hashing import digest as digest_of
from dapo_fast.rewards import Reward
from dapo_fast.rollout.engine import Engine
from dapo_fast.rollout.loading import fitting, warn_of_truncation
from dapo_fast.rollout.shard import Shard
from dapo_fast.rollout.steps import Splitter
from dapo_fast.rundir import add_seconds, seconds_of

log = logging.getLogger("dapo_fast.rollout.collect")

Encode = Callable[[Problem], list[int]]

_COUNTS = "counts"
_DIGEST = "digest"


def collect(
    problems: Sequence[Problem],
    engine: Engine,
    settings: CollectSettings,
    out_dir: str | Path,
    *,
    encode: Encode,
    verify: Reward,
    seed: int,
    digest: str,
) -> dict:
    """Write ``out_dir/shard-NNNNN.parquet`` and, when all are there, ``out_dir/done.json``.

    A problem whose prompt fills the engine's context is left out, named in a warning and counted (``too_long``).

    Args:
        problems: With distinct ids; shard i holds problems ``i * shard_problems`` and following.
        engine: Samples from the policy, which is generator and completer alike.
        settings: See ``CollectSettings``.
        encode: A problem's prompt as token ids.
        verify: What the text of a finished response is worth, from 0 (wrong) to 1 (right).
        seed: With a shard's number, decides its samples.
        digest: Of everything else that decides the result (the policy above all): other results are not mixed in.

    Returns:
        What ``done.json`` holds beside its shards: counts over the whole store, and the seconds that they took.

    Raises:
        InputError: no problems, or none that fits; duplicate ids, an unknown splitter, or a shard there that other
            settings made.
    """
    out_dir = Path(out_dir)
    _check_problems(problems)
    Splitter(engine.tokenizer, settings.splitter)
    size = settings.shard_problems
    prompts = fitting({p.id: encode(p) for p in problems}, engine.context)
    if not prompts:
        raise InputError(f"collect: not one of {len(problems)} prompts fits in a context of {engine.context} tokens")
    fit = [problem for problem in problems if problem.id in prompts]
    shards = [fit[start : start + size] for start in range(0, len(fit), size)]
    totals: Counter[str] = Counter()
    progress = _Progress(len(fit))
    for index, members in enumerate(shards):
        path = out_dir / f"shard-{index:05d}.parquet"
        mark = digest_of([digest, seed, settings.model_dump(mode="json"), content_digest(members)])
        counts = _finished(path, mark)
        if counts is None:
            began = time.monotonic()
            of_shard = [list(prompts[p.id]) for p in members]
            within = partial(progress.within, len(members))
            shard = Shard(members, of_shard, engine, settings, verify, f"{seed}/{index}", within)
            trees = shard.collect()
            counts = shard.counts
            write_shard(path, trees, {_DIGEST: mark, _COUNTS: json.dumps(counts, sort_keys=True)})
            add_seconds(out_dir, time.monotonic() - began)
        totals.update(counts)
        progress.shard_done(len(members), totals)
        log.info(
            "shard %d of %d: %.10g of %d responses right so far, %d states",
            *(index + 1, len(shards), totals["correct"], totals["responses"], totals["states"]),
        )
    progress.close()
    totals["too_long"] = len(problems) - len(prompts)
    _refuse_strangers(out_dir, len(shards))
    summary = _summary(totals, seconds_of(out_dir))
    seal(out_dir, summary)
    return summary


def _check_problems(problems: Sequence[Problem]) -> None:
    if not problems:
        raise InputError("collect: no problems")
    repeated = [name for name, count in Counter(p.id for p in problems).items() if count > 1]
    if repeated:
        raise InputError(f"collect: problem id {repeated[0]!r} occurs more than once")


def _finished(path: Path, mark: str) -> dict[str, int] | None:
    """Counts of a shard that is there already; None if it is not."""
    if not path.exists():
        return None
    meta = shard_meta(path)
    if meta.get(_DIGEST) != mark or _COUNTS not in meta:
        raise InputError(f"{path}: made with other settings, another policy or other problems; collect elsewhere")
    return json.loads(meta[_COUNTS])


def _refuse_strangers(out_dir: Path, shards: int) -> None:
    known = {f"shard-{index:05d}.parquet" for index in range(shards)}
    strangers = sorted(path.name for path in out_dir.glob("shard-*.parquet") if path.name not in known)
    if strangers:
        raise InputError(f"{out_dir / strangers[0]}: belongs to another collection, of more problems")


def _summary(totals: Counter[str], seconds: float) -> dict:
    if totals["moved_boundaries"]:
        log.warning(
            "%d of %d step boundaries fell inside a token and were moved to its end",
            *(totals["moved_boundaries"], totals["boundaries"]),
        )
    warn_of_truncation(totals["truncated_responses"] / totals["responses"], "collect.max_tokens")
    generated = totals["response_tokens"] + totals["completion_tokens"]
    summary = dict(totals) | {"generated_tokens": generated, "seconds": seconds}
    summary["accuracy"] = totals["correct"] / totals["responses"]
    log.info(
        "%d problems, %d states (%d all wrong, %d all right), %d candidate steps, %d tokens in %.1f s",
        *(totals["problems"], totals["states"], totals["all_wrong"], totals["all_right"]),
        *(totals["pairs"], generated, seconds),
    )
    return summary


class _Progress:
    """A bar over problems with rate, time left and running accuracy; nothing where no terminal is attached."""

    def __init__(self, problems: int) -> None:
        self._bar = tqdm(total=problems, unit="problem", desc="collect", disable=None)
        self._done = 0

    def within(self, problems: int, share: float) -> None:
        """``share`` of a shard of ``problems`` is done."""
        if not self._bar.disable:
            self._bar.update(round(self._done + problems * share, 1) - self._bar.n)

    def shard_done(self, problems: int, totals: Counter[str]) -> None:
        self._done += problems
        self._bar.set_postfix(accuracy=f"{totals['correct'] / totals['responses']:.1%}", states=totals["states"])
        self.within(0, 0.0)

    def close(self) -> None:
        self._bar.close()
