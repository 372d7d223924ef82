"""Names for objects in settings: what can be imported goes by where it is, the rest by what it is."""

import functools

import pytest

from dapo_fast.errors import InputError
from dapo_fast.names import check_name, name_of, resolve


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


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("json", "not a module:attribute"),
        ("json:", "not a module:attribute"),
        ("os:system('x')", "not a module:attribute"),
        ("no_such_module:f", "cannot be imported .*no_such_module"),
        ("json:no_such_function", "cannot be imported .*no_such_function"),
    ],
)
def test_a_name_that_stands_for_nothing_is_said(name, words):
    with pytest.raises(InputError, match=words):
        check_name(name)
    with pytest.raises(InputError, match="'chess' is none of math, code"):
        check_name("chess", ["math", "code"])
