"Instance masks as data sets store them: polygons and run lengths (RLE) as in COCO's maskApi, or bool arrays"
from __future__ import annotations
import numpy as np
from ..arguments import FRACTION, WIDTH_HEIGHT, Kind, checked, choice, numbers
from .polygons import FINE, check_polygon, fill_polygon, loops
from .rle import (check_bool, check_image_size, check_rle_size, mask_of_runs, rle_counts, rles_of_turns, turns_of,
                  what_mask)

__all__ = ['VOID', 'decode_mask', 'encode_rle', 'encode_instances', 'paste_rle', 'mask_polygons', 'mask_bbox',
           'mask_extent']

VOID = 255   # class index of unlabelled pixels, which loss and metrics ignore

@checked(size=WIDTH_HEIGHT)
def decode_mask(
    mask,                # list of polygons, each [x1, y1, x2, y2, ...] or (m, 2) in pixels;
                         # or an RLE as for `rle_counts`; or (h, w) bool
    size:tuple[int,int], # (w, h) in pixels of the image
) -> np.ndarray:         # (h, w) bool, writable; the array itself where `mask` is a writable one
    """The pixels of one object, identical to COCO's; the union of several polygons, and an empty mask for none. Raises
    `ValueError` for masks of another size and for polygons or runs that are not valid"""
    w,h = check_image_size(size)
    if isinstance(mask, dict): return mask_of_runs(rle_counts.unchecked(mask), check_rle_size(mask, (h, w)))
    if isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.dtype == bool:
        if mask.shape == (h, w): return mask if mask.flags.writeable else mask.copy()
        raise ValueError(f"mask: expected (h, w) = {(h, w)} as the image's, got {mask.shape}")
    if not isinstance(mask, (list, tuple)):
        raise ValueError("mask: expected a list of polygons, an RLE dict or an (h, w) bool array, got "
                         f"{what_mask(mask)}; write [polygon] for one polygon, mask > 0 for an array of numbers")
    out = np.zeros((h, w), bool)
    for i,p in enumerate(mask): out |= fill_polygon(check_polygon(p, i), w, h)
    return out

def check_mask(
    mask,                # as for `decode_mask`
    size:tuple[int,int], # (w, h) in pixels of the image
):
    "Raise `ValueError` where `decode_mask` would, without decoding"
    w,h = check_image_size(size)
    if isinstance(mask, dict):
        check_rle_size(mask, (h, w))
        rle_counts(mask)
    elif isinstance(mask, (list, tuple)):
        for i,p in enumerate(mask): check_polygon(p, i)
    else: decode_mask(mask, size)   # an array: nothing to decode

def encode_rle(
    mask:np.ndarray, # (h, w) bool
) -> dict:           # size [h, w] and counts, COCO's compressed string
    "`mask` as COCO's run lengths, for JSON. Raises `ValueError` for anything but a bool array"
    return rles_of_turns([turns_of(check_bool(mask).T.ravel())], mask.shape)[0]   # column by column

@checked(ids=Kind("an array (h, w) of whole numbers, 0 or more", lambda o: isinstance(o, np.ndarray) and o.ndim == 2 and
                  o.dtype.kind in 'ui' and o.size > 0 and o.min() >= 0))
def encode_instances(
    ids:np.ndarray, # (h, w) whole numbers: id of each pixel's object, 0 = none
):                  # (n,) ids that occur, ascending; n RLEs; tight boxes (n, 4), float32 x1 y1 x2 y2 in pixels
    "RLE and box of all objects of an id mask, in one pass"
    h,w = ids.shape
    flat = ids.T.ravel()   # column by column
    turns = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    runs = np.stack([turns, np.append(turns[1:], flat.size)], 1)
    runs = runs[np.argsort(flat[turns], kind='stable')]
    runs = runs[flat[runs[:,0]] > 0]
    values,first = np.unique(flat[runs[:,0]], return_index=True)
    (x1,y1),(x2,y2) = (np.divmod(o, h) for o in (runs[:,0], runs[:,1] - 1))
    y1,y2 = np.where(x1 == x2, [y1, y2], [[0], [h - 1]])   # a run that continues in the next column touches both edges
    bboxes = np.concatenate([np.minimum.reduceat(np.stack([x1, y1], 1), first),
                             np.maximum.reduceat(np.stack([x2, y2], 1), first) + 1], 1).astype(np.float32)
    turns = [runs[i:j].ravel() for i,j in zip(first, [*first[1:], len(runs)])]
    return values,rles_of_turns([o[o < flat.size] for o in turns], (h, w)),bboxes

