"""What torch.compile does when the model around a fused function is compiled."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P, R = ParamSpec("P"), TypeVar("R")


def breaks_graph(function: Callable[P, R], reason: str) -> Callable[P, R]:
    """`function` as it is, between two compiled graphs, instead of letting the compiler trace into it.

    To be called while compiling: torch.compiler.disable, as a decorator, would make importing this package import the
    compiler. `reason` is what torch says where it was told to keep one graph.
    """
    torch._dynamo.graph_break(msg=reason)
    return torch.compiler.disable(function)
