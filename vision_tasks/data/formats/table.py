"Tables: a csv file or DataFrame with one row an image, or one row a box"
from __future__ import annotations
from collections import Counter
from contextlib import contextmanager
import posixpath, re
from functools import partial
from pathlib import Path
import numpy as np
import pandas as pd
from ...arguments import COLUMN, FLAG, PATH, Kind, brief, checked, choice, either, nearest, several
from ..annotation import Annotation
from ..errors import AnnotationError
from ..reading import inside_of, read_all, size_of
from ...warning import warn
from .cells import LISTLIKE, as_numbers, is_empty, load_csv, names_of, numbers_of, split_of, text_of

__all__ = ['read_df', 'write_df']

_TABLE  = either(Kind("a DataFrame", lambda o: hasattr(o, 'iloc') and hasattr(o, 'columns')), PATH)
_COLUMNS = several(COLUMN, "a list of columns", least=1)
_POINTS = several(either(COLUMN, several(COLUMN, "(x, y) columns", n=2)), "a list of columns, or of (x, y) columns",
                  least=1)
_FORMAT = choice('xyxy', 'xywh', 'cxcywh')
_DELIM  = Kind("a text that separates labels, or None where a cell is one label",
               lambda o: isinstance(o, str) and bool(o))

@checked(df=_TABLE, fn_col=COLUMN, label_col=either(COLUMN, _COLUMNS), label_delim=_DELIM, point_cols=_POINTS,
         bbox_cols=several(COLUMN, "four columns", n=4), valid_col=COLUMN, group_col=COLUMN, bbox_format=_FORMAT,
         relative=FLAG)
