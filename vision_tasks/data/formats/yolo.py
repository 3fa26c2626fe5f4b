"YOLO: a data.yaml, and for each image a txt file with one row per object, as Ultralytics documents the format"
from __future__ import annotations
import filecmp, os
from dataclasses import replace
from math import isfinite
from pathlib import Path
import numpy as np
from PIL import Image
import yaml
from ...arguments import PATH, brief, checked, choice, nearest
from ...ops.polygons import exact_numbers
from ..annotation import SPLITS, Annotation, vocab_of
from ..image import wh
from ..errors import AnnotationError
from ..reading import inside_of, read_all, read_lines, read_yaml, size_of
from ..writing import check_complete, check_outputs, link_or_copy, writing_set

__all__ = ['read_yolo', 'write_yolo']

_KEYS = dict(train='train', val='valid', test='test')   # data.yaml's names -> ours
_SLACK = .01   # how far outside [0, 1] a fraction may lie, since tools round; pixels lie farther outside

@checked(split=choice(*SPLITS, 'val'), labels=PATH)
def read_yolo(
    path,                 # data.yaml, or a folder with a data.yaml or a single yaml file of another name
    split:str=None,       # read only 'train', 'valid' (or 'val') or 'test'; None (default): all splits
    labels:str='labels',  # folder of the txt files: it replaces the last folder `images` in an image's path, and may be
                          # absolute; without a folder `images` in the path, the txt file lies beside the image
    on_error:str='raise', # 'raise' `AnnotationError` at the first image that cannot be read, or 'drop' such images and
                          # count them
    allow_outside:bool=False, # also read files outside the folder of data.yaml, which its `path`, its folders and lists
                          # (../, absolute) and links may lead to
) -> list[Annotation]:    # split by split, in the order of the lists or of the file names
    """Read images with boxes. A row is `class cx cy w h`, or a polygon `class x1 y1 x2 y2 x3 y3 ...`, whose extent
    becomes the box. All numbers are fractions of the image as shown; they may be 1% outside [0, 1], and are kept so. An
    image whose txt file is empty or missing has no objects. If no image of a split has a txt file, that is an
    error; a txt file without an image, in a folder of data.yaml, counts as an image that cannot be read.

    If any image has polygons, all have `masks`, with an empty mask [] for each row `class cx cy w h`. One more number
    at the end of every row is a confidence, and becomes `scores`. `ignore` is None, since YOLO has no such flag.

    Folders in data.yaml are relative to its `path`, or to the folder of data.yaml; if such a folder does not exist, a
    leading ../ is removed (Roboflow's exports). File names in a list are relative to the list's folder. Class names are
    read as text; class ids may skip numbers. `read_codes` reads only the names. Raises `AnnotationError`"""
    file,data = _load(Path(path))
    check_complete(file.parent)
    names,inside = _names(file, data),inside_of(file.parent, allow_outside)
    items = _items(_images(file, data, 'valid' if split == 'val' else split, inside), labels)
    check_complete(*{o[3].parent for o in items})
    # the user named a folder of labels elsewhere
    other = Path(labels).is_absolute() or '..' in Path(labels).parts
    def read(o):
        where,image,split,txt = o
        inside(image, where)
        return _read(where, image, split, (inside_of(txt.parent, allow_outside) if other else inside)(txt), names)
    return _alike(read_all(read, items, on_error, lambda o: f"{o[0]}{o[1]}"))

# --- the data set as a whole: errors here are not dropped

def _load(path):
    "(yaml file, its content)"
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in ('.yaml', '.yml'))
        named = [p for p in found if p.stem == 'data'] or found
        if len(named) != 1:
            raise AnnotationError(f"{path} holds {[p.name for p in named] or 'no yaml file'}; expected data.yaml, or "
                                  "a single yaml file of another name; pass the path of the file")
        path = named[0]
    try: data = read_yaml(path)
    except FileNotFoundError: raise AnnotationError(f"{path}: no such file or folder") from None
    if not isinstance(data, dict) or not any(data.get(k) for k in _KEYS):
        what = brief(sorted(data) if isinstance(data, dict) else data)
        raise AnnotationError(f"{path}: expected train, val or test, each a folder of images or a txt file of their "
                              f"names, got {what}; fix it")
    wrong = [k for k in ('valid', 'validation') if k in data]
    if wrong: raise AnnotationError(f"{path}: {wrong[0]!r} is not a key of the format; rename it to val")
    if data.get('kpt_shape'):
        raise AnnotationError(f"{path}: kpt_shape means that the rows hold keypoints; expected boxes or polygons; "
                              "keypoints are read from COCO json (`read_coco`)")
    return path,data

