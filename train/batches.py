"""Images kept on the training device, augmented there, by a plan that (seed, epoch) alone decides."""
import math
from typing import Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F

from timm_preact.data import ImageSet
from train.recipe import Recipe

__all__ = ['Batches', 'EpochPlan', 'channel_statistics', 'error_on']


class EpochPlan(NamedTuple):
    """What is random in an epoch, drawn at its start; for each of the N places in it an image, a crop, a flip, a hole.

    Attributes:
        order: int64 (N,), index of the image.
        top: int64 (N,), first row of the crop, below 0 in the padding.
        left: int64 (N,), first column of it.
        flip: bool (N,), left to right, after the crop.
        hole_top: int64 (N,), first row of the square that is cut out, after the flip; it may begin outside.
        hole_left: int64 (N,), first column of it.
    """
    order: torch.Tensor
    top: torch.Tensor
    left: torch.Tensor
    flip: torch.Tensor
    hole_top: torch.Tensor
    hole_left: torch.Tensor

    @classmethod
    def make(cls, recipe: Recipe, seed: int, epoch: int, shape: Sequence[int], device: torch.device) -> 'EpochPlan':
        """Draw an epoch, counted from 0, of images of the shape (N, H, W, ...)."""
        size, height, width = shape[:3]
        rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        top, left = torch.randint(-recipe.translate, recipe.translate + 1, (2, size), generator=rng)
        flip = torch.rand(size, generator=rng) < 0.5
        order = torch.randperm(size, generator=rng)
        if recipe.alternate_flips:
            first = torch.rand(size, generator=torch.Generator().manual_seed(seed * 1_000_003 - 1)) < 0.5
            flip = first[order] ^ bool(epoch % 2)
        hole_top, hole_left = (
            torch.randint(side, (size,), generator=rng) - recipe.cutout // 2 for side in (height, width))
        return cls(*(t.to(device) for t in (order, top, left, flip, hole_top, hole_left)))


class Batches:
    """Images kept as bytes on the training device, normalised and augmented there a batch at a time.

    Attributes:
        images: uint8 (N, H, W, 3).
        labels: int64 (N,).
        recipe: Says how far crops are moved, and what is cut out.
        mean: float32, subtracted from pixels in [0, 1]: (3,) or the mean image (H, W, 3).
        std: float32 (3,), divides them then.
    """

    def __init__(self, images: ImageSet, recipe: Recipe, mean: torch.Tensor, std: torch.Tensor, device: torch.device):
        self.recipe = recipe
        self.images = torch.from_numpy(images.images).to(device)
        self.labels = torch.from_numpy(images.labels).to(device)
        self.mean, self.std = mean.to(device), std.to(device)

    def normalise(self, index: torch.Tensor) -> torch.Tensor:
        """float32 (B, H, W, 3)."""
        return (self.images[index].float() / 255 - self.mean) / self.std

    def train(self, plan: EpochPlan, places: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """The images at `places` (B,) of the plan, zero-padded, cropped, flipped, cut out, and their labels (B,).

        float32 (B, 3, H, W) in channels-last memory. Of device tensors alone: a CUDA graph can hold it.
        """
        index, pad, side = plan.order[places], self.recipe.translate, self.recipe.cutout
        images = F.pad(self.normalise(index), (0, 0, pad, pad, pad, pad))
        top, left, hole_top, hole_left = (
            start[places][:, None] for start in (plan.top, plan.left, plan.hole_top, plan.hole_left))
        rows, columns = (torch.arange(length, device=index.device) for length in self.images.shape[1:3])
        flipped = torch.where(plan.flip[places][:, None], columns.flip(0), columns)
        batch = torch.arange(len(index), device=index.device)[:, None, None]
        images = images[batch, (rows + top + pad)[:, :, None], (flipped + left + pad)[:, None, :]]
        if side:
            high, wide = ((at >= start) & (at < start + side) for at, start in ((rows, hole_top), (columns, hole_left)))
            images = images.masked_fill((high[:, :, None] & wide[:, None, :])[..., None], 0.)
        return images.permute(0, 3, 1, 2), self.labels[index]

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
