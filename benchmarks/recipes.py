"""A grid of learning rates for each architecture and set of images: the best rate, where `learn.recipe`'s lies, and
with `--lr-find` where the suggestions of `lr_find` lie. Small images and few epochs, so that the whole registry is
affordable. Drawn shapes need nothing; the other sets want VISION_TASKS_DATA, pretrained encoders
VISION_TASKS_WEIGHTS"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1') # before numpy is there
import argparse, inspect, json, sys, tempfile, time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
import numpy as np
from fastai.callback.schedule import minimum, steep, valley
from fastai.vision.all import set_seed
from instance_real import pennfudan
from keypoint_real import faces, persons as pedestrians
from loading import CAMVID, camvid
from machine import WEIGHTS, begin
from multilabel_real import coco128, facemask_csv, facemask_xml, folder
from segmentation_real import NoValid
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.classification import classification_dls, classification_learner
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.formats.coco import read_coco
from vision_tasks.data.splits import AnnotationSplitter
from vision_tasks.data.synthetic import SHAPE_CODES, draw_figures, draw_shapes
from vision_tasks.data.targets import clip_objects
from vision_tasks.detection import detection_dls, detection_learner
from vision_tasks.instance import instance_dls, instance_learner
from vision_tasks.keypoint import keypoint_dls, keypoint_learner
from vision_tasks.localization import largest_object, localization_dls, localization_learner
from vision_tasks.models.registry import arch_facts, get_arch, list_archs
from vision_tasks.multilabel import multilabel_dls, multilabel_learner
from vision_tasks.segmentation import segmentation_dls, segmentation_learner
from vision_tasks.training.rates import steepest

TASKS = dict(   # task: DataLoaders, learner, score of `evaluate`, 1 where more is better
    classification=(classification_dls, classification_learner, 'accuracy', 1),
    multilabel=(multilabel_dls, multilabel_learner, 'map_macro', 1),
    keypoint=(keypoint_dls, keypoint_learner, 'nme', -1),
    localization=(localization_dls, localization_learner, 'mean_iou', 1),
    segmentation=(segmentation_dls, segmentation_learner, 'miou', 1),
    detection=(detection_dls, detection_learner, 'map50', 1),
    instance=(instance_dls, instance_learner, 'map_segm', 1))

SIZES = dict(deconvnet=224)   # of networks that take no smaller images

# --- the sets: annotations with their splits; size of the network's input, batch size, epochs of `fine_tune`

@dataclass
class Set:
    read:Callable         # folder of the data sets, scratch folder -> annotations
    size:object
    bs:int
    epochs:int
    train:int = 160       # images at most
    valid:int = 80
    kw:dict = None        # of the DataLoaders

def drawn(data, tmp): return split(draw_shapes(tmp, 240, 96))
def figures(data, tmp): return split(draw_figures(tmp, 240, 96))
def split(anns):
    train,_ = AnnotationSplitter(.33, 0)(anns)
    train = set(train)
    return [replace(a, split='train' if i in train else 'valid') for i,a in enumerate(anns)]
def faces_(data, tmp): return faces(data)
def masks_csv(data, tmp): return facemask_csv(data)
def coco_labels(data, tmp): return coco128(data)
def masks_boxes(data, tmp): return [clip_objects(a) for a in facemask_xml(data)]
def one_label(data, tmp): return [replace(a, labels=a.labels[:1]) for a in facemask_csv(data) if len(a.labels) == 1]
def largest(data, tmp): return largest_object([a for a in masks_boxes(data, tmp) if len(a.labels)])
def largest_shape(data, tmp): return largest_object([a for a in drawn(data, tmp) if len(a.labels)])
def one_shape(data, tmp):
    return [Annotation(a.path, a.size, a.labels[:1], split=a.split) for a in largest_shape(data, tmp)]
def street(data, tmp): return camvid(data, 'train', 'train') + camvid(data, 'val', 'valid')
def persons(data, tmp): return pennfudan(data)
def one_person(data, tmp): return largest_object(persons(data, tmp))
def person_points(data, tmp): return pedestrians(data)
def nuts(data, tmp): return split(read_coco(data/'nuts/trainval.json', data/'nuts/images'))

SETS = {
    ('classification', 'drawn'): Set(one_shape, 64, 16, 4),
    ('classification', 'facemask'): Set(one_label, 96, 16, 3),
    ('multilabel', 'drawn'): Set(drawn, 64, 16, 4), ('multilabel', 'facemask'): Set(masks_csv, 96, 16, 3),
    ('multilabel', 'coco128'): Set(coco_labels, 96, 16, 5),
    ('keypoint', 'drawn'): Set(figures, 64, 16, 6), ('keypoint', 'faces'): Set(faces_, 64, 16, 6),
    ('keypoint', 'persons'): Set(person_points, (48, 96), 16, 12),
    ('localization', 'drawn'): Set(largest_shape, 64, 16, 5),
    ('localization', 'facemask'): Set(largest, 96, 16, 4),
    ('localization', 'pennfudan'): Set(one_person, 96, 16, 5),
    ('segmentation', 'drawn'): Set(drawn, 64, 8, 4, kw=dict(vocab=SHAPE_CODES)),
    ('segmentation', 'camvid'): Set(street, (128, 96), 8, 4, kw=dict(vocab=CAMVID)),
    ('detection', 'drawn'): Set(drawn, 96, 8, 5), ('detection', 'facemask'): Set(masks_boxes, 160, 8, 3),
    ('detection', 'nuts'): Set(nuts, 192, 2, 8), ('instance', 'nuts'): Set(nuts, 160, 2, 8),
    ('instance', 'drawn'): Set(drawn, 96, 4, 3, 80, 40), ('instance', 'pennfudan'): Set(persons, 128, 4, 4)}

def annotations(task, name, data, tmp):
    s = SETS[task, name]
    anns = s.read(data, tmp)
    rng  = np.random.default_rng(0)
    pick = lambda split, n: [anns[i] for i in rng.permutation([i for i,a in enumerate(anns) if a.split == split])[:n]]
    return pick('train', s.train) + pick('valid', s.valid)

# --- one run

def learner(task, arch, dls, args, weights):
    "The learner of a user who names an architecture, with what makes it small enough for a grid"
    make = TASKS[task][1]
    if task in ('classification', 'multilabel', 'keypoint', 'localization'):
        return make(dls, arch, pretrained=weights, metrics=[], arch_kwargs=args.arch_kwargs)
    takes = inspect.signature(get_arch(arch, task)).parameters
    how = dict(encoder=args.encoder, pretrained=weights) if 'encoder' in takes and arch not in args.own_encoder else \
          dict(pretrained=False)
    kw = dict(width=args.width) if 'width' in takes and 'encoder' not in how else {}
    kw.update(FITTING.get(arch, {}))
    return make(dls, arch, arch_kwargs=kw or None, metrics=[], **how)

# arguments without which an architecture does not take small images
FITTING = dict(unet=dict(padding='same'), dilatednet=dict(context='basic'), yolo_v1=dict(S=3), rcnn=dict(crop=32),
               fast_rcnn=dict(stride=8), faster_rcnn_vgg16=dict(stride=8))

def loaders(task, arch, s, anns, args):
    kw = dict(s.kw or {})
    if arch in ('fast_rcnn', 'rcnn'): kw['proposals'] = 'selective_search'
    size = args.size or SIZES.get(arch) or s.size
    return TASKS[task][0](anns, bs=s.bs, size=size, num_workers=0, device=args.device, **kw)

def run(task, arch, s, anns, rate, seed, args, weights):
    "Score of `evaluate` after `fine_tune` at `rate`, and its process seconds"
    set_seed(seed)
    score = TASKS[task][2]
    learn,t = learner(task, arch, loaders(task, arch, s, anns, args), args, weights),time.process_time()
    with learn.no_bar(), learn.no_logging():
        try: learn.fine_tune(args.epochs or s.epochs, rate, cbs=NoValid(), **(args.fine_tune or {}))
        except ValueError as e:
            if 'nan' not in str(e): raise
            return np.nan,0.
        t = time.process_time() - t
        try: return learn.evaluate()[score],t
        except ValueError as e:                       # a detector that diverged says so
            if 'nan' not in str(e): raise
            return np.nan,t

FOUND = ['valley', 'steepest', 'steep', 'minimum']

def suggestions(task, arch, s, anns, args, weights):
    set_seed(0)
    learn = learner(task, arch, loaders(task, arch, s, anns, args), args, weights)
    with learn.no_bar():
        found = learn.lr_find(suggest_funcs=(valley, steepest, steep, minimum), show_plot=False, epochs=100)
    return found

# --- the table

def grid(task, name, arch, args, data, weights):
    s = SETS[task, name]
    with tempfile.TemporaryDirectory() as tmp:
        anns = annotations(task, name, data, Path(tmp))
        set_seed(0)
        recipe,sign = learner(task, arch, loaders(task, arch, s, anns, args), args, weights).recipe,TASKS[task][3]
        rates = [float(f'{recipe.base_lr*f:.2g}') for f in args.factors]
        rows,secs = [],[]
        for rate in rates:
            got = [run(task, arch, s, anns, rate, seed, args, weights) for seed in args.seeds]
            rows.append([o for o,_ in got]); secs += [t for _,t in got]
            print('#', task, name, arch, f'{rate:.1e}', *(f'{o:.3f}' for o,_ in got), f'{np.mean(secs):.0f} s',
                  flush=True)
        means = np.array([np.nanmean(r) if np.isfinite(r).any() else -np.inf*sign for r in rows])
        best  = int(np.argmax(np.where(np.isfinite(means), means*sign, -np.inf)))
        at    = min(range(len(rates)), key=lambda i: abs(np.log(rates[i]/recipe.base_lr)))
        cells = ' | '.join(f'**{m:.3f}**' if i == best else f'{m:.3f}' for i,m in enumerate(means))
        line  = (f'| {task} | {name} | `{arch}` | {recipe.base_lr:g} | {cells} | {rates[best]:g} | '
                 f'{recipe.base_lr/rates[best]:.2g} | {means[at]/means[best]:.2f} | {np.mean(secs):.0f} |')
        if args.lr_find:
            found = suggestions(task, arch, s, anns, args, weights)
            line += ' ' + ' | '.join(f'{getattr(found, o):.1e}' for o in FOUND) + ' |'
    return line

def archs_of(task, args):
    if task in ('classification', 'multilabel', 'keypoint', 'localization'): return [args.encoder]
    return args.archs or [o for o in list_archs(task) if arch_facts(o, task).get('weights') != 'all'
                          and 'like' not in arch_facts(o, task)]

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--tasks', nargs='+', default=list(TASKS), choices=list(TASKS))
    ap.add_argument('--sets', nargs='+', help='names of sets; all by default')
    ap.add_argument('--archs', nargs='+', help="registered names; by default all that start from an encoder or random "
                                               "weights; those with COCO's cannot be tried without them")
    ap.add_argument('--own-encoder', nargs='*', help='of these their own, from random weights',
                    default=['fcn32s', 'fcn16s', 'fcn8s', 'deeplab_v1', 'dilatednet', 'segnet', 'deconvnet'])
    ap.add_argument('--encoder', default='mobilenet_v2', choices=list(WEIGHTS))
    ap.add_argument('--random', action='store_true', help='random weights of the encoder')
    ap.add_argument('--width', type=float, default=.25, help='of networks without an encoder that take it')
    ap.add_argument('--factors', nargs='+', type=float, default=[.1, .3, 1, 3, 10], help="of the recipe's rate")
    ap.add_argument('--seeds', nargs='+', type=int, default=[0])
    ap.add_argument('--epochs', type=int, help='of `fine_tune`; by default as the set says')
    ap.add_argument('--size', type=int)
    ap.add_argument('--lr-find', action='store_true')
    ap.add_argument('--fine-tune', type=json.loads, help='JSON of other arguments of `fine_tune`: {"lr_mult": 10}')
    ap.add_argument('--arch-kwargs', type=json.loads, help='JSON, of a head on an encoder: {"grid": 3}')
    ap.add_argument('--device', default='cpu')
    args = begin(ap)
    data = folder('VISION_TASKS_DATA') if 'VISION_TASKS_DATA' in os.environ else None
    weights = False if args.random else folder('VISION_TASKS_WEIGHTS')/WEIGHTS[args.encoder]
    names = FOUND if args.lr_find else []
    head = ['task', 'set', 'architecture', 'recipe', *(f'x {f:g}' for f in args.factors), 'best rate', 'recipe / best',
            'score there / best', 'process s', *names]
    lines = []
    for task in args.tasks:
        for t,name in SETS:
            if t != task or args.sets and name not in args.sets or data is None and name != 'drawn': continue
            for arch in archs_of(task, args):
                lines.append(grid(task, name, arch, args, data, weights))
                print(lines[-1], flush=True)
    print(f"\nencoder {args.encoder}{', random weights' if args.random else ''}, seeds {args.seeds}, "
          f"fine_tune {args.fine_tune or 'as the recipe'}, head {args.arch_kwargs or 'as it comes'}\n")
    print('| ' + ' | '.join(head) + ' |\n|' + '---|'*3 + '---:|'*(len(head)-3))
    print('\n'.join(lines))

if __name__ == '__main__': main()
