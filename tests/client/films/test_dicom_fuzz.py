"""Headers and bytes that nobody foresaw: a film or an InputError comes out, in time, and never a name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytest.importorskip("pydicom")
pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.film_bytes import KINDS, corpus, outcome

BOUNDED = settings(
    max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("kind", KINDS)
def test_any(kind):
    @BOUNDED
    @given(KINDS[kind])
    def check(data: bytes) -> None:
        outcome(data)

    check()


@BOUNDED
@given(st.binary(max_size=300), st.sampled_from(sorted(corpus())))
def test_any_bytes_behind_a_magic_word(tail, name):
    outcome(corpus()[name][:16] + tail)


def test_what_counts_as_an_outcome():
    assert outcome(corpus()["DICOM"]).startswith("Facts(kind='dicom'")
    assert sum(outcome(data).startswith("Facts(") for data in corpus().values()) > 15, "most of them are films"


def test_a_gibibyte_is_enough():
    """The short form of ``make fuzz``, in a child that may have no more."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.film_fuzz",
        "--minutes",
        "0.001",
        "--seed",
        "1",
        "--examples",
        "40",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= 100
