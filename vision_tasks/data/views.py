"Views: which part of an image is mapped to which part of the network's input"
from __future__ import annotations
import math, random
from dataclasses import dataclass
from functools import cached_property
import numpy as np
import torch
from torch import Tensor
from ..arguments import FRACTION, Kind, checked, choice, either, number, several, whole

__all__ = ['IMAGENET_GREY', 'FitView', 'CropView', 'JitterView', 'IoUView', 'ZoomOutView']

IMAGENET_GREY = (124, 116, 104)   # ImageNet's mean colour: zero after normalization

@dataclass(frozen=True)
class View:
    "Map the rectangle `src` of an image to the rectangle `dst` of a canvas, then flip and rotate about its centre"
    src:tuple[float,float,float,float] # x1 y1 x2 y2 in pixels of the image
    dst:tuple[float,float,float,float] # x1 y1 x2 y2 in pixels of the canvas
    out:tuple[int,int]                 # (w, h) of the canvas
    flip:bool = False                  # left and right swapped
    vflip:bool = False                 # top and bottom swapped
    angle:float = 0.                   # degrees, counter-clockwise

    @cached_property
    def matrix(self) -> np.ndarray:    # (2, 3) float64
        "Image pixels to canvas pixels, both continuous: (0, 0) is the corner of the first pixel, not its centre"
        (x1,y1,x2,y2),(u1,v1,u2,v2),(w,h) = self.src,self.dst,self.out
        sx,sy = (u2-u1)/(x2-x1),(v2-v1)/(y2-y1)
        m = np.array([[sx, 0, u1-sx*x1], [0, sy, v1-sy*y1], [0, 0, 1.]])
        if self.flip:  m = np.array([[-1, 0, w], [0, 1, 0], [0, 0, 1.]]) @ m
        if self.vflip: m = np.array([[1, 0, 0], [0, -1, h], [0, 0, 1.]]) @ m
        return (self.turn @ m)[:2]

    @property
    def turn(self) -> np.ndarray:      # (3, 3)
        "The rotation by `angle` about the centre of the canvas"
        c,s = math.cos(math.radians(self.angle)),math.sin(math.radians(self.angle))
        cx,cy = self.out[0]/2,self.out[1]/2
        return np.array([[c, s, cx-c*cx-s*cy], [-s, c, cy+s*cx-c*cy], [0, 0, 1.]])

    @property
    def mirrored(self) -> bool: return self.flip != self.vflip

    def points(self, p:Tensor) -> Tensor:        # (..., 2) -> (..., 2), nan stays nan
        "Points of the image on the canvas"
        m = torch.from_numpy(self.matrix).to(p)
        return p @ m[:,:2].T + m[:,2]

    def undo_points(self, p:Tensor) -> Tensor:   # (..., 2) -> (..., 2)
        "Points of the canvas in the image"
        m = torch.from_numpy(self.matrix).to(p)
        return (p - m[:,2]) @ torch.linalg.inv(m[:,:2]).T

    def bboxes(self, b:Tensor) -> Tensor:        # (n, 4) -> (n, 4), may reach outside the canvas
        "Boxes of the image on the canvas: the upright box around the four corners"
        if self.angle: return _around(self.points(_corners(b)))
        # without a rotation two corners are enough
        (kx,_,x),(_,ky,y) = self.matrix.tolist()
        p,q = (b*b.new_tensor([kx, ky, kx, ky]) + b.new_tensor([x, y, x, y])).split(2, -1)
        return torch.cat([p.minimum(q), p.maximum(q)], -1)

    def undo_bboxes(self, b:Tensor) -> Tensor:   # (n, 4) -> (n, 4), may reach outside the image
        "Boxes of the canvas in the image"
        return _around(self.undo_points(_corners(b)))

    def then(self, other:View) -> View:
        "This view followed by `other`, a view of its canvas; neither is flipped or rotated"
        (x1,y1,x2,y2),(u1,v1,u2,v2) = self.dst,other.src
        seen = max(x1, u1),max(y1, v1),min(x2, u2),min(y2, v2)      # on the canvas between the two
        return View(_moved(seen, self.dst, self.src), _moved(seen, other.src, other.dst), other.out)

