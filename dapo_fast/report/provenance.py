"""Where the run comes from, before anything that it says."""

from __future__ import annotations

from dapo_fast.provenance import read_provenance
from dapo_fast.report.markup import missing, section, table
from dapo_fast.report.read import Run


def provenance_section(run: Run) -> str:
    """Date, command and commit of every process that worked in the run; machine, device and versions of the last."""
    lines = read_provenance(run.path)
    if not lines:
        return section("provenance", "Provenance", missing("This run is from before provenance was recorded."))
    last = lines[-1]
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    facts = [["machine", last["machine"]], ["device", last["device"]], ["versions", versions]]
    made = [[line["date"], line["command"], line["commit"] or "installed"] for line in lines]
    return section(
        "provenance",
        "Provenance",
        table("Processes", ["date", "command", "commit"], made, wide=[1]),
        table("Made on", ["", "the last of them"], facts, wide=[1]),
    )
