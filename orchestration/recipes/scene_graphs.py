"""Experiments with sg2im and RetrieveGAN, which draw from scene graphs. sg2im comes first in RetrieveGAN: the
pre-filter compares patches by its graph encoder."""

from models.blocks.graphs import GraphEncoderSettings
from models.contract import AdamSettings
from models.losses.perceptual import PerceptualSettings
from models.retrievegan import CoOccurrenceConfig, RetrieveGANConfig
from models.sg2im import Sg2imConfig
from orchestration.config import (
    DataSettings,
    Experiment,
    PatchSettings,
    ResourceSettings,
    StageSettings,
    TrainingSettings,
)
from orchestration.data.graphs import GraphSettings
from orchestration.data.patch_search import PreFilterSettings
from orchestration.recipes.attngan import COCO_EVALUATION, ONE_GPU, epochs
from orchestration.recipes.cpgan import SCENES_OF_THINGS

COCO_STUFF_PICTURES, VISUAL_GENOME_PICTURES = 24_972, 62_565
"""Training pictures (sg2im, section 4.1)."""
COCO_GRAPHS = GraphSettings(val_pictures=1024)
FAST = AdamSettings(learning_rate=5e-4, beta_1=0.5, beta_2=0.999)
"""For thousands of steps where the papers have a million."""

SMALL_GRAPH = GraphEncoderSettings(embedding_dim=32, object_dim=32, hidden_dim=64, graph_layers=3)
_GRAPH = SMALL_GRAPH.model_dump()
SMALL_SG2IM = Sg2imConfig(
    **_GRAPH,
    noise_dim=8,
    mask_side=8,
    generator_channels=8,
    discriminator_channels=16,
    feature_dim=64,
    generator_optimizer=FAST,
    discriminator_optimizer=FAST,
)
SMALL_CO_OCCURRENCE = CoOccurrenceConfig(
    resolution=64,
    patch_side=32,
    channels=16,
    embedding_dim=32,
    optimizer=AdamSettings(learning_rate=1e-3, beta_1=0.9, beta_2=0.999),
)


def training(kimg: float, batch_size: int = 32) -> TrainingSettings:
    """Of so many kimg, with ten records, pictures and checkpoints at most."""
    every = max(kimg / 10, 0.5)
    return TrainingSettings(
        kimg=kimg, batch_size=batch_size, log_kimg=every / 2, picture_kimg=every, checkpoint_kimg=every
    )


def small_retrievegan(**changes: object) -> RetrieveGANConfig:
    """RetrieveGAN at 64 px, with EfficientNet-lite0 in VGG's place."""
    values: dict[str, object] = {
        **_GRAPH,
        "resolution": 64,
        "query_dim": 32,
        "patch_channels": 16,
        "crop_dim": 32,
        "canvas_side": 16,
        "residual_blocks": 2,
        "generator_channels": 8,
        "discriminator_channels": 16,
        "feature_dim": 64,
        "perceptual": PerceptualSettings(net="efficientnet-lite0", side=32),
        "generator_optimizer": FAST,
        "discriminator_optimizer": FAST,
    }
    return RetrieveGANConfig.model_validate({**values, **changes})


def retrieval_stages(
    sg2im: Sg2imConfig, sg2im_training: TrainingSettings, together: CoOccurrenceConfig, kimg: float
) -> dict[str, StageSettings]:
    """sg2im for the pre-filter, and the co-occurrence embedding."""
    return {
        "sg2im": StageSettings(system="sg2im", model=sg2im, training=sg2im_training),
        "co_occurrence": StageSettings(system="co_occurrence", model=together, training=training(kimg)),
    }


def sg2im_coco() -> Experiment:
    """sg2im as its released code is configured for COCO-Stuff: 64 px, batch 32, a million steps.

    Paper: sg2im, table 1: IS 6.7 +- .1 at 64 px; RetrieveGAN, table 1, measured FID 136.8, IS 4.1 +- .1 at 128 px.
    Cost: a million steps. Needs COCO 2017 and COCO-Stuff's boxes. 1,024 pictures of its val split are val, others test.
    Command: t2i train sg2im_coco --data coco-2017:PATH
    """
    return Experiment(
        recipe="sg2im_coco",
        system="sg2im",
        model=Sg2imConfig(),
        data=DataSettings(source="coco-2017:coco"),
        graphs=COCO_GRAPHS,
        training=TrainingSettings(kimg=32_000, batch_size=32, log_kimg=3.2, picture_kimg=320, checkpoint_kimg=320),
        evaluation=COCO_EVALUATION,
        resources=ONE_GPU,
    )


def sg2im_vg() -> Experiment:
    """sg2im as its released code is configured for Visual Genome: 64 px, batch 32, a million steps.

    Paper: sg2im, table 1: IS 5.5 +- .1 at 64 px; RetrieveGAN, table 1, measured FID 126.9, IS 5.1 +- .1 at 128 px.
    Cost: a million steps. Needs Visual Genome 1.4.
    Command: t2i train sg2im_vg --data visual-genome-sg2im:PATH
    """
    return sg2im_coco().model_copy(
        update={
            "recipe": "sg2im_vg",
            "data": DataSettings(source="visual-genome-sg2im:visual-genome"),
            "graphs": GraphSettings(),
        }
    )


