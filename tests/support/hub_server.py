"""A small Hugging Face Hub in memory, which the real huggingface_hub client talks to through HF_ENDPOINT.

    hub = Hub()
    hub.start()                      # HF_ENDPOINT is hub.url
    hub.commit('lab/net', {'config.json': b'{}'})
    hub.fail('GET /objects/', times=2)
    hub.stop()

It serves repositories of models, and of Spaces as 'spaces/lab/page': git-like commits on branches, LFS by the basic and
the multipart protocol, and objects from a second origin (the API answers on localhost, objects on 127.0.0.1). Binary
files, those with a NUL byte in their sample, and files over 10 MiB go to LFS.
"""
import base64
import hashlib
import json
import re
import socket
import threading
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

__all__ = ['READ', 'STRANGER', 'WRITE', 'Commit', 'Hub']

WRITE, READ, STRANGER = 'hf_write', 'hf_read', 'hf_stranger'  # tokens
SDKS = ('gradio', 'docker', 'static')  # of Spaces


class Account(NamedTuple):
    user: str
    namespaces: Tuple[str, ...]
    can_write: bool


ACCOUNTS = {
    WRITE: Account('lab', ('lab', 'lab-org'), True),
    READ: Account('lab', ('lab', 'lab-org'), False),
    STRANGER: Account('stranger', ('stranger',), True),
}


class Blob:
    """A file's bytes, and how git knows them."""

    def __init__(self, content: bytes):
        self.content = content
        self.lfs = b'\0' in content[:512] or len(content) > 10 << 20

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def stored(self) -> bytes:
        """What git holds: the bytes, or the pointer to them."""
        pointer = f'version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n'
        return pointer.encode() if self.lfs else self.content

    @cached_property
    def git_oid(self) -> str:
        return hashlib.sha1(b'blob %d\0' % len(self.stored) + self.stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid

    def lfs_facts(self, oid: str) -> Dict:
        """The lfs entry of a listing, where the sha256 goes by the name `oid`."""
        facts = {oid: self.sha256, 'size': len(self.content), 'pointerSize': len(self.stored)}
        return dict(lfs=facts) if self.lfs else {}


class Commit(NamedTuple):
    sha: str
    parent: Optional[str]
    message: str
    files: Dict[str, Blob]


class Repo:
    def __init__(self, private: bool):
        self.private = private
        self.commits: Dict[str, Commit] = {}
        self.branches: Dict[str, str] = {}
        self.commit('main', 'initial commit', {'.gitattributes': Blob(b'*.safetensors filter=lfs diff=lfs -text\n')})

    def commit(self, branch: str, message: str, files: Dict[str, Blob]) -> Commit:
        parent = self.branches.get(branch)
        tree = [parent, message, len(self.commits), sorted((path, blob.git_oid) for path, blob in files.items())]
        commit = Commit(hashlib.sha1(repr(tree).encode()).hexdigest(), parent, message, files)
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit

    def at(self, revision: str) -> Optional[Commit]:
        return self.commits.get(self.branches.get(revision, revision))


class Refusal(Exception):
    """A reply that is an error."""

    def __init__(self, status: int, message: str, code: Optional[str] = None, **body):
        self.status = status
        self.body = dict(body, error=message)
        self.headers = {'X-Error-Message': message, **({'X-Error-Code': code} if code else {})}


class Fault:
    """What happens instead of, or before, the next `times` answers to requests that match `pattern`."""

    def __init__(self, pattern: str, times: int, status: int = 0, after: Optional[int] = None, lost: bool = False,
                 action: Optional[Callable] = None):
        self.pattern, self.times, self.status, self.after, self.lost, self.action = (
            pattern, times, status, after, lost, action)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: Tuple[str, int], hub: 'Hub'):
        self.hub = hub
        self.open_sockets = set()
        super().__init__(address, Handler)

    def get_request(self):
        connection, address = super().get_request()
        self.open_sockets.add(connection)
        return connection, address

    def shutdown_request(self, request):
        self.open_sockets.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        pass  # a client that hung up; what goes wrong in an answer is a 500 and in hub.errors


