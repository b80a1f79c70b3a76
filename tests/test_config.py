"""The Experiment: what it refuses, what its identity holds, its recipes, and the search spaces that set its fields."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from models.registry import system_names
from orchestration.cli import cli
from orchestration.config import (
    Experiment,
    apply_assignments,
    describe_fields,
    parse_experiment,
)
from orchestration.errors import RequestError
from orchestration.recipes import RECIPES, get_recipe
from orchestration.training.state import build_nets
from search_spaces.space import Parameter, Space, SpaceError, load_space, parse_space
from tests.tiny import small_pretrained_nets, tiny_experiment

BASE = get_recipe("xmcgan_scenes32")


def refusal(action: Callable[[], object], kind: type[Exception] = RequestError) -> str:
    """The one sentence of what is raised."""
    with pytest.raises(kind) as caught:
        action()
    sentence = str(caught.value)
    assert sentence and "\n" not in sentence and len(sentence) < 700
    return sentence


def test_assignments_set_fields_of_every_type() -> None:
    changed = apply_assignments(
        BASE,
        [
            "training.kimg=0.5",
            "model.channels = 4",
            "data.flip=True",
            "model.image_losses=none",
            "evaluation.every_kimg=null",
            "model.generator_optimizer.learning_rate=1e-4",
            "data.source=coco:/a=b",
            'text.name="quoted"',
        ],
    )
    assert changed.training.kimg == 0.5 and changed.data.flip is True and changed.evaluation.every_kimg is None
    assert changed.data.source == "coco:/a=b" and changed.text.name == "quoted"
    values = changed.model.model_dump()
    assert values["channels"] == 4 and values["image_losses"] == "none"
    assert values["generator_optimizer"]["learning_rate"] == 1e-4
    assert apply_assignments(BASE, []) == BASE


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("model.chanels=3", "near it: model.channels"),
        ("training.kimgs=3", "near it: training.kimg"),
        ("modle.channels=3", "near it: model"),
        ("kimg=3", "near it: training.kimg"),
        ("model.learning_rate=1", "model.generator_optimizer.learning_rate"),
        ("zzz=1", "system, model, recipe, data"),
        ("training.zzz=1", "training.kimg, training.batch_size"),
        ("training.kimg.x=1", "training.kimg is a value"),
        ("model.=1", "no field 'model.'"),
        ("training.kimg", "is no assignment: write it as field=value"),
        ("=3", "is no assignment"),
        ("", "is no assignment"),
    ],
)
def test_an_unknown_field_lists_near_ones(assignment: str, says: str) -> None:
    assert says in refusal(lambda: apply_assignments(BASE, [assignment]))


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("model.resolution=33", "32, 64, 128 or 256"),
        ("model.modulation=selfish", "'attentional' or 'self'"),
        ("training.precision=half", "'auto', 'float32' or 'bfloat16'"),
        ("model.channels=abc", "valid integer"),
        ("model.channels=0", "greater than or equal to 1"),
        ("model.head_layers=3", "less than or equal to 2"),
        ("training.kimg=0", "greater than 0"),
        ("training.kimg=NaN", "finite"),
        ("training.kimg=Infinity", "finite"),
        ("model.lambda_1=1e400", "finite"),
        ("training.seed=1.5", "valid integer"),
        ("data.flip=maybe", "valid boolean"),
        ("training=5", "dictionary"),
        ("model=null", "dictionary"),
        ("system=dall-e", "there are " + ", ".join(system_names())),
        ("model.average.buffers=dead", "live|averaged"),
        ("training.batch_size=" + "9" * 5000, "valid integer"),
    ],
)
def test_a_wrong_value_says_what_is_allowed(assignment: str, says: str) -> None:
    sentence = refusal(lambda: apply_assignments(BASE, [assignment]))
    assert assignment.partition("=")[0].split(".")[0] in sentence
    assert says in sentence or says.replace("valid integer", "as an integer") in sentence


@settings(deadline=None, max_examples=80)
@given(text=st.text(max_size=30) | st.from_regex(r"(training|model|data)\.[a-z_]{0,8}=.{0,8}", fullmatch=True))
def test_any_assignment_is_taken_or_refused_with_a_sentence(text: str) -> None:
    try:
        assert isinstance(apply_assignments(BASE, [text]), Experiment)
    except RequestError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("batch", "micro", "workers", "multiple"), [(16, 1, 3, 3), (16, 3, 1, 3), (24, 5, 2, 10), (16, 8, 4, 32)]
)
def test_a_batch_that_cannot_be_divided_says_by_what(batch: int, micro: int, workers: int, multiple: int) -> None:
    changes = {"training.batch_size": batch, "training.micro_batches": micro, "resources.workers": workers}
    assert f"make it a multiple of {multiple}" in refusal(lambda: BASE.replace(changes))
    assert BASE.replace(changes | {"training.batch_size": 2 * multiple}).training.batch_size == 2 * multiple


def test_an_experiment_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        BASE.training.kimg = 3  # type: ignore[misc]
    assert refusal(lambda: parse_experiment({**BASE.model_dump(mode="json"), "extra": 1})).startswith("extra")
    assert "training" in refusal(lambda: parse_experiment({"recipe": "x", "system": BASE.system, "model": {}}))


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf field by dotted name."""
    found: dict[str, Any] = {}
    names = list(value) if isinstance(value, dict) else list(type(value).model_fields)
    for name in names:
        inner = value[name] if isinstance(value, dict) else getattr(value, name)
        deeper = isinstance(inner, BaseModel) or (isinstance(inner, dict) and inner)
        found |= leaves(inner, f"{prefix}{name}.") if deeper else {f"{prefix}{name}": inner}
    return found


