"""PaymentIntents: the state machine of one payment, which makes at most one successful charge.

requires_payment_method -> requires_confirmation -> requires_action -> processing -> succeeded
          ^                        |                      |               |
          +------------------------+------ a decline -----+---------------+
manual capture: requires_capture before succeeded; canceled and succeeded are final.
"""

import re
from typing import Final

from infra.local.stripe.call import Call, private
from infra.local.stripe.cards import (
    AUTHENTICATION_FAILED,
    AUTHENTICATION_NOT_HANDLED,
    AUTHENTICATION_REQUIRED,
    Decline,
    Outcome,
)
from infra.local.stripe.errors import Refusal
from infra.local.stripe.resources import charges, payment_methods
from infra.local.stripe.resources.money import check_amount, readable
from infra.local.stripe.store import Object, shown

CONFIRMABLE: Final = {"requires_payment_method", "requires_confirmation", "requires_action"}
CANCELABLE: Final = {*CONFIRMABLE, "requires_capture"}
UPDATABLE: Final = CONFIRMABLE

FIELDS: Final = (
    "application_fee_amount",
    "description",
    "on_behalf_of",
    "receipt_email",
    "setup_future_usage",
    "shipping",
    "statement_descriptor",
    "statement_descriptor_suffix",
    "transfer_data",
    "transfer_group",
)

UNEXPECTED: Final = "payment_intent_unexpected_state"
NOTHING_TO_CHARGE: Final = (
    "You cannot confirm this PaymentIntent because it's missing a payment method. You can either update the "
    "PaymentIntent with a payment method and then confirm it again, or confirm it again directly with a payment method."
)


def create(call: Call) -> Object:
    """POST /v1/payment_intents, confirmed at once or not."""
    params = call.params
    check_amount(params["amount"], params["currency"])
    _check_create(call)
    intent = call.new(
        "pi",
        "payment_intent",
        amount=params["amount"],
        amount_capturable=0,
        amount_received=0,
        application_fee_amount=None,
        automatic_payment_methods=_automatic(call),
        canceled_at=None,
        cancellation_reason=None,
        capture_method=params.get("capture_method", "automatic_async"),
        client_secret=None,
        confirmation_method=params.get("confirmation_method", "automatic"),
        currency=params["currency"].lower(),
        customer=params.get("customer"),
        description=None,
        last_payment_error=None,
        latest_charge=None,
        metadata={},
        next_action=None,
        on_behalf_of=None,
        payment_method=None,
        payment_method_types=params.get("allowed_payment_method_types", ["card"]),
        processing=None,
        receipt_email=None,
        setup_future_usage=None,
        shipping=None,
        statement_descriptor=None,
        statement_descriptor_suffix=None,
        status="requires_payment_method",
        transfer_data=None,
        transfer_group=None,
        _={"confirms": 0},
    )
    intent["client_secret"] = f"{intent['id']}_secret_{call.store.new_id('s')[2:]}"
    call.copy(intent, *FIELDS)
    _take_payment_method(call, intent)
    call.keep(intent)
    call.emit("payment_intent.created", intent)
    if params.get("confirm"):
        _confirm(call, intent)
    return call.expanded(shown(intent))


def retrieve(call: Call) -> Object:
    """GET /v1/payment_intents/{id}."""
    return call.expanded(shown(call.in_path("payment_intent")))


def update(call: Call) -> Object:
    """POST /v1/payment_intents/{id}."""
    intent = call.in_path("payment_intent")
    _require(intent, UPDATABLE, "update")
    changed = {**intent, **call.params}
    check_amount(changed["amount"], changed["currency"])
    if "customer" in call.params:
        if intent["customer"] is not None:
            message = (
                "You cannot modify `customer` on a PaymentIntent once it already has been set. To fulfill a payment "
                "with a different Customer, cancel this PaymentIntent and create a new one."
            )
            raise Refusal(400, message, param="customer")
        call.in_body("customer", call.params["customer"], "customer")
    call.copy(intent, *FIELDS, "amount", "customer")
    intent |= {"currency": changed["currency"].lower(), "last_payment_error": None, "next_action": None}
    if intent["status"] == "requires_action":
        intent["status"] = "requires_confirmation"
    _take_payment_method(call, intent)
    call.store.update(intent)
    return call.expanded(shown(intent))


