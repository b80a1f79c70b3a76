"""Our loop's iteration against the same modules and losses in a bare torch loop. Wanted: a ratio of at least 0.97."""

import torch
from timing import interleaved, report
from tiny_run import prepared_experiment, trainer

from models.contract import StepContext
from models.parallel import OneRank


def main() -> None:
    experiment, prepared = prepared_experiment()
    ours, bare = trainer(experiment, prepared), trainer(experiment, prepared)
    state, size = bare.state, experiment.training.batch_size
    batches = [bare.stream.batch(start, size).to(bare.device) for start in (0, size)]
    context = StepContext(OneRank(), lambda width: torch.randn(size, width, device=bare.device))

    def bare_iteration() -> None:
        for phase, batch in zip(bare.phases, batches, strict=True):
            objectives = phase.losses(state.nets, batch, context)
            gradients = {}
            for place, name in enumerate(phase.trains):
                gradients[name] = torch.autograd.grad(
                    objectives[name].loss,
                    list(state.nets[name].parameters()),
                    retain_graph=place + 1 < len(phase.trains),
                )
            for name, parts in gradients.items():
                for parameter, gradient in zip(state.nets[name].parameters(), parts, strict=True):
                    parameter.grad = gradient
                state.optimizers[name].step()

    ours_s, bare_s = interleaved(ours.iteration, bare_iteration, 25)
    report(
        benchmark="training_step",
        ours_images_per_s=ours.images_per_iteration / ours_s,
        bare_images_per_s=ours.images_per_iteration / bare_s,
        ratio=bare_s / ours_s,
    )


if __name__ == "__main__":
    main()
