"""Payment methods. A test name is no object: whoever names one gets a new payment method that does as the name says."""

from typing import Any

from infra.local.stripe import cards
from infra.local.stripe.call import Call, private
from infra.local.stripe.cards import Behaviour, Outcome
from infra.local.stripe.errors import Refusal, missing, no_such, not_found
from infra.local.stripe.store import Object, shown

EXPIRY_YEAR = 2034


def create(call: Call) -> Object:
    """POST /v1/payment_methods."""
    return call.expanded(shown(from_data(call, call.params, "")))


def retrieve(call: Call) -> Object:
    """GET /v1/payment_methods/{id}."""
    return call.expanded(shown(_in_path(call)))


def update(call: Call) -> Object:
    """POST /v1/payment_methods/{id}."""
    payment_method = _in_path(call)
    call.copy(payment_method, "billing_details", "allow_redisplay")
    call.store.update(payment_method)
    call.emit("payment_method.updated", payment_method)
    return call.expanded(shown(payment_method))


def attach(call: Call) -> Object:
    """POST /v1/payment_methods/{id}/attach."""
    payment_method = _in_path(call)
    customer = call.params.get("customer")
    if customer is None:
        raise missing("customer")
    call.in_body("customer", customer, "customer")
    if payment_method["customer"] not in {None, customer} or private(payment_method).get("detached"):
        message = "The payment method you provided has already been attached to a customer."
        raise Refusal(400, message, code="payment_method_unexpected_state")
    attach_to(call, payment_method, customer)
    return call.expanded(shown(payment_method))


def detach(call: Call) -> Object:
    """POST /v1/payment_methods/{id}/detach: for good, it may not be used again."""
    payment_method = call.in_path("payment_method")
    if payment_method["customer"] is None:
        message = "The payment method you provided is not attached to a customer so detachment is impossible."
        raise Refusal(400, message, code="payment_method_unexpected_state")
    detach_from(call, payment_method)
    return call.expanded(shown(payment_method))


def listed(call: Call) -> Object:
    """GET /v1/payment_methods."""
    if "customer" not in call.params:
        return {"object": "list", "url": "/v1/payment_methods", "has_more": False, "data": []}
    call.in_body("customer", call.params["customer"], "customer")
    return of_customer(call, call.params["customer"], "/v1/payment_methods")


def of_customer(call: Call, customer: str, url: str) -> Object:
    """Return a page of what is attached to a customer."""
    where: list[tuple[str, Any]] = [("customer = ?", customer)]
    if "type" in call.params:
        where.append(("json_extract(body, '$.type') = ?", call.params["type"]))
    return call.expanded(call.listed("payment_method", url, where))


# --- For the other resources ------------------------------------------------------------------------------------------


def named(call: Call, name: str, param: str) -> Object:
    """Return the payment method that a parameter names, made anew if it is a test name. Raises the 400."""
    behaviour = cards.behaviour(name) if call.store.find(call.world, name, "payment_method") is None else None
    if behaviour is not None:
        return _new(call, name, behaviour)
    found = call.store.find(call.world, name, "payment_method")
    if found is None:
        raise no_such("PaymentMethod", name, param)
    return found


def usable(call: Call, name: str, customer: str | None) -> Object:
    """Return a payment method to charge for this customer. Raises the 400 if it is another's, or used up."""
    payment_method = named(call, name, "payment_method")
    if payment_method["customer"] is not None and payment_method["customer"] != customer:
        message = (
            f"The customer does not have a payment method with the ID {name}. "
            "The payment method must be attached to the customer."
        )
        raise Refusal(400, message, code="resource_missing", param="payment_method")
    if private(payment_method).get("detached"):
        message = (
            "The provided PaymentMethod was detached from a Customer. It may not be used again. To use a PaymentMethod "
            "multiple times, you must attach it to a Customer first."
        )
        raise Refusal(400, message, code="payment_method_unexpected_state", param="payment_method")
    return payment_method


def attached(call: Call, name: str, customer: str) -> Object:
    """Return a payment method of this customer. Raises the 404."""
    payment_method = call.in_path("payment_method", name)
    if payment_method["customer"] != customer:
        raise not_found("payment_method", name)
    return payment_method


def attach_to(call: Call, payment_method: Object, customer: str) -> None:
    """Save a payment method for a customer; the bank may say no."""
    if payment_method["customer"] == customer:
        return
    does = behaviour_of(payment_method)
    if does.outcome is Outcome.DECLINES and not does.attaches:
        assert does.after is not None, "what declines says why"
        raise Refusal(402, does.after.message, type="card_error", **does.after.codes)
    payment_method["customer"] = customer
    call.store.update(payment_method)
    call.emit("payment_method.attached", payment_method)


