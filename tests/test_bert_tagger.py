"""The BERT tagger: its net, what it is taught, published weights, and how it is judged."""

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.contract import AdamSettings, Batch, Given, TaggedWords, Trainable, parameter_count
from models.encoders.bert import Bert, BertSettings, own_tokenizer, published_tokenizer
from models.encoders.image import WeightsMissing
from models.encoders.text import OFFLINE_NAME, quiet_loading
from models.parallel import OneRank
from models.trecs.bert_tagger import NET, BertTagger, BertTaggerConfig, tagging_objective, taught_words
from orchestration.data.batches import held_out_captions
from orchestration.errors import RequestError, RunError
from orchestration.evaluation.parts import PartJudge
from orchestration.narratives.corpus import word_key
from orchestration.narratives.tagged_words import StoredTaggedWords, cut
from orchestration.narratives.tagging import TrainedTagger
from tests.narrative_support import (
    BERT,
    CLASSES,
    SHORT,
    SMALL,
    TOKENS,
    bert_at,
    bert_copy,
    built,
    context_of,
    saved_bert,
    stored_pieces,
    stored_words,
    tagged_by,
    trained,
)
from tests.tiny_data import tiny_data

TAGGER = BertTagger()


def some_words(count: int = 3, steps: int = 12, classes: int = 4, seed: int = 0) -> TaggedWords:
    """Narratives of 4 to `steps` pieces, some words of two; a third of the words have no label."""
    draw = torch.Generator().manual_seed(seed)
    pieces = torch.randint(4, BERT.pieces, (count, steps), generator=draw)
    counts = torch.randint(4, steps + 1, (count,), generator=draw)
    there = torch.arange(steps) < counts[:, None]
    first = there & (torch.rand(count, steps, generator=draw) < 0.7)
    labels = torch.randint(0, classes, (count, steps), generator=draw)
    known = first & (torch.rand(count, steps, generator=draw) < 0.67)
    return TaggedWords(torch.where(there, pieces, 0), counts, first, torch.where(known, labels, -1))


def wider(tagged: TaggedWords, more: int, filler: int = 0) -> TaggedWords:
    """The same narratives with more padding."""

    def pad(array: Tensor, value: int | bool) -> Tensor:
        return torch.nn.functional.pad(array, (0, more), value=value)

    return TaggedWords(pad(tagged.pieces, filler), tagged.counts, pad(tagged.first, False), pad(tagged.labels, -1))


def test_it_is_a_part() -> None:
    part: Trainable[BertTaggerConfig] = TAGGER
    assert not part.stages(SMALL) and not part.averages(SMALL)
    assert part.text_dim(SMALL) == 0 and part.resolution(SMALL) == 256
    assert part.optimizers(SMALL)[NET].learning_rate == 1e-5


def test_the_published_size() -> None:
    """BERT-Large, uncased, without its pooler (Devlin et al. 2019: 340 million), and a linear layer. On "meta" nothing
    is loaded."""
    large = 30522 * 1024 + 512 * 1024 + 2 * 1024 + 2 * 1024 + 24 * (4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096)
    large += 24 * (1024 + 4 * 1024)
    with torch.device("meta"):
        nets = TAGGER.build(BertTaggerConfig(), Given(classes=182))
    assert parameter_count(nets[NET]) == large + 182 * 1025


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bert": {"width": 10, "heads": 4}}, "width 10 cannot be shared by 4 heads: make it a multiple"),
        ({"max_pieces": 600}, "max_pieces is 600, and BERT has 512 positions: make it no more"),
        ({"tags": "bert"}, "Input should be 'raw' or 'hmm'"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BertTaggerConfig(**changes)


def test_what_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="bert_tagger reads label maps but the data has 0 classes"):
        TAGGER.build(SMALL)
    with pytest.raises(ValueError, match="there are 3 classes and 2 names of them: give each one"):
        TAGGER.build(SMALL, Given(classes=3, class_names=("cat", "dog")))
    with pytest.raises(ValueError, match="all 2 classes are excluded: name fewer in excluded, or label other data"):
        TAGGER.build(SMALL, Given(classes=2, class_names=("other", "background")))


