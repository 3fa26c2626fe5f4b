"""How far one step of each layer of YOLO v1 moves the output on another batch: every weight by the rate, as Adam's
first step does. Drawn shapes of 96 pixels; ImageNet's weights where VISION_TASKS_WEIGHTS is set"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import argparse, sys, tempfile, warnings
from pathlib import Path
import torch
from fastai.vision.all import set_seed
from torch import Tensor, nn
from machine import WEIGHTS, describe
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.detection import detection_dls, detection_learner

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

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--lr', type=float, default=5e-4)
    args = ap.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    folder = os.environ.get('VISION_TASKS_WEIGHTS')
    print(describe(('torch', 'torchvision', 'fastai')), "ImageNet weights" if folder else "random weights")
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
