"""Promotion, refusal and roll-back in the registry: judging itself is made up here (tests/test_champion_contest.py)."""

import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from orchestration import champions as module
from orchestration.champion_contest import Contest, require_figure
from orchestration.champion_history import ENTRY_TAG, Decision, read_history
from orchestration.champions import Promotion, promote, rollback
from orchestration.cli import run_cli
from orchestration.config import Experiment
from orchestration.errors import RequestError, RunError
from orchestration.evaluation.record import MetricRecord, from_json
from orchestration.home import Home
from orchestration.quickstart import challenge
from orchestration.recipes import get_recipe
from orchestration.registry import PREVIOUS_TAG, ModelVersion
from orchestration.stages import quiet
from orchestration.tracking import Tracker
from orchestration.training.launch import FinishedRun
from orchestration.training.state import Checkpoint, Provenance, initial_state, open_checkpoint, save_checkpoint
from tests.cli_support import T2i, runner
from tests.mlflow_support import client_of
from tests.promotion_support import made

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return get_recipe("xmcgan_scenes32").replace(
        {"model.text_dim": 8, "model.channels": 2, "model.noise_dim": 4, "model.sentence_dim": 4}
    )


@dataclass
class Arena:
    """Runs whose figures are said, and who is champion of them."""

    tracker: Tracker
    experiment: Experiment
    figures: dict[str, float] = field(default_factory=dict)
    spread: float = 0.1
    judged: list[str] = field(default_factory=list)
    during: Callable[[], object] | None = None

    @property
    def home(self) -> Home:
        return Home(self.tracker.home)

    def run(self, name: str, figure: float, data: str = "data") -> Checkpoint:
        """A run whose nets nobody trained, and what judging will say of it."""
        experiment = self.experiment.replace({"training.seed": len(self.figures)})
        state = initial_state(experiment, CPU)
        parent = self.home.runs / name / "checkpoints"
        checkpoint = open_checkpoint(save_checkpoint(state, experiment, Provenance(data, "text"), parent))
        self.figures[checkpoint.digest] = figure
        return checkpoint

    def records(self, checkpoint: Checkpoint, name: str, contest: Contest) -> list[MetricRecord]:
        self.judged.append(name)
        value = self.figures[checkpoint.digest]
        drawn = contest.samples or 64
        return [made(value + self.spread * seed, seed, 1.0, name, drawn=drawn) for seed in range(contest.seeds)]

    def promote(self, checkpoint: Checkpoint, contest: Contest | None = None) -> Promotion:
        folder = checkpoint.folder.parent.parent
        return promote(self.tracker, self.home, checkpoint, folder, contest or Contest(), {"validation/fid": 3.0})

    def champion(self) -> int | None:
        found = self.tracker.champion("xmcgan")
        return None if found is None else found.version

    def history(self) -> list[tuple[str, int, int]]:
        return [
            (entry.decision.value, entry.version, entry.champion)
            for entry in read_history(self.tracker.versions("xmcgan"))
        ]

    def tags(self, version: int) -> Mapping[str, str]:
        return self.tracker.versions("xmcgan")[version - 1].tags


