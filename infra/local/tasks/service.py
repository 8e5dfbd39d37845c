"""google.cloud.tasks.v2.CloudTasks over gRPC: translates calls to the engine, and back."""

import threading
from collections.abc import Callable
from typing import Any, Final

import grpc
from google.cloud import tasks_v2
from google.protobuf.empty_pb2 import Empty

from infra.local.tasks.dispatcher import Dispatcher
from infra.local.tasks.engine import Engine, in_view
from infra.local.tasks.faults import Faults
from infra.local.tasks.messages import QueueMessage, State, TaskMessage
from infra.local.tasks.rules import Refused

SERVICE: Final = "google.cloud.tasks.v2.CloudTasks"

ListQueuesResponse: Final = tasks_v2.ListQueuesResponse.pb()
ListTasksResponse: Final = tasks_v2.ListTasksResponse.pb()


class CloudTasksService:
    """The calls of the service. What it does not emulate, gRPC answers with UNIMPLEMENTED."""

    def __init__(self, engine: Engine, dispatcher: Dispatcher, faults: Faults) -> None:
        self._engine = engine
        self._dispatcher = dispatcher
        self._faults = faults

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a gRPC server needs to answer."""
        calls = {
            "CreateQueue": (tasks_v2.CreateQueueRequest, self._create_queue),
            "GetQueue": (tasks_v2.GetQueueRequest, self._get_queue),
            "ListQueues": (tasks_v2.ListQueuesRequest, self._list_queues),
            "UpdateQueue": (tasks_v2.UpdateQueueRequest, self._update_queue),
            "DeleteQueue": (tasks_v2.DeleteQueueRequest, self._delete_queue),
            "PurgeQueue": (tasks_v2.PurgeQueueRequest, self._purge_queue),
            "PauseQueue": (tasks_v2.PauseQueueRequest, self._pause_queue),
            "ResumeQueue": (tasks_v2.ResumeQueueRequest, self._resume_queue),
            "CreateTask": (tasks_v2.CreateTaskRequest, self._create_task),
            "GetTask": (tasks_v2.GetTaskRequest, self._get_task),
            "ListTasks": (tasks_v2.ListTasksRequest, self._list_tasks),
            "DeleteTask": (tasks_v2.DeleteTaskRequest, self._delete_task),
            "RunTask": (tasks_v2.RunTaskRequest, self._run_task),
        }
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: _method(request_type, call) for name, (request_type, call) in calls.items()}
        )

    def _create_queue(self, request: Any, _: grpc.ServicerContext) -> QueueMessage:
        return self._engine.create_queue(request.parent, request.queue)

    def _get_queue(self, request: Any, _: grpc.ServicerContext) -> QueueMessage:
        return self._engine.get_queue(request.name)

    def _list_queues(self, request: Any, _: grpc.ServicerContext) -> Any:
        if request.filter:
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, "a filter of queues is not emulated")
        queues, token = self._engine.list_queues(request.parent, request.page_size, request.page_token)
        return ListQueuesResponse(queues=queues, next_page_token=token)

    def _update_queue(self, request: Any, _: grpc.ServicerContext) -> QueueMessage:
        queue = self._engine.update_queue(request.queue, request.update_mask)
        self._dispatcher.wake()
        return queue

    def _delete_queue(self, request: Any, _: grpc.ServicerContext) -> Empty:
        self._engine.delete_queue(request.name)
        return Empty()

    def _purge_queue(self, request: Any, _: grpc.ServicerContext) -> QueueMessage:
        return self._engine.purge_queue(request.name)

    def _pause_queue(self, request: Any, _: grpc.ServicerContext) -> QueueMessage:
        return self._engine.set_queue_state(request.name, State.PAUSED)

    def _resume_queue(self, request: Any, _: grpc.ServicerContext) -> QueueMessage:
        queue = self._engine.set_queue_state(request.name, State.RUNNING)
        self._dispatcher.wake()
        return queue

    def _create_task(self, request: Any, context: grpc.ServicerContext) -> TaskMessage:
        if self._faults.strikes("create_task_unavailable"):
            raise Refused(grpc.StatusCode.UNAVAILABLE, "a fault that was asked for: nothing was created")
        if self._faults.strikes("create_task_hangs"):
            _never_answer(context)
        task = self._engine.create_task(request.parent, request.task)
        self._dispatcher.wake()
        if self._faults.strikes("create_task_loses_reply"):
            _never_answer(context)
        return in_view(task, request.response_view)

    def _get_task(self, request: Any, _: grpc.ServicerContext) -> TaskMessage:
        return in_view(self._engine.get_task(request.name), request.response_view)

    def _list_tasks(self, request: Any, _: grpc.ServicerContext) -> Any:
        tasks, token = self._engine.list_tasks(request.parent, request.page_size, request.page_token)
        return ListTasksResponse(tasks=[in_view(task, request.response_view) for task in tasks], next_page_token=token)

    def _delete_task(self, request: Any, _: grpc.ServicerContext) -> Empty:
        self._engine.delete_task(request.name)
        return Empty()

    def _run_task(self, request: Any, _: grpc.ServicerContext) -> TaskMessage:
        return in_view(self._dispatcher.run_task(request.name).task, request.response_view)


def _method(request_type: Any, call: Callable[[Any, grpc.ServicerContext], Any]) -> "grpc.RpcMethodHandler[Any, Any]":
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return call(request, context)
        except Refused as refused:
            context.abort(refused.code, refused.message)

    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=request_type.pb().FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )


def _never_answer(context: grpc.ServicerContext) -> None:
    """Wait until the caller has given up, or the server ends. A caller without a timeout waits that long."""
    ended = threading.Event()
    if context.add_callback(ended.set):
        ended.wait()
    raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "a fault that was asked for: the caller has left")
