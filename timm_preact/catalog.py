"""What is known of each registered name: size, cost, the paper's errors and ours.

Errors are top-1 errors in percent on the test or validation set, by data set ('cifar10', 'cifar100', 'in1k').
"""
import math
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import timm
from torch import nn

from .errors import ArgumentError, UserError
from .weights.sources import SOURCES

__all__ = [
    'DATA_SETS', 'DEMO_MODEL', 'MEASURED', 'PAPER', 'SIZES', 'Size', 'count_macs', 'data_of', 'depth_of', 'error_of',
    'find_best', 'find_better', 'list_networks',
]

DATA_SETS = ('cifar10', 'cifar100', 'svhn', 'in1k')  # as tags end
SORTS = ('name', 'error')
DEMO_MODEL = 'preact_resnet20.cifar10'  # whose weights ship


class Size(NamedTuple):
    """Of a network with its first tag's classes and input size (10 at 32x32, 1000 at 224x224).

    Attributes:
        params: Parameters.
        macs: Multiply-adds of convolutions and the classifier for one image.
    """
    params: int
    macs: int


SIZES: Dict[str, Size] = {
    'preact_resnet20': Size(269_722, 40_551_040),
    'preact_resnet56': Size(853_018, 125_485_696),
    'preact_resnet110': Size(1_727_962, 252_887_680),
    'preact_resnet164': Size(1_703_258, 244_500_992),
    'preact_resnet1001': Size(10_327_706, 1_487_849_984),
    'preact_resnet20_orig': Size(269_722, 40_551_040),
    'preact_resnet32_orig': Size(464_154, 68_862_592),
    'preact_resnet44_orig': Size(658_586, 97_174_144),
    'preact_resnet56_orig': Size(853_018, 125_485_696),
    'preact_resnet110_orig': Size(1_727_962, 252_887_680),
    'preact_resnet110_bn_after_add': Size(1_727_962, 252_887_680),
    'preact_resnet110_relu_before_add': Size(1_727_962, 252_887_680),
    'preact_resnet110_relu_only': Size(1_727_962, 252_887_680),
    'preact_resnet164_orig': Size(1_704_154, 244_500_992),
    'preact_resnet164_bn_after_add': Size(1_704_154, 244_500_992),
    'preact_resnet164_relu_before_add': Size(1_704_154, 244_500_992),
    'preact_resnet164_relu_only': Size(1_703_258, 244_500_992),
    'preact_resnet1001_orig': Size(10_328_602, 1_487_849_984),
    'preact_resnet1202_orig': Size(19_421_274, 2_829_238_912),
    'preact_resnet110_1layer': Size(1_727_962, 252_887_680),
    'preact_resnet110_1layer_orig': Size(1_727_962, 252_887_680),
    'preact_resnet110_orig_const_scale': Size(1_727_962, 252_887_680),
    'preact_resnet110_orig_excl_gate': Size(1_826_746, 267_043_456),
    'preact_resnet110_orig_shortcut_gate': Size(1_826_746, 267_043_456),
    'preact_resnet110_orig_dropout_shortcut': Size(1_727_962, 252_887_680),
    'preact_resnet110_orig_conv_shortcut': Size(1_826_202, 266_781_312),
    'preact_resnet18': Size(11_687_848, 1_814_073_344),
    'preact_resnet34': Size(21_796_008, 3_663_761_408),
    'preact_resnet50': Size(25_549_480, 4_089_184_256),
    'preact_resnet101': Size(44_541_608, 7_801_405_440),
    'preact_resnet152': Size(60_185_256, 11_513_626_624),
    'preact_resnet200': Size(64_666_280, 15_007_481_856),
    'preact_resnet101_orig': Size(44_549_160, 7_801_405_440),
    'preact_resnet152_orig': Size(60_192_808, 11_513_626_624),
    'preact_resnet200_orig': Size(64_673_832, 15_007_481_856),
    'preact_resnet101_bn_after_add': Size(44_549_160, 7_801_405_440),
    'preact_resnet20_pcv': Size(272_282, 40_813_184),
    'preact_resnet56_pcv': Size(855_578, 125_747_840),
    'preact_resnet110_pcv': Size(1_730_522, 253_149_824),
    'preact_resnet164_pcv': Size(1_703_258, 247_646_720),
    'preact_resnet272_pcv': Size(2_816_090, 408_078_848),
    'preact_resnet542_pcv': Size(5_598_170, 809_159_168),
    'preact_resnet1001_pcv': Size(10_327_706, 1_490_995_712),
    'preact_resnet1202_pcv': Size(19_423_834, 2_829_501_056),
    'preact_resnet20_orig_chen': Size(272_474, 40_813_184),
    'preact_resnet32_orig_chen': Size(466_906, 69_124_736),
    'preact_resnet44_orig_chen': Size(661_338, 97_436_288),
    'preact_resnet56_orig_chen': Size(855_770, 125_747_840),
    'preact_resnet18_kuang': Size(11_171_146, 555_422_720),
    'preact_resnet34_kuang': Size(21_279_306, 1_159_402_496),
    'preact_resnet50_kuang': Size(23_509_066, 1_297_829_888),
    'preact_resnet101_kuang': Size(42_501_194, 2_509_983_744),
    'preact_resnet152_kuang': Size(58_144_842, 3_722_137_600),
    'preact_resnet18_orig_kuang': Size(11_173_962, 555_422_720),
    'preact_resnet34_orig_kuang': Size(21_282_122, 1_159_402_496),
    'preact_resnet50_orig_kuang': Size(23_520_842, 1_297_829_888),
    'preact_resnet101_orig_kuang': Size(42_512_970, 2_509_983_744),
    'preact_resnet152_orig_kuang': Size(58_156_618, 3_722_137_600),
    'preact_resnet18_wei': Size(11_176_074, 555_422_720),
    'preact_resnet34_wei': Size(21_287_946, 1_159_402_496),
    'preact_resnet50_wei': Size(23_535_754, 1_222_332_416),
    'preact_resnet101_wei': Size(42_553_994, 2_434_486_272),
    'preact_resnet152_wei': Size(58_220_682, 3_646_640_128),
    'preact_resnet200_fb': Size(64_761_960, 15_007_481_856),
    'preact_resnet18_timm': Size(11_687_720, 1_814_073_344),
    'preact_resnet34_timm': Size(21_795_880, 3_663_761_408),
    'preact_resnet50_timm': Size(25_549_352, 4_089_184_256),
    'preact_resnet101_timm': Size(44_541_480, 7_801_405_440),
    'preact_resnet50_keras': Size(25_568_360, 3_482_255_360),
    'preact_resnet101_keras': Size(44_577_896, 7_194_476_544),
    'preact_resnet152_keras': Size(60_236_904, 10_906_697_728),
}

