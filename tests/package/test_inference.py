"""An optimised network computes the same function, keeps timm's methods, and has nothing left to normalise."""
import copy
import pickle
from contextlib import nullcontext

import pytest
import timm
import torch
from support import networks
from support.networks import NETS, Bfloat16Processor, Calls, assert_close
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn
from torch.func import functional_call, stack_module_state
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from timm_preact.capture import capture_calls
from timm_preact.errors import UserError
from timm_preact.evaluation import Images, eval_transform, evaluate
from timm_preact.export import export
from timm_preact.inference import FusedConv2d, FusedUnit, ScaleShift, optimize
from timm_preact.kernels import normalise
from timm_preact.kernels.onednn import knows
from timm_preact.preact_resnet import MODEL_ARGS
from timm_preact.unit import ResidualUnit


def create(name, dtype=torch.float64, small=True, **kwargs):
    """A net in eval mode whose norms all do something."""
    args = MODEL_ARGS[name]
    whole = {} if small else dict(layers=[min(n, 36) for n in args['layers']], channels=args['channels'])
    return networks.create(name, dtype, **{**whole, **kwargs}).eval()


def images(dtype=torch.float64, batch=2, size=32):
    return torch.randn(batch, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1))


# The function


@pytest.mark.parametrize('name', MODEL_ARGS)
def test_autocast_and_weights_in_bfloat16_compute_the_same_on_every_processor(name, monkeypatch):
    """Every network with and without autocast, with weights in float32 and in bfloat16.

    As this processor computes; as one without oneDNN; as one that has oneDNN's kernels for both types.
    """
    model, x = create(name, torch.float32), images(torch.float32, size=16)
    with torch.inference_mode():
        exact = model(x)
    fast = {dtype: optimize(model, dtype) for dtype in (torch.float32, torch.bfloat16)}
    for types in (None, (), (torch.float32, torch.bfloat16)):
        if types is not None:
            monkeypatch.setattr('timm_preact.kernels.onednn.knows', lambda dtype, types=types: dtype in types)
        simulated = nullcontext() if types is None or knows(torch.bfloat16) else Bfloat16Processor()
        for dtype, net in fast.items():
            for autocast in (False, True):
                batch = (x if autocast else x.to(dtype)).to(memory_format=torch.channels_last)
                with torch.inference_mode(), simulated, torch.autocast('cpu', torch.bfloat16, enabled=autocast):
                    logits = net(batch)
                lower = autocast or dtype == torch.bfloat16
                assert logits.dtype == (torch.bfloat16 if lower else torch.float32)
                assert_close(logits.float(), exact, 0.05 if lower else 1e-4)


@pytest.mark.parametrize('name', ['preact_resnet20', 'preact_resnet110_orig'])
def test_autocast_leaves_a_float64_network_as_it_is(name):
    model, x = create(name), images()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert_close(optimize(model)(x), model(x), 1e-10)


@pytest.mark.parametrize('name', MODEL_ARGS)
def test_every_registered_net_computes_the_same_in_float64(name):
    model, x = create(name, small=False), images()
    with torch.no_grad():
        assert_close(optimize(model)(x), model(x), 1e-10)


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('name', NETS)
def test_float32_is_equal_but_for_rounding_with_and_without_a_graph(name, channels_last):
    """Without one a CPU runs oneDNN's fused kernels, twice with the weights packed; with one, plain operators."""
    model, x = create(name, torch.float32), images(torch.float32)
    fast = optimize(model, channels_last=channels_last)
    for batch in (x, x[:1], x.to(memory_format=torch.channels_last)):
        expected = model(batch)
        assert_close(fast(batch), expected, 1e-4)
        with torch.inference_mode():
            assert_close(fast(batch), expected, 1e-4)
    x.requires_grad_()
    gradient, = torch.autograd.grad(fast(x).square().sum(), x)
    expected, = torch.autograd.grad(model(x).square().sum(), x)
    assert (gradient - expected).norm() <= 0.01 * expected.norm()


