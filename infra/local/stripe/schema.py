"""Which parameters an operation takes, and of what type: read from the SDK's own TypedDicts, which Stripe generates.

What is refused here is refused before the endpoint runs, so nothing of it is kept under an idempotency key.
"""

import functools
import importlib
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Union, get_args, get_origin

from infra.local.stripe.errors import Refusal, missing

METADATA_KEYS: Final = 50
METADATA_KEY_LENGTH: Final = 40
METADATA_VALUE_LENGTH: Final = 500

INTEGER: Final = re.compile(r"-?\d{1,18}")
DECIMAL: Final = re.compile(r"-?\d+(\.\d+)?")
BOOLEANS: Final[Mapping[str, bool]] = {"true": True, "false": False}


RENAMED: Final[Mapping[str, str]] = {"payment_method_types": "allowed_payment_method_types"}
"""Old names that requests of an older API version, or of none, may still use."""


def read_parameters(class_name: str, form: Mapping[str, Any], *, older_version: bool = False) -> dict[str, Any]:
    """Return the form's values in their types, or raise the Refusal that Stripe would answer."""
    shape = _shape(_parameter_class(class_name))
    if older_version and not RENAMED.keys().isdisjoint(form):
        form = {RENAMED.get(name, name) if name not in shape.members else name: form[name] for name in form}
    values = _read_members(shape, form, "")
    _check_metadata(values.get("metadata"))
    return values


@dataclass(frozen=True)
class _Shape:
    """One TypedDict: its members and which of them must be there."""

    members: Mapping[str, "_Type"]
    required: frozenset[str]


@dataclass(frozen=True)
class _Type:
    """What one parameter may be; several may apply, the first that fits is taken."""

    integer: bool = False
    boolean: bool = False
    decimal: bool = False
    text: bool = False
    choices: frozenset[str] = frozenset()
    unsettable: bool = False  # An empty string unsets it.
    item: "_Type | None" = None  # A list of these.
    value: "_Type | None" = None  # A free mapping to these.
    nested: type | None = None  # A TypedDict, resolved on first use: some are large.


def _parameter_class(name: str) -> type:
    module = "stripe.params.checkout" if name.startswith("Session") else "stripe.params"
    found: type = getattr(importlib.import_module(module), name)  # Late: importing the SDK takes a fifth of a second.
    return found


@functools.cache
def _shape(cls: Any) -> _Shape:
    import typing_extensions  # noqa: PLC0415 - late, as the SDK.

    options: Any = importlib.import_module("stripe._request_options").RequestOptions
    inherited = set(options.__annotations__) if options in getattr(cls, "__orig_bases__", ()) else set()
    ours = types.SimpleNamespace()
    ours.__annotations__ = {name: hint for name, hint in cls.__annotations__.items() if name not in inherited}
    hints = typing_extensions.get_type_hints(ours, vars(sys.modules[cls.__module__]))
    members = {_wire_name(name): _type(hint) for name, hint in hints.items()}
    return _Shape(members, frozenset(_wire_name(name) for name in cls.__required_keys__ - inherited))


def _wire_name(name: str) -> str:
    return name.removeprefix("_") if name.startswith("_") else name


def _type(hint: Any) -> _Type:
    origin = get_origin(hint)
    if origin in {Union, types.UnionType}:
        return _join([_type(part) for part in get_args(hint)])
    if origin is Literal:
        choices = frozenset(str(choice) for choice in get_args(hint))
        return _Type(choices=choices - {""}, unsettable="" in choices)
    if origin is list:
        return _Type(item=_type(get_args(hint)[0]))
    if origin is dict:
        return _Type(value=_type(get_args(hint)[1]))
    if hint is bool:
        return _Type(boolean=True)
    if hint is int:
        return _Type(integer=True)
    if hint is float or getattr(hint, "__name__", "") == "Decimal":
        return _Type(decimal=True)
    if isinstance(hint, type) and hasattr(hint, "__required_keys__"):
        return _Type(nested=hint)
    return _Type(text=hint is str or hint is Any)


