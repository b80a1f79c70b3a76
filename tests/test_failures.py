"""Trainings that are lost, by type: numbers that are not finite, losses that explode, one picture for everything."""

import copy
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.contract import Batch, Nets, Objective, Phase, StepContext
from models.parallel import OneRank
from orchestration.data.scenes import generate, parse_options
from orchestration.data.transforms import decode
from orchestration.errors import RequestError
from orchestration.evaluation import judging
from orchestration.evaluation.collapse import (
    ARRAY,
    FIGURE,
    LEAST_SHARE,
    REAL_FIGURE,
    Collapsed,
    Thumbnails,
    Variety,
    _spread,
    collapse_reason,
    end_together,
)
from orchestration.evaluation.judging import BrokenPictures, Judge
from orchestration.evaluation.looking import drawer
from orchestration.evaluation.metric import Array
from orchestration.evaluation.pixels import checked_bytes
from orchestration.training.loop import EXPLODED, Diverged, RunningMeans, Terms, Trainer
from tests.distributions import given as given_arrays
from tests.distributions import scattered, seen
from tests.tiny import (
    CPU,
    small_pretrained_nets,
    some_conditions,
    tensors_of,
    tiny_data,
    tiny_experiment,
    tiny_trainer,
    write_split,
)

Change = Callable[[str, Objective], Objective]


@pytest.fixture(autouse=True)
def light() -> Iterator[None]:
    """No pretrained weights."""
    with small_pretrained_nets():
        yield


def changed(trainer: Trainer, change: Change) -> Trainer:
    """The trainer, with every objective replaced."""

    def replaced(phase: Phase) -> Phase:
        def losses(nets: Nets, batch: Batch, context: StepContext) -> Mapping[str, Objective]:
            return {name: change(name, one) for name, one in phase.losses(nets, batch, context).items()}

        return Phase(phase.name, phase.trains, losses, phase.fresh_batch)

    trainer.phases = [replaced(phase) for phase in trainer.phases]
    return trainer


def with_term(net: str, value: float) -> Change:
    """One more term in the record of one net; loss and gradient stay as they are."""

    def change(name: str, objective: Objective) -> Objective:
        extra = {"extra": torch.tensor(value)} if name == net else {}
        return Objective(objective.loss, {**objective.terms, **extra})

    return change


def times(net: str, factor: float) -> Change:
    """The loss of one net, larger."""
    return lambda name, objective: Objective(objective.loss * (factor if name == net else 1.0), objective.terms)


def xmcgan(**changes: object) -> Trainer:
    return tiny_trainer(tiny_experiment("xmcgan", **{"model__discriminator_steps": 1, **changes}))


