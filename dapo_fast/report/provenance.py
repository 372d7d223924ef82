"""Where the run comes from, before anything that it says."""

from __future__ import annotations

from dapo_fast.provenance import read_provenance
from dapo_fast.report.markup import missing, section, table
from dapo_fast.report.read import Run


def provenance_section(run: Run) -> str:
    """Date, command and commit of every process that worked in the run; machine, device and versions of the last."""
    return section("provenance", "Provenance", provenance_table(run))


def provenance_table(run: Run) -> str:
    """What the section shows."""
    lines = read_provenance(run.path)
    if not lines:
        return missing("This run is from before provenance was recorded.")
    last = lines[-1]
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    facts = [["machine", last["machine"]], ["device", last["device"]], ["versions", versions]]
    facts += [[setting, model] for setting, model in last.get("models", {}).items()]
    made = [
        [f"{line['date'][:16].replace('T', ' ')} UTC", line["command"], line["commit"] or "installed"] for line in lines
    ]
    processes = table("Processes", ["date", "command", "commit"], made, wide=[1])
    return processes + table("Made on", ["", "the last of them"], facts, wide=[1])
