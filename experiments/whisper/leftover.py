"""What error is left of an encoder's features at a bit-width: could a map of them mend it, does a reader see it?

    python leftover.py ENCODER WEIGHTS FIT TEST BIT_WIDTH...

ENCODER is quantized or trained for the bit-widths, WEIGHTS the published Whisper that it is from, in transformers'
layout, and FIT and TEST are folders of ten recordings or more, of which the first ten are used. Printed are errors over
variance on TEST, each dimension's mean taken off, over the frames of the clips: as they are; after a bias for each
dimension, a bias and a scale, and a linear map, all fitted on FIT; and as the keys and values of the decoder's
cross-attention have them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor

import quant
from encoders import load_encoder
from encoders.base import Encoder

CLIPS, RIDGE = 10, 1e-3


@torch.no_grad()
def features(encoder: Encoder, folder: Path, bit_width: str) -> Tensor:
    """Of the frames of the first recordings, (frames, width)."""
    found = []
    for path in sorted(folder.iterdir())[:CLIPS]:
        clip = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]
        with quant.at(encoder, bit_width, reuse_weights=True):
            found.append(encoder(*encoder.front_end(clip))[0][0, : -(-clip.shape[1] // 320)])
    return torch.cat(found)


def keys_and_values(weights: Path) -> Tensor:
    """Squared sum of the cross-attention's matrices, (width, width)."""
    state = {key: value for file in weights.glob("*.safetensors") for key, value in load_file(file).items()}
    named = [key for key in state if key.endswith(("encoder_attn.k_proj.weight", "encoder_attn.v_proj.weight"))]
    return torch.stack([state[key].float().T @ state[key].float() for key in named]).sum(dim=0)


def main(encoder: str, weights: str, fit: str, test: str, *bit_widths: str) -> None:
    """Print a row for each bit-width."""
    loaded, seen = load_encoder(encoder), keys_and_values(Path(weights))
    sizes = torch.linalg.eigvalsh(seen)
    print(f"participation ratio of keys and values: {sizes.sum() ** 2 / (sizes**2).sum():.0f} of {len(sizes)}")
    exact, wanted = (features(loaded, Path(folder), "fp") for folder in (fit, test))
    around, own = wanted - wanted.mean(dim=0), exact.mean(dim=0)
    print("| bit-width | as it is | bias | bias and scale | linear map | as keys and values |\n|" + " --- |" * 6)
    for bit_width in bit_widths:
        known, found = (features(loaded, Path(folder), bit_width) for folder in (fit, test))
        middle = known.mean(dim=0)
        apart, targets = known - middle, exact - own
        scale = (apart * targets).sum(dim=0) / apart.square().sum(dim=0)
        ridge = RIDGE * len(apart) * torch.eye(apart.shape[1])
        linear = torch.linalg.solve(apart.T @ apart + ridge, apart.T @ targets)
        mended: Sequence[Tensor] = (
            found, found - middle + own, (found - middle) * scale + own, (found - middle) @ linear + own,
        )  # fmt: skip
        shares = [float((each - wanted).square().sum() / around.square().sum()) for each in mended]
        error = found - wanted
        shares.append(float(((error @ seen) * error).sum() / ((around @ seen) * around).sum()))
        print(f"| {bit_width} | {' | '.join(f'{share:.4f}' for share in shares)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
