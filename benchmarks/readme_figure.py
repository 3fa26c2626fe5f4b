"""The figure of README: Mask R-CNN on mobilenet_v2, fine-tuned on 14 photographs of nuts and dried fruit (MIT licence),
predictions on photographs that were held out"""
import argparse
from dataclasses import replace
from pathlib import Path
from fastai.vision.all import set_seed
from machine import WEIGHTS, begin
from multilabel_real import folder
from vision_tasks.all import JitterView, JointTransform, contact_sheet, instance_dls, instance_learner, read_coco

HELD_OUT = ('3.jpg', '9.jpg', '12.jpg', '16.jpg')

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--size', type=int, default=320)
    ap.add_argument('--epochs', type=int, default=40)
    ap.add_argument('--lr', type=float, default=2e-3)
    ap.add_argument('--bs', type=int, default=2)
    ap.add_argument('--show', nargs='+', default=HELD_OUT[:2], help="held-out files in the figure")
    ap.add_argument('--thresh', type=float, default=.6)
    ap.add_argument('--out', type=Path, default=Path('docs/images/nuts.jpg'))
    ap.add_argument('--export', type=Path, help="keep the learner in this file")
    args = begin(ap)
    set_seed(42, reproducible=True)
    nuts = folder('VISION_TASKS_DATA')/'nuts'
    anns = [replace(a, split='valid' if a.path.name in HELD_OUT else 'train')
            for a in read_coco(nuts/'trainval.json', nuts/'images')]
    tfms = JointTransform(args.size, train=JitterView((.6, 1.4), 'pad'), valid='pad')
    dls  = instance_dls(anns, size=args.size, bs=args.bs, num_workers=0, device='cpu', item_tfms=tfms)
    # half the width and few regions, so that it trains in minutes on one core
    small = dict(width=.5, rpn_post_nms_top_n_train=200, rpn_post_nms_top_n_test=100, box_batch_size_per_image=64)
    learn = instance_learner(dls, 'mask_rcnn', encoder='mobilenet_v2', metrics=[], arch_kwargs=small,
                             pretrained=folder('VISION_TASKS_WEIGHTS')/WEIGHTS['mobilenet_v2'])
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(args.epochs, args.lr)
    with learn.no_bar(): print({k: round(v, 3) for k,v in learn.evaluate().items()}, flush=True)
    shown = [next(a for a in anns if a.path.name == o) for o in args.show]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with learn.no_bar(): preds = learn.annotate([a.path for a in shown], thresh=args.thresh)
    contact_sheet(preds, fname=args.out, ncols=len(shown), vocab=dls.vocab[1:])
    if args.export: learn.export(args.export.resolve())

if __name__ == '__main__': main()
