"COCO json: one file for images with boxes, masks and keypoints (Lin et al., 2014, arXiv:1405.0312)"
from __future__ import annotations
import json, os
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import NamedTuple
import numpy as np
from ...arguments import NAMES, PATH, brief, checked, several, whole
from ..annotation import Annotation, unturned, vocab_of
from ..image import wh
from ..errors import AnnotationError
from ..reading import inside_of, paused_gc, read_all, read_json, size_of
from ..writing import check_once, replacing
from ...ops.masks import check_mask, encode_rle
from ...ops.polygons import exact_numbers
from ...ops.rle import rle_counts

__all__ = ['read_coco', 'coco_keypoints', 'write_coco']

@checked(images=PATH)
@paused_gc()
def read_coco(
    fname,                # json file with images, annotations and categories
    images,               # folder that the file names are relative to
    split:str=None,       # split of all these images: 'train', 'valid' or 'test'; None (default): no split
    on_error:str='raise', # 'raise' at the first image that cannot be read, or 'drop' such images and count them
    allow_outside:bool=False, # also read image files outside `images`, which file names (../, absolute) and links may
                          # lead to
) -> list[Annotation]:    # in the order of the file's images, images without objects included
    """Read images with boxes; `ignore` is set for objects with iscrowd, and boxes may reach outside the image. `masks`
    (polygons or RLE, as in the file), `points` and `scores` are None if no object of the file has them. If some objects
    have them, an object without a segmentation gets the empty mask [], one without keypoints gets points that are not
    marked, and one without a score is an error.

    A point with v = 0 becomes nan. Categories of the same name are one class. An annotation's id is only used in
    messages: it may be missing or appear twice. Annotations of an image that is not listed count as an image that
    cannot be read. Raises `AnnotationError`"""
    fname,images = Path(fname),Path(images)
    data = _load(fname)
    if not images.is_dir():
        raise AnnotationError(f"{images}: no such folder, which the file names in {fname} are relative to; fix images=")
    if not data['images']: raise AnnotationError(f"{fname} lists no images: 'images' is empty")
    has = lambda k: any(o.get(k) not in (None, []) for o in data['annotations'])
    f = _File(fname, images, split, _categories(fname, data), _n_points(fname, data), has('segmentation'), has('score'),
              inside_of(images, allow_outside))
    entries,objects = {},{}   # by the image's id, so that all annotations are searched once
    for i,o in enumerate(data['images']): entries.setdefault(_id(o, 'id', ('row', i)), []).append(o)
    name = str(fname)
    for i,o in enumerate(data['annotations']):
        key = o.get('id', i)   # nearly always an integer; `brief` is slow for millions of them
        where = f"{name}, annotation {'' if 'id' in o else 'in row '}{key if type(key) is int else brief(key)}"
        objects.setdefault(_id(o, 'image_id'), []).append((where, o))
    items = [(k, entries.get(k, []), objects.get(k, [])) for k in {**entries, **objects}]
    return read_all(lambda o: _read(*o, f), items, on_error, lambda o: f"{fname}, image {brief(o[0])}")

@checked()
def coco_keypoints(
    fname, # json file
):         # ((k,) point names, pairs of indices into them, from 0, to join by a line)
    "Names and skeleton of the points, which `Annotation` does not store; empty lists if no category has keypoints"
    data = _load(Path(fname))
    names = _point_names(fname, data)
    skeleton = next((c['skeleton'] for c in data['categories'] if c.get('keypoints') and c.get('skeleton')), [])
    try: pairs = [(int(i)-1, int(j)-1) for i,j in skeleton]   # COCO counts them from 1
    except (TypeError, ValueError): pairs = None
    if pairs is not None and all(0 <= i < len(names) for o in pairs for i in o): return names,pairs
    raise AnnotationError(f"{fname}: the skeleton is {brief(skeleton)}; "
                          f"expected pairs of keypoint numbers from 1 to {len(names)}; fix it")

