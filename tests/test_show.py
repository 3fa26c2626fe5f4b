from collections import Counter
from dataclasses import replace
from itertools import combinations
import numpy as np, pandas as pd, pytest
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import to_rgb
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.synthetic import SHAPE_CODES, SHAPES
from vision_tasks.detection import detection_dls
from vision_tasks.instance import instance_dls
from vision_tasks.keypoint import keypoint_dls
from vision_tasks.localization import localization_dls
from vision_tasks.multilabel import multilabel_dls
from vision_tasks.ops.colours import class_colours, palette, text_colour
from vision_tasks.ops.masks import decode_mask
from vision_tasks.segmentation import segmentation_dls
from vision_tasks.show.draw import draw_points, paint_classes, show_annotation
from vision_tasks.show.labels import label_lines
from vision_tasks.show.layout import FALSE, MISSED, RIGHT, columns_for
from vision_tasks.show.plots import (_short, plot_confusion, plot_confusion_per_class, plot_counts,
                                     plot_label_confusion, plot_per_class)
from vision_tasks.show.sheet import contact_sheet

def drawn(fig):
    fig.canvas.draw()
    return np.asarray(fig.canvas.buffer_rgba())[...,:3]

def texts(ax):
    below = [c for a in ax.artists for c in getattr(a.get_child(), 'get_children', list)() if hasattr(c, 'get_text')]
    return [o.get_text() for o in (*ax.texts, *below)]

def test_an_annotation_is_drawn_with_its_boxes_labels_masks_and_points(shapes):
    a = next(o for o in shapes if len(o.labels) > 1)
    ax = show_annotation(a)
    assert sorted(texts(ax)) == sorted(a.labels) and len(ax.patches) == len(a.bboxes)
    assert len(ax.collections) == len(a.points)
    for b,r in zip(a.bboxes, ax.patches):
        x1,y1,x2,y2 = b
        drawn = r.get_x()+.5,r.get_y()+.5,r.get_width(),r.get_height()
        assert drawn == pytest.approx((x1, y1, x2-x1, y2-y1))
    image = ax.images[0].get_array()
    plain = show_annotation(Annotation(a.path, a.size)).images[0].get_array()
    changed = (image != plain).any(-1)
    assert (changed <= np.any([decode_mask(m, a.size) for m in a.masks], 0)).all() and changed.sum() > 50

def test_labels_without_boxes_and_scores_stand_below(shapes):
    a = Annotation(shapes[0].path, (64, 64), ['x', 'y'], scores=[.25, .75])
    assert texts(show_annotation(a)) == ['x 0.25', 'y 0.75'] and texts(show_annotation(a, scores=False)) == ['x', 'y']
    assert texts(show_annotation(Annotation(shapes[0].path, (64, 64)))) == ['no label']
    many = Annotation(shapes[0].path, (64, 64), [f'l{i}' for i in range(30)])
    assert texts(show_annotation(many))[-1] == '... and 22 more'

def test_found_missed_and_made_up_labels_look_different():
    lines = label_lines({'a', 'b'}, {'b', 'c'}, dict(b=.9, c=.6))
    assert lines == [('b 0.90', RIGHT), ('(a)', MISSED), ('+ c 0.60', FALSE)]
    assert label_lines(set(), set(), {}) == [('no label', RIGHT)]

def test_a_contact_sheet_pairs_truth_and_prediction_and_is_written(shapes, tmp_path):
    truth = [Annotation(a.path, a.size, sorted(set(a.labels))) for a in shapes[:5]]
    preds = [Annotation(a.path, a.size, ['star'], scores=[.7]) for a in truth]
    fig = contact_sheet(truth, preds, tmp_path/'new'/'sheet.png', n=4, title='sheet')
    used = [ax for ax in fig.axes if ax.images]
    assert [ax.get_title() for ax in used] == ['Ground truth', 'Prediction']*4
    assert (tmp_path/'new'/'sheet.png').stat().st_size > 1e4
    assert drawn(fig).std() > 5
    assert len([ax for ax in contact_sheet(shapes[:3]).axes if ax.images]) == 3

