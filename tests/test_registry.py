"""The model registry, and MLflow servers that are not there."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from orchestration.errors import RequestError, RunError
from orchestration.registry import ModelVersion
from orchestration.tracking import Tracker

from .mlflow_support import write_points

# --- the registry ---


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints" / "kimg-000012.000"
    (folder / "nets").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "nets" / "generator.safetensors").write_bytes(b"weights")
    return folder


def test_a_checkpoint_is_registered_once_per_digest(tracker: Tracker, checkpoint: Path) -> None:
    run_id = tracker.start_run("e", "n", "k", {})
    tags = {"checkpoint_digest": "a" * 64, "data_digest": "d"}
    assert tracker.versions("attngan") == []
    assert tracker.register("attngan", run_id, checkpoint, tags) == 1
    assert tracker.register("attngan", run_id, checkpoint, tags) == 1
    assert tracker.register("mirrorgan", run_id, checkpoint, tags) == 1

    (checkpoint / "nets" / "generator.safetensors").write_bytes(b"later weights")
    assert tracker.register("attngan", run_id, checkpoint, {"checkpoint_digest": "b" * 64}) == 2
    first, second = tracker.versions("attngan")
    assert (first.model, first.version, first.run_id) == ("attngan", 1, run_id)
    assert first.tags["checkpoint_digest"] == "a" * 64 and first.tags["data_digest"] == "d"
    # What a version names does not change when its run registers another checkpoint.
    for version, weights in [(first, b"weights"), (second, b"later weights")]:
        assert (tracker.fetch(version, checkpoint) / "nets" / "generator.safetensors").read_bytes() == weights


def test_a_digest_is_computed_when_none_is_given(tracker: Tracker, checkpoint: Path) -> None:
    run_id = tracker.start_run("e", "n", "k", {})
    versions = [tracker.register("m", run_id, checkpoint, {}) for _ in range(2)]
    (checkpoint / "manifest.json").write_text("{ }")
    assert [*versions, tracker.register("m", run_id, checkpoint, {})] == [1, 1, 2]


def test_only_a_checkpoint_folder_can_be_registered(tracker: Tracker, tmp_path: Path, checkpoint: Path) -> None:
    run_id = tracker.start_run("e", "n", "k", {})
    (tmp_path / "empty").mkdir()
    for folder in [tmp_path / "absent", tmp_path / "empty"]:
        with pytest.raises(RequestError, match="no checkpoint"):
            tracker.register("m", run_id, folder, {})
    with pytest.raises(RequestError, match="refused registering"):
        tracker.register("a/b:c", run_id, checkpoint, {})


def test_the_champion_moves_and_remembers_who_it_was(tracker: Tracker, checkpoint: Path) -> None:
    run_id = tracker.start_run("e", "n", "k", {})
    assert tracker.champion("m") is None
    for digest in ("1", "2"):
        tracker.register("m", run_id, checkpoint, {"checkpoint_digest": digest})
    assert tracker.champion("m") is None and tracker.champions() == {}
    tracker.register("without one", run_id, checkpoint, {})
    tracker.set_champion("m", 1)
    champion = tracker.champion("m")
    assert champion is not None and champion.version == 1 and tracker.champions() == {"m": champion}
    assert "t2i.previous_champion" not in champion.tags
    tracker.set_champion("m", 2)
    tracker.set_champion("m", 2)
    champion = tracker.champion("m")
    assert champion is not None and champion.version == 2
    assert champion.tags["t2i.previous_champion"] == "1"
    with pytest.raises(RequestError, match=r"no version 7 .* 1, 2"):
        tracker.set_champion("m", 7)
    with pytest.raises(RequestError, match="none is registered"):
        tracker.set_champion("unknown", 1)


def test_fetch_gives_the_local_folder_wherever_the_home_moved(
    tracker: Tracker, checkpoint: Path, tmp_path: Path
) -> None:
    run_id = tracker.start_run("e", "n", "k", {})
    tracker.register("m", run_id, checkpoint, {})
    [version] = tracker.versions("m")
    folder = tracker.fetch(version, tmp_path / "unused")
    assert tracker.home in folder.parents and not (tmp_path / "unused").exists()
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "manifest.json",
        "nets/generator.safetensors",
    }
    tracker.home.rename(tmp_path / "moved")
    moved = Tracker(tmp_path / "moved")
    [version] = moved.versions("m")
    assert moved.home in moved.fetch(version, tmp_path / "unused").parents
    shutil.rmtree(moved.home / "mlartifacts")
    with pytest.raises(RunError, match=r"not at .* any more"):
        moved.fetch(version, tmp_path / "unused")


def test_fetch_downloads_what_is_not_local_once(tracker: Tracker, checkpoint: Path, tmp_path: Path) -> None:
    """The version names a remote source; the run's artifacts stand in for the remote store."""
    run_id = tracker.start_run("e", "n", "k", {})
    tracker.register("m", run_id, checkpoint, {"checkpoint_digest": "c" * 64})
    [local] = tracker.versions("m")
    version = ModelVersion("m", 1, run_id, local.tags, "mlflow-artifacts:/1/run/artifacts/checkpoint")
    folder = tracker.fetch(version, tmp_path / "cache")
    assert folder == tmp_path / "cache" / ("c" * 16)
    assert (folder / "nets" / "generator.safetensors").read_bytes() == b"weights"
    assert [path.name for path in folder.parent.iterdir()] == ["c" * 16]
    shutil.rmtree(tracker.home / "mlartifacts")
    assert tracker.fetch(version, tmp_path / "cache") == folder
    with pytest.raises(RunError, match=r"not at .* any more"):
        tracker.fetch(version, tmp_path / "another")


