"Batches and results of images with one object"
from __future__ import annotations
import matplotlib.pyplot as plt
import torch
from torch import Tensor
from fastai.vision.core import TensorImage
from plum import dispatch
from ..data.targets import NO_OBJECT
from ..ops.boxes import paired_iou
from ..ops.colours import class_colours
from .batches import TaskDL
from .draw import draw_bbox
from .labels import plot_top_losses
from .layout import FALSE, MISSED, RIGHT, add_caption, as_hwc, columns_for, has_one_class, image_grid
from .names import write_below

__all__ = ['LocalizationDL']

class LocalizationDL(TaskDL):
    "Draws images with the box and the label of their object; results with the ground truth dashed"
    def has_object(self, a, # Annotation of the image
    ):
        return super().has_object(a) and a.labels != [NO_OBJECT]

    def show_batch(self, b=None, max_n=9, ctxs=None, show=True, unique=False, ncols=None, **kwargs):
        "Draw images of a batch with the box and label of their object"
        if unique: return self.show_unique(max_n, ncols=ncols)
        if b is None: b = self.one_batch()
        if not show: return self._pre_show_batch(b, max_n=max_n)
        if not self.has_truth: return self.show_images(b, max_n, ncols)
        items,colour,one = self.decode_batch(b, max_n),class_colours(self.vocab),has_one_class(self.vocab)
        boxed = [not o.isnan().any() for *_,o in items]
        _,axs = image_grid(len(items), ncols or columns_for(len(items), 4), aspect=b[0].shape[-2]/b[0].shape[-1],
                           lines=int(not all(boxed)), width=2.6)
        for ax,(x,name,bbox),there in zip(axs, items, boxed):
            _draw_object(ax, x, bbox, '' if one and there else name, colour[name])

    def show_results(self,
        b,
        out, # (n,) class ids and (n, 1, 4) boxes in [-1, 1]
        max_n=9, ctxs=None, show=True, probs=None, losses=None, ncols=None, **kwargs,
    ):
        """Draw images with the ground truth dashed and the prediction solid, green where the class is correct and
        IoU >= 0.5, and its probability where given"""
        if not show: return self.results(b, out, max_n)
        samples,size = self.decode_batch(b, max_n),torch.tensor([b[0].shape[-1], b[0].shape[-2]]*2)
        boxes = (out[1].as_subclass(Tensor).cpu().view(-1, 4).clamp(-1, 1)+1)/2*size
        preds = [(self.vocab[i],o) for i,o in zip(out[0].tolist(), boxes)]
        _object_results(samples, preds, losses, ncols, None if probs is None else probs[:,:-4].max(1).values.tolist())

    def _pre_show_batch(self, b, max_n=9):
        x,y,its = super()._pre_show_batch(b, max_n)
        return x,OneObjectTarget(y or ()),its

class OneObjectTarget(tuple):
    "Class and box of a batch: a type of its own, so that fastai's `plot_top_losses` finds what draws it"

def _object_results(samples, preds, losses=None, ncols=None, scores=None):
    """Images with their ground truth, `samples` of (image, class name, box), and `preds`, predictions of (class name,
    box) in the same pixels"""
    h,w = samples[0][0].shape[-2:]
    wrong = any(pred != name for (_,name,_),(pred,_) in zip(samples, preds))
    fig,axs = image_grid(len(samples), ncols or columns_for(len(samples), 4), aspect=h/w, lines=1+wrong, width=2.6,
                         titles=losses is not None)
    for i,(ax,(x,name,bbox),(pred,box)) in enumerate(zip(axs, samples, preds)):
        box,bbox = (o.as_subclass(Tensor).cpu().view(4) for o in (box, bbox))
        iou   = paired_iou(box, bbox).item()
        right = pred == name and not iou < .5           # nan: the ground truth has no box
        _draw_object(ax, x, bbox, name, 'white', dashed=True)
        if pred != NO_OBJECT: draw_bbox(ax, box.tolist(), '', RIGHT if right else FALSE)
        score = '' if scores is None else f' {scores[i]:.2f}'
        where = f', IoU {iou:.2f}' if iou == iou and pred != NO_OBJECT else ''
        lines = [(f'{shown_name(pred)}{score}{where}', RIGHT if right else FALSE)]
        if pred != name: lines.append((f'({shown_name(name)})', MISSED))
        write_below(ax, lines)
        if losses is not None: ax.set_title(f'Loss {float(losses[i]):.2f}', fontsize=9)
    add_caption(fig, 'Dashed: ground truth · solid: prediction, green where the class is correct and IoU >= 0.5')

def shown_name(name): return 'no object' if name == NO_OBJECT else name

def _draw_object(ax, x, bbox, name, colour, dashed=False):
    "An image with the (1, 4) box of its object, none where that is nan"
    ax.imshow(as_hwc(x))
    b = bbox.as_subclass(Tensor).cpu().view(4)
    if not b.isnan().any(): draw_bbox(ax, b.tolist(), '' if dashed else name, colour, dashed)
    elif not dashed: write_below(ax, [(shown_name(name) if name == NO_OBJECT else f'{name}, no box', 'grey')])

@plot_top_losses.dispatch
def _plot_top_object_losses(x:TensorImage, y:OneObjectTarget, samples, outs, raws, losses, nrows=None, ncols=None,
                            figsize=None, **kwargs):
    "What `Interpretation.plot_top_losses` calls; drawn as `show_results` is"
    _object_results(samples, outs, losses, ncols)

@dispatch
def tensorboard_log(x:TensorImage, y:OneObjectTarget, samples, outs, writer, step):
    "What fastai's `TensorBoardCallback` calls at the end of an epoch; drawn as `show_results` is"
    _object_results(samples, outs)
    writer.add_figure('Sample results', plt.gcf(), step)
