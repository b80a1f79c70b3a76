"""Rules of our own for rendered files: tokens on, nothing open to the outside, one version, work that fits."""

import ipaddress
import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from orchestration.campaigns.execution import SLOT
from orchestration.clusters.addresses import public_bind
from orchestration.clusters.findings import Checked, Finding, at, entries, mapping, quantity, tables
from orchestration.clusters.versions import Versions

TOKEN_ON = "RAY_AUTH_MODE=token"
GPU = "nvidia.com/gpu"
HELD = re.compile(r"(PASSWORD|TOKEN|SECRET|CREDENTIAL)(_|$)")
"""Names of variables whose values are secret."""
PATHS = ("_PATH", "_FILE", "_URI")
TOLD = re.compile(r"(?m)^# (t2i \S+, python .*)$")
LISTENS = re.compile(r"--(?P<option>dashboard-host|host)[= ]+[\"']?(?P<host>[\w.:*\[\]]+)")
PASSWORD = re.compile(r"://[^\s/@:\"']+:[^\s/@\"']+@")


def text_rules(file: Checked, versions: Versions, closed: bool) -> Iterator[Finding]:
    """Of any file. closed: whether a network policy beside it says who reaches its pods."""
    for line in file.text.splitlines():
        if PASSWORD.search(line):
            yield file.find("", "a URL has a password in it", "take it out and name the secret that holds it")
        for found in LISTENS.finditer(line):
            reason = public_bind(found["host"])
            in_pod = any(True for _ in file.kinds("Deployment"))
            if reason and in_pod and not closed:
                yield file.find("", f"a pod listens on {found['host']} and no network policy selects it", "add one")
            elif reason and not in_pod:
                yield file.find(
                    "",
                    f"--{found['option']} {found['host']} {reason}",
                    "write 127.0.0.1 and reach it through ssh -L or ray dashboard",
                )
    for found in TOLD.finditer(file.text):
        if found[1] != versions.line:
            yield file.find("", f"was rendered for {found[1]}, and here is {versions.line}", "render it again")


def cluster_rules(file: Checked, versions: Versions) -> Iterator[Finding]:
    """Of every description of a Ray cluster."""
    for where, spec in file.ray_specs():
        mode = at(spec, "authOptions", "mode")
        if mode != "token":
            yield file.find(
                f"{where}.authOptions",
                f"mode is {mode!r}, and without a token a cluster runs what anyone sends it",
                "write mode: token and secretName",
            )
        if str(spec.get("rayVersion")) != versions["ray"]:
            yield file.find(
                f"{where}.rayVersion",
                f"is {spec.get('rayVersion')} and the image has {versions['ray']}",
                "render it again, or write that version",
            )
        head = mapping(spec.get("headGroupSpec"))
        if head.get("serviceType") not in (None, "ClusterIP"):
            yield file.find(
                f"{where}.headGroupSpec.serviceType",
                f"is {head['serviceType']}, which opens the Jobs API to the outside",
                "write ClusterIP and reach it through kubectl port-forward",
            )
        if "dashboard-host" in mapping(head.get("rayStartParams")):
            yield file.find(f"{where}.headGroupSpec.rayStartParams", "sets dashboard-host", "leave it to the operator")
    for document in file.kinds("Service"):
        if at(document, "spec", "type") not in (None, "ClusterIP"):
            yield file.find(
                "Service spec.type",
                f"is {at(document, 'spec', 'type')}, which is open to the outside",
                "write ClusterIP and reach it through kubectl port-forward or a gateway that asks who comes",
            )


def policy_rules(file: Checked) -> Iterator[Finding]:
    """Of network policies: one that names nobody lets everyone in."""
    for policy in file.kinds("NetworkPolicy"):
        for rule in entries(at(policy, "spec", "ingress")):
            peers = tables(at(rule, "from"))
            if not peers or any(_is_everyone(peer) for peer in peers):
                yield file.find(
                    f"NetworkPolicy {at(policy, 'metadata', 'name')} spec.ingress",
                    "lets everyone in",
                    "write from: and a podSelector, a namespaceSelector or an ipBlock that says who",
                )


