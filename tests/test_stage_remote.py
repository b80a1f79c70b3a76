"""Copies of stages elsewhere, in two file systems of fsspec."""

import json
from pathlib import Path

import fsspec
import pytest

from orchestration.errors import RequestError, RunError
from orchestration.stages import HASH_LIMIT, MANIFEST, Progress, check_stage, ensure, is_complete, read_records
from tests.test_stages import ENTRY, Work, left_in, stage_of


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"file://{tmp_path}/remote" if request.param == "file" else f"memory://{tmp_path.name}"
    monkeypatch.setenv("T2I_STAGES_REMOTE", url)
    return url


def files_at(url: str) -> dict[str, bytes]:
    filesystem, root = fsspec.url_to_fs(url)
    return {path.removeprefix(root): filesystem.cat_file(path) for path in filesystem.find(root)}


def test_computed_once_for_two_stores(url: str, tmp_path: Path) -> None:
    def large(folder: Path, _: Progress) -> None:
        Work()(folder, lambda *_: None)
        (folder / "large.bin").write_bytes(bytes(HASH_LIMIT + 1))

    first = ensure(stage_of(large), tmp_path / "one")
    copied = {name.removeprefix(f"/{first.name}/"): content for name, content in files_at(url).items()}
    assert copied == {str(path.relative_to(first)): path.read_bytes() for path in first.rglob("*") if path.is_file()}
    work = Work()
    second = ensure(stage_of(work), tmp_path / "two")
    assert work.times == 0 and left_in(tmp_path / "two") == [second.name] and not read_records(tmp_path / "two")
    assert check_stage(second, every_byte=True) == check_stage(first)
    assert (second / "large.bin").stat().st_mtime_ns == (first / "large.bin").stat().st_mtime_ns


@pytest.mark.parametrize("damage", ["flipped", "missing", "another", "outside"])
def test_a_damaged_copy_is_refused(url: str, tmp_path: Path, damage: str) -> None:
    name = ensure(stage_of(Work()), tmp_path / "one").name
    filesystem, root = fsspec.url_to_fs(url)
    place = f"{root.rstrip('/')}/{name}"
    manifest = json.loads(filesystem.cat_file(f"{place}/{MANIFEST}"))
    if damage == "flipped":
        filesystem.pipe_file(f"{place}/result.txt", b"what was c0mputed")
    elif damage == "missing":
        filesystem.rm_file(f"{place}/inner/more.bin")
    else:
        changes = {"another": {"version": 2}, "outside": {"files": {"../x": ENTRY}}}[damage]
        filesystem.pipe_file(f"{place}/{MANIFEST}", json.dumps(manifest | changes).encode())
    with pytest.raises(RequestError, match=f"the copy of stage {name} in .* is damaged .*: remove .*/{name}, or"):
        ensure(stage_of(Work()), tmp_path / "two")
    assert left_in(tmp_path / "two") == [] and not (tmp_path / "x").exists()


def test_half_a_copy_is_none(url: str, tmp_path: Path) -> None:
    name = ensure(stage_of(Work()), tmp_path / "one").name
    filesystem, root = fsspec.url_to_fs(url)
    filesystem.rm_file(f"{root.rstrip('/')}/{name}/{MANIFEST}")
    work = Work()
    ensure(stage_of(work), tmp_path / "two")
    assert work.times == 1 and f"/{name}/{MANIFEST}" in files_at(url)


def test_one_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_STAGES_REMOTE", "nosuch://x")
    with pytest.raises(RequestError, match="T2I_STAGES_REMOTE=nosuch://x cannot be opened"):
        ensure(stage_of(Work()), tmp_path)
    assert left_in(tmp_path) == []


def test_one_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("T2I_STAGES_REMOTE", f"file://{tmp_path}/file/below")
    with pytest.raises(RunError, match="is computed, but could not be copied to file://"):
        ensure(stage_of(Work()), tmp_path / "store")
    again = Work()
    assert is_complete(ensure(stage_of(again), tmp_path / "store")) and again.times == 0
