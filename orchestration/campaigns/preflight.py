"""Preflight: can this campaign run here? The sum is done before anything is started, and refused with its numbers.

Nothing is trained, prepared or allocated: nets are built on torch.device("meta").
"""

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from models.abilities import Captioner, Matcher
from orchestration.campaigns.execution import SLOT
from orchestration.campaigns.needs import GIB, PROCESS_BYTES, Needs, Resources, available_resources, free_disk
from orchestration.campaigns.points import paper_point, trial_experiment
from orchestration.campaigns.settings import CampaignSettings, Objective
from orchestration.config import Experiment
from orchestration.data.sources import SCENES, parse_source
from orchestration.errors import RequestError
from orchestration.evaluation.feature_views import FEATURES, NETS
from orchestration.evaluation.r_precision import TOPS
from orchestration.evaluation.recall import KS, TO_CAPTION, TO_IMAGE
from orchestration.evaluation.scenes_net import ATTRIBUTES
from orchestration.evaluation.tables import better
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.requirements import PART_PROTOCOL, choose_protocol
from search_spaces.space import Space, Value

__all__ = [
    "Line",
    "Report",
    "Resources",
    "available_resources",
    "broken_points",
    "direction_of",
    "known_objectives",
    "objective_problem",
    "preflight",
    "require_writable",
]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the sum. problem: a sentence where it cannot be; note: what must be known with it."""

    what: str
    needed: str
    there: str = ""
    problem: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The sum. hours: None where nothing like it was trained in this home."""

    lines: list[Line] = field(default_factory=list)
    hours: float | None = None

    @property
    def problems(self) -> list[str]:
        """Every reason why it cannot be."""
        return [line.problem for line in self.lines if line.problem is not None]

    @property
    def refusal(self) -> str | None:
        """The first reason why it cannot be, as one sentence; None where it can."""
        return next(iter(self.problems), None)

    def text(self) -> str:
        """The sum as a table for people."""
        rows = [("", "needed", "there"), *((line.what, line.needed, line.there) for line in self.lines)]
        widths = [max(len(row[place]) for row in rows) for place in range(3)]
        marks = ["", *("no" if line.problem else "" for line in self.lines)]
        notes = ["", *(line.note for line in self.lines)]
        said = []
        for row, mark, note in zip(rows, marks, notes, strict=True):
            cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            said.append("  ".join(filter(None, (f"{mark:2}  {cells}", note))).rstrip())
        return "\n".join([*said, *(f"no: {problem}" for problem in self.problems)]) + "\n"


def preflight(
    base: Experiment,
    space: Space,
    settings: CampaignSettings,
    has: Resources,
    home: Home,
    preparation: Preparation | None = None,
) -> Report:
    """What the campaign needs, and what there is.

    preparation: of `base`, where one is open, so that its data is not read twice. Raises RequestError where the request
    makes no sense on its own: data that cannot be read, an unknown protocol.
    """
    needs = Needs(base, settings, has, home, preparation or Preparation(base, home))
    hours = needs.hours
    return Report([*_asked(base, space, settings), *_sum(needs, has), _duration(needs, hours)], hours)


def known_objectives(experiment: Experiment) -> list[str]:
    """The figures that the judging of this experiment records and that are better one way; [] where there is none.

    Those of a part are for a split with as many images as are judged. Raises RequestError for a protocol that cannot
    judge this data.
    """
    protocol, samples = choose_protocol(experiment), experiment.evaluation.samples
    generated = parse_source(experiment.data.source).kind == SCENES
    if protocol == "none":
        return []
    names: list[str] = []
    if protocol == PART_PROTOCOL:
        part = experiment.trainable
        if isinstance(part, Matcher):
            others = min(99, samples - 1)
            names += [f"r_precision/1+{others}/top-{top}" for top in TOPS if top <= others]
            names += [f"recall/{way}@{k}" for way in (TO_IMAGE, TO_CAPTION) for k in KS if k < samples]
        if isinstance(part, Captioner):
            scenes_names = [f"naming/scenes/{name}" for name in ATTRIBUTES]
            names += scenes_names if generated else ["naming/caption-overlap"]
    else:
        width = NETS[protocol].widths[FEATURES] or 0
        # FID is extrapolated where each half, drawn at random, has as many pictures as there are features.
        extrapolated = ["fid_inf"] if samples >= 2.5 * width else []
        names += [f"{metric}/{protocol}" for metric in ("fid", *extrapolated, "kid")]
        if protocol == "scenes-net":
            names += [f"accuracy/{name}" for name in ATTRIBUTES]
    return [f"validation/{name}" for name in names]


