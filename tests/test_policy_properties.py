"""What holds for every charge, whatever is observed, in whatever order: hypothesis plays Stripe, and the world."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import policy
from shared.charge import Act, Answered, Charge, Listed, LookFailed, Party, PaymentIntent, Seen, Standing, Status, Woken
from shared.policy import Fetch, List, Rest, Send, Then
from tests.script import (
    ASKS_FOR_THE_CUSTOMER,
    CARD_DECLINED,
    DAY,
    HOUR,
    MINUTE,
    OURS,
    SECOND,
    SHOWN,
    START,
    Script,
    intent,
    opened,
)

EXAMPLES: Final = int(os.environ.get("POLICY_EXAMPLES", "40"))  # More of them for a long night.
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="POLICY_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)

STUBBORN_FOR: Final = 2 * DAY if "POLICY_EXAMPLES" in os.environ else 3 * HOUR
NAMES: Final = (OURS, "pi_2", "pi_3")
LEAPS: Final = (SECOND, MINUTE, 16 * MINUTE, HOUR, 23 * HOUR, 25 * HOUR, 31 * DAY)
ERRORS: Final = (None, CARD_DECLINED, ASKS_FOR_THE_CUSTOMER)
RECORDED_BY_AN_ORPHAN: Final = "-orphan-"


class Stripe(Script):
    """A charge under everything at once, and what must hold after every step of it."""

    def __init__(self, data: st.DataObject) -> None:
        super().__init__()
        self.data = data
        self.died: list[str] = []  # Keys whose answers may still come.
        self.first_sent: dict[str, timedelta] = {}

    def mostly(self) -> bool:
        """Choose yes, more often than not."""
        return self.data.draw(st.sampled_from([True, True, False]))

    def seen(self, *choices: Seen) -> Seen:
        """Choose a word of Stripe's."""
        return self.data.draw(st.sampled_from(choices or tuple(Seen)))

    # --- What may happen ---------------------------------------------------------------------------------------------

    def step_on(self) -> None:
        """The driver does what is to be done; Stripe answers anything, late, or never."""
        step = self.step()
        if isinstance(step, Send):
            self.check_send(step)
            request = self.send()
            if self.mostly():
                self.answered_somehow(request.idempotency_key)
            else:
                self.died.append(request.idempotency_key)
        elif isinstance(step, Fetch):
            self.looked()
        elif isinstance(step, List):
            self.listed_somehow()
        else:
            self.observe(Woken())

    def answered_somehow(self, key: str) -> None:
        """An answer comes in, whatever it says."""
        seen = self.seen()
        named = key.partition(RECORDED_BY_AN_ORPHAN)[2] or self.charge.payment_intent
        if "-create-" in key:
            named = NAMES[int(key.rsplit("-", 1)[1]) % len(NAMES)]
        payment_intent = intent(self.charge, seen, named or OURS) if seen in SHOWN and self.mostly() else None
        replayed, error = self.data.draw(st.booleans()), self.data.draw(st.sampled_from(ERRORS))
        self.observe(
            Answered(idempotency_key=key, seen=seen, replayed=replayed, payment_intent=payment_intent, error=error)
        )

    def listed_somehow(self) -> None:
        """A list comes in, asked for by this record or by an older one."""
        names = self.data.draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True))
        self.observe(Listed(payment_intents=tuple(self.shown(name) for name in names)))

    def late(self) -> None:
        """An answer that nobody waits for any more; or the same answer once again."""
        keys = [key for key, _ in self.sends]
        if keys:
            self.answered_somehow(self.data.draw(st.sampled_from(keys)))

    def looked(self) -> None:
        """The recorded PaymentIntent is read, whoever asked, or another, as asked; or the look brings nothing."""
        step = self.step()
        if isinstance(step, Fetch) and step.payment_intent != self.charge.payment_intent and self.mostly():
            self.fetched(self.seen(*SHOWN, Seen.SERVER_ERROR), name=step.payment_intent)
        elif self.charge.payment_intent is not None and self.mostly():
            seen = self.seen(*SHOWN, Seen.UNCONFIRMED, Seen.UNCONFIRMED, Seen.SERVER_ERROR)
            under_way, error = self.data.draw(st.booleans()), self.data.draw(st.sampled_from(ERRORS))
            self.fetched(seen, under_way=under_way, last_error=error)
        else:
            self.observe(LookFailed(seen=self.seen()))

    def evented(self) -> None:
        """Stripe's event, about one PaymentIntent or another; and the look that it calls for."""
        shown = self.shown(self.data.draw(st.sampled_from(NAMES)))
        self.event(shown.seen, name=shown.id, account=self.data.draw(st.sampled_from([None, "acct_other"])))
        if self.said.look is not None:
            self.fetched(self.seen(*SHOWN), name=self.said.look.payment_intent)

    def acted(self) -> None:
        """Somebody decides something."""
        self.choose(self.data.draw(st.sampled_from(Act)))

    def time_passes(self) -> None:
        """A delivery begins, sooner or later."""
        self.wake(self.data.draw(st.sampled_from(LEAPS)))

    def shown(self, name: str) -> PaymentIntent:
        """One PaymentIntent, anyhow."""
        more: dict[str, Any] = self.data.draw(
            st.sampled_from([{}, {}, {}, {"charge_id": None}, {"amount": 1, "amount_received": 1}, {"livemode": True}])
        )
        return intent(self.charge, self.seen(*SHOWN), name, **more)

    # --- What must hold ----------------------------------------------------------------------------------------------

    def live(self, steps: int = 30) -> None:
        """Let anything happen, and check after each."""
        happens: tuple[Callable[[], object], ...] = (
            *(self.step_on,) * 6,
            self.late,
            self.looked,
            self.listed_somehow,
            self.evented,
            self.acted,
            self.time_passes,
            self.crash,
        )
        for _ in range(self.data.draw(st.integers(1, steps))):
            before = self.charge
            self.data.draw(st.sampled_from(happens))()
            self.check(before, self.charge)

    def check_send(self, step: Send) -> None:
        """No key past its horizon; a closing charge confirms nothing; only the recorded PaymentIntent is confirmed."""
        request = step.request
        if RECORDED_BY_AN_ORPHAN in request.idempotency_key:
            assert request.operation == "cancel"
            assert request.payment_intent != self.charge.payment_intent
            return
        assert request.first_sent_at is None or self.now < request.first_sent_at + policy.KEY_HORIZON
        times = [at for key, at in self.sends if key == request.idempotency_key]
        assert all(self.now < at + policy.KEY_HORIZON for at in times)
        assert request.standing in {Standing.UNSENT, Standing.OUT}
        assert not (self.charge.closing and request.operation == "confirm")
        if request.operation == "refund":
            assert self.charge.final
            assert request.payment_intent not in {self.charge.payment_intent, policy._keeper(self.charge)}
            return
        assert not self.charge.final
        if request.operation != "create":
            assert request.payment_intent == self.charge.payment_intent is not None
        assert not (self.charge.orphans and request.operation == "confirm")

    def check(self, before: Charge, after: Charge) -> None:
        """Compare a charge before and after one observation."""
        assert sum(not attempt.settled and attempt.standing is not Standing.BURNT for attempt in after.attempts) <= 1
        assert [attempt.number for attempt in after.attempts] == list(range(1, len(after.attempts) + 1))
        assert before.payment_intent in {None, after.payment_intent}
        assert before.status is not Status.SUCCEEDED or after == dataclasses.replace(
            before,
            orphans=after.orphans,
            orphans_refused=after.orphans_refused,
            discrepancies=after.discrepancies,
            refunds=after.refunds,
        )
        if before.final:
            assert after.status in {before.status, Status.SUCCEEDED}
        if len(after.attempts) > len(before.attempts):
            assert after.closing is None
            assert len(after.attempts) == len(before.attempts) + 1 <= policy.ATTEMPTS_LIMIT
            assert all(a.settled or a.standing is Standing.BURNT for a in after.attempts[:-1])
        if before.closing is not None:
            assert after.closing is not None
            assert len(after.attempts) == len(before.attempts)
        if after.create.idempotency_key != before.create.idempotency_key:
            assert (
                before.create.standing in {Standing.SETTLED, Standing.BURNT}
                or self.now >= (before.create.first_sent_at or self.now) + policy.KEY_HORIZON
            )
            assert after.payment_intent is None
        assert (after.status is Status.BLOCKED) == (after.blocked_on is not None)
        assert (after.status is Status.RETRYING) == (after.next_attempt_at is not None)
        assert (policy.due_at(after, self.now, None) is None) == after.done
        assert (policy.waiting_on(after) is None) == after.final
        assert (after.cancel_reason is not None) == (after.status is Status.CANCELED)
        assert len(after.orphans) == len(set(after.orphans))
        assert after.payment_intent not in after.orphans
        assert set(after.orphans_refused) <= set(after.orphans)
        if after.status in {Status.DECLINED, Status.RETRYING}:
            assert policy.doubtful_until(after, self.now) is None or before.status is after.status
            assert not any(a.sends and a.standing in {Standing.OUT, Standing.LOOK} for a in after.attempts)
        if after.status is Status.SUCCEEDED:
            assert after.payment_intent is not None
            assert after.succeeded_at is not None
        if after.closing and not before.closing:
            assert not after.final or after.payment_intent is None
        assert self.said.wait >= timedelta()
        assert self.said.then is not Then.LATER or self.said.wait >= SECOND / 2


