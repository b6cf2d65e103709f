"""Pre-activation residual networks for timm: importing this package registers them all."""
from . import preact_resnet as preact_resnet
from .version import __version__ as __version__
