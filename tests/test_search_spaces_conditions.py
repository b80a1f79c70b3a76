"""Search spaces whose parameters only exist under a condition, points of a space, and places in a range."""

from typing import Any, ClassVar

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.registry import system_names
from orchestration.listing import show_system
from orchestration.recipes import RECIPES, get_recipe
from search_spaces.space import Parameter, Space, SpaceError, load_space, parse_space
from tests.space_support import choice, number, space_of
from tests.test_config import refusal

# `deep` stands before what it depends on.
SPACE = space_of(
    deep=number(0, 1, mode="b", steps=[2, 3]),
    mode=choice("a", "b", "c"),
    steps=number(1, 4, "int", mode=["b", "c"]),
    free=number(1, 100, log=True),
)


def points(space: Space, count: int, seed: int = 0) -> list[dict[str, Any]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [space.suggest(study.ask()) for _ in range(count)]


def test_a_parameter_only_exists_where_its_condition_holds() -> None:
    seen = points(SPACE, 60)
    for point in seen:
        assert ("steps" in point) == (point["mode"] in ("b", "c"))
        assert ("deep" in point) == (point["mode"] == "b" and point.get("steps") in (2, 3))
        assert "free" in point and list(point) == [name for name in SPACE.parameters if name in point]
        SPACE.check(point)
    assert {len(point) for point in seen} == {2, 3, 4}


def test_what_does_not_exist_sets_nothing() -> None:
    whole = {"deep": 0.5, "mode": "b", "steps": 2, "free": 3.0}
    assert SPACE.assignments(whole) == {f"a.{name}": value for name, value in whole.items()}
    assert SPACE.assignments({**whole, "steps": 4}) == {"a.mode": "b", "a.steps": 4, "a.free": 3.0}
    # `deep` goes with `steps`, which `mode` takes away.
    assert SPACE.assignments({**whole, "mode": "a"}) == {"a.mode": "a", "a.free": 3.0}
    assert SPACE.assignments({"deep": 0.5, "mode": "a"}) == {"a.mode": "a"}
    chain = space_of(low=number(0, 1, middle=1), middle=choice(1, 2, top=1), top=choice(1, 2))
    assert chain.assignments({"low": 0.5, "middle": 1, "top": 2}) == {"a.top": 2}
    assert SPACE.assignments({"deep": 0.5}) == {"a.deep": 0.5}  # what its condition is on is not varied


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"mode": "a", "free": 2.0, "fre": 1}, "documents no parameter 'fre'; near it: free"),
        ({"mode": "a", "free": 200.0}, "free = 200.0 is outside its range (1 to 100, log): choose a value in it"),
        ({"mode": "d", "free": 2.0}, "mode = 'd' is outside its range (one of a, b, c)"),
        ({"mode": "b", "free": 2.0, "steps": 2.5, "deep": 0.1}, "steps = 2.5 is outside its range (1 to 4)"),
        ({"mode": "b", "free": 2.0, "steps": True, "deep": 0.1}, "steps = True is outside its range"),
        ({"mode": "b", "free": float("nan"), "steps": 1}, "free = nan is outside its range"),
        ({"mode": "a", "free": 2.0, "steps": 2}, "steps has a value, and only exists where mode is b or c: leave it"),
        ({"mode": "a"}, "the point has no value for free (1 to 100, log): give one"),
        ({"mode": "c", "free": 2.0}, "the point has no value for steps (1 to 4): give one"),
        ({}, "the point has no value for mode (one of a, b, c): give one"),
    ],
)
def test_a_wrong_point_is_a_sentence(values: dict[str, Any], says: str) -> None:
    SPACE.check({"mode": "a", "free": 2.0})
    assert says in refusal(lambda: SPACE.check(values), SpaceError)


