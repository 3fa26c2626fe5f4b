"Points without boxes: DeepLabCut's csv (Mathis et al., 2018) and the BIWI Kinect head poses (Fanelli et al., 2013)"
from __future__ import annotations
import csv, io
from functools import cache
from pathlib import Path
import numpy as np
from ...arguments import NAMES, TEXT, brief, checked
from ..annotation import Annotation
from ..errors import AnnotationError
from ..reading import inside_of, read_all, read_lines, read_text, size_of
from ..writing import check_once, replacing

__all__ = ['read_dlc', 'dlc_points', 'write_dlc', 'read_biwi']

# --- DeepLabCut: rows scorer, bodyparts, coords, then one row a picture

@checked()
def read_dlc(
    fname,                # CollectedData csv: the picture in one column, or its path in three; then x, y of the parts
    path=None,            # folder that the pictures' paths start from; None = the project, where the csv lies in its
                          # labeled-data/session, else the folder of the csv
    on_error:str='raise', # 'raise' at the first row that cannot be read, or 'drop' such images and count them
    allow_outside:bool=False, # whether image files outside `path` are read too, to which rows (../, absolute) and links
                          # may lead
) -> list[Annotation]:    # in the order of the rows; `points` (k, 2), nan where both cells are empty
    """Pictures with the points of one animal, whose names `dlc_points` gives. Paths written on Windows are turned.
    `group` is None: set it to `a.path.parent.name` where whole sessions are to be held out"""
    fname = Path(fname)
    n,names,rows = _table(fname)
    path = _project(fname) if path is None else Path(path)
    items = {}   # picture -> its rows, of which there should be one
    for line,row in rows:
        picture = '/'.join(o.strip().replace('\\', '/') for o in row[:n] if o.strip())
        items.setdefault(picture, []).append((line, row[n:]))
    inside = inside_of(path, allow_outside)
    return read_all(lambda o: _read_row(fname, path, o[0], o[1], names, inside), items.items(), on_error,
                    lambda o: f"{fname}, line {o[1][0][0]}")

@checked()
def dlc_points(
    fname,         # CollectedData csv
) -> list[str]:    # (k,) names of the points, in the order of `a.points`
    "The bodyparts of a DeepLabCut csv"
    return _table(Path(fname))[1]

@checked(names=NAMES, scorer=TEXT)
def write_dlc(
    annotations,               # list[Annotation] with points (k, 2)
    fname,                     # csv file; its folder is made where it is not there
    names:list[str],           # (k,) names of the points
    scorer:str='vision_tasks', # whose marks they are
    path=None,                 # folder that the pictures' paths start from; None = as of `read_dlc`
):
    """Write what `read_dlc` reads; a point that is nan or whose `visible` is 0 becomes two empty cells. Labels, scores,
    group and split have no place in this format"""
    fname = Path(fname)
    bad = [o for o in names if not o or o != o.strip() or names.count(o) > 1]
    if bad: raise ValueError(f"names: expected a name for each point, each once, without blanks at its ends, got "
                             f"{brief(bad[0])}; the csv could not be read back: rename it")
    path = _project(fname) if path is None else Path(path)
    head = [['scorer',    *[scorer]*2*len(names)],
            ['bodyparts', *(o for o in names for _ in 'xy')],
            ['coords',    *['x', 'y']*len(names)]]
    rows = [_row(i, a, names, path) for i,a in enumerate(annotations)]
    check_once(annotations)
    with replacing(fname) as part, part.open('w', newline='', encoding='utf-8') as f:
        csv.writer(f).writerows(head + rows)

def _project(fname):
    whole = fname.absolute()
    return whole.parents[2] if whole.parent.parent.name == 'labeled-data' else fname.parent