def confirm(call: Call) -> Object:
    """POST /v1/payment_intents/{id}/confirm."""
    intent = call.in_path("payment_intent")
    if intent["status"] == "succeeded":
        message = "because it has already succeeded after being previously confirmed."
        raise _unexpected(intent, f"You cannot confirm this PaymentIntent {message}")
    _require(intent, CONFIRMABLE, "confirm")
    call.copy(intent, "receipt_email", "setup_future_usage", "shipping")
    _take_payment_method(call, intent)
    _confirm(call, intent)
    return call.expanded(shown(intent))


def cancel(call: Call) -> Object:
    """POST /v1/payment_intents/{id}/cancel: final; money that was held is released."""
    intent = call.in_path("payment_intent")
    _require(intent, CANCELABLE, "cancel")
    end(call, intent, call.params.get("cancellation_reason"))
    return call.expanded(shown(intent))


def capture(call: Call) -> Object:
    """POST /v1/payment_intents/{id}/capture: take what is held, or a part of it and release the rest."""
    intent = call.in_path("payment_intent")
    if intent["status"] != "requires_capture":
        message = (
            f"This PaymentIntent could not be captured because it has a status of {intent['status']}. "
            "Only a PaymentIntent with one of the following statuses may be captured: requires_capture."
        )
        raise _unexpected(intent, message)
    amount = {"amount_to_capture": intent["amount_capturable"], **call.params}["amount_to_capture"]
    if not 1 <= amount <= intent["amount_capturable"]:
        message = "The amount to capture cannot be greater than the amount that can be captured."
        raise Refusal(400, message, code="amount_too_large", param="amount_to_capture")
    charge = call.in_path("charge", intent["latest_charge"])
    charge |= {"captured": True, "amount_captured": amount}
    call.store.update(charge)
    call.emit("charge.captured", charge)
    _succeed(call, intent, amount)
    return call.expanded(shown(intent))


def listed(call: Call) -> Object:
    """GET /v1/payment_intents."""
    where = [("customer = ?", call.params["customer"])] if "customer" in call.params else []
    return call.expanded(call.listed("payment_intent", "/v1/payment_intents", where))


CLAUSE: Final = re.compile(
    r"""(?:metadata\[["'](?P<key>[^"']+)["']\]|(?P<field>\w+))\s*:\s*["'](?P<value>[^"']*)["']"""
)


def search(call: Call) -> Object:
    """GET /v1/payment_intents/search: `metadata["…"]:"…"` and `field:"…"`, joined by AND."""
    found = call.store.all("payment_intent", call.world)
    for clause in re.split(r"\s+AND\s+", call.params["query"].strip()):
        parsed = CLAUSE.fullmatch(clause)
        if parsed is None:
            raise Refusal(400, f"We were unable to parse your search query: {clause}", param="query")
        key, name, value = parsed["key"], parsed["field"], parsed["value"]
        found = [
            intent for intent in found if (intent["metadata"].get(key) if key else str(intent.get(name or ""))) == value
        ]
    # Unlike a list, a search may be behind.
    seen = [shown(i) for i in reversed(found) if i["created"] <= call.now - call.lag.search_seconds]
    start, limit = int(call.params.get("page", "0")), call.params.get("limit", 10)
    answer: Object = {
        "object": "search_result",
        "url": "/v1/payment_intents/search",
        "has_more": len(seen) > start + limit,
        "data": seen[start : start + limit],
        "next_page": str(start + limit) if len(seen) > start + limit else None,
    }
    return call.expanded(answer)


# --- What Stripe, the bank and the customer do ------------------------------------------------------------------------


def authenticate(call: Call, *, succeeds: bool) -> Object:
    """Let the customer pass or fail the bank's question; the payment goes on by itself."""
    intent = call.in_path("payment_intent")
    _require(intent, {"requires_action"}, "authenticate")
    payment_method = call.in_path("payment_method", intent["payment_method"])
    intent["next_action"] = None
    try:
        if succeeds:
            _charge(call, intent, payment_method, payment_methods.behaviour_of(payment_method).after)
        else:
            _decline(call, intent, payment_method, AUTHENTICATION_FAILED)
    except Refusal:
        pass  # To the customer on the page, not to anybody who called.
    return shown(intent)


def settle(call: Call, *, succeeds: bool | None = None) -> Object:
    """Let the bank say how its debit went: as told, or as the test account's name says."""
    intent = call.in_path("payment_intent")
    _require(intent, {"processing"}, "settle")
    payment_method = call.in_path("payment_method", intent["payment_method"])
    charge = call.in_path("charge", intent["latest_charge"])
    why = payment_methods.behaviour_of(payment_method).after
    if succeeds is False and why is None:
        why = Decline("insufficient_funds", message="The bank returned the debit: insufficient_funds.")
    if succeeds is True or why is None:
        charge |= {"status": "succeeded", "paid": True, "captured": True, "amount_captured": charge["amount"]}
        call.store.update(charge)
        call.emit("charge.succeeded", charge)
        _succeed(call, intent, charge["amount"])
        return shown(intent)
    charges.failed(charge, why)
    call.store.update(charge)
    call.emit("charge.failed", charge)
    _back_to_start(call, intent, payment_method, charge, why)
    return shown(intent)


