"""How a campaign searches: what it is told once and never changes."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from models.contract import Settings
from orchestration.config import first_problem
from orchestration.errors import RequestError


class Objective(Settings):
    """A figure that is made small or large."""

    figure: str = Field(min_length=1, description="as a run records it, such as validation/fid/scenes-net")
    direction: Literal["minimize", "maximize"] = "minimize"

    def loss(self, figures: Mapping[str, float]) -> float:
        """The figure as something to be made small; infinite where it is missing or not finite."""
        figure = figures.get(self.figure, math.nan)
        if not math.isfinite(figure):
            return math.inf
        return -figure if self.direction == "maximize" else figure


class CampaignSettings(Settings):
    """Budgets are in kimg of each trial: thousands of real pictures shown to the discriminator."""

    trials: int = Field(ge=1, description="points that are tried; of a population, its members")
    concurrent: int = Field(1, ge=1, description="trials that train at the same time")
    budget_kimg: float = Field(
        ge=0, description="length of a whole trial; 0 where nothing is trained in one, beside the parts"
    )
    objectives: tuple[Objective, ...] = Field(min_length=1, description="several give a Pareto front")
    sampler: Literal["tpe", "random", "grid", "cmaes"] = Field("tpe", description="how Optuna proposes points")
    scheduler: Literal["halving", "population", "none"] = Field(
        "halving",
        description="halving: ASHA, only the best at each rung go on; population: PBT, the worst copy the best and "
        "change their values; none: every trial has the whole budget",
    )
    grace_kimg: float = Field(
        ge=0, description="halving: length of the first rung; population: of a generation; 0 where the budget is"
    )
    reduction: int = Field(2, ge=2, description="halving: one in so many goes on")
    quantile: float = Field(0.25, gt=0, le=0.5, description="population: the share that copies, and that is copied")
    seed: int = Field(0, ge=0, lt=2**31, description="of proposals and changes")
    failures: int = Field(2, ge=0, description="times a trial is tried again after a worker died")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.budget_kimg and self.scheduler != "none":
            raise ValueError(
                f"trials of 0 kimg are whole at once and {self.scheduler} would compare them on the way: use "
                "--scheduler none"
            )
        if not self.budget_kimg and self.grace_kimg:
            raise ValueError(f"trials of 0 kimg have no grace of {self.grace_kimg:g} kimg: leave --grace-kimg out")
        if self.budget_kimg and not 0 < self.grace_kimg <= self.budget_kimg:
            raise ValueError(
                f"grace {self.grace_kimg:g} kimg must be above 0 and at most the trial's {self.budget_kimg:g} kimg"
            )
        if len(self.objectives) > 1 and self.scheduler != "none":
            raise ValueError(
                f"with {len(self.objectives)} objectives no trial is the better half: use --scheduler none"
            )
        if self.scheduler == "population" and self.trials < 2:
            raise ValueError("a population needs two trials or more")
        return self

    @property
    def rungs(self) -> tuple[float, ...]:
        """Where trials pause and are compared, in kimg, the last one being the budget."""
        if self.scheduler == "none":
            return (self.budget_kimg,)
        if self.scheduler == "population":
            count = round(self.budget_kimg / self.grace_kimg)
            steps = [self.grace_kimg * step for step in range(1, count)]
        else:
            steps, rung = [], self.grace_kimg
            while rung < self.budget_kimg * (1 - 1e-9):
                steps.append(rung)
                rung *= self.reduction
        return (*(step for step in steps if step < self.budget_kimg * (1 - 1e-9)), self.budget_kimg)


def plan_settings(values: dict[str, Any]) -> CampaignSettings:
    """Settings from JSON values. Raises RequestError with one sentence for the first thing that is wrong."""
    try:
        return CampaignSettings.model_validate(values)
    except ValidationError as error:
        raise RequestError(first_problem(error)) from error
