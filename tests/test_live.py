"""The table of a campaign's trials, and the one that is redrawn while it runs."""

import io
import json
import re
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from orchestration.campaigns.ledger import State, Trial
from orchestration.campaigns.live import LiveTable, read_trials, trials_table
from orchestration.campaigns.standing import Standing, bound_name, ranked, standing, told_lead
from orchestration.stages import quiet
from tests.report_support import (
    ACCURACY,
    FID,
    Made,
    figures_at,
    halving_campaign,
    population_campaign,
    settings_of,
    two_objectives,
    values_of,
)


def finished(number: int, fid: float, spread: float | None = 1.0, **changes: object) -> Trial:
    figures = {FID: fid}
    if spread is not None:
        figures |= {bound_name(FID, "low"): fid - spread, bound_name(FID, "high"): fid + spread}
    origin = "proposed" if number else "paper"
    trial = Trial(number, values_of(number), origin, State.FINISHED, "", 8.0, figures)
    return replace(trial, **changes)  # type: ignore[arg-type]


def test_ends_of_an_interval_are_named_as_the_judge_names_them() -> None:
    assert bound_name("validation/fid/scenes-net", "low") == "validation/fid_low/scenes-net"
    assert bound_name("kid/inception", "high") == "kid_high/inception"
    assert bound_name("loss", "low") == "loss_low"


def test_intervals_overlap_from_either_side() -> None:
    low, middle, high = (Standing(at, at - 1, at + 1) for at in (1.0, 2.0, 4.5))
    assert low.overlaps(middle) and middle.overlaps(low)
    assert high.overlaps(middle) is False and middle.overlaps(high) is False
    assert low.overlaps(Standing(1.0)) is None and Standing(1.0).overlaps(low) is None


def test_what_is_no_number_is_no_figure() -> None:
    assert standing({FID: float("nan")}, FID) is None
    assert standing({}, FID) is None
    half = {FID: 3.0, bound_name(FID, "low"): 2.0, bound_name(FID, "high"): float("inf")}
    assert standing(half, FID) == Standing(3.0)


def test_best_first(tmp_path: Path) -> None:
    made = halving_campaign(tmp_path)
    trials = made.ledger.trials()
    order = ranked(trials, made.settings)
    places = [(trial.state, trial.kimg) for trial in order]
    assert [state for state, _ in places[:3]] == [State.FINISHED] * 3
    assert {state for state, _ in places[-2:]} == {State.DIVERGED, State.FAILED}
    assert [kimg for _, kimg in places[3:-2]] == sorted((kimg for _, kimg in places[3:-2]), reverse=True)
    best = [trial.figures[FID] for trial in order[:3]]
    assert best == sorted(best)
    lines = trials_table(trials, made.settings).splitlines()
    assert lines[1].startswith("trial-0000 (best, paper)  finished  8/8 ")
    assert re.search(r"34\.17 \[32\.67, 36\.17\]  lambda_1=1, tau=0\.1, batch_size=32$", lines[1])
    columns = {line.index("lambda_1=") for line in lines if "lambda_1=" in line}
    assert len(columns) == 1 and lines[0].index("values") in columns


def test_larger_can_be_better() -> None:
    settings = settings_of(objectives=[{"figure": FID, "direction": "maximize"}])
    trials = [finished(number, fid) for number, fid in enumerate((3.0, 9.0, 5.0))]
    assert [trial.number for trial in ranked(trials, settings)] == [1, 2, 0]


def test_reasons_are_words_and_nothing_else(tmp_path: Path) -> None:
    table = trials_table(halving_campaign(tmp_path).ledger.trials(), settings_of(), 200)
    assert "    diverged: the gradient of the generator is nan <script>alert(1)</script> &amp; [31mred" in table
    assert "    stopped: others were better at 2 kimg" in table
    assert "\x1b" not in table
    silent = trials_table([finished(0, 3.0, state=State.FAILED)], settings_of())
    assert "failed: no reason was recorded" in silent


