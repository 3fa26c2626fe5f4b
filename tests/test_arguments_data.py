"The argument matrix of annotations, readers, writers, checks, splitters, drawn data and images"
from dataclasses import replace
import numpy as np, pandas as pd, pytest
from bad_arguments import BAD, assert_no_faults, either, flag, names, number, one_of, path, text, whole
from PIL import Image
from public import for_users
from vision_tasks.all import (FIGURE_JOINTS, SHAPES, SHAPE_CODES, SHAPE_POINTS, Annotation, AnnotationError,
                              AnnotationSplitter, Proposals, StratifiedSplitter, check_annotations, coco_keypoints,
                              crop_instances, decode_class_mask, dlc_points, draw_figures, draw_shapes, drop_problems,
                              largest_object, read_biwi, read_coco, read_codes, read_df, read_dlc, read_folders,
                              read_instance_masks,
                              read_masks, read_via, read_voc, read_yolo, select_objects, set_grey_range,
                              stratified_folds, vocab_of, write_coco, write_df, write_dlc, write_folders,
                              write_instance_masks,
                              write_masks, write_via, write_voc, write_yolo)
from vision_tasks.data.class_masks import MaskFile
from vision_tasks.data.image import grey_levels, read_image, to_rgb
from vision_tasks.data.class_masks import MaskTable

pytestmark = pytest.mark.filterwarnings('ignore')
AREA = [f'data.{o}' for o in ('annotation', 'errors', 'check', 'crops', 'drop', 'class_masks', 'proposals', 'splits',
                              'synthetic', 'image', 'formats')]
EXEMPT = {'AnnotationError'}   # takes a message, as all exceptions do

EMPTY = lambda v: isinstance(v, list) and not v or hasattr(v, 'numel') and v.numel() == 0
ACCEPTS = {
    'Annotation.path': either(path, one_of(None)), 'Annotation.size': one_of(),
    'Annotation.labels': either(names, EMPTY), 'Annotation.bboxes': EMPTY, 'Annotation.points': EMPTY,
    'Annotation.masks': EMPTY, 'Annotation.mask': path, 'Annotation.ignore': EMPTY,
    'Annotation.scores': EMPTY, 'Annotation.visible': EMPTY,
    'Annotation.group': either(text, whole(-10**40, 10**40)),
    'select_objects.keep': either(EMPTY, one_of((1, 2, 3))), 'vocab_of.annotations': EMPTY,
    'annotations': EMPTY, 'vocab': either(names, EMPTY), 'check_annotations.near_duplicates': whole(0, 64),
    'write_coco.point_names': names, 'skeleton': EMPTY, 'scorer': text, 'write_dlc.path': one_of(None),
    'write_coco.images': one_of(None), 'write_via.images': one_of(None),
    'label': text, 'read_masks.void': either(EMPTY, whole(-2**31)), 'write_masks.void': one_of([], (1, 2, 3)),
    'read_instance_masks.void': either(EMPTY, whole(-2**31), one_of((1, 2, 3))),
    'read_via.label': one_of(None), 'values': one_of(None),
    'decode_class_mask.size': one_of(None), 'decode_class_mask.mask': one_of(), 'MaskFile.path': path,
    'Proposals.method': lambda v: v is dict, 'Proposals.n': whole(1), 'Proposals.cache': path, 'Proposals.name': text,
    'Proposals.workers': whole(0, 1024), 'stratified_folds.k': whole(2, 12),
    'prepare.items': EMPTY, 'prepare.progress': flag,
    'draw_shapes.n': whole(1, 100), 'draw_shapes.most': whole(1, 100), 'draw_figures.n': whole(1, 100),
    'size': one_of(), 'fn_col': one_of(0), 'group_col': one_of(0, 1, 2), 'valid_col': one_of(),
    'label_col': whole(0, 2), 'label_delim': either(text, one_of(None)), 'relative': flag,
    'read_image.grey_range': one_of(None), 'draft': one_of(None),
    'to_rgb.grey_range': one_of(None), 'pad': number(0), 'min_points': whole(0), 'min_size': number(0),
    'write_df.path': one_of(None)}

@pytest.fixture(scope='module')
def world(tmp_path_factory): return make_world(tmp_path_factory.mktemp('arguments'))

