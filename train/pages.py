"""Pages that are written by hand but for what stands between marks, which comes from result files."""
import re
from typing import Callable, Dict

__all__ = ['filled']


def filled(text: str, contents: Dict[str, Callable[[], str]]) -> str:
    """`text` with what stands between <!-- NAME --> and <!-- /NAME --> made anew, for each NAME of `contents` in it."""
    for name, content in contents.items():
        text = re.sub(
            rf'(<!-- {name} -->\n).*?(<!-- /{name} -->)',
            lambda match, content=content: f'{match[1]}{content().strip()}\n{match[2]}', text, flags=re.DOTALL)
    return text
