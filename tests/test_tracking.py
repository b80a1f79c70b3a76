"""The mirror in MLflow: every point once whatever happens to the files, one run per key, checkpoints by digest."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestration.errors import RequestError, RunError
from orchestration.tracking import Mirror, Tracker, flatten

from .mlflow_support import client_of, history, line, losses, tags_of, write_points

NESTED_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


# --- parameters ---


def test_flatten_dots_nested_names_and_keeps_strings_as_they_are() -> None:
    values = {"model": {"k": 3, "rate": 2e-4, "name": "x"}, "flip": True, "none": None, "list": [1, "a"], "empty": {}}
    assert flatten(values) == {
        "model.k": "3",
        "model.rate": "0.0002",
        "model.name": "x",
        "flip": "true",
        "none": "null",
        "list": '[1, "a"]',
        "empty": "{}",
    }


def test_flatten_tells_names_apart_that_would_become_one() -> None:
    flat = flatten({"a.b": 1, "a": {"b": 2}, "c?": 3, "c!": 4})
    assert sorted(flat.values()) == ["1", "2", "3", "4"]
    assert flat["a.b"] == "1" and flat["c_"] == "3"


def test_flatten_cuts_long_values_but_keeps_them_different() -> None:
    flat = flatten({"a": "x" * 7000 + "1", "b": "x" * 7000 + "2"})
    assert max(map(len, flat.values())) <= 6000
    assert flat["a"] != flat["b"]


@given(values=st.dictionaries(st.text(max_size=300), NESTED_JSON, max_size=5))
@settings(deadline=None, max_examples=60)
def test_mlflow_accepts_whatever_flatten_gives(values: dict[str, Any]) -> None:
    from mlflow.utils.validation import _validate_param

    flat = flatten(values)
    for name, value in flat.items():
        accepted = _validate_param(name, value)
        assert (accepted.key, accepted.value) == (name, value)
        value.encode()


def test_a_run_takes_hundreds_of_long_parameters(tracker: Tracker) -> None:
    params = {f"p{index}": "é" * 6000 for index in range(230)}
    run_id = tracker.start_run("e", "n", "k", params)
    assert client_of(tracker).get_run(run_id).data.params == params


# --- runs ---


def test_a_key_has_one_run_which_is_continued(tracker: Tracker) -> None:
    first = tracker.start_run("e", "n", "k", {"a": 1}, {"recipe": "r"})
    tracker.finish(first, "FAILED", "the disk was full")
    [summary] = tracker.run_summaries("e")
    assert (summary.status, summary.tags["t2i.reason"]) == ("FAILED", "the disk was full")

    again = Tracker(tracker.home).start_run("e", "n", "k", {"a": 1}, {"recipe": "r2"})
    [summary] = tracker.run_summaries("e")
    assert again == first == summary.run_id
    assert (summary.status, summary.key, summary.name, summary.params) == ("RUNNING", "k", "n", {"a": "1"})
    assert summary.tags["recipe"] == "r2"
    assert "t2i.reason" not in summary.tags

    assert tracker.start_run("e", "n", "k2", {}) != first
    assert tracker.start_run("other", "n", "k", {}) != first


def test_a_key_started_many_times_at_once_has_one_run(tracker: Tracker) -> None:
    def start(_: int) -> str:
        return Tracker(tracker.home).start_run("e", "n", "k", {"a": 1})

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(start, range(8)))) == 1
    assert len(tracker.run_summaries("e")) == 1


def test_a_double_that_a_repeated_request_made_is_removed(tracker: Tracker) -> None:
    first = tracker.start_run("e", "n", "k", {})
    client = client_of(tracker)
    client.create_run(client.get_run(first).info.experiment_id, tags={"t2i.key": "k"})
    assert len(tracker.run_summaries("e")) == 2
    assert tracker.start_run("e", "n", "k", {}) == first
    assert [run.run_id for run in tracker.run_summaries("e")] == [first]


def test_keys_may_hold_one_kind_of_quotes(tracker: Tracker) -> None:
    for key in ["it's", 'a "b"']:
        assert tracker.start_run("e", "n", key, {}) == tracker.start_run("e", "n", key, {})
    with pytest.raises(RequestError, match="both kinds of quotes"):
        tracker.start_run("e", "n", "'\"", {})


def test_a_trial_is_shown_under_its_parent(tracker: Tracker) -> None:
    parent = tracker.start_run("e", "campaign", "c", {})
    child = tracker.start_run("e", "trial", "c/0", {}, parent=parent)
    assert {run.run_id: run.parent for run in tracker.run_summaries("e")} == {parent: None, child: parent}


def test_a_changed_parameter_becomes_a_tag_and_never_an_error(tracker: Tracker) -> None:
    run_id = tracker.start_run("e", "n", "k", {"training": {"rate": 1}})
    tracker.start_run("e", "n", "k", {"training": {"rate": 2}, "new": 5})
    [summary] = tracker.run_summaries("e")
    assert summary.params == {"training.rate": "1", "new": "5"}
    assert summary.tags["t2i.changed.training.rate"] == "2"
    tracker.start_run("e", "n", "k", {"training": {"rate": 1}})
    assert "t2i.changed.training.rate" not in tags_of(tracker, run_id)


def test_a_deleted_experiment_is_refused(tracker: Tracker) -> None:
    tracker.start_run("e", "n", "k", {})
    client_of(tracker).delete_experiment(client_of(tracker).get_experiment_by_name("e").experiment_id)
    with pytest.raises(RequestError, match="deleted"):
        tracker.start_run("e", "n", "k", {})


def test_artifacts_stay_under_home(tracker: Tracker, tmp_path: Path) -> None:
    run_id = tracker.start_run("an/odd ü name", "n", "k", {})
    (tmp_path / "file.txt").write_text("x")
    tracker.log_artifact(run_id, tmp_path / "file.txt", "notes")
    [found] = (tracker.home / "mlartifacts").rglob("file.txt")
    assert found.parent.name == "notes"
    with pytest.raises(RequestError, match=r"no .*absent"):
        tracker.log_artifact(run_id, tmp_path / "absent")


def test_log_metrics_and_tags_can_be_repeated(tracker: Tracker) -> None:
    run_id = tracker.start_run("e", "n", "k", {})
    for _ in range(2):
        tracker.log_metrics(run_id, {"fid/inception-2015": 30.5, "bad": float("nan")}, images=2000)
        tracker.log_tags(run_id, {"note": "x" * 9000})
    tracker.log_metrics(run_id, {"fid/inception-2015": 30.0}, images=2000)
    assert sorted(history(tracker, run_id, "fid/inception-2015")) == [(2000, 30.0), (2000, 30.5)]
    assert "bad" not in tracker.run_summaries("e")[0].metrics
    assert tags_of(tracker, run_id)["note"].startswith("xxx")


def test_an_unknown_run_is_refused_with_a_sentence(tracker: Tracker) -> None:
    with pytest.raises(RequestError, match=r"refused setting tags.*not found"):
        tracker.log_tags("0" * 32, {"a": "b"})


# --- the mirror ---


def test_the_mirror_sends_every_point_once(tracker: Tracker, tmp_path: Path) -> None:
    run_id = tracker.start_run("e", "n", "k", {})
    assert tracker.mirror(run_id, tmp_path) == 0
    write_points(tmp_path, range(0, 5000, 1000))
    assert tracker.mirror(run_id, tmp_path) == 5
    assert tracker.mirror(run_id, tmp_path) == 0
    assert Tracker(tracker.home).mirror(run_id, tmp_path) == 0
    assert history(tracker, run_id, "loss") == losses(range(0, 5000, 1000))
    assert history(tracker, run_id, "kimg") == [(images, images / 1000) for images in range(0, 5000, 1000)]
    assert tags_of(tracker, run_id)["t2i.mirrored_images"] == "4000"
    assert client_of(tracker).get_metric_history(run_id, "loss")[1].timestamp == 1_700_001_000_000


def test_more_than_one_request_of_metrics(tracker: Tracker, tmp_path: Path) -> None:
    run_id = tracker.start_run("e", "n", "k", {})
    wide = {f"m{index}": 1.0 for index in range(1500)}
    data = line(1, **wide) + b"".join(line(images, a=1.0, b=2.0) for images in range(2, 800))
    (tmp_path / "metrics.jsonl").write_bytes(data)
    assert tracker.mirror(run_id, tmp_path) == 799
    assert [step for step, _ in history(tracker, run_id, "b")] == list(range(2, 800))
    assert history(tracker, run_id, "m1499") == [(1, 1.0)]
    assert Tracker(tracker.home).mirror(run_id, tmp_path) == 0


@pytest.mark.parametrize("resumed_tracker", [False, True])
def test_a_replay_after_a_crash_is_not_sent_again(tracker: Tracker, tmp_path: Path, resumed_tracker: bool) -> None:
    run_id = tracker.start_run("e", "n", "k", {})
    write_points(tmp_path, range(1, 8))
    tracker.mirror(run_id, tmp_path)
    # The trainer goes back to a checkpoint at 4, and is at 6 when the next mirror looks.
    resumed = Tracker(tracker.home) if resumed_tracker else tracker
    data = write_points(tmp_path, range(1, 5)) + b"".join(line(images, 0.5, loss=-1.0) for images in (5, 6))
    (tmp_path / "metrics.jsonl").write_bytes(data)
    assert resumed.mirror(run_id, tmp_path) == 0
    data += line(7, 0.5, loss=-1.0) + line(8, 0.5, loss=8.0) + line(9, 0.5, loss=9.0)
    (tmp_path / "metrics.jsonl").write_bytes(data)
    assert resumed.mirror(run_id, tmp_path) == 2
    assert history(tracker, run_id, "loss") == losses(range(1, 10))


def test_a_replay_that_regrows_past_the_old_end_is_read_from_its_start(tracker: Tracker, tmp_path: Path) -> None:
    """The old end lies inside a line that is new: reading on from there would lose it."""
    run_id = tracker.start_run("e", "n", "k", {})
    old = write_points(tmp_path, range(1, 4)) + line(4, loss=4.0, only_the_first_time=1.0)
    (tmp_path / "metrics.jsonl").write_bytes(old)
    tracker.mirror(run_id, tmp_path)
    data = write_points(tmp_path, range(1, 6), at=0.5)
    assert len(data) - len(line(5, 0.5, loss=5.0)) < len(old) < len(data)
    tracker.mirror(run_id, tmp_path)
    assert history(tracker, run_id, "loss") == losses(range(1, 6))


def test_a_mirror_with_nothing_new_makes_no_request(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = tracker.start_run("e", "n", "k", {})
    write_points(tmp_path, range(1, 4))
    (tmp_path / "experiment.json").write_text("{}")
    tracker.mirror(run_id, tmp_path)
    monkeypatch.setattr(tracker, "_talk", None)
    assert tracker.mirror(run_id, tmp_path) == 0


def test_points_survive_a_crash_between_the_metrics_and_their_mark(tracker: Tracker, tmp_path: Path) -> None:
    run_id = tracker.start_run("e", "n", "k", {})
    write_points(tmp_path, range(1, 4))
    tracker.mirror(run_id, tmp_path)
    client_of(tracker).set_tag(run_id, "t2i.mirrored_images", "1")
    write_points(tmp_path, range(1, 5), at=0.5)
    assert Tracker(tracker.home).mirror(run_id, tmp_path) == 1
    assert history(tracker, run_id, "loss") == losses(range(1, 5))


def test_a_late_line_of_the_last_point_is_not_lost(tracker: Tracker, tmp_path: Path) -> None:
    """Losses and an evaluation may be two lines with the same images."""
    run_id = tracker.start_run("e", "n", "k", {})
    data = line(1000, loss=1.0) + line(2000, loss=2.0)
    for more, pushed in [(b"", 2), (line(2000, 5.0, fid=30.0), 1), (line(3000, loss=3.0) + line(3000, fid=29.0), 2)]:
        data += more
        (tmp_path / "metrics.jsonl").write_bytes(data)
        assert tracker.mirror(run_id, tmp_path) == pushed
        assert Tracker(tracker.home).mirror(run_id, tmp_path) == 0
    assert history(tracker, run_id, "fid") == [(2000, 30.0), (3000, 29.0)]
    assert history(tracker, run_id, "loss") == [(1000, 1.0), (2000, 2.0), (3000, 3.0)]
    assert history(tracker, run_id, "kimg") == [(1000, 1.0), (2000, 2.0), (3000, 3.0)]


def test_values_that_are_not_finite_are_left_out_and_counted(tracker: Tracker, tmp_path: Path) -> None:
    run_id = tracker.start_run("e", "n", "k", {})
    data = line(1, a=float("nan"), b=float("inf"), c=1.0) + line(2, a=2.0, b=None)
    (tmp_path / "metrics.jsonl").write_bytes(data)
    assert tracker.mirror(run_id, tmp_path) == 2
    (tmp_path / "metrics.jsonl").write_bytes(data + line(3, a=float("-inf")))
    assert tracker.mirror(run_id, tmp_path) == 1
    assert Tracker(tracker.home).mirror(run_id, tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_bytes(data + line(3, a=float("-inf")) + line(3, c=3.0, d=None))
    assert tracker.mirror(run_id, tmp_path) == 1
    assert history(tracker, run_id, "a") == [(2, 2.0)]
    assert tags_of(tracker, run_id)["t2i.nonfinite_values"] == "5"


@pytest.mark.parametrize(
    "bad",
    [
        b"{]",
        b"\x00" * 20,
        b"[1]",
        b'{"images": 2}',
        b'{"images": -2, "time": 1, "metrics": {}}',
        b'{"images": 2, "time": NaN, "metrics": {"a": 1}}',
        b'{"images": 1e400, "time": 1, "metrics": {"a": 1}}',
        b'{"images": 2, "time": 1, "metrics": {"a": "word"}}',
        b'{"images": 2, "time": 1, "metrics": [1]}',
    ],
)
def test_a_line_that_is_no_point_stops_nothing(shared_tracker: Tracker, tmp_path: Path, bad: bytes) -> None:
    run_id = shared_tracker.start_run("bad lines", "n", repr(bad).replace("'", ""), {})
    (tmp_path / "metrics.jsonl").write_bytes(line(1, loss=1.0) + bad + b"\n" + line(3, loss=3.0))
    assert shared_tracker.mirror(run_id, tmp_path) == 2
    assert history(shared_tracker, run_id, "loss") == [(1, 1.0), (3, 3.0)]


def test_odd_metric_names_are_sent_under_names_mlflow_accepts(tracker: Tracker, tmp_path: Path) -> None:
    run_id = tracker.start_run("e", "n", "k", {})
    names = ["r_precision/batch-100", "a//b", "../x", "é", "x?", "", "n" * 400, "kimg"]
    (tmp_path / "metrics.jsonl").write_bytes(line(1, **dict.fromkeys(names, 7.0)))
    assert tracker.mirror(run_id, tmp_path) == 1
    [summary] = tracker.run_summaries("e")
    assert len(summary.metrics) == len(names)
    assert summary.metrics["r_precision/batch-100"] == 7.0
    assert summary.metrics["kimg"] == 0.001


STEPS = [1, 2, 10, 500, 12000]
WHOLE = b"".join(line(images, loss=float(images), name=1.0) for images in STEPS)
EXAMPLES = iter(range(10**6))


@given(cuts=st.lists(st.integers(0, len(WHOLE)), min_size=1, max_size=3), restart=st.booleans())
@example(cuts=[len(WHOLE) - 1], restart=False)
@example(cuts=[len(line(1, loss=1.0, name=1.0))], restart=True)
@settings(deadline=None, max_examples=25)
def test_a_file_cut_anywhere_is_mirrored_in_order_once(
    shared_tracker: Tracker, tmp_path_factory: pytest.TempPathFactory, cuts: list[int], restart: bool
) -> None:
    """The cuts come in any order, so the file grows and shrinks before it is whole."""
    folder = tmp_path_factory.mktemp("cut")
    run_id = shared_tracker.start_run("cuts", "n", f"example {next(EXAMPLES)}", {})
    tracker, pushed = shared_tracker, 0
    for cut in [*cuts, len(WHOLE), len(WHOLE)]:
        (folder / "metrics.jsonl").write_bytes(WHOLE[:cut])
        pushed += tracker.mirror(run_id, folder)
        if restart:
            tracker = Tracker(shared_tracker.home)
    assert pushed == len(STEPS)
    assert history(shared_tracker, run_id, "loss") == losses(STEPS)
    assert history(shared_tracker, run_id, "kimg") == [(images, images / 1000) for images in STEPS]


def test_pictures_and_the_experiment_are_uploaded_once(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    uploads: list[str] = []
    log_artifact = MlflowClient.log_artifact

    def counting(self: Any, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        uploads.append(f"{artifact_path or ''}/{Path(local_path).name}")
        log_artifact(self, run_id, local_path, artifact_path)

    monkeypatch.setattr(MlflowClient, "log_artifact", counting)
    run_id = tracker.start_run("e", "n", "k", {})
    (tmp_path / "pictures").mkdir()
    for name in ["kimg-000000.000.png", "kimg-000001.000.png", ".half.png", "kimg-000002.000.png.tmp"]:
        (tmp_path / "pictures" / name).write_bytes(b"png")
    (tmp_path / "experiment.json").write_text("{}")
    for _ in range(2):
        tracker.mirror(run_id, tmp_path)
    Tracker(tracker.home).mirror(run_id, tmp_path)
    (tmp_path / "pictures" / "kimg-000002.000.png").write_bytes(b"png")
    tracker.mirror(run_id, tmp_path)
    assert uploads == [
        "/experiment.json",
        "pictures/kimg-000000.000.png",
        "pictures/kimg-000001.000.png",
        "pictures/kimg-000002.000.png",
    ]
    listed = client_of(tracker).list_artifacts(run_id, "pictures")
    assert [each.path for each in listed] == uploads[1:]


# --- the thread ---


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.01)


def test_the_mirror_thread_follows_a_run(tracker: Tracker, tmp_path: Path) -> None:
    run_id = tracker.start_run("e", "n", "k", {})
    with Mirror(tracker, run_id, tmp_path, every_s=0.02) as mirror:
        write_points(tmp_path, range(1, 4))
        wait_until(lambda: mirror.pushed == 3)
        write_points(tmp_path, range(1, 7))
    assert (mirror.error, mirror.pushed) == (None, 6)
    assert history(tracker, run_id, "loss") == losses(range(1, 7))


@pytest.fixture
def reconnecting(tracker: Tracker, closed_uri: str) -> Iterator[Any]:
    """A tracker whose server is away until `back` is called."""

    class Away(Tracker):
        def back(self) -> None:
            self._uri = tracker.uri

    yield Away(tracker.home, closed_uri)


def test_the_mirror_thread_outlives_a_tracker_that_is_away(
    tracker: Tracker, reconnecting: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = tracker.start_run("e", "n", "k", {})
    write_points(tmp_path, range(1, 4))
    with caplog.at_level(logging.INFO), Mirror(reconnecting, run_id, tmp_path, every_s=0.01) as mirror:
        wait_until(lambda: mirror.error is not None)
        time.sleep(0.2)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "cannot be reached" in caplog.text
        write_points(tmp_path, range(1, 6))
        reconnecting.back()
        wait_until(lambda: mirror.pushed == 5)
    assert mirror.error is None
    assert "caught up" in caplog.text
    assert history(tracker, run_id, "loss") == losses(range(1, 6))


def test_the_mirror_thread_neither_raises_nor_hides_what_the_body_raises(
    tmp_path: Path, closed_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(tmp_path, closed_uri)
    write_points(tmp_path, [1])
    with Mirror(tracker, "0" * 32, tmp_path) as mirror:
        pass
    assert isinstance(mirror.error, RunError)
    with pytest.raises(ZeroDivisionError), Mirror(tracker, "0" * 32, tmp_path):
        raise ZeroDivisionError
    # A later mirror makes up for it, also when training itself has ended.
    assert len(caplog.records) == 2


def test_the_end_of_a_run_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(tmp_path)
    monkeypatch.setattr(tracker, "mirror", lambda *_: time.sleep(0.5))
    monkeypatch.setattr(Mirror, "PATIENCE_S", 0.05)
    with Mirror(tracker, "0" * 32, tmp_path) as mirror:
        pass
    assert isinstance(mirror.error, TimeoutError) and "does not answer" in caplog.text
