"""The most multiply-adds that a machine does, to hold what kernels reach against.

rounds -> every thread multiplies and adds on registers alone -> operations done, for the caller to time
"""

import ctypes

from hybridna_kernels.cpu import build
from hybridna_kernels.cpu.call import integer, threads


def multiply_add(rounds):
    """Do so many rounds of independent float32 multiply-adds on each of torch's threads.

    returns  floating-point operations done, two per multiply-add
    """
    library = build.library()[0]
    library.hybridna_peak.restype = ctypes.c_float
    library.hybridna_peak_operations.restype = ctypes.c_int64
    library.hybridna_peak(integer(rounds), threads())
    return library.hybridna_peak_operations() * rounds * threads().value
