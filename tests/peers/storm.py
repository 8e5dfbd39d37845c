"""One storm for every way to charge: the orders, what goes wrong with each of them, and the judge.

    Order    what is to be charged, when it arrives, and what goes wrong around it
    Fault    what one call meets, drawn by the seed, the order, the kind of call and its ordinal
    Sky      everything around one order: clock, Stripe, the queue that brings the order, the shop's table of orders
    Peer     a way to charge one order
    Story    what came of it
    Score    all stories of one peer, judged by Stripe's tally

Every order has a timeline and a Stripe of its own, so that one that waits holds up no other, and so that any of them
can be looked at alone. Only the outage strikes all timelines at the same time of day. The faults of a call depend on
the order and on how many calls of its kind came before, so every peer meets the same ones, for as long as it makes the
same calls. No webhooks: whoever wants to know has to find out.
"""

import abc
import contextlib
import contextvars
import functools
import json
import math
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, cast
from unittest import mock
from urllib.parse import urlsplit

import stripe

from infra.local.stripe.engine import ConnectionDropped, Engine, Rule
from infra.local.stripe.engine import Fault as StripeFault
from tests.world import API_KEY, START, Killed, VirtualClock

if TYPE_CHECKING:
    from stripe.params import PaymentIntentCreateParams

T = TypeVar("T")

ARRIVALS: Final = timedelta(hours=1)  # Over which the orders come.
OUTAGE_AT: Final = START + ARRIVALS / 2  # Of all of Stripe, for some minutes.
QUEUE_KEEPS: Final = timedelta(days=3)  # How long the queue brings an order before it gives up.
STORM_ENDS: Final = timedelta(days=5)  # After an order came. Whoever does not know by then does not know.
QUEUE_STOPS: Final = timedelta(hours=25)  # Longer than Stripe keeps a key.
LAST_BACKOFF: Final = timedelta(minutes=5)
STRIPE_TAKES: Final = timedelta(milliseconds=300)
STORE_TAKES: Final = timedelta(milliseconds=10)
CUSTOMER: Final = "/v1/customers"


class Card(StrEnum):
    """What a customer pays with; Stripe's test names."""

    GOOD = "pm_card_visa"
    DECLINES = "pm_card_chargeCustomerFail"
    POOR = "pm_card_decline_insufficient_funds"
    ASKS = "pm_card_authenticationRequired"  # Cannot be charged while the customer is away.


CARDS: Final[Mapping[Card, int]] = {Card.GOOD: 84, Card.DECLINES: 6, Card.POOR: 6, Card.ASKS: 4}  # In 100.


class Word(StrEnum):
    """What a system says of an order."""

    UNKNOWN = "unknown"
    PAID = "paid"
    FAILED = "failed"
    ACTION_REQUIRED = "action required"


class Call(StrEnum):
    """The kinds of calls that go wrong."""

    CHARGE = "charge"  # A POST at Stripe that may move money.
    POST = "post"  # Another POST at Stripe.
    GET = "get"
    WRITE = "write"  # At the system's store.
    READ = "read"


class Fault(StrEnum):
    """What may go wrong at a call."""

    DROP_BEFORE = "the connection drops, nothing was done"
    DROP_AFTER = "the connection drops, it was done"
    ERROR_500 = "500, saved, without effect"
    ERROR_500_ACTED = "500, saved, with effect"
    ERROR_500_LATER = "500, saved, rolled forward later"
    ERROR_502 = "502 of the edge, nothing was done"
    ERROR_502_ACTED = "502 of the edge, it was done"
    ERROR_503 = "503 of the edge, nothing was done"
    ERROR_503_ACTED = "503 of the edge, it was done"
    LIMITED = "429"
    KEY_IN_USE = "409"
    TWIN_BEFORE = "slow, then done; meanwhile the order is delivered again"
    TWIN_AFTER = "done, then slow; meanwhile the order is delivered again"
    DIE_BEFORE = "the process dies before the call"
    DIE_AFTER = "the process dies after the call"
    FAIL_BEFORE = "the store fails, nothing was written"
    FAIL_AFTER = "the store fails, it was written"


