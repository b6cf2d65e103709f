"""Replicas beside the modules they stand in for: the same images, a step of each, what became of both."""
import torch
import torch.nn.functional as F
from support.networks import create

from timm_preact.data import ImageSet
from train.batches import Batches, EpochPlan
from train.recipe import choose_recipe, parameter_groups
from train.replicas import Replicas

# Every placement, merge, number of convolutions and shortcut, as far as Tables 1 to 3 have them on CIFAR
SMALL = dict(layers=(1, 1), channels=(16, 32))
DEEPER = dict(layers=(2, 1))
WIDE = dict(channels=(64, 128))
OPEN = dict(merge_kwargs=dict(bias=-1.))
NETS = {
    'full': ('preact_resnet110', DEEPER),
    'orig': ('preact_resnet110_orig', {}),
    'bn_after_add': ('preact_resnet110_bn_after_add', {}),
    'relu_before_add': ('preact_resnet110_relu_before_add', {}),
    'relu_only': ('preact_resnet110_relu_only', DEEPER),
    'const_scale': ('preact_resnet110_orig_const_scale', {}),
    'excl_gate': ('preact_resnet110_orig_excl_gate', OPEN),
    'shortcut_gate': ('preact_resnet110_orig_shortcut_gate', OPEN),
    'conv_shortcut': ('preact_resnet110_orig_conv_shortcut', {}),
    '1layer': ('preact_resnet110_1layer', DEEPER),
    '1layer_orig': ('preact_resnet110_1layer_orig', {}),
    'bottleneck': ('preact_resnet164', WIDE),
    'bottleneck_orig': ('preact_resnet164_orig', WIDE),
    'B': ('preact_resnet110_orig', dict(shortcut='B')),
    'C': ('preact_resnet110', dict(shortcut='C')),
    'pytorchcv': ('preact_resnet164_pcv', WIDE),
    'no_final_norm': ('preact_resnet110', dict(final_norm=False)),
}


def net(kind, seed=0, **kwargs):
    """A small network in training mode, other weights for another seed."""
    name, given = NETS[kind]
    model = create(name, torch.float32, **{**SMALL, **given, **kwargs}, num_classes=10)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters() if seed else ():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return model


def cropped(images: ImageSet, which, size):
    """A corner of some images."""
    return ImageSet(images.images[which, :size, :size].copy(), images.labels[which], images.classes)


class Beside:
    """Replicas of networks, and the networks themselves, trained by the same recipe on the same crops."""

    def __init__(self, models, sets, device=torch.device('cpu'), dtype=torch.float32, **changes):
        recipe = choose_recipe(**{**dict(recipe='paper', batch_size=8, bn_group=4, weight_decay=0.01), **changes})
        train, test = sets
        self.models, self.size, self.recipe, self.device = models, recipe.batch_size, recipe, device
        mean, std = torch.from_numpy(train.images.mean(0) / 255).float(), torch.ones(3)
        self.batches, self.tests = (Batches(s, recipe, mean, std, device) for s in sets)
        self.replicas = Replicas(models, recipe, self.batches, self.tests, device, dtype)
        self.optimizers = [torch.optim.SGD(
            parameter_groups(m, recipe), lr=0.1, momentum=recipe.momentum, nesterov=recipe.nesterov) for m in models]
        self.plans = [EpochPlan.make(recipe, r, 0, train.images.shape, device) for r in range(len(models))]
        for r, (model, plan) in enumerate(zip(models, self.plans, strict=True)):
            self.replicas.put(r, model, model, {name: torch.zeros_like(p) for name, p in model.named_parameters()})
            for mine, drawn in zip(self.replicas.plan[:, r], plan, strict=True):
                mine.copy_(drawn)
        self.replicas.rates.fill_(0.1)
        self.replicas.expand()()

    def step(self, step=0):
        """One step of all replicas."""
        self.replicas.places.fill_(step * self.size)
        self.replicas.step()

    def step_of_modules(self, r, step=0, autocast=False):
        """The same of a network by PyTorch: its loss; gradients stay in its parameters."""
        model, total = self.models[r], 0.
        x, y = self.batches.train(self.plans[r], torch.arange(self.size, device=self.device) + step * self.size)
        self.optimizers[r].zero_grad()
        for part, target in zip(*(t.split(self.recipe.bn_group) for t in (x, y)), strict=True):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
                logits = model(part)
            loss = F.cross_entropy(logits.float(), target, label_smoothing=self.recipe.label_smoothing)
            loss = loss * len(part) / self.size
            loss.backward()
            total += loss.item()
        self.optimizers[r].step()
        return total

    def differences(self, r, loss):
        """Of loss, gradients, running statistics and parameters after a step: the largest, relative to their norm."""
        model, replicas = self.models[r], self.replicas
        parameters = dict(model.named_parameters())
        gradients = replicas.named(replicas.grads[r])
        assert gradients.keys() == parameters.keys()
        return dict(
            loss=abs(replicas.losses[r].sum().item() - loss) / loss,
            gradients=max(distance(gradients[name], p.grad) for name, p in parameters.items()),
            statistics=max(distance(tensor, model.state_dict()[name])
                           for name, tensor in replicas.running_statistics(replicas.running[r]).items()),
            parameters=max(distance(tensor, parameters[name])
                           for name, tensor in replicas.named(replicas.values[r]).items()))


def distance(a, b):
    return ((a.double() - b.double()).norm() / (b.double().norm() + 1e-12)).item()
