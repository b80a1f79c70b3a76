"""Narratives that a person gives: what reads them refuses all that it cannot read."""

import pytest
import torch

from models.contract import Given
from models.trecs.bert_tagger import NET, BertTagger, TaggerNet
from orchestration.errors import RequestError
from orchestration.narratives.tagging import TrainedTagger
from tests.narrative_support import CLASSES, SMALL, TOKENS

MARK = "\u0345"
"""A combining mark that lower case makes a letter of, and that a BERT's word pieces leave out."""


def tagger() -> TrainedTagger:
    torch.manual_seed(0)
    net = BertTagger().build(SMALL, Given(classes=len(CLASSES), class_names=CLASSES))[NET].eval()
    assert isinstance(net, TaggerNet)
    return TrainedTagger(CLASSES, TOKENS, net, SMALL.max_pieces, torch.device("cpu"))


@pytest.mark.parametrize("words", [(MARK,), (MARK, "\u200d", MARK)])
def test_words_without_any_piece_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match="^narrative 2 has no word with a letter or digit; "):
        tagger().tag([("a", "cat"), words])


def test_a_word_without_pieces_beside_others_is_read() -> None:
    (found,) = tagger().tag([(MARK, "cat", MARK)])
    assert found[0] == found[1] == found[2]
