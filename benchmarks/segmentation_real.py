"""Semantic segmentation of CamVid, coco128 or drawn shapes: any list of our archs, one budget; beside fastai's
`unet_learner` on the same encoder"""
import argparse, inspect, sys, tempfile, time
from dataclasses import replace
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, torch
import torch.nn.functional as F
from fastai.vision.all import (Callback, CancelValidException, CrossEntropyLossFlat, DataBlock, ImageBlock, MaskBlock,
                               Normalize, PILMask, Resize, aug_transforms, imagenet_stats, set_seed, trainable_params,
                               unet_learner)
from torch import nn
from torchvision.transforms.v2.functional import pil_to_tensor
from keypoint_real import spread
from loading import CAMVID, LIGHT, camvid
from machine import WEIGHTS, begin
from multilabel_real import folder, stock_net
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.formats.mask_values import read_codes
from vision_tasks.data.formats.masks import read_masks
from vision_tasks.data.synthetic import SHAPE_CODES, draw_shapes
from vision_tasks.data.targets import class_mask, path_of
from vision_tasks.data.splits import AnnotationSplitter
from vision_tasks.data.image import open_image
from vision_tasks.data.transforms import JointTransform
from vision_tasks.data.views import FitView
from vision_tasks.metrics.segmentation import confusion_counts, confusion_scores
from vision_tasks.models.registry import get_arch, list_archs
from vision_tasks.ops.crf import dense_crf
from vision_tasks.segmentation import segmentation_dls, segmentation_learner

ENCODER,STOCK,CRF = 'mobilenet_v2',"fastai's unet_learner",'mIoU after the CRF'
SCORES = {'mIoU': 'miou', 'pixel accuracy': 'pixel_accuracy'}
# mean IoU of CamVid's test set as reported in the papers, of full nets at full size with long recipes; dilation: with
# the context module for street scenes
PAPERS = {'segnet': .601, 'deeplab_v1': .616, 'dilatednet': .653, 'fc_densenet103': .669}

# --- the systems: annotations -> learner. All flip and change lighting, on the whole image, with fastai's transforms

def ours(arch, anns, vocab, size, bs, weights, device, crops=False, width=None, loss=None):
    same = {} if crops else dict(item_tfms=JointTransform(size, FitView('squish'), flip=0.),
                                 batch_tfms=aug_transforms(**LIGHT))
    dls = segmentation_dls(anns, vocab, bs=bs, size=size, num_workers=0, device=device, **same)
    takes  = inspect.signature(get_arch(arch, 'segmentation')).parameters
    on_any = 'encoder' in takes
    # without weights at hand nothing is to be frozen or spared: all is one group
    how = dict(encoder=ENCODER, pretrained=weights) if on_any else dict(pretrained=False, splitter=trainable_params)
    kw = {**(dict(padding='same') if arch == 'unet' else {}), **(dict(context='basic') if arch == 'dilatednet' else {}),
          **(dict(width=width) if width and not on_any and 'width' in takes else {})}
    if kw: how.update(arch_kwargs=kw)
    return segmentation_learner(dls, arch, metrics=[], loss_func=loss, **how)

def mask_of(a, c=len(CAMVID)): return PILMask.create(class_mask(a, c))   # 255 = void

def stock_body(weights, pretrained):
    "The encoder flat, as `DynamicUnet` wants it, before a pooling where `create_body` cuts"
    return nn.Sequential(*stock_net(weights, pretrained)[0], nn.AdaptiveAvgPool2d(1))

def stock(anns, vocab, size, bs, weights, device):
    block = DataBlock((ImageBlock, MaskBlock(vocab)), get_x=path_of, get_y=partial(mask_of, c=len(vocab)),
                      splitter=AnnotationSplitter(),
                      item_tfms=Resize(size[::-1], method='squish'),
                      batch_tfms=[*aug_transforms(**LIGHT), Normalize.from_stats(*imagenet_stats)])
    dls = block.dataloaders(anns, bs=bs, num_workers=0, device=device)
    return unet_learner(dls, partial(stock_body, weights), metrics=[],
                        n_out=len(vocab), loss_func=CrossEntropyLossFlat(axis=1, ignore_index=255))

# --- one scorer for all

class NoValid(Callback):
    "What is scored once at the end needs no score after each epoch"
    def before_validate(self): raise CancelValidException

