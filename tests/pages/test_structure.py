"""Who imports whom: torch, timm <- kernels <- memory <- unit <- init <- preact_resnet <- all built on it <- cli;
timm_preact <- train <- benchmarks <- pages."""
import ast
import functools
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A module imports modules of the lines above its own, and others of its own folder; a new module needs a place here.
LAYERS = [
    {'errors', 'version'},
    {'images', 'files', 'capture', 'compilation', 'kernels', 'kernels.*', 'provenance'},
    {'folders'},
    {'data'},
    {'figures', 'memory'},
    {'unit'},
    {'init'},
    {'weights', 'weights.*'},
    {'preact_resnet', 'train_args'},
    {'loading'},
    {'__init__', 'catalog', 'evaluation', 'inference', 'layers', 'picture', 'quantization'},
    {'benchmark', 'benchmark.*', 'card', 'demo', 'export', 'gradcam', 'propagation', 'propagation.*', 'scripts'},
    {'hub'},
    {'web', 'web.*'},
    {'cli', 'cli.*'},
    {'__main__'},
]


def name_of(path):
    """'weights' of timm_preact/weights/__init__.py, 'weights.x' of timm_preact/weights/x.py."""
    parts = path.relative_to(ROOT / 'timm_preact').with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' and len(parts) > 1 else parts)


# Of train/: those that show or call what benchmarks/ measures
ABOVE_BENCHMARKS = {'pages', 'benchmark', 'growth', 'quantization'}


MODULES = {name_of(path): path for path in sorted((ROOT / 'timm_preact').rglob('*.py'))}
TRAINING = sorted((ROOT / 'train').rglob('*.py'))
MEASURING = sorted((ROOT / 'benchmarks').rglob('*.py'))
FILES = {'.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
         for path in (*MODULES.values(), *TRAINING, *MEASURING)}


@functools.lru_cache
def nodes_of(path):
    """Of the syntax tree of a file, but for what is there for type checkers alone."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body
                 if not (isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING')]
    return tree.body, list(ast.walk(tree))


@functools.lru_cache
def imports(path):
    """(module, name) of every import in a file, inside functions too; relative ones by their full name."""
    found = []
    for node in nodes_of(path)[1]:
        if isinstance(node, ast.Import):
            found += [(alias.name, '') for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[:-node.level] if node.level else ()
            module = '.'.join([*package, *([node.module] if node.module else [])])
            found += [(module, alias.name) for alias in node.names]
    return found


def ours(path):
    """The modules of this package that a file imports."""
    found = set()
    for module, name in imports(path):
        if module.split('.')[0] == 'timm_preact':
            inside = module.partition('.')[2]
            submodule = f'{inside}.{name}'.strip('.')
            found.add(submodule if submodule in MODULES else inside or '__init__')
    return found


def layer_of(module):
    place = f'{module.split(".")[0]}.*' if '.' in module else module
    return next(i for i, names in enumerate(LAYERS) if place in names)


@functools.lru_cache
def attributes(path):
    """Dotted names such as 'timm.models.list_models' that a file uses."""
    return {ast.unparse(node) for node in nodes_of(path)[1] if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize('module', MODULES)
def test_a_module_imports_only_what_stands_below_it(module):
    folder = module.split('.')[0]
    for other in ours(MODULES[module]) - {module}:
        assert layer_of(other) < layer_of(module) or other.split('.')[0] == folder, f'{module} imports {other}'


def test_the_unit_stands_on_torch_and_timm_alone():
    on_triton = {'kernels.triton', 'kernels.blocks'}
    kernels = {'kernels', 'kernels.plain', 'kernels.onednn', 'kernels.cudnn', *on_triton}
    for module, below in (('memory', {'kernels'}), ('unit', {'memory'}), ('init', {'unit'})):
        roots = {name.split('.')[0] for name, _ in imports(MODULES[module])} - sys.stdlib_module_names
        assert roots <= {'torch', 'timm', 'timm_preact'}
        assert ours(MODULES[module]) == below
    for module in kernels:
        roots = {name.split('.')[0] for name, _ in imports(MODULES[module])} - sys.stdlib_module_names
        assert roots <= {'torch', 'timm_preact', *(['triton'] if module in on_triton else [])}
        assert ours(MODULES[module]) <= kernels


def test_one_place_chooses_among_the_kernels():
    """Nobody else names a machine's file."""
    for module, path in MODULES.items():
        if module.split('.')[0] != 'kernels':
            assert not ours(path) & {'kernels.onednn', 'kernels.cudnn', 'kernels.triton', 'kernels.plain'}


