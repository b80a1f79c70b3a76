"""Progress for those who follow a log: a line where something begins and ends, and not too many in between."""

import pytest

from orchestration.progress import STYLE, Lines, default_progress
from orchestration.stages import quiet


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Lines(every_s=60)
    for done in range(0, 2001, 100):
        progress("training, images", done, 2000)
    progress("judging", 0, 0)
    assert capsys.readouterr().err.splitlines() == [
        "training, images: 0 of 2,000 (0 %)",
        "training, images: 2,000 of 2,000 (100 %)",
        "judging: 0 of 0",
    ]


def test_lines_in_between_come_after_their_time(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Lines(every_s=0)
    for done in (0, 1, 2):
        progress("training, images", done, 2)
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_who_gets_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STYLE, raising=False)
    assert default_progress() is quiet
    monkeypatch.setenv(STYLE, "lines")
    assert isinstance(default_progress(), Lines)
