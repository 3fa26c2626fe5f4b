import pickle, tracemalloc
from dataclasses import replace
import numpy as np, pytest, torch
from scipy import ndimage
from torch.nn.functional import grid_sample
from vision_tasks.data.annotation import Annotation
from vision_tasks.ops import polygons
from vision_tasks.ops.masks import decode_mask, encode_instances, encode_rle, mask_bbox, mask_polygons, paste_rle
from vision_tasks.ops.polygons import as_float32, exact_numbers, join_polygons
from vision_tasks.ops.rle import rle_columns, rle_counts

TRIANGLE = [1., 1., 8., 1., 1., 8.]

def _coco(): return pytest.importorskip('pycocotools.mask')

def _polygons(rng, w, h):
    "One to three polygons: any, partly outside, on whole pixels, or tiny; one in five with a point twice in a row"
    polygons = []
    for _ in range(rng.integers(1, 4)):
        m = rng.integers(3, 12)
        p = [rng.uniform(0, 1, (m, 2))*[w, h], rng.uniform(-.5, 1.5, (m, 2))*[w, h],
             rng.integers(-3, w + 3, (m, 2)).astype(float),
             rng.uniform(0, 2, (m, 2)) + rng.uniform(0, w)][rng.integers(4)]
        if rng.random() < .2: p[1] = p[0]
        polygons.append(p.ravel().tolist())
    return polygons

@pytest.mark.parametrize('seed', range(8))
def test_polygons_fill_the_pixels_that_coco_fills(seed):
    coco,rng,full = _coco(),np.random.default_rng(seed),0
    for _ in range(150):
        w,h = rng.integers(1, 70, 2).tolist()
        polygons = _polygons(rng, w, h)
        theirs = coco.decode(coco.merge(coco.frPyObjects(polygons, h, w))).astype(bool)
        ours = decode_mask(polygons, (w, h))
        assert ours.shape == (h, w) and ours.dtype == bool
        np.testing.assert_array_equal(ours, theirs, err_msg=f"{(w, h)} {polygons}")
        full += ours.any()
    assert full > 100

@pytest.mark.parametrize('some', [polygons._SOME, 40])
def test_polygons_far_outside_fill_what_coco_fills_inside(some, monkeypatch):
    monkeypatch.setattr(polygons, '_SOME', some)   # crossings at a time: many parts give the same pixels
    coco,rng,full = _coco(),np.random.default_rng(0),0
    for i in range(300):
        w,h = rng.integers(1, 90, 2).tolist()
        p = (rng.uniform(-1, 1, (rng.integers(3, 14), 2))*10**rng.uniform(0, 3) + .5)*[w, h]
        if i%3 == 0: p = np.round(p*5)/5   # on COCO's grid
        theirs = coco.decode(coco.frPyObjects([p.ravel().tolist()], h, w))[...,0].astype(bool)
        np.testing.assert_array_equal(decode_mask([p], (w, h)), theirs, err_msg=f"{(w, h)} {p.tolist()}")
        full += 0 < theirs.sum() < w*h
    assert full > 100
    p = rng.uniform(-1e5, 1e5, (20, 2))
    theirs = coco.decode(coco.frPyObjects([p.ravel().tolist()], 48, 64))[...,0].astype(bool)
    np.testing.assert_array_equal(decode_mask([p], (64, 48)), theirs)

@pytest.mark.parametrize('n, reach', [(10, 5e5), (100_000, 100), (1_000_000, 20)])
def test_memory_for_a_polygon_is_bounded_however_large_it_is_and_however_many_points_it_has(n, reach):
    p = np.random.default_rng(0).uniform(-reach, reach, 2*n)
    tracemalloc.start()
    try:
        decode_mask([p], (64, 48))
        assert tracemalloc.get_traced_memory()[1] < 300e6
    finally: tracemalloc.stop()

OUTLINES = dict(border=[0, 0, 10, 0, 10, 6, 0, 6], around=[-20, -20, 40, -20, 40, 40, -20, 40], point=[3]*6,
                line=[2, 2, 9, 2, 2, 2], outside=[30, 30, 40, 30, 40, 40], bow=[0, 0, 10, 6, 10, 0, 0, 6],
                halves=[2.5, 1.5, 2.5, 4.5, 7.5, 4.5, 7.5, 1.5])

