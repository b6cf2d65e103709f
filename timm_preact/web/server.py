"""Serving the page from this machine alone: nothing is asked of another, and nothing is left behind."""
import importlib.util
import os
import signal
import sys
import tempfile
import threading
from typing import Any

from PIL import Image

from ..catalog import DEMO_MODEL
from ..data import load_sample
from ..errors import UserError
from ..evaluation import load_model
from ..gradcam import look
from .limits import MAX_WEIGHTS

__all__ = ['serve']


def serve(host: str = '127.0.0.1', port: int = 7860) -> None:
    """Serve the page until Ctrl+C. All that is written lies in one temporary folder, which goes with it.

    Args:
        host: Address to answer at; 0.0.0.0 for all of this machine's.
        port: Port to answer at.

    Raises:
        UserError: Gradio is not installed, or the address or the port cannot be had.
    """
    if importlib.util.find_spec('gradio') is None:
        raise UserError("the page needs gradio: pip install 'timm-preact[web]'.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix='timm_preact_web_') as folder:
        # read when gradio and matplotlib are imported
        os.environ.update(
            GRADIO_TEMP_DIR=f'{folder}/uploads', GRADIO_ANALYTICS_ENABLED='False', MPLCONFIGDIR=f'{folder}/matplotlib')
        tempfile.tempdir = folder
        try:
            launch(host, port)
        finally:
            tempfile.tempdir = None


def launch(host: str, port: int) -> None:
    from .page import CSS, build, choose_theme
    page: Any = build()
    try:
        page.launch(
            server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, theme=choose_theme(),
            css=CSS, max_file_size=MAX_WEIGHTS, footer_links=[], run_history=False, ssr_mode=False, mcp_server=False,
            pwa=False, enable_monitoring=False)
    except OSError as e:
        raise UserError(f"{host}:{port} is taken, or no address of this machine's: choose another by --host and "
                        f'--port.') from e
    print(f'http://{host}:{port} shows the page; Ctrl+C ends it', flush=True)
    threading.Thread(target=warm_up, daemon=True).start()
    try:
        page.block_thread()
    finally:
        page.close()


def warm_up() -> None:
    """Bring in what the first visitor would wait for, by a network of its own: a visitor's may be at work meanwhile."""
    look(load_model(DEMO_MODEL), Image.fromarray(load_sample().images[0])).draw()
