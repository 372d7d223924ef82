"""Two runs side by side: what differs, what came of it, and that neither run is changed."""

import shutil

import pytest
from pages import Page

from dapo_fast.cli import main
from dapo_fast.errors import InputError
from dapo_fast.report import write_comparison
from dapo_fast.rundir import read_state, write_json


@pytest.fixture(scope="module")
def runs(finished_run, tmp_path_factory):
    """The finished run, and one of another learning rate that was measured worse and has no second iteration."""
    directory = tmp_path_factory.mktemp("compare")
    first, second = (shutil.copytree(finished_run, directory / name) for name in ("first", "sec<ond>"))
    shutil.rmtree(second / "iter2")
    config = second / "config.yaml"
    text = config.read_text().rpartition("# crc32")[0]
    assert "iterations: 2" in text
    config.write_text(text.replace("iterations: 2", "iterations: 1").replace("seed: 0", "seed: 7"))
    summary = second / "iter1" / "evaluate" / "summary.json"
    measured = read_state(summary)
    measured["greedy"] |= {"accuracy": 0.5, "low": 0.47, "high": 0.53}
    write_json(summary, measured)
    return first, second


def test_settings_accuracy_critics_and_costs_of_both(runs):
    before = sorted(path.name for path in runs[1].rglob("*"))
    path = write_comparison(*runs)
    assert path == runs[0] / "versus-sec<ond>.html" and sorted(p.name for p in runs[1].rglob("*")) == before
    page = Page(path)
    assert page.anchors() == ["provenance", "settings", "accuracy", "critic", "cost"]
    assert page.tables["Settings that differ"] == [
        ["setting", "first", "sec<ond>"], ["seed", "0", "7"], ["iterations", "2", "1"],
    ]  # fmt: skip
    rows = {row[0]: row[1:] for row in page.tables["Accuracy of both"][1:]}
    assert rows["iteration 1, greedy"] == ["91.2% [89.3%, 92.8%]", "50.0% [47.0%, 53.0%]", "-41.2 points"]
    assert rows["iteration 1, sampled"][2] == "+0.0 points, intervals overlap"
    assert rows["iteration 2, greedy"][1:] == ["not measured", "–"]
    assert [row[0] for row in page.tables["Critics of both"][1:]] == [
        "first, iteration 1", "first, iteration 2", "sec<ond>, iteration 1",
    ]  # fmt: skip
    costs = {row[0]: row[1:] for row in page.tables["Costs of both"][1:]}
    assert int(costs["tokens generated"][0].replace(",", "")) > int(costs["tokens generated"][1].replace(",", "")) > 0


def test_the_command(runs, capsys):
    assert main(["report", str(runs[0]), str(runs[1])]) == 0
    assert capsys.readouterr().out.strip().endswith("versus-sec<ond>.html")
    assert main(["report", str(runs[0]), str(runs[0] / ".." / "first")]) == 2
    assert "the same run as the first" in capsys.readouterr().err
    assert main(["report", str(runs[0]), str(runs[0].parent / "nowhere")]) == 2
    with pytest.raises(InputError, match=r"no config\.yaml here"):
        write_comparison(runs[0].parent / "nowhere", runs[0])