@pytest.mark.parametrize('p', OUTLINES.values(), ids=OUTLINES)
def test_polygons_at_the_edges_fill_what_coco_fills(p):
    coco = _coco()
    theirs = coco.decode(coco.frPyObjects([p], 6, 10))[...,0].astype(bool)
    np.testing.assert_array_equal(decode_mask([p], (10, 6)), theirs)

def test_a_rectangle_on_whole_pixels_fills_exactly_its_pixels():
    expected = np.zeros((9, 12), bool)
    expected[2:7,3:11] = True
    np.testing.assert_array_equal(decode_mask([[3, 2, 11, 2, 11, 7, 3, 7]], (12, 9)), expected)

def test_a_polygon_may_be_flat_or_in_points_and_list_or_array():
    flat,ref = np.array(TRIANGLE),decode_mask([TRIANGLE], (10, 10))
    assert ref.any()
    for p in (flat, flat.reshape(-1, 2), flat.reshape(-1, 2).tolist(), tuple(TRIANGLE), flat.astype(np.float32)):
        np.testing.assert_array_equal(decode_mask([p], (10, 10)), ref)

def test_several_polygons_are_their_union_and_none_is_an_empty_mask():
    a,b = [0, 0, 6, 0, 6, 6, 0, 6],[3, 3, 9, 3, 9, 9, 3, 9]
    both,a,b = (decode_mask(o, (10, 10)) for o in ([a, b], [a], [b]))
    np.testing.assert_array_equal(both, a | b)
    assert both.sum() == 36 + 36 - 9
    assert decode_mask([], (5, 4)).shape == (4, 5) and not decode_mask([], (5, 4)).any()

@pytest.mark.parametrize('density', [0., .02, .5, .98, 1.])
def test_encode_rle_writes_what_coco_writes_and_decode_mask_reads_it(density):
    coco,rng = _coco(),np.random.default_rng(0)
    for h,w in [(1, 1), (1, 9), (9, 1), (37, 53), (300, 200)]:
        m = rng.random((h, w)) < density
        ours,theirs = encode_rle(m),coco.encode(np.asfortranarray(m.astype(np.uint8)))
        assert ours == dict(size=theirs['size'], counts=theirs['counts'].decode())
        for rle in (ours, theirs, dict(ours, counts=rle_counts(ours).tolist())):
            np.testing.assert_array_equal(decode_mask(rle, (w, h)), m)

def test_long_runs_and_long_steps_between_them_are_written_as_coco_writes_them():
    coco,flat = _coco(),np.zeros(1500*1500, bool)
    for a,b in ((3, 5), (40, 41), (700_000, 1_900_000), (1_900_002, 1_900_003)): flat[a:b] = True
    m = flat.reshape(1500, 1500).T   # column by column
    assert rle_counts(encode_rle(m)).tolist() == [3, 2, 35, 1, 699_959, 1_200_000, 2, 1, 349_997]
    ours = encode_rle(m)
    assert ours['counts'] == coco.encode(np.asfortranarray(m.astype(np.uint8)))['counts'].decode()
    np.testing.assert_array_equal(decode_mask(ours, (1500, 1500)), m)

def test_uncompressed_runs_are_read_as_coco_reads_them():
    coco,rle = _coco(),dict(size=[3, 4], counts=[0, 2, 5, 0, 1, 4])
    np.testing.assert_array_equal(decode_mask(rle, (4, 3)), coco.decode(coco.frPyObjects(rle, 3, 4)).astype(bool))
    np.testing.assert_array_equal(rle_counts(rle), rle['counts'])

def _runs(counts):
    "The runs in exact whole numbers, `None` where they are not well formed: maskApi.c's rleFrString, number by number"
    if isinstance(counts, str): counts = counts.encode('utf-8', 'surrogatepass')
    if not isinstance(counts, bytes):
        return counts if counts and all(type(o) is int and 0 <= o < 2**64 for o in counts) else None
    runs,i = [],0
    while i < len(counts):
        x,k,more = 0,0,True
        while more:
            if i == len(counts) or not 48 <= counts[i] < 112 or k == 7: return None
            c = counts[i] - 48
            x,more,k,i = x | (c & 31) << 5*k,c & 32,k + 1,i + 1
        if c & 16: x -= 1 << 5*k
        runs.append(x + runs[-2] if len(runs) > 2 else x)
    return runs if runs and min(runs) >= 0 else None

