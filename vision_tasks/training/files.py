"Files of a learner: whole or not at all, and errors that name them"
from __future__ import annotations
import os, pickle, zipfile
from contextlib import contextmanager
import torch
from fastai.learner import Learner, load_learner as load_fastai_learner
from ..arguments import FLAG, PATH, Kind, checked, either
from ..data.writing import replacing

__all__ = ['load_learner']

# --- learner

FILE = either(PATH, Kind("an open file", lambda o: hasattr(o, 'write') or hasattr(o, 'read')))

DECISIONS = 'thresh','temperature'   # what a loss may hold beside the weights of the model
DECISIONS_KEY = 'vision_tasks'       # where a state dict's metadata have them

@contextmanager
def saving_file(file):
    "`replacing`, where torch's word for a full disk is an `OSError` that names `file`"
    try:
        with replacing(file) as part: yield part
    except RuntimeError as e: raise OSError(f"{file} cannot be written: {e}") from e

@contextmanager
def reading_file(file, by, damaged):
    "A block that loads `file`; `ValueError` names it where torch's error `e` is one for which `damaged(e)`"
    todo = f"it is cut, damaged or not written by {by}; use a copy, or train and save again"
    if isinstance(file, (str, os.PathLike)) and os.path.isfile(file) and not _is_torch_file(file):
        raise ValueError(f"{file} cannot be loaded: {todo}")
    try: yield
    except (OSError, MemoryError, torch.OutOfMemoryError): raise   # these have words of their own
    except Exception as e:
        if not damaged(e): raise
        first = str(e).strip().partition('\n')[0] or type(e).__name__
        if first.startswith('Weights only'): first = 'it holds objects other than tensors'   # torch advises to run them
        raise ValueError(f"{file} cannot be loaded ({first:.160}): {todo}") from e

def _is_torch_file(file):
    "Whether `file` is a zip with its directory, which comes last, or a pickle as torch wrote it before 1.6"
    with open(file, 'rb') as f:
        begin = f.read(2)
        return zipfile.is_zipfile(f) if begin == b'PK' else begin[:1] == b'\x80'

@checked(fname=FILE, cpu=FLAG)
def load_learner(
    fname,                # file of `learn.export`
    cpu:bool=True,        # whether the learner goes to the CPU, or to the default device
    pickle_module=pickle, # what reads the pickle
) -> Learner:
    """fastai's `load_learner`: the learner without its data. A pickle can run any code: load only what you trust.
    Raises `ValueError` that names a file which is cut, damaged or of another kind"""
    # a class or module that does not exist here is not the file's fault
    damaged = lambda e: not isinstance(e, (AttributeError, ImportError)) and 'deprecated in `fastai' not in str(e)
    try:
        with reading_file(fname, 'learn.export', damaged): return load_fastai_learner(fname, cpu, pickle_module)
    except AttributeError as e:
        if e.name != 'dls': raise
        raise ValueError(f"{fname} holds a {type(e.obj).__name__}, not a learner; learn.load(file) reads what "
                         "learn.save wrote, load_learner what learn.export wrote") from e