@checked(probs=numbers((None, None, None), what="probabilities (n, m, m)"), size=WIDTH_HEIGHT,
         bboxes=numbers((None, 4), what="boxes (n, 4) in pixels"), thresh=FRACTION)
def paste_rle(
    probs:np.ndarray,    # (n, m, m) in [0, 1]: each object's mask, spread over its box, as mask heads predict it
    bboxes:np.ndarray,   # (n, 4) x1 y1 x2 y2, pixels, also fractions; masks are clipped to the image
    size:tuple[int,int], # (w, h) in pixels of the image
    thresh:float=.5,     # in [0, 1]: a pixel belongs to the object if the probability at its center is above this
) -> list[dict]:         # n RLEs as of `encode_rle`
    """The mask of each object at image size, as RLE, without an array of that size. Masks are interpolated bilinearly
    at the centers of the pixels, as by torch's `grid_sample`; torchvision's `paste_masks_in_image` first rounds the box
    to whole pixels, and is up to half a pixel off. The mask is empty for a box without the center of any pixel. Raises
    `ValueError` for shapes that do not fit, and for boxes that are not finite"""
    probs,bboxes,size = np.asarray(probs, np.float32),np.asarray(bboxes, np.float64),check_image_size(size)
    m = probs.shape[-1] if probs.ndim else 0
    if probs.shape != (len(probs) if m else 0, m, m) or bboxes.shape != (len(probs), 4):
        raise ValueError(f"expected probs (n, m, m) and bboxes (n, 4), got {probs.shape} and {bboxes.shape}")
    if not len(probs): return []
    if not (np.abs(bboxes) < 1e6).all(): raise ValueError("bboxes: expected finite pixels below a million; clip them")
    # a border of zeros lets the mask fade out, and the box grows with it
    probs = np.pad(probs, ((0, 0), (1, 1), (1, 1)))
    middle,half = (bboxes[:,2:] + bboxes[:,:2])*.5,(bboxes[:,2:] - bboxes[:,:2])*.5*((m + 2)/m)
    boxes = np.concatenate([middle - half, middle + half], 1).tolist()
    return rles_of_turns([_paste(p, b, size, thresh) for p,b in zip(probs, boxes)], size[::-1])

@checked(holes=choice('raise', 'fill'))
def mask_polygons(
    mask:np.ndarray,   # (h, w) bool
    holes:str='raise', # polygons cannot have holes: 'raise' `ValueError`, or 'fill' them
) -> list[np.ndarray]: # each (k, 2) float32 x y in pixels; from top to bottom, none for an empty mask
    """The outlines of `mask` along the edges of its pixels: `decode_mask` returns the same pixels. Pixels that touch
    only at a corner are separate, so that what they surround is not a hole"""
    x,y,x2,y2 = mask_bbox(mask).astype(int).tolist()
    if x == x2: return []
    edges,starts = loops(np.pad(mask[y:y2,x:x2], 1).astype(np.int8))
    # twice the shoelace formula of right angles: below zero where the pixels are inside, above for a hole
    inner = np.add.reduceat((edges[:,1,0] - edges[:,0,0])*edges[:,0,1], starts) > 0
    outlines = np.split((edges + [x, y]).astype(np.float32).reshape(-1, 2), 2*starts[1:])
    if holes == 'raise' and inner.any():
        at = outlines[inner.argmax()].min(0).astype(int).tolist()
        raise ValueError(f"mask: polygons cannot have holes, and it has {inner.sum()}, one at x, y = {at}; fill them "
                         "by holes='fill', or keep the mask as it is, or as an RLE (`encode_rle`)")
    outer = [o for o,i in zip(outlines, inner) if not i]
    # objects inside a hole have an outline too, until the hole is filled
    return mask_polygons(decode_mask.unchecked(outer, mask.shape[::-1])) if inner.any() else outer