def test_bfloat16_classifies_real_images_as_well(sample):
    model = timm.create_model('preact_resnet20', pretrained=True).eval()
    data = Images(sample, eval_transform(model))
    every = slice(0, 500, 1 if knows(torch.bfloat16) else 5)
    x = torch.stack([data[i][0] for i in range(500)[every]])
    labels = torch.from_numpy(sample.labels[every])
    with torch.inference_mode():
        exact = model(x)
        fast = optimize(model, dtype=torch.bfloat16)(x.bfloat16())
        plain = copy.deepcopy(model).bfloat16()(x.bfloat16())
    assert fast.dtype == torch.bfloat16
    assert (fast.argmax(1) == labels).float().mean() >= (exact.argmax(1) == labels).float().mean() - 0.01
    assert (fast - exact).norm() < 1.2 * (plain - exact).norm()


@pytest.mark.parametrize('cast', [
    lambda model: optimize(model, dtype=torch.bfloat16), lambda model: optimize(model).bfloat16()])
def test_what_the_stream_is_shifted_by_stays_in_float32(cast):
    model = create('preact_resnet20', torch.float32)
    norm, fast = model.stages[0].blocks[1].pre, cast(model)
    pre = fast.stages[0].blocks[1].pre
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert fast.stem.conv.weight.dtype == torch.bfloat16 and pre.shift.dtype == torch.float32
    torch.testing.assert_close(pre.shift, norm.bias - norm.running_mean * pre.scale, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pre.scale, scale.detach(), rtol=2 ** -8, atol=0)
    assert optimize(model).double().stages[0].blocks[1].pre.shift.dtype == torch.float64


def test_large_maps_take_the_fused_multiply_add_too():
    """Where a map is large enough for oneDNN's depthwise kernel: the threshold is crossed and not, in both types."""
    model = create('preact_resnet20', torch.float32, layers=(1, 1, 1))
    x = images(torch.float32, 130, 32)
    with torch.inference_mode():
        exact = model(x)
        assert_close(optimize(model)(x), exact, 1e-4)
        assert_close(optimize(model, dtype=torch.bfloat16)(x.bfloat16()).float(), exact, 0.1)


def test_an_empty_batch_gives_no_logits():
    fast = optimize(create('preact_resnet20', torch.float32))
    with torch.inference_mode():
        assert fast(images(torch.float32, 2)[:0]).shape == (0, 10)


def test_a_processor_without_bfloat16_runs_plain_kernels(monkeypatch):
    monkeypatch.setattr('timm_preact.kernels.onednn.knows', lambda dtype: dtype == torch.float32)
    model, x = create('preact_resnet164', torch.float32), images(torch.float32)
    with torch.inference_mode():
        assert_close(optimize(model, dtype=torch.bfloat16)(x.bfloat16()).float(), model(x), 0.1)


@pytest.mark.parametrize('kwargs', [
    dict(act_layer='silu'), dict(norm_layer='groupnorm1'), dict(drop_path_rate=0.5), dict(drop_rate=0.5),
    dict(placement='relu_only', merge='const_scale'), dict(output_stride=8), dict(num_classes=0)])
def test_other_arguments_of_the_model_are_kept(kwargs):
    model, x = create('preact_resnet18', **kwargs), images(size=64)
    with torch.no_grad():
        assert_close(optimize(model)(x), model(x), 1e-10)


def test_somebody_elses_net_of_our_units():
    norm = BatchNormAct2d
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode='reflect'), nn.BatchNorm2d(8), nn.SiLU(),
        ResidualUnit(8, 8, norm_layer=norm, placement='orig'),
        ResidualUnit(8, 16, norm_layer=norm, stride=2, kernels=(1, 3, 1), bottle_ratio=0.5),
        nn.ModuleDict(dict(norm=nn.BatchNorm2d(16, affine=False)))['norm'], nn.Flatten(), nn.Linear(16 * 256, 4))
    x = images()
    for _ in range(3):
        model.double().train()(x)
    model.eval()
    with torch.no_grad():
        assert_close(optimize(model)(x), model(x), 1e-10)


