"Images with their annotations or predictions"
from __future__ import annotations
from collections import Counter
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from torch import Tensor
from PIL.Image import Image
from ..arguments import FLAG, FRACTION, NAMES, TEXT, Kind, checked, is_whole, numbers, several
from ..data.class_masks import decode_class_mask
from ..data.image import read_image
from ..data.targets import point_pairs
from ..ops.colours import class_colours, is_background, palette
from ..ops.masks import decode_mask
from .layout import GREY, crowd_legend, has_one_class
from .names import PlacedName, names_of, write_below

__all__ = ['show_annotation', 'paint_classes', 'draw_points']
IMAGE  = Kind("a PIL image or an array (h, w, 3)", lambda o: isinstance(o, Image) or isinstance(o, np.ndarray) and
              o.dtype.kind in 'buif' and (o.ndim == 2 or o.ndim == 3 and o.shape[2] in (3, 4)) and o.size > 0)
PAIRS  = several(Kind("a pair of points, each a name or an index", lambda o: not isinstance(o, str) and len(o) == 2 and
                      all(isinstance(v, str) or is_whole(v) for v in o)),
                 "a list of pairs of points, such as ('left_eye', 'right_eye')")

@checked(image=IMAGE, title=TEXT, scores=FLAG, alpha=FRACTION, point_names=NAMES, skeleton=PAIRS)
def show_annotation(
    a,             # Annotation
    ax=None,       # matplotlib Axes to draw on; None (default): new ones
    image=None,    # PIL image or array in place of the file
    vocab=None,    # list of class names, so that a class has the same colour in several images; None (default): those
                   # of `a`. If there is only one class, its name is not written, and each object has its own colour
    title=None,    # text above the image; None (default): none
    scores=True,   # write scores behind the labels of predictions
    alpha=None,    # opacity of masks, in [0, 1]; None (default): 0.45 for objects, 0.65 for classes
    point_names=None, # list of names, written beside the points where they fit, and for `skeleton`; None: none
    skeleton=(),   # pairs of points, by name or index, that are joined by a line
):                 # the axes
    """Draw `a`: its image, masks, boxes with their labels, points; labels without boxes are written below. Class masks
    are painted over a grey version of the image. A label of a box that fits nowhere without hiding another one, or the
    centre of a box, is not written"""
    own = ax is None
    if own: ax = plt.subplots(figsize=_figsize(a.size), layout='constrained')[1]
    if image is None: image = read_image(a.path)
    image = np.asarray(image.convert('RGB') if isinstance(image, Image) else image)
    image = image[...,:3] if image.ndim == 3 else np.stack([image]*3, -1)
    one = vocab is not None and has_one_class(vocab)
    vocab = list(vocab) if vocab is not None else sorted(set(a.labels))
    colours = object_colours(a.labels, vocab, one)
    if a.masks is not None:
        masks = [(decode_mask(m, a.size), *c) for m,c in zip(a.masks, colours)]
        image = overlay_masks(image, masks, .45 if alpha is None else alpha)
    if a.mask is not None and a.bboxes is None:
        image = paint_classes(image, decode_class_mask(a.mask, a.size), vocab, .65 if alpha is None else alpha)
    ax.imshow(image); ax.set_axis_off(); ax.set_anchor('N')
    ax.set_xlim(-.5, a.size[0]-.5); ax.set_ylim(a.size[1]-.5, -.5)
    names = ['']*len(a.labels) if one and a.bboxes is not None else a.labels
    if scores and a.scores is not None: names = [f'{o} {s:.2f}'.strip() for o,s in zip(names, a.scores)]
    other = a.points is not None or a.mask is not None
    if a.bboxes is None: write_below(ax, [(n, 'black') for n in names] or [('no label', 'grey')]*(not other))
    elif not len(a.bboxes): write_below(ax, [('no object', 'grey')])
    else:
        for b,n,(_,c) in zip(a.bboxes, names, colours): draw_bbox(ax, b, n, c)
    if a.points is not None:
        for one in a.points.reshape(-1, a.points.shape[-2], 2):
            draw_points(ax, one, point_names or [], skeleton, bool(point_names))
    if title: ax.set_title(title, fontsize=9)
    if own and a.bboxes is not None: crowd_legend(ax.figure, vocab, a.labels, len(a.bboxes))
    return ax

