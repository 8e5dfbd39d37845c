"""`GET /health`: whether a function could work, and which version it is. Stripe is not asked.

    200  {"status": "ok", "version": ..., "ledger_generation": ..., "stripe_api_version": ...}
    503  likewise, with what is wrong as `detail`

The two functions that anybody may call say no more than `ok`, and read nothing for it: a flood of these costs no reads.
"""

import functools
from collections.abc import Callable
from typing import Any, Final

import flask

from shared import __version__, answer, wiring
from shared.answer import Answer
from shared.gate import LedgerClosed
from shared.gateway import STRIPE_API_VERSION
from shared.ledger import LedgerUnavailable
from shared.settings import SettingsError

PATH: Final = "/health"  # Cloud Run keeps some paths that end with z for itself, /healthz among them.
PUBLIC: Final = frozenset({"portal", "webhook"})


def told(handle: Callable[[flask.Request], Answer]) -> Callable[[flask.Request], Answer]:
    """Answer `GET /health` for a function, beside what it is for."""

    @functools.wraps(handle)
    def answered(request: flask.Request) -> Answer:
        if request.path != PATH or request.method not in {"GET", "HEAD"}:
            return handle(request)
        told = (_public if handle.__name__ in PUBLIC else _private)(handle.__name__)
        told.headers["Cache-Control"] = "no-store"
        return told

    return answered


def _public(function: str) -> Answer:
    try:
        wiring.parts(function)
    except (SettingsError, ValueError):
        return flask.Response("not ok\n", status=503, content_type="text/plain")
    return flask.Response("ok\n", content_type="text/plain")


def _private(function: str) -> Answer:
    report: dict[str, Any] = {"status": "ok", "version": __version__, "stripe_api_version": STRIPE_API_VERSION}
    try:
        parts = wiring.parts(function)
        report["ledger_generation"] = parts.settings.ledger_generation
        parts.gate.look()
    except (SettingsError, ValueError, LedgerClosed, LedgerUnavailable) as error:
        return answer.as_json({**report, "status": "unavailable", "detail": str(error)}, 503)
    return answer.as_json(report, 200)
