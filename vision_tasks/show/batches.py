"What the DataLoader classes of all tasks share"
from __future__ import annotations
import re
import numpy as np
from fastai.data.core import TfmdDL
from fastai.torch_core import to_detach
from .layout import as_hwc, columns_for, image_grid

__all__ = []

class TaskDL(TfmdDL):
    def __iter__(self):
        try: yield from super().__iter__()
        except Exception as e:
            ours = _from_worker(e)
            if ours is None: raise
            raise ours from None

    def show_unique(self, max_n, **kwargs):
        "`show_batch` of one image again and again, to show the augmentation: the first with an object, if there is one"
        old,idxs = self.get_idxs,list(self.get_idxs())
        first = next((i for i in idxs if self.has_truth and self.has_object(self.items[i])), idxs[0])
        self.get_idxs = FixedOrder([first]*max(max_n, self.bs or 1))
        try: return self.show_batch(max_n=max_n, **kwargs)
        finally: self.get_idxs = old

    def results(self, b, out, max_n:int=9):
        "What fastai's `show_results(show=False)` returns: images, targets, samples, predictions, the last two by image"
        return TfmdDL.show_results(self, b, to_detach(out, gather=False), max_n, show=False)

    @property
    def has_truth(self) -> bool:
        "Whether there are targets beside the images; only targets have classes or points"
        return hasattr(self, 'vocab')

    def show_images(self, b, max_n:int=9, ncols:int=None):
        "Draw `max_n` images of batch `b`, which has no targets"
        items = [o[0] for o in self.decode_batch(b, max_n)]
        _,axs = image_grid(len(items), ncols or columns_for(len(items), 5), aspect=b[0].shape[-2]/b[0].shape[-1])
        for ax,x in zip(axs, items): ax.imshow(as_hwc(x))

    def has_object(self, a):
        "Whether the ground truth of `a`, an `Annotation`, holds something to draw"
        return any(not o for o in (np.zeros(len(a.labels)) if a.ignore is None else a.ignore))

def _from_worker(e):
    """An error that a worker process raised, of its own kind: its message first, then torch's, which begins with the
    worker and buries it below a traceback. None for other errors"""
    text = e.args[0] if e.args and isinstance(e.args[0], str) else ''
    head = re.match(r"Caught (\w+) in .*\.\nOriginal Traceback ", text)
    if head is None: return None
    # the last line of the traceback that names the error; what follows is its message
    at = [m.end() for m in re.finditer(rf"^(?:[\w.]+\.)?{head[1]}: ", text, re.M)]
    return type(e)(f"{text[at[-1]:].rstrip()}\n\n{text}") if at else None

class FixedOrder:
    "`get_idxs` that returns `idxs` in their order; a class, since a closure does not pickle for worker processes"
    def __init__(self, idxs): self.idxs = idxs
    def __call__(self): return self.idxs
