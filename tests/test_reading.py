import gc, json, time, warnings
import pytest
from PIL import Image
from vision_tasks.arguments import brief
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.formats.coco import read_coco
from vision_tasks.data.formats.mask_values import read_codes
from vision_tasks.data.formats.masks import read_masks
from vision_tasks.data.formats.points import read_biwi, read_dlc
from vision_tasks.data.reading import read_all, read_json, read_lines, read_text, read_yaml
from vision_tasks.data.formats.table import read_df
from vision_tasks.data.formats.via import read_via
from vision_tasks.data.formats.voc import read_voc
from vision_tasks.data.formats.yolo import read_yolo

def test_the_search_for_cycles_is_paused_while_files_are_read_and_goes_on_after_errors(tmp_path):
    seen = []
    def read(o):
        seen.append(gc.isenabled())
        raise AnnotationError('no')
    with pytest.raises(AnnotationError): read_all(read, [1])
    (tmp_path/'a.json').write_text('{')
    with pytest.raises(AnnotationError): read_json(tmp_path/'a.json')
    assert seen == [False] and gc.isenabled()

def test_readers_drop_and_count_or_raise():
    def read(i):
        if i % 2: raise AnnotationError(f"row {i} is bad")
        return Annotation(f'{i}.png', (20, 10), [str(i)])
    with pytest.raises(AnnotationError, match="row 1 is bad"): read_all(read, range(5))
    with pytest.warns(UserWarning, match="2 of 5 images are dropped: row 1 is bad; row 3 is bad"):
        assert [a.labels for a in read_all(read, range(5), 'drop')] == [['0'], ['2'], ['4']]
    with pytest.raises(ValueError, match="'raise' or 'drop', not 'skip'"): read_all(read, [], 'skip')

def test_an_image_that_several_entries_lead_to_is_one_error_and_one_drop(tmp_path):
    for o in 'ab': Image.new('RGB', (20, 10)).save(tmp_path/f'{o}.png')
    (tmp_path/'link.png').symlink_to('a.png')
    paths = [tmp_path/o for o in ('a.png', 'b.png', 'link.png')] + [tmp_path/'x'/'..'/'a.png']
    (tmp_path/'x').mkdir()
    read = lambda path: Annotation(path, (20, 10))
    with pytest.raises(AnnotationError, match="row a .* and row link .* are the same image file, .*a.png; .*keep one"):
        read_all(read, paths[:3], entry=lambda o: f'row {o.stem}')
    with pytest.warns(UserWarning, match="1 of 2 images are dropped: .*a.png and .*link.png and .*a.png are the same"):
        assert [a.path.name for a in read_all(read, paths, 'drop')] == ['b.png']

@pytest.mark.parametrize('change', [dict(), dict(masks=[[[1, 1, 5, 1, 5, 5]], [[1, 1, 5, 5, 1, 5]]]),
                                    dict(points=[[[1, 2]], [[1, 3]]]), dict(ignore=[True, False]),
                                    dict(scores=[.5, .25]), dict(labels=['x', 'y']),
                                    dict(bboxes=[[1, 1, 5, 5], [1, 1, 5, 6]])],
                         ids=lambda o: '_'.join(o) or 'nothing')
def test_objects_are_warned_of_where_they_differ_in_nothing(change):
    a = Annotation('a.png', (20, 10), **{**dict(labels=['x', 'x'], bboxes=[[1, 1, 5, 5]]*2), **change})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        b, = read_all(lambda o: a, [0])
    assert len(b.labels) == 2   # kept
    assert [str(o.message)[:64] for o in seen if o.category is UserWarning] == (   # NumPy 1.26 has one of its own
        [] if change else ["objects that repeat another of the same image: 1 in 1 images, th"])

def test_labels_of_an_image_count_once_and_are_counted():
    with pytest.warns(UserWarning, match="labels that repeat .*: 3 in 2 images, the first in 1.png; each counts once"):
        anns = read_all(lambda o: Annotation(f'{o}.png', (9, 9), ['b', 'a', *'ba'[:o]]), range(3))
    assert [a.labels for a in anns] == [['b', 'a']]*3

