"""Which version answers: a new champion only once every replica has it, and never one that could not be loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestration.serving.catalogue import Release
from orchestration.serving.following import Following
from orchestration.serving.replies import Abilities, Kind

KEEP_S, ALIVE_S = 100.0, 10.0


def release(version: int, model: str = "bird") -> Release:
    return Release(model, version, f"{version:064x}")


def abilities(*kinds: Kind) -> Abilities:
    return Abilities(system="fake", recipe="fake", resolution=8, accepts=list(kinds or ("prompt",)), truncation=False)


def loaded(*releases: Release) -> Mapping[str, Abilities]:
    return {each.id: abilities() for each in releases}


@pytest.fixture
def following() -> Following:
    """Version 1 answers, and two replicas have it."""
    made = Following(KEEP_S, ALIVE_S)
    made.begin(release(1))
    for replica in ("a", "b"):
        made.report(replica, loaded(release(1)), {}, 0.0)
    return made


def test_a_new_champion_answers_once_every_replica_has_it(following: Following) -> None:
    both = loaded(release(1), release(2))
    following.coming(release(2))
    assert set(following.table(1).wanted) == {"bird@1", "bird@2"}
    assert following.report("a", both, {}, 1).ids == {"bird": "bird@1"}, "b does not have it"
    assert following.report("b", both, {}, 2).ids == {"bird": "bird@2"}
    assert set(following.table(3).wanted) == {"bird@1", "bird@2"}, "the old one is kept warm"
    [model] = following.models(3).models
    assert (model.version, model.warm, model.aliases, model.note) == ("2", ["1"], ["champion"], None)
    assert set(following.table(2 + KEEP_S).wanted) == {"bird@2"}


def test_one_that_a_replica_cannot_load_is_refused(following: Following) -> None:
    following.coming(release(2))
    table = following.report("a", loaded(release(1)), {"bird@2": "it is damaged"}, 1)
    assert table.ids == {"bird": "bird@1"} and set(table.wanted) == {"bird@1"}
    following.saw(release(2))
    assert not following.is_new(release(2)), "it is not tried again and again"
    [model] = following.models(1).models
    assert model.note == "version 2 is the champion and was refused (it is damaged): version 1 goes on answering"
    following.try_again()
    assert following.is_new(release(2))


def test_what_was_refused_may_come_again_after_another(following: Following) -> None:
    following.refuse(release(2), "it is damaged")
    following.saw(release(1))
    assert following.is_new(release(2)) and following.models(1).models[0].note is None


def test_a_dead_replica_holds_nothing_up(following: Following) -> None:
    following.coming(release(2))
    both = loaded(release(1), release(2))
    assert following.report("a", both, {}, ALIVE_S).ids == {"bird": "bird@1"}
    assert following.report("a", both, {}, ALIVE_S + 0.1).ids == {"bird": "bird@2"}


def test_nothing_switches_while_nobody_draws() -> None:
    following = Following(KEEP_S, ALIVE_S)
    following.begin(release(1))
    following.report("a", loaded(release(1)), {}, 0)
    following.coming(release(2))
    following.report("late", {}, {}, 50)
    assert following.table(50).ids == {"bird": "bird@1"}


def test_going_back_is_immediate_while_warm(following: Following) -> None:
    both = loaded(release(1), release(2))
    following.coming(release(2))
    for replica in ("a", "b"):
        following.report(replica, both, {}, 1)
    following.coming(release(1))
    assert following.report("a", both, {}, 2).ids == {"bird": "bird@1"}
    assert set(following.table(2).wanted) == {"bird@1", "bird@2"}


def test_an_alias_that_moves_on_meanwhile_is_followed(following: Following) -> None:
    following.coming(release(2))
    following.saw(release(3))
    following.coming(release(3))
    assert set(following.table(1).wanted) == {"bird@1", "bird@3"}
    for replica in ("a", "b"):
        following.report(replica, loaded(release(1), release(2), release(3)), {}, 1)
    assert following.table(1).ids == {"bird": "bird@3"}


def test_what_answers_and_cannot_be_loaded_is_found_out() -> None:
    following = Following(KEEP_S, ALIVE_S)
    following.begin(release(2))
    following.report("a", {}, {"bird@2": "no memory"}, 0)
    assert following.failed() == [release(2)] and following.why_failed(release(2)) == "no memory"
    following.begin(release(1))
    assert following.failed() == []


def test_a_pinned_version_stays() -> None:
    following = Following(KEEP_S, ALIVE_S)
    following.pin(release(7))
    following.report("a", loaded(release(7)), {}, 0)
    [model] = following.models(0).models
    assert (model.version, model.aliases) == ("7", [])
    following.lost("bird")
    assert following.models(0).models[0].note is None


def test_a_model_that_nothing_answers_for_is_told_of(following: Following) -> None:
    following.refuse(release(1, "fish"), "it is damaged")
    told = following.models(1)
    assert [model.name for model in told.models] == ["bird"]
    assert told.refused == {"fish": "version 1 is the champion and was refused (it is damaged): nothing answers for it"}


def test_a_model_without_a_champion_says_so(following: Following) -> None:
    following.lost("bird")
    assert following.models(1).models[0].note == "it has no champion any more: version 1 goes on answering"


def test_each_kind_has_the_model_that_is_made_for_it() -> None:
    following = Following(KEEP_S, ALIVE_S)
    kinds: dict[str, tuple[Kind, ...]] = {
        "teller": ("narrative", "prompt"),
        "painter": ("prompt",),
        "grapher": ("graph",),
    }
    for name in kinds:
        following.begin(release(1, name))
    following.report("a", {f"{name}@1": abilities(*kinds[name]) for name in kinds}, {}, 0)
    assert following.models(0).default == {"prompt": "painter", "narrative": "teller", "graph": "grapher"}


@dataclass
class Simulated:
    """A replica that does what it is told, when it gets round to it."""

    has: set[str] = field(default_factory=set)
    cannot: dict[str, str] = field(default_factory=dict)


class Following_(RuleBasedStateMachine):
    """Promotions, faults, deaths and delays in any order: what answers is always loaded by every replica that draws."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.following = Following(KEEP_S, ALIVE_S)
        self.following.begin(release(1))
        self.broken: set[str] = set()
        self.replicas = {name: Simulated({"bird@1"}) for name in "ab"}
        self.champion = 1
        for name in self.replicas:
            self.report(name)

    def report(self, name: str) -> None:
        replica = self.replicas[name]
        loaded_now = {id: abilities() for id in replica.has}
        table = self.following.report(name, loaded_now, dict(replica.cannot), self.now)
        replica.has &= set(table.wanted)
        replica.cannot = {id: why for id, why in replica.cannot.items() if id in table.wanted}

    @rule(version=st.integers(1, 6), whole=st.booleans())
    def promote(self, version: int, whole: bool) -> None:
        self.champion = version
        answers = set(self.following.table(self.now).ids.values())
        if not whole and f"bird@{version}" not in answers | {id for r in self.replicas.values() for id in r.has}:
            self.broken.add(f"bird@{version}")
        self.look()

    @rule()
    def look(self) -> None:
        champion = release(self.champion)
        self.following.saw(champion)
        if self.following.is_new(champion):
            self.following.coming(champion)

    @precondition(lambda self: self.replicas)
    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.replicas)))
        replica = self.replicas[name]
        for id in self.following.table(self.now).wanted:
            if id in self.broken:
                replica.cannot[id] = "damaged"
            elif data.draw(st.booleans()):
                replica.has.add(id)
        self.report(name)

    @rule(seconds=st.floats(0.1, 5))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for name in self.replicas:
            self.report(name)

    @invariant()
    def what_answers_is_loaded_everywhere(self) -> None:
        [id] = self.following.table(self.now).ids.values()
        assert all(id in replica.has for replica in self.replicas.values())
        assert id not in self.broken


TestFollowing = Following_.TestCase
TestFollowing.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_the_last_champion_wins(champions: list[int]) -> None:
    following = Following(KEEP_S, ALIVE_S)
    following.begin(release(1))
    has: dict[str, Abilities] = {"bird@1": abilities()}
    for now, version in enumerate(champions):
        following.saw(release(version))
        if following.is_new(release(version)):
            following.coming(release(version))
        has |= {id: abilities() for id in following.table(now).wanted}
        following.report("a", has, {}, now)
    assert following.table(len(champions)).ids == {"bird": f"bird@{champions[-1]}"}
