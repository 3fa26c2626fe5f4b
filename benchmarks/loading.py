"""The whole training pipeline on one core, files to normalized batches: ours against fastai's stock parts, for labels
of an image, for points, for class masks, for boxes and for boxes with masks. With `--cache`, our own also with a
cache, which the first pass, not measured, fills"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import argparse, statistics, sys, tempfile, time, warnings
from pathlib import Path
import numpy as np, torch
from fastai.vision.all import (BBoxBlock, BBoxLblBlock, DataBlock, ImageBlock, MaskBlock, MultiCategoryBlock,
                               Normalize, PILMask, PointBlock, RandomResizedCrop, Resize, TensorMask, TensorPoint,
                               TransformBlock, aug_transforms, bb_pad, fastuple, get_image_files, imagenet_stats,
                               set_seed)
from PIL import Image
from machine import describe, interleaved
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.targets import label_set, path_of
from vision_tasks.data.image import image_size
from vision_tasks.data.formats.instance_masks import read_instance_masks
from vision_tasks.data.formats.masks import read_masks
from vision_tasks.data.formats.table import read_df
from vision_tasks.data.transforms import JointTransform
from vision_tasks.data.views import FitView
from vision_tasks.data.formats.voc import read_voc
from vision_tasks.data.formats.yolo import read_yolo
from vision_tasks.detection import detection_dls
from vision_tasks.instance import instance_dls
from vision_tasks.keypoint import keypoint_dls
from vision_tasks.training.build import normalize_once
from vision_tasks.multilabel import multilabel_dls
from vision_tasks.ops.masks import decode_mask
from vision_tasks.segmentation import segmentation_dls

SIZE,BS,VOCAB = 224,16,['a', 'b']
TARGETS = ['labels', 'points', 'masks', 'boxes', 'instances']
LIGHT = dict(max_rotate=0., max_zoom=1., max_warp=0.)   # leaves flip, brightness and contrast

def all_train(anns): return list(range(len(anns))),[0]  # fastai wants both sides

CACHES = []   # of the command line

def ours(task_dls, anns, *args, size=SIZE, **kw):
    dls = task_dls(anns, *args, bs=BS, size=size, splitter=all_train, num_workers=0, device='cpu', **kw)
    normalize_once(dls.loaders, *imagenet_stats)        # as the task's learner does
    return dls.train

def cached_too(task_dls, anns, *args, **kw):
    "Our default pipeline, and with each cache of the command line; every cache has a folder of its own"
    where = {o: 'ram' if o == 'ram' else tempfile.mkdtemp(dir=FOLDERS.name) for o in CACHES}
    return {'ours': ours(task_dls, anns, *args, **kw),
            **{f'ours, cache: {o}': ours(task_dls, anns, *args, cache=w, **kw) for o,w in where.items()}}

FOLDERS = tempfile.TemporaryDirectory()

def stock(anns, block, get_y, item_tfms, tfms):
    blocks = block if isinstance(block, tuple) else (block,)
    block = DataBlock((ImageBlock, *blocks), get_x=path_of, get_y=get_y, splitter=all_train, item_tfms=item_tfms,
                      n_inp=1, batch_tfms=[*tfms, Normalize.from_stats(*imagenet_stats, cuda=False)])
    return block.dataloaders(anns, bs=BS, num_workers=0, device='cpu').train

def label_loaders(files):
    "Pipelines of images and synthetic labels"
    anns,light = [Annotation(f, image_size(f), [VOCAB[i%2]]) for i,f in enumerate(files)],dict(do_flip=False, **LIGHT)
    return {'fastai': stock(anns, MultiCategoryBlock(vocab=VOCAB), label_set, RandomResizedCrop(SIZE, min_scale=.35),
                            aug_transforms(**LIGHT)),
            "ours, with fastai's lighting": ours(multilabel_dls, anns, VOCAB, batch_tfms=aug_transforms(**light)),
            **cached_too(multilabel_dls, anns, VOCAB)}

def points_of(a): return TensorPoint.create(a.points)

def point_loaders(anns):
    "Pipelines of images and points"
    squish = Resize(SIZE, method='squish')
    plain  = JointTransform(SIZE, FitView('squish'), flip=0.)
    return {'fastai': stock(anns, PointBlock, points_of, squish, aug_transforms()),
            'fastai, no warp': stock(anns, PointBlock, points_of, squish, aug_transforms(max_warp=0.)),
            "ours, with fastai's augmentation": ours(keypoint_dls, anns, item_tfms=plain, batch_tfms=aug_transforms(),
                                                     flip_pairs=[]),   # fastai's flip exchanges no points either
            **cached_too(keypoint_dls, anns)}

def synthetic_points(files, k=5, seed=0):
    "`k` points in the middle of each image, so that they stay inside a rotated crop"
    rng = np.random.default_rng(seed)
    sizes = [image_size(f) for f in files]
    return [Annotation(f, s, points=s*rng.uniform(.25, .75, (k, 2))) for f,s in zip(files, sizes)]

CAMVID = 'sky building pole road pavement tree sign fence car pedestrian bicyclist'.split()   # the masks' 11 is void

def camvid(data, split, side):
    "The images and class masks of one folder of CamVid"
    return read_masks(data/f'camvid/{split}', data/f'camvid/{split}annot', CAMVID, void=11, split=side)

def mask_file(a): return a.mask.path   # fastai takes the file as it is, void as a class

def mask_loaders(anns, size):
    "Pipelines of images and class masks; `size`: (w, h)"
    block,squish = MaskBlock([*CAMVID, 'void']),Resize(size[::-1], method='squish')
    plain = JointTransform(size, FitView('squish'), flip=0.)
    mine  = lambda **kw: ours(segmentation_dls, anns, CAMVID, size=size, **kw)
    return {'fastai': stock(anns, block, mask_file, squish, aug_transforms()),
            'fastai, flip and lighting only': stock(anns, block, mask_file, squish, aug_transforms(**LIGHT)),
            "ours, with fastai's augmentation": mine(item_tfms=plain, batch_tfms=aug_transforms()),
            **cached_too(segmentation_dls, anns, CAMVID, size=size)}

def bboxes_of(a): return a.bboxes.tolist()
def names_of(a): return a.labels

def box_loaders(anns):
    "Pipelines of images, boxes and their labels; fastai drops those outside the image, and so do we"
    block,pad = (BBoxBlock, BBoxLblBlock),Resize(SIZE, method='pad', pad_mode='zeros')
    plain = JointTransform(SIZE, FitView('pad'), valid='pad', flip=0.)
    tfms  = lambda **kw: aug_transforms(pad_mode='zeros', **kw)
    mine  = lambda **kw: ours(detection_dls, anns, **kw)
    return {'fastai': stock(anns, block, [bboxes_of, names_of], pad, tfms()),
            'fastai, flip and lighting only': stock(anns, block, [bboxes_of, names_of], pad, tfms(**LIGHT)),
            "ours, with fastai's augmentation": mine(item_tfms=plain, batch_tfms=tfms()),
            **cached_too(detection_dls, anns)}

def pil_masks(a):
    "Every mask at the size of its image, as fastai's transforms of items know them; a tuple, which they go through"
    return fastuple(PILMask(Image.fromarray(decode_mask(m, a.size).astype(np.uint8))) for m in a.masks)

def id_masks(a):
    "The same from an image of ids, as in the data set"
    ids = np.array(Image.open(a.path.parents[1]/'masks'/f'{a.path.stem}_mask.png'))
    return fastuple(PILMask(Image.fromarray((ids == i).astype(np.uint8))) for i in np.unique(ids[ids > 0]))

def pad_masks(samples):
    "`bb_pad` for samples with masks, which then are (n, h, w)"
    n = max(len(o[3]) for o in samples)
    boxed = bb_pad([o[:3] for o in samples])
    assert all(len(o[3]) == len(o[2]) for o in samples)   # padded to size, no box is lost, and so no mask
    stacks = [torch.stack([*o[3], *[torch.zeros_like(o[3][0])]*(n - len(o[3]))]) for o in samples]
    return [(*b, TensorMask(m)) for b,m in zip(boxed, stacks)]

def instance_loaders(anns, masks_of=pil_masks):
    "Pipelines of images, boxes, their labels and masks"
    masks,pad = TransformBlock(dls_kwargs=dict(before_batch=pad_masks)),Resize(SIZE, method='pad', pad_mode='zeros')
    block,get = (BBoxBlock, BBoxLblBlock, masks),[bboxes_of, names_of, masks_of]
    plain = JointTransform(SIZE, FitView('pad'), valid='pad', flip=0.)
    tfms  = lambda **kw: aug_transforms(pad_mode='zeros', **kw)
    mine  = lambda **kw: ours(instance_dls, anns, **kw)
    return {'fastai': stock(anns, block, get, pad, tfms()),
            'fastai, flip and lighting only': stock(anns, block, get, pad, tfms(**LIGHT)),
            "ours, with fastai's augmentation": mine(item_tfms=plain, batch_tfms=tfms()),
            **cached_too(instance_dls, anns)}

class Pass:
    "One pass over a DataLoader; keeps the seconds of each, (wall, of this process)"
    def __init__(self, dl): self.dl,self.secs = dl,[]
    def __call__(self):
        t,c = time.perf_counter(),time.process_time()
        n = sum(len(b[0]) for b in self.dl)
        self.secs.append((time.perf_counter()-t, time.process_time()-c))
        self.n = n
    def rates(self, i): return [self.n/s[i] for s in self.secs]   # 0: wall, 1: process

def large_jpegs(dest, files, n=12, size=(4000, 3000), seed=0):
    "`n` of `files` upsampled to `size`, with sensor noise, so that the files are as large as photographs"
    rng = np.random.default_rng(seed)
    grain = rng.normal(0, 5.5, (size[1], size[0], 1)).astype(np.float32)
    for i,f in enumerate(files[:n]):
        im = np.asarray(Image.open(f).convert('RGB').resize(size, Image.BICUBIC), dtype=np.float32)
        im = Image.fromarray((im + np.roll(grain, rng.integers(0, 999, 2), (0, 1))).clip(0, 255).astype(np.uint8))
        im.save(dest/f'{i:02}.jpg', quality=88)
    return get_image_files(dest).sorted()

def compare(name, files, dls, rounds, size=(SIZE, SIZE)):
    set_seed(0)
    for o,dl in dls.items():
        if 'cache' in o: Pass(dl)()                                     # which fills it
    x    = {o: dl.one_batch()[0] for o,dl in dls.items()}               # also warms up
    assert all(o.shape == (BS, 3, *size[::-1]) and o.dtype == torch.float32 for o in x.values())
    fns  = {o: Pass(dl) for o,dl in dls.items()}
    interleaved(fns, rounds)
    base = fns['fastai']
    mb   = sum(f.stat().st_size for f in files)/len(files)/1e6
    print(f"\n**{name}**: {len(set(files))} files, {mb:.2f} MB on average, {base.n} images per pass; "
          f"median (min..max) of {rounds} passes, interleaved\n")
    print('| pipeline | images/s, process time | images/s, wall | to fastai, process | to fastai, wall |\n'
          '|---|---:|---:|---:|---:|')
    show = lambda r: f'{statistics.median(r):.1f} ({min(r):.1f}..{max(r):.1f})'
    for o,f in fns.items():
        ratio = [statistics.median(f.rates(i))/statistics.median(base.rates(i)) for i in (1, 0)]
        print(f'| {o} | {show(f.rates(1))} | {show(f.rates(0))} | {ratio[0]:.2f} | {ratio[1]:.2f} |', flush=True)

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--rounds', type=int, default=5)
    ap.add_argument('--cache', nargs='+', choices=['ram', 'folder'], default=[])
    ap.add_argument('--targets', nargs='+', choices=TARGETS, default=TARGETS)
    args = ap.parse_args()
    CACHES[:] = args.cache
    if not os.environ.get('VISION_TASKS_DATA'):
        sys.exit("VISION_TASKS_DATA is not set: it is the folder of data sets, with coco128, face_keypoints, camvid, "
                 "facemask and pennfudan in it")
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    print(describe(('torch', 'torchvision', 'fastai', 'pillow')),
          f"\n\n{SIZE} px unless stated otherwise, bs {BS}, one thread")
    data  = Path(os.environ['VISION_TASKS_DATA'])
    files = get_image_files(data/'coco128/images').sorted()
    if 'labels' in args.targets:
        print("\n# Labels: random resized crop (area .35..1), flip, lighting, normalize")
        compare('coco128', files, label_loaders(files), args.rounds)
        with tempfile.TemporaryDirectory() as d:
            large = large_jpegs(Path(d), files)*4
            compare('4000x3000 JPEGs', large, label_loaders(large), args.rounds)
    if 'points' in args.targets:
        print("\n# Points. fastai: squish, flip, rotate, zoom, warp, lighting; ours: crop, rotate, lighting; normalize")
        faces = data/'face_keypoints/training'
        anns  = read_df(f'{faces}_frames_keypoints.csv', faces, point_cols=list(range(1, 137)))
        compare('face_keypoints, PNG', [a.path for a in anns], point_loaders(anns), args.rounds)
        compare('coco128, 5 synthetic points', files, point_loaders(synthetic_points(files)), args.rounds)
    if 'masks' in args.targets:
        print("\n# Masks. fastai: squish, flip, rotation, zoom, warp, lighting; ours: crop, flip, lighting; normalize")
        anns = camvid(data, 'train', 'train')[::2]
        for size in ((240, 180), (SIZE, SIZE)):
            name = f'camvid at {size[0]}x{size[1]}'
            compare(name, [a.path for a in anns], mask_loaders(anns, size), args.rounds, size)
    if 'boxes' in args.targets:
        print("\n# Boxes. fastai: pad, flip, rotation, zoom, warp, lighting; ours: zoom, flip, lighting; normalize")
        anns = [a for a in read_yolo(data/'coco128', split='train', on_error='drop') if a.labels]
        compare('coco128', [a.path for a in anns], box_loaders(anns), args.rounds)
        anns = [a for a in read_voc(data/'facemask', images='images', annotations='annotations')[:256] if a.labels]
        compare('facemask, PNG', [a.path for a in anns], box_loaders(anns), args.rounds)
    if 'instances' in args.targets:
        print("\n# Boxes and masks. fastai: pad, flip, rotation, zoom, warp, lighting; ours: zoom, flip, lighting; "
              "normalize")
        anns = read_yolo(data/'coco128', split='train', labels='labels_seg', on_error='drop')
        anns = [a for a in anns if a.labels]
        compare('coco128', [a.path for a in anns], instance_loaders(anns), args.rounds)
        folk = data/'pennfudan'
        anns = read_instance_masks(folk/'images', folk/'masks', 'person', mask_of=lambda p: f'{p.stem}_mask.png')
        compare('pennfudan', [a.path for a in anns], instance_loaders(anns, id_masks), args.rounds)

if __name__ == '__main__': main()