def score(labels, anns, c):
    "The `SCORES` of (h, w) class indices of each file's pixels, void left out"
    cm = sum(confusion_counts(p, class_mask(a, c), c) for p,a in zip(labels, anns, strict=True))
    scores = confusion_scores(cm)
    return {o: scores[k] for o,k in SCORES.items()}

def clock(device):
    "Seconds: of this process, or on a GPU, once it is done, of the wall"
    if torch.device(device).type == 'cpu': return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()

def predictions(learn, anns, crf):
    """Class indices in pixels of the files, from logits scaled up; with `crf` also those after `dense_crf`; and the
    seconds of the net alone"""
    out,after,secs = [],[],0.
    learn.model.eval()
    with torch.no_grad():
        for x,_ in learn.dls.valid:
            t = clock(x.device)
            logits = learn.model(x).as_subclass(torch.Tensor)
            secs += clock(x.device)-t
            if logits.shape[-2:] != x.shape[-2:]: sys.exit(f"logits of {logits.shape[-2:]} for {x.shape[-2:]} pixels")
            for o in logits:
                full = F.interpolate(o[None], anns[len(out)].size[::-1], mode='bilinear', align_corners=False)
                if crf: after.append(dense_crf(full[0].softmax(0), pil_to_tensor(open_image(anns[len(out)].path)))
                                     .argmax(0).cpu())
                out.append(full[0].argmax(0).cpu())
    return out,after,secs

def most_frequent(anns, valid, c):
    "The most frequent class of each pixel in the training images, where all have one size; else of all their pixels"
    if len({a.size for a in [*anns, *valid]}) > 1:
        best = sum(np.bincount(class_mask(a, c).flatten(), minlength=256)[:c] for a in anns).argmax()
        return [torch.full(a.size[::-1], int(best)) for a in valid]
    counts = sum(np.stack([class_mask(a, c) == i for i in range(c)]).astype(int) for a in anns)
    return [torch.from_numpy(counts.argmax(0))]*len(valid)

# --- data: folder of the data sets, scratch folder -> annotations of training and of validation, class names

def street(data, tmp): return camvid(data, 'train', 'train'), camvid(data, 'val', 'valid'), CAMVID

def coco128(data, tmp):
    "Things and stuff of the images that have masks; `unlabeled` is void"
    path  = (data/'coco128').resolve()
    codes = {k: v for k,v in read_codes(path/'masks.yaml').items() if k}
    def read(split):
        masks = sorted((path/f'masks/{split}2017').glob('*.png'))
        return read_masks([path/f'images/{split}2017/{o.stem}.jpg' for o in masks], masks, codes, void=0)
    return read('train'), read('val'), list(codes.values())

def drawn(data, tmp):
    anns = draw_shapes(tmp, 240, 128)
    return anns[:160], anns[160:], list(SHAPE_CODES)

DATA = dict(camvid=street, coco128=coco128, drawn=drawn)

def rates(learn, args):
    "Ours: those of `learn.recipe`, unless `args` say otherwise; fastai's: its own, and a ratio better than its 100"
    kw = dict(base_lr=args.lr, lr_mult=args.lr_mult or (None if hasattr(learn, 'recipe') else 2.))
    return {k: v for k,v in kw.items() if v is not None}

def run(anns, vocab, args, weights):
    "One row a system and seed"
    systems = {o: partial(ours, o, crops=args.crops, width=args.width, loss=args.loss) for o in args.archs}
    if not args.no_fastai: systems = {STOCK: stock, **systems}
    valid,rows = [a for a in anns if a.split == 'valid'],[]
    for seed in args.seeds:
        for o in list(systems)[::1 if seed%2 == 0 else -1]:     # none is always the first
            set_seed(seed)
            learn = systems[o](anns, vocab, tuple(args.size), args.bs, weights, args.device)
            learn.add_cb(NoValid())
            t,c = time.perf_counter(),clock(args.device)
            with learn.no_bar(), learn.no_logging():
                learn.fine_tune(args.epochs, freeze_epochs=args.frozen, **rates(learn, args))
            wall,secs = time.perf_counter()-t,clock(args.device)-c
            labels,after,net = predictions(learn, valid, args.crf)
            n = len(learn.dls.train)*args.bs*(args.frozen+args.epochs)
            rows.append(dict(system=o, seed=seed, **score(labels, valid, len(vocab)), parameters=sum(map(torch.numel,
                             learn.model.parameters())), process=secs, wall=wall, train=n/secs, net=len(valid)/net,
                             **({CRF: score(after, valid, len(vocab))['mIoU']} if args.crf else {})))
            print(*(f'{v:.4f}' if isinstance(v, float) else v for v in rows[-1].values()), sep=' | ', flush=True)
    return pd.DataFrame(rows)

