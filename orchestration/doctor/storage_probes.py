"""Probes of what several nodes share: folders, URLs and databases. They travel to nodes, as those in probes do.

Every node leaves a file that names it and a nonce; then every node looks for the files of all; then each removes its
own. Only so is one folder told from several of the same name.
"""

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

Values = dict[str, Any]

STATUS_BY_ERRNO = {
    errno.EROFS: "read-only",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
}
BLOCK = 1 << 20
LOOK_S = 5.0
"""A network file system may show another node's new file late."""


def mark_name(nonce: str, node: str) -> str:
    """The name of a node's file."""
    return f".t2i-doctor-{nonce}-{re.sub(r'[^A-Za-z0-9.-]', '_', node)}"


def _mark(nonce: str, node: str) -> bytes:
    return f"{nonce} {node}\n".encode()


def leave_in_folder(folder: str, nonce: str, node: str, size: int, parent_will_do: bool) -> Values:
    """Write `size` bytes through to the disk and read them back: values of Storage.

    parent_will_do: a folder that is still to be made is tried by the nearest parent that is there.
    """
    path = Path(folder)
    try:
        if not os.path.lexists(path):
            if not parent_will_do:
                return {"status": "absent", "reason": f"{path} is not there"}
            path = next(parent for parent in path.parents if os.path.lexists(parent))
        if not path.is_dir():
            return {"status": "not a folder", "reason": f"{path} is not a folder", "tried": str(path)}
        disk = shutil.disk_usage(path)
        found: Values = {"tried": str(path), "free": disk.free, "total": disk.total, "filesystem": filesystem(path)}
    except OSError as error:
        return {"status": STATUS_BY_ERRNO.get(error.errno or 0, "failed"), "reason": _said(error)}
    file = path / mark_name(nonce, node)
    try:
        write_speed, read_speed = _write_and_read(file, _mark(nonce, node), size)
    except OSError as error:
        with suppress(OSError):
            file.unlink()
        return {**found, "status": STATUS_BY_ERRNO.get(error.errno or 0, "failed"), "reason": _said(error)}
    return {**found, "status": "ok", "write_speed": write_speed, "read_speed": read_speed}


