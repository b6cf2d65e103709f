"""Reading image sets: every source gives the same bytes, and what is no such set gives one sentence."""
import numpy as np
import pytest

from timm_preact.data import DataError, load_image_set

FOUR = dict(images=np.zeros((4, 32, 32, 3), np.uint8), labels=np.arange(4), classes=np.array(list('abcd')))


def test_the_sample_is_500_real_images_50_of_each_class(sample):
    assert sample.images.shape == (500, 32, 32, 3)
    assert np.bincount(sample.labels).tolist() == [50] * 10
    assert sample.sha256 == '40a88a687709da2ab5a6038cc4eb9803d71b1439656e117529ae0845e563325e'


def test_parquet_and_npz_give_the_same_images(npz_folder, parquet_folder):
    for split in ('train', 'test'):
        from_npz, from_parquet = load_image_set(npz_folder, split), load_image_set(parquet_folder, split)
        assert from_npz.sha256 == from_parquet.sha256
        assert from_npz.classes == from_parquet.classes


def test_an_npz_file_is_read_by_itself(npz_folder):
    assert load_image_set(npz_folder / 'test.npz', 'test').images.shape == (100, 32, 32, 3)


@pytest.mark.parametrize('change, message', [
    (dict(images=np.zeros((4, 32, 32, 3), np.float32)), 'must be uint8'),
    (dict(images=np.zeros((4, 32, 32), np.uint8)), 'must be uint8'),
    (dict(labels=np.arange(3)), '4 images need as many labels'),
    (dict(labels=np.array([0, 1, 2, 4])), 'from 0 to 3'),
    (dict(labels=np.array([0., 1., 2., 3.])), 'whole numbers'),
    (dict(images=np.zeros((0, 32, 32, 3), np.uint8), labels=np.zeros(0, np.int64)), '0 images'),
])
def test_arrays_that_are_no_image_set_are_refused(tmp_path, change, message):
    np.savez(tmp_path / 'test.npz', **dict(FOUR, **change))
    with pytest.raises(DataError, match=message):
        load_image_set(tmp_path, 'test')


def test_an_npz_without_labels_is_refused(tmp_path):
    np.savez(tmp_path / 'test.npz', images=FOUR['images'])
    with pytest.raises(DataError, match='labels'):
        load_image_set(tmp_path, 'test')


def test_an_npz_of_pickled_objects_is_refused_and_not_unpickled(tmp_path):
    np.savez(tmp_path / 'test.npz', **dict(FOUR, images=np.array([{}] * 4, dtype=object)))
    with pytest.raises(DataError, match='not a readable'):
        load_image_set(tmp_path, 'test')


@pytest.mark.parametrize('keep', [0, 100, 5000])
def test_a_truncated_npz_is_refused(npz_folder, tmp_path, keep):
    (tmp_path / 'test.npz').write_bytes((npz_folder / 'test.npz').read_bytes()[:keep])
    with pytest.raises(DataError, match='not a readable'):
        load_image_set(tmp_path, 'test')


def test_a_missing_split_says_which(tmp_path, npz_folder):
    (tmp_path / 'test.npz').write_bytes((npz_folder / 'test.npz').read_bytes())
    with pytest.raises(DataError, match='train.npz'):
        load_image_set(tmp_path, 'train')


def test_parquet_with_other_columns_says_which_it_needs(tmp_path):
    import datasets
    datasets.Dataset.from_dict(dict(picture=[1, 2], label=[0, 1])).to_parquet(tmp_path / 'test.parquet')
    with pytest.raises(DataError, match='picture, label.*it needs img or image'):
        load_image_set(tmp_path, 'test')


def test_a_broken_parquet_file_is_refused(tmp_path):
    (tmp_path / 'test.parquet').write_bytes(b'PAR1 and then nothing')
    with pytest.raises(DataError, match='cannot be read'):
        load_image_set(tmp_path, 'test')


@pytest.mark.parametrize('source', ['/no/such/folder', './nothing', 'cifar10'])
def test_a_source_that_is_nothing_is_refused(source):
    with pytest.raises(DataError, match='no folder'):
        load_image_set(source, 'test')
