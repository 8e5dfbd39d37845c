"""A storm: callers who insist on their charges, while everything that those depend on misbehaves.

    storm = Storm(stack, forecast(charges=300, seed=1, seconds=30))
    storm.blow()        callers call; Stripe fails, Datastore stalls, functions are killed, events and tasks go astray
    storm.settle()      all is well again, and what is open comes to an end
    storm.stories       what became of each order: by our ledger, by Stripe's own tally, and by what callers were told

What happens in a storm is planned by its seed. Which thread comes first is not, here as in the world: the promises
hold whatever happens.
"""

import json
import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import cycle
from typing import Any, Final

import requests
from google.api_core.exceptions import AlreadyExists, GoogleAPICallError
from google.cloud import tasks_v2

from infra.local.processes import ProgramFailed
from infra.local.stack import QUEUE, Stack, ask
from infra.local.stripe.faults import Fault
from shared.charge import charge_id

CUSTOMERS: Final = 25
CONCURRENT_CALLERS: Final = 48  # More than the function has threads, so that some must wait.
CALLER_TIMEOUT_SECONDS: Final = 12.0  # Longer than a write may be tried.
CALLER_PATIENCE_SECONDS: Final = 8.0  # After the last squall. Then what was accepted is left to the system.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 2.0  # Between a caller's tries, whatever Retry-After asks for.
TICK_SECONDS: Final = 0.1
SETTLE_TIMEOUT_SECONDS: Final = 90.0  # The queue's throttle, and waits that double, take up to a minute.
GIVE_UP_AFTER_SECONDS: Final = 10.0  # When callers cancel what stays in doubt: a spent key does for 24 hours.


class Way(StrEnum):
    """How an order is placed."""

    WAIT = "wait"
    RESPOND_ASYNC = "respond-async"
    TASK_QUEUE = "task queue"


WAYS: Final[Mapping[Way, int]] = {Way.WAIT: 60, Way.RESPOND_ASYNC: 20, Way.TASK_QUEUE: 20}  # Of a hundred orders.


class Payer(StrEnum):
    """What stands behind an order's payment method."""

    GOOD_CARD = "good card"
    DECLINING_CARD = "declining card"
    AUTHENTICATING_CARD = "authenticating card"
    BANK_DEBIT = "bank debit"
    RETURNED_DEBIT = "returned bank debit"
    DELETED_CUSTOMER = "deleted customer"


# fmt: off
PAYERS: Final[Mapping[Payer, tuple[str, int]]] = {
    # who pays                 with                                       of a hundred orders
    Payer.GOOD_CARD:           ("pm_card_visa",                            80),
    Payer.DECLINING_CARD:      ("pm_card_chargeDeclinedInsufficientFunds",  8),
    Payer.AUTHENTICATING_CARD: ("pm_card_authenticationRequired",           4),
    Payer.BANK_DEBIT:          ("pm_usBankAccount_success",                 4),
    Payer.RETURNED_DEBIT:      ("pm_usBankAccount_insufficientFunds",       2),
    Payer.DELETED_CUSTOMER:    ("pm_card_visa",                             2),
}
# fmt: on


class Wish(StrEnum):
    """What a caller wants of an order later."""

    CANCEL = "cancel"
    OUT_OF_BAND = "out-of-band"  # It was paid in cash.
    OTHER_CARD = "payment-method"  # After a decline.


WISHES: Final[Mapping[Wish | None, int]] = {None: 90, Wish.CANCEL: 6, Wish.OUT_OF_BAND: 4}  # Of a hundred orders.
SENSIBLE: Final = frozenset({200, 202, 402, 404, 409, 410, 503})  # 404: of a charge that the queue has yet to bring.
TROUBLED: Final = 0.6  # So many of all orders meet trouble of their own at Stripe.
CLICKED_TWICE: Final = 0.1  # So many are asked for by several callers at once.


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """What goes wrong at Stripe with one order."""

    fault: Fault
    operation: str
    times: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Order:
    """One thing to be paid once."""

    key: str
    amount: int
    payer: Payer
    way: Way
    at_seconds: float
    callers: int = 1
    wish: Wish | None = None
    wish_after_seconds: float = 0.0
    trouble: Trouble | None = None

    @property
    def id(self) -> str:
        """Return its charge's id."""
        return charge_id(None, self.key)


