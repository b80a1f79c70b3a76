"""The report's plots as plotly figures: Optuna's own, with intervals and names added, and those it has none for.

Colours stand out on light and on dark paper; what depends on the paper (text, grids) is set by the page.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import optuna.visualization
import plotly.graph_objects as go
from optuna import Study
from plotly.subplots import make_subplots

from orchestration.campaigns.ledger import Segment, SegmentState, Trial
from orchestration.campaigns.report_study import Point, quietly, text
from orchestration.campaigns.settings import CampaignSettings, Objective
from orchestration.campaigns.standing import VALIDATION, Standing, shown
from search_spaces.space import Value

COLOURS = ("#4a7fc1", "#d95f45", "#2e9e6b", "#b8860b", "#a04fa8", "#2ba3b5", "#c7548b", "#7a8f2a")
OTHERS, BEST, WORST, EARLY, LATE = "#8d99ae", "#d1492e", "#8ea6c4", "#9db8dd", "#2f6fc0"
PAPER_MARK = {"symbol": "star", "size": 12, "color": "#d1492e", "line": {"width": 1, "color": "#8a2a18"}}
ACROSS, BANDS = 3, 4
PIXELS_A_SLICE, PIXELS_AN_AXIS, PIXELS_A_BAR, PIXELS_A_MEMBER = 220, 95, 34, 30


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure, what it shows in words, and its size in pixels. least_width: narrower, it is scrolled."""

    figure: go.Figure
    caption: str
    height: int = 420
    least_width: int = 0

    @property
    def json(self) -> str:
        """The figure for a script element of a page: it cannot end the element, and holds no template."""
        figure = json.loads(self.figure.to_json())  # plotly's own writer makes null of what is not finite
        figure["layout"].pop("template", None)
        written = json.dumps(figure, allow_nan=False, separators=(",", ":"))
        return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@dataclass(frozen=True, slots=True)
class Curve:
    """An objective of one trial against kimg."""

    trial: Trial
    points: Sequence[tuple[float, Standing]]


def learning_curves(curves: Sequence[Curve], objective: Objective) -> Plot:
    """Curves, best trial first; the first have a colour of their own and a band for the interval."""
    figure = go.Figure()
    for place, curve in reversed(list(enumerate(curves))):
        own = COLOURS[place] if place < len(COLOURS) else None
        name = f"{curve.trial.name}{' (paper)' if curve.trial.origin == 'paper' else ''}"
        if own is not None and place < BANDS and _bounded(curve):
            figure.add_trace(_band(curve, own))
        figure.add_trace(
            go.Scatter(
                x=[kimg for kimg, _ in curve.points],
                y=[reached.value for _, reached in curve.points],
                text=[f"{name}<br>{kimg:g} kimg: {reached}" for kimg, reached in curve.points],
                name=name if own else f"{len(curves) - len(COLOURS)} others",
                legendgroup=curve.trial.name if own else "others",
                showlegend=place <= len(COLOURS),
                legendrank=place,
                mode="lines+markers",
                hovertemplate="%{text}<extra></extra>",
                line={"color": own or OTHERS, "width": 2 if own else 1},
                marker={"size": 6 if own else 4, "symbol": place % 8},
                opacity=1 if own else 0.6,
            )
        )
    figure.update_layout(
        xaxis={"title": {"text": "kimg"}, "rangemode": "tozero"},
        yaxis={"title": {"text": text(objective.figure)}},
        legend={"orientation": "h", "y": -0.2},
        margin={"t": 20, "r": 10},
    )
    bands = f" Bands are 95 % intervals of the best {BANDS}." if any(_bounded(curve) for curve in curves) else ""
    more = f" The best {len(COLOURS)} have a colour; the others are grey." if len(curves) > len(COLOURS) else ""
    wanted = "lower" if objective.direction == "minimize" else "higher"
    caption = f"{_short(objective)} of each trial while it trained ({wanted} is better).{bands}{more}"
    return Plot(figure, caption, height=480)


def _band(curve: Curve, colour: str) -> go.Scatter:
    points = _bounded(curve)
    there = [kimg for kimg, _ in points]
    return go.Scatter(
        x=[*there, *reversed(there)],
        y=[*(reached.high for _, reached in points), *(reached.low for _, reached in reversed(points))],
        fill="toself",
        fillcolor=colour,
        opacity=0.15,
        line={"width": 0},
        mode="lines",
        legendgroup=curve.trial.name,
        showlegend=False,
        hoverinfo="skip",
    )


def _bounded(curve: Curve) -> list[tuple[float, Standing]]:
    return [(kimg, reached) for kimg, reached in curve.points if reached.low is not None]


