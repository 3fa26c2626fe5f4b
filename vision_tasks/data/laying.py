"Pixels, boxes, points and masks on the canvas of a view"
from __future__ import annotations
import inspect, math
from copy import copy
from dataclasses import replace
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import tv_tensors as tv
from torchvision.transforms import v2
from fastai.vision.core import PILMask, TensorBBox, TensorImage, TensorMask, TensorPoint
from PIL import Image
from .items import CachedImage, FileImage, RegionProposals

__all__ = []

def objects_of_items(items, size):
    "(n, 4) boxes for the choice of a view, clipped to the image; without boxes, the marked points, with area 0"
    for o in items:
        if isinstance(o, TensorBBox) and not isinstance(o, RegionProposals):
            return o.as_subclass(Tensor).clamp(min=0).minimum(torch.tensor([*size, *size]))
    for o in items:
        if isinstance(o, TensorPoint):
            p = o.as_subclass(Tensor).reshape(-1, 2)
            return p[((p >= 0) & (p <= torch.tensor(size))).all(1)].repeat(1, 2)

def is_image(o):
    "Whether an item is an image, but no mask"
    return isinstance(o, (Image.Image, TensorImage)) and not isinstance(o, PILMask)

def as_type_of(t, o, **meta):
    "`t` as the type of `o`, with its metadata"
    res = t.as_subclass(type(o))
    for k,v in {**getattr(o, '__dict__', {}), **meta}.items(): setattr(res, k, v)
    return res

def slice_rect(t, src):
    "The part (..., y1:y2, x1:x2) of `t` for `src`, (x1, y1, x2, y2) in whole pixels"
    x1,y1,x2,y2 = src
    return t[..., y1:y2, x1:x2]

