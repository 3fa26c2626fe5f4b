"Joint geometry: one view of a picture, laid on the network's input, moves image, boxes, points and masks alike"
from __future__ import annotations
import inspect, math, random
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors as tv
from torchvision.transforms import v2
from fastcore.basics import listify
from fastai.data.transforms import ItemTransform
from fastai.vision.augment import AffineCoordTfm, RandomResizedCropGPU, RandTransform, Resize, ResizeMethod
from fastai.vision.core import PILMask, TensorBBox, TensorImage, TensorMask, TensorPoint
from PIL import Image
from ..arguments import (FLAG, FRACTION, FUNCTION, Kind, checked, choice, either, is_number, is_whole, number, several,
                         whole)
from .blocks import (BBoxLabels, FileImage, InstanceMasks, ObjectMasks, PixelBBox, RegionProposals,
                     swap_points)

__all__ = ['JointTransform', 'FitView', 'CropView', 'JitterView', 'IoUView', 'ZoomOutView', 'LightJitter', 'TightBoxes',
           'IMAGENET_GREY']

IMAGENET_GREY = (124, 116, 104)   # ImageNet's mean colour: zero once it is normalised

@dataclass(frozen=True)
class View:
    "A rectangle of the picture, `src`, on a rectangle, `dst`, of a canvas; then flipped and turned about its centre"
    src:tuple[float,float,float,float] # x1 y1 x2 y2 in pixels of the image
    dst:tuple[float,float,float,float] # x1 y1 x2 y2 in pixels of the canvas
    out:tuple[int,int]                 # (w, h) of the canvas
    flip:bool = False                  # left and right change places
    vflip:bool = False                 # top and bottom do
    angle:float = 0.                   # degrees, counter-clockwise as seen

    @cached_property
    def matrix(self) -> np.ndarray:    # (2, 3) float64
        "Picture pixels to canvas pixels, both continuous: (0, 0) is the corner of the first pixel, not its centre"
        (x1,y1,x2,y2),(u1,v1,u2,v2),(w,h) = self.src,self.dst,self.out
        sx,sy = (u2-u1)/(x2-x1),(v2-v1)/(y2-y1)
        m = np.array([[sx, 0, u1-sx*x1], [0, sy, v1-sy*y1], [0, 0, 1.]])
        if self.flip:  m = np.array([[-1, 0, w], [0, 1, 0], [0, 0, 1.]]) @ m
        if self.vflip: m = np.array([[1, 0, 0], [0, -1, h], [0, 0, 1.]]) @ m
        return (self.turn @ m)[:2]

    @property
    def turn(self) -> np.ndarray:      # (3, 3)
        "The turn by `angle` about the centre of the canvas"
        c,s = math.cos(math.radians(self.angle)),math.sin(math.radians(self.angle))
        cx,cy = self.out[0]/2,self.out[1]/2
        return np.array([[c, s, cx-c*cx-s*cy], [-s, c, cy+s*cx-c*cy], [0, 0, 1.]])

    @property
    def mirrored(self) -> bool: return self.flip != self.vflip

    def points(self, p:Tensor) -> Tensor:        # (..., 2) -> (..., 2), nan stays nan
        "`p` of the picture on the canvas"
        m = torch.from_numpy(self.matrix).to(p)
        return p @ m[:,:2].T + m[:,2]

    def undo_points(self, p:Tensor) -> Tensor:   # (..., 2) -> (..., 2)
        "`p` of the canvas back in the picture"
        m = torch.from_numpy(self.matrix).to(p)
        return (p - m[:,2]) @ torch.linalg.inv(m[:,:2]).T

    def bboxes(self, b:Tensor) -> Tensor:        # (n, 4) -> (n, 4), may reach outside the canvas
        "`b` of the picture on the canvas: the upright box around the four corners"
        if self.angle: return _around(self.points(_corners(b)))
        # without a turn two corners are enough
        (kx,_,x),(_,ky,y) = self.matrix.tolist()
        p,q = (b*b.new_tensor([kx, ky, kx, ky]) + b.new_tensor([x, y, x, y])).split(2, -1)
        return torch.cat([p.minimum(q), p.maximum(q)], -1)

    def undo_bboxes(self, b:Tensor) -> Tensor:   # (n, 4) -> (n, 4), may reach outside the picture
        "`b` of the canvas back in the picture"
        return _around(self.undo_points(_corners(b)))

    def then(self, other:View) -> View:
        "This view followed by `other`, a view of its canvas; neither is flipped or turned"
        (x1,y1,x2,y2),(u1,v1,u2,v2) = self.dst,other.src
        seen = max(x1, u1),max(y1, v1),min(x2, u2),min(y2, v2)      # of the canvas in between
        return View(_moved(seen, self.dst, self.src), _moved(seen, other.src, other.dst), other.out)

