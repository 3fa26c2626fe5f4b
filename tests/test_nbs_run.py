"`make nbs` stores nothing that differs between two runs or names a machine"
import base64, io, runpy
from pathlib import Path
import numpy as np, pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

RUN = runpy.run_path(str(Path(__file__).parent.parent/'nbs'/'run.py'))

def cleaned(*outputs, folder='/tmp/run1'):
    "The outputs of a cell after `clean`"
    nb = new_notebook(cells=[new_code_cell('x', outputs=list(outputs), execution_count=7)])
    RUN['clean'](nb, folder)
    return nb.cells[0]

def display(**data): return new_output('display_data', {k.replace('_', '/'): v for k,v in data.items()})

def test_paths_of_temporary_folders_and_addresses_of_objects_are_dropped():
    text = "/tmp/run1/temp/tmpab12_x/images/0.png <function f at 0x7f3a12345678>"
    assert cleaned(new_output('stream', text=text)).outputs[0].text == 'tmp/images/0.png <function f>'

def test_the_times_of_epochs_are_dropped_and_their_figures_kept():
    html = ('<table class="fastprogress"><tr><th>epoch</th><th>loss</th><th>time</th></tr>'
            '<tr><td>0</td><td>0.5</td><td>00:03</td></tr></table>')
    o, = cleaned(display(text_html=html, text_plain='epoch 00:03')).outputs
    assert '00:03' not in str(o) and 'time' not in str(o) and '<td>0.5</td>' in o.data['text/html']

def test_warnings_progress_bars_and_execution_numbers_are_dropped():
    three = new_output('execute_result', {'text/plain': '3'}, execution_count=7)
    cell = cleaned(new_output('stream', name='stderr', text='warning'), display(text_html='<style>p {}</style>'),
                   display(text_html='', text_plain=''), three)
    assert [o.output_type for o in cell.outputs] == ['execute_result']
    assert cell.execution_count == cell.outputs[0].execution_count == 1

def test_pieces_of_one_stream_become_one_output():
    assert cleaned(*[new_output('stream', text=o) for o in 'abc']).outputs[0].text == 'abc'

def test_a_figure_is_stored_in_fewer_bytes_at_the_same_size():
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, 'PNG')
    png = cleaned(display(image_png=base64.b64encode(out.getvalue()).decode())).outputs[0].data['image/png']
    raw = base64.b64decode(png)
    assert len(raw) < .6*len(out.getvalue()) and Image.open(io.BytesIO(raw)).size == (80, 60)

@pytest.mark.parametrize('text, found', [('/home/me/x.png', ['/home/me/x.png']), ('images/home/x.png', [])])
def test_a_path_of_the_machine_that_is_left_is_found(text, found):
    nb = new_notebook(cells=[new_code_cell('x', outputs=[new_output('stream', text=text)])])
    assert RUN['machine_paths'](nb) == found
