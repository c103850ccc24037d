"""Data modules: spoken words and prosody made on the spot, folders and shards of audio and images."""

from ssql.data.audio_folder import AudioFolder
from ssql.data.audio_shards import AudioShards
from ssql.data.image_shards import ImageShards
from ssql.data.images import Digits, FashionMNIST, ImageFolder
from ssql.data.module import DataModule
from ssql.data.noise import Noisy
from ssql.data.prosody import SpokenProsody
from ssql.data.spoken_words import SpokenWords
from ssql.data.subset import Subset
from ssql.data.texts import Spelling

__all__ = [
    "AudioFolder",
    "AudioShards",
    "DataModule",
    "Digits",
    "FashionMNIST",
    "ImageFolder",
    "ImageShards",
    "Noisy",
    "Spelling",
    "SpokenProsody",
    "SpokenWords",
    "Subset",
]
