import os
from collections import Counter
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.formats.voc import read_voc, write_voc

XML = """<annotation><filename>{name}</filename>{size}{objects}</annotation>"""
SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"
def obj(name='dog', box=(1, 1, 10, 10), difficult=None):
    tags = ''.join(f'<{k}>{v}</{k}>' for k,v in zip(('xmin', 'ymin', 'xmax', 'ymax'), box))
    hard = '' if difficult is None else f'<difficult>{difficult}</difficult>'
    return f"<object><name>{name}</name>{hard}<bndbox>{tags}</bndbox></object>"

@pytest.fixture
def voc(tmp_path):
    "`voc(stem, objects, ...)` writes one image and its xml; `voc.path` is the folder"
    for d in ('JPEGImages', 'Annotations', 'ImageSets/Main'): (tmp_path/d).mkdir(parents=True)
    def write(stem, objects='', size=SIZE, name=None, text=None, wh=(40, 30), exif=None):
        Image.new('RGB', wh).save(tmp_path/'JPEGImages'/f'{stem}.jpg', **({} if exif is None else dict(exif=exif)))
        text = text or XML.format(name=name or f'{stem}.jpg', size=size, objects=objects)
        (tmp_path/'Annotations'/f'{stem}.xml').write_text(text)
    write.path = tmp_path
    return write

def test_pixels_become_zero_based_and_exclusive(voc):
    voc('b', obj(box=(1, 1, 40, 30)) + obj('cat', (3, 4, 3, 4), 1))
    voc('a')
    first,second = read_voc(voc.path)
    assert first.path.name == 'a.jpg' and first.labels == [] and first.bboxes.shape == (0, 4) and first.size == (40, 30)
    assert second.bboxes.tolist() == [[0, 0, 40, 30], [2, 3, 3, 4]] and second.labels == ['dog', 'cat']
    assert second.ignore.tolist() == [False, True] and second.split is None

def test_boxes_outside_the_image_and_fractions_are_kept(voc):
    voc('a', obj(box=(-4, 1.5, 41, 30)))
    assert read_voc(voc.path)[0].bboxes.tolist() == [[-5, .5, 41, 30]]

def test_lists_give_splits_or_choose(voc):
    for s in 'abcd': voc(s)
    main = voc.path/'ImageSets'/'Main'
    for name,stems in dict(train='b\n', val='a\n\n', test='d\n', trainval='a\nb\n', dog_train='a 1\nb -1\n').items():
        (main/f'{name}.txt').write_text(stems)
    splits = [(a.path.stem, a.split) for a in read_voc(voc.path)]
    assert splits == [('a', 'valid'), ('b', 'train'), ('c', None), ('d', 'test')]
    assert [(a.path.stem, a.split) for a in read_voc(voc.path, 'trainval')] == [('a', None), ('b', None)]
    assert [(a.path.stem, a.split) for a in read_voc(voc.path, 'val')] == [('a', 'valid')]
    assert len(read_voc(voc.path, 'dog_train')) == 2
    with pytest.raises(AnnotationError, match=r"dev.txt: no such list; found "
                                              r"\['dog_train', 'test', 'train', 'trainval', 'val'\]"):
        read_voc(voc.path, 'dev')
    (main/'train.txt').write_text('b\nghost\n')
    with pytest.raises(AnnotationError, match="train.txt, line 2: 'ghost' has no file"): read_voc(voc.path, 'train')

def test_an_image_is_found_by_its_stem_when_the_xml_has_its_name_wrong(voc):
    voc('a', name='/old/place/a.png'); voc('b', name='renamed.jpg')
    assert [a.path.name for a in read_voc(voc.path)] == ['a.jpg', 'b.jpg']

