"""Built-in task in which the better step depends on the state.

The arithmetic task has one preference, the safe step, that is best everywhere. Here every line reduces one operator
and is written with one of two instruments, ``=`` or ``:``, each reliable for some operators only: ``=`` for ``+``,
``:`` for ``-`` and ``*``. The gold traces choose at random and err at the instrument's rate, so correct responses
contain badly chosen steps that were lucky, and wrong ones well chosen steps. A response's reward says little about its
steps; a step's advantage says which instrument suits the operator at hand.
"""

from __future__ import annotations

import random

from dapo_fast.tasks.arithmetic import MODULUS, Arithmetic, reduce_left_to_right

RELIABLE = 0.97
UNRELIABLE = 0.4  # and then it reads one too many, so that its likeliest reading is wrong
SUITED = {"+": "=", "-": ":", "*": ":"}


class Instruments(Arithmetic):
    """The task: as ``Arithmetic``, with steps of one operator and a choice of instrument."""

    kind = "instruments"
    marks = "=:"

    def _trace(self, first: int, operations: list[str], rng: random.Random) -> str:
        lines = []
        value = first
        for position, operation in enumerate(operations):
            mark = rng.choice(self.marks)
            right = reduce_left_to_right(value, [operation])
            reliability = RELIABLE if mark == SUITED[operation[0]] else UNRELIABLE
            result = right
            if rng.random() >= reliability:
                result = (right + 1) % MODULUS
            lines.append(f"{value}{operation}{mark}{result}{''.join(operations[position + 1 :])}")
            value = result
        return "\n".join(lines)
