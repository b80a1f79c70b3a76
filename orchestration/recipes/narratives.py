"""Experiments with TReCS: parts alone are trained, then its pipeline is assembled and judged."""

from models.ccfpse import CCFPSEConfig
from models.contract import AdamSettings
from models.encoders.bert import BertSettings
from models.encoders.text import OFFLINE_NAME, TextEncoderSettings
from models.spade import SpadeConfig
from models.trecs.bert_tagger import BertTaggerConfig
from models.trecs.config import TReCSConfig
from models.trecs.dual_encoder import DualEncoderConfig
from models.trecs.tagger import TaggerSettings
from orchestration.config import DataSettings, Experiment, StageSettings, TrainingSettings
from orchestration.narratives.settings import NarrativeSettings
from orchestration.recipes.attngan import COCO_EVALUATION, ONE_GPU, SMALL_TRUNK, epochs
from orchestration.recipes.cpgan import SCENES_OF_THINGS
from orchestration.recipes.label_maps import SMALL, ccfpse_coco, small_training, spade_coco

LN_COCO_PICTURES = 118_287
"""Of the training split, which is COCO 2017's."""
ASSEMBLED = TrainingSettings(kimg=0, batch_size=2)
"""Nothing is trained in its own run."""
NARRATIVE_FEATURES = TextEncoderSettings(name=OFFLINE_NAME, max_tokens=64, sentence="mean")

SMALL_DUAL_ENCODER = DualEncoderConfig(
    text_dim=384,
    transformer_dim=128,
    hidden_dim=256,
    joint_dim=128,
    trunk=SMALL_TRUNK,
    resolution=64,
    similarity="cosine",
    scale=20.0,
    optimizer=AdamSettings(learning_rate=5e-4, beta_1=0.9, beta_2=0.999, gradient_norm=1.0),
)
SMALL_BERT = BertSettings(name="none", width=64, layers=2, heads=4, inner_width=128, pieces=2000, positions=256)


def small_tagger(tags: str) -> BertTaggerConfig:
    """A BERT without published weights, which learns a small vocabulary in a minute."""
    return BertTaggerConfig.model_validate(
        {
            "tags": tags,
            "bert": SMALL_BERT,
            "max_pieces": 128,
            "optimizer": AdamSettings(learning_rate=1e-3, beta_1=0.9, beta_2=0.999),
            "resolution": 64,
        }
    )


def parts(
    dual_encoder: DualEncoderConfig,
    dual_training: TrainingSettings,
    taggers: dict[str, BertTaggerConfig],
    tagger_training: TrainingSettings,
    spade: StageSettings,
    ccfpse: StageSettings,
) -> dict[str, StageSettings]:
    """All that a choice of labeler and generator may need; those that it does not are not trained."""
    return {
        "dual_encoder": StageSettings(system="dual_encoder", model=dual_encoder, training=dual_training),
        **{
            name: StageSettings(system="bert_tagger", model=model, training=tagger_training)
            for name, model in taggers.items()
        },
        "spade": spade,
        "ccfpse": ccfpse,
    }


def _length(kimg: float, batch_size: int) -> TrainingSettings:
    """Of so many kimg, recorded and kept ten times at most."""
    every = max(kimg / 10, 0.5)
    return TrainingSettings(kimg=kimg, batch_size=batch_size, log_kimg=every, picture_kimg=every, checkpoint_kimg=every)


