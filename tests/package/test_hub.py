"""Models go to the Hub and come back bit for bit, or not at all: against a Hub of our own and the real client."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from safetensors.torch import load_file
from support.hub_server import READ, STRANGER
from typer.testing import CliRunner

from timm_preact.cli import app
from timm_preact.hub import HubError, publish
from timm_preact.weights import WeightsError, export_model

CARDS = Path(__file__).parents[2] / 'hub_cards'
SHIPPED, RANDOM = 'preact_resnet20.cifar10', 'preact_resnet56.cifar10'
REPO = f'lab/{SHIPPED}'
CARD = '---\nlibrary_name: timm\nlicense: apache-2.0\n---\n# A network for a test\n'
pytestmark = pytest.mark.filterwarnings('ignore:Use .content:DeprecationWarning')  # the client's own, at each PUT


@pytest.fixture
def folder(tmp_path):
    """What ships, as it is published."""
    return Path(shutil.copytree(CARDS / SHIPPED, tmp_path / SHIPPED))


def random_folder(tmp_path, name=RANDOM, **kwargs):
    """Weights that exist nowhere else."""
    (folder := tmp_path / 'random').mkdir()
    export_model(timm.create_model(name, **kwargs), folder, kwargs)
    (folder / 'README.md').write_text(CARD)
    return folder


@pytest.fixture
def organization(lab, tmp_path, monkeypatch):
    """An organisation that published RANDOM and that registered tags resolve to; nobody is logged in."""
    folder = random_folder(tmp_path)
    publish(folder, f'lab/{RANDOM}')
    monkeypatch.setenv('TIMM_PREACT_HUB_ORG', 'lab')
    monkeypatch.delenv('HF_TOKEN')
    lab.requests.clear()
    return lab, folder


def pull(name):
    return timm.create_model(name, pretrained=True)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def assert_holds(model, file):
    """The model's tensors are those of the file, bit for bit."""
    stored = load_file(file)
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, stored[key]) for key, tensor in model.state_dict().items())


def refusal(*args, error=HubError, **kwargs):
    """The one sentence with which a push is refused."""
    with pytest.raises(error) as e:
        publish(*args, **kwargs)
    return one_sentence(e.value)


def pull_refusal(name):
    with pytest.raises(WeightsError) as e:
        pull(name)
    return one_sentence(e.value)


def one_sentence(error):
    assert re.fullmatch(r'[^\n]+\.', str(error))
    return str(error)


def blobs(repo_id):
    """Every file in the cache of a repository, links to them aside."""
    cache = Path(os.environ['HF_HOME'], 'hub', f"models--{repo_id.replace('/', '--')}", 'blobs')
    return sorted(path.name for path in cache.glob('*'))


# push and pull

def test_what_is_pushed_is_pulled_bit_for_bit(lab, folder):
    published = publish(folder, REPO)
    assert lab.files(REPO) == contents(folder)
    assert (published.url, published.commit) == (f'{lab.url}/{REPO}', lab.head(REPO).sha) and published.changed
    assert sorted(published.files) == sorted(contents(folder))
    assert_holds(pull(f'hf-hub:{REPO}'), folder / 'model.safetensors')


def test_a_push_is_one_commit(lab, folder):
    lab.commit(REPO, {})
    before = lab.head(REPO).sha
    publish(folder, REPO)
    assert lab.head(REPO).parent == before


def test_a_registered_tag_is_pulled_from_the_organization(organization):
    _, folder = organization
    assert_holds(pull(RANDOM), folder / 'model.safetensors')
    assert_holds(pull(f'hf-hub:lab/{RANDOM}'), folder / 'model.safetensors')


def test_the_organization_is_read_when_a_model_is_created(organization, monkeypatch):
    hub, _ = organization
    monkeypatch.setenv('TIMM_PREACT_HUB_ORG', 'nobody')
    assert 'nobody' in pull_refusal(RANDOM)
    monkeypatch.delenv('TIMM_PREACT_HUB_ORG')
    hub.requests.clear()
    assert 'has no published weights' in pull_refusal(RANDOM) and hub.requests == []


