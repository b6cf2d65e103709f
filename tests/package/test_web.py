"""What the page's tabs say and refuse, without a browser; tests/package/test_browser.py has one."""
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import typer
from PIL import Image
from safetensors.torch import save_file

from timm_preact import cli
from timm_preact.catalog import DEMO_MODEL
from timm_preact.errors import UserError
from timm_preact.evaluation import load_model
from timm_preact.images import DataError
from timm_preact.preact_resnet import MODEL_ARGS
from timm_preact.unit import MERGES, PLACEMENTS
from timm_preact.web import limits, networks
from timm_preact.web.commands import evaluate_command, predict_command, propagate_command
from timm_preact.web.compare import SHOWN, compare_networks
from timm_preact.web.limits import read_image, sentence
from timm_preact.web.networks import list_here, load
from timm_preact.web.predict import LAST, TOP_K, list_samples, predict
from timm_preact.web.server import warm_up
from timm_preact.web.signals import choose, measure_variants

CARDS = Path(__file__).parents[2] / 'hub_cards'
REPO = 'lab/net'
has_cam = pytest.mark.skipif(not importlib.util.find_spec('pytorch_grad_cam'), reason='grad-cam is not installed')


@pytest.fixture(autouse=True)
def nothing_loaded():
    """No network of an earlier test."""
    networks.load_named.cache_clear()


@pytest.fixture
def ship(sample, tmp_path):
    """A real photo as somebody would drop it."""
    path = tmp_path / 'my ship.png'
    Image.fromarray(sample.images[400]).resize((200, 150)).save(path)
    return path


@pytest.fixture(scope='module')
def noisy(tmp_path_factory):
    """The network that ships, made worse, as a file."""
    state = {key: value.clone() for key, value in timm.create_model(DEMO_MODEL, pretrained=True).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for key in state:
        if 'conv' in key:
            state[key] += 0.25 * state[key].std() * torch.randn(state[key].shape, generator=generator)
    path = tmp_path_factory.mktemp('noisy') / 'noisy.safetensors'
    save_file(state, path)
    return path


def refusal(function, *args, error=UserError):
    """What the page says of an error: a sentence, without a path."""
    with pytest.raises(error) as e:
        function(*args)
    said = sentence(e.value)
    assert re.fullmatch(r'[^\n]+[.?]', said) and not re.search(r'(?<!\w)/(tmp|root|home|usr)', said), said
    return said


def parses(command):
    """Whether the command line takes a command as the page shows it."""
    words = shlex.split(command)
    assert words[0] == 'timm-preact'
    found = typer.main.get_command(cli.app).commands[words[1]]
    found.make_context(found.name, words[2:])
    return words


def prints(command):
    """What a command that the page shows prints."""
    from typer.testing import CliRunner
    result = CliRunner().invoke(cli.app, shlex.split(command)[1:], catch_exceptions=False)
    assert result.exit_code in (0, 1), result.output
    return result.stdout


# Predict

def last(*args):
    """The tab's whole answer."""
    *_, answer = predict(*args)
    return answer


def test_what_is_in_an_image_is_said_before_where_the_network_looks():
    first = next(predict(None, 0, DEMO_MODEL, LAST))
    assert first.looks is None and next(iter(first.guesses)) == 'airplane' and parses(first.command)


def test_the_first_visitor_is_answered_rightly_while_the_server_warms_up():
    alone = last(None, 8, DEMO_MODEL, LAST)
    for _ in range(5):
        with ThreadPoolExecutor(1) as pool:
            warm = pool.submit(warm_up)
            beside = last(None, 8, DEMO_MODEL, LAST)
            warm.result()
        assert beside.guesses == alone.guesses and beside.looks.tobytes() == alone.looks.tobytes()


def test_there_are_ten_real_samples_one_of_each_class(sample):
    assert [name for _, name in list_samples()] == list(sample.classes)
    assert all((sample.images[sample.labels == i] == image).all((1, 2, 3)).any()
               for i, (image, _) in enumerate(list_samples()))


@has_cam
def test_an_upload_is_named_as_by_the_command_that_is_shown(ship, monkeypatch):
    monkeypatch.chdir(ship.parent)
    answer = last(str(ship), 0, DEMO_MODEL, '2')
    assert answer.note == '' and len(answer.guesses) == TOP_K and next(iter(answer.guesses)) == 'ship'
    words = parses(answer.command)
    assert words[2] == 'my ship.png' and words[-2:] == ['--stage', '2']
    [result] = json.loads(prints(f'{answer.command} --json'))
    assert {guess['class']: guess['probability'] for guess in result['predictions']} == answer.guesses
    with Image.open('looks.png') as drawn:
        assert np.array_equal(np.asarray(drawn), np.asarray(answer.looks))


@has_cam
def test_a_sample_is_taken_where_nothing_was_dropped():
    answer = last(None, 5, DEMO_MODEL, LAST)
    assert answer.guesses and parses(answer.command)[2] == 'dog.png' and '--stage' not in answer.command


@has_cam
def test_stages_look_at_different_places_and_one_that_is_not_there_is_refused(ship):
    early, late = (np.asarray(last(str(ship), 0, DEMO_MODEL, stage).looks).astype(int) for stage in ('1', LAST))
    assert early.shape == late.shape == (320, 320, 3) and np.abs(early - late).mean() > 5
    assert 'choose one from 1 to 3' in refusal(last, str(ship), 0, DEMO_MODEL, '4')


def big_png(path, size):
    """A PNG whose header says `size` and that has next to no pixels."""
    content = io.BytesIO()
    Image.new('L', (1, 1)).save(content, 'PNG')
    data = bytearray(content.getvalue())
    data[16:24] = size[0].to_bytes(4, 'big') + size[1].to_bytes(4, 'big')
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, 'big')
    path.write_bytes(data)


