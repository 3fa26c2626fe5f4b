"Mosaic and copy-paste: every object has its own colour, and boxes, masks and labels must be those of its pixels"
import pickle, random
import numpy as np, pytest, torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from fastai.callback.core import Callback
from fastai.vision.all import PILImage, PILMask, TensorPoint, set_seed
from vision_tasks.all import (Annotation, JitterView, JointTransform, detection_dls, detection_learner, instance_dls,
                              load_learner, multilabel_dls)
from vision_tasks.data.items import BBoxLabels, InstanceMasks, PixelBBox, RegionProposals
from vision_tasks.data.mixing import Mixture

SIZES = [(80, 60), (61, 97), (64, 64), (101, 37)]
CANVAS = [(64, 64), (97, 61), (51, 83)]
NONE = (0, 0, 0)

def scene(k, size, n=4, seed=0):
    """Item `k`, black: rectangles, one in each quarter, the first two at a border; labels 10 k + 1 to 10 k + n; the
    last object is ignored"""
    rng,(w,h) = np.random.default_rng(100*seed + k),size
    masks,boxes = np.zeros((n, h, w), np.uint8),[]
    for i in range(n):
        x0,y0,cw,ch = i%2*(w//2),i//2*(h//2),w//2 - 2,h//2 - 2
        bw,bh = rng.integers(cw//2, cw),rng.integers(ch//2, ch)
        x,y = (x0 + int(rng.integers(0, cw - bw + 1)),y0 + int(rng.integers(0, ch - bh + 1))) if i > 1 else (x0, y0)
        masks[i, y:y+bh, x:x+bw] = 1
        boxes.append((x, y, x+bw, y+bh))
    labels = 10*k + np.arange(1, n + 1)
    labels[-1:] = -1 - k
    return (PILImage.create(np.zeros((h, w, 3), np.uint8)), PixelBBox.create(np.array(boxes).reshape(-1, 4),
            img_size=size), BBoxLabels.create(labels), InstanceMasks.create(masks))

def exact(**kw): return JointTransform(flip=.5, vflip=.5, fill=NONE, **kw)

def pixels_of_each(tfm, items, masks, seed):
    "label -> the pixels of that object in the result: it alone is painted white, and sent through the same geometry"
    res = {}
    for k,(item,m) in enumerate(zip(items, masks)):
        for i,l in enumerate(item[2].tolist()):
            im = PILImage.create(np.repeat(m[i].numpy()[...,None], 3, 2)*255)
            changed = [(im, *o[1:]) if j == k else o for j,o in enumerate(items)]
            random.seed(seed)
            res[l] = tfm(Mixture(changed[0], changed[1:]), split_idx=0)[0].as_subclass(Tensor)[0] > 127
    return res

def extent(m):
    ys,xs = torch.where(m)
    return torch.tensor([xs.min(), ys.min(), xs.max()+1, ys.max()+1]).float()

def wide(m):
    "Whether the pixels are of more than a strip: objects below a pixel are dropped"
    return m.any() and (extent(m)[2:] - extent(m)[:2]).min() > 1

def near(a, b): return (a ^ b).sum() <= a.any(0).sum() + a.any(1).sum() + 2   # half a pixel along each edge

@pytest.mark.parametrize('size', CANVAS)
@pytest.mark.parametrize('with_masks', [True, False])
def test_boxes_labels_and_masks_of_a_mosaic_are_those_of_the_painted_pixels(size, with_masks):
    tfm,found,n = exact(size=size, mosaic=1., mosaic_scale=(.5, 1.2), min_visible=0.),0,4 if with_masks else 3
    for seed in range(15):
        whole = [scene(k, SIZES[(k + seed)%4], 0 if k == 3 else 4, seed) for k in range(4)]
        items,masks = [o[:n] for o in whole],[o[3] for o in whole]
        seen = pixels_of_each(tfm, items, masks, seed)
        random.seed(seed)
        im,boxes,labels,*m = tfm(Mixture(items[0], items[1:]), split_idx=0)
        assert im.shape == (3, *size[::-1]) and boxes.img_size == size and len(boxes) == len(labels)
        for j,(b,l) in enumerate(zip(boxes.as_subclass(Tensor), labels.tolist())):
            if seen[l].sum() < 12: continue      # a sliver blends into the ground
            assert (extent(seen[l]) - b).abs().max() <= 1.01
            if with_masks: assert near(seen[l], m[0][j].as_subclass(Tensor).bool())
            found += 1
        assert all(l in labels.tolist() for l,p in seen.items() if wide(p))
    assert found > 70

def test_a_mosaic_covers_the_canvas_and_an_image_alone_is_as_without():
    tfm = exact(size=(64, 48), mosaic=1., mosaic_scale=(4., 4.))
    white = PILImage.create(np.full((40, 40, 3), 255, np.uint8)),PixelBBox.create([], (40, 40)),BBoxLabels.create([])
    for seed in range(20):
        random.seed(seed)
        assert (tfm(Mixture(white, [white]*3), split_idx=0)[0] == 255).all()
    plain,item = JointTransform(64, fill=NONE),scene(0, (80, 60))
    for seed in range(5):
        random.seed(seed); a = JointTransform(64, fill=NONE, mosaic=.5)(Mixture(item, []), split_idx=0)
        random.seed(seed); b = plain(item, split_idx=0)
        assert all(torch.equal(o.as_subclass(Tensor), p.as_subclass(Tensor)) for o,p in zip(a, b))

@pytest.mark.parametrize('size', CANVAS)
@pytest.mark.parametrize('scale', [(.1, 2.), (.6, 1.4), (1., 1.)])
def test_pasted_objects_cover_others_whose_masks_and_boxes_lose_these_pixels(size, scale):
    tfm,pasted,covered = exact(size=size, train=JitterView(scale, 'pad'), copy_paste=1., min_visible=0.),0,0
    for seed in range(25):
        items = [scene(k, SIZES[(seed + k)%4], seed=seed) for k in (0, 1)]
        seen = pixels_of_each(tfm, items, [o[3] for o in items], seed)
        random.seed(seed)
        im,boxes,labels,masks = tfm(Mixture(items[0], items[1:]), split_idx=0)
        masks = masks.as_subclass(Tensor).bool()
        assert len(boxes) == len(labels) == len(masks) and (masks.sum(0) <= 1).all()
        assert not seen[-2].any() and -2 not in labels.tolist()       # the ignored object is not pasted
        for b,l,m in zip(boxes.as_subclass(Tensor), labels.tolist(), masks):
            if seen[l].sum() < 12: continue
            if l > 0: assert (extent(m) - b).abs().max() <= 1.01 and (extent(seen[l]) - b).abs().max() <= 1.01
            assert near(seen[l], m)
            pasted += l > 10
        assert all(l in labels.tolist() for l,p in seen.items() if wide(p))
        random.seed(seed)
        before = tfm(Mixture(items[0], [whole([], [])]), split_idx=0)     # nothing to paste
        covered += masks[[l < 10 and l != -2 for l in labels.tolist()]].sum() < before[3].as_subclass(Tensor).sum()
    assert pasted > 10 and covered > 10

def whole(boxes, labels, size=(60, 60)):
    "An item with rectangles as masks"
    masks = np.zeros((len(boxes), *size[::-1]), np.uint8)
    for m,(x1,y1,x2,y2) in zip(masks, boxes): m[y1:y2, x1:x2] = 1
    return (PILImage.create(np.zeros((*size[::-1], 3), np.uint8)), PixelBBox.create(boxes, img_size=size),
            BBoxLabels.create(labels), InstanceMasks.create(masks))

def paste(a, b, **kw):
    return JointTransform(60, train='squish', flip=0., copy_paste=1., **kw)(Mixture(a, [b]), split_idx=0)

def test_a_covered_object_is_dropped_one_half_covered_shrinks_an_ignored_one_stays():
    a = whole([(10, 10, 20, 20), (0, 10, 20, 30), (12, 12, 18, 18), (40, 40, 50, 50)], [1, 2, -1, 3])
    b = whole([(10, 5, 30, 35)], [4])
    _,boxes,labels,masks = paste(a, b)
    assert labels.tolist() == [2, -1, 3, 4]
    assert boxes.tolist() == [[0, 10, 10, 30], [12, 12, 18, 18], [40, 40, 50, 50], [10, 5, 30, 35]]
    assert masks.as_subclass(Tensor).flatten(1).sum(1).tolist() == [200, 0, 100, 600]

def test_an_object_of_which_less_than_min_visible_remains_is_dropped():
    a,b = whole([(0, 10, 20, 30)], [1]),whole([(2, 0, 30, 40)], [2])
    assert paste(a, b, min_visible=.05)[2].tolist() == [1, 2] and paste(a, b, min_visible=.2)[2].tolist() == [2]

def test_an_image_without_objects_gets_some_and_gives_none():
    empty,b = whole([], []),whole([(10, 5, 30, 35)], [4])
    assert paste(empty, b)[2].tolist() == [4] and paste(b, empty)[2].tolist() == [4]
    assert paste(b, whole([(0, 0, 60, 60)], [-1]))[1].tolist() == [[10, 5, 30, 35]]

def test_proposals_go_with_both_images():
    more = lambda item, p: (item[0], RegionProposals.create(p, img_size=(60, 60)), *item[1:])
    a,b = more(whole([(0, 0, 9, 9)], [1]), [(1, 1, 5, 5)]),more(whole([(20, 20, 40, 40)], [2]), [(20, 20, 30, 30)])
    _,p,boxes,labels,_ = paste(a, b)
    assert p.tolist() == [[1, 1, 5, 5], [20, 20, 30, 30]] and labels.tolist() == [1, 2] and len(boxes) == 2

def test_points_class_masks_and_items_of_other_tasks_are_refused():
    item = whole([(0, 0, 9, 9)], [1])
    for more in (TensorPoint(torch.zeros(1, 2)), PILMask.create(np.zeros((60, 60), np.uint8))):
        with pytest.raises(ValueError, match="has a (TensorPoint|PILMask), which they cannot mix"):
            paste((*item, more), (*item, more))
    with pytest.raises(ValueError, match="copy_paste cuts objects out by their masks, but the items have none"):
        paste(item[:3], item[:3])
    with pytest.raises(ValueError, match="only the DataLoaders of detection_dls and instance_dls"):
        JointTransform(60, mosaic=.5)(item, split_idx=0)
    JointTransform(60, mosaic=.5)(item, split_idx=1)     # validation is as ever
    with pytest.raises(ValueError, match="at least 4x4"): JointTransform(3, mosaic=.5)

# --- from the DataLoaders on

@pytest.fixture
def anns(tmp_path):
    "8 images for training, all dark, and 4 for validation, all bright, each with two objects and masks"
    res = []
    for i in range(12):
        im = np.full((50, 70, 3), 200 if i >= 8 else 40, np.uint8)
        boxes = np.array([(5, 5, 25, 25), (35, 10, 65, 45)], np.float32)
        for x1,y1,x2,y2 in boxes.astype(int): im[y1:y2, x1:x2] = (230, i, 230) if i >= 8 else (90, i*10, 30)
        Image.fromarray(im).save(tmp_path/f'{i}.png')
        masks = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1,y1,x2,y2 in boxes.tolist()]
        res.append(Annotation(tmp_path/f'{i}.png', (70, 50), ['a', 'b'], boxes, masks=masks,
                              split='valid' if i >= 8 else 'train'))
    return res

def batches(dls):
    return [[o.as_subclass(Tensor).clone() for o in b] for b in dls.train]

@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('make,kw', [(detection_dls, dict(mosaic=1.)), (instance_dls, dict(copy_paste=1.)),
                                     (instance_dls, dict(mosaic=.5, copy_paste=.5))])
def test_partners_are_images_of_the_training_set_and_runs_with_a_seed_repeat(anns, make, kw, workers):
    def run():
        set_seed(3)
        return batches(make(anns, bs=4, size=64, num_workers=workers, batch_tfms=[], device='cpu', **kw))
    a,b = run(),run()
    assert all(torch.equal(o, p) for x,y in zip(a, b) for o,p in zip(x, y))
    assert all(x[0].amax() < 130/255 for x in a)     # none of the validation set's bright pixels
    set_seed(4)
    assert not torch.equal(a[0][0], batches(make(anns, bs=4, size=64, num_workers=workers, batch_tfms=[], **kw))[0][0])

def test_the_validation_set_is_never_mixed(anns):
    valid = lambda **kw: next(iter(detection_dls(anns, bs=4, size=64, num_workers=0, device='cpu', **kw).valid))
    assert all(torch.equal(a.as_subclass(Tensor), b.as_subclass(Tensor)) for a,b in zip(valid(mosaic=1.), valid()))

def test_item_tfms_replace_mosaic_of_the_block_with_an_error_that_says_how(anns):
    with pytest.raises(ValueError, match=r"item_tfms=JointTransform\(size, mosaic=...\)"):
        detection_dls(anns, size=64, mosaic=.5, item_tfms=JointTransform(64))
    with pytest.raises(ValueError, match="only the DataLoaders of detection_dls"):
        multilabel_dls(anns, size=64, num_workers=0, bs=4, item_tfms=JointTransform(64, mosaic=.5)).train.one_batch()

class Sees(Callback):
    "How many objects a training image has in each epoch: two, or in a mosaic of copies of one image more"
    def before_train(self): self.now = []
    def before_batch(self):
        if self.training: self.now += (self.yb[1] != 0).sum(1).tolist()
    def after_train(self): self.seen.append(max(self.now))

def learner(anns, workers=0, persistent=False, until=.5):
    tfms = JointTransform(64, train='squish', mosaic=1., mosaic_scale=(.3, .4), mosaic_until=until, min_visible=0.)
    dls = detection_dls(anns, bs=4, size=64, num_workers=workers, device='cpu', item_tfms=tfms)
    if persistent: dls.train.fake_l.persistent_workers = True
    return detection_learner(dls, 'ssdlite', encoder='mobilenet_v2', pretrained=False, metrics=[])

@pytest.mark.train
@pytest.mark.parametrize('workers,persistent', [(0, False), (2, False), (2, True)])
def test_mosaic_is_off_in_the_last_epochs_of_fine_tune(anns, workers, persistent):
    learn,cb = learner(anns, workers, persistent),Sees()
    cb.seen = []
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(3, freeze_epochs=1, cbs=cb)
    assert [o > 2 for o in cb.seen] == [True, True, False, False]
    assert learn.dls.train.after_item.fs[0].mosaic_on        # the next training begins anew

@pytest.mark.train
def test_a_training_that_goes_on_ends_mosaic_in_the_same_epoch_and_an_export_holds_no_images(anns, tmp_path):
    learn,cb = learner(anns),Sees()
    cb.seen = []
    with learn.no_bar(), learn.no_logging(): learn.fit(4, 1e-4, start_epoch=1, cbs=cb)
    assert [o > 2 for o in cb.seen] == [True, False, False]
    learn.path = tmp_path
    learn.export('a.pkl')
    data = (tmp_path/'a.pkl').read_bytes()
    assert b'0.png' not in data and b'7.png' not in data
    again = load_learner(tmp_path/'a.pkl')
    assert not len(again.dls.train.dataset) and len(again.annotate([anns[0].path])) == 1

# --- v2's automatic augmentation beside boxes

COLOURS = [v2.TrivialAugmentWide(), v2.RandAugment(magnitude=20), v2.AutoAugment(),
           v2.AutoAugment(v2.AutoAugmentPolicy.SVHN), v2.AugMix(), v2.AugMix(all_ops=False),
           v2.ColorJitter(.5, .5, .5, .2), v2.RandomErasing(1.), v2.Compose([v2.TrivialAugmentWide()]),
           v2.RandomApply([v2.RandAugment()], 1.), v2.RandomChoice([v2.AugMix(), v2.TrivialAugmentWide()]),
           v2.RandomApply(torch.nn.ModuleList([v2.TrivialAugmentWide()]), 1.)]

@pytest.mark.filterwarnings('ignore:RandomErasing')
@pytest.mark.parametrize('tfms', COLOURS, ids=lambda o: repr(o).replace('\n', '')[:60])
def test_automatic_augmentation_beside_boxes_moves_nothing(tfms):
    tfm,item,changed = JointTransform(60, train='squish', flip=0., tfms=tfms),whole([(10, 10, 30, 40)], [1]),0
    grey = np.full((60, 60, 3), 60, np.uint8)
    grey[10:40, 10:30] = 160
    for seed in range(30):
        torch.manual_seed(seed)
        im,boxes,labels,masks = tfm((PILImage.create(grey), *item[1:]), split_idx=0)
        assert boxes.tolist() == [[10, 10, 30, 40]] and labels.tolist() == [1]
        assert torch.equal(masks.as_subclass(Tensor), item[3].as_subclass(Tensor))
        if not isinstance(tfms, v2.RandomErasing):     # the object's edges are where they were
            m,t = masks[0].bool().as_subclass(Tensor),im.as_subclass(Tensor).float().mean(0)
            inner = torch.nn.functional.max_pool2d(1 - m[None].float(), 5, 1, 2)[0] == 0
            outer = torch.nn.functional.max_pool2d(m[None].float(), 5, 1, 2)[0] == 0
            assert t[inner].std() < 3 and t[outer].std() < 3
        changed += not torch.equal(im.as_subclass(Tensor)[0], torch.from_numpy(grey[...,0]))
    assert changed > 5

@pytest.mark.filterwarnings('ignore')
def test_an_image_alone_is_augmented_as_v2_does_it():
    im = PILImage.create(np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8))
    for seed in range(20):
        torch.manual_seed(seed)
        a = JointTransform(60, 'squish', flip=0., tfms=v2.TrivialAugmentWide())(im, split_idx=0)
        torch.manual_seed(seed)
        b = v2.TrivialAugmentWide()(v2.functional.pil_to_tensor(im))
        assert torch.equal(a.as_subclass(Tensor), b)

def test_geometry_alone_and_another_size_are_refused():
    class Moves(v2.TrivialAugmentWide):
        _AUGMENTATION_SPACE = {k: o for k,o in v2.TrivialAugmentWide._AUGMENTATION_SPACE.items() if k == 'Rotate'}
    with pytest.raises(ValueError, match="has geometric operations only"): JointTransform(60, tfms=Moves())
    with pytest.raises(ValueError, match="tfms change the image from 60x60 to 30x30 pixels"):
        JointTransform(60, tfms=v2.Resize((30, 30)))(whole([(0, 0, 9, 9)], [1]), split_idx=0)

def test_tfms_pickle_and_show_what_they_are():
    tfm = JointTransform(60, tfms=v2.Compose([v2.TrivialAugmentWide()]), mosaic=.5)
    again = pickle.loads(pickle.dumps(tfm))
    assert 'TrivialAugmentWide' in repr(again) and 'mosaic=0.5' in repr(again)
