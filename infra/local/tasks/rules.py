"""What the service accepts, what it fills in, and what it refuses. No I/O."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import quote, urlsplit

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from infra.local.tasks.flow import Limits
from infra.local.tasks.messages import (
    HttpMethod,
    HttpRequestMessage,
    Queue,
    QueueMessage,
    RateLimitsMessage,
    RetryConfigMessage,
    TaskMessage,
    length,
    moment,
)
from infra.local.tasks.retries import UNLIMITED_ATTEMPTS, RetryPolicy

LOCATION: Final = re.compile(r"projects/[A-Za-z0-9:.-]+/locations/[A-Za-z0-9-]+")
QUEUE: Final = re.compile(LOCATION.pattern + r"/queues/[A-Za-z0-9-]{1,100}")
TASK: Final = re.compile(QUEUE.pattern + r"/tasks/[A-Za-z0-9_-]{1,500}")

DEFAULT_DISPATCHES_PER_SECOND: Final = 500.0
MOST_DISPATCHES_PER_SECOND: Final = 500.0
MOST_BURST: Final = 100  # The service shows 100 for its fastest queues.
DEFAULT_CONCURRENT_DISPATCHES: Final = 1000
MOST_CONCURRENT_DISPATCHES: Final = 5000

DEFAULT_RETRIES: Final = RetryPolicy(
    max_attempts=100,
    max_retry_duration=timedelta(0),
    min_backoff=timedelta(seconds=0.1),
    max_backoff=timedelta(hours=1),
    max_doublings=16,
)

DEFAULT_DISPATCH_DEADLINE: Final = timedelta(minutes=10)
LONGEST_DISPATCH_DEADLINE: Final = timedelta(minutes=30)
FURTHEST_SCHEDULE: Final = timedelta(days=30)
LIFETIME: Final = timedelta(days=31)
assert FURTHEST_SCHEDULE < LIFETIME, "a task that may be scheduled lives to see the day"

MOST_URL_CHARACTERS: Final = 2083
SAFE_IN_URL: Final = "%/:=&?~#+!$,;'@()*[]"  # What a URL may already be made of: encoding it again would change it.
MOST_HEADER_BYTES: Final = 80 * 1024
METHODS_WITH_BODY: Final = (HttpMethod.POST, HttpMethod.PUT, HttpMethod.PATCH)

DURATIONS: Final = ("max_retry_duration", "min_backoff", "max_backoff")
"""The fields of a RetryConfig that are durations."""

QUEUE_FIELDS: Final = ("rate_limits", "retry_config", "stackdriver_logging_config")
"""What a caller may set of a queue. The rest is output only."""

UNEMULATED_QUEUE_FIELDS: Final = ("http_target", "app_engine_routing_override")


class Refused(Exception):
    """A request that the service does not carry out, with its gRPC status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where a test may want it other than the service has it."""

    names_released_after: timedelta = timedelta(hours=24)  # The service: "up to 24 hours".
    queue_names_released_after: timedelta = timedelta(days=7)
    shortest_dispatch_deadline: timedelta = timedelta(seconds=15)
    # The reference says 100 KB, a newer page of quotas 1 MiB: what fits here fits either way.
    most_task_bytes: int = 100 * 1024
    first_hold: timedelta = timedelta(seconds=1)  # Of a queue whose worker answers 429 or 503; zero: never.


def invalid(message: str) -> Refused:
    """Return the refusal of something that could never be accepted."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)


def check_name(pattern: re.Pattern[str], name: str) -> None:
    """Refuse a resource name of another form."""
    if not pattern.fullmatch(name):
        raise invalid(f"the name {name!r} is not of the form {pattern.pattern}")


def queue_of(task_name: str) -> str:
    """Return the name of the queue that a task's name says it is in."""
    return task_name.partition("/tasks/")[0]


def short_id(name: str) -> str:
    """Return the last part of a resource name."""
    return name.rpartition("/")[2]


