"""The check of rendered files: schemas, Ray's own validators, and rules of our own, every finding at once."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestration.clusters.findings import Checked, Finding, at, entries, mapping, of_kubernetes, read, selects, tables
from orchestration.clusters.rules import (
    cluster_rules,
    container_rules,
    launcher_rules,
    pod_rules,
    policy_rules,
    program_rules,
    size_rules,
    text_rules,
)
from orchestration.clusters.schemas import Schemas
from orchestration.clusters.validators import groups_problem, launcher_problem, serve_problem
from orchestration.clusters.versions import Versions, project_versions
from orchestration.errors import RequestError

PROGRAMS = (".sh", ".sbatch", ".env")
LOOKED_AT = (*PROGRAMS, ".yaml", ".yml", "Containerfile", ".cpu")
AGAIN = "render it again"


def check(path: Path, schemas: Schemas | None = None) -> tuple[list[str], list[Finding]]:
    """The names of the files that were checked, of a folder or one file, and everything that is wrong with them.

    schemas: the operator's; without them Kubernetes files are held against our own rules and Ray's alone. Raises
    RequestError when there is nothing to check.
    """
    versions = project_versions()
    paths = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    paths = [each for each in paths if each.name.endswith(LOOKED_AT)]
    if not paths or not paths[0].is_file():
        raise RequestError(f"{path} holds nothing to check: name what t2i cluster render PROFILE wrote")
    files, findings = [], []
    for each in paths:
        file, problems = read(each, str(each.relative_to(path)) if path.is_dir() else each.name)
        files.append(file)
        findings += problems
    for each, file in zip(paths, files, strict=True):
        findings += _of_file(each, file, files, schemas, versions)
    if path.is_dir():
        findings += _between(files)
    return [file.name for file in files], sorted(set(findings))


def _of_file(
    path: Path, file: Checked, files: Sequence[Checked], known: Schemas | None, versions: Versions
) -> Iterator[Finding]:
    yield from text_rules(file, versions, closed=_selected(file, files))
    if path.name.startswith("Containerfile"):
        yield from container_rules(file, versions)
    elif path.suffix in PROGRAMS:
        beside = next((each.text for each in files if each.name == str(Path(file.name).with_name("t2i.env"))), "")
        yield from program_rules(file, beside)
        yield from _syntax(path, file)
    for document in file.documents:
        if isinstance(document, dict) and "cluster_name" in document:
            yield from _launcher(file, document)
        elif not of_kubernetes(document):
            yield file.find("", "is neither of Kubernetes nor for ray up", AGAIN)
    for document in file.kinds():
        for where, what in known.problems(document) if known else ():
            yield file.find(where, what, "the operator's schema says what is allowed")
    yield from _groups(file)
    yield from cluster_rules(file, versions)
    yield from policy_rules(file)
    yield from pod_rules(file)
    yield from size_rules(file)


def _launcher(file: Checked, document: dict[str, Any]) -> Iterator[Finding]:
    problem = launcher_problem(document)
    if problem:
        yield file.find("", f"ray up refuses it ({problem})", AGAIN)
    yield from launcher_rules(file, document)


def _groups(file: Checked) -> Iterator[Finding]:
    """What Ray says of clusters and of Serve's configuration."""
    documents = {document["kind"]: document for document in file.kinds()}
    for where, spec in file.ray_specs():
        problem = groups_problem(documents[where.partition(" ")[0]], spec)
        if problem:
            yield file.find(where, f"Ray's autoscaler cannot read it ({problem})", AGAIN)
    for document in file.kinds("RayService"):
        try:
            problem = serve_problem(yaml.safe_load(str(at(document, "spec", "serveConfigV2"))))
        except yaml.YAMLError as error:
            problem = " ".join(str(error).split())
        if problem:
            yield file.find("RayService spec.serveConfigV2", f"Serve refuses it ({problem})", AGAIN)


def _syntax(path: Path, file: Checked) -> Iterator[Finding]:
    bash = shutil.which("bash")
    if bash is None:
        return
    ended = subprocess.run([bash, "-n", str(path)], capture_output=True, text=True, timeout=30, check=False)
    if ended.returncode:
        lines = ended.stderr.replace(f"{path}: ", "").strip().splitlines()
        yield file.find("", f"bash cannot read it ({lines[0] if lines else 'no reason said'})", AGAIN)


def _selected(file: Checked, files: Sequence[Checked]) -> bool:
    """Whether a network policy of these files selects every deployment of this one."""
    policies = _selectors(files)
    pods = [mapping(at(each, "spec", "template", "metadata", "labels")) for each in file.kinds("Deployment")]
    return all(any(selects(selector, pod) for selector in policies) for pod in pods)


def _selectors(files: Sequence[Checked]) -> list[Any]:
    """For whose visitors the network policies of these files are."""
    return [
        at(policy, "spec", "podSelector")
        for file in files
        for policy in file.kinds("NetworkPolicy")
        # By default it is for whoever comes in.
        if "Ingress" in (entries(at(policy, "spec", "policyTypes")) or ("Ingress",))
    ]


def _between(files: Sequence[Checked]) -> Iterator[Finding]:
    """What is wrong with files that are right one by one: two images, Ray pods that no policy selects."""
    images: dict[str, str] = {}
    for file in files:
        for where, pod in file.pods():
            for container in tables(pod.get("containers")):
                image = str(container.get("image"))
                images.setdefault(image, file.name)
                first = next(iter(images))
                if image != first:
                    what = f"has image {image}, and {images[first]} has {first}"
                    yield file.find(where, what, "give both the same, or versions differ between machines")
    for file in files:
        for where, spec in file.ray_specs():
            labels = mapping(at(spec, "headGroupSpec", "template", "metadata", "labels"))
            if not any(selects(selector, labels) for selector in _selectors(files)):
                yield file.find(where, "no network policy selects its pods", "apply networkpolicy.yaml with it")
