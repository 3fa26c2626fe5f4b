"Cells of tables: csv files as text, and what a cell means as a class name, a list of names, a split or numbers"
from __future__ import annotations
from ast import literal_eval
from collections import Counter
from collections.abc import Mapping
import csv, io, re, warnings
from numbers import Number
import numpy as np
import pandas as pd
from ...arguments import brief
from ..annotation import SPLITS
from ..errors import AnnotationError
from ..reading import read_text

__all__ = []

# --- csv files

def load_csv(fname):
    "The cells of a csv file as text: '007' and 'None' are names"
    try:
        text = read_text(fname)
        with warnings.catch_warnings():
            # rows with more cells than the header: pandas would take the first as index, or drop the last
            warnings.simplefilter('error', pd.errors.ParserWarning)
            df = pd.read_csv(io.StringIO(text), dtype=object, keep_default_na=False, index_col=False)
    except FileNotFoundError: raise AnnotationError(f"{fname}: no such csv file") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, pd.errors.ParserWarning) as e:
        raise AnnotationError(f"{fname} is not a readable csv file: {str(e).strip()}; fix that line, or the file"
                              ) from e
    # pandas renames the second column of the same name
    head = [o.strip() for o in next(o for o in csv.reader(io.StringIO(text)) if any(map(str.strip, o)))]
    twice = [o for o,n in Counter(head).items() if o and n > 1]
    if twice: raise AnnotationError(f"{fname}: {brief(twice[0])} is the name of two columns; rename one")
    if not text.endswith('\n'): _check_last(fname, text, len(head))
    df.columns = [o.strip() for o in df.columns]
    return df.apply(lambda c: c.fillna('').str.strip())   # pandas fills rows that are too short with nan

def _check_last(fname, text, n):
    "Raise if the last row has no line end and fewer than `n` cells, since the file was truncated"
    reader = csv.reader(io.StringIO(text))
    *_,(line,row) = [(reader.line_num, row) for row in reader]
    if len(row) < n: raise AnnotationError(f"{fname}, line {line}: {brief(row)} has {len(row)} of {n} cells and no "
                                           "line end, so the file was truncated; write it again, or complete or "
                                           "delete that row")

def as_numbers(col):
    "A column of text as numbers, empty cells as nan, true and false as 1 and 0; unchanged if that is not possible"
    words = {'': None, 'true': '1', 'True': '1', 'TRUE': '1', 'false': '0', 'False': '0', 'FALSE': '0'}
    try: return pd.to_numeric(col.replace(words))
    except ValueError: return col

# --- one cell

def is_empty(o):
    "Whether a cell is empty: None, '', blanks, or a missing value of pandas"
    return o is None or isinstance(o, str) and not o.strip() or pd.api.types.is_scalar(o) and bool(pd.isna(o))

def text_of(o, where='', what='a name'):
    "A cell as a name: 3.0, to which pandas converts 3 in a column with an empty cell, is '3'"
    if isinstance(o, str) and o.strip(): return o.strip()
    if isinstance(o, Number) and not isinstance(o, (bool, np.bool_, complex)) and np.isfinite(float(o)):
        return str(int(o)) if o == int(o) else str(o)
    todo = "fix the cell"
    if isinstance(o, (bool, np.bool_)): todo = "pass the columns of 0 and 1 as a list label_col=[...]"
    raise AnnotationError(f"{where}: got {brief(o)} of type {type(o).__name__}; expected {what}; {todo}")

_ITEM = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d+)"""
_LIST = re.compile(rf'[\[({{]\s*(?:{_ITEM}\s*(?:,\s*{_ITEM}\s*)*,?\s*)?[\])}}]')   # of texts and integers
LISTLIKE = re.compile(r'(?:[\[({].*[,\'"].*[\])}]|\[[\d\s.]*\]|\w+\(.*[\[({].*|\{\s*\}|set\(\))', re.DOTALL)

def names_of(cell, where, delim):
    "The names in a label cell"
    if is_empty(cell): return []
    what = "a name, a list of names, or nothing"
    if isinstance(cell, str):
        text = cell.strip()
        if _LIST.fullmatch(text) and text[0] + text[-1] in ('[]', '()', '{}') and text != '{}':
            try: cell = literal_eval(text)
            except (ValueError, SyntaxError): pass
        elif not LISTLIKE.fullmatch(text):
            return [text] if delim is None else text.split() if delim == ' ' else [o.strip() for o in text.split(delim)]
        if isinstance(cell, str):
            raise AnnotationError(f"{where}: {brief(cell)} looks like a list, but cannot be read as one; expected "
                                  "['a', 'b'], or names with a delimiter between them; fix the cell")
    if isinstance(cell, (Mapping, bytes, bytearray)) or not hasattr(cell, '__iter__'):
        return [text_of(cell, where, what)]
    if not isinstance(cell, (list, tuple)) and hasattr(cell, 'tolist'): cell = cell.tolist()   # arrays and Series
    items = cell if isinstance(cell, (list, tuple)) else [cell] if np.isscalar(cell) else list(cell)
    names = [text_of(o, where, "names in the list") for o in items]
    return sorted(names) if isinstance(cell, (set, frozenset)) else names

def split_of(where, o):
    "The split that the cell `o` names, a word or true and false; raises `AnnotationError` for others"
    word = (o if isinstance(o, str) else brief(o)).strip().lower()
    if word in ('val', *SPLITS): return 'valid' if word == 'val' else word
    if word in ('true', '1', '1.0'): return 'valid'
    if word in ('false', '0', '0.0'): return 'train'
    raise AnnotationError(f"{where}: {brief(o)} is not a split; expected true or false (valid or not), or one of "
                          f"{SPLITS}")

def numbers_of(where, row):
    "The cells of a row as float64; raises `AnnotationError` where one is no number"
    try: return row.astype(np.float64)
    except (TypeError, ValueError):
        what = ', '.join(o if isinstance(o, str) else brief(o) for o in row.tolist())
        raise AnnotationError(f"{where}: {what:.400} are not all numbers; fix the row") from None
