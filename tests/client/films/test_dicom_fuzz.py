"""Fuzz headers and bytes: the result is a film or an InputError, in bounded time, without identifiers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytest.importorskip("pydicom")
pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.films.film_bytes import KINDS, corpus, outcome

BOUNDED = settings(
    max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_gives_a_film_or_an_input_error(kind):
    @BOUNDED
    @given(KINDS[kind])
    def check(data: bytes) -> None:
        outcome(data)

    check()


@pytest.mark.slow
@settings(BOUNDED, max_examples=1000)
@given(KINDS["described"] | KINDS["headers"])
def test_1000_headers_give_facts_or_an_input_error(data):
    outcome(data)


@BOUNDED
@given(st.binary(max_size=300), st.sampled_from(sorted(corpus())))
def test_random_bytes_after_a_magic_number(tail, name):
    outcome(corpus()[name][:16] + tail)


def test_outcome_describes_films_and_errors():
    assert outcome(corpus()["DICOM"]).startswith("Facts(kind='dicom'")
    assert sum(outcome(data).startswith("Facts(") for data in corpus().values()) > 15, "most inputs are films"


@pytest.mark.slow
def test_one_gibibyte_of_memory_suffices():
    """Run ``make fuzz`` briefly; its child process is limited to 1 GiB."""
    command = [
        sys.executable,
        "-m",
        "tests.drills.film_fuzz",
        "--minutes",
        "0.001",
        "--seed",
        "1",
        "--examples",
        "40",
    ]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout.split()[0]) >= 100