def test_a_file_that_the_user_names_on_the_hub_is_the_one_that_is_loaded(lab, tmp_path, folder):
    other = random_folder(tmp_path, 'preact_resnet20')
    lab.commit('lab/two', {**contents(folder), 'other.safetensors': (other / 'model.safetensors').read_bytes()})
    model = timm.create_model('preact_resnet20', pretrained=True, pretrained_cfg_overlay=dict(
        file=None, hf_hub_id='lab/two', hf_hub_filename='other.safetensors'))
    assert_holds(model, other / 'model.safetensors')


def test_a_shipped_tag_keeps_its_packaged_file(organization):
    hub, _ = organization
    assert_holds(pull(SHIPPED), CARDS / SHIPPED / 'model.safetensors')
    assert hub.requests == []


def test_publishing_the_same_bits_again_changes_nothing(lab, folder):
    first = publish(folder, REPO)
    lab.requests.clear()
    again = publish(folder, REPO)
    assert (again.commit, again.changed) == (first.commit, False) and lab.head(REPO).sha == first.commit
    assert lab.count('^PUT|/commit/') == 0


def test_only_what_changed_is_sent(lab, folder):
    publish(folder, REPO)
    lab.requests.clear()
    (folder / 'README.md').write_text((folder / 'README.md').read_text() + '\nMore.\n')
    assert publish(folder, REPO).changed
    assert lab.files(REPO) == contents(folder) and lab.count('^PUT') == 0


def test_a_revision_is_a_branch_of_its_own(lab, folder, tmp_path):
    publish(folder, REPO)
    other = random_folder(tmp_path, 'preact_resnet20', layers=(1, 1, 1))
    for _ in range(2):
        published = publish(other, REPO, revision='v2')
    assert published.commit == lab.head(REPO, 'v2').sha and not published.changed
    assert_holds(pull(f'hf-hub:{REPO}@v2'), other / 'model.safetensors')
    assert_holds(pull(f'hf-hub:{REPO}'), folder / 'model.safetensors')


def test_a_pickle_is_never_sent(lab, folder):
    published_files = set(contents(folder))
    torch.save({}, folder / 'pytorch_model.bin')
    (folder / '.env').write_text('SECRET=1')
    assert set(publish(folder, REPO).files) == set(lab.files(REPO)) == published_files


def test_a_dry_run_sends_nothing(hub, folder):
    published = publish(folder, REPO, dry_run=True)
    assert (published.commit, published.changed) == (None, False) and set(published.files) == set(contents(folder))
    assert hub.count('^(POST|PUT|DELETE)') == 0 and hub.repos == {}


# who may

@pytest.mark.parametrize('exists', [True, False])
@pytest.mark.parametrize('token, advice', [
    (None, 'the token is missing or not valid'), ('hf_unknown', 'the token is missing or not valid'),
    (READ, 'the token may not write there'), (STRANGER, 'the token may not write there'),
])
def test_who_may_not_write_is_told_so_in_a_sentence(hub, folder, monkeypatch, token, advice, exists):
    if exists:
        hub.commit(REPO, {'config.json': b'{}'})
    if token:
        monkeypatch.setenv('HF_TOKEN', token)
    assert advice in refusal(folder, REPO)
    assert {repo_id: hub.files(repo_id) for repo_id in hub.repos} == ({REPO: {'config.json': b'{}'}} if exists else {})


def test_a_private_repository_needs_a_token(lab, folder, monkeypatch):
    publish(folder, REPO, private=True)
    assert lab.repos[REPO].private
    monkeypatch.delenv('HF_TOKEN')
    with pytest.raises(RepositoryNotFoundError):  # timm's own request for config.json comes first
        pull(f'hf-hub:{REPO}')
    monkeypatch.setenv('HF_TOKEN', READ)
    assert_holds(pull(f'hf-hub:{REPO}'), folder / 'model.safetensors')


