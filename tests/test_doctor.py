"""The doctor's checks, each with a planted fault, its page and its command; a real cluster is in test_ray_doctor."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration import doctor_commands
from orchestration.doctor.facts import (
    Asked,
    Facts,
    Failed,
    NodeFacts,
    Reached,
    Storage,
    shown_url,
)
from orchestration.doctor.finding import NOTE, REFUSE, WARN, Finding
from orchestration.doctor.findings import find
from orchestration.doctor.hands import HERE
from orchestration.doctor.page import WIDTH, as_json, page
from orchestration.errors import RequestError, RunError

from .doctor_faults import PLANTED, worker
from .doctor_support import BOTH, HEAD, PACKAGES, WORKER, healthy, healthy_node, on


def test_nothing_is_wrong_with_what_is_right() -> None:
    assert find(healthy()) == []
    assert "nothing to mend" in page(healthy(), [])


@pytest.mark.parametrize("fault", PLANTED)
def test_each_fault_is_found_with_its_mend(fault: str) -> None:
    change, severity, where, what, mend = PLANTED[fault]
    found = find(change(healthy()))
    matching = [each for each in found if what in each.what]
    assert [(each.severity, each.where) for each in matching] == [(severity, where)], found
    assert mend in matching[0].mend
    assert any(line.startswith(severity) for line in page(change(healthy()), found).splitlines())


def test_one_fault_is_told_once() -> None:
    """A fault of every node is one finding, and one that hides others is told without them."""
    everywhere = on(healthy(), *BOTH, home=Storage("read-only", "Read-only file system"))
    assert [(each.where, each.severity) for each in find(everywhere)] == [(BOTH, REFUSE)]
    change = PLANTED["silent node"][0]
    assert [each.check for each in find(replace(change(healthy()), rings=()))] == ["answers", "all-reduce"]


def test_of_three_nodes_the_one_that_is_apart_is_named() -> None:
    apart = healthy_node("third-host", False)
    facts = on(replace(healthy(), nodes=(*healthy().nodes, apart)), "third-host", home={"seen": ("third-host",)})
    together = on(facts, *BOTH, stages={"seen": (*BOTH, "third-host")})
    together = on(together, "third-host", stages={"seen": (*BOTH, "third-host")})
    assert [(each.check, each.where) for each in find(together)] == [("home", ("third-host",))]


def test_gravest_first() -> None:
    facts = worker(clock={"offset": 9.0}, home=Storage("full", "No space"))(replace(healthy(), dead=("10.0.0.9",)))
    assert [each.severity for each in find(facts)] == [REFUSE, WARN, NOTE]


def test_the_slow_round_trip_excuses_a_clock() -> None:
    assert find(worker(clock={"offset": 3.0, "round_trip": 5.0})(healthy())) == []


class TestPage:
    @settings(deadline=None, max_examples=60)
    @given(
        st.text("abc-. é", min_size=1, max_size=80),
        st.text("xyz / (", max_size=400),
        st.sampled_from([REFUSE, WARN, NOTE]),
    )
    def test_no_line_is_too_long(self, name: str, text: str, severity: str) -> None:
        facts = replace(healthy(), nodes=(replace(healthy().nodes[0], name=name), healthy().nodes[1]))
        facts = on(facts, name, home=Storage("failed", text), gpus=Failed(text), machine={"open_files": 1 << 60})
        finding = Finding(severity, "home", text, (name,), text)
        assert max(map(len, page(facts, [finding]).splitlines())) <= WIDTH

    def test_facts_that_were_not_seen(self) -> None:
        bare = Facts(Asked("/home"), (NodeFacts(HERE, True),))
        assert "this machine" in page(bare, find(bare))

    def test_no_password_is_shown(self) -> None:
        secret: dict[str, Any] = {
            "mlflow": "http://me:hush@h:1",
            "optuna": "postgresql://me:hu@sh@h/o",
            "stages": "ftp://me:hush@h/s",
        }
        facts = replace(healthy(), asked=replace(healthy().asked, **secret))
        facts = on(facts, *BOTH, mlflow=Reached("unreachable", "x"), optuna=Reached("unreachable", "x"))
        findings = find(facts)
        for text in (page(facts, findings), json.dumps(as_json(facts, findings))):
            assert "hush" not in text and "hu@sh" not in text and "***@h" in text

    def test_a_password_with_a_slash_or_among_the_options_is_hidden(self) -> None:
        assert shown_url("postgresql+psycopg://me:hu/sh@h:5432/db") == "postgresql+psycopg://***@h:5432/db"
        assert shown_url("postgresql://h/db?sslPassword=hush&a=b") == "postgresql://h/db?sslPassword=***&a=b"

    @settings(deadline=None, max_examples=50)
    @given(st.text("abc:@%!", max_size=20))
    def test_what_is_between_slashes_and_host_is_hidden(self, secret: str) -> None:
        assert shown_url(f"postgresql://{secret}@host/name") == "postgresql://***@host/name"


def versions_refused(head: str, worker: str) -> list[str]:
    facts = healthy()
    for name, version in ((HEAD, head), (WORKER, worker)):
        facts = on(facts, name, versions={"packages": {**PACKAGES, "torch": version}})
    return [each.what for each in find(facts) if each.check == "versions"]


def test_a_head_with_the_build_without_cuda_has_the_same_torch() -> None:
    assert versions_refused("2.13.0+cpu", "2.13.0+cu130") == versions_refused("2.13.0+cpu", "2.13.0") == []
    assert versions_refused("2.12.0+cpu", "2.13.0+cu130") == ["torch is 2.13.0 there, and 2.12.0 elsewhere"]
    assert versions_refused("2.13.0+cu126", "2.13.0+cu130") == [
        "torch is 2.13.0+cu130 there, and 2.13.0+cu126 elsewhere"
    ]


class TestCommand:
    @pytest.fixture
    def t2i(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 32)  # whatever is in this user's own file

        def run(*arguments: str) -> None:
            group = click.Group()
            doctor_commands.add_to(group)
            group.main(["doctor", "--home", str(tmp_path / "home"), *arguments], standalone_mode=False)

        return run

    def test_this_machine(self, t2i: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        t2i("--json")
        out, err = capsys.readouterr()
        found = json.loads(out.splitlines()[-1])
        assert found["counts"]["refuse"] == 0 and found["address"] is None
        [node] = found["nodes"]
        assert node["home"]["status"] == "ok" and node["versions"]["packages"]["torch"]
        assert found["rings"][0]["correct"]
        assert "t2i doctor: this machine" in err
        assert not list(tmp_path.iterdir())

    def test_refusals_are_exit_code_one(
        self, t2i: Callable[..., None], closed_uri: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(RunError, match="for 1 reason: mend"):
            t2i("--mlflow-uri", closed_uri, "--json")
        out = capsys.readouterr().out
        assert [
            each["check"] for each in json.loads(out.splitlines()[-1])["findings"] if each["severity"] == REFUSE
        ] == ["mlflow"]

    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            (["--address", "nowhere"], "give HOST:PORT"),
            (["--mlflow-uri", "nothing"], "of no kind that MLflow can use"),
            (["--optuna", "nothing"], "--optuna is no URL of a database"),
        ],
    )
    def test_wrong_requests(self, arguments: list[str], part: str, t2i: Callable[..., None]) -> None:
        with pytest.raises(RequestError, match=part):
            t2i(*arguments)

    def test_the_address_of_the_environment(
        self, t2i: Callable[..., None], closed_uri: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_ADDRESS", closed_uri[7:])
        with pytest.raises(RequestError, match="no Ray cluster answers at"):
            t2i()
