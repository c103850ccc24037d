"""Data modules: spoken words and prosody made on the spot, folders of audio, images."""

from ssql.data.audio_folder import AudioFolder
from ssql.data.images import Digits, FashionMNIST, ImageFolder
from ssql.data.module import DataModule
from ssql.data.noise import Noisy
from ssql.data.prosody import SpokenProsody
from ssql.data.spoken_words import SpokenWords
from ssql.data.subset import Subset
from ssql.data.texts import Spelling

__all__ = [
    "AudioFolder",
    "DataModule",
    "Digits",
    "FashionMNIST",
    "ImageFolder",
    "Noisy",
    "Spelling",
    "SpokenProsody",
    "SpokenWords",
    "Subset",
]
