"""Any model on a benchmark, outside of a run: what ``dapo-fast evaluate --model`` does."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dapo_fast.best_of import choose
from dapo_fast.config import Config
from dapo_fast.data.problems import load_problems
from dapo_fast.data.prompts import prompt_encoder
from dapo_fast.errors import InputError
from dapo_fast.evaluate import evaluate
from dapo_fast.logs import log_to
from dapo_fast.parts import HELDOUT, Parts
from dapo_fast.rollout.loading import check_critic, check_model_directory, check_prompts, load_tokenizer
from dapo_fast.rollout.server import serving
from dapo_fast.rundir import RunDirectory, read_state
from dapo_fast.snapshots import pinned
from dapo_fast.state import Claim


@dataclass(frozen=True)
class Measurement:
    """What is measured on what.

    Attributes:
        model: Hugging Face directory, or a model of the hub.
        benchmark: Whatever ``load_problems`` reads, or a built-in task, of which the held-out problems are taken.
        limit: Only the first so many problems.
        critic: One that chooses among samples; None: nothing is chosen.
    """

    model: str
    benchmark: str
    limit: int | None = None
    critic: str | None = None


def measure_model(what: Measurement, config: Config, out_dir: str | Path) -> dict[str, Any]:
    """Measure a model; a killed measurement goes on where it was.

    Returns:
        As ``evaluate``; with a critic also "chosen", as ``best_of.choose_by_critic``.

    Raises:
        InputError: bad input, or ``out_dir`` holds results of other settings.
    """
    directory = RunDirectory(out_dir, config)
    out = directory.path
    parts = Parts(config)
    if parts.task is not None:
        problems = parts.task.problems(what.limit or HELDOUT, config.seed, split="heldout")
    else:
        problems = load_problems(what.benchmark, limit=what.limit)
    reward = parts.reward(problems)
    what = replace(what, model=pinned("--model", what.model, _measured_before(out)))
    model = check_model_directory("--model", what.model)
    tokenizer = load_tokenizer(model)
    check_prompts(problems, tokenizer, config.data)
    critic = None
    if what.critic is not None:
        critic = check_critic("--critic", what.critic, tokenizer, trained=True)
        if not config.evaluate.samples:
            raise InputError("evaluate.samples 0: with --critic, set how many responses it chooses among")
    directory.lock()
    log_to(out)
    digest = directory.claim(out, _settings(what, config))
    with ExitStack() as stack:
        server = stack.enter_context(serving(config.engine, model, out / "server.log"))
        engine = parts.engine(model, config, server)
        stack.callback(getattr(engine, "close", lambda: None))
        summary = evaluate(
            problems,
            engine,
            config.evaluate,
            out,
            encode=prompt_encoder(engine.tokenizer, config.data),
            verify=reward,
            seed=config.seed,
            digest=digest,
        )
        if critic is None:
            return summary
        return summary | {"chosen": choose(problems, out, critic, engine, config, reward)}


def _measured_before(out: Path) -> str | None:
    """The model that ``out`` is claimed for, if it is: of one of the hub, with its commit."""
    claim = out / "stage.json"
    model = read_state(claim, Claim)["settings"].get("model") if claim.exists() else None
    return model if isinstance(model, str) else None


def _settings(what: Measurement, config: Config) -> dict[str, Any]:
    """What decides the result. A critic only reads what was sampled, so any number may, one after another."""
    settings = {key: value for key, value in asdict(what).items() if key != "critic"}
    settings |= {"stage": "evaluate", "seed": config.seed, "evaluate": config.evaluate.model_dump()}
    settings |= config.data.model_dump(include={"template", "system_prompt"})
    if config.engine.kind != "in_process":  # left out where it is, as in results from before there was another
        settings["engine"] = config.engine.kind
    return settings if config.reward is None else settings | {"reward": config.reward}
