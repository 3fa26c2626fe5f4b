"YOLO: a data.yaml, and for each picture a txt file with a row an object, as Ultralytics documents the format"
from __future__ import annotations
import filecmp, os, shutil
from dataclasses import replace
from math import isfinite
from pathlib import Path
import numpy as np
from PIL import Image
import yaml
from ...arguments import PATH, brief, checked, choice, nearest
from ..annotation import SPLITS, Annotation, vocab_of
from ..image import wh
from ..errors import AnnotationError
from ..reading import inside_of, read_all, read_lines, read_yaml, size_of
from ..writing import check_complete, check_outputs, writing_set

__all__ = ['read_yolo', 'write_yolo']

_KEYS = dict(train='train', val='valid', test='test')   # data.yaml's names -> ours
_SLACK = .01   # so far outside 0..1 a number may lie, for tools round; pixels taken for fractions lie farther

@checked(split=choice(*SPLITS, 'val'), labels=PATH)
def read_yolo(
    path,                 # data.yaml, or the folder that holds it, or one yaml file of another name
    split:str=None,       # 'train', 'valid' (or 'val') or 'test': only that; None = all, each picture with its own
    labels:str='labels',  # stands for the last folder `images` of a picture's path in the path of its txt file, and may
                          # be absolute; where the path has no folder `images`, the txt file lies beside the picture
    on_error:str='raise', # 'raise' `AnnotationError` at the first image that cannot be read, or 'drop' such images and
                          # count them
    allow_outside:bool=False, # whether files outside the folder of data.yaml are read too, to which its `path`, its
                          # folders and lists (../, absolute) and links may lead
) -> list[Annotation]:    # split by split, in the order of the lists, or of the files' names
    """Images with boxes. A row is `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...`, a polygon, whose extent is the
    box; all in fractions of the picture as shown, which may lie 1% outside and then stay as they are. A picture whose
    txt file is empty or missing has no objects; that no picture of a split has such a file is an error. So is a txt
    file without a picture in a folder of data.yaml: it counts as a picture that cannot be read.

    Where any picture has polygons, all have `masks`; that of a `class cx cy w h` is [], which is empty. One more number
    at the end of each row is a confidence: `scores`, for all rows or none. `ignore` is None: YOLO knows none.

    Folders in data.yaml start from its `path`, or from where it lies; if that fails, without a leading ../ (Roboflow's
    exports). File names in a list start from the list's folder. Names are text as it stands; ids may leave numbers out.
    `read_codes` reads the names alone"""
    file,data = _load(Path(path))
    check_complete(file.parent)
    names,inside = _names(file, data),inside_of(file.parent, allow_outside)
    items = _items(_pictures(file, data, 'valid' if split == 'val' else split, inside), labels)
    check_complete(*{o[3].parent for o in items})
    # a folder of labels elsewhere is the user's word
    other = Path(labels).is_absolute() or '..' in Path(labels).parts
    def read(o):
        where,picture,split,txt = o
        inside(picture, where)
        return _read(where, picture, split, (inside_of(txt.parent, allow_outside) if other else inside)(txt), names)
    return _alike(read_all(read, items, on_error, lambda o: f"{o[0]}{o[1]}"))

# --- the data set as a whole: what is wrong here cannot be dropped

