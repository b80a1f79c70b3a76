"""A network namespace on a cable that can be pulled: for a machine that is cut off, and lives on."""

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest

IP = shutil.which("ip", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin")


class NoNetwork(Exception):
    """Namespaces cannot be made here, and why."""


NOBODY = "02:00:00:00:00:fe"


@dataclass(frozen=True)
class Cable:
    """Between this machine and a namespace on it. here, there: addresses of its ends, which outlive a cut."""

    namespace: str
    near: str
    far: str
    here: str
    there: str

    @property
    def within(self) -> tuple[str, ...]:
        """Words before a command that is to run at the other end."""
        assert IP is not None
        return IP, "netns", "exec", self.namespace

    def cut(self) -> None:
        """Nothing gets through any more, in either direction, and nobody is told: no connection is closed, no route is
        gone, no message comes back. Frames go to a card that nobody has."""
        lost = ("lladdr", NOBODY, "nud", "permanent", "dev")
        ip("neighbour", "replace", self.there, *lost, self.near)
        ip("-n", self.namespace, "neighbour", "replace", self.here, *lost, self.far)

    def mend(self) -> None:
        """Everything gets through again; what was sent in vain too, once it is sent again."""
        ip("neighbour", "delete", self.there, "dev", self.near)
        ip("-n", self.namespace, "neighbour", "delete", self.here, "dev", self.far)

    def reaches(self, patience_s: float = 2.0) -> bool:
        """Whether the other end answers."""
        try:
            # Nothing listens there, and a machine that is reached says so.
            with socket.create_connection((self.there, 1), patience_s):
                return True
        except ConnectionRefusedError:
            return True
        except OSError:
            return False


def ip(*words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Carry out `ip`. Raises NoNetwork with what it said."""
    if IP is None:
        raise NoNetwork("there is no `ip`: install iproute2")
    done = subprocess.run([IP, *words], capture_output=True, text=True, timeout=60)
    if check and done.returncode:
        raise NoNetwork(f"ip {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done


def unused_net() -> str:
    """The first three numbers of addresses that no interface here and no route has."""
    taken = ip("-o", "addr").stdout + ip("route", "show", "table", "all").stdout
    for _ in range(1000):
        net = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(256)}"
        if f"{net}." not in taken:
            return net
    raise NoNetwork("no private addresses are free")


@contextmanager
def cable() -> Iterator[Cable]:
    """A new namespace, which only this cable leads to; skips the test where there can be none."""
    part = secrets.token_hex(3)
    name, near, far = f"t2i-{part}", f"t2i{part}a", f"t2i{part}b"
    try:
        if os.geteuid() != 0:
            raise NoNetwork("only root makes namespaces")
        net = unused_net()
        ip("netns", "add", name)
    except (NoNetwork, OSError) as error:
        pytest.skip(f"no machine can be cut off here ({error})")
    made = Cable(name, near, far, f"{net}.1", f"{net}.2")
    try:
        try:
            ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        except NoNetwork as error:
            pytest.skip(f"no machine can be cut off here ({error})")
        for where, link, own, other in (([], near, made.here, made.there), (["-n", name], far, made.there, made.here)):
            ip(*where, "addr", "add", f"{own}/32", "dev", link)
            ip(*where, "link", "set", link, "up")
            ip(*where, "route", "add", f"{other}/32", "dev", link, "src", own)
        ip("-n", name, "link", "set", "lo", "up")
        yield made
    finally:
        # The cable goes with either of its ends.
        with suppress(NoNetwork):
            ip("link", "delete", near)
        ip("netns", "delete", name)
    assert name not in ip("netns", "list").stdout and near not in ip("-o", "link").stdout
