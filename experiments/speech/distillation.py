"""What a reader of an encoder's full-precision features makes of its quantized ones, before and after distillation.

Run: .venv/bin/python experiments/speech/distillation.py ORIGINAL DISTILLED        (two encoder folders)
A linear classifier is trained once, on the original encoder's full-precision embeddings of the training words, and then
reads the test words from both encoders at each bit-width; beside it, the squared distance of the frames to the original
full-precision ones, in units of their variance. Prints a Markdown table.
"""

import sys

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import quant
from encoders import Encoder, load_encoder
from ssql.data import SpokenWords
from ssql.methods.distillation import rows
from ssql.methods.objectives import relative_distance

BIT_WIDTHS = ("fp", "w8a8", "w4a8", "w4a4", "w3a4", "w2a4")
TASKS = ("word", "voice", "language")


@torch.no_grad()
def read(encoder: Encoder, bit_width: str, split: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Frames of all clips, their embeddings, their labels."""
    data = SpokenWords()
    data.prepare_data()
    data.setup("fit")
    frames, embeddings, labels = [], [], []
    with quant.at(encoder, bit_width, reuse_weights=True):
        for batch in data.evaluation_dataloader(split):
            inputs = encoder.front_end(batch["inputs"], batch["lengths"])
            frames.append(rows(encoder, inputs))
            embeddings.append(encoder.embed(*inputs))
            labels.append(batch["labels"])
    return (
        torch.cat(frames),
        torch.cat(embeddings),
        {task: torch.cat([part[task] for part in labels]) for task in TASKS},
    )


def main() -> None:
    """One row an encoder and a number."""
    encoders = dict(zip(("original", "distilled"), map(load_encoder, sys.argv[1:3]), strict=True))
    _, embeddings, labels = read(encoders["original"], "fp", "train")
    readers = {
        task: make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(embeddings, labels[task])
        for task in TASKS
    }
    reference, _, _ = read(encoders["original"], "fp", "test")
    print(f"| | | {' | '.join(BIT_WIDTHS)} |")
    print("| --- " * (2 + len(BIT_WIDTHS)) + "|")
    for name, encoder in encoders.items():
        distances, correct = [], {task: [] for task in TASKS}
        for bit_width in BIT_WIDTHS:
            frames, embeddings, labels = read(encoder, bit_width, "test")
            distances.append(f"{float(relative_distance(frames, reference)):.4f}")
            for task, reader in readers.items():
                correct[task].append(f"{100 * reader.score(embeddings, labels[task]):.1f}")
        print(f"| distance of frames | {name} | {' | '.join(distances)} |")
        for task in TASKS:
            print(f"| {task}, % | {name} | {' | '.join(correct[task])} |", flush=True)


if __name__ == "__main__":
    main()
