"""Real data for every test: the CIFAR-10 test images that ship with the package, written as users have theirs."""
import os
import sys
from pathlib import Path

os.environ['HF_HUB_OFFLINE'] = '1'  # read by huggingface_hub when timm imports it: no test reaches for a network
sys.path.append(str(Path(__file__).parents[1]))  # for train/; last: the package tested is the installed one

import numpy as np
import pytest

import timm_preact  # noqa: F401
from timm_preact.data import ImageSet, load_sample


@pytest.fixture(scope='session')
def sample() -> ImageSet:
    """500 real test images, 50 of each class."""
    return load_sample()


@pytest.fixture(scope='session')
def npz_folder(sample, tmp_path_factory):
    """A data folder: 320 shuffled images to train on, 100 to test on."""
    folder = tmp_path_factory.mktemp('npz')
    order = np.random.default_rng(0).permutation(len(sample.labels))
    for split, index in (('train', order[:320]), ('test', order[320:420])):
        np.savez(folder / f'{split}.npz', images=sample.images[index], labels=sample.labels[index],
                 classes=np.array(sample.classes))
    return folder


@pytest.fixture(scope='session')
def parquet_folder(npz_folder, tmp_path_factory):
    """The same images in the layout of the Hub data set uoft-cs/cifar10."""
    import datasets
    folder = tmp_path_factory.mktemp('parquet')
    for split in ('train', 'test'):
        with np.load(npz_folder / f'{split}.npz') as arrays:
            features = datasets.Features(
                img=datasets.Image(), label=datasets.ClassLabel(names=arrays['classes'].tolist()))
            table = datasets.Dataset.from_dict(
                dict(img=list(arrays['images']), label=arrays['labels'].tolist()), features=features)
        (folder / 'plain_text').mkdir(exist_ok=True)
        table.to_parquet(folder / 'plain_text' / f'{split}-00000-of-00001.parquet')
    return folder
