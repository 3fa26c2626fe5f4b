"Instance masks as data sets keep them: polygons and run lengths (RLE) as COCO's maskApi reads them, or bool arrays"
from __future__ import annotations
import numpy as np

__all__ = ['decode_mask', 'encode_rle', 'rle_counts', 'mask_bbox']

def decode_mask(
    mask,                # list of polygons, each [x1, y1, x2, y2, ...] or (m, 2) in pixels;
                         # or an RLE as of `rle_counts`; or (h, w) bool
    size:tuple[int,int], # (w, h) in pixels of the picture
) -> np.ndarray:         # (h, w) bool; the array itself where `mask` is one
    "The pixels of one object, to the pixel as COCO has them; polygons are united, and no polygon is an empty mask"
    w,h = size
    if isinstance(mask, dict): return _runs_to_mask(rle_counts(mask), _rle_size(mask, (h, w)))
    if isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.dtype == bool:
        if mask.shape == (h, w): return mask
        raise ValueError(f"mask: expected (h, w) = {(h, w)} as the picture's, got {mask.shape}")
    if not isinstance(mask, (list, tuple)):
        raise ValueError(f"mask: expected a list of polygons, an RLE dict or an (h, w) bool array, got {_what(mask)}; "
                         "write [polygon] for one polygon, mask > 0 for an array of numbers")
    out = np.zeros((h, w), bool)
    for i,p in enumerate(mask): out |= _fill(_polygon(p, i), w, h)
    return out

def encode_rle(
    mask:np.ndarray, # (h, w) bool
) -> dict:           # size [h, w] and counts, COCO's compressed string
    "`mask` as COCO's run lengths, ready for json"
    flat = _bool(mask).T.ravel()   # column by column
    starts = np.flatnonzero(np.diff(flat, prepend=False))
    return dict(size=list(mask.shape), counts=_compress(np.diff(starts, prepend=0, append=flat.size)))

def rle_counts(
    rle:dict,        # size [h, w]; counts: str or bytes as COCO compresses them, or a list of whole numbers
) -> np.ndarray:     # (k,) int64, sum h*w
    "The lengths of the runs of `rle`, column by column, zeros and ones in turn, zeros first (a length that may be 0)"
    (h,w),counts = _rle_size(rle),rle['counts']
    n = _decompress(counts) if isinstance(counts, (str, bytes)) else np.asarray(counts)
    if n.ndim != 1 or n.dtype.kind not in 'iu' or (n < 0).any():
        raise ValueError("RLE: expected counts that are whole numbers, 0 or more, or COCO's string of them, "
                         f"got {counts!r:.80}; mend the runs")
    if n.sum() != h*w:
        raise ValueError(f"RLE: expected counts whose sum is h*w = {h*w} for size [h, w] = {[h, w]}, got {n.sum()}; "
                         "is the size that of another picture, or the file cut?")
    return n.astype(np.int64)

def mask_bbox(
    mask:np.ndarray, # (h, w) bool
) -> np.ndarray:     # (4,) float32 x1 y1 x2 y2 in pixels, right and bottom edge exclusive
    "The tight box around `mask`; all zeros for an empty one"
    (ys,xs) = (np.flatnonzero(_bool(mask).any(d)) for d in (1, 0))
    return np.array([xs[0], ys[0], xs[-1]+1, ys[-1]+1] if len(xs) else [0]*4, np.float32)

def _bool(mask):
    if isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.dtype == bool: return mask
    raise ValueError(f"mask: expected an (h, w) bool array, got {_what(mask)}; write mask > 0, or `decode_mask` first")

def _what(o): return f"an array of shape {o.shape}, type {o.dtype}" if isinstance(o, np.ndarray) else f"{o!r:.80}"

# --- polygons

def _polygon(p, i):   # -> (m, 2) float64
    "Polygon number `i` as vertices, checked"
    try: a = np.asarray(p, np.float64)
    except (TypeError, ValueError): a = np.empty(())
    if a.ndim == 1 and len(a)%2 == 0: a = a.reshape(-1, 2)
    if a.ndim != 2 or a.shape[1] != 2 or len(a) < 3:
        raise ValueError(f"mask, polygon {i}: expected three or more points as [x1, y1, x2, y2, ...] or (m, 2), "
                         f"got {p!r:.80}; leave the polygon out, or write [polygon] where the mask has only one")
    # every fifth of a pixel of the outline is visited, so that a wild number costs all the memory there is
    if (np.abs(a) < 1e6).all(): return a
    raise ValueError(f"mask, polygon {i}: expected finite pixels below a million, got {p!r:.80}; mend the polygon")

