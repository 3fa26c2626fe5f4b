"What is wrong with a data set: every problem of its files, boxes, masks, points, labels and splits, one a row"
from __future__ import annotations
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
import numpy as np
import pandas as pd
from .annotation import SPLITS, UNREADABLE, AnnotationError, nearest, unturned, wh
from .image import image_size, read_image
from .masks import decode_class_mask
from ..ops.masks import decode_mask, mask_bbox

__all__ = ['check_annotations']

def check_annotations(
    annotations,          # list[Annotation]
    vocab:list[str]=None, # the names that may occur; for class masks the codes, in order. None: neither is checked
):                        # DataFrame with the columns path, problem, detail; no row where all is well
    """Every problem of a data set, one a row; all files are read to their end, in threads. `problem` is one of

    - 'unreadable image': missing, broken or truncated; also said of a mask's file
    - 'size differs': from that of the file as shown (EXIF orientation applied); or of the mask from that of the picture
    - 'box outside': reaches outside the picture; 'box without area'; 'point outside'
    - 'unreadable mask', of an object: a polygon of two points, run lengths with another sum; 'empty mask', unless the
      object is to be ignored; 'mask outside box': by half of its extent, or more
    - 'unknown class': not in `vocab`; 'empty label': '' or white space
    - 'mask value outside the codes': neither an index into `vocab` nor 255 (void), or no indices at all
    - 'picture twice': the same file, or the same bytes under two names; one row for each after the first
    - 'picture on both sides of the split', 'group on both sides of the split': in more than one of train, valid, test

    Boxes and annotations are counted from 0"""
    annotations,vocab = list(annotations),None if vocab is None else list(vocab)
    with ThreadPoolExecutor() as ex: seen = list(ex.map(lambda a: _problems_of(a, vocab), annotations))
    rows = [(a.path, *o) for a,(found,_) in zip(annotations, seen) for o in found]
    rows += _problems_between(annotations, [key for _,key in seen])
    return pd.DataFrame(rows, columns=['path', 'problem', 'detail'])

def _problems_of(a, vocab):
    "([(problem, detail)] of one annotation, what its picture is known by among all)"
    found,key = _file_problems(a)
    return [*found, *_box_problems(a), *_object_mask_problems(a), *_point_problems(a), *_label_problems(a, vocab),
            *_mask_problems(a, vocab)],key

def _file_problems(a):
    if a.path is None: return [],None
    key = a.path
    try:
        key = blake2b(a.path.read_bytes()).digest()
        # a JPEG's stream is read to its end at any scale, and fastest at the smallest
        read_image(a.path, draft=(1, 1))
        size = image_size(a.path)
    except UNREADABLE as e: return [('unreadable image', str(e))],key
    if size == a.size: return [],key
    detail = f"the annotation says {wh(a.size)}, the file is {wh(size)}" + unturned(a.path, a.size)
    return [('size differs', detail)],key

def _box_problems(a):
    for i,(x1,y1,x2,y2) in enumerate([] if a.bboxes is None else a.bboxes.tolist()):
        box = f"box {i}, {a.labels[i]!r}: {[x1, y1, x2, y2]} in a picture of {wh(a.size)}"
        if x1 < 0 or y1 < 0 or x2 > a.size[0] or y2 > a.size[1]: yield 'box outside', box
        if x1 == x2 or y1 == y2: yield 'box without area', box

def _object_mask_problems(a):
    for i,m in enumerate(a.masks or []):
        which = f"mask {i}, {a.labels[i]!r}"
        try: x1,y1,x2,y2 = mask_bbox(decode_mask(m, a.size)).tolist()
        except ValueError as e: yield 'unreadable mask', f"{which}: {e}"; continue
        if x1 == x2:
            if a.ignore is None or not a.ignore[i]: yield 'empty mask', f"{which}: no pixel of the {wh(a.size)}"
        elif a.bboxes is not None:
            u1,v1,u2,v2 = a.bboxes[i].tolist()
            inside = max(min(x2, u2)-max(x1, u1), 0)*max(min(y2, v2)-max(y1, v1), 0)
            if inside < (x2-x1)*(y2-y1)/2:
                yield 'mask outside box', f"{which}: it extends over {[x1, y1, x2, y2]}, the box is {[u1, v1, u2, v2]}"

def _point_problems(a):
    if a.points is None: return
    for i in np.argwhere(((a.points < 0) | (a.points > a.size)).any(-1)).tolist():
        which = f"point {i[-1]}" + (f" of object {i[0]}" if len(i) == 2 else '')
        yield 'point outside', f"{which}: {a.points[tuple(i)].tolist()} in a picture of {wh(a.size)}"

def _label_problems(a, vocab):
    for o,n in Counter(a.labels).items():
        times = f"{o!r}, {n} times" if n > 1 else repr(o)
        if not o.strip(): yield 'empty label', times
        elif vocab is not None and o not in vocab: yield 'unknown class', times + nearest(o, vocab)

def _mask_problems(a, vocab):
    if a.mask is None: return
    try: m = decode_class_mask(a.mask)
    except AnnotationError as e: yield 'mask value outside the codes', str(e); return
    except UNREADABLE as e: yield 'unreadable image', str(e); return
    if m.shape != a.size[::-1]: yield 'size differs', f"mask {a.mask} is {wh(m.shape[::-1])}, the picture {wh(a.size)}"
    if vocab is None: return
    bad = np.unique(m[(m < 0) | (m >= len(vocab)) & (m != 255)])
    if len(bad):
        more = ', ...' if len(bad) > 10 else ''
        yield 'mask value outside the codes', f"{', '.join(map(str, bad[:10]))}{more}; there are {len(vocab)} codes"

def _problems_between(annotations, keys):
    "[(path, problem, detail)] of pictures and groups that occur more than once; `keys` are equal where pictures are"
    rows,pictures,groups = [],{},{}
    for i,(a,key) in enumerate(zip(annotations, keys)):
        if key is not None:     pictures.setdefault(key, []).append(i)
        if a.group is not None: groups.setdefault(a.group, []).append(i)
    for first,*more in pictures.values():
        same = f"shows the same picture as annotation {first}, {annotations[first].path}"
        rows += [(annotations[i].path, 'picture twice', f"annotation {i} {same}") for i in more]
    for what,sets in (('picture', pictures), ('group', groups)):
        for key,idxs in sets.items():
            # reversed: the first of each side stays
            sides = {annotations[i].split: annotations[i].path for i in reversed(idxs)}
            detail = ', '.join(f"{o}: {sides[o]}" for o in SPLITS if o in sides)
            if what == 'group': detail = f"group {key!r}, {detail}"
            if len(sides.keys() - {None}) > 1:
                rows.append((annotations[idxs[0]].path, f'{what} on both sides of the split', detail))
    return rows