def test_units_of_one_layer_whose_shortcut_is_activated_are_not_overwritten_as_they_are_read():
    """Somebody's own: none of our names has such a unit behind another."""
    torch.manual_seed(0)
    model = nn.Sequential(*(ResidualUnit(8, 8, kernels=(3,), norm_layer=BatchNormAct2d) for _ in range(3))).eval()
    x = torch.randn(2, 8, 16, 16).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert_close(optimize(model)(x), model(x), 1e-4)


def scale_in_place(model):
    for p in model.parameters():
        p.mul_(1.5)


def scale_data(model):
    for p in model.parameters():
        p.data.mul_(1.5)


def zero_an_output_channel(model):
    for p in model.parameters():
        p.data[1] = 0


def zero_an_input_channel(model):
    for p in model.parameters():
        if p.ndim > 1:
            p.detach().numpy()[:, 1] = 0


def zero_small_values(model):
    """Magnitude pruning of a tenth of the values, by hand."""
    for p in model.parameters():
        p.data[p.data.abs() < p.data.abs().quantile(0.1)] = 0


def copy_in_place(model):
    for p in model.parameters():
        p.copy_(p * 1.5)


def set_data(model):
    for p in model.parameters():
        p.data = p * 1.5


def replace_parameters(model):
    for module in model.modules():
        for key, p in module._parameters.items():
            if p is not None:
                setattr(module, key, nn.Parameter(p * 1.5, requires_grad=False))


def scaled_state(model):
    return {key: tensor * 1.5 for key, tensor in model.state_dict().items()}


def average_with_another(model):
    """A weight soup, and what stochastic weight averaging does with each parameter."""
    other = copy.deepcopy(model)
    other.load_state_dict(scaled_state(model))
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    averaged.update_parameters(other)
    for p, average in zip(model.parameters(), averaged.module.parameters(), strict=True):
        p.detach().copy_(average)


def follow_another(model):
    """One step of timm's EMA whose average is the optimised network itself."""
    other = copy.deepcopy(model)
    other.load_state_dict(scaled_state(model))
    ema = ModelEmaV3(model, decay=0.5)
    ema.module = model
    ema.update(other)


@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize('change', [
    scale_in_place, scale_data, zero_an_output_channel, zero_an_input_channel, zero_small_values, copy_in_place,
    set_data, replace_parameters, average_with_another, follow_another,
    lambda model: model.load_state_dict(scaled_state(model)),
    lambda model: model.load_state_dict(scaled_state(model), assign=True),
], ids=['mul_', 'data.mul_', 'data[1]', 'numpy[:, 1]', 'data[small]', 'copy_', 'data', 'parameter', 'swa', 'ema',
        'load', 'assign'])
def test_weights_that_change_after_the_first_call_count_from_the_next_call_on(change, channels_last):
    """On a CPU the first call packs the weights: a fresh copy, which has none packed, computes the expected logits."""
    fast, x = optimize(create('preact_resnet20', torch.float32), channels_last=channels_last), images(torch.float32)
    with torch.no_grad():
        before = fast(x)
        change(fast)
        assert_close(fast(x), copy.deepcopy(fast)(x), 1e-6)
        assert (fast(x) - before).abs().max() > 0.001 * before.abs().max()


def test_functional_calls_use_the_parameters_that_they_are_given():
    """One set of parameters, and several at once by torch.func.vmap."""
    fast, x = optimize(create('preact_resnet20', torch.float32)), images(torch.float32)
    other = copy.deepcopy(fast)
    other.load_state_dict(scaled_state(fast))
    with torch.no_grad():
        expected = fast(x), other(x)
        assert_close(functional_call(fast, dict(other.named_parameters()), x), expected[1], 1e-6)
        assert_close(fast(x), expected[0], 1e-6)
        stacked, _ = stack_module_state([fast, other])
        both = torch.func.vmap(lambda parameters: functional_call(fast, parameters, x))(stacked)
        assert_close(both, torch.stack(expected), 1e-4)


