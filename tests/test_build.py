"How a learner is built: weights, parameter groups, what is frozen, normalization"
import warnings
import fastai.vision.learner as fastai_learner
import pytest, torch
import torchvision.models as tvm
from fastai.vision.all import create_body
from torch import nn
from torchvision.models import get_model
from torchvision.models._api import WeightsEnum
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.synthetic import SHAPE_CODES, draw_shapes
from vision_tasks.detection import detection_dls, detection_learner
from vision_tasks.models.encoders import create_encoder
from vision_tasks.multilabel import multilabel_dls, multilabel_learner
from vision_tasks.segmentation import segmentation_dls, segmentation_learner
from vision_tasks.training.build import EncoderHead, parameter_groups, pooled_head

@pytest.fixture(scope='module')
def anns(tmp_path_factory): return draw_shapes(tmp_path_factory.mktemp('shapes'), 8, 64)

def boxed(anns): return [Annotation(a.path, a.size, a.labels, a.bboxes) for a in anns]
def masked(anns): return [Annotation(a.path, a.size, mask=a.mask) for a in anns]

KW = dict(size=64, bs=2, num_workers=0, device='cpu')

@pytest.fixture
def multilabel(anns): return multilabel_dls(anns, **KW)
@pytest.fixture
def detection(anns): return detection_dls(boxed(anns), **KW)
@pytest.fixture
def segmentation(anns): return segmentation_dls(masked(anns), SHAPE_CODES, **KW)

def shapes_of(group): return [tuple(p.shape) for p in group]

# --- parameter groups

@pytest.mark.parametrize('name', ['resnet18', 'densenet121', 'vgg11_bn', 'alexnet'])
def test_an_encoder_is_split_as_fastai_splits_it(name):
    build = getattr(tvm, name)
    with torch.device('meta'):
        meta = fastai_learner.model_meta[build]
        theirs = meta['split'](nn.Sequential(create_body(build(), 3, cut=meta['cut']), nn.Linear(2, 2)))
    ours = parameter_groups(EncoderHead(create_encoder(name, False, pyramid=False), pooled_head, 3, {}))
    assert [shapes_of(o) for o in ours[:-1]] == [shapes_of(o) for o in theirs[:-1]] and len(ours) == 3

def test_every_parameter_is_in_one_group(multilabel, detection, segmentation):
    for learn in (multilabel_learner(multilabel, 'resnet18', pretrained=False),
                  detection_learner(detection, 'fasterrcnn_mobilenet_v3_large_320_fpn', pretrained=False),
                  segmentation_learner(segmentation, encoder='resnet18', pretrained=False)):
        ids = [id(p) for g in parameter_groups(learn.model) for p in g]
        assert sorted(ids) == sorted(map(id, learn.model.parameters()))

def coco_weights(monkeypatch, name='fasterrcnn_mobilenet_v3_large_fpn'):
    "What a download would bring: random weights for 91 classes"
    sd = get_model(name, weights=None, weights_backbone=None).state_dict()
    monkeypatch.setattr(WeightsEnum, 'get_state_dict', lambda self, *args, **kwargs: dict(sd))

def norm_names(model):
    return {f'{n}.{k}' for n,m in model.named_modules() if isinstance(m, nn.BatchNorm2d)
            for k,_ in m.named_parameters()}

def trained_now(learn):
    "Names of the parameters that train, without BatchNorm, which fastai trains in frozen groups too"
    return {n for n,p in learn.model.named_parameters() if p.requires_grad} - norm_names(learn.model)

def test_of_a_pretrained_detector_only_the_layers_that_predict_classes_train_at_first(detection, monkeypatch):
    coco_weights(monkeypatch)
    learn = detection_learner(detection, 'fasterrcnn_mobilenet_v3_large_fpn')
    new = {f'net.roi_heads.box_predictor.{o}.{k}' for o in ('cls_score', 'bbox_pred') for k in ('weight', 'bias')}
    assert trained_now(learn) == new == learn.model.new_layers
    groups = parameter_groups(learn.model)
    assert [len(g) for g in groups][-1] == 4 and len(groups) == 3       # encoder, neck and heads, new layers
    learn.unfreeze()
    assert trained_now(learn) > {*new, 'net.rpn.head.cls_logits.weight'}

