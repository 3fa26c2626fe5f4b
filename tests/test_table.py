import os, re, warnings
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.formats.table import read_df, write_df
from vision_tasks.data.formats.voc import read_voc

NAN = float('nan')

@pytest.fixture
def pics(tmp_path):
    for i,s in enumerate('abcd'): Image.new('RGB', (20+i, 10)).save(tmp_path/f'{s}.png')
    return tmp_path

def df_of(**cols): return pd.DataFrame(dict(fname=['a.png', 'b.png', 'c.png'], **cols))

def test_a_csv_gives_labels_split_and_group(pics):
    (pics/'t.csv').write_text('fname,labels,is_valid,who\na.png,dog cat,True,ann\nb.png,,False,\nc.png,cat,False,7\n')
    a,b,c = read_df(pics/'t.csv', label_col='labels', label_delim=' ', valid_col='is_valid', group_col='who')
    assert a.path == pics/'a.png' and a.size == (20, 10) and a.labels == ['dog', 'cat']
    assert (a.split, a.group) == ('valid', 'ann')
    assert b.labels == [] and (b.split, b.group) == ('train', None) and c.labels == ['cat'] and c.group == '7'
    anns = read_df(str(pics/'t.csv'), path=pics, label_col=1, label_delim=' ')
    assert [o.labels for o in anns] == [['dog', 'cat'], [], ['cat']]

@pytest.mark.parametrize('cell,delim,want', [
    ('dog cat', None, ['dog cat']), (' dog   cat ', ' ', ['dog', 'cat']), ('hot dog; cat', ';', ['hot dog', 'cat']),
    (3.0, None, ['3']), (7, ' ', ['7']), (NAN, ' ', []), ('', None, []), (None, ';', [])])
def test_cells_become_names(pics, cell, delim, want):
    assert read_df(df_of(l=[cell, 'x', 'y']), pics, label_col='l', label_delim=delim)[0].labels == want

def test_names_that_look_like_numbers_or_nothing_stay_as_a_csv_has_them(pics):
    (pics/'t.csv').write_text('fname,l,g\na.png,007,01\nb.png,None,1.0\nc.png,NA,x\n')
    anns = read_df(pics/'t.csv', label_col='l', group_col='g')
    assert [(a.labels, a.group) for a in anns] == [(['007'], '01'), (['None'], '1.0'), (['NA'], 'x')]
    (pics/'h.csv').write_text('fname,dog,cat\na.png,1,True\nb.png,0,FALSE\n')
    assert [a.labels for a in read_df(pics/'h.csv', label_col=['dog', 'cat'])] == [['dog', 'cat'], []]
    (pics/'b.csv').write_text('fname,label,x1,y1,x2,y2\na.png,d,1,0,wide,3\n')
    with pytest.raises(AnnotationError, match="row 0, a.png: .*wide.* are not all numbers"):
        read_df(pics/'b.csv', label_col='label', bbox_cols=['x1', 'y1', 'x2', 'y2'])

def test_one_hot_columns_become_names(pics):
    df = df_of(dog=[1, 0, True], cat=[1., 0, 0])
    assert [a.labels for a in read_df(df, pics, label_col=['dog', 'cat'])] == [['dog', 'cat'], [], ['dog']]
    df['cat'] = [1, 2, 0]
    with pytest.raises(AnnotationError, match="row 1, b.png: column 'cat' is .*2.*; a one-hot column holds 0 and 1"):
        read_df(df, pics, label_col=['dog', 'cat'])

@pytest.mark.parametrize('values,want', [
    ([True, False, True], ['valid', 'train', 'valid']), ([1, 0, 0], ['valid', 'train', 'train']),
    (['True', 'false', '0'], ['valid', 'train', 'train']), (['val', 'test', 'train'], ['valid', 'test', 'train']),
    (['valid', None, 'train'], ['valid', None, 'train'])])
def test_splits_are_words_or_truth_values(pics, values, want):
    assert [a.split for a in read_df(df_of(v=values), pics, valid_col='v')] == want

