"""Atomic writing: a file, or a data set of several files, is replaced completely or not at all, and no two inputs are
written to the same file.

A data set of several files is written under temporary names, flushed to disk, and renamed at the end. While its files
are renamed, each of their folders has a file `.incomplete`. If the process is killed before, the old set remains;
after, the new set; in between, `check_complete` and the readers raise"""
from __future__ import annotations
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
import errno, json, os, re, shutil, time
from pathlib import Path
from uuid import uuid4
try: import fcntl
except ImportError: fcntl = None   # Windows
from .errors import AnnotationError

__all__ = ['replacing', 'writing_set', 'check_complete', 'remove_leftovers', 'check_outputs', 'check_once',
           'link_or_copy']

MARKER = '.incomplete'   # in each folder of a set while its files are renamed; their names as json

# --- one file

@contextmanager
def replacing(
    path,           # file to write; its folder is created if missing
    tidy:bool=True, # remove temporary files of killed writers of `path`; this lists the folder
):                  # path of an empty temporary file in the same folder, to write to
    """Context that writes `path` completely or not at all: the temporary file is flushed to disk and renamed at the
    end. If the process is killed, the block raises or the disk is full, the old file is unchanged; an error removes the
    temporary file, and an `OSError` names `path`. Links are followed, and the mode of the old file is kept"""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():   # /dev/stdout or a pipe is written, not replaced
        yield path
        return
    with ExitStack() as after:
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_target(path)
            if tidy: remove_leftovers(path.parent, path)
            part = after.enter_context(_locked_part(path))
        with _naming(path, part):
            yield part
            _flush(part)
            if path.exists(): shutil.copymode(path, part)
            os.replace(part, path)

def _part_name(path, key, suffix):   # hidden, with a suffix that readers skip; cut, since a name has at most 255 bytes
    return path.with_name(f'.{path.name[:40]}.{key}.{suffix}')

@contextmanager
def _locked_part(path):
    "A temporary file beside `path`, locked while this process lives, which marks it as in use"
    for _ in range(100):
        part = _part_name(path, uuid4().hex[:12], 'part')
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl is None: os.close(fd)   # Windows cannot rename an open file
        try:
            # another process may have removed it before it was locked
            if fcntl is not None and _lock(fd, wait=True) and not os.fstat(fd).st_nlink: continue
            yield part
            return
        finally:
            with suppress(OSError): part.unlink()
            if fcntl is not None: os.close(fd)
    raise OSError(errno.EBUSY, f"another process removes the temporary files beside {path}")

def remove_leftovers(
    folder,    # where to search
    path=None, # remove only temporary files of this file; None (default): of all files
):
    "Remove the temporary files of killed writers; those of live writers are locked, and remain"
    if fcntl is None: return
    begin = None if path is None else f'.{Path(path).name[:40]}.'
    with os.scandir(folder) as names: found = [o.path for o in names if _is_part(o.name, begin)]
    for o in found:
        with suppress(OSError), _opened(o) as fd:
            if _lock(fd): os.unlink(o)

def _is_part(name, begin):
    return (begin is None or name.startswith(begin)) and re.fullmatch(r'\..{1,40}\.[0-9a-f]{12}\.part', name, re.S)

@contextmanager
def _opened(path):
    fd = os.open(path, os.O_RDONLY)
    try: yield fd
    finally: os.close(fd)

def _lock(fd, wait=False):
    "Whether `fd` could be locked; also False in a file system without locks"
    try: fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError: return False
    return True

@contextmanager
def _alone(folder):
    "Context that only one process enters for `folder`; whether the file system supports locks"
    with _opened(folder) as fd:
        alone = _lock(fd, wait=True)
        try: yield alone
        finally:   # `close` is not enough: a process forked meanwhile also holds the lock
            if alone: fcntl.flock(fd, fcntl.LOCK_UN)

def _check_target(path):
    if path.is_dir(): raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if path.exists() and not os.access(path, os.W_OK): raise PermissionError(errno.EACCES, "it is read-only")

def _flush(file):
    with open(file, 'rb+') as f: os.fsync(f.fileno())

