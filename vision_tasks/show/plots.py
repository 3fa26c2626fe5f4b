"Plots: confusion matrices, counts, scores per class"
from __future__ import annotations
import math, textwrap
from collections import Counter
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from ..arguments import FLAG, NAMES, TEXT, Kind, checked, either, number, several
from ..data.class_masks import decode_class_mask
from ..data.targets import REJECTED
from ..ops.colours import class_colours, palette, text_colour
from .layout import GREY, columns_for
from .one_object import shown_name

__all__ = ['plot_confusion', 'plot_label_confusion', 'plot_confusion_per_class', 'plot_counts', 'plot_per_class']

TABLE  = Kind("a DataFrame", lambda o: isinstance(o, pd.DataFrame))
SQUARE = Kind("a DataFrame (c, c) of numbers, row = true class, column = predicted class",
              lambda o: isinstance(o, pd.DataFrame) and o.shape[0] == o.shape[1] > 0 and
              not (o.to_numpy(float) < 0).any())

COUNTS = either(SQUARE, Kind("such a table with a last column of rejected images", lambda o: isinstance(o, pd.DataFrame)
                and o.columns[-1] == REJECTED and SQUARE.ok(o.iloc[:,:-1]) and not (o[REJECTED] < 0).any()))

# --- tables as plots

@checked(counts=COUNTS, normalize=FLAG)
def plot_confusion(
    counts,          # DataFrame (c, c), row = true class, column = predicted class; or (c, c + 1) with `REJECTED` last
    normalize=True,  # True: shares of the row in [0, 1]; False: counts
    ax=None,         # matplotlib Axes to draw on; None (default): new ones
):                   # the axes
    """A confusion matrix, its values written where there is room, with the total of each row behind its name and a
    colour bar"""
    totals = counts.sum(axis=1)
    share  = counts.div(totals.where(totals > 0), axis=0) if normalize else counts
    return _heatmap(share, totals, ax, 'Share of the true class' if normalize else 'Count', 'Predicted', 'True',
                    1 if normalize else max(counts.to_numpy().max(initial=0), 1))

@checked(shares=SQUARE, totals=several(number(0), "a list of numbers, one for each label"))
def plot_label_confusion(
    shares,          # DataFrame (c, c) in [0, 1] of `label_confusion`, row = true label B, column = predicted label A
    totals=None,     # (c,) numbers of images with each label, written behind its name; None (default): none
    ax=None,         # matplotlib Axes to draw on; None (default): new ones
):                   # the axes
    "How often label A is predicted for images with label B and without A; on the diagonal recall"
    if totals is not None and len(totals) != len(shares):
        raise ValueError(f"totals has {len(totals)} numbers, but there are {len(shares)} labels")
    ax = _heatmap(shares, totals, ax, 'Share of the images with B and without A', 'Predicted (A)', 'True (B)', 1)
    ax.set_title('Predicted A where B is true', fontsize=9, loc='left')
    return ax

def _heatmap(values, totals, ax, label, xlabel, ylabel, top):
    "A square table in colours from 0 to `top`; grey where it is nan"
    n,names = len(values),[shown_name(str(o)) for o in values.index]
    rows = names if totals is None else [f'{o} ({_short(t)})' for o,t in zip(names, totals)]
    cell = .46 if n <= 15 else .34 if n <= 30 else .15
    if ax is None:
        side = 1. + .06*max(map(len, rows)) + cell*n
        ax = plt.subplots(figsize=(max(side, 3.) + .8, max(side, 2.5) - .4), layout='constrained')[1]
    fontsize = 7 if n <= 30 else 5
    image = ax.imshow(values.to_numpy(float), cmap='Blues', vmin=0, vmax=top)
    ax.set_facecolor('#dddddd'); ax.set_anchor('N')
    turned = (dict(rotation=60, ha='right', rotation_mode='anchor') if n <= 30 else
              dict(rotation=90, ha='center', rotation_mode='default'))
    ax.set_xticks(range(len(values.columns)), [shown_name(str(o)) for o in values.columns], fontsize=fontsize, **turned)
    ax.set_yticks(range(n), rows, fontsize=fontsize)
    ax.set_xlabel(xlabel, fontsize=9); ax.set_ylabel(ylabel, fontsize=9)
    bar = ax.figure.colorbar(image, ax=ax, shrink=.8, aspect=25, pad=.02,
                             format=(lambda v, _: _short(v)) if top > 1 else None)
    bar.set_label(label, fontsize=8); bar.ax.tick_params(labelsize=7); bar.outline.set_visible(False)
    if n > 30: return ax
    for i,row in enumerate(values.to_numpy(float)):
        for j,v in enumerate(row):
            if not v >= .005*top: continue                     # nan is not
            text = f'{v:.2f}' if top == 1 and values.dtypes.iloc[j].kind == 'f' else _short(v)
            ax.text(j, i, text, ha='center', va='center', fontsize=6.5, color=text_colour(image.cmap(image.norm(v))))
    return ax

