"""A.1 and A.2: problems in, shards of step trees out (arXiv 2412.18279, Algorithm 1).

For each problem, responses are sampled and verified, some are kept as trunks, and from every state of the trunks
completions are sampled and verified. A response that did not finish is wrong. The shard is the unit of work: it is a
function of the settings, the seed and its problems alone, is written whole or not at all, and is never done twice, so
a killed collection resumes at its first missing shard and ends with the same store.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from dapo_fast.config import CollectSettings
from dapo_fast.config import digest as digest_of
from dapo_fast.data.problems import Problem
from dapo_fast.data.store import shard_meta, write_shard
from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.errors import InputError
from dapo_fast.rewards import verify_many
from dapo_fast.rollout.engine import Engine, Sample, SamplingParams
from dapo_fast.rollout.steps import Splitter
from dapo_fast.rundir import add_seconds, seconds_of, write_json

log = logging.getLogger("dapo_fast.rollout.collect")

Encode = Callable[[Problem], list[int]]
Verify = Callable[[Problem, str], bool]

_COUNTS = "counts"
_DIGEST = "digest"
_RESPONSES_SHARE = 0.2  # of a shard's work, for the progress bar only


def collect(
    problems: Sequence[Problem],
    engine: Engine,
    settings: CollectSettings,
    out_dir: str | Path,
    *,
    encode: Encode,
    verify: Verify,
    seed: int,
    digest: str,
) -> dict:
    """Write ``out_dir/shard-NNNNN.parquet`` and, when all are there, ``out_dir/done.json``.

    Args:
        problems: With distinct ids; shard i holds problems ``i * shard_problems`` and following.
        engine: Samples from the policy, which is generator and completer alike.
        settings: See ``CollectSettings``; ``Completions`` says what the options do.
        encode: A problem's prompt as token ids.
        verify: Whether the text of a finished response is right.
        seed: With a shard's number, decides its samples.
        digest: Of everything else that decides the result (the policy above all): other results are not mixed in.

    Returns:
        What ``done.json`` holds: counts over the whole store, and the seconds that its shards took.

    Raises:
        InputError: no problems, duplicate ids, an unknown splitter, or a shard there that other settings made.
    """
    out_dir = Path(out_dir)
    _check_problems(problems)
    Splitter(engine.tokenizer, settings.splitter)
    size = settings.shard_problems
    shards = [list(problems[start : start + size]) for start in range(0, len(problems), size)]
    totals: Counter[str] = Counter()
    progress = _Progress(len(problems))
    for index, members in enumerate(shards):
        path = out_dir / f"shard-{index:05d}.parquet"
        mark = digest_of([digest, seed, settings.model_dump(mode="json"), [p.id for p in members]])
        counts = _finished(path, mark)
        if counts is None:
            began = time.monotonic()
            shard = _Shard(members, engine, settings, encode, verify, f"{seed}/{index}", progress)
            trees = shard.collect()
            counts = shard.counts
            write_shard(path, trees, {_DIGEST: mark, _COUNTS: json.dumps(counts, sort_keys=True)})
            add_seconds(out_dir, time.monotonic() - began)
        totals.update(counts)
        progress.shard_done(len(members), totals)
        log.info(
            "shard %d of %d: %d of %d responses right so far, %d states",
            *(index + 1, len(shards), totals["correct"], totals["responses"], totals["states"]),
        )
    progress.close()
    _refuse_strangers(out_dir, len(shards))
    summary = _summary(totals, seconds_of(out_dir))
    write_json(out_dir / "done.json", summary)
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


# ------------------------------------------------------------------------------------------------ one shard


@dataclass
class Completions:
    """What was sampled from one state, whoever sampled it.

    - ``reuse_samples``: at the prompt these are the responses of A.1, all of them; no others are drawn there.
    - ``count_trunk``: every trunk through a state is one more completion of it. Trunks are chosen by outcome (half
      right, half wrong where possible), so this draws MC towards one half.
    - ``skip_decided``: see ``decision_point``.
    """

    budget: int
    ids: list[list[int]] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    def add(self, ids: list[int], finished: bool, reward: float) -> None:
        """One more completion."""
        self.ids.append(ids)
        self.finished.append(finished)
        self.rewards.append(reward)

    @property
    def decided(self) -> bool:
        """Whether all verdicts agree."""
        return len(set(self.rewards)) == 1


class _Shard:
    """Trees of a few problems, sampled together so that the engine's batch is full."""

    def __init__(
        self,
        problems: list[Problem],
        engine: Engine,
        settings: CollectSettings,
        encode: Encode,
        verify: Verify,
        seed: str,
        progress: _Progress,
    ) -> None:
        self.problems = problems
        self.engine = engine
        self.settings = settings
        self.verify = verify
        self.seed = seed
        self.progress = progress
        self.splitter = Splitter(engine.tokenizer, settings.splitter)
        self.prompts = [list(encode(problem)) for problem in problems]
        self.counts: dict[str, int] = {}
        self._tokens = Counter[str]()
        self._texts: dict[tuple[int, ...], str] = {}

    def collect(self) -> list[Tree]:
        responses = self._responses()
        trees = [self._grow(i, samples, rewards) for i, (samples, rewards) in enumerate(responses)]
        completions = self._complete(trees, responses)
        for tree, of_states in zip(trees, completions, strict=True):
            for state, found in zip(tree.states, of_states, strict=True):
                state.rewards = found.rewards
                state.candidates = candidates_of(found, self.splitter)
        self._count(trees)
        return trees

    # A.1 ------------------------------------------------------------------------------------------------------

    def _responses(self) -> list[tuple[list[Sample], list[float]]]:
        """The responses of each problem with their rewards."""
        settings = self.settings
        groups = self._sample("responses", self.prompts, settings.samples, [settings.max_tokens] * len(self.prompts))
        rewards = self._rewards([(i, s.ids, s.finished) for i, group in enumerate(groups) for s in group])
        n = settings.samples
        return [(group, rewards[i * n : (i + 1) * n]) for i, group in enumerate(groups)]

    def _grow(self, index: int, samples: list[Sample], rewards: list[float]) -> Tree:
        """The tree of one problem: its trunks and the states that they pass through."""
        problem = self.problems[index]
        trunks = []
        for kept in choose_trunks([tuple(s.ids) for s in samples], rewards, self.settings.kept):
            ids = samples[kept].ids
            trunks.append(Trunk(ids, self.splitter.split(ids), rewards[kept], samples[kept].finished))
        return Tree(
            problem_id=problem.id,
            prompt=problem.prompt,
            answer=problem.answer or "",
            prompt_ids=self.prompts[index],
            trunks=trunks,
            states=states_of(trunks, self.settings.every_state),
            sampled=len(samples),
            correct=int(sum(rewards)),
        )

    # A.2 ------------------------------------------------------------------------------------------------------

    def _complete(
        self, trees: list[Tree], responses: list[tuple[list[Sample], list[float]]]
    ) -> list[list[Completions]]:
        """The completions of every state of every tree."""
        settings = self.settings
        found = [[Completions(settings.max_tokens - len(t.response_prefix(s))) for s in t.states] for t in trees]
        wanted = []
        for index, tree in enumerate(trees):
            for number, state in enumerate(tree.states):
                if settings.reuse_samples and state.step == 0:
                    for sample, reward in zip(*responses[index], strict=True):
                        found[index][number].add(sample.ids, sample.finished, reward)
                else:
                    wanted.append((index, number))
        rounds = [settings.completions]
        if settings.skip_decided:
            first = decision_point(settings.completions, settings.decided_error)
            rounds = [first, settings.completions - first]
        for number, size in enumerate(rounds):
            if number:
                undecided = [(i, s) for i, s in wanted if not found[i][s].decided]
                self._tokens["skipped_completions"] += size * (len(wanted) - len(undecided))
                wanted = undecided
            if size and wanted:
                self._complete_round(f"completions/{number}", trees, wanted, size, found)
        if settings.count_trunk:
            _add_trunks(trees, found, settings.reuse_samples)
        return found

    def _complete_round(
        self,
        phase: str,
        trees: list[Tree],
        wanted: list[tuple[int, int]],
        size: int,
        found: list[list[Completions]],
    ) -> None:
        states = [(trees[i], trees[i].states[s]) for i, s in wanted]
        prefixes = [tree.response_prefix(state) for tree, state in states]
        prompts = [tree.prompt_ids + prefix for (tree, _), prefix in zip(states, prefixes, strict=True)]
        groups = self._sample(phase, prompts, size, [found[i][s].budget for i, s in wanted])
        whole = [
            (i, prefix + sample.ids, sample.finished)
            for (i, _), prefix, group in zip(wanted, prefixes, groups, strict=True)
            for sample in group
        ]
        rewards = iter(self._rewards(whole))
        for (i, s), group in zip(wanted, groups, strict=True):
            for sample in group:
                found[i][s].add(sample.ids, sample.finished, next(rewards))

    # Sampling and verdicts --------------------------------------------------------------------------------------

    def _sample(self, phase: str, prompts: list[list[int]], n: int, budgets: list[int]) -> list[list[Sample]]:
        first = phase == "responses"
        done = 0
        total = n * len(prompts)

        def advance(ended: int) -> None:
            nonlocal done
            done += ended
            share = _RESPONSES_SHARE * done / total
            if not first:
                share = _RESPONSES_SHARE + (1 - _RESPONSES_SHARE) * done / total
            self.progress.within(len(self.problems), share)

        params = SamplingParams(
            n=n,
            max_tokens=tuple(budgets),
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            seed=int.from_bytes(hashlib.sha256(f"{self.seed}/{phase}".encode()).digest()[:6], "big"),
        )
        groups = self.engine.generate(prompts, params, advance)
        tokens = sum(len(sample.ids) for group in groups for sample in group)
        self._tokens["response_tokens" if first else "completion_tokens"] += tokens
        return groups

    def _rewards(self, responses: list[tuple[int, list[int], bool]]) -> list[float]:
        """Rewards of (problem index, response ids, finished); equal texts are judged once, unfinished ones never."""
        keys = [(index, self._text(ids)) if finished else None for index, ids, finished in responses]
        distinct = list(dict.fromkeys(key for key in keys if key is not None))
        verdicts = verify_many([(self.problems[index], text) for index, text in distinct], self.verify)
        right = dict(zip(distinct, verdicts, strict=True))
        return [float(right[key]) if key is not None else 0.0 for key in keys]

    def _text(self, ids: list[int]) -> str:
        key = tuple(ids)
        if key not in self._texts:
            decode = self.engine.tokenizer.decode
            self._texts[key] = decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return self._texts[key]

    def _count(self, trees: list[Tree]) -> None:
        states = [state for tree in trees for state in tree.states]
        self.counts = {
            "problems": len(trees),
            "responses": sum(tree.sampled for tree in trees),
            "correct": sum(tree.correct for tree in trees),
            "trunks": sum(len(tree.trunks) for tree in trees),
            "truncated_trunks": sum(not trunk.finished for tree in trees for trunk in tree.trunks),
            "states": len(states),
            "all_wrong": sum(state.mc == 0 for state in states),
            "all_right": sum(state.mc == 1 for state in states),
            "completions": sum(len(state.rewards) for state in states),
            "pairs": sum(len(state.candidates) for state in states),
            "response_tokens": self._tokens["response_tokens"],
            "completion_tokens": self._tokens["completion_tokens"],
            "skipped_completions": self._tokens["skipped_completions"],
            "boundaries": self.splitter.boundaries,
            "moved_boundaries": self.splitter.moved,
        }


