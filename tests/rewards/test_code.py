"""Code rewards: references pass, emptied ones fail, and no attack turns a wrong program into a right one."""

import os
import shutil
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.programs import EMPTY, emptied, references
from dapo_fast.errors import InputError
from dapo_fast.rewards import code, sandbox, verify_many

SLICES = Path(__file__).parent / "slices"
ADD_ONE = ["assert f(1) == 2", "assert f(5) == 6"]


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_references_pass_and_emptied_ones_fail(name):
    pairs = references(SLICES / f"{name}.jsonl")
    right = [(solution, problem.tests) for problem, solution in pairs]
    wrong = [
        (emptied(solution, statement), problem.tests) for problem, solution in pairs for statement in EMPTY.values()
    ]
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(lambda pair: code.verify(*pair), right + wrong))
    assert verdicts == [True] * len(right) + [False] * len(wrong)


def test_responses_become_programs():
    problem, solution = references(SLICES / "humaneval.jsonl")[0]
    body = solution.removeprefix(problem.prompt)
    fenced = f"Sure:\n```python\n{solution}\n```\nIt loops over all pairs."
    alone = "```python\n" + solution[solution.index("def ") :] + "```"
    continued = body + "\n\nprint(undefined_name)\n"
    responses = [body, fenced, alone, continued, "I do not know.", "```python\n```"]
    assert verify_many([(problem, r) for r in responses]) == [True, True, True, True, False, False]


def test_standard_input_and_output():
    tests = {"inputs": ["2\n3 4\n5 6\n", ["1", "1 1"]], "outputs": ["7\n11\n", "2"]}
    right = "for _ in range(int(input())):\n    print(sum(map(int, input().split())), '')"
    assert code.verify(right, tests)
    assert not code.verify(right.replace("sum", "max"), tests)
    assert not code.verify(right + "\nraise SystemExit(3)", tests)
    assert not code.verify("print('7\\n11')", tests)  # answers the first only
    assert code.verify("import sys\nprint(len(sys.stdin.read()) / 3)", {"inputs": ["a"], "outputs": ["0.333333333"]})


def test_calls_by_name():
    tests = {"fn_name": "pair", "inputs": [[1, 2], [3, 4]], "outputs": [[1, 2], [[3, 4]]]}
    assert code.verify("def pair(a, b):\n    return a, b", tests)
    assert code.verify("class Solution:\n    def pair(self, a, b):\n        return [a, b]", tests)
    assert not code.verify("class Solution:\n    def pair(self, a, b):\n        return [b, a]", tests)
    assert not code.verify("def other(a, b):\n    return a, b", tests)


def test_an_integer_equals_the_real_number_that_it_is():
    tests = {"fn_name": "f", "inputs": [[1], [2]], "outputs": [2.0, 4]}
    assert code.verify("def f(x): return 2 * x", tests)
    assert code.verify("def f(x): return 2.0 * x", tests)
    assert not code.verify("def f(x): return 2.01 * x", tests)
    endless = {"fn_name": "f", "inputs": [[1]], "outputs": [float("inf")]}
    assert code.verify("def f(x): return float('inf')", endless) and not code.verify("def f(x): return 0", endless)
    assert not code.verify("def f(x): return True", {"fn_name": "f", "inputs": [[1]], "outputs": [1.0]})


def test_values_cross_as_what_they_are():
    program = (
        "import collections, decimal, datetime, re\n"
        "def f(kind):\n"
        "    return {'counter': collections.Counter('aab'), 'big': 10 ** 5000, 'nan': float('nan'), 'z': -0.0,\n"
        "            'set': {1, (2, 3)}, 'bytes': b'\\xff', 'surrogate': '\\ud800',\n"
        "            'decimal': decimal.Decimal('1.10'),\n"
        "            'date': datetime.date(2020, 1, 2), 'generator': (i for i in range(3)),\n"
        "            'match': re.match('a', 'a'),\n"
        "            'bool': True, 'complex': 1j, 'range': range(3), 'back': lambda x: x}[kind]\n"
    )
    tests = [
        "assert f('counter') == {'a': 2, 'b': 1}",
        "assert f('big') == 10 ** 5000",
        "assert f('nan') != f('nan')",
        "assert str(f('z')) == '-0.0'",
        "assert f('set') == {1, (2, 3)}",
        "assert f('bytes') == b'\\xff' and f('surrogate') == '\\ud800'",
        "assert str(f('decimal')) == '1.10' and f('date').year == 2020",
        "assert list(f('generator')) == [0, 1, 2]",
        "assert f('match').group() == 'a' and f('match').re.pattern == 'a'",
        "assert f('bool') is True and f('complex') == 1j and f('range') == range(3)",
        "assert f('back')({1: [2]}) == {1: [2]}",
    ]
    assert code.verify(program, tests)


def test_exceptions_reach_the_test_as_themselves():
    program = "def f(x):\n    raise ValueError('no')"
    expects = "try:\n    f(1)\nexcept ValueError as error:\n    assert str(error) == 'no'\nelse:\n    assert False"
    assert code.verify(program, [expects])
    assert not code.verify("def f(x):\n    return 1", [expects])