def _names(file, data):   # -> {class id: name}
    names = data.get('names')
    if isinstance(names, list): names = dict(enumerate(names))
    try: names = {int(k): v for k,v in names.items()}
    except (AttributeError, TypeError, ValueError): names = {0: None}
    if not all(isinstance(o, str) and o.strip() for o in names.values()):
        raise AnnotationError(f"{file}: names are {brief(data.get('names'))}; expected a list of names, or a table of "
                              "class ids and names; write them into the file")
    nc = data.get('nc')   # some tools write the number of names, others the highest id + 1
    if nc and (not isinstance(nc, str) or nc not in {str(len(names)), str(max(names, default=-1) + 1)}):
        raise AnnotationError(f"{file}: nc is {brief(nc)}, but there are {len(names)} "
                              "names; fix one of the two")
    return names

def _images(file, data, split, inside):
    "[(list and line, or '', image, split)]"
    chosen = {k: v for k,v in _KEYS.items() if data.get(k) and split in (None, v)}
    if not chosen:
        raise AnnotationError(f"{file} has no {split} images, only {[k for k in _KEYS if data.get(k)]}")
    parts = {k: data[k] if isinstance(data[k], list) else [data[k]] for k in chosen}
    for k,v in dict(parts, path=[data.get('path', '')]).items():
        if not all(isinstance(o, str) for o in v):
            raise AnnotationError(f"{file}: {k} is {brief(data[k])}; expected text, or for images a list of texts; "
                                  "fix it")
    root = file.parent/data.get('path', '')
    if not root.is_dir():
        raise AnnotationError(f"{file}: path is {brief(data['path'], 200)}, but {root} is not a folder; remove `path` "
                              "if the image folders are relative to the yaml file")
    inside(root, f"{file}: path ", data.get('path', ''))
    return [(*o, v) for k,v in chosen.items() for part in parts[k] for o in _part(file, k, root, part, inside)]

def _part(file, key, root, part, inside):
    "[(list and line, or '', image)] of a folder or a txt file"
    place = root/part
    if part.startswith('../') and not (place.exists() and _is_inside(inside, place)) and (root/part[3:]).exists():
        place = root/part[3:]
    if place.exists(): inside(place, f"{file}: {key} ", part)
    if place.is_dir():
        kinds = Image.registered_extensions()
        found = [('', p) for p in sorted(place.rglob('*')) if p.suffix.lower() in kinds and p.name[0] != '.']
    elif place.suffix.lower() == '.txt' and place.is_file():
        found = [(f"{place}, line {i}: ", place.parent/o) for i,o in read_lines(place)]
    else: raise AnnotationError(f"{file}: {key} is {brief(part, 200)}, but {root/part} is neither a folder "
                                "nor a txt file; fix it, or read another split with split=")
    if not found: raise AnnotationError(f"{file}: {key} is {brief(part, 200)}, but {place} holds no image; fix it")
    return found

def _items(images, labels):
    "[(list and line, or '', image, split, its txt file)]; no file belongs to two images"
    found = _LabelFiles()
    items,owners = [(*o, found(_label_file(o[1], labels))) for o in images],{}
    for where,image,split,file in items:
        other,its = owners.setdefault(os.path.abspath(file), (image, split))
        if other is image: continue
        if other != image: raise AnnotationError(f"{where}{image} and {other} share the file {file}; rename one")
        raise AnnotationError(f"{where}{image} appears twice, for {its} and for {split}; fix the lists" +
                              (", or read one of them with split=" if its != split else ''))
    for split in dict.fromkeys(o[2] for o in items):
        files = [o[3] for o in items if o[2] == split]
        if any(o.is_file() for o in files): continue
        raise AnnotationError(f"no {split} image has a txt file of objects; the first would be {files[0]}; "
                              "name their folder with labels=, or read another split with split=")
    return items + _orphans(items, found)

