"""Files of other implementations become verified folders by one command; what does not fit is refused in a sentence."""
import json
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from support.torch7_writer import module, write_torch7
from test_cli import refusal, run

from timm_preact.evaluation import eval_transform, evaluate, load_model, open_images
from timm_preact.hub import golden_error, measure, verify_folder
from timm_preact.weights import CHECKSUMS, WeightsError, digest_of, export_model
from timm_preact.weights.fair import read_fair
from timm_preact.weights.keras import read_keras
from timm_preact.weights.mxnet import read_mxnet
from timm_preact.weights.torch7 import Torch7Error

# Written by MXNet 1.9.1: ResNetV2(BottleneckV2, [2, 1, 1, 1], [8, 16, 24, 32, 40], classes=5) of its Gluon model zoo,
# random weights, saved by save_parameters; and its logits for two CIFAR-10 images, prepared as ImageNet's are
GLUON = Path(__file__).parents[1] / 'support' / 'data' / 'gluon_resnet_v2.params'
GLUON_ARGS = dict(layers=(2, 1, 1, 1), channels=(16, 24, 32, 40), stem_chs=8)


def kwargs_of(model_args):
    return [word for key, value in model_args.items() for word in ('--model-kwargs', f'{key}={value}')]


@pytest.fixture
def small(tmp_path):
    """A folder converted from a small net of ours."""
    model = timm.create_model('preact_resnet20', layers=(1, 1, 1))
    save_file(model.state_dict(), tmp_path / 'small.safetensors')
    run('convert', tmp_path / 'small.safetensors', '--name', 'preact_resnet20.mine_cifar10', '--license', 'mit',
        '--model-kwargs', 'layers=(1, 1, 1)', '--to', tmp_path / 'small')
    return tmp_path / 'small', model


# What is made


def test_a_shipped_network_converts_to_the_same_bits(tmp_path):
    output = run('convert', 'preact_resnet20.cifar10', '--to', tmp_path / 'made')
    sha256 = digest_of(tmp_path / 'made' / 'model.safetensors')
    assert sha256 in output
    assert CHECKSUMS['preact_resnet20.cifar10'] == f'sha256:{sha256}'
    assert {path.name for path in (tmp_path / 'made').iterdir()} == {
        'README.md', 'config.json', 'golden.npz', 'model.safetensors'}


def test_a_folder_loads_into_timm_with_its_arguments_and_tag(small):
    folder, model = small
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert loaded.pretrained_cfg['tag'] == 'mine_cifar10' and loaded.pretrained_cfg['license'] == 'mit'
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)


def test_the_card_says_what_was_converted_and_claims_no_result(small):
    text = (small[0] / 'README.md').read_text()
    assert 'from the file `small.safetensors`' in text and digest_of(small[0].parent / 'small.safetensors') in text
    assert "hf-hub:ORG/preact_resnet20.mine_cifar10" in text
    assert 'model-index' not in text and 'license: mit' in text


def test_timms_weights_convert_with_timms_preparation(tmp_path):
    theirs = timm.create_model('resnetv2_18', num_classes=7)
    save_file(theirs.state_dict(), tmp_path / 'theirs.safetensors')
    run('convert', tmp_path / 'theirs.safetensors', '--name', 'preact_resnet18.a1h_in1k', '--to', tmp_path / 'made')
    ours = verify_folder(tmp_path / 'made')
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)
    assert ours.num_classes == 7 and tuple(ours.pretrained_cfg['mean']) == (0.5, 0.5, 0.5)


def test_the_config_beside_a_file_says_how_images_are_prepared(tmp_path):
    theirs = timm.create_model('resnetv2_18')
    timm.models.save_for_hf(theirs, tmp_path / 'theirs', safe_serialization=True)
    config = json.loads((tmp_path / 'theirs' / 'config.json').read_text())
    config['pretrained_cfg'].update(crop_pct=0.95, mean=[0.1, 0.2, 0.3], license='apache-2.0')
    (tmp_path / 'theirs' / 'config.json').write_text(json.dumps(config))
    run('convert', tmp_path / 'theirs', '--name', 'preact_resnet18.ra4_in1k', '--to', tmp_path / 'made')
    cfg = json.loads((tmp_path / 'made' / 'config.json').read_text())['pretrained_cfg']
    assert (cfg['crop_pct'], cfg['mean'], cfg['license']) == (0.95, [0.1, 0.2, 0.3], 'apache-2.0')


