"""Random views of a batch: of waveforms and their log-mels, or of images."""

from ssql.augment.base import Augmentation
from ssql.augment.images import ImageAugmentation
from ssql.augment.joined import Joined
from ssql.augment.speech import SpeechAugmentation
from ssql.augment.unchanged import Unchanged

__all__ = ["Augmentation", "ImageAugmentation", "Joined", "SpeechAugmentation", "Unchanged"]
