"""Networks laid out and named as pytorch-cifar100's (weiaicunzai), written anew."""
import torch.nn.functional as F
from support.pytorch_cifar import LAYERS
from torch import nn


def shapes_of(in_chs, out_chs, stride, bottleneck, strided):
    """(in, out, kernel, stride) of each convolution of a branch; the one at index `strided` has the stride."""
    mid_chs = out_chs // 4
    shapes = [(in_chs, mid_chs, 1), (mid_chs, mid_chs, 3), (mid_chs, out_chs, 1)] if bottleneck else [
        (in_chs, out_chs, 3), (out_chs, out_chs, 3)]
    return [(*shape, stride if i == strided else 1) for i, shape in enumerate(shapes)]


class Unit(nn.Module):
    """The stride is on the 3x3; no biases; a projection has a norm."""

    def __init__(self, in_chs, out_chs, stride, bottleneck):
        super().__init__()
        layers = []
        for before, after, kernel, step in shapes_of(in_chs, out_chs, stride, bottleneck, 1 if bottleneck else 0):
            layers += [nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False), nn.BatchNorm2d(after),
                       nn.ReLU()]
        self.residual_function = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential()
        if (in_chs, stride) != (out_chs, 1):
            self.shortcut.extend([nn.Conv2d(in_chs, out_chs, 1, stride, bias=False), nn.BatchNorm2d(out_chs)])

    def forward(self, x):
        return F.relu(self.shortcut(x) + self.residual_function(x))


class PreActUnit(nn.Module):
    """The stride is on the first convolution; every convolution has a bias; a projection reads the raw tensor."""

    def __init__(self, in_chs, out_chs, stride, bottleneck):
        super().__init__()
        self.residual = nn.Sequential()
        for before, after, kernel, step in shapes_of(in_chs, out_chs, stride, bottleneck, 0):
            conv = nn.Conv2d(before, after, kernel, step, kernel // 2)
            self.residual.extend([nn.BatchNorm2d(before), nn.ReLU(), conv])
        self.shortcut = nn.Sequential() if (in_chs, stride) == (out_chs, 1) else nn.Conv2d(in_chs, out_chs, 1, stride)

    def forward(self, x):
        return self.shortcut(x) + self.residual(x)


class Network(nn.Module):
    """Both have a norm and a ReLU in the stem, and none before the classifier."""

    def __init__(self, depth, unit, classes=100):
        super().__init__()
        stem, stage, head = ('conv1', 'conv{}_x', 'fc') if unit is Unit else ('pre', 'stage{}', 'linear')
        bottleneck = depth >= 50
        self.add_module(stem, nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1, bias=unit is PreActUnit), nn.BatchNorm2d(64), nn.ReLU()))
        in_chs = 64
        for i, count in enumerate(LAYERS[depth]):
            out_chs = 64 * 2 ** i * (4 if bottleneck else 1)
            units = nn.Sequential()
            for j in range(count):
                units.append(unit(in_chs, out_chs, 2 if i and not j else 1, bottleneck))
                in_chs = out_chs
            self.add_module(stage.format(i + (2 if unit is Unit else 1)), units)
        self.add_module(head, nn.Linear(in_chs, classes))

    def forward(self, x):
        *stages, classifier = self.children()
        for stage in stages:
            x = stage(x)
        return classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