AT_STRIPE: Final[Mapping[Fault, StripeFault]] = {
    Fault.DROP_BEFORE: StripeFault.DROP_BEFORE,
    Fault.DROP_AFTER: StripeFault.DROP_AFTER,
    Fault.ERROR_500: StripeFault.ERROR_500_BEFORE,
    Fault.ERROR_500_ACTED: StripeFault.ERROR_500_AFTER,
    Fault.ERROR_500_LATER: StripeFault.ERROR_500_ROLLED_FORWARD,
    Fault.ERROR_502: StripeFault.ERROR_502_BEFORE,
    Fault.ERROR_502_ACTED: StripeFault.ERROR_502_AFTER,
    Fault.ERROR_503: StripeFault.ERROR_503_BEFORE,
    Fault.ERROR_503_ACTED: StripeFault.ERROR_503_AFTER,
    Fault.LIMITED: StripeFault.RATE_LIMITED,
    Fault.KEY_IN_USE: StripeFault.KEY_IN_USE,
    Fault.TWIN_BEFORE: StripeFault.SLOW_BEFORE,
    Fault.TWIN_AFTER: StripeFault.SLOW_AFTER,
}
BURNS: Final = frozenset({Fault.ERROR_500, Fault.ERROR_500_ACTED, Fault.ERROR_500_LATER})  # The key says 500 for ever.

POSTS: Final[Mapping[Fault, int]] = {
    Fault.DROP_BEFORE: 3,
    Fault.DROP_AFTER: 3,
    Fault.ERROR_500: 2,
    Fault.ERROR_500_ACTED: 2,
    Fault.ERROR_500_LATER: 1,
    Fault.ERROR_502: 1,
    Fault.ERROR_502_ACTED: 1,
    Fault.ERROR_503: 1,
    Fault.ERROR_503_ACTED: 1,
    Fault.LIMITED: 2,
    Fault.KEY_IN_USE: 1,
    Fault.TWIN_BEFORE: 1,
    Fault.TWIN_AFTER: 1,
    Fault.DIE_BEFORE: 2,
    Fault.DIE_AFTER: 2,
}
GETS: Final[Mapping[Fault, int]] = {
    Fault.DROP_BEFORE: 3,
    Fault.ERROR_503: 3,
    Fault.LIMITED: 2,
    Fault.DIE_BEFORE: 1,
    Fault.DIE_AFTER: 1,
}
WRITES: Final[Mapping[Fault, int]] = {
    Fault.FAIL_BEFORE: 2,
    Fault.FAIL_AFTER: 2,
    Fault.DIE_BEFORE: 1,
    Fault.DIE_AFTER: 1,
}
OUTAGE: Final[Mapping[Fault, int]] = {
    Fault.DROP_BEFORE: 9,
    Fault.ERROR_503: 9,
    Fault.DROP_AFTER: 1,
    Fault.ERROR_503_ACTED: 1,
}
FAULTS: Final[Mapping[Call, Mapping[Fault, int]]] = {
    Call.CHARGE: POSTS,
    Call.POST: POSTS,
    Call.GET: GETS,
    Call.WRITE: WRITES,
    Call.READ: WRITES,
}
CHANCES: Final[Mapping[Call, Sequence[float]]] = {  # Of the first call, the second, ...; then none.
    Call.CHARGE: (0.35, 0.25, 0.2, 0.15, 0.1, 0.1, 0.1, 0.1),
    Call.POST: (0.35, 0.25, 0.2, 0.15, 0.1, 0.1, 0.1, 0.1),
    Call.GET: (0.1, 0.1, 0.1, 0.1, 0.1, 0.1),
    Call.WRITE: (0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05),
    Call.READ: (0.02, 0.02, 0.02, 0.02),
}


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of time."""

    start: datetime
    end: datetime

    def __contains__(self, at: datetime) -> bool:
        return self.start <= at < self.end


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be charged, and what goes wrong around it."""

    number: str
    seed: int
    amount: int
    card: Card
    arrives: datetime
    outage: Window  # The same for all orders of a seed.
    stop: Window | None = None  # The queue brings nothing meanwhile.
    again_at: datetime | None = None  # The queue brings it once more, whatever came of the first time.

    @classmethod
    def draw(cls, seed: int, index: int) -> "Order":
        """Draw one order."""
        minutes = _chance(seed, "outage").uniform(3, 8)
        chance = _chance(seed, index)
        arrives = START + ARRIVALS * chance.random()
        stop, again_at = None, None
        if chance.random() < 0.08:
            start = arrives + timedelta(seconds=chance.uniform(0.5, 30))
            stop = Window(start=start, end=start + QUEUE_STOPS)
        if (drawn := chance.random()) < 0.07:  # Two in seven so late that Stripe has forgotten every key.
            again_at = arrives + (QUEUE_STOPS if drawn < 0.02 else timedelta(seconds=chance.uniform(1, 120)))
        return cls(
            number=f"order-{index}",
            seed=seed,
            amount=chance.randrange(500, 20_000),
            card=chance.choices(list(CARDS), list(CARDS.values()))[0],
            arrives=arrives,
            outage=Window(start=OUTAGE_AT, end=OUTAGE_AT + timedelta(minutes=minutes)),
            stop=stop,
            again_at=again_at,
        )

    def fault(self, call: Call, ordinal: int, at: datetime) -> Fault | None:
        """Draw what a call meets: the same for every peer that makes as many calls of the kind before it."""
        chance = _chance(self.seed, self.number, call, ordinal)
        if at in self.outage and call in {Call.CHARGE, Call.POST, Call.GET}:
            return chance.choices(list(OUTAGE), list(OUTAGE.values()))[0]
        chances, faults = CHANCES[call], FAULTS[call]
        if ordinal >= len(chances) or chance.random() >= chances[ordinal]:
            return None
        return chance.choices(list(faults), list(faults.values()))[0]

    def lasts(self, fault: Fault, call: Call, ordinal: int) -> float:
        """Draw how many seconds a slow call takes, or pass until a 500 is rolled forward."""
        chance = _chance(self.seed, self.number, call, ordinal, "seconds")
        return chance.uniform(1, 10) if fault is not Fault.ERROR_500_LATER else chance.uniform(5, 20 * 60)


