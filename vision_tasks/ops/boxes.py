"Functions of boxes that torchvision.ops does not have"
from __future__ import annotations
import torch
from torch import Tensor
from ..arguments import Kind, checked

__all__ = ['paired_iou']

BOXES = Kind("a tensor (..., 4) of x1 y1 x2 y2", lambda o: isinstance(o, Tensor) and o.shape[-1] == 4 and
             not o.is_complex())

@checked(a=BOXES, b=BOXES)
def paired_iou(
    a:Tensor, # (..., 4) x1 y1 x2 y2
    b:Tensor, # (..., 4) in the same unit; the shapes are broadcast
) -> Tensor:  # (...) in [0, 1]
    """Intersection over union of each box of `a` with the box of `b` at the same place; 0 where both have no area, nan
    for boxes with nan. Raises `ValueError` for shapes that cannot be broadcast"""
    if any(n != m and 1 not in (n, m) for n,m in zip(a.shape[::-1], b.shape[::-1])):
        raise ValueError(f"expected a partner in b for each box of a, got shapes {tuple(a.shape)} and {tuple(b.shape)}")
    area  = lambda o: (o[...,2:] - o[...,:2]).clamp(min=0).prod(-1)
    inter = area(torch.cat([torch.maximum(a[...,:2], b[...,:2]), torch.minimum(a[...,2:], b[...,2:])], -1))
    union = area(a) + area(b) - inter
    return torch.where(union > 0, inter/union, union)
