"Polygons to masks and masks to polygons, with the rounding of COCO's maskApi"
from __future__ import annotations
import numpy as np
from ..arguments import brief
from .rle import mask_of_runs

__all__ = []

def join_polygons(
    polygons,      # as for `decode_mask`
) -> np.ndarray:   # (k, 2) float64 x y in pixels
    """One polygon from several, joined by lines without area; pixels in an even number of them are outside. Raises
    `ValueError` for none"""
    if not len(polygons):
        raise ValueError("polygons: expected one or more, got none; drop the object, or keep its mask []")
    first,*rest = [check_polygon(p, i) for i,p in enumerate(polygons)]
    # from the first point out to each further part, around it, and back on the same line
    ways = [o for p in rest for o in (first[:1], p, p[:1])]
    return np.concatenate([first, *ways, *([first[:1]] if rest else [])])

def as_float32(p):   # [x1, y1, x2, y2, ...] or (m, 2) -> (m, 2) float32, read-only; what is no polygon unchanged
    "A polygon as an array, a tenth of the memory of a list; an error is raised where it is checked or decoded"
    ready = isinstance(p, np.ndarray) and p.dtype == np.float32 and p.ndim == 2
    if ready and not p.flags.writeable: return p
    try: a = np.array(p if ready else check_polygon(p, 0), np.float32)
    except ValueError: return p
    a.setflags(write=False)
    return a

def exact_numbers(p):   # numbers -> the same shape, float64
    """Numbers in float64. float32 becomes the decimal fraction of up to 6 digits that it was made from, 10.1 and not
    10.1000004, since COCO's rounding may depend on it"""
    a = np.asarray(p, np.float64)
    if getattr(p, 'dtype', None) != np.float32: return a
    res,found = a.copy(),np.zeros(a.shape, bool)
    for digits in range(7):
        short = a.round(digits)
        new = ~found & (short.astype(np.float32) == p)
        res[new],found = short[new],found | new
        if found.all(): break
    return res

def check_polygon(p, i):   # -> (m, 2) float64
    "Polygon number `i` as vertices, checked"
    try: a = exact_numbers(p)
    except (TypeError, ValueError, OverflowError): a = np.empty(())   # OverflowError: an int beyond all floats
    if a.ndim == 1 and len(a)%2 == 0: a = a.reshape(-1, 2)
    if a.ndim != 2 or a.shape[1] != 2 or len(a) < 3:
        raise ValueError(f"mask, polygon {i}: expected three or more points as [x1, y1, x2, y2, ...] or (m, 2), "
                         f"got {brief(p)}; drop the polygon, or write [polygon] where the mask has only one")
    if (np.abs(a) < 1e6).all(): return a   # larger numbers are errors of the file
    raise ValueError(f"mask, polygon {i}: expected finite pixels below a million, got {brief(p)}; fix the polygon")

# --- polygons to masks

FINE = 5   # COCO rasterizes the outline on a grid of fifths of a pixel

_SOME = 2**18   # crossings at a time, so that memory is bounded whatever the polygon