def test_weights_of_a_network_made_in_inference_mode_may_change_too():
    """Its tensors have no version counter."""
    x = images(torch.float32)
    with torch.inference_mode():
        fast = optimize(create('preact_resnet20', torch.float32))
        fast(x)
        scale_in_place(fast)
        assert_close(fast(x), copy.deepcopy(fast)(x), 1e-6)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_unchanged_weights_are_packed_once(dtype):
    """Also after a cast; where the processor has no kernel for a type, nothing is packed."""
    fast = optimize(create('preact_resnet20', torch.float32)).to(dtype)
    x = images(dtype).to(memory_format=torch.channels_last)
    with torch.inference_mode(), Calls() as calls:
        for _ in range(3):
            fast(x)
    packed = [args for function, args, _ in calls.made if '_reorder_convolution_weight' in function.name()]
    convs = [module for module in fast.modules() if isinstance(module, FusedConv2d)]
    assert len(packed) == (len(convs) if knows(dtype) else 0)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_the_mean_is_taken_off_exactly_in_half_precision(dtype):
    """Far from zero, where a rounded scale would leave a shift of its own."""
    mean = torch.tensor([100., 1000.]).to(dtype)
    weight, invstd, bias = torch.tensor([0.7, 1.3]), torch.tensor([0.31, 2.7]), torch.tensor([0.5, -0.25])
    scale, shift = normalise(mean.float(), invstd, weight, bias, dtype)
    assert torch.equal(scale, scale.to(dtype).float())
    torch.testing.assert_close(mean.float() * scale + shift, bias, rtol=0, atol=1e-3)


# Its parts


@pytest.mark.parametrize('name', NETS)
def test_no_batch_norm_is_left(name):
    fast = optimize(create(name))
    assert not any(isinstance(module, _BatchNorm) for module in fast.modules())
    placement = MODEL_ARGS[name].get('placement', 'full')
    stream = sum(isinstance(module, ScaleShift) for module in fast.modules())
    units = sum(isinstance(module, FusedUnit) for module in fast.modules())
    if placement == 'full':  # of each unit the first norm, and the net's last; every other follows a convolution
        assert stream == units + MODEL_ARGS[name].get('final_norm', True)
    else:
        assert stream == (units if placement == 'bn_after_add' else 0)


def test_the_model_itself_is_left_as_it_was():
    model, x = create('preact_resnet20'), images()
    before, state = model(x), copy.deepcopy(model.state_dict())
    fast = optimize(model, dtype=torch.float32)
    assert torch.equal(model(x), before) and model.stem.conv.weight.requires_grad
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert not any(p.requires_grad for p in fast.parameters())
    assert not {p.data_ptr() for p in fast.parameters()} & {p.data_ptr() for p in model.parameters()}


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_copies_and_pickles_compute_the_same_after_a_first_call(dtype):
    fast, x = optimize(create('preact_resnet164', torch.float32), dtype=dtype), images(dtype)
    with torch.inference_mode():
        expected = fast(x)
        assert torch.equal(copy.deepcopy(fast)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(fast))(x), expected)
        other = optimize(create('preact_resnet164', torch.float32), dtype=dtype)
        for parameter in other.parameters():
            parameter.mul_(0)
        other.load_state_dict(fast.state_dict())
        assert torch.equal(other(x), expected)
        assert_close(fast.double()(images()), expected.double(), 0.05)


def save_and_load(model, x, folder):
    torch.save(model, folder / 'model.pth')
    return torch.load(folder / 'model.pth', weights_only=False)


def export_file(suffix):
    def write_and_load(model, x, folder):
        export(model, folder / f'model{suffix}', input_size=tuple(x.shape[1:]))
        file = str(folder / f'model{suffix}')
        return torch.jit.load(file) if suffix == '.pt' else torch.export.load(file).module()
    return write_and_load


def torch_export(strict, *dynamic):
    def exported(model, x, folder):
        shapes = ({dimension: torch.export.Dim.AUTO for dimension in dynamic},)
        return torch.export.export(model, (x,), dynamic_shapes=shapes, strict=strict).module()
    return exported


