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
from .laying import (apply_v2, as_type_of, colours_alone, cut_image, is_image, lay_cached_mask, lay_masks, lay_pixels,
                     objects_of_items, slice_rect, tight_bboxes)
from .mixing import Mixture, check_mixable, join_tiles, paste_objects
from .targets import swap_points
from .views import IMAGENET_GREY, VIEW, CropView, JitterView, View, range_of, view_by_name

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

MOSAIC_SCALE = range_of(number(0, 10, open=True), "(smallest, largest) scale, above 0 and below 10")

class JointTransform(ItemTransform):
    """Bring every image to `size`, with its boxes, labels, points and masks; random for training, deterministic
    otherwise. With `mosaic` or `copy_paste`, other images of the training set are mixed in: for objects with boxes, and
    with masks for `copy_paste`, in the DataLoaders of `detection_dls` and `instance_dls`. Raises `ValueError` if an
    item has no image, or targets that cannot be mixed, if a view returns a rectangle outside the image, or if `tfms`
    change the size"""
    order = 0   # before fastai's PointScaler
    @checked(train=VIEW, valid=VIEW, flip=FRACTION, vflip=FRACTION, rotate=ANGLE, p_rotate=FRACTION, tfms=FUNCTION,
             fill=FILL, mask_fill=whole(0, what="a class index, a whole number"), min_visible=FRACTION, keep=FLAG,
             flip_pairs=INDEX_PAIRS, mosaic=FRACTION, mosaic_scale=MOSAIC_SCALE, mosaic_until=FRACTION,
             copy_paste=FRACTION)
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
                                      # None (default): none. With boxes, points or masks, `TrivialAugmentWide`,
                                      # `RandAugment`, `AutoAugment` and `AugMix` use only their colour operations
        fill=IMAGENET_GREY,           # colour around the image, three numbers in 0..255
        mask_fill:int=255,            # class index around the image in a class mask; 255: void
        min_visible:float=.1,         # drop an object if less than this part of its box, or less than a pixel, remains
        keep:bool=False,              # in training, draw again if an object or marked point would leave the canvas
        flip_pairs=None,              # pairs of point indices (left, right) to swap in a mirrored image; None
                                      # (default): none, but `Keypoints` have their own
        mosaic:float=0.,              # probability that a training image is a mosaic of four
        mosaic_scale=(.4, 1.),        # (smallest, largest) scale of the images in a mosaic; 1: as the whole image fits
                                      # the canvas
        mosaic_until:float=.8,        # share of the epochs of a training after which mosaic is off, in [0, 1]
        copy_paste:float=0.,          # probability that objects of another training image are pasted into one that is
                                      # no mosaic; both are seen through `train`
    ):
        self.size = (int(size),)*2 if is_whole(size) else tuple(map(int, size))
        self.train,self.valid = view_by_name(train or CropView()),view_by_name(valid)
        self.flip,self.vflip,self.rotate,self.p_rotate,self.tfms = flip,vflip,rotate,p_rotate,colours_alone(tfms)
        self.fill,self.mask_fill,self.min_visible,self.keep = tuple(fill),mask_fill,min_visible,keep
        self.flip_pairs = [tuple(o) for o in flip_pairs or []]
        self.mosaic,self.mosaic_scale,self.mosaic_until = mosaic,mosaic_scale,mosaic_until
        self.copy_paste,self.mosaic_on = copy_paste,True
        if mosaic and min(self.size) < 4: raise ValueError(
            f"mosaic: expected a size of at least 4x4 for four images, got {self.size[0]}x{self.size[1]}")
        super().__init__()

    def __repr__(self):
        names = ('size train valid flip vflip rotate p_rotate tfms fill mask_fill min_visible keep flip_pairs '
                 'mosaic mosaic_scale mosaic_until copy_paste').split()
        return f"JointTransform({', '.join(f'{o}={getattr(self, o)!r}' for o in names)})"

    def view(self,
        size:tuple[int,int], # (w, h) of the image in pixels
        split_idx:int=1,     # 0: training, random; otherwise the deterministic view, which `annotate` undoes
        bboxes=None,         # (n, 4) boxes in pixels, for views that depend on them; None (default): no boxes
    ) -> View:
        "The view of an image"
        if split_idx != 0: return View(*self._rects(self.valid, size, bboxes, self.size), self.size)
        return self._drawn(self.train, size, bboxes, self.size)

    def _drawn(self, look, size, bboxes, out):
        "A random view by `look` on a canvas of `out`"
        for _ in range(10 if self.keep else 1):
            view = self._random_view(look, size, bboxes, out)
            if not self.keep or bboxes is None or not len(bboxes) or self._holds(view, bboxes): return view
        return View(*self._rects(self.valid, size, bboxes, out), out)

    def _rects(self, look, size, bboxes, out):
        "The rectangles that `look` returns for image and canvas, in whole pixels, since pixels are cropped"
        src,dst = (tuple(round(float(o)) for o in r) for r in look(*size, out, bboxes))
        for what,(x1,y1,x2,y2),(w,h) in (('image', src, size), ('canvas', dst, out)):
            if not (0 <= x1 < x2 <= w and 0 <= y1 < y2 <= h): raise ValueError(
                f"{look!r} returns {(x1, y1, x2, y2)} as the rectangle of the {what}, which is {w}x{h}; expected x1 y1 "
                "x2 y2 inside of it, at least one pixel wide and high")
        return src,dst

    def _holds(self, view, bboxes):
        "Whether all of `bboxes` stay on the canvas"
        b = view.bboxes(bboxes)
        return bool((b >= -1e-3).all() and (b <= torch.tensor(view.out*2) + 1e-3).all())

    def _random_view(self, look, size, bboxes, out):
        src,dst = self._rects(look, size, bboxes, out)
        angle = random.uniform(-self.rotate, self.rotate) if self.rotate and random.random() < self.p_rotate else 0.
        return View(src, dst, out, random.random() < self.flip, random.random() < self.vflip, angle)

    def __call__(self, x, split_idx=None, **kwargs):
        "Transform `x`: a tuple whose first image sets the geometry for boxes, labels, points and masks; or one image"
        x,others = (x.item, x.others) if isinstance(x, Mixture) else (x, None if split_idx == 0 and self.mixes else ())
        if others is None: raise ValueError(
            "mosaic and copy_paste mix images of a training set, which only the DataLoaders of detection_dls and "
            "instance_dls hand over: drop them from JointTransform here")
        items = list(x) if isinstance(x, (tuple, list)) else [x]
        at = self._image_at(items)
        if others: items = self._mixed(items, others)
        elif split_idx == 0: items,view = self._seen(items, self.train, self.size)
        else:
            size = self._size_of(items[at])
            view = self.view(size, split_idx, objects_of_items(items, size))
            items = self._through(items, view, exact=True)
        more = split_idx == 0 and self.tfms is not None
        if more:
            items = apply_v2(self.tfms, items)
            self._check_size(items[at])
        items = self._sanitize(items, self.size, tight=more or (not others and view.angle != 0))
        items[at] = TensorImage(items[at].contiguous())
        return tuple(items) if isinstance(x, (tuple, list)) else items[0]

    def _image_at(self, items):
        at = next((i for i,o in enumerate(items) if is_image(o)), None)
        if at is not None: return at
        raise ValueError(f"JointTransform needs an image in the item, got {[type(o).__name__ for o in items]}")

    def _size_of(self, im): return im.size if isinstance(im, Image.Image) else (im.shape[-1], im.shape[-2])

    def _check_size(self, im):
        w,h = self._size_of(im)
        if (w, h) != self.size: raise ValueError(
            f"tfms change the image from {self.size[0]}x{self.size[1]} to {w}x{h} pixels, so that images do not fit "
            "into one batch; drop what crops or resizes, and use `train`, a view such as JitterView()")

    def _seen(self, items, look, out):
        "The items on a canvas of `out`, seen through a random view by `look`, and the view"
        size = self._size_of(items[self._image_at(items)])
        view = self._drawn(look, size, objects_of_items(items, size), out)
        return self._through(items, view, exact=False),view

    def _through(self, items, view, exact):
        at = self._image_at(items)
        cut,view = cut_image(items[at], view, exact)
        return [lay_pixels(cut, view, self.fill) if i == at else self._follow(o, view) for i,o in enumerate(items)]

    # --- several images in one

    @property
    def mixes(self) -> bool:
        "Whether training images may be mixed with others"
        return self.mosaic > 0 or self.copy_paste > 0

    def draw_others(self) -> int:
        "How many other images of the training set to mix with the next one, drawn at random: 0, 1 or 3"
        if self.mosaic_on and random.random() < self.mosaic: return 3
        return int(random.random() < self.copy_paste)

    def _mixed(self, items, others):
        every = [items, *map(list, others)]
        for o in every: check_mixable(o, masks=len(others) == 1)
        if len(others) == 3: return self._mosaic(every)
        a,b = (self._whole(o, self.train, self.size) for o in every)
        return paste_objects(a, b, self.min_visible)

    def _whole(self, items, look, out):
        "The items on a canvas of `out`, without the objects that are not visible there"
        items,view = self._seen(items, look, out)
        return self._sanitize(items, out, tight=view.angle != 0)

    def _mosaic(self, every):
        "Four items, one in each quarter of the canvas around a random point"
        (w,h),(x,y) = self.size,(round(n*random.uniform(.25, .75)) for n in self.size)
        corners,sizes = [(0, 0), (x, 0), (0, y), (x, y)],[(x, y), (w-x, y), (x, h-y), (w-x, h-y)]
        tiles = [self._whole(o, self._look_into_tile, size) for o,size in zip(every, sizes)]
        return join_tiles(tiles, corners, self.size)

    def _look_into_tile(self, w, h, out, bboxes=None):
        "A random part of an image, whose scale is relative to the canvas, and not to its tile"
        fits = lambda size: min(size[0]/w, size[1]/h)
        k = random.uniform(*self.mosaic_scale)*fits(self.size)/fits(out)
        return JitterView((k, k))(w, h, out)

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

    def _sanitize(self, items, size, tight):
        "Drop objects outside the canvas, with their labels, masks and points; clip boxes; points outside become nan"
        if not any(isinstance(o, (TensorBBox, TensorPoint)) for o in items): return items
        hi = torch.tensor([*size]*2, dtype=torch.float32)
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
                return as_type_of(p[(p[:,2:] - p[:,:2] >= 1).all(1)], o, img_size=tuple(size))
            if isinstance(o, TensorBBox): return as_type_of(new[keep], o, img_size=tuple(size))
            if isinstance(o, (BBoxLabels, InstanceMasks)):
                return o if keep is None else as_type_of(o.as_subclass(Tensor)[keep], o)
            if isinstance(o, TensorPoint):
                p = o.as_subclass(Tensor)
                if p.ndim == 3 and keep is not None: p = p[keep]
                out = ((p < 0) | (p > hi[:2])).any(-1, keepdim=True)
                return as_type_of(torch.where(out, torch.nan, p), o, img_size=tuple(size))
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
