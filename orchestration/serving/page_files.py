"""The files of the page: read once, so that no address leads to another file."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from starlette.requests import Request
from starlette.responses import Response

FOLDER: Final = Path(__file__).parent / "page"
INDEX: Final = "index.html"

_MEDIA: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml; charset=utf-8",
}
_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # A browser keeps the file and asks each time whether it is still the same.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file as it is sent."""

    content: bytes
    media_type: str
    etag: str


class PageFiles:
    """The files of a folder that a page is made of, by name."""

    def __init__(self, files: Mapping[str, PageFile]) -> None:
        self._files = dict(files)

    @classmethod
    def read(cls, folder: Path = FOLDER) -> Self:
        """What is in the folder now; nothing where there is none."""
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        return cls({path.name: _read(path) for path in found if path.suffix in _MEDIA and path.is_file()})

    def reply(self, name: str, request: Request) -> Response | None:
        """The file, or that the browser's copy is still the same; None for a name that is not here."""
        file = self._files.get(name)
        if file is None:
            return None
        headers = {**_HEADERS, "ETag": file.etag}
        known = request.headers.get("if-none-match", "")
        if file.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    return PageFile(content, _MEDIA[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