def _is_inside(inside, place):
    try: inside(place)
    except AnnotationError: return False
    return True

class _LabelFiles:
    "Find label files whose suffix is in upper case, such as b.TXT; each folder is listed once"
    def __init__(self): self.folders = {}
    def of(self, folder):   # -> {stem: its txt files}
        if folder not in self.folders:
            self.folders[folder] = {}
            for o in sorted(folder.iterdir()) if folder.is_dir() else ():
                if o.suffix.lower() == '.txt': self.folders[folder].setdefault(o.stem, []).append(o)
        return self.folders[folder]
    def __call__(self, file):
        found = self.of(file.parent).get(file.stem, [file])
        if len(found) == 1: return found[0]
        raise AnnotationError(f"{' and '.join(map(str, found))} belong to the same image; keep one")

def _orphans(items, found):
    "Items for txt files without an image, if images were read from folders"
    known,folders = {o[3] for o in items},{o[3].parent: o for o in items if not o[0] and o[3].parent != o[1].parent}
    return [(f"{file}: ", image.parent/f'{file.stem}.*', split, file)
            for folder,(_,image,split,_) in folders.items() for files in found.of(folder).values() for file in files
            # classes.txt holds labelImg's class names
            if file not in known and file.name[0] != '.' and file.name.lower() != 'classes.txt']

def _label_file(image, labels):
    parts = image.parent.parts
    if 'images' not in parts: return image.with_suffix('.txt')
    i = len(parts) - 1 - parts[::-1].index('images')
    return Path(*parts[:i], labels, *parts[i+1:], f'{image.stem}.txt')

def _alike(annotations):
    "Give all annotations masks, and scores, if some have them"
    if any(a.masks is not None for a in annotations):
        annotations = [replace(a, masks=[[] for _ in a.labels]) if a.masks is None else a for a in annotations]
    scored = next((a for a in annotations if a.scores is not None), None)
    if scored is None: return annotations
    for a in annotations:
        if a.scores is None and a.labels:
            raise AnnotationError(f"{a.path}: its rows have no confidence, but those of {scored.path} have one; "
                                  "read predictions and ground truth separately")
    return [replace(a, scores=[]) if a.scores is None else a for a in annotations]

# --- one image

def _read(where, image, split, file, names):
    try: size = size_of(image)
    except AnnotationError as e: raise AnnotationError(f"{where}{e}") from None
    lines = read_lines(file) if file.is_file() else []
    rows = [_row(f"{file}, line {i}", text, names, size) for i,text in lines]
    labels,bboxes,masks,scores = zip(*rows) if rows else [()]*4
    if None in scores and any(o is not None for o in scores):
        i,text = lines[scores.index(None)]
        raise AnnotationError(f"{file}, line {i}: got {brief(text)}; expected a confidence at the end, as in other "
                              "rows; fix the row")
    return Annotation(image, size, labels, np.array(bboxes, dtype=np.float32).reshape(-1, 4), split=split,
                      masks=masks if any(masks) else None, scores=scores if rows and scores[0] is not None else None)

