"""Region proposals without a net: selective search (Uijlings et al., 2013, doi:10.1007/s11263-013-0620-5), and random
and grid boxes as baselines"""
from __future__ import annotations
from heapq import heapify, heappop, heappush
import numpy as np
from PIL import Image
from scipy.ndimage import find_objects, gaussian_filter1d
from ..arguments import IOU, Kind, checked, choice, either, number, numbers, several, whole

__all__ = ['selective_search', 'random_proposals', 'grid_proposals', 'proposal_recall']

COLOURS = 25    # §3.2: bins per channel
SLOPES  = 20    # bins of the derivative in each of four directions: the paper has 10 in each of eight
STEEP   = .4    # the largest derivative: 1/sqrt(2 pi), of a step of 1 smoothed by a Gaussian of 1 pixel

_N     = whole(1, 10**7, what="a number of boxes")
_NONE  = Kind("None", lambda o: o is None)
_BOXES = several(numbers((None, 4), (0,), (None, 0), what="(k, 4) boxes"), "a list of (k, 4) boxes of each image")

@checked(n=_N, width=either(whole(1, what="pixels, a whole number"), _NONE), sigma=number(0, 100), scales=several(
    whole(1, what="a scale, a whole number"), "a list of scales, which are whole numbers of 1 or more", least=1),
    nms=either(IOU, _NONE), first=choice('large', 'small'))
def selective_search(
    image,             # (h, w, 3) RGB or (h, w) grey uint8 array or PIL image, or (3, h, w) uint8 tensor
    n:int=2000,        # boxes at most
    width:int=500,     # pixels: wider images are resized to this width, as in R-CNN; None: never
    scales=(50, 100),  # of the graph segmentation: k, and the minimum number of pixels of a region; large
                       # ones give fewer regions
    sigma:float=.8,    # pixels: standard deviation of the smoothing before the segmentation
    seed:int=0,        # of the random part of the order
    nms:float=.75,     # in (0, 1]: a box whose IoU with a more promising one is above this comes after all others, so
                       # that the first `n` differ; None: no box does
    first:str='large', # which boxes of each hierarchy are the most promising: 'large', the last unions, as in the
                       # paper; 'small', the first
) -> np.ndarray:       # (k, 4) float32 x1 y1 x2 y2, pixels, right and bottom edges exclusive; k <= n, all distinct
    """Boxes around regions that are merged step by step, the most promising first: the paper's 'fast' mode, with HSV
    and Lab, two `scales` and two similarities. The result depends only on the arguments; for an image of one colour it
    is the box of the image. Raises `ValueError` for other images than uint8, and `ImportError` without scikit-image"""
    im = _rgb(image)
    h,w = im.shape[:2]
    if width is not None and w > width:
        im = np.asarray(Image.fromarray(im).resize((width, max(1, round(h*width/w))), Image.BOX))
    boxes,places = [],[]
    for labels,colour,texture in _segmentations(im, scales, sigma):
        sizes,frames,near = _sizes(labels),_frames(labels),_neighbours(labels)
        colour,texture = (_histograms(labels, sizes, *o) for o in ((colour, COLOURS), (texture, SLOPES)))
        # both include size and fill
        for hists in (np.concatenate([colour, texture], 1), texture):
            boxes.append(_group(sizes, frames, hists, near)[0])
            places.append(_places(len(frames), first))
    # §3.3: a random factor, or all large regions would come before the small ones
    order = np.argsort(np.concatenate(places)*np.random.default_rng(seed).random(sum(map(len, places))))
    boxes = _distinct(np.concatenate(boxes)[order])
    boxes = boxes[:n] if nms is None else _most_different(boxes, nms, n)
    # the minimum, because rounding may move a box beyond the edge
    return np.minimum(boxes*np.tile([w/im.shape[1], h/im.shape[0]], 2), [w, h, w, h]).astype(np.float32)

