"Batches and results of images with several labels"
from __future__ import annotations
from fastcore.basics import detuplify
from fastai.vision.core import TensorImage
from plum import dispatch
from ..data.items import LabelSet
from .batches import TaskDL
from .layout import FALSE, LEGEND, MISSED, RIGHT, add_caption, as_hwc, columns_for, image_grid
from .names import write_below

__all__ = ['MultilabelDL']

def has_only_labels(a): return a.bboxes is None and a.points is None and a.mask is None

def most_lines(anns):
    "The most lines of text that any image has below it"
    return max((len(a.labels) if a.bboxes is None else int(not len(a.bboxes)) for a in anns), default=0)

def label_lines(truth, pred, scores):
    "Lines for true positives, missed labels and false positives"
    s = lambda o: f' {scores[o]:.2f}' if o in scores else ''
    lines = [(o + s(o), RIGHT)         for o in sorted(truth & pred)] + \
            [(f'({o}{s(o)})', MISSED) for o in sorted(truth - pred)] + \
            [(f'+ {o}{s(o)}', FALSE)  for o in sorted(pred - truth)]
    return lines or [('no label', RIGHT)]

class MultilabelDL(TaskDL):
    "Draws images with their labels below; results as true positives, missed labels and false positives"
    def show_batch(self, b=None, max_n=9, ctxs=None, show=True, unique=False, ncols=None, **kwargs):
        "Draw images of a batch with their labels"
        if unique: return self.show_unique(max_n, ncols=ncols)
        if b is None: b = self.one_batch()
        if not show: return self._pre_show_batch(b, max_n=max_n)
        if not self.has_truth: return self.show_images(b, max_n, ncols)
        items = self.decode_batch(b, max_n)
        fig,axs = image_grid(len(items), ncols or columns_for(len(items), 5), lines=max(1, *(len(y) for _,y in items)))
        for ax,(x,y) in zip(axs, items):
            ax.imshow(as_hwc(x)); write_below(ax, [(str(o), 'black') for o in y] or [('no label', 'grey')])

    def show_results(self,
        b,
        out, # (n, c) bool: which labels are predicted
        max_n=9, ctxs=None, show=True, probs=None, losses=None, ncols=None, **kwargs,
    ):
        "Draw images with true positives, missed labels and false positives, and their probabilities where given"
        if not show: return self.results(b, out, max_n)
        items,vocab,out = self.decode_batch(b, max_n),self.vocab,detuplify(out)   # `Interpretation` passes a tuple
        sets = [({*map(str, y)}, {vocab[j] for j in o.nonzero().flatten().tolist()}) for (_,y),o in zip(items, out)]
        fig,axs = image_grid(len(items), ncols or columns_for(len(items), 5),
                             lines=max(1, *(len(t | p) for t,p in sets)), titles=losses is not None)
        for i,(ax,(x,_),(t,p)) in enumerate(zip(axs, items, sets)):
            ax.imshow(as_hwc(x)); ax.set_axis_off()
            scores = {} if probs is None else dict(zip(vocab, probs[i].tolist()))
            if losses is not None: ax.set_title(f'Loss {losses[i]:.2f}', fontsize=9)
            write_below(ax, label_lines(t, p, scores))
        add_caption(fig, LEGEND)

@dispatch
def plot_top_losses(x:TensorImage, y:LabelSet, samples, outs, raws, losses, nrows=None, ncols=None, figsize=None,
                    **kwargs):
    """What `Interpretation.plot_top_losses` calls; drawn as `show_results` is (fastai prints a table without the labels
    of the images)"""
    sets = [(set(map(str, s[1])), set(map(str, o[0]))) for s,o in zip(samples, outs)]
    fig,axs = image_grid(len(sets), ncols or columns_for(len(sets), 5), lines=max(1, *(len(t | p) for t,p in sets)),
                         titles=True)
    for ax,s,(t,p),l in zip(axs, samples, sets, losses):
        ax.imshow(as_hwc(s[0])); ax.set_title(f'Loss {float(l):.2f}', fontsize=9)
        write_below(ax, label_lines(t, p, {}))
    add_caption(fig, LEGEND)