BAD = {
    "a.xml, object 2: xmin 30 is not left of xmax 20; fix the file, or drop the object":
        dict(objects=obj() + obj(box=(30, 1, 20, 5))),
    "a.xml, object 1: ymin 9 is not above ymax 5": dict(objects=obj(box=(1, 9, 20, 5))),
    "a.xml, object 1: xmax is 'wide', not a number": dict(objects=obj(box=(1, 1, 'wide', 5))),
    "a.xml, object 1: xmin is None, not a number": dict(objects='<object><name>dog</name></object>'),
    "a.xml, object 1: no <name>": dict(objects=obj('')),
    "a.xml has no <size> with width and height; a.jpg is 40x30": dict(size=''),
    "a.xml has no <size>": dict(size="<size><width>0</width><height>0</height></size>"),
    "a.xml: <size> is 40x30, but a.jpg is 80x60; scale the boxes": dict(wh=(80, 60)),
    "a.xml is not readable xml": dict(text='<annotation><object></annotation>'),
    "a.xml is not readable xml .*[Ee]ntit": dict(text='<!DOCTYPE x [<!ENTITY e "boom">]><annotation>&e;</annotation>'),
}
@pytest.mark.parametrize('message', BAD, ids=range(len(BAD)))
def test_what_cannot_be_read_raises_or_is_dropped_and_counted(voc, message):
    voc('b', obj()); voc('a', **BAD[message])
    with pytest.raises(AnnotationError, match=message): read_voc(voc.path)
    with pytest.warns(UserWarning, match="1 of 2 images are dropped: .*a.xml"):
        assert [a.path.stem for a in read_voc(voc.path, on_error='drop')] == ['b']

def test_boxes_of_an_image_before_its_exif_turn_are_told(voc):
    e = Image.Exif(); e[0x0112] = 6
    voc('a', obj(), exif=e)
    with pytest.raises(AnnotationError, match="is 40x30, but a.jpg is 30x40; .* before its EXIF orientation"):
        read_voc(voc.path)

def test_missing_folders_and_images_are_told(voc):
    with pytest.raises(AnnotationError, match="Annotations holds no xml file"): read_voc(voc.path)
    voc('a', obj())
    (voc.path/'JPEGImages'/'a.jpg').unlink()
    with pytest.raises(AnnotationError, match=r"a.xml: neither 'a.jpg' nor a.\* is in .*JPEGImages; "
                                              "fix the name, or name the folder with images="):
        read_voc(voc.path)
    with pytest.raises(AnnotationError, match="pics: no such folder; name it with images="):
        read_voc(voc.path, images='pics')
    (voc.path/'JPEGImages'/'a.jpg').write_text('text')
    with pytest.raises(AnnotationError, match="a.jpg: cannot be read as an image"): read_voc(voc.path)

def test_writing_and_reading_give_the_same_back(shapes, tmp_path):
    from dataclasses import replace
    anns = [replace(a, ignore=np.arange(len(a.labels)) % 2 == 0, split=('train', 'valid', 'test')[i % 3],
                    bboxes=a.bboxes + np.float32(1/3)) for i,a in enumerate(shapes)]
    write_voc(anns, tmp_path/'new'); write_voc(anns, tmp_path/'new')
    back = read_voc(tmp_path/'new')
    assert len(back) == len(anns)
    for a,b in zip(anns, back):
        assert (a.path.name, a.size, a.labels, a.split) == (b.path.name, b.size, b.labels, b.split)
        assert a.ignore.tolist() == b.ignore.tolist()
        assert np.array_equal(a.bboxes, b.bboxes) and a.path.read_bytes() == b.path.read_bytes()

def test_a_generator_and_boxes_without_area_are_written_and_come_back(shapes, tmp_path):
    a = Annotation(shapes[0].path, (64, 64), ['x', 'y'], bboxes=[[5, 5, 5, 5], [10.2, 3, 10.7, 9]])
    write_voc((o for o in [a]), tmp_path)
    assert np.array_equal(read_voc(tmp_path)[0].bboxes, a.bboxes)

def test_an_image_listed_on_two_sides_is_told_and_other_files_of_its_name_are_no_images(voc):
    voc('a', name='renamed.png')
    (voc.path/'JPEGImages'/'a.json').write_text('{}')
    assert read_voc(voc.path)[0].path.name == 'a.jpg'
    for name in ('train', 'val'): (voc.path/'ImageSets'/'Main'/f'{name}.txt').write_text('a\n')
    with pytest.raises(AnnotationError, match="val.txt, line 1: 'a' is also listed as train"): read_voc(voc.path)

