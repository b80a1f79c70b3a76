"""Image records through Arrow files: what goes in comes out, to the last bit."""

import dataclasses
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from orchestration.data.arrow_records import SCHEMA, from_batch, to_batch, to_table
from orchestration.data.records import Caption, ImageRecord, Narrative, Panoptic
from orchestration.errors import RequestError

ROOT = Path("/published")
LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(),
    bool: st.booleans(),
    str: st.text(),
    bytes: st.binary(max_size=8),
    Path | bytes: st.binary(max_size=8),
    Path: st.lists(
        st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1), min_size=1
    ).map(lambda parts: Path(ROOT, *parts)),
    Sequence[NDArray[np.float64]]: st.lists(
        npst.arrays(np.float64, st.integers(0, 3).map(lambda points: (points, 3)), elements=st.floats()), max_size=3
    ).map(tuple),
}


def anything(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that records have, whatever fields they gain."""
    if hint in LEAVES:
        return LEAVES[hint]
    arguments = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        present = [kind for kind in arguments if kind is not NoneType]
        return st.none() | anything(Union[tuple(present)])  # noqa: UP007
    if get_origin(hint) in (tuple, Sequence):
        if get_origin(hint) is Sequence or arguments[-1] is Ellipsis:
            return st.lists(anything(arguments[0]), max_size=3).map(tuple)
        return st.tuples(*map(anything, arguments))
    hints = get_type_hints(hint)
    return st.builds(hint, **{field.name: anything(hints[field.name]) for field in dataclasses.fields(hint)})


def bits(value: Any) -> Any:
    """A value that equals another only if both have the same bits."""
    if dataclasses.is_dataclass(value):
        return type(value), [bits(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple | list):
        return [bits(part) for part in value]
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return struct.pack("<d", value) if isinstance(value, float) else (type(value), value)


def stored(record: ImageRecord) -> Any:
    return bits(dataclasses.replace(record, file=record.file.relative_to(ROOT)))


def through_a_file(records: list[ImageRecord], file: Path) -> pa.RecordBatch:
    with pa.ipc.new_file(str(file), SCHEMA) as writer:
        writer.write_batch(to_batch(records, ROOT))
    return pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)


@given(records=st.lists(anything(ImageRecord), max_size=4), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_record_survives_bit_for_bit(
    records: list[ImageRecord], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    batch = through_a_file(records, tmp_path_factory.mktemp("records") / "records.arrow")
    expected = [stored(record) for record in records]
    assert [bits(record) for record in from_batch(batch)] == expected
    start = data.draw(st.integers(0, len(records)))
    count = data.draw(st.integers(0, len(records) - start))
    assert [bits(record) for record in from_batch(batch.slice(start, count))] == expected[start : start + count]


def test_what_is_none_is_not_what_is_empty() -> None:
    nothing = ImageRecord(1, ROOT / "a.png", 2, 3)
    empty = dataclasses.replace(nothing, captions=(), instances=(), key="", narratives=(), stuff_map=b"")
    assert from_batch(to_batch([nothing, empty], ROOT)) == [
        dataclasses.replace(record, file=Path("a.png")) for record in (nothing, empty)
    ]


def test_files_of_maps_are_read_and_pictures_elsewhere_keep_their_path(tmp_path: Path) -> None:
    (tmp_path / "stuff.png").write_bytes(b"stuff")
    (tmp_path / "panoptic.png").write_bytes(b"panoptic")
    record = ImageRecord(
        1,
        Path("/elsewhere/a.png"),
        2,
        3,
        stuff_map=tmp_path / "stuff.png",
        panoptic=Panoptic(tmp_path / "panoptic.png", ()),
    )
    [back] = from_batch(to_batch([record], tmp_path))
    assert (back.file, back.stuff_map, back.panoptic) == (record.file, b"stuff", Panoptic(b"panoptic", ()))
    with pytest.raises(RequestError, match=r"absent\.png cannot be read \(No such file or directory\); check"):
        to_table([dataclasses.replace(record, stuff_map=tmp_path / "absent.png")], tmp_path)


def test_traces_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    trace = np.arange(12.0).reshape(4, 3)
    record = ImageRecord(1, ROOT / "a.png", 2, 3, narratives=(Narrative(1, "a", (), (trace,)),))
    [back] = from_batch(through_a_file([record], tmp_path / "records.arrow"))
    assert back.narratives is not None
    [read] = back.narratives[0].traces
    assert not read.flags.owndata and not read.flags.writeable
    np.testing.assert_array_equal(read, trace)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 2**63}, "Python int too large to convert"),
        ({"captions": (Caption(1, "\ud800"),)}, "'utf-8' codec can't encode character '\\ud800'"),
        ({"file": ROOT / "\udcff.png"}, "'utf-8' codec can't encode character '\\udcff'"),
    ],
)
def test_a_value_that_cannot_be_stored_names_its_image(changes: dict[str, Any], reason: str) -> None:
    sound = ImageRecord(1, ROOT / "a.png", 2, 3)
    broken = dataclasses.replace(sound, image_id=77, **changes)
    with pytest.raises(RequestError, match=rf"^image 77 .* cannot be stored \(.*{re.escape(reason)}.*\); mend its ann"):
        to_table([sound, broken, sound], ROOT)


def test_a_trace_of_another_shape_is_refused() -> None:
    record = ImageRecord(1, ROOT / "a.png", 2, 3, narratives=(Narrative(1, "a", (), (np.zeros((4, 2)),)),))
    with pytest.raises(RequestError, match=r"trace has the shape \(4, 2\); its points must be x, y and t"):
        to_table([record], ROOT)
