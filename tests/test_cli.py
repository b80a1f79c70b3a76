"""The command line as a user meets it: help, results as JSON, and one sentence for everything that is wrong."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from orchestration import cli as cli_module
from orchestration import cluster, listing
from orchestration.campaigns import execution
from orchestration.campaigns.campaign import Plan
from orchestration.cli import cli
from orchestration.errors import RequestError
from orchestration.quickstart import PROMPT
from orchestration.training import launch
from tests.cli_support import TINY_SCENES, Ended, T2i, every_command, made, runner
from tests.tiny_inputs import TINY_DIM, write_tiny_bert, write_tiny_coco

REPOSITORY = Path(__file__).parents[1]
COMMANDS = every_command()
HEAVY = {"torch", "ray", "mlflow", "transformers", "optuna", "numpy", "PIL", "pydantic", "fastapi"}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here starts Ray: a wrong request must be refused before."""
    torch.set_num_threads(1)

    @contextmanager
    def forbidden(*_: object, **__: object) -> Iterator[None]:
        raise AssertionError("Ray was started")
        yield

    for module in (cluster, launch, execution):
        monkeypatch.setattr(module, "ray_cluster", forbidden)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def t2i(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> T2i:
    return runner(home, tmp_path / "here", monkeypatch, capsys)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A whole data set that a test may spoil."""
    return write_tiny_coco(tmp_path / "coco")


@pytest.fixture
def tiny(bert: Path) -> list[str]:
    """Options with which the recipe needs nothing that is not here."""
    values = {"text.name": bert, "model.text_dim": TINY_DIM, "evaluation.protocol": "none"}
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


class TestHelp:
    @pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
    def test_every_command_has_one_with_an_example(self, t2i: T2i, words: tuple[str, ...]) -> None:
        ended = t2i(*words, "--help")
        assert (ended.code, ended.err) == (0, "")
        assert re.search(r"Examples?:", ended.out) and f"t2i {' '.join(words)}" in ended.out.split("Example", 1)[1]
        for option in ("--home", "--mlflow-uri", "--json", "-h, --help"):
            assert option in ended.out

    @pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
    def test_every_option_says_what_it_does_and_what_it_is_without_it(self, words: tuple[str, ...]) -> None:
        for option in COMMANDS[words].params:
            if isinstance(option, click.Option):
                assert option.help, option.name
                # Without assignments nothing is done.
                if not option.is_flag and option.name != "assignments":
                    assert option.show_default or "[default: " in option.help, option.name

    def test_the_overview_names_every_command_in_one_line(self, t2i: T2i) -> None:
        overview = t2i("--help")
        assert overview.code == 0
        for command in cli.commands:
            assert re.search(rf"^  {command} +[A-Z].*\.$", overview.out, re.MULTILINE), command
        assert "..." not in overview.out.split("Commands:")[1]
        assert t2i() == overview == t2i("-h")

    def test_version(self, t2i: T2i) -> None:
        assert re.fullmatch(r"t2i, version \d+\.\d+.*\n", t2i("--version").out)

    def test_the_default_prompt_is_the_one_shown(self, t2i: T2i) -> None:
        assert f"[default: {PROMPT}]" in " ".join(t2i("quickstart", "--help").out.split())

    def test_help_makes_nothing(self, t2i: T2i, home: Path) -> None:
        t2i("train", "--help")
        assert not home.exists() and not list(Path.cwd().iterdir())


class TestProcess:
    """A few real processes, for what only a process shows."""

    def run(self, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)

    def test_help_imports_nothing_heavy(self, tmp_path: Path) -> None:
        script = (
            "import sys; from orchestration.cli import run_cli\n"
            "for words in (['--help'], ['train', '--help'], ['trian'], ['serve', '--port', 'x']): run_cli(words)\n"
            f"print(sorted({HEAVY!r} & set(sys.modules)))"
        )
        ended = self.run("-c", script, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.splitlines()[-1] == "[]"

    def test_exit_codes(self, tmp_path: Path) -> None:
        assert self.run("-m", "orchestration", "--help", cwd=tmp_path).returncode == 0
        wrong = self.run("-m", "orchestration", "trian", cwd=tmp_path)
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert wrong.stderr == "t2i: No such command 'trian'. Did you mean 'train'? (see t2i --help)\n"
        assert not list(tmp_path.iterdir())

    def test_json_is_all_that_standard_output_holds(self, tmp_path: Path) -> None:
        ended = self.run("-m", "orchestration", "models", "--json", cwd=tmp_path)
        assert ended.returncode == 0
        [line] = ended.stdout.splitlines()
        assert "xmcgan" in json.loads(line)["systems"]
        assert "xmcgan_scenes32" in ended.stderr


class TestModels:
    def test_systems_and_recipes(self, t2i: T2i, home: Path) -> None:
        ended = t2i("models")
        assert ended.code == 0
        assert "xmcgan_scenes32" in ended.out and "XMC-GAN" in ended.out
        assert not home.exists()

    def test_one_system(self, t2i: T2i) -> None:
        ended = t2i("models", "xmcgan", "--json")
        assert {"lambda_1", "tau", "batch_size"} <= set(ended.json["parameters"])
        assert "model.lambda_1 = 1.0" in ended.err

    def test_unknown(self, t2i: T2i) -> None:
        t2i("models", "xmcgn").refused("no system 'xmcgn'", "'xmcgan' was meant")


class TestSpoiltData:
    """`t2i train` with a data set that has one fault: refused before Ray, and no stage is left half-made."""

    def train(self, t2i: T2i, folder: Path, tiny: list[str]) -> Ended:
        return t2i("train", "xmcgan_scenes32", "--data", f"coco:{folder}", *tiny)

    def test_the_whole_one_gets_as_far_as_ray(self, t2i: T2i, coco: Path, tiny: list[str]) -> None:
        ended = self.train(t2i, coco, tiny)
        assert ended.code == 1 and "Ray was started" in ended.err

    def test_no_coco_folder(self, t2i: T2i, home: Path, tmp_path: Path, tiny: list[str]) -> None:
        (tmp_path / "empty").mkdir()
        self.train(t2i, tmp_path / "empty", tiny).refused("is no COCO folder", "captions_train2017.json")
        assert not made(home)

    def test_captions_cut_in_half(self, t2i: T2i, coco: Path, home: Path, tiny: list[str]) -> None:
        captions = coco / "annotations" / "captions_train2017.json"
        text = captions.read_text()
        captions.write_text(text[: len(text) // 2])
        self.train(t2i, coco, tiny).refused(str(captions), "it is cut short")
        assert not made(home)

    def test_an_empty_caption(self, t2i: T2i, coco: Path, home: Path, tiny: list[str]) -> None:
        captions = coco / "annotations" / "captions_val2017.json"
        listing = json.loads(captions.read_text())
        listing["annotations"][1]["caption"] = "  "
        captions.write_text(json.dumps(listing))
        self.train(t2i, coco, tiny).refused(str(captions), "is empty")
        assert not made(home)

    def test_a_picture_cut_short(self, t2i: T2i, coco: Path, home: Path, tiny: list[str]) -> None:
        picture = coco / "train2017" / "000000000003.png"
        picture.write_bytes(picture.read_bytes()[:300])
        self.train(t2i, coco, tiny).refused(str(picture), "is cut short")
        # What was begun stays, so that the next run goes on from it; no finished stage is there.
        assert not [path for path in made(home) if "pictures" in path and "-begun" not in path]

    def test_a_picture_that_is_gone(self, t2i: T2i, coco: Path, home: Path, tiny: list[str]) -> None:
        (coco / "val2017" / "000000000004.png").unlink()
        self.train(t2i, coco, tiny).refused("lacks 1 of the 2 images", "000000000004.png")
        assert not made(home)

    def test_no_validation_split(self, t2i: T2i, coco: Path, home: Path, tiny: list[str]) -> None:
        (coco / "annotations" / "captions_val2017.json").unlink()
        self.train(t2i, coco, tiny).refused("has no split 'val'")
        assert not made(home)


class TestTrain:
    def test_dry_run_shows_every_field(self, t2i: T2i, home: Path) -> None:
        command = ["train", "xmcgan_scenes32", "--dry-run", "--workers", "4", "--set", "model.tau=0.25"]
        values = t2i(*command, "--json").json
        assert (values["model"]["tau"], values["resources"]["workers"]) == (0.25, 4)
        assert json.loads(t2i(*command).out) == values
        assert not home.exists()

    @pytest.mark.parametrize("command", ["train", "tune"])
    @pytest.mark.parametrize(
        ("options", "parts"),
        [
            (["xmcgan_scene32"], ["no recipe 'xmcgan_scene32'", "xmcgan_scenes32"]),
            ([], ["RECIPE"]),
            (["xmcgan_scenes32", "--set", "model.lamda_1=1"], ["no field 'model.lamda_1'", "model.lambda_1"]),
            (["xmcgan_scenes32", "--set", "modle.tau=1"], ["no field 'modle.tau'", "model"]),
            (["xmcgan_scenes32", "--set", "model.tau.x=1"], ["model.tau is a value"]),
            (["xmcgan_scenes32", "--set", "model.tau"], ["'model.tau' is no assignment", "field=value"]),
            (["xmcgan_scenes32", "--set", "training.kimg=many"], ["training.kimg", "'many'"]),
            (["xmcgan_scenes32", "--set", "training.batch_size=1"], ["training.batch_size", "greater"]),
            (["xmcgan_scenes32", "--set", "model.image_losses=vgg"], ["model.image_losses", "'pretrained'", "'vgg'"]),
            (["xmcgan_scenes32", "--set", "model.resolution=48"], ["model.resolution", "32", "48"]),
            (["xmcgan_scenes32", "--workers", "5"], ["batch_size 32", "5 workers", "multiple of 5"]),
            (["xmcgan_scenes32", "--workers", "0"], ["--workers", "0 is not in the range"]),
            (["xmcgan_scenes32", "--wrkers", "2"], ["No such option '--wrkers'", "'--workers'"]),
            (["xmcgan_scenes32", "--data", "coco:/no/where"], ["'/no/where' cannot be opened"]),
            (["xmcgan_scenes32", "--data", "scenes:size=1000"], ["'size' is '1000'", "from 32 to 256"]),
        ],
    )
    def test_wrong_requests(self, t2i: T2i, home: Path, command: str, options: list[str], parts: list[str]) -> None:
        t2i(command, *options).refused(*parts)
        assert not made(home)

    def test_no_text_encoder(self, t2i: T2i, home: Path, coco: Path, tiny: list[str]) -> None:
        ended = t2i("train", "xmcgan_scenes32", "--data", f"coco:{coco}", *tiny, "--set", "text.name=/no/where")
        ended.refused("text.name", "no folder '/no/where'", "offline:")
        assert not made(home)

    def test_a_text_encoder_of_another_width(self, t2i: T2i, home: Path, coco: Path, tiny: list[str]) -> None:
        ended = t2i("train", "xmcgan_scenes32", "--data", f"coco:{coco}", *tiny, "--set", "model.text_dim=384")
        ended.refused("model.text_dim is 384", f"--set model.text_dim={TINY_DIM}")
        assert not made(home)

    def test_no_image_net(self, t2i: T2i, home: Path, coco: Path, tiny: list[str]) -> None:
        ended = t2i("train", "xmcgan_coco14", "--data", f"coco:{coco}", *tiny)
        ended.refused("vgg19 needs its ImageNet weights", "model.pretrained.weights=PATH")
        assert not made(home)

    def test_photographs_have_no_scenes_judge(self, t2i: T2i, home: Path, coco: Path, tiny: list[str]) -> None:
        wanted = [*tiny, "--set", "evaluation.protocol=scenes-net"]
        t2i("train", "xmcgan_scenes32", "--data", f"coco:{coco}", *wanted).refused("judges generated scenes only")
        assert not made(home)


class TestTune:
    @pytest.mark.parametrize(
        ("options", "parts"),
        [
            (["--parameter", "taus"], ["no parameter 'taus'", "tau"]),
            (["--range", "taus=1:2"], ["no parameter 'taus'", "tau"]),
            (["--range", "tau"], ["--range 'tau'", "NAME=low:high"]),
            (["--range", "tau=abc"], ["range 'abc' of tau", "tau="]),
            (["--range", "tau=0.2:0.1"], ["range '0.2:0.1' of tau", "tau="]),
            (["--range", "batch_size="], ["batch_size"]),
            (["--range", "batch_size=16,x"], ["batch_size"]),
            (["--trials", "0"], ["--trials", "0 is not in the range"]),
            (["--kimg", "-1"], ["--kimg", "-1"]),
            (["--kimg", "1", "--grace-kimg", "2"], ["grace", "1 kimg"]),
        ],
    )
    def test_wrong_requests(self, t2i: T2i, home: Path, options: list[str], parts: list[str]) -> None:
        t2i("tune", "xmcgan_scenes32", *options).refused(*parts)
        assert not made(home)

    @pytest.mark.parametrize(
        ("changes", "lengths"),
        [
            ([], (0.5, 0.5, 0.5)),
            (["--set", "training.checkpoint_kimg=0.2", "--set", "evaluation.every_kimg=null"], (0.2, 0.5, None)),
        ],
    )
    def test_lengths_are_the_first_rungs_unless_they_are_set(
        self, t2i: T2i, monkeypatch: pytest.MonkeyPatch, changes: list[str], lengths: tuple[float | None, ...]
    ) -> None:
        plans: list[Plan] = []

        def tune(plan: Plan, *rest: object) -> None:
            plans.append(plan)
            raise RequestError("that is enough")

        monkeypatch.setattr("orchestration.campaigns.campaign.tune", tune)
        t2i("tune", "xmcgan_scenes32", "--kimg", "2", *changes).refused("that is enough")
        base = plans[0].base
        found = (base.training.checkpoint_kimg, base.training.picture_kimg, base.evaluation.every_kimg)
        assert (base.training.kimg, *found) == (2.0, *lengths)

    def test_without_a_judge_there_is_no_objective(self, t2i: T2i, coco: Path, tiny: list[str]) -> None:
        ended = t2i("tune", "xmcgan_scenes32", "--data", f"coco:{coco}", *tiny, "--parameter", "tau")
        ended.refused("a campaign needs judging", "evaluation.protocol")


class TestUnknownRuns:
    @pytest.mark.parametrize("command", ["evaluate", "show", "promote"])
    def test_no_run_yet(self, t2i: T2i, home: Path, command: str) -> None:
        t2i(command, "xmcgan_scenes32-000").refused("no checkpoint in 'xmcgan_scenes32-000'", "none yet")
        assert not made(home)

    @pytest.mark.parametrize("command", ["evaluate", "show", "promote"])
    def test_the_runs_there_are_are_named(self, t2i: T2i, home: Path, command: str) -> None:
        (home / "runs" / "xmcgan_scenes32-abc").mkdir(parents=True)
        t2i(command, "nothing").refused("'nothing'", "xmcgan_scenes32-abc")
        # A run without a checkpoint is none to judge.
        t2i(command, "xmcgan_scenes32-abc").refused("no checkpoint")

    def test_nobody_to_serve(self, t2i: T2i) -> None:
        t2i("serve").refused("no model in", "has a champion", "t2i promote RUN", "t2i quickstart")

    def test_too_few_samples(self, t2i: T2i) -> None:
        t2i("evaluate", "any", "--samples", "3").refused("--samples", "x>=16")


class TestHome:
    @pytest.mark.parametrize(
        "command",
        [
            ["data", "check", TINY_SCENES],
            ["train", "xmcgan_scenes32"],
            ["tune", "xmcgan_scenes32"],
            ["evaluate", "run"],
            ["show", "run"],
            ["promote", "run"],
            ["rollback"],
            ["history"],
            ["serve"],
            ["quickstart"],
        ],
        ids=lambda words: words[0],
    )
    @pytest.mark.parametrize("below", ["", "deeper/still"])
    def test_below_a_file(self, t2i: T2i, tmp_path: Path, command: list[str], below: str) -> None:
        (tmp_path / "file").write_text("kept")
        ended = t2i(*command, "--home", str(tmp_path / "file" / below))
        ended.refused("home", str(tmp_path / "file"), "is not a folder", "--home")
        assert (tmp_path / "file").read_text() == "kept"

    def test_one_that_cannot_be_written(self, t2i: T2i, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: mode == os.F_OK)  # root may write everywhere
        t2i("train", "xmcgan_scenes32", "--home", str(tmp_path)).refused("cannot be written to", "T2I_HOME")

    def test_who_writes_nothing_needs_none(self, t2i: T2i, tmp_path: Path, coco: Path) -> None:
        (tmp_path / "file").write_text("")
        elsewhere = ["--home", str(tmp_path / "file")]
        for command in (["models"], ["data", "check", f"coco:{coco}"], ["train", "xmcgan_scenes32", "--dry-run"]):
            assert t2i(*command, *elsewhere).code == 0

    def test_the_option_comes_before_the_variable(self, t2i: T2i, home: Path, tmp_path: Path) -> None:
        assert t2i("data", "check", TINY_SCENES, "--home", str(tmp_path / "other")).code == 0
        assert (tmp_path / "other" / "data").is_dir() and not home.exists()


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestDiskFull:
    def test_no_room_for_scenes(self, t2i: T2i, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
        t2i("data", "check", TINY_SCENES).refused("only 0 MB are free", code=1)
        assert made(home) == ["data"]

    def test_it_fills_while_a_stage_is_written(
        self, t2i: T2i, home: Path, coco: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(np, "save", full)
        ended = t2i("train", "xmcgan_scenes32", "--data", f"coco:{coco}", *tiny)
        ended.refused("stage captions", "No space left", "free some", code=1)
        assert not [path for path in made(home) if "captions" in path]

    def test_it_fills_anywhere_else(
        self, t2i: T2i, coco: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(launch, "write_atomically", full)
        ended = t2i("train", "xmcgan_scenes32", "--data", f"coco:{coco}", *tiny)
        ended.refused("the disk is full", "No space left", "repeat the command", code=1)
        assert not list(Path.cwd().iterdir())


class TestTheUnexpected:
    @pytest.fixture
    def defect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(say: object) -> None:
            raise ZeroDivisionError("one\ntwo")

        monkeypatch.setattr(listing, "list_systems", broken)

    def test_the_story_is_kept(self, t2i: T2i, defect: None) -> None:
        ended = t2i("models")
        story = Path.cwd() / cli_module.STORY
        assert ended.code == 1
        assert ended.err == f"t2i: unexpected ZeroDivisionError: one two; the whole story is in {story}\n"
        assert "Traceback" in story.read_text() and "in broken" in story.read_text()

    def test_where_the_current_folder_cannot_be_written(
        self, t2i: T2i, defect: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path(cli_module.STORY).mkdir()  # root may write everywhere, but not into a folder
        (tmp_path / "temporary").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        ended = t2i("models")
        [story] = (tmp_path / "temporary").iterdir()
        assert ended.code == 1 and ended.err.endswith(f"the whole story is in {story}\n")
        assert "in broken" in story.read_text()

    def test_where_nothing_can_be_written(
        self, t2i: T2i, defect: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path(cli_module.STORY).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        ended = t2i("models")
        assert ended.code == 1 and "could not be written anywhere" in ended.err and "Traceback" not in ended.err

    def test_interrupted(self, t2i: T2i, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(say: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(listing, "list_systems", interrupted)
        ended = t2i("models")
        # click begins a new line after the ^C.
        assert (ended.code, ended.err) == (130, "\nt2i: interrupted: repeat the command to go on\n")
