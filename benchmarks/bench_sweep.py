"""A sweep over 8 values of MirrorGAN's lambda against 8 full runs. Wanted: at most early stages + 8 GANs, + 10 %.

Early stages are all that is made before the GAN: scenes, pictures, vocabulary, DAMSM, STREAM, text features. The sweep
shares one home; each full run has a fresh one. Full runs come before, amid and after the sweep, so that a noisy machine
troubles both alike; 8 of them are 8 times their mean. The bound's two times are means over the full runs alone, so what
the sweep spends on finding and checking finished stages counts against it. One process, one thread, without Ray.
"""

import json
import tempfile
import time
from pathlib import Path
from statistics import mean

import torch
from timing import report

from orchestration.config import Experiment
from orchestration.home import Home
from orchestration.preparation import PART_FIGURES, Preparation
from orchestration.prepared import Prepared
from orchestration.recipes import get_recipe
from orchestration.stages import Progress, quiet, read_records, write_atomically
from orchestration.training.recorder import last_metrics, read_metrics
from orchestration.training.state import newest_checkpoint
from orchestration.training.worker import CHECKPOINTS, Job, train_worker

CPU = torch.device("cpu")
# No value is 0: without STREAM's loss a GAN would cost less than the others.
LAMBDAS = (1.0, 2.0, 5.0, 8.0, 10.0, 15.0, 20.0, 40.0)
FULL_RUNS_BEFORE = (0, 4, 8)  # so many runs of the sweep are done
PART = {"model.resolution": 32, "training.kimg": 1.44, "training.checkpoint_kimg": 1.44}
ALLOWED = 1.1


def experiment(stream_weight: float) -> Experiment:
    """mirrorgan_scenes on few small scenes, each training some seconds long."""
    recipe = get_recipe("mirrorgan_scenes")
    values = {
        "data.source": "scenes:size=32,things=4,colours=4,backgrounds=2,objects=1,train=300,val=120,test=20",
        "model.resolution": 32,
        "model.stream.resolution": 32,
        "model.stream_weight": stream_weight,
        "training.kimg": 0.64,
        "evaluation.protocol": "none",
        "evaluation.samples": 120,
    }
    parts = {f"stages.{name}.{field}": value for name in recipe.stages for field, value in PART.items()}
    return recipe.replace(values | parts)


def train(part: Experiment, prepared: Prepared, folder: Path, progress: Progress = quiet) -> Path:
    """A training from nothing, in this process."""
    folder.mkdir(parents=True)
    outcome = train_worker(Job(part, prepared, str(folder), 1), lambda figures: None, CPU)
    checkpoint = newest_checkpoint(folder / CHECKPOINTS)
    if outcome.status != "finished" or checkpoint is None:
        raise SystemExit(f"{part.system} did not finish: {outcome.reason}")
    write_atomically(folder / PART_FIGURES, json.dumps(last_metrics(read_metrics(folder))))
    return checkpoint.folder


def run(stream_weight: float, home: Home) -> tuple[float, float]:
    """Seconds of what comes before the GAN, and of the GAN."""
    start = time.perf_counter()
    chosen = experiment(stream_weight)
    prepared = Preparation(chosen, home, train_part=train).everything()
    ready = time.perf_counter()
    train(chosen, prepared, home.runs / chosen.run_name)
    return ready - start, time.perf_counter() - ready


def main() -> None:
    torch.set_num_threads(1)
    full: list[tuple[float, float]] = []
    sweep: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as name:
        homes = Path(name)
        run(LAMBDAS[0], Home(homes / "not-counted"))  # the first of a process loads code
        shared = Home(homes / "shared")
        for done in range(len(LAMBDAS) + 1):
            if done in FULL_RUNS_BEFORE:
                full.append(run(LAMBDAS[min(done, len(LAMBDAS) - 1)], Home(homes / f"full-{done}")))
            if done < len(LAMBDAS):
                sweep.append(run(LAMBDAS[done], shared))
        trained = [record["stage"] for record in read_records(shared.stages)]
        if trained.count("damsm") != 1 or trained.count("stream") != 1:
            raise SystemExit("the sweep trained a part more than once")
    runs, early, late = len(LAMBDAS), mean(first for first, _ in full), mean(second for _, second in full)
    sweep_s, full_s = sum(map(sum, sweep)), runs * (early + late)
    bound = ALLOWED * (early + runs * late) / full_s
    report(
        benchmark="sweep",
        values=runs,
        full_runs=len(full),
        early_s=early,
        late_s=late,
        full_run_spread=max(map(sum, full)) / min(map(sum, full)),
        sweep_s=sweep_s,
        eight_full_runs_s=full_s,
        finding_stages_s=mean(first for first, _ in sweep[1:]),
        ratio=sweep_s / full_s,
        bound=bound,
        within_bound=sweep_s / full_s <= bound,
    )


if __name__ == "__main__":
    main()