def _spoil(rng, size, runs):
    "An RLE dict near a good one: as it is, or with one of the faults that files and attackers have"
    h,w = size
    runs,i = list(runs),rng.integers(len(runs))
    big = int(rng.choice([2**31 - 1, 2**31, 2**32, 2**33]))*int(rng.choice([1, 2**30])) + int(rng.integers(-1, 2))
    kind = rng.integers(12)
    if   kind == 1: runs[i] -= int(rng.integers(1, 2*h*w))                    # below zero, or too few
    elif kind == 2: runs[i] += big
    elif kind == 3: runs[i:i] = [2**63 - 1, 2**63 - 1, 2]                     # the sum wraps round to itself
    elif kind == 4: runs[i:i] = [big, -big]
    elif kind == 5: runs[i:i] = [2**64 - big, big]
    elif kind == 6: runs[i:i] = [0, 0]                                        # still good
    elif kind == 7: del runs[i]
    elif kind == 8:
        sizes = [w, h],[-h, -w],[0, h*w],[h + .5, w],[big, big],[h, w, 1],[h],f"{h}{w}"
        size = sizes[rng.integers(len(sizes))]
    coded = max(map(abs, runs), default=0) < 2**33 and rng.random() < .6
    if not coded: return dict(size=size, counts=runs)
    d,text = [x - runs[j-2] if j > 2 else x for j,x in enumerate(runs)],''
    for x in d:
        more = True
        while more:
            c,x = x & 31,x >> 5
            more = x != (-1 if c & 16 else 0)
            text += chr(c + 32*more + 48)
    at = int(rng.integers(len(text) + 1))
    if   kind == 9:  text = text[:at]
    elif kind == 10: text = text[:at] + chr(rng.choice([0, 47, 48, 79, 111, 112, 0xdc80, 0xe9, 0x20ac])) + text[at:]
    elif kind == 11: text = text[:at] + 'o'*int(rng.integers(1, 9)) + text[at:]
    return dict(size=size, counts=text if rng.random() < .5 else text.encode('utf-8', 'surrogatepass'))

@pytest.mark.parametrize('seed', range(4))
def test_spoilt_run_lengths_are_read_exactly_or_refused(seed):
    rng,read,refused = np.random.default_rng(seed),0,0
    for _ in range(1500):
        h,w = rng.integers(1, 30, 2).tolist()
        good = rle_counts(encode_rle(rng.random((h, w)) < rng.random())).tolist()
        rle = _spoil(rng, [h, w], good)
        runs = _runs(rle['counts'])
        if runs is None or rle['size'] != [h, w] or sum(runs) != h*w:
            refused += 1
            for f in (lambda: decode_mask(rle, (w, h)), lambda: rle_columns(rle, (w, h))):
                with pytest.raises(ValueError, match='^RLE: expected .*, got '): f()
        else:
            read += 1
            flat = [i%2 for i,n in enumerate(runs) for _ in range(n)]
            np.testing.assert_array_equal(decode_mask(rle, (w, h)), np.reshape(flat, (w, h)).T > 0)
    assert read > 300 and refused > 300

@pytest.mark.parametrize('counts', [[2**63 - 1, 2**63 - 1, 2, 48*64], [2**62]*4 + [48*64], [2**50]*2**14 + [48*64],
                                    np.array([2**64 - 1, 1, 48*64], np.uint64),
                                    np.array([2**63, 2**63, 48*64], np.uint64)])
def test_runs_whose_sum_wraps_round_to_the_pixels_of_the_image_are_refused(counts):
    assert sum(map(int, counts))%2**64 == 48*64
    with pytest.raises(ValueError, match=r"RLE: expected counts whose sum is h\*w = 3072 .* got \d{14,}; is the size"):
        decode_mask(dict(size=[48, 64], counts=counts), (64, 48))

def test_runs_go_down_the_columns_and_begin_with_zeros():
    m = np.array([[0, 1, 1], [0, 1, 0]], bool)
    assert rle_counts(encode_rle(m)).tolist() == [2, 3, 1]
    assert rle_counts(encode_rle(~m)).tolist() == [0, 2, 3, 1]

def test_a_bool_array_is_its_own_mask():
    m = np.eye(4, 6, dtype=bool)
    assert decode_mask(m, (6, 4)) is m