def test_what_voc_cannot_hold_is_refused(shapes, tmp_path):
    with pytest.raises(AnnotationError, match="VOC files hold boxes, but this annotation has none"):
        write_voc([Annotation(shapes[0].path, (64, 64), ['a'])], tmp_path)
    with pytest.raises(AnnotationError, match="would both become .*0000.xml"): write_voc([shapes[0]]*2, tmp_path)
    with pytest.raises(AnnotationError, match="gone.png: no such image file; nothing was written"):
        write_voc([Annotation(tmp_path/'gone.png', (4, 4), bboxes=[])], tmp_path/'n')
    for o in ('', ' x', 'x\n', 'x\x01y'):   # would come back as another name, or not at all
        with pytest.raises(AnnotationError, match="label .* is empty, begins or ends with a blank, or has a contr"):
            write_voc([Annotation(shapes[0].path, (64, 64), [o], [[0, 0, 9, 9]])], tmp_path/'n')
    assert not (tmp_path/'n').exists()
    with pytest.raises(AnnotationError, match="annotation 0 has no file"):
        write_voc([Annotation(None, (64, 64), bboxes=[])], tmp_path)

@pytest.mark.slow
@pytest.mark.skipif('VISION_TASKS_DATA' not in os.environ, reason='VISION_TASKS_DATA names no folder of data')
def test_the_face_masks_read_with_all_their_boxes_also_those_outside(tmp_path):
    anns = read_voc(Path(os.environ['VISION_TASKS_DATA'])/'facemask', images='images', annotations='annotations')
    assert len(anns) == 853 and max(len(a.labels) for a in anns) == 115
    assert Counter(o for a in anns for o in a.labels) == dict(with_mask=3232, without_mask=717,
                                                              mask_weared_incorrect=123)
    assert sum(((a.bboxes < 0) | (a.bboxes > a.size*2)).any(1).sum() for a in anns) == 12
    write_voc(anns, tmp_path)
    for a,b in zip(anns, read_voc(tmp_path), strict=True):
        assert a.labels == b.labels and np.array_equal(a.bboxes, b.bboxes)

# --- names, lists and folders

def test_a_filename_without_a_suffix_is_not_cut_at_its_dot(voc):
    for stem in ('shot', 'shot.0', 'shot.1'): voc(stem, obj(), name=stem)
    assert [a.path.name for a in read_voc(voc.path)] == ['shot.0.jpg', 'shot.1.jpg', 'shot.jpg']
    (voc.path/'JPEGImages'/'shot.1.jpg').unlink()
    with pytest.raises(AnnotationError, match=r"shot.1.xml: neither 'shot.1' nor shot.1.\* is in"): read_voc(voc.path)

def test_two_images_that_fit_are_an_error_and_a_whole_name_decides(voc):
    voc('a', name='a.gif')
    Image.new('RGB', (40, 30)).save(voc.path/'JPEGImages'/'a.png')
    with pytest.raises(AnnotationError, match="a.xml: <filename> is 'a.gif', and .*a.jpg and .*a.png match; write"):
        read_voc(voc.path)
    voc('a', name='a.png')
    assert read_voc(voc.path)[0].path.name == 'a.png'
    voc('a', name='C:\\data\\a.jpg')
    assert read_voc(voc.path)[0].path.name == 'a.jpg'

def test_two_xml_files_of_one_image_are_an_error_that_names_both(voc):
    voc('a'); voc('b', name='a.jpg')
    with pytest.raises(AnnotationError, match="a.xml .*and .*b.xml .*are the same image file"): read_voc(voc.path)

@pytest.mark.parametrize('text,want', [
    ('0', False), ('1', True), ('True', True), ('FALSE', False), ('1.0', True), (' 1 ', True), ('0.0', False),
    ('yes', True), ('', False)])
def test_difficult_is_read_in_all_its_spellings(voc, text, want):
    voc('a', obj(difficult=text))
    assert read_voc(voc.path)[0].ignore.tolist() == [want]

def test_difficult_of_another_spelling_is_an_error(voc):
    for text in ('2', 'maybe', 'nan'):
        voc('a', obj(difficult=text))
        with pytest.raises(AnnotationError, match=f"a.xml, object 1: difficult is '{text}'; expected 0 or 1"):
            read_voc(voc.path)

