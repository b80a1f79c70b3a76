"""A published picture file, decoded and held against what its record says of it."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from orchestration.data.folders import undecodable
from orchestration.data.problems import Kind, Problem
from orchestration.data.records import ImageRecord
from orchestration.data.transforms import decode
from orchestration.errors import RequestError

# Last bytes by first ones: PNG, JPEG, GIF. Some cameras write a few bytes behind the end.
_ENDS: Mapping[bytes, bytes] = {b"\x89PNG\r\n\x1a\n": b"IEND", b"\xff\xd8": b"\xff\xd9", b"GIF8": b"\x3b"}
_TAIL = 64


def read_picture(record: ImageRecord, root: Path) -> Image.Image | Problem:
    """The record's picture below `root`, in RGB, decoded to its last pixel; or the fault that it has."""
    file = root / record.file
    try:
        picture = decode(file)
    except RequestError as error:
        return _undecoded(file, error)
    if min(picture.size) == 1:
        return Problem(
            Kind.PICTURE_TINY, f"picture {file} is {_pixels(*picture.size)}; replace it or remove it from the data set."
        )
    if picture.size != (record.width, record.height):
        return Problem(
            Kind.PICTURE_SIZE,
            f"picture {file} is {_pixels(*picture.size)} and annotated as {_pixels(record.width, record.height)}, so "
            "boxes and masks lie wrong; fetch the published picture or mend the annotation.",
        )
    return picture


def _pixels(width: int, height: int) -> str:
    return f"{width} x {height} px"


def _undecoded(file: Path, error: RequestError) -> Problem:
    """Whether the file is not there, ends too early or is broken in another way."""
    if not file.is_file():
        return Problem(Kind.PICTURE_MISSING, f"picture {file} is not there; put it there or remove its entry.")
    try:
        content = file.read_bytes()
    except OSError as unread:
        return Problem(Kind.PICTURE_UNDECODABLE, undecodable(file, unread.strerror or unread))
    if not content:
        return Problem(Kind.PICTURE_TRUNCATED, f"picture {file} is an empty file; fetch it again.")
    if "truncated" in str(error.__cause__).lower() or _ends_early(content):
        return Problem(
            Kind.PICTURE_TRUNCATED,
            f"picture {file} is cut short: it stops after {len(content)} bytes, before its last pixel; fetch it again.",
        )
    if isinstance(error.__cause__, UnidentifiedImageError):
        # Pillow says no more of such a file than its own object's address.
        return Problem(Kind.PICTURE_UNDECODABLE, undecodable(file, "it is of no known picture format"))
    return Problem(Kind.PICTURE_UNDECODABLE, str(error))


def _ends_early(content: bytes) -> bool:
    """Whether the end that the file's format asks for is missing."""
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return len(content) < 8 + int.from_bytes(content[4:8], "little")
    for start, end in _ENDS.items():
        if content.startswith(start[: len(content)]):
            return end not in content[-_TAIL:]
    return False
