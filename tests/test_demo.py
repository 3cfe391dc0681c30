"The demo learns density, not a shortcut, and says the same twice."
import json

import pytest


@pytest.mark.slow
def test_the_demo_learns_and_repeats(tmp_path):
    from mammo.recipes.density import demo, figures
    a, b = demo(tmp_path), demo(tmp_path)
    assert a.path.name == 'results' and b.path.name == 'results_1'
    # what size, brightness, vendor and file metadata reach is held below 0.4 by tests/test_phantom.py
    assert figures(a)['val'].loc['quadratic kappa', 'value'] > .6
    assert a.file('predictions').read_bytes() == b.file('predictions').read_bytes()
    seconds = sum(json.loads(a.file('history').read_text())['seconds'])
    print(f'training took {seconds:.0f} s')