def test_a_sheet_of_nothing_or_of_unequal_lists_is_refused(shapes):
    with pytest.raises(ValueError, match="at least one annotation, got none"): contact_sheet([])
    with pytest.raises(ValueError, match="3 annotations but 2 predictions"): contact_sheet(shapes[:3], shapes[:2])

def test_text_below_a_picture_stays_on_the_sheet_and_off_the_next_row(shapes):
    many = [Annotation(a.path, a.size, [f'label {i}' for i in range(9)]) for a in shapes[:8]]
    fig = contact_sheet(many, ncols=4)
    fig.canvas.draw()
    used = [ax for ax in fig.axes if ax.images]
    boxes = [a.get_window_extent(fig.canvas.get_renderer()) for ax in used for a in ax.artists]
    assert all(b.y0 >= -1 and b.y1 <= fig.bbox.y1+1 for b in boxes)
    top_of_second = used[4].get_window_extent().y1
    assert all(b.y0 >= top_of_second-1 for b in boxes[:4])

def test_pictures_are_closed_by_the_test_session(): assert not plt.get_fignums()

def test_class_masks_are_painted_by_name_over_grey_void_black_and_a_background_not_at_all():
    image = np.tile(np.uint8([200, 0, 90]), (9, 9, 1))
    mask  = np.repeat(np.array([[0], [1], [255]], np.uint8), 3, 0).repeat(9, 1)
    vocab = ['background', 'b', 'a']
    painted = paint_classes(image, mask, vocab, alpha=.6)
    assert np.ptp(painted[:3], axis=-1).max() <= 1      # no colour where nothing is painted
    grey,pure = painted[0, 0].astype(float),class_colours(vocab)['b']*255
    np.testing.assert_allclose(painted[4, 4], .4*grey + .6*pure, atol=1)
    np.testing.assert_allclose(painted[[3, 5]], np.broadcast_to(pure, (2, 9, 3)), atol=1)   # the outline
    assert (painted[[6], :] == 0).all()
    assert (paint_classes(image, mask, ['sky', 'b', 'a'])[1, 1] != painted[1, 1]).any()
    np.testing.assert_allclose(paint_classes(image, mask, alpha=1.)[4, 4], palette(2)[1]*255, atol=1)   # without names

def words(ax): return [t.get_text() for t in ax.texts]

def test_a_confusion_matrix_has_shares_row_totals_axis_labels_and_a_colour_bar():
    counts = pd.DataFrame([[9, 1, 0], [0, 0, 0], [2000, 0, 23e6]], index=['a', 'b', '#na#'], columns=['a', 'b', '#na#'])
    ax = plot_confusion(counts.astype(int))
    assert sorted(words(ax)) == ['0.10', '0.90', '1.00']
    assert [t.get_text() for t in ax.get_yticklabels()] == ['a (10)', 'b (0)', 'no object (23.0M)']
    assert [t.get_text() for t in ax.get_xticklabels()] == ['a', 'b', 'no object']
    assert (ax.get_xlabel(), ax.get_ylabel()) == ('Predicted', 'True')
    assert [o.get_ylabel() for o in ax.figure.axes if o is not ax] == ['Share of the true class']
    assert words(plot_confusion(counts.astype(int), normalize=False)) == ['23.0M']
    for t in ax.texts: assert t.get_color() == {'0.10': 'black', '0.90': 'white', '1.00': 'white'}[t.get_text()]

@pytest.mark.parametrize('n', [1, 3, 12, 40, 80])
def test_confusion_matrices_of_any_size_are_drawn_whole(n):
    names = [f'a long class name {i}' for i in range(n)]
    ax = plot_confusion(pd.DataFrame(np.eye(n, dtype=int)*7 + 1, index=names, columns=names))
    ax.figure.canvas.draw()
    page = ax.figure.bbox.padded(1)
    for t in (*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label, ax.yaxis.label):
        box = t.get_window_extent()
        assert all(page.contains(*o) for o in (box.min, box.max)), t
    ys = [t.get_window_extent() for t in ax.get_yticklabels()]
    assert not any(a.overlaps(b) for a,b in zip(ys, ys[1:]))

