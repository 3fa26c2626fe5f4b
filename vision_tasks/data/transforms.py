"Joint transforms of image, boxes, points and masks"
from __future__ import annotations
import math, random
import numpy as np
import torch
from torch import Tensor
from fastai.data.transforms import ItemTransform
from fastai.vision.augment import RandTransform
from fastai.vision.core import PILMask, TensorBBox, TensorImage, TensorMask, TensorPoint
from PIL import Image
from ..arguments import FLAG, FRACTION, FUNCTION, Kind, checked, is_number, is_whole, number, several, whole
from .items import BBoxLabels, CachedMask, ClassMask, InstanceMasks, ObjectMasks, PixelBBox, RegionProposals
from .laying import (apply_v2, as_type_of, cut_image, is_image, lay_cached_mask, lay_masks, lay_pixels,
                     objects_of_items, slice_rect, tight_bboxes)
from .targets import swap_points
from .views import IMAGENET_GREY, VIEW, CropView, View, view_by_name

__all__ = ['JointTransform', 'TightBoxes', 'LightJitter']

def _angle_todo(o):
    if isinstance(o, (tuple, list)) and len(o) == 2 and all(map(is_number, o)) and o[0] == -o[1]:
        return f"write rotate={abs(o[1])} for angles from {-abs(o[1])} to {abs(o[1])}"
    return ''

def _fill_todo(o): return f"write ({o}, {o}, {o}) for that grey" if whole(0, 255).ok(o) else ''

ANGLE = Kind("the largest angle in degrees, both ways, a number from 0 to 360", number(0, 360).ok, _angle_todo)
FILL  = Kind("a color: three numbers from 0 to 255", lambda o: len(o) in (1, 3), _fill_todo,
             several(number(0, 255), "a color: three numbers from 0 to 255").convert)
INDEX_PAIRS = several(Kind("a pair (left, right) of point indices", lambda o: len(o) == 2,
                           convert=several(whole(0), "a pair of point indices", n=2).convert),
                      "a list of pairs (left, right) of point indices")

