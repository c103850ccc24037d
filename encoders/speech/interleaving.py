"""Two token streams as one sequence, two linguistic tokens and then three semantic ones, as Step-Audio has them.

StepFun 2025, arXiv:2502.11946, dual-codebook tokenizer: semantic codes are offset by the size of the
linguistic codebook; a last group that is not whole is dropped.
"""

import torch
from torch import Tensor

LINGUISTIC, SEMANTIC = 2, 3  # tokens of each group, 120 ms
GROUP = LINGUISTIC + SEMANTIC


def interleave(linguistic: Tensor, semantic: Tensor, offset: int) -> Tensor:
    """The tokens of one clip as one sequence.

    Args:
        linguistic: shape (frames at 50/3 Hz,), int64.
        semantic: shape (frames at 25 Hz,), int64.
        offset: codes of the linguistic codebook.

    Returns:
        shape (5 * groups,).
    """
    groups = min(len(linguistic) // LINGUISTIC, len(semantic) // SEMANTIC)
    parts = [
        linguistic[: groups * LINGUISTIC].view(groups, LINGUISTIC),
        semantic[: groups * SEMANTIC].view(groups, SEMANTIC) + offset,
    ]
    return torch.cat(parts, dim=1).flatten()


def deinterleave(sequence: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """The way back: linguistic tokens (2 * groups,) and semantic tokens (3 * groups,) of a sequence (5 * groups,).

    Raises:
        ValueError: a sequence that is not of whole groups, or with a token in the other stream's place.
    """
    if len(sequence) % GROUP:
        raise ValueError(f"a sequence of {len(sequence)} tokens is not of whole groups of {GROUP}")
    groups = sequence.view(-1, GROUP)
    linguistic, semantic = groups[:, :LINGUISTIC].flatten(), groups[:, LINGUISTIC:].flatten() - offset
    if (linguistic < 0).any() or (linguistic >= offset).any() or (semantic < 0).any():
        raise ValueError(
            f"each group must be {LINGUISTIC} tokens from 0 to {offset - 1}, then {SEMANTIC} from {offset} on"
        )
    return linguistic, semantic