def _figsize(size, width=4.):
    "Inches for an image of `size` (w, h)"
    return width,min(max(width*size[1]/size[0], 1.), 8.) + .2

def object_colours(labels, vocab, one=False):
    """[(colour of the mask, colour of box and outline)] of each object. Masks of one class differ in shade; with `one`
    (class only), each object has a colour of its own"""
    if one: return [(c, c) for c in palette(len(labels))]
    colour,seen = class_colours(vocab),Counter()
    res = []
    for o in labels:
        c = np.asarray(colour.get(o, GREY))
        res.append((_shade(c, seen[o]), c))
        seen[o] += 1
    return res

def _shade(colour, k):
    "`colour` itself for the first object of a class, then lighter and darker in turn"
    share,to = [(0, 0), (.4, 1), (.35, 0), (.65, 1), (.55, 0)][k%5]
    return (1-share)*colour + share*to

def overlay_masks(image, masks, alpha):
    """`image`, grey under the masks, with every (mask, colour, colour of its outline) painted over it, the outline
    inside the mask and opaque"""
    out,thick = image.astype(np.float32),max(1, round(max(image.shape[:2])/250))
    if masks: out = np.where(np.any([m for m,*_ in masks], 0)[...,None], _grey(image), out)
    for m,c,_ in masks: out[m] = (1-alpha)*out[m] + alpha*255*np.asarray(c)
    # outlines last, so that no object's mask is over another one's
    for m,_,c in masks: out[m & ~_eroded(m, thick)] = 255*np.asarray(c)
    return out.clip(0, 255).astype(np.uint8)

def _eroded(m, n):
    "The mask `m` without its outermost `n` pixels"
    for _ in range(n):
        p = np.pad(m, 1)
        m = m & p[:-2,1:-1] & p[2:,1:-1] & p[1:-1,:-2] & p[1:-1,2:]
    return m

@checked(alpha=FRACTION, image=numbers((None, None, 3), what="an image, an array (h, w, 3)"),
         mask=numbers((None, None), what="class indices (h, w) in 0 to 255", types='iu', lo=0, hi=255))
def paint_classes(
    image,      # (h, w, 3) uint8
    mask,       # (h, w) class indices, 255 = void
    vocab=(),   # list of class names; a first one called 'background' is not painted
    alpha=.65,  # opacity of the classes, in [0, 1]
):              # (h, w, 3) uint8
    """A grey version of `image` with a colour for each class over it, void in black. The outlines of the regions have
    the colour at full opacity"""
    image,mask = np.asarray(image),np.asarray(mask)
    if image.shape[:2] != mask.shape: raise ValueError(
        f"mask: expected (h, w) = {image.shape[:2]} as the image's, got {mask.shape}")
    colours,opacity = _class_palette(mask, vocab),np.full(256, alpha)
    if is_background(vocab): opacity[0] = 0
    k = np.where(_outlines(mask) & (opacity[mask] > 0), 1, opacity[mask])[...,None]
    return ((1-k)*_grey(image) + k*255*colours[mask]).clip(0, 255).astype(np.uint8)

def _class_palette(mask, vocab):   # -> (256, 3)
    "The colour of each index; those without a name come after those that have one"
    n = max(len(vocab), int(mask[mask != 255].max(initial=0)) + 1)
    named,colours = class_colours(vocab),np.zeros((256, 3))
    colours[:n] = palette(n)
    for i,o in enumerate(vocab): colours[i] = named[str(o)]
    colours[255] = 0
    return colours

