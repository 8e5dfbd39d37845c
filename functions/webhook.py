"""The webhook function: closes outcomes that stayed unknown, from Stripe's events."""

import json
import re
from datetime import datetime, timedelta
from typing import Final

import flask
import functions_framework
import stripe

from shared import answer, health, log, wiring
from shared.answer import Answer
from shared.answers import read_card_given, read_event
from shared.api import Problem
from shared.checkout import Unreachable, hear_of_card
from shared.deliver import LookUnavailable

TOLERANCE: Final = timedelta(minutes=5)  # Stripe's own libraries' default: an older signature may be a replay.


@functions_framework.http
@answer.contained
@health.told
@answer.guarded
def webhook(request: flask.Request) -> Answer:
    """Take one event. 2xx only once what it proves is durable; anything else makes Stripe send it again."""
    if request.method != "POST":
        refused = answer.problem(Problem(405, "method-not-allowed", "Stripe posts its events."))
        refused.headers["Allow"] = "POST"
        return refused
    parts = wiring.parts("webhook")
    raw = request.get_data()
    signature = request.headers.get("Stripe-Signature", "")
    if not _signed(raw, signature, parts.settings.stripe_webhook_secrets, parts.clock.now()):
        log.warning("an event came without a valid signature")
        raise Problem(400, "signature-invalid", "No configured webhook secret signed these bytes recently.")
    try:
        body = json.loads(raw)
        event = read_event(body)
    except ValueError as error:
        log.error("a signed event cannot be read")
        raise Problem(400, "event-unreadable", "The signed body is not an event of Stripe's.") from error
    result = "about nothing that we keep"
    try:
        if event is not None:
            result = parts.charger.observe(event)
            log.info("event", type=event.type, payment_intent=event.payment_intent.id, result=result)
        elif (given := read_card_given(body)) is not None:
            result = hear_of_card(parts.charger, parts.checkout, given)
            log.info("card given", charge=given.charge_id, result=result)
    except (LookUnavailable, Unreachable) as error:
        detail = "Stripe could not be asked about it, or the charge is in hand; send the event again."
        raise Problem(503, "stripe-unavailable", detail) from error
    return answer.as_json({"result": result}, 200)


def _signed(raw: bytes, header: str, secrets: tuple[str, ...], now: datetime) -> bool:
    """Say whether any configured secret signed these bytes; two are valid while one is being replaced.

    The SDK verifies the bytes; it would judge their age by the machine's own clock, so that is done here.
    """
    for secret in secrets:
        try:
            stripe.WebhookSignature.verify_header(raw.decode(), header, secret)
        except (stripe.SignatureVerificationError, UnicodeDecodeError):
            continue
        signed_at = re.search(r"(?:^|,)t=(\d+)", header, re.ASCII)
        return signed_at is not None and int(signed_at[1]) >= (now - TOLERANCE).timestamp()
    return False
