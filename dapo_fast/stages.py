"""Algorithm 1's stages: each method does one stage of one iteration in a run directory, and resumes it.

A stage loads only what it needs, binds its directory to the settings that decide its result, and leaves at once when
it is done already.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dapo_fast import state
from dapo_fast.advantages import compute_advantages
from dapo_fast.best_of import choose
from dapo_fast.config import Config, EngineSettings
from dapo_fast.data.prompts import prompt_encoder
from dapo_fast.data.store import sealed_summary
from dapo_fast.errors import InputError
from dapo_fast.evaluate import evaluate, measure
from dapo_fast.layout import Layout, wait_for_rank_0
from dapo_fast.loan import EngineLoan, free_memory
from dapo_fast.parts import Parts
from dapo_fast.rollout.collect import collect
from dapo_fast.rollout.engine import make_engine
from dapo_fast.rundir import RunDirectory, read_state
from dapo_fast.snapshots import model_directory
from dapo_fast.tasks import Task
from dapo_fast.train.actor import train_actor
from dapo_fast.train.best import Measured
from dapo_fast.train.critic import ValueFiller, train_critic
from dapo_fast.train.demonstrations import Demonstrations
from dapo_fast.train.parallel import open_world
from dapo_fast.train.sft import data_stream, read_pairs, train_sft
from dapo_fast.train.torchrun import is_first_rank


class Stages:
    """The stages of one run directory."""

    def __init__(
        self, directory: RunDirectory, given: Mapping[str, Any] | None = None, layout: Layout | None = None
    ) -> None:
        """Take a run, and objects that a program gave by the names that they have in its settings.

        ``layout``: where the stages are kept, if not in the run's own directory.
        """
        self.directory = directory
        self.config = directory.config
        self.parts = Parts(directory.config, given)
        self.layout = Layout(directory) if layout is None else layout
        self.engines = EngineLoan(self.parts, directory.path / "server.log")

    def sft(self, iteration: int = 0) -> Path:
        """Supervised start: from the built-in task's gold traces, or from ``sft.data``."""
        config = self.config
        if config.sft.data is not None:
            read_pairs(Path(config.sft.data))
        out, digest = self.layout.claim("sft", 0)
        start: Path
        task = self.parts.task
        if config.model.path is None:
            start = out / "start"
            if is_first_rank() and not (start / "config.json").exists():
                write_initial_model(task, start, config.seed)
            wait_for_rank_0(start / "config.json", (start / "config.json").exists)
        else:
            start = model_directory("model.path", config.model.path)
        stream = None
        if config.sft.data is None:
            stream = _gold_stream(task, config, config.seed)
        train_sft(
            start,
            config.sft,
            config.parallel,
            config.model,
            out,
            seed=config.seed,
            digest=digest,
            stream=stream,
            data=config.data,
        )
        return out / "model"

    def collect(self, iteration: int) -> dict:
        """A.1 and A.2: responses, and completions from every state, by the policy of the iteration before."""
        config = self.config.at(iteration)
        _one_process("collect")
        policy = self.layout.need(self.layout.policy(iteration - 1), "actor" if iteration > 1 else "sft", iteration - 1)
        out, digest = self.layout.claim("collect", iteration)
        done = sealed_summary(out)
        if done is not None:
            return done
        problems = self.parts.problems(iteration)
        reward = self.parts.reward(problems)
        with self.engines.open(policy, config) as engine:
            return collect(
                problems,
                engine,
                config.collect,
                out,
                encode=prompt_encoder(engine.tokenizer, self.config.data),
                verify=reward,
                seed=config.seed + 1000 * iteration,
                digest=digest,
            )

    def critic(self, iteration: int) -> dict:
        """A.3: the value model, on (state, MC)."""
        config = self.config.at(iteration)
        trees = self.directory.stage(iteration, "collect")
        self.layout.need(trees / "done.json", "collect", iteration)
        init: str | Path = config.critic.init
        if init == "actor":
            init = self.layout.policy(iteration - 1)
        elif init != "scratch":
            init = model_directory("critic.init", init)
        out, digest = self.layout.claim("critic", iteration)
        return train_critic(
            trees,
            init,
            self.layout.policy(iteration - 1),
            config.critic,
            config.parallel,
            config.model,
            out,
            seed=config.seed + 1000 * iteration,
            digest=digest,
        )

    def advantages(self, iteration: int) -> dict:
        """B.1: Q by the critic, advantages, unique actions, the gap filter."""
        config = self.config.at(iteration)
        trees = self.directory.stage(iteration, "collect")
        self.layout.need(trees / "done.json", "collect", iteration)
        needs_critic = config.advantages.source == "critic"
        critic = self.directory.stage(iteration, "critic")
        if needs_critic:
            self.layout.need(critic / "done.json", "critic", iteration)
        out, digest = self.layout.claim("advantages", iteration)
        done = sealed_summary(out, state.AdvantagesDone)
        if done is not None:
            return done
        if not needs_critic:
            _one_process("advantages, but from a critic,")
            return compute_advantages(trees, out, config.advantages, None, digest)
        k = read_state(critic / "done.json", state.CriticDone)["k"]
        with open_world(config.model, config.parallel) as world:
            fill = ValueFiller(critic / "model", config.advantages, config.model, config.parallel, world)
            summary = compute_advantages(trees, out, config.advantages, fill, digest, k, world)
        del fill
        free_memory()
        return summary

    def actor(self, iteration: int) -> dict:
        """B.2: reference log-probs once, then the squared loss. Only the actor is in memory."""
        config = self.config.at(iteration)
        trees = self.directory.stage(iteration, "advantages")
        self.layout.need(trees / "done.json", "advantages", iteration)
        done = read_state(trees / "done.json", state.AdvantagesDone)
        if not done["kept"]:
            raise NoContrastError(f"{trees}: {why_no_state(done)}")
        out, digest = self.layout.claim("actor", iteration)
        return train_actor(
            trees,
            self.layout.policy(iteration - 1),
            config.actor,
            config.parallel,
            config.model,
            out,
            seed=config.seed + 1000 * iteration,
            digest=digest,
            objective=self.parts.objective(),
            demonstrations=self._demonstrations(iteration),
            measured=self._measured(iteration),
        )

    def _measured(self, iteration: int) -> Measured | None:
        """How ``actor.eval_every`` measures policies: sampled in this process, a share of the problems; None: not."""
        config = self.config.at(iteration)
        if not config.actor.eval_every:
            return None
        problems = self.parts.validation()
        reward = self.parts.reward(problems)

        def rows(policy: Path, share: slice) -> list[dict[str, Any]]:
            engine = make_engine(EngineSettings(max_rows=config.engine.max_rows), policy, config.model)
            encode = prompt_encoder(engine.tokenizer, config.data)
            found = measure(problems[share], engine, config.evaluate, encode, reward, config.seed + share.start)
            del engine
            free_memory()
            return found

        return rows

    def _demonstrations(self, iteration: int) -> Demonstrations | None:
        """What ``actor.sft_weight`` mixes in, as for the supervised start but other batches; None: nothing."""
        config = self.config.at(iteration)
        seed = config.seed + 1000 * iteration
        if not config.actor.sft_weight:
            return None
        if config.sft.data is None:
            return _gold_stream(self.parts.task, config, seed)
        return data_stream(config.sft, self.layout.policy(iteration - 1), config.data, seed)[0]

    def evaluate(self, iteration: int) -> dict | None:
        """Greedy and sampled accuracy of the actor that ``iteration`` trained, on the held-out problems."""
        config = self.config.at(iteration)
        _one_process("evaluate")
        problems = self.parts.heldout()
        if not problems:
            return None
        policy = self.layout.trained(iteration)
        self.layout.need(policy, "actor" if iteration else "sft", iteration)
        out, digest = self.layout.claim("evaluate", iteration)
        if (out / "summary.json").exists():
            return read_state(out / "summary.json", state.Evaluated)
        reward = self.parts.reward(problems)
        with self.engines.open(policy, config) as engine:
            return evaluate(
                problems,
                engine,
                config.evaluate,
                out,
                encode=prompt_encoder(engine.tokenizer, self.config.data),
                verify=reward,
                seed=config.seed,
                digest=digest,
            )

    def choose(self, iteration: int, critic: Path) -> dict[str, Any]:
        """What ``critic`` chooses among the samples of an evaluation, and in a search with the same policy."""
        config, problems = self.config.at(iteration), self.parts.heldout()
        measured = self.directory.stage(iteration, "evaluate")
        with self.engines.open(self.layout.trained(iteration), config) as engine:
            return choose(problems, measured, critic, engine, config, self.parts.reward(problems))


