"Pictures of annotations, truth beside prediction; and the DataLoader classes whose show_batch and show_results draw"
from __future__ import annotations
import colorsys, math, re
from pathlib import Path
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.offsetbox import AnchoredOffsetbox, TextArea, VPacker
from matplotlib.patches import Rectangle
import torch
from torch import Tensor
from fastcore.basics import detuplify
from fastcore.foundation import L
from fastai.data.core import TfmdDL
from fastai.torch_core import to_detach
from fastai.vision.core import TensorImage
from plum import dispatch
from .data.annotation import Annotation
from .data.blocks import (NO_OBJECT, BBoxLabels, ClassMask, Keypoints, LabelSet, PixelBBox, RegionProposals, label_set,
                          point_pairs)
from .data.image import read_image
from .data.masks import decode_class_mask
from .data.writing import replacing
from .ops.boxes import paired_iou
from .ops.masks import decode_mask, paste_rle

__all__ = ['palette', 'show_annotation', 'contact_sheet', 'MultilabelDL', 'KeypointDL', 'LocalizationDL',
           'SegmentationDL', 'DetectionDL', 'InstanceDL', 'plot_confusion', 'paint_classes', 'draw_points', 'RIGHT',
           'MISSED', 'FALSE']

RIGHT,MISSED,FALSE = '#1a7f37','#b35900','#c62828'   # colours of a label that was found, missed, or made up
LEGEND = 'green: found · orange, in brackets: missed · red, with +: not there'

