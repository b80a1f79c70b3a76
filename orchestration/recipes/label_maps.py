"""Experiments with SPADE and CC-FPSE, which draw from label maps: TReCS's last step, and systems of their own."""

from models.ccfpse import CCFPSEConfig
from models.contract import AdamSettings
from models.losses.perceptual import PerceptualSettings
from models.spade import SpadeConfig
from orchestration.config import DataSettings, Experiment, TrainingSettings
from orchestration.recipes.attngan import COCO_EVALUATION, ONE_GPU, epochs
from orchestration.recipes.cpgan import SCENES_OF_THINGS

COCO_PICTURES = 118_287
"""Training pictures of COCO 2017, all of which COCO-Stuff labels."""
SMALL: dict[str, object] = {
    "resolution": 64,
    "generator_channels": 8,
    "upsamplings": 4,
    "hidden_dim": 16,
    "use_vae": True,
    "noise_dim": 16,
    "discriminator_channels": 16,
    "perceptual": PerceptualSettings(net="efficientnet-lite0", side=64),
    "generator_optimizer": AdamSettings(learning_rate=4e-4, beta_1=0.0, beta_2=0.9),
    "discriminator_optimizer": AdamSettings(learning_rate=4e-4, beta_1=0.0, beta_2=0.9),
    "kl_reduction": "mean",
}
"""For thousands of steps on two cores, with EfficientNet-lite0 in VGG's place."""


def small_training(kimg: float) -> TrainingSettings:
    """Of so many kimg in ten portions."""
    every = kimg / 10
    return TrainingSettings(
        kimg=kimg, batch_size=16, log_kimg=every / 2, picture_kimg=every, checkpoint_kimg=every, keep_checkpoints=2
    )


def spade_coco() -> Experiment:
    """SPADE as its released code is configured for COCO-Stuff: 256 px, batch 32.

    Paper: TReCS, section 2.4, uses its published weights. 100 epochs at batch 32 on 8 GPUs are remembered, not read;
    the released default is 50. Cost: 370,000 steps. Needs COCO 2017, COCO-Stuff's maps, VGG-16's weights.
    Command: t2i train spade_coco --data coco-2017:PATH --set model.perceptual.weights=FILE
    """
    return Experiment(
        recipe="spade_coco",
        system="spade",
        model=SpadeConfig(),
        data=DataSettings(source="coco-2017:coco", test_split="val"),
        training=TrainingSettings(
            kimg=epochs(100, COCO_PICTURES), batch_size=32, log_kimg=3.2, picture_kimg=100, checkpoint_kimg=100
        ),
        evaluation=COCO_EVALUATION,
        resources=ONE_GPU,
    )


def ccfpse_coco() -> Experiment:
    """CC-FPSE as its released code is configured for COCO-Stuff: 256 px, batch 32.

    Paper: TReCS, section 2.4 and table 3: better than SPADE there. 200 epochs (released), of which the second half
    lowers its learning rates, which is not built; the batch is this project's choice. Cost: 740,000 steps. Needs COCO
    2017, COCO-Stuff's maps, VGG-16's weights.
    Command: t2i train ccfpse_coco --data coco-2017:PATH --set model.perceptual.weights=FILE
    """
    spade = spade_coco()
    kimg = epochs(200, COCO_PICTURES)
    return spade.model_copy(
        update={
            "recipe": "ccfpse_coco",
            "system": "ccfpse",
            "model": CCFPSEConfig(perceptual=PerceptualSettings(map_weights="spade")),
            "training": spade.training.model_copy(update={"kimg": kimg}),
        }
    )


def spade_laptop() -> Experiment:
    """SPADE at 64 px, small enough for a laptop, on any pictures with labels of all pixels.

    No published number. COCO-Stuff's maps are read where there are some, else panoptic maps.
    Command: t2i train spade_laptop --data coco:PATH
    """
    return Experiment(
        recipe="spade_laptop",
        system="spade",
        model=SpadeConfig.model_validate(SMALL),
        data=DataSettings(source="scenes:size=64", test_split="val"),
        training=TrainingSettings(kimg=200, batch_size=16, log_kimg=0.5, picture_kimg=5, checkpoint_kimg=5),
    )


def spade_scenes() -> Experiment:
    """SPADE at 64 px on easy scenes: minutes on two cores.

    Label maps say which thing is where, and nothing of colours. No published number. Seen, once: FID 75 (scenes-net,
    500 pictures), thing .62 (chance .17), colour .18 (.17).
    Command: t2i train spade_scenes --workers 2
    """
    return Experiment(
        recipe="spade_scenes",
        system="spade",
        model=SpadeConfig.model_validate(SMALL),
        data=DataSettings(source=SCENES_OF_THINGS),
        training=small_training(8),
    )


def ccfpse_scenes() -> Experiment:
    """CC-FPSE at 64 px on easy scenes: minutes on two cores.

    Label maps say which thing is where, and nothing of colours. No published number. Seen, once, at 27 pictures a
    second in one process: FID 386 (scenes-net, 500 pictures), thing .26 (chance .17): it learns more slowly than SPADE.
    Command: t2i train ccfpse_scenes --workers 2
    """
    return Experiment(
        recipe="ccfpse_scenes",
        system="ccfpse",
        model=CCFPSEConfig.model_validate(SMALL),
        data=DataSettings(source=SCENES_OF_THINGS),
        training=small_training(8),
    )