def _short(n):
    "A count in at most five characters: 950, 12.3k, 4.1M"
    if n < 9999.5: return f'{n:.0f}'
    for size,unit in ((1e3, 'k'), (1e6, 'M'), (1e9, 'G')):
        if n < 999.5*size: break
    return f'{n/size:.{max(0, 2-int(math.log10(n/size)))}f}{unit}'

@checked(counts=TABLE)
def plot_confusion_per_class(
    counts,          # DataFrame of `multilabel_confusion`: label, tn, fp, fn, tp
    ncols:int=None,  # classes in a row; None (default): as many as fit evenly, at most 8
):                   # the figure
    "The 2 x 2 confusion matrix of each class: numbers of images, coloured by their share of the row"
    n,missing = len(counts),{'label', 'tn', 'fp', 'fn', 'tp'} - {*counts.columns}
    if missing: raise ValueError(f"counts: expected what `multilabel_confusion` returns, got a table without the "
                                 f"columns {sorted(missing)}")
    if not n: raise ValueError("the table has no classes: pass what `multilabel_confusion` returns")
    ncols = min(ncols or columns_for(n, 8), n); nrows = math.ceil(n/ncols)
    fig,axs = plt.subplots(nrows, ncols, figsize=(1.15*ncols + .7, 1.35*nrows + .5), squeeze=False,
                           layout='constrained')
    fig.get_layout_engine().set(h_pad=.02, w_pad=.02, hspace=.02, wspace=.02)
    for ax in axs.flat[n:]: ax.set_axis_off()
    for i,(ax,row) in enumerate(zip(axs.flat, counts.itertuples(index=False))):
        cells = np.array([[row.tn, row.fp], [row.fn, row.tp]], float)
        image = ax.imshow(cells/cells.sum(1, keepdims=True).clip(min=1), cmap='Blues', vmin=0, vmax=1)
        for (y,x),v in np.ndenumerate(cells):
            colour = text_colour(image.cmap(image.norm(image.get_array()[y, x])))
            ax.text(x, y, _short(v), ha='center', va='center', fontsize=7, color=colour)
        ax.set_title(textwrap.shorten(str(row.label), 18, placeholder='...') if ' ' in str(row.label) else
                     str(row.label)[:18], fontsize=7, pad=3)
        ax.set_xticks([0, 1], ['no', 'yes'] if i + ncols >= n else [], fontsize=6)
        ax.set_yticks([0, 1], ['no', 'yes'] if i%ncols == 0 else [], fontsize=6)
        ax.tick_params(length=0, pad=2); ax.spines[:].set_visible(False)
    fig.supxlabel('Predicted', fontsize=9); fig.supylabel('True', fontsize=9)
    return fig

@checked()
def plot_counts(
    annotations,  # list[Annotation]
    vocab=None,   # list of class names in the order of the plot; needed for the names in class masks. None (default):
                  # those of the labels, the most frequent first
):                # the figure
    """The contents of a data set: objects (or, without boxes, images) of each class, widths and heights of the boxes in
    pixels, images of each split. Classes of class masks are counted by the images that show them, points by the images
    that mark them. Raises `ValueError` without annotations, and for classes that are not in `vocab`"""
    anns = list(annotations)
    if not anns: raise ValueError("there is nothing to count: the list of annotations is empty")
    what,counts,colours = _class_counts(anns, vocab)
    boxes = [(b, o) for a in anns if a.bboxes is not None for b,o in zip(a.bboxes[:,2:]-a.bboxes[:,:2], a.labels)]
    widths,n = [3.2]*bool(counts) + [3.4]*bool(boxes) + [2.6],max(len(counts), 8)
    fig,axs = plt.subplots(1, len(widths), figsize=(sum(widths) + .3, max(3., .145*n + .9)), squeeze=False,
                           layout='constrained', width_ratios=widths)
    axs = list(axs[0])
    if counts: _count_bars(axs.pop(0), counts, what, [colours[o] for o in counts], n)
    if boxes: _plot_box_sizes(axs.pop(0), boxes, colours)
    splits = Counter(a.split or 'not set' for a in anns)
    splits = {o: splits[o] for o in ('train', 'valid', 'test', 'not set') if splits[o]}
    _count_bars(axs.pop(0), splits, 'Images per split', '#5b7d99', n)
    return fig

