"""KubeRay's own schemas: the CustomResourceDefinitions of the operator that is installed, and what they hold of others.

A Ray pod is described in them as any pod is, a service as any service is and a network policy's rules as any: so
deployments, services and policies are held against the same parts. Rules in CEL (x-kubernetes-validations) are not run.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from orchestration.clusters.findings import at
from orchestration.errors import RequestError

# A megabyte of YAML takes half a minute without libyaml.
SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
GROUP = "ray.io"
NEEDED = ("RayCluster", "RayJob", "RayService")
LONGEST = 160
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        # RFC 1123, section 2.1, as Kubernetes takes names; some kinds make longer names of it.
        "name": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength": 47},
        "namespace": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength": 63},
        "labels": LABELS,
        "annotations": LABELS,
    },
}


class Schemas:
    """Schemas by apiVersion and kind, in which a field that is not described is an error.

    folder: the operator's CustomResourceDefinitions, each a YAML file. Raises RequestError when they are not there.
    """

    def __init__(self, folder: Path) -> None:
        self._by_kind: dict[tuple[str, str], dict[str, Any]] = {}
        try:
            files = sorted(folder.glob("*.y*ml"))
            for file in files:
                for document in yaml.load_all(file.read_text(encoding="utf-8"), Loader=SafeLoader):
                    self._add(document)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise RequestError(
                f"--schemas {folder} cannot be read ({error}): name the folder of KubeRay's CRDs"
            ) from error
        missing = [kind for kind in NEEDED if (f"{GROUP}/v1", kind) not in self._by_kind]
        if missing:
            raise RequestError(
                f"--schemas {folder} has no CustomResourceDefinition of {', '.join(missing)}: name the folder of "
                "KubeRay's CRDs (helm-chart/kuberay-operator/crds in its repository)"
            )
        self._borrow()

    def _add(self, document: Any) -> None:
        if at(document, "kind") != "CustomResourceDefinition" or at(document, "spec", "group") != GROUP:
            return
        for version in document["spec"]["versions"]:
            schema = closed(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = METADATA
            self._by_kind[f"{GROUP}/{version['name']}", document["spec"]["names"]["kind"]] = schema

    def _borrow(self) -> None:
        cluster = self._by_kind[f"{GROUP}/v1", "RayCluster"]["properties"]["spec"]["properties"]
        service = self._by_kind[f"{GROUP}/v1", "RayService"]["properties"]["spec"]["properties"]
        pod = cluster["headGroupSpec"]["properties"]["template"]
        rules = at(cluster, "networkPolicy", "properties", "head", "properties", "ingressRules") or {"type": "array"}
        peer = at(rules, "items", "properties", "from", "items", "properties", "podSelector") or {"type": "object"}
        number = {"type": "integer", "minimum": 0}
        specs = {
            ("apps/v1", "Deployment"): {
                "replicas": number,
                "strategy": {"type": "object", "properties": {"type": {"enum": ["Recreate", "RollingUpdate"]}}},
                "selector": peer,
                "template": pod,
            },
            ("policy/v1", "PodDisruptionBudget"): {"minAvailable": number, "selector": peer},
            ("networking.k8s.io/v1", "NetworkPolicy"): {
                "podSelector": peer,
                "policyTypes": {"type": "array", "items": {"enum": ["Ingress", "Egress"]}},
                "ingress": rules,
            },
        }
        found = {kind: _object(properties, required=list(properties)) for kind, properties in specs.items()}
        found["v1", "Service"] = at(service, "serveService", "properties", "spec") or {"type": "object"}
        for (version, kind), spec in found.items():
            self._by_kind[version, kind] = _object(
                {"apiVersion": {"const": version}, "kind": {"const": kind}, "metadata": METADATA, "spec": spec},
                required=["apiVersion", "kind", "metadata", "spec"],
            )

    def problems(self, document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Where and what of everything in a document that its schema does not allow."""
        import jsonschema  # type: ignore[import-untyped]

        version, kind = str(document.get("apiVersion")), str(document.get("kind"))
        schema = self._by_kind.get((version, kind))
        if schema is None:
            yield "", f"{version} {kind} is none of {', '.join(kind for _, kind in sorted(self._by_kind))}"
            return
        for error in sorted(jsonschema.Draft7Validator(schema).iter_errors(document), key=lambda each: each.json_path):
            message = error.message if len(error.message) <= LONGEST else f"... {error.message[-LONGEST:]}"
            yield f"{kind} {'.'.join(map(str, error.absolute_path))}", message


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def closed(schema: Any) -> Any:
    """A copy in which an object has the described properties only; the API server would drop others in silence."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: closed(value) for key, value in schema.items()}
    described = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if described and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        copy["additionalProperties"] = False
    return copy
