"What results of detection draw as true positives, false positives and missed objects is what the metrics count"
import numpy as np, pytest, torch
from vision_tasks.data.annotation import Annotation
from vision_tasks.metrics.matching import match_detections
from vision_tasks.show.objects import _box_overlaps, _mask_overlaps, _matched

def some(rng, n, grid):
    "Boxes on a coarse grid, so that overlaps tie"
    xy = rng.integers(0, 5, (n, 2))*grid
    return np.c_[xy, xy + rng.integers(1, 4, (n, 2))*grid].astype(np.float32)

@pytest.mark.parametrize('seed', range(20))
def test_results_match_as_the_metrics_do(seed):
    rng = np.random.default_rng(seed)
    n,k = rng.integers(0, 7),rng.integers(0, 9)
    boxes,dets = some(rng, n, 8),some(rng, k, 8)
    names,said = rng.choice(['a', 'b'], n).tolist(),rng.choice(['a', 'b'], k).tolist()
    ignore = np.zeros(n, bool)
    scores = np.sort(rng.random(k))[::-1].astype(np.float32)
    df = match_detections([Annotation('a.png', (64, 64), names, boxes, ignore=ignore)],
                          [Annotation('a.png', (64, 64), said, dets, scores=scores)], .5, ['a', 'b'])
    targets,preds = ([(torch.from_numpy(b), c) for b,c in zip(*o)] for o in ((boxes, names), (dets, said)))
    correct,missed = _matched(targets, preds, _box_overlaps(preds, targets))
    assert correct == df.hit.tolist() and {*missed} == {*range(n)} - {*df.target[df.hit]}

def test_a_detection_on_an_ignored_object_is_neither_correct_nor_false():
    targets = [(torch.tensor([0., 0, 40, 40]), 'ignored'), (torch.tensor([50., 50, 60, 60]), 'a')]
    preds = [(torch.tensor([5., 5, 15, 15]), 'b'), (torch.tensor([50., 50, 60, 60]), 'a'),
             (torch.tensor([20., 20, 30, 30]), 'a'), (torch.tensor([50., 0, 60, 10]), 'a')]
    assert _matched(targets, preds, _box_overlaps(preds, targets)) == ([None, True, None, False], [])

def test_masks_overlap_by_their_pixels():
    m = torch.zeros(2, 8, 8, dtype=torch.bool)
    m[0,:4],m[1,2:6] = True,True
    box = torch.tensor([0., 0, 8, 8])
    targets,preds = [(box, 'a', m[0].byte()), (box, 'ignored', m[0].byte())],[(box, 'a', m[1])]
    np.testing.assert_allclose(_mask_overlaps(preds, targets), [[1/3, 1/2]])
    assert _matched(targets, preds, _mask_overlaps(preds, targets)) == ([None], [0])
