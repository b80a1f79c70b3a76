"""Copies of stages in any file system that fsspec opens, shared by machines: T2I_STAGES_REMOTE=URL.

A missing stage is looked for there before it is computed, and copied there after. The local store stays what is read.
"""

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from orchestration.errors import RequestError, RunError
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

    Raises RequestError for a URL that nothing here opens.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            found: tuple[Any, str] = fsspec.url_to_fs(url)
        except (ValueError, ImportError, OSError) as error:
            raise RequestError(f"{REMOTE}={url} cannot be opened ({error}): name another URL, or unset it") from error
        self.files, root = found
        self.root = root.rstrip("/")

    def fetch(self, folder: Path, progress: Progress) -> bool:
        """Put the stage's copy in place, if there is one, every byte of it verified.

        Raises RequestError when the copy is damaged, RunError when it cannot be read.
        """
        place = f"{self.root}/{folder.name}"
        unpacked = hidden_sibling(folder)
        working = unpacked / folder.name  # a manifest is of a folder of that name
        try:
            if not self.files.exists(f"{place}/{MANIFEST}"):
                return False
            working.mkdir(parents=True)
            self.files.get_file(f"{place}/{MANIFEST}", str(working / MANIFEST))
            manifest = read_manifest(working)
            for done, name in enumerate(manifest.files):
                progress(f"fetching {folder.name}", done, len(manifest.files))
                (working / name).parent.mkdir(parents=True, exist_ok=True)
                if self.files.exists(f"{place}/{name}"):
                    self.files.get_file(f"{place}/{name}", str(working / name))
            check_stage(working, every_byte=True)
            for name, entry in manifest.files.items():
                if entry.modified is not None:  # so that it is not read again each time
                    os.utime(working / name, ns=(entry.modified, entry.modified))
            working.replace(folder)
            progress(f"fetching {folder.name}", 1, 1)
        except DamagedStage as error:
            raise RequestError(
                f"the copy of stage {folder.name} in {self.url} is damaged ({error.what}): remove "
                f"{self.url}/{folder.name}, or unset {REMOTE} to compute it here"
            ) from error
        except (OSError, ValueError) as error:
            raise RunError(
                f"stage {folder.name} cannot be fetched from {self.url} ({error}): mend what is said and repeat, or "
                f"unset {REMOTE} to compute it here"
            ) from error
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
        return True

    def send(self, folder: Path, progress: Progress) -> None:
        """Copy a whole stage, its manifest last; what is there already stays. Raises RunError."""
        place = f"{self.root}/{folder.name}"
        try:
            if self.files.exists(f"{place}/{MANIFEST}"):
                return
            names = list(read_manifest(folder).files)
            for done, name in enumerate(names):
                progress(f"sending {folder.name}", done, len(names))
                self.files.makedirs(f"{place}/{name}".rpartition("/")[0], exist_ok=True)
                self.files.put_file(str(folder / name), f"{place}/{name}")
            self.files.makedirs(place, exist_ok=True)
            # Renamed, as a copy that ends half-way would look like a damaged stage.
            temporary = f"{place}/.{MANIFEST}-{uuid.uuid4().hex[:8]}"
            self.files.put_file(str(folder / MANIFEST), temporary)
            self.files.mv(temporary, f"{place}/{MANIFEST}")
            progress(f"sending {folder.name}", 1, 1)
        except (OSError, ValueError) as error:
            raise RunError(
                f"stage {folder.name} is computed, but could not be copied to {self.url} ({error}): mend that or unset "
                f"{REMOTE}; repeated, the command goes on with the stage that is here"
            ) from error
