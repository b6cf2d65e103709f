"""Pre-activation residual networks.

Paper: "Identity Mappings in Deep Residual Networks", He, Zhang, Ren, Sun, ECCV 2016, https://arxiv.org/abs/1603.05027

One class builds every network of the paper and every ablation of its Tables 1 to 3 and 5; a name is a row of
`MODEL_ARGS`. Where the paper is silent, its released code decides (KaimingHe/resnet-1k-layers, fb.resnet.torch).
"""
import re
from collections import OrderedDict
from functools import partial
from typing import Annotated, Any, Callable, Dict, List, Optional, Tuple, Union

import torch
from timm.layers import ClassifierHead, calculate_drop_path_rates, get_act_layer, get_norm_act_layer
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    load_pretrained,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models._features import feature_take_indices
from torch import nn

from .compilation import compile_each
from .data import CIFAR10_CLASSES, CIFAR100_CLASSES
from .errors import COUNT, NOT_NEGATIVE, POSITIVE, Range, check_ranges
from .init import init_weights
from .memory import checkpoint_units, run_again_in_backward
from .unit import MERGES, PLACEMENTS, ResidualUnit, create_norm_act, replicate
from .weights import shipped_weights
from .weights.fetch import locate
from .weights.foreign import read_foreign
from .weights.keymaps import KEY_MAPS, OURS, KeyMap, LayoutError, source_of, to_ours
from .weights.sources import SOURCES

__all__ = ['MODEL_ARGS', 'PreActResNet', 'ResidualStage', 'checkpoint_filter_fn', 'find_fitting']

STEMS = ('cifar', 'imagenet')
SHORTCUTS = ('A', 'B', 'C')
STRIDES_ON = ('1x1', '3x3')
STRIDE_UNITS = ('first', 'last')
STEM_PADS = ('ignored', 'zeros')
ACTIVATED_SHORTCUTS = ('first', 'transition')
BIASES = ('stem', 'inner', 'last', 'shortcut')


