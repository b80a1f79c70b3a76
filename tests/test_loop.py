"""The training loop and its record: steps, averages, divergence, cadences, and what a cut-off run has written."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.blocks.norm import BatchStatistics
from models.contract import AverageSettings, Batch, StepContext
from models.parallel import OneRank
from orchestration.training.loop import Cadence, Diverged, RunningMeans, Trainer, run
from orchestration.training.recorder import METRICS, Recorder, last_metrics, read_metrics
from orchestration.training.state import update_average
from tests.tiny import small_pretrained_nets, tensors_of, terms_of, tiny_experiment, tiny_trainer


@pytest.fixture(autouse=True)
def light() -> Iterator[None]:
    """No pretrained weights."""
    with small_pretrained_nets():
        yield


def spoil(batch: Batch) -> Batch:
    assert batch.images is not None and batch.text is not None
    images = batch.images.clone()
    images[3, 1, 5, 5] = float("nan")
    return Batch(batch.image_ids, images, batch.text)


def assert_diverges_untouched(trainer: Trainer, net: str) -> None:
    before = tensors_of(trainer)
    with pytest.raises(Diverged) as caught:
        trainer.iteration()
    assert f"gradient of the {net} is nan" in caught.value.reason
    assert "kimg" in str(caught.value) and "\n" not in str(caught.value)
    parameters = [
        f"net/{name}/{key}" for name, module in trainer.state.nets.items() for key, _ in module.named_parameters()
    ]
    after = tensors_of(trainer)
    assert [name for name in parameters if not after[name].equal(before[name])] == []
    assert [name for name in before if name.startswith(("optimizer", "average")) and name not in after] == []


def test_nan_in_the_data_is_a_reason_and_changes_no_weight() -> None:
    assert_diverges_untouched(tiny_trainer(tiny_experiment("xmcgan"), change=spoil), "discriminator")


def test_one_net_that_diverges_holds_back_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a joint phase a discriminator with a good gradient does not step when the generator's is NaN."""
    monkeypatch.setattr("models.xmcgan.system.hinge_generator", lambda logits: logits.mean() * float("nan"))
    assert_diverges_untouched(tiny_trainer(tiny_experiment("xmcgan", model__discriminator_steps=1)), "generator")


@pytest.mark.parametrize("warm_up", [False, True])
@pytest.mark.parametrize("buffers", ["live", "averaged"])
def test_the_moving_average(warm_up: bool, buffers: str) -> None:
    """decay * old + (1 - decay) * new, with decay at most (1 + n) / (10 + n) while it warms up."""
    net, average = (
        nn.Sequential(nn.Linear(2, 2), BatchStatistics(2)),
        nn.Sequential(nn.Linear(2, 2), BatchStatistics(2)),
    )
    average.load_state_dict(net.state_dict())
    setting = AverageSettings(decay=0.9, warm_up=warm_up, buffers=buffers)
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    for step in range(100):
        with torch.no_grad():
            for value in net.state_dict().values():
                value.copy_(torch.randn(value.shape))
        update_average(average, net, setting, step)
        decay = min(0.9, (1 + step) / (10 + step)) if warm_up else 0.9
        for name, value in net.state_dict().items():
            live = "running" in name and buffers == "live"
            expected[name] = value.clone() if live else decay * expected[name] + (1 - decay) * value
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_gradients_of_micro_batches_are_averaged() -> None:
    """Two pieces of 8 give the mean of their gradients; each piece has its own statistics and negatives."""
    changes: dict[str, object] = {"training__micro_batches": 2, "model__step_order": "paper"}
    trainer = tiny_trainer(tiny_experiment("xmcgan", **changes))
    batches = trainer._micro_batches()
    assert [len(batch.image_ids) for batch in batches] == [8, 8]
    assert torch.cat([batch.image_ids for batch in batches]).equal(trainer.stream.batch(0, 16).image_ids)
    [name], nets = trainer.phases[0].trains, trainer.state.nets
    parameters = list(nets[name].parameters())
    state = {key: value.clone() for key, value in nets[name].state_dict().items()}
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for micro, batch in enumerate(batches):
        context = StepContext(trainer.ranks, trainer._noise(0, micro, 8))
        loss = trainer.phases[0].losses(nets, batch, context)[name].loss
        for total, gradient in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
            total += gradient
    nets[name].load_state_dict(state)
    trainer._step(0, trainer.phases[0], batches)
    optimizer = trainer.state.optimizers[name]
    for parameter, total in zip(parameters, sums, strict=True):
        moment = (1 - optimizer.defaults["betas"][0]) * total / 2
        torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], moment, rtol=1e-4, atol=1e-5)


