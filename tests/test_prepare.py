"""`prepare`, without a cluster: what it makes of a data name, and what it says of it."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from orchestration.data import prepare as module
from orchestration.data import sources
from orchestration.data.folders import check_folder
from orchestration.data.prepare import prepare
from orchestration.data.problems import Kind, Notice, Problem
from orchestration.data.records import Dataset
from orchestration.data.shards import open_shards
from orchestration.data.sources import Format, open_source
from orchestration.errors import RequestError

from .prepared_support import make_dataset, small_shards

OPTIONS = replace(small_shards(), shard_bytes=2**20)  # one shard


@pytest.fixture(autouse=True)
def tiny_format(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A published layout `tiny:PATH` of two splits; its reader finds an empty caption in "val"."""

    def read(folder: Path, split: str, notice: Notice) -> Dataset:
        check_folder(folder, "the folder of a tiny data set")
        if split == "val":
            notice(Problem(Kind.CAPTION_EMPTY, "caption 7 is empty; write one."))
        dataset = DATASETS[folder]
        return replace(
            dataset, name="tiny", split=split, records=dataset.records[:6] if split == "val" else dataset.records
        )

    monkeypatch.setitem(
        sources.FORMATS,  # type: ignore[arg-type]
        "tiny",
        Format("Tiny", frozenset({"images"}), lambda folder: ("train", "val"), read),
    )
    yield
    DATASETS.clear()


DATASETS: dict[Path, Dataset] = {}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    DATASETS[folder] = make_dataset(folder)
    return folder


def test_every_split_is_made_ready_below_home(published: Path, tmp_path: Path) -> None:
    said: list[str] = []
    steps: list[tuple[Any, ...]] = []
    summary = prepare(
        f"tiny:{published}", None, OPTIONS, tmp_path / "home", broken="skip", say=said.append,
        progress=lambda *step: steps.append(step),
    )  # fmt: skip
    folder = Path(summary["data"].removeprefix("prepared:"))
    assert folder.parent == tmp_path / "home" / "prepared" and folder.name.startswith("tiny-")
    assert json.loads(json.dumps(summary)) == summary
    assert summary["options"] == asdict(OPTIONS)
    train, val = summary["splits"]["train"], summary["splits"]["val"]
    assert (train["images"], train["left_out"], train["left_out_file"], train["shards"]) == (10, {}, None, 1)
    assert (val["images"], val["left_out"]) == (6, {"empty caption": 1})
    assert "caption 7 is empty" in Path(val["left_out_file"]).read_text()
    assert val["digest"] == open_shards(folder / "val").manifest.digest != train["digest"]
    assert train["bytes"] == (folder / "train" / "shard-00000.arrow").stat().st_size
    assert said == [
        f"preparing {n} images of tiny {split} in {folder / split}" for n, split in ((10, "train"), (6, "val"))
    ]
    assert steps[9] == ("preparing train", 10, 10) and steps[-1] == ("preparing val", 6, 6)
    assert len(open_source(summary["data"], "val", tmp_path).records) == 6

    again = prepare(f"tiny:{published}", None, OPTIONS, tmp_path / "home", broken="skip")
    assert again == summary
    other = prepare(f"tiny:{published}", None, replace(OPTIONS, size=8), tmp_path / "home", ["train"])
    assert other["data"] != summary["data"] and list(other["splits"]) == ["train"]


def test_broken_data_are_refused_unless_they_may_be_skipped(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RequestError, match=r"^caption 7 is empty; write one\.$"):
        prepare(f"tiny:{published}", out, OPTIONS, tmp_path)
    assert len(open_shards(out / "train")) == 10
    DATASETS[published].records[2].file.unlink()
    with pytest.raises(RequestError, match=r"002\.png is not there"):
        prepare(f"tiny:{published}", tmp_path / "other", OPTIONS, tmp_path)
    made = prepare(f"tiny:{published}", tmp_path / "other", OPTIONS, tmp_path, broken="skip")["splits"]
    assert made["train"]["left_out"] == {"picture missing": 1} and made["train"]["images"] == 9
    assert made["val"]["left_out"] == {"empty caption": 1, "picture missing": 1}


def test_a_thing_whose_mask_is_broken_is_left_out_alone(published: Path, tmp_path: Path) -> None:
    dataset = DATASETS[published]
    [first, second] = dataset.records[2].instances or ()
    broken = replace(dataset.records[2], instances=(replace(first, segmentation=b"[[1.0,2.0,3.0]]"), second))
    DATASETS[published] = replace(dataset, records=(*dataset.records[:2], broken, *dataset.records[3:]))
    with pytest.raises(RequestError, match=r"002\.png.*the segmentation of its noise .* cannot be drawn"):
        prepare(f"tiny:{published}", tmp_path / "strict", OPTIONS, tmp_path, ["train"])
    made = prepare(f"tiny:{published}", tmp_path / "out", OPTIONS, tmp_path, ["train"], broken="skip")["splits"][
        "train"
    ]
    assert (made["images"], made["left_out"]) == (10, {"segmentation broken": 1})
    assert open_shards(tmp_path / "out" / "train").records[2].instances == (second,)


def test_a_wrong_request_is_refused_before_any_work(published: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"tiny:.*published has no split 'tests'; it has train, val\."):
        prepare(f"tiny:{published}", None, OPTIONS, tmp_path, ["train", "tests"])
    with pytest.raises(RequestError, match="0 workers cannot work; give a number of at least 1"):
        prepare(f"tiny:{published}", None, OPTIONS, tmp_path, workers=0)
    with pytest.raises(RequestError, match="data 'tini:x' is of no known kind .perhaps 'tiny' was meant"):
        prepare("tini:x", None, OPTIONS, tmp_path)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize(("options", "workers"), [(small_shards(), None), (OPTIONS, 2)])
def test_more_than_one_shard_or_named_workers_take_a_cluster(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, workers: int | None
) -> None:
    class Cluster:
        def __enter__(self) -> None:
            raise ConnectionError("a cluster was asked for")

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(module, "ray_cluster", lambda minimum_cpus: Cluster())
    with pytest.raises(ConnectionError, match="a cluster was asked for"):
        prepare(f"tiny:{published}", None, options, tmp_path, ["train"], workers=workers)
