"""TReCS's choice of masks (section 2.2) by run-length codes, as it is done, and by pixels.

Generated scenes of 256 px, or COCO's pictures where a folder is given. A narrative mentions 4 things and 2 kinds of
stuff, each with a box as hull, drawn among the classes of 5 pictures; things get a mask (`choose_masks`) and stuff a
picture (`best_stuff`). Beside it the same by pixels, twice: "kept", every mask as an array in memory, which is quickest
and takes size x size bytes a mask, and "decoded" from the same codes each time. All must choose alike.

Wanted: on COCO codes at least 3 times as fast as decoding, in a hundredth of the bytes of pixels. Floor: the hulls are
coded too, and that alone takes `hulls_ms`.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from timing import interleaved, report

from orchestration.data.composition import choose_stuff
from orchestration.data.mask_choice import choose_masks, decoded, encoded
from orchestration.data.sources import open_source
from orchestration.narratives.composer import best_stuff
from orchestration.narratives.mask_bank import MaskBank, write_mask_bank
from orchestration.stages import quiet

Wanted = list[tuple[int, NDArray[np.bool_]]]
THINGS, KINDS, K = 4, 2, 5


def narratives(bank: MaskBank, count: int) -> list[tuple[Wanted, Wanted, list[int]]]:
    """Things, stuff, and the retrieved places of each."""
    draw, stuff, size = np.random.default_rng(0), np.array(bank.stuff), bank.size
    found = []
    for _ in range(count):
        places = draw.choice(len(bank), K, replace=False).tolist()
        labels = np.concatenate([bank.labels_of(place) for place in places])
        wanted: list[Wanted] = []
        for kind, number in ((False, THINGS), (True, KINDS)):
            own = labels[stuff[labels] == kind]
            hulls: Wanted = []
            for label in draw.choice(own, number if len(own) else 0):
                left, top = draw.integers(0, size * 3 // 4, 2)
                hull = np.zeros((size, size), np.bool_)
                hull[top : top + size // 3, left : left + size // 3] = True
                hulls.append((int(label), hull))
            wanted.append(hulls)
        found.append((wanted[0], wanted[1], places))
    return found


Dense = list[tuple[int, NDArray[np.bool_]]]


def dense(bank: MaskBank, place: int) -> Dense:
    masks = bank.masks(place)
    return [(int(label), decoded(code)) for label, code in zip(masks.labels, masks.codes, strict=True)]


def by_pixels(things: Wanted, stuff: Wanted, pictures: Sequence[Dense], maps: NDArray[np.int64]) -> tuple[object, int]:
    chosen = []
    for label, hull in things:
        best, where = -1.0, None
        for number, picture in enumerate(pictures):
            for place, (own, mask) in enumerate(picture):
                if own == label:
                    fit = float((mask & hull).sum() / (mask | hull).sum())
                    if fit > best:
                        best, where = fit, (number, place)
        chosen.append(where)
    return chosen, choose_stuff(stuff, maps)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="scenes:size=256,train=60,val=1,test=1", help="whose train split is used")
    parser.add_argument("--narratives", type=int, default=40)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = open_source(asked.data, "train", folder).having({"labels"})
        (folder / "bank").mkdir()
        bank = write_mask_bank(folder / "bank", dataset, asked.size, None, quiet)
        given = narratives(bank, asked.narratives)
        kept = [dense(bank, place) for place in range(len(bank))]
        maps = np.stack([bank.segmentation(place) for place in range(len(bank))])

        def codes() -> list[tuple[object, int]]:
            found: list[tuple[object, int]] = []
            for things, stuff, places in given:
                masks = [bank.masks(place) for place in places]
                choices = choose_masks(things, masks)
                found.append(([one and (one.picture, one.place) for one in choices], best_stuff(stuff, masks)[0]))
            return found

        def pixels() -> list[tuple[object, int]]:
            return [by_pixels(a, b, [kept[place] for place in places], maps[places]) for a, b, places in given]

        def decoding() -> list[tuple[object, int]]:
            return [
                by_pixels(
                    a, b, [dense(bank, place) for place in places], np.stack([bank.segmentation(p) for p in places])
                )
                for a, b, places in given
            ]

        def hulls() -> None:
            for things, stuff, _ in given:
                encoded([hull for _, hull in things + stuff])

        assert codes() == pixels() == decoding()
        own, in_memory = interleaved(codes, pixels, asked.rounds)
        own_again, from_codes = interleaved(codes, decoding, asked.rounds)
        floor, _ = interleaved(hulls, hulls, asked.rounds)
        masks = len(bank.labels)
        report(
            benchmark="mask_choice",
            data=asked.data.partition(":")[0],
            pictures=len(bank),
            masks_a_picture=masks / len(bank),
            size=asked.size,
            codes_ms=own / len(given) * 1e3,
            hulls_ms=floor / len(given) * 1e3,
            kept_over_codes=in_memory / own,
            decoded_over_codes=from_codes / own_again,
            bytes_a_mask=len(bank.codes) / masks,
            bytes_ratio=masks * asked.size**2 / len(bank.codes),
        )


if __name__ == "__main__":
    main()
