"""Supervised fine-tuning on responses: the start that a policy from scratch needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dapo_fast.config import DataSettings, ModelSettings, ParallelSettings, SftSettings
from dapo_fast.data.messages import prompt_of, question
from dapo_fast.data.pack import Pack
from dapo_fast.data.packing import pack_sequences
from dapo_fast.data.problems import KINDS, Problem
from dapo_fast.errors import InputError, blaming
from dapo_fast.models.readpath import PolicyReader
from dapo_fast.train.dealer import Dealer, Epochs
from dapo_fast.train.loop import Batch, train
from dapo_fast.train.parallel import open_world
from dapo_fast.train.readers import policy_reader
from dapo_fast.train.stage import finish, finished

Sequences = list[tuple[list[int], list[int]]]  # (prompt ids, response ids with the end token)


class SftTask:
    """Cross-entropy of the response tokens, averaged over the batch's tokens."""

    name = "sft"

    def __init__(self, reader: PolicyReader, stream: Callable[[int], Sequences], steps: int, dealer: Dealer) -> None:
        self.steps = steps
        self._reader = reader
        self._stream = stream
        self._dealer = dealer

    def batch(self, step: int) -> Batch:
        """The sequences of ``step``, packed flat; counted by scored token."""
        packs = self._dealer.packs(pack_sequences, self._stream(step))
        return self._dealer(packs, sum(pack.targets.numel() for pack in packs))

    def items(self, pack: Pack) -> int:
        """Sequences."""
        return pack.steps

    def loss(self, pack: Pack, count: int) -> tuple[Tensor, Tensor]:
        """−Σ log π(token) / count, and each sequence's log-probability."""
        out = self._reader(pack, normalizer=count, objective="cross_entropy")
        return out.loss, out.step_logps

    def halt(self, metrics: dict[str, float]) -> None:
        """Never: every step is done."""

    def measure(self, step: int, last: bool) -> dict[str, float]:
        """Nothing."""
        return {}

    def metrics(self, packs: Sequence[Pack], values: Tensor) -> dict[str, float]:
        """The mean probability of a whole response."""
        return {"response_probability": values.exp().mean().item()}


def train_sft(
    start: Path,
    settings: SftSettings,
    parallel: ParallelSettings,
    model: ModelSettings,
    out: Path,
    *,
    seed: int,
    digest: str,
    stream: Callable[[int], Sequences] | None = None,
    data: DataSettings = DataSettings(),
) -> dict[str, Any]:
    """Fine-tune the policy in ``start`` and write it to ``out/model``; a killed run goes on where it was.

    Args:
        stream: Optimizer step (from 0) → its sequences, a function of the step alone; None: ``settings.data``, a JSONL
            file of ``{"prompt", "response"}``, shuffled by ``seed``. Rows with "tests", or of "kind" code, are prompted
            as programs are, of "kind" open without an instruction, others as maths problems.
        data: How prompts of ``settings.data`` become tokens.

    Raises:
        InputError: the data, the model or the settings.
    """
    done = finished(out, digest)
    if done is not None:
        return done
    steps = settings.steps or 0
    if stream is None:
        stream, steps = data_stream(settings, start, data, seed)
    with open_world(model, parallel) as world:
        reader = policy_reader(start, settings, model, parallel, world)
        source = settings.data or "gold traces"
        task = SftTask(reader, stream, steps, Dealer(world, reader.model, settings.pack_tokens, source=source))
        train(task, reader, reader.model, settings, world, out, seed, digest, parallel)
        return finish(out, digest, reader.model, start, world, {"steps": steps})


def data_stream(
    settings: SftSettings, policy: Path, data: DataSettings, seed: int
) -> tuple[Callable[[int], Sequences], int]:
    """``settings.data``, shuffled by ``seed``, as sequences of each optimizer step, and how many steps it is for.

    Args:
        policy: Whose tokens they are.
        data: How prompts become tokens.

    Raises:
        InputError: the file, and the line that is wrong.
    """
    sequences = _read_sequences(settings, policy, data)
    order = Epochs(lambda epoch: _batches(len(sequences), settings.batch_sequences, seed, epoch))
    return lambda step: [sequences[i] for i in order[step]], order.steps(settings)


def _batches(count: int, size: int, seed: int, epoch: int) -> list[list[int]]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
    return [order[i : i + size] for i in range(0, count, size)]


def read_pairs(path: Path) -> list[tuple[Problem, str]]:
    """The prompt and response of every row of ``sft.data``; InputError names the file and the line that is wrong."""
    if path.exists() and not path.is_file():
        raise InputError(f"sft.data {path}: not a readable text file (a directory, pipe or device)")
    with blaming(f"sft.data {path}", "not a readable text file"):
        lines = path.read_text(encoding="utf-8").split("\n")
    pairs: list[tuple[Problem, str]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, response = prompt_of(row, f"{path}:{number}"), row["response"]
        except InputError:
            raise
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f'{path}:{number}: not a JSON object with "prompt" and "response" ({error})') from error
        if not isinstance(response, str):
            raise InputError(f'{path}:{number}: "response" is a text')
        messages = None if isinstance(prompt, str) else prompt
        text = prompt if isinstance(prompt, str) else question(prompt)
        kind = row.get("kind", "code" if "tests" in row else "math")
        if kind not in KINDS:
            raise InputError(f'{path}:{number}: "kind" is one of {", ".join(KINDS)}')
        extra = {"tools": row.get("tools")}
        pairs.append((Problem(str(number), text, kind=kind, extra=extra, messages=messages), response))
    if not pairs:
        raise InputError(f"sft.data {path}: no rows")
    return pairs


def _read_sequences(settings: SftSettings, start: Path, data: DataSettings) -> Sequences:
    from dapo_fast.data.prompts import prompt_encoder
    from dapo_fast.rollout.loading import load_tokenizer

    tokenizer = load_tokenizer(start)
    encode = prompt_encoder(tokenizer, data)
    sequences: Sequences = []
    for problem, response in read_pairs(Path(str(settings.data))):
        response_ids = tokenizer(response, add_special_tokens=False)["input_ids"]
        sequences.append((encode(problem), [*response_ids, tokenizer.eos_token_id]))
    return sequences
