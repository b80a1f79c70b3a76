"""Copies of stages in any file system that fsspec opens, shared by machines: T2I_STAGES_REMOTE, or the home's own URL.

A missing stage is looked for there before it is computed, and copied there after. The local store stays what is read.
"""

import os
import shutil
from pathlib import Path

from orchestration.errors import RequestError, RunError
from orchestration.remote.store import Store
from orchestration.stages import (
    MANIFEST,
    REMOTE,
    DamagedStage,
    Progress,
    check_stage,
    hidden_sibling,
    read_manifest,
)


class Remote:
    """Stages below a URL such as file:///folder, memory://name or s3://bucket/folder.

    named: who names the URL; instead: how to do without. Raises RequestError for a URL that nothing here opens.
    """

    def __init__(self, url: str, named: str = REMOTE, instead: str = f"unset {REMOTE}") -> None:
        self.url, self.instead = url.rstrip("/"), instead
        self.store = Store(url, named, f"name another URL, or {instead}")

    def fetch(self, folder: Path, progress: Progress) -> bool:
        """Put the stage's copy in place, if there is one, every byte of it verified.

        Raises RequestError when the copy is damaged, RunError when it cannot be read.
        """
        unpacked = hidden_sibling(folder)
        working = unpacked / folder.name  # a manifest is of a folder of that name
        try:
            if not self.store.exists(f"{folder.name}/{MANIFEST}"):
                return False
            self.store.get_file(f"{folder.name}/{MANIFEST}", working / MANIFEST)
            manifest = read_manifest(working)
            for done, name in enumerate(manifest.files):
                progress(f"fetching {folder.name}", done, len(manifest.files))
                if self.store.exists(f"{folder.name}/{name}"):
                    self.store.get_file(f"{folder.name}/{name}", working / name)
            check_stage(working, every_byte=True)
            for name, entry in manifest.files.items():
                if entry.modified is not None:  # so that it is not read again each time
                    os.utime(working / name, ns=(entry.modified, entry.modified))
            working.replace(folder)
            progress(f"fetching {folder.name}", 1, 1)
        except DamagedStage as error:
            raise RequestError(
                f"the copy of stage {folder.name} in {self.url} is damaged ({error.what}): remove "
                f"{self.url}/{folder.name}, or {self.instead} to compute it here"
            ) from error
        except (OSError, ValueError) as error:
            raise RunError(
                f"stage {folder.name} cannot be fetched from {self.url} ({error}): mend what is said and repeat, or "
                f"{self.instead} to compute it here"
            ) from error
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
        return True

    def send(self, folder: Path, progress: Progress) -> None:
        """Copy a whole stage, its manifest last; what is there already stays. Raises RunError."""
        try:
            if self.store.exists(f"{folder.name}/{MANIFEST}"):
                return
            names = list(read_manifest(folder).files)
            for done, name in enumerate(names):
                progress(f"sending {folder.name}", done, len(names))
                self.store.put_file(folder / name, f"{folder.name}/{name}")
            self.store.put_file(folder / MANIFEST, f"{folder.name}/{MANIFEST}")
            progress(f"sending {folder.name}", 1, 1)
        except (OSError, ValueError) as error:
            raise RunError(
                f"stage {folder.name} is computed, but could not be copied to {self.url} ({error}): mend that or "
                f"{self.instead}; repeated, the command goes on with the stage that is here"
            ) from error
