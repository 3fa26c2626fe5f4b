"Instance masks as data sets keep them: polygons and run lengths (RLE) as COCO's maskApi reads them, or bool arrays"
from __future__ import annotations
import numpy as np
from ..arguments import FRACTION, WIDTH_HEIGHT, Kind, brief, checked, choice, is_whole, numbers

__all__ = ['decode_mask', 'encode_rle', 'encode_instances', 'paste_rle', 'mask_polygons', 'rle_counts', 'mask_bbox',
           'mask_extent']

_RLE = Kind("an RLE, which is a dict(size=[h, w], counts=...)", lambda o: isinstance(o, dict))

@checked(size=WIDTH_HEIGHT)
def decode_mask(
    mask,                # list of polygons, each [x1, y1, x2, y2, ...] or (m, 2) in pixels;
                         # or an RLE as of `rle_counts`; or (h, w) bool
    size:tuple[int,int], # (w, h) in pixels of the image
) -> np.ndarray:         # (h, w) bool; the array itself where `mask` is one
    "The pixels of one object, to the pixel as COCO has them; polygons are united, and no polygon is an empty mask"
    w,h = _image_size(size)
    if isinstance(mask, dict): return _runs_to_mask(rle_counts.unchecked(mask), _rle_size(mask, (h, w)))
    if isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.dtype == bool:
        if mask.shape == (h, w): return mask
        raise ValueError(f"mask: expected (h, w) = {(h, w)} as the image's, got {mask.shape}")
    if not isinstance(mask, (list, tuple)):
        raise ValueError(f"mask: expected a list of polygons, an RLE dict or an (h, w) bool array, got {_what(mask)}; "
                         "write [polygon] for one polygon, mask > 0 for an array of numbers")
    out = np.zeros((h, w), bool)
    for i,p in enumerate(mask): out |= _fill(_polygon(p, i), w, h)
    return out

def check_mask(
    mask,                # as of `decode_mask`
    size:tuple[int,int], # (w, h) in pixels of the image
):
    "Raise `ValueError` where `decode_mask` would, without decoding"
    w,h = _image_size(size)
    if isinstance(mask, dict):
        _rle_size(mask, (h, w))
        rle_counts(mask)
    elif isinstance(mask, (list, tuple)):
        for i,p in enumerate(mask): _polygon(p, i)
    else: decode_mask(mask, size)   # an array: nothing to decode

_MOST = 2**32   # COCO's maskApi counts pixels in 32 bits; also what keeps sizes from taking all memory, or wrapping

def _image_size(size):   # -> w, h
    try: (w,h),ok = size,True
    except (TypeError, ValueError): ok = False
    if ok and is_whole(w) and is_whole(h) and w >= 0 and h >= 0 and int(w)*int(h) < _MOST: return int(w),int(h)
    raise ValueError("size: expected (w, h) of the image as two whole numbers whose product is below 2**32, got "
                     f"{brief(size)}")

def encode_rle(
    mask:np.ndarray, # (h, w) bool
) -> dict:           # size [h, w] and counts, COCO's compressed string
    "`mask` as COCO's run lengths, ready for json"
    return _rles([_turns(_bool(mask).T.ravel())], mask.shape)[0]   # column by column

@checked(ids=Kind("an array (h, w) of whole numbers, 0 or more", lambda o: isinstance(o, np.ndarray) and o.ndim == 2 and
                  o.dtype.kind in 'ui' and o.size > 0 and o.min() >= 0))
def encode_instances(
    ids:np.ndarray, # (h, w) whole numbers: each pixel's object, 0 = none
):                  # (n,) ids that occur, ascending; n RLE; tight boxes (n, 4), float32 x1 y1 x2 y2 in pixels
    "The objects of an id mask, all of them in one pass"
    h,w = ids.shape
    flat = ids.T.ravel()   # column by column
    turns = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    runs = np.stack([turns, np.append(turns[1:], flat.size)], 1)
    runs = runs[np.argsort(flat[turns], kind='stable')]
    runs = runs[flat[runs[:,0]] > 0]
    values,first = np.unique(flat[runs[:,0]], return_index=True)
    (x1,y1),(x2,y2) = (np.divmod(o, h) for o in (runs[:,0], runs[:,1] - 1))
    y1,y2 = np.where(x1 == x2, [y1, y2], [[0], [h - 1]])   # a run that goes on in the next column touches both edges
    bboxes = np.concatenate([np.minimum.reduceat(np.stack([x1, y1], 1), first),
                             np.maximum.reduceat(np.stack([x2, y2], 1), first) + 1], 1).astype(np.float32)
    turns = [runs[i:j].ravel() for i,j in zip(first, [*first[1:], len(runs)])]
    return values,_rles([o[o < flat.size] for o in turns], (h, w)),bboxes