def _chance(*names: object) -> random.Random:
    return random.Random("/".join(map(str, names)))  # noqa: S311 - chance that replays.


def orders(seed: int, charges: int) -> list[Order]:
    """Draw the orders of a storm; more charges leave the first ones as they were."""
    return [Order.draw(seed, index) for index in range(charges)]


# --- What came of an order --------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Story:
    """What came of one order."""

    order: Order
    moved: list[int] = field(default_factory=list)  # Each amount that Stripe took, by its own tally.
    said: list[tuple[datetime, Word]] = field(default_factory=list)  # What the system said, at each change.
    posts: int = 0
    unknown_at: datetime | None = None  # When the first POST was sent whose outcome the system could not know.
    burnt: int = 0  # Keys of a charge that say 500 for ever, where a look at Stripe shows no payment either.
    met: Counter[str] = field(default_factory=Counter)

    @property
    def word(self) -> Word:
        """What the system says in the end."""
        return self.said[-1][1] if self.said else Word.UNKNOWN

    @property
    def charged_twice(self) -> bool:
        """Whether the customer paid more than once."""
        return len(self.moved) > 1

    @property
    def lost(self) -> bool:
        """Whether a good card was never charged, though the order was accepted."""
        return self.order.card is Card.GOOD and not self.moved

    @property
    def told_failed_though_paid(self) -> bool:
        """Whether anybody was ever told "no" about money that moved, before or after: no customer acts here."""
        no = {Word.FAILED, Word.ACTION_REQUIRED}
        return bool(self.moved) and any(word in no for _, word in self.said)

    @property
    def left_unknown(self) -> bool:
        """Whether the system does not know in the end."""
        return self.word is Word.UNKNOWN

    @property
    def seconds_unknown(self) -> float | None:
        """How long the outcome was unknown: until the true one was recorded for good; infinite if it never was.

        What passes while Stripe is down or the queue is stopped does not count. None: nothing ever was unknown.
        """
        if self.unknown_at is None:
            return None
        if self.left_unknown or (self.word is Word.PAID) != bool(self.moved):
            return math.inf
        closed_at = self.said[-1][0]
        return max(0.0, (closed_at - self.unknown_at - self._excused(self.unknown_at, closed_at)).total_seconds())

    def _excused(self, start: datetime, end: datetime) -> timedelta:
        windows = [window for window in (self.order.outage, self.order.stop) if window is not None]
        excused, done = timedelta(), start
        for window in sorted(windows, key=lambda each: each.start):
            begin, stop = max(done, window.start), min(end, window.end)
            if stop > begin:
                excused += stop - begin
                done = stop
        return excused


