"""Shared by all readers: text files, the size of an image file, the loop over the images of a data set, and duplicates.

- *Text.* Lists, tables, yaml, json and label files are UTF-8, or as their byte order mark says (UTF-8, UTF-16 or
  UTF-32), with the line ends of any system. Blanks at the end of a line and blank lines are ignored. Text in another
  encoding is an error that names the line; so is a key that appears twice in one table of json or yaml.
- *Files must be in the folder that the user passed.* Arguments are trusted (`path`, `images=`, lists of paths, a
  DataFrame, the result of `mask_of`), the content of files is not. A name in a file, or a link in a folder, that leads
  out of that folder (by `../`, an absolute path, or a link) is an error that names the file, the name and the folder;
  `on_error='drop'` drops the image, and `allow_outside=True` reads it. The target of the path decides, not its
  spelling: an absolute path into the folder is accepted, and so is a folder that is itself a link.
- *An image has one entry.* Two entries (ids, rows, lines, xml files, names) for the same file, also through links and
  `..`, are an error that names both; `on_error='drop'` drops the image with all its entries and counts them. Copies of
  a file are different images here (`check_annotations` compares bytes).
- *An object that repeats another one of its image* in all fields (class, box, mask, points, flag, score) is kept, and
  one warning counts such objects; `check_annotations` lists them.
- *A label that appears twice on an image without boxes* counts once, and one warning counts these"""
from __future__ import annotations
import codecs, gc, json, os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
import numpy as np
import yaml
from ..arguments import brief
from .annotation import Annotation
from .errors import AnnotationError
from .image import BROKEN, brief_text, image_size, read_bytes
from .writing import check_complete
from ..warning import warn

__all__ = ['read_text', 'read_lines', 'read_json', 'read_yaml', 'size_of', 'read_all', 'find_files', 'inside_of',
           'paused_gc']

# --- text files

# the marks of UTF-32 contain those of UTF-16, so they come first
_MARKS = ((codecs.BOM_UTF8, 'utf-8'), (codecs.BOM_UTF32_LE, 'utf-32-le'), (codecs.BOM_UTF32_BE, 'utf-32-be'),
          (codecs.BOM_UTF16_LE, 'utf-16-le'), (codecs.BOM_UTF16_BE, 'utf-16-be'))

def read_text(
    file, # path of a text file: UTF-8, or as its byte order mark says
) -> str: # without the mark, with '\n' as line end
    "The text of `file`. Raises `FileNotFoundError`, and `AnnotationError` that names the line that cannot be read"
    try: data = read_bytes(file)
    except FileNotFoundError: raise
    except OSError as e: raise AnnotationError(f"{file} cannot be read as text ({e})") from e
    mark,encoding = next((o for o in _MARKS if data.startswith(o[0])), (b'', 'utf-8'))
    data = data[len(mark):]
    try: text = data.decode(encoding)
    except UnicodeDecodeError as e:
        line = data[:e.start].decode(encoding, errors='replace').count('\n') + 1
        raise AnnotationError(f"{file}, line {line}: cannot be read as text: byte {data[e.start]:#04x} is not "
                              f"{encoding.upper()}; save the file as UTF-8") from None
    if '\0' in text:
        line = text[:text.index('\0')].count('\n') + 1
        raise AnnotationError(f"{file}, line {line}: cannot be read as text: it holds a NUL character, so it is UTF-16 "
                              "without a byte order mark, or no text; save the file as UTF-8")
    return text.replace('\r\n', '\n').replace('\r', '\n')

def read_lines(
    file, # path of a text file
) -> list[tuple[int,str]]:
    "(number from 1, stripped text) of the lines of `file` that are not blank. Raises as `read_text`"
    return [(i, o.strip()) for i,o in enumerate(read_text(file).split('\n'), 1) if o.strip()]

def read_json(
    file, # path of a json file
):        # its content
    "Read a json file. Raises `AnnotationError` if it cannot be read, or a key appears twice in one object"
    try: text = read_text(file)
    except FileNotFoundError: raise AnnotationError(f"{file}: no such json file") from None
    try:
        with paused_gc(): return json.loads(text, object_pairs_hook=_table)
    except (ValueError, RecursionError) as e:
        raise AnnotationError(f"{file} is not readable json ({e}); fix the file") from e

