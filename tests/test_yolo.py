import os
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, yaml
from PIL import Image
from vision_tasks.data.annotation import Annotation, vocab_of
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.formats.coco import read_coco, write_coco
from vision_tasks.data.formats.mask_values import read_codes
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.data.formats.yolo import read_yolo, write_yolo
from vision_tasks.ops.masks import decode_mask, encode_rle

@pytest.fixture
def yolo(tmp_path):
    "`yolo(**texts)` writes 20x10 images and their rows into images/train and labels/train; None = no txt file"
    def write(folder='train', labels='labels', **texts):
        for name,text in texts.items():
            for d in ('images', labels): (yolo.path/d/folder).mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (20, 10)).save(yolo.path/'images'/folder/f'{name}.png')
            if text is not None: (yolo.path/labels/folder/f'{name}.txt').write_text(text)
    def conf(text="train: images/train\nnames: [ant, bee]\n"): (yolo.path/'data.yaml').write_text(text)
    yolo,write.path,write.conf = write,tmp_path,conf
    conf()
    return yolo

# --- reading

def test_fractions_become_pixels_and_images_without_rows_stay(yolo):
    yolo(a='1 0.5 0.5 0.2 0.4\n\n0 .0 0.25 1 .5\n', b='', c=None)
    a,b,c = read_yolo(yolo.path)
    assert a.path == yolo.path/'images'/'train'/'a.png' and a.size == (20, 10) and a.split == 'train'
    np.testing.assert_allclose(a.bboxes, [[8, 3, 12, 7], [-10, 0, 10, 5]], atol=1e-6)
    assert a.labels == ['bee', 'ant'] and all(getattr(a, k) is None for k in ('masks', 'scores', 'ignore', 'points'))
    assert b.labels == c.labels == [] and b.bboxes.shape == c.bboxes.shape == (0, 4)

def test_polygons_are_kept_in_pixels_and_their_extent_is_the_box(yolo):
    yolo(a='0 .1 .2 .5 .2 .3 .8 .2 .9\n1 .5 .5 .2 .2\n', b='')
    a,b = read_yolo(yolo.path)
    np.testing.assert_allclose(a.masks[0], [[(2, 2), (10, 2), (6, 8), (4, 9)]])
    np.testing.assert_allclose(a.bboxes, [[2, 2, 10, 9], [8, 4, 12, 6]], atol=1e-6)
    assert a.masks[1] == [] and not decode_mask(a.masks[1], a.size).any() and b.masks == []
    yolo(a='1 .5 .5 .2 .2\n')
    assert read_yolo(yolo.path)[0].masks is None

def test_a_last_number_is_a_confidence_of_boxes_and_polygons_alike(yolo):
    yolo(a='0 .5 .5 .2 .2 .75\n1 .1 .1 .5 .1 .5 .5 1\n', b='')
    a,b = read_yolo(yolo.path)
    assert a.scores.tolist() == [.75, 1] and b.scores.shape == (0,) and a.masks[1][0].shape == (3, 2)
    yolo(c='0 .5 .5 .2 .2\n')
    with pytest.raises(AnnotationError, match="c.png: its rows have no confidence, but those of .*a.png have one"):
        read_yolo(yolo.path)

def test_the_data_sets_splits_are_read_together_or_one_by_one(yolo):
    for folder,name in (('train', 'b'), ('val', 'c'), ('extra/deep', 'a'), ('test', 'd')): yolo(folder, **{name: ''})
    yolo.conf("train: [images/train, images/extra]\nval: images/val\ntest:\nnames: [x]\n")
    splits = lambda **kw: [(a.path.stem, a.split) for a in read_yolo(yolo.path, **kw)]
    assert splits() == [('b', 'train'), ('a', 'train'), ('c', 'valid')]
    assert splits(split='val') == splits(split='valid') == [('c', 'valid')]
    with pytest.raises(AnnotationError, match=r"data.yaml has no test images, only \['train', 'val'\]"):
        splits(split='test')
    with pytest.raises(ValueError, match="split: expected one of .* got 'dev'"): splits(split='dev')