_FINE = 5   # COCO walks the outline on a grid of fifths of a pixel

def _fill(p, w, h):   # (m, 2) -> (h, w) bool
    "The pixels inside polygon `p` by the even-odd rule, where COCO's rounding puts its outline"
    u,v = _outline((_FINE*p + .5).astype(np.int64)).T   # towards zero, as C casts; for numbers below zero it matters
    # where the outline steps over the middle of a column of pixels, all pixels below change sides
    column = np.where(u[1:] < u[:-1], u[1:], u[1:]-1)
    x,y = column//_FINE,(np.minimum(v[1:], v[:-1]) + _FINE//2)//_FINE
    cross = (u[1:] != u[:-1]) & (column%_FINE == _FINE//2) & (x >= 0) & (x < w)
    turns = x[cross]*h + y[cross].clip(0, h)   # `h` is the top of the next column, which starts outside
    return _inside(np.bincount(turns, minlength=w*h + 1)[:-1].cumsum()%2, w, h)

def _outline(p):      # (m, 2) -> (k, 2), whole numbers
    "The grid points of the closed outline through `p`: one a step along each edge's longer side, both ends included"
    ends  = p,np.roll(p, -1, 0)
    steep = np.abs(ends[1] - ends[0])@[-1, 1] > 0
    a,b   = (np.where(steep[:,None], o[:,::-1], o) for o in ends)   # the longer side comes first
    d     = b - a
    n     = np.abs(d[:,0])
    edge  = np.repeat(np.arange(len(p)), n + 1)
    t     = np.arange(len(edge)) - np.repeat(np.cumsum(n + 1) - n - 1, n + 1)
    # an edge rounds alike in both directions: always from its lower end, though visited in the outline's order
    start = np.where(d[:,:1] < 0, b, a)[edge]
    t     = np.where(d[:,0] < 0, n, 0)[edge] + np.where(d[:,0] < 0, -1, 1)[edge]*t
    slope = d[:,1]/np.where(n > 0, d[:,0], 1)
    uv    = np.stack([start[:,0] + t, (start[:,1] + slope[edge]*t + .5).astype(np.int64)], 1)
    return np.where(steep[edge,None], uv[:,::-1], uv)

# --- run lengths

def _rle_size(rle, expected=None):
    try: (h,w),_ = map(int, rle['size']),rle['counts']
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"RLE: expected dict(size=[h, w], counts=...), got {rle!r:.80}; mend the mask") from None
    if expected in (None, (h, w)): return h,w
    raise ValueError(f"RLE: expected size [h, w] = {list(expected)} as the picture's, got {[h, w]}; is it [w, h]?")

def _runs_to_mask(counts, size): return _inside(np.repeat(np.arange(len(counts))%2, counts), *size[::-1])

def _inside(flat, w, h): return np.ascontiguousarray(flat.reshape(w, h).T == 1)

# COCO's string: from the fourth on, each number is the difference to the last but one; then five bits a character,
# lowest first, with 32 for "more follow", counted from '0'; the highest bit of a number's last character is its sign
_BITS,_MORE,_ZERO,_LONGEST = 5,32,48,7   # seven characters hold every whole number of 32 bits

def _compress(n):     # (k,) -> str
    x = n.copy()
    x[3:] -= n[1:-2]
    k = np.arange(_LONGEST)*_BITS
    rest = x[:,None] >> k + _BITS - 1   # the last sign and all above it: only copies of the sign when nothing is left
    more = (rest != 0) & (rest != -1)
    chars = (x[:,None] >> k & _MORE - 1) + more*_MORE + _ZERO
    keep = np.pad(more, ((0, 0), (1, 0)), constant_values=True)[:,:-1]
    return chars[keep].astype(np.uint8).tobytes().decode('ascii')

def _decompress(s):   # str or bytes -> (k,)
    c = np.frombuffer(s.encode() if isinstance(s, str) else s, np.uint8).astype(np.int64) - _ZERO
    last = np.flatnonzero(c < _MORE)
    first = np.append(0, last[:-1] + 1)
    if not len(c) or (c < 0).any() or (c >= 2*_MORE).any() or c[-1] >= _MORE or (last - first >= _LONGEST).any():
        raise ValueError(f"RLE: expected counts in COCO's characters, '0' to 'o', got {s!r:.80}; is the string cut?")
    k = np.arange(len(c)) - np.repeat(first, last - first + 1)
    x = np.add.reduceat(c%_MORE << k*_BITS, first)
    x -= (c[last] >= _MORE//2)*(1 << (last - first + 1)*_BITS)
    x[1::2],x[2::2] = x[1::2].cumsum(),x[2::2].cumsum()
    return x