def test_rows_of_boxes_become_images_in_their_first_order(pics):
    df = pd.DataFrame([('b.png', 'dog', 0, 0, 5, 5), ('a.png', 'cat', 1, 1, 4, 4.5), ('b.png', 'cat', 2, 2, 30, 9),
                       ('c.png', None, NAN, NAN, NAN, NAN)],
                      columns='fname label x1 y1 x2 y2'.split())
    b,a,c = read_df(df, pics, label_col='label', bbox_cols=['x1', 'y1', 'x2', 'y2'])
    assert b.path.name == 'b.png' and b.labels == ['dog', 'cat'] and b.bboxes.tolist() == [[0, 0, 5, 5], [2, 2, 30, 9]]
    assert a.bboxes.tolist() == [[1, 1, 4, 4.5]]
    assert c.labels == [] and c.bboxes.shape == (0, 4)
    assert read_df(df[:3], pics, bbox_cols=[2, 3, 4, 5])[0].labels == ['object', 'object']

def test_numbers_may_be_texts_or_missing_in_any_way_that_pandas_knows(pics):
    df = pd.DataFrame(dict(f=['a.png', 'b.png'], l=['x', None], x1=['1', None], y1=[2, None], x2=[3.5, NAN],
                           y2=pd.array([4, None], dtype='Int64')))
    a,b = read_df(df, pics, label_col='l', bbox_cols=['x1', 'y1', 'x2', 'y2'])
    assert a.bboxes.tolist() == [[1, 2, 3.5, 4]] and b.bboxes.shape == (0, 4)

def test_points_are_pairs_and_empty_cells_are_not_marked(pics):
    df = df_of(x0=[1, 2, NAN], y0=[3, 4, NAN], x1=[5, 6, 7], y1=[7, 8, 9])
    for cols in (['x0', 'y0', 'x1', 'y1'], [('x0', 'y0'), ('x1', 'y1')], [1, 2, 3, 4]):
        a,_,c = read_df(df, pics, point_cols=cols)
        assert a.points.tolist() == [[1, 3], [5, 7]] and np.isnan(c.points[0]).all() and c.points[1].tolist() == [7, 9]
        assert a.bboxes is None
    df = df.assign(l='p', a=0, b=0, c=9, d=9)
    a = read_df(df, pics, label_col='l', bbox_cols=list('abcd'), point_cols=['x0', 'y0', 'x1', 'y1'])[0]
    assert a.points.shape == (1, 2, 2)

BOX = dict(label_col='label', bbox_cols=['x1', 'y1', 'x2', 'y2'])
BAD = {
    "row 1: .*gone.png: no such image file": (dict(fname=['a.png', 'gone.png']), {}),
    "row 1: no file name": (dict(fname=['a.png', NAN]), {}),
    "a.png has two rows, 0 and 1; expected one row per image": (dict(fname=['a.png', 'a.png']), {}),
    r"row 1, b.png: an empty label in 'x\|\|y'":
        (dict(fname=['a.png', 'b.png'], l=['x', 'x||y']), dict(label_col='l', label_delim='|')),
    "row 0, a.png: 'maybe' is not a split; expected true or false":
        (dict(fname=['a.png'], v=['maybe']), dict(valid_col='v')),
    "row 0, a.png: expected x1 <= x2 and y1 <= y2, got .*width and height":
        (dict(fname=['a.png'], label=['d'], x1=[9], y1=[0], x2=[3], y2=[3]), BOX),
    "row 0, a.png: the box .* has an empty cell":
        (dict(fname=['a.png'], label=['d'], x1=[NAN], y1=[0], x2=[3], y2=[3]), BOX),
    "row 0, a.png: a box without a label": (dict(fname=['a.png'], label=[NAN], x1=[1], y1=[0], x2=[3], y2=[3]), BOX),
    "row 0, a.png: .*wide.* are not all numbers":
        (dict(fname=['a.png'], label=['d'], x1=[1], y1=[0], x2=['wide'], y2=[3]), BOX),
    "row 0, a.png: its rows have several groups":
        (dict(fname=['a.png']*2, label=['d']*2, x1=[1, 1], y1=[0, 0], x2=[3, 3], y2=[3, 3], g=['p', 'q']),
         dict(BOX, group_col='g')),
    "row 0: .*a.png, points, row .*nan twice": (dict(fname=['a.png'], x=[1], y=[NAN]), dict(point_cols=['x', 'y'])),
}
@pytest.mark.parametrize('message', BAD, ids=range(len(BAD)))
def test_a_row_that_cannot_be_read_raises_or_is_dropped_and_counted(pics, message):
    cols,kw = BAD[message]
    df = pd.DataFrame(cols)
    with pytest.raises(AnnotationError, match=message): read_df(df, pics, **kw)
    with pytest.warns(UserWarning, match="images are dropped: "):
        assert len(read_df(df, pics, on_error='drop', **kw)) < max(2, len(df))

