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

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from dapo_fast.config import CollectSettings
from dapo_fast.data.problems import Problem, content_digest, gold_solution
from dapo_fast.data.store import seal, shard_meta, write_shard
from dapo_fast.data.tree import State, Tree, Trunk
from dapo_fast.errors import InputError
from dapo_fast.evidence import Continuation
from dapo_fast.hashing import digest as digest_of
from dapo_fast.rewards import Reward, verify_many
from dapo_fast.rollout.engine import Engine, Sample, SamplingParams
from dapo_fast.rollout.grow import (
    Sampled,
    add_evidence,
    add_trunk_steps,
    candidates_of,
    choose_trunks,
    decision_point,
    states_of,
)
from dapo_fast.rollout.loading import fitting, warn_of_truncation
from dapo_fast.rollout.steps import Splitter
from dapo_fast.rundir import add_seconds, seconds_of

log = logging.getLogger("dapo_fast.rollout.collect")

Encode = Callable[[Problem], list[int]]

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
    verify: Reward,
    seed: int,
    digest: str,
) -> dict:
    """Write ``out_dir/shard-NNNNN.parquet`` and, when all are there, ``out_dir/done.json``.

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

    A problem whose prompt fills the engine's context is left out, named in a warning and counted (``too_long``).

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
            shard = _Shard(members, of_shard, engine, settings, verify, f"{seed}/{index}", progress)
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


def _solved(tree: Tree) -> bool:
    """Whether every response to the problem was right: its states have little to say that training would use."""
    return tree.correct == tree.sampled


# ------------------------------------------------------------------------------------------------ one shard


class _Shard:
    """Trees of a few problems, sampled together so that the engine's batch is full."""

    def __init__(
        self,
        problems: list[Problem],
        prompts: list[list[int]],
        engine: Engine,
        settings: CollectSettings,
        verify: Reward,
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
        self.prompts = prompts
        self.counts: dict[str, int] = {}
        self._tokens = Counter[str]()
        self._texts: dict[tuple[int, ...], str] = {}

    def collect(self) -> list[Tree]:
        responses = self._responses()
        trees = [self._grow(i, samples, rewards) for i, (samples, rewards) in enumerate(responses)]
        sampled = self._sample_states(trees, responses)
        for tree, of_states, (samples, rewards) in zip(trees, sampled, responses, strict=True):
            known = [Continuation(tuple(s.ids), 0, r) for s, r in zip(samples, rewards, strict=True)]
            for state, found in zip(tree.states, of_states, strict=True):
                state.rewards = found.rewards
                state.candidates = candidates_of(found, self.splitter)
                if self._completed(tree, state):
                    prefix = tree.response_prefix(state)
                    known += [
                        Continuation((*prefix, *ids), len(prefix), reward)
                        for ids, reward in zip(found.ids, found.rewards, strict=True)
                    ]
            add_trunk_steps(tree)
            add_evidence(tree, known)
        self._count(trees)
        return trees

    def _completed(self, tree: Tree, state: State) -> bool:
        """Whether completions are sampled from ``state``; else it has those responses that pass through it."""
        settings = self.settings
        reused = settings.reuse_samples and state.step == 0
        return settings.completions > 0 and not reused and not (settings.skip_solved and _solved(tree))

    # A.1 ------------------------------------------------------------------------------------------------------

    def _responses(self) -> list[tuple[list[Sample], list[float]]]:
        """The responses of each problem with their rewards."""
        settings = self.settings
        groups = self._sample("responses", self.prompts, settings.samples, [settings.max_tokens] * len(self.prompts))
        rewards = self._rewards([(i, s.ids, s.finished) for i, group in enumerate(groups) for s in group])
        self._tokens["truncated_responses"] = sum(not s.finished for group in groups for s in group)
        n = settings.samples
        return [(group, rewards[i * n : (i + 1) * n]) for i, group in enumerate(groups)]

    def _grow(self, index: int, samples: list[Sample], rewards: list[float]) -> Tree:
        """The tree of one problem: its trunks and the states that they pass through."""
        problem = self.problems[index]
        # Without completions a response is all that is known of its states: every distinct one is a trunk.
        kept = self.settings.kept if self.settings.completions else len(samples)
        trunks = []
        for chosen in choose_trunks([tuple(s.ids) for s in samples], rewards, kept):
            ids = samples[chosen].ids
            trunks.append(Trunk(ids, self.splitter.split(ids), rewards[chosen], samples[chosen].finished))
        if self.settings.gold_starts and not any(rewards):
            trunks += self._gold_trunk(index)
        return Tree(
            problem_id=problem.id,
            prompt=problem.prompt,
            answer=problem.answer or "",
            prompt_ids=self.prompts[index],
            trunks=trunks,
            states=states_of(trunks, self.settings.every_state),
            sampled=len(samples),
            correct=sum(rewards),
        )

    def _gold_trunk(self, index: int) -> list[Trunk]:
        """The gold solution of a problem; nothing where it has none, or one that is too long or judged wrong."""
        solution, tokenizer = gold_solution(self.problems[index]), self.engine.tokenizer
        if solution is None:
            return []
        ids = [*tokenizer(solution, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        room = min(self.settings.max_tokens, self.engine.context - len(self.prompts[index]))
        (reward,) = self._rewards([(index, ids, len(ids) <= room)])
        return [Trunk(ids, self.splitter.split(ids), reward, True)] if reward else []

    # A.2 ------------------------------------------------------------------------------------------------------

    def _sample_states(
        self, trees: list[Tree], responses: list[tuple[list[Sample], list[float]]]
    ) -> list[list[Sampled]]:
        """What is sampled from every state of every tree."""
        settings = self.settings
        found = [[Sampled(settings.max_tokens - len(t.response_prefix(s))) for s in t.states] for t in trees]
        wanted = []
        for index, tree in enumerate(trees):
            for number, state in enumerate(tree.states):
                if self._completed(tree, state):
                    wanted.append((index, number))
                    continue
                prefix = tree.response_prefix(state)
                for sample, reward in zip(*responses[index], strict=True):
                    if sample.ids[: len(prefix)] == prefix and len(sample.ids) > len(prefix):
                        found[index][number].add(sample.ids[len(prefix) :], sample.finished, reward)
        rounds = [settings.completions]
        if settings.skip_decided and settings.completions:
            first = decision_point(settings.completions, settings.decided_error)
            rounds = [first, settings.completions - first]
        for number, size in enumerate(rounds):
            if number:
                undecided = [(i, s) for i, s in wanted if not found[i][s].decided]
                self._tokens["skipped_completions"] += size * (len(wanted) - len(undecided))
                wanted = undecided
            if size and wanted:
                self._complete(f"completions/{number}", trees, wanted, size, found)
        if settings.first_steps:
            self._first_steps(trees, found)
        return found

    def _complete(
        self,
        phase: str,
        trees: list[Tree],
        wanted: list[tuple[int, int]],
        size: int,
        found: list[list[Sampled]],
    ) -> None:
        """``size`` more completions of each of the ``wanted`` states."""
        for (i, s), group, rewards in self._continue(phase, trees, wanted, size, found, stop=None):
            for sample, reward in zip(group, rewards, strict=True):
                found[i][s].add(sample.ids, sample.finished, reward)

    def _first_steps(self, trees: list[Tree], found: list[list[Sampled]]) -> None:
        """Candidates sampled alone: the engine stops at the end of the first step, and no outcome is known."""
        wanted = [(i, s) for i, tree in enumerate(trees) for s in range(len(tree.states))]
        size, stop = self.settings.first_steps, self.settings.splitter
        for (i, s), group, rewards in self._continue("first steps", trees, wanted, size, found, stop):
            for sample, reward in zip(group, rewards, strict=True):
                terminal = sample.finished or len(sample.ids) >= found[i][s].budget
                found[i][s].first_steps.append((sample.ids, terminal, reward))

    def _continue(
        self,
        phase: str,
        trees: list[Tree],
        wanted: list[tuple[int, int]],
        size: int,
        found: list[list[Sampled]],
        stop: str | None,
    ) -> Iterator[tuple[tuple[int, int], list[Sample], list[float]]]:
        """Samples of each of the ``wanted`` (tree, state) pairs, with the reward of each that finished."""
        states = [(trees[i], trees[i].states[s]) for i, s in wanted]
        prefixes = [tree.response_prefix(state) for tree, state in states]
        prompts = [tree.prompt_ids + prefix for (tree, _), prefix in zip(states, prefixes, strict=True)]
        groups = self._sample(phase, prompts, size, [found[i][s].budget for i, s in wanted], stop)
        whole = [
            (i, prefix + sample.ids, sample.finished)
            for (i, _), prefix, group in zip(wanted, prefixes, groups, strict=True)
            for sample in group
        ]
        rewards = iter(self._rewards(whole))
        for place, group in zip(wanted, groups, strict=True):
            yield place, group, [next(rewards) for _ in group]

    # Sampling and verdicts --------------------------------------------------------------------------------------

    def _sample(
        self, phase: str, prompts: list[list[int]], n: int, budgets: list[int], stop: str | None = None
    ) -> list[list[Sample]]:
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
            stop=stop,
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
        return [right[key] if key is not None else 0.0 for key in keys]

    def _text(self, ids: list[int]) -> str:
        key = tuple(ids)
        if key not in self._texts:
            decode = self.engine.tokenizer.decode
            self._texts[key] = decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return self._texts[key]

    def _count(self, trees: list[Tree]) -> None:
        states = [state for tree in trees for state in tree.states]
        right = sum(tree.correct for tree in trees)
        self.counts = {
            "problems": len(trees),
            "responses": sum(tree.sampled for tree in trees),
            "correct": int(right) if right == int(right) else right,
            "trunks": sum(len(tree.trunks) for tree in trees),
            "truncated_responses": self._tokens["truncated_responses"],
            "truncated_trunks": sum(not trunk.finished for tree in trees for trunk in tree.trunks),
            "states": len(states),
            "all_wrong": sum(state.mc == 0 for state in states),
            "all_right": sum(state.mc == 1 for state in states),
            "completions": sum(len(s.rewards) for tree in trees for s in tree.states if self._completed(tree, s)),
            "solved": sum(map(_solved, trees)),
            "pairs": sum(len(state.candidates) for state in states),
            "response_tokens": self._tokens["response_tokens"],
            "completion_tokens": self._tokens["completion_tokens"],
            "skipped_completions": self._tokens["skipped_completions"],
            "boundaries": self.splitter.boundaries,
            "moved_boundaries": self.splitter.moved,
        }
