"Images of annotations, ground truth beside prediction; the DataLoader classes whose show_batch and show_results draw"
from __future__ import annotations
import math, re, textwrap
from collections import Counter
from pathlib import Path
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.colors import to_rgb
from matplotlib.offsetbox import AnchoredOffsetbox, TextArea, VPacker
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation as TextAt
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox
import torch
from torch import Tensor
from PIL.Image import Image
from fastcore.basics import detuplify
from fastcore.foundation import L
from fastai.data.core import TfmdDL
from fastai.torch_core import to_detach
from fastai.vision.core import TensorImage
from plum import dispatch
from .arguments import FLAG, FRACTION, NAMES, TEXT, Kind, checked, is_whole, number, numbers, several, whole
from .data.annotation import ANNOTATIONS, Annotation
from .data.blocks import (NO_OBJECT, BBoxLabels, ClassMask, Keypoints, LabelSet, PixelBBox, RegionProposals, label_set,
                          point_pairs)
from .data.image import read_image
from .data.masks import decode_class_mask
from .data.writing import replacing
from .ops.boxes import paired_iou
from .ops.colours import class_colours, is_background, palette, text_colour
from .ops.masks import decode_mask, paste_rle

__all__ = ['show_annotation', 'contact_sheet', 'MultilabelDL', 'KeypointDL', 'LocalizationDL', 'SegmentationDL',
           'DetectionDL', 'InstanceDL', 'plot_confusion', 'plot_label_confusion', 'plot_confusion_per_class',
           'plot_counts', 'plot_per_class', 'paint_classes', 'draw_points', 'RIGHT', 'MISSED', 'FALSE']

TABLE  = Kind("a DataFrame", lambda o: isinstance(o, pd.DataFrame))
SQUARE = Kind("a DataFrame (c, c) of numbers, row = true class, column = predicted class",
              lambda o: isinstance(o, pd.DataFrame) and o.shape[0] == o.shape[1] > 0 and
              not (o.to_numpy(float) < 0).any())
IMAGE  = Kind("a PIL image or an array (h, w, 3)", lambda o: isinstance(o, Image) or isinstance(o, np.ndarray) and
              o.dtype.kind in 'buif' and (o.ndim == 2 or o.ndim == 3 and o.shape[2] in (3, 4)) and o.size > 0)
PAIRS  = several(Kind("a pair of points, each a name or an index", lambda o: not isinstance(o, str) and len(o) == 2 and
                      all(isinstance(v, str) or is_whole(v) for v in o)),
                 "a list of pairs of points, such as ('left_eye', 'right_eye')")
RIGHT,MISSED,FALSE = '#1a7f37','#b35900','#c62828'   # colours of a true positive, a missed label, a false positive
LEGEND = 'Green: found · orange, in brackets: missed · red, with +: false positive'
_GREY  = .5,.5,.5                                    # of what is ignored, or not in the vocab

