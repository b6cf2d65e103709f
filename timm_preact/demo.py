"""The network that ships with the package on the images that ship with it."""
from pathlib import Path

from .catalog import DEMO_MODEL
from .data import load_sample
from .evaluation import Images, Scores, eval_transform, evaluate, load_model
from .picture import draw_predictions

__all__ = ['run_demo']


def run_demo(picture: Path) -> Scores:
    """Evaluate the network on 500 test images of CIFAR-10, and draw what it sees in them as a PNG."""
    net, sample = load_model(DEMO_MODEL), load_sample()
    scores = evaluate(net, Images(sample, eval_transform(net)))
    draw_predictions(sample, scores.predictions.numpy(), picture)
    return scores