def test_bad_tables_and_columns_are_told(pics):
    df = df_of(labels=['x']*3)
    with pytest.raises(AnnotationError, match=r"no column 'label'; its columns are \['fname', 'labels'\]; "
                                              r"did you mean 'labels'\?"):
        read_df(df, pics, label_col='label')
    with pytest.raises(AnnotationError, match=r"no column 'x', nor \[9\]"):
        read_df(df, pics, label_col='x', valid_col=9)
    with pytest.raises(AnnotationError, match="the table has no rows"): read_df(df[:0], pics)
    with pytest.raises(AnnotationError, match="gone.csv: no such csv file"): read_df(pics/'gone.csv')
    (pics/'empty.csv').write_text('')
    with pytest.raises(AnnotationError, match="empty.csv is not a readable csv file"): read_df(pics/'empty.csv')
    with pytest.raises(ValueError, match="expected pairs x, y"): read_df(df, pics, point_cols=['labels'])

def same(a, b):
    assert (a.path, a.size, a.labels, a.split, a.group) == (b.path, b.size, b.labels, b.split, b.group)
    for k in ('bboxes', 'points'): np.testing.assert_array_equal(getattr(a, k), getattr(b, k))

def test_labels_splits_and_groups_survive_a_csv(shapes, tmp_path):
    root = shapes[0].path.parent
    anns = [Annotation(a.path, a.size, sorted(set(a.labels)), group=f'g{i//2}',
                       split='valid' if i % 3 == 0 else 'train') for i,a in enumerate(shapes)]
    write_df(anns, root).to_csv(tmp_path/'t.csv', index=False)
    back = read_df(tmp_path/'t.csv', root, label_col='labels', label_delim=' ', valid_col='is_valid', group_col='group')
    for a,b in zip(anns, back): same(a, b)
    named = [replace(a, labels=[f'hot {o}' for o in a.labels], split=None if i else 'test') for i,a in enumerate(anns)]
    df = write_df(named)
    assert 'split' in df and df.labels.str.contains(';').any()
    for a,b in zip(named, read_df(df, label_col='labels', label_delim=';', valid_col='split', group_col='group')):
        same(a, b)

def test_boxes_and_points_survive_a_csv_and_images_without_objects_stay(shapes, tmp_path):
    anns = [Annotation(a.path, a.size, a.labels, a.bboxes, a.points) for a in shapes]
    df = write_df(anns)
    df.to_csv(tmp_path/'t.csv', index=False)
    points = [c for c in df if c[:2] in ('x_', 'y_')]
    # names are absolute, and lie in the folder that `path` names
    back = read_df(tmp_path/'t.csv', shapes[0].path.parent, label_col='label', bbox_cols=['x1', 'y1', 'x2', 'y2'],
                   point_cols=points)
    for a,b in zip(anns, back): same(a, b) if len(a.labels) else same(replace(a, points=None), replace(b, points=None))

def test_predictions_have_their_scores_in_the_table(shapes):
    assert write_df([Annotation(shapes[0].path, (64, 64), ['a', 'b'], scores=[.5, .25])]).scores[0] == '0.5000 0.2500'
    assert list(write_df([])) == ['fname', 'labels']
    nothing = Annotation(shapes[0].path, (64, 64), bboxes=[])
    assert list(write_df([nothing])) == ['fname', 'label', 'x1', 'y1', 'x2', 'y2']

