"Batches and results of semantic segmentation"
from __future__ import annotations
import numpy as np
from torch import Tensor
from fastcore.basics import detuplify
from fastai.vision.core import TensorImage
from ..data.class_masks import decode_class_mask
from ..data.items import ClassMask
from ..ops.colours import is_background
from .batches import TaskDL
from .draw import paint_classes
from .labels import plot_top_losses
from .layout import as_hwc, class_legend, columns_for, image_grid

__all__ = ['SegmentationDL']

class SegmentationDL(TaskDL):
    "Draws images beside their class masks over a grey version; results with image, ground truth and prediction"
    def has_object(self, a, # Annotation with a mask
    ):
        m = decode_class_mask(a.mask, a.size)
        return bool(((m != 255) & (m >= int(is_background(self.vocab)))).any())

    def show_batch(self,
        b=None, max_n=9, ctxs=None, show=True, unique=False, ncols=None,
        alpha=.65, # opacity of the masks, in [0, 1]
        **kwargs,
    ):
        "Draw images of a batch, each beside its mask"
        if unique: return self.show_unique(max_n, ncols=ncols)
        if b is None: b = self.one_batch()
        if not show: return self._pre_show_batch(b, max_n=max_n)
        if not self.has_truth: return self.show_images(b, max_n, ncols)
        items = self.decode_batch(b, max_n)
        fig,axs = image_grid(2*len(items), 2*(ncols or columns_for(len(items), 3)),
                             aspect=b[0].shape[-2]/b[0].shape[-1], width=2.2)
        for i,(x,y) in enumerate(items):
            axs[2*i].imshow(as_hwc(x)); axs[2*i+1].imshow(paint_classes(as_hwc(x), _indices(y), self.vocab, alpha))
        class_legend(fig, self.vocab, classes_of_masks(y for _,y in items))

    def show_results(self,
        b,
        out,       # (n, h, w) predicted class indices
        max_n=6, ctxs=None, show=True, probs=None, losses=None, ncols=None,
        alpha=.65, # opacity of the masks, in [0, 1]
        **kwargs,
    ):
        "Draw images, each with its ground truth and the prediction beside it"
        if not show: return self.results(b, out, max_n)
        _mask_results(self.decode_batch(b, max_n), detuplify(out), losses, ncols, self.vocab, alpha)

    def _pre_show_batch(self, b, max_n=9):
        x,y,its = super()._pre_show_batch(b, max_n)
        # for `_plot_top_mask_losses`, which gets nothing else; images without targets have no masks
        if y is not None: y.vocab = list(self.vocab)
        return x,y,its

def _indices(y): return y.as_subclass(Tensor).cpu().numpy()

def classes_of_masks(masks): return sorted({i for m in masks for i in np.unique(_indices(m)).tolist()})

def _mask_results(samples, preds, losses=None, ncols=None, vocab=(), alpha=.65):
    "Images, their ground truth, `samples` of (image, mask), and (h, w) `preds`, which may cover the centre only"
    preds = [_centred(p, y.shape[-2:]) for p,(_,y) in zip(preds, samples)]
    h,w = samples[0][0].shape[-2:]
    fig,axs = image_grid(3*len(samples), 3*(ncols or columns_for(len(samples), 2)), aspect=h/w, width=2., titles=True)
    for i,((x,y),p) in enumerate(zip(samples, preds)):
        t,on = _indices(y),(_indices(y) != 255) & (_indices(p) != 255)
        right = f'{(t == _indices(p))[on].mean():.1%} correct' if on.any() else 'all void'
        axs[3*i].imshow(as_hwc(x))
        axs[3*i].set_title('Image' if losses is None else f'Image, loss {float(losses[i]):.2f}', fontsize=8)
        for ax,m,title in ((axs[3*i+1], t, 'Ground truth'), (axs[3*i+2], _indices(p), f'Prediction, {right}')):
            ax.imshow(paint_classes(as_hwc(x), m, vocab, alpha)); ax.set_title(title, fontsize=8)
    class_legend(fig, vocab, classes_of_masks([*(y for _,y in samples), *preds]))

def _centred(p, hw):
    "`p` in the centre of `hw` pixels, the rest void"
    p = p.as_subclass(Tensor).cpu()
    if p.shape[-2:] == tuple(hw): return p
    y,x = ((n-m)//2 for n,m in zip(hw, p.shape[-2:]))
    res = p.new_full(tuple(hw), 255)
    res[y:y+p.shape[-2], x:x+p.shape[-1]] = p
    return res

@plot_top_losses.dispatch
def _plot_top_mask_losses(x:TensorImage, y:ClassMask, samples, outs, raws, losses, nrows=None, ncols=None,
                          figsize=None, **kwargs):
    "What `Interpretation.plot_top_losses` calls; drawn as `show_results` is"
    _mask_results(samples, [o[0] for o in outs], losses, ncols, getattr(y, 'vocab', ()))
