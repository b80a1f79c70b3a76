"""The input pipeline against the training step it feeds, pictures a second. Wanted: at least 3 times as fast.

At 32 px (the quickstart's net), 64 px (the laptop's) and 256 px (a narrow net: the paper's would take minutes a step,
so the ratio there is a lower bound). Floor: a picture is 3 bytes a pixel to read and 12 to write as floats; PNG
decoding is about 10 ns a pixel.
"""

import itertools

from timing import interleaved, report
from tiny_run import prepared_experiment, trainer

SCENES = "scenes:size={size},train={count},val=20,test=20"
CASES: dict[str, tuple[dict[str, object], int]] = {
    "32": ({}, 15),
    "64": (
        {"data__source": SCENES.format(size=64, count=300), "model__resolution": 64, "model__channels": 16},
        5,
    ),
    "256": (
        {
            "data__source": SCENES.format(size=256, count=64),
            "model__resolution": 256,
            "model__channels": 4,
            "model__region_side": 16,
            "training__batch_size": 8,
            "resources__pictures": "png",
        },
        3,
    ),
}


def measure(side: str, changes: dict[str, object], rounds: int) -> None:
    """One case, reported."""
    experiment, prepared = prepared_experiment(**changes)
    loop = trainer(experiment, prepared)
    batch, images = experiment.training.batch_size, loop.images_per_iteration
    starts = itertools.count(0, batch)

    def feed() -> None:
        for _ in range(images // batch):
            loop.stream.batch(next(starts), batch)

    input_s, step_s = interleaved(feed, loop.iteration, rounds)
    report(
        benchmark=f"input-{side}px",
        input_images_per_s=images / input_s,
        step_images_per_s=images / step_s,
        ratio=step_s / input_s,
    )


if __name__ == "__main__":
    for side, (changes, rounds) in CASES.items():
        measure(side, changes, rounds)
