"""`python -m train.pages` fills every page from the results, and says which one is stale."""
import re

import pytest
import typer
from typer.testing import CliRunner

from train import pages, places


@pytest.fixture
def app():
    app = typer.Typer()
    app.command()(pages.main)
    return app


def read_marks(text):
    return re.findall(r'<!-- (\w+) -->\n', text)


def test_no_page_is_stale():
    assert [path.relative_to(places.ROOT) for path in pages.find_stale()] == []


def test_a_page_with_another_number_is_named_and_put_right(tmp_path, monkeypatch, app):
    page, text = tmp_path / 'README.md', places.README.read_text()
    error = next(line for line in text.splitlines() if line.startswith('| `preact_resnet20.cifar10` |'))
    page.write_text(text.replace(error, error.replace('8.51', '7.51')))
    monkeypatch.setattr(pages, 'README', page)
    monkeypatch.setattr(pages, 'ROOT', tmp_path)
    monkeypatch.setattr(pages, 'DOCS', tmp_path / 'docs')
    (tmp_path / 'recipes').mkdir()
    (tmp_path / 'recipes' / 'README.md').write_text('Nothing to fill.')
    monkeypatch.setattr(pages, 'RECIPES', tmp_path / 'recipes')
    check = CliRunner().invoke(app, ['--check'])
    assert check.exit_code == 1 and check.output == 'README.md is stale: python -m train.pages writes it.\n'
    assert CliRunner().invoke(app, []).output == 'wrote README.md\n'
    assert page.read_text() == text
    check = CliRunner().invoke(app, ['--check'])
    assert check.exit_code == 0 and check.output == 'No page is stale.\n'


def test_every_block_stands_on_a_page_and_every_mark_has_a_block():
    texts = [path.read_text() for path in (places.README, *places.DOCS.glob('*.md'), places.RECIPES / 'README.md')]
    marks = {name for text in texts for name in read_marks(text) if f'<!-- /{name} -->' in text}
    assert marks == set(pages.BLOCKS)
    assert not [text for text in texts if '>?<' in text or re.search(r'<!-- (\w+) -->\n+<!-- /\1 -->', text)]


def test_a_mark_that_has_no_block_is_an_error():
    with pytest.raises(KeyError, match='nonsense'):
        pages.fill('<!-- nonsense -->\n<!-- /nonsense -->')


@pytest.mark.parametrize('block, row', [
    ('names', '| `preact_resnet110` | 110 | 1.73 M | 253 M | 6.37 (cifar10) | - | - |'),
    ('names', '| `preact_resnet20` | 20 | 0.27 M | 41 M | - | - | 8.51 (cifar10), 35.28 (cifar100) |'),
    ('sources', '| `preact_resnet200_fb.in1k` | resnet-200.t7 | [facebookarchive/fb.resnet.torch](https://github.com/'
                'facebookarchive/fb.resnet.torch) | bsd-3-clause | 21.66 | size and structure |'),
    ('sources', '| `preact_resnet20.cifar10` | in the package | ours | apache-2.0 | 8.51 | sha256 |'),
    ('whole_runs', '| `tuned` | 46 | float32 | 332 | 118 | 0.205 | 9.60 | no |'),
    ('results_short', '| `preact_resnet110.cifar10` | 6.37 | - | 6.84 (1 of 5 runs) |'),
    ('results_short', '| `preact_resnet200.pcv_in1k` | 20.7 | 19.07 | - |'),
    ('results_short', '| `preact_resnet200_fb.in1k` | 20.1 | 21.66 | - |'),
])
def test_a_row_says_what_is_known(block, row):
    assert row in pages.BLOCKS[block]().split('\n')


def test_the_readmes_tables_have_six_rows():
    for block in ('results_short', 'speed_short'):
        assert pages.BLOCKS[block]().count('\n') == 7


def test_what_we_are_slower_in_is_shown_too():
    speeds = [float(line.split('|')[4]) for line in pages.BLOCKS['speed_short']().split('\n')[2:]]
    assert min(speeds) < 1 < max(speeds)