def _rgb(image):
    "(h, w, 3) uint8 array of any image that `selective_search` takes"
    # not isinstance, for which worker processes would have to import torch
    chw = hasattr(image, 'permute')
    im = np.asarray(image.permute(1, 2, 0).cpu() if chw and image.ndim == 3 else image)
    got = f"got an image of type {im.dtype}, shape {im.shape}" + (" (h, w, c)" if chw else "")
    if im.dtype != np.uint8:
        raise ValueError(f"{got}; expected uint8 in 0..255: divide 16 bits by 257, multiply floats in 0..1 by 255")
    if im.ndim == 2: im = im[...,None].repeat(3, 2)
    if im.ndim != 3 or im.shape[2] != 3 or not im.size:
        raise ValueError(f"{got}; expected an array (h, w, 3) or (h, w), or a tensor (3, h, w), of a pixel or more")
    return im

def _segmentations(im, scales, sigma):   # im (h, w, 3) uint8
    "For each colour space and scale: regions (h, w) 0..r-1, bins of colour (3, h, w), bins of texture (12, h, w)"
    try:
        from skimage.color import rgb2hsv, rgb2lab
        from skimage.segmentation import felzenszwalb
    except ImportError as e:
        raise ImportError("selective search needs scikit-image's graph segmentation; "
                          "pip install scikit-image, or vision_tasks[rcnn]") from e
    im = im.astype(np.float32)/255
    for chans in (rgb2hsv(im), rgb2lab(im)/np.float32([100, 255, 255]) + np.float32([0, .5, .5])):
        bins = _bins(chans, COLOURS),_bins((_slopes(chans)/STEEP + 1)/2, SLOPES)
        for k in scales: yield felzenszwalb(chans, scale=k, sigma=sigma, min_size=k),*bins

def _slopes(im):   # (h, w, c) -> (h, w, 4c)
    "Derivatives along x, y and both diagonals, after a Gaussian of 1 pixel"
    dx,dy = (gaussian_filter1d(gaussian_filter1d(im, 1, axis=1-a, mode='nearest'), 1, axis=a, order=1, mode='nearest')
             for a in (1, 0))
    return np.concatenate([dx, dy, (dx+dy)*.5**.5, (dx-dy)*.5**.5], 2)

def _bins(x, n): return (x*n).astype(np.int64).clip(0, n-1).transpose(2, 0, 1)   # x (h, w, c) in [0, 1] -> (c, h, w)

# --- regions

def _sizes(labels): return np.bincount(labels.ravel())

def _frames(labels):   # (h, w) -> (r, 4)
    return np.array([[x.start, y.start, x.stop, y.stop] for y,x in find_objects(labels + 1)])

def _neighbours(labels):   # (h, w) -> two arrays (e,), each pair once, the smaller index first
    r = labels.max() + 1
    a = np.concatenate([labels[:-1].ravel(), labels[:,:-1].ravel()])
    b = np.concatenate([labels[1:].ravel(), labels[:,1:].ravel()])
    a,b = a[a != b],b[a != b]
    return np.divmod(np.unique(np.minimum(a, b)*r + np.maximum(a, b)), r)

def _histograms(labels, sizes, bins, n):   # bins (c, h, w) in 0..n-1 -> (r, c*n) float32, each row 1 in sum
    r = len(sizes)
    counts = [np.bincount((labels*n + b).ravel(), minlength=r*n).reshape(r, n) for b in bins]
    return (np.concatenate(counts, 1)/(sizes[:,None]*len(bins))).astype(np.float32)

