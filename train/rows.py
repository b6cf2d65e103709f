"""The rows of the paper's Tables 1 to 4, the figures that compare them, and rows of our own beside them: data alone."""
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from timm_preact.weights.sources import SOURCES

__all__ = ['CIFAR', 'DATA', 'FIGURES', 'PAPER_ROWS', 'ROWS', 'Row', 'SMALL_EPOCHS', 'SMALL_FIGURES', 'SMALL_ROWS',
           'TRAINED_EPOCHS', 'TRAINED_ROWS', 'TUNED_ROWS']

SMALL_EPOCHS = 4
TUNED_EPOCHS = 100
LONG_EPOCHS = 200
TRAINED_EPOCHS = 38
DATA = ('cifar10', 'cifar100')
# Of the training images and the test images, as ImageSet.sha256 has it
CIFAR: Dict[str, List[str]] = {
    'cifar10': ['e7e912a8c6333907de72724e1c12b6242f4d951c24cbcccedcfa406ea340a13c',
                '9e679641927cac7f96fbd18f3253e0fbca071e2fe5bde8c71b6b6f50a01e834d'],
    'cifar100': ['41448caca7bac6b27ff72d52c429308abc69dfb60ab0724c2711468d8e8380ad',
                 '057c7829f3bb825efb9c56a9d647782cefd4fabb158ade568c969721521850d0'],
}


class Row(NamedTuple):
    """One experiment of the paper, which several tables may show.

    Attributes:
        tables: Where it stands.
        case: What the paper calls it.
        model: Registered name.
        paper: Test error in percent, 'fail', or None where there is none.
        kind: Of the paper's number: 'median' of 5 runs; 'run' of one; 'fail'; or 'pytorchcv', the number of a peer.
        mean: Mean and standard deviation, where the paper has them beside the median.
        data: 'cifar10' or 'cifar100'.
        model_kwargs: Constructor arguments beside the name's own.
        options: Of train.cifar; its recipe and what is changed in it.
    """
    tables: str
    case: str
    model: str
    paper: Union[float, str, None]
    kind: str = 'median'
    mean: Optional[Tuple[float, float]] = None
    data: str = 'cifar10'
    model_kwargs: Dict[str, Any] = {}
    options: Dict[str, Any] = {'recipe': 'paper', 'bn_group': 64}


def _table1(key: str, case: str, paper: Any, merge: str, **merge_kwargs: float) -> Tuple[str, Row]:
    model_kwargs = dict(merge_kwargs=merge_kwargs) if merge_kwargs else {}
    kind = 'fail' if paper == 'fail' else 'median'
    return f'110-{key}', Row('1', case, f'preact_resnet110_orig_{merge}', paper, kind, model_kwargs=model_kwargs)


PLACEMENTS = {
    'orig': ('original', 6.61, 5.93),
    'bn_after_add': ('BN after addition', 8.17, 6.50),
    'relu_before_add': ('ReLU before addition', 7.84, 6.14),
    'relu_only': ('ReLU-only pre-activation', 6.71, 5.91),
    'full': ('full pre-activation', 6.37, 5.46),
}


def _named(depth: str, placement: str) -> str:
    return f'preact_resnet{depth}' + ('' if placement == 'full' else f'_{placement}')


