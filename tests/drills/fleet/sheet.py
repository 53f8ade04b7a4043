"""Several charts in one SVG."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape


def sheet(charts: Sequence[tuple[str, str]]) -> str:
    """Return one SVG with titled charts of `lines`, one below the other."""
    height, parts = 10, []
    for title, chart in charts:
        size = re.match(r'<svg [^>]*height="(\d+)"', chart)
        if size is None:
            raise ValueError(f"{title}: no data")
        parts.append(
            f'<text x="10" y="{height + 16}" font-size="15" font-weight="600" fill="#222">{escape(title)}</text>'
        )
        chart = chart.replace("<svg ", '<svg overflow="visible" ', 1)  # long names of series
        parts.append(f'<g transform="translate(0,{height + 24})">{chart}</g>')
        height += int(size[1]) + 34
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 820 {height}" width="820" height="{height}" '
        f'font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
