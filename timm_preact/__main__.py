"""python -m timm_preact is timm-preact."""
from .cli import run

run()