def _table(pairs):
    res = dict(pairs)
    if len(res) < len(pairs): raise ValueError(f"the key {_repeated(k for k,_ in pairs)} appears twice in one object")
    return res

def _repeated(keys): return brief(next(k for k,n in Counter(keys).items() if n > 1))

def read_yaml(
    file, # path of a yaml file
):        # its content
    """Read a yaml file, with every scalar as text: other loaders convert a class `no` to False, and 007 to 7. Raises
    `FileNotFoundError`, and `AnnotationError` if it cannot be read or a key appears twice in one table"""
    class Loader(yaml.BaseLoader):
        def construct_mapping(self, node, deep=False):
            res = super().construct_mapping(node, deep)
            if len(res) == len(node.value): return res
            key = _repeated(self.construct_object(k) for k,_ in node.value)
            raise yaml.constructor.ConstructorError(None, None, f"the key {key} appears twice", node.start_mark)
    try: return yaml.load(read_text(file), Loader)
    except (yaml.YAMLError, RecursionError) as e:
        raise AnnotationError(f"{file} is not readable yaml ({e}); fix the file") from e

@contextmanager
def paused_gc():
    """Context without Python's garbage collector, for code that creates millions of objects without reference cycles:
    the collector visits all of them again and again, and takes longer than the rest"""
    was = gc.isenabled()
    gc.disable()
    try: yield
    finally:
        if was: gc.enable()

# --- files

def size_of(
    path,              # image file
) -> tuple[int,int]:   # (w, h) in pixels of the image as shown
    "`image_size` for readers. Raises `AnnotationError` if the file is missing or not an image"
    try: return image_size(path)
    except FileNotFoundError: why,todo = "no such image file", "fix the name or the folder"
    except BROKEN as e:
        why,todo = f"cannot be read as an image ({getattr(e, 'why', brief_text(e))})", "replace the file"
    raise AnnotationError(f"{path}: {why}; {todo}, or drop the image before reading")

def find_files(
    folder,     # where to search, with its subfolders
    suffixes,   # set of suffixes in lower case, such as {'.xml'}; those of the files may have any case
) -> list[Path]:
    """The files in and below `folder` with one of `suffixes`, sorted; empty if there are none. Hidden files and
    folders, which begin with a dot, are skipped"""
    return sorted(p for p in Path(folder).rglob('*') if p.suffix.lower() in suffixes and p.is_file() and
                  not any(o.startswith('.') for o in p.relative_to(folder).parts))

def inside_of(
    folder,                   # the folder that the user passed
    allow_outside:bool=False, # accept files outside
) -> Callable:                # (path, where='', name=None) -> path; for the message, `where` is the place of the name,
                              # such as 'x.json, image 7: ', and `name` the name there
    "A function that raises `AnnotationError` for a path that does not lead into `folder`, with links followed"
    if allow_outside: return lambda path, where='', name=None: path
    base = os.path.normcase(os.path.realpath(folder))
    def check(path, where='', name=None):
        try: real = os.path.realpath(path)
        except ValueError: return path   # a NUL: such a file does not exist, and opening it raises
        if os.path.normcase(real) == base or os.path.normcase(real).startswith(os.path.join(base, '')): return path
        link = f" is a link to {brief(real, 200)}" if name is None else f" leads to {brief(real, 200)}"
        raise AnnotationError(f"{where}{path if name is None else brief(name, 200)}{link}, outside the folder "
                              f"{folder}; copy the file there, pass a folder that holds both, or pass "
                              "allow_outside=True if you trust the data set")
    return check

# --- the loop