@pytest.mark.filterwarnings('ignore:Image size:PIL.Image.DecompressionBombWarning')
def test_pixels_are_counted_before_any_is_decoded(tmp_path):
    """The file has no pixels to decode: whoever decodes it says so."""
    big_png(tmp_path / 'huge.png', (10_000, 10_000))
    assert 'huge.png is too large, 10000 x 10000 pixels are over 50 million' in refusal(
        read_image, str(tmp_path / 'huge.png'))
    big_png(tmp_path / 'bomb.png', (100_000, 100_000))
    assert 'too large' in refusal(read_image, str(tmp_path / 'bomb.png'))
    big_png(tmp_path / 'small.png', (100, 100))
    assert 'not a whole image' in refusal(read_image, str(tmp_path / 'small.png'))


@pytest.mark.parametrize('name, content, said', [
    ('cat.png', b'no image', 'no image that Pillow can read'), ('cat.png', b'', 'no image that Pillow can read'),
    ('page.ps', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'no image that Pillow can read'),
    ('cat.png', None, 'uploads are not kept')])
def test_what_is_no_image_is_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert said in refusal(read_image, str(tmp_path / name), error=DataError)


def test_a_large_file_a_half_one_and_one_of_16_bits_are_refused(ship, tmp_path, monkeypatch):
    (tmp_path / 'half.png').write_bytes(ship.read_bytes()[:-2000])
    assert 'is not a whole image' in refusal(read_image, str(tmp_path / 'half.png'))
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / 'deep.png')
    assert '8 bits a channel' in refusal(read_image, str(tmp_path / 'deep.png'))
    monkeypatch.setattr(limits, 'MAX_IMAGE', 1 << 10)
    assert 'my ship.png is larger than' in refusal(read_image, str(ship))


def test_of_an_animation_the_first_image_is_taken_and_said_to_be(sample, tmp_path):
    frames = [Image.fromarray(sample.images[i]) for i in (0, 400)]
    for name in ('moves.gif', 'moves.webp', 'moves.png'):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        image, note = read_image(str(tmp_path / name))
        assert note == f'{name} holds several images: this is the first.'
        assert np.abs(np.asarray(image).astype(int) - sample.images[0]).mean() < 10


# Networks

def test_what_ships_is_here_and_what_lies_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    assert list_here() == [DEMO_MODEL, 'preact_resnet20.cifar100']
    cached = tmp_path / 'hub' / 'checkpoints' / 'preresnet20_cifar10-0651-76cec68d.pth'
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b'')
    assert list_here() == [DEMO_MODEL, 'preact_resnet20.cifar100', 'preact_resnet20_pcv.cifar10']