def test_excluded_classes_are_impossible_and_no_target() -> None:
    """Whatever the net says; a word that has such a label counts for nothing, and its gradient is a number."""
    names = ("cat", "other", "dog", "background")
    net = built(names=names)
    assert net.excluded == (1, 3)
    with torch.no_grad():
        net.head.bias.copy_(torch.tensor([0.0, 50.0, 1.0, 90.0]))
    tagged = some_words()
    logits = net.eval()(tagged)
    assert logits[..., [1, 3]].eq(-torch.inf).all() and logits[..., [0, 2]].isfinite().all()
    assert not set(TAGGER.tag({NET: net}, Batch(tagged.counts, tagged=tagged)).flatten().tolist()) & {1, 3}
    without = replace(tagged, labels=torch.where((tagged.labels == 1) | (tagged.labels == 3), -1, tagged.labels))
    (phase,) = TAGGER.phases(SMALL.model_copy(update={"dropout": 0.0}))
    losses = []
    for words in (tagged, without):
        net.zero_grad()
        objective = phase.losses({NET: net}, Batch(words.counts, tagged=words), context_of(torch.Generator(), 3))[NET]
        torch.autograd.backward(objective.loss)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        losses.append(objective.loss.item())
    assert losses[0] == losses[1] > 0 and (without.labels != tagged.labels).any()
    assert net.head.weight.grad is not None and not net.head.weight.grad[[1, 3]].any()


def test_no_word_to_teach() -> None:
    """The loss is 0, and every gradient."""
    net, tagged = built(), replace(some_words(), labels=torch.full((3, 12), -1))
    (phase,) = TAGGER.phases(SMALL)
    objective = phase.losses({NET: net}, Batch(tagged.counts, tagged=tagged), context_of(torch.Generator(), 3))[NET]
    torch.autograd.backward(objective.loss)
    assert objective.loss.item() == 0 == objective.terms["accuracy"].item()
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


def test_the_loss_is_that_of_first_pieces() -> None:
    """Cross-entropy by hand, at words with a label alone."""
    net, tagged = built().eval(), some_words()
    with torch.no_grad():
        logits = net(tagged)
    rows = [
        (logits[b, t], int(tagged.labels[b, t]))
        for b in range(3)
        for t in range(12)
        if tagged.first[b, t] and tagged.labels[b, t] >= 0
    ]
    taught = taught_words(tagged)
    objective = tagging_objective(logits[taught], tagged.labels[taught], OneRank())
    expected = sum(float(row.logsumexp(0) - row[label]) for row, label in rows) / len(rows)
    assert objective.loss.item() == pytest.approx(expected, rel=1e-5)
    right = sum(int(row.argmax()) == label for row, label in rows) / len(rows)
    assert objective.terms["accuracy"].item() == pytest.approx(right)
    assert torch.allclose(net(tagged, taught), logits[taught], atol=1e-6)


def test_padding_changes_nothing() -> None:
    """Nor what is in it, nor in training: what is dropped depends on neither."""
    net, tagged = built(), some_words()
    there = torch.arange(12) < tagged.counts[:, None]
    noise = torch.randn(3, net.noise_width, generator=torch.Generator().manual_seed(1))
    for mode in (False, True):
        net.train(mode)
        with torch.no_grad():
            narrow, wide = net(tagged, None, noise), net(wider(tagged, 20, filler=9), None, noise)
        torch.testing.assert_close(wide[:, :12][there], narrow[there], atol=1e-5, rtol=1e-5)
        if mode:
            other = net(tagged, None, noise.flip(1))
            assert not torch.allclose(other[there], narrow[there], atol=1e-3)


def test_a_narrative_stands_alone() -> None:
    net, tagged = built().eval(), some_words()
    with torch.no_grad():
        alone = net(Batch(tagged.counts, tagged=tagged)[1:2].tagged)
        count = int(tagged.counts[1])
        torch.testing.assert_close(alone[0, :count], net(tagged)[1, :count], atol=1e-5, rtol=1e-5)


