"""What torch.compile does when the model around a fused function is compiled."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P, R = ParamSpec("P"), TypeVar("R")


def breaks_graph(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` as it is, between two compiled graphs, instead of letting the compiler trace into it.

    Its chunk loop depends on values, and its GEMMs and kernels gain nothing from being compiled. Decided at the call,
    because torch.compiler.disable, as a decorator, would make importing this package import the compiler.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call