def test_pareto_front_comes_first(tmp_path: Path) -> None:
    made = two_objectives(tmp_path, trials=4)
    trials = made.ledger.trials()
    table = trials_table(trials, made.settings, 140)
    assert "fid/scenes-net" in table and "accuracy/thing" in table
    front = {trial.name for trial in trials if f"{trial.name} (best" in table}
    assert front and f"Pareto front: {', '.join(sorted(front))};" in table.replace("\n", " ")
    assert trials[0].figures[ACCURACY] < 1


@pytest.mark.parametrize(
    ("trials", "told"),
    [
        ([], "No trial has a figure at the whole budget yet."),
        ([finished(0, 3.0, state=State.STOPPED)], "No trial has a figure at the whole budget yet."),
        ([finished(0, 3.0)], "the only trial with a figure at the whole budget."),
        ([finished(0, 3.0), finished(1, 4.5)], "within the noise of trial-0001: their 95 % intervals overlap."),
        ([finished(0, 3.0), finished(1, 4.5), finished(2, 4.9)], "within the noise of trial-0001 and 1 more:"),
        ([finished(0, 3.0), finished(1, 9.0)], "ahead of trial-0001 (9 [8, 10]) by more than the noise."),
        ([finished(0, 3.0), finished(1, 9.0, None)], "nobody can say whether its lead on trial-0001 is noise."),
        ([finished(0, float("nan")), finished(1, 9.0)], "Best: trial-0001 with 9 [8, 10], the only trial"),
    ],
)
def test_lead_and_noise(trials: list[Trial], told: str) -> None:
    assert told in told_lead(trials, settings_of())


def test_no_trial_yet() -> None:
    assert trials_table([], settings_of()) == "no trial has begun yet"


@examples(deadline=None, max_examples=60)
@given(
    values=st.dictionaries(
        st.text(max_size=40), st.one_of(st.floats(), st.text(max_size=60), st.booleans()), max_size=6
    ),
    reason=st.text(max_size=200),
    state=st.sampled_from(State),
    figures=st.dictionaries(st.sampled_from([FID, bound_name(FID, "low"), bound_name(FID, "high")]), st.floats()),
    kimg=st.floats(0, 8),
    width=st.integers(1, 200),
)
def test_every_line_fits(
    values: dict[str, float | str | bool],
    reason: str,
    state: State,
    figures: dict[str, float],
    kimg: float,
    width: int,
) -> None:
    trial = Trial(3, values, "proposed", state, reason, kimg, figures)
    lines = trials_table([trial, finished(0, 3.0)], settings_of(), width).splitlines()
    assert all(len(line) <= max(width, 40) and line.isprintable() for line in lines)
    assert any(line.startswith("trial-0003") for line in lines)


