"""At which scale a paper's table is run: how long its rows are trained, on what, and by what figures they are judged.

At the paper's scale that is the published recipe and data, and each column's own protocol. Smaller scales train on
generated scenes and have stand-ins: other figures, of the same kind, that need no weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import BaseModel

from models.abilities import Matcher
from models.registry import get_part, system_names
from orchestration.config import Experiment
from orchestration.data.sources import parse_source
from orchestration.errors import RequestError
from orchestration.evaluation.record import MetricRecord
from orchestration.recipes import QUICK_SCENES, RECIPES, get_recipe
from search_spaces.tables import Column, Table, TableError, load_table
from search_spaces.tables.table import UNKNOWN

Better = Literal["higher", "lower"]
PAPER = "paper"

# VGG-19 and ResNet-50 come by path; this net is a package. At 32 px it is quick enough for a CPU.
OFFLINE: Mapping[str, Mapping[str, Any]] = {
    "xmcgan": {"model.pretrained.name": "efficientnet-lite0", "model.pretrained.side": 32}
}
# A graph of one thing has no two patches that could go together.
QUICK_SCENES_OF_THINGS = QUICK_SCENES.replace("objects=1", "objects=3")
GRAPHS: Mapping[str, Mapping[str, Any]] = {
    "retrievegan": {"data.source": QUICK_SCENES_OF_THINGS, "model.perceptual.side": 32}
}


@dataclass(frozen=True)
class Scale:
    """kimg, part_kimg: length of each row's training and of each part before it, None for the recipe's; samples:
    pictures drawn to judge a row; seeds: trainings of each row; source: scenes, None for the recipe's data; resolution:
    side of all pictures, None for the recipe's; changes: further fields of the experiments, by system."""

    name: str
    about: str
    samples: int
    seeds: int = 1
    kimg: float | None = None
    part_kimg: float | None = None
    source: str | None = None
    resolution: int | None = None
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def published(self) -> bool:
        """Whether rows are the paper's recipes on the paper's data."""
        return self.name == PAPER


SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "smoke",
            "scenes at 32 px, minutes on two cores: to see that all of it runs; rows learn too little to judge claims",
            samples=500,
            kimg=1,
            part_kimg=4,
            source=QUICK_SCENES,
            resolution=32,
            changes={**OFFLINE, **GRAPHS},
        ),
        Scale(
            "small",
            "the system's own recipe on scenes, three trainings a row: hours on two cores",
            samples=500,
            seeds=3,
            changes=OFFLINE,
        ),
        Scale(PAPER, "the published recipe on the published data: days on GPUs, needs --data and --weights", 30_000),
    )
}


@dataclass(frozen=True, slots=True)
class StandIn:
    """What a figure of scenes stands beside a paper's metric. request: as t2i evaluate takes it; figure: pattern of
    METRIC/PROTOCOL as it comes; matcher: it needs an encoder of pictures and captions that the system trains."""

    request: str
    figure: str
    better: Better
    matcher: bool = False


OBJECT = StandIn("accuracy", "accuracy/thing", "higher")
STAND_INS: Mapping[str, Sequence[StandIn]] = {
    "fid": (StandIn("fid/scenes-net", "fid/scenes-net", "lower"),),
    "inception_score": (StandIn("is/scenes-net", "inception_score/openai/scenes-net", "higher"),),
    "r_precision": (
        StandIn("r_precision", "r_precision/1+*/top-1", "higher", matcher=True),
        StandIn("accuracy", "accuracy/colour", "higher"),
    ),
    "soa_c": (OBJECT,),
    "soa_i": (OBJECT,),
    "diversity": (StandIn("duplicates", "duplicates/rms-8", "lower"),),
}
"""By the paper's metric, the first that the system allows. An object that a detector should find is the thing of a
scene; a caption that should be told from 99 others is, without an encoder, its colour; pictures of one caption that
should differ are duplicates where they do not."""

