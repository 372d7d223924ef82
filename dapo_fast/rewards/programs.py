"""From a response to the program that it settles on."""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
import warnings
from typing import Any

# After list marks and quote marks: an opening fence and what stands behind it.
_FENCE = re.compile(r"((?:[ \t]*(?:>|[-*+][ \t]|\d{1,9}[.)][ \t]))*[ \t]*)(`{3,}|~{3,})[ \t]*([^`\n]*)")
_PYTHON = {"", "python", "python3", "py", "py3", "python2", "sage"}
_COMPLETION_ENDS = re.compile(r"\n(?=(?:class|def|if|print|assert|@|#|```|~~~|<)\b|[@#`<~])")
_FUTURE = re.compile(r"^from __future__ import [^\n]*\n?", re.M)
_READS = {"input", "raw_input", "stdin"}


def extract_program(response: str, tests: dict[str, Any]) -> str:
    """The program of a response to a problem with ``tests`` (the forms of ``dapo_fast.rewards.code.verify``).

    Of the fenced blocks, the last that does what the problem asks: defines the functions under test, or reads the
    standard input and is no demonstration. A block of output, of usage or of a shell is none of them. Helpers that have
    earlier blocks of their own come before it. Without blocks, the response itself. A HumanEval completion gets its
    prompt before it.
    """
    blocks = _python_blocks(response)
    wanted = _wanted(tests)
    program = _chosen(blocks, wanted) if blocks else response
    entry_point = tests.get("entry_point")
    if not entry_point:
        return program
    prompt = str(tests.get("prompt", ""))
    if _defines(program, entry_point):
        # Imports and helper functions that the prompt gives may be left out of an answer that repeats the function.
        preamble = re.split(rf"^def {re.escape(entry_point)}\b", prompt, maxsplit=1, flags=re.M)[0]
        future = "".join(match.rstrip("\n") + "\n" for match in _FUTURE.findall(program))
        return f"{future}{preamble}\n{_FUTURE.sub('', program)}"
    if not blocks:
        program = _COMPLETION_ENDS.split(program, maxsplit=1)[0]
    elif not _compiles(prompt + program):
        # A function's body that the block, or our taking it out of a list, has moved to the left margin.
        program = textwrap.indent(textwrap.dedent(program), "    ")
    return prompt + program


def _python_blocks(response: str) -> list[str]:
    """What stands between fences (CommonMark, 4.5) that name Python or nothing; an unclosed block ends the text."""
    blocks: list[list[str]] = []
    fence = prefix = ""
    keep = False
    for line in response.split("\n"):
        if fence:
            line = _without(prefix, line)
            bare = line.strip()
            if len(bare) >= len(fence) and not bare.strip(fence[0]):
                fence = ""
            elif keep:
                blocks[-1].append(line)
            continue
        match = _FENCE.match(line)
        if match:
            prefix, fence, info = match.groups()
            language = re.match(r"\{?\.?([\w+-]*)", info.strip().lower())
            keep = language is not None and language.group(1) in _PYTHON
            if keep:
                blocks.append([])
    return ["\n".join(lines) + "\n" for lines in blocks]


def _without(prefix: str, line: str) -> str:
    """``line`` without the indentation and the quote marks of its fence, as far as it has them."""
    for _ in range(prefix.count(">")):
        line = re.sub(r"\A[ \t]*>[ ]?", "", line)
    width = len(prefix.rpartition(">")[2].expandtabs(4))
    if ">" in prefix:
        width = max(0, width - 1)
    if not width:
        return line
    blanks = re.match(r"[ \t]*", line)
    assert blanks is not None
    return blanks.group().expandtabs(4)[width:] + line[blanks.end() :]


def _wanted(tests: dict[str, Any]) -> set[str]:
    """Names that the program must define; empty where it is to read the standard input."""
    name = tests.get("entry_point") or tests.get("fn_name")
    if name:
        return {str(name)}
    lines = tests.get("test_list")
    tree = _parsed("\n".join(map(str, lines))) if isinstance(lines, list) else None
    if tree is None:
        return set()
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return called - set(dir(builtins)) or called


def _chosen(blocks: list[str], wanted: set[str]) -> str:
    parsed = [(block, _parsed(block)) for block in blocks]
    running = [(block, tree) for block, tree in parsed if tree is not None and tree.body]
    if wanted:
        # The most of the names, and the last of the blocks with as many: helpers may be tested beside the function.
        scores = [len(wanted & _defined(tree)) for _, tree in running]
        if any(scores):
            return _with_helpers(running, max(zip(scores, range(len(scores)), strict=True))[1])
        # What does not parse is still the answer if it means to define the function.
        meant = [block for block in blocks if any(_defines(block, name) for name in wanted)]
        return (meant or blocks)[-1]
    for does in (_reads_input, _prints):
        found = [place for place, (_, tree) in enumerate(running) if does(tree)]
        if found:
            return _with_helpers(running, found[-1])
    return blocks[-1]


def _with_helpers(blocks: list[tuple[str, ast.Module]], chosen: int) -> str:
    """The chosen block behind those before it that define what it uses and does not define."""
    program, tree = blocks[chosen]
    missing = _free(tree)
    for earlier, its_tree in reversed(blocks[:chosen]):
        if missing & _bound(its_tree):
            program = earlier + program
            missing = (missing - _bound(its_tree)) | _free(its_tree)
    return program


def _free(tree: ast.AST) -> set[str]:
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return used - _bound(tree) - set(dir(builtins))


def _bound(tree: ast.AST) -> set[str]:
    names = _defined(tree) | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return names | {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}


def _parsed(program: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the program's escapes, say
            return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _compiles(program: str) -> bool:
    """More than parsing: a ``return`` outside of a function parses."""
    tree = _parsed(program)
    try:
        return tree is not None and compile(tree, "program.py", "exec", dont_inherit=True) is not None
    except (SyntaxError, ValueError, RecursionError):
        return False


def _defined(tree: ast.AST) -> set[str]:
    """Names of functions, classes, methods and assignments, wherever they stand."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _reads_input(tree: ast.AST) -> bool:
    """Reads the standard input, and not one that it gives to itself."""
    reads = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name == "stdin" and isinstance(node.ctx, ast.Store):
                return False
            reads = reads or (name in _READS and isinstance(node.ctx, ast.Load))
        elif isinstance(node, ast.ImportFrom):
            reads = reads or any(alias.name in _READS for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "open":
            first = node.args[0] if node.args else None
            reads = reads or (isinstance(first, ast.Constant) and first.value in (0, "/dev/stdin"))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "read":
            first = node.args[0] if node.args else None  # os.read(0, size)
            reads = reads or (isinstance(first, ast.Constant) and first.value == 0)
    return reads


def _prints(tree: ast.AST) -> bool:
    return any(
        isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in ("print", "write")
        for node in ast.walk(tree)
    )


def _defines(program: str, name: str) -> bool:
    pattern = rf"^[ \t]*(?:(?:async )?def {re.escape(name)}\b|{re.escape(name)}[ \t]*(?::[^=\n]*)?=[^=])"
    return re.search(pattern, program, re.M) is not None