def _moved(r, a, b):
    "Rectangle `r` under the map of rectangle `a` to `b`"
    a,b,r = (np.array(o, float).reshape(2, 2) for o in (a, b, r))
    return tuple((b[0] + (r - a[0])*(b[1] - b[0])/(a[1] - a[0])).flatten().tolist())

def _corners(b):   # (..., 4) -> (..., 4, 2)
    return b[..., [0, 1, 2, 1, 2, 3, 0, 3]].unflatten(-1, (4, 2))

def _around(p):    # (..., 4, 2) -> (..., 4)
    return torch.cat([p.amin(-2), p.amax(-2)], -1)

# --- choice of the rectangles: callables (w, h, out, bboxes) -> src, dst

class FitView:
    "The whole image, or its centre"
    @checked(method=choice('squish', 'pad', 'crop'), zoom=number(1, 100))
    def __init__(self,
        method:str='squish', # 'squish': stretch to the canvas; 'pad': fit, and pad to the aspect of the canvas; 'crop':
                             # the largest centred crop with the aspect of the canvas
        zoom:float=1.,       # 1 or above: both sides of the image are first cut to 1/zoom about its centre, so that
                             # objects are as large as random crops show them in training; the border is lost
    ):
        self.method,self.zoom = method,zoom
    def __repr__(self): return f"FitView({self.method!r}{f', zoom={self.zoom}' if self.zoom != 1 else ''})"
    def __call__(self, w, h, out, bboxes=None):
        (W,H),dst = out,(0, 0, *out)
        w,h,whole = max(1, round(w/self.zoom)),max(1, round(h/self.zoom)),(w, h)
        src = _centred(w, h, *whole)
        if self.method == 'pad':
            m = min(W/w, H/h); u,v = max(1, round(m*w)),max(1, round(m*h))
            dst = _centred(u, v, W, H)
        elif self.method == 'crop':
            m = max(W/w, H/h)
            src = _centred(max(1, round(W/m)), max(1, round(H/m)), *whole)
        return src,dst
    def largest_scale(self, w, h, out):
        "(x, y) the scale at which `out` shows an image of (w, h)"
        fit = self.zoom*out[0]/w,self.zoom*out[1]/h
        return fit if self.method == 'squish' else ((min if self.method == 'pad' else max)(fit),)*2

def _centred(w, h, W, H):
    "The rectangle of `w` x `h` at the centre of `W` x `H`"
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
    "A random crop, as in `RandomResizedCrop`"
    @checked(scale=range_of(number(1e-6, 1), "(smallest, largest) part of the area, above 0 and up to 1"), ratio=RATIO)
    def __init__(self,
        scale=(.35, 1.),  # (smallest, largest) part of the area, in (0, 1]
        ratio=(3/4, 4/3), # (smallest, largest) ratio of width to height
    ): self.scale,self.ratio = scale,ratio
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
    def largest_scale(self, w, h, out):
        "(x, y) the scale at which `out` shows the smallest square crop"
        side = math.sqrt(self.scale[0]*w*h)
        return out[0]/min(side, w),out[1]/min(side, h)

