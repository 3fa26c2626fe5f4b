"Problems of a data set: its files, boxes, masks, points, labels and splits, one problem per row"
from __future__ import annotations
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import NamedTuple
import numpy as np
import pandas as pd
from PIL import Image
from ..arguments import checked, nearest, whole
from .annotation import SPLITS, unturned
from .image import wh
from .class_masks import decode_class_mask
from .errors import AnnotationError
from .image import BROKEN, grey_levels, image_size, read_bytes, read_image
from ..ops.masks import decode_mask, mask_extent

__all__ = ['check_annotations']

FEW = 16     # grey levels: 12-bit values in a 16-bit file have no more once they are read as 8 bits

@checked(near_duplicates=whole(0, 64, "a number of bits"))
def check_annotations(
    annotations,              # list[Annotation]
    vocab:list[str]=None,     # allowed class names; for class masks the codes, in order. None (default): not checked
    near_duplicates:int=None, # 0 to 64: number of bits, of 64, in which the difference hashes of near-duplicates may
                              # differ; 4 finds copies that were resized or recompressed. None (default): no search
) -> pd.DataFrame:            # columns path, problem, detail; index: numbers of annotation and object, -1: the image
    """List every problem of a data set, one per row; an empty table means no problems. All image files are read to
    their end, in threads. `problem` is one of

    - 'unreadable image': the file of an image or class mask is missing, broken or truncated
    - 'size differs': from that of the file as shown (EXIF orientation applied), or of the mask from that of the image
    - 'few grey levels': 16 or fewer of 256 in an image of 1024 pixels or more; the file may not use all of its bits
    - 'relative coordinates': all boxes, or all marked points, of the data set lie in [0, 1]; one row
    - 'box outside': reaches outside the image; 'box without area'; 'box below a pixel': narrower or lower than one
      pixel; 'point outside'
    - 'unreadable mask', of an object: a polygon of two points, run lengths with a wrong sum; 'empty mask', unless the
      object is ignored; 'mask outside box': half of its extent or more
    - 'object twice': same label, box, points and mask as an earlier object of the image
    - 'unknown class': not in `vocab`; 'empty label': '' or white space
    - 'mask value outside the codes': neither an index into `vocab` nor 255 (void), or not an integer
    - 'image twice': same file, or same bytes, as an earlier image
    - 'image on both sides of the split', 'group on both sides of the split': in more than one of train, valid, test
    - 'near-duplicate across the split': the difference hash (9 x 8 pixels, each compared with its neighbour) is close
      to that of an image of another split; the row names the one in train, otherwise the one in valid
    - 'class without training images': a class that occurs, or is in `vocab`, has no image in train, while some images
      are marked as train and others are not; path is None if the class does not occur

    Masks are decoded only if the vertices of their polygons and their run lengths do not decide. Objects and
    annotations are numbered from 0. `drop_problems` drops what can be dropped"""
    rows = _rows(annotations, vocab, near_duplicates)
    index = pd.MultiIndex.from_arrays([[i for i,_ in rows], [o.object for _,o in rows]], names=INDEX)
    data = [(None if i == WHOLE_SET else annotations[i].path, o.problem, o.detail) for i,o in rows]
    return pd.DataFrame(data, index, ['path', 'problem', 'detail'])

def _rows(annotations, vocab, near_duplicates):   # -> [(number of the annotation, Problem)]
    with ThreadPoolExecutor() as ex:
        seen = list(ex.map(lambda a: _look(a, vocab, near_duplicates is not None), annotations))
    rows = [(i, o) for i,s in enumerate(seen) for o in s.found]
    for field in ('bboxes', 'points'):
        if (found := relative_coordinates(annotations, field)) is None: continue
        # relative boxes are all below a pixel: one row is enough
        if field == 'bboxes': rows = [o for o in rows if o[1].problem != 'box below a pixel']
        rows.append((found[0], Problem('relative coordinates', found[1])))
    rows += _problems_between(annotations, [s.key for s in seen])
    if near_duplicates is not None: rows += _near_duplicates(annotations, seen, near_duplicates)
    return rows + _class_problems(annotations, vocab, [s.classes for s in seen])

INDEX = ['annotation', 'object']
# instead of the number of an annotation or of an object: the whole set, or the whole image
WHOLE_SET = WHOLE_IMAGE = -1

class Problem(NamedTuple):
    "One problem of an annotation"
    problem:str   # as in `check_annotations`
    detail:str
    object:int = WHOLE_IMAGE