@checked(image=IMAGE, title=TEXT, scores=FLAG, alpha=FRACTION, point_names=NAMES, skeleton=PAIRS)
def show_annotation(
    a,             # Annotation
    ax=None,       # matplotlib axes; None = new ones
    image=None,    # PIL image or array in place of the file
    vocab=None,    # list of class names, so that a class has the same colour in several images; None = those of `a`.
                   # Where it holds one class alone the name is not written, and each object has its own colour
    title=None,
    scores=True,   # write scores behind the labels of predictions
    alpha=None,    # opacity of masks; None = .45 of objects, .65 of classes
    point_names=None, # names of the points, to be written beside them where they fit, and for `skeleton`
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
    one = vocab is not None and _one_class(vocab)
    vocab = list(vocab) if vocab is not None else sorted(set(a.labels))
    colours = _object_colours(a.labels, vocab, one)
    if a.masks is not None:
        masks = [(decode_mask(m, a.size), *c) for m,c in zip(a.masks, colours)]
        image = _overlay(image, masks, .45 if alpha is None else alpha)
    if a.mask is not None and a.bboxes is None:
        image = paint_classes(image, decode_class_mask(a.mask, a.size), vocab, .65 if alpha is None else alpha)
    ax.imshow(image); ax.set_axis_off(); ax.set_anchor('N')
    ax.set_xlim(-.5, a.size[0]-.5); ax.set_ylim(a.size[1]-.5, -.5)
    names = ['']*len(a.labels) if one and a.bboxes is not None else a.labels
    if scores and a.scores is not None: names = [f'{o} {s:.2f}'.strip() for o,s in zip(names, a.scores)]
    said = a.points is not None or a.mask is not None
    if a.bboxes is None: _write_below(ax, [(n, 'black') for n in names] or [('no label', 'grey')]*(not said))
    elif not len(a.bboxes): _write_below(ax, [('no object', 'grey')])
    else:
        for b,n,(_,c) in zip(a.bboxes, names, colours): _draw_bbox(ax, b, n, c)
    if a.points is not None:
        for one in a.points.reshape(-1, a.points.shape[-2], 2):
            draw_points(ax, one, point_names or [], skeleton, bool(point_names))
    if title: ax.set_title(title, fontsize=9)
    if own and a.bboxes is not None: _crowd_legend(ax.figure, vocab, a.labels, len(a.bboxes))
    return ax

def _figsize(size, width=4.):
    "Inches for an image of `size` (w, h)"
    return width,min(max(width*size[1]/size[0], 1.), 8.) + .2

def _one_class(vocab): return len({*map(str, vocab)} - {NO_OBJECT, 'ignored'}) == 1

def _object_colours(labels, vocab, one=False):
    """[(colour of the mask, colour of box and outline)] of each object. Masks of one class differ in shade; with `one`,
    where the colour of the class would tell nothing, each object has a colour of its own"""
    if one: return [(c, c) for c in palette(len(labels))]
    colour,seen = class_colours(vocab),Counter()
    res = []
    for o in labels:
        c = np.asarray(colour.get(o, _GREY))
        res.append((_shade(c, seen[o]), c))
        seen[o] += 1
    return res

def _shade(colour, k):
    "`colour` itself for the first object of a class, then lighter and darker in turn"
    share,to = [(0, 0), (.4, 1), (.35, 0), (.65, 1), (.55, 0)][k%5]
    return (1-share)*colour + share*to

def _overlay(image, masks, alpha):
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
    vocab=(),   # names of the classes; a first one called 'background' is not painted
    alpha=.65,  # opacity
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

def _legend(fig, vocab, idxs):
    "The colours of the classes `idxs`, below the figure"
    named = class_colours(vocab)
    shown = {i: (named[str(vocab[i])], str(vocab[i])) for i in idxs if i < len(vocab)}
    if is_background(vocab): shown.pop(0, None)
    if 255 in idxs: shown[255] = 'black','void'
    _colour_legend(fig, shown.values())

def _colour_legend(fig, shown, fontsize=7):
    "(colour, name) below the figure, which grows by its height"
    shown = list(shown)
    if not shown: return
    width,height = fig.get_size_inches()
    wide  = .009*fontsize*max(len(n) for _,n in shown) + .4   # inches of a name and its colour
    ncols = max(1, min(len(shown), int(width/wide)))
    nrows = math.ceil(len(shown)/ncols)
    fig.set_size_inches(width, height + .024*fontsize*nrows + .1)
    fig.legend([Rectangle((0, 0), 1, 1, fc=c) for c,_ in shown], [n for _,n in shown], loc='outside lower center',
               ncols=math.ceil(len(shown)/nrows), fontsize=fontsize, frameon=False)

def _caption(fig, text, fontsize=9):
    "A title of the figure in as many lines as its width asks for; the figure grows by their height"
    width,height = fig.get_size_inches()
    lines = textwrap.wrap(text, max(12, int(width/(.0085*fontsize))))
    fig.set_size_inches(width, height + .019*fontsize*len(lines) + .05)
    fig.suptitle('\n'.join(lines), fontsize=fontsize)

# --- names that hide neither each other nor points

class _Name(TextAt):
    "Text at one of several `places`, (x, y, horizontal, vertical alignment) each; not drawn where none of them is free"
    fits = True
    def __init__(self, text, places, colour, pad=0., **kwargs):
        x,y,ha,va = places[0]
        self.places,self.pad = places,pad
        super().__init__(text, (x, y), xytext=self._away(ha, va), textcoords='offset points', ha=ha, va=va,
                         clip_on=True, color=text_colour(to_rgb(colour)), zorder=5, **kwargs)
        self.set_in_layout(False)

    def _away(self, ha, va):
        "Offset in points from where the text is anchored"
        return dict(left=1, right=-1)[ha]*self.pad,dict(bottom=1, top=-1)[va]*self.pad

    def boxes(self, renderer, data):
        "The pixels that the text takes at each of its places"
        now,point = self.get_window_extent(renderer),renderer.points_to_pixels(1.)
        for x,y,ha,va in self.places:
            dx,dy = self._away(ha, va)
            x,y = data.transform((x, y)) + np.array([dx, dy])*point
            x,y = x - now.width*(ha == 'right'),y - now.height*(va == 'top')
            yield Bbox([[x-1, y-1], [x+now.width+1, y+now.height+1]])

    def move(self, place):
        x,y,ha,va = place
        if (self.xy, self.get_ha(), self.get_va()) == ((x, y), ha, va): return   # a change would ask for another draw
        self.xy,self.xyann = (x, y),self._away(ha, va)
        self.set(ha=ha, va=va)

    def draw(self, renderer):
        names = _names_of(self.axes)
        names.texts = [t for t in names.texts if t.axes is self.axes]   # without those that were removed
        if self is names.texts[0]: names.arrange(renderer)   # drawn before the others: by now sizes are final
        if self.fits: super().draw(renderer)

class _Names:
    "The names on some axes, and the `points` of the image that they must not hide"
    def __init__(self): self.texts,self.points = [],[]

    def arrange(self, renderer):
        "Give each name the first of its places that is free"
        axes = self.texts[0].axes
        data,inside,r = axes.transData,axes.bbox.padded(2),renderer.points_to_pixels(2.)
        taken = [Bbox([[x-r, y-r], [x+r, y+r]]) for x,y in data.transform(np.reshape(self.points, (-1, 2)))]
        for t in self.texts:
            t.fits = False
            for place,box in zip(t.places, t.boxes(renderer, data)):
                within = all(inside.contains(*o) for o in (box.min, box.max))
                if not within or box.count_overlaps(taken): continue
                t.fits = True; t.move(place); taken.append(box)
                break

def _names_of(ax):
    "The `_Names` of `ax`, kept on the axes themselves, so that both go together"
    if not hasattr(ax, 'image_names'): ax.image_names = _Names()
    return ax.image_names

def _draw_bbox(ax, b, name, colour, dashed=False):
    x1,y1,x2,y2 = (float(o)-.5 for o in b)   # pixel i covers i-.5 to i+.5 for matplotlib
    ax.add_patch(Rectangle((x1, y1), x2-x1, y2-y1, fill=False, ec=colour, lw=1.6, ls='--' if dashed else '-'))
    names = _names_of(ax)
    names.points.append(((x1+x2)/2, (y1+y2)/2))   # no name is written over what a box is about
    if not name: return
    # above the box, within it, below it
    places = [(x, y, side, v) for y,v in ((y1, 'bottom'), (y1, 'top'), (y2, 'top'), (y2, 'bottom'))
              for x,side in ((x1, 'left'), (x2, 'right'))]
    t = _Name(name, places, colour, fontsize=7, bbox=dict(boxstyle='square,pad=.15', fc=colour, ec='none'))
    names.texts.append(ax.add_artist(t))

def _write_below(ax, lines, most=9, fontsize=8):
    "Coloured lines, (text, colour) each, under an image"
    if not lines: return
    if len(lines) > most: lines = lines[:most-1] + [(f'... and {len(lines)-most+1} more', 'grey')]
    texts = [TextArea(t, textprops=dict(color=c, fontsize=fontsize)) for t,c in lines]
    ax.add_artist(AnchoredOffsetbox('upper left', child=VPacker(children=texts, pad=0, sep=2, align='left'), pad=0,
                                    borderpad=.1, frameon=False, bbox_to_anchor=(0, 0), bbox_transform=ax.transAxes))

@checked(truths=ANNOTATIONS, preds=ANNOTATIONS, n=whole(1, 10000), title=TEXT)
def contact_sheet(
    truths,          # list[Annotation], the ground truth
    preds=None,      # list[Annotation] of the same images, or None
    fname=None,      # image file to write; None = only the figure
    n:int=12,        # images at most
    ncols:int=None,  # images, each with its ground truth and prediction, in a row
    vocab=None,      # list of class names; None = those of `truths`
    title=None,
    **kwargs,        # of `show_annotation`: `point_names`, `skeleton`, `alpha`
):                   # the figure
    """A sheet of images, each with its ground truth or, given `preds`, ground truth and prediction side by side; beside
    class masks the image itself"""
    if fname is not None and Path(fname).suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        raise ValueError(f"fname: expected a name that ends in .png, .jpg, .pdf or .svg, got {str(fname)!r}")
    truths,preds = list(truths)[:n],None if preds is None else list(preds)[:n]
    if not truths: raise ValueError("a contact sheet needs at least one annotation, got none")
    if preds is not None and len(preds) != len(truths):
        raise ValueError(f"{len(truths)} annotations but {len(preds)} predictions: one for each is needed")
    painted = [a.mask is not None and a.bboxes is None for a in truths]
    panels  = ['Image']*any(painted) + ['Ground truth'] + ['Prediction']*(preds is not None)
    per = len(panels)
    aspect = np.mean([a.size[1]/a.size[0] for a in truths])
    ncols = ncols or _columns(len(truths), max((6 if aspect > .5 else 3)//per, 1))
    vocab = vocab or sorted({o for a in (*truths, *(preds or [])) for o in a.labels})
    fig,axs = _grid(len(truths)*per, ncols*per, aspect=aspect,
                    lines=_most_lines([*truths, *(preds or [])]), titles=per > 1)
    for i,a in enumerate(truths):
        ax = dict(zip(panels, axs[i*per:]))
        if preds is not None and _only_labels(preds[i]):
            a = Annotation(a.path, a.size, label_set(a))     # names beside names
        if 'Image' in ax: _show_image(a, ax['Image'])
        show_annotation(a, ax['Ground truth'], vocab=vocab, **kwargs)
        if preds is not None: _show_prediction(a, preds[i], ax['Prediction'], vocab, **kwargs)
        for name,o in ax.items():
            if per > 1: o.set_title(name, fontsize=9)
    masks = [a.mask for a in (*truths, *(preds or [])) if a.mask is not None and a.bboxes is None]
    if masks: _legend(fig, vocab, sorted({i for m in masks for i in np.unique(decode_class_mask(m)).tolist()}))
    boxed = [a for a in (*truths, *(preds or [])) if a.bboxes is not None]
    _crowd_legend(fig, vocab, [o for a in boxed for o in a.labels], max((len(a.labels) for a in boxed), default=0))
    if title: _caption(fig, title, 11)
    if fname is not None:
        with replacing(fname) as part:
            fig.savefig(part, dpi=110, bbox_inches='tight', format=Path(fname).suffix[1:] or None)
    return fig

def _show_image(a, ax): ax.imshow(np.asarray(read_image(a.path))); ax.set_axis_off()

def _show_prediction(truth, pred, ax, vocab, **kwargs):
    if not _only_labels(pred): return show_annotation(pred, ax, vocab=vocab, **kwargs)
    _show_image(truth, ax)
    scores = dict(zip(pred.labels, pred.scores)) if pred.scores is not None else {}
    _write_below(ax, _label_lines(set(truth.labels), set(pred.labels), scores))

def show_predictions(
    preds,      # list[Annotation], what a learner predicts
    images,     # as many PIL images
    ncols=None, # images in a row
    **kwargs,   # of `show_annotation`: `vocab`, `point_names`, `skeleton`, `alpha`
):              # the figure
    "Images with what was predicted, where there is no ground truth to put beside"
    fig,axs = _grid(len(preds), ncols or _columns(len(preds), 5), lines=_most_lines(preds),
                    aspect=np.mean([a.size[1]/a.size[0] for a in preds]), width=2.6)
    for a,im,ax in zip(preds, images, axs): show_annotation(a, ax, image=im, **kwargs)
    boxed = [a for a in preds if a.bboxes is not None]
    _crowd_legend(fig, kwargs.get('vocab', ()), [o for a in boxed for o in a.labels],
                  max((len(a.labels) for a in boxed), default=0))
    masks = [a.mask for a in preds if a.mask is not None]
    if masks: _legend(fig, kwargs.get('vocab', ()), _classes(map(torch.as_tensor, masks)))
    return fig

def _only_labels(a): return a.bboxes is None and a.points is None and a.mask is None

def _most_lines(anns):
    "Lines of text below the image that has the most"
    return max((len(a.labels) if a.bboxes is None else int(not len(a.bboxes)) for a in anns), default=0)

def _label_lines(truth, pred, scores):
    "Lines for true positives, missed labels and false positives"
    s = lambda o: f' {scores[o]:.2f}' if o in scores else ''
    lines = [(o + s(o), RIGHT)         for o in sorted(truth & pred)] + \
            [(f'({o}{s(o)})', MISSED) for o in sorted(truth - pred)] + \
            [(f'+ {o}{s(o)}', FALSE)  for o in sorted(pred - truth)]
    return lines or [('no label', RIGHT)]

def _columns(n, most):
    "Columns, up to `most`, for `n` images: those that leave the fewest places empty, of these the most"
    return min(range(min(n, most), min(n, most)//2, -1), key=lambda c: -n%c)

def _grid(n, ncols, aspect=1., lines=0, width=2.1, titles=False):
    """A figure and `n` axes in rows of `ncols`, for images of height/width `aspect` with `lines` of text below, and
    `titles` above; few images in a row are larger than `width` inches"""
    ncols = max(1, min(ncols, n)); nrows = math.ceil(n/ncols)
    width = max(width, min(4.2, 8.4/ncols))
    text = .165*min(lines, 9) + .2*titles + .06
    height = width*min(max(aspect, .2), 2.5) + text
    fig,axs = plt.subplots(nrows, ncols, figsize=(width*ncols, nrows*height), squeeze=False, layout='constrained')
    fig.get_layout_engine().set(h_pad=.03, w_pad=.03, hspace=0, wspace=0)
    # images at the top of their place, next to their title: what is left is below
    for ax in axs.flat: ax.set_axis_off(); ax.set_anchor('N')
    return fig,axs.flatten()

class _TaskDL(TfmdDL):
    def __iter__(self):
        try: yield from super().__iter__()
        except Exception as e:
            told = _from_worker(e)
            if told is None: raise
            raise told from None

    def show_unique(self, max_n, **kwargs):
        """`show_batch` of the first image that has an object, or of the first where none has, again and again, so that
        one sees the augmentation"""
        old,idxs = self.get_idxs,list(self.get_idxs())
        first = next((i for i in idxs if self.has_truth and self.has_object(self.items[i])), idxs[0])
        self.get_idxs = FixedOrder([first]*max(max_n, self.bs or 1))
        try: return self.show_batch(max_n=max_n, **kwargs)
        finally: self.get_idxs = old

    def results(self, b, out, max_n:int=9):
        "What fastai's `show_results(show=False)` returns: images, targets, samples, predictions, the last two by image"
        return TfmdDL.show_results(self, b, to_detach(out, gather=False), max_n, show=False)

    @property
    def has_truth(self) -> bool:
        "Whether there are targets beside the images; only targets have classes or points"
        return hasattr(self, 'vocab')

    def show_images(self, b, max_n:int=9, ncols:int=None):
        "Draw `max_n` images of batch `b`, which has nothing else"
        items = [o[0] for o in self.decode_batch(b, max_n)]
        _,axs = _grid(len(items), ncols or _columns(len(items), 5), aspect=b[0].shape[-2]/b[0].shape[-1])
        for ax,x in zip(axs, items): ax.imshow(_hwc(x))

    def has_object(self, a):
        "Whether there is something to be seen of the ground truth of `a`, an `Annotation`"
        return any(not o for o in (np.zeros(len(a.labels)) if a.ignore is None else a.ignore))

def _from_worker(e):
    """An error that a worker process raised, of its own kind: its message first, then torch's, which begins with the
    worker and buries it below a traceback. None for other errors"""
    text = e.args[0] if e.args and isinstance(e.args[0], str) else ''
    head = re.match(r"Caught (\w+) in .*\.\nOriginal Traceback ", text)
    if head is None: return None
    # the last line of the traceback that names the error; what follows is its message
    at = [m.end() for m in re.finditer(rf"^(?:[\w.]+\.)?{head[1]}: ", text, re.M)]
    return type(e)(f"{text[at[-1]:].rstrip()}\n\n{text}") if at else None

class FixedOrder:
    "The indices that a DataLoader gives, in their order; a class, since a closure does not pickle for worker processes"
    def __init__(self, idxs): self.idxs = idxs
    def __call__(self): return self.idxs

class MultilabelDL(_TaskDL):
    "Draws images with their labels below; results with labels found, missed and false, and their probabilities"
    def show_batch(self, b=None, max_n=9, ctxs=None, show=True, unique=False, ncols=None, **kwargs):
        "Draw `max_n` images of a batch; `unique`: one image again and again, so that one sees the augmentation"
        if unique: return self.show_unique(max_n, ncols=ncols)
        if b is None: b = self.one_batch()
        if not show: return self._pre_show_batch(b, max_n=max_n)
        if not self.has_truth: return self.show_images(b, max_n, ncols)
        items = self.decode_batch(b, max_n)
        fig,axs = _grid(len(items), ncols or _columns(len(items), 5), lines=max(1, *(len(y) for _,y in items)))
        for ax,(x,y) in zip(axs, items):
            ax.imshow(_hwc(x)); _write_below(ax, [(str(o), 'black') for o in y] or [('no label', 'grey')])

    def show_results(self, b, out, max_n=9, ctxs=None, show=True, probs=None, losses=None, ncols=None, **kwargs):
        """Draw `max_n` images of batch `b` with the decisions `out`; `probs` (n, c) and `losses` (n,) are written where
        given"""
        if not show: return self.results(b, out, max_n)
        items,vocab,out = self.decode_batch(b, max_n),self.vocab,detuplify(out)   # `Interpretation` gives a tuple
        sets = [({*map(str, y)}, {vocab[j] for j in o.nonzero().flatten().tolist()}) for (_,y),o in zip(items, out)]
        fig,axs = _grid(len(items), ncols or _columns(len(items), 5), lines=max(1, *(len(t | p) for t,p in sets)),
                        titles=losses is not None)
        for i,(ax,(x,_),(t,p)) in enumerate(zip(axs, items, sets)):
            ax.imshow(_hwc(x)); ax.set_axis_off()
            scores = {} if probs is None else dict(zip(vocab, probs[i].tolist()))
            if losses is not None: ax.set_title(f'Loss {losses[i]:.2f}', fontsize=9)
            _write_below(ax, _label_lines(t, p, scores))
        _caption(fig, LEGEND)

class KeypointDL(_TaskDL):
    "Draws images with their points, the ground truth as rings and predictions as dots, and the lines of a skeleton"
    def has_object(self, a): return a.points is not None and not np.isnan(a.points).all()

    def show_batch(self, b=None, max_n=9, ctxs=None, show=True, unique=False, ncols=None, names=None, **kwargs):
        """Draw `max_n` images of a batch; `names`: write the points' names where they fit (None: up to 20 points);
        `unique`: one image again and again, so that one sees the augmentation"""
        if unique: return self.show_unique(max_n, ncols=ncols, names=names)
        if b is None: b = self.one_batch()
        if not show: return self._pre_show_batch(b, max_n=max_n)
        if not self.has_truth: return self.show_images(b, max_n, ncols)
        items = self.decode_batch(b, max_n)
        _,axs = _grid(len(items), ncols or _columns(len(items), 4), aspect=b[0].shape[-2]/b[0].shape[-1], width=2.8)
        for ax,(x,y) in zip(axs, items):
            ax.imshow(_hwc(x)); draw_points(ax, y, self.vocab, self.skeleton, names)

    def show_results(self, b, out, max_n=9, ctxs=None, show=True, probs=None, losses=None, ncols=None, names=None,
                     **kwargs):
        """Draw `max_n` images of batch `b`: ground truth as rings, prediction `out` (n, k, 2) in [-1, 1] as dots, a
        line from one to the other; `names`: write the points' names where they fit (None: up to 8 points)"""
        if not show: return self.results(b, out, max_n)
        names = len(self.vocab) <= 8 if names is None else names
        items,size = self.decode_batch(b, max_n),torch.tensor([b[0].shape[-1], b[0].shape[-2]])
        points = (detuplify(out).as_subclass(Tensor).cpu().view(-1, len(self.vocab), 2)+1)/2*size
        _point_results(items, points, losses, ncols, self.vocab, self.skeleton, names)

def _point_results(samples, points, losses=None, ncols=None, vocab=(), skeleton=(), names=False):
    "Images with their ground truth, `samples`, and the predicted (k, 2) `points`, both in pixels of what is shown"
    h,w = samples[0][0].shape[-2:]
    fig,axs = _grid(len(samples), ncols or _columns(len(samples), 4), aspect=h/w, width=2.8, titles=losses is not None)
    for i,(ax,(x,y),p) in enumerate(zip(axs, samples, points)):
        ax.imshow(_hwc(x))
        for t,o in zip(y.as_subclass(Tensor).view(-1, 2), p.view(-1, 2)):
            ax.plot([t[0]-.5, o[0]-.5], [t[1]-.5, o[1]-.5], color='white', lw=.8)
        draw_points(ax, y, vocab, [], False, ring=True)
        draw_points(ax, p, vocab, skeleton, names)
        if losses is not None: ax.set_title(f'Loss {float(losses[i]):.4f}', fontsize=9)
    _caption(fig, 'Rings: ground truth · dots: prediction')

class LocalizationDL(_TaskDL):
    "Draws images with the box and the label of their object; results with the ground truth dashed"
    def has_object(self, a): return super().has_object(a) and a.labels != [NO_OBJECT]

    def show_batch(self, b=None, max_n=9, ctxs=None, show=True, unique=False, ncols=None, **kwargs):
        "Draw `max_n` images of a batch; `unique`: one image again and again, so that one sees the augmentation"
        if unique: return self.show_unique(max_n, ncols=ncols)
        if b is None: b = self.one_batch()
        if not show: return self._pre_show_batch(b, max_n=max_n)
        if not self.has_truth: return self.show_images(b, max_n, ncols)
        items,colour,one = self.decode_batch(b, max_n),class_colours(self.vocab),_one_class(self.vocab)
        boxed = [not o.isnan().any() for *_,o in items]
        _,axs = _grid(len(items), ncols or _columns(len(items), 4), aspect=b[0].shape[-2]/b[0].shape[-1],
                      lines=int(not all(boxed)), width=2.6)
        for ax,(x,name,bbox),there in zip(axs, items, boxed):
            _draw_object(ax, x, bbox, '' if one and there else name, colour[name])

    def show_results(self, b, out, max_n=9, ctxs=None, show=True, probs=None, losses=None, ncols=None, **kwargs):
        """Draw `max_n` images of batch `b`: the ground truth dashed, the prediction `out`, ids (n,) and boxes (n, 1, 4)
        in [-1, 1], solid, green where the class is correct and IoU >= 0.5; `probs` (n, c + 4) and `losses` (n,) are
        written where given"""
        if not show: return self.results(b, out, max_n)
        samples,size = self.decode_batch(b, max_n),torch.tensor([b[0].shape[-1], b[0].shape[-2]]*2)
        boxes = (out[1].as_subclass(Tensor).cpu().view(-1, 4).clamp(-1, 1)+1)/2*size
        said  = [(self.vocab[i],o) for i,o in zip(out[0].tolist(), boxes)]
        _object_results(samples, said, losses, ncols, None if probs is None else probs[:,:-4].max(1).values.tolist())

    def _pre_show_batch(self, b, max_n=9):
        x,y,its = super()._pre_show_batch(b, max_n)
        return x,OneObjectTarget(y or ()),its

class OneObjectTarget(tuple):
    "Class and box of a batch: a type of its own, so that fastai's `plot_top_losses` finds what draws it"

def _object_results(samples, answers, losses=None, ncols=None, scores=None):
    """Images with their ground truth, `samples` of (image, class name, box), and `answers`, predictions of (class name,
    box) in the same pixels"""
    h,w = samples[0][0].shape[-2:]
    wrong = any(said != name for (_,name,_),(said,_) in zip(samples, answers))
    fig,axs = _grid(len(samples), ncols or _columns(len(samples), 4), aspect=h/w, lines=1+wrong, width=2.6,
                    titles=losses is not None)
    for i,(ax,(x,name,bbox),(said,mine)) in enumerate(zip(axs, samples, answers)):
        mine,bbox = (o.as_subclass(Tensor).cpu().view(4) for o in (mine, bbox))
        iou   = paired_iou(mine, bbox).item()
        right = said == name and not iou < .5           # nan: the ground truth has no box
        _draw_object(ax, x, bbox, name, 'white', dashed=True)
        if said != NO_OBJECT: _draw_bbox(ax, mine.tolist(), '', RIGHT if right else FALSE)
        score = '' if scores is None else f' {scores[i]:.2f}'
        where = f', IoU {iou:.2f}' if iou == iou and said != NO_OBJECT else ''
        lines = [(f'{_shown(said)}{score}{where}', RIGHT if right else FALSE)]
        if said != name: lines.append((f'({_shown(name)})', MISSED))
        _write_below(ax, lines)
        if losses is not None: ax.set_title(f'Loss {float(losses[i]):.2f}', fontsize=9)
    _caption(fig, 'Dashed: ground truth · solid: prediction, green where the class is correct and IoU >= 0.5')

def _shown(name): return 'no object' if name == NO_OBJECT else name

def _draw_object(ax, x, bbox, name, colour, dashed=False):
    "An image with the (1, 4) box of its object, none where that is nan"
    ax.imshow(_hwc(x))
    b = bbox.as_subclass(Tensor).cpu().view(4)
    if not b.isnan().any(): _draw_bbox(ax, b.tolist(), '' if dashed else name, colour, dashed)
    elif not dashed: _write_below(ax, [(_shown(name) if name == NO_OBJECT else f'{name}, no box', 'grey')])

class SegmentationDL(_TaskDL):
    "Draws images beside their class masks over a grey version; results with image, ground truth and prediction"
    def has_object(self, a):
        m = decode_class_mask(a.mask, a.size)
        return bool(((m != 255) & (m >= int(is_background(self.vocab)))).any())

    def show_batch(self, b=None, max_n=9, ctxs=None, show=True, unique=False, ncols=None, alpha=.65, **kwargs):
        """Draw `max_n` images of a batch, each beside its mask, in colours of opacity `alpha`; `unique`: one image
        again and again, so that one sees the augmentation"""
        if unique: return self.show_unique(max_n, ncols=ncols)
        if b is None: b = self.one_batch()
        if not show: return self._pre_show_batch(b, max_n=max_n)
        if not self.has_truth: return self.show_images(b, max_n, ncols)
        items = self.decode_batch(b, max_n)
        fig,axs = _grid(2*len(items), 2*(ncols or _columns(len(items), 3)), aspect=b[0].shape[-2]/b[0].shape[-1],
                        width=2.2)
        for i,(x,y) in enumerate(items):
            axs[2*i].imshow(_hwc(x)); axs[2*i+1].imshow(paint_classes(_hwc(x), _indices(y), self.vocab, alpha))
        _legend(fig, self.vocab, _classes(y for _,y in items))

    def show_results(self, b, out, max_n=6, ctxs=None, show=True, probs=None, losses=None, ncols=None, alpha=.65,
                     **kwargs):
        "Draw `max_n` images of batch `b`, each with its ground truth and the prediction `out` (n, h, w) beside it"
        if not show: return self.results(b, out, max_n)
        _mask_results(self.decode_batch(b, max_n), detuplify(out), losses, ncols, self.vocab, alpha)

    def _pre_show_batch(self, b, max_n=9):
        x,y,its = super()._pre_show_batch(b, max_n)
        # for `_plot_top_mask_losses`, which is given no more than this; images alone have no masks
        if y is not None: y.vocab = list(self.vocab)
        return x,y,its

def _indices(y): return y.as_subclass(Tensor).cpu().numpy()

def _classes(masks): return sorted({i for m in masks for i in np.unique(_indices(m)).tolist()})

def _mask_results(samples, preds, losses=None, ncols=None, vocab=(), alpha=.65):
    "Images, their ground truth, `samples` of (image, mask), and (h, w) `preds`, which may be of the centre alone"
    preds = [_centred(p, y.shape[-2:]) for p,(_,y) in zip(preds, samples)]
    h,w = samples[0][0].shape[-2:]
    fig,axs = _grid(3*len(samples), 3*(ncols or _columns(len(samples), 2)), aspect=h/w, width=2., titles=True)
    for i,((x,y),p) in enumerate(zip(samples, preds)):
        t,on = _indices(y),(_indices(y) != 255) & (_indices(p) != 255)
        right = f'{(t == _indices(p))[on].mean():.1%} correct' if on.any() else 'all void'
        axs[3*i].imshow(_hwc(x))
        axs[3*i].set_title('Image' if losses is None else f'Image, loss {float(losses[i]):.2f}', fontsize=8)
        for ax,m,title in ((axs[3*i+1], t, 'Ground truth'), (axs[3*i+2], _indices(p), f'Prediction, {right}')):
            ax.imshow(paint_classes(_hwc(x), m, vocab, alpha)); ax.set_title(title, fontsize=8)
    _legend(fig, vocab, _classes([*(y for _,y in samples), *preds]))

def _centred(p, hw):
    "`p` in the middle of `hw` pixels, the rest void"
    p = p.as_subclass(Tensor).cpu()
    if p.shape[-2:] == tuple(hw): return p
    y,x = ((n-m)//2 for n,m in zip(hw, p.shape[-2:]))
    res = p.new_full(tuple(hw), 255)
    res[y:y+p.shape[-2], x:x+p.shape[-1]] = p
    return res

class DetectionDL(_TaskDL):
    "Draws images with the boxes, labels and masks, if any, of their objects; results with the ground truth dashed"
    def decode_batch(self, b, max_n=9, full=True):
        "fastai's `decode_batch` without the proposals, which are too many to be looked at"
        return [tuple(o for o in s if not isinstance(o, RegionProposals)) for s in super().decode_batch(b, max_n, full)]

    def show_batch(self, b=None, max_n=9, ctxs=None, show=True, unique=False, ncols=None, **kwargs):
        """Draw `max_n` images of a batch, ignored objects in grey; with one class alone without its name, each object
        in a colour of its own. `unique`: one image again and again, so that one sees the augmentation"""
        if unique: return self.show_unique(max_n, ncols=ncols)
        if b is None: b = self.one_batch()
        if not show: return self._pre_show_batch(b, max_n=max_n)
        if not self.has_truth: return self.show_images(b, max_n, ncols)
        items,vocab,one = self.decode_batch(b, max_n),list(self.vocab[1:]),_one_class(self.vocab)
        real = [_real(*o) for _,*o in items]
        fig,axs = _grid(len(items), ncols or _columns(len(items), 4), aspect=b[0].shape[-2]/b[0].shape[-1],
                        lines=int(not all(real)), width=2.6)
        for ax,(x,*_),objects in zip(axs, items, real):
            _draw_objects(ax, x, objects, ['' if one and o[1] in vocab else o[1] for o in objects], vocab)
            if not objects: _write_below(ax, [('no object', 'grey')])
        _crowd_legend(fig, vocab, [o[1] for objects in real for o in objects], max(map(len, real)))

    def show_results(self, b, out, max_n=9, ctxs=None, show=True, probs=None, losses=None, ncols=None, **kwargs):
        """Draw `max_n` images of batch `b`: the ground truth dashed, orange where it was missed; the detections `out`
        (n, k, 6), without those of label 0, green where the class is correct and IoU >= 0.5"""
        if not show: return self.results(b, out, max_n)
        said = [(d[:,:4], [self.vocab[i] for i in d[:,5].int().tolist()], d[:,4].tolist())
                for d in (o.as_subclass(Tensor).cpu() for o in detuplify(out))]
        _detection_results(self.decode_batch(b, max_n), said, losses, ncols, self.vocab[1:])

    def results(self, b, out, max_n=9):
        "As of every task, with the scores behind the boxes, labels and masks of each image"
        dets = out[0] if isinstance(out, (tuple, list)) else out
        x,y,its,outs = super().results(b, out, max_n)
        return x,y,its,L((*o, d[:,4].tolist()) for o,d in zip(outs, dets.as_subclass(Tensor).detach().cpu()))

    def _pre_show_batch(self, b, max_n=9):
        # `Interpretation` decodes detections as if they were targets
        if len(b) > 1 and getattr(b[1], 'shape', (4,))[-1] == 6:
            x,d,*masks = (o.as_subclass(Tensor) if i else o for i,o in enumerate(b))
            b = x,PixelBBox(d[...,:4]),BBoxLabels(d[...,5].long()),*masks
        x,y,its = super()._pre_show_batch(b, max_n)
        y = ObjectsTarget(y or ())
        y.vocab = list(getattr(self, 'vocab', ())[1:])   # images alone have none
        return x,y,its

class ObjectsTarget(tuple):
    """Boxes and ids of a batch, with `vocab`, the names of the classes: a type of its own, so that fastai's
    `plot_top_losses` finds what draws it"""

def _real(bboxes, names, *more):
    "[(box, name, ...)] of what is no padding, on the CPU"
    return [tuple(o.as_subclass(Tensor).cpu() if isinstance(o, Tensor) else o for o in row)
            for row in zip(bboxes, names, *more) if row[1] != NO_OBJECT]

def _draw_objects(ax, x, objects, names, vocab, colours=None):
    """The image `x` with `objects`, (box, class name) or (box, class name, mask) each, and `names` on the boxes;
    `colours` of mask and box, None = by class"""
    colours = _object_colours([o[1] for o in objects], vocab, _one_class(vocab)) if colours is None else colours
    ax.imshow(_overlay(_hwc(x), [(o[2].bool().numpy(), *c) for o,c in zip(objects, colours) if len(o) > 2], .45))
    for (b,label,*_),n,(_,c) in zip(objects, names, colours):
        ignored = label not in vocab
        _draw_bbox(ax, b.tolist(), n, _GREY if ignored else c, dashed=ignored)

def _crowd_legend(fig, vocab, labels, most, limit=12):
    "The colours of the classes, where there are more than `limit` objects in an image, so that not all names have room"
    if most <= limit or _one_class(vocab): return
    _colour_legend(fig, [(c, n) for n,c in class_colours(vocab).items() if n in labels])

class InstanceDL(DetectionDL):
    "Draws images under the masks of their objects, with boxes and labels; results as ground truth beside prediction"
    def show_results(self, b, out, max_n=6, ctxs=None, show=True, probs=None, losses=None, ncols=None, **kwargs):
        """Draw `max_n` images of batch `b`, each with its ground truth, names of missed objects in brackets, and beside
        it the prediction `out`: detections (n, k, 6), without those of label 0, and masks (n, k, m, m). A red box is a
        false positive (mask IoU < 0.5 or another class)"""
        if not show: return self.results(b, out, max_n)
        dets,masks = (o.as_subclass(Tensor).cpu() for o in out)
        said = [(d[:,:4], [self.vocab[i] for i in d[:,5].int().tolist()], m, d[:,4].tolist())
                for d,m in zip(dets, masks)]
        _instance_results(self.decode_batch(b, max_n), said, losses, ncols, self.vocab[1:])

    def _pre_show_batch(self, b, max_n=9):
        x,y,its = super()._pre_show_batch(b, max_n)
        y = InstancesTarget(y or ())
        y.vocab = list(getattr(self, 'vocab', ())[1:])   # images alone have none
        return x,y,its

class InstancesTarget(tuple):
    """Boxes, ids and masks of a batch, with `vocab`, the names of the classes: a type of its own, so that fastai's
    `plot_top_losses` finds what draws it"""

def _instance_results(samples, answers, losses=None, ncols=None, vocab=()):
    """Images with their ground truth, `samples` of (image, boxes, class names, masks), beside `answers`, predictions of
    (boxes, class names, (k, m, m) probabilities, scores) in the same pixels, the best first; a class name that is
    `NO_OBJECT` is padding"""
    h,w = samples[0][0].shape[-2:]
    one,sizes = _one_class(vocab),[0]
    fig,axs = _grid(2*len(samples), 2*(ncols or _columns(len(samples), 2)), aspect=h/w, width=2.6, titles=True)
    for i,((x,*objects),answer) in enumerate(zip(samples, answers)):
        truth = _real(*objects)
        paste = lambda m, b: torch.from_numpy(decode_mask(*paste_rle(m[None].numpy(), b[None].numpy(), (w, h)), (w, h)))
        found = [(b, n, paste(m, b), s) for b,n,m,s in _real(*answer)]
        right,missed = _matched(truth, found)
        sizes += [len(truth), len(found)]
        names = ['' if one and n in vocab else n for _,n,_ in truth]
        names = [f'({n or "missed"})' if j in missed else n for j,n in enumerate(names)]
        _draw_objects(axs[2*i], x, truth, names, vocab)
        colours = _object_colours([o[1] for o in found], vocab, one)
        colours = [(fill, c if ok else np.array(to_rgb(FALSE))) for (fill,c),ok in zip(colours, right)]
        names = [f'{"" if one else n} {s:.2f}'.strip() for _,n,_,s in found]
        _draw_objects(axs[2*i+1], x, [o[:3] for o in found], names, vocab, colours)
        axs[2*i].set_title('Ground truth' + ('' if losses is None else f', loss {float(losses[i]):.2f}'), fontsize=8)
        counts = f'{sum(right)} correct, {len(found)-sum(right)} false, {len(missed)} missed'
        axs[2*i+1].set_title(f'Prediction: {counts}', fontsize=8)
    _crowd_legend(fig, vocab, {n for _,_,o,_ in samples for n in o} | {n for _,o,*_ in answers for n in o}, max(sizes))

def _matched(truth, found, iou=.5):
    "Whether each of `found` matches an object of its class that no better one matches, by mask IoU `iou`; those missed"
    free,right = [j for j,o in enumerate(truth) if o[1] != 'ignored'],[]
    for _,n,m,_ in found:
        ious = [((m & t).sum()/(m | t).sum().clamp(min=1), j) for j in free
                if truth[j][1] == n and (t := truth[j][2].bool()) is not None]
        best,j = max(ious, default=(0., None))
        right.append(bool(best >= iou))
        if right[-1]: free.remove(j)
    return right,free

def _detection_results(samples, answers, losses=None, ncols=None, vocab=()):
    """Images with their ground truth, `samples` of (image, boxes, class names), and `answers`, predictions of (boxes,
    class names, scores) in the same pixels, the best first; a class name that is `NO_OBJECT` is padding"""
    h,w = samples[0][0].shape[-2:]
    one = _one_class(vocab)
    fig,axs = _grid(len(samples), ncols or _columns(len(samples), 3), aspect=h/w, width=3.2, titles=losses is not None)
    for i,(ax,(x,bboxes,names),answer) in enumerate(zip(axs, samples, answers)):
        ax.imshow(_hwc(x))
        truth = [(o, n) for o,n in zip(bboxes.as_subclass(Tensor).cpu(), names) if n != NO_OBJECT]
        found = [o for o in zip(*answer) if o[1] != NO_OBJECT]
        free,right = list(range(len(truth))),[]
        for o,n,_ in found:              # each object is found once
            ious = [(paired_iou(o, truth[j][0]).item() if truth[j][1] == n else 0., j) for j in free]
            best,j = max(ious, default=(0., None))
            right.append(best >= .5)
            if best >= .5: free.remove(j)
        for (o,n,p),ok in zip(found, right):
            _draw_bbox(ax, o.tolist(), f'{"" if one else n} {p:.2f}'.strip(), RIGHT if ok else FALSE)
        for j,(o,n) in enumerate(truth):
            kind = 'grey' if n == 'ignored' else MISSED if j in free else 'white'
            _draw_bbox(ax, o.tolist(), f'({n})' if kind == MISSED and not one else '', kind, dashed=True)
        if losses is not None: ax.set_title(f'Loss {float(losses[i]):.2f}', fontsize=9)
    _caption(fig, 'Dashed: ground truth, orange where missed · solid: predictions, green where the class is correct '
                  'and IoU >= 0.5, else red')

@checked(points=numbers((None, 2), (None, None, 2), what="(k, 2) points in pixels"), skeleton=PAIRS, names=FLAG,
         ring=FLAG)
def draw_points(ax, points, vocab, skeleton=(), names=None, ring=False):
    """(k, 2) `points` in pixels of what `ax` shows, a colour each, without those of nan; `names`: write those names
    that hide neither a point nor another name (None: up to 20 points)"""
    p = torch.as_tensor(points).as_subclass(Tensor).cpu().view(-1, 2).numpy() - .5
    colour,s,rim = palette(len(p)),max(7, 26-len(p)/3),.5 if len(p) <= 20 else .2
    for i,j in point_pairs(skeleton, vocab, 'skeleton', len(p)):
        if np.isnan(p[[i, j]]).any(): continue
        ax.plot(*p[[i, j]].T, color='white', lw=2.4, alpha=.6, zorder=2)
        ax.plot(*p[[i, j]].T, color=colour[j], lw=1.4, zorder=3)
    if ring: ax.scatter(*p.T, s=3*s, c='none', edgecolors=colour, linewidths=1., zorder=4)
    else:    ax.scatter(*p.T, s=s, c=colour, edgecolors='white', linewidths=rim, zorder=4)
    if not (names or (names is None and len(p) <= 20)): return
    group = _names_of(ax)
    group.points += p[~np.isnan(p).any(1)].tolist()
    for (x,y),n,c in zip(p, vocab, colour):
        if np.isnan(x): continue
        places = [(x, y, h, v) for v in ('bottom', 'top') for h in ('left', 'right')]
        t = _Name(n, places, c, pad=4, fontsize=6, bbox=dict(boxstyle='round,pad=.1', fc=c, ec='none', alpha=.8))
        group.texts.append(ax.add_artist(t))

@dispatch
def plot_top_losses(x:TensorImage, y:LabelSet, samples, outs, raws, losses, nrows=None, ncols=None, figsize=None,
                    **kwargs):
    """What `Interpretation.plot_top_losses` calls; drawn as `show_results` is (fastai prints a table without the labels
    of the images)"""
    sets = [(set(map(str, s[1])), set(map(str, o[0]))) for s,o in zip(samples, outs)]
    fig,axs = _grid(len(sets), ncols or _columns(len(sets), 5), lines=max(1, *(len(t | p) for t,p in sets)),
                    titles=True)
    for ax,s,(t,p),l in zip(axs, samples, sets, losses):
        ax.imshow(_hwc(s[0])); ax.set_title(f'Loss {float(l):.2f}', fontsize=9)
        _write_below(ax, _label_lines(t, p, {}))
    _caption(fig, LEGEND)

@plot_top_losses.dispatch
def _plot_top_point_losses(x:TensorImage, y:Keypoints, samples, outs, raws, losses, nrows=None, ncols=None,
                           figsize=None, **kwargs):
    "What `Interpretation.plot_top_losses` calls; drawn as `show_results` is, without names"
    _point_results(samples, [o[0].as_subclass(Tensor).cpu() for o in outs], losses, ncols)

@plot_top_losses.dispatch
def _plot_top_object_losses(x:TensorImage, y:OneObjectTarget, samples, outs, raws, losses, nrows=None, ncols=None,
                            figsize=None, **kwargs):
    "What `Interpretation.plot_top_losses` calls; drawn as `show_results` is"
    _object_results(samples, outs, losses, ncols)

@plot_top_losses.dispatch
def _plot_top_mask_losses(x:TensorImage, y:ClassMask, samples, outs, raws, losses, nrows=None, ncols=None,
                          figsize=None, **kwargs):
    "What `Interpretation.plot_top_losses` calls; drawn as `show_results` is"
    _mask_results(samples, [o[0] for o in outs], losses, ncols, getattr(y, 'vocab', ()))

@plot_top_losses.dispatch
def _plot_top_detection_losses(x:TensorImage, y:ObjectsTarget, samples, outs, raws, losses, nrows=None, ncols=None,
                               figsize=None, **kwargs):
    "What `Interpretation.plot_top_losses` calls; drawn as `show_results` is"
    said = [(b.as_subclass(Tensor).cpu(), n, d[:,4].tolist()) for (b,n),d in zip(outs, raws)]
    _detection_results(samples, said, losses, ncols, y.vocab)

@plot_top_losses.dispatch
def _plot_top_instance_losses(x:TensorImage, y:InstancesTarget, samples, outs, raws, losses, nrows=None, ncols=None,
                              figsize=None, **kwargs):
    "What `Interpretation.plot_top_losses` calls; drawn as `show_results` is"
    said = [(*o, d[:,4].tolist()) for o,d in zip(outs, raws[0])]
    _instance_results(samples, said, losses, ncols, y.vocab)

@dispatch
def tensorboard_log(x:TensorImage, y:OneObjectTarget, samples, outs, writer, step):
    "What fastai's `TensorBoardCallback` calls at the end of an epoch; drawn as `show_results` is"
    _object_results(samples, outs)
    writer.add_figure('Sample results', plt.gcf(), step)

@tensorboard_log.dispatch
def _log_detections(x:TensorImage, y:ObjectsTarget, samples, outs, writer, step):
    "What fastai's `TensorBoardCallback` calls at the end of an epoch; drawn as `show_results` is"
    _detection_results(samples, [(b.as_subclass(Tensor), n, scores) for b,n,scores in outs], vocab=y.vocab)
    writer.add_figure('Sample results', plt.gcf(), step)

@tensorboard_log.dispatch
def _log_instances(x:TensorImage, y:InstancesTarget, samples, outs, writer, step):
    "What fastai's `TensorBoardCallback` calls at the end of an epoch; drawn as `show_results` is"
    _instance_results(samples, outs, vocab=y.vocab)
    writer.add_figure('Sample results', plt.gcf(), step)

def _hwc(x):
    "A decoded image as (h, w, c) uint8 for matplotlib"
    x = x.as_subclass(Tensor).cpu()
    x = x*255 if x.is_floating_point() and x.max() <= 1.001 else x
    return x.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()

# --- tables as plots

@checked(counts=SQUARE, normalize=FLAG)
def plot_confusion(
    counts,          # DataFrame (c, c), row = true class, column = predicted class
    normalize=True,  # as shares of the row
    ax=None,         # matplotlib axes; None = new ones
):                   # the axes
    """A confusion matrix, its values written where there is room, with the total of each row behind its name and a
    colour bar"""
    totals = counts.sum(axis=1)
    share  = counts.div(totals.where(totals > 0), axis=0) if normalize else counts
    return _heatmap(share, totals, ax, 'Share of the true class' if normalize else 'Count', 'Predicted', 'True',
                    1 if normalize else max(counts.to_numpy().max(initial=0), 1))

@checked(shares=SQUARE, totals=several(number(0), "a list of numbers, one for each label"))
def plot_label_confusion(
    shares,          # DataFrame (c, c) in [0, 1] of `label_confusion`, row = true label B, column = predicted label A
    totals=None,     # (c,) numbers of images with each label, written behind its name; None = not written
    ax=None,         # matplotlib axes; None = new ones
):                   # the axes
    "How often label A is predicted for images with label B and without A; on the diagonal recall"
    if totals is not None and len(totals) != len(shares):
        raise ValueError(f"totals has {len(totals)} numbers, but there are {len(shares)} labels")
    ax = _heatmap(shares, totals, ax, 'Share of the images with B and without A', 'Predicted (A)', 'True (B)', 1)
    ax.set_title('Predicted A where B is true', fontsize=9, loc='left')
    return ax

def _heatmap(values, totals, ax, label, xlabel, ylabel, top):
    "A square table in colours from 0 to `top`; grey where it is nan"
    n,names = len(values),[_shown(str(o)) for o in values.index]
    rows = names if totals is None else [f'{o} ({_short(t)})' for o,t in zip(names, totals)]
    cell = .46 if n <= 15 else .34 if n <= 30 else .15
    if ax is None:
        side = 1. + .06*max(map(len, rows)) + cell*n
        ax = plt.subplots(figsize=(max(side, 3.) + .8, max(side, 2.5) - .4), layout='constrained')[1]
    fontsize = 7 if n <= 30 else 5
    image = ax.imshow(values.to_numpy(float), cmap='Blues', vmin=0, vmax=top)
    ax.set_facecolor('#dddddd'); ax.set_anchor('N')
    ax.set_xticks(range(n), [_shown(str(o)) for o in values.columns], rotation=60 if n <= 30 else 90, fontsize=fontsize,
                  ha='right' if n <= 30 else 'center', rotation_mode='anchor' if n <= 30 else 'default')
    ax.set_yticks(range(n), rows, fontsize=fontsize)
    ax.set_xlabel(xlabel, fontsize=9); ax.set_ylabel(ylabel, fontsize=9)
    bar = ax.figure.colorbar(image, ax=ax, shrink=.8, aspect=25, pad=.02,
                             format=(lambda v, _: _short(v)) if top > 1 else None)
    bar.set_label(label, fontsize=8); bar.ax.tick_params(labelsize=7); bar.outline.set_visible(False)
    if n > 30: return ax
    for i,row in enumerate(values.to_numpy(float)):
        for j,v in enumerate(row):
            if not v >= .005*top: continue                     # nan is not
            text = f'{v:.2f}' if top == 1 and values.dtypes.iloc[j].kind == 'f' else _short(v)
            ax.text(j, i, text, ha='center', va='center', fontsize=6.5, color=text_colour(image.cmap(image.norm(v))))
    return ax

def _short(n):
    "A count in at most five characters: 950, 12.3k, 4.1M"
    if n < 9999.5: return f'{n:.0f}'
    for size,unit in ((1e3, 'k'), (1e6, 'M'), (1e9, 'G')):
        if n < 999.5*size: break
    return f'{n/size:.{max(0, 2-int(math.log10(n/size)))}f}{unit}'

@checked(counts=TABLE)
def plot_confusion_per_class(
    counts,          # DataFrame of `multilabel_confusion`: label, tn, fp, fn, tp
    ncols:int=None,  # classes in a row; None = as many as fit evenly, at most 8
):                   # the figure
    "The 2 x 2 confusion matrix of each class: numbers of images, coloured by their share of the row"
    n,missing = len(counts),{'label', 'tn', 'fp', 'fn', 'tp'} - {*counts.columns}
    if missing: raise ValueError(f"counts: expected what `multilabel_confusion` returns, got a table without the "
                                 f"columns {sorted(missing)}")
    if not n: raise ValueError("the table has no classes: pass what `multilabel_confusion` returns")
    ncols = min(ncols or _columns(n, 8), n); nrows = math.ceil(n/ncols)
    fig,axs = plt.subplots(nrows, ncols, figsize=(1.15*ncols + .7, 1.35*nrows + .5), squeeze=False,
                           layout='constrained')
    fig.get_layout_engine().set(h_pad=.02, w_pad=.02, hspace=.02, wspace=.02)
    for ax in axs.flat[n:]: ax.set_axis_off()
    for i,(ax,row) in enumerate(zip(axs.flat, counts.itertuples(index=False))):
        cells = np.array([[row.tn, row.fp], [row.fn, row.tp]], float)
        image = ax.imshow(cells/cells.sum(1, keepdims=True).clip(min=1), cmap='Blues', vmin=0, vmax=1)
        for (y,x),v in np.ndenumerate(cells):
            colour = text_colour(image.cmap(image.norm(image.get_array()[y, x])))
            ax.text(x, y, _short(v), ha='center', va='center', fontsize=7, color=colour)
        ax.set_title(textwrap.shorten(str(row.label), 18, placeholder='...') if ' ' in str(row.label) else
                     str(row.label)[:18], fontsize=7, pad=3)
        ax.set_xticks([0, 1], ['no', 'yes'] if i + ncols >= n else [], fontsize=6)
        ax.set_yticks([0, 1], ['no', 'yes'] if i%ncols == 0 else [], fontsize=6)
        ax.tick_params(length=0, pad=2); ax.spines[:].set_visible(False)
    fig.supxlabel('Predicted', fontsize=9); fig.supylabel('True', fontsize=9)
    return fig

@checked()
def plot_counts(
    annotations,  # list[Annotation]
    vocab=None,   # class names in the order of the plot; those of class masks, which have no names of their own. None =
                  # those of the labels, the commonest first
):                # the figure
    """What is in a data set: objects (or, without boxes, images) of each class, widths and heights of the boxes in
    pixels, images of each split. Classes of class masks are counted by the images that show them, points by the images
    that mark them. Raises `ValueError` for no annotations at all, and for classes that `vocab` lacks"""
    anns = list(annotations)
    if not anns: raise ValueError("there is nothing to count: the list of annotations is empty")
    what,counts,colours = _class_counts(anns, vocab)
    boxes = [(b, o) for a in anns if a.bboxes is not None for b,o in zip(a.bboxes[:,2:]-a.bboxes[:,:2], a.labels)]
    widths,n = [3.2]*bool(counts) + [3.4]*bool(boxes) + [2.6],max(len(counts), 8)
    fig,axs = plt.subplots(1, len(widths), figsize=(sum(widths) + .3, max(3., .145*n + .9)), squeeze=False,
                           layout='constrained', width_ratios=widths)
    axs = list(axs[0])
    if counts: _count_bars(axs.pop(0), counts, what, [colours[o] for o in counts], n)
    if boxes: _plot_box_sizes(axs.pop(0), boxes, colours)
    splits = Counter(a.split or 'not set' for a in anns)
    splits = {o: splits[o] for o in ('train', 'valid', 'test', 'not set') if splits[o]}
    _count_bars(axs.pop(0), splits, 'Images per split', '#5b7d99', n)
    return fig

def _class_counts(anns, vocab):
    "What is counted, how many of each class, the first one on top, and the colours of the classes"
    points = [a.points for a in anns if a.points is not None]
    names  = None if vocab is None else list(map(str, vocab))
    if any(a.labels for a in anns):
        boxed = any(a.bboxes is not None for a in anns)
        what,found = 'Objects per class' if boxed else 'Images per class',Counter(o for a in anns for o in a.labels)
    elif any(a.mask is not None for a in anns):
        masks = (decode_class_mask(a.mask, a.size) for a in anns if a.mask is not None)
        ids = Counter(i for m in masks for i in np.unique(m).tolist())
        ids.pop(255, None)
        names = names or [str(i) for i in range(max(ids, default=-1) + 1)]
        if max(ids, default=0) >= len(names):
            raise ValueError(f"a class mask has index {max(ids)}, but the vocab has {len(names)} names: {names}")
        what,found = 'Images per class',Counter({names[i]: n for i,n in ids.items()})
    elif points:
        k = points[0].shape[-2]
        names = names or [str(i) for i in range(k)]
        if {p.shape[-2] for p in points} != {len(names)}: raise ValueError(
            f"the images have {sorted({p.shape[-2] for p in points})} points, but there are {len(names)} names")
        marked = sum((~np.isnan(p[...,0])).reshape(-1, k).sum(0) for p in points)
        return 'Images per point',dict(zip(names, marked.tolist())),dict(zip(names, palette(k)))
    else: return '',{},{}
    unknown = {*found} - {*(names or found)}
    if unknown: raise ValueError(f"label {sorted(unknown)[0]!r} is not in the vocab {names}")
    counts = dict(found.most_common()) if names is None else {o: found[o] for o in names}
    return what,counts,class_colours(list(counts))

def _count_bars(ax, counts, title, colours, rows):
    "Horizontal bars with their numbers, the first on top, as thick as if there were `rows` of them"
    names,n = [_shown(str(o)) for o in counts],list(counts.values())
    size = 7 if rows <= 40 else 6
    ax.barh(range(len(n)), n, color=colours, height=.75)
    ax.set_yticks(range(len(n)), names, fontsize=size)
    ax.set_ylim(rows-.4, -.6); ax.set_xlim(0, max(*n, 1)*1.2)
    for i,v in enumerate(n): ax.text(v, i, f' {v:,}', va='center', fontsize=size)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_xlabel(title.split()[0], fontsize=8); ax.set_title(title, fontsize=9, loc='left')
    _quiet(ax, 'x')

def _quiet(ax, axis='both'):
    ax.spines[['top', 'right']].set_visible(False)
    ax.tick_params(axis='x', labelsize=7); ax.grid(axis=axis, alpha=.25); ax.set_axisbelow(True)

def _plot_box_sizes(ax, boxes, colours):
    wh = np.maximum([b for b,_ in boxes], .5)   # a logarithm has no 0
    # more points are smaller and fainter, in random order, so that the last class is not on top of all
    order = np.random.default_rng(0).permutation(len(wh))
    k = min(1., (300/len(wh))**.5)
    ax.scatter(*wh[order].T, s=4 + 12*k, c=[colours.get(boxes[i][1], _GREY) for i in order], alpha=max(.15, .8*k),
               linewidths=0, rasterized=True)
    ax.set(xscale='log', yscale='log')
    ax.set_box_aspect(1); ax.set_anchor('N')
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5))); axis.set_major_formatter('{x:g}')
        axis.set_minor_formatter(NullFormatter())
    low,high = wh.min()*.8,wh.max()*1.25
    ax.set_xlim(low, high); ax.set_ylim(low, high)
    side = np.geomspace(low, high, 50)
    for limit in (32, 96):   # where COCO's small, medium and large objects part, by area
        if low**2 < limit**2 < high**2: ax.plot(side, limit**2/side, color='#444444', lw=.8, ls='--', zorder=0)
    ax.set_xlabel('Width in pixels', fontsize=8); ax.set_ylabel('Height in pixels', fontsize=8)
    ax.set_title('Box sizes (dashed: areas 32², 96²)', fontsize=9, loc='left')
    ax.tick_params(axis='y', labelsize=7)
    _quiet(ax)

@checked(df=TABLE, columns=NAMES, sort=TEXT)
def plot_per_class(
    df,             # DataFrame of `evaluate_per_class`: label, n, and a column for each score
    columns=None,   # names of the scores to draw; None = all
    sort=None,      # name of the score that orders the classes, the best on top, classes without a value last; None =
                    # in the order of the table
):                  # the figure
    """A bar for each class and score, the number of its objects (or images, points, pixels) behind its name; a dash
    where the score is nan. Raises `ValueError` for columns that the table lacks"""
    columns = [o for o in df.columns if o not in ('label', 'n')] if columns is None else list(columns)
    missing = [o for o in [*columns, *([sort] if sort else []), 'label'] if o not in df.columns]
    if missing: raise ValueError(f"the table has no column {missing[0]!r}; there are {list(df.columns)}")
    if text := [o for o in columns if df[o].dtype.kind not in 'biuf']:
        raise ValueError(f"columns: expected scores, but {text[0]!r} holds no numbers")
    if not len(df) or not columns: raise ValueError("the table has no rows, or no scores to draw")
    if sort: df = df.sort_values(sort, ascending=sort in _ERRORS, na_position='last', kind='stable')
    colours,n = class_colours(list(map(str, df.label))),len(df)
    names = [_shown(str(o)) + (f' ({_short(k)})' if 'n' in df else '') for o,k in zip(df.label, df.get('n', df.label))]
    size = 7 if n <= 40 else 6
    fig,axs = plt.subplots(1, len(columns), sharey=True, squeeze=False, layout='constrained',
                           figsize=(1.35*len(columns) + .07*max(map(len, names)) + .3, .17*max(n, 4) + .7))
    for ax,o in zip(axs[0], columns):
        v = df[o].to_numpy(float)
        top = np.nanmax([*v, 0])
        if o not in _ERRORS or not top: top = max(top, 1)
        ax.barh(range(n), np.nan_to_num(v), color=[colours[str(o)] for o in df.label], height=.75)
        for i,x in enumerate(v):
            text = '–' if x != x else f'{x:.2f}' if top <= 100 else f'{x:.0f}'
            ax.text(x if x == x else 0, i, f' {text}', va='center', fontsize=size)
        ax.set_xlim(0, 1.32*top); ax.set_ylim(max(n, 4)-.4, -.6)
        ax.set_xticks([0, top/2, top], ['0', f'{top/2:.3g}', f'{top:.3g}'])
        ax.set_title(_score_title(o), fontsize=8, loc='left')
        ax.tick_params(axis='y', length=0, labelsize=size); _quiet(ax, 'x')
    axs[0,0].set_yticks(range(n), names)
    return fig

def _score_title(name): return _SCORES.get(name, name.upper() if 'pck' in name else name[:1].upper() + name[1:])

_ERRORS = 'error_px', 'median_px', 'nme'   # scores of which less is better
_SCORES = dict(ap='AP', ap50='AP50', ap75='AP75', ar='AR', f1='F1', iou='IoU', mean_iou='Mean IoU', nme='NME',
               thresh='Threshold', error_px='Error in pixels', median_px='Median error', ap_segm='AP (masks)',
               ap50_segm='AP50 (masks)', ap75_segm='AP75 (masks)', ar_segm='AR (masks)')
