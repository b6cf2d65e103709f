"""Files of kuangliu's pytorch-cifar and weiaicunzai's pytorch-cifar100: their logits, and every command finds them."""
import json
from typing import NamedTuple, Tuple

import pytest
import timm
import torch
from PIL import Image
from support import pytorch_cifar, pytorch_cifar100
from support.published import fill
from test_cli import refusal, run
from torch import nn

from timm_preact.evaluation import load_model
from timm_preact.hub import verify_folder
from timm_preact.loading import find_name, load_into
from timm_preact.preact_resnet import find_fitting
from timm_preact.weights.keymaps import from_ours, source_of, to_ours

pytestmark = pytest.mark.usefixtures('memory_trimmed')
KUANGLIU = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
WEIAICUNZAI = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


class Layout(NamedTuple):
    """The networks of one file there.

    Attributes:
        module: The tests' own implementation.
        unit: Class of its units.
        suffix: What follows the depth in our names.
        inputs: Mean and standard deviation that their script normalises images with.
    """
    module: object
    unit: type
    suffix: str
    inputs: Tuple

    def create(self, depth, classes=10):
        torch.manual_seed(0)
        return self.module.Network(depth, self.unit, classes)

    def name(self, depth):
        return f'preact_resnet{depth}{self.suffix}'

    def prepare(self, pixels):
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in self.inputs)
        return (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std


LAYOUTS = {
    'kuangliu': Layout(pytorch_cifar, pytorch_cifar.Unit, '_orig_kuang', KUANGLIU),
    'kuangliu_preact': Layout(pytorch_cifar, pytorch_cifar.PreActUnit, '_kuang', KUANGLIU),
    'weiaicunzai': Layout(pytorch_cifar100, pytorch_cifar100.Unit, '_orig_kuang', WEIAICUNZAI),
    'weiaicunzai_preact': Layout(pytorch_cifar100, pytorch_cifar100.PreActUnit, '_wei', WEIAICUNZAI),
}
every_layout = pytest.mark.parametrize('source', LAYOUTS)
DEPTHS = 18, 34, 50, 101, 152


def assert_close(actual, expected, tolerance):
    assert (expected - expected[0]).abs().max() > 0.01 * expected.abs().max(), 'the images make no difference'
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize('depth', [
    18, pytest.param(34, marks=pytest.mark.slow), 50, pytest.param(101, marks=pytest.mark.slow),
    pytest.param(152, marks=pytest.mark.slow)])
@every_layout
def test_weights_give_the_logits_of_their_network(source, depth, sample):
    """In eval and in training mode, which updates the statistics alike; mapped back, the tensors are theirs."""
    layout = LAYOUTS[source]
    x, other = layout.prepare(sample.images[::125]).double().chunk(2)
    theirs = fill(layout.create(depth, classes=7).double(), x)
    ours = timm.create_model(layout.name(depth), num_classes=7).double().eval()
    assert source_of(theirs.state_dict()) == source
    ours.load_state_dict(to_ours(theirs.state_dict(), source, ours))
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.  # as `fill` gives theirs
    with torch.no_grad():
        assert_close(ours(x), theirs(x), 1e-10)
        assert_close(ours.train()(other), theirs.train()(other), 1e-10)
    back, tensors = from_ours(ours.state_dict(), source), theirs.state_dict()
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        torch.testing.assert_close(back[key], tensor, rtol=1e-10, atol=1e-10, msg=key)


@pytest.mark.parametrize('classes', [10, 100])
@pytest.mark.parametrize('depth', DEPTHS)
@every_layout
def test_a_layout_and_a_depth_have_one_name(source, depth, classes):
    with torch.device('meta'):
        tensors = LAYOUTS[source].create(depth, classes).state_dict()
    assert find_fitting(tensors) == ([LAYOUTS[source].name(depth)], None)


WRITTEN = {
    'bare': lambda tensors: tensors,
    'by main.py': lambda tensors: dict(net=tensors, acc=95.47, epoch=199),
    'by main.py on GPUs': lambda tensors: dict(
        net={f'module.{key}': tensor for key, tensor in tensors.items()}, acc=torch.tensor(95.47), epoch=199),
    'before there were counters': lambda tensors: dict(
        net={key: tensor for key, tensor in tensors.items() if not key.endswith('tracked')}, acc=95.47, epoch=199),
}


@pytest.fixture(scope='module')
def trained(sample, tmp_path_factory):
    """trained(source): their network of 18 layers, and the file of it that main.py on GPUs, or train.py, writes."""
    made = {}

    def make(source):
        if source not in made:
            layout = LAYOUTS[source]
            theirs = fill(layout.create(18), layout.prepare(sample.images[::10]))
            file = tmp_path_factory.mktemp(source) / 'ckpt.pth'
            written = 'by main.py on GPUs' if layout.module is pytorch_cifar else 'bare'
            torch.save(WRITTEN[written](theirs.state_dict()), file)
            made[source] = theirs, file
        return made[source]

    return make


@pytest.mark.parametrize('written', WRITTEN)
@every_layout
def test_a_file_is_found_and_read_however_it_was_written(source, written, trained, sample, tmp_path):
    layout, theirs = LAYOUTS[source], trained(source)[0]
    torch.save(WRITTEN[written](theirs.state_dict()), tmp_path / 'ckpt.pth')
    assert find_name(tmp_path / 'ckpt.pth') == layout.name(18)
    loaded = load_into(layout.name(18), tmp_path / 'ckpt.pth')
    assert loaded.layout == source and (loaded.cfg['mean'], loaded.cfg['std']) == layout.inputs
    x = layout.prepare(sample.images[::100])
    with torch.inference_mode():
        assert_close(loaded.model.eval()(x), theirs(x), 1e-5)


@every_layout
def test_commands_find_the_name_and_prepare_images_as_their_script(source, trained, sample, npz_folder, tmp_path):
    layout, (theirs, file) = LAYOUTS[source], trained(source)
    assert f'holds {layout.name(18)}.custom' in run('convert', file, '--to', tmp_path / 'made')
    config = json.loads((tmp_path / 'made' / 'config.json').read_text())
    assert (config['architecture'], config['num_classes']) == (layout.name(18), 10)
    cfg = config['pretrained_cfg']
    assert (tuple(cfg['mean']), tuple(cfg['std']), cfg['input_size']) == (*layout.inputs, [3, 32, 32])
    images = sample.images[::125]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f'{i}.png')
    with torch.inference_mode():
        expected = theirs(layout.prepare(images))
        assert_close(verify_folder(tmp_path / 'made')(layout.prepare(images)), expected, 1e-5)
    best = expected.softmax(1).max(1)
    scores = []
    for weights in (file, tmp_path / 'made'):
        files = [tmp_path / f'{i}.png' for i in range(len(images))]
        results = json.loads(run('predict', *files, '--weights', weights, '--json'))
        guesses = [result['predictions'][0] for result in results]
        assert [guess['class'] for guess in guesses] == [str(label) for label in best.indices.tolist()]
        assert [guess['probability'] for guess in guesses] == pytest.approx(best.values.tolist(), abs=1e-4)
        scored = json.loads(run('evaluate', '--data', npz_folder, '--weights', weights, '--json'))
        assert scored['model'] == layout.name(18) and scored['images'] == 100
        scores.append(scored['top1'])
    assert scores[0] == scores[1]


