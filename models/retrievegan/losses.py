"""What RetrieveGAN's generator minimises: the nine terms of equation 7, by name. Its discriminators' are sg2im's."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.blocks.graphs import FlatGraphs
from models.blocks.layout import crop_boxes
from models.blocks.object_discriminator import Judgement
from models.blocks.pixels import to_signed
from models.contract import Objective
from models.losses.adversarial import fooling_term
from models.losses.scene_graphs import class_loss
from models.parallel import Ranks, mean_over_ranks
from models.precision import at_least_float32
from models.retrievegan.config import RetrieveGANConfig
from models.retrievegan.networks import Retrieved, has_patch
from models.retrievegan.selection import co_occurrence_loss, ground_truth_selection_loss

Compare = Callable[[Tensor, Tensor], Tensor]
"""As `PerceptualDistance`."""
Embed = Callable[[Tensor], Tensor]
"""Patches (M,3,S,S), normalised, to (M,E)."""


def generator_objective(
    config: RetrieveGANConfig,
    drawn: Retrieved,
    judgement: Judgement,
    rebuilt: Tensor | None,
    images: Tensor,
    flat: FlatGraphs,
    normal: Tensor,
    ranks: Ranks,
    compare: Compare | None,
    embed: Embed | None,
) -> Objective:
    """Equation 7.

    judgement: of the drawn pictures; rebuilt: (B,3,S,S), drawn from the ground truth, where a weight asks for it;
    images: the real ones; normal: (B,) standard normal numbers that nothing else was drawn by, for a random query of
    the ground-truth selection; compare: the perceptual distance, embed: F_occur, None where they have no weight.
    """
    terms: dict[str, tuple[float, Tensor]] = {
        "image_adversarial": (config.lambda_image_adversarial, fooling_term(judgement.patches, "bce")),
        "object_adversarial": (
            config.lambda_object_adversarial,
            fooling_term(judgement.objects, "bce", lambda values: mean_over_ranks(values, ranks)),
        ),
        "object_classification": (
            config.lambda_object_classification,
            class_loss(judgement.classes, flat.classes, ranks),
        ),
        "box": (config.lambda_box, box_loss(drawn.boxes, flat)),
    }
    if rebuilt is not None and config.lambda_image_reconstruction:
        apart = F.l1_loss(at_least_float32(rebuilt), at_least_float32(images))
        terms["image_reconstruction"] = (config.lambda_image_reconstruction, apart)
    if compare is not None:
        shown = torch.cat(perceptual_pictures(config, drawn.images, rebuilt))
        times = len(shown) // len(images)
        if config.lambda_image_perceptual:
            terms["image_perceptual"] = (
                config.lambda_image_perceptual,
                compare(_signed(shown), _signed(images)).mean(),
            )
        if config.lambda_object_perceptual:
            real = _objects(config, images, flat)
            cut = torch.cat([_objects(config, one, flat) for one in shown.chunk(times)])
            terms["object_perceptual"] = (config.lambda_object_perceptual, mean_over_ranks(compare(cut, real), ranks))
    if config.lambda_gt_selection:
        terms["gt_selection"] = (config.lambda_gt_selection, selection_loss(config, drawn, normal, ranks))
    if embed is not None:
        places = drawn.valid.nonzero(as_tuple=True)
        found = embed(drawn.patches)
        embeddings = found.new_zeros(*drawn.valid.shape, found.shape[1]).index_put(places, found)
        apart = co_occurrence_loss(
            embeddings, drawn.selection.weights, has_patch(drawn.selection), config.selection_losses, ranks
        )
        terms["cooccurrence"] = (config.lambda_cooccurrence, apart)
    loss = sum((weight * term for weight, term in terms.values()), start=images.new_zeros(()))
    return Objective(loss, {name: term.detach() for name, (_, term) in terms.items()})


def perceptual_pictures(config: RetrieveGANConfig, drawn: Tensor, rebuilt: Tensor | None) -> list[Tensor]:
    """Which of the pictures the perceptual losses are of."""
    choices: dict[str, list[Tensor | None]] = {
        "retrieved": [drawn],
        "reconstructed": [rebuilt],
        "both": [drawn, rebuilt],
    }
    chosen = choices[config.perceptual_of]
    return [pictures for pictures in chosen if pictures is not None]


def selection_loss(config: RetrieveGANConfig, drawn: Retrieved, normal: Tensor, ranks: Ranks) -> Tensor:
    """The ground-truth selection loss; each object's own patch is its last candidate."""
    last = drawn.valid.shape[2] - 1
    truth = drawn.valid[:, :, last].long() * (last + 1) - 1
    return ground_truth_selection_loss(
        drawn.features, drawn.valid, truth, config.selection_losses, config.retrieval.distance, ranks, normal
    )


def box_loss(predicted: Tensor, flat: FlatGraphs) -> Tensor:
    """The sum over a picture's objects of the L1 distance of boxes (section 3.5), mean over pictures."""
    apart = (at_least_float32(predicted) - flat.boxes).abs().sum(1)
    return apart[flat.objects].sum() / flat.pictures_count


def _objects(config: RetrieveGANConfig, images: Tensor, flat: FlatGraphs) -> Tensor:
    boxes, pictures = flat.boxes[flat.objects], flat.pictures[flat.objects]
    return _signed(crop_boxes(images, boxes, pictures, config.crop_side, config.align_corners))


def _signed(images: Tensor) -> Tensor:
    # Not clamped: a picture that is too bright still has a gradient.
    return to_signed(images, clamp=False)