class _File(NamedTuple):
    "What all images of a file share"
    fname:Path
    images:Path
    split:str
    names:dict    # id of a category -> its name
    n_points:int  # per object; 0: no object has any
    masks:bool    # whether any object has one
    scores:bool
    inside:Callable   # as of `inside_of`

# --- the file as a whole: errors here are not dropped

def _load(fname):
    data = read_json(fname)
    if not isinstance(data, dict):
        raise AnnotationError(f"{fname} holds a {type(data).__name__}, not COCO's object with images, annotations and "
                              "categories; a list of detections belongs under 'annotations', beside the other two")
    for k in ('images', 'annotations', 'categories'):
        if isinstance(data.get(k), list) and all(isinstance(o, dict) for o in data[k]): continue
        what = f"{k!r} is {brief(data[k])}" if k in data else f"no {k!r}"
        raise AnnotationError(f"{fname}: {what}; expected a list of objects, as COCO has images, annotations and "
                              "categories (empty if there are none)")
    return data

def _id(o, key, default=None):
    "The id under `key` of `o`, a number or text; `default` if there is none"
    return o[key] if isinstance(o.get(key), (int, float, str)) else default

def _categories(fname, data):   # -> {id: name}
    names = {}
    for i,c in enumerate(data['categories']):
        key,name = _id(c, 'id'),c.get('name')
        if key is None or not isinstance(name, str):
            raise AnnotationError(f"{fname}, category in row {i}: expected an id and a name, got {brief(c)}; fix it")
        if key in names:
            raise AnnotationError(f"{fname}: category id {brief(key)} appears twice, for {brief(names[key])} and "
                                  f"{brief(name)}; give each its own id, in its annotations too")
        names[key] = name
    return names

def _point_names(fname, data):   # -> (k,) names; [] where the categories name none
    cats = [c for c in data['categories'] if c.get('keypoints')]
    for c in cats:
        what,names,first = f"category {brief(c.get('name'))}",c['keypoints'],cats[0]
        if not isinstance(names, list) or not all(isinstance(o, str) for o in names):
            raise AnnotationError(f"{fname}, {what}: keypoints are {brief(names)}; expected a list of names; fix it")
        if names != first['keypoints']:
            raise AnnotationError(f"{fname}: {what} has other keypoints than category {brief(first.get('name'))} "
                                  f"({len(names)} and {len(first['keypoints'])} names); all categories of a file "
                                  "must have the same points: write a file for each")
    return cats[0]['keypoints'] if cats else []

def _n_points(fname, data):
    lists = (o['keypoints'] for o in data['annotations'] if isinstance(o.get('keypoints'), list) and o['keypoints'])
    some = next(lists, None)
    return 0 if some is None else len(_point_names(fname, data)) or len(some)//3

# --- one image

def _read(key, images, objects, f):
    "The annotation of the image with the id `key`, which must be unique"
    if not images: raise _unlisted(objects)
    image,size = _entry(key, images, f)
    kw = {}
    if f.masks:  kw['masks']  = [_mask(*o, size) for o in objects]
    if f.scores: kw['scores'] = [_score(*o) for o in objects]
    if f.n_points:
        p = _keypoints(objects, f.n_points)
        kw.update(points=np.where(p[...,2:] > 0, p[...,:2], np.nan), visible=p[...,2])
    return Annotation(image, size, [_label(*o, f.names) for o in objects],
                      np.array([_bbox(*o) for o in objects], dtype=np.float32).reshape(-1, 4),
                      ignore=np.array([_crowd(*o) for o in objects], dtype=bool), split=f.split, **kw)

def _unlisted(objects):
    where,o = objects[0]
    more = f" ({len(objects)} annotations have it)" if len(objects) > 1 else ''
    return AnnotationError(f"{where}: image_id {brief(o.get('image_id'))} is not an id of 'images'{more}; "
                           "fix the id, or list the image")

