"""One self-contained HTML page about a campaign, from its ledger and its trials' folders.

The page is read from disk, without a network: plots, pictures and plotly.js are in it. What the ledger and the trials
say is text to it, whatever it looks like: Jinja escapes it, and the page's policy runs no script but its own.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from pydantic import ValidationError

from orchestration.campaigns.changes import code_version
from orchestration.campaigns.conductor import best
from orchestration.campaigns.ledger import Ledger, Segment, State, Trial
from orchestration.campaigns.report_plots import (
    Curve,
    Plot,
    importance_bars,
    learning_curves,
    lineage,
    parallel_coordinates,
    pareto_fronts,
    slices,
    start_of_each,
    values_against_kimg,
)
from orchestration.campaigns.report_study import ENOUGH_FOR_IMPORTANCES, Comparison, comparisons, importances, study_of
from orchestration.campaigns.report_trials import Record, read_record
from orchestration.campaigns.settings import CampaignSettings
from orchestration.campaigns.standing import (
    ENDED_BADLY,
    VALIDATION,
    Standing,
    one_line,
    ranked,
    shown,
    standing,
    told_lead,
)
from orchestration.errors import RequestError, RunError
from orchestration.home import all_looked_at
from orchestration.stages import write_atomically
from search_spaces.space import Space

BEST_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Told:
    """A campaign as its folder tells it. records: what each trial left behind, by number."""

    name: str
    header: Mapping[str, Any]
    settings: CampaignSettings
    space: Space
    trials: list[Trial]
    segments: list[Segment]
    records: Mapping[int, Record]

    @property
    def ranked(self) -> list[Trial]:
        return ranked(self.trials, self.settings)


def write_report(folder: Path, out: Path) -> Path:
    """Write the page about the campaign in `folder` to the file `out`, and return it. The campaign may still run.

    Raises RequestError for a folder that is no campaign, RunError when the page cannot be written.
    """
    page = render(read_folder(folder))
    try:
        write_atomically(out, page)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror or error}): name another file with --out") from error
    return out


def read_folder(folder: Path) -> Told:
    """What the ledger and the trials' folders say. Raises RequestError."""
    ledger = Ledger.open(folder)
    try:
        header, trials, segments = ledger.header, ledger.trials(), ledger.segments()
    finally:
        ledger.close()
    try:
        settings = CampaignSettings.model_validate(header["settings"])
        space = Space.model_validate(header["space"])
    except (KeyError, ValidationError) as error:
        raise RequestError(
            f"the ledger in {folder} does not say what this version needs ({one_line(str(error))}): use the version of "
            "t2i that wrote it"
        ) from error
    places = all_looked_at([folder / "trials" / trial.name for trial in trials])
    records = {trial.number: read_record(place, settings) for trial, place in zip(trials, places, strict=True)}
    return Told(one_line(str(header.get("name") or folder.name)), header, settings, space, trials, segments, records)


def render(told: Told) -> str:
    """The page."""
    from plotly.offline import get_plotlyjs

    scripts = {"plotly": get_plotlyjs(), "page": _beside("report.js")}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__name__.rpartition(".")[0], "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = Figures()
    return environment.get_template("report.html").render(
        told=told,
        scripts={name: Markup(script) for name, script in scripts.items()},
        style=Markup(_beside("report.css")),
        policy=" ".join(f"'{_digest(script)}'" for script in scripts.values()),
        head=_head(told),
        lead=told_lead(told.trials, told.settings),
        against_paper=_against_paper(told),
        states=_states(told.trials),
        cost=_cost(told),
        cards=_cards(told),
        table=_table(told),
        heads=[objective.figure.removeprefix(VALIDATION) for objective in told.settings.objectives],
        parameters=list(told.space.parameters),
        damages=[(record.folder.name, record.damage) for record in told.records.values() if record.damage],
        curves=[figures.add(plot) for plot in _curves(told)],
        studies=[_study(told, comparison, figures) for comparison in comparisons(told.segments, told.settings)],
        fronts=[figures.add(plot) for plot in _fronts(told)],
        population=_population(told, figures),
        rungs=_rungs(told),
        ends=_ends(told),
        searched=_searched(told),
        base=json.dumps(told.header.get("base"), indent=1, sort_keys=True),
        figures=figures.added,
        enough=ENOUGH_FOR_IMPORTANCES,
        shown=shown,
    )


@dataclass
class Figures:
    """The page's plots in the order in which they are used; each has an id."""

    added: list[tuple[str, Plot, Markup]] = field(default_factory=list)

    def add(self, plot: Plot) -> tuple[str, Plot]:
        """The id of the plot's place on the page."""
        name = f"plot-{len(self.added)}"
        self.added.append((name, plot, Markup(plot.json)))
        return name, plot