def slices(study: Study, points: Sequence[Point], settings: CampaignSettings, objective: int) -> Iterator[Plot]:
    """Optuna's slice plots, a few parameters at a time, with intervals, trials' names and the paper's point."""
    name = _short(settings.objectives[objective])
    parameters = sorted({parameter for point in points for parameter in point.values})
    known = {point.trial: point.reached[objective] for point in points}
    for start in range(0, len(parameters), ACROSS):
        shown_here = parameters[start : start + ACROSS]
        with quietly():
            figure = optuna.visualization.plot_slice(
                study,
                [text(parameter) for parameter in shown_here],
                target=lambda trial: trial.values[objective],
                target_name=text(name),
            )
        for trace in list(figure.data):
            _add_names(figure, trace, known)
        figure.update_layout(title=None, margin={"t": 20, "r": 10}, showlegend=False)
        figure.update_xaxes(automargin=True)
        caption = f"{name} against {_listed(shown_here)}. Lines are 95 % intervals; the star is the paper's point."
        yield Plot(figure, caption, 380, PIXELS_A_SLICE * len(shown_here))


def _add_names(figure: go.Figure, trace: Any, known: Mapping[int, Standing]) -> None:
    numbers = [int(number) for number in trace.marker.color]
    reached = [known[number] for number in numbers]
    trace.update(
        text=[f"trial-{number:04d}: {one}" for number, one in zip(numbers, reached, strict=True)],
        hovertemplate="%{text}<br>at %{x}<extra></extra>",
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [0 if one.high is None else one.high - one.value for one in reached],
            "arrayminus": [0 if one.low is None else one.value - one.low for one in reached],
            "color": OTHERS,
            "thickness": 1,
            "width": 2,
        },
        marker={"colorscale": [[0, EARLY], [1, LATE]], "size": 9, "showscale": False},
    )
    if 0 in numbers:
        place = numbers.index(0)
        figure.add_trace(
            go.Scatter(
                x=[trace.x[place]],
                y=[trace.y[place]],
                xaxis=trace.xaxis,
                yaxis=trace.yaxis,
                mode="markers",
                marker=PAPER_MARK,
                text=[f"trial-0000, the paper's point: {reached[place]}"],
                hovertemplate="%{text}<extra></extra>",
            )
        )


def parallel_coordinates(study: Study, points: Sequence[Point], objective: Objective, place: int) -> Plot:
    """Optuna's parallel coordinates: one line a trial through its values, coloured by what it reached."""
    name = _short(objective)
    with quietly():
        figure = optuna.visualization.plot_parallel_coordinate(
            study, target=lambda trial: trial.values[place], target_name=text(name)
        )
    down = objective.direction == "minimize"
    for trace in figure.data:
        if trace.mode == "lines":
            place_on_axis = float(trace.y[0])  # of the objective, from its lowest at 0 to its highest at 1
            share = place_on_axis if down else 1 - place_on_axis
            trace.update(line={"color": _between(BEST, WORST, share), "width": 2.5 - 1.5 * share}, opacity=0.9)
        else:
            trace.marker.showscale = False  # the objective has an axis of its own
    figure.update_annotations(font={"size": 10, "color": None})
    figure.update_layout(title=None, plot_bgcolor=None, margin={"t": 30, "r": 20, "b": 30})
    axes = 1 + len({parameter for point in points for parameter in point.values})
    caption = f"One line a trial through its values to its {name}; the redder, the better."
    return Plot(figure, caption, 420, PIXELS_AN_AXIS * axes)