@dataclass(kw_only=True)
class Score:
    """All stories of one peer."""

    name: str
    stories: list[Story]

    def count(self, what: str) -> int:
        """Count the stories of which something is true."""
        return sum(bool(getattr(story, what)) for story in self.stories)

    @property
    def sends(self) -> float:
        """POSTs at Stripe for each order."""
        return statistics.fmean(story.posts for story in self.stories)

    @property
    def closings(self) -> list[float]:
        """How long each outcome was unknown, where no key was burnt; the shortest first."""
        return _known(story.seconds_unknown for story in self.stories if not story.burnt)

    @property
    def burnt_closings(self) -> list[float]:
        """Likewise for each burnt key of a good card: no answer of Stripe's tells whether it will still charge."""
        good = (story for story in self.stories if story.burnt and story.order.card is Card.GOOD)
        return _known(None if story.seconds_unknown is None else story.seconds_unknown / story.burnt for story in good)

    @property
    def met(self) -> Counter[str]:
        """How often everything happened that can."""
        return sum((story.met for story in self.stories), Counter[str]())


def _known(seconds: "Iterator[float | None]") -> list[float]:
    return sorted(each for each in seconds if each is not None)


def quantile(ordered: Sequence[float], part: float) -> float:
    """Return the value that this part of them does not exceed."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else math.nan


# --- Everything around one order --------------------------------------------------------------------------------------


class DatabaseDown(Exception):
    """The store did not answer: what was written may be there, or not."""


class Peer(abc.ABC):
    """A way to charge one order."""

    def __init__(self, sky: "Sky") -> None:
        self.sky = sky
        self.order = sky.order

    @abc.abstractmethod
    def deliver(self, tries: int) -> timedelta | None:
        """Take one delivery of the order, after so many that came to nothing.

        None: the queue may forget it. Else how long it waits at least before it brings it again. Killed is the death of
        the process; any other exception is a mistake in the peer and ends the storm.
        """

    @abc.abstractmethod
    def word(self) -> Word:
        """Say what the system says of the order, to whoever asks now."""

    def died(self) -> None:  # noqa: B027 - most need not.
        """Take note that the process has died."""

    def due(self) -> datetime | None:
        """Say when the system does something by itself; None: it never does unless the order is delivered."""
        return None

    def work(self) -> None:  # noqa: B027 - likewise.
        """Do what is due. Raises Killed."""


Factory = Callable[["Sky"], Peer]
AGAIN: Final = timedelta()


@dataclass(kw_only=True)
class Message:
    """The order on its way in the queue."""

    at: datetime
    tries: int = 0


class Sky:
    """Everything around one order."""

    here: ClassVar["Sky"]  # That of the order being charged now.

    def __init__(self, order: Order) -> None:
        self.order = order
        self.clock = VirtualClock()
        self.clock.time = order.arrives
        self.engine = Engine(clock=self._unix_time, sleep=self._slow, seed=f"{order.seed} {order.number}")
        self.customer = self._customer()
        self.table = Orders(self)
        self.story = Story(order=order)
        self.queue = [Message(at=order.arrives)]
        if order.again_at is not None:
            self.queue.append(Message(at=order.again_at))
        self._ordinals: Counter[Call] = Counter()
        self._sent_at: datetime | None = None  # The last POST whose outcome is not recorded.
        self._twins = 0
        self.peer: Peer

    def _customer(self) -> str:
        headers = {"Authorization": f"Bearer {API_KEY}"}
        return str(json.loads(self.engine.handle("POST", CUSTOMER, headers, b"").body)["id"])

    def _unix_time(self) -> float:
        return self.clock.now().timestamp()

    def storm(self, factory: Factory) -> Story:
        """Let it all happen to one order."""
        Sky.here = self
        random.seed(f"{self.order.seed}/{self.order.number}")  # The SDK's and DBOS's waits are of random length.
        self.peer = factory(self)
        ends = self.order.arrives + STORM_ENDS
        while (following := self._following()) is not None and following[0] < ends:
            at, happens = following
            self.clock.time = max(self.clock.time, at)
            happens()
            self.look()
        self.clock.time = max(self.clock.time, ends)
        self.engine.run_due()
        self.look()
        self.story.moved = [one.amount for one in self.engine.tally().moved]
        self.engine.close()
        return self.story

    def _following(self) -> tuple[datetime, Callable[[], object]] | None:
        """Return what happens next, and when: a delivery, or what the system does by itself."""
        happens: list[tuple[datetime, Callable[[], object]]] = [
            (self.held(message.at), functools.partial(self._take, message)) for message in self.queue
        ]
        due = self.peer.due()
        if due is not None:
            happens.append((due, functools.partial(self._alive, self.peer.work)))
        return min(happens, key=lambda each: each[0], default=None)

    def held(self, at: datetime) -> datetime:
        """Return when the queue brings what is due: later, if it is stopped then."""
        return self.order.stop.end if self.order.stop is not None and at in self.order.stop else at

    def _take(self, message: Message) -> None:
        self.queue.remove(message)
        if self.held(message.at) != message.at:
            self.story.met["the queue stops for 25 h"] += 1
        if message.at == self.order.again_at:
            self.story.met["delivered again"] += 1
        self._deliver(message)

    def _deliver(self, message: Message) -> None:
        wait = self._alive(functools.partial(self.peer.deliver, message.tries))
        if wait is None:
            return
        backoff = backoff_after(message.tries)
        message.tries += 1
        message.at = self.held(self.clock.now()) + max(wait, backoff)
        if message.at < self.order.arrives + QUEUE_KEEPS:
            self.queue.append(message)

    def _alive(self, run: Callable[[], timedelta | None]) -> timedelta | None:
        """Run something in a process of its own, which may die."""
        try:
            return contextvars.Context().run(run)
        except Killed:
            self.peer.died()
            return AGAIN

    def look(self) -> None:
        """See whether the system says something else than before."""
        word = self.peer.word()
        if word is not self.story.word:
            self.story.said.append((self.clock.now(), word))

    # --- Boundaries ---------------------------------------------------------------------------------------------------

    def at_stripe(self, call: Call, send: Callable[[], tuple[T, int, Mapping[str, str]]]) -> tuple[T, int, Any]:
        """Make a call at Stripe, with whatever it meets. `send` raises APIConnectionError where nothing comes back."""
        ordinal, fault = self._draw(call)
        self.clock.sleep(STRIPE_TAKES)
        posts = call is not Call.GET
        if posts:
            self._sent_at = self.clock.now()
        if fault is Fault.DIE_BEFORE:
            self._die(fault)
        self.story.posts += posts
        try:
            answer = self._with(fault, call, ordinal, send)
        except stripe.APIConnectionError:
            self._lose_track()
            raise
        if fault is Fault.DIE_AFTER:
            self._die(fault)
        if answer[1] >= 500 and posts:
            self._lose_track()
        return answer

    def _draw(self, call: Call) -> tuple[int, Fault | None]:
        ordinal = self._ordinals[call]
        self._ordinals[call] += 1
        fault = self.order.fault(call, ordinal, self.clock.now())
        return ordinal, fault

    def _with(self, fault: Fault | None, call: Call, ordinal: int, send: Callable[[], T]) -> T:
        if fault is None or fault not in AT_STRIPE:
            return send()
        rule = Rule(fault=AT_STRIPE[fault], seconds=self.order.lasts(fault, call, ordinal))
        before, self.engine.faults.rules = self.engine.faults.rules, [rule]
        try:
            return send()
        finally:
            self.engine.faults.rules = before  # It befalls this call or none.
            if rule.fired:
                self._meet(fault)
                paid = fault is Fault.ERROR_500_ACTED and self.order.card is Card.GOOD  # One look tells.
                self.story.burnt += call is Call.CHARGE and fault in BURNS and not paid

    def _slow(self, seconds: float) -> None:
        """Let Stripe take its time over a call; meanwhile the queue delivers the order again."""
        until = self.clock.now() + timedelta(seconds=seconds)
        if not self._twins:
            self._twins += 1
            self.engine.faults.rules = []
            self._deliver(Message(at=self.clock.now()))
            self._twins -= 1
        self.clock.time = max(self.clock.time, until)

    def write(self, apply: Callable[[], T], down: Callable[[], Exception]) -> T:
        """Write to the system's store, with whatever that meets."""
        return self._at_store(Call.WRITE, apply, down)

    def read(self, apply: Callable[[], T], down: Callable[[], Exception]) -> T:
        """Read from the system's store, with whatever that meets."""
        return self._at_store(Call.READ, apply, down)

    def _at_store(self, call: Call, apply: Callable[[], T], down: Callable[[], Exception]) -> T:
        _, fault = self._draw(call)
        self.clock.sleep(STORE_TAKES)
        if fault is None:
            found = apply()
            self.look()
            if self.story.word is not Word.UNKNOWN:
                self._sent_at = None
            return found
        if fault in {Fault.DIE_AFTER, Fault.FAIL_AFTER}:
            apply()
            self.look()
        if fault in {Fault.DIE_BEFORE, Fault.DIE_AFTER}:
            self._die(fault)
        self._meet(fault)
        self._lose_track()
        raise down()

    def _die(self, fault: Fault) -> None:
        self._meet(fault)
        self._lose_track()
        raise Killed

    def _meet(self, fault: Fault) -> None:
        self.story.met[fault] += 1
        if self.clock.now() in self.order.outage:
            self.story.met["Stripe is down"] += 1

    def _lose_track(self) -> None:
        if self.story.unknown_at is None and self._sent_at is not None:
            self.story.unknown_at = self._sent_at

    def client(self, **options: Any) -> stripe.StripeClient:
        """Return stripe-python's own client, connected to this order's Stripe."""
        return stripe.StripeClient(API_KEY, http_client=_Wire(self), **options)


