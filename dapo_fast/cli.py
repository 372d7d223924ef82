"""The command line: ``dapo-fast`` and ``python -m dapo_fast`` (which torchrun can start)."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from dapo_fast import __version__
from dapo_fast.api import DAPO
from dapo_fast.config import Config, load_config, preset_names
from dapo_fast.errors import InputError, NonFiniteError, from_outside, one_line
from dapo_fast.rundir import check_run_path, log_to, saved_config
from dapo_fast.signals import handled
from dapo_fast.train.torchrun import is_first_rank, tell_exit_code

_STAGES = {
    "sft": "supervised start, completion-only",
    "collect": "A.1 and A.2: sample responses, and completions from every state",
    "critic": "A.3: train the value model on Monte Carlo success rates",
    "advantages": "B.1: Q by the critic, step advantages, the gap filter",
    "actor": "B.2: train the policy with the squared loss",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # One line, as for every other wrong input: argparse would print the usage of all commands before it.
        self.exit(2, f"{self.prog}: {one_line(message)}; see {self.prog} --help\n")

    def format_help(self) -> str:
        if not any(action.dest == "overrides" for action in self._actions):
            return super().format_help()
        from dapo_fast.settings_help import settings_help

        return f"{super().format_help()}\n{settings_help()}"


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = _Parser(
        prog="dapo-fast",
        description="Direct Advantage-Based Policy Optimization (arXiv 2412.18279, not ByteDance's DAPO).",
    )
    parser.add_argument("--version", action="version", version=f"dapo-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    def settings(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--config", metavar="FILE", help="YAML file of settings")
        sub.add_argument("--preset", metavar="NAME", help=f"settings to start from: {', '.join(preset_names())}")
        sub.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="settings over both")

    sub = command("run", "the whole of Algorithm 1, iterated, in one run directory; resumes where it was killed")
    sub.add_argument("run", metavar="RUN", help="run directory")
    settings(sub)
    for name, text in _STAGES.items():
        sub = command(name, text)
        sub.add_argument("run", metavar="RUN", help="run directory")
        sub.add_argument("--iteration", type=int, default=0 if name == "sft" else 1, metavar="N", help="from 1 on")
        settings(sub)
    sub = command("evaluate", "greedy and sampled accuracy, of a run's policy or of any model on a benchmark")
    sub.add_argument("run", nargs="?", metavar="RUN", help="run directory; without it --model, --benchmark and --out")
    newest = "policy after iteration N; 0: the base; without it the newest that is trained"
    sub.add_argument("--iteration", type=int, metavar="N", help=newest)
    sub.add_argument("--model", metavar="DIR", help="Hugging Face model directory")
    sub.add_argument("--benchmark", metavar="NAME|PATH", help="benchmark or task by name, hub id, file")
    sub.add_argument("--out", metavar="DIR", help="where results go; a second run resumes them")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N problems")
    choose = "also choose among the evaluate.samples responses by this critic, by majority and by both; and beam search"
    sub.add_argument("--critic", metavar="DIR", help=choose)
    settings(sub)
    sub = command("estimate", "the dry run: memory a rank will need and an iteration's work; loads no weights")
    sub.add_argument("model", metavar="DIR", help="directory with the model's config.json")
    sub.add_argument("--processes", type=int, default=1, metavar="N", help="ranks")
    sub.add_argument("--problems", type=int, metavar="N", help="problems of an iteration (default: data.limit or 1000)")
    for name, tokens in (("prompt", 200), ("response", 400)):
        sub.add_argument(f"--{name}-tokens", type=int, default=tokens, metavar="N", help=f"mean, default {tokens}")
    sub.add_argument("--response-steps", type=int, default=12, metavar="N", help="mean, default 12")
    settings(sub)
    sub = command("serve-values", "step values of given responses over HTTP, by a run's newest critic")
    sub.add_argument("run", metavar="RUN", help="run directory")
    sub.add_argument("--critic", metavar="DIR", help="another critic of the same policy")
    sub.add_argument("--host", default="127.0.0.1", metavar="NAME", help="default 127.0.0.1: this machine alone")
    sub.add_argument("--port", type=int, default=8001, metavar="N", help="default 8001; 0: any that is free")
    settings(sub)
    command("env", "versions, devices and cores: what a report of a problem should begin with")
    sub = command("report", "one self-contained HTML page of a run, and PNGs; or a page of two runs side by side")
    sub.add_argument("run", metavar="RUN", help="run directory")
    sub.add_argument("other", nargs="?", metavar="OTHER", help="another run, to compare with")
    return parser


def _config(args: argparse.Namespace, base: list[str] | None = None) -> Config | None:
    if args.config is None and args.preset is None and not args.overrides and not base:
        return None
    return load_config(args.config, args.preset, [*(base or []), *args.overrides])


def _open_run(args: argparse.Namespace) -> DAPO:
    check_run_path(args.run)
    saved = Path(args.run) / "config.yaml"
    if args.config is None and args.preset is None and saved.exists():
        return DAPO(saved_config(saved, args.overrides), args.run)
    return DAPO(_config(args), args.run)


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when done, 1 when training diverged, 2 for bad input, 3 when ``run`` ended early, 130 when interrupted.

    Raises:
        SystemExit: 128 + the signal after SIGTERM, or after either signal in training, which saves the step first.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an encoding that has no β must not end a run
            stream.reconfigure(errors="backslashreplace")
    args = _parse(argv)
    if "" not in sys.path:
        sys.path.append("")  # the working directory may hold a module:function; last, so that it shadows nothing
    code = 1
    # Ranks have nothing to stop on the way out, and one that waits for a dead peer must die of the signal itself.
    numbers = () if "RANK" in os.environ else (signal.SIGTERM,)
    try:
        with handled(numbers, _terminated):
            code = _run_command(args)
        return code
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        raise
    finally:
        tell_exit_code(code)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    # As an exception, so that a sampling server and sandboxes are stopped on the way out.
    raise SystemExit(128 + number)


def _run_command(args: argparse.Namespace) -> int:
    try:
        return _dispatch(args)
    except InputError as error:
        return _tell(args, str(error), 2)
    except NonFiniteError as error:
        return _tell(args, str(error), 1)
    except KeyboardInterrupt:
        return _tell(args, "interrupted; the same command resumes", 130)
    except Exception as error:
        place = next(filter(None, (getattr(args, name, None) for name in ("run", "out", "model"))), args.command)
        message = from_outside(error, place)
        if message is None:
            raise
        return _tell(args, message, 2)


def _tell(args: argparse.Namespace, message: str, code: int) -> int:
    rank = os.environ.get("RANK")
    where = f" (rank {one_line(rank)[:9]})" if rank else ""
    print(f"dapo-fast {args.command}{where}: {one_line(message)}", file=sys.stderr)
    return code


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = build_parser()
    # Overrides may follow options: argparse takes a late positional only this way.
    args, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    if unknown or (rest and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    if args.command in _STAGES and (args.iteration != 0 if args.command == "sft" else args.iteration < 1):
        known = "comes before the first" if args.command == "sft" else "begins with 1"
        parser.error(f"--iteration {args.iteration}: {args.command} {known}")
    if args.command == "evaluate":
        if args.run and "=" in args.run and not os.path.isdir(args.run):
            args.overrides, args.run = [args.run, *args.overrides], None
        given = [f"--{name}" for name in ("model", "benchmark", "out", "limit") if getattr(args, name) is not None]
        if args.run and given:
            parser.error(f"{given[0]} is for a model without a RUN; a run measures its own held-out problems")
    return args


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _check_launcher() -> None:
    """What torchrun, or another launcher, says of this process must be numbers, and where they meet an address."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        text = os.environ.get(name)
        if text is not None and not _is_number(text):
            raise InputError(f"environment variable {name}: {text!r} is not a number")
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or size is None:
        return
    if int(rank) >= int(size):
        raise InputError(f"environment variables: RANK {rank} is not below WORLD_SIZE {size}")
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not address or not (_is_number(port) and 0 < int(port) < 2**16):
        raise InputError(
            "environment variables: with RANK and WORLD_SIZE, MASTER_ADDR and MASTER_PORT say where to meet, not "
            f"{address!r} and {port!r}"
        )