def test_a_list_of_images_starts_from_its_own_folder_and_keeps_its_order(yolo):
    yolo(a='0 .5 .5 .2 .2', b='')
    (yolo.path/'lists').mkdir()
    lines = '../images/train/b.png', '', str(yolo.path/'images'/'train'/'a.png')
    (yolo.path/'lists'/'t.txt').write_text('\ufeff' + '\r\n'.join(lines), encoding='utf-8')
    yolo.conf("val: lists/t.txt\nnames: [x]")
    assert [(a.path.name, a.split, a.labels) for a in read_yolo(yolo.path)] == [
        ('b.png', 'valid', []), ('a.png', 'valid', ['x'])]
    (yolo.path/'lists'/'t.txt').write_text('../images/train/a.png\n../images/train/gone.png\n')
    with pytest.raises(AnnotationError, match="t.txt, line 2: .*gone.png: no such image file"): read_yolo(yolo.path)
    with pytest.warns(UserWarning, match="1 of 2 images are dropped"):
        assert len(read_yolo(yolo.path, on_error='drop')) == 1

def test_txt_files_are_where_the_last_images_folder_would_be_labels(tmp_path):
    path = tmp_path/'images'/'set'/'train'/'images'/'deep'/'a.b.png'
    for p in (path.parent, tmp_path/'images'/'set'/'train'/'labels'/'deep', tmp_path/'beside', tmp_path/'pred'/'deep'):
        p.mkdir(parents=True)
    for p in (path, tmp_path/'beside'/'x.png'): Image.new('RGB', (20, 10)).save(p)
    (tmp_path/'images'/'set'/'train'/'labels'/'deep'/'a.b.txt').write_text('0 .5 .5 .1 .1')
    (tmp_path/'pred'/'deep'/'a.b.txt').write_text('1 .5 .5 .1 .1 .5')
    read = lambda where, **kw: ((tmp_path/'data.yaml').write_text(f"train: {where}\nnames: [x, y]"),
                                read_yolo(tmp_path, **kw))[1][0].labels
    assert read('images/set/train/images') == ['x'] and read('images/set', labels=str(tmp_path/'pred')) == ['y']

def test_without_a_folder_images_the_txt_file_lies_beside_the_image(yolo):
    yolo(a=None)
    (yolo.path/'images').rename(yolo.path/'obj')
    (yolo.path/'obj'/'train'/'a.txt').write_text('0 .5 .5 .1 .1')
    yolo.conf("train: obj\nnames: [x]")
    assert 'images' not in yolo.path.parts and read_yolo(yolo.path)[0].labels == ['x']

def test_folders_start_from_path_or_from_the_yaml_file_also_as_roboflow_writes_them(yolo, tmp_path):
    yolo(a='0 .5 .5 .1 .1')
    for text in ("path: ''\ntrain: images/train", f"path: {tmp_path}\ntrain: images/train",
                 "path: images\ntrain: train", "train: ../images/train", "path:\ntrain: ./images"):
        yolo.conf(f"{text}\nnames: [x]")
        assert [a.labels for a in read_yolo(tmp_path/'data.yaml')] == [['x']]
    for text,message in (("path: gone\ntrain: x", "path is 'gone', but .*gone is not a folder; remove `path`"),
                         ("train: images/gone", "train is 'images/gone', but .* is neither a folder nor a txt file"),
                         ("train: labels", "train is 'labels', but .* holds no image")):
        yolo.conf(f"{text}\nnames: [x]")
        with pytest.raises(AnnotationError, match=f"data.yaml: {message}"): read_yolo(tmp_path, on_error='drop')

def test_a_folder_may_hold_one_yaml_file_of_another_name(yolo):
    yolo(a='0 .5 .5 .1 .1')
    (yolo.path/'data.yaml').rename(yolo.path/'ants.yml')
    assert len(read_yolo(yolo.path)) == 1
    (yolo.path/'more.yaml').write_text('')
    with pytest.raises(AnnotationError, match=r"holds \['ants.yml', 'more.yaml'\]; expected data.yaml"):
        read_yolo(yolo.path)
    with pytest.raises(AnnotationError, match="images holds no yaml file; expected"): read_yolo(yolo.path/'images')
    with pytest.raises(AnnotationError, match="gone.yaml: no such file"): read_yolo('gone.yaml')