def _head(told: Told) -> list[tuple[str, str]]:
    base = told.header.get("base")
    base = base if isinstance(base, dict) else {}
    times = [time for record in told.records.values() for time in (record.began, record.ended) if time]
    settings = told.settings
    objectives = ", ".join(f"{objective.direction} {objective.figure}" for objective in settings.objectives)
    return [
        ("recipe", _said(base.get("recipe"))),
        ("system", _said(base.get("system", told.space.system))),
        ("data", _data(told) or "not recorded"),
        ("objective", objectives),
        ("search", f"{settings.trials} trials of {settings.budget_kimg:g} kimg, proposed by {settings.sampler}"),
        ("early stopping", _scheduler(settings)),
        ("code", _code(told.header.get("code"))),
        ("trained", f"{min(times)} to {max(times)} (UTC)" if times else "nothing was recorded yet"),
    ]


def _data(told: Told) -> str:
    """The data's source, "" where the ledger does not say."""
    try:
        return one_line(str(told.header["base"]["data"]["source"]))
    except (KeyError, TypeError):
        return ""


def _scheduler(settings: CampaignSettings) -> str:
    rungs = ", ".join(f"{kimg:g}" for kimg in settings.rungs)
    return {
        "none": "none: every trial has the whole budget",
        "halving": f"successive halving (ASHA): compared at {rungs} kimg, one in {settings.reduction} goes on",
        "population": f"population (PBT): compared at {rungs} kimg, the worst {settings.quantile:.0%} copy the best",
    }[settings.scheduler]


def _code(value: Any) -> str:
    return code_version(value) if isinstance(value, dict) else _said(value)


def _said(value: Any) -> str:
    if value is None:
        return "not recorded"
    return one_line(value if isinstance(value, str) else json.dumps(value, sort_keys=True))


def _against_paper(told: Told) -> str:
    """How the best stands to the paper's point, in one sentence; "" where that says nothing new."""
    front, objective = best(told.trials, told.settings), told.settings.objectives[0]
    paper = next((trial for trial in told.trials if trial.origin == "paper"), None)
    if not front or paper is None or len(told.settings.objectives) > 1:
        return ""
    if paper == front[0]:
        return "The paper's own point is the best."
    first, other = (standing(trial.figures, objective.figure) for trial in (front[0], paper))
    if paper.state != State.FINISHED or first is None or other is None:
        return f"The paper's own point, {paper.name}, has no figure at the whole budget: it is {paper.state}."
    overlap = first.overlaps(other)
    verdict = {
        None: "whether that is noise cannot be said without intervals",
        True: "within the noise of the best: the campaign did not beat it",
        False: "worse than the best by more than the noise",
    }[overlap]
    return f"The paper's own point, {paper.name}, reached {other}: {verdict}."


def _states(trials: Sequence[Trial]) -> list[tuple[str, int]]:
    counts = Counter(trial.state for trial in trials)
    return [(str(state), counts[state]) for state in State if counts[state]]


def _cost(told: Told) -> dict[str, str]:
    kimg = sum(trial.kimg for trial in told.trials)
    whole = len(told.trials) * told.settings.budget_kimg
    seconds = sum(record.seconds for record in told.records.values())
    bad = sum(trial.kimg for trial in told.trials if trial.state in ENDED_BADLY)
    spared = f"{1 - kimg / whole:.0%} less than every trial's whole budget ({whole:g} kimg)" if 0 < kimg < whole else ""
    return {
        "kimg": f"{kimg:.4g} kimg",
        "time": duration(seconds),
        "spared": spared,
        "bad": f"{bad:.4g} kimg in trials that diverged, collapsed or failed" if bad else "",
    }


def duration(seconds: float) -> str:
    """Such as "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _reached(told: Told, trial: Trial) -> list[Standing | None]:
    return [standing(trial.figures, objective.figure) for objective in told.settings.objectives]


def _cards(told: Told) -> list[dict[str, Any]]:
    """The best trials with what they drew, and the paper's."""
    drawn = [trial for trial in told.ranked if trial.kimg > 0 or trial.state == State.FINISHED]
    order = [trial for trial in drawn if trial.state not in ENDED_BADLY]
    chosen = order[:BEST_SHOWN]
    chosen += [trial for trial in order[BEST_SHOWN:] if trial.origin == "paper"]
    front = {trial.number for trial in best(told.trials, told.settings)}
    return [
        {
            "trial": trial,
            "best": trial.number in front,
            "reached": _reached(told, trial),
            "picture": told.records[trial.number].picture(),
            "digest": (trial.digest or "")[:12],
        }
        for trial in chosen
    ]


def _table(told: Told) -> list[dict[str, Any]]:
    front = {trial.number for trial in best(told.trials, told.settings)}
    return [
        {
            "trial": trial,
            "best": trial.number in front,
            "reached": _reached(told, trial),
            "reason": one_line(trial.reason),
            "time": duration(told.records[trial.number].seconds),
        }
        for trial in told.ranked
    ]


