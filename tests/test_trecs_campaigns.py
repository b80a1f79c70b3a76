"""Campaigns whose trials train nothing themselves: one comparison, at 0 kimg, and every trial has its whole budget."""

import gc
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestration.campaigns import segments
from orchestration.campaigns.campaign import Plan, check
from orchestration.campaigns.conductor import Conductor, best
from orchestration.campaigns.execution import SEGMENT
from orchestration.campaigns.ledger import Ledger, Reached, Segment, SegmentState, State
from orchestration.campaigns.live import trials_table
from orchestration.campaigns.needs import DRAWING, GIB, Needs, Resources
from orchestration.campaigns.points import paper_point
from orchestration.campaigns.preflight import preflight
from orchestration.campaigns.proposals import Proposer
from orchestration.campaigns.report import write_report
from orchestration.campaigns.segments import RUNGS, Given, reached_from_json, run_segment
from orchestration.campaigns.settings import CampaignSettings, plan_settings
from orchestration.campaigns.standing import told_lead
from orchestration.errors import RequestError
from orchestration.evaluation.judging import Verdict
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.recipes import get_recipe
from orchestration.training import worker
from orchestration.training.recorder import read_metrics
from orchestration.training.state import open_checkpoint
from orchestration.training.worker import OUTCOME
from orchestration.tune_commands import _plan
from search_spaces.space import load_space
from tests.report_support import FID, STARTED, Made, settings_of
from tests.tiny import small_pretrained_nets, tiny_experiment, tiny_job

PLENTY = Resources(cpus=64, gpus=0, memory=1000 * GIB, slots=64)
SPACE = load_space("trecs").choose(("k", "missing", "place"))


@pytest.fixture(autouse=True)
def light() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with small_pretrained_nets():
        yield
    torch.set_num_threads(before)


def asked(**changes: Any) -> CampaignSettings:
    told: dict[str, Any] = {"budget_kimg": 0, "grace_kimg": 0, "scheduler": "none", "trials": 5}
    return CampaignSettings.model_validate({**told, "objectives": [{"figure": FID}], **changes})


class TestSettings:
    def test_one_comparison(self) -> None:
        assert asked().rungs == (0.0,)

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            (
                {"scheduler": "halving"},
                "trials of 0 kimg are whole at once and halving would compare them on the way: use --scheduler none",
            ),
            ({"scheduler": "population"}, "population would compare them on the way: use --scheduler none"),
            ({"grace_kimg": 1}, "trials of 0 kimg have no grace of 1 kimg: leave --grace-kimg out"),
            ({"budget_kimg": -1}, "budget_kimg: input should be greater than or equal to 0, not -1"),
            ({"budget_kimg": 4}, "grace 0 kimg must be above 0 and at most the trial's 4 kimg"),
        ],
    )
    def test_what_makes_no_sense(self, changes: dict[str, Any], sentence: str) -> None:
        told = {"budget_kimg": 0, "grace_kimg": 0, "scheduler": "none", "trials": 5, "objectives": [{"figure": FID}]}
        with pytest.raises(RequestError) as caught:
            plan_settings(told | changes)
        assert sentence in str(caught.value) and "\n" not in str(caught.value)


class TestCommand:
    def plan(self, **changes: Any) -> Plan:
        told: dict[str, Any] = {
            "trials": 8, "concurrent": 2, "kimg": None, "grace_kimg": None, "parameters": (), "ranges": (),
            "objectives": (), "sampler": "tpe", "scheduler": None, "seed": 0,
        }  # fmt: skip
        plan: Plan = _plan(get_recipe("trecs_scenes"), **{**told, **changes})
        return plan

    def test_defaults(self) -> None:
        plan = self.plan()
        assert (plan.settings.budget_kimg, plan.settings.grace_kimg, plan.settings.scheduler) == (0, 0, "none")
        recipe = get_recipe("trecs_scenes")
        assert plan.base == recipe  # it has no lengths to shorten
        assert tuple(plan.space.parameters) == load_space("trecs").default
        assert Plan.of(json.loads(json.dumps(plan.header))) == Plan(
            plan.base, plan.space, plan.settings, None, plan.name
        )
        two = self.plan(objectives=("validation/fid/scenes-net", "validation/accuracy/thing:maximize"))
        assert two.settings.scheduler == "none"

    def test_others_are_halved_as_before(self) -> None:
        arguments = (8, 2, 4.0, None, (), (), (), "tpe")
        assert _plan(get_recipe("xmcgan_scenes32"), *arguments, None, 0).settings.scheduler == "halving"
        assert _plan(get_recipe("xmcgan_scenes32"), *arguments, "population", 0).settings.scheduler == "population"

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"scheduler": "halving"}, "halving would compare them on the way: use --scheduler none"),
            ({"kimg": 2.0}, "trecs has nothing to train itself: set training.kimg to 0"),
            ({"grace_kimg": 1.0}, "trials of 0 kimg have no grace of 1 kimg"),
        ],
    )
    def test_lengths_are_refused(self, changes: dict[str, Any], sentence: str) -> None:
        with pytest.raises(RequestError, match=sentence):
            self.plan(**changes)

    def test_the_sum_before_anything_is_done(self, tmp_path: Path) -> None:
        """Nothing is drawn, prepared or trained for it."""
        home = Home(tmp_path / "home")
        report = check(self.plan(), home)
        assert report.refusal is None and report.hours is None and not home.root.exists()
        assert "nothing is trained in a trial itself; it is made ready, drawn and judged" in report.text()


