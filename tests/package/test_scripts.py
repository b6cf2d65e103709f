"""timm-preact run: what is checked before one of timm's scripts starts. What the scripts do then is in
test_timm_scripts.py."""
import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from timm_preact.cli import app
from timm_preact.errors import UserError
from timm_preact.scripts import check_arguments, find_script, parse_arguments, version_warning
from timm_preact.weights.keymaps import from_ours

SCRIPT = '''
import argparse
import sys
import timm
config_parser = argparse.ArgumentParser(add_help=False)
config_parser.add_argument('--config', default='')
parser = argparse.ArgumentParser()
parser.add_argument('--model', default='resnet50')
parser.add_argument('--epochs', type=int, default=1)
if __name__ == '__main__':
    print('ran', sys.argv[1:], timm.is_model('preact_resnet18'), 'timm_clone' in sys.path[0])
'''


@pytest.fixture
def clone(tmp_path):
    """A folder like a clone of timm: a script, and the version of the timm beside it."""
    folder = tmp_path / 'timm_clone'
    (folder / 'timm').mkdir(parents=True)
    (folder / 'timm' / 'version.py').write_text(f"__version__ = '{timm.__version__}'\n")
    (folder / 'script.py').write_text(SCRIPT)
    return folder


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Weights of preact_resnet18 by our names and by timm's resnetv2's, and of a torchvision network."""
    import torchvision
    folder = tmp_path_factory.mktemp('checkpoints')
    ours = timm.create_model('preact_resnet18', num_classes=7)
    torch.save({'state_dict': ours.state_dict(), 'epoch': 3}, folder / 'ours.pth.tar')
    bare = timm.create_model('preact_resnet18', num_classes=7, stem_norm=False)
    save_file(from_ours(bare.state_dict(), 'timm_resnetv2'), folder / 'resnetv2.safetensors')
    save_file(torchvision.models.resnet18(num_classes=7).state_dict(), folder / 'torchvision.safetensors')
    save_file(torchvision.models.alexnet(num_classes=7).state_dict(), folder / 'alexnet.safetensors')
    return folder


def arguments(**kwargs):
    """What train.py and validate.py have in common."""
    return argparse.Namespace(**{'model': 'preact_resnet18', 'valid_labels': '', **kwargs})


def image_folders(root, **splits):
    """root/SPLIT/CLASS/0.png for each class of each split."""
    for split, classes in splits.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            (root / split / name / '0.png').write_bytes(b'')
    return str(root)


def refusal(**kwargs):
    with pytest.raises(UserError) as e:
        check_arguments(arguments(**kwargs))
    assert str(e.value).endswith('.') and '\n' not in str(e.value)
    return str(e.value)


def test_a_script_runs_with_our_names_and_the_installed_timm(clone):
    """`python clone/script.py` would have the clone first on sys.path."""
    done = subprocess.run(
        [sys.executable, '-m', 'timm_preact', 'run', '--timm-scripts', clone, 'script.py', '--epochs', '2'],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ran ['--epochs', '2'] True False\n" and done.stderr == ''


def test_a_script_is_a_name_in_the_folder_or_a_path(clone, monkeypatch):
    assert find_script('script.py', clone) == clone / 'script.py'
    monkeypatch.chdir(clone.parent)
    path = Path('timm_clone/script.py')
    assert find_script(str(path)) == find_script(str(path), Path('timm_clone')) == path
    with pytest.raises(UserError, match=f'--branch v{timm.__version__} https.*TIMM_SCRIPTS'):
        find_script('script.py')
    with pytest.raises(UserError, match=r'has no validate.py \(but script.py\)'):
        find_script('validate.py', clone)


def test_the_folder_of_scripts_comes_from_the_environment_too(clone):
    result = CliRunner().invoke(app, ['run', 'script.py'], env={'TIMM_SCRIPTS': str(clone)})
    assert result.exit_code == 0 and result.stdout.startswith('ran []')


def test_the_command_line_says_it_in_one_sentence(clone):
    result = CliRunner().invoke(app, ['run', '--timm-scripts', str(clone), 'script.py', '--model', 'preact_resnet5O'])
    assert result.exit_code == 2
    assert result.stderr == ('error: preact_resnet5O is no model that timm knows: did you mean preact_resnet56?\n')


def test_scripts_of_another_timm_are_a_warning_that_names_both(clone):
    assert version_warning(clone / 'script.py') is None
    (clone / 'timm' / 'version.py').write_text("__version__ = '0.9.2'\n")
    assert '0.9.2' in version_warning(clone / 'script.py') and timm.__version__ in version_warning(clone / 'script.py')
    result = CliRunner().invoke(app, ['run', '--timm-scripts', str(clone), 'script.py'])
    assert result.exit_code == 0 and result.stderr.startswith('warning: script.py is of timm 0.9.2')


def test_a_misspelt_key_of_a_configuration_is_found(clone, tmp_path):
    config = tmp_path / 'config.yaml'
    config.write_text('epochs: 90\n')
    assert parse_arguments(clone / 'script.py', ['--config', str(config)]).epochs == 90
    for text, sentence in (('epoch: 90\n', 'no option epoch: did you mean epochs'), ('[1, 2]\n', 'no list of options'),
                           ('a: [1\n', 'is not YAML')):
        config.write_text(text)
        with pytest.raises(UserError, match=sentence):
            parse_arguments(clone / 'script.py', ['--config', str(config)])


@pytest.mark.parametrize('model', ['preact_*', 'all', 'hf-hub:timm/resnet50.a1_in1k', 'resnet50', 'preact_resnet18'])
def test_what_timm_knows_passes(model):
    check_arguments(arguments(model=model))


def test_a_missing_checkpoint_is_named():
    assert '--resume /nowhere.pth.tar does not exist' in refusal(resume='/nowhere.pth.tar')


def test_a_checkpoint_of_ours_passes(checkpoints):
    file = str(checkpoints / 'ours.pth.tar')
    for option in ('resume', 'checkpoint', 'initial_checkpoint', 'pretrained_path'):
        check_arguments(arguments(num_classes=7, **{option: file}))
    check_arguments(arguments(pretrained_path=file))  # its classifier is adapted


def test_a_folder_of_checkpoints_passes(checkpoints):
    check_arguments(arguments(checkpoint=str(checkpoints)))  # validate.py tests each


def test_images_that_need_no_labels_pass(tmp_path):
    """inference.py."""
    root = image_folders(tmp_path, validation='abc')
    check_arguments(argparse.Namespace(model='preact_resnet18', data_dir=root, split='validation', num_classes=None))


def test_a_checkpoint_of_another_layout_is_named(checkpoints):
    sentence = refusal(num_classes=7, checkpoint=str(checkpoints / 'resnetv2.safetensors'))
    assert 'has the layout of timm resnetv2' in sentence and 'timm-preact convert' in sentence
    assert sentence.endswith('which goes with --model-kwargs stem_norm=False.')
    check_arguments(arguments(  # train.py maps these itself
        pretrained_path=str(checkpoints / 'resnetv2.safetensors'), model_kwargs={'stem_norm': False}))
    assert 'torchvision' in refusal(num_classes=7, initial_checkpoint=str(checkpoints / 'torchvision.safetensors'))
    assert 'its layout is not known' in refusal(checkpoint=str(checkpoints / 'alexnet.safetensors'))


def test_a_checkpoint_of_other_classes_or_another_network_is_told(checkpoints):
    file = str(checkpoints / 'ours.pth.tar')
    assert 'has 7 classes, preact_resnet18 has 1000' in refusal(checkpoint=file)
    assert refusal(checkpoint=file).endswith('pass --num-classes 7.')
    assert 'does not fit preact_resnet34' in refusal(model='preact_resnet34', num_classes=7, checkpoint=file)


def test_folders_of_images_with_the_models_classes_pass(tmp_path):
    root = image_folders(tmp_path, train='ab', val='ab')
    check_arguments(arguments(data_dir=root, num_classes=2, train_split='train', val_split='validation'))
    check_arguments(arguments(data_dir=f'{root}/val', num_classes=2, split='validation'))
    check_arguments(arguments(data_dir=root, num_classes=5, dataset='wds/', train_split='train', val_split='val'))


def test_a_folder_with_a_class_too_few_is_found(tmp_path):
    """timm numbers each split's classes by itself: b would be 0 in one and 1 in the other."""
    root = image_folders(tmp_path, train='abc', validation='bc')
    sentence = refusal(data_dir=root, num_classes=3, train_split='train', val_split='validation')
    assert 'validation has no images of a, which' in sentence
    check_arguments(arguments(
        data_dir=root, num_classes=3, train_split='train', val_split='validation', class_map='classes.txt'))


