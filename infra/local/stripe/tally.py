"""The judge: what money moved, told from the successful charges and nothing else."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from infra.local.stripe.store import Object

DEFAULT_METADATA_KEY: Final = "pio_charge"


@dataclass(frozen=True, slots=True)
class Moved:
    """One successful charge: money that left a customer."""

    charge: str
    payment_intent: str | None
    account: str
    livemode: bool
    customer: str | None
    amount: int
    currency: str
    refunded: int
    created: int
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class Sum:
    """All that moved for one thing; `count` above one is a customer who paid twice."""

    count: int
    amounts: list[int]
    refunded: int
    currencies: list[str]
    charges: list[str]

    @classmethod
    def of(cls, moved: Iterable[Moved]) -> "Sum":
        """Add up."""
        all_of_it = list(moved)
        return cls(
            count=len(all_of_it),
            amounts=[one.amount for one in all_of_it],
            refunded=sum(one.refunded for one in all_of_it),
            currencies=sorted({one.currency for one in all_of_it}),
            charges=[one.charge for one in all_of_it],
        )


@dataclass(frozen=True)
class Tally:
    """All money moved, grouped in the three ways in which something may have been paid twice."""

    metadata_key: str
    moved: list[Moved] = field(default_factory=list)

    @property
    def by_metadata(self) -> dict[str, Sum]:
        """For each value of the metadata key."""
        return self._grouped(lambda one: one.metadata.get(self.metadata_key))

    @property
    def by_payment_intent(self) -> dict[str, Sum]:
        """For each PaymentIntent; more than one here would be Stripe's own promise broken."""
        return self._grouped(lambda one: one.payment_intent)

    @property
    def by_customer_and_amount(self) -> dict[str, Sum]:
        """For each customer, amount and currency: finds a second payment that lost its metadata."""
        return self._grouped(lambda one: f"{one.customer or '-'} {one.amount} {one.currency}")

    def _grouped(self, name: Callable[[Moved], str | None]) -> dict[str, Sum]:
        groups: dict[str, list[Moved]] = {}
        for one in self.moved:
            key = name(one)
            if key is not None:
                groups.setdefault(key, []).append(one)
        return {key: Sum.of(group) for key, group in groups.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "object": "tally",
            "metadata_key": self.metadata_key,
            "charges": [asdict(one) for one in self.moved],
            "by_metadata": {key: asdict(group) for key, group in self.by_metadata.items()},
            "by_payment_intent": {key: asdict(group) for key, group in self.by_payment_intent.items()},
            "by_customer_and_amount": {key: asdict(group) for key, group in self.by_customer_and_amount.items()},
        }


def moved_by(charge: Object, account: str) -> Moved:
    """Return what a successful, captured charge took."""
    return Moved(
        charge=charge["id"],
        payment_intent=charge["payment_intent"],
        account=account,
        livemode=charge["livemode"],
        customer=charge["customer"],
        amount=charge["amount_captured"],
        currency=charge["currency"],
        refunded=charge["amount_refunded"],
        created=charge["created"],
        metadata=charge["metadata"],
    )