def _entry(key, images, f):
    "(path, size) of the one image with the id `key`"
    where,name = f"{f.fname}, image {brief(key)}",images[0].get('file_name')
    if isinstance(key, tuple):
        raise AnnotationError(f"{f.fname}, image in row {key[1]}: id is {brief(images[0].get('id'))} for "
                              f"{brief(name)}; expected a number or text; add an id")
    if len(images) > 1:
        raise AnnotationError(f"{where}: {len(images)} images have this id, {brief(name, 200)} and "
                              f"{brief(images[1].get('file_name'), 200)}; give each its own id, in its annotations too")
    if not isinstance(name, str) or not name:
        raise AnnotationError(f"{where}: file_name is {brief(name)}; expected a name relative to {f.images}; fix it")
    path = f.inside(f.images/name, f"{where}: file_name ", name)
    return path,_size(where, path, images[0])

def _size(where, path, image):
    "(w, h) of the image as shown; raises if the json has another size"
    size = tuple(_whole(where, image, k) for k in ('width', 'height'))
    try: shown = size_of(path)
    except AnnotationError as e: raise AnnotationError(f"{where}: {e}") from None
    if size == shown: return shown
    if None in size:
        raise AnnotationError(f"{where}: no width and height; {path.name} is {wh(shown)}: "
                              "write that into the file if its boxes are in pixels of this image")
    turned = unturned(path, size)
    todo = "rotate the pixels in the file, or the boxes" if turned else (
           "scale the boxes, or restore the image that they were drawn on")
    raise AnnotationError(f"{where}: width and height are {wh(size)}, but {path.name} is {wh(shown)}{turned}; {todo}")

def _whole(where, image, key):
    "A number of pixels, which some exporters write as text; None if it is missing"
    v = image.get(key)
    try:
        if isinstance(v, bool): raise ValueError
        if v is None or float(v) == int(float(v)) > 0: return None if v is None else int(float(v))
    except (TypeError, ValueError, OverflowError): pass
    raise AnnotationError(f"{where}: {key} is {brief(v)}; expected a whole number of pixels; fix it")

# --- one object: `where` names it in messages, `o` is its entry in the json

def _fail(where, o, key, expected):
    what = f"{key} is {brief(o[key], 120)}" if key in o else f"no {key!r}"
    raise AnnotationError(f"{where}: {what}; expected {expected}; fix it, or drop the annotation before reading")

def _label(where, o, names):
    key = _id(o, 'category_id')
    if key not in names: _fail(where, o, 'category_id', f"an id of 'categories', one of {brief(list(names), 120)}")
    return names[key]

def _bbox(where, o):   # -> x1 y1 x2 y2
    try: (x,y,w,h),ok = o['bbox'],all(map(isfinite, o['bbox'])) and min(o['bbox'][2:]) >= 0
    except (KeyError, TypeError, ValueError, OverflowError): ok = False   # OverflowError: an integer beyond all floats
    if not ok: _fail(where, o, 'bbox', "x, y, width and height as four finite numbers, the last two 0 or more")
    return x,y,x+w,y+h

def _crowd(where, o):
    if o.get('iscrowd', 0) not in (0, 1): _fail(where, o, 'iscrowd', "0 or 1")
    return o.get('iscrowd', 0)

def _mask(where, o, size):
    m,hw = o.get('segmentation') or [],[*size[::-1]]
    if isinstance(m, dict): ok = isinstance(m.get('counts'), (str, list)) and m.get('size') == hw
    else: ok = isinstance(m, list) and all(isinstance(p, list) and len(p) >= 6 and len(p)%2 == 0 for p in m)
    if not ok: _fail(where, o, 'segmentation', "polygons [x1, y1, x2, y2, ...] of three or more points, "
                                               f"or an RLE with counts and size [h, w] = {hw}")
    if isinstance(m, list) and all(map(_is_polygon, m)): return m
    try: check_mask(m, size)
    except ValueError as e:
        raise AnnotationError(f"{where}, segmentation: {e}, or drop the annotation before reading") from None
    return m

def _is_polygon(p):
    "Whether `check_mask` surely accepts the list `p`; ten times as fast as an array of each"
    try: return all(map(isfinite, p)) and -1e6 < min(p) and max(p) < 1e6
    except (TypeError, OverflowError): return False

