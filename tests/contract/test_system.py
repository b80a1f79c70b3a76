"""What every registered system and part promises: how it builds, what its phases train, how systems sample."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from models.abilities import Captioner, Comparer, Finder, Matcher, Tagger
from models.contract import Batch, Objective, Phase, Settings, StepContext, TextFeatures
from models.parallel import OneRank
from models.registry import gathered_names, get_system, get_trainable, part_names, system_names
from models.xmcgan import XMCGAN, XMCGANConfig
from orchestration.config import Experiment
from orchestration.errors import RequestError
from orchestration.training.loop import Trainer
from orchestration.training.state import TrainingState, build_nets
from tests.tiny import CARRIED, some_conditions, tiny_experiment, tiny_given, tiny_settings, tiny_trainer


def next_batch(trainer: Trainer) -> Batch:
    return trainer.stream.batch(0, trainer.experiment.training.batch_size)


def fixed_context(rows: int) -> StepContext:
    def noise(width: int) -> Tensor:
        return torch.randn(rows, width, generator=torch.Generator().manual_seed(width))

    return StepContext(OneRank(), noise)


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def test_it_describes_itself(trainable_name: str) -> None:
    system = get_trainable(trainable_name)
    assert system.name == trainable_name
    assert system.title and "\n" not in system.title
    assert issubclass(system.Config, Settings)
    assert system.needs <= CARRIED
    assert system.reads and system.reads <= {
        "features",
        "tokens",
        "objects",
        "regions",
        "graphs",
        "candidates",
        "labels",
        "tagged",
        "canvases",
    }
    config = tiny_settings(system.Config)
    assert set(system.stages(config).values()) <= {*part_names(), *gathered_names(), *system_names()} - {trainable_name}
    assert (system.text_dim(config) > 0) == bool(system.reads & {"features", "tokens"})
    assert system.resolution(config) >= 32
    assert all(info.description for info in system.Config.model_fields.values())


DRAWN_FROM = {"features", "graphs", "labels", "canvases"}


def test_systems_draw_from_captions_or_graphs_and_parts_are_judged() -> None:
    for name in system_names():
        assert callable(get_system(name).sample) and get_trainable(name).reads & DRAWN_FROM
    for name in part_names():
        part = get_trainable(name)
        assert isinstance(part, Matcher | Captioner | Comparer | Finder | Tagger) and not hasattr(part, "sample")


def test_an_unknown_system_is_a_key_error() -> None:
    for find in (get_system, get_trainable):
        with pytest.raises(KeyError):
            find("no such system")
    with pytest.raises(KeyError):
        get_system(part_names()[0])


def test_the_tiny_settings_say_what_they_lack() -> None:
    class New(Settings):
        depth: int

    class Outer(Settings):
        channels: int = 100
        new: New = New(depth=3)

    with pytest.raises(AssertionError, match=r"New\.depth .*add it to SHRUNK"):
        tiny_settings(New)
    assert tiny_settings(Outer).model_dump() == {"channels": 2, "new": {"depth": 3}}


def test_defaults_build_on_meta(trainable_name: str) -> None:
    """The published model, without its memory."""
    system = get_trainable(trainable_name)
    with torch.device("meta"):
        nets = system.build(system.Config())
    for net in nets.values():
        assert all(tensor.is_meta for tensor in [*net.parameters(), *net.buffers()])


def test_weights_are_a_function_of_the_seed(trainable_name: str) -> None:
    experiment = tiny_experiment(trainable_name)
    given = tiny_given(experiment)
    first, again = build_nets(experiment, given), build_nets(experiment, given)
    other = build_nets(tiny_experiment(trainable_name, training__seed=4), given)
    for name in first:
        assert same_weights(first[name], again[name])
    trained = experiment.trainable.optimizers(experiment.model)
    assert {name for name in first if same_weights(first[name], other[name])} == first.keys() - trained.keys()


def same_weights(net: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(value.equal(theirs[key]) for key, value in net.state_dict().items())


OF_CLASSES = {"graphs", "labels", "tagged", "canvases"}


def test_what_it_is_built_from_is_missed_with_a_sentence(trainable_name: str) -> None:
    """A part that is not trained yet, or a vocabulary where word indices or graphs are read."""
    experiment = tiny_experiment(trainable_name)
    if trainable_name == "co_occurrence" or not (
        experiment.stages or experiment.trainable.reads & {"tokens", *OF_CLASSES}
    ):
        build_nets(experiment)
        return
    with pytest.raises(RequestError) as caught:
        build_nets(experiment)
    wanted = [f"the trained stage {part!r}" for part in experiment.stages]
    wanted += ["vocabulary"] if experiment.trainable.reads & {"tokens", "graphs", "labels"} else []
    wanted += ["classes"] if experiment.trainable.reads & OF_CLASSES else []
    assert any(what in str(caught.value) for what in wanted) and "\n" not in str(caught.value)


def test_phases_give_an_objective_for_each_net_they_train(learning_name: str) -> None:
    trainer = tiny_trainer(tiny_experiment(learning_name))
    system, config, nets = trainer.system, trainer.experiment.model, trainer.state.nets
    batch = next_batch(trainer)
    phases = system.phases(config)
    assert phases and phases[0].fresh_batch
    assert {name for phase in phases for name in phase.trains} == set(system.optimizers(config))
    assert set(system.optimizers(config)) <= nets.keys()
    assert set(system.averages(config)) <= nets.keys()
    for phase in phases:
        objectives: Mapping[str, Objective] = phase.losses(nets, batch, fixed_context(len(batch.image_ids)))
        assert objectives.keys() == set(phase.trains)
        for objective in objectives.values():
            assert objective.loss.shape == () and objective.loss.requires_grad and torch.isfinite(objective.loss)
            assert objective.terms
            for term in objective.terms.values():
                assert term.shape == () and not term.requires_grad and torch.isfinite(term)


def test_an_objective_reaches_every_parameter_of_its_net(learning_name: str) -> None:
    """A parameter that no loss reaches is a wire that was forgotten."""
    trainer = tiny_trainer(tiny_experiment(learning_name))
    batch, nets = next_batch(trainer), trainer.state.nets
    reached: dict[str, set[str]] = {name: set() for name in trainer.state.optimizers}
    for phase in trainer.phases:
        objectives = phase.losses(nets, batch, fixed_context(len(batch.image_ids)))
        for name in phase.trains:
            names, parameters = zip(*nets[name].named_parameters(), strict=True)
            gradients = torch.autograd.grad(objectives[name].loss, parameters, retain_graph=True, allow_unused=True)
            reached[name] |= {key for key, value in zip(names, gradients, strict=True) if value is not None}
    for name, found in reached.items():
        assert {key for key, _ in nets[name].named_parameters()} - found == set()


def test_one_iteration_changes_the_trained_nets_and_no_other(trainable_name: str) -> None:
    trainer = tiny_trainer(tiny_experiment(trainable_name))
    state = trainer.state
    before = {name: snapshot(net) for name, net in state.nets.items()}
    trainer.iteration()
    assert state.images_seen == trainer.images_per_iteration
    for name, net in state.nets.items():
        changed = [key for key, value in net.named_parameters() if not value.equal(before[name][key])]
        if name in state.optimizers:
            assert changed
        else:
            assert not changed
            assert all(value.equal(before[name][key]) for key, value in net.named_buffers())
            assert not any(parameter.requires_grad for parameter in net.parameters())
        assert all(parameter.grad is None for parameter in net.parameters())
    for name, average in state.averages.items():
        assert not any(parameter.requires_grad for parameter in average.parameters())
        assert not any(module.training for module in average.modules())
        assert state.averaged[name] == sum(name in phase.trains for phase in trainer.phases)


def sampler_of(state: TrainingState, experiment: Experiment) -> dict[str, nn.Module]:
    """Only what `load_for_sampling` gives: the averaged nets."""
    nets = state.sampling_nets()
    return {name: nets[name] for name in experiment.get_system().averages(experiment.model)}


@pytest.fixture
def trained(system_name: str) -> Trainer:
    """After an iteration, so that statistics are no longer at their start."""
    trainer = tiny_trainer(tiny_experiment(system_name))
    trainer.iteration()
    return trainer


def draw(trainer: Trainer, conditions: Batch, seeds: list[int], *truncation: float | None) -> Tensor:
    experiment = trainer.experiment
    with torch.inference_mode():
        return experiment.get_system().sample(
            sampler_of(trainer.state, experiment), experiment.model, conditions, seeds, *truncation
        )


def test_sampling_is_a_function_of_condition_and_seed(trained: Trainer) -> None:
    conditions = some_conditions(trained.experiment, 6)
    first = draw(trained, conditions, [5, 6, 7, 8, 9, 5])
    side = trained.system.resolution(trained.experiment.model)
    assert first.shape == (6, 3, side, side)
    assert first.abs().max() <= 1 and torch.isfinite(first).all()
    torch.manual_seed(0)
    assert draw(trained, conditions, [5, 6, 7, 8, 9, 5]).equal(first)
    for other in draw(trained, conditions, [15, 16, 17, 18, 19, 2**63 - 1]) - first:
        assert other.abs().max() > 1e-3
    # The same seed with another caption or graph is another picture.
    assert (first[0] - first[5]).abs().max() > 1e-4


def test_a_picture_does_not_depend_on_its_neighbours(trained: Trainer) -> None:
    """Row by row, in another order and with longer padding: the same up to the rounding of another batch size."""
    conditions = some_conditions(trained.experiment, 5)
    seeds = [11, 12, 13, 14, 15]
    together = draw(trained, conditions, seeds)
    alone = torch.cat([draw(trained, conditions[row : row + 1], [seeds[row]]) for row in range(5)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    order = [3, 1, 4, 0, 2]
    turned = draw(trained, conditions[torch.tensor(order)], [seeds[row] for row in order])
    torch.testing.assert_close(turned, together[order], rtol=0, atol=1e-5)
    text = conditions.text
    if text is None:
        return
    longer = TextFeatures(nn.functional.pad(text.words, (0, 0, 0, 3), value=7.0), text.lengths, text.sentence)
    padded = replace(conditions, text=longer)
    torch.testing.assert_close(draw(trained, padded, seeds), together, rtol=0, atol=1e-5)


def test_truncation_is_of_the_latent(trained: Trainer) -> None:
    """None leaves every bit; a threshold that no number reaches changes next to nothing; a low one, what seeds do."""
    conditions = some_conditions(trained.experiment, 4)
    seeds, others = [5, 6, 7, 8], [15, 16, 17, 18]
    plain = draw(trained, conditions, seeds)
    assert draw(trained, conditions, seeds, None).equal(plain)
    system, model = trained.experiment.get_system(), trained.experiment.model
    if not system.truncates(sampler_of(trained.state, trained.experiment), model):
        for truncation in (0.5, 1e3):
            with pytest.raises(ValueError, match="no latent that can be truncated") as caught:
                draw(trained, conditions, seeds, truncation)
            assert "\n" not in str(caught.value)
        return
    torch.testing.assert_close(draw(trained, conditions, seeds, 1e3), plain, rtol=0, atol=1e-5)
    apart = [
        float((draw(trained, conditions, seeds, limit) - draw(trained, conditions, others, limit)).abs().mean())
        for limit in (None, 1.0, 0.1, 1e-3)
    ]
    assert all(lower < 0.9 * higher for higher, lower in pairwise(apart)) and apart[-1] < 0.02 * apart[0]
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="standard deviations above 0"):
            draw(trained, conditions, seeds, wrong)


def test_a_truncated_picture_does_not_depend_on_its_neighbours(trained: Trainer) -> None:
    system, model = trained.experiment.get_system(), trained.experiment.model
    if not system.truncates(sampler_of(trained.state, trained.experiment), model):
        return
    conditions = some_conditions(trained.experiment, 3)
    together = draw(trained, conditions, [1, 2, 3], 0.7)
    alone = torch.cat([draw(trained, conditions[row : row + 1], [row + 1], 0.7) for row in range(3)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)


def test_sampling_changes_nothing(trained: Trainer) -> None:
    nets = sampler_of(trained.state, trained.experiment)
    before = {name: snapshot(net) for name, net in nets.items()}
    draw(trained, some_conditions(trained.experiment, 3), [1, 2, 3])
    for name, net in nets.items():
        assert all(value.equal(before[name][key]) for key, value in net.state_dict().items())


def test_nets_of_one_phase_never_see_each_others_step(learning_name: str) -> None:
    """Each net's optimizer got the gradient of all nets as they were before the turn, the last net's too."""
    trainer = tiny_trainer(tiny_experiment(learning_name))
    together = [index for index, phase in enumerate(trainer.phases) if len(phase.trains) > 1]
    if not together:
        assert all(len(phase.trains) == 1 for phase in trainer.phases)
        return
    index, phase = together[0], trainer.phases[together[0]]
    for earlier, turn in enumerate(trainer.phases[:index]):
        trainer._step(earlier, turn, trainer._micro_batches())
    [batch] = trainer._micro_batches()
    context = StepContext(trainer.ranks, trainer._noise(index, 0, len(batch.image_ids)))
    nets = trainer.state.nets
    before = {name: snapshot(net) for name, net in nets.items()}
    moments = {name: first_moments(trainer.state, name) for name in phase.trains}
    trainer._step(index, phase, [batch])
    found = {name: first_moments(trainer.state, name) for name in phase.trains}
    after = {name: snapshot(net) for name, net in nets.items()}

    for name in phase.trains:
        expected = moments_with_gradient_of(trainer, phase, batch, context, before, moments[name], name)
        assert distance(found[name], expected) <= 1e-5
    # Had the last net been scored by what the others became, its gradient would be another.
    last = phase.trains[-1]
    others_first = after | {last: before[last]}
    other = moments_with_gradient_of(trainer, phase, batch, context, others_first, moments[last], last)
    assert distance(found[last], other) > 1e-3


def moments_with_gradient_of(
    trainer: Trainer,
    phase: Phase,
    batch: Batch,
    context: StepContext,
    weights: dict[str, dict[str, Tensor]],
    moments: dict[str, Tensor],
    name: str,
) -> dict[str, Tensor]:
    """Adam's first moments of a net after `moments` and the gradient that the phase has at these weights."""
    nets = trainer.state.nets
    for key, net in nets.items():
        net.load_state_dict(weights[key])
    names, parameters = zip(*nets[name].named_parameters(), strict=True)
    gradients = torch.autograd.grad(phase.losses(nets, batch, context)[name].loss, parameters)
    largest = trainer.optimizer_settings[name].gradient_norm
    if largest is not None:
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        gradients = tuple(gradient * (largest / norm).clamp(max=1.0) for gradient in gradients)
    beta = trainer.state.optimizers[name].defaults["betas"][0]
    return {
        key: beta * moments.get(key, torch.zeros_like(value)) + (1 - beta) * value
        for key, value in zip(names, gradients, strict=True)
    }


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest number of all."""
    scale = max(value.abs().max().item() for value in theirs.values())
    return max((value - theirs[name]).abs().max().item() for name, value in ours.items()) / scale


def first_moments(state: TrainingState, name: str) -> dict[str, Tensor]:
    """Copies of Adam's first moments of a net by parameter; empty before its first step."""
    optimizer = state.optimizers[name]
    return {
        key: optimizer.state[parameter]["exp_avg"].clone()
        for key, parameter in state.nets[name].named_parameters()
        if "exp_avg" in optimizer.state.get(parameter, {})
    }