def test_counts_are_written_in_at_most_five_characters():
    assert [_short(n) for n in (0, 950, 9999, 10000, 12345, 999499, 999501, 1e6, 4.06e6, 3e9)] == [
        '0', '950', '9999', '10.0k', '12.3k', '999k', '1.00M', '1.00M', '4.06M', '3.00G']

def test_label_confusion_shows_shares_as_they_are():
    shares = pd.DataFrame([[.5, .25], [np.nan, 1.]], index=list('ab'), columns=list('ab'))
    ax = plot_label_confusion(shares, totals=[4, 2])
    assert sorted(words(ax)) == ['0.25', '0.50', '1.00'] and ax.get_title('left') == 'Predicted A where B is true'
    assert [t.get_text() for t in ax.get_yticklabels()] == ['a (4)', 'b (2)']
    assert (ax.get_xlabel(), ax.get_ylabel()) == ('Predicted (A)', 'True (B)')

def test_each_class_has_a_confusion_matrix_of_two_by_two():
    df = pd.DataFrame(dict(label=list('abcde'), tn=[9, 8, 7, 6, 5], fp=[1, 0, 1, 2, 3], fn=[0, 2, 1, 1, 2],
                           tp=range(5)))
    fig = plot_confusion_per_class(df)
    used = [ax for ax in fig.axes if ax.images]
    assert [ax.get_title() for ax in used] == list('abcde')
    for ax,row in zip(used, df.itertuples()):
        assert words(ax) == [str(o) for o in (row.tn, row.fp, row.fn, row.tp)]
    np.testing.assert_allclose(used[2].images[0].get_array(), [[7/8, 1/8], [1/3, 2/3]])
    assert fig.get_supxlabel() == 'Predicted' and fig.get_supylabel() == 'True'
    with pytest.raises(ValueError, match='no classes'): plot_confusion_per_class(df[:0])

def fills(ax): return [tuple(p.get_facecolor()[:3]) for p in ax.patches]

def bars(ax): return dict(zip([t.get_text() for t in ax.get_yticklabels()], [p.get_width() for p in ax.patches]))

def test_counts_are_those_of_the_data_set(shapes):
    some = [replace(a, split='valid' if i%4 == 0 else 'train') for i,a in enumerate(shapes)]
    classes,sizes,splits = plot_counts(some).axes
    want = Counter(o for a in some for o in a.labels)
    assert bars(classes) == want and list(bars(classes)) == [o for o,_ in want.most_common()]
    assert fills(classes) == [tuple(class_colours(SHAPES)[o]) for o in bars(classes)]
    assert bars(splits) == Counter(a.split for a in some)
    wh = np.concatenate([a.bboxes[:,2:]-a.bboxes[:,:2] for a in some])
    np.testing.assert_allclose(sorted(sizes.collections[0].get_offsets().tolist()), sorted(wh.tolist()))
    for ax in (classes, sizes, splits): assert ax.get_xlabel()[0].isupper() and ax.get_title('left')[0].isupper()

