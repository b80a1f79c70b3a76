"""The names of data, and what they open."""

import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.data.coco import coco_splits, read_coco
from orchestration.data.sources import FORMATS, Format, Source, open_source, parse_source
from orchestration.errors import RequestError
from orchestration.listing import SCENES_CARRY
from tests.data_files import make_coco, refusal


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return make_coco(tmp_path / "coco")


def test_sources() -> None:
    assert parse_source("scenes") == Source("scenes", "")
    assert parse_source("scenes:size=32,train=64") == Source("scenes", "size=32,train=64")
    assert parse_source("coco:/data/a:b") == Source("coco", "/data/a:b")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("coc:/data", "perhaps 'coco' was meant"),
        ("COCO:/data", "perhaps 'coco' was meant"),
        ("scene", "perhaps 'scenes' was meant"),
        ("coco", "names no folder; write coco:PATH"),
        ("coco: ", "names no folder; write coco:PATH"),
        ("/data/coco-mini", "write one of scenes[:options], coco:PATH"),
        ("", "write one of scenes[:options], coco:PATH"),
    ],
)
def test_wrong_sources_are_refused_with_the_known_ones(spec: str, said: str) -> None:
    message = refusal(lambda: parse_source(spec))
    assert said in message and repr(spec) in message


ALPHABET = string.ascii_letters + string.digits + ":=/_-~ \n\t\0é"


@settings(deadline=None, max_examples=200)
@given(
    spec=st.one_of(
        st.text(ALPHABET),
        st.builds("{}:{}".format, st.sampled_from(["scenes", "coco", "cocoo"]), st.text(ALPHABET)),
    )
)
def test_every_text_is_a_source_or_refused_with_one_sentence(spec: str) -> None:
    kind, _, argument = spec.partition(":")
    if kind == "scenes" or (kind in FORMATS and argument.strip()):
        assert parse_source(spec) == Source(kind, argument)
    else:
        assert repr(spec) in refusal(lambda: parse_source(spec))


def test_a_coco_source_is_opened(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_source(f"coco:{coco}", "train", tmp_path / "home") == read_coco(coco, "train")
    monkeypatch.setenv("HOME", str(tmp_path))
    dataset = open_source("coco:~/coco", "train", tmp_path / "home")
    assert dataset.digest == read_coco(coco, "train").digest
    assert "no known user" in refusal(lambda: open_source("coco:~nobody-by-this-name/x", "train", tmp_path))


def test_what_the_file_system_refuses_is_one_sentence(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("orchestration.data.coco.os.scandir", refused)
    message = refusal(lambda: open_source(f"coco:{coco}", "train", tmp_path))
    assert message == f"{coco / 'train2017'} cannot be read (Permission denied); check that it is there and readable."
    monkeypatch.setattr("orchestration.data.folders.os.access", lambda path, mode: False)
    assert f"'{coco}' cannot be opened (Permission denied)" in refusal(lambda: FORMATS["coco"].splits(coco))


def test_scenes_are_generated_below_home_and_read_as_coco(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, Path]] = []

    def generate(options: object, root: Path, progress: Callable[[int, int], None] | None) -> Path:
        asked.append((options, root))
        assert progress is not None
        progress(1, 1)
        return coco

    heard: list[tuple[int, int]] = []
    monkeypatch.setattr("orchestration.data.scenes.parse_options", lambda spec: f"parsed {spec}")
    monkeypatch.setattr("orchestration.data.scenes.generate", generate)
    dataset = open_source("scenes:size=32", "train", tmp_path / "home", lambda *step: heard.append(step))
    assert asked == [("parsed size=32", tmp_path / "home" / "data")]
    assert heard == [(1, 1)]
    assert (dataset.name, dataset.digest) == ("scenes", read_coco(coco, "train").digest)


def test_generated_scenes_carry_everything(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        dataset = open_source("scenes:size=32,train=5,val=5,test=5", split, tmp_path)
        assert (dataset.name, dataset.split, len(dataset.records)) == ("scenes", split, 5)
        assert dataset.carries == SCENES_CARRY
    with pytest.raises(RequestError, match="sise"):
        open_source("scenes:sise=32", "train", tmp_path)


@pytest.mark.parametrize("name", ["two\nlines", "w\udce9"])
def test_a_folder_whose_name_is_no_text_is_refused(name: str, tmp_path: Path) -> None:
    assert "rename the folder" in refusal(lambda: open_source(f"coco:{tmp_path}/{name}", "train", tmp_path))


def test_a_new_format_is_one_line(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "like-coco", Format("another", frozenset({"images"}), coco_splits, read_coco))
    assert open_source(f"like-coco:{coco}", "train", tmp_path).split == "train"
    assert "like-coco:PATH" in refusal(lambda: parse_source("other:x"))