def read_df(
    df,                   # DataFrame, or the path of a csv file
    path='.',             # folder that the file names are relative to; for a csv file '.' is the folder that it lies in
    fn_col=0,             # column of the file names; columns are named, or counted from 0
    label_col=None,       # column of the labels, or a list of columns of 0 and 1, one per label; None = no labels
    label_delim:str=None, # what stands between several labels of a cell, ' ' = any white space; None = a cell is one
    bbox_cols=None,       # four columns of a box, in the order of `bbox_format`: a row is a box
    point_cols=None,      # columns x, y, x, y, ... in pixels, or a list of (x, y) columns; an empty cell is a point
                          # that is not marked
    valid_col=None,       # column of the split: true or 1 = valid, or the words train, valid (or val), test
    group_col=None,       # column of what must not stand on both sides of a split
    on_error:str='raise', # 'raise' `AnnotationError` at the first row that cannot be read, or 'drop' such images and
                          # count them
    bbox_format:str='xyxy', # 'xyxy': x1, y1, x2, y2, 0-based, right and bottom edge exclusive; 'xywh': x1, y1, width,
                          # height; 'cxcywh': centre, width, height
    allow_outside:bool=False, # whether a csv file may name image files outside `path` (../, absolute, links); a
                          # DataFrame, which is your own, always may
    relative:bool=False,  # whether boxes and points are fractions of the image's width and height, not pixels
) -> list[Annotation]:    # in the order of the rows, images with several boxes where they first occur
    """Annotations of a table. An empty label cell is an image without labels; with `bbox_cols`, a row without box and
    label is an image without objects. Names that are numbers become their text. Rows are counted from 0, without the
    header. Of a csv file, names of columns and cells lose the blanks at their ends, and rows without text are skipped.

    A label cell may hold a list, tuple, set or array of names, or the text of a list as Python or json write it; cells
    of other kinds are errors. A label twice in one cell counts once, in a counted warning. Also warned of: names with
    `[`, `|`, `;` or `,` in them, and a vocabulary most of which occurs once, for both come from cells that were not
    taken apart. A `label_delim` that no cell has, while a cell has another of `,`, `;`, `|`, is an error.

    Raises `AnnotationError` with the row, `ValueError` for arguments that do not fit together"""
    path,from_csv = Path(path),not isinstance(df, pd.DataFrame)
    naming = partial(_naming, df if from_csv else None)
    if from_csv:
        if path == Path('.'): path = Path(df).parent
        df = load_csv(df)
    blank = set(np.flatnonzero((df == '').all(axis=1))) if from_csv else ()   # what spreadsheets write below a table
    if label_delim is not None and label_col is None:
        raise ValueError("label_delim separates the labels of label_col, which is None; name the column")
    with naming():
        if not len(df): raise AnnotationError("the table has no rows")
        points = point_cols
        if points is not None: points = [c for o in points for c in (o if isinstance(o, (tuple, list)) else [o])]
        one_hot = isinstance(label_col, (list, tuple))
        wanted = [fn_col, *(label_col if one_hot else [] if label_col is None else [label_col]), *(bbox_cols or []),
                  *(points or []), *(o for o in (valid_col, group_col) if o is not None)]
        _check_columns(df, wanted)
        if bbox_cols is not None and one_hot:
            raise ValueError("bbox_cols goes with one column label_col, for each row is a box with one label")
        if points is not None and len(points) % 2:
            raise ValueError(f"point_cols names {len(points)} columns, but points come as pairs x, y")
        col  = lambda c: None if c is None else df[_name(df, c)].tolist()
        part = lambda cs: None if cs is None else df[[_name(df, c) for c in cs]]
        cells = lambda cs: None if cs is None else _cells(part(cs))
        if from_csv:
            for c in {_name(df, c) for c in [*(label_col if one_hot else []), *(bbox_cols or []), *(points or [])]}:
                df[c] = as_numbers(df[c])
        cols = dict(format=bbox_format, relative=relative, file=col(fn_col), label=None if one_hot else col(label_col),
                    hot=part(label_col) if one_hot else None, bbox=cells(bbox_cols), points=cells(points),
                    split=col(valid_col), group=col(group_col), delim=label_delim, path=path)
        if bbox_cols is not None: cols['no_bbox'] = part(bbox_cols).isna().all(axis=1).tolist()
        if label_delim is not None and not one_hot: _check_delim(cols['label'], label_delim)
        rows = {}
        for i,f in enumerate(cols['file']):
            # ./a.png and a.png are one file
            if i not in blank: rows.setdefault(None if is_empty(f) else posixpath.normpath(str(f).strip()), []).append(i)
        if not rows: raise AnnotationError("the table has no rows")
        cols['inside'] = inside_of(path, allow_outside or not from_csv)
    def read(o):
        with naming(): return _read(o[0], o[1], cols)
    anns = read_all(read, rows.items(), on_error, lambda o: f"row {o[1][0]}")
    if label_col is not None and not one_hot: _warn_of_names(anns)
    return anns

@contextmanager
def _naming(file):
    "Errors that name the csv `file`; None: a DataFrame has no name"
    try: yield
    except AnnotationError as e:
        if file is None or str(file) in str(e): raise
        raise AnnotationError(f"{file}: {e}") from e

def _check_delim(cells, delim):
    "Raise where `delim` occurs in no cell, and another delimiter does"
    texts = [(i, o) for i,o in enumerate(cells) if isinstance(o, str)]
    if any(delim in o.strip() for _,o in texts): return
    for i,o in texts:
        other = next((d for d in ',;|\t' if d in o.strip() and not LISTLIKE.fullmatch(o.strip())), None)
        if other: raise AnnotationError(f"label_delim {delim!r} occurs in no cell, but row {i} holds {brief(o)}; "
                                        f"expected label_delim={other!r}, or None where a cell is one label")

