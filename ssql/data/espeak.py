"""Words spoken by eSpeak NG, from the library inside the wheel `espeakng-loader`, through its C API."""

import _ctypes
import ctypes
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import espeakng_loader
import numpy as np
import torch
from torch import Tensor
from torchaudio.transforms import Resample

from encoders.speech.log_mel import SAMPLE_RATE

# Constants of espeak-ng's speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_POSITION_CHARACTER = 1
_SILENCE = 1e-3

# Pitch of a voice that does not say its own: base in Hz, and range in 1/4096 Hz (espeak-ng's voices.c).
_DEFAULT_BASE, _DEFAULT_SPAN = 71.0, 4104.0

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Utterance:
    """What is said and how.

    Args:
        text: words, in the voice's language.
        voice: language, with an optional variant: `en-us`, `de+f2`.
        pitch: 0 to 99.
        pitch_range: 0 (monotone) to 99.
        words_per_minute: 80 to 450.
    """

    text: str
    voice: str = "en-us"
    pitch: int = 50
    pitch_range: int = 50
    words_per_minute: int = 175


class _Synthesizer:
    """The library, freshly loaded: what it says next depends on all it has said since."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        data = espeakng_loader.get_data_path().encode()
        self.rate = self.library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data, 0)
        if self.rate <= 0:
            raise RuntimeError(f"eSpeak NG did not start with its data in {data.decode()}")
        self.chunks: list[np.ndarray] = []
        self.callback = _Callback(self._receive)
        self.library.espeak_SetSynthCallback(self.callback)
        # Breathy variants draw noise, seeded with the clock unless told otherwise.
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        ctypes.CDLL(None).srand(1)

    def close(self) -> None:
        """Unload the library with all its state."""
        self.library.espeak_Terminate()
        _ctypes.dlclose(self.library._handle)

    def _receive(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: int) -> int:
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, utterance: Utterance) -> np.ndarray:
        """int16 samples at `self.rate` Hz."""
        if self.library.espeak_SetVoiceByName(utterance.voice.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice {utterance.voice!r}; voices are like en-us, de, fr, de+f2")
        parameters = {_RATE: utterance.words_per_minute, _PITCH: utterance.pitch, _RANGE: utterance.pitch_range}
        for parameter, value in parameters.items():
            self.library.espeak_SetParameter(parameter, value, 0)
        self.chunks = []
        encoded = utterance.text.encode() + b"\0"
        self.library.espeak_Synth(encoded, len(encoded), 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None)
        return np.concatenate(self.chunks) if self.chunks else np.zeros(0, np.int16)


def synthesize(utterances: Iterable[Utterance]) -> Iterator[Tensor]:
    """Speak a list of utterances, about 1,000 a second; the same list gives the same samples in any process.

    eSpeak carries state (oscillator phases, noise) from one utterance to the next and has no call to reset it,
    so every list begins with a fresh copy of the library, and longer lists begin like shorter ones.

    Yields:
        shape (samples,), float32 in [-1, 1], 16,000 Hz, silence at both ends trimmed.

    Raises:
        ValueError: unknown voice, or a text that makes no sound.
    """
    synthesizer = _Synthesizer()
    resample = Resample(synthesizer.rate, SAMPLE_RATE, dtype=torch.float32)  # its filter is made once
    try:
        for utterance in utterances:
            waveform = torch.from_numpy(synthesizer.speak(utterance).astype(np.float32) / 32768)
            loud = (waveform.abs() > _SILENCE).nonzero()
            if len(loud) == 0:
                raise ValueError(f"{utterance.text!r} makes no sound in voice {utterance.voice!r}")
            yield resample(waveform[int(loud[0]) : int(loud[-1]) + 1])
    finally:
        synthesizer.close()


def fundamental_frequency(voice: str, pitch: int) -> float:
    """F0 in Hz of a monotone utterance (`pitch_range=0`), by the arithmetic of espeak-ng's `SetPitch2` and voices.c.

    Args:
        voice: language whose own voice leaves pitch at its default (en-us, de, fr, es, it), with an optional variant.
        pitch: 0 to 80; above, eSpeak's table of the same values is rounded otherwise.

    Raises:
        ValueError: no such variant.
    """
    base, span = _DEFAULT_BASE, _DEFAULT_SPAN
    variant = voice.partition("+")[2]
    if variant:
        file = Path(espeakng_loader.get_data_path()) / "voices" / "!v" / variant
        if not file.is_file():
            raise ValueError(f"eSpeak NG has no voice variant {variant!r}; variants are like m1, f2")
        ends = re.search(r"^pitch\s+(\d+)\s+(\d+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        if ends:
            base, span = int(ends[1]) - 9.0, 108.0 * (int(ends[2]) - int(ends[1]))
    # eSpeak's table of integers is this power of two; a range of zero still adds what it is narrowed by.
    return base * round(64 * 2 ** (pitch / 50)) / 128 + 18 * span / 4096