@pytest.mark.parametrize('is_called', [False, True], ids=['before', 'after'])
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('make', [
    save_and_load,
    lambda model, x, folder: copy.copy(model),
    lambda model, x, folder: copy.deepcopy(model),
    lambda model, x, folder: pickle.loads(pickle.dumps(model)),
    lambda model, x, folder: torch.jit.script(model),
    lambda model, x, folder: torch.jit.trace(model, x, check_trace=False),
    lambda model, x, folder: torch.fx.symbolic_trace(model),
    lambda model, x, folder: torch.compile(model, backend='eager', fullgraph=True),
    torch_export(False), torch_export(True), torch_export(False, 0, 2, 3), torch_export(True, 0, 2, 3),
    export_file('.pt'), export_file('.pt2'),
], ids=['save', 'copy', 'deepcopy', 'pickle', 'script', 'trace', 'fx', 'compile', 'export', 'strict export',
        'export auto', 'strict export auto', 'export .pt', 'export .pt2'])
@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_copies_and_graphs_of_it_can_be_made_before_and_after_its_first_call(make, channels_last, is_called, tmp_path):
    """The first call packs weights into tensors that have no storage; no tracer may come upon them."""
    model = create('preact_resnet110_orig', torch.float32, layers=(1, 1, 1))
    x = images(torch.float32).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    fast = optimize(model, channels_last=channels_last)
    with torch.no_grad():
        if is_called:
            fast(x.to(memory_format=torch.channels_last))
        assert_close(make(fast, x, tmp_path)(x), model(x), 1e-4)
        assert_close(fast(x), model(x), 1e-4)


# timm's methods


@pytest.mark.parametrize('name', NETS)
def test_features_are_those_of_the_plain_net(name):
    model, x = create(name), images(size=64)
    fast = optimize(model)
    with torch.no_grad():
        assert_close(fast.forward_features(x), model.forward_features(x), 1e-10)
        assert_close(fast.forward_head(fast.forward_features(x), pre_logits=True), model.forward_head(
            model.forward_features(x), pre_logits=True), 1e-10)
        for norm in (False, True):
            assert_close(fast.forward_intermediates(x, norm=norm), model.forward_intermediates(x, norm=norm), 1e-10)


@pytest.mark.parametrize('feature_cls', ['getter', 'list', 'fx', 'hook'])
@pytest.mark.parametrize('name', ['preact_resnet20', 'preact_resnet164', 'preact_resnet110_orig', 'preact_resnet50'])
def test_a_feature_extractor_can_be_optimised(name, feature_cls):
    model = create(name, features_only=True, feature_cls=feature_cls)
    x = images(size=64)
    with torch.no_grad():
        assert_close(optimize(model)(x), model(x), 1e-10)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_what_a_caller_holds_is_not_overwritten(dtype):
    """Units may overwrite what the unit before them made, but neither taps, nor what a hook saw, nor images."""
    fast, x = optimize(create('preact_resnet164', torch.float32, layers=(3, 3, 3)), dtype=dtype), images(dtype)
    image, seen = x.clone(), []
    with torch.inference_mode():
        expected = fast(x)
        for norm in (False, True):
            taps = fast.forward_intermediates(x, norm=norm, intermediates_only=True)
            again = fast.forward_intermediates(x, indices=1, norm=norm, stop_early=True, intermediates_only=True)
            copies = [tap.clone() for tap in taps]
            fast(x)
            assert all(torch.equal(tap, was) for tap, was in zip(taps, copies, strict=True)) and len(again) == 1
        for stage in fast.stages:
            for unit in stage.blocks:
                unit.register_forward_hook(lambda module, args, output: seen.append((output, output.clone())))
        assert torch.equal(fast(x), expected)
    assert len(seen) == 9 and all(torch.equal(output, was) for output, was in seen)
    assert torch.equal(x, image)


def everywhere(fast):
    return [module for stage in fast.stages for module in stage.blocks.modules()]


@pytest.mark.parametrize('where', [
    lambda fast: everywhere(fast),
    lambda fast: [unit for stage in fast.stages for unit in stage.blocks],
    *(lambda fast, part=part: [getattr(unit, part) for stage in fast.stages for unit in stage.blocks]
      for part in ('pre', 'merge', 'post', 'shortcut', 'residual'))],
    ids=['everywhere', 'units', 'pre', 'merge', 'post', 'shortcut', 'residual'])
