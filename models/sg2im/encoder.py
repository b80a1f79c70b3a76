"""sg2im's graph encoder out of a trained generator: what RetrieveGAN's pre-filter compares patches by."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from models.blocks.graphs import GraphEncoder
from models.encoders.image import WeightsMissing, existing
from models.parts import PART, part_settings
from models.sg2im.config import Sg2imConfig

PREFIX = "encoder."


def open_graph_encoder(folder: Path) -> GraphEncoder:
    """The frozen encoder of the trained part in a folder: generator.safetensors, and part.json with its settings.

    Raises WeightsMissing.
    """
    file = existing(folder / "generator.safetensors", "sg2im's graph encoder")
    described = folder / PART
    try:
        config = part_settings(folder, "sg2im", Sg2imConfig)
        weights = {
            name.removeprefix(PREFIX): value for name, value in load_file(file).items() if name.startswith(PREFIX)
        }
        classes, predicates = (len(weights[f"{kind}_embedding.weight"]) - 1 for kind in ("class", "predicate"))
        net = GraphEncoder(config, classes, predicates)
        net.load_state_dict(weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise WeightsMissing(
            f"{described} and the weights beside it are no sg2im ({' '.join(str(error).split())[:200]}): restore that "
            "folder, or train the part again"
        ) from error
    net.requires_grad_(False).eval()
    return net