def trecs_ln_coco() -> Experiment:
    """TReCS by its paper on LN-COCO: BERT-Large on HMM tags, k 5, CC-FPSE at 256 px.

    Paper: TReCS, table 3: IS 21.3, FID 48.7; true masks 22.0, 44.6; recall@1 26.3 (image of a narrative) and 27.0.
    Lengths of the tagger's and the dual encoder's training are not in the paper: 3 passes, and the 40,000 steps of 64
    that the released dual encoder took. Pre-training on Conceptual Captions is left out. Needs LN-COCO with traces,
    COCO-Stuff's maps, a BERT, Inception-v3's and VGG-16's weights.
    Command: t2i train trecs_ln_coco --data ln-coco:PATH --set stages.dual_encoder.model.trunk.weights=FILE
    """
    spade, ccfpse = spade_coco(), ccfpse_coco()
    return Experiment(
        recipe="trecs_ln_coco",
        system="trecs",
        model=TReCSConfig(),
        data=DataSettings(source="ln-coco:ln-coco", test_split="val"),
        text=TextEncoderSettings(max_tokens=64, sentence="cls"),
        narratives=NarrativeSettings(),
        stages=parts(
            DualEncoderConfig(),
            _length(40_000 * 64 / 1000, 64),
            {"bert_on_raw": BertTaggerConfig(tags="raw"), "bert_on_hmm": BertTaggerConfig()},
            _length(epochs(3, LN_COCO_PICTURES), 32),
            StageSettings(system="spade", model=spade.model, training=spade.training),
            StageSettings(system="ccfpse", model=ccfpse.model, training=ccfpse.training),
        ),
        training=ASSEMBLED,
        evaluation=COCO_EVALUATION,
        resources=ONE_GPU,
    )


def trecs_laptop() -> Experiment:
    """TReCS at 64 px, small enough for a laptop, on any narratives of pictures with labels of all pixels.

    No published number. Narratives without traces can have simulated ones where their words have tags. With few
    narratives emissions are flat, and the paper's transitions to the power 10 keep one tag throughout: here it is 1.
    Command: t2i train trecs_laptop --data coco:PATH --set narratives.traces=simulated
    """
    small = small_training(50)
    return Experiment(
        recipe="trecs_laptop",
        system="trecs",
        model=TReCSConfig(resolution=64),
        data=DataSettings(source="scenes:size=64", test_split="val"),
        text=NARRATIVE_FEATURES,
        narratives=NarrativeSettings(tagger=TaggerSettings(transition_power=1)),
        stages=parts(
            SMALL_DUAL_ENCODER,
            _length(50, 32),
            {"bert_on_raw": small_tagger("raw"), "bert_on_hmm": small_tagger("hmm")},
            _length(30, 32),
            StageSettings(system="spade", model=SpadeConfig.model_validate(SMALL), training=small),
            StageSettings(system="ccfpse", model=CCFPSEConfig.model_validate(SMALL), training=small),
        ),
        training=ASSEMBLED,
    )


def trecs_scenes() -> Experiment:
    """TReCS at 64 px on easy scenes: minutes on two cores.

    Six things in six colours, up to three a picture, four backgrounds; label maps say nothing of colours. SPADE paints,
    which learns sooner than CC-FPSE. Transitions have the power 4, at which the HMM's tags are best here. Seen, once,
    in 10 minutes on two cores that others used too: FID 122 (scenes-net, 500 pictures), background .96 (chance .25),
    thing .40 (.17); recall@1 of an image .54.
    Command: t2i train trecs_scenes --workers 2
    """
    laptop, small = trecs_laptop(), small_training(8)
    return laptop.model_copy(
        update={
            "recipe": "trecs_scenes",
            "model": TReCSConfig(resolution=64, generator="spade"),
            "data": DataSettings(source=SCENES_OF_THINGS, flip=False),
            "narratives": NarrativeSettings(tagger=TaggerSettings(transition_power=4)),
            "stages": parts(
                SMALL_DUAL_ENCODER,
                _length(8, 32),
                {"bert_on_raw": small_tagger("raw"), "bert_on_hmm": small_tagger("hmm")},
                _length(10, 32),
                StageSettings(system="spade", model=SpadeConfig.model_validate(SMALL), training=small),
                StageSettings(system="ccfpse", model=CCFPSEConfig.model_validate(SMALL), training=small),
            ),
        }
    )