@pytest.mark.parametrize('place, content, sentence', [
    ('.ipynb_checkpoints/notes.json', b'{}', None),  # no class to timm
    ('c/0.gif', b'', 'c holds no image of a kind that timm reads'),
    ('.hidden/0.png', b'', '.hidden is a class to timm, which would shift the labels')])
def test_classes_are_counted_as_timm_counts_them(tmp_path, place, content, sentence):
    root = image_folders(tmp_path, val='ab')
    file = tmp_path / 'val' / place
    file.parent.mkdir()
    file.write_bytes(content)
    options = dict(data_dir=root, num_classes=2, split='validation')
    if sentence is None:
        check_arguments(arguments(**options))
    else:
        assert sentence in refusal(**options)


def test_a_split_that_is_missing_is_named_with_those_that_are_there(tmp_path):
    """timm would take the root for it, and its splits for classes."""
    root = image_folders(tmp_path, train='ab', test='ab')
    assert 'has no split validation (but test, train)' in refusal(data_dir=root, num_classes=2, split='validation')


def test_folders_of_archives_are_left_to_timm(tmp_path):
    (tmp_path / 'val').mkdir()
    (tmp_path / 'val' / 'images.tar').write_bytes(b'')
    check_arguments(arguments(data_dir=str(tmp_path), num_classes=2, split='validation'))


