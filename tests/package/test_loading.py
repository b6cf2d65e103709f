"""Whatever file of weights convert reads, every command reads that takes --weights."""
import argparse
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from support.published import (
    OriginalResNet,
    fair_network,
    fill,
    publish_akamaster,
    publish_pytorchcv,
    run_torch7,
    stored,
)
from support.torch7_writer import write_torch7
from test_cli import check_of, refusal, run
from test_hub_convert import GLUON, GLUON_ARGS

from timm_preact.data import CIFAR10_CLASSES, CIFAR100_CLASSES
from timm_preact.errors import UserError
from timm_preact.evaluation import class_names, eval_transform, load_model, resolve_protocol
from timm_preact.loading import find_name, load_into
from timm_preact.preact_resnet import MODEL_ARGS, find_fitting
from timm_preact.weights import CHECKSUMS, WeightsError, digest_of, export_model, shipped_weights
from timm_preact.weights.keymaps import from_ours
from timm_preact.weights.sources import SOURCES


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
    options = '--weights', file, '--json'
    image = Image.fromarray(sample.images[0])
    image.save(tmp_path / 'image.png')
    transform = eval_transform(timm.create_model('preact_resnet20_pcv'))
    with torch.inference_mode():
        expected = pytorchcv.original(transform(image)[None]).softmax(1)[0]
    label = expected.argmax().item()
    names = {'preact_resnet20_pcv': str(label), 'preact_resnet20_pcv.cifar10': sample.classes[label]}
    for name, label_name in names.items():
        (result,) = json.loads(run('predict', tmp_path / 'image.png', '--model', name, *options))
        best = result['predictions'][0]
        assert best['class'] == label_name
        assert best['probability'] == pytest.approx(expected.max().item(), abs=1e-3)
        assert json.loads(run('evaluate', '--model', name, '--data', npz_folder, *options))['images'] == 100


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
            ('theirs.safetensors', 'The layout is that of preact_resnet34_timm.'),
            ('cut.params', 'is no whole .params file'), ('nowhere.t7', 'nowhere.t7')):
        assert sentence in refusal(*(word.format(file=file, name='preact_resnet18') for word in COMMANDS[command]))


def test_classes_and_channels_are_the_networks_own_or_the_files(tmp_path):
    save_file(timm.create_model('preact_resnet20', num_classes=3, in_chans=1).state_dict(), tmp_path / 'w.safetensors')
    model = load_into('preact_resnet20', tmp_path / 'w.safetensors', as_in_file=True).model
    assert (model.num_classes, model.in_chans, model.pretrained_cfg['input_size']) == (3, 1, (1, 32, 32))
    with pytest.raises(ValueError, match='does not fit preact_resnet20'):
        load_into('preact_resnet20', tmp_path / 'w.safetensors')


# A file finds its name


AKAMASTER = 'preact_resnet20_orig.aka_cifar10'
LAYOUTS = {'_pcv': 'pytorchcv_cifar', '_fb': 'fair', '_keras': 'keras', '_orig': 'akamaster', '_chen': 'torchvision',
           '_timm': 'timm_resnetv2'}


def layout_of(name):
    return next((layout for part, layout in LAYOUTS.items() if name.endswith(part)), 'pytorchcv_imagenet')


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.slow if '542' in name or '1001' in name or '1202' in name else ())
    for name in dict.fromkeys(name.partition('.')[0] for name in SOURCES)])
def test_the_tensors_of_every_published_layout_fit_one_name(name):
    tensors = from_ours(timm.create_model(name, device='meta', num_classes=7).state_dict(), layout_of(name))
    assert find_fitting(tensors) == ([name], None)


@pytest.mark.parametrize('source, name', [
    ('timm_resnetv2', 'preact_resnet34_timm'), ('timm_resnetv2', 'preact_resnet152'),
    ('gluon', 'preact_resnet50'), ('torchvision', 'preact_resnet101_orig')])
def test_the_tensors_of_other_implementations_fit_one_name(source, name):
    args = dict(stem_norm=False) if source == 'timm_resnetv2' else {}
    tensors = from_ours(timm.create_model(name, device='meta', **args).state_dict(), source)
    assert find_fitting(tensors) == ([name], None)