def test_torchvisions_weights_convert(tmp_path):
    theirs = torchvision.models.resnet101(num_classes=3)
    torch.save(theirs.state_dict(), tmp_path / 'resnet101.pth')
    run('convert', tmp_path / 'resnet101.pth', '--name', 'preact_resnet101_orig.tv_in1k', '--to', tmp_path / 'made')
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.eval()(x)
        assert expected.std() > 1e-6
        torch.testing.assert_close(verify_folder(tmp_path / 'made')(x), expected, rtol=1e-4, atol=1e-5)
    assert 'A post-activation residual network of 101 layers' in (tmp_path / 'made' / 'README.md').read_text()


@pytest.mark.parametrize('zipped', [False, True])
def test_gluons_weights_give_gluons_logits_with_the_input_norm_folded_into_mean_and_std(tmp_path, zipped):
    file = GLUON
    if zipped:
        file = tmp_path / 'gluon.zip'
        with zipfile.ZipFile(file, 'w') as archive:
            archive.write(GLUON, 'resnet_v2.params')
    run('convert', file, '--name', 'preact_resnet50.gluon_in1k', *kwargs_of(GLUON_ARGS), '--to', tmp_path / 'made')
    model = verify_folder(tmp_path / 'made')
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ('mean', 'std'))
    assert mean[0] != 0.485
    with np.load(GLUON.with_suffix('.npz')) as theirs, torch.no_grad():
        logits = model((torch.from_numpy(theirs['images']).permute(0, 3, 1, 2) / 255 - mean) / std)
        assert np.abs(logits.numpy() - theirs['logits']).max() <= 1e-5 * np.abs(theirs['logits']).max()


# Verification


def test_verify_replays_the_stored_logits(small):
    assert golden_error(small[0], verify_folder(small[0])) <= 1e-6
    assert 'stored logits replayed' in run('verify', small[0])


@pytest.mark.parametrize('name', ['model.safetensors', 'golden.npz'])
def test_verify_refuses_a_flipped_bit(small, name):
    content = bytearray((small[0] / name).read_bytes())
    content[-1] ^= 1
    (small[0] / name).write_bytes(content)
    assert 'is damaged' in refusal('verify', small[0])


def test_verify_refuses_weights_that_give_other_logits(small):
    """Whole by every hash, but not the network that was converted."""
    folder, _ = small
    tensors = load_file(folder / 'model.safetensors')
    tensors['norm.bias'] = tensors['norm.bias'] + 1
    save_file(tensors, folder / 'model.safetensors')
    config = json.loads((folder / 'config.json').read_text())
    config['sha256'] = digest_of(folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(config))
    assert 'gives other logits than when it was made' in refusal('verify', folder)


@pytest.mark.parametrize('name', ['model.safetensors', 'config.json', 'README.md'])
def test_verify_names_what_is_missing(small, name):
    (small[0] / name).unlink()
    assert f'has no {name}' in refusal('verify', small[0])


def test_verify_measures_both_protocols_of_the_paper_and_records_them(tmp_path, sample):
    for label in range(3):
        folder = tmp_path / 'images' / f'class{label}'
        folder.mkdir(parents=True)
        for i in range(2):
            Image.fromarray(sample.images[50 * label + i]).resize((350, 330)).save(folder / f'{i}.png')
    theirs = timm.create_model('resnetv2_18', num_classes=3)
    save_file(theirs.state_dict(), tmp_path / 'theirs.safetensors')
    run('convert', tmp_path / 'theirs.safetensors', '--name', 'preact_resnet18.mine_in1k', '--license', 'mit', '--to',
        tmp_path / 'made')
    output = run('verify', tmp_path / 'made', '--data', tmp_path / 'images', '--record')
    assert '224x224, crop 0.875: top-1' in output and '320x320, crop 1.0: top-1' in output and 'of 6 images' in output
    evaluations = json.loads((tmp_path / 'made' / 'config.json').read_text())['evaluations']
    assert [(e['input_size'], e['crop_pct'], e['images']) for e in evaluations] == [(224, 0.875, 6), (320, 1.0, 6)]
    text = (tmp_path / 'made' / 'README.md').read_text()
    assert f"value: {round(evaluations[0]['top1'], 2)}" in text and 'model-index' in text
    verify_folder(tmp_path / 'made')


