"""Triton's interpreter without what it does over and over. Whoever imports this runs with TRITON_INTERPRET=1."""
import functools

import triton.language as tl
from triton.runtime import interpreter

patch_language, launch, patched = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()
numpy_type = interpreter._get_np_dtype
numpy_type_of_scalar = functools.cache(numpy_type)


def patch_once(fn):
    """A launch puts the interpreter's functions in place of the language's, and so does every function that a kernel
    calls: a third of the time, for what is in its place already."""
    visible = {name for name, module in (('tl', tl), ('core', tl.core))
               if any(value is module for value in fn.__globals__.values())}
    if not visible <= patched:
        patched.update(visible)
        return patch_language(fn)


def launch_anew(self, *args, **kwargs):
    patched.clear()
    return launch(self, *args, **kwargs)


interpreter._patch_lang = patch_once
interpreter.GridExecutor.__call__ = launch_anew
interpreter._get_np_dtype = lambda kind: (numpy_type_of_scalar if type(kind) is tl.dtype else numpy_type)(kind)
