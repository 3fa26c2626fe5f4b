"PASCAL VOC: one xml file per image, boxes 1-based and inclusive (Everingham et al., 2010)"
from __future__ import annotations
import re, shutil
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement, indent
from defusedxml.ElementTree import fromstring
from defusedxml.common import DefusedXmlException
import numpy as np
from PIL import Image
from ...arguments import PATH, TEXT, brief, checked
from ..annotation import Annotation, unturned
from ..errors import AnnotationError
from ..image import brief_text, read_bytes
from ..reading import find_files, inside_of, read_all, read_lines, size_of
from ..writing import check_complete, check_outputs, writing_set
from ...warning import warn

__all__ = ['read_voc', 'write_voc']

_LISTS = dict(train='train', val='valid', test='test')     # ImageSets/Main's names -> ours

@checked(split=TEXT, images=PATH, annotations=PATH)   # a split is any list's name
def read_voc(
    path,                          # folder of the data set
    split:str=None,                # read only this list of ImageSets/Main, such as 'trainval'; None (default): all
                                   # images, each with its own split
    images:str='JPEGImages',       # folder of the images, below `path`; its subfolders are read too
    annotations:str='Annotations', # folder of the xml files, below `path`; its subfolders are read too
    on_error:str='raise',          # 'raise' `AnnotationError` at the first file that cannot be read, or 'drop' such
                                   # images and count them
    allow_outside:bool=False,      # also read files outside these folders, which <filename> (../, absolute) and links
                                   # may lead to
) -> list[Annotation]:             # in the order of the list or of the file names; images without objects included
    """Read images with boxes; `ignore` is set for objects marked difficult. Boxes outside the image are kept. If the
    xml files lie beside the images, pass `images='.', annotations='.'`.

    The image of an xml file is the one that its <filename> names: in the subfolder of `images` that corresponds to that
    of the xml file below `annotations`, or in `images` itself. Folders and a suffix in <filename> that do not exist are
    ignored (only suffixes of image formats count: `shot.0` has none). Otherwise it is the image with the name of the
    xml file. Two images that match are an error.

    Images without an xml file are not read, nor are names in the lists without one; a warning counts both. Names in a
    list may have blanks, a suffix and subfolders of `annotations`; in the list of one class they end in -1, 0 or 1.
    Raises `AnnotationError`"""
    path = Path(path)
    xmls,pics = path/annotations,path/images
    check_complete(xmls, pics, path/'ImageSets'/'Main')
    for folder,arg in ((xmls, 'annotations'), (pics, 'images')):
        if not folder.is_dir():
            raise AnnotationError(f"{folder}: no such folder; name it with {arg}=, relative to {path}")
    files = _xml_files(xmls)
    if not files:
        raise AnnotationError(f"{xmls} holds no xml file; name the folder of the annotations with annotations=")
    inside = inside_of(xmls, allow_outside)
    items = _all(path, files) if split is None else _listed(path, split, files, xmls)
    pics = _Images(pics, allow_outside)
    anns = read_all(lambda o: _read(o[0], inside(o[1]), o[2], pics), items, on_error, lambda o: str(o[1]))
    if split is None: pics.warn_of_unused(files)
    return anns

def _xml_files(xmls):   # -> {path below `xmls`, without suffix: file}
    files = {}
    for o in find_files(xmls, {'.xml'}):
        name = o.relative_to(xmls).with_suffix('').as_posix()
        if name in files: raise AnnotationError(f"{files[name]} and {o} belong to the same image; keep one")
        files[name] = o
    return files