def test_counts_of_masks_points_and_labels_without_boxes(shapes):
    masks,_ = plot_counts(class_masks(shapes), SHAPE_CODES).axes
    assert bars(masks) == {'background': 32, **{o: sum(o in a.labels for a in shapes) for o in SHAPES}}
    points = np.array([[[1, 2], [np.nan]*2], [[1, 1], [3, 3]]])
    anns = [Annotation(a.path, a.size, points=p) for a,p in zip(shapes, points)]
    assert bars(plot_counts(anns, ['left', 'right']).axes[0]) == dict(left=2, right=1)
    labels = [Annotation(a.path, a.size, sorted(set(a.labels))) for a in shapes]
    assert bars(plot_counts(labels, [*SHAPES, 'cube']).axes[0]) == {
        **{o: sum(o in a.labels for a in shapes) for o in SHAPES}, 'cube': 0}
    assert len(plot_counts([Annotation(shapes[0].path, (64, 64))]).axes) == 1
    with pytest.raises(ValueError, match='the list of annotations is empty'): plot_counts([])
    with pytest.raises(ValueError, match="label 'star' is not in the vocab"):
        plot_counts(labels, ['circle', 'square', 'triangle'])
    with pytest.raises(ValueError, match='has index 4, but the vocab has 3'):
        plot_counts(class_masks(shapes), list('abc'))

def test_scores_per_class_are_bars_in_the_colours_of_the_classes():
    df = pd.DataFrame(dict(label=['cat', 'ant', 'bee'], n=[3, 20000, 0], ap=[.2, .7, np.nan], nme=[3., 1., 2.]))
    fig = plot_per_class(df)
    assert [ax.get_title('left') for ax in fig.axes] == ['AP', 'NME']
    assert [p.get_width() for p in fig.axes[0].patches] == [.2, .7, 0]
    assert words(fig.axes[0]) == [' 0.20', ' 0.70', ' –']
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ['cat (3)', 'ant (20.0k)', 'bee (0)']
    assert fills(fig.axes[1]) == [tuple(class_colours(df.label)[o]) for o in df.label]
    order = lambda **kw: [t.get_text()[:3] for t in plot_per_class(df, **kw).axes[0].get_yticklabels()]
    assert order(sort='ap') == ['ant', 'cat', 'bee'] and order(sort='nme', columns=['ap']) == ['ant', 'bee', 'cat']
    with pytest.raises(ValueError, match="no column 'map'"): plot_per_class(df, ['map'])
    with pytest.raises(ValueError, match='no rows'): plot_per_class(df[:0])

# --- what a reader sees

def boxes_only(anns): return [replace(a, masks=None, points=None, visible=None, mask=None) for a in anns]

def class_masks(anns): return [Annotation(a.path, a.size, mask=a.mask) for a in anns]

def names_on(ax):
    "The texts of `ax` that are drawn"
    ax.figure.canvas.draw()
    return [t for t in ax.texts if t.fits]