def test_xmcgan_has_the_released_and_the_paper_order() -> None:
    """Released: N_D - 1 discriminator steps, then both at once. Algorithm 1: N_D steps, then the generator alone."""
    assert "xmcgan" in system_names()
    for steps in (1, 2, 3):
        released = XMCGAN().phases(XMCGANConfig(discriminator_steps=steps))
        assert [phase.trains for phase in released] == [("discriminator",)] * (steps - 1) + [
            ("discriminator", "generator")
        ]
        paper = XMCGAN().phases(XMCGANConfig(discriminator_steps=steps, step_order="paper"))
        assert [phase.trains for phase in paper] == [("discriminator",)] * steps + [("generator",)]
        assert all(phase.fresh_batch for phase in [*released, *paper])


def test_xmcgan_paper_order_scores_the_generator_by_the_updated_discriminator() -> None:
    """The discriminator's state as each phase finds it: in the paper's order the generator's turn sees every step."""
    trainer = tiny_trainer(tiny_experiment("xmcgan", model__step_order="paper"))
    seen: list[Tensor] = []
    weight = next(trainer.state.nets["discriminator"].parameters())
    for index, phase in enumerate(trainer.phases):
        seen.append(weight.detach().clone())
        trainer._step(index, phase, trainer._micro_batches())
    assert all(not earlier.equal(later) for earlier, later in pairwise(seen))
    assert seen[-1].equal(weight)