# --- servers that are not there ---


@pytest.mark.parametrize(
    "uri",
    [
        "mlruns",
        "file:///tmp/mlruns",
        "ftp://host",
        "http://",
        "http://host:port",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///50%.db",
    ],
)
def test_a_bad_uri_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(RequestError, match="tracking URI"):
        Tracker(tmp_path, uri)


def test_the_default_uri_does_not_depend_on_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Tracker(Path("home")).uri == f"sqlite:///{tmp_path}/home/mlflow.db"
    assert Tracker(Path("home"), "sqlite:///other.db").uri == f"sqlite:///{tmp_path}/other.db"
    assert not (tmp_path / "home").exists()


def test_an_unreachable_server_fails_fast_with_a_sentence(tmp_path: Path, closed_uri: str) -> None:
    secret = closed_uri.replace("//", "//me:word@")
    tracker = Tracker(tmp_path / "home", secret)
    write_points(tmp_path, [1])
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "kimg-000000.000.png").write_bytes(b"png")
    version = ModelVersion("m", 1, "0" * 32, {}, "mlflow-artifacts:/1")
    calls: list[Any] = [
        lambda: tracker.start_run("e", "n", "k", {}),
        lambda: tracker.mirror("0" * 32, tmp_path),
        lambda: tracker.finish("0" * 32, "FINISHED"),
        lambda: tracker.log_metrics("0" * 32, {"a": 1.0}, 1),
        lambda: tracker.log_tags("0" * 32, {"a": "b"}),
        lambda: tracker.log_artifact("0" * 32, tmp_path / "metrics.jsonl"),
        lambda: tracker.run_summaries("e"),
        lambda: tracker.register("m", "0" * 32, tmp_path, {}),
        lambda: tracker.set_champion("m", 1),
        lambda: tracker.champion("m"),
        lambda: tracker.champions(),
        lambda: tracker.fetch(version, tmp_path / "cache"),
    ]
    begun = time.monotonic()
    for call in calls:
        with pytest.raises(RunError, match=r"cannot be reached.*refused.*start the server") as raised:
            call()
        assert "word" not in str(raised.value) and "127.0.0.1" in str(raised.value)
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_database_fails_fast_with_a_sentence(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "mlflow.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    else:
        (tmp_path / "mlflow.db").mkdir()
    begun = time.monotonic()
    with pytest.raises(RunError, match=r"cannot be reached \((file is not a database|unable to open).*folder that can"):
        Tracker(tmp_path).run_summaries("e")
    assert time.monotonic() - begun < 3
