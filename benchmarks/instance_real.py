"""Instance segmentation of pedestrians and of COCO's objects: `instance_learner` beside a plain loop with the recipe of
torchvision's tutorial (flip, SGD with momentum, a warm-up), the same net, encoder weights, pictures, epochs, batch
size; COCO's AP of boxes and of masks in pixels of the files by one scorer for both"""
import argparse, random, sys, tempfile, time, warnings
from dataclasses import dataclass, replace
from pathlib import Path
import numpy as np, pandas as pd, torch
from fastai.vision.all import set_seed
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors as tv
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor
from detection_real import pairs
from keypoint_real import spread
from machine import describe
from multilabel_real import WEIGHTS, folder
from segmentation_real import NoValid, clock
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.annotation import Annotation, vocab_of
from vision_tasks.data.blocks import clip_objects
from vision_tasks.data.image import read_image
from vision_tasks.data.masks import read_codes, read_instance_masks
from vision_tasks.data.yolo import read_yolo
from vision_tasks.detection import fit_anchors
from vision_tasks.detection_metrics import coco_ap
from vision_tasks.instance import instance_dls, instance_learner
from vision_tasks.models.registry import get_arch
from vision_tasks.ops.masks import decode_mask, encode_rle

STOCK = "torchvision's recipe"

# --- data: name -> annotations with their splits, and the budget

def pennfudan(data):
    "50 of the 170 pictures are held out, as many as in torchvision's tutorial, drawn from the sorted names"
    anns = read_instance_masks(data/'pennfudan/images', data/'pennfudan/masks', 'person',
                               mask_of=lambda p: f'{p.stem}_mask.png')
    held = set(random.Random(1234).sample(range(len(anns)), 50))
    return [replace(a, split='valid' if i in held else 'train') for i,a in enumerate(anns)]

def coco128(data):
    "The 100 + 100 pictures that have a file of polygons; their ids are COCO's own, up to 90, unlike data.yaml's"
    path  = (data/'coco128').resolve()
    names = ''.join(f"  {k}: {v}\n" for k,v in read_codes(path/'masks.yaml').items())
    with tempfile.TemporaryDirectory() as tmp:
        seg = Path(tmp)/'seg.yaml'
        seg.write_text(f"path: {path}\ntrain: images/train2017\nval: images/val2017\nnames:\n{names}")
        anns = read_yolo(seg, labels='labels_seg')
    return [a for a in anns if a.labels]     # a missing file counts as one without objects, which these pictures have

@dataclass
class DataSet:
    read:callable
    epochs:int

DATA = dict(pennfudan=DataSet(pennfudan, 10), coco128=DataSet(coco128, 10))

def only(a, names):
    "`a` with the objects of these names; the others are background then"
    k = np.isin(a.labels, names)
    return replace(a, labels=[o for o,i in zip(a.labels, k) if i], bboxes=a.bboxes[k],
                   masks=[o for o,i in zip(a.masks, k) if i])

def detector(args, weights, vocab, anns):
    "The same net for both; where it resizes, it is to the scale that ours come in: the longer side has `size` pixels"
    kw = dict(size=args.size) if args.arch == 'mask_rcnn' else {}
    if args.arch == 'mask_rcnn': kw.update(encoder=args.encoder, width=args.width)
    if args.fit_anchors: kw.update(anchors=fit_anchors([a for a in anns if a.split == 'train'], args.size))
    return get_arch(args.arch, 'instance')(len(vocab), pretrained=weights if args.arch == 'mask_rcnn' else 'encoder',
                                           resize=True, min_size=args.size, max_size=args.size, **kw)

# --- the two systems: train on `anns`, then answer for their valid ones; -> annotations, seconds of training

def ours(anns, vocab, args, weights):
    net = detector(args, weights, vocab, anns)
    net.net.transform.resizes = False
    dls = instance_dls(anns, vocab, bs=args.bs, size=args.size, num_workers=args.workers, device=args.device)
    learn = instance_learner(dls, net, metrics=[])
    t = clock(args.device)
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(NoValid()):
        if args.freeze: learn.fine_tune(args.epochs-args.freeze, args.lr, freeze_epochs=args.freeze)
        else:
            learn.unfreeze()
            learn.fit_one_cycle(args.epochs, slice(args.lr/learn.lr_mult, args.lr))
    secs = clock(args.device)-t
    with learn.no_bar(): return learn.annotate([a for a in anns if a.split == 'valid'], thresh=0.),secs