@pytest.mark.parametrize('network, said', [
    ('', 'choose one, or type a repository'), (None, 'choose one'), ('preact_resnt20', 'did you mean preact_resnet20'),
    ('preact_resnet56', 'preact_resnet56 has no weights on this machine: choose one of preact_resnet20.cifar10'),
    ('preact_resnet1001_pcv', 'has no weights on this machine'), ('resnet50', 'has no weights on this machine'),
    ('x' * 100_000, 'no name has 100000 characters')])
def test_a_name_without_weights_here_is_refused_and_nothing_is_fetched(hub, network, said):
    assert said in refusal(load, network)
    assert hub.requests == []


def test_a_name_may_leave_out_its_tag():
    assert load(' preact_resnet20 ') is load('preact_resnet20 ')


def publish(hub, folder, **files):
    hub.commit(REPO, {**{path.name: path.read_bytes() for path in folder.iterdir()}, **files})


def test_a_repository_is_read_and_nothing_of_it_is_kept(hub, tmp_path, monkeypatch):
    publish(hub, CARDS / DEMO_MODEL)
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    net, ours = load(REPO), load_model(DEMO_MODEL)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), ours.state_dict().values(), strict=True))
    assert load(f'hf-hub:{REPO}@main').pretrained_cfg['label_names'] == list(ours.pretrained_cfg['label_names'])
    assert list(tmp_path.iterdir()) == []


def test_a_repository_that_is_not_there_or_private_is_refused(hub, monkeypatch):
    hub.commit('lab/secret', {'config.json': b'{}'}, private=True)
    monkeypatch.setenv('HF_TOKEN', 'hf_write')
    for name in ('lab/nothing', 'lab/secret', 'lab/secret@main', 'lab/a/b', '../..'):
        assert 'cannot be fetched from the Hub' in refusal(load, name)
    assert load_error_of_the_command_line('lab/secret') == 'lab/secret has no model.safetensors'


def load_error_of_the_command_line(repo_id):
    """At home, where the user's own token counts."""
    with pytest.raises(UserError) as e:
        load_model(f'hf-hub:{repo_id}')
    return str(e.value).partition(':')[0]


def test_a_repository_that_is_too_large_is_refused_before_it_is_fetched(hub, monkeypatch):
    publish(hub, CARDS / DEMO_MODEL)
    monkeypatch.setattr(networks, 'MAX_WEIGHTS', 1 << 20)
    assert 'larger than the 1 MiB that are fetched here' in refusal(load, REPO)
    assert hub.count('GET /objects/') == 0


@pytest.mark.parametrize('model_args, said', [
    (dict(layers=[400, 400, 400]), 'more than 600 units'),
    (dict(channels=[4096, 8192, 16384]), 'has no room for them')])
def test_a_network_larger_than_its_weights_is_refused_before_it_is_made(hub, model_args, said):
    config = json.loads((CARDS / DEMO_MODEL / 'config.json').read_text())
    publish(hub, CARDS / DEMO_MODEL, **{'config.json': json.dumps(dict(config, model_args=model_args)).encode()})
    assert said in refusal(load, REPO)


def test_a_pickle_is_never_read(hub, tmp_path):
    hub.commit(REPO, {'config.json': b'{"architecture": "preact_resnet20"}', 'pytorch_model.bin': b'\0'})
    assert 'has no model.safetensors, and nothing else is read' in refusal(load, REPO)
    torch.save({}, tmp_path / 'w.pth')
    assert 'w.pth is no .safetensors file' in refusal(load, '', str(tmp_path / 'w.pth'))


# Signal

