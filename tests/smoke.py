"""What an installed wheel must do, from any folder: `python -I smoke.py`. `make dist` runs it in an environment that
holds the wheel and what it asks for, nothing else"""
import sys, tempfile
from pathlib import Path
import matplotlib
matplotlib.use('Agg')
import vision_tasks
from vision_tasks.all import *

def train_one_batch(learn):
    "Train `learn` for one batch, then predict one image and annotate three"
    files = [a.path for a in learn.dls.valid.items[:3]]
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        learn.predict(files[0])
        found = learn.annotate(files)
    assert [a.path for a in found] == files
    return found

def main():
    package = Path(vision_tasks.__file__).parent
    assert package.is_relative_to(sys.prefix), f"{package} is not what was installed into {sys.prefix}"
    assert (package/'py.typed').exists(), "py.typed is not in the wheel"
    with tempfile.TemporaryDirectory() as folder:
        anns = draw_shapes(Path(folder), n=8, size=64)
        kwargs = dict(size=64, bs=4, num_workers=0, valid_pct=.5, path=folder)
        train_one_batch(multilabel_learner(multilabel_dls(anns, **kwargs), 'resnet18', pretrained=False))
        learn = detection_learner(detection_dls(anns, **kwargs), 'ssdlite', encoder='test_resnet', pretrained=False)
        assert all(a.bboxes is not None and a.scores is not None for a in train_one_batch(learn))
    print(f"vision_tasks {vision_tasks.__version__} trains, predicts and annotates from {package}")

if __name__ == '__main__': main()
