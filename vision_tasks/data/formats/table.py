"""Tables: a csv file or DataFrame with one row per image, or one row per box

A label cell may hold a list, tuple, set or array of names, or the text of a list as Python or json write it; cells of
other types are errors. A label that appears twice in a cell counts once, and a warning counts these. `read_df` also
warns of names that contain `[`, `|`, `;` or `,`, and of a vocabulary in which most names occur once, since both are
signs of cells that were not split. A `label_delim` that occurs in no cell, while a cell contains another one of `,`,
`;`, `|`, is an error."""
from __future__ import annotations
from collections import Counter
from contextlib import contextmanager
import posixpath, re
from pathlib import Path
from typing import NamedTuple
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
_DELIM  = Kind("a text that separates labels, or None for one label per cell",
               lambda o: isinstance(o, str) and bool(o))

@checked(df=_TABLE, fn_col=COLUMN, label_col=either(COLUMN, _COLUMNS), label_delim=_DELIM, point_cols=_POINTS,
         bbox_cols=several(COLUMN, "four columns", n=4), valid_col=COLUMN, group_col=COLUMN, bbox_format=_FORMAT,
         relative=FLAG)
def read_df(
    df,                   # DataFrame, or the path of a csv file
    path='.',             # folder that the file names are relative to; '.' for a csv file: the folder of the csv file
    fn_col=0,             # column of the file names; columns are given by name, or by number from 0
    label_col=None,       # column of the labels, or a list of columns of 0 and 1, one per label; None (default): none
    label_delim:str=None, # separator of the labels in a cell, ' ': any white space; None (default): one label per cell
    bbox_cols=None,       # the four columns of a box, as in `bbox_format`; one box per row; None (default): no boxes
    point_cols=None,      # columns x, y, x, y, ..., or a list of (x, y) columns; an empty cell: point is not marked
    valid_col=None,       # column of the split: true or 1: valid; or the words train, valid (or val), test
    group_col=None,       # column of the group, which stays on one side of a split
    on_error:str='raise', # 'raise' `AnnotationError` at the first bad row, or 'drop' such images and count them
    bbox_format:str='xyxy', # 'xyxy': x1, y1, x2, y2, 0-based, right and bottom edge exclusive; 'xywh': x1, y1, width,
                          # height; 'cxcywh': centre, width, height
    allow_outside:bool=False, # a csv file may name image files outside `path` (../, absolute, links); a
                          # DataFrame always may
    relative:bool=False,  # boxes and points are fractions of the image's width and height instead of pixels
) -> list[Annotation]:    # in the order of the rows; an image with several boxes at its first row
    """Read a table. An empty label cell is an image without labels; with `bbox_cols`, a row without box and label is an
    image without objects. Rows are numbered from 0, without the header. Names that are numbers become text; in a csv
    file, cells are stripped and blank rows skipped. How label cells are read is described at the top of this module.
    Raises `AnnotationError` with the row, and `ValueError` for arguments that do not fit together"""
    columns = dict(file=fn_col, label=label_col, bbox=bbox_cols, points=point_cols, split=valid_col, group=group_col)
    table = _load(df, Path(path), columns, allow_outside, delim=label_delim, format=bbox_format, relative=relative)
    anns = read_all(lambda o: _read(*o, table), table.rows.items(), on_error, lambda o: f"row {o[1][0]}")
    if table.label is not None: _warn_of_names(anns)
    return anns

class _Table(NamedTuple):
    "The cells of a table by column, and how to read them"
    file:list        # file names
    label:list       # label cells; None without a label column
    hot:object       # DataFrame of the columns of 0 and 1, or None
    bbox:np.ndarray  # (n, 4), or None
    no_bbox:list     # whether all box cells of a row are empty, or None
    points:np.ndarray # (n, 2*k), or None
    split:list       # or None
    group:list       # or None
    delim:str        # as `label_delim`
    format:str       # as `bbox_format`
    relative:bool
    path:Path        # folder of the images
    inside:object    # as of `inside_of`
    rows:dict        # file name -> numbers of its rows
    source:object    # the csv file, for messages; None for a DataFrame

def _load(df, path, columns, allow_outside, **how):   # -> _Table
    source = None if isinstance(df, pd.DataFrame) else df
    if source is not None:
        if path == Path('.'): path = Path(source).parent
        df = load_csv(source)
    if how['delim'] is not None and columns['label'] is None:
        raise ValueError("label_delim separates the labels of label_col, which is None; pass the column")
    with _naming(source):
        if not len(df): raise AnnotationError("the table has no rows")
        # spreadsheets write blank rows below a table
        blank = set(np.flatnonzero((df == '').all(axis=1))) if source is not None else ()
        cells = _cells_of(df, columns, source is not None)
        if how['delim'] is not None and cells['hot'] is None: _check_delim(cells['label'], how['delim'])
        rows = {}
        for i,f in enumerate(cells['file']):
            if i in blank: continue
            name = None if is_empty(f) else posixpath.normpath(str(f).strip())   # ./a.png and a.png are one file
            rows.setdefault(name, []).append(i)
        if not rows: raise AnnotationError("the table has no rows")
    inside = inside_of(path, allow_outside or source is None)
    return _Table(**cells, **how, path=path, inside=inside, rows=rows, source=source)

