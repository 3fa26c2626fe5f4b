"Weights of the classes of a segmentation data set, from the pixels of each"
from __future__ import annotations
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import torch
from torch import Tensor
from ..arguments import checked, choice, whole
from .errors import AnnotationError
from .targets import class_mask
from ..ops.masks import VOID

__all__ = ['class_weights']

@checked(n=whole(1, 256, what="a number of classes"), kind=choice('median_frequency', 'inverse', None))
def class_weights(
    annotations, # list[Annotation] with `mask`, of the training set
    n:int,       # number of classes
    kind='median_frequency', # median of the frequencies / that of the class, where the frequency is the class's share
                             # of all pixels of the pictures that hold it (Eigen & Fergus, 2015, arXiv:1411.4734; as in
                             # SegNet); 'inverse': 1 / pixels of the class, the mean over all pixels being 1; None: 1
) -> Tensor:     # (n,); 1 for a class that no mask holds
    "What a pixel of each class should count for rare classes to be learnt too. Every mask is read once, in threads"
    res = np.ones(n, np.float32)
    if kind is None: return torch.from_numpy(res)
    pixels,around = np.zeros(n),np.zeros(n)
    with ThreadPoolExecutor() as ex:
        for k in ex.map(lambda a: np.bincount(class_mask(a, n).ravel(), minlength=max(n, VOID+1)), annotations):
            size,k[VOID] = k.sum(),0
            pixels += k[:n]; around += size*(k[:n] > 0)
    on = pixels > 0
    if not on.any(): raise AnnotationError(f"the {len(annotations)} masks hold no pixel of any class, so that there is "
                                           "nothing to weigh; are these the annotations to train on?")
    freq = pixels[on]/(around[on] if kind == 'median_frequency' else pixels.sum())
    res[on] = (np.median(freq) if kind == 'median_frequency' else 1/on.sum())/freq
    return torch.from_numpy(res)
