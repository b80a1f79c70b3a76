"""A run that was cut off and goes on ends bit-equal to one that was not."""

import signal
import time
from pathlib import Path

import pytest
import torch

from models.registry import get_trainable, system_names
from orchestration.config import Experiment
from orchestration.errors import RequestError
from orchestration.evaluation.judging import Verdict
from orchestration.stages import file_sha256
from orchestration.training import worker
from orchestration.training.recorder import METRICS, PICTURES, Recorder, read_metrics
from orchestration.training.state import (
    MANIFEST,
    TEXT,
    UNFINISHED,
    checkpoint_folders,
    newest_checkpoint,
    open_checkpoint,
    restore,
    save_checkpoint,
)
from orchestration.training.worker import CHECKPOINTS, OUTCOME, Job, read_outcome, train_worker
from tests.contract.drill import said, start_drill
from tests.tiny import CPU, PROVENANCE, learns, tensors_of, tiny_experiment, tiny_job, tiny_trainer

PATIENCE_S = 120.0
ITERATIONS = 8


def short_run(name: str, **changes: object) -> Experiment:
    """`ITERATIONS` iterations, with a record and a checkpoint at every second; of what learns nothing there is none."""
    if not learns(name):
        return tiny_experiment(name, **(changes | {"training__kimg": 0}))
    per_iteration = tiny_trainer(tiny_experiment(name)).images_per_iteration / 1000
    lengths: dict[str, object] = {
        "training__kimg": ITERATIONS * per_iteration,
        "training__log_kimg": 2 * per_iteration,
        "training__checkpoint_kimg": 2 * per_iteration,
        "training__picture_kimg": 4 * per_iteration,
    }
    return tiny_experiment(name, **(lengths | changes))


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file in it. A checkpoint's manifest holds nothing that depends on when it was written."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): file_sha256(path) for path in files}


def recorded(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """What metrics.jsonl says, without clocks."""
    return [
        (line["images"], {name: value for name, value in line["metrics"].items() if not name.startswith("speed/")})
        for line in read_metrics(folder)
    ]


@pytest.mark.parametrize("cut_after", [1, 2])
def test_resumed_is_bit_equal(learning_name: str, cut_after: int, tmp_path: Path) -> None:
    """Nets, averages, optimizers and progress: three iterations, or some, a checkpoint, all thrown away, the rest."""
    # Where an average warms up, the number of its steps has to come back as well.
    warms_up = "average" in get_trainable(learning_name).Config.model_fields
    experiment = tiny_experiment(learning_name, **({"model__average__warm_up": True} if warms_up else {}))
    undisturbed = tiny_trainer(experiment)
    for _ in range(3):
        undisturbed.iteration()

    first_part = tiny_trainer(experiment)
    for _ in range(cut_after):
        first_part.iteration()
    folder = save_checkpoint(first_part.state, experiment, PROVENANCE, tmp_path)
    del first_part
    torch.manual_seed(987)

    second_part = tiny_trainer(experiment)
    restore(open_checkpoint(folder), second_part.state)
    for _ in range(3 - cut_after):
        second_part.iteration()

    wanted, found = tensors_of(undisturbed), tensors_of(second_part)
    assert wanted.keys() == found.keys()
    assert [name for name, value in wanted.items() if not value.equal(found[name])] == []
    assert second_part.state.images_seen == undisturbed.state.images_seen
    assert second_part.state.averaged == undisturbed.state.averaged


def test_killed_twice_ends_as_if_nothing_happened(learning_name: str, tmp_path: Path) -> None:
    """SIGKILL between two checkpoints, SIGKILL in the middle of writing one, then to the end."""
    experiment = short_run(learning_name)
    job = tiny_job(tmp_path / "killed", experiment)
    run = Path(job.folder)

    process = start_drill(job, tmp_path, linger_s=PATIENCE_S)
    try:
        calm_job = tiny_job(tmp_path / "calm", experiment)
        outcome = train_worker(calm_job, lambda _: None, CPU)
        assert outcome.status == "finished"
        calm = Path(calm_job.folder)

        deadline = time.monotonic() + PATIENCE_S
        while not checkpoint_folders(run / CHECKPOINTS):
            assert process.is_alive(), said(tmp_path)
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert read_outcome(run) is None
    first = newest_checkpoint(run / CHECKPOINTS)
    assert first is not None and first.images_seen == outcome.images_seen / 4
    text = job.prepared.text
    assert hashes(first.folder / TEXT) == (hashes(Path(text)) if text else {})

    # Its first checkpoint is written whole; of the second the first file is not.
    tensors = len(list(first.folder.glob("*.safetensors")))
    process = start_drill(job, tmp_path, dies_writing=tensors + 1)
    try:
        process.join(PATIENCE_S)
        assert process.exitcode == -signal.SIGKILL, said(tmp_path)
    finally:
        process.kill()
        process.join()
    assert read_outcome(run) is None
    second = newest_checkpoint(run / CHECKPOINTS)
    assert second is not None and second.images_seen == outcome.images_seen / 2
    assert list((run / CHECKPOINTS).glob(f"{UNFINISHED}*"))
    # What it had recorded after that checkpoint is forgotten and comes again.
    assert recorded(run)[-1][0] > second.images_seen

    assert train_worker(job, lambda _: None, CPU) == outcome
    assert [path.name for path in checkpoint_folders(run / CHECKPOINTS)] == [
        path.name for path in checkpoint_folders(calm / CHECKPOINTS)
    ]
    for ours, theirs in zip(checkpoint_folders(run / CHECKPOINTS), checkpoint_folders(calm / CHECKPOINTS), strict=True):
        assert hashes(ours) == hashes(theirs)
    assert recorded(run) == recorded(calm)
    points = [images for images, metrics in recorded(run) if "finished" not in metrics]
    assert points == sorted(set(points)) and len(points) == ITERATIONS / 2
    assert not list((run / CHECKPOINTS).glob(f"{UNFINISHED}*"))
    assert hashes(run / PICTURES) == hashes(calm / PICTURES)
    assert bool(hashes(run / PICTURES)) == (learning_name in system_names())


def test_a_finished_run_that_is_run_again_adds_nothing(trainable_name: str, tmp_path: Path) -> None:
    job = tiny_job(tmp_path, short_run(trainable_name))
    told: list[float] = []
    first = train_worker(job, lambda figures: told.append(figures["kimg"]), CPU)
    run = Path(job.folder)
    before = (run / METRICS).read_bytes(), hashes(newest(run))
    told.clear()
    # As if it was killed between its last record and its outcome: every worker must report, or Ray would wait.
    (run / OUTCOME).unlink()
    assert train_worker(job, lambda figures: told.append(figures["kimg"]), CPU) == first
    assert ((run / METRICS).read_bytes(), hashes(newest(run))) == before
    assert told == [job.experiment.training.kimg]


def newest(run: Path) -> Path:
    found = newest_checkpoint(run / CHECKPOINTS)
    assert found is not None
    return found.folder


class FixedJudge:
    """Stands in for the judge of a system or part; counts its verdicts."""

    verdicts = 0

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, nets: object) -> Verdict:
        FixedJudge.verdicts += 1
        return Verdict("fixed", {"fid/fixed": float(FixedJudge.verdicts)}, 2)