def make_world(path):
    "Drawn data in every format that is read"
    anns = [replace(a, split=('train', 'valid')[i%2]) for i,a in enumerate(draw_shapes(path/'pics', 12, 32, most=2))]
    boxes = [replace(a, points=None, visible=None, masks=None, mask=None) for a in anns]
    figures = draw_figures(path/'figs', 3, 32)
    write_coco(anns, path/'a.json', point_names=list(SHAPE_POINTS), skeleton=[(0, 1)])
    write_voc(boxes, path/'voc')
    write_yolo(boxes, path/'yolo')
    write_folders(classes := [Annotation(a.path, a.size, a.labels[:1] or ['none'], split=a.split) for a in anns],
                  path/'folders')
    write_via([replace(a, points=None, visible=None) for a in anns], path/'via.json')
    write_dlc(figures, path/'figs'/'dlc.csv', list(FIGURE_JOINTS))
    write_df(boxes, path/'pics').to_csv(path/'a.csv', index=False)
    write_instance_masks([replace(a, labels=['x']*len(a.labels)) for a in anns], path/'ids')
    (path/'codes.yaml').write_text('names: [a, b]\n')
    head = path/'biwi'/'01'
    head.mkdir(parents=True)
    Image.new('RGB', (64, 48)).save(head/'frame_00003_rgb.png')
    (head/'frame_00003_pose.txt').write_text('1 0 0\n0 1 0\n0 0 1\n\n0 0 1000\n')
    (head/'rgb.cal').write_text('500 0 32\n0 500 24\n0 0 1\n\n0 0 0 0\n\n1 0 0\n0 1 0\n0 0 1\n\n0 0 0\n\n64 48\n')
    return dict(path=path, anns=anns, boxes=boxes, figures=figures, classes=classes)

def boxes_of(image, n=5): return np.array([[0, 0, 5, 5]])

def core_calls(w):
    a,anns = next(a for a in w['anns'] if len(a.labels) == 2),w['anns']
    hw = np.zeros((32, 32), np.uint8)
    boxed = dict(path='x.png', size=(32, 32), labels=['a', 'b'], bboxes=[[0, 0, 5, 5]]*2, points=np.zeros((2, 1, 2)),
                 visible=[[1], [2]], masks=[[], hw > 0], mask=hw, ignore=[False, True], scores=[.5, 1.], group='g',
                 split='train')
    problems = check_annotations(anns + anns[:1])
    return {
        'Annotation': lambda: (Annotation, boxed),
        'vocab_of': lambda: (vocab_of, dict(annotations=anns)),
        'select_objects': lambda: (select_objects, dict(a=a, keep=[1])),
        'check_annotations': lambda: (check_annotations, dict(annotations=anns, vocab=['a'], near_duplicates=4)),
        'drop_problems': lambda: (drop_problems, dict(annotations=anns + anns[:1], problems=problems)),
        'AnnotationSplitter': lambda: (AnnotationSplitter, dict(valid_pct=.2, seed=1)),
        'StratifiedSplitter': lambda: (StratifiedSplitter, dict(valid_pct=.2, seed=1)),
        'splitter': lambda: (lambda annotations: AnnotationSplitter()(annotations), dict(annotations=anns)),
        'stratified_folds': lambda: (stratified_folds, dict(annotations=anns, k=3, seed=1)),
        'largest_object': lambda: (largest_object, dict(annotations=w['boxes'])),
        'crop_instances': lambda: (crop_instances, dict(annotations=w['boxes'][:3], dest=w['path']/'crops', pad=.1,
                                                        min_points=1, min_size=8))}

