"""AttnGAN's and MirrorGAN's search spaces and recipes: what is documented, what it sets, and what runs again."""

import re
import shlex
from itertools import pairwise
from typing import Any

import optuna
import pytest
import torch
from pydantic import ValidationError

from models.attngan import AttnGANConfig, DAMSMConfig
from models.encoders.trunk import ImageTrunkSettings
from models.mirrorgan import MirrorGANConfig, StreamConfig
from models.registry import get_trainable
from orchestration.config import Experiment, apply_assignments
from orchestration.recipes import RECIPES, get_recipe
from search_spaces.space import Parameter, SpaceError, load_space, parse_space

SYSTEMS = ("attngan", "mirrorgan")
NAMES = [name for name in RECIPES if name.partition("_")[0] in SYSTEMS]
PAIRS = [(system, label) for system in SYSTEMS for label in load_space(system).parameters]


def value_at(experiment: Experiment, field: str) -> Any:
    """What a dotted field holds."""
    node: Any = experiment
    for part in field.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    return node


def documented_values(parameter: Parameter) -> list[Any]:
    """Every value that the file names: the ends of the range, each choice, the paper's and the released one."""
    named = [parameter.low, parameter.high, *(parameter.values or ()), parameter.paper, parameter.released]
    named += parameter.by_data.values()
    return [int(value) if parameter.kind == "int" else value for value in named if value is not None]


@pytest.mark.parametrize(("system", "label"), PAIRS)
def test_every_documented_value_sets_real_fields_of_every_recipe(system: str, label: str) -> None:
    space = load_space(system)
    parameter = space.parameters[label]
    for name in NAMES:
        base = get_recipe(name)
        if base.system != system:
            continue
        for value in documented_values(parameter):
            changed = base.replace({**space.assignments({label: value}), "resources.workers": 1})
            assert [value_at(changed, field) for field in parameter.fields] == [value] * len(parameter.fields)


@pytest.mark.parametrize(("system", "label"), PAIRS)
def test_a_parameter_says_the_first_stage_that_runs_again(system: str, label: str) -> None:
    """A sweep over MirrorGAN's lambda trains DAMSM and STREAM once; one over gamma trains DAMSM again."""
    space, base = load_space(system), get_recipe(f"{system}_scenes")
    parameter = space.parameters[label]
    now = value_at(base, parameter.field)
    other = next(value for value in documented_values(parameter) if value != now)
    changed = base.replace(space.assignments({label: other}))
    again = [name for name in base.stages if changed.stage(name).identity != base.stage(name).identity]
    assert (again or ["gan"])[0] == parameter.stage
    assert changed.identity != base.identity


@pytest.mark.parametrize(("system", "recipe"), [("attngan", "attngan_cub"), ("mirrorgan", "mirrorgan_cub")])
def test_released_values_are_those_of_the_released_recipe(system: str, recipe: str) -> None:
    base = get_recipe(recipe)
    for label, parameter in load_space(system).parameters.items():
        released = parameter.paper if parameter.released is None else parameter.released
        assert [value_at(base, field) for field in parameter.fields] == [released] * len(parameter.fields), label


def test_values_elsewhere_are_those_of_the_recipe_for_coco() -> None:
    base = get_recipe("attngan_coco14")
    checked = {
        label: value_at(base, parameter.field)
        for label, parameter in load_space("attngan").parameters.items()
        if "coco" in parameter.by_data
    }
    assert checked == {
        label: load_space("attngan").parameters[label].documented_on("coco:anywhere") for label in checked
    }
    assert checked["damsm_weight"] == 50 and checked["batch_size"] == 14 and len(checked) == 6


def test_paper_values_are_those_of_the_recipe_by_the_paper() -> None:
    cpgan = get_recipe("cpgan_coco14")
    papers = {label: known for label, known in load_space("cpgan").parameters.items() if known.paper is not None}
    for label, parameter in papers.items():
        assert {value_at(cpgan, field) for field in parameter.fields} == {parameter.paper}, label
    assert len(papers) >= 15
    base = get_recipe("mirrorgan_cub_paper")
    checked = 0
    for label, parameter in load_space("mirrorgan").parameters.items():
        # DAMSM is AttnGAN's, as its released code trained it.
        if parameter.paper is not None and parameter.stage != "damsm":
            assert value_at(base, parameter.field) == parameter.paper, label
            checked += 1
    assert checked >= 10


@pytest.mark.parametrize("system", SYSTEMS)
def test_points_of_the_space_are_experiments(system: str) -> None:
    space, base = load_space(system), get_recipe(f"{system}_scenes")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2))
    for _ in range(10):
        values = space.suggest(study.ask())
        changed = base.replace(space.assignments(values))
        model: Any = changed.model
        damsm: Any = changed.stages["damsm"].model
        assert model.text_dim == damsm.text.text_dim == values["text_dim"]
        assert model.matching == damsm.matching