@pytest.mark.parametrize(
    ("shadow", "tests"),
    [
        ("def set(x): return 1", ["assert set(f(1)) == set([2])"]),
        ("def sorted(x): return 1", ["assert sorted(f(1)) == sorted([2])"]),
        ("def all(x): return True", ["assert all(f(x) == x + 1 for x in range(3))"]),
        ("def abs(x): return 0", ["assert abs(f(1) - 2) < 1e-6"]),
        ("def isinstance(*x): return True", ["assert isinstance(f(1), str)"]),
        ("class math:\n    isclose = staticmethod(lambda *a: True)", ["assert math.isclose(f(1), 2)"]),
        ("def Counter(x): return 0", ["assert f(1) == Counter('a')"]),
        ("class np:\n    array_equal = staticmethod(lambda *a: True)", ["assert np.array_equal(f(1), [2])"]),
        ("def f(x): raise StopIteration", ["assert all(map(f, [1, 2]))", "assert list(map(f, [1])) == []"]),
        ("def f(x): raise GeneratorExit", ["assert all(f(y) for y in [1])"]),
    ],
)
def test_names_of_the_judge_are_its_own(shadow, tests):
    assert not code.verify(f"def f(x): return 0\n{shadow}", tests, timeout=1)


def test_function_named_like_a_builtin_is_the_programs():
    assert code.verify("def sum(a, b): return a * b", ["assert sum(3, 4) == 12"])
    assert not code.verify("def sum(a, b): return a + b", ["assert sum(3, 4) == 12"])


READ_SECRET = """
import os
def f(x):
    os.symlink({folder!r}, '/tmp/link')
    prefixes = ('', '/tmp/../..', '/old_root', '/proc/1/root', '/proc/self/root')
    for path in ('/tmp/link/secret', *(prefix + {file!r} for prefix in prefixes)):
        try:
            return open(path).read()
        except OSError:
            continue
"""


def test_files_outside_are_not_there(tmp_path):
    places = [tmp_path, Path.home() / f".dapo-test-{os.getpid()}"]
    try:
        for place in places:
            place.mkdir(exist_ok=True)
            (place / "secret").write_text("42")
            program = READ_SECRET.format(folder=str(place), file=str(place / "secret"))
            assert not code.verify(program, ["assert f(0) == '42'"])
            writes = f"def f(x):\n    open({str(place / 'left')!r}, 'w').write('x')\n    return 1"
            assert not code.verify(writes, ["assert f(0) == 1"])
            assert not (place / "left").exists()
    finally:
        shutil.rmtree(places[1])


def test_tmp_is_private_and_bounded():
    assert code.verify(
        "def f(x):\n    open('/tmp/a', 'w').write('2')\n    return int(open('/tmp/a').read())", ADD_ONE[:1]
    )
    assert code.verify("import os\ndef f(x): return os.listdir('/tmp')", ["assert f(0) == []"])
    fill = "def f(x):\n    for i in range(1000):\n        open(f'/tmp/{i}', 'wb').write(bytes(1 << 20))\n    return 2"
    assert not code.verify(fill, ADD_ONE[:1])
    assert not code.verify("def f(x):\n    open('/tmp/a', 'wb').write(bytes(1 << 25))\n    return 2", ADD_ONE[:1])


@pytest.mark.parametrize("family", ["inet", "unix", "abstract"])
def test_no_socket_reaches_out(family, tmp_path):
    kind = socket.AF_INET if family == "inet" else socket.AF_UNIX
    with socket.socket(kind) as server:
        address = {"inet": ("127.0.0.1", 0), "unix": str(tmp_path / "s"), "abstract": f"\0dapo-{os.getpid()}"}[family]
        server.bind(address)
        server.listen()
        address = server.getsockname()
        address = address.decode("latin-1") if isinstance(address, bytes) else address
        program = f"import socket\ndef f(x):\n    socket.socket(socket.{kind.name}).connect({address!r})\n    return 2"
        assert not code.verify(program, ADD_ONE[:1])
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


ENDS_EVERYTHING = """
import __main__
honest = __main__.write_frame
def write_frame(file, value):
    answer = value[0] == 'value' and value[1][0] != 'held'
    honest(file, ['end'] if answer else value)
__main__.write_frame = write_frame
def f(x): return 0
"""
HOLDS_EVERYTHING = """
class Everything:
    def __contains__(self, key): return True
def f(x): return Everything()
"""


def test_an_end_where_nothing_is_iterated_is_no_answer():
    tests = ["for k, v in zip([1, 2], map(f, [1, 2])):\n    assert v == k * 7"]
    assert code.verify("def f(x): return x * 7", tests)
    assert not code.verify(ENDS_EVERYTHING, tests)


def test_membership_is_decided_on_the_judges_side():
    assert code.verify("def f(x): return iter(['x'])", ["assert 'x' in f(1)"])
    assert not code.verify(HOLDS_EVERYTHING, ["assert 'x' in f(1)"])


def test_children_do_not_hold_up_the_verdict():
    program = "import os, time\nif os.fork() == 0:\n    time.sleep(1000)\nprint(int(input()) + 1)"
    assert code.verify(program, {"inputs": ["1"], "outputs": ["2"]})


def test_many_at_once():
    programs = ["def f(x): return x + 1", "def f(x): return x"] * 6
    results = [None] * len(programs)

    def work(index):
        results[index] = code.verify(programs[index], ADD_ONE)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(programs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True, False] * 6


def test_refuses_without_a_sandbox_unless_told(monkeypatch, caplog):
    monkeypatch.setattr(sandbox, "_working_method", lambda: (None, "nothing works"))
    monkeypatch.delenv(sandbox.INSECURE_VARIABLE, raising=False)
    with pytest.raises(InputError, match="nothing works"):
        code.verify("def f(x): return x + 1", ADD_ONE)
    sandbox._warn_insecure.cache_clear()
    with caplog.at_level("WARNING", logger="dapo_fast.rewards"):
        assert code.verify("def f(x): return x + 1", ADD_ONE, insecure=True)
        assert not code.verify("def f(x): return x", ADD_ONE, insecure=True)
    assert "WITHOUT A SANDBOX" in caplog.text


def test_unknown_form_of_tests():
    with pytest.raises(InputError, match="no known form"):
        code.verify("x = 1", {"cases": []})