def test_tensors_by_our_names_fit_every_name_that_has_them():
    """Where only the function differs, the file cannot say which it is."""
    def fitting(name):
        return find_fitting(timm.create_model(name, device='meta').state_dict())[0]

    assert fitting('preact_resnet20') == ['preact_resnet20']
    assert fitting('preact_resnet110_orig_excl_gate') == [
        'preact_resnet110_orig_excl_gate', 'preact_resnet110_orig_shortcut_gate']
    assert fitting('preact_resnet164') == ['preact_resnet164', 'preact_resnet164_pcv']
    assert fitting('preact_resnet110_orig') == [
        'preact_resnet110_orig', 'preact_resnet110_relu_before_add', 'preact_resnet110_relu_only',
        'preact_resnet110_orig_const_scale', 'preact_resnet110_orig_dropout_shortcut']


@pytest.fixture(scope='module')
def akamaster(tmp_path_factory, sample):
    """A file with akamaster's ResNet-20."""
    images = torch.from_numpy(sample.images[::25]).permute(0, 3, 1, 2) / 255
    return publish_akamaster(AKAMASTER, tmp_path_factory.mktemp('akamaster'), images)


def test_a_published_file_has_the_tag_too(akamaster, monkeypatch):
    assert find_name(akamaster.file) == 'preact_resnet20_orig'
    monkeypatch.setitem(CHECKSUMS, AKAMASTER, akamaster.checksum)
    assert find_name(akamaster.file) == AKAMASTER


def test_commands_find_the_name_of_a_file(akamaster, sample, npz_folder, tmp_path):
    assert 'holds preact_resnet20_orig.custom' in run('convert', akamaster.file, '--to', tmp_path / 'made')
    Image.fromarray(sample.images[0]).save(tmp_path / 'image.png')
    scores = []
    for weights in (akamaster.file, tmp_path / 'made'):
        (result,) = json.loads(run('predict', tmp_path / 'image.png', '--weights', weights, '--json'))
        scored = json.loads(run('evaluate', '--data', npz_folder, '--weights', weights, '--json'))
        assert scored['model'] == 'preact_resnet20_orig' and scored['images'] == 100
        scores.append((result['predictions'][0]['class'], scored['top1']))
    assert scores[0] == scores[1]
    transform = eval_transform(timm.create_model(AKAMASTER))
    with torch.inference_mode():
        expected = akamaster.original(transform(Image.fromarray(sample.images[0]))[None]).argmax()
    assert scores[0][0] == str(expected.item())  # the tensors do not show on which ten classes they were trained


def test_a_file_whose_classes_are_its_own_is_evaluated_without_being_told(npz_folder, tmp_path):
    save_file(timm.create_model('preact_resnet18', num_classes=10).state_dict(), tmp_path / 'w.safetensors')
    output = run('evaluate', '--data', npz_folder, '--weights', tmp_path / 'w.safetensors', '--img-size', 32, '--json')
    assert json.loads(output)['model'] == 'preact_resnet18'


def test_the_config_beside_a_file_names_its_network(tmp_path):
    model = timm.create_model('preact_resnet110_orig', layers=(1, 1, 1))
    timm.models.save_for_hf(model, tmp_path / 'saved', model_args=dict(layers=(1, 1, 1)), safe_serialization=True)
    assert find_name(tmp_path / 'saved') == 'preact_resnet110_orig'


def test_several_names_are_all_named(tmp_path, npz_folder):
    torch.save(timm.create_model('preact_resnet164').state_dict(), tmp_path / 'w.pth')
    fits = f'{tmp_path / "w.pth"} fits preact_resnet164 and preact_resnet164_pcv, whose tensors are alike: say by'
    assert f'{fits} --name which it is' in refusal('convert', tmp_path / 'w.pth', '--to', tmp_path / 'made')
    assert f'{fits} --model which it is' in refusal('evaluate', '--data', npz_folder, '--weights', tmp_path / 'w.pth')


def test_evaluate_needs_a_name_or_a_file(npz_folder):
    assert 'name one by --model, or a file of weights by --weights' in refusal('evaluate', '--data', npz_folder)


def test_arguments_count_in_the_search(tmp_path):
    save_file(timm.create_model('preact_resnet20', channels=(8, 16, 32), stem_chs=8).state_dict(),
              tmp_path / 'w.safetensors')
    options = ['convert', tmp_path / 'w.safetensors', '--to', tmp_path / 'made', '--model-kwargs']
    assert 'holds preact_resnet20.custom' in run(*options, 'channels=(8, 16, 32)', '--model-kwargs', 'stem_chs=8')
    assert 'correct the arguments' in refusal('convert', tmp_path / 'w.safetensors', '--to', tmp_path / 'other',
                                              '--model-kwargs', 'colour=1')