def _dispatch(args: argparse.Namespace) -> int:
    _check_launcher()
    quiet_libraries()
    if args.command == "env":
        from dapo_fast.environment import describe

        print(describe())
        return 0
    if args.command == "estimate":
        return _estimate(args)
    if args.command == "evaluate" and args.run is None:
        return _evaluate_model(args)
    if args.command == "report":
        from dapo_fast.report import write_comparison, write_report

        if args.other is not None and "=" in args.other and not Path(args.other).exists():
            raise InputError(f"{args.other}: report takes no settings, only the directory of another run")

        log_to(None)
        run = check_run_path(args.run)
        print(write_report(run) if args.other is None else write_comparison(run, check_run_path(args.other)))
        return 0
    run = _open_run(args)
    if args.command == "serve-values":
        return _serve_values(args, run)
    with run.locked():
        return _work(args, run)


def _serve_values(args: argparse.Namespace, run: DAPO) -> int:
    from dapo_fast.rollout.loading import check_model_directory
    from dapo_fast.step_values import StepValues
    from dapo_fast.value_server import value_server

    critic = run.critic_model if args.critic is None else Path(args.critic)
    check_model_directory("critic", critic)
    server = value_server(StepValues.of(critic, run.config), str(critic), args.host, args.port)
    print(f"step values at http://{args.host}:{server.server_address[1]}/values", flush=True)
    with server:
        server.serve_forever()
    return 0


