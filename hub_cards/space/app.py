"""The Space: the page of `timm-preact demo --web`, answering where the Hub asks."""
import os

from timm_preact.web import serve

serve(os.environ.get('GRADIO_SERVER_NAME', '0.0.0.0'), int(os.environ.get('GRADIO_SERVER_PORT', '7860')))
