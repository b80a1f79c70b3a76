"""Preflight: the sum is right, and what cannot be is refused with its numbers before anything is started."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.campaigns import needs as needs_module
from orchestration.campaigns import preflight as module
from orchestration.campaigns.execution import SLOT
from orchestration.campaigns.needs import GIB, PROCESS_BYTES, Needs, Resources, available_resources, free_memory
from orchestration.campaigns.preflight import (
    Report,
    direction_of,
    known_objectives,
    objective_problem,
    preflight,
    require_writable,
)
from orchestration.campaigns.settings import CampaignSettings, Objective
from orchestration.config import Experiment
from orchestration.errors import RequestError
from orchestration.evaluation import judging
from orchestration.evaluation.feature_views import NETS, FeatureNet
from orchestration.evaluation.judging import Judge
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.recipes import get_recipe
from orchestration.stages import list_files
from orchestration.training.state import initial_state, save_checkpoint
from search_spaces.space import Space, load_space
from tests.ray_support import TINY
from tests.test_failures import PlainView
from tests.tiny import (
    CPU,
    PROVENANCE,
    small_pretrained_nets,
    tiny_data,
    tiny_experiment,
    tiny_given,
    tiny_trainer,
    write_split,
)

FID = "validation/fid/scenes-net"
PLENTY = Resources(cpus=64, gpus=0, memory=1000 * GIB, slots=64)


def base(**changes: object) -> Experiment:
    given = {name.replace("__", "."): value for name, value in changes.items()}
    return get_recipe("xmcgan_scenes32").replace({**TINY, "evaluation.protocol": "auto", **given})


def space(*names: str, **ranges: str) -> Space:
    return load_space("xmcgan").choose(names or ("tau",), ranges)


def campaign(figure: str = FID, direction: str = "minimize", **changes: Any) -> CampaignSettings:
    values: dict[str, Any] = {"trials": 8, "concurrent": 2, "budget_kimg": 4, "grace_kimg": 0.5}
    objective = {"figure": figure, "direction": direction}
    return CampaignSettings.model_validate({**values, "objectives": [objective], **changes})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def needs(home: Home, experiment: Experiment, has: Resources = PLENTY, **changes: Any) -> Needs:
    return Needs(experiment, campaign(**changes), has, home, Preparation(experiment, home))


def report(home: Home, has: Resources = PLENTY, experiment: Experiment | None = None, **changes: Any) -> Report:
    return preflight(experiment or base(), space(), campaign(**changes), has, home)


class TestReport:
    def test_what_fits_is_a_table(self, home: Home) -> None:
        found = report(home)
        assert found.refusal is None and found.problems == [] and found.hours is None
        lines = found.text().splitlines()
        assert lines[0].split() == ["needed", "there"]
        titles = [line.what for line in found.lines]
        assert titles == [
            "objective", "paper's point", "points", "trial slots", "CPUs", "memory", "disk", "hours"
        ]  # fmt: skip
        assert "unknown" in lines[-1] and "nothing like it was trained in this home" in lines[-1]
        assert all(title in line for title, line in zip(titles, lines[1:], strict=True))
        assert not home.root.exists()

    def test_every_problem_is_listed_and_the_first_is_the_refusal(self, home: Home) -> None:
        found = report(home, Resources(1, 0, 1 * GIB, 1), figure="validation/fid/inception-2015")
        assert len(found.problems) == 4 and found.refusal == found.problems[0]
        assert found.text().count("\nno: ") == 4
        assert all("\n" not in problem for problem in found.problems)


class TestRefusals:
    @pytest.mark.parametrize(
        ("has", "said"),
        [
            (
                replace(PLENTY, slots=1),
                "2 trials at a time need 2 units of the resource 'trial_slot' and the cluster has 1: start each "
                "node that trains with --resources='{\"trial_slot\": N}'",
            ),
            (
                replace(PLENTY, cpus=3),
                "2 trials at a time, each of 2 workers, need 4 CPUs and there are 3: lower --concurrent or --workers, "
                "or add machines",
            ),
            (
                replace(PLENTY, gpus=3),
                "2 trials at a time, each of 2 workers, need 4 GPUs and there are 3: lower --concurrent or --workers, "
                "or add machines",
            ),
            (replace(PLENTY, memory=GIB), "need 4 x 0.7 GiB of memory and there are 1.0 GiB: lower --concurrent"),
        ],
        ids=["slots", "cpus", "gpus", "memory"],
    )
    def test_too_little_of_it(self, home: Home, has: Resources, said: str) -> None:
        refusal = report(home, has, base(resources__workers=2)).refusal
        assert refusal is not None and said in refusal

    def test_of_a_range_the_fewest_must_fit(self, home: Home) -> None:
        has = Resources(3.0, 0.0, 64 * GIB, 2.0)
        assert report(home, has, base(resources__workers=2)).refusal is not None
        assert report(home, has, base(resources__workers=2, resources__min_workers=1)).refusal is None

    def test_gpus_that_are_asked_for_and_not_there(self, home: Home) -> None:
        refusal = report(home, PLENTY, base(resources__use_gpu=True)).refusal
        assert refusal == (
            "2 trials at a time, each of 1 worker, need 2 GPUs and there are 0: lower --concurrent, or add machines, "
            "or set resources.use_gpu=false"
        )

    def test_gpus_that_are_there_and_not_asked_for(self, home: Home) -> None:
        found = report(home, replace(PLENTY, gpus=1), base(resources__use_gpu=False))
        assert found.refusal is None and "GPUs" not in found.text()

    def test_a_net_larger_than_a_gpu(self, home: Home) -> None:
        small = replace(PLENTY, gpus=2, gpu_memory=2**20)
        refusal = report(home, small).refusal
        assert refusal is not None
        assert "of a GPU (nets " in refusal and "and it has 1.0 MiB: lower training.batch_size" in refusal
        unknown = report(home, replace(small, gpu_memory=None))
        assert unknown.refusal is None and "unknown" in unknown.text()

    def test_a_disk_too_small(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "free_disk", lambda folder: 2.0**20)
        found = report(home)
        assert found.refusal is not None
        assert (
            found.refusal.startswith("8 trials leave ") and "has 1.0 MiB free: choose another --home" in found.refusal
        )
        assert str(home.root) in found.refusal

    def test_a_ray_of_our_own_gives_slots_and_shares_cores(self, home: Home) -> None:
        found = report(home, Resources(1, 0, 100 * GIB), concurrent=4)
        assert found.refusal is None
        assert "workers will share cores" in found.text() and "trial slots" not in found.text()

    def test_no_more_at_a_time_than_there_are_trials(self, home: Home) -> None:
        assert needs(home, base(), trials=2, concurrent=50).workers == 2

    def test_a_space_of_another_system(self, home: Home) -> None:
        other = load_space("attngan").choose()
        refusal = preflight(base(), other, campaign(), PLENTY, home).refusal
        assert refusal == "the search space is of attngan, and the experiment trains xmcgan: take that one's"

    def test_a_paper_point_outside_its_range(self, home: Home) -> None:
        narrow = space(tau="0.3:0.4")
        refusal = preflight(base(model__tau=0.2), narrow, campaign(), PLENTY, home).refusal
        assert refusal is not None and refusal.startswith("the range of tau (0.3 to 0.4, log) holds neither")

    def test_values_that_make_no_experiment(self, home: Home) -> None:
        odd = space("batch_size", batch_size="16,24,33")
        found = preflight(base(resources__workers=8), odd, campaign(), PLENTY, home)
        assert found.refusal is not None
        assert found.refusal.startswith("batch_size=33 makes no experiment (training.batch_size 33 cannot be divided")
        assert found.refusal.endswith("narrow its range with --range")
        both = preflight(base(resources__workers=16), odd, campaign(), PLENTY, home).refusal
        assert both is not None and both.startswith("batch_size=24 ") and "(and 1 more)" in both

    def test_ends_of_ranges_are_tried(self, home: Home) -> None:
        values = {**space("tau").parameters["tau"].model_dump(), "low": 0.0, "paper": None, "released": None}
        wide = Space.model_validate(
            {"system": "xmcgan", "parameters": {"tau": values | {"log": False}}, "default": ["tau"]}
        )
        refusal = preflight(base(), wide, campaign(), PLENTY, home).refusal
        assert refusal is not None and refusal.startswith("tau=0.0 makes no experiment (model.tau: ")

    def test_data_that_is_not_there_is_a_sentence(self, home: Home, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="nowhere"):
            report(home, experiment=base(data__source=f"coco:{tmp_path}/nowhere"), figure="validation/fid/x")


class TestObjectives:
    def test_those_of_scenes(self) -> None:
        assert known_objectives(base(evaluation__samples=500)) == [
            FID,
            "validation/fid_inf/scenes-net",
            "validation/kid/scenes-net",
            "validation/accuracy/background",
            "validation/accuracy/colour",
            "validation/accuracy/thing",
        ]
        assert "validation/fid_inf/scenes-net" not in known_objectives(base(evaluation__samples=32))

    def test_those_of_other_protocols(self) -> None:
        assert known_objectives(base(evaluation__protocol="inception-2015")) == [
            "validation/fid/inception-2015",
            "validation/kid/inception-2015",
        ]
        assert known_objectives(base(evaluation__protocol="none")) == []

    def test_those_of_parts(self) -> None:
        damsm, stream = (tiny_experiment(name, evaluation__protocol="auto") for name in ("damsm", "stream"))
        known = known_objectives(damsm.replace({"evaluation.samples": 60}))
        assert known[:4] == [
            *(f"validation/r_precision/1+59/top-{top}" for top in (1, 2, 3)),
            "validation/recall/caption-to-image@1",
        ]
        assert known[-1] == "validation/recall/image-to-caption@50" and len(known) == 13
        assert known_objectives(stream)[0] == "validation/naming/scenes/background"
        photographs = stream.replace({"data.source": "coco:somewhere"})
        assert known_objectives(photographs) == ["validation/naming/caption-overlap"]

    def test_they_are_what_the_judge_records(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every figure that is better one way, and no other; with enough pictures to extrapolate and without."""
        monkeypatch.setattr(judging, "open_feature_view", lambda *given: PlainView())
        plain = FeatureNet("twelve numbers", NETS["scenes-net"].open, NETS["scenes-net"].prepare, {"features": 12})
        monkeypatch.setitem(NETS, "plain", plain)
        split = write_split(tmp_path, tiny_data())
        generator = torch.Generator().manual_seed(0)
        for samples in (16, 60):
            verdict = Judge("plain", split, None, samples, 1)(
                lambda text, seeds: torch.rand(len(seeds), 3, 32, 32, generator=generator) * 2 - 1
            )
            recorded = {f"validation/{name}" for name in verdict.figures}
            sized = {name for name in recorded if direction_of(name) is not None}
            known = known_objectives(base(evaluation__protocol="plain", evaluation__samples=samples))
            assert set(known) == sized

    def test_directions(self) -> None:
        figures = (FID, "validation/accuracy/thing", "validation/variety/pixels", "validation/r_precision/1+99/top-1")
        assert [direction_of(figure) for figure in figures] == ["minimize", "maximize", None, "maximize"]
        assert direction_of("validation/recall/image-to-caption@5") == "maximize"

    @pytest.mark.parametrize(
        ("figure", "direction", "said"),
        [
            (
                "validation/fid/inception-2015",
                "minimize",
                "nothing records validation/fid/inception-2015: this experiment is judged under scenes-net; near it: "
                "validation/fid/scenes-net, validation/kid/scenes-net, or set evaluation.protocol=inception-2015",
            ),
            ("validation/fid/scene-net", "minimize", "near it: validation/fid/scenes-net"),
            ("fid", "minimize", "near it: validation/fid/scenes-net, validation/kid/scenes-net, validation/accuracy/"),
            ("generator/loss", "minimize", "nothing records generator/loss"),
            (FID, "maximize", "validation/fid/scenes-net is better when it is small: its direction must be minimize"),
            ("validation/accuracy/thing", "minimize", "better when it is large: its direction must be maximize"),
        ],
    )
    def test_what_cannot_be_one(self, home: Home, figure: str, direction: str, said: str) -> None:
        refusal = report(home, figure=figure, direction=direction).refusal
        assert refusal is not None and said in refusal

    def test_each_of_several_is_looked_at(self, home: Home) -> None:
        two = [
            {"figure": FID, "direction": "minimize"},
            {"figure": "validation/accuracy/thing", "direction": "minimize"},
        ]
        refusal = report(home, objectives=two, scheduler="none").refusal
        assert refusal is not None and "accuracy/thing is better when it is large" in refusal

    def test_without_judging_there_is_no_campaign(self) -> None:
        problem = objective_problem(base(evaluation__protocol="none"), Objective(figure=FID))
        assert problem is not None and "evaluation.protocol is none, and a campaign needs judging" in problem


