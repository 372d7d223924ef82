"""Verified rewards for mathematics: find the answer in the response, compare it with the reference."""

from __future__ import annotations

from dapo_fast.rewards.equivalence import equivalent
from dapo_fast.rewards.extract import boxed_run, extract_answer, states


def verify(response: str, answer: str) -> bool:
    r"""Whether ``response`` ends in ``answer``.

    The response's answer is its last ``\boxed{}``, else what follows its last ``####``, else its last "answer is",
    else the last expression, list or number of its last line. Both get one spelling (normal.py) and are compared
    as sets of reals (intervals.py), as relations side by side, as exact numbers, words, or element by element
    (equivalence.py), and at last by algebra in a worker process (algebra.py, symbolic.py), which uses math-verify's
    parser. What is not understood as a whole is compared as text. Units, percent signs, thousands separators and
    ``x =`` are no differences; a decimal may stand for what is no decimal, or be rounded elsewhere (relative 1e-4).

    Never raises on any response, never takes more than a few seconds of computing, and may be called from threads and
    processes.
    """
    # Null bytes and lone surrogates survive neither regular expressions about text nor a pipe.
    response = response.encode("utf-8", "replace").decode("utf-8").replace("\x00", "")
    run = boxed_run(response)
    if run is not None and "," in answer and equivalent(", ".join(run), answer):
        return True
    if run is not None and not all(equivalent(box, answer) for box in run):
        return False  # one of several is no way to hedge
    given = extract_answer(response)
    if given is not None and equivalent(given, answer):
        return True
    return states(response, answer)
