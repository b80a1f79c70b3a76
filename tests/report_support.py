"""Campaigns that are made by hand, for the tests of tables and pages: a ledger, metrics and small pictures."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from orchestration.campaigns.ledger import Ledger, Reached, Segment, SegmentState, State
from orchestration.campaigns.settings import CampaignSettings, Objective
from orchestration.campaigns.standing import bound_name
from search_spaces.space import Space, Value, load_space

FID, ACCURACY = "validation/fid/scenes-net", "validation/accuracy/thing"
SCRIPT = "<script>alert(1)</script>"
STARTED = 1_700_000_000.0
RANGES = {"lambda_1": "0.1:10", "tau": "0.03:0.5", "batch_size": "16,32,64"}


def settings_of(**changes: Any) -> CampaignSettings:
    """Fourteen trials of 8 kimg, halved at 2 and 4."""
    told = {"trials": 14, "budget_kimg": 8.0, "grace_kimg": 2.0, "objectives": [{"figure": FID}], **changes}
    return CampaignSettings.model_validate(told)


def space_of() -> Space:
    return load_space("xmcgan").choose(RANGES, RANGES)


def values_of(number: int) -> dict[str, Value]:
    """Spread over the space, the paper's first."""
    if number == 0:
        return {"lambda_1": 1.0, "tau": 0.1, "batch_size": 32}
    share = number * 0.618 % 1
    return {
        "lambda_1": 0.1 * 100**share,
        "tau": 0.03 + 0.4 * (number * 0.414 % 1),
        "batch_size": (16, 32, 64)[number % 3],
    }


def figures_at(values: Mapping[str, Value], kimg: float, interval: bool = True) -> dict[str, float]:
    """A smooth landscape: the best tau is 0.1, and more kimg help."""
    fid = (
        30
        + 60 * math.exp(-kimg / 3)
        + 40 * abs(float(values["tau"]) - 0.1)
        + 4 * abs(math.log10(float(values["lambda_1"])))
    )
    accuracy = 1 - fid / 120 + 0.1 * float(values["lambda_1"]) / 10
    found = {FID: fid, ACCURACY: accuracy}
    if interval:
        found |= {bound_name(FID, "low"): fid - 1.5, bound_name(FID, "high"): fid + 2.0}
        found |= {bound_name(ACCURACY, "low"): accuracy - 0.02, bound_name(ACCURACY, "high"): accuracy + 0.02}
    return found


class Made:
    """A campaign's folder in the making."""

    def __init__(self, folder: Path, settings: CampaignSettings, space: Space | None = None, **header: Any) -> None:
        self.folder, self.settings, self.space = folder, settings, space or space_of()
        told = {
            "name": folder.name,
            "settings": settings.model_dump(mode="json"),
            "space": self.space.model_dump(mode="json"),
            "base": {"recipe": "xmcgan_scenes32", "system": "xmcgan", "data": {"source": "scenes:size=32"}},
            "code": "0.1.0",
            "storage": None,
            **header,
        }
        self.ledger = Ledger.create(folder, told)
        self.steps: dict[int, int] = {}

    def trial(self, number: int, values: Mapping[str, Value] | None = None) -> None:
        self.ledger.propose(number, values or values_of(number), "proposed" if number else "paper")

    def begun(self, number: int, values: Mapping[str, Value] | None = None, donor: int | None = None) -> Segment:
        step = self.steps.get(number, 0)
        self.steps[number] = step + 1
        own = dict(values or self.ledger.trial(number).values)
        digest = None if donor is None else f"{donor:012x}feed"
        segment = Segment(number, step, self.settings.rungs[step], own, donor, digest)
        self.ledger.begin(segment)
        return segment

    def reached(
        self,
        segment: Segment,
        figures: Mapping[str, float] | None = None,
        state: SegmentState = SegmentState.REACHED,
        reason: str = "",
    ) -> None:
        """The segment ended, with metrics and a picture in the trial's folder."""
        kimg = segment.until_kimg
        found = dict(figures_at(segment.values, kimg) if figures is None else figures)
        trial = self.ledger.trial(segment.trial)
        whole = segment.step == len(self.settings.rungs) - 1
        states = {SegmentState.DIVERGED: State.DIVERGED, SegmentState.COLLAPSED: State.COLLAPSED}
        own = State.FINISHED if whole else State.WAITING
        if state != SegmentState.REACHED:
            own = states.get(state, State.FAILED)
        checkpoint = f"trials/{trial.name}/checkpoints/{kimg:g}"
        digest = f"{segment.trial:04x}{segment.step:04x}" + "ab" * 12
        self.ledger.reach(segment, Reached(state, kimg, found, checkpoint, digest, "run", "identity", reason), own)
        folder = self.folder / "trials" / trial.name
        self.metrics(folder, segment, found)
        picture(folder / "pictures" / f"kimg-{kimg:010.3f}.png", segment.trial)

    def metrics(self, folder: Path, segment: Segment, figures: Mapping[str, float]) -> None:
        """Two lines of loss and, where there are figures, one verdict."""
        before = self.settings.rungs[segment.step - 1] if segment.step else 0.0
        folder.mkdir(parents=True, exist_ok=True)
        half = (before + segment.until_kimg) / 2
        said: list[tuple[float, Mapping[str, float]]] = [
            (half, {"loss": 1.0, "speed/images_per_second": 100.0, **_midway(segment, half)}),
            (segment.until_kimg, {"loss": 0.5, "speed/images_per_second": 100.0}),
            (segment.until_kimg, figures),
        ]
        with (folder / "metrics.jsonl").open("a") as file:
            for kimg, values in said:
                line = {
                    "images": round(kimg * 1000),
                    "kimg": kimg,
                    "time": STARTED + kimg * 10,
                    "metrics": dict(values),
                }
                file.write(json.dumps(line) + "\n")


