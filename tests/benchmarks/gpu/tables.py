"""The tables of docs/benchmarks.md from the rows, in Markdown. Of several rows of one measurement, the last counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]


def markdown(rows: Sequence[Row]) -> str:
    """Return one table for each kind of row that exists."""
    sections = [
        ("The machine", _machine(rows)),
        ("Fidelity", _fidelity(rows)),
        ("Starts", _starts(rows)),
        ("Speed", _speed(rows)),
        ("Validity", _validity(rows)),
    ]
    return "\n\n".join("\n".join([f"### {title}", "", *lines]) for title, lines in sections if lines) + "\n"


def _last(rows: Sequence[Row], part: str, *keys: str) -> list[Row]:
    chosen = {tuple(row.get(key) for key in keys): row for row in rows if row["part"] == part}
    return list(chosen.values())


def _machine(rows: Sequence[Row]) -> list[str]:
    found = [*_last(rows, "machine"), *_last(rows, "ceilings")]
    return ["- " + ", ".join(f"{key} {value}" for key, value in row.items() if key != "part") for row in found]


def _fidelity(rows: Sequence[Row]) -> list[str]:
    measured = [row for row in rows if "exact" in row]
    starts = {row["variant"]: row for row in rows if row["part"] == "fidelity" and "start_s" in row}
    names = ("served as", "attention, of the tower", "in flight", "tokens of transformers", "as drawn",
             "transformers: as drawn", "largest margin lost", "least margin of a film, median")  # fmt: skip
    cells = []
    for row in _last(measured, "fidelity", "variant", "in_flight"):
        start = starts.get(row["variant"], {})
        backends = f"{start.get('attention', '?')}, {start.get('vision_attention', '?')}"
        exact, films = f"{row['exact']} of {row['films']}", (row["served_as_drawn"], row["reference_as_drawn"])
        margins = (row["largest_margin_lost"], row["median_least_margin"])
        cells.append([row["variant"], backends, row["in_flight"], exact, *films, *margins])
    return _table(names, cells)


def _starts(rows: Sequence[Row]) -> list[str]:
    keys = ("seconds", "attention", "vision_attention", "graphs", "kv_tokens", "compile_s")
    starts = _last(rows, "start", "server")
    cells = [[row["server"], " ".join(row["flags"]), *(row.get(key) for key in keys)] for row in starts]
    return _table(("server", "flags", *keys), cells)


def _speed(rows: Sequence[Row]) -> list[str]:
    keys = (
        "reports_s",
        "ttft_p50_s",
        "ttft_p95_s",
        "tpot_p50_s",
        "e2e_p50_s",
        "e2e_p95_s",
        "of_roofline",
        "of_measured",
    )
    names = ("server", "films", "in flight", "reports/s", "TTFT s, p50", "p95", "TPOT s, p50", "E2E s, p50", "p95",
             "% of roofline", "% with measured figures", "busiest processes, cores")  # fmt: skip
    cells = []
    for row in _last(rows, "speed", "server", "films", "in_flight"):
        busiest = ", ".join(f"{name} {cores:g}" for name, cores in row.get("busiest_cores", {}).items())
        cells.append([row["server"], row["films"], row["in_flight"], *(row.get(key) for key in keys), busiest])
    return _table(names, cells)


def _validity(rows: Sequence[Row]) -> list[str]:
    lines = [
        f"- {row['server']}, {row['films']}: {'VALID' if row['valid'] else 'INVALID: ' + '; '.join(row['reasons'])}"
        for row in _last(rows, "bench", "server", "films")
    ]
    for row in _last(rows, "speed", "server", "films", "in_flight"):
        if row.get("other_lengths"):
            lines.append(f"- {row['server']}, {row['films']}, {row['in_flight']}: {row['other_lengths']} other lengths")
    failures = [row for row in rows if row["part"] == "failed"]
    return [*lines, *(f"- {row['failed']} failed: {row['error'].splitlines()[-1]}" for row in failures)]


def _table(names: Sequence[str], cells: Iterable[Sequence[Any]]) -> list[str]:
    lines = ["| " + " | ".join(_shown(cell) for cell in row) + " |" for row in cells]
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names), *lines] if lines else []


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
