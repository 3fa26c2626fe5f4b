"PASCAL VOC: one xml file a picture, boxes 1-based and inclusive (Everingham et al., 2010)"
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
    split:str=None,                # a list of ImageSets/Main, such as 'trainval': only that; None (default): all, each
                                   # image with its own split
    images:str='JPEGImages',       # folder of the images, below `path`; folders in it are read too
    annotations:str='Annotations', # folder of the xml files, below `path`; folders in it are read too
    on_error:str='raise',          # 'raise' `AnnotationError` at the first file that cannot be read, or 'drop' such
                                   # images and count them
    allow_outside:bool=False,      # whether files outside these folders are read too, to which <filename> (../,
                                   # absolute) and links may lead
) -> list[Annotation]:             # in the order of the list, or of the files' names; images without objects included
    """Images with boxes; objects marked difficult have `ignore` set. Boxes outside the image stay as they are. Where
    the xml files lie beside the images, write `images='.', annotations='.'`.

    The image of an xml file is the one that its <filename> names, below `images`: in the folder that the xml file has
    below `annotations`, or in `images` itself, without regard to folders and suffix in <filename> that do not exist
    (a suffix is one of an image format: `shot.0` has none). If there is none, the image with the name of the xml file.
    Two that fit are an error.

    Images without an xml file are not read, and so are names of the lists without one; a warning counts each. Names in
    a list may have blanks, a suffix and folders below `annotations`, and in lists of one class the -1, 0 or 1 at their
    ends"""
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
        if name in files: raise AnnotationError(f"{files[name]} and {o} are of one image; keep one")
        files[name] = o
    return files