def test_a_registered_tag_in_a_private_organization_needs_a_token(lab, tmp_path, monkeypatch):
    folder = random_folder(tmp_path)
    publish(folder, f'lab/{RANDOM}', private=True)
    monkeypatch.setenv('TIMM_PREACT_HUB_ORG', 'lab')
    monkeypatch.delenv('HF_TOKEN')
    assert 'your token' in pull_refusal(RANDOM)
    monkeypatch.setenv('HF_TOKEN', READ)
    assert_holds(pull(RANDOM), folder / 'model.safetensors')


def test_a_mirror_of_a_file_whose_sha256_is_known_holds_another_file(lab, tmp_path, monkeypatch):
    """The sha256 of akamaster's .th is not that of the model.safetensors made of it."""
    name = 'preact_resnet20_orig.aka_cifar10'
    folder = random_folder(tmp_path, name)
    publish(folder, f'lab/{name}')
    monkeypatch.setenv('TIMM_PREACT_HUB_ORG', 'lab')
    assert_holds(pull(name), folder / 'model.safetensors')


def test_what_is_to_be_private_is_not_pushed_to_a_public_repository(lab, folder):
    head = lab.commit(REPO, {})
    assert 'is public' in refusal(folder, REPO, private=True)
    assert lab.head(REPO) == head


# damage

@pytest.mark.parametrize('name', [f'hf-hub:lab/{RANDOM}', RANDOM])
def test_a_flipped_byte_is_refused_and_the_advice_helps(organization, name):
    """The client alone takes the damaged file: it looks at the size."""
    hub, folder = organization
    hub.flip(f'lab/{RANDOM}', 'model.safetensors')
    message = pull_refusal(name)
    assert 'is damaged' in message
    damaged = Path(hf_hub_download(f'lab/{RANDOM}', 'model.safetensors'))
    assert damaged.read_bytes()[:-1] == (folder / 'model.safetensors').read_bytes()[:-1]
    assert damaged.read_bytes() != (folder / 'model.safetensors').read_bytes()
    hub.flipped.clear()
    assert 'is damaged' in pull_refusal(name)
    Path(re.search(r'delete (\S+) and', message)[1]).unlink()
    assert_holds(pull(name), folder / 'model.safetensors')


def test_what_the_hub_serves_is_read_back(lab, folder):
    lab.meanwhile('GET /objects/', lambda: lab.flip(REPO, 'model.safetensors'))
    assert 'serves other bits of model.safetensors' in refusal(folder, REPO)


@pytest.mark.parametrize('file', ['model.safetensors', 'config.json'])
def test_a_damaged_folder_is_refused_before_anything_is_sent(lab, folder, file):
    content = bytearray((folder / file).read_bytes())
    content[content.index(b'8afdeb9b') if file == 'config.json' else -1] ^= 1
    (folder / file).write_bytes(content)
    assert 'is damaged' in refusal(folder, REPO, error=WeightsError)
    assert lab.requests == []


@pytest.mark.parametrize('card', [
    '---\nlicense: [apache\n---\n', 'no front matter\n', '---\n- a list\n---\n', '---\nlibrary_name: timm\n---\n',
    '---\nlicense: mit\n---\n',
])
def test_broken_front_matter_is_refused_before_anything_is_sent(lab, folder, card):
    (folder / 'README.md').write_text(card)
    assert 'front matter' in refusal(folder, REPO)
    assert lab.requests == []


def test_a_card_that_the_hub_does_not_accept_is_refused_before_anything_is_sent(lab, folder):
    lab.fail('/api/validate-yaml', status=400)
    assert 'does not accept the card' in refusal(folder, REPO)
    assert lab.repos == {}


@pytest.mark.parametrize('missing', ['model.safetensors', 'config.json', 'README.md'])
def test_a_folder_that_is_not_whole_is_refused_before_anything_is_sent(lab, folder, missing):
    (folder / missing).unlink()
    assert missing in refusal(folder, REPO, error=WeightsError)
    assert lab.requests == []