@every_layout
def test_a_file_has_the_number_of_classes_that_it_has(source, tmp_path):
    layout = LAYOUTS[source]
    torch.save(layout.create(18, classes=100).state_dict(), tmp_path / 'w.pth')
    model = load_model(find_name(tmp_path / 'w.pth'), str(tmp_path / 'w.pth'), as_in_file=True)
    assert model.num_classes == 100 and tuple(model.pretrained_cfg['mean']) == layout.inputs[0]


def test_a_config_beside_a_file_says_how_its_images_are_prepared(trained, tmp_path):
    _, file = trained('kuangliu_preact')
    (tmp_path / 'ckpt.pth').symlink_to(file)
    mean, std = [0.5, 0.5, 0.5], [0.247, 0.243, 0.261]
    (tmp_path / 'config.json').write_text(json.dumps(dict(pretrained_cfg=dict(mean=mean, std=std))))
    cfg = load_model(find_name(tmp_path / 'ckpt.pth'), str(tmp_path / 'ckpt.pth')).pretrained_cfg
    assert (cfg['mean'], cfg['std'], cfg['input_size']) == (mean, std, (3, 32, 32))


@pytest.mark.parametrize('suffix', ['_kuang', '_orig_kuang', '_wei'])
def test_tags_have_the_preparation_of_the_script_for_their_data_set(suffix):
    for depth in DEPTHS:
        for tag, classes in (('cifar10', 10), ('cifar100', 100)):
            cfg = timm.get_pretrained_cfg(f'preact_resnet{depth}{suffix}.{tag}')
            assert (cfg.num_classes, cfg.input_size, cfg.pool_size) == (classes, (3, 32, 32), (4, 4))
            assert len(cfg.label_names) == classes and not cfg.has_weights
            if tag == 'cifar100':
                assert (cfg.mean, cfg.std) == WEIAICUNZAI
            elif suffix != '_wei':
                assert (cfg.mean, cfg.std) == KUANGLIU


