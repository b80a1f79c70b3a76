"""Writing the prepared form: one shard after the other, each whole or not there, by as many workers as there are.

The driver writes all missing records, without pixels, to one Arrow file with one batch a shard; whoever makes a shard
maps that file and takes its batch. So memory does not grow with workers, and the bytes do not depend on their number.
"""

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import msgspec
import pyarrow as pa
from filelock import FileLock, Timeout

from orchestration.data.arrow_records import SCHEMA, to_batch
from orchestration.data.json_files import read_bytes
from orchestration.data.problems import Kind, Notice, Problem, refuse
from orchestration.data.records import Dataset, ImageRecord
from orchestration.data.shard_form import (
    LEFT_OUT,
    MANIFEST,
    PLAN,
    Fault,
    LeftOut,
    Manifest,
    Plan,
    ShardEntry,
    ShardOptions,
    ShardSummary,
    decode_json,
    shard_file,
)
from orchestration.data.shard_work import Runner, Unit, Work, unwritten
from orchestration.data.transforms import get_transform
from orchestration.errors import RequestError, RunError
from orchestration.stages import file_sha256, hidden_sibling, write_atomically

_PNG_SHARE = 0.6  # of the raw bytes, for photographs
_LOCK, _RECORDS = ".lock", "records.arrow"
_TEMPORARY = re.compile(rf"\.(shard-\d+\.(arrow|json)|{_RECORDS}|{PLAN}|{MANIFEST}|{LEFT_OUT})-[0-9a-f]{{8}}")


def write_shards(
    dataset: Dataset,
    options: ShardOptions,
    folder: Path,
    notice: Notice = refuse,
    progress: Callable[[int, int], None] | None = None,
    parallel: Runner | None = None,
) -> Path:
    """Prepare a split into `folder`, and return it. Repeated after a kill, it goes on with the shards that are whole.

    An image whose picture is missing, broken or not as annotated, or whose map cannot be read, is told to `notice`:
    `refuse` ends the work with its sentence, the whole shards staying for the next time; with `LeftOut` the image is
    left out and written down in left-out.jsonl, with those that `notice` has heard of before. With codec "none" too,
    every picture is decoded once. `progress` hears (images done, images in all); `parallel` runs the shards elsewhere.
    Every file that is there already is read whole and checked; `open_shards` is the quick look.
    Raises RequestError for what `notice` refuses, an empty data set, and a folder that holds anything else or that
    another process writes to; RunError for a full disk or a file that cannot be written.
    """
    if not dataset.records:
        raise RequestError(f"data set {dataset.name!r} has no image in split {dataset.split!r}; name another split.")
    heard = list(notice.problems) if isinstance(notice, LeftOut) else []
    try:
        with _alone_in(folder):
            _Writing(dataset, options, folder, notice, progress, parallel).run(heard)
    except OSError as error:
        raise unwritten(folder, error) from error
    return folder


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file; name a folder for the prepared data.")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / _LOCK).acquire(timeout=0):
            yield
    except Timeout as error:
        raise RequestError(
            f"{folder} is being written by another process; wait for it, or name another one."
        ) from error