class TestMemory:
    @pytest.fixture(autouse=True)
    def light(self) -> Iterator[None]:
        with small_pretrained_nets():
            yield

    @pytest.mark.parametrize("system", ["xmcgan", "attngan", "mirrorgan"])
    def test_of_nets_is_what_a_trainer_holds(self, home: Home, system: str) -> None:
        experiment = tiny_experiment(system)
        trainer = tiny_trainer(experiment)
        trainer.iteration()
        state = trainer.state
        found = needs(home, experiment).memory

        def size(tensors: Any) -> int:
            return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

        trained = [state.nets[name] for name in state.optimizers]
        assert found["averages"] == sum(size([*net.parameters(), *net.buffers()]) for net in state.averages.values())
        assert found["gradients"] == sum(size(net.parameters()) for net in trained)
        moments = [
            value
            for optimizer in state.optimizers.values()
            for slots in optimizer.state.values()
            for name, value in slots.items()
            if name != "step"
        ]
        assert found["optimizers"] == size(moments)
        # The frozen nets are stand-ins here, whose files are other ones.
        frozen = [net for name, net in state.nets.items() if name not in state.optimizers]
        assert found["nets"] >= sum(size([*net.parameters(), *net.buffers()]) for net in trained)
        assert frozen or found["nets"] == sum(size([*net.parameters(), *net.buffers()]) for net in trained)

    def test_of_activations_grows_with_the_batch_of_a_worker(self, home: Home) -> None:
        def activations(has: Resources = PLENTY, **changes: object) -> float:
            return needs(home, base(**{"training__batch_size": 32, **changes}), has).memory["activations"]

        one = activations()
        assert one > 2**20
        assert activations(training__batch_size=64) == pytest.approx(2 * one, rel=1e-3)
        assert activations(training__micro_batches=2) == pytest.approx(one / 2, rel=1e-3)
        assert activations(resources__workers=2) == pytest.approx(one / 2, rel=1e-3)
        assert activations(resources__workers=2, resources__min_workers=1) == pytest.approx(one, rel=1e-3)
        assert activations(training__precision="bfloat16") == one / 2
        assert activations(replace(PLENTY, gpus=8)) == one / 2
        assert activations(replace(PLENTY, gpus=8), training__precision="float32") == one

    def test_nothing_is_allocated(self, home: Home) -> None:
        """The published net at 256 px holds gigabytes."""
        import resource

        big = get_recipe("xmcgan_coco14").replace({"resources.use_gpu": False})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = needs(home, big).memory
        assert sum(found.values()) > 3 * GIB
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 0.2 * GIB

    def test_a_part_has_no_pictures_to_draw(self, home: Home) -> None:
        found = needs(home, tiny_experiment("damsm")).memory
        assert found["activations"] == 0 and found["gradients"] > 0 and found["averages"] == 0

    def test_the_sum_is_workers_times_one(self, home: Home) -> None:
        experiment = base(resources__workers=2)
        found = report(home, experiment=experiment)
        one = (PROCESS_BYTES + sum(needs(home, experiment).memory.values())) / GIB
        assert next(line.needed for line in found.lines if line.what == "memory") == f"4 x {one:.1f} GiB"


