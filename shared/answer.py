"""Turns outcomes and problems into HTTP answers, for callers and for Cloud Tasks."""

import functools
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

import flask
from werkzeug.exceptions import HTTPException

from shared import log, telemetry
from shared.api import HTTP_STATUS, RETRY_AFTER_SECONDS, Problem, view
from shared.charge import Charge
from shared.deliver import Outcome, TaskBody
from shared.gate import LedgerClosed
from shared.ledger import LedgerUnavailable

Answer = flask.Response
CLOSED_SECONDS: Final = 60  # A person must do something first.
STRIPE_DOWN_SECONDS: Final = 30  # Asked of the queue while Stripe as a whole does not answer.
UNKNOWN_ID_SECONDS: Final = 60  # A task may overtake the commit that it was made for, but not by so much.
PAGES: Final = frozenset({"console", "portal"})  # The functions that people look at: no documents for programs there.

REFUSALS: Final[Mapping[str, str]] = {  # Where the refusal's own name says too little.
    "customer_is_gone": "its customer is gone at Stripe, so name another as `customer`, whose payment method it is",
    "customer_is_another": "another customer is taken only where its own is gone before a PaymentIntent was made",
}


def by_task(request: flask.Request) -> bool:
    """Say whether Cloud Tasks delivered this. Anyone may claim it: it shapes the answer's code, nothing else."""
    return "X-CloudTasks-QueueName" in request.headers


def task_of(request: flask.Request) -> str | None:
    """Name the task that brought this. Anyone may claim it: it decides who has a charge in hand, which is economy."""
    return request.headers.get("X-CloudTasks-TaskName") if by_task(request) else None


def as_json(body: Any, status: int, content_type: str = "application/json") -> Answer:
    """Return a JSON answer."""
    return flask.Response(json.dumps(body) + "\n", status=status, content_type=content_type)


def problem(found: Problem) -> Answer:
    """Return a problem document."""
    answer = as_json(found.body(), found.status, "application/problem+json")
    if found.retry_after is not None:
        answer.headers["Retry-After"] = str(found.retry_after)
    return answer


def to_caller(outcome: Outcome, now: datetime, url: str, show: Callable[[Charge], Any] = view) -> Answer:
    """Answer an HTTP caller, by the charge's status."""
    charge = outcome.charge
    if outcome.busy:
        found = Problem(409, "in-hand", "This charge is being worked on; ask again.", retry_after=_seconds(charge, now))
        answer = problem(found)
    elif outcome.refusal == "version":
        answer = problem(Problem(412, "version", "The charge has moved on; read it again.", charge=show(charge)))
    elif outcome.refusal is not None:
        why = REFUSALS.get(outcome.refusal, outcome.refusal.replace("_", " "))
        detail = f"The charge is {charge.status}: {why}. Nothing was changed."
        answer = problem(Problem(409, outcome.refusal.replace("_", "-"), detail, charge=show(charge)))
    else:
        answer = as_json(show(charge), HTTP_STATUS[charge.status])
        if answer.status_code == 202:
            answer.headers["Retry-After"] = str(_seconds(charge, now))
        if outcome.existed:
            answer.headers["Idempotent-Replayed"] = "true"
    answer.headers["Location"] = f"{url.rstrip('/')}/{charge.id}"
    return answer


def to_task(outcome: Outcome) -> Answer:
    """Answer Cloud Tasks: 2xx ends the task, 409 brings it again, 503 slows the whole queue as well."""
    charge = outcome.charge
    if not outcome.durable or outcome.stripe_down:
        answer = as_json({"charge": charge.id, "status": charge.status}, 503)
        answer.headers["Retry-After"] = str(STRIPE_DOWN_SECONDS)
        return answer
    again = outcome.busy or outcome.crashed or outcome.again
    return as_json({"charge": charge.id, "status": charge.status}, 409 if again else 200)


def unknown_charge(request: flask.Request, name: str, now: datetime) -> Answer:
    """Answer Cloud Tasks about a charge that is not recorded: come again while it may be, then never."""
    eta = request.headers.get("X-CloudTasks-TaskETA", type=float, default=now.timestamp())
    enqueued_at = TaskBody.read(request.get_data()).enqueued_at or eta
    young = now.timestamp() < enqueued_at + UNKNOWN_ID_SECONDS
    log.warning("a task names a charge that is not recorded", charge=name, young=young)
    return as_json({"charge": name, "status": None}, 409 if young else 200)


def _seconds(charge: Charge, now: datetime) -> int:
    """Say in how many seconds it is worth asking again."""
    if charge.due_at is None:
        return RETRY_AFTER_SECONDS
    return max(1, min(3600, round((charge.due_at - now).total_seconds())))


def contained(handle: Callable[[flask.Request], Answer]) -> Callable[[flask.Request], Answer]:
    """Trace a function's requests, and let no exception out of it: the outermost, around everything else.

    What gets out is written by Flask as plain text, with its message and with the request's address, which in the
    portal is a customer's link. Here it becomes a line of the log without either, and a 500, which makes Cloud Tasks,
    Cloud Scheduler and Stripe come again. What is no Exception ends the process, and passes; so do werkzeug's answers.
    """

    @functools.wraps(handle)
    def answered(request: flask.Request) -> Answer:
        with telemetry.request(request.headers):
            try:
                return handle(request)
            except HTTPException:
                raise
            except Exception:  # noqa: BLE001 - a bug or a fault of any kind.
                log.exception("a request ended in an exception", function=handle.__name__)
                return _broken(handle.__name__)

    return answered


def _broken(function: str) -> Answer:
    if function not in PAGES:
        detail = "Nobody expected this, and it is not certain how far it came. Repeat it as it was: that is safe."
        return problem(Problem(500, "broken", detail, retry_after=RETRY_AFTER_SECONDS))
    answer = flask.Response(
        "Something went wrong here. Try again in a few minutes: that is safe.\n", status=500, content_type="text/plain"
    )
    answer.headers["Cache-Control"] = "no-store"
    answer.headers["Referrer-Policy"] = "no-referrer"
    return answer


def guarded(handle: Callable[[flask.Request], Answer]) -> Callable[[flask.Request], Answer]:
    """Turn problems into their documents, and an absent ledger into 503."""

    @functools.wraps(handle)
    def answered(request: flask.Request) -> Answer:
        try:
            return handle(request)
        except Problem as found:
            return problem(found)
        except LedgerClosed as closed:
            return problem(Problem(503, "ledger-closed", str(closed), retry_after=CLOSED_SECONDS))
        except LedgerUnavailable:
            log.error("the ledger is out of reach")
            detail = (
                "It is not certain that this was recorded, and nothing has been sent to Stripe for it. "
                "Repeat it with the same Idempotency-Key, or give it up with POST /cancel and that key."
            )
            return problem(Problem(503, "ledger-unavailable", detail, retry_after=RETRY_AFTER_SECONDS))

    return answered