def _load(path):
    "(yaml file, what it holds)"
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in ('.yaml', '.yml'))
        named = [p for p in found if p.stem == 'data'] or found
        if len(named) != 1:
            raise AnnotationError(f"{path} holds {[p.name for p in named] or 'no yaml file'}; expected data.yaml, or "
                                  "one file of another name; name the file itself")
        path = named[0]
    try: data = read_yaml(path)
    except FileNotFoundError: raise AnnotationError(f"{path}: no such file or folder") from None
    if not isinstance(data, dict) or not any(data.get(k) for k in _KEYS):
        what = brief(sorted(data) if isinstance(data, dict) else data)
        raise AnnotationError(f"{path}: expected train, val or test, each a folder of pictures or a txt file of their "
                              f"names, got {what}; mend it")
    wrong = [k for k in ('valid', 'validation') if k in data]
    if wrong: raise AnnotationError(f"{path}: {wrong[0]!r} is no key of the format; call it val")
    if data.get('kpt_shape'):
        raise AnnotationError(f"{path}: kpt_shape says that its rows hold keypoints; expected boxes or polygons; "
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
    nc = data.get('nc')   # some write the number of names, some the highest id + 1
    if nc and (not isinstance(nc, str) or nc not in {str(len(names)), str(max(names, default=-1) + 1)}):
        raise AnnotationError(f"{file}: nc is {brief(nc)}, but there are {len(names)} "
                              "names; fix one of the two")
    return names

def _pictures(file, data, split, inside):
    "[(list and line, or '', picture, split)]"
    chosen = {k: v for k,v in _KEYS.items() if data.get(k) and split in (None, v)}
    if not chosen:
        raise AnnotationError(f"{file} has no {split} pictures, only {[k for k in _KEYS if data.get(k)]}")
    parts = {k: data[k] if isinstance(data[k], list) else [data[k]] for k in chosen}
    for k,v in dict(parts, path=[data.get('path', '')]).items():
        if not all(isinstance(o, str) for o in v):
            raise AnnotationError(f"{file}: {k} is {brief(data[k])}; expected text, for pictures also a list of it; "
                                  "mend it")
    root = file.parent/data.get('path', '')
    if not root.is_dir():
        raise AnnotationError(f"{file}: path is {brief(data['path'], 200)}, and {root} is no folder; remove it where "
                              "the images' folders start from the yaml file")
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
    else: raise AnnotationError(f"{file}: {key} is {brief(part, 200)}, and {root/part} is no folder and no "
                                "txt file; fix it, or read another split with split=")
    if not found: raise AnnotationError(f"{file}: {key} is {brief(part, 200)}, and {place} holds no picture; mend it")
    return found

def _items(pictures, labels):
    "[(list and line, or '', picture, split, its txt file)], where no file belongs to two"
    found = _LabelFiles()
    items,owners = [(*o, found(_label_file(o[1], labels))) for o in pictures],{}
    for where,picture,split,file in items:
        other,its = owners.setdefault(os.path.abspath(file), (picture, split))
        if other is picture: continue
        if other != picture: raise AnnotationError(f"{where}{picture} and {other} share the file {file}; rename one")
        raise AnnotationError(f"{where}{picture} stands twice, for {its} and for {split}; mend the lists" +
                              (", or read one of them with split=" if its != split else ''))
    for split in dict.fromkeys(o[2] for o in items):
        files = [o[3] for o in items if o[2] == split]
        if any(o.is_file() for o in files): continue
        raise AnnotationError(f"no {split} picture has a txt file of objects; {files[0]} would be the first; "
                              "name their folder with labels=, or read another split with split=")
    return items + _orphans(items, found)

def _is_inside(inside, place):
    try: inside(place)
    except AnnotationError: return False
    return True

class _LabelFiles:
    "Finds label files whose suffix is written otherwise, as in b.TXT; every folder is listed once"
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
        raise AnnotationError(f"{' and '.join(map(str, found))} are of one image; keep one")

def _orphans(items, found):
    "What `items` would have for txt files without a picture, where pictures were read by folders"
    known,folders = {o[3] for o in items},{o[3].parent: o for o in items if not o[0] and o[3].parent != o[1].parent}
    return [(f"{file}: ", picture.parent/f'{file.stem}.*', split, file)
            for folder,(_,picture,split,_) in folders.items() for files in found.of(folder).values() for file in files
            # labelImg leaves names there
            if file not in known and file.name[0] != '.' and file.name.lower() != 'classes.txt']

def _label_file(picture, labels):
    parts = picture.parent.parts
    if 'images' not in parts: return picture.with_suffix('.txt')
    i = len(parts) - 1 - parts[::-1].index('images')
    return Path(*parts[:i], labels, *parts[i+1:], f'{picture.stem}.txt')

def _alike(annotations):
    "Masks and scores for all where some have them"
    if any(a.masks is not None for a in annotations):
        annotations = [replace(a, masks=[[] for _ in a.labels]) if a.masks is None else a for a in annotations]
    scored = next((a for a in annotations if a.scores is not None), None)
    if scored is None: return annotations
    for a in annotations:
        if a.scores is None and a.labels:
            raise AnnotationError(f"{a.path}: its rows have no confidence, those of {scored.path} have; "
                                  "read predictions and truth apart")
    return [replace(a, scores=[]) if a.scores is None else a for a in annotations]

# --- one picture

def _read(where, picture, split, file, names):
    try: size = size_of(picture)
    except AnnotationError as e: raise AnnotationError(f"{where}{e}") from None
    lines = read_lines(file) if file.is_file() else []
    rows = [_row(f"{file}, line {i}", text, names, size) for i,text in lines]
    labels,bboxes,masks,scores = zip(*rows) if rows else [()]*4
    if None in scores and any(o is not None for o in scores):
        i,text = lines[scores.index(None)]
        raise AnnotationError(f"{file}, line {i}: got {brief(text)}; expected a confidence at the end, as other rows "
                              "have; mend the row")
    return Annotation(picture, size, labels, np.array(bboxes, dtype=np.float32).reshape(-1, 4), split=split,
                      masks=masks if any(masks) else None, scores=scores if rows and scores[0] is not None else None)

def _row(where, text, names, size):
    "(name, x1 y1 x2 y2, polygons, confidence or None) of one object"
    def fail(expected):
        raise AnnotationError(f"{where}: got {brief(text)}; expected {expected}; mend the row, or drop it")
    try: key,*v = map(float, text.split())
    except ValueError: fail("numbers")
    if key not in names: fail(f"a class that `names` has, one of {brief(list(names))}")
    score = v.pop() if len(v) > 4 and len(v)%2 else None
    if len(v) < 4 or len(v)%2:
        fail("class cx cy w h, or class and x y of three or more points (either with a confidence at the end)")
    if score is not None and not 0 <= score <= 1: fail("a confidence in [0, 1] at the end")
    if not all(-_SLACK <= o <= 1+_SLACK for o in v): fail("fractions of the picture, from 0 to 1")
    w,h = size
    if len(v) > 4:
        xs,ys = [o*w for o in v[::2]],[o*h for o in v[1::2]]
        # fractions are off by a last bit, which can carry a vertex over the edge of a pixel
        polygon = [round(o, 9) for xy in zip(xs, ys) for o in xy]
        return names[key],(min(xs), min(ys), max(xs), max(ys)),[polygon],score
    cx,cy,bw,bh = v
    if bw < 0 or bh < 0: fail("w and h of 0 or more")
    return names[key],((cx-bw/2)*w, (cy-bh/2)*h, (cx+bw/2)*w, (cy+bh/2)*h),[],score

# --- writing

@checked()
def write_yolo(
    annotations,          # list[Annotation] with boxes
    dest,                 # folder, made if not there: data.yaml, a list a split, labels/, and images/ with links
    vocab:list[str]=None, # all names in the order of their class ids, from 0; None = those that occur, sorted
) -> Path:                # the data.yaml, which `read_yolo` takes
    """Write what `read_yolo` reads, with all digits of the boxes. Images stay where they are: images/<split>/ gets hard
    links to them, which take no space, or copies where `dest` is on another disk, unless they are in dest/images
    already; labels/<split>/ gets their txt files, where YOLO tools look.
    The lists keep the order of the images; one without a split becomes train.

    All files are replaced together, or none is. What data.yaml does not lead to (the label files of other images, the
    lists of other splits) stays, and is not read.

    The masks of an object become one polygon, the parts joined by lines without area (parts that overlap would leave a
    hole), and its extent the box. Scores end the rows, as YOLO tools write predictions; no training file has them.
    Objects to ignore, points, RLE and bool masks are errors; `mask` and `group` have no place in this format"""
    dest = Path(dest)
    names = vocab_of(annotations) if vocab is None else vocab
    ids = {o: i for i,o in enumerate(names)}
    if len({a.scores is None for a in annotations if a.labels}) > 1:
        raise AnnotationError("some annotations have scores and some have None; a folder holds predictions or truth: "
                              "write two")
    if len(ids) < len(names) or not all(o.strip() for o in vocab or []):
        raise ValueError(f"vocab: expected names, each once, for a class has one id; got {brief(names, 120)}")
    torn = [o for o in names if '\x85' in o]   # yaml makes a blank of it
    if torn: raise AnnotationError(f"label {brief(torn[0])} has a line separator (U+0085), which yaml does not keep; "
                                   "rename it")
    targets = _targets(annotations, dest)
    texts = [''.join(f'{o}\n' for o in _rows(a, ids)) for a in annotations]   # all that can fail, before the first file
    files,lists = [_label_file(o, 'labels') for o in targets],{}
    for a,target in zip(annotations, targets):
        lists.setdefault(a.split or 'train', []).append(f'./{target.relative_to(dest).as_posix()}\n')
    lists = {k: lists[v] for k,v in _KEYS.items() if v in lists}
    with writing_set([dest, *(o.parent for o in (*targets, *files))]) as writing:
        for a,target,file,text in zip(annotations, targets, files, texts):
            source = a.path.resolve()
            if target.is_symlink(): target.unlink()   # other tools write such, which `read_yolo` does not follow
            if not target.exists():
                with writing(target) as part: _link(part, source)
            with writing(file) as part: part.write_text(text, encoding='utf-8')
        # last, so that what they list is there
        for k,lines in lists.items():
            with writing(dest/f'{k}.txt') as part: part.write_text(''.join(lines), encoding='utf-8')
        # no `path`: others look for a relative one elsewhere, but for none beside the yaml file
        data = {**{k: f'{k}.txt' for k in lists}, 'names': dict(enumerate(names))}
        with writing(dest/'data.yaml') as part:
            part.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding='utf-8')
    return dest/'data.yaml'

