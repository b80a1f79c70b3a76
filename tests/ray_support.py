"""A tiny but whole experiment for the tests that start Ray: two things, two colours, two backgrounds, a small net."""

TINY_DATA = "scenes:size=32,things=2,colours=2,backgrounds=2,objects=1,train=64,val=32,test=32"

TINY = {
    "data.source": TINY_DATA,
    "model.channels": 2,
    "model.noise_dim": 8,
    "model.sentence_dim": 8,
    "training.batch_size": 16,
    "training.kimg": 0.5,
    "training.log_kimg": 0.05,
    "training.picture_kimg": 0.25,
    "training.checkpoint_kimg": 0.05,
    "evaluation.samples": 32,
    "evaluation.protocol": "none",
}


def assignments(**changes: object) -> list[str]:
    """`--set` options of the tiny experiment; double underscores stand for dots."""
    values = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
