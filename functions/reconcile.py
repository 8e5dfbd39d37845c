"""The reconcile function: for what nothing redelivers. Cloud Scheduler calls it every minute.

    POST /           sweep, then whatever else is due
    POST /backfill   apply the events that Stripe could not deliver
    POST /audit      hold the ledger against Stripe; `{"since": ..., "until": ...}` for another period than the next

Each ends within the function's time; the next call goes on from there. All are safe to run twice at once.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final

import flask
import functions_framework
import msgspec

from shared import answer, api, health, instance, log, wiring
from shared.answer import Answer
from shared.api import Problem
from shared.deliver import LookUnavailable
from shared.reconcile import AuditInHand, StripeUnavailable

SHARE: Final = 0.5  # Of the function's time: the other half is for the step that is under way then.


class AuditBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The body of `POST /audit`: a period, RFC 3339."""

    since: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    until: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


@functions_framework.http
@answer.contained
@health.told
@answer.guarded
def reconcile(request: flask.Request) -> Answer:
    """Do a part of the work, as much as fits."""
    work = {"/": _run, "/backfill": _backfill, "/audit": _audit}.get(request.path)
    if work is None:
        raise Problem(404, "not-found", "There is nothing at this address.")
    if request.method != "POST":
        refused = answer.problem(Problem(405, "method-not-allowed", "Post to it."))
        refused.headers["Allow"] = "POST"
        return refused
    try:
        done = work(request)
    except (StripeUnavailable, LookUnavailable) as error:
        raise Problem(503, "stripe-unavailable", f"{error}. The next call goes on from here.") from error
    log.info("reconciled", path=request.path, **{name: value for name, value in done.items() if name != "findings"})
    return answer.as_json(done, 200)


def _run(_request: flask.Request) -> dict[str, Any]:
    return wiring.parts("reconcile").reconciler.run(_time())


def _backfill(_request: flask.Request) -> dict[str, Any]:
    done: dict[str, Any] = msgspec.to_builtins(wiring.parts("reconcile").reconciler.backfill(_time()))
    return done


def _audit(request: flask.Request) -> dict[str, Any]:
    period = api.parse(request.get_data(), request.content_type or "", AuditBody)
    try:
        report = wiring.parts("reconcile").reconciler.audit(_time(), since=period.since, until=period.until)
    except AuditInHand as other:
        raise Problem(409, "in-hand", str(other), retry_after=api.RETRY_AFTER_SECONDS) from other
    if report is None:
        raise Problem(409, "in-hand", "Another run is at this audit.", retry_after=api.RETRY_AFTER_SECONDS)
    shown: dict[str, Any] = {"report": report.name, **msgspec.to_builtins(report)}
    del shown["doubts"]  # Ours: where the next call goes on.
    return shown


def _time() -> Callable[[], bool]:
    """Return what says whether there is time for another step; none is begun once the instance is to end."""
    parts = wiring.parts("reconcile")
    ends_at = parts.clock.monotonic() + SHARE * parts.limits.function_timeout.total_seconds()
    return lambda: parts.clock.monotonic() < ends_at and not instance.ending()
