"""Refunds: money given back, never more than was taken."""

from typing import Any

from infra.local.stripe.call import Call
from infra.local.stripe.errors import Refusal, missing
from infra.local.stripe.resources.money import readable
from infra.local.stripe.store import Object, shown


def create(call: Call) -> Object:
    """POST /v1/refunds."""
    charge = _charge(call)
    left = charge["amount_captured"] - charge["amount_refunded"]
    if charge["refunded"] or left <= 0:
        message = f"Charge {charge['id']} has already been refunded."
        raise Refusal(400, message, code="charge_already_refunded", charge=charge["id"])
    amount = call.params.get("amount", left)
    if not 1 <= amount <= left:
        asked, rest = readable(amount, charge["currency"]), readable(left, charge["currency"])
        message = f"Refund amount ({asked}) is greater than unrefunded amount on charge ({rest})."
        raise Refusal(400, message, param="amount")
    refund = call.new(
        "re",
        "refund",
        amount=amount,
        balance_transaction=None,
        charge=charge["id"],
        currency=charge["currency"],
        metadata={},
        payment_intent=charge["payment_intent"],
        reason=call.params.get("reason"),
        status="succeeded",
    )
    call.copy(refund)
    call.keep(refund)
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] == charge["amount_captured"]
    call.store.update(charge)
    call.emit("refund.created", refund)
    call.emit("charge.refunded", charge)
    return call.expanded(shown(refund))


def retrieve(call: Call) -> Object:
    """GET /v1/refunds/{id}."""
    return call.expanded(shown(call.in_path("refund")))


def update(call: Call) -> Object:
    """POST /v1/refunds/{id}."""
    refund = call.in_path("refund")
    call.copy(refund)
    call.store.update(refund)
    call.emit("refund.updated", refund)
    return call.expanded(shown(refund))


def listed(call: Call) -> Object:
    """GET /v1/refunds."""
    where: list[tuple[str, Any]] = []
    if "payment_intent" in call.params:
        where.append(("payment_intent = ?", call.params["payment_intent"]))
    if "charge" in call.params:
        where.append(("json_extract(body, '$.charge') = ?", call.params["charge"]))
    return call.expanded(call.listed("refund", "/v1/refunds", where))


def _charge(call: Call) -> Object:
    """Return the charge to give back, which the parameters name in either of two ways."""
    if "charge" in call.params:
        charge = call.in_body("charge", call.params["charge"], "charge")
    elif "payment_intent" in call.params:
        intent = call.in_body("payment_intent", call.params["payment_intent"], "payment_intent")
        latest = intent["latest_charge"]
        charge = call.in_path("charge", latest) if latest is not None else {}
        if charge.get("status") != "succeeded" or not charge["captured"]:
            raise Refusal(400, f"This PaymentIntent ({intent['id']}) does not have a successful charge to refund.")
    else:
        raise missing("charge")
    if charge["status"] != "succeeded":
        raise Refusal(
            400, f"Charge {charge['id']} did not succeed, so it cannot be refunded.", code="charge_not_refundable"
        )
    return charge
