"""A model as a folder that goes to the Hub as it is: weights, config, card, golden logits.

`convert` makes one, `verify_folder` checks it, `publish` pushes it.
"""
import io
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import timm
import torch
from torch import nn

from .card import card
from .data import load_sample
from .errors import ArgumentError, UserError, check_model_args, create_model
from .evaluation import evaluate, input_channels, normalisation, open_images, resolve_protocol
from .files import write_atomically
from .folders import read_class_map
from .loading import ENDINGS, find_name, load_into
from .preact_resnet import MODEL_ARGS
from .weights import (
    CHECKSUMS,
    WeightsError,
    digest_of,
    export_model,
    find_weights,
    read_config,
    verify,
)
from .weights.fetch import describe
from .weights.keymaps import KEY_MAPS
from .weights.sources import SOURCES

__all__ = [
    'FILES', 'HubError', 'Published', 'convert', 'golden_error', 'measure', 'publish', 'record', 'verify_folder',
    'write_golden',
]

# What is published, in this order; nothing else in a folder is, so no pickle either
FILES = ('model.safetensors', 'golden.npz', 'config.json', 'curves.png', 'README.md')
NEEDED = ('model.safetensors', 'config.json', 'README.md')
REPO_TYPES = ('model', 'space')
SPACE_FILES = ('app.py', 'requirements.txt', 'README.md')  # all of them; the package itself goes with them
PACKAGED = ('.py', '.safetensors', '.webp')  # ends of the package's files
TOLERANCE = 1e-4  # of the largest logit, between machines and versions of torch in float32


class HubError(UserError):
    """Something that the Hub refused, or that must not be published; the message says what to do."""


class Published(NamedTuple):
    """What `publish` did.

    Attributes:
        url: Of the repository.
        commit: The revision's commit, None in a dry run.
        files: Names of the files that were sent or were there already.
        changed: There is a new commit.
    """
    url: str
    commit: Optional[str]
    files: List[str]
    changed: bool


def convert(
        source: str,
        folder: Path,
        name: Optional[str] = None,
        license: Optional[str] = None,
        model_args: Optional[Dict[str, Any]] = None,
        class_map: Optional[Path] = None,
) -> str:
    """Make a folder with safetensors, config, card and golden logits.

    Args:
        source: A registered 'name.tag' with published weights, which are fetched; or a weight file: .t7, .h5, .params,
            .pth, .safetensors, or a .zip with one of them, with the names of any source in
            `timm_preact.weights.keymaps`. The config.json beside a file, or the args.yaml of timm's train.py, says
            how its images are prepared.
        folder: Must not exist, or be empty.
        name: For a file, the registered name to load it into, with a tag, None to find it by the file. The tag of a
            published source wants exactly the published file; any other is free, and one that ends in cifar10,
            cifar100 or svhn names the classes.
        license: For a file, its licence as the Hub spells it, where its config.json does not say.
        model_args: For a file, constructor arguments beside the name's own, e.g. dict(stem_norm=False).
        class_map: For a file, a text file with its class names, one a line, in the order of the logits.

    Returns:
        The sha256 of model.safetensors.

    Raises:
        UserError: The source is no such thing, damaged, or has another layout than the name; or an argument is not
            for it.
    """
    if not source:
        raise ArgumentError('source', 'must not be empty.')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f'{folder} exists: name a new folder.')
    origin = None
    if Path(source).exists():
        name = name or find_name(source, model_args=model_args)
        if name.partition('.')[0] not in MODEL_ARGS:
            raise UserError(f'{name} is no network of timm_preact: say by --name which one {source} holds, for example '
                            f'preact_resnet50.my_in1k, or leave it out.')
        model, model_args, origin = _load_file(
            Path(source), *name.partition('.')[::2], license, model_args or {}, class_map)
    elif source.endswith(ENDINGS):
        raise UserError(f'{source} does not exist: name a weight file, or a name with a tag such as '
                        f'preact_resnet50.pcv_in1k.')
    elif source.count('.') == 1 and '/' not in source:
        for argument, value in dict(
                name=name, license=license, model_kwargs=model_args, class_map=class_map).items():
            if value:
                raise ArgumentError(argument, f'is for a weight file, and {source} is the name of published weights: '
                                              f'leave it out.')
        model = create_model(source, pretrained=True)
    else:
        raise UserError(f'{source} is no file and no name with a tag such as preact_resnet50.pcv_in1k.')
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f'.{folder.name}-') as temporary:
        made = Path(temporary) / 'made'
        made.mkdir()
        export_model(model, made, model_args)
        write_golden(made, model)
        config = dict(read_config(made / 'config.json'), golden_sha256=digest_of(made / 'golden.npz'))
        _write_config(made, dict(config, origin=origin) if origin else config)
        os.replace(made, folder)
    return config['sha256']


