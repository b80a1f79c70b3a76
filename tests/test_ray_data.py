"""Work over data on a real Ray cluster: what dies, what is broken, and the same bytes as without it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.contract import TextFeatures
from models.encoders.text import TextEncoder, TextEncoderSettings
from orchestration import mapping
from orchestration.cluster import ray_cluster
from orchestration.data import features
from orchestration.data.features import CaptionIndex, write_caption_features
from orchestration.data.shard_tasks import ray_data_runner
from orchestration.data.shard_work import Unit, Work
from orchestration.data.shards import LeftOut, write_shards
from orchestration.errors import RequestError, RunError
from orchestration.mapping import read_block
from orchestration.stages import quiet

from .prepared_support import contents, make_dataset, small_shards
from .tiny_inputs import tiny_vocabulary, write_tiny_bert

pytestmark = pytest.mark.ray_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster(minimum_cpus=2) as ray:
        yield ray


def test_ray_data_writes_the_same_bytes_and_survives_its_workers(
    cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
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

    with pytest.raises(RunError, match=r"preparing .*always failed \(a task died 4 times, which a lack of memory can"):
        write_shards(dataset, options, tmp_path / "always", parallel=disturbed(die))
    with pytest.raises(RunError, match=r"odd failed \(ArithmeticError: no such number\); run the same command again"):
        write_shards(dataset, options, tmp_path / "odd", parallel=disturbed(fail))
    for folder in ("always", "odd"):  # what failed goes on
        assert contents(write_shards(dataset, options, tmp_path / folder, parallel=ray_data_runner())) == here

    dataset.records[9].file.unlink()
    with pytest.raises(RequestError, match=r"^picture .*009\.png is not there; put it there or remove its entry\.$"):
        write_shards(dataset, options, tmp_path / "broken", parallel=ray_data_runner(2))
    left_out = LeftOut()
    skipped = contents(write_shards(dataset, options, tmp_path / "broken", left_out, parallel=ray_data_runner(2)))
    assert len(left_out.problems) == 1
    assert skipped == contents(write_shards(dataset, options, tmp_path / "alone", LeftOut()))


CAPTIONS = tuple(f"a {first} {second}" for first in tiny_vocabulary()[5:13] for second in tiny_vocabulary()[13:25])
BATCH = 8  # captions of a block

# A command that stops when it has written four blocks, until it is told to go on.
COMMAND = """
import sys, time
from functools import partial
from pathlib import Path

import numpy as np

from models.encoders.text import TextEncoder, TextEncoderSettings
from orchestration import mapping
from orchestration.data import features
from orchestration.stages import quiet

class Waiting:
    def __init__(self, bert, folder):
        self.encoder = TextEncoder(TextEncoderSettings(name=str(bert)), bert)
        self.digest, self.dim, self.folder = self.encoder.digest, self.encoder.dim, folder

    def __call__(self, texts):
        beside = self.folder.parent
        with (beside / "log").open("a") as log:
            log.write(texts[0] + "\\n")
        while not (beside / "go").exists() and len(list((self.folder / "blocks").glob("block-*"))) >= 4:
            time.sleep(0.02)
        return self.encoder(texts)

features.BLOCK = features.ENCODE_BATCH = int(sys.argv[1])
mapping.FEW = 0
bert, folder = Path(sys.argv[2]), Path(sys.argv[3])
captions = tuple(sys.argv[4:])
ids = np.arange(len(captions))
index = features.CaptionIndex(ids, ids, np.arange(len(captions) + 1), captions)
make = partial(Waiting, bert, folder)
features.write_caption_features(index, make(), folder, quiet, 2, make)
"""


class Elsewhere:
    """Stands for an encoder that is not to be used in this process."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.digest, self.dim = encoder.digest, encoder.dim

    def __call__(self, texts: Sequence[str]) -> TextFeatures:
        raise AssertionError("not here")


def test_mapped_features_are_the_same_bytes_wherever_they_are_computed(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(features, "BLOCK", BATCH)
    monkeypatch.setattr(features, "ENCODE_BATCH", BATCH)
    monkeypatch.setattr(mapping, "FEW_JOINED", 0)
    bert = write_tiny_bert(tmp_path / "bert")
    open_encoder = partial(TextEncoder, TextEncoderSettings(name=str(bert)), bert)
    encoder = open_encoder()
    ids = np.arange(len(CAPTIONS))
    index = CaptionIndex(ids, ids, np.arange(len(CAPTIONS) + 1), CAPTIONS)

    def folder(name: str) -> Path:
        (tmp_path / name / "stage").mkdir(parents=True)
        return tmp_path / name / "stage"

    here = folder("here")
    write_caption_features(index, encoder, here, quiet)

    # One actor dies on its way: what is missing then is done by others.
    died = tmp_path / "died"

    class Dying(TextEncoder):  # local, so that Ray sends its code along
        def forward(self, texts: Sequence[str]) -> TextFeatures:
            if CAPTIONS[50] in texts and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(texts)

    dying = partial(Dying, TextEncoderSettings(name=str(bert)), bert)
    elsewhere, steps = folder("elsewhere"), list[tuple[str, int, int]]()
    write_caption_features(index, Elsewhere(encoder), elsewhere, lambda *step: steps.append(step), 2, dying)
    assert died.exists() and contents(elsewhere) == contents(here)
    assert [done for _, done, _ in steps] == [*range(0, len(CAPTIONS) + 1, BATCH)]

    capfd.readouterr()
    refusal = RequestError("no such encoder: give another one")

    def refused() -> Any:
        raise refusal

    with pytest.raises(RequestError, match=r"^no such encoder: give another one$"):
        write_caption_features(index, Elsewhere(encoder), folder("refused"), quiet, 2, refused)
    assert capfd.readouterr() == ("", "")  # Ray says nothing of its own

    killed = folder("killed")
    command = [sys.executable, "-c", COMMAND, str(BATCH), str(bert), str(killed), *CAPTIONS]
    environment = {
        **os.environ,
        "RAY_ADDRESS": cluster.get_runtime_context().gcs_address,
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    wait_for = time.monotonic() + 120
    with subprocess.Popen(command, env=environment) as process:
        while len(list((killed / "blocks").glob("block-*"))) < 4:
            assert process.poll() is None and time.monotonic() < wait_for
            time.sleep(0.02)
        process.kill()
    while cluster.available_resources().get("CPU", 0) < 2:  # its actors end
        assert time.monotonic() < wait_for
        time.sleep(0.1)
    kept = sorted((killed / "blocks").glob("block-*"))
    assert 4 <= len(kept) < len(CAPTIONS) // BATCH
    assert all(len(read_block(file)["lengths"]) == BATCH for file in kept)
    unchanged = {file: file.stat().st_mtime_ns for file in kept}
    (killed.parent / "log").unlink()
    (killed.parent / "go").touch()
    subprocess.run(command, env=environment, check=True)
    assert contents(killed) == contents(here)
    begun = (killed.parent / "log").read_text().splitlines()
    assert len(begun) == len(set(begun)) == len(CAPTIONS) // BATCH - len(unchanged)
