"""What discriminators of pictures from scene graphs minimise (sg2im, section 3). Means over objects are over those of
all workers."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from models.blocks.graphs import FlatGraphs
from models.blocks.object_discriminator import Judgement
from models.contract import Objective
from models.losses.adversarial import fake_term, real_term
from models.parallel import Ranks, mean_over_ranks
from models.precision import at_least_float32


def discriminator_objective(real: Judgement, fake: Judgement, flat: FlatGraphs, ranks: Ranks) -> Objective:
    """Of both discriminators, which share no parameter: each term has weight 1 (released)."""
    over_objects = partial(mean_over_ranks, ranks=ranks)
    terms = {
        "image": real_term(real.patches, "bce") + fake_term(fake.patches, "bce"),
        "object": real_term(real.objects, "bce", over_objects) + fake_term(fake.objects, "bce", over_objects),
        "classification_real": class_loss(real.classes, flat.classes, ranks),
        "classification_fake": class_loss(fake.classes, flat.classes, ranks),
    }
    loss = sum(terms.values(), start=real.patches.new_zeros(()))
    return Objective(loss, {name: term.detach() for name, term in terms.items()})


def class_loss(logits: Tensor, classes: Tensor, ranks: Ranks) -> Tensor:
    """Cross-entropy of logits (O,classes+1) and classes (O,) int64, mean over objects."""
    return mean_over_ranks(F.cross_entropy(at_least_float32(logits), classes, reduction="none"), ranks)
