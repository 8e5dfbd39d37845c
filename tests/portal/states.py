"""Every state in which a customer may find their page, each reached as it is in life."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

from infra.local.stripe.faults import Fault
from shared.charge import Act, Chosen
from tests.portal.portal import Portal, declined

CONFIRM: Final = "payment_intents.confirm"


def _of_card(card: str) -> Callable[[Portal], None]:
    def reach(world: Portal) -> None:
        declined(world, card, description="Order 1001: two tickets, row 7")

    return reach


def _unknown(world: Portal) -> None:
    world.engine.fail_next(Fault.DROP_BEFORE, CONFIRM, times=None)
    declined(world)


def _paid(world: Portal) -> None:
    world.create()


def _settled(world: Portal) -> None:
    declined(world)
    world.post(f"/{world.charge().id}/out-of-band", {"reference": "till 7"})


def _canceled(world: Portal) -> None:
    declined(world)
    world.pressed("cancel")


def _expired(world: Portal) -> None:
    declined(world)
    world.clock.sleep(timedelta(days=31))
    world.post(f"/{world.charge().id}/deliver", {})


def _closing(world: Portal) -> None:
    declined(world)
    world.engine.fail_next(Fault.DROP_BEFORE, "payment_intents.cancel", times=None)
    world.pressed("cancel")


def _elsewhere(world: Portal) -> None:
    declined(world)
    world.pressed("cash")


def _gone(world: Portal) -> None:
    customer = world.customer
    world.at_stripe("DELETE", f"/v1/customers/{customer}")
    declined(world)


def _no_card(world: Portal) -> None:
    declined(world)
    world.at_stripe("DELETE", f"/v1/customers/{world.customer}")
    world.pressed("pay")


def _blocked(world: Portal) -> None:
    world.engine.fail_next(Fault.UNAUTHORIZED, CONFIRM, times=None)
    declined(world)


def _asked_of_the_bank(world: Portal) -> None:
    declined(world, "pm_card_authenticationRequired")
    world.parts.charger.act(
        world.charge().id,
        Chosen(act=Act.RETRY, actor="customer", return_url=f"{world.url()}/back"),
        version=None,
    )


STATES: Final[Mapping[str, Callable[[Portal], None]]] = {
    "declined": _of_card("pm_card_chargeDeclinedInsufficientFunds"),
    "hidden_reason": _of_card("pm_card_chargeDeclinedLostCard"),
    "another_card": _of_card("pm_card_chargeDeclinedExpiredCard"),
    "authenticate": _of_card("pm_card_authenticationRequired"),
    "asked_of_the_bank": _asked_of_the_bank,
    "retrying": _of_card("pm_card_chargeDeclinedProcessingError"),
    "unknown": _unknown,
    "processing": _of_card("pm_usBankAccount_success"),
    "paid": _paid,
    "settled": _settled,
    "canceled": _canceled,
    "expired": _expired,
    "closing": _closing,
    "elsewhere": _elsewhere,
    "gone": _gone,
    "no_card": _no_card,
    "blocked": _blocked,
}
PAGES: Final[Mapping[str, tuple[str, str]]] = {  # Pages beside the charge's own: the state they are in, and the path.
    "confirm_cancel": ("declined", "/cancel"),
    "confirm_cash": ("declined", "/cash"),
}
