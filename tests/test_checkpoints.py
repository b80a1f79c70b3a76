"""Checkpoints: exact, whole or not there, and refused with a sentence when anything about them is wrong."""

import errno
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.registry import system_names
from orchestration.errors import RequestError, RunError
from orchestration.stages import file_sha256
from orchestration.training import state as state_module
from orchestration.training.loop import Trainer
from orchestration.training.state import (
    FORMAT,
    MANIFEST,
    UNFINISHED,
    DamagedCheckpoint,
    TrainingState,
    check_provenance,
    checkpoint_folders,
    load_for_sampling,
    newest_checkpoint,
    open_checkpoint,
    restore,
    save_checkpoint,
)
from tests.tiny import (
    CPU,
    PROVENANCE,
    small_pretrained_nets,
    some_conditions,
    tensors_of,
    tiny_experiment,
    tiny_trainer,
)

SYSTEM = system_names()[0]
EXPERIMENT = tiny_experiment(SYSTEM, training__keep_checkpoints=3)


@pytest.fixture(autouse=True)
def light() -> Iterator[None]:
    """No pretrained weights."""
    with small_pretrained_nets():
        yield


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    """After one iteration."""
    found = tiny_trainer(EXPERIMENT)
    found.iteration()
    return found


@pytest.fixture(scope="module")
def original(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint. Tests copy it before they touch it."""
    return save_checkpoint(trainer.state, EXPERIMENT, PROVENANCE, tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / original.name))


def save_at(state: TrainingState, images_seen: int, parent: Path) -> Path:
    """The state as if so many pictures were seen."""
    before, state.images_seen = state.images_seen, images_seen
    try:
        return save_checkpoint(state, EXPERIMENT, PROVENANCE, parent)
    finally:
        state.images_seen = before


def refusal(action: Callable[[], object], kind: type[Exception] = RequestError) -> str:
    """The one sentence of what is raised."""
    with pytest.raises(kind) as caught:
        action()
    sentence = str(caught.value)
    assert sentence and "\n" not in sentence and len(sentence) < 600
    return sentence


def rewrite(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


def test_save_and_restore_are_exact(trainer: Trainer, original: Path) -> None:
    other = tiny_trainer(EXPERIMENT)
    for net in other.state.nets.values():
        with torch.no_grad():
            for value in net.state_dict().values():
                value.add_(1)
    restore(open_checkpoint(original), other.state)
    frozen = {f"net/{name}/" for name in other.state.nets.keys() - other.state.optimizers.keys()}
    wanted, found = tensors_of(trainer), tensors_of(other)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        if not name.startswith(tuple(frozen)):
            assert value.equal(found[name]) and value.dtype == found[name].dtype, name
    assert other.state.images_seen == trainer.state.images_seen
    assert other.state.averaged == trainer.state.averaged


def test_the_manifest_says_everything(trainer: Trainer, original: Path) -> None:
    checkpoint = open_checkpoint(original)
    assert checkpoint.manifest.keys() >= {
        "format",
        "experiment",
        "identity",
        "images_seen",
        "averaged",
        "random",
        "provenance",
        "versions",
        "files",
        "manifest_sha256",
    }
    assert checkpoint.manifest["format"] == FORMAT
    assert checkpoint.experiment == EXPERIMENT
    assert checkpoint.manifest["identity"] == EXPERIMENT.identity
    assert checkpoint.provenance == PROVENANCE
    assert checkpoint.images_seen == trainer.state.images_seen
    assert checkpoint.manifest["random"]["seed"] == EXPERIMENT.training.seed
    assert checkpoint.manifest["versions"].keys() == {"python", "torch"}
    assert checkpoint.digest == file_sha256(original / MANIFEST)
    files = checkpoint.manifest["files"]
    assert files.keys() == {path.name for path in original.iterdir()} - {MANIFEST}
    for name, known in files.items():
        assert known == {"bytes": (original / name).stat().st_size, "sha256": file_sha256(original / name)}


def test_only_what_training_changes_is_saved(trainer: Trainer, original: Path) -> None:
    """A pretrained net is named by its settings and never copied; nothing needs a pickle."""
    system = EXPERIMENT.get_system()
    trained = set(system.optimizers(EXPERIMENT.model))
    assert trained < trainer.state.nets.keys()
    assert {path.name for path in original.iterdir()} == (
        {f"{name}.safetensors" for name in trained}
        | {f"optimizer_{name}.safetensors" for name in trained}
        | {f"average_{name}.safetensors" for name in system.averages(EXPERIMENT.model)}
        | {MANIFEST}
    )


def test_sampling_nets_are_the_averages(trainer: Trainer, original: Path) -> None:
    loaded = load_for_sampling(open_checkpoint(original), CPU)
    system, model = EXPERIMENT.get_system(), EXPERIMENT.model
    assert loaded.keys() == set(system.averages(model))
    for net in loaded.values():
        assert not any(module.training for module in net.modules())
        assert not any(parameter.requires_grad for parameter in net.parameters())
    conditions = some_conditions(EXPERIMENT, 3)
    with torch.inference_mode():
        ours = system.sample(loaded, model, conditions, [1, 2, 3])
        theirs = system.sample(trainer.state.sampling_nets(), model, conditions, [1, 2, 3])
    assert ours.equal(theirs)


def file_names() -> list[str]:
    system = EXPERIMENT.get_system()
    trained, averaged = system.optimizers(EXPERIMENT.model), system.averages(EXPERIMENT.model)
    return [
        MANIFEST,
        *(f"{name}.safetensors" for name in trained),
        *(f"optimizer_{name}.safetensors" for name in trained),
        *(f"average_{name}.safetensors" for name in averaged),
    ]


@pytest.mark.parametrize("name", file_names())
@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.999])
def test_a_flipped_bit_is_refused(folder: Path, name: str, place: float) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    assert name in refusal(lambda: open_checkpoint(folder))


@pytest.mark.parametrize("name", file_names())
def test_a_missing_or_shortened_file_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    assert name in refusal(lambda: open_checkpoint(folder), DamagedCheckpoint)
    path.unlink()
    assert name in refusal(lambda: open_checkpoint(folder), DamagedCheckpoint)


@pytest.mark.parametrize("field", ["images_seen", "averaged", "identity", "experiment", "provenance", "files"])
def test_a_changed_manifest_is_refused(folder: Path, field: str) -> None:
    """Not only its bytes: a manifest that was edited by hand is not what training wrote."""
    rewrite(folder, **{field: {} if field in ("files", "averaged") else 7})
    assert MANIFEST in refusal(lambda: open_checkpoint(folder), DamagedCheckpoint)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"3", b'"x"', b"\xff\xfe", b"{}", b'{"format": 1}'])
def test_a_manifest_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    assert "is no checkpoint" in refusal(lambda: open_checkpoint(folder), DamagedCheckpoint)


@pytest.mark.parametrize("files", [None, 3, [], "abc", {"a": 1}])
def test_a_manifest_of_another_shape_is_refused(folder: Path, files: object) -> None:
    rewrite(folder, files=files)
    refusal(lambda: open_checkpoint(folder), DamagedCheckpoint)


@pytest.mark.parametrize("written_as", [FORMAT + 1, 0, "1", None])
def test_another_format_is_refused(folder: Path, written_as: object) -> None:
    rewrite(folder, format=written_as)
    sentence = refusal(lambda: open_checkpoint(folder))
    assert repr(written_as) in sentence and str(FORMAT) in sentence


def test_other_data_and_other_text_features_are_refused(original: Path) -> None:
    checkpoint = open_checkpoint(original)
    check_provenance(checkpoint, PROVENANCE)
    for other, what in (
        (replace(PROVENANCE, data_digest="a" * 64), "another data"),
        (replace(PROVENANCE, text_digest="a" * 64), "another text encoder"),
        (replace(PROVENANCE, vocabulary="a" * 64), "another vocabulary (none, here digest aaaaaaaaaaaa)"),
    ):
        sentence = refusal(lambda other=other: check_provenance(checkpoint, other))  # type: ignore[misc]
        assert what in sentence and "aaaaaaaaaaaa" in sentence


def test_another_vocabulary_is_refused(trainer: Trainer, tmp_path: Path) -> None:
    """On resume and on sampling: its word indices would mean other words."""
    provenance = replace(PROVENANCE, vocabulary="b" * 64)
    checkpoint = open_checkpoint(save_checkpoint(trainer.state, EXPERIMENT, provenance, tmp_path))
    assert checkpoint.provenance == provenance
    check_provenance(checkpoint, provenance)
    load_for_sampling(checkpoint, CPU, "b" * 64)
    for other, shown in (("a" * 64, "digest aaaaaaaaaaaa"), (None, "none")):
        wanted = f"another vocabulary (digest bbbbbbbbbbbb, here {shown})"
        changed = replace(provenance, vocabulary=other)
        assert wanted in refusal(lambda changed=changed: check_provenance(checkpoint, changed))  # type: ignore[misc]
        assert wanted in refusal(lambda other=other: load_for_sampling(checkpoint, CPU, other))  # type: ignore[misc]


def test_a_manifest_from_before_vocabularies_were_kept_is_read(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["provenance"].pop("vocabulary") is None
    manifest["manifest_sha256"] = state_module._manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.provenance == PROVENANCE
    check_provenance(checkpoint, PROVENANCE)
    load_for_sampling(checkpoint, CPU)


def test_what_was_half_written_is_ignored(trainer: Trainer, tmp_path: Path, original: Path) -> None:
    parent = tmp_path / "checkpoints"
    assert newest_checkpoint(parent) is None
    save_at(trainer.state, 1000, parent)
    shutil.copytree(original, parent / f"{UNFINISHED}whole-but-never-moved")
    (parent / f"{UNFINISHED}empty").mkdir()
    (parent / "kimg-000009.000").mkdir()  # a folder that lost its manifest
    assert [path.name for path in checkpoint_folders(parent)] == ["kimg-000001.000"]
    newest = newest_checkpoint(parent)
    assert newest is not None and newest.images_seen == 1000


def test_a_damaged_newest_gives_way_to_the_one_before(trainer: Trainer, tmp_path: Path) -> None:
    for images in (1000, 2000, 3000):
        save_at(trainer.state, images, tmp_path)
    for name, wanted in (("kimg-000003.000", 2000), ("kimg-000002.000", 1000)):
        path = tmp_path / name / file_names()[1]
        path.write_bytes(path.read_bytes()[::-1])
        newest = newest_checkpoint(tmp_path)
        assert newest is not None and newest.images_seen == wanted
    (tmp_path / "kimg-000001.000" / MANIFEST).write_text("{}")
    assert newest_checkpoint(tmp_path) is None


def test_a_newest_of_another_format_is_not_passed_over(trainer: Trainer, tmp_path: Path) -> None:
    """It is not damaged: to train past it would throw it away."""
    save_at(trainer.state, 1000, tmp_path)
    rewrite(save_at(trainer.state, 2000, tmp_path), format=FORMAT + 1)
    refusal(lambda: newest_checkpoint(tmp_path))


def test_the_newest_are_kept(trainer: Trainer, tmp_path: Path) -> None:
    for images in (1000, 2000, 10_000, 100_000, 1_000_000, 20_000_000):
        save_at(trainer.state, images, tmp_path)
    assert [open_checkpoint(found).images_seen for found in checkpoint_folders(tmp_path)] == [
        100_000,
        1_000_000,
        20_000_000,
    ]
    assert len(list(tmp_path.iterdir())) == EXPERIMENT.training.keep_checkpoints


def test_the_same_point_is_replaced(trainer: Trainer, tmp_path: Path) -> None:
    first = save_at(trainer.state, 1000, tmp_path)
    (first / "left over").touch()
    again = save_at(trainer.state, 1000, tmp_path)
    assert again == first and not (again / "left over").exists()
    open_checkpoint(again)


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_no_older_checkpoint(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = save_at(trainer.state, 1000, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(state_module, "save_file", no_space)
        sentence = refusal(lambda: save_at(trainer.state, 2000, tmp_path), RunError)
    assert "No space left" in sentence and "free some disk" in sentence
    assert list(tmp_path.iterdir()) == [older]
    open_checkpoint(older)
    # The same point again: the checkpoint that is there stays there.
    with monkeypatch.context() as patched:
        patched.setattr(state_module, "write_atomically", no_space)
        refusal(lambda: save_at(trainer.state, 1000, tmp_path), RunError)
    assert list(tmp_path.iterdir()) == [older]
    open_checkpoint(older)


def test_a_file_that_cannot_grow_is_a_sentence_too(trainer: Trainer, tmp_path: Path) -> None:
    """A real failure of the writing library: it has an exception of its own, which is no OSError."""
    older = save_at(trainer.state, 1000, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, hard))
    try:
        sentence = refusal(lambda: save_at(trainer.state, 2000, tmp_path), RunError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free some disk" in sentence
    assert list(tmp_path.iterdir()) == [older]
