"A compiled learner computes what it computed before, whatever is frozen, saved, loaded or exported"
import copy, shutil
import pytest, torch
from torch import nn
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.synthetic import SHAPE_CODES, SHAPE_FLIP_PAIRS, SHAPE_POINTS, draw_shapes
from vision_tasks.data.crops import crop_instances
from vision_tasks.keypoint import keypoint_dls, keypoint_learner
from vision_tasks.multilabel import multilabel_dls, multilabel_learner
from vision_tasks.segmentation import segmentation_dls, segmentation_learner
from vision_tasks.training.files import load_learner
from vision_tasks.training.memory_format import to_channels_last

pytestmark = pytest.mark.train
KW = dict(size=32, bs=4, num_workers=0, device='cpu')

def multilabel(anns, path): return multilabel_learner(multilabel_dls(anns, path=path, **KW), 'test_resnet',
                                                      pretrained=False)

def keypoint(anns, path):
    ones = [Annotation(a.path, a.size, points=a.points[0])
            for a in crop_instances([a for a in anns if a.labels], path/'crops', min_points=1)]
    dls = keypoint_dls(ones, vocab=SHAPE_POINTS, flip_pairs=SHAPE_FLIP_PAIRS, path=path, **KW)
    return keypoint_learner(dls, 'test_resnet', pretrained=False)

def segmentation(anns, path):
    anns = [Annotation(a.path, a.size, mask=a.mask) for a in anns]
    return segmentation_learner(segmentation_dls(anns, SHAPE_CODES, path=path, **KW), 'lraspp', encoder='test_resnet',
                                pretrained=False, arch_kwargs=dict(stride=32))

@pytest.fixture(params=[multilabel, keypoint, segmentation], ids=lambda f: f.__name__)
def learn(request, tmp_path):
    torch._dynamo.reset()
    learn = request.param(draw_shapes(tmp_path/'images', 10, 48, seed=3), tmp_path)
    with learn.no_bar(), learn.no_logging(): yield learn

def step(learn, model):
    "The gradients of one batch by the names of the parameters, those of frozen ones too"
    x,*y = learn.dls.valid.one_batch()
    model.eval().zero_grad()
    learn.loss_func(model(x), *y).backward()
    return {k: None if p.grad is None else p.grad.clone() for k,p in model.named_parameters()}

def same(a, b):
    assert a.keys() == b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], atol=1e-5, rtol=1e-3, msg=k)

class Calls:
    "A backend that counts the graphs that it runs"
    def __init__(self): self.n = 0
    def __call__(self, graph, inputs):
        def run(*args):
            self.n += 1
            return graph.forward(*args)
        return run

def test_outputs_and_gradients_are_those_of_the_model_frozen_or_not(learn):
    plain,calls = copy.deepcopy(learn.model),Calls()
    assert learn.compile(backend=calls) is learn and calls.n > 0     # it was tried at once
    for verb in ('freeze', 'unfreeze', 'freeze'):
        getattr(learn, verb)()
        for p,q in zip(plain.parameters(), learn.model.parameters()): p.requires_grad_(q.requires_grad)
        n = calls.n
        same(step(learn, plain), step(learn, learn.model))
        assert calls.n > n
    assert any(o is None for o in step(learn, learn.model).values())
    torch._dynamo.reset()
    learn.compile(backend='aot_eager')     # which compiles the backward pass too
    for verb in ('unfreeze', 'freeze'):
        getattr(learn, verb)()
        for p,q in zip(plain.parameters(), learn.model.parameters()): p.requires_grad_(q.requires_grad)
        same(step(learn, plain), step(learn, learn.model))

def test_every_verb_works_on_a_compiled_learner_and_its_files_are_those_of_any_other(learn, tmp_path):
    names = list(learn.model.state_dict())
    learn.compile(backend='eager')
    assert list(learn.model.state_dict()) == names
    before = copy.deepcopy(learn.model.state_dict())
    learn.fine_tune(1, 1e-2, freeze_epochs=1)
    moved = [k for k,v in learn.model.named_parameters() if not torch.equal(v, before[k])]
    assert any(k.startswith('encoder') for k in moved) and any(not k.startswith('encoder') for k in moved)
    scores,file = learn.evaluate(),learn.save('model')
    learn.model.load_state_dict(before)
    assert learn.load(file).evaluate() == pytest.approx(scores)
    paths = [a.path for a in learn.dls.valid.items]
    learn.export()
    other = load_learner(tmp_path/'export.pkl')
    assert list(other.model.state_dict()) == names
    for a,b in zip(learn.annotate(paths), other.annotate(paths)): assert a.same_as(b, 1e-3)
    assert other.compile(backend='eager').annotate(paths[:1])[0].same_as(learn.annotate(paths[:1])[0], 1e-3)

def test_a_backend_that_does_not_exist_or_fails_says_so_and_leaves_the_learner_as_it_was(tmp_path):
    learn = multilabel(draw_shapes(tmp_path/'images', 10, 48, seed=3), tmp_path)
    with pytest.raises(ValueError, match="backend: expected a backend of .*got 'induktor'.*list_backends"):
        learn.compile(backend='induktor')
    def broken(graph, inputs): raise RuntimeError("no compiler here")
    with pytest.raises(Exception, match="no compiler here"): learn.compile(backend=broken)
    with learn.no_bar(): assert learn.evaluate()['valid_loss'] > 0

@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason="inductor needs a C++ compiler")
def test_inductors_outputs_and_gradients_are_those_of_the_model(learn):
    plain = copy.deepcopy(learn.model)
    learn.compile()
    same(step(learn, plain), step(learn, learn.model))

# --- channels last

def test_channels_last_changes_how_weights_lie_and_no_result(learn, tmp_path):
    learn.model.to(memory_format=torch.contiguous_format)      # learners of named networks are channels-last already
    plain,model = copy.deepcopy(learn.model),to_channels_last(learn.model)
    convs = lambda m: [o for o in m.modules() if isinstance(o, nn.Conv2d) and min(o.weight.shape[1:]) > 1]
    last  = lambda m: all(o.weight.is_contiguous(memory_format=torch.channels_last) for o in convs(m))
    assert model is learn.model and last(model) and not last(plain) and convs(model)
    same(step(learn, plain), step(learn, model))
    learn.load(learn.save('model'))
    learn.export()
    for o in (learn.model, copy.deepcopy(model), load_learner(tmp_path/'export.pkl').model): assert last(o)
    seen = []
    hook = convs(model)[0].register_forward_hook(lambda m, x, y: seen.append(y.stride()[1]))
    learn.annotate([learn.dls.valid.items[0].path])
    hook.remove()
    assert seen == [1]      # an image in the usual format comes out with its channels side by side
    learn.fine_tune(1, freeze_epochs=1)
    assert last(learn.model)
