"What the `*_dls` functions verify before training"
from __future__ import annotations
import numpy as np
from ..data.annotation import ANNOTATIONS, Annotation, vocab_of
from ..data.image import wh
from ..data.errors import AnnotationError
from ..data.geometry import valid_step
from ..data.targets import clip_objects
from ..data.views import View
from ..warning import warn

__all__ = []

def warn_tiny(dls):
    "`dls`; one warning counts their boxes below a pixel of the network's input, where `JointTransform` drops them"
    scales,n,images,total,first = {},0,0,0,None
    for a in (a for dl in dls for a in dl.items if a.bboxes is not None):
        if a.size not in scales:
            try: scales[a.size] = np.abs(network_view(dls, a.size).matrix[:,:2]).sum(1)
            except ValueError: return dls    # what cannot be undone is told when the learner is made
        sides = (a.bboxes[:,2:] - a.bboxes[:,:2])*scales[a.size]
        tiny = int((sides < 1).any(1).sum())
        n,images,total = n + tiny,images + (tiny > 0),total + len(sides)
        if tiny and first is None: first = a,sides[(sides < 1).any(1)][0]
    if not n: return dls
    a,(w,h) = first
    warn(f"{n} of {total} boxes, in {images} images, are less than one pixel wide or high on the network's "
         f"input of {wh(network_view(dls, a.size).out)}, as one of {w:.2f} x {h:.2f} pixels in {a.path}: they "
         "are not learned, and `evaluate` counts them as missed; choose a larger size, cut the images into "
         "tiles, or drop such boxes")
    return dls

def network_view(dls, size) -> View:
    """How an image of `size` (w, h) is laid on the network's input of the validation set of `dls`, by the transforms of
    items and of batches together. `ValueError` where that cannot be undone"""
    view,fixed = View((0, 0, *size), (0, 0, *size), tuple(size)),False
    for o in dls.valid.after_item.fs:
        if (step := valid_step(o, view.out)) is not None: view,fixed = view.then(step),True
    for o in dls.valid.after_batch.fs:
        if (step := valid_step(o, view.out)) is None: continue
        if not fixed: raise ValueError(
            f"{type(o).__name__} resizes batches whose images were padded to the largest of them, so predictions "
            "do not come back to the image file: bring all images to one size, item_tfms=JointTransform(size)")
        view = view.then(step)
    return view

def check_data(annotations) -> list[Annotation]:
    "`annotations` as a list; raise where it is empty, or holds something else"
    annotations = ANNOTATIONS('annotations', annotations)
    if annotations: return annotations
    raise AnnotationError("the data set is empty: expected annotations, got none; look at what the reader was given")

def check_vocab(annotations, vocab):
    "`vocab` as a list, or the names that occur; raise where there is none, or one twice"
    vocab = vocab_of(annotations) if vocab is None else list(vocab)
    twice = sorted({o for o in vocab if vocab.count(o) > 1})
    if twice: raise ValueError(f"vocab has duplicate names: {twice}; every class needs a name of its own")
    if not vocab:
        raise AnnotationError(f"none of the {len(annotations)} annotations has a label, so there is nothing to learn; "
                              "was the reader told the label column?")
    return vocab

def clipped(annotations) -> list[Annotation]:
    "`annotations` with boxes clipped to the images and without those that have no area; one warning counts both"
    res = [a if a.bboxes is None else clip_objects(a) for a in annotations]
    changed = [a for a,b in zip(annotations, res) if a is not b]
    if changed:
        dropped = sum(len(a.labels) for a in annotations) - sum(len(b.labels) for b in res)
        warn(f"boxes of {len(changed)} of {len(res)} images reach outside the image, or have no area: "
             f"they were clipped, and {dropped} objects without an area in the image were dropped. The first "
             f"is in {changed[0].path}; `check_annotations` lists them")
    return res
