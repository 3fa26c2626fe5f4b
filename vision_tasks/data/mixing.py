"""Training images made from several: mosaic (Bochkovskiy et al., 2020, arXiv:2004.10934) and copy-paste (Ghiasi et al.,
2021, arXiv:2012.07177). All functions take and return items on canvases, with boxes in pixels of these"""
from __future__ import annotations
import random
from dataclasses import dataclass
import torch
from torch import Tensor
from .items import BBoxLabels, InstanceMasks, ObjectMasks, PixelBBox, RegionProposals
from .laying import as_type_of, is_image, tight_bboxes

__all__ = []

@dataclass(frozen=True)
class Mixture:
    "An item of the training set, and those with which `JointTransform` mixes it, if any"
    item:tuple     # image and targets
    others:list    # of such items: none, one to copy objects from, or three for a mosaic

def check_mixable(item, masks):
    "Raise `ValueError` if `item` has targets that cannot be mixed, or, with `masks`, if it has no masks"
    for o in item:
        if is_image(o) or isinstance(o, (PixelBBox, BBoxLabels, InstanceMasks, ObjectMasks)): continue
        raise ValueError("mosaic and copy_paste mix images with the boxes, labels and masks of their objects, but this "
                         f"item has a {type(o).__name__}, which they cannot mix; drop them from JointTransform")
    if masks and not any(isinstance(o, (InstanceMasks, ObjectMasks)) for o in item):
        raise ValueError("copy_paste cuts objects out by their masks, but the items have none: use instance_dls with "
                         "annotations that have masks, or mosaic in place of copy_paste")

def place(
    item,        # list of an image (c, h, w) and targets on its own canvas
    corner,      # (x, y) of that canvas on the new one
    size,        # (w, h) of the new one
) -> list:       # of targets on the new canvas; the image as it is
    "The targets of a tile on the whole canvas"
    (x,y),(w,h) = corner,size
    def move(o):
        if isinstance(o, PixelBBox):
            return as_type_of(o.as_subclass(Tensor) + torch.tensor([x, y, x, y]), o, img_size=tuple(size))
        if not isinstance(o, InstanceMasks): return o
        m = o.as_subclass(Tensor)
        res = m.new_zeros(len(m), h, w)
        res[:, y:y+m.shape[1], x:x+m.shape[2]] = m
        return as_type_of(res, o)
    return [move(o) for o in item]

def join_tiles(
    tiles,   # four lists of an image (c, h, w) and targets
    corners, # (x, y) of each on the canvas
    size,    # (w, h) of the canvas
) -> list:
    "One item of four tiles that cover the canvas: the objects one after another"
    (w,h),moved = size,[place(t, c, size) for t,c in zip(tiles, corners)]
    def join(parts):
        if isinstance(parts[0], (PixelBBox, BBoxLabels, InstanceMasks)):
            return as_type_of(torch.cat([o.as_subclass(Tensor) for o in parts]), parts[0])
        canvas = parts[0].new_empty(len(parts[0]), h, w)
        for (x,y),o in zip(corners, parts): canvas[:, y:y+o.shape[1], x:x+o.shape[2]] = o
        return canvas
    return [join(parts) for parts in zip(*moved)]

def paste_objects(
    item,        # list of an image (c, h, w), boxes, labels and masks
    other,       # the same of another image on a canvas of that size
    min_visible, # drop an object of `item` if less than this part of its mask remains, in [0, 1], or nothing
) -> list:
    """`item` with a random part of the objects of `other` pasted over it. The masks of what they cover lose these
    pixels, and the boxes are tight around what remains. Ignored objects of `other` are not pasted, those of `item` keep
    their boxes"""
    kinds = [next((k for k in (RegionProposals, PixelBBox, BBoxLabels, InstanceMasks) if isinstance(o, k)), Tensor)
             for o in item]
    get = lambda o, kind: o[kinds.index(kind)].as_subclass(Tensor)
    some = (get(other, BBoxLabels) > 0).nonzero().flatten().tolist()
    if not some: return item
    some = sorted(random.sample(some, random.randint(1, len(some))))
    masks,labels = get(item, InstanceMasks),get(item, BBoxLabels)
    over = get(other, InstanceMasks)[some].bool().any(0)
    left = masks*~over
    before,after = (o.flatten(1).sum(1, dtype=torch.int64) for o in (masks, left))
    keep = (labels < 0) | (after >= (min_visible*before).clamp(min=1))
    cut  = (after < before) & (labels > 0)
    boxes = get(item, PixelBBox)
    if cut.any(): boxes = torch.where(cut[:,None], tight_bboxes(left), boxes)
    mine = {PixelBBox: boxes, BBoxLabels: labels, InstanceMasks: left}
    def join(o, other, kind):
        if kind is Tensor: return torch.where(over, other, o)
        if kind is RegionProposals: parts = o.as_subclass(Tensor),other.as_subclass(Tensor)
        else: parts = mine[kind][keep],other.as_subclass(Tensor)[some]
        return as_type_of(torch.cat(parts), o)
    return [join(*o) for o in zip(item, other, kinds)]
