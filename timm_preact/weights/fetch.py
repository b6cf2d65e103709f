"""Getting published weights: fetch, verify, and only then let timm read them from a local file.

timm has no place for a checksum, and the Hub's client checks sizes alone. So the builder asks `locate` for an overlay
of the pretrained config that names a verified file. Files by url lie in torch.hub's cache, files of the Hub in its own.
"""
import http.client
import os
import re
import shutil
import sys
import tempfile
import urllib.error
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Union

import timm
import torch

from ..files import write_atomically
from . import CHECKSUMS, WeightsError, digest_of, read_checkpoint, read_config, shipped_weights, verify
from .foreign import FOREIGN, read_foreign
from .keymaps import source_of, to_ours
from .sources import SOURCES

__all__ = ['HUB_ORGANIZATION', 'blaming', 'describe', 'fetch', 'find_cached', 'from_hub', 'locate', 'unpack']

# Environment variable with the Hub organisation that registered tags resolve to. Unset, they resolve to their
# publishers' own files: nobody here owns a namespace there, and one that somebody can take must never be the default.
HUB_ORGANIZATION = 'TIMM_PREACT_HUB_ORG'
MAX_BYTES = 1 << 30
MAX_CONFIG_BYTES = 1 << 20
# Where unpacked files and recorded digests go when torch.hub's cache is read-only
OWN_CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'timm_preact'


def locate(variant: str, cfg: Any, cache_dir: Optional[str] = None) -> Dict[str, Any]:
    """Fetch and verify the weights that timm is about to load.

    Args:
        variant: Registered name, without tag.
        cfg: The resolved PretrainedCfg.
        cache_dir: What create_model was given, None for the defaults of torch.hub and of the Hub's client.

    Returns:
        An overlay of `cfg` that names a verified file; empty where the source is the user's own, who verified it.

    Raises:
        WeightsError: There are no such weights, they cannot be fetched, or they are not what they should be.
    """
    name = f'{variant}.{cfg.tag}'
    source = SOURCES.get(name)
    is_published = source is not None and not cfg.source and (
        cfg.hf_hub_id == source.hub if source.hub else cfg.url == source.url)
    if cfg.source == 'local-dir':
        file = Path(cfg.file) / 'model.safetensors'
        checksum = read_config(file.with_name('config.json')).get('sha256')
        if not checksum or not file.exists():
            return {}
        verify(file, f'sha256:{checksum}')
        return dict(source=None, file=str(file), custom_load=False)
    is_own = cfg.file or cfg.state_dict or cfg.hf_hub_filename
    if cfg.source == 'hf-hub' or (cfg.hf_hub_id and not is_own and not is_published):
        repo_id, _, revision = cfg.hf_hub_id.partition('@')
        file = from_hub(repo_id, revision or None, cache_dir=cache_dir)
        return dict(source=None, file=str(file), custom_load=False) if file else {}
    if cfg.state_dict or cfg.hf_hub_filename or (cfg.file and cfg.file != shipped_weights(name)):
        return {}
    if cfg.file:
        verify(cfg.file, CHECKSUMS[name])
        return {}
    organization = os.environ.get(HUB_ORGANIZATION)
    if organization and (is_published or not cfg.url):
        ours = None if name in SOURCES else CHECKSUMS.get(name)
        file = from_hub(f'{organization}/{name}', checksum=ours, cache_dir=cache_dir)
        if file is None:
            raise WeightsError(f'{organization}/{name} has no model.safetensors: publish it with timm-preact publish.')
        return dict(file=str(file), custom_load=False)
    if not (cfg.url or is_published):
        raise WeightsError(f'{name} has no published weights: {_weights_elsewhere(variant, cfg.tag)}')
    if not is_published:
        return {}
    file = fetch(name, cache_dir)
    return dict(file=str(file), custom_load=file.suffix in FOREIGN)


def _weights_elsewhere(variant: str, tag: str) -> str:
    """Return the remedy for a name without weights: the best ones of its depth and placement, and training."""
    others = [key for key in SOURCES if re.match(rf'{variant}(_[a-z]+)?\.', key) and (
        '_orig' in key) == ('_orig' in variant)]
    data = tag.rpartition('_')[2]
    same_data = [key for key in others if re.split('[._]', key)[-1] == data]
    best = min(same_data or others, key=lambda key: SOURCES[key].reported[0], default=None)
    where = f'use {best}, the best of this depth ({SOURCES[best].reported[0]:.2f} % top-1 error); or ' if best else ''
    return f'{where}train it with train.cifar, name weights of your own, or pass pretrained=False.'


