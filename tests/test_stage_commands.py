"""`t2i stages` as a user meets it: the graph, what a change would run anew, one stage in full, and freeing the rest."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from orchestration.cli import cli
from orchestration.config import Experiment, apply_assignments
from orchestration.home import Home, exclusive
from orchestration.preparation import Preparation
from orchestration.prepared import Prepared
from orchestration.recipes import RECIPES, get_recipe
from orchestration.stage_commands import size_text
from orchestration.stage_commands import stages as stages_group
from orchestration.stage_store import PREPARED
from orchestration.stages import HASH_LIMIT, MANIFEST, Progress, Stage, ensure
from orchestration.tracking import Tracker
from orchestration.training import launch
from tests.cli_support import TINY_SCENES, T2i, every_command, made, runner
from tests.tiny_inputs import TINY_DIM, write_tiny_bert, write_tiny_coco

REPOSITORY = Path(__file__).resolve().parents[1]
COMMANDS = {words: command for words, command in every_command().items() if words[0] == "stages"}
PATIENCE_S = 60.0
NOBODY = "f" * 16


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state")


@pytest.fixture
def t2i(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> T2i:
    return runner(home.root, tmp_path / "here", monkeypatch, capsys)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_tiny_coco(tmp_path / "coco")


@pytest.fixture
def tiny(bert: Path, coco: Path) -> list[str]:
    """The words after `t2i stages` for a recipe that needs nothing that is not here."""
    values = {"text.name": bert, "model.text_dim": TINY_DIM, "evaluation.protocol": "none"}
    changes = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    return ["xmcgan_scenes32", "--data", f"coco:{coco}", *changes]


def experiment_of(words: list[str]) -> Experiment:
    data = [f'data.source="{words[2]}"']
    return apply_assignments(get_recipe(words[0]), [*data, *words[4::2]])


def states(graph: Any) -> dict[str, str]:
    return {row["label"]: row["state"] for row in [*graph["stages"], graph["run"]]}


def stage(name: str, inputs: dict[str, str] | None = None, size: int = 100, **settings: Any) -> Stage:
    """One that writes a file."""

    def run(folder: Path, _: Progress) -> None:
        (folder / "result.bin").write_bytes(b"r" * size)

    return Stage(name, 1, settings, inputs or {}, run)


def refer(run: Path, *folders: Path) -> None:
    """What a training writes into its run's folder."""
    run.mkdir(parents=True)
    values = {"train": {"pictures": [str(folder / "shards") for folder in folders], "labels": None}, "size": 3}
    (run / "prepared.json").write_text(json.dumps(values))


# Another process that reads the stage "read", or computes the stage "computed", until it is killed.
OTHER_PROCESS = """
import sys, time
from pathlib import Path
from orchestration.stages import Stage, ensure
store, does = Path(sys.argv[1]), sys.argv[2]

def run(folder, progress):
    (folder / "result.bin").write_bytes(b"r" * 100)
    while does == "computed":
        (store.parent / "ready").touch()
        time.sleep(0.01)

ensure(Stage(does, 1, {}, {}, run), store)
(store.parent / "ready").touch()
time.sleep(1000)
"""


