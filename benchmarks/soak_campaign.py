"""A campaign of many small trials that really train, on two nodes: is anything left, does anything grow?

`t2i tune` runs as a person runs it, against a head and a worker that are separate `ray start` processes, one trial at a
time on each. Every few trials it is counted what lives on the cluster: memory of the head's own processes, the driver
and the processes of trials, actors, placement groups, objects, temporary folders, open files. The end must be as the
beginning: no actor, placement group, process or temporary folder more; and the head's memory must stand still from the
50th trial on. Prints a table and one JSON line, draws the memory, and ends with code 1 when something is left or grows.
Not run by `make bench`: 200 trials take about half an hour on two cores.

    python benchmarks/soak_campaign.py --trials 200 --out soak_campaign.png
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from inventory import Inventory, is_of_trials
from timing import report
from tiny_run import HOME
from two_nodes import ADDRESSES, DRIVER, HEAD, WORKER, TwoNodes, two_nodes

from orchestration.campaigns.ledger import FILE
from orchestration.campaigns.live import read_trials

MIB = 2**20
SETTLED_AFTER = 50
"""Trials until Ray's processes have loaded and cached what they ever will."""
FLAT_MIB = 10.0
"""MiB in 100 trials that the head may grow: less than one hundredth of what it takes."""
CALM_S, QUIET_S = 60.0, 120.0
"""How long the cluster is left alone before the first sample, and how long processes may take to end."""
DATA = "scenes:size=32,things=2,colours=2,backgrounds=2,objects=1,train=64,val=32,test=32"
TINY = {
    "data.source": DATA,
    "model.channels": 2,
    "model.noise_dim": 8,
    "model.sentence_dim": 8,
    "training.batch_size": 16,
    "training.log_kimg": 0.032,
    "training.checkpoint_kimg": 0.032,
    "evaluation.samples": 32,
    "evaluation.every_kimg": 0.032,
    "resources.threads": 1,
}
BUDGET = ("--concurrent", "2", "--kimg", "0.064", "--grace-kimg", "0.032")
VARIED = ("--parameter", "tau", "--parameter", "learning_rate_generator")


@dataclass(frozen=True, slots=True)
class Sample:
    """What there is at a moment. Memory in MiB."""

    seconds: float
    trials: int
    head_mib: float
    driver_mib: float
    trials_mib: float
    processes_of_trials: int
    actors_alive: int
    actors_dead: int
    groups: int
    objects: int
    files_of_head: int
    files_of_driver: int
    entries: int
    log_mib: float
    head_by_process: dict[str, float]


def sample(there: Inventory, since: float, trials: int) -> Sample:
    """Now."""
    found = {who: there.processes(who) for who in (HEAD, WORKER, DRIVER)}
    head = [one for one in found[HEAD] if not is_of_trials(one)]
    of_trials = [one for who in ADDRESSES for one in found[who] if is_of_trials(one)]
    by_process: Counter[str] = Counter()
    for one in head:
        by_process[one.name] += one.memory
    actors, groups = there.states("actors"), there.states("placement_groups")
    return Sample(
        seconds=time.monotonic() - since,
        trials=trials,
        head_mib=sum(by_process.values()) / MIB,
        driver_mib=sum(one.memory for one in found[DRIVER]) / MIB,
        trials_mib=sum(one.memory for one in of_trials) / MIB,
        processes_of_trials=len(of_trials),
        actors_alive=actors.total() - actors["DEAD"],
        actors_dead=actors["DEAD"],
        groups=groups.total() - groups["REMOVED"],
        objects=len(there.listed("objects")),
        files_of_head=sum(one.files for one in head),
        files_of_driver=sum(one.files for one in found[DRIVER]),
        entries=len(there.paths()),
        log_mib=there.log_bytes() / MIB,
        head_by_process={name: round(size / MIB, 1) for name, size in sorted(by_process.items())},
    )


def campaign(cluster: TwoNodes, home: Path, name: str, trials: int, workers: int) -> subprocess.Popen[bytes]:
    """`t2i tune`, begun."""
    words = ["tune", "xmcgan_scenes32", "--trials", str(trials), *BUDGET, *VARIED]
    words += ["--workers", str(workers), "--name", name]
    sets = [part for field, value in TINY.items() for part in ("--set", f"{field}={value}")]
    return cluster.start(DRIVER, "orchestration", *words, *sets, "--home", str(home), "--json")


def trained_in(folder: Path) -> int:
    """Trials of a campaign that have trained at least once: those that wait to be compared end all at once, late."""
    if not (folder / FILE).is_file():
        return 0
    return sum(trial.kimg > 0 or trial.state.ended for trial in read_trials(folder))