def encoded_url(url: str) -> str:
    """Return a URL with what may not stand in one encoded."""
    return quote(url, safe=SAFE_IN_URL)


def check_update_mask(mask: FieldMask) -> None:
    """Refuse a mask that names what a caller may not set, or what there is not."""
    for path in mask.paths:
        if path.partition(".")[0] not in (*QUEUE_FIELDS, *UNEMULATED_QUEUE_FIELDS):
            raise invalid(f"update_mask must not name {path!r}")
    if not mask.IsValidForDescriptor(Queue.DESCRIPTOR):
        raise invalid("update_mask names a field that there is not")


def complete_queue(queue: QueueMessage, *, zero_doublings: bool = False) -> None:
    """Check what a caller may set of a queue, and fill in the service's defaults.

    On the wire, zero and nothing are the same, and nothing means the default. Only for doublings would zero make sense,
    too: `zero_doublings` says that it is meant.
    """
    for field in UNEMULATED_QUEUE_FIELDS:
        if queue.HasField(field):
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, f"{field} of a queue is not emulated")
    _complete_retry_config(queue.retry_config, zero_doublings=zero_doublings)
    _complete_rate_limits(queue.rate_limits)


def _complete_retry_config(config: RetryConfigMessage, *, zero_doublings: bool) -> None:
    _check_retry_config(config)
    config.max_attempts = config.max_attempts or DEFAULT_RETRIES.max_attempts
    if not zero_doublings:
        config.max_doublings = config.max_doublings or DEFAULT_RETRIES.max_doublings
    for field in DURATIONS:
        if not config.HasField(field):
            getattr(config, field).FromTimedelta(getattr(DEFAULT_RETRIES, field))
    if length(config.min_backoff) > length(config.max_backoff):
        raise invalid("min_backoff must not be longer than max_backoff")


def _complete_rate_limits(limits: RateLimitsMessage) -> None:
    if not 0 <= limits.max_dispatches_per_second <= MOST_DISPATCHES_PER_SECOND:
        raise invalid(f"max_dispatches_per_second must be above 0 and at most {MOST_DISPATCHES_PER_SECOND:g}")
    if not 0 <= limits.max_concurrent_dispatches <= MOST_CONCURRENT_DISPATCHES:
        raise invalid(f"max_concurrent_dispatches must be above 0 and at most {MOST_CONCURRENT_DISPATCHES}")
    limits.max_dispatches_per_second = limits.max_dispatches_per_second or DEFAULT_DISPATCHES_PER_SECOND
    limits.max_concurrent_dispatches = limits.max_concurrent_dispatches or DEFAULT_CONCURRENT_DISPATCHES
    limits.max_burst_size = min(math.ceil(limits.max_dispatches_per_second), MOST_BURST)


def limits_of(queue: QueueMessage) -> Limits:
    """Return a complete queue's rate limits."""
    rates = queue.rate_limits
    return Limits(
        dispatches_per_second=rates.max_dispatches_per_second,
        burst=rates.max_burst_size,
        concurrent=rates.max_concurrent_dispatches,
    )


def retry_policy(queue: QueueMessage, task: TaskMessage) -> RetryPolicy:
    """Return how a task is retried: by its own configuration, and by the queue's in what that leaves open."""
    config = type(queue.retry_config)()
    config.CopyFrom(queue.retry_config)
    if task.HasField("retry_config"):
        for field, value in task.retry_config.ListFields():
            if isinstance(value, Duration):
                getattr(config, field.name).CopyFrom(value)
            else:
                setattr(config, field.name, value)
    return RetryPolicy(
        max_attempts=config.max_attempts,
        max_retry_duration=length(config.max_retry_duration),
        min_backoff=length(config.min_backoff),
        max_backoff=length(config.max_backoff),
        max_doublings=config.max_doublings,
    )


