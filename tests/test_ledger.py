"""The ledger: what is written is read, a kill leaves it before a change or after it, and old files open for ever."""

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.campaigns.ledger import APPLICATION, FILE, VERSION, Ledger, Reached, Segment, SegmentState, State
from orchestration.errors import RequestError, RunError
from tests.ledger_example import HEADER, POINTS, check_example, reached, write_example

ASSET = Path(__file__).parent / "assets" / "ledger-v1.db"
SEGMENT = Segment(0, 0, 2.0, POINTS[1], donor=0, donor_digest="ab" * 32)
LOST = Reached(SegmentState.FAILED, 0.5, {}, None, None, reason="the worker died")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.create(tmp_path / "campaign", {"name": "c"})
    yield opened
    opened.close()


def everything(folder: Path) -> tuple[Any, ...]:
    opened = Ledger.open(folder)
    found = (opened.header, opened.trials(), opened.segments())
    opened.close()
    return found


def test_all_of_a_campaign_is_read_as_it_was_written(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "new" / "campaign", HEADER)
    write_example(ledger)
    check_example(ledger)
    ledger.close()
    check_example(Ledger.open(tmp_path / "new" / "campaign"))


def test_a_ledger_of_version_1_opens_and_goes_on(tmp_path: Path) -> None:
    """The file was written by the first version, and stays as it is."""
    shutil.copy(ASSET, tmp_path / FILE)
    ledger = Ledger.open(tmp_path)
    check_example(ledger)
    ledger.begin(ledger.segments()[-1])
    ledger.reach(ledger.segments()[-1], reached(20.0, 2.0, 4), State.WAITING)
    ledger.propose(5, POINTS[0], "proposed")
    assert [trial.state for trial in ledger.trials()[4:]] == [State.WAITING, State.WAITING]
    assert ledger.segments()[-1].attempts == 3


def test_the_old_file_is_of_version_1() -> None:
    with sqlite3.connect(f"file:{ASSET}?mode=ro", uri=True) as connection:
        assert connection.execute("pragma user_version").fetchone() == (1,)
        assert connection.execute("pragma application_id").fetchone() == (APPLICATION,)
    connection.close()


def test_paths_follow_a_folder_that_is_copied(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "here", HEADER)
    write_example(ledger)
    ledger.close()
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    shutil.rmtree(tmp_path / "here")
    moved = Ledger.open(tmp_path / "there")
    check_example(moved)
    assert moved.folder == tmp_path / "there"
    told = [trial.checkpoint for trial in moved.trials()] + [segment.checkpoint for segment in moved.segments()]
    assert not any(Path(path).is_absolute() for path in told if path)
    assert str(tmp_path) not in (tmp_path / "there" / FILE).read_bytes().decode("latin-1")


def test_a_trial_is_known_by_its_number(ledger: Ledger) -> None:
    made = ledger.propose(7, POINTS[0], "paper")
    assert ledger.trial(7) == made and made.name == "trial-0007" and made.state is State.WAITING
    with pytest.raises(KeyError):
        ledger.trial(0)


def test_states_say_whether_they_are_ends() -> None:
    assert [state for state in State if not state.ended] == [State.WAITING, State.RUNNING]


def test_a_number_is_proposed_once(ledger: Ledger) -> None:
    ledger.propose(0, POINTS[0], "paper")
    with pytest.raises(RunError, match=r"ledger in .* cannot be written \(UNIQUE constraint failed"):
        ledger.propose(0, POINTS[1], "proposed")
    assert ledger.trial(0).values == POINTS[0]


def test_a_segment_of_no_trial_is_refused(ledger: Ledger) -> None:
    with pytest.raises(RunError, match="FOREIGN KEY"):
        ledger.begin(SEGMENT)
    assert ledger.segments() == []


def test_beginning_again_counts_and_keeps_what_was_begun(ledger: Ledger) -> None:
    ledger.propose(0, POINTS[0], "paper")
    for attempt in (1, 2, 3):
        ledger.begin(SEGMENT)
        [segment] = ledger.segments()
        assert (segment.attempts, segment.state, segment.donor) == (attempt, SegmentState.BEGUN, 0)
    # Its values are now the trial's: a population changes them from segment to segment.
    assert ledger.trial(0).values == POINTS[1] and ledger.trial(0).state is State.RUNNING


