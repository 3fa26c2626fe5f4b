"""The parts of other packages that are not documented, or that we override: each exists and takes the parameters that
we rely on, so that a new release fails here and says which of our files to look at"""
import ast, importlib, inspect, re
from pathlib import Path
import numpy as np, pytest, torch, torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.roi_heads import RoIHeads
from fastai.callback.schedule import LRFinder
from fastai.data.load import DataLoader
from fastai.learner import Metric, Recorder
from fastai.vision.augment import PILImage, PILMask, TensorBBox, TensorMask   # which patches methods into these
import vision_tasks
from vision_tasks.models.detection.torchvision_parts import OURS
from public import modules

ROOT = Path(vision_tasks.__file__).parent

# place: (leading parameters without self; None where only the name matters, which of our files relies on it)
PARTS = {
    # --- fastai
    'fastai.learner.Learner._call_one': ('event_name', 'training/learner.py'),
    'fastai.learner.Learner._do_one_batch': ('', 'detection.py'),
    'fastai.learner.Learner._do_epoch_train': ('', 'training/learner.py'),
    'fastai.learner.Learner._do_epoch_validate': ('ds_idx dl', 'training/learner.py'),
    'fastai.learner.Learner._do_grad_opt': ('', 'detection.py'),
    'fastai.learner.Learner._grab_cbs': ('cb_cls', 'training/learner.py'),
    'fastai.learner.Learner.one_batch': ('i b', 'training/learner.py'),
    'fastai.learner.Learner.to_detach': ('b cpu gather', 'training/learner.py'),
    'fastai.learner.Learner.fit': ('n_epoch lr wd cbs reset_opt start_epoch', 'training/learner.py'),
    'fastai.learner.Learner.fit_one_cycle': (
        'n_epoch lr_max div div_final pct_start wd moms cbs reset_opt start_epoch', 'training/learner.py'),
    'fastai.learner.Learner.fine_tune': ('epochs base_lr freeze_epochs lr_mult pct_start div', 'training/learner.py'),
    'fastai.learner.Learner.lr_find': (
        'start_lr end_lr num_it stop_div show_plot suggest_funcs', 'training/learner.py'),
    'fastai.learner.Learner.get_preds': (
        'ds_idx dl with_input with_decoded with_loss act inner reorder cbs', 'training/learner.py'),
    'fastai.learner.Learner.validate': ('ds_idx dl cbs', 'training/learner.py'),
    'fastai.learner.Learner.predict': ('item rm_type_tfms with_input', 'training/learner.py'),
    'fastai.learner.Learner.tta': ('ds_idx dl n item_tfms batch_tfms beta use_max', 'training/learner.py'),
    'fastai.learner.Learner.show_results': ('ds_idx dl max_n shuffle', 'training/learner.py'),
    'fastai.learner.Learner.summary': ('', 'detection.py'),
    'fastai.learner.Learner.export': ('fname pickle_module pickle_protocol', 'training/learner.py'),
    'fastai.learner.Learner.save': ('file with_opt', 'training/learner.py'),
    'fastai.learner.Learner.load': ('file device with_opt strict', 'training/learner.py'),
    'fastai.learner.save_model': ('file model opt with_opt pickle_protocol', 'training/learner.py'),
    'fastai.data.load.DataLoader.do_item': ('s', 'data/loading.py'),
    'fastai.data.load.DataLoader.create_item': ('s', 'data/loading.py'),
    'fastai.data.core.TfmdDL._pre_show_batch': ('b max_n', 'show/objects.py'),
    'fastai.data.core.TfmdDL.decode_batch': ('b max_n full', 'show/objects.py'),
    'fastai.data.core.TfmdDL.show_batch': ('b max_n ctxs show unique', 'show/batches.py'),
    'fastai.data.core.TfmdDL.show_results': ('b out max_n ctxs show', 'show/batches.py'),
    'fastai.vision.core.TensorPoint.affine_coord': (
        'mat coord_tfm sz mode pad_mode align_corners', 'data/items.py'),
    'fastai.vision.core.TensorBBox.affine_coord': (
        'mat coord_tfm sz mode pad_mode align_corners', 'data/items.py'),
    'fastai.vision.core.TensorMask.affine_coord': (
        'mat coord_tfm sz mode pad_mode align_corners', 'data/items.py'),
    'fastai.vision.core.TensorBBox._do_crop_pad': ('sz tl orig_sz pad_mode resize_to', 'data/items.py'),
    'fastai.vision.core.TensorBBox.flip_lr': ('', 'data/items.py'),
    'fastai.vision.core.TensorBBox.dihedral': ('k', 'data/items.py'),
    'fastai.vision.core.TensorBBox.create': ('img_size', 'data/items.py'),
    'fastai.vision.core.PILBase.create': ('fn', 'data/items.py'),
    'fastai.vision.core.PILMask._tensor_cls': (None, 'data/transforms.py'),
    'fastai.torch_core.TensorBase.set_meta': ('x as_copy', 'data/items.py'),
    'fastai.vision.augment.RandTransform.before_call': ('b split_idx', 'data/transforms.py'),
    'fastai.callback.schedule.combined_cos': ('pct start middle end', 'training/fine_tuning.py'),
    'fastai.callback.schedule.ParamScheduler': ('scheds', 'training/fine_tuning.py'),
    'fastai.callback.schedule.ParamScheduler.before_fit': ('', 'training/fine_tuning.py'),
    'fastai.callback.schedule.ParamScheduler.before_batch': ('', 'training/fine_tuning.py'),
    'fastai.callback.schedule.ParamScheduler.after_batch': ('', 'training/fine_tuning.py'),
    'fastai.vision.models.unet.UnetBlock': ('up_in_c x_in_c hook final_div', 'models/segmentation/dynamic_unet.py'),
    'fastai.vision.models.unet.UnetBlock.forward': ('up_in', 'models/segmentation/dynamic_unet.py'),
    # --- torch and torchvision
    'torch._C.DisableTorchFunctionSubclass': (None, 'data/blocks.py'),
    'torch.nn.Module._compiled_call_impl': (None, 'training/compiling.py'),
    'torch.nn.modules.batchnorm._BatchNorm': ('num_features', 'distributed.py'),
    'torchvision.ops.poolers._convert_to_roi_format': ('boxes', 'models/detection/mask_rcnn.py'),
    'torchvision.ops.poolers._setup_scales': (
        'features image_shapes canonical_scale canonical_level', 'models/detection/mask_rcnn.py'),
    'torchvision.ops.poolers.MultiScaleRoIAlign': (
        'featmap_names output_size sampling_ratio canonical_scale canonical_level', 'models/detection/mask_rcnn.py'),
    'torchvision.ops.poolers.MultiScaleRoIAlign.forward': ('x boxes image_shapes', 'models/detection/mask_rcnn.py'),
    'torchvision.transforms.v2.TrivialAugmentWide._AUGMENTATION_SPACE': (None, 'data/laying.py'),
    'torchvision.transforms.v2.RandAugment._AUGMENTATION_SPACE': (None, 'data/laying.py'),
    'torchvision.transforms.v2.AutoAugment._AUGMENTATION_SPACE': (None, 'data/laying.py'),
    'torchvision.transforms.v2.AutoAugment._get_policies': ('policy', 'data/laying.py'),
    'torchvision.transforms.v2.AugMix._AUGMENTATION_SPACE': (None, 'data/laying.py'),
    'torchvision.transforms.v2.AugMix._PARTIAL_AUGMENTATION_SPACE': (None, 'data/laying.py'),
    'torchvision.models.detection.ssdlite._extra_block': (
        'in_channels out_channels norm_layer', 'models/detection/ssdlite.py'),
    'torchvision.models.detection.ssdlite._normal_init': ('conv', 'models/detection/ssdlite.py'),
    'torchvision.models.detection.ssdlite.SSDLiteHead': (
        'in_channels num_anchors num_classes norm_layer', 'models/detection/ssdlite.py'),
    'torchvision.models.detection.transform.GeneralizedRCNNTransform.resize': (
        'image target', 'models/detection/torchvision_parts.py'),
    'torchvision.models.detection.transform.GeneralizedRCNNTransform.forward': (
        'images targets', 'models/detection/torchvision_parts.py'),
    'torchvision.models.detection.transform.GeneralizedRCNNTransform.postprocess': (
        'result image_shapes original_image_sizes', 'models/detection/torchvision_parts.py'),
    'torchvision.models.detection.rpn.RegionProposalNetwork.assign_targets_to_anchors': (
        'anchors targets', 'models/detection/torchvision_parts.py'),
    'torchvision.models.detection.rpn.RegionProposalNetwork.compute_loss': (
        'objectness pred_bbox_deltas labels regression_targets', 'models/detection/torchvision_parts.py'),
    'torchvision.models.detection.roi_heads.RoIHeads.forward': (
        'features proposals image_shapes targets', 'models/detection/torchvision_parts.py'),
    'torchvision.models.detection.roi_heads.RoIHeads.select_training_samples': (
        'proposals targets', 'models/detection/torchvision_parts.py'),
    'torchvision.models.detection.roi_heads.RoIHeads.has_mask': ('', 'models/detection/torchvision.py'),
    'torchvision.models.detection.roi_heads.maskrcnn_inference': ('x labels', 'models/detection/torchvision_parts.py'),
    'torchvision.models.detection.ssd.SSD.compute_loss': (
        'targets head_outputs anchors matched_idxs', 'models/detection/torchvision_parts.py'),
    'torchvision.models.detection.retinanet.RetinaNetHead.compute_loss': (
        'targets head_outputs anchors matched_idxs', 'models/detection/torchvision_parts.py'),
    'torchvision.models.detection.fcos.FCOSHead.compute_loss': (
        'targets head_outputs anchors matched_idxs', 'models/detection/torchvision_parts.py'),
    'torchvision.models.detection.anchor_utils.AnchorGenerator.num_anchors_per_location': (
        '', 'models/detection/torchvision.py'),
    'torchvision.models.detection.anchor_utils.DefaultBoxGenerator': (
        'aspect_ratios min_ratio max_ratio scales', 'models/detection/ssdlite.py'),
    # --- others
    'PIL.Image.Image.load': ('', 'data/items.py'),
    'faster_coco_eval.core.cocoeval.COCOeval.computeIoU': ('imgId catId', 'metrics/detection.py'),
    'faster_coco_eval.COCOeval_faster': ('cocoGt cocoDt iouType', 'metrics/detection.py'),
    'matplotlib.text.Annotation.draw': ('renderer', 'show/names.py'),
    'matplotlib.text.Annotation.set': (None, 'show/names.py'),
    'timm.models.adapt_input_conv': ('in_chans conv_weight', 'models/encoders.py'),
    'timm.layers.freeze_batch_norm_2d': ('module', 'models/detection/pyramid.py'),
    'timm.layers.convert_sync_batchnorm': ('module', 'distributed.py'),
    'fastprogress.fastprogress.progress_bar': ('gen total', 'detection.py')}
