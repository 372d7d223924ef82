"""The page of a finished run shows what the run's files hold."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from pages import Page
from simulated_run import PROVENANCE

from dapo_fast.data.store import read_trees
from dapo_fast.report import write_report
from dapo_fast.report.critic import THIN, reliability_chart
from dapo_fast.report.training import moving_average
from dapo_fast.report.trees import REASONS


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "demo-run"
    shutil.copytree(finished_run, path)
    write_report(path)
    return path


@pytest.fixture(scope="module")
def page(run):
    return Page(run / "report.html")


def load(path):
    return json.loads(path.read_text())


def test_all_sections_and_no_word_of_anything_missing(page):
    sections = ["accuracy", "heldout", "trajectories", "steps", "critic", "advantages", "training", "cost"]
    sections.append("settings")
    assert page.anchors() == ["provenance", *sections]
    assert not [a for _, a in page.elements if "missing" in a.get("class", "")]


def test_it_needs_no_other_file(page):
    for tag, attributes in page.elements:
        assert tag not in ("img", "iframe", "object", "embed")
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert "http" not in page.html.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def test_it_begins_with_where_it_comes_from(page):
    assert page.tables["Processes"][1] == ["2026-01-02 03:04 UTC", PROVENANCE["command"], PROVENANCE["commit"]]
    assert page.tables["Made on"][1:] == [
        ["machine", "Some Processor, 2 cores"], ["device", "CPU"], ["versions", "dapo-fast 0.1.0, torch 2.13.0"],
    ]  # fmt: skip


def test_heldout_responses_stand_with_the_values_of_their_steps(page):
    assert page.tables["Held-out a, right"] == page.tables["Held-out b, wrong"] == [
        ["", "step", "V before", "V after", "change"],
        ["1", "1<2", "0.50", "0.75", "+0.25"],
        ["2", "so 3", "0.75", "–", "–"],
    ]  # fmt: skip
    assert "Problem b: wrong, reward 0.25; expected 3" in page.text and "after iteration 2" in page.text


def test_the_best_and_worst_steps_are_those_of_the_trees(run, page):
    trees = list(read_trees(run / "iter1" / "advantages"))
    steps = [c for tree in trees for state in tree.states if state.kept for c in state.candidates]
    advantages = [c.advantage for c in steps if not c.terminal]
    head, *rows = page.tables["Best and worst steps, iteration 1"]
    assert head == ["step", "Â", "right", "before", "after", "what came of it"] and len(rows) == 8
    shown = [float(row[1]) for row in rows]
    assert shown == sorted(shown, reverse=True)
    assert (shown[0], shown[-1]) == (round(max(advantages), 2), round(min(advantages), 2))
    for row, value in zip(rows, shown, strict=True):
        before, after = (float(cell.rstrip("%")) for cell in row[3:5])
        if "more likely" in row[5] or "less likely" in row[5]:
            assert (after >= before) == ("more likely" in row[5])
            assert ("against its advantage" in row[5]) == ((after > before) != (value > 0))


def test_it_opens_on_the_response_that_missed_most(page):
    def missed(row):
        known = [(s["advantage"], [c["advantage"] for c in s["candidates"]]) for s in row["steps"] if s["candidates"]]
        return max(max(candidates) - taken for taken, candidates in known)

    assert [row["missed"] for row in page.trajectories] == pytest.approx(list(map(missed, page.trajectories)), abs=2e-4)
    assert page.trajectories[0]["missed"] == max(map(missed, page.trajectories)) > 0.5


def test_an_axis_that_does_not_begin_at_zero_says_so(page):
    assert "held-out accuracy, axis from 20%" in page.text


def test_a_moving_average_has_no_spike_at_its_ends():
    points = [(float(i), 10.0 if i in (0, 99) else 1.0) for i in range(100)]
    line = [y for _, y in moving_average(points)]
    assert line[0] == line[-1] == 2.5 and len(line) == 100  # 10 and five times 1
    assert line[50] == 1


def test_bins_of_few_states_are_in_the_table_alone(page):
    bins = [{"low": 0.1 * i, "high": 0.1, "states": n, "predicted": 0.1 * i, "observed": 0.5} for i, n in
            enumerate((THIN, THIN - 1, 40))]  # fmt: skip
    drawing = reliability_chart(bins).svg()
    assert drawing.count("<circle") == drawing.count('class="interval') == 2
    assert drawing.rindex('class="interval') < drawing.index("<circle")


def test_results_are_those_of_the_evaluations(run, page):
    rows = page.tables["Results by iteration"]
    for iteration, row in enumerate(rows[1:]):
        summary = load(run / f"iter{iteration}" / "evaluate" / "summary.json")
        for mode, cell in zip(("greedy", "sampled"), row[1:3]):
            value = summary[mode]
            assert cell == f"{value['accuracy']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"
    assert rows[2][5].startswith("accepted: sampled accuracy")
    assert rows[3][5].startswith("rejected: sampled accuracy")
    done = load(run / "iter1" / "advantages" / "done.json")
    assert rows[2][3:5] == [f"{done['kept']:,} of {done['states']:,}", f"{done['pairs']:,}"]
    details = page.tables["Evaluations"]
    assert details[0] == ["policy", "problems", "samples", "pass@4", "cut off", "tokens"]
    assert details[2] == ["base, sampled", "1,000", "4", "93.0%", "0.0%", "15.5"]


def test_accuracy_on_the_way_is_drawn_where_it_was_measured(run, page):
    (only,) = page.tables["Actor: validation accuracy"][1:]
    assert only == ["iteration 2", "4", "0.5", "0.4", "0.4", "0.4", "0.7"]
    assert "Iteration 2 exports the policy of step 40, the best on data.validation: 70.0% [65.0%, 75.0%]." in page.text


def test_critic_numbers_are_those_of_the_heldout_file(run, page):
    for iteration in (1, 2):
        measured = load(run / f"iter{iteration}" / "critic" / "heldout.json")
        caption = f"Critic of iteration {iteration} on {measured['states']:,} held-out states"
        table = next(rows for name, rows in page.tables.items() if name.startswith(caption))
        shown = {row[0]: row[1:3] for row in table[1:]}
        for title, key in {"Brier score": "brier", "AUC": "auc", "cross-entropy": "bce"}.items():
            assert shown[title] == [f"{measured[who][key]:.3f}" for who in ("critic", "constant")]
        bins = page.tables[f"Reliability, iteration {iteration}"][1:]
        assert [row[1] for row in bins] == [str(b["states"]) for b in measured["critic"]["calibration"]]
        assert [row[3] for row in bins] == [f"{b['observed']:.3f}" for b in measured["critic"]["calibration"]]


def test_every_state_is_counted_once(run, page):
    for iteration in (1, 2):
        trees = list(read_trees(run / f"iter{iteration}" / "advantages"))
        states = [state for tree in trees for state in tree.states]
        bars = [a["aria-label"] for tag, a in page.elements if tag == "svg" and "stack" in a.get("class", "")]
        label = next(label for label in bars if label.startswith(f"Of {len(states):,} states"))
        counts = [int(part.rsplit(" ", 1)[1].replace(",", "")) for part in label.split(": ")[1].split(", ")]
        assert sum(counts) == len(states)
        assert f"kept {sum(bool(s.kept) for s in states)}" in label
        assert any(name in label for name in REASONS.values())


def test_histograms_hold_every_pair_and_every_gap(run, page):
    trees = list(read_trees(run / "iter1" / "advantages"))
    kept = [state for tree in trees for state in tree.states if state.kept]
    rows = page.tables["Advantages, iteration 1"][1:]
    assert sum(int(row[1]) for row in rows) == sum(len(state.candidates) for state in kept)
    negative = sum(int(row[1]) for row in rows if row[0].startswith("-"))
    assert negative == sum(c.advantage < -1e-6 for state in kept for c in state.candidates)
    several = [state for tree in trees for state in tree.states if len(state.candidates) > 1]
    gaps = page.tables["Gaps, iteration 1"][1:]
    assert sum(int(row[1]) for row in gaps) == len(several)
    assert sum(int(row[2]) for row in gaps) == len(kept)


def test_curves_are_those_of_the_metrics(run, page):
    lines = (run / "iter2" / "actor" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    row = page.tables["Actor: loss"][2]
    assert row[:4] == ["iteration 2", "80", f"{losses[0]:.4g}", f"{losses[-1]:.4g}"]
    titles = {name for name in page.tables if name.startswith(("Actor: ", "Critic: ", "Supervised start: "))}
    assert {"Actor: KL to the reference", "Actor: residual explained", "Critic: gradient norm"} <= titles


def test_time_and_tokens_are_recorded_or_said_not_to_be(page):
    rows = {row[0]: row[1:] for row in page.tables["Cost by stage"]}
    assert rows["collect 1"] == ["1 min 2 s", "48,000", "not recorded", "780"]
    assert rows["actor 1"] == ["20.0 s", "not recorded", "320,000", "16,000"]
    assert rows["advantages 1"] == ["not recorded"] * 4
    # 1,000 responses of 14.25 tokens, 4,000 of 15.5.
    assert rows["evaluate 0"][1] == "76,250"


def test_trajectories_are_the_stored_responses(run, page):
    shown = page.trajectories
    assert len(shown) == 24
    assert {row["iteration"] for row in shown} == {1, 2}
    assert sum(row["correct"] for row in shown) == 12
    scores = pq.read_table(run / "iter1" / "actor" / "scores.parquet").to_pylist()
    logps = {(row["tree"], row["state"], row["candidate"]): row for row in scores}
    trees = list(read_trees(run / "iter1" / "advantages"))
    seen = 0
    for row in shown:
        if row["iteration"] != 1:
            continue
        index, tree = next((i, tree) for i, tree in enumerate(trees) if tree.problem_id == row["problem"])
        texts = ["".join(chr(i) for i in ()) or step["text"] for step in row["steps"]]
        assert "".join(texts).endswith("<eos>")
        assert len(row["steps"]) in [len(trunk.step_ends) for trunk in tree.trunks]
        for number, step in enumerate(row["steps"]):
            states = [
                (s, state) for s, state in enumerate(tree.states)
                if state.step == number and state.value is not None and abs(state.value - step["value"]) < 1e-4
            ]  # fmt: skip
            assert states
            for candidate in step["candidates"]:
                matches = [
                    (s, c, state.candidates[c]) for s, state in states for c in range(len(state.candidates))
                    if abs(state.candidates[c].q - candidate["q"]) < 1e-4
                    and state.candidates[c].count == candidate["count"]
                ]  # fmt: skip
                assert any(abs(found.advantage - candidate["advantage"]) < 1e-4 for _, _, found in matches)
                if candidate["after"] is not None:
                    stored = [logps[index, s, c]["logp_after"] for s, c, _ in matches if (index, s, c) in logps]
                    assert any(abs(value - candidate["after"]) < 1e-4 for value in stored)
                    seen += 1
    assert seen > 20


def test_a_step_that_was_not_sampled_again_has_the_value_it_leads_to(page):
    checked = 0
    for row in page.trajectories:
        for step, after in zip(row["steps"], row["steps"][1:]):
            if not step["sampled"]:
                mean = sum(c["count"] * c["q"] for c in step["candidates"]) / step["completions"]
                assert step["advantage"] == pytest.approx(after["value"] - mean, abs=2e-4)
                checked += 1
    assert checked


def test_semantics(page):
    tags = [tag for tag, _ in page.elements]
    assert tags.count("h1") == 1
    assert tags.count("main") == 1
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
        if tag == "a" and attributes["href"].startswith("#"):
            assert attributes["href"][1:] in ids
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    assert all(caption for caption in page.tables)


def test_pngs(run):
    names = {path.name for path in (run / "figures").iterdir()}
    assert names == {"accuracy.png", "critic.png", "advantages.png", "training.png", "cost.png"}
    for path in (run / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_same_run_gives_the_same_page(run, page):
    assert Page(write_report(run)).html == page.html