def test_what_a_table_cannot_hold_is_refused(shapes):
    a = shapes[1]
    with pytest.raises(AnnotationError, match="some annotations have boxes and some have None"):
        write_df([a, Annotation(a.path, a.size)])
    with pytest.raises(AnnotationError, match="an annotation without a file has no row"):
        write_df([Annotation(None, (4, 4))])
    with pytest.raises(AnnotationError, match="or contains the delimiter ';'"):
        write_df([Annotation(a.path, a.size, ['a;b c'])])
    for o in ('', ' x'):
        with pytest.raises(AnnotationError, match="label .* is empty, begins or ends with a blank"):
            write_df([Annotation(a.path, a.size, [o], [[0, 0, 9, 9]])])
    with pytest.raises(AnnotationError, match="a table has no flag for ignored objects, .*; drop them"):
        write_df([Annotation(a.path, a.size, ['x'], [[0, 0, 9, 9]], ignore=[True])])

@pytest.mark.parametrize('cells,message', [
    ('1,2,3,4,5,6', r"p.csv is not a readable csv file: .*Expected 5 fields in line 3, saw 7; fix that line"),
    ('1,2,3', r"row 1: .*b.png, points, row \(1,\): expected finite x and y, or nan twice .*got \[3.0, nan\]"),
    ('1,x,3,4', "row 1, b.png: 1, x, 3, 4 are not all numbers")])
def test_a_wrong_number_of_points_in_a_row_names_file_and_row(tmp_path, cells, message):
    for o in 'ab': Image.new('RGB', (9, 9)).save(tmp_path/f'{o}.png')
    (tmp_path/'p.csv').write_text(f'fname,x1,y1,x2,y2\na.png,1,2,3,4\nb.png,{cells}\n')
    with pytest.raises(AnnotationError, match=message): read_df(tmp_path/'p.csv', point_cols=['x1', 'y1', 'x2', 'y2'])

@pytest.mark.slow
@pytest.mark.skipif('VISION_TASKS_DATA' not in os.environ, reason='VISION_TASKS_DATA names no folder of data')
def test_the_face_masks_csv_says_what_the_xml_says_and_their_boxes_survive_a_csv(tmp_path):
    path = Path(os.environ['VISION_TASKS_DATA'])/'facemask'
    boxes = read_voc(path, images='images', annotations='annotations')
    anns = read_df(path/'multilabel.csv', path/'images', label_col='labels', label_delim=' ', valid_col='is_valid')
    named = {a.path: set(a.labels) for a in boxes}
    assert len(anns) == 853 and {a.path: set(a.labels) for a in anns} == named
    assert {a.split for a in anns} == {'train', 'valid'}
    write_df(boxes, path).to_csv(tmp_path/'t.csv', index=False)
    back = read_df(tmp_path/'t.csv', path, label_col='label', bbox_cols=['x1', 'y1', 'x2', 'y2'])
    for a,b in zip(boxes, back, strict=True): same(a, b)

# --- what a csv file and a label cell may hold

def test_blanks_in_a_csv_files_names_cells_and_last_rows_mean_nothing(pics):
    (pics/'t.csv').write_bytes('\ufefffname , label ,x1,y1,x2,y2 \r\n a.png , dog, 1,2 ,3,4\r\n./a.png,cat,1,2,3,5\r\n'
                               ',,,,,\r\n   \r\n'.encode())
    a, = read_df(pics/'t.csv', label_col='label', bbox_cols=['x1', 'y1', 'x2', 'y2'])
    assert a.path.name == 'a.png' and a.labels == ['dog', 'cat'] and a.bboxes.tolist() == [[1, 2, 3, 4], [1, 2, 3, 5]]

def test_rows_with_a_cell_more_than_the_header_do_not_shift_its_columns(pics):
    (pics/'t.csv').write_text('fname,l\na.png,x,\nb.png,y,\n')
    a,b = read_df(pics/'t.csv', label_col='l')
    assert (a.path.name, a.labels, b.path.name, b.labels) == ('a.png', ['x'], 'b.png', ['y'])
    (pics/'t.csv').write_text('fname,l\na.png,x,z\nb.png,y,z\n')
    with pytest.raises(AnnotationError, match="t.csv is not a readable csv file"): read_df(pics/'t.csv', label_col='l')
    (pics/'t.csv').write_text('fname,l\n')
    with pytest.raises(AnnotationError, match="the table has no rows"): read_df(pics/'t.csv', label_col='l')

