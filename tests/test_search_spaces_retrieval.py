"""sg2im's and RetrieveGAN's search spaces: what is documented, what it sets, and what runs again."""

from typing import Any, get_args

import optuna
import pytest
from pydantic import BaseModel

from models.retrievegan import CoOccurrenceConfig, RetrieveGANConfig
from models.retrievegan.retrieval import RetrievalSettings
from models.retrievegan.selection import SelectionLossSettings
from orchestration.campaigns.points import paper_point
from orchestration.campaigns.reproduce import make_plan
from orchestration.campaigns.reproduce_scales import find_table
from orchestration.config import Experiment
from orchestration.home import Home
from orchestration.recipes import RECIPES, get_recipe
from orchestration.stage_graph import compare, read_graph
from search_spaces.space import Parameter, load_space
from search_spaces.tables import load_table
from tests.reproduce_support import SMALL, SMOKE
from tests.test_search_spaces_cascade import documented_values, value_at

SYSTEMS = ("retrievegan", "sg2im")
NAMES = [name for name in RECIPES if name.partition("_")[0] in SYSTEMS]
PAIRS = [(system, label) for system in SYSTEMS for label in load_space(system).parameters]
CHOSEN = ("candidates (train)", "candidates (val)")
RETRIEVEGAN, SG2IM = load_space("retrievegan").parameters, load_space("sg2im").parameters
LAMBDAS = {
    "lambda_gt_selection",
    "lambda_cooccurrence",
    "lambda_image_adversarial",
    "lambda_image_reconstruction",
    "lambda_image_perceptual",
    "lambda_object_adversarial",
    "lambda_object_classification",
    "lambda_object_perceptual",
    "lambda_box",
}


def values_beside(parameter: Parameter, now: Any) -> list[Any]:
    """Those that the file names, but the one in use."""
    return [value for value in documented_values(parameter) if value != now]


@pytest.mark.parametrize(("system", "label"), PAIRS)
def test_every_documented_value_sets_real_fields_of_every_recipe(system: str, label: str) -> None:
    space = load_space(system)
    parameter = space.parameters[label]
    for name in NAMES:
        base = get_recipe(name)
        if base.system != system:
            continue
        assert parameter.allows(value_at(base, parameter.field)), f"{name} is outside the range"
        for value in documented_values(parameter):
            changed = base.replace(space.assignments({label: value}))
            assert [value_at(changed, field) for field in parameter.fields] == [value] * len(parameter.fields)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


def tiny_data(experiment: Experiment) -> Experiment:
    """On scenes that are drawn at once."""
    return experiment.replace({"data.source": "scenes:size=32,objects=3,train=4,val=2,test=2"})


@pytest.mark.parametrize(("system", "label"), PAIRS)
def test_a_parameter_says_the_first_stage_that_runs_again(system: str, label: str, home: Home) -> None:
    """A sweep over tau, k or a lambda makes no stage again."""
    space, base = load_space(system), tiny_data(get_recipe(f"{system}_scenes"))
    parameter = space.parameters[label]
    other = values_beside(parameter, value_at(base, parameter.field))[0]
    changed = base.replace(space.assignments({label: other}))
    effects = compare(read_graph(base, home), read_graph(changed, home))
    *stages, run = [effect.label for effect in effects if effect.effect == "anew"]
    assert run == "the run" and (stages or ["gan"])[0] == parameter.stage


def test_only_what_comes_before_is_made_again(home: Home) -> None:
    base = tiny_data(get_recipe("retrievegan_scenes"))
    before = read_graph(base, home)

    def anew(**changes: Any) -> list[str]:
        space = load_space("retrievegan")
        return [
            effect.label
            for effect in compare(before, read_graph(base.replace(space.assignments(changes)), home))
            if effect.effect == "anew"
        ]

    varied = {"tau": 0.5, "k": 3, **dict.fromkeys(sorted(LAMBDAS), 0.2)}
    assert anew(**varied) == ["the run"]
    assert anew(cooccurrence_margin=0.5) == ["co_occurrence", "the run"]
    assert anew(patch_side=16) == ["patches", *CHOSEN, "the run"]
    assert anew(prefilter_object_dim=64) == ["sg2im", "patches", *CHOSEN, "the run"]


def test_released_values_of_sg2im_are_those_of_its_recipes() -> None:
    for name in ("sg2im_coco", "sg2im_vg"):
        base = get_recipe(name)
        for label, parameter in SG2IM.items():
            released = parameter.paper if parameter.released is None else parameter.released
            assert {value_at(base, field) for field in parameter.fields} == {released}, (name, label)


@pytest.mark.parametrize("name", ["retrievegan_coco", "retrievegan_vg"])
def test_what_the_paper_says_is_in_its_recipes(name: str) -> None:
    base, said = get_recipe(name), {label for label, known in RETRIEVEGAN.items() if known.paper is not None}
    for label in said:
        assert {value_at(base, field) for field in RETRIEVEGAN[label].fields} == {RETRIEVEGAN[label].paper}, label
    assert said == {"distance", "gumbel", "query", "result", "truth_among_candidates", "pair_reduction"}


def test_nothing_was_released_of_retrievegan() -> None:
    assert all(known.released is None and not known.by_data for known in RETRIEVEGAN.values())


