"""Published JSON files read against a known layout; what is wrong with one is said in a clause."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec

from orchestration.data.problems import Kind, Notice, Problem, refuse
from orchestration.errors import RequestError

T = TypeVar("T")
StructT = TypeVar("StructT", bound=msgspec.Struct)

Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # ids become int64 tensors
Size = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Name = Annotated[str, msgspec.Meta(min_length=1)]

# msgspec itself raises UnicodeDecodeError for text that is not UTF-8.
_BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_NO_NUMBER = re.compile(rb"\b(NaN|-?Infinity)\b")


def clause(content: bytes, error: Exception) -> str:
    """What is wrong with a JSON text, as a clause: the byte where it ends or breaks, or the field and its fault."""
    if isinstance(error, UnicodeDecodeError):
        try:
            content.decode()
        except UnicodeDecodeError as whole:
            return f"byte {whole.start} is not UTF-8"
    if not content.strip():
        return "it is empty"
    text = str(error)
    if text == "Input data was truncated":
        return f"it is cut short: the JSON is not closed at its end, byte {len(content)}"
    if (malformed := re.fullmatch(r"JSON is malformed: (.*) \(byte (\d+)\)", text)) is not None:
        number = _NO_NUMBER.match(content, int(malformed[2]))
        what = f"{number[0].decode()} is no JSON number" if number else malformed[1]
        return f"it is not JSON from byte {malformed[2]} on ({what})"
    fault, _, place = text.partition(" - at `$")
    field = place.rstrip("`").lstrip(".") or "the whole of it"
    if (missing := re.search(r"missing required field `(\w+)`", fault)) is not None:
        return f"{missing[1]} is missing" + (f" in {field}" if place else "")
    return f"{field}: {fault[:1].lower()}{fault[1:]}"


def unreadable(file: Path | str, error: OSError) -> str:
    """The sentence about a file or folder that the file system does not give."""
    return f"{file} cannot be read ({error.strerror}); check that it is there and readable."


def read_bytes(file: Path) -> bytes:
    """The file's content. Raises RequestError."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise RequestError(unreadable(file, error)) from error


def _content(file: Path, notice: Notice) -> bytes | None:
    try:
        return read_bytes(file)
    except RequestError as error:
        notice(Problem(Kind.FILE_BROKEN, str(error)))
        return None


def read_json(file: Path, layout: type[StructT], what: str, notice: Notice = refuse) -> StructT | None:
    """Read one JSON file whose layout is a struct with lists of entries; `what` names it, e.g. "COCO captions".

    An entry that is broken by itself is left out if `notice` lets it be; a file that is unreadable, cut short or of
    another layout gives None then. Raises what `notice` raises: for `refuse`, RequestError.
    """
    if (content := _content(file, notice)) is None:
        return None
    try:
        return msgspec.json.decode(content, type=layout)
    except _BROKEN:
        return _outline(_Text(file, what, content, notice), layout)


def read_entries(file: Path, entry: type[StructT], what: str, notice: Notice = refuse) -> list[StructT] | None:
    """The same for a file that is one list of entries."""
    if (content := _content(file, notice)) is None:
        return None
    try:
        return msgspec.json.decode(content, type=list[entry])  # type: ignore[valid-type]
    except _BROKEN:
        text = _Text(file, what, content, notice)
        entries = text.decode(list[msgspec.Raw])
        return None if entries is None else list(text.sound(entries, entry, ""))


def _outline(text: "_Text", layout: type[StructT]) -> StructT | None:
    """What can be saved of a file whose entries are broken here and there."""
    fields = msgspec.structs.fields(layout)
    lists = {field.name: get_args(field.type)[0] for field in fields if get_origin(field.type) is list}
    loose = msgspec.defstruct(
        layout.__name__,
        [(field.name, list[msgspec.Raw] if field.name in lists else field.type) for field in fields],
    )
    outline = text.decode(loose)
    if outline is None:
        return None
    values: dict[str, Any] = {field.name: getattr(outline, field.name) for field in fields}
    return layout(**values | {name: list(text.sound(values[name], kind, name)) for name, kind in lists.items()})


class _Text:
    """A file that did not decode as a whole."""

    def __init__(self, file: Path, what: str, content: bytes, notice: Notice) -> None:
        self.file, self.what, self.content, self.notice = file, what, content, notice

    def decode(self, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode(self.content, type=kind)
        except _BROKEN as error:
            sentence = (
                f"{self.file} cannot be used as {self.what}: {clause(self.content, error)}; "
                "fetch the file again or mend it at that place."
            )
            self.notice(Problem(Kind.FILE_BROKEN, sentence))
            return None

    def sound(self, entries: list[msgspec.Raw], kind: type[T], name: str) -> Iterator[T]:
        told = 0  # the byte behind the last broken entry
        for place, entry in enumerate(entries):
            content = bytes(entry)
            try:
                yield msgspec.json.decode(content, type=kind)
            except _BROKEN as error:
                what = Kind.CAPTION_ENCODING if isinstance(error, UnicodeDecodeError) else Kind.ENTRY_BROKEN
                start = self.content.find(content, told)
                told = start + len(content)
                sentence = (
                    f"{self.file}: {name}[{place}] (at byte {start}) cannot be used as "
                    f"{self.what}: {clause(content, error)}; mend the entry or remove it."
                )
                self.notice(Problem(what, sentence))