class _Images:
    "The image files below a folder, by what an xml file may call them"
    def __init__(self, folder, allow_outside):
        self.inside = inside_of(folder, allow_outside)
        self.folder,self.used,self.beside,self.anywhere = folder,set(),{},{}
        self.files = find_files(folder, Image.registered_extensions())
        for o in self.files:
            self.beside.setdefault((self._place(o), o.stem), []).append(o)
            self.anywhere.setdefault(o.stem, []).append(o)

    def _place(self, file): return file.parent.relative_to(self.folder).as_posix()

    def find(self, file, place, name):   # `place`: folder of the xml `file` below those of the annotations
        found = self._named(place, name)
        if found: self.inside(found, f"{file}: <filename> ", name)
        else: found = self.inside(self._stemmed(file, place, name))
        self.used.add(found)
        return found

    def _named(self, place, name):
        "The image that has the `name` in <filename>, or None"
        last = name.replace('\\', '/').rpartition('/')[2]   # folders are often those of another machine
        for o in [name, last] if name and not Path(name).is_absolute() else [last]:
            for p in (self.folder/place/o, self.folder/o):
                if o and p.is_file(): return p

    def _stemmed(self, file, place, name):
        "The image that has the name in <filename>, or that of the xml, with any suffix"
        last = name.replace('\\', '/').rpartition('/')[2]
        stem,_,suffix = last.rpartition('.')
        is_image = f'.{suffix.lower()}' in Image.registered_extensions()
        stems = dict.fromkeys(o for o in (last, stem if is_image else '', file.stem) if o)
        for found in (*(self.beside.get((o, s)) for s in stems for o in (place, '.')),
                      *(self.anywhere.get(s) for s in stems)):
            if not found: continue
            if len(found) == 1: return found[0]
            raise AnnotationError(f"{file}: <filename> is {brief(name)}, and {' and '.join(map(str, found[:3]))} fit; "
                                  "write the whole name into the file")
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
    "(name, xml file, split) of every xml file; the split is None where no list has it"
    split,lists = {},_lists(path)
    for k,ours in _LISTS.items():
        if k not in lists: continue
        file,names = lists[k],_names(lists[k], xmls)
        for name,row in names:
            if split.setdefault(name, ours) != ours:
                raise AnnotationError(f"{file}, line {row}: {brief(name)} is listed as {split[name]} too; fix "
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
        raise AnnotationError(f"{path/'ImageSets'/'Main'/f'{split}.txt'}: no such list; there are "
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
    """[(name, line)] of an image list. Names may have blanks, and the lines of one class end in -1, 0 or 1: they are
    what more xml files have"""
    lines = read_lines(file)
    marked = [re.fullmatch(r'(.*\S)\s+(?:-1|0|1)', o) for _,o in lines]
    whole = [_name(o, xmls) for _,o in lines]
    cut = [_name(m[1], xmls) for m in marked] if all(marked) else []
    names = cut if sum(o in xmls for o in cut) > sum(o in xmls for o in whole) else whole
    seen = {}
    for name,(row,_) in zip(names, lines):
        if name in seen:
            raise AnnotationError(f"{file}, line {row}: {brief(name)} appears twice, in line {seen[name]} too; "
                                  "keep one")
        seen[name] = row
    return list(seen.items())

def _name(o, xmls):
    "What a line calls an image, as `xmls` has it: without a suffix, with slashes"
    for name in (o, o.replace('\\', '/').removeprefix('./')):
        if name in xmls: return name
    stem,_,suffix = name.rpartition('.')
    return stem if stem in xmls and f'.{suffix.lower()}' in {'.xml', *Image.registered_extensions()} else o

def _read(name, file, split, pics):
    try: root = fromstring(read_bytes(file))
    # LookupError: an encoding that nobody knows, or one that is none, such as zlib
    except (ElementTree.ParseError, DefusedXmlException, OSError, ValueError, LookupError, TypeError) as e:
        raise AnnotationError(f"{file} is not readable xml ({brief_text(e) or type(e).__name__}); fix the file") from e
    picture = pics.find(file, Path(name).parent.as_posix(), (root.findtext('filename') or '').strip())
    size = _size(file, root, picture)
    objects = [_object(file, i, o) for i,o in enumerate(root.findall('object'), 1)]
    bboxes = np.array([o[1] for o in objects], dtype=np.float32).reshape(-1, 4)
    return Annotation(picture, size, [o[0] for o in objects], bboxes,
                      ignore=np.array([o[2] for o in objects], dtype=bool), split=split)

def _size(file, root, picture):
    "(w, h) of the image as shown, where the xml says the same"
    shown = size_of(picture)
    try: said = tuple(int(float(root.findtext(f'size/{o}'))) for o in ('width', 'height'))
    except (TypeError, ValueError, OverflowError): said = None   # the last: inf
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
            raise AnnotationError(f"{where}: {k} is {brief(text)}, not a number; "
                                  "mend the file, or drop the object before reading") from None
    for lo,hi,side in (('xmin', 'xmax', 'left of'), ('ymin', 'ymax', 'above')):
        if not box[lo]-1 <= box[hi]:      # equal: no area, which is legal data
            raise AnnotationError(f"{where}: {lo} {box[lo]:g} is not {side} {hi} {box[hi]:g}; "
                                  "mend the file, or drop the object before reading")
    # pixel 1 of VOC covers 0 to 1 here: the first edge moves by one, the last stays
    return name,(box['xmin']-1, box['ymin']-1, box['xmax'], box['ymax']),_difficult(where, o)

def _difficult(where, o):
    "Whether an object is difficult, as the many tools spell it; missing or empty = no"
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
    dest,        # folder, made if not there: JPEGImages, Annotations, and ImageSets/Main for those with a split
):
    """Write what `read_voc` reads: images are copied, boxes become 1-based and inclusive; masks, points, scores and
    `group` have no place in this format.

    The files of all images are replaced together, or none is. Files of other images in `dest` stay, so that a set can
    be written in parts; each call writes anew the lists of the splits that it has. A list of an older set (train, val
    or test) that is not written anew and has one of these images is an error"""
    dest,lists = Path(dest),{}
    for i,a in enumerate(annotations):
        if a.path is None: raise AnnotationError(f"annotation {i} has no file: save its picture and set `path`")
        if a.bboxes is None:
            raise AnnotationError(f"{a.path}: VOC holds boxes, and this annotation has none (`bboxes` is None); "
                                  "an empty (0, 4) array says that there are no objects")
        if not a.path.is_file(): raise AnnotationError(f"{a.path}: no such image file; nothing was written")
        if a.path.name.startswith('.'):
            raise AnnotationError(f"{a.path}: its name begins with a dot, and readers skip such files; rename the file")
        if any(o != o.strip() or any(c < ' ' for c in o) for o in (a.path.name, a.path.stem)):
            raise AnnotationError(f"{a.path}: its name begins or ends blank, or has a control character; neither the "
                                  "xml nor a list can hold it: rename the file")
        for o in a.labels:
            if o != o.strip() or not o or any(c < ' ' for c in o):
                raise AnnotationError(f"{a.path}: label {o!r} is empty, begins or ends blank, or has a control "
                                      "character; this format cannot hold it: rename it")
    check_outputs([dest/'Annotations'/f'{a.path.stem}.xml' for a in annotations], [a.path for a in annotations])
    for a in annotations:
        if a.split is not None: lists.setdefault(a.split, []).append(a.path.stem)
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
            # last, so that what they list is there
            with writing(sets/f'{name}.txt') as part:
                part.write_text('\n'.join(lists[ours]) + '\n', encoding='utf-8')

def _check_old_lists(dest, annotations, lists):
    "Raise where a list of an older set, which is not written again, has one of `annotations`"
    splits,files = {a.path.stem: a.split for a in annotations},_lists(dest)
    for name,ours in _LISTS.items():
        if ours in lists or name not in files: continue
        for o,row in _names(files[name], splits):
            if o not in splits: continue
            raise AnnotationError(f"{files[name]} is of an older set: line {row} has {brief(o)}, whose split is "
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
        # repr of a float64 that came from float32 is exact, and whole numbers stay whole
        box = dict(xmin=float(x1)+1, ymin=float(y1)+1, xmax=x2, ymax=y2)
        put(SubElement(o, 'bndbox'), **{k: f'{float(v):.17g}' for k,v in box.items()})
    indent(root)
    return root