def _load_file(
        file: Path,
        name: str,
        tag: str,
        license: Optional[str],
        model_args: Dict[str, Any],
        class_map: Optional[Path],
) -> Tuple[nn.Module, Dict[str, Any], Optional[Dict[str, str]]]:
    """The model of a weight file, with as many classes and input channels as the file has, the arguments that make it,
    and what the card says of the file."""
    tagged = f'{name}.{tag}'
    published = tagged in SOURCES
    if published and license:
        raise ArgumentError('license', f'is that of {tagged}, {SOURCES[tagged].license}: leave it out.')
    model, layout, theirs, model_args = load_into(
        tagged if tagged in timm.list_models(f'{name}.*', include_tags=True) else name, file, model_args,
        as_in_file=True, checksum=CHECKSUMS.get(tagged) if published else None,
        class_names=None if class_map is None else read_class_map(class_map), data_set=tag.rpartition('_')[2])
    if published:
        model.pretrained_cfg.update(timm.get_pretrained_cfg(tagged).to_dict())
        return model, model_args, None
    model.pretrained_cfg.update(tag=tag or 'custom', license=license or theirs.get('license'), origin_url=None)
    file = find_weights(file)
    title = KEY_MAPS[layout].title if layout else 'timm_preact'
    return model, model_args, dict(file=file.name, sha256=digest_of(file), layout=title)


def _write_config(folder: Path, config: Dict[str, Any]) -> None:
    """Write config.json and the card that follows from it."""
    write_atomically(folder / 'config.json', json.dumps(config, indent=2).encode())
    write_atomically(folder / 'README.md', card(config).encode())


def write_golden(folder: Path, model: nn.Module) -> None:
    """Write two real images at the model's input size, uint8 (2, channels, height, width), and its logits (2, classes).

    Raises:
        UserError: The model has neither 1 nor 3 input channels.
    """
    from PIL import Image
    channels, size = input_channels(model), model.pretrained_cfg['input_size'][1:]
    mode = {1: 'L', 3: 'RGB'}.get(channels)
    if mode is None:
        raise UserError(f'a model of {channels} input channels has no golden images: convert one with 1 or 3.')
    resized = [Image.fromarray(image).convert(mode).resize(size[::-1]) for image in load_sample().images[[0, 150]]]
    pixels = torch.from_numpy(np.stack([np.array(image) for image in resized]).reshape(2, *size, channels))
    pixels = pixels.permute(0, 3, 1, 2).contiguous()
    content = io.BytesIO()
    np.savez(content, images=pixels, logits=_logits(model.eval(), pixels))
    write_atomically(folder / 'golden.npz', content.getvalue())


def _logits(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in normalisation(model).values())
    with torch.inference_mode():
        return model((pixels / 255 - mean) / std).clone()


def verify_folder(folder: Path) -> nn.Module:
    """The model in a folder, in eval mode, loaded by timm after its hashes were checked.

    Raises:
        UserError: A file is missing or damaged, or gives other logits than when it was made.
    """
    for name in NEEDED:
        if not (folder / name).is_file():
            raise WeightsError(f'{folder} has no {name}: name a folder that timm-preact convert made, of '
                               f'{folder if name == "README.md" else "a weight file or a folder of train.cifar"}.')
    config = read_config(folder / 'config.json')
    if 'sha256' not in config:
        raise WeightsError(f'config.json of {folder} has no sha256 of the weights: make the folder again.')
    verify(folder / 'model.safetensors', f"sha256:{config['sha256']}")
    check_model_args(config.get('model_args', {}), ('num_classes', 'in_chans'))
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    error = golden_error(folder, model)
    if error is not None and not error <= TOLERANCE:
        raise WeightsError(f'{folder} gives other logits than when it was made (by {error:.1e} of the largest): make '
                           f'it again with this version of timm_preact, and compare.')
    return model


