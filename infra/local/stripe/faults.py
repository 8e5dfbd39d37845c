"""What may go wrong, on command. `FAULTS` says of each what it does to the customer's money and to the key.

A rule matches some requests and gives them one fault. A request passes the layers below in order, and a rule is used
up only where its fault's layer is reached: a saved answer that is replayed meets no fault of the endpoint.
"""

# ruff: noqa: E501 - a row of a table stays one row.

import fnmatch
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum, StrEnum, auto
from typing import Any, Final


class Layer(Enum):
    """Where a fault sits on a request's way in and out."""

    ARRIVING = auto()  # Nobody has looked at it.
    AUTHENTICATION = auto()
    LIMITER = auto()
    KEY = auto()  # Reached by POSTs that have a key.
    WAITING = auto()  # The key and the object are held; the endpoint has not begun.
    EXECUTION = auto()
    LINGERING = auto()  # The effect is done and committed; the key and the object are still held.
    LEAVING = auto()  # Executed or replayed; the answer is on its way out.


class Fault(StrEnum):
    """Everything that can be made to go wrong."""

    DROP_BEFORE = "drop_before"
    DROP_AFTER = "drop_after"
    ERROR_500_BEFORE = "500_before"
    ERROR_500_AFTER = "500_after"
    ERROR_500_ROLLED_FORWARD = "500_rolled_forward"
    ERROR_502_BEFORE = "502_before"
    ERROR_502_AFTER = "502_after"
    ERROR_503_BEFORE = "503_before"
    ERROR_503_AFTER = "503_after"
    ERROR_504_BEFORE = "504_before"
    ERROR_504_AFTER = "504_after"
    ERROR_424_BEFORE = "424_before"
    ERROR_424_AFTER = "424_after"
    RATE_LIMITED = "rate_limited"
    LOCK_TIMEOUT = "lock_timeout"
    KEY_IN_USE = "key_in_use"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    SLOW_BEFORE = "slow_before"
    SLOW_AFTER = "slow_after"
    CUT_BODY = "cut_body"
    NOT_JSON = "not_json"
    NULL_BODY = "null_body"


@dataclass(frozen=True)
class Effect:
    """What one fault does."""

    layer: Layer
    seen: str
    acts: str
    """Whether the endpoint acts: `yes`, `no`, `later`."""
    key: str
    """What is saved under the key: `nothing`, `the real answer`, or the error itself."""


# fmt: off
FAULTS: Final[Mapping[Fault, Effect]] = {
    # fault                                layer                 what the client sees                acts     the key holds
    Fault.DROP_BEFORE:              Effect(Layer.ARRIVING,       "the connection closes",            "no",    "nothing"),
    Fault.DROP_AFTER:               Effect(Layer.LEAVING,        "the connection closes",            "yes",   "the real answer"),
    Fault.ERROR_500_BEFORE:         Effect(Layer.EXECUTION,      "500",                              "no",    "the 500"),
    Fault.ERROR_500_AFTER:          Effect(Layer.EXECUTION,      "500",                              "yes",   "the 500"),
    Fault.ERROR_500_ROLLED_FORWARD: Effect(Layer.EXECUTION,      "500; events follow `seconds` later", "later", "the 500"),
    Fault.ERROR_502_BEFORE:         Effect(Layer.ARRIVING,       "502, HTML",                        "no",    "nothing"),
    Fault.ERROR_502_AFTER:          Effect(Layer.LEAVING,        "502, HTML",                        "yes",   "the real answer"),
    Fault.ERROR_503_BEFORE:         Effect(Layer.ARRIVING,       "503, HTML",                        "no",    "nothing"),
    Fault.ERROR_503_AFTER:          Effect(Layer.LEAVING,        "503, HTML",                        "yes",   "the real answer"),
    Fault.ERROR_504_BEFORE:         Effect(Layer.ARRIVING,       "504, HTML",                        "no",    "nothing"),
    Fault.ERROR_504_AFTER:          Effect(Layer.LEAVING,        "504, HTML",                        "yes",   "the real answer"),
    Fault.ERROR_424_BEFORE:         Effect(Layer.EXECUTION,      "424",                              "no",    "the 424"),
    Fault.ERROR_424_AFTER:          Effect(Layer.EXECUTION,      "424",                              "yes",   "the 424"),
    Fault.RATE_LIMITED:             Effect(Layer.LIMITER,        "429 with the limiter's reason",    "no",    "nothing"),
    Fault.LOCK_TIMEOUT:             Effect(Layer.EXECUTION,      "429 lock_timeout",                 "no",    "nothing"),
    Fault.KEY_IN_USE:               Effect(Layer.KEY,            "409 idempotency_key_in_use",       "no",    "nothing"),
    Fault.UNAUTHORIZED:             Effect(Layer.AUTHENTICATION, "401",                              "no",    "nothing"),
    Fault.FORBIDDEN:                Effect(Layer.AUTHENTICATION, "403",                              "no",    "nothing"),
    Fault.SLOW_BEFORE:              Effect(Layer.WAITING,        "its answer, `seconds` late",       "yes",   "the real answer"),
    Fault.SLOW_AFTER:               Effect(Layer.LINGERING,      "its answer, `seconds` late",       "yes",   "the real answer"),
    Fault.CUT_BODY:                 Effect(Layer.LEAVING,        "half of the announced body",       "yes",   "the real answer"),
    Fault.NOT_JSON:                 Effect(Layer.LEAVING,        "200, not JSON",                    "yes",   "the real answer"),
    Fault.NULL_BODY:                Effect(Layer.LEAVING,        "200, `null`",                      "yes",   "the real answer"),
}
# fmt: on
assert FAULTS.keys() == set(Fault), "every fault has its row"