# --- text

ENCODINGS = ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32']   # the last two with their marks

@pytest.mark.parametrize('encoding', ENCODINGS)
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_text_is_the_same_with_any_mark_and_line_end(tmp_path, encoding, end):
    (tmp_path/'t.txt').write_bytes(end.join(['né ', '', ' 中 b\t', '  ']).encode(encoding))
    assert read_text(tmp_path/'t.txt') == 'né \n\n 中 b\t\n  '
    assert read_lines(tmp_path/'t.txt') == [(1, 'né'), (3, '中 b')]

@pytest.mark.parametrize('data,message', [
    ('a\r\nb\ncafé'.encode('cp1252'), "t.txt, line 3: cannot be read as text: byte 0xe9 is not UTF-8; save"),
    ('a\nb'.encode('utf-16-le'), "t.txt, line 1: .* NUL character"), (b'\xff\xfea\0b', "t.txt, line 1: .*UTF-16-LE")])
def test_text_of_another_encoding_is_an_error_that_names_the_line(tmp_path, data, message):
    (tmp_path/'t.txt').write_bytes(data)
    with pytest.raises(AnnotationError, match=message): read_text(tmp_path/'t.txt')

@pytest.mark.parametrize('text', ['{"a": 1, "b": {"c": 1, "c": 2}}', '{"a": 1, "c": 1, "c": {}}'])
def test_a_key_that_appears_twice_is_an_error_in_json_and_yaml(tmp_path, text):
    for name,read in (('t.json', read_json), ('t.yaml', read_yaml)):
        (tmp_path/name).write_text(text)
        with pytest.raises(AnnotationError, match=f"{name} is not readable .*the key 'c' appears twice"):
            read(tmp_path/name)

def test_yaml_and_json_that_nest_too_deep_are_refused(tmp_path):
    for name,read in (('t.json', read_json), ('t.yaml', read_yaml)):
        (tmp_path/name).write_text('['*100_000)
        with pytest.raises(AnnotationError, match=f"{name} is not readable"): read(tmp_path/name)

# --- the same for every reader

XML = ("<?xml version='1.0'?>\n<annotation><filename>é 1.png</filename><size><width>20</width><height>10</height>"
       "</size>\n"
       "<object><name>né</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>\n"
       "</annotation>\n")
VIA = json.dumps(dict(k=dict(filename='é 1.png', regions=[dict(
    shape_attributes=dict(name='rect', x=1, y=1, width=4, height=4), region_attributes=dict(kind='né'))])),
    ensure_ascii=False, indent=1)
COCO = json.dumps(dict(images=[dict(id=1, file_name='é 1.png', width=20, height=10)],
                       categories=[dict(id=1, name='né')],
                       annotations=[dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 4, 4])]),
                  ensure_ascii=False, indent=1)
TABLE = 'fname,label,x1,y1,x2,y2\né 1.png,né,1,1,5,5\n'
DLC = 'scorer,é,é\nbodyparts,né,né\ncoords,x,y\né 1.png,1,2\n'
READERS = {   # name: (its text files; how it is read, from the folder that holds é 1.png)
    'voc':   ({'é 1.xml': XML, 'ImageSets/Main/train.txt': 'é 1\n'},
              lambda d, **kw: read_voc(d, images='.', annotations='.', **kw)),
    'yolo':  ({'data.yaml': 'train: l.txt\nnames:\n- né\n', 'l.txt': 'é 1.png\n', 'é 1.txt': '0 .15 .3 .2 .4\n'},
              read_yolo),
    'coco':  ({'t.json': COCO}, lambda d, **kw: read_coco(d/'t.json', d, **kw)),
    'via':   ({'t.json': VIA}, lambda d, **kw: read_via(d/'t.json', d, **kw)),
    'table': ({'t.csv': TABLE}, lambda d, **kw: read_df(d/'t.csv', label_col=1, bbox_cols=[2, 3, 4, 5], **kw)),
    'dlc':   ({'t.csv': DLC}, lambda d, **kw: read_dlc(d/'t.csv', **kw)),
    'biwi':  ({'é 1_pose.txt': '1 0 0\n0 1 0\n0 0 1\n1 2 500\n',
               'rgb.cal': '500 0 9\n0 500 5\n0 0 1\n0 0 0 0\n1 0 0\n0 1 0\n0 0 1\n0 0 0\n20 10\n'},
              lambda d, **kw: read_biwi(d, '*_rgb.png', **kw)),
    'codes': ({'c.yaml': 'names:\n- né\n- no\n'},
              lambda d, **kw: read_masks([d/'é 1.png'], [d/'m'/'é 1.png'], d/'c.yaml', **kw))}