def importance_bars(shares: Mapping[str, float], objective: Objective) -> Plot:
    """PED-ANOVA's shares, the largest on top."""
    order = sorted(shares, key=lambda name: shares[name])
    figure = go.Figure(
        go.Bar(
            x=[shares[name] for name in order],
            y=order,
            text=[f"{shares[name]:.2f}" for name in order],
            orientation="h",
            marker={"color": COLOURS[0]},
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    )
    figure.update_layout(
        xaxis={"title": {"text": "share"}, "range": [0, max([*shares.values(), 0.01]) * 1.15]},
        yaxis={"automargin": True},
        margin={"t": 10, "r": 10},
    )
    caption = f"How much each value decides whether a trial is among the best in {_short(objective)} (PED-ANOVA)."
    return Plot(figure, caption, 110 + PIXELS_A_BAR * len(order))


def pareto_fronts(study: Study, settings: CampaignSettings) -> Iterator[Plot]:
    """Optuna's Pareto plot of every two objectives; the front is that of all of them."""
    for first, second in combinations(range(len(settings.objectives)), 2):
        names = [_short(settings.objectives[place]) for place in (first, second)]
        with quietly():
            figure = optuna.visualization.plot_pareto_front(
                study,
                target_names=[text(name) for name in names],
                targets=lambda trial, pair=(first, second): tuple(trial.values[place] for place in pair),
            )
        for trace in figure.data:
            front = "Best" in trace.hovertemplate
            trace.update(
                name="on the front" if front else "not on it",
                showlegend=True,
                marker={
                    "color": BEST if front else WORST,
                    "symbol": "diamond" if front else "circle",
                    "size": 10,
                    "showscale": False,
                },
            )
        figure.update_layout(title=None, margin={"t": 20, "r": 10}, legend={"orientation": "h", "y": -0.2})
        better = [
            ("lower" if settings.objectives[place].direction == "minimize" else "higher") for place in (first, second)
        ]
        caption = f"{names[0]} ({better[0]} is better) against {names[1]} ({better[1]} is better) at the whole budget."
        yield Plot(figure, caption, 440)


def lineage(trials: Sequence[Trial], segments: Sequence[Segment]) -> Plot:
    """Each member's training as a line, and an arrow from the donor wherever it copied one."""
    figure = go.Figure()
    begins = start_of_each(segments)
    for trial in trials:
        own = [segment for segment in segments if segment.trial == trial.number]
        ends = [begins[trial.number, segment.step] for segment in own] + [segment.until_kimg for segment in own[-1:]]
        colour = COLOURS[trial.number % len(COLOURS)]
        told = [f"{trial.name}, from {begins[trial.number, one.step]:g} kimg<br>{_values(one.values)}" for one in own]
        figure.add_trace(
            go.Scatter(
                x=ends,
                y=[trial.name] * len(ends),
                text=[*told, f"{trial.name}: {trial.state}"],
                mode="lines+markers",
                line={"color": colour, "width": 3},
                marker={"size": 7},
                hovertemplate="%{text}<extra></extra>",
            )
        )
        broken = [one for one in own if one.state not in (SegmentState.REACHED, SegmentState.BEGUN)]
        figure.add_trace(
            go.Scatter(
                x=[one.until_kimg for one in broken],
                y=[trial.name] * len(broken),
                mode="markers",
                marker={"symbol": "x", "size": 12, "color": BEST},
                text=[text(f"{one.state}: {one.reason}") for one in broken],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    for segment in segments:
        if segment.donor is not None:
            kimg = begins[segment.trial, segment.step]
            figure.add_annotation(
                x=kimg, y=f"trial-{segment.trial:04d}", ax=kimg, ay=f"trial-{segment.donor:04d}", axref="x", ayref="y",
                text="", showarrow=True, arrowhead=2, arrowsize=1.2, arrowwidth=1.5, arrowcolor=OTHERS,
            )  # fmt: skip
    names = [trial.name for trial in trials]
    figure.update_layout(
        xaxis={"title": {"text": "kimg"}, "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "categoryorder": "array", "categoryarray": names, "automargin": True},
        showlegend=False,
        margin={"t": 20, "r": 20},
    )
    caption = "Each line is a member of the population; an arrow is weights copied from a better one. × is a bad end."
    return Plot(figure, caption, 120 + PIXELS_A_MEMBER * len(names))


def values_against_kimg(trials: Sequence[Trial], segments: Sequence[Segment]) -> Plot | None:
    """Steps of every numeric value that some member changed on the way; None where none did."""
    by_trial = {trial.number: [one for one in segments if one.trial == trial.number] for trial in trials}
    names = list(dict.fromkeys(name for segment in segments for name in segment.values))
    changed = [
        name for name in names if any(len({one.values.get(name) for one in own}) > 1 for own in by_trial.values())
    ]
    if not changed:
        return None
    figure = make_subplots(rows=len(changed), cols=1, shared_xaxes=True, vertical_spacing=min(0.06, 0.3 / len(changed)))
    begins = start_of_each(segments)
    for row, name in enumerate(changed, 1):
        for trial in trials:
            own = by_trial[trial.number]
            if not own:
                continue
            values = [one.values.get(name) for one in own]
            figure.add_trace(
                go.Scatter(
                    x=[*(begins[one.trial, one.step] for one in own), own[-1].until_kimg],
                    y=[_plotted(value) for value in [*values, values[-1]]],
                    name=trial.name,
                    legendgroup=trial.name,
                    showlegend=row == 1,
                    mode="lines",
                    line={"shape": "hv", "color": COLOURS[trial.number % len(COLOURS)]},
                ),
                row=row,
                col=1,
            )
        figure.update_yaxes(title={"text": text(name)}, automargin=True, row=row, col=1)
    figure.update_xaxes(title={"text": "kimg"}, row=len(changed), col=1)
    figure.update_layout(margin={"t": 20, "r": 10}, legend={"orientation": "h", "y": -0.25 / len(changed) - 0.05})
    return Plot(figure, f"Values that members changed on the way: {_listed(changed)}.", 140 + 160 * len(changed))


def start_of_each(segments: Sequence[Segment]) -> dict[tuple[int, int], float]:
    """Where each segment begins, in kimg, by trial and step."""
    ends = {(segment.trial, segment.step): segment.until_kimg for segment in segments}
    return {(trial, step): ends.get((trial, step - 1), 0.0) for trial, step in ends}


def _plotted(value: Value | None) -> Value | None:
    return text(value) if isinstance(value, str) else value


def _values(values: Mapping[str, Value]) -> str:
    return "<br>".join(text(f"{name} = {shown(value)}") for name, value in values.items())


def _short(objective: Objective) -> str:
    return objective.figure.removeprefix(VALIDATION)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _between(first: str, second: str, share: float) -> str:
    pairs = zip(_channels(first), _channels(second), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