class _Images:
    "The image files below a folder, by the names that an xml file may have for them"
    def __init__(self, folder, allow_outside):
        self.inside = inside_of(folder, allow_outside)
        self.folder,self.used,self.beside,self.anywhere = folder,set(),{},{}
        self.files = find_files(folder, Image.registered_extensions())
        for o in self.files:
            self.beside.setdefault((self._place(o), o.stem), []).append(o)
            self.anywhere.setdefault(o.stem, []).append(o)

    def _place(self, file): return file.parent.relative_to(self.folder).as_posix()

    def find(self, file, place, name):   # `place`: folder of the xml `file`, relative to that of the annotations
        found = self._named(place, name)
        if found: self.inside(found, f"{file}: <filename> ", name)
        else: found = self.inside(self._stemmed(file, place, name))
        self.used.add(found)
        return found

    def _named(self, place, name):
        "The image that <filename> `name` refers to, or None"
        last = name.replace('\\', '/').rpartition('/')[2]   # the folders are often those of another machine
        for o in [name, last] if name and not Path(name).is_absolute() else [last]:
            for p in (self.folder/place/o, self.folder/o):
                if o and p.is_file(): return p

    def _stemmed(self, file, place, name):
        "The image with the stem of <filename>, or that of the xml file, and any suffix"
        last = name.replace('\\', '/').rpartition('/')[2]
        stem,_,suffix = last.rpartition('.')
        is_image = f'.{suffix.lower()}' in Image.registered_extensions()
        stems = dict.fromkeys(o for o in (last, stem if is_image else '', file.stem) if o)
        for found in (*(self.beside.get((o, s)) for s in stems for o in (place, '.')),
                      *(self.anywhere.get(s) for s in stems)):
            if not found: continue
            if len(found) == 1: return found[0]
            raise AnnotationError(f"{file}: <filename> is {brief(name)}, and {' and '.join(map(str, found[:3]))} "
                                  "match; write the full name into the file")
        named = brief(name, 200) if name else '<filename>, which is missing,'
        raise AnnotationError(f"{file}: neither {named} nor {file.stem}.* is in {self.folder}; "
                              "fix the name, or name the folder with images=")

    def warn_of_unused(self, xmls):
        used = {o.resolve() for o in self.used}
        rest = [o for o in self.files if o.relative_to(self.folder).with_suffix('').as_posix() not in xmls
                and o.resolve() not in used]
        if rest: warn(f"{len(rest)} of {len(self.files)} images in {self.folder} have no xml file and are not "
                      f"read; the first is {rest[0]}")

def _all(path, xmls):
    "(name, xml file, split) of every xml file; the split is None if the image is in no list"
    split,lists = {},_lists(path)
    for k,ours in _LISTS.items():
        if k not in lists: continue
        file,names = lists[k],_names(lists[k], xmls)
        for name,row in names:
            if split.setdefault(name, ours) != ours:
                raise AnnotationError(f"{file}, line {row}: {brief(name)} is also listed as {split[name]}; fix "
                                      "the lists")
        gone = [(name, row) for name,row in names if name not in xmls]
        if gone:
            (first,row),n = gone[0],len(gone)
            warn(f"{file}: {n} of {len(names)} names have no xml file and are not read; the first is "
                 f"{brief(first)} in line {row}")
    return [(name, file, split.get(name)) for name,file in xmls.items()]

def _listed(path, split, xmls, folder):
    "(name, xml file, split) of the images of one list"
    lists = _lists(path)
    if split not in lists:
        raise AnnotationError(f"{path/'ImageSets'/'Main'/f'{split}.txt'}: no such list; found "
                              f"{sorted(lists) or 'none'}; split=None reads all xml files")
    items = []
    for name,row in _names(lists[split], xmls):
        if name not in xmls:
            raise AnnotationError(f"{lists[split]}, line {row}: {brief(name)} has no file {folder/name}.xml; "
                                  "fix the list")
        items.append((name, xmls[name], _LISTS.get(split)))
    return items

def _lists(path):   # -> {name: file}
    folder = path/'ImageSets'/'Main'
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {o.stem: o for o in files if o.suffix.lower() == '.txt' and o.name[0] != '.'}

def _names(file, xmls):
    """[(name, line)] of an image list. Names may have blanks, and the lines in the list of one class end in -1, 0 or 1;
    of the two readings, the one that matches more xml files is taken"""
    lines = read_lines(file)
    marked = [re.fullmatch(r'(.*\S)\s+(?:-1|0|1)', o) for _,o in lines]
    whole = [_name(o, xmls) for _,o in lines]
    cut = [_name(m[1], xmls) for m in marked] if all(marked) else []
    names = cut if sum(o in xmls for o in cut) > sum(o in xmls for o in whole) else whole
    seen = {}
    for name,(row,_) in zip(names, lines):
        if name in seen:
            raise AnnotationError(f"{file}, line {row}: {brief(name)} appears twice, also in line {seen[name]}; "
                                  "keep one")
        seen[name] = row
    return list(seen.items())

