"""The page of these networks: what they see, how the signal travels, how two differ. pip install 'timm-preact[web]'.

`page` draws it and holds no logic; `predict`, `signals` and `compare` are its tabs, by the same functions as the
command line; `server` serves it. Gradio is imported when it is served.
"""
from .server import serve

__all__ = ['serve']
