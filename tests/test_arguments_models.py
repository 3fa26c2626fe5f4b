"The argument matrix of nets, their builders, the registry, item types, blocks and transforms"
import inspect
from functools import cache, wraps
import numpy as np, pytest, torch
from public import for_users, public
from bad_arguments import BAD, assert_no_faults, either, flag, names, never, number, one_of, text, whole
from torch import nn
from torchvision.models.detection import fcos_resnet50_fpn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from vision_tasks.all import (Annotation, CropView, FitView, IoUView, JitterView, JointTransform, LightJitter,
                              ZoomOutView, create_encoder, get_arch, list_archs, list_encoders)
from vision_tasks.data.blocks import FileImageBlock, ObjectMasksBlock, ProposalsBlock
from vision_tasks.data.items import FileImage, ObjectMasks
from vision_tasks.data.targets import check_labels, check_masks, clip_objects, mirror_points, point_pairs
from vision_tasks.models.encoders import Encoder
from vision_tasks.models.heatmap import HeatmapHead, soft_argmax
from vision_tasks.models.layers import (BilinearUp, ContextModule, GridHead, bed_of_nails, bilinear_kernel, check_n_out,
                                        init_bilinear, init_he, unpool_nearest, zero_loss)
from vision_tasks.models.registry import arch_facts, register

pytestmark = [pytest.mark.filterwarnings('ignore')]
CALLABLE = callable
AREA = ('models', 'data.blocks', 'data.items', 'data.targets', 'data.transforms', 'data.views', 'data.geometry',
        'data.laying')
NAMES = public(*AREA)
EMPTY = lambda v: isinstance(v, torch.Tensor) and len(v) == 0   # as good as an empty list
A = Annotation('a.png', (8, 6), bboxes=np.array([[1., 1, 5, 5]]), labels=['a'], masks=[[[1, 1, 5, 1, 5, 5]]],
               mask=np.zeros((6, 8), np.uint8))

def meta(f):
    "`f`, whose tensors have a shape and no memory"
    @wraps(f)
    def build(*args, **kw):
        with torch.device('meta'): return f(*args, **kw)
    return build

def _made(v): return v() if inspect.isfunction(v) or hasattr(v, 'cache_info') else v

def net(f, **kw):
    "A call of a builder or a constructor, a module among whose arguments is made anew"
    return lambda: (meta(f), {k: _made(v) for k,v in kw.items()})

def call(f, **kw): return lambda: (f, {k: _made(v) for k,v in kw.items()})

@meta
def encoder(pyramid=True): return create_encoder('test_resnet', False, 3, pyramid)
@cache
def resnet(): return encoder()
@cache
def plain(): return encoder(False)
@cache
def segmenter(): return meta(lraspp_mobilenet_v3_large)(weights=None, weights_backbone=None)
@cache
def fcos_net(): return meta(fcos_resnet50_fpn)(weights=None, weights_backbone=None)
@cache
def efficientnet(): return meta(create_encoder)('test_efficientnet', False)
class Mine(Encoder):
    def _maps(self, x): yield self.body(x[:,:1])
class Cells(nn.Module):
    stride = 16
def cells(): return Cells()
def nothing(): return nn.Identity()

