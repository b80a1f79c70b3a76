"""Word-region scores of a whole batch at once, against one caption at a time. Wanted: at least 5 times as fast.

Floor: 2*M*N*T*R*D multiply-adds for the similarities and 2*M*N*T*R*R for the contexts' lengths, forward.
"""

import resource

import torch
from timing import interleaved, report

from models.losses.contrastive import contrast_scores, word_region_scores

BATCH, TOKENS, REGIONS, WIDTH = 48, 17, 256, 768  # XMC-GAN with BERT base


def main() -> None:
    torch.manual_seed(0)
    regions = torch.randn(BATCH, REGIONS, WIDTH, requires_grad=True)
    words = torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True)
    padding = torch.arange(TOKENS)[None, :] >= torch.randint(4, TOKENS + 1, (BATCH,))[:, None]

    def batched() -> None:
        contrast_scores(word_region_scores(regions, words, padding, 5.0, 5.0, 0.02)).loss.backward()

    def one_caption_at_a_time() -> None:
        columns = []
        for index in range(BATCH):
            unit_words = torch.nn.functional.normalize(words[index], dim=1)
            unit_regions = torch.nn.functional.normalize(regions, dim=2)
            attention = (5.0 * unit_words @ unit_regions.transpose(1, 2)).softmax(2)
            context = torch.nn.functional.normalize(attention @ unit_regions, dim=2)
            similarity = (context * unit_words).sum(2)
            logits = (5.0 * similarity).masked_fill(padding[index], -1e9)
            columns.append(logits.logsumexp(1) / (5.0 * 0.02))
        contrast_scores(torch.stack(columns, 1)).loss.backward()

    fast, slow = interleaved(batched, one_caption_at_a_time, 5)
    report(
        benchmark="word_loss",
        batched_s=fast,
        loop_s=slow,
        ratio=slow / fast,
        floor_gflop=2 * BATCH * BATCH * TOKENS * REGIONS * (WIDTH + REGIONS) / 1e9,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


if __name__ == "__main__":
    main()
