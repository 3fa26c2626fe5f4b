"Every notebook runs from top to bottom, its closing asserts hold, and its stored file is clean"
import re, sys, time
from pathlib import Path
import nbformat, pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NBS  = sorted((ROOT/'nbs').glob('*.ipynb'))

class ThisInterpreter(AsyncKernelManager):
    "The interpreter that runs the tests as the kernel, whatever kernels are installed"
    shutdown_wait_time = 60.   # seconds until it is killed: temporary folders go when it ends, slowly on a busy machine
    @property
    def kernel_spec(self):
        argv = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}']
        return KernelSpec(argv=argv, display_name='Python 3', language='python')

@pytest.fixture(params=NBS, ids=lambda o: o.stem)
def nb(request): return nbformat.read(request.param, as_version=nbformat.NO_CONVERT)

@pytest.fixture
def folders(tmp_path, monkeypatch):
    "Where the notebook runs and where its temporary files go; this checkout's package; pictures drawn inline"
    cwd,temp = tmp_path/'cwd',tmp_path/'temp'
    for o in (cwd, temp): o.mkdir()
    # one thread: nets this small gain nothing from more, and where tests run side by side they wait for each other
    env = dict(PYTHONPATH=ROOT, TMPDIR=temp, IPYTHONDIR=tmp_path/'ipython', OMP_NUM_THREADS=1)
    for k,v in env.items(): monkeypatch.setenv(k, str(v))
    monkeypatch.delenv('MPLBACKEND', raising=False)
    return cwd,temp

@pytest.mark.train
def test_a_notebook_runs_and_leaves_no_files_behind(nb, folders, request, capsys):
    cwd,temp = folders
    start = time.time()
    where = {'metadata': {'path': str(cwd)}}
    NotebookClient(nb, kernel_manager_class=ThisInterpreter, timeout=120, resources=where).execute()
    # what a figure raises when it is drawn comes after its cell, which then counts as run
    assert not [o for c in nb.cells for o in c.get('outputs', []) if o.output_type == 'error']
    with capsys.disabled(): print(f" {request.node.callspec.id}: {time.time()-start:.1f} s ", end='')
    assert not list(cwd.iterdir()) and not [o for o in temp.rglob('*') if o.is_file()]   # torch makes empty folders

def test_its_first_code_cell_begins_with_the_star_import_and_its_last_asserts(nb):
    code = [c.source for c in nb.cells if c.cell_type == 'code']
    assert code[0].splitlines()[0] == 'from vision_tasks.all import *'
    assert re.search(r'^assert ', code[-1], re.M)

def test_it_is_valid_and_stored_without_outputs(nb):
    nbformat.validate(nb)
    assert (nb.nbformat, nb.nbformat_minor) >= (4, 5) and nb.metadata.kernelspec.name == 'python3'
    assert not any(c.outputs or c.execution_count for c in nb.cells if c.cell_type == 'code')

def test_it_names_no_path_of_a_machine(nb):
    for c in nb.cells:
        found = re.search(r'/(home|root|Users|work|tmp|mnt|media|opt)/|\b[A-Z]:\\|shared', c.source)
        assert not found, f"cell {c.id}: {found[0]!r} in {c.source!r}"