# those that have no parameters, which the tests below look at; `__class__` and `_modules` are in these too
ATTRIBUTES = {
    '_DataLoader__idxs': 'training/learner.py', '_train_mets': 'distributed.py', '_valid_mets': 'distributed.py',
    '_modules': 'models/detection/torchvision_parts.py', '_im': 'data/items.py', '_mode': 'data/items.py',
    '_size': 'data/items.py', '_getframe': 'warning.py'}

def found(place):
    "The object at `place`, such as 'package.module.Class.method'; AttributeError where it is none"
    parts = place.split('.')
    for n in range(len(parts), 0, -1):
        try: o = importlib.import_module('.'.join(parts[:n]))
        except ImportError: continue
        for p in parts[n:]: o = getattr(o, p)
        return o
    raise AttributeError(place)

def parameters(o) -> list:
    "The names of the parameters of a function, method or class, without the first of a method"
    method = inspect.isfunction(o) and '.' in o.__qualname__ and '<locals>' not in o.__qualname__
    return list(inspect.signature(o).parameters)[method:]

@pytest.mark.parametrize('place', PARTS)
def test_each_part_of_another_package_exists_and_takes_the_parameters_that_we_pass(place):
    want,ours = PARTS[place]
    assert (ROOT/ours).is_file()
    try: o = found(place)
    except AttributeError: pytest.fail(f"{place} does not exist any more; vision_tasks/{ours} relies on it")
    if want is None: return
    names = parameters(o)
    # fastai patches methods into its tensors whose first parameter is not called self
    names = names[names[:1] == ['x'] and want.split()[:1] != ['x']:]
    assert names[:len(want.split())] == want.split(), (
        f"{place} takes ({', '.join(names)}), but vision_tasks/{ours} expects ({', '.join(want.split())})")