def golden_error(folder: Path, model: nn.Module) -> Optional[float]:
    """The largest difference from the stored logits as a share of the largest logit, None where none are stored."""
    file = folder / 'golden.npz'
    digest = read_config(folder / 'config.json').get('golden_sha256')
    if digest is None and not file.exists():
        return None
    verify(file, f'sha256:{digest}')
    with np.load(file, allow_pickle=False) as stored:
        images, logits = torch.from_numpy(stored['images']), torch.from_numpy(stored['logits'])
    return ((_logits(model, images) - logits).abs().max() / logits.abs().max()).item()


def measure(
        model: nn.Module,
        data: str,
        split: str,
        batch_size: int = 50,
        device: str = 'cpu',
        match: str = 'name',
) -> List[Dict[str, Any]]:
    """Measure top-1 and top-5 accuracy as `timm-preact evaluate` does by default.

    A network for 224x224 images is tested twice: at that size, and at its test size (299x299 for Keras's) or else as
    in Table 5 of the paper, 320x320 from crop 1.0.

    Returns:
        Dicts with data, split, images, input_size, crop_pct, top1 and top5, as config.json's 'evaluations'.
    """
    own, default = resolve_protocol(model), resolve_protocol(model, use_test_size=True)
    protocols = [default]
    if own.input_size[1:] == (224, 224):
        protocols = [own, resolve_protocol(model, 320, 1.) if default == own else default]
    results = []
    for protocol in protocols:
        images = open_images(data, split, protocol.transform())
        scores = evaluate(model.to(device), images, batch_size, device, match=match)
        results.append(dict(
            data=Path(data).name, split=split, images=scores.images, **protocol.as_evaluation(),
            top1=round(scores.top1, 4), top5=round(scores.top5, 4)))
    return results


def record(folder: Path, evaluations: List[Dict[str, Any]]) -> None:
    """Write measured results into the config.json and the card of a folder."""
    _write_config(folder, dict(read_config(folder / 'config.json'), evaluations=evaluations))


def publish(
        folder: Path,
        repo_id: str,
        revision: Optional[str] = None,
        private: bool = False,
        dry_run: bool = False,
        repo_type: str = 'model',
) -> Published:
    """Push a folder to the Hub in one commit and read it back.

    The same bits again make no commit. Nothing is visible before the commit; a push that broke off can be repeated.

    Args:
        folder: As `convert` or train.ship make it, of which FILES alone are sent; or a Space, of which SPACE_FILES are,
            and beside them this package, which is not to be had elsewhere.
        repo_id: ORG/NAME.
        revision: Branch, made if it does not exist; None for main.
        private: Make a new repository private.
        dry_run: Check the folder and send nothing.
        repo_type: 'model' or 'space'.

    Raises:
        UserError: The folder is not fit to be published, or the Hub refuses it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import validate_repo_id
    if repo_type not in REPO_TYPES:
        raise HubError(f'--repo-type {repo_type} is not published: choose one of {", ".join(REPO_TYPES)}.')
    if repo_type == 'space':
        text, sdk = _check_space(folder), 'gradio'
        files = {**{name: folder / name for name in SPACE_FILES}, **_package_files()}
    else:
        verify_folder(folder)
        text, sdk = _check_card(folder), None
        files = {name: folder / name for name in FILES if (folder / name).is_file()}
    api = HfApi(library_name='timm_preact')
    url = f'{api.endpoint}/{"spaces/" if repo_type == "space" else ""}{repo_id}'
    with _hub_errors(repo_id):
        validate_repo_id(repo_id)
        if dry_run:
            return Published(url, None, list(files), False)
        _validate_card(text, api.endpoint, repo_type)
        api.create_repo(repo_id, private=private, repo_type=repo_type, exist_ok=True, space_sdk=sdk)
        if revision:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        info = api.repo_info(repo_id, revision=revision, repo_type=repo_type)
        if private and not info.private:
            raise HubError(f'{repo_id} exists and is public: make it private first, or leave out --private.')
        commit = api.create_commit(
            repo_id, [CommitOperationAdd(name, path) for name, path in files.items()], revision=revision,
            repo_type=repo_type, parent_commit=info.sha, commit_message=f'Publish {folder.name} with timm_preact')
        _read_back(files, repo_id, commit.oid, repo_type)
    return Published(url, commit.oid, list(files), commit.oid != info.sha)


def _check_card(folder: Path) -> Any:
    """The card as the Hub's client reads it."""
    from huggingface_hub import ModelCard
    try:
        text = ModelCard.load(folder / 'README.md')
    except Exception as e:  # of YAML's classes, or ValueError
        raise HubError(f'README.md of {folder} has no valid front matter ({describe(e)}): make the card again.') from e
    if text.data.library_name != 'timm' or not text.data.license:
        raise HubError(f'README.md of {folder} needs library_name: timm and a license in its front matter: add them.')
    return text