def _score(where, o):
    s = o.get('score')
    if not isinstance(s, (int, float)) or not 0 <= s <= 1:
        _fail(where, o, 'score', "a number in [0, 1], as other annotations of the file have")
    return s

def _keypoints(objects, k):   # -> (n, k, 3) x y v
    rows = [o.get('keypoints') or [0]*(3*k) for _,o in objects]
    p = _xyv(rows, k)
    if p is not None: return p
    i = next(i for i,row in enumerate(rows) if _xyv([row], k) is None)
    got = f" (got {len(rows[i])})" if isinstance(rows[i], list) else ''
    _fail(*objects[i], 'keypoints', f"{3*k} numbers{got}: x, y and v, which is 0, 1 or 2, for each of {k} points")

def _xyv(rows, k):
    try: p = np.array(rows, dtype=np.float64).reshape(len(rows), k, 3)
    except (TypeError, ValueError): return None
    return p if np.isfinite(p).all() and np.isin(p[...,2], (0, 1, 2)).all() else None

# --- writing

_LINES = several(several(whole(0), "two indices", n=2), "pairs of indices into point_names")

@checked(images=PATH, point_names=NAMES, skeleton=_LINES)
def write_coco(
    annotations,                # list[Annotation] with boxes; if with points, then with equally many in all
    fname,                      # json file; its folder is created if missing
    images=None,                # folder that file names are relative to; None (default): the deepest with all images
    vocab:list[str]=None,       # more class names for the categories, so that ground truth and predictions share ids;
                                # None (default): only those that occur
    point_names:list[str]=None, # (k,) names of the points; None (default): not written
    skeleton=None,              # pairs of indices into `point_names`, from 0, to join by a line; None (default): none
) -> Path:                      # the folder that file names are relative to: `images` of `read_coco`
    """Write a file for `read_coco`; images are not moved. Ids count from 1: categories by sorted name, images in the
    given order. bool masks become RLE. `area` is that of the mask (of polygons the geometric area, as in COCO's own
    files), or of the box if there is no mask. Marked points without `visible` become visible; of points with `visible`
    0 the coordinates are not written.

    `mask`, `group` and `split` are not written. Raises `AnnotationError` for annotations without a path or boxes"""
    fname = Path(fname)
    for i,a in enumerate(annotations):
        if a.path is None: raise AnnotationError(f"annotation {i} has no file: save its image and set `path`")
        if a.bboxes is None:
            raise AnnotationError(f"{a.path}: COCO files hold boxes, but this annotation has none (`bboxes` is None); "
                                  "for an image without objects pass an empty (0, 4) array")
    if len({a.scores is None for a in annotations if a.labels}) > 1:
        raise AnnotationError("some annotations have scores and some have None; a file holds either predictions or "
                              "ground truth: write two files")
    ids = {o: i for i,o in enumerate(sorted({*vocab_of(annotations), *(vocab or [])}), 1)}
    points = _point_fields(annotations, point_names, skeleton)
    check_once(annotations)
    folder = common_folder(annotations, fname) if images is None else Path(images)
    objects = [dict(image_id=i, **o) for i,a in enumerate(annotations, 1) for o in _objects(a, ids)]
    data = dict(info=dict(description='written by vision_tasks'),
                images=[dict(id=i, file_name=name_in_folder(a.path, folder), width=a.size[0], height=a.size[1])
                        for i,a in enumerate(annotations, 1)],
                annotations=[dict(id=i, **o) for i,o in enumerate(objects, 1)],
                categories=[dict(id=i, name=o, **points) for o,i in ids.items()])
    with replacing(fname) as part: part.write_text(json.dumps(data, allow_nan=False), encoding='utf-8')
    return folder

