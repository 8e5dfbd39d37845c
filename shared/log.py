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
from dataclasses import dataclass
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
    # The span's is decimal in Google's own, and may be missing there as may be whether the trace is recorded.
    (
        "X-Cloud-Trace-Context",
        re.compile(r"(?P<trace>(?!0{32})[0-9a-f]{32})(?:/(?P<decimal>\d{1,20})(?:;o=(?P<flags>\d))?)?$"),
    ),
    (
        "traceparent",
        re.compile(r"[0-9a-f]{2}-(?P<trace>(?!0{32})[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Where in which trace something happens, as W3C's Trace Context has it."""

    trace_id: str  # 32 hex digits.
    span_id: str | None = None  # 16 hex digits.
    sampled: bool = False  # Somebody records it.


_trace: ContextVar[Trace | None] = ContextVar("trace", default=None)


class Headers(Protocol):
    """The headers of a request."""

    def get(self, key: str, /) -> str | None:
        """Return a header, whatever its letters' case."""


def request(headers: Headers) -> contextlib.AbstractContextManager[None]:
    """Log with the trace of this request, until it is answered: Cloud Logging shows the lines under its own."""
    return within(_trace_of(headers))


@contextlib.contextmanager
def within(trace: Trace | None) -> Iterator[None]:
    """Log with this trace."""
    token = _trace.set(trace)
    try:
        yield
    finally:
        _trace.reset(token)


def trace() -> Trace | None:
    """Return the trace that lines are logged with here."""
    return _trace.get()


def traceparent() -> str | None:
    """Write the trace that lines are logged with here as W3C's header; None: there is none, or no span of it."""
    here = _trace.get()
    if here is None or here.span_id is None:
        return None
    return f"00-{here.trace_id}-{here.span_id}-{'01' if here.sampled else '00'}"


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
    entry = {name: plain(value) for name, value in fields.items()}
    entry |= {"severity": severity, "message": redacted(message)}
    entry |= _trace_fields()
    line = json.dumps(entry) + "\n"
    out = sys.stderr if _beside_stdout else sys.stdout
    with contextlib.suppress(OSError, ValueError):  # A closed stdout: no reason to leave a payment half done.
        out.write(line)  # At once, so that threads do not mix their lines.
        out.flush()


def redacted(text: str) -> str:
    """Black out what looks like a key, an e-mail address or a card number."""
    for pattern, instead in BLACKED_OUT:
        text = pattern.sub(instead, text)
    return text


def plain(value: object) -> str | int | bool | None:
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


def _trace_of(headers: Headers) -> Trace | None:
    for name, pattern in TRACE_HEADERS:
        found = pattern.match(headers.get(name) or "")
        if found is not None:
            read = found.groupdict()
            span = f"{int(read['decimal']):016x}" if read.get("decimal") else read.get("span")
            return Trace(
                trace_id=read["trace"],
                span_id=span if span and re.fullmatch("(?!0{16})[0-9a-f]{16}", span) else None,
                sampled=int(read["flags"] or "0", 16) % 2 == 1,
            )
    return None


def _trace_fields() -> dict[str, str | bool | None]:
    """Say where in the project's traces a line belongs. Without a project, Cloud Logging could not place it."""
    trace, project = _trace.get(), os.environ.get("GOOGLE_CLOUD_PROJECT")
    if trace is None or not project:
        return {}
    prefix = "logging.googleapis.com"
    span = {f"{prefix}/spanId": trace.span_id} if trace.span_id else {}
    return {
        f"{prefix}/trace": f"projects/{project}/traces/{trace.trace_id}",
        f"{prefix}/trace_sampled": trace.sampled,
        **span,
    }