class NoContrastError(InputError):
    """No state passes the gap filter: there is nothing to train the actor on."""


def why_no_state(counts: dict) -> str:
    return (
        f"no state passes the advantage gap: of {counts['states']} states {counts['all_wrong']} have only wrong "
        f"completions, {counts['all_right']} only right ones and {counts['single']} a single candidate step; "
        "the actor has nothing to learn from. Sample more, raise the temperature, or take problems that the policy "
        "solves sometimes"
    )


def _gold_stream(task: Task | None, config: Config, seed: int) -> Demonstrations:
    """Fresh gold traces of the task for every optimizer step, as token ids."""
    if task is None:
        raise InputError("sft.data: needed, since only a task brings its own gold traces")
    tokenizer = task.tokenizer()

    def batch(step: int) -> list[tuple[list[int], list[int]]]:
        pairs = task.gold(config.sft.batch_sequences, seed, step)
        prompts = tokenizer([p for p, _ in pairs], add_special_tokens=False)["input_ids"]
        responses = tokenizer([r for _, r in pairs], add_special_tokens=False)["input_ids"]
        return [(p, [*r, tokenizer.eos_token_id]) for p, r in zip(prompts, responses, strict=True)]

    return batch


def write_initial_model(task: Task, directory: Path, seed: int) -> None:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(task.model_config())
    temporary = directory.with_name(directory.name + ".tmp")
    model.save_pretrained(temporary)
    task.tokenizer().save_pretrained(temporary)
    os.replace(temporary, directory)


def _one_process(stage: str) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"{stage}: runs in one process; sft, critic, advantages and actor run under torchrun")