@checked(probs=numbers((None, None, None), what="probabilities (n, m, m)"), size=WIDTH_HEIGHT,
         bboxes=numbers((None, 4), what="boxes (n, 4) in pixels"), thresh=FRACTION)
def paste_rle(
    probs:np.ndarray,    # (n, m, m) in [0, 1]: each object's mask, spread over its box, as mask heads predict it
    bboxes:np.ndarray,   # (n, 4) x1 y1 x2 y2, pixels, fractions included; what is outside the image is cut off
    size:tuple[int,int], # (w, h) in pixels of the image
    thresh:float=.5,     # in [0, 1]: a pixel belongs to the object where the probability at its center is above
) -> list[dict]:         # n RLE as of `encode_rle`
    """The pixels of each object, without ever making an image of them. The mask is interpolated bilinearly at the
    centers of the pixels, as torch's `grid_sample` does; torchvision's `paste_masks_in_image` first rounds the box to
    whole pixels, and is up to half a pixel off. A box that holds no center of a pixel gives an empty mask"""
    probs,bboxes,size = np.asarray(probs, np.float32),np.asarray(bboxes, np.float64),_image_size(size)
    m = probs.shape[-1] if probs.ndim else 0
    if probs.shape != (len(probs) if m else 0, m, m) or bboxes.shape != (len(probs), 4):
        raise ValueError(f"expected probs (n, m, m) and bboxes (n, 4), got {probs.shape} and {bboxes.shape}")
    if not len(probs): return []
    if not (np.abs(bboxes) < 1e6).all(): raise ValueError("bboxes: expected finite pixels below a million; clip them")
    # a border of zeros lets the mask fade out, and the box grows with it
    probs = np.pad(probs, ((0, 0), (1, 1), (1, 1)))
    middle,half = (bboxes[:,2:] + bboxes[:,:2])*.5,(bboxes[:,2:] - bboxes[:,:2])*.5*((m + 2)/m)
    boxes = np.concatenate([middle - half, middle + half], 1).tolist()
    return _rles([_paste(p, b, size, thresh) for p,b in zip(probs, boxes)], size[::-1])

@checked(holes=choice('raise', 'fill'))
def mask_polygons(
    mask:np.ndarray,   # (h, w) bool
    holes:str='raise', # polygons cannot leave out a hole: 'raise' `ValueError`, or 'fill' it
) -> list[np.ndarray]: # each (k, 2) float32 x y in pixels; from the top down, and none for an empty mask
    """The outlines of `mask` along the edges of its pixels: `decode_mask` gives the same pixels back. Pixels that only
    touch at a corner are apart, so that what they surround is no hole"""
    x,y,x2,y2 = mask_bbox(mask).astype(int).tolist()
    if x == x2: return []
    edges,starts = _loops(np.pad(mask[y:y2,x:x2], 1).astype(np.int8))
    # twice the shoelace formula of right angles: below zero where the pixels are inside, above for a hole
    inner = np.add.reduceat((edges[:,1,0] - edges[:,0,0])*edges[:,0,1], starts) > 0
    outlines = np.split((edges + [x, y]).astype(np.float32).reshape(-1, 2), 2*starts[1:])
    if holes == 'raise' and inner.any():
        at = outlines[inner.argmax()].min(0).astype(int).tolist()
        raise ValueError(f"mask: polygons cannot leave out a hole, and it has {inner.sum()}, one at x, y = {at}; "
                         "fill them by holes='fill', or keep the mask as it is, or as an RLE (`encode_rle`)")
    outer = [o for o,i in zip(outlines, inner) if not i]
    # what lies in a hole has an outline too, until the hole is filled
    return mask_polygons(decode_mask.unchecked(outer, mask.shape[::-1])) if inner.any() else outer

