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
    rule = ''.join(f'{RULES[side]}|' for side in sides)
    return '\n'.join([f'| {" | ".join(headings)} |', f'|{rule}', *(f'| {" | ".join(cells)} |' for cells in rows)])