def _warn_of_names(anns):
    "Warn of names that look like several"
    # of images, not of objects: a name with ten boxes in one image occurs once
    counts = Counter(o for a in anns for o in set(a.labels))
    odd,once = [o for o in counts if set(o) & set('[|;,')],[o for o,n in counts.items() if n == 1]
    if odd: what = f"{len(odd)} of {len(counts)} names have one of [ | ; , in them, {brief(odd[0])} for one"
    elif len(counts) > 3 and 2*len(once) > len(counts):
        what = f"{len(once)} of {len(counts)} names occur in one image only, {brief(once[0])} for one"
    else: return
    warn(f"{what}; if these are several labels in one cell, say with label_delim= what separates them")

def _cells(df):
    "An array, whose rows are found at once, those of a DataFrame not; of numbers where all cells are"
    for c in df.columns:
        if df[c].dtype == bool or df[c].dtype == object and any(isinstance(o, (bool, np.bool_)) for o in df[c]):
            raise AnnotationError(f"column {brief(c)} holds True or False; expected pixels of boxes or points; name "
                                  "another column, or fix the cell")
    try: return df.to_numpy(dtype=np.float64)
    except (TypeError, ValueError): return df.to_numpy(dtype=object)

def _name(df, c): return df.columns[c] if isinstance(c, int) and c not in df.columns else c

def _check_columns(df, wanted):
    gone = [c for c in wanted if (c not in df.columns and not (isinstance(c, int) and 0 <= c < len(df.columns)))]
    if gone:
        more = f", nor {gone[1:]}" if gone[1:] else ''
        raise AnnotationError(f"the table has no column {brief(gone[0])}{more}; its columns are "
                              f"{brief(list(df.columns), 400)}" + nearest(gone[0], df.columns))
    twice = [c for c in wanted if c in df.columns and list(df.columns).count(c) > 1]
    if twice: raise AnnotationError(f"{brief(twice[0])} is the name of two columns; rename one")

