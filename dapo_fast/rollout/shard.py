"""One shard of a collection: the trees of a few problems, from their prompts to verified responses and completions."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator

from dapo_fast.config import CollectSettings
from dapo_fast.data.problems import Problem, gold_solution
from dapo_fast.data.tree import State, Tree, Trunk
from dapo_fast.evidence import Continuation
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
from dapo_fast.rollout.steps import Splitter
from dapo_fast.rollout.text import text_of

_RESPONSES_SHARE = 0.2  # of a shard's work, for the progress bar only


class Shard:
    """Trees of a few problems, sampled together so that the engine's batch is full.

    Args:
        problems: Of the shard.
        prompts: Their token ids.
        engine: Samples from the policy.
        settings: See ``CollectSettings``.
        verify: What the text of a finished response is worth, from 0 to 1.
        seed: Decides what is sampled, with the phase.
        advance: Called with the share of the work that is done.
    """

    def __init__(
        self,
        problems: list[Problem],
        prompts: list[list[int]],
        engine: Engine,
        settings: CollectSettings,
        verify: Reward,
        seed: str,
        advance: Callable[[float], None],
    ) -> None:
        self.problems = problems
        self.engine = engine
        self.settings = settings
        self.verify = verify
        self.seed = seed
        self.advance = advance
        self.splitter = Splitter(engine.tokenizer, settings.splitter)
        self.prompts = prompts
        self.counts: dict[str, int] = {}
        self._tokens = Counter[str]()
        self._texts: dict[tuple[int, ...], str] = {}

    def collect(self) -> list[Tree]:
        """The trees; ``counts`` is filled then."""
        responses = self._responses()
        trees = [self._grow(i, samples, rewards) for i, (samples, rewards) in enumerate(responses)]
        sampled = self._sample_states(trees, responses)
        for tree, of_states, (samples, rewards) in zip(trees, sampled, responses, strict=True):
            known = [Continuation(tuple(s.ids), 0, r) for s, r in zip(samples, rewards, strict=True)]
            for state, found in zip(tree.states, of_states, strict=True):
                state.rewards = found.rewards
                state.candidates = candidates_of(found, self.splitter)
                if self._gets_completions(tree, state):
                    prefix = tree.response_prefix(state)
                    known += [
                        Continuation((*prefix, *ids), len(prefix), reward)
                        for ids, reward in zip(found.ids, found.rewards, strict=True)
                    ]
            add_trunk_steps(tree)
            add_evidence(tree, known)
        self._count(trees)
        return trees

    def _gets_completions(self, tree: Tree, state: State) -> bool:
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
                if self._gets_completions(tree, state):
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
            self.advance(share)

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
            self._texts[key] = text_of(self.engine.tokenizer, ids)
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
            "completions": sum(
                len(s.rewards) for tree in trees for s in tree.states if self._gets_completions(tree, s)
            ),
            "solved": sum(map(_solved, trees)),
            "pairs": sum(len(state.candidates) for state in states),
            "response_tokens": self._tokens["response_tokens"],
            "completion_tokens": self._tokens["completion_tokens"],
            "skipped_completions": self._tokens["skipped_completions"],
            "boundaries": self.splitter.boundaries,
            "moved_boundaries": self.splitter.moved,
        }


def _solved(tree: Tree) -> bool:
    """Whether every response to the problem was right: its states have little to say that training would use."""
    return tree.correct == tree.sampled
