"""The Hub of these tests is one to the real client: what it stores, serves and refuses, and how the client takes it."""
import os
import random
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from support.hub_server import READ, STRANGER, WRITE

REPO = 'lab/net'
LARGE = random.Random(0).randbytes(12 << 20)
pytestmark = pytest.mark.filterwarnings('ignore:Use .content:DeprecationWarning')  # the client's own, at each PUT
CARD = b'---\nlicense: apache-2.0\n---\n# net\n'


@pytest.fixture
def api(hub):
    return HfApi(token=WRITE)


@pytest.fixture
def folder(tmp_path):
    """A small text, a card, a binary for one PUT and one for two parts."""
    folder = tmp_path / 'folder'
    (folder / 'sub').mkdir(parents=True)
    (folder / 'README.md').write_bytes(CARD)
    (folder / 'sub' / 'text.txt').write_text('text')
    (folder / 'small.bin').write_bytes(b'\0' * 1000)
    (folder / 'large.bin').write_bytes(LARGE)
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob('*') if path.is_file()}


def cached():
    """Relative paths of everything in the cache."""
    cache = Path(os.environ['HF_HOME'], 'hub')
    return {str(path.relative_to(cache)) for path in cache.rglob('*') if path.is_file()}


def test_what_is_uploaded_is_downloaded(hub, api, folder):
    assert api.create_repo(REPO) == f'{hub.url}/{REPO}'
    commit = api.upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.files(REPO) == contents(folder)
    assert hub.count('^PUT /objects/[0-9a-f]+$') == 1 and hub.count('^PUT /objects/[0-9a-f]+/[0-9]+$') == 2
    assert commit.oid == hub.head(REPO).sha == api.model_info(REPO).sha
    snapshot = snapshot_download(REPO)
    assert {**contents(folder), '.gitattributes': hub.head(REPO).files['.gitattributes'].content} == contents(snapshot)
    assert Path(snapshot).name == commit.oid


def test_uploading_again_sends_nothing_and_keeps_the_commit(hub, api, folder):
    api.create_repo(REPO)
    first = api.upload_folder(repo_id=REPO, folder_path=folder)
    hub.requests.clear()
    assert api.upload_folder(repo_id=REPO, folder_path=folder).oid == first.oid
    assert hub.count('^PUT|/commit/') == 0


def test_facts_of_files_are_those_of_git_and_lfs(hub, api):
    hub.commit(REPO, {'text.txt': b'hello\n', 'net.bin': b'\0'})
    # the two sums are git hash-object's and sha256sum's
    text, binary = [file for file in api.list_repo_tree(REPO, recursive=True) if file.path != '.gitattributes']
    assert (text.blob_id, text.size, text.lfs) == ('ce013625030ba8dba906f756967f9e9ca394464a', 6, None)
    assert binary.lfs.sha256 == '6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d'
    assert api.model_info(REPO, files_metadata=True).siblings[2].lfs.sha256 == binary.lfs.sha256


def test_a_stale_parent_is_refused(hub, api, folder):
    parent = hub.commit(REPO, {'a.txt': b'1'})
    other = hub.commit(REPO, {'a.txt': b'2'})
    with pytest.raises(HfHubHTTPError) as e:
        api.upload_folder(repo_id=REPO, folder_path=folder, parent_commit=parent.sha)
    assert e.value.response.status_code == 412
    assert hub.head(REPO) == other


def test_branches_are_apart(hub, api):
    hub.commit(REPO, {'a.txt': b'1'})
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b'2', path_in_repo='a.txt', repo_id=REPO, revision='v2/rc')
    api.create_branch(REPO, branch='v2/rc')
    api.create_branch(REPO, branch='v2/rc', exist_ok=True)
    api.upload_file(path_or_fileobj=b'2', path_in_repo='a.txt', repo_id=REPO, revision='v2/rc')
    assert [Path(hf_hub_download(REPO, 'a.txt', revision=r)).read_bytes() for r in (None, 'v2/rc')] == [b'1', b'2']
    assert sorted(branch.name for branch in api.list_repo_refs(REPO).branches) == ['main', 'v2/rc']


def test_files_and_folders_can_be_deleted(hub, api):
    hub.commit(REPO, {'a.txt': b'1', 'sub/b.txt': b'2', 'subway.txt': b'3'})
    api.delete_file('a.txt', REPO)
    api.delete_folder('sub', REPO)
    assert hub.files(REPO) == {'subway.txt': b'3'}


@pytest.mark.parametrize('token, status', [(False, 401), ('hf_unknown', 401), (READ, 403), (STRANGER, 403)])
def test_who_may_not_write_is_refused(hub, folder, token, status):
    hub.commit(REPO, {})
    for write in (
        lambda: HfApi(token=token).create_repo('lab/new'),
        lambda: HfApi(token=token).upload_folder(repo_id=REPO, folder_path=folder),
    ):
        with pytest.raises(HfHubHTTPError) as e:
            write()
        assert e.value.response.status_code == status
    assert hub.files(REPO) == {} and list(hub.repos) == [REPO] and hub.count('^PUT|/commit/') == 0


