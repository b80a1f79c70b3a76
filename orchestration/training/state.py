"""Everything that training changes, and its exact copy on disk."""

import copy
import hashlib
import json
import os
import platform
import shutil
import uuid
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.contract import NOTHING, AdamSettings, AverageSettings, Given
from models.encoders.image import WeightsMissing
from orchestration.config import Experiment, parse_experiment
from orchestration.errors import RequestError, RunError
from orchestration.stages import file_sha256, list_files, write_atomically
from orchestration.training.turn import Writing

FORMAT = 1
MANIFEST = "manifest.json"
UNFINISHED = ".writing-"
STAGE_ONLY = ("stage.json", "figures.json")  # of a trained part's folder: what is said about it, not what it is
TEXT = "text"  # within a checkpoint: what its prompts are read with, a trained encoder or the names of scene graphs
NAMES, LABELS = "graph_vocabulary.json", "label_names.json"


class DamagedCheckpoint(RequestError):
    """A checkpoint is not as it was written."""


@dataclass
class TrainingState:
    """Nets, averages, optimizers and progress of one run.

    images_seen counts real pictures; averaged counts the steps of each average (for its warm-up).
    """

    nets: dict[str, nn.Module]
    averages: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Adam]
    images_seen: int = 0
    averaged: dict[str, int] = field(default_factory=dict)

    @property
    def kimg(self) -> float:
        """Thousands of real pictures seen."""
        return self.images_seen / 1000

    def sampling_nets(self) -> dict[str, nn.Module]:
        """The nets to sample with: averages where they are kept, in evaluation mode."""
        return {name: self.averages.get(name, net) for name, net in self.nets.items()}


def build_nets(experiment: Experiment, given: Given = NOTHING) -> dict[str, nn.Module]:
    """The system's nets, initialised from the seed.

    Raises RequestError when a pretrained net's weights, or a part trained before, are missing or do not fit.
    """
    torch.manual_seed(experiment.training.seed)
    try:
        return experiment.trainable.build(experiment.model, _with_parts(given, experiment))
    except (WeightsMissing, ValueError) as error:  # ValueError: a part trained before is missing or does not fit
        raise RequestError(str(error)) from error


def _with_parts(given: Given, experiment: Experiment) -> Given:
    return replace(given, parts={name: stage.model for name, stage in experiment.stages.items()})


def initial_state(experiment: Experiment, device: torch.device, given: Given = NOTHING) -> TrainingState:
    """The state before the first step: a function of the experiment and of what earlier stages made alone."""
    system = experiment.trainable
    nets = {name: net.to(device) for name, net in build_nets(experiment, given).items()}
    averages = {
        name: copy.deepcopy(nets[name]).requires_grad_(False).eval() for name in system.averages(experiment.model)
    }
    optimizers = {name: _adam(nets[name], settings) for name, settings in system.optimizers(experiment.model).items()}
    for net in nets.values():
        net.train()
    return TrainingState(nets, averages, optimizers, averaged=dict.fromkeys(averages, 0))


