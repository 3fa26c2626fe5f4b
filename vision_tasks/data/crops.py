"Crops of a data set: one image per object, with its box and points"
from __future__ import annotations
from pathlib import Path
import numpy as np
from ..arguments import checked, number, whole
from .annotation import Annotation
from .check import check_relative
from .errors import AnnotationError
from .image import read_image
from .targets import marked_points, object_bboxes
from .writing import check_outputs, writing_set
from ..warning import warn

__all__ = ['crop_instances']

@checked(pad=number(0), min_points=whole(0), min_size=number(0))
def crop_instances(
    annotations,       # list[Annotation] with boxes
    dest=None,         # folder of the crops; None (default): `crops` beside each image
    pad:float=.1,      # margin around the box, as a fraction of its sides; cut at the border of the image
    min_points:int=1,  # drop instances with fewer marked points in their crop; ignored for annotations without points
    min_size:float=8,  # drop instances whose box inside the image has a longer side below this, in pixels
) -> list[Annotation]: # one for each remaining box, without ignored ones; files are named after image and box, and
                       # `group` is that of the image, or its path, so that a split keeps them together
    """Save one image per box, with the points of that instance, for tasks with one instance per image. Instances that
    are too small or have too few marked points are dropped, and one warning counts them. All files are replaced
    together, or none is; other files in the folder are kept. Raises `AnnotationError` for boxes without a pixel in the
    image"""
    for i,a in enumerate(annotations):
        if a.path is None: raise AnnotationError(f"annotation {i} has no file: save its image and set `path`")
    check_relative(annotations, 'bboxes')
    crops = [(a, [_crop(a, i, pad, dest) for i in range(len(object_bboxes(a))) if a.ignore is None or not a.ignore[i]])
             for a in annotations]
    crops = _large_and_marked(crops, min_points, min_size)
    # everything that can fail comes before the first file
    check_outputs([c.path for _,some in crops for c,_ in some], [a.path for a,some in crops for _ in some],
                  todo="rename one, or crop into a folder for each folder of images")
    with writing_set([c.path.parent for _,some in crops for c,_ in some]) as writing:
        for a,some in crops:
            im = read_image(a.path) if some else None
            for c,window in some:
                with writing(c.path) as part: im.crop(window).save(part, 'PNG')
    return [c for _,some in crops for c,_ in some]

def _large_and_marked(crops, min_points, min_size):
    "Drop small instances, and those with few points; one warning counts them"
    few = lambda c: c.points is not None and (~np.isnan(marked_points(c)[:,0])).sum() < min_points
    def small(c):
        b = c.bboxes[0].clip(0, [*c.size]*2)
        return max(b[2:]-b[:2]) < min_size
    every = [(a, c) for a,some in crops for c,_ in some]
    n_few,n_small = sum(few(c) for _,c in every),sum(small(c) for _,c in every)
    if not n_few and not n_small: return crops
    first = next(a for a,c in every if few(c) or small(c))
    kept = [(a, [o for o in some if not few(o[0]) and not small(o[0])]) for a,some in crops]
    n = len(every) - sum(len(o) for _,o in kept)
    warn(f"{n} of {len(every)} instances are dropped: {n_few} have fewer than {min_points} marked points, "
         f"{n_small} a box of less than {min_size:g} pixels. The first is in {first.path}; pass min_points=0, "
         "min_size=0 to keep them")
    return kept

def _crop(a, i, pad, dest):
    "(annotation, (x1, y1, x2, y2) in whole pixels of the image) of the crop around box `i` of `a`"
    b = a.bboxes[i]
    m = pad*(b[2:]-b[:2])
    x1,y1 = np.maximum(np.floor(b[:2]-m), 0).astype(int).tolist()
    x2,y2 = np.minimum(np.ceil(b[2:]+m), a.size).astype(int).tolist()
    if x2 <= x1 or y2 <= y1: raise AnnotationError(
        f"{a.path}, box {i}: {b.tolist()} has no pixel in the image; drop it first")
    folder = Path(dest) if dest is not None else a.path.parent/'crops'
    return Annotation(folder/f'{a.path.stem}_{i}.png', (x2-x1, y2-y1), [a.labels[i]], [b - [x1, y1, x1, y1]],
                      None if a.points is None else a.points[i:i+1] - [x1, y1],
                      None if a.visible is None else a.visible[i:i+1],
                      group=a.group or str(a.path), split=a.split),(x1, y1, x2, y2)