def test_a_lost_segment_leaves_the_trial_its_last_checkpoint(ledger: Ledger) -> None:
    ledger.propose(0, POINTS[0], "paper")
    ledger.begin(SEGMENT)
    ledger.reach(SEGMENT, reached(40.0, 2.0, 0), State.WAITING)
    before = ledger.trial(0)
    second = Segment(0, 1, 4.0, POINTS[0])
    ledger.begin(second)
    ledger.reach(second, LOST, State.FAILED)
    after = ledger.trial(0)
    assert (after.checkpoint, after.digest, after.run_id) == (before.checkpoint, before.digest, before.run_id)
    assert (after.state, after.reason) == (State.FAILED, "the worker died")
    assert ledger.segments()[1].checkpoint is None


def test_a_note_takes_the_place_of_the_one_before(ledger: Ledger) -> None:
    for value in ("one", {"two": [1, 2.5, None, True]}):
        ledger.note("run_id", value)
        assert ledger.header == {"name": "c", "run_id": value}


VALUES = st.dictionaries(
    st.text(max_size=8), st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=8)
)


@settings(deadline=None, max_examples=40)
@given(values=VALUES, kimg=st.floats(0, 1e6), numbers=st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False)))
def test_any_values_and_figures_come_back(values: Any, kimg: float, numbers: dict[str, float]) -> None:
    ledger = in_memory()
    ledger.propose(0, values, "paper")
    assert [(type(value), value) for value in ledger.trial(0).values.values()] == [
        (type(value), value) for value in values.values()
    ]
    segment = Segment(0, 0, 1.0, values)
    ledger.begin(segment)
    ledger.reach(segment, Reached(SegmentState.REACHED, kimg, numbers, None, None), State.FINISHED)
    assert ledger.trial(0).figures == ledger.segments()[0].figures == numbers
    assert ledger.trial(0).kimg == kimg
    ledger.close()


def in_memory() -> Ledger:
    from orchestration.campaigns.ledger import _TABLES

    connection = sqlite3.connect(":memory:")
    connection.executescript(_TABLES)
    return Ledger(Path("memory"), connection)


class TestKilled:
    """A process that is killed in the middle of a change leaves the ledger before it, and can be followed by it."""

    CHANGES: tuple[tuple[str, Callable[[Ledger], Any], int], ...] = (
        ("propose", lambda ledger: ledger.propose(1, POINTS[2], "proposed"), 1),
        ("begin", lambda ledger: ledger.begin(SEGMENT), 2),
        ("reach", lambda ledger: ledger.reach(SEGMENT, reached(40.0, 2.0, 0), State.WAITING), 2),
        ("end", lambda ledger: ledger.end(0, State.STOPPED, "others were better"), 1),
        ("note", lambda ledger: ledger.note("run_id", "abc"), 1),
    )

    @pytest.mark.parametrize(
        ("name", "change", "moment"),
        [(name, change, moment) for name, change, count in CHANGES for moment in range(count + 2)],
        ids=[f"{name}-{moment}" for name, _, count in CHANGES for moment in range(count + 2)],
    )
    def test_at_any_moment(self, tmp_path: Path, name: str, change: Callable[[Ledger], Any], moment: int) -> None:
        """Moments: before each statement, before the commit, and after it."""
        folder = tmp_path / "campaign"
        ledger = Ledger.create(folder, {"name": "c"})
        ledger.propose(0, POINTS[0], "paper")
        if name in ("reach", "end"):
            ledger.begin(SEGMENT)
        ledger.close()
        before = everything(folder)
        shutil.copytree(folder, tmp_path / "twin")
        undisturbed = Ledger.open(tmp_path / "twin")
        change(undisturbed)
        undisturbed.close()
        wanted = everything(tmp_path / "twin")
        assert wanted != before

        statements = next(count for known, _, count in self.CHANGES if known == name)
        assert killed_within(folder, change, moment)
        committed = moment == statements + 1
        assert everything(folder) == (wanted if committed else before)
        if not committed:
            again = Ledger.open(folder)
            change(again)
            again.close()
            assert everything(folder) == wanted

    def test_while_it_is_created(self, tmp_path: Path) -> None:
        """There is a whole ledger or none, and what was left over is in nobody's way."""
        folder = tmp_path / "campaign"
        for moment in range(5):
            assert killed_within(folder, lambda _: Ledger.create(folder, HEADER), moment, opened=False)
            with pytest.raises(RequestError, match="is no campaign"):
                Ledger.open(folder)
        Ledger.create(folder, HEADER).close()
        assert everything(folder) == (HEADER, [], [])
        assert [path.name for path in folder.iterdir()] == [FILE]


