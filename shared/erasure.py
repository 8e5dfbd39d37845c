"""What is personal in a charge, and what a charge is without it.

Pure: the standard library, `charge` and `policy`. A charge is never deleted, because it is what stops a second one
under its key. What it says about people goes, once it is over and old enough (`retention.py`) or somebody asks for it;
what stays is its id (the digest of the caller's key), the digest of the body, status, amounts, times, and the ids and
keys of Stripe's. So a repeated request is still recognised and answered, and an audit still finds what it compares.

Ids of a customer and of a card stay: they name a person only to whoever may read them at Stripe, where they are deleted
by the owner of the account.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from shared import policy
from shared.charge import Attempt, Charge, Closing, Discrepancy, Entry, Failure, Request, Terms

RETENTION: Final = timedelta(days=400)  # A year for the books, and a month to close them.
SHORTEST_RETENTION: Final = timedelta(days=120)  # How long most banks let a customer dispute a payment: it is evidence.
# It is counted from the last time that an ended charge was written, so neither how long it was open nor what its keys
# might still do comes into it; and what a restored ledger is held against must still be there.
assert policy.KEY_LIFE < policy.LIST_FOR < SHORTEST_RETENTION < RETENTION

ROLES: Final = frozenset({"system", "caller", "customer", "operator"})  # Actors that are nobody by name.
PARAMETERS: Final = frozenset({"description", "receipt_email", "statement_descriptor_suffix", "return_url"})
OURS: Final = frozenset({"pio_charge", "pio_body", "pio_refund_of"})  # Metadata that we add: ids and digests.


def _parameters(text: str) -> str:
    """Leave what was asked of Stripe without what the caller or the customer wrote; a `return_url` is their link."""
    kept = {name: value for name, value in json.loads(text).items() if name not in PARAMETERS}
    if "metadata" in kept:
        kept["metadata"] = {name: value for name, value in kept["metadata"].items() if name in OURS}
    return json.dumps(kept)


def _nothing(_: object) -> None:
    return None


def _no_text(_: str) -> str:
    return ""


def _role(actor: str) -> str:
    return actor if actor in ROLES else ""


ERASED: Final[Mapping[type, Mapping[str, Callable[[Any], Any]]]] = {
    # Of each part of a charge, the fields that may say something about a person, and what becomes of them. The caller
    # fills most of them with whatever it likes: its key, too, and the names of its tasks, in the lease.
    Charge: {"idempotency_key": _no_text, "lease_owner": _no_text},
    Terms: {
        "description": _nothing,
        "metadata": lambda _: {},
        "receipt_email": _nothing,
        "statement_descriptor_suffix": _nothing,
    },
    Request: {"parameters": _parameters},
    Attempt: {"parameters": _parameters},
    Failure: {"message": _nothing},  # Stripe's words, and the bank's; the codes stay.
    Closing: {"actor": _role, "note": _no_text},
    Discrepancy: {"note": _no_text},
    Entry: {"actor": _role},
}


def erased(charge: Charge, at: datetime) -> Charge:
    """Return a charge without what is personal in it. One that was erased before, and learned nothing since, stays."""
    assert charge.done, "what is still to be done may need all of it"
    kept: Charge = _without(charge)
    return dataclasses.replace(kept, erased_at=charge.erased_at or at)


def is_erased(charge: Charge) -> bool:
    """Whether there is nothing personal in it, and that is by erasure."""
    return charge.erased_at is not None and _without(charge) == charge


def _without(value: Any) -> Any:
    """Return a charge, or a part of one, however deep, without what is personal."""
    if isinstance(value, tuple):
        return tuple(_without(inner) for inner in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    gone = ERASED.get(type(value), {})
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    changed = {name: gone[name](inner) if name in gone else _without(inner) for name, inner in fields.items()}
    return dataclasses.replace(value, **changed)
