"""What a kernel takes of a card that is not there."""
import re
import subprocess
import tempfile
from pathlib import Path


def fit(source, capability, options):
    """Of an ASTSource compiled for a card: bytes of shared memory, registers, bytes of spill stores and spill loads."""
    import triton
    from triton.backends.compiler import GPUTarget
    compiled = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)
    ptxas = next(Path(triton.__file__).parent.rglob('bin/ptxas'))
    with tempfile.NamedTemporaryFile('w', suffix='.ptx') as file:
        file.write(compiled.asm['ptx'])
        file.flush()
        architecture = re.search(r'\.target (\w+)', compiled.asm['ptx'])[1]
        said = subprocess.run([ptxas, '-v', f'--gpu-name={architecture}', file.name, '-o', '/dev/null'],
                              capture_output=True, text=True, check=True).stderr
    found = (re.search(pattern, said)[1] for pattern in (
        r'Used (\d+) registers', r'(\d+) bytes spill stores', r'(\d+) bytes spill loads'))
    return compiled.metadata.shared, *map(int, found)
