"""One JSON object a line on stdout, as Cloud Logging reads it.

    log.info("decided", charge=charge.id, status=charge.status)

A log is no place for secrets or for personal data. Who calls names what is logged, field by field; only plain values
are written, never the repr of an object. As a second line of defence, whatever looks like a key, an e-mail address or
a card number is blacked out.
"""

import contextlib
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Final, Protocol

BLACKED_OUT: Final = (
    (re.compile(r"(?<![A-Za-z0-9])(?:sk|rk)_\w+|whsec_[\w+/=]+"), "[key]"),
    (re.compile(r"_secret_\w+"), "_secret_[key]"),  # Lets whoever has it confirm a PaymentIntent.
    (re.compile(r"[^\s@<>\"'(),:;=]{1,64}(?:@|%40)[\w-]+(?:\.[\w-]+)+"), "[e-mail]"),
    # 13 digits or more, alone or in groups. Ids of ours are longer words; times and amounts have fewer digits.
    (re.compile(r"(?<![A-Za-z0-9])[0-9](?:[ -]?[0-9]){12,}(?![A-Za-z0-9])"), "[number]"),
)

OURS: Final = ("shared", "functions")  # Packages whose exceptions' messages we write ourselves.

TRACE_HEADERS: Final = (  # The id of the trace is the same in both: 32 hex digits.
    ("X-Cloud-Trace-Context", re.compile(r"([0-9a-f]{32})(?:/|$)")),
    ("traceparent", re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-")),
)

_trace: ContextVar[str | None] = ContextVar("trace", default=None)


class Headers(Protocol):
    """The headers of a request."""

    def get(self, key: str, /) -> str | None:
        """Return a header, whatever its letters' case."""


@contextlib.contextmanager
def request(headers: Headers) -> Iterator[None]:
    """Log with the trace of this request, until it is answered: Cloud Logging shows the lines under its own."""
    token = _trace.set(_trace_of(headers))
    try:
        yield
    finally:
        _trace.reset(token)


_beside_stdout = False


def beside_stdout() -> None:
    """Write to standard error from now on: in a command line standard output is for what was asked."""
    global _beside_stdout  # noqa: PLW0603 - one process, one place to write to.
    _beside_stdout = True


def info(message: str, **fields: object) -> None:
    """Log what happened."""
    _write("INFO", message, fields)


def warning(message: str, **fields: object) -> None:
    """Log what is unusual and needs nobody."""
    _write("WARNING", message, fields)


def error(message: str, **fields: object) -> None:
    """Log what somebody should look into."""
    _write("ERROR", message, fields)


def exception(message: str, **fields: object) -> None:
    """Log the exception that is being handled, with its stack, for Error Reporting to group.

    Exceptions of other people's are logged without their messages, which may hold anything: a row, a body, a card.
    """
    found = sys.exception()
    if found is not None:
        fields = {**fields, "exception": type(found).__name__, "stack_trace": _stack(found)}
    _write("ERROR", message, fields)


def _write(severity: str, message: str, fields: dict[str, object]) -> None:
    entry = {name: _plain(value) for name, value in fields.items()}
    entry |= {"severity": severity, "message": redacted(message)}
    trace = _trace.get()
    if trace is not None:
        entry["logging.googleapis.com/trace"] = trace
    with contextlib.suppress(OSError, ValueError):  # A closed stdout: no reason to leave a payment half done.
        (sys.stderr if _beside_stdout else sys.stdout).write(
            json.dumps(entry) + "\n"
        )  # One write, so that threads do not mix their lines.
        sys.stdout.flush()


def redacted(text: str) -> str:
    """Black out what looks like a key, an e-mail address or a card number."""
    for pattern, instead in BLACKED_OUT:
        text = pattern.sub(instead, text)
    return text


def _plain(value: object) -> str | int | bool | None:
    """Return what may be written of a value: of anything but a plain one, no more than what kind of thing it is."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | int | float | datetime | timedelta):
        text = str(value)
        return value if isinstance(value, int) and redacted(text) == text else redacted(text)
    return f"<{type(value).__name__}>"


def _stack(found: BaseException) -> str:
    """Return the stack of an exception and of those that led to it, in Python's own form, the first one first."""
    chain: list[BaseException] = []
    earlier: BaseException | None = found
    while earlier is not None and earlier not in chain:  # They may name one another.
        chain.append(earlier)
        earlier = earlier.__cause__ or (None if earlier.__suppress_context__ else earlier.__context__)
    return "\n\n".join(_frames(each) for each in reversed(chain))


def _frames(found: BaseException) -> str:
    kind = type(found)
    ours = kind.__module__.partition(".")[0] in OURS
    last_line = f"{kind.__name__}: {found}" if ours else kind.__name__
    return f"Traceback (most recent call last):\n{''.join(traceback.format_tb(found.__traceback__))}{last_line}"


def _trace_of(headers: Headers) -> str | None:
    project = os.environ.get("GOOGLE_CLOUD_PROJECT")
    if not project:
        return None
    found = (pattern.match(headers.get(name) or "") for name, pattern in TRACE_HEADERS)
    return next((f"projects/{project}/traces/{match.group(1)}" for match in found if match), None)
