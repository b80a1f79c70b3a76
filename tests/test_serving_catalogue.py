"""The registry as serving sees it: names that a request can write, and checkpoints that cannot be read."""

from pathlib import Path

import pytest

from orchestration.errors import RunError
from orchestration.serving import catalogue as module
from orchestration.serving.catalogue import RegistryCatalogue
from orchestration.tracking import Tracker


@pytest.fixture
def catalogue(tracker: Tracker) -> RegistryCatalogue:
    """A registry that is shared with others, whose models may have any name."""
    run, folder = tracker.start_run("e", "n", "k", {}), tracker.home / "checkpoint"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    for model in ("xmcgan", "a@b", "my model", "über"):
        tracker.register(model, run, folder, {})
        tracker.set_champion(model, 1)
    return RegistryCatalogue(tracker.home, None)


def test_models_that_no_request_could_name_are_left_out(catalogue: RegistryCatalogue) -> None:
    assert list(catalogue.champions()) == ["xmcgan"]


def test_a_checkpoint_that_cannot_be_read(catalogue: RegistryCatalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(Path("weights")))

    monkeypatch.setattr(module, "champion_checkpoint", refuses)
    with pytest.raises(RunError, match=r"checkpoint of xmcgan@1 cannot be read \(.*Permission denied.*\): mend that"):
        catalogue.fetched(catalogue.champions()["xmcgan"])
