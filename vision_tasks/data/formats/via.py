"VIA: the json of the VGG Image Annotator, versions 1 and 2, with polygons and boxes (Dutta and Zisserman, 2019)"
from __future__ import annotations
import json
from math import isfinite
from pathlib import Path
import numpy as np
from ...arguments import PATH, TEXT, brief, checked
from ..annotation import Annotation, vocab_of
from ..errors import AnnotationError
from .coco import common_folder, name_in_folder
from ..reading import inside_of, read_all, read_json, size_of
from ..writing import check_once, replacing
from ...ops.masks import check_mask, decode_mask, mask_polygons
from ...ops.polygons import join_polygons

__all__ = ['read_via', 'write_via']

@checked(images=PATH, label=TEXT)
def read_via(
    fname,                # json file: a project, or exported annotations
    images,               # folder that the file names are relative to
    label:str=None,       # region attribute with the class of an object; None (default): the only attribute. If no
                          # region of the file has attributes: the class of all objects
    split:str=None,       # split of all these images: 'train', 'valid' or 'test'; None (default): no split
    on_error:str='raise', # 'raise' at the first image that cannot be read, or 'drop' such images and count them
    allow_outside:bool=False, # also read image files outside `images`, which file names (../, absolute) and links may
                          # lead to
) -> list[Annotation]:    # in the order of the file, images without objects included
    """Read images whose regions are polygons, whose extent becomes the box, or rects, which become boxes. If any image
    has polygons, all have `masks`, with an empty mask [] for each rect. Numbers are pixels of the image as shown;
    regions may reach outside. The class is the value of a text, dropdown or radio attribute (its id, not its
    description); attributes of files are not read. Raises `AnnotationError`, also for circles, ellipses, lines and
    points"""
    fname,images = Path(fname),Path(images)
    files = _load(fname)
    if not images.is_dir():
        raise AnnotationError(f"{images}: no such folder, which the file names in {fname} are relative to; fix images=")
    names,items = _names(fname, files, label),{}
    for key,o in files.items(): items.setdefault(o['filename'], []).append((f"{fname}, file {brief(key, 200)}", o))
    polygons = any(_shape(r).get('name') == 'polygon' for o in files.values() for r in _regions(o))
    inside = inside_of(images, allow_outside)
    read = lambda o: _read(o, images, names, polygons, split, inside)
    return read_all(read, items.values(), on_error, lambda o: o[0][0])

# --- the file as a whole: errors here are not dropped

def _load(fname):   # -> {key: VIA's entry of an image}
    data = read_json(fname)
    if isinstance(data, dict) and isinstance(data.get('project'), dict) and 'metadata' in data:
        raise AnnotationError(f"{fname} is a file of VIA 3, whose format differs; this function reads versions 1 "
                              "and 2: use VIA 2, or export COCO json and use `read_coco`")
    files = data.get('_via_img_metadata', data) if isinstance(data, dict) else None
    if not isinstance(files, dict) or not all(isinstance(o, dict) and isinstance(o.get('filename'), str)
                                              and isinstance(o.get('regions', []), (list, dict))
                                              for o in files.values()):
        what = brief(sorted(data)[:5]) if isinstance(data, dict) else type(data).__name__
        raise AnnotationError(f"{fname}: expected VIA's images, each with filename and regions, alone or under "
                              f"'_via_img_metadata', got {what}; save the project, or export annotations as json")
    if files: return files
    raise AnnotationError(f"{fname} lists no images")

def _regions(o):   # a list in version 2, in version 1 a table of numbers and regions
    regions = o.get('regions', [])
    return list(regions.values() if isinstance(regions, dict) else regions)

def _part(r, key):   # a table, empty if the region has none
    return r[key] if isinstance(r, dict) and isinstance(r.get(key), dict) else {}
def _shape(r): return _part(r, 'shape_attributes')
def _attributes(r): return _part(r, 'region_attributes')

def _names(fname, files, label):   # -> function: region -> class name, or None
    found = sorted({k for o in files.values() for r in _regions(o) for k in _attributes(r)})
    if not found:
        if label is not None or not any(map(_regions, files.values())): return lambda r: label
        raise AnnotationError(f"{fname}: no region has attributes; pass the class of all objects as label=")
    if label in found or label is None and len(found) == 1: return lambda r: _attributes(r).get(label or found[0])
    raise AnnotationError(f"{fname}: the region attributes are {brief(found, 200)}, and label is {label!r}; "
                          "pass the attribute with the class of an object as label=")

# --- one image

def _read(entries, images, names, polygons, split, inside):
    (where,o),*more = entries
    if more:
        name = brief(o['filename'], 200)
        raise AnnotationError(f"{where}: {len(entries)} entries have the filename {name}; keep one")
    path = inside(images/o['filename'], f"{where}: filename ", o['filename'])
    try: size = size_of(path)
    except AnnotationError as e: raise AnnotationError(f"{where}: {e}") from None
    regions = [(f"{where}, region {i}", r) for i,r in enumerate(_regions(o))]
    bboxes,masks = zip(*(_object(*o) for o in regions)) if regions else ([], [])
    return Annotation(path, size, [_label(*o, names) for o in regions],
                      np.array(bboxes, dtype=np.float32).reshape(-1, 4), masks=masks if polygons else None, split=split)

def _fail(where, came, expected):
    raise AnnotationError(f"{where}: {came}; expected {expected}; fix it, or drop the region before reading")

def _label(where, r, names):
    name = names(r)
    if not isinstance(name, str) or not name.strip():
        _fail(where, f"its class is {brief(name)}, its attributes are {brief(_attributes(r), 120)}",
              "a text that is not empty, as in text, dropdown and radio attributes")
    return name