def palette(n:int) -> np.ndarray: # (n, 3) in [0, 1]
    "`n` colours far apart in hue, neighbours in the list furthest; the first ones do not depend on `n`"
    golden = (5**.5 - 1)/2
    def colour(i): return colorsys.hsv_to_rgb((.58 + i*golden)%1, (.75, .55, .9)[i//8%3], (.9, .95, .7)[i//8%3])
    return np.array([colour(i) for i in range(n)]).reshape(n, 3)

def show_annotation(
    a,             # Annotation
    ax=None,       # matplotlib axes; None = new ones
    image=None,    # PIL image or array in place of the file
    vocab=None,    # list of names, so that a name has the same colour in several pictures; None = those of `a`
    title=None,
    scores=True,   # write scores behind the labels of predictions
    alpha=None,    # opacity of masks; None = .45 of objects, .65 of classes
    point_names=None, # names of the points, to be written beside them, and for `skeleton`
    skeleton=(),   # pairs of points, by name or index, that are joined by a line
):                 # the axes
    "Draw `a`: its picture, masks, boxes with their labels, points; labels without boxes are written below"
    if ax is None: ax = plt.subplots(figsize=_figsize(a.size))[1]
    image = np.asarray(read_image(a.path) if image is None else image)
    vocab = list(vocab) if vocab is not None else sorted(set(a.labels))
    colour = dict(zip(vocab, palette(len(vocab))))
    if a.masks is not None:
        masks = [(decode_mask(m, a.size), colour.get(o, (.5, .5, .5))) for o,m in zip(a.labels, a.masks)]
        image = _overlay(image, masks, .45 if alpha is None else alpha)
    if a.mask is not None and a.bboxes is None:
        image = paint_classes(image, decode_class_mask(a.mask, a.size), vocab, .65 if alpha is None else alpha)
    ax.imshow(image); ax.set_axis_off()
    ax.set_xlim(-.5, a.size[0]-.5); ax.set_ylim(a.size[1]-.5, -.5)
    names = [f'{o} {s:.2f}' for o,s in zip(a.labels, a.scores)] if scores and a.scores is not None else a.labels
    said = a.points is not None or a.mask is not None
    if a.bboxes is None: _write_below(ax, [(n, 'black') for n in names] or [('no label', 'grey')]*(not said))
    elif not len(a.bboxes): _write_below(ax, [('no object', 'grey')])
    else:
        for b,o,n in zip(a.bboxes, a.labels, names): _draw_bbox(ax, b, n, colour.get(o, (.5, .5, .5)))
    if a.points is not None:
        for one in a.points.reshape(-1, a.points.shape[-2], 2):
            draw_points(ax, one, point_names or [], skeleton, bool(point_names))
    if title: ax.set_title(title, fontsize=9)
    return ax

def _figsize(size, width=4.):
    "Inches for a picture of `size` (w, h)"
    return width,min(max(width*size[1]/size[0], 1.5), 8.) + .3

def _overlay(image, masks, alpha):
    "`image` with every (mask, colour) laid over it, its outline inside the mask without `alpha`"
    out,thick = image.astype(np.float32),max(1, round(max(image.shape[:2])/250))
    for m,c in masks:
        out[m] = (1-alpha)*out[m] + alpha*255*np.asarray(c)
        out[m & ~_eroded(m, thick)] = 255*np.asarray(c)
    return out.clip(0, 255).astype(np.uint8)

def _eroded(m, n):
    "The mask `m` without its outermost `n` pixels"
    for _ in range(n):
        p = np.pad(m, 1)
        m = m & p[:-2,1:-1] & p[2:,1:-1] & p[1:-1,:-2] & p[1:-1,2:]
    return m

def paint_classes(
    image,      # (h, w, 3) uint8
    mask,       # (h, w) class indices, 255 = void
    vocab=(),   # names of the classes; a first one called 'background' is not painted
    alpha=.65,  # opacity
):              # (h, w, 3) uint8
    "`image` with a colour for each class, void in black"
    n = max(len(vocab), int(mask[mask != 255].max(initial=0)) + 1)
    colours,opacity = np.zeros((max(n, 255)+1, 3)),np.full(max(n, 255)+1, alpha)
    colours[:n] = palette(n)
    colours[255] = 0
    if is_background(vocab): opacity[0] = 0
    k = opacity[mask][...,None]
    return ((1-k)*image + k*255*colours[mask]).clip(0, 255).astype(np.uint8)

def is_background(vocab):
    "Whether the first class is what is left when all others are painted"
    return len(vocab) > 0 and str(vocab[0]).strip('_').lower() == 'background'

def _legend(fig, vocab, idxs, ncols=8):
    "The colours of the classes `idxs`, below the figure"
    shown = {i: (palette(len(vocab))[i], str(vocab[i])) for i in idxs if i < len(vocab)}
    if is_background(vocab): shown.pop(0, None)
    if 255 in idxs: shown[255] = 'black','void'
    if shown: fig.legend([Rectangle((0, 0), 1, 1, fc=c) for c,_ in shown.values()], [n for _,n in shown.values()],
                         loc='outside lower center', ncols=ncols, fontsize=7, frameon=False)

def _draw_bbox(ax, b, name, colour, dashed=False):
    x1,y1,x2,y2 = b
    # pixel i covers i-.5 to i+.5 for matplotlib
    ax.add_patch(Rectangle((x1-.5, y1-.5), x2-x1, y2-y1, fill=False, ec=colour, lw=1.8, ls='--' if dashed else '-'))
    if not name: return
    above = y1 > .06*ax.get_ylim()[0]     # else there is no room for the name but inside
    ax.text(x1-.5, y1-.5, name, fontsize=7, color='white', va='bottom' if above else 'top', ha='left', clip_on=True,
            bbox=dict(boxstyle='square,pad=.15', fc=colour, ec='none'))

def _write_below(ax, lines, most=9, fontsize=8):
    "Coloured lines, (text, colour) each, under a picture"
    if not lines: return
    if len(lines) > most: lines = lines[:most-1] + [(f'... and {len(lines)-most+1} more', 'grey')]
    texts = [TextArea(t, textprops=dict(color=c, fontsize=fontsize)) for t,c in lines]
    ax.add_artist(AnchoredOffsetbox('upper left', child=VPacker(children=texts, pad=0, sep=2, align='left'), pad=0,
                                    borderpad=.1, frameon=False, bbox_to_anchor=(0, 0), bbox_transform=ax.transAxes))

def contact_sheet(
    truths,          # list[Annotation]
    preds=None,      # list[Annotation] of the same pictures, or None
    fname=None,      # image file to write; None = only the figure
    n:int=12,        # pictures at most
    ncols:int=None,  # pictures, or pairs, in a row
    vocab=None,      # list of names; None = those of `truths`
    title=None,
    **kwargs,        # of `show_annotation`: `point_names`, `skeleton`, `alpha`
):                   # the figure
    "A sheet of pictures, each with its truth or, given `preds`, truth and prediction side by side"
    truths,preds = list(truths)[:n],None if preds is None else list(preds)[:n]
    if not truths: raise ValueError("a contact sheet needs at least one annotation, got none")
    if preds is not None and len(preds) != len(truths):
        raise ValueError(f"{len(truths)} truths but {len(preds)} predictions: one for each is needed")
    per = 1 if preds is None else 2
    ncols = ncols or min(len(truths), 6//per)
    vocab = vocab or sorted({o for a in truths for o in a.labels})
    fig,axs = _grid(len(truths)*per, ncols*per, aspect=np.mean([a.size[1]/a.size[0] for a in truths]),
                    lines=_most_lines([*truths, *(preds or [])]))
    for i,a in enumerate(truths):
        if preds is not None and _only_labels(preds[i]):
            a = Annotation(a.path, a.size, label_set(a))     # names beside names
        show_annotation(a, axs[i*per], vocab=vocab, title='truth' if preds is not None else None, **kwargs)
        if preds is not None: _show_prediction(a, preds[i], axs[i*per+1], vocab, **kwargs)
    masks = [a.mask for a in (*truths, *(preds or [])) if a.mask is not None and a.bboxes is None]
    if masks: _legend(fig, vocab, sorted({i for m in masks for i in np.unique(decode_class_mask(m)).tolist()}))
    if title: fig.suptitle(title, fontsize=11)
    if fname is not None:
        with replacing(fname) as part:
            fig.savefig(part, dpi=110, bbox_inches='tight', format=Path(fname).suffix[1:] or None)
    return fig

def _show_prediction(truth, pred, ax, vocab, **kwargs):
    if not _only_labels(pred):
        return show_annotation(pred, ax, vocab=vocab, title='prediction', **kwargs)
    ax.imshow(np.asarray(read_image(truth.path))); ax.set_axis_off(); ax.set_title('prediction', fontsize=9)
    scores = dict(zip(pred.labels, pred.scores)) if pred.scores is not None else {}
    _write_below(ax, _label_lines(set(truth.labels), set(pred.labels), scores))

def show_predictions(
    preds,      # list[Annotation], what a learner predicts
    images,     # as many PIL images
    ncols=None, # images in a row
    **kwargs,   # of `show_annotation`: `vocab`, `point_names`, `skeleton`, `alpha`
):              # the figure
    "Images with what was predicted, where there is no ground truth to put beside"
    fig,axs = _grid(len(preds), ncols or min(len(preds), 5), lines=_most_lines(preds),
                    aspect=np.mean([a.size[1]/a.size[0] for a in preds]), width=2.6)
    for a,im,ax in zip(preds, images, axs): show_annotation(a, ax, image=im, **kwargs)
    masks = [a.mask for a in preds if a.mask is not None]
    if masks: _legend(fig, kwargs.get('vocab', ()), _classes(map(torch.as_tensor, masks)))
    return fig

def _only_labels(a): return a.bboxes is None and a.points is None and a.mask is None

def _most_lines(anns): return max((len(a.labels) for a in anns if a.bboxes is None), default=0)

def _label_lines(truth, pred, scores):
    "Lines for what was found, missed and made up"
    s = lambda o: f' {scores[o]:.2f}' if o in scores else ''
    lines = [(o + s(o), RIGHT)         for o in sorted(truth & pred)] + \
            [(f'({o}{s(o)})', MISSED) for o in sorted(truth - pred)] + \
            [(f'+ {o}{s(o)}', FALSE)  for o in sorted(pred - truth)]
    return lines or [('no label', RIGHT)]

def _grid(n, ncols, aspect=1., lines=0, width=2.1):
    "A figure and `n` axes in rows of `ncols`, for pictures of height/width `aspect` with `lines` of text below"
    ncols = max(1, min(ncols, n)); nrows = math.ceil(n/ncols)
    text = .17*min(max(lines, 1), 9) + .3
    height = width*min(max(aspect, .4), 2.5) + text
    fig,axs = plt.subplots(nrows, ncols, figsize=(width*ncols, nrows*height), squeeze=False, layout='constrained')
    fig.get_layout_engine().set(h_pad=.04, w_pad=.04)
    for ax in axs.flat: ax.set_axis_off()
    return fig,axs.flatten()

class _TaskDL(TfmdDL):
    def __iter__(self):
        try: yield from super().__iter__()
        except Exception as e:
            told = _from_worker(e)
            if told is None: raise
            raise told from None

    def show_unique(self, max_n, **kwargs):
        "`show_batch` of the first picture, again and again, so that one sees the augmentation"
        old = self.get_idxs
        self.get_idxs = FixedOrder([next(iter(old()))]*max(max_n, self.bs or 1))
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
        _,axs = _grid(len(items), ncols or min(len(items), 5), aspect=b[0].shape[-2]/b[0].shape[-1])
        for ax,x in zip(axs, items): ax.imshow(_hwc(x))

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
    "Draws pictures with their labels below; results with what was found, missed and made up, and its probability"
    def show_batch(self, b=None, max_n=9, ctxs=None, show=True, unique=False, ncols=None, **kwargs):
        "Draw `max_n` pictures of a batch; `unique`: one picture again and again, so that one sees the augmentation"
        if unique: return self.show_unique(max_n, ncols=ncols)
        if b is None: b = self.one_batch()
        if not show: return self._pre_show_batch(b, max_n=max_n)
        if not self.has_truth: return self.show_images(b, max_n, ncols)
        items = self.decode_batch(b, max_n)
        fig,axs = _grid(len(items), ncols or min(len(items), 5), lines=max(len(y) for _,y in items))
        for ax,(x,y) in zip(axs, items):
            ax.imshow(_hwc(x)); _write_below(ax, [(str(o), 'black') for o in y] or [('no label', 'grey')])

    def show_results(self, b, out, max_n=9, ctxs=None, show=True, probs=None, losses=None, ncols=None, **kwargs):
        """Draw `max_n` pictures of batch `b` with the decisions `out`; `probs` (n, c) and `losses` (n,) are written
        where given"""
        if not show: return self.results(b, out, max_n)
        items,vocab,out = self.decode_batch(b, max_n),self.vocab,detuplify(out)   # `Interpretation` gives a tuple
        sets = [({*map(str, y)}, {vocab[j] for j in o.nonzero().flatten().tolist()}) for (_,y),o in zip(items, out)]
        fig,axs = _grid(len(items), ncols or min(len(items), 5), lines=max(len(t | p) for t,p in sets))
        for i,(ax,(x,_),(t,p)) in enumerate(zip(axs, items, sets)):
            ax.imshow(_hwc(x)); ax.set_axis_off()
            scores = {} if probs is None else dict(zip(vocab, probs[i].tolist()))
            if losses is not None: ax.set_title(f'loss {losses[i]:.2f}', fontsize=9)
            _write_below(ax, _label_lines(t, p, scores))
        fig.suptitle(LEGEND, fontsize=9)

class KeypointDL(_TaskDL):
    "Draws pictures with their points, the truth as rings and predictions as dots, and the lines of a skeleton"
    def show_batch(self, b=None, max_n=9, ctxs=None, show=True, unique=False, ncols=None, names=None, **kwargs):
        """Draw `max_n` pictures of a batch; `names`: write the points' names (None: up to 20 points); `unique`: one
        picture again and again"""
        if unique: return self.show_unique(max_n, ncols=ncols, names=names)
        if b is None: b = self.one_batch()
        if not show: return self._pre_show_batch(b, max_n=max_n)
        if not self.has_truth: return self.show_images(b, max_n, ncols)
        items = self.decode_batch(b, max_n)
        _,axs = _grid(len(items), ncols or min(len(items), 4), width=2.8)
        for ax,(x,y) in zip(axs, items):
            ax.imshow(_hwc(x)); draw_points(ax, y, self.vocab, self.skeleton, names)

    def show_results(self, b, out, max_n=9, ctxs=None, show=True, probs=None, losses=None, ncols=None, names=None,
                     **kwargs):
        """Draw `max_n` pictures of batch `b`: truth as rings, prediction `out` (n, k, 2) in [-1, 1] as dots, a line
        from one to the other; `names`: write the points' names (None: up to 8 points)"""
        if not show: return self.results(b, out, max_n)
        names = len(self.vocab) <= 8 if names is None else names
        items,size = self.decode_batch(b, max_n),torch.tensor([b[0].shape[-1], b[0].shape[-2]])
        points = (detuplify(out).as_subclass(Tensor).cpu().view(-1, len(self.vocab), 2)+1)/2*size
        _point_results(items, points, losses, ncols, self.vocab, self.skeleton, names)

def _point_results(samples, points, losses=None, ncols=None, vocab=(), skeleton=(), names=False):
    "Pictures with their truth, `samples`, and the (k, 2) `points` that were predicted, both in pixels of what is shown"
    fig,axs = _grid(len(samples), ncols or min(len(samples), 4), width=2.8)
    for i,(ax,(x,y),p) in enumerate(zip(axs, samples, points)):
        ax.imshow(_hwc(x))
        for t,o in zip(y.as_subclass(Tensor).view(-1, 2), p.view(-1, 2)):
            ax.plot([t[0]-.5, o[0]-.5], [t[1]-.5, o[1]-.5], color='white', lw=.8)
        draw_points(ax, y, vocab, [], False, ring=True)
        draw_points(ax, p, vocab, skeleton, names)
        if losses is not None: ax.set_title(f'loss {float(losses[i]):.4f}', fontsize=9)
    fig.suptitle('rings: truth · dots: prediction', fontsize=9)

class LocalizationDL(_TaskDL):
    "Draws pictures with the box and the label of their object; results with the truth dashed"
    def show_batch(self, b=None, max_n=9, ctxs=None, show=True, unique=False, ncols=None, **kwargs):
        "Draw `max_n` pictures of a batch; `unique`: one picture again and again, so that one sees the augmentation"
        if unique: return self.show_unique(max_n, ncols=ncols)
        if b is None: b = self.one_batch()
        if not show: return self._pre_show_batch(b, max_n=max_n)
        if not self.has_truth: return self.show_images(b, max_n, ncols)
        items,vocab = self.decode_batch(b, max_n),list(self.vocab)
        colour = dict(zip(vocab, palette(len(vocab))))
        _,axs = _grid(len(items), ncols or min(len(items), 4), width=2.6)
        for ax,(x,name,bbox) in zip(axs, items): _draw_object(ax, x, bbox, name, colour[name])

    def show_results(self, b, out, max_n=9, ctxs=None, show=True, probs=None, losses=None, ncols=None, **kwargs):
        """Draw `max_n` pictures of batch `b`: the truth dashed, the answer `out`, ids (n,) and boxes (n, 1, 4) in
        [-1, 1], solid, green where class and box are right (IoU .5); `probs` (n, c + 4) and `losses` (n,) are written
        where given"""
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
    "Pictures with their truth, `samples` of (picture, name, box), and `answers` of (name, box) in the same pixels"
    fig,axs = _grid(len(samples), ncols or min(len(samples), 4), lines=2, width=2.6)
    for i,(ax,(x,name,bbox),(said,mine)) in enumerate(zip(axs, samples, answers)):
        mine,bbox = (o.as_subclass(Tensor).cpu().view(4) for o in (mine, bbox))
        iou   = paired_iou(mine, bbox).item()
        right = said == name and not iou < .5           # nan: the truth has no box
        _draw_object(ax, x, bbox, name, 'white', dashed=True)
        if said != NO_OBJECT: _draw_bbox(ax, mine.tolist(), '', RIGHT if right else FALSE)
        score = '' if scores is None else f' {scores[i]:.2f}'
        where = f', IoU {iou:.2f}' if iou == iou and said != NO_OBJECT else ''
        lines = [(f'{_shown(said)}{score}{where}', RIGHT if right else FALSE)]
        if said != name: lines.append((f'({_shown(name)})', MISSED))
        _write_below(ax, lines)
        if losses is not None: ax.set_title(f'loss {float(losses[i]):.2f}', fontsize=9)
    fig.suptitle('dashed: truth · solid: answer, green where class and box (IoU .5) are right', fontsize=9)

def _shown(name): return 'no object' if name == NO_OBJECT else name

def _draw_object(ax, x, bbox, name, colour, dashed=False):
    "A picture with the (1, 4) box of its object, none where that is nan"
    ax.imshow(_hwc(x))
    b = bbox.as_subclass(Tensor).cpu().view(4)
    if not b.isnan().any(): _draw_bbox(ax, b.tolist(), '' if dashed else name, colour, dashed)
    elif not dashed: _write_below(ax, [(_shown(name) if name == NO_OBJECT else f'{name}, no box', 'grey')])

class SegmentationDL(_TaskDL):
    "Draws pictures under the colours of their classes; results as pairs, truth and prediction"
    def show_batch(self, b=None, max_n=9, ctxs=None, show=True, unique=False, ncols=None, alpha=.65, **kwargs):
        """Draw `max_n` pictures of a batch, the masks with opacity `alpha`; `unique`: one picture again and again, so
        that one sees the augmentation"""
        if unique: return self.show_unique(max_n, ncols=ncols)
        if b is None: b = self.one_batch()
        if not show: return self._pre_show_batch(b, max_n=max_n)
        if not self.has_truth: return self.show_images(b, max_n, ncols)
        items = self.decode_batch(b, max_n)
        fig,axs = _grid(len(items), ncols or min(len(items), 4), aspect=b[0].shape[-2]/b[0].shape[-1], width=2.6)
        for ax,(x,y) in zip(axs, items): ax.imshow(paint_classes(_hwc(x), _indices(y), self.vocab, alpha))
        _legend(fig, self.vocab, _classes(y for _,y in items))

    def show_results(self, b, out, max_n=6, ctxs=None, show=True, probs=None, losses=None, ncols=None, alpha=.65,
                     **kwargs):
        "Draw `max_n` pictures of batch `b`, each with its truth and, beside it, the prediction `out` (n, h, w)"
        if not show: return self.results(b, out, max_n)
        _mask_results(self.decode_batch(b, max_n), detuplify(out), losses, ncols, self.vocab, alpha)

def _indices(y): return y.as_subclass(Tensor).cpu().numpy()

def _classes(masks): return sorted({i for m in masks for i in np.unique(_indices(m)).tolist()})

def _mask_results(samples, preds, losses=None, ncols=None, vocab=(), alpha=.65):
    "Pictures with their truth, `samples`, beside (h, w) `preds`, which may be of the centre alone"
    preds = [_centred(p, y.shape[-2:]) for p,(_,y) in zip(preds, samples)]
    h,w = samples[0][0].shape[-2:]
    fig,axs = _grid(2*len(samples), 2*(ncols or min(len(samples), 2)), aspect=h/w, width=2.6)
    for i,((x,y),p) in enumerate(zip(samples, preds)):
        t,on = _indices(y),(_indices(y) != 255) & (_indices(p) != 255)
        right = f'{(t == _indices(p))[on].mean():.1%} right' if on.any() else 'all void'
        for ax,m,title in ((axs[2*i], t, 'truth'), (axs[2*i+1], _indices(p), right)):
            ax.imshow(paint_classes(_hwc(x), m, vocab, alpha)); ax.set_title(title, fontsize=8)
        if losses is not None: axs[2*i].set_title(f'truth, loss {float(losses[i]):.2f}', fontsize=8)
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
    "Draws pictures with the boxes, labels and masks, if any, of their objects; results with the truth dashed"
    def decode_batch(self, b, max_n=9, full=True):
        "fastai's `decode_batch` without the proposals, which are too many to be looked at"
        return [tuple(o for o in s if not isinstance(o, RegionProposals)) for s in super().decode_batch(b, max_n, full)]

    def show_batch(self, b=None, max_n=9, ctxs=None, show=True, unique=False, ncols=None, **kwargs):
        """Draw `max_n` pictures of a batch, what is to be ignored in grey; `unique`: one picture again and again, so
        that one sees the augmentation"""
        if unique: return self.show_unique(max_n, ncols=ncols)
        if b is None: b = self.one_batch()
        if not show: return self._pre_show_batch(b, max_n=max_n)
        if not self.has_truth: return self.show_images(b, max_n, ncols)
        items,vocab = self.decode_batch(b, max_n),list(self.vocab)
        colour = dict(zip(vocab[1:], palette(len(vocab)-1)))
        _,axs = _grid(len(items), ncols or min(len(items), 4), aspect=b[0].shape[-2]/b[0].shape[-1], width=2.6)
        for ax,(x,*objects) in zip(axs, items):
            real = _real(*objects)
            _draw_masks(ax, x, real, colour)
            for o,n,*_ in real: _draw_bbox(ax, o, n, colour.get(n, 'grey'), dashed=n not in colour)
            if not real: _write_below(ax, [('no object', 'grey')])

    def show_results(self, b, out, max_n=9, ctxs=None, show=True, probs=None, losses=None, ncols=None, **kwargs):
        """Draw `max_n` pictures of batch `b`: the truth dashed, orange where it was missed; the detections `out`
        (n, k, 6), those with label 0 left out, green where they are right (IoU .5)"""
        if not show: return self.results(b, out, max_n)
        said = [(d[:,:4], [self.vocab[i] for i in d[:,5].int().tolist()], d[:,4].tolist())
                for d in (o.as_subclass(Tensor).cpu() for o in detuplify(out))]
        _detection_results(self.decode_batch(b, max_n), said, losses, ncols)

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
        return x,ObjectsTarget(y or ()),its

class ObjectsTarget(tuple):
    "Boxes and ids of a batch: a type of its own, so that fastai's `plot_top_losses` finds what draws it"

def _real(bboxes, names, *more):
    "[(box, name, ...)] of what is no padding, on the CPU"
    return [tuple(o.as_subclass(Tensor).cpu() if isinstance(o, Tensor) else o for o in row)
            for row in zip(bboxes, names, *more) if row[1] != NO_OBJECT]

def _draw_masks(ax, x, objects, colour, alpha=.45):
    "The picture `x` under the masks of `objects`, (box, name, mask) each, where they have any"
    masks = [(o[2].bool().numpy(), colour.get(o[1], (.5, .5, .5))) for o in objects if len(o) > 2]
    ax.imshow(_overlay(_hwc(x), masks, alpha))

class InstanceDL(DetectionDL):
    "Draws pictures under the masks of their objects, with boxes and labels; results as pairs, truth and prediction"
    def show_results(self, b, out, max_n=6, ctxs=None, show=True, probs=None, losses=None, ncols=None, **kwargs):
        """Draw `max_n` pictures of batch `b`, each with its truth, names of what was missed in brackets, and, beside
        it, what was found: `out`, detections (n, k, 6), those with label 0 left out, and masks (n, k, m, m); a red name
        is a wrong one (mask IoU .5)"""
        if not show: return self.results(b, out, max_n)
        dets,masks = (o.as_subclass(Tensor).cpu() for o in out)
        said = [(d[:,:4], [self.vocab[i] for i in d[:,5].int().tolist()], m, d[:,4].tolist())
                for d,m in zip(dets, masks)]
        _instance_results(self.decode_batch(b, max_n), said, losses, ncols, self.vocab[1:])

    def _pre_show_batch(self, b, max_n=9):
        x,y,its = super()._pre_show_batch(b, max_n)
        return x,InstancesTarget(y or ()),its

class InstancesTarget(tuple):
    "Boxes, ids and masks of a batch: a type of its own, so that fastai's `plot_top_losses` finds what draws it"

def _instance_results(samples, answers, losses=None, ncols=None, vocab=()):
    """Pictures with their truth, `samples` of (picture, boxes, names, masks), beside `answers` of (boxes, names, (k, m,
    m) probabilities, scores) in the same pixels, the best first; a name that is `NO_OBJECT` is padding"""
    h,w = samples[0][0].shape[-2:]
    colour = dict(zip(vocab, palette(len(vocab))))
    _,axs = _grid(2*len(samples), 2*(ncols or min(len(samples), 2)), aspect=h/w, width=3.2)
    for i,((x,*objects),answer) in enumerate(zip(samples, answers)):
        truth = _real(*objects)
        paste = lambda m, b: torch.from_numpy(decode_mask(*paste_rle(m[None].numpy(), b[None].numpy(), (w, h)), (w, h)))
        found = [(b, n, paste(m, b), s) for b,n,m,s in _real(*answer)]
        right,missed = _matched(truth, found)
        for ax,objects in ((axs[2*i], truth), (axs[2*i+1], found)): _draw_masks(ax, x, objects, colour)
        for j,(b,n,_) in enumerate(truth):
            _draw_bbox(axs[2*i], b.tolist(), f'({n})' if j in missed else n, colour.get(n, 'grey'), n not in colour)
        for (b,n,_,s),ok in zip(found, right):
            _draw_bbox(axs[2*i+1], b.tolist(), f'{n} {s:.2f}', colour[n] if ok else FALSE)
        axs[2*i].set_title('truth' if losses is None else f'truth, loss {float(losses[i]):.2f}', fontsize=8)
        axs[2*i+1].set_title(f'{sum(right)} right, {len(found)-sum(right)} wrong, {len(missed)} missed', fontsize=8)

def _matched(truth, found, iou=.5):
    "Whether each of `found` has the name of a truth that no better one has, and mask IoU `iou` with it; truths missed"
    free,right = [j for j,o in enumerate(truth) if o[1] != 'ignored'],[]
    for _,n,m,_ in found:
        ious = [((m & t).sum()/(m | t).sum().clamp(min=1), j) for j in free
                if truth[j][1] == n and (t := truth[j][2].bool()) is not None]
        best,j = max(ious, default=(0., None))
        right.append(bool(best >= iou))
        if right[-1]: free.remove(j)
    return right,free

def _detection_results(samples, answers, losses=None, ncols=None):
    """Pictures with their truth, `samples` of (picture, boxes, names), and `answers` of (boxes, names, scores) in the
    same pixels, the best first; a name that is `NO_OBJECT` is padding"""
    h,w = samples[0][0].shape[-2:]
    fig,axs = _grid(len(samples), ncols or min(len(samples), 3), aspect=h/w, width=3.2)
    for i,(ax,(x,bboxes,names),answer) in enumerate(zip(axs, samples, answers)):
        ax.imshow(_hwc(x))
        truth = [(o, n) for o,n in zip(bboxes.as_subclass(Tensor).cpu(), names) if n != NO_OBJECT]
        found = [o for o in zip(*answer) if o[1] != NO_OBJECT]
        free,right = list(range(len(truth))),[]
        for o,n,_ in found:              # each truth is found once
            ious = [(paired_iou(o, truth[j][0]).item() if truth[j][1] == n else 0., j) for j in free]
            best,j = max(ious, default=(0., None))
            right.append(best >= .5)
            if best >= .5: free.remove(j)
        for j,(o,n) in enumerate(truth):
            kind = 'grey' if n == 'ignored' else MISSED if j in free else 'white'
            _draw_bbox(ax, o.tolist(), f'({n})' if kind == MISSED else '', kind, dashed=True)
        for (o,n,p),ok in zip(found, right): _draw_bbox(ax, o.tolist(), f'{n} {p:.2f}', RIGHT if ok else FALSE)
        if losses is not None: ax.set_title(f'loss {float(losses[i]):.2f}', fontsize=9)
    fig.suptitle('dashed: truth, orange where missed · solid: detections, green where right (IoU .5)', fontsize=9)

def plot_confusion(
    counts,          # DataFrame (c, c), row = truth, column = answer
    normalize=True,  # as shares of the row
    ax=None,         # matplotlib axes; None = new ones
):                   # the axes
    "A confusion matrix, its shares written where there is room"
    share = counts.div((n := counts.sum(axis=1)).where(n > 0), axis=0) if normalize else counts
    n = len(counts)
    if ax is None: ax = plt.subplots(figsize=(1.5 + .42*n, 1.2 + .42*n), layout='constrained')[1]
    ax.imshow(share, cmap='Blues', vmin=0, vmax=1 if normalize else None)
    ax.set_xticks(range(n), counts.columns, rotation=60, ha='right', fontsize=7)
    ax.set_yticks(range(n), counts.index, fontsize=7)
    ax.set_xlabel('answer', fontsize=8); ax.set_ylabel('truth', fontsize=8)
    if n > 30: return ax
    top = 1 if normalize else counts.to_numpy().max()
    for i,row in enumerate(share.to_numpy()):
        for j,v in enumerate(row):
            if not v >= .005*top: continue                     # nan is not
            text = f'{v:.2f}'.lstrip('0') if normalize else f'{v:.0f}'
            ax.text(j, i, text, ha='center', va='center', fontsize=6, color='white' if v > .6*top else 'black')
    return ax

def draw_points(ax, points, vocab, skeleton=(), names=None, ring=False):
    """(k, 2) `points` in pixels of what `ax` shows, a colour each, those of nan left out; `names`: write them (None: up
    to 20 points)"""
    p = torch.as_tensor(points).as_subclass(Tensor).cpu().view(-1, 2).numpy() - .5
    colour,s = palette(len(p)),max(3, 26-len(p)/3)
    for i,j in point_pairs(skeleton, vocab, 'skeleton', len(p)):
        if np.isnan(p[[i, j]]).any(): continue
        ax.plot(*p[[i, j]].T, color='white', lw=2.4, alpha=.6, zorder=2)
        ax.plot(*p[[i, j]].T, color=colour[j], lw=1.4, zorder=3)
    if ring: ax.scatter(*p.T, s=3*s, c='none', edgecolors=colour, linewidths=1., zorder=4)
    else:    ax.scatter(*p.T, s=s, c=colour, edgecolors='white', linewidths=.5, zorder=4)
    if names or (names is None and len(p) <= 20):
        for (x,y),n,c in zip(p, vocab, colour):
            if np.isnan(x): continue
            ax.annotate(n, (x, y), xytext=(3, 3), textcoords='offset points', fontsize=6, color='white', clip_on=True,
                        bbox=dict(boxstyle='round,pad=.1', fc=c, ec='none', alpha=.8), zorder=5)

@dispatch
def plot_top_losses(x:TensorImage, y:LabelSet, samples, outs, raws, losses, nrows=None, ncols=None, figsize=None,
                    **kwargs):
    """What `Interpretation.plot_top_losses` calls; drawn as `show_results` is (fastai prints a table without the
    pictures' labels)"""
    sets = [(set(map(str, s[1])), set(map(str, o[0]))) for s,o in zip(samples, outs)]
    fig,axs = _grid(len(sets), ncols or min(len(sets), 5), lines=max(len(t | p) for t,p in sets))
    for ax,s,(t,p),l in zip(axs, samples, sets, losses):
        ax.imshow(_hwc(s[0])); ax.set_title(f'loss {float(l):.2f}', fontsize=9)
        _write_below(ax, _label_lines(t, p, {}))
    fig.suptitle(LEGEND, fontsize=9)

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
    _mask_results(samples, [o[0] for o in outs], losses, ncols)

@plot_top_losses.dispatch
def _plot_top_detection_losses(x:TensorImage, y:ObjectsTarget, samples, outs, raws, losses, nrows=None, ncols=None,
                               figsize=None, **kwargs):
    "What `Interpretation.plot_top_losses` calls; drawn as `show_results` is"
    said = [(b.as_subclass(Tensor).cpu(), n, d[:,4].tolist()) for (b,n),d in zip(outs, raws)]
    _detection_results(samples, said, losses, ncols)

@plot_top_losses.dispatch
def _plot_top_instance_losses(x:TensorImage, y:InstancesTarget, samples, outs, raws, losses, nrows=None, ncols=None,
                              figsize=None, **kwargs):
    "What `Interpretation.plot_top_losses` calls; drawn as `show_results` is"
    said = [(*o, d[:,4].tolist()) for o,d in zip(outs, raws[0])]
    names = {n for _,_,o,_ in samples for n in o} | {n for _,o,_,_ in said for n in o}
    _instance_results(samples, said, losses, ncols, sorted(names - {NO_OBJECT, 'ignored'}))

@dispatch
def tensorboard_log(x:TensorImage, y:OneObjectTarget, samples, outs, writer, step):
    "What fastai's `TensorBoardCallback` calls at the end of an epoch; drawn as `show_results` is"
    _object_results(samples, outs)
    writer.add_figure('Sample results', plt.gcf(), step)

@tensorboard_log.dispatch
def _log_detections(x:TensorImage, y:ObjectsTarget, samples, outs, writer, step):
    "What fastai's `TensorBoardCallback` calls at the end of an epoch; drawn as `show_results` is"
    _detection_results(samples, [(b.as_subclass(Tensor), n, scores) for b,n,scores in outs])
    writer.add_figure('Sample results', plt.gcf(), step)

@tensorboard_log.dispatch
def _log_instances(x:TensorImage, y:InstancesTarget, samples, outs, writer, step):
    "What fastai's `TensorBoardCallback` calls at the end of an epoch; drawn as `show_results` is"
    names = {n for _,_,o,_ in samples for n in o} | {n for _,o,_,_ in outs for n in o}
    _instance_results(samples, outs, vocab=sorted(names - {NO_OBJECT, 'ignored'}))
    writer.add_figure('Sample results', plt.gcf(), step)

def _hwc(x):
    "A decoded picture as (h, w, c) uint8 for matplotlib"
    x = x.as_subclass(Tensor).cpu()
    x = x*255 if x.is_floating_point() and x.max() <= 1.001 else x
    return x.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
