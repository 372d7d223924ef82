"""Algorithm 1, stage by stage: each function does one stage of one iteration in a run directory, and resumes it.

A stage loads only what it needs, binds its directory to the settings that decide its result, and leaves at once when
it is done already. ``run`` is the whole loop.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from dapo_fast import state
from dapo_fast.advantages import compute_advantages
from dapo_fast.config import Config
from dapo_fast.data.problems import Problem
from dapo_fast.data.prompts import format_prompt
from dapo_fast.data.store import sealed_summary
from dapo_fast.errors import InputError
from dapo_fast.evaluate import evaluate
from dapo_fast.events import Callback, Event, telling
from dapo_fast.models.loading import resolve_device
from dapo_fast.parts import Parts
from dapo_fast.report import write_report
from dapo_fast.rollout.collect import collect
from dapo_fast.rollout.engine import Engine
from dapo_fast.rollout.http import PROBE
from dapo_fast.rollout.loading import check_model_directory, check_prompts, load_tokenizer
from dapo_fast.rollout.server import serving
from dapo_fast.rundir import RunDirectory, read_rows, read_state, write_json
from dapo_fast.tasks import Task
from dapo_fast.train.actor import train_actor
from dapo_fast.train.critic import ValueFiller, train_critic
from dapo_fast.train.memory import estimate, rank_memory_gib
from dapo_fast.train.parallel import open_world
from dapo_fast.train.preflight import check_training
from dapo_fast.train.sft import read_pairs, train_sft
from dapo_fast.train.torchrun import is_first_rank, torchrun

log = logging.getLogger("dapo_fast.pipeline")

RESULTS = "results.json"
STAGES = ("sft", "collect", "critic", "advantages", "actor", "evaluate")


class Pipeline:
    """The stages of one run directory."""

    def __init__(
        self,
        directory: RunDirectory,
        given: Mapping[str, Any] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Take a run, objects that a program gave by the names that they have in its settings, and whom to tell."""
        self.directory = directory
        self.config = directory.config
        self.parts = Parts(directory.config, given)
        self._callbacks = callbacks
        self._lent = ExitStack()  # the engine in use, and what it stands for
        self._lent_for: tuple[Path, dict] | None = None
        self._engine_lent: Engine | None = None
        self._keeps = False  # whether the next stage may want the same engine

    # Where things are ----------------------------------------------------------------------------------------

    def policy(self, iteration: int) -> Path:
        """The policy after ``iteration`` (0: the one the run starts from)."""
        if iteration == 0:
            return self.directory.stage(0, "sft") / "model" if self.has_sft() else Path(self._model_path())
        if not self._accepted(iteration):
            return self.policy(iteration - 1)
        return self.directory.stage(iteration, "actor") / "model"

    def newest(self) -> int:
        """The last iteration whose policy is trained, accepted or not; 0 where none is."""
        numbers = range(self.config.iterations, 0, -1)
        return next((i for i in numbers if (self.directory.stage(i, "actor") / "done.json").exists()), 0)

    def has_sft(self) -> bool:
        """Whether a supervised start comes before iteration 1."""
        return bool(self.config.sft.steps) or self.config.sft.data is not None

    def _model_path(self) -> str:
        if self.config.model.path is None:
            raise InputError("model.path: not set, and sft.steps is 0: there is no policy to start from")
        return self.config.model.path

    def _need(self, path: Path, stage: str, iteration: int) -> Path:
        if not path.exists():
            command = f"dapo-fast {stage} {self.directory.path}" + (f" --iteration {iteration}" if iteration else "")
            raise InputError(f"{path}: missing; run `{command}` first")
        return path

    # What decides a stage's result: its own settings and the digest of what it reads -------------------------

    def _settings(self, stage: str, iteration: int) -> dict[str, Any]:
        config = self.config.at(iteration)
        common = {"stage": stage, "seed": config.seed}
        # Left out where there is none, as in runs from before there were any.
        reward = {} if config.reward is None else {"reward": config.reward}
        if stage == "sft":
            own = {"model": config.model.model_dump(), "task": config.data.task, "template": config.data.template}
            if config.data.system_prompt is not None:
                own["system_prompt"] = config.data.system_prompt
            return common | own | {"sft": config.sft.model_dump()}
        if stage == "collect":
            data = config.data.model_dump(exclude={"heldout", "heldout_limit"})
            own = {"policy": self._digest_of(self.policy(iteration - 1)), "data": data, "engine": config.engine.kind}
            return common | own | reward | {"iteration": iteration, "collect": config.collect.model_dump()}
        trees = self._upstream(self.directory.stage(iteration, "collect")) if iteration else ""
        if stage == "critic":
            return common | {"trees": trees, "critic": config.critic.model_dump(), "dtype": config.model.dtype}
        if stage == "advantages":
            settings = common | {"trees": trees, "advantages": config.advantages.model_dump()}
            if config.advantages.source == "critic":
                settings["critic"] = self._upstream(self.directory.stage(iteration, "critic"))
            return settings
        if stage == "actor":
            own = {"policy": self._digest_of(self.policy(iteration - 1)), "actor": config.actor.model_dump()}
            own["advantages"] = self._upstream(self.directory.stage(iteration, "advantages"))
            if config.objective is not None:
                own["objective"] = config.objective
            return common | own | {"dtype": config.model.dtype}
        data = config.data.model_dump(include={"task", "heldout", "heldout_limit", "template", "system_prompt"})
        own = {"policy": self._digest_of(self._trained(iteration)), "data": data, "engine": config.engine.kind}
        return common | own | reward | {"evaluate": config.evaluate.model_dump()}

    def check_settings(self, until: tuple[str, int] | None = None) -> None:
        """Compare the settings with those of every stage that has begun, before anything is written.

        Args:
            until: A stage and its iteration: only with its own and those of the stages that it may build on.

        Raises:
            InputError: names the stage and the keys that differ.
        """
        for iteration in range(self.config.iterations + 1):
            for stage in STAGES[1:] if iteration else ("sft", "evaluate"):
                last = (stage, iteration) == until
                directory = self.directory.stage(iteration, stage)
                builds = until is None or last or stage != "evaluate"  # nothing builds on a measurement
                if builds and (directory / "stage.json").exists():  # else what it reads may not be there either
                    self.directory.check(directory, self._settings(stage, iteration))
                if last:
                    return

    def _claim(self, stage: str, iteration: int) -> tuple[Path, str]:
        directory, settings = self.directory.stage(iteration, stage), self._settings(stage, iteration)
        if is_first_rank():
            self.directory.claim(directory, settings)
        # A claim of other settings may lie there until rank 0 replaces it.
        _barrier_free_wait(directory / "stage.json", lambda: self.directory.changed(directory, settings) == [])
        return directory, self._upstream(directory)

    def _upstream(self, directory: Path) -> str:
        return str(read_state(directory / "stage.json", state.Claim)["digest"])

    def _digest_of(self, policy: Path) -> str:
        return self._upstream(policy.parent) if (policy.parent / "stage.json").exists() else f"model {policy}"

    def _trained(self, iteration: int) -> Path:
        """The policy that ``iteration`` trained, accepted or not."""
        return self.directory.stage(iteration, "actor") / "model" if iteration else self.policy(0)

    # Before anything is done ---------------------------------------------------------------------------------

    def check_inputs(self) -> None:
        """Read every problem file and model directory named by the config, before any work.

        Raises:
            InputError: names the one that is wrong, or what the run as a whole would lack.
        """
        configs = [self.config.at(i) for i in range(self.config.iterations + 1)]
        heldout = self.parts.heldout()
        if heldout and any(c.engine.kind == "http" and c.engine.command is None for c in configs):
            raise InputError(
                "engine.command: needed to measure held-out problems, since each policy that is trained must be "
                "served; without data.heldout, one iteration can sample from a server started by hand"
            )
        read = [heldout] if heldout else []
        for iteration, config in enumerate(configs[1:], 1):
            if iteration == 1 or config.data != configs[iteration - 1].data:
                read.append(self.parts.problems(iteration))
        if self.config.model.path is not None or not self.has_sft():
            check_model_directory("model.path", Path(self._model_path()))
        if self.config.sft.data is not None:
            read_pairs(Path(self.config.sft.data))
        tokenizer = self.parts.tokenizer()
        for problems in read:
            self.parts.reward(problems)
            check_prompts(problems, tokenizer, self.config.data)
        self._check_ranks()
        for config in configs[1:]:
            if config.critic.init not in ("actor", "scratch") and config.advantages.source == "critic":
                self._check_critic_init(Path(config.critic.init), tokenizer)
        self._check_training(configs[1:])
        tracker = self.config.parallel.tracker
        if tracker != "none" and importlib.util.find_spec(tracker) is None:
            raise InputError(f"parallel.tracker {tracker}: not installed (pip install {tracker})")

    def _check_ranks(self) -> None:
        """Ranks are processes of their own: what they need must be there for anybody to import."""
        alone = all(self.config.at(i).parallel.processes == 1 for i in range(self.config.iterations + 1))
        for setting, name in (("objective", self.config.objective), ("data.task", self.config.data.task)):
            if name and name.startswith("<") and not alone:
                raise InputError(f"{setting} {name}: the ranks of parallel.processes cannot import it")
        self.parts.objective()

    def _check_training(self, configs: Sequence[Config]) -> None:
        """What the iterations train can be built; those that change nothing of it are not tried again."""
        before: list[Any] = []
        path = self.config.model.path
        for config in configs:
            parts = [config.parallel, config.actor, config.critic, config.advantages]
            if parts != before:
                check_training(config, Path(path) if path is not None else None)
            before = parts

    def _warn_of_memory(self) -> None:
        """Say, before hours of sampling, that training what comes of it will not fit."""
        if self.config.model.path is None:
            return  # a built-in task's model is tiny
        said: set[str] = set()
        for config in [self.config.at(i) for i in range(1, self.config.iterations + 1)]:
            device, processes = resolve_device(config.model.device), config.parallel.processes
            room = rank_memory_gib(device, processes)
            said |= set(estimate(self._model_path(), config, processes, room, device.type).warnings())
        for line in sorted(said):
            log.warning("%s", line)

    def _check_critic_init(self, path: Path, ours: PreTrainedTokenizerBase) -> None:
        """A critic reads the policy's tokens: it must have been trained on the same vocabulary."""
        check_model_directory("critic.init", path)
        if load_tokenizer(path)(PROBE)["input_ids"] != ours(PROBE)["input_ids"]:
            raise InputError(
                f"critic.init {path}: its tokenizer is not the policy's, whose tokens it would have to read"
            )

    @contextmanager
    def _engine(self, policy: Path, config: Config) -> Iterator[Engine]:
        """What samples from ``policy``: the one that the stage before used, if it is the same."""
        wanted = (policy, {"engine": config.engine.model_dump(), "model": config.model.model_dump()})
        if wanted != self._lent_for:
            self._release()
            # In the run's own directory, whatever the stage: a killed run's server is found there by the next.
            server = self._lent.enter_context(serving(config.engine, policy, self.directory.path / "server.log"))
            self._engine_lent = self.parts.engine(policy, config, server)
            self._lent.callback(getattr(self._engine_lent, "close", lambda: None))
            self._lent_for = wanted
        try:
            yield self._engine_lent
        finally:
            if not self._keeps:
                self._release()

    def _release(self) -> None:
        """Let go of the engine: training wants the memory."""
        self._engine_lent = self._lent_for = None
        self._lent.close()
        _free_memory()

    def _encode(self, engine: Engine) -> Callable[[Problem], list[int]]:
        data = self.config.data
        return lambda problem: format_prompt(problem, engine.tokenizer, data.template, data.system_prompt)

    # The stages ----------------------------------------------------------------------------------------------

    def sft(self, iteration: int = 0) -> Path:
        """Supervised start: from the built-in task's gold traces, or from ``sft.data``."""
        config = self.config
        if config.sft.data is not None:
            read_pairs(Path(config.sft.data))
        out, digest = self._claim("sft", 0)
        start: Path
        task = self.parts.task
        if config.model.path is None:
            start = out / "start"
            if is_first_rank() and not (start / "config.json").exists():
                _write_initial_model(task, start, config.seed)
            _barrier_free_wait(start / "config.json", (start / "config.json").exists)
        else:
            start = Path(config.model.path)
        stream = None
        if config.sft.data is None:
            if task is None:
                raise InputError("sft.data: needed, since only a task brings its own gold traces")
            stream = _gold_stream(task, config)
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
        policy = self._need(self.policy(iteration - 1), "actor" if iteration > 1 else "sft", iteration - 1)
        out, digest = self._claim("collect", iteration)
        done = sealed_summary(out)
        if done is not None:
            return done
        problems = self.parts.problems(iteration)
        reward = self.parts.reward(problems)
        with self._engine(policy, config) as engine:
            return collect(
                problems,
                engine,
                config.collect,
                out,
                encode=self._encode(engine),
                verify=reward,
                seed=config.seed + 1000 * iteration,
                digest=digest,
            )

    def critic(self, iteration: int) -> dict:
        """A.3: the value model, on (state, MC)."""
        config = self.config.at(iteration)
        trees = self.directory.stage(iteration, "collect")
        self._need(trees / "done.json", "collect", iteration)
        init: str | Path = config.critic.init
        if init == "actor":
            init = self.policy(iteration - 1)
        out, digest = self._claim("critic", iteration)
        return train_critic(
            trees,
            init,
            self.policy(iteration - 1),
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
        self._need(trees / "done.json", "collect", iteration)
        needs_critic = config.advantages.source == "critic"
        critic = self.directory.stage(iteration, "critic")
        if needs_critic:
            self._need(critic / "done.json", "critic", iteration)
        out, digest = self._claim("advantages", iteration)
        done = sealed_summary(out, state.AdvantagesDone)
        if done is not None:
            return done
        if not needs_critic:
            _one_process("advantages, but from a critic,")
            return compute_advantages(trees, out, config.advantages, None, digest)
        k = read_state(critic / "done.json", state.CriticDone)["k"]
        with open_world(config.model, config.parallel) as world:
            fill = ValueFiller(critic / "model", config.model, config.parallel, world, config.advantages.pack_tokens)
            summary = compute_advantages(trees, out, config.advantages, fill, digest, k, world)
        del fill
        _free_memory()
        return summary

    def actor(self, iteration: int) -> dict:
        """B.2: reference log-probs once, then the squared loss. Only the actor is in memory."""
        config = self.config.at(iteration)
        trees = self.directory.stage(iteration, "advantages")
        self._need(trees / "done.json", "advantages", iteration)
        done = read_state(trees / "done.json", state.AdvantagesDone)
        if not done["kept"]:
            raise NoContrastError(f"{trees}: {_why_no_state(done)}")
        out, digest = self._claim("actor", iteration)
        return train_actor(
            trees,
            self.policy(iteration - 1),
            config.actor,
            config.parallel,
            config.model,
            out,
            seed=config.seed + 1000 * iteration,
            digest=digest,
            objective=self.parts.objective(),
        )

    def evaluate(self, iteration: int) -> dict | None:
        """Greedy and sampled accuracy of the actor that ``iteration`` trained, on the held-out problems."""
        config = self.config.at(iteration)
        _one_process("evaluate")
        problems = self.parts.heldout()
        if not problems:
            return None
        policy = self._trained(iteration)
        self._need(policy, "actor" if iteration else "sft", iteration)
        out, digest = self._claim("evaluate", iteration)
        if (out / "summary.json").exists():
            return read_state(out / "summary.json", state.Evaluated)
        reward = self.parts.reward(problems)
        with self._engine(policy, config) as engine:
            return evaluate(
                problems,
                engine,
                config.evaluate,
                out,
                encode=self._encode(engine),
                verify=reward,
                seed=config.seed,
                digest=digest,
            )

    # All of it -----------------------------------------------------------------------------------------------

    def run(self) -> list[dict]:
        """Every stage of every iteration. Returns the rows of the results table."""
        with self.lending():
            rows = [self.start()]
            for iteration in range(1, self.config.iterations + 1):
                rows.append(self.advance(iteration))
                if rows[-1].get("stopped"):
                    break
        write_json(self.directory.path / RESULTS, rows)
        write_report(self.directory.path)
        return rows

    @contextmanager
    def lending(self) -> Iterator[None]:
        """Within the block an engine stays for the next stage, which may sample from the same policy."""
        self._keeps = True
        try:
            yield
        finally:
            self._keeps = False
            self._release()

    def start(self) -> dict:
        """What comes before iteration 1, after everything has been checked. Returns its row of the results table."""
        self.check_settings()
        self.check_inputs()
        self._warn_of_memory()
        self.directory.save_config()
        if self.has_sft():
            self.perform("sft", 0)
        return self._recorded({"iteration": 0, "accepted": True, **(self.perform("evaluate", 0) or {})})

    def advance(self, iteration: int) -> dict:
        """``iterate``, recorded in the results; says so where there was nothing to train on."""
        row = self._recorded(self.iterate(iteration))
        if row.get("stopped"):
            log.warning("iteration %d: %s; the policy stays as it was", iteration, row["stopped"])
        return row

    def _recorded(self, row: dict) -> dict:
        """``row``, which is in results.json from now on; those of other iterations stay."""
        path = self.directory.path / RESULTS
        before = read_rows(path) if path.exists() else []
        others = [other for other in before if other["iteration"] != row["iteration"]]
        write_json(path, sorted([*others, row], key=lambda one: one["iteration"]))
        return row

    def iterate(self, iteration: int) -> dict:
        """Every stage of ``iteration``, and whether its policy is kept. Returns its row of the results table."""
        row: dict[str, Any] = {"iteration": iteration}
        row["collect"] = self.perform("collect", iteration)
        if self.config.at(iteration).advantages.source == "critic":
            row["critic"] = self.perform("critic", iteration)
        row["advantages"] = self.perform("advantages", iteration)
        try:
            self.perform("actor", iteration)
        except NoContrastError as error:
            return row | {"accepted": False, "stopped": str(error)}
        measured = self.perform("evaluate", iteration)
        return row | (measured or {}) | self._decide(iteration, measured)

    def _decide(self, iteration: int, measured: dict | None) -> dict:
        """Keep the new policy, unless it is worse than the one before by more than the intervals allow."""
        decision: dict[str, Any] = {"accepted": True, "reason": "not measured: no held-out problems"}
        previous_iteration = next(i for i in reversed(range(iteration)) if i == 0 or self._accepted(i))
        path = self.directory.stage(previous_iteration, "evaluate") / "summary.json"
        if measured is not None and not path.exists():
            decision["reason"] = f"the policy of iteration {previous_iteration} was not measured"
        elif measured is not None:
            previous = read_state(path, state.Evaluated)
            # The objective is the expected reward of the policy, so sampled accuracy decides where it was measured.
            mode = "sampled" if "sampled" in measured and "sampled" in previous else "greedy"
            new, old = measured[mode], previous[mode]
            worse = new["high"] < old["low"]
            reason = f"{mode} accuracy {_interval(new)} after iteration {iteration}, {_interval(old)} before"
            decision = {"accepted": not (worse and self.config.keep_best), "reason": reason}
            if worse:
                fate = "the previous policy is kept" if self.config.keep_best else "it is kept all the same"
                log.warning("iteration %d made the policy worse: %s; %s", iteration, reason, fate)
        write_json(self.directory.path / f"iter{iteration}" / "decision.json", decision)
        return decision

    def _accepted(self, iteration: int) -> bool:
        decision = self.directory.path / f"iter{iteration}" / "decision.json"
        return not decision.exists() or bool(read_state(decision, state.Decision)["accepted"])

    def perform(self, name: str, iteration: int) -> Any:
        """Run a stage here, or under torchrun where training asks for several processes."""
        log.info("%s%s", name, f", iteration {iteration}" if name != "sft" else "")
        if name not in ("evaluate", "collect"):
            self._release()
        config = self.config.at(iteration)
        processes = config.parallel.processes
        here = name in ("collect", "evaluate") or (name == "advantages" and config.advantages.source != "critic")
        if processes == 1 or here:
            result = self.do(name, iteration)
            _free_memory()
            return result
        if name == "actor":
            done = read_state(self.directory.stage(iteration, "advantages") / "done.json", state.AdvantagesDone)
            if not done["kept"]:
                raise NoContrastError(_why_no_state(done))
        words = [name, str(self.directory.path), "--iteration", str(iteration)]
        code = torchrun(words, processes, self.directory.held())
        if code:
            raise ChildFailedError(f"{name}: ended with exit code {code}; its messages are above", code)
        directory = self.directory.stage(iteration, name)
        done = sealed_summary(directory) if name == "advantages" else read_state(directory / "done.json", state.Done)
        self._tell_end(name, iteration, done)
        return done

    def do(self, name: str, iteration: int) -> Any:
        """Run a stage in this process, and tell of it."""
        with telling(self._callbacks, name, iteration):
            result = getattr(self, name)(iteration)
        self._tell_end(name, iteration, result)
        return result

    def _tell_end(self, name: str, iteration: int, result: Any) -> None:
        for callback in self._callbacks if result is not None and is_first_rank() else ():
            callback(Event(name, iteration, None, dict(result) if isinstance(result, dict) else {}))


def _interval(measured: dict) -> str:
    return f"{measured['accuracy']:.1%} [{measured['low']:.1%}, {measured['high']:.1%}]"


class NoContrastError(InputError):
    """No state passes the gap filter: there is nothing to train the actor on."""


class ChildFailedError(RuntimeError):
    """A stage that ran under torchrun failed."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def _why_no_state(counts: dict) -> str:
    return (
        f"no state passes the advantage gap: of {counts['states']} states {counts['all_wrong']} have only wrong "
        f"completions, {counts['all_right']} only right ones and {counts['single']} a single candidate step; "
        "the actor has nothing to learn from. Sample more, raise the temperature, or take problems that the policy "
        "solves sometimes"
    )


def _gold_stream(task: Task, config: Config) -> Callable[[int], list[tuple[list[int], list[int]]]]:
    """Fresh gold traces of the task for every optimizer step, as token ids."""
    tokenizer = task.tokenizer()

    def batch(step: int) -> list[tuple[list[int], list[int]]]:
        pairs = task.gold(config.sft.batch_sequences, config.seed, step)
        prompts = tokenizer([p for p, _ in pairs], add_special_tokens=False)["input_ids"]
        responses = tokenizer([r for _, r in pairs], add_special_tokens=False)["input_ids"]
        return [(p, [*r, tokenizer.eos_token_id]) for p, r in zip(prompts, responses, strict=True)]

    return batch


def _write_initial_model(task: Task, directory: Path, seed: int) -> None:
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


def _barrier_free_wait(path: Path, there: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a file that rank 0 writes before there is a process group."""
    deadline = time.monotonic() + seconds
    while not there():
        if time.monotonic() > deadline:
            raise InputError(f"{path}: rank 0 did not write it within {seconds:.0f} s; see its message")
        time.sleep(0.05)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
