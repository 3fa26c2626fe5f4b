"Sheets: many images with annotations or predictions on one page"
from __future__ import annotations
from pathlib import Path
import numpy as np
from matplotlib.backend_bases import FigureCanvasBase
import torch
from ..arguments import TEXT, checked, whole
from ..data.annotation import ANNOTATIONS, Annotation
from ..data.class_masks import decode_class_mask
from ..data.image import read_image
from ..data.targets import label_set
from ..data.writing import replacing
from .class_masks import classes_of_masks
from .draw import show_annotation
from .labels import has_only_labels, label_lines, most_lines
from .layout import add_caption, class_legend, columns_for, crowd_legend, image_grid
from .names import write_below

__all__ = ['contact_sheet']

@checked(truths=ANNOTATIONS, preds=ANNOTATIONS, n=whole(1, 10000), title=TEXT)
def contact_sheet(
    truths,          # list[Annotation], the ground truth
    preds=None,      # list[Annotation] of the same images; None (default): ground truth only
    fname=None,      # image file to write; None (default): only the figure
    n:int=12,        # images at most
    ncols:int=None,  # images, each with its ground truth and prediction, in a row; None (default): as many as fit
    vocab=None,      # list of class names; None (default): those of `truths`
    title=None,      # text above the images; None (default): none
    **kwargs,        # of `show_annotation`: `point_names`, `skeleton`, `alpha`
):                   # the figure
    """A sheet of images, each with its ground truth or, given `preds`, ground truth and prediction side by side; beside
    class masks the image itself"""
    if fname is not None and Path(fname).suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        raise ValueError(f"fname: expected a name that ends in .png, .jpg, .pdf or .svg, got {str(fname)!r}")
    truths,preds = list(truths)[:n],None if preds is None else list(preds)[:n]
    if not truths: raise ValueError("a contact sheet needs at least one annotation, got none")
    if preds is not None and len(preds) != len(truths):
        raise ValueError(f"{len(truths)} annotations but {len(preds)} predictions: one for each is needed")
    painted = [a.mask is not None and a.bboxes is None for a in truths]
    panels  = ['Image']*any(painted) + ['Ground truth'] + ['Prediction']*(preds is not None)
    per = len(panels)
    aspect = np.mean([a.size[1]/a.size[0] for a in truths])
    ncols = ncols or columns_for(len(truths), max((6 if aspect > .5 else 3)//per, 1))
    vocab = vocab or sorted({o for a in (*truths, *(preds or [])) for o in a.labels})
    fig,axs = image_grid(len(truths)*per, ncols*per, aspect=aspect,
                    lines=most_lines([*truths, *(preds or [])]), titles=per > 1)
    for i,a in enumerate(truths):
        ax = dict(zip(panels, axs[i*per:]))
        if preds is not None and has_only_labels(preds[i]):
            a = Annotation(a.path, a.size, label_set(a))     # names beside names
        if 'Image' in ax: _show_image(a, ax['Image'])
        show_annotation(a, ax['Ground truth'], vocab=vocab, **kwargs)
        if preds is not None: _show_prediction(a, preds[i], ax['Prediction'], vocab, **kwargs)
        for name,o in ax.items():
            if per > 1: o.set_title(name, fontsize=9)
    masks = [a.mask for a in (*truths, *(preds or [])) if a.mask is not None and a.bboxes is None]
    if masks: class_legend(fig, vocab, sorted({i for m in masks for i in np.unique(decode_class_mask(m)).tolist()}))
    boxed = [a for a in (*truths, *(preds or [])) if a.bboxes is not None]
    crowd_legend(fig, vocab, [o for a in boxed for o in a.labels], max((len(a.labels) for a in boxed), default=0))
    if title: add_caption(fig, title, 11)
    if fname is not None:
        with replacing(fname) as part:
            fig.savefig(part, dpi=110, bbox_inches='tight', format=Path(fname).suffix[1:] or None)
    return fig

def _show_image(a, ax): ax.imshow(np.asarray(read_image(a.path))); ax.set_axis_off()

def _show_prediction(truth, pred, ax, vocab, **kwargs):
    if not has_only_labels(pred): return show_annotation(pred, ax, vocab=vocab, **kwargs)
    _show_image(truth, ax)
    scores = dict(zip(pred.labels, pred.scores)) if pred.scores is not None else {}
    write_below(ax, label_lines(set(truth.labels), set(pred.labels), scores))

def show_predictions(
    preds,      # list[Annotation], what a learner predicts
    images,     # as many PIL images
    ncols=None, # images in a row
    **kwargs,   # of `show_annotation`: `vocab`, `point_names`, `skeleton`, `alpha`
):              # the figure
    "Draw images with their predictions only"
    fig,axs = image_grid(len(preds), ncols or columns_for(len(preds), 5), lines=most_lines(preds),
                         aspect=np.mean([a.size[1]/a.size[0] for a in preds]), width=2.6)
    for a,im,ax in zip(preds, images, axs): show_annotation(a, ax, image=im, **kwargs)
    boxed = [a for a in preds if a.bboxes is not None]
    crowd_legend(fig, kwargs.get('vocab', ()), [o for a in boxed for o in a.labels],
                 max((len(a.labels) for a in boxed), default=0))
    masks = [a.mask for a in preds if a.mask is not None]
    if masks: class_legend(fig, kwargs.get('vocab', ()), classes_of_masks(map(torch.as_tensor, masks)))
    return fig
