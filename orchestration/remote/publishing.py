"""One publication of one folder: what is published becomes what is here, in an order that may end anywhere."""

from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.remote.contents import LINES, MANIFEST, Here, Listing, note, noted, sha256_of, sizes_of, whole_lines

if TYPE_CHECKING:
    from orchestration.remote.copies import WorkingCopy

LAST = ("segment.json", "outcome.json")
"""They say how far a run has come, so they are published after what they speak of."""


class Publication:
    """Raises OSError, and RunError as `WorkingCopy.require_writer`.

    Killed at any moment it leaves a state to go on from, which is never behind the last whole checkpoint.
    """

    def __init__(self, copy: "WorkingCopy", folder: Path) -> None:
        self.copy, self.store, self.folder, self.place = copy, copy.store, folder, copy.name(folder)
        # Checkpoints are listed before the records are read, so that these reach at least as far.
        self.here = Here.of(folder)
        self.there = Listing.of(self.store.sizes(self.place))
        self.known = noted(folder)

    def carry_out(self) -> None:
        self._unpublish_what_is_not_so_any_more()
        first = [name for name in self.here.files if name not in LAST]
        for name in first:
            self._put(name)
        self._remove(sorted(self.there.files.keys() - self.here.files.keys()))
        sent = [self._send(name, digest) for name, digest in self.here.checkpoints.items()]
        # Sending takes long: meanwhile another copy may have taken the folder over.
        self.copy.require_writer(self.folder)
        if all(sent):
            for name in sorted(self.there.checkpoints.keys() - self.here.checkpoints.keys() - self.here.damaged):
                self._drop(name)
        for name in LAST:
            if name in self.here.files:
                self._put(name)

    def _unpublish_what_is_not_so_any_more(self) -> None:
        """A checkpoint of another content, or newer than all that are here, could be gone back to by mistake."""
        newest = {name.partition("/")[0]: name for name in sorted(self.here.checkpoints)}
        for name, files in self.there.checkpoints.items():
            if MANIFEST not in files or name in self.here.damaged:
                continue
            digest = self.here.checkpoints.get(name)
            parent = name.partition("/")[0]
            if self._is_there(name) if digest else name < newest.get(parent, ""):
                continue
            self._remove([f"{name}/{MANIFEST}"])
            del files[MANIFEST]

    def _is_there(self, name: str) -> bool:
        """Whether a checkpoint that is here is published, whole and the same."""
        files = self.there.checkpoints.get(name, {})
        if MANIFEST not in files:
            return False
        digest = self.here.checkpoints[name]
        if self.known.get(name) != digest:
            if sha256_of(self.store.read(f"{self.place}/{name}/{MANIFEST}")) != digest:
                return False
            self._note(name, digest)
        try:
            wanted = sizes_of((self.folder / name / MANIFEST).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return True  # dropped here meanwhile
        return all(files.get(file) == size for file, size in wanted.items())

    def _put(self, name: str) -> None:
        try:
            content = self.here.files[name].read_bytes()
        except FileNotFoundError:
            return  # removed meanwhile: the next publication removes it there
        if name.endswith(LINES):
            content = whole_lines(content)
        digest = sha256_of(content)
        if self.known.get(name) != digest or self.there.files.get(name) != len(content):
            self.store.put(f"{self.place}/{name}", content)
            self._note(name, digest)

    def _send(self, name: str, digest: str) -> bool:
        """Publish a checkpoint; False when it was dropped here meanwhile."""
        if self._is_there(name):
            return True
        alike = [other for other, same in self.here.checkpoints.items() if same == digest and other != name]
        twin = next((other for other in alike if self._is_there(other)), None)
        source = self.folder / name
        try:
            manifest = (source / MANIFEST).read_bytes()
            sizes = sizes_of(manifest)
            for file in sizes:
                if twin:
                    self.store.copy(f"{self.place}/{twin}/{file}", f"{self.place}/{name}/{file}")
                else:
                    self.store.put_file(source / file, f"{self.place}/{name}/{file}")
            self.copy.require_writer(self.folder)
            self.store.put(f"{self.place}/{name}/{MANIFEST}", manifest)
        except FileNotFoundError:
            if source.is_dir():
                raise
            return False
        self._note(name, digest)
        self.there.checkpoints[name] = {**sizes, MANIFEST: len(manifest)}
        return True

    def _drop(self, name: str) -> None:
        files = self.there.checkpoints[name]
        self._remove([f"{name}/{file}" for file in sorted(files, key=lambda file: file != MANIFEST)])

    def _remove(self, names: list[str]) -> None:
        for name in names:
            self.store.remove([f"{self.place}/{name}"])
            self.known.pop(name, None)

    def _note(self, name: str, digest: str) -> None:
        self.known[name] = digest
        note(self.folder, self.known)
