"""Where a network looks: Grad-CAM (Selvaraju et al., 2017), by the library grad-cam: pip install 'timm-preact[web]'."""
import io
from pathlib import Path
from typing import List, NamedTuple, Optional

import numpy as np
import torch
from PIL import Image
from torch import nn

from .errors import UserError
from .evaluation import eval_transform, normalisation
from .files import write_atomically
from .preact_resnet import PreActResNet

__all__ = ['Look', 'count_stages', 'look', 'write_look']

SIDE = 320  # of a picture, in pixels


class Look(NamedTuple):
    """Where a network looks in an image.

    Attributes:
        seen: The image as the network gets it, RGB.
        heat: float32 (height, width) of `seen`, from 0 to 1: how much a place speaks for the class.
    """
    seen: Image.Image
    heat: np.ndarray

    def draw(self) -> Image.Image:
        """The heat over the image, 320 pixels wide: yellow where the network looks, dark blue where it does not."""
        import cv2
        from pytorch_grad_cam.utils.image import show_cam_on_image
        size = SIDE, round(SIDE * self.seen.height / self.seen.width)
        seen = np.asarray(self.seen.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
        heat = np.asarray(Image.fromarray(self.heat).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
        return Image.fromarray(show_cam_on_image(seen, heat, use_rgb=True, colormap=cv2.COLORMAP_VIRIDIS))


def count_stages(model: nn.Module) -> int:
    """Stages of a network of ours.

    Raises:
        UserError: It is none.
    """
    if not isinstance(model, PreActResNet):
        raise UserError(f'{type(model).__name__} has no stages to look at: choose a network of timm_preact.')
    return len(model.stages)


def look(model: nn.Module, image: Image.Image, stage: Optional[int] = None, label: Optional[int] = None) -> Look:
    """Grad-CAM of a stage, read where the next stage reads it: behind the pre-activation, where there is one.

    Args:
        model: A network of ours in eval mode.
        image: RGB.
        stage: From 1; None for the last.
        label: Of which class; None for the most probable.

    Raises:
        UserError: There is no such stage, the model is not ours, or grad-cam is not installed.
    """
    count = count_stages(model)
    stage = count if stage is None else stage
    if not 1 <= stage <= count:
        raise UserError(f'--stage {stage} is not there: choose one from 1 to {count}.')
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as e:
        raise UserError(f"Grad-CAM needs the package grad-cam ({e}): pip install 'timm-preact[web]'.") from e
    readers: List[nn.Module] = [*(later.blocks[0].pre for later in list(model.stages)[1:]), model.norm]
    x = eval_transform(model)(image)
    with GradCAM(model, [readers[stage - 1]]) as cam:
        [heat] = cam(x[None], None if label is None else [ClassifierOutputTarget(label)])
    model.zero_grad()
    mean, std = (torch.tensor(values)[:, None, None] for values in normalisation(model).values())
    pixels = ((x * std + mean).clamp(0, 1) * 255).round().byte().expand(3, -1, -1).permute(1, 2, 0)
    return Look(Image.fromarray(pixels.numpy()), heat)


def write_look(model: nn.Module, image: Image.Image, path: Path, stage: Optional[int] = None) -> None:
    """Write `look` as a PNG."""
    content = io.BytesIO()
    look(model, image, stage).draw().save(content, format='PNG')
    write_atomically(path, content.getvalue())