class JointTransform(ItemTransform):
    """Bring every image to `size`, with its boxes, labels, points and masks; random for training, deterministic
    otherwise. Raises `ValueError` if an item has no image, or a view returns a rectangle outside the image"""
    order = 0   # before fastai's PointScaler
    @checked(train=VIEW, valid=VIEW, flip=FRACTION, vflip=FRACTION, rotate=ANGLE, p_rotate=FRACTION, tfms=FUNCTION,
             fill=FILL, mask_fill=whole(0, what="a class index, a whole number"), min_visible=FRACTION, keep=FLAG,
             flip_pairs=INDEX_PAIRS)
    def __init__(self,
        size:int|tuple[int,int]=224,  # of the network's input in pixels: (w, h), or one number for both
        train=None,                   # view for training: callable (w, h, out, bboxes) -> src, dst, or a name as for
                                      # `valid`; None (default): `CropView()`
        valid='squish',               # view otherwise: 'squish', 'pad', 'crop', or a callable that is not random
        flip:float=.5,                # probability of a left-right flip in training
        vflip:float=0.,               # probability of a top-bottom flip in training
        rotate:float=0.,              # largest angle in degrees, in both directions
        p_rotate:float=.75,           # probability of a rotation in training
        tfms=None,                    # more torchvision.transforms.v2 transforms for training, applied to the canvas;
                                      # None (default): none
        fill=IMAGENET_GREY,           # colour around the image, three numbers in 0..255
        mask_fill:int=255,            # class index around the image in a class mask; 255: void
        min_visible:float=.1,         # drop an object if less than this part of its box, or less than a pixel, remains
        keep:bool=False,              # in training, draw again if an object or marked point would leave the canvas
        flip_pairs=None,              # pairs of point indices (left, right) to swap in a mirrored image; None
                                      # (default): none, but `Keypoints` have their own
    ):
        self.size = (int(size),)*2 if is_whole(size) else tuple(map(int, size))
        self.train,self.valid = view_by_name(train or CropView()),view_by_name(valid)
        self.flip,self.vflip,self.rotate,self.p_rotate,self.tfms = flip,vflip,rotate,p_rotate,tfms
        self.fill,self.mask_fill,self.min_visible,self.keep = tuple(fill),mask_fill,min_visible,keep
        self.flip_pairs = [tuple(o) for o in flip_pairs or []]
        super().__init__()

    def __repr__(self):
        names = 'size train valid flip vflip rotate p_rotate tfms fill mask_fill min_visible keep flip_pairs'.split()
        return f"JointTransform({', '.join(f'{o}={getattr(self, o)!r}' for o in names)})"

    def view(self,
        size:tuple[int,int], # (w, h) of the image in pixels
        split_idx:int=1,     # 0: training, random; otherwise the deterministic view, which `annotate` undoes
        bboxes=None,         # (n, 4) boxes in pixels, for views that depend on them; None (default): no boxes
    ) -> View:
        "The view of an image"
        if split_idx != 0: return View(*self._rects(self.valid, size, bboxes), self.size)
        for _ in range(10 if self.keep else 1):
            view = self._random_view(size, bboxes)
            if not self.keep or bboxes is None or not len(bboxes) or self._holds(view, bboxes): return view
        return View(*self._rects(self.valid, size, bboxes), self.size)

    def _rects(self, look, size, bboxes):
        "The rectangles that `look` returns for image and canvas, in whole pixels, since pixels are cropped"
        src,dst = (tuple(round(float(o)) for o in r) for r in look(*size, self.size, bboxes))
        for what,(x1,y1,x2,y2),(w,h) in (('image', src, size), ('canvas', dst, self.size)):
            if not (0 <= x1 < x2 <= w and 0 <= y1 < y2 <= h): raise ValueError(
                f"{look!r} returns {(x1, y1, x2, y2)} as the rectangle of the {what}, which is {w}x{h}; expected x1 y1 "
                "x2 y2 inside of it, at least one pixel wide and high")
        return src,dst

    def _holds(self, view, bboxes):
        "Whether all of `bboxes` stay on the canvas"
        b = view.bboxes(bboxes)
        return bool((b >= -1e-3).all() and (b <= torch.tensor(self.size*2) + 1e-3).all())

    def _random_view(self, size, bboxes):
        src,dst = self._rects(self.train, size, bboxes)
        angle = random.uniform(-self.rotate, self.rotate) if self.rotate and random.random() < self.p_rotate else 0.
        return View(src, dst, self.size, random.random() < self.flip, random.random() < self.vflip, angle)

    def __call__(self, x, split_idx=None, **kwargs):
        "Transform `x`: a tuple whose first image sets the geometry for boxes, labels, points and masks; or one image"
        items = list(x) if isinstance(x, (tuple, list)) else [x]
        at = next((i for i,o in enumerate(items) if is_image(o)), None)
        if at is None:
            raise ValueError(f"JointTransform needs an image in the item, got {[type(o).__name__ for o in items]}")
        im = items[at]
        size = im.size if isinstance(im, Image.Image) else (im.shape[-1], im.shape[-2])
        view = self.view(size, split_idx, objects_of_items(items, size))
        cut,view = cut_image(im, view, exact=split_idx != 0)
        items = [lay_pixels(cut, view, self.fill) if i == at else self._follow(o, view) for i,o in enumerate(items)]
        if split_idx == 0 and self.tfms is not None: items = apply_v2(self.tfms, items)
        items = self._sanitize(items, tight=view.angle != 0 or (split_idx == 0 and self.tfms is not None))
        items[at] = TensorImage(items[at].contiguous())
        return tuple(items) if isinstance(x, (tuple, list)) else items[0]

    def _follow(self, o, view):
        "A target, moved by `view`; values without geometry are unchanged"
        if isinstance(o, TensorBBox): return as_type_of(view.bboxes(o.as_subclass(Tensor)), o)
        if isinstance(o, TensorPoint):
            p = view.points(o.as_subclass(Tensor))
            return as_type_of(swap_points(p, getattr(o, 'flip_pairs', self.flip_pairs)) if view.mirrored else p, o)
        if isinstance(o, ObjectMasks): return InstanceMasks(lay_masks(o, view))
        if isinstance(o, CachedMask): return ClassMask(lay_cached_mask(o, view, self.mask_fill))
        if isinstance(o, PILMask): o = o._tensor_cls(torch.from_numpy(np.array(o)))
        if not isinstance(o, TensorMask): return o
        cut = slice_rect(o.as_subclass(Tensor), view.src)
        if isinstance(o, InstanceMasks): return InstanceMasks(lay_pixels(cut, view, 0, nearest=True))
        return type(o)(lay_pixels(cut[None], view, self.mask_fill, nearest=True)[0])

    def _sanitize(self, items, tight):
        "Drop objects outside the canvas, with their labels, masks and points; clip boxes; points outside become nan"
        if not any(isinstance(o, (TensorBBox, TensorPoint)) for o in items): return items
        hi = torch.tensor([*self.size]*2, dtype=torch.float32)
        get = lambda cls: next((o for o in items if isinstance(o, cls) and not isinstance(o, RegionProposals)), None)
        boxes,masks,labels,keep = get(TensorBBox),get(InstanceMasks),get(BBoxLabels),None
        if boxes is not None:
            raw = boxes.as_subclass(Tensor)
            new = raw.clamp(min=0).minimum(hi)
            if masks is not None:
                has = masks.as_subclass(Tensor).flatten(1).any(1).bool()
                # the box around a rotated box is loose: recompute it from the mask
                if tight: new = torch.where(has[:,None], tight_bboxes(masks.as_subclass(Tensor)), new)
                # ignored objects need no mask
                if labels is not None: has |= labels.as_subclass(Tensor) < 0
            sides,area = new[:,2:]-new[:,:2],lambda o: (o[:,2:]-o[:,:2]).prod(1)
            keep = (sides >= 1).all(1) & (area(new) >= self.min_visible*area(raw))
            if masks is not None: keep &= has
            if keep.all(): keep = slice(None)      # do not copy masks
        def clean(o):
            if isinstance(o, RegionProposals):
                p = o.as_subclass(Tensor).clamp(min=0).minimum(hi)
                return as_type_of(p[(p[:,2:] - p[:,:2] >= 1).all(1)], o, img_size=self.size)
            if isinstance(o, TensorBBox): return as_type_of(new[keep], o, img_size=self.size)
            if isinstance(o, (BBoxLabels, InstanceMasks)):
                return o if keep is None else as_type_of(o.as_subclass(Tensor)[keep], o)
            if isinstance(o, TensorPoint):
                p = o.as_subclass(Tensor)
                if p.ndim == 3 and keep is not None: p = p[keep]
                out = ((p < 0) | (p > hi[:2])).any(-1, keepdim=True)
                return as_type_of(torch.where(out, torch.nan, p), o, img_size=self.size)
            return o
        return [clean(o) for o in items]

