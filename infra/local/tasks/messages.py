"""The service's messages, as plain protobuf.

google-cloud-tasks wraps each in a class that converts at every access; beneath are the messages that gRPC carries and
SQLite keeps, whose times and durations convert when asked to. They have no static types.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

from google.cloud import tasks_v2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

QueueMessage: TypeAlias = Any
TaskMessage: TypeAlias = Any
RateLimitsMessage: TypeAlias = Any
RetryConfigMessage: TypeAlias = Any
HttpRequestMessage: TypeAlias = Any

Queue: Final = tasks_v2.Queue.pb()
Task: Final = tasks_v2.Task.pb()
State: Final = tasks_v2.Queue.State
View: Final = tasks_v2.Task.View
HttpMethod: Final = tasks_v2.HttpMethod


def moment(timestamp: Timestamp) -> datetime:
    """Return a timestamp as a time in UTC, truncated to the microsecond."""
    return timestamp.ToDatetime(tzinfo=UTC)


def length(duration: Duration) -> timedelta:
    """Return a duration, truncated to the microsecond."""
    return duration.ToTimedelta()
