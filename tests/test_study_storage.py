"""Optuna's storage follows the ledger: every state, what differs, what is damaged, away or another's."""

import math
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from orchestration.campaigns import study_storage
from orchestration.campaigns.ledger import SegmentState, State, Trial
from orchestration.campaigns.proposals import Proposer
from orchestration.errors import RequestError, RunError
from tests.proposal_support import (
    FIGURE,
    FIRST,
    SAMPLERS,
    SPACE,
    facts,
    fill,
    finished,
    history,
    proposer,
    segment,
    study_in,
    told,
)


class TestStorage:
    def test_every_state(self, tmp_path: Path) -> None:
        waiting = Trial(0, FIRST, "paper", State.WAITING, kimg=2.0, figures={FIGURE: 7.0})
        rungs = [segment(0, 0, 1.0, 8.0), segment(0, 1, 2.0, 7.0)]
        whole = [*rungs, segment(0, 2, 4.0, 6.0)]
        with proposer(tmp_path) as one:
            one.tell(Trial(0, FIRST, "paper", State.RUNNING), [replace(rungs[0], state=SegmentState.BEGUN)])
            assert facts(tmp_path)[0][1] == "RUNNING"
            one.tell(waiting, rungs)
            assert facts(tmp_path)[0][1:5] == ("RUNNING", None, FIRST, {1000: 8.0, 2000: 7.0})
            one.tell(replace(waiting, state=State.FINISHED, kimg=4.0, figures={FIGURE: 6.0}), whole)
            one.tell(replace(waiting, number=1, state=State.STOPPED, reason="others were better"), rungs)
            for index, state in enumerate((State.DIVERGED, State.COLLAPSED, State.FAILED), 2):
                broken = segment(index, 2, 4.0, None, state=SegmentState.DIVERGED)
                one.tell(replace(waiting, number=index, state=state, reason="NaN"), [*rungs, broken])
            one.tell(replace(waiting, number=5, state=State.FINISHED, figures={FIGURE: math.nan}), rungs)
            one.tell(replace(waiting, number=6, state=State.FINISHED, figures={}), ())
        stored = facts(tmp_path)
        assert [row[1] for row in stored] == ["COMPLETE", "PRUNED", *["FAIL"] * 5]
        assert stored[0][2] == [6.0] and stored[0][4] == {1000: 8.0, 2000: 7.0, 4000: 6.0}
        # Of the segments that were told with it, none is trial 1's own.
        assert stored[1][4] == {} and stored[1][5]["reason"] == "others were better"
        assert stored[2][5] == {"state": "diverged", "kimg": 2.0, "origin": "paper", "reason": "NaN"}

    def test_pruned_ones_keep_their_curve(self, tmp_path: Path) -> None:
        stopped = Trial(0, FIRST, "paper", State.STOPPED, kimg=2.0, figures={FIGURE: 7.0})
        with proposer(tmp_path) as one:
            one.tell(stopped, [segment(0, 0, 1.0, 8.0), segment(0, 1, 2.0, math.nan), segment(1, 0, 1.0, 3.0)])
        [trial] = study_in(tmp_path).trials
        assert trial.state == TrialState.PRUNED and trial.intermediate_values == {1000: 8.0}

    def test_what_a_population_changed_is_kept_with_its_kimg(self, tmp_path: Path) -> None:
        changed = {**FIRST, "rate": 0.12}
        stretches = [
            segment(1, 0, 1.0, 8.0),
            segment(1, 1, 2.0, 7.0),
            segment(1, 2, 3.0, 6.0, values=changed, donor=0),
            segment(1, 3, 4.0, None, values=changed, state=SegmentState.BEGUN),
        ]
        with proposer(tmp_path, told(scheduler="population")) as one:
            one.tell(Trial(0, FIRST, "paper"), ())
            for count in range(1, 5):
                one.tell(Trial(1, stretches[count - 1].values, "proposed", State.RUNNING), stretches[:count])
                assert study_in(tmp_path).trials[1].params == FIRST
        assert facts(tmp_path)[1][5]["changes"] == [{"from_kimg": 2.0, "copies": 0, "values": changed}]
        assert study_in(tmp_path)._study_id == 1  # it was never written anew

    def test_it_is_left_alone_where_it_says_what_the_ledger_says(self, tmp_path: Path) -> None:
        trials = history(12)
        fill(tmp_path, trials)
        before, written = facts(tmp_path), study_in(tmp_path).trials
        fill(tmp_path, trials)
        assert facts(tmp_path) == before and len(before) == 12
        again = study_in(tmp_path).trials
        assert [t.datetime_start for t in again] == [t.datetime_start for t in written]

    @pytest.mark.parametrize(
        "change",
        [
            "update trial_values set value = value + 1",
            "update trial_intermediate_values set intermediate_value = intermediate_value + 1",
            "delete from trial_intermediate_values",
            "update trial_params set param_value = 3 where param_name = 'steps'",
            "update trial_params set distribution_json = replace(distribution_json, '6', '7')",
            "update trials set state = 'FAIL' where number = 0",
            "update trials set state = 'COMPLETE' where number = 5",
            "update trial_user_attributes set value_json = '5'",
            "insert into trial_user_attributes (trial_id, key, value_json) values (1, 'x', '1')",
            "update study_user_attributes set value_json = '\"other\"'",
        ],
    )
    def test_it_is_made_anew_where_it_differs_from_the_ledger(self, tmp_path: Path, change: str) -> None:
        trials = history(12)
        fill(tmp_path, trials)
        before = facts(tmp_path)
        with closing(sqlite3.connect(tmp_path / study_storage.FILE)) as database, database:
            assert database.execute(change).rowcount > 0
        fill(tmp_path, trials)
        assert facts(tmp_path) == before

    def test_what_it_has_beyond_the_ledger_is_forgotten(self, tmp_path: Path) -> None:
        trials = history(12)
        fill(tmp_path, trials)
        fill(tmp_path, trials[:7])
        assert len(facts(tmp_path)) == 7
        fill(tmp_path, trials)
        with proposer(tmp_path) as one:
            for trial in trials[:7]:
                one.tell(trial, ())
            one.propose(7, trials[:7])
            assert len(facts(tmp_path)) == 7
            one.tell(trials[7], ())
        fresh = facts(tmp_path)
        fill(tmp_path / "other", trials[:8])
        assert [row[:4] for row in fresh] == [row[:4] for row in facts(tmp_path / "other")]

    def test_numbers_wait_for_those_before_them(self, tmp_path: Path) -> None:
        trials = history(4)
        with proposer(tmp_path) as one:
            for index in (0, 3, 2):
                one.tell(trials[index], ())
            assert len(facts(tmp_path)) == 1
            one.tell(trials[1], ())
            assert [row[3] for row in facts(tmp_path)] == [trial.values for trial in trials]

    def test_any_database(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/shared {{x}}.db"
        for name in ("a", "b"):
            with proposer(tmp_path / name, storage=url, name=name) as one:
                one.tell(history(1)[0], ())
            assert not (tmp_path / name).exists()
        with closing(sqlite3.connect(tmp_path / "shared {x}.db")) as database:
            assert database.execute("select study_name from studies order by 1").fetchall() == [("a",), ("b",)]

    @pytest.mark.parametrize("name", ["with space", "per%20cent", "a?b=c", "sharp#", "{brace}", "grün"])
    def test_a_campaign_in_any_folder(self, tmp_path: Path, name: str) -> None:
        with proposer(tmp_path / name) as one:
            one.tell(history(1)[0], ())
        assert {path.name for path in (tmp_path / name).iterdir()} == {study_storage.FILE}
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_another_campaigns_study_is_not_touched(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'shared.db'}"
        with proposer(tmp_path / "a", storage=url) as one:
            one.tell(history(1)[0], ())
        with pytest.raises(RequestError) as caught:
            Proposer(SPACE, told(seed=5), tmp_path / "b", "camp", url, FIRST)
        assert str(caught.value) == (
            f"Optuna's storage {url} has another study 'camp': give the campaign another name, or delete that study "
            "there"
        )
        # A longer campaign, or one in another folder, is the same one.
        with proposer(tmp_path / "c", told(trials=99, budget_kimg=8), storage=url) as one:
            one.tell(history(1)[0], ())

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("nonsense", "Optuna's storage nonsense cannot be used (Could not parse"),
            ("unknown://x", "cannot be used (Can't load plugin: sqlalchemy.dialects:unknown): mend it, update optuna"),
            ("sqlite:////no/such/folder/x.db", "cannot be used (unable to open database file): mend it"),
            ("postgresql://user:secret@localhost:1/x", "postgresql://user:***@localhost:1/x cannot be used ("),
        ],
    )
    def test_one_that_cannot_be_used_is_a_sentence(self, tmp_path: Path, url: str, says: str) -> None:
        with pytest.raises(RequestError) as caught:
            Proposer(SPACE, told(), tmp_path, "camp", url, FIRST)
        assert says in str(caught.value) and "\n" not in str(caught.value) and "secret" not in str(caught.value)

    def test_one_of_a_newer_version(self, tmp_path: Path) -> None:
        fill(tmp_path, [])
        with closing(sqlite3.connect(tmp_path / study_storage.FILE)) as database, database:
            database.execute("update alembic_version set version_num = 'v99.0.0.a'")
        with pytest.raises(RequestError) as caught:
            Proposer(SPACE, told(), tmp_path, "camp", None, FIRST)
        assert "no longer compatible" in str(caught.value)
        assert str(caught.value).endswith("delete it, and it is made anew")

    def test_one_that_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / study_storage.FILE).write_bytes(b"no database at all" * 100)
        with pytest.raises(RequestError, match=r"cannot be used \(file is not a database\): delete it, and it is made"):
            Proposer(SPACE, told(), tmp_path, "camp", None, FIRST)

    def test_one_that_is_away_for_a_while_holds_nothing_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trials, clock = history(12), [0.0]
        monkeypatch.setattr(study_storage.time, "monotonic", lambda: clock[0])
        with proposer(tmp_path / "b") as other:
            other.tell(trials[0], ())
        with proposer(tmp_path / "a") as one:
            one.tell(trials[0], ())
            with closing(sqlite3.connect(tmp_path / "a" / study_storage.FILE)) as database:
                database.execute("alter table trials rename to away")
                database.commit()
                one.tell(trials[1], ())
                assert "no such table: trials" in one._storage.behind
                assert one.propose(5, trials[:5])
                database.execute("alter table away rename to trials")
                database.commit()
            one.tell(trials[2], ())
            assert one._storage.behind and len(facts(tmp_path / "a")) == 1  # it is left alone for a while
            clock[0] += study_storage.RETRY_S
            one.tell(trials[3], ())
            assert not one._storage.behind and len(facts(tmp_path / "a")) == 4

    def test_one_that_stays_away_is_said_at_the_end(self, tmp_path: Path) -> None:
        one = Proposer(SPACE, told(), tmp_path, "camp", None, FIRST)
        with closing(sqlite3.connect(tmp_path / study_storage.FILE)) as database:
            database.execute("drop table trials")
        one.tell(history(1)[0], ())
        with pytest.raises(RunError, match=r"lacks trials \(no such table: trials\): mend it and resume"):
            one.close()

    def test_nothing_is_said(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        optuna.logging.set_verbosity(optuna.logging.INFO)
        try:
            for sampler in SAMPLERS:
                with proposer(tmp_path / sampler, told(sampler)) as one:
                    one.propose(12, history(12))
                    one.tell(history(1)[0], ())
            assert optuna.logging.get_verbosity() == optuna.logging.INFO
            assert capfd.readouterr() == ("", "")
        finally:
            optuna.logging.set_verbosity(optuna.logging.WARNING)

    def test_importances_and_plots_read_it(self, tmp_path: Path) -> None:
        trials = [finished(i, {"mode": "a", "steps": 1 + i % 6, "rate": 10.0 ** -(i % 4)}) for i in range(16)]
        fill(tmp_path, trials)
        study = study_in(tmp_path)
        assert study.best_trial.number == min(trials, key=lambda trial: (trial.figures[FIGURE], trial.number)).number
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(), params=["steps", "rate"]
        )
        assert found.keys() == {"steps", "rate"}