def fetch(name: str, cache_dir: Optional[Union[str, Path]] = None) -> Path:
    """Return the published file of 'name.tag', from the cache or the Internet, verified.

    A .pth.zip is unpacked; what is returned is the .pth. A file whose publisher states no checksum must hold exactly
    the tensors of its network; its sha256 is recorded beside it when it is first seen, and holds from then on. Where
    the cache cannot be written, it is read, and what would be written there goes to a cache of our own.

    Args:
        name: A key of SOURCES.
        cache_dir: Folder of the cache, None for torch.hub's, or for the Hub client's where the file is on the Hub.

    Raises:
        WeightsError: It cannot be fetched, or is not the published file. Nothing is left in the cache then.
    """
    url = SOURCES[name].url
    if SOURCES[name].hub:
        return _fetch_from_hub(name, cache_dir)
    archive_name = url.rpartition('/')[2]
    file_name = archive_name.removesuffix('.zip')
    cache = Path(cache_dir or Path(torch.hub.get_dir()) / 'checkpoints')
    folders = [cache] if is_writable(cache) else [cache, OWN_CACHE]
    record = next((folder / f'{file_name}.sha256' for folder in folders if (folder / f'{file_name}.sha256').is_file()),
                  folders[-1] / f'{file_name}.sha256')
    for folder in folders:
        if (folder / file_name).exists():
            record.parent.mkdir(parents=True, exist_ok=True)
            _check(name, folder / file_name, record)
            return folder / file_name
    archive = next((folder / archive_name for folder in folders if (folder / archive_name).exists()), None)
    folder = folders[-1]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.fetching-') as temporary:
        fresh = archive or _download(url, Path(temporary) / archive_name, folder)
        with blaming(str(archive or url), temporary):
            if fresh.suffix == '.zip':
                fresh = unpack(fresh, Path(temporary))
            _check(name, fresh, record)
        os.replace(fresh, folder / file_name)
    return folder / file_name


def _fetch_from_hub(name: str, cache_dir: Optional[Union[str, Path]]) -> Path:
    """Return model.safetensors of a source on the Hub; without a checksum the first file seen is the only one."""
    repo_id = SOURCES[name].hub
    file = from_hub(repo_id, checksum=CHECKSUMS.get(name), cache_dir=cache_dir)
    if file is None:
        raise WeightsError(f'{repo_id} has no model.safetensors any more: name weights of your own, or a mirror by '
                           f'{HUB_ORGANIZATION}.')
    if name not in CHECKSUMS:
        folder = Path(cache_dir or Path(torch.hub.get_dir()) / 'checkpoints')
        folder = folder if is_writable(folder) else OWN_CACHE
        folder.mkdir(parents=True, exist_ok=True)
        record = folder / f'{name}.sha256'
        if record.is_file() and digest_of(file) != record.read_text().strip():
            raise WeightsError(f'{repo_id} has changed: its model.safetensors is not the file that was fetched here '
                               f'first. Remove {record} to accept it.')
        _check(name, file, record)
    return file


