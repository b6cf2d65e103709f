"""Where a network looks: what grad-cam makes of our units is Grad-CAM as its paper writes it."""
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from typer.testing import CliRunner

from timm_preact.cli import app
from timm_preact.errors import UserError
from timm_preact.evaluation import eval_transform
from timm_preact.gradcam import count_stages, look

pytest.importorskip('pytorch_grad_cam')
SMALL = dict(layers=(2, 2, 2))


@pytest.fixture
def ship(sample):
    return Image.fromarray(sample.images[400])


def by_hand(model, image, stage, label):
    """relu(sum over channels of the mean gradient times the map), from 0 to 1, at the map's own size."""
    maps = []
    later = list(model.stages)[stage:]
    reader = later[0].blocks[0].pre if later else model.norm
    handle = reader.register_forward_hook(lambda module, args, output: maps.append(output))
    logits = model(eval_transform(model)(image)[None])
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, label], maps[0])
    heat = (gradient.mean((2, 3), keepdim=True) * maps[0]).sum(1)[0].clamp(min=0).detach()
    heat = heat - heat.min()
    return (heat / (1e-7 + heat.max())).numpy()


@pytest.mark.parametrize('placement', ['full', 'orig', 'relu_before_add', 'bn_after_add', 'relu_only'])
def test_any_stage_of_any_placement_is_grad_cam_by_hand(ship, placement):
    torch.manual_seed(0)
    model = timm.create_model('preact_resnet20', placement=placement, recompute_norms=True, **SMALL).eval()
    for stage in (1, 2, 3):
        found = look(model, ship, stage, label=4)
        mine = by_hand(model, ship, stage, 4)
        mine = np.asarray(Image.fromarray(mine).resize((32, 32), Image.Resampling.BILINEAR))
        assert found.heat.shape == (32, 32) and 0 <= found.heat.min() and found.heat.max() <= 1
        assert np.corrcoef(found.heat.ravel(), mine.ravel())[0, 1] > 0.99, (placement, stage)


def test_it_is_of_the_most_probable_class_and_the_last_stage_unless_told_otherwise(ship):
    model = timm.create_model('preact_resnet20', pretrained=True).eval()
    assert np.array_equal(look(model, ship).heat, look(model, ship, count_stages(model), label=8).heat)
    assert not np.array_equal(look(model, ship).heat, look(model, ship, label=0).heat)
    assert all(p.grad is None for p in model.parameters()) and not model.training


def test_the_image_is_shown_as_the_network_gets_it(ship):
    model = timm.create_model('preact_resnet20', pretrained=True).eval()
    assert np.array_equal(np.asarray(look(model, ship).seen), np.asarray(ship))
    grey = timm.create_model('preact_resnet20', in_chans=1, **SMALL).eval()
    seen = np.asarray(look(grey, ship).seen)
    assert seen.shape == (32, 32, 3) and (seen[..., 0] == seen[..., 1]).all()


def test_networks_that_are_not_ours_and_stages_that_are_not_there_are_refused(ship):
    with pytest.raises(UserError, match='choose a network of timm_preact'):
        look(timm.create_model('resnet18').eval(), ship)
    for stage in (0, 4, -1):
        with pytest.raises(UserError, match='choose one from 1 to 3'):
            look(timm.create_model('preact_resnet20', **SMALL).eval(), ship, stage)


def test_predict_draws_it(ship, tmp_path):
    ship.save(tmp_path / 'ship.png')
    files = [str(tmp_path / 'ship.png')]
    result = CliRunner().invoke(app, ['predict', *files, '--cam', str(tmp_path / 'looks.png'), '--stage', '2'])
    assert result.exit_code == 0
    with Image.open(tmp_path / 'looks.png') as drawn:
        assert drawn.size == (320, 320)
    for options, said in (
            ([*files, *files, '--cam', 'x.png'], '--cam draws one image, not 2'),
            ([*files, '--stage', '1'], 'pass --cam too'),
            ([*files, '--cam', str(tmp_path / 'x.png'), '--stage', '9'], 'choose one from 1 to 3')):
        result = CliRunner().invoke(app, ['predict', *options])
        assert result.exit_code == 2 and said in result.output
    assert not (tmp_path / 'x.png').exists()
