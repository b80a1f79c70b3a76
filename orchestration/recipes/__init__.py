"""Named experiments. A docstring's first line is what `t2i models` shows; then paper, expectation, cost and command."""

import difflib
from collections.abc import Callable

from orchestration.config import Experiment
from orchestration.errors import RequestError
from orchestration.recipes.attngan import (
    attngan_coco14,
    attngan_cub,
    attngan_laptop,
    attngan_plus_coco14,
    attngan_scenes,
)
from orchestration.recipes.cpgan import cpgan_coco14, cpgan_laptop, cpgan_scenes
from orchestration.recipes.label_maps import ccfpse_coco, ccfpse_scenes, spade_coco, spade_laptop, spade_scenes
from orchestration.recipes.mirrorgan import (
    mirrorgan_coco14_paper,
    mirrorgan_cub,
    mirrorgan_cub_paper,
    mirrorgan_laptop,
    mirrorgan_scenes,
)
from orchestration.recipes.narratives import trecs_laptop, trecs_ln_coco, trecs_scenes
from orchestration.recipes.scene_graphs import (
    retrievegan_coco,
    retrievegan_laptop,
    retrievegan_scenes,
    retrievegan_vg,
    sg2im_coco,
    sg2im_laptop,
    sg2im_scenes,
    sg2im_vg,
)
from orchestration.recipes.xmcgan import (
    MINILM,
    QUICK_SCENES,
    xmcgan_coco14,
    xmcgan_coco14_released,
    xmcgan_laptop,
    xmcgan_scenes32,
)

__all__ = ["MINILM", "QUICK_SCENES", "RECIPES", "get_recipe"]

RECIPES: dict[str, Callable[[], Experiment]] = {
    function.__name__: function
    for function in (
        attngan_cub,
        attngan_coco14,
        attngan_plus_coco14,
        attngan_laptop,
        attngan_scenes,
        ccfpse_coco,
        ccfpse_scenes,
        cpgan_coco14,
        cpgan_laptop,
        cpgan_scenes,
        mirrorgan_cub,
        mirrorgan_cub_paper,
        mirrorgan_coco14_paper,
        mirrorgan_laptop,
        mirrorgan_scenes,
        retrievegan_coco,
        retrievegan_vg,
        retrievegan_laptop,
        retrievegan_scenes,
        sg2im_coco,
        sg2im_vg,
        sg2im_laptop,
        sg2im_scenes,
        spade_coco,
        spade_laptop,
        spade_scenes,
        trecs_ln_coco,
        trecs_laptop,
        trecs_scenes,
        xmcgan_coco14,
        xmcgan_coco14_released,
        xmcgan_laptop,
        xmcgan_scenes32,
    )
}


def get_recipe(name: str) -> Experiment:
    """The named experiment. Raises RequestError listing near names."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4) or list(RECIPES)
        raise RequestError(f"no recipe {name!r}; near it: {', '.join(near)} (t2i models lists all)")
    return RECIPES[name]()
