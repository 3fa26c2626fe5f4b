"Class weights for segmentation, from the number of pixels of each class"
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
    kind='median_frequency', # median of the frequencies / frequency of the class, which is its share of the pixels in
                             # the images that contain it (Eigen & Fergus, 2015, arXiv:1411.4734; as in SegNet);
                             # 'inverse': 1 / pixels of the class, normalized to mean 1 over all pixels; None: 1
) -> Tensor:     # (n,) float; 1 for a class without pixels
    """Loss weight of each class, larger for rare classes. Every mask is read once, in threads. Raises `AnnotationError`
    if no mask has a pixel with a class"""
    res = np.ones(n, np.float32)
    if kind is None: return torch.from_numpy(res)
    pixels,around = np.zeros(n),np.zeros(n)
    with ThreadPoolExecutor() as ex:
        for k in ex.map(lambda a: np.bincount(class_mask(a, n).ravel(), minlength=max(n, VOID+1)), annotations):
            size,k[VOID] = k.sum(),0
            pixels += k[:n]; around += size*(k[:n] > 0)
    on = pixels > 0
    if not on.any(): raise AnnotationError(f"the {len(annotations)} masks have no pixel with a class, so there are no "
                                           "frequencies; are these the training annotations?")
    freq = pixels[on]/(around[on] if kind == 'median_frequency' else pixels.sum())
    res[on] = (np.median(freq) if kind == 'median_frequency' else 1/on.sum())/freq
    return torch.from_numpy(res)
