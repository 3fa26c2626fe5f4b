"Drawn shapes: pictures with exact labels, boxes, masks and points, for tests and demos without a download"
from __future__ import annotations
from colorsys import hsv_to_rgb
from operator import index
from pathlib import Path
import numpy as np
from PIL import Image
from .annotation import Annotation
from ..ops.masks import decode_mask, mask_bbox

__all__ = ['draw_shapes', 'SHAPES', 'SHAPE_CODES', 'SHAPE_POINTS', 'SHAPE_FLIP_PAIRS']

SHAPES = ('circle', 'square', 'star', 'triangle')
SHAPE_CODES = ('background', *SHAPES)   # the names of the class masks' indices, in order
SHAPE_POINTS = ('centre', 'left', 'right', 'top', 'bottom')
SHAPE_FLIP_PAIRS = ((1, 2),)            # the points that change places in a mirrored picture

def draw_shapes(
    path,                         # folder, made where it is missing; files of the same name are written over
    n:int=32,                     # pictures, 1 or more
    size:int|tuple[int,int]=64,   # pixels of a square picture, or (w, h); 16 or more
    seed:int=0,                   # 0 or more; the same arguments give the same pixels
) -> list[Annotation]:            # label, box, polygon, `SHAPE_POINTS` of each object; `mask`: a file, by `SHAPE_CODES`
    """Draw `n` pictures into `path`/images and their class masks into `path`/masks, and tell exactly what is on them.

    A picture holds one to four objects that neither touch nor leave it, as many as find room; one picture in eight is
    empty, and at least one of four or more. The shapes take turns, so that few pictures show them all."""
    w,h = _wh(size)
    if n < 1: raise ValueError(f"n: expected 1 picture or more, got {n!r}")
    path,rng = Path(path),np.random.default_rng(seed)
    for o in ('images', 'masks'): (path/o).mkdir(parents=True, exist_ok=True)
    empty = set(rng.permutation(n)[:max(round(n/8), int(n >= 4))].tolist())
    kinds = iter(rng.permuted(np.tile(SHAPES, (n, 1)), axis=1).ravel().tolist())
    counts = [0 if i in empty else rng.integers(1, 5) for i in range(n)]
    return [_draw(path, f'{i:04d}.png', _arrange(rng, w, h, k, kinds), rng, w, h) for i,k in enumerate(counts)]

def _wh(size):
    try: w,h = map(index, (size, size) if np.ndim(size) == 0 else size)
    except (TypeError, ValueError): w = h = 0
    if min(w, h) >= 16: return w,h
    raise ValueError(f"size: expected a whole number of pixels or two (w, h), each 16 or more, got {size!r}")

# --- geometry: each shape upright around (0, 0), with a width of about 1, y downwards

def _polar(degrees, r):   # clockwise from the top -> (m, 2)
    a = np.deg2rad(degrees)
    return np.stack([np.sin(a), -np.cos(a)], -1)*np.reshape(r, (-1, 1))

def _outlines():          # -> {shape: ((m, 2) outline, (5, 2) points)}
    tip,notch = .58,.27
    star = np.arange(0, 360, 36)
    # outline, then direction and distance of left, right, top and bottom
    return {k: (o, np.concatenate([np.zeros((1, 2)), _polar(d, r)])) for k,o,d,r in (
        ('circle',   _polar(np.arange(0, 360, 9), .5),                    (-90, 90, 0, 180),   [.5]*4),
        ('square',   _polar((-45, 45, 135, 225), .6),                     (-90, 90, 0, 180),   [.6*.5**.5]*4),
        ('star',     _polar(star, np.where(star%72 == 0, tip, notch)),     (-72, 72, 0, 180),   [tip, tip, tip, notch]),
        ('triangle', _polar((0, 120, 240), .6),                           (-120, 120, 0, 180), [.6, .6, .6, .3]))}

_OUTLINES = _outlines()
_RADIUS = {k: np.hypot(*o.T).max() for k,(o,_) in _OUTLINES.items()}   # of the circle around it