class JitterView:
    """Scale jitter: the image at `scale` times the size that fits, at a random place (Ghiasi et al., 2020,
    arXiv:2012.07177). With a range around 1, the mean size of objects in training is that in whole images; crops show
    them larger, which biases networks that predict sizes"""
    @checked(scale=range_of(number(0, 100, open=True), "(smallest, largest) scale, above 0 and below 100"),
             method=choice('pad', 'squish'))
    def __init__(self,
        scale=(.1, 2.), # (smallest, largest) factor on the size that fits the canvas
        method='pad',   # the size that fits: 'pad' keeps the aspect of the image, as in the paper, 'squish' does not
    ):
        self.scale,self.method = scale,method
    def __repr__(self): return f"JitterView(scale={self.scale}, method={self.method!r})"
    def __call__(self, w, h, out, bboxes=None):
        fit,k = (out[0]/w, out[1]/h),random.uniform(*self.scale)
        if self.method == 'pad': fit = (min(fit),)*2
        axes = [_place(n, max(1, round(k*m*n)), N) for n,m,N in zip((w, h), fit, out)]
        (x1,x2,u1,u2),(y1,y2,v1,v2) = axes
        return (x1, y1, x2, y2),(u1, v1, u2, v2)
    def largest_scale(self, w, h, out):
        "(x, y) the largest scale at which `out` shows an image of (w, h)"
        return tuple(self.scale[1]*m for m in FitView(self.method).largest_scale(w, h, out))

def _place(n, m, N):
    "On one axis, `n` pixels resized to `m` on a canvas of `N`: at a random place, or a random part that covers it"
    if m <= N: u = random.randint(0, N-m); return 0,n,u,u+m
    k = min(n, max(1, round(n*N/m))); x = random.randint(0, n-k)
    return x,x+k,0,N

class IoUView:
    """SSD's crop, which has IoU `min_iou` or more with some box whose centre is inside (Liu et al., 2015,
    arXiv:1512.02325); the whole image without boxes, or if no crop is found"""
    @checked(min_iou=MIN_IOU, ratio=RATIO, trials=whole(1, 10**6),
             scale=range_of(number(1e-6, 1), "(smallest, largest) part of a side, above 0 and up to 1"))
    def __init__(self,
        min_iou=(0., .1, .3, .5, .7, .9, None), # IoUs in [0, 1] to choose from; None among them: the whole image
        scale=(.3, 1.),                         # (smallest, largest) part of each side, in (0, 1]
        ratio=(.5, 2.),                         # (smallest, largest) ratio of width to height
        trials=40,                              # crops to try
    ):
        self.min_iou,self.scale,self.ratio,self.trials = min_iou,scale,ratio,trials
    def __repr__(self): return f"IoUView(min_iou={self.min_iou})"
    def __call__(self, w, h, out, bboxes=None):
        whole = (0, 0, w, h),(0, 0, *out)
        least = random.choice(self.min_iou)     # None: the whole image
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
    def largest_scale(self, w, h, out):
        "(x, y) the scale at which `out` shows the smallest crop"
        return out[0]/w/self.scale[0],out[1]/h/self.scale[0]

def _iou(a, b):   # (4,), (n, 4) -> (n,)
    area = lambda o: (o[..., 2:]-o[..., :2]).clip(0).prod(-1)
    inter = area(np.concatenate([np.maximum(a[:2], b[:,:2]), np.minimum(a[2:], b[:,2:])], 1))
    return inter/np.maximum(area(a)+area(b)-inter, 1e-9)

class ZoomOutView:
    "The whole image, reduced and at a random place on the canvas (SSD), or another view"
    @checked(most=number(1, 1000), p=FRACTION, other=VIEW)
    def __init__(self,
        most=4.,    # the sides are 1 to `most` times smaller
        p=.5,       # probability of zooming out
        other=None, # view otherwise, a callable or a name; None (default): `FitView()`
    ): self.most,self.p,self.other = most,p,view_by_name(other or FitView())
    def __repr__(self): return f"ZoomOutView(most={self.most}, p={self.p}, other={self.other})"
    def __call__(self, w, h, out, bboxes=None):
        if random.random() >= self.p: return self.other(w, h, out, bboxes)
        k = random.uniform(1., self.most)
        u,v = (max(1, round(n/k)) for n in out)
        x,y = random.randint(0, out[0]-u),random.randint(0, out[1]-v)
        return (0, 0, w, h),(x, y, x+u, y+v)
    @property
    def largest_scale(self): return self.other.largest_scale   # without it, as of a function, neither has this view

def view_by_name(o):
    "The `FitView` that a text names; another view as it is"
    return FitView(o) if isinstance(o, str) else o
