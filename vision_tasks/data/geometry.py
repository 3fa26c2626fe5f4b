"The geometry of fastai's transforms: how each changes the size of a validation image"
from __future__ import annotations
from copy import copy
import torch
from fastcore.basics import listify
from fastai.vision.augment import AffineCoordTfm, RandomResizedCropGPU, Resize, ResizeMethod
from .transforms import JointTransform, LightJitter
from .views import FitView, View

__all__ = []

def batch_geometry(
    batch_tfms,       # fastai's batch transforms, or None for `LightJitter()`
    coords:str=None,  # coordinates in the targets: 'points', one 'box', 'boxes'; None (default): masks or labels only
) -> list:            # of transforms
    """The batch transforms of a task's block. Affine transforms get `align_corners=False`, which refers to the edges of
    the image, as coordinates do; fastai's default refers to the centres of the pixels, and is up to half a pixel off.
    Raises `ValueError` for transforms that do not transform `coords`"""
    tfms = [LightJitter()] if batch_tfms is None else listify(batch_tfms)
    for o in tfms if coords else ():
        if isinstance(o, RandomResizedCropGPU): raise ValueError(
            f"batch_tfms holds RandomResizedCropGPU, as aug_transforms(min_scale=...) makes it, which crops images but "
            f"no {coords}; crop in the item transform instead, JointTransform(size, train=CropView((min_scale, 1.))), "
            "and leave min_scale out")
        if coords == 'boxes' and isinstance(o, AffineCoordTfm) and o.pad_mode == 'reflection': raise ValueError(
            "pad_mode='reflection' paints objects without boxes; use aug_transforms(..., pad_mode='zeros')")
    return [_about_edges(o) if isinstance(o, AffineCoordTfm) else o for o in tfms]

def _about_edges(tfm):
    tfm = copy(tfm)
    tfm.align_corners = False
    return tfm

def valid_step(
    tfm,                  # transform of items or batches
    size:tuple[int,int],  # (w, h) of its input
) -> View|None:           # None if it does not change the geometry
    "The view that `tfm` applies to a validation image. Raises `ValueError` if it cannot be undone"
    if isinstance(tfm, JointTransform): return tfm.view(size)
    if type(tfm) is Resize: return _resize_view(tfm, size)
    if isinstance(tfm, AffineCoordTfm):   # its `split_idx` is that of the last batch
        return None if tfm.size is None else _grid_view((0, 0, *size), _wh(tfm.size), tfm.align_corners)
    if isinstance(tfm, RandomResizedCropGPU):
        tfm.before_call(torch.empty(1, 1, *size[::-1]), 1)
        (y,x),(h,w) = tfm.tl,tfm.cp_size
        return _grid_view((x, y, x+w, y+h), _wh(tfm.size), True)    # what `affine_coord` does by default
    if getattr(tfm, 'split_idx', None) != 0 and (hasattr(tfm, 'size') or 'Crop' in type(tfm).__name__):
        raise ValueError(f"{type(tfm).__name__} cannot be undone, so predictions cannot be mapped to pixels of the "
                         "image file: use JointTransform, fastai's Resize, or aug_transforms(size=...)")

def _wh(size): return (size, size) if isinstance(size, int) else (size[1], size[0])   # fastai's (h, w)

def _grid_view(src, out, align_corners):
    "`src` resized to `out` by torch's `grid_sample`; with `align_corners` the centres of the corner pixels coincide"
    if not align_corners: return View(src, (0, 0, *out), out)
    r = [(n-1)/max(m-1, 1) for n,m in zip((src[2]-src[0], src[3]-src[1]), out)]
    x,y = (src[i] + .5 - r[i]/2 for i in (0, 1))
    return View((x, y, x + r[0]*out[0], y + r[1]*out[1]), (0, 0, *out), out)

def _resize_view(tfm, size):
    "fastai's `Resize` for validation as a view: a centred window with the aspect of the network's input, resized"
    (w,h),(W,H) = size,tfm.size     # fastai takes (h, w) and stores (w, h)
    if tfm.method == ResizeMethod.Squish: return View(*FitView('squish')(w, h, (W, H)), (W, H))
    m = (max if tfm.method == ResizeMethod.Pad else min)(w/W, h/H)
    cw,ch = int(m*W),int(m*H)
    x,y = int((w-cw)/2),int((h-ch)/2)
    return View((x, y, x+cw, y+ch), (0, 0, W, H), (W, H))
