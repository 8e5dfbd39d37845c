"""What Stripe refuses, in Stripe's shape.

Who must act tells the classes of status apart: 400 and 404 the developer, 401 and 403 whoever holds the API keys,
402 the customer, 409 and 429 nobody (send again), 5xx nobody knows.
"""

from typing import Any, Final

DOCUMENTATION: Final = "https://stripe.com/docs/error-codes/"
LOG: Final = "https://dashboard.stripe.com/test/logs/"


class Refusal(Exception):
    """A request that is answered with an error.

    `saved` says whether the answer is kept under the idempotency key if it arises while the endpoint runs;
    `keeps_effects` whether what the endpoint had done by then stays done (a declined charge is a record).
    """

    def __init__(  # noqa: PLR0913 - an error body has that many parts.
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - Stripe's name for it.
        code: str | None = None,
        param: str | None = None,
        saved: bool = True,
        keeps_effects: bool = False,
        headers: dict[str, str] | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.saved = saved
        self.keeps_effects = keeps_effects
        self.headers = headers or {}
        self.error = {"type": type, "code": code, "message": message, "param": param, **details}

    def body(self, request_id: str | None) -> dict[str, Any]:
        """Return the error object as it is sent."""
        error = {name: value for name, value in self.error.items() if value is not None}
        if "code" in error:
            error["doc_url"] = DOCUMENTATION + str(error["code"]).replace("_", "-")
        if request_id is not None:
            error["request_log_url"] = LOG + request_id
        return {"error": error}


def not_found(kind: str, name: str) -> Refusal:
    """Nothing of that id, named in the path."""
    param = "intent" if kind == "payment_intent" else "id"
    return Refusal(404, f"No such {kind}: '{name}'", code="resource_missing", param=param)


def no_such(kind: str, name: str, param: str) -> Refusal:
    """Nothing of that id, named in a parameter."""
    return Refusal(400, f"No such {kind}: '{name}'", code="resource_missing", param=param)


def missing(param: str) -> Refusal:
    """A parameter that must be there is not."""
    return Refusal(400, f"Missing required param: {param}.", code="parameter_missing", param=param)


def server_error() -> Refusal:
    """The 500 that says nothing about what happened."""
    message = "An error occurred while processing the request. We have been notified of the problem."
    return Refusal(500, message, type="api_error", headers={"Stripe-Should-Retry": "false"})


def dependency_failed() -> Refusal:
    """The 424: something Stripe relies on failed, with or without having acted."""
    return Refusal(424, "The request could not be completed: an external dependency failed.", type="api_error")


def lock_timeout() -> Refusal:
    """Somebody else is changing the object at this moment; nothing was done."""
    message = (
        "This object cannot be accessed right now because another API request or Stripe process is currently "
        "accessing it. If you see this error intermittently, retry the request."
    )
    return Refusal(429, message, code="lock_timeout", saved=False, headers={"Stripe-Should-Retry": "true"})


def rate_limited(reason: str) -> Refusal:
    """A limiter refused the request before anything looked at its key."""
    headers = {"Stripe-Rate-Limited-Reason": reason}
    return Refusal(429, "Request rate limit exceeded.", code="rate_limit", saved=False, headers=headers)


def invalid_api_key(key: str) -> Refusal:
    """Nobody has this API key, or nobody has it any more."""
    shown = f"{key[:8]}{'*' * 8}" if key else "(none)"
    return Refusal(401, f"Invalid API Key provided: {shown}", saved=False)


def no_permission(operation: str) -> Refusal:
    """A restricted API key asks for what it may not do."""
    message = f"The provided key does not have the required permissions for this endpoint ({operation})."
    return Refusal(403, message, code="more_permissions_required", saved=False)


def key_in_use(key: str) -> Refusal:
    """The twin of this request is running at this moment."""
    message = (
        "There is currently another in-progress request using this Idempotent Key (that probably means you submitted "
        f"twice, and the other request is still going through): {key}. Please try again later."
    )
    return Refusal(409, message, type="idempotency_error", code="idempotency_key_in_use", saved=False)