def _cells_of(df, columns, from_csv):   # -> dict of the fields file to group of `_Table`
    label,bbox,points = (columns[k] for k in ('label', 'bbox', 'points'))
    if points is not None: points = [c for o in points for c in (o if isinstance(o, (tuple, list)) else [o])]
    hot = label if isinstance(label, (list, tuple)) else None
    if hot is not None: label = None
    _check_columns(df, [c for c in (columns['file'], *(hot or []), label, *(bbox or []), *(points or []),
                                    columns['split'], columns['group']) if c is not None])
    if bbox is not None and hot is not None:
        raise ValueError("bbox_cols needs a single column label_col, since each row is a box with one label")
    if points is not None and len(points) % 2:
        raise ValueError(f"point_cols has {len(points)} columns; expected pairs x, y")
    if from_csv:
        for c in {_name(df, c) for c in [*(hot or []), *(bbox or []), *(points or [])]}: df[c] = as_numbers(df[c])
    one  = lambda c: None if c is None else df[_name(df, c)].tolist()
    part = lambda cs: None if cs is None else df[[_name(df, c) for c in cs]]
    return dict(file=one(columns['file']), label=one(label), hot=part(hot),
                bbox=None if bbox is None else _coordinates(part(bbox)),
                no_bbox=None if bbox is None else part(bbox).isna().all(axis=1).tolist(),
                points=None if points is None else _coordinates(part(points)),
                split=one(columns['split']), group=one(columns['group']))

@contextmanager
def _naming(file):
    "Context whose errors name the csv `file`; None: a DataFrame"
    try: yield
    except AnnotationError as e:
        if file is None or str(file) in str(e): raise
        raise AnnotationError(f"{file}: {e}") from e

def _check_delim(cells, delim):
    "Raise if `delim` occurs in no cell, but another delimiter does"
    texts = [(i, o) for i,o in enumerate(cells) if isinstance(o, str)]
    if any(delim in o.strip() for _,o in texts): return
    for i,o in texts:
        other = next((d for d in ',;|\t' if d in o.strip() and not LISTLIKE.fullmatch(o.strip())), None)
        if other: raise AnnotationError(f"label_delim {delim!r} occurs in no cell, but row {i} holds {brief(o)}; "
                                        f"expected label_delim={other!r}, or None for one label per cell")

def _warn_of_names(anns):
    "Warn of names that look like several labels"
    # count images, not objects: a name with ten boxes in one image occurs once
    counts = Counter(o for a in anns for o in set(a.labels))
    odd,once = [o for o in counts if set(o) & set('[|;,')],[o for o,n in counts.items() if n == 1]
    if odd: what = f"{len(odd)} of {len(counts)} names contain one of [ | ; , such as {brief(odd[0])}"
    elif len(counts) > 3 and 2*len(once) > len(counts):
        what = f"{len(once)} of {len(counts)} names occur in one image only, such as {brief(once[0])}"
    else: return
    warn(f"{what}; if these are several labels in one cell, pass their separator as label_delim=")

