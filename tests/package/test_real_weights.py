"""Files as akamaster published them, where a copy lies beside the clone: the published errors, to the last digit."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from support.published import OriginalResNet

from timm_preact.catalog import depth_of
from timm_preact.evaluation import eval_transform, evaluate, load_model, open_images
from timm_preact.loading import find_name
from timm_preact.weights import CHECKSUMS, digest_of
from timm_preact.weights.sources import SOURCES

ROOT = Path(__file__).parents[2]
SHARED = next(
    (folder / 'shared' for folder in (ROOT, *ROOT.parents) if (folder / 'shared' / 'real_weights').is_dir()), None)
NAMES = [f'preact_resnet{depth}_orig.aka_cifar10' for depth in (20, 32, 44, 56)]
pytestmark = pytest.mark.skipif(SHARED is None, reason='no folder above this clone has shared/real_weights')


def file_of(name):
    return SHARED / 'real_weights' / SOURCES[name].url.rpartition('/')[2]


@pytest.fixture(scope='module')
def test_images(tmp_path_factory):
    """The 10,000 test images."""
    folder = tmp_path_factory.mktemp('cifar10')
    subprocess.run([sys.executable, SHARED / 'data' / 'unpack.py', folder, '--only', 'cifar10', '--format', 'npz'],
                   check=True, capture_output=True)
    return folder / 'cifar10'


@pytest.mark.parametrize('name', NAMES)
def test_a_published_file_finds_its_tag_and_gives_the_logits_of_its_own_network(name, sample):
    file = file_of(name)
    assert CHECKSUMS[name] == f'sha256:{digest_of(file)}' and find_name(file) == name
    original = OriginalResNet(depth_of(name.partition('.')[0])).eval()
    tensors = torch.load(file, weights_only=True, map_location='cpu')['state_dict']
    original.load_state_dict({key.removeprefix('module.'): tensor for key, tensor in tensors.items()})
    model = load_model(name, str(file))
    transform = eval_transform(timm.create_model(name))
    images = torch.stack([transform(Image.fromarray(image)) for image in sample.images[::10]])
    with torch.inference_mode():
        ours, theirs = model(images), original(images)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    labels = torch.from_numpy(sample.labels[::10])
    assert (ours.argmax(1) == labels).float().mean() > 0.8


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_the_published_error_is_measured(name, test_images):
    model = load_model(name, str(file_of(name)))
    scores = evaluate(model, open_images(str(test_images), 'test', eval_transform(model)))
    assert (scores.images, round(scores.error, 2)) == (10_000, SOURCES[name].reported[0])
    measured = json.loads((ROOT / 'train' / 'results' / 'published' / f'{name}.json').read_text())
    assert measured['evaluations'][0]['top1'] == round(scores.top1, 4)
