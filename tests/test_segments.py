"""Trials in segments, in this process: bit-equal to one go, from the right checkpoint, and told as they are."""

import gc
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestration.campaigns import segments
from orchestration.campaigns.execution import FINISHED, SEGMENT, TURN, Desk, Room
from orchestration.campaigns.ledger import Ledger, Reached, Segment, SegmentState
from orchestration.campaigns.points import paper_point, trial_experiment
from orchestration.campaigns.segments import RUNGS, Given, make_ready, reached_from_json, run_segment
from orchestration.config import Experiment
from orchestration.errors import RequestError, RunError
from orchestration.evaluation.judging import Verdict
from orchestration.stages import file_sha256, quiet
from orchestration.tracking import Tracker
from orchestration.training import worker
from orchestration.training.loop import Diverged, Trainer
from orchestration.training.recorder import Recorder, read_metrics
from orchestration.training.state import checkpoint_folders, newest_checkpoint, open_checkpoint
from orchestration.training.worker import CHECKPOINTS, OUTCOME, Job, Outcome, read_outcome, train_worker
from search_spaces.space import Parameter, Space
from tests.campaign_drill import Scripted
from tests.tiny import CPU, small_pretrained_nets, tiny_experiment, tiny_job, tiny_trainer

STEP = tiny_trainer(tiny_experiment("xmcgan")).images_per_iteration / 1000
"""kimg of one iteration."""
SPACE = Space(
    system="xmcgan",
    parameters={
        "tau": Parameter(field="model.tau", kind="float", low=0.01, high=1.0, paper=0.1, source="none", stage="gan"),
        "side": Parameter(field="training.seed", kind="int", low=0, high=9, paper=None, source="none", stage="gan"),
    },
    default=("tau",),
)