def test_a_part_that_is_gone_or_takes_other_parameters_fails_with_the_file_to_look_at(monkeypatch):
    gone,changed = 'torchvision.ops.poolers._gone','torchvision.ops.poolers._convert_to_roi_format'
    monkeypatch.setitem(PARTS, gone, ('boxes', 'models/detection/mask_rcnn.py'))
    monkeypatch.setitem(PARTS, changed, ('rois', 'models/detection/mask_rcnn.py'))
    check = test_each_part_of_another_package_exists_and_takes_the_parameters_that_we_pass
    with pytest.raises(pytest.fail.Exception, match='_gone does not exist any more; .*mask_rcnn.py relies on it'):
        check(gone)
    with pytest.raises(AssertionError, match=r'takes \(boxes\), but .*mask_rcnn.py expects \(rois\)'): check(changed)

# --- the lists are complete

def ours():
    "Names that the package defines, or stores on its own objects"
    names = set()
    for p in ROOT.rglob('*.py'):
        for o in ast.walk(ast.parse(p.read_text())):
            if isinstance(o, (ast.FunctionDef, ast.ClassDef)): names.add(o.name)
            if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store): names.add(o.id)
            if isinstance(o, ast.Attribute) and isinstance(o.ctx, ast.Store): names.add(o.attr)
    return names

