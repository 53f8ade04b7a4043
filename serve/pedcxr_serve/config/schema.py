"""Checks and reference tables for data described by msgspec Structs.

Settings (`config.settings`), tenants (`gateway.auth.tenants`) and chat requests (`gateway.request.validation`) share
this module. A Struct lists the fields; ``Annotated[..., Meta(...)]`` holds ranges, lengths and the description. A field
without a description is internal: it is neither read nor documented.
"""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import Any

import msgspec
from msgspec import inspect

_LONGEST_GUESS = 64  # characters; difflib is slow on long names, which can come from a hostile request
_TYPES: dict[type[inspect.Type], tuple[type, ...]] = {
    inspect.StrType: (str,),
    inspect.LiteralType: (str,),
    inspect.IntType: (int,),
    inspect.FloatType: (int, float),
    inspect.BoolType: (bool,),
    inspect.DateTimeType: (datetime,),
    inspect.ListType: (list,),
    inspect.VarTupleType: (list, tuple),
    inspect.StructType: (dict,),
    inspect.DictType: (dict,),
}


class FieldError(ValueError):
    """A value that does not fit its schema. The message never contains the value.

    Attributes:
        path: of the field, with indices: ``messages[0].content[1].image_url.url``.
        code: ``unknown_field``, ``missing_field``, ``invalid_type`` or ``invalid_value``.
        assignment: ``path = value``, or the path alone when the value is secret or irrelevant.
    """

    def __init__(self, message: str, path: str, code: str, assignment: str | None = None) -> None:
        super().__init__(message)
        self.path, self.code, self.assignment = path, code, assignment or path


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a schema.

    Attributes:
        path: without indices: ``gateway.port``, ``messages[].role``.
        holder: a Struct of one field ``value``, against which `msgspec.convert` checks a value. An annotation alone
            would be hashed for each check, which takes ten times as long.
        choices: all values of a Literal.
        requirement: the valid values in words, such as ``an integer between 0 and 65,535``.
        default: `msgspec.NODEFAULT` when the field is required.
        secret: whether errors must not contain the value.
        children: fields of an object, of the objects in a list, or of the named objects in a table.
        by_name: whether the field is a table of named objects.
        lengths: least and greatest length of a list of objects.
    """

    name: str
    path: str
    holder: type[msgspec.Struct]
    types: frozenset[type]
    choices: tuple[str, ...]
    requirement: str
    description: str
    default: object
    secret: bool
    children: Mapping[str, Field]
    by_name: bool
    lengths: tuple[float, float]

    def invalid(self, path: str, value: object, code: str = "invalid_value") -> FieldError:
        """Return the error for a wrong value."""
        return FieldError(f"must be {self.requirement}", path, code, path if self.secret else f"{path} = {value!r}")


class Schema:
    """The fields of a Struct and of the Structs in it.

    Args:
        struct: the outermost object.
        noun: what errors call an object: ``an object`` in JSON, ``a table`` in TOML.
    """

    def __init__(self, struct: type[msgspec.Struct], noun: str = "an object") -> None:
        self._noun = noun
        self.fields = self._fields_of(struct, "")

    def walk(self, fields: Mapping[str, Field] | None = None, *, by_name: bool = True) -> Iterator[Field]:
        """Yield all fields, parents before their children; with ``by_name`` also those of named objects."""
        for field in (self.fields if fields is None else fields).values():
            yield field
            if by_name or not field.by_name:
                yield from self.walk(field.children, by_name=by_name)

    def check(self, value: object, path: str = "", fields: Mapping[str, Field] | None = None) -> dict[str, Any]:
        """Return the fields of an object, as parsed from JSON or TOML, converted to their annotations.

        None counts as absent. ``path`` is that of the object; ``fields`` are by default those of the outermost one.

        Raises:
            FieldError: a field is unknown or missing, or has a wrong type or value.
        """
        fields = self.fields if fields is None else fields
        if not isinstance(value, dict):
            raise FieldError(f"must be {self._noun}", path, "invalid_type")
        checked: dict[str, Any] = {}
        for name, element in value.items():
            at = f"{path}.{name}" if path else name
            if element is not None and name not in fields:
                raise self.unknown(at, name, fields)
            if element is not None:
                checked[name] = self.check_field(fields[name], element, at)
        for field in fields.values():
            if field.default is msgspec.NODEFAULT and field.name not in checked:
                at = f"{path}.{field.name}" if path else field.name
                raise FieldError(f"required; must be {field.requirement}", at, "missing_field")
        return checked

    def check_field(self, field: Field, value: object, path: str, *, strict: bool = True) -> Any:
        """Return the value of one field, converted to its annotation.

        Args:
            strict: False accepts text for numbers and booleans, as on a command line.

        Raises:
            FieldError: wrong type or value.
        """
        if strict and type(value) not in field.types:
            raise field.invalid(path, value, "invalid_type")
        if field.by_name and isinstance(value, dict):
            return {name: self.check(element, f"{path}.{name}", field.children) for name, element in value.items()}
        if field.children and isinstance(value, dict):
            return self.check(value, path, field.children)
        if field.children and isinstance(value, list):
            if not field.lengths[0] <= len(value) <= field.lengths[1]:
                raise field.invalid(path, value)
            return [self.check(element, f"{path}[{index}]", field.children) for index, element in enumerate(value)]
        try:
            converted = msgspec.convert((value,), field.holder, strict=strict).value  # type: ignore[attr-defined]
        except (msgspec.ValidationError, UnicodeEncodeError):  # the latter for half of a surrogate pair
            raise field.invalid(path, value) from None
        if converted is None:  # the text "null"
            raise field.invalid(path, value)
        return converted

    def unknown(self, path: str, name: str, siblings: Mapping[str, Field]) -> FieldError:
        """Return the error for an unknown field, with the field that was probably meant or all that exist."""
        names = {field.path: field.name for field in self.walk()}
        close = get_close_matches(name, names.values(), n=1) if len(name) <= _LONGEST_GUESS else []
        guess = next((field_path for field_path, leaf in names.items() if leaf in close), None)
        hint = f"did you mean {guess}?" if guess else "expected one of: " + ", ".join(siblings)
        return FieldError(f"unknown name; {hint}", path, "unknown_field")

    def markdown(self, title: str) -> str:
        """Return a Markdown table of all fields; ``title`` is the heading of the first column."""
        lines = [f"| {title} | allowed | default | meaning |", "|---|---|---|---|"]
        for field in self.walk():
            required = field.default is msgspec.NODEFAULT
            default = "required" if required else "none" if field.default is None else json.dumps(field.default)
            lines.append(f"| `{field.path}` | {field.requirement} | {default} | {field.description} |")
        return "\n".join(lines) + "\n"

    def toml(self) -> str:
        """Return a commented TOML file that sets every field to its default."""
        lines = []
        for field in self.walk(by_name=False):
            if field.by_name:
                lines += ["", f"# [{field.path}.NAME]  {field.description}"]
                for child in field.children.values():
                    lines += [f"# {child.description} ({child.requirement})", f"# {child.name} ="]
                continue
            if field.children:
                lines += ["", f"[{field.path}]"]
                continue
            lines.append(f"# {field.description} ({field.requirement})")
            has_default = field.default is not None
            lines.append(f"{field.name} = {json.dumps(field.default)}" if has_default else f"# {field.name} =")
        return "\n".join(lines) + "\n"

    def _fields_of(self, struct: type, parent: str) -> dict[str, Field]:
        info = inspect.type_info(struct)
        assert isinstance(info, inspect.StructType)
        hints = typing.get_type_hints(struct, include_extras=True)
        return {
            field.name: self._field(field, f"{parent}{field.name}", hints[field.name])
            for field in info.fields
            if "description" in _alternatives(field.type)[1]
        }

    def _field(self, field: inspect.Field, path: str, annotation: Any) -> Field:
        kinds, notes = _alternatives(field.type)
        choices = _choices(annotation)
        children: dict[str, Field] = {}
        lengths = (0.0, math.inf)
        by_name = False
        for kind in kinds:
            if isinstance(kind, inspect.StructType):
                children = self._fields_of(kind.cls, f"{path}.")
            elif isinstance(kind, inspect.DictType) and isinstance(kind.value_type, inspect.StructType):
                children, by_name = self._fields_of(kind.value_type.cls, f"{path}.NAME."), True
            elif isinstance(kind, (inspect.ListType, inspect.VarTupleType)):
                lengths = (kind.min_length or 0, kind.max_length or math.inf)
                if isinstance(kind.item_type, inspect.StructType):
                    children = self._fields_of(kind.item_type.cls, f"{path}[].")
        return Field(
            name=field.name,
            path=path,
            holder=msgspec.defstruct("Holder", [("value", annotation)], array_like=True),
            types=frozenset(accepted for kind in kinds for accepted in _TYPES[type(kind)]),
            choices=choices,
            requirement=notes.get("requirement") or " or ".join(self._words(kind, choices) for kind in kinds),
            description=notes["description"],
            default=field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory(),
            secret=notes.get("secret", False),
            children=children,
            by_name=by_name,
            lengths=lengths,
        )

    def _words(self, kind: inspect.Type, choices: tuple[str, ...] = ()) -> str:
        match kind:
            case inspect.LiteralType():
                return "one of " + ", ".join(choices) if len(choices) > 1 else f'"{choices[0]}"'
            case inspect.BoolType():
                return "true or false"
            case inspect.IntType(ge=low, le=high) if low is not None and low == high:
                return f"the integer {low}"
            case inspect.IntType(ge=low, le=high) | inspect.FloatType(ge=low, le=high):
                noun = "an integer" if isinstance(kind, inspect.IntType) else "a number"
                return noun if low is None or high is None else f"{noun} between {low:,} and {high:,}"
            case inspect.StrType(min_length=low, max_length=high):
                return f"a string of {low or 0} to {high} characters" if high else "a string"
            case (
                inspect.ListType(min_length=low, max_length=high)
                | inspect.VarTupleType(min_length=low, max_length=high)
            ):
                _, noun, *rest = self._words(kind.item_type).split()
                return " ".join(["a list of", *([f"{low or 0} to {high}"] if high else []), f"{noun}s", *rest])
            case _:
                return self._noun


def _alternatives(info: inspect.Type) -> tuple[list[inspect.Type], dict[str, Any]]:
    """Return the types of a union without None, and the notes of their `Meta`."""
    if isinstance(info, inspect.Metadata):
        kinds, notes = _alternatives(info.type)
        return kinds, notes | (info.extra_json_schema or {}) | (info.extra or {})
    if isinstance(info, inspect.UnionType):
        parts = [_alternatives(part) for part in info.types]
        return [kind for kinds, _ in parts for kind in kinds], {key: notes[key] for _, notes in parts for key in notes}
    return ([] if isinstance(info, inspect.NoneType) else [info]), {}


def _choices(annotation: Any) -> tuple[str, ...]:
    """Return the values of a Literal in their order; msgspec sorts them."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return arguments
    return next((choices for part in arguments if (choices := _choices(part))), ())
