"""Experiments with AttnGAN, and what MirrorGAN's share with them."""

from models.attngan import ATTNGAN_PLUS, COCO, CUB, AttnGANConfig, DAMSMConfig
from models.attngan import TextEncoderSettings as WordEncoderSettings
from models.contract import AdamSettings, AverageSettings
from models.encoders.trunk import ImageTrunkSettings
from orchestration.config import (
    DataSettings,
    EvaluationSettings,
    Experiment,
    ResourceSettings,
    StageSettings,
    TrainingSettings,
    WordSettings,
)

# Training pictures, each shown once an epoch with one of its captions (MirrorGAN, section 4.1.1).
CUB_PICTURES, COCO_14_PICTURES = 8_855, 82_783

CUB_DATA = DataSettings(source="cub:cub", validation_split="test", test_split="test")
"""CUB has no validation split: the papers chose on test (Reed et al., 2016, made the split)."""
COCO_14_DATA = DataSettings(source="coco-2014:coco14", test_split="val")
CUB_WORDS, COCO_WORDS = WordSettings(longest=18), WordSettings(longest=12)
CUB_EVALUATION = EvaluationSettings(every_kimg=500, samples=2_933)
COCO_EVALUATION = EvaluationSettings(every_kimg=1_000, samples=5_000)
ONE_GPU = ResourceSettings(use_gpu=True)

SCENES_64 = "scenes:size=64,things=6,colours=6,backgrounds=4,objects=1,train=2500,val=500,test=500"
SMALL_TRUNK = ImageTrunkSettings(name="efficientnet-lite0", side=64)
"""Its weights are a package (t2i[offline]). At 64 px it gives 4x4 regions."""
SMALL_TEXT_DIM = 64
SMALL_DAMSM = DAMSMConfig(
    text=WordEncoderSettings(embedding_dim=64, text_dim=SMALL_TEXT_DIM, dropout=0.25),
    trunk=SMALL_TRUNK,
    resolution=64,
)
FAST = AdamSettings(learning_rate=5e-4, beta_1=0.5, beta_2=0.999)
SHORT_AVERAGE = AverageSettings(decay=0.99, warm_up=True)


def epochs(count: int, pictures: int) -> float:
    """So many passes over the data, in kimg."""
    return count * pictures / 1000


def damsm_stage(model: DAMSMConfig, kimg: float, batch_size: int = 48) -> dict[str, StageSettings]:
    """DAMSM, trained first; 48 pictures a batch is the released code's."""
    every = max(kimg / 10, 1)
    training = TrainingSettings(
        kimg=kimg, batch_size=batch_size, log_kimg=every / 10, picture_kimg=every, checkpoint_kimg=every
    )
    return {"damsm": StageSettings(system="damsm", model=model, training=training)}


def gan_training(kimg: float, batch_size: int) -> TrainingSettings:
    """Portions for a training at the papers' scale."""
    return TrainingSettings(kimg=kimg, batch_size=batch_size, log_kimg=5, picture_kimg=100, checkpoint_kimg=100)


def attngan_cub() -> Experiment:
    """AttnGAN as its released code is configured for CUB: 256 px, batch 20, 600 epochs, lambda 5.

    Paper: AttnGAN; MirrorGAN, tables 1 and 2, quotes IS 4.36 +- .03 and R-precision 53.31 for it. The released model
    was measured at IS 4.17 by a user of its code. DAMSM: 200 epochs at batch 48, as the published checkpoint. Cost:
    266,000 steps. Needs CUB and Inception-v3 weights.
    Command: t2i train attngan_cub --data cub:PATH --set model.trunk.weights=FILE \
--set stages.damsm.model.trunk.weights=FILE
    """
    return Experiment(
        recipe="attngan_cub",
        system="attngan",
        model=CUB,
        data=CUB_DATA,
        words=CUB_WORDS,
        stages=damsm_stage(DAMSMConfig(), epochs(200, CUB_PICTURES)),
        training=gan_training(epochs(600, CUB_PICTURES), 20),
        evaluation=CUB_EVALUATION,
        resources=ONE_GPU,
    )