def choices(path: str) -> tuple[Any, ...]:
    """The values of a field that has a fixed few."""
    *parents, name = path.split(".")
    owner: BaseModel = BASE
    for parent in parents:
        owner = getattr(owner, parent)
    return get_args(type(owner).model_fields[name].annotation)


STAGE = {"system": "damsm", "model": {}, "training": {"kimg": 1, "batch_size": 16}}


def another_value(path: str) -> Experiment | None:
    """The base experiment with this one field changed to whatever other value it takes."""
    old = leaves(BASE)[path]
    guesses = [*choices(path), 2, 0.5, 4, 0.75, 64, "other", "averaged", True, False, {"damsm": STAGE}, {"a": "b"}, {}]
    for guess in guesses:
        try:
            changed = BASE.replace({path: guess})
        except RequestError:
            continue
        if leaves(changed).get(path, guess) != old:
            return changed
    return None


@pytest.mark.parametrize("path", [path for path in leaves(BASE) if path != "system"])
def test_the_identity_holds_what_changes_the_mathematics_and_nothing_else(path: str) -> None:
    changed = another_value(path)
    assert changed is not None, f"no other value for {path}: add a guess"
    same = path == "recipe" or path.startswith("resources.")
    assert (changed.identity == BASE.identity) == same
    assert changed.run_name.endswith(changed.identity[:12])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name: str) -> None:
    recipe = get_recipe(name)
    again = parse_experiment(json.loads(json.dumps(recipe.model_dump(mode="json"))))
    assert again == recipe and again.identity == recipe.identity and type(again.model) is type(recipe.model)
    assert recipe.recipe == name and len(recipe.identity) == 16
    assert RECIPES[name]() == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_its_command(name: str) -> None:
    """The docstring's command is one that the command line takes, and it names this recipe."""
    lines = [line.strip() for line in (RECIPES[name].__doc__ or "").splitlines()]
    assert lines[0].endswith(".")
    [command] = [line.removeprefix("Command: ") for line in lines if line.startswith("Command: ")]
    words = shlex.split(command)
    assert words[:3] == ["t2i", "train", name]
    result = CliRunner().invoke(cli, [*words[1:], "--dry-run", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert parse_experiment(json.loads(result.output.splitlines()[-1])).recipe == name


def test_an_unknown_recipe_lists_near_ones() -> None:
    assert "xmcgan_laptop" in refusal(lambda: get_recipe("xmcgan_labtop"))
    assert all(name in refusal(lambda: get_recipe("zzzz")) for name in RECIPES)


def test_every_field_is_described() -> None:
    rows = describe_fields(type(BASE.model), "model.")
    assert [row[0] for row in rows] == [path for path in leaves(BASE) if path.startswith("model.")]
    assert all(kind and default for _, kind, default, _ in rows)
    assert {row[0]: row[2] for row in describe_fields(Experiment)}["training.kimg"] == "required"


@pytest.mark.parametrize("name", system_names())
def test_every_system_has_a_search_space(name: str) -> None:
    """Each parameter's field exists; the documented value, the ends of the range and every choice can be set."""
    space, base = load_space(name), tiny_experiment(name)
    assert space.system == name
    for label, parameter in space.parameters.items():
        values = [parameter.documented, parameter.low, parameter.high, *(parameter.values or ())]
        said = parameter.documented is not None or "not given in the paper" in parameter.source
        assert said, f"{label}: neither a paper's nor a released value, and not said so"
        for value in values:
            if value is not None:
                written = int(value) if parameter.kind == "int" else value
                assert leaves(base.replace({parameter.field: written}))[parameter.field] == written
        assert parameter.source and parameter.describe()


@pytest.mark.parametrize("name", system_names())
def test_points_of_a_search_space_are_experiments(name: str) -> None:
    space, base = load_space(name), tiny_experiment(name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(10):
        point = space.suggest(study.ask())
        space.check(point)
        for label, value in point.items():
            assert space.parameters[label].allows(value)
        base.replace({space.parameters[label].field: value for label, value in point.items()})


def test_a_chosen_part_of_a_space_keeps_the_documented_point() -> None:
    space = load_space("xmcgan")
    assert tuple(space.choose().parameters) == space.default
    chosen = space.choose(["tau", "batch_size"], {"tau": "0.05:0.2", "batch_size": "16,32", "lambda_1": "2:3"})
    assert chosen.parameters.keys() == {"tau", "batch_size", "lambda_1"}
    assert (chosen.parameters["tau"].low, chosen.parameters["tau"].high) == (0.05, 0.2)
    assert chosen.parameters["tau"].documented == space.parameters["tau"].documented
    assert chosen.parameters["batch_size"].values == (16, 32)
    assert chosen.parameters["lambda_1"].documented is None  # the narrowed range does not hold it
    assert Space.model_validate(json.loads(json.dumps(chosen.model_dump(mode="json")))) == chosen


@pytest.mark.parametrize(
    ("names", "ranges", "says"),
    [
        (["tua"], {}, "near it: tau"),
        (["zzz"], {}, "documents no parameter 'zzz'"),
        ([], {"tua": "1:2"}, "near it: tau"),
        ([], {"tau": "0.2:0.05"}, "has its low above its high: write it as tau=0.05:0.2"),
        ([], {"tau": "0.2:0.2"}, "write it as tau=low:high or tau=a,b,c"),
        ([], {"tau": "0.1,x"}, "write it as tau=low:high or tau=a,b,c"),
        ([], {"tau": "0.1,nan"}, "write it as tau=low:high or tau=a,b,c"),
        ([], {"tau": "0.1,0.1"}, "write it as tau=low:high or tau=a,b,c"),
        ([], {"discriminator_steps": "1,1.5"}, "write it as discriminator_steps=low:high or"),
        ([], {"tau": "0.2"}, "write it as tau=low:high"),
        ([], {"tau": "a:b"}, "write it as tau=low:high"),
        ([], {"tau": "nan:1"}, "write it as tau=low:high"),
        ([], {"tau": "1:inf"}, "write it as tau=low:high"),
        ([], {"tau": "0:1"}, "write it as tau=low:high"),
        ([], {"discriminator_steps": "1.5:3"}, "write it as discriminator_steps=low:high"),
        ([], {"batch_size": ""}, "write it as batch_size=a,b,c"),
        ([], {"batch_size": "16,16"}, "write it as batch_size=a,b,c"),
        ([], {"batch_size": "[,"}, "write it as batch_size=a,b,c"),
    ],
)
def test_a_wrong_choice_of_a_space_is_a_sentence(names: list[str], ranges: dict[str, str], says: str) -> None:
    assert says in refusal(lambda: load_space("xmcgan").choose(names, ranges), SpaceError)


def test_a_system_without_a_space_says_which_file_to_add() -> None:
    assert "add search_spaces/new.yaml" in refusal(lambda: load_space("new"), SpaceError)


PARAMETER = "{field: a.b, kind: float, low: 1, high: 2, paper: null, released: 1.5, source: s, stage: gan}"
WHOLE = f"system: new\nparameters:\n  p: {PARAMETER}\ndefault: [p]\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "dictionary"),
        ("- a", "dictionary"),
        ("[1", "line 1"),
        ("system: new\n  bad indent: 1", "line 2"),
        ("system: new\nsystem: new", "line 2 cannot be read ('system' is there twice)"),
        ("!!python/object:os.system {}", "cannot be read"),
        ("? [a, b]\n: 1", "unhashable"),
        ("a: 2020-13-45", "month"),
        ("\0", "cannot be read"),
        ("[" * 3000, "recursion"),
        (WHOLE.replace("system: new\n", ""), "wrong at system"),
        (WHOLE.replace("new", "old"), "says system 'old'"),
        (WHOLE.replace("[p]", "[q]"), "default names 'q'"),
        (WHOLE.replace("[p]", "[]"), "wrong at default"),
        (WHOLE.replace("[p]", "[p]\nextra: 1"), "wrong at extra"),
        (WHOLE.replace("float", "double"), "parameters.p.kind"),
        (WHOLE.replace("low: 1", "low: x"), "parameters.p.low"),
        (WHOLE.replace("low: 1", "low: 3"), "needs low < high"),
        (WHOLE.replace("low: 1", "low: .nan"), "needs low < high"),
        (WHOLE.replace("high: 2", "high: .inf"), "finite"),
        (WHOLE.replace("high: 2", "high: null"), "needs low < high"),
        (WHOLE.replace("low: 1", "low: 0, log: true"), "above 0"),
        (WHOLE.replace("low: 1", "low: 1, values: [1]"), "no values"),
        (WHOLE.replace("float, low: 1", "int, low: 1.5"), "whole"),
        (WHOLE.replace("released: 1.5", "released: 5"), "released value 5 is outside the range"),
        (WHOLE.replace("released: 1.5", "released: abc"), "outside the range"),
        (WHOLE.replace("released: 1.5", "released: true"), "outside the range"),
        (WHOLE.replace("float, low: 1, high: 2", "choice"), "distinct"),
        (WHOLE.replace("float, low: 1, high: 2", "choice, values: [1.5, 1.5]"), "distinct"),
        (WHOLE.replace("source: s", "source: ''"), "parameters.p.source"),
        (WHOLE.replace("paper: null, ", ""), "parameters.p.paper"),
        (WHOLE.replace("default", f"  q: {PARAMETER}\ndefault"), "both set a.b"),
        (WHOLE.replace("stage: gan", "stage: gan, when: 3"), "parameters.p.when"),
        (WHOLE.replace("stage: gan", "stage: gan, when: {q: [[1]]}"), "parameters.p.when"),
    ],
)
def test_a_malformed_space_is_a_sentence(text: str, says: str) -> None:
    parse_space(WHOLE.encode(), "new")
    sentence = refusal(lambda: parse_space(text.encode(), "new"), SpaceError)
    assert sentence.startswith("search_spaces/new.yaml") and says in sentence


@settings(deadline=None, max_examples=150)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_a_space_or_a_sentence(content: bytes) -> None:
    with pytest.raises(SpaceError) as caught:
        parse_space(content, "new")
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=100)
@given(place=st.integers(0, len(WHOLE) - 1), letter=st.characters(codec="utf-8"))
def test_a_typing_error_is_a_space_or_a_sentence(place: int, letter: str) -> None:
    try:
        parse_space((WHOLE[:place] + letter + WHOLE[place + 1 :]).encode(), "new")
    except SpaceError as error:
        assert "\n" not in str(error)


def test_allows_takes_values_of_any_type() -> None:
    whole = Parameter(field="a", kind="int", low=1, high=4, paper=None, source="s", stage="t")
    values: list[Any] = [0, 1, 2.0, 2.5, 4, 5, "2", None, True, [], float("nan")]
    assert [value for value in values if whole.allows(value)] == [1, 2.0, 4]


def test_published_sizes_build_from_the_recipes() -> None:
    """A recipe of the paper's size needs weights by path, and says so before any work."""
    recipe = get_recipe("xmcgan_coco14")
    sentence = refusal(lambda: build_nets(recipe.replace({"model.channels": 1, "model.resolution": 32})))
    assert "model.pretrained.weights=PATH" in sentence
    missing = {"model.pretrained.weights": str(Path("/no/such/file.pth")), "model.channels": 1, "model.resolution": 32}
    with small_pretrained_nets():
        build_nets(recipe.replace(missing))