def _name(o, xmls):
    "The name of an image in a line, as in `xmls`: without a suffix, with slashes"
    for name in (o, o.replace('\\', '/').removeprefix('./')):
        if name in xmls: return name
    stem,_,suffix = name.rpartition('.')
    return stem if stem in xmls and f'.{suffix.lower()}' in {'.xml', *Image.registered_extensions()} else o

def _read(name, file, split, pics):
    try: root = fromstring(read_bytes(file))
    # LookupError: an unknown encoding, or one that is not for text, such as zlib
    except (ElementTree.ParseError, DefusedXmlException, OSError, ValueError, LookupError, TypeError) as e:
        raise AnnotationError(f"{file} is not readable xml ({brief_text(e) or type(e).__name__}); fix the file") from e
    image = pics.find(file, Path(name).parent.as_posix(), (root.findtext('filename') or '').strip())
    size = _size(file, root, image)
    objects = [_object(file, i, o) for i,o in enumerate(root.findall('object'), 1)]
    bboxes = np.array([o[1] for o in objects], dtype=np.float32).reshape(-1, 4)
    return Annotation(image, size, [o[0] for o in objects], bboxes,
                      ignore=np.array([o[2] for o in objects], dtype=bool), split=split)

def _size(file, root, image):
    "(w, h) of the image as shown; raises if the xml has another size"
    shown = size_of(image)
    try: size = tuple(int(float(root.findtext(f'size/{o}'))) for o in ('width', 'height'))
    except (TypeError, ValueError, OverflowError): size = None   # OverflowError: inf
    if size is None or min(size) <= 0:
        raise AnnotationError(f"{file} has no <size> with width and height; {image.name} is {shown[0]}x{shown[1]}: "
                              "write that into the file if its boxes are in pixels of this image")
    if size != shown:
        todo = "scale the boxes, or restore the image that they were drawn on"
        if unturned(image, size):
            todo = "the boxes belong to the image before its EXIF orientation is applied: " \
                   "rotate the pixels in the file, or the boxes"
        raise AnnotationError(f"{file}: <size> is {size[0]}x{size[1]}, but {image.name} is {shown[0]}x{shown[1]}; "
                              f"{todo}")
    return shown

def _object(file, i, o):
    "(name, x1 y1 x2 y2, ignore) of the i-th object, counted from 1"
    where = f"{file}, object {i}"
    name = (o.findtext('name') or '').strip()
    if not name: raise AnnotationError(f"{where}: no <name>; fix the file, or drop the object before reading")
    box = {}
    for k in ('xmin', 'ymin', 'xmax', 'ymax'):
        text = o.findtext(f'bndbox/{k}')
        try: box[k] = float(text)
        except (TypeError, ValueError):
            raise AnnotationError(f"{where}: {k} is {brief(text)}, not a number; "
                                  "fix the file, or drop the object before reading") from None
    for lo,hi,side in (('xmin', 'xmax', 'left of'), ('ymin', 'ymax', 'above')):
        if not box[lo]-1 <= box[hi]:      # equal: a box without area, which is legal
            raise AnnotationError(f"{where}: {lo} {box[lo]:g} is not {side} {hi} {box[hi]:g}; "
                                  "fix the file, or drop the object before reading")
    # pixel 1 of VOC covers 0 to 1 here: the left and top edges move by one, the others stay
    return name,(box['xmin']-1, box['ymin']-1, box['xmax'], box['ymax']),_difficult(where, o)

