"""The page in a real browser: no console error, every figure drawn, usable by keyboard alone."""

import os
import shutil

import pytest
from browser import Browser, why_not
from pages import Page
from simulated_run import HOSTILE

from dapo_fast.report import write_report

pytestmark = pytest.mark.skipif(
    why_not() is not None and os.environ.get("DAPO_REQUIRE_BROWSER") != "1", reason=f"no browser: {why_not()}"
)

DOWN, UP, TAB, ENTER, END = "\ue015", "\ue013", "\ue004", "\ue007", "\ue010"


@pytest.fixture(scope="module")
def page_path(finished_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("browser") / "demo-run"
    shutil.copytree(finished_run, path)
    return write_report(path)


@pytest.fixture(scope="module")
def window():
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(window, page_path):
    window.open(page_path)
    yield window
    assert window.errors() == []


def test_every_figure_is_drawn(browser, page_path):
    drawn = browser.run(
        """return [...document.querySelectorAll("svg[role=img]")].map((svg) => {
             const box = svg.getBoundingClientRect();
             return [svg.getAttribute("aria-label"), box.width, box.height, svg.childElementCount];
           })"""
    )
    written = [a["aria-label"] for tag, a in Page(page_path).elements if tag == "svg"]
    assert [label for label, *_ in drawn if not label.startswith("Value along")] == written
    assert all(width > 100 and height > 15 and children for _, width, height, children in drawn)
    assert len(drawn) > 20


@pytest.mark.parametrize("width", [1280, 768, 360])
def test_nothing_sticks_out(browser, width):
    browser.resize(width, 900)
    try:
        assert browser.run("return document.documentElement.scrollWidth") <= width
    finally:
        browser.resize(1280, 900)


def test_light_and_dark_are_readable(browser):
    contrast = """
      const light = (c) => { const v = c.match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255)
        .map((x) => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
      const paper = light(getComputedStyle(document.body).backgroundColor);
      return ["h1", "figcaption", ".advantage.plus", ".advantage.minus", ".tick", ".list .which"].map((name) => {
        const style = getComputedStyle(document.querySelector(name));
        const ink = light(name === ".tick" ? style.fill : style.color);
        return [name, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05), paper];
      });"""
    papers = []
    for scheme in ("dark", "light"):
        browser.prefer(scheme)
        measured = browser.run(contrast)
        assert all(ratio >= 4.5 for _, ratio, _ in measured), measured
        papers.append(measured[0][2])
    assert papers[0] < 0.1 < 0.9 < papers[1]


def test_the_list_by_keyboard(browser, page_path):
    data = Page(page_path).trajectories
    browser.run("document.getElementById('responses').focus()")
    browser.press(DOWN, DOWN, UP)
    assert browser.run("return document.querySelector('#trajectory h3').textContent") == f"Problem {data[1]['problem']}"
    assert browser.run("return document.activeElement.getAttribute('aria-activedescendant')") == "response-1"
    browser.press(END)
    assert browser.run("return document.querySelector('[aria-selected=true]').id") == f"response-{len(data) - 1}"


def test_candidates_unfold_by_keyboard(browser, page_path):
    first = Page(page_path).trajectories[0]
    browser.run("document.querySelector('#trajectory summary').focus()")
    browser.press(ENTER)
    assert browser.run("return document.querySelector('#trajectory details').open")
    rows = browser.run(
        "return [...document.querySelectorAll('#trajectory details[open] tbody tr')].map("
        "(row) => [...row.cells].map((cell) => cell.textContent))"
    )
    candidates = first["steps"][0]["candidates"]
    assert len(rows) == len(candidates)
    for row, candidate in zip(rows, candidates):
        assert row[1] == f"×{candidate['count']}"
        assert row[4] == f"{candidate['q']:.3f}"
        if candidate["after"] is not None:
            assert row[7] == f"{candidate['after']:.2f}".replace("-", "−")
    browser.press(DOWN)
    assert browser.run("return [...document.querySelectorAll('#trajectory summary')][1] === document.activeElement")


def test_all_controls_are_reached_by_tab(browser):
    browser.run("document.body.tabIndex = -1; document.body.focus()")
    seen = []
    for _ in range(40):
        browser.press(TAB)
        seen.append(browser.run("const e = document.activeElement; return e.id || e.name || e.className || e.tagName"))
    for wanted in ("skip", "outcome", "iteration", "search", "responses", "unfold", "SUMMARY"):
        assert wanted in seen


def test_filters(browser, page_path):
    data = Page(page_path).trajectories
    shown = "return document.getElementById('shown').textContent"
    browser.click("input[value=wrong]")
    wrong = sum(not row["correct"] for row in data)
    assert browser.run(shown) == f"{wrong} of {len(data)} responses"
    browser.run(
        "const box = document.querySelector('select'); box.value = '2';"
        "box.dispatchEvent(new InputEvent('input', {bubbles: true}))"
    )
    both = sum(not row["correct"] and row["iteration"] == 2 for row in data)
    assert browser.run(shown) == f"{both} of {len(data)} responses"
    browser.type("input[type=search]", "no such step")
    assert browser.run(shown) == f"0 of {len(data)} responses"
    assert "No response matches" in browser.run("return document.getElementById('trajectory').textContent")


def test_unfold_all(browser, page_path):
    browser.click(".unfold")
    steps = Page(page_path).trajectories[0]["steps"]
    assert browser.run("return document.querySelectorAll('#trajectory details[open]').length") == len(steps)


def test_a_step_is_told_in_words_and_sign(browser, page_path):
    data = Page(page_path).trajectories[0]["steps"]
    cells = browser.run("return [...document.querySelectorAll('.advantage')].map((cell) => cell.textContent)")
    for cell, step in zip(cells, data, strict=True):
        value = step["advantage"]
        sign = "▲ +" if value >= 0.005 else "▼ −" if value <= -0.005 else ""
        assert cell == f"advantage {sign}{abs(value):.2f}"


def test_hostile_text_is_only_text(window, hostile_run):
    window.open(hostile_run / "report.html")
    assert window.errors() == []
    for _ in HOSTILE:
        window.run("document.getElementById('responses').focus()")
        window.press(DOWN)
    assert window.run("return window.hacked === undefined")
    assert window.run("return document.querySelectorAll('img, #trajectory script, #trajectory b + img').length") == 0
    prompts = set()
    for i in range(len(HOSTILE)):
        window.click(f"#response-{i}")
        prompts.add(window.run("return document.querySelector('.prompt').textContent"))
    assert prompts == set(HOSTILE)
    assert window.errors() == []
