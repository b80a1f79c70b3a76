"""A population's exploit and explore, and which parameters may change in the middle of a trial."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st

from models.contract import Settings
from models.registry import system_names
from orchestration.campaigns.ledger import Trial
from orchestration.campaigns.population import exploit, explore, mutable_parameters
from orchestration.campaigns.settings import CampaignSettings, Objective
from orchestration.recipes import get_recipe
from search_spaces.space import Parameter, Space, load_space
from tests.space_support import choice, number, space_of
from tests.tiny import learns, small_pretrained_nets, tiny_experiment

FIGURE = "validation/fid/scenes-net"
LESS, MORE = Objective(figure=FIGURE), Objective(figure=FIGURE, direction="maximize")


def population(members: int, quantile: float = 0.25, seed: int = 0) -> CampaignSettings:
    return CampaignSettings(
        trials=members, budget_kimg=8, grace_kimg=1, objectives=(LESS,), scheduler="population", quantile=quantile,
        seed=seed,
    )  # fmt: skip


def members(*figures: float | None) -> list[Trial]:
    return [
        Trial(index, {}, "proposed", figures={} if figure is None else {FIGURE: figure})
        for index, figure in enumerate(figures)
    ]


class TestExploit:
    def test_the_worst_quarter_copies_the_best_quarter(self) -> None:
        trials = members(*(float(figure) for figure in (5, 1, 8, 3, 2, 7, 4, 6)))
        copies = exploit(trials, population(8), 1, LESS)
        assert copies.keys() == {2, 5} and set(copies.values()) <= {1, 4}
        assert exploit(trials, population(8), 1, MORE).keys() == {1, 4}

    def test_every_one_of_the_best_is_copied_sometimes(self) -> None:
        trials = members(*(float(figure) for figure in range(8)))
        seen = Counter(exploit(trials, population(8), generation, LESS)[7] for generation in range(400))
        assert seen.keys() == {0, 1} and min(seen.values()) > 140
        by_seed = Counter(exploit(trials, population(8, seed=seed), 1, LESS)[7] for seed in range(400))
        assert by_seed.keys() == {0, 1} and min(by_seed.values()) > 140
        together = [len(set(exploit(trials, population(8), generation, LESS).values())) for generation in range(50)]
        assert set(together) == {1, 2}

    def test_who_copies_whom_does_not_depend_on_the_others(self) -> None:
        settings = population(8, 0.5)
        trials = members(*(float(figure) for figure in range(8)))
        copies = exploit(trials, settings, 3, LESS)
        assert exploit(trials[::-1], settings, 3, LESS) == copies
        worse = [*trials[:7], *members(*[0.0] * 7, 99.0)[7:]]
        assert exploit(worse, settings, 3, LESS) == copies

    @pytest.mark.parametrize("broken", [None, math.nan, math.inf, -math.inf])
    def test_one_without_a_figure_copies_and_is_not_copied(self, broken: float | None) -> None:
        for objective in (LESS, MORE):
            copies = exploit(members(broken, 1.0, 2.0, 3.0), population(4), 1, objective)
            assert copies == {0: 1 if objective is LESS else 3}
            # More of them than the share: all copy.
            copies = exploit(members(broken, 1.0, broken, broken), population(4), 1, objective)
            assert copies == {0: 1, 2: 1, 3: 1}
        assert exploit(members(broken, broken), population(2), 1, LESS) == {}

    @pytest.mark.parametrize(
        ("count", "quantile", "copying"),
        [(1, 0.5, 0), (2, 0.1, 1), (3, 0.25, 1), (3, 0.5, 1), (10, 0.3, 3), (5, 0.5, 2)],
    )
    def test_the_share_of_small_populations(self, count: int, quantile: float, copying: int) -> None:
        assert len(exploit(members(*map(float, range(count))), population(max(2, count), quantile), 1, LESS)) == copying

    def test_of_nobody(self) -> None:
        assert exploit([], population(2), 1, LESS) == {}

    @checked(deadline=None, max_examples=100)
    @given(
        figures=st.lists(st.one_of(st.none(), st.floats(-5, 5), st.just(math.nan)), max_size=12),
        quantile=st.floats(0.01, 0.5),
        generation=st.integers(1, 9),
    )
    def test_no_one_copies_a_worse_one(self, figures: list[float | None], quantile: float, generation: int) -> None:
        copies = exploit(members(*figures), population(max(2, len(figures)), quantile), generation, LESS)
        for copying, copied in copies.items():
            mine, theirs = figures[copying], figures[copied]
            assert copied not in copies and theirs is not None and math.isfinite(theirs)
            assert mine is None or math.isnan(mine) or theirs <= mine


def moves(known: dict[str, Any], value: Any, count: int = 400) -> Counter[Any]:
    """What becomes of a value in so many generations that begin with it."""
    space = space_of(p=known)
    return Counter(explore(space, {"p": value}, 0, 3, generation, {"p"})["p"] for generation in range(count))


class TestExplore:
    def test_a_number_is_multiplied_or_drawn_anew(self) -> None:
        seen = moves(number(0, 10), 5.0)
        assert 110 < seen[4.0] < 190 and 110 < seen[6.0] < 190
        drawn = [value for value in seen.elements() if value not in (4.0, 6.0)]
        assert 70 < len(drawn) < 130 and len(set(drawn)) == len(drawn)
        assert min(drawn) < 1 and max(drawn) > 9

    def test_a_log_range_is_drawn_from_evenly_in_its_logarithm(self) -> None:
        drawn = [value for value in moves(number(1e-4, 1, log=True), 0.5).elements() if value not in (0.4, 0.6)]
        assert 25 < sum(value < 1e-2 for value in drawn) < 75 and len(drawn) > 70

    def test_a_number_stays_in_its_range_and_moves(self) -> None:
        seen = moves(number(1, 10), 10.0)
        assert seen[8.0] > 250 and 10.0 not in seen  # up is cut to where it is, so it goes down
        assert moves(number(1, 10), 9.0)[10.0] > 100
        assert moves(number(1, 10), 1.0)[1.2] > 250

    def test_zero_is_left_by_drawing_alone(self) -> None:
        seen = moves(number(0, 10), 0.0)
        assert 250 < seen[0.0] < 350

    def test_a_whole_number_goes_on_by_one_at_least(self) -> None:
        seen = moves(number(1, 9, "int"), 2)
        assert seen[1] > 110 and seen[3] > 110 and all(isinstance(value, int) for value in seen)
        assert seen.keys() == set(range(1, 10))
        assert moves(number(1, 100, "int"), 50).keys() >= {40, 60}
        assert moves(number(1, 2, "int"), 1)[2] > 250
        assert moves(number(1, 4, "int"), 4)[3] > 250

    def test_a_choice_goes_to_a_neighbour(self) -> None:
        seen = moves(choice(16, 32, 64, 128, 256), 64)
        assert seen[32] > 110 and seen[128] > 110 and 0 < seen[16] < 50 and 0 < seen[256] < 50
        assert moves(choice("a", "b", "c"), "a")["b"] > 250
        assert moves(choice("a", "b", "c"), "c")["b"] > 250
        assert moves(choice(True, False), True)[False] > 250
        assert moves(choice("a"), "a") == {"a": 400}

    def test_a_value_that_the_range_does_not_hold_any_more_is_drawn_anew(self) -> None:
        assert all(1 <= value <= 2 for value in moves(number(1, 2), 50.0))
        assert moves(choice("a", "b"), "z").keys() == {"a", "b"}

    def test_only_mutable_ones_change(self) -> None:
        space = space_of(p=number(0, 1), q=choice(1, 2, 3))
        for generation in range(30):
            assert explore(space, {"p": 0.5, "q": 2}, 0, 1, generation, {"p"})["q"] == 2
            assert explore(space, {"p": 0.5, "q": 2}, 0, 1, generation, ()) == {"p": 0.5, "q": 2}

    def test_it_depends_on_seed_trial_and_generation_alone(self) -> None:
        space = space_of(p=number(0, 1), q=number(0, 1))
        point = {"p": 0.5, "q": 0.5}
        first = explore(space, point, 0, 1, 1, {"p", "q"})
        assert explore(space, dict(reversed(point.items())), 0, 1, 1, ["q", "p"]) == first
        others = [explore(space, point, *key, {"p", "q"}) for key in ((1, 1, 1), (0, 2, 1), (0, 1, 2))]
        assert len({tuple(one.values()) for one in [first, *others]}) >= 3
        # The one parameter does not notice the other.
        assert explore(space, point, 0, 1, 1, {"q"})["q"] == first["q"]

    def test_what_comes_to_exist_is_drawn_and_what_does_not_any_more_is_gone(self) -> None:
        space = space_of(low=number(5, 6, mode="b"), mode=choice("a", "b"))
        seen = [explore(space, {"mode": "a"}, 0, 1, generation, {"mode", "low"}) for generation in range(40)]
        assert any(point["mode"] == "b" for point in seen)
        for point in seen:
            space.check(point)
        gone = [
            explore(space, {"low": 5.5, "mode": "b"}, 0, 1, generation, {"mode", "low"}) for generation in range(40)
        ]
        assert {"mode": "a"} in gone

    @checked(deadline=None, max_examples=60)
    @given(data=st.data(), seed=st.integers(0, 2**31 - 1), generation=st.integers(1, 50))
    def test_points_of_every_documented_space_stay_points(self, data: Any, seed: int, generation: int) -> None:
        space = load_space(data.draw(st.sampled_from(system_names())))
        point = {}
        for name in space.order:
            if space.exists(name, point):
                point[name] = space.parameters[name].at(data.draw(st.floats(0, 1)))
        mutable = data.draw(st.sets(st.sampled_from(sorted(space.parameters))))
        changed = explore(space, point, seed, 0, generation, mutable)
        space.check(changed)
        assert all(changed[name] == value for name, value in point.items() if name not in mutable and name in changed)


def space_on(**parameters: Parameter) -> Space:
    return Space(system="xmcgan", parameters=parameters, default=tuple(parameters))


class TestMutable:
    @pytest.mark.parametrize(
        ("system", "mutable", "fixed"),
        [
            (
                "xmcgan",
                "lambda_1 lambda_3 tau rho_0 batch_size learning_rate_generator discriminator_steps beta_1",
                "channels head_layers modulation noise_dim sentence_dim first_layer",
            ),
            (
                "attngan",
                "damsm_weight batch_size learning_rate_generator kl_weight noise noise_threshold adversarial",
                "gamma_1 gamma_2 gamma_3 text_dim damsm_learning_rate residual_blocks generator_channels "
                "cascade_stages condition_dim noise_dim longest_caption mask_same_class",
            ),
            (
                "mirrorgan",
                "stream_weight learning_rate_generator batch_size kl_weight sentence_axis",
                "gamma_1 stream_loss stream_hidden_dim global_attention extra_convolutions cascade_stages text_dim",
            ),
        ],
    )
    def test_of_every_system(self, system: str, mutable: str, fixed: str) -> None:
        space, base = load_space(system), get_recipe("xmcgan_scenes32" if system == "xmcgan" else f"{system}_scenes")
        found = mutable_parameters(base, space)
        assert set(mutable.split()) <= found
        assert not set(fixed.split()) & found
        # Whatever sets a field of an earlier stage.
        assert all(space.parameters[name].stage == "gan" for name in found)

    @pytest.mark.parametrize("system", [name for name in system_names() if learns(name)])
    def test_a_trial_goes_on_with_the_tensors_that_it_has(self, system: str) -> None:
        """What is called mutable leaves the trained nets of a tiny system as they are, wherever it is set."""
        base, space = tiny_experiment(system), load_space(system)

        def tensors(model: Settings) -> dict[str, torch.Size]:
            with torch.device("meta"), small_pretrained_nets():
                nets = base.trainable.build(model)
            return {
                f"{net}.{name}": tensor.shape
                for net in base.trainable.optimizers(model)
                for name, tensor in nets[net].state_dict().items()
            }

        before = tensors(base.model)
        with small_pretrained_nets():
            found = mutable_parameters(base, space)
        assert found
        for name in sorted(found):
            for value in {space.parameters[name].at(place) for place in (0.0, 0.31, 1.0)}:
                assert tensors(base.replace(space.assignments({name: value})).model) == before, (name, value)

    def test_what_lets_a_fixed_one_exist_is_fixed(self) -> None:
        documented = load_space("xmcgan").parameters
        free, width = documented["contrastive_on"], documented["channels"]
        base = get_recipe("xmcgan_scenes32")
        assert mutable_parameters(base, space_on(free=free, width=width)) == {"free"}
        width = width.model_copy(update={"when": {"free": ("both",)}})
        middle = documented["directions"].model_copy(update={"when": {"free": ("both",)}})
        assert mutable_parameters(base, space_on(free=free, width=width)) == frozenset()
        assert mutable_parameters(base, space_on(free=free, middle=middle)) == {"free", "middle"}
        # Through one between them, too.
        deep = documented["noise_dim"].model_copy(update={"when": {"middle": ("both",)}})
        assert mutable_parameters(base, space_on(deep=deep, middle=middle, free=free)) == frozenset()

    def test_one_with_a_value_that_makes_no_experiment_is_fixed(self) -> None:
        known = load_space("xmcgan").parameters["tau"].model_copy(update={"low": 0.0, "log": False})
        assert mutable_parameters(get_recipe("xmcgan_scenes32"), space_on(tau=known)) == frozenset()