class TestDiverged:
    @pytest.mark.parametrize(
        ("change", "kind", "said"),
        [
            (with_term("generator", math.nan), "nan", "generator/extra is nan"),
            (with_term("generator", -math.inf), "nan", "generator/extra is inf"),
            (with_term("generator", -2e8), "exploded", "generator/extra is 2e+08"),
            (times("discriminator", 1e12), "exploded", "the gradient of the discriminator is "),
            (times("discriminator", math.inf), "nan", "discriminator/loss is "),
        ],
    )
    def test_it_is_typed_and_names_what_is_lost(self, change: Change, kind: str, said: str) -> None:
        trainer = changed(xmcgan(), change)
        before = tensors_of(trainer)
        with pytest.raises(Diverged) as caught:
            trainer.iteration()
        assert caught.value.kind == kind and said in caught.value.reason
        assert caught.value.reason in str(caught.value) and "\n" not in str(caught.value)
        after = tensors_of(trainer)
        weights = [f"net/{name}/{key}" for name, net in trainer.state.nets.items() for key, _ in net.named_parameters()]
        assert [name for name in weights if not after[name].equal(before[name])] == []
        assert not [name for name in after if name.startswith("optimizer")]

    def test_the_loss_explodes_though_every_term_is_small(self) -> None:
        trainer = changed(xmcgan(), lambda name, one: Objective(one.loss + 3 * EXPLODED, one.terms))
        with pytest.raises(Diverged, match=r"discriminator/loss is 3e\+08") as caught:
            trainer.iteration()
        assert caught.value.kind == "exploded"

    def test_what_is_not_finite_comes_before_what_is_large(self) -> None:
        def change(name: str, one: Objective) -> Objective:
            return Objective(one.loss, {"large": torch.tensor(1e9), "none": torch.tensor(math.nan)})

        with pytest.raises(Diverged) as caught:
            changed(xmcgan(), change).iteration()
        assert caught.value.kind == "nan" and "large" not in caught.value.reason

    @pytest.mark.parametrize("value", [EXPLODED, -EXPLODED, 1e7, 0.0])
    def test_what_is_large_but_below_is_training(self, value: float) -> None:
        changed(xmcgan(), with_term("generator", value)).iteration()

    def test_the_worst_micro_batch_counts(self) -> None:
        calls = []

        def change(name: str, one: Objective) -> Objective:
            calls.append(name)
            return Objective(one.loss, {"extra": torch.tensor(1e9 if len(calls) == 1 else 0.0)})

        with pytest.raises(Diverged, match="discriminator/extra is 1e"):
            changed(xmcgan(training__micro_batches=2), change).iteration()

    def test_what_another_rank_has_ends_this_one(self) -> None:
        """Nothing is wrong here; the mean over ranks says that something is, there."""

        class TwoRanks(OneRank):
            def average_(self, tensors: Iterable[Tensor]) -> None:
                sizes = list(tensors)[-1]
                if sizes.ndim == 1 and len(sizes) > 1:
                    sizes[0] = (sizes[0] + 1e12) / 2

        trainer = tiny_trainer(tiny_experiment("xmcgan"), TwoRanks())
        with pytest.raises(Diverged, match=r"\(discriminator/\w+ is 5e"):
            trainer.iteration()

    def test_a_resumed_run_ends_at_the_same_step_for_the_same_reason(self) -> None:
        """Nothing but the step itself counts: no mean, no history."""

        def late(trainer: Trainer) -> Change:
            def change(name: str, one: Objective) -> Objective:
                lost = trainer.state.images_seen > 40 and name == "generator"
                return Objective(one.loss * (1e14 if lost else 1.0), one.terms)

            return change

        def end(trainer: Trainer) -> tuple[str, str]:
            with pytest.raises(Diverged) as caught:
                for _ in range(9):
                    trainer.iteration()
            return caught.value.reason, str(caught.value)

        undisturbed = xmcgan()
        changed(undisturbed, late(undisturbed))
        cut_off = xmcgan()
        changed(cut_off, late(cut_off))
        cut_off.iteration()
        resumed = xmcgan()
        changed(resumed, late(resumed))
        resumed.state = copy.deepcopy(cut_off.state)
        resumed.means = RunningMeans()
        found = end(undisturbed)
        assert "kimg" in found[1] and end(resumed) == found

    @settings(deadline=None, max_examples=60)
    @given(rows=st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), min_size=1, max_size=4))
    def test_the_largest_sizes_of_terms(self, rows: list[list[float]]) -> None:
        terms = None
        for one, two in rows:
            terms = Terms.of(Objective(torch.tensor(two), {"one": torch.tensor(one)}), terms)
        assert terms is not None and terms.names == ("one", "loss")
        wanted = torch.tensor(rows).abs().amax(0)
        assert torch.equal(terms.sizes.isnan(), wanted.isnan())
        assert torch.equal(terms.sizes.nan_to_num(), wanted.nan_to_num())


SIDE = 32


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """Real pictures (64,3,32,32) of easy scenes."""
    options = parse_options(f"size={SIDE},things=6,colours=6,backgrounds=4,objects=1,train=64,val=1,test=1")
    folder = generate(options, tmp_path_factory.mktemp("scenes"))
    files = sorted((folder / "train2017").iterdir())
    assert len(files) == 64
    return torch.stack([torch.from_numpy(np.array(decode(file))).permute(2, 0, 1) for file in files])


def rows_of(pictures: Tensor) -> Array:
    return Thumbnails().look(pictures)[ARRAY]


def variety_of(drawn: Tensor, real: Tensor) -> dict[str, float]:
    metric = Variety()
    metric.update(seen(rows_of(drawn), "thumbnail", net="pixels"))
    metric.update_real(seen(rows_of(real), "thumbnail", net="pixels"))
    return judging.figures_of(metric.compute())


def recorded(value: float, real: float = 65.0) -> dict[str, float]:
    return {FIGURE: value, REAL_FIGURE: real}