def _row(where, text, names, size):
    "(name, x1 y1 x2 y2, polygons, confidence or None) of one object"
    def fail(expected):
        raise AnnotationError(f"{where}: got {brief(text)}; expected {expected}; fix the row, or drop it")
    try: key,*v = map(float, text.split())
    except ValueError: fail("numbers")
    if key not in names: fail(f"a class id of `names`, one of {brief(list(names))}")
    score = v.pop() if len(v) > 4 and len(v)%2 else None
    if len(v) < 4 or len(v)%2:
        fail("class cx cy w h, or class and x y of three or more points (optionally with a confidence at the end)")
    if score is not None and not 0 <= score <= 1: fail("a confidence in [0, 1] at the end")
    if not all(-_SLACK <= o <= 1+_SLACK for o in v): fail("fractions of the image, from 0 to 1")
    w,h = size
    if len(v) > 4:
        xs,ys = [o*w for o in v[::2]],[o*h for o in v[1::2]]
        # rounding of the fractions can move a vertex across the edge of a pixel
        polygon = [round(o, 9) for xy in zip(xs, ys) for o in xy]
        return names[key],(min(xs), min(ys), max(xs), max(ys)),[polygon],score
    cx,cy,bw,bh = v
    if bw < 0 or bh < 0: fail("w and h of 0 or more")
    return names[key],((cx-bw/2)*w, (cy-bh/2)*h, (cx+bw/2)*w, (cy+bh/2)*h),[],score

# --- writing

@checked()
def write_yolo(
    annotations,          # list[Annotation] with boxes
    dest,                 # folder for data.yaml, a list per split, labels/, and images/ with links; created if missing
    vocab:list[str]=None, # all class names in the order of their ids, from 0; None (default): those that occur, sorted
) -> Path:                # path of data.yaml, for `read_yolo`
    """Write files for `read_yolo`, with all digits of the boxes. Images are not moved: images/<split>/ gets hard links
    to them, which take no space (copies if `dest` is on another disk), unless they are already in dest/images.
    labels/<split>/ gets the txt files. The lists keep the order of the images; images without a split go to train.

    All files are replaced together, or none is. Files that data.yaml does not refer to (labels of other images, lists
    of other splits) are kept, and not read.

    The parts of an object's mask become one polygon, joined by lines without area (overlapping parts would leave a
    hole), and its extent becomes the box. Scores are written at the end of the rows, as YOLO tools write predictions.
    Raises `AnnotationError` for ignored objects, points, RLE and bool masks; `mask` and `group` are not written"""
    dest = Path(dest)
    ids = _class_ids(annotations, vocab)
    if len({a.scores is None for a in annotations if a.labels}) > 1:
        raise AnnotationError("some annotations have scores and some have None; a folder holds either predictions "
                              "or ground truth: write two folders")
    targets = _targets(annotations, dest)
    texts = [''.join(f'{o}\n' for o in _rows(a, ids)) for a in annotations]   # all that can fail, before the first file
    files,lists = [_label_file(o, 'labels') for o in targets],{}
    for a,target in zip(annotations, targets):
        lists.setdefault(a.split or 'train', []).append(f'./{target.relative_to(dest).as_posix()}\n')
    lists = {k: lists[v] for k,v in _KEYS.items() if v in lists}
    with writing_set([dest, *(o.parent for o in (*targets, *files))]) as writing:
        for a,target,file,text in zip(annotations, targets, files, texts):
            source = a.path.resolve()
            if target.is_symlink(): target.unlink()   # written by other tools; `read_yolo` does not follow it
            if not target.exists():
                with writing(target) as part: link_or_copy(source, part)
            with writing(file) as part: part.write_text(text, encoding='utf-8')
        _write_lists(writing, dest, lists, list(ids))   # last, so that all files that they list exist
    return dest/'data.yaml'

def _class_ids(annotations, vocab):   # -> {name: id}
    names = vocab_of(annotations) if vocab is None else vocab
    ids = {o: i for i,o in enumerate(names)}
    if len(ids) < len(names) or not all(o.strip() for o in vocab or []):
        raise ValueError(f"vocab: expected class names, each of them once; got {brief(names, 120)}")
    torn = [o for o in names if '\x85' in o]   # yaml turns it into a blank
    if torn: raise AnnotationError(f"label {brief(torn[0])} has a line separator (U+0085), which yaml cannot store; "
                                   "rename it")
    return ids

def _write_lists(writing, dest, lists, names):
    for k,lines in lists.items():
        with writing(dest/f'{k}.txt') as part: part.write_text(''.join(lines), encoding='utf-8')
    # no `path`: other tools look for a relative one elsewhere, and without it beside the yaml file
    data = {**{k: f'{k}.txt' for k in lists}, 'names': dict(enumerate(names))}
    with writing(dest/'data.yaml') as part:
        part.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding='utf-8')

