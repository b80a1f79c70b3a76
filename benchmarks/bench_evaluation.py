"""Judging against the bare forward passes it cannot do without; and two workers against one process with two threads.

bare: generator in batches of 50, then the feature net in batches of 5, which is its fastest way here, on the same
captions and noise, one thread, nothing kept. ours:
the same pictures drawn and looked at in portions, arrays written and read again, FID and KID computed with intervals.
The floor of a picture is the two nets' multiplications, given beside it. Two workers come from Ray, whose start is not
counted: a campaign or a quickstart has one running.
"""

import shutil
from functools import partial

import torch
from timing import interleaved, report
from tiny_run import HOME
from torch.utils.flop_counter import FlopCounterMode

from models.contract import Given
from orchestration.cluster import ray_cluster
from orchestration.config import Experiment
from orchestration.evaluation.evaluate import Evaluation, Request
from orchestration.evaluation.feature_views import open_feature_view
from orchestration.evaluation.looking import DRAW_BATCH, drawer
from orchestration.evaluation.pixels import checked_bytes
from orchestration.evaluation.plans import one_a_caption
from orchestration.mapping import one_thread
from orchestration.preparation import Preparation
from orchestration.recipes import get_recipe
from orchestration.training.state import initial_state

NET, SAMPLES, MANY, ROUNDS = "efficientnet-lite0", 100, 1000, 3
CPU = torch.device("cpu")


def main() -> None:
    experiment = get_recipe("xmcgan_scenes32").replace(
        {
            "data.source": "scenes:size=32,things=6,colours=6,backgrounds=4,objects=1,train=100,val=100,test=200",
            "evaluation.protocol": NET,
        }
    )
    bare, operations = bare_passes(experiment)
    ours = partial(judge, experiment, SAMPLES, 1)
    ours()  # the real pictures are looked at once
    with one_thread():
        seconds_bare, seconds_ours = interleaved(bare, ours, ROUNDS)
    figures = {"ours_to_bare": seconds_ours / seconds_bare, "gflop_a_picture": operations / SAMPLES / 1e9}
    with ray_cluster(2):
        judge(experiment, MANY, 2)  # workers import torch once
        threads, workers = interleaved(
            partial(plain, experiment, MANY), partial(judge, experiment, MANY, 2), max(1, ROUNDS // 2)
        )
    figures |= {"two_threads_to_two_workers": threads / workers, "pictures_a_second": MANY / workers}
    report(benchmark="evaluation", samples=SAMPLES, bare_s=seconds_bare, ours_s=seconds_ours, **figures)


def evaluation(experiment: Experiment, samples: int, workers: int) -> Evaluation:
    encoder = Preparation(experiment, HOME).encoder
    request = Request(("fid", "kid"), samples=samples, workers=workers)
    return Evaluation(experiment, HOME, request, encoder)


def judge(experiment: Experiment, samples: int, workers: int) -> None:
    """Draw, look, compute; what was drawn before is forgotten, what was seen of real pictures is not."""
    for kept in HOME.stages.glob("drawn-*"):
        shutil.rmtree(kept)
    evaluation(experiment, samples, workers).untrained()


def plain(experiment: Experiment, samples: int) -> None:
    """One process with two threads: the same work without portions, workers or files."""
    torch.set_num_threads(2)
    passes, _ = bare_passes(experiment, samples, count=False)
    passes()


def bare_passes(experiment: Experiment, samples: int = SAMPLES, count: bool = True):
    judged = evaluation(experiment, samples, 1)
    data, plan = judged.data, one_a_caption(judged.data.index, samples, judged.seed)
    draw = drawer(experiment, initial_state(experiment, CPU, Given()).sampling_nets(), CPU)
    view = open_feature_view(NET, None, None, CPU)

    @torch.inference_mode()
    def passes() -> None:
        for start in range(0, samples, DRAW_BATCH):
            part = slice(start, start + DRAW_BATCH)
            conditions = data.without_pixels(plan.items[part], plan.captions[part])
            pictures = checked_bytes(draw(conditions, plan.seeds[part].tolist()))
            for first in range(0, len(pictures), view.batch):
                view._heads(view._prepare(pictures[first : first + view.batch]))

    if not count:
        return passes, 0
    with FlopCounterMode(display=False) as counter:
        passes()
    return passes, counter.get_total_flops()


if __name__ == "__main__":
    main()
