"""Folders of images with a folder a class: counted exactly as timm counts them, or the odd one named."""
import json
import os

import pytest
from PIL import Image
from timm.data import create_dataset
from typer.testing import CliRunner

from timm_preact.cli import app
from timm_preact.folders import class_folder, class_folders, split_folder
from timm_preact.images import DataError


@pytest.fixture
def root(tmp_path):
    """test/ with three classes of two images, one behind a link."""
    for name in ('9', '10', 'elsewhere'):
        folder = tmp_path / 'test' / name if name != 'elsewhere' else tmp_path / name
        folder.mkdir(parents=True)
        for i in range(2):
            Image.new('RGB', (4, 4)).save(folder / f'{i}.{"png" if i else "JPG"}')
    os.symlink(tmp_path / 'elsewhere', tmp_path / 'test' / 'b')
    return tmp_path


def test_images_and_labels_are_timms(root):
    folder, theirs = class_folder(root / 'test'), create_dataset('', root / 'test')
    assert folder.classes == ('9', '10', 'b')
    assert [(str(path), label) for path, label in folder.samples] == [
        (theirs.filename(i, absolute=True), theirs.reader[i][1]) for i in range(len(theirs))]


def test_what_is_none_to_timm_and_looks_like_none_is_passed_over(root):
    (root / 'test' / '.ipynb_checkpoints').mkdir()
    (root / 'test' / '.ipynb_checkpoints' / 'notes.json').write_text('{}')
    (root / 'test' / 'README.md').write_text('three classes')
    assert class_folders(root / 'test') == ('9', '10', 'b')


@pytest.mark.parametrize('place, image, sentence', [
    ('empty', None, r'empty holds no image of a kind that timm reads \(.jpeg, .jpg, .png\), and'),
    ('notes', 'a.txt', 'notes holds no image of a kind that timm reads'),
    ('moving', 'a.gif', r'moving holds no image of a kind that timm reads \(.*\), but .gif, and would be no class'),
    ('.ipynb_checkpoints', 'a.png', r'.ipynb_checkpoints is a class to timm, which would shift the labels: remove it'),
    ('9/.ipynb_checkpoints', 'a.png', r'9/.ipynb_checkpoints is a class to timm'),
    ('', 'a.png', 'holds images beside its folders: timm would take them for a class')])
def test_an_odd_folder_is_named(root, place, image, sentence):
    folder = root / 'test' / place
    folder.mkdir(exist_ok=True)
    if image:
        (folder / image).write_bytes(b'')
    with pytest.raises(DataError, match=sentence):
        class_folders(root / 'test')


def test_a_split_is_found_as_timm_finds_it(root):
    os.rename(root / 'test', root / 'val')
    os.rename(root / 'elsewhere', root / 'val' / 'c')
    assert split_folder(root, 'validation') == split_folder(root, 'val') == root / 'val'
    assert split_folder(root / 'val', 'test') == root / 'val'  # classes, not splits
    with pytest.raises(DataError, match=r'has no split test \(but val\): name one of these by --split'):
        split_folder(root, 'test')


# Evaluated


@pytest.fixture
def hundred(sample, tmp_path):
    """Ten images of each class of the sample, every fifth, in colour and in grey."""
    for label, name in enumerate(sample.classes):
        for kind in ('colour', 'grey'):
            (tmp_path / kind / 'test' / name).mkdir(parents=True)
        for i in range(10):
            image = Image.fromarray(sample.images[50 * label + 5 * i])
            image.save(tmp_path / 'colour' / 'test' / name / f'{i}.png')
            image.convert('L').save(tmp_path / 'grey' / 'test' / name / f'{i}.png')
    return tmp_path


def evaluate(data, *options):
    arguments = ['evaluate', '--model', 'preact_resnet20', '--data', str(data), '--json', *options]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def error_of(data, *options):
    return json.loads(evaluate(data, *options).stdout)['error']


def test_a_hundred_images_have_8_percent_error_in_colour_and_11_in_grey(hundred):
    assert (error_of(hundred / 'colour'), error_of(hundred / 'grey')) == (8, 11)


def test_classes_in_another_order_are_matched_by_name(hundred, sample):
    """In the folder's own order every class but the last would be another one."""
    import numpy as np

    from timm_preact.data import load_image_set
    data = load_image_set(hundred / 'colour', 'test')
    order = np.roll(np.arange(10), 3)
    np.savez(hundred / 'test.npz', images=data.images, labels=np.argsort(order)[data.labels],
             classes=np.array(data.classes)[order])
    assert error_of(hundred / 'test.npz') == 8
    assert error_of(hundred / 'test.npz', '--match', 'index') > 80
    per_class = json.loads(evaluate(hundred / 'test.npz').stdout)['per_class']
    assert per_class == json.loads(evaluate(hundred / 'colour').stdout)['per_class']


def test_classes_of_other_names_are_refused_with_the_names_unless_the_order_is_meant(hundred):
    os.rename(hundred / 'colour' / 'test' / 'automobile', hundred / 'colour' / 'test' / 'car')
    result = evaluate(hundred / 'colour')
    assert result.exit_code == 2 and result.stderr.count('\n') == 1
    assert 'classes that the model has not (car), and the model others (automobile)' in result.stderr
    assert error_of(hundred / 'colour', '--match', 'index') > 8  # car stands where automobile does not
    assert 'choose one of name, index' in evaluate(hundred / 'colour', '--match', 'order').stderr


def test_numbers_for_names_are_taken_in_their_order(hundred, sample):
    for i, name in enumerate(sample.classes):
        os.rename(hundred / 'colour' / 'test' / name, hundred / 'colour' / 'test' / str(i))
    assert error_of(hundred / 'colour') == 8


def test_a_missing_split_is_named_with_those_that_are_there(hundred):
    os.rename(hundred / 'colour' / 'test', hundred / 'colour' / 'val')
    result = evaluate(hundred / 'colour')
    assert result.exit_code == 2 and 'has no split test (but val): name one of these by --split' in result.stderr
    assert error_of(hundred / 'colour', '--split', 'validation') == 8
    assert error_of(hundred / 'colour' / 'val') == 8


def test_an_odd_class_is_named_by_the_command(hundred):
    (hundred / 'colour' / 'test' / 'zebra').mkdir()
    result = evaluate(hundred / 'colour')
    assert result.exit_code == 2 and 'zebra holds no image of a kind that timm reads' in result.stderr
