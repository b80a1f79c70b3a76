"""The drill without a cluster: its plan, its blows on a campaign by script, its verdict, and what it refuses."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.campaigns.ledger import Ledger, Reached, Segment, SegmentState, State
from orchestration.campaigns.segments import TRIALS, trial_name
from orchestration.doctor.hands import Place
from orchestration.drill import drill as drilling
from orchestration.drill import reach, striking
from orchestration.drill.campaign import Folder
from orchestration.drill.comparing import Difference, differences, ledger_of, unrecorded
from orchestration.drill.drill import Report, failed, possible
from orchestration.drill.page import as_json, page
from orchestration.drill.plan import CHECKPOINT_KIMG, DEFAULT, KIMG, Kind, Plan, Strike, parse_kinds
from orchestration.drill.reach import Victim
from orchestration.drill.replica import ReplicaHit, wrong_answers
from orchestration.drill.striking import Field, Hit
from orchestration.errors import RequestError, RunError
from orchestration.tracking import Tracker
from tests.cli_support import T2i, made, runner
from tests.drill_fakes import DIGEST, HEAD, FakeCluster, FakeDriver, FakeServer

KINDS = st.lists(st.sampled_from(list(Kind)), min_size=1, unique=True).map(tuple)


class TestPlan:
    @given(st.integers(0, 2**31), st.integers(1, 5), KINDS)
    @settings(deadline=None, max_examples=60)
    def test_every_kind_once_in_order_and_none_near_an_end(
        self, seed: int, trials: int, kinds: tuple[Kind, ...]
    ) -> None:
        plan = Plan(seed, trials, kinds)
        strikes = plan.strikes()
        assert sorted(one.kind for one in strikes) == sorted(plan.in_campaign) and Kind.REPLICA not in plan.in_campaign
        assert [(one.trial, one.images) for one in strikes] == sorted((one.trial, one.images) for one in strikes)
        for one in strikes:
            assert 0 <= one.trial < trials and one.images % 16 == 0 != one.images % round(CHECKPOINT_KIMG * 1000)
            assert CHECKPOINT_KIMG * 1000 <= one.images <= 0.9 * KIMG * 1000
        assert plan.strikes() == strikes

    def test_another_seed_is_another_drill_of_the_same_twin(self) -> None:
        plans = [Plan(seed, 2, tuple(Kind)) for seed in range(8)]
        assert len({plan.twin for plan in plans}) == 1 and len({plan.name for plan in plans}) == 8
        assert len({tuple(plan.strikes()) for plan in plans}) == 8
        # Without workers to kill, a trial has one, and that is another twin.
        assert Plan(0, 2, (Kind.DRIVER,)).twin != plans[0].twin != Plan(0, 3, tuple(Kind)).twin

    def test_kinds(self) -> None:
        assert parse_kinds(None) == DEFAULT and Kind.NODE not in DEFAULT
        assert parse_kinds("node, worker") == (Kind.WORKER, Kind.NODE)
        with pytest.raises(
            RequestError, match="--kill 'head' is none: write one or more of worker, trial, driver, node"
        ):
            parse_kinds("worker,head")


def ledger(folder: Path, **changes: Any) -> Path:
    """A campaign of one finished trial; changes: of how its segment ended."""
    book = Ledger.create(folder, {"name": "one"})
    book.propose(0, {"tau": 0.1}, "paper")
    segment = Segment(0, 0, KIMG, {"tau": 0.1})
    book.begin(segment)
    ended = Reached(SegmentState.REACHED, KIMG, {"validation/fid": 2.5}, "trials/x", DIGEST, "run", "identity")
    book.reach(segment, replace(ended, **changes), State.FINISHED)
    book.close()
    return folder


class TestComparing:
    def test_the_same_campaign_begun_twice_is_equal(self, tmp_path: Path) -> None:
        twin, drilled = ledger(tmp_path / "twin"), ledger(tmp_path / "drilled", run_id="another")
        book = Ledger.open(drilled)
        segment = book.segments()[0]
        book.begin(segment)
        book.reach(
            segment, Reached(SegmentState.REACHED, KIMG, {"validation/fid": 2.5}, "trials/x", DIGEST), State.FINISHED
        )
        assert book.segments()[0].attempts == 2
        book.close()
        assert differences(ledger_of(twin), ledger_of(drilled)) == []

    def test_one_altered_digest_is_found_and_named(self, tmp_path: Path) -> None:
        twin, drilled = ledger(tmp_path / "twin"), ledger(tmp_path / "drilled", digest="cd" * 32)
        found = differences(ledger_of(twin), ledger_of(drilled))
        assert found == [
            Difference(0, "digest", DIGEST, "cd" * 32),
            Difference(0, "segment 0.digest", DIGEST, "cd" * 32),
        ]
        assert f"{found[0]}" == "trial-0000 digest: abababababab… in the twin, cdcdcdcdcdcd… here"

    @pytest.mark.parametrize(
        ("changes", "field"),
        [({"figures": {"validation/fid": 2.5000000001}}, "figures.validation/fid"), ({"kimg": 1.5}, "kimg")],
    )
    def test_figures_to_the_last_bit(self, tmp_path: Path, changes: dict[str, Any], field: str) -> None:
        found = differences(ledger_of(ledger(tmp_path / "a")), ledger_of(ledger(tmp_path / "b", **changes)))
        assert field in {each.field for each in found}

    def test_a_lost_trial_is_a_difference_in_every_field(self, tmp_path: Path) -> None:
        found = differences(ledger_of(ledger(tmp_path / "a")), {})
        assert {each.drilled for each in found} == {"missing"} and Difference(
            0, "state", "finished", "missing"
        ) in found

    def test_answers(self) -> None:
        assert wrong_answers({0: "a", 1: "b"}, [(0, "a", ""), (1, "b", "")]) == []
        assert wrong_answers({0: "a", 1: "b"}, [(0, "a", ""), (1, "a", ""), (0, None, "it answered 500")]) == [
            "seed 1 drew another picture than before",
            "it answered 500",
        ]


class TestRecords:
    """What MLflow holds of a campaign, against a real database."""

    @pytest.fixture
    def recorded(self, tracker: Tracker, tmp_path: Path) -> Path:
        """A campaign of one trial of two points, mirrored."""
        folder = ledger(tmp_path / "campaign")
        lines = [
            {"images": at, "time": 1.0, "metrics": {"loss": at / 2, "speed/step": at, "gone": float("nan")}}
            for at in (16, 32)
        ]
        trial = folder / TRIALS / trial_name(0)
        trial.mkdir(parents=True)
        (trial / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        parent = tracker.start_run("xmcgan", "campaign", "campaign", {})
        run = tracker.start_run("xmcgan", "trial", "trial", {}, parent=parent)
        tracker.mirror(run, trial)
        book = Ledger.open(folder)
        book.assign_run(0, run)
        book.close()
        for each in (parent, run):
            tracker.finish(each, "FINISHED")
        return folder

    def test_all_is_there_once(self, recorded: Path, tracker: Tracker) -> None:
        assert unrecorded(recorded, tracker, "xmcgan", 1) == []

    def test_a_record_that_is_missing_and_a_run_that_runs_on(self, recorded: Path, tracker: Tracker) -> None:
        with (recorded / TRIALS / trial_name(0) / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"images": 48, "time": 2.0, "metrics": {"loss": 24.0}}) + "\n")
        tracker.start_run("xmcgan", "another", "another", {})
        assert unrecorded(recorded, tracker, "xmcgan", 1) == [
            "MLflow has 3 runs of 1 trials and their campaign",
            "run another is still RUNNING",
            "trial-0000 loss: 3 values were recorded and MLflow has 2, or others",
        ]

    def test_a_time_may_be_another_where_it_was_trained_again_and_nothing_else(
        self, recorded: Path, tracker: Tracker
    ) -> None:
        path = recorded / TRIALS / trial_name(0) / "metrics.jsonl"
        first, last = path.read_text().splitlines(keepends=True)
        path.write_text(first + last.replace('"speed/step": 32', '"speed/step": 33'))
        assert unrecorded(recorded, tracker, "xmcgan", 1) == []
        path.write_text(first + last.replace('"loss": 16.0', '"loss": 17.0'))
        assert unrecorded(recorded, tracker, "xmcgan", 1) == [
            "trial-0000 loss: 2 values were recorded and MLflow has 2, or others"
        ]

    def test_a_record_that_is_there_twice(self, recorded: Path, tracker: Tracker) -> None:
        run = ledger_run(recorded)
        tracker.log_metrics(run, {"loss": 99.0}, 16)
        [sentence] = unrecorded(recorded, tracker, "xmcgan", 1)
        assert sentence == "trial-0000 loss: 2 values were recorded and MLflow has 3, or others"


def ledger_run(folder: Path) -> str:
    book = Ledger.open(folder)
    [trial] = book.trials()
    book.close()
    assert trial.run_id
    return trial.run_id


@pytest.fixture(autouse=True)
def nothing_scripted() -> Iterator[None]:
    yield
    FakeDriver.digests, FakeDriver.ends, FakeDriver.interrupt_at = {}, [], None
    FakeDriver.all.clear()


@pytest.fixture
def field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Field:
    """A campaign of two trials that has begun."""
    monkeypatch.setattr(striking, "POLL_S", 0.0)
    words = ["--trials", "2", "--name", "seed-one", "--home", str(tmp_path)]
    driver = FakeDriver(words, {}, tmp_path / "campaign.log")
    driver.start()
    server: Any = FakeServer(tmp_path)
    return Field(FakeCluster(), driver, Folder(driver.folder), server, Random(0), lambda line: None)  # type: ignore[arg-type]


def fall(field: Field, kind: Kind, trial: int = 0, images: int = 480) -> Hit:
    hit = field.strike(Strike(kind, trial, images))
    assert isinstance(hit, Hit) and hit.planned == images <= hit.at < images + 320 and hit.lost < 160
    return hit


class TestStriking:
    @pytest.mark.parametrize(("kind", "killed"), [(Kind.WORKER, {"11", "12"}), (Kind.TRIAL, {"13"})])
    def test_a_process_dies_at_its_moment_and_training_goes_on(
        self, field: Field, kind: Kind, killed: set[str]
    ) -> None:
        hit = fall(field, kind)
        assert set(field.cluster.killed) <= killed and (hit.node, str(hit.pid)) == ("worker", field.cluster.killed[0])  # type: ignore[attr-defined]
        assert field.folder.saved(0) > hit.at - hit.lost and hit.went_on_s >= 0
        field.finish()

    def test_one_that_is_gone_is_looked_for_again(self, field: Field) -> None:
        field.cluster.deaf = 3  # type: ignore[attr-defined]
        fall(field, Kind.TRIAL)
        assert field.cluster.killed == ["13"]  # type: ignore[attr-defined]

    def test_what_was_trained_after_the_checkpoint_is_counted_as_lost(self, field: Field) -> None:
        driver: Any = field.driver
        hits = [fall(field, Kind.DRIVER, images=images) for images in (240, 880)]
        assert driver.starts == 3 and {hit.pid for hit in hits} == {4711}
        field.finish()
        assert [field.folder.saved(trial) for trial in range(2)] == [1600, 1600]
        assert all(80 <= hit.lost < 160 for hit in hits)

    def test_a_node_is_waited_for(self, field: Field) -> None:
        hit = fall(field, Kind.NODE)
        assert field.cluster.killed == ["worker"] and "the node was back" in hit.note  # type: ignore[attr-defined]

    def test_a_node_is_brought_back_by_a_command(self, field: Field, tmp_path: Path) -> None:
        cluster: Any = field.cluster
        cluster.back = False
        field.bring_back = f"touch {tmp_path / 'brought'}"
        alive = cluster.nodes

        def nodes() -> Sequence[Place]:
            return cluster.all if (tmp_path / "brought").exists() else alive()

        cluster.nodes = nodes
        fall(field, Kind.NODE)
        assert (tmp_path / "brought").exists()

    @pytest.mark.parametrize(
        ("command", "said"),
        [
            ("ls /no/such/folder", r"--bring-back ended with exit code 2 \(ls: .*\): start node worker again yourself"),
            ("no-such-command-at-all", r"--bring-back could not be run \(.*\): start node worker again yourself"),
            ('"unfinished', r"--bring-back could not be run \(No closing quotation\)"),
        ],
    )
    def test_a_command_that_fails(self, field: Field, command: str, said: str) -> None:
        field.cluster.back = False  # type: ignore[attr-defined]
        field.bring_back = command
        with pytest.raises(RunError, match=said):
            field.strike(Strike(Kind.NODE, 0, 160))

    def test_a_node_that_does_not_come_back(self, field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
        field.cluster.back = False  # type: ignore[attr-defined]
        monkeypatch.setattr(striking, "PATIENCE_S", 0.3)
        with pytest.raises(RunError, match="node worker .* did not come back within .* or give --bring-back COMMAND"):
            field.strike(Strike(Kind.NODE, 0, 160))

    def test_a_server_is_away_until_something_was_recorded(self, field: Field) -> None:
        hit = fall(field, Kind.TRACKING)
        assert field.server.told == ["kill", "begin"] and hit.lost == 0  # type: ignore[union-attr]
        assert int(hit.note.split()[0]) >= 1

    def test_a_trial_that_has_ended_is_not_hit(self, field: Field) -> None:
        assert field.strike(Strike(Kind.TRIAL, 0, 10_000)) == "its trial ended before"
        assert field.cluster.killed == []  # type: ignore[attr-defined]

    def test_nobody_to_strike_is_no_blow_that_came_too_late(
        self, field: Field, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(field.cluster, "actors", lambda kind, jobs: [])
        why = "its trial ended, and Ray listed no actor ImplicitFunc of it"
        assert field.strike(Strike(Kind.TRIAL, 0, 480)) == why
        assert field.strike(Strike(Kind.DRIVER, 0, 10_000)) == "its trial ended before"

    def test_a_command_that_ends_is_given_again_but_not_for_ever(self, field: Field) -> None:
        driver: Any = field.driver
        driver.code, FakeDriver.ends = 1, [1, 1]
        field.finish()
        assert (driver.starts, field.repeated) == (4, 3)
        driver.code, FakeDriver.ends = 1, [1] * 10
        with pytest.raises(RunError, match="it ended with 1"):
            field.wait(lambda: False)

    def test_a_command_that_is_refused_is_not_given_again(self, field: Field) -> None:
        field.driver.code = 2  # type: ignore[misc]
        with pytest.raises(RequestError, match="it ended with 2"):
            field.finish()

    def test_a_campaign_that_stands_still_is_said(self, field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(striking, "PATIENCE_S", 0.2)
        monkeypatch.setattr(FakeDriver, "running", True)
        with pytest.raises(RunError, match="has not moved for .* t2i doctor looks at the cluster"):
            field.wait(lambda: False)


class TestPossible:
    def test_everything_on_two_nodes(self) -> None:
        plan = Plan(0, 2, tuple(Kind))
        assert possible(FakeCluster(), plan, asked=True) == (plan, {})  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("kind", "why"),
        [
            (Kind.NODE, "the cluster has one node"),
            (Kind.WORKER, "a group of 2 needs 2 CPUs, and the cluster has fewer"),
            (Kind.REPLICA, "Ray Serve runs on the cluster already, and what it serves is not touched"),
        ],
    )
    def test_what_cannot_be_done_is_refused_or_left_out(self, kind: Kind, why: str) -> None:
        cluster: Any = FakeCluster(nodes=[HEAD])
        cluster.resources["CPU"], cluster.serving = 1.0, True
        with pytest.raises(RequestError, match=f"--kill {kind} cannot be done here: {why}; leave it out"):
            possible(cluster, Plan(0, 2, (kind,)), asked=True)
        plan, skipped = possible(cluster, Plan(0, 2, (Kind.DRIVER, kind)), asked=False)
        assert plan.kinds == (Kind.DRIVER,) and skipped == {kind: why}

    def test_a_cluster_without_slots(self) -> None:
        cluster: Any = FakeCluster()
        del cluster.resources["trial_slot"]
        with pytest.raises(RequestError, match="no node of the cluster has the resource 'trial_slot'"):
            possible(cluster, Plan(0, 2, DEFAULT), asked=False)


class TestCommand:
    """`t2i drill` over a campaign by script."""

    @pytest.fixture
    def home(self, tmp_path: Path) -> Path:
        return tmp_path / "state"

    @pytest.fixture
    def t2i(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> T2i:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        return runner(home, tmp_path / "here", monkeypatch, capsys)

    @pytest.fixture
    def cluster(self, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
        fake = FakeCluster()

        @contextmanager
        def reached(cpus: int) -> Iterator[FakeCluster]:
            yield fake

        class Calm:
            objective = "fid"

            class plan:
                class base:
                    system = "xmcgan"

        monkeypatch.setattr(striking, "POLL_S", 0.0)
        monkeypatch.setattr(reach, "cluster", reached)
        for name, value in {
            "Driver": FakeDriver,
            "TrackingServer": FakeServer,
            "read_campaign": lambda folder: Calm,
            "unrecorded": lambda *_: [],
            "CLEAN_S": 0.0,
        }.items():
            monkeypatch.setattr(drilling, name, value)
        return fake

    def test_a_drill_that_finds_nothing(self, t2i: T2i, cluster: FakeCluster, home: Path) -> None:
        ended = t2i("drill", "--kill", "worker,trial,driver,node,tracking", "--seed", "3", "--json")
        told = ended.json
        assert told["equal"] and [hit["kind"] for hit in told["hits"]] == [
            one.kind for one in Plan(3, 2, tuple(Kind)[:5]).strikes()
        ]
        assert told["kept"] is None and told["drilled_ledger"] == told["twin_ledger"]
        assert "the ledger is the twin's to the last bit" in ended.err and "trial-0001" in ended.err
        # Only the twin stays; the second drill does not repeat it.
        assert [path.name[:4] for path in (home / "drills" / "campaigns").iterdir()] == ["twin"]
        begun = [driver.name[:4] for driver in FakeDriver.all]
        assert begun == ["twin", "seed"] and all(driver.ended for driver in FakeDriver.all)
        assert {driver.environment["RAY_ADDRESS"] for driver in FakeDriver.all} == {cluster.address}

    def test_an_altered_digest_is_reported_with_its_place_and_code_1(
        self, t2i: T2i, cluster: FakeCluster, home: Path
    ) -> None:
        FakeDriver.digests = {"seed": "cd" * 32}
        ended = t2i("drill", "--kill", "trial,driver", "--json")
        assert ended.code == 1
        assert "trial-0000 digest: abababababab… in the twin, cdcdcdcdcdcd… here, and 3 more" in ended.err
        told = json.loads(ended.out.splitlines()[-1])
        assert not told["equal"] and Path(told["kept"]).is_dir()
        assert told["differences"][0] == {"trial": 0, "field": "digest", "twin": DIGEST, "drilled": "cd" * 32}
        assert "differs" in ended.err

    def test_what_is_left_over_is_reported(self, t2i: T2i, cluster: FakeCluster) -> None:
        cluster.left = ["an actor RayTrainWorker (pid 5)"]
        ended = t2i("drill", "--kill", "trial")
        assert ended.code == 1 and "left over on the cluster: an actor RayTrainWorker (pid 5)" in ended.err

    def test_an_endpoint_that_does_not_come_up_loses_nothing_of_the_rest(
        self, t2i: T2i, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise RunError("the drill's endpoint does not come up")

        monkeypatch.setattr(drilling, "drill_replica", fail)
        ended = t2i("drill", "--kill", "driver,replica", "--json")
        told = json.loads(ended.out.splitlines()[-1])
        assert ended.code == 1 and "endpoint: the drill's endpoint does not come up" in ended.err
        assert told["unserved"] and not told["equal"] and len(told["hits"]) == 1 and told["differences"] == []

    def test_one_that_was_cut_off_goes_on(self, t2i: T2i, cluster: FakeCluster, home: Path) -> None:
        FakeDriver.interrupt_at = 1440
        ended = t2i("drill", "--kill", "worker,trial,driver")
        assert ended.code == 130 and f"what was done is kept in {home / 'drills'}" in ended.err
        assert all(driver.ended for driver in FakeDriver.all)
        before = len(cluster.killed)
        told = t2i("drill", "--kill", "worker,trial,driver", "--json").json
        assert told["equal"] and len(told["hits"]) == 3 and 1 <= before <= len(cluster.killed) <= 2

    def test_a_campaign_is_kept_where_it_is_wanted(self, t2i: T2i, cluster: FakeCluster, home: Path) -> None:
        told = t2i("drill", "--kill", "driver", "--keep", "--json").json
        assert told["equal"] and (Path(told["kept"]) / "ledger.db").is_file()

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--kill", "head"), "--kill 'head' is none: write one or more of worker, trial, driver, node, tracking"),
            (("--kill", ""), "--kill '' is none"),
            (("--trials", "0"), "Invalid value for '--trials': 0 is not in the range 1<=x<=100"),
            (("--bring-back", "true"), "--bring-back is for a node, and none is killed"),
        ],
    )
    def test_what_makes_no_sense_is_refused_before_a_cluster_is_looked_for(
        self, t2i: T2i, home: Path, words: tuple[str, ...], said: str
    ) -> None:
        t2i("drill", *words).refused(said)
        assert not made(home)

    @pytest.mark.parametrize(
        ("address", "said"),
        [
            ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
            ("ray://h:1", "cannot reach nodes through Ray's client"),
            ("10.0.0.1", "RAY_ADDRESS '10.0.0.1' is none: give HOST:PORT"),
            ("http://h:8265", "run t2i submit --address http://h:8265 -- drill"),
        ],
    )
    def test_no_cluster(self, t2i: T2i, monkeypatch: pytest.MonkeyPatch, address: str, said: str) -> None:
        monkeypatch.setenv("RAY_ADDRESS", address)
        t2i("drill").refused(said)

    def test_no_cluster_on_this_machine(self, t2i: T2i, monkeypatch: pytest.MonkeyPatch) -> None:
        """Said without an option that only another command has."""
        from ray._private import services

        def none(_: str) -> str:
            raise ConnectionError("none was found")

        monkeypatch.setattr(services, "canonicalize_bootstrap_address_or_die", none)
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        t2i("drill").refused("no Ray cluster runs on this machine, and the address is auto: start one, or give HOST")


def test_a_page_says_what_was_left_out_and_what_the_endpoint_did() -> None:
    plan = Plan(0, 2, (Kind.REPLICA,))
    report = Report(plan, skipped={Kind.NODE: "the cluster has one node"})
    report.replica = ReplicaHit(Victim(7, "head", ""), 9, 4.2, 40, ())
    assert "node: left out, the cluster has one node" in page(report) and "40 answers equal" in page(report)
    assert as_json(report)["equal"]
    report.replica = replace(report.replica, wrong=("it answered 500",))
    assert "1 of 40 answers differ" in page(report) and not as_json(report)["equal"]
    assert "endpoint: it answered 500" in str(failed(report))
