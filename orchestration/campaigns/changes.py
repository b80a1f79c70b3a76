"""What differs between a campaign as it was begun and as it is asked for now, field by field; and whether the code that
runs it is still the same."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import models
import orchestration
import search_spaces

PACKAGES = (models, orchestration, search_spaces)
SUFFIXES = frozenset({".py", ".yaml"})
CODE = "code"
# Of the base experiment: what does not change the mathematics, and so no trial.
FREE = ("base.resources",)
LONGEST_SHOWN, MOST_FILES = 60, 8
_MISSING = object()
_SECRET = re.compile(r"(?<=://)([^/@\s]*):[^/@\s]*@")


@cache
def code_files() -> dict[str, str]:
    """16 hex digits of each source file of the packages by its path, such as models/contract.py: code and data."""
    found = {}
    for package in PACKAGES:
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found[f"{package.__name__}/{path.relative_to(root).as_posix()}"] = digest[:16]
    return found


def code_version(files: Mapping[str, str] | None = None) -> str:
    """16 hex digits of all source files, wherever they are installed; of these where some are given."""
    listed = sorted((code_files() if files is None else files).items())
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Clauses that say what changed from one ledger's header to another, by dotted field; [] where nothing did.

    What only the old one has was noted while the campaign ran and plays no part; nor does `base.resources`, which
    changes no result. "code": a `code_version`, or the `code_files`, whose names are then said. Passwords in addresses
    are not shown.
    """
    found = []
    for name, value in new.items():
        before = old.get(name, _MISSING)
        if name == CODE:
            found += _code(before, value)
        else:
            found += [_said(*change) for change in _changes(name, before, value) if not change[0].startswith(FREE)]
    return found


def _changes(path: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """(dotted field, before, now) of every value that is not the same, _MISSING where there is none."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys((*before, *now)):
            yield from _changes(f"{path}.{name}", before.get(name, _MISSING), now.get(name, _MISSING))
    elif _plain(before) != _plain(now):
        yield path, before, now


def _plain(value: Any) -> str | None:
    # As JSON: a tuple is the list that it is read back as, and true is not 1.
    return None if value is _MISSING else json.dumps(value, sort_keys=True)


def _said(path: str, before: Any, now: Any) -> str:
    if before is _MISSING:
        return f"{path} is new ({_shown(now)})"
    if now is _MISSING:
        return f"{path} is gone (was {_shown(before)})"
    return f"{path} was {_shown(before)} and is {_shown(now)}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text = _SECRET.sub(r"\1:***@", text)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} ..."


def _code(before: Any, now: Any) -> list[str]:
    if _plain(before) == _plain(now):
        return []
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        more = f" and {len(names) - MOST_FILES} more" if len(names) > MOST_FILES else ""
        return [f"the code changed: {', '.join(names[:MOST_FILES])}{more}"]
    return [f"the code changed (version {_version(before)}, now {_version(now)})"]


def _version(value: Any) -> str:
    if value is _MISSING or value is None:
        return "unknown"
    return code_version(value) if isinstance(value, Mapping) else str(value)
