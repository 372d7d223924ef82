"""Built-in task: arithmetic modulo 7, left to right, one to three operators a line.

Prompt ``=6*3-6-3-0-2``; each line of a response is ``consumed=result remaining``: ``6*3=4-6-3-0-2``, then
``4-6=5-3-0-2`` and so on until one digit is left. Gold traces reduce one, two or three operators at once, so a policy
trained on them chooses, at every line, between a safe step and shortcuts that a small model mostly gets wrong: a
decision problem whose step advantages are known to matter, small enough to train on two cores.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from dapo_fast.data.problems import Problem

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast

MODULUS = 7
OPERATORS = 5
STEP_SIZES = (1, 2, 3)
STEP_SIZE_WEIGHTS = (0.4, 0.4, 0.2)
_APPLY = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def reduce_left_to_right(value: int, operations: list[str]) -> int:
    """Apply operations such as "*3" one after another, modulo 7."""
    for operation in operations:
        value = _APPLY[operation[0]](value, int(operation[1])) % MODULUS
    return value


class Arithmetic:
    """The task: its tokenizer, model, problems, gold traces and verifier."""

    kind = "arithmetic"
    marks = "="  # what stands between the consumed part of a line and its result

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token for each digit, each operator with its digit, ``=``, line break, and four specials."""
        # Late, here and below: a config that names a task is read and refused without loading Transformers and torch.
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        digits = [str(d) for d in range(MODULUS)]
        tokens = ["<pad>", "<bos>", "<eos>", "<unk>", *self.marks, "\n", *digits]
        tokens += [operator + digit for operator in _APPLY for digit in digits]
        tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
        pieces = Regex(rf"[+\-*][0-6]|[0-6]|[{self.marks}]|\n")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="isolated")
        tokenizer.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
            unk_token="<unk>",
            clean_up_tokenization_spaces=False,
        )

    def model_config(self) -> LlamaConfig:
        """A Llama of 2 layers and width 96, to be trained from scratch."""
        from transformers import LlamaConfig

        tokenizer = self.tokenizer()
        # Not a Qwen2: transformers 5 gives every model of that type Qwen2's own tokenizer, whatever was saved.
        return LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    def _expression(self, rng: random.Random) -> tuple[int, list[str]]:
        first = rng.randrange(MODULUS)
        return first, [rng.choice("+-*") + str(rng.randrange(MODULUS)) for _ in range(OPERATORS)]

    def problems(self, count: int, seed: int, split: str = "train") -> list[Problem]:
        """``count`` distinct problems; splits never share one."""
        rng = random.Random(f"{self.kind}/{seed}/{split}")
        seen: set[str] = set()
        found: list[Problem] = []
        while len(found) < count:
            first, operations = self._expression(rng)
            prompt = f"={first}{''.join(operations)}"
            if prompt in seen or self._split(prompt) != split:
                continue
            seen.add(prompt)
            answer = str(reduce_left_to_right(first, operations))
            found.append(Problem(id=prompt[1:], prompt=prompt, answer=answer, kind=self.kind))
        return found

    @staticmethod
    def _split(prompt: str) -> str:
        # A hash of the text, so that held-out expressions are unseen by SFT and training alike.
        return "heldout" if random.Random(prompt).random() < 0.1 else "train"

    def _trace(self, first: int, operations: list[str], rng: random.Random) -> str:
        lines = []
        value = first
        while operations:
            size = min(rng.choices(STEP_SIZES, STEP_SIZE_WEIGHTS)[0], len(operations))
            consumed, operations = operations[:size], operations[size:]
            result = reduce_left_to_right(value, consumed)
            lines.append(f"{value}{''.join(consumed)}={result}{''.join(operations)}")
            value = result
        return "\n".join(lines)

    def gold(self, count: int, seed: int, step: int) -> list[tuple[str, str]]:
        """``count`` fresh (prompt, response) pairs for optimizer step ``step``, none of them held out."""
        rng = random.Random(f"{self.kind}/gold/{seed}/{step}")
        pairs: list[tuple[str, str]] = []
        while len(pairs) < count:
            first, operations = self._expression(rng)
            prompt = f"={first}{''.join(operations)}"
            if self._split(prompt) == "train":
                pairs.append((prompt, self._trace(first, operations, rng)))
        return pairs

    def solution(self, problem: Problem) -> str:
        """A gold trace of ``problem`` that ends right."""
        rng = random.Random(f"{self.kind}/solution/{problem.prompt}")
        first, operations = int(problem.prompt[1]), re.findall(r"[+\-*][0-6]", problem.prompt)
        while not self.verify(problem, trace := self._trace(first, operations, rng)):
            pass
        return trace

    def verify(self, problem: Problem, response: str) -> bool:
        """Whether the response ends in a mark and the right digit."""
        return problem.answer is not None and self.answer(response) == problem.answer

    def answer(self, response: str) -> str | None:
        """The digit after the mark that the response ends in; None where it does not."""
        match = re.search(rf"[{self.marks}]([0-6])\Z", response)
        return None if match is None else match.group(1)