def foreign_names():
    "(file, private name) of what is imported from other packages, or read from objects that are none of ours"
    mine = ours()
    for p in sorted(ROOT.rglob('*.py')):
        for o in ast.walk(ast.parse(p.read_text())):
            if isinstance(o, ast.ImportFrom) and o.level == 0 and o.module != '__future__':
                names = [n.name for n in o.names if re.match('_[^_]', f'{o.module}.{n.name}'.split('.')[-1]) or
                         re.search(r'\._[^_]', o.module)]
            elif isinstance(o, ast.Attribute) and re.match('_[^_]', o.attr) and o.attr not in mine: names = [o.attr]
            elif isinstance(o, ast.Constant) and re.fullmatch(r'_[A-Z]\w+__\w+', str(o.value)): names = [o.value]
            else: continue
            yield from ((p, n) for n in names)

def test_every_private_name_of_another_package_that_we_use_is_listed():
    listed = {p.rsplit('.', 1)[-1] for p in PARTS} | ATTRIBUTES.keys()
    bad = [f"{p.relative_to(ROOT)}: {n}" for p,n in foreign_names() if n not in listed]
    assert bad == [], "private parts of other packages; add them to PARTS or ATTRIBUTES"
    assert {n for _,n in foreign_names()} >= {'_grab_cbs', '_DataLoader__idxs', '_extra_block', '_train_mets'}

def test_every_method_of_another_package_that_we_override_is_listed():
    "But for those that its documentation asks to be overridden"
    hooks = {'forward', 'extra_repr', 'encodes', 'decodes', 'setups', 'order', 'split_idx', 'name', 'reset',
             'accumulate', 'value'}
    bad,listed = set(),{p.rsplit('.', 1)[-1] for p in PARTS}
    for m in modules():
        for c in vars(m).values():
            if not inspect.isclass(c) or not c.__module__.startswith('vision_tasks'): continue
            for b in c.__mro__[1:]:
                if re.match(r'(vision_tasks|builtins|abc|torch|_frozen_importlib\w*)\b', b.__module__): continue
                places = {f'{b.__module__}.{b.__name__}.{k}' for k,v in vars(b).items()
                          if k in vars(c) and k not in hooks and k[:2] != '__' and callable(v) and '_abc' not in k}
                bad |= {f"{c.__module__}.{c.__name__}: {p}" for p in places if p.rsplit('.', 1)[-1] not in listed}
    assert bad == set(), "overridden parts of other packages; add them to PARTS"

# --- fastai

def test_a_dataloader_stores_the_indices_of_its_epoch_while_it_is_iterated():
    dl = DataLoader(list(range(10)), bs=4, shuffle=True, num_workers=0)
    batches = torch.cat([b for b in dl])
    assert getattr(dl, '_DataLoader__idxs') == batches.tolist(), "training/learner.py: items_of_batch"

def test_the_recorder_stores_the_metrics_of_training_and_of_validation():
    "The first of training is the smoothed loss, which distributed.py leaves out"
    rec = Recorder()
    rec.metrics = []
    assert rec._train_mets[0] is rec.smooth_loss and rec.loss in rec._valid_mets, "distributed.py"

def test_the_rate_finder_names_its_temporary_folder():
    assert 'tmp_p' in inspect.getsource(LRFinder), "distributed.py: before_epoch"

def test_a_metric_may_change_its_class_for_a_while():
    "distributed.py: counted"
    class Ours(Metric):
        def reset(self): self.total = 0
    m,seen = Ours(),[]
    m.__class__ = type('Noting', (Ours,), {'__setattr__': lambda self, k, v: seen.append(k)})
    m.reset()
    object.__setattr__(m, '__class__', Ours)
    assert seen == ['total'] and type(m) is Ours and not hasattr(m, 'total')

def test_fastais_mask_becomes_the_tensor_that_its_class_names():
    assert issubclass(PILMask._tensor_cls, TensorMask), "data/transforms.py, data/blocks.py"