@pytest.fixture
def arena(tracker: Tracker, experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> Arena:
    made_up = Arena(tracker, experiment)

    def challenger(
        tracker: Tracker, home: Home, checkpoint: Checkpoint, folder: Path, contest: Contest, progress: object
    ) -> list[MetricRecord]:
        return made_up.records(checkpoint, folder.name, contest)

    def champion(
        home: Home, checkpoint: Checkpoint, name: str, experiment: Experiment, contest: Contest, progress: object
    ) -> list[MetricRecord]:
        if made_up.during is not None:
            step, made_up.during = made_up.during, None
            step()
        return made_up.records(checkpoint, name, contest)

    monkeypatch.setattr(module, "judge_challenger", challenger)
    monkeypatch.setattr(module, "judge_champion", champion)
    return made_up


def artifacts_of(version: ModelVersion) -> Path:
    """The folder of the artifacts of the version's run."""
    return Path(version.source.removeprefix("file://").replace("%20", " ")).parents[1]


class TestPromote:
    def test_the_first_is_champion_unjudged(self, arena: Arena) -> None:
        ended = arena.promote(arena.run("one", 50), Contest(command="t2i promote one"))
        assert not ended.refused and ended.entry is not None and ended.entry.decision is Decision.FIRST
        assert arena.champion() == 1 and arena.judged == []
        assert arena.tags(1)["t2i.figure.validation/fid"] == "3"
        assert (arena.tags(1)["t2i.decision"], arena.tags(1)["t2i.verdict"]) == ("first", "not judged")
        assert ended.entry.command == "t2i promote one" and ended.entry.at.endswith("Z")

    def test_the_champion_itself_changes_nothing(self, arena: Arena) -> None:
        one = arena.run("one", 50)
        arena.promote(one)
        before = arena.tags(1)
        again = arena.promote(one, Contest(force=True))
        assert not again.refused and again.entry is None and "already: nothing changes" in again.sentence
        assert arena.tags(1) == before and arena.judged == [] and arena.history() == [("first", 1, 1)]

    def test_a_worse_one_is_refused_with_the_numbers(self, arena: Arena) -> None:
        arena.promote(arena.run("one", 50))
        ended = arena.promote(arena.run("two", 60), Contest(samples=99))
        assert ended.refused and arena.champion() == 1
        for part in ("version 2 does not replace version 1", "60.1 [59.1, 61.1]", "50.1 [49.1, 51.1]", "gain of -10"):
            assert part in ended.sentence
        assert "noise of 1.414 is worse" in ended.sentence and "--force" in ended.sentence
        assert arena.history() == [("first", 1, 1), ("refused", 2, 1)]
        tags = arena.tags(2)
        assert (tags["t2i.decision"], tags["t2i.verdict"], tags["t2i.gain"]) == ("refused", "worse", "-10")
        assert tags["t2i.champion_before"] == "1" and tags["t2i.judged_by"] == "fid/scenes-net"
        assert ended.entry is not None and ended.entry.judgement is not None
        judgement = ended.entry.judgement
        assert judgement.challenger == pytest.approx((60.1, 59.1, 61.1))
        assert judgement.champion == pytest.approx((50.1, 49.1, 51.1))
        assert (judgement.seeds, judgement.drawn, judgement.direction) == ((0, 1, 2), 99, "lower")

    def test_a_better_one_is_promoted(self, arena: Arena) -> None:
        arena.promote(arena.run("one", 50))
        ended = arena.promote(arena.run("two", 40))
        assert not ended.refused and arena.champion() == 2
        assert ended.sentence.startswith("xmcgan version 2 is the champion in place of version 1: fid/scenes-net")
        assert ended.entry is not None and not ended.entry.forced and ended.entry.replaced == 1
        assert arena.tags(2)["t2i.previous_champion"] == "1"
        assert arena.history() == [("first", 1, 1), ("promoted", 2, 2)]

    def test_the_records_stay_with_the_version(self, arena: Arena) -> None:
        arena.promote(arena.run("one", 50))
        ended = arena.promote(arena.run("two", 40))
        assert ended.entry is not None and ended.entry.judgement is not None
        file = artifacts_of(ended.version) / ended.entry.judgement.records
        assert tuple(from_json(file.read_bytes(), "file")) == ended.records
        assert {record.judged.run for record in ended.records} == {"two", "xmcgan version 1"}

    @pytest.mark.parametrize("value", [49.0, 51.0])
    def test_within_the_noise_nothing_moves(self, arena: Arena, value: float) -> None:
        arena.promote(arena.run("one", 50))
        ended = arena.promote(arena.run("two", value))
        assert ended.refused and "is within noise" in ended.sentence and arena.champion() == 1
        assert arena.tags(2)["t2i.verdict"] == "within noise"

    def test_force_is_recorded(self, arena: Arena) -> None:
        arena.promote(arena.run("one", 50))
        ended = arena.promote(arena.run("two", 60), Contest(force=True))
        assert not ended.refused and arena.champion() == 2
        assert ended.entry is not None and ended.entry.forced and "by force" in ended.sentence
        assert (arena.tags(2)["t2i.forced"], arena.tags(2)["t2i.verdict"]) == ("true", "worse")
        # One that wins needs none.
        better = arena.promote(arena.run("three", 20), Contest(force=True))
        assert better.entry is not None and not better.entry.forced

    def test_a_refused_one_may_win_later(self, arena: Arena) -> None:
        arena.promote(arena.run("one", 50))
        two = arena.run("two", 49)
        assert arena.promote(two).refused
        arena.figures[two.digest] = 30
        ended = arena.promote(two)
        assert ended.version.version == 2 and arena.champion() == 2
        assert arena.history() == [("first", 1, 1), ("refused", 2, 1), ("promoted", 2, 2)]
        assert arena.tags(2)["t2i.verdict"] == "better"


class TestWhatDoesNotCompare:
    def test_other_data(self, arena: Arena) -> None:
        arena.promote(arena.run("one", 50))
        two = arena.run("two", 10, data="other")
        with pytest.raises(
            RequestError, match=r"version 2 does not replace version 1: the champion was trained on .*--f"
        ):
            arena.promote(two)
        assert arena.champion() == 1 and arena.judged == []
        assert arena.history()[-1] == ("refused", 2, 1) and arena.tags(2)["t2i.verdict"] == "not judged"
        ended = arena.promote(two, Contest(force=True))
        assert arena.champion() == 2 and ended.entry is not None and ended.entry.forced
        assert "was trained on" in ended.entry.reason and ended.comparison is None

    @pytest.mark.parametrize("harm", ["gone", "altered"])
    def test_a_champion_whose_checkpoint_is_gone_or_altered(self, arena: Arena, harm: str) -> None:
        ended = arena.promote(arena.run("one", 50))
        folder = arena.tracker.fetch(ended.version, Path("unused"))
        if harm == "gone":
            shutil.rmtree(folder)
        else:
            next(folder.glob("*.safetensors")).write_bytes(b"altered")
        two = arena.run("two", 10)
        with pytest.raises(RequestError, match=r"the champion cannot be judged: .*(any more|was changed).*--force"):
            arena.promote(two)
        assert arena.champion() == 1
        assert not arena.promote(two, Contest(force=True)).refused and arena.champion() == 2

    def test_a_challenger_that_cannot_be_judged(self, arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*arguments: object) -> None:
            raise RequestError("its weights are missing: add them")

        monkeypatch.setattr(module, "judge_challenger", fails)
        arena.promote(arena.run("one", 50))
        two = arena.run("two", 10)
        with pytest.raises(RequestError, match="its weights are missing"):
            arena.promote(two)
        assert arena.history() == [("first", 1, 1)] and len(arena.tracker.versions("xmcgan")) == 2
        assert not arena.promote(two, Contest(force=True)).refused

    @pytest.mark.parametrize(
        ("figure", "sentence"),
        [
            ("fud", "--figure 'fud' is none: there are accuracy,"),
            ("lpips", "neither more nor less"),
            ("", "is none"),
        ],
    )
    def test_figures(self, arena: Arena, figure: str, sentence: str) -> None:
        one = arena.run("one", 50)
        with pytest.raises(RequestError, match=sentence):
            arena.promote(one, Contest(figure))
        assert arena.tracker.versions("xmcgan") == []

    @pytest.mark.parametrize(
        "figure",
        ["fid", "kid/scenes-net", "precision", "recall/scenes-net", "is", "inception_score/openai/x", "soa_c/y"],
    )
    def test_figures_that_decide(self, figure: str) -> None:
        require_figure(figure)


class TestRollback:
    def test_back_and_further_back(self, arena: Arena) -> None:
        for name, value in (("one", 50), ("two", 40), ("three", 30)):
            arena.promote(arena.run(name, value))
        first = rollback(arena.tracker, arena.home, "xmcgan", "t2i rollback")
        assert (first.champion.version, first.replaced, arena.champion()) == (2, 3, 2)
        assert rollback(arena.tracker, arena.home, "xmcgan").champion.version == 1
        with pytest.raises(RequestError, match="no champion before version 1: promote another"):
            rollback(arena.tracker, arena.home, "xmcgan")
        assert arena.champion() == 1
        assert arena.history()[-2:] == [("rolled back", 2, 2), ("rolled back", 1, 1)]
        assert read_history(arena.tracker.versions("xmcgan"))[-2].command == "t2i rollback"

    def test_what_was_rolled_back_can_come_again(self, arena: Arena) -> None:
        runs = [arena.run("one", 50), arena.run("two", 40)]
        for run in runs:
            arena.promote(run)
        rollback(arena.tracker, arena.home, "xmcgan")
        assert not arena.promote(runs[1]).refused and arena.champion() == 2
        assert rollback(arena.tracker, arena.home, "xmcgan").champion.version == 1

    def test_refusals_do_not_count(self, arena: Arena) -> None:
        for name, value in (("one", 50), ("two", 40), ("three", 60)):
            arena.promote(arena.run(name, value))
        assert rollback(arena.tracker, arena.home, "xmcgan").champion.version == 1

    def test_one_that_cannot_be_loaded_is_passed_over(self, arena: Arena) -> None:
        ended = [arena.promote(arena.run(name, value)) for name, value in (("a", 50), ("b", 40), ("c", 30))]
        shutil.rmtree(arena.tracker.fetch(ended[1].version, Path("unused")))
        back = rollback(arena.tracker, arena.home, "xmcgan")
        assert back.champion.version == 1 and "not at" in back.passed_over[2]
        with pytest.raises(RequestError, match="no champion before version 1"):
            rollback(arena.tracker, arena.home, "xmcgan")

    def test_nothing_that_can_be_loaded(self, arena: Arena) -> None:
        ended = [arena.promote(arena.run(name, value)) for name, value in (("a", 50), ("b", 40))]
        shutil.rmtree(arena.tracker.fetch(ended[0].version, Path("unused")))
        with pytest.raises(
            RequestError, match=r"before version 2 whose checkpoint can be loaded \(version 1: the check"
        ):
            rollback(arena.tracker, arena.home, "xmcgan")
        assert arena.champion() == 2

    def test_a_deleted_version_takes_its_entries_along(self, arena: Arena) -> None:
        for name, value in (("a", 50), ("b", 40), ("c", 30)):
            arena.promote(arena.run(name, value))
        client_of(arena.tracker).delete_model_version("xmcgan", "2")
        assert rollback(arena.tracker, arena.home, "xmcgan").champion.version == 1

    def test_it_never_goes_back_to_the_champion_itself(self, arena: Arena) -> None:
        runs = [arena.run("a", 50), arena.run("b", 40)]
        for run in (*runs, runs[0]):
            arena.promote(run, Contest(force=True))
        client_of(arena.tracker).delete_model_version("xmcgan", "2")
        with pytest.raises(RequestError, match="no champion before version 1"):
            rollback(arena.tracker, arena.home, "xmcgan")

    def test_a_deleted_version_that_others_name(self, arena: Arena) -> None:
        arena.promote(arena.run("a", 50))
        client_of(arena.tracker).delete_model_version_tag("xmcgan", "1", f"{ENTRY_TAG}0001")
        arena.tracker.tag_version("xmcgan", 1, {PREVIOUS_TAG: "7"})
        with pytest.raises(RequestError, match=r"can be loaded \(version 7 was deleted\)"):
            rollback(arena.tracker, arena.home, "xmcgan")

    def test_without_a_champion(self, arena: Arena) -> None:
        with pytest.raises(RequestError, match="has no champion to roll back"):
            rollback(arena.tracker, arena.home, "xmcgan")


class TestMovedElsewhere:
    def test_an_alias_moved_by_hand_is_found(self, arena: Arena) -> None:
        for name, value in (("a", 50), ("b", 40), ("c", 60)):
            arena.promote(arena.run(name, value))
        arena.tracker.set_champion("xmcgan", 3)
        assert rollback(arena.tracker, arena.home, "xmcgan").champion.version == 2
        assert arena.history()[-2:] == [("found", 3, 3), ("rolled back", 2, 2)]

    def test_a_promotion_that_was_cut_off(self, arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
        """Killed between the entry and the alias: the champion has not changed, and a roll-back knows."""
        for name, value in (("a", 50), ("b", 40)):
            arena.promote(arena.run(name, value))
        three = arena.run("c", 30)
        with monkeypatch.context() as patch:

            def killed(model: str, version: int) -> None:
                raise KeyboardInterrupt

            patch.setattr(arena.tracker, "set_champion", killed)
            with pytest.raises(KeyboardInterrupt):
                arena.promote(three)
        assert arena.champion() == 2 and arena.history()[-1] == ("promoted", 3, 3)
        assert rollback(arena.tracker, arena.home, "xmcgan").champion.version == 1
        assert arena.history()[-2:] == [("found", 2, 2), ("rolled back", 1, 1)]
        assert not arena.promote(three).refused and arena.champion() == 3

    def test_champions_of_before_there_was_a_history(self, arena: Arena) -> None:
        for name, value in (("a", 50), ("b", 40)):
            arena.promote(arena.run(name, value))
        for version in (1, 2):
            for name in arena.tags(version):
                if name.startswith(ENTRY_TAG):
                    client_of(arena.tracker).delete_model_version_tag("xmcgan", str(version), name)
        assert arena.history() == []
        assert rollback(arena.tracker, arena.home, "xmcgan").champion.version == 1
        assert arena.history() == [("found", 2, 2), ("rolled back", 1, 1)]

    def test_a_tag_that_is_no_entry(self, arena: Arena) -> None:
        arena.promote(arena.run("one", 50))
        arena.tracker.tag_version("xmcgan", 1, {f"{ENTRY_TAG}0002": "{}"})
        with pytest.raises(
            RequestError, match=r"t2i.history.0002 of version 1 of xmcgan is no entry .*delete that tag"
        ):
            rollback(arena.tracker, arena.home, "xmcgan")


class TestAtOnce:
    def test_a_champion_that_changes_meanwhile_is_judged_again(self, arena: Arena) -> None:
        """Two that beat the champion: the second must beat the first of them too."""
        arena.promote(arena.run("one", 50))
        two, three = arena.run("two", 40), arena.run("three", 30)
        arena.during = lambda: arena.promote(three)
        ended = arena.promote(two)
        assert ended.refused and arena.champion() == 3
        assert arena.judged[-1] == "xmcgan version 3"
        assert ended.entry is not None and ended.entry.replaced == 3

    def test_many_processes_leave_one_line_of_entries(self, arena: Arena) -> None:
        """Each with a connection of its own, as commands have; the best is champion whatever the order."""
        arena.promote(arena.run("first", 100))
        runs = [arena.run(f"run-{value}", value) for value in (20, 60, 40)]
        failed: list[BaseException] = []

        def command(run: Checkpoint) -> None:
            try:
                tracker = Tracker(arena.tracker.home)
                promote(tracker, arena.home, run, run.folder.parent.parent, Contest())
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=command, args=(run,)) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failed == []
        champion = arena.tracker.champion("xmcgan")
        assert champion is not None and champion.tags["t2i.checkpoint_digest"] == runs[0].digest
        entries = read_history(arena.tracker.versions("xmcgan"))
        assert [entry.number for entry in entries] == [1, 2, 3, 4]
        for before, entry in pairwise(entries):
            assert entry.replaced == before.champion

    def test_one_that_decides_for_ever(self, arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("orchestration.registry.LOCK_S", 0.05)
        other = Tracker(arena.tracker.home)
        busy = pytest.raises(RunError, match="another process has been deciding")
        with arena.tracker.deciding("xmcgan"), busy, other.deciding("xmcgan"):
            pass


class TestQuickstart:
    def test_its_run_is_offered(self, arena: Arena) -> None:
        def offer(checkpoint: Checkpoint) -> tuple[int, str]:
            said: list[str] = []
            run = FinishedRun(checkpoint.folder.parent.parent, "unused", checkpoint, {})
            champion = challenge(run, {"fid/scenes-net": 1.0}, arena.home, arena.tracker, said.append, quiet)
            return champion.version, said[0]

        one = arena.run("one", 50)
        assert offer(one) == (1, "xmcgan version 1 is the champion, the first one")
        assert offer(one) == (1, "xmcgan version 1 is the champion already: nothing changes")
        assert offer(arena.run("two", 60))[0] == 1
        assert offer(arena.run("three", 10, data="other"))[0] == 1
        assert offer(arena.run("four", 30))[0] == 4


@pytest.fixture
def t2i(arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> T2i:
    return runner(arena.home.root, tmp_path / "here", monkeypatch, capsys)


class TestCommands:
    def test_promote_rollback_history(self, arena: Arena, t2i: T2i) -> None:
        for name, value in (("one", 50), ("two", 60), ("three", 40)):
            arena.run(name, value)
        assert "is the champion, the first one" in t2i("promote", "one").out
        refused = t2i("promote", "two", "--samples", "77", "--json")
        assert refused.code == 1 and refused.err.splitlines()[-1].startswith("t2i: xmcgan version 2 does not replace")
        assert '"promoted": false' in refused.out.splitlines()[-1]
        won = t2i("promote", "three", "--json").json
        assert (won["version"], won["champion"], won["promoted"], won["model"]) == (3, 3, True, "xmcgan")
        assert won["entry"]["judgement"]["verdict"] == "better" and len(won["records"]) == 6

        listed = t2i("history")
        assert "* version 3" in listed.out and "  version 2" in listed.out
        assert "refused: fid/scenes-net" in listed.out and "is worse" in listed.out and "is better" in listed.out
        found = t2i("history", "--json").json
        assert [entry["decision"] for entry in found["history"]] == ["first", "refused", "promoted"]
        assert found["history"][1]["command"] == "t2i promote two --figure fid --samples 77 --seeds 3"
        assert found["champion"] == 3 and len(found["versions"]) == 3

        assert "xmcgan version 1 is the champion again, in place of version 3" in t2i("rollback").out
        t2i("rollback").refused("no champion before version 1")
        forced = t2i("promote", "two", "--force", "--json").json
        assert forced["entry"]["forced"] and forced["entry"]["command"].endswith("--force")
        assert t2i("rollback", "--json").json == {"model": "xmcgan", "version": 1, "replaced": 2, "passed_over": {}}

    def test_a_trial_by_its_name(self, arena: Arena, t2i: T2i) -> None:
        run = arena.run("one", 50)
        trial = arena.home.campaigns / "search" / "trials" / "trial-0003"
        trial.parent.mkdir(parents=True)
        run.folder.parent.parent.rename(trial)
        begun = arena.tracker.start_run("xmcgan", "trial-0003", "search-trial-0003", {})
        arena.tracker.finish(begun, "KILLED", "others were better")
        promoted = t2i("promote", "search/trial-0003", "--json").json
        assert promoted["version"] == 1
        # It is the trial's own run, and how that ended stays.
        (summary,) = arena.tracker.run_summaries("xmcgan")
        assert (summary.run_id, summary.status) == (begun, "KILLED")
        assert arena.tracker.versions("xmcgan")[0].run_id == begun
        t2i("promote", "search/trial-0004").refused("no checkpoint in 'search/trial-0004'", "CAMPAIGN/trial-0000")

    def test_nobody(self, t2i: T2i) -> None:
        t2i("history", "--model", "nobody").refused("no model 'nobody' is registered")
        t2i("rollback", "--model", "nobody").refused("model 'nobody' has no champion to roll back")

    @pytest.mark.parametrize(
        ("options", "part"),
        [
            (["--figure", "fud"], "--figure 'fud' is none"),
            (["--samples", "3"], "x>=16"),
            (["--seeds", "0"], "1<=x<=100"),
            (["--weights", "x"], "NAME=PATH"),
        ],
    )
    def test_wrong_requests(self, arena: Arena, t2i: T2i, options: list[str], part: str) -> None:
        arena.run("one", 50)
        t2i("promote", "one", *options).refused(part)
        assert arena.tracker.versions("xmcgan") == []


def test_the_commands_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ("promote", "rollback", "history"))