def _moved(r, a, b):
    "Rectangle `r` where the map of rectangle `a` onto `b` takes it"
    a,b,r = (np.array(o, float).reshape(2, 2) for o in (a, b, r))
    return tuple((b[0] + (r - a[0])*(b[1] - b[0])/(a[1] - a[0])).flatten().tolist())

def _corners(b):   # (..., 4) -> (..., 4, 2)
    return b[..., [0, 1, 2, 1, 2, 3, 0, 3]].unflatten(-1, (4, 2))

def _around(p):    # (..., 4, 2) -> (..., 4)
    return torch.cat([p.amin(-2), p.amax(-2)], -1)

# --- which rectangle of the picture to look at: callables (w, h, out, bboxes) -> src, dst

class FitView:
    "The whole picture: 'squish'ed to the canvas, 'pad'ded to its shape, or the largest centred 'crop' of its shape"
    @checked(method=choice('squish', 'pad', 'crop'))
    def __init__(self, method:str='squish'):
        self.method = method
    def __repr__(self): return f"FitView({self.method!r})"
    def __call__(self, w, h, out, bboxes=None):
        (W,H),src,dst = out,(0, 0, w, h),(0, 0, *out)
        if self.method == 'pad':
            m = min(W/w, H/h); u,v = max(1, round(m*w)),max(1, round(m*h))
            dst = _centred(u, v, W, H)
        elif self.method == 'crop':
            m = max(W/w, H/h)
            src = _centred(max(1, round(W/m)), max(1, round(H/m)), w, h)
        return src,dst

def _centred(w, h, W, H):
    "The rectangle of `w` x `h` in the middle of `W` x `H`"
    x,y = (W-w)//2,(H-h)//2
    return x,y,x+w,y+h

def range_of(kind:Kind, what:str) -> Kind:
    "Two values of `kind`, the first not above the second, as a tuple"
    both = several(kind, what, n=2)
    return Kind(what, lambda o: o[0] <= o[1], convert=lambda name, o: tuple(both(name, o)))

RATIO   = range_of(number(1e-3, 1e3), "(smallest, largest) ratio of width to height, from 0.001 to 1000")
MIN_IOU = several(either(FRACTION, choice(None)), "a list of IoUs from 0 to 1, or None for the whole image", least=1)
VIEW    = either(choice('squish', 'pad', 'crop'),
                 Kind("a function (w, h, out, bboxes) -> src, dst, such as `CropView()`", callable))

class CropView:
    "A random part, as `RandomResizedCrop` takes it: `scale` of the area, `ratio` of width to height"
    @checked(scale=range_of(number(1e-6, 1), "(smallest, largest) part of the area, above 0 and up to 1"), ratio=RATIO)
    def __init__(self, scale=(.35, 1.), ratio=(3/4, 4/3)): self.scale,self.ratio = scale,ratio
    def __repr__(self): return f"CropView(scale={self.scale}, ratio={self.ratio})"
    def __call__(self, w, h, out, bboxes=None):
        for _ in range(10):
            area,r = w*h*random.uniform(*self.scale),math.exp(random.uniform(*map(math.log, self.ratio)))
            cw,ch = round(math.sqrt(area*r)),round(math.sqrt(area/r))
            if 0 < cw <= w and 0 < ch <= h: break
        else:
            if w > h: cw,ch = min(w, max(1, round(h*self.ratio[1]))),h
            else:     cw,ch = w,min(h, max(1, round(w/self.ratio[0])))
        x,y = random.randint(0, w-cw),random.randint(0, h-ch)
        return (x, y, x+cw, y+ch),(0, 0, *out)

class JitterView:
    """Scale jitter: the picture at `scale` times the size that fits, at a random place (Ghiasi et al., 2020,
    arXiv:2012.07177). `method` says what fits: 'pad', as in the paper, or 'squish'. A range around 1 shows objects in
    the mean as large as whole pictures will; crops show them larger, and a net that tells sizes learns just that"""
    @checked(scale=range_of(number(0, 100, open=True), "(smallest, largest) scale, above 0 and below 100"),
             method=choice('pad', 'squish'))
    def __init__(self, scale=(.1, 2.), method='pad'):
        self.scale,self.method = scale,method
    def __repr__(self): return f"JitterView(scale={self.scale}, method={self.method!r})"
    def __call__(self, w, h, out, bboxes=None):
        fit,k = (out[0]/w, out[1]/h),random.uniform(*self.scale)
        if self.method == 'pad': fit = (min(fit),)*2
        axes = [_place(n, max(1, round(k*m*n)), N) for n,m,N in zip((w, h), fit, out)]
        (x1,x2,u1,u2),(y1,y2,v1,v2) = axes
        return (x1, y1, x2, y2),(u1, v1, u2, v2)

