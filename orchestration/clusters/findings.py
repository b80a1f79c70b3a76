"""What is wrong with a rendered file, and the documents that rules look at."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

RAY_SPECS = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
"""Below `spec` of each kind, where the description of a Ray cluster is."""
UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True, order=True)
class Finding:
    """One fault: where it is, what is wrong, and how to mend it."""

    file: str
    where: str
    what: str
    mend: str

    @property
    def line(self) -> str:
        """As a person reads it."""
        return f"{self.file}: {self.where}{': ' if self.where else ''}{self.what}: {self.mend}"


@dataclass(frozen=True)
class Checked:
    """A file: its text, and the YAML documents in it."""

    name: str
    text: str
    documents: tuple[Any, ...] = field(default=())

    def find(self, where: str, what: str, mend: str) -> Finding:
        """A finding in this file."""
        return Finding(self.name, where, what, mend)

    def kinds(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """The Kubernetes documents of some kinds; of all when none is named."""
        for document in self.documents:
            if of_kubernetes(document) and (document["kind"] in kinds or not kinds):
                yield document

    def ray_specs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every description of a Ray cluster, and where it is."""
        for document in self.kinds(*RAY_SPECS):
            path = ("spec", *RAY_SPECS[document["kind"]])
            yield f"{document['kind']} {'.'.join(path)}", mapping(at(document, *path))

    def pods(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every pod template's `spec`, and where it is."""
        for where, spec in self.ray_specs():
            yield f"{where}.headGroupSpec", mapping(at(spec, "headGroupSpec", "template", "spec"))
            for group in tables(at(spec, "workerGroupSpecs")):
                yield f"{where} group {group.get('groupName')}", mapping(at(group, "template", "spec"))
        for document in self.kinds("RayJob", "Deployment"):
            key = "submitterPodTemplate" if document["kind"] == "RayJob" else "template"
            found = at(document, "spec", key, "spec")
            if found is not None:
                yield f"{document['kind']} spec.{key}", mapping(found)


def selects(selector: Any, labels: Mapping[str, Any]) -> bool:
    """Whether a Kubernetes label selector chooses what has these labels; an empty one chooses everything."""
    for rule in tables(at(selector, "matchExpressions")):
        there, value = str(rule.get("key")) in labels, labels.get(str(rule.get("key")))
        values = entries(rule.get("values"))
        fits = {"In": value in values, "NotIn": value not in values, "Exists": there, "DoesNotExist": not there}
        if not fits.get(str(rule.get("operator")), False):
            return False
    return mapping(at(selector, "matchLabels")).items() <= dict(labels).items()


def at(values: Any, *path: str) -> Any:
    """What a path leads to; None when it leads nowhere."""
    for key in path:
        if not isinstance(values, Mapping):
            return None
        values = values.get(key)
    return values


def mapping(values: Any) -> dict[str, Any]:
    """It, or nothing: what should be a table and is none is found by its schema."""
    return values if isinstance(values, dict) else {}


def entries(values: Any) -> list[Any]:
    """It, or nothing, as `mapping`: what should be a list."""
    return values if isinstance(values, list) else []


def tables(values: Any) -> list[dict[str, Any]]:
    """Those of its entries that are tables."""
    return [each for each in entries(values) if isinstance(each, dict)]


def of_kubernetes(document: Any) -> bool:
    """Whether a document says that it is a thing of Kubernetes, and of which kind."""
    return isinstance(document, dict) and "apiVersion" in document and isinstance(document.get("kind"), str)


def quantity(text: object) -> float:
    """A Kubernetes quantity as a number; not a number when it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]i|[kMGTm])?", str(text))
    return float(found[1]) * UNITS[found[2] or ""] if found else float("nan")


def read(path: Path, name: str) -> tuple[Checked, list[Finding]]:
    """A file, with a finding when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        documents = tuple(yaml.safe_load_all(text)) if path.suffix in (".yaml", ".yml") else ()
    except (OSError, UnicodeDecodeError) as error:
        return Checked(name, ""), [Finding(name, "", f"cannot be read ({error})", "render it again")]
    except yaml.YAMLError as error:
        what = f"is no YAML ({' '.join(str(error).split())})"
        return Checked(name, text), [Finding(name, "", what, "render it again")]
    return Checked(name, text, tuple(each for each in documents if each is not None)), []