def parameter(**changes: Any) -> Parameter:
    """A right parameter, with changes."""
    right: dict[str, Any] = {
        "field": "stages.damsm.model.a",
        "also": ("model.a",),
        "kind": "float",
        "low": 1,
        "high": 10,
        "paper": 2,
        "by_data": {"coco": 5},
        "source": "section 1",
        "stage": "damsm",
    }
    return Parameter(**{**right, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"also": ("stages.damsm.model.a",)}, "a field is named twice"),
        ({"also": ("model.a", "model.a")}, "a field is named twice"),
        ({"stage": "gan"}, "stage is 'gan', but it sets a field of damsm: write stage: damsm"),
        ({"field": "model.b", "also": ("stages.stream.model.a",)}, "a field of stream: write stage: stream"),
        ({"by_data": {"coco": 11}}, "the coco value 11 is outside the range"),
    ],
)
def test_a_wrong_parameter_is_a_sentence(changes: dict[str, Any], says: str) -> None:
    parameter()
    with pytest.raises(ValidationError) as caught:
        parameter(**changes)
    assert says in caught.value.errors()[0]["msg"]


def test_two_parameters_that_set_one_field_are_refused() -> None:
    entry = "{kind: int, low: 1, high: 2, paper: 1, source: s, stage: gan, field: %s, also: [%s]}"
    both = f"system: new\nparameters:\n  p: {entry % ('a', 'b')}\n  q: {entry % ('c', 'b')}\ndefault: [p]\n"
    parse_space(both.replace("c, also: [b]", "c, also: [d]").encode(), "new")
    with pytest.raises(SpaceError, match="'p' and 'q' both set b"):
        parse_space(both.encode(), "new")


@pytest.mark.parametrize(
    ("source", "value"),
    [("coco:a", 5), ("coco-2014:a", 5), ("coco", 5), ("ln-coco:a", 2), ("cub:a", 2), ("scenes:size=64", 2)],
)
def test_the_documented_value_depends_on_the_data(source: str, value: float) -> None:
    assert parameter().documented_on(source) == value


def test_a_narrowed_range_forgets_what_it_does_not_hold() -> None:
    space = load_space("attngan")
    narrowed = space.choose(["damsm_weight"], {"damsm_weight": "1:20"}).parameters["damsm_weight"]
    assert narrowed.paper == 5 and narrowed.by_data == {} and narrowed.documented_on("coco:a") == 5
    narrowed = space.choose(["damsm_weight"], {"damsm_weight": "10:60"}).parameters["damsm_weight"]
    assert narrowed.paper is None and narrowed.by_data == {"coco": 50}


@pytest.mark.parametrize("name", NAMES)
def test_the_pieces_of_a_recipe_fit(name: str) -> None:
    """The system reads its stages' text features and words, at their resolution, through their trunks."""
    experiment = get_recipe(name)
    model, damsm = experiment.model, experiment.stages["damsm"].model
    assert isinstance(model, AttnGANConfig | MirrorGANConfig) and isinstance(damsm, DAMSMConfig)
    assert model.text_dim == damsm.text.text_dim and model.resolution == damsm.resolution
    assert model.trunk == damsm.trunk and model.matching == damsm.matching
    assert list(experiment.stages) == list(experiment.needed)
    if isinstance(model, MirrorGANConfig):
        stream = experiment.stages["stream"].model
        assert isinstance(stream, StreamConfig) and stream == model.stream and stream.resolution == model.resolution
    with torch.device("meta"):
        for part in [experiment, *(experiment.stage(stage) for stage in experiment.stages)]:
            nets = part.trainable.build(part.model)
            assert nets.keys() >= part.trainable.optimizers(part.model).keys()


def test_both_small_recipes_share_one_damsm() -> None:
    attngan, mirrorgan = get_recipe("attngan_scenes"), get_recipe("mirrorgan_scenes")
    assert attngan.stage("damsm").identity == mirrorgan.stage("damsm").identity
    assert get_recipe("mirrorgan_cub").stages["damsm"] == get_recipe("attngan_cub").stages["damsm"]


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("attngan_cub", 600 * 8855 / 20),
        ("attngan_coco14", 120 * 82783 / 14),
        ("attngan_plus_coco14", 120 * 82783 / 72),
        ("mirrorgan_cub", 650 * 8855 / 12),
        ("mirrorgan_cub_paper", 650 * 8855 / 12),
    ],
)
def test_published_lengths(name: str, steps: float) -> None:
    training = get_recipe(name).training
    assert 1000 * training.kimg / training.batch_size == pytest.approx(steps)


@pytest.mark.parametrize("name", NAMES)
def test_the_shown_command_names_every_file_that_is_needed(name: str) -> None:
    """What follows `Command:` is one line that gives weights to each trunk that is used and has none of its own."""
    [command] = re.findall(r"Command: (.*)", RECIPES[name].__doc__ or "")
    words = shlex.split(command)
    assert words[:3] == ["t2i", "train", name]
    experiment = apply_assignments(get_recipe(name), [word for option, word in pairwise(words) if option == "--set"])
    model: Any = experiment.model
    used = [part.model for part in experiment.stages.values()]
    used += [model] if model.damsm_weight > 0 else []
    used += [model.stream] if isinstance(model, MirrorGANConfig) else []
    for settings in used:
        trunk = getattr(settings, "trunk", None)
        assert isinstance(trunk, ImageTrunkSettings)
        assert trunk.weights is not None or trunk.name == "efficientnet-lite0"


def test_a_part_is_an_experiment_of_its_own() -> None:
    for name in NAMES:
        experiment = get_recipe(name)
        for stage in experiment.stages:
            part = experiment.stage(stage)
            assert part.trainable is not None and part.trainable.name == get_trainable(stage).name
            assert part.training.kimg > 0 and part.data == experiment.data
