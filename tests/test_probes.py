"What the notebook 46_probes cannot say: that worker processes find the probes, and read files by name."
import numpy as np
import pandas as pd
from PIL import Image

from mammo.anatomy import phantom
from mammo.probes import probe_sets


def test_worker_processes_see_what_this_one_sees(tmp_path):
    paths = []
    for i in range(3):
        paths.append(str(tmp_path / f'{i}.png'))
        Image.fromarray((phantom(1 + i, 'LR'[i % 2], 'CC', seed=i, rows=160, columns=128).img * 255).round().astype('u1')).save(paths[-1])
    paths.append(str(tmp_path / 'gone.png'))
    rows = pd.DataFrame({'path': paths, 'rows': 160, 'columns': 128, 'view': 'CC'})
    (here, ok), (there, fine) = (probe_sets(paths, rows, workers=w, progress=False) for w in (0, 1))
    assert ok.tolist() == fine.tolist() == [True, True, True, False]
    for name in here: np.testing.assert_array_equal(here[name], there[name])
    assert (here['image size'][:3, 4] > 0).all() and here['image size'][3, 4] == 0  # the size of a file that is there
