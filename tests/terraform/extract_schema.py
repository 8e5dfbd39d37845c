"""Writes schema.json anew: what the google provider knows of the resources that infra/terraform uses.

    pip download --no-deps --dest FOLDER cdktf-cdktf-provider-google==16.12.1
    python -m tests.terraform.extract_schema FOLDER/cdktf_cdktf_provider_google-16.12.1-py3-none-any.whl

The result has the form of `terraform providers schema -json`; where the provider can be installed, that command says
the same, and more. Here it is read from the provider's bindings for CDK for Terraform (MPL-2.0), which were generated
from that very schema: the TypeScript in them says of every argument its type, and whether it is computed, optional or
required. Only names and types are kept. What the bindings do not say, the result does not know either: which values are
allowed, what excludes what, and how many blocks there may be beyond one or many.
"""

import base64
import json
import re
import sys
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, Final

DEPLOYMENT: Final = Path(__file__).parents[2] / "infra" / "terraform"
SCHEMA: Final = Path(__file__).parent / "schema.json"
PROVIDER: Final = "registry.terraform.io/hashicorp/google"

TYPES: Final[dict[str, Any]] = {
    # What reads it in TypeScript     Terraform's type
    "getStringAttribute": "string",
    "getNumberAttribute": "number",
    "getBooleanAttribute": "bool",
    "getListAttribute": ["list", "string"],
    "getNumberListAttribute": ["list", "number"],
    "getStringMapAttribute": ["map", "string"],
    "StringMap": ["map", "string"],
}

PROVIDER_BLOCK: Final = {  # Of the provider's own arguments, those that the examples set.
    "attributes": {name: {"type": "string", "optional": True} for name in ("project", "region")}
}

ATTRIBUTE: Final = re.compile(
    r"^ *// (\w+) - computed: (\w+), optional: (\w+), required: (\w+)\n((?:(?! *// \w+ - computed).*\n)*)", re.MULTILINE
)
WRITTEN: Final = re.compile(r'^ +(\w+): \{\n +value: .*\n +isBlock: (true|false),\n +type: "(\w+)"', re.MULTILINE)


class Bindings:
    """The TypeScript of one resource."""

    def __init__(self, text: str) -> None:
        self._text = text
        (self.version,) = set(re.findall(r"providerVersion: '([\d.]+)'", text))

    def block(self) -> dict[str, Any]:
        """Return the resource's block, as Terraform writes it."""
        _, body = re.split(r"^export class \w+ extends cdktf\.Terraform\w+ \{$", self._text, flags=re.MULTILINE)
        return self._block(body, body.partition("synthesizeHclAttributes()")[2])

    def _block(self, body: str, writer: str) -> dict[str, Any]:
        """Read a class. `writer`: the function that writes it as HCL, and so tells blocks from arguments."""
        written = {name: (block == "true", kind) for name, block, kind in WRITTEN.findall(writer)}
        block: dict[str, Any] = {}
        for name, computed, optional, required, code in ATTRIBUTE.findall(body):
            is_block, kind = written.get(name, (False, ""))
            made = re.search(rf'= new (?:cdktf\.)?(\w+)\(this, "{name}"', code)
            if is_block:
                assert made is not None, name
                nested = self._nested(made[1], kind, required=required == "true")
                block.setdefault("block_types", {})[name] = nested
                continue
            flags = {"computed": computed, "optional": optional, "required": required}
            attribute_type = self._type(made[1] if made else re.findall(r"this\.(get\w+Attribute)\(", code)[0])
            block.setdefault("attributes", {})[name] = {
                "type": ["set", *attribute_type[1:]] if kind == "set" else attribute_type,
                **{flag: True for flag, said in flags.items() if said == "true"},
            }
        return block

    def _nested(self, made: str, kind: str, *, required: bool) -> dict[str, Any]:
        block = self._block(*self._class(made))
        if kind == "struct":
            return {"nesting_mode": "single", "block": block}
        limits = {"min_items": 1} if required else {}
        if made.endswith("OutputReference"):  # Of many, the class is a list.
            limits["max_items"] = 1
        return {"nesting_mode": kind, "block": block, **limits}

    def _type(self, made: str) -> Any:
        if made in TYPES:
            return TYPES[made]
        attributes = self._block(*self._class(made))["attributes"]  # A list of objects, always computed.
        return ["list", ["object", {name: each["type"] for name, each in attributes.items()}]]

    def _class(self, made: str) -> tuple[str, str]:
        """Return a nested block's class, and the function that writes it."""
        name = re.sub("(OutputReference|List)$", "", made)
        function = f"{name[0].lower()}{name[1:]}ToHclTerraform"
        body = re.search(
            rf"^export class {name}OutputReference extends (.*?)^\}}", self._text, re.DOTALL | re.MULTILINE
        )
        writer = re.search(rf"^export function {function}\((.*?)^\}}", self._text, re.DOTALL | re.MULTILINE)
        assert body is not None, name
        return body[1], writer[1] if writer else ""


def used(word: str) -> list[str]:
    """Name the types that the deployment and its examples use: `word` is "resource" or "data"."""
    text = "\n".join(path.read_text() for path in DEPLOYMENT.rglob("*.tf"))
    return sorted(set(re.findall(rf'^{word} "(\w+)"', text, re.MULTILINE)))


def main(wheel: str) -> str:
    """Write the schema, and say of what it is."""
    with zipfile.ZipFile(wheel) as archive:
        (inner,) = (name for name in archive.namelist() if name.endswith(".jsii.tgz"))
        packed = BytesIO(archive.read(inner))
    with tarfile.open(fileobj=packed) as package:
        resources = {kind: _bindings(package, kind.removeprefix("google_")) for kind in used("resource")}
        data_sources = {kind: _bindings(package, f"data_{kind}") for kind in used("data")}
    (version,) = {each.version for each in [*resources.values(), *data_sources.values()]}
    schemas = {
        "provider": {"version": 0, "block": PROVIDER_BLOCK},
        "resource_schemas": {kind: {"version": 0, "block": each.block()} for kind, each in resources.items()},
        "data_source_schemas": {kind: {"version": 0, "block": each.block()} for kind, each in data_sources.items()},
    }
    text = json.dumps({"format_version": "1.0", "provider_version": version, "provider_schemas": {PROVIDER: schemas}})
    SCHEMA.write_text(re.sub(r'("google_\w+": \{"version)', r"\n\1", text) + "\n")  # A line for each.
    return f"hashicorp/google {version}: {len(resources)} resources, {len(data_sources)} data source(s)"


def _bindings(package: tarfile.TarFile, name: str) -> Bindings:
    script = package.extractfile(f"package/lib/{name.replace('_', '-')}/index.js")
    assert script is not None, name
    (source_map,) = re.findall(r"sourceMappingURL=data:application/json;base64,(\S+)", script.read().decode())
    return Bindings(json.loads(base64.b64decode(source_map))["sourcesContent"][0])


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1]) + "\n")