def test_a_builder_of_torchvision_is_frozen_as_its_name_is(detection, monkeypatch):
    coco_weights(monkeypatch)
    by_name = detection_learner(detection, 'fasterrcnn_mobilenet_v3_large_fpn')
    by_builder = detection_learner(detection, fasterrcnn_mobilenet_v3_large_fpn)
    assert trained_now(by_name) == trained_now(by_builder)

def test_with_the_weights_of_the_encoder_all_other_layers_train_at_first(segmentation, tmp_path):
    torch.save(get_model('resnet18', weights=None).state_dict(), tmp_path/'resnet18.pth')
    learn = segmentation_learner(segmentation, encoder='resnet18', pretrained=tmp_path/'resnet18.pth')
    names = {n for n,_ in learn.model.named_parameters()} - norm_names(learn.model)
    assert trained_now(learn) == {n for n in names if not n.startswith('encoder.')}

def test_a_model_of_your_own_is_not_frozen(multilabel):
    net = EncoderHead(create_encoder('resnet18', False, pyramid=False), pooled_head, len(multilabel.vocab), {})
    learn = multilabel_learner(multilabel, net)
    assert all(p.requires_grad for p in learn.model.parameters())

# --- pretrained

@pytest.mark.parametrize('pretrained', [True, 'encoder'])
def test_one_warning_tells_that_an_architecture_has_no_weights(segmentation, detection, pretrained):
    with pytest.warns(UserWarning, match="no pretrained weights of unet") as w:
        learn = segmentation_learner(segmentation, 'unet', pretrained=pretrained,
                                     arch_kwargs=dict(width=.1, padding='same'))
    assert sum('no pretrained weights' in str(o.message) for o in w) == 1
    assert all(p.requires_grad for p in learn.model.parameters())
    with pytest.warns(UserWarning, match="no pretrained weights of yolo_v1"):
        learn = detection_learner(detection, 'yolo_v1', pretrained=pretrained, arch_kwargs=dict(width=.05, S=2))
    assert all(p.requires_grad for p in learn.model.parameters())

def test_without_pretrained_there_is_no_warning_of_weights(segmentation):
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'there are no pretrained weights')
        segmentation_learner(segmentation, 'unet', pretrained=False, arch_kwargs=dict(width=.1, padding='same'))

def test_the_whole_network_or_the_encoder_alone(detection, monkeypatch):
    "True asks for the detector's weights, 'encoder' for those of its backbone"
    asked = []
    def weights(self, *args, **kwargs):
        asked.append(type(self).__name__)
        raise OSError("no network")
    monkeypatch.setattr(WeightsEnum, 'get_state_dict', weights)
    for pretrained,name in ((True, 'FasterRCNN_MobileNet_V3_Large_FPN_Weights'),
                            ('encoder', 'MobileNet_V3_Large_Weights')):
        with pytest.raises(OSError, match="could not be downloaded"):
            detection_learner(detection, 'fasterrcnn_mobilenet_v3_large_fpn', pretrained=pretrained)
        assert asked.pop() == name

# --- normalization

def test_each_of_two_learners_on_the_same_dls_normalizes_for_itself(multilabel):
    first  = multilabel_learner(multilabel, 'resnet18', pretrained=False)
    before = first.get_preds()[0]
    multilabel_learner(multilabel, 'resnet18', pretrained=False, normalize=([0.]*3, [.01]*3))
    torch.testing.assert_close(first.get_preds()[0], before, atol=0, rtol=0)
    multilabel_learner(multilabel, 'resnet18', pretrained=False, normalize=None)
    torch.testing.assert_close(first.get_preds()[0], before, atol=0, rtol=0)