def _coordinates(df):
    "The cells as an array, whose rows are faster to index than those of a DataFrame; of numbers if all cells are"
    for c in df.columns:
        if df[c].dtype == bool or df[c].dtype == object and any(isinstance(o, (bool, np.bool_)) for o in df[c]):
            raise AnnotationError(f"column {brief(c)} holds True or False; expected coordinates; pass "
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

def _read(name, idxs, t):
    "The annotation of the rows `idxs` of one file"
    with _naming(t.source): return _annotation(name, idxs, t)

def _annotation(name, idxs, t):
    where = f"row {idxs[0]}, {name}"
    if name is None: raise AnnotationError(f"row {idxs[0]}: no file name")
    if t.bbox is None and len(idxs) > 1:
        raise AnnotationError(f"{name} has two rows, {idxs[0]} and {idxs[1]}; expected one row per "
                              "image, or pass bbox_cols for one row per box")
    file = t.inside(t.path/name, f"row {idxs[0]}: ", name)
    try: size = size_of(file)
    except AnnotationError as e: raise AnnotationError(f"row {idxs[0]}: {e}") from None
    kw = dict(split=_same(where, 'split', idxs, t.split, split_of),
              group=_same(where, 'group', idxs, t.group, lambda where,o: text_of(o, where)))
    points = t.points
    if t.bbox is None:
        labels = _labels(where, idxs[0], t)
        if points is not None: kw['points'] = _points(where, points[idxs[0]], size, t)
    else:
        blank = lambda i: t.no_bbox[i] and (t.label is None or is_empty(t.label[i]))
        idxs = [i for i in idxs if not blank(i)]
        labels = [_box_label(i, name, t) for i in idxs]
        kw['bboxes'] = np.array([_bbox(i, name, t.bbox[i], size, t) for i in idxs], dtype=np.float32).reshape(-1, 4)
        if points is not None:
            rows = [_points(f"row {i}, {name}", points[i], size, t) for i in idxs]
            kw['points'] = np.array(rows).reshape(len(idxs), points.shape[1]//2, 2)
    try: return Annotation(file, size, labels, **kw)
    except AnnotationError as e: raise AnnotationError(f"row {idxs[0] if idxs else '?'}: {e}") from None

def _same(where, what, idxs, values, read):
    "The common value of the rows of a file, or None"
    if values is None: return None
    res = {None if is_empty(values[i]) else read(where, values[i]) for i in idxs}
    if len(res) > 1:
        raise AnnotationError(f"{where}: its rows have several {what}s: {brief(sorted(map(str, res)))}; expected "
                              "one per image")
    return res.pop()

def _labels(where, i, t):
    "The labels of a row without a box"
    if t.hot is not None:
        row = t.hot.iloc[i]
        for k,v in row.items():
            if is_empty(v) or not np.isscalar(v) or not (v == 0 or v == 1):
                raise AnnotationError(f"{where}: column {brief(k)} is {brief(v)}; a one-hot column holds 0 and 1")
        return [str(k) for k,v in row.items() if v == 1]
    if t.label is None: return []
    labels = names_of(t.label[i], where, t.delim)
    if '' in labels: raise AnnotationError(f"{where}: an empty label in {brief(t.label[i])}; fix the cell")
    return labels

def _box_label(i, name, t):
    if t.label is None: return 'object'
    if is_empty(t.label[i]):
        raise AnnotationError(f"row {i}, {name}: a box without a label; add the label, "
                              "or empty its box columns too for an image without objects")
    names = names_of(t.label[i], f"row {i}, {name}", None)
    if len(names) == 1: return names[0]
    raise AnnotationError(f"row {i}, {name}: {len(names)} labels, {brief(names)}; expected one per box")

_TO_XYXY = dict(xyxy=lambda a,b,c,d: (a, b, c, d), xywh=lambda x,y,w,h: (x, y, x+w, y+h),
                cxcywh=lambda x,y,w,h: (x-w/2, y-h/2, x+w/2, y+h/2))

def _bbox(i, name, row, size, t):   # -> x1 y1 x2 y2 in pixels
    where,b = f"row {i}, {name}",numbers_of(f"row {i}, {name}", row)
    if np.isnan(b).any():
        raise AnnotationError(f"{where}: the box {brief(row.tolist())} has an empty cell; fix it, "
                              "or empty all four and the label for an image without objects")
    if t.format != 'xyxy' and min(b[2:]) < 0:
        raise AnnotationError(f"{where}: expected width and height of 0 or more, got {b.tolist()}; "
                              f"is bbox_format {t.format!r} right?")
    if t.format == 'xyxy' and (b[0] > b[2] or b[1] > b[3]):
        raise AnnotationError(f"{where}: expected x1 <= x2 and y1 <= y2, got {b.tolist()}; "
                              "use bbox_format='xywh' for columns x1, y1, width and height, 'cxcywh' for the centre")
    return np.array(_TO_XYXY[t.format](*_pixels(where, b, size, t)))

def _points(where, row, size, t): return _pixels(where, numbers_of(where, row), size, t).reshape(-1, 2)   # in pixels

def _pixels(where, v, size, t):   # v: x, y, x, y, ... or x, y, width, height
    "`v` in pixels; fractions are multiplied by the size of the image"
    if not t.relative: return v
    # boxes and points may reach outside the image; pixels are larger
    if (np.abs(v) > 2).any():
        raise AnnotationError(f"{where}: expected fractions of the image, about 0 to 1, got {brief(v.tolist())}; "
                              "relative=False reads pixels")
    return v*np.tile(size, len(v)//2)

@checked()
def write_df(
    annotations,    # list[Annotation], with boxes in all or in none
    path=None,      # folder that the file names are relative to; None (default): paths as they are
) -> pd.DataFrame:  # for `df.to_csv(file, index=False)`
    """A DataFrame for `read_df`, which ignores the scores. Columns: fname; labels, or with boxes one row per box with
    label, x1, y1, x2, y2; points as x_0, y_0, x_1, ...; scores, or score of each box; is_valid or split; group. Labels
    are joined by a blank, or by ';' if a name has a blank. `visible`, `masks` and `mask` are not written.

    Raises `AnnotationError` for ignored objects, which a table cannot store; for labels and groups that begin with
    = + - or @ and are not numbers, since a spreadsheet that opens the csv file would run them as formulas; and for
    labels that `read_df` would read differently ('[1]' as a list). A file name that begins so gets the prefix ./, which
    `read_df` removes"""
    boxes = any(a.bboxes is not None for a in annotations)
    if boxes and any(a.bboxes is None for a in annotations):
        raise AnnotationError("some annotations have boxes and some have None; a table holds one kind: write two")
    delim = ';' if any(len(o.split()) != 1 for a in annotations for o in a.labels) else ' '
    rows = []
    for a in annotations:
        _check_writable(a, boxes)
        common = dict(split=a.split, group=a.group)
        rows += [{'fname': _file_name(a, path), **o, **common} for o in (_box_rows(a) if boxes else [_row(a, delim)])]
    df = pd.DataFrame(rows, columns=None if rows else ['fname', 'labels', 'split', 'group'])
    if boxes:
        for k in ('label', 'x1', 'y1', 'x2', 'y2'): df[k] = df[k] if k in df else None
    if set(df.split.dropna()) == {'train', 'valid'} and df.split.notna().all():
        df['split'] = df.split == 'valid'
        df = df.rename(columns=dict(split='is_valid'))
    return df.drop(columns=[k for k in ('split', 'group') if k in df and df[k].isna().all()])

def _check_writable(a, boxes):
    if a.path is None:
        raise AnnotationError("an annotation without a file has no row: save its image and set `path`")
    if a.ignore is not None and a.ignore.any():
        raise AnnotationError(f"{a.path}: a table has no flag for ignored objects, which would become ordinary ones; "
                              "drop them (`select_objects`), or use `write_coco` or `write_voc`")
    for what,o in [*(('label', o) for o in a.labels), *([] if a.group is None else [('group', a.group)])]:
        _check_cell(a, what, o)
    for o in a.labels:
        if o != o.strip() or not o or not boxes and ';' in o:
            raise AnnotationError(f"{a.path}: label {o!r} is empty, begins or ends with a blank, or contains the "
                                  "delimiter ';'; rename it")

def _file_name(a, path):
    try: name = str(a.path if path is None else a.path.relative_to(path))
    except ValueError:
        raise AnnotationError(f"{a.path} is not in path={str(path)!r}, which the file names are relative to; "
                              "pass a folder that holds all images") from None
    if name != name.strip():
        raise AnnotationError(f"{a.path}: the file name begins or ends with a blank, and could not be read back; "
                              "rename it")
    return f"./{name}" if name[0] in _FORMULA else name

def _row(a, delim):   # of an image without boxes
    row = dict(labels=delim.join(dict.fromkeys(a.labels)))   # unique
    if a.scores is not None: row['scores'] = delim.join(f'{s:.4f}' for s in a.scores)
    return row if a.points is None else {**row, **_flat(a.points)}

def _box_rows(a):     # a single empty row for an image without objects
    rows = [dict(label=o, **dict(zip(('x1', 'y1', 'x2', 'y2'), b))) for o,b in zip(a.labels, a.bboxes.tolist())]
    for i,row in enumerate(rows):
        if a.scores is not None: row['score'] = a.scores[i]
        if a.points is not None: row.update(_flat(a.points[i]))
    return rows or [{}]

_FORMULA = '=+-@'   # OWASP, CSV injection; tab and carriage return are blanks, with which no name may begin

def _check_cell(a, what, o):
    "Raise if a spreadsheet would run the text `o` in a csv cell as a formula, or if it could not be read back"
    if o[:1] in _FORMULA and o[:1] and not re.fullmatch(r'[+-]?\d+(\.\d*)?', o):
        raise AnnotationError(f"{a.path}: {what} {brief(o)} begins with {o[0]!r}: a spreadsheet would run it as a "
                              "formula; rename it, or use `write_coco`")
    if what == 'group' and (not isinstance(o, str) or o != o.strip() or not o):
        raise AnnotationError(f"{a.path}: group {brief(o)} is not text, is empty, or begins or ends with a blank; "
                              "rename it")
    if what == 'label' and o.strip():
        try: same = names_of(o, '', None) == [o.strip()]
        except AnnotationError: same = False
        if not same:
            raise AnnotationError(f"{a.path}: label {brief(o)} would be read back as a list; rename it, or use "
                                  "`write_coco`")

def _flat(points): return {f'{c}_{i}': v for i,p in enumerate(points.tolist()) for c,v in zip('xy', p)}
