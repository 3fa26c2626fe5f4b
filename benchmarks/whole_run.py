"""A whole `fine_tune` with a cache beside fastai's stock pipeline: the same net, optimizer, epochs and workers

From the making of the DataLoaders to the end of the last epoch, validation included; ours in a first run, which fills
the folder of the cache, and in later ones"""
import argparse, resource, statistics, sys, tempfile, time
from functools import partial
from pathlib import Path
from fastai.vision.all import (CrossEntropyLossFlat, DataBlock, ImageBlock, Learner, MaskBlock, MultiCategoryBlock,
                               Normalize, RandomResizedCrop, Resize, aug_transforms, imagenet_stats, set_seed)
from machine import begin
from loading import CAMVID, camvid, mask_file
from multilabel_real import facemask_csv, folder
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.annotation import vocab_of
from vision_tasks.data.splits import AnnotationSplitter
from vision_tasks.data.targets import label_set, path_of
from vision_tasks.losses.labels import MultilabelBCE
from vision_tasks.multilabel import multilabel_dls, multilabel_learner
from vision_tasks.segmentation import segmentation_dls, segmentation_learner
from vision_tasks.training.build import parameter_groups

def stock_dls(anns, block, get_y, item_tfms, bs, workers):
    "fastai's pipeline as its tutorials have it"
    block = DataBlock((ImageBlock, block), get_x=path_of, get_y=get_y, splitter=AnnotationSplitter(),
                      item_tfms=item_tfms, batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats)])
    return block.dataloaders(anns, bs=bs, num_workers=workers)

class Labels:
    "facemask, labels of an image"
    size,bs = 128,32
    def __init__(self, args):
        self.anns,self.arch = facemask_csv(folder('VISION_TASKS_DATA')),args.encoder
        self.vocab = vocab_of(self.anns)
    def ours(self, workers, cache):
        dls = multilabel_dls(self.anns, self.vocab, bs=self.bs, size=self.size, num_workers=workers, cache=cache)
        return multilabel_learner(dls, self.arch, pretrained=False, metrics=[])
    def stock(self, workers):
        dls = stock_dls(self.anns, MultiCategoryBlock(vocab=self.vocab), label_set,
                        RandomResizedCrop(self.size, min_scale=.35), self.bs, workers)
        return dls,MultilabelBCE()

class Masks:
    "CamVid at half its size, class masks"
    size,bs = (240, 180),8
    def __init__(self, args):
        data = folder('VISION_TASKS_DATA')
        self.anns,self.arch = camvid(data, 'train', 'train')[::3] + camvid(data, 'val', 'valid')[::3],args.encoder
    def ours(self, workers, cache):
        dls = segmentation_dls(self.anns, CAMVID, bs=self.bs, size=self.size, num_workers=workers, cache=cache)
        return segmentation_learner(dls, 'lraspp', encoder=self.arch, pretrained=False, metrics=[])
    def stock(self, workers):
        dls = stock_dls(self.anns, MaskBlock([*CAMVID, 'void']), mask_file, Resize(self.size[::-1], method='squish'),
                        self.bs, workers)
        return dls,CrossEntropyLossFlat(axis=1, ignore_index=len(CAMVID))

def stock(task, workers):
    "The same net as ours, in a plain `Learner`, on fastai's DataLoaders"
    dls,loss = task.stock(workers)
    return Learner(dls, NETS[type(task)](), loss_func=loss, splitter=parameter_groups)

NETS = {}

def seconds():
    "Wall and process time so far, of finished workers too"
    used = [resource.getrusage(o) for o in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(),sum(o.ru_utime + o.ru_stime for o in used)

def run(make, epochs):
    "Seconds (wall, process) of a whole run, the making of the DataLoaders included"
    set_seed(0)
    start = seconds()
    learn = make()
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(epochs, 1e-3, freeze_epochs=1)
    return [b - a for a,b in zip(start, seconds())]

def compare(task, workers, args):
    "A line a system"
    with tempfile.TemporaryDirectory() as cache:
        ours = partial(task.ours, workers, cache)
        NETS[type(task)] = lambda: task.ours(0, None).model
        times = {'fastai': [], 'ours, without a cache': [], 'ours, first run': [run(ours, args.epochs)],
                 'ours, later runs': []}
        for _ in range(args.rounds):
            times['fastai'].append(run(partial(stock, task, workers), args.epochs))
            times['ours, without a cache'].append(run(partial(task.ours, workers, None), args.epochs))
            times['ours, later runs'].append(run(ours, args.epochs))
    base = [statistics.median(o) for o in zip(*times['fastai'])]
    for name,t in times.items():
        wall,used = (statistics.median(o) for o in zip(*t))
        print(f'| {task.__doc__} | {workers} | {name} | {wall:.1f} | {used:.1f} | {wall/base[0]:.2f} | '
              f'{used/base[1]:.2f} |', flush=True)

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--encoder', default='shufflenet_v2_x0_5')
    ap.add_argument('--epochs', type=int, default=3, help='after one with the encoder frozen')
    ap.add_argument('--workers', nargs='+', type=int, default=[0, 2])
    ap.add_argument('--rounds', type=int, default=2)
    ap.add_argument('--tasks', nargs='+', choices=['labels', 'masks'], default=['labels', 'masks'])
    args = begin(ap)
    print(f"\n{args.encoder}, 1 + {args.epochs} epochs, median of {args.rounds} runs\n\n"
          '| set | workers | system | wall, s | process, s | wall, to fastai | process, to fastai |\n'
          '|---|---:|---|---:|---:|---:|---:|')
    for name in args.tasks:
        task = dict(labels=Labels, masks=Masks)[name](args)
        for workers in args.workers: compare(task, workers, args)

if __name__ == '__main__': main()
