"""A home on object storage between two who use it at the same moment, and beside a store that hangs."""

import threading
import time

import pytest

from orchestration.home import Home, exclusive, publishing, pull
from orchestration.training.turn import Superseded
from tests.remote_support import PATIENCE_S, made_by, published, spoil


def test_one_whose_folder_is_anothers_by_now_publishes_nothing(first: Home) -> None:
    run = made_by(first, 1)
    with pytest.raises(Superseded), publishing(run):
        (run / "note.txt").write_text("half of what another process of this machine writes")
        raise Superseded("begun again")
    assert "runs/run/note.txt" not in published(first)


def test_a_reader_that_fetches_slowly_does_not_write_over_one_who_has_begun_here(first: Home, second: Home) -> None:
    made_by(first, 1)
    held = threading.Event()
    reader = threading.Thread(target=pull, args=(second.runs / "run",))

    def hold(_: int, route: str) -> bool:
        if route == "cat_file" and (second.runs / "run").exists() and threading.current_thread() is reader:
            held.wait(1)
        return False

    spoil(second, hold)
    reader.start()
    while not (second.runs / "run").exists():
        time.sleep(0.01)
    with exclusive(second.runs / "run"):
        (second.runs / "run" / "metrics.jsonl").write_text('{"images": 2000}\n')
        reader.join(PATIENCE_S)
    assert published(first)["runs/run/metrics.jsonl"] == b'{"images": 2000}\n'
