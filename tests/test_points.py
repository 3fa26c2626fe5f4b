from dataclasses import replace
import numpy as np, pandas as pd, pytest
from PIL import Image
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.formats.points import dlc_points, read_biwi, read_dlc, write_dlc
from vision_tasks.data.synthetic import draw_shapes

NAN = float('nan')

# --- DeepLabCut

HEAD = 'scorer,ann,ann,ann,ann\nbodyparts,snout,snout,tail,tail\ncoords,x,y,x,y\n'
def row(name='img1.png', cells='1,2,3,4'): return f'labeled-data/s1/{name},{cells}\n'

@pytest.fixture
def dlc(tmp_path):
    "`dlc(text)` writes the csv of a project with two images, 20x10"
    folder = tmp_path/'labeled-data'/'s1'
    folder.mkdir(parents=True)
    for i in (1, 2): Image.new('RGB', (20, 10)).save(folder/f'img{i}.png')
    def write(text):
        (folder/'CollectedData_ann.csv').write_text(text)
        return folder/'CollectedData_ann.csv'
    return write

def test_cells_become_points_and_empty_ones_are_not_marked(dlc, tmp_path):
    f = dlc(HEAD + row('img2.png', '1.5,2,,') + row('img1.png', '3,4,-5,60'))
    a,b = read_dlc(f)
    assert a.path == tmp_path/'labeled-data'/'s1'/'img2.png' and a.size == (20, 10) and a.labels == []
    assert all(getattr(a, k) is None for k in ('bboxes', 'visible', 'group', 'split')) and a.points.dtype == np.float32
    np.testing.assert_array_equal(a.points, [[1.5, 2], [NAN, NAN]])
    assert b.points.tolist() == [[3, 4], [-5, 60]]
    assert dlc_points(f) == ['snout', 'tail']

def test_the_path_may_be_three_columns_or_a_windows_path(dlc):
    points = lambda text: [(a.path.name, a.points.tolist()) for a in read_dlc(dlc(text))]
    windows = 'scorer,ann,ann\nbodyparts,snout,snout\ncoords,x,y\nlabeled-data\\s1\\img2.png,1,2\n'
    three = 'scorer,,,ann,ann\nbodyparts,,,snout,snout\ncoords,,,x,y\nlabeled-data,s1,img2.png,1,2\n'
    assert points(three) == [('img2.png', [[1, 2]])] and dlc_points(dlc(three)) == ['snout']
    assert points(windows) == [('img2.png', [[1, 2]])]

@pytest.mark.parametrize('three', [False, True])
def test_what_pandas_writes_as_deeplabcut_does_is_read(dlc, three):
    "DeepLabCut's own file is a DataFrame with three levels of columns and the path, or its parts, as index"
    xy = np.random.default_rng(0).uniform(0, 10, (2, 6))
    xy[0,2:4] = NAN
    paths = [('labeled-data', 's1', f'img{i}.png') for i in (1, 2)]
    cols = pd.MultiIndex.from_product([['ann'], ['l', 'r', 'top'], ['x', 'y']], names=['scorer', 'bodyparts', 'coords'])
    rows = pd.MultiIndex.from_tuples(paths) if three else ['/'.join(o) for o in paths]
    pd.DataFrame(xy, rows, cols).to_csv(f := dlc(''))
    assert dlc_points(f) == ['l', 'r', 'top']
    for a,p in zip(read_dlc(f), xy, strict=True): np.testing.assert_array_equal(a.points, np.float32(p).reshape(3, 2))

def test_paths_start_from_the_project_the_folder_of_the_csv_or_the_one_given(dlc, tmp_path, monkeypatch):
    f = dlc(HEAD + row())
    monkeypatch.chdir(f.parent)
    assert read_dlc(f.name)[0].path.samefile(f.parent/'img1.png')
    text = f.read_text()
    (tmp_path/'t.csv').write_text(text)
    assert read_dlc(tmp_path/'t.csv')[0].path == f.parent/'img1.png'
    (tmp_path/'sub').mkdir()
    (tmp_path/'sub'/'t.csv').write_text(text)
    assert read_dlc(tmp_path/'sub'/'t.csv', tmp_path)[0].path == f.parent/'img1.png'
    with pytest.raises(AnnotationError, match="line 4: .*img1.png: no such image file.*; pass the folder .* as path="):
        read_dlc(tmp_path/'sub'/'t.csv')