class Seen(NamedTuple):
    "The result of checking one annotation by itself"
    found:list    # of `Problem`
    key:object    # equal for equal images: a digest of the file, or its path; None without a file
    hash:int      # difference hash; None if it was not requested, or the image is unreadable
    classes:set   # class names of its labels and of the values of its class mask

def _look(a, vocab, hashed):   # -> Seen
    found,key,code = _file_problems(a, hashed)
    in_mask,classes = _mask_problems(a, vocab)
    found += [*_box_problems(a), *_object_mask_problems(a), *_twice(a), *_point_problems(a), *_label_problems(a, vocab),
              *in_mask]
    return Seen(found, key, code, {*a.labels, *classes})

# --- the image file

def _file_problems(a, hashed=False):   # -> [Problem], key, hash
    if a.path is None: return [],None,None
    key,code,found = a.path,None,[]
    try:
        key = blake2b(read_bytes(a.path)).digest()
        # a JPEG is read to its end at any scale, fastest at the smallest; the hash needs 9 x 8 pixels
        im = read_image(a.path, draft=(72, 64) if hashed else (1, 1))
        size = image_size(a.path)
        if hashed: code = difference_hash(im)
        # averaged pixels have more levels than the pixels: if they have few, count in the whole image
        if size[0]*size[1] >= 1024 and grey_levels(im) <= 2*FEW and (n := grey_levels(a.path)) <= FEW:
            found.append(Problem('few grey levels', f"{n} of 256; does the file use all of its bits?"))
    except BROKEN as e: return [Problem('unreadable image', str(e))],key,code
    if size == a.size: return found,key,code
    detail = f"the size in the annotation is {wh(a.size)}, that of the file {wh(size)}" + unturned(a.path, a.size)
    return [Problem('size differs', detail), *found],key,code

def difference_hash(
    im:Image.Image, # of any size
) -> int:           # 64 bits
    "Difference hash: of the image as 9 x 8 grey pixels, a bit is 1 if the pixel is brighter than its left neighbour"
    v = np.asarray(im.convert('L').resize((9, 8), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(v[:,1:] > v[:,:-1]).tobytes(), 'big')

# --- objects

def _box_problems(a):
    for i,(x1,y1,x2,y2) in enumerate([] if a.bboxes is None else a.bboxes.tolist()):
        box = f"box {i}, {a.labels[i]!r}: {[x1, y1, x2, y2]} in an image of {wh(a.size)}"
        if x1 < 0 or y1 < 0 or x2 > a.size[0] or y2 > a.size[1]: yield Problem('box outside', box, i)
        if x1 == x2 or y1 == y2: yield Problem('box without area', box, i)
        elif x2 - x1 < 1 or y2 - y1 < 1: yield Problem('box below a pixel', box, i)

def _object_mask_problems(a):
    for i,m in enumerate(a.masks or []):
        which,box = f"mask {i}, {a.labels[i]!r}",None if a.bboxes is None else a.bboxes[i].tolist()
        try:
            if isinstance(m, (list, tuple)) and _is_sound(m, a.size, box): continue
            x1,y1,x2,y2 = mask_extent.unchecked(m, a.size).tolist()
        except ValueError as e: yield Problem('unreadable mask', f"{which}: {e}", i); continue
        if x1 == x2:
            if a.ignore is not None and a.ignore[i]: continue
            yield Problem('empty mask', f"{which}: no pixel of {wh(a.size)}", i)
        elif box is not None and 2*_overlap((x1, y1, x2, y2), box) < (x2-x1)*(y2-y1):
            yield Problem('mask outside box', f"{which}: its extent is {[x1, y1, x2, y2]}, the box is {box}", i)

def _overlap(a, b):   # two x1 y1 x2 y2 -> area of the intersection
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0)*max(min(a[3], b[3]) - max(a[1], b[1]), 0)

def _is_sound(polygons, size, box):
    """Whether the vertices of `polygons` prove that they are readable, that some pixel is inside, and that half of
    their extent is in `box`; False if in doubt"""
    try: parts = [np.asarray(p, np.float64).reshape(-1, 2) for p in polygons]
    except (TypeError, ValueError, OverflowError): return False
    if not parts or min(map(len, parts)) < 3: return False
    p = parts[0] if len(parts) == 1 else np.concatenate(parts)
    (x1,y1),(x2,y2) = p.min(0).tolist(),p.max(0).tolist()
    if not (x1 >= 0 and y1 >= 0 and x2 <= size[0] and y2 <= size[1]): return False     # also False for nan
    # the extent of the mask is that of the vertices, up to one pixel
    if box is not None and 2*_overlap((x1+1, y1+1, x2-1, y2-1), box) < (x2-x1+2)*(y2-y1+2): return False
    # a closed curve with no pixel centre inside has an area below its length (Steinhaus, 1947); the factor 1.5 allows
    # for COCO's rounding. The formula overestimates the area of a curve that meets itself
    p = max(parts, key=len)
    if len({*map(tuple, p.tolist())}) < len(p) - bool((p[0] == p[-1]).all()): return False
    x,y = p.T
    u,v = np.append(x[1:], x[0]),np.append(y[1:], y[0])
    return abs(x@v - u@y)/2 >= 1.5*np.hypot(u - x, v - y).sum() + 4

