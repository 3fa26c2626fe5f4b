"Batches and results of keypoints"
from __future__ import annotations
import numpy as np
import torch
from torch import Tensor
from fastcore.basics import detuplify
from fastai.vision.core import TensorImage
from ..data.items import Keypoints
from .batches import TaskDL
from .draw import draw_points
from .labels import plot_top_losses
from .layout import add_caption, as_hwc, columns_for, image_grid

__all__ = ['KeypointDL']

class KeypointDL(TaskDL):
    "Draws images with their points, the ground truth as rings and predictions as dots, and the lines of a skeleton"
    def has_object(self, a, # Annotation of the image
    ):
        return a.points is not None and not np.isnan(a.points).all()

    def show_batch(self,
        b=None, max_n=9, ctxs=None, show=True, unique=False, ncols=None,
        names=None, # write the points' names where they fit; None (default): if there are at most 20 points
        **kwargs,
    ):
        "Draw images of a batch with their points"
        if unique: return self.show_unique(max_n, ncols=ncols, names=names)
        if b is None: b = self.one_batch()
        if not show: return self._pre_show_batch(b, max_n=max_n)
        if not self.has_truth: return self.show_images(b, max_n, ncols)
        items = self.decode_batch(b, max_n)
        _,axs = image_grid(len(items), ncols or columns_for(len(items), 4), aspect=b[0].shape[-2]/b[0].shape[-1],
                           width=2.8)
        for ax,(x,y) in zip(axs, items):
            ax.imshow(as_hwc(x)); draw_points(ax, y, self.vocab, self.skeleton, names)

    def show_results(self,
        b,
        out,        # (n, k, 2) predicted points in [-1, 1]
        max_n=9, ctxs=None, show=True, probs=None, losses=None, ncols=None,
        names=None, # write the points' names where they fit; None (default): if there are at most 8 points
        **kwargs,
    ):
        "Draw images with the ground truth as rings, the prediction as dots, and a line from one to the other"
        if not show: return self.results(b, out, max_n)
        names = len(self.vocab) <= 8 if names is None else names
        items,size = self.decode_batch(b, max_n),torch.tensor([b[0].shape[-1], b[0].shape[-2]])
        points = (detuplify(out).as_subclass(Tensor).cpu().view(-1, len(self.vocab), 2)+1)/2*size
        _point_results(items, points, losses, ncols, self.vocab, self.skeleton, names)

def _point_results(samples, points, losses=None, ncols=None, vocab=(), skeleton=(), names=False):
    "Images with their ground truth, `samples`, and the predicted (k, 2) `points`, both in pixels of what is shown"
    h,w = samples[0][0].shape[-2:]
    fig,axs = image_grid(len(samples), ncols or columns_for(len(samples), 4), aspect=h/w, width=2.8,
                         titles=losses is not None)
    for i,(ax,(x,y),p) in enumerate(zip(axs, samples, points)):
        ax.imshow(as_hwc(x))
        for t,o in zip(y.as_subclass(Tensor).view(-1, 2), p.view(-1, 2)):
            ax.plot([t[0]-.5, o[0]-.5], [t[1]-.5, o[1]-.5], color='white', lw=.8)
        draw_points(ax, y, vocab, [], False, ring=True)
        draw_points(ax, p, vocab, skeleton, names)
        if losses is not None: ax.set_title(f'Loss {float(losses[i]):.4f}', fontsize=9)
    add_caption(fig, 'Rings: ground truth · dots: prediction')

@plot_top_losses.dispatch
def _plot_top_point_losses(x:TensorImage, y:Keypoints, samples, outs, raws, losses, nrows=None, ncols=None,
                           figsize=None, **kwargs):
    "What `Interpretation.plot_top_losses` calls; drawn as `show_results` is, without names"
    _point_results(samples, [o[0].as_subclass(Tensor).cpu() for o in outs], losses, ncols)