def detach_from(call: Call, payment_method: Object) -> None:
    """Take a payment method away from its customer."""
    payment_method["customer"] = None
    private(payment_method)["detached"] = True
    call.store.update(payment_method)
    call.emit("payment_method.detached", payment_method)


def behaviour_of(payment_method: Object) -> Behaviour:
    """Return what a payment method does when it is charged."""
    behaviour = cards.behaviour(private(payment_method)["behaviour"])
    assert behaviour is not None, "every payment method was made from a behaviour"
    return behaviour


def from_data(call: Call, data: Object, param: str) -> Object:
    """Make a payment method from the card or account that the parameters tell of."""
    kind = data.get("type") or ("card" if "card" in data else None)
    if kind is None:
        raise missing(f"{param}[type]" if param else "type")
    name = _bank_behaviour(data) if kind == "us_bank_account" else _card_behaviour(call, data.get("card"), kind)
    behaviour = cards.behaviour(name)
    if behaviour is None:
        raise no_such("token", name, "card[token]")
    payment_method = _new(call, name, behaviour, data)
    payment_method["metadata"] = data.get("metadata") or {}
    call.store.update(payment_method)
    return payment_method


def _in_path(call: Call) -> Object:
    found = call.store.find(call.world, call.id, "payment_method")
    if found is not None:
        return found
    behaviour = cards.behaviour(call.id)
    if behaviour is None:
        raise not_found("PaymentMethod", call.id)
    return _new(call, call.id, behaviour)


def _new(call: Call, name: str, behaviour: Behaviour, data: Object | None = None) -> Object:
    data = data or {}
    payment_method = call.new(
        "pm",
        "payment_method",
        allow_redisplay="unspecified",
        billing_details={
            "address": None,
            "email": None,
            "name": None,
            "phone": None,
            **data.get("billing_details", {}),
        },
        customer=None,
        metadata={},
        type=behaviour.type,
        _={"behaviour": name},
    )
    if behaviour.type == "card":
        given = data.get("card") or {}
        payment_method["card"] = {
            "brand": behaviour.brand,
            "checks": {"address_line1_check": None, "address_postal_code_check": None, "cvc_check": "pass"},
            "country": "US",
            "exp_month": given.get("exp_month", 12),
            "exp_year": given.get("exp_year", EXPIRY_YEAR),
            "fingerprint": f"fp_{behaviour.brand}_{behaviour.last4}",
            "funding": "credit",
            "last4": behaviour.last4,
        }
    else:
        payment_method["us_bank_account"] = {"bank_name": "STRIPE TEST BANK", "last4": behaviour.last4}
    return call.keep(payment_method)


def _bank_behaviour(data: Object) -> str:
    numbers = {
        "000123456789": "pm_usBankAccount_success",
        "000222222227": "pm_usBankAccount_insufficientFunds",
        "000111111113": "pm_usBankAccount_accountClosed",
        "000111111116": "pm_usBankAccount_noAccount",
        "000333333335": "pm_usBankAccount_debitNotAuthorized",
        "000000000009": "pm_usBankAccount_processing",
    }
    number = (data.get("us_bank_account") or {}).get("account_number", "")
    return numbers.get(number, "pm_usBankAccount_success")


def _card_behaviour(call: Call, card: Object | None, kind: str) -> str:
    if kind != "card":
        raise Refusal(
            400, f"The payment method type `{kind}` is invalid here: card and us_bank_account are.", param="type"
        )
    if card is None:
        raise missing("card")
    if "token" in card:
        return str(card["token"])
    number = str(card.get("number", "")).replace(" ", "")
    if not cards.is_well_formed(number):
        raise Refusal(402, "Your card number is incorrect.", type="card_error", code="incorrect_number", param="number")
    month, year = card.get("exp_month", 0), card.get("exp_year", 0)
    if not 1 <= month <= 12:
        message = "Your card's expiration month is invalid."
        raise Refusal(402, message, type="card_error", code="invalid_expiry_month", param="exp_month")
    if year + 1 < 1970 + call.now / (365.25 * 86400):
        message = "Your card's expiration year is invalid."
        raise Refusal(402, message, type="card_error", code="invalid_expiry_year", param="exp_year")
    return cards.NUMBERS.get(number, cards.NO_TEST_CARD)
