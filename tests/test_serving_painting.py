"""Batches that cannot be seen in the picture: which sizes are used, how they are filled, and what is passed on."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from orchestration.errors import RequestError
from orchestration.reasons.schema import Abilities, PromptReasons, ReadWord
from orchestration.serving.painting import (
    PROBES,
    InvariantBatches,
    PainterLike,
    Probes,
    candidate_sizes,
    probes_of,
    prompt_fault,
)

Disturbance = Callable[[int, int, Sequence[str]], float]


class FakePainter:
    """Pictures of one grey, a function of prompt, seed and truncation plus what `disturbance(size, place, prompts)`
    adds."""

    resolution = 4
    checkpoint_digest = "cd" * 32
    experiment_name = "fake"
    probes: Probes | None = None
    abilities = Abilities(system="fake", recipe="fake", resolution=4, accepts=["prompt"], truncation=True)

    def __init__(self, disturbance: Disturbance = lambda size, place, prompts: 0.0) -> None:
        self.disturbance = disturbance
        self.drawn_sizes: list[int] = []
        self.truncations: list[float | None] = []

    @classmethod
    def load(cls, checkpoint: Path, home: Path, device: str = "cpu") -> Self:
        return cls()

    def check(self, prompt: str) -> None:
        if not prompt:
            raise RequestError("the prompt is empty: write what the picture shows")

    def explain(self, prompt: str, seeds: Sequence[int], truncation: float | None) -> PromptReasons:
        return PromptReasons(words=[ReadWord(word=word, known=True) for word in prompt.split()])

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], truncation: float | None = None) -> NDArray[np.uint8]:
        pixels = self.draw_float(prompts, seeds, truncation).permute(0, 2, 3, 1)
        return ((pixels + 1) * 127.5).to(torch.uint8).numpy()

    def draw_float(self, prompts: Sequence[str], seeds: Sequence[int], truncation: float | None = None) -> Tensor:
        self.drawn_sizes.append(len(prompts))
        self.truncations.append(truncation)
        greys = [
            hashlib.sha256(f"{seed} {truncation} {prompt}".encode("utf-8", "surrogatepass")).digest()[0] / 128 - 1
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        shifts = [self.disturbance(len(prompts), place, prompts) for place in range(len(prompts))]
        return (torch.tensor(greys) + torch.tensor(shifts))[:, None, None, None].expand(-1, 3, 4, 4)


def test_candidate_sizes() -> None:
    assert candidate_sizes(1) == [1]
    assert candidate_sizes(8) == [1, 2, 4, 8]
    assert candidate_sizes(12) == [1, 2, 4, 8, 12]


TINY = 2.0**-24


@pytest.mark.parametrize(
    ("disturbance", "sizes"),
    [
        (lambda size, place, prompts: 0.0, (1, 2, 4, 8, 16)),
        # One family below 4 and one from 4 on: the larger reaches further.
        (lambda size, place, prompts: TINY * (size < 4), (4, 8, 16)),
        # The largest size stands alone; half of it costs a lone request less.
        (lambda size, place, prompts: TINY * (size == 16) + 2 * TINY * (size < 4), (4, 8)),
        # Every size is its own family.
        (lambda size, place, prompts: TINY * size, (8,)),
        (lambda size, place, prompts: TINY * (size >= 4) * size, (8,)),
        (lambda size, place, prompts: TINY * (place == size - 1 and size > 1), (1,)),
        (lambda size, place, prompts: TINY * (place > 1), (1, 2)),
        # The length of the neighbours matters.
        (lambda size, place, prompts: TINY * max(map(len, prompts)) * (size > 1), (1,)),
        (lambda size, place, prompts: TINY * (size == 16 and len(set(prompts)) > 1), (1, 2, 4, 8)),
    ],
)
def test_only_sizes_that_agree_are_used(disturbance: Disturbance, sizes: tuple[int, ...]) -> None:
    assert InvariantBatches(FakePainter(disturbance), 16).sizes == sizes


def test_a_painter_that_never_repeats_itself_draws_one_at_a_time() -> None:
    drawn = iter(range(10_000))
    batches = InvariantBatches(FakePainter(lambda size, place, prompts: TINY * next(drawn)), 8)
    assert batches.sizes == (1,)


def test_the_sizes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="orchestration"):
        InvariantBatches(FakePainter(lambda size, place, prompts: TINY * (size == 1)), 8)
    assert "in use: [2, 4, 8]; left out, since their bits differ: [1]" in caplog.text


@given(count=st.integers(1, 40), truncation=st.none() | st.floats(0.1, 10))
@settings(deadline=None, max_examples=40)
def test_padding(count: int, truncation: float | None) -> None:
    painter = FakePainter(lambda size, place, prompts: TINY * (size < 4))
    batches = InvariantBatches(painter, 16)
    assert set(painter.truncations) == {None}
    painter.drawn_sizes.clear()
    painter.truncations.clear()
    prompts, seeds = [f"prompt {k}" for k in range(count)], list(range(count))
    pictures = batches.draw(prompts, seeds, truncation)
    assert set(painter.truncations) == {truncation}
    assert pictures.shape == (count, 4, 4, 3)
    assert set(painter.drawn_sizes) <= {4, 8, 16} and sum(painter.drawn_sizes) < count + 16
    for k in range(count):
        assert (pictures[k] == painter.draw([prompts[k]], [k], truncation)[0]).all()


@given(neighbours=st.lists(st.tuples(st.text(max_size=5), st.integers(0, 9)), max_size=20), place=st.integers(0, 20))
@settings(deadline=None, max_examples=60)
def test_neighbours_are_not_seen(neighbours: list[tuple[str, int]], place: int) -> None:
    # Visible to the eye wherever a wrong size or an unpadded batch is used.
    batches = InvariantBatches(FakePainter(lambda size, place, prompts: 0.0 if size in (2, 8) else 0.5), 8)
    place = min(place, len(neighbours))
    items = [*neighbours[:place], ("a bird", 3), *neighbours[place:]]
    together = batches.draw([prompt for prompt, _ in items], [seed for _, seed in items])[place]
    assert (together == batches.draw(["a bird"], [3])[0]).all()


# What a painter says of itself


def test_a_painter_brings_its_own_probes() -> None:
    painter: PainterLike = FakePainter()
    assert probes_of(painter) == PROBES
    drawn: list[str] = []

    def listen(size: int, place: int, prompts: Sequence[str]) -> float:
        drawn.extend(prompts)
        return 0.0

    own = FakePainter(listen)
    own.probes = [("one", 1), ("two", 2), ("three", 3)]
    assert probes_of(own) == own.probes
    assert InvariantBatches(own, 4).sizes == (1, 2, 4)
    assert set(drawn) == {"one", "two", "three"}


def test_the_fault_of_a_prompt_is_a_sentence() -> None:
    assert prompt_fault(FakePainter(), "a bird") is None
    assert prompt_fault(FakePainter(), "") == "the prompt is empty: write what the picture shows"


def test_what_the_painter_refuses_is_refused() -> None:
    class WithoutLatent(FakePainter):
        def draw_float(self, prompts: Sequence[str], seeds: Sequence[int], truncation: float | None = None) -> Tensor:
            if truncation is not None:
                raise RequestError("no latent")
            return super().draw_float(prompts, seeds)

    batches = InvariantBatches(WithoutLatent(), 4)
    assert batches.draw(["a bird"], [1]).shape == (1, 4, 4, 3)
    with pytest.raises(RequestError, match="no latent"):
        batches.draw(["a bird"], [1], 1.0)
