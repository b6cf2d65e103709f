"""Model cards: one template, every number from data."""
from typing import Any, Dict, List

from .catalog import MEASURED, PAPER, SIZES, Size, count_macs
from .errors import create_model
from .evaluation import format_protocol
from .preact_resnet import MODEL_ARGS
from .unit import PLACEMENTS
from .weights import LEAST_DIGITS
from .weights.sources import CONVERSIONS, LICENSES, SOURCES

__all__ = ['DATA_SETS', 'card']

# tag's last word -> (name, repository on the Hub, split that is tested)
DATA_SETS = {
    'cifar10': ('CIFAR-10', 'uoft-cs/cifar10', 'test'),
    'cifar100': ('CIFAR-100', 'uoft-cs/cifar100', 'test'),
    'svhn': ('SVHN', 'ufldl-stanford/svhn', 'test'),
    'in1k': ('ImageNet-1k', 'ILSVRC/imagenet-1k', 'validation'),
}

CARD = """\
---
{front_matter}
---
# {name}

A {kind}-activation residual network of {depth} layers trained on {data_set}, from
[Identity Mappings in Deep Residual Networks](https://arxiv.org/abs/1603.05027) (He et al., ECCV 2016), for
[timm](https://github.com/huggingface/pytorch-image-models) through the package `timm_preact`.

| | |
|---|---|
{facts}

## Use

```python
import timm_preact  # first: it registers the name with timm
import timm

model = timm.create_model('{loaded_by}', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

With transformers, from this repository or a folder of its files:

```python
import timm_preact  # first: it registers the name with timm
from transformers import pipeline

classify = pipeline('image-classification', model='ORG/{name}')
```

{sections}
"""

ORIGIN = """\
## Origin

Converted by `timm-preact convert {name}` from [{upstream}]({url}),
published by [{publisher}]({publisher}) under {license}.
{conversion}
{checksum}"""

CONVERSION = """\
The tensors are theirs, renamed, and transposed where their format differs; the conversion is tested by logits against
their implementation."""

FILE_ORIGIN = """\
## Origin

Converted by `timm-preact convert` from the file `{file}` (sha256 `{sha256}`), named and laid out as in {layout}."""

LIMITS = """\
## Limits

It knows the {classes} classes of {data_set} alone; on anything else it answers with one of these all the same. Images
are resized and cropped to {size}, and normalised by mean {mean} and
standard deviation {std}."""


def card(config: Dict[str, Any], sections: str = '') -> str:
    """README.md of a repository.

    Args:
        config: Its config.json, in timm's form, with 'sha256' of the weights where they are known, and 'evaluations'
            where accuracy was measured: dicts with images, input_size, crop_pct, top1 and top5 (accuracies in
            percent). They alone enter the model-index.
        sections: Text on how the network was trained; without it, where its weights come from.
    """
    cfg = config['pretrained_cfg']
    architecture, tag = config['architecture'], cfg['tag']
    name = f'{architecture}.{tag}'
    evaluations = config.get('evaluations', [])
    source = SOURCES.get(name)
    data = DATA_SETS.get(tag.rpartition('_')[2])
    data_set = data[0] if data else f'the data set `{tag}`'
    args = {**MODEL_ARGS[architecture], **config.get('model_args', {})}
    placement = PLACEMENTS[args.get('placement', 'full')]
    if not sections and 'origin' in config:
        sections = FILE_ORIGIN.format_map(config['origin'])
    elif not sections and source:
        sections = _origin(name)
    limits = LIMITS.format(
        classes=config['num_classes'], data_set=data_set, mean=_numbers(cfg['mean']),
        std=_numbers(cfg['std']), size='x'.join(map(str, cfg['input_size'][1:])))
    return CARD.format(
        name=name, loaded_by=name if source or name in MEASURED else f'hf-hub:ORG/{name}',
        kind='pre' if placement.pre else 'post', data_set=data_set,
        depth=sum(args['layers']) * len(args['kernels']) + 2,
        front_matter=_front_matter(name, cfg, data, evaluations),
        facts='\n'.join(f'| {key} | {value} |' for key, value in _facts(name, config, evaluations).items()),
        sections='\n\n'.join(filter(None, [sections, limits])))


