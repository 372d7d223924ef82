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
from typing import NoReturn

from dapo_fast.api import DAPO
from dapo_fast.arguments import parse
from dapo_fast.config import Config, load_config
from dapo_fast.errors import InputError, NonFiniteError, from_outside, one_line
from dapo_fast.logs import log_to
from dapo_fast.rundir import check_run_path, saved_config
from dapo_fast.signals import handled
from dapo_fast.summaries import results_table, summary
from dapo_fast.train.torchrun import is_first_rank, tell_exit_code


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
    args = parse(argv)
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

    critic = check_model_directory("critic", run.critic_model if args.critic is None else args.critic)
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
        print(summary(args.command, result))
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
    measured = measure_model(Measurement(args.model, args.benchmark, args.limit, args.critic), config, args.out)
    print(summary("evaluate", measured))
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
    model = check_model_directory("model", args.model, weights=False)
    print(estimate(model, config, args.processes))
    lengths = Lengths(args.prompt_tokens, args.response_tokens, args.response_steps)
    print(iteration_cost(model, config, args.problems, lengths))
    print(plans(config, args.problems, lengths))
    return 0
