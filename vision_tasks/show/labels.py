"Batches and results of images with several labels"
from __future__ import annotations
from fastcore.basics import detuplify
from fastai.vision.core import TensorImage
from plum import dispatch
from ..data.items import LabelSet
from .batches import _TaskDL
from .layout import FALSE, LEGEND, MISSED, RIGHT, _caption, _columns, _grid, _hwc
from .names import _write_below

__all__ = ['MultilabelDL']

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