def _is_everyone(peer: dict[str, Any]) -> bool:
    if "ipBlock" in peer:
        return str(at(peer, "ipBlock", "cidr")).endswith("/0")
    # Without a namespace its own is meant.
    return "namespaceSelector" in peer and not any(mapping(selector) for selector in peer.values())


def pod_rules(file: Checked) -> Iterator[Finding]:
    """Of every pod: no rights it does not need, memory that is there, no secret in plain sight."""
    for where, pod in file.pods():
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(name):
                yield file.find(where, f"has {name}, the machine's own", "leave it out")
        if not at(pod, "securityContext", "runAsNonRoot"):
            yield file.find(where, "may run as root", "write securityContext: {runAsNonRoot: true}")
        for container in tables(pod.get("containers")):
            inside = f"{where} container {container.get('name')}"
            own = mapping(container.get("securityContext"))
            if own.get("runAsNonRoot") is False or own.get("runAsUser") == 0:
                yield file.find(inside, "may run as root, whatever its pod says", "leave it to the pod")
            if own.get("allowPrivilegeEscalation") is not False:
                yield file.find(inside, "may gain rights", "write securityContext: {allowPrivilegeEscalation: false}")
            asked, most = (at(container, "resources", kind, "memory") for kind in ("requests", "limits"))
            if asked is None or asked != most:
                yield file.find(
                    inside, f"asks for {asked} of memory and may take {most}", "write the same for requests and limits"
                )
            for variable in tables(container.get("env")):
                name = str(variable.get("name"))
                if variable.get("value") and HELD.search(name) and not name.endswith(PATHS):
                    yield file.find(inside, f"{name} is written out", "write valueFrom: {secretKeyRef: ...}")
    for where, pod in _ray_pods(file):
        yield from _shared_memory(file, where, pod)


def _ray_pods(file: Checked) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((where, pod) for where, pod in file.pods() if "submitter" not in where and "Deployment" not in where)


def _shared_memory(file: Checked, where: str, pod: dict[str, Any]) -> Iterator[Finding]:
    sizes = [
        quantity(at(volume, "emptyDir", "sizeLimit"))
        for volume in tables(pod.get("volumes"))
        if at(volume, "emptyDir", "medium") == "Memory"
    ]
    memory = quantity(_limits(pod).get("memory"))
    if not sizes:
        yield file.find(
            where, "has no /dev/shm of its own, and 64 MiB are too few", "mount an emptyDir of medium Memory"
        )
    elif not max(sizes) < memory:
        yield file.find(where, "/dev/shm can fill all of its memory", "lower sizeLimit")


def size_rules(file: Checked) -> Iterator[Finding]:
    """Of jobs and endpoints: what they ask for fits the machines they get."""
    for document in file.kinds("RayJob"):
        spec, words = mapping(document.get("spec")), _words(at(document, "spec", "entrypoint"))
        room, kind, slots = _room(mapping(spec.get("rayClusterSpec")))
        workers, trials = _number(words, "--workers"), _number(words, "--concurrent")
        if workers * trials > room:
            yield file.find(
                "RayJob spec.entrypoint",
                f"{workers * trials} workers take a {kind} each, and its groups have {room:g}",
                "lower --workers or --concurrent, or raise replicas",
            )
        if "tune" in words[:2] and trials > slots:
            yield file.find(
                "RayJob spec.entrypoint", f"{trials} trials at a time and {slots:g} {SLOT}", f"raise {SLOT} of the head"
            )
        if not spec.get("activeDeadlineSeconds"):
            yield file.find("RayJob spec.activeDeadlineSeconds", "is missing: it could run for ever", "write one")
    for document in file.kinds("RayService"):
        yield from _endpoint(file, document)


def _words(entrypoint: object) -> list[str]:
    try:
        return shlex.split(str(entrypoint or ""))
    except ValueError:
        return []


def _number(words: Sequence[str], option: str) -> int:
    found = dict(itertools.pairwise(words)) | dict(
        word.split("=", 1) for word in words if word.startswith(f"{option}=")
    )
    # Of a range the fewest must fit.
    fewest = found.get(option, "1").partition("-")[0]
    return int(fewest) if fewest.isdecimal() else 1


