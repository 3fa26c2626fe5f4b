"Tables: a csv file or DataFrame with one row a picture, or one row a box"
from __future__ import annotations
from collections import Counter
from pathlib import Path
import numpy as np
from .annotation import SPLITS, Annotation, AnnotationError, nearest
from .reading import read_all, size_of

__all__ = ['read_df', 'write_df']

def read_df(
    df,                   # DataFrame, or the path of a csv file
    path='.',             # folder that the file names are relative to; for a csv file '.' is the folder that it lies in
    fn_col=0,             # column of the file names; columns are named, or counted from 0
    label_col=None,       # column of the labels, or a list of columns of 0 and 1, one per label; None = no labels
    label_delim:str=None, # what stands between several labels of a cell, ' ' = any white space; None = a cell is one
    bbox_cols=None,       # four columns x1, y1, x2, y2 in pixels, 0-based, right and bottom exclusive: a row is a box
    point_cols=None,      # columns x, y, x, y, ... in pixels, or a list of (x, y) columns; an empty cell is a point
                          # that is not marked
    valid_col=None,       # column of the split: true or 1 = valid, or the words train, valid (or val), test
    group_col=None,       # column of what must not stand on both sides of a split
    on_error:str='raise', # 'raise' `AnnotationError` at the first row that cannot be read, or 'drop' such pictures and
                          # count them
) -> list[Annotation]:    # in the order of the rows, pictures with several boxes where they first occur
    """Annotations of a table. An empty label cell is a picture without labels; with `bbox_cols`, a row without box and
    label is a picture without objects. Names that are numbers become their text. Rows are counted from 0, without the
    header"""
    import pandas as pd
    path,from_csv = Path(path),not isinstance(df, pd.DataFrame)
    if from_csv:
        if path == Path('.'): path = Path(df).parent
        df = _csv(df)
    if not len(df): raise AnnotationError("the table has no rows")
    points = point_cols
    if points is not None: points = [c for o in points for c in (o if isinstance(o, (tuple, list)) else [o])]
    one_hot = isinstance(label_col, (list, tuple))
    wanted = [fn_col, *(label_col if one_hot else [] if label_col is None else [label_col]), *(bbox_cols or []),
              *(points or []), *(o for o in (valid_col, group_col) if o is not None)]
    _check_columns(df, wanted)
    if bbox_cols is not None and (len(bbox_cols) != 4 or one_hot):
        raise ValueError("bbox_cols names four columns, and then each row has one label in one column label_col")
    if points is not None and len(points) % 2:
        raise ValueError(f"point_cols names {len(points)} columns, but points come as pairs x, y")
    col  = lambda c: None if c is None else df[_name(df, c)].tolist()
    part = lambda cs: None if cs is None else df[[_name(df, c) for c in cs]]
    cells = lambda cs: None if cs is None else _cells(part(cs))
    if from_csv:
        for c in {_name(df, c) for c in [*(label_col if one_hot else []), *(bbox_cols or []), *(points or [])]}:
            df[c] = _as_numbers(df[c])
    cols = dict(file=col(fn_col), label=None if one_hot else col(label_col), hot=part(label_col) if one_hot else None,
                bbox=cells(bbox_cols), points=cells(points), split=col(valid_col), group=col(group_col),
                delim=label_delim, path=path)
    if bbox_cols is not None: cols['no_bbox'] = part(bbox_cols).isna().all(axis=1).tolist()
    rows = {}
    for i,f in enumerate(cols['file']): rows.setdefault(None if _empty(f) else str(f), []).append(i)
    return read_all(lambda o: _read(o[0], o[1], cols), list(rows.items()), on_error)

def _csv(fname):
    "The csv file as text, cell by cell: '007' and 'None' are names"
    import pandas as pd
    try: return pd.read_csv(fname, dtype=str, keep_default_na=False)
    except FileNotFoundError: raise AnnotationError(f"{fname}: no such csv file") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as e:
        raise AnnotationError(f"{fname} is not a readable csv file: {str(e).strip()}; mend that line, or the file"
                              ) from e

def _as_numbers(col):
    "A csv's text as numbers, an empty cell as nan, true and false as 1 and 0; as it is where that cannot be"
    import pandas as pd
    words = {'': None, 'true': '1', 'True': '1', 'TRUE': '1', 'false': '0', 'False': '0', 'FALSE': '0'}
    try: return pd.to_numeric(col.replace(words))
    except ValueError: return col

def _cells(df):
    "An array, whose rows are found at once, those of a DataFrame not; of numbers where all cells are"
    try: return df.to_numpy(dtype=np.float64)
    except (TypeError, ValueError): return df.to_numpy(dtype=object)

def _name(df, c): return df.columns[c] if isinstance(c, int) and c not in df.columns else c

def _check_columns(df, wanted):
    gone = [c for c in wanted if (c not in df.columns and not (isinstance(c, int) and 0 <= c < len(df.columns)))]
    if gone:
        more = f", nor {gone[1:]}" if gone[1:] else ''
        raise AnnotationError(f"the table has no column {gone[0]!r}{more}; its columns are {list(df.columns)}" +
                              nearest(gone[0], df.columns))

def _empty(o): return o is None or o != o or (isinstance(o, str) and not o.strip())