def read_all(
    read,                 # item -> Annotation, or `AnnotationError`
    items,                # one item per image
    on_error:str='raise', # 'raise' at the first error, or 'drop' such images, with one warning that counts them
    entry=None,           # item -> its name in messages, such as 'x.json, image 7'; None (default): path of its image
) -> list[Annotation]:    # in the order of `items`
    """`read` all `items`, in threads, since it opens files: the loop of all readers. Duplicates are treated as
    described at the top of this module. Raises `AnnotationError`, also after an interrupted writer"""
    if on_error not in ('raise', 'drop'): raise ValueError(f"on_error is 'raise' or 'drop', not {on_error!r}")
    items = list(items)
    def attempt(item):
        try: a = read(item)
        except AnnotationError as e:
            if on_error == 'raise': raise
            return e,None,0
        return *_repeats(a),_file_id(a.path)
    with paused_gc(), ThreadPoolExecutor() as ex: found = list(ex.map(attempt, items))
    check_complete(*{Path(a.path).parent for a,*_ in found if isinstance(a, Annotation) and a.path is not None})
    res,repeats = [o[0] for o in found],[o[1] for o in found]
    for idxs,e in _shared(found, items, entry):
        if on_error == 'raise': raise e
        for i in idxs: res[i],repeats[i] = e,0
    _warn_of_repeats(res, repeats)
    good = [o for o in res if not isinstance(o, AnnotationError)]
    bad = list({id(o): o for o in res if isinstance(o, AnnotationError)}.values())   # one error for several entries
    if bad:
        more = f"; and {len(bad)-3} more" if len(bad) > 3 else ''
        warn(f"{len(bad)} of {len(good)+len(bad)} images are dropped: {'; '.join(map(str, bad[:3]))}{more}")
    return good

def _file_id(path):
    "A key that is equal for two paths of the same file"
    try: s = os.stat(path)
    except (OSError, TypeError): return path and os.path.realpath(path)
    return (s.st_dev, s.st_ino) if s.st_ino else os.path.realpath(path)

def _shared(found, items, entry):
    "(indices, error) for every image file that several items refer to"
    owners = {}
    for i,(_,_,key) in enumerate(found):
        if key: owners.setdefault(key, []).append(i)
    for idxs in owners.values():
        if len(idxs) == 1: continue
        paths = [str(found[i][0].path) for i in idxs]
        names = [entry(items[i]) for i in idxs[:3]] if entry else paths[:3]
        if len({*paths}) > 1 and entry: names = [f"{n} ({p})" for n,p in zip(names, paths)]
        more = f" and {len(idxs)-3} more" if len(idxs) > 3 else ''
        yield idxs,AnnotationError(f"{' and '.join(names)}{more} are the same image file, "
                                   f"{os.path.realpath(paths[0])}; an image must have one entry: keep one, with all "
                                   "objects")

def _repeats(a):
    "`a`, with unique labels if it has no boxes; number of its objects or labels that repeat another"
    if a.bboxes is None:
        labels = list(dict.fromkeys(a.labels))
        return (a,0) if len(labels) == len(a.labels) else (replace(a, labels=labels),len(a.labels) - len(labels))
    n = len(a.labels)
    # most objects differ in class or box: then masks and points need not be compared
    if len({*zip(a.labels, map(bytes, a.bboxes))}) == n: return a,0
    return a,n - len({_object_key(a, i) for i in range(n)})

def _object_key(a, i):
    fields = [getattr(a, k) for k in ('bboxes', 'points', 'visible', 'ignore', 'scores')]
    mask = None if a.masks is None else _mask_key(a.masks[i])
    return a.labels[i],mask,*(bytes(v[i]) for v in fields if v is not None)

def _mask_key(m):
    if isinstance(m, np.ndarray): return m.shape,m.tobytes()
    if isinstance(m, dict): return repr(m['size']),repr(m['counts'])
    return repr([np.asarray(p).tolist() for p in m])

def _warn_of_repeats(res, repeats):
    for boxed,what,todo in ((True, 'objects', "they are kept, and count twice in losses and metrics"),
                            (False, 'labels', "each counts once")):
        some = [(a, n) for a,n in zip(res, repeats) if n and (a.bboxes is not None) == boxed]
        if not some: continue
        warn(f"{what} that repeat another of the same image: {sum(n for _,n in some)} in {len(some)} images, "
             f"the first in {some[0][0].path}; {todo}")