BASE = dict(n_out=2, n_in=3, width=.1, pretrained=False)
DETS = dict(min_score=.1, max_dets=10)
BOXES = dict(DETS, nms=.3)
SEG = {
    'DeconvNet': dict(n_out=2, n_in=3, width=.1), 'DeepLab': dict(n_out=2, n_in=3, width=.1, ps=.1),
    'DilatedNet': dict(n_out=2, n_in=3, width=.1, context='basic', ps=.1),
    'EncoderUnet': dict(encoder=resnet, n_out=2, blur=False, blur_final=True, self_attention=False, last_cross=True,
                        bottle=False, norm_type=None),
    'FCDenseNet': dict(n_out=2, n_in=3, layers=(2, 2, 2), k=4, first=8, ps=.2),
    'FCN': dict(n_out=2, n_in=3, width=.1, stride=32, ps=.5), 'LRASPP': dict(encoder=efficientnet, n_out=2, width=8),
    'LightUnet': dict(encoder=resnet, n_out=2, width=.5), 'SegNet': dict(n_out=2, n_in=3, width=.1),
    'SlidingWindowSegmenter': dict(classifier=nothing, patch=5, route='conv', stride=1, at_once=8),
    'TorchvisionSegmenter': dict(net=segmenter,
                                 mean=(.5, .5, .5), std=(.5, .5, .5)),
    'UNet': dict(n_out=2, n_in=3, width=.1, padding='valid', ps=.5),
    'deconvnet': BASE, 'deeplab_v1': dict(BASE, ps=.5), 'dilate': dict(encoder=efficientnet, stride=16),
    'dilatednet': dict(BASE, context='basic', start=None, ps=.5),
    'dynamic_unet': dict(n_out=2, n_in=3, pretrained=False, encoder='test_resnet'),
    **{k: dict(BASE, ps=.2) for k in ('fc_densenet103', 'fc_densenet56', 'fc_densenet67')},
    'fcn32s': dict(BASE, ps=.2), 'fcn16s': dict(BASE, ps=.2, start=None), 'fcn8s': dict(BASE, ps=.2, start=None),
    'light_unet': dict(BASE, encoder='test_resnet'),
    'lraspp': dict(BASE, encoder='test_efficientnet', stride=16),
    'patch_classifier': dict(n_out=2, n_in=3, patch=9, width=.1), 'segnet': BASE,
    'sliding_window_segmenter': dict(BASE, patch=9, route='conv', stride=1, at_once=8),
    'torchvision_segmenter': dict(name='lraspp_mobilenet_v3_large', n_out=2, n_in=3, pretrained=False, aux_loss=False),
    'unet': dict(BASE, padding='valid', ps=.5)}
ON_ENCODER = dict(n_out=2, n_in=3, pretrained=False, encoder='test_resnet', width=.25, resize=False, **DETS)
DET = {
    'FastRCNN': dict(encoder=cells, head=nothing, hidden=8, n_out=2, pool='pool', n_regions=8, foreground=.25,
                     bg_iou=(.1, .5), **BOXES),
    'RCNN': dict(encoder=nothing, d=8, n_out=2, crop=63, context=4, n_windows=(4, 8), chunk=8, **BOXES),
    'SlidingWindowDetector': dict(n_out=2, body=nothing, d=8, window=32, sizes=(16., 32.), ratios=(1.,), stride=4,
                                  dense=False, n_best=10, n_windows=(4, 8), chunk=8, **BOXES),
    'TorchvisionDetector': dict(net=fcos_net, n_out=2,
                                resize=False, **DETS),
    'YOLO': dict(encoder=plain, n_out=2, S=2, B=2, size=128, width=.05, bn=False, ps=.5, **BOXES),
    'YOLOBody': dict(n_in=3, width=.1, bn=False),
    'anchor_iou': dict(whs=[[3., 4.]], anchors=(((4.,),), (1.,))),
    'default_anchors': dict(strides=(8, 16), size=64, sizes=1), 'default_windows': dict(size=64),
    'fast_rcnn': dict(BASE, encoder='test_resnet', stride=16, ps=.5),
    'faster_rcnn': dict(ON_ENCODER, size=64, anchors=None, strides=(4, 8)),
    'faster_rcnn_vgg16': dict(ON_ENCODER, size=64, anchors=None, pool='pool', stride=16, ps=.5),
    'fcos': dict(ON_ENCODER, strides=(8, 16)),
    'mask_rcnn': dict(ON_ENCODER, size=64, anchors=None, strides=(4, 8), pool='align'),
    'rcnn': dict(BASE, encoder='test_resnet', crop=48, context=4),
    'retinanet': dict(ON_ENCODER, size=64, anchors=None, strides=(8, 16)),
    'sliding_window_detector': dict(BASE, encoder=None, size=64, window=32, sizes=(16., 32.), ratios=(1.,), stride=4,
                                     **BOXES),
    'ssdlite': dict(ON_ENCODER, encoder='test_efficientnet', size=64, anchors=None),
    'torchvision_detector': dict(arch='ssdlite320_mobilenet_v3_large', n_out=2, n_in=3, pretrained=False, resize=False,
                                 anchors=None, **DETS),
    'yolo_v1': dict(BASE, S=2, B=2, size=128, width=.05, encoder=None, bn=False, ps=.5, **BOXES)}

