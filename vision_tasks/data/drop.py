"Drop what `check_annotations` found"
from __future__ import annotations
from collections import Counter
from dataclasses import replace
import pandas as pd
from ..arguments import checked, instance, is_whole
from .annotation import Annotation, select_objects
from .check import INDEX, WHOLE_IMAGE, WHOLE_SET, check_relative
from ..warning import warn

__all__ = ['drop_problems']

_DROPS_IMAGE = ('unreadable image', 'size differs', 'mask value outside the codes', 'image twice',
                'near-duplicate across the split')
_DROPS_LABEL = ('unknown class', 'empty label')
_DROPS_OBJECT = ('box without area', 'box below a pixel', 'unreadable mask', 'empty mask', 'mask outside box',
                 'object twice')

@checked(problems=instance(pd.DataFrame, what="the DataFrame of check_annotations(annotations), or some of its rows"))
def drop_problems(
    annotations,       # list[Annotation]
    problems,          # DataFrame of `check_annotations(annotations)`, or some of its rows
) -> list[Annotation]: # without the images and objects that have these problems, in the same order
    """Drop the images and objects that cannot be trained on; one warning counts them, and lists the problems that
    remain.

    An annotation is dropped if its image or class mask is unreadable or has another size, if its class mask has values
    outside the codes, if the image appears twice (the later one) or is a near-duplicate of one in another split (the
    one in train, otherwise in valid). An object is dropped, and its image kept, if its box has no area or is below a
    pixel, if its mask is unreadable, empty or outside its box, if its label is empty or unknown (without boxes only the
    label is dropped), or if it appears twice (the later one). An image may be left without objects.

    Boxes and points outside the image remain (the DataLoaders clip boxes, and treat these points as not marked), as do
    few grey levels, classes without training images, and splits that share an image or a group. Raises
    `AnnotationError` for relative coordinates, since no object would remain, and `ValueError` for rows that do not
    belong to `annotations`"""
    gone,objects,left,dropped = _sort_problems(annotations, _indexed(problems))
    res = [a if i not in objects else _without(a, objects[i]) for i,a in enumerate(annotations) if i not in gone]
    some = {i: o for i,o in objects.items() if i not in gone}
    dropped.update(problem for o in some.values() for problem in o.values())
    listed = lambda what, counts: f"{what}{', '.join(f'{n} {k!r}' for k,n in counts.items())}" if counts else ''
    if dropped or left: warn(
        f"{len(gone)} of {len(annotations)} annotations were dropped, and {sum(map(len, some.values()))} objects of "
        f"{len(some)} others{listed(': ', dropped)}{listed('; left as they are: ', left)}")
    return res

def _indexed(problems):
    "`problems` with the index (annotation, object), which may have become columns"
    if not {*INDEX} <= {*problems.index.names} or not {'path', 'problem'} <= {*problems.columns}:
        if not {*INDEX, 'path', 'problem'} <= {*problems.columns}: raise ValueError(
            "problems: expected rows of check_annotations(annotations), whose index is (annotation, object); got the "
            f"index {list(problems.index.names)} and the columns {list(problems.columns)}")
        problems = problems.set_index(INDEX)
    return problems

def _sort_problems(annotations, problems):
    "({numbers of annotations to drop}, {number: {object to drop: problem}}, counts of what remains, and of the first)"
    gone,objects,left,dropped = set(),{},Counter(),Counter()
    for (i,obj),path,problem in zip(problems.index, problems.path, problems.problem):
        if is_whole(i) and i == WHOLE_SET: left[problem] += 1; continue
        fits = is_whole(i) and is_whole(obj) and 0 <= i < len(annotations) and str(annotations[i].path) == str(path)
        if not fits or not WHOLE_IMAGE <= obj < len(annotations[i].labels): raise ValueError(
            f"problems: row {(i, obj)} is about {path}, which is not the path of annotations[{i}]: the problems "
            "were found in another list; check this one")
        if problem == 'relative coordinates':
            for field in ('bboxes', 'points'): check_relative(annotations, field)
        if problem in _DROPS_IMAGE: gone.add(i); dropped[problem] += 1
        elif problem in _DROPS_OBJECT: objects.setdefault(i, {})[obj] = problem
        elif problem in _DROPS_LABEL:
            a = annotations[i]
            objects.setdefault(i, {}).update({j: problem for j,o in enumerate(a.labels) if o == a.labels[obj]})
        else: left[problem] += 1
    return gone,objects,left,dropped

def _without(a, objects):
    "`a` without the objects with these numbers, or, if it has no boxes, without these labels"
    keep = [i for i in range(len(a.labels)) if i not in objects]
    if a.bboxes is not None: return select_objects(a, keep)
    return replace(a, labels=[a.labels[i] for i in keep], scores=None if a.scores is None else a.scores[keep])