def _group(
    sizes,    # (r,) pixels
    frames,   # (r, 4) x1 y1 x2 y2
    hists,    # (r, d)
    near,     # pairs of neighbours, two arrays (e,)
):            # (2r-1, 4) frames of all regions, then of the unions; [(a, b)] the two regions of each union
    "§3.1: merge the two most similar neighbours, until one region is left"
    r,area,sizes = len(sizes),sizes.sum(),sizes.tolist()
    h,f = np.empty((2*r-1, hists.shape[1]), np.float32),np.empty((2*r-1, 4), np.float32)
    h[:r],f[:r] = hists,frames*[1, 1, -1, -1]   # so that one minimum is the frame of two
    def unlike(i, j):
        # §3.2: size 1 - (|a| + |b|)/area and fill 1 - (frame - |a| - |b|)/area are 2 - frame/area together
        o = np.minimum(f[i], f[j])
        return ((o[:,0] + o[:,2])*(o[:,1] + o[:,3])/area - np.minimum(h[i], h[j]).sum(1)).tolist()
    heap = list(zip(unlike(*near), *(o.tolist() for o in near)))
    around,alive,unions = [set() for _ in range(r)],set(range(r)),[]
    for _,a,b in heap: around[a].add(b); around[b].add(a)
    heapify(heap)
    for t in range(r, 2*r-1):
        while True:
            _,a,b = heappop(heap)
            if a in alive and b in alive: break
        unions.append((a, b))
        sizes.append(sizes[a] + sizes[b])
        f[t] = np.minimum(f[a], f[b])
        h[t] = (h[a]*sizes[a] + h[b]*sizes[b])/sizes[t]
        alive -= {a, b}
        alive.add(t)
        around.append((around[a] | around[b]) - {a, b})
        for o in around[t]: around[o] -= {a, b}; around[o].add(t)
        if others := sorted(around[t]):
            for d,o in zip(unlike(others, [t]), others): heappush(heap, (d, o, t))
    return f.astype(np.int64)*[1, 1, -1, -1],unions

def _places(r, first):
    "(2r-1,) places in the hierarchy of `r` regions, which come last because none is better, and of their unions"
    unions = np.arange(1, r) if first == 'small' else np.arange(r-1, 0, -1)
    return np.concatenate([np.full(r, r), unions])

def _most_different(boxes, iou, n):   # (k, 4), the most promising first -> (min(k, n), 4)
    "The first `n` of: boxes whose IoU with each better one of these is at most `iou`, then the others; each in order"
    x1,y1,x2,y2 = np.ascontiguousarray(boxes.T, np.float32)
    area,left,kept = (x2-x1)*(y2-y1),np.arange(len(boxes)),[]
    while len(left) and len(kept) < n:
        i,left = left[0],left[1:]
        kept.append(i)
        w,h   = (np.minimum(b[left], b[i]) - np.maximum(a[left], a[i]) for a,b in ((x1, x2), (y1, y2)))
        inter = w.clip(0)*h.clip(0)
        left  = left[inter <= iou*(area[left] + area[i] - inter)]
    others = np.setdiff1d(np.arange(len(boxes)), kept, assume_unique=True)
    return boxes[np.concatenate([kept, others])[:n].astype(int)]

def _distinct(boxes): return boxes[np.sort(np.unique(boxes, axis=0, return_index=True)[1])]

# --- baselines

@checked(n=_N)
def random_proposals(
    size:tuple[int,int], # (w, h) in pixels
    n:int=2000,          # boxes at most
    seed:int=0,          # of the random numbers
) -> np.ndarray:         # (k, 4) float32 as of `selective_search`; k < n if some are equal
    "Boxes with uniform centre, square root of area and logarithm of w/h (1/4 to 4), clipped to the image"
    rng = np.random.default_rng(seed)
    middle,side,aspect = rng.random((n, 2))*size,rng.random((n, 1))*np.prod(size)**.5,4**rng.uniform(-.5, .5, (n, 1))
    return _whole(middle, side*np.concatenate([aspect, 1/aspect], 1), size)

@checked(n=_N, levels=whole(1, 30), aspects=several(
    number(.001, 1000), "a list of w/h, numbers from 0.001 to 1000", least=1))