CALLS = {
    **{k: net(NAMES[k], **kw) for k,kw in SEG.items()},
    **{k: net(NAMES[k], **kw) for k,kw in DET.items()},
    'HeatmapHead': net(HeatmapHead, channels=[4, 8], strides=[8, 16], n_out=4, width=8, stride=8, scale=20.),
    'soft_argmax': call(soft_argmax, maps=lambda: torch.zeros(1, 2, 3, 3), margin=1),
    'GridHead': net(GridHead, c=8, n_out=2, grid=2, width=8, hidden=8, ps=.1),
    'BilinearUp': call(BilinearUp, s=2, padding=1), 'ContextModule': net(ContextModule, c=2, kind='basic'),
    'Encoder': call(Mine, body=lambda: nn.Conv2d(1, 4, 3), name='mine', n_in=3, pyramid=True, mean=(0., 0, 0),
                    std=(1., 1, 1), input_size=None),
    'create_encoder': net(create_encoder, arch='test_resnet', pretrained=False, n_in=3, pyramid=True),
    'list_encoders': call(list_encoders), 'init_he': call(init_he, module=nothing),
    'bilinear_kernel': call(bilinear_kernel, k=2), 'check_n_out': call(check_n_out, n_out=2),
    'init_bilinear': call(init_bilinear, deconv=lambda: nn.ConvTranspose2d(2, 2, 4, 2)),
    'unpool_nearest': call(unpool_nearest, x=lambda: torch.ones(1, 2, 2), s=2),
    'bed_of_nails': call(bed_of_nails, x=lambda: torch.ones(1, 2, 2), s=2),
    'zero_loss': call(zero_loss, tensors=lambda: [torch.ones(2)]),
    'arch_facts': call(arch_facts, name='unet', task='segmentation'),
    'get_arch': call(get_arch, name='unet', task='segmentation'), 'list_archs': call(list_archs, task='detection'),
    'register': call(register, task='detection', name='new'),
    # transforms
    'FitView': call(FitView, method='pad'), 'CropView': call(CropView, scale=(.3, 1.), ratio=(.75, 4/3)),
    'JitterView': call(JitterView, scale=(.1, 2.), method='pad'),
    'IoUView': call(IoUView, min_iou=(0., None), scale=(.3, 1.), ratio=(.5, 2.), trials=4),
    'ZoomOutView': call(ZoomOutView, most=4., p=.5, other=None),
    'LightJitter': call(LightJitter, max_lighting=.2, p=.75),
    'JointTransform': call(JointTransform, size=64, train=None, valid='squish', flip=.5, vflip=0., rotate=0.,
                           p_rotate=.75, tfms=None, fill=(1, 2, 3), mask_fill=255, min_visible=.1, keep=False,
                           flip_pairs=None),
    # blocks
    **{k: call(NAMES[k], vocab=['a', 'b']) for k in (
        'ClassBlock', 'OneClass', 'LabelSetBlock', 'LabelSetEncode', 'OneObject', 'OneObjectBlock', 'ClassMaskBlock',
        'ClassMaskEncode', 'ObjectBlock', 'ObjectLabels')},
    **{k: call(NAMES[k], vocab=['a', 'b'], skeleton=[(0, 1)], flip_pairs=None)
       for k in ('KeypointBlock', 'KeypointEncode')},
    'FileImage.create': call(FileImage.create, o=lambda: np.zeros((4, 4, 3), np.uint8), grey_range=None),
    'FileImageBlock': call(FileImageBlock, grey_range=None), 'ObjectMasksBlock': call(ObjectMasksBlock),
    'ObjectMasks': call(ObjectMasks, a=A), 'ProposalsBlock': call(ProposalsBlock, proposals=lambda: len),
    'check_classes': call(NAMES['check_classes'], annotations=[A]),
    'check_labels': call(check_labels, annotations=[A], vocab=['a']), 'check_masks': call(check_masks, a=A),
    'clip_objects': call(clip_objects, a=A),
    'mirror_points': call(mirror_points, p=lambda: torch.ones(2, 2), flip_pairs=[(0, 1)]),
    'point_pairs': call(point_pairs, pairs=[(0, 1)], vocab=['a', 'b'], what='pairs', k=2)}

EXEMPT = dict(
    **{k: "a fastai tensor: its constructor is torch's" for k in (
        'BBoxLabels', 'ClassMask', 'InstanceMasks', 'Keypoints', 'LabelSet', 'PixelBBox', 'RegionProposals')},
    **{k: "a getter, which fastai wraps and calls for each item" for k in (
        'annotation_of', 'label_set', 'marked_points', 'object_bbox', 'object_bboxes', 'object_label', 'object_masks',
        'path_of', 'the_object', 'class_mask')},
    **{k: "the constructor is fastai's" for k in ('ObjectBBoxes', 'TightBoxes')},
    FileImage="the constructor is Pillow's; `FileImage.create` is in CALLS",
    cluster_anchors="`fit_anchors`, which calls it, is in test_arguments_tasks",
    Detector="an abstract class without arguments",
    pad_dets="a part of `forward`, called for each batch", pad_objects="fastai's `before_batch`, called for each batch")

