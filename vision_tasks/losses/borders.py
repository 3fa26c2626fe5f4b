"U-Net's larger loss weights for pixels between objects (Ronneberger et al., 2015, arXiv:1505.04597)"
from __future__ import annotations
import math
import numpy as np
import torch
from scipy import ndimage
from ..arguments import checked, choice, either, number, numbers, whole
from .segmentation import SegmentationCE
from ..ops.masks import VOID

__all__ = ['BorderCE', 'border_weights']

_W0,_SIGMA  = number(0, 10**9),number(0, 10**5, open=True, what="pixels")
_BACKGROUND = either(whole(0, 255, what="a class index"), choice(None))

class BorderCE(SegmentationCE):
    """Cross entropy in which pixels between two objects that nearly touch count more, as in U-Net (Ronneberger et al.,
    2015, arXiv:1505.04597): the weight of a pixel is that of its class plus `border_weights`, which are computed from
    the target, on the CPU, at every call"""
    @checked(w0=_W0, sigma=_SIGMA, background=_BACKGROUND)
    def __init__(self,
        weight=None,      # (c,): what the pixels of each class count, as `class_weights` returns it; None: all the same
        w0:float=10.,     # weight added between two objects that touch, 0 or more
        sigma:float=5.,   # pixels over which that weight falls, above 0
        background:int=0, # index of the class that is no object; None: every class has objects
        **kwargs,         # of `SegmentationCE`: `reduction`
    ):
        super().__init__(weight, **kwargs)
        self.border = dict(w0=w0, sigma=sigma, background=background)
    def pixel_weights(self, y, on, c):
        border = [border_weights.unchecked(m, **self.border) for m in y.masked_fill(~on, VOID).cpu().numpy()]
        return (super().pixel_weights(y, on, c) + torch.from_numpy(np.stack(border)).to(y.device))*on

@checked(mask=numbers((None, None), what="class indices (h, w), whole numbers", types='iu'), w0=_W0, sigma=_SIGMA,
         background=_BACKGROUND)
def border_weights(
    mask,               # (h, w) class indices, 255 = void
    w0:float=10.,       # weight between two objects that touch, 0 or more
    sigma:float=5.,     # pixels over which the weight falls, above 0
    background:int=0,   # index of the class that is no object; None: every class has objects
) -> np.ndarray:        # (h, w) float32, 0 where no two objects are near
    """U-Net's eq. 2 without the weight of the class: w0 exp(-(d1+d2)^2 / 2 sigma^2), d1 and d2 the distances to the
    nearest and the second nearest object, 0 inside it. An object is a connected component of a class (corners connect),
    so that two objects of one class that touch count as one: leave a gap of background or void between them"""
    mask = np.asarray(mask)
    d1,d2 = (np.full(mask.shape, np.inf, np.float32) for _ in range(2))
    reach = math.ceil(6*sigma)   # beyond, the weight is below w0 e^-18
    for c in set(np.unique(mask).tolist()) - {background, VOID}:
        objects = ndimage.label(mask == c, np.ones((3, 3)))[0]
        for i,box in enumerate(ndimage.find_objects(objects), 1):
            at = tuple(slice(max(o.start-reach, 0), o.stop+reach) for o in box)
            d = ndimage.distance_transform_edt(objects[at] != i)
            d2[at] = np.minimum(d2[at], np.maximum(d1[at], d))
            d1[at] = np.minimum(d1[at], d)
    return (w0*np.exp(-(d1+d2)**2/(2*sigma**2))).astype(np.float32)