def folder_of(reader, folder, encoding='utf-8', end='\n', blanks=''):
    (folder/'m').mkdir(parents=True)
    Image.new('L', (20, 10)).save(folder/'m'/'é 1.png')
    for o in ('é 1.png', 'é 1_rgb.png'): Image.new('RGB', (20, 10)).save(folder/o)
    if reader == 'voc': (folder/'m'/'é 1.png').unlink(), (folder/'é 1_rgb.png').unlink()
    for name,text in READERS[reader][0].items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(text.replace('\n', blanks + end).encode(encoding))
    return folder

def plain(a):
    "What an annotation holds, in comparable form"
    arrays = {k: None if v is None else v.tolist() for k in ('bboxes', 'points') for v in [getattr(a, k)]}
    return a.path.name, a.size, a.labels, a.split, arrays

@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('encoding,end,blanks', [
    ('utf-8', '\r\n', ''), ('utf-8-sig', '\n', ''), ('utf-8', '\n', '  '), ('utf-8-sig', '\r\n', ' '),
    ('utf-16', '\r\n', '')])
def test_every_reader_reads_marks_line_ends_and_blanks_away(tmp_path, reader, encoding, end, blanks):
    read = READERS[reader][1]
    want = read(folder_of(reader, tmp_path/'plain'))
    got  = read(folder_of(reader, tmp_path/'other', encoding, end, blanks))
    assert len(want) == 1 and [*map(plain, got)] == [*map(plain, want)]
    if reader in ('dlc', 'biwi', 'codes'): return
    assert got[0].labels == ['né'] and got[0].bboxes.round(4).tolist() == [[1, 1, 5, 5]]

@pytest.mark.parametrize('reader', [o for o in READERS if o != 'biwi'])   # whose files are numbers
def test_every_reader_names_the_file_and_line_that_it_cannot_decode(tmp_path, reader):
    texts,read = READERS[reader]
    for i,name in enumerate(texts):
        d = folder_of(reader, tmp_path/str(i))
        if 'é' not in texts[name] and 'né' not in texts[name]: continue
        (d/name).write_bytes(texts[name].encode('cp1252'))
        message = rf"{name}.*(, line \d+: cannot be read as text|line \d+, column)"   # the last: of the xml parser
        with pytest.raises(AnnotationError, match=message): read(d)

TWICE = {   # how each reader's files say that é 1.png and its link b.png are two images
    'voc':   lambda d: (d/'b.xml').write_text(XML.replace('é 1.png', 'b.png')),
    'yolo':  lambda d: (d/'l.txt').write_text('é 1.png\nb.png\n'),
    'coco':  lambda d: (d/'t.json').write_text(json.dumps({**json.loads(COCO), 'images': [
                 dict(id=i, file_name=o, width=20, height=10) for i,o in ((1, 'é 1.png'), (2, 'b.png'))]})),
    'via':   lambda d: (d/'t.json').write_text(json.dumps({**json.loads(VIA),
                                                           'b': dict(filename='b.png', regions=[])})),
    'table': lambda d: (d/'t.csv').write_text(TABLE + 'b.png,né,1,1,5,5\n'),
    'dlc':   lambda d: (d/'t.csv').write_text(DLC + 'b.png,1,2\n')}

