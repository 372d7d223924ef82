"""Sampling in this process, on the CPU or one GPU: a batch that stays full.

Every sample is a row. A row that ends leaves at once and the next sample takes its place, so a step of decoding never
computes rows that are not wanted; each row is at its own position.

Prompts that begin other prompts (the states of one trunk) are not computed: the longest is prefilled once, its keys and
values are kept once, and every sample of every state attends to the part of them that is its prompt, all rows of a
trunk by one matrix product. A row keeps only the keys and values of its own tokens. Decoding reads memory more than it
computes, and a trunk is read once a step instead of once for each of its samples.

The random number behind a token is a function of (seed, prompt index, sample index, token index) alone, so samples do
not depend on which rows happen to share a batch, apart from rounding.
"""

from dapo_fast.rollout.in_process.engine import InProcessEngine

__all__ = ["InProcessEngine"]