def _difficult(where, o):
    "Whether an object is difficult, in the spellings of several tools; missing or empty: no"
    text = (o.findtext('difficult') or '').strip()
    word = text.lower()
    if word in ('', 'false', 'no'): return False
    if word in ('true', 'yes'): return True
    try:
        if float(word) in (0, 1): return bool(float(word))
    except ValueError: pass
    raise AnnotationError(f"{where}: difficult is {brief(text)}; expected 0 or 1, or true or false; fix the file")

@checked()
def write_voc(
    annotations, # list[Annotation] with boxes
    dest,        # folder for JPEGImages, Annotations, and ImageSets/Main (images with a split); created if missing
):
    """Write files for `read_voc`: images are copied, boxes become 1-based and inclusive. Masks, points, scores and
    `group` are not written.

    The files of all images are replaced together, or none is. Files of other images in `dest` are kept, so that a set
    can be written in parts; each call replaces the lists of the splits that it has. Raises `AnnotationError` for what
    the format cannot store, and if a list of an older set (train, val or test) that is not replaced has one of these
    images"""
    dest = Path(dest)
    _check_writable(annotations)
    check_outputs([dest/'Annotations'/f'{a.path.stem}.xml' for a in annotations], [a.path for a in annotations])
    lists = {s: [a.path.stem for a in annotations if a.split == s] for s in _LISTS.values()}
    lists = {s: stems for s,stems in lists.items() if stems}
    _check_old_lists(dest, annotations, lists)
    pics,xmls,sets = dest/'JPEGImages',dest/'Annotations',dest/'ImageSets'/'Main'
    with writing_set([pics, xmls, *([sets] if lists else [])]) as writing:
        for a in annotations:
            target = pics/a.path.name
            if not (target.exists() and target.samefile(a.path)):
                with writing(target) as part: shutil.copyfile(a.path, part)
            with writing(xmls/f'{a.path.stem}.xml') as part:
                ElementTree.ElementTree(_xml(a)).write(part, encoding='utf-8')
        for name,ours in _LISTS.items():
            if ours not in lists: continue
            # last, so that all files that they list exist
            with writing(sets/f'{name}.txt') as part:
                part.write_text('\n'.join(lists[ours]) + '\n', encoding='utf-8')

def _check_writable(annotations):
    for i,a in enumerate(annotations):
        if a.path is None: raise AnnotationError(f"annotation {i} has no file: save its image and set `path`")
        if a.bboxes is None:
            raise AnnotationError(f"{a.path}: VOC files hold boxes, but this annotation has none (`bboxes` is None); "
                                  "for an image without objects pass an empty (0, 4) array")
        if not a.path.is_file(): raise AnnotationError(f"{a.path}: no such image file; nothing was written")
        if a.path.name.startswith('.'):
            raise AnnotationError(f"{a.path}: its name begins with a dot, and readers skip such files; rename the file")
        if any(o != o.strip() or any(c < ' ' for c in o) for o in (a.path.name, a.path.stem)):
            raise AnnotationError(f"{a.path}: its name begins or ends with a blank, or has a control character; "
                                  "neither the xml nor a list can store it: rename the file")
        for o in a.labels:
            if o != o.strip() or not o or any(c < ' ' for c in o):
                raise AnnotationError(f"{a.path}: label {o!r} is empty, begins or ends with a blank, or has a control "
                                      "character; this format cannot store it: rename it")

def _check_old_lists(dest, annotations, lists):
    "Raise if a list of an older set, which is not replaced, has one of `annotations`"
    splits,files = {a.path.stem: a.split for a in annotations},_lists(dest)
    for name,ours in _LISTS.items():
        if ours in lists or name not in files: continue
        for o,row in _names(files[name], splits):
            if o not in splits: continue
            raise AnnotationError(f"{files[name]} belongs to an older set: line {row} has {brief(o)}, whose split is "
                                  f"{splits[o]} now, and no annotation has the split {ours}; delete that file, or "
                                  "write into another folder; nothing was written")

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
        # 17 digits store a float64 exactly, and keep whole numbers whole
        box = dict(xmin=float(x1)+1, ymin=float(y1)+1, xmax=x2, ymax=y2)
        put(SubElement(o, 'bndbox'), **{k: f'{float(v):.17g}' for k,v in box.items()})
    indent(root)
    return root
