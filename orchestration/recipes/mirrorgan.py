"""Experiments with MirrorGAN. Its text encoder, STEM, is the one of AttnGAN's DAMSM."""

from models.attngan import DAMSMConfig
from models.mirrorgan import PAPER, RELEASED, MirrorGANConfig, StreamConfig
from orchestration.config import DataSettings, Experiment, StageSettings, TrainingSettings
from orchestration.recipes.attngan import (
    COCO_14_DATA,
    COCO_14_PICTURES,
    COCO_EVALUATION,
    CUB_DATA,
    CUB_EVALUATION,
    CUB_PICTURES,
    CUB_WORDS,
    FAST,
    ONE_GPU,
    SCENES_64,
    SHORT_AVERAGE,
    SMALL_DAMSM,
    SMALL_TEXT_DIM,
    SMALL_TRUNK,
    damsm_stage,
    epochs,
    gan_training,
)

SMALL_STREAM = StreamConfig(trunk=SMALL_TRUNK, resolution=64, embedding_dim=64, hidden_dim=128)


def mirrorgan_stages(
    damsm: DAMSMConfig, damsm_kimg: float, stream: StreamConfig, stream_kimg: float
) -> dict[str, StageSettings]:
    """DAMSM, then STREAM. How STREAM was trained is not published: the batch is DAMSM's."""
    every = max(stream_kimg / 10, 1)
    training = TrainingSettings(
        kimg=stream_kimg, batch_size=48, log_kimg=every / 10, picture_kimg=every, checkpoint_kimg=every
    )
    captioner = StageSettings(system="stream", model=stream, training=training)
    return {**damsm_stage(damsm, damsm_kimg), "stream": captioner}


def mirrorgan_cub() -> Experiment:
    """MirrorGAN as its released code is configured for CUB: 256 px, batch 12, 650 epochs, lambda 10.

    Paper: MirrorGAN, tables 1 and 2: IS 4.56 +- .05, R-precision 57.67 (top 1); users of the released code measured IS
    3.89 to 4.41. DAMSM as AttnGAN's; STREAM for 100 epochs, a guess, since its training was never published. Cost:
    480,000 steps. Needs CUB, Inception-v3 and ResNet-152 weights.
    Command: t2i train mirrorgan_cub --data cub:PATH --set stages.damsm.model.trunk.weights=FILE \
--set stages.stream.model.trunk.weights=FILE --set model.stream.trunk.weights=FILE
    """
    return Experiment(
        recipe="mirrorgan_cub",
        system="mirrorgan",
        model=RELEASED,
        data=CUB_DATA,
        words=CUB_WORDS,
        stages=mirrorgan_stages(DAMSMConfig(), epochs(200, CUB_PICTURES), RELEASED.stream, epochs(100, CUB_PICTURES)),
        training=gan_training(epochs(650, CUB_PICTURES), 12),
        evaluation=CUB_EVALUATION,
        resources=ONE_GPU,
    )


def mirrorgan_cub_paper() -> Experiment:
    """MirrorGAN by the equations of its paper on CUB: lambda 20, GLAM without extra convolutions, no KL term.

    Paper: MirrorGAN, section 4.1.3 and tables 1 and 2: IS 4.56 +- .05, R-precision 57.67 (top 1); table 3's rows change
    this recipe. The paper gives neither batch nor epochs: the released 12 and 650. Cost: as mirrorgan_cub.
    Command: t2i train mirrorgan_cub_paper --data cub:PATH --set stages.damsm.model.trunk.weights=FILE \
--set stages.stream.model.trunk.weights=FILE --set model.stream.trunk.weights=FILE
    """
    return Experiment(
        recipe="mirrorgan_cub_paper",
        system="mirrorgan",
        model=PAPER,
        data=CUB_DATA,
        words=CUB_WORDS,
        stages=mirrorgan_stages(DAMSMConfig(), epochs(200, CUB_PICTURES), PAPER.stream, epochs(100, CUB_PICTURES)),
        training=gan_training(epochs(650, CUB_PICTURES), 12),
        evaluation=CUB_EVALUATION,
        resources=ONE_GPU,
    )


