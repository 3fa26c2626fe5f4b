"Semantic segmentation of CamVid: any list of our archs, one budget; beside fastai's `unet_learner` on the same encoder"
import argparse, inspect, sys, time
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
from machine import begin
from multilabel_real import WEIGHTS, folder, stock_net
sys.path.insert(0, str(Path(__file__).parents[1]))
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

def ours(arch, anns, size, bs, weights, device, crops=False, width=None):
    same = {} if crops else dict(item_tfms=JointTransform(size, FitView('squish'), flip=0.),
                                 batch_tfms=aug_transforms(**LIGHT))
    dls = segmentation_dls(anns, CAMVID, bs=bs, size=size, num_workers=0, device=device, **same)
    takes  = inspect.signature(get_arch(arch, 'segmentation')).parameters
    on_any = 'encoder' in takes
    # without weights at hand nothing is to be frozen or spared: all is one group
    how = dict(encoder=ENCODER, pretrained=weights) if on_any else dict(pretrained=False, splitter=trainable_params)
    kw = {**(dict(padding='same') if arch == 'unet' else {}), **(dict(context='basic') if arch == 'dilatednet' else {}),
          **(dict(width=width) if width and not on_any and 'width' in takes else {})}
    if kw: how.update(arch_kwargs=kw)
    return segmentation_learner(dls, arch, metrics=[], **how)

def mask_of(a): return PILMask.create(class_mask(a, len(CAMVID)))   # 255 = void

def stock_body(weights, pretrained):
    "The encoder flat, as `DynamicUnet` wants it, before a pooling where `create_body` cuts"
    return nn.Sequential(*stock_net(weights, pretrained)[0], nn.AdaptiveAvgPool2d(1))

def stock(anns, size, bs, weights, device):
    block = DataBlock((ImageBlock, MaskBlock(CAMVID)), get_x=path_of, get_y=mask_of, splitter=AnnotationSplitter(),
                      item_tfms=Resize(size[::-1], method='squish'),
                      batch_tfms=[*aug_transforms(**LIGHT), Normalize.from_stats(*imagenet_stats)])
    dls = block.dataloaders(anns, bs=bs, num_workers=0, device=device)
    return unet_learner(dls, partial(stock_body, weights), metrics=[],
                        n_out=len(CAMVID), loss_func=CrossEntropyLossFlat(axis=1, ignore_index=255))

# --- one scorer for all

class NoValid(Callback):
    "What is scored once at the end needs no score after each epoch"
    def before_validate(self): raise CancelValidException

def score(labels, anns):
    "The `SCORES` of (h, w) class indices of each file's pixels, void left out"
    cm = sum(confusion_counts(p, class_mask(a, len(CAMVID)), len(CAMVID)) for p,a in zip(labels, anns, strict=True))
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

def most_frequent(anns):
    "The most frequent class of each pixel in the training images"
    counts = sum(np.stack([class_mask(a, len(CAMVID)) == i for i in range(len(CAMVID))]).astype(int)
                 for a in anns if a.split == 'train')
    return torch.from_numpy(counts.argmax(0))

def run(anns, args, weights):
    "One row a system and seed"
    systems = {o: partial(ours, o, crops=args.crops, width=args.width) for o in args.archs}
    if not args.no_fastai: systems = {STOCK: stock, **systems}
    valid,rows = [a for a in anns if a.split == 'valid'],[]
    for seed in args.seeds:
        for o in list(systems)[::1 if seed%2 == 0 else -1]:     # none is always the first
            set_seed(seed)
            learn = systems[o](anns, tuple(args.size), args.bs, weights, args.device)
            learn.add_cb(NoValid())
            t,c = time.perf_counter(),clock(args.device)
            with learn.no_bar(), learn.no_logging():
                learn.fine_tune(args.epochs, args.lr, freeze_epochs=args.frozen, lr_mult=args.lr_mult)
            wall,secs = time.perf_counter()-t,clock(args.device)-c
            labels,after,net = predictions(learn, valid, args.crf)
            n = len(learn.dls.train)*args.bs*(args.frozen+args.epochs)
            rows.append(dict(system=o, seed=seed, **score(labels, valid), parameters=sum(map(torch.numel,
                             learn.model.parameters())), process=secs, wall=wall, train=n/secs, net=len(valid)/net,
                             **({CRF: score(after, valid)['mIoU']} if args.crf else {})))
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

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--archs', nargs='+', choices=list_archs('segmentation'), default=['dynamic_unet', 'lraspp'])
    ap.add_argument('--no-fastai', action='store_true', help="without fastai's net")
    ap.add_argument('--crops', action='store_true', help="our own augmentation for our nets, in place of fastai's")
    ap.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    ap.add_argument('--size', nargs=2, type=int, default=(240, 180), help='width and height of the input in pixels')
    ap.add_argument('--bs', type=int, default=8)
    ap.add_argument('--frozen', type=int, default=1, help='epochs with the encoder frozen')
    ap.add_argument('--epochs', type=int, default=3, help='epochs after these')
    ap.add_argument('--lr', type=float, default=2e-3, help='base rate of `fine_tune`')
    # fastai's 100 leaves the encoder as good as still: half the mIoU of lraspp in a short run
    ap.add_argument('--lr-mult', type=float, default=2, help="`fine_tune`'s ratio of rates, head to encoder")
    ap.add_argument('--width', type=float, help='of the nets that have one; they start from random weights')
    ap.add_argument('--crf', action='store_true', help='what `dense_crf`, as it comes, adds to the mean IoU')
    ap.add_argument('--limit', type=int, help='number of training images, evenly spread; all are evaluated')
    ap.add_argument('--device', default='cpu')
    args = begin(ap)
    data,weights = folder('VISION_TASKS_DATA'),folder('VISION_TASKS_WEIGHTS')/WEIGHTS
    train,valid = camvid(data, 'train', 'train'),camvid(data, 'val', 'valid')
    if args.limit: train = [train[i] for i in np.linspace(0, len(train)-1, min(args.limit, len(train))).astype(int)]
    df = run(train+valid, args, weights)
    print(f"\n**CamVid**: {len(train)} + {len(valid)} images, {len(CAMVID)} classes; {ENCODER}, "
          f"{args.size[0]}x{args.size[1]}, bs {args.bs}, {args.frozen} frozen + {args.epochs} epochs, "
          f"rate {args.lr:g}, lr_mult {args.lr_mult:g}, seeds {args.seeds}; mean ± sd\n")
    table(df, score([most_frequent(train)]*len(valid), valid))

if __name__ == '__main__': main()
