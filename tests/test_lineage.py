"""From a picture's id back to version, run, trial and data, in a real registry."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.campaigns.segments import TRIALS, trial_name
from orchestration.champion_contest import Contest
from orchestration.champion_history import ENTRY_TAG
from orchestration.champions import Promotion, promote, rollback
from orchestration.config import Experiment
from orchestration.errors import RunError
from orchestration.home import Home
from orchestration.recipes import get_recipe
from orchestration.registry import ModelVersion
from orchestration.serving.lineage import trace
from orchestration.serving.pictures import IMAGE_ID, image_id
from orchestration.serving.replies import Lineage
from orchestration.serving.requests import ServeError
from orchestration.tracking import Tracker
from orchestration.training.state import Checkpoint, Provenance, initial_state, open_checkpoint, save_checkpoint
from tests.mlflow_support import client_of

DATA = "scenes:size=32"
CPU = torch.device("cpu")


@dataclass
class World:
    """A home with runs and trials whose nets nobody trained, and a registry of them."""

    tracker: Tracker
    experiment: Experiment
    made: list[Checkpoint] = field(default_factory=list)

    @property
    def home(self) -> Home:
        return Home(self.tracker.home)

    def run(self, folder: Path) -> Checkpoint:
        experiment = self.experiment.replace({"training.seed": len(self.made), "data.source": DATA})
        state = initial_state(experiment, CPU)
        state.images_seen = 12_000
        self.made.append(
            open_checkpoint(save_checkpoint(state, experiment, Provenance("dada", "text"), folder / "checkpoints"))
        )
        return self.made[-1]

    def promote(self, checkpoint: Checkpoint, force: bool = True) -> Promotion:
        figures = {"validation/fid": 3.25, "validation/odd": float("nan")}
        contest = Contest(force=force, command="t2i promote it")
        return promote(self.tracker, self.home, checkpoint, checkpoint.folder.parent.parent, contest, figures)

    def trial(self, campaign: str, number: int, tracked: bool = True) -> Checkpoint:
        """A trial, and its record in MLflow as a campaign leaves it."""
        name, system = trial_name(number), self.experiment.system
        if tracked:
            parent = self.tracker.start_run(
                system, f"campaign {campaign}", f"campaign-{campaign}", {}, {"t2i.kind": "campaign"}
            )
            told = {"data": {"source": DATA}}
            self.tracker.start_run(system, name, f"{campaign}-{name}", told, {"t2i.kind": "trial"}, parent)
        return self.run(self.home.campaigns / campaign / TRIALS / name)

    def trace(self, checkpoint: Checkpoint) -> Lineage:
        return trace(self.tracker, self.home, image_of(checkpoint))


def image_of(checkpoint: Checkpoint) -> str:
    return image_id(checkpoint.digest, "prompt", "a red boat", 0, None)


@pytest.fixture
def world(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> World:
    experiment = get_recipe("xmcgan_scenes32").replace(
        {"model.text_dim": 8, "model.channels": 2, "model.noise_dim": 4, "model.sentence_dim": 4}
    )

    def unjudged(*arguments: Any) -> Any:
        from orchestration.errors import RequestError

        raise RequestError("nothing is judged here")

    monkeypatch.setattr("orchestration.champions.judge_challenger", unjudged)
    return World(tracker, experiment)


def registered(world: World, checkpoint: Checkpoint) -> ModelVersion:
    return next(v for v in world.tracker.versions("xmcgan") if v.tags["t2i.checkpoint_digest"] == checkpoint.digest)


class TestWhatIsFound:
    def test_a_run(self, world: World) -> None:
        checkpoint = world.run(world.home.runs / "one")
        world.promote(checkpoint)
        found = world.trace(checkpoint)
        assert found.image == image_of(checkpoint) and IMAGE_ID.fullmatch(found.image)
        assert (found.model, found.versions, found.champion, found.system) == ("xmcgan", [1], True, "xmcgan")
        assert found.checkpoint_digest == checkpoint.digest
        assert (found.recipe, found.experiment) == ("xmcgan_scenes32", checkpoint.experiment.identity)
        assert (found.images_seen, found.text_digest) == (12_000, "text")
        assert (found.data.source, found.data.digest) == (DATA, "dada")
        assert found.run == registered(world, checkpoint).run_id and found.run_name == "one"
        assert (found.campaign, found.trial) == (None, None)
        assert found.figures == {"validation/fid": 3.25}
        [line] = found.history
        assert re.fullmatch(r"1  \S+Z  version 1  first: there was no champion", line)
        json.loads(found.model_dump_json())

    @pytest.mark.parametrize("campaign", ["hunt", "trial-0001", "a-trial-0001-b"])
    @pytest.mark.parametrize("tracked", [True, False])
    def test_a_trial(self, world: World, campaign: str, tracked: bool) -> None:
        world.promote(world.run(world.home.runs / "one"))
        checkpoint = world.trial(campaign, 3, tracked)
        world.promote(checkpoint)
        found = world.trace(checkpoint)
        assert (found.campaign, found.trial, found.run_name) == (campaign, "trial-0003", "trial-0003")
        assert found.run == registered(world, checkpoint).run_id and found.data.source == DATA
        assert (found.versions, found.champion) == ([2], True)

    def test_who_is_champion_and_the_history_follow(self, world: World) -> None:
        one, two = (world.run(world.home.runs / name) for name in ("one", "two"))
        world.promote(one)
        world.promote(two)
        assert [world.trace(each).champion for each in (one, two)] == [False, True]
        rollback(world.tracker, world.home, "xmcgan", "t2i rollback")
        assert [world.trace(each).champion for each in (one, two)] == [True, False]
        assert [line.split("  ")[3].split(":")[0] for line in world.trace(one).history] == ["first", "rolled back"]
        assert [line.split("  ")[3].split(":")[0] for line in world.trace(two).history] == ["promoted, forced"]

    def test_a_checkpoint_of_several_versions(self, world: World) -> None:
        checkpoint = world.run(world.home.runs / "one")
        world.promote(checkpoint)
        run = world.tracker.versions("xmcgan")[0].run_id
        tags = {"t2i.checkpoint_digest": checkpoint.digest, "checkpoint_digest": "other"}
        assert world.tracker.register("xmcgan", run, checkpoint.folder, tags) == 2
        found = world.trace(checkpoint)
        assert found.versions == [1, 2] and found.champion
        # What the newer one lacks is unknown, not made up.
        assert (found.recipe, found.images_seen, found.figures) == ("unknown", 0, {})

    def test_other_models_are_looked_through(self, world: World) -> None:
        run = world.tracker.start_run("e", "n", "k", {})
        other = world.run(world.home.runs / "zero")
        for model in ("aaa", "zzz"):
            world.tracker.register(model, run, other.folder, {"t2i.checkpoint_digest": "ff" * 32})
        checkpoint = world.run(world.home.runs / "one")
        world.promote(checkpoint)
        assert world.trace(checkpoint).model == "xmcgan"


class TestWhatIsMissing:
    @pytest.mark.parametrize(
        "harm",
        [
            lambda manifest: manifest.unlink(),
            lambda manifest: manifest.write_text("no JSON"),
            lambda manifest: manifest.write_text('{"experiment": {"data": {"source": "made up"}}}'),
            lambda manifest: shutil.rmtree(manifest.parent),
        ],
        ids=["gone", "broken", "altered", "no folder"],
    )
    def test_the_manifest(self, world: World, harm: Callable[[Path], object]) -> None:
        checkpoint = world.trial("hunt", 1)
        world.promote(checkpoint)
        folder = world.tracker.folder_here(registered(world, checkpoint))
        assert folder is not None
        harm(folder / "manifest.json")
        assert world.trace(checkpoint).data.source == DATA

    def test_the_run(self, world: World) -> None:
        checkpoint = world.trial("hunt", 1)
        world.promote(checkpoint)
        client, run = client_of(world.tracker), registered(world, checkpoint).run_id
        # As `mlflow gc` leaves it.
        client._tracking_client.store._hard_delete_run(run)
        found = world.trace(checkpoint)
        assert (found.run, found.run_name, found.campaign, found.trial) == (run, "unknown", None, None)
        assert found.data.source == DATA and found.champion

    def test_a_broken_history(self, world: World) -> None:
        checkpoint = world.run(world.home.runs / "one")
        world.promote(checkpoint)
        world.tracker.tag_version("xmcgan", 1, {f"{ENTRY_TAG}0002": "no entry"})
        [line] = world.trace(checkpoint).history
        assert "t2i.history.0002 of version 1 of xmcgan is no entry" in line

    def test_nothing_is_downloaded_or_verified(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        checkpoint = world.run(world.home.runs / "one")
        world.promote(checkpoint)

        def never(*arguments: object) -> None:
            raise AssertionError("too dear for a click")

        monkeypatch.setattr(Tracker, "fetch", never)
        monkeypatch.setattr("orchestration.training.state.open_checkpoint", never)
        monkeypatch.setattr("orchestration.champions.open_checkpoint", never)
        assert world.trace(checkpoint).versions == [1]


class TestRefusals:
    @pytest.mark.parametrize(
        "image",
        [
            "",
            "abc",
            "../../etc/passwd",
            "0123456789abcdef",
            "0123456789abcdef-0123456789abcde",
            "0123456789ABCDEF-0123456789abcdef",
            "0123456789abcdef-0123456789abcdef\n",
            "%123456789abcdef-0123456789abcdef",
            "é" * 16 + "-" + "0" * 16,
        ],
    )
    def test_what_is_no_id(self, tmp_path: Path, image: str) -> None:
        # Nothing is asked of a registry, which would have to be made here.
        tracker = Tracker(tmp_path / "none")
        with pytest.raises(ServeError, match="is no id of a picture: send two groups of 16 hex digits") as refusal:
            trace(tracker, Home(tracker.home), image)
        assert (refusal.value.code, refusal.value.status) == ("unknown_image", 404)
        assert not tracker.home.exists() and refusal.value.message.isascii()

    @given(image=st.text(max_size=60))
    @settings(deadline=None, max_examples=100)
    def test_any_text(self, image: str) -> None:
        with pytest.raises(ServeError, match="is no id of a picture"):
            trace(Tracker(Path("/nowhere")), Home(Path("/nowhere")), image)

    def test_an_unknown_checkpoint(self, world: World) -> None:
        world.promote(world.run(world.home.runs / "one"))
        with pytest.raises(
            ServeError, match="no registered checkpoint has a digest that begins with 0{16}: "
        ) as refusal:
            trace(world.tracker, world.home, "0" * 16 + "-" + "1" * 16)
        assert (refusal.value.code, refusal.value.status) == ("unknown_image", 404)

    def test_a_registry_that_is_away(self, tmp_path: Path, closed_uri: str, caplog: pytest.LogCaptureFixture) -> None:
        tracker = Tracker(tmp_path, closed_uri)
        with pytest.raises(ServeError) as refusal:
            trace(tracker, Home(tmp_path), "0" * 16 + "-" + "1" * 16)
        assert (refusal.value.code, refusal.value.headers["Retry-After"]) == ("not_ready", "30")
        assert "127.0.0.1" not in refusal.value.message and "127.0.0.1" in caplog.text


class TestTheRegistry:
    def test_models_and_aliases(self, tracker: Tracker, tmp_path: Path) -> None:
        assert tracker.models() == [] and tracker.aliased("bird") == {}
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
        run = tracker.start_run("e", "n", "k", {})
        for model in ("xmcgan", "attngan"):
            tracker.register(model, run, folder, {})
        tracker.set_champion("xmcgan", 1)
        client_of(tracker).set_registered_model_alias("xmcgan", "tried", "1")
        assert tracker.models() == ["attngan", "xmcgan"]
        assert tracker.aliased("xmcgan") == {"champion": 1, "tried": 1} and tracker.aliased("attngan") == {}

    def test_one_run(self, tracker: Tracker) -> None:
        run = tracker.start_run("e", "name", "key", {"a": 1}, {"t": "u"})
        found = tracker.run_summary(run)
        assert (found.run_id, found.name, found.key, found.params["a"], found.tags["t"]) == (
            run,
            "name",
            "key",
            "1",
            "u",
        )

    def test_a_folder_that_is_not_here(self, tracker: Tracker) -> None:
        for source in ("s3://bucket/checkpoint", str(tracker.home / "gone")):
            assert tracker.folder_here(ModelVersion("m", 1, "r", {}, source)) is None

    def test_a_registry_that_is_away(self, tmp_path: Path, closed_uri: str) -> None:
        tracker = Tracker(tmp_path, closed_uri)
        for call in (tracker.models, lambda: tracker.aliased("m"), lambda: tracker.run_summary("r")):
            with pytest.raises(RunError, match="cannot be reached"):
                call()