def main(voc, **lists):
    for k,v in lists.items(): (voc.path/'ImageSets'/'Main'/f'{k}.txt').write_bytes(v.encode())

def test_names_with_blanks_are_read_in_lists_of_images_and_of_one_class(voc):
    names = 'img 0', 'img 1', 'my cat', 'img'
    for o in names: voc(o)
    main(voc, train='img 0\r\nimg 1 \r\nmy cat\r\n', val='img\n', cat_train='img 0  1\nimg 1 -1\nmy cat  0\nimg 1\n')
    assert {a.path.stem: a.split for a in read_voc(voc.path)} == dict(zip(names, ['train']*3 + ['valid']))
    assert [a.path.stem for a in read_voc(voc.path, 'cat_train')] == ['img 0', 'img 1', 'my cat', 'img']

def test_names_in_lists_may_have_suffixes_and_folders(voc):
    for d in ('JPEGImages/sub', 'Annotations/sub'): (voc.path/d).mkdir()
    for o in ('a', 'sub/a', 'sub/b.c'): voc(o, name=o.rpartition('/')[2] + '.jpg')
    main(voc, train='a.jpg\nsub\\a\n', val='sub/b.c.xml\n')
    read = read_voc(voc.path)
    assert [(a.path.relative_to(voc.path/'JPEGImages').as_posix(), a.split) for a in read] == [
        ('a.jpg', 'train'), ('sub/a.jpg', 'train'), ('sub/b.c.jpg', 'valid')]

def test_a_list_in_upper_case_is_read_and_a_name_twice_is_an_error(voc):
    voc('a'); voc('b')
    (voc.path/'ImageSets'/'Main'/'train.TXT').write_text('a\n')
    assert [a.split for a in read_voc(voc.path)] == ['train', None]
    main(voc, val='b\na\nb\n')
    (voc.path/'ImageSets'/'Main'/'train.TXT').unlink()
    for split in (None, 'val'):
        with pytest.raises(AnnotationError, match="val.txt, line 3: 'b' appears twice, also in line 1"):
            read_voc(voc.path, split)

def test_names_and_images_without_xml_are_counted(voc):
    voc('a'); main(voc, train='ghost\na\n')
    for o in 'bc': Image.new('RGB', (4, 4)).save(voc.path/'JPEGImages'/f'{o}.jpg')
    with pytest.warns(UserWarning) as seen: assert len(read_voc(voc.path)) == 1
    # one warning of each
    assert [str(o.message).split('train.txt')[-1].split('JPEGImages')[0] for o in seen] == [
        ": 1 of 2 names have no xml file and are not read; the first is 'ghost' in line 1",
        f"2 of 3 images in {voc.path}/"]
    with pytest.warns(UserWarning, match="have no xml file and are not read; the first is .*b.jpg"): read_voc(voc.path)

def test_xml_files_in_any_case_may_lie_beside_the_images_in_folders(voc, recwarn):
    for o in ('x', 'deep/y'):
        (voc.path/'flat'/o).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (40, 30)).save(voc.path/'flat'/f'{o}.JPG')
        (voc.path/'flat'/f'{o}.XML').write_text(XML.format(name=f'{o[-1]}.jpg', size=SIZE, objects=obj()))
    a,b = read_voc(voc.path/'flat', images='.', annotations='.')
    assert {a.path.name, b.path.name} == {'x.JPG', 'y.JPG'} and not recwarn.list

def test_a_name_that_no_list_can_hold_is_refused(tmp_path):
    Image.new('RGB', (4, 4)).save(tmp_path/'a .png')
    with pytest.raises(AnnotationError, match="its name begins or ends with a blank"):
        write_voc([Annotation(tmp_path/'a .png', (4, 4), bboxes=[])], tmp_path/'n')
    assert not (tmp_path/'n').exists()

def test_a_hidden_image_that_read_voc_would_skip_is_not_written(tmp_path):
    Image.new('L', (4, 4)).save(tmp_path/'.x.png')
    with pytest.raises(AnnotationError, match='.x.png: its name begins with a dot'):
        write_voc([Annotation(tmp_path/'.x.png', (4, 4), [], [])], tmp_path/'out')
    assert not (tmp_path/'out').exists()
