"""A home on object storage: what is published, fetched, refused and survived, in two file systems of fsspec."""

import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import fsspec
import pytest
from fsspec.registry import _registry as opened_before
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.errors import RequestError, RunError
from orchestration.home import COPY, Home, all_looked_at, copy_of, exclusive, find_home, looking, publishing, pull
from orchestration.remote import copies, following, lease, places
from orchestration.remote.lease import LEASE, Owner
from orchestration.runs import find_checkpoint
from orchestration.stages import MANIFEST as STAGE_MANIFEST
from orchestration.stages import ensure
from orchestration.tracking import Tracker
from orchestration.training import worker
from orchestration.training.launch import train_part
from orchestration.training.state import MANIFEST, newest_checkpoint, open_checkpoint
from orchestration.training.worker import CHECKPOINTS, OUTCOME, Job, train_worker
from tests.remote_drill import train_held
from tests.remote_support import (
    PATIENCE_S,
    Unreliable,
    assert_alike,
    job_at,
    killed_and_repeated_elsewhere,
    machine,
    made_by,
    published,
    small_checkpoint,
    spoil,
    whole_in,
    working_copy,
)
from tests.test_stages import Work, stage_of
from tests.tiny import CPU, small_pretrained_nets


def test_a_home_of_this_machine_pays_nothing(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from orchestration.home import exclusive, find_home, publishing, pull
from orchestration.remote import places
home = find_home({str(tmp_path / "home")!r})
with exclusive(home.runs / "run"), publishing(home.runs / "run") as saved:
    saved()
    pull(home.runs / "run")
    assert places.told({{"a": 1}}, home.runs / "run") == {{"a": 1}} == places.here({{"a": 1}})
assert not {{"fsspec", "orchestration.remote.copies", "orchestration.remote.store"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    assert [path.name for path in (tmp_path / "home").rglob("*") if path.is_file()] == [".lock"]


def test_urls_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RequestError, match="--home=nosuch://x cannot be opened .*: name another with --home"):
        find_home("nosuch://x")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(opened_before, "s3", raising=False)  # it keeps what was opened before
    with pytest.raises(RequestError, match=r"--home=s3://x cannot be opened .*: pip install 't2i\[s3\]', or"):
        find_home("s3://x")
    assert not (tmp_path / "cache").exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "file"))
    with pytest.raises(RequestError, match="the working copy of memory://x cannot be kept in .*: name .* T2I_CACHE"):
        find_home("memory://x")


def test_a_working_copy_knows_its_url(first: Home, second: Home, url: str) -> None:
    assert working_copy(first).url == url == working_copy(second).url
    assert working_copy(first).id != working_copy(second).id
    assert first.root.name == second.root.name and copy_of(first.root.parent) is None
    (first.root / COPY).write_text("{}")
    with pytest.raises(RequestError, match=f"{COPY} does not say what .* is a copy of .*: remove"):
        copy_of(first.runs)


def test_a_store_that_cannot_be_written_is_refused(first: Home) -> None:
    opened = working_copy(first).store
    opened.require_writable()
    assert published(first) == {}
    for error, said in (
        (PermissionError("forbidden"), "it cannot be written to: forbidden"),
        (FileNotFoundError("no such bucket"), "it is not there: no such bucket"),
        (ConnectionError("refused"), "it does not answer: refused"),
    ):

        def fails(_: int, route: str, error: OSError = error) -> bool:
            raise error

        spoil(first, fails)
        with pytest.raises(RequestError, match=f"--home=.* cannot be used .{said}.: check the bucket"):
            opened.require_writable()


def test_killed_it_goes_on_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_and_repeated_elsewhere(f"file://{tmp_path}/bucket", tmp_path, monkeypatch)


def test_a_store_that_fails_now_and_then_loses_nothing(first: Home, second: Home, tmp_path: Path) -> None:
    calm = job_at(Home(tmp_path / "calm home"), tmp_path / "calm")
    assert train_held(calm) == "finished"
    job = job_at(first, tmp_path / "data")
    spoiled = spoil(first, lambda number, _: number % 3 == 0)
    assert train_held(job) == "finished"
    assert spoiled.calls > 50
    with exclusive(second.runs / "run"):
        assert_alike(second.runs / "run", Path(calm.folder))


