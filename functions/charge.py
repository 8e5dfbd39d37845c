"""The charge function: create, deliver, read, and the acts, for HTTP callers and for Cloud Tasks."""

from typing import Final

import flask
import functions_framework
from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.routing import BaseConverter, Map, Rule

from shared import answer, api, health, log, wiring
from shared.answer import Answer, by_task, task_of
from shared.api import Problem
from shared.charge import Act, charge_id
from shared.deliver import TaskBody
from shared.gateway import STRIPE_API_VERSION


class _Id(BaseConverter):
    """A charge's id in a path."""

    regex = "[0-9a-f]{40}"


ROUTES: Final = Map(
    [
        Rule("/", methods=["POST"], endpoint="create"),
        Rule("/", methods=["GET"], endpoint="find"),
        Rule("/cancel", methods=["POST"], endpoint="give_up"),
        Rule("/<id:name>", methods=["GET"], endpoint="read"),
        Rule("/<id:name>/deliver", methods=["POST"], endpoint="deliver"),
        *(Rule(f"/<id:name>/{act}", methods=["POST"], endpoint=act.value) for act in Act),
    ],
    converters={"id": _Id},
)


@functions_framework.http
@answer.contained
@health.told
@answer.guarded
def charge(request: flask.Request) -> Answer:
    """Take a charge from a caller or from Cloud Tasks; both may repeat it as often as they like."""
    try:
        endpoint, values = ROUTES.bind_to_environ(request.environ).match()
    except NotFound as error:
        raise Problem(404, "not-found", "There is nothing at this address.") from error
    except MethodNotAllowed as error:
        refused = answer.problem(Problem(405, "method-not-allowed", "This address takes other methods; see Allow."))
        refused.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        return refused
    if endpoint == "create":
        return _create(request)
    if endpoint == "give_up":
        return _give_up(request)
    if endpoint == "deliver":
        return _deliver(request, values["name"])
    if endpoint in {"find", "read"}:
        return _read(request, values.get("name"))
    return _act(request, values["name"], Act(endpoint))


def _create(request: flask.Request) -> Answer:
    parts = wiring.parts("charge")
    raw = request.get_data()
    try:
        key = api.read_idempotency_key(request.headers.get("Idempotency-Key"))
        asked = api.opened(
            key,
            api.parse(raw, request.content_type or "", api.ChargeBody),
            livemode=parts.livemode,
            generation=parts.settings.ledger_generation,
            api_version=STRIPE_API_VERSION,
            now=parts.clock.now(),
        )
        late = api.expires_out_of_range(asked.terms, parts.clock.now())
        if late is not None and parts.charger.read(asked.id) is None:
            raise late
        at_once = by_task(request) or "respond-async" not in request.headers.get("Prefer", "").lower()
        outcome = parts.charger.create(asked, at_once=at_once, task=task_of(request))
        if outcome.refusal == "key_reused":
            raise api.key_reused(asked.terms, outcome.charge)
    except Problem as found:
        if not by_task(request):
            raise
        return _dead_letter(raw, request, found)
    if by_task(request):
        return answer.to_task(outcome)
    return answer.to_caller(outcome, parts.clock.now(), parts.settings.charge_url, parts.show)


def _dead_letter(raw: bytes, request: flask.Request, found: Problem) -> Answer:
    """Keep a task that can never work where a person finds it."""
    parts = wiring.parts("charge")
    name = parts.letters.keep(
        idempotency_key=request.headers.get("Idempotency-Key", ""),
        body=raw,
        problem=found.kind,
        detail=found.detail,
    )
    log.error("a task can never work and was kept as a dead letter", dead_letter=name, problem=found.kind)
    return answer.as_json({"dead_letter": name, "problem": found.body()}, 200)


def _deliver(request: flask.Request, name: str) -> Answer:
    parts = wiring.parts("charge")
    body = TaskBody.read(request.get_data()) if by_task(request) else TaskBody()
    outcome = parts.charger.deliver(
        name, by_task=by_task(request), epoch=body.epoch, task=task_of(request), unheard=body.unheard
    )
    if outcome is None:
        return _unknown_id(request, name)
    if by_task(request):
        return answer.to_task(outcome)
    return answer.to_caller(outcome, parts.clock.now(), parts.settings.charge_url, parts.show)


def _unknown_id(request: flask.Request, name: str) -> Answer:
    if not by_task(request):
        raise Problem(404, "not-found", "There is no such charge.")
    return answer.unknown_charge(request, name, wiring.parts("charge").clock.now())


def _read(request: flask.Request, name: str | None) -> Answer:
    parts = wiring.parts("charge")
    if name is None:
        key = api.read_idempotency_key(request.headers.get("Idempotency-Key"))
        name = charge_id(request.args.get("account"), key)
    found = parts.charger.read(name)
    if found is None:
        raise Problem(404, "not-found", "No such charge is recorded (yet).")
    read = answer.as_json(parts.show(found), 200)
    read.headers["ETag"] = f'"{found.version}"'
    return read


def _act(request: flask.Request, name: str, act: Act) -> Answer:
    parts = wiring.parts("charge")
    version = api.read_version(request.headers.get("If-Match"))
    body = api.parse(request.get_data(), request.content_type or "", api.ACT_BODIES[act])
    outcome = parts.charger.act(name, api.chosen(act, body), version=version)
    if outcome is None:
        raise Problem(404, "not-found", "There is no such charge.")
    return answer.to_caller(outcome, parts.clock.now(), parts.settings.charge_url, parts.show)


def _give_up(request: flask.Request) -> Answer:
    parts = wiring.parts("charge")
    key = api.read_idempotency_key(request.headers.get("Idempotency-Key"))
    body = api.parse(request.get_data(), request.content_type or "", api.CancelByKeyBody)
    outcome = parts.charger.give_up(body.account, key, livemode=parts.livemode, actor=body.actor, note=body.reason)
    return answer.to_caller(outcome, parts.clock.now(), parts.settings.charge_url, parts.show)
