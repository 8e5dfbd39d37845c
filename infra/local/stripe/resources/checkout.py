"""Checkout Sessions in setup mode: the customer enters a card on a page of Stripe's."""

from typing import Any

from infra.local.stripe.call import Call
from infra.local.stripe.errors import Refusal, missing
from infra.local.stripe.resources import customers, payment_methods, setup_intents
from infra.local.stripe.store import Object, shown

KIND = "checkout.session"


def create(call: Call) -> Object:
    """POST /v1/checkout/sessions."""
    params = call.params
    if params.get("mode") != "setup":
        raise Refusal(400, "This double knows sessions of mode `setup` only.", param="mode")
    if "allowed_payment_method_types" not in params and "currency" not in params:
        raise missing("currency")
    if params.get("ui_mode", "hosted") == "hosted" and "success_url" not in params:
        raise missing("success_url")
    for other in ("customer_creation", "customer_email"):
        if {"customer", other} <= params.keys():
            message = f"You may only specify one of these parameters: customer, {other}."
            raise Refusal(400, message, param="customer")
    if "customer" in params:
        call.in_body("customer", params["customer"], "customer")
    intent = setup_intents.begin(call, params.get("customer"), "off_session")
    given = params.get("setup_intent_data") or {}
    intent |= {"metadata": given.get("metadata") or {}, "description": given.get("description")}
    call.store.update(intent)
    session = call.new(
        "cs_live" if call.world.livemode else "cs_test",
        KIND,
        amount_total=None,
        cancel_url=params.get("cancel_url"),
        client_reference_id=params.get("client_reference_id"),
        currency=params.get("currency"),
        customer=params.get("customer"),
        customer_creation=None if "customer" in params else params.get("customer_creation", "if_required"),
        customer_email=params.get("customer_email"),
        expires_at=params.get("expires_at", int(call.now + call.settings.checkout_seconds)),
        metadata={},
        mode="setup",
        payment_intent=None,
        payment_method_types=params.get("allowed_payment_method_types", ["card"]),
        payment_status="no_payment_required",
        setup_intent=intent["id"],
        status="open",
        success_url=params.get("success_url"),
    )
    session["url"] = f"{call.settings.public_url}/_double/checkout/{session['id']}"
    call.copy(session)
    call.keep(session)
    call.store.add_later(session["expires_at"], "expire_session", call.world, {"id": session["id"]})
    return call.expanded(shown(session))


def retrieve(call: Call) -> Object:
    """GET /v1/checkout/sessions/{id}."""
    return call.expanded(shown(call.in_path(KIND)))


def listed(call: Call) -> Object:
    """GET /v1/checkout/sessions."""
    where: list[tuple[str, Any]] = [
        (f"{column} = ?", call.params[column]) for column in ("customer", "status") if column in call.params
    ]
    return call.expanded(call.listed(KIND, "/v1/checkout/sessions", where))


def expire(call: Call) -> Object:
    """POST /v1/checkout/sessions/{id}/expire."""
    session = _open(call)
    session |= {"status": "expired", "url": None}
    call.store.update(session)
    call.emit("checkout.session.expired", session)
    return call.expanded(shown(session))


def complete(call: Call, card: str) -> Object:
    """Let the customer enter a card, which is saved. Raises the 402 of a card that cannot be.

    Setup mode needs no customer: one is made only where `customer_creation` is `always`.
    """
    session = _open(call)
    intent = call.in_path("setup_intent", session["setup_intent"])
    if session["customer_creation"] == "always":
        session["customer"] = intent["customer"] = customers.begin(call, email=session["customer_email"])["id"]
    setup_intents.succeed(call, intent, payment_methods.named(call, card, "payment_method"))
    session |= {"status": "complete", "url": None}
    call.store.update(session)
    call.emit("checkout.session.completed", session)
    return shown(session)


def _open(call: Call) -> Object:
    session = call.in_path(KIND)
    if session["status"] != "open":
        message = f'Only Checkout Sessions with a status in ["open"] can be changed; this one is {session["status"]}.'
        raise Refusal(400, message, param="session")
    return session