def test_a_store_that_is_away_while_training_gets_all_by_repeating(
    first: Home, second: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = job_at(first, tmp_path / "data")
    away: list[bool] = []
    save = worker.save_checkpoint
    monkeypatch.setattr(worker, "save_checkpoint", lambda *given: (away.append(True), save(*given))[1])
    spoil(first, lambda number, _: bool(away))
    with caplog.at_level(logging.WARNING), pytest.raises(RunError) as refusal:
        train_held(job, linger_s=0.05)
    said = str(refusal.value)
    assert said.startswith("runs/run could not be published (") and "the store is away" in said
    assert "repeat the command once the store answers" in said and "\n" not in said
    assert [record.message for record in caplog.records if "training goes on" in record.message] != []
    assert len(caplog.records) == 1
    run = Path(job.folder)
    assert json.loads((run / OUTCOME).read_text())["status"] == "finished"
    before = whole_in(run)
    assert not any(name.endswith(MANIFEST) for name in fsspec_names(second))

    away.clear()
    with exclusive(run):
        pass
    with exclusive(second.runs / "run"):
        assert whole_in(second.runs / "run") == before
        assert_alike(second.runs / "run", run)


def fsspec_names(home: Home) -> list[str]:
    """Names of all objects, past whatever fails."""
    filesystem, root = fsspec.url_to_fs(working_copy(home).url)
    filesystem.invalidate_cache()
    return [name.removeprefix(root) for name in filesystem.find(root)]


@pytest.mark.parametrize("damage", ["altered", "missing", "manifest altered", "half-published", "outside"])
def test_a_damaged_checkpoint_is_passed_over(
    first: Home, second: Home, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    made_by(first, 1, 2)
    opened = working_copy(first).store
    newest = "runs/run/checkpoints/kimg-000002.000"
    if damage == "altered":
        opened.put(f"{newest}/net.safetensors", b"Weights2")
    elif damage == "missing":
        opened.remove([f"{newest}/text/words.json"])
    elif damage == "manifest altered":
        opened.put(f"{newest}/{MANIFEST}", opened.read(f"{newest}/{MANIFEST}").replace(b"2000", b"3000"))
    elif damage == "outside":
        opened.put(f"{newest}/{MANIFEST}", b'{"files": {"../../x": {"bytes": 1}}}')
    else:
        opened.remove([f"{newest}/{MANIFEST}"])
    run = second.runs / "run"
    with exclusive(run):
        assert whole_in(run) == ["kimg-000001.000"]
        assert open_checkpoint(run / CHECKPOINTS / "kimg-000001.000").images_seen == 1000
        assert not list((run / CHECKPOINTS).glob(".*"))
    assert [record.levelname for record in caplog.records] == ([] if damage == "half-published" else ["WARNING"])
    assert not (run.parent / "x").exists()
    # What could not be used is gone, and the next checkpoint takes its place.
    made_by(second, 2)
    pull(first.runs / "run")
    assert whole_in(first.runs / "run") == ["kimg-000001.000", "kimg-000002.000"]


def test_what_another_machine_did_replaces_what_is_old_here(first: Home, second: Home) -> None:
    run = made_by(first, 1)
    (run / "old.png").write_bytes(b"old")
    with exclusive(run):
        pass
    with exclusive(second.runs / "run"):
        shutil.rmtree(second.runs / "run" / CHECKPOINTS)
        small_checkpoint(second.runs / "run" / CHECKPOINTS, 1, b"other")
        small_checkpoint(second.runs / "run" / CHECKPOINTS, 3)
        (second.runs / "run" / "old.png").unlink()
    small_checkpoint(run / CHECKPOINTS, 2)  # never published
    with exclusive(run):
        assert whole_in(run) == ["kimg-000001.000", "kimg-000003.000"]
        assert (run / CHECKPOINTS / "kimg-000001.000" / "net.safetensors").read_bytes() == b"other1"
        assert not (run / "old.png").exists()


def test_a_folder_lost_from_the_copy_is_fetched_again(first: Home) -> None:
    run = made_by(first, 1, 2)
    before = published(first)
    shutil.rmtree(run)
    with exclusive(run):
        assert whole_in(run) == ["kimg-000001.000", "kimg-000002.000"]
    shutil.rmtree(run / CHECKPOINTS)
    with exclusive(run):
        assert whole_in(run) == ["kimg-000001.000", "kimg-000002.000"]
    assert published(first) == before


def test_a_checkpoint_damaged_here_does_not_spoil_the_published_one(first: Home, second: Home) -> None:
    run = made_by(first, 1, 2)
    (run / CHECKPOINTS / "kimg-000002.000" / MANIFEST).write_bytes(b"{")
    with exclusive(run):
        pass
    with exclusive(second.runs / "run"):
        assert whole_in(second.runs / "run") == ["kimg-000001.000", "kimg-000002.000"]


def test_old_checkpoints_go_and_the_same_twice_is_copied_there(first: Home) -> None:
    run = made_by(first, 1, 2)
    with exclusive(run):
        shutil.rmtree(run / CHECKPOINTS / "kimg-000001.000")
        (run / "rungs").mkdir()
        shutil.copytree(run / CHECKPOINTS / "kimg-000002.000", run / "rungs" / "step-000")
        sent = spoil(first, lambda number, route: route == "put_file")  # no file is sent again
        sent.calls = 0
    names = {name.rpartition("/")[0] for name in published(first) if name.endswith(MANIFEST)}
    assert names == {"runs/run/checkpoints/kimg-000002.000", "runs/run/rungs/step-000"}


def test_a_second_machine_is_refused_until_the_first_is_gone(
    first: Home, second: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with exclusive(first.runs / "run"):
        with pytest.raises(RequestError) as refusal, exclusive(second.runs / "run"):
            pass
        said = str(refusal.value)
        assert said.startswith("runs/run in ") and "is being worked on by process " in said and "wait for it" in said
        with exclusive(second.runs / "another"):
            pass
        monkeypatch.setattr(lease, "STALE_S", -1.0)
        with exclusive(second.runs / "run"):
            monkeypatch.setattr(lease, "STALE_S", 180.0)
            (second.runs / "run" / "note.txt").write_text("second")
        (first.runs / "run" / "note.txt").write_text("first")
        # The lease is free again, but what another published since is not written over.
    assert published(first)["runs/run/note.txt"] == b"second"
    assert (first.runs / "run" / "note.txt").read_text() == "second"
    assert not any(name.endswith(LEASE) for name in published(first))


def test_one_that_was_taken_over_publishes_nothing(first: Home, second: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = exclusive(second.runs / "run")
    with pytest.raises(RunError, match="another machine has taken runs/run in .* over"), exclusive(first.runs / "run"):
        monkeypatch.setattr(lease, "STALE_S", -1.0)
        theirs.__enter__()
        (first.runs / "run" / "note.txt").write_text("first")
        with pytest.raises(RunError, match="another machine has taken runs/run in .* over"):
            working_copy(first).push(first.runs / "run")
    assert "runs/run/note.txt" not in published(second)
    theirs.__exit__(None, None, None)


def test_the_lease_of_a_dead_process_is_taken_at_once(first: Home) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner = Owner.here("another copy")
    opened = working_copy(first).store
    for known, refused in ((replace(owner, pid=ended.pid), False), (owner, True), (replace(owner, machine="?"), True)):
        opened.put(f"runs/run/{LEASE}", json.dumps(asdict(known)).encode())
        if refused:
            with pytest.raises(RequestError), exclusive(first.runs / "run"):
                pass
        else:
            with exclusive(first.runs / "run"):
                pass


def test_the_lease_shows_life(first: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    opened = working_copy(first).store
    with exclusive(first.runs / "run"):
        began = opened.modified(f"runs/run/{LEASE}")
        deadline = time.monotonic() + 20
        while opened.modified(f"runs/run/{LEASE}") == began:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_worker_elsewhere_finds_its_stages_and_paths(first: Home, second: Home, url: str) -> None:
    stage = ensure(stage_of(Work()), first.stages)
    shutil.rmtree(working_copy(first).root / "nothing", ignore_errors=True)
    run = first.runs / "run"
    with exclusive(run):
        told = places.told({"folder": str(run), "parts": [str(stage), "elsewhere"], "kimg": 1.5}, run)
        assert places.here(told) == {
            "folder": str(second.runs / "run"),
            "parts": [str(second.stages / stage.name), "elsewhere"],
            "kimg": 1.5,
        }
        assert not places.written_here(told)
    assert (second.stages / stage.name / STAGE_MANIFEST).is_file()
    shutil.rmtree(second.stages)
    working_copy(first).store.remove([f"stages/{stage.name}/{STAGE_MANIFEST}"])
    with pytest.raises(RunError, match=f"stage {stage.name} is neither here nor in {url}/stages"):
        places.here(told)


def test_stages_are_computed_once_for_all_machines(first: Home, second: Home) -> None:
    ensure(stage_of(Work()), first.stages)
    work = Work()
    ensure(stage_of(work), second.stages)
    assert work.times == 0


def test_other_ranks_get_the_checkpoint_of_the_first(first: Home, second: Home) -> None:
    run = made_by(first, 1)
    name = "kimg-000001.000"
    digest = open_checkpoint(run / CHECKPOINTS / name).digest
    theirs = small_checkpoint(second.runs / "run" / CHECKPOINTS, 1, b"stale")
    worker._have(theirs, digest)
    assert open_checkpoint(theirs).digest == digest


def test_records_reach_as_far_as_checkpoints(first: Home, second: Home) -> None:
    """A publication that is cut off never has a checkpoint without the lines before it, nor an end without it."""
    run = made_by(first, 1)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"images": 2000}) + "\n" + '{"images": 30')
    small_checkpoint(run / CHECKPOINTS, 2)
    (run / OUTCOME).write_text("{}")
    reached = set()
    for allowed in range(40):
        spoil(first, lambda number, _, allowed=allowed: number > allowed)
        working_copy(first).store.attempts = 1
        with suppress(OSError):
            working_copy(first).push(run)
        copies.open_store.cache_clear()
        shutil.rmtree(second.root / "runs", ignore_errors=True)
        pull(second.runs / "run")
        lines = (second.runs / "run" / "metrics.jsonl").read_text().splitlines()
        images = max(json.loads(line)["images"] for line in lines)
        newest = newest_checkpoint(second.runs / "run" / CHECKPOINTS)
        assert newest is not None and newest.images_seen <= images
        ended = (second.runs / "run" / OUTCOME).exists()
        assert not ended or newest.images_seen == 2000
        reached.add((images, newest.images_seen, ended))
    assert reached >= {(1000, 1000, False), (2000, 1000, False), (2000, 2000, True)}


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("save"), st.integers(0, 1), st.integers(0, 2)),
        st.tuples(st.just("push"), st.integers(0, 1), st.integers(0, 40)),
        st.tuples(st.just("lose"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("replace"), st.integers(0, 1), st.just(0)),
    ),
    max_size=10,
)