@given(st.data())
@many
def test_the_promises_hold_after_every_observation(data: st.DataObject) -> None:
    """No two attempts open, one PaymentIntent for ever, paid stays paid, no dead key sent, no decline in doubt."""
    Stripe(data).live()


@given(st.data())
@many
def test_any_observation_of_any_charge_is_decided(data: st.DataObject) -> None:
    """`decide` raises for none, however little it fits."""
    script = Stripe(data)
    script.live(12)
    reached, said = script.charge, script.said
    for seen in Seen:
        for key in {key for key, _ in script.sends} | {"unknown"}:
            script.charge, script.said = reached, said
            script.answer(seen, key=key, replayed=data.draw(st.booleans()))
            script.check(reached, script.charge)
        script.charge, script.said = reached, said
        script.observe(LookFailed(seen=seen))
        script.check(reached, script.charge)


@given(st.data())
@many
def test_stripes_words_twice_change_nothing_the_second_time(data: st.DataObject) -> None:
    """Events and looks, on any charge: applied twice, written once."""
    script = Stripe(data)
    script.live(20)
    shown = script.shown(data.draw(st.sampled_from(NAMES)))
    again: tuple[Callable[[], object], ...] = (
        lambda: script.event(shown.seen, name=shown.id),
        lambda: script.fetched(shown.seen, name=shown.id),
        lambda: script.observe(Woken()),
    )
    first = data.draw(st.sampled_from(again))
    first()
    after = script.charge
    first()
    assert script.charge == after