def fill_polygon(p, w, h):   # (m, 2) -> (h, w) bool
    "The pixels inside polygon `p` by the even-odd rule, with COCO's rounding of the outline"
    a = (FINE*p + .5).astype(np.int64)   # rounds towards zero, as casts in C do, which matters below zero
    b = np.roll(a, -1, 0)
    # the columns of pixels in the image whose middle each edge crosses, from grid column 5x + 2 to 5x + 3 or back
    left,right = np.minimum(a[:,0], b[:,0]),np.maximum(a[:,0], b[:,0])
    first = np.maximum(-((FINE//2 - left)//FINE), 0)
    n     = np.maximum(np.minimum((right - FINE//2 - 1)//FINE, w - 1) + 1 - first, 0)
    some  = np.flatnonzero(n)
    parts = np.split(some, np.flatnonzero(np.diff(n[some].cumsum()//_SOME)) + 1)
    turns,kept = [np.empty(0, np.int64)],0
    for i in parts:
        turns.append(_crossings(a[i], b[i], first[i], n[i], h))
        # two turns at one place cancel: without them there are never more turns than pixels
        if sum(map(len, turns)) > 2*kept + 9*_SOME: turns = [_odd(np.concatenate(turns))]; kept = len(turns[0])
    turns = np.sort(np.concatenate(turns))
    return mask_of_runs(np.diff(turns, prepend=0, append=w*h), (h, w))

def _odd(o):   # (k,) -> the values that occur an odd number of times
    values,n = np.unique(o, return_counts=True)
    return values[n%2 == 1]

def _crossings(a, b, first, n, h):   # (k, 2), (k, 2), (k,), (k,) -> (n.sum(),)
    """Where the edges from `a` to `b` cross the middles of `n` columns of pixels each, from `first` on, as an index
    into the pixels column by column: from there down the pixels change sides. COCO follows an edge in whole steps of
    its longer side, always from its lower end, and rounds the other coordinate"""
    d     = b - a
    steep = np.abs(d)@[-1, 1] > 0
    u,v   = np.where(steep, d[:,1], d[:,0]),np.where(steep, d[:,0], d[:,1])   # along the longer side, and across
    low   = np.where((u < 0)[:,None], b, a)
    slope = v/np.where(u != 0, u, 1)
    edge  = np.repeat(np.arange(len(a)), n)
    x     = np.arange(len(edge)) - np.repeat(np.cumsum(n) - n - first, n)
    c     = FINE*x + FINE//2
    steep,slope,lx,ly = steep[edge],slope[edge],low[edge,0],low[edge,1]
    # a flat edge has one grid row in each grid column: the upper of the two
    at = lambda t: (ly + slope*t + .5).astype(np.int64)
    y  = np.minimum(at(c - lx), at(c + 1 - lx))
    # a steep edge has one grid column in each grid row: the last row before the step from `c` to `c + 1`, or back
    with np.errstate(divide='ignore', invalid='ignore'): t = np.floor((c + .5 - lx)/slope)
    before = lambda t: (lx + slope*t + .5 >= c + 1) == (slope < 0)
    # the quotient has a rounding error, which is far less than a step
    t = np.where(steep, t, 0)
    t = t - 1 + before(t) + (before(t) & before(t + 1))
    y = np.where(steep, ly + t.astype(np.int64), y)
    # `h` is the top of the next column, which starts outside
    return x*h + ((y + FINE//2)//FINE).clip(0, h)

# --- masks to polygons

def loops(p):   # (h, w) int8, zeros at the border -> (k, 2, 2) horizontal edges, start and end x y; start of each loop
    "The outlines of the ones in `p`, which are to the right of each edge; loop after loop, without the vertical edges"
    (y,x1,x2,right),(x,y1,y2,up) = _edges(p),_edges(p.T)
    x1,x2 = np.where(right, [x1, x2], [x2, x1])
    y1,y2 = np.where(up, [y2, y1], [y1, y2])
    n = p.shape[1]
    # where two pixels touch at a corner, two edges start there: the one to the right follows its own pixel
    after = _follow(y2*n + x, up, y*n + x1, right)[_follow(y*n + x2, ~right, y1*n + x, up)].tolist()
    order,starts,seen = [],[],bytearray(len(after))
    for i in range(len(after)):
        if not seen[i]: starts.append(len(order))
        while not seen[i]:
            seen[i] = True
            order.append(i)
            i = after[i]
    return np.stack([x1, y, x2, y], 1)[order].reshape(-1, 2, 2),np.array(starts)

def _edges(p):   # -> (k,) line, start and end on it, and whether the ones are below it, of each horizontal edge
    d = np.diff(p, axis=0).ravel()
    at = np.flatnonzero(d[1:] != d[:-1]) + 1
    edge = d[at[:-1]] != 0
    a,b = at[:-1][edge],at[1:][edge]
    return a//p.shape[1],a%p.shape[1] - 1,b%p.shape[1] - 1,d[a] > 0

def _follow(ends, kind, starts, kinds):
    "For each end the index of the start at the same place: of two, the one of its kind"
    order = np.argsort(2*starts + kinds)
    keys,wish = (2*starts + kinds)[order],2*ends + kind
    i = np.searchsorted(keys, wish).clip(max=len(keys) - 1)
    return order[np.where(keys[i] == wish, i, np.searchsorted(keys, wish^1).clip(max=len(keys) - 1))]