class TestPreflight:
    def test_needs(self, tmp_path: Path) -> None:
        base = tiny_experiment("trecs", evaluation__protocol="auto")
        home = Home(tmp_path / "home")
        needs = Needs(base, asked(concurrent=2), PLENTY, home, Preparation(base, home))
        assert needs.kimg == 0 and needs.hours is None and needs.reached == [5]
        memory = needs.memory
        assert memory["gradients"] == memory["optimizers"] == 0
        assert memory["nets"] == memory["averages"] > 0 and math.isfinite(memory["activations"])
        # The largest map is the predicted kernels', 9 x channels x 32 x 32 of 4 bytes, of 50 pictures.
        assert memory["activations"] > DRAWING * 50 * 9 * 4 * 32 * 32 * 4 / 2
        assert needs.checkpoint_bytes == memory["averages"]
        report = preflight(base, SPACE, asked(), PLENTY, home, Preparation(base, home))
        assert report.refusal is None and "hours" in report.text()

    def test_speed_of_others_gives_no_hours(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        base, home = tiny_experiment("trecs", evaluation__protocol="auto"), Home(tmp_path / "home")
        monkeypatch.setattr(Needs, "speed", 100.0)
        needs = Needs(base, asked(), PLENTY, home, Preparation(base, home))
        assert needs.hours is None
        assert preflight(base, SPACE, asked(), PLENTY, home, Preparation(base, home)).hours is None


def landscape(values: dict[str, Any]) -> float:
    """Best at k = 20."""
    return abs(math.log(float(values["k"]) / 20)) + float(values["missing"] == "skip")


def carried_out(folder: Path, settings: CampaignSettings, kill_after: int | None = None) -> Ledger:
    """A campaign in this process; the driver dies once after so many segments."""
    first = paper_point(SPACE, tiny_experiment("trecs"))
    ledger = Ledger.open(folder) if (folder / "ledger.db").exists() else Ledger.create(folder, {})
    proposer = Proposer(SPACE, settings, folder, "trecs", None, first)
    conductor = Conductor(ledger, settings, SPACE, proposer)
    count = 0
    while (segment := conductor.next()) is not None:
        count += 1
        if kill_after is not None and count > kill_after:
            break
        figures = {FID: landscape(segment.values)}
        conductor.ended(segment, Reached(SegmentState.REACHED, 0.0, figures, "rung", f"{segment.trial:04d}"))
    proposer.close()
    return ledger


class TestSearch:
    @pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
    def test_every_trial_is_whole(self, sampler: str, tmp_path: Path) -> None:
        trials = {"grid": 9}.get(sampler, 12)
        settings = asked(trials=trials, sampler=sampler)
        found = carried_out(tmp_path, settings).trials()
        assert [trial.state for trial in found] == [State.FINISHED] * trials and {trial.kimg for trial in found} == {0}
        assert found[0].values["k"] == 5 and found[0].origin == "paper"
        assert len({json.dumps(trial.values) for trial in found}) == trials
        [first] = best(found, settings)
        assert first.figures[FID] == min(landscape(trial.values) for trial in found)

    def test_results_of_no_length_are_learned_from(self, tmp_path: Path) -> None:
        """Figures decide what is proposed next."""
        settings = asked(trials=16)
        found = carried_out(tmp_path / "a", settings).trials()
        proposer = Proposer(SPACE, settings, tmp_path / "b", "trecs", None, found[0].values)
        flipped = [replace(trial, figures={FID: -trial.figures[FID]}) for trial in found]
        assert proposer.propose(16, found) != proposer.propose(16, flipped)

    def test_killed_and_resumed_it_is_the_same(self, tmp_path: Path) -> None:
        settings = asked(trials=6)
        calm = carried_out(tmp_path / "calm", settings).trials()
        carried_out(tmp_path / "killed", settings, kill_after=2).close()
        assert carried_out(tmp_path / "killed", settings).trials() == calm

    def test_tables(self, tmp_path: Path) -> None:
        settings = asked(trials=4)
        trials = carried_out(tmp_path, settings).trials()
        shown = trials_table(trials, settings)
        assert shown.count("0/0") == 4 and shown.count("finished") == 4 and "best" in shown
        assert told_lead(trials, settings).startswith("Best: trial-")


class FixedJudge:
    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, nets: object) -> Verdict:
        return Verdict("fixed", {"fid/fixed": 7.0}, 2)