def cut_image(im, view, exact):
    """(c, h, w) uint8 pixels of the rectangle `view.src` of `im`, and the view. A JPEG is decoded no larger than
    needed; from a reduced JPEG the rectangle is resampled to its size on the canvas in one step, since its edges may
    lie between pixels. If the view need not be `exact`, its left and upper edges move out to whole reduced pixels"""
    if isinstance(im, TensorImage): return slice_rect(im.as_subclass(Tensor), view.src),view
    if isinstance(im, CachedImage) and not im.loaded: return _cut_cached(im, view, exact)
    if not isinstance(im, FileImage) or im.loaded: return v2.functional.pil_to_tensor(im.crop(view.src)),view
    (x1,y1,x2,y2),(u1,v1,u2,v2_),(w,h) = view.src,view.dst,im.size
    t = im.pixels((math.ceil(w*(u2-u1)/(x2-x1)), math.ceil(h*(v2_-v1)/(y2-y1))))
    k,dx,dy = reduction_of(im, t)
    if k == 1: return slice_rect(t, view.src),view
    if not exact: x1,y1 = max((x1+dx)//k*k - dx, 0),max((y1+dy)//k*k - dy, 0)
    box = (x1+dx)/k,(y1+dy)/k,(x2+dx)/k,(y2+dy)/k
    return _reduce(t, box, (u2-u1, v2_-v1)),replace(view, src=(x1, y1, x2, y2))

def _cut_cached(im, view, exact):
    "`cut_image` of cached pixels; where the view shows more than a reduced image has, from the file"
    t,(w,h),(x1,y1,x2,y2) = im.cached_pixels(),im.size,view.src
    if im.whole: return slice_rect(t, view.src),view
    size,sx,sy = (view.dst[2] - view.dst[0], view.dst[3] - view.dst[1]),t.shape[2]/w,t.shape[1]/h
    if size[0] > (x2-x1)*sx or size[1] > (y2-y1)*sy: return cut_image(im.original(), view, exact)
    left,top = int(x1*sx),int(y1*sy)
    cut = t[:, top:math.ceil(y2*sy), left:math.ceil(x2*sx)]
    box = x1*sx - left,y1*sy - top,min(x2*sx - left, cut.shape[2]),min(y2*sy - top, cut.shape[1])
    return _reduce(cut, box, size),view

def _reduce(t, box, size):   # (3, h, w) uint8; x1 y1 x2 y2, fractions of pixels allowed; (w, h)
    "The content of `box`, resized"
    x1,y1,x2,y2 = box
    if not (x1.is_integer() and y1.is_integer()):
        im = Image.fromarray(t.permute(1, 2, 0).numpy())
        return v2.functional.pil_to_tensor(im.resize(size, Image.Resampling.BILINEAR, box))
    # faster, but `interpolate` scales from the first pixel on; its output may be one pixel too large
    cut = t[:, int(y1):math.ceil(y2), int(x1):math.ceil(x2)]
    scale = tuple(n/(b-a)*(1 + 1e-9) for n,a,b in ((size[1], y1, y2), (size[0], x1, x2)))
    res = F.interpolate(cut[None], scale_factor=scale, mode='bilinear', antialias=True, recompute_scale_factor=False)
    return res[0, :, :size[1], :size[0]]

def reduction_of(im, t):   # FileImage, its decoded pixels (3, h, w) -> k, dx, dy
    "How many pixels of the file one of `t` covers in each direction, and how far the first ones reach beyond the edge"
    (w,h),(rows,cols) = im.size,t.shape[1:]
    k = _reduction((w, h), (cols, rows))
    # the columns and rows that reach beyond the edge are the last ones of the file, before its EXIF orientation
    return k,(cols*k - w)*(im.exif in (2, 3, 6, 7)),(rows*k - h)*(im.exif in (3, 4, 7, 8))

def _reduction(size, decoded):   # (w, h), (w, h) -> 1, 2, 4 or 8
    """How many pixels of a JPEG of `size` one pixel of its `decoded` form covers, in each direction. This is not the
    ratio of the sizes, since libjpeg's last column and row reach beyond the edge"""
    return next(k for k in (1, 2, 4, 8) if all(-(-n//k) == m for n,m in zip(size, decoded)))

def lay_pixels(cut, view, fill, nearest=False):
    "(c, h, w) canvas of `view` with the pixels `cut`, the rest `fill`"
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

def lay_masks(o, view) -> Tensor:   # (n, h, w) uint8
    """The masks of `o` on the canvas of `view`. The vertices of polygons are mapped and filled there; other masks, and
    polygons that reach outside the image, are decoded, and each pixel of the canvas takes the one under its centre"""
    (w,h),size,under = view.out,o.a.size,None
    res  = np.zeros((len(o), h, w), np.uint8)
    seen = view.bboxes(torch.tensor(o.a.bboxes)).numpy()
    seen = ((seen[:,2:] > 0) & (seen[:,:2] < [w, h])).all(1)
    for i in np.flatnonzero(seen).tolist():
        polygons = o.polygons(i)
        if polygons is None or any((p < 0).any() or (p > size).any() for p in polygons):
            rows,cols,inside = under = under or _under(view, size)
            if isinstance(o.a.masks[i], dict) and not view.angle: _lay_columns(res[i], *o.columns(i), *under)
            else: res[i] = o.decode(i)[rows, cols] & inside
        else:
            for p in polygons: _fill_polygon(res[i], p@view.matrix[:,:2].T + view.matrix[:,2])
    # a rotated crop leaves empty corners, which polygons must not cover
    if view.angle and view.src != (0, 0, *size): res &= (under or _under(view, size))[2]
    return torch.from_numpy(res)

def _lay_columns(canvas, first, some, rows, cols, inside):   # (h, w) uint8, ..., as in `_under` without a rotation
    "The same for an RLE, from the columns `some` of the object, which begin at column `first`"
    on = np.flatnonzero((cols >= first) & (cols < first + len(some)))
    if len(on): canvas[:,on] = some[cols[on] - first][:,rows[:,0]].T & inside[:,on]

def _under(view, size):
    """Row and column of the pixel of an image of `size` under the centre of each pixel of the canvas, and whether it
    exists; they broadcast to (h, w)"""
    (x1,y1,x2,y2),((a,b,_),(c,d,_)) = view.src,view.matrix
    m = np.array([[d, -b], [-c, a]])/(a*d - b*c)
    m = np.column_stack([m, -m @ view.matrix[:,2]])
    x,y = np.arange(view.out[0]) + .5,np.arange(view.out[1])[:,None] + .5
    # without a rotation, one row of columns and one column of rows
    u,v = (m[0,0]*x + m[0,2],m[1,1]*y + m[1,2]) if not view.angle else (m[i,0]*x + m[i,1]*y + m[i,2] for i in (0, 1))
    cols,rows = (np.floor(o).astype(int).clip(0, k-1) for o,k in zip((u, v), size))
    return rows,cols,(u >= x1) & (u < x2) & (v >= y1) & (v < y2)

def _fill_polygon(canvas, p):   # (h, w) uint8, (m, 2) pixels of it
    "Set the pixels of `canvas` whose centres are inside polygon `p` to 1 (even-odd rule)"
    (h,w),q = canvas.shape,np.roll(p, -1, 0)
    # the rows whose centres an edge crosses, including its upper end and excluding its lower
    ends = np.ceil(np.stack([p[:,1], q[:,1]]) - .5).astype(int).clip(0, h)
    first,n = ends.min(0),abs(ends[1] - ends[0])
    slope = (q[:,0] - p[:,0])/np.where(n, q[:,1] - p[:,1], 1)
    def crossings(i):   # (k,) edges -> rows, columns: from there on inside and outside are swapped
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

def lay_cached_mask(o, view, fill) -> Tensor:   # (h, w)
    """The class mask of `o`, a `CachedMask`, on the canvas of `view`: each pixel of the canvas takes the stored one
    nearest to its centre; without a step these are the pixels of the file"""
    if o.step == 1: return lay_pixels(slice_rect(o.pixels, view.src)[None], view, fill, nearest=True)[0]
    (x1,y1,x2,y2),(u1,v1,u2,v2_) = view.src,view.dst
    at = ((a + (np.arange(n) + .5)*(b - a)/n)//o.step for a,b,n in ((y1, y2, v2_-v1), (x1, x2, u2-u1)))
    rows,cols = (torch.from_numpy(i.astype(int).clip(max=k-1)) for i,k in zip(at, o.pixels.shape))
    return lay_pixels(o.pixels[rows][:,cols][None], view, fill, nearest=True)[0]

def _turn(t, view, fill, nearest):
    """Rotate `t` (c, h, w) by the angle of `view`. v2's `affine` does the same but is slower: it transforms a mask for
    the fill, and multiplies a matrix for each pixel of a grid that is the sum of a row and a column"""
    (c,s),(h,w) = view.turn[0,:2].tolist(),t.shape[-2:]
    x,y = torch.arange(w)[:,None] - (w-1)/2,torch.arange(h)[:,None,None] - (h-1)/2
    # the inverse rotation, x and y in [-1, 1] for grid_sample
    grid = x*torch.tensor([c*2/w, s*2/h]) + y*torch.tensor([-s*2/w, c*2/h])
    ground = torch.as_tensor(fill, dtype=torch.float32).reshape(-1, 1, 1)
    mode = 'nearest' if nearest else 'bilinear'
    out = F.grid_sample(t.float().sub_(ground)[None], grid[None], mode, 'zeros', align_corners=False)[0]
    return out.add_(ground).round_().to(t.dtype)   # pixels from outside are 0, and become the fill

def tight_bboxes(m):   # (n, h, w) -> (n, 4), zeros for an empty mask
    "The tight box of each mask"
    out = []
    for dim in (1, 2):       # over rows: x; over columns: y
        on = m.bool().any(dim)
        first = on.int().argmax(1)
        last  = on.shape[1] - on.flip(1).int().argmax(1)
        out.append((first, torch.where(on.any(1), last, 0)))
    (x1,x2),(y1,y2) = out
    return torch.stack([x1, y1, x2, y2], 1).float()

def _no_clamp(cls):
    "Keep torchvision, where possible, from clamping to the canvas: `_sanitize` must see what is outside"
    return dict(clamping_mode=None) if 'clamping_mode' in inspect.signature(cls.__new__).parameters else {}

def apply_v2(tfms, items):
    "Apply v2 transforms to the image and its targets, which are tv_tensors inside and keep their types outside"
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
        return m.as_subclass(Tensor) if type(o) is Tensor else as_type_of(m.as_subclass(Tensor), o)
    return [back(o, m) for o,m in zip(items, moved)]

# --- v2's automatic augmentation, which refuses boxes, points and masks

_AUTOMATIC = v2.AutoAugment,v2.RandAugment,v2.TrivialAugmentWide,v2.AugMix
_GEOMETRIC = {'ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate'}

def colours_alone(tfms):
    """`tfms` with v2's automatic augmentation, in containers such as `v2.Compose` too, replaced by `ColourOperations`,
    since it takes no boxes, points and masks. Raises `ValueError` if it has geometric operations only"""
    if isinstance(tfms, _AUTOMATIC): return ColourOperations(tfms)
    inner = getattr(tfms, 'transforms', None)
    if not isinstance(inner, (list, tuple, nn.ModuleList)): return tfms
    changed = [colours_alone(o) for o in inner]
    if all(a is b for a,b in zip(changed, inner)): return tfms
    res = copy(tfms)
    if isinstance(inner, nn.ModuleList): res._modules,changed = dict(res._modules),nn.ModuleList(changed)
    res.transforms = changed
    return res

def _with_colours(tfm):
    "A copy of v2's automatic augmentation `tfm` without its geometric operations"
    res = copy(tfm)
    for k in ('_AUGMENTATION_SPACE', '_PARTIAL_AUGMENTATION_SPACE'):
        if not hasattr(tfm, k): continue
        kept = {name: o for name,o in getattr(tfm, k).items() if name not in _GEOMETRIC}
        if not kept: raise ValueError(f"tfms: {tfm} has geometric operations only, which do not move boxes, points and "
                                      "masks; use `rotate` of JointTransform or v2.RandomAffine")
        setattr(res, k, kept)
    if hasattr(tfm, '_policies'):
        res._policies = [tuple(o for o in p if o[0] not in _GEOMETRIC) for p in tfm._policies]
    return res

class ColourOperations(nn.Module):
    "v2's automatic augmentation `tfm`; where an image comes with boxes, points or masks, its colour operations alone"
    def __init__(self, tfm):
        super().__init__()
        self.tfm,self.colours = tfm,_with_colours(tfm)

    # v2's tables hold lambdas, which cannot be pickled
    def __getstate__(self):
        return {**self.__dict__, '_modules': {k: o for k,o in self._modules.items() if k != 'colours'}}
    def __setstate__(self, state):
        super().__setstate__(state)
        self.colours = _with_colours(self.tfm)

    def forward(self, items):
        alone = not any(isinstance(o, (tv.BoundingBoxes, tv.KeyPoints, tv.Mask)) for o in items)
        tfm = self.tfm if alone else self.colours
        return [tfm(o) if isinstance(o, tv.Image) else o for o in items]

    def extra_repr(self): return repr(self.tfm)
