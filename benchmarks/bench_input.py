"""The input pipeline against the training step it feeds, pictures a second. Wanted: at least 3 times as fast.

Floor: a 32 px picture is 3 KiB of bytes and 12 KiB of floats; its caption about 17 x 384 half floats, 13 KiB.
"""

import itertools

from timing import interleaved, report
from tiny_run import prepared_experiment, trainer


def main() -> None:
    experiment, prepared = prepared_experiment()
    loop = trainer(experiment, prepared)
    images = loop.images_per_iteration
    starts = itertools.count(0, experiment.training.batch_size)

    def feed() -> None:
        for _ in range(images // experiment.training.batch_size):
            loop.stream.batch(next(starts), experiment.training.batch_size)

    input_s, step_s = interleaved(feed, loop.iteration, 15)
    report(
        benchmark="input",
        input_images_per_s=images / input_s,
        step_images_per_s=images / step_s,
        ratio=step_s / input_s,
    )


if __name__ == "__main__":
    main()