def _class_counts(anns, vocab):
    "Title, counts by class in the order of the plot, and colours of the classes"
    points = [a.points for a in anns if a.points is not None]
    names  = None if vocab is None else list(map(str, vocab))
    if any(a.labels for a in anns):
        boxed = any(a.bboxes is not None for a in anns)
        what,found = 'Objects per class' if boxed else 'Images per class',Counter(o for a in anns for o in a.labels)
    elif any(a.mask is not None for a in anns):
        masks = (decode_class_mask(a.mask, a.size) for a in anns if a.mask is not None)
        ids = Counter(i for m in masks for i in np.unique(m).tolist())
        ids.pop(255, None)
        names = names or [str(i) for i in range(max(ids, default=-1) + 1)]
        if max(ids, default=0) >= len(names):
            raise ValueError(f"a class mask has index {max(ids)}, but the vocab has {len(names)} names: {names}")
        what,found = 'Images per class',Counter({names[i]: n for i,n in ids.items()})
    elif points:
        k = points[0].shape[-2]
        names = names or [str(i) for i in range(k)]
        if {p.shape[-2] for p in points} != {len(names)}: raise ValueError(
            f"the images have {sorted({p.shape[-2] for p in points})} points, but there are {len(names)} names")
        marked = sum((~np.isnan(p[...,0])).reshape(-1, k).sum(0) for p in points)
        return 'Images per point',dict(zip(names, marked.tolist())),dict(zip(names, palette(k)))
    else: return '',{},{}
    unknown = {*found} - {*(names or found)}
    if unknown: raise ValueError(f"label {sorted(unknown)[0]!r} is not in the vocab {names}")
    counts = dict(found.most_common()) if names is None else {o: found[o] for o in names}
    return what,counts,class_colours(list(counts))

def _count_bars(ax, counts, title, colours, rows):
    "Horizontal bars with their numbers, the first on top, as thick as if there were `rows` of them"
    names,n = [shown_name(str(o)) for o in counts],list(counts.values())
    size = 7 if rows <= 40 else 6
    ax.barh(range(len(n)), n, color=colours, height=.75)
    ax.set_yticks(range(len(n)), names, fontsize=size)
    ax.set_ylim(rows-.4, -.6); ax.set_xlim(0, max(*n, 1)*1.2)
    for i,v in enumerate(n): ax.text(v, i, f' {v:,}', va='center', fontsize=size)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_xlabel(title.split()[0], fontsize=8); ax.set_title(title, fontsize=9, loc='left')
    _quiet(ax, 'x')

def _quiet(ax, axis='both'):
    ax.spines[['top', 'right']].set_visible(False)
    ax.tick_params(axis='x', labelsize=7); ax.grid(axis=axis, alpha=.25); ax.set_axisbelow(True)

def _plot_box_sizes(ax, boxes, colours):
    wh = np.maximum([b for b,_ in boxes], .5)   # a logarithm has no 0
    # the more points, the smaller and fainter; in random order, so that no class covers the others
    order = np.random.default_rng(0).permutation(len(wh))
    k = min(1., (300/len(wh))**.5)
    ax.scatter(*wh[order].T, s=4 + 12*k, c=[colours.get(boxes[i][1], GREY) for i in order], alpha=max(.15, .8*k),
               linewidths=0, rasterized=True)
    ax.set(xscale='log', yscale='log')
    ax.set_box_aspect(1); ax.set_anchor('N')
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5))); axis.set_major_formatter('{x:g}')
        axis.set_minor_formatter(NullFormatter())
    low,high = wh.min()*.8,wh.max()*1.25
    ax.set_xlim(low, high); ax.set_ylim(low, high)
    side = np.geomspace(low, high, 50)
    for limit in (32, 96):   # COCO's limits of small, medium and large objects, by area
        if low**2 < limit**2 < high**2: ax.plot(side, limit**2/side, color='#444444', lw=.8, ls='--', zorder=0)
    ax.set_xlabel('Width in pixels', fontsize=8); ax.set_ylabel('Height in pixels', fontsize=8)
    ax.set_title('Box sizes (dashed: areas 32², 96²)', fontsize=9, loc='left')
    ax.tick_params(axis='y', labelsize=7)
    _quiet(ax)