def test_mask_bbox_is_tight_with_exclusive_far_edges_and_zero_for_an_empty_mask():
    coco,rng = _coco(),np.random.default_rng(0)
    m = np.zeros((9, 12), bool)
    assert mask_bbox(m).tolist() == [0, 0, 0, 0] and mask_bbox(m).dtype == np.float32
    m[2:5,7] = True
    assert mask_bbox(m).tolist() == [7, 2, 8, 5]
    for _ in range(20):   # COCO's own box of a mask is x y w h
        m = rng.random((20, 30)) < .01
        m[rng.integers(20),rng.integers(30)] = True
        x,y,w,h = coco.toBbox(coco.encode(np.asfortranarray(m.astype(np.uint8))))
        assert mask_bbox(m).tolist() == [x, y, x + w, y + h]

@pytest.mark.parametrize('mask, message', [
    ([[1, 1, 5, 5]],                        r"polygon 0: expected three or more points .* got \[1, 1, 5, 5\]; "
                                            "drop the polygon"),
    ([TRIANGLE, TRIANGLE[:5]],              r"polygon 1: expected three or more points"),
    (TRIANGLE,                              "polygon 0: expected three or more points .* got 1.0; "
                                            r".* write \[polygon\]"),
    ([['a', 'b']],                          r"polygon 0: expected three or more points .* got \['a', 'b'\]"),
    ([[1, 1, 5, float('nan'), 5, 5]],       r"polygon 0: expected finite pixels below a million, got .*nan"),
    ([[1, 1, 1e12, 1, 5, 5]],               r"polygon 0: expected finite pixels below a million"),
    (np.zeros((7, 10), bool),               r"expected \(h, w\) = \(10, 7\) as the image's, got \(7, 10\)"),
    (np.zeros((10, 7), np.uint8),           r"expected a list of polygons, an RLE dict or an \(h, w\) bool array, "
                                            "got .*type uint8; .*mask > 0"),
    ('mask.png',                            r"expected a list of polygons, .* got 'mask.png'"),
    (dict(size=[7, 10], counts=[70]),       r"RLE: expected size \[h, w\] = \[10, 7\] as the image's, got \[7, 10\]"),
    (dict(size=[10, 7], counts=[30, 39]),   r"RLE: expected counts whose sum is h\*w = 70 .* got 69"),
    (dict(size=[10, 7], counts=[80, -10]),  "RLE: expected counts that are whole numbers, 0 or more, "
                                            r".* got \[80, -10\]"),
    (dict(size=[10, 7], counts=[30.5, 39.5]), r"RLE: expected counts that are whole numbers"),
    (dict(size=[10, 7], counts='V'),        "RLE: expected counts in COCO's characters, "
                                            r".* got 'V'; is the string cut\?"),
    (dict(size=[10, 7], counts='~~'),       r"RLE: expected counts in COCO's characters"),
    (dict(size=[10, 7], counts=b''),        r"RLE: expected counts in COCO's characters"),
    (dict(size=[10, 7], counts=[[30], [1, 39]]), r"RLE: expected counts that are whole numbers"),
    (dict(size=[10.5, 7], counts=[70]),     r"RLE: expected size \[h, w\] as two positive whole .* \[10.5, 7\]"),
    (dict(size=['10', '7'], counts=[70]),   r"RLE: expected size \[h, w\] as two positive whole numbers"),
    (dict(size=[0, 7], counts=[0]),         r"RLE: expected size \[h, w\] as two positive whole numbers"),
    (dict(counts='V2'),                     r"RLE: expected dict\(size=\[h, w\], counts=...\), got {'counts': 'V2'}"),
    (dict(size=[10, 7]),                    r"RLE: expected dict\(size=\[h, w\], counts=...\)"),
])
def test_a_mask_without_meaning_is_refused_with_what_came_and_what_was_expected(mask, message):
    with pytest.raises(ValueError, match=message): decode_mask(mask, (7, 10))

@pytest.mark.parametrize('f', [encode_rle, mask_bbox])
@pytest.mark.parametrize('mask, what', [(np.zeros((3, 4), np.uint8), r"an array of shape \(3, 4\), type uint8"),
                                        ([[1, 1]], r"\[\[1, 1\]\]")])
def test_only_bool_arrays_are_taken_for_pixels(f, mask, what):
    with pytest.raises(ValueError, match=rf"expected an \(h, w\) bool array, got {what}; write mask > 0"): f(mask)

# --- probabilities in boxes

