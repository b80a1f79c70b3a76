"""Commands that work on a cluster which is not there: refused at once, where Ray tries for minutes and says nothing."""

from pathlib import Path

import pytest

from .cli_support import T2i, made, runner

COMMANDS = (("train", "xmcgan_scenes32"), ("tune", "xmcgan_scenes32", "--trials", "1"))


@pytest.fixture
def t2i(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> T2i:
    return runner(tmp_path / "home", tmp_path / "here", monkeypatch, capsys)


@pytest.mark.parametrize("words", COMMANDS, ids=[words[0] for words in COMMANDS])
def test_an_address_where_nothing_answers(
    words: tuple[str, ...], t2i: T2i, closed_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is prepared, which may take hours."""
    monkeypatch.setenv("RAY_ADDRESS", closed_uri.removeprefix("http://"))
    ended = t2i(*words)
    ended.refused(
        f"no Ray cluster answers at {closed_uri[7:]} (Connection refused)", "RAY_ADDRESS", "start the cluster"
    )
    assert not [name for name in made(tmp_path / "home") if name.startswith(("data", "stages", "runs"))]


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("http://head:8265", "run t2i submit --address http://head:8265 -- COMMAND, or give HOST:PORT"),
        ("head", "RAY_ADDRESS 'head' is none: give HOST:PORT of its head"),
        ("head:0", "RAY_ADDRESS 'head:0' is none"),
    ],
)
def test_an_address_that_is_none(address: str, part: str, t2i: T2i, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    t2i("train", "xmcgan_scenes32").refused(part)
