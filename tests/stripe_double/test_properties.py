"""What holds whatever is sent, in whatever order, with whatever faults."""

import contextlib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from infra.local.stripe.engine import ConnectionDropped, Engine, Fault
from tests.stripe_double.asking import Asker, VirtualClock

CARDS = ("pm_card_visa", "pm_card_chargeDeclined", "pm_card_threeDSecure2Required", "pm_usBankAccount_success")
INTENTS = st.integers(0, 1)
KEYS = st.sampled_from(["", "a", "b", "c"])

STEPS = st.one_of(
    st.tuples(st.just("confirm"), INTENTS, st.tuples(st.sampled_from(CARDS), st.sampled_from(["true", "false"])), KEYS),
    st.tuples(st.just("cancel"), INTENTS, st.none(), KEYS),
    st.tuples(st.just("capture"), INTENTS, st.none(), KEYS),
    st.tuples(st.just("update"), INTENTS, st.integers(50, 99), KEYS),
    st.tuples(st.just("refund"), INTENTS, st.none(), KEYS),
    st.tuples(st.just("authenticate"), INTENTS, st.booleans(), st.just("")),
    st.tuples(st.just("settle"), INTENTS, st.booleans(), st.just("")),
    st.tuples(st.just("wait"), st.sampled_from([1, 3600, 90_000, 400_000]), st.none(), st.just("")),
    st.tuples(st.just("prune"), st.just(0), st.none(), st.just("")),
    st.tuples(st.just("fault"), st.just(0), st.sampled_from(list(Fault)), st.just("")),
)


class Sequence:
    """Carries out steps, and checks after each what must hold."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.double = Asker(Engine(clock=self.clock, sleep=self.clock.sleep, seed=1), self.clock)
        self.intents = [self.double.intent(), self.double.intent(capture_method="manual")]

    def run(self, kind: str, which: int, what: Any, key: str) -> None:
        """Carry out one step."""
        engine = self.double.engine
        intent = self.intents[which] if which < len(self.intents) else ""
        match kind:
            case "confirm":
                card, off_session = what
                params = {"payment_method": card, "off_session": off_session}
                self._post(f"payment_intents/{intent}/confirm", params, key)
            case "cancel" | "capture":
                self._post(f"payment_intents/{intent}/{kind}", {}, key)
            case "update":
                self._post(f"payment_intents/{intent}", {"amount": what}, key)
            case "refund":
                self._post("refunds", {"payment_intent": intent}, key)
            case "authenticate" if self._is(intent, "requires_action"):
                engine.authenticate(intent, succeeds=what)
            case "settle" if self._is(intent, "processing"):
                engine.settle(intent, succeeds=what)
            case "wait":
                self.clock.time += which
                engine.run_due()
            case "prune":
                engine.prune_keys()
            case "fault":
                engine.fail_next(what, seconds=600)
        self.check()

    def check(self) -> None:
        """At most one success for each PaymentIntent; what a final one says is what its charges say."""
        engine = self.double.engine
        for intent in self.intents:
            successes = [
                charge
                for charge in engine.objects("charge")
                if charge["payment_intent"] == intent and charge["status"] == "succeeded"
            ]
            assert len(successes) <= 1
            found = engine.find(intent)
            assert found is not None
            assert (found["status"] == "succeeded") == (len(engine.money_moved_by(intent)) == 1)
            if found["status"] == "succeeded":
                assert engine.money_moved_by(intent) == [found["amount_received"]]
            assert engine.tally().by_payment_intent.get(intent) is None or (
                engine.tally().by_payment_intent[intent].refunded <= found["amount_received"]
            )

    def _is(self, intent: str, status: str) -> bool:
        found = self.double.engine.find(intent)
        return found is not None and found["status"] == status

    def _post(self, path: str, params: dict[str, Any], key: str) -> None:
        with contextlib.suppress(ConnectionDropped):
            self.double.post(path, params, key or None)


@settings(max_examples=300, deadline=None, database=None)
@given(st.lists(STEPS, max_size=25))
def test_no_sequence_of_requests_takes_money_twice_on_a_payment_intent(steps: list[tuple[str, int, Any, str]]) -> None:
    """Whatever is sent under whatever keys, with whatever faults, delays, banks and customers."""
    sequence = Sequence()
    for step in steps:
        sequence.run(*step)


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.sampled_from(CARDS),
    st.sampled_from([None, Fault.ERROR_500_BEFORE, Fault.ERROR_500_AFTER, Fault.ERROR_424_AFTER]),
    st.lists(st.sampled_from(["again", "wait", "cancel", "confirm", "refund"]), max_size=6),
)
def test_a_key_replays_the_same_bytes_until_it_is_forgotten(card: str, fault: Fault | None, between: list[str]) -> None:
    """Whatever happens to the PaymentIntent meanwhile, the answer under the key is what it was."""
    clock = VirtualClock()
    double = Asker(Engine(clock=clock, seed=1), clock)
    intent = double.intent()
    if fault is not None:
        double.engine.fail_next(fault)
    first = double.confirm(intent, card, "k")
    for what in between:
        match what:
            case "wait":
                clock.time += 3600
            case "cancel":
                double.post(f"payment_intents/{intent}/cancel")
            case "confirm":
                double.confirm(intent)
            case "refund":
                double.post("refunds", {"payment_intent": intent})
        again = double.confirm(intent, card, "k")
        assert (again.status, again.raw, again.replayed) == (first.status, first.raw, True)
    assert len(double.moved(intent)) <= 1
