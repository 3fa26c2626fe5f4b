"Batches and results of detection and instance segmentation"
from __future__ import annotations
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou
from fastcore.basics import detuplify
from fastcore.foundation import L
from fastai.vision.core import TensorImage
from ..data.items import BBoxLabels, PixelBBox, RegionProposals
from ..data.loading import MixingDL
from ..data.targets import NO_OBJECT
from ..ops.masks import decode_mask, paste_rle
from ..metrics.matching import assign
from .batches import TaskDL
from .draw import draw_bbox, object_colours, overlay_masks
from .labels import plot_top_losses
from .layout import (FALSE, GREY, MISSED, RIGHT, add_caption, as_hwc, columns_for, crowd_legend, has_one_class,
                     image_grid)
from .names import write_below
from .one_object import tensorboard_log

__all__ = ['DetectionDL', 'InstanceDL']

class ObjectsTarget(tuple):
    """Boxes and ids of a batch, with `vocab`, the names of the classes: a type of its own, so that fastai's
    `plot_top_losses` finds what draws it"""

class InstancesTarget(tuple):
    """Boxes, ids and masks of a batch, with `vocab`, the names of the classes: a type of its own, so that fastai's
    `plot_top_losses` finds what draws it"""

class DetectionDL(MixingDL, TaskDL):
    "Draws images with the boxes, labels and masks, if any, of their objects; results with the ground truth dashed"
    target = ObjectsTarget   # the type by which fastai finds what draws it

    def decode_batch(self,
        b,         # batch of images, boxes and labels
        max_n=9,
        full=True, # decode to what can be drawn, not only to what the item transforms return
    ):
        "fastai's `decode_batch` without the proposals, which are too many to draw"
        return [tuple(o for o in s if not isinstance(o, RegionProposals)) for s in super().decode_batch(b, max_n, full)]

    def show_batch(self, b=None, max_n=9, ctxs=None, show=True, unique=False, ncols=None, **kwargs):
        """Draw images of a batch, ignored objects in grey; if there is only one class, without its name, and each
        object in a colour of its own"""
        if unique: return self.show_unique(max_n, ncols=ncols)
        if b is None: b = self.one_batch()
        if not show: return self._pre_show_batch(b, max_n=max_n)
        if not self.has_truth: return self.show_images(b, max_n, ncols)
        items,vocab,one = self.decode_batch(b, max_n),list(self.vocab[1:]),has_one_class(self.vocab)
        real = [_real(*o) for _,*o in items]
        fig,axs = image_grid(len(items), ncols or columns_for(len(items), 4), aspect=b[0].shape[-2]/b[0].shape[-1],
                             lines=int(not all(real)), width=2.6)
        for ax,(x,*_),objects in zip(axs, items, real):
            _draw_objects(ax, x, objects, ['' if one and o[1] in vocab else o[1] for o in objects], vocab)
            if not objects: write_below(ax, [('no object', 'grey')])
        crowd_legend(fig, vocab, [o[1] for objects in real for o in objects], max(map(len, real)))

    def show_results(self,
        b,
        out, # (n, k, 6) detections x1 y1 x2 y2 score label in pixels of the network's input; label 0: none
        max_n=9, ctxs=None, show=True, probs=None, losses=None, ncols=None, **kwargs,
    ):
        """Draw images with the ground truth dashed, orange where it was missed, and detections, green where the class
        is correct and IoU >= 0.5"""
        if not show: return self.results(b, out, max_n)
        preds = [(d[:,:4], [self.vocab[i] for i in d[:,5].int().tolist()], d[:,4].tolist())
                for d in (o.as_subclass(Tensor).cpu() for o in detuplify(out))]
        _detection_results(self.decode_batch(b, max_n), preds, losses, ncols, self.vocab[1:])

    def results(self,
        b,   # batch of images, boxes and labels
        out, # detections as `show_results` takes them
        max_n=9,
    ):
        "What `TaskDL.results` returns, with the scores after the boxes, labels and masks of each image"
        dets = out[0] if isinstance(out, (tuple, list)) else out
        x,y,its,outs = super().results(b, out, max_n)
        return x,y,its,L((*o, d[:,4].tolist()) for o,d in zip(outs, dets.as_subclass(Tensor).detach().cpu()))

    def _pre_show_batch(self, b, max_n=9):
        # `Interpretation` decodes detections as if they were targets
        if len(b) > 1 and getattr(b[1], 'shape', (4,))[-1] == 6:
            x,d,*masks = (o.as_subclass(Tensor) if i else o for i,o in enumerate(b))
            b = x,PixelBBox(d[...,:4]),BBoxLabels(d[...,5].long()),*masks
        x,y,its = super()._pre_show_batch(b, max_n)
        y = self.target(y or ())
        y.vocab = list(getattr(self, 'vocab', ())[1:])   # images without targets have none
        return x,y,its

