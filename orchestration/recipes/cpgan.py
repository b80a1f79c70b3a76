"""Experiments with CPGAN: a detector, a captioner over its regions, the memory, DAMSM with both encoders, the GAN."""

from models.contract import AdamSettings
from models.cpgan import PAPER, CPGANConfig, CPGANDAMSMConfig, MemoryTextSettings
from models.cpgan.captioner import AttentionCaptionerConfig
from models.cpgan.config import DAMSM_PAPER
from models.cpgan.memory import MemoryConfig
from models.detectors.contract import DetectorSettings
from models.detectors.grid import GridDetectorConfig
from models.encoders.regions import RegionSettings
from orchestration.config import DataSettings, Experiment, ResourceSettings, StageSettings, TrainingSettings
from orchestration.recipes.attngan import (
    COCO_14_DATA,
    COCO_14_PICTURES,
    COCO_EVALUATION,
    COCO_WORDS,
    FAST,
    SCENES_64,
    SHORT_AVERAGE,
    SMALL_TEXT_DIM,
    SMALL_TRUNK,
    epochs,
    gan_training,
)

# The published net at its own side. Section 3.2.1 takes the 36 most confident boxes, so none is left out for a low
# score; overlapping boxes of one class are one, which the paper leaves open.
YOLO_REGIONS = RegionSettings(
    detector=DetectorSettings(
        kind="yolov3", weights="yolov3.weights", side=416, objectness=0.0, suppression="greedy", most=36
    )
)
# A detector without a map of its own lends the boxes, the small trunk the features.
FASTEST_REGIONS = RegionSettings(
    detector=DetectorSettings(kind="onnx-fastestdet", weights="fastestdet.onnx", least_score=0.1), trunk=SMALL_TRUNK
)
# Every picture has as many boxes as are asked for, the unlikely ones too, as with YOLOv3's 36: attention over few boxes
# is high without meaning anything.
SMALL_DETECTOR = GridDetectorConfig(
    resolution=64,
    channels=8,
    residual_blocks=2,
    feature_dim=64,
    least_score=0.0,
    overlap=0.7,
    optimizer=AdamSettings(learning_rate=4e-3, beta_1=0.9, beta_2=0.999),
)
SCENES_OF_THINGS = SCENES_64.replace("objects=1", "objects=3")
"""Up to three things a picture, so that words have something to choose from."""
SMALL_TRUNK_DIM = 112
"""Width of the small trunk's regions."""


def cpgan_stages(
    captioner: AttentionCaptionerConfig,
    captioner_kimg: float,
    memory: MemoryConfig,
    damsm: CPGANDAMSMConfig,
    damsm_kimg: float,
    batch_size: int = 48,
) -> dict[str, StageSettings]:
    """The captioner, the memory it finds, and DAMSM. How they were trained is not published: AttnGAN's batch."""
    return {
        "captioner": StageSettings(
            system="attention_captioner", model=captioner, training=part_training(captioner_kimg, batch_size)
        ),
        "memory": StageSettings(system="memory", model=memory),
        "damsm": StageSettings(system="cpgan_damsm", model=damsm, training=part_training(damsm_kimg, batch_size)),
    }


def part_training(kimg: float, batch_size: int) -> TrainingSettings:
    """A part's training in ten portions."""
    every = max(kimg / 10, 1)
    return TrainingSettings(
        kimg=kimg, batch_size=batch_size, log_kimg=every / 10, picture_kimg=every, checkpoint_kimg=every
    )


def small_cpgan(generator_channels: int, region_dim: int) -> CPGANConfig:
    """CPGAN of 16, 32 and 64 px on small parts."""
    return CPGANConfig(
        resolution=64,
        generator_channels=generator_channels,
        discriminator_channels=2 * generator_channels,
        residual_blocks=1,
        text_dim=SMALL_TEXT_DIM,
        noise_dim=32,
        condition_dim=32,
        patches=4,
        region_dim=region_dim,
        damsm_weight=5.0,
        trunk=SMALL_TRUNK,
        generator_optimizer=FAST,
        discriminator_optimizer=FAST,
        average=SHORT_AVERAGE,
    )