@pytest.mark.parametrize('reader', TWICE)
def test_every_reader_refuses_one_image_under_two_names(tmp_path, reader):
    read,d = READERS[reader][1],folder_of(reader, tmp_path/'d')
    (d/'b.png').symlink_to('é 1.png')
    TWICE[reader](d)
    with pytest.raises(AnnotationError, match="are the same image file, .*é 1.png; an image must have one"): read(d)
    with pytest.warns(UserWarning, match="1 of 1 images are dropped"): assert read(d, on_error='drop') == []

def test_masks_refuse_an_image_that_is_listed_twice(tmp_path):
    d = folder_of('codes', tmp_path/'d')
    with pytest.raises(AnnotationError, match="are the same image file"):
        read_masks([d/'é 1.png', d/'m'/'..'/'é 1.png'], [d/'m'/'é 1.png']*2, ['a'])

def test_coco_refuses_one_file_under_two_ids_and_names_both(tmp_path):
    d = folder_of('coco', tmp_path/'d')
    (d/'t.json').write_text(json.dumps({**json.loads(COCO), 'images': [
        dict(id=i, file_name='é 1.png', width=20, height=10) for i in (1, 7)]}))
    with pytest.raises(AnnotationError, match="t.json, image 1 and .*t.json, image 7 are the same image file"):
        read_coco(d/'t.json', d)

ROW_TWICE = {
    'voc':   ('é 1.xml', lambda s: s.replace(o := s[s.index('<object>'):s.index('</annotation>')], o*2)),
    'yolo':  ('é 1.txt', lambda s: s*2),
    'coco':  ('t.json', lambda s: json.dumps({**json.loads(s), 'annotations': json.loads(s)['annotations']*2})),
    'via':   ('t.json', lambda s: json.dumps(dict(k=dict(filename='é 1.png',
                                                          regions=json.loads(s)['k']['regions']*2)))),
    'table': ('t.csv', lambda s: s + s.splitlines()[1] + '\n')}

@pytest.mark.parametrize('reader', ROW_TWICE)
def test_every_reader_keeps_an_object_that_appears_twice_and_counts_it(tmp_path, reader):
    name,twice = ROW_TWICE[reader]
    d = folder_of(reader, tmp_path/'d')
    (d/name).write_text(twice(READERS[reader][0][name]))
    message = "objects that repeat another of the same image: 1 in 1 images, the first in .*é 1.png"
    with pytest.warns(UserWarning, match=message):
        a, = READERS[reader][1](d)
    assert a.labels == ['né']*2

BOMB = ("a: &a [x,x,x,x,x,x,x,x,x]\n" + ''.join(f"{c}: &{c} [{','.join([f'*{p}']*9)}]\n"
                                                for p,c in zip('abcdefghijk', 'bcdefghijkl')))   # 9**12 texts

@pytest.mark.parametrize('text,read', [
    ("train: m\nnames: *l", read_yolo), ("train: *l\nnames: [a]", read_yolo),
    ("path: *l\ntrain: m\nnames: [a]", read_yolo),
    ("nc: *l\ntrain: m\nnames: [a]", read_yolo), ("names: *l", read_codes), ("names: {0: *l}", read_codes),
    ("names: {x: *l}", read_codes), ("classes: *l\nnames: *l", read_codes)])
def test_a_yaml_file_whose_aliases_nest_is_refused_at_once(tmp_path, text, read):
    d = folder_of('codes', tmp_path/'d')
    (d/'data.yaml').write_text(BOMB + text)
    (d/'c.yaml').unlink()
    start = time.process_time()
    with pytest.raises(AnnotationError) as e: read(d/'data.yaml')
    assert len(str(e.value)) < 1000 and time.process_time() - start < 1

def test_brief_is_the_repr_of_what_is_short_and_builds_no_more_than_it_shows():
    for o in ('a', 7, [1, 'b'], dict(a=[1]), None, 'é'*70): assert brief(o) == repr(o)
    o = ['x']
    for _ in range(60): o = [o]*9
    for big in (o, 'x'*10**6, list(range(10**6)), {i: o for i in range(99)}): assert len(brief(big)) <= 80
    assert len(brief(o, 30)) <= 30