def _targets(annotations, dest):
    "Where below dest/images each picture is or will be, once it is sure that it can"
    root,res = os.path.abspath(dest/'images'),[]
    for i,a in enumerate(annotations):
        if a.path is None: raise AnnotationError(f"annotation {i} has no file: save its picture and set `path`")
        size,here = size_of(a.path),Path(os.path.abspath(a.path))
        if size != a.size:
            raise AnnotationError(f"{a.path}: the annotation says {wh(a.size)}, the file is {wh(size)}, and YOLO's "
                                  "rows are fractions of the file; scale the boxes, or bring back their picture")
        inside = here.is_relative_to(root)
        target = dest/'images'/(here.relative_to(root) if inside else Path(a.split or 'train', a.path.name))
        if os.path.lexists(target) and not (target.is_file() and (target.samefile(a.path) or
                                                                  filecmp.cmp(target, a.path, shallow=False))):
            raise AnnotationError(f"{a.path}: {target} exists, and is another image; choose another folder")
        res.append(target)
    check_outputs([_label_file(o, 'labels') for o in res], [a.path for a in annotations])
    return res

def _link(part, picture):
    "`part` becomes a hard link to `picture`, or a copy where it is on another disk, or one that has no links"
    try: os.link(picture, part)
    except OSError: shutil.copyfile(picture, part)