def _object(where, r):   # -> x1 y1 x2 y2, polygons
    shape = _shape(r)
    kind = shape.get('name')
    if kind == 'polygon':
        xs,ys = (_numbers(where, shape, f'all_points_{o}') for o in 'xy')
        if len(xs) != len(ys) or len(xs) < 3:
            _fail(where, f"{len(xs)} x and {len(ys)} y", "equally many, for three or more points")
        polygon = [o for xy in zip(xs, ys) for o in xy]
        try: check_mask([polygon], (1, 1))   # of any size: polygons may reach outside
        except ValueError as e: raise AnnotationError(f"{where}: {e}, or drop the region before reading") from None
        return (min(xs), min(ys), max(xs), max(ys)),[polygon]
    if kind == 'rect':
        x,y,w,h = _numbers(where, dict(rect=[shape.get(o) for o in ('x', 'y', 'width', 'height')]), 'rect')
        if w >= 0 and h >= 0: return (x, y, x+w, y+h),[]
        _fail(where, f"width and height are {w} and {h}", "0 or more")
    _fail(where, f"the shape is {brief(kind)}", "a polygon or a rect; an `Annotation` has no other shapes")

def _numbers(where, shape, key):
    v = shape.get(key)
    try: ok = isinstance(v, list) and all(map(isfinite, v))
    except (TypeError, OverflowError): ok = False   # OverflowError: an integer beyond all floats
    if not ok: _fail(where, f"{key} is {brief(v)}", "finite numbers")
    return v

# --- writing

@checked(images=PATH, label=TEXT)
def write_via(
    annotations,         # list[Annotation] with boxes
    fname,               # json file; its folder is created if missing
    images=None,         # folder that file names are relative to; None (default): the deepest with all images
    label:str='label',   # region attribute for the class names
) -> Path:               # the folder that file names are relative to: `images` of `read_via`
    """Write a file for `read_via`, which VIA 2 opens as a project (its default path is the folder of the images), for
    example to correct predictions by hand. Images are not moved.

    An object without a mask becomes a rect. A mask becomes one polygon, and its extent the box: parts are joined by
    lines without area, RLE and bool masks become outlines. Raises `AnnotationError` for masks that would not decode to
    the same pixels (overlapping parts, holes), ignored objects and points. Scores, `mask`, `group` and `split` are not
    written"""
    fname,files = Path(fname),{}
    for i,a in enumerate(annotations):
        if a.path is None: raise AnnotationError(f"annotation {i} has no file: save its image and set `path`")
        if not a.path.is_file(): raise AnnotationError(f"{a.path}: no such image file; VIA stores its size in bytes")
    check_once(annotations)
    folder = common_folder(annotations, fname) if images is None else Path(images)
    for a in annotations:
        name,n = name_in_folder(a.path, folder),a.path.stat().st_size
        regions = [dict(shape_attributes=o, region_attributes={label: name}) for name,o in zip(a.labels, _shapes(a))]
        key = f'{name}{n}'
        while key in files: key += '_'   # `1` of 1070 bytes and `110` of 70 would share a key
        files[key] = dict(filename=name, size=n, regions=regions, file_attributes={})
    names = dict(type='dropdown', description='', options={o: '' for o in vocab_of(annotations)}, default_options={})
    data = dict(_via_settings=dict(ui={}, core=dict(default_filepath=f'{folder.as_posix()}/'),
                                   project=dict(name=fname.stem)),
                _via_img_metadata=files, _via_attributes=dict(region={label: names}, file={}),
                _via_data_format_version='2.0.10', _via_image_id_list=list(files))
    with replacing(fname) as part: part.write_text(json.dumps(data, allow_nan=False), encoding='utf-8')
    return folder

def _shapes(a):
    "The shape of each object of `a` as in the json"
    def fail(what, todo): raise AnnotationError(f"{a.path}: {what}; {todo}")
    if a.bboxes is None:
        fail("VIA files hold objects, but this annotation has no boxes (`bboxes` is None)",
             "for an image without objects pass an empty (0, 4) array")
    if a.ignore is not None and a.ignore.any():
        fail("VIA has no flag for ignored objects, and other tools would train on them",
             "drop them (`select_objects`)")
    if a.points is not None and np.isfinite(a.points).any():
        fail("this format cannot store points", "use `write_coco`, or set points=None and visible=None")
    for i,(name,box) in enumerate(zip(a.labels, a.bboxes.astype(np.float64).tolist())):   # as in `write_coco`
        if not name.strip(): fail(f"row {i}: this format cannot store an empty label", "give it a name")
        try: p = _outline(a.masks[i], a.size) if a.masks is not None else []
        except ValueError as e: raise AnnotationError(f"{a.path}, masks, row {i}: {e}") from None
        x1,y1,x2,y2 = box
        yield (dict(name='polygon', all_points_x=p[:,0].tolist(), all_points_y=p[:,1].tolist()) if len(p) else
               dict(name='rect', x=x1, y=y1, width=x2-x1, height=y2-y1))

def _outline(mask, size):   # -> (k, 2), or [] for no mask
    "`mask` as one polygon with the same pixels"
    parts = mask if isinstance(mask, (list, tuple)) else mask_polygons(decode_mask(mask, size))
    if not len(parts):
        if isinstance(mask, (list, tuple)): return []
        raise ValueError("the mask is empty and would be lost; drop the object, or set its mask to [] to write its box")
    p = join_polygons(parts)
    if len(parts) == 1 or np.array_equal(decode_mask([p], size), decode_mask(parts, size)): return p
    raise ValueError("the polygons overlap, and joined to one they would have a hole there; pass the mask's "
                     "outlines, `mask_polygons(decode_mask(mask, size))`")