@pytest.mark.parametrize('name', ['preact_resnet164', 'preact_resnet110_orig', 'preact_resnet110_orig_excl_gate'])
def test_no_tensor_that_a_hook_saw_changes_and_no_hook_sees_our_own_arguments(name, where):
    """Hooks of every kind: before and behind, with and without keyword arguments."""
    fast, x, seen = optimize(create(name, torch.float32, layers=(3, 3, 3))), images(torch.float32), []

    def keep(tensors):
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors)
        seen.extend((tensor, tensor.clone()) for tensor in tensors)

    with torch.inference_mode():
        expected = fast(x)
        for module in where(fast):
            module.register_forward_pre_hook(lambda module, args: keep(args))
            module.register_forward_pre_hook(
                lambda module, args, kwargs: keep([*args, *kwargs.values()]), with_kwargs=True)
            module.register_forward_hook(lambda module, args, output: keep([*args, output]))
        assert torch.equal(fast(x), expected)
    assert len(seen) >= 9 and all(torch.equal(tensor, was) for tensor, was in seen)


def test_no_tensor_that_torchs_global_hooks_saw_changes():
    fast, x, seen = optimize(create('preact_resnet164', torch.float32, layers=(3, 3, 3))), images(torch.float32), []

    def keep(module, args, output=None):
        seen.extend((t, t.clone()) for t in (*args, output) if t is not None)

    handles = [nn.modules.module.register_module_forward_pre_hook(keep),
               nn.modules.module.register_module_forward_hook(keep)]
    with torch.inference_mode():
        fast(x)
    for handle in handles:
        handle.remove()
    assert len(seen) > 100 and all(torch.equal(tensor, was) for tensor, was in seen)


@pytest.mark.parametrize('part', ['residual.norm1', 'merge', 'pre', 'residual.conv2'])
def test_a_hook_from_before_sees_what_it_saw(part):
    """Where folding would take away what a hook looks at, a unit keeps its modules."""
    model, x, seen = create('preact_resnet20'), images(), []
    model.stages[1].blocks[1].get_submodule(part).register_forward_hook(
        lambda module, args, output: seen.append((*args, output)))
    fast = optimize(model)
    with torch.no_grad():
        assert_close(fast(x), model(x), 1e-10)
    assert len(seen) == 2
    assert_close(*seen, 1e-10)


def test_forwards_and_classes_of_ones_own_stay():
    class Doubled(ResidualUnit):
        def forward(self, x):
            return 2 * super().forward(x)

    class Shifted(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Shifted(8), Doubled(8, 8, norm_layer=BatchNormAct2d),
                          ResidualUnit(8, 8, norm_layer=BatchNormAct2d), nn.Conv2d(8, 8, 3)).double().eval()
    model[3].forward = lambda x, forward=model[3].forward: forward(x) * 3
    model[4].forward = lambda x, forward=model[4].forward: forward(x) * 5
    model[0]._conv_forward = lambda *args, forward=model[0]._conv_forward: forward(*args) * 7
    with torch.no_grad():
        assert_close(optimize(model)(images()), model(images()), 1e-10)


def prune_weight_and_bias(layer):
    prune.random_unstructured(layer, 'weight', 0.5)
    if layer.bias is not None:
        prune.random_unstructured(layer, 'bias', 0.5)


@pytest.mark.parametrize('change', [
    prune_weight_and_bias, nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm,
    nn.utils.parametrizations.spectral_norm], ids=['prune', 'weight_norm', 'spectral_norm', 'new weight_norm',
                                                   'new spectral_norm'])
@pytest.mark.parametrize('name, layers', [
    ('preact_resnet20', ['stem.conv', 'stages.0.blocks.1.residual.conv1', 'stages.2.blocks.0.residual.conv2']),
    ('preact_resnet110_orig', ['stem.conv', 'stages.1.blocks.0.residual.conv1', 'stages.0.blocks.0.residual.norm1']),
    ('preact_resnet50', ['stages.0.blocks.0.shortcut.conv', 'stages.1.blocks.0.residual.conv3', 'head.fc'])])
