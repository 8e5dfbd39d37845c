"""Accounts and what is in them."""

from infra.local.stripe.call import Call
from infra.local.stripe.errors import Refusal
from infra.local.stripe.store import Object, shown


def create(call: Call) -> Object:
    """POST /v1/accounts: a connected account, which can be used as `Stripe-Account` at once."""
    account = _account(call, call.store.new_id("acct"), call.params.get("type", "standard"))
    for name in ("country", "email", "business_type", "metadata"):
        if name in call.params:
            account[name] = call.params[name]
    return shown(call.keep(account))


def listed(call: Call) -> Object:
    """GET /v1/accounts: those that were created here."""
    return call.listed("account", "/v1/accounts")


def retrieve(call: Call) -> Object:
    """GET /v1/accounts/{id}: any that could be connected."""
    found = call.store.find(call.world, call.id, "account")
    left = call.store.setting(f"disconnected {call.id}")
    if left or (found is None and not call.id.startswith("acct_")):
        message = f"The provided key does not have access to account '{call.id}' (or that account does not exist)."
        raise Refusal(403, message, code="account_invalid")
    return shown(found or _account(call, call.id, "standard"))


def retrieve_current(call: Call) -> Object:
    """GET /v1/account: whoever is asking."""
    return _account(call, call.world.account, "standard")


def balance(call: Call) -> Object:
    """GET /v1/balance: what was taken, less what was given back; none of it paid out."""
    totals: dict[str, int] = {}
    for charge in call.store.all("charge", call.world, status="succeeded"):
        net = charge["amount_captured"] - (charge["amount_refunded"] if charge["captured"] else 0)
        totals[charge["currency"]] = totals.get(charge["currency"], 0) + net
    pending = [{"amount": amount, "currency": currency} for currency, amount in sorted(totals.items())]
    return {
        "object": "balance",
        "available": [{"amount": 0, "currency": entry["currency"]} for entry in pending],
        "livemode": call.world.livemode,
        "pending": pending,
    }


def _account(call: Call, name: str, kind: str) -> Object:
    return {
        "id": name,
        "object": "account",
        "business_profile": {"name": "Test business"},
        "charges_enabled": True,
        "country": "US",
        "created": int(call.now),
        "default_currency": "usd",
        "details_submitted": True,
        "email": None,
        "metadata": {},
        "payouts_enabled": True,
        "settings": {"dashboard": {"display_name": "Test business"}},
        "type": kind,
    }