def _flush_folder(folder):
    "Flush the names in `folder` to disk, if the system supports it"
    if os.name == 'nt': return
    with suppress(OSError), _opened(folder) as fd: os.fsync(fd)

@contextmanager
def _naming(path, part=None):
    "Context whose errors name `path` instead of its temporary file `part`"
    try: yield
    except OSError as e: raise _named(e, path, e.strerror if e.filename in (None, str(part)) else e) from e
    except UnicodeEncodeError as e:
        raise ValueError(f"{path} cannot be written: {e}; rename the file or label that holds it") from e

def _named(e, path, why):
    "An error of the type of `e` with a message that begins with `path`"
    there = "; the old file is unchanged" if path.is_file() else ''
    res = type(e)(f"{path} cannot be written ({why or e}){there}")
    res.errno = e.errno
    return res

# --- several files

@contextmanager
def writing_set(
    folders, # all folders that get files; created if missing
):           # function: path in one of them -> context that writes that file, as `replacing`
    """Context that writes several files, all or none: they are renamed at its end, in the order in which they were
    written. An error in the block leaves all old files unchanged, and no new ones. If the process is killed, or an
    error occurs, while files are renamed, the marker `.incomplete` remains in `folders`, and `check_complete` raises.

    The new set needs disk space beside the old one until it is complete. Files that are not written again are kept.
    Raises `AnnotationError` if an earlier writer was interrupted, and files that it may have replaced are not written
    again. Two processes take turns if the first of their sorted folders is the same and the system supports locks"""
    folders = sorted({Path(o).absolute() for o in folders})
    if not folders:
        yield None
        return
    for o in folders:
        with _naming(o): o.mkdir(parents=True, exist_ok=True)
    with ExitStack() as after:
        alone = fcntl is not None and after.enter_context(_alone(folders[0]))
        files = _Set(folders)
        try:
            if alone: files.remove_leftovers()
            yield files.write
            files.rename()
        finally: files.remove_staged()

class _Set:
    "The files of a set, under temporary names until `rename`"
    def __init__(self, folders):
        self.folders,self.key,self.numbers = folders,uuid4().hex[:12],count()
        self.staged,self.by_folder = {},{o: [] for o in folders}   # {temporary file: target}, {folder: names}

    @contextmanager
    def write(self, path):
        "Context that writes `path` under a temporary name"
        path = Path(path).absolute()
        assert path.parent in self.by_folder, path
        target = Path(os.path.realpath(path))
        part = _part_name(target, f'{self.key}-{next(self.numbers)}', 'staged')
        with _naming(target, part):
            _check_target(target)
            self.staged[part] = target
            self.by_folder[path.parent].append(path.name)
            yield part

    def rename(self):
        "Flush all files to disk, then rename them, with the marker in their folders meanwhile"
        self.check_interrupted()
        # in threads, since a disk flushes many files together: three to four times as fast as one by one
        with ThreadPoolExecutor(16) as ex: list(ex.map(self.flush, list(self.staged)))
        marked = self.mark()
        for part,target in list(self.staged.items()):
            try: os.replace(part, target)
            except OSError as e:
                raise type(e)(e.errno, f"{target} cannot be written ({e.strerror or e}), after other files of its set "
                                       "were; the set is incomplete: write it again") from e
            del self.staged[part]
        for o in marked: _flush_folder(o.parent)
        for o in marked: o.unlink()

    def flush(self, part):
        if part.stat().st_nlink > 1: return   # a link to a file that is already on disk
        target = self.staged[part]
        with _naming(target, part):
            _flush(part)
            if target.exists(): shutil.copymode(target, part)

    def check_interrupted(self):
        "Raise if an earlier writer was interrupted, and a file that it may have replaced is not written again"
        for folder,names in self.by_folder.items():
            _,before = _read_marker(folder)
            lost = [folder/o for o in sorted({*before} - {*names}) if names and os.path.lexists(folder/o)]
            if lost: raise AnnotationError(f"a writer was interrupted in {folder}, and {len(lost)} of its files, old "
                                           f"or new, would remain among those written now; the first is {lost[0]}. "
                                           "Delete them, or write them too; nothing was written")

    def mark(self):   # -> the markers
        "Write the marker into each folder that gets files, or into none"
        mine,marked = [],[o/MARKER for o,names in self.by_folder.items() if names]
        try:
            for o in marked:
                if not os.path.lexists(o): mine.append(o)
                data = dict(lock=os.path.relpath(self.folders[0], o.parent), names=self.by_folder[o.parent])
                with replacing(o) as part: part.write_text(json.dumps(data), encoding='utf-8')
            for o in marked: _flush_folder(o.parent)
        except BaseException:
            for o in mine:
                with suppress(OSError): o.unlink()
            raise
        return marked

    def remove_leftovers(self):
        "Remove the temporary files of killed writers of sets; the lock guarantees that none is alive"
        for folder in self.folders:
            with os.scandir(folder) as names:
                found = [o.path for o in names if re.fullmatch(r'\..{1,40}\.[0-9a-f]{12}-\d+\.staged', o.name, re.S)]
            for o in found:
                with suppress(OSError): os.unlink(o)

    def remove_staged(self):
        for part in self.staged:
            with suppress(OSError): part.unlink()

