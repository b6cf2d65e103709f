"""Small networks of every kind, and what a training step makes of them."""
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from timm_preact.preact_resnet import MODEL_ARGS

# A name of every placement, merge, shortcut, stem and number of convolutions.
NETS = [
    'preact_resnet20', 'preact_resnet164', 'preact_resnet110_1layer', 'preact_resnet110_1layer_orig',
    'preact_resnet110_orig', 'preact_resnet110_bn_after_add', 'preact_resnet110_relu_before_add',
    'preact_resnet110_relu_only', 'preact_resnet110_orig_const_scale', 'preact_resnet110_orig_excl_gate',
    'preact_resnet110_orig_shortcut_gate', 'preact_resnet110_orig_dropout_shortcut',
    'preact_resnet110_orig_conv_shortcut', 'preact_resnet20_pcv', 'preact_resnet18', 'preact_resnet50',
    'preact_resnet101_orig', 'preact_resnet200_fb', 'preact_resnet50_keras', 'preact_resnet18_timm',
    'preact_resnet50_timm', 'preact_resnet18_kuang', 'preact_resnet50_orig_kuang', 'preact_resnet50_wei',
]
SMALL_IMAGENET = dict(layers=(2, 1, 1, 1), channels=(32, 64, 64, 96))


def create(name, dtype=torch.float64, **kwargs):
    """A small net in training mode, the same at each call, whose norms all shift and scale what they read."""
    torch.manual_seed(0)
    small = dict(layers=(2, 2, 1)) if len(MODEL_ARGS[name]['layers']) == 3 else SMALL_IMAGENET
    model = timm.create_model(name, **{**small, **kwargs})
    for module in model.modules():
        if isinstance(module, BatchNormAct2d):
            nn.init.uniform_(module.weight, -0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.running_mean)
    return model.to(dtype).train()


def step(model, x, y, autocast=False):
    """Loss, gradients (of parameters that have one) and buffers after one forward and backward."""
    torch.manual_seed(1)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        loss = F.cross_entropy(model(x), y)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, dict(model.named_buffers())


def assert_same_step(actual, expected, rtol=1e-6):
    torch.testing.assert_close(actual[0], expected[0], rtol=rtol, atol=0)
    for kind in (1, 2):
        assert actual[kind].keys() == expected[kind].keys()
        for name, tensor in expected[kind].items():
            scale = tensor.abs().max().double().item() if tensor.numel() else 0.
            torch.testing.assert_close(actual[kind][name], tensor, rtol=rtol, atol=rtol * scale + 1e-14, msg=name)


def assert_close(actual, expected, tolerance):
    """The largest difference is at most a share of the largest value; in lists too."""
    if isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, tolerance)
    else:
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


class Calls(TorchDispatchMode):
    """Every operator that runs, with its arguments."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.made.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


class Bfloat16Processor(TorchDispatchMode):
    """Computes oneDNN's fused convolutions of bfloat16 by plain operators, on a processor whose oneDNN has none.

    It refuses what oneDNN refuses: an input, weight, bias or addend whose types differ.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, dtypes = function.name(), {a.dtype for a in args if isinstance(a, torch.Tensor)}
        if not name.startswith('mkldnn::') or torch.bfloat16 not in dtypes:
            return function(*args, **(kwargs or {}))
        if 'reorder' in name:
            return args[0].clone()
        plus = None
        if '.binary' in name:
            plus, args = (args[0], args[1:]) if 'pointwise_' in name else (args[1], (args[0], *args[2:]))
        x, weight, bias, padding, stride, dilation, groups = args[:7]
        if groups == len(weight) and bias.dtype == torch.float32:  # a BatchNorm's shift, which oneDNN takes
            bias = bias.bfloat16()
        else:
            assert dtypes == {torch.bfloat16}, 'Input, weight and bias types differ'
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        y = y if plus is None else y + plus
        return y.relu() if 'relu' in args[7:] else y