class TestVariety:
    def test_of_real_scenes_blurred_ones_and_one_for_all(self, scenes: Tensor) -> None:
        """Grey levels; what is measured here is what the rule in evaluation/collapse.py stands on."""
        generator = torch.Generator().manual_seed(0)
        blurred = F.avg_pool2d(scenes.float(), 16).repeat_interleave(16, 2).repeat_interleave(16, 3).byte()
        one = scenes[:1].expand(64, -1, -1, -1)
        grain = (one.float() + 8 * torch.randn(scenes.shape, generator=generator)).clamp(0, 255).byte()
        brightness = (one.float() + torch.randn(64, 1, 1, 1, generator=generator)).clamp(0, 255).byte()
        found = {
            name: variety_of(pictures, scenes)["variety/pixels"]
            for name, pictures in {
                "real": scenes,
                "blurred": blurred,
                "one": one,
                "grain": grain,
                "brightness": brightness,
            }.items()
        }
        assert 50 < found["real"] < 80
        assert found["real"] * 0.6 < found["blurred"] < found["real"]
        assert found["one"] == 0
        least = LEAST_SHARE * found["real"]
        assert found["brightness"] < least < 4
        # Noise of single pixels is 8 levels before the pictures are shrunk, and nearly one picture afterwards.
        assert found["grain"] < 4.5 < found["blurred"]

    def test_an_untrained_net_draws_different_pictures(self, scenes: Tensor) -> None:
        for system in ("xmcgan", "attngan", "mirrorgan"):
            trainer = tiny_trainer(tiny_experiment(system))
            experiment = trainer.experiment
            draw = drawer(experiment, trainer.state.sampling_nets(), CPU)
            pictures = checked_bytes(draw(some_conditions(experiment, 16), range(16)))
            assert variety_of(pictures, scenes)["variety/pixels"] > LEAST_SHARE * 65, system

    def test_it_is_the_deviation_of_pixels_in_grey_levels(self) -> None:
        levels = torch.tensor([10, 20, 60, 90], dtype=torch.uint8)
        pictures = levels.view(4, 1, 1, 1).expand(4, 3, 20, 24)
        found = variety_of(pictures, pictures[:2])
        assert found["variety/pixels"] == pytest.approx(levels.float().std(correction=0).item())
        assert found["variety_real/pixels"] == pytest.approx(5.0)
        assert found["variety_low/pixels"] < found["variety/pixels"] < found["variety_high/pixels"]

    def test_the_interval_holds_the_variety_of_many_in_most_samples_of_few(self) -> None:
        rng = np.random.default_rng(0)
        everyone = rng.normal(128, 20, (5000, 6)) * rng.uniform(0.2, 1, (5000, 1))
        truth = everyone.std(0).mean()
        hits = 0
        for _ in range(200):
            rows = everyone[rng.integers(0, 5000, 100)]
            value, pulls = _spread(rows)
            hits += abs(value - truth) < 1.96 * pulls.std(ddof=1) / 10
        assert 178 <= hits <= 198

    def test_portions_and_workers_change_nothing(self) -> None:
        rng = np.random.default_rng(1)
        drawn, real = rng.uniform(0, 255, (50, 12)), rng.uniform(0, 255, (40, 12))

        class Named(Variety):
            def __init__(self) -> None:
                super().__init__()
                self._drawn.array = self._real.array = "net/thumbnail"

        whole = given_arrays(Named(), drawn, real, "thumbnail").compute()
        for workers in (1, 3):
            assert scattered(Named, workers, 5, drawn, real, "thumbnail").compute() == whole

    def test_too_few_pictures_is_a_sentence(self) -> None:
        with pytest.raises(RequestError, match="variety/pixels needs at least 2 real pictures, and has 0"):
            Variety().compute()

    def test_pictures_that_are_none_are_refused(self) -> None:
        with pytest.raises(RequestError, match=r"shape \(2, 1, 4, 4\)"):
            Thumbnails().look(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))