def _curves(told: Told) -> Iterator[Plot]:
    if not told.settings.budget_kimg:
        return  # judged once, at 0
    for objective in told.settings.objectives:
        found = []
        for trial in told.ranked:
            recorded = told.records[trial.number].curves.get(objective.figure)
            points = recorded or _from_segments(told, trial, objective.figure)
            if points:
                found.append(Curve(trial, points))
        if found:
            yield learning_curves(found, objective)


def _from_segments(told: Told, trial: Trial, figure: str) -> list[tuple[float, Standing]]:
    """A coarser curve from the ledger, where a trial's folder is gone."""
    own = [segment for segment in told.segments if segment.trial == trial.number]
    points = [(segment.until_kimg, standing(segment.figures, figure)) for segment in own]
    return [(kimg, reached) for kimg, reached in points if reached is not None]


def _study(told: Told, comparison: Comparison, figures: Figures) -> dict[str, Any]:
    """Plots of the trials that were compared at one budget, for each objective."""
    points, objectives = comparison.points, []
    if len(points) > 1:
        study = study_of(points, told.space, told.settings)
        for place, objective in enumerate(told.settings.objectives):
            shares = importances(study, told.settings, place, len(points))
            objectives.append(
                {
                    "name": objective.figure.removeprefix(VALIDATION),
                    "importances": figures.add(importance_bars(shares, objective)) if shares else None,
                    "plots": [
                        *(figures.add(plot) for plot in slices(study, points, told.settings, place)),
                        figures.add(parallel_coordinates(study, points, objective, place)),
                    ],
                }
            )
    return {"kimg": comparison.kimg, "whole": comparison.whole, "count": len(points), "objectives": objectives}


def _fronts(told: Told) -> Iterable[Plot]:
    [whole, *_] = comparisons(told.segments, told.settings)
    if len(told.settings.objectives) < 2 or len(whole.points) < 2:
        return ()
    return pareto_fronts(study_of(whole.points, told.space, told.settings), told.settings)


def _population(told: Told, figures: Figures) -> dict[str, Any] | None:
    if told.settings.scheduler != "population" or not told.segments:
        return None
    begins = start_of_each(told.segments)
    before = {(segment.trial, segment.step): segment for segment in told.segments}
    copies = [
        {
            "kimg": begins[segment.trial, segment.step],
            "trial": f"trial-{segment.trial:04d}",
            "donor": f"trial-{segment.donor:04d}",
            "digest": (segment.donor_digest or "")[:12],
            "changes": _changes(before.get((segment.trial, segment.step - 1)), segment),
        }
        for segment in sorted(told.segments, key=lambda one: (one.step, one.trial))
        if segment.donor is not None
    ]
    steps = values_against_kimg(told.trials, told.segments)
    plots = [lineage(told.trials, told.segments), *([steps] if steps else [])]
    return {"plots": [figures.add(plot) for plot in plots], "copies": copies}


def _changes(before: Segment | None, after: Segment) -> str:
    old = before.values if before else {}
    changed = [name for name, value in after.values.items() if old.get(name) != value]
    return ", ".join(f"{name} {shown(old.get(name, '-'))} to {shown(after.values[name])}" for name in changed) or "none"


def _rungs(told: Told) -> list[dict[str, Any]]:
    """With halving: how many were compared at each rung, the best there, and how many went on."""
    if told.settings.scheduler != "halving":
        return []
    [objective] = told.settings.objectives
    rows = []
    for step, kimg in enumerate(told.settings.rungs):
        at = [one for one in told.segments if one.step == step]
        reached = [found for one in at if (found := standing(one.figures, objective.figure)) is not None]
        sign = 1 if objective.direction == "minimize" else -1
        rows.append(
            {
                "kimg": kimg,
                "begun": len(at),
                "compared": len(reached),
                "best": min(reached, key=lambda one: sign * one.value) if reached else None,
                "on": sum(one.step == step + 1 for one in told.segments),
            }
        )
    return rows


def _ends(told: Told) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """States other than finished, each with its reasons and the trials they ended."""
    found: dict[str, dict[str, list[str]]] = {}
    for trial in told.trials:
        if trial.state.ended and trial.state != State.FINISHED:
            reason = one_line(trial.reason) or "no reason was recorded"
            found.setdefault(str(trial.state), {}).setdefault(reason, []).append(trial.name)
    return [(state, list(reasons.items())) for state, reasons in found.items()]


def _searched(told: Told) -> list[dict[str, str]]:
    """The space: each parameter with its range, the documented value, its source, and the best's value."""
    front, data = best(told.trials, told.settings), _data(told)
    documented = {name: parameter.documented_on(data) for name, parameter in told.space.parameters.items()}
    return [
        {
            "name": name,
            "range": parameter.describe() + (f"; only where {parameter.condition}" if parameter.condition else ""),
            "documented": "none" if documented[name] is None else shown(documented[name]),
            "best": shown(front[0].values[name]) if front and name in front[0].values else "-",
            "source": parameter.source,
        }
        for name, parameter in told.space.parameters.items()
    ]


def _beside(name: str) -> str:
    return files(__name__.rpartition(".")[0]).joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