@settings(max_examples=40, deadline=None)
@given(OPERATIONS)
def test_no_sequence_shows_half_a_checkpoint(operations: list[tuple[str, int, int]]) -> None:
    """Two machines take turns, are killed while they publish, lose their copies: whatever is fetched is whole, and
    what was published to the end is never lost."""
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        copies.open_store.cache_clear()
        root = Path(place)
        address = f"file://{root}/bucket"
        homes = [machine(address, root / str(number), patch) for number in range(3)]
        safe = 0
        for kind, which, number in operations:
            run = homes[which].runs / "run"
            copy = working_copy(homes[which])
            copies.open_store.cache_clear()
            if kind == "lose":
                shutil.rmtree(homes[which].root)
                homes[which] = machine(address, root / str(which), patch)
                continue
            copy.take(run)
            found = newest_checkpoint(run / CHECKPOINTS)
            assert (found.images_seen if found else 0) >= safe
            if kind == "save":
                small_checkpoint(run / CHECKPOINTS, (found.images_seen // 1000 if found else 0) + 1, bytes([which]))
                for old in whole_in(run)[:-2]:
                    shutil.rmtree(run / CHECKPOINTS / old)
            elif kind == "replace" and found:
                # As a population does: another content of the same length.
                safe = min(safe, found.images_seen - 1000)
                small_checkpoint(run / CHECKPOINTS, found.images_seen // 1000, b"replaced")
            elif kind == "push":
                files = copy.store.files
                copy.store.files = Unreliable(files, lambda calls, _, number=number: calls > number)
                copy.store.attempts = 1
                with suppress(OSError):
                    copy.push(run)
                    newest = newest_checkpoint(run / CHECKPOINTS)
                    safe = newest.images_seen if newest else 0
                copies.open_store.cache_clear()
            shutil.rmtree(homes[2].root)
            homes[2] = machine(address, root / "2", patch)
            pull(homes[2].runs / "run")
            for name in whole_in(homes[2].runs / "run"):
                open_checkpoint(homes[2].runs / "run" / CHECKPOINTS / name)
            seen = newest_checkpoint(homes[2].runs / "run" / CHECKPOINTS)
            assert (seen.images_seen if seen else 0) >= safe


def mirrored(tracker: Tracker, experiment: str) -> float:
    """The kimg that the only run of an experiment has reached in MLflow."""
    [run] = tracker.run_summaries(experiment)
    return float(run.metrics.get("kimg", 0.0))


def test_what_is_recorded_is_published_before_the_next_checkpoint(
    first: Home, second: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else is: a checkpoint goes when it is whole, and its records before it."""
    monkeypatch.setattr(following, "RECORDS_S", 0.01)
    run = first.runs / "run"
    with publishing(run):
        small_checkpoint(run / CHECKPOINTS, 1)
        (run / "metrics.jsonl").write_text('{"images": 1000}\n{"images": 15')
        until = time.monotonic() + PATIENCE_S
        while published(first).get("runs/run/metrics.jsonl") != b'{"images": 1000}\n':
            assert time.monotonic() < until
            time.sleep(0.01)
        assert not [name for name in published(first) if CHECKPOINTS in name]
        pull(second.runs / "run")
        assert (second.runs / "run" / "metrics.jsonl").read_text() == '{"images": 1000}\n'
    assert [name for name in published(first) if CHECKPOINTS in name]


def test_another_machines_run_is_read_without_touching_its_folder(
    first: Home, second: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LOOK_S", 0.0)
    there, run = looking(second.runs / "run"), made_by(first, 1)
    with exclusive(run):
        write_picture(run, 1)
        write_picture(run, 2)
        (run / CHECKPOINTS / "note.txt").write_text("no part of any checkpoint")
    place = there()
    assert place != second.runs / "run" and not (second.runs / "run").exists()
    assert {path.name for path in place.rglob("*") if path.is_file()} == {"metrics.jsonl", "1.png", "2.png"}
    assert (place / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()
    with exclusive(run):
        (run / "pictures" / "2.png").unlink()
        (run / "metrics.jsonl").write_text('{"images": 1999}\n')
    assert there() == place and [path.name for path in (place / "pictures").iterdir()] == ["1.png"]
    assert (place / "metrics.jsonl").read_text() == '{"images": 1999}\n'
    # Pictures never change: they are fetched once.
    spoiled = spoil(second, lambda _, route: False)
    before = spoiled.calls
    there()
    assert spoiled.calls - before == 3, "who wrote it, what there is, and the metrics"
    spoiled.fails = lambda _, route: True
    assert there() == place
    with pytest.raises(RunError, match="runs/run could not be fetched"):
        all_looked_at([second.runs / "run"])
    spoiled.fails = lambda _, route: False
    # Whoever writes reads its own.
    assert looking(run)() == run
    with exclusive(second.runs / "run"):
        assert there() == second.runs / "run" == all_looked_at([second.runs / "run"])[0]


def write_picture(run: Path, number: int) -> None:
    (run / "pictures").mkdir(exist_ok=True)
    (run / "pictures" / f"{number}.png").write_bytes(b"png" * number)


def test_a_run_is_trained_on_another_machine_than_its_command(
    first: Home, url: str, tmp_path: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = job_at(Home(tmp_path / "calm home"), tmp_path / "calm")
    assert train_held(calm) == "finished"
    job = job_at(first, tmp_path / "data")
    run = Path(job.folder)

    shown: list[int] = []

    def elsewhere(job: Job) -> None:
        told = json.loads(json.dumps(places.told(job.to_json(), run)))
        theirs = machine(url, tmp_path / "second", monkeypatch)
        moved = Job.from_json(places.here(told))
        assert Path(moved.folder) == theirs.runs / "run"
        with small_pretrained_nets():
            train_worker(moved, lambda _: None, CPU)
        machine(url, tmp_path / "first", monkeypatch)
        # Before the run is fetched, its bar and its records in MLflow have come as far as it has.
        total = round(1000 * job.experiment.training.kimg)
        until = time.monotonic() + PATIENCE_S
        while max(shown, default=0) < total or mirrored(tracker, "xmcgan") < total / 1000:
            assert time.monotonic() < until, shown
            time.sleep(0.05)
        assert whole_in(run) == [] and not (run / "metrics.jsonl").exists()
        pull(run, writing=True)

    monkeypatch.setattr(following, "LOOK_S", 0.01)
    last = train_part(tracker, job.experiment, job.prepared, run, lambda _, done, total: shown.append(done), elsewhere)
    assert last.parent == run / CHECKPOINTS and last.name == whole_in(Path(calm.folder))[-1]
    assert_alike(run, Path(calm.folder))
    third = machine(url, tmp_path / "third", monkeypatch)
    checkpoint, folder = find_checkpoint(third, "run")
    assert folder == third.runs / "run" and checkpoint.digest == open_checkpoint(last).digest