def test_the_weights_of_equation_7() -> None:
    """All nine, by name; none is in the paper, and those that PasteGAN has are its."""
    assert {label for label in RETRIEVEGAN if label.startswith("lambda_")} == LAMBDAS
    fields = {name for name in RetrieveGANConfig.model_fields if name.startswith("lambda_")}
    assert {RETRIEVEGAN[label].field for label in LAMBDAS} == {f"model.{name}" for name in fields}
    for label in LAMBDAS:
        assert "equation" in RETRIEVEGAN[label].source and "not given in the paper" in RETRIEVEGAN[label].source
    of_pastegan = {
        "lambda_image_adversarial": ("0.01", "sg2im"),
        "lambda_image_reconstruction": ("1", "sg2im"),
        "lambda_image_perceptual": ("1", None),
        "lambda_object_adversarial": ("0.01", "sg2im"),
        "lambda_object_classification": ("0.1", "sg2im"),
        "lambda_object_perceptual": ("0.5", None),
        "lambda_box": ("10", "sg2im"),
    }
    base = get_recipe("retrievegan_coco")
    for label, (value, other) in of_pastegan.items():
        source = RETRIEVEGAN[label].source
        assert f"released code: {value}" in source and "PasteGAN" in source, label
        assert other is None or other in source
        assert value_at(base, RETRIEVEGAN[label].field) == float(value)


def choices(settings: type[BaseModel], prefix: str) -> dict[str, tuple[Any, ...]]:
    """Values of each field that is a choice of words, by its dotted name."""
    found = {f"{prefix}.{name}": get_args(info.annotation) for name, info in settings.model_fields.items()}
    return {field: values for field, values in found.items() if values and all(isinstance(v, str) for v in values)}


@pytest.mark.parametrize(
    ("settings", "prefix"),
    [
        (RetrievalSettings, "model.retrieval"),
        (SelectionLossSettings, "model.selection_losses"),
        (CoOccurrenceConfig, "stages.co_occurrence.model"),
    ],
)
def test_every_reading_of_the_paper_can_be_searched(settings: type[BaseModel], prefix: str) -> None:
    readings = {known.field: known.values for known in RETRIEVEGAN.values() if known.kind == "choice"}
    wanted = choices(settings, prefix)
    assert wanted and {field: set(readings[field] or ()) for field in wanted} == {
        field: set(values) for field, values in wanted.items()
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("retrievegan")])
def test_no_more_candidates_than_the_pre_filter_keeps(name: str) -> None:
    base, k = get_recipe(name), RETRIEVEGAN["k"]
    assert base.patches is not None and k.high is not None
    assert k.allows(base.patches.candidates) and k.high <= base.patches.prefilter.k
    assert k.allows(10)  # PasteGAN's


@pytest.mark.parametrize("system", SYSTEMS)
def test_points_of_the_space_are_experiments(system: str) -> None:
    space, base = load_space(system), get_recipe(f"{system}_scenes")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=4))
    for _ in range(10):
        values = space.suggest(study.ask())
        changed = base.replace(space.assignments(values))
        assert all(value_at(changed, space.parameters[label].field) == value for label, value in values.items())


@pytest.mark.parametrize("name", NAMES)
def test_the_first_trial_is_the_papers_point(name: str) -> None:
    base = get_recipe(name)
    space = load_space(base.system)
    point = paper_point(space.choose(), base)
    assert tuple(point) == space.default
    if base.system == "retrievegan":  # of whose values none is published
        assert point == {label: value_at(base, RETRIEVEGAN[label].field) for label in space.default}


class TestTables:
    @pytest.mark.parametrize("scale", [SMOKE, SMALL], ids=lambda scale: scale.name)
    def test_stages_of_table_2_are_shared(self, scale: Any) -> None:
        """sg2im by all rows; the co-occurrence embedding by those that have its loss, and the others need none."""
        units = make_plan(find_table("retrievegan-table2"), scale).units
        needed = {unit.row: unit.experiment.needed for unit in units}
        assert needed == {
            "neither": ("sg2im",),
            "gt_selection": ("sg2im",),
            "cooccurrence": ("sg2im", "co_occurrence"),
            "both": ("sg2im", "co_occurrence"),
        }
        for name in ("sg2im", "co_occurrence"):
            made = {unit.experiment.stage(name).identity for unit in units if name in unit.experiment.needed}
            assert len(made) == 1
        assert {unit.experiment.patches for unit in units} == {units[0].experiment.patches}

    @pytest.mark.parametrize("name", ["retrievegan-table1", "retrievegan-table2"])
    def test_smoke_has_something_to_retrieve_together(self, name: str) -> None:
        for unit in make_plan(find_table(name), SMOKE).units:
            model: Any = unit.experiment.model
            assert "objects=3" in unit.experiment.data.source and unit.recipe == "retrievegan_scenes"
            assert model.perceptual.net == "efficientnet-lite0" and model.perceptual.weights is None

    def test_a_loss_has_the_recipes_weight_or_none(self) -> None:
        table = load_table("retrievegan_table2")
        for unit in make_plan(find_table("retrievegan-table2"), SMOKE).units:
            base: Any = get_recipe(unit.recipe).model
            model: Any = unit.experiment.model
            off = table.rows[unit.row].changes
            assert set(off.values()) <= {0.0}
            for name in ("lambda_gt_selection", "lambda_cooccurrence"):
                assert getattr(base, name) > 0
                assert getattr(model, name) == (0 if f"model.{name}" in off else getattr(base, name))

    def test_rows_of_table_1_are_trained_alike(self) -> None:
        """Boxes are chosen when pictures are sampled."""
        changed = {field for row in load_table("retrievegan_table1").rows.values() for field in row.changes}
        assert changed == {"model.boxes"}
        made = [unit.experiment for unit in make_plan(find_table("retrievegan-table1"), SMOKE).units]
        assert [experiment.replace({"model.boxes": "given"}) for experiment in made] == [made[1], made[1]]
