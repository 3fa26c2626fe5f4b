"""`keypoint_learner` beside fastai's `PointBlock` and `vision_learner`, on real faces, drawn figures and the extreme
points of pedestrians: same weights, rates, epochs"""
import argparse, sys, tempfile, time
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
import numpy as np, pandas as pd
from fastai.vision.all import (DataBlock, ImageBlock, Normalize, PointBlock, Resize, TensorPoint, aug_transforms,
                               imagenet_stats, set_seed, vision_learner)
from machine import WEIGHTS, begin
from multilabel_real import folder, probs_of, stock_net
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.crops import crop_instances
from vision_tasks.data.formats.instance_masks import read_instance_masks
from vision_tasks.data.synthetic import draw_figures
from vision_tasks.data.targets import path_of
from vision_tasks.data.splits import AnnotationSplitter
from vision_tasks.data.formats.table import read_df
from vision_tasks.data.transforms import JointTransform
from vision_tasks.data.views import FitView
from vision_tasks.keypoint import keypoint_dls, keypoint_learner
from vision_tasks.ops.masks import decode_mask

SCORES = ('error px', 'NME', 'PCK@.05')
# the 68 points of iBUG's 300-W: jaw, brows, nostrils, eyes, outer and inner lips; left and right of the image
MIRROR = [*((i, 16-i) for i in range(8)), *((17+i, 26-i) for i in range(5)), (31, 35), (32, 34),
          (36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46),
          *((48+i, 54-i) for i in range(3)), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67)]

# --- data

def faces(data):
    "320 images to train on and 100 to evaluate, in their own folders"
    read = lambda o, split: [replace(a, split=split) for a in read_df(
        data/f'face_keypoints/{o}_frames_keypoints.csv', data/f'face_keypoints/{o}', point_cols=list(range(1, 137)))]
    return read('training', 'train') + read('test', 'valid')

def figures(data):
    "Drawn figures with 13 joints, their hidden joints too"
    anns = draw_figures(tempfile.mkdtemp(), 240, 96)
    return [replace(a, split='valid' if i % 3 == 0 else 'train') for i,a in enumerate(anns)]

def persons(data):
    "80 + 80 pedestrians of Penn-Fudan, cropped, each with the `outermost` points of its mask"
    anns = read_instance_masks(data/'pennfudan/images', data/'pennfudan/masks', 'person',
                               mask_of=lambda p: f'{p.stem}_mask.png')
    anns = [replace(a, points=np.stack([outermost(decode_mask(m, a.size)) for m in a.masks])) for a in anns]
    crops = [crop_instances(o, tempfile.mkdtemp()) for o in (anns[::2], anns[1::2])]
    return [replace(a, split=s) for s,some in zip(('train', 'valid'), crops) for a in some[:80]]

def outermost(mask):
    "(4, 2) pixels: the middle of the leftmost, rightmost, topmost and lowest pixels of a mask"
    y,x = np.nonzero(mask)
    return np.array([(x[on].mean()+.5, y[on].mean()+.5)
                     for on in (x == x.min(), x == x.max(), y == y.min(), y == y.max())])

def person(a): return a.path.stem.rsplit('_', 1)[0]

def hold_out(anns, share=.2, seed=0):
    "Training images only, with some people as the validation set: to tune the rate without the test images"
    anns  = [a for a in anns if a.split == 'train']
    names = sorted({person(a) for a in anns})
    held  = set(np.random.default_rng(seed).permutation(names)[:int(share*len(names))])
    return [replace(a, split='valid' if person(a) in held else 'train') for a in anns]

def delete_points(anns, share, seed):
    "Delete a random `share` of all points of the training images"
    rng = np.random.default_rng(seed)
    def some(a): return replace(a, points=np.where(rng.random((len(a.points), 1)) < share, np.nan, a.points))
    return [some(a) if a.split == 'train' else a for a in anns]

# --- the systems: annotations -> learner