def check_complete(
    *folders, # folders of a data set; those that do not exist are complete
):
    """Raise `AnnotationError` if a writer was interrupted while it replaced the files of one of `folders`. Wait up to a
    minute for a writer that is still running"""
    for o in sorted({*map(Path, folders)}):
        if os.path.lexists(o/MARKER) and not _finishes(o):
            raise AnnotationError(f"a writer was interrupted in {o}, whose files may belong to an old and a new set; "
                                  f"write the set again, or delete {o/MARKER} if you know that the files are good")

def _read_marker(folder):   # -> the folder that a live writer has locked, or None; the names of its files
    try: data = json.loads((folder/MARKER).read_text(encoding='utf-8'))
    except (OSError, ValueError): return None,[]   # missing, or written by hand
    return (folder/data['lock'],data['names']) if isinstance(data, dict) and {*data} >= {'lock', 'names'} else (None,[])

def _finishes(folder):
    "Wait for the writer of `folder`, if it is alive; whether the marker is gone"
    lock,_ = _read_marker(folder)
    end = time.monotonic() + 60
    with suppress(OSError):
        while lock and fcntl is not None and time.monotonic() < end:
            with _opened(lock) as fd:
                if _lock(fd): break
            time.sleep(.02)
    return not os.path.lexists(folder/MARKER)

# --- checks before writing

def check_outputs(
    files,            # paths to write, one for each of `sources`
    sources,          # paths of their inputs
    keep=(),          # more paths that must not be replaced
    todo:str="rename one", # advice in the message about two inputs of one file
):
    "Raise `AnnotationError` if two of `sources` would be written to one file, or a file would replace a source"
    owners,taken = {},{_place(o) for o in (*sources, *keep)}
    for file,source in zip(files, sources):
        place = _place(file)
        if place in owners: raise AnnotationError(f"{source} and {owners[place]} would both become {file}; {todo}; "
                                                  "nothing was written")
        if place in taken: raise AnnotationError(f"{file} is an image or mask of these annotations, and the output for "
                                                 f"{source} would replace it; choose another folder; nothing was "
                                                 "written")
        owners[place] = source

def check_once(
    annotations,      # list[Annotation] with paths
):
    "Raise `AnnotationError` if two annotations have the same image file, which a format stores once"
    owners = {}
    for i,a in enumerate(annotations):
        j = owners.setdefault(os.path.normcase(os.path.abspath(a.path)), i)
        if i != j: raise AnnotationError(f"{a.path} appears twice, in annotations {j} and {i}; merge its objects into "
                                         "one annotation, or drop one; nothing was written")

def _place(path): return os.path.normcase(os.path.realpath(path))

def link_or_copy(
    source, # file
    dest,   # path of the new file
):
    "Make `dest` a hard link to `source`, or a copy where it is on another disk, or one that has no links"
    try: os.link(source, dest)
    except OSError: shutil.copyfile(source, dest)
