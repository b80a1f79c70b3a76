"""CPGAN's DAMSM as a part that is trained before the GAN, and its frozen image encoder as the GAN uses it (section
6.3)."""

from collections.abc import Mapping

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.attngan.damsm import STAGE, EncoderTraining, known_words, load_fitting, stored_shapes
from models.attngan.text import TextEncoder
from models.contract import NOTHING, Given, StageMissing
from models.cpgan.config import CPGANConfig, CPGANDAMSMConfig, ImageEncoderSettings
from models.cpgan.image import image_encoder
from models.cpgan.text import MemoryTextEncoder
from models.encoders.regions import DETECTOR, open_region_net
from models.encoders.trunk import ImageTrunk

MEMORY = "memory"


class CPGANDAMSM(EncoderTraining[CPGANDAMSMConfig]):
    """The memory-attended text encoder and the object-aware image encoder; with both off it is AttnGAN's DAMSM."""

    name = "cpgan_damsm"
    title = "CPGAN's text and image encoders, trained by AttnGAN's DAMSM (2020)"
    Config = CPGANDAMSMConfig

    def stages(self, config: CPGANDAMSMConfig) -> Mapping[str, str]:
        stages = {MEMORY: "memory"} if config.text.mate else {}
        return stages | ({DETECTOR: "grid_detector"} if config.oaie else {})

    def build(self, config: CPGANDAMSMConfig, given: Given = NOTHING) -> dict[str, nn.Module]:
        """Trained "text_encoder" and "image_encoder", frozen "trunk" and, with oaie, "regions".

        Raises StageMissing, and ValueError without a vocabulary and where the memory or the boxes' features do not fit.
        """
        words = known_words(given, "the text encoder")
        settings = config.text
        text_encoder = (
            MemoryTextEncoder(settings, open_memory(given, words, config.region_dim))
            if settings.mate
            else TextEncoder(settings, words)
        )
        trunk = ImageTrunk(config.trunk)
        nets = {"text_encoder": text_encoder, "image_encoder": image_encoder(config, trunk, settings.text_dim)}
        return nets | {"trunk": trunk} | salient_boxes(config, given)


def open_memory(given: Given, words: int, region_dim: int) -> Tensor:
    """The memory (V,F) of the stage, for a vocabulary of so many words; empty on "meta".

    Raises StageMissing, and ValueError where it is of another vocabulary or of another width.
    """
    memory = torch.empty(words, region_dim)
    if memory.is_meta:
        return memory
    if MEMORY not in given.folders:
        raise StageMissing(f"the words' memory comes from the trained stage {MEMORY!r}, which was not given")
    path = given.folders[MEMORY] / f"{MEMORY}.safetensors"
    made = stored_shapes(path).get(MEMORY)
    if made is None or len(made) != 2:
        raise ValueError(f"{path} holds no memory (words, width) under {MEMORY!r}: make the stage {MEMORY!r} again")
    if made[0] != words:
        raise ValueError(
            f"the stage {MEMORY!r} holds a memory of another vocabulary, of {made[0]} words, and the data's has "
            f"{words}: make the stage again from this data"
        )
    if made[1] != region_dim:
        raise ValueError(
            f"region_dim is {region_dim}, but the stage {MEMORY!r} holds a memory of width {made[1]}: set the DAMSM's "
            f"region_dim to {made[1]}, or make the memory from features of width {region_dim}"
        )
    return memory.copy_(load_file(path)[MEMORY])


def salient_boxes(settings: ImageEncoderSettings, given: Given) -> dict[str, nn.Module]:
    """The frozen "regions", pictures to `Regions`, where the image encoder reads boxes.

    Raises StageMissing, WeightsMissing, and ValueError for features of another width.
    """
    if not settings.oaie:
        return {}
    regions = open_region_net(given)
    on_meta = torch.empty(0).device.type == "meta"
    if not on_meta and regions.feature_dim != settings.region_dim:
        raise ValueError(
            f"region_dim is {settings.region_dim}, but the boxes' features are {regions.feature_dim} wide: set "
            f"region_dim={regions.feature_dim} for every part and for the GAN, or choose another detector under regions"
        )
    return {"regions": regions}


def frozen_judge(config: CPGANConfig, given: Given) -> dict[str, nn.Module]:
    """A "trunk", the trained stage's "image_encoder" and, with oaie, "regions", for a GAN that pays TISCL.

    Raises StageMissing, and ValueError where the stage has other switches, another trunk or other widths.
    """
    trunk = ImageTrunk(config.trunk)
    encoder = image_encoder(config, trunk, config.text_dim)
    as_trained = "model.oaie, model.trunk and model.region_dim"
    nets = {"trunk": trunk, "image_encoder": load_fitting(encoder, given, STAGE, "image_encoder", as_trained)}
    return nets | salient_boxes(config, given)