def test_fastai_takes_the_image_from_its_file_by_pillows_private_names():
    "data/items.py: an image is loaded when `_im` is there; `_mode` and `_size` are known before"
    im = PILImage(Image.Image())
    assert im._im is None
    im._mode,im._size = 'RGB',(3, 2)
    assert (im.mode, im.size) == ('RGB', (3, 2))
    im._im = Image.new('RGB', (3, 2), (1, 2, 3)).im
    assert im.load() is not None and np.asarray(im).tolist() == [[[1, 2, 3]]*3]*2

def test_subclasses_of_tensors_keep_what_is_stored_on_them_and_their_methods_are_ours():
    class Box(TensorBBox):
        def _do_crop_pad(self, sz, tl, orig_sz, resize_to=None, **kwargs): return 'ours'
    b = Box(torch.zeros(1, 4), img_size=(3, 2))
    assert b.img_size == (3, 2) and b.crop_pad((2, 2), (0, 0)) == 'ours', "data/items.py: PixelBBox"
    with torch._C.DisableTorchFunctionSubclass(): assert type(torch.stack([torch.zeros(2)])) is Tensor

# --- torch and torchvision

def detector(**kwargs):
    body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8))
    body.out_channels = 8
    roi = torchvision.ops.MultiScaleRoIAlign(['0'], 3, 2)
    return FasterRCNN(body, 3, rpn_anchor_generator=AnchorGenerator(((16,),), ((1.,),)), box_roi_pool=roi, **kwargs)

def test_a_module_keeps_its_children_in_modules():
    net = nn.Sequential(nn.ReLU())
    other = nn.Tanh()
    net._modules['0'] = other
    assert net[0] is other and list(net.children()) == [other], "models/detection/torchvision_parts.py: run_once"

@pytest.mark.parametrize('theirs', OURS, ids=lambda o: o.__name__)
def test_torchvisions_parts_can_become_ours(theirs):
    "models/detection/torchvision.py assigns `__class__`: our subclass adds no slots and no state of its own"
    mine,o = OURS[theirs],theirs.__new__(theirs)
    nn.Module.__init__(o)
    o.__class__ = mine
    assert type(o) is mine and issubclass(mine, theirs) and '__init__' not in vars(mine)

def test_the_parts_of_a_detector_have_the_names_that_we_read_and_set():
    net = detector(box_detections_per_img=7, box_score_thresh=.3)
    for o,names in ((net, 'transform backbone rpn roi_heads'), (net.rpn, 'head anchor_generator'),
                    (net.transform, 'image_mean image_std min_size max_size fixed_size'),
                    (net.roi_heads, 'box_predictor box_roi_pool mask_predictor mask_head mask_roi_pool')):
        missing = [n for n in names.split() if not hasattr(o, n)]
        assert missing == [], f"{type(o).__name__}: models/detection/torchvision.py and torchvision_parts.py"
    assert (net.roi_heads.detections_per_img, net.roi_heads.score_thresh) == (7, .3)
    assert net.roi_heads.proposal_matcher.high_threshold == .5 and not net.roi_heads.has_mask()
    assert net.rpn.anchor_generator.num_anchors_per_location() == [1]
    assert DefaultBoxGenerator([[2]], steps=[8]).steps == [8] and DefaultBoxGenerator([[2]]).steps is None

def test_the_transform_of_a_detector_is_handed_the_targets_through_our_hooks():
    "`resize` for each image with its target, then `postprocess`, as torchvision_parts.py overrides them"
    net,called = detector().eval(),[]
    class Noting(type(net.transform)):
        def resize(self, image, target=None): called.append('resize'); return super().resize(image, target)
        def postprocess(self, *args): called.append('postprocess'); return super().postprocess(*args)
    net.transform.__class__ = Noting
    with torch.no_grad(): net([torch.rand(3, 32, 32)]*2)
    assert called == ['resize', 'resize', 'postprocess']

def test_the_heads_of_a_detector_return_samples_and_labels_that_tell_background_from_ignored():
    "torchvision_parts.py: 0 is background and -1 is left out, of the RPN's anchors; four values of the second stage"
    net = detector()
    t = [dict(boxes=torch.tensor([[0, 0, 16, 16.]]), labels=torch.tensor([1]))]
    anchors = torch.tensor([[0, 0, 16, 16.], [20, 20, 36, 36], [0, 0, 16, 30]])   # IoU 1, 0 and 0.53
    labels,boxes = net.rpn.assign_targets_to_anchors([anchors], t)
    assert labels[0].tolist() == [1, 0, -1] and boxes[0].shape == (3, 4)
    proposals,idxs,classes,regression = RoIHeads.select_training_samples(net.roi_heads, [anchors], t)
    assert len(proposals[0]) == len(idxs[0]) == len(classes[0]) == len(regression[0]) == 4   # with the true box
    assert classes[0].tolist().count(1) == 3
