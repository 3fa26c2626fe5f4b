"""Every task on drawn shapes, from files to a tuned model: `python -m vision_tasks.demo`, a few minutes on a CPU, no
network"""
from __future__ import annotations
from .threads import wait_passively
wait_passively()   # before torch is imported
import argparse, time
from dataclasses import replace
from pathlib import Path
import torch
from fastai.torch_core import set_seed
from .classification import classification_dls, classification_learner
from .data.annotation import Annotation
from .data.splits import stratified_folds
from .data.synthetic import (FIGURE_FLIP_PAIRS, FIGURE_JOINTS, FIGURE_SKELETON, SHAPE_CODES, SHAPES,
                             draw_figures, draw_shapes)
from .detection import detection_dls, detection_learner
from .instance import instance_dls, instance_learner
from .keypoint import keypoint_dls, keypoint_learner
from .localization import localization_dls, localization_learner
from .metrics.points import PCK, PointError
from .multilabel import multilabel_dls, multilabel_learner
from .segmentation import segmentation_dls, segmentation_learner
from .show.sheet import contact_sheet
from .metrics.threshold_curves import out_of_fold_threshold

def demo_multilabel(path:Path, n:int, epochs:int) -> dict:
    "Which shapes are in the image? The row of the table; a contact sheet and the exported learner go to `path`"
    anns  = draw_shapes(path/'shapes', n=n, size=64)
    dls   = multilabel_dls(anns, size=64, bs=32, path=path, num_workers=0)
    learn = multilabel_learner(dls, 'resnet18', pretrained=False)
    with learn.no_bar():
        before = train(learn, epochs, 4e-3)
        # the score of the tuned thresholds on images that they were not chosen on
        valid = learn.dls.valid.items
        tuned = out_of_fold_threshold(*learn.get_preds(), stratified_folds(valid), per_class=True)[1]
        learn.tune_threshold(per_class=True)
        keep(learn, 'multilabel', valid[:12])
    return {'mAP': before['map_macro'], 'macro F1 at .5': before['f1_macro'],
            'tuned per class, out of fold': tuned.nanmean().item()}

def demo_classification(path:Path, n:int, epochs:int) -> dict:
    "Which shape is in the image? None is predicted where the score is too low for an accuracy of 0.95"
    drawn = draw_shapes(path/'one', n=n, size=64, most=1)
    anns  = [Annotation(a.path, a.size, a.labels) for a in drawn if a.labels]
    dls   = classification_dls(anns, size=64, bs=32, path=path, num_workers=0)
    learn = classification_learner(dls, 'resnet18', pretrained=False)
    with learn.no_bar():
        scores = train(learn, epochs, 4e-3)
        learn.tune_threshold('coverage_at_accuracy', at=.95)
        tuned = learn.evaluate()
        keep(learn, 'classification', dls.valid.items[:12])
    return {'accuracy': scores['accuracy'], 'accepted at an accuracy of .95': tuned['coverage']}

def demo_keypoint(path:Path, n:int, epochs:int) -> dict:
    "Where are the 14 joints of a drawn figure?"
    anns  = draw_figures(path, n=n, size=64)
    dls   = keypoint_dls(anns, FIGURE_JOINTS, size=64, bs=16, path=path, num_workers=0, flip_pairs=FIGURE_FLIP_PAIRS,
                         skeleton=FIGURE_SKELETON)
    torso = 'left_shoulder','right_hip'
    metrics = [PointError(), PCK(.2, torso)]
    learn = keypoint_learner(dls, 'resnet18', pretrained=False, loss_func='l1', metrics=metrics)
    with learn.no_bar():
        scores = train(learn, epochs, 4e-3)
        keep(learn, 'keypoint', dls.valid.items[:12], skeleton=dls.skeleton)
    return {'pixels off, of 64': scores['error_px'], 'PCK at .2 of the torso': scores[metrics[1].name]}

def demo_localization(path:Path, n:int, epochs:int) -> dict:
    "What is the one shape of an image, and where?"
    anns  = only_boxes(draw_shapes(path/'single', n=n, size=64, most=1))
    dls   = localization_dls(anns, size=64, bs=32, path=path, num_workers=0)
    learn = localization_learner(dls, 'resnet18', pretrained=False)
    with learn.no_bar():
        scores = train(learn, epochs, 4e-3)
        keep(learn, 'localization', dls.valid.items[:12])
    return {'accuracy': scores['accuracy'], 'mean IoU': scores['mean_iou'],
            'class and IoU >= .5': scores['accuracy@.5']}

