"Curves of detections: precision against recall, F-beta against the threshold"
from __future__ import annotations
import matplotlib.pyplot as plt
import numpy as np
from ..arguments import IOU, checked
from ..metrics.detection import area_below
from ..metrics.detection_curves import best_cut, counted_detections, cuts_of_scores, f_beta_of_cuts
from ..ops.colours import class_colours

__all__ = ['plot_precision_recall', 'plot_f_threshold']

_NAMED = 20   # most curves that have names and colours of their own

def _plot(o, draw, ax, title, legend):
    """Let `draw(ax, scores, hit, n, **style)` return a line and what the legend says of it: of each class of `o` with
    ground truth, and, in black, of all together. The legend is to the right of the axes, where it covers no curve"""
    if ax is None: ax = plt.subplots(figsize=(7.6, 4.5), layout='constrained')[1]
    some = np.flatnonzero(o.n)
    named,colours = len(some) <= _NAMED,class_colours(o.vocab)
    for i,c in enumerate(some):
        style = dict(color=colours[str(o.vocab[c])], lw=1.4) if named else dict(color='#b0b0b0', lw=.7)
        line,value = draw(ax, *o.of(c), **style)
        line.set_label(f'{o.vocab[c]}, {value}' if named else '_' if i else f'Each of {len(some)} classes')
    if len(some) > 1:
        line,value = draw(ax, *o.of(), color='black', lw=2.2)
        line.set_label(f'All together, {value}')
    ax.set(xlim=(0, 1), ylim=(0, 1.02))
    ax.set_title(title, loc='left')
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(alpha=.25)
    if len(some): ax.legend(loc='upper left', bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False, fontsize=8,
                            title=legend, title_fontsize=8, alignment='left')
    return ax

@checked(iou=IOU)
def plot_precision_recall(
    annotations,  # list[Annotation], the ground truth
    predictions,  # list[Annotation] of the same images
    vocab=None,   # list of class names
    iou:float=.5, # least IoU of a true positive, in (0, 1]
    ax=None,      # matplotlib axes, of a figure with layout='constrained', since the legend is beside them; None
                  # (default): a new figure
):                # the axes
    """Precision against recall of each class that has ground truth, as in `detection_curve`, and of all detections
    together (micro), with the area below the interpolated curve; more than 20 classes have no names"""
    def draw(ax, scores, hit, n, **style):
        _,tp,kept = (o[::-1] for o in cuts_of_scores(scores, hit))
        recall,precision = tp[1:]/n,tp[1:]/kept[1:]   # without the threshold that keeps no detection
        x,y = np.append(0, recall),np.append(precision[:1], precision)
        return ax.plot(x[:len(y)], y, **style)[0],f'{area_below(recall, precision):.3f}'
    ax = _plot(counted_detections(annotations, predictions, iou, vocab), draw, ax, f'Precision by recall, IoU {iou:g}',
               'Area below')
    ax.set(xlabel='Recall', ylabel='Precision')
    return ax

@checked(iou=IOU)
def plot_f_threshold(
    annotations,   # list[Annotation], the ground truth
    predictions,   # list[Annotation] of the same images
    vocab=None,    # list of class names
    iou:float=.5,  # least IoU of a true positive, in (0, 1]
    beta:float=1., # weight of recall over precision, above 0
    ax=None,       # matplotlib axes, of a figure with layout='constrained', since the legend is beside them; None
                   # (default): a new figure
):                 # the axes
    """F-beta against the threshold of each class that has ground truth, and of all detections together (micro), with
    the best threshold as a dot; more than 20 classes have no names"""
    def draw(ax, scores, hit, n, color, lw):
        s,tp,kept = cuts_of_scores(scores, hit)
        f = f_beta_of_cuts(tp, kept, n, beta)
        thresh,best = best_cut(scores, hit, n, beta)
        ax.plot(thresh, best, 'o', color=color, ms=5+lw, mec='white', zorder=5, clip_on=False)
        line, = ax.plot(np.r_[0, s, 1], np.append(f, f[-1]), drawstyle='steps-post', color=color, lw=lw)
        return line,f'{best:.3f} at {thresh:.3f}'
    title = f'F{beta:g} by threshold, IoU {iou:g}'
    ax = _plot(counted_detections(annotations, predictions, iou, vocab), draw, ax, title, 'Best')
    ax.set(xlabel='Threshold', ylabel=f'F{beta:g}')
    return ax
