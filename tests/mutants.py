"""Hostile DICOM files in any number: small sound files in every transfer syntax, mutations of their bytes and of their elements, and a process that may die of them.

`python tests/mutants.py 5000` counts what becomes of that many, in a process of its own each time one dies."""
import copy
import io
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st
from pydicom import config, dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

KEY, NAME = b'k' * 32, 'Quixote'
REAL = Path(__file__).parents[2] / 'shared' / 'data' / 'dicom'
SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless,
            *(UID(f'1.2.840.10008.1.2.4.{n}') for n in (50, 51, 57, 70, 80, 81, 90, 91, 201, 999))]
GDCM = {'jpeg': 'JPEGBaselineProcess1', 'jpeg lossless': 'JPEGLosslessProcess14_1', 'jpeg-ls': 'JPEGLSLossless'}
SECONDS, MIB, PATIENCE = 20, 1024, 90   # what a mutant may take: processor time, peak of the whole process, MiB; wall clock, for machines that do other things


def lut(n: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new('LUTDescriptor', 'US', [n, 0, bits])
    item.add_new('LUTData', 'OW', np.linspace(0, 2**bits - 1, n).astype('<u2').tobytes())
    return item


def sound(px: np.ndarray, **elements) -> Dataset:
    "A mammogram with everything that the grey chain looks at."
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, '1.2.3.4'
    bits = 8 * px.itemsize
    base = dict(SpecificCharacterSet='ISO_IR 100', SOPClassUID='1.2.840.10008.5.1.4.1.1.1.2', SOPInstanceUID='1.2.3.4', StudyInstanceUID='1.2.3', Modality='MG', AccessionNumber='0042',
                PatientID='HOSP-998877', PatientName=f'{NAME}^Alonso', PatientBirthDate='19550102', PatientAge='061Y', PatientSex='F', StudyDate='20160304', ImageType=['ORIGINAL', 'PRIMARY'],
                Manufacturer='Phantom', ImageLaterality='L', ViewPosition='MLO', PixelSpacing=[.1, .1], PresentationIntentType='FOR PRESENTATION', Rows=px.shape[0], Columns=px.shape[1],
                BitsAllocated=bits, BitsStored=min(bits, 12), HighBit=min(bits, 12) - 1, PixelRepresentation=0, SamplesPerPixel=1, PhotometricInterpretation='MONOCHROME2',
                WindowCenter=[.22 * 2**min(bits, 12), 1200], WindowWidth=[.37 * 2**min(bits, 12), 800], VOILUTFunction='LINEAR', RescaleSlope=1, RescaleIntercept=0, PixelPaddingValue=0, PixelIntensityRelationshipSign=-1)
    for k, v in (base | elements).items(): setattr(ds, k, v)
    ds.add_new('PixelData', 'OW', px.tobytes())
    return ds


def _by_gdcm(ds: Dataset, kind: str, folder: Path) -> Dataset:
    "The same compressed by gdcm, which writes what pydicom cannot."
    import gdcm
    a, b, reader, change, writer = str(folder / 'a.dcm'), str(folder / 'b.dcm'), gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    ds.save_as(a, enforce_file_format=True)
    reader.SetFileName(a)
    if not reader.Read(): raise RuntimeError('gdcm does not read it')
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
    change.SetInput(reader.GetImage())
    if not change.Change(): raise RuntimeError(f'gdcm does not write {kind}')
    writer.SetFile(reader.GetFile()); writer.SetImage(change.GetOutput()); writer.SetFileName(b)
    if not writer.Write(): raise RuntimeError('gdcm does not write it')
    return dcmread(b)


def bases(folder: Path, real: bool = False) -> dict[str, Dataset]:
    "Small sound files in every transfer syntax that can be written here; with `real` those of ../shared too, which are megabytes."
    px = np.add.outer(np.arange(48) * 40, np.arange(40) * 50).astype('<u2')
    small, out = (px >> 4).astype('u1'), {}
    plain = {'implicit': ImplicitVRLittleEndian, 'explicit': ExplicitVRLittleEndian, 'deflated': DeflatedExplicitVRLittleEndian}
    for name, syntax in plain.items():
        out[name] = sound(px, VOILUTSequence=[lut(4096, 12)]) if name == 'explicit' else sound(px)
        out[name].file_meta.TransferSyntaxUID = syntax
    out['big'] = sound(px.astype('>u2'))
    out['big'].file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    out['modality lut'] = sound(px, ModalityLUTSequence=[lut(4096, 16)])
    out['processing'] = sound(px, PresentationIntentType='FOR PROCESSING', PixelIntensityRelationship='LIN')
    for name, syntax in {'rle': RLELossless, 'jpeg 2000': JPEG2000Lossless}.items():
        out[name] = sound(px)
        out[name].compress(syntax, encoding_plugin='pydicom' if syntax == RLELossless else 'pylibjpeg')
    for name, kind in GDCM.items(): out[name] = _by_gdcm(sound(small if name == 'jpeg' else px), kind, folder)
    if real: out |= {p.name: dcmread(p) for p in sorted(REAL.glob('*.dcm'))}
    elif (dx := REAL / 'dx_image.dcm').exists(): out[dx.name] = dcmread(dx)
    return out


# ---------------------------------------------------------------- mutations: (what, arguments)

COUNTS = ['Rows', 'Columns', 'BitsAllocated', 'BitsStored', 'HighBit', 'PixelRepresentation', 'SamplesPerPixel', 'PlanarConfiguration', 'PixelPaddingValue', 'PixelPaddingRangeLimit']
TEXTS = ['NumberOfFrames', 'WindowCenter', 'WindowWidth', 'RescaleSlope', 'RescaleIntercept', 'PixelSpacing', 'PatientAge', 'PatientBirthDate', 'StudyDate', 'PhotometricInterpretation', 'ViewPosition',
         'ImageLaterality', 'SpecificCharacterSet', 'Manufacturer', 'AccessionNumber', 'PatientID', 'PatientName', 'ImageType', 'Modality', 'VOILUTFunction', 'SOPClassUID', 'StudyInstanceUID', 'PresentationIntentType']
WORDS = ['', '0', '-1', '1e308', '-1e308', 'nan', 'inf', '1e-320', '99999999999999999999', '0\\0', '1\\2\\3\\x', 'MONOCHROME1', 'RGB', 'YBR_FULL_422', 'PALETTE COLOR', 'SIGMOID', 'ISO 2022 IR 87', 'ISO_IR 999',
         'M\u00fcller^\u5c0f\u6797', '\x00\x01\x1b$B', '../../etc/passwd', '=cmd|x', '19000230', '00000000', '999D', 'x' * 70_000, '\\' * 3000]
PREAMBLES = {'png': b'\x89PNG\r\n\x1a\n', 'tiff': b'II*\0\x08\0\0\0', 'jpeg': b'\xff\xd8\xff\xe0', 'elf': b'\x7fELF\x02\x01\x01', 'exe': b'MZ\x90\0', 'zip': b'PK\x03\x04', 'html': b'<script>alert(1)</script>'}

count = st.one_of(st.sampled_from([0, 1, 2, 7, 8, 12, 15, 16, 17, 32, 64, 255, 256, 1024, 4096, 20000, 32768, 65535]), st.integers(0, 65535))
share = st.floats(0, 1, exclude_max=True)
ELEMENT = st.one_of(st.tuples(st.just('count'), st.sampled_from(COUNTS), count), st.tuples(st.just('text'), st.sampled_from(TEXTS), st.one_of(st.sampled_from(WORDS), st.text(max_size=40))),
                    st.tuples(st.just('gone'), st.sampled_from(COUNTS + TEXTS + ['PixelData'])), st.tuples(st.just('syntax'), st.sampled_from(SYNTAXES)),
                    st.tuples(st.just('lut'), st.sampled_from(['VOILUTSequence', 'ModalityLUTSequence']), count, count, count, st.integers(0, 9001)),
                    st.tuples(st.just('nested'), st.sampled_from([3, 60, 2000]), st.booleans()), st.tuples(st.just('junk'), st.binary(max_size=300)),
                    st.tuples(st.just('pixels'), share), st.tuples(st.just('fragments'), st.integers(0, 40)))
BYTES = st.one_of(st.tuples(st.just('bit'), share, st.integers(0, 7)), st.tuples(st.just('byte'), share, st.integers(0, 255)), st.tuples(st.just('head'), share, st.integers(0, 255)),
                  st.tuples(st.just('cut'), share), st.tuples(st.just('zeros'), share, st.integers(1, 4000)), st.tuples(st.just('again'), share, share, st.integers(1, 4000)),
                  st.tuples(st.just('length'), share, st.sampled_from([0, 1, 0x7fffffff, 0xfffffffe, 0xffffffff])), st.tuples(st.just('preamble'), st.sampled_from(list(PREAMBLES))))
PLAN = st.tuples(st.lists(ELEMENT, max_size=3), st.lists(BYTES, max_size=4)).filter(any)


def nested(depth: int, private: bool) -> bytes:
    "A sequence in a sequence in a sequence, of undefined lengths, in implicit and explicit bytes alike to a parser."
    tag = b'\x09\0\x02\x10' if private else b'\x54\0\x20\x02'
    return (tag + b'SQ\0\0\xff\xff\xff\xff' + b'\xfe\xff\0\xe0\xff\xff\xff\xff') * depth


def _change(ds: Dataset, what: str, *args) -> None:
    "One lie told by an element."
    if what == 'count': ds.add_new(args[0], 'US', args[1])
    elif what == 'text': ds.add_new(args[0], 'LO', args[1])
    elif what == 'gone': ds.pop(args[0], None)
    elif what == 'syntax': ds.file_meta.TransferSyntaxUID = args[0]
    elif what == 'junk': ds.add_new(0x00091001, 'UN', args[0])
    elif what == 'nested': ds.add_new(0x00091002 if args[1] else 0x00540220, 'UN', nested(*args))
    elif what == 'pixels' and 'PixelData' in ds: ds.PixelData = ds.PixelData[:int(len(ds.PixelData) * args[0]) // 2 * 2]
    elif what == 'fragments': ds.add_new('PixelData', 'OB', b'\xfe\xff\0\xe0\0\0\0\0' * args[0] + b'\xfe\xff\xdd\xe0\0\0\0\0')
    elif what == 'lut':
        item = Dataset()
        item.add_new('LUTDescriptor', 'US', list(args[1:4]))
        item.add_new('LUTData', 'OW', bytes(i % 251 for i in range(args[4])))
        ds.add_new(args[0], 'SQ', [item])


def _written(ds: Dataset, syntax: UID) -> bytes:
    "The bytes in the encoding of the sound file, whatever the meta information now says: that is the lie."
    out, says = io.BytesIO(), ds.file_meta.TransferSyntaxUID
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue().replace(str(syntax).encode().ljust(len(syntax) + len(syntax) % 2, b'\0'), str(says).encode()[:len(syntax)].ljust(len(syntax) + len(syntax) % 2, b'\0'), 1) if says != syntax else out.getvalue()


def _damage(b: bytearray, what: str, *args) -> bytearray:
    "One accident that befalls bytes."
    at = int(args[0] * len(b)) if what != 'preamble' else 0
    if what == 'bit' and b: b[at] ^= 1 << args[1]
    elif what == 'byte' and b: b[at] = args[1]
    elif what == 'head' and b: b[int(args[0] * min(len(b), 1600))] = args[1]
    elif what == 'cut': del b[at:]
    elif what == 'zeros': b[at:at + args[1]] = bytes(len(b[at:at + args[1]]))
    elif what == 'again': b[at:at] = b[int(args[1] * len(b)):][:args[2]]
    elif what == 'length': at = int(args[0] * min(len(b), 1600)); b[at:at + 4] = args[1].to_bytes(4, 'little')
    elif what == 'preamble': b[:len(PREAMBLES[args[0]])] = PREAMBLES[args[0]]
    return b


def mutant(base: Dataset, plan: tuple[list, list]) -> bytes:
    "A sound file after all that is planned."
    ds = copy.deepcopy(base)
    syntax = UID(ds.file_meta.TransferSyntaxUID)
    try:
        for lie in plan[0]: _change(ds, *lie)
        raw = _written(ds, syntax)
    except Exception: raw = _written(copy.deepcopy(base), syntax)  # pydicom writes no such thing: the bytes' turn
    b = bytearray(raw)
    for accident in plan[1]: _damage(b, *accident)
    return bytes(b)


# ---------------------------------------------------------------- the process that may die

def outcome(path: str) -> str:
    "`image`, `refused: reason`, or what went wrong."
    from mammo.dicom import BROKEN, NOT_ELIGIBLE, DicomError, read_header, read_image
    header = None
    try: header = read_header(path, KEY)
    except DicomError as e: said = e
    try: image = read_image(path, key=KEY)
    except DicomError as e:
        text = f'{e} {e.fix}'
        if e.reason not in BROKEN | NOT_ELIGIBLE or NAME in text or len(text) > 2000: return f'WRONG: error {text[:300]}'
        return f'refused: {e.reason}'
    if header is None: return f'WRONG: an image without a header ({said})'
    if image.img.dtype != np.float32 or image.img.shape != (header.rows, header.columns) or header != image.header: return f'WRONG: {image.img.dtype} {image.img.shape} {header.rows} {header.columns}'
    if not (np.isfinite(image.img).all() and 0 <= image.img.min() <= image.img.max() <= 1): return 'WRONG: values'
    if NAME in repr(image.header) + repr(image.notes): return 'WRONG: names the patient'
    return 'image'


def _live(conn) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2): os.dup2(quiet, fd)
    while True:
        path, start = conn.recv(), time.process_time()
        try: said = outcome(path)
        except BaseException: said = 'UNTYPED: ' + ''.join(traceback.format_exc().splitlines(True)[-12:])
        conn.send((said, time.process_time() - start, _peak()))


def _peak() -> float:
    "MiB, of this process alone: what `getrusage` tells begins with the parent's."
    status = Path('/proc/self/status')
    if status.exists(): return int(re.search(r'VmHWM:\s+(\d+)', status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Victim:
    "Reads files in a process of its own; a dead or hanging one is told and replaced."
    def __init__(self, seconds: float = PATIENCE): self.seconds, self.counts, self.longest, self.peak, self.process = seconds, Counter(), 0., 0., None

    def _start(self):
        ctx = multiprocessing.get_context('spawn')
        self.conn, theirs = ctx.Pipe()
        self.process = ctx.Process(target=_live, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def read(self, path: Path) -> str:
        if self.process is None: self._start()
        try:
            self.conn.send(str(path))
            if not self.conn.poll(self.seconds): said = 'HANG'
            else:
                said, seconds, peak = self.conn.recv()
                self.longest, self.peak = max(self.longest, seconds if self.counts else 0), max(self.peak, peak)  # the first one waits for imports
        except (EOFError, OSError): said = 'CRASH'
        if said in ('HANG', 'CRASH'): self.close()
        self.counts[said.split(':')[0] if said.isupper() or said.startswith(('UNTYPED', 'WRONG')) else said] += 1
        return said

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None

    def figures(self) -> str:
        n = sum(self.counts.values())
        return f'{n} mutants: ' + ', '.join(f'{k} {v}' for k, v in self.counts.most_common()) + f'; peak {self.peak:.0f} MiB, longest {self.longest:.2f} s'


def fuzz(n: int, folder: Path, real: bool = False, start: int | None = None) -> tuple[Victim, list[str]]:
    "`n` mutants through one `Victim`; what is neither an image nor a `DicomError` is listed, and its file kept."
    victim, known, bad = Victim(), bases(folder, real), []

    @settings(max_examples=n, derandomize=start is None, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(known)), PLAN)
    def one(name, plan):
        path = folder / 'mutant.dcm'
        path.write_bytes(mutant(known[name], plan))
        if (said := victim.read(path)).startswith(('UNTYPED', 'WRONG', 'HANG', 'CRASH')):
            bad.append(f'{name} {str(plan)[:600]}\n{said}')
            path.rename(folder / f'bad_{len(bad)}.dcm')

    old = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    try: (one if start is None else seed(start)(one))()
    finally:
        config.settings.writing_validation_mode = old
        victim.close()
    return victim, bad


if __name__ == '__main__':
    import warnings
    warnings.simplefilter('ignore')
    n, start, real = int((sys.argv + ['300'])[1]), int((sys.argv + ['', '0'])[2] or 0), 'real' in sys.argv
    folder = Path(tempfile.mkdtemp())
    clock = time.perf_counter()
    victim, bad = fuzz(n, folder, real, start)
    print(victim.figures(), f'in {time.perf_counter() - clock:.0f} s')
    for b in bad: print(b, '\n')
    print(folder)
