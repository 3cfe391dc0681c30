"The DICOM chain as one table against pydicom's float64 functions on the full matrix, decoding aside: `python tests/benchmarks/bench_dicom.py`."
import sys
from time import perf_counter

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian

from mammo.dicom import apply_table, display_table

WANTED = 2.0  # times faster than pydicom, in each case


def mammogram(**elements) -> Dataset:
    "The elements that the chain reads."
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    base = dict(Rows=2048, Columns=1664, BitsAllocated=16, BitsStored=12, HighBit=11, PixelRepresentation=0, Modality='MG',
                PhotometricInterpretation='MONOCHROME2', RescaleSlope=1, RescaleIntercept=0, PixelPaddingValue=0)
    for k, v in (base | elements).items(): setattr(ds, k, v)
    return ds


def lut_item(n: int = 3000) -> Dataset:
    "One item of a VOI LUT sequence with a bent curve."
    ds = Dataset()
    ds.add_new('LUTDescriptor', 'US', [n, 500, 12])
    ds.add_new('LUTData', 'OW', (4095 * np.linspace(0, 1, n)**.7).astype('<u2').tobytes())
    return ds


def pydicom_chain(codes: np.ndarray, ds: Dataset) -> np.ndarray:
    "The same result by pydicom: modality, VOI, scaled to [0, 1], turned over, padding masked."
    y = apply_voi_lut(apply_modality_lut(codes, ds), ds) / 4095.
    if ds.PhotometricInterpretation == 'MONOCHROME1': y = 1 - y
    y[codes == ds.PixelPaddingValue] = 0
    return y


def fastest(f, n: int = 5) -> float:
    "Milliseconds of the fastest of n calls, after one to warm up."
    f()
    best = float('inf')
    for _ in range(n):
        t = perf_counter()
        f()
        best = min(best, perf_counter() - t)
    return 1000 * best


def main() -> float:
    "Prints one line a case, returns the smallest ratio."
    codes = np.random.default_rng(0).integers(1, 4096, (2048, 1664), dtype=np.uint16)
    codes[:, 900:] = 0  # half of a mammogram is air
    cases = {'window, LINEAR': mammogram(WindowCenter=2000, WindowWidth=1500),
             'window, SIGMOID': mammogram(WindowCenter=2000, WindowWidth=1500, VOILUTFunction='SIGMOID'),
             'MONOCHROME1': mammogram(WindowCenter=2000, WindowWidth=1500, PhotometricInterpretation='MONOCHROME1'),
             'VOI LUT sequence': mammogram(RescaleSlope=None, RescaleIntercept=None, VOILUTSequence=[lut_item()])}
    del cases['VOI LUT sequence'].RescaleSlope, cases['VOI LUT sequence'].RescaleIntercept  # pydicom's LUT wants integers
    ratios = []
    for name, ds in cases.items():
        ours, theirs = (lambda: apply_table(codes, display_table(ds, codes)[0])), (lambda: pydicom_chain(codes, ds))
        assert np.abs(ours() - theirs()).max() <= 1 / 255
        a, b = fastest(ours), fastest(theirs)
        ratios.append(b / a)
        print(f'{name:18} table {a:6.1f} ms   pydicom {b:6.1f} ms   {b / a:5.1f} times faster')
    print(f'smallest ratio {min(ratios):.1f}, wanted {WANTED:g}')
    return min(ratios)


if __name__ == '__main__': sys.exit(main() < WANTED)