def find_cached(name: str) -> Optional[Path]:
    """The published file of 'name.tag' where it lies in the cache already, not verified; None where it does not."""
    if SOURCES[name].hub:
        from huggingface_hub import try_to_load_from_cache
        cached = try_to_load_from_cache(SOURCES[name].hub, 'model.safetensors')
        return Path(cached) if isinstance(cached, str) else None
    file_name = SOURCES[name].url.rpartition('/')[2].removesuffix('.zip')
    folders = Path(torch.hub.get_dir()) / 'checkpoints', OWN_CACHE
    return next((folder / file_name for folder in folders if (folder / file_name).is_file()), None)


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the first of those above it that is there."""
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextmanager
def blaming(culprit: str, temporary: str) -> Iterator[None]:
    """An error about a file in a temporary folder names what the user knows of: the file or address it came from."""
    try:
        yield
    except WeightsError as e:
        raise type(e)(re.sub(rf'{re.escape(temporary)}/\S+', lambda _: culprit, str(e))) from e


def _download(url: str, file: Path, cache: Path) -> Path:
    try:
        torch.hub.download_url_to_file(url, str(file), progress=sys.stderr.isatty())
    except (urllib.error.URLError, http.client.HTTPException, OSError) as e:
        raise WeightsError(
            f'{url} cannot be fetched ({getattr(e, "reason", None) or e}): try again, or, to work offline, fetch it '
            f'elsewhere and put it into {cache}.') from e
    return file


def unpack(archive: Path, folder: Path) -> Path:
    """Write the one file in a .zip into `folder`, under an ending of its own.

    Raises:
        WeightsError: It is no .zip with one file, or one that is too large.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            [member] = members.infolist()
            if member.file_size > MAX_BYTES:
                raise WeightsError(f'{archive} unpacks to over {MAX_BYTES >> 30} GiB: it is not the published file.')
            file = folder / f'unpacked{Path(member.filename).suffix}'
            with members.open(member) as packed, open(file, 'wb') as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
    except (ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as e:  # RuntimeError: encrypted, ...
        if isinstance(e, WeightsError):
            raise
        raise WeightsError(f'{archive} is not a .zip with one file in it: fetch it again.') from e
    return file


def _check(name: str, file: Path, record: Path) -> None:
    """Verify a file by its publisher's checksum, or by its structure once and from then on by the sha256 seen then."""
    if name in CHECKSUMS:
        verify(file, CHECKSUMS[name])
    elif record.is_file():
        verify(file, f'sha256:{record.read_text().strip()}')
    else:
        if file.suffix in FOREIGN:
            state_dict, layout = read_foreign(file)
        else:
            state_dict, _ = read_checkpoint(file)
            layout = source_of(state_dict)
        to_ours(state_dict, layout, timm.create_model(name.partition('.')[0], device='meta'))
        write_atomically(record, digest_of(file).encode())


def from_hub(
        repo_id: str,
        revision: Optional[str] = None,
        checksum: Optional[str] = None,
        cache_dir: Optional[Union[str, Path]] = None,
        max_bytes: Optional[int] = None,
        token: Optional[bool] = None,
) -> Optional[Path]:
    """model.safetensors of a repository on the Hub, from the cache or the network, verified.

    It is checked against `checksum`, or without one against the sha256 in the config.json of the same commit, or else
    against the sha256 that the Hub states: these show a damaged file, not a forged one.

    Args:
        repo_id: ORG/NAME.
        revision: Branch, tag or commit, None for main.
        checksum: 'sha256:digest' of model.safetensors, where it is known.
        cache_dir: Folder of the cache, None for the Hub client's.
        max_bytes: Of model.safetensors; more is not fetched. None for any number.
        token: False to ask as nobody, None as whoever is logged in.

    Returns:
        The path, None if the repository has no model.safetensors.

    Raises:
        WeightsError: It cannot be fetched, or is damaged.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def download(name: str, revision: Optional[str], most: Optional[int]) -> Path:
        if max_bytes is not None:
            size = get_hf_file_metadata(hf_hub_url(repo_id, name, revision=revision), token=token).size
            if size is None or size > most:
                raise WeightsError(f'{name} of {repo_id} is larger than the {most >> 20} MiB that are fetched here: '
                                   f'load it on a machine of your own.')
        return Path(hf_hub_download(repo_id, name, revision=revision, cache_dir=cache_dir, token=token))

    try:
        config = download('config.json', revision, MAX_CONFIG_BYTES)
        commit = config.parent.name
        try:
            file = download('model.safetensors', commit, max_bytes)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None
    except WeightsError:
        raise
    except Exception as e:  # the client raises its own, httpx's and the system's classes
        asked = 'that it is public' if token is False else 'your token'
        raise WeightsError(f'{repo_id} cannot be fetched from the Hub ({describe(e)}): check the name, {asked} and '
                           f'the network.') from e
    digest = read_config(config).get('sha256')
    if checksum is None:
        blob = file.resolve().name  # in the Hub client's cache, the sha256 of a large file
        digest = digest or (blob if re.fullmatch('[0-9a-f]{64}', blob) else None)
        checksum = f'sha256:{digest}' if digest else None
    if checksum:
        try:
            verify(file, checksum)
        except WeightsError as e:
            raise WeightsError(f'model.safetensors of {repo_id} is damaged (its sha256 is not {checksum[7:19]}...): '
                               f'delete {file.resolve()} and fetch it again.') from e
    return file


def describe(error: BaseException) -> str:
    """The first line of an error, without the request that led to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip('.') if lines else type(error).__name__