def test_two_columns_of_one_name_are_an_error(pics):
    (pics/'t.csv').write_text('fname,l,l\na.png,x,y\n')
    with pytest.raises(AnnotationError, match="t.csv: 'l' is the name of two columns; rename one"):
        read_df(pics/'t.csv', label_col='l')
    df = pd.DataFrame([['a.png', 'x', 'y']], columns=['fname', 'l', 'l'])
    with pytest.raises(AnnotationError, match="'l' is the name of two columns"): read_df(df, pics, label_col='l')
    assert len(read_df(df, pics)) == 1   # it is not asked for

def labels_of(pics, cell, delim=None, others=('x', 'y')):
    df = pd.DataFrame(dict(fname=['a.png', 'b.png', 'c.png']))
    df['l'] = pd.Series([cell, *others], dtype=object)
    return read_df(df, pics, label_col='l', label_delim=delim)[0].labels

@pytest.mark.parametrize('cell,want', [
    (['dog', 'hot dog'], ['dog', 'hot dog']), (('b', 'a'), ['b', 'a']), ({'b', 'a'}, ['a', 'b']), ([], []), ((), []),
    (frozenset(['a']), ['a']), (np.array(['b', 'a']), ['b', 'a']), (np.array([3, 7]), ['3', '7']),
    (pd.Series(['b', 'a']), ['b', 'a']), ([1, 2.], ['1', '2']), (np.int64(4), ['4']), (np.float32(4), ['4']),
    (2.5, ['2.5']),
    (pd.NA, []), (pd.NaT, []), (np.float64('nan'), []), (np.str_('dog'), ['dog']), ("it's", ["it's"]),
    ("['dog', \"it's\"]", ['dog', "it's"]), ('["dog", "cat"]', ['dog', 'cat']), ("('a',)", ['a']),
    ("{'b', 'a'}", ['a', 'b']),
    ('[]', []), (' [ 1 , 2 ] ', ['1', '2']), ('(half) a dog', ['(half) a dog'])])
def test_cells_that_hold_several_names_are_read(pics, cell, want):
    assert labels_of(pics, cell) == want == labels_of(pics, cell, ';')

@pytest.mark.parametrize('cell', [True, np.bool_(False), float('inf'), {'a': 1}, b'x', ['a', None], ['a', NAN], [['a']],
                                  ['a', ' '], [True], pd.Timestamp('2020-01-01'), object(), 1j])
def test_cells_that_hold_no_names_are_refused_with_their_row(pics, cell):
    with pytest.raises(AnnotationError, match="row 0, a.png: got .* of type .*; expected name|expected a name"):
        labels_of(pics, cell)

@pytest.mark.parametrize('cell', ["['dog' 'cat']", '[dog, cat]', "array(['a'], dtype=object)", '[1 2]', "['dog'", '{}',
                                  'set()', "['a', b]", "{'a': 1}"])
def test_text_that_looks_like_a_list_and_is_none_is_not_taken_for_a_name_in_silence(pics, cell):
    "numpy's text of an array among them, which Python reads as one long name"
    if cell == "['dog'":
        with pytest.warns(UserWarning, match=r"names contain one of \[ \| ; , such as"): labels_of(pics, cell)
        return
    with pytest.raises(AnnotationError, match="row 0, a.png: .* looks like a list, but cannot be read as one"):
        labels_of(pics, cell)

def test_a_box_has_one_label(pics):
    df = pd.DataFrame(dict(fname=['a.png']*2, label=[['dog'], 'cat'], x1=0, y1=0, x2=5, y2=[5, 6]))
    assert read_df(df, pics, **BOX)[0].labels == ['dog', 'cat']
    df['label'] = [['dog', 'cat'], 'cat']
    with pytest.raises(AnnotationError, match=r"row 0, a.png: 2 labels, \['dog', 'cat'\]; expected one per box"):
        read_df(df, pics, **BOX)