@dataclass(frozen=True, kw_only=True)
class Squall:
    """Something that befalls the whole stack at one moment."""

    at_seconds: float
    what: str
    strike: Callable[[Stack], object]
    counts: bool  # Each time is told of. The others begin or end something that is counted by itself.


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A storm as it is planned, in order of time."""

    orders: Sequence[Order]
    squalls: Sequence[Squall]


# --- Planning ---------------------------------------------------------------------------------------------------------


def forecast(*, charges: int, seed: int, seconds: float) -> Forecast:
    """Plan a storm that strikes for so long. Every fault of Stripe's is in it, given orders enough."""
    chance = random.Random(seed)  # noqa: S311 - a storm that comes again, no secret.
    faults = [(fault, operation) for fault in Fault for operation in ("create", "confirm")]
    chance.shuffle(faults)
    next_fault = cycle(faults)
    times = sorted(chance.uniform(0, seconds) for _ in range(charges))
    orders = [_order(number, at, chance, next_fault) for number, at in enumerate(times, start=1)]
    return Forecast(orders=orders, squalls=[*_squalls(chance, seconds)])


def _order(number: int, at_seconds: float, chance: random.Random, next_fault: Iterator[tuple[Fault, str]]) -> Order:
    [payer] = chance.choices(list(PAYERS), [share for _, share in PAYERS.values()])
    [way] = chance.choices(list(WAYS), list(WAYS.values()))
    [wish] = chance.choices(list(WISHES), list(WISHES.values()))
    if payer is Payer.DECLINING_CARD and chance.random() < 0.5:
        wish = Wish.OTHER_CARD
    return Order(
        key=f"order-{number:04d}",
        amount=1000 + number,
        payer=payer,
        way=way,
        at_seconds=at_seconds,
        callers=3 if chance.random() < CLICKED_TWICE else 1,
        wish=wish,
        wish_after_seconds=chance.uniform(0, 3),
        trouble=_trouble(wish, chance, next_fault) if chance.random() < TROUBLED else None,
    )


def _trouble(wish: Wish | None, chance: random.Random, next_fault: Iterator[tuple[Fault, str]]) -> Trouble:
    fault, operation = next(next_fault)
    if wish in {Wish.CANCEL, Wish.OUT_OF_BAND} and chance.random() < 0.5:
        operation = "cancel"
    return Trouble(
        fault=fault,
        operation=f"payment_intents.{operation}",
        times=chance.choice((1, 1, 2, 3)),
        seconds=chance.choice((0.5, 1.0, 3.0, 5.0)),  # Shorter and longer than the demo's STRIPE_TIMEOUT.
    )


TASK_FAULTS: Final[Mapping[str, tuple[str, int]]] = {
    "create_task_unavailable": ("a task is refused", 6),
    "create_task_loses_reply": ("a task is made, and nobody hears of it", 4),
    "create_task_hangs": ("the making of a task is never answered", 3),
    "delivered_twice": ("a task comes twice at once", 40),
}
"""What the Cloud Tasks emulator does wrong, and how often in a storm."""


def _squalls(chance: random.Random, seconds: float) -> Iterator[Squall]:
    task_faults = {name: times for name, (_, times) in TASK_FAULTS.items()}
    rough: Sequence[tuple[float, bool, str, Callable[[Stack], object]]] = (
        # when counts what                                       how
        (0.05, True, "the charge worker is killed", lambda stack: stack.kill_worker("charge")),
        (0.10, False, "events come late and in any order", lambda s: s.disturb_events(delay_seconds=3, shuffle=True)),
        (0.20, True, "Datastore stalls", lambda stack: stack.pause_datastore()),
        (0.30, False, "Datastore goes on", lambda stack: stack.resume_datastore()),
        (0.34, True, "the charge worker is killed", lambda stack: stack.kill_worker("charge")),
        (0.37, False, "events are lost", lambda stack: stack.disturb_events(delay_seconds=0, lose=40)),
        (0.42, False, "tasks go astray", lambda stack: stack.disturb_tasks(**task_faults)),
        (0.48, True, "the charge function is deployed again", lambda stack: stack.restart("charge")),
        (0.52, False, "events come twice", lambda stack: stack.disturb_events(lose=0, duplicate=40)),
        (0.60, True, "the charge worker is killed", lambda stack: stack.kill_worker("charge")),
        (0.65, True, "Datastore stalls", lambda stack: stack.pause_datastore()),
        (0.72, False, "Datastore goes on", lambda stack: stack.resume_datastore()),
        (0.75, True, "the webhook function is deployed again", lambda stack: stack.restart("webhook")),
        (0.80, True, "the charge worker is killed", lambda stack: stack.kill_worker("charge")),
        (0.85, True, "the webhook worker is killed", lambda stack: stack.kill_worker("webhook")),
        (0.90, True, "the reconcile function is deployed again", lambda stack: stack.restart("reconcile")),
        (0.95, True, "the charge worker is killed", lambda stack: stack.kill_worker("charge")),
    )
    for at, counts, what, strike in rough:
        yield Squall(at_seconds=(at + chance.uniform(0, 0.02)) * seconds, what=what, strike=strike, counts=counts)


