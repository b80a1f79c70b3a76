"""A pass over a split's records, in blocks: workers in other processes have an Arrow file that each maps, to read its
own blocks of it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from orchestration import mapping
from orchestration.data.arrow_records import SCHEMA, from_batch, to_batch
from orchestration.data.records import Dataset, ImageRecord
from orchestration.stages import Progress, hidden_sibling

ReadRecords = Callable[[range], list[ImageRecord]]
"""The records of some items of a split."""
MakeReader = Callable[[ReadRecords], mapping.Worker]
"""A worker on records that it reads by itself."""
_BLOCKS = "blocks"


def map_records(
    folder: Path,
    dataset: Dataset,
    block: int,
    kept: "Callable[[ImageRecord], ImageRecord]",
    make: MakeReader,
    progress: Progress,
    workers: int | None,
    what: str,
    identity: str,
    elsewhere: MakeReader | None = None,
) -> list[Path]:
    """`map_blocks` over the records of a split, in a stage's folder; `forget_blocks` ends it.

    kept: what other processes need of a record; elsewhere: makes their worker, where it is another one.
    """
    for left_over in folder.glob(".*-*"):  # of a killed process
        left_over.unlink()
    stored = RecordBlocks((folder / f"records-{identity}.arrow").resolve(), block)
    count, here = len(dataset.records), partial(make, held_records(dataset))
    if workers != 1 and count > mapping.FEW_JOINED * block:  # fewer blocks are done in this process
        write_records(dataset, block, stored.file, kept)
    there = partial(elsewhere or make, stored)
    return mapping.map_blocks(folder / _BLOCKS, count, block, there, progress, workers, what, here, identity)


def forget_blocks(folder: Path) -> None:
    """Remove what `map_records` left beside what was joined of it."""
    shutil.rmtree(folder / _BLOCKS)
    for stored in folder.glob("records-*.arrow"):
        stored.unlink()


class RecordBlocks:
    """The records in a file that `write_records` wrote; items are asked for a block at a time."""

    def __init__(self, file: Path, block: int) -> None:
        self.file, self.block = file, block

    def __call__(self, items: range) -> list[ImageRecord]:
        with pa.memory_map(str(self.file)) as mapped:
            return from_batch(pa.ipc.open_file(mapped).get_batch(items.start // self.block))


def held_records(dataset: Dataset) -> ReadRecords:
    """The same of a split in memory."""
    return lambda items: list(dataset.records[items.start : items.stop])


def with_labels(record: ImageRecord) -> ImageRecord:
    """What label maps are drawn from, and no more."""
    return replace(record, captions=None, narratives=None, graph=None)


def with_narratives(record: ImageRecord) -> ImageRecord:
    """The narratives, and no more."""
    return replace(record, captions=None, graph=None, instances=None, stuff=None, stuff_map=None, panoptic=None)


def write_records(dataset: Dataset, block: int, file: Path, kept: Callable[[ImageRecord], ImageRecord]) -> None:
    """Write what is kept of the split's records, `block` to a batch. A file that is there is left as it is: it is
    written whole or not at all."""
    if file.exists():
        return
    temporary = hidden_sibling(file)
    try:
        with pa.OSFile(str(temporary), "wb") as output, pa.ipc.new_file(output, SCHEMA) as writer:
            for start in range(0, len(dataset.records), block):
                records = [kept(record) for record in dataset.records[start : start + block]]
                writer.write_batch(to_batch(records, dataset.root))
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
