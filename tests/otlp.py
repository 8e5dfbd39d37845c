"""A receiver of OTLP on the loopback interface: what a deployment has sent, as it arrived."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.metrics.v1.metrics_pb2 import HistogramDataPoint
from opentelemetry.proto.trace.v1.trace_pb2 import Span

WAIT_SECONDS: Final = 20.0


class Receiver(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """Takes traces and metrics. refuses: with which status; hangs: until it is set, it answers nothing."""

    def __init__(self) -> None:
        self.traces: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.metrics: list[metrics_service_pb2.ExportMetricsServiceRequest] = []
        self.refuses: grpc.StatusCode | None = None
        self.hangs = threading.Event()
        self.hangs.set()
        self.asked = 0
        self.url = ""

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the protocol's name.
        """Take what is sent."""
        self.asked += 1
        self.hangs.wait(WAIT_SECONDS)
        if self.refuses is not None:
            context.abort(self.refuses, "not today")
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            self.traces.append(request)
            return trace_service_pb2.ExportTraceServiceResponse()
        self.metrics.append(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()

    # --- What has arrived ---------------------------------------------------------------------------------------------

    @property
    def spans(self) -> list[Span]:
        """Every span."""
        return [
            span for sent in self.traces for one in sent.resource_spans for two in one.scope_spans for span in two.spans
        ]

    @property
    def names(self) -> list[str]:
        """Every span's name."""
        return [span.name for span in self.spans]

    def span(self, name: str) -> Span:
        """The one span of this name."""
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def instances(self, name: str) -> list[str]:
        """Name the instances that sent a span of this name, the first one first."""
        found = [
            instance(resource)
            for sent in self.traces
            for resource in sent.resource_spans
            if any(span.name == name for scope in resource.scope_spans for span in scope.spans)
        ]
        return list(dict.fromkeys(found))

    def values(self, metric: str, *, of: str | None = None) -> dict[tuple[str, ...], float]:
        """Return a metric as it was told last, by its labels in their names' order: a count, or a sum of seconds.

        of: the one instance that is meant, where several send.
        """
        last: dict[tuple[str, ...], float] = {}
        for sent in self.metrics:
            for resource in sent.resource_metrics:
                if of not in {None, instance(resource)}:
                    continue
                for scope in resource.scope_metrics:
                    for found in scope.metrics:
                        if found.name == metric:
                            points: list[Any] = [*found.sum.data_points, *found.histogram.data_points]
                            for point in points:
                                labels = attributes(point)
                                key = tuple(str(labels[name]) for name in sorted(labels))
                                last[key] = point.sum if isinstance(point, HistogramDataPoint) else float(point.as_int)
        return last

    @property
    def everything(self) -> str:
        """All that has arrived, as text."""
        return " ".join(str(MessageToDict(sent)) for sent in (*self.traces, *self.metrics))

    def wait(self, happens: Callable[[], bool], what: str) -> None:
        """Wait until something has arrived."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not happens():
            assert time.monotonic() < deadline, f"{what}: not within {WAIT_SECONDS:g} s; there is {self.names}"
            time.sleep(0.05)


def attributes(of: Any) -> Mapping[str, Any]:
    """Return the attributes of a span, a resource or a point."""
    values = {each.key: each.value for each in of.attributes}
    return {key: getattr(value, str(value.WhichOneof("value"))) for key, value in values.items()}


def instance(told_by: Any) -> str:
    """Name the instance that told something."""
    return str(attributes(told_by.resource)["service.instance.id"])


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver."""
    receiver, server = Receiver(), grpc.server(futures.ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    receiver.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        receiver.hangs.set()
        server.stop(None).wait()
