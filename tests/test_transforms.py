"Objects are painted into pixels, and labels must follow the pixels through every geometry"
import pickle, random, tracemalloc
import numpy as np, pytest, torch
from fastai.vision.all import (PILImage, PILMask, PointScaler, Pipeline, TensorBBox, TensorImage, TensorMask,
                               TensorPoint, aug_transforms, fa_collate)
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from vision_tasks.data.blocks import pad_objects
from vision_tasks.data.items import BBoxLabels, FileImage, InstanceMasks, PixelBBox
from vision_tasks.data.laying import _fill_polygon, _turn
from vision_tasks.data.transforms import JointTransform, LightJitter
from vision_tasks.data.views import CropView, FitView, IoUView, JitterView, View, ZoomOutView

VIEWS = dict(crop=CropView(), squish=FitView(), pad=FitView('pad'), centre=FitView('crop'), jitter=JitterView((.5, 2.)),
             stretch=JitterView((.7, 1.4), 'squish'), iou=IoUView(), zoom=ZoomOutView(3., 1.))
SIZES = [(80,60), (60,80), (64,64), (101,37)]

def painted(n, size, seed=0):
    "A black image with `n` white rectangles that do not touch, each in a cell of a 3x2 grid, and all known of them"
    rng,(w,h) = np.random.default_rng(seed),size
    sem = np.zeros((h, w), np.uint8)
    cells,boxes = rng.permutation(6)[:n],[]
    masks = np.zeros((n, h, w), np.uint8)
    for i,c in enumerate(cells):
        cw,ch = w//3,h//2
        x0,y0 = c%3*cw,c//3*ch
        bw,bh = rng.integers(max(4, cw//2), cw-1),rng.integers(max(4, ch//2), ch-1)
        x,y = x0+rng.integers(1, cw-bw+1),y0+rng.integers(1, ch-bh+1)
        masks[i, y:y+bh, x:x+bw],sem[y:y+bh, x:x+bw] = 1,i+1
        boxes.append((x, y, x+bw, y+bh))
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    points = np.stack([(boxes[:,:2]+boxes[:,2:])/2, boxes[:,:2]+1.5, boxes[:,2:]-1.5], 1)
    im = PILImage.create(np.repeat((sem > 0)[...,None], 3, 2).astype(np.uint8)*255)
    return dict(im=im, boxes=PixelBBox.create(boxes), labels=BBoxLabels.create(np.arange(1, n+1)),
                masks=InstanceMasks.create(masks), sem=PILMask.create(sem),
                points=TensorPoint(torch.from_numpy(points)))

def item(d): return tuple(d.values())

def alone(d, i):
    "`d` with an image of nothing but its `i`-th object"
    return {**d, 'im': PILImage.create(np.repeat(d['masks'][i].numpy()[...,None], 3, 2)*255)}

def extent(m):
    "x1 y1 x2 y2 of the pixels that are set"
    ys,xs = torch.where(m)
    return torch.tensor([xs.min(), ys.min(), xs.max()+1, ys.max()+1]).float()

def iou(a, b): return ((a & b).sum()/(a | b).sum().clamp(min=1)).item()

def seen_in(im): return im.as_subclass(Tensor)[0] > 127

def check(run, d, size, tol=1.01):
    """Boxes, labels, masks, class mask and points of `run(d)` agree with what the image shows: each object is also
    sent alone through the same geometry, so that its pixels are known"""
    state = random.getstate(),torch.get_rng_state()
    def again(d): random.setstate(state[0]); torch.set_rng_state(state[1]); return run(d)
    seen = {i+1: seen_in(again(alone(d, i))[0]) for i in range(len(d['boxes']))}
    im,boxes,labels,masks,sem,points = again(d)
    w,h = size
    assert im.shape == (3, h, w) and im.dtype == torch.uint8 and type(im) is TensorImage
    assert masks.shape[1:] == (h, w) and sem.shape == (h, w) and boxes.img_size == (w, h)
    assert len(boxes) == len(labels) == len(masks) == len(points)
    for b,l,m,p in zip(*(o.as_subclass(Tensor) for o in (boxes, labels, masks.bool(), points))):
        l = l.item()
        s = seen[l]
        if s.sum() < 12: continue      # a sliver blends into the ground
        assert (b - extent(s)).abs().max() <= tol
        assert iou(s, m) > .75 and iou(s, sem.as_subclass(Tensor) == l) > .75
        for x,y in p[~p.isnan().any(-1)].tolist():
            x,y = min(int(x), w-1),min(int(y), h-1)
            assert s[max(0, y-1):y+2, max(0, x-1):x+2].any()
    for l,s in seen.items():           # no object of some size is in the image without a label
        if s.sum() > 40: assert l in labels.tolist()
    return im,boxes,labels,masks,sem,points

@pytest.mark.parametrize('size', [64, (96,64), (50,70)])
@pytest.mark.parametrize('view', VIEWS)
def test_labels_follow_pixels_through_every_view_and_flip(view, size):
    random.seed(0)
    tfm = JointTransform(size, train=VIEWS[view], vflip=.5, fill=(0, 0, 0), min_visible=.02)
    for i,img in enumerate(SIZES):
        for n in (0, 1, 6):
            for k in range(2): check(lambda d: tfm(item(d), split_idx=0), painted(n, img, seed=i+k), tfm.size)

@pytest.mark.parametrize('img', SIZES)
def test_labels_follow_pixels_through_turns_and_boxes_are_tight_around_their_masks(img):
    random.seed(1)
    tfm = JointTransform((96,64), train=FitView('pad'), rotate=40, p_rotate=1., fill=(0, 0, 0))
    for n in (0, 1, 6):
        for k in range(4): check(lambda d: tfm(item(d), split_idx=0), painted(n, img, seed=k), tfm.size, tol=1.6)

def test_a_turned_box_without_a_mask_holds_its_object():
    tfm = JointTransform(96, train=FitView(), rotate=40, p_rotate=1., flip=1., fill=(0, 0, 0))
    for k in range(8):
        d = alone(painted(1, (80,60), seed=k), 0); d.pop('masks')
        random.seed(k)
        im,boxes,*_ = tfm(item(d), split_idx=0)
        e,b = extent(seen_in(im)),boxes.as_subclass(Tensor)[0]
        assert (b[:2] <= e[:2]+1.01).all() and (b[2:] >= e[2:]-1.01).all()

@pytest.mark.parametrize('method', ['squish', 'pad', 'crop'])
@pytest.mark.parametrize('img', SIZES)
def test_the_valid_view_is_not_random_and_undo_brings_boxes_and_points_back(method, img):
    tfm = JointTransform((96,64), valid=method, fill=(0, 0, 0), min_visible=0)
    a,b = (tfm(item(painted(6, img)), split_idx=1) for _ in range(2))
    assert torch.equal(a[0], b[0])
    check(lambda d: tfm(item(d), split_idx=1), painted(6, img), tfm.size)
    view,box = tfm.view(img),torch.tensor([[img[0]*.4, img[1]*.4, img[0]*.6, img[1]*.7]])
    torch.testing.assert_close(view.undo_bboxes(view.bboxes(box)), box)
    torch.testing.assert_close(view.undo_points(view.points(box.view(-1, 2, 2))), box.view(-1, 2, 2))

def test_undo_inverts_flips_and_turns_of_points():
    view = View((5, 3, 60, 44), (2, 4, 90, 60), (96, 64), flip=True, vflip=False, angle=25.)
    p = torch.rand(7, 2, dtype=torch.float64)*40
    torch.testing.assert_close(view.undo_points(view.points(p)), p)

@pytest.mark.parametrize('exif', [1, 3, 6, 8])
@pytest.mark.parametrize('shape', [(1203, 905), (900, 1200)])
def test_a_large_jpeg_is_decoded_small_and_labels_still_follow(tmp_path, shape, exif):
    random.seed(3)
    back = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[exif]
    meta = Image.Exif(); meta[0x0112] = exif
    def run(d):
        im = Image.fromarray(np.asarray(d['im']))
        (im if back is None else im.transpose(back)).save(tmp_path/'a.jpg', quality=95, exif=meta)
        f = FileImage.create(tmp_path/'a.jpg')
        assert f.size == shape and not f.loaded
        out = tfm((f, *item(d)[1:]), split_idx=split)
        assert not f.loaded
        return out
    for tfm,split in ((JointTransform(64, train=CropView((.3, 1.)), fill=(0, 0, 0)), 0),
                      (JointTransform((96,64), valid='pad', fill=(0, 0, 0)), 1)):
        check(run, painted(6, shape), tfm.size)

def test_points_of_pairs_change_places_in_a_mirrored_image_only():
    p = TensorPoint(torch.tensor([[10., 20.], [50., 20.], [30., 40.]]))
    im = PILImage.create(np.zeros((60, 60, 3), np.uint8))
    tfm = JointTransform(60, train=FitView(), flip=1., flip_pairs=[(0, 1)])
    assert tfm((im, p), split_idx=0)[1].tolist() == [[10, 20], [50, 20], [30, 40]]
    tfm = JointTransform(60, train=FitView(), flip=0., vflip=1., flip_pairs=[(0, 1)])
    assert tfm((im, p), split_idx=0)[1].tolist() == [[50, 40], [10, 40], [30, 20]]
    tfm = JointTransform(60, train=FitView(), flip=1., vflip=1., flip_pairs=[(0, 1)])     # half a turn mirrors nothing
    assert tfm((im, p), split_idx=0)[1].tolist() == [[50, 40], [10, 40], [30, 20]]

def test_points_that_leave_the_image_are_nan_and_nan_stays_nan():
    p = TensorPoint(torch.tensor([[2., 2.], [30., 30.], [torch.nan, torch.nan]]))
    class Centre(FitView):
        def __call__(self, w, h, out, bboxes=None): return (10, 10, 50, 50),(0, 0, *out)
    im = PILImage.create(np.zeros((60, 60, 3), np.uint8))
    out = JointTransform(80, train=Centre(), flip=0.)((im, p), split_idx=0)[1]
    assert out[0].isnan().all() and out[1].tolist() == [40, 40] and out[2].isnan().all()

def test_objects_that_leave_take_labels_masks_and_points_along_while_labels_of_the_image_stay():
    from vision_tasks.data.items import LabelSet
    class Left(FitView):
        def __call__(self, w, h, out, bboxes=None): return (0, 0, w//2, h),(0, 0, *out)
    d = painted(0, (80, 60))
    boxes = PixelBBox.create([[2, 2, 20, 20], [45, 5, 70, 30], [36, 30, 76, 50]])
    masks = torch.zeros(3, 60, 80, dtype=torch.uint8)
    for m,(x1,y1,x2,y2) in zip(masks, boxes.int().tolist()): m[y1:y2, x1:x2] = 1
    tags = LabelSet(torch.tensor([1., 0, 1]))
    x = d['im'],boxes,BBoxLabels.create([1, 2, 3]),InstanceMasks(masks),TensorPoint(torch.rand(3, 2, 2)*60),tags
    out = JointTransform(60, train=Left(), flip=0., min_visible=.05)(x, split_idx=0)
    assert out[2].tolist() == [1, 3] and len(out[1]) == len(out[3]) == len(out[4]) == 2 and out[5] is tags
    out = JointTransform(60, train=Left(), flip=0., min_visible=.2)(x, split_idx=0)     # a tenth of the third is seen
    assert out[2].tolist() == [1]

def test_v2_transforms_join_in_and_do_not_leak_their_types():
    torch.manual_seed(0); random.seed(0)
    tfms = v2.Compose([v2.RandomHorizontalFlip(1.), v2.RandomAffine(0, translate=(.2, .2))])
    tfm = JointTransform(64, train=FitView(), flip=0., tfms=tfms, fill=(0, 0, 0))
    for k in range(6):
        out = check(lambda d: tfm(item(d), split_idx=0), painted(6, (80,60), seed=k), (64,64), tol=1.6)
        assert [type(o) for o in out] == [TensorImage, PixelBBox, BBoxLabels, InstanceMasks, TensorMask, TensorPoint]

def test_images_without_objects_and_images_alone_are_ordinary():
    tfm = JointTransform(32)
    out = tfm(item(painted(0, (80,60))), split_idx=0)
    assert out[1].shape == (0, 4) and out[3].shape == (0, 32, 32)
    assert tfm(painted(1, (80,60))['im'], split_idx=1).shape == (3, 32, 32)
    assert tfm((TensorImage(torch.zeros(3, 50, 40, dtype=torch.uint8)),), split_idx=0)[0].shape == (3, 32, 32)
    with pytest.raises(ValueError, match="needs an image in the item, got"): tfm((torch.zeros(3),), split_idx=0)

def test_it_works_before_point_scaler_on_stock_types():
    pipe = Pipeline([PointScaler(), JointTransform(64, train=FitView(), flip=0.)], split_idx=0)
    im,b = pipe((PILImage.create(np.zeros((50, 100, 3), np.uint8)), TensorBBox(torch.tensor([[0., 0, 50, 50]]))))
    assert im.shape == (3, 64, 64) and b.tolist() == [[-1, -1, 0, 1]] and type(b) is TensorBBox

def test_nonsense_sizes_and_methods_are_refused():
    with pytest.raises(ValueError, match=r"size: expected pixels: .* or \(width, height\)"): JointTransform((1, 2, 3))
    with pytest.raises(ValueError, match="'squish', 'pad', 'crop', got 'stretch'"): FitView('stretch')
    with pytest.raises(ValueError, match="max_lighting: expected a number from 0 to below 1, got 1.5"): LightJitter(1.5)

def test_it_pickles():
    tfm = JointTransform(32, rotate=10)
    assert repr(pickle.loads(pickle.dumps(tfm))) == repr(tfm)

# --- collate and the device

def batch_of(sizes, ns):
    tfms = [JointTransform(s, train=FitView(), flip=0., fill=(0, 0, 0)) for s in sizes]
    out = [t(item(painted(n, (80,60), seed=i)), split_idx=0)[:4] for i,(t,n) in enumerate(zip(tfms, ns))]
    return out,fa_collate(pad_objects(out))

def _near(b, x):
    "The pixels of `x` that are within 2 of box `b`: objects are further apart"
    h,w = x.shape[-2:]
    ys,xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing='ij')
    return (xs >= b[0]-2) & (xs < b[2]+2) & (ys >= b[1]-2) & (ys < b[3]+2)

@pytest.mark.parametrize('ns', [(0, 0), (0, 3), (1,), (6, 2, 0)])
def test_padding_makes_one_batch_and_loses_nothing(ns):
    sizes = [(64,48), (48,80), (33,33)][:len(ns)]
    items,(im,boxes,labels,masks) = batch_of(sizes, ns)
    b,n,h,w = len(ns),max(ns),max(s[1] for s in sizes),max(s[0] for s in sizes)
    assert im.shape == (b, 3, h, w) and boxes.shape == (b, n, 4) and labels.shape == (b, n)
    assert masks.shape == (b, n, h, w)
    assert type(boxes) is PixelBBox and type(labels) is BBoxLabels and type(masks) is InstanceMasks
    for i,(x,bb,l,m) in enumerate(items):
        k = len(l)
        assert torch.equal(im[i, :, :x.shape[1], :x.shape[2]].as_subclass(Tensor), x.as_subclass(Tensor))
        assert (labels[i, k:] == 0).all()
        assert torch.equal(boxes[i, :k].as_subclass(Tensor), bb.as_subclass(Tensor)) and (boxes[i, k:] == 0).all()
        assert torch.equal(masks[i, :k, :m.shape[1], :m.shape[2]].as_subclass(Tensor), m.as_subclass(Tensor))
        assert masks[i, k:].sum() == 0

def test_fastai_batch_transforms_move_boxes_and_masks_with_the_image():
    torch.manual_seed(0)
    items,batch = batch_of([(64,64)]*4, (1, 1, 1, 0))
    im,boxes,labels,masks = batch
    tfms = aug_transforms(max_rotate=0, max_warp=0, max_lighting=0, max_zoom=1.3, p_affine=1., pad_mode='zeros')
    pipe = Pipeline(tfms, split_idx=0)
    im2,boxes2,_,masks2 = pipe((TensorImage(im.float()/255), boxes, labels, masks))
    assert type(boxes2) is PixelBBox and type(masks2) is InstanceMasks and masks2.dtype == torch.uint8
    targets = boxes2.as_subclass(Tensor),labels.tolist(),masks2.as_subclass(Tensor)
    for x,bb,l,m in zip((im2*255).round().byte(), *targets):
        for b,i,mm in zip(bb, l, m):
            if i == 0: assert (b == 0).all(); continue
            s = seen_in(x) & _near(b, x)
            if s.sum() > 12: assert (b - extent(s)).abs().max() < 1.7 and iou(s, mm.bool()) > .7
    with pytest.raises(ValueError, match="pad_mode='zeros'"):
        Pipeline(aug_transforms(p_affine=1.), split_idx=0)((TensorImage(im.float()/255), boxes))

def test_light_jitter_changes_each_image_by_itself_and_only_in_training():
    torch.manual_seed(0)
    x = TensorImage(torch.rand(64, 3, 4, 4))
    assert torch.equal(LightJitter()((x.clone(),), split_idx=1)[0], x)
    y = LightJitter(.2, p=.5)((x.clone(),), split_idx=0)[0]
    changed = (y != x).flatten(1).any(1)
    assert 15 < changed.sum() < 50 and y.min() >= 0 and y.max() <= 1
    assert (y-x).abs().max() <= .1 + .5*(1/.8-1) + 1e-6
    flat = TensorImage(torch.full((1, 3, 2, 2), .5))
    assert abs(LightJitter(.2, 1.)((flat.clone(),), split_idx=0)[0].unique().item() - .5) <= .1

def test_scale_jitter_around_the_whole_image_keeps_the_mean_size_of_objects():
    "What a crop cannot, and what a net that tells sizes needs"
    random.seed(0)
    def mean(view, size=(90, 60)):
        box = torch.tensor([[30., 20., 60., 40.]])
        tfm = JointTransform(64, train=view, flip=0.)
        sides = [torch.log((b[:,2:]-b[:,:2])/64*3).mean() for b in (tfm.view(size, 0).bboxes(box) for _ in range(400))]
        return torch.stack(sides).mean().exp().item()
    assert mean(JitterView((.8, 1.25), 'squish')) == pytest.approx(1., abs=.03) and mean(CropView((.5, 1.))) > 1.1
    with pytest.raises(ValueError, match="method: expected .* 'squish', got 'crop'"): JitterView(method='crop')

@pytest.mark.parametrize('nearest', [False, True])
@pytest.mark.parametrize('hw', [(40, 60), (64, 64), (31, 17)])
def test_a_turn_equals_torchvisions_affine_inside_the_image(hw, nearest):
    torch.manual_seed(0)
    t = (torch.rand(1, 3, 9, 9)*255).to(torch.uint8)
    t = v2.functional.resize(t, list(hw))[0]
    view = View((0, 0, *hw[::-1]), (0, 0, *hw[::-1]), hw[::-1], angle=17.)
    mode = v2.InterpolationMode.NEAREST if nearest else v2.InterpolationMode.BILINEAR
    fill = [9., 99., 200.]
    want = v2.functional.affine(t, -17., [0, 0], 1., [0., 0.], fill=fill, interpolation=mode)
    got = _turn(t, view, (9, 99, 200), nearest)
    off = (got.int()-want.int()).abs()
    assert got.dtype == torch.uint8 and (off > 1).float().mean() < .12      # at the border
    assert (got[:,0,0] == torch.tensor([9, 99, 200])).all()

def test_training_without_chance_has_a_name_too():
    assert JointTransform(64, train='pad').train.method == 'pad'
    with pytest.raises(ValueError, match="train: expected .* 'crop', or a function"): JointTransform(64, train='fit')

# --- polygons

def _even_odd(p, w, rows):
    "Whether the centre of each pixel of the first `rows` is inside `p`: an odd number of edges is right of it"
    res,q = np.zeros((rows, w), bool),np.roll(p, -1, 0)
    for row in range(rows):
        on = (p[:,1] < row + .5) != (q[:,1] < row + .5)
        x = p[on,0] + (row + .5 - p[on,1])*((q[on,0] - p[on,0])/(q[on,1] - p[on,1]))
        res[row] = (x[:,None] > np.arange(w) + .5).sum(0)%2 == 1
    return res

def test_a_polygon_is_filled_by_the_even_odd_rule_in_bounded_memory():
    rng = np.random.default_rng(0)
    for n,reach in ((3, .5), (9, .5), (9, 4), (40, 40)):
        for _ in range(20):
            w,h = rng.integers(1, 40, 2).tolist()
            p,canvas = (rng.uniform(-reach, reach, (n, 2)) + .5)*[w, h],np.zeros((h, w), np.uint8)
            _fill_polygon(canvas, p)
            np.testing.assert_array_equal(canvas, _even_odd(p, w, h))
    p,canvas = rng.uniform(0, 224, (100_000, 2)),np.zeros((224, 224), np.uint8)
    tracemalloc.start()
    try:
        _fill_polygon(canvas, p)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally: tracemalloc.stop()
    np.testing.assert_array_equal(canvas[:3], _even_odd(p, 224, 3))