# ------------------------------------------------------------------------------------------------ the rules


def choose_trunks(responses: Sequence[tuple[int, ...]], rewards: Sequence[float], kept: int) -> list[int]:
    """Indices of at most ``kept`` distinct responses, right and wrong as balanced as possible, earliest first.

    Where one side is short the other fills up; where both are, fewer are kept, since a response that repeats another
    has no states of its own.
    """
    distinct = list({response: index for index, response in reversed(list(enumerate(responses)))}.values())
    right = sorted(index for index in distinct if rewards[index] > 0)
    wrong = sorted(index for index in distinct if rewards[index] == 0)
    half = min(len(right), kept // 2)
    chosen_wrong = wrong[: kept - half]
    return sorted(right[: kept - len(chosen_wrong)] + chosen_wrong)


def states_of(trunks: Sequence[Trunk], every: int = 1) -> list[State]:
    """The states of ``trunks``: the prompt and each ``every``-th step boundary, but not the end; each prefix once."""
    seen: set[tuple[int, ...]] = set()
    states = []
    for index, trunk in enumerate(trunks):
        for step, end in enumerate([0, *trunk.step_ends[:-1]]):
            prefix = tuple(trunk.ids[:end])
            if step % every or prefix in seen:
                continue
            seen.add(prefix)
            states.append(State(index, step, [], []))
    return states


def candidates_of(completions: Completions, splitter: Splitter) -> list[Candidate]:
    """The unique first steps of a state's completions, in order of appearance.

    A completion that is a single step ends the response: with its verified reward if it finished, with 0 if
    ``max_tokens`` cut it.
    """
    found: dict[tuple[int, ...], Candidate] = {}
    of_ids: dict[tuple[int, ...], tuple[int, ...]] = {}
    for ids, reward in zip(completions.ids, completions.rewards, strict=True):
        whole = tuple(ids)
        if whole not in of_ids:
            of_ids[whole] = whole[: splitter.first(ids)]
        step = of_ids[whole]
        if step in found:
            found[step].count += 1
            continue
        terminal = len(step) == len(ids)
        found[step] = Candidate(list(step), 1, terminal, reward if terminal else 0.0)
    return list(found.values())


def decision_point(completions: int, error: float) -> int:
    """After how many agreeing verdicts a state is decided, so that sampling stops there.

    The smallest k for which, when the first k of m verdicts agree, the expected squared difference between MC over
    these k (0 or 1) and MC over all m is at most ``error``, the state's success rate being uniform a priori: with
    r = m - k verdicts left, of which X disagree, X is beta-binomial with parameters (r, 1, k + 1), and the expected
    squared difference is E[X²]/m² = [r / (k + 2) + 2 r (r - 1) / ((k + 2)(k + 3))] / m². Whatever the prior, a state of
    success rate p is taken for all wrong with probability (1 - p)^k, and for all right with p^k.
    """
    m = completions
    for k in range(1, m):
        r = m - k
        if (r / (k + 2) + 2 * r * (r - 1) / ((k + 2) * (k + 3))) / m**2 <= error:
            return k
    return m


def _add_trunks(trees: list[Tree], found: list[list[Completions]], reused: bool) -> None:
    for tree, of_states in zip(trees, found, strict=True):
        for state, completions in zip(tree.states, of_states, strict=True):
            if reused and state.step == 0:
                continue
            prefix = tree.response_prefix(state)
            for trunk in tree.trunks:
                if trunk.ids[: len(prefix)] == prefix and len(trunk.ids) > len(prefix):
                    completions.add(trunk.ids[len(prefix) :], trunk.finished, trunk.reward)
