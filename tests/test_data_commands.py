"""`t2i data` as a user meets it: results as text and JSON, exit codes, and one sentence for what is wrong."""

import json
import re
import shlex
from pathlib import Path
from typing import get_args

import click
import pytest
from PIL import Image

from orchestration.cli import cli
from orchestration.data.shard_form import Codec
from orchestration.data.sources import FORMATS
from orchestration.data.transforms import TRANSFORMS
from orchestration.data_commands import SHEET_PICTURES, SHOWN_PICTURES
from tests.cli_support import TINY_SCENES, Ended, T2i, every_command, made, runner
from tests.tiny_inputs import write_tiny_coco

COMMANDS = {words: command for words, command in every_command().items() if words[0] == "data"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def t2i(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> T2i:
    return runner(home, tmp_path / "here", monkeypatch, capsys)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A whole data set that a test may spoil."""
    return write_tiny_coco(tmp_path / "coco")


@pytest.fixture
def spoilt(coco: Path) -> Path:
    """One with two faults and a remark."""
    picture = coco / "train2017" / "000000000003.png"
    picture.write_bytes(picture.read_bytes()[:300])
    (coco / "val2017" / "000000000004.png").unlink()
    Image.new("L", (40, 30)).save(coco / "val2017" / "000000000005.png")
    return coco


class TestGroup:
    def test_without_a_command_it_helps(self, t2i: T2i, home: Path) -> None:
        ended = t2i("data")
        assert (ended.code, ended.err) == (0, "") and ended == t2i("data", "--help")
        for words in COMMANDS:
            assert re.search(rf"^  {words[1]} +[A-Z].*\.$", ended.out, re.MULTILINE), words
        assert not home.exists()

    @pytest.mark.parametrize("source", ["coco:PATH", "scenes", "scenes:size=32"])
    def test_who_names_data_only_is_told_the_commands(self, t2i: T2i, source: str) -> None:
        parts = (f"'{source}' is data, not a command", f"t2i data check {source}", f"t2i data show {source}")
        t2i("data", source).refused(*parts)
        t2i("data", source, "--sheet", "x.png").refused(*parts)

    def test_a_command_that_is_none(self, t2i: T2i) -> None:
        t2i("data", "chekc").refused("No such command 'chekc'", "'check'", "t2i data --help")

    @pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
    def test_its_examples_are_commands(self, words: tuple[str, ...]) -> None:
        help_text = COMMANDS[words].help or ""
        lines = re.findall(r"t2i (data .*)$", help_text, re.MULTILINE)
        assert lines
        for line in lines:
            _, name, *arguments = shlex.split(line)
            # A command keeps the help option of its first context: it must be t2i's.
            context = COMMANDS["data", name].make_context(name, arguments, parent=cli.make_context("t2i", ["data"]))
            assert isinstance(context, click.Context)


class TestList:
    def test_formats(self, t2i: T2i, home: Path) -> None:
        formats = t2i("data", "list", "--json").json["formats"]
        assert list(formats) == sorted(["scenes", *FORMATS])
        assert "panoptic" in formats["coco"]["carries"] and "xmcgan" in formats["coco"]["serves"]
        assert "coco:PATH" in t2i("data", "list").out
        assert not home.exists()


class TestCheck:
    def test_nothing_is_wrong(self, t2i: T2i, coco: Path, home: Path) -> None:
        ended = t2i("data", "check", f"coco:{coco}", "--json")
        assert ended.json["splits"]["train"]["pictures"] == 3 and ended.json["splits"]["val"]["captions"] == 2
        assert ended.json["faults"] == 0 and ended.json["carries"] == ["captions", "images"]
        assert "no fault" in ended.err
        assert t2i("data", "check", f"coco:{coco}").out == ended.err
        assert not home.exists()

    def test_faults_end_it_with_one_sentence_after_the_whole_report(self, t2i: T2i, spoilt: Path) -> None:
        ended = t2i("data", "check", f"coco:{spoilt}")
        assert ended.code == 1
        assert ended.err == (
            f"t2i: 2 faults of 2 kinds in coco:{spoilt}: mend them, or leave them out with t2i data prepare --broken "
            "skip.\n"
        )
        for part in ("picture cut short", "picture missing", "grey picture", "1 remark of 1 kind", "captioned images"):
            assert part in ended.out

    def test_with_faults_the_report_is_json_too(self, t2i: T2i, spoilt: Path) -> None:
        ended = t2i("data", "check", f"coco:{spoilt}", "--json")
        assert ended.code == 1 and "2 faults of 2 kinds in" in ended.err.splitlines()[-1]
        [line] = ended.out.splitlines()
        problems = json.loads(line)["problems"]
        assert {name: problem["count"] for name, problem in problems.items()} == {
            "PICTURE_TRUNCATED": 1,
            "PICTURE_MISSING": 1,
            "PICTURE_GREY": 1,
        }
        assert "is cut short" in problems["PICTURE_TRUNCATED"]["examples"][0]

    def test_fewer_examples_splits_and_pictures(self, t2i: T2i, spoilt: Path) -> None:
        whole = t2i("data", "check", f"coco:{spoilt}")
        assert "stops after 300 bytes" in whole.out
        assert "stops after" not in t2i("data", "check", f"coco:{spoilt}", "--examples", "0").out
        one = t2i("data", "check", f"coco:{spoilt}", "--split", "train", "--no-pictures", "--json")
        assert list(one.json["splits"]) == ["train"] and one.json["faults"] == 0

    @pytest.mark.parametrize("command", ["check", "show"])
    @pytest.mark.parametrize(
        ("source", "parts"),
        [
            ("coco:/no/where", ["'/no/where'", "No such file"]),
            ("coco:", ["names no folder", "coco:PATH"]),
            ("cocoo:PATH", ["no known kind", "perhaps 'coco'"]),
            ("", ["no known kind", "scenes[:options]"]),
            ("scenes:thigns=3", ["no option 'thigns'", "things"]),
            ("scenes:things=300", ["'things' is '300'", "from 2 to 16"]),
            ("scenes:things=3,things=4", ["'things' is given twice"]),
            ("scenes:things", ["name=number"]),
        ],
    )
    def test_wrong_names(self, t2i: T2i, home: Path, command: str, source: str, parts: list[str]) -> None:
        t2i("data", command, source).refused(*parts)
        assert not made(home)

    def test_no_source(self, t2i: T2i) -> None:
        for command in ("check", "show", "prepare"):
            t2i("data", command).refused("Missing argument 'SOURCE'", f"t2i data {command} --help")

    def test_a_split_that_is_not_there(self, t2i: T2i, coco: Path) -> None:
        t2i("data", "check", f"coco:{coco}", "--split", "dev").refused("has no split 'dev'", "train, val")
        t2i("data", "show", f"coco:{coco}", "--split", "dev").refused("has no split 'dev'", "train2017, val2017")


def drawn(ended: Ended) -> list[str]:
    return [image["id"] for image in ended.json["images"]]


class TestShow:
    def test_scenes(self, t2i: T2i, home: Path) -> None:
        ended = t2i("data", "show", TINY_SCENES, "--out", "out/scenes.png", "--json")
        assert {name: ended.json[name] for name in ("pictures", "captions", "split")} == {
            "pictures": 20,
            "captions": 100,
            "split": "train",
        }
        assert len(ended.json["images"]) == SHOWN_PICTURES
        first = ended.json["images"][0]["panels"]
        assert first[:5] == ["picture", "boxes", "instance masks", "label map", "scene graph"] and len(first) == 6
        with Image.open("out/scenes.png") as drawn:
            assert len(set(drawn.convert("L").resize((32, 32)).tobytes())) > 50
        [folder] = (home / "data").glob("scenes-*")
        again = t2i("data", "check", TINY_SCENES, "--json")
        assert again.json["digests"]["train"] == ended.json["digest"]
        assert list((home / "data").glob("scenes-*")) == [folder]

    def test_a_sheet(self, t2i: T2i, coco: Path, home: Path) -> None:
        ended = t2i("data", "show", TINY_SCENES, "--sheet", "--json")
        assert drawn(ended) == [str(place) for place in range(1, SHEET_PICTURES + 1)]
        assert ended.json["png"] == str(Path.cwd() / "data.png")
        with Image.open("data.png") as sheet:
            assert sheet.size[0] == 6 * 192
        assert drawn(t2i("data", "show", TINY_SCENES, "--sheet", "--images", "2", "--json")) == ["1", "2"]

    def test_chosen_images(self, t2i: T2i, coco: Path, home: Path) -> None:
        chosen = t2i("data", "show", f"coco:{coco}", "--image", "3", "--image", "1", "--json")
        assert drawn(chosen) == ["3", "1"] and chosen.json["carries"] == ["captions", "images"]
        t2i("data", "show", f"coco:{coco}", "--image", "9").refused("no usable image '9'", "such as 1, 2, 3")
        assert not home.exists()

    def test_what_is_broken_is_left_out_and_counted(self, t2i: T2i, spoilt: Path) -> None:
        ended = t2i("data", "show", f"coco:{spoilt}", "--split", "val", "--json")
        assert ended.json["left_out"] == 1 and drawn(ended) == ["5"]
        assert f"left out for their faults: 1 (t2i data check coco:{spoilt} says why)" in ended.err

    def test_a_picture_that_does_not_decode(self, t2i: T2i, spoilt: Path) -> None:
        for option in ([], ["--sheet"]):
            t2i("data", "show", f"coco:{spoilt}", *option).refused("000000000003.png does not decode")
        assert not Path("data.png").exists()

    def test_a_place_that_cannot_be_written(self, t2i: T2i, coco: Path) -> None:
        Path("file").write_text("")
        for option in ([], ["--sheet"]):
            ended = t2i("data", "show", f"coco:{coco}", "--out", "file/sheet.png", *option)
            ended.refused("the sheet cannot be written to file/sheet.png (")

    def test_a_place_without_a_name(self, t2i: T2i, coco: Path) -> None:
        for command in ("show", "prepare"):
            t2i("data", command, f"coco:{coco}", "--out", "").refused("--out", "it is empty")
        assert not list(Path.cwd().iterdir())

    def test_a_split_of_which_nothing_is_left(self, t2i: T2i, coco: Path) -> None:
        (coco / "annotations" / "captions_train2017.json").write_text("{")
        ended = t2i("data", "show", f"coco:{coco}")
        ended.refused("no usable image in train2017", f"(t2i data check coco:{coco} says why)")

    def test_real_photographs(self, t2i: T2i, shared_data: Path) -> None:
        found = t2i("data", "show", f"coco:{shared_data / 'coco-mini'}", "--split", "val", "--json").json
        assert (found["pictures"], found["captions"]) == (99, 495)
        assert found["images"][0]["id"] == "785"
        assert found["images"][0]["panels"][1:5] == ["boxes", "instance masks", "label map", "panoptic map"]


class TestPrepare:
    def test_prepared_data_is_data(self, t2i: T2i, coco: Path, home: Path) -> None:
        ended = t2i("data", "prepare", f"coco:{coco}", "--size", "16", "--out", "ready", "--json")
        assert {split: made["images"] for split, made in ended.json["splits"].items()} == {"train": 3, "val": 2}
        assert ended.json["data"] == f"prepared:{Path.cwd() / 'ready'}"
        assert f"train on it with --data {ended.json['data']}" in ended.err
        assert ended.json["options"]["transform"] == "xmcgan" and not home.exists()
        checked = t2i("data", "check", "prepared:ready", "--json")
        assert checked.json["splits"]["train"]["captions"] == 5
        assert t2i("data", "prepare", f"coco:{coco}", "--size", "16", "--out", "ready", "--json").json == ended.json

    def test_below_the_home_unless_told(self, t2i: T2i, coco: Path, home: Path) -> None:
        ended = t2i("data", "prepare", f"coco:{coco}", "--split", "val", "--size", "16", "--json")
        assert list(ended.json["splits"]) == ["val"]
        assert [path.name for path in home.iterdir()] == ["prepared"]

    def test_the_default_size(self) -> None:
        sizes = {option.name: option.default for option in COMMANDS["data", "prepare"].params}
        assert sizes["size"] == 256

    def test_broken_data(self, t2i: T2i, spoilt: Path) -> None:
        refused = t2i("data", "prepare", f"coco:{spoilt}", "--size", "16", "--out", "ready")
        assert refused.code == 2 and "000000000003.png is cut short" in refused.err and refused.err.count("\n") == 1
        ended = t2i("data", "prepare", f"coco:{spoilt}", "--size", "16", "--out", "ready", "--broken", "skip")
        assert ended.code == 0
        assert "train: 2 images in 1 shard," in ended.out and "1 left out: picture cut short (" in ended.out
        assert "val: 1 image in 1 shard," in ended.out and "1 left out: picture missing (" in ended.out

    def test_wrong_options(self, t2i: T2i, coco: Path, home: Path) -> None:
        for options, parts in (
            (["--transform", "xmcgn"], ["no image transform 'xmcgn'", "'xmcgan' was meant"]),
            (["--codec", "jpg"], ["--codec", "'png', 'raw', 'none'"]),
            (["--size", "0"], ["--size", "8<=x<=4096"]),
            (["--split", "dev"], ["has no split 'dev'", "train, val"]),
        ):
            t2i("data", "prepare", f"coco:{coco}", *options).refused(*parts)
        assert not made(home)

    def test_what_is_offered_is_all_there_is(self) -> None:
        options = {option.name: option for option in COMMANDS["data", "prepare"].params}
        codec, transform = options["codec"], options["transform"]
        assert isinstance(codec.type, click.Choice) and list(codec.type.choices) == list(get_args(Codec))
        assert isinstance(transform, click.Option) and transform.help is not None
        assert all(name in transform.help for name in TRANSFORMS)
        assert isinstance(cli.commands["data"], click.Group)