def test_forks_with_a_norm_before_the_classifier_are_read_with_an_argument(sample, tmp_path):
    layout = LAYOUTS['kuangliu_preact']
    x = layout.prepare(sample.images[::100])
    fork = layout.create(18)
    fork.bn = nn.BatchNorm2d(512)
    fork = fill(fork, x)
    torch.save(fork.state_dict(), tmp_path / 'w.pth')
    options = 'convert', tmp_path / 'w.pth', '--to', tmp_path / 'made'
    assert ('preact_resnet18_kuang comes nearest: pytorch-cifar PreActResNet: 5 tensors have no place, bn.weight for '
            'one') in refusal(*options)
    assert 'holds preact_resnet18_kuang.custom' in run(*options, '--model-kwargs', 'final_norm=True')
    with torch.inference_mode():
        assert_close(verify_folder(tmp_path / 'made')(x), fork(x), 1e-5)


def gate(theirs):
    """As of squeeze-and-excitation, which kuangliu's SENet18 has beside the same names."""
    theirs.layer1[0].fc1 = nn.Conv2d(64, 4, 1)


def lose_a_norm(theirs):
    del theirs.layer2[0].bn2


def widen(theirs):
    theirs.layer3[1].conv1 = nn.Conv2d(256, 512, 3, bias=False)


@pytest.mark.parametrize('change, sentence', [
    (gate, '2 tensors have no place, layer1.0.fc1.weight for one'),
    (lose_a_norm, 'layer2.0.bn2.weight, which would be'),
    (widen, 'layer3.1.conv1.weight has the shape (512, 256, 3, 3)')])
def test_other_networks_with_these_names_are_refused(change, sentence, tmp_path):
    theirs = LAYOUTS['kuangliu_preact'].create(18)
    change(theirs)
    torch.save(theirs.state_dict(), tmp_path / 'w.pth')
    refused = refusal('convert', tmp_path / 'w.pth', '--to', tmp_path / 'made')
    assert 'preact_resnet18_kuang comes nearest' in refused and sentence in refused


def test_a_pickled_network_is_refused(tmp_path):
    """Early versions of main.py saved the module itself."""
    torch.save(dict(net=LAYOUTS['kuangliu'].create(18), acc=95., epoch=199), tmp_path / 'ckpt.pth')
    assert 'is not a whole weight file' in refusal('convert', tmp_path / 'ckpt.pth', '--to', tmp_path / 'made')
