"""Model output, problems and names reach the page as text, whatever they hold."""

import pytest
from conftest import byte_tokenizer, start_run, write_iteration
from pages import Page

from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.report import write_report
from dapo_fast.report.page import script_json

HOSTILE = [
    "</script><script>window.hacked=1</script>",
    "<!--<script>",
    "<img src=x onerror=window.hacked=1>",
    "]]><svg onload=window.hacked=1>",
    "\u2028\u2029 line separators",
    "&lt;b&gt; &amp; \"quotes\" 'and' `more`",
    "\x00\x01\x7f control",
    "\u202egnihton",
    "${alert(1)} {{7*7}} <!--data--> <!--iterations-->",
    "ünïcödé 数学 🧮 \\frac{1}{2}",
]


def hostile_tree(text: str, index: int) -> Tree:
    tokenizer = byte_tokenizer()
    first = tokenizer(text + "\n", add_special_tokens=False)["input_ids"]
    last = [*tokenizer("done", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    other = tokenizer("plain\n", add_special_tokens=False)["input_ids"]
    trunk = Trunk(first + last, [len(first), len(first) + len(last)], 1.0, True)
    candidates = [Candidate(first, 3, False, 0.0, q=0.9), Candidate(other, 1, False, 0.0, q=0.1)]
    states = [
        State(0, 0, [1.0, 1.0, 1.0, 0.0], candidates, value=0.7),
        State(0, 1, [1.0, 1.0], [Candidate(last, 2, True, 1.0, q=1.0)], value=0.9),
    ]
    prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Tree(f"{index}{text}", text, text, prompt_ids, [trunk], states, 4, 3)


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    path = start_run(tmp_path_factory.mktemp("hostile") / "run <b>&amp;", "data.template=</script><i>{prompt}")
    write_iteration(path, 1, 0, trees=[hostile_tree(text, i) for i, text in enumerate(HOSTILE)])
    write_report(path)
    return path


def test_text_survives_and_markup_does_not(hostile_run):
    page = Page(hostile_run / "report.html")
    prompts = {row["prompt"] for row in page.trajectories}
    assert prompts == set(HOSTILE)
    assert {row["steps"][0]["text"] for row in page.trajectories} == {text + "\n" for text in HOSTILE}
    assert len(page.scripts) == 2
    assert not [tag for tag, a in page.elements if tag == "img" or "onload" in a or "onerror" in a]
    assert "run <b>&amp;" in page.text
    assert "</script><i>{prompt}" in page.text


@pytest.mark.parametrize("text", HOSTILE)
def test_script_data_cannot_end_its_element(text):
    safe = script_json([text, {text: text}])
    assert "<" not in safe
    assert ">" not in safe
    assert safe.isascii()


def test_only_our_script_may_run(hostile_run):
    page = Page(hostile_run / "report.html")
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
