"""A script of observations against the real `decide`: no mocks, no clock but the script's own.

It plays the driver's part word for word: a request is marked as sent before it is answered, what `decide` returns is
the record from then on, and between two observations nothing is remembered but that record.
"""

import dataclasses
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from shared import policy
from shared.charge import (
    Act,
    Answered,
    Charge,
    Chosen,
    Crashed,
    Failure,
    Fetched,
    Happened,
    Listed,
    LookFailed,
    Observation,
    PaymentIntent,
    Request,
    Seen,
    Status,
    Terms,
    Woken,
    charge_id,
)
from shared.policy import Decision, Limits, Step, Then

START: Final = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
KEY: Final = "order-1001"
AMOUNT: Final = 1999
OURS: Final = "pi_ours"
LIMITS: Final = Limits()
SECOND, MINUTE, HOUR, DAY = (timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days"))
SHOWN: Final = frozenset(
    {Seen.SUCCEEDED, Seen.PROCESSING, Seen.ACTION_REQUIRED, Seen.HELD, Seen.CANCELED, Seen.UNCONFIRMED}
)
CARD_DECLINED: Final = Failure(type="card_error", code="card_declined", decline_code="insufficient_funds")
ASKS_FOR_THE_CUSTOMER: Final = Failure(type="card_error", code="authentication_required")


def opened(**terms: Any) -> Charge:
    """Return a charge as it is first inserted."""
    agreed = {"amount": AMOUNT, "currency": "usd", "customer": "cus_1", "payment_method": "pm_card", **terms}
    return policy.open_charge(
        charge_id=charge_id(agreed.get("account"), KEY),
        idempotency_key=KEY,
        body_digest="digest",
        terms=Terms(**agreed),
        livemode=False,
        generation=1,
        api_version="2026-10-28.endive",
        now=START,
    )


def intent(charge: Charge, seen: Seen = Seen.UNCONFIRMED, name: str = OURS, **shown: Any) -> PaymentIntent:
    """Return a PaymentIntent of this charge as Stripe would show it."""
    received = charge.terms.amount if seen is Seen.SUCCEEDED else 0
    as_shown: dict[str, Any] = {
        "amount": charge.terms.amount,
        "amount_received": received,
        "currency": charge.terms.currency,
        "livemode": charge.livemode,
        "created": START,
        "charge_id": charge.id,
        "customer": charge.terms.customer,
        **shown,
    }
    return PaymentIntent(id=name, seen=seen, **as_shown)


class Script:
    """One charge, and everything that is observed about it."""

    def __init__(self, charge: Charge | None = None, limits: Limits = LIMITS, **terms: Any) -> None:
        self.charge = charge or opened(**terms)
        self.limits = limits
        self.now = self.charge.created_at
        self.said = Decision(charge=self.charge, then=Then.GO_ON)
        self.sends: list[tuple[str, datetime]] = []

    # --- What the driver does ----------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Say where the charge stands now."""
        return self.charge.status

    def step(self) -> Step:
        """Ask what is to be done now."""
        return policy.next_step(self.charge, self.now)

    def observe(self, observation: Observation) -> Decision:
        """Decide, and record the decision."""
        self.said = policy.decide(self.charge, observation, self.now, self.limits)
        self.charge = self.said.charge
        return self.said

    def send(self) -> Request:
        """Record the request that is to be sent as sent, and send it."""
        step = self.step()
        assert isinstance(step, policy.Send), f"{step} where a send was expected; the charge is {self.charge.status}"
        request = step.request.sent(self.now)
        if self.charge.request(request.idempotency_key) is not None:
            self.charge = self.charge.with_request(request)
        self.sends.append((request.idempotency_key, self.now))
        return request

    # --- What may be observed ----------------------------------------------------------------------------------------

    def answer(
        self,
        seen: Seen,
        *,
        key: str | None = None,
        replayed: bool = False,
        error: Failure | None = None,
        name: str | None = None,
        **shown: Any,
    ) -> Decision:
        """Let the request sent last (or the one with this key) be answered."""
        key = key or self.sends[-1][0]
        orphan = key.partition("-orphan-")[2]
        named = name or orphan or self.charge.payment_intent or OURS
        payment_intent = intent(self.charge, seen, named, **shown) if seen in SHOWN else None
        return self.observe(
            Answered(idempotency_key=key, seen=seen, replayed=replayed, payment_intent=payment_intent, error=error)
        )

    def reply(self, seen: Seen, **more: Any) -> Decision:
        """Send what is to be sent, and let it be answered."""
        self.send()
        return self.answer(seen, **more)

    def look(self, seen: Seen, *, under_way: bool = False, **shown: Any) -> Decision:
        """Do the look that is asked for, which shows this."""
        step = self.step()
        assert isinstance(step, policy.Fetch), f"{step} where a look was expected; the charge is {self.charge.status}"
        assert step.payment_intent in {self.charge.payment_intent, *self.charge.orphans}
        return self.fetched(seen, under_way=under_way, name=step.payment_intent, **shown)

    def fetched(self, seen: Seen, *, under_way: bool = False, name: str | None = None, **shown: Any) -> Decision:
        """Somebody has read the recorded PaymentIntent (or another), whoever asked for it."""
        payment_intent = intent(self.charge, seen, name or self.charge.payment_intent or OURS, **shown)
        return self.observe(Fetched(payment_intent=payment_intent, charge_under_way=under_way))

    def listed(self, *payment_intents: PaymentIntent) -> Decision:
        """Do the list that is asked for, which shows these."""
        step = self.step()
        assert isinstance(step, policy.List), f"{step} where a list was expected; the charge is {self.charge.status}"
        return self.observe(Listed(payment_intents=payment_intents))

    def look_failed(self, seen: Seen) -> Decision:
        """The look that is asked for brings nothing."""
        assert isinstance(self.step(), policy.Fetch | policy.List)
        return self.observe(LookFailed(seen=seen, error=Failure(type="api_error")))

    def event(self, seen: Seen, *, name: str | None = None, account: str | None = None, **shown: Any) -> Decision:
        """A webhook event names a PaymentIntent: the recorded one, or another."""
        payment_intent = intent(self.charge, seen, name or self.charge.payment_intent or OURS, **shown)
        return self.observe(Happened(type=f"payment_intent.{seen}", account=account, payment_intent=payment_intent))

    def choose(self, act: Act, **more: Any) -> Decision:
        """Somebody decides."""
        card = "pm_other" if act is Act.PAYMENT_METHOD else None
        return self.observe(Chosen(act=act, actor="customer", payment_method=card, **more))

    def wake(self, after: timedelta = timedelta()) -> Decision:
        """Let time pass, and begin a delivery."""
        self.now += after
        return self.observe(Woken())

    def crash(self) -> Decision:
        """A delivery ends in an exception of ours."""
        return self.observe(Crashed(exception="KeyError"))

    def waited(self) -> Decision:
        """Begin the delivery that the last decision asked for."""
        due_at = policy.due_at(self.charge, self.now, self.said.wait if self.said.then is Then.LATER else None)
        assert due_at is not None, "an open charge is always due"
        return self.wake(max(due_at - self.now, timedelta()))


Ways = Mapping[str, Callable[[], Script]]


# --- Where charges stand, each reached by a script ------------------------------------------------------------------


def recorded(**terms: Any) -> Script:
    """Its PaymentIntent is recorded, and its first attempt; nothing is confirmed yet."""
    script = Script(**terms)
    script.reply(Seen.UNCONFIRMED)
    return script


def confirming(**terms: Any) -> Script:
    """Its first attempt has been sent, and nothing has come back."""
    script = recorded(**terms)
    script.send()
    return script


def answered(seen: Seen, error: Failure | None = None, **terms: Any) -> Script:
    """Its first attempt has had this answer."""
    script = confirming(**terms)
    script.answer(seen, error=error)
    return script


def declined() -> Script:
    """Its card was declined."""
    script = confirming()
    script.answer(Seen.DECLINED, error=CARD_DECLINED)
    return script


def burnt() -> Script:
    """Its first attempt answers a saved 500, for as long as the key lives."""
    script = confirming()
    script.answer(Seen.SERVER_ERROR, replayed=True)
    return script


def tried_again_after_a_burnt_key() -> Script:
    """The first attempt's key is burnt, its quarantine is over, and the second attempt has been sent."""
    script = burnt()
    script.now += LIMITS.quarantine
    script.look(Seen.UNCONFIRMED)
    script.send()
    return script


def refused_while_an_earlier_send_is_unexplained(seen: Seen) -> Script:
    """Sent twice: no reply, then refused; a look has shown the PaymentIntent unconfirmed."""
    script = confirming()
    script.answer(Seen.NO_REPLY)
    script.reply(seen)
    script.look(Seen.UNCONFIRMED)
    return script


def closing(act: Act = Act.CANCEL, script: Script | None = None) -> Script:
    """Somebody has ended it, and its PaymentIntent is about to be canceled."""
    script = script or declined()
    script.choose(act)
    return script


def changed(script: Script, **fields: Any) -> Script:
    """Return the script with its record changed: for what no observation leads to."""
    script.charge = dataclasses.replace(script.charge, **fields)
    return script
