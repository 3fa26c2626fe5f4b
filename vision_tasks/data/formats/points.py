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

# --- DeepLabCut: rows scorer, bodyparts, coords, then one row per image

@checked()
def read_dlc(
    fname,                # CollectedData csv: the image in one column, or its path in three; then x, y of the parts
    path=None,            # folder that the image paths are relative to; None (default): the project folder if the csv
                          # lies in its labeled-data/session, otherwise the folder of the csv
    on_error:str='raise', # 'raise' at the first row that cannot be read, or 'drop' such images and count them
    allow_outside:bool=False, # also read image files outside `path`, which rows (../, absolute) and links may lead to
) -> list[Annotation]:    # in the order of the rows; `points` (k, 2) pixels, nan if both cells are empty
    """Read images with the points of one animal; `dlc_points` returns the point names. Backslashes in paths become
    slashes. `group` is None: set it to `a.path.parent.name` to keep sessions on one side of a split. Raises
    `AnnotationError`"""
    fname = Path(fname)
    n,names,rows = _table(fname)
    path = _project(fname) if path is None else Path(path)
    items = {}   # image -> its rows; more than one is an error
    for line,row in rows:
        image = '/'.join(o.strip().replace('\\', '/') for o in row[:n] if o.strip())
        items.setdefault(image, []).append((line, row[n:]))
    inside = inside_of(path, allow_outside)
    return read_all(lambda o: _read_row(fname, path, o[0], o[1], names, inside), items.items(), on_error,
                    lambda o: f"{fname}, line {o[1][0][0]}")

@checked()
def dlc_points(
    fname,         # CollectedData csv
) -> list[str]:    # (k,) names of the points, in the order of `a.points`
    "The bodyparts of a DeepLabCut csv. Raises `AnnotationError` for other files"
    return _table(Path(fname))[1]

@checked(names=NAMES, scorer=TEXT)
def write_dlc(
    annotations,               # list[Annotation] with points (k, 2)
    fname,                     # csv file; its folder is created if missing
    names:list[str],           # (k,) names of the points
    scorer:str='vision_tasks', # name of the annotator, for the header
    path=None,                 # folder that the image paths are relative to; None (default): as in `read_dlc`
):
    """Write a file for `read_dlc`; a point that is nan or whose `visible` is 0 becomes two empty cells. Labels, scores,
    `group` and `split` are not written. Raises `ValueError` for names, and `AnnotationError` for annotations, that the
    format cannot store"""
    fname = Path(fname)
    bad = [o for o in names if not o or o != o.strip() or names.count(o) > 1]
    if bad: raise ValueError(f"names: expected a different name for each point, without blanks at its ends, got "
                             f"{brief(bad[0])}; rename it")
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
    "(number of columns that name the image, (k,) names, [(line, cells)]) of a csv whose header has been checked"
    try:
        reader = csv.reader(io.StringIO(read_text(fname)))
        rows = [(reader.line_num, row) for row in reader if any(o.strip() for o in row)]
    except FileNotFoundError: raise AnnotationError(f"{fname}: no such csv file") from None
    except csv.Error as e: raise AnnotationError(f"{fname} is not a readable csv file ({e})") from e
    heads = [row[0].strip() for _,row in rows[:4]]
    if 'individuals' in heads:
        raise AnnotationError(f"{fname}: the header row 'individuals' means several animals per image; those are "
                              "objects and need boxes: keep the columns of one animal and delete the row, or use "
                              "COCO keypoints and `read_coco`")
    if heads[:3] != ['scorer', 'bodyparts', 'coords']:
        raise AnnotationError(f"{fname}: the rows begin with {brief(heads[:3])}; expected DeepLabCut's header rows "
                              "['scorer', 'bodyparts', 'coords']; `read_df(..., point_cols=...)` reads tables with one "
                              "header row")
    (_,parts),(_,coords) = rows[1:3]
    n = next((i for i,o in enumerate(coords[1:], 1) if o.strip()), len(coords))   # the image path has no coords
    names,coords = [o.strip() for o in parts[n::2]],[o.strip() for o in coords[n:]]
    if n not in (1, 3) or not names or coords != ['x', 'y']*len(names):
        raise AnnotationError(f"{fname}: coords are {brief(coords[:6])} after {n} columns; expected x, y, x, y, ... "
                              "after 1 column with the image path, or 3; if these are predictions, drop the "
                              "likelihood columns")
    if [o.strip() for o in parts[n+1::2]] != names or len({*names}) < len(names) or '' in names:
        raise AnnotationError(f"{fname}: bodyparts are {brief(parts[n:])}; expected each name above its x and its y, "
                              "and nowhere else; fix the header")
    if len(rows) == 3: raise AnnotationError(f"{fname} has no rows below its header")
    return n,names,rows[3:]

def _read_row(fname, path, name, rows, names, inside):
    where,image = f"{fname}, line {rows[0][0]}",path/name
    if len(rows) > 1:
        raise AnnotationError(f"{where}: {image} is also in line {rows[1][0]}; expected one row per image")
    inside(image, f"{where}: ", name)
    cells = [o.strip() for o in rows[0][1]]
    if len(cells) != 2*len(names):
        raise AnnotationError(f"{where}: {len(cells)} cells after the image path, expected {2*len(names)}, x and y of "
                              f"{len(names)} points; fix the row")
    try: xy = np.array([float(o or 'nan') for o in cells]).reshape(-1, 2)
    except ValueError as e:
        raise AnnotationError(f"{where}: {e}; expected numbers, or empty cells for a point without a mark") from None
    for name,p in zip(names, xy):
        if np.isinf(p).any() or np.isnan(p).sum() == 1:
            raise AnnotationError(f"{where}: {brief(name)} is at {p.tolist()}; expected x and y, or two empty cells; "
                                  "fix the row")
    try: size = size_of(image)
    except AnnotationError as e:
        raise AnnotationError(f"{where}: {e}; pass the folder that the paths are relative to as path=") from None
    return Annotation(image, size, points=xy)