class NoTracker:
    def __init__(self, *_: object) -> None:
        pass

    def start_run(self, experiment: str, name: str, key: str, *_: object) -> str:
        return f"run of {key}"

    def mirror(self, *_: object) -> int:
        return 0


class TestTrial:
    @pytest.fixture
    def given(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
        monkeypatch.setattr(worker, "make_judge", FixedJudge)
        monkeypatch.setattr(segments, "Tracker", NoTracker)
        monkeypatch.setattr(gc, "collect", lambda: 0)
        base = tiny_experiment("trecs")
        prepared = tiny_job(tmp_path / "job", base, protocol="fixed").prepared
        folder = tmp_path / "campaign"
        folder.mkdir()
        return Given(base, SPACE, prepared, folder, "parent", tmp_path, None, "a campaign")

    def run(self, given: Given, segment: Segment) -> Reached:
        told = json.loads(json.dumps({**given.to_json(), SEGMENT: asdict(segment)}))
        return reached_from_json(json.loads(json.dumps(run_segment(told))))

    def test_its_only_segment(self, given: Given) -> None:
        segment = Segment(2, 0, 0.0, {"k": 5, "missing": "skip", "place": "original"})
        first = self.run(given, segment)
        assert (first.state, first.kimg, first.reason) == (SegmentState.REACHED, 0.0, "")
        assert first.figures == {"validation/fid/fixed": 7.0}
        assert first.checkpoint == f"trials/trial-0002/{RUNGS}/step-000"
        assert open_checkpoint(given.folder / first.checkpoint).digest == first.digest
        # Handed out again after a kill: nothing is added.
        folder = given.trial_folder(2)
        before = read_metrics(folder)
        (folder / OUTCOME).unlink()
        assert self.run(given, segment) == first and read_metrics(folder) == before

    def test_another_k_is_prepared_anew(self, given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
        asked_for: list[Any] = []

        class Preparing:
            def __init__(self, experiment: Any, *_: object, **__: object) -> None:
                asked_for.append(experiment.model.k)

            def everything(self) -> Any:
                return given.prepared

        monkeypatch.setattr(segments, "Preparation", Preparing)
        self.run(given, Segment(0, 0, 0.0, {"k": 5, "missing": "skip", "place": "original"}))
        assert asked_for == []
        self.run(given, Segment(1, 0, 0.0, {"k": 20, "missing": "skip", "place": "original"}))
        assert asked_for == [20]


class TestReport:
    def test_a_page(self, tmp_path: Path) -> None:
        settings = settings_of(trials=4, budget_kimg=0, grace_kimg=0, scheduler="none")
        made = Made(tmp_path / "of-nothing", settings)
        for number in range(4):
            made.trial(number)
            made.reached(made.begun(number))
            file = tmp_path / "of-nothing" / "trials" / f"trial-{number:04d}" / "metrics.jsonl"
            line = {"images": 0, "kimg": 0.0, "time": STARTED + 90, "metrics": {"finished": 1.0}}
            kept = [one for one in file.read_text().splitlines() if "speed/" not in one]
            file.write_text("\n".join([*kept, json.dumps(line)]) + "\n")
        page = write_report(tmp_path / "of-nothing", tmp_path / "report.html").read_text()
        assert "4 trials of 0 kimg" in page and "every trial has the whole budget" in page
        assert "<b>6 min</b> of drawing and judging" in page  # four times 90 s
        assert "Nothing is trained in a trial itself: each was judged once." in page
        assert "No trial has a figure yet" not in page
        for number in range(4):
            assert f"<h3>trial-{number:04d}" in page
        assert 'alt="Grid of pictures that trial-0000 drew' in page and "4 trials were judged here" in page
