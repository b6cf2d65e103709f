"""Reading image sets: every source gives the same bytes, and what is no such set gives one sentence."""
import numpy as np
import pytest
from PIL import Image
from timm.data import create_dataset

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


@pytest.fixture
def image_folder(npz_folder, tmp_path):
    """The training images as PNG files, a folder a class."""
    with np.load(npz_folder / 'train.npz') as arrays:
        for i, (image, label) in enumerate(zip(arrays['images'], arrays['labels'], strict=True)):
            folder = tmp_path / 'train' / str(arrays['classes'][label])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f'{i:03}.png')
    return tmp_path


def test_a_folder_of_images_gives_the_same_images_class_by_class(npz_folder, image_folder):
    expected, read = load_image_set(npz_folder, 'train'), load_image_set(image_folder, 'train')
    order = np.argsort(expected.labels, kind='stable')
    assert read.classes == expected.classes and (read.labels == expected.labels[order]).all()
    assert (read.images == expected.images[order]).all()


def test_folders_are_numbered_as_timms_reader_numbers_them(tmp_path):
    """9 before 10, unlike torchvision: else a network that train.py trained would be measured on shifted labels."""
    for i, name in enumerate(('10', '9', 'b2', 'B10')):
        (tmp_path / 'test' / name).mkdir(parents=True)
        Image.new('RGB', (4, 4), (i, 0, 0)).save(tmp_path / 'test' / name / 'x.png')
    read = load_image_set(tmp_path, 'test')
    theirs = create_dataset('', tmp_path / 'test').reader.class_to_idx
    assert read.classes == ('9', '10', 'b2', 'B10') == tuple(sorted(theirs, key=theirs.get))
    assert dict(zip(read.images[:, 0, 0, 0], read.labels, strict=True)) == {0: 1, 1: 0, 2: 2, 3: 3}


def test_a_folder_with_a_broken_image_or_images_of_two_sizes_is_refused(image_folder):
    first = next((image_folder / 'train' / 'cat').iterdir())
    Image.new('RGB', (16, 16)).save(first)
    with pytest.raises(DataError, match='images of 2 sizes: resize them'):
        load_image_set(image_folder, 'train')
    first.write_bytes(first.read_bytes()[:40])
    with pytest.raises(DataError, match=f'{first.name} is no image'):
        load_image_set(image_folder, 'train')
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(first)
    with pytest.raises(DataError, match='pixels of the kind I;16: write it with 8 bits'):
        load_image_set(image_folder, 'train')


def test_a_folder_without_classes_is_refused(tmp_path):
    (tmp_path / 'train').mkdir()
    with pytest.raises(DataError, match='no folder of images a class'):
        load_image_set(tmp_path, 'train')


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


# Parquet, named and filled in other ways


@pytest.fixture
def shards(npz_folder, tmp_path):
    """write(path, rows, **columns): a parquet file of some of the 100 test images; columns replace img and label."""
    import datasets
    test = load_image_set(npz_folder, 'test')

    def write(path, rows=range(100), features=None, **columns):
        rows = list(rows)
        names = datasets.ClassLabel(names=list(test.classes))
        features = features or datasets.Features(img=datasets.Image(), label=names)
        columns = {'img': [test.images[i] for i in rows], 'label': test.labels[rows].tolist(), **columns}
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / path)
        return tmp_path

    return write


def test_a_splits_name_ends_where_datasets_ends_it(shards):
    shards('data/test-00000-of-00002.parquet', range(50))
    shards('data/test-00001-of-00002.parquet', range(50, 100))
    root = shards('data/test_corrupted-00000-of-00001.parquet', range(10))
    assert len(load_image_set(root, 'test').labels) == 100
    assert len(load_image_set(root, 'test_corrupted').labels) == 10
    with pytest.raises(DataError, match=r'no parquet file of a split train .*\(but test, test_corrupted\)'):
        load_image_set(root, 'train')


@pytest.mark.parametrize('path', ['test.parquet', 'test/0000.parquet', 'plain_text/test/part-0.parquet',
                                  'test_0.parquet',
                                  'test-00000-of-00001-90bb8e0f1a1d6f31.parquet'])
def test_names_that_the_hub_has_used_are_read(shards, path):
    assert len(load_image_set(shards(path), 'test').labels) == 100


