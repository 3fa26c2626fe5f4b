"Every notebook runs from top to bottom, its closing asserts hold, and it is stored with its outputs and nothing else"
import importlib.util, re, time
from pathlib import Path
import nbformat, pytest

ROOT = Path(__file__).parent.parent
NBS  = sorted((ROOT/'nbs').glob('*.ipynb'))

spec = importlib.util.spec_from_file_location('run_notebooks', ROOT/'nbs'/'run.py')
run_notebooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_notebooks)

@pytest.fixture(params=NBS, ids=lambda o: o.stem)
def file(request): return request.param

@pytest.fixture
def nb(file): return nbformat.read(file, as_version=nbformat.NO_CONVERT)

def code_cells(nb): return [c for c in nb.cells if c.cell_type == 'code']

@pytest.mark.train
def test_a_notebook_runs_is_stored_with_all_its_outputs_and_leaves_no_files_behind(nb, file, tmp_path, capsys):
    start,stored = time.time(),[bool(c.outputs) for c in code_cells(nb)]
    run_notebooks.run(nb, tmp_path, timeout=120)
    # what a figure raises when it is drawn comes after its cell, which then counts as run
    assert not [o for c in code_cells(nb) for o in c.outputs if o.output_type == 'error']
    with capsys.disabled(): print(f" {file.stem}: {time.time()-start:.1f} s ", end='')
    # torch makes empty folders
    assert not [o for d in ('cwd', 'temp') for o in (tmp_path/d).rglob('*') if o.is_file()]
    run_notebooks.clean(nb, str(tmp_path))
    stale = [c.source for c,o in zip(code_cells(nb), stored) if bool(c.outputs) != o]
    assert not stale, f"store the outputs with nbs/run.py; stored and new outputs differ in the cells {stale}"

def test_its_first_code_cell_begins_with_the_star_import_and_its_last_asserts(nb):
    code = [c.source for c in code_cells(nb)]
    assert code[0].splitlines()[0] == 'from vision_tasks.all import *'
    assert re.search(r'^assert ', code[-1], re.M)

def test_it_is_valid_and_stored_as_one_run_without_errors(nb):
    nbformat.validate(nb)
    assert (nb.nbformat, nb.nbformat_minor) >= (4, 5) and nb.metadata.kernelspec.name == 'python3'
    code = code_cells(nb)
    assert [c.execution_count for c in code] == [*range(1, len(code)+1)], "not stored by nbs/run.py"
    kinds = {o.output_type for c in code for o in c.outputs}
    assert 'error' not in kinds and kinds >= {'execute_result', 'display_data'}, kinds
    assert not [o for c in code for o in c.outputs if o.output_type == 'stream' and o.name == 'stderr']

def test_its_file_is_smaller_than_a_megabyte(file):
    assert file.stat().st_size < 1e6, f"{file.stat().st_size} bytes; make figures smaller, or plot fewer images"

def test_it_names_no_path_of_a_machine(nb):
    for c in nb.cells:
        for text in [c.source, *(t for o in c.get('outputs', []) for t in output_texts(o))]:
            found = re.search(r'(?<![\w.])/(home|root|Users|work|tmp|mnt|media|opt|usr)/|\b[A-Z]:\\|\bshared/', text)
            assert not found, f"cell {c.id}: {found[0]!r} in {text!r}"

def output_texts(o):
    "The texts of an output; figures are base64, where a slash is no path"
    return [o.get('text', ''), *(v for k,v in o.get('data', {}).items() if k.startswith('text/'))]

def test_an_empty_progress_bar_is_dropped_and_a_table_of_epochs_is_kept():
    def output(**data): return nbformat.v4.new_output('display_data', {f'text/{k}': v for k,v in data.items()})
    assert run_notebooks.is_bar(output(html='<div></div>', markdown='```html\n<div></div>\n```', plain='<div></div>'))
    assert run_notebooks.is_bar(output(html='<style>progress {}</style>', plain='<IPython.core.display.HTML object>'))
    assert not run_notebooks.is_bar(output(html='<div><table></table></div>', plain='<div>...</div>'))
    assert not run_notebooks.is_bar(output(html='<b>a</b>', plain='a'))
    assert not run_notebooks.is_bar(output(markdown='**a**', plain='<IPython.core.display.Markdown object>'))
