"Figures: grids of images, captions, legends of class colors"
from __future__ import annotations
import math, textwrap
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle
from torch import Tensor
from ..data.targets import NO_OBJECT
from ..ops.colours import class_colours, is_background

__all__ = ['RIGHT', 'MISSED', 'FALSE']
RIGHT,MISSED,FALSE = '#1a7f37','#b35900','#c62828'   # colours of a true positive, a missed label, a false positive
LEGEND = 'Green: found · orange, in brackets: missed · red, with +: false positive'
GREY  = .5,.5,.5                                    # of ignored objects, and classes that are not in the vocab

def has_one_class(vocab): return len({*map(str, vocab)} - {NO_OBJECT, 'ignored'}) == 1

def class_legend(fig, vocab, idxs):
    "The colours of the classes `idxs`, below the figure"
    named = class_colours(vocab)
    shown = {i: (named[str(vocab[i])], str(vocab[i])) for i in idxs if i < len(vocab)}
    if is_background(vocab): shown.pop(0, None)
    if 255 in idxs: shown[255] = 'black','void'
    colour_legend(fig, shown.values())

def colour_legend(fig, shown, fontsize=7):
    "(colour, name) below the figure, which grows by its height"
    shown = list(shown)
    if not shown: return
    width,height = fig.get_size_inches()
    wide  = .009*fontsize*max(len(n) for _,n in shown) + .4   # inches of a name and its colour
    ncols = max(1, min(len(shown), int(width/wide)))
    nrows = math.ceil(len(shown)/ncols)
    fig.set_size_inches(width, height + .024*fontsize*nrows + .1)
    fig.legend([Rectangle((0, 0), 1, 1, fc=c) for c,_ in shown], [n for _,n in shown], loc='outside lower center',
               ncols=math.ceil(len(shown)/nrows), fontsize=fontsize, frameon=False)

def add_caption(fig, text, fontsize=9):
    "A title of the figure in as many lines as its width asks for; the figure grows by their height"
    width,height = fig.get_size_inches()
    lines = textwrap.wrap(text, max(12, int(width/(.0085*fontsize))))
    fig.set_size_inches(width, height + .019*fontsize*len(lines) + .05)
    fig.suptitle('\n'.join(lines), fontsize=fontsize)

def columns_for(n, most):
    "Columns for `n` images, at most `most`: those that leave the fewest places empty; of ties, the most columns"
    return min(range(min(n, most), min(n, most)//2, -1), key=lambda c: -n%c)

def image_grid(n, ncols, aspect=1., lines=0, width=2.1, titles=False):
    """A figure and `n` axes in rows of `ncols`, for images of height/width `aspect` with `lines` of text below, and
    `titles` above; few images in a row are larger than `width` inches"""
    ncols = max(1, min(ncols, n)); nrows = math.ceil(n/ncols)
    width = max(width, min(4.2, 8.4/ncols))
    text = .165*min(lines, 9) + .2*titles + .06
    height = width*min(max(aspect, .2), 2.5) + text
    fig,axs = plt.subplots(nrows, ncols, figsize=(width*ncols, nrows*height), squeeze=False, layout='constrained')
    fig.get_layout_engine().set(h_pad=.03, w_pad=.03, hspace=0, wspace=0)
    # images at the top of their place, next to their title: what is left is below
    for ax in axs.flat: ax.set_axis_off(); ax.set_anchor('N')
    return fig,axs.flatten()

def crowd_legend(fig, vocab, labels, most, limit=12):
    "The colours of the classes, if an image has more than `limit` objects, so that not all names fit"
    if most <= limit or has_one_class(vocab): return
    colour_legend(fig, [(c, n) for n,c in class_colours(vocab).items() if n in labels])

def as_hwc(x):
    "A decoded image as (h, w, c) uint8 for matplotlib"
    x = x.as_subclass(Tensor).cpu()
    x = x*255 if x.is_floating_point() and x.max() <= 1.001 else x
    return x.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