def test_a_list_of_files_that_leave_the_folder_leads_nowhere(lab, folder, tmp_path):
    """Files are asked for by name, never as the Hub lists them; its client refuses such a list."""
    lab.commit(REPO, {'../../../outside.txt': b'1'})
    publish(folder, REPO)
    lab.requests.clear()
    assert_holds(pull(f'hf-hub:{REPO}'), folder / 'model.safetensors')
    assert lab.count('/tree/|/api/') == 0
    with pytest.raises((ValueError, HfHubHTTPError)):
        snapshot_download(REPO, local_dir=tmp_path / 'a' / 'b' / 'c' / 'd')
    assert not [*tmp_path.rglob('outside.txt'), *Path(os.environ['HF_HOME']).rglob('outside.txt')]


# the network, and others

def test_a_commit_of_somebody_else_is_not_overwritten(lab, folder):
    publish(folder, REPO)
    (folder / 'README.md').write_text((folder / 'README.md').read_text() + '\nOurs.\n')
    lab.meanwhile('/preupload/', lambda: lab.commit(REPO, {'README.md': b'theirs'}))
    assert 'somebody else committed meanwhile' in refusal(folder, REPO)
    assert lab.files(REPO)['README.md'] == b'theirs'


def test_a_push_that_broke_off_shows_nothing_and_is_completed(lab, folder):
    lab.fail('/commit/')
    assert 'the Hub answered 503' in refusal(folder, REPO)
    assert lab.files(REPO) == {} and lab.objects
    lab.requests.clear()
    assert publish(folder, REPO).changed
    assert lab.files(REPO) == contents(folder) and lab.count('^PUT') == 0


def test_a_push_that_is_killed_shows_nothing_and_is_completed(lab, folder):
    """Killed by SIGKILL while the weights go up."""
    process = subprocess.Popen([sys.executable, '-m', 'timm_preact', 'publish', folder, '--repo-id', REPO])
    lab.meanwhile('PUT /objects/', process.kill)
    assert process.wait(60) == -9 and lab.files(REPO) == {}
    assert publish(folder, REPO).changed and lab.files(REPO) == contents(folder)


def test_a_push_whose_reply_was_lost_is_found_done(lab, folder):
    lab.lose_reply('/commit/')
    assert 'check the network and publish again' in refusal(folder, REPO)
    assert not publish(folder, REPO).changed and lab.files(REPO) == contents(folder)


def test_a_busy_hub_is_asked_again_by_a_push(lab, folder):
    lab.fail('PUT /objects/')
    assert publish(folder, REPO).changed and lab.files(REPO) == contents(folder)


@pytest.mark.skipif(huggingface_hub.__version__ < '1', reason='this client does not ask again')
def test_a_busy_hub_is_asked_again_by_a_pull(lab, folder):
    publish(folder, REPO)
    lab.fail(f'HEAD /{REPO}/resolve/')
    assert_holds(pull(f'hf-hub:{REPO}'), folder / 'model.safetensors')


@pytest.mark.parametrize('pattern', ['/api/validate-yaml', '/api/repos/create', 'GET /api/models/', '/commit/'])
def test_a_hub_that_is_too_busy_refuses_a_push_in_a_sentence(lab, folder, pattern):
    lab.fail(pattern)
    assert 'the Hub answered 503, try again later' in refusal(folder, REPO)
    assert publish(folder, REPO).changed


def test_a_hub_that_is_too_busy_to_send_weights_is_refused_in_a_sentence(organization):
    hub, folder = organization
    hub.fail('GET /objects/')
    assert 'cannot be fetched from the Hub' in pull_refusal(RANDOM)
    assert_holds(pull(RANDOM), folder / 'model.safetensors')