@checked(df=TABLE, columns=NAMES, sort=TEXT)
def plot_per_class(
    df,             # DataFrame of `evaluate_per_class`: label, n, and a column for each score
    columns=None,   # columns to draw; None (default): all scores
    sort=None,      # name of the score that orders the classes, the best on top, classes with nan last; None
                    # (default): the order of the table
):                  # the figure
    """A bar for each class and score, the number of its objects (or images, points, pixels) behind its name; a dash
    where the score is nan. Raises `ValueError` for columns that are missing"""
    columns = [o for o in df.columns if o not in ('label', 'n')] if columns is None else list(columns)
    missing = [o for o in [*columns, *([sort] if sort else []), 'label'] if o not in df.columns]
    if missing: raise ValueError(f"the table has no column {missing[0]!r}; there are {list(df.columns)}")
    if text := [o for o in columns if df[o].dtype.kind not in 'biuf']:
        raise ValueError(f"columns: expected scores, but {text[0]!r} holds no numbers")
    if not len(df) or not columns: raise ValueError("the table has no rows, or no scores to draw")
    if sort: df = df.sort_values(sort, ascending=sort in _ERRORS, na_position='last', kind='stable')
    colours,n = class_colours(list(map(str, df.label))),len(df)
    names = [shown_name(str(o)) + (f' ({_short(k)})' if 'n' in df else '')
             for o,k in zip(df.label, df.get('n', df.label))]
    size = 7 if n <= 40 else 6
    fig,axs = plt.subplots(1, len(columns), sharey=True, squeeze=False, layout='constrained',
                           figsize=(1.35*len(columns) + .07*max(map(len, names)) + .3, .17*max(n, 4) + .7))
    for ax,o in zip(axs[0], columns):
        v = df[o].to_numpy(float)
        top = np.nanmax([*v, 0])
        if o not in _ERRORS or not top: top = max(top, 1)
        ax.barh(range(n), np.nan_to_num(v), color=[colours[str(o)] for o in df.label], height=.75)
        for i,x in enumerate(v):
            text = '–' if x != x else f'{x:.2f}' if top <= 100 else f'{x:.0f}'
            ax.text(x if x == x else 0, i, f' {text}', va='center', fontsize=size)
        ax.set_xlim(0, 1.32*top); ax.set_ylim(max(n, 4)-.4, -.6)
        ax.set_xticks([0, top/2, top], ['0', f'{top/2:.3g}', f'{top:.3g}'])
        ax.set_title(_score_title(o), fontsize=8, loc='left')
        ax.tick_params(axis='y', length=0, labelsize=size); _quiet(ax, 'x')
    axs[0,0].set_yticks(range(n), names)
    return fig

def _score_title(name): return _SCORES.get(name, name.upper() if 'pck' in name else name[:1].upper() + name[1:])

_ERRORS = 'error_px', 'median_px', 'nme'   # scores where lower is better
_SCORES = dict(ap='AP', ap50='AP50', ap75='AP75', ar='AR', f1='F1', iou='IoU', mean_iou='Mean IoU', nme='NME',
               thresh='Threshold', error_px='Error in pixels', median_px='Median error', ap_segm='AP (masks)',
               ap50_segm='AP50 (masks)', ap75_segm='AP75 (masks)', ar_segm='AR (masks)')

# --- the learning rate range test

def plot_lr_find(
    lrs,      # learning rate of each step
    losses,   # smoothed loss of each step
    found,    # dict of rates by name, None for those that are not drawn
    steps,    # number of steps that the test took, for the title
    ax=None,  # matplotlib Axes to draw on; None (default): new ones
):            # the axes
    "Loss against learning rate, and where the suggestions and the recipe's rate lie on the curve"
    lrs,losses = (np.asarray(o, float) for o in (lrs, losses))
    if ax is None: ax = plt.subplots()[1]
    ax.plot(lrs, losses, color=GREY)
    rates = [(k, v) for k,v in found.items() if v is not None and len(lrs)]
    for (name,rate),color in zip(rates, palette(len(rates))):
        at = int(np.abs(np.log(lrs/rate)).argmin())
        ax.plot(lrs[at], losses[at], 'o', color=color, label=f'{name}: {rate:.1e}')
    ax.set(xscale='log', xlabel='Learning rate', ylabel='Loss', title=f'Learning rate range test, {steps} steps')
    if rates: ax.legend()
    return ax
