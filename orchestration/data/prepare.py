"""`t2i data prepare`: a data set's splits made ready once, by as many workers as there are, with Ray Data."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import msgspec

from orchestration.cluster import ray_cluster
from orchestration.data.checking import with_sound_masks
from orchestration.data.problems import Kind, Notice, refuse
from orchestration.data.records import Dataset
from orchestration.data.shard_form import LEFT_OUT, LeftOut, ShardOptions
from orchestration.data.shard_tasks import ray_data_runner
from orchestration.data.shard_work import Runner
from orchestration.data.shards import open_shards, write_shards
from orchestration.data.sources import FORMATS, open_source, parse_source, source_folder
from orchestration.errors import RequestError
from orchestration.progress import Say
from orchestration.stages import Progress, quiet, short_hash

Broken = Literal["refuse", "skip"]


def prepare(
    spec: str,
    out: Path | None,
    options: ShardOptions,
    home: Path,
    splits: Sequence[str] | None = None,
    broken: Broken = "refuse",
    workers: int | None = None,
    progress: Progress = quiet,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Make the splits of the named data ready in `out`/SPLIT, and sum up what was done as a JSON value.

    splits: all that the data has, unless told; out: `home`/prepared/NAME-HASH, unless told; broken: "skip" leaves
    images out that cannot be used and writes down which, "refuse" ends at the first; workers: at most so many shards
    at a time, unless told as many as the cluster has cores. Splits of more than one shard, and all if `workers` is
    given, are made by Ray Data tasks; a single small shard is made here, sooner than a cluster starts. On a cluster of
    several machines `out` and the data must lie where all of them see it. Repeated, it goes on where it stopped.
    Raises RequestError for a wrong name, option or folder, and broken data; RunError for what fails meanwhile.
    """
    if workers is not None and workers < 1:
        raise RequestError(f"{workers} workers cannot work; give a number of at least 1, or none for all cores.")
    kind, folder = source_folder(spec, home, lambda done, total: progress("drawing scenes", done, total))
    there = FORMATS[kind].splits(folder)
    if unknown := [split for split in splits or () if split not in there]:
        raise RequestError(f"{spec} has no split {unknown[0]!r}; it has {', '.join(there)}.")
    name = parse_source(spec).kind
    if out is None:
        what = {"kind": kind, "folder": str(folder.resolve()), "options": msgspec.to_builtins(options)}
        out = home / "prepared" / f"{name}-{short_hash(what)}"
    out = out.expanduser().resolve()
    done: dict[str, Any] = {}
    with ExitStack() as cluster:
        runner: Runner | None = None
        for split in splits or there:
            left_out = LeftOut()
            notice: Notice = left_out if broken == "skip" else refuse
            dataset = with_sound_masks(open_source(spec, split, home, notice=notice), notice)
            if runner is None and (workers is not None or len(dataset.records) > options.rows):
                cluster.enter_context(ray_cluster(minimum_cpus=workers or 1))  # one for all splits
                runner = ray_data_runner(workers)
            say(f"preparing {len(dataset.records)} images of {name} {split} in {out / split}")
            done[split] = _prepare_split(dataset, options, out / split, notice, progress, runner)
    return {"data": f"prepared:{out}", "source": spec, "options": msgspec.to_builtins(options), "splits": done}


def _prepare_split(
    dataset: Dataset, options: ShardOptions, folder: Path, notice: Notice, progress: Progress, runner: Runner | None
) -> dict[str, Any]:
    what = f"preparing {dataset.split}"
    write_shards(dataset, options, folder, notice, lambda done, total: progress(what, done, total), runner)
    manifest = open_shards(folder).manifest
    left_out = {Kind[kind].title: count for kind, count in manifest.left_out.items()}
    return {
        "folder": str(folder),
        "images": manifest.rows,
        "left_out": left_out,
        "left_out_file": str(folder / LEFT_OUT) if left_out else None,
        "shards": len(manifest.shards),
        "bytes": sum(entry.bytes for entry in manifest.shards),
        "digest": manifest.digest,
    }