def less(tensors):
    return {key: tensor for key, tensor in tensors.items() if key != 'layer2.1.bn2.weight'}


def wrapped_twice(tensors):
    return {f'module.module.{key}': tensor for key, tensor in tensors.items()}


def with_another_shape(tensors):
    return {**tensors, 'layer1.0.conv1.weight': torch.zeros(16, 16, 1, 1)}


@pytest.mark.parametrize('change, sentence', [
    (less, 'fits no registered name, preact_resnet20_orig comes nearest: pytorch_resnet_cifar10: layer2.1.bn2.weight, '
           'which would be stages.1.blocks.1.residual.norm2.weight, is missing.'),
    (with_another_shape, 'preact_resnet20_orig comes nearest: pytorch_resnet_cifar10: layer1.0.conv1.weight has the '
                         'shape (16, 16, 1, 1)'),
    (wrapped_twice, 'fits no registered name, its layout is not known (its first tensor is module.conv1.weight)'),
], ids=lambda value: getattr(value, '__name__', None))
def test_what_fits_no_name_is_told_what_the_nearest_lacks(change, sentence, akamaster, tmp_path):
    torch.save(change(akamaster.original.state_dict()), tmp_path / 'w.pth')
    assert sentence in refusal('convert', tmp_path / 'w.pth', '--to', tmp_path / 'made')


def test_our_own_network_that_lacks_a_tensor_is_told_which(tmp_path):
    tensors = timm.create_model('preact_resnet20').state_dict()
    del tensors['norm.weight']
    save_file(tensors, tmp_path / 'w.safetensors')
    assert 'preact_resnet20 comes nearest: timm_preact: norm.weight is missing' in refusal(
        'convert', tmp_path / 'w.safetensors', '--to', tmp_path / 'made')


WRITTEN = {
    'plain': lambda tensors: tensors,
    'in parallel': lambda tensors: {f'module.{key}': tensor for key, tensor in tensors.items()},
    'half': lambda tensors: {key: tensor.half() if tensor.is_floating_point() else tensor
                             for key, tensor in tensors.items()},
    'with an optimizer': lambda tensors: dict(
        state_dict=tensors, epoch=3, best_prec1=90., optimizer=dict(
            state={0: dict(momentum_buffer=torch.zeros(2))}, param_groups=[dict(lr=0.1, params=[0])])),
}


@pytest.mark.parametrize('written', WRITTEN)
def test_a_checkpoint_loads_however_it_was_written(written, akamaster, tmp_path, sample):
    torch.save(WRITTEN[written](akamaster.original.state_dict()), tmp_path / 'w.th')
    model = load_into(find_name(tmp_path / 'w.th'), tmp_path / 'w.th').model.eval()
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    x = torch.from_numpy(sample.images[::100]).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = akamaster.original(x)
        assert (model(x) - expected).abs().max() <= (1e-2 if written == 'half' else 1e-5) * expected.abs().max()


def test_permuted_weights_under_a_published_tag_are_refused(akamaster, tmp_path, monkeypatch):
    """The tensors fit as well as the published ones: the digest does not."""
    monkeypatch.setitem(CHECKSUMS, AKAMASTER, akamaster.checksum)
    tensors = akamaster.original.state_dict()
    tensors['linear.weight'] = tensors['linear.weight'].flip(1)
    torch.save(tensors, tmp_path / 'permuted.th')
    assert 'is damaged' in refusal(
        'convert', tmp_path / 'permuted.th', '--name', AKAMASTER, '--to', tmp_path / 'made')
    with pytest.raises(WeightsError, match='is damaged'):
        load_into(AKAMASTER, tmp_path / 'permuted.th', checksum=f'sha256:{digest_of(akamaster.file)}')


def test_a_pickle_that_wants_a_class_is_refused(tmp_path):
    torch.save(OriginalResNet(20), tmp_path / 'w.th')
    with pytest.raises(UserError, match='is not a whole weight file'):
        find_name(tmp_path / 'w.th')