def test_a_read_token_passes_create_repo_where_it_exists(hub):
    """So a refusal comes only when files are sent."""
    hub.commit(REPO, {})
    HfApi(token=READ).create_repo(REPO, exist_ok=True)


@pytest.mark.parametrize('token', [False, 'hf_unknown', STRANGER, READ, WRITE])
def test_a_private_repository_is_read_by_its_own_people_only(hub, token):
    hub.commit(REPO, {'net.bin': LARGE}, private=True)
    if token in (READ, WRITE):
        assert Path(hf_hub_download(REPO, 'net.bin', token=token)).read_bytes() == LARGE
    else:
        with pytest.raises(HfHubHTTPError):
            hf_hub_download(REPO, 'net.bin', token=token)
        assert cached() == set()


def test_a_missing_repository_and_a_missing_file_are_told_apart(hub, api):
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download('lab/none', 'a.txt')
    hub.commit(REPO, {})
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, 'a.txt')
    assert not api.file_exists(REPO, 'a.txt')


def test_whoami_names_the_account(hub):
    assert [HfApi(token=token).whoami()['auth']['accessToken']['role'] for token in (WRITE, READ)] == ['write', 'read']
    assert [org['name'] for org in HfApi(token=WRITE).whoami()['orgs']] == ['lab-org']


def test_broken_front_matter_is_refused_before_anything_is_sent(hub, api, folder):
    hub.commit(REPO, {})
    (folder / 'README.md').write_text('---\nlicense: [apache\n---\n')
    with pytest.raises(ValueError, match='Invalid metadata in README.md'):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.count('/preupload/|^PUT') == 0


@pytest.mark.skipif(huggingface_hub.__version__ < '1', reason='this client does not resume')
def test_a_download_cut_after_10_mib_is_resumed(hub):
    hub.commit(REPO, {'net.bin': LARGE})
    hub.cut('GET /objects/', after=11 << 20)
    assert Path(hf_hub_download(REPO, 'net.bin')).read_bytes() == LARGE
    assert hub.count('GET /objects/') == 2 and hub.count(f'GET /objects/[0-9a-f]+ bytes={10 << 20}-') == 1


def test_a_part_that_is_lost_is_sent_again(hub, api, folder):
    api.create_repo(REPO)
    hub.cut('PUT /objects/[0-9a-f]+/2', after=1000)
    hub.fail('PUT /objects/[0-9a-f]+/1')
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.files(REPO) == contents(folder)


def test_a_lost_reply_to_a_commit_is_an_error_though_it_landed(hub, api):
    api.create_repo(REPO)
    hub.lose_reply('/commit/')
    with pytest.raises(Exception, match='(?i)disconnected'):
        api.upload_file(path_or_fileobj=b'1', path_in_repo='a.txt', repo_id=REPO)
    assert hub.files(REPO) == {'a.txt': b'1'}


def test_a_commit_of_somebody_else_can_land_in_between(hub, api):
    api.create_repo(REPO)
    hub.meanwhile('/commit/', lambda: hub.commit(REPO, {'b.txt': b'2'}))
    api.upload_file(path_or_fileobj=b'1', path_in_repo='a.txt', repo_id=REPO)
    assert hub.files(REPO) == {'a.txt': b'1', 'b.txt': b'2'}


def test_the_client_accepts_a_flipped_byte(hub):
    """Its check is of the size alone: this is why timm_preact verifies weights itself."""
    hub.commit(REPO, {'net.bin': LARGE})
    hub.flip(REPO, 'net.bin', at=1 << 20)
    content = Path(hf_hub_download(REPO, 'net.bin')).read_bytes()
    assert [i for i in range(0, len(LARGE), 1 << 20) if content[i] != LARGE[i]] == [1 << 20]


def test_a_cached_file_is_served_while_the_hub_is_down_and_the_port_stays(hub):
    hub.commit(REPO, {'a.txt': b'1'})
    path = hf_hub_download(REPO, 'a.txt')
    url = hub.url
    hub.stop()
    assert hf_hub_download(REPO, 'a.txt') == path
    hub.start()
    assert hub.url == url
    hub.commit(REPO, {'a.txt': b'2'})
    assert Path(hf_hub_download(REPO, 'a.txt')).read_bytes() == b'2'


def test_a_listed_name_that_leaves_the_folder_is_refused_by_the_client(hub, api, tmp_path):
    hub.commit(REPO, {'../../outside.txt': b'1', 'a.txt': b'2'})
    assert '../../outside.txt' in api.list_repo_files(REPO)
    with pytest.raises((ValueError, HfHubHTTPError)):
        snapshot_download(REPO, local_dir=tmp_path / 'in' / 'in')
    assert not list(tmp_path.rglob('outside.txt'))
