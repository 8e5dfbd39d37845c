"""Time in the model: it is always `NOW`; what lies before and after is known by its class only.

A charge's times are kept relative to now, the past rounded down and the future rounded up to a few classes: those
between which the policy can tell. So there are finitely many charges, and time may pass for ever.
"""

import dataclasses
import functools
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from shared import policy
from shared.charge import Charge, Request
from shared.policy import Limits

R = TypeVar("R", bound=Request)

NOW: Final = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
LIMITS: Final = Limits()

JUST_NOW: Final = timedelta()
QUARANTINED: Final = timedelta(minutes=20)
PAST_HORIZON: Final = timedelta(hours=23, minutes=30)
PRUNED: Final = timedelta(hours=25)
AGES: Final = (JUST_NOW, QUARANTINED, PAST_HORIZON, PRUNED)

SOON: Final = timedelta(minutes=20)
HOURS: Final = timedelta(hours=2)
TOMORROW: Final = timedelta(hours=25)
EXPIRY: Final = timedelta(days=32)
WAITS: Final = (SOON, HOURS, TOMORROW, EXPIRY)

JUMPS: Final = {
    SOON: "Twenty minutes pass.",
    HOURS: "Two hours pass.",
    PAST_HORIZON: "23 and a half hours pass.",
    EXPIRY: "A month passes.",
}

UNREAD: Final[Mapping[str, Any]] = {
    "version": 1,  # A run knows whether the record has been written since it read it.
    "epoch": 0,
    "lease_owner": "",  # The lease is economy: here any delivery may start at any time.
    "lease_until": None,
    "sweeps": 0,
    "swept_until": None,
    "created_at": NOW,
    "updated_at": NOW,
    "succeeded_at": None,
    "history": (),
    "outbox": (),
}

DEADLINES: Final = ("due_at", "expires_at", "next_attempt_at")

assert LIMITS.lease < LIMITS.quarantine < QUARANTINED
assert policy.KEY_HORIZON < PAST_HORIZON < policy.KEY_LIFE < PRUNED <= PAST_HORIZON + HOURS
assert policy.LAST_WAIT < SOON < policy.CLOSING_WAIT < HOURS < policy.LOOK_EVERY < TOMORROW
assert policy.EXPIRES_AFTER < EXPIRY


def classed(at: datetime) -> datetime:
    """Round a time to its class."""
    if at <= NOW:
        return NOW - max(age for age in AGES if age <= NOW - at)
    return NOW + min((wait for wait in WAITS if wait >= at - NOW), default=EXPIRY)


def moved(value: Any, by: timedelta) -> Any:
    """Return a value, whatever it is made of, as it looks when that much time has passed."""
    if isinstance(value, datetime):
        return classed(value - by)
    if isinstance(value, tuple):
        return tuple([moved(one, by) for one in value]) if value else value
    return _moved_object(value, by) if _fields(value.__class__) else value


@functools.cache
def _moved_object(value: Any, by: timedelta) -> Any:
    """Return an object with its times moved. Most parts of a charge are those of many others: they are remembered."""
    new = {name: moved(getattr(value, name), by) for name in _fields(value.__class__)}
    return dataclasses.replace(value, **new)


@functools.cache
def _fields(kind: type) -> tuple[str, ...]:
    """Name the fields of a dataclass; nothing else has any."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


def passed(charge: Charge, by: timedelta) -> Charge:
    """Return a charge as it looks when that much time has passed, and without what no decision about it reads."""
    new = {name: moved(getattr(charge, name), by) for name in _fields(Charge) if name not in UNREAD}
    for name in DEADLINES:
        new[name] = new[name] and max(new[name], NOW)  # That it is over says all.
    tidied = _done_with if charge.final else _counted
    new["create"], new["attempts"] = tidied(new["create"]), tuple([tidied(one) for one in new["attempts"]])
    new["last_error"] = None if charge.final else charge.last_error
    new["discrepancies"] = tuple([dataclasses.replace(one, at=NOW) for one in charge.discrepancies])
    closing = new["closing"]
    if closing is not None:
        request = closing.request and tidied(closing.request)
        new["closing"] = dataclasses.replace(closing, request=request, at=NOW if charge.final else closing.at)
    return Charge(**new, **UNREAD)


@functools.cache
def _counted(request: R) -> R:
    """Count sends as none or some, and those that nothing explains up to three: more faults than that there are not."""
    return dataclasses.replace(request, sends=min(request.sends, 1), unanswered=min(request.unanswered, 3))


@functools.cache
def _done_with(request: R) -> R:
    """Of what a final charge has sent, keep only that it was."""
    return dataclasses.replace(
        request, sends=min(request.sends, 1), unanswered=0, first_sent_at=None, burnt_at=None, heard=None, error=None
    )
