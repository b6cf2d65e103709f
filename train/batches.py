"""Images kept on the training device, augmented there, by a plan that (seed, epoch) alone decides."""
import math
from typing import Iterator, List, NamedTuple, Tuple

import numpy as np
import torch
import torch.nn.functional as F

from timm_preact.data import ImageSet

__all__ = ['PAD', 'Batches', 'EpochPlan', 'channel_statistics', 'error_on']

PAD = 4


class EpochPlan(NamedTuple):
    """What is random in an epoch, drawn at its start; for each of the N places in it an image, a crop and a flip.

    Attributes:
        order: int64 (N,), index of the image.
        top: int64 (N,), first row of the crop in the padded image, 0 to 8.
        left: int64 (N,), first column of it.
        flip: bool (N,), left to right, after the crop.
    """
    order: torch.Tensor
    top: torch.Tensor
    left: torch.Tensor
    flip: torch.Tensor

    @classmethod
    def make(cls, seed: int, epoch: int, size: int, device: torch.device) -> 'EpochPlan':
        rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        offsets = torch.randint(0, 2 * PAD + 1, (2, size), generator=rng)
        flip = torch.rand(size, generator=rng) < 0.5
        return cls(*(t.to(device) for t in (torch.randperm(size, generator=rng), *offsets, flip)))


class Batches:
    """Images kept as bytes on the training device, normalised and augmented there a batch at a time.

    Attributes:
        images: uint8 (N, H, W, 3).
        labels: int64 (N,).
        mean: float32, subtracted from pixels in [0, 1]: (3,) or the mean image (H, W, 3).
        std: float32 (3,), divides them then.
    """

    def __init__(self, images: ImageSet, mean: torch.Tensor, std: torch.Tensor, device: torch.device):
        self.images = torch.from_numpy(images.images).to(device)
        self.labels = torch.from_numpy(images.labels).to(device)
        self.mean, self.std = mean.to(device), std.to(device)

    def normalise(self, index: torch.Tensor) -> torch.Tensor:
        """float32 (B, H, W, 3)."""
        return (self.images[index].float() / 255 - self.mean) / self.std

    def train(self, plan: EpochPlan, places: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """The images at `places` (B,) of the plan, zero-padded by 4, cropped, flipped, and their labels (B,).

        float32 (B, 3, H, W) in channels-last memory. Of device tensors alone: a CUDA graph can hold it.
        """
        index = plan.order[places]
        images = F.pad(self.normalise(index), (0, 0, PAD, PAD, PAD, PAD))
        height, width = self.images.shape[1:3]
        rows = plan.top[places][:, None] + torch.arange(height, device=index.device)
        cols = torch.arange(width, device=index.device).expand(len(index), -1)
        cols = torch.where(plan.flip[places][:, None], width - 1 - cols, cols) + plan.left[places][:, None]
        batch = torch.arange(len(index), device=index.device)[:, None, None]
        return images[batch, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2), self.labels[index]

    def test(self) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        """Batches (images, labels) in order, without augmentation; larger ones on a GPU, where launches cost."""
        size = 500 if self.labels.device.type == 'cpu' else 2000
        for index in torch.arange(len(self.labels), device=self.labels.device).split(size):
            yield self.normalise(index).permute(0, 3, 1, 2), self.labels[index]


def channel_statistics(images: np.ndarray) -> Tuple[List[float], List[float]]:
    """Mean and standard deviation of each channel of uint8 images, for pixels in [0, 1], to four digits."""
    values = np.arange(256) / 255
    shares = [np.bincount(images[..., c].ravel(), minlength=256) / images[..., c].size for c in range(3)]
    means = [values @ share for share in shares]
    stds = [math.sqrt((values - mean) ** 2 @ share) for mean, share in zip(means, shares, strict=True)]
    return [round(float(m), 4) for m in means], [round(float(s), 4) for s in stds]


def error_on(model: torch.nn.Module, batches: Batches) -> float:
    """Top-1 error in percent, in float32."""
    model.eval()
    with torch.inference_mode():
        correct = sum((model(x).argmax(1) == y).sum() for x, y in batches.test()).item()
    model.train()
    return 100 * (len(batches.labels) - correct) / len(batches.labels)