def _table(fname):
    "(number of columns that name the picture, (k,) names, [(line, cells)]) of a csv whose header has been checked"
    try:
        reader = csv.reader(io.StringIO(read_text(fname)))
        rows = [(reader.line_num, row) for row in reader if any(o.strip() for o in row)]
    except FileNotFoundError: raise AnnotationError(f"{fname}: no such csv file") from None
    except csv.Error as e: raise AnnotationError(f"{fname} is not a readable csv file ({e})") from e
    heads = [row[0].strip() for _,row in rows[:4]]
    if 'individuals' in heads:
        raise AnnotationError(f"{fname}: a header row 'individuals', so it marks several animals a picture; those are "
                              "objects and need boxes: keep the columns of one animal and delete the row, or write "
                              "COCO keypoints and `read_coco`")
    if heads[:3] != ['scorer', 'bodyparts', 'coords']:
        raise AnnotationError(f"{fname}: rows begin with {brief(heads[:3])}; expected DeepLabCut's header rows "
                              "['scorer', 'bodyparts', 'coords']; `read_df(..., point_cols=...)` reads tables with one "
                              "header row")
    (_,parts),(_,coords) = rows[1:3]
    n = next((i for i,o in enumerate(coords[1:], 1) if o.strip()), len(coords))   # the picture's columns have no coords
    names,coords = [o.strip() for o in parts[n::2]],[o.strip() for o in coords[n:]]
    if n not in (1, 3) or not names or coords != ['x', 'y']*len(names):
        raise AnnotationError(f"{fname}: coords are {brief(coords[:6])} after {n} columns; expected x, y, x, y, ... "
                              "after 1 column of pictures, or 3 with their path; are they predictions? Drop the "
                              "likelihood")
    if [o.strip() for o in parts[n+1::2]] != names or len({*names}) < len(names) or '' in names:
        raise AnnotationError(f"{fname}: bodyparts are {brief(parts[n:])}; expected each name over its x and its y, "
                              "and nowhere else; mend the header")
    if len(rows) == 3: raise AnnotationError(f"{fname} has no rows below its header")
    return n,names,rows[3:]

def _read_row(fname, path, name, rows, names, inside):
    where,picture = f"{fname}, line {rows[0][0]}",path/name
    if len(rows) > 1:
        raise AnnotationError(f"{where}: {picture} stands in line {rows[1][0]} too; one picture is one row")
    inside(picture, f"{where}: ", name)
    cells = [o.strip() for o in rows[0][1]]
    if len(cells) != 2*len(names):
        raise AnnotationError(f"{where}: {len(cells)} cells after the picture, expected {2*len(names)}, x and y of "
                              f"{len(names)} points; mend the row")
    try: xy = np.array([float(o or 'nan') for o in cells]).reshape(-1, 2)
    except ValueError as e:
        raise AnnotationError(f"{where}: {e}; expected numbers, or empty cells where a point is not marked") from None
    for name,p in zip(names, xy):
        if np.isinf(p).any() or np.isnan(p).sum() == 1:
            raise AnnotationError(f"{where}: {brief(name)} is at {p.tolist()}; expected x and y, or two empty cells; "
                                  "mend the row")
    try: size = size_of(picture)
    except AnnotationError as e:
        raise AnnotationError(f"{where}: {e}; path= names the folder that the paths start from") from None
    return Annotation(picture, size, points=xy)

def _row(i, a, names, path):
    if a.path is None: raise AnnotationError(f"annotation {i} has no file: save its picture and set `path`")
    if a.points is None or a.points.ndim != 2:
        came = 'none' if a.points is None else f'{a.points.shape}, one set a box'
        raise AnnotationError(f"{a.path}: DeepLabCut's csv holds (k, 2) points, and this annotation has {came}; "
                              "crop the objects, or `write_coco`")
    if len(a.points) != len(names):
        raise AnnotationError(f"{a.path}: {len(a.points)} points, but {len(names)} names; name each point once")
    try: name = a.path.absolute().relative_to(path.absolute()).as_posix()
    except ValueError:
        raise AnnotationError(f"{a.path} does not lie in {path}, which the paths are to start from; "
                              "name a folder that holds all pictures with path=") from None
    if '\\' in name or any(o != o.strip() for o in name.split('/')):
        raise AnnotationError(f"{a.path}: a backslash, or a blank at the end of a name, would not be read back; "
                              "rename the file")
    marked = ~np.isnan(a.points[:,0]) & (True if a.visible is None else a.visible > 0)
    return [name, *(repr(v) if ok else '' for p,ok in zip(a.points.tolist(), marked) for v in p)]

