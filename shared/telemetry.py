"""Traces and metrics, by OpenTelemetry: OTLP over gRPC to OTEL_EXPORTER_OTLP_ENDPOINT. Where that is not set: nothing.

    with telemetry.span("create_task"):
        ...
    telemetry.count("deliveries", result="done")

Google takes OTLP at https://telemetry.googleapis.com, and shows it in Cloud Trace and Cloud Monitoring. The SDK is
imported by `start` alone, so that who does not send does not wait for it either.

Nothing here runs by a timer, for Cloud Run gives CPU to requests alone: what has been gathered goes out at the end of a
request, before the answer, and when the instance ends. An answer waits for that half a second at most, once a minute if
nobody takes it. What is lost is lost: nothing of a charge depends on it.
"""

import atexit
import contextlib
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from shared import __version__, log
from shared.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

    Exporters = tuple[SpanExporter, MetricExporter]

COUNTERS: Final = {
    "charges": "Charges that came to a status, by that status.",
    "deliveries": "Deliveries, by what they came to.",
    "commits": "Commits to Datastore, by call and result.",
    "stripe_calls": "Calls of Stripe, by operation and result.",
}
UNKNOWN_SECONDS: Final = "unknown_seconds"
DURATIONS: Final = {
    UNKNOWN_SECONDS: "How long charges were recorded as unknown that are so no more, by what they became."
}
BOUNDARIES: Final = (1, 5, 15, 60, 300, 900, 3600, 6 * 3600, 24 * 3600)  # From one repetition to the life of a key.

PATIENCE_SECONDS: Final = (
    0.5  # For an answer to wait. It takes some 20 ms; what takes longer goes on beside the next request.
)
EXPORT_SECONDS: Final = 4.0  # For one export to take: two of them fit into the ten seconds that an instance has to end.
GIVEN_UP_SECONDS: Final = 60.0  # How long nothing is tried after a failure.
METRICS_EVERY_SECONDS: Final = (
    60.0  # Cloud Monitoring refuses a series that is written more often than every five seconds.
)
SPANS_KEPT: Final = 2048  # Some hundred charges' worth.
POINTS: Final = 200  # The most that Google takes in one request.
assert PATIENCE_SECONDS < EXPORT_SECONDS < GIVEN_UP_SECONDS


@contextlib.contextmanager
def span(name: str, **attributes: object) -> Iterator[None]:
    """Trace what happens within, as a part of the request's trace. It also decorates functions."""
    if _running is None:
        yield
        return
    with _running.span(name, attributes):
        yield


def note(**attributes: object) -> None:
    """Add to the span that is open here."""
    if _running is not None:
        _running.note(attributes)


def count(counter: str, **labels: object) -> None:
    """Count something, by labels of few values."""
    if _running is not None:
        _running.count(counter, labels)


def measure(duration: str, seconds: float, **labels: object) -> None:
    """Add a duration to a distribution."""
    if _running is not None:
        _running.measure(duration, seconds, labels)


@contextlib.contextmanager
def request(headers: log.Headers) -> Iterator[None]:
    """Log and trace as a part of this request's trace, and send what was gathered before it is answered."""
    with log.request(headers):
        try:
            yield
        finally:
            if _running is not None:
                _running.send(PATIENCE_SECONDS)


def start(settings: Settings) -> None:
    """Begin to gather, if there is somewhere to send it to. Never raises, and connects to nothing yet."""
    if settings.otlp_endpoint is None:
        return
    try:
        use(Telemetry(settings.otlp_endpoint, settings.project))
    except Exception:  # noqa: BLE001 - whatever it is, charges go on without it.
        log.exception("traces and metrics could not be started")


def use(telemetry: "Telemetry | None") -> None:
    """Gather here; None: no more."""
    global _running  # noqa: PLW0603 - one process, one place to send to.
    if _running is not None:
        atexit.unregister(_running.end)
    _running = telemetry
    if telemetry is not None:
        atexit.register(telemetry.end)  # gunicorn's worker ends in order after SIGTERM, once its requests are answered.


