"""Beside a living peer, AutoTimm (extra `bench`): boxes and labels of face masks, classes of CamVid's pixels. The same
images, timm encoder and weights, size, epochs, batch size, one thread, one scorer (`coco_ap`, equal to pycocotools;
scikit-learn; counts of pixels of the files). Ours: `fine_tune` with `learn.recipe`. AutoTimm: its data modules with its
default augmentation and the encoder's normalization, AdamW and a cosine, the best of several rates, without
`torch.compile`, which would take longer than the training. Beside them fastai's and torchvision's loops"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1') # before numpy is there
import argparse, logging, sys, tempfile, time
from pathlib import Path
import numpy as np, pandas as pd, torch
from PIL import Image
from fastai.vision.all import (CrossEntropyLossFlat, DataBlock, ImageBlock, MaskBlock, MultiCategoryBlock, Normalize,
                               RandomResizedCrop, Resize, aug_transforms, set_seed, unet_learner, vision_learner)
from sklearn.metrics import average_precision_score
from timm import create_model
from torch import nn
from keypoint_real import spread
from loading import CAMVID, camvid
from machine import WEIGHTS, begin
from multilabel_real import facemask_csv, facemask_xml, folder
from segmentation_real import NoValid, mask_of
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.annotation import Annotation, vocab_of
from vision_tasks.data.formats.coco import write_coco
from vision_tasks.data.image import read_image
from vision_tasks.data.splits import AnnotationSplitter
from vision_tasks.data.targets import clip_objects, class_mask, label_set, path_of
from vision_tasks.detection import detection_dls, detection_learner
from vision_tasks.metrics.detection import coco_ap
from vision_tasks.metrics.segmentation import confusion_counts, confusion_scores
from vision_tasks.multilabel import multilabel_dls, multilabel_learner
from vision_tasks.segmentation import segmentation_dls, segmentation_learner

ENCODER = 'tf_efficientnet_lite0'
STATS = (.498,)*3,(.502,)*3     # of these weights

def part(anns, split): return [a for a in anns if a.split == split]
def timed(f):
    t = time.process_time()
    f()
    return time.process_time() - t

# --- AutoTimm

def autotimm():
    "The package, or an error that says how to install it"
    try: import autotimm
    except ImportError: sys.exit("this benchmark needs AutoTimm: pip install 'vision_tasks[bench]'")
    for o in ('autotimm', 'pytorch_lightning', 'lightning.pytorch'): logging.getLogger(o).setLevel(logging.ERROR)
    return autotimm

def trained(model, data, args, seed):
    "Train with AutoTimm's trainer, without its search for a rate; -> process seconds"
    at = autotimm()
    trainer = at.AutoTrainer(max_epochs=args.epochs, accelerator=args.device, devices=1, tuner_config=False, seed=seed,
                             enable_checkpointing=False, checkpoint_monitor=None, logger=False, limit_val_batches=0,
                             enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)
    secs = timed(lambda: trainer.fit(model, datamodule=data))
    model.eval()
    return secs

def backbone(args, kind):
    return kind(model_name=ENCODER, pretrained=True, extra_kwargs=dict(
        pretrained_cfg_overlay=dict(file=str(args.weights), hf_hub_id=None, url=None)))

def transforms(size, backend='albumentations'):
    return autotimm().TransformConfig(image_size=size, mean=STATS[0], std=STATS[1], backend=backend)

# --- boxes

def detect_ours(arch):
    def run(anns, vocab, args, seed, lr, tmp):
        dls = detection_dls(anns, vocab, bs=args.bs, size=args.size, num_workers=0, device=args.device)
        learn = detection_learner(dls, arch, encoder=ENCODER, pretrained=args.weights, metrics=[])
        with learn.no_bar(), learn.no_logging():
            secs = timed(lambda: learn.fine_tune(args.epochs - learn.recipe.freeze_epochs, lr, cbs=NoValid()))
            return learn.annotate(part(anns, 'valid'), thresh=0.),secs
    return run

def detect_autotimm(arch):
    def run(anns, vocab, args, seed, lr, tmp):
        at = autotimm()
        images = anns[0].path.parent
        for s in ('train', 'valid'): write_coco(part(anns, s), tmp/f'{s}.json', images, vocab=vocab)
        data = at.DetectionDataModule(train_images_dir=images, val_images_dir=images, train_ann_file=tmp/'train.json',
                                      val_ann_file=tmp/'valid.json', image_size=args.size, batch_size=args.bs,
                                      num_workers=0, pin_memory=False, transform_config=transforms(args.size),
                                      backbone=ENCODER)
        set_seed(seed)
        model = at.ObjectDetector(backbone(args, at.FeatureBackboneConfig), len(vocab), detection_arch=arch, lr=lr,
                                  compile_model=False, seed=seed, deterministic=False, score_thresh=.01)
        secs = trained(model, data, args, seed)
        return [boxes_in_file(model, data.eval_transforms, a, vocab, args) for a in part(anns, 'valid')],secs
    return run

@torch.no_grad()
def boxes_in_file(model, tfm, a, vocab, args):
    "Detections of AutoTimm's `model` in pixels of the file: the longer side is scaled to `size`, then centred"
    im  = np.asarray(read_image(a.path))
    x   = tfm(image=im, bboxes=[], labels=[])['image'][None].to(args.device)
    out = {k: v.cpu().numpy() for k,v in model.predict(x)[0].items()}
    s   = args.size/max(a.size)
    w,h = (round(o*s) for o in a.size)
    off = np.array([(args.size-w)//2, (args.size-h)//2]*2)
    b   = ((out['boxes'] - off)/s).clip(0, [*a.size]*2).astype(np.float32)
    on  = (b[:,2:] > b[:,:2]).all(1)
    return Annotation(a.path, a.size, [vocab[i] for i in out['labels'][on]], b[on], scores=out['scores'][on].clip(0, 1))

def detect_torchvision(anns, vocab, args, seed, lr, tmp):
    "torchvision's loop and recipe for SSDlite, as in `detection_real.py`"
    from detection_real import Images, loader, predictions, train
    from vision_tasks.models.registry import get_arch
    net = get_arch('ssdlite', 'detection')(len(vocab), pretrained=args.weights, size=args.size, resize=True,
                                           encoder=ENCODER).net.to(args.device)
    dl  = loader(Images(part(anns, 'train'), vocab), args)
    opt = torch.optim.SGD(net.parameters(), lr, momentum=.9, weight_decay=4e-5)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, args.epochs*len(dl))
    secs = timed(lambda: train(net, dl, opt, sched, args))
    return predictions(net, anns, vocab, args.device),secs

def score_boxes(anns, preds, vocab):
    got = coco_ap(part(anns, 'valid'), preds, vocab)
    return dict(AP50=got['map50'], AP=got['map'])

# --- labels

def multi_hot(anns, vocab): return np.array([[o in a.labels for o in vocab] for a in anns])

def label_ours(anns, vocab, args, seed, lr, tmp):
    dls = multilabel_dls(anns, vocab, bs=args.bs, size=args.size, num_workers=0, device=args.device)
    learn = multilabel_learner(dls, ENCODER, pretrained=args.weights, metrics=[])
    with learn.no_bar(), learn.no_logging():
        secs = timed(lambda: learn.fine_tune(args.epochs - learn.recipe.freeze_epochs, lr, cbs=NoValid()))
        return learn.get_preds()[0].numpy(),secs

def label_fastai(anns, vocab, args, seed, lr, tmp):
    block = DataBlock((ImageBlock, MultiCategoryBlock(vocab=vocab)), get_x=path_of, get_y=label_set,
                      splitter=AnnotationSplitter(), item_tfms=RandomResizedCrop(args.size, min_scale=.35),
                      batch_tfms=[*aug_transforms(size=args.size), Normalize.from_stats(*STATS)])
    dls = block.dataloaders(anns, bs=args.bs, num_workers=0, device=args.device)
    learn = vision_learner(dls, ENCODER, pretrained=True, normalize=False, n_out=len(vocab), metrics=[],
                           pretrained_cfg_overlay=dict(file=str(args.weights), hf_hub_id=None, url=None))
    with learn.no_bar(), learn.no_logging():
        secs = timed(lambda: learn.fine_tune(args.epochs - 1, lr or 2e-3, cbs=NoValid()))
        return learn.get_preds()[0].numpy(),secs

def label_autotimm(anns, vocab, args, seed, lr, tmp):
    at = autotimm()
    root = anns[0].path.parent
    for s in ('train', 'valid'):
        df = pd.DataFrame(multi_hot(part(anns, s), vocab).astype(int), columns=vocab)
        df.insert(0, 'image', [a.path.relative_to(root) for a in part(anns, s)])
        df.to_csv(tmp/f'{s}.csv', index=False)
    data = at.MultiLabelImageDataModule(train_csv=tmp/'train.csv', val_csv=tmp/'valid.csv', image_dir=root,
                                        image_size=args.size, batch_size=args.bs, num_workers=0, pin_memory=False,
                                        transform_config=transforms(args.size, 'torchvision'), backbone=ENCODER)
    set_seed(seed)
    model = at.ImageClassifier(backbone(args, at.BackboneConfig), len(vocab), multi_label=True, lr=lr,
                               compile_model=False, seed=seed, deterministic=False)
    secs = trained(model, data, args, seed)
    with torch.no_grad():
        return torch.cat([model(x.to(args.device)).sigmoid().cpu() for x,_ in data.val_dataloader()]).numpy(),secs

def score_labels(anns, preds, vocab):
    y = multi_hot(part(anns, 'valid'), vocab)
    return dict(mAP=average_precision_score(y[:,y.any(0)], preds[:,y.any(0)]))

# --- classes of pixels

def segment_ours(anns, vocab, args, seed, lr, tmp):
    dls = segmentation_dls(anns, vocab, bs=args.bs, size=args.wh, num_workers=0, device=args.device)
    learn = segmentation_learner(dls, encoder=ENCODER, pretrained=args.weights, metrics=[])
    with learn.no_bar(), learn.no_logging():
        secs = timed(lambda: learn.fine_tune(args.epochs - learn.recipe.freeze_epochs, lr, cbs=NoValid()))
        return [a.mask for a in learn.annotate(part(anns, 'valid'))],secs

def segment_autotimm(anns, vocab, args, seed, lr, tmp):
    at = autotimm()
    # its training crops are of the files' own scale, and its validation images are resized: files of the network's size
    for s,d in (('train', 'train'), ('valid', 'val')):
        for o in ('images', 'masks'): (tmp/d/o).mkdir(parents=True, exist_ok=True)
        for a in part(anns, s):
            if (tmp/d/'masks'/f'{a.path.stem}.png').exists(): continue
            read_image(a.path).resize(args.wh, Image.Resampling.BILINEAR).save(tmp/d/'images'/f'{a.path.stem}.png')
            m = Image.fromarray(class_mask(a, len(vocab))).resize(args.wh, Image.Resampling.NEAREST)
            m.save(tmp/d/'masks'/f'{a.path.stem}.png')
    side = max(args.wh)
    data = at.SegmentationDataModule(data_dir=tmp, format='png', image_size=side, batch_size=args.bs, num_workers=0,
                                     transform_config=transforms(side), backbone=ENCODER)
    set_seed(seed)
    model = at.SemanticSegmentor(backbone(args, at.FeatureBackboneConfig), len(vocab), lr=lr, compile_model=False,
                                 seed=seed, deterministic=False)
    secs = trained(model, data, args, seed)
    res  = []
    mean,std = (torch.tensor(o)[:,None,None] for o in STATS)
    for a in part(anns, 'valid'):
        x = torch.from_numpy(np.array(read_image(a.path).resize(args.wh, Image.Resampling.BILINEAR))).permute(2, 0, 1)
        with torch.no_grad():                     # the whole image at the scale of training, its sides multiples of 32
            h,w = x.shape[1:]
            x = nn.functional.pad((x/255. - mean)/std, (0, -w % 32, 0, -h % 32))
            out = model(x[None].to(args.device)).cpu()
            out = nn.functional.interpolate(out, x.shape[1:], mode='bilinear', align_corners=False)[..., :h, :w]
            out = nn.functional.interpolate(out, a.size[::-1], mode='bilinear', align_corners=False)
        res.append(out[0].argmax(0).numpy())
    return res,secs

def segment_fastai(anns, vocab, args, seed, lr, tmp):
    block = DataBlock((ImageBlock, MaskBlock(vocab)), get_x=path_of, get_y=mask_of, splitter=AnnotationSplitter(),
                      item_tfms=Resize(args.wh[::-1], method='squish'),
                      batch_tfms=[*aug_transforms(max_warp=0., max_rotate=0., max_zoom=1.),
                                  Normalize.from_stats(*STATS)])
    dls = block.dataloaders(anns, bs=args.bs, num_workers=0, device=args.device)
    def body(pretrained=True):
        net = create_model(ENCODER, pretrained=True, pretrained_cfg_overlay=dict(file=str(args.weights), hf_hub_id=None,
                                                                                 url=None))
        return nn.Sequential(nn.Sequential(net.conv_stem, net.bn1), *net.blocks, nn.AdaptiveAvgPool2d(1))
    learn = unet_learner(dls, body, normalize=False, n_out=len(vocab), metrics=[],
                         loss_func=CrossEntropyLossFlat(axis=1, ignore_index=255))
    with learn.no_bar(), learn.no_logging():
        secs = timed(lambda: learn.fine_tune(args.epochs - 1, lr or 2e-3, cbs=NoValid()))
        out = learn.get_preds()[0]
    return [nn.functional.interpolate(o[None], a.size[::-1], mode='bilinear', align_corners=False)[0].argmax(0).numpy()
            for o,a in zip(out, part(anns, 'valid'))],secs

def score_masks(anns, preds, vocab):
    n = len(vocab)
    cm = sum(confusion_counts(torch.from_numpy(np.asarray(p)).long(), torch.from_numpy(class_mask(a, n)), n)
             for a,p in zip(part(anns, 'valid'), preds))
    return dict(mIoU=confusion_scores(cm)['miou'])

# --- the tables: system -> function, rates tried (None: the recipe's); scorer; images

SYSTEMS = dict(
    boxes=({'ours, `faster_rcnn`': (detect_ours('faster_rcnn'), [None]),
            'ours, `ssdlite`': (detect_ours('ssdlite'), [None]),
            'ours, `fcos`': (detect_ours('fcos'), [None]),
            'AutoTimm, FCOS': (detect_autotimm('fcos'), [1e-4, 5e-4, 2e-3]),
            'AutoTimm, YOLOX head': (detect_autotimm('yolox'), [1e-4, 5e-4, 2e-3]),
            "torchvision's loop, SSDlite": (detect_torchvision, [.01, .03])}, score_boxes),
    labels=({'ours': (label_ours, [None]), 'AutoTimm': (label_autotimm, [1e-4, 5e-4, 2e-3]),
             'fastai': (label_fastai, [None])}, score_labels),
    pixels=({'ours': (segment_ours, [None]), 'AutoTimm, DeepLabV3+': (segment_autotimm, [1e-4, 5e-4, 2e-3]),
             "fastai's `unet_learner`": (segment_fastai, [None])}, score_masks))

def images(what, args):
    data = folder('VISION_TASKS_DATA')
    rng  = np.random.default_rng(0)
    if what == 'pixels': anns,vocab = camvid(data, 'train', 'train') + camvid(data, 'val', 'valid'),CAMVID
    else:
        anns  = [clip_objects(a) for a in facemask_xml(data)] if what == 'boxes' else facemask_csv(data)
        vocab = vocab_of(anns)
    some = lambda s, n: [part(anns, s)[i] for i in sorted(rng.permutation(len(part(anns, s)))[:n])]
    return some('train', args.limit) + some('valid', args.limit), list(vocab)

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--what', nargs='+', default=list(SYSTEMS), choices=list(SYSTEMS))
    ap.add_argument('--systems', nargs='+', help='beginnings of the names of systems; all by default')
    ap.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    ap.add_argument('--epochs', type=int, default=6, help='in all; of ours and fastai the first with a frozen encoder')
    ap.add_argument('--size', type=int, default=224)
    ap.add_argument('--wh', nargs=2, type=int, default=[240, 180], help='width and height for CamVid')
    ap.add_argument('--bs', type=int, default=8)
    ap.add_argument('--limit', type=int, default=240, help='images to train on, and for validation')
    ap.add_argument('--device', default='cpu')
    args = begin(ap, ('torch', 'timm', 'autotimm', 'pytorch-lightning', 'albumentations'))
    args.weights,args.workers,args.wh = folder('VISION_TASKS_WEIGHTS')/WEIGHTS[ENCODER],0,tuple(args.wh)
    for what in args.what:
        systems,score = SYSTEMS[what]
        anns,vocab = images(what, args)
        rows = []
        for seed in args.seeds:
            for name,(run,rates) in systems.items():
                if args.systems and not name.startswith(tuple(args.systems)): continue
                for lr in rates:
                    set_seed(seed)
                    with tempfile.TemporaryDirectory() as tmp:
                        preds,secs = run(anns, vocab, args, seed, lr, Path(tmp))
                    rows.append(dict(system=name, lr=lr or 0., **score(anns, preds, vocab), seconds=secs))
                    print('#', what, seed, *(f'{v:.4g}' if isinstance(v, float) else v for v in rows[-1].values()),
                          flush=True)
        df = pd.DataFrame(rows)
        names = list(df.columns[2:-1])
        size = args.wh if what == 'pixels' else args.size
        print(f"\n**{what}**: {len(part(anns, 'train'))} + {len(part(anns, 'valid'))} images, {ENCODER}, {size} px, "
              f"bs {args.bs}, {args.epochs} epochs, seeds {args.seeds}\n")
        print(f"| system | rate | {' | '.join(names)} | process s |\n|---|---:|" + '---:|'*(len(names)+1))
        for name,d in df.groupby('system', sort=False):
            best = d.groupby('lr')[names[0]].mean().idxmax()          # of the rates tried
            d = d[d.lr == best]
            print(f"| {name} | {best or 'recipe'} |", *(f'{spread(d[c], 3)} |' for c in names),
                  f'{d.seconds.mean():.0f} |')
        print(flush=True)

if __name__ == '__main__': main()