class Hub:
    """The state that tests set up and look at, and the server over it.

    Attributes:
        url: What HF_ENDPOINT must be. The port stays the same over stop and start.
        repos: 'namespace/name', 'spaces/namespace/name' -> Repo.
        objects: sha256 -> bytes of every LFS object that arrived, committed or not.
        requests: Every request since the last reset as 'METHOD path', or 'METHOD path range'; the path without query.
        errors: Exceptions of the server's own; a test that finds one has found a bug of this file.
        part_size: LFS objects over this size are uploaded in parts.
    """

    def __init__(self):
        self.lock = threading.RLock()
        self.port = 0
        self.server: Optional[Server] = None
        self.reset()

    def reset(self) -> None:
        """Forget repositories, faults and requests."""
        self.repos: Dict[str, Repo] = {}
        self.objects: Dict[str, bytes] = {}
        self.parts: Dict[Tuple[str, int], bytes] = {}
        self.flipped: Dict[str, int] = {}
        self.faults: List[Fault] = []
        self.requests: List[str] = []
        self.errors: List[Exception] = []
        self.part_size = 8 << 20

    def start(self) -> None:
        """Serve, on the port of the last time; nothing where it already does."""
        if self.server is None:
            self.server = Server(('127.0.0.1', self.port), self)
            self.port = self.server.server_port
            threading.Thread(target=self.server.serve_forever, args=(.05,), name='hub', daemon=True).start()

    def stop(self) -> None:
        """Close the port and every connection: a keep-alive socket would go on answering."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            for connection in list(self.server.open_sockets):
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # the client closed it first
                    pass
            self.server = None

    @property
    def url(self) -> str:
        return f'http://localhost:{self.port}'

    @property
    def objects_url(self) -> str:
        return f'http://127.0.0.1:{self.port}'

    def commit(self, repo_id: str, files: Dict[str, bytes], branch: str = 'main', private: bool = False) -> Commit:
        """Add files on top of a branch, past every check of names and rights; a new repository is created."""
        with self.lock:
            repo = self.repos.setdefault(repo_id, Repo(private))
            blobs = {path: Blob(content) for path, content in files.items()}
            self.objects.update({blob.sha256: blob.content for blob in blobs.values() if blob.lfs})
            parent = repo.at(branch) or repo.at('main')
            return repo.commit(branch, 'by a test', {**parent.files, **blobs})

    def head(self, repo_id: str, branch: str = 'main') -> Commit:
        return self.repos[repo_id].at(branch)

    def files(self, repo_id: str, revision: str = 'main') -> Dict[str, bytes]:
        """The files that a reader sees, without .gitattributes."""
        return {path: blob.content for path, blob in self.head(repo_id, revision).files.items()
                if path != '.gitattributes'}

    def count(self, pattern: str = '') -> int:
        """How many requests since the last reset match 'METHOD path'."""
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    def flip(self, repo_id: str, path: str, at: int = -1) -> None:
        """Serve this file with one bit of byte `at` turned over; its size and hashes stay as they were."""
        self.flipped[self.head(repo_id).files[path].sha256] = at

    def fail(self, pattern: str, times: int = 1, status: int = 503) -> None:
        """Answer the next requests that match with `status`."""
        self.faults.append(Fault(pattern, times, status=status))

    def cut(self, pattern: str, after: int, times: int = 1) -> None:
        """Close the connection once `after` bytes of the body went out, of a PUT or POST: came in."""
        self.faults.append(Fault(pattern, times, after=after))

    def lose_reply(self, pattern: str, times: int = 1) -> None:
        """Do what is asked and close the connection without a reply."""
        self.faults.append(Fault(pattern, times, lost=True))

    def meanwhile(self, pattern: str, action: Callable[[], object]) -> None:
        """Call `action` once, right before a request that matches is answered."""
        self.faults.append(Fault(pattern, 1, action=action))

    def next_fault(self, request: str) -> Optional[Fault]:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None


ROUTES: List[Tuple[re.Pattern, bool, Callable]] = []
GROUPS = {
    '{repo}': '(?P<repo_id>(?:spaces/)?[^/]+/[^/]+)',
    '{typed}': '(?:models/|(?=spaces/))(?P<repo_id>(?:spaces/)?[^/]+/[^/]+)',  # as the API has it
    '{rev}': '(?P<revision>[^/]+)', '{oid}': '(?P<oid>[0-9a-f]{64})',
}


def route(pattern: str, of_objects: bool = False) -> Callable[[Callable], Callable]:
    """Let a method of Handler answer requests, at the origin of the API or at that of the objects.

    Args:
        pattern: Matches 'METHOD path' as a whole; the method is called with its named groups, unquoted.
        of_objects: Answer on 127.0.0.1, not on localhost.
    """
    for name, group in GROUPS.items():
        pattern = pattern.replace(name, group)

    def register(answer: Callable) -> Callable:
        ROUTES.append((re.compile(pattern), of_objects, answer))
        return answer

    return register


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True  # headers and body go out apart, and would wait for each other

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *args):
        pass

    def dispatch(self) -> None:
        parts = urlsplit(self.path)
        request = f'{self.command} {parts.path}'
        self.query = parse_qs(parts.query)
        self.hub.requests.append(' '.join(filter(None, [request, self.headers['Range']])))
        fault = self.hub.next_fault(request)
        self.cut_after = fault.after if fault else None
        if self.cut_after is not None and self.command in ('PUT', 'POST'):
            self.rfile.read(self.cut_after)
            return self.hang_up()
        self.body = self.read_body()
        if fault and fault.action:
            fault.action()
        try:
            if fault and fault.status:
                raise Refusal(fault.status, 'a fault that a test asked for')
            answer, arguments = self.find_route(request)
            with self.hub.lock:
                reply = answer(self, **arguments)
        except Refusal as e:
            reply = e.status, e.headers, e.body
        except Exception as e:
            self.hub.errors.append(e)
            reply = 500, {}, dict(error=repr(e))
        if fault and fault.lost:
            return self.hang_up()
        self.send(*reply)

    do_GET = do_HEAD = do_POST = do_PUT = dispatch

    def find_route(self, request: str) -> Tuple[Callable, Dict[str, str]]:
        at_objects = self.headers['Host'].startswith('127.')
        if at_objects and self.headers['Authorization']:
            raise Refusal(400, 'a token was sent to the origin of the objects')
        for pattern, of_objects, answer in ROUTES:
            match = pattern.fullmatch(request)
            if match and of_objects == at_objects:
                return answer, {name: unquote(value) for name, value in match.groupdict().items()}
        raise Refusal(404, 'no such page', 'RepoNotFound')

    def read_body(self) -> bytes:
        if self.headers['Transfer-Encoding'] != 'chunked':
            length = int(self.headers['Content-Length'] or 0)
            body = self.rfile.read(length)
            if len(body) < length:
                raise ConnectionError('the client was gone before its request was whole')
            return body
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b''.join(chunks)

    def send(self, status: int, headers: Dict[str, str], body) -> None:
        if not isinstance(body, bytes):
            headers = {'Content-Type': 'application/json', **headers}
            body = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {'Content-Length': str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body[:self.cut_after])
            if self.cut_after is not None:
                self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # the client was first
            pass

    # who asks, and for what

    def account(self) -> Optional[Account]:
        token = (self.headers['Authorization'] or '').removeprefix('Bearer ')
        if token and token not in ACCOUNTS:
            raise Refusal(401, 'Invalid credentials in Authorization header')
        return ACCOUNTS.get(token)

    def repo(self, repo_id: str) -> Repo:
        """The repository, where whoever asks may read it: to others a private one is as good as missing."""
        account = self.account()
        repo = self.hub.repos.get(repo_id)
        if repo is None or repo.private and not (account and repo_id.split('/')[-2] in account.namespaces):
            raise Refusal(404 if account else 401, 'Repository not found', 'RepoNotFound')
        return repo

    def commit_at(self, repo_id: str, revision: str) -> Commit:
        commit = self.repo(repo_id).at(revision)
        if commit is None:
            raise Refusal(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return commit

    def check_write(self, namespace: str) -> None:
        account = self.account()
        if account is None:
            raise Refusal(401, 'Invalid username or password.')
        if not account.can_write or namespace not in account.namespaces:
            raise Refusal(403, f"You don't have the rights to write to the namespace {namespace}")

    def writable(self, repo_id: str) -> Repo:
        repo = self.repo(repo_id)
        self.check_write(repo_id.split('/')[-2])
        return repo

    # the API

    @route('GET /api/whoami-v2')
    def whoami(self):
        account = self.account()
        if account is None:
            raise Refusal(401, 'Invalid username or password.')
        orgs = [dict(type='org', name=name) for name in account.namespaces[1:]]
        role = 'write' if account.can_write else 'read'
        return 200, {}, dict(type='user', name=account.user, orgs=orgs, auth=dict(
            type='access_token', accessToken=dict(displayName='test', role=role)))

    @route('POST /api/repos/create')
    def create_repo(self):
        order = json.loads(self.body)
        account = self.account()
        namespace = order.get('organization') or (account.user if account else '')
        self.check_write(namespace)
        repo_id = f"{namespace}/{order['name']}"
        if order.get('type') == 'space':
            if order.get('sdk') not in SDKS:
                raise Refusal(400, f'"sdk" must be one of {SDKS}')
            repo_id = f'spaces/{repo_id}'
        url = f'{self.hub.url}/{repo_id}'
        if repo_id in self.hub.repos:
            raise Refusal(409, 'You already created this model repo', url=url)
        private = order.get('visibility') == 'private' or bool(order.get('private'))
        self.hub.repos[repo_id] = Repo(private)
        return 200, {}, dict(url=url)

    @route('POST /api/validate-yaml')
    def validate_yaml(self):
        order = json.loads(self.body)
        matter = re.match(r'---\r?\n(.*?)\r?\n---', order['content'], re.DOTALL)
        if matter is None:
            return 200, {}, dict(errors=[], warnings=[dict(message='empty or missing yaml metadata in repo card')])
        try:
            facts = yaml.safe_load(matter[1])
            problem = None if isinstance(facts, dict) else 'metadata must be a mapping'
            if not problem and order['repoType'] == 'space' and facts.get('sdk') not in SDKS:
                problem = f'"sdk" must be one of {SDKS}'
        except yaml.YAMLError as e:
            problem = str(e)
        if problem:
            raise Refusal(400, 'Invalid metadata in README.md', errors=[dict(message=problem)], warnings=[])
        return 200, {}, dict(errors=[], warnings=[])

    @route('GET /api/{typed}')
    def info_of_main(self, repo_id):
        return self.info(repo_id, 'main')

    @route('GET /api/{typed}/revision/{rev}')
    def info(self, repo_id, revision):
        commit = self.commit_at(repo_id, revision)
        siblings = [dict(rfilename=path, **(dict(
            size=len(blob.content), blobId=blob.git_oid, **blob.lfs_facts('sha256')) if 'blobs' in self.query else {}))
            for path, blob in commit.files.items()]
        name = repo_id.removeprefix('spaces/')
        return 200, {}, dict(id=name, modelId=name, author=repo_id.split('/')[-2], sha=commit.sha, tags=[],
                             private=self.hub.repos[repo_id].private, downloads=0, likes=0, siblings=siblings)

    @route('GET /api/{typed}/tree/{rev}')
    def tree(self, repo_id, revision):
        """Always recursive, and without the folders themselves."""
        files = self.commit_at(repo_id, revision).files
        return 200, {}, [dict(type='file', path=path, size=len(blob.content), oid=blob.git_oid, **blob.lfs_facts('oid'))
                         for path, blob in files.items()]

    @route('GET /api/{typed}/refs')
    def refs(self, repo_id):
        branches = [dict(name=name, ref=f'refs/heads/{name}', targetCommit=sha)
                    for name, sha in self.repo(repo_id).branches.items()]
        return 200, {}, dict(branches=branches, tags=[], converts=[])

    @route('POST /api/{typed}/branch/{rev}')
    def create_branch(self, repo_id, revision):
        repo = self.writable(repo_id)
        if revision in repo.branches:
            raise Refusal(409, f'Reference already exists: refs/heads/{revision}')
        start = json.loads(self.body).get('startingPoint', 'main')
        repo.branches[revision] = self.commit_at(repo_id, start).sha
        return 200, {}, {}

    @route('POST /api/{typed}/preupload/{rev}')
    def preupload(self, repo_id, revision):
        self.writable(repo_id)
        present = self.commit_at(repo_id, revision).files
        files = []
        for file in json.loads(self.body)['files']:
            lfs = b'\0' in base64.b64decode(file['sample']) or file['size'] > 10 << 20
            oid = dict(oid=present[file['path']].etag) if file['path'] in present else {}
            files.append(dict(path=file['path'], uploadMode='lfs' if lfs else 'regular', shouldIgnore=False, **oid))
        return 200, {}, dict(files=files)

    @route('POST /api/{typed}/commit/{rev}')
    def add_commit(self, repo_id, revision):
        repo = self.writable(repo_id)
        if revision not in repo.branches:
            raise Refusal(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        head = repo.at(revision)
        files, message = dict(head.files), ''
        for line in self.body.splitlines():
            key, value = (item := json.loads(line))['key'], item['value']
            if key == 'header':
                message = value['summary']
                if value.get('parentCommit', head.sha) != head.sha:
                    raise Refusal(412, 'A commit has happened since. Please refresh and try again.')
                continue
            path = value['path']
            if path.startswith('/') or {'', '.', '..'} & set(path.rstrip('/').split('/')):
                raise Refusal(400, f'Invalid path: {path}')
            if key == 'file':
                files[path] = Blob(base64.b64decode(value['content']))
            elif key == 'lfsFile':
                if value['oid'] not in self.hub.objects:
                    raise Refusal(400, f'LFS pointer pointed to a file that does not exist: {path}')
                files[path] = Blob(self.hub.objects[value['oid']])
            else:
                folder = path.rstrip('/') + '/'
                gone = [p for p in files if (p == path if key == 'deletedFile' else p.startswith(folder))]
                if not gone:
                    raise Refusal(404, f"A file with this name doesn't exist: {path}", 'EntryNotFound')
                for p in gone:
                    del files[p]
        commit = repo.commit(revision, message, files)
        url = f'{self.hub.url}/{repo_id}/commit/{commit.sha}'
        return 200, {}, dict(success=True, commitOid=commit.sha, commitUrl=url)

    # files

    @route('(GET|HEAD) /{repo}/resolve/{rev}/(?P<path>.+)')
    def resolve(self, repo_id, revision, path):
        commit = self.commit_at(repo_id, revision)
        headers = {'X-Repo-Commit': commit.sha}
        if path not in commit.files:
            refusal = Refusal(404, 'Entry not found', 'EntryNotFound')
            refusal.headers.update(headers)
            raise refusal
        blob = commit.files[path]
        if blob.lfs:
            return 302, {**headers, 'X-Linked-Etag': f'"{blob.sha256}"', 'X-Linked-Size': str(len(blob.content)),
                         'Location': f'{self.hub.objects_url}/objects/{blob.sha256}'}, b''
        return self.content(blob.content, {**headers, 'ETag': f'"{blob.git_oid}"'})

    @route('(GET|HEAD) /objects/{oid}', of_objects=True)
    def get_object(self, oid):
        if oid not in self.hub.objects:
            raise Refusal(404, 'no such object')
        return self.content(self.hub.objects[oid], {'ETag': f'"{oid}"'})

    def content(self, content: bytes, headers: Dict[str, str]):
        at = self.hub.flipped.get(hashlib.sha256(content).hexdigest()) if self.hub.flipped else None
        if at is not None:
            damaged = bytearray(content)
            damaged[at] ^= 1
            content = bytes(damaged)
        span = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers['Range'] or '')
        if span is None:
            return 200, {**headers, 'Accept-Ranges': 'bytes'}, content
        start, stop = int(span[1]), min(int(span[2] or len(content)) + 1, len(content))
        if start >= stop:
            raise Refusal(416, 'range not satisfiable')
        return 206, {**headers, 'Content-Range': f'bytes {start}-{stop - 1}/{len(content)}'}, content[start:stop]

    # large file storage

    @route('POST /{repo}[.]git/info/lfs/objects/batch')
    def lfs_batch(self, repo_id):
        self.writable(repo_id)
        objects = []
        for wanted in json.loads(self.body)['objects']:
            oid, size = wanted['oid'], wanted['size']
            if oid in self.hub.objects:
                objects.append(wanted)
                continue
            put = f'{self.hub.objects_url}/objects/{oid}'
            upload = dict(href=put)
            if size > self.hub.part_size:
                count = -(-size // self.hub.part_size)
                upload = dict(href=f'{self.hub.url}/lfs-complete/{oid}', header={
                    'chunk_size': str(self.hub.part_size), **{str(i + 1): f'{put}/{i + 1}' for i in range(count)}})
            verify = dict(href=f'{self.hub.url}/{repo_id}.git/info/lfs/verify')
            objects.append(dict(wanted, actions=dict(upload=upload, verify=verify)))
        return 200, {}, dict(transfer='basic', objects=objects)

    @route('PUT /objects/{oid}', of_objects=True)
    def put_object(self, oid):
        return self.store(oid, self.body)

    @route('PUT /objects/{oid}/(?P<part>[0-9]+)', of_objects=True)
    def put_part(self, oid, part):
        self.hub.parts[oid, int(part)] = self.body
        return 200, {'ETag': f'"{hashlib.md5(self.body).hexdigest()}"'}, b''

    @route('POST /lfs-complete/{oid}')
    def complete(self, oid):
        parts = json.loads(self.body)['parts']
        return self.store(oid, b''.join(self.hub.parts.pop((oid, part['partNumber'])) for part in parts))

    def store(self, oid: str, content: bytes):
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, 'the sha256 of what arrived is another')
        self.hub.objects[oid] = content
        return 200, {}, {}

    @route('POST /{repo}[.]git/info/lfs/verify')
    def verify(self, repo_id):
        self.writable(repo_id)
        wanted = json.loads(self.body)
        if len(self.hub.objects.get(wanted['oid'], b'')) != wanted['size']:
            raise Refusal(404, 'no such object of this size')
        return 200, {}, {}