def _real(bboxes, names, *more):
    "[(box, name, ...)] of what is no padding, on the CPU"
    return [tuple(o.as_subclass(Tensor).cpu() if isinstance(o, Tensor) else o for o in row)
            for row in zip(bboxes, names, *more) if row[1] != NO_OBJECT]

def _draw_objects(ax, x, objects, names, vocab, colours=None):
    """The image `x` with `objects`, (box, class name) or (box, class name, mask) each, and `names` on the boxes;
    `colours` of mask and box, None = by class"""
    colours = object_colours([o[1] for o in objects], vocab, has_one_class(vocab)) if colours is None else colours
    ax.imshow(overlay_masks(as_hwc(x), [(o[2].bool().numpy(), *c) for o,c in zip(objects, colours) if len(o) > 2], .45))
    for (b,label,*_),n,(_,c) in zip(objects, names, colours):
        ignored = label not in vocab
        draw_bbox(ax, b.tolist(), n, GREY if ignored else c, dashed=ignored)

class InstanceDL(DetectionDL):
    "Draws images under the masks of their objects, with boxes and labels; results as ground truth beside prediction"
    target = InstancesTarget   # the type by which fastai finds what draws it

    def show_results(self,
        b,
        out, # detections (n, k, 6), x1 y1 x2 y2 score label, and masks (n, k, m, m) in [0, 1] spread over their boxes;
             # label 0: none
        max_n=6, ctxs=None, show=True, probs=None, losses=None, ncols=None, **kwargs,
    ):
        """Draw images, each with its ground truth, names of missed objects in brackets, beside the prediction. A red
        box is a false positive (mask IoU < 0.5 or another class)"""
        if not show: return self.results(b, out, max_n)
        dets,masks = (o.as_subclass(Tensor).cpu() for o in out)
        preds = [(d[:,:4], [self.vocab[i] for i in d[:,5].int().tolist()], m, d[:,4].tolist())
                for d,m in zip(dets, masks)]
        _instance_results(self.decode_batch(b, max_n), preds, losses, ncols, self.vocab[1:])

def _instance_results(samples, preds, losses=None, ncols=None, vocab=()):
    """Images with their ground truth, `samples` of (image, boxes, class names, masks), beside `preds`, predictions of
    (boxes, class names, (k, m, m) probabilities, scores) in the same pixels, the best first; a class name that is
    `NO_OBJECT` is padding"""
    h,w = samples[0][0].shape[-2:]
    one,sizes = has_one_class(vocab),[0]
    fig,axs = image_grid(2*len(samples), 2*(ncols or columns_for(len(samples), 2)), aspect=h/w, width=2.6, titles=True)
    for i,((x,*objects),pred) in enumerate(zip(samples, preds)):
        truth = _real(*objects)
        paste = lambda m, b: torch.from_numpy(decode_mask(*paste_rle(m[None].numpy(), b[None].numpy(), (w, h)), (w, h)))
        found = [(b, n, paste(m, b), s) for b,n,m,s in _real(*pred)]
        right,missed = _matched(truth, found, _mask_overlaps(found, truth))
        sizes += [len(truth), len(found)]
        names = ['' if one and n in vocab else n for _,n,_ in truth]
        names = [f'({n or "missed"})' if j in missed else n for j,n in enumerate(names)]
        _draw_objects(axs[2*i], x, truth, names, vocab)
        colours = object_colours([o[1] for o in found], vocab, one)
        colours = [(fill, c if ok else np.array(GREY if ok is None else to_rgb(FALSE)))
                   for (fill,c),ok in zip(colours, right)]
        names = [f'{"" if one else n} {s:.2f}'.strip() for _,n,_,s in found]
        _draw_objects(axs[2*i+1], x, [o[:3] for o in found], names, vocab, colours)
        axs[2*i].set_title('Ground truth' + ('' if losses is None else f', loss {float(losses[i]):.2f}'), fontsize=8)
        counts = f'{right.count(True)} correct, {right.count(False)} false, {len(missed)} missed'
        axs[2*i+1].set_title(f'Prediction: {counts}', fontsize=8)
    crowd_legend(fig, vocab, {n for _,_,o,_ in samples for n in o} | {n for _,o,*_ in preds for n in o}, max(sizes))