def end(call: Call, intent: Object, reason: str | None) -> None:
    """Cancel, for whatever reason."""
    if intent["status"] == "requires_capture":
        charge = call.in_path("charge", intent["latest_charge"])
        charge |= {"refunded": True, "amount_refunded": charge["amount"]}
        call.store.update(charge)
        call.emit("charge.expired" if reason == "automatic" else "charge.refunded", charge)
    intent |= {
        "status": "canceled",
        "canceled_at": int(call.now),
        "cancellation_reason": reason,
        "amount_capturable": 0,
        "next_action": None,
    }
    call.store.update(intent)
    call.emit("payment_intent.canceled", intent)


# --- Confirming -------------------------------------------------------------------------------------------------------


def _confirm(call: Call, intent: Object) -> None:
    """Try to pay. Raises the 402, which leaves the PaymentIntent ready for another try."""
    if intent["payment_method"] is None:
        raise _unexpected(intent, NOTHING_TO_CHARGE)
    if intent["customer"] is not None:
        call.in_body("customer", intent["customer"], "customer")  # It may have been deleted since.
    off_session = call.params.get("off_session") not in {None, False}
    automatic = intent["automatic_payment_methods"] or {}
    redirects = automatic.get("enabled") and automatic.get("allow_redirects") != "never"
    if redirects and not off_session and "return_url" not in call.params:
        message = (
            "This PaymentIntent is configured to accept payment methods that may redirect the customer; "
            "you must provide a `return_url`."
        )
        raise Refusal(400, message, param="return_url")
    payment_method = payment_methods.usable(call, intent["payment_method"], intent["customer"])
    intent["payment_method"] = payment_method["id"]
    intent |= {"last_payment_error": None, "next_action": None}
    ours = private(intent)
    ours["confirms"] += 1
    if ours["confirms"] > call.settings.confirms_at_most:
        end(call, intent, "automatic")
        raise _unexpected(
            intent, "This PaymentIntent was confirmed too often and has been canceled.", keeps_effects=True
        )
    does = payment_methods.behaviour_of(payment_method)
    match does.outcome:
        case Outcome.AUTHENTICATES if off_session:
            raise _declined(call, intent, payment_method, AUTHENTICATION_REQUIRED)
        case Outcome.AUTHENTICATES if call.params.get("error_on_requires_action"):
            raise _declined(call, intent, payment_method, AUTHENTICATION_NOT_HANDLED)
        case Outcome.AUTHENTICATES:
            _ask_customer(call, intent)
        case Outcome.BANK:
            _ask_bank(call, intent, payment_method, settles=does.settles)
        case Outcome.PAYS | Outcome.DECLINES:
            _charge(call, intent, payment_method, does.after)


def _charge(call: Call, intent: Object, payment_method: Object, why_not: Decline | None) -> None:
    if why_not is not None:
        raise _declined(call, intent, payment_method, why_not)
    charge = charges.pay(call, intent, payment_method)
    intent["latest_charge"] = charge["id"]
    if intent["setup_future_usage"] and intent["customer"]:
        payment_methods.attach_to(call, payment_method, intent["customer"])
    if intent["capture_method"] == "manual":
        intent |= {"status": "requires_capture", "amount_capturable": intent["amount"]}
        call.store.update(intent)
        call.store.add_later(call.now + call.settings.hold_seconds, "expire_hold", call.world, {"id": intent["id"]})
        call.emit("payment_intent.amount_capturable_updated", intent)
    else:
        _succeed(call, intent, intent["amount"])


def _succeed(call: Call, intent: Object, amount: int) -> None:
    intent |= {"status": "succeeded", "amount_received": amount, "amount_capturable": 0, "processing": None}
    call.store.update(intent)
    call.emit("payment_intent.succeeded", intent)


def _ask_customer(call: Call, intent: Object) -> None:
    action: Object = {"type": "use_stripe_sdk", "use_stripe_sdk": {"type": "three_d_secure_redirect"}}
    if "return_url" in call.params:
        url = f"{call.settings.public_url}/_double/authenticate/{intent['id']}"
        redirect = {"url": url, "return_url": call.params["return_url"]}
        action = {"type": "redirect_to_url", "redirect_to_url": redirect}
    intent |= {"status": "requires_action", "next_action": action}
    call.store.update(intent)
    call.emit("payment_intent.requires_action", intent)


