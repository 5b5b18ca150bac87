"""How tensors reach the C++ library: pointers, strides, counts.

tensor -> copy only where the last dimension is not dense -> ctypes arguments
"""

import ctypes

import torch

integer = ctypes.c_int64
number = ctypes.c_float


def address(tensor):
    """Return where a tensor's data begin, a null pointer for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def strided(tensor, dimensions):
    """Return the address and the first strides, counted in elements."""
    return [address(tensor), *(integer(n) for n in tensor.stride()[:dimensions])]


def dense(tensor):
    """Return the tensor, or a copy if its last dimension is not dense."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def contiguous(tensor):
    """Return the tensor, a copy if it is not contiguous, None for None."""
    return None if tensor is None else tensor.contiguous()


def rows_of(tensor):
    """See (..., width) as (rows, width) with a dense last dimension, copied only if that cannot be."""
    return dense(tensor).reshape(-1, tensor.shape[-1])


def threads():
    return integer(torch.get_num_threads())