@pytest.mark.parametrize('variant, name, kwargs', [
    (('full', 'add', 110), 'preact_resnet110', {}), (('orig', 'excl_gate', 110), 'preact_resnet110_orig_excl_gate', {}),
    (('full', 'add', 1001), 'preact_resnet1001', {}), (('relu_only', 'add', 164), 'preact_resnet164_relu_only', {}),
    (('orig', 'shortcut_gate', 1001), 'preact_resnet1001_orig', {'merge': 'shortcut_gate'}),
    (('full', 'add', 10), 'preact_resnet20', {'layers': (2, 1, 1)}),
    (('full', 'add', 11), 'preact_resnet20', {'layers': (2, 1, 1)}),
    (('full', 'add', 162), 'preact_resnet20', {'layers': (27, 27, 26)}),
])
def test_a_variant_is_the_nearest_registered_name_and_what_is_beside_it(variant, name, kwargs):
    assert choose(*variant)[1:] == (name, kwargs)


@pytest.mark.parametrize('asked, depth', [(10, 10), (13, 14), (163, 164), (165, 164), (166, 167), (1000, 1001)])
def test_a_depth_is_the_nearest_that_exists_and_is_said(asked, depth):
    variant = choose('full', 'const_scale', asked)
    assert variant.title == f'full, const_scale, {depth} layers'
    model = timm.create_model(variant.name, device='meta', **variant.kwargs)
    convs = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)
             and '.shortcut.' not in name]
    assert len(convs) + 1 == depth and len(MODEL_ARGS[variant.name]['layers']) == 3


@pytest.mark.parametrize('depth', [None, 9, 1002, float('nan'), -1])
def test_a_depth_out_of_range_is_refused(depth):
    assert 'choose one from 10 to 1001 layers' in refusal(choose, 'full', 'add', depth)


def test_curves_sentences_and_commands_are_those_of_propagate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = []
    variants = [choose('full', 'add', 14), choose('orig', 'const_scale', 50), choose('full', 'add', 14)]
    seen = list(measure_variants(variants, lambda share, title: told.append((share, title))))
    assert len(seen) == 2 and seen[0][0].size[0] == 900
    assert [share for share, _ in told] == sorted(share for share, _ in told) and told[-1][0] == 1
    assert {title for _, title in told} == {'full, add, 14 layers', 'orig, const_scale, 50 layers'}
    _, sentences, commands = seen[-1]
    lines = commands.splitlines()
    assert len(lines) == 2
    for line, (_, text) in zip(lines, sentences, strict=True):
        parses(line)
        assert prints(line).splitlines()[0] == text
    assert 'stays between' in sentences[0][1] and 'a constant multiplies the shortcut' in sentences[1][1]


# Compare

def test_two_networks_are_compared_as_by_the_command_that_is_shown(noisy, sample, monkeypatch):
    monkeypatch.chdir(noisy.parent)
    told = []
    found = compare_networks((DEMO_MODEL, None), ('', str(noisy)), lambda share, title: told.append(share))
    assert told == sorted(told) and told[-1] == 1
    parses(found.command)
    said = json.loads(prints(f'{found.command} --json'))
    assert [name for name, _, _ in found.rows] == [*sample.classes, 'all']
    assert found.rows[-1][1:] == tuple(f'{top1:.1f}' for top1 in said['top1'])
    assert found.rows[3][1:] == tuple(f'{one["cat"]:.1f}' for one in said['per_class'])
    assert len(said['differ']) > SHOWN == len(found.images) and f'differ on {len(said["differ"])}' in found.summary
    picture, caption = found.images[0]
    assert picture.size == (128, 128) and caption.startswith(sample.classes[sample.labels[said['differ'][0]]])
    match = re.fullmatch(r'(\w+); A says (\w+), B says (\w+)', caption)
    assert match[2] != match[3]
    assert f'{len(said["differ"])} of 500 images are named differently' in prints(found.command)


def test_a_network_does_not_differ_from_itself():
    found = compare_networks((DEMO_MODEL, None), ('preact_resnet20', None))
    assert found.images == [] and 'differ on none.' in found.summary


def test_classes_in_another_order_are_the_same_answers(hub, sample):
    config = json.loads((CARDS / DEMO_MODEL / 'config.json').read_text())
    config['pretrained_cfg']['label_names'] = config['pretrained_cfg']['label_names'][::-1]
    state = timm.create_model(DEMO_MODEL, pretrained=True).state_dict()
    state = {key: value.flip(0) if key.startswith('head.fc') else value for key, value in state.items()}
    del config['sha256']
    folder = Path(os.environ['HF_HOME']).parent / 'reversed'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    save_file({key: value.contiguous() for key, value in state.items()}, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(config))
    publish(hub, folder)
    assert compare_networks((DEMO_MODEL, None), (REPO, None)).images == []