class TestDisk:
    @pytest.mark.parametrize("system", ["xmcgan", "attngan"])
    def test_of_a_checkpoint(self, home: Home, tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(needs_module, "WORDS", 20)
        experiment = tiny_experiment(system)
        trainer = tiny_trainer(experiment)
        trainer.iteration()
        text = tiny_given(experiment).folders.get("damsm")
        folder = save_checkpoint(trainer.state, experiment, PROVENANCE, tmp_path / "checkpoints", text)
        written = sum(file["bytes"] for file in list_files(folder).values())
        # Names and the steps' counters are more of tiny nets than of real ones.
        assert 0.6 * written < needs(home, experiment).checkpoint_bytes < 1.05 * written

    def test_of_a_whole_checkpoint(self, home: Home, tmp_path: Path) -> None:
        """Of a net large enough that its numbers are what counts."""
        experiment = base(model__channels=24)
        state = initial_state(experiment, CPU)
        for name, optimizer in state.optimizers.items():
            for parameter in state.nets[name].parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        folder = save_checkpoint(state, experiment, PROVENANCE, tmp_path / "checkpoints")
        written = sum(file["bytes"] for file in list_files(folder).values())
        assert needs(home, experiment).checkpoint_bytes == pytest.approx(written, rel=0.02)

    def test_of_all(self, home: Home) -> None:
        found = needs(home, base(training__keep_checkpoints=3))
        # 8 trials keep 3 each; 8, 4, 2 and 1 reach a rung; 2 are written at a time.
        assert found.checkpoints == 8 * 3 + 15 + 2
        pictures = (64 + 32) * 3 * 32 * 32
        assert found.picture_bytes == pictures
        assert found.disk == found.checkpoints * found.checkpoint_bytes + pictures

    def test_pictures_that_are_there_are_not_needed_again(self, home: Home) -> None:
        experiment = base()
        preparation = Preparation(experiment, home)
        dataset = preparation.dataset("train")
        assert needs(home, experiment).picture_bytes == (64 + 32) * 3 * 32 * 32
        preparation.pictures(dataset)
        assert needs(home, experiment).picture_bytes == 32 * 3 * 32 * 32

    def test_how_pictures_are_kept(self, home: Home) -> None:
        raw = needs(home, base()).picture_bytes
        assert needs(home, base(resources__pictures="png")).picture_bytes == pytest.approx(0.7 * raw)
        assert needs(home, base(resources__pictures="none")).picture_bytes == 0
        cut = needs(home, base(data__transform="attngan")).picture_bytes
        assert cut == (64 + 32) * 3 * 38 * 38


class TestHours:
    @pytest.mark.parametrize(
        ("changes", "kimg"),
        [
            ({}, 8 * 0.5 + 4 * 0.5 + 2 * 1 + 1 * 2),
            ({"reduction": 4}, 8 * 0.5 + 2 * 1.5 + 1 * 2),
            ({"trials": 1}, 4.0),
            ({"trials": 3, "reduction": 3}, 3 * 0.5 + 1 * 1 + 1 * 2.5),
            ({"scheduler": "none"}, 32.0),
            ({"scheduler": "population"}, 32.0),
        ],
    )
    def test_expected_length(self, home: Home, changes: dict[str, Any], kimg: float) -> None:
        assert needs(home, base(), **changes).kimg == pytest.approx(kimg)

    @settings(deadline=None, max_examples=60)
    @given(
        trials=st.integers(1, 300),
        budget=st.floats(1, 1000),
        share=st.floats(0.001, 1),
        reduction=st.integers(2, 5),
        scheduler=st.sampled_from(["halving", "none"]),
    )
    def test_it_lies_between_the_first_rung_and_the_whole(
        self, trials: int, budget: float, share: float, reduction: int, scheduler: str
    ) -> None:
        experiment = base()
        told = campaign(
            trials=trials, budget_kimg=budget, grace_kimg=budget * share, reduction=reduction, scheduler=scheduler
        )
        found = Needs(experiment, told, PLENTY, Home(Path("nowhere")), Preparation(experiment, Home(Path("nowhere"))))
        assert trials * told.rungs[0] - 1e-6 <= found.kimg <= trials * budget + 1e-6
        assert found.kimg >= budget - 1e-6
        assert found.reached[0] == trials and found.reached == sorted(found.reached, reverse=True)

    def run(self, home: Home, place: str, experiment: Experiment, *speeds: float) -> None:
        folder = home.root / place
        folder.mkdir(parents=True)
        (folder / "experiment.json").write_text(json.dumps(experiment.model_dump(mode="json")))
        lines = [
            {"images": index, "kimg": index / 1000, "time": 0.0, "metrics": {"speed/images_per_second": speed}}
            for index, speed in enumerate(speeds)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def test_the_speed_is_that_of_runs_like_it(self, home: Home) -> None:
        self.run(home, "runs/a", base(), 1.0, 90.0, 100.0, 5.0, 110.0)  # the first is warming up
        self.run(home, "campaigns/c/trials/trial-0000", base(training__seed=9), 200.0)
        self.run(home, "runs/larger", base(model__resolution=64), 1.0)
        self.run(home, "runs/more-workers", base(resources__workers=2), 1.0)
        self.run(home, "runs/other", tiny_experiment("damsm"), 1.0)
        (home.root / "runs" / "broken").mkdir()
        (home.root / "runs" / "broken" / "experiment.json").write_text("{")
        found = needs(home, base())
        assert found.speed == pytest.approx((95 + 200) / 2)
        # 10 kimg by two trials at a time.
        assert found.hours == pytest.approx(10_000 / 147.5 / 2 / 3600)
        whole = report(home)
        assert whole.hours == found.hours
        assert "at 148 images/s" in whole.text()


class TestResources:
    def test_of_a_cluster(self) -> None:
        totals = {"CPU": 16.0, "GPU": 4.0, "memory": 5e9, SLOT: 4.0, "node:10.0.0.1": 1.0, "object_store_memory": 1e9}
        assert available_resources(totals) == Resources(16, 4, 5e9, 4.0)
        assert available_resources({"CPU": 2.0, "memory": 1e9}) == Resources(2, 0, 1e9, 0.0)

    def test_of_this_machine(self) -> None:
        found = available_resources()
        assert found.slots is None and found.cpus >= 1 and found.memory > 2**26

    def test_memory_is_what_the_container_has_left(self, tmp_path: Path) -> None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
        assert free_memory(tmp_path) == 4000 * 1024
        group = tmp_path / "sys" / "fs" / "cgroup"
        group.mkdir(parents=True)
        for limit, wanted in (("max", 4000 * 1024), ("3000000", 2_000_000), ("99999999999", 4000 * 1024)):
            (group / "memory.max").write_text(f"{limit}\n")
            (group / "memory.current").write_text("1000000\n")
            assert free_memory(tmp_path) == wanted

    def test_memory_elsewhere_is_that_of_the_machine(self, tmp_path: Path) -> None:
        assert free_memory(tmp_path) > 2**26


class TestWriting:
    def test_where_it_can_be_written(self, tmp_path: Path) -> None:
        require_writable(tmp_path / "new" / "campaign")
        assert not (tmp_path / "new").exists()

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "home").touch()
        with pytest.raises(RequestError, match=r"home/campaigns/c cannot be written \(.*home is no folder\): mend"):
            require_writable(tmp_path / "home" / "campaigns" / "c")

    def test_no_right_to(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
        with pytest.raises(RequestError, match=r"c cannot be written \(you may not write there\): mend its rights or"):
            require_writable(tmp_path / "c")