@pytest.mark.parametrize('names,rows,expected', [
    ('[no, 007, 1.10]', '0 1 2', ['no', '007', '1.10']), ('{2: hot dog, "7": yes}', '7 2.0', ['yes', 'hot dog']),
    ('\n- ü\n- {}'.format("'a: b'"), '1 0', ['a: b', 'ü']), ('{0: a, 9: a}\nnc: 10', '9', ['a']),
    ('{0: a, 9: b}\nnc: 2', '9', ['b']), ('[]', '', [])])
def test_names_are_text_as_it_stands_and_ids_may_leave_numbers_out(yolo, names, rows, expected):
    yolo(a=''.join(f'{o} .5 .5 .1 .1\n' for o in rows.split()))
    (yolo.path/'data.yaml').write_text(f"train: images/train\nnames: {names}\n", encoding='utf-8')
    assert read_yolo(yolo.path)[0].labels == expected

CONF = {   # message: data.yaml
    "data.yaml: names are None; expected a list of names, or a table": "train: images\nnc: 2",
    "data.yaml: train is {'images': 'a'}; expected text, or for images": "train: {images: a}\nnames: [ant]",
    r"data.yaml: path is \['a'\]; expected text": "path: [a]\ntrain: images\nnames: [ant]",
    "data.yaml: names are ''": "train: images\nnames:",
    r"data.yaml: names are \['ant', ''\]": "train: images\nnames: [ant, ]\n",
    "data.yaml: names are {'x': 'ant'}": "train: images\nnames: {x: ant}",
    r"data.yaml: names are \[\['ant'\]\]": "train: images\nnames: [[ant]]",
    "data.yaml: nc is '3', but there are 2 names": "train: images\nnames: [ant, bee]\nnc: 3",
    "data.yaml: expected train, val or test, .* got 'ant'": "ant",
    r"data.yaml: expected train, val or test, .* got \['classes'\]": "classes: [ant]",
    "data.yaml: 'valid' is not a key of the format; rename it to val": "train: images\nvalid: images\nnames: [ant]",
    "data.yaml: kpt_shape means that the rows hold keypoints; .*read_coco":
        "train: images\nnames: [a]\nkpt_shape: [4, 2]",
    "data.yaml is not readable yaml": "train: [images",
}
@pytest.mark.parametrize('message', CONF, ids=range(len(CONF)))
def test_a_data_yaml_without_meaning_raises_whatever_on_error_says(yolo, message):
    yolo(a='')
    yolo.conf(CONF[message].replace('[ant, ]', "[ant, '']"))
    for on_error in ('raise', 'drop'):
        with pytest.raises(AnnotationError, match=message): read_yolo(yolo.path, on_error=on_error)

ROWS = {   # message: the second row
    "expected class cx cy w h, or class and x y of three or more points": '0 .1 .2 .3',
    "got '0'; expected class cx cy w h": '0',
    "got '0 .5 .5 x .1'; expected numbers": '0 .5 .5 x .1',
    r"expected a class id of `names`, one of \[0, 1\]": '2 .5 .5 .1 .1',
    "got '0.5 .5 .5 .1 .1'; expected a class": '0.5 .5 .5 .1 .1',
    "got 'nan .5 .5 .1 .1'; expected a class": 'nan .5 .5 .1 .1',
    "got '0 8 3 4 4'; expected fractions of the image": '0 8 3 4 4',
    "got '0 .5 .5 .1 1.02'; expected fractions": '0 .5 .5 .1 1.02',
    "got '0 .5 nan .1 .1'; expected fractions": '0 .5 nan .1 .1',
    "got '0 .1 .1 .5 .1 .5 -.02'; expected fractions": '0 .1 .1 .5 .1 .5 -.02',
    "expected w and h of 0 or more": '0 .5 .5 .1 -.001',
    r"expected a confidence in \[0, 1\] at the end": '0 .5 .5 .1 .1 50',
    "expected a confidence at the end, as in other rows": '0 .5 .5 .1 .1 .5\n0 .5 .5 .1 .1 .9',
}
@pytest.mark.parametrize('message', ROWS, ids=range(len(ROWS)))
def test_what_cannot_be_read_raises_or_is_dropped_and_counted(yolo, message):
    yolo(a=f'0 .5 .5 .1 .1\n{ROWS[message]}\n', b='1 .5 .5 .1 .1')
    line = 1 if 'as in other rows' in message else 2
    with pytest.raises(AnnotationError, match=f"labels.train.a.txt, line {line}: .*{message}"): read_yolo(yolo.path)
    with pytest.warns(UserWarning, match="1 of 2 images are dropped: .*a.txt"):
        assert [a.path.stem for a in read_yolo(yolo.path, on_error='drop')] == ['b']

