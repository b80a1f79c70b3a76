"""One machine at a time works on a run: an object that says who does, and is written again as a sign of life."""

import json
import os
import socket
import threading
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from orchestration.errors import RequestError, RunError
from orchestration.remote.store import Store

LEASE = "lease.json"
BEAT_S, STALE_S = 30.0, 180.0
"""Seconds between two signs of life, and without one until another machine may go on."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who works. copy: the working copy's id; machine: tells two with the same process ids apart."""

    id: str
    copy: str
    host: str
    machine: str
    pid: int

    @classmethod
    def here(cls, copy: str) -> "Owner":
        return cls(uuid.uuid4().hex, copy, socket.gethostname(), _machine(), os.getpid())

    def is_dead(self, copy: str) -> bool:
        """Whether it is known to have ended: it used this copy, which a lock on this machine guards, or it was a
        process of this machine and is no more."""
        if self.copy == copy:
            return True
        if self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


@cache
def _machine() -> str:
    """This boot of this kernel and this namespace of processes, or else the host's name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()


class Lease:
    """On `folder` of the store; copy: the working copy's id."""

    def __init__(self, store: Store, folder: str, copy: str) -> None:
        self.store, self.folder, self.name = store, folder, f"{folder}/{LEASE}"
        self.owner = Owner.here(copy)
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def acquire(self) -> None:
        """Nobody else works on the folder until `release`. Raises RequestError when somebody does."""
        for _ in range(3):
            with suppress(FileExistsError):
                self.store.create(self.name, _written(self.owner))
            # Not every store can refuse to write over an object, so what is there now counts.
            known = _read(self.store, self.name)
            if known == self.owner:
                self._beating.start()
                return
            with suppress(FileNotFoundError):
                if known is not None:
                    self._require_dead(known)
                    # Asking took a while: another who found the same one dead may have taken its place by now.
                    if _read(self.store, self.name) == known:
                        self.store.remove([self.name])
        raise RunError(f"another machine takes {self.folder} in {self.store.url} at this moment too: repeat")

    def _require_dead(self, known: Owner) -> None:
        age = self.store.now(self.folder) - self.store.modified(self.name)
        if not known.is_dead(self.owner.copy) and age < STALE_S:
            raise RequestError(
                f"{self.folder} in {self.store.url} is being worked on by process {known.pid} on {known.host} (its "
                f"last sign of life is {max(0, age):.0f} s old): wait for it, or repeat in {STALE_S:.0f} s if that "
                "machine is gone"
            )

    def require(self) -> None:
        """RunError when another machine took it, after this one gave no sign of life for long."""
        if _read(self.store, self.name) not in (self.owner, None):
            raise RunError(
                f"another machine has taken {self.folder} in {self.store.url} over: what is here is not published; "
                "repeat the command to go on from what that one published"
            )

    def release(self) -> None:
        """End it; where the store is away it goes stale."""
        self._ended.set()
        self._beating.join()
        with suppress(OSError):
            if _read(self.store, self.name) == self.owner:
                self.store.remove([self.name])

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with suppress(OSError):
                if _read(self.store, self.name) not in (self.owner, None):
                    return  # taken over: `require` tells
                self.store.put(self.name, _written(self.owner))


def _written(owner: Owner) -> bytes:
    return json.dumps(asdict(owner)).encode()


def _read(store: Store, name: str) -> Owner | None:
    """Who has the lease; None for no lease. One that cannot be read is nobody's who lives."""
    try:
        return Owner(**json.loads(store.read(name)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return Owner("", "", "?", "?", 0)
