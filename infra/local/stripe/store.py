"""Everything the double remembers, in one SQLite database: objects, keys, deliveries, and work that is due later.

An answer, the effects it reports and the key it is saved under are committed together, so a double that is killed has
either done a request and will replay it, or has never heard of it.
"""

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

Object = dict[str, Any]
"""One Stripe object as JSON. What is ours and not Stripe's to show is under `PRIVATE`."""

PRIVATE: Final = "_"

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS object (
    sequence INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    world TEXT NOT NULL,
    kind TEXT NOT NULL,
    created INTEGER NOT NULL,
    status TEXT,
    customer TEXT,
    payment_intent TEXT,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS object_of_kind ON object (kind, world, sequence);
-- Stripe's word: at most one successful charge on a PaymentIntent.
CREATE UNIQUE INDEX IF NOT EXISTS one_success ON object (payment_intent) WHERE kind = 'charge' AND status = 'succeeded';
CREATE TABLE IF NOT EXISTS idempotency_key (
    scope TEXT NOT NULL,
    key TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    parameters TEXT NOT NULL,
    status INTEGER NOT NULL,
    headers TEXT NOT NULL,
    body BLOB NOT NULL,
    request_id TEXT NOT NULL,
    created REAL NOT NULL,
    PRIMARY KEY (scope, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS delivery (
    id INTEGER PRIMARY KEY,
    event TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    due REAL NOT NULL,
    created REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS later (
    id INTEGER PRIMARY KEY,
    due REAL NOT NULL,
    kind TEXT NOT NULL,
    world TEXT NOT NULL,
    detail TEXT NOT NULL
);
"""

LISTED_AT_MOST: Final = 100


@dataclass(frozen=True, slots=True)
class World:
    """Where an object lives: one account, live or test. Nothing is seen from one world in another."""

    account: str
    livemode: bool

    @property
    def name(self) -> str:
        """The world in one word."""
        return f"{self.account}/{'live' if self.livemode else 'test'}"

    @classmethod
    def named(cls, name: str) -> "World":
        """Return the world of that name."""
        account, _, mode = name.partition("/")
        return cls(account, mode == "live")


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is asked for."""

    limit: int = 10
    starting_after: str | None = None
    ending_before: str | None = None


@dataclass(frozen=True, slots=True)
class Later:
    """Work that falls due by the clock."""

    id: int
    due: float
    kind: str
    world: World
    detail: Object


class Store:
    """One SQLite database. Not thread-safe: the engine holds its lock around every use."""

    def __init__(self, database: str, seed: int | str | None) -> None:
        self.db = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
        if database != ":memory:":
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=NORMAL")
        self.db.executescript(SCHEMA)
        self._seed = self.setting("seed")
        if self._seed is None:
            self._seed = str(seed) if seed is not None else secrets.token_hex(8)
            self.set("seed", self._seed)
        self._serial = int(self.setting("serial") or 0)
        self._saved_serial = self._serial

    def close(self) -> None:
        """Close the database."""
        self.db.close()

    # --- Settings and ids ---------------------------------------------------------------------------------------------

    def setting(self, name: str) -> str | None:
        """Return a setting, or None."""
        row = self.db.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set(self, name: str, value: str) -> None:
        """Keep a setting."""
        self.db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))

    def new_id(self, prefix: str) -> str:
        """Return an id never given before; the same seed gives the same ids in the same order."""
        self._serial += 1
        digest = hashlib.blake2b(f"{self._seed}:{self._serial}".encode(), digest_size=12).hexdigest()
        return f"{prefix}_{digest}"

    # --- Transactions -------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all of it, or nothing."""
        self.begin()
        try:
            yield
        except BaseException:
            self.rollback()
            raise
        self.commit()

    def begin(self) -> None:
        """Begin a transaction."""
        self.db.execute("BEGIN")

    def commit(self) -> None:
        """Commit, and with it the ids given so far: none is given again after a restart."""
        if self._serial != self._saved_serial:
            self.set("serial", str(self._serial))
            self._saved_serial = self._serial
        self.db.execute("COMMIT")

    def rollback(self) -> None:
        """Undo what was done since `begin`."""
        self.db.execute("ROLLBACK")
        self._saved_serial = -1

    # --- Objects ------------------------------------------------------------------------------------------------------

    def insert(self, world: World, thing: Object) -> Object:
        """Keep a new object."""
        self.db.execute(
            "INSERT INTO object (id, world, kind, created, status, customer, payment_intent, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                thing["id"],
                world.name,
                thing["object"],
                int(thing.get("created", 0)),
                thing.get("status"),
                thing.get("customer"),
                thing.get("payment_intent"),
                json.dumps(thing),
            ),
        )
        return thing

    def update(self, thing: Object) -> None:
        """Keep an object's new state."""
        self.db.execute(
            "UPDATE object SET status = ?, customer = ?, body = ? WHERE id = ?",
            (thing.get("status"), thing.get("customer"), json.dumps(thing), thing["id"]),
        )

    def find(self, world: World, name: str, kind: str | None = None) -> Object | None:
        """Return one object of this world, or None."""
        row = self.db.execute("SELECT kind, body FROM object WHERE id = ? AND world = ?", (name, world.name)).fetchone()
        if row is None or (kind is not None and row[0] != kind):
            return None
        found: Object = json.loads(row[1])
        return found

    def world_of(self, name: str) -> World | None:
        """Return the world an object lives in, or None."""
        row = self.db.execute("SELECT world FROM object WHERE id = ?", (name,)).fetchone()
        return None if row is None else World.named(row[0])

    def all(self, kind: str, world: World | None = None, **columns: str) -> list[Object]:
        """Return every object of a kind, oldest first; `columns` are `status`, `customer` or `payment_intent`."""
        where, values = ["kind = ?"], [kind]
        if world is not None:
            columns = {"world": world.name, **columns}
        for column, value in columns.items():
            where.append(f"{column} = ?")
            values.append(value)
        query = f"SELECT body FROM object WHERE {' AND '.join(where)} ORDER BY sequence"  # noqa: S608 - no input in it.
        return [json.loads(body) for (body,) in self.db.execute(query, values)]

    def page(
        self, world: World, kind: str, page: Page, where: Sequence[tuple[str, Any]] = ()
    ) -> tuple[list[Object], bool]:
        """Return one page, newest first, and whether there is more. `where` are conditions of ours, with values."""
        conditions = [("world = ?", world.name), ("kind = ?", kind), *where]
        backwards = page.ending_before is not None
        if page.starting_after is not None:
            conditions.append(("sequence < (SELECT sequence FROM object WHERE id = ?)", page.starting_after))
        if page.ending_before is not None:
            conditions.append(("sequence > (SELECT sequence FROM object WHERE id = ?)", page.ending_before))
        query = (
            f"SELECT body FROM object WHERE {' AND '.join(text for text, _ in conditions)}"  # noqa: S608 - as above.
            f" ORDER BY sequence {'ASC' if backwards else 'DESC'} LIMIT ?"
        )
        values = [value for text, value in conditions if "?" in text]
        rows = [json.loads(body) for (body,) in self.db.execute(query, (*values, page.limit + 1))]
        found = rows[: page.limit]
        return (found[::-1] if backwards else found), len(rows) > page.limit

    # --- Work that is due later ---------------------------------------------------------------------------------------

    def add_later(self, due: float, kind: str, world: World, detail: Object) -> None:
        """Remember work for a time to come."""
        self.db.execute(
            "INSERT INTO later (due, kind, world, detail) VALUES (?, ?, ?, ?)",
            (due, kind, world.name, json.dumps(detail)),
        )

    def next_later(self, now: float) -> Later | None:
        """Return what has been due longest, or None."""
        row = self.db.execute("SELECT * FROM later WHERE due <= ? ORDER BY due, id LIMIT 1", (now,)).fetchone()
        return None if row is None else Later(row[0], row[1], row[2], World.named(row[3]), json.loads(row[4]))

    def later(self) -> list[Later]:
        """Return all work that is due later, soonest first."""
        rows = self.db.execute("SELECT * FROM later ORDER BY due, id")
        return [Later(row[0], row[1], row[2], World.named(row[3]), json.loads(row[4])) for row in rows]

    def forget_later(self, later: Later) -> None:
        """Remove work, as it is being done."""
        self.db.execute("DELETE FROM later WHERE id = ?", (later.id,))

    def reset(self) -> None:
        """Forget everything but the seed; ids go on, so that none is given twice."""
        for table in ("object", "idempotency_key", "delivery", "later"):
            self.db.execute(f"DELETE FROM {table}")  # noqa: S608 - a table of ours.


def shown(thing: Object) -> Object:
    """Return what Stripe would show of an object."""
    return {name: value for name, value in thing.items() if name != PRIVATE}
