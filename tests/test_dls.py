"What the DataLoaders of all tasks check before training, and how they tell what a worker process met"
import warnings
from dataclasses import replace
import numpy as np, pytest
from fastai.vision.all import Resize, aug_transforms
from PIL import Image
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.check import check_annotations
from vision_tasks.data.drop import drop_problems
from vision_tasks.data.synthetic import SHAPE_CODES, draw_shapes
from vision_tasks.data.transforms import JointTransform
from vision_tasks.detection import detection_dls
from vision_tasks.instance import instance_dls
from vision_tasks.data.crops import crop_instances
from vision_tasks.keypoint import keypoint_dls
from vision_tasks.localization import largest_object, localization_dls
from vision_tasks.multilabel import multilabel_dls, multilabel_learner
from vision_tasks.segmentation import segmentation_dls

def pointed(anns): return [Annotation(a.path, a.size, points=a.points[0]) for a in anns if a.labels]

# name -> dls(annotations, ...), drawn shapes -> its annotations
TASKS = dict(multilabel=(multilabel_dls, list), keypoint=(keypoint_dls, pointed),
             localization=(localization_dls, largest_object), detection=(detection_dls, list),
             instance=(instance_dls, list),
             segmentation=(lambda anns, **kw: segmentation_dls(anns, SHAPE_CODES, **kw), list))

@pytest.fixture(params=TASKS)
def task(request, tmp_path):
    dls,anns = TASKS[request.param]
    return (lambda anns, **kw: dls(anns, **{**dict(size=64, bs=4, num_workers=0, device='cpu'), **kw})), \
           anns(draw_shapes(tmp_path/'shapes', 12, 64))

def cut(a, tmp_path):
    "`a` with an image file whose end is missing"
    file = tmp_path/'half.png'
    file.write_bytes(a.path.read_bytes()[:-200])
    return replace(a, path=file)

# --- broken images

def test_a_truncated_image_is_told_before_training_where_it_is_asked_for_and_dropped_in_one_call(task, tmp_path):
    dls,anns = task
    # last, since fastai loads the first image of train when the DataLoaders are made
    bad = [*anns[:-1], cut(anns[-1], tmp_path)]
    dls(bad)
    with pytest.raises(AnnotationError, match=r"half.png cannot be read as an image .*\(1 of \d+ images have such "
                                              r"problems\); fix them, or drop them with drop_problems\("):
        dls(bad, check=True)
    with pytest.warns(UserWarning, match=r"1 of \d+ annotations were dropped.*1 'unreadable image'"):
        good = drop_problems(bad, check_annotations(bad))
    assert len(good) == len(bad) - 1
    for dl in dls(good, check=True):
        assert sum(len(b[0]) for b in dl.new(shuffle=False, drop_last=False)) == len(dl.items)

def test_only_images_that_are_loaded_are_decoded_by_check(task, tmp_path):
    dls,anns = task
    dls([*anns, replace(cut(anns[0], tmp_path), split='test')], check=True)

@pytest.mark.parametrize('workers', [0, 1])
def test_an_error_from_a_worker_process_begins_with_its_sentence(task, tmp_path, workers):
    dls,anns = task
    anns = [replace(a, split='valid' if i < 2 else 'train') for i,a in enumerate([*anns[:-1], cut(anns[-1], tmp_path)])]
    data = dls(anns, num_workers=workers)
    for run in (lambda: list(data.train), lambda: list(data.test_dl(anns, with_labels=True))):
        with pytest.raises(OSError) as e: run()
        text = str(e.value)
        assert text.startswith(f"{tmp_path/'half.png'} cannot be read as an image (")
        assert ('Original Traceback' in text) == bool(workers)      # where it was raised is told below

def test_errors_of_workers_keep_their_kind_and_training_ends_with_them(tmp_path):
    anns = [replace(a, split='valid' if i < 2 else 'train') for i,a in enumerate(draw_shapes(tmp_path/'s', 8, 64))]
    wrong = replace(anns[4], size=(65, 64), mask=None, masks=None)
    dls = detection_dls([*anns, wrong], size=64, bs=4, num_workers=1, device='cpu')
    with pytest.raises(AnnotationError, match=r"^.*0004.png, size: expected that of the image, 64x64, got 65x64"):
        list(dls.train)
    dls = multilabel_dls([*anns, cut(anns[4], tmp_path)], size=64, bs=4, num_workers=1, device='cpu')
    learn = multilabel_learner(dls, 'test_resnet', pretrained=False)
    with learn.no_bar(), learn.no_logging(), pytest.raises(OSError, match="^.*half.png cannot be read as an image"):
        learn.fit(1)