def _rows(a, ids):
    "The text of each object"
    def fail(what, todo): raise AnnotationError(f"{a.path}: {what}; {todo}")
    if a.bboxes is None:
        fail("YOLO holds boxes, and this annotation has none (`bboxes` is None)",
             "an empty (0, 4) array says that there are no objects")
    if a.ignore is not None and a.ignore.any():
        fail("YOLO has no objects to ignore, and would train on them", "leave them out (`select_objects`)")
    if a.points is not None and np.isfinite(a.points).any():
        fail("points have no place in this format", "use `write_coco`, or set points=None and visible=None")
    w,h = a.size
    for i,(name,(x1,y1,x2,y2)) in enumerate(zip(a.labels, a.bboxes.tolist())):
        if name not in ids: fail(f"{name!r} is not in vocab", f"add it, or rename the object{nearest(name, ids)}")
        if not name.strip(): fail("an empty label has no place in this format", "name it")
        v = _polygon(a, i) or [(x1+x2)/2/w, (y1+y2)/2/h, (x2-x1)/w, (y2-y1)/h]
        if not all(-_SLACK <= o <= 1+_SLACK for o in v):
            fail(f"object {i} at {[x1, y1, x2, y2]} reaches too far outside {wh(a.size)}: YOLO holds fractions of the "
                 "picture, from 0 to 1, for points, or centre, width and height", "clip it, or leave it out")
        if a.scores is not None: v = [*v, float(a.scores[i])]
        yield ' '.join([str(ids[name]), *map(repr, v)])

def _polygon(a, i):   # -> x1 y1 x2 y2 ..., fractions; [] for an object without
    m = a.masks[i] if a.masks is not None else []
    if isinstance(m, (dict, np.ndarray)):
        raise AnnotationError(f"{a.path}, masks, row {i}: YOLO holds polygons, not run lengths or arrays; "
                              "ask `annotate` for masks='polygons', take `mask_polygons`, use `write_coco`, or "
                              "set masks=None to write boxes")
    try: parts = [np.asarray(p, dtype=np.float64).reshape(-1).tolist() for p in m]
    except (TypeError, ValueError, OverflowError) as e:
        raise AnnotationError(f"{a.path}, masks, row {i}: expected polygons of numbers ({e}), got {brief(m)}") from e
    for p in parts:
        if len(p) < 6 or len(p)%2 or not all(map(isfinite, p)):
            raise AnnotationError(f"{a.path}, masks, row {i}: expected polygons of three or more points, "
                                  f"got {brief(p)}; mend the polygon")
    if len(parts) > 1:   # from the first point out to each further part, and back on the same line
        start = parts[0][:2]
        parts = [parts[0], start, *(o for p in parts[1:] for o in (p, p[:2], start))]
    flat = [o for p in parts for o in p]
    return [o/s for o,s in zip(flat, a.size*(len(flat)//2))]