# --- BIWI: a folder a person, with rgb.cal and, for each picture, frame_00003_rgb.png and frame_00003_pose.txt

@checked(images_glob=TEXT)
def read_biwi(
    path,                         # folder that holds one a person, 01 to 24
    images_glob:str='**/*_rgb.*', # which pictures, below `path`
    on_error:str='raise',         # 'raise' at the first image that cannot be read, or 'drop' such and count them
    allow_outside:bool=False,     # whether links that lead out of `path` are followed
) -> list[Annotation]:            # by person, then by frame; no labels, `points` (1, 2), `group` = the person's folder
    """Pictures with the centre of the head, projected by the person's own camera; it stays where the data put it,
    outside the picture too"""
    path = Path(path)
    if not path.is_dir(): raise AnnotationError(f"{path}: no such folder")
    try: pictures = sorted(path.glob(images_glob))
    except (NotImplementedError, ValueError) as e:
        raise ValueError(f"images_glob: expected a pattern of paths below the folder, such as '**/*_rgb.*', got "
                         f"{brief(images_glob)} ({e})") from None
    if not pictures:
        raise AnnotationError(f"{path}: no picture is called {images_glob}; name the folder that holds one a person, "
                              "or other pictures with images_glob=")
    camera,inside = cache(_camera),inside_of(path, allow_outside)   # a person's images share one
    return read_all(lambda p: _read_head(inside(p), camera, inside), pictures, on_error)

def _read_head(picture, camera, inside):
    pose = picture.with_name(f"{picture.stem.rpartition('_')[0]}_pose.txt")
    rows = _numbers(inside(pose))
    if [len(o) for o in rows] != [3]*4:
        raise AnnotationError(f"{pose}: rows of {brief([len(o) for o in rows])} numbers; expected three of the "
                              "rotation and one x y z, 3 numbers each; replace the file")
    x,y,z = rows[3]
    if not (np.isfinite(rows[3]).all() and z > 0):
        raise AnnotationError(f"{pose}: the head is at {rows[3]} mm; expected finite numbers with z > 0, before the "
                              "camera; replace the file, or drop the picture")
    (fx,_,cx),(_,fy,cy),_ = camera(inside(picture.parent/'rgb.cal'))
    return Annotation(picture, size_of(picture), points=[[x*fx/z + cx, y*fy/z + cy]], group=picture.parent.name)

def _camera(file):   # -> 3 rows of 3 numbers
    "The camera matrix of an rgb.cal; the six rows after it, distortion and the way to the depth camera, are not needed"
    rows = _numbers(file)
    matrix = rows[:3]
    if len(rows) != 9 or [len(o) for o in matrix] != [3]*3:
        raise AnnotationError(f"{file}: rows of {brief([len(o) for o in rows])} numbers; expected a camera matrix, "
                              "3 rows of 3, and six rows more; replace the file")
    if not np.isfinite(matrix).all() or matrix[2] != [0, 0, 1] or min(matrix[0][0], matrix[1][1]) <= 0:
        raise AnnotationError(f"{file}: {matrix} is no camera matrix; expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] "
                              "with fx and fy above 0; replace the file")
    return matrix

def _numbers(file):   # -> rows of numbers, without the empty ones
    try: return [[float(o) for o in line.split()] for _,line in read_lines(file)]
    except FileNotFoundError:
        raise AnnotationError(f"{file}: no such file, and the picture's centre cannot be told without; bring it back, "
                              "or drop the picture") from None
    except AnnotationError: raise
    except ValueError as e:
        raise AnnotationError(f"{file} is not a readable table of numbers ({e}); replace the file") from e