@dataclass(frozen=True, slots=True)
class Target:
    """What of a request rules may match."""

    method: str
    path: str
    operation: str | None
    idempotency_key: str | None = None
    customer: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Rule:
    """One fault and the requests it befalls. Everything named must match; patterns are those of `fnmatch`."""

    fault: Fault
    operation: str | None = None  # "payment_intents.confirm", "payment_intents.*"
    method: str | None = None
    path: str | None = None
    idempotency_key: str | None = None
    customer: str | None = None  # Of the request, or of the PaymentIntent its path names.
    metadata: Mapping[str, str] = field(default_factory=dict)  # Likewise; all of these.
    nth: int = 1  # Begins with the nth match.
    times: int | None = 1  # None: until removed.
    probability: float = 1.0
    seconds: float = 1.0  # For the slow ones, and until a 500 is rolled forward.
    reason: str = "global-rate"  # Stripe-Rate-Limited-Reason.
    id: int = 0
    matched: int = 0
    fired: int = 0

    def matches(self, target: Target) -> bool:
        """Whether this rule is about such a request."""
        wanted = (
            (self.operation, target.operation),
            (self.method, target.method),
            (self.path, target.path),
            (self.idempotency_key, target.idempotency_key),
        )
        return (
            all(pattern is None or fnmatch.fnmatchcase(value or "", pattern) for pattern, value in wanted)
            and (self.customer is None or self.customer == target.customer)
            and all(target.metadata.get(name) == value for name, value in self.metadata.items())
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as JSON."""
        return asdict(self)


class FaultPlan:
    """The rules in force. They are not kept over a restart: a plan belongs to the test that made it."""

    def __init__(self, seed: int | str | None) -> None:
        self.rules: list[Rule] = []
        self._random = random.Random(seed)  # noqa: S311 - chance that replays, not secrecy.
        self._added = 0

    def add(self, rule: Rule) -> Rule:
        """Put a rule behind those there are."""
        self._added += 1
        rule.id = self._added
        self.rules.append(rule)
        return rule

    def remove(self, rule_id: int) -> bool:
        """Remove one rule; return whether it was there."""
        kept = [rule for rule in self.rules if rule.id != rule_id]
        removed = len(kept) < len(self.rules)
        self.rules = kept
        return removed

    def clear(self) -> None:
        """Remove all rules."""
        self.rules = []

    def take(self, layer: Layer, target: Target) -> Rule | None:
        """Return the first rule whose fault befalls this request at this layer."""
        for rule in self.rules:
            if FAULTS[rule.fault].layer is not layer or not rule.matches(target):
                continue
            if rule.times is not None and rule.fired >= rule.times:
                continue
            rule.matched += 1
            if rule.matched < rule.nth or self._random.random() >= rule.probability:
                continue
            rule.fired += 1
            return rule
        return None