def mirrorgan_coco14_paper() -> Experiment:
    """MirrorGAN by the equations of its paper on COCO-14: lambda 20, 18 words.

    Paper: MirrorGAN, section 4.1.3 and tables 1 and 2: IS 26.47 +- .41, R-precision 74.52 (top 1); table 3's rows
    change this recipe. No COCO configuration was released: batch 14, 120 epochs and DAMSM's 100 are AttnGAN's, STREAM's
    10 a guess. Cost: 710,000 steps. Needs COCO-14, Inception-v3 and ResNet-152 weights.
    Command: t2i train mirrorgan_coco14_paper --data coco:PATH --set stages.damsm.model.trunk.weights=FILE \
--set stages.stream.model.trunk.weights=FILE --set model.stream.trunk.weights=FILE
    """
    return Experiment(
        recipe="mirrorgan_coco14_paper",
        system="mirrorgan",
        model=PAPER,
        data=COCO_14_DATA,
        words=CUB_WORDS,
        stages=mirrorgan_stages(
            DAMSMConfig(), epochs(100, COCO_14_PICTURES), PAPER.stream, epochs(10, COCO_14_PICTURES)
        ),
        training=gan_training(epochs(120, COCO_14_PICTURES), 14),
        evaluation=COCO_EVALUATION,
        resources=ONE_GPU,
    )


def mirrorgan_laptop() -> Experiment:
    """MirrorGAN at 64 px, small enough for a laptop, on any captioned photographs.

    No published number. DAMSM and STREAM stand on EfficientNet-lite0, so nothing is fetched. Cost: about 45 pictures a
    second on one core (DAMSM and STREAM 500).
    Command: t2i train mirrorgan_laptop --data coco:PATH
    """
    return Experiment(
        recipe="mirrorgan_laptop",
        system="mirrorgan",
        model=small_mirrorgan(generator_channels=16),
        data=DataSettings(source="scenes:size=64", test_split="val"),
        stages=mirrorgan_stages(SMALL_DAMSM, 200, SMALL_STREAM, 200),
        training=TrainingSettings(kimg=200, batch_size=32, log_kimg=0.5, picture_kimg=5, checkpoint_kimg=5),
    )


def mirrorgan_scenes() -> Experiment:
    """MirrorGAN at 64 px on easy scenes, DAMSM and STREAM included: minutes on two cores.

    The scenes, sizes and learning rates of AttnGAN there, whose trained DAMSM it shares. No published number. Cost:
    about 90 pictures a second on one core (DAMSM and STREAM 500). Seen once, seed 0, on 500 validation captions: DAMSM
    r_precision/1+99/top-1 0.63 (chance 0.01; 0.94 among other classes), STREAM names the thing of 0.90 of the pictures
    (0.19 of another), and after 12 kimg the GAN's fid/scenes-net is 56, colour 0.44 (0.15 mismatched), thing at chance.
    Command: t2i train mirrorgan_scenes --workers 2
    """
    return Experiment(
        recipe="mirrorgan_scenes",
        system="mirrorgan",
        model=small_mirrorgan(generator_channels=8),
        data=DataSettings(source=SCENES_64, flip=False),
        stages=mirrorgan_stages(SMALL_DAMSM, 8, SMALL_STREAM, 8),
        training=TrainingSettings(kimg=12, batch_size=32, log_kimg=0.5, picture_kimg=2, checkpoint_kimg=2),
    )


def small_mirrorgan(generator_channels: int) -> MirrorGANConfig:
    """MirrorGAN of 16, 32 and 64 px on the small DAMSM and STREAM."""
    return MirrorGANConfig(
        resolution=64,
        generator_channels=generator_channels,
        discriminator_channels=2 * generator_channels,
        residual_blocks=1,
        text_dim=SMALL_TEXT_DIM,
        noise_dim=32,
        condition_dim=32,
        trunk=SMALL_TRUNK,
        stream=SMALL_STREAM,
        generator_optimizer=FAST,
        discriminator_optimizer=FAST,
        average=SHORT_AVERAGE,
    )
