"""Whatever file of weights convert reads, every command reads that takes --weights."""
import json
import zipfile

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from support.published import fair_network, publish_pytorchcv, run_torch7, stored
from support.torch7_writer import write_torch7
from test_cli import check_of, refusal, run
from test_hub_convert import GLUON, GLUON_ARGS

from timm_preact.evaluation import eval_transform, load_model
from timm_preact.loading import load_into


@pytest.fixture(scope='module')
def pytorchcv(tmp_path_factory, sample):
    """pytorchcv's ResNet-20, and the folder with its .pth.zip and its .pth."""
    folder = tmp_path_factory.mktemp('pytorchcv')
    images = torch.from_numpy(sample.images[::25]).permute(0, 3, 1, 2) / 255
    published = publish_pytorchcv('preact_resnet20_pcv.cifar10', folder, images)
    with zipfile.ZipFile(published.file) as archive:
        (folder / 'theirs.pth').write_bytes(archive.read(archive.namelist()[0]))
    return published


@pytest.mark.parametrize('kind', ['.pth', '.pth.zip'])
def test_predict_and_evaluate_read_pytorchcvs_files(kind, pytorchcv, sample, npz_folder, tmp_path):
    file = pytorchcv.file if kind == '.pth.zip' else pytorchcv.file.parent / 'theirs.pth'
    options = '--model', 'preact_resnet20_pcv', '--weights', file, '--json'
    image = Image.fromarray(sample.images[0])
    image.save(tmp_path / 'image.png')
    (result,) = json.loads(run('predict', tmp_path / 'image.png', *options))
    transform = eval_transform(timm.create_model('preact_resnet20_pcv'))
    with torch.inference_mode():
        expected = pytorchcv.original(transform(image)[None]).softmax(1)[0]
    best = result['predictions'][0]
    assert best['class'] == sample.classes[expected.argmax()]
    assert best['probability'] == pytest.approx(expected.max().item(), abs=1e-3)
    assert json.loads(run('evaluate', '--data', npz_folder, *options))['images'] == 100


def test_propagate_reads_pytorchcvs_file(pytorchcv):
    code, lines = check_of('preact_resnet20_pcv', '--batch-size', 4, '--weights', pytorchcv.file)
    assert code == 0 and [line.split(':')[0] for line in lines] == [
        'preact_resnet20_pcv (initialisation)', f'preact_resnet20_pcv ({pytorchcv.file.name})']


def test_a_gluon_file_gives_gluons_logits():
    model = load_model('preact_resnet50', str(GLUON), num_classes=5, model_kwargs=GLUON_ARGS)
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ('mean', 'std'))
    with np.load(GLUON.with_suffix('.npz')) as theirs, torch.no_grad():
        logits = model((torch.from_numpy(theirs['images']).permute(0, 3, 1, 2) / 255 - mean) / std)
        assert np.abs(logits.numpy() - theirs['logits']).max() <= 1e-5 * np.abs(theirs['logits']).max()


def test_a_torch7_file_gives_torch7s_logits(tmp_path):
    network, x = fair_network((1, 1, 1, 1), classes=7), torch.randn(2, 3, 224, 224)
    file = write_torch7(tmp_path / 'theirs.t7', stored(network))
    model = load_model('preact_resnet200_fb', str(file), num_classes=7, model_kwargs=dict(layers=(1, 1, 1, 1)))
    with torch.no_grad():
        torch.testing.assert_close(model(x), run_torch7(network, x), rtol=1e-3, atol=1e-4)


def test_a_folder_of_timms_resnetv2_is_read_with_its_classes_and_preparation(tmp_path):
    theirs = timm.create_model('resnetv2_18', num_classes=7)
    timm.models.save_for_hf(theirs, tmp_path / 'theirs', safe_serialization=True)
    model = load_model('preact_resnet18', str(tmp_path / 'theirs'))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)
    assert model.num_classes == 7 and tuple(model.pretrained_cfg['mean']) == (0.5, 0.5, 0.5)


def test_a_network_that_is_not_ours_takes_its_own_names(tmp_path):
    """timm's resnets name their tensors as torchvision's, which are a layout to a network of ours."""
    theirs = timm.create_model('resnet18', num_classes=3)
    torch.save(theirs.state_dict(), tmp_path / 'w.pth')
    loaded = load_into('resnet18', tmp_path / 'w.pth', dict(num_classes=3))
    assert loaded.layout is None and torch.equal(loaded.model.fc.weight, theirs.fc.weight)


COMMANDS = {
    'convert': ['convert', '{file}', '--name', '{name}', '--to', 'made'],
    'evaluate': ['evaluate', '--model', '{name}', '--data', 'data.npz', '--weights', '{file}'],
    'export': ['export', '{name}', '--to', 'network.pt', '--weights', '{file}'],
}


@pytest.mark.parametrize('command', COMMANDS)
def test_what_does_not_fit_is_refused_alike(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(timm.create_model('resnetv2_34').state_dict(), 'theirs.safetensors')
    (tmp_path / 'cut.params').write_bytes(GLUON.read_bytes()[:-100])
    for file, sentence in (
            ('theirs.safetensors', 'The layout is that of preact_resnet34 with stem_norm=False'),
            ('cut.params', 'is no whole .params file'), ('nowhere.t7', 'nowhere.t7')):
        assert sentence in refusal(*(word.format(file=file, name='preact_resnet18') for word in COMMANDS[command]))


def test_classes_and_channels_are_the_networks_own_or_the_files(tmp_path):
    save_file(timm.create_model('preact_resnet20', num_classes=3, in_chans=1).state_dict(), tmp_path / 'w.safetensors')
    model = load_into('preact_resnet20', tmp_path / 'w.safetensors', as_in_file=True).model
    assert (model.num_classes, model.in_chans, model.pretrained_cfg['input_size']) == (3, 1, (1, 32, 32))
    with pytest.raises(ValueError, match='does not fit preact_resnet20'):
        load_into('preact_resnet20', tmp_path / 'w.safetensors')