def test_it_learns() -> None:
    """A class for each word that is always said of it, in both modes as it was before."""
    stored = stored_words(
        [["the", "cat", "grass"], ["green", "dog"], ["cat", "dog"]] * 4, [[2, 0, 2], [2, 1], [0, 1]] * 4
    )
    config = SMALL.model_copy(update={"optimizer": AdamSettings(learning_rate=0.01, beta_1=0.9, beta_2=0.999)})
    nets = trained(stored, config, CLASSES, 40, 8)
    assert nets[NET].training
    assert (tagged_by(nets, stored) == stored.labels[stored.labels >= 0]).mean() > 0.95


# Published weights.


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_bert(tmp_path_factory.mktemp("bert"))


def test_published_weights_are_taken(bert: Path) -> None:
    from transformers import BertModel

    theirs = load_file(bert / "model.safetensors")
    ours = Bert(bert_at(bert)).train()
    for name, value in ours.net.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    with quiet_loading():
        reference = BertModel.from_pretrained(bert).eval()
    tagged = some_words()
    there = torch.arange(12) < tagged.counts[:, None]
    features = reference(tagged.pieces, attention_mask=there.long()).last_hidden_state
    # In training too: nothing is dropped within.
    torch.testing.assert_close(ours(tagged.pieces, tagged.counts)[there], features[there])
    assert published_tokenizer(str(bert), bert).get_vocab() == TOKENS.get_vocab()


@pytest.mark.parametrize(
    ("settings_of", "message"),
    [
        (lambda bert: bert_at(bert, width=8, layers=3), "has other sizes: set bert.width=16, bert.layers=2"),
        (lambda bert: bert_at(bert, pieces=30522), "has other sizes: set bert.pieces=120"),
        (lambda bert: bert_at(bert / "nowhere"), "there is no folder '.*nowhere': give the folder of a BERT"),
        (lambda bert: BERT.model_copy(update={"name": OFFLINE_NAME}), "where .* is to be unpacked was not given"),
    ],
)
def test_weights_that_do_not_fit(bert: Path, settings_of: Any, message: str) -> None:
    with pytest.raises(WeightsMissing, match=message):
        Bert(settings_of(bert))


def test_other_kinds_are_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="is a roberta and no BERT: set bert.name to that of a BERT"):
        Bert(bert_at(bert_copy(bert, tmp_path, model_type="roberta")))
    with pytest.raises(WeightsMissing, match="has the hidden_act 'relu', and published ones have 'gelu': give another"):
        Bert(bert_at(bert_copy(bert, tmp_path, hidden_act="relu")))
    bert_copy(bert, tmp_path)
    weights = load_file(bert / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsMissing, match="lacks 1 weights, encoder.layer.1.output.dense.bias first"):
        Bert(bert_at(tmp_path))