def crowd(shapes, n=100, vocab=('with a mask', 'without a mask')):
    "An image with `n` boxes of 5 pixels side by side"
    i = np.arange(n)
    at = np.stack([i%10*6, i//10*6], 1) + 1
    return Annotation(shapes[0].path, (64, 64), [vocab[j%len(vocab)] for j in i], np.concatenate([at, at+5], 1))

def test_text_on_a_label_is_black_or_white_by_the_luminance_of_the_label(shapes):
    for a in boxes_only(shapes):
        ax = show_annotation(a, vocab=SHAPES)
        for t in ax.texts:
            assert t.get_color() == text_colour(to_rgb(t.get_bbox_patch().get_facecolor()))
        assert [tuple(p.get_edgecolor()[:3]) for p in ax.patches] == [tuple(class_colours(SHAPES)[o]) for o in a.labels]
        plt.close('all')

def test_names_hide_neither_each_other_nor_the_centres_of_boxes(shapes):
    a = crowd(shapes)
    ax = show_annotation(a)
    some = names_on(ax)
    boxes = [t.get_window_extent() for t in some]
    assert 3 < len(some) < 60 and len(ax.patches) == 100
    assert not any(one.overlaps(other) for one,other in combinations(boxes, 2))
    centres = ax.transData.transform((a.bboxes[:,:2]+a.bboxes[:,2:])/2-.5)
    assert not any(b.contains(*c) for b in boxes for c in centres)
    inside = ax.get_window_extent().padded(3)
    assert all(inside.contains(*o) for b in boxes for o in (b.min, b.max))
    assert sorted(t.get_text() for t in ax.figure.legends[0].get_texts()) == ['with a mask', 'without a mask']

def test_a_second_draw_moves_nothing(shapes):
    ax = show_annotation(crowd(shapes))
    first = [(t.get_text(), t.xy) for t in names_on(ax)]
    assert first == [(t.get_text(), t.xy) for t in names_on(ax)] and not ax.stale

def test_names_of_points_are_written_only_where_they_fit(shapes):
    names = [f'point {i}' for i in range(12)]
    far = np.stack(np.meshgrid([10, 30, 50], [8, 22, 36, 50]), -1).reshape(-1, 2)
    for points,least,most in ((far, 12, 12), (far*.05 + 30, 1, 6)):
        ax = plt.subplots(figsize=(5, 5))[1]
        ax.imshow(np.zeros((64, 64, 3), np.uint8))
        draw_points(ax, torch.tensor(points), names)
        boxes = [t.get_window_extent() for t in names_on(ax)]
        assert least <= len(boxes) <= most
        assert not any(one.overlaps(other) for one,other in combinations(boxes, 2))
        assert not any(b.contains(*c) for b in boxes for c in ax.transData.transform(points-.5))

def test_with_one_class_no_name_is_written_and_each_object_has_its_own_colour(shapes):
    one = [replace(a, labels=['shape']*len(a.labels)) for a in shapes]
    a = max(one, key=lambda a: len(a.labels))
    ax = show_annotation(a, vocab=['shape'])
    assert texts(ax) == [] and len({p.get_edgecolor() for p in ax.patches}) == len(a.labels) > 2
    image = ax.images[0].get_array()
    inner = [image[tuple(np.argwhere(decode_mask(m, a.size)).mean(0).astype(int))] for m in a.masks]
    assert len({tuple(o) for o in inner}) == len(inner)
    scored = replace(a, scores=np.full(len(a.labels), .5))
    assert set(texts(show_annotation(scored, vocab=['shape']))) == {'0.50'}
    for dls in (detection_dls(boxes_only(one), size=64, bs=4, num_workers=0),
                instance_dls([replace(a, points=None, visible=None, mask=None) for a in one], size=64, bs=4,
                             num_workers=0)):
        dls.show_batch(max_n=4)
        assert {t.get_text() for ax in plt.gcf().axes for t in ax.texts} == set()

def test_masks_of_one_class_differ_in_shade_and_their_outlines_do_not(shapes):
    a = next(o for o in shapes if any(o.labels.count(n) > 1 for n in o.labels))
    n = next(n for n in a.labels if a.labels.count(n) > 1)
    i,j = [k for k,o in enumerate(a.labels) if o == n][:2]
    image = show_annotation(a, vocab=SHAPES).images[0].get_array()
    inner,rim = [],[]
    for m in (decode_mask(a.masks[k], a.size) for k in (i, j)):
        y,x = np.argwhere(m).mean(0).astype(int)
        inner.append(image[y, x].astype(int)); rim.append(image[y, np.flatnonzero(m[y])[0]])
    assert np.abs(inner[0]-inner[1]).max() > 25
    assert np.array_equal(rim[0], rim[1]) and np.allclose(rim[0], class_colours(SHAPES)[n]*255, atol=1)

def edge_colours(fig): return {tuple(p.get_edgecolor()[:3]) for ax in fig.axes if ax.images for p in ax.patches}

def test_a_class_is_drawn_in_one_colour_by_every_task(shapes):
    "The same shapes as one object, as boxes, with masks, and as class masks"
    stars = [a for a in shapes if set(a.labels) == {'star'}] + [a for a in shapes if 'star' in a.labels][:4]
    star = tuple(class_colours(SHAPES)['star'])
    kw = dict(size=64, bs=2, num_workers=0)
    single = [replace(a, labels=['star'], bboxes=a.bboxes[:1]) for a in boxes_only(stars)]
    some = [replace(a, labels=['star']*len(a.labels)) for a in stars]
    for dls in (localization_dls(single, ['#na#', *SHAPES], **kw), detection_dls(boxes_only(some), SHAPES, **kw),
                instance_dls([replace(a, points=None, visible=None, mask=None) for a in some], SHAPES, **kw)):
        dls.valid.show_batch()
        assert edge_colours(plt.gcf()) == {star}
        plt.close('all')
    segmentation_dls(class_masks(shapes), SHAPE_CODES, **kw).show_batch()
    legend = plt.gcf().legends[0]
    drawn = {t.get_text(): tuple(p.get_facecolor()[:3]) for t,p in zip(legend.get_texts(), legend.get_patches())}
    assert drawn and all(drawn[k] == tuple(class_colours(SHAPES)[k]) for k in drawn) and 'background' not in drawn

def test_class_masks_are_shown_beside_their_image(shapes):
    some = class_masks(shapes)[:2]
    titles = lambda fig: [ax.get_title() for ax in fig.axes if ax.images]
    assert titles(contact_sheet(some, some, vocab=SHAPE_CODES)) == ['Image', 'Ground truth', 'Prediction']*2
    assert titles(contact_sheet(some, vocab=SHAPE_CODES)) == ['Image', 'Ground truth']*2
    dls = segmentation_dls(class_masks(shapes), SHAPE_CODES, size=64, bs=4, num_workers=0)
    b = dls.valid.one_batch()
    dls.valid.show_results(b, b[1], max_n=2)
    assert titles(plt.gcf()) == ['Image', 'Ground truth', 'Prediction, 100.0% correct']*2
    dls.valid.show_batch(b, max_n=2)
    assert len([ax for ax in plt.gcf().axes if ax.images]) == 4

@pytest.mark.parametrize('size', [(240, 80), (80, 240), (64, 64), (24, 24)])
def test_no_band_is_left_above_images_of_any_aspect(size, tmp_path):
    from vision_tasks.data.synthetic import draw_shapes
    fig = contact_sheet(boxes_only(draw_shapes(tmp_path, n=5, size=size)))
    fig.canvas.draw()
    top = max(ax.get_window_extent().y1 for ax in fig.axes if ax.images)
    assert fig.bbox.y1 - top < .02*fig.bbox.height + 8 and all(ax.get_anchor() == 'N' for ax in fig.axes)

def test_columns_leave_few_places_empty():
    assert [columns_for(n, 4) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12)] == [1, 2, 3, 4, 3, 3, 4, 4, 3, 4]

def test_show_batch_of_one_image_takes_one_with_an_object(shapes, tmp_path):
    "The first image of the set has none, for every task"
    empty = [a for a in shapes if not a.labels]
    full  = [a for a in shapes if a.labels][:6]
    kw = dict(size=64, bs=2, num_workers=0)
    order = [replace(a, split=s) for a,s in zip([*empty[:2], *full], ['train']*7 + ['valid'])]
    point = lambda a: replace(a, labels=[], bboxes=None, masks=None, mask=None,
                              points=np.full((5, 2), np.nan) if not a.labels else a.points[0],
                              visible=None)
    single = lambda a: replace(a, labels=a.labels[:1], bboxes=a.bboxes[:1])
    masks = [replace(b, split=a.split) for a,b in zip(order, class_masks(order))]
    for dls in (multilabel_dls([replace(a, bboxes=None, labels=sorted(set(a.labels)), masks=None, points=None,
                                        visible=None, mask=None) for a in order], **kw),
                keypoint_dls([point(a) for a in order], list('abcde'), flip_pairs=[], **kw),
                localization_dls([single(a) for a in boxes_only(order)], **kw),
                segmentation_dls(masks, SHAPE_CODES, **kw), detection_dls(boxes_only(order), **kw)):
        dl = dls.train.new(shuffle=False)
        seen = []
        dl.show_batch = lambda **kw: seen.append(list(dl.get_idxs()))
        dl.show_unique(3)
        assert set(seen[0]) == {2} and not dl.has_object(dl.items[0]) and dl.has_object(dl.items[2])