def _arrange(rng, w, h, n, kinds):   # -> [(label, (m, 2) outline, (5, 2) points)] in pixels
    "Up to `n` objects whose surrounding circles keep 2 pixels apart and 1 from the border; the first always finds room"
    objects,circles = [],np.empty((0, 3))
    for _ in range(n):
        kind,side = next(kinds),max(rng.uniform(.2, .45)*min(w, h), 6)
        r = side*_RADIUS[kind]
        at = rng.uniform(r + 1, [w - r - 1, h - r - 1], (50, 2))
        gaps = np.hypot(*(at[:,None] - circles[:,:2]).transpose(2, 0, 1)) - circles[:,2] - r
        free = np.flatnonzero((gaps >= 2).all(1))
        if not len(free): break
        at = at[free[0]]
        turn = np.deg2rad(0 if kind == 'circle' else rng.uniform(-20, 20))
        c,s = np.cos(turn),np.sin(turn)
        # two decimals, so that a text file gives back the same pixels
        objects.append((kind, *((o@[[c, s], [-s, c]]*side + at).round(2) for o in _OUTLINES[kind])))
        circles = np.append(circles, [[*at, r]], 0)
    return objects

# --- paint

_HUES = dict(circle=.01, square=.6, star=.13, triangle=.36)   # red, blue, yellow, green: likely, not certain

def _draw(path, name, objects, rng, w, h):   # -> Annotation
    polygons = [[o.ravel().tolist()] for _,o,_ in objects]
    masks = [decode_mask(p, (w, h)) for p in polygons]
    labels = [k for k,_,_ in objects]
    image,codes = _background(rng, w, h),np.zeros((h, w), np.uint8)
    for k,m in zip(labels, masks):
        image[m],codes[m] = _colours(rng, _HUES[k], m),SHAPE_CODES.index(k)
    image += rng.normal(0, .012, image.shape)
    Image.fromarray((image*255).round().clip(0, 255).astype(np.uint8)).save(path/'images'/name)
    codes = Image.fromarray(codes)
    codes.putpalette(_palette())
    codes.save(path/'masks'/name)
    return Annotation(path/'images'/name, (w, h), labels, np.reshape([mask_bbox(m) for m in masks], (-1, 4)),
                      points=np.reshape([p for *_,p in objects], (-1, 5, 2)), visible=np.full((len(objects), 5), 2),
                      masks=polygons, mask=path/'masks'/name)

def _background(rng, w, h):     # -> (h, w, 3) in about [0, 1]
    "Dull clouds of one colour, with a breath of others"
    base = hsv_to_rgb(rng.random(), rng.uniform(.03, .15), rng.uniform(.3, .75))
    return base + .09*_cloud(rng, w, h, 3)[...,None] + .03*np.stack([_cloud(rng, w, h, 6) for _ in range(3)], -1)

def _cloud(rng, w, h, cells):   # -> (h, w) in about [-1, 1]
    grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((w, h), Image.Resampling.BICUBIC), np.float64)

def _colours(rng, hue, mask):   # -> (k, 3) in about [0, 1], for the pixels of `mask`
    "A strong colour near `hue`, lit from a random side, with a darker rim"
    rgb = hsv_to_rgb((hue + rng.normal(0, .04))%1, rng.uniform(.65, .9), rng.uniform(.65, 1))
    side = rng.uniform(0, 2*np.pi)
    yx = np.argwhere(mask)
    along = (yx - yx.mean(0))@[np.sin(side), np.cos(side)]
    # an object never touches the border, so the neighbours of its pixels are all there
    inner = np.logical_and.reduce([mask[tuple((yx + d).T)] for d in ((-1, 0), (1, 0), (0, -1), (0, 1))])
    return np.multiply.outer((1 + .15*along/max(np.abs(along).max(), 1))*np.where(inner, 1, .85), rgb)

def _palette():   # -> 256*3 bytes: background black, each shape in its hue, void (255) as VOC paints it
    rgb = np.zeros((256, 3))
    for i,k in enumerate(SHAPES, 1): rgb[i] = hsv_to_rgb(_HUES[k], .75, .9)
    rgb[255] = np.array([224, 224, 192])/255
    return (rgb*255).round().astype(np.uint8).tobytes()