def test_kerass_networks_are_measured_at_their_publishers_299(sample, tmp_path):
    """And every other at the paper's 320, or at its own size."""
    folder = tmp_path / 'test' / 'n01440764'
    folder.mkdir(parents=True)
    Image.fromarray(sample.images[0]).save(folder / '0.png')
    np.savez(tmp_path / 'test.npz', images=sample.images[:2], labels=np.arange(2), classes=np.arange(1000).astype(str))
    sizes = {name: [(r['input_size'], r['crop_pct']) for r in measure(
        timm.create_model(name, layers=(1, 1, 1, 1), channels=(16, 16, 16, 16)).eval(), str(tmp_path / 'test.npz'),
        'test')] for name in ('preact_resnet50_keras', 'preact_resnet18', 'preact_resnet200_fb')}
    assert sizes == {'preact_resnet50_keras': [(224, 0.875), (299, 0.875)],
                     'preact_resnet18': [(224, 0.875), (320, 1.0)], 'preact_resnet200_fb': [(224, 0.875), (320, 1.0)]}


@pytest.fixture
def wide(sample, tmp_path):
    """A folder of train.cifar's kind, for images of 48x64, and such images."""
    (folder := tmp_path / 'trained').mkdir()
    model = timm.create_model('preact_resnet20', pretrained=True)
    model.pretrained_cfg.update(input_size=(3, 48, 64))
    export_model(model, folder)
    images = np.stack([np.asarray(Image.fromarray(image).resize((64, 48))) for image in sample.images[::5]])
    np.savez(tmp_path / 'wide.npz', images=images, labels=sample.labels[::5], classes=np.array(sample.classes))
    return folder, tmp_path / 'wide.npz'


def test_a_network_for_images_that_are_not_square_is_tested_alike_by_every_command(wide, tmp_path):
    trained, data = wide
    run('convert', trained, '--name', 'preact_resnet20.mine_cifar10', '--to', tmp_path / 'made')
    evaluated = json.loads(run('evaluate', '--weights', trained, '--data', data, '--json'))
    top1, top5 = evaluated['top1'], evaluated['top5']
    assert evaluated['input_size'] == [48, 64] and 30 < top1 < 70
    assert f'48x64, crop 1.0: top-1 {top1:.2f} %, top-5 {top5:.2f} % of 100 images' in run(
        'verify', tmp_path / 'made', '--data', data, '--record')
    config = json.loads((tmp_path / 'made' / 'config.json').read_text())
    assert config['evaluations'] == [dict(
        data='wide.npz', split='test', images=100, input_size=[48, 64], crop_pct=1.0, top1=top1, top5=top5)]
    card = (tmp_path / 'made' / 'README.md').read_text()
    assert f'| top-1, top-5 error at 48x64, crop 1.0 | **{100 - top1:.2f} %**, {100 - top5:.2f} % on 100' in card
    assert 'name: top-1 at 48x64, crop 1.0' in card and 'are resized and cropped to 48x64' in card
    assert '0.27 M, 121.7 M' in card  # three times the multiply-adds of 32x32
    for path in (trained, tmp_path / 'made'):
        model = load_model('preact_resnet20', str(path))
        assert eval_transform(model)(Image.new('RGB', (64, 48))).shape == (3, 48, 64)
        scores = evaluate(model, open_images(str(data), 'test', eval_transform(model)))
        assert (round(scores.top1, 4), round(scores.top5, 4)) == (top1, top5)


@pytest.mark.parametrize('channels', [1, 4])
def test_a_network_of_another_number_of_channels_is_converted_or_refused(channels, tmp_path):
    model = timm.create_model('preact_resnet20', in_chans=channels)
    torch.save(model.state_dict(), tmp_path / 'w.pth')
    arguments = ['convert', tmp_path / 'w.pth', '--name', 'preact_resnet20.mine', '--license', 'mit', '--to',
                 tmp_path / 'made']
    if channels == 4:
        assert 'a model of 4 input channels has no golden images: convert one with 1 or 3' in refusal(*arguments)
        assert not (tmp_path / 'made').exists()
        return
    run(*arguments)
    assert 'stored logits replayed within' in run('verify', tmp_path / 'made')
    config = json.loads((tmp_path / 'made' / 'config.json').read_text())
    assert config['pretrained_cfg']['input_size'] == [1, 32, 32] and config['model_args']['in_chans'] == 1
    with np.load(tmp_path / 'made' / 'golden.npz') as stored:
        assert stored['images'].shape == (2, 1, 32, 32)


