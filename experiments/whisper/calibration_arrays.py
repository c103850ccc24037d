"""Inputs of an encoder as arrays, for others' tools to calibrate on: those that `ssql quantize` looks at.

    python calibration_arrays.py ENCODER RECORDINGS OUTPUT.npz

RECORDINGS is a folder; OUTPUT.npz is what others.py takes.
"""

import sys

import numpy as np

from encoders import load_encoder
from ssql.data import AudioFolder
from ssql.evaluation.post_training import encoder_inputs


def main(encoder: str, recordings: str, output: str) -> None:
    """Write `log_mel_0`, `lengths_0`, `log_mel_1`, ..."""
    batches = encoder_inputs(load_encoder(encoder), AudioFolder(recordings, labels=None, max_seconds=30))
    arrays = {}
    for number, (log_mel, lengths) in enumerate(batches):
        arrays |= {f"log_mel_{number}": log_mel.numpy(), f"lengths_{number}": lengths.numpy()}
    np.savez(output, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