def _numbers(values: Any) -> str:
    return f'({", ".join(map(str, values))})'


def _front_matter(name: str, cfg: Dict[str, Any], data: Any, evaluations: List[Dict[str, Any]]) -> str:
    from huggingface_hub import EvalResult, ModelCardData
    results = [
        EvalResult(
            task_type='image-classification', dataset_name=data[0], dataset_type=data[1], dataset_split=data[2],
            metric_type='accuracy', metric_name=f'{metric} at {format_protocol(e)}',
            metric_value=round(e[key], 2))
        for e in evaluations if data
        for metric, key in (('top-1', 'top1'), ('top-5', 'top5'))
    ]
    return ModelCardData(
        library_name='timm', license=cfg.get('license'), pipeline_tag='image-classification',
        tags=['image-classification', 'timm', 'timm_preact'], datasets=[data[1]] if data else None,
        model_name=name if results else None, eval_results=results or None).to_yaml()


def _facts(name: str, config: Dict[str, Any], evaluations: List[Dict[str, Any]]) -> Dict[str, str]:
    architecture, _, tag = name.partition('.')
    source = SOURCES.get(name)
    size = SIZES[architecture] if source or name in MEASURED else _size_of(config)
    paper = PAPER.get(architecture, {}).get(tag.rpartition('_')[2])
    facts = {}
    for e in evaluations:
        facts[f'top-1, top-5 error at {format_protocol(e)}'] = (
            f'**{100 - e["top1"]:.2f} %**, {100 - e["top5"]:.2f} % on {e["images"]:,} images')
    if source:
        reported = [f'{error:.2f} %' if error is not None else '-' for error in source.reported]
        facts['top-1, top-5 error as the publisher reports it'] = (
            f'{", ".join(reported)} ({source.protocol}){"" if evaluations else "; not measured here"}')
    facts['top-1 error in the paper'] = f'{paper} %' if isinstance(paper, float) else paper or 'the paper has none'
    facts['parameters, multiply-adds'] = f'{size.params / 1e6:.2f} M, {size.macs / 1e6:,.1f} M'
    if 'sha256' in config:
        facts['sha256'] = f"`{config['sha256']}`"
    return facts


def _size_of(config: Dict[str, Any]) -> Size:
    input_size = config['pretrained_cfg']['input_size']
    args = dict(config.get('model_args', {}), num_classes=config['num_classes'], in_chans=input_size[0])
    model = create_model(config['architecture'], device='meta', **args)
    return Size(sum(p.numel() for p in model.parameters()), count_macs(model, input_size))


def _origin(name: str) -> str:
    source = SOURCES[name]
    if source.checksum:
        algorithm, _, digest = source.checksum.partition(':')
        stated = f'the {algorithm} that the publisher states is'
        if len(digest) == LEAST_DIGITS:
            stated = f"the first digits of the {algorithm}, which the publisher states in the file's name, are"
        elif algorithm == 'sha256':
            stated = 'the sha256, whose first eight digits the publisher states, is'
        checksum = f'Before a tensor is read, {stated} verified: `{digest}`.'
    else:
        stated = 'The sha256 that the Hub states' if source.hub else 'The publisher states no checksum: size'
        checksum = (f'{stated} and structure are checked, and the sha256 of the first file seen is recorded and holds '
                    f'from then on.')
    return ORIGIN.format(
        name=name, upstream=source.upstream, url=source.url, publisher=source.origin, checksum=checksum,
        license=LICENSES.get(source.origin, source.license), conversion=CONVERSIONS.get(source.origin, CONVERSION))
