"""What sg2im's nets minimise (section 3). Means over objects are over those of all workers."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from models.blocks.graphs import FlatGraphs
from models.blocks.object_discriminator import Judgement
from models.contract import Objective
from models.losses.adversarial import fooling_term
from models.losses.scene_graphs import class_loss
from models.parallel import Ranks, mean_over_ranks
from models.precision import at_least_float32
from models.sg2im.config import Sg2imConfig
from models.sg2im.networks import Drawing


def generator_objective(
    config: Sg2imConfig, drawing: Drawing, judgement: Judgement, images: Tensor, flat: FlatGraphs, ranks: Ranks
) -> Objective:
    """Pixels, boxes, both adversarial terms and the classification of drawn objects, each by its weight.

    judgement: of the drawn pictures; images: the real ones (B,3,S,S). `__image__` counts as an object in every term, as
    in the released code.
    """
    over_objects = partial(mean_over_ranks, ranks=ranks)
    parts = {
        "pixel": (config.pixel_weight, F.l1_loss(at_least_float32(drawing.images), at_least_float32(images))),
        "box": (config.box_weight, box_loss(config, drawing.boxes, flat.boxes, ranks)),
        "image": (config.image_weight, fooling_term(judgement.patches, "bce")),
        "object": (config.object_weight, fooling_term(judgement.objects, "bce", over_objects)),
        "classification": (config.classification_weight, class_loss(judgement.classes, flat.classes, ranks)),
    }
    loss = sum((weight * part for weight, part in parts.values()), start=images.new_zeros(()))
    return Objective(loss, {name: part.detach() for name, (_, part) in parts.items()})


def box_loss(config: Sg2imConfig, predicted: Tensor, boxes: Tensor, ranks: Ranks) -> Tensor:
    """Mean over the coordinates of boxes (O,4): squared or absolute difference, see `Sg2imConfig.box_loss`."""
    difference = at_least_float32(predicted) - boxes
    return mean_over_ranks(difference.square() if config.box_loss == "mse" else difference.abs(), ranks)