def test_the_papers_protocol_is_the_whole_of_a_320_pixel_image(sample):
    """One 320x320 crop where the shorter side is 320, and 224x224 where it is 256."""
    model = timm.create_model('preact_resnet18', device='meta')
    image = Image.fromarray(sample.images[0]).resize((700, 350))
    for size, crop_pct, shorter in ((320, 1.0, 320), (224, 0.875, 256)):
        transform = eval_transform(model, size, crop_pct)
        assert transform(image).shape == (3, size, size)
        assert transform.transforms[0](image).size == (2 * shorter, shorter)


# Refusals


def test_a_file_is_not_converted_into_somebody_elses_network(tmp_path):
    save_file({'x': torch.zeros(1)}, tmp_path / 'x.safetensors')
    for name in ('resnet50', 'preact_resnet21'):
        assert 'say by --name' in refusal(
            'convert', tmp_path / 'x.safetensors', '--name', name, '--to', tmp_path / 'made')


@pytest.mark.parametrize('name', ['resnet.pth', 'resnet50.th', 'nowhere/resnet-200.t7', 'preresnet18.pth.zip'])
def test_a_file_that_does_not_exist_is_said_not_to(name, tmp_path):
    assert f'{name} does not exist' in refusal('convert', name, '--to', tmp_path / 'made')


def test_a_source_that_is_neither_file_nor_tag_is_refused(tmp_path):
    assert 'is no file and no name with a tag' in refusal('convert', 'preact_resnet50', '--to', tmp_path / 'made')
    assert 'did you mean' in refusal('convert', 'preact_resnet50.pcv', '--to', tmp_path / 'made')


def test_the_wrong_layout_is_refused_with_the_name_that_fits(tmp_path):
    save_file(timm.create_model('resnetv2_34').state_dict(), tmp_path / 'theirs.safetensors')
    output = refusal('convert', tmp_path / 'theirs.safetensors', '--name', 'preact_resnet18', '--to', tmp_path / 'made')
    assert 'The layout is that of preact_resnet34_timm.' in output
    assert not (tmp_path / 'made').exists()


def test_a_folder_in_the_way_is_left_alone(tmp_path):
    (tmp_path / 'made').mkdir()
    (tmp_path / 'made' / 'mine.txt').write_text('mine')
    assert 'exists: name a new folder' in refusal('convert', 'preact_resnet20.cifar10', '--to', tmp_path / 'made')
    assert [path.name for path in (tmp_path / 'made').iterdir()] == ['mine.txt']


def test_a_failed_conversion_leaves_nothing(tmp_path):
    (tmp_path / 'cut.params').write_bytes(GLUON.read_bytes()[:-100])
    refusal('convert', tmp_path / 'cut.params', '--name', 'preact_resnet50', '--to', tmp_path / 'made')
    assert [path.name for path in tmp_path.iterdir()] == ['cut.params']


def test_a_full_disk_leaves_nothing(tmp_path):
    """A limit of 500 kB a file stands in for the disk: the weights have 1.1 MB."""
    code = ('import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000));'
            f'sys.argv[1:] = ["convert", "preact_resnet20.cifar10", "--to", {str(tmp_path / "made")!r}];'
            'from timm_preact.cli import run; run()')
    process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert process.returncode == 2 and 'cannot be written' in process.stderr and 'make room' in process.stderr
    assert process.stderr.count('\n') == 1 and list(tmp_path.iterdir()) == []


def test_a_file_under_a_published_tag_must_be_the_published_one(tmp_path):
    file = tmp_path / 'mine.pth.zip'
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('mine.pth', b'not theirs')
    output = refusal('convert', file, '--name', 'preact_resnet18.pcv_in1k', '--to', tmp_path / 'made')
    assert output.startswith(f'error: {file} is damaged (its sha1 is not 5651bc2dbb20')


