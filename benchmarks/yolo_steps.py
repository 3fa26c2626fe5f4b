"""What a training of YOLO v1 depends on. How far one step of each layer moves the output on another batch: every
weight by the rate, as Adam's first step does. With `--probe`, what an encoder's map, as it comes, tells of where in its
cell an object is: the share of the variance of x and y (R², validation images) that a ridge regression on the positions
of the cell explains. Drawn shapes of 96 pixels, cells of 32; ImageNet's weights where VISION_TASKS_WEIGHTS is set"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import argparse, sys, tempfile, warnings
from pathlib import Path
import numpy as np, torch
from fastai.vision.all import set_seed
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from machine import WEIGHTS, describe
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.data.transforms import JointTransform
from vision_tasks.detection import detection_dls, detection_learner
from vision_tasks.models.detection.yolo import in_cells
from vision_tasks.models.encoders import create_encoder

ENCODERS = 'mobilenet_v2','shufflenet_v2_x0_5'

def moved(net, parts, batch, other, lr):
    "{name of a part: standard deviation of the change of the output on `other`}"
    sum(net(*batch).values()).backward()
    out = lambda: net.cells(other)
    with torch.no_grad():
        before,res = out(),{}
        for name,part in parts.items():
            steps = [(p, lr*p.grad.sign()) for p in part.parameters() if p.grad is not None]
            for p,s in steps: p -= s
            res[name] = float((out() - before).std())
            for p,s in steps: p += s
    return res

# --- what a map tells

CELLS,SIZE = (3, 3),96

def cells_of(encoder, dl, stride):
    "Features (n, c * positions) of the cells that hold an object's centre, and (n, 2) x y relative to them"
    mean,std = (torch.tensor(o).view(3, 1, 1) for o in (encoder.mean, encoder.std))
    feats,at = [],[]
    for batch in dl:
        x,bboxes,labels = (o.as_subclass(Tensor) for o in batch)
        maps = encoder((x - mean)/std)
        k = SIZE//CELLS[0]//stride               # positions of a cell in each direction
        maps = nn.functional.unfold(maps, k, stride=k).transpose(1, 2)
        for m,b,l in zip(maps, bboxes, labels):
            cell,rel = in_cells(b[l > 0], CELLS, (SIZE, SIZE))
            feats.append(m[cell]); at.append(rel[:, :2])
    return torch.cat(feats).numpy(),torch.cat(at).numpy()

@torch.no_grad()
def probe(folder):
    with tempfile.TemporaryDirectory() as tmp:
        set_seed(0)
        tfms = JointTransform(SIZE, 'squish', flip=0.)
        dls = detection_dls(draw_shapes(tmp, 500, SIZE), bs=8, item_tfms=tfms, batch_tfms=[], num_workers=0,
                            device='cpu')
        print("\n| encoder | stride of its map | R² of x | R² of y |\n|---|---:|---:|---:|")
        for name in WEIGHTS:
            for stride in (32, 16):
                set_seed(0)
                weights = Path(folder)/WEIGHTS[name] if folder else False
                encoder = create_encoder(name, weights, stride=stride).eval()
                (a,xy),(b,truth) = (cells_of(encoder, dl, stride) for dl in dls)
                ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 11))).fit(a, xy)
                x,y = r2_score(truth, ridge.predict(b), multioutput='raw_values')
                print(f'| {name} | {stride} | {x:.2f} | {y:.2f} |', flush=True)

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--lr', type=float, default=5e-4)
    ap.add_argument('--probe', action='store_true', help='what the maps tell of the place in a cell')
    args = ap.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    folder = os.environ.get('VISION_TASKS_WEIGHTS')
    print(describe(('torch', 'torchvision', 'fastai')), "ImageNet weights" if folder else "random weights")
    if args.probe: return probe(folder)
    print("\n| encoder | BatchNorm in the head | map | encoder | 4 convolutions | 2 linear layers |\n"
          "|---|---|---|---:|---|---|")
    with tempfile.TemporaryDirectory() as tmp:
        dls = detection_dls(draw_shapes(tmp, 40, 96), size=96, bs=8, num_workers=0, device='cpu')
        for encoder,bn,normed in ((e, bn, s) for e in ENCODERS for bn in (False, True) for s in (False, True)):
            set_seed(0)
            net = detection_learner(dls, 'yolo_v1', encoder=encoder, arch_kwargs=dict(S=3, width=1/8, ps=0., bn=bn),
                                    pretrained=Path(folder)/WEIGHTS[encoder] if folder else False).model
            net.requires_grad_(True).train().encoder.eval()
            if not normed: net.norm,net.scale = nn.Identity(),1.
            batches = [[o.as_subclass(Tensor) for o in b] for b,_ in zip(dls.train, range(2))]
            layers  = [m for m in net.head if isinstance(m, (nn.Conv2d, nn.Linear))]
            res = [f'{o:.3f}' for o in moved(net, dict(enumerate([net.encoder, *layers])), batches[0], batches[1][0],
                                             args.lr).values()]
            how = 'normalized' if normed else 'as it is'
            print(f"| {encoder} | {bn} | {how} | {res[0]} | {', '.join(res[1:5])} | {', '.join(res[5:])} |")

if __name__ == '__main__': main()
