"""The reconcile function: for what nothing redelivers. Cloud Scheduler calls it every minute."""

import flask
import functions_framework

from shared import answer, log, wiring
from shared.answer import Answer
from shared.api import Problem


@functions_framework.http
@answer.guarded
def reconcile(request: flask.Request) -> Answer:
    """Sweep: give every open charge that is overdue a new task. Safe to run twice at once."""
    if request.path != "/":
        raise Problem(404, "not-found", "There is nothing at this address.")
    if request.method != "POST":
        refused = answer.problem(Problem(405, "method-not-allowed", "Post to it."))
        refused.headers["Allow"] = "POST"
        return refused
    swept = wiring.parts("reconcile").charger.sweep()
    log.info("swept", charges=swept)
    return answer.as_json({"swept": swept}, 200)
