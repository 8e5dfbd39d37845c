"""What travels: requests and answers without a socket, and Stripe's form encoding."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

API_VERSION: Final = "2026-10-28.endive"
"""Answers for requests that name no version, and the version events are rendered in."""

BRACKETED: Final = re.compile(r"\[([^\]]*)\]")


class ConnectionDropped(Exception):
    """The connection ended without an answer; the server closes its socket, an in-process client raises its own."""


class Headers(dict[str, str]):
    """HTTP headers: kept in lower case, found in any."""

    def __init__(self, headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> None:
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        super().__init__((name.lower(), value) for name, value in pairs)

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __setitem__(self, name: str, value: str) -> None:
        super().__setitem__(name.lower(), value)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.lower())

    def get(self, name: str, default: Any = None) -> Any:
        """Return one header's value."""
        return super().get(name.lower(), default)


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, decoded."""

    method: str
    path: str
    headers: Headers
    form: Mapping[str, Any]
    """Nested as the brackets say; every leaf is a string, every list a mapping from position to item."""

    @classmethod
    def read(cls, method: str, target: str, headers: Mapping[str, str], body: bytes) -> "Request":
        """Decode a request; `target` may carry a query, which is how GET and DELETE send their parameters."""
        path, _, query = target.partition("?")
        encoded = "&".join(part for part in (query, body.decode("utf-8", "replace")) if part)
        return cls(method.upper(), unquote(path).rstrip("/"), Headers(headers), decode_form(encoded))


@dataclass(slots=True)
class Response:
    """One HTTP answer. `content_length` exceeds the body where a fault cuts it off."""

    status: int
    headers: Headers
    body: bytes
    content_length: int = field(default=-1)

    def __post_init__(self) -> None:
        """Announce the whole body unless told otherwise."""
        if self.content_length < 0:
            self.content_length = len(self.body)

    @property
    def cut(self) -> bool:
        """Whether less arrives than was announced: a client must not read this as an answer."""
        return self.content_length > len(self.body)


def decode_form(encoded: str) -> dict[str, Any]:
    """Decode Stripe's form syntax: `a[b][]=1&a[b][]=2` is `{"a": {"b": {"0": "1", "1": "2"}}}`."""
    decoded: dict[str, Any] = {}
    if not encoded:
        return decoded
    for name, value in parse_qsl(encoded, keep_blank_values=True):
        head, bracket, _ = name.partition("[")
        if not bracket:
            decoded[name] = value
            continue
        steps = [head, *BRACKETED.findall(name)]
        place = decoded
        for step in steps[:-1]:
            inner = place.get(_position(step, place))
            if not isinstance(inner, dict):
                inner = place[_position(step, place)] = {}
            place = inner
        place[_position(steps[-1], place)] = value
    return decoded


def _position(step: str, place: Mapping[str, Any]) -> str:
    return step or str(len(place))