def grid_proposals(
    size:tuple[int,int],  # (w, h) in pixels
    n:int=2000,           # boxes at most
    aspects=(.5, 1, 2),   # w/h of the boxes
    levels:int=5,         # sizes: the square root of the area is that of the image, half of it, ...
) -> np.ndarray:          # (k, 4) float32 as of `selective_search`, the large ones first
    "Boxes on a regular grid, as dense relative to their size as `n` allows"
    size = np.asarray(size)
    shape = np.array([[a**.5, a**-.5] for a in aspects])
    wh = np.concatenate([np.prod(size)**.5/2**i*shape for i in range(levels)]).clip(1, size)
    steps = lambda part: np.ceil((size - wh)/(part*wh)).astype(int) + 1   # (windows, 2)
    low,high = 1e-3,1e3
    for _ in range(50):
        part = (low*high)**.5
        low,high = (low, part) if steps(part).prod(1).sum() <= n else (part, high)
    corners = [np.stack(np.meshgrid(*(np.linspace(0, e, m) for e,m in zip(size - o, k))), -1).reshape(-1, 2)
               for o,k in zip(wh, steps(high))]
    wh = wh.repeat([len(o) for o in corners], 0)
    return _whole(np.concatenate(corners) + wh/2, wh, size)[:n]

def _whole(middle, wh, size):   # both (n, 2)
    "Distinct boxes, rounded outwards to whole pixels, clipped to `size`, and never empty"
    lo,hi = (np.floor(middle - wh/2 + 1e-6),np.ceil(middle + wh/2 - 1e-6))
    lo = lo.clip(0, np.asarray(size) - 1)
    return _distinct(np.concatenate([lo, np.maximum(hi.clip(max=size), lo + 1)], 1).astype(np.float32))

# --- evaluation

@checked(proposals=_BOXES, bboxes=_BOXES, n=_N, iou=several(IOU, "a list of IoUs, above 0 and at most 1", least=1))
def proposal_recall(
    proposals,          # per image (k, 4) pixels, the most promising first
    bboxes,             # per image (m, 4) pixels, the ground truth
    iou=(.5, .7, .9),   # in (0, 1]: a box is found if its best IoU is at least this
    n:int=None,         # use only the first `n` proposals of each image; None (default): all
) -> dict:              # recall50, recall70, recall90, mean_best_overlap, in [0, 1]; nan without any box
    """Recall over the boxes of all images, and their mean best overlap (IoU). Raises `ValueError` for lists of
    different lengths"""
    proposals,bboxes = list(proposals),list(bboxes)
    if len(proposals) != len(bboxes):
        raise ValueError(f"expected proposals and boxes of the same images, got proposals of {len(proposals)} images, "
                         f"boxes of {len(bboxes)}")
    best = np.concatenate([np.empty(0), *(_best(_four(p, i)[:n], _four(b, i))
                                          for i,(p,b) in enumerate(zip(proposals, bboxes)))])
    mean = lambda o: float(o.mean()) if len(o) else float('nan')
    return {**{f'recall{100*t:g}': mean(best >= t) for t in iou}, 'mean_best_overlap': mean(best)}

def _four(o, i):
    o = np.asarray(o, np.float64)
    if o.size == 0: return o.reshape(0, 4)
    if o.ndim == 2 and o.shape[1] == 4: return o
    raise ValueError(f"image {i}: expected boxes (k, 4), got shape {o.shape}")

def _best(p, b):   # (k, 4), (m, 4) -> (m,)
    "The highest IoU of each of `b` with any of `p`; 0 without any `p`"
    p,b = p[None],b[:,None]
    area  = lambda o: (o[...,2:] - o[...,:2]).clip(min=0).prod(-1)
    inter = area(np.concatenate([np.maximum(p[...,:2], b[...,:2]), np.minimum(p[...,2:], b[...,2:])], -1))
    union = area(p) + area(b) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0).max(1, initial=0)
