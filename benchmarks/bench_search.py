"""ASHA with TPE against random search, on a real small objective: kimg until the best of random search is reached.

The objective is fid/scenes-net of XMC-GAN at 32 px after BUDGET kimg, over two learning rates and a temperature, whose
ranges are the documented ones and hold bad values too. Random search trains TRIALS points whole. Halving starts at a
quarter of the budget with points by TPE and goes on until one whole trial is as good as random's best, or until it has
used LIMIT times as much. Each begins with a random point, not the paper's. Every trial is really trained,
one after the other, in this process with one thread. Printed: for each seed the kimg that halving needed over those
random search used (above LIMIT: not reached), and their median.

Floor: no method finds a point before it has trained one, so the ratio is at least 1 / TRIALS.
"""

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from timing import report
from tiny_run import HOME

from orchestration.campaigns.conductor import Conductor
from orchestration.campaigns.ledger import Ledger, Segment
from orchestration.campaigns.proposals import Proposer
from orchestration.campaigns.segments import Given, reached_from_json, run_segment
from orchestration.campaigns.settings import CampaignSettings, Objective
from orchestration.preparation import Preparation
from orchestration.recipes import get_recipe
from orchestration.tracking import Tracker
from search_spaces.space import load_space

FIGURE = "validation/fid/scenes-net"
TRIALS, BUDGET, LIMIT = 12, 0.64, 1.5
VARIED = ("learning_rate_generator", "learning_rate_discriminator", "tau")
CHANGES = {
    "data.source": "scenes:size=32,things=6,colours=6,backgrounds=4,objects=1,train=500,val=200,test=20",
    "evaluation.samples": 200,
    "evaluation.protocol": "scenes-net",
    "training.batch_size": 16,
    "training.kimg": BUDGET,
    "training.checkpoint_kimg": BUDGET,
    "training.picture_kimg": BUDGET,
    "resources.threads": 1,
}


def settings(method: str, seed: int) -> CampaignSettings:
    """Random search, or halving with as many trials as it may come to begin."""
    halving = method == "halving"
    return CampaignSettings(
        trials=10 * TRIALS if halving else TRIALS,
        budget_kimg=BUDGET,
        grace_kimg=BUDGET / 4 if halving else BUDGET,
        scheduler="halving" if halving else "none",
        sampler="tpe" if halving else "random",
        objectives=(Objective(figure=FIGURE),),
        seed=seed,
    )


class Search:
    """One campaign in this process, and what it has used and found."""

    def __init__(self, method: str, seed: int, folder: Path) -> None:
        base = get_recipe("xmcgan_scenes32").replace(CHANGES)
        prepared = Preparation(base, HOME).everything()
        tracker = Tracker(folder)
        parent = tracker.start_run("xmcgan", method, f"{method}-{seed}", {})
        space = load_space("xmcgan").choose(VARIED)
        folder = folder / method
        self.ledger = Ledger.create(folder, {})
        self.given = Given(base, space, prepared, folder, parent, tracker.home, None)
        plan = settings(method, seed)
        draw = random.Random(f"{method} {seed}")
        first = {name: known.at(draw.random()) for name, known in space.parameters.items()}
        proposer = Proposer(space, plan, folder, method, None, first)
        self.conductor = Conductor(self.ledger, plan, space, proposer)
        self.used, self.best = 0.0, math.inf

    def step(self) -> bool:
        """Train the next segment; False when there is none."""
        segment = self.conductor.next()
        if segment is None:
            return False
        before = self._kimg(segment)
        told = {**self.given.to_json(), "segment": json.loads(json.dumps(asdict(segment)))}
        reached = reached_from_json(json.loads(json.dumps(run_segment(told))))
        self.conductor.ended(segment, reached)
        self.used += reached.kimg - before
        if reached.kimg >= BUDGET * (1 - 1e-9):
            self.best = min(self.best, reached.figures.get(FIGURE, math.inf))
        return True

    def _kimg(self, segment: Segment) -> float:
        return self.ledger.trial(segment.trial).kimg or 0.0


def one_seed(seed: int) -> dict[str, float]:
    """Both searches with one seed."""
    with tempfile.TemporaryDirectory() as folder:
        chance = Search("random", seed, Path(folder))
        while chance.step():
            pass
        halving = Search("halving", seed, Path(folder))
        while halving.best > chance.best and halving.used < LIMIT * chance.used and halving.step():
            pass
        return {
            "random_best": chance.best,
            "random_kimg": chance.used,
            "halving_best": halving.best,
            "halving_kimg": halving.used if halving.best <= chance.best else math.inf,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="searches of each kind")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    found = [one_seed(seed) for seed in range(asked.seeds)]
    ratios = [one["halving_kimg"] / one["random_kimg"] for one in found]
    report(
        benchmark="search",
        trials=TRIALS,
        budget_kimg=BUDGET,
        limit=LIMIT,
        random_best=[round(one["random_best"], 1) for one in found],
        halving_best=[round(one["halving_best"], 1) for one in found],
        ratios=[round(ratio, 3) if math.isfinite(ratio) else f"above {LIMIT}" for ratio in ratios],
        median=statistics.median([min(ratio, LIMIT) for ratio in ratios]),
        seconds=time.perf_counter() - start,
    )


if __name__ == "__main__":
    main()