def image_calls(w):
    file,im = w['anns'][0].path,Image.new('RGB', (8, 8))
    masks,tab = w['anns'][0].mask,MaskTable(np.array([0]), np.array([0]), False)
    proposals = lambda: Proposals('grid', n=5, workers=0, cache=w['path']/'kept')
    return {
        'read_image': lambda: (read_image, dict(path=file, draft=(8, 8), grey_range='dtype')),
        'to_rgb': lambda: (to_rgb, dict(im=im, grey_range=(0, 4))),
        'grey_levels': lambda: (grey_levels, dict(image=file)),
        'set_grey_range': lambda: (set_grey_range, dict(grey_range='dtype')),
        'decode_class_mask': lambda: (decode_class_mask, dict(mask=masks, size=(32, 32))),
        'MaskFile': lambda: (MaskFile, dict(path=masks, table=tab)),
        'Proposals': lambda: (Proposals, dict(method=boxes_of, n=5, cache=w['path']/'kept', workers=0, name='x')),
        'proposals': lambda: (lambda item: proposals()(item), dict(item=file)),
        'prepare': lambda: (lambda **kw: proposals().prepare(**kw), dict(items=[file], progress=False)),
        'draw_shapes': lambda: (draw_shapes, dict(path='drawn', n=1, size=32, seed=1, most=1)),
        'draw_figures': lambda: (draw_figures, dict(path='drawn', n=1, size=32, seed=1))}

def reader_calls(w):
    path,more = w['path'],dict(split=None, on_error='raise')
    pics,codes = path/'pics'/'images',list(SHAPE_CODES)
    df = pd.read_csv(path/'a.csv')
    return {
        'read_voc': lambda: (read_voc, dict(path=path/'voc', images='JPEGImages', annotations='Annotations', **more)),
        'read_folders': lambda: (read_folders, dict(path=path/'folders', **more)),
        'read_yolo': lambda: (read_yolo, dict(path=path/'yolo', labels='labels', **more)),
        'read_coco': lambda: (read_coco, dict(fname=path/'a.json', images=pics, **more)),
        'coco_keypoints': lambda: (coco_keypoints, dict(fname=path/'a.json')),
        'read_via': lambda: (read_via, dict(fname=path/'via.json', images=pics, label='label', **more)),
        'read_masks': lambda: (read_masks, dict(images=pics, masks=path/'pics'/'masks', codes=codes, mask_of=None,
                                                colors=None, void=None, **more)),
        'read_instance_masks': lambda: (read_instance_masks, dict(images=pics, masks=path/'ids', label='x',
                                                                  mask_of=None, void=(), **more)),
        'read_codes': lambda: (read_codes, dict(fname=path/'codes.yaml')),
        'read_dlc': lambda: (read_dlc, dict(fname=path/'figs'/'dlc.csv', path=path/'figs', on_error='raise')),
        'dlc_points': lambda: (dlc_points, dict(fname=path/'figs'/'dlc.csv')),
        'read_biwi': lambda: (read_biwi, dict(path=path/'biwi', images_glob='**/*_rgb.*', on_error='raise')),
        'read_df': lambda: (read_df, dict(
            df=df, path=path/'pics', fn_col='fname', label_col='label', label_delim=None, point_cols=None,
            bbox_cols=['x1', 'y1', 'x2', 'y2'], valid_col='is_valid', group_col=None, bbox_format='xyxy',
            relative=False, on_error='raise')),
        'read_df of a list': lambda: (read_df, dict(df=df.drop_duplicates('fname'), path=path/'pics', fn_col='fname',
                                                    label_col='label', label_delim=' ', point_cols=['x1', 'y1']))}

def writer_calls(w):
    path,anns,boxes,codes = w['path'],w['anns'],w['boxes'],list(SHAPE_CODES)
    one = [replace(a, labels=['x']*len(a.labels)) for a in anns]
    pointed = dict(point_names=list(SHAPE_POINTS), skeleton=[(0, 1)])
    return {
        'write_voc': lambda: (write_voc, dict(annotations=boxes, dest='voc')),
        'write_folders': lambda: (write_folders, dict(annotations=w['classes'], dest='folders')),
        'write_yolo': lambda: (write_yolo, dict(annotations=boxes, dest='yolo', vocab=list(SHAPES))),
        'write_coco': lambda: (write_coco, dict(annotations=anns, fname='a.json', images=path/'pics', vocab=['ant'],
                                                **pointed)),
        'write_via': lambda: (write_via, dict(annotations=boxes, fname='a.json', images=path/'pics', label='name')),
        'write_df': lambda: (write_df, dict(annotations=boxes, path=path/'pics')),
        'write_dlc': lambda: (write_dlc, dict(annotations=w['figures'], fname='a.csv', names=list(FIGURE_JOINTS),
                                              scorer='me', path=path)),
        'write_masks': lambda: (write_masks, dict(annotations=anns, dest='masks', codes=codes, values=None,
                                                  colors=[(i, 0, 0) for i in range(5)], void=(9, 9, 9))),
        'write_instance_masks': lambda: (write_instance_masks, dict(annotations=one, dest='ids'))}