def table(df, base):
    "A line a system: mean ± standard deviation over the seeds; differences are taken seed by seed"
    extra = [CRF] if CRF in df else []
    cols  = [*SCORES, *extra, "mIoU minus fastai's", 'parameters', 'seconds', 'images/s, training',
             'images/s, net alone', "paper's mIoU (test)"]
    print(f"| system | {' | '.join(cols)} |\n|---|" + '---:|'*len(cols))
    print('| most frequent class of each pixel |', *(f'{v:.3f} |' for v in base.values()), '| '*(len(cols)-len(SCORES)))
    miou = df.set_index(['system', 'seed'])['mIoU']
    for o,d in df.groupby('system', sort=False):
        less = spread(miou[o]-miou[STOCK], 3, '+') if o != STOCK and STOCK in miou else ''
        print(f'| {o} |', *(f'{spread(d[c], 3)} |' for c in [*SCORES, *extra]),
              f'{less} | {d.parameters.iloc[0]/1e6:.2f} M | {d.process.mean():.0f} |',
              f'{d.train.mean():.2f} | {d.net.mean():.1f} | {PAPERS.get(o, "")} |')

def measure(args, data, weights, tmp):
    train,valid,vocab = DATA[args.data](data, tmp)
    train,valid = ([replace(a, split=o) for a in anns] for o,anns in (('train', train), ('valid', valid)))
    if args.limit: train = [train[i] for i in np.linspace(0, len(train)-1, min(args.limit, len(train))).astype(int)]
    df = run(train+valid, vocab, args, weights)
    print(f"\n**{args.data}**: {len(train)} + {len(valid)} images, {len(vocab)} classes; {ENCODER}, "
          f"{args.size[0]}x{args.size[1]}, bs {args.bs}, {args.frozen} frozen + {args.epochs} epochs, "
          f"rate {args.lr or 'of the recipe'}, lr_mult {args.lr_mult or 'of the recipe'}, loss {args.loss}, "
          f'seeds {args.seeds}; mean ± sd\n')
    table(df, score(most_frequent(train, valid, len(vocab)), valid, len(vocab)))

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--data', choices=list(DATA), default='camvid')
    ap.add_argument('--archs', nargs='+', choices=list_archs('segmentation'), default=['light_unet', 'lraspp'])
    ap.add_argument('--no-fastai', action='store_true', help="without fastai's net")
    ap.add_argument('--crops', action='store_true', help="our own augmentation for our nets, in place of fastai's")
    ap.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    ap.add_argument('--size', nargs=2, type=int, default=(240, 180), help='width and height of the input in pixels')
    ap.add_argument('--bs', type=int, default=8)
    ap.add_argument('--frozen', type=int, default=1, help='epochs with the encoder frozen')
    ap.add_argument('--epochs', type=int, default=3, help='epochs after these')
    ap.add_argument('--lr', type=float, help="base rate of `fine_tune`; by default that of `learn.recipe`")
    # fastai's 100 leaves the encoder as good as still: half the mIoU of lraspp in a short run
    ap.add_argument('--lr-mult', type=float, help="ratio of rates, head to encoder; default: the recipe's; fastai's 2")
    ap.add_argument('--loss', default='ce', help='of our nets, by name')
    ap.add_argument('--width', type=float, help='of the nets that have one; they start from random weights')
    ap.add_argument('--crf', action='store_true', help='what `dense_crf`, as it comes, adds to the mean IoU')
    ap.add_argument('--limit', type=int, help='number of training images, evenly spread; all are evaluated')
    ap.add_argument('--device', default='cpu')
    args = begin(ap)
    data,weights = folder('VISION_TASKS_DATA'),folder('VISION_TASKS_WEIGHTS')/WEIGHTS['mobilenet_v2']
    with tempfile.TemporaryDirectory() as tmp: measure(args, data, weights, Path(tmp))

if __name__ == '__main__': main()
