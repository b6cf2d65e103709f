"""Files that are there whole or not at all."""
import json
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ['write_atomically', 'write_json']


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name beside `path`, flush to disk, rename; an error leaves `path` as it was.

    Raises:
        OSError: It cannot be written, with `path` as its filename: the disk is full, the folder is read-only ...
    """
    temporary = path.with_name(f'.{path.name}.{platform.node()}.{os.getpid()}')
    try:
        with open(temporary, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as e:
        e.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a result, one value a line, as `write_atomically` writes."""
    write_atomically(path, json.dumps(content, indent=1).encode() + b'\n')