def attngan_coco14() -> Experiment:
    """AttnGAN as its released code is configured for COCO-14: 256 px, batch 14, 120 epochs, lambda 50.

    Paper: AttnGAN; MirrorGAN, tables 1 and 2, quotes IS 25.89 +- .47 and R-precision 72.13, CPGAN, table 1, 82.98 for
    it; users of the released code measured IS 23.5 to 23.9. DAMSM: 100 epochs at batch 48, as the published
    checkpoint, but on 12 words, as the GAN (released: 15). Cost: 710,000 steps. Needs COCO-14 and Inception-v3 weights.
    Command: t2i train attngan_coco14 --data coco:PATH --set model.trunk.weights=FILE \
--set stages.damsm.model.trunk.weights=FILE
    """
    return Experiment(
        recipe="attngan_coco14",
        system="attngan",
        model=COCO,
        data=COCO_14_DATA,
        words=COCO_WORDS,
        stages=damsm_stage(DAMSMConfig(), epochs(100, COCO_14_PICTURES)),
        training=gan_training(epochs(120, COCO_14_PICTURES), 14),
        evaluation=COCO_EVALUATION,
        resources=ONE_GPU,
    )


def attngan_plus_coco14() -> Experiment:
    """AttnGAN+, CPGAN's improved baseline, on COCO-14: hinge losses, truncated noise, batch 72.

    Paper: CPGAN, section 4.1 and table 1: IS 38.12 +- .68, R-precision 92.58. Its tuned gamma_2 and its epochs are not
    published: AttnGAN's are used, with CPGAN's equation 19. Cost: 138,000 steps. Needs COCO-14 and Inception-v3
    weights.
    Command: t2i train attngan_plus_coco14 --data coco:PATH --set model.trunk.weights=FILE \
--set stages.damsm.model.trunk.weights=FILE --workers 4
    """
    return Experiment(
        recipe="attngan_plus_coco14",
        system="attngan",
        model=ATTNGAN_PLUS,
        data=COCO_14_DATA,
        words=COCO_WORDS,
        stages=damsm_stage(DAMSMConfig(matching=ATTNGAN_PLUS.matching), epochs(100, COCO_14_PICTURES)),
        training=gan_training(epochs(120, COCO_14_PICTURES), 72),
        evaluation=COCO_EVALUATION,
        resources=ResourceSettings(workers=4, use_gpu=True),
    )


def attngan_laptop() -> Experiment:
    """AttnGAN at 64 px, small enough for a laptop, on any captioned photographs.

    No published number. DAMSM stands on EfficientNet-lite0, so nothing is fetched. Cost: about 45 pictures a second on
    one core (DAMSM 500).
    Command: t2i train attngan_laptop --data coco:PATH
    """
    return Experiment(
        recipe="attngan_laptop",
        system="attngan",
        model=small_attngan(generator_channels=16),
        data=DataSettings(source="scenes:size=64", test_split="val"),
        stages=damsm_stage(SMALL_DAMSM, 200),
        training=TrainingSettings(kimg=200, batch_size=32, log_kimg=0.5, picture_kimg=5, checkpoint_kimg=5),
    )


def attngan_scenes() -> Experiment:
    """AttnGAN at 64 px on easy scenes, DAMSM included: minutes on two cores.

    One thing a picture, 6 things, 6 colours, 4 backgrounds; three stages of 16, 32 and 64 px; learning rates are 2.5
    times the released ones. No published number. Cost: about 90 pictures a second on one core (DAMSM 500).
    Command: t2i train attngan_scenes --workers 2
    """
    return Experiment(
        recipe="attngan_scenes",
        system="attngan",
        model=small_attngan(generator_channels=8),
        data=DataSettings(source=SCENES_64, flip=False),
        stages=damsm_stage(SMALL_DAMSM, 8),
        training=TrainingSettings(kimg=12, batch_size=32, log_kimg=0.5, picture_kimg=2, checkpoint_kimg=2),
    )


def small_attngan(generator_channels: int) -> AttnGANConfig:
    """AttnGAN of 16, 32 and 64 px on the small DAMSM."""
    return AttnGANConfig(
        resolution=64,
        generator_channels=generator_channels,
        discriminator_channels=2 * generator_channels,
        residual_blocks=1,
        text_dim=SMALL_TEXT_DIM,
        noise_dim=32,
        condition_dim=32,
        trunk=SMALL_TRUNK,
        generator_optimizer=FAST,
        discriminator_optimizer=FAST,
        average=SHORT_AVERAGE,
    )