def _objects(rng, n, m, w, h):
    "Probabilities, and boxes that may reach outside or have no area, but touch the image"
    middle,half = rng.uniform(0, 1, (n, 2))*[w, h],np.exp(rng.uniform(-1, 5, (n, 2)))
    half[::7] = 0
    return rng.random((n, m, m)).astype(np.float32),np.concatenate([middle - half, middle + half], 1).astype(np.float32)

def pasted(probs, bboxes, size, thresh=.5):
    "(n, h, w) bool: `probs` at the centers of all pixels, by `grid_sample`, in the frame of each box"
    b = torch.tensor(np.asarray(bboxes), dtype=torch.float64)
    x,y = ((torch.arange(n) + .5 - b[:,i:i+1])/(b[:,i+2:i+3] - b[:,i:i+1]).clamp(min=1e-12)*2 - 1
           for i,n in enumerate(size))
    grid = torch.stack([x[:,None].expand(-1, size[1], -1), y[...,None].expand(-1, -1, size[0])], -1)
    masks = grid_sample(torch.as_tensor(probs).double()[:,None], grid, padding_mode='zeros', align_corners=False)
    return (masks[:,0] > thresh).numpy()

@pytest.mark.parametrize('m, thresh', [(28, .5), (14, .5), (7, .2), (1, .1)])
def test_paste_rle_gives_the_pixels_that_grid_sample_interpolates(m, thresh):
    # float32 rounds alike but for the order of sums: a pixel may differ that lies at the threshold to the last bits
    coco,rng,wrong,full = _coco(),np.random.default_rng(m),0,0
    for _ in range(40):
        size = w,h = tuple(rng.integers(1, 120, 2).tolist())
        probs,bboxes = _objects(rng, 8, m, w, h)
        ours,theirs = paste_rle(probs, bboxes, size, thresh),pasted(probs, bboxes, size, thresh)
        for a,b in zip(ours, theirs, strict=True):
            wrong += (coco.decode(a).astype(bool) != b).sum()
            full  += b.sum()
            assert a == encode_rle(decode_mask(a, size))   # the one and only RLE of these pixels
    assert full > 50_000 and wrong <= full*1e-5

def test_a_pasted_mask_may_fill_the_image_a_column_or_a_row():
    one = np.ones((1, 28, 28), np.float32)
    for box in ([-50, -50, 90, 90], [4, -50, 9, 90], [-50, 2, 90, 5], [6, -9, 30, 30], [-30, -30, 3, 3]):
        rle, = paste_rle(one, np.array([box], np.float32), (12, 8))
        theirs = pasted(one, [box], (12, 8))[0]
        assert theirs.any()
        np.testing.assert_array_equal(decode_mask(rle, (12, 8)), theirs)

def test_a_box_without_the_center_of_a_pixel_of_the_image_gives_an_empty_mask_and_no_objects_no_masks():
    one = np.ones((2, 28, 28), np.float32)
    for box in ([50, 2, 60, 5], [-20, -30, -9, -8], [2.6, 1, 3.4, 7]):
        rle = paste_rle(one, [box]*2, (12, 8))[1]
        assert rle == encode_rle(np.zeros((8, 12), bool))
    assert paste_rle(np.zeros((0, 28, 28)), np.zeros((0, 4)), (12, 8)) == []

@pytest.mark.parametrize('shape, bboxes, thresh, message', [
    ((2, 28, 28), [[0, 0, 5, 5]], .5,             r"expected probs \(n, m, m\) and bboxes \(n, 4\), got \(2, 28, 28\)"),
    ((1, 1, 28, 28), [[0, 0, 5, 5]], .5,          r"probs: expected probabilities \(n, m, m\), got"),
    ((1, 28, 28), [[0, 0, 5, float('nan')]], .5,  "bboxes: expected finite pixels below a million"),
    ((1, 28, 28), [[0, 0, 5, 1e9]], .5,           "bboxes: expected finite pixels below a million"),
    ((1, 28, 28), [[0, 0, 5, 5]], 50,             "thresh: expected a number from 0 to 1, got 50"),
])
def test_paste_rle_refuses_what_has_no_meaning(shape, bboxes, thresh, message):
    with pytest.raises(ValueError, match=message): paste_rle(np.zeros(shape), bboxes, (12, 8), thresh)

# --- outlines

def _no_holes(mask): return ndimage.binary_fill_holes(mask, np.ones((3, 3)))   # outside goes on through corners