def small_stages(region_dim: int, captioner_kimg: float, damsm_kimg: float) -> dict[str, StageSettings]:
    """The parts of `small_cpgan`, but for the detector."""
    captioner = AttentionCaptionerConfig(
        region_dim=region_dim, embedding_dim=64, hidden_dim=128, attention_dim=64, resolution=64
    )
    text = MemoryTextSettings(
        embedding_dim=64, text_dim=SMALL_TEXT_DIM, dropout=0.25, memory_hidden_dim=64, memory_dim=32
    )
    damsm = CPGANDAMSMConfig(text=text, trunk=SMALL_TRUNK, resolution=64, region_dim=region_dim)
    return cpgan_stages(captioner, captioner_kimg, MemoryConfig(resolution=64, top_k=30), damsm, damsm_kimg)


def cpgan_coco14() -> Experiment:
    """CPGAN by its paper on COCO-14: 256 px, batch 72, MATE, OAIE and FGCD.

    Paper: CPGAN, table 1: IS 52.73 +- .61 by torchvision's Inception-v3 (not comparable with others' protocol),
    R-precision 93.59; XMC-GAN, table 2, measured FID 55.82 on the released model. Its training was never released:
    lambda, learning rates, gammas and epochs are AttnGAN's, K and N this project's choice, the captioner's 20 epochs a
    guess. Cost: 138,000 steps, each with a pass of YOLOv3. Needs COCO-14, YOLOv3 and Inception-v3 weights.
    Command: t2i train cpgan_coco14 --data coco-2014:PATH --set regions.detector.weights=FILE \
--set model.trunk.weights=FILE --set stages.damsm.model.trunk.weights=FILE --workers 4
    """
    stages = cpgan_stages(
        AttentionCaptionerConfig(),
        epochs(20, COCO_14_PICTURES),
        MemoryConfig(),
        DAMSM_PAPER,
        epochs(100, COCO_14_PICTURES),
    )
    return Experiment(
        recipe="cpgan_coco14",
        system="cpgan",
        model=PAPER,
        data=COCO_14_DATA,
        words=COCO_WORDS,
        regions=YOLO_REGIONS,
        stages=stages,
        training=gan_training(epochs(120, COCO_14_PICTURES), 72),
        evaluation=COCO_EVALUATION,
        resources=ResourceSettings(workers=4, use_gpu=True),
    )


def cpgan_laptop() -> Experiment:
    """CPGAN at 64 px, small enough for a laptop, on any captioned photographs with FastestDet's boxes.

    No published number. The boxes come from a detector of 1 MB (FastestDet's published .onnx file), their features and
    DAMSM's from EfficientNet-lite0, so nothing else is fetched.
    Command: t2i train cpgan_laptop --data coco:PATH --set regions.detector.weights=FILE
    """
    return Experiment(
        recipe="cpgan_laptop",
        system="cpgan",
        model=small_cpgan(generator_channels=16, region_dim=SMALL_TRUNK_DIM),
        data=DataSettings(source="scenes:size=64", test_split="val"),
        regions=FASTEST_REGIONS,
        stages=small_stages(SMALL_TRUNK_DIM, 100, 200),
        training=TrainingSettings(kimg=200, batch_size=32, log_kimg=0.5, picture_kimg=5, checkpoint_kimg=5),
    )


def cpgan_scenes() -> Experiment:
    """CPGAN at 64 px on easy scenes, all its parts and a detector of their own included: minutes on two cores.

    Up to three things a picture, else the scenes, sizes and learning rates of AttnGAN there. The detector learns things
    and not colours, so its boxes are described by EfficientNet-lite0. No published number.
    Seen, once: FID 145 (scenes-net, 500 pictures), thing .20 (chance .17), background .56 (.25), colour .21 (.17) after
    7 minutes on two cores, all parts included.
    Command: t2i train cpgan_scenes --workers 2
    """
    region_dim = SMALL_TRUNK_DIM
    detector = StageSettings(system="grid_detector", model=SMALL_DETECTOR, training=part_training(30, 32))
    return Experiment(
        recipe="cpgan_scenes",
        system="cpgan",
        model=small_cpgan(generator_channels=8, region_dim=region_dim),
        data=DataSettings(source=SCENES_OF_THINGS, flip=False),
        regions=RegionSettings(count=9, trunk=SMALL_TRUNK),
        stages={"detector": detector, **small_stages(region_dim, 40, 8)},
        training=TrainingSettings(kimg=12, batch_size=32, log_kimg=0.5, picture_kimg=2, checkpoint_kimg=2),
    )
