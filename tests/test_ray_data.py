"""Preparing data on a real Ray cluster: tasks that die, pictures that are broken, and the same bytes as without it."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestration.cluster import ray_cluster
from orchestration.data.shard_tasks import ray_data_runner
from orchestration.data.shard_work import Unit, Work
from orchestration.data.shards import LeftOut, write_shards
from orchestration.errors import RequestError, RunError

from .prepared_support import contents, make_dataset, small_shards

pytestmark = pytest.mark.ray_cluster


def test_ray_data_writes_the_same_bytes_and_survives_its_workers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset, options = make_dataset(tmp_path / "published", 22), small_shards("attngan", "png")
    here = contents(write_shards(dataset, options, tmp_path / "here"))

    def disturbed(trouble: Callable[[Work, Unit], None]) -> Any:
        """A runner whose tasks get into trouble first."""

        class Disturbed:  # local, so that Ray sends its code along
            def __init__(self, work: Work) -> None:
                self.work, self.folder = work, work.folder

            def __call__(self, unit: Unit) -> Any:
                trouble(self.work, unit)
                return self.work(unit)

        def run(work: Work, units: Sequence[Unit], finished: Any) -> None:
            ray_data_runner(2)(Disturbed(work), units, finished)  # type: ignore[arg-type]

        return run

    def die_once(work: Work, unit: Unit) -> None:
        marker = work.folder.parent / "died"
        if unit.index == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def die(work: Work, unit: Unit) -> None:
        if unit.index == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    def fail(work: Work, unit: Unit) -> None:
        raise ArithmeticError("no such number\nand a second line")

    with ray_cluster(minimum_cpus=2):
        capfd.readouterr()
        steps: list[tuple[int, int]] = []
        plain = write_shards(
            dataset, options, tmp_path / "plain", progress=lambda *step: steps.append(step), parallel=ray_data_runner(2)
        )
        assert contents(plain) == here
        assert len(steps) == 6 and steps == sorted(steps) and steps[-1] == (22, 22)
        (plain / "shard-00002.arrow").unlink()
        assert contents(write_shards(dataset, options, plain, parallel=ray_data_runner(2))) == here
        assert capfd.readouterr() == ("", "")  # Ray says nothing of its own

        assert contents(write_shards(dataset, options, tmp_path / "once", parallel=disturbed(die_once))) == here
        assert (tmp_path / "died").exists()

        with pytest.raises(
            RunError, match=r"preparing .*always failed \(a task died 4 times, which a lack of memory can"
        ):
            write_shards(dataset, options, tmp_path / "always", parallel=disturbed(die))
        with pytest.raises(
            RunError, match=r"odd failed \(ArithmeticError: no such number\); run the same command again"
        ):
            write_shards(dataset, options, tmp_path / "odd", parallel=disturbed(fail))
        for folder in ("always", "odd"):  # what failed goes on
            assert contents(write_shards(dataset, options, tmp_path / folder, parallel=ray_data_runner())) == here

        dataset.records[9].file.unlink()
        with pytest.raises(
            RequestError, match=r"^picture .*009\.png is not there; put it there or remove its entry\.$"
        ):
            write_shards(dataset, options, tmp_path / "broken", parallel=ray_data_runner(2))
        left_out = LeftOut()
        skipped = contents(write_shards(dataset, options, tmp_path / "broken", left_out, parallel=ray_data_runner(2)))
        assert len(left_out.problems) == 1
    assert skipped == contents(write_shards(dataset, options, tmp_path / "alone", LeftOut()))