def _row(i, a, names, path):
    if a.path is None: raise AnnotationError(f"annotation {i} has no file: save its image and set `path`")
    if a.points is None or a.points.ndim != 2:
        came = 'none' if a.points is None else f'{a.points.shape}, one set per box'
        raise AnnotationError(f"{a.path}: DeepLabCut's csv holds (k, 2) points, but this annotation has {came}; "
                              "crop the objects, or `write_coco`")
    if len(a.points) != len(names):
        raise AnnotationError(f"{a.path}: {len(a.points)} points, but {len(names)} names; pass one name for each point")
    try: name = a.path.absolute().relative_to(path.absolute()).as_posix()
    except ValueError:
        raise AnnotationError(f"{a.path} is not in {path}, which the paths are relative to; "
                              "pass a folder that holds all images as path=") from None
    if '\\' in name or any(o != o.strip() for o in name.split('/')):
        raise AnnotationError(f"{a.path}: a backslash, or a blank at the end of a name, would not be read back; "
                              "rename the file")
    marked = ~np.isnan(a.points[:,0]) & (True if a.visible is None else a.visible > 0)
    return [name, *(repr(v) if ok else '' for p,ok in zip(a.points.tolist(), marked) for v in p)]

# --- BIWI: a folder per person, with rgb.cal and, for each image, frame_00003_rgb.png and frame_00003_pose.txt

@checked(images_glob=TEXT)
def read_biwi(
    path,                         # folder with one folder per person, 01 to 24
    images_glob:str='**/*_rgb.*', # pattern of the image files below `path`
    on_error:str='raise',         # 'raise' at the first image that cannot be read, or 'drop' such images and
                                  # count them
    allow_outside:bool=False,     # also follow links that lead out of `path`
) -> list[Annotation]:            # by person, then by frame; no labels, `points` (1, 2), `group` = the person's folder
    """Read images with the centre of the head, projected with the camera of each person; it may lie outside the image.
    Raises `AnnotationError`"""
    path = Path(path)
    if not path.is_dir(): raise AnnotationError(f"{path}: no such folder")
    try: images = sorted(path.glob(images_glob))
    except (NotImplementedError, ValueError) as e:
        raise ValueError(f"images_glob: expected a pattern of paths below the folder, such as '**/*_rgb.*', got "
                         f"{brief(images_glob)} ({e})") from None
    if not images:
        raise AnnotationError(f"{path}: no image matches {images_glob}; pass the folder with one folder per "
                              "person, or another pattern as images_glob=")
    camera,inside = cache(_camera),inside_of(path, allow_outside)   # shared by the images of a person
    return read_all(lambda p: _read_head(inside(p), camera, inside), images, on_error)

def _read_head(image, camera, inside):
    pose = image.with_name(f"{image.stem.rpartition('_')[0]}_pose.txt")
    rows = _numbers(inside(pose))
    if [len(o) for o in rows] != [3]*4:
        raise AnnotationError(f"{pose}: rows of {brief([len(o) for o in rows])} numbers; expected three rows for the "
                              "rotation and one x y z, 3 numbers each; replace the file")
    x,y,z = rows[3]
    if not (np.isfinite(rows[3]).all() and z > 0):
        raise AnnotationError(f"{pose}: the head is at {rows[3]} mm; expected finite numbers with z > 0, in front of "
                              "the camera; replace the file, or drop the image")
    (fx,_,cx),(_,fy,cy),_ = camera(inside(image.parent/'rgb.cal'))
    return Annotation(image, size_of(image), points=[[x*fx/z + cx, y*fy/z + cy]], group=image.parent.name)

def _camera(file):   # -> 3 rows of 3 numbers
    "The camera matrix of an rgb.cal; the six rows after it, distortion and pose of the depth camera, are not needed"
    rows = _numbers(file)
    matrix = rows[:3]
    if len(rows) != 9 or [len(o) for o in matrix] != [3]*3:
        raise AnnotationError(f"{file}: rows of {brief([len(o) for o in rows])} numbers; expected a camera matrix, "
                              "3 rows of 3, and six rows more; replace the file")
    if not np.isfinite(matrix).all() or matrix[2] != [0, 0, 1] or min(matrix[0][0], matrix[1][1]) <= 0:
        raise AnnotationError(f"{file}: {matrix} is not a camera matrix; expected [[fx, 0, cx], [0, fy, cy], "
                              "[0, 0, 1]] with fx and fy above 0; replace the file")
    return matrix

def _numbers(file):   # -> rows of numbers, without the empty ones
    try: return [[float(o) for o in line.split()] for _,line in read_lines(file)]
    except FileNotFoundError:
        raise AnnotationError(f"{file}: no such file, which the head centre is computed from; restore it, "
                              "or drop the image") from None
    except AnnotationError: raise
    except ValueError as e:
        raise AnnotationError(f"{file} is not a readable table of numbers ({e}); replace the file") from e