def test_true_is_not_one() -> None:
    switch = Parameter(**choice(True, False))
    assert switch.allows(True) and not switch.allows(1) and not switch.allows(0.0)
    assert not Parameter(**choice(0, 1)).allows(True)
    space = space_of(switch=choice(True, False), width=choice(1, 2, switch=True))
    assert space.existing({"switch": True, "width": 1}) == {"switch": True, "width": 1}


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"p": choice(1, 2, q=1)}, "the condition of 'p' names 'q', which is no parameter"),
        ({"p": choice(1, 2, p=1)}, "the condition of 'p' is on itself: name another parameter"),
        ({"p": choice(1, 2, q=3), "q": choice(1, 2)}, "the condition of 'p' needs q = 3, which is outside q's range"),
        ({"p": choice(1, 2, q=True), "q": choice(1, 2)}, "needs q = True, which is outside q's range"),
        ({"p": choice(1, 2, q=[]), "q": choice(1, 2)}, "the condition of 'p' names no value of 'q'"),
        ({"p": choice(1, 2, q=0.5), "q": number(0, 1)}, "the condition of 'p' is on 'q', a float: only a choice"),
        ({"p": choice(1, 2, q=1), "q": choice(1, 2, p=1)}, "conditions go round in a circle: 'p' on 'q' on 'p'"),
        (
            {"p": choice(1, 2, q=1), "q": choice(1, 2, r=1), "r": choice(1, 2, p=1)},
            "conditions go round in a circle: 'p' on 'q' on 'r' on 'p'",
        ),
    ],
)
def test_a_wrong_condition_is_a_sentence(parameters: dict[str, Any], says: str) -> None:
    """As it is read from a file."""
    named = {name: {**known, "field": f"a.{name}"} for name, known in parameters.items()}
    text = str({"system": "new", "parameters": named, "default": ["p"]}).replace("None", "null").replace("(", "[")
    text = text.replace(")", "]").replace("True", "true").replace("False", "false")
    sentence = refusal(lambda: parse_space(text.encode(), "new"), SpaceError)
    assert sentence.startswith("search_spaces/new.yaml is wrong at the file: ") and says in sentence


def test_a_space_of_another_system_is_refused() -> None:
    load_space("mirrorgan").require_system("mirrorgan")
    sentence = refusal(lambda: load_space("mirrorgan").require_system("attngan"), SpaceError)
    assert sentence == (
        "this search space is of mirrorgan, and the experiment trains attngan: take search_spaces/attngan.yaml"
    )


OF_MEMORY = ("memory_top_k", "memory_unknown", "fusion", "sentence", "memory_hidden_dim", "memory_dim")
OF_VAE = ("kl_weight", "kl_reduction")