@pytest.mark.parametrize('module', ['errors', 'version', 'images', 'files'])
def test_a_helper_stands_alone(module):
    assert ours(MODULES[module]) <= {'errors'}


@pytest.mark.parametrize('module', MODULES)
def test_the_package_does_not_know_its_trainer_or_its_tests(module):
    assert not {name.split('.')[0] for name, _ in imports(MODULES[module])} & {'train', 'tests', 'conftest'}


@pytest.mark.parametrize('path', TRAINING, ids=lambda path: path.stem)
def test_the_trainer_stands_below_what_measures_it(path):
    if path.stem not in ABOVE_BENCHMARKS:
        assert not {name.split('.')[0] for name, _ in imports(path)} & {'benchmarks', 'tests'}


def test_no_import_comes_back_to_where_it_began():
    """Over all rooms, imports inside functions included."""
    graph = {}
    for name, path in FILES.items():
        found = {f'{module}.{inside}' if f'{module}.{inside}' in FILES else module for module, inside in imports(path)}
        graph[name] = found & FILES.keys() - {name}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize('path', TRAINING, ids=lambda path: path.stem)
def test_the_trainer_reaches_models_by_name_alone(path):
    networks = {'unit', 'init', 'preact_resnet'}
    assert not ours(path) & networks
    assert not attributes(path) & {f'timm_preact.{module}' for module in networks}


def test_the_trainer_creates_models_through_timm():
    assert any('timm.create_model' in attributes(path) for path in TRAINING)


def test_one_private_name_of_timm_is_used():
    private = set()
    for path in [*MODULES.values(), *TRAINING]:
        for module, name in imports(path):
            if module.split('.')[0] == 'timm' and '._' in f'{module}.{name}':
                private.add(name or module)
        for attribute in attributes(path) - {'timm.__version__'}:
            if attribute.startswith('timm.') and '._' in attribute:
                private.add(attribute)
    assert private == {'feature_take_indices'}


def public(path):
    """The names in a file's __all__, None where it has none."""
    for node in nodes_of(path)[0]:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
            return set(ast.literal_eval(node.value))
    return None


def defined(path):
    """The names that a file's top level defines or imports."""
    names = set()
    for node in nodes_of(path)[0]:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names


@functools.lru_cache
def names_taken():
    """Module -> the names that files of other rooms and its own import from it."""
    taken = {}
    for path in FILES.values():
        for module, name in imports(path):
            if module in FILES and name and f'{module}.{name}' not in FILES:
                taken.setdefault(module, set()).add(name)
    return taken


@pytest.mark.parametrize('module', sorted(FILES.keys() - {
    'timm_preact', 'timm_preact.__main__', 'timm_preact.version', 'train', 'benchmarks'}))
def test_all_says_what_others_import(module):
    """Of an `__init__` without a name of its own it would say nothing; a script that nobody imports needs none."""
    names, taken = public(FILES[module]), names_taken().get(module, set())
    assert names is not None or (not taken and not module.startswith('timm_preact')), f'{module} has no __all__'
    assert (names or set()) <= defined(FILES[module])
    assert taken <= (names or set())


def test_importing_the_package_brings_in_nothing_heavy():
    code = 'import sys, timm_preact; print({"datasets", "typer", "rich", "matplotlib"} & set(sys.modules))'
    process = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == 'set()'