def test_networks_of_pytorch_cifar_are_not_taken_for_akamasters(tmp_path):
    """The same names, with projections."""
    theirs = fill(OriginalResNet(20, padded=False), torch.rand(4, 3, 32, 32)).state_dict()
    renamed = {key.replace('downsample', 'shortcut').replace('fc.', 'linear.'): value for key, value in theirs.items()}
    torch.save(renamed, tmp_path / 'w.pth')
    with pytest.raises(UserError, match='its layout is not known'):
        find_name(tmp_path / 'w.pth')


def test_every_name_has_tensors_that_find_it():
    """At a depth of one unit a stage: names that share all tensors are found together, and none is missed."""
    for name, args in MODEL_ARGS.items():
        if len(args['layers']) == 3:
            model = timm.create_model(name, device='meta', layers=(2, 2, 2))
            assert name in find_fitting(model.state_dict(), dict(layers=(2, 2, 2)))[0]


# Class names

ANIMALS = 'ant bee crab dove eel fox gnu hen ibis jay'.split()
TRAIN_ARGS = dict(
    model='preact_resnet20', data=None, data_dir='', dataset='', class_map='', train_split='train', num_classes=10,
    in_chans=None, input_size=None, img_size=None, mean=None, std=None, interpolation='', crop_pct=None, gp=None,
    model_kwargs={})


def class_folders_of(folder, images):
    """train/ and validation/ with a folder for each of ANIMALS."""
    for split in ('train', 'validation'):
        for name, image in zip(ANIMALS, images, strict=True):
            (folder / split / name).mkdir(parents=True)
            Image.fromarray(image).save(folder / split / name / 'image.png')
    return folder


def train_py(folder, net=None, **args):
    """model_best.pth.tar and args.yaml, as timm's train.py writes them."""
    folder.mkdir()
    args = {**TRAIN_ARGS, **args}
    (folder / 'args.yaml').write_text(yaml.safe_dump(args, default_flow_style=False))
    net = net or timm.create_model('preact_resnet20', pretrained=True)
    torch.save(dict(epoch=3, arch='preact_resnet20', state_dict=net.state_dict(), optimizer={}, version=2,
                    args=argparse.Namespace(**args), metric=90.), folder / 'model_best.pth.tar')
    return folder / 'model_best.pth.tar'


def names_of(path, name='preact_resnet20', **kwargs):
    return class_names(load_model(name, str(path), **kwargs))


def test_a_checkpoint_of_train_py_has_the_classes_of_its_folders(sample, tmp_path):
    """predict said airplane, convert wrote CIFAR-10's names, and evaluate refused these folders."""
    data = class_folders_of(tmp_path / 'data', sample.images[::50])
    weights = train_py(tmp_path / 'run', data_dir=str(data))
    image = data / 'validation' / 'jay' / 'image.png'
    (result,) = json.loads(run('predict', image, '--weights', weights, '--json'))
    assert {guess['class'] for guess in result['predictions']} <= set(ANIMALS)
    run('convert', weights, '--to', tmp_path / 'made')
    config = json.loads((tmp_path / 'made' / 'config.json').read_text())
    assert config['label_names'] == config['pretrained_cfg']['label_names'] == ANIMALS
    for path in (weights, tmp_path / 'made'):
        scored = json.loads(run('evaluate', '--weights', path, '--data', data / 'validation', '--json'))
        assert list(scored['per_class']) == ANIMALS and scored['top1'] >= 80


def test_names_come_from_the_most_explicit_source(sample, tmp_path):
    data = class_folders_of(tmp_path / 'data', sample.images[::50])
    weights = train_py(tmp_path / 'run', data_dir=str(data))
    assert names_of(weights) == names_of(weights, 'preact_resnet20.cifar10') == ANIMALS
    elsewhere = train_py(tmp_path / 'elsewhere', data_dir=str(tmp_path / 'gone'))
    assert names_of(elsewhere, 'preact_resnet20.cifar10') == [str(i) for i in range(10)]
    reverse = [name.upper() for name in ANIMALS]
    timm.models.save_for_hf(timm.create_model('preact_resnet20'), tmp_path / 'config')
    config = json.loads((tmp_path / 'config' / 'config.json').read_text())
    config['pretrained_cfg']['label_names'] = reverse
    (weights.parent / 'config.json').write_text(json.dumps(config))
    assert names_of(weights) == names_of(weights, 'preact_resnet20.cifar10') == reverse
    (tmp_path / 'map.txt').write_text('\n'.join(map(str, range(10, 20))) + '\n')
    assert names_of(weights, class_map=tmp_path / 'map.txt') == [str(i) for i in range(10, 20)]