def _midway(segment: Segment, kimg: float) -> dict[str, float]:
    return figures_at(segment.values, kimg) if "tau" in segment.values else {}


def picture(path: Path, seed: int, size: tuple[int, int] = (208, 106)) -> None:
    """A gradient that tells one trial from another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    red = Image.linear_gradient("L").resize(size)
    green = Image.radial_gradient("L").resize(size)
    Image.merge("RGB", (red, green, Image.new("L", size, seed * 20 % 256))).save(path)


def halving_campaign(folder: Path) -> Made:
    """Fourteen trials: three with the whole budget, one that diverged with a nasty reason, one that failed, one that
    runs, the others stopped."""
    made = Made(folder, settings_of())
    for number in range(14):
        made.trial(number)
        segment = made.begun(number)
        if number == 4:
            nasty = f"the gradient of the generator is nan {SCRIPT} &amp;\n\x1b[31mred"
            made.reached(segment, {}, SegmentState.DIVERGED, nasty)
        elif number == 7:
            made.reached(segment, {}, SegmentState.FAILED, "the worker ended without a word (killed)")
        elif number != 13:
            made.reached(segment)
    on = by_figure(made, [number for number in range(13) if number not in (4, 7)])
    for number in on[:6]:
        made.reached(made.begun(number))
    for number in on[:3]:
        made.reached(made.begun(number))
    for number in on[3:]:
        kimg = made.ledger.trial(number).kimg
        made.ledger.end(number, State.STOPPED, f"others were better at {kimg:g} kimg")
    return made


def by_figure(made: Made, numbers: Sequence[int]) -> list[int]:
    figures = {number: made.ledger.trial(number).figures[FID] for number in numbers}
    return sorted(numbers, key=lambda number: figures[number])


def population_campaign(folder: Path) -> Made:
    """Four members, four generations; member 3 copies member 1 at 2 kimg, member 2 copies member 0 at 6."""
    made = Made(folder, settings_of(trials=4, scheduler="population"))
    for number in range(4):
        made.trial(number)
        made.reached(made.begun(number))
    for kimg in (4.0, 6.0, 8.0):
        for number in range(4):
            donor = {(4.0, 3): 1, (8.0, 2): 0}.get((kimg, number))
            values = None
            if donor is not None:
                values = {**made.ledger.trial(donor).values, "tau": 0.2 / kimg, "lambda_1": kimg / 4}
            made.reached(made.begun(number, values, donor))
    return made


def two_objectives(folder: Path, trials: int = 12) -> Made:
    """FID down, accuracy up."""
    objectives = [Objective(figure=FID).model_dump(), Objective(figure=ACCURACY, direction="maximize").model_dump()]
    made = Made(folder, settings_of(trials=trials, scheduler="none", objectives=objectives, grace_kimg=8.0))
    for number in range(trials):
        made.trial(number)
        made.reached(made.begun(number))
    return made