def _limits(pod: object) -> dict[str, Any]:
    """Of a pod's first container."""
    return mapping(at(next(iter(tables(at(pod, "containers"))), {}), "resources", "limits"))


def _room(spec: dict[str, Any]) -> tuple[float, str, float]:
    """Workers that the groups hold from the start, what each takes, and trial slots; not a number where one is none."""
    totals = {GPU: 0.0, "cpu": 0.0}
    slots = quantity(at(spec, "headGroupSpec", "resources", SLOT) or 0)
    for group in tables(spec.get("workerGroupSpecs")):
        limits, there = _limits(at(group, "template", "spec")), quantity(group.get("replicas", 0))
        for name in totals:
            totals[name] += there * quantity(limits.get(name, 0))
        slots += there * quantity(at(group, "resources", SLOT) or 0)
    kind = GPU if totals[GPU] else "cpu"
    return totals[kind], "GPU" if kind == GPU else "CPU", slots


def _endpoint(file: Checked, document: dict[str, Any]) -> Iterator[Finding]:
    try:
        config = yaml.safe_load(str(at(document, "spec", "serveConfigV2") or ""))
        [application] = config["applications"]
        settings = application["args"]
        most = settings.get("max_replicas") or settings["replicas"]
        wanted, name = (most, GPU) if settings["device"] == "cuda" else (most * settings["cpus"], "cpu")
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        yield file.find("RayService spec.serveConfigV2", f"has no application of t2i ({error!r})", "render it again")
        return
    room = sum(
        quantity(group.get("maxReplicas", 0)) * quantity(_limits(at(group, "template", "spec")).get(name, 0))
        for group in tables(at(document, "spec", "rayClusterConfig", "workerGroupSpecs"))
    )
    if wanted > room:
        yield file.find(
            "RayService spec.serveConfigV2",
            f"{most} replicas take {wanted:g} {'GPUs' if name == GPU else 'CPUs'}, and its groups have {room:g}",
            "lower replicas, or raise maxReplicas",
        )


def launcher_rules(file: Checked, document: dict[str, Any]) -> Iterator[Finding]:
    """Of a file for `ray up`."""
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        if TOKEN_ON not in " ".join(map(str, entries(document.get(name)))):
            yield file.find(name, "starts Ray without a token", f"write {TOKEN_ON} before ray start")
    if at(document, "provider", "type") != "aws":
        return
    permissions = at(document, "provider", "security_group", "IpPermissions")
    ranges = [
        str(at(each, key) or "")
        for rule in entries(permissions)
        for name, key in (("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6"))
        for each in entries(at(rule, name))
    ]
    if permissions is None:
        yield file.find("provider.security_group", "is missing, and Ray's own is open to everyone", "name networks")
    for cidr in ranges:
        try:
            wide = ipaddress.ip_network(cidr).prefixlen < 8
        except ValueError:
            wide = True
        if wide:
            yield file.find(
                "provider.security_group", f"{cidr!r} is open to everyone", "name the network you come from"
            )


def program_rules(file: Checked, beside: str) -> Iterator[Finding]:
    """Of a shell program. beside: the text of the file it begins with."""
    starts = re.search(r"(?m)^[^#\n]*\bray start\b", file.text)
    if starts and TOKEN_ON not in file.text and TOKEN_ON not in beside:
        yield file.find("", "starts Ray without a token", f"export {TOKEN_ON}")


def container_rules(file: Checked, versions: Versions) -> Iterator[Finding]:
    """Of a container file."""
    users = re.findall(r"(?m)^USER\s+(\S+)", file.text)
    if not users or users[-1].partition(":")[0] in ("0", "root"):
        yield file.find("", "runs as root", "end with USER and a number that is not 0")
    wanted = {r"FROM python:([\d.]+)": versions.python, r"torch==([\w.]+)": versions["torch"]}
    for pattern, version in wanted.items():
        for found in re.findall(pattern, file.text):
            if found != version:
                yield file.find("", f"{pattern.split('(')[0]}{found} and t2i is for {version}", "render it again")
    if "faiss-gpu" in file.text and "uninstall --yes faiss-cpu" not in file.text:
        yield file.find("", "installs faiss-gpu beside faiss-cpu, one module twice", "uninstall faiss-cpu first")