def _twice(a):
    "Objects with the same label, box, points and mask as an earlier object"
    seen = {}
    for i,(label,box) in enumerate(zip(a.labels, [] if a.bboxes is None else a.bboxes)):
        j = next((j for j in seen.setdefault((label, box.tobytes()), []) if _same(a, i, j)), None)
        if j is None: seen[label, box.tobytes()].append(i)
        else: yield Problem('object twice', f"objects {j} and {i}, {label!r}: {box.tolist()}", i)

def _same(a, i, j):
    if a.points is not None and not np.array_equal(a.points[i], a.points[j], equal_nan=True): return False
    if a.masks is None: return True
    try: return np.array_equal(*(decode_mask.unchecked(a.masks[k], a.size) for k in (i, j)))
    except ValueError: return False     # unreadable masks have their own row

def _point_problems(a):
    if a.points is None: return
    for i in np.argwhere(((a.points < 0) | (a.points > a.size)).any(-1)).tolist():
        which = f"point {i[-1]}" + (f" of object {i[0]}" if len(i) == 2 else '')
        detail = f"{which}: {a.points[tuple(i)].tolist()} in an image of {wh(a.size)}"
        yield Problem('point outside', detail, i[0] if len(i) == 2 else WHOLE_IMAGE)

def _label_problems(a, vocab):
    for o,n in Counter(a.labels).items():
        times,i = f"{o!r}, {n} times" if n > 1 else repr(o),a.labels.index(o)
        if not o.strip(): yield Problem('empty label', times, i)
        elif vocab is not None and o not in vocab: yield Problem('unknown class', times + nearest(o, vocab), i)

def _mask_problems(a, vocab):   # -> [Problem], names of the classes in the class mask
    if a.mask is None: return [],()
    try: m = decode_class_mask(a.mask)
    except AnnotationError as e: return [Problem('mask value outside the codes', str(e))],()
    except BROKEN as e: return [Problem('unreadable image', str(e))],()
    found = []
    if m.shape != a.size[::-1]:
        found.append(Problem('size differs', f"mask {a.mask} is {wh(m.shape[::-1])}, the image {wh(a.size)}"))
    if vocab is None: return found,()
    values = np.flatnonzero(np.bincount(m.ravel())) if m.dtype == np.uint8 else np.unique(m)
    known = (values >= 0) & (values < len(vocab))
    bad = values[~known & (values != 255)]
    if len(bad):
        more = ', ...' if len(bad) > 10 else ''
        detail = f"{', '.join(map(str, bad[:10]))}{more}; there are {len(vocab)} codes"
        found.append(Problem('mask value outside the codes', detail))
    return found,[vocab[i] for i in values[known].tolist()]

# --- the data set as a whole

def relative_coordinates(
    annotations,  # list[Annotation]
    field:str,    # 'bboxes' or 'points'
):                # (number of the first annotation with coordinates, detail), or None
    "Whether all coordinates of a data set lie in [0, 1], so that they are fractions of the image instead of pixels"
    first,n = None,0
    for i,a in enumerate(annotations):
        v = getattr(a, field)
        if v is None: continue
        if field == 'points': v = v[~np.isnan(v[...,0]) & (True if a.visible is None else a.visible > 0)]
        if not v.size or max(a.size) < 3: continue     # in an image of two pixels they may be pixels
        if v.max() > 1 + _ROUNDED or v.min() < -_ROUNDED: return None
        if first is None and v.max() > 0: first = i,v.reshape(-1, v.shape[-1])[0].tolist()
        n += len(v)
    if first is None: return None
    what = 'boxes' if field == 'bboxes' else 'points'
    return first[0],(f"all {n} {what} lie within 0..1, the first is {first[1]}: they are fractions of the image, but "
                     "pixels are expected; multiply x by its width and y by its height, or read the table with "
                     "read_df(..., relative=True)")

_ROUNDED = .01   # how far outside [0, 1] fractions may lie, since tools round