def _ask_bank(call: Call, intent: Object, payment_method: Object, *, settles: bool) -> None:
    charge = charges.await_bank(call, intent, payment_method)
    intent |= {"status": "processing", "latest_charge": charge["id"]}
    call.store.update(intent)
    if settles:
        call.store.add_later(call.now + call.settings.bank_debit_seconds, "settle", call.world, {"id": intent["id"]})
    call.emit("payment_intent.processing", intent)


def _declined(call: Call, intent: Object, payment_method: Object, why: Decline) -> Refusal:
    """Record the decline and return the 402 that tells of it."""
    _decline(call, intent, payment_method, why)
    error = {**intent["last_payment_error"]}
    message, kind, code = error.pop("message"), error.pop("type"), error.pop("code")
    error.pop("doc_url", None)
    return Refusal(402, message, type=kind, code=code, payment_intent=shown(intent), keeps_effects=True, **error)


def _decline(call: Call, intent: Object, payment_method: Object, why: Decline) -> None:
    charge = charges.decline(call, intent, payment_method, why)
    _back_to_start(call, intent, payment_method, charge, why)


def _back_to_start(call: Call, intent: Object, payment_method: Object, charge: Object, why: Decline) -> None:
    error = {"type": "card_error", **why.codes, "message": why.message, "charge": charge["id"]}
    if why.advice_code is not None:
        error["network_decline_code"] = "05"
    intent |= {
        "status": "requires_payment_method",
        "payment_method": None,
        "latest_charge": charge["id"],
        "last_payment_error": {
            **{name: value for name, value in error.items() if value is not None},
            "payment_method": shown(payment_method),
        },
    }
    call.store.update(intent)
    call.emit("payment_intent.payment_failed", intent)


# --- Parameters -------------------------------------------------------------------------------------------------------


def _check_create(call: Call) -> None:
    params = call.params
    if "customer" in params:
        call.in_body("customer", params["customer"], "customer")
    if params.get("confirm") and params.keys().isdisjoint({"payment_method", "payment_method_data"}):
        raise Refusal(400, NOTHING_TO_CHARGE, code=UNEXPECTED)
    if not params.get("confirm"):
        for name in ("off_session", "error_on_requires_action"):
            if params.get(name):
                message = (
                    f"The parameter `{name}` cannot be passed when creating a PaymentIntent without `confirm=true`."
                )
                raise Refusal(400, message, param=name)
    fee = params.get("application_fee_amount")
    if fee is not None and call.world.account == call.platform and not params.get("transfer_data"):
        message = (
            "Can only apply an application_fee_amount when the PaymentIntent is attempting a direct payment (using the "
            "Stripe-Account header) or destination payment (using `transfer_data[destination]`)."
        )
        raise Refusal(400, message, param="application_fee_amount")
    if fee is not None and fee > params["amount"]:
        message = f"The application fee must be no more than {readable(params['amount'], params['currency'])}."
        raise Refusal(400, message, param="application_fee_amount")


def _automatic(call: Call) -> Object | None:
    if "allowed_payment_method_types" in call.params:
        return None
    given = call.params.get("automatic_payment_methods")
    return {"allow_redirects": "always", **given} if given else None


def _take_payment_method(call: Call, intent: Object) -> None:
    """Take over the payment method that the parameters name or describe."""
    params = call.params
    if "payment_method_data" in params:
        payment_method = payment_methods.from_data(call, params["payment_method_data"], "payment_method_data")
    elif params.get("payment_method"):
        payment_method = payment_methods.usable(call, params["payment_method"], intent["customer"])
    else:
        return
    intent["payment_method"] = payment_method["id"]
    if intent["status"] == "requires_payment_method":
        intent["status"] = "requires_confirmation"


def _require(intent: Object, states: set[str], what: str) -> None:
    if intent["status"] not in states:
        message = (
            f"You cannot {what} this PaymentIntent because it has a status of {intent['status']}. Only a PaymentIntent "
            f"with one of the following statuses may be {_done(what)}: {', '.join(sorted(states))}."
        )
        raise _unexpected(intent, message)


def _done(what: str) -> str:
    return {"cancel": "canceled", "confirm": "confirmed"}.get(what, what + "d")


def _unexpected(intent: Object, message: str, *, keeps_effects: bool = False) -> Refusal:
    return Refusal(400, message, code=UNEXPECTED, payment_intent=shown(intent), keeps_effects=keeps_effects)