class TightBoxes(ItemTransform):
    """Recompute the boxes of a batch from their masks, after fastai's batch transforms, which move a box by its corners
    and leave it loose. An object outside the image gets a box without area; an ignored object keeps its box"""
    order,split_idx = 40,0   # after the geometry
    def encodes(self, b):
        kinds = PixelBBox,BBoxLabels,InstanceMasks
        bboxes,labels,masks = (next((o.as_subclass(Tensor) for o in b if type(o) is k), None) for k in kinds)
        if masks is None: return b
        tight = torch.where(labels[...,None] > 0, tight_bboxes(masks.flatten(0, 1)).view_as(bboxes), bboxes)
        return tuple(as_type_of(tight, o) if type(o) is PixelBBox else o for o in b)

class LightJitter(RandTransform):
    """Change brightness and contrast of each image of a batch, in place on the device:
    x -> (x - 1/2)*contrast + 1/2 + brightness"""
    order = 30   # after the pixels became floats in [0, 1], before `Normalize`
    @checked(max_lighting=Kind("a number from 0 to below 1", lambda o: FRACTION.ok(o) and o < 1), p=FRACTION)
    def __init__(self,
        max_lighting:float=.2,  # m in [0, 1): brightness in [-m/2, m/2], contrast in [1 - m, 1/(1 - m)]
        p:float=.75,            # probability that an image is changed
    ):
        super().__init__(p=1.)
        self.max_lighting,self.p_each = max_lighting,p

    def before_call(self,
        b,         # batch
        split_idx, # ignored
    ):
        "Draw brightness and contrast for each image of the batch"
        self.do = True
        n,m = len(b[0] if isinstance(b, (tuple, list)) else b),self.max_lighting
        on = torch.rand(n) < self.p_each
        self.contrast   = torch.where(on, torch.exp((torch.rand(n)*2 - 1)*-math.log(1-m)), 1.)
        self.brightness = torch.where(on, (torch.rand(n) - .5)*m, 0.)

    def encodes(self, x:TensorImage):
        c,b = (o.to(x.device, x.dtype).view(-1, 1, 1, 1) for o in (self.contrast, self.brightness))
        return x.mul_(c).add_(.5*(1-c) + b).clamp_(0, 1)
