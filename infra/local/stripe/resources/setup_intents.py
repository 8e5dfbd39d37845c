"""SetupIntents: save a card for later, without money."""

from infra.local.stripe.call import Call
from infra.local.stripe.cards import Decline, Outcome
from infra.local.stripe.errors import Refusal
from infra.local.stripe.resources import payment_methods
from infra.local.stripe.store import Object, shown

OPEN = {"requires_payment_method", "requires_confirmation", "requires_action"}


def create(call: Call) -> Object:
    """POST /v1/setup_intents."""
    if "customer" in call.params:
        call.in_body("customer", call.params["customer"], "customer")
    intent = begin(call, call.params.get("customer"), call.params.get("usage", "off_session"))
    intent["payment_method_types"] = call.params.get("allowed_payment_method_types", ["card"])
    call.copy(intent, "description")
    if "payment_method" in call.params:
        _take(call, intent, call.params["payment_method"])
    call.store.update(intent)
    if call.params.get("confirm"):
        _confirm(call, intent)
    return call.expanded(shown(intent))


def retrieve(call: Call) -> Object:
    """GET /v1/setup_intents/{id}."""
    return call.expanded(shown(call.in_path("setup_intent")))


def confirm(call: Call) -> Object:
    """POST /v1/setup_intents/{id}/confirm."""
    intent = call.in_path("setup_intent")
    _require_open(intent)
    if "payment_method" in call.params:
        _take(call, intent, call.params["payment_method"])
    _confirm(call, intent)
    return call.expanded(shown(intent))


def cancel(call: Call) -> Object:
    """POST /v1/setup_intents/{id}/cancel."""
    intent = call.in_path("setup_intent")
    _require_open(intent)
    intent |= {"status": "canceled", "cancellation_reason": call.params.get("cancellation_reason")}
    call.store.update(intent)
    call.emit("setup_intent.canceled", intent)
    return call.expanded(shown(intent))


def listed(call: Call) -> Object:
    """GET /v1/setup_intents."""
    where = [("customer = ?", call.params["customer"])] if "customer" in call.params else []
    return call.expanded(call.listed("setup_intent", "/v1/setup_intents", where))


# --- For Checkout and the control API ---------------------------------------------------------------------------------


def begin(call: Call, customer: str | None, usage: str) -> Object:
    """Make a SetupIntent."""
    intent = call.new(
        "seti",
        "setup_intent",
        cancellation_reason=None,
        customer=customer,
        description=None,
        last_setup_error=None,
        latest_attempt=None,
        mandate=None,
        metadata={},
        next_action=None,
        payment_method=None,
        payment_method_types=["card"],
        status="requires_payment_method",
        usage=usage,
    )
    intent["client_secret"] = f"{intent['id']}_secret_{call.store.new_id('s')[2:]}"
    call.keep(intent)
    call.emit("setup_intent.created", intent)
    return intent


def succeed(call: Call, intent: Object, payment_method: Object) -> None:
    """Save the card."""
    if intent["customer"] is not None:
        payment_methods.attach_to(call, payment_method, intent["customer"])
    intent |= {"status": "succeeded", "payment_method": payment_method["id"], "next_action": None}
    call.store.update(intent)
    call.emit("setup_intent.succeeded", intent)


def authenticate(call: Call, *, succeeds: bool) -> Object:
    """Let the customer pass or fail the bank's question."""
    intent = call.in_path("setup_intent")
    payment_method = call.in_path("payment_method", intent["payment_method"])
    if succeeds:
        succeed(call, intent, payment_method)
    else:
        _fail(
            call, intent, payment_method, Decline("setup_intent_authentication_failure", message="Not authenticated.")
        )
    return shown(intent)


def _take(call: Call, intent: Object, name: str) -> None:
    payment_method = payment_methods.usable(call, name, intent["customer"])
    intent |= {"payment_method": payment_method["id"], "status": "requires_confirmation"}


def _confirm(call: Call, intent: Object) -> None:
    if intent["payment_method"] is None:
        raise _unexpected(intent, "You cannot confirm this SetupIntent because it's missing a payment method.")
    payment_method = payment_methods.usable(call, intent["payment_method"], intent["customer"])
    does = payment_methods.behaviour_of(payment_method)
    if does.outcome is Outcome.DECLINES and not does.attaches:
        assert does.after is not None, "what declines says why"
        _fail(call, intent, payment_method, does.after)
        raise Refusal(
            402,
            does.after.message,
            type="card_error",
            **does.after.codes,
            setup_intent=shown(intent),
            payment_method=shown(payment_method),
            keeps_effects=True,
        )
    if does.outcome is Outcome.AUTHENTICATES:
        intent |= {"status": "requires_action", "next_action": {"type": "use_stripe_sdk", "use_stripe_sdk": {}}}
        call.store.update(intent)
        call.emit("setup_intent.requires_action", intent)
        return
    succeed(call, intent, payment_method)


def _fail(call: Call, intent: Object, payment_method: Object, why: Decline) -> None:
    intent |= {
        "status": "requires_payment_method",
        "payment_method": None,
        "next_action": None,
        "last_setup_error": {
            "type": "card_error",
            **why.codes,
            "message": why.message,
            "payment_method": shown(payment_method),
        },
    }
    call.store.update(intent)
    call.emit("setup_intent.setup_failed", intent)


def _require_open(intent: Object) -> None:
    if intent["status"] not in OPEN:
        raise _unexpected(intent, f"This SetupIntent has a status of {intent['status']}, which cannot be changed.")


def _unexpected(intent: Object, message: str) -> Refusal:
    return Refusal(400, message, code="setup_intent_unexpected_state", setup_intent=shown(intent))
