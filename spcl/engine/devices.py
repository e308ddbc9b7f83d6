"""A process's device, and what its arithmetic depends on."""

import ctypes
import os

import torch

from spcl.configuration.sections import Train
from spcl.errors import UserError

# Of glibc's mallopt, malloc.h: up to which size memory comes from the heap, and how much of it
# may lie free there.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
KEPT_BYTES = 2**30


def choose_device(train: Train, local_rank: int) -> torch.device:
    """This process's device, made its current one.  UserError where cuda is asked for in vain."""
    available = torch.cuda.is_available()
    if train.device == "cuda" and not available:
        raise UserError("train.device=cuda needs a GPU, but torch sees none; use train.device=cpu")
    if train.device == "cpu" or not available:
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def set_up_torch(train: Train) -> None:
    """What the bits of a result depend on besides the data; once in each process."""
    # Before the first parallel region, since threads inherit it.  A softmax makes numbers below
    # 1e-38, and a processor takes up to a hundred times longer over each of those.
    torch.set_flush_denormal(True)
    torch.set_num_threads(train.threads)
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """What a tensor leaves is for the next one: Linux would take and clear it each time.

    From 32 MiB on, glibc gives memory back at once; `tiny` then spends half of its time at
    1024x2048 on getting it again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's own
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
