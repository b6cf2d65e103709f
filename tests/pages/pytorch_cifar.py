"""A network laid out and named as pytorch-cifar's PreActResNet18 and 50, for docs/migrate.md: models.py of a clone."""
import torch.nn.functional as F
from torch import nn


class Unit(nn.Module):
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


class Network(nn.Module):
    def __init__(self, layers, bottleneck):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        in_chs = 64
        for i, depth in enumerate(layers):
            out_chs = 64 * 2 ** i * (4 if bottleneck else 1)
            units = []
            for j in range(depth):
                units.append(Unit(in_chs, out_chs, 2 if i and not j else 1, bottleneck))
                in_chs = out_chs
            self.add_module(f'layer{i + 1}', nn.Sequential(*units))
        self.linear = nn.Linear(in_chs, 10)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


def PreActResNet18():
    return Network((2, 2, 2, 2), bottleneck=False)


def PreActResNet50():
    return Network((3, 4, 6, 3), bottleneck=True)