def test_what_lies_up_to_a_hundredth_outside_stays_as_it_is(yolo):
    yolo(a='0 .5 .5 1.01 1\n0 -.01 .1 .5 .1 .5 1.005')
    a, = read_yolo(yolo.path)
    np.testing.assert_allclose(a.bboxes, [[-.1, 0, 20.1, 10], [-.2, 1, 10, 10.05]], atol=1e-6)

def test_an_image_that_appears_twice_or_shares_its_file_is_told(yolo):
    yolo(a='', b='')
    yolo.conf("train: images/train\nval: images/train\nnames: [x]")
    with pytest.raises(AnnotationError, match="a.png appears twice, for train and for valid; .*split="):
        read_yolo(yolo.path)
    assert len(read_yolo(yolo.path, 'train')) == 2
    Image.new('RGB', (4, 4)).save(yolo.path/'images'/'train'/'a.jpg')
    with pytest.raises(AnnotationError, match="a.png and .*a.jpg share the file .*a.txt; rename one"):
        read_yolo(yolo.path, 'train', on_error='drop')

def test_that_no_image_has_a_txt_file_is_told(yolo):
    yolo(a='0 .5 .5 .1 .1'); yolo('test', c=None, d=None)
    yolo.conf("train: images/train\ntest: images/test\nnames: [x]")
    with pytest.raises(AnnotationError, match="no test image has a txt file of .*; the first .*labels.test.c.txt"):
        read_yolo(yolo.path)
    assert read_yolo(yolo.path, 'train')[0].labels == ['x']
    with pytest.raises(AnnotationError, match="no train image .*labels_seg.train.a.txt; .*with labels="):
        read_yolo(yolo.path, 'train', labels='labels_seg')

def test_a_txt_file_without_an_image_counts_as_an_image_that_cannot_be_read(yolo):
    yolo(a='', b='0 .5 .5 .1 .1')
    (yolo.path/'images'/'train'/'b.png').unlink()
    for o in ('classes.txt', '._a.txt'): (yolo.path/'labels'/'train'/o).write_text('left by labelImg and macOS')
    with pytest.raises(AnnotationError, match=r"labels.train.b.txt: .*images.train.b.\*: no such image file"):
        read_yolo(yolo.path)
    with pytest.warns(UserWarning, match="1 of 2 images are dropped: .*b.txt"):
        assert [a.path.name for a in read_yolo(yolo.path, on_error='drop')] == ['a.png']
    (yolo.path/'t.txt').write_text('images/train/a.png\n')   # a list may be a choice
    yolo.conf("train: t.txt\nnames: [ant]")
    assert len(read_yolo(yolo.path)) == 1

def test_what_is_no_image_or_no_text_is_told(yolo):
    yolo(a='', b='')
    (yolo.path/'images'/'train'/'a.png').write_text('text')
    with pytest.raises(AnnotationError, match="a.png: cannot be read as an image"): read_yolo(yolo.path)
    yolo(a='')
    (yolo.path/'labels'/'train'/'b.txt').write_bytes(b'\xff\xfe0')
    with pytest.raises(AnnotationError, match="b.txt, line 1: cannot be read as text"): read_yolo(yolo.path)
    for name in ('._a.png', 'notes.md'): (yolo.path/'images'/'train'/name).write_text('what a system leaves there')
    (yolo.path/'labels'/'train'/'b.txt').unlink()
    assert [a.path.name for a in read_yolo(yolo.path)] == ['a.png', 'b.png']

