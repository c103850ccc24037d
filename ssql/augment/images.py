"""Random views of images."""

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from encoders.base import Encoder
from quant.checks import check_at_least, check_share
from ssql.augment.base import Augmentation


class ImageAugmentation(Augmentation):
    """The published recipe on whole batches, where they are: resized crop, flip, colour jitter, greyscale, blur.

    Args:
        image_size: height and width of a view, in pixels.
        min_area: smallest part of the image's area that the crop keeps.
        colour: jitter of brightness, contrast, saturation and hue, with probability 0.8, and greyscale with 0.2;
            for grey images only brightness and contrast.
        flip: mirror half of the views; wrong for digits and letters.
        blur: Gaussian blur with probability 0.5 (the ImageNet recipe).
    """

    def __init__(
        self, image_size: int = 32, min_area: float = 0.2, colour: bool = True, flip: bool = True, blur: bool = False
    ) -> None:
        super().__init__()
        check_at_least(1, image_size=image_size)
        check_share(min_area=min_area)
        # `slice` would cut and resize one image after the other.
        self.crop = K.RandomResizedCrop((image_size, image_size), scale=(min_area, 1.0), cropping_mode="resample")
        self.colour, self.grey = nn.Sequential(), nn.Sequential()
        if colour:
            self.colour.append(K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)).append(K.RandomGrayscale(p=0.2))
            self.grey.append(K.ColorJitter(0.4, 0.4, p=0.8))
        self.last = nn.Sequential()
        if blur:
            kernel = max(3, image_size // 10 | 1)
            self.last.append(K.RandomGaussianBlur((kernel, kernel), sigma=(0.1, 2.0), p=0.5))
        if flip:
            self.last.append(K.RandomHorizontalFlip(p=0.5))

    def forward(self, inputs: Tensor, lengths: Tensor | None, encoder: Encoder) -> tuple[Tensor, Tensor | None]:
        """One view, each image with its own draw: (batch, channels, height, width) in [0, 1], then normalized."""
        colour = self.colour if inputs.shape[1] == 3 else self.grey
        with torch.autocast(inputs.device.type, enabled=False):
            views = self.last(colour(self.crop(inputs)))
        normalized, lengths = encoder.front_end(views, lengths)
        return normalized, lengths
