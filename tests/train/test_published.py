"""Published weights, measured: a result file says what the card says."""
import json

import pytest
import torch
from support.published import publish_akamaster

from timm_preact.provenance import find_commit
from timm_preact.weights import CHECKSUMS, digest_of
from train import cards, published
from train.places import ROOT

NAME = 'preact_resnet20_orig.aka_cifar10'


@pytest.fixture
def results(tmp_path, monkeypatch):
    """The folder of result files, for who writes and who reads them."""
    for room in (cards, published):
        monkeypatch.setattr(room, 'PUBLISHED', tmp_path / 'published')
    return tmp_path / 'published'


def test_what_is_measured_of_published_weights_is_what_their_card_says(
        results, npz_folder, sample, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    images = torch.from_numpy(sample.images[::25]).permute(0, 3, 1, 2) / 255
    file = publish_akamaster(NAME, tmp_path / 'hub' / 'checkpoints', images)
    monkeypatch.setitem(CHECKSUMS, NAME, file.checksum)
    assert 'evaluations' not in cards.configure_source(NAME)
    published.main([NAME], data=str(npz_folder), device='cpu')
    result = json.loads((results / f'{NAME}.json').read_text())
    assert result['file_sha256'] == digest_of(file.file) and result['commit'] == find_commit(ROOT)
    (evaluation,) = cards.configure_source(NAME)['evaluations']
    assert evaluation['images'] == 100 and evaluation['top1'] == result['evaluations'][0]['top1']
    text = dict(cards.make_card(NAME, cards.configure_source(NAME)))[cards.CARDS / NAME / 'README.md']
    assert f'value: {evaluation["top1"]}' in text and 'not measured here' not in text


def test_a_name_that_nobody_published_is_refused(results, npz_folder, capsys):
    with pytest.raises(SystemExit) as exit:
        published.main(['preact_resnet20.cifar10'], data=str(npz_folder), device='cpu')
    assert exit.value.code == 2 and 'has no published weights' in capsys.readouterr().err
    assert not results.exists()