CALLS = core_calls, image_calls, reader_calls, writer_calls

@pytest.mark.parametrize('calls', CALLS, ids=lambda f: f.__name__)
def test_arguments_without_sense_are_refused(world, calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)   # 'nonsense' may be a path that is written
    assert_no_faults(calls(world), BAD, ACCEPTS)

@pytest.mark.parametrize('f, kw, message', [
    (write_coco, dict(vocab='nonsense'), r"vocab: expected a list of names, got .*; write \['nonsense'\] for one name"),
    (write_coco, dict(annotations=None), "annotations: expected a list of Annotation, .*, got None"),
    (write_voc,  dict(annotations='a.json'), "got 'a.json'; read the file first, with `read_coco`"),
    (write_coco, dict(skeleton=[(0, 1), (2, 'x')]), "skeleton, number 1, number 1: expected a whole number"),
    (read_df,    dict(fn_col=[]), r"fn_col: expected a column, by its name or its number from 0, got \[\]"),
    (read_df,    dict(bbox_cols='x1y1'), "bbox_cols: expected four columns, got 'x1y1'"),
    (read_df,    dict(point_cols=['x', ['y']]), r"point_cols, number 1: .* or \(x, y\) columns, got \['y'\]"),
    (read_df,    dict(label_delim=';'), "label_delim separates the labels of label_col, which is None"),
    (read_coco,  dict(split='val'), "split: expected one of .*, got 'val'; did you mean 'valid'"),
    (read_masks, dict(images=3), r"images: expected a folder, or a list of paths, got 3"),
    (read_masks, dict(mask_of=lambda p: 3), "pics.images.0000.png: mask_of failed: .*what mask_of returned: expected"),
    (read_biwi,  dict(images_glob='/x'), "images_glob: expected a pattern of paths below the folder"),
    (AnnotationSplitter, dict(valid_pct=20), "valid_pct: expected a share .* got 20; write 0.2 for 20 %")])
def test_messages_say_what_was_expected_and_what_to_do(world, f, kw, message):
    base = {write_coco: dict(annotations=world['anns'], fname=world['path']/'new.json'),
            read_df: dict(df=pd.DataFrame()), write_voc: dict(dest=world['path']/'new'),
            read_coco: dict(fname='a.json', images='.'),
            read_masks: dict(images=world['path']/'pics'/'images', masks=None, codes=list(SHAPE_CODES)),
            read_biwi: dict(path=world['path'])}.get(f, {})
    with pytest.raises(ValueError, match=message): f(**{**base, **kw})

def test_selected_objects_are_there(world):
    a = next(a for a in world['boxes'] if len(a.labels) == 2)
    assert select_objects(a, np.array([False, True])).labels == select_objects(a, [-1]).labels == a.labels[1:]
    assert select_objects(a, []).labels == [] and select_objects(a, [1, 0]).labels == a.labels[::-1]
    for keep in ([2], [-3], [True], [.0], '1', {0}, [[0]]):
        with pytest.raises(ValueError, match=r"^keep: expected indices of objects below 2, or \(2,\) bool, got"):
            select_objects(a, keep)
    with pytest.raises(AnnotationError, match="no boxes"): select_objects(replace(a, bboxes=None), [0])

def test_rows_of_another_table_are_no_problems(world):
    anns = world['boxes']
    good = check_annotations(anns + anns[:1])
    assert len(drop_problems(anns + anns[:1], good)) == len(anns)
    for bad in (pd.DataFrame(), good.drop(columns='problem'), good.reset_index(drop=True),
                good.set_index(pd.MultiIndex.from_tuples([(12, 99)], names=good.index.names)),
                good.set_index(pd.MultiIndex.from_tuples([('x', 0)], names=good.index.names))):
        with pytest.raises(ValueError, match="^problems: "): drop_problems(anns + anns[:1], bad)

def test_every_function_of_the_area_is_called(world):
    called = {k for f in CALLS for k in f(world)}
    assert {*for_users(*AREA), 'largest_object'} - EXEMPT <= called
