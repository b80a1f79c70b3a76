"""A campaign whose home is on object storage: its ledger, and trials that several machines work on."""

import json
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestration.campaigns import segments
from orchestration.campaigns.campaign import find_campaign
from orchestration.campaigns.execution import SEGMENT, TURN, Desk
from orchestration.campaigns.ledger import FILE, Ledger, Reached, Segment, SegmentState
from orchestration.campaigns.live import LiveTable
from orchestration.campaigns.report import read_folder, write_report
from orchestration.campaigns.segments import Given, fetch_rung, reached_from_json, taking
from orchestration.errors import RunError
from orchestration.home import Home, exclusive, pull
from orchestration.remote import copies, following, places
from orchestration.stages import file_sha256, quiet
from orchestration.training import worker
from orchestration.training.state import MANIFEST, open_checkpoint
from orchestration.training.turn import Turn
from orchestration.training.worker import CHECKPOINTS
from tests.remote_support import (
    PATIENCE_S,
    machine,
    made_by,
    published,
    small_checkpoint,
    spoil,
    whole_in,
    working_copy,
)
from tests.report_support import FID, Made, halving_campaign, settings_of
from tests.test_live import Terminal
from tests.test_segments import SPACE, STEP, FixedJudge, NoTracker
from tests.test_segments import segment as segment_of
from tests.test_segments import short_run as segment_run
from tests.tiny import small_pretrained_nets, tiny_job


def ledger_at(home: Home, name: str = "c") -> Path:
    return home.campaigns / name


