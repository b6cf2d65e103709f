"""Figures by matplotlib, where it is installed: pip install 'timm-preact[train]'."""
import io
import sys
from pathlib import Path
from typing import Any

from .files import write_atomically

__all__ = ['new_figure', 'render_figure', 'save_figure']


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches that needs no display; None, with a sentence, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no pictures: pip install 'timm-preact[train]' for matplotlib.", file=sys.stderr)
        return None
    return Figure(figsize=(width, height), layout='constrained')


def render_figure(figure: Any) -> bytes:
    """The content of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=150, metadata={'Software': None})
    return buffer.getvalue()


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG."""
    write_atomically(path, render_figure(figure))
