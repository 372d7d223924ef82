"""Texts taken apart: what surrounds an answer, and the elements of tuples, sets, lists and matrices."""

from __future__ import annotations

import re

_ENVIRONMENT = re.compile(r"\\begin\{([pbB]?matrix|array)\}(?:\{[lcr|]*\})?(.*?)\\end\{\1\}", re.S)
BETWEEN = re.compile(
    r"\s*,?\s*(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])\s*,?\s*|\s*\\(?:text|textrm|mathrm)\s*\{\s*,?\s*(?:and|or)\s*\}\s*|[,;]|\\\\"
)
DOTS = r"(?:\\[lcd]?dots|\.\.\.|…)(?![A-Za-z])"
_QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("__", "__"))


def strip_math(text: str) -> str:
    r"""Without surrounding ``$``, ``\( \)``, ``\[ \]``, Markdown emphasis and final punctuation."""
    text = text.strip()
    while True:
        before = text
        text = text.strip().strip("*`_" if text.startswith(("*", "`", "_")) else "*`").strip()
        text = without_stop(text)
        for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("{", "}"), *_QUOTES):
            inside = text[len(left) : len(text) - len(right)]
            if (
                len(text) > len(left) + len(right)
                and text.startswith(left)
                and text.endswith(right)
                and left not in inside
                and right not in inside
                and not inside.endswith("\\")
            ):
                text = inside
                break
        if text == before:
            return text


def without_stop(text: str) -> str:
    if re.search(rf"\d\.\d+{DOTS}\Z", text):
        return text
    return text.rstrip(" .,;:。．\\").strip()


def compact(text: str) -> str:
    """For comparing spellings: no blanks but those between digits, no braces around a single sign."""
    text = re.sub(r"(?<=[\d.])\s+(?=[\d.])", "␣", text)
    return re.sub(r"([_^])\{(\w)\}", r"\1\2", re.sub(r"\s+", "", text))


def split_top_level(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split at separators outside every bracket and matrix."""
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        match = separator.match(text, position) if depth <= 0 else None
        if match and match.end() > position:
            parts.append(text[start:position])
            start = position = match.end()
            continue
        if text[position] == "\\":
            depth += text.startswith((r"\begin", r"\{"), position) - text.startswith((r"\end", r"\}"), position)
            position += 2
            continue
        depth += (text[position] in "([{") - (text[position] in ")]}")
        position += 1
    parts.append(text[start:])
    return [part.strip() for part in parts]


def bracketed(text: str) -> tuple[str, list[str]]:
    """Brackets ("()", "[)", "{}" or "" for a bare list) and elements."""
    text = strip_math(text)
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inner, brackets = text[2:-2], "{}"
    elif len(text) > 1 and text[0] in "([" and text[-1] in ")]" and _closes_at_end(text):
        inner, brackets = text[1:-1], text[0] + text[-1]
    else:
        inner, brackets = text, ""
    items = [part for part in split_top_level(inner, BETWEEN) if part]
    if len(items) == 1 and brackets != "{}":
        brackets, items = "", [text]
    if brackets in ("", "{}"):
        items = [item for part in items for item in _plus_minus(part)]
    return brackets, items


def _closes_at_end(text: str) -> bool:
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth == 0:
            return position == len(text) - 1
    return False


def _plus_minus(text: str) -> list[str]:
    signs = re.findall(r"\\(?:pm|mp)(?![A-Za-z])|±", text)
    if len(signs) != 1:
        return [text]
    before, _, after = text.partition(signs[0])
    return [f"{before}{sign}{after.lstrip()}".removeprefix("+") for sign in "+-"]


def cells(text: str) -> list[list[str]] | None:
    """The cells of a matrix, with the factor before it in each."""
    factor, begin, matrix = text.partition(r"\begin")
    if not factor.strip(" [("):
        return _rows(text)
    rows = _rows(begin + matrix) if not re.search(r"[-+=,]", factor[1:]) else None
    return rows and [[f"({factor})({cell})" for cell in row] for row in rows]


def _rows(text: str) -> list[list[str]] | None:
    """The cells of a text that is one matrix, in brackets or not; None otherwise."""
    text = text.strip()
    if re.match(r"[(\[]\\begin\{array\}", text) and text.endswith((r"\end{array}]", r"\end{array})")):
        text = text[1:-1]
    match = _ENVIRONMENT.fullmatch(text.strip())
    if match is None or "\\begin" in match.group(2):
        return None
    body = re.sub(r"\\hline", "", match.group(2)).strip().removesuffix("\\\\")
    return [[cell.strip() for cell in row.split("&")] for row in re.split(r"\\\\(?:\[[^\]]*\])?", body)]