def demo_segmentation(path:Path, n:int, epochs:int) -> dict:
    "Which pixels are of which shape?"
    anns  = [Annotation(a.path, a.size, mask=a.mask) for a in draw_shapes(path/'shapes', n=n, size=64)]
    dls   = segmentation_dls(anns, SHAPE_CODES, size=64, bs=16, path=path, num_workers=0)
    learn = segmentation_learner(dls, 'dynamic_unet', encoder='test_resnet', pretrained=False)
    with learn.no_bar():
        scores = train(learn, epochs//2, 1e-2)
        keep(learn, 'segmentation', dls.valid.items[:12], vocab=dls.vocab)
    return {'mean IoU': scores['miou'], 'pixel accuracy': scores['pixel_accuracy'], 'Dice': scores['dice']}

def demo_detection(path:Path, n:int, epochs:int) -> dict:
    "Which shapes are there, and where is each?"
    anns  = only_boxes(draw_shapes(path/'shapes', n=n, size=64))
    dls   = detection_dls(anns, SHAPES, size=64, bs=8, path=path, num_workers=0)
    learn = detection_learner(dls, 'ssdlite', encoder='test_resnet', pretrained=False)
    with learn.no_bar():
        scores = train(learn, epochs//2, 1e-2)
        learn.tune_threshold(per_class=True)
        keep(learn, 'detection', dls.valid.items[:12])
    return {'AP': scores['map'], 'AP50': scores['map50'], 'AP75': scores['map75']}

def demo_instance(path:Path, n:int, epochs:int) -> dict:
    "Which shapes are there, and which pixels are each one's?"
    anns  = without_points(draw_shapes(path/'shapes', n=n, size=64))
    dls   = instance_dls(anns, SHAPES, size=64, bs=8, path=path, num_workers=0)
    learn = instance_learner(dls, 'mask_rcnn', encoder='test_resnet', pretrained=False, arch_kwargs=DEMO_RCNN)
    with learn.no_bar():
        scores = train(learn, epochs//2, 4e-3)
        learn.tune_threshold(per_class=True)
        keep(learn, 'instance', dls.valid.items[:12])
    return {'box AP': scores['map'], 'mask AP': scores['map_segm'], 'mask AP50': scores['map50_segm']}

# a narrow network, and few regions: torchvision's numbers are for images of 800 pixels
DEMO_RCNN = dict(width=.125, rpn_pre_nms_top_n_train=200, rpn_post_nms_top_n_train=30, rpn_pre_nms_top_n_test=100,
                 rpn_post_nms_top_n_test=20, box_batch_size_per_image=16)

def without_points(annotations):
    "`annotations` with boxes and instance masks alone"
    return [replace(a, points=None, visible=None, mask=None) for a in annotations]

def only_boxes(annotations):
    "`annotations` without points and masks, which the contact sheet would draw"
    return [replace(a, masks=None) for a in without_points(annotations)]

def train(learn, epochs, lr) -> dict:
    "Train with a line an epoch; the scores"
    learn.logger = print_epoch
    print_epoch(['epoch', 'train loss', 'valid loss', *(m.name.split(':')[0] for m in learn.metrics), 'time'])
    learn.fit_one_cycle(epochs, lr)
    return learn.evaluate()

def keep(learn, name, truth, **kwargs):
    "The contact sheet and the exported learner"
    title = f"{name.capitalize()}: ground truth and prediction"
    contact_sheet(truth, learn.annotate(truth), learn.path/f'{name}.png', title=title, **kwargs)
    learn.logger = print     # a logger of ours would have to be importable where the model is loaded
    learn.export(f'{name}.pkl')

def print_epoch(row):
    "A line an epoch, in place of fastai's table, which wants a terminal or a notebook"
    def cell(o): return f'{o:>14}' if isinstance(o, str) else f'{o:>14.3f}' if isinstance(o, float) else f'{o:>5}'
    print(' '.join(map(cell, row)), flush=True)

DEMOS = dict(classification=demo_classification, multilabel=demo_multilabel, keypoint=demo_keypoint,
             localization=demo_localization, segmentation=demo_segmentation, detection=demo_detection,
             instance=demo_instance)

def main(args=None):
    "Run the demos that the command line names, all by default"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('demo'), help="folder for images and models")
    parser.add_argument('--n', type=int, default=400, help="drawn images")
    parser.add_argument('--epochs', type=int, default=12)
    parser.add_argument('tasks', nargs='*', default=list(DEMOS), help=f"of {list(DEMOS)}")
    args = parser.parse_args(args)
    unknown = set(args.tasks) - set(DEMOS)
    if unknown: parser.error(f"no demo is called {sorted(unknown)}; there are {list(DEMOS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.tasks:
        set_seed(42)
        where = 'the GPU' if torch.cuda.is_available() else 'the CPU'
        print(f"{name}: {args.n} drawn images, {args.epochs} epochs on {where}", flush=True)
        start = time.time()
        scores = DEMOS[name](args.out, args.n, args.epochs)
        rows.append((name, time.time()-start, ', '.join(f'{k} {v:.3f}' for k,v in scores.items())))
    print(f"\n{'task':14}{'seconds':>8}   on the images held out")
    for name,seconds,scores in rows: print(f'{name:14}{seconds:8.0f}   {scores}')
    sheets,models = (', '.join(str(args.out/f'{name}.{end}') for name in args.tasks) for end in ('png', 'pkl'))
    print(f"\nGround truth beside prediction: {sheets}. Exported: {models}")

if __name__ == '__main__': main()
