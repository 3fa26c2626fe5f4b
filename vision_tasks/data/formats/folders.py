"A folder of images for each class, as torchvision's `ImageFolder` and fastai's `GrandparentSplitter` expect it"
from __future__ import annotations
import filecmp, os, shutil
from pathlib import Path
from PIL import Image
from ...arguments import brief, checked, choice
from ..annotation import SPLITS, Annotation
from ..errors import AnnotationError
from ..reading import inside_of, read_all, size_of
from ..writing import MARKER, check_complete, check_once, check_outputs, link_or_copy, writing_set

__all__ = ['read_folders', 'write_folders']

_NAMES = dict(train='train', training='train', valid='valid', val='valid', validation='valid', test='test')

@checked(split=choice(*SPLITS, 'val'))
def read_folders(
    path,                 # folder with a folder of images for each class; or with folders train, valid (or val) and
                          # test that hold these
    split:str=None,       # 'train', 'valid' (or 'val') or 'test': only that; None (default): all, each image with its
                          # own
    on_error:str='raise', # 'raise' `AnnotationError` at the first image that cannot be read, or 'drop' such images and
                          # count them
    allow_outside:bool=False, # whether links in `path` that lead out of it are read too
) -> list[Annotation]:    # one label each, the name of the class folder; split by split, sorted by file name
    """Images with one class each. Images in folders below a class folder are of that class. A folder without images is
    no class; files of other types and names that begin with a dot are skipped.

    `path` has splits where one of its folders train, training, valid, val, validation or test (in any case) holds
    folders of images; then every folder with images must be such a split. An image outside the class folders cannot be
    read. Raises `AnnotationError` where there are no images, or folders of splits stand beside those of classes"""
    path,split = Path(path),'valid' if split == 'val' else split
    if not path.is_dir(): raise AnnotationError(f"{path}: no such folder; expected one with a folder for each class")
    check_complete(path)
    inside = inside_of(path, allow_outside)
    roots = _roots(path, split)
    items = [(root, file, name) for root,name in roots for file in _images(root)]
    if split is None and roots[0][0] != path:   # those beside the splits are in no class either
        items += [(path, o, None) for o in _images(path) if o.parent == path]
    if not items: raise AnnotationError(
        f"{roots[0][0] if split else path}: no images; expected a folder of images for each class, such as "
        f"{roots[0][0]/'cat'/'1.jpg'}")
    return read_all(lambda o: _read(*o, inside), items, on_error)

def _images(folder):
    "The image files in and below `folder`, links followed, sorted; a link to a folder that holds it is not"
    kinds,res = {*Image.registered_extensions()},[]
    for here,dirs,files in os.walk(folder, followlinks=True):
        dirs[:] = [o for o in dirs if o[0] != '.' and not _leads_back(os.path.join(here, o))]
        res += [Path(here, o) for o in files if o[0] != '.' and os.path.splitext(o)[1].lower() in kinds]
    return sorted(res)

def _leads_back(folder):
    if not os.path.islink(folder): return False
    return Path(os.path.realpath(os.path.dirname(folder))).is_relative_to(os.path.realpath(folder))

def _roots(path, split):
    "[(folder of class folders, its split)]"
    folders = [o for o in sorted(path.iterdir()) if o.is_dir() and o.name[0] != '.' and _images(o)]
    named   = {o: _NAMES[o.name.lower()] for o in folders if o.name.lower() in _NAMES}
    if not any(f.parent != o for o in named for f in _images(o)):   # a class may be called train
        if split is None: return [(path, None)]
        raise AnnotationError(f"{path} has no folder {split} that holds folders of images, only "
                              f"{brief([o.name for o in folders])}; leave split= out")
    others = [o.name for o in folders if o not in named]
    if others: raise AnnotationError(
        f"{path} holds splits, {brief([o.name for o in named])}, and other folders of images, {brief(others)}; move "
        "these into the splits, or read one split by its own path")
    res = [(o, s) for s in SPLITS for o,name in named.items() if name == s and split in (None, s)]
    if res: return res
    raise AnnotationError(f"{path} has no folder {split}, only {brief([o.name for o in named])}")