def _join(parts: list[_Type]) -> _Type:
    choices = frozenset[str]().union(*(part.choices for part in parts))
    return _Type(
        integer=any(part.integer for part in parts),
        boolean=any(part.boolean for part in parts),
        decimal=any(part.decimal for part in parts),
        # The SDK leaves its enums open (`Literal[...] | str`), for answers of later versions; the API does not.
        text=any(part.text for part in parts) and not choices,
        choices=choices,
        unsettable=any(part.unsettable for part in parts),
        item=next((part.item for part in parts if part.item), None),
        value=next((part.value for part in parts if part.value), None),
        nested=next((part.nested for part in parts if part.nested), None),
    )


def _read_members(shape: _Shape, form: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    values = {}
    for name, raw in form.items():
        param = f"{prefix}[{name}]" if prefix else name
        member = shape.members.get(name)
        if member is None:
            raise Refusal(400, f"Received unknown parameter: {param}", code="parameter_unknown", param=param)
        values[name] = _read(member, raw, param)
    for name in shape.required:
        if name not in values:
            raise missing(f"{prefix}[{name}]" if prefix else name)
    return values


def _read(kind: _Type, raw: Any, param: str) -> Any:
    if isinstance(raw, dict):
        return _read_structure(kind, raw, param)
    if raw == "":
        return _read_empty(kind, param)
    if kind.boolean and raw in BOOLEANS:
        return BOOLEANS[raw]
    if kind.integer and INTEGER.fullmatch(raw):
        return int(raw)
    if raw in kind.choices or kind.text or (kind.decimal and DECIMAL.fullmatch(raw)):
        return raw
    raise _misfit(kind, raw, param)


def _read_structure(kind: _Type, raw: Mapping[str, Any], param: str) -> Any:
    if kind.item is not None and all(position.isdigit() for position in raw):
        ordered = sorted(raw.items(), key=lambda entry: int(entry[0]))
        return [_read(kind.item, item, f"{param}[{position}]") for position, item in ordered]
    if kind.nested is not None:
        return _read_members(_shape(kind.nested), raw, param)
    if kind.value is not None:
        # An empty value unsets that one entry.
        return {name: "" if item == "" else _read(kind.value, item, f"{param}[{name}]") for name, item in raw.items()}
    raise Refusal(400, f"Invalid {param}: did not expect an object", param=param)


def _read_empty(kind: _Type, param: str) -> Any:
    if kind.unsettable:
        return None
    if kind.item is not None or kind.value is not None:
        return [] if kind.item is not None else {}
    message = (
        f"You passed an empty string for '{param}'. We assume empty values are an attempt to unset a field; however "
        f"'{param}' cannot be unset. You should remove '{param}' from your request or supply a non-empty value."
    )
    raise Refusal(400, message, code="parameter_invalid_empty", param=param)


def _misfit(kind: _Type, raw: str, param: str) -> Refusal:
    if kind.choices:
        listed = ", ".join(sorted(kind.choices))
        return Refusal(400, f"Invalid {param}: must be one of {listed}", param=param)
    if kind.integer:
        return Refusal(400, f"Invalid integer: {raw}", code="parameter_invalid_integer", param=param)
    if kind.boolean:
        return Refusal(400, f"Invalid boolean: {raw}", param=param)
    expected = "an array" if kind.item is not None else "an object"
    return Refusal(400, f"Invalid {param}: expected {expected}", param=param)


def _check_metadata(metadata: Mapping[str, str] | None) -> None:
    if not metadata:
        return
    if len(metadata) > METADATA_KEYS:
        raise Refusal(400, f"Metadata can have up to {METADATA_KEYS} keys.", param="metadata")
    for name, value in metadata.items():
        if len(name) > METADATA_KEY_LENGTH:
            message = f"Metadata keys can have up to {METADATA_KEY_LENGTH} characters, but this has {len(name)}."
            raise Refusal(400, message, param="metadata")
        if len(value) > METADATA_VALUE_LENGTH:
            message = f"Metadata values can have up to {METADATA_VALUE_LENGTH} characters, but this has {len(value)}."
            raise Refusal(400, message, param=f"metadata[{name}]")
