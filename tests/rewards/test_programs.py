"""Right programs as people and models write them pass, and outputs that only look right do not."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from dapo_fast.rewards import code

ADD = {"inputs": ["1\n2\n"], "outputs": ["3\n"]}
SUM = "import sys\nprint(sum(map(int, sys.stdin.read().split())))"
SCRIPTS = {
    "exit": "print(int(input()) + int(input()))\nexit()",
    "quit(0)": "print(int(input()) + int(input()))\nquit(0)",
    "sys.exit": "import sys\nprint(int(input()) + int(input()))\nsys.exit()",
    "main guard": "def main():\n    print(int(input()) + int(input()))\nif __name__ == '__main__':\n    main()",
    "thread without join": (
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**26)\n"
        "def main():\n    print(int(input()) + int(input()))\nthreading.Thread(target=main).start()"
    ),
    "atexit": "import atexit\natexit.register(lambda: print(int(input()) + int(input())))",
    "until EOF": (
        "s = 0\ntry:\n    while True:\n        s += int(input())\nexcept EOFError:\n    pass\nprint(s, flush=True)"
    ),
    "buffer": "import sys\nsys.stdout.write(str(sum(map(int, sys.stdin.buffer.read().split()))))",
    "open(0)": "print(sum(map(int, open(0))))",
    "os.read": "import os\nprint(sum(map(int, os.read(0, 100).split())))",
    "dataclass": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
        "    y: int | None = None\np = P(int(input()), int(input()))\nprint(p.x + p.y)"
    ),
    "pickle": (
        "import pickle\nclass P:\n    def __init__(self, x):\n        self.x = x\n"
        "print(sum(pickle.loads(pickle.dumps(P(int(input())))).x for _ in range(2)))"
    ),
    "large integer": "assert len(str(10**9000)) == 9001\nint('7' * 9000)\n" + SUM,
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(10**6)\ndef f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\n"
        "assert f(50000) == 50000\n" + SUM
    ),
    "deep recursion through C": (
        "import functools, sys\nsys.setrecursionlimit(10**6)\n@functools.lru_cache(None)\n"
        "def f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\nassert f(50000) == 50000\n" + SUM
    ),
    "/dev/stdin": "import sys\nsys.stdin = open('/dev/stdin')\nprint(int(input()) + int(input()))",
    "path": "from pathlib import Path\nprint(sum(map(int, Path('/dev/stdin').read_text().split())))",
    "fileinput": "import fileinput\nprint(sum(map(int, fileinput.input())))",
    "fstat": "import io, os\nprint(sum(map(int, io.BytesIO(os.read(0, os.fstat(0).st_size)))))",
    "mmap": "import mmap\nprint(sum(map(int, mmap.mmap(0, 0, access=mmap.ACCESS_READ)[:].split())))",
    "pool": (
        "from multiprocessing import Pool\nif __name__ == '__main__':\n    with Pool() as pool:\n"
        "        print(sum(pool.map(int, [input(), input()])))"
    ),
    "process and queue": (
        "from multiprocessing import Process, Queue\ndef work(queue, x):\n    queue.put(int(x))\n"
        "if __name__ == '__main__':\n    queue = Queue()\n"
        "    for _ in range(2):\n        Process(target=work, args=(queue, input())).start()\n"
        "    print(queue.get() + queue.get())"
    ),
    "executors": (
        "from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor\n"
        "with ThreadPoolExecutor() as threads, ProcessPoolExecutor() as processes:\n"
        "    print(sum(processes.map(int, threads.map(str.strip, [input(), input()]))))"
    ),
    "asyncio": ("import asyncio\nasync def main():\n    print(int(input()) + int(input()))\nasyncio.run(main())"),
    "subprocess": (
        "import subprocess, sys\ncode = 'print(int(input()) + int(input()))'\n"
        "print(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout)"
    ),
    "os._exit": "import os\nprint(int(input()) + int(input()), flush=True)\nos._exit(0)",
    "standard output replaced": (
        "import io, sys\nsys.stdout = io.StringIO()\nprint(int(input()) + int(input()))\n"
        "sys.__stdout__.write(sys.stdout.getvalue())"
    ),
    "recursion by generators": (
        "from types import GeneratorType\ndef bootstrap(f, stack=[]):\n    def wrapped(*args):\n        if stack:\n"
        "            return f(*args)\n        to = f(*args)\n        while True:\n"
        "            if type(to) is GeneratorType:\n                stack.append(to)\n                to = next(to)\n"
        "            else:\n                stack.pop()\n                if not stack:\n                    return to\n"
        "                to = stack[-1].send(to)\n    return wrapped\n@bootstrap\ndef f(n):\n    if n == 0:\n"
        "        yield 0\n    yield 1 + (yield f(n - 1))\nassert f(20000) == 20000\n" + SUM
    ),
    "a timer": "import threading\nthreading.Timer(0.01, lambda: print(int(input()) + int(input()))).start()",
    "a limit that is not given": (
        "import resource\ntry:\n    resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY,) * 2)\n"
        "except (OSError, ValueError):\n    pass\n" + SUM
    ),
    "shared value": (
        "import multiprocessing\ndef work(value, x):\n    with value.get_lock():\n        value.value += int(x)\n"
        "if __name__ == '__main__':\n    value = multiprocessing.Value('i', 0)\n"
        "    workers = [multiprocessing.Process(target=work, args=(value, input())) for _ in range(2)]\n"
        "    for worker in workers:\n        worker.start()\n    for worker in workers:\n        worker.join()\n"
        "    print(value.value)"
    ),
    "match": "match [int(input()), int(input())]:\n    case [a, b]:\n        print(a + b)",
}
FUNCTIONS = {
    "changed in place": ("def f(a):\n    a.sort()", ["a = [3, 1]\nf(a)\nassert a == [1, 3]"]),
    "changed rows": ("def f(m):\n    m[0][0] = 9", ["r = [1]\nm = [r]\nf(m)\nassert r == [9] and m == [[9]]"]),
    "changed dict": ("def f(d):\n    d.pop(1)", ["d = {1: 2, 3: 4}\nf(d)\nassert d == {3: 4}"]),
    "the argument itself": ("def f(a):\n    a.append(1)\n    return a", ["a = []\nassert f(a) is a and a == [1]"]),
    "lambda": ("def f(g, x):\n    return g(x)", ["assert f(lambda y: y + 1, 2) == 3"]),
    "library function": ("def f(g, x):\n    return g(x)", ["import math\nassert f(math.sqrt, 4) == 2"]),
    "callback that calls back": ("def f(g):\n    return g(lambda x: x * 2)", ["assert f(lambda h: h(4)) == 8"]),
    "iterator": ("def f(it):\n    return sum(it)", ["assert f(iter([1, 2])) == 3", "assert f(x for x in [1]) == 1"]),
    "callback that raises": (
        "def f(g):\n    try:\n        g()\n    except ZeroDivisionError:\n        return 1",
        ["assert f(lambda: 1 // 0) == 1"],
    ),
    "dataclass": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
        "def f(x):\n    return P(x).x",
        ["assert f(1) == 1"],
    ),
    "exit at the end": ("def f(x):\n    return x\nexit()", ["assert f(1) == 1"]),
    "pickle": (
        "import pickle\nclass P:\n    def __init__(self, x):\n        self.x = x\n"
        "def f(x):\n    return pickle.loads(pickle.dumps(P(x))).x",
        ["assert f(1) == 1"],
    ),
    "pool": (
        "from multiprocessing import Pool\ndef g(x):\n    return x + 1\n"
        "def f(xs):\n    with Pool(2) as pool:\n        return pool.map(g, xs)",
        ["assert f([1, 2]) == [2, 3]"],
    ),
    "thread": (
        "import threading\ndef f(x):\n    got = []\n    t = threading.Thread(target=got.append, args=(x,))\n"
        "    t.start()\n    t.join()\n    return got[0]",
        ["assert f(1) == 1"],
    ),
    "large integers": ("def f(x):\n    return str(x * x)", ["assert f(10**5000) == str(10**10000)"]),
    "large integers, by call": (
        "def f(x):\n    return x, str(x)",
        {"fn_name": "f", "inputs": [[10**5000]], "outputs": [[10**5000, "1" + "0" * 5000]]},
    ),
    "large integers, printed": (
        "import sys\nsys.set_int_max_str_digits(0)\nprint(int(input()) + 1)",
        {"inputs": [[10**5000]], "outputs": [10**5000 + 1]},
    ),
    "key of a lambda": ("def f(a, key):\n    return sorted(a, key=key)", ["assert f([1, 3], lambda x: -x) == [3, 1]"]),
    "generator": ("def f(n):\n    yield from range(n)", ["assert next(f(2)) == 0 and list(f(3)) == [0, 1, 2]"]),
    "named tuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f():\n    return P(1, [2])",
        ["assert f() == (1, [2]) and f().y == [2]"],
    ),
    "class": (
        "class Stack:\n    def __init__(self):\n        self.items = []\n    def push(self, x):\n"
        "        self.items.append(x)\n    def __len__(self):\n        return len(self.items)",
        ["s = Stack()\ns.push(3)\nassert len(s) == 1 and s.items == [3]"],
    ),
    "completion of a bare line": (
        "def f(x):\n    return x + 1",
        {"entry_point": "f", "prompt": "def f(x):\n", "test": "def check(c):\n    assert c(1) == 2"},
    ),
    "LeetCode, cached": (
        "class Solution:\n    def climb(self, n: int) -> int:\n        @cache\n        def f(i):\n"
        "            return 1 if i < 2 else f(i - 1) + f(i - 2)\n        return f(n)",
        {"fn_name": "climb", "inputs": [[5]], "outputs": [8]},
    ),
    "main guard that reads": (
        "def f(x):\n    return x\nif __name__ == '__main__':\n    print(f(int(input())))",
        ["assert f(1) == 1"],
    ),
    "closure": ("def f(n):\n    return lambda x: x + n", ["assert f(2)(3) == 5"]),
    "LeetCode": (
        "class Solution:\n    def f(self, a: List[int]) -> int:\n        return max(Counter(a).values())",
        {"fn_name": "f", "inputs": [[[1, 1, 2]]], "outputs": [2]},
    ),
    "LeetCode, a library's name": (
        "class Solution:\n    def combinations(self, n: int) -> int:\n        return comb(n, 2)",
        {"fn_name": "combinations", "inputs": [[4]], "outputs": [6]},
    ),
    "whole numbers as keys": (
        "def f(d):\n    return d[1]",
        {"fn_name": "f", "inputs": [[{"1": 5}]], "outputs": [5]},
    ),
}


def verdicts(cases):
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(cases, pool.map(lambda case: code.verify(*case), cases.values()), strict=True))


def test_right_programs_pass():
    cases = {name: (program, ADD) for name, program in SCRIPTS.items()}
    assert verdicts(cases | FUNCTIONS) == dict.fromkeys(cases | FUNCTIONS, True)


WRONG = {
    "annotations are evaluated": ("def f(x: undefined): return x", ["assert f(1) == 1"]),
    "raises after the answer": ("print(3)\nraise ValueError", ADD),
    "exit code": ("print(3)\nexit(1)", ADD),
    "in place, not done": ("def f(a):\n    return sorted(a)", ["a = [3, 1]\nf(a)\nassert a == [1, 3]"]),
    "in place, another type": ("def f(a):\n    a[:] = (0,)", ["a = [3, 1]\nf(a)\nassert a == [1, 3]"]),
    "lambda not called": ("def f(g, x):\n    return x", ["assert f(lambda y: y + 1, 2) == 3"]),
    "the preamble's function": (
        "x = 1",
        {"fn_name": "gcd", "inputs": [[4, 6]], "outputs": [2]},
    ),
    "a named tuple that equals everything": (
        "from collections import namedtuple\nclass T(namedtuple('T', 'x')):\n    __eq__ = lambda *_: True\n"
        "def f(x):\n    return T(1)",
        ["assert f(1) == (2,)"],
    ),
    "a real number inside, by call": (
        "def f(x):\n    return {'a': [0.2]}",
        {"fn_name": "f", "inputs": [[1]], "outputs": [{"a": [0.3]}]},
    ),
    "true is not one": ("def f(x):\n    return True", {"fn_name": "f", "inputs": [[1]], "outputs": [1]}),
    "close to a tiny number": (
        "def f(x): return 2e-7",
        {"fn_name": "f", "inputs": [[1]], "outputs": [1e-7]},
    ),
}


def test_wrong_programs_fail():
    assert verdicts(WRONG) == dict.fromkeys(WRONG, False)


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("0110", "110", False),
        ("1_000", "1000", False),
        ("５", "5", False),
        ("٣.5", "3.5", False),
        ("1e3", "1000", False),
        ("+5", "5", False),
        ("-0", "0", False),
        ("00.5", "0.5", False),
        ("1\u30002", "1 2", False),
        ("1\x0b2", "1\n2", False),
        ("0.0000002", "0.0000001", False),
        ("inf", "Infinity", False),
        ("5.0", "5", True),
        ("5", "5.0", True),
        ("0.33333333333", "0.333333333", True),
        ("3.1416", "3.1415", False),
        ("1e-12", "0.0", True),
        ("1e+16", "10000000000000000.0", True),
        ("a  b \r\n\n", "a b", True),
        ("12345678901234567890", "12345678901234567891", False),
        ("1" * 6000, "1" * 6000, True),
        ("1 2", "1\n2", False),
    ],
)
def test_output(printed, expected, same):
    assert code.same_output(printed, expected) is same


def fenced(text, mark="```", language="python", indent=""):
    lines = [mark + language, *text.strip("\n").split("\n"), mark]
    return "\n".join(indent + line for line in lines) + "\n"


F = "def f(x):\n    return x + 1"
OUTPUT = fenced("2", language="")
USAGE = fenced("from solution import f\nprint(f(1))")
ASSERTS = {"test_list": ["assert f(1) == 2"]}
CALL = {"fn_name": "f", "inputs": [[1]], "outputs": [2]}
CHECK = {"entry_point": "f", "test": "def check(c):\n    assert c(1) == 2", "prompt": "import math\n\ndef f(x):\n"}


@pytest.mark.parametrize("tests", [ASSERTS, CALL, CHECK], ids=["asserts", "call", "check"])
@pytest.mark.parametrize(
    "response",
    [
        f"So:\n{fenced(F)}Output:\n{OUTPUT}",
        f"So:\n{fenced(F)}Usage:\n{USAGE}",
        f"{fenced('def f(x):' + chr(10) + '    return 0')}Better:\n{fenced(F)}{fenced('python a.py', language='bash')}",
        fenced(F, "~~~"),
        fenced(F, "````", "Python"),
        f"1. First:\n\n{fenced(F, indent='   ')}\n2. Then done.",
        f"- item\n{fenced(F, indent=chr(9))}",
        "".join("> " + line + "\n" for line in fenced(F).splitlines()),
        f"```python\n{F}",
        fenced(F, language=" {.python}"),
    ],
)
def test_block_that_defines(response, tests):
    space = {}
    exec(code.extract_program(response, tests), space)
    assert space["f"](1) == 2


@pytest.mark.parametrize(
    "response",
    [
        f"{fenced(SUM)}Output:\n{fenced('3', language='')}",
        f"{fenced(SUM)}Run it:\n{fenced('print(1 + 2)')}",
        f"{fenced(SUM)}Test:\n{fenced('import io, sys' + chr(10) + 'sys.stdin = io.StringIO(str(1))')}",
        fenced(SUM, "~~~", indent="    "),
    ],
)
def test_block_that_reads(response):
    assert code.extract_program(response, ADD).strip() == SUM


@pytest.mark.parametrize("tests", [ASSERTS, CALL, CHECK], ids=["asserts", "call", "check"])
@pytest.mark.parametrize(
    "helper", ["def g(x):\n    return x + 1", "from operator import neg as n\ng = lambda x: -n(x) + 1"]
)
def test_helpers_in_blocks_of_their_own(helper, tests):
    space = {}
    uses = fenced("def f(x):\n    return g(x)")
    demo = fenced("x = 1\nprint(f(x))\nraise ValueError")
    program = code.extract_program(f"{demo}A helper:\n{fenced(helper)}\nThen:\n{uses}", tests)
    exec(program, space)
    assert space["f"](1) == 2 and "ValueError" not in program


def test_completion_in_a_block_and_future_import():
    prompt = "import math\n\n\ndef f(x):\n    '''Add one.'''\n"
    tests = {"entry_point": "f", "test": "", "prompt": prompt}
    for body in ("return x + 1", "    return x + 1", "from __future__ import annotations\n" + F):
        space = {}
        exec(code.extract_program(fenced(body), tests), space)
        assert space["f"](1) == 2
