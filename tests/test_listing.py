"""What `t2i models` and `t2i data list` show, and the bars that a person sees while waiting."""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from models.registry import get_system, system_names
from orchestration import progress as progress_module
from orchestration.config import Experiment, describe_fields
from orchestration.data.sources import FORMATS, SCENES, open_source
from orchestration.errors import RequestError
from orchestration.listing import SCENES_CARRY, first_line, list_formats, list_systems, show_system
from orchestration.progress import Bars, Watcher, default_progress
from orchestration.recipes import RECIPES
from orchestration.stages import quiet
from orchestration.training.recorder import METRICS
from search_spaces.space import load_space


class TestSystems:
    def test_every_system_and_recipe_is_listed(self) -> None:
        said: list[str] = []
        found = list_systems(said.append)["systems"]
        assert list(found) == system_names()
        assert sorted(name for system in found.values() for name in system["recipes"]) == sorted(RECIPES)
        for recipe in RECIPES:
            assert any(recipe in line and first_line(recipe) in line for line in said)

    def test_what_is_listed_is_json(self) -> None:
        for result in (list_systems(quiet_say), *(show_system(name, quiet_say) for name in system_names())):
            assert json.loads(json.dumps(result)) == result

    @pytest.mark.parametrize("name", system_names())
    def test_one_system_whole(self, name: str) -> None:
        said: list[str] = []
        shown = show_system(name, said.append)
        text = "\n".join(said)
        space = load_space(name)
        assert shown["parameters"].keys() == space.parameters.keys()
        for key, parameter in space.parameters.items():
            mark = "*" if key in space.default else " "
            [line] = [line for line in said if line.startswith(f" {mark}{key} ")]
            assert parameter.source in line
        for recipe, function in RECIPES.items():
            assert (recipe in text) == (function().system == name)

    @pytest.mark.parametrize("name", system_names())
    def test_every_field_with_its_true_default(self, name: str) -> None:
        said: list[str] = []
        show_system(name, said.append)
        fields = dict(line.strip().split(" = ", 1) for line in said if line.startswith("  ") and " = " in line[:60])
        config = get_system(name).Config
        for field, *_ in describe_fields(config):
            value: Any = config().model_dump(mode="json")
            for part in field.split("."):
                value = value[part]
            assert fields[f"model.{field}"].startswith(f"{json.dumps(value)}  ["), field
        for field, *_ in describe_fields(Experiment):
            # The recipe and the system are chosen by name; they are not set.
            assert (field in fields) == (field not in ("recipe", "system", "model")), field
        assert fields["training.kimg"].startswith("(the recipe says)")
        assert "required" not in "".join(fields.values())

    def test_no_line_is_empty_among_the_fields(self) -> None:
        said: list[str] = []
        show_system("xmcgan", said.append)
        fields = said[said.index("\nFields (--set FIELD=VALUE)") + 1 :]
        assert len(fields) > 50 and all(line.strip() for line in fields)

    def test_every_field_that_is_shown_can_be_set(self) -> None:
        said: list[str] = []
        show_system("xmcgan", said.append)
        experiment = RECIPES["xmcgan_scenes32"]()
        for line in said:
            name, equals, rest = line.strip().partition(" = ")
            if equals and name.startswith(("model.", "training.", "data.", "text.", "evaluation.", "resources.")):
                value: Any = experiment
                for part in name.split("."):
                    value = getattr(value, part)
                assert experiment.replace({name: value}) == experiment, rest

    def test_an_unknown_system(self) -> None:
        with pytest.raises(RequestError, match="no system 'xmc-gan'; perhaps 'xmcgan' was meant; there are"):
            show_system("xmc-gan", quiet_say)
        with pytest.raises(RequestError, match="no system 'dalle'; there are"):
            show_system("dalle", quiet_say)


def quiet_say(line: str) -> None:
    """Says nothing."""


class TestFormats:
    def test_every_format_with_what_it_carries_and_serves(self) -> None:
        said: list[str] = []
        found = list_formats(said.append)["formats"]
        assert list(found) == [SCENES, *FORMATS]
        for name, known in FORMATS.items():
            assert set(found[name]["carries"]) == known.carries and found[name]["title"] == known.title
            needs = {system: get_system(system).needs for system in system_names()}
            assert found[name]["serves"] == [system for system in needs if needs[system] <= known.carries]
            assert any(line.startswith(f"{name}:PATH ") and known.title in line for line in said)
        assert found["coco"]["serves"] and "xmcgan" in found["coco"]["serves"]

    def test_scenes_carry_what_is_said(self, tmp_path: Path) -> None:
        spec = "scenes:size=32,things=3,colours=3,backgrounds=2,objects=2,train=4,val=2,test=2"
        assert open_source(spec, "train", tmp_path).carries == SCENES_CARRY


class TestProgress:
    def test_nobody_watching_sees_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert default_progress() is quiet
        default_progress()("work", 1, 2)
        assert capsys.readouterr() == ("", "")

    def test_a_person_sees_bars(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(progress_module, "person_watching", lambda: True)
        progress = default_progress()
        assert isinstance(progress, Bars)
        progress("drawing", 1, 4)
        time.sleep(0.15)  # tqdm draws ten times a second
        progress("drawing", 3, 4)
        progress("drawing", 4, 4)
        seen = capsys.readouterr()
        assert "drawing:  75%" in seen.err and "3/4" in seen.err
        # A finished bar is taken away.
        assert seen.err.endswith("\r")
        progress("training", 0, 1000)
        progress.close()
        assert "training:   0%" in capsys.readouterr().err
        assert seen.out == ""

    def test_bars_may_be_called_from_several_threads(self, capsys: pytest.CaptureFixture[str]) -> None:
        bars = Bars()
        threads = [
            threading.Thread(target=lambda what=what: [bars(what, done, 50) for done in range(51)]) for what in "abcd"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bars.close()
        assert "Traceback" not in capsys.readouterr().err

    def test_a_growing_run_is_watched(self, tmp_path: Path) -> None:
        told: list[tuple[str, int, int]] = []
        arrived = threading.Event()

        def progress(what: str, done: int, total: int) -> None:
            told.append((what, done, total))
            if done == 1500:
                arrived.set()

        with Watcher(tmp_path, 1.5, progress, every_s=0.01) as watcher:
            with (tmp_path / METRICS).open("a") as file:
                for images in (500, 1600):
                    file.write(json.dumps({"images": images, "kimg": images / 1000, "time": 0.0, "metrics": {}}) + "\n")
                    file.flush()
            assert arrived.wait(10)
        # A last batch may go beyond the length; the bar does not.
        assert told[-1] == ("training, images", 1500, 1500)
        assert not watcher._thread.is_alive()

    def test_a_quiet_run_starts_no_thread(self, tmp_path: Path) -> None:
        with Watcher(tmp_path, 1.0, quiet, every_s=0.01) as watcher:
            assert watcher._thread.ident is None

    def test_person_watching_is_about_standard_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for terminal in (True, False):
            monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
            assert progress_module.person_watching() == terminal