@pytest.mark.parametrize('dls', [instance_dls, lambda a, **kw: segmentation_dls(a, SHAPE_CODES, **kw)])
def test_tasks_with_masks_check_these_by_default_and_images_when_asked(dls, tmp_path):
    anns,kw = draw_shapes(tmp_path/'s', 8, 64),dict(size=64, bs=4, num_workers=0, device='cpu')
    broken = [*anns[:-1], replace(anns[-1], mask=np.full((64, 64), 77, np.uint8), masks=[[] for _ in anns[-1].labels])]
    for check in ('masks', True):
        with pytest.raises(AnnotationError, match="its mask has 77|the mask is empty"): dls(broken, check=check, **kw)
    dls(broken, check=False, **kw)
    with pytest.raises(ValueError, match="check: expected one of 'masks', True, False, got 'images'"):
        dls(anns, check='images', **kw)

# --- coordinates

def relative(a):
    scale = np.array(a.size, np.float32)
    return replace(a, bboxes=None if a.bboxes is None else a.bboxes/np.tile(scale, 2), masks=None,
                   points=None if a.points is None else a.points/scale)

@pytest.mark.parametrize('name,what', [('keypoint', 'points'), ('localization', 'boxes'), ('detection', 'boxes'),
                                       ('instance', 'boxes')])
def test_coordinates_that_are_fractions_of_the_image_are_refused_before_training(name, what, tmp_path):
    dls,of = TASKS[name]
    anns = [relative(a) for a in of(draw_shapes(tmp_path/'s', 12, 64))]
    # masks of whole images, which are no matter here
    if name == 'instance': anns = [replace(a, masks=[np.ones((64, 64), bool)]*len(a.labels)) for a in anns]
    with pytest.raises(AnnotationError, match=rf"\.png: all \d+ {what} lie within 0..1, .*multiply x by its width"):
        dls(anns, size=64, num_workers=0, device='cpu')
    if what == 'boxes':
        with pytest.raises(AnnotationError, match="all .* boxes lie within 0..1"): crop_instances(anns, tmp_path/'c')

def test_tasks_that_take_no_coordinates_do_not_look_at_them(tmp_path):
    anns = [relative(a) for a in draw_shapes(tmp_path/'s', 12, 64)]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        multilabel_dls(anns, size=16, num_workers=0, device='cpu')
        segmentation_dls(anns, SHAPE_CODES, size=16, num_workers=0, device='cpu')

@pytest.mark.parametrize('dls', [detection_dls, instance_dls, localization_dls])
@pytest.mark.parametrize('kw', [dict(size=(32, 16)), dict(item_tfms=JointTransform((32, 16), valid='pad')),
                                dict(size=(128, 64), batch_tfms=aug_transforms(size=(16, 32), pad_mode='zeros'))])
def test_boxes_below_a_pixel_of_the_network_are_counted_in_one_warning(dls, kw, tmp_path):
    Image.new('RGB', (640, 320)).save(tmp_path/'a.png')
    square = lambda x1, y1, x2, y2: [[x1, y1, x2, y1, x2, y2, x1, y2]]
    # 20 image pixels are one of the network
    boxes = [[0, 0, 100, 100], [0, 0, 15, 100], [0, 0, 100, 19.9], [0, 0, 20.1, 20.1], [5, 5, 9, 9], [0, 0, 300, 300]]
    anns = [Annotation(tmp_path/'a.png', (640, 320), ['a'], [b], masks=[square(*b)], split=('train', 'valid')[i%2])
            for i,b in enumerate(boxes)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        dls(anns, num_workers=0, device='cpu', **kw)
    text = [str(o.message) for o in told if 'boxes' in str(o.message)]
    want = "3 of 6 boxes, in 3 images, are less than one pixel wide or high on the network's input of 32x16, as one of "
    assert len(text) == 1 and text[0].startswith(want), text
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dls(anns[:1]*2, num_workers=0, device='cpu', size=(32, 16), splitter=lambda a: ([0], [1]))

def test_fastais_resize_counts_boxes_below_a_pixel_too(tmp_path):
    Image.new('RGB', (640, 320)).save(tmp_path/'a.png')
    anns = [Annotation(tmp_path/'a.png', (640, 320), ['a'], [[0, 0, 9, 100]], split=o) for o in ('train', 'valid')]
    with pytest.warns(UserWarning, match="2 of 2 boxes, in 2 images, .* network's input of 32x32"):
        detection_dls(anns, item_tfms=Resize(32, method='squish'), num_workers=0, device='cpu')