def _text(o):
    "A cell as a name: 3.0, which 3 becomes beside an empty cell, is '3'"
    return str(int(o)) if isinstance(o, float) and o == int(o) else str(o).strip()

def _read(name, idxs, c):
    "The annotation of the rows `idxs`, which are about one file"
    where = f"row {idxs[0]}, {name}"
    if name is None: raise AnnotationError(f"row {idxs[0]}: no file name")
    if c['bbox'] is None and len(idxs) > 1:
        raise AnnotationError(f"{name} has two rows, {idxs[0]} and {idxs[1]}; one picture is one row, "
                              "unless bbox_cols says that a row is a box")
    file = c['path']/name
    try: size = size_of(file)
    except AnnotationError as e: raise AnnotationError(f"row {idxs[0]}: {e}") from None
    kw = dict(split=_same(where, 'split', idxs, c['split'], _split),
              group=_same(where, 'group', idxs, c['group'], _text))
    points = c['points']
    if c['bbox'] is None:
        labels = _labels(where, idxs[0], c)
        if points is not None: kw['points'] = _numbers(where, points[idxs[0]]).reshape(-1, 2)
    else:
        blank = lambda i: c['no_bbox'][i] and (c['label'] is None or _empty(c['label'][i]))
        idxs = [i for i in idxs if not blank(i)]
        labels = [_box_label(i, name, c) for i in idxs]
        kw['bboxes'] = np.array([_bbox(i, name, c['bbox'][i]) for i in idxs], dtype=np.float32).reshape(-1, 4)
        if points is not None:
            rows = [_numbers(f"row {i}, {name}", points[i]) for i in idxs]
            kw['points'] = np.array(rows).reshape(len(idxs), points.shape[1]//2, 2)
    try: return Annotation(file, size, labels, **kw)
    except AnnotationError as e: raise AnnotationError(f"row {idxs[0] if idxs else '?'}: {e}") from None

def _same(where, what, idxs, values, read):
    "The one value that the rows of a file have, or None"
    if values is None: return None
    res = {None if _empty(values[i]) else read(where, values[i]) if read is _split else read(values[i]) for i in idxs}
    if len(res) > 1:
        raise AnnotationError(f"{where}: its rows name several {what}s: {sorted(map(str, res))}; a picture has one")
    return res.pop()

def _split(where, o):
    word = str(o).strip().lower()
    if word in ('val', *SPLITS): return 'valid' if word == 'val' else word
    if word in ('true', '1', '1.0'): return 'valid'
    if word in ('false', '0', '0.0'): return 'train'
    raise AnnotationError(f"{where}: {o!r} is no split; expected true or false (valid or not), or one of {SPLITS}")

def _labels(where, i, c):
    "The labels of a row without a box"
    if c['hot'] is not None:
        row = c['hot'].iloc[i]
        for k,v in row.items():
            if not (v == 0 or v == 1):
                raise AnnotationError(f"{where}: column {k!r} is {v!r}; a one-hot column holds 0 and 1")
        return [str(k) for k,v in row.items() if v == 1]
    if c['label'] is None or _empty(c['label'][i]): return []
    cell,delim = _text(c['label'][i]),c['delim']
    labels = [cell] if delim is None else cell.split() if delim == ' ' else [o.strip() for o in cell.split(delim)]
    if '' in labels: raise AnnotationError(f"{where}: an empty label in {cell!r}; mend the cell")
    twice = [o for o,n in Counter(labels).items() if n > 1]
    if twice: raise AnnotationError(f"{where}: label {twice[0]!r} stands twice in {cell!r}; name it once")
    return labels

def _box_label(i, name, c):
    if c['label'] is None: return 'object'
    if _empty(c['label'][i]):
        raise AnnotationError(f"row {i}, {name}: a box without a label; name it, "
                              "or empty its box columns too for a picture without objects")
    return _text(c['label'][i])

def _numbers(where, row):
    try: return row.astype(np.float64)
    except (TypeError, ValueError):
        raise AnnotationError(f"{where}: {', '.join(map(str, row))} are not all numbers; mend the row") from None

def _bbox(i, name, row):
    b = _numbers(f"row {i}, {name}", row)
    if np.isnan(b).any():
        raise AnnotationError(f"row {i}, {name}: the box {row.tolist()} lacks a number; mend it, "
                              "or empty all four and the label for a picture without objects")
    if b[0] > b[2] or b[1] > b[3]:
        raise AnnotationError(f"row {i}, {name}: expected x1 <= x2 and y1 <= y2, got {b.tolist()}; "
                              "are the columns x1, y1, x2, y2, not width and height?")
    return b

def write_df(annotations, path=None):
    """A DataFrame that `read_df` reads back, but for scores: columns fname (relative to `path` where that is given),
    then labels, or with boxes one row a box with label, x1, y1, x2, y2; points as x_0, y_0, x_1, ...; scores, or score
    of each box; is_valid or split; group. Labels are joined by a blank, or by ';' where a name has one. Objects to
    ignore are an error; `visible`, `masks` and `mask` have no place in a table"""
    import pandas as pd
    annotations = list(annotations)
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
        row = dict(fname=str(a.path if path is None else a.path.relative_to(path)))
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

def _flat(points): return {f'{c}_{i}': v for i,p in enumerate(points.tolist()) for c,v in zip('xy', p)}