def test_what_cannot_be_compared_is_refused(tmp_path, noisy):
    (tmp_path / 'torn.safetensors').write_bytes(noisy.read_bytes()[:1000])
    assert 'torn.safetensors is not a whole weight file' in refusal(
        compare_networks, (DEMO_MODEL, None), ('', str(tmp_path / 'torn.safetensors')))
    save_file(timm.create_model('preact_resnet20', num_classes=12).state_dict(), tmp_path / 'twelve.safetensors')
    assert 'the data has 10 classes and the model 12' in refusal(
        compare_networks, ('', str(tmp_path / 'twelve.safetensors')), (DEMO_MODEL, None))
    assert 'does not fit preact_resnet56' in refusal(
        compare_networks, ('preact_resnet56', str(noisy)), (DEMO_MODEL, None))
    assert 'gone.safetensors is no longer here' in refusal(load, '', str(tmp_path / 'gone.safetensors'))
    save_file(timm.create_model('preact_resnet110_orig').state_dict(), tmp_path / 'alike.safetensors')
    assert 'say by the field Network which it is' in refusal(load, '', str(tmp_path / 'alike.safetensors'))
    assert load('preact_resnet110_orig', str(tmp_path / 'alike.safetensors')).num_classes == 10


# Commands and sentences

@pytest.mark.parametrize('command', [
    predict_command('/tmp/x/-a photo.png', 'my-lab/net', 3, 5), predict_command('cat.png', f'hf-hub:{REPO}', None, 5),
    *(propagate_command(*choose(placement, merge, 30)[1:], 8) for placement in PLACEMENTS for merge in MERGES),
    evaluate_command((DEMO_MODEL, None), (REPO, None)),
    evaluate_command(('', '/tmp/x/a.safetensors'), (DEMO_MODEL, None)),
    evaluate_command((None, 'a.safetensors'), ('preact_resnet56', 'b.safetensors'))])
def test_every_command_is_one_of_the_command_line(command):
    assert '/tmp' not in command
    parses(command)


def test_an_error_of_ours_is_one_sentence_and_is_logged(capsys):
    try:
        raise KeyError('/srv/secret')
    except KeyError as e:
        said = sentence(e)
    assert 'secret' not in said and 'on our side' in said
    assert 'KeyError' in capsys.readouterr().err


def test_no_path_of_the_server_is_said_but_a_repository_and_an_address_are():
    assert sentence(UserError('/srv/cache/torch/x.pth of my-lab/net from https://host/a/b falls below 1/1,000.')) == (
        'x.pth of my-lab/net from https://host/a/b falls below 1/1,000.')


def test_without_gradio_the_page_is_one_sentence_and_the_demo_runs(tmp_path):
    (tmp_path / 'without.py').write_text('''
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name == 'gradio' else find_spec(name, *args)
from timm_preact.cli import run
run()
''')
    result = subprocess.run(
        [sys.executable, 'without.py', 'demo', '--web'], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, '')
    assert result.stderr == "error: the page needs gradio: pip install 'timm-preact[web]'.\n"


def test_the_package_and_its_command_line_do_not_import_what_the_page_needs():
    heavy = {'gradio', 'pytorch_grad_cam', 'matplotlib', 'cv2'}
    code = f'import sys, timm_preact.cli, timm_preact.web; print({heavy!r} & set(sys.modules))'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == 'set()'


def test_one_heavy_job_runs_at_a_time_and_a_bounded_number_waits():
    pytest.importorskip('gradio', reason="the page is not installed: pip install -e '.[browser]'")
    from timm_preact.web.page import build
    page = build()
    heavy = [listener for listener in page.fns.values() if listener.queue is not False]
    assert len(heavy) == 6 and {(one.concurrency_id, one.concurrency_limit) for one in heavy} == {('heavy', 1)}
    assert page._queue.max_size == limits.MAX_WAITING and page.analytics_enabled is False