ROWS = {
    "line 5: .*gone.png: no such image file": row('gone.png'),
    "line 5: 3 cells after the image path, expected 4, x and y of 2 points": row('img2.png', '1,2,3'),
    "line 5: could not convert .*'wide'; expected numbers, or empty cells": row('img2.png', '1,wide,3,4'),
    r"line 5: 'tail' is at \[3.0, nan\]; expected x and y, or two empty cells": row('img2.png', '1,2,3,'),
    "line 5: 'snout' is at .*inf": row('img2.png', '1,inf,3,4'),
    "line 5: .*img2.png is also in line 6; expected one row per image": row('img2.png')*2,
}
@pytest.mark.parametrize('message', ROWS, ids=range(len(ROWS)))
def test_a_row_that_cannot_be_read_raises_or_is_dropped_and_counted(dlc, message):
    f = dlc(HEAD + row() + ROWS[message])
    with pytest.raises(AnnotationError, match=f"CollectedData_ann.csv, {message}"): read_dlc(f)
    with pytest.warns(UserWarning, match="1 of 2 images are dropped: .*line 5"): kept = read_dlc(f, on_error='drop')
    assert [a.path.name for a in kept] == ['img1.png']

HEADS = {
    "the header row 'individuals' means several animals .* need boxes: .* `read_coco`":
        HEAD.replace('bodyparts', 'individuals,m1,m1,m2,m2\nbodyparts', 1) + row(),
    r"the rows begin with \['fname', 'a.png'\]; expected DeepLabCut's header rows .*`read_df": 'fname,x,y\na.png,1,2\n',
    r"the rows begin with \[\]; expected": '',
    "coords are .*'likelihood'.* if these are predictions":
        'scorer,a,a,a\nbodyparts,l,l,l\ncoords,x,y,likelihood\n0,1,2,.5\n',
    "coords are .* after 2 columns; expected .* 1 column with the image path, or 3":
        'scorer,,a,a\nbodyparts,,l,l\ncoords,,x,y\ns1,img1.png,1,2\n',
    r"coords are \[\] after 1 columns": 'scorer\nbodyparts\ncoords\nimg1.png\n',
    r"bodyparts are \['l', 'r'\]; expected each name above its x and its y":
        'scorer,a,a\nbodyparts,l,r\ncoords,x,y\nimg1.png,1,2\n',
    r"bodyparts are \['l', 'l', 'l', 'l'\]": 'scorer,a,a,a,a\nbodyparts,l,l,l,l\ncoords,x,y,x,y\nimg1.png,1,2,3,4\n',
    "has no rows below its header": HEAD,
}
@pytest.mark.parametrize('message', HEADS, ids=range(len(HEADS)))
def test_a_header_that_is_not_deeplabcuts_raises_whatever_on_error_says(dlc, message):
    f = dlc(HEADS[message])
    for read in (lambda: read_dlc(f, on_error='drop'), lambda: dlc_points(f)):
        with pytest.raises(AnnotationError, match=f"CollectedData_ann.csv:? {message}"): read()

def test_a_missing_or_unreadable_csv_is_told(tmp_path):
    with pytest.raises(AnnotationError, match="gone.csv: no such csv file"): read_dlc(tmp_path/'gone.csv')
    (tmp_path/'t.csv').write_bytes(b'scorer,\xff\xfe')
    with pytest.raises(AnnotationError, match="t.csv, line 1: cannot be read as text"): dlc_points(tmp_path/'t.csv')

def faces(shapes):
    "One object of each drawn image that has any, as points alone; some are not marked"
    for i,a in enumerate(a for a in shapes if len(a.labels)):
        points = a.points[0] + np.float32(1/3)
        points[i%5] = NAN
        yield Annotation(a.path, a.size, points=points)

def test_writing_and_reading_give_the_same_back(tmp_path):
    shapes = draw_shapes(tmp_path/'project', n=12)
    anns,names = list(faces(shapes)),['centre', 'left, or so', 'right', 'top', 'bottom']
    root = tmp_path/'project'
    for f,path in ((root/'labeled-data'/'images'/'c.csv', None), (root/'t.csv', None), (tmp_path/'new'/'t.csv', root)):
        write_dlc(anns, f, names, path=path)
        assert dlc_points(f) == names
        for a,b in zip(anns, read_dlc(f, path), strict=True):
            assert (a.path, a.size, b.labels, b.bboxes) == (b.path, b.size, [], None)
            np.testing.assert_array_equal(a.points, b.points)
    assert 'images/0001.png' in f.read_text() and np.isnan([a.points for a in anns]).any()
    df = pd.read_csv(f, header=[0, 1, 2], index_col=0)   # as DeepLabCut reads it
    np.testing.assert_array_equal(np.float32(df).reshape(-1, 5, 2), [a.points for a in anns])
    assert list(df.columns[:2]) == [('vision_tasks', 'centre', 'x'), ('vision_tasks', 'centre', 'y')]

