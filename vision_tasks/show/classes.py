"Batches and results of images with one class"
from __future__ import annotations
from fastcore.basics import detuplify
from fastai.vision.core import TensorImage
from ..data.items import ClassId
from ..data.targets import REJECTED
from .batches import TaskDL
from .labels import plot_top_losses
from .layout import FALSE, MISSED, RIGHT, add_caption, as_hwc, columns_for, image_grid
from .names import write_below

__all__ = ['ClassificationDL']

CAPTION = 'Green: correct · red: wrong · orange, in brackets: the true class, where it is not predicted'

class ClassificationDL(TaskDL):
    "Draws images with their class below; results in green where correct, else in red with the true class"
    def show_batch(self, b=None, max_n=9, ctxs=None, show=True, unique=False, ncols=None, **kwargs):
        "Draw `max_n` images of a batch; `unique`: one image again and again, so that one sees the augmentation"
        if unique: return self.show_unique(max_n, ncols=ncols)
        if b is None: b = self.one_batch()
        if not show: return self._pre_show_batch(b, max_n=max_n)
        if not self.has_truth: return self.show_images(b, max_n, ncols)
        items = self.decode_batch(b, max_n)
        _,axs = image_grid(len(items), ncols or columns_for(len(items), 5), _aspect(b[0]), lines=1)
        for ax,(x,y) in zip(axs, items): ax.imshow(as_hwc(x)); write_below(ax, [(str(y), 'black')])

    def show_results(self,
        b,
        out, # (n,) predicted class ids, -1 = rejected
        max_n=9, ctxs=None, show=True, probs=None, losses=None, ncols=None, **kwargs,
    ):
        "Draw images with the predicted class, the true one where that differs, and the score where given"
        if not show: return self.results(b, out, max_n)
        samples,ids = self.decode_batch(b, max_n),detuplify(out).tolist()    # `Interpretation` gives a tuple
        preds  = [REJECTED if i < 0 else str(self.vocab[i]) for _,i in zip(samples, ids)]
        scores = None if probs is None else probs.max(1).values.tolist()
        _results(samples, preds, losses, ncols, scores)

def class_lines(truth, pred, score=None):
    "Lines with the prediction and its score, and below it the true class where that is another"
    line = pred if score is None else f'{pred} {score:.2f}'
    return [(line, RIGHT)] if truth == pred else [(line, FALSE), (f'({truth})', MISSED)]

def _results(samples, preds, losses=None, ncols=None, scores=None):
    "Images with their true classes, `samples` of (image, class name), and the predicted ones"
    lines = [class_lines(str(y), p, scores and scores[i]) for i,((_,y),p) in enumerate(zip(samples, preds))]
    fig,axs = image_grid(len(samples), ncols or columns_for(len(samples), 5), _aspect(samples[0][0]),
                         lines=max(map(len, lines)), titles=losses is not None)
    for i,(ax,(x,_),text) in enumerate(zip(axs, samples, lines)):
        ax.imshow(as_hwc(x)); write_below(ax, text)
        if losses is not None: ax.set_title(f'Loss {float(losses[i]):.2f}', fontsize=9)
    add_caption(fig, CAPTION)

def _aspect(x): return x.shape[-2]/x.shape[-1]

@plot_top_losses.dispatch
def _plot_top_class_losses(x:TensorImage, y:ClassId, samples, outs, raws, losses, nrows=None, ncols=None, figsize=None,
                           **kwargs):
    "What `Interpretation.plot_top_losses` calls; drawn as `show_results` is"
    _results([s[:2] for s in samples], [str(o[0]) for o in outs], losses, ncols)