def _grey(image):   # -> (h, w, 1)
    "`image` without its colours and with less contrast, so that neither hides the colours that are laid over it"
    return 50 + .7*(np.asarray(image, np.float32)@np.float32([.299, .587, .114]))[...,None]

def _outlines(mask):   # -> (h, w) bool
    "The outermost pixels of each region, as many as show at the usual size of an image"
    inside = np.ones(mask.shape, bool)
    for _ in range(max(1, round(max(mask.shape)/250))):
        m,p = (np.pad(o, 1, 'edge') for o in (mask, inside))
        for y,x in ((0, 1), (2, 1), (1, 0), (1, 2)):
            around = slice(y, y+mask.shape[0]),slice(x, x+mask.shape[1])
            inside = inside & p[around] & (m[around] == mask)
    return ~inside

def draw_bbox(ax, b, name, colour, dashed=False):
    x1,y1,x2,y2 = (float(o)-.5 for o in b)   # pixel i covers i-.5 to i+.5 for matplotlib
    ax.add_patch(Rectangle((x1, y1), x2-x1, y2-y1, fill=False, ec=colour, lw=1.6, ls='--' if dashed else '-'))
    names = names_of(ax)
    names.points.append(((x1+x2)/2, (y1+y2)/2))   # no name is written over the centre of an object
    if not name: return
    # above the box, within it, below it
    places = [(x, y, side, v) for y,v in ((y1, 'bottom'), (y1, 'top'), (y2, 'top'), (y2, 'bottom'))
              for x,side in ((x1, 'left'), (x2, 'right'))]
    t = PlacedName(name, places, colour, fontsize=7, bbox=dict(boxstyle='square,pad=.15', fc=colour, ec='none'))
    names.texts.append(ax.add_artist(t))

@checked(points=numbers((None, 2), (None, None, 2), what="(k, 2) points in pixels"), skeleton=PAIRS, names=FLAG,
         ring=FLAG)
def draw_points(
    ax,          # matplotlib Axes that show the image
    points,      # (k, 2) pixels of the image shown; nan: not drawn
    vocab,       # list of the k points' names
    skeleton=(), # pairs of points, by name or index, that are joined by a line
    names=None,  # write the names that hide neither a point nor another name; None (default): if there are at most 20
                 # points
    ring=False,  # draw rings in place of dots
):
    "Draw points on an image, each in a colour of its own"
    p = points.as_subclass(Tensor).cpu().numpy() if isinstance(points, Tensor) else np.asarray(points)
    p = p.reshape(-1, 2) - .5
    colour,s,rim = palette(len(p)),max(7, 26-len(p)/3),.5 if len(p) <= 20 else .2
    for i,j in point_pairs(skeleton, vocab, 'skeleton', len(p)):
        if np.isnan(p[[i, j]]).any(): continue
        ax.plot(*p[[i, j]].T, color='white', lw=2.4, alpha=.6, zorder=2)
        ax.plot(*p[[i, j]].T, color=colour[j], lw=1.4, zorder=3)
    if ring: ax.scatter(*p.T, s=3*s, c='none', edgecolors=colour, linewidths=1., zorder=4)
    else:    ax.scatter(*p.T, s=s, c=colour, edgecolors='white', linewidths=rim, zorder=4)
    if not (names or (names is None and len(p) <= 20)): return
    group = names_of(ax)
    group.points += p[~np.isnan(p).any(1)].tolist()
    for (x,y),n,c in zip(p, vocab, colour):
        if np.isnan(x): continue
        places = [(x, y, h, v) for v in ('bottom', 'top') for h in ('left', 'right')]
        t = PlacedName(n, places, c, pad=4, fontsize=6, bbox=dict(boxstyle='round,pad=.1', fc=c, ec='none', alpha=.8))
        group.texts.append(ax.add_artist(t))