def direction_of(figure: str) -> Literal["minimize", "maximize"] | None:
    """Which way a figure validation/METRIC/PROTOCOL is better; None where neither is by itself."""
    found = {"lower": "minimize", "higher": "maximize", None: None}
    metric = figure.removeprefix("validation/").partition("/")[0]
    return found[better(metric)]  # type: ignore[return-value]


def objective_problem(experiment: Experiment, objective: Objective) -> str | None:
    """Why an objective cannot be one, as a sentence; None where it can."""
    known = known_objectives(experiment)
    if not known:
        return (
            f"nothing records {objective.figure}: evaluation.protocol is none, and a campaign needs judging; set it to "
            "auto"
        )
    if objective.figure not in known:
        near = difflib.get_close_matches(objective.figure, known, n=3, cutoff=0.6) or known
        wanted = objective.figure.rpartition("/")[2]
        other = f", or set evaluation.protocol={wanted}" if wanted in NETS else ""
        return (
            f"nothing records {objective.figure}: this experiment is judged under "
            f"{choose_protocol(experiment)}; near it: {', '.join(near)}{other}"
        )
    direction = direction_of(objective.figure)
    if direction is not None and direction != objective.direction:
        return f"{objective.figure} is better when it is {_way(direction)}: its direction must be {direction}"
    return None


def _way(direction: str) -> str:
    return "small" if direction == "minimize" else "large"


def require_writable(folder: Path) -> None:
    """RequestError where nothing can be written to a folder, or where it would be made."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "you may not write there" if place.is_dir() else f"{place} is no folder"
        raise RequestError(
            f"the campaign's folder {folder} cannot be written ({why}): mend its rights or choose another --home"
        )


def _asked(base: Experiment, space: Space, settings: CampaignSettings) -> Iterator[Line]:
    """Whether what is asked for is one campaign at all."""
    if space.system != base.system:
        problem = f"the search space is of {space.system}, and the experiment trains {base.system}: take that one's"
        yield Line("space", base.system, space.system, problem)
        return
    for objective in settings.objectives:
        problem_found = objective_problem(base, objective)
        yield Line("objective", objective.figure, "not recorded" if problem_found else "recorded", problem_found)
    try:
        paper = paper_point(space, base)
    except RequestError as error:
        yield Line("paper's point", "inside the ranges", "outside", str(error))
        return
    yield Line("paper's point", "inside the ranges", "inside")
    broken = list(broken_points(base, space, paper))
    tried = f"{len(space.parameters)} parameters"
    problem_text = None
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        problem_text = f"{broken[0]}{more}: narrow its range with --range"
    yield Line("points", tried, f"{len(broken)} make no experiment" if broken else "all make one", problem_text)


def broken_points(base: Experiment, space: Space, paper: Mapping[str, Value]) -> Iterator[str]:
    """Values that make no experiment, each as a clause: every choice, and both ends of every range, the other
    parameters being the paper's."""
    for name, parameter in space.parameters.items():
        for value in parameter.values or (parameter.at(0.0), parameter.at(1.0)):
            point = space.existing({**paper, name: value})
            if name not in point:
                continue
            try:
                trial_experiment(base, space, point)
            except RequestError as error:
                yield f"{name}={value} makes no experiment ({error})"


