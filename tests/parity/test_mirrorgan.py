"""MirrorGAN's mathematics against the numbers of its released code."""

import pytest
import torch

from models.losses.captioning import caption_loss
from models.mirrorgan import CaptionDecoder, MirrorGANConfig, StreamConfig
from models.mirrorgan.networks import AttentionStage

from .conftest import Load
from .test_attngan import load, text_of

GLAM_NAMES = [
    (r"^word_proj", "attention.word.word_proj"),
    (r"^sentence_vis_conv", "attention.sentence.visual_conv"),
    (r"^sentence_linear", "attention.sentence.sentence_proj"),
    (r"^fusion_conv", "attention.fusion_conv"),
    (r"^res(\d)\.", r"residual.\1."),
]


@pytest.mark.parametrize("legacy", [True, False])
def test_glam(golden: Load, legacy: bool) -> None:
    numbers = golden("mirrorgan_glam")
    hidden, condition, text = numbers["in.hidden"], numbers["in.cond_code"], text_of(numbers)
    config = MirrorGANConfig(
        generator_channels=hidden.shape[1],
        text_dim=text.words.shape[2],
        condition_dim=condition.shape[1],
        residual_blocks=numbers.meta["constants"]["r_num"],
        legacy_mask=legacy,
    )
    stage = AttentionStage(config).eval()
    load(stage, numbers.group("w"), GLAM_NAMES)
    glam, kind = stage.attention, "legacy" if legacy else "correct"
    with torch.no_grad():
        word_context, word_weights = glam.word(hidden, text.words, text.padding())
        sentence_context, sentence_weights = glam.sentence(hidden, condition)
        fusion, _ = glam(hidden, text.words, text.padding(), condition)
        output, _ = stage(hidden, text, condition)
    numbers.check(f"out.{kind}.word_context", word_context)
    numbers.check(f"out.{kind}.word_attention", word_weights)
    numbers.check("out.sentence_context", sentence_context)
    numbers.check("out.sentence_attention", sentence_weights)
    numbers.check(f"out.{kind}.fusion", fusion)
    numbers.check(f"out.{kind}.stage_output", output)


def test_stream_loss(golden: Load) -> None:
    numbers = golden("mirrorgan_stream_loss")
    constants = numbers.meta["constants"]
    decoder = CaptionDecoder(
        StreamConfig(embedding_dim=constants["embed"], hidden_dim=constants["hidden"]),
        vocabulary_size=constants["vocab"],
    )
    load(decoder, numbers.group("w"), [])
    feature, tokens, lengths = (
        numbers["in.image_feature"].requires_grad_(),
        numbers["in.captions"],
        numbers["in.cap_lens"],
    )
    logits = decoder(feature, tokens)
    loss = caption_loss(logits, tokens, lengths)
    loss.backward()
    numbers.check("out.loss", loss)
    numbers.check("grad.image_feature", feature.grad)
    # Packed order: step by step, at each the captions that are long enough.
    counted = torch.arange(tokens.shape[1])[:, None] < lengths[None, :]
    numbers.check("out.packed_logits", logits.transpose(0, 1)[counted])
    assert torch.equal(tokens.t()[counted], numbers["out.packed_targets"])
    described = decoder.describe(feature, constants["max_seq_length"])
    assert torch.equal(described, numbers["out.greedy_sample"])
