"""What LaTeX expressions and relations mean, in the algebra worker: read whole by math-verify's parser, or not at all.

The parser (latex2sympy2_extended) reads what it can and more: ``12 5`` as 17, ``y'`` as y, ``n \\equiv 1`` as n = 1. So
texts with anything beyond the commands and characters below are not read, and nothing is ever compared by a part.
"""

from __future__ import annotations

import random
import re
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

from dapo_fast.rewards.plain import tolerance_between

_COMMANDS = re.compile(
    r"d?frac|sqrt|cdot|div|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|(?:sin|cos|tan)h|ln|log|exp|binom|infty|to|pi|%|"
    r"[lr](?:floor|ceil)|int|sum|prod|lim|partial|vec|hat|bar|overline|d?dot|hbar|ell|(?:var)?(?:epsilon|theta|phi)|alpha|"
    r"beta|gamma|delta|zeta|eta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|"
    r"Sigma|Phi|Psi|Omega"
)
_RELATION = re.compile(r"\\(?:le|ge|ne|lt|gt|equiv|approx|sim)(?![A-Za-z])|[=<>]")
_SIGNS = {"\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\lt": "<", "\\gt": ">"}
_FLIPPED = {"=": "=", "!=": "!=", "<": ">", ">": "<", "<=": ">=", ">=": "<="}
# Digits that stand apart, double factorials, words: the parser takes them for sums, factorials twice, products.
_MISREAD = re.compile(
    r"[\d.]\s+[\d.]|!\s*!|(?<![A-Za-z\\])[A-Za-z]{4,}|[^\w+\-*/^(){}\[\]|!.\\\s]|[^\x00-\x7f]|[\d.]_|[A-Za-z]\s*[\d.]"
)
_POINTS = 8
_DIGITS = 40


def same(given: str, reference: str) -> bool:
    """Whether both are the same value, function or relation. May raise anything, and may take for ever."""
    relations = _relation(given), _relation(reference)
    if len(relations[0][0]) != len(relations[1][0]):
        return False
    sides = [[_read(side) for side in relation[0]] for relation in relations]
    if any(side is None for side in sides[0] + sides[1]):
        return False
    tolerance = float(tolerance_between(given, reference))
    if len(sides[0]) == 1:
        return _same_value(sides[0][0], sides[1][0], tolerance)
    return _same_relation(sides[0], relations[0][1], sides[1], relations[1][1], tolerance)


def _relation(text: str) -> tuple[list[str], list[str]]:
    signs = [_SIGNS.get(sign, sign) for sign in _RELATION.findall(text)]
    return _RELATION.split(text), signs


def _read(text: str) -> Any:
    """The expression that the whole text means; None if it may not be what the parser makes of it."""
    text = re.sub(r"([A-Za-z]|\}_\w|\w_\w)\s*('+)", lambda match: f"{match[1]}_{{{'p' * len(match[2])}}}", text)
    if re.search(r"(?<![\d^_])\d+\s*\\frac\{\d+\}\{\d+\}", text):  # 2 + 5/3 or 2 · 5/3
        return None
    # The parser takes 2(3) and (2)(3) for a mixed number.
    text = re.sub(r"((?<![\w.^])[\d.]+|\))\s*(?=\()|\)\s*(?=\d)", lambda match: rf"{match[0]}\cdot ", text)
    commands = re.findall(r"\\([A-Za-z]+|.)", text)
    if not all(_COMMANDS.fullmatch(command) for command in commands) or _MISREAD.search(
        re.sub(r"\\([A-Za-z]+|.)", " \\\\ ", text)
    ):
        return None
    expression = latex2sympy(
        text,
        is_real=True,
        normalization_config=None,
        conversion_config=ConversionConfig(lowercase_symbols=False),
    )
    if not isinstance(expression, sympy.Expr):
        return None
    expression = expression.replace(lambda part: isinstance(part, sympy.UnevaluatedExpr), lambda part: part.args[0])
    unknown = expression.atoms(sympy.Derivative, sympy.core.function.AppliedUndef)
    expression = expression.xreplace({part: sympy.Symbol(sympy.srepr(part), real=True) for part in unknown})
    if not expression.has(sympy.Sum, sympy.Product):
        expression = expression.xreplace({sympy.Symbol("i", real=True): sympy.I})
    return expression