class FixedJudge:
    """A figure that says how the weights are, so that it differs wherever they do."""

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, nets: dict[str, torch.nn.Module]) -> Verdict:
        weights = [parameter.detach().abs().sum() for parameter in nets["generator"].parameters()]
        value = float(torch.stack(weights).sum())
        return Verdict("fixed", {"fid/fixed": value, "fid_low/fixed": value - 1, "fid_high/fixed": value + 1}, 2)


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, small nets, and a judge that needs no data."""
    monkeypatch.setattr(worker, "make_judge", FixedJudge)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with small_pretrained_nets():
        yield
    torch.set_num_threads(before)


def short_run(iterations: int = 6, **changes: object) -> Experiment:
    lengths: dict[str, object] = {
        "training__kimg": iterations * STEP,
        "training__log_kimg": 2 * STEP,
        "training__checkpoint_kimg": 2 * STEP,
        "training__picture_kimg": 2 * STEP,
    }
    return tiny_experiment("xmcgan", **(lengths | changes))


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): file_sha256(path) for path in files}


def newest(folder: Path) -> Path:
    found = newest_checkpoint(folder / CHECKPOINTS)
    assert found is not None
    return found.folder


def test_in_segments_it_ends_bit_equal_to_one_go(tmp_path: Path) -> None:
    """Stretches that end at, between and short of the cadences, the last one longer than there is to train."""
    experiment = short_run(evaluation__every_kimg=2 * STEP)
    whole = tiny_job(tmp_path / "whole", experiment, protocol="fixed")
    assert train_worker(whole, lambda _: None, CPU).status == "finished"
    parts = replace(tiny_job(tmp_path / "parts", experiment, protocol="fixed"))
    folder, told = Path(parts.folder), list[float]()
    for ends, reached in ((2 * STEP, 2), (3 * STEP, 3), (3.5 * STEP, 4), (5 * STEP, 5), (9 * STEP, 6)):
        job = Job.from_json(json.loads(json.dumps(replace(parts, until_kimg=ends).to_json())))
        outcome = train_worker(job, lambda figures: told.append(figures["kimg"]), CPU)
        images = round(reached * STEP * 1000)
        assert outcome == read_outcome(folder) == Outcome("finished" if reached == 6 else "paused", "", images)
        assert open_checkpoint(newest(folder)).images_seen == images and told[-1] == images / 1000
        at_end = {name for line in read_metrics(folder) if line["images"] == images for name in line["metrics"]}
        assert {"validation/fid/fixed", "generator/loss"} & at_end == {"validation/fid/fixed"} | (
            {"generator/loss"} & at_end
        )
        assert any(name.startswith("generator/") for name in at_end)
    assert hashes(newest(folder)) == hashes(newest(Path(whole.folder)))
    assert sum("paused" in line["metrics"] for line in read_metrics(folder)) == 4


def test_a_stretch_that_is_run_again_adds_nothing(tmp_path: Path) -> None:
    job = replace(tiny_job(tmp_path, short_run(), protocol="fixed"), until_kimg=3 * STEP)
    train_worker(job, lambda _: None, CPU)
    folder = Path(job.folder)
    before = (read_metrics(folder), hashes(folder / CHECKPOINTS))
    (folder / OUTCOME).unlink()
    assert train_worker(job, lambda _: None, CPU).status == "paused"
    assert (read_metrics(folder), hashes(folder / CHECKPOINTS)) == before


def test_the_papers_point_and_points_that_make_no_experiment() -> None:
    base = short_run(training__seed=4)
    assert paper_point(SPACE, base) == {"tau": 0.1, "side": 4}
    with pytest.raises(RequestError, match=r"the range of side \(0 to 9\) holds neither .* nor the recipe's 11: widen"):
        paper_point(SPACE, short_run(training__seed=11))
    assert trial_experiment(base, SPACE, {"tau": 0.5}).model.tau == 0.5  # type: ignore[attr-defined]
    for values in ({"tao": 1.0}, {"tau": -1.0}):
        with pytest.raises(RequestError, match="tau"):
            trial_experiment(base, SPACE, values)


class NoTracker:
    """Stands in for MLflow, which takes longer than the trainings here."""

    def __init__(self, *_: object) -> None:
        pass

    def start_run(self, experiment: str, name: str, key: str, *_: object) -> str:
        return f"run of {key}"

    def mirror(self, *_: object) -> int:
        return 0


def test_the_papers_point_leaves_out_what_does_not_exist_there() -> None:
    losses = Parameter(
        field="model.image_losses", kind="choice", values=("none", "both"), paper=None, source="none", stage="gan"
    )
    weight = Parameter(
        field="model.lambda_3", kind="float", low=5.0, high=9.0, paper=None, source="none", stage="gan",
        when={"losses": ["both"]},
    )  # fmt: skip
    space = Space(system="xmcgan", parameters={"losses": losses, "weight": weight}, default=("losses", "weight"))
    assert paper_point(space, short_run(model__image_losses="none")) == {"losses": "none"}
    with pytest.raises(RequestError, match="the range of weight"):
        paper_point(space, short_run(model__image_losses="both"))


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    """A campaign of trials of 6 iterations, untracked. Checkpoints are written at each, and one is kept."""
    monkeypatch.setattr(segments, "Tracker", NoTracker)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # as long as the training, with all of pytest in memory
    base = short_run(training__checkpoint_kimg=STEP, training__keep_checkpoints=1)
    prepared = tiny_job(tmp_path / "job", base, protocol="fixed").prepared
    folder = tmp_path / "campaign"
    folder.mkdir()
    return Given(base, SPACE, prepared, folder, "parent", tmp_path, None, "a campaign")


@pytest.fixture
def tracked(given: Given, shared_tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> Given:
    """The same with MLflow."""
    monkeypatch.setattr(segments, "Tracker", Tracker)
    name = f"named-{given.folder.parent.name}"
    parent = shared_tracker.start_run("xmcgan", "campaign", f"parent-{name}", {})
    return replace(given, parent=parent, home=shared_tracker.home, name=name)


def run(given: Given, segment: Segment) -> Reached:
    """As a worker process is told, and as it answers."""
    told = json.loads(json.dumps({**given.to_json(), SEGMENT: asdict(segment)}))
    return reached_from_json(json.loads(json.dumps(run_segment(told))))


def segment(trial: int, step: int, tau: float = 0.1, donor: int | None = None, digest: str | None = None) -> Segment:
    return Segment(trial, step, 2 * STEP * (step + 1), {"tau": tau}, donor, digest)


def test_a_trial_from_its_first_segment_to_its_last(tracked: Given, shared_tracker: Tracker, tmp_path: Path) -> None:
    """Every rung stays until it is passed by two, though one checkpoint is kept; one run in MLflow, with the values."""
    given = tracked
    folder = given.folder / "trials" / "trial-0003"
    told = [run(given, segment(3, step)) for step in range(3)]
    for step, reached in enumerate(told):
        assert (reached.state, reached.kimg, reached.reason) == (SegmentState.REACHED, 2 * STEP * (step + 1), "")
        assert reached.checkpoint == f"trials/trial-0003/{RUNGS}/step-{step:03d}"
        assert reached.figures.keys() == {f"validation/{name}/fixed" for name in ("fid", "fid_low", "fid_high")}
        assert reached.identity == trial_experiment(given.base, SPACE, {"tau": 0.1}).identity
    assert len({reached.figures["validation/fid/fixed"] for reached in told}) == 3
    assert [path.name for path in checkpoint_folders(folder / CHECKPOINTS)] == [f"kimg-{6 * STEP:010.3f}"]
    assert sorted(path.name for path in (folder / RUNGS).iterdir()) == ["step-001", "step-002"]
    for reached in told[1:]:
        assert open_checkpoint(given.folder / (reached.checkpoint or "")).digest == reached.digest

    [summary] = [one for one in shared_tracker.run_summaries("xmcgan") if one.key == f"{given.name}-trial-0003"]
    assert {reached.run_id for reached in told} == {summary.run_id} and summary.parent == given.parent
    assert summary.metrics["values/tau"] == 0.1 and summary.metrics["kimg"] == pytest.approx(6 * STEP)
    values = [line["images"] for line in read_metrics(folder) if "values/tau" in line["metrics"]]
    assert values == [0, round(2 * STEP * 1000), round(4 * STEP * 1000)]

    alone = tiny_job(tmp_path / "alone", trial_experiment(given.base, SPACE, {"tau": 0.1}), protocol="fixed")
    train_worker(alone, lambda _: None, CPU)
    assert hashes(newest(folder)) == hashes(newest(Path(alone.folder)))


def test_a_segment_that_is_run_again_goes_on_and_ends_the_same(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle: what was trained since is kept. Killed after its end: nothing is added."""
    folder, trained = given.trial_folder(0), list[int]()
    first = run(given, segment(0, 0))
    iteration = Trainer.iteration

    def counted(self: Trainer) -> None:
        if len(trained) == 1:
            trained.append(-1)
            raise KeyboardInterrupt
        trained.append(self.state.images_seen)
        iteration(self)

    monkeypatch.setattr(Trainer, "iteration", counted)
    with pytest.raises(KeyboardInterrupt):
        run(given, segment(0, 1))
    second = run(given, segment(0, 1))
    assert trained == [round(2 * STEP * 1000), -1, round(3 * STEP * 1000)]
    lines = read_metrics(folder)
    assert run(given, segment(0, 1)) == second and len(trained) == 3
    assert read_metrics(folder) == lines
    undisturbed = [run(given, segment(1, step)) for step in range(2)]
    assert [first.digest, second.digest] == [reached.digest for reached in undisturbed]
    assert second.figures == undisturbed[1].figures