# --- Nothing is stuck -----------------------------------------------------------------------------------------------


def deliver(script: Script, answer: Callable[[Script, policy.Step], object]) -> int:
    """Play the driver until it may rest; return how many times Stripe was asked."""
    for asked in range(40):
        step = script.step()
        if script.said.then is not Then.GO_ON or isinstance(step, Rest):
            return asked
        answer(script, step)
    raise AssertionError(f"a hot loop: {script.status()}, {script.step()}")


def kindly(script: Script, step: policy.Step) -> None:
    """Stripe works: it creates, confirms and cancels; a look shows an unconfirmed PaymentIntent, a list none."""
    if isinstance(step, Send):
        script.reply({"create": Seen.UNCONFIRMED, "confirm": Seen.SUCCEEDED}.get(step.request.operation, Seen.CANCELED))
    elif isinstance(step, Fetch):
        script.look(Seen.UNCONFIRMED)
    else:
        script.listed()


def waits_for_somebody(charge: Charge) -> bool:
    """Final, or in the hands of the customer, or of whoever must mend something."""
    return charge.final or policy.waiting_on(charge) in {Party.CUSTOMER, Party.OPERATOR, Party.ACCOUNT_OWNER}


@given(st.data())
@many
def test_once_stripe_works_every_charge_comes_to_its_end_or_to_somebody(data: st.DataObject) -> None:
    """Within a bounded number of deliveries, and of calls in each; in the end, at the latest, it expires."""
    script = Stripe(data)
    script.live(20)
    script.said = script.wake()
    for _ in range(60):
        deliver(script, kindly)
        if waits_for_somebody(script.charge):
            break
        script.waited()
    assert waits_for_somebody(script.charge), script.status()
    for _ in range(60):
        if script.charge.final:
            break
        script.waited()
        deliver(script, kindly)
    assert script.charge.final
    assert script.charge.due_at is None


