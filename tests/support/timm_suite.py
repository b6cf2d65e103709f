"""Run timm's own model tests on this package's networks: the contract that every timm model passes.

    python tests/support/timm_suite.py                  # every registered name; about 20 minutes on 2 cores
    python tests/support/timm_suite.py --core           # names that cover every unit, merge and placement; for CI
    python tests/support/timm_suite.py preact_resnet50  # some names

timm's wheel has no tests, its source distribution has: pip fetches that of the installed version, and nothing of it is
kept. Every test that timm collects for a name is run. Two download weights: they run for names whose weights ship with
this package and are left out for others, as in timm's own CI. No time limit is enforced (FX tracing of 333 units takes
minutes): the limits are marks of pytest-timeout, which is not installed with this package's test extra.
"""
import argparse
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest
import timm

import timm_preact  # noqa: F401  (registers the names before timm's tests list them)

CORE = (
    'preact_resnet18',  # basic units, ImageNet stem
    'preact_resnet50',  # bottleneck units, ImageNet stem
    'preact_resnet20',  # basic units, CIFAR stem, shipped weights
    'preact_resnet164',  # bottleneck units, CIFAR stem
    'preact_resnet18_timm',  # basic units, no norm in the stem
    'preact_resnet50_keras',  # stride in the last unit of a stage, biases, no norm in the stem
    'preact_resnet18_kuang',  # four stages, CIFAR stem, no norm before the head
    'preact_resnet18_orig_kuang',
    'preact_resnet50_wei',  # the same with a norm in the stem, biases, projections of the raw tensor
    'preact_resnet110_1layer',
    'preact_resnet110_bn_after_add',
    'preact_resnet110_relu_before_add',
    'preact_resnet110_relu_only',
    'preact_resnet110_orig',
    'preact_resnet110_orig_const_scale',
    'preact_resnet110_orig_excl_gate',
    'preact_resnet110_orig_shortcut_gate',
    'preact_resnet110_orig_dropout_shortcut',
    'preact_resnet110_orig_conv_shortcut',
)
DOWNLOADS = ('test_model_load_pretrained', 'test_model_features_pretrained')


class Selection:
    """A pytest plugin that keeps the tests of some names and counts how they end."""

    def __init__(self, names):
        self.names = set(names)
        self.outcomes = Counter()

    def keeps(self, item: pytest.Item) -> bool:
        name = getattr(item, 'callspec', None) and item.callspec.params.get('model_name', '')
        if not name or name.split('.')[0] not in self.names:
            return False
        return item.originalname not in DOWNLOADS or bool(timm.get_pretrained_cfg(name).file)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items) -> None:
        items[:] = [item for item in items if self.keeps(item)]

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == 'call' or report.outcome != 'passed':
            self.outcomes[report.outcome] += 1


def fetch_tests(folder: Path) -> Path:
    """timm's tests/test_models.py of the installed version, with the pyproject.toml that declares its marks."""
    wanted = f'timm-{version("timm")}'
    subprocess.run(
        [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary', 'timm', '--dest', str(folder),
         f'timm=={version("timm")}'], check=True)
    with tarfile.open(next(folder.glob('timm-*.tar.gz'))) as archive:
        for member in (f'{wanted}/tests/test_models.py', f'{wanted}/pyproject.toml'):
            target = folder / member
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.extractfile(member).read())
    return folder / wanted / 'tests' / 'test_models.py'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', help='registered names; all if none')
    parser.add_argument('--core', action='store_true', help='the names that CI tests')
    args = parser.parse_args()
    names = list(CORE) if args.core else args.names or timm.list_models('preact_*')
    selection = Selection(names)
    with tempfile.TemporaryDirectory() as folder:
        tests = fetch_tests(Path(folder))
        code = pytest.main(
            ['-p', 'timm_preact', '-p', 'no:cacheprovider', '-q', '--durations=5', f'--rootdir={tests.parents[1]}',
             '-c', str(tests.parents[1] / 'pyproject.toml'), '-W', 'ignore::pytest.PytestUnknownMarkWarning',
             str(tests)],
            plugins=[selection])
    counts = ', '.join(f'{count} {outcome}' for outcome, count in sorted(selection.outcomes.items()))
    print(f"timm {version('timm')}'s tests/test_models.py on {len(names)} names: {counts}")
    return int(code) or (1 if set(selection.outcomes) != {'passed'} else 0)


if __name__ == '__main__':
    sys.exit(main())