@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_layers_whose_weight_is_computed_stay_as_they_are(name, layers, change):
    """The weight is no parameter of the layer then; one forward pass with gradients has computed it before."""
    torch.manual_seed(0)
    model, x = create(name), images(size=64)
    for layer in map(model.get_submodule, layers):
        if isinstance(layer, (nn.Conv2d, nn.Linear)) or change is prune_weight_and_bias:
            change(layer)
    plain = create(name)(x)
    expected = model(x)
    fast = optimize(model)
    with torch.no_grad():
        assert_close(fast(x), expected, 1e-10)
        assert_close(fast(x), model(x), 1e-10)
    assert (expected - plain).abs().max() > 1e-3 * plain.abs().max() or 'weight_norm' in change.__name__
    assert any(isinstance(module, (FusedConv2d, ScaleShift)) for module in fast.modules())


@pytest.mark.parametrize('convert', [nn.SyncBatchNorm.convert_sync_batchnorm, convert_sync_batchnorm],
                         ids=['torch', 'timm'])
@pytest.mark.parametrize('name', ['preact_resnet20', 'preact_resnet110_orig', 'preact_resnet110_bn_after_add'])
def test_what_a_conversion_to_sync_batchnorm_made_is_what_is_optimised(name, convert):
    """torch's leaves timm's norms without their ReLU: that network is another one, and stays it."""
    model, x = convert(create(name)), images()
    with torch.no_grad():
        assert_close(optimize(model)(x), model(x), 1e-10)


def test_torchscript_and_fx_follow_it():
    model, x = create('preact_resnet50'), images(size=64)
    fast = optimize(model)
    with torch.no_grad():
        expected = fast(x)
        assert_close(torch.jit.script(fast)(x), expected, 1e-12)
        assert_close(timm.models.create_feature_extractor(fast, {'stages.1': 'a'})(x)['a'],
                     model.forward_intermediates(x, indices=[2], intermediates_only=True)[0], 1e-10)


def test_a_net_that_was_checkpointed_in_training_can_be_optimised():
    model, x = create('preact_resnet50', checkpoint_every=2), images(size=64)
    model.set_grad_checkpointing()
    assert_close(optimize(model)(x), model(x), 1e-10)
    assert model.stages[0].grad_checkpointing and not optimize(model).stages[0].grad_checkpointing


def test_a_cuda_graph_is_refused_on_a_cpu():
    with pytest.raises(UserError, match=r"cuda_graph=True is for a network on a GPU: call model.to\('cuda'\) before"):
        optimize(create('preact_resnet20'), cuda_graph=True)


def test_calls_that_no_graph_can_take_are_those_of_the_network():
    """What is left of a captured network off the GPU, under tracers and in copies; on one: tests/test_gpu.py."""
    fast, x = optimize(create('preact_resnet20', layers=(1, 1, 1))), images()
    expected = fast(x)
    capture_calls(fast)
    assert torch.equal(fast(x), expected) and torch.equal(fast(x=x), expected)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), torch.jit.script(copy.deepcopy(fast)),
                  torch.jit.trace(fast, x, check_trace=False), torch.compile(fast, backend='eager')):
        torch.testing.assert_close(other(x), expected)
    assert fast.state_dict().keys() == copy.deepcopy(fast).state_dict().keys()
    x.requires_grad_()
    fast(x).sum().backward()
    assert x.grad is not None and fast.float()(x.float()).dtype == torch.float32


def test_training_mode_is_refused():
    model = timm.create_model('preact_resnet20')
    with pytest.raises(UserError, match='call model.eval'):
        optimize(model)
    model.eval().stages[0].train()
    with pytest.raises(UserError, match='call model.eval'):
        optimize(model)


def test_evaluate_takes_an_optimised_net(sample):
    model = timm.create_model('preact_resnet20', pretrained=True).eval()
    data = Images(sample, eval_transform(model))
    assert evaluate(optimize(model), data).top1 == evaluate(model, data).top1
    assert isinstance(optimize(model).stem.conv, FusedConv2d)