# Names of metrics that t2i evaluate calls otherwise.
FAMILIES = {"inception_score": "is", "soa_c": "soa", "soa_i": "soa", "diversity": "lpips"}


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of ours, and the columns of the table that it stands beside. recipe: of the runs that are judged;
    percent: printed in percent; stands_for: figures that it is a stand-in for, or comes nearest to."""

    columns: tuple[str, ...]
    recipe: str
    request: str
    figure: str
    better: Better
    percent: bool
    stands_for: tuple[str, ...] = ()
    nearest: bool = False

    def record(self, records: Sequence[MetricRecord]) -> MetricRecord | None:
        """Its record among those of one evaluation."""
        return next((record for record in records if fnmatchcase(record.figure, self.figure)), None)


def find_table(label: str) -> Table:
    """The table of that name, mirrorgan-table3 or mirrorgan_table3. Raises RequestError with near names."""
    try:
        return load_table(label.replace("-", "_"))
    except TableError as error:
        raise RequestError(str(error).replace("_", "-") + " (t2i reproduce --list shows all)") from error


def find_scale(name: str) -> Scale:
    """The scale of that name. Raises RequestError."""
    if name not in SCALES:
        raise RequestError(f"no scale {name!r}: there are {', '.join(SCALES)}")
    return SCALES[name]


def why_not_now(table: Table) -> str | None:
    """Why a table cannot be run with this version, as a sentence; None where it can."""
    if table.to_come or table.system not in system_names():
        return (
            f"{table.label} needs the system {table.system}, which is to come: its rows and published numbers are in "
            f"search_spaces/tables/{table.name}.yaml, and {', '.join(system_names())} are there"
        )
    return None


def base_experiments(table: Table, scale: Scale, data: Sequence[str] = ()) -> dict[str, Experiment]:
    """The experiments that the table's rows change, by recipe.

    data: at the paper's scale FORMAT:PATH of each data set; columns on another are left out. Raises RequestError where
    there is none, and for data that no column is on.
    """
    if scale.published:
        return _published_experiments(table, data)
    if data:
        raise RequestError(f"--data is for --scale {PAPER}: at --scale {scale.name} rows are trained on scenes")
    experiment = get_recipe(scenes_recipe(table.system))
    changes: dict[str, Any] = {}
    if scale.resolution is not None:
        changes |= dict.fromkeys(_fields_named(experiment, "resolution"), scale.resolution)
    if scale.source is not None:
        changes["data.source"] = scale.source
    if scale.kimg is not None and experiment.learns:
        changes["training.kimg"] = scale.kimg
        changes |= {f"training.{what}_kimg": scale.kimg for what in ("checkpoint", "picture")}
    if scale.part_kimg is not None:
        trained = [name for name, stage in experiment.stages.items() if stage.training is not None]
        changes |= {f"stages.{name}.training.kimg": scale.part_kimg for name in trained}
    return {experiment.recipe: experiment.replace({**changes, **scale.changes.get(table.system, {})})}


def _published_experiments(table: Table, data: Sequence[str]) -> dict[str, Experiment]:
    kinds = list(dict.fromkeys(column.data for column in table.columns.values()))
    sources: dict[str, str] = {}
    for source in data:
        kind = parse_source(source).kind
        if kind not in kinds:
            wanted = " or ".join(f"{known}:PATH" for known in kinds)
            raise RequestError(f"{table.label} has no column on --data {source}: give {wanted}")
        if kind in sources:
            raise RequestError(f"--data names {kind} twice: give it once")
        sources[kind] = source
    if not sources:
        wanted = " and ".join(f"--data {kind}:PATH" for kind in kinds)
        raise RequestError(f"--scale {PAPER} needs the paper's data: add {wanted}, or use --scale smoke")
    experiments = {}
    for column in table.columns.values():
        if column.data in sources and column.recipe not in experiments:
            changes = {"data.source": sources[column.data], **table.settings}
            experiments[column.recipe] = get_recipe(column.recipe).replace(changes)
    return experiments


def scenes_recipe(system: str) -> str:
    """The system's recipe on scenes, such as mirrorgan_scenes."""
    found = [name for name in RECIPES if name.startswith(f"{system}_scenes")]
    if not found:
        raise RequestError(f"{system} has no recipe on scenes: use --scale {PAPER}")
    return found[0]


def _fields_named(node: Any, name: str, path: str = "") -> Iterator[str]:
    """Dotted names of all fields below settings, or a table of them, that are called `name`."""
    items = node if isinstance(node, BaseModel) else node.items()
    for key, value in items:
        if key == name:
            yield f"{path}{key}"
        elif isinstance(value, BaseModel | dict):
            yield from _fields_named(value, name, f"{path}{key}.")


def measures_of(table: Table, scale: Scale, recipes: Sequence[str]) -> list[Measure]:
    """By what the rows are judged, in the order of the columns; columns of other recipes are left out."""
    found: dict[tuple[str, str], Measure] = {}
    for name, column in table.columns.items():
        if not any(name in row.published for row in table.rows.values()):
            continue  # a reference's alone
        made = _own(name, column) if scale.published else _stand_in(name, column, recipes[0])
        if made is None or made.recipe not in recipes:
            continue
        known = found.get((made.recipe, made.figure))
        if known is not None:
            columns, stands_for = (*known.columns, *made.columns), (*known.stands_for, *made.stands_for)
            made = Measure(
                columns,
                made.recipe,
                made.request,
                made.figure,
                made.better,
                made.percent,
                tuple(dict.fromkeys(stands_for)),
                made.nearest,
            )
        found[made.recipe, made.figure] = made
    if not found:
        raise RequestError(f"nothing here stands for the columns of {table.label} at --scale {scale.name}")
    return list(found.values())


def _own(name: str, column: Column) -> Measure | None:
    """The column's own protocol, or the one that comes nearest; None where none does."""
    protocol = column.nearest if column.protocol == UNKNOWN else column.protocol
    if protocol is None:
        return None
    family, figure = FAMILIES.get(column.metric, column.metric), f"{column.metric}/{protocol}"
    if family == "r_precision":
        protocol = protocol.rpartition("/top-")[0]
        figure = figure.replace("/dual/", "/dual-*/")  # which encoder is part of the figure's name
    elif family == "soa":
        protocol = protocol.partition("-")[0]
        figure = f"{column.metric}/{protocol}-*"
    elif family == "lpips":
        protocol = protocol.removeprefix("lpips-")
    nearest = column.protocol == UNKNOWN
    stands_for = (f"{column.metric} ({column.why})",) if nearest else ()
    return Measure(
        (name,), column.recipe, f"{family}/{protocol}", figure, column.better, column.percent, stands_for, nearest
    )


def _stand_in(name: str, column: Column, recipe: str) -> Measure | None:
    experiment = get_recipe(recipe)
    matcher = any(isinstance(get_part(experiment.stages[part].system), Matcher) for part in experiment.needed)
    for choice in STAND_INS.get(column.metric, ()):
        if matcher or not choice.matcher:
            shown = column.metric if column.protocol == UNKNOWN else f"{column.metric}/{column.protocol}"
            return Measure((name,), recipe, choice.request, choice.figure, choice.better, column.percent, (shown,))
    return None