class TestCollapsed:
    @pytest.mark.parametrize(
        ("judged", "collapsed"),
        [
            ([0.0], False),  # the first judging never counts
            ([30.0, 0.4], True),
            ([0.0, 0.0], True),
            ([0.3, 0.5, 0.9], False),  # a slow beginning
            ([0.3, 0.9, 0.5], True),
            ([0.3, 1.31, 40.0], False),
            ([30.0, 0.4, 20.0], False),  # it found its way back, and was let go on
            ([], False),
        ],
    )
    def test_the_rule(self, judged: list[float], collapsed: bool) -> None:
        lines = [line for value in judged for line in ({"generator/loss": 1.0}, recorded(value))]
        assert (collapse_reason(lines) is not None) == collapsed

    def test_the_reason_has_the_numbers(self) -> None:
        reason = collapse_reason([recorded(12.0), recorded(0.25)])
        assert reason is not None
        assert "differ by 0.25 grey levels, real ones by 65: less than 2% is one picture for all" in reason
        assert "\n" not in reason
        error = Collapsed(reason, 2.0)
        assert error.reason == reason and "collapsed at 2.000 kimg" in str(error)

    def test_data_of_little_variety_asks_for_little(self) -> None:
        assert collapse_reason([recorded(1.0, 10.0), recorded(0.5, 10.0)]) is None
        assert collapse_reason([recorded(1.0, 10.0), recorded(0.19, 10.0)]) is not None

    @settings(deadline=None, max_examples=100)
    @given(values=st.lists(st.floats(0, 100), min_size=1, max_size=6), real=st.floats(1, 100))
    def test_the_last_one_ends_it_when_it_is_low_and_was_higher(self, values: list[float], real: float) -> None:
        found = collapse_reason([recorded(value, real) for value in values]) is not None
        low = values[-1] < LEAST_SHARE * real
        assert found == (len(values) > 1 and low and values[-1] <= max(values[:-1]))


class Group:
    """Ranks that run in threads of this process."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier, self.sent = size, threading.Barrier(size, timeout=20), [Tensor()] * size

    def run(self, work: Callable[["Member"], object]) -> list[object]:
        """What work returned or raised on each rank."""
        found: list[object] = [None] * self.size

        def one(rank: int) -> None:
            try:
                found[rank] = work(Member(rank, self))
            except Exception as error:
                found[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


class Member(OneRank):
    def __init__(self, rank: int, group: Group) -> None:
        super().__init__(rank, group.size)
        object.__setattr__(self, "group", group)

    def average_(self, tensors: Iterable[Tensor]) -> None:
        group: Group = self.group  # type: ignore[attr-defined]
        [tensor] = tensors
        group.sent[self.rank] = tensor.clone()
        group.barrier.wait()
        tensor.copy_(torch.stack(group.sent).mean(0))
        group.barrier.wait()


class TestEveryRank:
    @pytest.mark.parametrize("size", [1, 2, 3])
    @pytest.mark.parametrize("found", [None, Diverged("it is nan", 1.0), Collapsed("one picture", 1.0)])
    def test_all_end_when_the_judge_has_found_it(self, size: int, found: Diverged | Collapsed | None) -> None:
        def work(rank: Member) -> object:
            end_together(found if rank.rank == 0 else None, rank, CPU, 1.0)
            return "goes on"

        ends = Group(size).run(work)
        if found is None:
            assert ends == ["goes on"] * size
        else:
            assert ends[0] is found and {type(end) for end in ends} == {type(found)}

    def test_only_rank_0_is_asked(self) -> None:
        def work(rank: Member) -> object:
            end_together(Collapsed("not mine to say", 1.0) if rank.rank else None, rank, CPU, 1.0)
            return "goes on"

        assert Group(2).run(work) == ["goes on"] * 2


class PlainView:
    """A feature net of 12 numbers a picture."""

    name, digest, notes = "plain", "0", ()

    def look(self, pictures: Tensor, asked: object = None) -> dict[str, Array]:
        return {"plain/features": F.adaptive_avg_pool2d(pictures.float(), 2).flatten(1).numpy()}


class TestJudge:
    @pytest.fixture
    def judge(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
        monkeypatch.setattr(judging, "open_feature_view", lambda *given: PlainView())
        return Judge("plain", write_split(tmp_path, tiny_data()), None, samples=16, seed=1)

    def test_variety_stands_beside_fid(self, judge: Judge) -> None:
        generator = torch.Generator().manual_seed(0)
        verdict = judge(lambda text, seeds: torch.rand(len(seeds), 3, 32, 32, generator=generator) * 2 - 1)
        figures = {f"validation/{name}": value for name, value in verdict.figures.items()}
        assert figures[FIGURE] > 10 and figures[REAL_FIGURE] > 10 and "validation/fid/plain" in figures
        constant = judge(lambda text, seeds: torch.zeros(len(seeds), 3, 32, 32))
        lines = [figures, {f"validation/{name}": value for name, value in constant.figures.items()}]
        assert collapse_reason(lines[:1]) is None and collapse_reason(lines) is not None

    def test_nan_pictures_have_a_type_of_their_own(self, judge: Judge) -> None:
        with pytest.raises(BrokenPictures, match="hold NaN: training has diverged"):
            judge(lambda text, seeds: torch.full((len(seeds), 3, 32, 32), math.nan))
