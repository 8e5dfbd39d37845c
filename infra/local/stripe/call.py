"""One request whose endpoint runs: what the endpoints work with."""

from dataclasses import dataclass, field
from typing import Any, Final

from infra.local.stripe.errors import Refusal, no_such, not_found
from infra.local.stripe.store import PRIVATE, Object, Page, Store, World, shown
from infra.local.stripe.webhooks import Outbox

EXPANDED_DEPTH: Final = 4  # Stripe's own limit.


@dataclass(frozen=True)
class Settings:
    """What a double is told when it is made. Times in seconds of its clock."""

    bank_debit_seconds: float = 4 * 24 * 3600.0  # ACH takes up to four business days.
    hold_seconds: float = 7 * 24 * 3600.0  # An authorisation that is not captured ends.
    checkout_seconds: float = 24 * 3600.0
    confirms_at_most: int = 50  # Stripe cancels a PaymentIntent that is confirmed too often, without saying when.
    public_url: str = "http://127.0.0.1:12111"


@dataclass
class Lag:
    """How far lists and searches are behind, in seconds."""

    list_seconds: float = 0.0
    search_seconds: float = 0.0


@dataclass(slots=True)
class Call:
    """One request, as its endpoint sees it; `request_id` is None for what Stripe does by itself."""

    store: Store
    outbox: Outbox
    settings: Settings
    lag: Lag
    platform: str
    world: World
    now: float
    request_id: str | None = None
    idempotency_key: str | None = None
    api_version: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    ids: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The id in the path."""
        return self.ids[0]

    def new(self, prefix: str, kind: str, **fields: Any) -> Object:
        """Return a new object, not yet kept."""
        return {
            "id": self.store.new_id(prefix),
            "object": kind,
            "created": int(self.now),
            "livemode": self.world.livemode,
            **fields,
        }

    def keep(self, thing: Object) -> Object:
        """Keep a new object."""
        return self.store.insert(self.world, thing)

    def in_path(self, kind: str, name: str | None = None) -> Object:
        """Return the object that the path names. Raises the 404."""
        name = self.id if name is None else name
        found = self.store.find(self.world, name, kind)
        if found is None:
            raise not_found(kind, name)
        return found

    def in_body(self, kind: str, name: str, param: str) -> Object:
        """Return the object that a parameter names. Raises the 400."""
        found = self.store.find(self.world, name, kind)
        if found is None or found.get("deleted"):
            raise no_such(kind, name, param)
        return found

    def emit(self, kind: str, thing: Object) -> None:
        """Tell of a transition."""
        self.outbox.emit(self.world, kind, shown(thing), self.now, self.request_id, self.idempotency_key)

    def copy(self, thing: Object, *names: str) -> None:
        """Take these parameters over into the object, where they are given; metadata is merged, as Stripe does."""
        for name in names:
            if name in self.params:
                thing[name] = self.params[name]
        if "metadata" in self.params:
            thing["metadata"] = _merged(thing.get("metadata") or {}, self.params["metadata"])

    def listed(self, kind: str, url: str, where: list[tuple[str, Any]] | None = None) -> Object:
        """Return one page of a list, by the parameters that all lists have."""
        limit = self.params.get("limit", 10)
        if not 1 <= limit <= 100:
            raise Refusal(400, "Invalid limit: must be between 1 and 100.", param="limit")
        page = Page(limit, self.params.get("starting_after"), self.params.get("ending_before"))
        for param in ("starting_after", "ending_before"):
            if param in self.params:
                self.in_body(kind, self.params[param], param)
        conditions = [*(where or []), *self._created()]
        if self.lag.list_seconds:
            conditions.append(("created <= ?", self.now - self.lag.list_seconds))
        found, has_more = self.store.page(self.world, kind, page, conditions)
        return {"object": "list", "url": url, "has_more": has_more, "data": [shown(thing) for thing in found]}

    def _created(self) -> list[tuple[str, Any]]:
        created = self.params.get("created")
        if isinstance(created, int):
            return [("created = ?", created)]
        operators = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
        return [(f"created {operators[name]} ?", value) for name, value in (created or {}).items()]

    def expanded(self, answer: Object) -> Object:
        """Put whole objects where `expand` asks for them."""
        for path in self.params.get("expand") or ():
            steps = path.split(".")
            if len(steps) > EXPANDED_DEPTH:
                raise Refusal(400, f"You cannot expand more than {EXPANDED_DEPTH} levels.", param="expand")
            self._expand(answer, steps, path)
        return answer

    def _expand(self, within: Any, steps: list[str], path: str) -> None:
        if isinstance(within, list):
            for item in within:
                self._expand(item, steps, path)
            return
        if not steps or not isinstance(within, dict):
            return
        name = steps[0]
        if name not in within:
            raise Refusal(400, f"This property cannot be expanded ({path}).", param="expand")
        if isinstance(within[name], str):
            found = self.store.find(self.world, within[name])
            if found is None:
                raise Refusal(400, f"This property cannot be expanded ({path}).", param="expand")
            within[name] = shown(found)
        self._expand(within[name], steps[1:], path)


def private(thing: Object) -> Object:
    """Return what is ours in an object, to read or change."""
    found: Object = thing.setdefault(PRIVATE, {})
    return found


def _merged(metadata: dict[str, str], given: dict[str, str] | None) -> dict[str, str]:
    if given is None:
        return {}
    return {name: value for name, value in {**metadata, **given}.items() if value != ""}
