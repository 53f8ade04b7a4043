"""The checks and reference tables that settings, tenants and requests share."""

from __future__ import annotations

import tomllib
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, Struct

from pedcxr_serve.config.schema import FieldError, Schema


class Inner(Struct):
    mode: Annotated[Literal["slow", "fast"], Meta(description="speed")]
    token: Annotated[str, Meta(max_length=4, description="password", extra={"secret": True})] = ""


class Outer(Struct):
    count: Annotated[int, Meta(ge=1, le=65535, description="how many")] = 2
    ratio: Annotated[Annotated[float, Meta(ge=0.5, le=1)] | None, Meta(description="fraction")] = None
    inner: Annotated[Inner | None, Meta(description="nested")] = None
    items: Annotated[str | Annotated[list[Inner], Meta(min_length=1, max_length=2)], Meta(description="list")] = ""
    hidden: int = 7


SCHEMA = Schema(Outer)


def error(value: object) -> tuple[str, str, str]:
    with pytest.raises(FieldError) as caught:
        SCHEMA.check(value)
    return caught.value.path, caught.value.code, str(caught.value)


@pytest.mark.parametrize(
    ("value", "path", "code", "message"),
    [
        ([], "", "invalid_type", "must be an object"),
        ({"count": 0}, "count", "invalid_value", "must be an integer between 1 and 65,535"),
        ({"count": 10**400}, "count", "invalid_value", "must be an integer between 1 and 65,535"),
        ({"count": True}, "count", "invalid_type", "must be an integer between 1 and 65,535"),
        ({"count": 1.0}, "count", "invalid_type", "must be an integer between 1 and 65,535"),
        ({"count": "3"}, "count", "invalid_type", "must be an integer between 1 and 65,535"),
        ({"ratio": float("nan")}, "ratio", "invalid_value", "must be a number between 0.5 and 1"),
        ({"ratio": 10**400}, "ratio", "invalid_value", "must be a number between 0.5 and 1"),
        ({"inner": 3}, "inner", "invalid_type", "must be an object"),
        ({"inner": {}}, "inner.mode", "missing_field", "required; must be one of slow, fast"),
        ({"inner": {"mode": None}}, "inner.mode", "missing_field", "required; must be one of slow, fast"),
        ({"inner": {"mode": "\ud800"}}, "inner.mode", "invalid_value", "must be one of slow, fast"),
        ({"items": 3}, "items", "invalid_type", "must be a string or a list of 1 to 2 objects"),
        ({"items": []}, "items", "invalid_value", "must be a string or a list of 1 to 2 objects"),
        ({"items": [{}] * 3}, "items", "invalid_value", "must be a string or a list of 1 to 2 objects"),
        ({"items": [{"mode": "fast"}, {"mode": 3}]}, "items[1].mode", "invalid_type", "must be one of slow, fast"),
        ({"items": ["fast"]}, "items[0]", "invalid_type", "must be an object"),
        ({"cuont": 1}, "cuont", "unknown_field", "unknown name; did you mean count?"),
        ({"token": "x"}, "token", "unknown_field", "unknown name; did you mean inner.token?"),
        ({"inner": {"count": 1}}, "inner.count", "unknown_field", "unknown name; did you mean count?"),
        ({"inner": {"zzz": 1}}, "inner.zzz", "unknown_field", "unknown name; expected one of: mode, token"),
        ({"hidden": 1}, "hidden", "unknown_field", "unknown name; expected one of: count, ratio, inner, items"),
    ],
)
def test_error_has_path_code_and_requirement(value: object, path: str, code: str, message: str) -> None:
    assert error(value) == (path, code, message)


def test_values_are_converted_and_null_is_absent() -> None:
    value = {"ratio": 1, "unknown": None, "count": None, "items": [{"mode": "slow", "token": None}]}
    checked = SCHEMA.check(value)
    assert checked == {"ratio": 1.0, "items": [{"mode": "slow"}]}
    assert isinstance(checked["ratio"], float)


@pytest.mark.parametrize(("token", "code"), [(12345, "invalid_type"), ("12345", "invalid_value")])
def test_secret_values_are_not_in_errors(token: object, code: str) -> None:
    with pytest.raises(FieldError) as caught:
        SCHEMA.check({"inner": {"mode": "fast", "token": token}})
    assert (caught.value.code, caught.value.assignment) == (code, "inner.token")
    with pytest.raises(FieldError) as caught:
        SCHEMA.check({"count": 99999})
    assert caught.value.assignment == "count = 99999"
    assert "99999" not in str(caught.value)


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("null", None), ("x", None), ("0", None), ("true", None)])
def test_text_of_a_command_line_is_converted(text: str, value: Any) -> None:
    field = SCHEMA.fields["count"]
    if value is None:
        with pytest.raises(FieldError, match="must be an integer between 1 and 65,535"):
            SCHEMA.check_field(field, text, "--count", strict=False)
    else:
        assert SCHEMA.check_field(field, text, "--count", strict=False) == value
    with pytest.raises(FieldError):
        SCHEMA.check_field(SCHEMA.fields["ratio"], "null", "--ratio", strict=False)


def test_long_unknown_names_are_not_compared() -> None:
    assert error({"count" * 1000: 1})[2].startswith("unknown name; expected one of")


def test_markdown_has_a_row_per_field() -> None:
    assert SCHEMA.markdown("key").splitlines()[2:] == [
        "| `count` | an integer between 1 and 65,535 | 2 | how many |",
        "| `ratio` | a number between 0.5 and 1 | none | fraction |",
        "| `inner` | an object | none | nested |",
        "| `inner.mode` | one of slow, fast | required | speed |",
        '| `inner.token` | a string of 0 to 4 characters | "" | password |',
        '| `items` | a string or a list of 1 to 2 objects | "" | list |',
        "| `items[].mode` | one of slow, fast | required | speed |",
        '| `items[].token` | a string of 0 to 4 characters | "" | password |',
    ]


def test_toml_sets_every_default() -> None:
    class Flat(Struct):
        name: Annotated[str, Meta(description="a name")] = 'with "quotes"'
        words: Annotated[tuple[str, ...], Meta(description="words")] = ("a", "b")
        flag: Annotated[bool, Meta(description="a flag")] = True
        ratio: Annotated[float, Meta(description="a ratio")] = 0.5

    text = Schema(Flat).toml()
    assert tomllib.loads(text) == {"name": 'with "quotes"', "words": ["a", "b"], "flag": True, "ratio": 0.5}
    assert "# a name (a string)\n" in text