def _read(root, file, split, inside):
    inside(file)
    names = file.relative_to(root).parts
    if len(names) == 1: raise AnnotationError(
        f"{file}: is in no folder of a class; expected {root/'its class'/file.name}; move it, or drop it")
    return Annotation(file, size_of(file), [names[0]], split=split)

# --- writing

@checked()
def write_folders(
    annotations, # list[Annotation] with one label each
    dest,        # folder, made if not there; may hold no other images
) -> Path:       # `dest`, which `read_folders` takes
    """Write what `read_folders` reads: `dest`/class/file, or `dest`/split/class/file where an annotation names a split;
    one without then becomes train. The files are hard links to the images, which take no space, or copies where `dest`
    is on another disk. All are written together, or none is.

    Boxes, points, masks, scores and groups have no place in this format and are not written. Raises `AnnotationError`
    before anything is written for an image of no label or several, a label that cannot name a folder, two images that
    would become one file, and other images in `dest`, which would be read with the new ones"""
    dest,sources = Path(dest),_sources(annotations)
    names,splits = [_folder_name(a) for a in annotations],any(a.split for a in annotations)
    files = [dest/(a.split or 'train' if splits else '')/name/a.path.name for a,name in zip(annotations, names)]
    _check_dest(dest, files, sources)
    todo = [(source, o) for source,o in zip(sources, files) if not _is_there(source, o)]
    with writing_set([dest, *(o.parent for _,o in todo)] if todo else []) as writing:
        for source,file in todo:
            # one that is linked already would not be renamed
            put = shutil.copyfile if file.exists() else link_or_copy
            with writing(file) as part: put(source, part)
    return dest

def _sources(annotations):
    "The image files, links followed"
    for i,a in enumerate(annotations):
        if a.path is None: raise AnnotationError(f"annotation {i} has no file: save its image and set `path`")
        size_of(a.path)
    check_once(annotations)
    return [a.path.resolve() for a in annotations]

def _folder_name(a):
    names = sorted({*a.labels})
    def fail(what, todo): raise AnnotationError(f"{a.path}: {what}; {todo}; nothing was written")
    if len(names) != 1:
        what = f"labels {brief(names)}" if names else "no label"
        fail(f"expected one label, which names the class folder, got {what}",
             "keep one, or write a table (`write_df`)" if names else "drop the image, or give it a class")
    name, = names
    if name != name.strip() or name[:1] in ('', '.') or {*name} & {*'/\\\0'}:
        fail(f"{brief(name)} cannot name a folder", "rename the class")
    return name

def _check_dest(dest, files, sources):
    "Raise where a file would replace another, or `dest` holds other images"
    apart = [(o, s) for o,s in zip(files, sources) if os.path.realpath(o) != str(s)]
    check_outputs([o for o,_ in apart], [s for _,s in apart], [s for o,s in zip(files, sources) if (o, s) not in apart])
    for file,source in apart:
        if os.path.lexists(file) and not _is_same(source, file): raise AnnotationError(
            f"{source}: {file} exists, and is another image; choose another folder; nothing was written")
    known = {os.path.realpath(o) for o in files}
    other = next((o for o in _images(dest) if os.path.realpath(o) not in known), None) if dest.is_dir() else None
    if other is not None: raise AnnotationError(
        f"{dest} holds {other.relative_to(dest)}, which is not among the images to write and would be read with them; "
        "choose another folder, or delete it; nothing was written")

def _is_same(source, file): return file.is_file() and (file.samefile(source) or filecmp.cmp(source, file, False))

def _is_there(source, file):
    "Whether `file` need not be written: it is `source`, or the same and no writer of its folder was interrupted"
    if os.path.realpath(file) == str(source): return True
    return _is_same(source, file) and not os.path.lexists(file.parent/MARKER)
