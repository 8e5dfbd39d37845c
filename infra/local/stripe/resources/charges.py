"""Charges: every try to take money, made by a PaymentIntent. Only one that succeeded and is captured moved any."""

from typing import Any

from infra.local.stripe.call import Call
from infra.local.stripe.cards import Decline
from infra.local.stripe.store import Object, shown

FROM_INTENT = (
    "amount",
    "application_fee_amount",
    "currency",
    "customer",
    "description",
    "on_behalf_of",
    "receipt_email",
    "shipping",
    "statement_descriptor",
    "statement_descriptor_suffix",
    "transfer_data",
    "transfer_group",
)


def retrieve(call: Call) -> Object:
    """GET /v1/charges/{id}."""
    return call.expanded(shown(call.in_path("charge")))


def update(call: Call) -> Object:
    """POST /v1/charges/{id}."""
    charge = call.in_path("charge")
    call.copy(charge, "description", "receipt_email")
    call.store.update(charge)
    call.emit("charge.updated", charge)
    return call.expanded(shown(charge))


def listed(call: Call) -> Object:
    """GET /v1/charges."""
    where: list[tuple[str, Any]] = [
        (f"{column} = ?", call.params[column]) for column in ("payment_intent", "customer") if column in call.params
    ]
    return call.expanded(call.listed("charge", "/v1/charges", where))


# --- For PaymentIntents -----------------------------------------------------------------------------------------------


def pay(call: Call, intent: Object, payment_method: Object) -> Object:
    """Take the money, or hold it where the capture is manual."""
    charge = _new(call, intent, payment_method)
    captured = intent["capture_method"] != "manual"
    charge |= {
        "status": "succeeded",
        "paid": True,
        "captured": captured,
        "amount_captured": charge["amount"] if captured else 0,
        "outcome": _outcome("authorized", "approved_by_network", None),
    }
    if not captured and "card" in charge["payment_method_details"]:
        capture_before = int(call.now + call.settings.hold_seconds)
        charge["payment_method_details"]["card"]["capture_before"] = capture_before
    call.keep(charge)
    call.emit("charge.succeeded", charge)
    return charge


def decline(call: Call, intent: Object, payment_method: Object, why: Decline) -> Object:
    """Record that no money was taken, and why."""
    charge = _new(call, intent, payment_method)
    failed(charge, why)
    call.keep(charge)
    call.emit("charge.failed", charge)
    return charge


def await_bank(call: Call, intent: Object, payment_method: Object) -> Object:
    """Ask the bank, which takes its time."""
    charge = _new(call, intent, payment_method)
    charge |= {"status": "pending", "outcome": _outcome("authorized", "approved_by_network", None)}
    call.keep(charge)
    call.emit("charge.pending", charge)
    return charge


def failed(charge: Object, why: Decline) -> None:
    """Mark a charge as failed."""
    kind = "blocked" if why.blocked else "issuer_declined"
    network = "not_sent_to_network" if why.blocked else "declined_by_network"
    reason = "highest_risk_level" if why.blocked else why.decline_code or why.code
    charge |= {
        "status": "failed",
        "failure_code": why.code,
        "failure_message": why.message,
        "outcome": {**_outcome(kind, network, reason), "advice_code": why.advice_code},
    }


def _new(call: Call, intent: Object, payment_method: Object) -> Object:
    kind = payment_method["type"]
    return call.new(
        "ch" if kind == "card" else "py",
        "charge",
        amount_captured=0,
        amount_refunded=0,
        balance_transaction=None,  # Filled in later, as with Stripe's asynchronous capture; here never.
        billing_details=payment_method["billing_details"],
        captured=False,
        disputed=False,
        failure_code=None,
        failure_message=None,
        # As it is now: later changes to the PaymentIntent do not reach its charges.
        metadata=dict(intent["metadata"]),
        paid=False,
        payment_intent=intent["id"],
        payment_method=payment_method["id"],
        payment_method_details={"type": kind, kind: dict(payment_method[kind])},
        refunded=False,
        **{name: intent[name] for name in FROM_INTENT},
    )


def _outcome(kind: str, network_status: str, reason: str | None) -> Object:
    return {
        "type": kind,
        "network_status": network_status,
        "reason": reason,
        "risk_level": "highest" if kind == "blocked" else "normal",
        "seller_message": "Payment complete." if kind == "authorized" else "The payment was declined.",
    }