def test_fractions_are_of_the_image_as_shown(yolo):
    yolo(a='0 .5 .5 1 1')
    e = Image.Exif(); e[0x0112] = 6
    (yolo.path/'images'/'train'/'a.png').unlink()
    Image.new('RGB', (20, 10)).save(yolo.path/'images'/'train'/'a.jpg', exif=e)
    a, = read_yolo(yolo.path)
    assert a.size == (10, 20) and a.bboxes.tolist() == [[0, 0, 10, 20]]

# --- writing

def same(a, b):
    assert (a.size, a.labels) == (b.size, b.labels) and a.path.samefile(b.path) and b.split == (a.split or 'train')
    for k in ('bboxes', 'scores'): np.testing.assert_array_equal(getattr(a, k), getattr(b, k), err_msg=k)

def boxes(shapes, seed=0):
    "The drawn shapes with boxes of any float32 about the image, in all splits"
    rng = np.random.default_rng(seed)
    for i,a in enumerate(shapes):
        centre,half = rng.uniform(1, 63, (len(a.labels), 2)),rng.uniform(0, 32, (len(a.labels), 2))
        xyxy,split = np.concatenate([centre - half, centre + half], 1),('train', 'valid', 'test', None)[i//8%4]
        yield Annotation(a.path, a.size, a.labels, xyxy, split=split)

def test_writing_and_reading_give_the_same_boxes_back_and_images_stay(shapes, tmp_path):
    anns = list(boxes(shapes))
    before = {a.path: a.path.stat().st_mtime_ns for a in anns}
    file = write_yolo(anns, tmp_path/'new')
    back = read_yolo(file)
    expected = sorted(anns, key=lambda a: ('train', 'valid', 'test').index(a.split or 'train'))
    for a,b in zip(expected, back, strict=True): same(a, b); assert b.masks is b.scores is None
    assert sum(not a.labels for a in back) > 1 and (np.concatenate([a.bboxes for a in anns]) < 0).any()
    # the same files, without a link that would lead out of the folder
    assert all(b.path.samefile(a.path) and not b.path.is_symlink() for a,b in zip(expected, back))
    assert before == {o: o.stat().st_mtime_ns for o in before}
    # what was read can be written to the same place, and to another
    texts = lambda d: {p.relative_to(d): p.read_bytes() for p in d.rglob('*') if p.suffix in ('.txt', '.yaml')}
    first = texts(tmp_path/'new')
    write_yolo(back, tmp_path/'new'); write_yolo(back, tmp_path/'other')
    assert first == texts(tmp_path/'new') == texts(tmp_path/'other') and len(first) == 32 + 4

def test_the_order_of_images_and_other_files_beside_them_do_not_matter(shapes, tmp_path):
    anns = [replace(a, split='valid') for a in boxes(shapes[:5])][::-1]
    file = write_yolo(anns, tmp_path)
    Image.new('RGB', (4, 4)).save(tmp_path/'images'/'valid'/'stray.png')
    assert [a.path.name for a in read_yolo(file)] == [a.path.name for a in anns]

def test_polygons_survive_and_several_of_an_object_become_one_that_covers_the_same_pixels(shapes, tmp_path):
    anns = [replace(a, points=None, visible=None, mask=None, masks=[m if i else [] for i,m in enumerate(a.masks)])
            for a in shapes]
    parts = [[1, 1, 20, 2, 9, 17], [30, 5, 60, 5, 60, 30, 31, 22], [5, 40, 22, 40, 12, 60.5]]
    anns[0] = Annotation(anns[0].path, (64, 64), ['two', 'three'], [[0, 0, 9, 9]]*2, masks=[parts[:2], parts])
    seen = 0
    for a,b in zip(anns, read_yolo(write_yolo(anns, tmp_path)), strict=True):
        assert a.labels == b.labels and len(b.masks) == len(a.masks)
        for box,mine,its,theirs in zip(a.bboxes, a.masks, b.bboxes, b.masks):
            np.testing.assert_array_equal(decode_mask(mine, a.size), decode_mask(theirs, b.size))
            points = np.concatenate([np.reshape(p, (-1, 2)) for p in mine]) if mine else box.reshape(2, 2)
            np.testing.assert_allclose(its, [*points.min(0), *points.max(0)], atol=1e-5)
            if len(mine) == 1: np.testing.assert_array_equal(theirs[0], mine[0])
            seen += bool(mine)
    assert seen > 10

def test_predictions_keep_their_scores(shapes, tmp_path):
    rng = np.random.default_rng(0)
    anns = [replace(a, split='test', scores=rng.random(len(a.labels))) for a in boxes(shapes)]
    for a,b in zip(anns, read_yolo(write_yolo(anns, tmp_path)), strict=True): same(a, b)

def test_class_ids_count_sorted_names_or_those_of_vocab(shapes, tmp_path):
    anns,ids = list(boxes(shapes)),lambda d: {p.stem: [int(o.split()[0]) for o in p.read_text().splitlines()]
                                              for p in (tmp_path/d/'labels').rglob('*.txt')}
    vocab = ['no', *reversed(vocab_of(anns)), 'ünder: {'] # names that yaml would take for something else
    write_yolo(anns, tmp_path/'sorted'); write_yolo(anns, tmp_path/'given', vocab)
    for d,names in (('sorted', vocab_of(anns)), ('given', vocab)):
        assert ids(d) == {a.path.stem: [names.index(o) for o in a.labels] for a in anns}
        assert yaml.safe_load((tmp_path/d/'data.yaml').read_text(encoding='utf-8'))['names'] == dict(enumerate(names))
    assert list(read_codes(tmp_path/'given'/'data.yaml').values()) == vocab
    odd = Annotation(shapes[0].path, (64, 64), ['no', '007', ' x ', '~', 'a\nb'], [[0, 0, 9, 9]]*5)
    assert read_yolo(write_yolo([odd], tmp_path/'odd'))[0].labels == odd.labels

def test_images_in_dest_keep_their_place_and_get_no_link(tmp_path):
    path = tmp_path/'images'/'sub'/'a.png'
    path.parent.mkdir(parents=True)
    Image.new('RGB', (20, 10)).save(path)
    a, = read_yolo(write_yolo([Annotation(path, (20, 10), ['x'], [[0, 0, 5, 5]])], tmp_path))
    assert a.path == path and (tmp_path/'labels'/'sub'/'a.txt').is_file()
    assert [p.name for p in (tmp_path/'images').rglob('*')] == ['sub', 'a.png']

def test_what_coco_holds_goes_to_yolo_and_back(shapes, tmp_path):
    plain = [replace(a, points=None, visible=None, mask=None, ignore=None) for a in shapes]
    through = read_yolo(write_yolo(plain, tmp_path/'yolo'))
    root = write_coco(through, tmp_path/'t.json')
    for a,b in zip(plain, read_coco(tmp_path/'t.json', root), strict=True):
        assert a.labels == b.labels and a.path.samefile(b.path)
        for x,y in zip(a.masks, b.masks): np.testing.assert_array_equal(decode_mask(x, a.size), decode_mask(y, b.size))

def test_what_yolo_cannot_hold_is_refused_before_anything_is_written(shapes, tmp_path):
    a,to = next(boxes([o for o in shapes if len(o.labels) > 1])),tmp_path/'new'
    n,pixels = len(a.labels),np.eye(64, dtype=bool)
    masked = lambda m: dict(masks=[m]*n)
    for message,kw in {
        "YOLO files hold boxes, but this annotation has none .*`bboxes` is None": dict(bboxes=None),
        "YOLO has no flag for ignored objects, .*; drop them": dict(ignore=np.arange(n) == 0),
        "this format cannot store points; use `write_coco`": dict(points=np.ones((n, 5, 2))),
        "masks, row 0: YOLO stores polygons, not run lengths or arrays": masked(pixels),
        "masks, row 0: YOLO stores polygons, not run": masked(encode_rle(pixels)),
        "masks, row 0: expected polygons of three or more points": masked([[1, 2, 3, 4]]),
        r"object 0 at \[70.0, 0.0, 90.0, 9.0\] reaches too far outside 64x64": dict(bboxes=[[70, 0, 90, 9]]*n),
        "object 0 at .* reaches too far outside": masked([[1, 1, 70, 1, 3, 9]]),
        "this format cannot store an empty label": dict(labels=['']*n),
        "the annotation's size is 32x64, that of the file 64x64": dict(size=(32, 64)),
        "gone.png: no such image file": dict(path=tmp_path/'gone.png'),
        "annotation 1 has no file: save its image": dict(path=None)}.items():
        with pytest.raises(AnnotationError, match=message):
            write_yolo([replace(a, path=shapes[-1].path), replace(a, **kw)], to)
    with pytest.raises(AnnotationError, match="would both become .*labels.train.*txt; rename one"):
        write_yolo([a, a], to)
    with pytest.raises(AnnotationError, match="is not in vocab; add it, or rename the object; did you mean"):
        write_yolo([a], to, [f'{o}s' for o in a.labels])
    for vocab in (['x', 'x'], ['x', '']):
        with pytest.raises(ValueError, match="^vocab.*: expected (class names|a name)"): write_yolo([a], to, vocab)
    with pytest.raises(AnnotationError, match="some annotations have scores and some have None"):
        write_yolo([a, replace(a, path=shapes[-1].path, scores=np.ones(n))], to)
    assert not to.exists()
    Image.new('RGB', (4, 4)).save(tmp_path/a.path.name)
    write_yolo([replace(a, path=tmp_path/a.path.name, size=(4, 4), labels=[], bboxes=[])], to)
    with pytest.raises(AnnotationError, match="exists and is a different image; choose another folder"):
        write_yolo([a], to)

def test_where_no_link_can_be_made_images_are_copied_and_can_be_written_again(shapes, tmp_path, monkeypatch):
    def refuse(*args, **kw): raise OSError("another disk")
    monkeypatch.setattr(os, 'link', refuse)
    anns = list(boxes(shapes[:3]))
    for _ in range(2): back = read_yolo(write_yolo(anns, tmp_path))
    assert len(back) == 3 and not any(a.path.samefile(b.path) for a in anns for b in back)
    assert sorted(b.path.read_bytes() for b in back) == sorted(a.path.read_bytes() for a in anns)

def test_links_of_earlier_versions_are_refused_until_they_are_written_again(shapes, tmp_path):
    anns = list(boxes(shapes[:3]))
    file = write_yolo(anns, tmp_path)
    for o in (tmp_path/'images').rglob('*.png'):
        o.unlink(); o.symlink_to(next(a.path for a in anns if a.path.name == o.name))
    with pytest.raises(AnnotationError, match="0000.png is a link to .*, outside the folder"): read_yolo(file)
    linked = read_yolo(file, allow_outside=True)
    write_yolo(linked, tmp_path)
    for a,b in zip(linked, read_yolo(file), strict=True): same(a, b)
    assert all(a.path.is_file() for a in anns)

def test_a_label_with_a_line_separator_that_yaml_loses_is_refused_and_other_odd_ones_survive(shapes, tmp_path):
    a = Annotation(shapes[0].path, (64, 64), ['a\x85b'], [[0, 0, 5, 5]])
    with pytest.raises(AnnotationError, match='U\\+0085.*rename it'): write_yolo([a], tmp_path)
    odd = replace(a, labels=['a\u2028b\u2029c\u200bd\x7fe'])
    assert read_yolo(write_yolo([odd], tmp_path))[0].labels == odd.labels

# --- real data

@pytest.mark.slow
@pytest.mark.skipif('VISION_TASKS_DATA' not in os.environ, reason='VISION_TASKS_DATA names no folder of data')
def test_coco128_reads_with_boxes_and_with_polygons(tmp_path):
    path = Path(os.environ['VISION_TASKS_DATA'])/'coco128'
    with pytest.raises(AnnotationError, match="000000000656.txt: .*no such image file"): read_yolo(path)
    with pytest.warns(UserWarning, match="2 of 258 images are dropped"): anns = read_yolo(path, on_error='drop')
    assert [sum(a.split == s for a in anns) for s in ('train', 'valid')] == [128, 128]
    rows = lambda *files: sum(len(p.read_text().splitlines()) for p in files)
    alone = [path/'labels'/'train2017'/f'000000000{o}.txt' for o in (656, 659)]
    assert sum(len(a.labels) for a in anns) == rows(*(path/'labels').rglob('*.txt')) - rows(*alone)
    assert any(not a.labels for a in anns)
    vocab = list(read_codes(path/'data.yaml').values())
    assert len(vocab) == 80 and set(vocab_of(anns)) <= set(vocab)
    # the polygons have COCO's own ids, which leave numbers out
    lines = [f"path: {path.resolve()}\ntrain: images/train2017\nval: images/val2017\nnames:\n"]
    lines += [f"  {k}: {v}\n" for k,v in read_codes(path/'masks.yaml').items()]
    (tmp_path/'seg.yaml').write_text(''.join(lines))
    with pytest.raises(AnnotationError, match="line 2: got '86 .*expected a class that `names` has"):
        read_yolo(path, labels='labels_seg')
    seg = read_yolo(tmp_path/'seg.yaml', labels='labels_seg')
    objects = sum(len(a.labels) for a in seg)
    assert objects == rows(*(path/'labels_seg').rglob('*.txt')) == sum(len(m) for a in seg for m in a.masks)
    for a,b in zip(seg, read_yolo(write_yolo(seg, tmp_path/'new', vocab)), strict=True): same(a, b)
    # images with one object in each file: the same, in about the same place
    pairs = [(a, b) for a,b in zip(anns, seg) if len(a.labels) == len(b.labels) == 1]
    for a,b in pairs:
        assert a.labels == b.labels and a.path == b.path
        np.testing.assert_allclose(a.bboxes, b.bboxes, atol=5)
    assert len(pairs) > 10

def test_masks_come_back_to_the_pixel_though_polygons_went_through_fractions(tmp_path):
    anns = [Annotation(a.path, a.size, a.labels, a.bboxes, masks=a.masks)
            for a in draw_shapes(tmp_path/'s', n=24, size=(96, 72))]
    write_yolo(anns, tmp_path/'y')
    back = {a.path.name: a for a in read_yolo(tmp_path/'y')}
    for a in anns:
        for m,n in zip(a.masks, back[a.path.name].masks):
            assert (decode_mask(m, a.size) == decode_mask(n, a.size)).all()

# --- suffixes in upper case

def test_label_files_lists_and_yaml_files_may_have_suffixes_in_upper_case(yolo):
    yolo(a='0 .5 .5 .2 .2', b='1 .5 .5 .2 .2')
    labels = yolo.path/'labels'/'train'
    (labels/'b.txt').rename(labels/'b.TXT')
    assert [a.labels for a in read_yolo(yolo.path)] == [['ant'], ['bee']]
    (yolo.path/'l.TXT').write_text('images/train/b.png\n')
    (yolo.path/'data.yaml').unlink()
    (yolo.path/'data.YAML').write_text("train: l.TXT\nnames: [ant, bee]\n")
    assert [a.labels for a in read_yolo(yolo.path)] == [['bee']]

def test_two_label_files_of_an_image_and_one_without_an_image_are_errors_in_any_case(yolo):
    yolo(a='0 .5 .5 .2 .2', b='')
    labels = yolo.path/'labels'/'train'
    (labels/'b.TXT').write_text('')
    with pytest.raises(AnnotationError, match="b.TXT and .*b.txt belong to the same image"): read_yolo(yolo.path)
    (labels/'b.TXT').unlink()
    (labels/'c.TXT').write_text('0 .5 .5 .2 .2')
    with pytest.raises(AnnotationError, match=r"c.TXT: .*images.train.c.\*: no such image file"): read_yolo(yolo.path)
