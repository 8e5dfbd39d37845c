"""The control API, `/_double/…`: what tests and people do to the double that no client of Stripe's could.

Bodies and answers are JSON. `COMMANDS` is all of it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from infra.local.stripe.engine import Engine
from infra.local.stripe.errors import Refusal
from infra.local.stripe.faults import FAULTS, Fault
from infra.local.stripe.tally import DEFAULT_METADATA_KEY
from infra.local.stripe.wire import Headers, Response

PREFIX: Final = "/_double"
JSON: Final = Headers({"Content-Type": "application/json"})

Body = Mapping[str, Any]


def handle(engine: Engine, method: str, target: str, body: bytes) -> Response:
    """Answer one request to the control API."""
    path, _, query = target.partition("?")
    name, _, rest = unquote(path).removeprefix(PREFIX).strip("/").partition("/")
    command = COMMANDS.get((method, name)) or COMMANDS.get((method, f"{name}/{rest}"))
    if command is None:
        known = sorted(f"{m} {PREFIX}/{n}" for m, n in COMMANDS)
        return _answer(404, {"error": f"Unknown: {method} {path}.", "known": known})
    try:
        given = {key: values[-1] for key, values in parse_qs(query).items()} | json.loads(body or b"{}")
        return _answer(200, command(engine, {**given, "_rest": rest} if rest else given))
    except Refusal as refusal:
        return _answer(refusal.status, refusal.body(None))
    except (KeyError, TypeError, ValueError) as error:
        return _answer(400, {"error": f"{type(error).__name__}: {error}"})


def _answer(status: int, content: Any) -> Response:
    return Response(status, JSON, json.dumps(content, indent=2).encode())


# --- Faults -----------------------------------------------------------------------------------------------------------


def _list_faults(engine: Engine, _: Body) -> Any:
    kinds = {fault: {**asdict(effect), "layer": effect.layer.name.lower()} for fault, effect in FAULTS.items()}
    return {"rules": [rule.to_dict() for rule in engine.faults.rules], "kinds": kinds}


def _add_fault(engine: Engine, body: Body) -> Any:
    return engine.fail_next(
        Fault(body["fault"]), **{key: value for key, value in body.items() if key != "fault"}
    ).to_dict()


def _remove_faults(engine: Engine, body: Body) -> Any:
    if "_rest" in body:
        return {"removed": engine.faults.remove(int(body["_rest"]))}
    engine.faults.clear()
    return {"removed": True}


# --- Time and keys ----------------------------------------------------------------------------------------------------


def _read_clock(engine: Engine, _: Body) -> Any:
    return {"now": engine.now(), "later": engine.later_times()}


def _move_clock(engine: Engine, body: Body) -> Any:
    engine.advance(float(body["advance"]) if "advance" in body else float(body["set"]) - engine.now())
    return _read_clock(engine, {})


def _api_keys(engine: Engine, body: Body) -> Any:
    match body.get("_rest"):
        case "revoke":
            engine.api_keys.revoke(body["key"])
        case "restore":
            engine.api_keys.restore(body["key"])
        case "restrict":
            engine.api_keys.restrict(body["key"], list(body["operations"]))
        case other:
            raise ValueError(f"revoke, restore or restrict, not {other}")
    return {"done": True}


def _accounts(engine: Engine, body: Body) -> Any:
    match body.get("_rest"):
        case "connect":
            engine.connect(body["account"])
        case "disconnect":
            engine.disconnect(body["account"])
        case other:
            raise ValueError(f"connect or disconnect, not {other}")
    return {"done": True}


# --- Webhooks and lists -----------------------------------------------------------------------------------------------


def _read_webhooks(engine: Engine, _: Body) -> Any:
    return {**engine.disturbance.to_dict(), "deliveries": engine.deliveries()}


def _webhooks(engine: Engine, body: Body) -> Any:
    match body.get("_rest"):
        case "flush":
            return {"due": engine.flush_deliveries()}
        case "drop":
            return {"lost": engine.drop_deliveries()}
        case "resend":
            return {"due": engine.resend(body["event"])}
    changed = replace(engine.disturbance, **body)
    for name, value in changed.to_dict().items():
        setattr(engine.disturbance, name, value)
    return changed.to_dict()


def _lag(engine: Engine, body: Body) -> Any:
    engine.lag.list_seconds = float(body.get("list_seconds", engine.lag.list_seconds))
    engine.lag.search_seconds = float(body.get("search_seconds", engine.lag.search_seconds))
    return asdict(engine.lag)


def _reset(engine: Engine, _: Body) -> Any:
    engine.reset()
    return {"done": True}


COMMANDS: Final[Mapping[tuple[str, str], Callable[[Engine, Body], Any]]] = {
    ("GET", "faults"): _list_faults,
    ("POST", "faults"): _add_fault,
    ("DELETE", "faults"): _remove_faults,
    ("GET", "clock"): _read_clock,
    ("POST", "clock"): _move_clock,
    ("GET", "keys"): lambda engine, _: {"keys": engine.key_records()},
    ("POST", "prune"): lambda engine, body: {"pruned": engine.prune_keys(float(body.get("older_than_seconds", 0)))},
    ("POST", "api_keys"): _api_keys,
    ("POST", "accounts"): _accounts,
    ("GET", "webhooks"): _read_webhooks,
    ("POST", "webhooks"): _webhooks,
    ("POST", "lag"): _lag,
    ("POST", "settle"): lambda engine, body: engine.settle(body["payment_intent"], succeeds=body.get("succeeds")),
    ("POST", "authenticate"): lambda engine, body: engine.authenticate(
        body["intent"], succeeds=body.get("succeeds", True)
    ),
    ("POST", "checkout"): lambda engine, body: engine.complete_checkout(
        body["session"], body.get("card", "pm_card_visa")
    ),
    ("GET", "tally"): lambda engine, body: engine.tally(body.get("metadata_key", DEFAULT_METADATA_KEY)).to_dict(),
    ("GET", "objects"): lambda engine, body: {"data": engine.objects(body["kind"])},
    ("GET", "requests"): lambda engine, _: {"requests": engine.logged()},
    ("POST", "reset"): _reset,
}