def _matched(targets, preds, overlaps, iou=.5):
    """Whether each of `preds` is a true positive (None: on an ignored object), by COCO's rule with (k, n) `overlaps`,
    the best first; and the indices of `targets` that are missed. Both are lists of (box, class name, ...)"""
    ignore = np.array([o[1] == 'ignored' for o in targets], bool)
    allowed = np.array([[ig or t[1] == p[1] for t,ig in zip(targets, ignore)] for p in preds], bool)
    d,t = np.nonzero(allowed.reshape(len(preds), len(targets)))
    found = assign(d, t, overlaps[d, t], np.arange(len(preds)), ignore, len(preds), iou)
    correct = [None if j >= 0 and ignore[j] else bool(j >= 0) for j in found]
    return correct,[j for j in range(len(targets)) if not ignore[j] and j not in found]

def _mask_overlaps(preds, targets): # lists of (box, class name, (h, w) mask, ...) -> (k, n)
    "IoU of the masks; the share of the prediction inside an ignored target"
    res = np.zeros((len(preds), len(targets)))
    for j,(_,name,t,*_) in enumerate(targets):
        for i,(_,_,p,*_) in enumerate(preds):
            both,whole = (p & t.bool()).sum(),p.sum() if name == 'ignored' else (p | t.bool()).sum()
            res[i,j] = both/whole.clamp(min=1)
    return res

def _box_overlaps(preds, targets): # lists of (box, class name, ...) -> (k, n)
    "IoU of the boxes; the share of the prediction inside an ignored target"
    if not preds or not targets: return np.zeros((len(preds), len(targets)))
    p,t = (torch.stack([o[0] for o in objects]).double() for objects in (preds, targets))
    iou,area = box_iou(p, t),box_area(p)
    inter = iou*(area[:,None] + box_area(t))/(1 + iou)
    ignored = torch.tensor([o[1] == 'ignored' for o in targets])
    return torch.where(ignored, inter/area[:,None].clamp(min=1e-9), iou).numpy()

def _detection_results(samples, preds, losses=None, ncols=None, vocab=()):
    """Images with their ground truth, `samples` of (image, boxes, class names), and `preds`, predictions of (boxes,
    class names, scores) in the same pixels, the best first; a class name that is `NO_OBJECT` is padding"""
    h,w = samples[0][0].shape[-2:]
    one = has_one_class(vocab)
    fig,axs = image_grid(len(samples), ncols or columns_for(len(samples), 3), aspect=h/w, width=3.2,
                         titles=losses is not None)
    for i,(ax,(x,bboxes,names),pred) in enumerate(zip(axs, samples, preds)):
        ax.imshow(as_hwc(x))
        truth = [(o, n) for o,n in zip(bboxes.as_subclass(Tensor).cpu(), names) if n != NO_OBJECT]
        found = [o for o in zip(*pred) if o[1] != NO_OBJECT]
        right,missed = _matched(truth, found, _box_overlaps(found, truth))
        for (o,n,p),ok in zip(found, right):
            colour = GREY if ok is None else RIGHT if ok else FALSE
            draw_bbox(ax, o.tolist(), f'{"" if one else n} {p:.2f}'.strip(), colour)
        for j,(o,n) in enumerate(truth):
            kind = 'grey' if n == 'ignored' else MISSED if j in missed else 'white'
            draw_bbox(ax, o.tolist(), f'({n})' if kind == MISSED and not one else '', kind, dashed=True)
        if losses is not None: ax.set_title(f'Loss {float(losses[i]):.2f}', fontsize=9)
    add_caption(fig, 'Dashed: ground truth, orange where missed · solid: predictions, green where the class is correct '
                  'and IoU >= 0.5, else red')

@plot_top_losses.dispatch
def _plot_top_detection_losses(x:TensorImage, y:ObjectsTarget, samples, outs, raws, losses, nrows=None, ncols=None,
                               figsize=None, **kwargs):
    "What `Interpretation.plot_top_losses` calls; drawn as `show_results` is"
    preds = [(b.as_subclass(Tensor).cpu(), n, d[:,4].tolist()) for (b,n),d in zip(outs, raws)]
    _detection_results(samples, preds, losses, ncols, y.vocab)

@plot_top_losses.dispatch
def _plot_top_instance_losses(x:TensorImage, y:InstancesTarget, samples, outs, raws, losses, nrows=None, ncols=None,
                              figsize=None, **kwargs):
    "What `Interpretation.plot_top_losses` calls; drawn as `show_results` is"
    preds = [(*o, d[:,4].tolist()) for o,d in zip(outs, raws[0])]
    _instance_results(samples, preds, losses, ncols, y.vocab)

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