def test_a_bare_state_dict_has_numbers_unless_a_tag_or_its_checksum_names_the_data(sample, npz_folder, tmp_path):
    model = timm.create_model('preact_resnet20', pretrained=True)
    torch.save(model.state_dict(), tmp_path / 'w.pth')
    assert names_of(tmp_path / 'w.pth') == [str(i) for i in range(10)]
    assert names_of(tmp_path / 'w.pth', 'preact_resnet20.cifar10') == list(sample.classes)
    assert json.loads(run('evaluate', '--data', npz_folder, '--weights', tmp_path / 'w.pth', '--json'))['top1'] == 89
    for tag, names in (('mine', [str(i) for i in range(10)]), ('mine_cifar10', list(sample.classes))):
        run('convert', tmp_path / 'w.pth', '--name', f'preact_resnet20.{tag}', '--to', tmp_path / tag)
        assert names_of(tmp_path / tag) == names
    file = tmp_path / 'copy.safetensors'
    file.write_bytes(Path(shipped_weights('preact_resnet20.cifar10')).read_bytes())
    assert find_name(file) == 'preact_resnet20.cifar10' and names_of(file) == list(sample.classes)


def test_a_published_file_brings_the_config_of_its_tag(tmp_path):
    file = tmp_path / 'copy.safetensors'
    file.write_bytes(Path(shipped_weights('preact_resnet20.cifar100')).read_bytes())
    model = load_model('preact_resnet20', str(file))
    assert class_names(model) == list(CIFAR100_CLASSES)
    assert model.pretrained_cfg['mean'] == timm.get_pretrained_cfg('preact_resnet20.cifar100').mean


@pytest.mark.parametrize('dataset, names', [
    ('hfds/uoft-cs/cifar10', CIFAR10_CLASSES), ('torch/cifar10', CIFAR10_CLASSES), ('hfds/lab/birds', None),
    ('hfds/uoft-cs/cifar100', None)])  # which has 100
def test_known_data_sets_of_train_py_name_the_classes(dataset, names, tmp_path):
    weights = train_py(tmp_path / 'run', dataset=dataset)
    assert names_of(weights) == list(names or map(str, range(10)))


def test_a_parquet_folder_of_train_py_names_the_classes(parquet_folder, sample, tmp_path):
    weights = train_py(tmp_path / 'run', dataset=f'hfds/{parquet_folder}')
    assert names_of(weights) == list(sample.classes)
    weights = train_py(tmp_path / 'other', dataset=f'hfds/{parquet_folder}', train_split='nothing')
    assert names_of(weights) == [str(i) for i in range(10)]


def test_the_class_map_of_train_py_counts_before_its_folders(sample, tmp_path):
    data = class_folders_of(tmp_path / 'data', sample.images[::50])
    (data / 'map.txt').write_text('\n'.join(ANIMALS[::-1]))
    assert names_of(train_py(tmp_path / 'run', data_dir=str(data), class_map='map.txt')) == ANIMALS[::-1]
    lost = train_py(tmp_path / 'lost', data_dir=str(data), class_map='map.pkl')
    assert names_of(lost) == [str(i) for i in range(10)]


def test_1000_classes_without_names_are_imagenets(tmp_path):
    torch.save(timm.create_model('preact_resnet18').state_dict(), tmp_path / 'w.pth')
    assert names_of(tmp_path / 'w.pth', 'preact_resnet18')[0].startswith('tench')


@pytest.mark.parametrize('content, message', [
    ('a\nb\n', '--class-map has 2 classes and'), ('a\n\nb', 'none empty and none twice'), ('', 'is not a class map'),
    ('\n'.join('aabcdefghi'), 'none twice'), (b'\x80\x04}', 'is not a text file')])
def test_a_class_map_that_does_not_fit_is_refused(content, message, tmp_path):
    torch.save(timm.create_model('preact_resnet20').state_dict(), tmp_path / 'w.pth')
    file = tmp_path / 'map.txt'
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    Image.new('RGB', (32, 32)).save(tmp_path / 'x.png')
    for command in (['evaluate', '--weights', tmp_path / 'w.pth'],
                    ['predict', tmp_path / 'x.png', '--weights', tmp_path / 'w.pth'],
                    ['convert', tmp_path / 'w.pth', '--to', tmp_path / 'made']):
        assert message in refusal(*command, '--class-map', file)


