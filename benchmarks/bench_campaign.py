"""What scheduling costs: campaigns of 50 and of 200 trials whose training takes no time, on a cluster of their own.

Each trial has two segments (half of them stop at the first), proposed by TPE, begun and ended in the ledger, and
carried out by a process that answers at once: all that is left is Ray Tune, Optuna and the ledger. Every campaign runs
in a fresh process: seconds a trial, memory of the driver (its peak) and of the head's own processes, and what lives on
the cluster afterwards, which must be nothing. Wanted: both grow no faster than the number of trials.

Floor: one Tune trial a segment, which Ray starts by a remote call; Optuna's and the ledger's own time, without Ray, is
measured beside it.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from timing import report

from orchestration.campaigns.conductor import Conductor
from orchestration.campaigns.execution import SLOT, execute
from orchestration.campaigns.ledger import Ledger, Reached, SegmentState
from orchestration.campaigns.points import paper_point
from orchestration.campaigns.proposals import Proposer
from orchestration.campaigns.segments import Given, segment_from_json
from orchestration.campaigns.settings import CampaignSettings, Objective
from orchestration.cluster import ray_cluster
from orchestration.prepared import Prepared, PreparedSplit
from orchestration.recipes import get_recipe
from orchestration.training.state import Provenance
from search_spaces.space import load_space

FIGURE = "validation/fid/scenes-net"
COUNTS = (50, 200)
MIB = 2**20


def work(given: Mapping[str, Any]) -> dict[str, Any]:
    """A segment whose training takes no time: the figure is a smooth function of its values."""
    segment = segment_from_json(given["segment"])
    tau = float(segment.values["tau"])
    figures = {FIGURE: 100 * (tau - 0.3) ** 2 + 10 / (1 + segment.until_kimg)}
    checkpoint = f"trials/trial-{segment.trial:04d}/rungs/step-{segment.step:03d}"
    return asdict(Reached(SegmentState.REACHED, segment.until_kimg, figures, checkpoint, "0" * 64))


def nothing_prepared() -> Prepared:
    """No data: nothing is trained."""
    split = PreparedSplit("", "", "")
    return Prepared(split, split, Provenance("", "", None), "none", None)


def settings(trials: int) -> CampaignSettings:
    return CampaignSettings(
        trials=trials,
        concurrent=2,
        budget_kimg=2.0,
        grace_kimg=1.0,
        reduction=2,
        scheduler="halving",
        sampler="tpe",
        objectives=(Objective(figure=FIGURE),),
    )


def campaign(trials: int, folder: Path, cluster: bool) -> dict[str, float]:
    """One campaign; without a cluster the segments are carried out in this process."""
    base, plan = get_recipe("xmcgan_scenes32"), settings(trials)
    space = load_space("xmcgan").choose(("tau", "learning_rate_generator", "learning_rate_discriminator"), {})
    ledger = Ledger.create(folder, {})
    proposer = Proposer(space, plan, folder, "bench", None, paper_point(space, base))
    conductor = Conductor(ledger, plan, space, proposer)
    given = Given(base, space, nothing_prepared(), folder, "parent", folder, None)
    start = time.perf_counter()
    if cluster:
        execute(conductor, given, plan, work=work)
    else:
        while (segment := conductor.next()) is not None:
            conductor.ended(segment, Reached(**work({"segment": json.loads(json.dumps(asdict(segment)))})))
    seconds = time.perf_counter() - start
    proposer.close()
    assert conductor.done and len(ledger.trials()) == trials
    found = {"seconds": seconds, "segments": float(len(ledger.segments()))}
    ledger.close()
    return found


def head_bytes() -> int:
    """Memory of the head's own processes below this one: GCS, raylet, dashboard and their agents; not the workers."""
    found, mine = 0, {os.getpid()}
    for status in sorted(Path("/proc").glob("[0-9]*/status"), key=lambda path: int(path.parent.name)):
        with suppress(OSError):  # ended meanwhile
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            if int(fields["PPid"]) not in mine:
                continue
            mine.add(int(fields["Pid"]))
            command = status.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "ray::" not in command and "default_worker" not in command:
                found += int(fields.get("VmRSS", "0 kB").split()[0]) * 1024
    return found


def one_side(trials: int) -> dict[str, float]:
    """In a fresh process: a campaign on its own cluster, one without, and what is left."""
    with tempfile.TemporaryDirectory() as folder:
        bare = campaign(trials, Path(folder) / "bare", cluster=False)
    with tempfile.TemporaryDirectory() as folder, ray_cluster(2, {SLOT: 2.0}) as ray:
        before = head_bytes()
        found = campaign(trials, Path(folder) / "ray", cluster=True)
        from ray.util.state import list_actors, list_placement_groups

        address = ray.get_runtime_context().gcs_address
        actors = list_actors(address=address, filters=[("state", "!=", "DEAD")], limit=1000)
        groups = list_placement_groups(address=address, filters=[("state", "!=", "REMOVED")])
        return {
            "seconds": found["seconds"],
            "segments": found["segments"],
            "bare_seconds": bare["seconds"],
            "driver_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB,
            "head_mib_before": before / MIB,
            "head_mib_after": head_bytes() / MIB,
            "left_actors": float(len(actors)),
            "left_groups": float(len(groups)),
        }


def main() -> None:
    sides = {}
    for count in COUNTS:
        printed = subprocess.run(
            [sys.executable, __file__, str(count)], check=True, capture_output=True, text=True
        ).stdout
        sides[count] = json.loads(printed.splitlines()[-1])
    few, many = (sides[count] for count in COUNTS)
    report(
        benchmark="campaign_overhead",
        trials=list(COUNTS),
        seconds_a_trial=[side["seconds"] / count for count, side in sides.items()],
        seconds_a_segment=[side["seconds"] / side["segments"] for side in sides.values()],
        seconds_without_ray=[side["bare_seconds"] for side in sides.values()],
        growth_of_time=many["seconds"] / few["seconds"],
        growth_of_trials=COUNTS[1] / COUNTS[0],
        driver_mib=[side["driver_mib"] for side in sides.values()],
        head_mib=[side["head_mib_after"] for side in sides.values()],
        head_growth_mib=[side["head_mib_after"] - side["head_mib_before"] for side in sides.values()],
        left_over=[side["left_actors"] + side["left_groups"] for side in sides.values()],
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(one_side(int(sys.argv[1]))))
    else:
        main()