def test_a_label_twice_in_a_cell_counts_once_and_is_counted(pics):
    df = df_of(l=['x y x', 'y', 'x x x'])
    with pytest.warns(UserWarning, match="labels that repeat .*: 3 in 2 images, the first in .*a.png; each counts"):
        anns = read_df(df, pics, label_col='l', label_delim=' ')
    assert [a.labels for a in anns] == [['x', 'y'], ['y'], ['x']]

def test_a_delimiter_that_no_cell_has_is_an_error_where_another_has(pics):
    for cell,other in (('dog,cat', "','"), ('dog | cat', r"'\|'"), ('dog\tcat', r"'\\t'")):
        with pytest.raises(AnnotationError, match=f"label_delim ';' occurs in no cell, but row 0 holds .*; expected "
                                                  f"label_delim={other}, or None"): labels_of(pics, cell, ';')
    assert labels_of(pics, 'hot dog', ';') == ['hot dog']     # one label in every image
    with pytest.raises(ValueError, match="label_delim: expected a text that separates labels"): labels_of(pics, 'x', '')

@pytest.mark.parametrize('cells,message', [
    (['dog,cat', 'dog', 'dog'], r"1 of 2 names contain one of \[ \| ; , such as 'dog,cat'; .*label_delim="),
    (['dog cat', 'cat', 'dog'], None), (['a', 'b', 'a'], None),
    (['a b', 'b c', 'c a', 'b'], "4 of 4 names occur in one image only, such as 'a b'"),
    (['a', 'b', 'c', 'a'], None)])
def test_a_vocabulary_that_looks_like_cells_not_taken_apart_is_warned_of(pics, cells, message):
    df = pd.DataFrame(dict(fname=[f'{s}.png' for s in 'abcd'[:len(cells)]], l=cells))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        read_df(df, pics, label_col='l')
    assert len(seen) == (message is not None)
    if message: assert re.match(message, str(seen[0].message))

def test_one_hot_cells_that_are_missing_or_no_numbers_are_refused(pics):
    for o in (pd.NA, None, '1', [1]):
        df = df_of(dog=pd.Series([1, o, 0], dtype=object))
        with pytest.raises(AnnotationError, match="row 1, b.png: column 'dog' is .*; a one-hot column holds 0 and 1"):
            read_df(df, pics, label_col=['dog'])

# --- boxes in other forms

@pytest.mark.parametrize('relative', [False, True])
@pytest.mark.parametrize('form', ['xyxy', 'xywh', 'cxcywh'])
def test_boxes_of_every_form_are_those_that_torchvision_converts(tmp_path, form, relative):
    import torch
    from torchvision.ops import box_convert
    g,size = torch.Generator().manual_seed(0),(37, 53)
    Image.new('RGB', size).save(tmp_path/'a.png')
    xy = torch.rand(50, 2, 2, generator=g, dtype=torch.float64).sort(1).values*1.2 - .1   # some reach outside
    xyxy = xy.reshape(-1, 4)*(1 if relative else torch.tensor(size*2, dtype=torch.float64))
    b = box_convert(xyxy, 'xyxy', form).numpy()
    cols = ['x1', 'y1', 'x2', 'y2']
    df = pd.DataFrame(b, columns=cols).assign(fname='a.png', px=.5, py=.25)
    a, = read_df(df, tmp_path, 'fname', bbox_cols=cols, point_cols=['px', 'py'], bbox_format=form, relative=relative)
    np.testing.assert_allclose(a.bboxes, xyxy.numpy()*(np.array(size*2) if relative else 1), atol=1e-4)
    assert a.points[0].tolist() == [[18.5, 13.25] if relative else [.5, .25]]

