"Run lengths (RLE) as COCO's maskApi reads and writes them"
from __future__ import annotations
import numpy as np
from ..arguments import Kind, brief, checked, is_whole

__all__ = ['rle_counts']

_RLE = Kind("an RLE, which is a dict(size=[h, w], counts=...)", lambda o: isinstance(o, dict))

# COCO's maskApi counts pixels in 32 bits; this also keeps sizes from taking all memory, or wrapping
MAX_PIXELS = 2**32

def check_image_size(size):   # -> w, h
    try: (w,h),ok = size,True
    except (TypeError, ValueError): ok = False
    if ok and is_whole(w) and is_whole(h) and w >= 0 and h >= 0 and int(w)*int(h) < MAX_PIXELS: return int(w),int(h)
    raise ValueError("size: expected (w, h) of the image as two whole numbers whose product is below 2**32, got "
                     f"{brief(size)}")

@checked(rle=_RLE)
def rle_counts(
    rle:dict,        # size [h, w]; counts: str or bytes as COCO compresses them, or a list of whole numbers
) -> np.ndarray:     # (k,) int64, sum h*w
    """The lengths of the runs of `rle`, column by column, of zeros and ones in turn, starting with zeros (maybe 0 of
    them). Raises `ValueError` for runs that are not valid"""
    (h,w),counts = check_rle_size(rle),rle['counts']
    if isinstance(counts, (str, bytes, bytearray)): n = _decompress(counts)
    else:
        try: n = np.asarray(counts)
        except (TypeError, ValueError, OverflowError): n = np.empty(())   # ragged lists and similar
    if n.ndim != 1 or n.dtype.kind not in 'iu' or (n < 0).any():
        raise ValueError("RLE: expected counts that are whole numbers, 0 or more, or COCO's string of them, "
                         f"got {brief(counts)}; fix the runs")
    # a sum in 64 bits can overflow to h*w, and then any run would pass
    total = int(n.sum()) if int(n.max(initial=0))*len(n) < 2**63 else sum(n.tolist())
    if total != h*w:
        raise ValueError(f"RLE: expected counts whose sum is h*w = {h*w} for size [h, w] = {[h, w]}, got "
                         f"{brief(total)}; "
                         "is the size that of another image, or the file cut?")
    return n.astype(np.int64)

def check_bool(mask):
    if isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.dtype == bool: return mask
    raise ValueError(f"mask: expected an (h, w) bool array, got {what_mask(mask)}; write mask > 0, "
                     "or `decode_mask` first")

def what_mask(o): return f"an array of shape {o.shape}, type {o.dtype}" if isinstance(o, np.ndarray) else brief(o)

# --- run lengths

def turns_of(flat):         # (k,) bool -> starts of the runs, of ones and zeros in turn
    turns = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return np.append(0, turns) if flat[:1].any() else turns

def rles_of_turns(turns, size):   # turns: list of (k,); size: (h, w)
    counts = _compress([np.diff(o, prepend=0, append=size[0]*size[1]) for o in turns])
    return [dict(size=list(size), counts=o) for o in counts]

def check_rle_size(rle, expected=None):
    try: (h,w),_ = rle['size'],rle['counts']
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"RLE: expected dict(size=[h, w], counts=...), got {brief(rle)}; fix the mask") from None
    try: h,w,ok = int(h),int(w),bool(int(h) == h and int(w) == w and h > 0 and w > 0)
    except (TypeError, ValueError, OverflowError): ok = False   # OverflowError: int(inf)
    if not ok: raise ValueError("RLE: expected size [h, w] as two positive whole numbers of pixels, got "
                                f"{brief(rle['size'])}; fix the size")
    if h*w >= MAX_PIXELS: raise ValueError("RLE: expected size [h, w] with fewer than 2**32 pixels, got "
                                           f"{brief([h, w])}; fix the size")
    if expected in (None, (h, w)): return h,w
    raise ValueError(f"RLE: expected size [h, w] = {list(expected)} as the image's, got {[h, w]}; is it [w, h]?")

def rle_columns(rle:dict, size:tuple[int,int]) -> tuple[int,np.ndarray]:
    """The first column with pixels of the mask, and all columns from there to the last, (k, h) bool: the surroundings
    of an object are not decoded. `size`: (w, h) of the image; no column for an empty mask"""
    (h,_),counts = check_rle_size(rle, check_image_size(size)[::-1]),rle_counts.unchecked(rle)
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

def mask_of_runs(counts, size):   # (k,), column by column, zeros first; (h, w) -> (h, w) bool
    flat = np.repeat(np.arange(len(counts))%2 == 1, counts)
    return np.ascontiguousarray(flat.reshape(size[::-1]).T)

# COCO's string: from the fourth on, each number is the difference to the second-last; then five bits per character,
# lowest first, with 32 for "more follow", offset by '0'; the highest bit of a number's last character is its sign
_BITS,_MORE,_ZERO,_LONGEST = 5,32,48,7   # seven characters hold every whole number of 32 bits

def _compress(runs):  # list of (k,) -> list of str, all at once, because most masks are short
    if not runs: return []
    n = np.array([len(o) for o in runs])
    ends,x = n.cumsum(),np.concatenate(runs)
    place = np.arange(len(x)) - np.repeat(ends - n, n)
    x[2:] -= np.where(place[2:] > 2, x[:-2], 0)
    k = np.arange(0, int(np.abs(x).max()).bit_length() + 1, _BITS)   # one more bit, for the sign
    rest = x[:,None] >> k + _BITS - 1   # the last bit and all above it: copies of the sign when nothing is left
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
