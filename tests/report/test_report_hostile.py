"""Model output, problems and names reach the page as text, whatever they hold."""

import pytest
from pages import Page
from simulated_run import HOSTILE

from dapo_fast.report.page import script_json


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
