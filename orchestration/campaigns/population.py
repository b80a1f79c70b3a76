"""A population's exploit and explore, as pure functions.

Source: Jaderberg et al., "Population Based Training of Neural Networks", 2017: truncation selection (section 4.1.1: the
bottom of the ranking copies weights and hyperparameters from the top), perturbation by 1.2 or 0.8, and resampling.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from models.contract import Trainable
from orchestration.campaigns.ledger import Trial
from orchestration.campaigns.settings import CampaignSettings, Objective
from orchestration.config import Experiment
from orchestration.errors import RequestError
from search_spaces.space import Parameter, Space, Value

FACTORS = (0.8, 1.2)
RESAMPLED = 0.25
"""Share of values that are drawn anew: the paper leaves it open, this is Ray Tune's default."""
_EXPLOIT, _EXPLORE = 1, 2  # streams of the seed


def exploit(
    trials: Sequence[Trial], settings: CampaignSettings, generation: int, objective: Objective
) -> dict[int, int]:
    """Which trial copies which: {number of the copying one: number of the copied one}.

    trials: the members, with their figures at the end of the generation. The worst `quantile` of them copy, each a
    random one of the best `quantile` (at least one each, of two members or more); which one depends on the seed, the
    generation and the copying trial's number alone. One without a finite figure is among the worst, and copies
    whatever the share; it is never copied.
    """
    ranked = sorted(trials, key=lambda trial: (objective.loss(trial.figures), trial.number))
    sound = [trial for trial in ranked if math.isfinite(objective.loss(trial.figures))]
    share = min(max(1, math.floor(settings.quantile * len(ranked) + 1e-9)), len(ranked) // 2)
    best = sound[:share]
    worst = ranked[len(ranked) - max(share, len(ranked) - len(sound)) :]
    copies = {}
    for trial in worst:
        if best and trial not in best:
            random = np.random.default_rng([settings.seed, _EXPLOIT, generation, trial.number])
            copies[trial.number] = best[int(random.integers(len(best)))].number
    return dict(sorted(copies.items()))


def explore(
    space: Space,
    values: Mapping[str, Value],
    seed: int,
    number: int,
    generation: int,
    mutable: Collection[str],
) -> dict[str, Value]:
    """The point that trial `number` goes on with after it copied one with these values.

    Each mutable parameter is, with probability 0.25, drawn anew from its range; else it is multiplied by 0.8 or 1.2 and
    cut to its range, a whole number going on by one at least, a choice to a neighbouring value. Where one of the two
    directions would leave it as it is, the other is taken; zero stays zero until it is drawn anew. All others keep
    their values. What exists only through a change is drawn anew, and what does not any more is left out.
    """
    random = np.random.default_rng([seed, _EXPLORE, generation, number])
    point: dict[str, Value] = {}
    for name in space.order:
        known = space.parameters[name]
        # Drawn for each parameter, so that one does not depend on whether another exists.
        again, place, up = random.random() < RESAMPLED, float(random.random()), bool(random.random() < 0.5)
        if not space.exists(name, point):
            continue
        if name not in mutable and name in values:
            point[name] = values[name]
        elif again or name not in values or not known.allows(values[name]):
            point[name] = known.at(place)
        else:
            point[name] = _perturbed(known, values[name], up)
    return {name: point[name] for name in space.parameters if name in point}


def mutable_parameters(base: Experiment, space: Space) -> frozenset[str]:
    """The parameters that may change in the middle of a trial: whatever their value, the trained nets have the same
    tensors of the same shapes, and no earlier stage runs again. The others keep their values in a population. So does
    one on which the existence of such another depends.
    """
    with torch.device("meta"):
        mutable = {name for name, known in space.parameters.items() if _keeps_the_nets(base, known)}
    for name in reversed(space.order):  # what depends on a parameter comes before it
        if name not in mutable:
            mutable -= space.parameters[name].when.keys()
    return frozenset(mutable)


def _keeps_the_nets(base: Experiment, known: Parameter) -> bool:
    shapes = set()
    for value in _tried(known):
        try:
            changed = base.replace(dict.fromkeys(known.fields, value))
            if changed.reads_as != base.reads_as:
                return False
            shapes.add(_shapes(changed) if any(field.startswith("model.") for field in known.fields) else ())
        except (RequestError, ValueError):
            return False  # a value that makes no experiment here
        if len(shapes) > 1:
            return False
    return True


def _tried(known: Parameter) -> tuple[Value, ...]:
    """Every choice; of a range its ends and what is documented, and of whole numbers two between."""
    documented = [value for value in (known.paper, known.released, *known.by_data.values()) if value is not None]
    return tuple(dict.fromkeys([*known.spread(4 if known.kind == "int" else 2), *documented]))


def _shapes(experiment: Experiment) -> tuple[Any, ...]:
    """Names and shapes of all that a checkpoint holds: frozen nets are not in it."""
    trainable: Trainable[Any] = experiment.trainable
    nets = trainable.build(experiment.model)
    tensors = [
        (net, name, tuple(tensor.shape))
        for net in sorted(trainable.optimizers(experiment.model))
        for name, tensor in nets[net].state_dict().items()
    ]
    return (*tensors, *sorted(trainable.averages(experiment.model)))


def _perturbed(known: Parameter, value: Value, up: bool) -> Value:
    for step in (up, not up):
        changed = _stepped(known, value, step)
        if changed != value:
            return changed
    return value


def _stepped(known: Parameter, value: Value, up: bool) -> Value:
    if known.kind == "choice":
        assert known.values is not None
        place = known.values.index(value) + (1 if up else -1)
        return known.values[min(max(place, 0), len(known.values) - 1)]
    assert known.low is not None and known.high is not None and not isinstance(value, str)
    changed = value * FACTORS[up]
    if known.kind == "int":
        whole = round(changed)
        changed = whole if whole != value else value + (1 if up else -1)
    cut = min(max(changed, known.low), known.high)
    return round(cut) if known.kind == "int" else float(cut)