def test_points_whose_visible_is_0_are_written_as_not_marked(shapes, tmp_path):
    a = replace(next(faces(shapes[1:])), points=np.ones((5, 2)), visible=[2, 0, 1, 2, 0])
    write_dlc([a], tmp_path/'t.csv', list('abcde'), 'me', path=a.path.parent)
    assert (tmp_path/'t.csv').read_text().splitlines()[0] == 'scorer' + ',me'*10
    back, = read_dlc(tmp_path/'t.csv', a.path.parent)
    assert np.isnan(back.points[:,0]).tolist() == [False, True, False, False, True]

def test_what_deeplabcut_cannot_hold_is_refused(shapes, tmp_path):
    a = next(faces(shapes))
    boxed = next(a for a in shapes if len(a.labels))
    for message,o,names in (
        ("annotation 0 has no file", replace(a, path=None), 'abcde'),
        ("this annotation has none; crop", replace(a, points=None), 'abcde'),
        (r"this annotation has \(\d, 5, 2\), one set per box; crop the objects, or `write_coco`", boxed, 'abcde'),
        ("5 points, but 3 names", a, 'abc'),
        ("is not in .*, which the paths are relative to", a, 'abcde')):
        with pytest.raises(AnnotationError, match=message): write_dlc([o], tmp_path/'t.csv', list(names))
    assert not (tmp_path/'t.csv').exists()

# --- BIWI

POSE = '0.99 -0.01 0.02 \n0.01 0.99 -0.03 \n-0.02 0.03 0.99 \n\n{} {} {} \n'
CAL = '{fx} 0 {cx} \n0 {fy} {cy} \n0 0 1 \n\n0 0 0 0 \n\n1 0 0 \n0 1 0 \n0 0 1 \n\n-24 6 -13 \n\n640 480\n'

@pytest.fixture
def biwi(tmp_path):
    "`biwi(person, frame, xyz, ...)` writes an image, its pose and the person's calibration; `biwi.path` is the folder"
    def write(person='01', frame=3, xyz=(100, -50, 1000), fx=500, fy=400, cx=320, cy=240, size=(640, 480), suffix='png',
              pose=POSE, cal=CAL):
        folder = tmp_path/person
        folder.mkdir(exist_ok=True)
        Image.new('RGB', size).save(folder/f'frame_{frame:05d}_rgb.{suffix}')
        if pose is not None: (folder/f'frame_{frame:05d}_pose.txt').write_text(pose.format(*xyz))
        if cal is not None: (folder/'rgb.cal').write_text(cal.format(fx=fx, fy=fy, cx=cx, cy=cy))
    write.path = tmp_path
    return write

def test_the_centre_is_projected_by_the_camera_of_the_same_person(biwi):
    biwi('02', 4, (100, -50, 1000), size=(64, 48), suffix='jpg')    # 100*500/1000 + 320 = 370; -50*400/1000 + 240 = 220
    biwi('02', 3, (0, 0, 700))                                      # on the axis: the principal point
    biwi('01', 9, (-60, 30, 600), fx=600, fy=300, cx=300, cy=250)   # -60*600/600 + 300 = 240; 30*300/600 + 250 = 265
    anns = read_biwi(biwi.path)
    assert [(a.path.relative_to(biwi.path).as_posix(), a.points.tolist()) for a in anns] == [
        ('01/frame_00009_rgb.png', [[240, 265]]), ('02/frame_00003_rgb.png', [[320, 240]]),
        ('02/frame_00004_rgb.jpg', [[370, 220]])]
    assert [a.group for a in anns] == ['01', '02', '02'] and [a.size for a in anns] == [(640, 480)]*2 + [(64, 48)]
    assert all(a.labels == [] and a.bboxes is None and a.split is None and a.points.shape == (1, 2) for a in anns)
    assert [a.path.suffix for a in read_biwi(biwi.path, '02/*_rgb.jpg')] == ['.jpg']

def test_a_centre_outside_the_image_stays(biwi):
    biwi(xyz=(-2000, 0, 500))                                        # -2000*500/500 + 320 = -1680
    assert read_biwi(biwi.path)[0].points.tolist() == [[-1680, 240]]

def test_a_split_holds_out_whole_persons(biwi):
    from vision_tasks.data.splits import AnnotationSplitter
    for person in range(1, 9):
        for frame in range(3): biwi(f'{person:02d}', frame, size=(8, 6))
    anns = read_biwi(biwi.path)
    for seed in range(5):
        train,valid = ({anns[i].group for i in side} for side in AnnotationSplitter(.25, seed)(anns))
        assert train and valid and not train & valid and len(train | valid) == 8