def _place(n, m, N):
    "`n` pixels at `m` on a canvas of `N`: all of them somewhere on it, or the part of them that covers it"
    if m <= N: u = random.randint(0, N-m); return 0,n,u,u+m
    k = min(n, max(1, round(n*N/m))); x = random.randint(0, n-k)
    return x,x+k,0,N

class IoUView:
    """SSD's crop: a part that keeps IoU `min_iou` with some box and the centre of at least one (Liu et al., 2015,
    arXiv:1512.02325)"""
    @checked(min_iou=MIN_IOU, ratio=RATIO, trials=whole(1, 10**6),
             scale=range_of(number(1e-6, 1), "(smallest, largest) part of a side, above 0 and up to 1"))
    def __init__(self, min_iou=(0., .1, .3, .5, .7, .9, None), scale=(.3, 1.), ratio=(.5, 2.), trials=40):
        self.min_iou,self.scale,self.ratio,self.trials = min_iou,scale,ratio,trials
    def __repr__(self): return f"IoUView(min_iou={self.min_iou})"
    def __call__(self, w, h, out, bboxes=None):
        whole = (0, 0, w, h),(0, 0, *out)
        least = random.choice(self.min_iou)     # None: the whole picture
        if least is None or bboxes is None or not len(bboxes): return whole
        b = np.asarray(bboxes, dtype=np.float64)
        for _ in range(self.trials):
            cw,ch = (max(1, int(n*random.uniform(*self.scale))) for n in (w, h))
            if not self.ratio[0] <= cw/ch <= self.ratio[1]: continue
            x,y = random.randint(0, w-cw),random.randint(0, h-ch)
            c = (b[:,:2]+b[:,2:])/2
            inside = ((c > [x, y]) & (c < [x+cw, y+ch])).all(1)
            src = x,y,x+cw,y+ch
            if inside.any() and _iou(np.array(src), b[inside]).max() >= least: return src,(0, 0, *out)
        return whole

def _iou(a, b):   # (4,), (n, 4) -> (n,)
    area = lambda o: (o[..., 2:]-o[..., :2]).clip(0).prod(-1)
    inter = area(np.concatenate([np.maximum(a[:2], b[:,:2]), np.minimum(a[2:], b[:,2:])], 1))
    return inter/np.maximum(area(a)+area(b)-inter, 1e-9)

class ZoomOutView:
    """The whole picture at 1 to `most` times smaller sides, anywhere on the canvas (SSD), with probability `p`; else
    what `other` takes"""
    @checked(most=number(1, 1000), p=FRACTION, other=VIEW)
    def __init__(self, most=4., p=.5, other=None): self.most,self.p,self.other = most,p,_view(other or FitView())
    def __repr__(self): return f"ZoomOutView(most={self.most}, p={self.p}, other={self.other})"
    def __call__(self, w, h, out, bboxes=None):
        if random.random() >= self.p: return self.other(w, h, out, bboxes)
        k = random.uniform(1., self.most)
        u,v = (max(1, round(n/k)) for n in out)
        x,y = random.randint(0, out[0]-u),random.randint(0, out[1]-v)
        return (0, 0, w, h),(x, y, x+u, y+v)

def _view(o): return FitView(o) if isinstance(o, str) else o

