"PASCAL VOC: one xml file a picture, boxes 1-based and inclusive (Everingham et al., 2010)"
from __future__ import annotations
import shutil
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement, indent
from defusedxml.ElementTree import parse
from defusedxml.common import DefusedXmlException
import numpy as np
from PIL import Image
from .annotation import Annotation, AnnotationError, unturned
from .reading import read_all, size_of
from .writing import check_outputs, replacing

__all__ = ['read_voc', 'write_voc']

_LISTS = dict(train='train', val='valid', test='test')     # ImageSets/Main's names -> ours

def read_voc(
    path,                          # folder of the data set
    split:str=None,                # a list of ImageSets/Main, such as 'trainval': only that; None = all, each picture
                                   # with its own split
    images:str='JPEGImages',       # folder of the pictures, below `path`
    annotations:str='Annotations', # folder of the xml files, below `path`
    on_error:str='raise',          # 'raise' `AnnotationError` at the first file that cannot be read, or 'drop' such
                                   # pictures and count them
) -> list[Annotation]:             # in the order of the list, or of the files' names; pictures without objects included
    "Pictures with boxes; objects marked difficult have `ignore` set. Boxes outside the picture stay as they are"
    path = Path(path)
    xmls,pics = path/annotations,path/images
    for folder,arg in ((xmls, 'annotations'), (pics, 'images')):
        if not folder.is_dir():
            raise AnnotationError(f"{folder}: no such folder; name it with {arg}=, relative to {path}")
    items = _listed(path, split, xmls) if split is not None else _all(path, xmls)
    if not items:
        raise AnnotationError(f"{xmls} holds no xml file; name the folder of the annotations with annotations=")
    names = {}   # stem -> file, to find a picture whose suffix or name the xml has wrong
    for p in sorted(pics.iterdir()):
        if p.suffix.lower() in Image.registered_extensions(): names.setdefault(p.stem, p)
    return read_all(lambda o: _read(*o, pics, names), items, on_error)

def _all(path, xmls):
    "(xml file, split) of every xml file; the split is None where there are no lists"
    split = {}
    for name,ours in _LISTS.items():
        file = path/'ImageSets'/'Main'/f'{name}.txt'
        for stem,row in _lines(file) if file.is_file() else ():
            if split.setdefault(stem, ours) != ours:
                raise AnnotationError(f"{file}, line {row}: {stem!r} is listed as {split[stem]} too; mend the lists")
    return [(p, split.get(p.stem)) for p in sorted(xmls.glob('*.xml'))]

def _listed(path, split, xmls):
    "(xml file, split) of the pictures of one list"
    file = path/'ImageSets'/'Main'/f'{split}.txt'
    if not file.is_file():
        there = sorted(p.stem for p in file.parent.glob('*.txt'))
        raise AnnotationError(f"{file}: no such list; there are {there or 'none'}; split=None reads all xml files")
    items = []
    for stem,row in _lines(file):
        xml = xmls/f'{stem}.xml'
        if not xml.is_file(): raise AnnotationError(f"{file}, line {row}: {stem!r} has no file {xml}; mend the list")
        items.append((xml, _LISTS.get(split)))
    return items

def _lines(file):
    return [(line.split()[0], i) for i,line in enumerate(file.read_text().splitlines(), 1) if line.strip()]

def _read(file, split, pics, names):
    try: root = parse(file).getroot()
    except (ElementTree.ParseError, DefusedXmlException, ValueError) as e:
        raise AnnotationError(f"{file} is not readable xml ({e or type(e).__name__}); mend the file") from e
    picture = _picture(file, root, pics, names)
    size = _size(file, root, picture)
    objects = [_object(file, i, o) for i,o in enumerate(root.findall('object'), 1)]
    bboxes = np.array([o[1] for o in objects], dtype=np.float32).reshape(-1, 4)
    return Annotation(picture, size, [o[0] for o in objects], bboxes,
                      ignore=np.array([o[2] for o in objects], dtype=bool), split=split)

def _picture(file, root, pics, names):
    name = (root.findtext('filename') or '').strip()
    if name and (pics/name).is_file(): return pics/name
    found = names.get(Path(name).stem if name else file.stem) or names.get(file.stem)
    if found is None:
        named = name or '<filename>, which is missing,'
        raise AnnotationError(f"{file}: neither {named} nor {file.stem}.* is in {pics}; "
                              "mend the name, or name the folder with images=")
    return found