def hidden_in(home: Path) -> list[str]:
    """What is only there while something runs, in words."""
    found = [path for pattern in (".tune-*", ".ray-*", ".writing-*") for path in home.rglob(pattern)]
    return [f"folder {path.relative_to(home)}" for path in sorted(found)]


def slope(samples: list[Sample], of: str) -> tuple[float, float]:
    """MiB in 100 trials from the 50th trial on, by least squares, and its standard error; 0 of too few samples."""
    later = [one for one in samples if one.trials >= SETTLED_AFTER]
    if len(later) < 4:
        return 0.0, 0.0
    x, y = np.array([one.trials for one in later]) / 100, np.array([getattr(one, of) for one in later])
    spread = ((x - x.mean()) ** 2).sum()
    rise = float(((x - x.mean()) * y).sum() / spread)
    rest = y - y.mean() - rise * (x - x.mean())
    return rise, float(np.sqrt((rest**2).sum() / (len(later) - 2) / spread))


def table(samples: list[Sample]) -> str:
    """The samples as text."""
    heads = [name for name in asdict(samples[0]) if name != "head_by_process"]
    rows = [[f"{getattr(one, name):,.0f}" for name in heads] for one in samples]
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [heads, *rows]
    )


def draw(samples: list[Sample], out: Path) -> None:
    """Memory and what is alive against the trials that have trained."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 8), sharex=True, layout="constrained")
    x = [one.trials for one in samples]
    for name, label in (("head_mib", "head"), ("driver_mib", "driver"), ("trials_mib", "processes of trials")):
        above.plot(x, [getattr(one, name) for one in samples], marker=".", label=label)
    above.set(ylabel="memory, MiB", ylim=(0, None), title="t2i tune on two nodes: what lives beside the trials")
    for name in ("actors_alive", "actors_dead", "groups", "objects", "processes_of_trials", "files_of_driver"):
        below.plot(x, [getattr(one, name) for one in samples], marker=".", label=name.replace("_", " "))
    below.set(ylabel="count", xlabel="trials that have trained", yscale="symlog")
    for axes in (above, below):
        axes.axvline(SETTLED_AFTER, color="grey", linewidth=0.8, linestyle=":")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(out, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="of the campaign  [default: 200]")
    parser.add_argument("--every", type=int, default=5, help="trials between two samples  [default: 5]")
    parser.add_argument("--workers", type=int, default=1, help="of each trial, on a node of its own  [default: 1]")
    parser.add_argument(
        "--out", type=Path, default=Path("soak_campaign.png"), help="plot  [default: soak_campaign.png]"
    )
    given = parser.parse_args()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder, two_nodes(cpus=given.workers) as cluster:
        home = Path(folder)
        home.joinpath("stages").symlink_to(made := HOME.stages)
        made.mkdir(parents=True, exist_ok=True)
        # What is made ready once, the data and the judge, is no trial's; nor what a node's first trial makes for all.
        if campaign(cluster, home, "first", 4, given.workers).wait() != 0:
            print(cluster.log(DRIVER).read_text())
            return 1
        time.sleep(CALM_S)
        before, since = cluster.inventory.stock(), time.monotonic()
        samples.append(sample(cluster.inventory, since, 0))
        driver = campaign(cluster, home, "many", given.trials, given.workers)
        while driver.poll() is None:
            trained = trained_in(home / "campaigns" / "many")
            if trained >= samples[-1].trials + given.every:
                samples.append(sample(cluster.inventory, since, trained))
                print(json.dumps(asdict(samples[-1])), file=sys.stderr, flush=True)
            time.sleep(1)
        trained = trained_in(home / "campaigns" / "many")
        told = cluster.inventory.left_over(before, QUIET_S, lambda: hidden_in(home))
        samples.append(sample(cluster.inventory, since, trained))
        if driver.returncode or trained != given.trials:
            said = cluster.log(DRIVER).read_text()[-4000:]
            told.append(f"{given.trials - trained} trials that did not train, code {driver.returncode}:\n{said}")
    print(table(samples))
    draw(samples, given.out)
    (head, scatter), driver_rise = slope(samples[:-1], "head_mib"), slope(samples[:-1], "driver_mib")
    grows = head - 2 * scatter > FLAT_MIB
    for one in told:
        print(f"left over: {one}")
    report(
        benchmark="campaign_leftovers",
        trials=given.trials,
        seconds_a_trial=samples[-2].seconds / max(samples[-2].trials, 1),
        left_over=len(told),
        head_mib=[one.head_mib for one in samples],
        head_mib_per_100_trials=head,
        head_scatter=scatter,
        driver_mib_per_100_trials=driver_rise[0],
        driver_scatter=driver_rise[1],
        head_is_flat=not grows,
    )
    return 1 if told or grows else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