def trials_in(content: bytes, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(content)
    ledger = Ledger.open(folder)
    try:
        return len(ledger.trials())
    finally:
        ledger.close()


def test_the_ledger_is_published_with_every_change(
    first: Home, second: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = ledger_at(first)
    with exclusive(folder):
        ledger = Ledger.create(folder, {"name": "c"})
        ledger.publish()
        for number in range(3):
            ledger.propose(number, {"x": 1.0}, "proposed")
            assert trials_in(published(first)[f"campaigns/c/{FILE}"], tmp_path / "look") == number + 1
        spoiled = spoil(first, lambda number, _: True)
        ledger.propose(3, {"x": 1.0}, "proposed")
        ledger.propose(4, {"x": 1.0}, "proposed")
        assert len(caplog.records) == 1
        spoiled.fails = lambda number, _: False
        assert trials_in(published(first)[f"campaigns/c/{FILE}"], tmp_path / "look") == 3
        ledger.propose(5, {"x": 1.0}, "proposed")
        assert trials_in(published(first)[f"campaigns/c/{FILE}"], tmp_path / "look") == 6
        ledger.close()
    with exclusive(ledger_at(second)):
        resumed = Ledger.open(ledger_at(second))
        resumed.publish()
        resumed.propose(6, {"x": 1.0}, "proposed")
        resumed.close()
    stale = Ledger.open(folder)
    with pytest.raises(RunError, match="another machine has taken campaigns/c in .* over"):
        stale.publish()
    stale.close()
    assert trials_in(published(first)[f"campaigns/c/{FILE}"], tmp_path / "look") == 7


def test_a_trial_goes_on_where_another_machine_left_it(first: Home, second: Home) -> None:
    """And a donor's rung is found by its digest, wherever it was made."""
    trial = Path("campaigns/c/trials/trial-0000")
    with taking(first.root / trial, False):
        rung = small_checkpoint(first.root / trial / "rungs", 1)
        rung.rename(rung.with_name("step-000"))
        (first.root / trial / "segment.json").write_text("{}")
    digest = file_sha256(first.root / trial / "rungs" / "step-000" / MANIFEST)
    fetch_rung(second.root / trial / "rungs", digest)
    assert open_checkpoint(second.root / trial / "rungs" / "step-000").digest == digest
    with taking(second.root / trial, False):
        assert (second.root / trial / "segment.json").is_file()
        (second.root / trial / "segment.json").write_text('{"step": 1}')
    pull(first.root / trial)
    assert (first.root / trial / "segment.json").read_text() == '{"step": 1}'
    fetch_rung(first.root / trial / "rungs", "f" * 64)  # nowhere: whoever needs it says so


def test_why_a_trial_failed_on_another_machine_can_be_read_where_it_says(
    first: Home, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(given: Given, segment: Segment, turn: Turn) -> Reached:
        (turn.folder / "half.txt").write_text("begun")
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(segments, "_run", breaks)
    prepared = tiny_job(tmp_path / "job", segment_run(), protocol="fixed").prepared
    told = Given(segment_run(), SPACE, prepared, first.campaigns / "c", "parent", first.root, None, "c")
    values = json.loads(json.dumps(places.told({**told.to_json(), SEGMENT: asdict(segment_of(0, 0))}, told.folder)))
    machine(url, tmp_path / "second", monkeypatch)
    reached = reached_from_json(segments.run_segment(values))
    place = "campaigns/c/trials/trial-0000/failure.txt"
    assert reached.reason == f"by nothing (the whole story is in {url}/{place})"
    there = published(first)
    assert b"ZeroDivisionError" in there[place] and there[place.replace("failure", "half")] == b"begun"


def test_what_a_trial_leaves_is_published_by_the_driver_if_it_could_not(
    first: Home, caplog: pytest.LogCaptureFixture
) -> None:
    campaign = first.campaigns / "c"
    with exclusive(campaign):
        with taking(campaign / "trials" / "trial-0000", True):
            (campaign / "trials" / "trial-0000" / "metrics.jsonl").write_text("{}\n")
            spoiled = spoil(first, lambda number, _: True)
        with pytest.raises(RunError, match="could not be fetched"), taking(campaign / "trials" / "trial-0001", True):
            pass
        spoiled.fails = lambda number, _: False
    assert published(first)["campaigns/c/trials/trial-0000/metrics.jsonl"] == b"{}\n"
    assert "could not be published" in caplog.text


def test_a_campaigns_segments_run_on_several_machines(
    first: Home, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other on two, with a donor from the other one: as on one alone; and the driver has them all."""
    monkeypatch.setattr(segments, "Tracker", NoTracker)
    monkeypatch.setattr(worker, "make_judge", FixedJudge)
    base = segment_run(training__checkpoint_kimg=STEP, training__keep_checkpoints=1)
    prepared = tiny_job(tmp_path / "job", base, protocol="fixed").prepared
    told = Given(base, SPACE, prepared, first.campaigns / "c", "parent", first.root, None, "c")
    alone = replace(told, folder=tmp_path / "alone", home=tmp_path)

    def on(given: Given, cache: str, segment: Segment) -> Reached:
        values = json.loads(json.dumps(places.told({**given.to_json(), SEGMENT: asdict(segment)}, given.folder)))
        machine(url, tmp_path / cache, monkeypatch)
        try:
            with small_pretrained_nets():
                return reached_from_json(json.loads(json.dumps(segments.run_segment(values))))
        finally:
            machine(url, tmp_path / "first", monkeypatch)
            pull(given.trial_folder(segment.trial))

    def all_of(given: Given, caches: str) -> list[tuple[object, ...]]:
        where = iter(["first" if letter == "a" else "second" for letter in caches])
        donor = on(given, next(where), segment_of(0, 0))
        own = on(given, next(where), segment_of(1, 0, 0.5))
        later = on(given, next(where), segment_of(1, 1, 0.7, 0, donor.digest))
        last = on(given, next(where), segment_of(1, 2, 0.7))
        assert last.state == SegmentState.REACHED, last.reason
        assert given.folder.joinpath(last.checkpoint or "").is_dir()
        return [(one.state, one.kimg, one.figures, one.digest) for one in (donor, own, later, last)]

    wanted = all_of(alone, "aaaa")
    with exclusive(told.folder):
        assert all_of(told, "abba") == wanted
    shutil.rmtree(first.root)
    machine(url, tmp_path / "first", monkeypatch)
    with exclusive(told.folder):
        assert all_of(replace(told, folder=first.campaigns / "c"), "baab") == wanted


def test_a_machine_that_saw_nothing_of_a_campaign_reports_all_of_it(first: Home, second: Home) -> None:
    """Curves and pictures of every trial, wherever it was trained; and a trial that is not published has none."""
    campaign = ledger_at(first)
    with exclusive(campaign):
        made = halving_campaign(campaign)
        made.ledger.close()
        for trial in sorted((campaign / "trials").iterdir()):
            if trial.name != "trial-0001":
                with taking(trial, True):
                    small_checkpoint(trial / CHECKPOINTS, 1)
    folder = find_campaign(second, "c")
    wanted, found = read_folder(campaign), read_folder(folder)
    assert found.trials == wanted.trials and len(found.records) == 14
    for number, record in wanted.records.items():
        own = found.records[number]
        if number == 1:
            assert record.curves[FID] and not own.curves[FID]
        else:
            assert (own.curves, own.seconds, own.picture()) == (record.curves, record.seconds, record.picture())
    assert not list(second.root.rglob(CHECKPOINTS)), "none is fetched to be reported"
    page = write_report(folder, second.root / "page.html").read_text()
    assert found.ranked[0].name in page and found.records[found.ranked[0].number].picture().uri in page


def test_the_table_shows_how_far_trials_on_other_machines_are(
    first: Home, second: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(following, "LOOK_S", 0.01)
    campaign = first.campaigns / "c"
    with exclusive(campaign):
        made = Made(campaign, settings_of())
        made.trial(0)
        segment = made.begun(0)
        terminal = Terminal()
        with LiveTable(campaign, made.settings, stream=terminal, every_s=0.01):
            trial = second.root / "campaigns" / "c" / "trials" / "trial-0000"
            with taking(trial, False):
                made.metrics(trial, segment, {})
            until = time.monotonic() + PATIENCE_S
            while not terminal.frames or " 2/8 " not in terminal.frames[-1]:
                assert time.monotonic() < until, terminal.frames[-1:]
                time.sleep(0.01)
        made.ledger.close()


def test_a_donors_checkpoint_is_never_mixed_with_the_trials_own(
    first: Home, second: Home, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever moment a publication is cut off at: the trial says it begins from the donor's only where that is newest,
    and no manifest stands above another checkpoint's files."""
    run = made_by(first, 1, 2)
    with exclusive(run):
        (run / "segment.json").write_text("old")
    shutil.rmtree(run / CHECKPOINTS)
    small_checkpoint(run / CHECKPOINTS, 1, b"donors ")
    (run / "segment.json").write_text("new")
    said = set()
    for allowed in range(40):
        spoil(first, lambda number, _, allowed=allowed: number > allowed)
        working_copy(first).store.attempts = 1
        with suppress(OSError):
            working_copy(first).push(run)
        copies.open_store.cache_clear()
        shutil.rmtree(second.root / "runs", ignore_errors=True)
        pull(second.runs / "run")
        segment = (second.runs / "run" / "segment.json").read_text()
        said.add(segment)
        if segment == "new":
            assert whole_in(second.runs / "run") == ["kimg-000001.000"]
            weights = second.runs / "run" / CHECKPOINTS / "kimg-000001.000" / "net.safetensors"
            assert weights.read_bytes() == b"donors 1"
    assert said == {"old", "new"} and not caplog.records


def test_a_driver_whose_clock_lags_is_later_than_the_one_before_on_another_machine(first: Home, second: Home) -> None:
    """Its copy has nothing of the trial yet."""
    ahead = time.time_ns() + 3600 * 10**9
    theirs = ledger_at(first) / "trials" / "trial-0000"
    with taking(theirs, driver_is_here=True):
        Turn.take(theirs, (ahead,))
    conductor = SimpleNamespace(next=lambda: Segment(0, 0, STEP, {"tau": 0.1}), done=False)
    given = SimpleNamespace(
        trial_folder=lambda number: ledger_at(second) / "trials" / f"trial-{number:04d}",
        experiment=lambda _: SimpleNamespace(resources=SimpleNamespace(workers=1)),
    )
    told = Desk(conductor, given, 1, quiet).ask("a")  # type: ignore[arg-type]
    assert isinstance(told, dict)
    with taking(theirs, driver_is_here=True):
        assert Turn.take(theirs, tuple(told[TURN])).order > (ahead, 1)
