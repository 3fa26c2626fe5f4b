"Overlapping tiles of a large image, and maps resampled from one grid of pixels to another"
from __future__ import annotations
import math
import numpy as np
import torch
import torch.nn.functional as F
from ..arguments import brief, is_number

__all__ = []

def resample_map(p, rect, view):   # (c, h, w) -> (c, y2-y1, x2-x1)
    "Maps `p` interpolated bilinearly at the pixel centers of `rect` of the file, of which `view` is the transform"
    whole = tuple(round(o) for o in view.dst)
    if np.allclose((*rect, *whole), (*view.src, *view.dst), rtol=0, atol=1e-6):
        (x1,y1,x2,y2),(u1,v1,u2,v2) = rect,whole
        p = p[:, v1:v2, u1:u2]
        if p.shape[-2:] == (y2-y1, x2-x1): return p
        return F.interpolate(p[None], (y2-y1, x2-x1), mode='bilinear', align_corners=False)[0]
    grid = []
    for i,n in ((0, p.shape[2]), (1, p.shape[1])):
        (a,b),(u,v) = view.src[i::2],view.dst[i::2]
        at = u + (torch.arange(rect[i], rect[i+2]) + .5 - a)*(v - u)/(b - a)
        at = at.clamp(min(math.ceil(u - 1e-6) + .5, n - .5), max(math.floor(v + 1e-6) - .5, .5))   # not from padding
        grid.append((at*2/n - 1).to(p))
    x,y = grid
    xy = torch.stack([x.expand(len(y), -1), y[:,None].expand(-1, len(x))], -1)
    return F.grid_sample(p[None], xy[None], mode='bilinear', padding_mode='border', align_corners=False)[0]

def check_scale(scale) -> tuple[float,float]:
    xy = tuple(scale) if isinstance(scale, (tuple, list, np.ndarray)) and np.ndim(scale) else (scale, scale)
    if len(xy) == 2 and all(is_number(o) and 0 < o <= 100 for o in xy): return xy
    raise ValueError("scale: expected one number above 0 and up to 100, or two, (x, y): network pixels per image "
                     f"pixel, got {brief(scale)}")

def tile_starts(n, tile):
    "Starts of tiles that cover `n` pixels and overlap by at least half"
    if n <= tile: return [0]
    k = -(-(n-tile)//max(tile//2, 1)) + 1
    return np.linspace(0, n-tile, k).round().astype(int).tolist()

def tile_weights(start, tile, starts):
    """(tile,) weights in [0, 1] of the pixels of a tile. At each border inside the image an eighth of them is 0, and in
    the next eighth weights rise to 1"""
    m,i = tile//8,torch.arange(tile)
    w = torch.ones(tile)
    if start != starts[0]:  w = w*((i - m + 1)/max(m, 1)).clamp(0, 1)
    if start != starts[-1]: w = w*((tile - m - i)/max(m, 1)).clamp(0, 1)
    return w

def extend_image(image, pads):
    "`image` padded by (left, right, top, bottom) pixels, which are reflected, or repeated where it is too small"
    l,r,t,b = pads
    fits = max(l, r) < image.shape[-1] and max(t, b) < image.shape[-2]
    if not any(pads): return image
    return F.pad(image[None].float(), pads, mode='reflect' if fits else 'replicate')[0].to(image.dtype)