def _size(file, root, picture):
    "(w, h) of the picture as shown, where the xml says the same"
    shown = size_of(picture)
    try: said = tuple(int(float(root.findtext(f'size/{o}'))) for o in ('width', 'height'))
    except (TypeError, ValueError): said = None
    if said is None or min(said) <= 0:
        raise AnnotationError(f"{file} has no <size> with width and height; {picture.name} is {shown[0]}x{shown[1]}: "
                              "write that into the file if its boxes are pixels of it")
    if said != shown:
        todo = "scale the boxes, or bring back the picture that they were drawn on"
        if unturned(picture, said):
            todo = "its EXIF orientation turns it, and the boxes belong to the picture before that: " \
                   "turn the pixels for good, or the boxes"
        raise AnnotationError(f"{file}: <size> says {said[0]}x{said[1]}, but {picture.name} is {shown[0]}x{shown[1]}; "
                              f"{todo}")
    return shown

def _object(file, i, o):
    "(name, x1 y1 x2 y2, ignore) of the i-th object, counted from 1"
    where = f"{file}, object {i}"
    name = (o.findtext('name') or '').strip()
    if not name: raise AnnotationError(f"{where}: no <name>; mend the file, or drop the object before reading")
    box = {}
    for k in ('xmin', 'ymin', 'xmax', 'ymax'):
        text = o.findtext(f'bndbox/{k}')
        try: box[k] = float(text)
        except (TypeError, ValueError):
            raise AnnotationError(f"{where}: {k} is {text!r}, not a number; "
                                  "mend the file, or drop the object before reading") from None
    for lo,hi,side in (('xmin', 'xmax', 'left of'), ('ymin', 'ymax', 'above')):
        if not box[lo]-1 <= box[hi]:      # equal: no area, which is legal data
            raise AnnotationError(f"{where}: {lo} {box[lo]:g} is not {side} {hi} {box[hi]:g}; "
                                  "mend the file, or drop the object before reading")
    # pixel 1 of VOC covers 0 to 1 here: the first edge moves by one, the last stays
    return name,(box['xmin']-1, box['ymin']-1, box['xmax'], box['ymax']),(o.findtext('difficult') or '0').strip() == '1'

def write_voc(
    annotations, # list[Annotation] with boxes
    dest,        # folder, made if not there: JPEGImages, Annotations, and ImageSets/Main for those with a split
):
    """Write what `read_voc` reads: pictures are copied, boxes become 1-based and inclusive; masks, points, scores and
    `group` have no place in this format"""
    dest,lists,annotations = Path(dest),{},list(annotations)
    for i,a in enumerate(annotations):
        if a.path is None: raise AnnotationError(f"annotation {i} has no file: save its picture and set `path`")
        if a.bboxes is None:
            raise AnnotationError(f"{a.path}: VOC holds boxes, and this annotation has none (`bboxes` is None); "
                                  "an empty (0, 4) array says that there are no objects")
        if not a.path.is_file(): raise AnnotationError(f"{a.path}: no such image file; nothing was written")
        for o in a.labels:
            if o != o.strip() or not o or any(c < ' ' for c in o):
                raise AnnotationError(f"{a.path}: label {o!r} is empty, begins or ends blank, or has a control "
                                      "character; this format cannot hold it: rename it")
    check_outputs([dest/'Annotations'/f'{a.path.stem}.xml' for a in annotations], [a.path for a in annotations])
    for folder in ('JPEGImages', 'Annotations'): (dest/folder).mkdir(parents=True, exist_ok=True)
    for a in annotations:
        target = dest/'JPEGImages'/a.path.name
        if not (target.exists() and target.samefile(a.path)):
            with replacing(target) as part: shutil.copyfile(a.path, part)
        with replacing(dest/'Annotations'/f'{a.path.stem}.xml') as part:
            ElementTree.ElementTree(_xml(a)).write(part, encoding='utf-8')
        if a.split is not None: lists.setdefault(a.split, []).append(a.path.stem)
    for name,ours in _LISTS.items():
        if ours not in lists: continue
        # last, so that what they list is there
        with replacing(dest/'ImageSets'/'Main'/f'{name}.txt') as part: part.write_text('\n'.join(lists[ours]) + '\n')

def _xml(a):
    root = Element('annotation')
    def put(parent, **kw):
        for k,v in kw.items(): SubElement(parent, k).text = str(v)
    put(root, filename=a.path.name)
    put(SubElement(root, 'size'), width=a.size[0], height=a.size[1], depth=3)
    ignore = np.zeros(len(a.labels), dtype=bool) if a.ignore is None else a.ignore
    for name,(x1,y1,x2,y2),difficult in zip(a.labels, a.bboxes, ignore):
        o = SubElement(root, 'object')
        put(o, name=name, difficult=int(difficult))
        # repr of a float64 that came from float32 is exact, and whole numbers stay whole
        box = dict(xmin=float(x1)+1, ymin=float(y1)+1, xmax=x2, ymax=y2)
        put(SubElement(o, 'bndbox'), **{k: f'{float(v):.17g}' for k,v in box.items()})
    indent(root)
    return root