class ResidualStage(nn.Module):
    """Units of one width and resolution, the first of which may change both."""

    def __init__(self, units: List[ResidualUnit], checkpoint_every: int = 1):
        super().__init__()
        self.grad_checkpointing = False
        self.checkpoint_every = checkpoint_every
        self.blocks = nn.Sequential(*units)

    def forward_activated(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """The input as the first unit's pre-activation leaves it, and the stage's output; each norm runs once."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            first, rest = self.blocks[0], self.blocks[1:]
            a = first.pre(x)
            x = run_again_in_backward(first.combine, first, x, a)
            return a, checkpoint_units(rest, x, self.checkpoint_every)
        a = x
        for i, block in enumerate(self.blocks):
            if i == 0:
                a = block.pre(x)
                x = block.combine(x, a)
            else:
                x = block(x)
        return a, x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_units(self.blocks, x, self.checkpoint_every)
        return self.blocks(x)


class PreActResNet(nn.Module):
    """A residual network of any activation placement.

    Shape: images (N, in_chans, H, W) to logits (N, num_classes). Every argument that selects a variant is plain data.
    """

    def __init__(
            self,
            layers: Annotated[Tuple[int, ...], COUNT] = (18, 18, 18),
            channels: Annotated[Tuple[int, ...], COUNT] = (16, 32, 64),
            num_classes: Annotated[int, NOT_NEGATIVE] = 1000,
            in_chans: Annotated[int, COUNT] = 3,
            global_pool: str = 'avg',
            output_stride: int = 32,
            stem_type: str = 'cifar',
            stem_chs: Annotated[int, COUNT] = 16,
            stem_norm: Optional[bool] = None,
            stem_pad: str = 'ignored',
            final_norm: bool = True,
            kernels: Annotated[Tuple[int, ...], COUNT] = (3, 3),
            bottle_ratio: Annotated[float, POSITIVE] = 1.,
            stride_on: str = '1x1',
            stride_unit: str = 'first',
            placement: str = 'full',
            shortcut: str = 'B',
            activated_shortcuts: Tuple[str, ...] = ACTIVATED_SHORTCUTS,
            projection_norm: Optional[bool] = None,
            biases: Tuple[str, ...] = (),
            merge: str = 'add',
            merge_kwargs: Optional[Dict[str, Any]] = None,
            act_layer: Union[str, Callable] = 'relu',
            norm_layer: Union[str, Callable] = 'batchnorm2d',
            norm_eps: Annotated[Optional[float], NOT_NEGATIVE] = None,
            drop_rate: Annotated[float, Range(least=0, most=1)] = 0.,
            drop_path_rate: Annotated[float, Range(least=0, below=1)] = 0.,
            zero_init_last: bool = False,
            recompute_norms: bool = False,
            checkpoint_every: Annotated[int, COUNT] = 1,
            compile_units: bool = False,
            device=None,
            dtype=None,
    ):
        """
        Args:
            layers: Number of units in each stage.
            channels: Output channels of each stage.
            num_classes: Classes of the head, 0 for none.
            in_chans: Channels of the input images.
            global_pool: Pooling before the classifier, '' for none.
            output_stride: Stride of the last feature map at most: 8, 16 or 32; later stages are dilated instead.
            stem_type: 'cifar' (3x3 convolution) or 'imagenet' (7x7 convolution with stride 2, BN-ReLU, 3x3 max-pool).
            stem_chs: Channels of the stem.
            stem_norm: BN-ReLU after the stem's convolution. None: an 'imagenet' stem has them, a 'cifar' stem has what
                the placement puts there (nothing for 'full').
            stem_pad: What an 'imagenet' stem's pooling sees around the map: 'ignored' nothing, 'zeros' zeros.
            final_norm: Placements with pre-activation repeat it before the head. False: the head reads the sum of the
                last unit (pytorch-cifar's and pytorch-cifar100's PreActResNet).
            kernels: Kernel sizes of a unit's branch: (3,) one-layer, (3, 3) basic, (1, 3, 1) bottleneck.
            bottle_ratio: Width of a branch before its last convolution, as a share of the stage's channels.
            stride_on: Which convolution of a bottleneck has the stride: '1x1' (as resnet-1k-layers) or '3x3'.
            stride_unit: The 'first' unit of every stage but the first subsamples, or the 'last' of every stage but the
                last, its identity shortcut too (TF-Slim, Keras).
            placement: Activation placement, Fig. 4: 'orig', 'bn_after_add', 'relu_before_add', 'relu_only' or 'full'.
            shortcut: 'A' zero-padding, 'B' projection where the shape changes, 'C' projection in every unit.
            activated_shortcuts: Units whose shortcut reads the pre-activated tensor: 'first' the network's first unit,
                'transition' every unit that changes the number of channels or, with stride_unit 'first', the size.
            projection_norm: Projections have a BatchNorm; None leaves it to the placement.
            biases: Convolutions with a bias: 'stem', 'inner' a branch's convolutions but the last, 'last' that one,
                'shortcut' projections.
            merge: Table 1: 'add', 'const_scale', 'excl_gate', 'shortcut_gate' or 'dropout_shortcut'.
            merge_kwargs: Arguments of the merge, e.g. dict(bias=-7.) for a gate.
            act_layer: Activation, by timm's name or a class.
            norm_layer: Normalisation, by timm's name or a callable.
            norm_eps: What a norm adds to the variance, None for its own default (BatchNorm's 1e-5).
            drop_rate: Dropout before the classifier.
            drop_path_rate: Stochastic depth of the last unit; it grows linearly from 0.
            zero_init_last: Start every branch at zero.
            recompute_norms: Train in about half the memory: of a BatchNorm and its ReLU only what enters them is kept
                for backward (`timm_preact.memory`). Under torch.compile, which decides itself what it keeps, and with
                SyncBatchNorm, which stays what it is, units train as without.
            checkpoint_every: With `set_grad_checkpointing`, units of a stage of which only the first one's input is
                kept.
            compile_units: torch.compile each unit at its first call, equal units once (`timm_preact.compilation`); for
                CPUs.

        Raises:
            ValueError: An argument names no variant, a number is out of its range, or norm_layer cannot normalise the
                network's channels.
        """
        check_ranges(PreActResNet.__init__, locals())
        super().__init__()
        _check_choice('stem_type', stem_type, STEMS)
        _check_choice('stem_pad', stem_pad, STEM_PADS)
        _check_choice('stride_on', stride_on, STRIDES_ON)
        _check_choice('stride_unit', stride_unit, STRIDE_UNITS)
        _check_choice('placement', placement, tuple(PLACEMENTS))
        _check_choice('shortcut', shortcut, SHORTCUTS)
        _check_choice('merge', merge, tuple(MERGES))
        _check_choice('output_stride', output_stride, (8, 16, 32))
        for which in activated_shortcuts:
            _check_choice('activated_shortcuts', which, ACTIVATED_SHORTCUTS)
        for which in biases:
            _check_choice('biases', which, BIASES)
        # of the paper's layers is known what they hold, and that init_weights sets all of it: equal units are copied
        papers_merge = getattr(MERGES[merge], '__module__', None) == ResidualUnit.__module__
        copies_units = norm_layer == 'batchnorm2d' and act_layer == 'relu' and papers_merge
        dd = {'device': device, 'dtype': dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        place = PLACEMENTS[placement]
        norm_act_layer = get_norm_act_layer(norm_layer, act_layer=act_layer)
        if norm_eps is not None:
            norm_act_layer = partial(norm_act_layer, eps=norm_eps)
        acts = dict(norm_layer=norm_act_layer, act_layer=get_act_layer(act_layer))

        self.stem_pools = stem_type == 'imagenet'
        kernel, stride, after = (7, 2, 'na') if self.stem_pools else (3, 1, place.stem)
        if stem_norm is not None:
            after = 'na' * stem_norm
        bias = 'stem' in biases
        self.stem = nn.Sequential(OrderedDict(
            conv=nn.Conv2d(in_chans, stem_chs, kernel, stride=stride, padding=kernel // 2, bias=bias, **dd),
            norm=create_norm_act(after, stem_chs, **acts, **dd),
            pool=create_stem_pool(stem_pad) if self.stem_pools else nn.Identity(),
        ))
        self.feature_info = [dict(num_chs=stem_chs, reduction=stride, module='stem.norm')]

        prev_chs = stem_chs
        curr_stride = 4 if self.stem_pools else 1
        dilation = 1
        self.stages = nn.Sequential()
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(layers), stagewise=True)
        for i, (depth, out_chs) in enumerate(zip(layers, channels, strict=True)):
            # the unit of this stage that subsamples, or that dilates what follows in place of subsampling
            subsampling = (0 if i else None) if stride_unit == 'first' else (depth - 1 if i + 1 < len(layers) else None)
            units, unit_args = [], {}
            for j in range(depth):
                stride, first_dilation = 2 if j == subsampling else 1, dilation
                if curr_stride * stride > output_stride:
                    dilation *= stride
                    stride = 1
                subsamples_alone = j == subsampling and stride_unit == 'last' and prev_chs == out_chs
                changes_shape = prev_chs != out_chs or (j == subsampling and not subsamples_alone)
                previous_args, unit_args = unit_args, dict(
                    in_chs=prev_chs,
                    out_chs=out_chs,
                    kernels=kernels,
                    bottle_ratio=bottle_ratio,
                    stride=stride,
                    stride_on=stride_on,
                    dilation=dilation,
                    first_dilation=first_dilation,
                    placement=placement,
                    shortcut='A' if subsamples_alone else shortcut,
                    activated_shortcut=(
                        changes_shape and 'transition' in activated_shortcuts
                        or i == j == 0 and 'first' in activated_shortcuts
                    ),
                    projection_norm=projection_norm,
                    biases=biases,
                    merge=merge,
                    merge_kwargs=merge_kwargs,
                    drop_path=drop_paths[i][j],
                    recompute_norms=recompute_norms,
                    **acts,
                    **dd,
                )
                is_twin = copies_units and unit_args == previous_args
                units.append(replicate(units[-1]) if is_twin else ResidualUnit(**unit_args))
                prev_chs = out_chs
                curr_stride *= stride
            self.stages.append(ResidualStage(units, checkpoint_every))
            self.feature_info.append(dict(num_chs=out_chs, reduction=curr_stride, module=f'stages.{i}'))

        self.num_features = prev_chs
        self.norm = create_norm_act(place.pre * final_norm, self.num_features, **acts, **dd)
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()

        self.init_weights(zero_init_last=zero_init_last)
        if compile_units:
            compile_each(unit for stage in self.stages for unit in stage.blocks)

    @torch.jit.ignore
    def init_weights(self, zero_init_last: bool = False) -> None:
        """Initialise as the paper's code does, see `timm_preact.init.init_weights`."""
        init_weights(self, zero_init_last=zero_init_last)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = '') -> None:
        """Load a file that PyTorch cannot read (.t7, .h5), adapted to this model's channels and classes as timm does.

        Raises:
            UserError: The file is damaged, or holds another network.
        """
        state_dict, source = read_foreign(checkpoint_path)
        load_pretrained(
            self,
            dict(self.pretrained_cfg, state_dict=state_dict, custom_load=False),
            num_classes=self.num_classes,
            in_chans=self.in_chans,
            filter_fn=checkpoint_filter_fn,
        )

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """Parameter groups for layer-wise learning rates: a stage each (coarse) or a unit each."""
        return dict(
            stem=r'^stem',
            blocks=r'^stages\.(\d+)' if coarse else [
                (r'^stages\.(\d+)\.blocks\.(\d+)', None),
                (r'^norm', (99999,)),
            ],
        )

    @torch.jit.ignore
    def no_weight_decay(self) -> set:
        """No parameter is exempt: the paper's code decays all of them."""
        return set()

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute units in backward, `checkpoint_every` at a time, and a stem that pools.

        BatchNorm's running statistics are updated once all the same.
        """
        self.grad_checkpointing = enable
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The Linear layer of the head."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the classifier.

        Args:
            num_classes: Classes of the new classifier, 0 for none.
            global_pool: New pooling, unchanged if None.
        """
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head.to(device=self.stem.conv.weight.device, dtype=self.stem.conv.weight.dtype).train(self.training)
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: Optional[Union[int, List[int]]] = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """Features at the stem (0) and after each stage (1, 2, ...).

        Args:
            x: Images (N, in_chans, H, W).
            indices: The last n if int, all if None, else those listed.
            norm: False (default) taps the raw sums x_l; True taps them as the next unit sees them, activated by its
                pre-activation, the last ones by the network's last norm. Placements without pre-activation, and a stem
                that pools, are activated already: there both are the same, as is the last tap with final_norm=False.
            stop_early: Run no stage after the last one asked for.
            output_fmt: Only 'NCHW'.
            intermediates_only: Return the list alone.

        Returns:
            The final features and the list, or the list.
        """
        assert output_fmt == 'NCHW', 'Output format must be NCHW.'
        take_indices, max_index = feature_take_indices(len(self.stages) + 1, indices)
        intermediates = []
        stages = self.stages
        if not torch.jit.is_scripting() and stop_early:
            stages = self.stages[:max_index]

        x = self.stem.norm(self.stem.conv(x))
        tap_is_final = self.stem_pools or not norm
        if 0 in take_indices and tap_is_final:
            intermediates.append(x)
        x = self.stem.pool(x)
        for i, stage in enumerate(stages):
            if i in take_indices and not tap_is_final:
                a, x = stage.forward_activated(x)
                intermediates.append(a)
            else:
                x = stage(x)
            tap_is_final = not norm
            if i + 1 in take_indices and tap_is_final:
                intermediates.append(x)

        last_index = len(stages)
        if last_index < len(self.stages):
            if not torch.jit.is_scripting():
                if last_index in take_indices and not tap_is_final:
                    intermediates.append(self.stages[last_index].blocks[0].pre(x))
        else:
            x = self.norm(x)
            if last_index in take_indices and not tap_is_final:
                intermediates.append(x)

        if intermediates_only:
            return intermediates
        return x, intermediates

    def prune_intermediate_layers(
            self,
            indices: Union[int, List[int]] = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
    ) -> List[int]:
        """Remove what the features asked for do not need.

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: Also remove the norm after the last feature, which only activated features need.
            prune_head: Remove the classifier and its pooling.

        Returns:
            The absolute indices of the features.
        """
        take_indices, max_index = feature_take_indices(len(self.stages) + 1, indices)
        prune_end = max_index < len(self.stages)
        if prune_norm or (prune_end and max_index == 0 and self.stem_pools):
            self.norm = nn.Identity()
        elif prune_end:
            self.norm = self.stages[max_index].blocks[0].pre
        self.stages = self.stages[:max_index]
        if max_index == 0:
            self.stem.pool = nn.Identity()
        if prune_end:
            self.num_features = self.feature_info[max_index]['num_chs']
            self.head.in_features = self.num_features
        if prune_head or prune_end:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images to activated features before pooling."""
        if self.grad_checkpointing and self.stem_pools and not torch.jit.is_scripting():
            x = run_again_in_backward(self.stem, self.stem, x)
        else:
            x = self.stem(x)
        x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Features to logits, or to pooled features if pre_logits."""
        return self.head(x, pre_logits=pre_logits) if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def create_stem_pool(pad: str) -> nn.Module:
    """3x3 max-pool with stride 2 that sees one pixel of nothing ('ignored') or of zeros around the map."""
    if pad == 'zeros':
        return nn.Sequential(nn.ConstantPad2d(1, 0.), nn.MaxPool2d(3, stride=2))
    return nn.MaxPool2d(3, stride=2, padding=1)


def _check_choice(argument: str, value: Any, choices: Tuple) -> None:
    if value not in choices:
        raise ValueError(f'{argument}={value!r} is not known: choose one of {", ".join(map(repr, choices))}.')


def checkpoint_filter_fn(state_dict: Dict[str, torch.Tensor], model: nn.Module) -> Dict[str, torch.Tensor]:
    """Tensors by our names, whoever saved them: a source of `timm_preact.weights.keymaps` or this class."""
    source = source_of(state_dict)
    if source is None:
        return state_dict
    try:
        return to_ours(state_dict, source, model)
    except LayoutError as e:
        names, _ = find_fitting(state_dict)
        extra = ', '.join(f'{key}={value!r}' for key, value in KEY_MAPS[source].model_args.items()
                          if any(MODEL_ARGS[name].get(key) != value for name in names))
        fitting = f'The layout is that of {" or ".join(names)}{extra and f" with {extra}"}.' if names else (
            'No registered name has this layout.')
        raise LayoutError(f'{e} {fitting}') from e


def find_fitting(
        state_dict: Dict[str, torch.Tensor],
        model_args: Optional[Dict[str, Any]] = None,
) -> Tuple[List[str], Optional[str]]:
    """Find the registered names whose networks have exactly these tensors, up to input channels and classes.

    Args:
        state_dict: By our names, or by those of a source of `timm_preact.weights.keymaps`.
        model_args: Constructor arguments in place of the names' own.

    Returns:
        The names; and where there are none, which name comes nearest and what it lacks, None where no name has any of
        the tensors.

    Raises:
        Exception: No network takes the arguments; the class is what one of them raises.
    """
    source = source_of(state_dict)
    keymap = KEY_MAPS.get(source, OURS)
    convs = sum(tensor.ndim == 4 for tensor in state_dict.values())
    rows = {name: {**args, **keymap.model_args, **(model_args or {})} for name, args in MODEL_ARGS.items()
            if re.fullmatch(rf'preact_resnet\d+{keymap.names}', name)}
    distances = {name: _distance_in_convs(convs, args) for name, args in rows.items()}
    names, nearest, refused = [], {}, None
    for name, distance in distances.items():
        if distance > min(distances.values()):
            continue
        try:
            model = PreActResNet(**rows[name], device='meta')
        except Exception as e:  # whatever arguments do to a network that they are not for
            refused = e
            continue
        try:
            to_ours(state_dict, source, model)
            names.append(name)
        except LayoutError as e:
            shared = sum(_has_tensor(state_dict, keymap, *item) for item in model.state_dict().items())
            nearest[name] = shared, str(e)
    if names:
        return names, None
    if not nearest:
        raise refused
    name = max(nearest, key=lambda name: nearest[name][0])
    shared, problem = nearest[name]
    return [], f'{name} comes nearest: {problem}' if shared else None


def _distance_in_convs(convs: int, args: Dict[str, Any]) -> int:
    """How many convolutions more or less than one with these arguments a network has that has so many."""
    units = sum(args['layers'])
    least = units * len(args['kernels']) + 1  # and the stem; then projections or gates, and maybe the classifier
    one_a_unit = args['shortcut'] == 'C' or args.get('merge', 'add') != 'add'
    most = least + (units if one_a_unit else len(args['layers'])) + 1
    return max(least - convs, convs - most, 0)


def _has_tensor(state_dict: Dict[str, torch.Tensor], keymap: KeyMap, key: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor of ours is there by the source's name, in its shape."""
    try:
        found = state_dict.get(keymap.rename(key))
    except LayoutError:
        return False
    return found is not None and found.shape == tensor.shape


def _create_preact_resnet(variant: str, pretrained: bool = False, **kwargs) -> PreActResNet:
    """Build the network of a registered name by timm's factory; keyword arguments override those of `MODEL_ARGS`.

    Besides timm's own arguments, features_only=True takes feature_norm=True: taps activated by the next unit's norm
    (see `PreActResNet.forward_intermediates`) in place of the raw sums, which timm's feature_cls='getter' makes.
    """
    kwargs = {**MODEL_ARGS[variant], **kwargs}
    feature_cfg = dict(out_indices=tuple(range(len(kwargs['layers']) + 1)), flatten_sequential=True)
    if kwargs.get('features_only') and kwargs.pop('feature_norm', False):
        feature_cfg.update(feature_cls='getter', norm=True)
    if pretrained:
        overlay = dict(kwargs.get('pretrained_cfg_overlay') or {})
        cfg = resolve_pretrained_cfg(variant, kwargs.get('pretrained_cfg'), overlay)
        kwargs['pretrained_cfg_overlay'] = {**overlay, **locate(variant, cfg, kwargs.get('cache_dir'))}
    return build_model_with_cfg(
        PreActResNet, variant, pretrained, feature_cfg=feature_cfg, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


def _cfg(name: str, **kwargs) -> Dict[str, Any]:
    """What every tag has; a source's file and licence, or the weights that ship, or none."""
    source = SOURCES.get(name)
    if source:
        origin = dict(origin_url=source.origin, license=source.license)
        origin.update(dict(hf_hub_id=source.hub) if source.hub else dict(url=source.url))
    else:
        origin = dict(file=shipped_weights(name), license='apache-2.0')
    return dict(
        first_conv='stem.conv',
        classifier='head.fc',
        paper_name='Identity Mappings in Deep Residual Networks',
        paper_ids='arXiv:1603.05027',
        **{**origin, **kwargs},
    )


# number of classes, their names, mean and standard deviation of the channels
_CIFAR_DATA: Dict[str, Dict[str, Any]] = {
    'cifar10': dict(
        num_classes=10, label_names=CIFAR10_CLASSES, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    'cifar100': dict(
        num_classes=100, label_names=CIFAR100_CLASSES, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
    'svhn': dict(num_classes=10, label_names=tuple('0123456789')),
}


def _cfg_cifar(name: str, **kwargs) -> Dict[str, Any]:
    return _cfg(
        name, input_size=(3, 32, 32), pool_size=(8, 8), crop_pct=1.0, interpolation='bilinear',
        **{**_CIFAR_DATA[re.split('[._]', name)[-1]], **kwargs})


def _cfg_cifar_aka(name: str) -> Dict[str, Any]:
    """akamaster normalises CIFAR-10 as ImageNet."""
    return _cfg_cifar(name, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _cfg_cifar_pcv(name: str) -> Dict[str, Any]:
    """pytorchcv normalises CIFAR-100 and SVHN as CIFAR-10."""
    return _cfg_cifar(name, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))


def _cfg_cifar_chen(name: str) -> Dict[str, Any]:
    if name.endswith('.cifar10'):
        return _cfg_cifar_pcv(name)
    return _cfg_cifar(name, mean=(0.5070, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2761))


def _cfg_cifar_w64(name: str) -> Dict[str, Any]:
    """kuangliu normalises CIFAR-10 as pytorchcv; weiaicunzai's constants are those of CIFAR-100 itself."""
    is_kuangs = name.endswith('_kuang.cifar10')
    return dict(_cfg_cifar_pcv(name) if is_kuangs else _cfg_cifar(name), pool_size=(4, 4))


def _cfg_in1k(name: str, **kwargs) -> Dict[str, Any]:
    return _cfg(name, **{**dict(
        num_classes=1000,
        input_size=(3, 224, 224),
        pool_size=(7, 7),
        crop_pct=0.875,
        interpolation='bicubic',
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ), **kwargs})


def _cfg_in1k_paper(name: str) -> Dict[str, Any]:
    """Tested as in Table 5 too: one 320x320 crop of an image whose shorter side has 320 pixels."""
    return _cfg_in1k(name, test_input_size=(3, 320, 320), test_crop_pct=1.0)


def _cfg_in1k_pcv(name: str) -> Dict[str, Any]:
    return _cfg_in1k(name, interpolation='bilinear')


def _cfg_in1k_timm(name: str) -> Dict[str, Any]:
    """Return the config of timm's own resnetv2 weights, which are tested at 288x288."""
    crop_pct = 0.95 if name.endswith('.a1h_in1k') else 0.9
    return _cfg_in1k(
        name, crop_pct=crop_pct, test_input_size=(3, 288, 288), test_crop_pct=1.0, mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5))


def _cfg_in1k_keras(name: str) -> Dict[str, Any]:
    return _cfg_in1k(
        name, test_input_size=(3, 299, 299), interpolation='bilinear', mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def _cifar(depth: int, **kwargs) -> Dict[str, Any]:
    """Depth 6n + 2 with basic units, zero-padding shortcuts (option A) as in "Deep Residual Learning", section 4.2."""
    return dict(layers=((depth - 2) // 6,) * 3, channels=(16, 32, 64), kernels=(3, 3), **{'shortcut': 'A', **kwargs})


def _cifar_one_layer(depth: int, **kwargs) -> Dict[str, Any]:
    """Depth 3n + 2 with units of a single 3x3 convolution (Table 3, "1-layer skip")."""
    return dict(_cifar(depth, **kwargs), layers=((depth - 2) // 3,) * 3, kernels=(3,))


def _cifar_bottleneck(depth: int, **kwargs) -> Dict[str, Any]:
    """Depth 9n + 2 with bottleneck units, as resnet-1k-layers builds 164 and 1001."""
    return dict(
        layers=((depth - 2) // 9,) * 3, channels=(64, 128, 256), kernels=(1, 3, 1), bottle_ratio=0.25, shortcut='B',
        stride_on='1x1', **kwargs)


def _imagenet(layers: Tuple[int, ...], bottleneck: bool = True, **kwargs) -> Dict[str, Any]:
    """Stem with BN-ReLU and pooling, stride on the 3x3; a first identity shortcut carries the stem's output."""
    return dict(
        layers=layers,
        channels=(256, 512, 1024, 2048) if bottleneck else (64, 128, 256, 512),
        kernels=(1, 3, 1) if bottleneck else (3, 3),
        bottle_ratio=0.25 if bottleneck else 1.,
        stem_type='imagenet',
        stem_chs=64,
        stride_on='3x3',
        shortcut='B',
        activated_shortcuts=('transition',),
        **kwargs,
    )


def _cifar_w64(layers: Tuple[int, ...], bottleneck: bool, **kwargs) -> Dict[str, Any]:
    """The four stages of an ImageNet network behind a CIFAR stem of 64 channels."""
    return {**_imagenet(layers, bottleneck), 'stem_type': 'cifar', **kwargs}


_CIFAR_ARGS = {
    'preact_resnet20': _cifar(20),
    'preact_resnet56': _cifar(56),
    'preact_resnet110': _cifar(110),
    'preact_resnet164': _cifar_bottleneck(164),
    'preact_resnet1001': _cifar_bottleneck(1001),
    # "Deep Residual Learning", Table 6
    **{f'preact_resnet{depth}_orig': _cifar(depth, placement='orig') for depth in (20, 32, 44, 56)},
    # Table 2: activation placements
    **{f'preact_resnet110_{p}': _cifar(110, placement=p) for p in PLACEMENTS if p != 'full'},
    **{f'preact_resnet164_{p}': _cifar_bottleneck(164, placement=p) for p in PLACEMENTS if p != 'full'},
    'preact_resnet1001_orig': _cifar_bottleneck(1001, placement='orig'),
    'preact_resnet1202_orig': _cifar(1202, placement='orig'),
    # Table 3: units of one layer
    'preact_resnet110_1layer': _cifar_one_layer(110),
    'preact_resnet110_1layer_orig': _cifar_one_layer(110, placement='orig'),
    # Table 1: what is on the shortcut of the original unit
    **{f'preact_resnet110_orig_{m}': _cifar(110, placement='orig', merge=m) for m in MERGES if m != 'add'},
    'preact_resnet110_orig_conv_shortcut': _cifar(110, placement='orig', shortcut='C'),
}

_IMAGENET_ARGS = {
    'preact_resnet18': _imagenet((2, 2, 2, 2), bottleneck=False),
    'preact_resnet34': _imagenet((3, 4, 6, 3), bottleneck=False),
    'preact_resnet50': _imagenet((3, 4, 6, 3)),
    'preact_resnet101': _imagenet((3, 4, 23, 3)),
    'preact_resnet152': _imagenet((3, 8, 36, 3)),
    'preact_resnet200': _imagenet((3, 24, 36, 3)),
    # Table 5: the original unit, and BN after addition
    'preact_resnet101_orig': _imagenet((3, 4, 23, 3), placement='orig'),
    'preact_resnet152_orig': _imagenet((3, 8, 36, 3), placement='orig'),
    'preact_resnet200_orig': _imagenet((3, 24, 36, 3), placement='orig'),
    'preact_resnet101_bn_after_add': _imagenet((3, 4, 23, 3), placement='bn_after_add'),
}

# Layouts of published weights: option B with a raw first shortcut, and bottlenecks with the stride on the 3x3
_CIFAR_PCV_ARGS = {
    f'preact_resnet{depth}_pcv': (
        _cifar(depth, shortcut='B', activated_shortcuts=('transition',)) if depth in (20, 56, 110, 1202)
        else dict(_cifar_bottleneck(depth), stride_on='3x3'))
    for depth in (20, 56, 110, 164, 272, 542, 1001, 1202)
}
# The original unit with option B and a norm behind projections, as torchvision's
_CIFAR_CHEN_ARGS = {
    f'preact_resnet{depth}_orig_chen': _cifar(depth, placement='orig', shortcut='B') for depth in (20, 32, 44, 56)}
# depth: units of each stage, bottlenecks
_W64_UNITS = {
    18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True), 101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True)}
# kuangliu's PreActResNet and ResNet, which weiaicunzai's ResNet equals; weiaicunzai's PreActResNet, which has biases,
# the stride on the first convolution, and projections of the raw tensor
_CIFAR_W64_ARGS = {
    **{f'preact_resnet{depth}_kuang': _cifar_w64(*units, final_norm=False) for depth, units in _W64_UNITS.items()},
    **{f'preact_resnet{depth}_orig_kuang': _cifar_w64(*units, placement='orig')
       for depth, units in _W64_UNITS.items()},
    **{f'preact_resnet{depth}_wei': _cifar_w64(
        *units, stem_norm=True, final_norm=False, stride_on='1x1', activated_shortcuts=(), biases=BIASES)
       for depth, units in _W64_UNITS.items()},
}
_FB_ARGS = {
    'preact_resnet200_fb': dict(
        _imagenet((3, 24, 36, 3)), activated_shortcuts=(), projection_norm=True, biases=BIASES),
}
_KERAS_ARGS = {
    f'preact_resnet{depth}_keras': dict(
        _imagenet(layers), stem_norm=False, stem_pad='zeros', stride_unit='last', biases=('stem', 'last', 'shortcut'),
        norm_eps=1.001e-5)
    for depth, layers in ((50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)), (152, (3, 8, 36, 3)))
}

_TIMM_ARGS = {
    f'preact_resnet{depth}_timm': dict(_IMAGENET_ARGS[f'preact_resnet{depth}'], stem_norm=False)
    for depth in (18, 34, 50, 101)
}

# The arguments behind every registered name.
MODEL_ARGS: Dict[str, Dict[str, Any]] = {
    **_CIFAR_ARGS, **_IMAGENET_ARGS, **_CIFAR_PCV_ARGS, **_CIFAR_CHEN_ARGS, **_CIFAR_W64_ARGS, **_FB_ARGS,
    **_KERAS_ARGS, **_TIMM_ARGS}

# A bare CIFAR name has 10 classes whatever weights exist: its first tag is marked as the default. Publishers' tags of
# such names come before it: timm puts the first tag with weights in front of those that it knows.
default_cfgs = generate_default_cfgs({
    **{name: _cfg_cifar_aka(name) for name in SOURCES if name.endswith('.aka_cifar10')},
    **{f'{name}.cifar10*': _cfg_cifar(f'{name}.cifar10') for name in _CIFAR_ARGS},
    **{f'{name}.cifar100': _cfg_cifar(f'{name}.cifar100') for name in _CIFAR_ARGS},
    **{name: _cfg_in1k_pcv(name) for name in SOURCES if name.endswith('.pcv_in1k')},
    **{f'{name}.in1k': _cfg_in1k_paper(f'{name}.in1k') for name in (*_IMAGENET_ARGS, *_FB_ARGS)},
    **{name: _cfg_cifar_pcv(name) for name in SOURCES if name.partition('.')[0] in _CIFAR_PCV_ARGS},
    **{name: _cfg_cifar_chen(name) for name in SOURCES if name.partition('.')[0] in _CIFAR_CHEN_ARGS},
    **{f'{name}.{data}': _cfg_cifar_w64(f'{name}.{data}') for name in _CIFAR_W64_ARGS
       for data in ('cifar10', 'cifar100')},
    **{f'{name}.in1k': _cfg_in1k_keras(f'{name}.in1k') for name in _KERAS_ARGS},
    **{name: _cfg_in1k_timm(name) for name in SOURCES if name.partition('.')[0] in _TIMM_ARGS},
})


@register_model
def preact_resnet20(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-20 for CIFAR of basic units with full pre-activation, Fig. 4(e).

    Better weights to start from: `preact_resnet20_pcv`.
    """
    return _create_preact_resnet('preact_resnet20', pretrained, **kwargs)


@register_model
def preact_resnet56(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-56 for CIFAR of basic units with full pre-activation, Fig. 4(e).

    Better weights to start from: `preact_resnet56_pcv`.
    """
    return _create_preact_resnet('preact_resnet56', pretrained, **kwargs)


@register_model
def preact_resnet110(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-110 for CIFAR of basic units with full pre-activation, Fig. 4(e).

    Better weights to start from: `preact_resnet110_pcv`.
    """
    return _create_preact_resnet('preact_resnet110', pretrained, **kwargs)


@register_model
def preact_resnet164(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-164 for CIFAR of bottleneck units with full pre-activation, Fig. 4(e).

    Better weights to start from: `preact_resnet164_pcv`.
    """
    return _create_preact_resnet('preact_resnet164', pretrained, **kwargs)


@register_model
def preact_resnet1001(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-1001 for CIFAR of bottleneck units with full pre-activation, Fig. 4(e).

    Better weights to start from: `preact_resnet1001_pcv`.
    """
    return _create_preact_resnet('preact_resnet1001', pretrained, **kwargs)


@register_model
def preact_resnet20_orig(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-20 for CIFAR with original units, Fig. 4(a)."""
    return _create_preact_resnet('preact_resnet20_orig', pretrained, **kwargs)


@register_model
def preact_resnet32_orig(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-32 for CIFAR with original units, Fig. 4(a)."""
    return _create_preact_resnet('preact_resnet32_orig', pretrained, **kwargs)


@register_model
def preact_resnet44_orig(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-44 for CIFAR with original units, Fig. 4(a)."""
    return _create_preact_resnet('preact_resnet44_orig', pretrained, **kwargs)


@register_model
def preact_resnet56_orig(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-56 for CIFAR with original units, Fig. 4(a)."""
    return _create_preact_resnet('preact_resnet56_orig', pretrained, **kwargs)


@register_model
def preact_resnet110_orig(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-110 for CIFAR with original units, Fig. 4(a)."""
    return _create_preact_resnet('preact_resnet110_orig', pretrained, **kwargs)


@register_model
def preact_resnet110_bn_after_add(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-110 for CIFAR with BatchNorm after addition, Fig. 4(b)."""
    return _create_preact_resnet('preact_resnet110_bn_after_add', pretrained, **kwargs)


@register_model
def preact_resnet110_relu_before_add(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-110 for CIFAR with ReLU before addition, Fig. 4(c)."""
    return _create_preact_resnet('preact_resnet110_relu_before_add', pretrained, **kwargs)


@register_model
def preact_resnet110_relu_only(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-110 for CIFAR with ReLU-only pre-activation, Fig. 4(d)."""
    return _create_preact_resnet('preact_resnet110_relu_only', pretrained, **kwargs)


@register_model
def preact_resnet164_orig(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-164 for CIFAR with original units, Fig. 4(a)."""
    return _create_preact_resnet('preact_resnet164_orig', pretrained, **kwargs)


@register_model
def preact_resnet164_bn_after_add(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-164 for CIFAR with BatchNorm after addition, Fig. 4(b)."""
    return _create_preact_resnet('preact_resnet164_bn_after_add', pretrained, **kwargs)


@register_model
def preact_resnet164_relu_before_add(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-164 for CIFAR with ReLU before addition, Fig. 4(c)."""
    return _create_preact_resnet('preact_resnet164_relu_before_add', pretrained, **kwargs)


@register_model
def preact_resnet164_relu_only(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-164 for CIFAR with ReLU-only pre-activation, Fig. 4(d)."""
    return _create_preact_resnet('preact_resnet164_relu_only', pretrained, **kwargs)


@register_model
def preact_resnet1001_orig(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-1001 for CIFAR with original units, Fig. 4(a)."""
    return _create_preact_resnet('preact_resnet1001_orig', pretrained, **kwargs)


@register_model
def preact_resnet1202_orig(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-1202 for CIFAR with original units, Fig. 4(a)."""
    return _create_preact_resnet('preact_resnet1202_orig', pretrained, **kwargs)


@register_model
def preact_resnet110_1layer(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-110 for CIFAR of pre-activation units with one convolution each, Table 3."""
    return _create_preact_resnet('preact_resnet110_1layer', pretrained, **kwargs)


@register_model
def preact_resnet110_1layer_orig(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-110 for CIFAR of original units with one convolution each, Table 3."""
    return _create_preact_resnet('preact_resnet110_1layer_orig', pretrained, **kwargs)


@register_model
def preact_resnet110_orig_const_scale(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-110 for CIFAR, original units with both paths scaled by 0.5, Fig. 2(b)."""
    return _create_preact_resnet('preact_resnet110_orig_const_scale', pretrained, **kwargs)


@register_model
def preact_resnet110_orig_excl_gate(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-110 for CIFAR, original units with exclusive gates, Fig. 2(c)."""
    return _create_preact_resnet('preact_resnet110_orig_excl_gate', pretrained, **kwargs)


@register_model
def preact_resnet110_orig_shortcut_gate(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-110 for CIFAR, original units with shortcut-only gates, Fig. 2(d)."""
    return _create_preact_resnet('preact_resnet110_orig_shortcut_gate', pretrained, **kwargs)


@register_model
def preact_resnet110_orig_dropout_shortcut(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-110 for CIFAR, original units with dropout on the shortcut, Fig. 2(f)."""
    return _create_preact_resnet('preact_resnet110_orig_dropout_shortcut', pretrained, **kwargs)


@register_model
def preact_resnet110_orig_conv_shortcut(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-110 for CIFAR, original units with 1x1 convolutions on all shortcuts, Fig. 2(e)."""
    return _create_preact_resnet('preact_resnet110_orig_conv_shortcut', pretrained, **kwargs)


@register_model
def preact_resnet18(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-18 for ImageNet of basic units with full pre-activation.

    Better weights to start from: `preact_resnet18_timm`.
    """
    return _create_preact_resnet('preact_resnet18', pretrained, **kwargs)


@register_model
def preact_resnet34(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-34 for ImageNet of basic units with full pre-activation.

    Better weights to start from: `preact_resnet34_timm`.
    """
    return _create_preact_resnet('preact_resnet34', pretrained, **kwargs)


@register_model
def preact_resnet50(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-50 for ImageNet of bottleneck units with full pre-activation.

    Better weights to start from: `preact_resnet50_timm`.
    """
    return _create_preact_resnet('preact_resnet50', pretrained, **kwargs)


@register_model
def preact_resnet101(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-101 for ImageNet of bottleneck units with full pre-activation.

    Better weights to start from: `preact_resnet101_timm`.
    """
    return _create_preact_resnet('preact_resnet101', pretrained, **kwargs)


@register_model
def preact_resnet152(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-152 for ImageNet of bottleneck units with full pre-activation, Table 5."""
    return _create_preact_resnet('preact_resnet152', pretrained, **kwargs)


@register_model
def preact_resnet200(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-200 for ImageNet of bottleneck units with full pre-activation, Table 5."""
    return _create_preact_resnet('preact_resnet200', pretrained, **kwargs)


@register_model
def preact_resnet101_orig(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-101 for ImageNet with original units, Table 5."""
    return _create_preact_resnet('preact_resnet101_orig', pretrained, **kwargs)


@register_model
def preact_resnet152_orig(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-152 for ImageNet with original units, Table 5."""
    return _create_preact_resnet('preact_resnet152_orig', pretrained, **kwargs)


@register_model
def preact_resnet200_orig(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-200 for ImageNet with original units, Table 5."""
    return _create_preact_resnet('preact_resnet200_orig', pretrained, **kwargs)


@register_model
def preact_resnet101_bn_after_add(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-101 for ImageNet with BatchNorm after addition, section 4.1."""
    return _create_preact_resnet('preact_resnet101_bn_after_add', pretrained, **kwargs)


@register_model
def preact_resnet20_pcv(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-20 for CIFAR in the layout of pytorchcv's published weights."""
    return _create_preact_resnet('preact_resnet20_pcv', pretrained, **kwargs)


@register_model
def preact_resnet56_pcv(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-56 for CIFAR in the layout of pytorchcv's published weights."""
    return _create_preact_resnet('preact_resnet56_pcv', pretrained, **kwargs)


@register_model
def preact_resnet110_pcv(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-110 for CIFAR in the layout of pytorchcv's published weights."""
    return _create_preact_resnet('preact_resnet110_pcv', pretrained, **kwargs)


@register_model
def preact_resnet164_pcv(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-164 for CIFAR in the layout of pytorchcv's published weights."""
    return _create_preact_resnet('preact_resnet164_pcv', pretrained, **kwargs)


@register_model
def preact_resnet272_pcv(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-272 for CIFAR in the layout of pytorchcv's published weights."""
    return _create_preact_resnet('preact_resnet272_pcv', pretrained, **kwargs)


@register_model
def preact_resnet542_pcv(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-542 for CIFAR in the layout of pytorchcv's published weights."""
    return _create_preact_resnet('preact_resnet542_pcv', pretrained, **kwargs)


@register_model
def preact_resnet1001_pcv(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-1001 for CIFAR in the layout of pytorchcv's published weights."""
    return _create_preact_resnet('preact_resnet1001_pcv', pretrained, **kwargs)


@register_model
def preact_resnet1202_pcv(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-1202 for CIFAR in the layout of pytorchcv's published weights."""
    return _create_preact_resnet('preact_resnet1202_pcv', pretrained, **kwargs)


@register_model
def preact_resnet20_orig_chen(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-20 for CIFAR with original units in the layout of chenyaofo's published weights."""
    return _create_preact_resnet('preact_resnet20_orig_chen', pretrained, **kwargs)


@register_model
def preact_resnet32_orig_chen(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-32 for CIFAR with original units in the layout of chenyaofo's published weights."""
    return _create_preact_resnet('preact_resnet32_orig_chen', pretrained, **kwargs)


@register_model
def preact_resnet44_orig_chen(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-44 for CIFAR with original units in the layout of chenyaofo's published weights."""
    return _create_preact_resnet('preact_resnet44_orig_chen', pretrained, **kwargs)


@register_model
def preact_resnet56_orig_chen(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-56 for CIFAR with original units in the layout of chenyaofo's published weights."""
    return _create_preact_resnet('preact_resnet56_orig_chen', pretrained, **kwargs)


@register_model
def preact_resnet18_kuang(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-18 for CIFAR with full pre-activation in the layout of kuangliu's PreActResNet18."""
    return _create_preact_resnet('preact_resnet18_kuang', pretrained, **kwargs)


@register_model
def preact_resnet34_kuang(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-34 for CIFAR with full pre-activation in the layout of kuangliu's PreActResNet34."""
    return _create_preact_resnet('preact_resnet34_kuang', pretrained, **kwargs)


@register_model
def preact_resnet50_kuang(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-50 for CIFAR with full pre-activation in the layout of kuangliu's PreActResNet50."""
    return _create_preact_resnet('preact_resnet50_kuang', pretrained, **kwargs)


@register_model
def preact_resnet101_kuang(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-101 for CIFAR with full pre-activation in the layout of kuangliu's PreActResNet101."""
    return _create_preact_resnet('preact_resnet101_kuang', pretrained, **kwargs)


@register_model
def preact_resnet152_kuang(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-152 for CIFAR with full pre-activation in the layout of kuangliu's PreActResNet152."""
    return _create_preact_resnet('preact_resnet152_kuang', pretrained, **kwargs)


@register_model
def preact_resnet18_orig_kuang(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-18 for CIFAR with original units in the layout of kuangliu's and weiaicunzai's ResNet18."""
    return _create_preact_resnet('preact_resnet18_orig_kuang', pretrained, **kwargs)


@register_model
def preact_resnet34_orig_kuang(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-34 for CIFAR with original units in the layout of kuangliu's and weiaicunzai's ResNet34."""
    return _create_preact_resnet('preact_resnet34_orig_kuang', pretrained, **kwargs)


@register_model
def preact_resnet50_orig_kuang(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-50 for CIFAR with original units in the layout of kuangliu's and weiaicunzai's ResNet50."""
    return _create_preact_resnet('preact_resnet50_orig_kuang', pretrained, **kwargs)


@register_model
def preact_resnet101_orig_kuang(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-101 for CIFAR with original units in the layout of kuangliu's and weiaicunzai's ResNet101."""
    return _create_preact_resnet('preact_resnet101_orig_kuang', pretrained, **kwargs)


@register_model
def preact_resnet152_orig_kuang(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-152 for CIFAR with original units in the layout of kuangliu's and weiaicunzai's ResNet152."""
    return _create_preact_resnet('preact_resnet152_orig_kuang', pretrained, **kwargs)


@register_model
def preact_resnet18_wei(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-18 for CIFAR with full pre-activation in the layout of weiaicunzai's PreActResNet18."""
    return _create_preact_resnet('preact_resnet18_wei', pretrained, **kwargs)


@register_model
def preact_resnet34_wei(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-34 for CIFAR with full pre-activation in the layout of weiaicunzai's PreActResNet34."""
    return _create_preact_resnet('preact_resnet34_wei', pretrained, **kwargs)


@register_model
def preact_resnet50_wei(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-50 for CIFAR with full pre-activation in the layout of weiaicunzai's PreActResNet50."""
    return _create_preact_resnet('preact_resnet50_wei', pretrained, **kwargs)


@register_model
def preact_resnet101_wei(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-101 for CIFAR with full pre-activation in the layout of weiaicunzai's PreActResNet101."""
    return _create_preact_resnet('preact_resnet101_wei', pretrained, **kwargs)


@register_model
def preact_resnet152_wei(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-152 for CIFAR with full pre-activation in the layout of weiaicunzai's PreActResNet152."""
    return _create_preact_resnet('preact_resnet152_wei', pretrained, **kwargs)


@register_model
def preact_resnet200_fb(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-200 for ImageNet in the layout of FAIR's published weights."""
    return _create_preact_resnet('preact_resnet200_fb', pretrained, **kwargs)


@register_model
def preact_resnet50_keras(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-50 for ImageNet in the layout of Keras's ResNet50V2."""
    return _create_preact_resnet('preact_resnet50_keras', pretrained, **kwargs)


@register_model
def preact_resnet101_keras(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-101 for ImageNet in the layout of Keras's ResNet101V2."""
    return _create_preact_resnet('preact_resnet101_keras', pretrained, **kwargs)


@register_model
def preact_resnet152_keras(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-152 for ImageNet in the layout of Keras's ResNet152V2."""
    return _create_preact_resnet('preact_resnet152_keras', pretrained, **kwargs)


@register_model
def preact_resnet18_timm(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-18 for ImageNet of basic units in the layout of timm's resnetv2_18, without a norm in the stem."""
    return _create_preact_resnet('preact_resnet18_timm', pretrained, **kwargs)


@register_model
def preact_resnet34_timm(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-34 for ImageNet of basic units in the layout of timm's resnetv2_34, without a norm in the stem."""
    return _create_preact_resnet('preact_resnet34_timm', pretrained, **kwargs)


@register_model
def preact_resnet50_timm(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-50 for ImageNet of bottleneck units in the layout of timm's resnetv2_50, without a norm in the stem."""
    return _create_preact_resnet('preact_resnet50_timm', pretrained, **kwargs)


@register_model
def preact_resnet101_timm(pretrained: bool = False, **kwargs) -> PreActResNet:
    """ResNet-101 for ImageNet of bottleneck units in the layout of timm's resnetv2_101, without a norm in the stem."""
    return _create_preact_resnet('preact_resnet101_timm', pretrained, **kwargs)
