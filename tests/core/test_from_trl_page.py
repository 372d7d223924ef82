"""docs/from-trl.md names settings that exist."""

import re
from pathlib import Path

from dapo_fast.config import Config
from dapo_fast.settings_help import section_of

PAGE = Path(__file__).parents[2] / "docs" / "from-trl.md"


def settings():
    names = set()
    for name in Config.model_fields:
        section = section_of(name)
        names |= {name} if section is None else {f"{name}.{key}" for key in section.model_fields}
    return names


def test_every_setting_of_the_table_exists():
    rows = re.findall(r"^\|(.*?)\|(.*?)\|.*\|$", PAGE.read_text(), re.MULTILINE)
    cells = [cell for _, cell in rows if "`" in cell]
    named = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(cells) > 30 and not set(named) - settings()
    # In the remarks and around the tables too: whatever reads section.key is one.
    dotted = re.findall(rf"`((?:{'|'.join(Config.model_fields)})\.\w+)", PAGE.read_text())
    assert not set(dotted) - settings()
