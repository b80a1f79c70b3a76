"""A home on object storage between two who use it at the same moment, and beside a store that hangs."""

import pytest

from orchestration.home import Home, publishing
from orchestration.training.turn import Superseded
from tests.remote_support import made_by, published


def test_one_whose_folder_is_anothers_by_now_publishes_nothing(first: Home) -> None:
    run = made_by(first, 1)
    with pytest.raises(Superseded), publishing(run):
        (run / "note.txt").write_text("half of what another process of this machine writes")
        raise Superseded("begun again")
    assert "runs/run/note.txt" not in published(first)