class TestChosen:
    FIELDS: ClassVar[dict[str, Any]] = {"a": {"mode": "b", "steps": 2, "deep": 0.5, "free": 2.0}}

    def test_a_condition_on_what_is_not_varied_is_the_experiments(self) -> None:
        chosen = SPACE.choose(["deep"], fields=self.FIELDS)
        assert chosen.parameters["deep"].when == {}
        assert all("deep" in point for point in points(chosen, 5))
        assert SPACE.choose(["deep"]).parameters["deep"].when == {}

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            (
                {"steps": 4},
                "deep only exists where steps is 2 or 3, and a.steps is 4: vary steps too, set it, or leave",
            ),
            ({"mode": "a"}, "deep only exists where mode is b, and a.mode is a: vary mode too"),
            # `steps` itself does not exist where `mode` is a.
            ({"mode": "c"}, "deep only exists where mode is b, and a.mode is c"),
        ],
    )
    def test_one_that_the_experiment_does_not_meet_is_refused(self, fields: dict[str, Any], says: str) -> None:
        fields = {"a": {**self.FIELDS["a"], **fields}}
        assert says in refusal(lambda: SPACE.choose(["deep"], fields=fields), SpaceError)

    def test_a_condition_that_is_between_two_others_is_handed_on(self) -> None:
        space = space_of(top=choice(1, 2, 3), middle=choice(1, 2, top=[1, 2]), low=number(0, 1, middle=2))
        chosen = space.choose(["top", "low"], fields={"a": {"top": 3, "middle": 2, "low": 0}})
        assert chosen.parameters["low"].when == {"top": (1, 2)}

    def test_a_narrowed_range_narrows_the_condition(self) -> None:
        chosen = SPACE.choose(["mode", "steps"], {"mode": "a,b"})
        assert chosen.parameters["steps"].when == {"mode": ("b",)}
        sentence = refusal(lambda: SPACE.choose(["mode", "steps"], {"mode": "a,z"}), SpaceError)
        assert sentence == (
            "steps only exists where mode is b or c, and the range of mode is one of a, z: widen that or leave steps "
            "out"
        )

    def test_it_is_read_back_from_json(self) -> None:
        chosen = SPACE.choose(["mode", "steps", "deep"])
        assert chosen.parameters["deep"].when == {"mode": ("b",), "steps": (2, 3)}
        assert Space.model_validate(chosen.model_dump(mode="json")) == chosen

    def test_given_values_of_a_number(self) -> None:
        space = load_space("mirrorgan").choose(["stream_weight", "residual_blocks"])
        chosen = space.choose([], {"stream_weight": "5,10,20", "residual_blocks": "1,3"})
        weight, blocks = (chosen.parameters[name] for name in ("stream_weight", "residual_blocks"))
        assert weight.kind == blocks.kind == "choice" and weight.values == (5.0, 10.0, 20.0) and blocks.values == (1, 3)
        assert all(isinstance(value, float) for value in weight.values) and weight.documented == 20
        assert blocks.documented is None
        assert all(isinstance(value, int) for value in blocks.values or ())