class Telemetry:
    """What is gathered, and the way out. Threads share it.

    The SDK's own variables hold besides: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER. By default a
    trace is recorded if the caller of the function, which is Cloud Run, records it.
    """

    def __init__(self, endpoint: str, project: str) -> None:
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import SpanProcessor, TracerProvider  # noqa: PLC0415

        logging.getLogger("opentelemetry").propagate = False  # What fails is logged here, once.
        logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
        ended: deque[ReadableSpan] = deque(maxlen=SPANS_KEPT)

        class Keep(SpanProcessor):
            def on_end(self, span: "ReadableSpan") -> None:
                ended.append(span)

        place = {"gcp.project_id": project} if project else {}
        resource = Resource.create(
            {"service.version": __version__, "service.instance.id": str(uuid.uuid4()), **place},
        )
        self._endpoint = endpoint
        self._trace = trace
        self._ended = ended
        # Providers of our own: were they made global, Google's libraries would trace by them as well.
        tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        tracers.add_span_processor(Keep())
        self._tracer = tracers.get_tracer("paidonce", __version__)
        self._reader = InMemoryMetricReader()
        meters = MeterProvider([self._reader], resource=resource, shutdown_on_exit=False)
        meter = meters.get_meter("paidonce", __version__)
        self._counters = {
            name: meter.create_counter(f"paidonce.{name}", description=text) for name, text in COUNTERS.items()
        }
        self._durations = {
            name: meter.create_histogram(
                f"paidonce.{name}", unit="s", description=text, explicit_bucket_boundaries_advisory=BOUNDARIES
            )
            for name, text in DURATIONS.items()
        }
        self._sending = threading.Lock()
        self._exporters: Exporters | None = None
        self._measured = False
        self._metrics_at = -METRICS_EVERY_SECONDS
        self._given_up_until = 0.0

    # --- Gathering ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def span(self, name: str, attributes: dict[str, object]) -> Iterator[None]:
        """Trace what happens within; lines logged there belong to it. Of an exception, its class is kept."""
        with self._tracer.start_as_current_span(
            name, self._parent(), attributes=_plain(attributes), record_exception=False, set_status_on_exception=False
        ) as opened:
            context = opened.get_span_context()
            with log.within(
                log.Trace(
                    trace_id=f"{context.trace_id:032x}",
                    span_id=f"{context.span_id:016x}",
                    sampled=context.trace_flags.sampled,
                )
            ):
                try:
                    yield
                except BaseException as error:
                    opened.set_attribute("error.type", type(error).__name__)
                    opened.set_status(self._trace.StatusCode.ERROR)
                    raise

    def note(self, attributes: dict[str, object]) -> None:
        """Add to the span that is open here."""
        self._trace.get_current_span().set_attributes(_plain(attributes))

    def count(self, counter: str, labels: dict[str, object]) -> None:
        """Count one."""
        self._counters[counter].add(1, _plain(labels))
        self._measured = True

    def measure(self, duration: str, seconds: float, labels: dict[str, object]) -> None:
        """Add one."""
        self._durations[duration].record(seconds, _plain(labels))
        self._measured = True

    def _parent(self) -> "Context | None":
        """Return what the request's own headers say that it is a part of; None: a span of ours is open, or nothing."""
        trace, remote = self._trace, log.trace()
        if trace.get_current_span().get_span_context().is_valid or remote is None or remote.span_id is None:
            return None
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if remote.sampled else trace.TraceFlags.DEFAULT)
        context = trace.SpanContext(
            int(remote.trace_id, 16), int(remote.span_id, 16), is_remote=True, trace_flags=flags
        )
        parent: Context = trace.set_span_in_context(trace.NonRecordingSpan(context))
        return parent

    # --- Sending ------------------------------------------------------------------------------------------------------

    def send(self, patience_seconds: float) -> None:
        """Send what was gathered, if anything is due; wait so long for it, and let it go on by itself then."""
        if not self._due():
            return
        sending = threading.Thread(target=self._send, daemon=True)
        try:
            sending.start()
        except RuntimeError:  # No thread is to be had: what was gathered goes with a later request.
            return
        sending.join(patience_seconds)
        if sending.is_alive():
            self._given_up_until = time.monotonic() + GIVEN_UP_SECONDS

    def end(self) -> None:
        """Send the last of it."""
        self._metrics_at = -METRICS_EVERY_SECONDS
        if self._due():
            self._send()

    def _due(self) -> bool:
        now = time.monotonic()
        return now >= self._given_up_until and bool(self._ended or self._metrics_due(now))

    def _metrics_due(self, now: float) -> bool:
        return self._measured and now >= self._metrics_at + METRICS_EVERY_SECONDS

    def _send(self) -> None:
        if not self._sending.acquire(timeout=PATIENCE_SECONDS):
            return  # Another request's are on their way, and these go with the next.
        try:
            reason = self._sent()
        except Exception as error:  # noqa: BLE001 - whatever it is, charges go on without it.
            reason = type(error).__name__
        finally:
            self._sending.release()
        if reason is None:
            self._given_up_until = 0.0
        else:
            self._given_up_until = time.monotonic() + GIVEN_UP_SECONDS
            log.warning("traces and metrics could not be sent", reason=reason)

    def _sent(self) -> str | None:
        """Send. None: it arrived."""
        if self._exporters is None:
            self._exporters = _exporters(self._endpoint)
        for_spans, for_metrics = self._exporters
        spans = [self._ended.popleft() for _ in range(len(self._ended))]
        if spans and for_spans.export(spans).name != "SUCCESS":
            return "the traces were not taken"
        now = time.monotonic()
        if self._metrics_due(now):
            self._measured, self._metrics_at = False, now
            metrics = self._reader.get_metrics_data()
            if metrics is not None and for_metrics.export(metrics).name != "SUCCESS":
                return "the metrics were not taken"
        return None


_running: Telemetry | None = None


def _plain(attributes: dict[str, object]) -> dict[str, Any]:
    """Return what may be told of each value: what may be logged of it."""
    return {name: plain for name, value in attributes.items() if (plain := log.plain(value)) is not None}


def _exporters(endpoint: str) -> "Exporters":
    """Connect. Google is shown who we are; nobody else is. By http, which is to a collector beside us, nothing is."""
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    parts = urlsplit(endpoint)
    way: dict[str, Any] = {"endpoint": endpoint, "timeout": EXPORT_SECONDS}
    if parts.scheme == "http":
        way |= {"insecure": True, "channel_options": (("grpc.enable_http_proxy", 0),)}
    elif (parts.hostname or "").endswith(".googleapis.com"):
        way["credentials"] = _google_credentials()
    return OTLPSpanExporter(**way), OTLPMetricExporter(**way, max_export_batch_size=POINTS)


def _google_credentials() -> Any:
    import google.auth  # noqa: PLC0415
    import grpc  # noqa: PLC0415
    from google.auth.transport.grpc import AuthMetadataPlugin  # noqa: PLC0415
    from google.auth.transport.requests import Request  # noqa: PLC0415

    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    shown = grpc.metadata_call_credentials(AuthMetadataPlugin(credentials, Request()))  # type: ignore[no-untyped-call]
    return grpc.composite_channel_credentials(grpc.ssl_channel_credentials(), shown)