def _same_value(left: Any, right: Any, tolerance: float) -> bool:
    if left == right:
        return True
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    if not symbols:
        return _same_number(left, right, tolerance)
    met = 0
    for point in _points(symbols):
        a, b = _at(left, point), _at(right, point)
        if _is_real(a) != _is_real(b) and not (left.has(sympy.I) or right.has(sympy.I)):
            return False
        if _finite(a) and _finite(b):
            if not _close(a, b, tolerance or 10.0 ** (-_DIGITS // 2)):
                if _is_real(a) or _is_real(b) or left.has(sympy.I) or right.has(sympy.I):
                    return False
                continue  # which root of what is negative, and which power, is a convention
            met += 1
    return met >= _POINTS // 2


def _same_number(left: Any, right: Any, tolerance: float) -> bool:
    a, b = left.evalf(2 * _DIGITS), right.evalf(2 * _DIGITS)
    if not (_finite(a) and _finite(b)):
        return left.doit() == right.doit()
    if abs(a) > 1e-30 and abs(b) > 1e-30:
        if not _close(a, b, 1e-60):
            # A whole number is never a rounded one.
            whole = left.is_integer or right.is_integer
            return tolerance > 0 and not whole and _close(a, b, tolerance)
        if not (left.doit().is_Rational and right.doit().is_Rational):
            return True
    difference = (left - right).doit()
    return bool(difference == 0 or difference.is_zero or sympy.simplify(difference) == 0)


def _same_relation(left: list, signs: list[str], right: list, wanted: list[str], tolerance: float) -> bool:
    flipped = [_FLIPPED.get(sign, "") for sign in reversed(signs)]
    alike = [signs == wanted and _same_value(a, b, tolerance) for a, b in zip(left, right)]
    # One side alone, unless a number: "sec x = sec x + C" and "sec x = sec x - C" are two, though both say C = 0.
    if all(alike) or any(same and side.free_symbols for same, side in zip(alike, left)):
        return all(alike)
    if flipped == wanted and all(_same_value(a, b, tolerance) for a, b in zip(reversed(left), right)):
        return True
    if len(signs) != 1:
        return False
    differences = [sides[0] - sides[1] for sides in (left, right)]
    if signs == wanted == ["="]:
        differences = [sympy.fraction(sympy.together(difference))[0] for difference in differences]
    factor = _proportional(*differences, tolerance)
    if factor is None:
        return False
    sign = signs[0] if factor > 0 else flipped[0]
    return sign == wanted[0]


def _proportional(left: Any, right: Any, tolerance: float) -> float | None:
    """The constant c ≠ 0 of ``left`` = c · ``right``; None if there is none."""
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    if not symbols or left.free_symbols != right.free_symbols:
        return None
    ratios = []
    for point in _points(symbols):
        a, b = _at(left, point), _at(right, point)
        if _finite(a) and _finite(b) and a != 0 and b != 0:
            ratios.append(a / b)
    if len(ratios) < _POINTS // 2 or not all(_close(ratio, ratios[0], tolerance or 1e-20) for ratio in ratios):
        return None
    return float(sympy.re(ratios[0])) or None


def _points(symbols: list) -> list[dict]:
    """Places to look at, the same for the same symbols: positive and of either sign, near and far (for roundings)."""
    dice = random.Random(0)
    sizes = [
        [sympy.Rational(dice.randrange(300, high), 997) for _ in symbols] for high in (2_000, 2_000, 30_000, 30_000) * 2
    ]
    signs = [[(1, -1, 1, dice.choice((-1, 1)))[index % 4] for _ in symbols] for index in range(_POINTS)]
    return [{symbol: size * sign for symbol, size, sign in zip(symbols, *place)} for place in zip(sizes, signs)]


def _at(expression: Any, point: dict) -> Any:
    return expression.evalf(_DIGITS, subs=point)


def _finite(value: Any) -> bool:
    return bool(
        value.is_number and value.is_finite and all(part.is_Float or part.is_Rational for part in value.as_real_imag())
    )


def _is_real(value: Any) -> bool:
    return _finite(value) and abs(sympy.im(value)) < 1e-30


def _close(left: Any, right: Any, tolerance: float) -> bool:
    return bool(abs(left - right) <= tolerance * max(abs(left), abs(right)))