# Tables 1 to 3 (CIFAR: medians of 5 runs, 'fail' above 20 %), Table 5 and section 4.1 (ImageNet: one 320x320 crop, the
# two ResNet-101 one 224x224 crop). Gates: the best bias, -6. A name that is not here has no number in the paper.
PAPER: Dict[str, Dict[str, Any]] = {
    'preact_resnet110': {'cifar10': 6.37},
    'preact_resnet164': {'cifar10': 5.46, 'cifar100': 24.33},
    'preact_resnet1001': {'cifar10': 4.92, 'cifar100': 22.71},
    'preact_resnet110_orig': {'cifar10': 6.61},
    'preact_resnet110_bn_after_add': {'cifar10': 8.17},
    'preact_resnet110_relu_before_add': {'cifar10': 7.84},
    'preact_resnet110_relu_only': {'cifar10': 6.71},
    'preact_resnet164_orig': {'cifar10': 5.93, 'cifar100': 25.16},
    'preact_resnet164_bn_after_add': {'cifar10': 6.50},
    'preact_resnet164_relu_before_add': {'cifar10': 6.14},
    'preact_resnet164_relu_only': {'cifar10': 5.91},
    'preact_resnet1001_orig': {'cifar10': 7.61, 'cifar100': 27.82},
    'preact_resnet110_1layer': {'cifar10': 8.91},
    'preact_resnet110_1layer_orig': {'cifar10': 9.90},
    'preact_resnet110_orig_const_scale': {'cifar10': 12.35},
    'preact_resnet110_orig_excl_gate': {'cifar10': 8.70},
    'preact_resnet110_orig_shortcut_gate': {'cifar10': 6.91},
    'preact_resnet110_orig_dropout_shortcut': {'cifar10': 'fail'},
    'preact_resnet110_orig_conv_shortcut': {'cifar10': 12.22},
    'preact_resnet152': {'in1k': 21.1},
    'preact_resnet200': {'in1k': 20.7},
    'preact_resnet101_orig': {'in1k': 23.6},
    'preact_resnet152_orig': {'in1k': 21.3},
    'preact_resnet200_orig': {'in1k': 21.8},
    'preact_resnet101_bn_after_add': {'in1k': 24.6},
    'preact_resnet200_fb': {'in1k': 20.1},
}

# Errors of weights that we trained, as `timm-preact evaluate` measures them on the whole test set.
MEASURED: Dict[str, float] = {
    'preact_resnet20.cifar10': 8.51,
    'preact_resnet20.cifar100': 35.28,
}


def depth_of(name: str) -> int:
    """The depth in a registered name: preact_resnet110_orig is 110 layers deep."""
    return int(name.removeprefix('preact_resnet').split('_')[0])


