"""Every place where decoded JSON differs from a struct type of `messages.py`.

msgspec itself stops at the first; an author wants all of them at once, each with its JSON pointer.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec

Finding = tuple[str, str, str, str]  # pointer, rule, message, fix

_JSON_TYPES = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "an array"}
_JSON_TYPES |= {dict: "an object", type(None): "null"}


def mismatches(value: Any, wanted: Any, pointer: str) -> Iterator[Finding]:
    """`wanted` is a Struct class, a list of them, either of these or None, or a plain type for msgspec."""
    if get_origin(wanted) in (Union, types.UnionType) and type(None) in get_args(wanted):
        if value is None:
            return
        inner = tuple(kind for kind in get_args(wanted) if kind is not type(None))
        wanted = inner[0] if len(inner) == 1 else Union[inner]  # noqa: UP007 - built from a tuple
    if get_origin(wanted) is Annotated and get_origin(get_args(wanted)[0]) is list:
        wanted = get_args(wanted)[0]
    if get_origin(wanted) is list:
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from mismatches(item, get_args(wanted)[0], f"{pointer}/{index}")
        else:
            yield pointer, "wrong_type", f"This is {type_name(value)}.", "Make it an array."
    elif isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
        yield from _struct_mismatches(value, wanted, pointer)
    else:
        try:
            msgspec.convert(value, wanted)
        except msgspec.ValidationError as error:
            # Its place is known better here; `$` would be this value, not the line.
            expected = str(error).partition(" - at `")[0]
            yield pointer, "wrong_type", f"{expected}.", "Write a value of this kind."


def _struct_mismatches(value: Any, wanted: type[msgspec.Struct], pointer: str) -> Iterator[Finding]:
    if not isinstance(value, dict):
        yield pointer, "wrong_type", f"This is {type_name(value)}.", "Make it an object."
        return
    fields = {field.name: field for field in msgspec.structs.fields(wanted)}
    for key in value:
        if key not in fields:
            yield unrecognized(f"{pointer}/{escape(key)}", key, tuple(fields))
    for name, field in fields.items():
        if name in value:
            yield from mismatches(value[name], field.type, f"{pointer}/{name}")
        elif field.required:
            yield pointer, "missing_key", f'The object has no "{name}".', f'Add "{name}".'


def unrecognized(pointer: str, key: str, known: tuple[str, ...]) -> Finding:
    fix = f"Remove it, or correct its spelling; the keys known here are {', '.join(known)}."
    return pointer, "unrecognized_key", f'"{key[:80]}" is not a key of the format.', fix


def escape(key: str) -> str:
    """A key as one token of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def type_name(value: Any) -> str:
    return _JSON_TYPES[type(value)]