class Dying(sqlite3.Connection):
    """Kills its process before a given statement or commit."""

    left = 0

    def execute(self, *args: Any) -> sqlite3.Cursor:
        self._step()
        return super().execute(*args)

    def executescript(self, script: Any) -> sqlite3.Cursor:
        self._step()
        return super().executescript(script)

    def executemany(self, *args: Any) -> sqlite3.Cursor:
        self._step()
        return super().executemany(*args)

    def __exit__(self, *args: Any) -> Any:
        self._step()
        return super().__exit__(*args)

    @staticmethod
    def _step() -> None:
        if not Dying.left:
            os.kill(os.getpid(), signal.SIGKILL)
        Dying.left -= 1


def killed_within(folder: Path, change: Callable[[Any], Any], moment: int, opened: bool = True) -> bool:
    """Make the change in another process that is killed at a moment; whether it died by that."""
    child = os.fork()
    if not child:  # pragma: no cover, no report survives the kill
        try:
            connect = sqlite3.connect
            with patch("sqlite3.connect", lambda *args, **kwargs: connect(*args, factory=Dying, **kwargs)):
                Dying.left = 99
                ledger = Ledger.open(folder) if opened else None
                Dying.left = moment
                change(ledger)
            os.kill(os.getpid(), signal.SIGKILL)  # after the change
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


class TestWrongFiles:
    def test_no_ledger(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="is no campaign: it has no ledger.db"):
            Ledger.open(tmp_path)

    def test_a_newer_version(self, tmp_path: Path) -> None:
        Ledger.create(tmp_path, HEADER).close()
        connection = sqlite3.connect(tmp_path / FILE)
        connection.execute(f"pragma user_version = {VERSION + 1}")
        connection.close()
        with pytest.raises(RequestError, match=r"is of version 2, and this t2i reads up to 1: use a newer t2i"):
            Ledger.open(tmp_path)

    def test_another_sqlite_file(self, tmp_path: Path) -> None:
        connection = sqlite3.connect(tmp_path / FILE)
        connection.execute("create table campaign (name text, value text)")
        connection.close()
        with pytest.raises(RequestError, match=r"ledger.db is no ledger of a campaign$"):
            Ledger.open(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"trial,kimg\n0,1\n" * 100])
    def test_no_sqlite_file(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(RequestError, match="is no ledger of a campaign"):
            Ledger.open(tmp_path)

    @pytest.mark.parametrize(
        "damage",
        [
            "drop table segments",
            "update trials set assignment = '{'",
            "update trials set state = 'odd'",
            "update segments set figures = 'nan,'",
            "update campaign set value = ''",
        ],
    )
    def test_damage_that_opening_does_not_see(self, tmp_path: Path, damage: str) -> None:
        write_example(ledger := Ledger.create(tmp_path, HEADER))
        ledger._connection.execute(damage)
        ledger._connection.commit()
        ledger.close()
        with pytest.raises(RequestError, match=r"ledger.db cannot be read \(.+\): restore it from a copy, or run"):
            everything(tmp_path)

    def test_pages_that_are_garbled(self, tmp_path: Path) -> None:
        write_example(ledger := Ledger.create(tmp_path, HEADER))
        ledger.close()
        content = (tmp_path / FILE).read_bytes()
        (tmp_path / FILE).write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
        with pytest.raises(RequestError, match=r"ledger.db cannot be read \(.*malformed.*\): restore it"):
            everything(tmp_path)

    def test_a_disk_that_refuses(self, ledger: Ledger) -> None:
        ledger._connection.execute("pragma query_only = on")
        with pytest.raises(RunError, match=r"cannot be written \(attempt to write a readonly.*: free disk or mend"):
            ledger.note("run_id", "abc")

    def test_a_full_disk_while_it_is_created(self, tmp_path: Path) -> None:
        full = sqlite3.OperationalError("database or disk is full")
        with (
            patch("sqlite3.connect", side_effect=full),
            pytest.raises(RunError, match=r"no ledger can be written to .* \(database or disk is full\): free disk"),
        ):
            Ledger.create(tmp_path, HEADER)
        assert not (tmp_path / FILE).exists()

    def test_another_writer_is_waited_for(self, tmp_path: Path) -> None:
        """A reader such as a report never blocks the driver for good."""
        driver = Ledger.create(tmp_path, HEADER)
        driver.propose(0, POINTS[0], "paper")
        reader = Ledger.open(tmp_path)
        assert reader.trials() == driver.trials()
        driver.end(0, State.STOPPED, "late")
        assert reader.trial(0).state is State.STOPPED
        reader.close()
        driver.close()
