"""Weights in the block formats of GGML, rounded by llama.cpp's own quantiser.

In: a tensor in float32 and the form of the file. Out: its bytes and the GGML type they are in.
"""

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.core.parallel import cores

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

# LLAMA_FTYPE of llama.h, which readers show as the file's type
FILE_TYPES = {"f16": 1, "q8_0": 7, "q4_k_m": 15}
LAYER = re.compile(r"blk\.(\d+)\.")


def type_of(name: str, shape: tuple[int, ...], form: str, layers: int, tied: bool) -> "GGMLQuantizationType":
    """The GGML type of a tensor in a form.

    Q4_K_M is llama.cpp's mix (llama-quant.cpp, LLAMA_FTYPE_MOSTLY_Q4_K_M): the output matrix, and the value and down projections of the
    first and last eighth of the layers and of every third between, in Q6_K, all others in Q4_K. Where a row is no multiple of 256 it
    falls back as llama.cpp does, Q4_K to Q5_0 and Q6_K to Q8_0, and where it is no multiple of 32 to F16.

    Args:
        name: GGUF's name of the tensor.
        shape: rows and columns, or one number.
        form: f16, q8_0 or q4_k_m.
        layers: of the model.
        tied: whether the embedding is the output matrix too.

    Returns:
        The type.
    """
    from gguf import GGMLQuantizationType as Type

    if len(shape) == 1:
        return Type.F32  # norms and biases: a few thousand numbers, and llama.cpp computes with them in float32
    if form == "f16":
        return Type.F16
    wanted = Type.Q8_0 if form == "q8_0" else Type.Q4_K
    if form == "q4_k_m":
        place = LAYER.match(name)
        layer = int(place[1]) if place else 0
        more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
        output = name == "output.weight" or (tied and name == "token_embd.weight")
        if output or (more and name.endswith(("attn_v.weight", "ffn_down.weight"))):
            wanted = Type.Q6_K
        if shape[-1] % 256:
            wanted = Type.Q8_0 if wanted is Type.Q6_K else Type.Q5_0
    return Type.F16 if shape[-1] % 32 else wanted


def quantized(weights: "np.ndarray[Any, np.dtype[np.float32]]", kind: "GGMLQuantizationType") -> "np.ndarray[Any, Any]":
    """A tensor in a GGML type.

    Args:
        weights: [rows, columns] or [columns], float32, contiguous.
        kind: the type.

    Returns:
        Float32 or float16 of the same shape, else [rows, bytes of a row] uint8.

    Raises:
        OverflowError: a weight lies outside float16.
    """
    from gguf import GGMLQuantizationType as Type
    from gguf import quant_shape_to_byte_shape

    if kind is Type.F32:
        return weights
    if kind is Type.F16:
        with np.errstate(over="ignore"):
            half = weights.astype(np.float16)
        if not np.isfinite(half).all():
            raise OverflowError("a weight lies outside float16")
        return half
    rows, columns = weights.shape
    made = np.empty(quant_shape_to_byte_shape(weights.shape, kind), np.uint8)
    some = -(-rows // cores())  # a row is rounded by itself, so the bytes know nothing of the threads

    def chunk(first: int) -> int:
        begin, count = first * columns, min(some, rows - first)
        return int(_ggml().ggml_quantize_chunk(int(kind), weights.ctypes.data, made.ctypes.data, begin, count, columns, None))

    with ThreadPoolExecutor(cores()) as pool:  # ctypes lets the interpreter's lock go
        written = sum(pool.map(chunk, range(0, rows, some)))
    assert written == made.nbytes, (written, made.nbytes)
    return made


@cache
def _ggml() -> ctypes.CDLL:
    """The llama.cpp inside xllamacpp, which exports ggml.h; the Python package has no call for this function of it."""
    import xllamacpp.xllamacpp as library

    loaded = ctypes.CDLL(library.__file__)
    # size_t ggml_quantize_chunk(enum ggml_type, const float *src, void *dst, int64_t start, int64_t nrows, int64_t n_per_row, imatrix)
    loaded.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    return loaded