def complete_task(queue_name: str, task: TaskMessage, now: datetime, settings: Settings) -> None:
    """Check a task that is to be created, drop what is output only, and fill in the defaults, but for its name."""
    for field in ("create_time", "dispatch_count", "response_count", "first_attempt", "last_attempt", "view"):
        task.ClearField(field)
    if task.name:
        check_name(TASK, task.name)
        if queue_of(task.name) != queue_name:
            raise invalid(f"the task {task.name!r} is not of the queue {queue_name!r}")
    if task.HasField("app_engine_http_request"):
        raise Refused(grpc.StatusCode.UNIMPLEMENTED, "app_engine_http_request is not emulated")
    if not task.HasField("http_request"):
        raise invalid("a task needs an http_request")
    _check_url(task.http_request.url)
    _check_headers(task.http_request.headers)
    _complete_request(task.http_request)
    _complete_times(task, now, settings)
    _check_retry_config(task.retry_config)
    if task.ByteSize() > settings.most_task_bytes:
        raise invalid(f"the task has {task.ByteSize()} bytes, and {settings.most_task_bytes} are allowed")


def _check_url(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise invalid("url must begin with http:// or https://")
    if len(encoded_url(url)) > MOST_URL_CHARACTERS:
        raise invalid(f"url must have at most {MOST_URL_CHARACTERS} characters once it is encoded")
    try:
        parts = urlsplit(url)
        _ = parts.port  # Looked at for what it raises.
    except ValueError as problem:
        raise invalid(f"url is malformed: {problem}") from None
    if not parts.hostname or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise invalid("url is malformed")


def _check_headers(headers: Mapping[str, str]) -> None:
    if sum(len(name.encode()) + len(value.encode()) for name, value in headers.items()) >= MOST_HEADER_BYTES:
        raise invalid(f"headers must have less than {MOST_HEADER_BYTES} bytes")
    for name, value in headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(r"[\r\n\x00]", value):
            raise invalid(f"the header {name!r} is malformed")


def _complete_request(request: HttpRequestMessage) -> None:
    request.http_method = request.http_method or HttpMethod.POST
    if request.http_method not in list(HttpMethod):
        raise invalid(f"there is no http_method {request.http_method}")
    if request.body and request.http_method not in METHODS_WITH_BODY:
        raise invalid("a body is allowed with POST, PUT and PATCH only")
    if request.HasField("oauth_token"):
        raise Refused(grpc.StatusCode.UNIMPLEMENTED, "oauth_token is not emulated")
    if request.HasField("oidc_token") and "@" not in request.oidc_token.service_account_email:
        raise invalid("oidc_token needs the service_account_email that it is for")


def _complete_times(task: TaskMessage, now: datetime, settings: Settings) -> None:
    if task.HasField("schedule_time") and moment(task.schedule_time) > now + FURTHEST_SCHEDULE:
        raise invalid(f"schedule_time is more than {FURTHEST_SCHEDULE.days} days ahead")
    if not task.HasField("schedule_time") or moment(task.schedule_time) < now:
        task.schedule_time.FromDatetime(now)
    if not task.HasField("dispatch_deadline"):
        task.dispatch_deadline.FromTimedelta(DEFAULT_DISPATCH_DEADLINE)
    shortest, longest = settings.shortest_dispatch_deadline, LONGEST_DISPATCH_DEADLINE
    if not shortest <= length(task.dispatch_deadline) <= longest:
        raise invalid(f"dispatch_deadline must be {shortest.total_seconds():g} to {longest.total_seconds():g} s")


def _check_retry_config(config: RetryConfigMessage) -> None:
    if config.max_attempts < UNLIMITED_ATTEMPTS:
        raise invalid("max_attempts must be -1 (unlimited) or more")
    if config.max_doublings < 0:
        raise invalid("max_doublings must not be negative")
    for field in DURATIONS:
        if length(getattr(config, field)) < timedelta(0):
            raise invalid(f"{field} must not be negative")