def test_noise_depends_on_phase_progress_and_micro_batch() -> None:
    trainer = tiny_trainer(tiny_experiment("xmcgan", training__micro_batches=2))
    drawn = [trainer._noise(phase, micro, 8)(4) for phase in range(2) for micro in range(2)]
    trainer.state.images_seen += 16
    drawn.append(trainer._noise(0, 0, 8)(4))
    assert len({tuple(rows.flatten().tolist()) for rows in drawn}) == 5
    assert abs(torch.cat(drawn).mean().item()) < 0.3


@settings(deadline=None, max_examples=100)
@given(
    period=st.integers(1, 50),
    steps=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    start=st.integers(0, 100),
)
def test_a_cadence_acts_at_the_same_points_wherever_a_run_begins(period: int, steps: list[int], start: int) -> None:
    """It acts whenever a multiple of the period was passed, and knows nothing of when it acted before."""
    cadence, images = Cadence(period), start
    for step in steps:
        before, images = images, images + step
        passed = any(point % period == 0 for point in range(before + 1, images + 1))
        assert cadence.due(before, images) == passed


def test_means_are_those_since_they_were_last_taken() -> None:
    means = RunningMeans()
    for value in (1.0, 2.0, 6.0):
        means.add("net", {"loss": torch.tensor(value)})
    means.add("net", {"rare": torch.tensor(4.0)})
    assert means.take(OneRank()) == {"net/loss": 3.0, "net/rare": 4.0}
    assert means.take(OneRank()) == {}
    means.add("net", {"loss": torch.tensor(5.0)})
    assert means.take(OneRank()) == {"net/loss": 5.0}


def test_a_recorded_term_does_not_change_with_the_tensor_it_came_from() -> None:
    means, term = RunningMeans(), torch.tensor(1.0)
    means.add("net", {"loss": term})
    term.fill_(100)
    assert means.take(OneRank()) == {"net/loss": 1.0}


def test_a_run_ends_when_enough_pictures_were_seen() -> None:
    """In whole iterations: the last one may pass the end."""
    trainer = tiny_trainer(tiny_experiment("xmcgan", training__kimg=0.1))
    points: list[tuple[int, int]] = []
    run(trainer, lambda before, after: points.append((before, after)))
    assert points == [(0, 32), (32, 64), (64, 96), (96, 128)]
    run(trainer, lambda before, after: points.append((before, after)))
    assert len(points) == 4


def test_bfloat16_trains_close_to_float32() -> None:
    terms = {}
    for precision in ("float32", "bfloat16"):
        trainer = tiny_trainer(tiny_experiment("xmcgan", training__precision=precision))
        trainer.iteration()
        terms[precision] = dict(terms_of(trainer))
        assert all(torch.isfinite(value).all() for value in tensors_of(trainer).values())
    hinge = "discriminator/hinge"
    assert terms["bfloat16"][hinge].item() == pytest.approx(terms["float32"][hinge].item(), rel=0.1)
    assert not terms["bfloat16"][hinge].equal(terms["float32"][hinge])


def test_a_torn_line_and_what_came_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    first = Recorder(tmp_path, 0)
    for images in (10, 20, 30):
        first.metrics(images, {"loss": images / 10})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"images": 40, "kim')
    assert [line["images"] for line in read_metrics(tmp_path)] == [10, 20, 30]
    again = Recorder(tmp_path, resume_at=20)
    again.metrics(30, {"loss": 7.0, "other": 1.0})
    lines = read_metrics(tmp_path)
    assert [line["images"] for line in lines] == [10, 20, 30]
    assert last_metrics(lines) == {"loss": 7.0, "other": 1.0}
    assert [json.loads(line)["kimg"] for line in (tmp_path / METRICS).read_text().splitlines()] == [0.01, 0.02, 0.03]


def test_pictures_are_a_grid_on_disk(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 0)
    pictures = torch.linspace(-1, 1, 3 * 3 * 32 * 32).view(3, 3, 32, 32)
    path = recorder.picture(1500, pictures, columns=2)
    assert path.name == "kimg-000001.500.png" and path.read_bytes().startswith(b"\x89PNG")
    before = path.read_bytes()
    assert recorder.picture(1500, pictures, columns=2) == path and path.read_bytes() == before