def join_polygons(
    polygons,      # as of `decode_mask`
) -> np.ndarray:   # (k, 2) float64 x y in pixels
    """One polygon in place of several, joined by lines without area; pixels that an even number of them share are not
    in it. Raises `ValueError` where there is none to begin with"""
    if not len(polygons):
        raise ValueError("polygons: expected one or more, got none; drop the object, or keep its mask []")
    first,*rest = [_polygon(p, i) for i,p in enumerate(polygons)]
    # from the first point out to each further part, around it, and back on the same line
    ways = [o for p in rest for o in (first[:1], p, p[:1])]
    return np.concatenate([first, *ways, *([first[:1]] if rest else [])])

@checked(rle=_RLE)
def rle_counts(
    rle:dict,        # size [h, w]; counts: str or bytes as COCO compresses them, or a list of whole numbers
) -> np.ndarray:     # (k,) int64, sum h*w
    "The lengths of the runs of `rle`, column by column, zeros and ones in turn, zeros first (a length that may be 0)"
    (h,w),counts = _rle_size(rle),rle['counts']
    if isinstance(counts, (str, bytes, bytearray)): n = _decompress(counts)
    else:
        try: n = np.asarray(counts)
        except (TypeError, ValueError, OverflowError): n = np.empty(())   # lists of several lengths, and the like
    if n.ndim != 1 or n.dtype.kind not in 'iu' or (n < 0).any():
        raise ValueError("RLE: expected counts that are whole numbers, 0 or more, or COCO's string of them, "
                         f"got {brief(counts)}; fix the runs")
    # a sum in 64 bits can wrap round to h*w, and then any run would pass
    total = int(n.sum()) if int(n.max(initial=0))*len(n) < 2**63 else sum(n.tolist())
    if total != h*w:
        raise ValueError(f"RLE: expected counts whose sum is h*w = {h*w} for size [h, w] = {[h, w]}, got "
                         f"{brief(total)}; "
                         "is the size that of another image, or the file cut?")
    return n.astype(np.int64)

def mask_bbox(
    mask:np.ndarray, # (h, w) bool
) -> np.ndarray:     # (4,) float32 x1 y1 x2 y2 in pixels, right and bottom edge exclusive
    "The tight box around `mask`; all zeros for an empty one"
    (ys,xs) = (np.flatnonzero(_bool(mask).any(d)) for d in (1, 0))
    return np.array([xs[0], ys[0], xs[-1]+1, ys[-1]+1] if len(xs) else [0]*4, np.float32)

@checked(size=WIDTH_HEIGHT)
def mask_extent(
    mask,                # as of `decode_mask`
    size:tuple[int,int], # (w, h) in pixels of the image
) -> np.ndarray:         # (4,) float32 x1 y1 x2 y2 in pixels, as of `mask_bbox`
    "The tight box around the pixels of `mask`; run lengths are not decoded, polygons no farther than they reach"
    size = _image_size(size)
    if isinstance(mask, dict): return _runs_bbox(rle_counts.unchecked(mask), _rle_size(mask, size[::-1])[0])
    if not isinstance(mask, (list, tuple)) or not len(mask): return mask_bbox(decode_mask.unchecked(mask, size))
    parts = [_polygon(p, i) for i,p in enumerate(mask)]
    p = np.concatenate(parts)
    if not ((p >= 0).all() and (p <= size).all()): return mask_bbox(decode_mask.unchecked(mask, size))
    corner = np.floor(p.min(0)).astype(np.int64)
    window = np.minimum(np.ceil(p.max(0)) + 1, size).astype(np.int64) - corner
    # moved on the grid on which outlines are drawn, where whole pixels are exact
    moved = [((_FINE*o + .5).astype(np.int64) - _FINE*corner)/_FINE for o in parts]
    box = mask_bbox(decode_mask.unchecked(moved, window.tolist()))
    return box + np.tile(corner, 2).astype(np.float32) if box.any() else box

def _runs_bbox(counts, h):   # as of `rle_counts` -> (4,) float32
    ends = counts.cumsum()
    first,last = (ends - counts)[1::2],ends[1::2] - 1
    first,last = first[last >= first],last[last >= first]
    if not len(first): return np.zeros(4, np.float32)
    (x1,y1),(x2,y2) = np.divmod(first, h),np.divmod(last, h)
    # a run that goes on in the next column touches both edges
    y = (0, h) if (x1 != x2).any() else (y1.min(), y2.max() + 1)
    return np.array([x1.min(), y[0], x2.max() + 1, y[1]], np.float32)