@pytest.mark.parametrize('paths', [
    ('one/test-00000-of-00001.parquet', 'other/test-00000-of-00001.parquet'),
    ('test.parquet', 'test-00000-of-00001.parquet'),
    ('test-00000-of-00001-90bb8e0f1a1d6f31.parquet', 'test-00000-of-00001-11bb8e0f1a1d6f31.parquet')])
def test_several_snapshots_or_configurations_are_one_sentence(shards, paths):
    for path in paths:
        root = shards(path)
    with pytest.raises(DataError) as e:
        load_image_set(root, 'test')
    assert 'holds the split test more than once' in str(e.value) and all(path in str(e.value) for path in paths)


def test_a_missing_shard_is_noticed(shards):
    with pytest.raises(DataError, match='holds 1 of the 3 files of the split test: fetch the others'):
        load_image_set(shards('test-00000-of-00003.parquet'), 'test')


def test_parquet_behind_a_link_to_a_folder_is_read(shards, tmp_path):
    shards('elsewhere/test-00000-of-00001.parquet')
    (tmp_path / 'root').mkdir()
    (tmp_path / 'root' / 'data').symlink_to(tmp_path / 'elsewhere')
    assert len(load_image_set(tmp_path / 'root', 'test').labels) == 100


def test_labels_may_be_text_and_are_numbered_in_timms_order(shards):
    import datasets
    features = datasets.Features(img=datasets.Image(), label=datasets.Value('string'))
    root = shards('test.parquet', range(3), features, label=['10', '9', 'b'])
    data = load_image_set(root, 'test')
    assert data.classes == ('9', '10', 'b') and data.labels.tolist() == [1, 0, 2]


def test_labels_that_are_dictionaries_are_refused_with_the_column(shards):
    import datasets
    features = datasets.Features(img=datasets.Image(), label={'id': datasets.Value('int64')})
    root = shards('test.parquet', range(2), features, label=[{'id': 1}, {'id': 0}])
    with pytest.raises(DataError, match='column label holds dicts: it needs whole numbers or names of classes'):
        load_image_set(root, 'test')


def test_parquet_gives_the_pixels_that_files_give(shards, sample, tmp_path):
    """A rotation that EXIF asks for is ignored in both, as in timm; 16 bits are refused in both."""
    import io

    import datasets
    image, exif = Image.fromarray(sample.images[0]), Image.Exif()
    exif[0x0112] = 6
    (tmp_path / 'files' / 'test' / 'a').mkdir(parents=True)
    image.save(tmp_path / 'files' / 'test' / 'a' / '0.png', exif=exif)
    content = (tmp_path / 'files' / 'test' / 'a' / '0.png').read_bytes()
    features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=['a']))
    shards('rows/test.parquet', [0], features, img=[{'bytes': content, 'path': None}], label=[0])
    sets = [load_image_set(tmp_path / kind, 'test') for kind in ('files', 'rows')]
    assert sets[0].sha256 == sets[1].sha256 and np.array_equal(sets[0].images[0], sample.images[0])
    deep = io.BytesIO()
    Image.fromarray(np.full((32, 32), 1000, np.uint16)).save(deep, 'png')
    shards('deep/test.parquet', [0], features, img=[{'bytes': deep.getvalue(), 'path': None}], label=[0])
    with pytest.raises(DataError, match='row 0 of .*deep.*test.parquet has pixels of the kind I;16'):
        load_image_set(tmp_path / 'deep', 'test')


def test_a_root_of_splits_without_the_one_asked_for_names_them(sample, tmp_path):
    for split in ('train', 'val'):
        (tmp_path / split / 'cat').mkdir(parents=True)
        Image.fromarray(sample.images[0]).save(tmp_path / split / 'cat' / '0.png')
    with pytest.raises(DataError, match=r'\(but train, val\)|has no split test \(but train, val\)'):
        load_image_set(tmp_path, 'test')


def test_a_set_that_holds_another_is_noticed(sample):
    part = sample._replace(images=sample.images[::-1][:20], labels=sample.labels[::-1][:20])
    assert sample.contains(sample) and sample.contains(part) and not part.contains(sample)
    changed = part.images.copy()
    changed[0, 0, 0, 0] ^= 1
    assert not sample.contains(part._replace(images=changed))
