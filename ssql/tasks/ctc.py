"""What is said, as characters, by connectionist temporal classification (Graves et al. 2006); WER and CER."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.text import CharErrorRate, WordErrorRate

from encoders import Encoder
from encoders.heads import BLANK, greedy_texts
from encoders.speech.log_mel import SAMPLE_RATE
from ssql.data import DataModule
from ssql.data.batch import Batch
from ssql.tasks.task import Score, Task


class CTC(Task):
    """Texts, one character a token, from an encoder's frames.

    Args:
        texts: of the training split; their characters are the tokens.

    Raises:
        ValueError: an empty text.
    """

    kind = "ctc"
    metric = "wer"
    mode = "min"

    def __init__(self, texts: Sequence[str]) -> None:
        if not all(texts):
            raise ValueError(f"the text of training item {list(map(bool, texts)).index(False)} is empty")
        super().__init__("text", sorted(set("".join(texts))))
        self.tokens = {token: index for index, token in enumerate(self.classes, start=BLANK + 1)}

    def check_data(self, encoder: Encoder, data: DataModule) -> None:
        """Raise ValueError for an encoder without frames, or a training clip too short for its text."""
        super().check_data(encoder, data)
        rate = getattr(encoder, "frame_rate", None)
        if rate is None:
            raise ValueError(
                f"texts need an encoder of frames, such as SpeechTransformer; a {encoder.name} encoder gives one "
                "vector a clip or image"
            )
        dataset = data.dataset("train")
        texts, lengths = dataset.texts, dataset.lengths  # type: ignore[attr-defined]
        for index, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            needed = frames_needed(text)
            # Within a few frames of the limit the encoder itself is asked.
            if length / SAMPLE_RATE * rate < needed + 4 and (found := _frames(encoder, length)) < needed:
                raise ValueError(
                    f"training clip {index} is too short for its text {text!r}: {length / SAMPLE_RATE:.2f} s are "
                    f"{found} frames at {rate:g} Hz, the text needs {needed}; use an encoder of more frames a second, "
                    "or leave the clip out"
                )

    def unanswered(self, item: Batch) -> set[str]:
        """What an item has no answer for."""
        return set() if "texts" in item else {self.label}

    def outputs(self, encoder: Encoder, inputs: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Frame features (batch, frames, feature_dim) and the frames of each clip."""
        features, feature_lengths = encoder(inputs, lengths)
        return features, feature_lengths

    def loss(self, outputs: Tensor, lengths: Tensor | None, batch: Batch) -> Tensor:
        """CTC loss of logits (batch, frames, 1 + tokens), in float32, each clip's divided by its text's length."""
        texts = [torch.tensor([self.tokens[character] for character in text]) for text in batch["texts"]]
        log_probabilities = outputs.float().log_softmax(dim=-1).transpose(0, 1)  # (frames, batch, 1 + tokens)
        assert lengths is not None
        return F.ctc_loss(
            log_probabilities,
            torch.cat(texts).to(outputs.device),
            lengths,
            torch.tensor([len(text) for text in texts], device=outputs.device),
            blank=BLANK,
        )

    def metrics(self) -> MetricCollection:
        """Word and character error rate."""
        return MetricCollection({"wer": WordErrorRate(), "cer": CharErrorRate()}, compute_groups=False)

    def answers(self, outputs: Tensor, lengths: Tensor | None, batch: Batch) -> tuple[list[str], list[str]]:
        """Texts by greedy decoding, and what was said."""
        assert lengths is not None
        return greedy_texts(outputs, lengths, self.classes), batch["texts"]

    def scores(self, metrics: MetricCollection) -> list[Score]:
        """WER and CER in percent."""
        values = metrics.compute()
        return [Score(self.label, name, 100 * float(values[name]), "%") for name in ("wer", "cer")]


def frames_needed(text: str) -> int:
    """Frames of the shortest path: one a character, and a blank between two that are the same."""
    return len(text) + sum(a == b for a, b in pairwise(text))


@torch.no_grad()
def _frames(encoder: Encoder, samples: int) -> int:
    device = next(encoder.parameters()).device
    _, lengths = encoder(*encoder.front_end(torch.zeros(1, samples, device=device)))
    return int(lengths[0])