ACCEPTS = dict(
    encoder=never, pretrained=flag, patch=whole(1), stride=whole(1), at_once=whole(1), aux_loss=flag,
    bn=flag, resize=flag, nms=number(0, 1), ps=number(0, 1), hidden=whole(1), d=whole(1), chunk=whole(1),
    n_regions=whole(1), n_best=whole(1), foreground=number(0, 1), crop=whole(1), context=whole(0), B=whole(1),
    S=either(whole(1), one_of((1, 2))), k=whole(1), first=whole(1), layers=one_of((1, 2, 3)), blur=flag, body=never,
    blur_final=flag, self_attention=flag, last_cross=flag, bottle=flag, norm_type=one_of(None), start=one_of(None),
    mean=one_of((1, 2, 3)), std=one_of((1, 2, 3)), window=whole(1), dense=flag, c=whole(1), grid=whole(1),
    name=text, pyramid=flag, s=whole(1), padding=whole(0), sizes=either(whole(1), one_of((1, 2, 3))),
    ratios=one_of((1, 2, 3)), strides=one_of((1, 2, 3)), input_size=one_of(None), task=one_of(None),
    tensors=either(EMPTY, one_of([])), train=either(CALLABLE, one_of(None)), valid=CALLABLE,
    flip=number(0, 1), vflip=number(0, 1),
    rotate=number(0, 360), p_rotate=number(0, 1), tfms=either(CALLABLE, one_of(None)), fill=one_of((1, 2, 3)),
    mask_fill=whole(0), min_visible=number(0, 1), keep=flag, flip_pairs=either(EMPTY, one_of(None, [])),
    skeleton=either(EMPTY, one_of(None, [])), annotations=either(EMPTY, one_of([])),
    min_iou=one_of([None]), trials=whole(1), most=number(1), p=number(0, 1), other=either(CALLABLE, one_of(None)),
    max_lighting=number(0, 1 - 1e-9), proposals=CALLABLE, pairs=either(EMPTY, one_of(None, [])), what=text,
    n_windows=never, grey_range=one_of(None), vocab=either(names, EMPTY),
    **{'point_pairs.vocab': either(names, EMPTY, one_of((1, 2, 3))),
       'sliding_window_detector.stride': either(whole(1), one_of(None))})

def test_every_public_name_is_in_the_matrix_or_exempt():
    names = {k.split('.')[0] for k in CALLS}
    assert {*for_users(*AREA)} <= names | EXEMPT.keys() <= {*NAMES} and not names & EXEMPT.keys() - {'FileImage'}

@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs): raise OSError("no network")
    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', refuse)
    monkeypatch.setattr('torchvision.models._api.load_state_dict_from_url', refuse)

@pytest.mark.parametrize('name', CALLS)
def test_what_makes_no_sense_is_refused_in_our_words(name):
    assert_no_faults({name: CALLS[name]}, ['-1', 'object()'], ACCEPTS, works=False)

@pytest.mark.parametrize('f, kw, message', [
    (JointTransform, dict(rotate=(-10, 10)), r"rotate: .* angle in degrees.*write rotate=10 for angles from -10 to 10"),
    (JointTransform, dict(fill=0), r"fill: expected a color: three numbers .* got 0; write \(0, 0, 0\)"),
    (JointTransform, dict(size=64.), r"size: expected pixels: .* got 64.0"),
    (NAMES['unet'], dict(n_out=0), "n_out: expected the number of classes .* got 0"),
    (NAMES['segnet'], dict(n_out=2, pretrained=None), "pretrained: expected True, False, or the path .* got None"),
    (get_arch, dict(name='unett', task='segmentation'), "did you mean 'unet'"),
    (list_archs, dict(task='segment'), "task: .* got 'segment'; did you mean 'segmentation'"),
    (NAMES['faster_rcnn'], dict(n_out=2, anchors=(((8,),), (0,))), "anchors, ratios, number 0: expected")])
def test_a_message_says_what_was_expected_and_what_to_do(f, kw, message):
    with pytest.raises(ValueError, match=message): f(**kw)

@pytest.mark.slow
@pytest.mark.parametrize('name', CALLS)
def test_of_all_bad_values_none_is_taken_or_refused_in_foreign_words(name):
    assert_no_faults({name: CALLS[name]}, BAD, ACCEPTS)