def test_20_mb_arrive_whole_over_lines_that_break(lab, tmp_path):
    folder = random_folder(tmp_path, 'preact_resnet20', channels=(72, 144, 288))
    weights = folder / 'model.safetensors'
    assert weights.stat().st_size > 20 << 20
    lab.cut('PUT /objects/[0-9a-f]+/2', after=1 << 20)
    publish(folder, 'lab/wide')
    assert lab.files('lab/wide') == contents(folder)
    lab.cut('GET /objects/', after=15 << 20)
    try:
        model = pull('hf-hub:lab/wide')
    except WeightsError as e:  # clients before 1.0 do not resume by themselves
        assert 'cannot be fetched' in one_sentence(e)
        model = pull('hf-hub:lab/wide')
    assert_holds(model, weights)
    assert [fault.times for fault in lab.faults] == [0, 0] and len(blobs('lab/wide')) == 2


def test_a_cached_model_is_loaded_while_the_hub_is_down(organization):
    hub, folder = organization
    for name in (RANDOM, f'hf-hub:lab/{RANDOM}'):
        pull(name)
        hub.stop()
        assert_holds(pull(name), folder / 'model.safetensors')
        hub.start()


def test_a_cached_model_is_not_sent_again(organization):
    hub, _ = organization
    pull(RANDOM)
    hub.requests.clear()
    pull(RANDOM)
    assert hub.count('GET') == 0
    by_commit = f'hf-hub:lab/{RANDOM}@{hub.head(f"lab/{RANDOM}").sha}'
    hub.requests.clear()
    pull(by_commit)
    assert hub.requests == []


def test_a_push_to_a_hub_that_is_down_is_refused_in_a_sentence(lab, folder):
    lab.stop()
    assert 'check the network' in refusal(folder, REPO)


@pytest.mark.slow  # the client tries for 23 seconds, and no setting of its makes it less
def test_a_pull_from_a_hub_that_is_down_is_refused_in_a_sentence(organization):
    hub, _ = organization
    hub.stop()
    assert 'check the name, your token and the network' in pull_refusal(RANDOM)


PULL = f"""
import sys, timm_preact, timm
from timm_preact.weights import digest_of
from safetensors.torch import save_file
print('ready', flush=True)
sys.stdin.readline()
save_file(timm.create_model('{RANDOM}', pretrained=True).state_dict(), sys.argv[1])
print(digest_of(sys.argv[1]))
"""


def test_four_processes_that_pull_at_once_share_one_copy(organization, tmp_path):
    hub, folder = organization
    processes = [
        subprocess.Popen([sys.executable, '-c', PULL, tmp_path / f'{i}.safetensors'], text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for i in range(4)]
    assert [process.stdout.readline() for process in processes] == ['ready\n'] * 4
    for process in processes:
        process.stdin.write('go\n')
        process.stdin.flush()
    digests = {process.communicate(timeout=60)[0] for process in processes}
    assert len(digests) == 1 and all(process.returncode == 0 for process in processes)
    assert_holds(pull(RANDOM), tmp_path / '0.safetensors')
    assert_holds(pull(RANDOM), folder / 'model.safetensors')
    served = hub.head(f'lab/{RANDOM}').files
    assert blobs(f'lab/{RANDOM}') == sorted(served[name].etag for name in ('config.json', 'model.safetensors'))


# the command line

def test_the_command_line_publishes_and_says_what_it_did(lab, folder):
    for done in ('would get', 'has at', 'has already'):
        options = ['--dry-run'] if done == 'would get' else []
        result = CliRunner().invoke(app, ['publish', str(folder), '--repo-id', REPO, *options], catch_exceptions=False)
        assert result.exit_code == 0 and result.stdout.startswith(f'{lab.url}/{REPO} {done} ')


def test_the_command_line_refuses_with_exit_code_2_and_a_sentence(hub, folder):
    for repo_id in (REPO, 'no/such/name', 'bad name'):
        result = CliRunner().invoke(app, ['publish', str(folder), '--repo-id', repo_id], catch_exceptions=False)
        assert result.exit_code == 2 and re.fullmatch(r'error: [^\n]+\.\n', result.output)
    assert json.loads((folder / 'config.json').read_text())['sha256'] and hub.repos == {}