def test_an_argument_without_a_value_is_refused(tmp_path):
    assert 'write KEY=VALUE' in refusal(
        'convert', GLUON, '--name', 'preact_resnet50', '--model-kwargs', 'stem_norm', '--to', tmp_path / 'made')


def test_an_argument_that_the_network_does_not_have_is_refused(tmp_path):
    assert 'colour' in refusal(
        'convert', GLUON, '--name', 'preact_resnet50', '--model-kwargs', 'colour=1', '--to', tmp_path / 'made')


def test_a_pickle_is_not_executed(tmp_path):
    class Harm:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'harm')!r}, 'w').close()",)
    torch.save({'state_dict': Harm()}, tmp_path / 'harm.pth')
    output = refusal('convert', tmp_path / 'harm.pth', '--name', 'preact_resnet20', '--to', tmp_path / 'made')
    assert 'is not a whole weight file' in output and not (tmp_path / 'harm').exists()


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'h5py', None)
    (tmp_path / 'x.h5').write_bytes(b'x')
    assert "pip install 'timm-preact[keras]'" in refusal(
        'convert', tmp_path / 'x.h5', '--name', 'preact_resnet50_keras', '--to', tmp_path / 'made')


# Readers: what a file refers to is no more than what it holds


def test_a_t7_file_that_refers_to_a_tensor_again_and_again_is_refused_within_its_size(tmp_path):
    norm = module('nn.SpatialBatchNormalization', eps=1e-5, running_std=np.ones(100_000, np.float32))
    others = [module('nn.SpatialBatchNormalization', **norm.fields) for _ in range(2000)]
    file = write_torch7(tmp_path / 'x.t7', module('nn.Sequential', modules=others))
    tracemalloc.start()
    with pytest.raises(Torch7Error, match='again and again'):
        read_fair(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * file.stat().st_size  # 800 MB if all were copied, of a file of 0.5 MB


@pytest.mark.parametrize('leaf', ['nn.Identity', 'nn.Sequential'])
def test_a_t7_file_whose_modules_multiply_is_refused_at_once(tmp_path, leaf):
    tree = module(leaf, modules=[module('nn.Identity')])
    for _ in range(6):
        tree = module('nn.Sequential', modules=[tree] * 100)
    start = time.perf_counter()
    with pytest.raises(Torch7Error, match='again and again'):
        read_fair(write_torch7(tmp_path / 'x.t7', tree))
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize('make', ['compressed', 'linked'])
def test_an_h5_file_that_does_not_hold_its_tensors_is_refused(tmp_path, make):
    with h5py.File(tmp_path / 'other.h5', 'w') as other, h5py.File(tmp_path / 'x.h5', 'w') as file:
        file.attrs['layer_names'] = [b'conv1_conv']
        group = file.create_group('conv1_conv')
        group.attrs['weight_names'] = [b'conv1_conv/kernel:0']
        where = group if make == 'compressed' else other
        where.create_dataset('conv1_conv/kernel:0', data=np.zeros(1_000_000, np.float32), compression='gzip')
        if make == 'linked':
            group['conv1_conv/kernel:0'] = h5py.ExternalLink(str(tmp_path / 'other.h5'), 'conv1_conv/kernel:0')
    with pytest.raises(WeightsError, match='smaller than its tensors' if make == 'compressed' else 'not in the file'):
        read_keras(tmp_path / 'x.h5')


# MXNet's files


@pytest.mark.parametrize('size', [*range(0, 200, 7), 5000, 40_000])
def test_a_cut_params_file_is_refused(tmp_path, size):
    (tmp_path / 'cut.params').write_bytes(GLUON.read_bytes()[:size])
    with pytest.raises(WeightsError, match='is no whole .params file'):
        read_mxnet(tmp_path / 'cut.params')


@pytest.mark.parametrize('at', range(0, 72, 4))
@pytest.mark.parametrize('value', [-1, 2 ** 31 - 1, 7])
def test_a_params_file_with_a_wrong_field_is_refused_or_read(tmp_path, at, value):
    content = bytearray(GLUON.read_bytes())
    struct.pack_into('<i', content, at, value)
    (tmp_path / 'wrong.params').write_bytes(content)
    try:
        read_mxnet(tmp_path / 'wrong.params')
    except WeightsError:
        return
    assert at in (44, 48) or at >= 56  # the device, and elements of the first array