def _targets(annotations, dest):
    "Path below dest/images of each image; raises if it cannot be written"
    root,res = os.path.abspath(dest/'images'),[]
    for i,a in enumerate(annotations):
        if a.path is None: raise AnnotationError(f"annotation {i} has no file: save its image and set `path`")
        size,here = size_of(a.path),Path(os.path.abspath(a.path))
        if size != a.size:
            raise AnnotationError(f"{a.path}: the annotation's size is {wh(a.size)}, that of the file {wh(size)}; "
                                  "YOLO's rows are fractions of the file: scale the boxes, or restore their image")
        inside = here.is_relative_to(root)
        target = dest/'images'/(here.relative_to(root) if inside else Path(a.split or 'train', a.path.name))
        if os.path.lexists(target) and not (target.is_file() and (target.samefile(a.path) or
                                                                  filecmp.cmp(target, a.path, shallow=False))):
            raise AnnotationError(f"{a.path}: {target} exists and is a different image; choose another folder")
        res.append(target)
    check_outputs([_label_file(o, 'labels') for o in res], [a.path for a in annotations])
    return res

def _rows(a, ids):
    "The row of each object, as text"
    def fail(what, todo): raise AnnotationError(f"{a.path}: {what}; {todo}")
    if a.bboxes is None:
        fail("YOLO files hold boxes, but this annotation has none (`bboxes` is None)",
             "for an image without objects pass an empty (0, 4) array")
    if a.ignore is not None and a.ignore.any():
        fail("YOLO has no flag for ignored objects, and would train on them", "drop them (`select_objects`)")
    if a.points is not None and np.isfinite(a.points).any():
        fail("this format cannot store points", "use `write_coco`, or set points=None and visible=None")
    w,h = a.size
    for i,(name,(x1,y1,x2,y2)) in enumerate(zip(a.labels, a.bboxes.tolist())):
        if name not in ids: fail(f"{name!r} is not in vocab", f"add it, or rename the object{nearest(name, ids)}")
        if not name.strip(): fail("this format cannot store an empty label", "give it a name")
        v = _polygon(a, i) or [(x1+x2)/2/w, (y1+y2)/2/h, (x2-x1)/w, (y2-y1)/h]
        if not all(-_SLACK <= o <= 1+_SLACK for o in v):
            fail(f"object {i} at {[x1, y1, x2, y2]} reaches too far outside {wh(a.size)}: YOLO stores fractions of the "
                 "image, from 0 to 1", "clip it, or drop it")
        if a.scores is not None: v = [*v, float(a.scores[i])]
        yield ' '.join([str(ids[name]), *map(repr, v)])

def _polygon(a, i):   # -> x1 y1 x2 y2 ..., fractions; [] for an object without
    m = a.masks[i] if a.masks is not None else []
    if isinstance(m, (dict, np.ndarray)):
        raise AnnotationError(f"{a.path}, masks, row {i}: YOLO stores polygons, not run lengths or arrays; "
                              "call `annotate` with masks='polygons', convert with `mask_polygons`, use `write_coco`, "
                              "or set masks=None to write boxes")
    try: parts = [exact_numbers(p).reshape(-1).tolist() for p in m]
    except (TypeError, ValueError, OverflowError) as e:
        raise AnnotationError(f"{a.path}, masks, row {i}: expected polygons of numbers ({e}), got {brief(m)}") from e
    for p in parts:
        if len(p) < 6 or len(p)%2 or not all(map(isfinite, p)):
            raise AnnotationError(f"{a.path}, masks, row {i}: expected polygons of three or more points, "
                                  f"got {brief(p)}; fix the polygon")
    if len(parts) > 1:   # a line from the first point to each further part, and back
        start = parts[0][:2]
        parts = [parts[0], start, *(o for p in parts[1:] for o in (p, p[:2], start))]
    flat = [o for p in parts for o in p]
    return [o/s for o,s in zip(flat, a.size*(len(flat)//2))]