def _work(args: argparse.Namespace, run: DAPO) -> int:
    """A command in a run directory that this process holds."""
    first = is_first_rank()
    log_to(run.directory if first else None, quiet=not first)

    from dapo_fast.pipeline import ChildFailedError
    from dapo_fast.tasks import TASKS

    if run.config.data.task in TASKS:
        # Kernels of a model this small last microseconds: threads gain little, and lose all on a core that is busy.
        # With one, the same seed also gives the same bits whatever the number of cores.
        import torch

        torch.set_num_threads(1)

    arguments = () if args.command in ("run", "sft") else (args.iteration,)
    if args.command == "evaluate":
        arguments = (args.iteration, args.critic)
    try:
        result = getattr(run, args.command)(*arguments)
    except ChildFailedError as error:
        return _tell(args, str(error), error.code)
    if args.command == "run":
        print(results_table(result))
        print(f"report: {run.directory / 'report.html'}")
        return 3 if any(row.get("stopped") for row in result) else 0
    if first and isinstance(result, dict):
        print(_summary(args.command, result))
    return 0


def quiet_libraries() -> None:
    """Keep what other libraries say at loading out of the log."""
    # What these say at import and at loading is about hardware and heads that are not in use here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _evaluate_model(args: argparse.Namespace) -> int:
    missing = [name for name in ("model", "benchmark", "out") if getattr(args, name) is None]
    if missing:
        raise InputError(f"evaluate: name a RUN, or all of --model, --benchmark and --out (missing: --{missing[0]})")
    from dapo_fast.measure import Measurement, measure_model
    from dapo_fast.tasks import TASKS

    source = "data.task" if args.benchmark in TASKS else "data.problems"
    config = _config(args, [f"model.path={json.dumps(args.model)}", f"{source}={json.dumps(args.benchmark)}"])
    assert config is not None
    summary = measure_model(Measurement(args.model, args.benchmark, args.limit, args.critic), config, args.out)
    print(_summary("evaluate", summary))
    return 0


def _estimate(args: argparse.Namespace) -> int:
    from dapo_fast.rollout.loading import check_model_directory
    from dapo_fast.train.cost import Lengths, iteration_cost, plans
    from dapo_fast.train.memory import estimate

    for name in ("processes", "problems", "prompt_tokens", "response_tokens", "response_steps"):
        value = getattr(args, name)
        if value is not None and not 1 <= value < 2**53:
            raise InputError(f"--{name.replace('_', '-')} {value}: at least 1, and a number that can be counted to")
    config = _config(args, [f"model.path={json.dumps(args.model)}", "data.problems=none"])
    assert config is not None
    check_model_directory("model", Path(args.model), weights=False)
    print(estimate(args.model, config, args.processes))
    lengths = Lengths(args.prompt_tokens, args.response_tokens, args.response_steps)
    print(iteration_cost(args.model, config, args.problems, lengths))
    print(plans(config, args.problems, lengths))
    return 0


def _accuracy(value: dict[str, Any] | None) -> str:
    if not value:
        return "not measured"
    return f"{value['accuracy']:6.1%} [{value['low']:.1%}, {value['high']:.1%}]"


def results_table(rows: list[dict]) -> str:
    """Held-out accuracy before and after each iteration, with 95% Wilson intervals, as text."""
    lines = [f"{'policy':<14} {'greedy':<24} {'sampled':<24} {'pairs':>7}  note"]
    for row in rows:
        name = "base" if row["iteration"] == 0 else f"iteration {row['iteration']}"
        pairs = row.get("advantages", {}).get("pairs", "")
        note = (
            ""
            if row.get("accepted", True)
            else "no state with contrast: nothing trained"
            if row.get("stopped")
            else "worse: previous policy kept"
        )
        lines.append(
            f"{name:<14} {_accuracy(row.get('greedy')):<24} {_accuracy(row.get('sampled')):<24} {pairs:>7}  {note}"
        )
    return "\n".join(line.rstrip() for line in lines)


def _summary(command: str, result: dict) -> str:
    if "greedy" in result:
        table = results_table([{"iteration": 0, **result}]).replace("base ", "model")
        return "\n".join([table, *_chosen(result.get("chosen", {}))])
    pieces = [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in result.items() if _plain(v)]
    return f"{command}: " + " ".join(pieces)


def _chosen(chosen: dict[str, Any]) -> list[str]:
    names = {"best_of": "best by the critic", "majority": "majority", "weighted": "majority weighted by the critic"}
    names["beam"] = "steps by the critic (beams)"
    known = {rule: name for rule, name in names.items() if rule in chosen}
    return [f"of {chosen['samples']}, {name:<31} {_accuracy(chosen[rule])}" for rule, name in known.items()]


def _plain(value: object) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool)
