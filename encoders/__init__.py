"""Speech and vision encoders, and the folder they are saved in."""

from encoders.artifact import ArtifactError, load_encoder, save_encoder
from encoders.encoder import ENCODERS, Encoder, register_encoder
from encoders.log_mel import LogMel
from encoders.speech_transformer import SpeechTransformer
from encoders.vision import VisionEncoder

__all__ = [
    "ENCODERS",
    "ArtifactError",
    "Encoder",
    "LogMel",
    "SpeechTransformer",
    "VisionEncoder",
    "load_encoder",
    "register_encoder",
    "save_encoder",
]
