"""Small pieces of HTML that every section uses; all text from files is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def section(anchor: str, title: str, *body: str) -> str:
    """A section with its heading."""
    head = f'<section id="{anchor}" aria-labelledby="{anchor}-h"><h2 id="{anchor}-h">{escape(title)}</h2>'
    return f"{head}{''.join(body)}</section>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def missing(text: str, command: str | None = None) -> str:
    """What is not there, and the command line that makes it."""
    makes = f" <code>{escape(command)}</code> makes it." if command else ""
    return f'<p class="missing">{escape(text)}{makes}</p>'


def table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], wide: Sequence[int] = (), seen: bool = False
) -> str:
    """A table whose first column names the rows. Cells are text; ``wide`` columns hold sentences."""

    def kind(column: int) -> str:
        return ' class="prose-cell"' if column in wide else ""

    top = "".join(f'<th scope="col"{kind(i)}>{escape(text)}</th>' for i, text in enumerate(head))
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td{kind(i)}>{escape(text)}</td>" for i, text in enumerate(row[1:], 1))
        + "</tr>"
        for row in rows
    )
    style = "" if seen else ' class="unseen"'
    name = escape(caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{name}"><table><caption{style}>{name}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figure(drawing: str, title: str, caption: str, data: str = "") -> str:
    """A drawing with its caption, and its numbers as a table behind a fold."""
    fold = f'<details class="data"><summary>Numbers</summary>{data}</details>' if data else ""
    return f"<figure>{drawing}<figcaption><b>{escape(title)}</b> {escape(caption)}</figcaption>{fold}</figure>"


def legend(entries: Sequence[tuple[str, str, str]]) -> str:
    """A legend of (class, name, amount)."""
    items = "".join(
        f'<li class="{kind}"><i></i>{escape(name)} <b>{escape(amount)}</b></li>' for kind, name, amount in entries
    )
    return f'<ul class="legend">{items}</ul>'
