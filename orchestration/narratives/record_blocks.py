"""A split's records for workers in other processes: an Arrow file that each maps, to read its own blocks of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from orchestration.data.arrow_records import SCHEMA, from_batch, to_batch
from orchestration.data.records import Dataset, ImageRecord
from orchestration.stages import hidden_sibling

ReadRecords = Callable[[range], list[ImageRecord]]
"""The records of some items of a split."""


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
