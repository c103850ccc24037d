"""Whisper's own decoder, frozen, by CTranslate2: it reads the features of an encoder in place of its own."""

import json
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from encoders.storage.paths import shown
from quant.checks import check_at_least, check_choice
from ssql.evaluation.reader import Reader
from ssql.terminal.groups import check_installed

WEIGHTS = "model.bin"
NORMALIZERS = ("english", "basic")
# Width of the features to the models on Hugging Face that have it.
MODELS = {
    384: "whisper-tiny or whisper-tiny.en",
    512: "whisper-base or whisper-base.en",
    768: "whisper-small or whisper-small.en",
    1024: "whisper-medium or whisper-medium.en",
    1280: "whisper-large-v2, whisper-large-v3 or whisper-large-v3-turbo",
}


class WhisperDecoder(Reader):
    """Whisper's decoder as CTranslate2 has it; greedy, without timestamps.

    Args:
        folder: with CTranslate2's `model.bin`, `config.json` and vocabulary, of the Whisper that the encoder is from.
        language: what a multilingual Whisper is told that it hears; one of English alone is told nothing.
        normalizer: `english`, or `basic` for other languages: Whisper's own, by which its error rates are published.
        compute_type: of the decoder: `float32`, or faster and less exact `int8`, ...
        max_tokens: of a clip; a decoder that repeats itself ends there.
        threads: of CTranslate2; 0 takes its default.
        silence: file of `ssql features` of 30 s of silence through the same encoder. Its frames follow those of each
            shorter clip (`ssql import --margin`): the decoder ends where it sees silence, and repeats itself without.

    Raises:
        FileNotFoundError: no such file of silence.
        ValueError: an unknown normalizer, or a number that is too small.
        ModuleNotFoundError: the group `reader` is not installed.
    """

    def __init__(
        self,
        folder: str,
        language: str = "en",
        normalizer: Literal["english", "basic"] = "english",
        compute_type: str = "float32",
        max_tokens: int = 224,
        threads: int = 0,
        silence: str | None = None,
    ) -> None:
        check_installed("ctranslate2", "whisper_normalizer")
        check_choice("normalizer", normalizer, NORMALIZERS)
        check_at_least(1, max_tokens=max_tokens)
        check_at_least(0, threads=threads)
        if not re.fullmatch("[a-z]{2,3}", language):
            raise ValueError(f"language is a code such as en or de, not {language!r:.40}")
        self.folder, self.language, self.normalizer = folder, language, normalizer
        self.compute_type, self.max_tokens, self.threads = compute_type, max_tokens, threads
        if silence is not None and not Path(silence).is_file():
            raise FileNotFoundError(f"reader silence {shown(silence)} does not exist: ssql features writes it")
        self.silence = silence

    def check(self, width: int | None = None) -> None:
        """Raise FileNotFoundError where the folder has no decoder, and say which one fits features of this width."""
        folder = Path(self.folder)
        if (folder / WEIGHTS).is_file():
            return
        what = "there is no such folder"
        if folder.is_dir():
            published = any(folder.glob("*.safetensors"))
            what = "it holds a model that is not converted yet" if published else f"it has no {WEIGHTS}"
        raise FileNotFoundError(
            f"--reader.folder {shown(folder)}: {what}; `ct2-transformers-converter --model openai/MODEL --output_dir "
            f"FOLDER` makes a folder with a decoder, of {self.fitting(width)}"
        )

    def fitting(self, width: int | None) -> str:
        """The Whispers whose features are so wide."""
        return MODELS.get(width or 0, super().fitting(width))

    @cached_property
    def width(self) -> int:
        """Width of the features that Whisper's own encoder gives."""
        silence = np.zeros((1, self._model.n_mels, 3000), np.float32)
        return int(self._model.encode(_storage(silence)).shape[2])

    def read(self, features: Tensor, frames: Tensor) -> list[str]:
        """Texts of a batch; the decoder attends to each clip's own frames."""
        if self.silence is not None:
            features = followed_by(features, frames, self._silence)
            frames = torch.full_like(frames, features.shape[1])
        if frames.min() < features.shape[1]:
            # It knows no mask: clips of other lengths than the longest are read alone.
            return [
                text
                for clip, count in zip(features, frames.tolist(), strict=True)
                for text in self.read(clip[None, :count], frames.new_tensor([count]))
            ]
        encoded = _storage(features.contiguous().numpy())
        model = self._model
        prompt = ["<|startoftranscript|>", "<|notimestamps|>"]
        if model.is_multilingual:
            prompt[1:1] = [f"<|{self.language}|>", "<|transcribe|>"]
        results = model.generate(encoded, [prompt] * len(features), beam_size=1, max_length=self.max_tokens)
        return [text_of(result.sequences[0]) for result in results]

    def normalized(self, text: str) -> str:
        """A text by Whisper's normalizer."""
        return self._normalize(text).strip()

    @cached_property
    def _silence(self) -> Tensor:
        assert self.silence is not None
        try:
            found = load_file(self.silence)["features"].float()
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"reader silence {shown(self.silence)} was not written by ssql features") from error
        if found.dim() != 2 or found.shape[1] != self.width:
            raise ValueError(
                f"reader silence {shown(self.silence)} has features of shape {tuple(found.shape)}, the reader takes "
                f"(frames, {self.width})"
            )
        return found

    @cached_property
    def _normalize(self) -> Callable[[str], str]:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer

        chosen: Callable[[str], str] = (
            EnglishTextNormalizer() if self.normalizer == "english" else BasicTextNormalizer()
        )
        return chosen

    @cached_property
    def _model(self) -> Any:
        import ctranslate2

        self.check()
        ctranslate2.set_log_level(40)  # errors: that weights in float16 become float32 is no news
        try:
            model = ctranslate2.models.Whisper(
                self.folder, device="cpu", compute_type=self.compute_type, intra_threads=self.threads
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(f"reader folder {shown(self.folder)} holds no Whisper of CTranslate2: {error}") from error
        if model.is_multilingual and f"<|{self.language}|>" not in _vocabulary(Path(self.folder)):
            raise ValueError(f"the Whisper in {shown(self.folder)} does not know the language {self.language!r}")
        return model


def followed_by(features: Tensor, frames: Tensor, silence: Tensor) -> Tensor:
    """Each clip's own frames, and then those of silence at the same places.

    Args:
        features: shape (batch, frames, width).
        frames: of each clip, shape (batch,).
        silence: shape (all frames, width).

    Returns:
        shape (batch, all frames, width).
    """
    count = max(len(silence), features.shape[1])
    of_clip, of_silence = (F.pad(x, (0, 0, 0, count - x.shape[-2])) for x in (features, silence))
    own = torch.arange(count, device=frames.device) < frames.unsqueeze(1)
    return torch.where(own.unsqueeze(2), of_clip, of_silence)


def text_of(tokens: list[str]) -> str:
    """The text of byte-pair tokens as Whisper's vocabulary writes them, special ones left out.

    Example:
        >>> text_of(["<|en|>", "ĠCaf", "Ã©", "."])
        ' Café.'
    """
    characters = "".join(token for token in tokens if not re.fullmatch(r"<\|.*\|>", token))
    return bytes(_BYTES[character] for character in characters if character in _BYTES).decode("utf-8", "replace")


def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's way to write any byte as a character that is seen: those that are not stand at 256 and after."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(unseen)}


_BYTES = _bytes_of_characters()


def _storage(values: np.ndarray) -> Any:
    import ctranslate2

    return ctranslate2.StorageView.from_array(np.ascontiguousarray(values, np.float32))


def _vocabulary(folder: Path) -> list[str]:
    if (folder / "vocabulary.json").is_file():
        words: list[str] = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        return words
    return (folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
