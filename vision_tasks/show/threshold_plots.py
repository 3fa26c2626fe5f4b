"Plots of thresholds and of calibration"
from __future__ import annotations
import matplotlib.pyplot as plt, numpy as np
from ..arguments import FRACTION, checked
from ..metrics.calibration import error_of_bins, reliability, wilson_interval
from ..metrics.classes import IDS, PROBS
from ..metrics.rejection import coverage_curve
from ..metrics.threshold_curves import sweep_thresholds
from ..metrics.threshold_scores import SCORE_ARRAY, TARGET_ARRAY
from ..metrics.thresholds import best_threshold

__all__ = ['plot_thresholds', 'plot_reliability', 'plot_coverage']

_HUES = dict(score='#0072b2', precision='#d55e00', recall='#009e73', mark='#882255', ink='#444444')

def _axes(ax, title, xlabel, ylabel):
    "`ax`, or that of a new figure, with a quiet frame over the unit square"
    if ax is None: ax = plt.subplots(figsize=(7.2, 4.5), layout='constrained')[1]
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title, loc='left')
    _quiet(ax)
    return ax

def _quiet(ax):
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(alpha=.25)
    ax.set_axisbelow(True)

def _legend(ax):
    "The legend to the right of `ax`, where it covers no curve"
    ax.legend(loc='upper left', bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False, fontsize=9)

@checked(probs=SCORE_ARRAY, targs=TARGET_ARRAY)
def plot_thresholds(
    probs,               # (n, c) or (n,) in [0, 1]
    targs,               # same shape, 0 or 1
    score:str='f1',      # score, as `best_threshold` takes it
    average:str='micro', # all entries together, or 'macro': the mean over the classes
    ax=None,             # matplotlib axes, of a figure with layout='constrained', since the legend is beside them; None
                         # (default): a new figure
    beta:float=1.,       # weight of recall over precision for 'fbeta'
    at:float=None,       # floor for 'recall_at_precision' and 'precision_at_recall', in (0, 1]
):                       # the axes
    "The curve of `score` with those of precision and recall, and the exact optimum on it"
    thresh,best = best_threshold(probs, targs, score, beta=beta, at=at, average=average)
    reached = best > 0 or np.isnan(best)
    name,floor  = score.split('_at_') if '_at_' in score else (score, None)
    shown = name.capitalize() if score != 'fbeta' else f'F{beta:g}'
    columns = list(dict.fromkeys((name, 'precision', 'recall')))
    curves = sweep_thresholds(probs, targs, np.linspace(0, 1, 401), columns, average, beta)
    # precision ends where there is no true positive, in place of dropping to 0
    curves['precision'] = curves.precision.where(curves.recall > 0)
    ax = _axes(ax, f"{shown} by threshold, {average} average", 'Threshold', 'Score')
    for o,ls in (('precision', '--'), ('recall', '-.')):
        if o != name: ax.plot(curves.threshold, curves[o], color=_HUES[o], lw=1.5, ls=ls, label=o.capitalize())
    ax.plot(curves.threshold, curves[name], color=_HUES['score'], lw=2.5, label=shown)
    if floor: ax.axhline(at, color=_HUES['ink'], lw=1, ls=':', label=f'{floor.capitalize()} at least {at:g}' +
                         ('' if reached else ': no threshold reaches it'))
    ax.plot([thresh]*2, [0, best], color=_HUES['mark'], lw=1, ls=':')
    ax.plot(thresh, best, 'o', color=_HUES['mark'], ms=8, mec='white', mew=1.5, zorder=5, clip_on=False, ls='none',
            label=f'Best: {best:.3f} at {thresh:.3f}' + ('' if reached else ', nothing is predicted'))
    _legend(ax)
    return ax

def _below(ax):
    "New axes in the lower quarter of the place of `ax`, with the same x; below it where it has no place in a grid"
    spec = ax.get_subplotspec()
    if spec is None: return ax.inset_axes([0, -.33, 1, .27], sharex=ax)
    upper,lower = spec.subgridspec(2, 1, height_ratios=[3, 1])
    ax.set_subplotspec(upper)
    return ax.figure.add_subplot(lower, sharex=ax)

@checked(probs=SCORE_ARRAY, targs=TARGET_ARRAY)
def plot_reliability(
    probs,         # (n, c) or (n,) in [0, 1]
    targs,         # same shape, 0 or 1
    n_bins:int=10, # bins of equal width
    ax=None,       # matplotlib axes, of a figure with layout='constrained', since legend and histogram are beside and
                   # below them; None (default): a new figure
):                 # the axes of the curve; those of the histogram come last in `figure.axes`
    """The fraction of positives in each bin against the mean score there: on the diagonal, scores are probabilities.
    With 95 % Wilson intervals, which assume independent entries; below, the number of entries in each bin"""
    bins = reliability(probs, targs, n_bins)
    some = bins[bins.n > 0]
    if ax is None: ax = plt.subplots(figsize=(6.8, 5.4), layout='constrained')[1]
    ax = _axes(ax, 'Reliability', None, 'Fraction of positives')
    ax.plot([0, 1], [0, 1], color=_HUES['ink'], lw=1, ls=':', label='Perfectly calibrated')
    low,high = wilson_interval((some.positive*some.n).round(), some.n)
    ax.vlines(some.score, low, high, color=_HUES['score'], lw=1.5, alpha=.5, label='95 % interval (Wilson)')
    ax.plot(some.score, some.positive, 'o-', color=_HUES['score'], ms=6, lw=2, mec='white',
            label=f'Calibration error {error_of_bins(bins):.3f}')
    _legend(ax)
    below = _below(ax)
    below.bar(bins.low, bins.n, bins.high-bins.low, align='edge', color='#8fa9bd', ec='white')
    below.set(yscale='log', ylim=(.5, 2.5*bins.n.max()), xlabel='Mean score', ylabel='Entries')
    _quiet(below)
    ax.tick_params(labelbottom=False)
    return ax

@checked(probs=PROBS, targs=IDS, thresh=FRACTION)
def plot_coverage(
    probs,       # (n, c) of a softmax
    targs,       # (n,) true class ids
    thresh=None, # marked on the curve; None (default): no mark
    ax=None,     # matplotlib axes, of a figure with layout='constrained', since the legend is beside them; None
                 # (default): a new figure
):               # the axes
    """The accuracy of the accepted images by their share of all, from the most confident on; dotted that of all. The
    better confidence tells right from wrong, the sooner the curve reaches 1 to the left"""
    curve = coverage_curve(probs, targs)
    ax = _axes(ax, 'Accuracy by coverage', 'Share of the images accepted', 'Accuracy on these')
    all_of = curve.accuracy.iloc[-1]
    ax.axhline(all_of, color=_HUES['ink'], lw=1, ls=':', label=f'Of all images: {all_of:.3f}')
    ax.plot(curve.coverage, curve.accuracy, color=_HUES['score'], lw=2.5, label='Of the accepted images')
    on = curve[curve.thresh >= thresh] if thresh is not None else curve[:0]
    if len(on):
        x,y = on.coverage.iloc[-1],on.accuracy.iloc[-1]
        ax.plot(x, y, 'o', color=_HUES['mark'], ms=8, mec='white', mew=1.5, zorder=5, clip_on=False, ls='none',
                label=f'Threshold {thresh:.3f}: {y:.3f} of {x:.3f}')
    low = min(curve.accuracy.min(), 1)
    ax.set_ylim(max(0, low - .1*(1-low) - .02), 1.02 if low < .9 else 1 + .1*(1-low) + .002)
    _legend(ax)
    return ax
