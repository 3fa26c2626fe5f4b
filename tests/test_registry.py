import subprocess, sys
import pytest
from vision_tasks.models import registry
from vision_tasks.models.registry import TASKS, arch_facts, get_arch, list_archs, register

@pytest.fixture(autouse=True)
def empty(monkeypatch): monkeypatch.setattr(registry, '_archs', {})

def tiny_net(n_out): return n_out
def other_net(n_out): return -n_out

def test_a_builder_is_found_under_its_own_name_and_is_left_as_it_is():
    assert register('segmentation')(tiny_net) is tiny_net
    assert get_arch('tiny_net', 'segmentation') is tiny_net

def test_a_name_may_be_given():
    register('detection', 'tiny')(tiny_net)
    assert list_archs('detection') == ['tiny'] and get_arch('tiny', 'detection') is tiny_net

def test_facts_are_kept_and_come_as_a_copy():
    register('segmentation', sizes=[64, 96], min_bs=2)(tiny_net)
    arch_facts('tiny_net', 'segmentation')['min_bs'] = 7
    assert arch_facts('tiny_net', 'segmentation') == {'sizes': [64, 96], 'min_bs': 2}

def test_one_builder_may_serve_several_tasks_with_facts_of_their_own():
    @register('segmentation', min_size=32)
    @register('detection', min_size=64)
    def net(): pass
    assert get_arch('net', 'segmentation') is get_arch('net', 'detection') is net
    assert [arch_facts('net', t)['min_size'] for t in ('segmentation', 'detection')] == [32, 64]

def test_names_are_listed_sorted_and_those_of_several_tasks_once():
    for t,n in [('keypoint', 'b'), ('keypoint', 'a'), ('instance', 'c'), ('instance', 'b')]: register(t, n)(tiny_net)
    assert list_archs('keypoint') == ['a', 'b'] and list_archs() == ['a', 'b', 'c'] and list_archs('multilabel') == []

def test_a_name_that_is_taken_raises_and_the_first_builder_stays():
    register('segmentation', 'net')(tiny_net)
    with pytest.raises(ValueError, match=f"segmentation already has an architecture 'net', from {__name__}; "
                                         "choose another `name`"):
        register('segmentation', 'net')(other_net)
    assert get_arch('net', 'segmentation') is tiny_net

@pytest.mark.parametrize('call', [register, list_archs, lambda t: get_arch('net', t), lambda t: arch_facts('net', t)])
def test_an_unknown_task_raises_and_the_tasks_are_named(call):
    with pytest.raises(ValueError, match=f"task: expected one of {', '.join(TASKS)}, got 'segmentaton'; did you mean "
                                         "'segmentation'"): call('segmentaton')

def test_a_decorator_without_parentheses_raises():
    with pytest.raises(ValueError, match='task: expected one of .* got <function tiny_net'): register(tiny_net)

def test_a_builder_without_a_name_must_be_given_one():
    from functools import partial
    with pytest.raises(ValueError, match=r"has no name of its own; write @register\('detection', 'its_name'\)"):
        register('detection')(partial(tiny_net, 2))

@pytest.mark.parametrize('f', [get_arch, arch_facts])
def test_an_unknown_name_raises_with_its_task_and_the_nearest_names_of_that_task(f):
    for n in ('deeplab_v1', 'unet', 'segnet'): register('segmentation', n)(tiny_net)
    register('detection', 'unett')(tiny_net)
    with pytest.raises(ValueError, match="segmentation has no architecture 'unett', only detection; "
                                         "did you mean 'unet'") as e: f('unett', 'segmentation')
    assert 'deeplab' not in str(e.value) and "`list_archs('segmentation')` names all" in str(e.value)
    with pytest.raises(ValueError, match="keypoint has no architecture 'qqq'; none is registered"): f('qqq', 'keypoint')

def test_every_net_is_found_in_a_process_that_has_imported_the_registry_alone():
    code = "from vision_tasks.models.registry import get_arch, list_archs\n" \
           "for n,t in (('segnet', 'segmentation'), ('fcos', 'detection'), ('mask_rcnn', 'instance')): get_arch(n, t)"
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)