# In the order in which `run --all` takes them: the paper's claim first
PAPER_ROWS: Dict[str, Row] = {
    **{f'110-{p}': Row(tables, PLACEMENTS[p][0], _named('110', p), PLACEMENTS[p][1]) for p, tables in (
        ('full', '2, 3'), ('orig', '1, 2, 3, 4'), ('bn_after_add', '2'), ('relu_before_add', '2'), ('relu_only', '2'))},
    **dict([
        _table1('const_scale_0_1', 'constant scaling 0, 1', 'fail', 'const_scale', shortcut=0., residual=1.),
        _table1('const_scale_0.5_1', 'constant scaling 0.5, 1', 'fail', 'const_scale', shortcut=0.5, residual=1.),
        _table1('const_scale_0.5_0.5', 'constant scaling 0.5, 0.5', 12.35, 'const_scale'),
        *(_table1(f'excl_gate_{b}', f'exclusive gating, bias {b}', paper, 'excl_gate', bias=float(b))
          for b, paper in (*((b, 'fail') for b in range(0, -6, -1)), (-6, 8.70), (-7, 9.81))),
        *(_table1(f'shortcut_gate_{b}', f'shortcut-only gating, bias {b}', paper, 'shortcut_gate', bias=float(b))
          for b, paper in ((0, 12.86), (-6, 6.91))),
        _table1('conv_shortcut', '1x1 conv shortcut', 12.22, 'conv_shortcut'),
        _table1('dropout_shortcut', 'dropout shortcut, 0.5', 'fail', 'dropout_shortcut'),
    ]),
    **{f'164-{p}': Row('2, 3, 4' if p == 'full' else '2, 3' if p == 'orig' else '2', case, _named('164', p), paper)
       for p, (case, _, paper) in PLACEMENTS.items()},
    '110-1layer': Row('3', '1-layer skip, full pre-activation', 'preact_resnet110_1layer', 8.91),
    '110-1layer-orig': Row('3', '1-layer skip, original', 'preact_resnet110_1layer_orig', 9.90),
    '164-full-cifar100': Row('3, 4', 'full pre-activation', 'preact_resnet164', 24.33, data='cifar100'),
    '164-orig-cifar100': Row('3, 4', 'original', 'preact_resnet164_orig', 25.16, data='cifar100'),
    '1001-full': Row('3, 4', 'full pre-activation', 'preact_resnet1001', 4.92, mean=(4.89, 0.14)),
    '1001-orig': Row('3', 'original', 'preact_resnet1001_orig', 7.61),
    '1001-full-cifar100': Row(
        '3, 4', 'full pre-activation', 'preact_resnet1001', 22.71, mean=(22.68, 0.22), data='cifar100'),
    '1001-orig-cifar100': Row('3, 4', 'original', 'preact_resnet1001_orig', 27.82, data='cifar100'),
    '1001-full-batch64': Row('4', 'full pre-activation, batch 64', 'preact_resnet1001', 4.62, mean=(4.69, 0.20),
                             options={'recipe': 'torch', 'bn_group': 32}),
    '1202-orig': Row('4', 'original, 1202 layers (one run)', 'preact_resnet110_orig', 7.93, 'run',
                     model_kwargs={'layers': [200, 200, 200]}),
}
def _tuned(depth: int, data: str, epochs: int) -> Row:
    peer = SOURCES.get(f'preact_resnet{depth}_pcv.{data}')
    return Row('-', f'ResNet-{depth}, {epochs} epochs', f'preact_resnet{depth}', peer and peer.reported[0], 'pytorchcv',
               data=data, options={'recipe': 'tuned', 'epochs': epochs})


# What ships for every bare name, and what a long training makes of the deep ones
TUNED_ROWS: Dict[str, Row] = {
    **{f'tuned-{depth}': _tuned(depth, 'cifar10', TUNED_EPOCHS) for depth in (110, 164, 56, 20)},
    **{f'tuned-{depth}-cifar100': _tuned(depth, 'cifar100', TUNED_EPOCHS) for depth in (20, 56)},
    **{f'tuned-{depth}-long' + ('' if data == 'cifar10' else f'-{data}'): _tuned(depth, data, LONG_EPOCHS)
       for depth in (110, 164, 1001) for data in DATA},
}
SMALL_ROWS: Dict[str, Row] = {
    key.replace('110-', '20-'): row._replace(
        model_kwargs=dict(row.model_kwargs, layers=[3, 3, 3]), options={'recipe': 'modern', 'epochs': SMALL_EPOCHS})
    for key, row in PAPER_ROWS.items() if key.startswith('110-') and '3' != row.tables
}
# The paper's two units, trained to the end in a quarter of its steps: what training makes of them
TRAINED_ROWS: Dict[str, Row] = {
    f'{key}-modern': PAPER_ROWS[key]._replace(tables='-', options={'recipe': 'modern', 'epochs': TRAINED_EPOCHS})
    for key in ('110-orig', '110-full')
}
ROWS = {**PAPER_ROWS, **TUNED_ROWS, **TRAINED_ROWS, **SMALL_ROWS}
# What the paper draws, by figure and panel: the original, and what it is compared with
FIGURES: Dict[str, Dict[str, Tuple[str, str]]] = {
    'figure1': {'ResNet-1001': ('1001-orig', '1001-full')},
    'figure3': {'ResNet-110: constant scaling': ('110-orig', '110-const_scale_0.5_0.5'),
                'ResNet-110: exclusive gating': ('110-orig', '110-excl_gate_-6'),
                'ResNet-110: shortcut-only gating': ('110-orig', '110-shortcut_gate_0'),
                'ResNet-110: 1x1 conv shortcut': ('110-orig', '110-conv_shortcut')},
    'figure6': {'ResNet-110: BN after addition': ('110-orig', '110-bn_after_add'),
                'ResNet-164: pre-activation': ('164-orig', '164-full')},
}
SMALL_FIGURES = {
    f'small_{name}': {re.sub(r'ResNet-\d+', '20 layers', title): tuple(re.sub(r'^\d+-', '20-', key) for key in keys)
                      for title, keys in panels.items()}
    for name, panels in FIGURES.items() if name != 'figure1'
}
