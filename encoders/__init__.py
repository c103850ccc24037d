"""Speech and vision encoders, and the folder they are saved in."""

from encoders.artifact import check_encoder_folder, init_from, load_encoder, save_encoder
from encoders.base import ENCODERS, Encoder, create_encoder, list_encoders, register_encoder
from encoders.fingerprint import state_sha256, weights_sha256
from encoders.heads import Head, load_head
from encoders.models.conformer import Conformer
from encoders.models.mel_cnn import MelCNN
from encoders.models.sample_stream import Stream
from encoders.models.speech_transformer import SpeechTransformer
from encoders.models.step_audio import step_audio_2
from encoders.models.streaming import StreamingTransformer
from encoders.models.vision import VisionEncoder
from encoders.models.wav2vec2 import HuBERT, Wav2Vec2, WavLM
from encoders.published.importing import Imported, import_encoder
from encoders.speech.audio_file import read_blocks
from encoders.speech.frames import FrameEncoder
from encoders.speech.interleaving import deinterleave, interleave
from encoders.speech.log_mel import FilledLogMel, LogMel, WhisperLogMel
from encoders.speech.tokenizer import Tokenizer, Tokens, load_tokenizer
from encoders.speech.windows import Piece, WindowEncoder, encode_windows, window_encoder
from encoders.storage.folder import ArtifactError, check_folder_target

# For users; the other packages take more.
__all__ = [
    "ArtifactError",
    "Conformer",
    "Encoder",
    "FilledLogMel",
    "Head",
    "HuBERT",
    "LogMel",
    "MelCNN",
    "SpeechTransformer",
    "Stream",
    "StreamingTransformer",
    "Tokenizer",
    "VisionEncoder",
    "Wav2Vec2",
    "WavLM",
    "WhisperLogMel",
    "create_encoder",
    "encode_windows",
    "import_encoder",
    "init_from",
    "list_encoders",
    "load_encoder",
    "load_head",
    "load_tokenizer",
    "save_encoder",
    "step_audio_2",
    "window_encoder",
]

__version__ = "0.1.0"