@pytest.mark.parametrize('seed', range(4))
def test_outlines_hold_exactly_the_pixels_of_a_mask_without_holes(seed):
    coco,rng,n = _coco(),np.random.default_rng(seed),0
    for k in range(300):
        w,h = rng.integers(1, 26, 2).tolist()
        m = rng.random((h, w)) < rng.choice([.05, .3, .5, .8, .97])
        if k%3 == 0: m = ndimage.binary_closing(m)
        m = _no_holes(m)
        polygons = mask_polygons(m)
        np.testing.assert_array_equal(decode_mask(polygons, (w, h)), m)
        if not polygons: assert not m.any(); continue
        # the oracle: in pycocotools' hands they are the same pixels
        flat = [p.astype(float).ravel().tolist() for p in polygons]
        np.testing.assert_array_equal(coco.decode(coco.merge(coco.frPyObjects(flat, h, w))).astype(bool), m)
        np.testing.assert_array_equal(decode_mask([join_polygons(polygons)], (w, h)), m)
        assert len(polygons) == ndimage.label(m)[1]
        n += 1
    assert n > 150

def test_an_outline_runs_along_the_edges_of_pixels():
    m = np.zeros((6, 9), bool)
    m[2:4,3:8] = True
    p, = mask_polygons(m)
    assert p.dtype == np.float32 and p.tolist() == [[3, 2], [8, 2], [8, 4], [3, 4]]
    np.testing.assert_array_equal(mask_polygons(np.ones((4, 5), bool))[0], [[0, 0], [5, 0], [5, 4], [0, 4]])

def test_pieces_that_touch_at_a_corner_are_apart_and_what_they_surround_is_no_hole():
    m = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)
    assert len(mask_polygons(m)) == 4 and len(mask_polygons(np.eye(30, dtype=bool))) == 30
    for o in (m, np.eye(30, dtype=bool)): np.testing.assert_array_equal(decode_mask(mask_polygons(o), o.shape[::-1]), o)

def test_a_hole_is_an_error_unless_it_is_to_be_filled():
    m = np.zeros((8, 9), bool)
    m[1:7,2:8] = True
    full = m.copy()
    m[3,4:6] = False
    with pytest.raises(ValueError, match=r"it has 1, one at x, y = \[4, 3\]; fill them by holes='fill', or keep"):
        mask_polygons(m)
    np.testing.assert_array_equal(decode_mask(mask_polygons(m, 'fill'), (9, 8)), full)
    assert mask_polygons(np.zeros((3, 4), bool)) == []
    with pytest.raises(ValueError, match="holes: expected one of 'raise', 'fill', got 'keep'"): mask_polygons(m, 'keep')
    with pytest.raises(ValueError, match=r"expected an \(h, w\) bool array"): mask_polygons(m.astype(int))

@pytest.mark.parametrize('seed', range(3))
def test_filled_holes_are_what_scipy_fills(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        m = rng.random(rng.integers(3, 30, 2)) < .7
        np.testing.assert_array_equal(decode_mask(mask_polygons(m, 'fill'), m.shape[::-1]), _no_holes(m))

def test_what_lies_in_a_hole_that_is_filled_has_no_outline_of_its_own():
    m = np.zeros((9, 9), bool)
    m[1:8, 1:8],m[2:7, 2:7],m[4, 4] = True,False,True
    p, = mask_polygons(m, 'fill')
    assert decode_mask([p], (9, 9)).sum() == 49

def test_joined_polygons_are_one_whose_lines_have_no_area():
    rng = np.random.default_rng(0)
    for _ in range(50):   # far apart, at any fraction of a pixel
        parts = [rng.uniform(0, 20, (rng.integers(3, 7), 2)) + [25*i, 25*j] for i,j in ((0, 0), (1, 1), (2, 0))]
        np.testing.assert_array_equal(decode_mask([join_polygons(parts)], (80, 50)), decode_mask(parts, (80, 50)))
    np.testing.assert_array_equal(join_polygons([TRIANGLE]), np.reshape(TRIANGLE, (-1, 2)))

# --- id masks

@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32])
def test_every_id_is_an_object_with_its_pixels_and_a_tight_box(dtype):
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 5, (7, 9)), np.zeros((4, 5)), np.full((4, 5), 3), [[9]], rng.integers(0, 2, (1, 30)),
             rng.integers(0, 2, (30, 1)), np.kron(rng.integers(0, 200, (5, 6)), np.ones((4, 3))),
             (rng.random((40, 30)) < .05)*rng.integers(1, 255, (40, 30))]
    for ids in (np.array(o).astype(dtype) for o in masks):
        values,rles,bboxes = encode_instances(ids)
        assert values.tolist() == sorted({*ids.ravel().tolist()} - {0})
        assert len(rles) == len(values) and bboxes.shape == (len(values), 4) and bboxes.dtype == np.float32
        for v,rle,box in zip(values, rles, bboxes):
            assert rle == encode_rle(ids == v)
            np.testing.assert_array_equal(box, mask_bbox(ids == v))

