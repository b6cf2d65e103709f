"""Training runs of a tiny net, for the tests of the trainer on a CPU and on a GPU."""
import torch

from train.group import crews_of
from train.run import train_together

CPU = torch.device('cpu')
TINY = dict(layers=[1, 1, 1], channels=[4, 8, 16], stem_chs=4)


def ends(*runs, **options):
    """Train runs to their ends, in the order in which they end."""
    return list(train_together(iter(runs), len(runs), **options))


def cut(run, steps):
    """Train a run for some steps, save it and let go of its folder, which is returned."""
    for _ in range(steps):
        run.advance()
    run.save()
    run.close()
    return run.output


def cut_after(steps, run):
    """Train a run as a replica for some steps, save it and let go of its folder."""
    group, = crews_of([run])
    for _ in range(steps):
        group.advance()
    run.save()
    group.part()
    run.close()


def outcome(run):
    """What must not depend on what else happened: the weights, trained and kept, and the curve without the clock."""
    curve = [(row['step'], row['lr'], row['train_loss'], row['test_error']) for row in run.history]
    return curve, {(which, name): tensor.clone() for which in ('model', 'kept')
                   for name, tensor in getattr(run, which).state_dict().items()}


def assert_same_bits(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])