def test_killed_at_the_very_end_it_judges_once(
    trainable_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off between the last checkpoint and the word "finished": the verdict is there once."""
    monkeypatch.setattr(worker, "make_judge", FixedJudge)
    monkeypatch.setattr(FixedJudge, "verdicts", 0)
    job = tiny_job(tmp_path, short_run(trainable_name), protocol="fixed")
    record = Recorder.metrics

    def cut_off(self: Recorder, images_seen: int, values: dict[str, float]) -> None:
        if "finished" in values:
            raise KeyboardInterrupt
        record(self, images_seen, values)

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "metrics", cut_off)
        with pytest.raises(KeyboardInterrupt):
            train_worker(job, lambda _: None, CPU)
    train_worker(job, lambda _: None, CPU)
    lines = recorded(Path(job.folder))
    assert [metrics for _, metrics in lines if "validation/fid/fixed" in metrics] == [{"validation/fid/fixed": 1.0}]
    assert lines[-1] == (round(job.experiment.training.kimg * 1000), {"finished": 1.0})


def test_the_last_checkpoint_is_there_at_every_moment_of_the_end(
    learning_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a run never takes away the checkpoint that is all there is, not even to write it anew."""
    job = tiny_job(tmp_path, short_run(learning_name, training__keep_checkpoints=1))
    at_the_end: list[int] = []
    finish = worker.Session.finish

    def watched(self: worker.Session) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(worker, "save_checkpoint", lambda *_: at_the_end.append(1))
            finish(self)

    monkeypatch.setattr(worker.Session, "finish", watched)
    train_worker(job, lambda _: None, CPU)
    assert at_the_end == []
    found = open_checkpoint(newest(Path(job.folder)))
    assert found.images_seen == round(job.experiment.training.kimg * 1000)


def test_other_data_is_refused(trainable_name: str, tmp_path: Path) -> None:
    job = tiny_job(tmp_path, short_run(trainable_name, training__kimg=0.032))
    train_worker(job, lambda _: None, CPU)
    values = job.to_json()
    values["prepared"]["provenance"]["data_digest"] = "f" * 64
    with pytest.raises(RequestError, match="trained with another data") as refusal:
        train_worker(Job.from_json(values), lambda _: None, CPU)
    assert "\n" not in str(refusal.value)


def test_a_damaged_newest_checkpoint_costs_only_what_came_after_the_one_before(
    trainable_name: str, tmp_path: Path
) -> None:
    job = tiny_job(tmp_path, short_run(trainable_name))
    train_worker(job, lambda _: None, CPU)
    run = Path(job.folder)
    before = hashes(newest(run))
    damaged = newest(run) / MANIFEST
    damaged.write_bytes(damaged.read_bytes()[:-20])
    (run / OUTCOME).unlink()
    train_worker(job, lambda _: None, CPU)
    assert hashes(newest(run)) == before
    points = [images for images, _ in recorded(run)]
    assert points == sorted(points)