class Terminal(io.StringIO):
    """A terminal that keeps what is on it, and obeys the two commands that a table needs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = [""]
        self.frames: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for part in re.findall(r"\x1b\[\d*[FJ]|\n|[^\x1b\n]+", text):
            if part.endswith("F") and part.startswith("\x1b"):
                kept = len(self.lines) - 1 - int(part[2:-1])
                assert kept >= 0, "it moved above what it wrote"
                self.lines = [*self.lines[:kept], ""]
            elif part == "\n":
                self.lines.append("")
            elif not part.startswith("\x1b"):
                self.lines[-1] += part
        self.frames.append("\n".join(self.lines))
        return len(text)


@pytest.fixture(autouse=True)
def terminal_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "30")


def eventually(holds: Callable[[], bool]) -> None:
    for _ in range(500):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


def test_redrawn_in_place_and_taken_away(tmp_path: Path) -> None:
    made = Made(tmp_path, settings_of())
    terminal = Terminal()
    terminal.lines = ["before", ""]
    with LiveTable(tmp_path, made.settings, stream=terminal, every_s=0.01):
        eventually(lambda: "no trial has begun yet" in terminal.frames[-1] if terminal.frames else False)
        made.trial(0)
        segment = made.begun(0)
        eventually(lambda: "running" in terminal.frames[-1])
        folder = tmp_path / "trials" / "trial-0000"
        folder.mkdir(parents=True)
        line = {"images": 1250, "kimg": 1.25, "time": 0.0, "metrics": {}}
        (folder / "metrics.jsonl").write_text(json.dumps(line) + '\n{"images": 13')
        eventually(lambda: " 1.25/8 " in terminal.frames[-1])
        made.reached(segment, figures_at(segment.values, 2.0))
        eventually(lambda: "waiting" in terminal.frames[-1] and "[" in terminal.frames[-1])
    assert all(frame.startswith("before\n") for frame in terminal.frames)
    assert "running" in "".join(terminal.frames) and terminal.lines == ["before", ""]
    assert not any(frame.count("trial-0000") > 1 for frame in terminal.frames if "Best" not in frame)


def test_a_long_table_stays_on_the_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "12")
    made = halving_campaign(tmp_path)
    terminal = Terminal()
    with LiveTable(tmp_path, made.settings, stream=terminal, every_s=0.01):
        eventually(lambda: bool(terminal.frames) and "more lines" in terminal.frames[-1])
    shown = next(frame for frame in terminal.frames if "more lines" in frame).splitlines()
    assert len(shown) <= 11 and shown[0] == "13 of 14 trials ended" and shown[-1].startswith("Best: trial-0000")
    assert all(len(line) < 120 for line in shown)


def test_plain_progress_where_nobody_watches(tmp_path: Path) -> None:
    made = population_campaign(tmp_path)
    told: list[tuple[str, int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    quiet_place = io.StringIO()
    with LiveTable(tmp_path, made.settings, progress, stream=quiet_place, every_s=0.01):
        eventually(lambda: bool(told))
    assert set(told) == {("trials ended", 4, 4)} and quiet_place.getvalue() == ""


def test_what_is_said_stays_above_the_table(tmp_path: Path) -> None:
    made = population_campaign(tmp_path)
    terminal = Terminal()
    terminal.lines = ["before", ""]
    with LiveTable(tmp_path, made.settings, stream=terminal, every_s=0.01) as table:
        eventually(lambda: "4 of 4 trials ended" in (terminal.frames or [""])[-1])
        table.say("a machine is gone")
        eventually(lambda: terminal.frames[-1].startswith("before\na machine is gone\n4 of 4 trials ended\n"))
        table.say("it is back")
    assert terminal.lines == ["before", "a machine is gone", "it is back", ""]


def test_what_is_said_is_a_line_of_a_log_that_asks_for_lines_and_silence_in_others(tmp_path: Path) -> None:
    made = population_campaign(tmp_path)
    for progress, shown in ((lambda *_: None, "a machine is gone\n"), (quiet, "")):
        log = io.StringIO()
        with LiveTable(tmp_path, made.settings, progress, stream=log, every_s=0.01) as table:
            table.say("a machine is gone")
        assert log.getvalue() == shown


def test_a_terminal_that_cannot_move_its_cursor_gets_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    made = population_campaign(tmp_path)
    terminal = Terminal()
    with LiveTable(tmp_path, made.settings, stream=terminal, every_s=0.01):
        time.sleep(0.05)
    assert terminal.frames == []


def test_showing_disturbs_nothing(tmp_path: Path) -> None:
    """Neither a ledger that is not there nor a terminal that is gone ends the campaign; the reader cannot write."""

    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with LiveTable(tmp_path / "none", settings_of(), stream=Terminal(), every_s=0.01):
        time.sleep(0.05)
    made = population_campaign(tmp_path / "some")
    with LiveTable(made.folder, made.settings, stream=Gone(), every_s=0.01):
        time.sleep(0.05)
        made.ledger.note("alive", True)
    assert len(read_trials(made.folder)) == 4
    with pytest.raises(sqlite3.Error):
        read_trials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["some"], "looking makes no file"
