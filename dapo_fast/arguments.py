"""What the command line takes: the parser of every command, and what argparse cannot check."""

from __future__ import annotations

import argparse
import os
from typing import NoReturn

from dapo_fast import __version__
from dapo_fast.config import preset_names
from dapo_fast.errors import one_line

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
    sub.add_argument("--model", metavar="MODEL", help="directory, or org/name[@revision] of the hub")
    sub.add_argument("--benchmark", metavar="NAME|PATH", help="benchmark or task by name, hub id, file")
    sub.add_argument("--out", metavar="DIR", help="where results go; a second run resumes them")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N problems")
    choose = "also choose among the evaluate.samples responses by this critic, by majority and by both; and beam search"
    sub.add_argument("--critic", metavar="MODEL", help=choose)
    settings(sub)
    sub = command("estimate", "the dry run: memory a rank will need and an iteration's work; loads no weights")
    sub.add_argument("model", metavar="MODEL", help="directory with config.json, or org/name[@revision] of the hub")
    sub.add_argument("--processes", type=int, default=1, metavar="N", help="ranks")
    sub.add_argument("--problems", type=int, metavar="N", help="problems of an iteration (default: data.limit or 1000)")
    for name, tokens in (("prompt", 200), ("response", 400)):
        sub.add_argument(f"--{name}-tokens", type=int, default=tokens, metavar="N", help=f"mean, default {tokens}")
    sub.add_argument("--response-steps", type=int, default=12, metavar="N", help="mean, default 12")
    settings(sub)
    sub = command("serve-values", "step values of given responses over HTTP, by a run's newest critic")
    sub.add_argument("run", metavar="RUN", help="run directory")
    sub.add_argument("--critic", metavar="MODEL", help="another critic of the same policy")
    sub.add_argument("--host", default="127.0.0.1", metavar="NAME", help="default 127.0.0.1: this machine alone")
    sub.add_argument("--port", type=int, default=8001, metavar="N", help="default 8001; 0: any that is free")
    settings(sub)
    command("env", "versions, devices and cores: what a report of a problem should begin with")
    sub = command("report", "one self-contained HTML page of a run, and PNGs; or a page of two runs side by side")
    sub.add_argument("run", metavar="RUN", help="run directory")
    sub.add_argument("other", nargs="?", metavar="OTHER", help="another run, to compare with")
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments of one command; wrong ones end the program with exit code 2 and one line."""
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