def _point_fields(annotations, names, skeleton):
    "Fields of a category that describe its points"
    pointed = [a for a in annotations if a.points is not None]
    for a in pointed:
        k,first = a.points.shape[1],pointed[0]
        if k != first.points.shape[1]:
            raise AnnotationError(f"{a.path}: {k} points, but {first.path} has {first.points.shape[1]}; "
                                  "all images of a file must have the same points: write two files")
        if names is not None and k != len(names):
            raise AnnotationError(f"{a.path}: {k} points, but {len(names)} point_names; pass one name for each point")
    if names is None:
        if skeleton is not None: raise ValueError("a skeleton joins named points: pass point_names= too")
        return {}
    pairs = [tuple(o) for o in skeleton or []]
    if any(not 0 <= i < len(names) for o in pairs for i in o):
        raise ValueError(f"skeleton: expected pairs of indices from 0 to {len(names)-1}, got {pairs}")
    return dict(keypoints=list(names), skeleton=[[i+1, j+1] for i,j in pairs])

def common_folder(annotations, fname):
    "The deepest folder that holds all images; without images, the folder of the json"
    folders = {a.path.parent for a in annotations} or {fname.parent}
    return Path(os.path.commonpath([os.path.abspath(o) for o in folders]))

def name_in_folder(path, folder):
    "`path` relative to `folder`, with slashes"
    try: return Path(os.path.abspath(path)).relative_to(os.path.abspath(folder)).as_posix()
    except ValueError:
        raise AnnotationError(f"{path} is not in images={str(folder)!r}, which the file names are relative to; "
                              "pass a folder that holds all images") from None

def _objects(a, ids):
    "The objects of `a` as in the json, without their ids"
    # float64, so that x1 + width rounds to the same float32
    x1,y1,x2,y2 = a.bboxes.astype(np.float64).T
    res = [dict(category_id=ids[o], bbox=b, area=b[2]*b[3], iscrowd=0)
           for o,b in zip(a.labels, np.stack([x1, y1, x2-x1, y2-y1], 1).tolist())]
    for i,o in enumerate(res):
        if a.ignore is not None: o['iscrowd'] = int(a.ignore[i])
        if a.scores is not None: o['score'] = float(a.scores[i])
        if a.masks is not None and len(a.masks[i]):
            try: o['segmentation'],o['area'] = coco_shape(a.masks[i])
            except ValueError as e: raise AnnotationError(f"{a.path}, masks, row {i}: {e}") from None
    if a.points is not None:
        v = np.where(np.isnan(a.points[...,0]), 0, 2 if a.visible is None else a.visible)[...,None]
        for o,p in zip(res, np.where(v > 0, np.concatenate([a.points, v], 2), 0)):
            o.update(keypoints=p.ravel().tolist(), num_keypoints=int((p[:,2] > 0).sum()))
            o['keypoints'][2::3] = p[:,2].astype(int).tolist()   # v as an integer, as other tools write it
    return res

def coco_shape(mask):
    "(`mask` as in the json, its area in pixels)"
    if isinstance(mask, np.ndarray): return encode_rle(mask),int(mask.sum())
    if isinstance(mask, dict):
        runs,counts = rle_counts.unchecked(mask),mask['counts']
        if not isinstance(counts, str): counts = counts.decode('ascii') if isinstance(counts, bytes) else runs.tolist()
        return dict(size=[int(o) for o in mask['size']], counts=counts),int(runs[1::2].sum())
    try: polygons = [exact_numbers(p).ravel() for p in mask]
    except (TypeError, OverflowError) as e:
        raise ValueError(f"expected polygons of numbers ({e}), got {brief(mask)}") from e
    return [p.tolist() for p in polygons],sum(_area(p) for p in polygons)

def _area(p):   # (2*m,) x y x y ... -> pixels inside, by the shoelace formula
    if len(p) < 6 or len(p)%2 or not np.isfinite(p).all():
        raise ValueError(f"expected polygons of three or more points, got {brief(p.tolist())}; fix the polygon")
    x,y = p[::2],p[1::2]
    return abs(float(x[:-1]@y[1:] - x[1:]@y[:-1] + x[-1]*y[0] - x[0]*y[-1]))/2