@contextmanager
def other_process(home: Home, does: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", OTHER_PROCESS, str(home.stages), does], cwd=REPOSITORY)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (home.root / "ready").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        yield
    finally:
        process.kill()
        process.wait()


class TestGroup:
    def test_without_a_word_it_helps(self, t2i: T2i, home: Home) -> None:
        ended = t2i("stages")
        assert (ended.code, ended.err) == (0, "") and ended == t2i("stages", "--help") == t2i("stages", "-h")
        assert all(f"\n  {words[1]} " in ended.out for words in COMMANDS)
        assert not home.root.exists()

    def test_no_recipe_is_called_as_a_command(self) -> None:
        assert not RECIPES.keys() & stages_group.commands.keys()

    @pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
    def test_examples_are_commands(self, words: tuple[str, ...]) -> None:
        lines = [line.strip() for line in (COMMANDS[words].help or "").splitlines() if "t2i stages " in line]
        lines = [line.removeprefix("Example: ") for line in lines if line.startswith(("t2i", "Example"))]
        assert lines
        for line in lines:
            context = stages_group.make_context(
                "stages", shlex.split(line)[2:], parent=cli.make_context("t2i", ["stages"])
            )
            _, command, rest = stages_group.resolve_command(context, [*context._protected_args, *context.args])
            assert command is COMMANDS[words]
            command.make_context(words[1], rest, parent=context)

    def test_wrong_words(self, t2i: T2i, home: Home) -> None:
        t2i("stages", "chekc").refused("no recipe or command 'chekc'", "t2i stages check")
        t2i("stages", "xmcgan_scene32").refused("no recipe 'xmcgan_scene32'", "xmcgan_scenes32")
        t2i("stages", "--json", "gc").refused("gc is a command", "t2i stages gc --json")
        t2i("stages", "--json").refused("Missing argument 'RECIPE'", "t2i stages graph --help")
        t2i("stages", "show").refused("Missing argument 'NAME-KEY'")
        assert not home.root.exists()


class TestGraph:
    def test_nothing_is_there_and_nothing_is_run(self, t2i: T2i, home: Home, tiny: list[str]) -> None:
        graph = t2i("stages", *tiny, "--json").json
        assert states(graph) == dict.fromkeys(
            [f"{name} ({split})" for split in ("train", "val") for name in ("pictures", "captions", "text-features")]
            + ["the run"],
            "missing",
        )
        assert graph["change"] is None and graph["folder"] == str(home.stages)
        assert not home.root.exists()
        # Options may come first, and the command may be written out.
        assert t2i("stages", "--json", *tiny).json == t2i("stages", "graph", *tiny, "--json").json == graph

    @pytest.mark.parametrize("data", ["photographs", "scenes"])
    def test_all_is_done_when_all_is_prepared(self, t2i: T2i, home: Home, tiny: list[str], data: str) -> None:
        tiny[2] = TINY_SCENES if data == "scenes" else tiny[2]
        Preparation(experiment_of(tiny), home).everything()
        ended = t2i("stages", *tiny, "--json")
        graph = ended.json
        *rows, run = states(graph).values()
        assert set(rows) == {"done"} and run == "missing"
        # The graph is all there is.
        folders = {path.name for path in home.stages.iterdir() if path.is_dir()}
        assert {row["name"] for row in graph["stages"]} == folders
        for row in graph["stages"]:
            folder = home.stages / row["name"]
            assert row["bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) > 0
        [line] = [line for line in ended.err.splitlines() if "text-features (train)" in line]
        assert line.split()[0] == "done" and "encoder" in line and "kB" in line

    def test_a_damaged_one_says_which_file(self, t2i: T2i, home: Home, tiny: list[str]) -> None:
        prepared = Preparation(experiment_of(tiny), home).everything()
        words = Path(str(prepared.train.features)) / "words.npy"
        content = words.read_bytes()
        words.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        graph = t2i("stages", *tiny, "--json").json
        assert states(graph)["text-features (train)"] == "damaged" and states(graph)["text-features (val)"] == "done"
        assert "words.npy is not what was written" in t2i("stages", *tiny).out
        with pytest.raises(Exception, match=r"words\.npy .*t2i stages drop text-features-"):
            Preparation(experiment_of(tiny), home).everything()
        [name] = [row["name"] for row in graph["stages"] if row["state"] == "damaged"]
        assert t2i("stages", "drop", name, "--json").json["dropped"] == name
        Preparation(experiment_of(tiny), home).everything()
        assert words.read_bytes() == content

    def test_running(self, t2i: T2i, home: Home, tiny: list[str]) -> None:
        [name] = [
            row["name"] for row in t2i("stages", *tiny, "--json").json["stages"] if row["label"] == "captions (val)"
        ]
        home.stages.mkdir(parents=True)
        run = home.runs / experiment_of(tiny).run_name
        with FileLock(home.stages / f".{name}.lock"), exclusive(run):
            (run / "metrics.jsonl").write_text('{"images": 2500, "kimg": 2.5, "time": 0, "metrics": {}}\n')
            ended = t2i("stages", *tiny, "--json")
            assert [label for label, state in states(ended.json).items() if state == "running"] == [
                "captions (val)",
                "the run",
            ]
            assert ended.json["run"]["note"] == "at 2.5 of 24 kimg" and "[at 2.5 of 24 kimg]" in ended.err
        assert set(states(t2i("stages", *tiny, "--json").json).values()) == {"missing"}
        (run / "outcome.json").write_text(json.dumps({"status": "finished", "reason": "", "images_seen": 24000}))
        assert states(t2i("stages", *tiny, "--json").json)["the run"] == "done"

    def test_begun_ones_say_so(self, t2i: T2i, home: Home, tiny: list[str]) -> None:
        rows = t2i("stages", *tiny, "--json").json["stages"]
        begun = home.stages / f".{rows[0]['name']}-begun"
        begun.mkdir(parents=True)
        (begun / "half").write_bytes(bytes(500))
        row = t2i("stages", *tiny, "--json").json["stages"][0]
        assert (row["state"], row["note"], row["bytes"]) == ("missing", "begun", 500)

    @pytest.mark.parametrize(
        ("changes", "anew", "run"),
        [
            (["text.max_tokens=9"], ["text-features", "text-features"], "anew"),
            (["model.resolution=64"], ["pictures", "pictures"], "anew"),
            (["model.tau=0.3"], [], "anew"),
            (["resources.workers=2"], [], "stays"),
            (["data.transform=attngan", "text.max_tokens=9"], ["pictures", "text-features"] * 2, "anew"),
        ],
        ids=lambda value: "+".join(value) if isinstance(value, list) and "=" in "".join(value) else "",
    )
    def test_what_a_change_runs_anew(
        self, t2i: T2i, tiny: list[str], changes: list[str], anew: list[str], run: str
    ) -> None:
        options = [part for change in changes for part in ("--change", change)]
        ended = t2i("stages", *tiny, *options, "--json")
        change = ended.json["change"]
        assert [name.rpartition("-")[0] for name in change["anew"]] == anew and change["fields"] == changes
        assert change["run"]["effect"] == run and change["there_already"] == []
        assert len(change["stays"]) == len(ended.json["stages"]) - len(anew)
        assert ("is a new run" if run == "anew" else "the run  ") in ended.err
        changed = experiment_of([*tiny, *[part for change in changes for part in ("--set", change)]])
        assert change["run"]["name"] == changed.run_name

    def test_what_another_run_has_made_is_not_run_anew(self, t2i: T2i, home: Home, tiny: list[str]) -> None:
        Preparation(experiment_of([*tiny, "--set", "text.max_tokens=9"]), home).everything()
        ended = t2i("stages", *tiny, "--change", "text.max_tokens=9", "--json")
        assert len(ended.json["change"]["there_already"]) == 2 and not ended.json["change"]["anew"]
        assert "is there already: text-features-" in ended.err

    def test_wrong_requests(self, t2i: T2i, home: Home, tiny: list[str]) -> None:
        for options, parts in (
            (["--change", "model.tau"], ["--change 'model.tau' is no assignment", "field=value"]),
            (["--change", "=3"], ["--change '=3' is no assignment"]),
            (["--change", "model.taus=1"], ["no field 'model.taus'", "model.tau"]),
            (["--change", "model.tau=-1"], ["model.tau"]),
            (["--data", "coco:/no/where"], ["'/no/where' cannot be opened"]),
            (["--set", "text.name=/no/where"], ["text.name", "no folder '/no/where'"]),
        ):
            t2i("stages", *tiny, *options).refused(*parts)
        assert not home.root.exists()

    def test_trained_parts(self, t2i: T2i, home: Home) -> None:
        words = ["mirrorgan_scenes", "--data", TINY_SCENES]
        ended = t2i("stages", *words, "--json")
        rows = {row["label"]: row for row in ended.json["stages"]}
        order = list(rows)
        assert order[0] == "vocabulary" and order.index("damsm") < order.index("text-features (train)")
        assert rows["damsm"]["inputs"]["vocabulary"] == rows["vocabulary"]["name"]
        assert rows["text-features (train)"]["inputs"]["encoder"] == rows["damsm"]["name"]
        assert [label for label in rows if "data" in rows[label]["inputs"]]
        [line] = [line for line in ended.err.splitlines() if " damsm " in line]
        assert "from train " in line and ", vocabulary" in line
        # Every other stage that reads data was drawn scenes': they are made, and nothing else is.
        assert {path.split("/")[0] for path in made(home.root)} == {"data"}
        part = home.runs / rows["damsm"]["name"]
        part.mkdir(parents=True)
        (part / "metrics.jsonl").write_text('{"images": 500, "kimg": 0.5, "time": 0, "metrics": {}}\n')
        again = {row["label"]: row for row in t2i("stages", *words, "--json").json["stages"]}
        assert again["damsm"]["note"].startswith("at 0.5 of ")

    @pytest.mark.parametrize(
        ("change", "anew"),
        [
            ("model.stream_weight=3", set()),
            ("stages.stream.training.kimg=7", {"stream"}),
            ("stages.damsm.training.kimg=7", {"damsm", "text-features"}),
            ("words.min_count=2", {"vocabulary", "damsm", "stream", "text-features"}),
        ],
    )
    def test_a_change_runs_anew_what_comes_after_it(self, t2i: T2i, change: str, anew: set[str]) -> None:
        found = t2i("stages", "mirrorgan_scenes", "--data", TINY_SCENES, "--change", change, "--json").json["change"]
        assert {name.rpartition("-")[0] for name in found["anew"]} == anew
        assert found["run"]["effect"] == "anew"


class TestShow:
    def test_a_stage_in_full(self, t2i: T2i, home: Home) -> None:
        source = ensure(stage("words"), home.stages)
        middle = stage("damsm", {"words": source.name[-16:], "data": "d" * 64}, kimg=3)
        folder = ensure(middle, home.stages)
        above = ensure(stage("features", {"encoder": middle.key}), home.stages)
        refer(home.runs / "gan-123456789abc", folder)
        ended = t2i("stages", "show", folder.name, "--json")
        found = ended.json
        assert (found["name"], found["state"], found["version"]) == (folder.name, "done", 1)
        assert found["settings"] == {"kimg": 3} and found["files"] == {"result.bin": 100}
        assert found["inputs"] == {"words": source.name, "data": "d" * 64}
        assert found["used_by"] == ["runs/gan-123456789abc", above.name]
        [record] = found["computed"]
        assert record["process"] == os.getpid() and record["seconds"] >= 0
        assert found["figures"] is None
        for part in (folder.name, "result.bin, 100 B", f"made from words: {source.name}", "settings  {", "by process"):
            assert part in ended.err
        assert "t2i stages gc frees it" in t2i("stages", "show", above.name).out

    def test_a_trained_part_has_figures(self, t2i: T2i, home: Home) -> None:
        def train(folder: Path, _: Progress) -> None:
            (folder / "figures.json").write_text('{"validation/r_precision": 0.5}')

        ensure(Stage("damsm", 1, {}, {}, train), home.stages)
        ended = t2i("stages", "show", "damsm", "--json")
        assert ended.json["figures"] == {"validation/r_precision": 0.5}
        assert "validation/r_precision = 0.5" in ended.err

    def test_the_beginning_is_enough_where_it_is_one(self, t2i: T2i, home: Home) -> None:
        names = [ensure(stage("words", kind=kind), home.stages).name for kind in range(2)]
        other = ensure(stage("damsm"), home.stages).name
        assert t2i("stages", "show", "dam", "--json").json["name"] == other
        assert t2i("stages", "show", names[0][-16:-8], "--json").json["name"] == names[0]
        t2i("stages", "show", "words").refused("'words' may be any of", *names)
        t2i("stages", "show", "damms").refused("no stage 'damms'", f"near it: {other}")
        t2i("stages", "show", "").refused("no stage ''")

    def test_an_empty_store(self, t2i: T2i) -> None:
        t2i("stages", "show", "words").refused("no stage 'words'", "it is empty", "t2i stages RECIPE")

    @pytest.mark.parametrize("damaged", [MANIFEST, "result.bin"])
    def test_a_damaged_one(self, t2i: T2i, home: Home, damaged: str) -> None:
        folder = ensure(stage("words"), home.stages)
        (folder / damaged).write_text("{")
        found = t2i("stages", "show", "words", "--json").json
        assert found["state"] == "damaged" and damaged in found["note"]
        assert "damaged: " in t2i("stages", "show", "words").out


class TestCheck:
    def test_all_is_whole(self, t2i: T2i, home: Home) -> None:
        assert t2i("stages", "check", "--json").json == {"stages": 0, "damaged": {}}
        ensure(stage("words"), home.stages)
        ended = t2i("stages", "check", "--json")
        assert ended.json == {"stages": 1, "damaged": {}} and "all as they were written" in ended.err

    def test_every_byte_is_read(self, t2i: T2i, home: Home) -> None:
        large = stage("pictures", size=HASH_LIMIT + 1)
        file = ensure(large, home.stages) / "result.bin"
        ensure(stage("words"), home.stages)
        times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
        with file.open("r+b") as opened:
            opened.seek(HASH_LIMIT)
            opened.write(b"x")
        os.utime(file, ns=times)
        assert ensure(large, home.stages) == file.parent
        ended = t2i("stages", "check", "--json")
        assert ended.code == 1 and "1 of 2 stages are damaged: t2i stages drop NAME-KEY" in ended.err.splitlines()[-1]
        assert "result.bin is not what was written" in json.loads(ended.out)["damaged"][file.parent.name]


class TestDrop:
    def test_the_next_run_computes_it_anew(self, t2i: T2i, home: Home) -> None:
        folder = ensure(stage("words"), home.stages)
        (folder / "result.bin").write_text("other")
        size = sum(path.stat().st_size for path in folder.iterdir())
        assert t2i("stages", "drop", folder.name, "--json").json == {"dropped": folder.name, "bytes": size}
        assert made(home.stages) == ["records.jsonl"]
        assert ensure(stage("words"), home.stages) == folder

    def test_what_was_begun_too(self, t2i: T2i, home: Home) -> None:
        begun = home.stages / f".words-{NOBODY}-begun"
        begun.mkdir(parents=True)
        (begun / "half").write_bytes(bytes(50))
        assert t2i("stages", "drop", f"words-{NOBODY}", "--json").json["bytes"] == 50
        assert not begun.exists()

    def test_no_stage(self, t2i: T2i, home: Home) -> None:
        folder = ensure(stage("words"), home.stages)
        run = home.runs / f"words-{NOBODY}"
        refer(run)
        (run / MANIFEST).write_text("{}")
        (home.stages / f"mine-{NOBODY}").mkdir()
        for name in (
            f"words-{NOBODY}",
            f"{folder.name}/../../runs/{run.name}",
            f"../runs/{run.name}",
            f"mine-{NOBODY}",
        ):
            t2i("stages", "drop", name).refused(f"no stage '{name}'")
        t2i("stages", "drop", "words").refused("'words' is not the whole name of a stage")
        assert folder.is_dir() and run.is_dir() and (home.stages / f"mine-{NOBODY}").is_dir()

    @pytest.mark.parametrize("does", ["read", "computed"])
    def test_refused_while_another_process_needs_it(self, t2i: T2i, home: Home, does: str) -> None:
        name = stage(does).folder_name
        with other_process(home, does):
            if does == "computed":
                (home.stages / f".{name}-begun").mkdir()
            t2i("stages", "drop", name).refused(name, "is being computed or read by another process")
        assert t2i("stages", "drop", name).code == 0


class TestGc:
    def test_what_is_referred_to_is_kept_with_what_it_was_made_from(self, t2i: T2i, home: Home) -> None:
        def made_from(name: str, *sources: Path) -> Path:
            inputs = {str(place): source.name[-16:] for place, source in enumerate(sources)}
            return ensure(stage(name, inputs), home.stages)

        words, lonely = made_from("words"), made_from("lonely")
        damsm = made_from("damsm", words)
        stream = made_from("stream", words, damsm)
        in_trial, alone = made_from("features", stream), made_from("alone", lonely)
        judge, part = made_from("judge"), made_from("part")
        refer(home.campaigns / "campaign" / "trials" / "trial-1", in_trial)
        refer(home.runs / "gan-123456789abc", judge)
        (home.runs / part.name).mkdir()
        before = made(home.root)

        dry = t2i("stages", "gc", "--dry-run", "--json")
        assert before == made(home.root) and dry.json["dry_run"] is True
        assert f"would free {alone.name}" in dry.err
        ended = t2i("stages", "gc", "--json")
        found = ended.json
        assert found["freed"].keys() == {lonely.name, alone.name} and found | {"dry_run": True} == dry.json
        assert found["bytes"] == sum(found["freed"].values()) > 200
        assert found["kept"] == {
            in_trial.name: "campaigns/campaign/trials/trial-1",
            judge.name: "runs/gan-123456789abc",
            part.name: f"runs/{part.name}",
            stream.name: f"{in_trial.name} was made from it",
            words.name: f"{stream.name} was made from it",
            damsm.name: f"{stream.name} was made from it",
        }
        assert f"freed {alone.name}, " in ended.err and "in 2 stages; 6 are kept" in ended.err
        left = {path.name for path in home.stages.iterdir() if path.is_dir()}
        assert left == found["kept"].keys()
        assert t2i("stages", "gc", "--json").json["freed"] == {}

    def test_a_home_that_was_moved_keeps_its_stages(self, t2i: T2i, home: Home, tmp_path: Path) -> None:
        folder = ensure(stage("words"), home.stages)
        refer(home.runs / "gan-123456789abc", folder)
        home.root.rename(tmp_path / "moved")
        found = t2i("stages", "gc", "--home", str(tmp_path / "moved"), "--json").json
        assert list(found["kept"]) == [folder.name] and not found["freed"]

    def test_nothing_else_is_touched(self, t2i: T2i, home: Home, tmp_path: Path) -> None:
        freed = ensure(stage("words"), home.stages)
        store, outside = home.stages, tmp_path / f"outside-{NOBODY}"
        outside.mkdir()
        (outside / MANIFEST).write_text("{}")
        for folder in (f"no-manifest-{NOBODY}", "no-key", ".hidden", f".words-{NOBODY}-begun", ".words-123-12345678"):
            (store / folder).mkdir()
            (store / folder / "mine").write_text("mine")
        (store / "no-key" / MANIFEST).write_text("{}")
        (store / f"file-{NOBODY}").write_text("mine")
        (store / f".words-{NOBODY}-abcdef12").write_text("a file")
        (store / f"linked-{NOBODY}").symlink_to(outside)
        before = set(made(home.root))
        found = t2i("stages", "gc", "--json").json
        assert found["freed"].keys() == {freed.name} and not found["temporaries"]
        assert found["begun"] == {f"words-{NOBODY}": 4}
        gone = before - set(made(home.root))
        assert {path.split("/")[1] for path in gone} == {freed.name} and (outside / MANIFEST).exists()

    def test_abandoned_temporaries_are_freed(self, t2i: T2i, home: Home) -> None:
        held, abandoned = (home.stages / f".{name}-{NOBODY}-0123abcd" for name in ("held", "abandoned"))
        for folder in (held, abandoned):
            (folder / "inner").mkdir(parents=True)
            (folder / "inner" / "half").write_bytes(bytes(70))
        with FileLock(home.stages / f".held-{NOBODY}.lock"):
            assert t2i("stages", "gc", "--dry-run", "--json").json["temporaries"] == {abandoned.name: 70}
            found = t2i("stages", "gc", "--json").json
        assert found["temporaries"] == {abandoned.name: 70} and found["bytes"] == 70
        assert held.exists() and not abandoned.exists()

    @pytest.mark.parametrize("does", ["read", "computed"])
    def test_what_another_process_needs_is_kept(self, t2i: T2i, home: Home, does: str) -> None:
        before = ensure(stage("computed"), home.stages) if does == "computed" else None
        if before:
            before.rename(home.stages / "aside")
        with other_process(home, does):
            if before:  # as a result that is being checked
                (home.stages / "aside").rename(before)
            name = stage(does).folder_name
            for _ in range(2):
                found = t2i("stages", "gc", "--json").json
                assert found["kept"] == {name: "another process works with it"} and not found["freed"]
                assert not found["temporaries"]
        assert list(t2i("stages", "gc", "--json").json["freed"]) == [name]

    def test_a_run_whose_list_is_broken(self, t2i: T2i, home: Home) -> None:
        folder = ensure(stage("words"), home.stages)
        refer(home.runs / "gan-123456789abc")
        (home.runs / "gan-123456789abc" / "prepared.json").write_text("{")
        t2i("stages", "gc").refused("gan-123456789abc/prepared.json cannot be read", "repeat the run")
        assert folder.is_dir()

    def test_an_empty_home(self, t2i: T2i, home: Home) -> None:
        found = t2i("stages", "gc", "--json").json
        assert found["bytes"] == 0 and not home.root.exists()

    def test_what_a_training_reads_is_kept(
        self, t2i: T2i, home: Home, tiny: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        experiment = experiment_of(tiny)
        monkeypatch.setattr(launch, "_train", lambda *_: None)
        launch.train(experiment, home, Tracker(home.root, None))
        everything = sorted(path.name for path in home.stages.iterdir() if path.is_dir())
        found = t2i("stages", "gc", "--json").json
        assert sorted(found["kept"]) == everything and len(everything) == 6 and not found["freed"]
        run = home.runs / experiment.run_name
        written = Prepared.from_json(json.loads((run / "prepared.json").read_text()))
        assert written == Preparation(experiment, home).everything()

    def test_what_a_trial_reads_is_kept(
        self, t2i: T2i, home: Home, tiny: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        experiment = experiment_of(tiny)
        prepared = Preparation(experiment, home).everything()
        trial = home.campaigns / "campaign" / "trials" / "t1"
        trial.mkdir(parents=True)
        (trial / PREPARED).write_text(json.dumps(prepared.to_json()))
        found = t2i("stages", "gc", "--json").json
        assert set(found["kept"].values()) == {"campaigns/campaign/trials/t1"} and len(found["kept"]) == 6


def test_sizes() -> None:
    sizes = {0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 999_960: "1.0 MB", 2 * 10**15: "2000.0 TB"}
    assert {count: size_text(count) for count in sizes} == sizes