# --- What became of an order ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """One answer that a caller got."""

    at: float
    status: int


@dataclass(kw_only=True)
class Story:
    """What became of an order."""

    order: Order
    told: list[Told] = field(default_factory=list)
    accepted: bool = False  # Somebody has been told that the order is in good hands; until then its callers insist.
    unanswered: int = 0  # Requests whose connection broke, or that took too long.
    paid_anew_at: float = 0.0  # When another card had been taken: until then a no was true.
    struck: int = 0  # How often its trouble befell it.
    charge: Mapping[str, Any] | None = None  # By our ledger.
    moved: Sequence[int] = ()  # By Stripe's tally.

    @property
    def status(self) -> str:
        """Return where the charge stands."""
        return "not recorded" if self.charge is None else str(self.charge["status"])

    @property
    def at_rest(self) -> bool:
        """Whether it waits for nobody but its customer, or the account's owner."""
        return self.charge is not None and self.charge["waiting_on"] not in {"system", "operator", "bank"}

    @property
    def left(self) -> bool:
        """Whether it is still in the system's, the operator's or the bank's hands, its outcome known or not begun."""
        return not self.at_rest and self.status != "unknown"

    @property
    def lost(self) -> bool:
        """Whether a card that pays was not charged, and nobody closed the order."""
        closed = self.status in {"canceled", "paid_out_of_band"}
        return self.order.payer is Payer.GOOD_CARD and not self.moved and not closed

    @property
    def told_failed_though_paid(self) -> bool:
        """Whether somebody heard a no, and the customer paid all the same, without another card."""
        return bool(self.moved) and any(
            told.status in {402, 410} and told.at >= self.paid_anew_at for told in self.told
        )

    @property
    def senseless_answers(self) -> list[int]:
        """Return the statuses that a caller who does everything right has no use for."""
        return sorted({told.status for told in self.told} - SENSIBLE)

    @property
    def disagrees(self) -> bool:
        """Whether our ledger and Stripe's tally say different things."""
        paid = [self.order.amount] if self.status == "succeeded" else []
        return paid != list(self.moved)

    @property
    def broken_promises(self) -> list[str]:
        """Name what must never be, and is."""
        found = {
            "charged twice": len(self.moved) > 1,
            "lost": self.lost,
            "told failed though paid": self.told_failed_though_paid,
            f"left {self.status}": not self.at_rest,
            "ledger and Stripe disagree": self.disagrees,
            f"answered {self.senseless_answers}": bool(self.senseless_answers),
        }
        return [name for name, holds in found.items() if holds]


# --- Blowing and settling ---------------------------------------------------------------------------------------------

Tell = Callable[[str, int, int], None]
"""Hears what happens, how much of it is done, and out of how much."""


def _nobody(_what: str, _done: int, _of: int) -> None:
    pass


