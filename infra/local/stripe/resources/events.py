"""Events and webhook endpoints."""

import json
from typing import Any

from infra.local.stripe.call import Call
from infra.local.stripe.store import Object, shown

UNDELIVERED = "EXISTS (SELECT 1 FROM delivery WHERE delivery.event = object.id AND delivery.state != 'delivered')"


def retrieve(call: Call) -> Object:
    """GET /v1/events/{id}."""
    return call.expanded(call.outbox.rendered(call.in_path("event")))


def listed(call: Call) -> Object:
    """GET /v1/events: `delivery_success=false` are those that some endpoint has not accepted (yet)."""
    where: list[tuple[str, Any]] = []
    types = call.params.get("types") or ([call.params["type"]] if "type" in call.params else [])
    if types:
        # As JSON, so that it is one value however many types there are; `payment_intent.*` is a pattern.
        pattern = "SELECT 1 FROM json_each(?) WHERE json_extract(body, '$.type') GLOB json_each.value"
        where.append((f"EXISTS ({pattern})", json.dumps(types)))
    if "delivery_success" in call.params:
        where.append((f"NOT {UNDELIVERED}" if call.params["delivery_success"] else UNDELIVERED, None))
    page = call.listed("event", "/v1/events", where)
    page["data"] = [call.outbox.rendered(event) for event in page["data"]]
    return call.expanded(page)


def create_endpoint(call: Call) -> Object:
    """POST /v1/webhook_endpoints: the only answer that shows the secret."""
    params = call.params
    secret = f"whsec_{call.store.new_id('s')[2:]}"
    endpoint = call.new(
        "we",
        "webhook_endpoint",
        api_version=params.get("api_version"),
        application=None,
        description=params.get("description"),
        enabled_events=params["enabled_events"],
        metadata={},
        status="enabled",
        url=params["url"],
        _={"secrets": [secret], "connect": bool(params.get("connect"))},
    )
    call.copy(endpoint)
    call.keep(endpoint)
    call.outbox.reload()
    return {**shown(endpoint), "secret": secret}


def retrieve_endpoint(call: Call) -> Object:
    """GET /v1/webhook_endpoints/{id}."""
    return shown(call.in_path("webhook_endpoint"))


def list_endpoints(call: Call) -> Object:
    """GET /v1/webhook_endpoints."""
    return call.listed("webhook_endpoint", "/v1/webhook_endpoints")


def delete_endpoint(call: Call) -> Object:
    """DELETE /v1/webhook_endpoints/{id}: nothing more is sent there."""
    endpoint = call.in_path("webhook_endpoint")
    call.store.db.execute("DELETE FROM object WHERE id = ?", (endpoint["id"],))
    call.outbox.reload()
    return {"id": endpoint["id"], "object": "webhook_endpoint", "deleted": True}