def test_a_checkpoint_with_its_weights_where_timm_does_not_look_is_named(checkpoints, tmp_path):
    weights = torch.load(checkpoints / 'ours.pth.tar', weights_only=True)['state_dict']
    for key in ('net', 'model_state_dict'):
        torch.save({key: weights, 'acc': 91.5}, tmp_path / 'w.pth')
        sentence = refusal(num_classes=7, checkpoint=str(tmp_path / 'w.pth'))
        assert f"has its weights under '{key}', where timm does not look: timm-preact convert" in sentence
        assert sentence.endswith('for --checkpoint.')
    torch.save({'epoch': 3}, tmp_path / 'w.pth')
    assert 'holds no state dict' in refusal(num_classes=7, checkpoint=str(tmp_path / 'w.pth'))


def test_model_arguments_that_are_none_are_named(checkpoints):
    sentence = refusal(checkpoint=str(checkpoints / 'ours.pth.tar'), model_kwargs={'placement': 'odd'})
    assert "placement='odd' is not known" in sentence


def test_num_classes_that_contradicts_the_images_is_found(tmp_path):
    root = image_folders(tmp_path, train='abc', validation='abc')
    for kwargs, number in (({'num_classes': 2}, 2), ({}, 1000), ({'model': 'preact_resnet20'}, 10)):
        sentence = refusal(data_dir=root, train_split='train', val_split='validation', **kwargs)
        assert f'train has 3 classes and the model {number}: pass --num-classes 3' in sentence
    assert 'has 3 classes and the model 4' in refusal(data_dir=Path(root) / 'train', num_classes=4, split='validation')
