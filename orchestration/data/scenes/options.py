"""The options of a scenes data set, as typed and as written on a command line."""

import difflib
import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from orchestration.data.scenes.vocabulary import BACKGROUNDS, COLOURS, THINGS
from orchestration.errors import RequestError

_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


class ScenesOptions(BaseModel):
    """What to generate. The same options and VERSION give the same pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: Annotated[int, Field(ge=32, le=256, description="side of the square pictures, in pixels")] = 64
    things: Annotated[
        int, Field(ge=2, le=len(THINGS), description="classes of things: the first N of the vocabulary")
    ] = len(THINGS)
    colours: Annotated[int, Field(ge=2, le=len(COLOURS), description="colours: the first N of the vocabulary")] = len(
        COLOURS
    )
    backgrounds: Annotated[
        int, Field(ge=2, le=len(BACKGROUNDS), description="backgrounds: the first N of the vocabulary")
    ] = len(BACKGROUNDS)
    objects: Annotated[int, Field(ge=1, le=4, description="most objects in one picture")] = 3
    train: Annotated[int, Field(ge=1, le=200_000, description="pictures to train on")] = 4000
    val: Annotated[int, Field(ge=1, le=20_000, description="pictures to validate on")] = 500
    test: Annotated[int, Field(ge=1, le=20_000, description="pictures to test on, half of unseen compositions")] = 500
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="another seed, other pictures")] = 0


def parse_options(text: str) -> ScenesOptions:
    """Read `size=32,things=6`; spaces around words do not matter, and an empty text means the defaults.

    Raises RequestError that names the wrong key and near ones, or the allowed values.
    """
    values: dict[str, int] = {}
    for piece in text.split(",") if text.strip() else []:
        name, equals, written = (word.strip() for word in piece.partition("="))
        if not equals or not name:
            raise RequestError(
                f"scenes option {piece.strip()!r} is not of the form name=number; write for example size=32,things=6."
            )
        low, high = _range(name)
        if name in values:
            raise RequestError(f"scenes option {name!r} is given twice; keep one of them.")
        if not _NUMBER.fullmatch(written) or not low <= int(written) <= high:
            raise RequestError(f"scenes option {name!r} is {written!r}; write a whole number from {low} to {high}.")
        values[name] = int(written)
    return ScenesOptions(**values)


def _range(name: str) -> tuple[int, int]:
    """Least and greatest value of an option; RequestError where there is none of that name."""
    properties = ScenesOptions.model_json_schema()["properties"]
    if name not in properties:
        near = difflib.get_close_matches(name, properties, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the options are {', '.join(properties)}."
        raise RequestError(f"scenes has no option {name!r}; {hint}")
    return properties[name]["minimum"], properties[name]["maximum"]