def sg2im_laptop() -> Experiment:
    """sg2im at 64 px, small enough for a laptop, on any pictures with scene graphs, or with what they are made of.

    No published number. COCO's graphs are made of boxes, of things and of stuff or panoptic segments.
    Command: t2i train sg2im_laptop --data coco:PATH
    """
    return Experiment(
        recipe="sg2im_laptop",
        system="sg2im",
        model=SMALL_SG2IM,
        data=DataSettings(source="scenes:size=64", test_split="val"),
        graphs=GraphSettings(),
        training=TrainingSettings(kimg=200, batch_size=32, log_kimg=0.5, picture_kimg=5, checkpoint_kimg=5),
    )


def sg2im_scenes() -> Experiment:
    """sg2im at 64 px on easy scenes: minutes on two cores.

    Six things, six colours, four backgrounds; graphs say nothing of colours. No published number. Seen, once: FID 310
    (scenes-net, 500 pictures) after 7 minutes on two cores that others used too.
    Command: t2i train sg2im_scenes --workers 2
    """
    return Experiment(
        recipe="sg2im_scenes",
        system="sg2im",
        model=SMALL_SG2IM,
        data=DataSettings(source=SCENES_OF_THINGS),
        graphs=GraphSettings(),
        training=training(16),
    )


def retrievegan_coco() -> Experiment:
    """RetrieveGAN by its paper on COCO-Stuff: 128 px, candidates by a pre-trained sg2im.

    Paper: RetrieveGAN, table 1: FID 43.2, IS 10.6 +- .6, DS .34 +- .1 with predicted boxes, 42.7, 10.7 +- .1, .21 +- .1
    with given ones; table 2 changes this recipe. Sizes, weights, tau, k and length are in no public text: those of
    sg2im and PasteGAN, batch 16 for 90 epochs. Cost: 140,000 steps after sg2im's million. Needs COCO 2017 with
    COCO-Stuff's boxes and VGG-16's weights.
    Command: t2i train retrievegan_coco --data coco-2017:PATH --set model.perceptual.weights=FILE
    """
    sg2im = sg2im_coco()
    stages = retrieval_stages(Sg2imConfig(), sg2im.training, CoOccurrenceConfig(), epochs(20, COCO_STUFF_PICTURES))
    return Experiment(
        recipe="retrievegan_coco",
        system="retrievegan",
        model=RetrieveGANConfig(),
        data=sg2im.data,
        graphs=COCO_GRAPHS,
        patches=PatchSettings(prefilter=PreFilterSettings(k=50)),
        stages=stages,
        training=TrainingSettings(
            kimg=epochs(90, COCO_STUFF_PICTURES), batch_size=16, log_kimg=1.6, picture_kimg=50, checkpoint_kimg=50
        ),
        evaluation=COCO_EVALUATION,
        resources=ResourceSettings(workers=1, use_gpu=True),
    )


def retrievegan_vg() -> Experiment:
    """RetrieveGAN by its paper on Visual Genome: as retrievegan_coco.

    Paper: RetrieveGAN, table 1: FID 70.3, IS 7.7 +- .1, DS .24 +- .1 with predicted boxes, 46.3, 9.1 +- .1, .23 +- .1
    with given ones. Cost: 350,000 steps after sg2im's million. Needs Visual Genome 1.4 and VGG-16's weights.
    Command: t2i train retrievegan_vg --data visual-genome-sg2im:PATH --set model.perceptual.weights=FILE
    """
    coco, kimg = retrievegan_coco(), epochs(90, VISUAL_GENOME_PICTURES)
    return coco.model_copy(
        update={
            "recipe": "retrievegan_vg",
            "data": DataSettings(source="visual-genome-sg2im:visual-genome"),
            "graphs": GraphSettings(),
            "training": coco.training.model_copy(update={"kimg": kimg}),
        }
    )


def retrievegan_laptop() -> Experiment:
    """RetrieveGAN at 64 px, small enough for a laptop, on pictures with scene graphs or what they are made of.

    No published number. EfficientNet-lite0 stands in VGG's place, so nothing is fetched.
    Command: t2i train retrievegan_laptop --data coco:PATH
    """
    return Experiment(
        recipe="retrievegan_laptop",
        system="retrievegan",
        model=small_retrievegan(),
        data=DataSettings(source="scenes:size=64", test_split="val"),
        graphs=GraphSettings(),
        patches=PatchSettings(candidates=5, side=32, prefilter=PreFilterSettings(k=20)),
        stages=retrieval_stages(SMALL_SG2IM, training(100), SMALL_CO_OCCURRENCE, 50),
        training=TrainingSettings(kimg=200, batch_size=16, log_kimg=0.5, picture_kimg=5, checkpoint_kimg=5),
    )


def retrievegan_scenes() -> Experiment:
    """RetrieveGAN at 64 px on easy scenes, with all that it needs: minutes on two cores.

    Six things, six colours, four backgrounds; graphs say nothing of colours, patches do. No published number. Seen,
    once: 13 minutes on two cores that others used too; FID 176 (scenes-net, 500 pictures; its sg2im 241), background
    .87 (chance .25), thing .29 (.17).
    Command: t2i train retrievegan_scenes --workers 2
    """
    return Experiment(
        recipe="retrievegan_scenes",
        system="retrievegan",
        model=small_retrievegan(),
        data=DataSettings(source=SCENES_OF_THINGS),
        graphs=GraphSettings(),
        patches=PatchSettings(candidates=5, side=32, prefilter=PreFilterSettings(k=20)),
        stages=retrieval_stages(SMALL_SG2IM, training(8), SMALL_CO_OCCURRENCE, 16),
        training=training(6, 16),
    )