def test_a_donors_checkpoint_takes_the_place_of_the_trials_own(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the donor has gone on since, and where a kill falls between any two steps of the copying."""
    donor, own = run(given, segment(0, 0)), run(given, segment(1, 0, 0.5))
    assert donor.digest != own.digest
    run(given, segment(0, 1))  # it keeps one checkpoint, which is now another
    copied = segment(1, 1, 0.7, donor=0, digest=donor.digest)
    folder, place = given.trial_folder(1), segments._place

    def cut_off(*told: Any) -> None:
        place(*told)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(segments, "_place", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run(given, copied)
    (folder / CHECKPOINTS / ".writing-half").mkdir()
    identity = given.experiment(copied).identity
    begun = make_ready(given, copied, folder, identity)
    assert (begun.images, begun.donor_digest) == (round(2 * STEP * 1000), donor.digest)
    assert [open_checkpoint(path).digest for path in checkpoint_folders(folder / CHECKPOINTS)] == [donor.digest]
    assert open_checkpoint(folder / RUNGS / "step-000").digest == own.digest
    assert make_ready(given, copied, folder, identity) == begun
    values = [line["metrics"]["values/tau"] for line in read_metrics(folder) if "values/tau" in line["metrics"]]
    assert values == [0.5, 0.7]

    reached = run(given, copied)
    assert reached.state == SegmentState.REACHED and reached.identity == identity
    assert not list((folder / CHECKPOINTS).glob(".*"))
    # Weights of the donor, values of its own: neither the donor's next rung nor its own.
    others = [run(given, segment(2, 0, 0.5)), run(given, segment(2, 1, 0.5)), run(given, segment(0, 1))]
    assert reached.digest not in [other.digest for other in others]


def test_a_donors_checkpoint_that_is_not_as_known_is_refused(given: Given) -> None:
    donor = run(given, segment(0, 0))
    run(given, segment(1, 0))
    wrong = run(given, segment(1, 1, donor=0, digest="f" * 64))
    assert wrong.state == SegmentState.FAILED and wrong.checkpoint is None
    assert "trial-0001 goes on from trial-0000's checkpoint with digest ffffffffffff" in wrong.reason
    assert wrong.kimg == 2 * STEP and "validation/fid/fixed" in wrong.figures and wrong.run_id
    generator = given.trial_folder(0) / RUNGS / "step-000" / "generator.safetensors"
    generator.write_bytes(b"x" + generator.read_bytes()[1:])
    damaged = run(given, segment(1, 1, donor=0, digest=donor.digest))
    assert damaged.state == SegmentState.FAILED and "was changed since it was written" in damaged.reason
    assert "\n" not in damaged.reason + wrong.reason


def test_a_trial_without_the_checkpoint_it_goes_on_from(given: Given) -> None:
    """Its own newest one is enough to go on; where that is lost its rung is, and without both it says so."""

    run(given, segment(0, 0))
    folder = given.trial_folder(0)
    shutil.rmtree(folder / CHECKPOINTS)
    assert run(given, segment(0, 1)).state == SegmentState.REACHED
    shutil.rmtree(folder / RUNGS / "step-001")
    lost = run(given, segment(0, 2))
    assert lost.state == SegmentState.FAILED and "lacks the checkpoint" in lost.reason and "restore" in lost.reason


def test_divergence_and_collapse_are_told_with_their_reasons(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(given, segment(0, 0))

    def diverges(self: Trainer) -> None:
        raise Diverged("the gradient of the generator is nan", 0.1)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "iteration", diverges)
        diverged = run(given, segment(0, 1))
    assert (diverged.state, diverged.reason) == (SegmentState.DIVERGED, "the gradient of the generator is nan")
    assert (diverged.checkpoint, diverged.digest, diverged.figures) == (None, None, first.figures)
    assert diverged.run_id == first.run_id and diverged.kimg == 2 * STEP

    def collapses(job: Job, at_once: int) -> None:
        outcome = Outcome("collapsed", "all pictures are one", 32)
        (Path(job.folder) / OUTCOME).write_text(json.dumps(asdict(outcome)))

    monkeypatch.setattr(segments, "train_here_or_there", collapses)
    collapsed = run(given, segment(1, 0))
    assert (collapsed.state, collapsed.reason, collapsed.kimg) == (
        SegmentState.COLLAPSED,
        "all pictures are one",
        0.032,
    )


def test_what_goes_wrong_is_a_reason_and_no_exception(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "tau" in (refused := run(given, segment(0, 0, tau=-1.0))).reason
    assert refused.state == SegmentState.FAILED and refused.run_id is None

    def breaks(job: Job, at_once: int) -> None:
        raise ZeroDivisionError("by nothing\nat all")

    monkeypatch.setattr(segments, "train_here_or_there", breaks)
    broken = run(given, segment(0, 0))
    assert broken.state == SegmentState.FAILED and broken.reason.startswith("at all (the whole story is in ")
    assert "ZeroDivisionError" in (given.trial_folder(0) / "failure.txt").read_text()
    monkeypatch.setattr(segments, "train_here_or_there", lambda job, at_once: None)
    assert "without an outcome" in run(given, segment(0, 0)).reason


def test_the_figures_told_are_those_of_the_last_judging(tmp_path: Path) -> None:
    """One that was judged earlier only says nothing of the nets as they are."""
    recorder = Recorder(tmp_path, 0)
    recorder.metrics(16, {"validation/fid/fixed": 3.0, "validation/accuracy": 0.5})
    recorder.metrics(32, {"validation/fid/fixed": 2.0})
    recorder.metrics(32, {"validation/kid/fixed": 0.1, "generator/hinge": 1.0})
    recorder.metrics(48, {"generator/hinge": 1.0})
    told = segments.failed(tmp_path, "why")
    assert (told.kimg, told.figures) == (0.048, {"validation/fid/fixed": 2.0, "validation/kid/fixed": 0.1})
    assert segments.failed(tmp_path / "none", "why").figures == {}


def test_without_mlflow_it_trains_all_the_same(tracked: Given, closed_uri: str, shared_tracker: Tracker) -> None:
    away = run(replace(tracked, uri=closed_uri), segment(0, 0))
    assert (away.state, away.run_id) == (SegmentState.REACHED, None)
    back = run(tracked, segment(0, 1))
    [summary] = [one for one in shared_tracker.run_summaries("xmcgan") if one.run_id == back.run_id]
    steps = [line["images"] for line in read_metrics(tracked.trial_folder(0))]
    assert min(steps) == 0 and summary.metrics["kimg"] == max(steps) / 1000


def test_early_parts_that_are_varied_are_made_first(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another trial's, in this process, from the trial's own experiment."""
    made: list[Experiment] = []

    class Makes:
        def __init__(self, experiment: Experiment, home: object, train_part: Any) -> None:
            made.append(experiment)
            assert train_part.keywords["carry_out"].func is segments.train_here_or_there

        def everything(self) -> object:
            return replace(given.prepared, vocabulary_size=given.prepared.vocabulary_size)

    monkeypatch.setattr(segments, "Preparation", Makes)
    longest = Parameter(field="words.longest", kind="int", low=2, high=20, paper=18, source="none", stage="vocabulary")
    varied = replace(given, space=Space(system="xmcgan", parameters={"longest": longest}, default=("longest",)))
    assert run(varied, Segment(0, 0, STEP, {"longest": 18})).state == SegmentState.REACHED and made == []
    assert run(varied, Segment(1, 0, STEP, {"longest": 9})).state == SegmentState.REACHED
    assert [experiment.words.longest for experiment in made] == [9]


def test_the_folder_of_a_campaign_may_be_moved_between_segments(given: Given, tmp_path: Path) -> None:
    run(given, segment(0, 0))
    there = tmp_path / "elsewhere"
    given.folder.rename(there)
    moved = run(replace(given, folder=there), segment(0, 1))
    assert moved.state == SegmentState.REACHED and (there / (moved.checkpoint or "")).is_dir()


# --- the desk between Tune and the conductor ---


def desk(given: Given, script: list[Segment], at_once: int = 2, failures: int = 1) -> tuple[Desk, Scripted]:
    conductor = Scripted(Ledger.create(given.folder, {}), script, failures)
    return Desk(conductor, given, at_once, quiet), conductor


def answer(step: int, state: SegmentState = SegmentState.REACHED) -> dict[str, Any]:
    return {"reached": json.dumps(asdict(Reached(state, 2 * STEP * (step + 1), {}, "c", "d")))}


def asked(found: object) -> tuple[int, int]:
    assert isinstance(found, dict)
    values = json.loads(found[SEGMENT])
    return values["trial"], values["step"]


def test_the_desk_hands_out_as_many_as_may_run_and_ends(given: Given) -> None:
    """No more than may run; what could not start is asked for again as soon as something ended."""
    at_desk, conductor = desk(given, [segment(t, 0) for t in range(3)] + [segment(t, 1) for t in range(2)])
    assert [asked(at_desk.ask("a")), asked(at_desk.ask("b")), at_desk.ask("c")] == [(0, 0), (1, 0), None]
    at_desk.ended("b", None)  # its process died
    assert asked(at_desk.ask("d")) == (1, 0)
    at_desk.ended("a", answer(0))
    assert asked(at_desk.ask("e")) == (2, 0)
    at_desk.ended("e", answer(0))
    assert asked(at_desk.ask("f")) == (0, 1)
    at_desk.ended("f", answer(1))
    assert [at_desk.ask("g"), at_desk.ask("h"), at_desk.finished] == [None, None, False]  # (1, 1) waits for (1, 0)
    for key in ("d", "d", "unknown"):
        at_desk.ended(key, answer(0))
    assert asked(at_desk.ask("i")) == (1, 1)
    at_desk.ended("i", answer(1))
    assert at_desk.ask("j") == FINISHED and at_desk.finished and at_desk.error is None
    words = [word for word, *_ in conductor.told]
    assert words.count("begun") == 6 and words.count("failed") == 1 and words.count("reached") == 5


def test_what_could_not_start_starts_while_others_still_run(given: Given) -> None:
    at_desk, _ = desk(given, [segment(0, 0), segment(1, 0), segment(0, 1)], at_once=3)
    assert [asked(at_desk.ask("a")), asked(at_desk.ask("b")), at_desk.ask("c")] == [(0, 0), (1, 0), None]
    at_desk.ended("a", answer(0))
    assert asked(at_desk.ask("d")) == (0, 1)


def test_a_process_that_dies_is_told_with_what_its_folder_knows(given: Given) -> None:
    first = run(given, segment(0, 0))
    at_desk, conductor = desk(given, [segment(0, 1)], failures=0)
    conductor._ready = lambda segment: True  # type: ignore[method-assign]
    at_desk.ask("a")
    at_desk.ended("a", {"done": True})
    [ended] = conductor.ledger.segments()
    assert ended.state == SegmentState.FAILED and "its process died" in ended.reason
    assert ended.figures == first.figures and conductor.ledger.trial(0).run_id == first.run_id


def test_a_lost_process_is_said(given: Given) -> None:
    told = list[str]()
    at_desk, _ = desk(given, [segment(0, 0)])
    at_desk.say = told.append
    at_desk.ask("a")
    at_desk.ended("a", None)
    assert len(told) == 1 and told[0].startswith("trial-0000 lost its process: killed, out of memory, or its machine")
    at_desk.ask("b")
    at_desk.ended("b", answer(0))
    assert len(told) == 1


def test_trials_that_wait_for_a_machine_are_told_of_once_and_when_they_wait_no_more() -> None:
    have: list[int | None] = [2, 1, None, 1, 2, 2, 0]
    told = list[str]()
    room = Room(lambda: have.pop(0), told.append, every_s=0.0)
    for begun in (2, 2, 2, 2, 2, 0, 0):
        room.look(begun)
    assert [line.partition(":")[0] for line in told] == [
        "waiting for a machine",
        "no trial waits for a machine any more",
    ]
    assert "2 trials are begun and the cluster has room for 1" in told[0] and have == []
    seldom = Room(lambda: have.append(0) or 5, told.append, every_s=1000.0)  # type: ignore[func-returns-value]
    for _ in range(3):
        seldom.look(1)
    assert have == [0]


def test_each_segment_is_handed_out_with_a_later_turn(given: Given) -> None:
    at_desk, _ = desk(given, [segment(0, 0)])
    first = at_desk.ask("a")
    at_desk.ended("a", None)
    second = at_desk.ask("b")
    assert isinstance(first, dict) and isinstance(second, dict)
    assert second[TURN] > first[TURN]


def test_what_the_conductor_raises_stops_the_campaign(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once when it is asked; after an end, at the next question: Tune would go on after an exception there."""
    at_desk, conductor = desk(given, [segment(0, 0), segment(1, 0)])
    at_desk.ask("a")

    def full(*_: object) -> None:
        raise RunError("the ledger cannot be written")

    monkeypatch.setattr(conductor, "ended", full)
    at_desk.ended("a", answer(0))
    with pytest.raises(RunError, match="cannot be written"):
        at_desk.ask("b")
    assert at_desk.error is not None

    at_desk, conductor = desk(replace(given, folder=given.folder / "second"), [segment(0, 1)])
    with pytest.raises(RunError, match="nothing is left to run"):
        at_desk.ask("a")
    monkeypatch.setattr(conductor, "next", full)
    with pytest.raises(RunError, match="nothing is left to run"):
        at_desk.ask("a")