def _read(name, idxs, c):
    "The annotation of the rows `idxs`, which are about one file"
    where = f"row {idxs[0]}, {name}"
    if name is None: raise AnnotationError(f"row {idxs[0]}: no file name")
    if c['bbox'] is None and len(idxs) > 1:
        raise AnnotationError(f"{name} has two rows, {idxs[0]} and {idxs[1]}; one picture is one row, "
                              "unless bbox_cols says that a row is a box")
    file = c['inside'](c['path']/name, f"row {idxs[0]}: ", name)
    try: size = size_of(file)
    except AnnotationError as e: raise AnnotationError(f"row {idxs[0]}: {e}") from None
    kw = dict(split=_same(where, 'split', idxs, c['split'], split_of),
              group=_same(where, 'group', idxs, c['group'], lambda where,o: text_of(o, where)))
    points = c['points']
    if c['bbox'] is None:
        labels = _labels(where, idxs[0], c)
        if points is not None: kw['points'] = _points(where, points[idxs[0]], size, c)
    else:
        blank = lambda i: c['no_bbox'][i] and (c['label'] is None or is_empty(c['label'][i]))
        idxs = [i for i in idxs if not blank(i)]
        labels = [_box_label(i, name, c) for i in idxs]
        kw['bboxes'] = np.array([_bbox(i, name, c['bbox'][i], size, c) for i in idxs], dtype=np.float32).reshape(-1, 4)
        if points is not None:
            rows = [_points(f"row {i}, {name}", points[i], size, c) for i in idxs]
            kw['points'] = np.array(rows).reshape(len(idxs), points.shape[1]//2, 2)
    try: return Annotation(file, size, labels, **kw)
    except AnnotationError as e: raise AnnotationError(f"row {idxs[0] if idxs else '?'}: {e}") from None

def _same(where, what, idxs, values, read):
    "The one value that the rows of a file have, or None"
    if values is None: return None
    res = {None if is_empty(values[i]) else read(where, values[i]) for i in idxs}
    if len(res) > 1:
        raise AnnotationError(f"{where}: its rows name several {what}s: {brief(sorted(map(str, res)))}; an image "
                              "has one")
    return res.pop()

def _labels(where, i, c):
    "The labels of a row without a box"
    if c['hot'] is not None:
        row = c['hot'].iloc[i]
        for k,v in row.items():
            if is_empty(v) or not np.isscalar(v) or not (v == 0 or v == 1):
                raise AnnotationError(f"{where}: column {brief(k)} is {brief(v)}; a one-hot column holds 0 and 1")
        return [str(k) for k,v in row.items() if v == 1]
    if c['label'] is None: return []
    labels = names_of(c['label'][i], where, c['delim'])
    if '' in labels: raise AnnotationError(f"{where}: an empty label in {brief(c['label'][i])}; fix the cell")
    return labels

def _box_label(i, name, c):
    if c['label'] is None: return 'object'
    if is_empty(c['label'][i]):
        raise AnnotationError(f"row {i}, {name}: a box without a label; name it, "
                              "or empty its box columns too for an image without objects")
    names = names_of(c['label'][i], f"row {i}, {name}", None)
    if len(names) == 1: return names[0]
    raise AnnotationError(f"row {i}, {name}: {len(names)} labels, {brief(names)}; a box has one")

_TO_XYXY = dict(xyxy=lambda a,b,c,d: (a, b, c, d), xywh=lambda x,y,w,h: (x, y, x+w, y+h),
                cxcywh=lambda x,y,w,h: (x-w/2, y-h/2, x+w/2, y+h/2))

def _bbox(i, name, row, size, c):   # -> x1 y1 x2 y2 in pixels
    where,b = f"row {i}, {name}",numbers_of(f"row {i}, {name}", row)
    if np.isnan(b).any():
        raise AnnotationError(f"{where}: the box {brief(row.tolist())} lacks a number; fix it, "
                              "or empty all four and the label for an image without objects")
    if c['format'] != 'xyxy' and min(b[2:]) < 0:
        raise AnnotationError(f"{where}: expected width and height of 0 or more, got {b.tolist()}; "
                              f"is bbox_format {c['format']!r} right?")
    if c['format'] == 'xyxy' and (b[0] > b[2] or b[1] > b[3]):
        raise AnnotationError(f"{where}: expected x1 <= x2 and y1 <= y2, got {b.tolist()}; "
                              "bbox_format='xywh' reads columns x1, y1, width and height, 'cxcywh' those of the centre")
    return np.array(_TO_XYXY[c['format']](*_pixels(where, b, size, c)))

def _points(where, row, size, c): return _pixels(where, numbers_of(where, row), size, c).reshape(-1, 2)   # in pixels

def _pixels(where, v, size, c):   # v: x, y, x, y, ... or x, y, width, height
    "`v` in pixels: as it is, or fractions times the image's size"
    if not c['relative']: return v
    # boxes and points may reach outside; pixels lie farther
    if (np.abs(v) > 2).any():
        raise AnnotationError(f"{where}: expected fractions of the image, about 0 to 1, got {brief(v.tolist())}; "
                              "relative=False reads pixels")
    return v*np.tile(size, len(v)//2)

@checked()
def write_df(annotations, path=None):
    """A DataFrame that `read_df` reads back, but for scores: columns fname (relative to `path` where that is given),
    then labels, or with boxes one row a box with label, x1, y1, x2, y2; points as x_0, y_0, x_1, ...; scores, or score
    of each box; is_valid or split; group. Labels are joined by a blank, or by ';' where a name has one. Objects to
    ignore are an error; `visible`, `masks` and `mask` have no place in a table.

    So are labels and groups that begin with = + - or @ and are no numbers, which a spreadsheet that opens the csv file
    would run as formulas, and those that `read_df` would read as something else ('[1]' as a list). A file name that
    begins so gets ./ in front, which `read_df` takes away"""
    boxes = any(a.bboxes is not None for a in annotations)
    if boxes and any(a.bboxes is None for a in annotations):
        raise AnnotationError("some annotations have boxes and some have None; a table holds one kind: write two")
    delim = ';' if any(len(o.split()) != 1 for a in annotations for o in a.labels) else ' '
    rows = []
    for a in annotations:
        if a.path is None:
            raise AnnotationError("an annotation without a file has no row: save its picture and set `path`")
        if a.ignore is not None and a.ignore.any():
            raise AnnotationError(f"{a.path}: a table has no objects to ignore, and would make ordinary ones of them; "
                                  "leave them out (`select_objects`), or use `write_coco` or `write_voc`")
        try: row = dict(fname=str(a.path if path is None else a.path.relative_to(path)))
        except ValueError:
            raise AnnotationError(f"{a.path} does not lie in path={str(path)!r}, from which the file names start; "
                                  "name a folder that holds all images") from None
        if row['fname'] != row['fname'].strip():
            raise AnnotationError(f"{a.path}: the file name begins or ends blank, and would not be read back; "
                                  "rename it")
        if row['fname'][0] in _FORMULA: row['fname'] = f"./{row['fname']}"
        for what,o in [*(('label', o) for o in a.labels), *([] if a.group is None else [('group', a.group)])]:
            _check_cell(a, what, o)
        for o in a.labels:
            if o != o.strip() or not o or not boxes and ';' in o:
                raise AnnotationError(f"{a.path}: label {o!r} is empty, begins or ends blank, or holds the "
                                      "delimiter ';'; rename it")
        if not boxes:
            row['labels'] = delim.join(dict.fromkeys(a.labels))   # of a picture, each once
            if a.scores is not None: row['scores'] = delim.join(f'{s:.4f}' for s in a.scores)
            if a.points is not None: row.update(_flat(a.points))
            rows.append(row)
        elif not len(a.bboxes): rows.append(row)
        else:
            for i,(o,b) in enumerate(zip(a.labels, a.bboxes.tolist())):
                rows.append({**row, 'label': o, **dict(zip(('x1', 'y1', 'x2', 'y2'), b))})
                if a.scores is not None: rows[-1]['score'] = a.scores[i]
                if a.points is not None: rows[-1].update(_flat(a.points[i]))
        for r in rows[-max(1, len(a.bboxes) if boxes else 1):]: r.update(split=a.split, group=a.group)
    df = pd.DataFrame(rows, columns=None if rows else ['fname', 'labels', 'split', 'group'])
    if boxes:
        for k in ('label', 'x1', 'y1', 'x2', 'y2'): df[k] = df[k] if k in df else None
    if set(df.split.dropna()) == {'train', 'valid'} and df.split.notna().all():
        df['split'] = df.split == 'valid'
        df = df.rename(columns=dict(split='is_valid'))
    return df.drop(columns=[k for k in ('split', 'group') if k in df and df[k].isna().all()])

_FORMULA = '=+-@'   # OWASP, CSV injection; tab and carriage return are blanks, which no name may begin with

def _check_cell(a, what, o):
    "Raise where the text `o` in a cell of a csv file would be run by a spreadsheet, or not be read back"
    if o[:1] in _FORMULA and o[:1] and not re.fullmatch(r'[+-]?\d+(\.\d*)?', o):
        raise AnnotationError(f"{a.path}: {what} {brief(o)} begins with {o[0]!r}: a spreadsheet would run it as a "
                              "formula; rename it, or use `write_coco`")
    if what == 'group' and (not isinstance(o, str) or o != o.strip() or not o):
        raise AnnotationError(f"{a.path}: group {brief(o)} is no text, empty, or begins or ends blank; rename it")
    if what == 'label' and o.strip():
        try: same = names_of(o, '', None) == [o.strip()]
        except AnnotationError: same = False
        if not same:
            raise AnnotationError(f"{a.path}: label {brief(o)} would be read back as a list; rename it, or use "
                                  "`write_coco`")

def _flat(points): return {f'{c}_{i}': v for i,p in enumerate(points.tolist()) for c,v in zip('xy', p)}
