"""Which version of each model answers: the decisions of whoever follows the registry, without Ray and without a clock.

A new champion is loaded by every replica beside the old one, and answers once all of them have it; one that cannot be
loaded is refused, and the old one goes on. What was replaced stays loaded for a while, to go back to at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestration.serving.catalogue import Release
from orchestration.serving.replies import Abilities, Kind, ModelsReply, ServedModel

CHAMPION = "champion"


@dataclass(frozen=True, slots=True)
class Table:
    """What requests and replicas go by.

    answering: the release that a model's name stands for; wanted: what every replica is to have loaded, by id.
    """

    answering: Mapping[str, Release]
    wanted: Mapping[str, Release]

    @property
    def ids(self) -> Mapping[str, str]:
        """Of what answers, by model."""
        return {model: release.id for model, release in self.answering.items()}


@dataclass(slots=True)
class _Replica:
    seen: float
    loaded: Mapping[str, Abilities]
    failed: Mapping[str, str]


@dataclass(slots=True)
class Following:
    """Times are seconds of one clock.

    keep_warm_s: what was replaced stays loaded so long; alive_s: a replica that was not heard of for so long is gone,
    and nobody waits for it.
    """

    keep_warm_s: float
    alive_s: float
    _answering: dict[str, Release] = field(default_factory=dict)
    _coming: dict[str, Release] = field(default_factory=dict)
    _pinned: dict[str, Release] = field(default_factory=dict)
    _retired: dict[str, tuple[Release, float]] = field(default_factory=dict)
    _refused: dict[str, str] = field(default_factory=dict)
    _notes: dict[str, str] = field(default_factory=dict)
    _abilities: dict[str, Abilities] = field(default_factory=dict)
    _replicas: dict[str, _Replica] = field(default_factory=dict)

    def pin(self, release: Release) -> None:
        """A release that answers for good: by its number, and by its model's name unless that follows a champion."""
        self._pinned[release.id] = release
        self._answering.setdefault(release.model, release)

    def begin(self, release: Release) -> None:
        """The first release that answers for a model."""
        self._answering[release.model] = release

    def is_new(self, champion: Release) -> bool:
        """Whether a champion neither answers, nor is on its way, nor was refused."""
        ours = self._answering.get(champion.model), self._coming.get(champion.model)
        return champion.id not in {release.id for release in ours if release} and champion.id not in self._refused

    def saw(self, champion: Release) -> None:
        """What the alias names now, by a release that need not have been fetched: what it is not, is not waited for."""
        model, answers = champion.model, self._answering.get(champion.model)
        if (coming := self._coming.get(model)) is not None and coming.id != champion.id:
            del self._coming[model]
        for refused in [id for id in self._refused if id != champion.id and id.rpartition("@")[0] == model]:
            # It may be mended before it is champion again.
            del self._refused[refused]
        if answers is not None and answers.id == champion.id:
            self._notes.pop(model, None)

    def coming(self, champion: Release) -> None:
        """A new champion that was fetched: it is to answer once all replicas have it."""
        self._coming[champion.model] = champion

    def refuse(self, champion: Release, why: str) -> None:
        """A new champion that cannot be served."""
        self._coming.pop(champion.model, None)
        self._refused[champion.id] = why
        answers = self._answering.get(champion.model)
        goes_on = f"version {answers.version} goes on answering" if answers else "nothing answers for it"
        self._notes[champion.model] = f"version {champion.version} is the champion and was refused ({why}): {goes_on}"

    def try_again(self) -> None:
        """What was refused may have been mended."""
        self._refused.clear()

    def lost(self, model: str) -> None:
        """A model has no champion any more."""
        if (answers := self._answering.get(model)) is not None and answers.id not in self._pinned:
            self._coming.pop(model, None)
            self._notes[model] = f"it has no champion any more: version {answers.version} goes on answering"

    def was_refused(self, release: Release) -> bool:
        """Whether it is known that it cannot be served."""
        return release.id in self._refused

    def failed(self) -> Sequence[Release]:
        """What answers though no replica could load it: another release should (`begin`)."""
        return [
            release
            for release in self._answering.values()
            if not any(release.id in replica.loaded for replica in self._replicas.values())
            and any(release.id in replica.failed for replica in self._replicas.values())
        ]

    def why_failed(self, release: Release) -> str:
        """What a replica said of a release that it could not load."""
        return next(
            (replica.failed[release.id] for replica in self._replicas.values() if release.id in replica.failed), ""
        )

    def report(self, replica: str, loaded: Mapping[str, Abilities], failed: Mapping[str, str], now: float) -> Table:
        """What a replica has loaded and could not load; the answer is what it should have."""
        self._replicas[replica] = _Replica(now, loaded, failed)
        self._abilities |= loaded
        self._advance(now)
        return self.table(now)

    def table(self, now: float) -> Table:
        """As it stands."""
        for id, (_, until) in list(self._retired.items()):
            if until <= now:
                del self._retired[id]
        releases = [*self._answering.values(), *self._pinned.values(), *self._coming.values()]
        releases += [release for release, _ in self._retired.values()]
        return Table(dict(self._answering), {release.id: release for release in releases})

    def models(self, now: float) -> ModelsReply:
        """For people and programs: what can be asked of each model."""
        table, served = self.table(now), []
        answering = [release for release in table.answering.values() if release.id in self._abilities]
        pinned = [release for release in self._pinned.values() if release.id in self._abilities]
        for release in dict.fromkeys([*answering, *pinned]):
            named = table.answering.get(release.model) == release
            warm = [
                str(other.version)
                for other in table.wanted.values()
                if other.model == release.model and other.id != release.id and other.id in self._abilities
            ]
            served.append(
                ServedModel(
                    name=release.model,
                    version=str(release.version),
                    checkpoint_digest=release.digest,
                    aliases=[CHAMPION] if named and release.id not in self._pinned else [],
                    warm=warm,
                    note=self._notes.get(release.model),
                    **dict(self._abilities[release.id]),
                )
            )
        names = {model.name for model in served}
        refused = {model: note for model, note in self._notes.items() if model not in names}
        return ModelsReply(models=served, default=_defaults(served), refused=refused)

    def _advance(self, now: float) -> None:
        for name in [name for name, replica in self._replicas.items() if now - replica.seen > self.alive_s]:
            del self._replicas[name]
        for model, release in list(self._coming.items()):
            why = next((each.failed[release.id] for each in self._replicas.values() if release.id in each.failed), None)
            if why is not None:
                self.refuse(release, why)
            elif self._replicas and all(release.id in each.loaded for each in self._replicas.values()):
                self._switch(model, release, now)

    def _switch(self, model: str, release: Release, now: float) -> None:
        del self._coming[model]
        before = self._answering.get(model)
        if before is not None:
            self._retired[before.id] = before, now + self.keep_warm_s
        self._retired.pop(release.id, None)
        self._answering[model] = release
        self._notes.pop(model, None)


def _defaults(served: Sequence[ServedModel]) -> dict[Kind, str]:
    """Of each kind the first model that is made for it, else the first that takes it."""
    found: dict[Kind, str] = {}
    ranked = sorted(
        ((place, kind, model.name) for model in served for place, kind in enumerate(model.accepts)),
        key=lambda each: each[0],
    )
    for _, kind, name in ranked:
        found.setdefault(kind, name)
    return found