def _adam(net: nn.Module, settings: AdamSettings) -> torch.optim.Adam:
    return torch.optim.Adam(
        net.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta_1, settings.beta_2),
        eps=settings.epsilon,
    )


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, settings: AverageSettings, step: int) -> None:
    """Move `average` towards `net` after the net's `step`-th update (from 0)."""
    decay = min(settings.decay, (1 + step) / (10 + step)) if settings.warm_up else settings.decay
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    for mean, live in zip(average.buffers(), net.buffers(), strict=True):
        if settings.buffers == "averaged" and mean.is_floating_point():
            mean.lerp_(live, 1 - decay)
        else:
            mean.copy_(live)


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a checkpoint was trained on: digests of the data, the text encoder and the word vocabulary.

    vocabulary: None where word indices play no part, and in checkpoints that were written before it was kept.
    """

    data_digest: str
    text_digest: str
    vocabulary: str | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder whose every file was verified."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """sha256 of the manifest, which holds the sha256 of every file."""
        return file_sha256(self.folder / MANIFEST)

    @property
    def images_seen(self) -> int:
        return int(self.manifest["images_seen"])

    @property
    def experiment(self) -> Experiment:
        return parse_experiment(dict(self.manifest["experiment"]))

    @property
    def provenance(self) -> Provenance:
        return Provenance(**self.manifest["provenance"])


def save_checkpoint(
    state: TrainingState,
    experiment: Experiment,
    provenance: Provenance,
    parent: Path,
    text: Path | None = None,
    writing: Writing = nullcontext,
) -> Path:
    """Write the state under `parent`, whole or not at all, and drop the oldest beyond `keep_checkpoints`.

    text: the folder of the trained text encoder, which is taken along so that the checkpoint reads captions anywhere.
    writing: within it the checkpoint takes its place. Raises RunError when it cannot be written.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"kimg-{state.kimg:010.3f}"
    working = parent / f"{UNFINISHED}{uuid.uuid4().hex[:8]}"
    try:
        working.mkdir()
        for name, net in state.nets.items():
            if name in state.optimizers:
                _save(working / f"{name}.safetensors", net.state_dict())
        for name, net in state.averages.items():
            _save(working / f"average_{name}.safetensors", net.state_dict())
        for name, optimizer in state.optimizers.items():
            _save(working / f"optimizer_{name}.safetensors", _optimizer_tensors(state.nets[name], optimizer))
        if text is not None:
            shutil.copytree(text, working / TEXT, ignore=shutil.ignore_patterns(*STAGE_ONLY))
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "experiment": experiment.model_dump(mode="json"),
            "identity": experiment.identity,
            "images_seen": state.images_seen,
            "averaged": state.averaged,
            # Every random number is a function of the seed and of the pictures seen: this is the generators' state.
            "random": {"kind": "stateless", "seed": experiment.training.seed, "images_seen": state.images_seen},
            "provenance": asdict(provenance),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "files": list_files(working),
        }
        manifest["manifest_sha256"] = _manifest_digest(manifest)
        write_atomically(working / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
        with writing():
            if folder.exists():
                shutil.rmtree(folder)
            working.replace(folder)
            _sync_directory(parent)
            for old in checkpoint_folders(parent)[: -experiment.training.keep_checkpoints]:
                shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        with writing():
            pass  # whoever has taken the folder over has swept away what was half written: that is the reason
        raise RunError(
            f"no checkpoint could be written to {parent} ({error}): free some disk, then repeat the command to go on "
            "from the checkpoint before"
        ) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return folder


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # how it reports a full disk
        raise OSError(str(error)) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of the manifest's other fields: the manifest is a file of the checkpoint like every other."""
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _optimizer_tensors(net: nn.Module, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = value
    return tensors


def checkpoint_folders(parent: Path) -> list[Path]:
    """Complete-looking checkpoints under `parent`, oldest first."""
    return sorted(folder for folder in parent.glob("kimg-*") if (folder / MANIFEST).is_file())


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, every file verified.

    Raises RequestError for another format, DamagedCheckpoint (a RequestError) for anything else that is wrong.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        written_as, files = manifest["format"], dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(
            f"{folder} is no checkpoint ({MANIFEST} is missing or broken): give a folder that training wrote"
        ) from error
    if written_as != FORMAT:
        raise RequestError(
            f"{folder} has checkpoint format {written_as!r} and this version reads {FORMAT}: use the version of t2i "
            "that wrote it, or another checkpoint"
        )
    if manifest.get("manifest_sha256") != _manifest_digest(manifest):
        raise _changed(MANIFEST, folder)
    for name, known in files.items():
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpoint(f"checkpoint {folder} lacks {name}: restore the file or use another checkpoint")
        if path.stat().st_size != known["bytes"] or file_sha256(path) != known["sha256"]:
            raise _changed(name, folder)
    return Checkpoint(folder, manifest)


def _changed(name: str, folder: Path) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"{name} in checkpoint {folder} was changed since it was written (its sha256 differs): restore the file or "
        "use another checkpoint"
    )


def newest_checkpoint(parent: Path) -> Checkpoint | None:
    """The newest checkpoint under `parent` that verifies; damaged ones are passed over.

    Raises RequestError for one of another format: training past it would throw it away.
    """
    for folder in reversed(checkpoint_folders(parent)):
        try:
            return open_checkpoint(folder)
        except DamagedCheckpoint:
            continue
    return None


def check_provenance(checkpoint: Checkpoint, provenance: Provenance) -> None:
    """RequestError when the checkpoint was trained on other data, with another text encoder or another vocabulary."""
    known = checkpoint.provenance
    for what, theirs, ours in (
        ("data", known.data_digest, provenance.data_digest),
        ("text encoder", known.text_digest, provenance.text_digest),
        ("vocabulary", known.vocabulary, provenance.vocabulary),
    ):
        advice = f"use the same {what}, or start a new run with another seed or recipe"
        _check_same(checkpoint, what, theirs, ours, advice)


def _check_same(checkpoint: Checkpoint, what: str, theirs: str | None, ours: str | None, advice: str) -> None:
    if theirs != ours:
        one, other = (f"digest {digest[:12]}" if digest else "none" for digest in (theirs, ours))
        raise RequestError(
            f"checkpoint {checkpoint.folder} was trained with another {what} ({one}, here {other}): {advice}"
        )


def restore(checkpoint: Checkpoint, state: TrainingState) -> None:
    """Put the checkpoint's content into `state`, exactly."""
    folder = checkpoint.folder
    for name in state.optimizers:
        state.nets[name].load_state_dict(load_file(folder / f"{name}.safetensors"))
    for name, net in state.averages.items():
        net.load_state_dict(load_file(folder / f"average_{name}.safetensors"))
    for name, optimizer in state.optimizers.items():
        _restore_optimizer(state.nets[name], optimizer, load_file(folder / f"optimizer_{name}.safetensors"))
    state.images_seen = checkpoint.images_seen
    state.averaged = {name: int(steps) for name, steps in checkpoint.manifest["averaged"].items()}


def _restore_optimizer(net: nn.Module, optimizer: torch.optim.Adam, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(net.named_parameters())
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        parameter = parameters[name]
        # Adam keeps its step counter on the CPU.
        optimizer.state[parameter][slot] = value.clone() if slot == "step" else value.to(parameter.device)


def _sizes(text: Path) -> Given:
    """How many names the scene graphs or label maps have that a checkpoint was trained with."""
    if (text / NAMES).is_file():
        found = json.loads((text / NAMES).read_text(encoding="utf-8"))
        return Given(classes=len(found["objects"]), predicates=len(found["relationships"]))
    if (text / LABELS).is_file():
        names = tuple(json.loads((text / LABELS).read_text(encoding="utf-8"))["classes"])
        return Given(classes=len(names), class_names=names)
    return NOTHING


def load_for_sampling(
    checkpoint: Checkpoint, device: torch.device, vocabulary: str | None = None
) -> dict[str, nn.Module]:
    """The averaged nets of a checkpoint, ready to sample with.

    vocabulary: digest of the one that captions will be encoded with, or None. RequestError when the checkpoint was
    trained with another: its word indices would mean other words.
    """
    advice = "encode the captions with the one it was trained with"
    _check_same(checkpoint, "vocabulary", checkpoint.provenance.vocabulary, vocabulary, advice)
    experiment = checkpoint.experiment
    system = experiment.trainable
    with torch.device("meta"):
        nets = system.build(experiment.model, _with_parts(_sizes(checkpoint.folder / TEXT), experiment))
    loaded = {}
    for name in system.averages(experiment.model):
        net = nets[name].to_empty(device=device)
        net.load_state_dict(load_file(checkpoint.folder / f"average_{name}.safetensors"))
        loaded[name] = net.requires_grad_(False).eval()
    return loaded