def _sum(needs: "Needs", has: Resources) -> Iterator[Line]:
    """The resources, in numbers."""
    at_once, workers, each = needs.at_once, needs.workers, needs.each
    asked = f"{at_once} {_plural('trial', at_once)} at a time"
    if has.slots is not None:
        problem = None
        if has.slots < at_once:
            problem = (
                f"{asked} need {at_once} units of the resource {SLOT!r} and the cluster has {has.slots:.0f}: start "
                f"each node that trains with --resources='{{\"{SLOT}\": N}}', N trials of it at a time"
            )
        yield Line("trial slots", f"{at_once}", f"{has.slots:.0f}", problem)
    asked = f"{asked}, each of {each} {_plural('worker', each)},"
    lower = f"lower --concurrent{' or --workers' if each > 1 else ''}, or add machines"
    if has.slots is None and has.cpus < workers:
        yield Line("CPUs", f"{workers}", f"{has.cpus:.0f}", note="workers will share cores")
    else:
        problem = f"{asked} need {workers} CPUs and there are {has.cpus:.0f}: {lower}" if has.cpus < workers else None
        yield Line("CPUs", f"{workers}", f"{has.cpus:.0f}", problem)
    if needs.uses_gpu:
        problem = None
        if has.gpus < workers:
            problem = f"{asked} need {workers} GPUs and there are {has.gpus:.0f}: {lower}"
            problem += "" if has.gpus else ", or set resources.use_gpu=false"
        yield Line("GPUs", f"{workers}", f"{has.gpus:.0f}", problem)
    yield from _memory(needs, has, asked, lower)
    free = free_disk(needs.home.root)
    problem = None
    if needs.disk > free:
        problem = (
            f"{needs.settings.trials} trials leave {_gib(needs.disk)} on disk ({needs.checkpoints} checkpoints of "
            f"{_gib(needs.checkpoint_bytes)}, {_gib(needs.picture_bytes)} of pictures) and {needs.home.root} has "
            f"{_gib(free)} free: choose another --home, lower --trials or training.keep_checkpoints"
        )
    note = f"{needs.checkpoints} checkpoints of {_gib(needs.checkpoint_bytes)}, {_gib(needs.picture_bytes)} of pictures"
    yield Line("disk", _gib(needs.disk), _gib(free), problem, note)


def _memory(needs: "Needs", has: Resources, asked: str, lower: str) -> Iterator[Line]:
    parts = needs.memory
    note = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
    one = sum(parts.values())
    less = "lower training.batch_size, or raise training.micro_batches"
    if needs.uses_gpu:
        problem = None
        if has.gpu_memory is not None and one > has.gpu_memory:
            problem = f"a worker needs {_gib(one)} of a GPU ({note}) and it has {_gib(has.gpu_memory)}: {less}"
        yield Line(
            "GPU memory of a worker",
            _gib(one),
            "unknown" if has.gpu_memory is None else _gib(has.gpu_memory),
            problem,
            note,
        )
    process = PROCESS_BYTES + (0 if needs.uses_gpu else one)
    total = needs.workers * process
    problem = None
    if total > has.memory:
        problem = (
            f"{asked} need {needs.workers} x {_gib(process)} of memory and there are {_gib(has.memory)}: {lower}; or "
            f"{less}"
        )
    yield Line(
        "memory", f"{needs.workers} x {_gib(process)}", _gib(has.memory), problem, "" if needs.uses_gpu else note
    )


def _duration(needs: "Needs", hours: float | None) -> Line:
    if not needs.kimg:
        return Line("hours", "unknown", note="nothing is trained in a trial itself; it is made ready, drawn and judged")
    note = f"{needs.kimg:g} kimg of {needs.settings.trials} trials, without judging"
    if hours is None:
        return Line("hours", "unknown", note=f"{note}; nothing like it was trained in this home")
    return Line("hours", f"{hours:.2g}", note=f"{note}, at {needs.speed:.3g} images/s")


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
