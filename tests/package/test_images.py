"""Image files: which are read, and the sentence for each that is not."""
import json
import os

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from typer.testing import CliRunner

from timm_preact.cli import app
from timm_preact.evaluation import eval_transform
from timm_preact.images import DataError, find_files, image_files, open_image


def predict(*arguments):
    """Exit code, what is printed and the error of predict."""
    result = CliRunner().invoke(app, ['predict', *map(str, arguments)], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def sixteen_bits(image):
    """A grey image with 16 bits a pixel whose high bytes are those of its 8-bit copy."""
    return Image.fromarray(np.asarray(image.convert('L')).astype(np.uint16) * 257)


@pytest.fixture
def ship(sample):
    return Image.fromarray(sample.images[400])


def test_eight_bits_are_read_whatever_they_are_called(ship, tmp_path):
    for mode, name in (('L', 'grey.png'), ('P', 'palette.gif'), ('RGBA', 'alpha.png'), ('CMYK', 'print.tif'),
                       ('LA', 'grey_alpha.png'), ('1', 'black_white.png'), ('RGB', 'shot.webp')):
        ship.convert(mode).save(tmp_path / name)
        image = open_image(tmp_path / name)
        assert image.mode == 'RGB' and image.size == (32, 32)


@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_sixteen_bits_are_refused_not_cut_off_at_255(ship, tmp_path, suffix):
    sixteen_bits(ship).save(tmp_path / f'deep.{suffix}')
    with pytest.raises(DataError, match='deep.* has pixels of the kind I;16: write it with 8 bits a channel'):
        open_image(tmp_path / f'deep.{suffix}')
    Image.fromarray(np.asarray(ship.convert('L'), np.float32)).save(tmp_path / 'float.tif')
    with pytest.raises(DataError, match='of the kind F'):
        open_image(tmp_path / 'float.tif')
    code, _, error = predict(tmp_path / f'deep.{suffix}')
    assert code == 2 and 'write it with 8 bits' in error


def test_a_bad_file_costs_its_own_row_and_the_exit_code(ship, tmp_path):
    ship.save(tmp_path / 'a.png')
    (tmp_path / 'b.png').write_bytes(b'no image')
    ship.save(tmp_path / 'c.png')
    code, output, _ = predict(tmp_path, '--top-k', 1)
    assert code == 1 and 'is no image that Pillow can' in ' '.join(output.split()) and output.count('ship') == 2
    code, output, _ = predict(tmp_path, '--json')
    rows = json.loads(output)
    assert code == 1 and [sorted(row) for row in rows] == [['file', 'predictions'], ['error', 'file'],
                                                            ['file', 'predictions']]


def test_a_folder_is_searched_for_what_pillow_decodes(ship, tmp_path):
    for name in ('a.png', 'B.JPG', 'inner/c.webp'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        ship.save(tmp_path / name)
    for name in ('weights.h5', 'paper.pdf', '._a.png', '.hidden/d.png', 'notes.txt', 'film.mp4'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'something else')
    assert [file.relative_to(tmp_path).as_posix() for file in image_files([tmp_path])] == [
        'B.JPG', 'a.png', 'inner/c.webp']
    assert predict(tmp_path)[0] == 0


def test_links_to_folders_are_followed_once(ship, tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    for i in range(10):
        ship.save(tmp_path / 'elsewhere' / f'{i}.png')
    images = tmp_path / 'images'
    images.mkdir()
    ship.save(images / 'a.png')
    ship.save(images / 'b.png')
    os.symlink(tmp_path / 'elsewhere', images / 'more')
    os.symlink(images, images / 'again')
    assert len(list(find_files(images))) == 12
    assert len(json.loads(predict(images, '--json')[1])) == 12


def test_an_image_over_pillows_limit_is_said_to_be_too_large(tmp_path, monkeypatch):
    Image.new('1', (400, 300)).save(tmp_path / 'large.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 50_000)
    with pytest.raises(DataError, match='large.png is too large, over 0 million pixels: scale it down'):
        open_image(tmp_path / 'large.png')


def test_the_exif_tag_of_a_rotation_is_ignored_as_timm_ignores_it(sample, tmp_path):
    image, exif = Image.fromarray(sample.images[0]), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / 'turned.png', exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / 'turned.png')), sample.images[0])


def test_brackets_in_names_are_printed_as_they_are(ship, tmp_path):
    for name in ('shot[final].png', 'a[/b]', ':smile:.png'):
        path = tmp_path / name if name.endswith('png') else tmp_path / name / 's.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        ship.save(path)
        code, output, _ = predict(path, '--top-k', 1)
        assert code == 0 and name in output.replace('\n', '').replace('│', '').replace(' ', '')


def test_names_that_are_no_utf8_are_printed(ship, tmp_path):
    path = os.fsencode(tmp_path) + b'/caf\xe9.png'
    with open(path, 'wb') as file:
        ship.save(file, 'png')
    result = CliRunner().invoke(app, ['predict', os.fsdecode(path), '--top-k', '1'], catch_exceptions=False)
    assert result.exit_code == 0 and '\\udce9' in result.stdout
    assert json.loads(predict(tmp_path, '--json')[1])[0]['file'] == os.fsdecode(path)


def test_a_network_of_one_channel_reads_grey_images_and_one_of_four_none(npz_folder, ship, tmp_path):
    """From files and from arrays; its mean is that of the three channels'."""
    def evaluate(channels):
        model = timm.create_model('preact_resnet20', pretrained=True, in_chans=channels)
        folder = tmp_path / str(channels)
        folder.mkdir(exist_ok=True)
        torch.save(model.state_dict(), folder / 'w.pth')
        (folder / 'config.json').write_text(json.dumps(dict(
            architecture='preact_resnet20', model_args=dict(in_chans=channels))))
        return CliRunner().invoke(app, [
            'evaluate', '--model', 'preact_resnet20', '--data', str(npz_folder), '--json', '--weights',
            str(folder / 'w.pth')], catch_exceptions=False)

    assert json.loads(evaluate(3).stdout)['top1'] == 89
    grey = evaluate(1)
    assert grey.exit_code == 0 and json.loads(grey.stdout)['top1'] > 50
    result = evaluate(4)
    assert result.exit_code == 2 and 'a network of 4 input channels takes no image files' in result.stderr
    x = eval_transform(timm.create_model('preact_resnet20', in_chans=1))(ship)
    grey = np.asarray(ship.convert('L')) / 255
    mean, std = (0.4914 + 0.4822 + 0.4465) / 3, (0.2470 + 0.2435 + 0.2616) / 3
    np.testing.assert_allclose(x[0], (grey - mean) / std, rtol=1e-4)