class Orders:
    """The shop's table of orders: where a peer that has no ledger of its own records what came of one."""

    def __init__(self, sky: Sky) -> None:
        self._sky = sky
        self._word = Word.UNKNOWN

    def word(self) -> Word:
        """Read what is recorded. Raises DatabaseDown."""
        return self._sky.read(lambda: self._word, lambda: DatabaseDown("no answer"))

    def record(self, word: Word) -> None:
        """Record what came of the order. Raises DatabaseDown."""
        self._sky.write(functools.partial(setattr, self, "_word", word), lambda: DatabaseDown("no answer"))

    def seen(self) -> Word:
        """Return what is recorded, past all faults."""
        return self._word


def backoff_after(tries: int) -> timedelta:
    """Return how long the queue waits after so many failures: 1 s, doubling to 5 min."""
    return min(timedelta(seconds=2 ** min(tries, 20)), LAST_BACKOFF)


class _Wire(stripe.HTTPClient):
    """stripe-python's transport, calling the order's Stripe without a socket."""

    name = "in-process"

    def __init__(self, sky: Sky) -> None:
        super().__init__()
        self._sky = sky

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None, *, _usage: Any = None
    ) -> tuple[str, int, Mapping[str, str]]:
        """Hand the request to the engine. A connection that drops may be retried, as the SDK's own clients say."""
        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        body = post_data.encode() if isinstance(post_data, str) else post_data or b""

        def send() -> tuple[str, int, Mapping[str, str]]:
            try:
                answer = self._sky.engine.handle(method.upper(), path, dict(headers or {}), body)
            except ConnectionDropped as error:
                raise stripe.APIConnectionError("dropped", should_retry=True) from error  # type: ignore[no-untyped-call]
            return answer.body.decode(), answer.status, answer.headers

        charges = parts.path.endswith("/confirm") or b"confirm=true" in body.lower()
        call = Call.GET if method.lower() == "get" else Call.CHARGE if charges else Call.POST
        return self._sky.at_stripe(call, send)

    def close(self) -> None:
        """Nothing is open."""