BIWI = {
    "frame_00003_pose.txt: no such file, which the head centre is computed from": dict(pose=None),
    "rgb.cal: no such file": dict(cal=None),
    r"frame_00003_pose.txt: rows of \[3, 3, 3\] numbers; expected three rows for the rotation and one x y z":
        dict(pose='1 0 0\n0 1 0\n0 0 1\n'),
    r"frame_00003_pose.txt: rows of \[3, 3, 3, 2\] numbers": dict(pose=POSE.replace(' {} \n', '\n')),
    r"frame_00003_pose.txt: rows of \[\] numbers": dict(pose=''),
    "frame_00003_pose.txt is not a readable table of numbers .*'deep'": dict(xyz=(1, 2, 'deep')),
    r"frame_00003_pose.txt: the head is at \[1.0, 2.0, 0.0\] mm; expected finite numbers with z > 0":
        dict(xyz=(1, 2, 0)),
    r"frame_00003_pose.txt: the head is at \[1.0, 2.0, -900.0\] mm": dict(xyz=(1, 2, -900)),
    r"frame_00003_pose.txt: the head is at \[nan, 2.0, 900.0\] mm": dict(xyz=(NAN, 2, 900)),
    r"rgb.cal: rows of \[3, 3, 3\] numbers; expected a camera matrix, 3 rows of 3, and six rows more":
        dict(cal='\n'.join(CAL.splitlines()[:3])),
    r"rgb.cal: rows of \[2, 3, 3, 4, 3, 3, 3, 3, 2\] numbers": dict(cal=CAL.replace('{fx} 0 ', '{fx} ')),
    r"rgb.cal: \[\[0.0, 0.0, 320.0\], .* is not a camera matrix; expected .* fx and fy above 0": dict(fx=0),
    r"rgb.cal: .*\[0.0, 1.0, 0.0\]\] is not a camera matrix": dict(cal=CAL.replace('0 0 1', '0 1 0', 1)),
}
@pytest.mark.parametrize('message', BIWI, ids=range(len(BIWI)))
def test_a_pose_or_calibration_without_meaning_raises_or_is_dropped_and_counted(biwi, message):
    biwi('02'); biwi('01', **BIWI[message])
    with pytest.raises(AnnotationError, match=f"01.{message}"): read_biwi(biwi.path)
    with pytest.warns(UserWarning, match="1 of 2 images are dropped: .*01."):
        kept = read_biwi(biwi.path, on_error='drop')
    assert [a.group for a in kept] == ['02']

def test_folders_without_images_are_told(tmp_path):
    with pytest.raises(AnnotationError, match="gone: no such folder"): read_biwi(tmp_path/'gone')
    with pytest.raises(AnnotationError, match=r"no image matches \*\*/\*_rgb.\*; pass the folder with one folder per"):
        read_biwi(tmp_path)

def test_a_dlc_csv_that_is_cut_is_an_error_that_names_the_row_but_within_its_last_number(shapes, tmp_path):
    anns,file = [Annotation(a.path, a.size, points=a.points[0]) for a in shapes if a.labels][:2],tmp_path/'a.csv'
    write_dlc(anns, file, list('abcde'), path=shapes[0].path.parent)
    text = file.read_bytes().decode()
    for end in range(text.rindex(anns[1].path.name) + len(anns[1].path.name), text.rindex(','), 7):
        file.write_bytes(text[:end].encode())
        with pytest.raises(AnnotationError, match=r"a.csv, line 5: .*expected"): read_dlc(file, shapes[0].path.parent)

@pytest.mark.parametrize('names', [['a', 'a'], ['', 'b'], ['a ', 'b'], [' a', 'b'], ['a', 3]])
def test_names_of_points_that_would_not_be_read_back_are_refused(tmp_path, names):
    Image.new('L', (4, 4)).save(tmp_path/'a.png')
    a = Annotation(tmp_path/'a.png', (4, 4), points=[[1, 2], [3, 4]])
    with pytest.raises(ValueError, match='names(, number .)?: expected a '): write_dlc([a], tmp_path/'x.csv', names)

@pytest.mark.parametrize('name', ['a\\b.png', ' a.png', 'a.png '])
def test_a_path_that_would_not_be_read_back_is_refused(tmp_path, name):
    with pytest.raises(AnnotationError, match='would not be read back'):
        write_dlc([Annotation(tmp_path/name, (4, 4), points=[[1, 2]])], tmp_path/'x.csv', ['p'])