@pytest.mark.parametrize('ids', [np.ones((3, 4), bool), np.ones((3, 4)), np.ones(4, int), np.full((3, 4), -1)])
def test_an_id_mask_is_whole_numbers_from_zero(ids):
    with pytest.raises(ValueError, match=r"ids: expected an array \(h, w\) of whole"): encode_instances(ids)

def test_columns_are_those_that_hold_some_of_the_mask():
    rng = np.random.default_rng(0)
    for _ in range(500):
        h,w = rng.integers(1, 12, 2).tolist()
        m = rng.random((h, w)) < rng.random()
        m[:,rng.random(w) < .4] = False
        first,some = rle_columns(encode_rle(m), (w, h))
        on = np.flatnonzero(m.any(0))
        if not len(on): assert some.shape == (0, h); continue
        assert first == on[0] and np.array_equal(some, m.T[on[0]:on[-1]+1])

# --- polygons in memory

def test_polygons_of_an_annotation_are_read_only_float32_arrays_however_they_are_given():
    xy = [1., 2, 30.1, 2, 30.1, 40.25]
    masks = [xy], [np.reshape(xy, (3, 2))], (tuple(xy), xy), []
    a = Annotation(None, (64, 64), ['a']*4, [[0, 0, 9, 9]]*4, masks=masks)
    for m in a.masks[:3]:
        for p in m: assert p.dtype == np.float32 and p.shape == (3, 2) and not p.flags.writeable
        assert np.array_equal(m[0], np.reshape(xy, (3, 2)).astype(np.float32))
    b = pickle.loads(pickle.dumps(a))
    assert a.same_as(b) and all(p.dtype == np.float32 and not p.flags.writeable for m in b.masks for p in m)
    assert all(p is q for m,n in zip(a.masks, replace(a, split='train').masks) for p,q in zip(m, n)), "not copied again"

def test_an_array_of_the_caller_is_neither_changed_nor_shared():
    p = np.array([[1, 2], [30, 2], [30, 40]], np.float32)
    a = Annotation(None, (64, 64), ['a'], [[0, 0, 9, 9]], masks=[[p]])
    p += 1
    assert p.flags.writeable and a.masks[0][0].tolist() == [[1, 2], [30, 2], [30, 40]]

@pytest.mark.parametrize('bad', [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, float('nan')],
                                 [1, 2, 3, 4, 5, 1e7], 'ab'])
def test_what_is_no_polygon_stays_as_it_is_and_raises_where_it_is_decoded(bad):
    a = Annotation(None, (64, 64), ['a'], [[0, 0, 9, 9]], masks=[[bad]])
    assert a.masks[0][0] is bad
    with pytest.raises(ValueError, match="mask, polygon 0: expected"): decode_mask(a.masks[0], a.size)

@pytest.mark.parametrize('digits', [0, 1, 2, 3])
def test_decimal_fractions_in_float32_decode_to_the_pixels_that_they_have_in_float64(digits):
    rng = np.random.default_rng(digits)
    for size in (90, 600):
        for _ in range(60):
            p = rng.uniform(0, size, (9, 2)).round(digits)
            a = Annotation(None, (size, size), ['a'], [[0, 0, 9, 9]], masks=[[p]])
            assert np.array_equal(exact_numbers(a.masks[0][0]), p)
            assert np.array_equal(decode_mask(a.masks[0], a.size), decode_mask([p], a.size))

def test_float32_is_within_a_hundredth_of_a_pixel_up_to_100_000_pixels():
    p = np.random.default_rng(0).uniform(0, 1e5, (1000, 2))
    assert np.abs(exact_numbers(as_float32(p)) - p).max() < .01
