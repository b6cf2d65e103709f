"""Tables of the pages."""
from typing import Iterable, Sequence

__all__ = ['format_table']

RULES = {'l': '---', 'r': '--:'}


def format_table(sides: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table in Markdown.

    Args:
        sides: For each column 'l' or 'r', the side on which its cells stand.
        headings: Of the columns.
        rows: Cells, as many a row.
    """
    def format_row(cells: Sequence[str]) -> str:
        return f'| {" | ".join(cells)} |'

    rule = ''.join(f'{RULES[side]}|' for side in sides)
    return '\n'.join([format_row(headings), f'|{rule}', *map(format_row, rows)])
