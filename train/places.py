"""Where results, pages and cards lie in the clone."""
from pathlib import Path

__all__ = ['ABLATION', 'BENCHMARKS', 'CARDS', 'DOCS', 'PROPAGATION', 'PUBLISHED', 'README', 'RECIPES', 'RESULTS',
           'ROOT', 'TESTS', 'UNSHIPPED']

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / 'README.md'
DOCS = ROOT / 'docs'
PROPAGATION = DOCS / 'propagation'  # what train.propagation measured, and its pictures
CARDS = ROOT / 'hub_cards'
RECIPES = ROOT / 'train' / 'recipes'  # of timm's train.py
RESULTS = ROOT / 'train' / 'results'  # of trainings
PUBLISHED = RESULTS / 'published'  # of weights that others published
ABLATION = RESULTS / 'ablation'  # of changes to a recipe, on a small copy
UNSHIPPED = RESULTS / 'unshipped'  # of runs whose weights do not ship
BENCHMARKS = ROOT / 'benchmarks' / 'results'  # of experiments on speed and memory
TESTS = ROOT / 'tests'