class _Writing:
    """One call of `write_shards`, which holds the folder's lock."""

    def __init__(
        self,
        dataset: Dataset,
        options: ShardOptions,
        folder: Path,
        notice: Notice,
        progress: Callable[[int, int], None] | None,
        parallel: Runner | None,
    ) -> None:
        self.dataset, self.options, self.folder, self.notice = dataset, options, folder, notice
        self.progress, self.parallel = progress, parallel
        self.plan = Plan(options, dataset.name, dataset.split, dataset.digest)
        self.total = len(dataset.records)
        self.starts = range(0, self.total, options.rows)
        self.source = str(dataset.root.resolve())
        self.summaries: dict[int, ShardSummary] = {}
        self.done = 0

    def run(self, heard: Sequence[Problem]) -> None:
        self._claim()
        write_atomically(self.folder / PLAN, msgspec.json.encode(self.plan))
        files = [shard_file(self.folder, index) for index in range(len(self.starts))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for index, summary in enumerate(pool.map(_whole, files)):
                if summary is not None:
                    self._hear(index, summary)
        manifest = self.folder / MANIFEST
        if len(self.summaries) == len(files) and manifest.exists():
            known = decode_json(manifest, read_bytes(manifest), Manifest)
            if known.source != self.source:  # the published folder moved
                _write_manifest(self.folder, msgspec.structs.replace(known, source=self.source))
            return
        manifest.unlink(missing_ok=True)
        if missing := [index for index in range(len(files)) if index not in self.summaries]:
            self._write(missing)
        self._conclude(heard)

    def _claim(self) -> None:
        """Remove what killed runs left. Raises RequestError when the folder is somebody else's."""
        here = sorted(item.name for item in self.folder.iterdir() if item.name != _LOCK)
        for name in here:
            if _TEMPORARY.fullmatch(name):  # nobody writes here while we hold the lock
                (self.folder / name).unlink()
        file = self.folder / PLAN
        if not file.exists():
            if others := [name for name in here if not _TEMPORARY.fullmatch(name)]:
                raise RequestError(
                    f"{self.folder} holds other files, {others[0]!r} first; name an empty or new folder for prepared "
                    "data."
                )
            return
        plan = decode_json(file, read_bytes(file), Plan)
        if plan == self.plan:
            return
        begun = not (self.folder / MANIFEST).exists()
        if not begun or msgspec.structs.replace(plan, source_digest=self.plan.source_digest) != self.plan:
            raise RequestError(
                f"{self.folder} holds {_described(plan)}, not {_described(self.plan)}; delete it or name another "
                "folder."
            )
        # The same data, mended or changed since it was begun: what was made of it before is worth nothing.
        for shard in self.folder.glob("shard-*"):
            shard.unlink()

    def _hear(self, index: int, summary: ShardSummary) -> None:
        """Take a whole shard in, telling what was left out of it; what is refused is not kept."""
        try:
            for fault in summary.faults:
                self.notice(fault.problem())
        except RequestError:
            if not (self.folder / MANIFEST).exists():
                shard_file(self.folder, index).with_suffix(".json").unlink(missing_ok=True)
            raise
        self.summaries[index] = summary

    def _write(self, missing: Sequence[int]) -> None:
        records = hidden_sibling(self.folder / _RECORDS)
        try:
            self._check_space(missing, 0)
            units = self._write_records(missing, records)
            self._check_space(missing, records.stat().st_size)
            self.done = sum(len(self._slice(index)) for index in self.summaries)
            # Whole paths: workers have another current folder.
            work = Work(self.options, self.folder.resolve(), self.dataset.root.resolve(), records.resolve())
            (self.parallel or self._in_process)(work, units, self._finished)
        finally:
            records.unlink(missing_ok=True)

    def _slice(self, index: int) -> Sequence[ImageRecord]:
        return self.dataset.records[self.starts[index] : self.starts[index] + self.options.rows]

    def _write_records(self, missing: Sequence[int], file: Path) -> list[Unit]:
        """One batch a shard."""
        units = []
        with file.open("xb") as output, pa.ipc.new_file(output, SCHEMA) as writer:
            for place, index in enumerate(missing):
                batch, faults = self._batch(self._slice(index))
                writer.write_batch(batch)
                units.append(Unit(index, place, faults))
        return units

    def _batch(self, records: Sequence[ImageRecord]) -> tuple[pa.RecordBatch, tuple[Fault, ...]]:
        """The records that can be stored, and what is wrong with the others: a map that is not there, for one."""
        root = self.dataset.root
        try:
            return to_batch(records, root), ()
        except RequestError:
            kept, faults = [], []
            for record in records:
                try:
                    to_batch([record], root)
                    kept.append(record)
                except RequestError as error:
                    faults.append(Fault(_kind(record).name, str(error), record.image_id))
            return to_batch(kept, root), tuple(faults)

    def _check_space(self, missing: Sequence[int], records: int) -> None:
        """RunError when the pictures and `records` bytes of annotations do not fit on the disk."""
        transform, size = get_transform(self.options.transform), self.options.size
        pixels = 0
        if self.options.codec != "none":
            for index in missing:
                for record in self._slice(index):
                    width, height = transform.stored_size(transform.region(record), size)
                    pixels += 3 * width * height
        share = _PNG_SHARE if self.options.codec == "png" else 1.0
        needed, free = int(pixels * share) + records, shutil.disk_usage(self.folder).free
        if free < needed:
            png = f", of which png takes about {share:.0%}" if share < 1 else ""
            raise RunError(
                f"{sum(len(self._slice(index)) for index in missing)} pictures need about {needed} bytes ({pixels} of "
                f"pixels{png}, and {records} of annotations) and {self.folder} has {free} free; free the disk or name "
                "a folder on another one, then run the same command again."
            )

    def _in_process(self, work: Work, units: Sequence[Unit], finished: Callable[[Unit, ShardSummary], None]) -> None:
        for unit in units:
            seen = count(self.done + 1)
            finished(unit, work(unit, os.cpu_count() or 1, lambda: self._show(next(seen))))  # noqa: B023

    def _finished(self, unit: Unit, summary: ShardSummary) -> None:
        self._hear(unit.index, summary)
        self.done += len(self._slice(unit.index))
        self._show(self.done)

    def _show(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, self.total)

    def _conclude(self, heard: Sequence[Problem]) -> None:
        summaries = [self.summaries[index] for index in range(len(self.starts))]
        left_out = [fault for summary in summaries for fault in summary.faults]
        rows = sum(summary.rows for summary in summaries)
        if not rows:
            raise RequestError(
                f"none of the {self.total} images of {self.dataset.name} {self.dataset.split} can be used, the first "
                f"because {left_out[0].sentence}"
            )
        contents: Counter[str] = Counter()
        for summary in summaries:
            contents.update(summary.contents)
        data_digest = self.dataset.digest
        if left_out:
            without = sorted(fault.image_id or 0 for fault in left_out)
            data_digest = hashlib.sha256(f"{data_digest} without {without}".encode()).hexdigest()
        everything = [Fault(problem.kind.name, problem.sentence) for problem in heard] + left_out
        content = [msgspec.json.encode(self.plan).decode(), data_digest, [summary.sha256 for summary in summaries]]
        manifest = Manifest(
            plan=self.plan,
            source=self.source,
            data_digest=data_digest,
            rows=rows,
            contents=dict(sorted(contents.items())),
            left_out=dict(sorted(Counter(fault.kind for fault in everything).items())),
            digest=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
            shards=[ShardEntry(each.rows, each.bytes, each.sha256, each.shape) for each in summaries],
        )
        lines = b"".join(msgspec.json.encode(fault) + b"\n" for fault in everything)
        write_atomically(self.folder / LEFT_OUT, lines)
        _write_manifest(self.folder, manifest)


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    write_atomically(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def _kind(record: ImageRecord) -> Kind:
    """Of a record that cannot be stored."""
    maps = (record.stuff_map, record.panoptic.map if record.panoptic else None)
    lost = any(isinstance(content, Path) and not content.is_file() for content in maps)
    return Kind.MASK_BROKEN if lost else Kind.ENTRY_BROKEN


def _whole(file: Path) -> ShardSummary | None:
    """The summary of a shard that is there to its last byte."""
    try:
        summary = msgspec.json.decode(file.with_suffix(".json").read_bytes(), type=ShardSummary)
        whole = file.stat().st_size == summary.bytes and file_sha256(file) == summary.sha256
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return summary if whole else None


def _described(plan: Plan) -> str:
    options = plan.options
    return (
        f"{plan.dataset} {plan.split} (data {plan.source_digest[:12]}, {options.transform}, {options.size} px, "
        f"{options.codec}, {options.rows} images a shard, form {plan.version})"
    )