def _bool(mask):
    if isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.dtype == bool: return mask
    raise ValueError(f"mask: expected an (h, w) bool array, got {_what(mask)}; write mask > 0, or `decode_mask` first")

def _what(o): return f"an array of shape {o.shape}, type {o.dtype}" if isinstance(o, np.ndarray) else brief(o)

# --- polygons

def _polygon(p, i):   # -> (m, 2) float64
    "Polygon number `i` as vertices, checked"
    try: a = np.asarray(p, np.float64)
    except (TypeError, ValueError, OverflowError): a = np.empty(())   # the last: a whole number beyond all floats
    if a.ndim == 1 and len(a)%2 == 0: a = a.reshape(-1, 2)
    if a.ndim != 2 or a.shape[1] != 2 or len(a) < 3:
        raise ValueError(f"mask, polygon {i}: expected three or more points as [x1, y1, x2, y2, ...] or (m, 2), "
                         f"got {brief(p)}; drop the polygon, or write [polygon] where the mask has only one")
    if (np.abs(a) < 1e6).all(): return a   # wild numbers are faults of the file
    raise ValueError(f"mask, polygon {i}: expected finite pixels below a million, got {brief(p)}; fix the polygon")

_FINE = 5   # COCO walks the outline on a grid of fifths of a pixel

_SOME = 2**18   # crossings at a time, so that memory is bounded whatever the polygon