def test_boxes_of_another_form_than_said_are_refused_with_their_row(pics):
    df = lambda *b: pd.DataFrame([['a.png', 'x', *b]], columns=['fname', 'label', 'x1', 'y1', 'x2', 'y2'])
    for form in ('xywh', 'cxcywh'):
        with pytest.raises(AnnotationError, match=f"row 0, a.png: expected width and height of 0 or more, .*'{form}'"):
            read_df(df(5, 5, -1, 3), pics, bbox_format=form, **BOX)
    with pytest.raises(AnnotationError, match="row 0, a.png: expected fractions of the image, .*relative=False reads"):
        read_df(df(1, 1, 5, 5), pics, relative=True, **BOX)
    with pytest.raises(AnnotationError, match="x1 <= x2 .* use bbox_format='xywh'"):
        read_df(df(9, 9, 5, 5), pics, **BOX)
    with pytest.raises(ValueError, match="bbox_format: expected one of 'xyxy', 'xywh', 'cxcywh', got 'ltwh'"):
        read_df(df(1, 1, 5, 5), pics, bbox_format='ltwh', **BOX)

def test_a_csv_whose_last_row_is_cut_is_an_error_that_names_it(tmp_path, shapes):
    name,file = shapes[0].path.name,tmp_path/'a.csv'
    head,rows = 'fname,label,x1,y1,x2,y2\n',[f'{name},a,1,2,30,40\n', f'{name},b,3,4,50,60\n']
    text,cols = head + ''.join(rows),['x1', 'y1', 'x2', 'y2']
    def read(text):
        file.write_text(text)
        return read_df(file, shapes[0].path.parent, label_col='label', bbox_cols=cols)
    assert len(read(text)) == len(read(text[:-1])) == 1   # the last line end may be missing
    # within a row: fewer cells than the header has
    for end in range(len(head + rows[0]) + 1, text.rindex(',')):
        with pytest.raises(AnnotationError, match=r"a.csv, line 3: .* has [1-5] of 6 cells .*truncated"):
            read(text[:end])

# --- what a spreadsheet would run

@pytest.mark.parametrize('bad', ['=cmd|"/C calc"!A0', '+cmd', '-cmd', '@SUM(1)', '=1+1', '[1]', '(1)', "['a']",
                                 "{'a'}", '[1, 2]'])
def test_a_label_that_would_be_run_or_read_as_a_list_is_refused(shapes, bad):
    for a in (Annotation(shapes[0].path, (64, 64), [bad]), Annotation(shapes[0].path, (64, 64), [bad], [[0, 0, 5, 5]])):
        with pytest.raises(AnnotationError, match='0000.png: label .*rename it'): write_df([a])

def test_a_group_that_would_be_run_is_refused_and_numbers_with_a_sign_are_not(shapes, tmp_path):
    a = Annotation(shapes[0].path, (64, 64), ['-1', '+2.5'], group='-3')
    for group in ('=x', '@x', ' x', ''):
        with pytest.raises(AnnotationError, match='group'): write_df([replace(a, group=group)])
    write_df([a]).to_csv(tmp_path/'t.csv', index=False)
    back, = read_df(tmp_path/'t.csv', shapes[0].path.parent, label_col='labels', label_delim=' ', group_col='group')
    assert back.labels == a.labels and back.group == '-3'

@pytest.mark.parametrize('name', ['=a.png', '-a.png', '+a.png', '@a.png'])
def test_a_file_name_that_would_be_run_is_read_back_equal_and_begins_otherwise_in_the_csv(tmp_path, name):
    Image.new('L', (4, 4)).save(tmp_path/name)
    df = write_df([Annotation(tmp_path/name, (4, 4), ['x'])], tmp_path)
    df.to_csv(tmp_path/'t.csv', index=False)
    assert df.fname.tolist() == [f'./{name}']
    for o in (df, tmp_path/'t.csv'): assert read_df(o, tmp_path, label_col='labels')[0].path == tmp_path/name

def test_true_and_false_are_no_pixels(shapes):
    kw = dict(label_col='l', bbox_cols=list('abcd'))
    for cell in (True, np.False_):
        df = pd.DataFrame(dict(f=[shapes[0].path]*2, l=['x', 'y'], a=[0, 1], b=[0, cell], c=[5, 6], d=[5, 6]))
        with pytest.raises(AnnotationError, match="column 'b' holds True or False"): read_df(df, **kw)
        with pytest.raises(AnnotationError, match="column 'b' holds True or False"):
            read_df(df.astype(dict(b=bool)), **kw)
