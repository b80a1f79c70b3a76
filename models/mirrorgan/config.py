"""Every choice of MirrorGAN, with the paper's and the released code's value where they differ.

Defaults are the released configuration, which is CUB's; `PAPER` is the paper's equations. Paper: Qiao et al.,
"MirrorGAN: Learning Text-to-image Generation by Redescription", 2019.
"""

from typing import Literal

from pydantic import Field

from models.blocks.cascade import CascadeSettings
from models.contract import AdamSettings, Settings
from models.encoders.trunk import ImageTrunkSettings
from models.losses.damsm import MatchingSettings


class StreamConfig(Settings):
    """STREAM: the captioner that describes the generator's pictures again (section 3.3).

    Its words are the text encoder's own vocabulary, which is the data's to say; published, with padding: 5450 for CUB.
    """

    trunk: ImageTrunkSettings = Field(
        ImageTrunkSettings(name="resnet152", side=224, align_corners=False, pixels="signed"),
        description="the frozen net under the captioner: ResNet-152. The released code shows it pictures in [-1, 1]; "
        'pixels="imagenet" is what its weights were trained on',
    )
    resolution: int = Field(
        256,
        ge=8,
        description="side of the pictures it is trained on, which the trunk resizes to its own: 256, as the GAN's last "
        "pictures are",
    )
    embedding_dim: int = Field(256, ge=1, description="width of the image feature and of word embeddings (released)")
    hidden_dim: int = Field(512, ge=1, description="width of the LSTM (released: twice the configured 256)")
    loss: Literal["mean", "sum"] = Field(
        "mean",
        description='cross-entropy: "mean" over all words of the batch (released) or "sum" over a caption\'s words, '
        "then mean over captions (equation 8)",
    )
    optimizer: AdamSettings = Field(
        AdamSettings(learning_rate=1e-3, beta_1=0.9, beta_2=0.999),
        description="training before the GAN: the learning rate is the released configuration's, the rest Adam's own; "
        "neither paper nor code gives the procedure",
    )


class MirrorGANConfig(CascadeSettings):
    """MirrorGAN's generator, discriminators and their training; sections and equations are the paper's."""

    sentence_axis: Literal["channel", "space"] = Field(
        "channel",
        description="what the softmax of the sentence attention runs over (equation 5 does not say): the channels of a "
        "place (released) or the places of a channel",
    )
    global_attention: bool = Field(
        True,
        description="attend to the sentence too (GLAM, equations 3 and 5); off: to the words alone, as AttnGAN does "
        '(table 3, "w/o GA")',
    )
    extra_convolutions: bool = Field(
        True,
        description="released form of GLAM: a bias in V, a 1x1 convolution before the sentence softmax and one that "
        "fuses three maps into two; off: equations 3 and 5",
    )
    stream_weight: float = Field(
        10.0, ge=0, description="lambda, weight of STREAM's loss of the last picture (released: 10; section 4.1.3: 20)"
    )
    stream: StreamConfig = Field(
        StreamConfig(), description="the captioner: trunk and widths are those of the trained stage"
    )
    damsm_weight: float = Field(
        0.0, ge=0, description="weight of DAMSM's loss, as in AttnGAN; 0 in equation 9 and in the released code"
    )
    matching: MatchingSettings = Field(MatchingSettings(), description="DAMSM's loss, where it has a weight")
    trunk: ImageTrunkSettings = Field(
        ImageTrunkSettings(),
        description="the frozen net under DAMSM's image encoder: that of the trained stage; used where damsm_weight is "
        "above 0",
    )


RELEASED = MirrorGANConfig()
PAPER = MirrorGANConfig(
    extra_convolutions=False,
    generator_terms="mean",
    mismatched_pairs=False,
    kl_weight=0.0,
    stream_weight=20.0,
    stream=StreamConfig(loss="sum"),
)