class Storm:
    """One storm over one stack."""

    def __init__(self, stack: Stack, plan: Forecast) -> None:
        self.stories = [Story(order=order) for order in plan.orders]
        self.happened: Counter[str] = Counter()  # What befell everybody, and how often.
        self.stray: list[str] = []  # Stripe's charges that belong to no order.
        self._stack = stack
        self._plan = plan
        self._customers: Sequence[str] = ()
        self._deleted_customer = ""
        self._over = threading.Event()

    def blow(self, tell: Tell = _nobody) -> None:
        """Let it blow until nobody insists any more."""
        self._customers = [self._stack.new_customer() for _ in range(CUSTOMERS)]
        self._deleted_customer = self._stack.new_customer()
        self._stack.at_stripe("DELETE", f"/v1/customers/{self._deleted_customer}")
        stories, squalls = deque(self.stories), deque(self._plan.squalls)
        planned = sum(story.order.callers + (story.order.wish is not None) for story in stories)
        began, news = time.monotonic(), "callers come"
        ends_at = began + self._plan.squalls[-1].at_seconds + CALLER_PATIENCE_SECONDS
        with self._stack.tasks_client() as self._tasks, ThreadPoolExecutor(CONCURRENT_CALLERS) as pool:
            calls: list[Future[None]] = []
            while stories or squalls or not all(call.done() for call in calls):
                passed = time.monotonic() - began
                while stories and stories[0].order.at_seconds <= passed:
                    calls += self._set_out(stories.popleft(), pool)
                while squalls and squalls[0].at_seconds <= passed:
                    news = self._strike(squalls.popleft())
                if time.monotonic() >= ends_at:
                    self._over.set()
                tell(news, sum(call.done() for call in calls), planned)
                time.sleep(TICK_SECONDS)
            tell("callers are gone", planned, planned)
            for call in calls:
                call.result()  # A caller's own exception is a defect of the storm's.

    def _strike(self, squall: Squall) -> str:
        with suppress(ProgramFailed):  # The last one killed has not been replaced yet.
            squall.strike(self._stack)
            self.happened[squall.what] += squall.counts
        return squall.what

    def _set_out(self, story: Story, pool: ThreadPoolExecutor) -> list[Future[None]]:
        """Arm what will befall an order, and send its callers out."""
        order = story.order
        if order.trouble is not None:
            self._stack.double(
                "POST",
                "faults",
                fault=order.trouble.fault,
                operation=order.trouble.operation,
                times=order.trouble.times,
                seconds=order.trouble.seconds,
                metadata={"pio_charge": order.id},
            )
        call = self._enqueue if order.way is Way.TASK_QUEUE else self._insist
        calls = [pool.submit(call, story) for _ in range(order.callers)]
        if order.wish is not None:
            calls.append(pool.submit(self._wish, story, order.wish))
        return calls

    # --- Callers ------------------------------------------------------------------------------------------------------

    def _body(self, order: Order) -> dict[str, Any]:
        gone = order.payer is Payer.DELETED_CUSTOMER
        customer = self._deleted_customer if gone else self._customers[order.amount % CUSTOMERS]
        payment_method, _ = PAYERS[order.payer]
        return {"amount": order.amount, "currency": "usd", "customer": customer, "payment_method": payment_method}

    def _insist(self, story: Story) -> None:
        """Ask for a charge, and repeat it on anything but an answer that leaves nothing to wait for."""
        order = story.order
        headers = {"Idempotency-Key": order.key}
        if order.way is Way.RESPOND_ASYNC:
            headers["Prefer"] = "respond-async"
        for _ in self._tries(story):
            answer = self._ask(story, "POST", "/", json=self._body(order), headers=headers)
            if answer is not None and (answer.status_code in {402, 410} or not _waits_for_system(answer)):
                return

    def _enqueue(self, story: Story) -> None:
        """Leave a charge to Cloud Tasks, as a caller does who has no time: the queue does the insisting."""
        request = tasks_v2.HttpRequest(
            url=self._stack.charge_url,
            http_method=tasks_v2.HttpMethod.POST,
            headers={"Content-Type": "application/json", "Idempotency-Key": story.order.key},
            body=json.dumps(self._body(story.order)).encode(),
        )
        task = tasks_v2.Task(name=f"{QUEUE}/tasks/{story.order.key}", http_request=request)
        for _ in self._tries(story):
            with suppress(GoogleAPICallError):
                with suppress(AlreadyExists):
                    self._tasks.create_task(parent=QUEUE, task=task, timeout=5)
                story.accepted = True
                return

    def _wish(self, story: Story, wish: Wish) -> None:
        """Have an order closed, or pay it with another card, until that is answered for good."""
        time.sleep(story.order.wish_after_seconds)
        path, body = f"/{story.order.id}/{wish}", {}
        match wish:
            case Wish.CANCEL:
                path, body = "/cancel", {"reason": "not wanted any more"}
            case Wish.OUT_OF_BAND:
                body = {"reference": "cash"}
            case Wish.OTHER_CARD:
                self._await_decline(story)
                body = {"payment_method": "pm_card_visa"}
                story.paid_anew_at = math.inf
        headers = {"Idempotency-Key": story.order.key}
        for _ in self._tries(story):
            answer = self._ask(story, "POST", path, json=body, headers=headers)
            if answer is not None and _is_last_word(answer):
                break
        story.paid_anew_at = min(story.paid_anew_at, time.monotonic())

    def _await_decline(self, story: Story) -> None:
        for _ in self._tries(story):
            answer = self._ask(story, "GET", f"/{story.order.id}")
            if answer is not None and answer.ok and not _waits_for_system(answer):
                return

    def _ask(self, story: Story, method: str, path: str, **sent: Any) -> requests.Response | None:
        began = time.monotonic()
        try:
            answer = ask(method, self._stack.charge_url + path, timeout_seconds=CALLER_TIMEOUT_SECONDS, **sent)
        except requests.RequestException:
            story.unanswered += 1
            return None
        if method == "POST":
            story.told.append(Told(began, answer.status_code))
            story.accepted |= answer.ok
        return answer

    def _tries(self, story: Story) -> Iterator[None]:
        """Begin a try, and another after each pause, until patience is at an end and the order has been accepted."""
        pause = FIRST_PAUSE_SECONDS
        while not (self._over.is_set() and story.accepted):
            yield
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    # --- Afterwards ---------------------------------------------------------------------------------------------------

    def settle(self, tell: Tell = _nobody) -> bool:
        """Let all be well, and wait until the system has nothing left to do. Returns whether it came to that."""
        self._count_what_struck()
        self._stack.calm()
        began = time.monotonic()
        while True:
            passed = time.monotonic() - began
            for story in self.stories:
                if not story.at_rest:
                    self._read(story)
                    self._help(story, passed)
            resting = sum(story.at_rest for story in self.stories)
            tell("all is well again", resting, len(self.stories))
            if resting == len(self.stories) or passed > SETTLE_TIMEOUT_SECONDS:
                break
            time.sleep(0.5)
        self._conclude()
        return resting == len(self.stories)

    def _read(self, story: Story) -> None:
        with suppress(requests.RequestException):
            answer = ask("GET", f"{self._stack.charge_url}/{story.order.id}", timeout_seconds=CALLER_TIMEOUT_SECONDS)
            if answer.ok:
                story.charge = answer.json()

    def _help(self, story: Story, passed: float) -> None:
        """Do what people do once the worst is over.

        The operator has mended the API key, and has looked at what the bank must have ended, where the event that says
        so is lost: by itself the system looks once a day. Callers give up what a spent key keeps in doubt.
        """
        if story.charge is None:
            return
        late = passed > GIVE_UP_AFTER_SECONDS
        if story.charge["waiting_on"] == "operator":
            self._ask(story, "POST", f"/{story.order.id}/retry")
        elif story.charge["waiting_on"] == "bank" and late:
            self._ask(story, "POST", f"/{story.order.id}/deliver")
        elif story.status == "unknown" and story.order.payer is not Payer.GOOD_CARD and late:
            self._ask(story, "POST", "/cancel", headers={"Idempotency-Key": story.order.key})

    def _count_what_struck(self) -> None:
        by_id = {story.order.id: story for story in self.stories}
        for rule in self._stack.double("GET", "faults")["rules"]:
            by_id[rule["metadata"]["pio_charge"]].struck += rule["fired"]
        left = ask("GET", self._stack.tasks_control_url).json()["faults"]
        for name, (what, times) in TASK_FAULTS.items():
            self.happened[what] += times - left[name]

    def _conclude(self) -> None:
        """Read every charge once more, and what Stripe says."""
        tally = self._stack.double("GET", "tally")
        for story in self.stories:
            self._read(story)
            story.moved = tally["by_metadata"].get(story.order.id, {"amounts": []})["amounts"]
        known = {story.order.id for story in self.stories}
        self.stray = [one["charge"] for one in tally["charges"] if one["metadata"].get("pio_charge") not in known]
        deliveries = self._stack.double("GET", "webhooks")["deliveries"]
        copies = Counter(delivery["event"] for delivery in deliveries)
        told = Counter(told.status for story in self.stories for told in story.told)
        self.happened += Counter(
            {
                "an event is lost": sum(delivery["state"] == "lost" for delivery in deliveries),
                "an event comes twice": sum(count > 1 for count in copies.values()),
                "an event is refused, and comes again": sum(delivery["attempts"] > 1 for delivery in deliveries),
                "a caller gets no answer": sum(story.unanswered for story in self.stories),
                "a caller is told to come again": told[409] + told[503],
            }
        )


def _is_last_word(answer: requests.Response) -> bool:
    """Whether a wish has been taken up, or refused because it no longer fits."""
    in_hand = answer.status_code == 409 and answer.json()["type"].endswith("in-hand")
    return answer.status_code in {200, 202, 402, 409, 410} and not in_hand


def _waits_for_system(answer: requests.Response) -> bool:
    """Whether it is worth asking again soon: always, but for a charge that waits for somebody else."""
    return not answer.ok or answer.json()["waiting_on"] == "system"
