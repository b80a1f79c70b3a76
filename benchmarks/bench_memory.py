"""What CPGAN's memory costs beside the detector that it looks with. Wanted: at most 1.2 times a bare detector pass.

Both sides see the same pictures, one after the other, interleaved: the detector alone (YOLOv3 of the published width at
416 px, random weights), and all that building the memory does: boxes with features, the published captioner's attention
over five captions a picture, the best entries gathered. Beside it how gathering alone grows with the captions, which is
to be linear, and how much memory it takes with one and with two times the vocabulary.

Floor: the detector's own 66 billion multiplications a picture (Redmon and Farhadi, 2018, table 3: 65.9 at 416 px).
"""

import argparse
import time
import tracemalloc
from collections.abc import Iterator

import torch
from timing import interleaved, report
from torch import Tensor

from models.contract import Batch, Regions, Tokens
from models.cpgan.captioner import AttentionCaptionerConfig, TopDownCaptioner
from models.cpgan.memory import Memory, MemoryConfig
from models.detectors.contract import DetectorSettings
from models.detectors.yolov3 import YOLOv3, YOLOv3Detector
from models.encoders.regions import RegionNet, RegionSettings

WORDS, CAPTIONS, LENGTH, SIDE = 27_297, 5, 12, 416
TOP_K = 100


class Store:
    """Features that are made up where they are asked for."""

    def take(self, items: Tensor, places: Tensor) -> Tensor:
        return ((items * 36 + places)[:, None] % 1009).float().expand(-1, 1024)


def region_net() -> RegionNet:
    settings = DetectorSettings(
        kind="yolov3", weights="none", side=SIDE, objectness=0.0, suppression="greedy", overlap=0.4, most=36
    )
    names = tuple(map(str, range(80)))
    detector = YOLOv3Detector(YOLOv3(80, 32), settings, names, "0" * 64, torch.device("cpu"))
    return RegionNet(RegionSettings(), detector)


def portions(pictures: int, words: int, per_picture: int, at_once: int = 500) -> Iterator[dict[str, Tensor]]:
    """What looking at so many pictures says: one entry a word of each caption."""
    draw = torch.Generator().manual_seed(0)
    for start in range(0, pictures, at_once):
        items = torch.arange(start, min(start + at_once, pictures)).repeat_interleave(per_picture * LENGTH)
        rows = len(items)
        yield {
            "words": (torch.rand(rows, generator=draw).pow(3) * (words - 1)).long() + 1,
            "items": items,
            "places": torch.randint(0, 36, (rows,), generator=draw),
            "attention": torch.rand(rows, generator=draw),
            "boxes": torch.rand(rows, 4, generator=draw),
        }


def gathering(pictures: int, words: int, per_picture: int) -> tuple[float, float]:
    """Seconds, and the peak of Python's and numpy's own memory in MiB, of gathering alone."""
    tracemalloc.start()
    start = time.perf_counter()
    Memory().gather(MemoryConfig(top_k=TOP_K), words, portions(pictures, words, per_picture), Store())
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=4, help="pictures of a turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--gathered", type=int, default=10_000, help="pictures of the smallest gathering")
    asked = parser.parse_args()
    net, memory, config = region_net(), Memory(), MemoryConfig(top_k=TOP_K)
    captioner = TopDownCaptioner(AttentionCaptionerConfig(), WORDS).eval()
    images = torch.rand(asked.pictures, 3, SIDE, SIDE) * 2 - 1
    tokens = Tokens(
        torch.randint(1, WORDS, (asked.pictures * CAPTIONS, LENGTH)),
        torch.full((asked.pictures * CAPTIONS,), LENGTH),
        "0" * 64,
    )
    items = torch.arange(asked.pictures).repeat_interleave(CAPTIONS)
    pictures = ((images + 1) * 127.5).round().to(torch.uint8)

    def bare() -> None:
        net.detector.detect(pictures)

    @torch.no_grad()
    def build() -> None:
        found = net(images)
        rows = Regions(found.boxes[items], found.features[items], found.scores[items], found.counts[items])
        batch = Batch(items, None, tokens=tokens, regions=rows)
        seen = memory.look({"captioner": captioner}, config, batch, items)
        memory.gather(config, WORDS, [seen], Store())

    built, alone = interleaved(build, bare, asked.rounds)
    sizes = [(1, WORDS), (2, WORDS), (4, WORDS), (1, 2 * WORDS)]
    grown = [gathering(asked.gathered, words, CAPTIONS * times) for times, words in sizes]
    report(
        benchmark="memory",
        ratio=built / alone,
        wanted=1.2,
        pictures_a_second=asked.pictures / built,
        detector_pictures_a_second=asked.pictures / alone,
        captions=[asked.gathered * CAPTIONS * times for times, _ in sizes],
        vocabulary=[words for _, words in sizes],
        gather_seconds=[round(seconds, 2) for seconds, _ in grown],
        gather_mib=[round(peak) for _, peak in grown],
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
