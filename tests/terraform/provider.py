"""A stand-in for the google provider: it knows the schema and nothing else, so real Terraform validates and plans.

    with StandIn(Schema.read()) as stand_in:
        subprocess.run(["terraform", "plan"], env=os.environ | stand_in.environment)

Terraform's own code then does all that it does: parses, resolves every reference, expands `for_each` and dynamic
blocks; refuses an argument or a block that the provider's schema does not have, the lack of a required one, and a value
of the wrong type; evaluates every expression, validation and precondition; and writes down what it would make. What the
real provider does in its own code stays unchecked: which values Google allows, and what excludes what.

Terraform speaks to providers by gRPC ("plugin protocol 6"), and TF_REATTACH_PROVIDERS tells it of one that is running
already. The few messages of it that matter here are read and written by hand, below.
"""

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import grpc
import msgspec

SCHEMA: Final = Path(__file__).parent / "schema.json"
PROVIDER: Final = "registry.terraform.io/hashicorp/google"
UNKNOWN: Final = msgspec.msgpack.Ext(0, b"\0")  # How Terraform writes a value that is known only after the apply.
NESTING: Final = {"single": 1, "list": 2, "set": 3}

PROJECT_NUMBER: Final = "123456789012"

DERIVED: Final[Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    # What follows from the arguments, where others are made from it.
    "google_project": lambda _: {"number": PROJECT_NUMBER},
    "google_service_account": lambda account: _service_account(f"{account['account_id']}@{account['project']}"),
    "google_project_iam_custom_role": lambda role: {"id": f"projects/{role['project']}/roles/{role['role_id']}"},
}


def _service_account(of_project: str) -> dict[str, Any]:
    email = f"{of_project}.iam.gserviceaccount.com"
    name = f"projects/{of_project.partition('@')[2]}/serviceAccounts/{email}"
    return {"email": email, "member": f"serviceAccount:{email}", "name": name, "id": name}


@dataclass(frozen=True)
class Schema:
    """What the provider knows, as `terraform providers schema -json` writes it."""

    resources: Mapping[str, Any]
    data_sources: Mapping[str, Any]
    provider: Mapping[str, Any]
    version: str

    @classmethod
    def read(cls) -> Self:
        """Read the schema that extract_schema.py wrote."""
        document = json.loads(SCHEMA.read_text())
        schemas = document["provider_schemas"][PROVIDER]
        return cls(
            schemas["resource_schemas"],
            schemas["data_source_schemas"],
            schemas["provider"],
            document["provider_version"],
        )


class StandIn:
    """The provider, on a free port of the loopback interface for as long as the `with` block lasts."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._server = grpc.server(ThreadPoolExecutor(max_workers=8), options=[("grpc.max_receive_message_length", -1)])
        calls: dict[str, Callable[[dict[int, bytes]], bytes]] = {
            "GetProviderSchema": self._get_schema,
            "PlanResourceChange": self._plan,
            "ReadDataSource": self._read_data,
            **dict.fromkeys(
                (
                    "ConfigureProvider",
                    "StopProvider",
                    "ValidateDataResourceConfig",
                    "ValidateProviderConfig",
                    "ValidateResourceConfig",
                ),
                lambda _: b"",  # No complaints.
            ),
        }
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(_rpc(call)) for name, call in calls.items()
        }
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("tfplugin6.Provider", handlers)],
        )
        self._port = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> Self:
        """Start it."""
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self._server.stop(grace=None)

    @property
    def environment(self) -> dict[str, str]:
        """The variable by which Terraform finds it."""
        at = {"Network": "tcp", "String": f"127.0.0.1:{self._port}"}
        running = {"Protocol": "grpc", "ProtocolVersion": 6, "Pid": os.getpid(), "Test": True, "Addr": at}
        return {"TF_REATTACH_PROVIDERS": json.dumps({PROVIDER: running})}

    def _get_schema(self, _: dict[int, bytes]) -> bytes:
        return (
            _field(1, _schema(self._schema.provider))
            + b"".join(
                _field(2, _field(1, kind) + _field(2, _schema(each))) for kind, each in self._schema.resources.items()
            )
            + b"".join(
                _field(3, _field(1, kind) + _field(2, _schema(each)))
                for kind, each in self._schema.data_sources.items()
            )
        )

    def _plan(self, request: dict[int, bytes]) -> bytes:
        kind, proposed = request[1].decode(), _value(request[3])
        if proposed is not None:
            proposed = _completed(self._schema.resources[kind]["block"], proposed)
            if kind in DERIVED:
                proposed |= DERIVED[kind](proposed)
        return _field(1, _dynamic(proposed)) + _number(5, 1)  # 5: computed values may be put in by us, as ever.

    def _read_data(self, request: dict[int, bytes]) -> bytes:
        kind, config = request[1].decode(), _value(request[2])
        return _field(1, _dynamic(config | DERIVED[kind](config)))


def _completed(block: Mapping[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """Mark what the provider would compute as unknown."""
    for name, attribute in block.get("attributes", {}).items():
        if attribute.get("computed") and value[name] is None:
            value[name] = UNKNOWN
    for name, nested in block.get("block_types", {}).items():
        inner = value[name]
        for each in inner if isinstance(inner, list) else [inner]:
            if isinstance(each, dict):
                _completed(nested["block"], each)
    return value


# --- The messages -----------------------------------------------------------------------------------------------------


def _rpc(call: Callable[[dict[int, bytes]], bytes]) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    return lambda request, _: call(_fields(request))


def _schema(schema: Mapping[str, Any]) -> bytes:
    return _number(1, schema["version"]) + _field(2, _block(schema["block"]))


def _block(block: Mapping[str, Any]) -> bytes:
    written = b""
    for name, attribute in block.get("attributes", {}).items():
        flags = b"".join(
            _number(number, 1)
            for number, flag in ((4, "required"), (5, "optional"), (6, "computed"))
            if attribute.get(flag)
        )
        written += _field(2, _field(1, name) + _field(2, json.dumps(attribute["type"])) + flags)
    for name, nested in block.get("block_types", {}).items():
        limits = _number(4, nested.get("min_items", 0)) + _number(5, nested.get("max_items", 0))
        mode = _number(3, NESTING[nested["nesting_mode"]])
        written += _field(3, _field(1, name) + _field(2, _block(nested["block"])) + mode + limits)
    return written


def _dynamic(value: Any) -> bytes:
    return _field(1, msgspec.msgpack.encode(value))


def _value(dynamic: bytes) -> Any:
    return msgspec.msgpack.decode(_fields(dynamic)[1])


def _field(number: int, content: bytes | str) -> bytes:
    """Write a field of protobuf's that has a length."""
    content = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    """Write a field of protobuf's that is a whole number."""
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def _fields(message: bytes) -> dict[int, bytes]:
    """Read the fields of a message that have a length; of a repeated one the last."""
    found: dict[int, bytes] = {}
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        tag = varint()
        length = varint()  # Of a number, the number itself.
        if tag & 7 == 2:
            found[tag >> 3] = message[position : position + length]
            position += length
    return found
