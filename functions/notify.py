'''The notify function: tells one notice to one party. Cloud Tasks posts to `/{charge_id}/{number}` until it is 2xx.

A customer, the owner of an account and the operator get mail. The caller's system gets a POST to OUTCOME_URL: the
charge as JSON, at least once, signed as Standard Webhooks has it (www.standardwebhooks.com has libraries). It answers
2xx within ten seconds, and ignores a charge whose `version` is not above the one it knows: messages may come twice, and
in any order. `paidonce notices secret` prints its secret, which is good for nothing else. A receiver in Python, with
nothing but what Python has:

    import base64, hashlib, hmac, json, time

    def read_outcome(headers, body: bytes, secret: str):
        """Return the charge, or raise ValueError for what is not from us."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
        signatures = [each.removeprefix("v1,") for each in headers["webhook-signature"].split()]
        if not any(hmac.compare_digest(expected, each) for each in signatures):
            raise ValueError("not signed with this secret")
        if abs(time.time() - int(headers["webhook-timestamp"])) > 300:
            raise ValueError("too old: it may be a replay")
        return json.loads(body)
'''

from typing import Final

import flask
import functions_framework
from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.routing import Map, Rule

from shared import answer, health, log, wiring
from shared.answer import Answer
from shared.api import Problem
from shared.ledger import LedgerUnavailable
from shared.mail import ServerDown
from shared.notices import NotYet

MAIL_DOWN_SECONDS: Final = 30  # Asked of the queue while the mail server as a whole takes nothing.

ROUTES: Final = Map([Rule("/<string(length=40):name>/<int:number>", methods=["POST"])])


@functions_framework.http
@answer.contained
@health.told
@answer.guarded
def notify(request: flask.Request) -> Answer:
    """Tell a notice. 2xx ends the task, 409 brings it again, 503 slows the whole queue as well."""
    try:
        _, values = ROUTES.bind_to_environ(request.environ).match()
    except NotFound as error:
        raise Problem(404, "not-found", "There is nothing at this address.") from error
    except MethodNotAllowed as error:
        refused = answer.problem(Problem(405, "method-not-allowed", "Post to it."))
        refused.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        return refused
    return _tell(request, values["name"], values["number"])


def _tell(request: flask.Request, name: str, number: int) -> Answer:
    parts = wiring.parts("notify")
    assert parts.notifier is not None, "the notify function is built with one"
    parts.gate.check()
    try:
        result = parts.notifier.tell(name, number)
    except NotYet as reason:
        log.warning("a notice waits", charge=name, number=number, reason=str(reason))
        return answer.as_json({"charge": name, "notice": number, "result": "later"}, 409)
    except ServerDown as reason:
        log.error("the mail server takes nothing", charge=name, number=number, reason=str(reason))
        down = answer.as_json({"charge": name, "notice": number, "result": "later"}, 503)
        down.headers["Retry-After"] = str(MAIL_DOWN_SECONDS)
        return down
    except LedgerUnavailable:
        raise
    except Exception:  # noqa: BLE001 - a bug of any kind: it is shown to a person, and the notice waits for the fix.
        log.exception("a notice could not be told", charge=name, number=number)
        return answer.as_json({"charge": name, "notice": number, "result": "later"}, 409)
    if result is None:
        return answer.unknown_charge(request, name, parts.clock.now())
    log.info("notice", charge=name, number=number, result=result)
    return answer.as_json({"charge": name, "notice": number, "result": result}, 200)