def _fill(p, w, h):   # (m, 2) -> (h, w) bool
    "The pixels inside polygon `p` by the even-odd rule, where COCO's rounding puts its outline"
    a = (_FINE*p + .5).astype(np.int64)   # towards zero, as C casts; for numbers below zero it matters
    b = np.roll(a, -1, 0)
    # the columns of pixels over whose middle each edge steps, from grid column 5x + 2 to 5x + 3 or back, in the image
    left,right = np.minimum(a[:,0], b[:,0]),np.maximum(a[:,0], b[:,0])
    first = np.maximum(-((_FINE//2 - left)//_FINE), 0)
    n     = np.maximum(np.minimum((right - _FINE//2 - 1)//_FINE, w - 1) + 1 - first, 0)
    some  = np.flatnonzero(n)
    parts = np.split(some, np.flatnonzero(np.diff(n[some].cumsum()//_SOME)) + 1)
    turns,kept = [np.empty(0, np.int64)],0
    for i in parts:
        turns.append(_crossings(a[i], b[i], first[i], n[i], h))
        # two turns at one place change nothing: without them there are never more than pixels
        if sum(map(len, turns)) > 2*kept + 9*_SOME: turns = [_odd(np.concatenate(turns))]; kept = len(turns[0])
    turns = np.sort(np.concatenate(turns))
    return _runs_to_mask(np.diff(turns, prepend=0, append=w*h), (h, w))

def _odd(o):   # (k,) -> the values that occur an odd number of times
    values,n = np.unique(o, return_counts=True)
    return values[n%2 == 1]

def _crossings(a, b, first, n, h):   # (k, 2), (k, 2), (k,), (k,) -> (n.sum(),)
    """Where the edges from `a` to `b` cross the middles of `n` columns of pixels each, from `first` on, as an index
    into the pixels column by column: from there on down they change sides. COCO walks an edge in whole steps of its
    longer side, always from its lower end, and rounds the other side"""
    d     = b - a
    steep = np.abs(d)@[-1, 1] > 0
    u,v   = np.where(steep, d[:,1], d[:,0]),np.where(steep, d[:,0], d[:,1])   # along the longer side, and across
    low   = np.where((u < 0)[:,None], b, a)
    slope = v/np.where(u != 0, u, 1)
    edge  = np.repeat(np.arange(len(a)), n)
    x     = np.arange(len(edge)) - np.repeat(np.cumsum(n) - n - first, n)
    c     = _FINE*x + _FINE//2
    steep,slope,lx,ly = steep[edge],slope[edge],low[edge,0],low[edge,1]
    # a flat edge has one grid row in each grid column: the upper of the two
    at = lambda t: (ly + slope*t + .5).astype(np.int64)
    y  = np.minimum(at(c - lx), at(c + 1 - lx))
    # a steep edge has one grid column in each grid row: the last row before the step from `c` to `c + 1`, or back
    with np.errstate(divide='ignore', invalid='ignore'): t = np.floor((c + .5 - lx)/slope)
    before = lambda t: (lx + slope*t + .5 >= c + 1) == (slope < 0)
    # the quotient is rounded, by far less than a step
    t = np.where(steep, t, 0)
    t = t - 1 + before(t) + (before(t) & before(t + 1))
    y = np.where(steep, ly + t.astype(np.int64), y)
    # `h` is the top of the next column, which starts outside
    return x*h + ((y + _FINE//2)//_FINE).clip(0, h)

# --- outlines

def _loops(p):   # (h, w) int8, zeros at the border -> (k, 2, 2) level edges, start and end x y; where each loop begins
    "The outlines of the ones in `p`, which are to the right of each edge; loop after loop, upright edges left out"
    (y,x1,x2,right),(x,y1,y2,up) = _edges(p),_edges(p.T)
    x1,x2 = np.where(right, [x1, x2], [x2, x1])
    y1,y2 = np.where(up, [y2, y1], [y1, y2])
    n = p.shape[1]
    # where two pixels touch at a corner, two edges go on from there: the one to the right keeps to its own pixel
    after = _follow(y2*n + x, up, y*n + x1, right)[_follow(y*n + x2, ~right, y1*n + x, up)].tolist()
    order,starts,seen = [],[],bytearray(len(after))
    for i in range(len(after)):
        if not seen[i]: starts.append(len(order))
        while not seen[i]:
            seen[i] = True
            order.append(i)
            i = after[i]
    return np.stack([x1, y, x2, y], 1)[order].reshape(-1, 2, 2),np.array(starts)

def _edges(p):   # -> (k,) line, first and last place on it, and whether the ones are behind it, of each level edge
    d = np.diff(p, axis=0).ravel()
    at = np.flatnonzero(d[1:] != d[:-1]) + 1
    edge = d[at[:-1]] != 0
    a,b = at[:-1][edge],at[1:][edge]
    return a//p.shape[1],a%p.shape[1] - 1,b%p.shape[1] - 1,d[a] > 0

def _follow(ends, kind, starts, kinds):
    "For each end the index of the start at the same place: the one of its kind where there are two"
    order = np.argsort(2*starts + kinds)
    keys,wish = (2*starts + kinds)[order],2*ends + kind
    i = np.searchsorted(keys, wish).clip(max=len(keys) - 1)
    return order[np.where(keys[i] == wish, i, np.searchsorted(keys, wish^1).clip(max=len(keys) - 1))]

# --- probabilities

def _paste(p, box, size, thresh):   # p (m, m); box x1 y1 x2 y2 -> turns, as of `_turns`
    (x,across),(y,down) = (_taps(*box[i::2], size[i], len(p)) for i in (0, 1))
    (w,h),(ww,wh) = size,(len(across), len(down))
    # the window only; zeros end each of its columns, unless that is the image's and runs go on in the next one
    columns = np.zeros((ww + 1, wh + (wh < h)), bool)
    np.greater(across@p.T@down.T, thresh, out=columns[:ww,:wh])
    column,row = np.divmod(_turns(columns.ravel()), columns.shape[1])
    turns = (x + column)*h + y + row
    return turns[turns < w*h]

def _taps(a, b, end, m):   # -> first pixel; (pixels, m) float32, rows sum to 1
    "The weights of `m` samples, spread from `a` to `b`, at the centers of the pixels between, of those in 0..`end` - 1"
    first,last = np.ceil([a - .5, b - .5]).astype(int).tolist()
    pixels = np.arange(max(first, 0), min(last, end))
    at = (((pixels + .5 - a)*(m/(b - a) if b > a else 0.)) - .5).clip(0, m - 1).astype(np.float32)
    return max(first, 0),np.maximum(1 - np.abs(at[:,None] - np.arange(m, dtype=np.float32)), 0)

# --- run lengths

def _turns(flat):         # (k,) bool -> where runs begin, of ones and of zeros in turn
    turns = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return np.append(0, turns) if flat[:1].any() else turns

def _rles(turns, size):   # turns: list of (k,); size: (h, w)
    counts = _compress([np.diff(o, prepend=0, append=size[0]*size[1]) for o in turns])
    return [dict(size=list(size), counts=o) for o in counts]

def _rle_size(rle, expected=None):
    try: (h,w),_ = rle['size'],rle['counts']
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"RLE: expected dict(size=[h, w], counts=...), got {brief(rle)}; fix the mask") from None
    try: h,w,ok = int(h),int(w),bool(int(h) == h and int(w) == w and h > 0 and w > 0)
    except (TypeError, ValueError, OverflowError): ok = False   # OverflowError: int(inf)
    if not ok: raise ValueError("RLE: expected size [h, w] as two positive whole numbers of pixels, got "
                                f"{brief(rle['size'])}; fix the size")
    if h*w >= _MOST: raise ValueError(f"RLE: expected size [h, w] with fewer than 2**32 pixels, got {brief([h, w])}; "
                                      "fix the size")
    if expected in (None, (h, w)): return h,w
    raise ValueError(f"RLE: expected size [h, w] = {list(expected)} as the image's, got {[h, w]}; is it [w, h]?")

def rle_columns(rle:dict, size:tuple[int,int]) -> tuple[int,np.ndarray]:
    """The first column that holds some of the mask, and all from there to the last one that does, (k, h) bool: what is
    around an object is not decoded. `size`: (w, h) of the image; no column for an empty mask"""
    (h,_),counts = _rle_size(rle, _image_size(size)[::-1]),rle_counts.unchecked(rle)
    if len(counts) < 2: return 0,np.zeros((0, h), bool)
    last  = len(counts) - len(counts)%2          # without the zeros at the end
    first = int(counts[0])//h
    runs  = counts[:last].copy()
    runs[0] -= first*h
    n = -(-int(runs.sum())//h)
    flat = np.zeros(n*h, bool)
    some = np.repeat(np.arange(last)%2 == 1, runs)
    flat[:len(some)] = some
    return first,flat.reshape(n, h)

def _runs_to_mask(counts, size):   # (k,), column by column, zeros first; (h, w) -> (h, w) bool
    flat = np.repeat(np.arange(len(counts))%2 == 1, counts)
    return np.ascontiguousarray(flat.reshape(size[::-1]).T)

# COCO's string: from the fourth on, each number is the difference to the last but one; then five bits a character,
# lowest first, with 32 for "more follow", counted from '0'; the highest bit of a number's last character is its sign
_BITS,_MORE,_ZERO,_LONGEST = 5,32,48,7   # seven characters hold every whole number of 32 bits

def _compress(runs):  # list of (k,) -> list of str, all at once, for most masks are short
    if not runs: return []
    n = np.array([len(o) for o in runs])
    ends,x = n.cumsum(),np.concatenate(runs)
    place = np.arange(len(x)) - np.repeat(ends - n, n)
    x[2:] -= np.where(place[2:] > 2, x[:-2], 0)
    k = np.arange(0, int(np.abs(x).max()).bit_length() + 1, _BITS)   # one more bit, for the sign
    rest = x[:,None] >> k + _BITS - 1   # the last sign and all above it: only copies of the sign when nothing is left
    more = (rest != 0) & (rest != -1)
    chars = (x[:,None] >> k & _MORE - 1) + more*_MORE + _ZERO
    keep = np.pad(more, ((0, 0), (1, 0)), constant_values=True)[:,:-1]
    text,ends = chars[keep].astype(np.uint8).tobytes().decode('ascii'),keep.sum(1).cumsum()[ends - 1].tolist()
    return [text[a:b] for a,b in zip([0, *ends], ends)]

def _decompress(s):   # str or bytes -> (k,)
    b = s.encode('utf-8', 'surrogatepass') if isinstance(s, str) else s   # what is not ASCII is above 'o'
    c = np.frombuffer(b, np.uint8).astype(np.int64) - _ZERO
    last = np.flatnonzero(c < _MORE)
    first = np.append(0, last[:-1] + 1)
    if not len(c) or (c < 0).any() or (c >= 2*_MORE).any() or c[-1] >= _MORE or (last - first >= _LONGEST).any():
        raise ValueError(f"RLE: expected counts in COCO's characters, '0' to 'o', got {brief(s)}; is the string cut?")
    k = np.arange(len(c)) - np.repeat(first, last - first + 1)
    x = np.add.reduceat(c%_MORE << k*_BITS, first)
    x -= (c[last] >= _MORE//2)*(1 << (last - first + 1)*_BITS)
    x[1::2],x[2::2] = x[1::2].cumsum(),x[2::2].cumsum()
    return x
