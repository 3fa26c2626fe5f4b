"""What all readers share: text files, the size of an image file, the loop over the images of a data set, and one rule
for what appears twice.

- *Text.* Lists, tables, yaml, json and label files are UTF-8, or what their byte order mark says (UTF-8, UTF-16 or
  UTF-32), with the line ends of any system. Blanks at the end of a line and blank lines mean nothing. Text in another
  encoding is an error that names the line, and so is a key of json or yaml that appears twice in one table.
- *Files lie in the folder that was named.* What a user passes as an argument is trusted (`path`, `images=`, lists of
  paths, a DataFrame, what `mask_of` returns); what a file says is not. A name in a file, or a link in a folder, that
  leads out of the folder that the user named (by `../`, an absolute path, or a link to elsewhere) is an
  error that names the file, the name and the folder, and `on_error='drop'` drops the image; `allow_outside=True` reads
  it. Where the path leads decides, not how it is written: an absolute path into the folder is fine, and so is a folder
  that is itself a link.
- *An image has one entry.* Two entries (ids, rows, lines, xml files, names) that lead to the same file, through links
  and `..` too, are an error that names both; `on_error='drop'` drops the image with all its entries and counts them.
  Copies of a file are two images here (`check_annotations` compares bytes).
- *An object that repeats another of its image* in everything (class, box, mask, points, flag, score) is kept, as the
  file has it, and one warning counts such objects; `check_annotations` lists them.
- *A label that an image without boxes has twice* counts once, and one warning counts these"""
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

# the marks of UTF-32 begin with those of UTF-16, or end with them: they come first
_MARKS = ((codecs.BOM_UTF8, 'utf-8'), (codecs.BOM_UTF32_LE, 'utf-32-le'), (codecs.BOM_UTF32_BE, 'utf-32-be'),
          (codecs.BOM_UTF16_LE, 'utf-16-le'), (codecs.BOM_UTF16_BE, 'utf-16-be'))

def read_text(
    file, # text file: UTF-8, or as its byte order mark says
) -> str: # without the mark, with '\n' at the end of lines
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

def read_lines(file) -> list[tuple[int,str]]:
    "(number, counted from 1; text without blanks at its ends) of the lines of `file` that are not blank"
    return [(i, o.strip()) for i,o in enumerate(read_text(file).split('\n'), 1) if o.strip()]

def read_json(file):
    "What a json file holds; `AnnotationError` where it cannot be read, or a key appears twice in one object"
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

def read_yaml(file):
    """What a yaml file holds, every scalar as the text that it is: other loaders make False of a class `no`, and 7 of
    007. Raises `FileNotFoundError`, and `AnnotationError` where it cannot be read or one table has a key twice"""
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
    """A block that makes millions of objects without Python's search for reference cycles, of which there are none: the
    search looks at all objects again and again, and takes longer than the rest"""
    was = gc.isenabled()
    gc.disable()
    try: yield
    finally:
        if was: gc.enable()

# --- files

def size_of(path) -> tuple[int,int]:
    "`image_size` for readers: a file that is missing or no image is an `AnnotationError`"
    try: return image_size(path)
    except FileNotFoundError: why,todo = "no such image file", "fix the name or the folder"
    except BROKEN as e:
        why,todo = f"cannot be read as an image ({getattr(e, 'why', brief_text(e))})", "replace the file"
    raise AnnotationError(f"{path}: {why}; {todo}, or drop the image before reading")

def find_files(folder, suffixes) -> list[Path]:
    """The files in and below `folder` with one of `suffixes` (lower case; the files' own may have any case), sorted.
    What begins with a dot is skipped, be it a file or a folder: systems and editors leave such"""
    return sorted(p for p in Path(folder).rglob('*') if p.suffix.lower() in suffixes and p.is_file() and
                  not any(o.startswith('.') for o in p.relative_to(folder).parts))

def inside_of(
    folder,                   # the folder that the user named
    allow_outside:bool=False, # whether files elsewhere are read too
) -> Callable:                # (path, where='', name=None) -> path; for the message, `where` says what names it,
                              # such as 'x.json, image 7: ', and `name` how
    "A check that paths lead into `folder`, links followed: a function that raises `AnnotationError` where one does not"
    if allow_outside: return lambda path, where='', name=None: path
    base = os.path.normcase(os.path.realpath(folder))
    def check(path, where='', name=None):
        try: real = os.path.realpath(path)
        except ValueError: return path   # a NUL: no file has such a name, and whoever opens it says so
        if os.path.normcase(real) == base or os.path.normcase(real).startswith(os.path.join(base, '')): return path
        link = f" is a link to {brief(real, 200)}" if name is None else f" leads to {brief(real, 200)}"
        raise AnnotationError(f"{where}{path if name is None else brief(name, 200)}{link}, outside the folder "
                              f"{folder}; copy the file there, name a folder that holds both, or pass "
                              "allow_outside=True if you trust the data set")
    return check

# --- the loop

def read_all(
    read,                 # item -> Annotation, or `AnnotationError`
    items,                # what there is to read, one item an image
    on_error:str='raise', # 'raise': the first error ends the reading; 'drop': one warning counts the images dropped
    entry=None,           # item -> what the file calls it, such as 'x.json, image 7'; None = the path of its image
) -> list[Annotation]:    # in the order of `items`
    """`read` each of `items`, in threads, for the files that it opens: the loop that all readers share. What appears
    twice is treated as the top of this module says; images in a folder whose writer was interrupted are an error"""
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
    bad = list({id(o): o for o in res if isinstance(o, AnnotationError)}.values())   # several entries, one error
    if bad:
        more = f"; and {len(bad)-3} more" if len(bad) > 3 else ''
        warn(f"{len(bad)} of {len(good)+len(bad)} images are dropped: {'; '.join(map(str, bad[:3]))}{more}")
    return good

def _file_id(path):
    "What is equal for two paths of the same file"
    try: s = os.stat(path)
    except (OSError, TypeError): return path and os.path.realpath(path)
    return (s.st_dev, s.st_ino) if s.st_ino else os.path.realpath(path)

def _shared(found, items, entry):
    "(indices, error) for every image file that several items lead to"
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
                                   f"{os.path.realpath(paths[0])}; an image has one entry: keep one, and put all "
                                   "objects there")

def _repeats(a):
    "`a`, without boxes each label once; how many of its objects or labels repeat another"
    if a.bboxes is None:
        labels = list(dict.fromkeys(a.labels))
        return (a,0) if len(labels) == len(a.labels) else (replace(a, labels=labels),len(a.labels) - len(labels))
    n = len(a.labels)
    # most objects differ in class or box: then there is no need to look at masks and points
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
    for boxed,what,todo in ((True, 'objects', "they are kept, and count twice in losses and scores"),
                            (False, 'labels', "each counts once")):
        some = [(a, n) for a,n in zip(res, repeats) if n and (a.bboxes is not None) == boxed]
        if not some: continue
        warn(f"{what} that repeat another of the same image: {sum(n for _,n in some)} in {len(some)} images, "
             f"the first in {some[0][0].path}; {todo}")