def test_a_class_map_names_what_predict_prints(sample, tmp_path):
    torch.save(timm.create_model('preact_resnet20', pretrained=True).state_dict(), tmp_path / 'w.pth')
    (tmp_path / 'map.txt').write_text('\n'.join(ANIMALS))
    Image.fromarray(sample.images[0]).save(tmp_path / 'image.png')
    (result,) = json.loads(run('predict', tmp_path / 'image.png', '--weights', tmp_path / 'w.pth', '--class-map',
                               tmp_path / 'map.txt', '--json'))
    assert result['predictions'][0]['class'] == 'ant'
    assert '--class-map requires --weights' in refusal('predict', tmp_path / 'image.png', '--class-map',
                                                       tmp_path / 'map.txt')


# How train.py made and tested a network


def test_a_checkpoint_of_train_py_is_tested_as_it_was_trained(tmp_path):
    args = dict(layers=[1, 1, 1], placement='orig')
    model = timm.create_model('preact_resnet20', num_classes=7, in_chans=1, **args)
    weights = train_py(
        tmp_path / 'run', model, num_classes=7, in_chans=1, model_kwargs=args, input_size=[1, 48, 64], mean=[0.5],
        std=[0.25], crop_pct=0.9, interpolation='bicubic')
    loaded = load_model(find_name(weights), str(weights))
    assert torch.equal(loaded.head.fc.weight, model.head.fc.weight)
    protocol = resolve_protocol(loaded, use_test_size=True)
    assert protocol == ((1, 48, 64), 'bicubic', (0.5,), (0.25,), 0.9, 'center')


def test_args_yaml_tells_names_with_the_same_tensors_apart(tmp_path):
    kwargs = dict(layers=[1, 1, 1])
    model = timm.create_model('preact_resnet110_relu_only', **kwargs)
    weights = train_py(tmp_path / 'run', model, model='preact_resnet110_relu_only', model_kwargs=kwargs)
    assert find_name(weights) == 'preact_resnet110_relu_only'


def test_args_yaml_of_another_network_is_left_alone(tmp_path):
    weights = train_py(tmp_path / 'run', model='resnet50', num_classes=3, dataset='hfds/uoft-cs/cifar10')
    model = load_model(find_name(weights), str(weights))
    assert model.num_classes == 10 and class_names(model) == [str(i) for i in range(10)]


def test_args_yaml_beside_a_file_of_another_layout_counts_if_train_py_wrote_it(akamaster, sample, tmp_path):
    data = class_folders_of(tmp_path / 'data', sample.images[::50])
    for model, names in (('resnet20', [str(i) for i in range(10)]), ('resnet18', ANIMALS)):
        file = train_py(tmp_path / model, model=model, data_dir=str(data)).with_name('theirs.th')
        file.write_bytes(akamaster.file.read_bytes())
        assert names_of(file, 'preact_resnet20_orig') == names


@pytest.mark.parametrize('text, message', [
    ('model: [', 'is not valid YAML'), ('- a list', "does not hold the arguments of timm's train.py"),
    ('model: !!python/name:os.system', 'is not valid YAML'),
    ('model: preact_resnet20\nmean: [a, b]', "does not hold the arguments of timm's train.py"),
    ('model: preact_resnet20\nmodel_kwargs: {checkpoint_path: w.pth}', 'checkpoint_path is not an argument of')])
def test_a_damaged_args_yaml_is_refused(text, message, tmp_path):
    weights = train_py(tmp_path / 'run')
    (tmp_path / 'run' / 'args.yaml').write_text(text)
    with pytest.raises(UserError, match=message):
        load_into('preact_resnet20', weights)


def test_a_config_without_a_test_size_has_none(tmp_path):
    """The name's own, 320x320, was taken for a network trained on 48x64."""
    name, args = 'preact_resnet101_orig', dict(layers=(1, 1, 1, 1), channels=(16, 16, 16, 16), num_classes=10)
    model = timm.create_model(name, **args)
    model.pretrained_cfg.update(input_size=(3, 48, 64), crop_pct=1.0, test_input_size=None, test_crop_pct=None)
    export_model(model, tmp_path, args)
    loaded = load_model(name, str(tmp_path))
    assert resolve_protocol(loaded, use_test_size=True).as_evaluation() == dict(input_size=[48, 64], crop_pct=1.0)
