"""The figures of `make bench`: steady rates, the order of windows, ratios and noise."""

from __future__ import annotations

import pytest

from tests.benchmarks.throughput.windows import Span, Window, noise, order, ratios, steady_rate, table


def test_rate_leaves_out_ramp_up_and_drain() -> None:
    """Two lanes of requests of 1 s, after a first that takes 5 s, and the last ones alone take 9 s."""
    lane = [Span(0, 5), *(Span(at, at + 1) for at in range(5, 15)), Span(15, 24)]
    assert steady_rate(lane * 2, 2) == pytest.approx(2)
    with pytest.raises(ValueError, match="have no steady part"):
        steady_rate(lane[:4], 2)


def test_waves_of_equal_requests_count_once() -> None:
    waves = [Span(start, start + 10) for start in (0, 10, 20) for _ in range(32)]
    assert steady_rate(waves, 32) == pytest.approx(3.2)


def test_rounds_run_forwards_and_backwards() -> None:
    assert [order("abc", number) for number in range(3)] == [["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]]


def test_table_shows_ratios_of_equal_rounds_and_equal_loads() -> None:
    rates = {"one by one": (0.1, 0.2), "stock at 8": (1.0, 1.0), "ours at 8": (2.0, 3.0), "ours at 32": (4.0, 4.0)}
    windows = [
        Window(path, number, rate, 0.1 + 0.01 * number)
        for path, values in rates.items()
        for number, rate in enumerate(values)
    ]
    assert ratios(windows, "ours at 8", "one by one") == pytest.approx([15, 20])
    assert noise(windows) == pytest.approx(0.1)
    text = table(windows, {"one by one": "x one by one", "stock at {load}": "x stock"})
    assert "| ours at 8 | 2.5 (2 to 3) | 17.5 (15 to 20) | 2.5 (2 to 3) |" in text
    assert "| ours at 32 | 4 (4 to 4) | 30 (20 to 40) |  |" in text, "stock was not measured at 32"
    assert "varied by 10%" in text and "Noisy" not in text
    assert "Noisy machine" in table([*windows, Window("x", 0, 1.0, 0.2)], {})