# --- the transform

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
    "Bring every picture to `size` and let boxes, labels, points and masks follow; random when training, plain when not"
    order = 0   # before fastai's PointScaler
    @checked(train=VIEW, valid=VIEW, flip=FRACTION, vflip=FRACTION, rotate=ANGLE, p_rotate=FRACTION, tfms=FUNCTION,
             fill=FILL, mask_fill=whole(0, what="a class index, a whole number"), min_visible=FRACTION, keep=FLAG,
             flip_pairs=INDEX_PAIRS)
    def __init__(self,
        size:int|tuple[int,int]=224,  # of the network's input in pixels: (w, h), or one number for both
        train=None,                   # view when training: callable (w, h, out, bboxes) -> src, dst, or a name as of
                                      # `valid`; None: `CropView()`
        valid='squish',               # view otherwise: 'squish', 'pad', 'crop', or such a callable that is not random
        flip:float=.5,                # probability of a left-right flip when training
        vflip:float=0.,               # probability of a top-bottom flip
        rotate:float=0.,              # largest angle in degrees, both ways
        p_rotate:float=.75,           # probability of a turn
        tfms=None,                    # further torchvision.transforms.v2 transforms for training, on the canvas
        fill=IMAGENET_GREY,           # colour around the picture, 0..255
        mask_fill:int=255,            # class index around the picture in a class mask: void
        min_visible:float=.1,         # an object goes when less than this part of its box stays on the canvas, or less
                                      # than a pixel
        keep:bool=False,              # when training, look again where an object or marked point would leave the canvas
        flip_pairs=None,              # pairs of point indices (left, right) that change places in a mirrored picture;
                                      # `Keypoints` bring their own
    ):
        self.size = (int(size),)*2 if is_whole(size) else tuple(map(int, size))
        self.train,self.valid = _view(train or CropView()),_view(valid)
        self.flip,self.vflip,self.rotate,self.p_rotate,self.tfms = flip,vflip,rotate,p_rotate,tfms
        self.fill,self.mask_fill,self.min_visible,self.keep = tuple(fill),mask_fill,min_visible,keep
        self.flip_pairs = [tuple(o) for o in flip_pairs or []]
        super().__init__()

    def __repr__(self):
        names = 'size train valid flip vflip rotate p_rotate tfms fill mask_fill min_visible keep flip_pairs'.split()
        return f"JointTransform({', '.join(f'{o}={getattr(self, o)!r}' for o in names)})"

    def view(self, size:tuple[int,int], split_idx:int=1, bboxes=None) -> View:
        "The view of a picture of `size` (w, h): random for `split_idx` 0, else the plain one that `annotate` undoes"
        if split_idx != 0: return View(*self._rects(self.valid, size, bboxes), self.size)
        for _ in range(10 if self.keep else 1):
            view = self._random_view(size, bboxes)
            if not self.keep or bboxes is None or not len(bboxes) or self._holds(view, bboxes): return view
        return View(*self._rects(self.valid, size, bboxes), self.size)

    def _rects(self, look, size, bboxes):
        "`look`'s rectangles of the image and of the canvas, in whole pixels: pixels are cropped there"
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
        """`x`: a tuple whose first picture sets the geometry, and whose boxes, labels, points and masks follow it; or a
        picture alone"""
        items = list(x) if isinstance(x, (tuple, list)) else [x]
        at = next((i for i,o in enumerate(items) if _is_image(o)), None)
        if at is None:
            raise ValueError(f"JointTransform needs a picture in the item, got {[type(o).__name__ for o in items]}")
        im = items[at]
        size = im.size if isinstance(im, Image.Image) else (im.shape[-1], im.shape[-2])
        view = self.view(size, split_idx, _objects(items, size))
        cut,view = _cut(im, view, exact=split_idx != 0)
        items = [_lay(cut, view, self.fill) if i == at else self._follow(o, view) for i,o in enumerate(items)]
        if split_idx == 0 and self.tfms is not None: items = _apply_v2(self.tfms, items)
        items = self._sanitize(items, tight=view.angle != 0 or (split_idx == 0 and self.tfms is not None))
        items[at] = TensorImage(items[at].contiguous())
        return tuple(items) if isinstance(x, (tuple, list)) else items[0]

    def _follow(self, o, view):
        "A target of the picture where `view` brings it; what has no geometry as it is"
        if isinstance(o, TensorBBox): return _like(view.bboxes(o.as_subclass(Tensor)), o)
        if isinstance(o, TensorPoint):
            p = view.points(o.as_subclass(Tensor))
            return _like(swap_points(p, getattr(o, 'flip_pairs', self.flip_pairs)) if view.mirrored else p, o)
        if isinstance(o, ObjectMasks): return InstanceMasks(_lay_masks(o, view))
        if isinstance(o, PILMask): o = o._tensor_cls(torch.from_numpy(np.array(o)))
        if not isinstance(o, TensorMask): return o
        cut = _slice(o.as_subclass(Tensor), view.src)
        if isinstance(o, InstanceMasks): return InstanceMasks(_lay(cut, view, 0, nearest=True))
        return type(o)(_lay(cut[None], view, self.mask_fill, nearest=True)[0])

    def _sanitize(self, items, tight):
        "Objects that left go, with their labels, masks and points; boxes are clipped; points that left are nan"
        if not any(isinstance(o, (TensorBBox, TensorPoint)) for o in items): return items
        hi = torch.tensor([*self.size]*2, dtype=torch.float32)
        get = lambda cls: next((o for o in items if isinstance(o, cls) and not isinstance(o, RegionProposals)), None)
        boxes,masks,labels,keep = get(TensorBBox),get(InstanceMasks),get(BBoxLabels),None
        if boxes is not None:
            raw = boxes.as_subclass(Tensor)
            new = raw.clamp(min=0).minimum(hi)
            if masks is not None:
                has = masks.as_subclass(Tensor).flatten(1).any(1).bool()
                # the box around a turned box is loose: where there is a mask it is drawn anew
                if tight: new = torch.where(has[:,None], _mask_bboxes(masks.as_subclass(Tensor)), new)
                # what is to be ignored need not have one
                if labels is not None: has |= labels.as_subclass(Tensor) < 0
            sides,area = new[:,2:]-new[:,:2],lambda o: (o[:,2:]-o[:,:2]).prod(1)
            keep = (sides >= 1).all(1) & (area(new) >= self.min_visible*area(raw))
            if masks is not None: keep &= has
            if keep.all(): keep = slice(None)      # masks are long to copy
        def clean(o):
            if isinstance(o, RegionProposals):
                p = o.as_subclass(Tensor).clamp(min=0).minimum(hi)
                return _like(p[(p[:,2:] - p[:,:2] >= 1).all(1)], o, img_size=self.size)
            if isinstance(o, TensorBBox): return _like(new[keep], o, img_size=self.size)
            if isinstance(o, (BBoxLabels, InstanceMasks)):
                return o if keep is None else _like(o.as_subclass(Tensor)[keep], o)
            if isinstance(o, TensorPoint):
                p = o.as_subclass(Tensor)
                if p.ndim == 3 and keep is not None: p = p[keep]
                out = ((p < 0) | (p > hi[:2])).any(-1, keepdim=True)
                return _like(torch.where(out, torch.nan, p), o, img_size=self.size)
            return o
        return [clean(o) for o in items]