def test_pickled_weights_are_not_read(bert: Path, tmp_path: Path) -> None:
    bert_copy(bert, tmp_path)
    torch.save(load_file(bert / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsMissing, match="give the folder of a BERT with safetensors weights"):
        Bert(bert_at(tmp_path))


def test_the_packaged_bert(tmp_path: Path) -> None:
    pytest.importorskip("all_minilm_l6_v2", reason="t2i[offline] is not installed")
    small = BertSettings(name=OFFLINE_NAME, width=384, layers=6, heads=12, inner_width=1536)
    net = TAGGER.build(BertTaggerConfig(bert=small), Given(classes=4, class_names=CLASSES, encoders=tmp_path))[NET]
    tokenizer = published_tokenizer(OFFLINE_NAME, tmp_path)
    (found,) = cut(tokenizer, [["Skateboarders", "in", "a", "park."]], 20)
    assert found.sizes.tolist() == [3, 1, 1, 2] and tokenizer.get_vocab_size() == 30522
    assert net.training and parameter_count(net) > 22_000_000
    with pytest.raises(WeightsMissing, match="set bert.width=384, bert.layers=6, bert.heads=12, bert.inner_width=1536"):
        TAGGER.build(BertTaggerConfig(bert=BertSettings(name=OFFLINE_NAME)), Given(classes=4, encoders=tmp_path))


# Judging.


class Split:
    """Tiny pictures whose captions are tagged words."""

    labels = None

    def __init__(self, stored: StoredTaggedWords | None) -> None:
        self.stored = stored

    def open(self) -> Any:
        data = tiny_data(8)
        data.tagged = self.stored
        return data


def judged(stored: StoredTaggedWords | None) -> dict[str, float]:
    experiment = SimpleNamespace(trainable=TAGGER, system="bert_tagger")
    nets = {NET: built()}
    verdict = PartJudge(cast(Any, experiment), cast(Any, Split(stored)), 20, 0)(nets)
    assert verdict.protocol == "tags" and nets[NET].training
    return dict(verdict.figures)


def test_a_tagger_is_judged_by_what_it_was_taught() -> None:
    """The share of words that have a label, and of the most frequent label; each caption that is drawn counts once."""
    index = tiny_data(8).index
    narratives = [(SHORT[0], SHORT[2])[place % 2] for place in range(len(index.texts))]
    net = TrainedTagger(CLASSES, TOKENS, built().eval(), 32, torch.device("cpu"))
    tags = [found.tolist() for found in net.tag(narratives)]
    right = judged(stored_words(narratives, [[-1, *found[1:]] for found in tags]))
    assert right["tags/agreement"] == 1 and right["tags_low/agreement"] < 1
    labels = [[(tag + 1 + place) % 4 for place, tag in enumerate(found)] for found in tags]
    half = judged(stored_words(narratives, labels))
    drawn = np.unique(held_out_captions(index, 20, 0)[1])
    told = np.concatenate([labels[caption] for caption in drawn])
    same = np.concatenate([np.array(labels[caption]) == tags[caption] for caption in drawn])
    assert half["tags_count/agreement"] == len(told) == right["tags_count/agreement"] + len(drawn)
    assert half["tags/agreement"] == pytest.approx(same.mean()) and 0 < same.mean() < 1
    assert half["tags/majority"] == np.bincount(told).max() / len(told) and (told == 0).any()


def test_what_cannot_be_judged() -> None:
    captions = int(tiny_data(8).index.starts[-1])
    with pytest.raises(RunError, match="no tagged words were prepared for BertTagger: add tagged to what it reads"):
        judged(None)
    with pytest.raises(RequestError, match="no word of the held-out narratives has a label: choose data with traces"):
        judged(stored_words([["cat"]] * captions, [[-1]] * captions))


# The released tags.


def test_released_tags_are_learned(shared_data: Path) -> None:
    """A small BERT without published weights, taught the tags of half of the released narratives, tags the others far
    more often as released than the most frequent tag does."""
    file = shared_data / "trecs-tags" / "val_coco.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"no released tags at {file}")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    classes = sorted({tag for record in records for tag in record["tags"]})
    numbers = {tag: number for number, tag in enumerate(classes)}
    learn, ask = records[0::2], records[1::8]
    counts = Counter(word_key(word) for record in learn for word in record["words"])
    tokenizer = own_tokenizer({word: count for word, count in counts.items() if word}, 1500)
    sizes = BertSettings(name="none", width=32, layers=1, heads=4, inner_width=64, pieces=1500, positions=96)
    optimizer = AdamSettings(learning_rate=5e-3, beta_1=0.9, beta_2=0.999)
    config = BertTaggerConfig(bert=sizes, max_pieces=96, optimizer=optimizer)

    def stored(some: Sequence[dict[str, Any]]) -> StoredTaggedWords:
        tags = [[numbers[tag] for tag in record["tags"]] for record in some]
        return stored_pieces(tokenizer, [record["words"] for record in some], tags, config.max_pieces)

    asked = stored(ask)
    found: NDArray[np.int64] = tagged_by(trained(stored(learn), config, classes, 1200, 16), asked)
    truth = asked.labels[asked.first]
    agreement, majority = float((found == truth).mean()), float(np.bincount(truth).max() / len(truth))
    print(f"agreement with released tags {agreement:.3f}, most frequent tag {majority:.3f}, {len(truth)} words")
    assert agreement > majority + 0.2
