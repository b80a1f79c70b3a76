"""Objects below a URL in any file system that fsspec opens: put whole or not at all, and asked again while away."""

import random
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from orchestration.errors import RequestError

Result = TypeVar("Result")

WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss"})
"""Protocols whose every put is whole or not there, and which know no folders."""
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
ATTEMPTS, FIRST_S, LONGEST_S = 5, 0.2, 10.0
"""Times that a call is tried; the waits between are random, up to FIRST_S, twice that, ... at most LONGEST_S."""
LASTING = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""What is as wrong the second time."""


class Away(OSError):
    """A store did not answer, however often it was asked."""


class Store:
    """Objects below a URL such as s3://bucket/folder, file:///folder or memory://name, by their path below it.

    named: who names the URL, for messages; mend: what else could be done. Raises RequestError for a URL that nothing
    here opens. Every call raises FileNotFoundError or PermissionError at once, and Away after ATTEMPTS tries.
    """

    def __init__(self, url: str, named: str, mend: str) -> None:
        import fsspec

        self.url, self.named, self.mend = url.rstrip("/"), named, mend
        self.attempts = ATTEMPTS
        protocol = url.partition("://")[0]
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if protocol in ("s3", "s3a"):
            options["config_kwargs"] = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 0}}
        try:
            found: tuple[Any, str] = fsspec.url_to_fs(url, **options)
        except (ValueError, ImportError, OSError) as error:
            extra = EXTRAS.get(protocol)
            if isinstance(error, ImportError) and extra:
                mend = f"pip install 't2i[{extra}]', or {mend}"
            raise RequestError(f"{named}={url} cannot be opened ({_first_line(error)}): {mend}") from error
        self.files, root = found
        self.root = root.rstrip("/")
        self.whole = protocol in WHOLE

    def place(self, name: str) -> str:
        """An object's path in the file system."""
        return f"{self.root}/{name}" if name else self.root

    def require_writable(self) -> None:
        """RequestError when nothing can be written there: no such bucket, no credentials, read-only, away."""
        probe = f".writable-{uuid.uuid4().hex[:8]}"
        try:
            self.put(probe, b"")
            self.remove([probe])
        except OSError as error:
            what = {FileNotFoundError: "it is not there", PermissionError: "it cannot be written to"}
            said = next((text for kind, text in what.items() if isinstance(error, kind)), "it does not answer")
            raise RequestError(
                f"{self.named}={self.url} cannot be used ({said}: {_first_line(error)}): check the bucket, its rights "
                f"and the credentials, or {self.mend}"
            ) from error

    def put(self, name: str, content: bytes) -> None:
        """The object holds all of `content`, or what it held before."""
        self._put(name, lambda place: self.files.pipe_file(place, content))

    def put_file(self, path: Path, name: str) -> None:
        """The object holds all of a file, or what it held before. FileNotFoundError when the file is gone."""
        self._put(name, lambda place: self.files.put_file(str(path), place))

    def _put(self, name: str, write: Callable[[str], Any]) -> None:
        place = self.place(name)
        if self.whole:
            self.patiently(lambda: write(place))
            return
        parent, _, last = place.rpartition("/")
        temporary = f"{parent}/.{last}-{uuid.uuid4().hex[:8]}"

        def publish() -> None:
            self.files.makedirs(parent, exist_ok=True)
            write(temporary)
            self.files.mv(temporary, place)

        try:
            self.patiently(publish)
        except BaseException:
            # On a full store each try would leave what it got written, and fill it further.
            with suppress(Exception):
                self.files.rm_file(temporary)
            raise

    def create(self, name: str, content: bytes) -> None:
        """A new object; FileExistsError when there is one."""
        place = self.place(name)
        if not self.whole:
            self.patiently(lambda: self.files.makedirs(place.rpartition("/")[0], exist_ok=True))
        self.patiently(lambda: self.files.pipe_file(place, content, mode="create"))

    def read(self, name: str) -> bytes:
        """All of an object."""
        content: bytes = self.patiently(lambda: self.files.cat_file(self.place(name)))
        return content

    def get_file(self, name: str, path: Path) -> None:
        """Copy an object into a file, whose folder is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.patiently(lambda: self.files.get_file(self.place(name), str(path)))

    def copy(self, source: str, target: str) -> None:
        """A second object of the same content, made by the store itself."""
        self._put(target, lambda place: self.files.cp_file(self.place(source), place))

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        return bool(self.patiently(lambda: self.files.exists(self.place(name))))

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every object below a folder, by path within it; those that are being written are left out."""
        place = self.place(folder)

        def ask() -> dict[str, Any]:
            self.files.invalidate_cache()
            try:
                found: dict[str, Any] = self.files.find(place, detail=True)
            except FileNotFoundError:
                return {}
            return found

        prefix = f"{place}/"
        found = {name.removeprefix(prefix): entry for name, entry in self.patiently(ask).items() if name != place}
        return {
            name: int(entry["size"]) for name, entry in found.items() if not name.rpartition("/")[2].startswith(".")
        }

    def modified(self, name: str) -> float:
        """When the object was written, in seconds, by the store's clock."""
        found: datetime = self.patiently(lambda: self.files.modified(self.place(name)))
        return found.timestamp()

    def now(self, folder: str) -> float:
        """What the store's clock says: machines' own may differ."""
        probe = f"{folder}/.clock-{uuid.uuid4().hex[:8]}"
        self.put(probe, b"")
        try:
            return self.modified(probe)
        finally:
            self.remove([probe])

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects, one after the other; those that are gone are no trouble."""
        for name in names:
            try:
                self.patiently(lambda name=name: self.files.rm_file(self.place(name)))  # type: ignore[misc]
            except FileNotFoundError:
                continue

    def patiently(self, act: Callable[[], Result]) -> Result:
        """What `act` returns; tried again, with growing random waits, unless it is wrong for good."""
        for attempt in range(1, self.attempts + 1):
            try:
                return act()
            except LASTING:
                raise
            except Exception as error:
                if _matter_of_rights(error):
                    raise PermissionError(_first_line(error)) from error
                if attempt == self.attempts:
                    raise Away(_first_line(error)) from error
                time.sleep(random.uniform(0, min(LONGEST_S, FIRST_S * 2 ** (attempt - 1))))
        raise AssertionError


def _matter_of_rights(error: Exception) -> bool:
    """Libraries of stores have types and words of their own for it; gcsfs says of a 403 that it is an OSError."""
    name = type(error).__name__
    return "Credential" in name or "Token" in name or (type(error) is OSError and str(error).startswith("Forbidden: "))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
