"Files of a learner: whole or not at all, and errors that name them"
from __future__ import annotations
import os, pickle, zipfile
from contextlib import contextmanager
from pathlib import Path
import cloudpickle, numpy as np, torch
from torch import Tensor
from fastcore.xtras import join_path_file
from fastai.learner import Learner, load_learner as load_fastai_learner, save_model
from fastai.torch_core import get_model, rank_distrib
from ..arguments import FLAG, PATH, Kind, checked, checked_methods, either
from ..data.writing import replacing
from ..distributed import Distributed

__all__ = ['Saving', 'load_learner']

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

@checked_methods
class Saving:
    "Files of a `TaskLearner`"
    @checked(file=FILE)
    def save(self,
        file,     # name below `path/model_dir`, without suffix; or an open binary file
        **kwargs, # of fastai's `save_model`: `with_opt`, `pickle_protocol`
    ):
        """fastai's `save`; thresholds and temperature are saved too, as metadata of the state dict, so that fastai and
        torch read the file as any other. It is written whole or not at all"""
        note = lambda module, state, prefix, metadata: metadata.update({DECISIONS_KEY: self.decisions()})
        hook = get_model(self.model).register_state_dict_post_hook(note)
        try:
            if not isinstance(file, (str, Path)) or rank_distrib(): return Learner.save(self, file, **kwargs)
            file = join_path_file(file, self.path/self.model_dir, ext='.pth')
            with saving_file(file) as part: save_model(part, self.model, self.opt, **kwargs)
        finally: hook.remove()
        return file

    @checked(file=FILE)
    def load(self,
        file,        # name as `save` takes it, or the path that it returns; or an open binary file
        device=None, # where the weights go; None: the device of the dls
        **kwargs,    # of fastai's `load_model`: `strict`, `with_opt`, ...
    ):
        """fastai's `load`, which also takes the path that `save` returns, and restores thresholds and temperature; a
        file without these, as fastai writes it, leaves them as they are. Raises `ValueError` that names a file which is
        cut, damaged or of another kind, and leaves the learner as it is"""
        file,found,begun = Path(file) if isinstance(file, (str, os.PathLike)) else file,{},[]
        if isinstance(file, Path) and file.suffix == '.pth' and file.is_file(): file = file.resolve().with_suffix('')
        whole = join_path_file(file, self.path/self.model_dir, ext='.pth') if isinstance(file, Path) else file
        def note(module, state, prefix, metadata, *_):
            begun.append(True)   # the file has been read
            found.update(metadata.get(DECISIONS_KEY, {}))
        hook = get_model(self.model).register_load_state_dict_pre_hook(note)
        try:
            with reading_file(whole, 'learn.save', lambda e: not begun):
                Learner.load(self, file, device=device, **kwargs)
        finally: hook.remove()
        for k,v in found.items():
            if hasattr(self.loss_func, k): setattr(self.loss_func, k, torch.tensor(v) if isinstance(v, list) else v)
        return self

    def export(self,
        fname='export.pkl',        # file name below `path`
        pickle_module=cloudpickle, # module that pickles the learner
        pickle_protocol:int=2,     # of the pickle module
    ):
        """fastai's `export`, whose file is written whole or not at all; the processes that trained it do not go along.
        The learner itself keeps its data and its optimizer, also where `OSError` says that the file cannot be
        written"""
        if rank_distrib(): return
        file,dls,opt = self.path/fname,self.dls,self.opt
        try:
            with saving_file(file) as part, self.removed_cbs(self._grab_cbs(Distributed)):
                Learner.export(self, part.resolve(), pickle_module, pickle_protocol)
        finally: self.dls,self.opt = dls,opt

    def decisions(self) -> dict:
        "Thresholds and temperature of the loss, those that it has: numbers, or lists of one per class"
        res = {k: getattr(self.loss_func, k) for k in DECISIONS if hasattr(self.loss_func, k)}
        res = {k: v.tolist() if isinstance(v, (Tensor, np.ndarray, np.generic)) else v for k,v in res.items()}
        return {k: v for k,v in res.items() if isinstance(v, (int, float, list))}