def _check_space(folder: Path) -> Any:
    """The README.md of a Space as the Hub's client reads it, where the Space can start."""
    from huggingface_hub import SpaceCard
    for name in SPACE_FILES:
        if not (folder / name).is_file():
            raise HubError(f'{folder} has no {name}: a Space needs {", ".join(SPACE_FILES)}.')
    try:
        text = SpaceCard.load(folder / 'README.md')
    except Exception as e:  # of YAML's classes, or ValueError
        raise HubError(f'README.md of {folder} has no valid front matter ({describe(e)}): correct it.') from e
    missing = [key for key in ('title', 'license', 'sdk_version') if not text.data.get(key)]
    if missing or text.data.get('sdk') != 'gradio' or text.data.get('app_file') != 'app.py':
        raise HubError(f'README.md of {folder} needs sdk: gradio, app_file: app.py and a title, license and '
                       f'sdk_version in its front matter: add them.')
    return text


def _package_files() -> Dict[str, Path]:
    """The files of this package by their names in a Space."""
    package = Path(__file__).parent
    return {path.relative_to(package.parent).as_posix(): path for path in sorted(package.rglob('*'))
            if path.suffix in PACKAGED}


def _validate_card(text: Any, endpoint: str, repo_type: str) -> None:
    """Have the Hub read the card before anything is sent; the client's own check asks huggingface.co up to 0.27."""
    from huggingface_hub.utils import get_session, hf_raise_for_status
    response = get_session().post(f'{endpoint}/api/validate-yaml', json=dict(repoType=repo_type, content=str(text)))
    if response.status_code == 400:
        raise HubError(f'the Hub does not accept the card ({" ".join(response.text.split())}): correct README.md.')
    hf_raise_for_status(response)


def _read_back(files: Dict[str, Path], repo_id: str, commit: str, repo_type: str) -> None:
    """Raise unless the Hub serves the bits that were sent."""
    from huggingface_hub import hf_hub_download
    with tempfile.TemporaryDirectory() as temporary:
        for name, path in files.items():
            served = hf_hub_download(repo_id, name, revision=commit, repo_type=repo_type, cache_dir=temporary)
            if digest_of(served) != digest_of(path):
                raise HubError(f'{repo_id} serves other bits of {name} than were sent: publish again.')


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """What the Hub or its client refuses, in a sentence."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    try:
        yield
    except UserError:
        raise
    except HFValidationError as e:
        raise HubError(f'{repo_id} is no name of a repository ({describe(e)}): write it as ORG/NAME.') from e
    except HfHubHTTPError as e:
        status = e.response.status_code if e.response is not None else None
        advice = {
            401: 'the token is missing or not valid: run hf auth login, or set HF_TOKEN',
            403: 'the token may not write there: use one with write access to that namespace',
            404: 'there is no such repository or revision: check the name',
            412: 'somebody else committed meanwhile: look at their commit and publish again',
        }.get(status, 'try again later; nothing that was sent is lost')
        raise HubError(f'{repo_id}: the Hub answered {status}, {advice}.') from e
    except Exception as e:  # the client's HTTP library has its own classes
        raise HubError(f'{repo_id} cannot be published ({describe(e)}): check the network and publish again; nothing '
                       f'that was sent is lost.') from e
