"""Of two processes that train one run at the same time, one leaves its mark, wherever the other was held up."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from orchestration.campaigns import segments
from orchestration.campaigns.execution import SEGMENT, TURN
from orchestration.campaigns.ledger import Reached, Segment, SegmentState
from orchestration.campaigns.segments import Given, reached_from_json, run_segment
from orchestration.config import Experiment
from orchestration.errors import RunError
from orchestration.evaluation.judging import Verdict
from orchestration.stages import file_sha256
from orchestration.training import turn as turns
from orchestration.training import worker
from orchestration.training.recorder import read_metrics
from orchestration.training.turn import LOCK, Superseded, Turn, next_turn
from orchestration.training.worker import Job, train_worker
from search_spaces.space import Parameter, Space
from tests.tiny import CPU, small_pretrained_nets, tiny_experiment, tiny_job, tiny_trainer

STEP = tiny_trainer(tiny_experiment("xmcgan")).images_per_iteration / 1000
TAU = Parameter(field="model.tau", kind="float", low=0.01, high=1.0, paper=0.1, source="none", stage="gan")
BEGUN_AGAIN = "trial-0000 was begun again by another process, which trains it now: this one was cut off"


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, small nets, and a judge that needs no data."""
    figures = {"fid/fixed": 1.0, "fid_low/fixed": 0.0, "fid_high/fixed": 2.0}
    monkeypatch.setattr(worker, "make_judge", lambda *_: lambda nets: Verdict("fixed", figures, 2))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with small_pretrained_nets():
        yield
    torch.set_num_threads(before)


def short_run() -> Experiment:
    every = dict.fromkeys(("training__log_kimg", "training__checkpoint_kimg", "training__picture_kimg"), STEP)
    return tiny_experiment("xmcgan", training__kimg=2 * STEP, training__keep_checkpoints=1, **every)


class TestOrder:
    """Which turns can be taken, and which hold."""

    def test_who_takes_the_next_ends_the_one_before(self, tmp_path: Path) -> None:
        first, second = Turn.take(tmp_path), Turn.take(tmp_path)
        assert (first.order, second.order) == ((1,), (2,))
        with second.writing():
            pass
        with pytest.raises(Superseded), first.writing():
            raise AssertionError("one without a turn writes")

    def test_what_a_turn_begets_does_not_end_it(self, tmp_path: Path) -> None:
        driver = Turn.take(tmp_path, (7,))
        group = Turn.take(tmp_path, driver.order)
        again = Turn.take(tmp_path, driver.order)
        assert (driver.order, group.order, again.order) == ((7, 1), (7, 1, 1), (7, 1, 2))
        for holds in (driver, again):
            with holds.writing():
                pass
        with pytest.raises(Superseded), group.writing():
            raise AssertionError

    @pytest.mark.parametrize("late", [(6,), (6, 9), (7, 1), (7, 1, 5)])
    def test_who_comes_late_takes_none(self, tmp_path: Path, late: tuple[int, ...]) -> None:
        assert Turn.take(tmp_path, (7, 2)).order == (7, 2, 1)
        with pytest.raises(Superseded):
            Turn.take(tmp_path, late)
        assert Turn.take(tmp_path, (8,)).order == (8, 1)

    def test_a_driver_is_later_than_all_before_whatever_its_clock_says(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Turn.take(tmp_path, next_turn(tmp_path))
        monkeypatch.setattr(turns.time, "time_ns", lambda: 5)
        later = next_turn(tmp_path)
        assert later > (5,) and Turn.take(tmp_path, later).order == (*later, 1)
        assert next_turn(tmp_path / "new") == (5,)

    def test_a_broken_turn_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "turn.json").write_text("{")
        with pytest.raises(RunError, match=r"turn\.json is broken: remove it once nothing trains"):
            Turn.take(tmp_path)


class TestLock:
    """Looking and writing are one step."""

    def test_nobody_takes_over_while_it_is_written(self, tmp_path: Path) -> None:
        first, told = Turn.take(tmp_path), list[str]()

        def take() -> None:
            Turn.take(tmp_path)
            told.append("taken")

        other = threading.Thread(target=take)
        with first.writing():
            other.start()
            other.join(0.3)
            assert not told
            told.append("written")
        other.join(60)
        assert told == ["written", "taken"]

    def test_who_never_ends_writing_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(turns, "PATIENCE_S", 0.05)
        with FileLock(tmp_path / LOCK), pytest.raises(RunError, match=r"another process still writes in .*: end it"):
            Turn.take(tmp_path)


@contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch, write: int, other: Any) -> Iterator[list[int]]:
    """Whoever is about to write for the `write`-th time (from 0) is held up while `other` is done; the list of all."""
    count, writing = list[int](), Turn.writing

    def counted(self: Turn) -> Any:
        count.append(len(count))
        if len(count) == write + 1:
            monkeypatch.setattr(Turn, "writing", writing)
            other()
        return writing(self)

    monkeypatch.setattr(Turn, "writing", counted)
    yield count
    monkeypatch.setattr(Turn, "writing", writing)


def everything(folder: Path) -> dict[str, Any]:
    """What a run's folder holds, but for times, turns and what is hidden."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and path.name not in ("turn.json", "metrics.jsonl")
    }
    lines = [(line["images"], {k: v for k, v in line["metrics"].items() if "speed" not in k})
             for line in read_metrics(folder)]  # fmt: skip
    return {**found, "metrics": lines, "half written": [path.name for path in folder.rglob(".writing-*")]}


class NoTracker:
    """Where MLflow is away."""

    def __init__(self, *_: object) -> None:
        pass

    def start_run(self, *_: object) -> str:
        raise RunError("away")


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    monkeypatch.setattr(segments, "Tracker", NoTracker)
    base = short_run()
    prepared = tiny_job(tmp_path / "job", base, protocol="fixed").prepared
    space = Space(system="xmcgan", parameters={"tau": TAU}, default=("tau",))
    (tmp_path / "campaign").mkdir()
    return Given(base, space, prepared, tmp_path / "campaign", "parent", tmp_path, None, "a campaign")


def run(given: Given, folder: Path, turn: tuple[int, ...]) -> Reached:
    """The only segment of trial 0 of the campaign in the folder, as a worker process is told."""
    segment = Segment(0, 0, 2 * STEP, {"tau": 0.1})
    told = {**replace(given, folder=folder).to_json(), SEGMENT: asdict(segment), TURN: turn}
    return reached_from_json(run_segment(json.loads(json.dumps(told))))


def test_a_trial_that_is_begun_again_while_it_trains_ends_as_one_that_nothing_happens_to(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held up before each of its writes in turn, and let go when another has done all."""
    with held_up(monkeypatch, -1, None) as writes:
        calm = run(given, given.folder, (1,))
    assert calm.state == SegmentState.REACHED and len(writes) > 10
    wanted = everything(given.folder / "trials" / "trial-0000")
    for write in writes:
        folder, told = tmp_path / f"held up at {write}", list[Reached]()
        with held_up(monkeypatch, write, lambda: told.append(run(given, folder, (2,)))):  # noqa: B023
            late = run(given, folder, (1,))
        assert (late.state, told) == (SegmentState.FAILED, [calm]), write
        assert late.reason.startswith(BEGUN_AGAIN), write
        assert everything(folder / "trials" / "trial-0000") == wanted, write
    assert run(given, given.folder, (0,)).reason.startswith(BEGUN_AGAIN), "one that begins late"
    assert everything(given.folder / "trials" / "trial-0000") == wanted


def test_who_takes_a_trial_over_does_not_wait_for_a_checkpoint_that_is_being_copied(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gigabytes on a file system without links: longer than whoever begins again waits for the one before."""
    calm = run(given, given.folder, (1,))
    monkeypatch.setattr(turns, "PATIENCE_S", 5.0)
    folder, link, told = tmp_path / "slow", segments._link, list[Reached]()

    def slow(source: str, target: str) -> None:
        monkeypatch.setattr(segments, "_link", link)
        if not told:
            told.append(run(given, folder, (2,)))
        link(source, target)

    monkeypatch.setattr(segments, "_link", slow)
    late = run(given, folder, (1,))
    assert told == [calm] and late.reason.startswith(BEGUN_AGAIN)
    assert everything(folder / "trials" / "trial-0000") == everything(given.folder / "trials" / "trial-0000")


def test_a_run_whose_workers_are_started_again_has_one_set_of_records(tmp_path: Path) -> None:
    """The same command's first workers, which live on, and its second ones."""
    job = replace(tiny_job(tmp_path / "a", short_run(), protocol="fixed"), turn=(5,))
    job = Job.from_json(json.loads(json.dumps(job.to_json())))
    calm = replace(job, folder=str(tmp_path / "calm"))
    train_worker(calm, lambda _: None, CPU)
    again = False

    def report(_: object) -> None:
        nonlocal again
        if not again:
            again = True
            train_worker(job, lambda _: None, CPU)

    with pytest.raises(Superseded, match="run was begun again by another process"):
        train_worker(job, report, CPU)
    assert again and everything(Path(job.folder)) == everything(Path(calm.folder))