STUBBORN_LOOKS: Final[Mapping[str, Callable[[Script, policy.Step], object]]] = {
    "unconfirmed": lambda script, _: script.fetched(Seen.UNCONFIRMED),
    "unconfirmed, an error": lambda script, _: script.fetched(Seen.UNCONFIRMED, last_error=CARD_DECLINED),
    "unconfirmed, a charge under way": lambda script, _: script.fetched(Seen.UNCONFIRMED, under_way=True),
    "processing": lambda script, _: script.fetched(Seen.PROCESSING),
    "action required": lambda script, _: script.fetched(Seen.ACTION_REQUIRED),
    "held": lambda script, _: script.fetched(Seen.HELD),
    "unlisted": lambda script, _: script.fetched(Seen.SERVER_ERROR),
    "unauthorized": lambda script, _: script.look_failed(Seen.UNAUTHORIZED),
    "no reply": lambda script, _: script.look_failed(Seen.NO_REPLY),
}


def stubbornly(seen: Seen, look: str, *, replayed: bool) -> Callable[[Script, policy.Step], object]:
    """Stripe says the same to everything, for ever."""

    def answer(script: Script, step: policy.Step) -> object:
        if isinstance(step, Send):
            create = step.request.operation == "create" and seen in SHOWN
            return script.reply(Seen.UNCONFIRMED if create else seen, replayed=replayed and not create)
        if isinstance(step, List):
            return script.look_failed(Seen.NO_REPLY) if look == "no reply" else script.listed()
        return STUBBORN_LOOKS[look](script, step)

    return answer


@pytest.mark.parametrize("look", STUBBORN_LOOKS)
@pytest.mark.parametrize("act", [None, Act.CANCEL])
@pytest.mark.parametrize("replayed", [False, True], ids=["fresh", "replayed"])
def test_nothing_that_stripe_repeats_for_ever_makes_a_hot_loop(look: str, act: Act | None, replayed: bool) -> None:
    """Whatever it says to every request and every look: some 70 calls an hour at most."""
    for seen in Seen:
        script = Script()
        script.reply(Seen.UNCONFIRMED)
        script.said = script.choose(act) if act else script.wake()
        answer = stubbornly(seen, look, replayed=replayed)
        asked = {"first hour": 0, "later": 0}
        while script.now < START + STUBBORN_FOR and not script.charge.final:
            asked["first hour" if script.now < START + HOUR else "later"] += deliver(script, answer)
            if not script.charge.final:
                script.waited()
        assert asked["first hour"] <= 70, (seen, asked, script.status())
        assert asked["later"] <= STUBBORN_FOR / HOUR * 70, (seen, asked, script.status())


@pytest.mark.parametrize("seen", sorted(set(Seen) - SHOWN))
@pytest.mark.parametrize("replayed", [False, True])
def test_no_answer_to_a_create_that_stripe_repeats_for_ever_makes_a_hot_loop(seen: Seen, replayed: bool) -> None:
    """From an empty charge on."""
    script = Script()
    answer = stubbornly(seen, "no reply", replayed=replayed)
    asked = 0
    while script.now < START + STUBBORN_FOR:
        asked += deliver(script, answer)
        script.waited()
    assert asked <= STUBBORN_FOR / HOUR * 13 + 50
    assert not script.charge.final


@pytest.mark.parametrize("seen", list(Seen))
def test_whatever_stripe_repeats_a_charge_is_over_once_it_has_expired(seen: Seen) -> None:
    """It answers its confirms so for a month; then its cancel works."""
    script = Script()
    script.reply(Seen.UNCONFIRMED)
    for wait in (SECOND, MINUTE, HOUR, DAY, 30 * DAY):
        deliver(script, stubbornly(seen, "unconfirmed", replayed=False))
        if not script.charge.final:
            script.wake(wait)
    for _ in range(10):
        deliver(script, kindly)
        if not script.charge.final:
            script.waited()
    assert script.charge.final


def test_a_new_charge_is_paid_with_two_calls_when_nothing_goes_wrong() -> None:
    """Create and confirm; no look, no wait."""
    script = Script(opened())
    assert deliver(script, kindly) == 2
    assert script.status() is Status.SUCCEEDED
    assert script.now == START