def _write_and_read(file: Path, head: bytes, size: int) -> tuple[float, float]:
    block = os.urandom(min(BLOCK, size))  # some file systems compress
    began = time.perf_counter()
    with file.open("wb", buffering=0) as out:
        out.write(head)
        for _ in range(size // len(block)):
            out.write(block)
        os.fsync(out.fileno())
    written = time.perf_counter()
    with file.open("rb", buffering=0) as back:
        if hasattr(os, "posix_fadvise"):  # else the page cache answers
            os.posix_fadvise(back.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        whole = back.read(len(head)) == head
        for _ in range(size // len(block)):
            whole &= back.read(len(block)) == block
    read = time.perf_counter()
    if not whole:
        raise OSError(errno.EIO, "what was written is not what is read back")
    return size / max(written - began, 1e-9), size / max(read - written, 1e-9)


def filesystem(path: Path) -> str:
    """Kind and source of the file system that a path is on, such as `nfs4 server:/t2i`; empty where unknown."""
    best, found = -1, ""
    with suppress(OSError):
        whole = str(path.resolve())
        for line in Path("/proc/mounts").read_text().splitlines():
            source, place, kind, *_ = (word.replace("\\040", " ") for word in line.split(" "))
            if (whole == place or whole.startswith(f"{place.rstrip('/')}/")) and len(place) >= best:
                best, found = len(place), f"{kind} {source}"
    return found


def seen_in_folder(folder: str, nonce: str, nodes: Sequence[str]) -> list[str]:
    """Those of the nodes whose file is in the folder, with the right nonce."""
    found: list[str] = []
    until = time.monotonic() + LOOK_S
    while True:
        for node in nodes:
            with suppress(OSError), (Path(folder) / mark_name(nonce, node)).open("rb") as file:
                if node not in found and file.readline() == _mark(nonce, node):
                    found.append(node)
        if len(found) == len(nodes) or time.monotonic() > until:
            return found
        time.sleep(0.25)
        with suppress(OSError):
            any(Path(folder).iterdir())  # has some network file systems look again


def remove_from_folder(folder: str, nonce: str, node: str) -> None:
    """Take the node's own file away."""
    with suppress(OSError):
        (Path(folder) / mark_name(nonce, node)).unlink()


def leave_at_url(url: str, nonce: str, node: str, size: int, parent_will_do: bool) -> Values:
    """Write a file of `size` bytes below a URL that fsspec opens, and read it back: values of Storage."""
    try:
        files, root = _open_url(url)
    except Exception as error:
        return {"status": _url_status(error), "reason": _said(error)}
    if _is_local(files):
        return leave_in_folder(root, nonce, node, size, parent_will_do)
    place = f"{root.rstrip('/')}/{mark_name(nonce, node)}"
    content = _mark(nonce, node) + os.urandom(size)
    try:
        began = time.perf_counter()
        files.pipe_file(place, content)
        written = time.perf_counter()
        whole = files.cat_file(place) == content
        read = time.perf_counter()
    except Exception as error:
        with suppress(Exception):
            files.rm_file(place)
        return {"status": _url_status(error), "reason": _said(error), "tried": root}
    if not whole:
        return {"status": "failed", "reason": "what was written is not what is read back", "tried": root}
    speeds = {"write_speed": size / max(written - began, 1e-9), "read_speed": size / max(read - written, 1e-9)}
    return {"status": "ok", "tried": root, **speeds}


def seen_at_url(url: str, nonce: str, nodes: Sequence[str]) -> list[str]:
    """Those of the nodes whose file is below the URL, with the right nonce."""
    files, root = _open_url(url)
    if _is_local(files):
        return seen_in_folder(root, nonce, nodes)
    found = []
    for node in nodes:
        with suppress(Exception):
            head = _mark(nonce, node)
            if files.cat_file(f"{root.rstrip('/')}/{mark_name(nonce, node)}", start=0, end=len(head)) == head:
                found.append(node)
    return found


def remove_from_url(url: str, nonce: str, node: str) -> None:
    """Take the node's own file away."""
    files, root = _open_url(url)
    with suppress(Exception):
        files.rm_file(f"{root.rstrip('/')}/{mark_name(nonce, node)}")


def _open_url(url: str) -> tuple[Any, str]:
    import fsspec

    found: tuple[Any, str] = fsspec.url_to_fs(url)
    return found


def _is_local(files: Any) -> bool:
    protocol = files.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def _url_status(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return "no driver"
    if isinstance(error, FileNotFoundError):
        return "absent"
    if isinstance(error, PermissionError):
        return "denied"
    return STATUS_BY_ERRNO.get(getattr(error, "errno", 0) or 0, "failed")


def reach_mlflow(home: str, uri: str | None) -> Values:
    """One real request to MLflow: values of Reached. uri: none is the home's own file, which is not made here."""
    from orchestration.errors import RequestError, RunError
    from orchestration.registry import Registry

    if uri is None and not (Path(home) / "mlflow.db").exists():
        return {"status": "not yet"}
    began = time.perf_counter()
    # A connection locks in its home, and would make a home that is not mounted here.
    with tempfile.TemporaryDirectory(prefix="t2i-doctor-") as spare:
        try:
            Registry(Path(home if uri is None else spare), uri).models()
        except (RequestError, RunError) as error:
            cause = error.__cause__ or error
            missing = isinstance(cause, ImportError)
            return {"status": "no driver" if missing else "unreachable", "reason": _said(cause)}
    return {"status": "ok", "seconds": time.perf_counter() - began}


def reach_database(url: str, timeout_s: float) -> Values:
    """A connection to a database and a look at its tables: values of Reached. No file of SQLite is made."""
    import sqlalchemy
    from sqlalchemy.exc import NoSuchModuleError

    parsed = sqlalchemy.make_url(url)
    kind = parsed.get_backend_name()
    if kind == "sqlite" and parsed.database and not Path(parsed.database).exists():
        parent = Path(parsed.database).absolute().parent
        if os.access(parent, os.W_OK):
            return {"status": "not yet"}
        return {"status": "unreachable", "reason": f"{parent} cannot be written to"}
    waits = {"connect_timeout": max(1, int(timeout_s))} if kind in ("postgresql", "mysql") else {}
    began = time.perf_counter()
    try:
        engine = sqlalchemy.create_engine(url, connect_args=waits)
        try:
            sqlalchemy.inspect(engine).get_table_names()
        finally:
            engine.dispose()
    except (ImportError, NoSuchModuleError) as error:
        return {"status": "no driver", "reason": _said(error)}
    except Exception as error:
        return {"status": "unreachable", "reason": _said(getattr(error, "orig", None) or error)}
    return {"status": "ok", "seconds": time.perf_counter() - began}


def _said(error: BaseException) -> str:
    """An error's own words on one line, without passwords."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    line = re.sub(r"//[^/\s]*@", "//***@", " ".join(str(text).split())).rstrip(".")
    return line if len(line) <= 200 else f"{line[:200]} ..."