def light_and_warp(): return aug_transforms(do_flip=False)   # a mirrored left eye is no left eye

def points_of(a): return TensorPoint.create(a.points)

def stock(anns, size, bs, weights):
    block = DataBlock((ImageBlock, PointBlock), get_x=path_of, get_y=points_of, splitter=AnnotationSplitter(),
                      item_tfms=Resize(size, method='squish'),
                      batch_tfms=[*light_and_warp(), Normalize.from_stats(*imagenet_stats)])
    return vision_learner(block.dataloaders(anns, bs=bs, num_workers=0), partial(stock_net, weights), y_range=(-1, 1),
                          metrics=[])

def ours(anns, size, bs, weights, head='heatmap', **kw):
    dls = keypoint_dls(anns, bs=bs, size=size, num_workers=0, **kw)
    return keypoint_learner(dls, 'mobilenet_v2', pretrained=weights, metrics=[], arch_kwargs=dict(head=head))

def stock_augmentation(anns, size, *args, **kw):
    return ours(anns, size, *args, item_tfms=JointTransform(size, FitView('squish'), flip=0.),
                batch_tfms=light_and_warp(), **kw)

DATA = dict(faces=faces, figures=figures, persons=persons)

SYSTEMS = {'fastai': stock, "ours, fastai's head and augmentation": partial(stock_augmentation, head='pool'),
           "ours, fastai's augmentation": stock_augmentation, 'ours, `GridHead`': partial(ours, head='grid'),
           'ours': ours, 'ours, mirrored too': partial(ours, flip_pairs=MIRROR)}
WITH_GAPS = ['ours']   # that are trained once more, with points deleted

# --- one scorer for all

def score(pred, anns):
    "The `SCORES` of (n, k, 2) in [-1, 1] of squished images, in pixels of the files"
    size,true = (np.array([getattr(a, o) for a in anns], float) for o in ('size', 'points'))
    true = true.reshape(len(anns), -1, 2)
    e   = np.linalg.norm((pred+1)/2*size[:,None] - true, axis=-1)
    box = np.sqrt((true.max(1)-true.min(1)).prod(1))[:,None]
    return dict(zip(SCORES, (e.mean(), (e/box).mean(), (e/box <= .05).mean())))

def mean_face(anns):
    "The mean of the training images' points as (k, 2) in [-1, 1]"
    return np.mean([a.points.reshape(-1, 2)/a.size*2-1 for a in anns if a.split == 'train'], 0)

def run(anns, args, weights):
    "One row a system, seed and share of deleted points"
    valid,rows = [a for a in anns if a.split == 'valid'],[]
    for seed in args.seeds:
        gaps = {0: anns, args.delete: delete_points(anns, args.delete, seed)} if args.delete else {0: anns}
        todo = [(o, share) for share in gaps for o in args.systems if o in WITH_GAPS or not share]
        for o,share in todo[::1 if seed%2 == 0 else -1]:     # none is always the first
            set_seed(seed)
            learn = SYSTEMS[o](gaps[share], args.size, args.bs, weights)
            t = time.process_time()
            with learn.no_bar(), learn.no_logging():
                learn.fine_tune(args.epochs, args.lr, freeze_epochs=args.frozen, lr_mult=args.lr_mult)
                t = time.process_time()-t
                pred = probs_of(learn).reshape(len(valid), -1, 2)
            rows.append(dict(system=o, deleted=share, seed=seed, **score(pred, valid), process=t))
            print(*(f'{v:.4f}' if isinstance(v, float) else v for v in rows[-1].values()), sep=' | ', flush=True)
    return pd.DataFrame(rows)

def stock_with_gaps(anns, args, weights):
    "The losses of fastai's first epoch where points are missing, and the scores after it"
    set_seed(args.seeds[0])
    anns  = delete_points(anns, args.delete, args.seeds[0])
    learn = stock(anns, args.size, args.bs, weights)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, args.lr)
        valid = [a for a in anns if a.split == 'valid']
        return learn.recorder.losses, score(probs_of(learn).reshape(len(valid), -1, 2), valid)

