"""Whether the parts of a profile fit each other: names that are there, and work that its machines can hold."""

import difflib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestration.clusters.addresses import public_bind
from orchestration.serving.settings import is_loopback

if TYPE_CHECKING:
    from orchestration.clusters.profile import Campaign, Group, Job, Profile

COORDINATION_CPUS = 0.1
"""What the endpoint takes beside its replicas: see orchestration.serving.app."""


def first_shortage(profile: "Profile") -> str:
    """The first thing in a profile that another part of it makes impossible, and its mend; empty when there is none."""
    return next(_shortages(profile), "")


def training_groups(profile: "Profile") -> tuple["Group", ...]:
    """Where Ray Train workers can be: where there are GPUs, each takes one."""
    with_gpu = tuple(group for group in profile.workers if group.gpus)
    return with_gpu or profile.workers


def machines_for(profile: "Profile", job: "Job | Campaign") -> dict[str, int]:
    """So many machines of each group hold a job's workers; they are there from the start, since a job asks for all at
    once."""
    left, counts = processes_of(job), {group.name: 0 for group in profile.workers}
    for group in training_groups(profile):
        counts[group.name] = min(group.max, max(math.ceil(left / group.workers), 0))
        left -= counts[group.name] * group.workers
    return counts


def machines_for_serving(profile: "Profile") -> int:
    """So many machines of the serving group hold the replicas that are always there."""
    group, serve = profile.serving_group, profile.serve
    by_place = math.ceil(serve.replicas / max(_replicas_on(group, serve.cpus), 1))
    return max(group.min, by_place, math.ceil((serve.replicas * serve.cpus + COORDINATION_CPUS) / group.cpus))


def processes_of(job: "Job | Campaign") -> int:
    """Workers at a time, over all trials."""
    return job.workers * getattr(job, "concurrent", 1)


def _replicas_on(group: "Group", cpus: int) -> int:
    return min(group.cpus // cpus, group.gpus) if group.gpus else group.cpus // cpus


def _shortages(profile: "Profile") -> Iterator[str]:
    yield from _names(profile)
    yield from _images(profile)
    yield from _jobs(profile)
    yield from _serving(profile)
    yield from _machines(profile)


def _names(profile: "Profile") -> Iterator[str]:
    names = [group.name for group in profile.workers]
    for name in names:
        if names.count(name) > 1:
            yield f"workers: two groups are called {name!r}: rename one"
        if name in ("head", "headgroup"):
            yield f"workers: a group cannot be called {name!r}, as the head is: rename it"
    wanted = {
        "serve.group": profile.serve.group,
        "slurm.group": profile.slurm.group if profile.slurm else None,
    }
    for number, host in enumerate(profile.hosts.workers if profile.hosts else ()):
        wanted[f"hosts.workers.{number}.group"] = host.group
    for where, wish in wanted.items():
        if wish is not None and wish not in names:
            near = difflib.get_close_matches(wish, names, n=3, cutoff=0.5)
            listed = f"{'near it' if near else 'there are'}: {', '.join(near or names)}"
            yield f"{where}: there is no group {wish!r}; {listed}"


def _images(profile: "Profile") -> Iterator[str]:
    for group in profile.workers:
        if group.gpus and not profile.image.gpu:
            yield f"group {group.name} has GPUs, which the torch of an image without image.gpu cannot see: write it"
        if group.spot and not profile.kubernetes.spot_labels:
            yield (
                f"group {group.name} is spot and kubernetes.spot_labels is empty: name the label of spot nodes, such "
                "as cloud.google.com/gke-spot: 'true' or eks.amazonaws.com/capacityType: SPOT"
            )


def _jobs(profile: "Profile") -> Iterator[str]:
    groups = training_groups(profile)
    kind, room = "GPU" if groups[0].gpus else "CPU", sum(group.max * group.workers for group in groups)
    for name, job in (("train", profile.train), ("tune", profile.tune)):
        wanted = processes_of(job)
        at_once = f" in {job.concurrent} trials at a time" if name == "tune" else ""  # type: ignore[attr-defined]
        if wanted > room:
            yield (
                f"{name}: {wanted} workers{at_once} take a {kind} each, and {', '.join(each.name for each in groups)} "
                f"hold {room}: lower {name}.workers{' or tune.concurrent' if at_once else ''}, or raise max"
            )
        elif at_once:
            counts = machines_for(profile, job)
            slots = profile.head.trial_slots + sum(counts[group.name] * group.workers for group in profile.workers)
            if slots < profile.tune.concurrent:
                yield (
                    f"tune.concurrent is {profile.tune.concurrent} and there are {slots} trial slots: raise "
                    "head.trial_slots"
                )


def _serving(profile: "Profile") -> Iterator[str]:
    group, serve = profile.serving_group, profile.serve
    most, fit = serve.max_replicas or serve.replicas, _replicas_on(group, serve.cpus)
    if most > group.max * fit or most * serve.cpus + COORDINATION_CPUS > group.max * group.cpus:
        with_gpu = " and a GPU" if group.gpus else ""
        yield (
            f"serve: {most} replicas take {serve.cpus} CPUs{with_gpu} each and {COORDINATION_CPUS} CPUs beside them, "
            f"and the {group.max} machines of group {group.name} have {group.cpus} CPUs and {group.gpus} GPUs each: "
            "lower serve.replicas or serve.cpus, or raise max"
        )


def _machines(profile: "Profile") -> Iterator[str]:
    for cloud in ("aws", "gcp"):
        if getattr(profile, cloud) is None:
            continue
        if profile.storage.nfs is None:
            yield f"storage.nfs is missing: the machines that ray up starts on {cloud} mount the home from it"
        machines = [("head", profile.head), *((f"group {group.name}", group) for group in profile.workers)]
        for where, machine in machines:
            if getattr(machine.instance, cloud) is None:
                yield f"{where} has no instance.{cloud}: name the machine type that ray up starts"
    for group in profile.workers:
        if group.gpus and profile.gcp and not profile.gcp.gpu_image:
            yield (
                f"group {group.name} has GPUs and gcp.gpu_image is missing: name an image with NVIDIA's container "
                "toolkit, as gcloud compute images list --project deeplearning-platform-release lists them"
            )
    if profile.hosts:
        if profile.hosts.workers and (is_loopback(profile.hosts.head) or public_bind(profile.hosts.head)):
            yield f"hosts.head is {profile.hosts.head}, which the workers do not reach safely: name its private address"
        for group in profile.workers:
            count = sum(host.group == group.name for host in profile.hosts.workers)
            if count > group.max:
                yield f"hosts.workers has {count} machines of group {group.name}, whose max is {group.max}: raise max"
