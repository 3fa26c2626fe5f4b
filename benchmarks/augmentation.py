"""Mosaic and copy-paste: `fine_tune` with and without, the same net, images, epochs and seeds; and the time of loading
one training image"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1') # before numpy is there
import argparse, sys, tempfile, time
from pathlib import Path
import pandas as pd
from fastai.vision.all import set_seed
from detection_real import table
from machine import WEIGHTS, begin
from multilabel_real import folder
from recipes import masks_boxes, nuts, persons
from segmentation_real import NoValid
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.transforms import JointTransform
from vision_tasks.data.views import JitterView
from vision_tasks.detection import detection_dls, detection_learner
from vision_tasks.instance import instance_dls, instance_learner

READ = dict(facemask=masks_boxes, nuts=nuts, pennfudan=persons)
# what a two-stage net needs of small images
SMALL = dict(box_batch_size_per_image=64, rpn_post_nms_top_n_train=200, rpn_post_nms_top_n_test=100)
ARCHS = dict(ssdlite=({}, 5e-3), faster_rcnn=(SMALL, 1e-3), mask_rcnn=(dict(SMALL, width=.25), 1e-3))

def variants(args):
    "Name -> arguments of `JointTransform`"
    res = {}
    for o in args.variants:
        kind,*numbers = o.split(':')
        n = [float(i) for i in numbers]
        if kind == 'default': kw = {}
        elif kind == 'mosaic': kw = dict(mosaic=n[0], mosaic_scale=tuple(n[1:3]) or (.4, 1.), mosaic_until=args.until)
        elif kind == 'jitter': kw = dict(train=JitterView(tuple(n[:2]), 'pad'))
        else: kw = dict(copy_paste=n[0], **(dict(train=JitterView(tuple(n[1:3]), 'pad')) if n[1:] else {}))
        res[o] = dict(train=JitterView((.6, 1.4), 'pad')) | kw
    return res

def loaders(anns, args, kw):
    make = instance_dls if args.arch == 'mask_rcnn' else detection_dls
    return make(anns, bs=args.bs, size=args.size, num_workers=0,
                item_tfms=JointTransform(args.size, valid='pad', **kw))

def ms_per_item(dls):
    "Milliseconds of one core for a training image, in batches"
    items = min(len(dls.train.dataset), 96)
    for i in range(2):   # the files are in the system's cache after the first pass
        dls.train.before_iter()
        t = time.process_time()
        for j in range(items): dls.train.do_item(j)
    return (time.process_time() - t)/items*1e3

def one(anns, args, kw, weights, seed):
    set_seed(seed)
    dls = loaders(anns, args, kw)
    loading = ms_per_item(dls)
    own,lr = ARCHS[args.arch]
    learner = instance_learner if args.arch == 'mask_rcnn' else detection_learner
    set_seed(seed)
    learn = learner(dls, args.arch, encoder=args.encoder, pretrained=weights/WEIGHTS[args.encoder], arch_kwargs=own,
                    metrics=[])
    t = time.process_time()
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(args.epochs, args.lr or lr, cbs=[NoValid()])
    secs = time.process_time() - t
    with learn.no_bar(): s = learn.evaluate()
    names = dict(AP='map', AP50='map50') | (dict(maskAP='map_segm', maskAP50='map50_segm') if 'map_segm' in s else {})
    return {k: s[v] for k,v in names.items()} | {'ms per item': loading, 'seconds': secs}

def chosen(anns, args):
    train,valid = ([a for a in anns if a.split == o] for o in ('train', 'valid'))
    return train[:args.limit] + valid[:args.valid]

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--data', choices=READ, default='facemask')
    ap.add_argument('--arch', choices=ARCHS, default='ssdlite')
    ap.add_argument('--encoder', choices=WEIGHTS, default='mobilenet_v2')
    ap.add_argument('--variants', nargs='+', default=['default', 'mosaic:.5'],
                    help="default, jitter:LO:HI, mosaic:P[:LO:HI], copy_paste:P[:LO:HI]; LO and HI are scales")
    ap.add_argument('--until', type=float, default=.8, help='share of the epochs with mosaic')
    ap.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    ap.add_argument('--size', type=int, default=160)
    ap.add_argument('--bs', type=int, default=8)
    ap.add_argument('--epochs', type=int, default=6)
    ap.add_argument('--lr', type=float)
    ap.add_argument('--limit', type=int, default=160, help='training images')
    ap.add_argument('--valid', type=int, default=80, help='validation images')
    ap.add_argument('--loading', action='store_true', help='only the time of loading')
    args = begin(ap)
    data,weights = folder('VISION_TASKS_DATA'),folder('VISION_TASKS_WEIGHTS')
    with tempfile.TemporaryDirectory() as tmp: anns = chosen(READ[args.data](data, Path(tmp)), args)
    rows = []
    for seed in args.seeds:
        for name,kw in variants(args).items():
            set_seed(seed)
            row = {'ms per item': ms_per_item(loaders(anns, args, kw))} if args.loading else \
                  one(anns, args, kw, weights, seed)
            rows.append(dict(system=name, **row))
            print(seed, *(f'{v:.4f}' if isinstance(v, float) else v for v in rows[-1].values()), sep=' | ', flush=True)
    n = sum(a.split == 'train' for a in anns)
    print(f"\n**{args.data}**: {n} + {len(anns)-n} images; {args.arch} on {args.encoder}, {args.size} px, "
          f"bs {args.bs}, fine_tune({args.epochs}), seeds {args.seeds}; mean ± sd\n")
    table(pd.DataFrame(rows).rename(columns={} if 'seconds' in rows[0] else {'ms per item': 'seconds'}))

if __name__ == '__main__': main()