@contextlib.contextmanager
def virtual_time() -> Iterator[None]:
    """Let whoever sleeps in this thread do so on the clock of the order being charged."""
    ours, really = threading.get_ident(), time.sleep

    def sleep(seconds: float) -> None:
        if threading.get_ident() == ours:
            Sky.here.clock.sleep(timedelta(seconds=seconds))
        else:
            really(seconds)

    with mock.patch("time.sleep", sleep):
        yield


def blow(name: str, factory: Factory, storm: Sequence[Order]) -> Score:
    """Let a storm blow over one peer."""
    with virtual_time():
        return Score(name=name, stories=[Sky(order).storm(factory) for order in storm])


def terms(order: Order, customer: str) -> dict[str, Any]:
    """Return what every peer asks of Stripe."""
    return {
        "amount": order.amount,
        "currency": "usd",
        "customer": customer,
        "payment_method": order.card.value,
        "metadata": {"order": order.number},
    }


def charge_now(sky: Sky) -> "PaymentIntentCreateParams":
    """Return the parameters of one request that makes a PaymentIntent and confirms it, the customer being away."""
    asked = {**terms(sky.order, sky.customer), "confirm": True, "off_session": True}
    return cast("PaymentIntentCreateParams", asked)


def word_of(intent: stripe.PaymentIntent) -> Word:
    """Read a PaymentIntent that was confirmed."""
    return Word.PAID if intent.status == "succeeded" else Word.ACTION_REQUIRED


def word_of_decline(error: stripe.CardError) -> Word:
    """Read a 402."""
    return Word.ACTION_REQUIRED if error.code == "authentication_required" else Word.FAILED