def spread(x, digits, sign=''):
    "Mean ± standard deviation, as text"
    return f"{x.mean():{sign}.{digits}f} ± {x.std(ddof=1) if len(x) > 1 else 0.:.{digits}f}"

def table(df, base):
    "A line a system: mean ± standard deviation over the seeds; differences and ratios are taken seed by seed"
    cols,digits = [*SCORES, "NME less fastai's", 'NME to full data', 'process seconds'],(2, 4, 3)
    print(f"| system | points deleted | {' | '.join(cols)} |\n|---|---:|" + '---:|'*len(cols))
    print('| mean face of the training images | |', *(f'{v:.{k}f} |' for v,k in zip(base.values(), digits)), '| | |')
    nme = df.set_index(['system', 'deleted', 'seed'])['NME']
    for (o,share),d in df.groupby(['system', 'deleted'], sort=False):
        less = o != 'fastai' and not share and ('fastai', 0) in nme
        print(f'| {o} | {share:.0%} |', *(f'{spread(d[c], k)} |' for c,k in zip(SCORES, digits)),
              f"{spread(nme[o, 0]-nme['fastai', 0], 4, '+') if less else ''} |",
              f"{'x ' + spread(nme[o, share]/nme[o, 0], 3) if share else ''} | {d.process.mean():.0f} |")

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--data', choices=DATA, default='faces')
    ap.add_argument('--systems', nargs='+', choices=SYSTEMS, default=list(SYSTEMS))
    ap.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    ap.add_argument('--size', type=int, default=96, help='pixels of the input')
    ap.add_argument('--bs', type=int, default=16)
    ap.add_argument('--frozen', type=int, default=1, help='epochs with the encoder frozen')
    ap.add_argument('--epochs', type=int, default=13, help='epochs after these')
    ap.add_argument('--lr', type=float, default=5e-3, help='base rate of `fine_tune`')
    # fastai's 100 leaves the encoder as good as still, and its features say little of places
    ap.add_argument('--lr-mult', type=float, default=2, help="`fine_tune`'s ratio of the head's rate to the encoder's")
    ap.add_argument('--delete', type=float, default=.2, help='share of the points to delete; 0: skip that part')
    ap.add_argument('--tune', action='store_true', help='evaluate on people held out of the training images')
    ap.add_argument('--limit', type=int, help='number of images of each side of the split, for a trial')
    args = begin(ap)
    data,weights = folder('VISION_TASKS_DATA'),folder('VISION_TASKS_WEIGHTS')/WEIGHTS['mobilenet_v2']
    anns = hold_out(faces(data)) if args.tune else DATA[args.data](data)
    sides = [[a for a in anns if a.split == s][:args.limit] for s in ('train', 'valid')]
    anns = list(chain(*sides))
    df = run(anns, args, weights)
    print(f"\n**{args.data}**: {len(sides[0])} + {len(sides[1])} images, {anns[0].points.shape[-2]} points; "
          f"mobilenet_v2, {args.size} px, "
          f"bs {args.bs}, {args.frozen} frozen + {args.epochs} epochs, rate {args.lr:g}, "
          f"lr_mult {args.lr_mult:g}, seeds {args.seeds}; mean ± sd\n")
    table(df, score(np.repeat(mean_face(anns)[None], len(sides[1]), 0), sides[1]))
    if args.delete:
        losses,after = stock_with_gaps(anns, args, weights)
        n_nan = sum(o.isnan().item() for o in losses)
        print(f"\nfastai, one epoch with {args.delete:.0%} of the points deleted: {n_nan} of {len(losses)} losses are "
              f"nan, the first {losses[0].item():.3f}; NME afterwards {after['NME']:.4f}")

if __name__ == '__main__': main()
