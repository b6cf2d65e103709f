"""Networks laid out and named as pytorch-cifar's (kuangliu), written anew: models.py of a clone in docs/migrate.md."""
import torch.nn.functional as F
from torch import nn

LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class PreActUnit(nn.Module):
    def __init__(self, in_chs, out_chs, stride, bottleneck):
        super().__init__()
        mid_chs = out_chs // 4 if bottleneck else out_chs
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        widths = [in_chs, *[mid_chs] * (len(kernels) - 1), out_chs]
        strided = kernels.index(3)
        for i, kernel in enumerate(kernels):
            self.add_module(f'bn{i + 1}', nn.BatchNorm2d(widths[i]))
            self.add_module(f'conv{i + 1}', nn.Conv2d(
                widths[i], widths[i + 1], kernel, stride if i == strided else 1, kernel // 2, bias=False))
        self.depth = len(kernels)
        if stride != 1 or in_chs != out_chs:
            self.shortcut = nn.Sequential(nn.Conv2d(in_chs, out_chs, 1, stride, bias=False))

    def forward(self, x):
        a = F.relu(self.bn1(x))
        shortcut = self.shortcut(a) if hasattr(self, 'shortcut') else x
        for i in range(self.depth):
            a = self.get_submodule(f'conv{i + 1}')(F.relu(self.get_submodule(f'bn{i + 1}')(a)) if i else a)
        return a + shortcut


class Unit(nn.Module):
    def __init__(self, in_chs, out_chs, stride, bottleneck):
        super().__init__()
        mid_chs = out_chs // 4 if bottleneck else out_chs
        shapes = [(in_chs, mid_chs, 1), (mid_chs, mid_chs, 3), (mid_chs, out_chs, 1)] if bottleneck else [
            (in_chs, out_chs, 3), (out_chs, out_chs, 3)]
        strided = 1 if bottleneck else 0
        self.depth = len(shapes)
        for i, (before, after, kernel) in enumerate(shapes):
            self.add_module(f'conv{i + 1}', nn.Conv2d(
                before, after, kernel, stride if i == strided else 1, kernel // 2, bias=False))
            self.add_module(f'bn{i + 1}', nn.BatchNorm2d(after))
        self.shortcut = nn.Sequential()
        if (in_chs, stride) != (out_chs, 1):
            self.shortcut.extend([nn.Conv2d(in_chs, out_chs, 1, stride, bias=False), nn.BatchNorm2d(out_chs)])

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = self.get_submodule(f'bn{i}')(self.get_submodule(f'conv{i}')(y))
            if i < self.depth:
                y = F.relu(y)
        return F.relu(self.shortcut(x) + y)


class Network(nn.Module):
    def __init__(self, depth, unit, classes=10):
        super().__init__()
        bottleneck = depth >= 50
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        if unit is Unit:
            self.bn1 = nn.BatchNorm2d(64)
        in_chs = 64
        for i, count in enumerate(LAYERS[depth]):
            out_chs = 64 * 2 ** i * (4 if bottleneck else 1)
            units = []
            for j in range(count):
                units.append(unit(in_chs, out_chs, 2 if i and not j else 1, bottleneck))
                in_chs = out_chs
            self.add_module(f'layer{i + 1}', nn.Sequential(*units))
        self.linear = nn.Linear(in_chs, classes)

    def forward(self, x):
        x = self.conv1(x)
        if hasattr(self, 'bn1'):
            x = F.relu(self.bn1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if hasattr(self, 'bn'):  # of forks
            x = F.relu(self.bn(x))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


def ResNet18():
    return Network(18, Unit)


def PreActResNet18():
    return Network(18, PreActUnit)