def mask_bbox(
    mask:np.ndarray, # (h, w) bool
) -> np.ndarray:     # (4,) float32 x1 y1 x2 y2 in pixels, right and bottom edges exclusive
    "The tight box around `mask`; all zeros for an empty one"
    (ys,xs) = (np.flatnonzero(check_bool(mask).any(d)) for d in (1, 0))
    return np.array([xs[0], ys[0], xs[-1]+1, ys[-1]+1] if len(xs) else [0]*4, np.float32)

@checked(size=WIDTH_HEIGHT)
def mask_extent(
    mask,                # as for `decode_mask`
    size:tuple[int,int], # (w, h) in pixels of the image
) -> np.ndarray:         # (4,) float32 x1 y1 x2 y2 in pixels, right and bottom edges exclusive
    """The tight box around the pixels of `mask`, zeros for an empty one. Run lengths are not decoded, polygons only as
    far as they reach. Raises `ValueError` as `decode_mask`"""
    size = check_image_size(size)
    if isinstance(mask, dict): return _runs_bbox(rle_counts.unchecked(mask), check_rle_size(mask, size[::-1])[0])
    if not isinstance(mask, (list, tuple)) or not len(mask): return mask_bbox(decode_mask.unchecked(mask, size))
    parts = [check_polygon(p, i) for i,p in enumerate(mask)]
    p = np.concatenate(parts)
    if not ((p >= 0).all() and (p <= size).all()): return mask_bbox(decode_mask.unchecked(mask, size))
    corner = np.floor(p.min(0)).astype(np.int64)
    window = np.minimum(np.ceil(p.max(0)) + 1, size).astype(np.int64) - corner
    # moved on the grid on which outlines are rasterized, where whole pixels are exact
    moved = [((FINE*o + .5).astype(np.int64) - FINE*corner)/FINE for o in parts]
    box = mask_bbox(decode_mask.unchecked(moved, window.tolist()))
    return box + np.tile(corner, 2).astype(np.float32) if box.any() else box

def _runs_bbox(counts, h):   # as of `rle_counts` -> (4,) float32
    ends = counts.cumsum()
    first,last = (ends - counts)[1::2],ends[1::2] - 1
    first,last = first[last >= first],last[last >= first]
    if not len(first): return np.zeros(4, np.float32)
    (x1,y1),(x2,y2) = np.divmod(first, h),np.divmod(last, h)
    # a run that continues in the next column touches both edges
    y = (0, h) if (x1 != x2).any() else (y1.min(), y2.max() + 1)
    return np.array([x1.min(), y[0], x2.max() + 1, y[1]], np.float32)

# --- probabilities to masks

def _paste(p, box, size, thresh):   # p (m, m); box x1 y1 x2 y2 -> turns, as of `turns_of`
    (x,across),(y,down) = (_taps(*box[i::2], size[i], len(p)) for i in (0, 1))
    (w,h),(ww,wh) = size,(len(across), len(down))
    # only the window; zeros end each of its columns, except where it is as high as the image: runs then continue in the
    # next column
    columns = np.zeros((ww + 1, wh + (wh < h)), bool)
    np.greater(across@p.T@down.T, thresh, out=columns[:ww,:wh])
    column,row = np.divmod(turns_of(columns.ravel()), columns.shape[1])
    turns = (x + column)*h + y + row
    return turns[turns < w*h]

def _taps(a, b, end, m):   # -> first pixel; (pixels, m) float32, rows sum to 1
    "The weights of `m` samples, spread from `a` to `b`, at the centers of the pixels between, of those in 0..`end` - 1"
    first,last = np.ceil([a - .5, b - .5]).astype(int).tolist()
    pixels = np.arange(max(first, 0), min(last, end))
    at = (((pixels + .5 - a)*(m/(b - a) if b > a else 0.)) - .5).clip(0, m - 1).astype(np.float32)
    return max(first, 0),np.maximum(1 - np.abs(at[:,None] - np.arange(m, dtype=np.float32)), 0)
