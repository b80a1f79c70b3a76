"""A campaign's study in Optuna's storage, which follows the ledger: for optuna-dashboard, never read for a decision."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import SQLAlchemyError

from orchestration.errors import RequestError, RunError

FILE = "optuna.db"
MARK = "t2i"
RETRY_S = 60.0
"""A storage that did not answer is left alone so long."""
_TROUBLE = (SQLAlchemyError, optuna.exceptions.OptunaError, OSError, RuntimeError, KeyError)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna says nothing below an error in here."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class StudyStorage:
    """One study, whose trials have the ledger's numbers.

    url: by default a file in the campaign's folder, else any database that Optuna can use. mark: tells this campaign's
    study from another's of the same name; one in the campaign's own file is replaced, one elsewhere refused. Raises
    RequestError for a storage that cannot be used: no driver, no connection, of a newer version, another's study.
    """

    def __init__(self, folder: Path, url: str | None, name: str, directions: Sequence[str], mark: str) -> None:
        self._own = url is None
        self._url = url or URL.create("sqlite", database=str(folder.resolve() / FILE)).render_as_string()
        self._name, self._mark = name, mark
        self._directions = [StudyDirection[direction.upper()] for direction in directions]
        self._wanted: dict[int, FrozenTrial] = {}
        self._due: set[int] = set()  # wanted, and perhaps not stored
        self._stored: list[tuple[int, FrozenTrial]] | None = None  # Optuna's id and the trial; None: to be read
        self._after = 0.0
        self.behind = ""
        """Why the storage lacks something; empty when it lacks nothing."""
        if self._own:
            folder.mkdir(parents=True, exist_ok=True)
        self._open()

    def put(self, number: int, wanted: FrozenTrial) -> None:
        """Trial `number` shall be so. What cannot be written now is written later; those before it must come first."""
        self._wanted[number] = wanted
        self._due.add(number)
        if time.monotonic() >= self._after:
            self._follow()

    def expect(self, count: int) -> None:
        """There are so many trials: what the storage has beyond them is of another past."""
        if self._stored is not None and len(self._stored) > count:
            self._wanted = {number: wanted for number, wanted in self._wanted.items() if number < count}
            self._follow(anew=True)

    def close(self) -> None:
        """Write what is missing and let go. Raises RunError when it cannot be written."""
        self._follow()
        self.expect(len(self._wanted))
        self._let_go()
        if self.behind:
            raise RunError(f"Optuna's storage {self._shown} lacks trials ({self.behind}): mend it and resume")

    @property
    def _shown(self) -> str:
        """The URL without its password."""
        with suppress(SQLAlchemyError):
            return make_url(self._url).render_as_string(hide_password=True)
        return self._url

    def _open(self) -> None:
        mend = "delete it, and it is made anew" if self._own else "mend it, update optuna, or name another"
        try:
            with quiet_optuna():
                sqlite = make_url(self._url).get_backend_name() == "sqlite"
                # A dashboard may be reading. Braces are a template's to Optuna.
                waits = {"connect_args": {"timeout": 30}} if sqlite else {}
                self._storage = RDBStorage(self._url.replace("{", "{{").replace("}", "}}"), waits)
                if self._own:
                    self._storage.engine.dispose()  # connections from now on are hasty ones
                    event.listen(self._storage.engine, "connect", _hasty)
                self._read()
        except (*_TROUBLE, ImportError, ValueError) as error:
            raise RequestError(f"Optuna's storage {self._shown} cannot be used ({_reason(error)}): {mend}") from error

    def _let_go(self) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _read(self) -> None:
        """Find the study, or make it."""
        names = {study.study_name: study for study in self._storage.get_all_studies()}
        found = names.get(self._name)
        if found is not None and found.user_attrs.get(MARK) != self._mark:
            if not self._own:
                self._let_go()
                raise RequestError(
                    f"Optuna's storage {self._shown} has another study {self._name!r}: give the campaign another name, "
                    "or delete that study there"
                )
            self._storage.delete_study(found._study_id)
            found = None
        if found is None:
            self._create()
        else:
            self._study = found._study_id
            trials = self._storage.get_all_trials(self._study)
            self._stored, self._due = [(trial._trial_id, trial) for trial in trials], set(self._wanted)

    def _create(self) -> None:
        self._study = self._storage.create_new_study(self._directions, self._name)
        self._storage.set_study_user_attr(self._study, MARK, self._mark)
        self._stored, self._due = [], set(self._wanted)

    def _follow(self, anew: bool = False) -> None:
        """Bring the storage to what is wanted. A finished trial cannot be changed there, so where one differs, or
        `anew`, the study is written again."""
        try:
            with quiet_optuna():
                if self._stored is None:
                    self._read()
                if anew or not all(self._can_become(number) for number in self._due):
                    self._storage.delete_study(self._study)
                    self._create()
                for number in sorted(self._due):
                    self._write(number)
            self.behind, self._after = "", 0.0
        except _TROUBLE as error:
            self._stored, self.behind, self._after = None, _reason(error), time.monotonic() + RETRY_S

    def _can_become(self, number: int) -> bool:
        assert self._stored is not None
        return number >= len(self._stored) or _leads_to(self._stored[number][1], self._wanted[number])

    def _write(self, number: int) -> None:
        """Write one trial, unless one before it is not known yet."""
        assert self._stored is not None
        wanted = self._wanted[number]
        if number > len(self._stored):
            return
        if number == len(self._stored):
            self._stored.append((self._storage.create_new_trial(self._study, wanted), wanted))
        else:
            trial, stored = self._stored[number]
            if not _same(stored, wanted):
                self._update(trial, stored, wanted)
            self._stored[number] = (trial, wanted)
        self._due.discard(number)

    def _update(self, trial: int, stored: FrozenTrial, wanted: FrozenTrial) -> None:
        """A running trial goes on, or ends. Each write is a transaction, so only what changed is written."""
        for step, value in wanted.intermediate_values.items():
            if stored.intermediate_values.get(step) != value:
                self._storage.set_trial_intermediate_value(trial, step, value)
        for name, attribute in wanted.user_attrs.items():
            if name not in stored.user_attrs or stored.user_attrs[name] != attribute:
                self._storage.set_trial_user_attr(trial, name, attribute)
        if wanted.state.is_finished():
            self._storage.set_trial_state_values(trial, wanted.state, wanted.values)


def _hasty(connection: Any, _: object) -> None:
    """No waiting for the disk, which is half of the cost: what a power cut spoils is made anew from the ledger."""
    connection.execute("pragma synchronous = off")


def _same(stored: FrozenTrial, wanted: FrozenTrial) -> bool:
    return (
        stored.state == wanted.state
        and _begun_alike(stored, wanted)
        and stored.intermediate_values.keys() == wanted.intermediate_values.keys()
        and all(_close(stored.intermediate_values[step], value) for step, value in wanted.intermediate_values.items())
        and stored.user_attrs == wanted.user_attrs
        and len(stored.values or ()) == len(wanted.values or ())
        and all(_close(a, b) for a, b in zip(stored.values or (), wanted.values or (), strict=True))
    )


def _leads_to(stored: FrozenTrial, wanted: FrozenTrial) -> bool:
    """Whether the stored trial is what is wanted, or an earlier state of it."""
    if stored.state != TrialState.RUNNING:
        return _same(stored, wanted)
    steps = stored.intermediate_values.keys() <= wanted.intermediate_values.keys()
    return _begun_alike(stored, wanted) and steps and stored.user_attrs.keys() <= wanted.user_attrs.keys()


def _begun_alike(stored: FrozenTrial, wanted: FrozenTrial) -> bool:
    if stored.distributions != wanted.distributions:
        return False
    return all(
        _close(stored.params[name], value) if isinstance(value, float) else stored.params[name] == value
        for name, value in wanted.params.items()
    )


def _close(a: float, b: float) -> bool:
    """Databases keep doubles, or nearly."""
    return math.isclose(a, b, rel_tol=1e-12)


def _reason(error: BaseException) -> str:
    """The first line of what the database said; Optuna's own error says less."""
    cause = error.__cause__ or error
    return (str(getattr(cause, "orig", None) or cause).strip() or type(cause).__name__).splitlines()[0]