def data_of(tag: str) -> str:
    """Return the data set of a tag or of 'name.tag': 'cifar10', 'cifar100', 'svhn' or 'in1k'."""
    return re.split('[._]', tag)[-1]


def error_of(key: str) -> Optional[float]:
    """Return the top-1 error in percent of the weights of 'name.tag', ours or as published; None without weights."""
    return MEASURED.get(key, SOURCES[key].reported[0] if key in SOURCES else None)


def find_best(data: str, depth: Optional[int] = None) -> List[str]:
    """Find the weights that no network with as many or fewer parameters surpasses, by size.

    Args:
        data: 'cifar10', 'cifar100', 'svhn' or 'in1k'.
        depth: Of these networks only; None for all.

    Returns:
        Names with tags, the largest network last: its error is the lowest.
    """
    keys = [key for key in (*MEASURED, *SOURCES) if data_of(key) == data
            and depth in (None, depth_of(key.partition('.')[0]))]
    best: List[str] = []
    for key in sorted(keys, key=lambda key: (SIZES[key.partition('.')[0]].params, error_of(key))):
        if not best or error_of(key) < error_of(best[-1]):
            best.append(key)
    return best


def find_better(name: str) -> List[str]:
    """Find weights in the layout of timm or pytorchcv with a lower error than those of a bare name, if it has any.

    Args:
        name: Registered name, without tag.

    Returns:
        Names with tags, for each data set the one with the lowest error.
    """
    better = []
    for data in DATA_SETS:
        own = [error_of(key) for key in (*MEASURED, *SOURCES)
               if key.partition('.')[0] == name and data_of(key) == data]
        others = [key for key in SOURCES
                  if key.partition('.')[0] in (f'{name}_timm', f'{name}_pcv') and data_of(key) == data]
        best = min(others, key=error_of, default=None)
        if best and error_of(best) < min(own, default=math.inf):
            better.append(best)
    return better


def list_networks(pattern: str = 'preact_*', data: Optional[str] = None, sort: str = 'name') -> List[Dict[str, Any]]:
    """Return a row for each network whose name matches, and one for each further data set with a known error.

    Args:
        pattern: Names with wildcards.
        data: Only this data set: 'cifar10', 'cifar100', 'svhn' or 'imagenet'; None for all.
        sort: 'name', or 'error' for the lowest error of weights first and networks without weights last.

    Returns:
        Dictionaries with name, depth, params, macs, data_set (the tag), paper_error, published_error, our_error,
        weights, and best: True if no other weights for the data set and depth have a lower error.

    Raises:
        UserError: No name matches, or `data` or `sort` is not known.
    """
    if sort not in SORTS:
        raise ArgumentError('sort', f'must be one of {", ".join(SORTS)}, got {sort!r}.')
    if data is not None and data not in (*DATA_SETS, 'imagenet'):
        raise ArgumentError('data', f'must be one of {", ".join(DATA_SETS[:-1])}, imagenet, got {data!r}.')
    names = [name for name in timm.list_models(pattern) if name in SIZES]
    if not names:
        raise UserError(f'no network matches {pattern}: try "preact_*".')
    rows = []
    for name in names:
        default, *others = [cfg.tag for cfg in timm.models.get_arch_pretrained_cfgs(name).values()]
        for tag in (default, *others):
            key, depth = f'{name}.{tag}', depth_of(name)
            known = dict(
                paper_error=PAPER.get(name, {}).get(tag),
                published_error=SOURCES[key].reported[0] if key in SOURCES else None,
                our_error=MEASURED.get(key),
                weights=timm.models.is_model_pretrained(key),
            )
            wanted = data in (None, data_of(tag)) or (data, data_of(tag)) == ('imagenet', 'in1k')
            if wanted and (tag == default or any(known.values())):
                best = known['weights'] and find_best(data_of(tag), depth)[-1] == key
                rows.append(dict(
                    name=name, depth=depth, params=SIZES[name].params, macs=SIZES[name].macs, data_set=tag, **known,
                    best=best))
    if sort == 'error':
        errors = {id(row): error_of(f"{row['name']}.{row['data_set']}") for row in rows}
        rows.sort(key=lambda row: math.inf if errors[id(row)] is None else errors[id(row)])
    return rows


def count_macs(model: nn.Module, input_size: Tuple[int, int, int]) -> int:
    """Multiply-adds of the convolutions and linear layers for one image.

    Args:
        model: A network on any device; the meta device costs nothing.
        input_size: (channels, height, width).
    """
    macs = 0

    def count(module, inputs, output):
        nonlocal macs
        macs += output[0].numel() * module.weight[0].numel()

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [m.register_forward_hook(count) for m in layers]
    training = model.training
    parameter = next(model.parameters())
    model.eval()(parameter.new_zeros(1, *input_size))
    model.train(training)
    for handle in handles:
        handle.remove()
    return macs
