"""The head of each HTML page that pedcxr writes. The pages open offline: no script, and nothing is loaded."""

from __future__ import annotations

from html import escape

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """\
body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
"""


def head(title: str, style: str, *, images: bool = False) -> str:
    """Return the page up to its body.

    Args:
        title: of the page, as plain text.
        style: CSS after the rules of all pages.
        images: whether the page contains images, as ``data:`` URLs.
    """
    policy = f"{_POLICY}; img-src data:" if images else _POLICY
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body>\n",
        ]
    )