def _objects(items, size):
    "(n, 4) what a view should hold: the boxes, else the marked points as boxes without area; as far as in the picture"
    for o in items:
        if isinstance(o, TensorBBox) and not isinstance(o, RegionProposals):
            return o.as_subclass(Tensor).clamp(min=0).minimum(torch.tensor([*size, *size]))
    for o in items:
        if isinstance(o, TensorPoint):
            p = o.as_subclass(Tensor).reshape(-1, 2)
            return p[((p >= 0) & (p <= torch.tensor(size))).all(1)].repeat(1, 2)

def _is_image(o): return isinstance(o, (Image.Image, TensorImage)) and not isinstance(o, PILMask)

def _like(t, o, **meta):
    "`t` as the type of `o`, with its metadata"
    res = t.as_subclass(type(o))
    for k,v in {**getattr(o, '__dict__', {}), **meta}.items(): setattr(res, k, v)
    return res

def _slice(t, src):
    x1,y1,x2,y2 = src
    return t[..., y1:y2, x1:x2]

def _cut(im, view, exact):
    """(c, h, w) uint8: the part of `im` that `view` looks at, and the view. A file is decoded no finer than needed;
    from a reduced JPEG the part is resampled to its size on the canvas at once, so that its edges may fall between
    pixels. Unless the view must be `exact`, its left and upper edge move out to whole pixels of the reduced image"""
    if isinstance(im, TensorImage): return _slice(im.as_subclass(Tensor), view.src),view
    if not isinstance(im, FileImage) or im.loaded: return v2.functional.pil_to_tensor(im.crop(view.src)),view
    (x1,y1,x2,y2),(u1,v1,u2,v2_),(w,h) = view.src,view.dst,im.size
    t = im.pixels((math.ceil(w*(u2-u1)/(x2-x1)), math.ceil(h*(v2_-v1)/(y2-y1))))
    k = _reduction((w, h), (t.shape[2], t.shape[1]))
    if k == 1: return _slice(t, view.src),view
    # the columns and rows that reach beyond the edge are the last ones of the file, before it is turned
    dx,dy = (t.shape[2]*k - w)*(im.exif in (2, 3, 6, 7)),(t.shape[1]*k - h)*(im.exif in (3, 4, 7, 8))
    if not exact: x1,y1 = max((x1+dx)//k*k - dx, 0),max((y1+dy)//k*k - dy, 0)
    box = (x1+dx)/k,(y1+dy)/k,(x2+dx)/k,(y2+dy)/k
    return _reduce(t, box, (u2-u1, v2_-v1)),replace(view, src=(x1, y1, x2, y2))

def _reduce(t, box, size):   # (3, h, w) uint8; x1 y1 x2 y2, fractions of pixels allowed; (w, h)
    "What is in `box`, resized"
    x1,y1,x2,y2 = box
    if not (x1.is_integer() and y1.is_integer()):
        im = Image.fromarray(t.permute(1, 2, 0).numpy())
        return v2.functional.pil_to_tensor(im.resize(size, Image.Resampling.BILINEAR, box))
    # sooner, but a scale can only be told from the first pixel on; the output may have a pixel more than asked for
    cut = t[:, int(y1):math.ceil(y2), int(x1):math.ceil(x2)]
    scale = tuple(n/(b-a)*(1 + 1e-9) for n,a,b in ((size[1], y1, y2), (size[0], x1, x2)))
    res = F.interpolate(cut[None], scale_factor=scale, mode='bilinear', antialias=True, recompute_scale_factor=False)
    return res[0, :, :size[1], :size[0]]

def _reduction(size, decoded):   # (w, h), (w, h) -> 1, 2, 4 or 8
    """How many pixels of a JPEG of `size` a column or row of its `decoded` form covers. This is not the ratio of the
    sizes: libjpeg's last column and row reach beyond the edge"""
    return next(k for k in (1, 2, 4, 8) if all(-(-n//k) == m for n,m in zip(size, decoded)))

def _lay(cut, view, fill, nearest=False):
    "(c, h, w) of what the view looks at on the canvas of the view, the rest `fill`"
    (u1,v1,u2,v2_),(w,h) = view.dst,view.out
    mode = v2.InterpolationMode.NEAREST_EXACT if nearest else v2.InterpolationMode.BILINEAR
    size = [v2_-v1, u2-u1]
    t = v2.functional.resize(cut, size, mode, antialias=True) if len(cut) else cut.new_zeros(0, *size)
    if (u2-u1, v2_-v1) != (w, h):
        ground = torch.as_tensor(fill, dtype=t.dtype).reshape(-1, 1, 1).expand(len(t), h, w).clone()
        ground[:, v1:v2_, u1:u2] = t
        t = ground
    dims = [d for d,on in ((-1, view.flip), (-2, view.vflip)) if on]
    if dims: t = t.flip(dims)
    return _turn(t, view, fill, nearest) if view.angle and len(t) else t

def _lay_masks(o, view) -> Tensor:   # (n, h, w) uint8
    """The masks of `o` on the canvas of `view`: polygons are moved by their corners and filled there; others, and what
    reaches out of the picture, are decoded, and each pixel of the canvas takes the one under its centre"""
    (w,h),size,under = view.out,o.a.size,None
    res  = np.zeros((len(o), h, w), np.uint8)
    seen = view.bboxes(torch.from_numpy(o.a.bboxes)).numpy()
    seen = ((seen[:,2:] > 0) & (seen[:,:2] < [w, h])).all(1)
    for i in np.flatnonzero(seen).tolist():
        polygons = o.polygons(i)
        if polygons is None or any((p < 0).any() or (p > size).any() for p in polygons):
            rows,cols,inside = under = under or _under(view, size)
            if isinstance(o.a.masks[i], dict) and not view.angle: _lay_columns(res[i], *o.columns(i), *under)
            else: res[i] = o.decode(i)[rows, cols] & inside
        else:
            for p in polygons: _fill_polygon(res[i], p@view.matrix[:,:2].T + view.matrix[:,2])
    # a cut that is turned leaves corners empty, over which polygons would reach
    if view.angle and view.src != (0, 0, *size): res &= (under or _under(view, size))[2]
    return torch.from_numpy(res)

def _lay_columns(canvas, first, some, rows, cols, inside):   # (h, w) uint8, ..., as of `_under` without a turn
    "The same for the columns of a picture that hold some of an object: `some`, from the `first` on"
    on = np.flatnonzero((cols >= first) & (cols < first + len(some)))
    if len(on): canvas[:,on] = some[cols[on] - first][:,rows[:,0]].T & inside[:,on]

def _under(view, size):
    """Row and column of the pixel of a picture of `size` under the centre of each pixel of the canvas, and whether
    there is one; they broadcast to (h, w)"""
    (x1,y1,x2,y2),((a,b,_),(c,d,_)) = view.src,view.matrix
    m = np.array([[d, -b], [-c, a]])/(a*d - b*c)
    m = np.column_stack([m, -m @ view.matrix[:,2]])
    x,y = np.arange(view.out[0]) + .5,np.arange(view.out[1])[:,None] + .5
    # without a turn a row of columns and a column of rows
    u,v = (m[0,0]*x + m[0,2],m[1,1]*y + m[1,2]) if not view.angle else (m[i,0]*x + m[i,1]*y + m[i,2] for i in (0, 1))
    cols,rows = (np.floor(o).astype(int).clip(0, k-1) for o,k in zip((u, v), size))
    return rows,cols,(u >= x1) & (u < x2) & (v >= y1) & (v < y2)

def _fill_polygon(canvas, p):   # (h, w) uint8, (m, 2) pixels of it
    "Add to `canvas`, as 1, the pixels whose centres are inside polygon `p` by the even-odd rule"
    (h,w),q = canvas.shape,np.roll(p, -1, 0)
    # the rows whose centres an edge crosses, its upper end included, its lower not
    ends = np.ceil(np.stack([p[:,1], q[:,1]]) - .5).astype(int).clip(0, h)
    first,n = ends.min(0),abs(ends[1] - ends[0])
    slope = (q[:,0] - p[:,0])/np.where(n, q[:,1] - p[:,1], 1)
    def crossings(i):   # (k,) edges -> rows, columns: from there on all pixels of the row change sides
        edge = np.repeat(i, n[i])
        row  = np.arange(len(edge)) - np.repeat(np.cumsum(n[i]) - n[i] - first[i], n[i])
        x    = p[edge,0] + (row + .5 - p[edge,1])*slope[edge]
        return row,np.ceil(x - .5).astype(int).clip(0, w)
    edges,some = np.arange(len(p)),2**18   # crossings at a time, so that memory is bounded whatever the polygon
    if n.sum() <= some: row,col = crossings(edges)
    else:
        odd = np.zeros(h*(w + 1), bool)
        for row,col in map(crossings, np.split(edges, np.flatnonzero(np.diff(n.cumsum()//some)) + 1)):
            odd ^= np.bincount(row*(w + 1) + col, minlength=len(odd))%2 > 0
        row,col = np.divmod(np.flatnonzero(odd), w + 1)
    if not len(row): return
    top,left,right = row.min(),col.min(),col.max()
    k,size = right-left+1,row.max()+1-top
    sides = np.bincount((row-top)*k + col-left, minlength=size*k).reshape(size, k).cumsum(1, dtype=np.uint8) & 1
    canvas[top:top+size, left:right] |= sides[:,:-1]

def _turn(t, view, fill, nearest):
    """`t` (c, h, w) turned as `view` says. v2's `affine` does the same and takes longer: it carries a mask for the
    fill, and multiplies matrices for each pixel of a grid that is the sum of a row and a column"""
    (c,s),(h,w) = view.turn[0,:2].tolist(),t.shape[-2:]
    x,y = torch.arange(w)[:,None] - (w-1)/2,torch.arange(h)[:,None,None] - (h-1)/2
    # the turn back, x and y in grid_sample's -1..1
    grid = x*torch.tensor([c*2/w, s*2/h]) + y*torch.tensor([-s*2/w, c*2/h])
    ground = torch.as_tensor(fill, dtype=torch.float32).reshape(-1, 1, 1)
    mode = 'nearest' if nearest else 'bilinear'
    out = F.grid_sample(t.float().sub_(ground)[None], grid[None], mode, 'zeros', align_corners=False)[0]
    return out.add_(ground).round_().to(t.dtype)   # what comes from outside is 0 above the ground

def _mask_bboxes(m):   # (n, h, w) -> (n, 4), zeros for an empty mask
    "The tight box of each mask"
    out = []
    for dim in (1, 2):       # rows folded away: x; columns folded away: y
        on = m.bool().any(dim)
        first = on.int().argmax(1)
        last  = on.shape[1] - on.flip(1).int().argmax(1)
        out.append((first, torch.where(on.any(1), last, 0)))
    (x1,x2),(y1,y2) = out
    return torch.stack([x1, y1, x2, y2], 1).float()

def _no_clamp(cls):
    "torchvision moves what leaves the canvas to its border; where possible not, for `_sanitize` must see it outside"
    return dict(clamping_mode=None) if 'clamping_mode' in inspect.signature(cls.__new__).parameters else {}

def _apply_v2(tfms, items):
    "v2 transforms on the picture and all that follows it; they see tv_tensors, the caller gets its own types back"
    canvas = items[next(i for i,o in enumerate(items) if type(o) is Tensor and o.ndim == 3)].shape[-2:]
    def wrap(o):
        t = o.as_subclass(Tensor) if isinstance(o, Tensor) else o
        if type(o) is Tensor and o.ndim == 3: return tv.Image(t)
        if isinstance(o, TensorBBox):
            return tv.BoundingBoxes(t, format='XYXY', canvas_size=canvas, **_no_clamp(tv.BoundingBoxes))
        if isinstance(o, TensorPoint): return tv.KeyPoints(t, canvas_size=canvas, **_no_clamp(tv.KeyPoints))
        if isinstance(o, TensorMask): return tv.Mask(t)
        return None
    moved = tfms([wrap(o) for o in items])
    def back(o, m):
        if m is None: return o
        return m.as_subclass(Tensor) if type(o) is Tensor else _like(m.as_subclass(Tensor), o)
    return [back(o, m) for o,m in zip(items, moved)]

class TightBoxes(ItemTransform):
    """Draws the boxes of a batch anew around their masks, after fastai's batch transforms, which move a box by its
    corners and leave it loose. An object that left the picture has a box without area then; one to be ignored keeps its
    box"""
    order,split_idx = 40,0   # after the geometry
    def encodes(self, b):
        kinds = PixelBBox,BBoxLabels,InstanceMasks
        bboxes,labels,masks = (next((o.as_subclass(Tensor) for o in b if type(o) is k), None) for k in kinds)
        if masks is None: return b
        tight = torch.where(labels[...,None] > 0, _mask_bboxes(masks.flatten(0, 1)).view_as(bboxes), bboxes)
        return tuple(_like(tight, o) if type(o) is PixelBBox else o for o in b)

# --- fastai's transforms: what they do to the validation set, and which of them coordinates cannot follow

def batch_geometry(
    batch_tfms,       # fastai's batch transforms, or None for `LightJitter()`
    coords:str=None,  # what the targets hold: 'points', one 'box', 'boxes'; None where they are masks or labels
) -> list:
    """The batch transforms of a task's block. Those that move pixels do so about the edges of the image, as coordinates
    are measured (`align_corners=False`); fastai's default moves pixels by their centers, and is up to half a pixel off.
    Raises `ValueError` for transforms that `coords` cannot follow"""
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
    size:tuple[int,int],  # (w, h) of the image that it is given
) -> View|None:           # None where it does not change the geometry
    "What `tfm` does to an image of the validation set; `ValueError` where that cannot be undone"
    if isinstance(tfm, JointTransform): return tfm.view(size)
    if type(tfm) is Resize: return _resize_view(tfm, size)
    if isinstance(tfm, AffineCoordTfm):   # its `split_idx` is that of the last batch
        return None if tfm.size is None else _grid_view((0, 0, *size), _wh(tfm.size), tfm.align_corners)
    if isinstance(tfm, RandomResizedCropGPU):
        tfm.before_call(torch.empty(1, 1, *size[::-1]), 1)
        (y,x),(h,w) = tfm.tl,tfm.cp_size
        return _grid_view((x, y, x+w, y+h), _wh(tfm.size), True)    # what `affine_coord` does by default
    if getattr(tfm, 'split_idx', None) != 0 and (hasattr(tfm, 'size') or 'Crop' in type(tfm).__name__):
        raise ValueError(f"{type(tfm).__name__} cannot be undone, so predictions in pixels do not come back to the "
                         "image file: use JointTransform, fastai's Resize, or aug_transforms(size=...)")

def _wh(size): return (size, size) if isinstance(size, int) else (size[1], size[0])   # fastai's (h, w)

def _grid_view(src, out, align_corners):
    "`src` resized to `out` by torch's `grid_sample`; with `align_corners` the centers of the corner pixels meet"
    if not align_corners: return View(src, (0, 0, *out), out)
    r = [(n-1)/max(m-1, 1) for n,m in zip((src[2]-src[0], src[3]-src[1]), out)]
    x,y = (src[i] + .5 - r[i]/2 for i in (0, 1))
    return View((x, y, x + r[0]*out[0], y + r[1]*out[1]), (0, 0, *out), out)

def _resize_view(tfm, size):
    "fastai's `Resize` for the validation set as a view: a centered window of the network's aspect is cut, and scaled"
    (w,h),(W,H) = size,tfm.size     # fastai takes (h, w) and keeps (w, h)
    if tfm.method == ResizeMethod.Squish: return View(*FitView('squish')(w, h, (W, H)), (W, H))
    m = (max if tfm.method == ResizeMethod.Pad else min)(w/W, h/H)
    cw,ch = int(m*W),int(m*H)
    x,y = int((w-cw)/2),int((h-ch)/2)
    return View((x, y, x+cw, y+ch), (0, 0, W, H), (W, H))

# --- light

class LightJitter(RandTransform):
    """Brightness and contrast of each picture of a batch, linear in the pixel values, in place on the device:
    x -> (x - 1/2)*contrast + 1/2 + brightness"""
    order = 30   # after the pixels became floats in 0..1, before `Normalize`
    @checked(max_lighting=Kind("a number from 0 to below 1", lambda o: FRACTION.ok(o) and o < 1), p=FRACTION)
    def __init__(self,
        max_lighting:float=.2,  # brightness within +- half of it, contrast between 1 - it and 1/(1 - it)
        p:float=.75,            # probability that a picture is changed
    ):
        super().__init__(p=1.)
        self.max_lighting,self.p_each = max_lighting,p

    def before_call(self, b, split_idx):
        self.do = True
        n,m = len(b[0] if isinstance(b, (tuple, list)) else b),self.max_lighting
        on = torch.rand(n) < self.p_each
        self.contrast   = torch.where(on, torch.exp((torch.rand(n)*2 - 1)*-math.log(1-m)), 1.)
        self.brightness = torch.where(on, (torch.rand(n) - .5)*m, 0.)

    def encodes(self, x:TensorImage):
        c,b = (o.to(x.device, x.dtype).view(-1, 1, 1, 1) for o in (self.contrast, self.brightness))
        return x.mul_(c).add_(.5*(1-c) + b).clamp_(0, 1)
