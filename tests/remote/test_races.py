"""A home on object storage between two who use it at the same moment, and beside a store that hangs."""

import json
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from orchestration.campaigns.live import LiveTable
from orchestration.campaigns.segments import taking
from orchestration.errors import RequestError
from orchestration.home import Home, exclusive, looking, publishing, pull
from orchestration.remote import following, lease
from orchestration.remote.lease import LEASE, Lease, Owner
from orchestration.tracking import Mirror
from orchestration.training.turn import Superseded, Turn
from orchestration.training.worker import train_worker
from tests.remote_support import PATIENCE_S, made_by, published, spoil, working_copy
from tests.report_support import Made, settings_of
from tests.test_live import Terminal


def test_one_whose_folder_is_anothers_by_now_publishes_nothing(first: Home) -> None:
    run = made_by(first, 1)
    with pytest.raises(Superseded), publishing(run):
        (run / "note.txt").write_text("half of what another process of this machine writes")
        raise Superseded("begun again")
    assert "runs/run/note.txt" not in published(first)


def test_a_reader_that_fetches_slowly_does_not_write_over_one_who_has_begun_here(first: Home, second: Home) -> None:
    made_by(first, 1)
    held = threading.Event()
    reader = threading.Thread(target=pull, args=(second.runs / "run",))

    def hold(_: int, route: str) -> bool:
        if route == "cat_file" and (second.runs / "run").exists() and threading.current_thread() is reader:
            held.wait(1)
        return False

    spoil(second, hold)
    reader.start()
    while not (second.runs / "run").exists():
        time.sleep(0.01)
    with exclusive(second.runs / "run"):
        (second.runs / "run" / "metrics.jsonl").write_text('{"images": 2000}\n')
        reader.join(PATIENCE_S)
    assert published(first)["runs/run/metrics.jsonl"] == b'{"images": 2000}\n'


def test_what_its_writer_takes_away_while_it_is_fetched_is_not_there(first: Home, second: Home) -> None:
    run = made_by(first, 1)
    with exclusive(run):
        (run / "a note.txt").write_text("soon gone")
    store, listed, gone = working_copy(first).store, list[str](), list[str]()

    def take_away(_: int, route: str) -> bool:
        if route == "cat_file" and listed and not gone:
            gone.append("runs/run/a note.txt")
            store.remove(gone)
        if route == "find":
            listed.append(route)
        return False

    spoil(second, take_away)
    pull(second.runs / "run")
    assert gone and sorted(path.name for path in (second.runs / "run").glob("[!.]*")) == [
        "checkpoints",
        "metrics.jsonl",
    ]


class Sends:
    """What MLflow is sent: from which folders."""

    uri = "http://127.0.0.1:1"

    def __init__(self) -> None:
        self.sent = list[Path]()

    def mirror(self, run_id: str, folder: Path) -> int:
        self.sent.append(folder)
        return 0


def test_a_store_that_hangs_holds_up_neither_the_mirror_nor_the_end(
    first: Home, second: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "HANGS_S", 0.05)
    monkeypatch.setattr(Mirror, "PATIENCE_S", 5.0)
    made_by(first, 1)
    run, sends, answers = second.runs / "run", Sends(), threading.Event()

    def hangs(_: int, route: str) -> bool:
        return not answers.wait(PATIENCE_S)

    spoil(second, hangs)
    seen, until = looking(run), time.monotonic() + PATIENCE_S / 2
    try:
        with Mirror(sends, "id", run, every_s=0.01) as mirror:  # type: ignore[arg-type]
            while len(sends.sent) < 3:
                assert time.monotonic() < until
                time.sleep(0.01)
        assert mirror.error is None and set(sends.sent) == {run}
        assert seen() == run
    finally:
        answers.set()
    while seen() == run:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert (seen() / "metrics.jsonl").is_file()


def test_a_table_ends_although_the_store_hangs(first: Home, second: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "HANGS_S", 1.5)
    monkeypatch.setenv("TERM", "xterm")
    made = Made(second.campaigns / "some", settings_of())
    for number in range(4):
        made.trial(number)
        made.begun(number)
    answers = threading.Event()
    spoil(second, lambda _, route: not answers.wait(PATIENCE_S))
    try:
        with LiveTable(made.folder, made.settings, stream=Terminal(), every_s=0.01) as table:
            while not table._where:
                time.sleep(0.01)
        assert len(table._where) == 1, "the others are not waited for"
    finally:
        answers.set()


def test_of_two_who_find_a_lease_dead_at_once_one_works(first: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    store = working_copy(first).store
    slow, quick = Lease(store, "runs/run", "slow"), Lease(store, "runs/run", "quick")
    dead = replace(Owner.here("lost"), machine="?")
    store.put(f"runs/run/{LEASE}", json.dumps(asdict(dead)).encode())
    monkeypatch.setattr(lease, "STALE_S", -1.0)
    require = Lease._require_dead

    def held_up(self: Lease, known: Owner) -> None:
        require(self, known)
        if self is slow and known == dead:
            quick.acquire()
            monkeypatch.setattr(lease, "STALE_S", 180.0)

    monkeypatch.setattr(Lease, "_require_dead", held_up)
    with pytest.raises(RequestError, match="runs/run in .* is being worked on by process"):
        slow.acquire()
    quick.require()
    quick.release()


def test_who_comes_too_late_takes_no_folder_from_whoever_has_begun_it_again(first: Home, second: Home) -> None:
    """As a machine that was cut off while it fetched what its trial reads."""
    run = made_by(first, 1)
    with exclusive(run):
        Turn.take(run, (8,))
    late = SimpleNamespace(folder=str(second.runs / "run"), turn=(7,), threads=torch.get_num_threads())
    with pytest.raises(Superseded, match="run was begun again by another process"):
        train_worker(late, lambda _: None, torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(Superseded), taking(second.runs / "run", False, (7,)):
        pass
    working_copy(first).require_writer(run)
