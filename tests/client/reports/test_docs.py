"""docs/reports.md agrees with the behaviour of the code."""

from __future__ import annotations

import csv
import io
import re

import pytest

from pedcxr_client import Age, ConfigurationError, InputError, ReportError
from pedcxr_client.reports import to_csv
from pedcxr_client.request.prompts import CARD, GROUPS, read_training
from tests.client.reports.test_formats import DEMO
from tests.support.paths import ROOT

PAGE = (ROOT / "docs/reports.md").read_text()
TEXT = " ".join(PAGE.split())


@pytest.fixture
def training(tmp_path):
    path = tmp_path / "system.txt"
    path.write_text("You read chest films.")
    return read_training(path)


def test_error_table_lists_every_report_error():
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE, re.MULTILINE))
    assert rows == {error.__name__: error.outcome for error in ReportError.__subclasses__()}


@pytest.mark.parametrize("name", ["card", "training"])
def test_prompt_table_matches_the_prompts(training, name):
    profile = {"card": CARD, "training": training}[name]
    version, template = re.search(rf"^\| `{name}`, version (\d+)\b.*\| `([^`]+)` \|$", PAGE, re.MULTILINE).groups()
    words = {
        "{a or an}": "a", "{age words }": "5-year-old ", "{male, female or child}": "male",
        "{age group }": "school age ", "{boy, girl or child}": "boy",
    }  # fmt: skip
    for placeholder, word in words.items():
        template = template.replace(placeholder, word)
    assert profile.prompt(Age(5, "Y"), "M").user == template
    assert profile.version == int(version)


def test_age_group_table_matches_the_prompts(training):
    head, _, limits = PAGE[PAGE.index("| neonate |") :].splitlines()[:3]
    *groups, older = head.strip("| ").split(" | ")
    last_days = [int(day) for day in re.findall(r"\d+", limits)]
    assert older == "older"
    assert list(zip(groups, last_days, strict=True)) == list(GROUPS)
    for group, last_day, following in zip(groups, last_days, [*groups[1:], None], strict=True):
        weeks = last_day // 7  # an age in days has at most three digits
        assert training.prompt(Age(weeks, "W")).user.endswith(f" of {group} child.")
        if following is not None:
            assert training.prompt(Age(weeks + 1, "W")).user.endswith(f" of {following} child.")
    with pytest.raises(InputError, match="age"):
        training.prompt(Age(last_days[-1] // 7 + 1, "W"))


def test_documented_prompt_header_is_that_of_the_card():
    assert f"`X-Pedcxr-Prompt: {CARD.tag}`" in TEXT


def test_indication_limit_and_placeholder():
    limit = int(re.search(r"up to (\d+) printable characters", TEXT)[1])
    prompt = CARD.prompt(indication="x" * limit)
    assert f'"{prompt.recorded.rpartition("Indication: ")[2]}"' in TEXT
    with pytest.raises(InputError):
        CARD.prompt(indication="x" * (limit + 1))


def test_system_text_limit(tmp_path):
    path, limit = tmp_path / "system.txt", 1024 * int(re.search(r"at most (\d+) KiB", TEXT)[1])
    path.write_text("x" * limit)
    assert read_training(path)
    path.write_text("x" * (limit + 1))
    with pytest.raises(ConfigurationError):
        read_training(path)


def test_csv_columns_and_notices():
    columns = TEXT[TEXT.index("**CSV columns**") : TEXT.index("A cell that a spreadsheet")]
    header = next(csv.reader(io.StringIO(to_csv(DEMO))))
    assert re.findall(r"`(\w+)`", columns) == header
    assert len(DEMO.notices) == 2
    assert all(notice in TEXT for notice in DEMO.notices)
