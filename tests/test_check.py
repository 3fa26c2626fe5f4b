import re
from dataclasses import replace
import numpy as np, pandas as pd, pytest
from PIL import Image
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.check import check_annotations

NAN = float('nan')

@pytest.fixture
def good(shapes): return [replace(a, split='valid' if i % 4 == 0 else 'train') for i,a in enumerate(shapes[:8])]

def found(anns, vocab=None):
    df = check_annotations(anns, vocab)
    assert list(df.columns) == ['path', 'problem', 'detail']
    return list(zip(df.path, df.problem, df.detail))

def test_good_data_have_no_problem(good): assert found(good) == [] and isinstance(check_annotations(good), pd.DataFrame)

def test_each_problem_is_listed_with_its_file(good, tmp_path):
    half,other = tmp_path/'half.png',tmp_path/'copy.png'
    half.write_bytes(good[0].path.read_bytes()[:150]); other.write_bytes(good[1].path.read_bytes())
    Image.new('RGB', (40, 20)).save(tmp_path/'turned.jpg', exif=_exif(6))
    path,n = good[2].path,(64, 64)
    cases = [(Annotation(half, n), 'unreadable image', 'half.png'),
             (Annotation(tmp_path/'gone.jpg', n), 'unreadable image', 'gone.jpg'),
             (replace(good[2], size=(65, 64), mask=None, path=tmp_path/'x.png'), 'size differs',
              'says 65x64'),
             (Annotation(tmp_path/'turned.jpg', (40, 20)), 'size differs',
              'the file is 20x40 as shown (40x20 as stored, before its EXIF orientation is applied)'),
             (Annotation(path, n, ['star'], bboxes=[[1, 1, 65, 2]]), 'box outside', 'box 0'),
             (Annotation(path, n, ['star'], bboxes=[[1, 1, 1, 2]]), 'box without area', 'box 0'),
             (Annotation(path, n, points=[[1, 2], [NAN, NAN], [3, 65]]), 'point outside', 'point 2: [3.0, 65.0]'),
             (Annotation(path, n, ['star'], bboxes=[[1, 1, 2, 2]], points=[[[-1, 2]]]), 'point outside',
              'point 0 of object 0'),
             (Annotation(path, n, ['heart']), 'unknown class', "'heart'"),
             (Annotation(path, n, ['']), 'empty label', "''"),
             (Annotation(path, n, mask=np.full((64, 64), 9, np.uint8)), 'mask value outside the codes',
              '9; there are 4 codes')]
    (tmp_path/'x.png').write_bytes(path.read_bytes())
    for a,problem,detail in cases:
        rows = found([a], ['circle', 'square', 'star', 'triangle'])
        assert [(r[0], r[1]) for r in rows] == [(a.path, problem)] and detail in rows[0][2], rows
    (p,problem,detail), = found([good[1], replace(good[1], path=other)])
    assert (p, problem) == (other, 'picture twice')
    rows = found([replace(good[1], split='train'), replace(good[1], path=other, split='valid')])
    assert [r[1] for r in rows] == ['picture twice', 'picture on both sides of the split']
    rows = found([replace(a, group='ann') for a in (good[0], good[1])])
    assert [r[1] for r in rows] == ['group on both sides of the split'] and "group 'ann'" in rows[0][2]

def test_masks_of_objects_are_looked_at(good):
    path,box = good[2].path,[[10, 20, 30, 60]]
    def of(mask, **kw): return [r[1:] for r in found([Annotation(path, (64, 64), ['star'], box, masks=[mask], **kw)])]
    swapped = [[20, 10, 60, 10, 60, 30, 20, 30]]
    assert of([[10, 20, 30, 20, 30, 60]]) == of([[8, 20, 30, 20, 30, 62]]) == []
    (problem,detail), = of(swapped)
    assert problem == 'mask outside box' and '[20.0, 10.0, 60.0, 30.0], the box is [10.0, 20.0, 30.0, 60.0]' in detail
    for m,why in (([[1, 2, 3, 4]], 'three or more points'), (dict(size=[64, 64], counts=[9]), r'h\*w = 4096')):
        (problem,detail), = of(m)
        assert problem == 'unreadable mask' and "mask 0, 'star'" in detail and re.search(why, detail)
    assert [r[0] for r in of([])] == ['empty mask'] and of([], ignore=[True]) == []

def _exif(o):
    e = Image.Exif(); e[0x0112] = o
    return e

def test_mask_files_are_read_as_indices(good):
    assert found(good, ['circle', 'square', 'star', 'triangle', 'background']) == []
    rows = found([a for a in good if 'triangle' in a.labels], ['circle', 'square', 'star', 'triangle'])
    assert {r[1] for r in rows} == {'mask value outside the codes'}