def check_relative(
    annotations,  # list[Annotation]
    field:str,    # 'bboxes' or 'points'
):
    "Raise `AnnotationError` if all coordinates of the data set are fractions of the image"
    found = relative_coordinates(annotations, field)
    if found is not None: raise AnnotationError(f"{annotations[found[0]].path}: {found[1]}")

def check_images(
    annotations,  # list[Annotation]
):
    """Raise `AnnotationError` for the first image that cannot be read to its end, or whose size differs from that in
    its annotation; all images are decoded, in threads"""
    with ThreadPoolExecutor() as ex: seen = list(ex.map(lambda a: _file_problems(a)[0], annotations))
    bad = [(a, o) for a,found in zip(annotations, seen) for o in found if o.problem != 'few grey levels']
    if not bad: return
    a,o = bad[0]
    what = o.detail if o.problem == 'unreadable image' else f"{a.path}: {o.problem}: {o.detail}"
    raise AnnotationError(f"{what} ({len(bad)} of {len(annotations)} images have such "
                          "problems); fix them, or drop them with drop_problems(annotations, "
                          "check_annotations(annotations))")

def _problems_between(annotations, keys):
    "[(number, Problem)] of images and groups that occur more than once; equal images have equal `keys`"
    rows,images,groups = [],{},{}
    for i,(a,key) in enumerate(zip(annotations, keys)):
        if key is not None:     images.setdefault(key, []).append(i)
        if a.group is not None: groups.setdefault(a.group, []).append(i)
    for first,*more in images.values():
        same = f"shows the same image as annotation {first}, {annotations[first].path}"
        rows += [(i, Problem('image twice', f"annotation {i} {same}")) for i in more]
    for what,sets in (('image', images), ('group', groups)):
        for key,idxs in sets.items():
            # reversed: the first image of each split is named
            sides = {annotations[i].split: annotations[i].path for i in reversed(idxs)}
            detail = ', '.join(f"{o}: {sides[o]}" for o in SPLITS if o in sides)
            if what == 'group': detail = f"group {key!r}, {detail}"
            if len(sides.keys() - {None}) < 2: continue
            rows.append((idxs[0], Problem(f'{what} on both sides of the split', detail)))
    return rows

def _near_duplicates(annotations, seen, most):
    """[(number, Problem)] of images whose hash differs in up to `most` bits from that of an image of another split,
    each with the nearest one. The row belongs to the earlier of train, valid, test, so that images of train are dropped
    instead of those of valid or test"""
    hashed = [i for i,s in enumerate(seen) if s.hash is not None]
    sides,rows = {o: [i for i in hashed if annotations[i].split == o] for o in SPLITS},[]
    for k,side in enumerate(SPLITS):
        others = [i for o in SPLITS[k+1:] for i in sides[o]]
        codes  = np.array([seen[i].hash for i in others], np.uint64)
        for i in sides[side]:
            off  = _count_bits(codes ^ np.uint64(seen[i].hash))
            # images with the same bytes have their own rows
            near = [j for j in np.flatnonzero(off <= most) if seen[others[j]].key != seen[i].key]
            if not near: continue
            j = min(near, key=lambda j: off[j])
            b = annotations[others[j]]
            detail = f"{off[j]} of 64 bits differ from annotation {others[j]} in {b.split}, {b.path}; it is in {side}"
            rows.append((i, Problem('near-duplicate across the split', detail)))
    return rows

def _count_bits(v):   # (k,) uint64 -> (k,), how many are 1
    if hasattr(np, 'bitwise_count'): return np.bitwise_count(v)     # from numpy 2.0 on
    return np.unpackbits(v.view(np.uint8).reshape(-1, 8), axis=1).sum(1)

def _class_problems(annotations, vocab, classes):
    "[(number, Problem)] of classes without an image in train, if some images are marked as train and others are not"
    if not {'train'} < {a.split for a in annotations}: return []
    trained = set().union(*(c for a,c in zip(annotations, classes) if a.split in ('train', None)))
    where = {}
    for i,some in enumerate(classes):
        for o in some - trained: where.setdefault(o, []).append(i)
    for o in vocab or []:
        if o not in trained: where.setdefault(o, [])
    rows = []
    for o in sorted(where):
        if vocab is not None and o not in vocab: continue     # already 'unknown class'
        some = ', '.join(f"{n} in {s}" for s,n in Counter(annotations[i].split for i in where[o]).items())
        detail = f"{o!r}: no image in train, {some or 'nor elsewhere'}"
        rows.append((where[o][0] if where[o] else WHOLE_SET, Problem('class without training images', detail)))
    return rows
