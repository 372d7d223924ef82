"""Names for objects in settings: what can be imported goes by where it is, the rest by what it is."""

import collections
import decimal
import functools
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from dapo_fast.errors import InputError
from dapo_fast.names import check_name, name_of, resolve

HERE = pathlib.Path(__file__).parent


def importable(problem, response):
    return 1.0


def enclosing(threshold):
    return lambda problem, response: len(response) > threshold


class Callable:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, problem, response):
        return self.weight


def test_what_can_be_imported_goes_by_where_it_is():
    assert name_of(importable) == f"{__name__}:importable"
    assert resolve("reward", name_of(importable)) is importable
    assert name_of(Callable) == f"{__name__}:Callable"


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (enclosing(1), enclosing(1), enclosing(2)),
        (Callable(0.5), Callable(0.5), Callable(0.6)),
        (functools.partial(importable, 1), functools.partial(importable, 1), functools.partial(importable, 2)),
        (Callable(0.5).__call__, Callable(0.5).__call__, Callable(0.6).__call__),
        (lambda p, r: r == "1", lambda p, r: r == "1", lambda p, r: r == "2"),
        (lambda p, r, least=1: r, lambda p, r, least=1: r, lambda p, r, least=2: r),
    ],
)
def test_the_rest_goes_by_what_it_is(one, same, other):
    assert name_of(one) == name_of(same) != name_of(other)
    assert name_of(one).startswith("<") and name_of(one).endswith(">")
    with pytest.raises(InputError, match="was given by a program"):
        resolve("reward", name_of(one))
    assert resolve("reward", name_of(one), {name_of(one): one}) is one
    check_name(name_of(one))  # in the settings of a run that was made by a program


@dataclass(slots=True)
class Slots:
    one: str
    two: str


Pair = collections.namedtuple("Pair", "one two")


def local_class(sign, weight=1.0):
    if sign > 0:

        class Local:
            factor = weight

            def __call__(self, problem, response):
                return 1.0

    else:

        class Local:
            factor = weight

            def __call__(self, problem, response):
                return 0.0

    return Local


def nested(depth, leaf):
    return functools.reduce(lambda inner, _: [inner], range(depth), leaf)


def cyclic(leaf):
    holder = [leaf]
    holder.append(holder)
    return holder


@pytest.mark.parametrize(
    "make",
    [
        lambda v: re.compile(f"a{v}"),
        lambda v: re.compile("a", re.IGNORECASE if v else 0).fullmatch,
        lambda v: b"a%d" % v,
        lambda v: pathlib.Path(f"a/{v}/a"),
        lambda v: decimal.Decimal(v),
        lambda v: complex(v),
        lambda v: np.float32(v),
        lambda v: np.arange(3) + v,
        lambda v: np.array([v, "a"], dtype=object),
        lambda v: torch.full((2,), v, dtype=torch.bfloat16),
        lambda v: torch.nn.Parameter(torch.tensor(float(v))),
        lambda v: Slots("a", "".join(["a", str(v)])),
        lambda v: Pair("a", v),
        lambda v: collections.deque([1, v]),
        lambda v: collections.defaultdict(list, a=v),
        lambda v: str.lower if v else str.upper,
        lambda v: f"{v}".startswith,
        lambda v: {f"a{v}", "b", "c", ("d", 1), None},
        lambda v: nested(40, v),
        lambda v: cyclic(v),
        lambda v: local_class(v),
        lambda v: local_class(v)(),
        lambda v: local_class(1, v),
        lambda v: functools.lru_cache(enclosing(v)),
    ],
)
def test_what_is_enclosed_counts_whatever_it_is(make):
    names = [name_of(enclosing(make(v))) for v in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_what_changes_with_use_does_not_count():
    def over(module, logger):
        return lambda problem, response: module.match("a", response) and logger

    logger = logging.getLogger("test_names")
    before = name_of(over(re, logger))
    re.compile("a pattern that nobody has compiled so far")
    logger.addHandler(logging.NullHandler())
    assert name_of(over(re, logger)) == before
    assert len({before, name_of(over(json, logger)), name_of(over(re, logging.getLogger("other")))}) == 3


def test_names_are_the_same_in_every_process():
    code = "import re, pathlib, sys; from test_names import *; print(name_of(enclosing(["
    code += "{'a', 'b', 'c', 'd'}, re.compile('x'), Slots('aa', 'aa'), pathlib.Path('/a/b'), np.ones(2), torch.ones(2),"
    code += "local_class(1)()])), name_of(lambda p, r: r in {'a', 'b', 'c', 'd'}))"
    found = set()
    for seed in "12":  # which put sets of these in other orders
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([*sys.path, f"{HERE}"])}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1 and "<test_names:enclosing.locals.lambda " in found.pop()


def test_shared_parts_are_described_once():
    shared = ["leaf"]
    for _ in range(100):  # 2^100 paths
        shared = [shared, shared]
    assert name_of(enclosing(shared)).startswith("<")
    one = ["leaf"]
    assert name_of(enclosing([one, one])) == name_of(enclosing([["leaf"], ["leaf"]]))


@pytest.mark.parametrize("value", [threading.Lock(), (i for i in "ab"), nested(5000, 0)])
def test_what_cannot_be_told_apart_is_said(value):
    with pytest.raises(InputError, match=r"lambda>: cannot be told apart; give it as module:attribute \(") as error:
        name_of(enclosing(value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("json", "not a module:attribute"),
        ("json:", "not a module:attribute"),
        ("os:system('x')", "not a module:attribute"),
        ("no_such_module:f", "cannot be imported .*no_such_module"),
        ("json:no_such_function", "cannot be imported .*no_such_function"),
        ("json:decoder", "json:decoder: a module, which cannot be called"),
    ],
)
def test_a_name_that_stands_for_nothing_is_said(name, words):
    with pytest.raises(InputError, match=words):
        check_name(name)
    with pytest.raises(InputError, match="'chess' is none of math, code"):
        check_name("chess", ["math", "code"])