class TestDocumented:
    @pytest.mark.parametrize("name", RECIPES)
    def test_every_recipe_can_vary_what_is_varied_unless_told_otherwise(self, name: str) -> None:
        base = get_recipe(name)
        space = load_space(base.system)
        chosen = space.choose(fields=base.model_dump(mode="json"))
        assert tuple(chosen.parameters) == space.default

    def test_one_that_cannot_exist_is_left_out_unless_it_is_named(self) -> None:
        space, base = load_space("xmcgan"), get_recipe("xmcgan_scenes32").replace({"model.image_losses": "none"})
        fields = base.model_dump(mode="json")
        assert set(space.default) - set(space.choose(fields=fields).parameters) == {"lambda_3"}
        for names, ranges in ((["lambda_3"], {}), ([], {"lambda_3": "1:2"})):
            sentence = refusal(lambda names=names, ranges=ranges: space.choose(names, ranges, fields), SpaceError)
            assert sentence == (
                "lambda_3 only exists where image_losses is discriminator or pretrained or both, and "
                "model.image_losses is none: vary image_losses too, set it, or leave lambda_3 out"
            )

    @pytest.mark.parametrize("name", system_names())
    def test_conditions_are_shown(self, name: str) -> None:
        said: list[str] = []
        shown = show_system(name, said.append)["parameters"]
        for label, parameter in load_space(name).parameters.items():
            # A field of experiments may have the same name.
            [line] = [line for line in said if line[2:].startswith(f"{label} ") and "; changes " in line]
            assert f"; changes {parameter.stage}" in line
            assert line.endswith(f"; only where {parameter.condition}") == bool(parameter.when)
            assert shown[label]["when"] == {other: list(values) for other, values in parameter.when.items()}

    def test_every_condition(self) -> None:
        conditions = {
            f"{system}/{name}": parameter.condition
            for system in system_names()
            for name, parameter in load_space(system).parameters.items()
            if parameter.when
        }
        assert conditions == {
            "attngan/noise_threshold": "noise is truncated",
            **dict.fromkeys((f"{name}/{field}" for name in ("ccfpse", "spade") for field in OF_VAE), "use_vae is True"),
            **dict.fromkeys(("ccfpse/noise", "spade/noise"), "use_vae is False"),
            **dict.fromkeys((f"cpgan/{name}" for name in OF_MEMORY), "mate is True"),
            "cpgan/patches": "fgcd is True",
            "cpgan/unconditional": "fgcd is True",
            "cpgan/noise_threshold": "noise is truncated or truncated_first_of_four",
            "mirrorgan/sentence_axis": "global_attention is True",
            "mirrorgan/extra_convolutions": "global_attention is True",
            "retrievegan/threshold": "selection is threshold",
            "trecs/transition_power": "labeler is hmm or bert_on_hmm",
            "trecs/tagger_learning_rate": "labeler is bert_on_hmm",
            "xmcgan/lambda_3": "image_losses is discriminator or pretrained or both",
            "xmcgan/rho_0": "modulation is attentional",
            "xmcgan/pretrained_loss": "image_losses is pretrained or both",
            "xmcgan/attention_values": "modulation is attentional",
            "xmcgan/word_context": "modulation is attentional",
        }

    @pytest.mark.parametrize(
        ("system", "names"),
        [
            ("xmcgan", "lambda_1 lambda_2 lambda_3 rho_0 rho_1 rho_2 tau tau_word batch_size learning_rate_generator "
             "learning_rate_discriminator head_layers image_losses modulation contrastive_on pretrained_loss channels"),
            ("attngan", "damsm_weight gamma_1 gamma_2 gamma_3 gamma2_root batch_size damsm_batch_size "
             "damsm_learning_rate learning_rate_generator learning_rate_discriminator adversarial noise kl_weight"),
            ("mirrorgan", "stream_weight global_attention gamma_1 gamma_2 gamma_3 batch_size damsm_batch_size "
             "learning_rate_generator learning_rate_discriminator sentence_axis extra_convolutions stream_pixels"),
            ("retrievegan", "k tau lambda_gt_selection lambda_cooccurrence lambda_image_adversarial lambda_box "
             "lambda_image_reconstruction lambda_image_perceptual lambda_object_adversarial lambda_object_perceptual "
             "lambda_object_classification batch_size exclusion query distance gumbel result"),
            ("sg2im", "pixel_weight box_weight box_loss image_weight object_weight classification_weight batch_size "
             "learning_rate_generator learning_rate_discriminator pooling"),
            ("trecs", "k labeler generator transition_power retrieval_margin retrieval_batch_size missing place"),
        ],
    )  # fmt: skip
    def test_what_a_paper_names_is_there(self, system: str, names: str) -> None:
        assert set(names.split()) <= load_space(system).parameters.keys()


class TestPlaces:
    @settings(deadline=None, max_examples=60)
    @given(
        low=st.floats(1e-6, 1e3),
        ratio=st.floats(1.001, 1e4),
        log=st.booleans(),
        kind=st.sampled_from(["float", "int"]),
        place=st.floats(0, 1),
    )
    def test_there_and_back(self, low: float, ratio: float, log: bool, kind: str, place: float) -> None:
        high = low * ratio
        if kind == "int":
            low, high = float(int(low) + 1), float(int(high) + 2)
        known = Parameter(**number(low, high, kind, log=log))
        value = known.at(place)
        assert known.allows(value) and isinstance(value, int if kind == "int" else float)
        assert known.at(0) == low and known.at(1) == high
        if kind == "float":
            assert known.position(value) == pytest.approx(place, abs=1e-6)

    def test_of_a_choice(self) -> None:
        known = Parameter(**choice("a", "b"))
        assert [known.at(place) for place in (0, 0.49, 0.5, 1)] == ["a", "a", "b", "b"]
        with pytest.raises(ValueError, match="no places"):
            known.position(1)

    def test_spread(self) -> None:
        assert Parameter(**number(1, 100, log=True)).spread(3) == pytest.approx((1, 10, 100))
        assert Parameter(**number(0, 1)).spread(2) == (0, 1)
        assert Parameter(**number(1, 3, "int")).spread(9) == (1, 2, 3)
        assert Parameter(**choice("a", "b")).spread(9) == ("a", "b")
